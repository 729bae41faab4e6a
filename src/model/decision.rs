//! The answer of `decide`: one reason, the actions in order, and when to look again at the latest.
//!
//! An action carries every detail; the executor chooses nothing. Lease and store writes and long tasks are
//! *begun* by the executor and show up in `Local` (`lease_write`, `store_write`, `task`, `asking`) until their outcome
//! is there, so that one look never begins a second one.

use std::collections::BTreeMap;
use std::fmt;

use super::local::Handover;
use super::{
    BootInstant, Cluster, DataDir, Electorate, HistoryRow, LeaseRecord, MemberName, Shutdown, StandbyNames, Stood,
    Timeline, Version,
};

/// What the keeper may let run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permission {
    /// No writer.
    #[default]
    None,
    /// One writer, until these instants.
    Writer {
        /// The keeper stops it (immediate).
        stop_at: BootInstant,
        /// The keeper kills it.
        kill_at: BootInstant,
    },
    /// One writer without a deadline.
    Unfenced(UnfencedReason),
}

/// The two situations without a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnfencedReason {
    /// A new cluster, before any lease exists.
    Bootstrap,
    /// Maintenance mode.
    Pause,
}

/// How a postmaster is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRole {
    /// Read-write, same timeline.
    Primary,
    /// With standby.signal.
    Standby,
}

/// How Postgres is stopped. Never smart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT.
    Fast,
    /// SIGQUIT.
    Immediate,
}

/// Whom a standby streams from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// A member.
    Member {
        /// Its name.
        name: MemberName,
        /// Its `conn_url`.
        conn_url: String,
    },
    /// The cluster that a standby cluster follows.
    Remote {
        /// `postgres://` with one or several places.
        conn_url: String,
        /// The slot there.
        slot: Option<String>,
    },
    /// Nobody known: recovery without primary_conninfo.
    Nobody,
}

/// Long tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// initdb or a custom method.
    Bootstrap,
    /// Users, post_bootstrap script.
    PostBootstrap,
    /// pg_basebackup or a custom method from this upstream; `None`: methods that need no leader.
    CreateReplica {
        /// Source; the cluster that a standby cluster follows has a name that no pod can have.
        from: Option<MemberName>,
        /// Its `conn_url`.
        conn_url: Option<String>,
        /// A person asked for a base backup of this source and nothing else.
        basebackup_only: bool,
    },
    /// pg_rewind against the leader.
    Rewind {
        /// Leader.
        from: MemberName,
        /// Its `conn_url`.
        conn_url: String,
        /// The timeline it was compared on; 0 = not known.
        timeline: Timeline,
    },
    /// `postgres --single` to reach a clean shutdown.
    CrashRecovery,
    /// Remove (or move away) the data directory; refused while a postmaster lives.
    Remove {
        /// Move to `<dir>.failed` instead of deleting.
        keep_as_failed: bool,
        /// Just before, this leader must answer as a primary (of a standby cluster: as its leader), else nothing is touched: on its behalf the data goes. `None`:
        /// what goes is nobody's copy (half-made, or kept as `.failed`).
        verify: Option<String>,
        /// In words.
        why: String,
    },
}

/// How a long task ended: what may be done next. The words are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskOutcome {
    /// Done.
    Done,
    /// The leader it works against did not answer, or is no primary (any more): once there is one, try again.
    LeaderGone(String),
    /// Cancelled, or the keeper that ran it was lost: says nothing of the data or the leader. Try again.
    Interrupted(String),
    /// It was tried with everything it needs, and does not work.
    Failed(String),
}

impl TaskOutcome {
    /// It did what it should.
    pub fn is_done(&self) -> bool {
        *self == TaskOutcome::Done
    }
    /// Why not.
    pub fn why(&self) -> Option<&str> {
        match self {
            TaskOutcome::Done => None,
            TaskOutcome::LeaderGone(why) | TaskOutcome::Interrupted(why) | TaskOutcome::Failed(why) => Some(why),
        }
    }
}

impl TaskKind {
    /// For status lines: "<action> in progress".
    pub fn word(&self) -> &'static str {
        match self {
            TaskKind::Bootstrap => "bootstrap",
            TaskKind::PostBootstrap => "post_bootstrap",
            TaskKind::CreateReplica { .. } => "creating replica",
            TaskKind::Rewind { .. } => "pg_rewind",
            TaskKind::CrashRecovery => "crash recovery in single user mode",
            TaskKind::Remove { .. } => "removal of the data directory",
        }
    }
}

