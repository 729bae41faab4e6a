//! The door between a running member and whoever asks it: REST, patronictl, metrics.
//!
//! GET endpoints answer from a [`Snapshot`]: one shared value that the driver replaces after every step of the machine.
//! Nobody waits for the machine to read it. What must be fresher (WAL positions, walsenders) comes from one shared query
//! ([`Handle::postgres_status`]); what other members say comes from one shared poll ([`Handle::members_live`]). Everything
//! that changes something is a [`Command`]: it becomes an input, and the machine answers when the thing is done.
//!
//! The module deliberately knows no HTTP: status numbers in an [`Answer`] are only carried. It knows neither the machine
//! nor the driver: clock and peers are handed in.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

pub use crate::model::Command;
use crate::model::{
    BootInstant, Cluster, Lsn, MemberName, MemberSnapshot, Now, PeerAnswer, PostgresState, Role, Timeline,
};

/// Pending commands from the REST API. People click; four is already someone clicking in anger. When it is full the
/// caller gets 503 instead of a queue that acts on stale wishes.
pub const COMMANDS_MAX: usize = 4;

/// Callers that may wait for one shared status query; above it the caller is told "not known" at once.
const STATUS_WAITERS_MAX: usize = 256;

/// A shared status may be this old.
const STATUS_AGE: Duration = Duration::from_millis(100);

/// `/patroni` and health checks answer within this time whatever Postgres does.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// Everything the GET endpoints need without waiting: the member as its machine shows it, and the words of its
/// configuration. Cheap to clone out of the watch: an `Arc`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The member.
    pub member: MemberSnapshot,
    /// Cluster name.
    pub scope: Arc<str>,
    /// The contract version (`4.1.5`).
    pub version: &'static str,
    /// The word for a primary: `primary`, or `master` with `primary_role_name: master`.
    pub primary_word: &'static str,
    /// Tags as configured (the tag filter looks at these).
    pub configured_tags: Arc<serde_json::Map<String, serde_json::Value>>,
    /// Tags as published.
    pub effective_tags: Arc<serde_json::Map<String, serde_json::Value>>,
    /// Parameters of Postgres that are not in force as they are configured: name → why.
    pub ignored_parameters: BTreeMap<String, String>,
}

impl Deref for Snapshot {
    type Target = MemberSnapshot;
    fn deref(&self) -> &MemberSnapshot {
        &self.member
    }
}

impl DerefMut for Snapshot {
    fn deref_mut(&mut self) -> &mut MemberSnapshot {
        &mut self.member
    }
}

/// The clock and the other members, handed in by whoever has them.
#[derive(Clone)]
pub struct Outside {
    /// The moment, by the clock every deadline of a snapshot counts in.
    pub now: fn() -> Now,
    /// The other members.
    pub peers: Arc<dyn Peers>,
}

/// An answer that is waited for.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Questions to the other members.
pub trait Peers: Send + Sync {
    /// Asks the members at these addresses for their state; every one of them is in the answer.
    fn ask(&self, members: BTreeMap<MemberName, String>) -> Later<'_, BTreeMap<MemberName, PeerAnswer>>;
    /// What all members but me say now; whoever does not answer is missing. Shared for a second.
    fn live(&self, cluster: Arc<Cluster>, me: MemberName) -> Later<'_, Arc<BTreeMap<MemberName, LiveMember>>>;
}

impl Snapshot {
    /// Does this member hold the leader lease at `now`?
    pub fn is_leader(&self, now: BootInstant) -> bool {
        self.leader_until.is_some_and(|until| now < until)
    }
    /// My name.
    pub fn me(&self) -> &MemberName {
        &self.member.me
    }
    /// Does the machine still step? A primary's may be late by a ttl, a standby's by two; in maintenance mode nobody is to end
    /// this process for it.
    pub fn is_live(&self, now: BootInstant) -> bool {
        let primary = matches!(self.role, Role::Primary | Role::Promoted) && self.alive;
        let threshold = if primary { self.settings.ttl } else { self.settings.ttl * 2 };
        self.settings.pause || now < self.next_step + threshold
    }
    /// No leader known, or the store unavailable (`cluster_unlocked`).
    pub fn cluster_unlocked(&self) -> bool {
        !self.dcs_available || self.cluster.leader.as_ref().and_then(|l| l.named()).is_none()
    }
    /// The word for a role on the wire, after `primary_role_name`.
    pub fn role_word(&self, role: Role) -> &'static str {
        match role {
            Role::Primary => self.primary_word,
            Role::Promoted | Role::Replica | Role::StandbyLeader | Role::Demoted | Role::Uninitialized => role.word(),
        }
    }
    /// The word for the Postgres state.
    pub fn state(&self) -> &PostgresState {
        &self.member.state
    }
}

