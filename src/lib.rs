//! Patroni for Kubernetes.
pub mod model;
pub mod decide;
pub mod dcs;
pub mod postgres;
pub mod keeper;
pub mod watchdog;
pub mod agent;
pub mod api;
pub mod ctl;
pub mod config;
pub mod kubemem;
pub mod demo;
