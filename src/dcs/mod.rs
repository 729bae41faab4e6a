//! The store of the cluster's state, as the rest of the program sees it: views, leases, conditional writes.
//!
//! [`Dcs`] is the seam: it never speaks of Kubernetes. [`kube::KubeStore`] is the one implementation. Reading order:
//! this file (vocabulary), `options`, `schema` (typed values ↔ annotations; the only place that spells an annotation key), `objects`
//! (the few fields of Kubernetes objects anybody reads), `cache` (what the watches have shown, pure), `client` (requests,
//! each with a deadline), `watch` (list, watch, relist), `lease` (acquire, renew, release), `writes` (everything else),
//! `death` (proof of death), `kube` (the store that ties them together).
//!
//! What it deliberately does not do: decide. It has no opinion on when a lease is expired or who should lead; it does not
//! re-send an old write; it does not read a clock except through the functions given at construction.

mod cache;
mod client;
mod death;
pub mod kube;
mod lease;
mod life;
mod objects;
pub mod options;
pub mod schema;
mod watch;
mod writes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{
    BootInstant, DeathProof, HistoryRow, LeaderRecord, LeaseRecord, Lsn, MemberName, Version, WallTime,
};
pub use crate::model::{LeaderStatus, MemberStatus, RequestText, View, WriteResult};
use futures::future::BoxFuture;

/// The contract version published in member data; peers parse it (kubernetes-objects §2.5).
pub const CONTRACT_VERSION: &str = "4.1.5";
/// Our own version, published beside it.
pub const IMPLEMENTATION: &str = env!("CARGO_PKG_VERSION");

/// A pending answer of the store. The boxed form keeps [`Dcs`] usable as `Arc<dyn Dcs>`.
pub type Reply<'a, T> = BoxFuture<'a, T>;

/// Why the store could not be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DcsError {
    /// The configuration does not lead to an API server; one line for a person.
    Config(String),
    /// The API server forbids it; names the missing permission.
    Forbidden(String),
    /// No answer in time, connection errors, 5xx: nothing is known.
    Unreachable(String),
    /// The API server answered with something else.
    Refused(String),
}

impl fmt::Display for DcsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DcsError::Config(line)
            | DcsError::Forbidden(line)
            | DcsError::Unreachable(line)
            | DcsError::Refused(line) => f.write_str(line),
        }
    }
}

impl std::error::Error for DcsError {}

/// A wish to take the lease (design §4).
#[derive(Clone, Debug, PartialEq)]
pub struct Acquire {
    /// The record that stood for its ttl, was released, or is proven dead. `None`: no object.
    pub stood: Option<LeaseRecord>,
    /// Taken on proof of death: the holder mark must still be valid in the fresh read.
    pub proven_dead: bool,
    /// The ttl to write, as in `Settings` (scaled in builds with `test-time-scale`; the wire has the configured integer).
    pub ttl: Duration,
    /// For everything together.
    pub deadline: Duration,
}

/// A wish to renew the lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Renew {
    /// The ttl to write; see [`Acquire::ttl`].
    pub ttl: Duration,
    /// Status.
    pub status: LeaderStatus,
    /// For all attempts and re-reads together.
    pub deadline: Duration,
}

/// How an acquire or release ended.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum LeaseWrite {
    /// The store has it.
    Written {
        /// The record that stands.
        record: LeaseRecord,
        /// When the attempt that stands was *sent*: the lease counts from here.
        sent: BootInstant,
    },
    /// A fresh read shows something else than was expected; in words.
    Conflict(String),
    /// The API server refused it definitely (403, 422 …): nothing was written.
    Refused(String),
    /// Nobody knows yet. It may even land later; a later read that shows one of our attempts is ours.
    Unknown(String),
}

/// How a renewal ended.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum Renewal {
    /// The store has it.
    Renewed {
        /// The record that stands.
        record: LeaseRecord,
        /// When the attempt that stands was sent.
        sent: BootInstant,
    },
    /// A fresh read names another holder (maybe a stranger with my name); `None`: released or gone, and no attempt stands.
    LostTo(Option<MemberName>),
    /// Nobody knows; in words, the last error.
    Unknown(String),
}