/// One WAL sender of this member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WalSender {
    /// `usename`.
    pub usename: Option<String>,
    /// `application_name`.
    pub application_name: Option<String>,
    /// `client_addr`.
    pub client_addr: Option<String>,
    /// `state`.
    pub state: Option<String>,
    /// `sync_state`.
    pub sync_state: Option<String>,
    /// `sync_priority`.
    pub sync_priority: i32,
}

/// What Postgres says of itself, read after the request came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PostgresStatus {
    /// `pg_postmaster_start_time()` as text, `YYYY-MM-DD HH:MM:SS[.ffffff]+HH:MM`.
    pub postmaster_start_time: String,
    /// The same in seconds since 1970.
    pub postmaster_start_epoch: f64,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// `server_version_num`.
    pub server_version: u32,
    /// Primary: flush position.
    pub location: Option<Lsn>,
    /// Standby: written, else received, else replayed position.
    pub received: Option<Lsn>,
    /// Standby: replayed position.
    pub replayed: Option<Lsn>,
    /// Standby: time of the last replayed commit, as text.
    pub replayed_timestamp: Option<String>,
    /// The same in seconds since 1970.
    pub replayed_epoch: Option<f64>,
    /// Standby: its own WAL is not read to the end yet, so it has more than it can say.
    pub reads_on: bool,
    /// Standby: replay is paused.
    pub paused: bool,
    /// Timeline, if known.
    pub timeline: Option<Timeline>,
    /// `streaming`, `in archive recovery` or nothing.
    pub replication_state: Option<String>,
    /// Standby: the receiver's view of the upstream's flush position.
    pub latest_end_lsn: Option<Lsn>,
    /// WAL senders.
    pub replication: Vec<WalSender>,
}

/// What a member says of itself over REST, for `GET /cluster` and `patronictl list`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveMember {
    /// The raw document of `GET /patroni`.
    pub document: serde_json::Map<String, serde_json::Value>,
    /// Primary: position.
    pub location: Option<Lsn>,
    /// Standby: received.
    pub received: Option<Lsn>,
    /// Standby: replayed.
    pub replayed: Option<Lsn>,
    /// Timeline, if told.
    pub timeline: Option<Timeline>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body: a sentence, or the JSON document for the config commands.
    pub text: String,
}

impl Answer {
    /// An answer.
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Answer { status, text: text.into() }
    }
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// [`COMMANDS_MAX`] commands are pending: 503.
    #[error("too many requests are pending, try again later")]
    QueueFull,
    /// The process is stopping: 503.
    #[error("patroni is stopping")]
    Stopping,
}

/// A command with the place for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub command: Command,
    /// Where the answer goes; nobody may be waiting any more.
    pub reply: oneshot::Sender<Answer>,
}

/// The last status with the moment its query was sent.
pub type Stamped = Option<(BootInstant, Option<Arc<PostgresStatus>>)>;

/// A caller waiting for a status.
pub type StatusWaiter = oneshot::Sender<Option<Arc<PostgresStatus>>>;

/// `restapi.*` of the local configuration, replaced on reload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiSettings {
    /// `HOST:PORT`.
    pub listen: String,
    /// Advertised `HOST:PORT`.
    pub connect_address: String,
    /// PEM certificate chain (may include the key); set = TLS.
    pub certfile: Option<String>,
    /// PEM key.
    pub keyfile: Option<String>,
    /// Password of the key.
    pub keyfile_password: Option<String>,
    /// Client CA.
    pub cafile: Option<String>,
    /// `none`, `optional`, `required`.
    pub verify_client: Option<String>,
    /// OpenSSL cipher string.
    pub ciphers: Option<String>,
    /// Basic authentication: user, password.
    pub authentication: Option<(String, String)>,
    /// CIDR, addresses, host names.
    pub allowlist: Vec<String>,
    /// Addresses of members count as listed.
    pub allowlist_include_members: bool,
    /// Headers added to every reply.
    pub http_extra_headers: BTreeMap<String, String>,
    /// Headers added over TLS.
    pub https_extra_headers: BTreeMap<String, String>,
    /// `Original`, `Minimal`, `ProductOnly`.
    pub server_tokens: Option<String>,
    /// Accept backlog.
    pub request_queue_size: u32,
}

