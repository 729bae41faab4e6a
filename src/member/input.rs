//! What the member learns: a closed list. Nothing else changes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Id, Ticket};
pub use crate::model::Command;
use crate::model::{
    BootInstant, DataDir, Fence, HistoryRow, LeaderRecord, LeaderWritten, LeaseRecord, MemberName, PeerAnswer,
    Permission, PodFacts, Probe, ReadFailed, RewindState, Settings, SlotsNow, StartRole, TaskOutcome, Timeline, View,
    WriteResult,
};

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The time the member asked to be woken at has come.
    Due,
    /// A signal to the process.
    Signal(Signal),
    /// The store's view changed.
    View(Arc<View>),
    /// Another configuration is in force.
    Settings(Arc<InForce>),
    /// The keeper reports something, or is gone.
    Keeper(News),
    /// A person wants something.
    Asked {
        /// Where the answer goes.
        ticket: Ticket,
        /// What.
        command: Command,
    },
    /// An effect was answered.
    Reply {
        /// Which.
        id: Id,
        /// How.
        answer: Result<Answer, Fail>,
    },
    /// An effect that was given up as late has ended: its lane is free.
    Ended(Id),
    /// A task says how far it is. Decides nothing.
    Progress {
        /// Which.
        id: Id,
        /// Such as `43 %`.
        text: String,
    },
}

/// Signals of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM, SIGINT: leave.
    Terminate,
}

/// Why an effect came to nothing, by what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fail {
    /// Whoever should have done it refuses. One line.
    Refused(String),
    /// Nothing was begun: another program works there, or the permission was not there (yet). A later try may do. One line.
    NotNow(String),
    /// Nothing was begun: processes that the keeper did not start hold the data directory, and may write to it. One line.
    InUse(String),
    /// Nobody is there who could do it. One line.
    Unreachable(String),
    /// It was ended on the way, by a cancel or by its deadline.
    Interrupted,
    /// Its moment had passed before it was begun.
    TooLate,
}

impl Fail {
    /// For people.
    pub fn text(&self) -> &str {
        match self {
            Fail::Refused(line) | Fail::NotNow(line) | Fail::InUse(line) | Fail::Unreachable(line) => line,
            Fail::Interrupted => "interrupted",
            Fail::TooLate => "too late",
        }
    }
}

/// What the keeper reports.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// A session was opened: what stands is the truth, whatever was asked before.
    Met(Standing),
    /// The session is gone, or the keeper silent.
    Lost(String),
    /// The postmaster and every descendant are gone.
    Died {
        /// How it ended, in words.
        how: String,
        /// When.
        at: BootInstant,
    },
    /// It stops Postgres by itself; why.
    Fenced(String),
    /// Its container is ending.
    Terminating,
}

/// What stands in the keeper when a session is opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The standing permission.
    pub permission: Permission,
    /// The lease of the note, and when its confirmed renewal was sent.
    pub note: Option<(LeaseRecord, BootInstant)>,
    /// How the living postmaster was started.
    pub postgres: Option<StartRole>,
    /// What ends it besides the keeper.
    pub fence: Fence,
    /// The last death it has seen.
    pub last_death: Option<BootInstant>,
    /// Its container is ending.
    pub terminating: bool,
}

/// What a start came to.
#[derive(Clone, Debug, PartialEq)]
pub enum StartEnd {
    /// The postmaster was started.
    Started {
        /// Parameters that wait for a restart all the same: name → (old, new).
        pending: BTreeMap<String, (String, String)>,
        /// What ends it besides the keeper.
        fence: Fence,
    },
    /// A postmaster runs already: no failed start. The keeper says how it was started.
    Running(StartRole, Fence),
    /// The files could not be written. One line.
    NotPrepared(String),
}

/// What one try of the monitoring query came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Looked {
    /// An answer.
    Answer(Probe),
    /// It says that it takes no connections: starting up, or shutting down.
    NotReady,
    /// Nobody listens, and no session was open before.
    Nobody,
    /// The session that was open has ended, and nobody listens any more.
    Gone,
    /// It is up, but does not let me in; its words.
    LoginRefused(String),
    /// No answer in time, or an error that says nothing of the server's life: the last answer stays.
    Silent,
}

