//! A whole cluster on this machine: the embedded Kubernetes API, members as bare processes with real Postgres, and clients
//! that write to them. `patroni-demo`, `tests/cluster` and `benches/failover.rs` all stand on it.
//!
//! It treats the binaries as a user and a kubelet would: it writes a configuration file, creates the pod object, starts
//! `patroni FILE`, sends signals, reads REST and Postgres, and believes nothing that cannot be seen from outside. Reading
//! order: [`cluster`] (start, break, watch), [`member`] (one member's files and processes), [`apiserver`] (the embedded API
//! with the kubelet's part), [`writer`] (clients and what they were promised), [`story`] and [`live`] (what the demo shows).
//!
//! What it deliberately does not do: know how the members decide. It imports nothing of theirs but the time scale.

pub mod apiserver;
pub mod cluster;
pub mod http;
pub mod live;
pub mod machine;
pub mod member;
pub mod processes;
pub mod story;
pub mod verdict;
pub mod writer;

use std::fmt;

/// What went wrong, in a sentence for the person in front of the terminal.
pub struct Failure(pub String);

/// The result of everything the harness does.
pub type Res<T> = Result<T, Failure>;

/// A failure from a sentence.
pub fn fail<T>(what: impl Into<String>) -> Res<T> {
    Err(Failure(what.into()))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(e: E) -> Self {
        let mut text = e.to_string();
        let mut cause = e.source();
        while let Some(c) = cause {
            text.push_str(&format!(": {c}"));
            cause = c.source();
        }
        Failure(text)
    }
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// Puts `what` before the message: "read pg_hba.conf: no such file".
    ///
    /// # Errors
    /// The same failure, with its context.
    fn doing(self, what: impl fmt::Display) -> Res<T>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Res<T> {
        self.map_err(|e| Failure(format!("{what}: {}", e.into())))
    }
}
