//! The store of the cluster's state, as the rest of the program sees it: views, leases, conditional writes.
//!
//! [`Dcs`] is the seam: it never speaks of Kubernetes. [`kube::KubeStore`] is the one implementation, a thin layer of
//! waiting around the pure [`desk::Desk`], which spells every request, reads every answer and holds the view. Reading order:
//! this file (vocabulary), `options`, `schema` (typed values ↔ annotations; the only place that spells an annotation key),
//! `objects` (the few fields of Kubernetes objects anybody reads), `call` (an HTTP request as a value), `desk` with
//! `request`, `answer`, `cache` (what was shown so far) and `life`; then the layer: `client` (sends, each time with a
//! deadline), `watch` (list, watch, relist), `writes` (a write of another object without a clear answer is looked up), `kube`
//! (the store that ties them together). Attempts on the lease and proofs of death are the member's: one request each here.
//!
//! What it deliberately does not do: decide. It has no opinion on when a lease is expired or who should lead; it does not
//! re-send an old write; it does not read a clock except through the functions given at construction.

mod answer;
mod cache;
mod call;
mod client;
pub mod desk;
pub mod kube;
mod life;
mod objects;
pub mod options;
mod request;
pub mod schema;
mod watch;
mod writes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::model::{
    LeaderRecord, LeaderWrite, LeaderWritten, MemberName, Periods, PodFacts, ReadFailed, StoreWrite, WallTime,
};
pub use answer::{Answer, Body, Failure, SeenPod, leader_written, write_result};
pub use cache::{Feed, KindEntry};
pub use call::Call;
pub use request::{Object, Request, Sent};

pub use crate::model::{LeaderStatus, MemberStatus, RequestText, View, WriteResult};
use futures::future::BoxFuture;

/// The contract version published in member data; peers parse it.
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

/// What the store knows of the pod this member runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MyPod {
    /// UID.
    pub uid: String,
    /// Address; `None` while Kubernetes has not given one.
    pub pod_ip: Option<String>,
    /// Container name → container ID of every non-ephemeral container; empty until all of them are known.
    pub containers: BTreeMap<String, String>,
    /// The zone of its node, where the API server copies that label to the pod.
    pub site: Option<String>,
}

/// The life of the process that keeps Postgres, as the store must know it to name its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The container that process is in; `None`: unknown, every container of the pod is judged.
    pub container: Option<String>,
    /// When it began, by the clock the kubelet of this machine writes `startedAt` with.
    pub began: WallTime,
    /// When this program began, by the same clock.
    pub program: WallTime,
}

/// The store. Every method ends within the store's retry budget and says what its one request came to; nothing is ever sent
/// twice, except that a write of another object without a clear answer is looked up.
pub trait Dcs: Send + Sync {
    /// The view, fed by watches, fresh reads and own writes.
    fn view(&self) -> tokio::sync::watch::Receiver<Arc<View>>;
    /// Reads the leader object afresh; the answer enters the view.
    fn read_leader(&self) -> Reply<'_, Result<Option<LeaderRecord>, ReadFailed>>;
    /// Reads the configuration object afresh; what it says is in the view before the answer.
    fn read_config(&self) -> Reply<'_, Result<(), ReadFailed>>;
    /// Reads the sync object afresh; what it says is in the view before the answer.
    fn read_sync(&self) -> Reply<'_, Result<(), ReadFailed>>;
    /// One conditional write of the leader object.
    fn write_leader(&self, write: LeaderWrite) -> Reply<'_, LeaderWritten>;
    /// Reads a pod afresh.
    fn read_pod(&self, name: MemberName) -> Reply<'_, Result<Option<PodFacts>, ReadFailed>>;
    /// One conditional write of another object.
    fn write(&self, write: StoreWrite) -> Reply<'_, WriteResult>;
    /// Publishes member data and labels on the own pod; nothing is sent when the pod shows them already.
    fn publish_member(&self, status: MemberStatus) -> Reply<'_, WriteResult>;
    /// Removes the leader label from every other pod that carries it: clients are sent to one pod only. Returns the names of those.
    fn strip_leader_label(&self) -> Reply<'_, Vec<MemberName>>;
    /// The pod I run in: from the view, else by a fresh read.
    fn my_pod(&self) -> Reply<'_, Result<MyPod, DcsError>>;
    /// Which life of the pod's containers this is. Container IDs are published only while Kubernetes shows a container
    /// that can be the one of this life, so that nobody takes the death of an older one for the death of this member.
    fn set_life(&self, life: Life);
    /// The periods in force, after a change of the dynamic configuration.
    fn set_periods(&self, periods: Periods);
}
