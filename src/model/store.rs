//! What is asked of the store and what it answers, in words that name no store.
//!
//! The lease machine speaks [`LeaderWrite`] and [`LeaderWritten`]: one conditional write of the leader object, and what its
//! one request came to. Everything else is a [`StoreWrite`], a published [`MemberStatus`], or a read. None of these values
//! is ever sent twice: whoever gets an unclear answer reads again and decides anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{
    BootInstant, Cluster, Electorate, FailsafeMap, HistoryRow, HolderMark, LeaseRecord, Lsn, MemberName, PostgresState,
    Role, StoreLink, Timeline, Version,
};

/// The pod this member runs in, as the store shows the pod of this very UID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPod {
    /// UID, learned at the start of the process and never changed.
    pub uid: String,
    /// It is being deleted, or the store shows another pod, or none, under its name.
    pub leaving: bool,
    /// The container of the keeper that was met last, under the ID that was published for it, is shown as ended: no process
    /// of it lives.
    pub keeper_ended: bool,
    /// Its containers are shown as those of this life: a renewal would name them.
    pub named: bool,
}

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
    /// My own pod.
    pub me: OwnPod,
    /// What a person should know: unreadable annotations, pods with a foreign leader label.
    pub warnings: Vec<String>,
}

/// What the leader publishes with a renewal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LeaderStatus {
    /// Own WAL position; `None`: unknown, and the status stays as it is.
    pub optime: Option<Lsn>,
    /// Slot name → position; empty removes what stands.
    pub slots: BTreeMap<String, Lsn>,
    /// Slots to be kept on every node; empty removes what stands.
    pub retain_slots: Vec<String>,
}

/// A released lock, in the words of the one who released it.
///
/// With a position it is an oath: nobody whose own WAL ends before it takes the lock while a fit member that has it may
/// still come. It stands through acquisitions until a running holder has renewed beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// `acquireTime` of the acquisition that was given up.
    pub acquire_time: String,
    /// `transitions` of it.
    pub transitions: String,
    /// Where Postgres was shut down cleanly; `None`: it was not.
    pub shutdown: Option<Shutdown>,
}

/// A clean shutdown of the last primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// The position a member must have to have everything.
    pub position: Lsn,
    /// On this timeline.
    pub timeline: Timeline,
    /// Every member that had a data directory then, the releasing one included.
    pub members: BTreeSet<MemberName>,
}

/// The number that the next promotion takes, claimed in the lease write that precedes it. It belongs to one acquisition:
/// valid only while `acquire_time` and `transitions` are those of the record beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimelineClaim {
    /// The number.
    pub timeline: Timeline,
    /// Of the record it was written with.
    pub acquire_time: String,
    /// Of the record it was written with.
    pub transitions: String,
}

/// One conditional write of the leader object.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaderWrite {
    /// The version it expects; `None`: there is no object, create it.
    pub expect: Option<Version>,
    /// The five keys to write. A released record has no leader.
    pub record: LeaseRecord,
    /// Who writes; `None`: the mark that stands is left as it is (a release). The container IDs are filled in by the store's
    /// client, which knows the pod; it fills in none unless the pod it knows has this UID.
    pub holder: Option<HolderMark>,
    /// Position and slots.
    pub status: LeaderStatus,
    /// What to do with the oath.
    pub released: Change<Released>,
    /// The claimed number of the next promotion.
    pub claim: Change<TimelineClaim>,
    /// Who could race for it: whoever the holder needs to go on without the store.
    pub failsafe: Change<FailsafeMap>,
}

/// What a write does to a value that may stand in the object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Leave it as it is.
    #[default]
    Keep,
    /// Write this.
    Set(T),
    /// Remove it.
    Remove,
}

/// What one conditional write of the leader object came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaderWritten {
    /// The store has it.
    Wrote,
    /// The object is not in the expected version (or not there, or there already).
    Conflict,
    /// Refused definitely (403, 422 …): nothing was written. One line.
    Refused(String),
    /// Nobody knows; it may land later. One line.
    Unsure(String),
}

/// A read that gave nothing. One line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailed {
    /// The store refuses: permissions, or a request it does not understand.
    Refused(String),
    /// No answer: nothing is known.
    Unreachable(String),
}

