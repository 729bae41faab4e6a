//! `patronictl`, the command line (patronictl.md).
pub mod cli;
pub mod dates;
pub mod error;
pub mod members;
pub mod output;
pub mod prompts;
pub mod rest;
pub mod tls;
