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

use futures::future::BoxFuture;
use serde_json::{Map, Value};

use crate::model::{
    BootInstant, Cluster, DeathProof, HistoryRow, LeaderRecord, LeaseRecord, Lsn, MemberName, PostgresState, Role,
    StoreLink, Timeline, Version, WallTime,
};

/// The contract version published in member data; peers parse it (kubernetes-objects §2.5).
pub const CONTRACT_VERSION: &str = "4.1.5";
/// Our own version, published beside it.
pub const IMPLEMENTATION: &str = env!("CARGO_PKG_VERSION");

/// A pending answer of the store. The boxed form keeps [`Dcs`] usable as `Arc<dyn Dcs>`.
pub type Reply<'a, T> = BoxFuture<'a, T>;

/// The cluster as last seen, and how much it can be trusted.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Everything the store knows.
    pub cluster: Arc<Cluster>,
    /// When the last change of the five lease keys was received (watch, fresh read or own write), by our own clock.
    /// The start of the process while nothing has been received.
    pub lease_received: BootInstant,
    /// Whether the view is kept up to date.
    pub link: StoreLink,
    /// What a person should know: unreadable annotations, pods with a foreign leader label.
    pub warnings: Vec<String>,
}

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

/// What the leader publishes with a renewal (kubernetes-objects §4.3).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LeaderStatus {
    /// Own WAL position; `None`: unknown, and the status annotations stay as they are.
    pub optime: Option<Lsn>,
    /// Slot name → position; empty removes the annotation.
    pub slots: BTreeMap<String, Lsn>,
    /// Slots to be kept on every node; empty removes the annotation.
    pub retain_slots: Vec<String>,
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

/// How any other conditional write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum WriteResult {
    /// Done; the new version of the object.
    Written(Version),
    /// The object is not what was expected. The view has the present one.
    Conflict,
    /// Refused definitely; one line.
    Refused(String),
    /// Nobody knows; one line.
    Unknown(String),
}

/// A failover or switchover request as written into the store (kubernetes-objects §1.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestText {
    /// Who is to step down; present = switchover.
    pub leader: Option<MemberName>,
    /// Who is to take over.
    pub candidate: Option<MemberName>,
    /// ISO 8601 with offset. Refused when it does not parse: an unreadable text makes Patroni members lose their view.
    pub scheduled_at: Option<String>,
}

/// What this member publishes about itself (kubernetes-objects §2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct MemberStatus {
    /// `postgres://host:port/database`, no credentials.
    pub conn_url: String,
    /// `http://host:port/patroni`.
    pub api_url: String,
    /// State of Postgres.
    pub state: PostgresState,
    /// Role of Postgres.
    pub role: Role,
    /// `postgres://host:port/database` of a proxy, if configured.
    pub proxy_url: Option<String>,
    /// Leader with the post-promotion checkpoint not confirmed yet.
    pub checkpoint_pending: bool,
    /// Effective tags as they are printed; empty = left out.
    pub tags: Map<String, Value>,
    /// A restart is pending.
    pub pending_restart: bool,
    /// Parameter → (old, new).
    pub pending_restart_reason: BTreeMap<String, (String, String)>,
    /// WAL position.
    pub xlog_location: Option<Lsn>,
    /// Standby: received.
    pub receive_lsn: Option<Lsn>,
    /// Standby: replayed.
    pub replay_lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`.
    pub replication_state: Option<String>,
    /// Timeline.
    pub timeline: Option<Timeline>,
    /// Scheduled restart, as printed.
    pub scheduled_restart: Option<Map<String, Value>>,
    /// I hold the lock (decides the role label; not serialised).
    pub is_leader: bool,
}

impl MemberStatus {
    /// With nothing but the required fields.
    pub fn new(conn_url: impl Into<String>, api_url: impl Into<String>, state: PostgresState, role: Role) -> Self {
        MemberStatus {
            conn_url: conn_url.into(),
            api_url: api_url.into(),
            state,
            role,
            proxy_url: None,
            checkpoint_pending: false,
            tags: Map::new(),
            pending_restart: false,
            pending_restart_reason: BTreeMap::new(),
            xlog_location: None,
            receive_lsn: None,
            replay_lsn: None,
            replication_state: None,
            timeline: None,
            scheduled_restart: None,
            is_leader: false,
        }
    }
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
