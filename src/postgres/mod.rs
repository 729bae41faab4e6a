//! Everything about the Postgres of this member, except deciding what to do with it.
//!
//! [`Setup`] is the plain description of one Postgres that the caller fills from the configuration. From it the files
//! here compute commands (`bootstrap`, `replica`, `rewind`, `start`: argument vectors and environments that the keeper
//! runs), configuration files (`conf`), and read what Postgres leaves on disk (`control`, `wal`, `history`, `datadir`).
//! `sql` keeps one connection to the local server and asks the monitoring questions; `remote` asks another member.
//! Reading order is the order of the `mod` lines.
//!
//! What it deliberately does not do: start processes (the keeper does), decide, read clocks, know of Kubernetes.

pub mod binaries;
pub mod bootstrap;
pub mod conf;
pub mod connect;
pub mod conninfo;
pub mod control;
pub mod datadir;
pub mod history;
pub mod keeper_client;
pub mod params;
pub mod remote;
pub mod replica;
pub mod rewind;
pub mod setup;
pub mod slots;
pub mod sql;
pub mod start;
pub mod status;
pub mod trial;
pub mod wal;

pub use setup::{Command, Credentials, CustomMethod, Remote, ReplicaMethod, Setup};
