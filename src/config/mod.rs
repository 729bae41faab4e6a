//! Reading configuration.
pub mod merge;
pub mod numbers;
pub mod yaml;
