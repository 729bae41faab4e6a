//! What the member wants done: a closed list. Each effect that has an answer goes out as a [`Sent`], with an id, a deadline
//! and the moment after which it must not be begun any more.
//!
//! An effect carries every detail: version, position, stop mode, upstream. Whoever carries it out chooses nothing. Effects
//! of one step are independent of each other; what must follow an effect waits for its answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{
    Asked, BootInstant, Callback, Feed, HistoryRow, LeaderWrite, LeaseRecord, MemberName, MemberStatus, Permission,
    SlotOrders, StandbyNames, StartRole, StopMode, StoreWrite, TaskKind, Timeline, Upstream,
};

/// Names one effect and its answer. Never used twice in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// A person's command waits for its answer under this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An effect on its way out.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Sent {
    /// Its answer names it.
    pub id: Id,
    /// Without an answer by then the member takes it for late. Whatever runs for it is ended then, and that is reported.
    pub deadline: BootInstant,
    /// It is not begun after this moment: the world has moved on. Answered as too late instead.
    pub not_after: BootInstant,
    /// What.
    pub effect: Effect,
}

/// What Postgres is told after its files were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Read them again in any case.
    Always,
    /// Read them again if one of them changed.
    IfChanged,
    /// Nothing: no server runs.
    Never,
}

/// A script of the configuration that holds up what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// `postgresql.pre_promote`.
    PrePromote,
    /// `postgresql.before_stop`.
    BeforeStop,
}

/// One thing to do. Behind each stands the answer it gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Read the leader object afresh. → `Answer::Leader`
    ReadLeader,
    /// Read the configuration object afresh. → `Answer::Config`
    ReadConfig,
    /// Read the sync object afresh. → `Answer::Config`
    ReadSync,
    /// One conditional write of the leader object. → `Answer::LeaderWritten`
    WriteLeader(Box<LeaderWrite>),
    /// Read a pod afresh. → `Answer::Pod`
    ReadPod {
        /// Its name.
        name: MemberName,
    },
    /// One conditional write of another object. → `Answer::Written`
    WriteStore(StoreWrite),
    /// Publish member data and labels on the own pod. → `Answer::Written`
    Publish(Box<MemberStatus>),
    /// Remove the leader label from every other pod that carries it. → `Answer::Stripped`
    StripLabels,
    /// Ask members for their state, at these addresses. → `Answer::Peers`
    AskPeers {
        /// Name → `api_url`.
        members: BTreeMap<MemberName, String>,
    },
    /// Ask members to leave me the lock, at these addresses. → `Answer::Failsafe`
    AskFailsafe {
        /// Name → `api_url`.
        members: Asked,
    },
    /// Replace the keeper's permission and the note that lets a restarted sidecar go on. → `Answer::Kept`
    Permit {
        /// The permission.
        permission: Permission,
        /// The evidence it comes from.
        evidence: BootInstant,
        /// The lease it comes from, and when its confirmed renewal was sent; `None`: none.
        note: Option<(LeaseRecord, BootInstant)>,
    },
    /// Order the postmaster to stop. → `Answer::Kept`
    Stop {
        /// How.
        mode: StopMode,
    },
    /// Write the configuration files for this role and start the postmaster. → `Answer::Started`
    Start {
        /// How.
        role: StartRole,
        /// For a standby.
        upstream: Upstream,
        /// Whom its commits wait for, once it is a primary.
        names: StandbyNames,
        /// For the first time after a custom bootstrap method.
        first_custom: bool,
        /// When the last confirmed renewal was sent.
        renewal: BootInstant,
    },
    /// Promote the running standby. → `Answer::Kept`
    Promote {
        /// When the last confirmed renewal was sent.
        renewal: BootInstant,
        /// The number the promotion must take; gaps below it get placeholders first.
        claim: Option<Timeline>,
    },
    /// Run a script. → `Answer::Script`
    Script(Script),
    /// Run a long task. → `Answer::Task`
    Task(TaskKind),
    /// End what runs under this id. Its answer comes as for every end.
    Cancel(Id),
    /// One try of the monitoring query. → `Answer::Looked`
    Probe,
    /// Look at the data directory. → `Answer::Data`
    Look,
    /// Ask the member there for its timeline and history, and compare. → `Answer::Compared`
    Compare {
        /// Who.
        leader: MemberName,
        /// Where.
        conn_url: String,
    },
    /// CHECKPOINT. → `Answer::Done`
    Checkpoint,
    /// Make the replication slots so. → `Answer::Slots`
    SyncSlots {
        /// How they are to be.
        orders: SlotOrders,
    },
    /// Ask which parameters wait for a restart. → `Answer::Pending`
    PendingRestart,
    /// Read the history file of this timeline. → `Answer::History`
    ReadHistory {
        /// Which.
        timeline: Timeline,
        /// What is published: older rows take time and leader from it.
        previous: Vec<HistoryRow>,
    },
    /// Write the configuration files for this role. A primary that reads other names of standbys then writes one transaction
    /// that waits for nobody: they report what they have. → `Answer::Rewritten`
    Reconfigure {
        /// As what.
        role: StartRole,
        /// For a standby.
        upstream: Upstream,
        /// Whom its commits wait for, once it is a primary.
        names: StandbyNames,
        /// What follows.
        reload: Reload,
    },
    /// Arm the watchdog device if it is closed, and feed it. → `Answer::Fed`
    FeedWatchdog(Feed),
    /// Disarm the watchdog device and close it. → `Answer::Disarmed`
    DisarmWatchdog,
    /// Look whether the watchdog device could be opened, without opening it. → `Answer::Done`
    LookAtWatchdog,
    /// Keep copies of the configuration files of a server that came up. → `Answer::Done`
    SaveFiles,
    /// Make the new cluster durable and remove the mark of an unfinished bootstrap. → `Answer::Done`
    EndBootstrap,
    /// A directory with the mark of an unfinished bootstrap belongs to a cluster that was published whole: remove the mark
    /// if this is its system identifier. → `Answer::Done`
    KeepPublished {
        /// Decimal.
        system_id: String,
    },
    /// Put this dynamic configuration in force; `None`: read the local files again. → `Input::Settings`, then `Answer::Done`
    Configure {
        /// The document as the store shows it.
        document: Option<Arc<str>>,
    },
    /// Run a callback; nobody waits for it. No answer.
    Callback {
        /// Which.
        callback: Callback,
        /// The role it is told.
        role: crate::model::Role,
    },
    /// Answer a person. No answer.
    Answer {
        /// Whom.
        ticket: Ticket,
        /// HTTP status.
        status: u16,
        /// One sentence, or a document.
        text: String,
    },
    /// End the process. No answer.
    Exit {
        /// Exit code.
        code: u8,
        /// One line.
        message: String,
        /// Leave Postgres running.
        leave_postgres: bool,
    },
}