impl ReadFailed {
    /// The line for a person.
    pub fn text(&self) -> &str {
        match self {
            ReadFailed::Refused(line) | ReadFailed::Unreachable(line) => line,
        }
    }
}

/// A pod, as far as a proof of death looks at it. Read afresh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// UID.
    pub uid: String,
    /// Every container that counts (regular ones, and init containers that keep running) → the IDs its status shows as
    /// terminated.
    pub terminated: BTreeMap<String, Vec<String>>,
}

/// Every other conditional write.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreWrite {
    /// Race on `initialize`. `expect`: version of the config object, `None`: there is none.
    ClaimInitialize {
        /// Version of the config object.
        expect: Option<Version>,
    },
    /// The system identifier.
    SystemId {
        /// Version of the config object.
        expect: Option<Version>,
        /// Decimal.
        system_id: String,
    },
    /// Makes the leader object, naming nobody. One that is there already stays as it is.
    LeaderObject,
    /// Removes `initialize`.
    CancelInitialize {
        /// Version of the config object.
        expect: Version,
    },
    /// The dynamic configuration, a JSON object as text.
    Config {
        /// Version of the config object.
        expect: Option<Version>,
        /// The document.
        document: Arc<str>,
    },
    /// The timeline history.
    History {
        /// Version of the config object.
        expect: Option<Version>,
        /// All rows.
        rows: Vec<HistoryRow>,
    },
    /// The sync key: who keeps it, and the synchronous standbys. Without a leader it binds nobody.
    Sync {
        /// Version of the sync object, `None`: there is none.
        expect: Option<Version>,
        /// Who keeps it.
        leader: Option<MemberName>,
        /// Who may lead in its place, and with how many votes.
        electorate: Electorate,
        /// A word that no other write has: one that says what stands already must move the version all the same, or a late write on
        /// that version could still land behind it.
        stamp: String,
    },
    /// A failover or switchover request over whatever request stands.
    SetRequest(RequestText),
    /// Clears the request that stands in this version.
    ClearRequest {
        /// Version of the failover object.
        expect: Version,
    },
}

impl StoreWrite {
    /// For the log.
    pub fn name(&self) -> &'static str {
        match self {
            StoreWrite::ClaimInitialize { .. } => "the initialize key",
            StoreWrite::SystemId { .. } => "the system identifier",
            StoreWrite::CancelInitialize { .. } => "removing the initialize key",
            StoreWrite::LeaderObject => "the leader object",
            StoreWrite::Config { .. } => "the dynamic configuration",
            StoreWrite::History { .. } => "the timeline history",
            StoreWrite::Sync { .. } => "the sync key",
            StoreWrite::SetRequest(_) => "the failover request",
            StoreWrite::ClearRequest { .. } => "clearing the failover request",
        }
    }
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

/// A failover or switchover request as written into the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestText {
    /// Who is to step down; present = switchover.
    pub leader: Option<MemberName>,
    /// Who is to take over.
    pub candidate: Option<MemberName>,
    /// ISO 8601 with offset. Refused when it does not parse: an unreadable text makes Patroni members lose their view.
    pub scheduled_at: Option<String>,
}

/// What this member publishes about itself.
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
    /// Effective tags as they are printed: a JSON object as text, empty text when there are none.
    pub tags: Arc<str>,
    /// The site this member is in.
    pub site: Option<String>,
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
    /// Scheduled restart as printed: a JSON object as text.
    pub scheduled_restart: Option<Arc<str>>,
    /// What is wrong with the fence, in one word; nothing: it is whole.
    pub fence: Option<&'static str>,
    /// It is in maintenance mode.
    pub pause: bool,
    /// I hold the lock (decides the role label; not part of the document).
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
            tags: Arc::from(""),
            site: None,
            pending_restart: false,
            pending_restart_reason: BTreeMap::new(),
            xlog_location: None,
            receive_lsn: None,
            replay_lsn: None,
            replication_state: None,
            timeline: None,
            scheduled_restart: None,
            fence: None,
            pause: false,
            is_leader: false,
        }
    }
}

/// The periods that the store's client works with: its silence limit and its retry budget follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// Lease duration.
    pub ttl: Duration,
    /// Period of the loop at rest.
    pub loop_wait: Duration,
    /// Budget for retries.
    pub retry_timeout: Duration,
}