/// The REST API's only door to the rest of the process. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    api_settings: watch::Receiver<Arc<ApiSettings>>,
    commands: mpsc::Sender<Asked>,
    status: watch::Receiver<Stamped>,
    status_ask: mpsc::Sender<StatusWaiter>,
    outside: Outside,
}

/// The loop's ends of the channels (in tests of the API: the test's).
pub struct HandleEnds {
    /// Replaced after every tick.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// Replaced on reload.
    pub api_settings: watch::Sender<Arc<ApiSettings>>,
    /// Served by the loop.
    pub commands: mpsc::Receiver<Asked>,
    /// The last shared status; set by whoever serves `status_ask`.
    pub status: watch::Sender<Stamped>,
    /// Callers that wait for a status.
    pub status_ask: mpsc::Receiver<StatusWaiter>,
}

/// A handle and the other ends of its channels.
pub fn channels(first: Snapshot, api: ApiSettings, outside: Outside) -> (Handle, HandleEnds) {
    let (snapshot_tx, snapshot) = watch::channel(Arc::new(first));
    let (api_tx, api_settings) = watch::channel(Arc::new(api));
    let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
    let (status_tx, status) = watch::channel(None);
    let (status_ask, status_ask_rx) = mpsc::channel(STATUS_WAITERS_MAX);
    (
        Handle { snapshot, api_settings, commands, status, status_ask, outside },
        HandleEnds {
            snapshot: snapshot_tx,
            api_settings: api_tx,
            commands: commands_rx,
            status: status_tx,
            status_ask: status_ask_rx,
        },
    )
}

impl Handle {
    /// The moment, by the clock every deadline of the snapshot counts in.
    pub fn now(&self) -> Now {
        (self.outside.now)()
    }
    /// The state after the last tick.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }
    /// Follows the snapshots, e.g. to await the end of a switchover.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }
    /// `restapi.*` as configured; changes on reload.
    pub fn api_settings(&self) -> watch::Receiver<Arc<ApiSettings>> {
        self.api_settings.clone()
    }
    /// Does this member hold the leader lease now?
    pub fn is_leader(&self) -> bool {
        self.snapshot.borrow().is_leader(self.now().boot)
    }

    /// Hands a command to the loop and waits for its answer. The caller bounds the wait if it needs to; a dropped wait
    /// does not cancel the command.
    ///
    /// # Errors
    /// [`NotTaken`]: the command will not be carried out.
    pub async fn command(&self, command: Command) -> Result<Answer, NotTaken> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Asked { command, reply }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => NotTaken::QueueFull,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Stopping,
        })?;
        answer.await.map_err(|_| NotTaken::Stopping)
    }

    /// The status of Postgres by one query shared among callers, at most 100 ms old. `None` when Postgres does not accept
    /// connections or did not answer within a second.
    pub async fn postgres_status(&self) -> Option<Arc<PostgresStatus>> {
        if let Some((at, status)) = &*self.status.borrow()
            && self.now().boot.since(*at) <= STATUS_AGE
        {
            return status.clone();
        }
        let (tx, rx) = oneshot::channel();
        self.status_ask.try_send(tx).ok()?;
        tokio::time::timeout(STATUS_DEADLINE, rx).await.ok()?.ok()?
    }

    /// Asks these members for their state, as the race does (2 s each, in parallel).
    pub async fn ask_peers(&self, members: &[MemberName]) -> BTreeMap<MemberName, PeerAnswer> {
        let cluster = self.snapshot.borrow().cluster.clone();
        let url = |name: &MemberName| cluster.members.get(name).and_then(|m| m.api_url.clone()).unwrap_or_default();
        self.outside.peers.ask(members.iter().map(|name| (name.clone(), url(name))).collect()).await
    }

    /// What the other members say of themselves now; whoever does not answer is missing. One poll is shared for 1 s.
    pub async fn members_live(&self) -> Arc<BTreeMap<MemberName, LiveMember>> {
        let snapshot = self.snapshot();
        self.outside.peers.live(snapshot.cluster.clone(), snapshot.me().clone()).await
    }
}