/// Lines for the log that are not the reason itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

/// A change of recovery configuration of a running standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Rewrite and reload.
    Reload,
    /// Restart is needed.
    Restart,
}

/// One thing to do. Order matters; the executor stops at the first that does not succeed.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Read the leader object afresh and put it into the view.
    ReadLease,
    /// Read the configuration object, which holds the history, afresh and put it into the view.
    ReadConfig,
    /// Read the sync key afresh and put it into the view.
    ReadSync,
    /// Write the sync key: who leads, and who has every commit that was acknowledged.
    WriteSync {
        /// Version of the sync object, `None`: create.
        expect: Option<Version>,
        /// `None`: the mode is off, and the key binds nobody.
        leader: Option<MemberName>,
        /// Who may lead in its place, and with how many votes.
        electorate: Electorate,
    },
    /// Postgres waits for these standbys from now on.
    NameStandbys(StandbyNames),
    /// I am about to stop: nobody should wait for me.
    QuitSync,
    /// Take the lease. The executor reads the leader object afresh, compares it with `stood` and writes on exactly the
    /// version it has read.
    AcquireLease {
        /// What must be found.
        stood: Stood,
        /// The number that the promotion will take, written with the lock. `None`: there will be no promotion.
        claim: Option<Timeline>,
    },
    /// Renew my lease, with status (position, slots).
    RenewLease,
    /// Renew my lease with the number that its promotion will take: the acquisition claimed none, or one that is used up.
    ClaimTimeline(Timeline),
    /// Give the lease up. With `shutdown`, if Postgres was shut down cleanly, it is an oath: whoever ends before that
    /// position does not lead while somebody who has it may still come.
    ReleaseLease {
        /// Position, timeline, and who had data.
        shutdown: Option<Shutdown>,
    },
    /// Look for proof that the holder of the standing record is dead (fresh GET of pod, then of leader object).
    ProveDeath {
        /// The record.
        record: LeaseRecord,
        /// UID of its pod.
        uid: String,
        /// Name of its pod.
        pod: MemberName,
        /// Container name → ID.
        containers: BTreeMap<String, String>,
    },
    /// Race on `initialize`: conditional write of `""` and of `patroni.initializer`.
    ClaimInitialize {
        /// Version of the config object, `None`: create.
        expect: Option<Version>,
    },
    /// Write the system identifier into `initialize`.
    WriteSystemId {
        /// Version of the config object, `None`: create.
        expect: Option<Version>,
        /// Decimal.
        system_id: String,
    },
    /// Make the leader object, which is not there, naming nobody: where it stands untouched for a ttl, nobody leads.
    MakeLeaderObject,
    /// Remove `initialize` after a failed bootstrap (mine, or of a proven dead initializer).
    CancelInitialize {
        /// Version of the config object.
        expect: Version,
    },
    /// Write the dynamic configuration from `bootstrap.dcs`, or from memory when the record was lost.
    WriteConfig {
        /// Version of the config object, `None`: create.
        expect: Option<Version>,
    },
    /// Write the history.
    WriteHistory {
        /// All rows.
        rows: Vec<HistoryRow>,
    },
    /// Read local history files to bring `history` up to this timeline; outcome is a `WriteHistory` by the executor.
    UpdateHistory,
    /// Clear the failover request.
    ClearRequest {
        /// Version of the failover object.
        expect: Version,
        /// In words, for the log.
        why: String,
    },
    /// Send the permission to the keeper.
    Permit(Permission),
    /// Start Postgres. `standby`: recovery configuration for this upstream is written first.
    StartPostgres {
        /// How.
        role: StartRole,
        /// For a standby.
        upstream: Upstream,
        /// Whom its commits wait for, once it is a primary.
        names: StandbyNames,
    },
    /// Stop Postgres.
    StopPostgres {
        /// How.
        mode: StopMode,
        /// In words, for the log and callbacks.
        why: &'static str,
    },
    /// Promote the running standby (pre_promote first, if configured).
    Promote {
        /// The number claimed with the lock; `None`: whatever Postgres takes.
        claim: Option<Timeline>,
    },
    /// Point a running standby at another upstream.
    Follow {
        /// Whom.
        upstream: Upstream,
        /// Whom its commits wait for, once it is a primary.
        names: StandbyNames,
    },
    /// CHECKPOINT in the background (after promotion, or early in a hand-over).
    Checkpoint,
    /// Ask everybody who could race for my lock to leave it to me.
    AskFailsafe,
    /// Ask these members for their state.
    AskPeers {
        /// Names; addresses are in the view.
        members: Vec<MemberName>,
    },
    /// Begin a long task.
    Begin(TaskKind),
    /// Cancel the long task under way.
    CancelTask,
    /// Check for divergence against the leader; outcome sets `Local::rewind`.
    CheckDivergence {
        /// Leader.
        leader: MemberName,
        /// Its `conn_url`.
        conn_url: String,
        /// Its published timeline.
        timeline: Option<Timeline>,
    },
    /// Begin (or update) a hand-over.
    BeginHandover(Handover),
    /// Forget the hand-over.
    EndHandover,
    /// The request of a person is taken: remove it from the queue with this answer.
    AnswerRequest {
        /// HTTP status class and text, e.g. 200 "restarted successfully".
        status: u16,
        /// Text.
        text: String,
    },
    /// A reinitialize begins: `Local::reinit` until the clone is there.
    BeginReinit {
        /// A base backup of the leader and nothing else.
        from_leader: bool,
    },
    /// The reinitialize is over.
    EndReinit,
    /// The bootstrap has failed for good; why. What follows (directory aside, key removed, exit) is decided step by step.
    FailBootstrap(String),
    /// Begin a planned restart (stop, then start in the same role).
    PlanRestart {
        /// Start timeout in seconds.
        timeout: std::time::Duration,
    },
    /// The planned restart is over.
    RestartDone,
    /// Create missing and drop needless member slots.
    SyncSlots,
    /// Arm (if needed) and feed the watchdog.
    FeedWatchdog(super::Feed),
    /// Disarm the watchdog.
    DisarmWatchdog,
    /// Remember a change of the divergence check.
    SetRewind(super::RewindState),
    /// Set or clear the bootstrap flag.
    SetBootstrapping(bool),
    /// Publish member status and labels if they changed.
    PublishStatus,
    /// End the process.
    Exit {
        /// Exit code.
        code: u8,
        /// One line.
        message: String,
        /// Leave Postgres running.
        leave_postgres: bool,
    },
}

