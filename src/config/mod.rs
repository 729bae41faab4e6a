//! Configuration: from texts and environment to typed settings.
//!
//! ```text
//! files ─► yaml ─┐
//! environment ───┴─► load ─► Config ──┐
//! /config (store) ─► Dynamic ─────────┴─► effective_postgresql ─► EffectivePostgres
//! ```
//! `load` is strict about types and lenient about words: a list where text belongs is an error with file, line and
//! key; an unknown key is a warning that names the nearest known one. Dynamic documents are never refused by the store
//!, so `Dynamic` adjusts and warns. Nothing here knows Kubernetes, sockets or time; `files` is the only
//! file access. The contract is `docs/configuration.md`.
mod build;
mod controlled;
mod dynamic;
mod effective;
mod environment;
pub mod files;
mod keys;
mod load;
mod local;
pub mod merge;
pub mod numbers;
mod sample;
pub mod tags;
mod unsupported;
mod validate;
pub mod yaml;

pub use controlled::is_controlled;
pub use dynamic::{Dynamic, StandbyCluster, SynchronousMode, Timeouts, adjust};
pub use effective::{Callbacks, EffectivePostgres, effective_postgresql, options, split_listen};
pub use keys::schema;
pub use load::{ConfigError, Loaded, Refusal, SourceText, load};
pub use local::{
    Authentication, BasicAuth, Bootstrap, Config, Ctl, Kubernetes, Log, PgAuth, Port, Postgresql, RestApi, Secret,
    Watchdog,
};
pub use sample::{SampleFacts, sample};
pub use unsupported::{is_logical, newly_unsupported, unsupported};
pub use validate::validate;