/// What the store knows of the pod this member runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MyPod {
    /// UID.
    pub uid: String,
    /// Address; `None` while Kubernetes has not given one.
    pub pod_ip: Option<String>,
    /// Container name → container ID of every non-ephemeral container; empty until all of them are known.
    pub containers: BTreeMap<String, String>,
}

/// The life of the process that keeps Postgres, as the store must know it to name its container (design §5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The container that process is in; `None`: unknown, every container of the pod is judged.
    pub container: Option<String>,
    /// When it began, by the clock the kubelet of this machine writes `startedAt` with.
    pub began: WallTime,
}

/// The store. Every method ends within its deadline: the one given, else the store's retry budget.
pub trait Dcs: Send + Sync {
    /// The view, fed by watches, fresh reads and own writes.
    fn view(&self) -> tokio::sync::watch::Receiver<Arc<View>>;
    /// Reads the leader object afresh; the answer enters the view.
    fn read_lease(&self, deadline: Duration) -> Reply<'_, Result<Option<LeaderRecord>, DcsError>>;
    /// Takes the lease if a fresh read still shows `stood`.
    fn acquire(&self, want: Acquire) -> Reply<'_, LeaseWrite>;
    /// Renews the lease, with fresh attempts until the deadline.
    fn renew(&self, want: Renew) -> Reply<'_, Renewal>;
    /// Declares a standing record to be mine: the keeper's note proves it, or no Postgres of an earlier session is left
    /// (design §4 "Mine" b, c).
    fn adopt(&self, record: LeaseRecord);
    /// Is this very record mine: written by this process, or adopted?
    fn is_mine(&self, leader: &LeaderRecord) -> bool;
    /// Gives the lease up; `optime` is the shutdown position.
    fn release(&self, optime: Option<Lsn>, deadline: Duration) -> Reply<'_, LeaseWrite>;
    /// Races on `initialize`. `expect`: version of the config object, `None`: there is none.
    fn claim_initialize(&self, expect: Option<Version>) -> Reply<'_, WriteResult>;
    /// Writes the system identifier.
    fn write_system_id(&self, expect: Option<Version>, system_id: String) -> Reply<'_, WriteResult>;
    /// Removes `initialize`.
    fn cancel_initialize(&self, expect: Version) -> Reply<'_, WriteResult>;
    /// Writes the dynamic configuration (a JSON object as text; refused when it is not one).
    fn write_config(&self, expect: Option<Version>, document: String) -> Reply<'_, WriteResult>;
    /// Writes the timeline history.
    fn write_history(&self, rows: Vec<HistoryRow>) -> Reply<'_, WriteResult>;
    /// Writes a failover or switchover request over whatever request the view shows.
    fn set_request(&self, request: RequestText) -> Reply<'_, WriteResult>;
    /// Clears the request that stands in this version of the failover object.
    fn clear_request(&self, expect: Version) -> Reply<'_, WriteResult>;
    /// Publishes member data and labels on the own pod; nothing is sent when the pod shows them already.
    fn publish_member(&self, status: MemberStatus) -> Reply<'_, WriteResult>;
    /// Removes the leader label from every other pod that carries it (design §4). Returns the names of those.
    fn strip_leader_label(&self) -> Reply<'_, Vec<MemberName>>;
    /// Looks for proof that the incarnation that wrote `record` is dead (design §5): fresh read of its pod, then of the
    /// leader object. `Ok(None)`: no proof.
    fn prove_death(
        &self,
        record: LeaseRecord,
        uid: String,
        pod: MemberName,
        containers: BTreeMap<String, String>,
    ) -> Reply<'_, Result<Option<DeathProof>, DcsError>>;
    /// The pod I run in: from the view, else by a fresh read.
    fn my_pod(&self) -> Reply<'_, Result<MyPod, DcsError>>;
    /// Which life of the pod's containers this is. Container IDs are published only while Kubernetes shows a container
    /// that can be the one of this life, so that nobody takes the death of an older one for the death of this member.
    fn set_life(&self, life: Life);
    /// Is my own pod being deleted, as far as the watches tell?
    fn is_being_deleted(&self) -> bool;
    /// The periods in force, after a change of the dynamic configuration.
    fn set_periods(&self, ttl: Duration, loop_wait: Duration, retry_timeout: Duration);
}
