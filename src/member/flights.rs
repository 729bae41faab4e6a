//! Effects on their way: which lane each holds, by when it must be answered, and what its answer will mean.

use super::effect::{Effect, Id, Ticket};
use crate::model::{BootInstant, MemberStatus, Permission, StandbyNames, StartRole, StoreWrite, TaskKind, Upstream};

/// What may be under way once at a time. Effects of different lanes never wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Permissions: never waits for anybody, several may be under way.
    Permission,
    /// Stops: as permissions.
    Stop,
    /// Start, promotion and configuration files.
    Postgres,
    /// Scripts that hold up a stop or a promotion.
    Script,
    /// The long task.
    Task,
    /// Writes of the store's other objects that decisions asked for.
    Store,
    /// The sync key.
    Sync,
    /// The same, asked for by people: each carries its own answer.
    StoreOfPeople,
    /// Publication on the own pod.
    Pod,
    /// Labels of other pods.
    Labels,
    /// Questions to the other members.
    Peers,
    /// Requests to leave me the lock.
    Failsafe,
    /// Proof of death.
    Proof,
    /// Fresh reads of the configuration object.
    Config,
    /// Fresh reads of the sync key.
    SyncRead,
    /// Monitoring query.
    Probe,
    /// Looks at the data directory.
    Look,
    /// Comparison with the leader.
    Compare,
    /// CHECKPOINT.
    Checkpoint,
    /// Replication slots.
    Slots,
    /// Pending restarts.
    Pending,
    /// History files.
    History,
    /// Files around the data directory.
    Files,
    /// Configuration.
    Configuration,
    /// The watchdog device.
    Watchdog,
}

/// What an effect was for.
#[derive(Clone, Debug)]
pub(super) enum About {
    Permit {
        permission: Permission,
    },
    Stop,
    Start {
        role: StartRole,
        upstream: Upstream,
        names: StandbyNames,
        first_custom: bool,
    },
    Promote,
    Reconfigure {
        follow: Option<Upstream>,
        names: StandbyNames,
    },
    Names(StandbyNames),
    /// `acquisition`: of the lock under which the key was written as mine.
    Sync {
        acquisition: Option<String>,
    },
    SyncRead,
    PrePromote {
        acquisition: Option<String>,
    },
    BeforeStop,
    Task(TaskKind),
    Claim,
    Store {
        what: &'static str,
    },
    People {
        ticket: Ticket,
        ok: String,
        conflict: u16,
        conflict_text: &'static str,
        failed: u16,
    },
    Publish(Box<MemberStatus>),
    Strip,
    Failsafe,
    Peers {
        asked_at: BootInstant,
    },
    Config,
    ProofPod,
    ProofLeader {
        how: String,
    },
    Probe,
    Look,
    Compare,
    Checkpoint,
    Slots,
    Pending,
    History,
    /// The evidence it is fed for.
    FeedWatchdog(BootInstant),
    DisarmWatchdog,
    LookAtWatchdog,
    SaveFiles,
    EndBootstrap,
    KeepPublished,
    Configure,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub id: Id,
    pub lane: Lane,
    pub about: About,
    pub sent: BootInstant,
    pub deadline: BootInstant,
    /// The deadline has passed and the member has gone on; only the lane is still held.
    pub late: bool,
}

/// All of them. A few at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Flights {
    list: Vec<Flight>,
}

impl Flights {
    pub fn begin(&mut self, flight: Flight) {
        self.list.push(flight);
    }
    /// Is something of this lane under way, or not known to have ended?
    pub fn busy(&self, lane: Lane) -> bool {
        self.list.iter().any(|f| f.lane == lane)
    }
    /// The same, and its deadline has not passed.
    pub fn expected(&self, lane: Lane) -> bool {
        self.list.iter().any(|f| f.lane == lane && !f.late)
    }
    /// The running task.
    pub fn task(&self) -> Option<&Flight> {
        self.list.iter().find(|f| f.lane == Lane::Task)
    }
    /// Takes the flight that was answered.
    pub fn end(&mut self, id: Id) -> Option<Flight> {
        let at = self.list.iter().position(|f| f.id == id)?;
        Some(self.list.remove(at))
    }
    /// The next deadline.
    pub fn deadline(&self) -> Option<BootInstant> {
        self.list.iter().filter(|f| !f.late).map(|f| f.deadline).min()
    }
    /// A flight whose deadline has passed: reads are over, the rest keeps its lane until it is known to have ended.
    pub fn overdue(&mut self, now: BootInstant) -> Option<Flight> {
        let at = self.list.iter().position(|f| !f.late && f.deadline <= now)?;
        if self.list[at].lane.only_reads() {
            return Some(self.list.remove(at));
        }
        self.list[at].late = true;
        Some(self.list[at].clone())
    }
}

impl Lane {
    fn only_reads(self) -> bool {
        match self {
            Lane::Peers
            | Lane::Failsafe
            | Lane::Proof
            | Lane::Config
            | Lane::SyncRead
            | Lane::Probe
            | Lane::Look
            | Lane::Compare
            | Lane::Pending
            | Lane::History => true,
            Lane::Permission
            | Lane::Stop
            | Lane::Postgres
            | Lane::Script
            | Lane::Task
            | Lane::Store
            | Lane::Sync
            | Lane::StoreOfPeople
            | Lane::Pod
            | Lane::Labels
            | Lane::Checkpoint
            | Lane::Slots
            | Lane::Files
            | Lane::Configuration
            | Lane::Watchdog => false,
        }
    }
    /// The lane of an effect that a decision asked for.
    pub fn of(effect: &Effect) -> Lane {
        match effect {
            Effect::Permit { .. } => Lane::Permission,
            Effect::Stop { .. } => Lane::Stop,
            Effect::Start { .. } | Effect::Promote { .. } | Effect::Reconfigure { .. } => Lane::Postgres,
            Effect::Script(_) => Lane::Script,
            Effect::Task(_) => Lane::Task,
            Effect::WriteStore(StoreWrite::Sync { .. }) => Lane::Sync,
            Effect::WriteStore(_) => Lane::Store,
            Effect::Publish(_) => Lane::Pod,
            Effect::StripLabels => Lane::Labels,
            Effect::AskPeers { .. } => Lane::Peers,
            Effect::AskFailsafe { .. } => Lane::Failsafe,
            Effect::ReadPod { .. } | Effect::ReadLeader | Effect::WriteLeader(_) => Lane::Proof,
            Effect::ReadConfig => Lane::Config,
            Effect::ReadSync => Lane::SyncRead,
            Effect::Probe => Lane::Probe,
            Effect::Look => Lane::Look,
            Effect::Compare { .. } => Lane::Compare,
            Effect::Checkpoint => Lane::Checkpoint,
            Effect::SyncSlots { .. } => Lane::Slots,
            Effect::PendingRestart => Lane::Pending,
            Effect::ReadHistory { .. } => Lane::History,
            Effect::SaveFiles | Effect::EndBootstrap | Effect::KeepPublished { .. } => Lane::Files,
            Effect::Configure { .. } => Lane::Configuration,
            Effect::FeedWatchdog(_) | Effect::DisarmWatchdog | Effect::LookAtWatchdog => Lane::Watchdog,
            Effect::Cancel(_) | Effect::Callback { .. } | Effect::Answer { .. } | Effect::Exit { .. } => Lane::Look,
        }
    }
}