impl Effect {
    /// How long an answer may take before the effect counts as late. Tasks may take days; whoever waits for them sees their
    /// progress.
    pub fn patience(&self, retry_timeout: Duration) -> Duration {
        const KEEPER: Duration = Duration::from_secs(3);
        const SCRIPT: Duration = Duration::from_secs(300);
        const TASK: Duration = Duration::from_secs(14 * 24 * 3600);
        match self {
            Effect::ReadLeader | Effect::ReadConfig | Effect::ReadSync | Effect::ReadPod { .. } => retry_timeout,
            Effect::WriteLeader(_) | Effect::WriteStore(_) | Effect::Publish(_) | Effect::StripLabels => retry_timeout,
            Effect::AskPeers { .. } | Effect::AskFailsafe { .. } => Duration::from_secs(3),
            Effect::Permit { .. } | Effect::Stop { .. } => KEEPER,
            Effect::FeedWatchdog(_) | Effect::DisarmWatchdog | Effect::LookAtWatchdog => Duration::from_secs(3),
            // Files are written before the request: on a slow disk that takes its time.
            Effect::Start { .. } | Effect::Promote { .. } | Effect::Reconfigure { .. } => Duration::from_secs(20),
            Effect::Script(_) => SCRIPT,
            Effect::Task(_) => TASK,
            Effect::Probe => Duration::from_millis(500),
            Effect::Look => Duration::from_secs(30),
            Effect::Compare { .. } => Duration::from_secs(8),
            Effect::Checkpoint => Duration::from_secs(600),
            Effect::SyncSlots { .. } | Effect::PendingRestart | Effect::ReadHistory { .. } => Duration::from_secs(30),
            Effect::SaveFiles | Effect::EndBootstrap | Effect::KeepPublished { .. } | Effect::Configure { .. } => {
                Duration::from_secs(120)
            }
            Effect::Cancel(_) | Effect::Callback { .. } | Effect::Answer { .. } | Effect::Exit { .. } => Duration::ZERO,
        }
    }

    /// Does it only take something away? Such an effect is never too late, and nothing refuses it.
    pub fn only_stops(&self) -> bool {
        let stops = matches!(self, Effect::Stop { .. } | Effect::DisarmWatchdog | Effect::Cancel(_));
        stops || matches!(self, Effect::Permit { permission: Permission::None, .. })
    }
}