/// Answers, one kind for each kind of effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To `ReadLeader`; `Ok(None)`: there is no object.
    Leader(Result<Option<Box<LeaderRecord>>, ReadFailed>),
    /// To `ReadConfig` and `ReadSync`: what was read is in a view that was told before.
    Config(Result<(), ReadFailed>),
    /// To `WriteLeader`.
    LeaderWritten(LeaderWritten),
    /// To `ReadPod`; `Ok(None)`: there is no pod.
    Pod(Result<Option<PodFacts>, ReadFailed>),
    /// To `WriteStore` and `Publish`.
    Written(WriteResult),
    /// To `StripLabels`: whose label was removed.
    Stripped(Vec<MemberName>),
    /// To `AskFailsafe`: everybody who was asked, by name and UID of the pod; why it does not promise.
    Failsafe(BTreeMap<(MemberName, String), Result<(), String>>),
    /// To `AskPeers`: every member that was asked.
    Peers(BTreeMap<MemberName, PeerAnswer>),
    /// To `Permit`, `Stop`, `Promote`: the keeper did it.
    Kept,
    /// Is the half-made data the published one? Then its mark is gone.
    Published(bool),
    /// To `Start`.
    Started(StartEnd),
    /// To `Script`: `Err`: it failed, one line.
    Script(Result<(), String>),
    /// To `Task`: how it ended.
    Task(TaskOutcome),
    /// To `Probe`.
    Looked(Looked),
    /// To `Look`.
    Data {
        /// The directory.
        data: DataDir,
        /// The newest timeline whose history file is in pg_wal; 0: none.
        newest_history: Timeline,
    },
    /// To `Compare`; `None`: cannot be said yet.
    Compared(Option<RewindState>),
    /// To `SyncSlots`.
    Slots(SlotsNow),
    /// To `PendingRestart`: parameter → (old, new).
    Pending(BTreeMap<String, (String, String)>),
    /// To `ReadHistory`; `None`: not readable.
    History(Option<Vec<HistoryRow>>),
    /// To `Reconfigure`: did Postgres read its files again?
    Rewritten {
        /// It did.
        reloaded: bool,
    },
    /// To `FeedWatchdog`.
    Fed(Fed),
    /// To `DisarmWatchdog`.
    Disarmed {
        /// It was armed before.
        armed: bool,
        /// What is to be warned about.
        warning: Option<String>,
    },
    /// To everything else: done.
    Done,
}

/// What became of the order to feed the watchdog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// It is armed and resets the machine so long after the evidence; `None`: it was too late to feed it, and it is closed if it was.
    pub resets_after: Option<Duration>,
    /// It was closed before: which device that is, in words.
    pub armed: Option<String>,
    /// What is to be warned about.
    pub warning: Option<String>,
}

/// The configuration in force, as far as the member looks at it.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    /// For decisions.
    pub settings: Arc<Settings>,
    /// The dynamic document that was put in force, as the store showed it; empty: from elsewhere.
    pub document: Arc<str>,
    /// What is written into a store that has no configuration.
    pub to_publish: Arc<str>,
    /// `postgres://host:port/database` of this member.
    pub conn_url: String,
    /// `http://host:port/patroni` of this member.
    pub api_url: String,
    /// Of a proxy, if configured.
    pub proxy_url: Option<String>,
    /// Tags as published: a JSON object as text, or empty.
    pub tags: Arc<str>,
    /// A bootstrap method other than initdb is configured.
    pub custom_bootstrap: bool,
    /// `postgresql.pre_promote` is configured.
    pub pre_promote: bool,
    /// `postgresql.before_stop` is configured.
    pub before_stop: bool,
    /// `restore_command` is configured.
    pub restores: bool,
    /// Postgres is in a container of its own: SIGTERM of this process alone leaves it running.
    pub separate_container: bool,
    /// `server_version_num` of the installed programs.
    pub server_version: u32,
    /// This is the answer to a reload: Postgres reads its files again even if none changed.
    pub reload: bool,
}