/// Why. Printed once per tick, at INFO when it changed. The words are Patroni's where Patroni has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(pub String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The answer of `decide`.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Decision {
    /// Why.
    pub reason: Reason,
    /// What, in order.
    pub actions: Vec<Action>,
    /// Look again at the latest at this time.
    pub wake_at: BootInstant,
    /// Lines for the log besides the reason.
    pub warnings: Vec<Warning>,
}

impl Decision {
    /// A decision that does nothing yet.
    pub fn new(reason: impl Into<String>, wake_at: BootInstant) -> Self {
        Decision { reason: Reason(reason.into()), actions: Vec::new(), wake_at, warnings: Vec::new() }
    }
    /// Adds an action.
    pub fn then(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }
    /// Adds an action if `condition`.
    pub fn then_if(self, condition: bool, action: impl FnOnce() -> Action) -> Self {
        if condition { self.then(action()) } else { self }
    }
    /// Adds several.
    pub fn then_all(mut self, actions: impl IntoIterator<Item = Action>) -> Self {
        self.actions.extend(actions);
        self
    }
    /// Looks again at `at`, if that is earlier.
    pub fn wake_by(mut self, at: BootInstant) -> Self {
        self.wake_at = self.wake_at.min(at);
        self
    }
    /// Adds a warning.
    pub fn warn(mut self, text: impl Into<String>) -> Self {
        self.warnings.push(Warning(text.into()));
        self
    }
}

/// A short view of what a decision was taken on, for `GET /decision` style explanations and failed checks.
pub fn facts(cluster: &Cluster, data: &DataDir) -> String {
    format!(
        "leader={} initialize={:?} data={}",
        cluster.leader.as_ref().and_then(|l| l.named()).map_or("none", |n| n.as_str()),
        cluster.initialize,
        match data {
            DataDir::Empty => "empty",
            DataDir::HalfMade => "half-made",
            DataDir::Restored => "restored",
            DataDir::Present { .. } => "present",
            DataDir::HalfRewound { .. } => "half-rewound",
            DataDir::Unusable(_) => "unusable",
        }
    )
}
