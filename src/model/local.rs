//! What this member knows of itself: its Postgres, its keeper, its lease, its unfinished business.
//!
//! `member::absorb` fills it; `decide` reads it. A time-out of anything in flight ends as an outcome here.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    BootInstant, Cluster, Deadman, Failsafe, Initialize, LeaseRecord, LeaseTracker, Lsn, Maintenance, MemberName,
    OwnLease, PeerRound, Permission, PostgresState, Promise, Replication, RestartFilter, RewindState, Role, StopMode,
    Stranger, SyncKeeping, TaskKind, TaskOutcome, Timeline, Upstream, Version, WallTime,
};

/// The connection to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreLink {
    /// No complete view yet since the start.
    NotRead,
    /// The view is followed by live watches.
    Following,
    /// Watches or reads fail since then; the last view may be old.
    Broken {
        /// Since when.
        since: BootInstant,
    },
}

/// A lease write on its way. One at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// Acquire.
    Acquire,
    /// Renew.
    Renew,
    /// Release.
    Release,
}

/// The connection to the keeper.
#[derive(Clone, Debug, PartialEq)]
pub enum KeeperLink {
    /// Connected, and this permission stands.
    Connected {
        /// The standing permission.
        permission: Permission,
    },
    /// Unreachable since then: never promote or start, report `fence: lost`, renew until its silence proves something.
    Lost {
        /// Since when.
        since: BootInstant,
    },
}

/// pg_controldata's "Database cluster state".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// starting up
    StartingUp,
    /// shut down
    ShutDown,
    /// shut down in recovery
    ShutDownInRecovery,
    /// shutting down
    ShuttingDown,
    /// in crash recovery
    InCrashRecovery,
    /// in archive recovery
    InArchiveRecovery,
    /// in production
    InProduction,
}

/// What pg_control says.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlData {
    /// Database system identifier, decimal.
    pub system_id: String,
    /// Cluster state.
    pub state: ClusterState,
    /// Latest checkpoint location.
    pub checkpoint: Lsn,
    /// Latest checkpoint's timeline.
    pub timeline: Timeline,
    /// Minimum recovery ending location and its timeline (0/0 when not in recovery).
    pub min_recovery_end: (Lsn, Timeline),
    /// Can pg_rewind work: wal_log_hints on, or data checksums.
    pub rewindable: bool,
    /// Where the next standby continues after a clean shutdown: the end of the shutdown checkpoint's predecessor, i.e.
    /// the position a standby must have received. Only set in state "shut down".
    pub shutdown_position: Option<Lsn>,
}

/// The data directory.
#[derive(Clone, Debug, PartialEq)]
pub enum DataDir {
    /// Missing, or nothing but dotfiles and `lost+found`.
    Empty,
    /// Half-made by this very pod's own bootstrap: the marker beside PGDATA names our pod.
    HalfMade,
    /// A custom bootstrap method of this very pod has ended well; Postgres recovers on it or is about to, and nothing of what
    /// follows a recovery has begun.
    Restored,
    /// A data directory.
    Present {
        /// pg_control, if readable.
        control: Option<ControlData>,
        /// standby.signal or recovery.signal is there.
        standby_signal: bool,
    },
    /// pg_rewind has begun to change it and did not finish: some blocks are the leader's, some its own. Never started as if
    /// it were whole.
    HalfRewound {
        /// pg_control, if readable; the last thing that pg_rewind writes.
        control: Option<ControlData>,
    },
    /// Exists, not readable or not a data directory; why, in words.
    Unusable(String),
}

/// One answer of the monitoring query.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// When the query was sent.
    pub at: BootInstant,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// Primary: from the current WAL file name. Standby: the receiver's, else pg_control's.
    pub timeline: Timeline,
    /// Primary: flush position. Standby: max(receive, replay).
    pub position: Lsn,
    /// Standby.
    pub received: Lsn,
    /// Standby.
    pub replayed: Lsn,
    /// WAL receiver is streaming.
    pub streaming: bool,
    /// Replay is paused.
    pub replay_paused: bool,
    /// PostgreSQL has paused it, until a restart: which settings are lower here than at the server whose WAL this is, in words.
    pub blocked: Option<String>,
    /// Database system identifier, decimal.
    pub system_id: String,
    /// Primary: whom its commits wait for, and who streams from it.
    pub replication: Replication,
}

/// The Postgres of this member.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresView {
    /// The word published in member data.
    pub state: PostgresState,
    /// The role published in member data.
    pub role: Role,
    /// A postmaster (or a descendant of one) is alive, as the keeper reports.
    pub alive: bool,
    /// How it was started, if alive and known.
    pub started_as: Option<StartRoleSeen>,
    /// Since when `state` is what it is.
    pub since: BootInstant,
    /// The last stop asked for, while alive.
    pub stopping: Option<StopMode>,
    /// A promotion was ordered and pg_control does not say "in production" yet: when it was ordered.
    pub promoting: Option<BootInstant>,
    /// When the last postmaster was seen dead with all descendants.
    pub last_death: Option<BootInstant>,
    /// The last death was not asked for, and no start came after it.
    pub crashed: bool,
    /// How the last one ended, for people; empty: nothing was heard of it.
    pub ended: String,
    /// Consecutive failed starts since the last good one.
    pub failed_starts: u32,
    /// The living postmaster has answered since it was started.
    pub came_up: bool,
    /// The last answer, if Postgres answers.
    pub probe: Option<Probe>,
    /// It accepts connections but refuses mine (password, pg_hba, all slots taken): it is up, and this is why I do not see
    /// more of it.
    pub login_refused: Option<String>,
    /// When a standby was last seen streaming.
    pub streamed: Option<BootInstant>,
    /// A standby that streamed was seen to have more WAL than at the look before.
    pub grew: Option<BootInstant>,
    /// The upstream it is configured for.
    pub following: Option<Upstream>,
    /// When that was configured last.
    pub followed_at: BootInstant,
    /// Primary: a checkpoint on the present timeline has been completed since promotion.
    pub checkpointed: bool,
    /// A restart is pending.
    pub pending_restart: bool,
    /// `server_version_num`, when known.
    pub server_version: Option<u32>,
    /// The newest timeline whose history file is in pg_wal; 0 = none, or not looked for. A standby that has the file of
    /// timeline N promotes to N + 1 or later, so its timeline is nobody else's.
    pub newest_history: Timeline,
}

/// How the living postmaster was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRoleSeen {
    /// Without standby.signal.
    Primary,
    /// With standby.signal.
    Standby,
}

/// The long task under way. One at a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What.
    pub kind: TaskKind,
    /// Since when.
    pub since: BootInstant,
    /// For people: progress such as `43 %`, if known.
    pub progress: Option<String>,
}

/// How the last long task ended; kept until the next one starts.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskEnd {
    /// What.
    pub kind: TaskKind,
    /// When.
    pub at: BootInstant,
    /// How.
    pub result: TaskOutcome,
}

/// An orderly hand-over in progress: CHECKPOINT, fast stop, a standby has it all, release.
#[derive(Clone, Debug, PartialEq)]
pub struct Handover {
    /// `None`: to whoever is fit.
    pub candidate: Option<MemberName>,
    /// Why, for the log: `switchover`, `manual failover`, `shutdown`.
    pub why: &'static str,
    /// When it began.
    pub began: BootInstant,
    /// The early checkpoint has ended (or failed, or was too slow).
    pub checkpoint_done: bool,
    /// The lock goes even when no standby has everything: the member ends, or may not lead.
    pub in_any_case: bool,
    /// When Postgres was seen dead after the stop.
    pub stopped: Option<BootInstant>,
}

impl Handover {
    /// Was it asked for through the store?
    pub fn of_request(&self) -> bool {
        matches!(self.why, "switchover" | "manual failover")
    }
}

/// Something a person asked for, or a signal.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Restart Postgres once, if the filter matches.
    Restart {
        /// Filter.
        filter: RestartFilter,
        /// Start timeout, else `primary_start_timeout`.
        timeout: Option<Duration>,
    },
    /// Throw the data away and clone anew.
    Reinitialize {
        /// Cancel what runs.
        force: bool,
        /// Only from the leader.
        from_leader: bool,
    },
    /// SIGTERM, or the keeper is terminating.
    Terminate {
        /// Pod shape, SIGTERM of the sidecar alone: leave Postgres, lock and permission as they are.
        leave_postgres: bool,
    },
}

/// A restart or other stop-then-start in progress, so that the dead postmaster is not taken for a crash.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRestart {
    /// When it was asked for.
    pub began: BootInstant,
    /// Start timeout.
    pub timeout: Duration,
    /// Nothing ran when it was asked for.
    pub from_stopped: bool,
}

/// A reinitialize under way: what runs is cancelled, Postgres stopped, the directory removed (a leader must answer just
/// then), the copy made. The person was answered when it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reinit {
    /// A base backup of the leader and nothing else.
    pub from_leader: bool,
    /// When it began: a task that is older was cancelled for it.
    pub began: BootInstant,
}

/// The bootstrap of a new cluster that has failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapFailed {
    /// Why.
    pub why: String,
    /// When that was found.
    pub at: BootInstant,
}

/// Attempts to take the lease that the store refused, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRefused {
    /// How many.
    pub count: u32,
    /// The last one.
    pub at: BootInstant,
}

/// A proof that the holder of this very record is dead: fresh reads of pod and leader object agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeathProof {
    /// The record of the dead holder.
    pub record: LeaseRecord,
    /// The version of the leader object in the fresh read.
    pub version: Version,
    /// In words, for the log: which containers, which UID.
    pub how: String,
}

/// A proof of death that is being looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofWanted {
    /// The record.
    pub record: LeaseRecord,
    /// UID of its holder's pod.
    pub uid: String,
    /// Name of its holder's pod.
    pub pod: MemberName,
    /// Container name → ID, as its mark names them.
    pub containers: BTreeMap<String, String>,
}

/// Everything this member knows of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Local {
    /// My name.
    pub me: MemberName,
    /// UID of my pod, empty while unknown.
    pub uid: String,
    /// A random word per start of this process.
    pub session: String,
    /// When this process started.
    pub started: BootInstant,
    /// The store.
    pub store: StoreLink,
    /// The lease as observed.
    pub lease: LeaseTracker,
    /// The lease as mine.
    pub own: Option<OwnLease>,
    /// The record that names me and counts for nothing by my own clock: it stood at my start, its `patroni.holder.uid` is my
    /// own pod's, and my keeper reports that no Postgres of an earlier session is left; or a write of mine landed too late.
    /// It is renewed before anything is built on it.
    pub reclaim: Option<LeaseRecord>,
    /// A lease write in flight.
    pub lease_write: Option<InFlight>,
    /// The number claimed by the last acquisition that was sent: of `own`, once that is confirmed.
    pub claim: Option<Timeline>,
    /// When the last attempt to renew was sent.
    pub last_attempt: Option<BootInstant>,
    /// Maintenance mode.
    pub maintenance: Maintenance,
    /// My lock says that I am in maintenance mode, and nothing that may still land says otherwise.
    pub announced: bool,
    /// This process has found no Postgres running: how it ended is not known.
    pub found_down: bool,
    /// The failover request that stands, and since when.
    pub request_seen: Option<(Version, BootInstant)>,
    /// In maintenance mode, while the keeper runs nothing: what answers all the same.
    pub stranger: Option<Stranger>,
    /// The sync key, and whom my Postgres waits for.
    pub sync: SyncKeeping,
    /// When the last fresh read of the sync key whose answer is in the view was sent.
    pub sync_read: Option<BootInstant>,
    /// I am about to stop and must not be a synchronous standby: since when that is said.
    pub quits_sync: Option<BootInstant>,
    /// Any other store write in flight (initialize, config, history, failover).
    pub store_write: bool,
    /// When the last fresh read of the configuration object whose answer is in the view was sent.
    pub config_read: Option<BootInstant>,
    /// Another configuration is being put in force.
    pub configuring: bool,
    /// Proof of death for the standing record.
    pub death_proof: Option<DeathProof>,
    /// A `ProveDeath` is in flight.
    pub proving: bool,
    /// What it looks for.
    pub proof_wanted: Option<ProofWanted>,
    /// When the last `ProveDeath` ended without a proof; the next try waits a moment.
    pub proof_tried: Option<BootInstant>,
    /// The keeper.
    pub keeper: KeeperLink,
    /// What it may have let run, should it be silent.
    pub deadman: Deadman,
    /// The data directory, as seen last.
    pub data: DataDir,
    /// Something has happened to it since: nothing that depends on it is decided before the next look.
    pub data_stale: bool,
    /// Postgres.
    pub postgres: PostgresView,
    /// The long task.
    pub task: Option<Task>,
    /// The last long task's end.
    pub task_end: Option<TaskEnd>,
    /// I won the initialize race and the bootstrap is not finished.
    pub bootstrapping: bool,
    /// It has failed.
    pub bootstrap_failed: Option<BootstrapFailed>,
    /// The pod that began to initialize the cluster is gone from the view: its UID, and since when.
    pub initializer_gone: Option<(String, BootInstant)>,
    /// The store refused to give me the lease.
    pub lease_refused: Option<LeaseRefused>,
    /// Divergence check.
    pub rewind: RewindState,
    /// When the last check ended.
    pub rewind_checked: Option<BootInstant>,
    /// Where my WAL ended when the cluster that is followed was first seen to stream.
    pub arrives_from: Option<Lsn>,
    /// WAL of it has come since, beyond that.
    pub arrived: bool,
    /// Numbers up to this one that were claimed with my lock are used up: since then it was the lock of a standby cluster.
    pub claim_void: Timeline,
    /// When such a question last came to nothing, if that was the end of the last one.
    pub compare_failed: Option<BootInstant>,
    /// A `CheckDivergence` is in flight.
    pub checking: bool,
    /// The last completed round of questions.
    pub peers: Option<PeerRound>,
    /// A round is out since.
    pub asking: Option<BootInstant>,
    /// Hand-over in progress.
    pub handover: Option<Handover>,
    /// The version of the request whose hand-over was given up: it is cleared, not carried out again.
    pub given_up: Option<Version>,
    /// A promotion did not take the number that was claimed for it, or not from the timeline it was claimed on: one number
    /// may stand for two branches. Why, in words.
    pub misnumbered: Option<String>,
    /// A planned restart in progress.
    pub restart: Option<PlannedRestart>,
    /// A reinitialize in progress.
    pub reinit: Option<Reinit>,
    /// The oldest unserved request.
    pub request: Option<Request>,
    /// pre_promote failed: no race until then.
    pub backoff_until: Option<BootInstant>,
    /// I stepped down by a hand-over at this time; I do not race for the lock I have just given away until a ttl passed
    /// or somebody else has held it.
    pub stepped_down: Option<BootInstant>,
    /// Whom I need to go on without the store.
    pub failsafe: Failsafe,
    /// The promise given to another leader that cannot reach the store: no race for its lock.
    pub promise: Option<Promise>,
    /// The watchdog device.
    pub watchdog: super::Watchdog,
    /// Scheduled restart of this member, if any.
    pub scheduled_restart: Option<(WallTime, RestartFilter)>,
}

impl Local {
    /// What a process knows of itself when it starts: its name, and that nothing was seen yet.
    pub fn at_start(me: MemberName, session: String, now: BootInstant, ttl: Duration) -> Local {
        Local {
            me,
            uid: String::new(),
            session,
            started: now,
            store: StoreLink::NotRead,
            lease: LeaseTracker::new(now, ttl),
            own: None,
            reclaim: None,
            lease_write: None,
            claim: None,
            last_attempt: None,
            maintenance: Maintenance::Off,
            announced: false,
            found_down: false,
            request_seen: None,
            stranger: None,
            sync: SyncKeeping::default(),
            sync_read: None,
            quits_sync: None,
            store_write: false,
            config_read: None,
            configuring: false,
            death_proof: None,
            proving: false,
            proof_wanted: None,
            proof_tried: None,
            keeper: KeeperLink::Connected { permission: Permission::None },
            deadman: Deadman::default(),
            data: DataDir::Empty,
            data_stale: true,
            postgres: PostgresView::at_start(now),
            task: None,
            task_end: None,
            bootstrapping: false,
            bootstrap_failed: None,
            initializer_gone: None,
            lease_refused: None,
            rewind: RewindState::Initial,
            rewind_checked: None,
            arrives_from: None,
            arrived: false,
            claim_void: Timeline(0),
            compare_failed: None,
            checking: false,
            peers: None,
            asking: None,
            handover: None,
            given_up: None,
            misnumbered: None,
            restart: None,
            reinit: None,
            request: None,
            backoff_until: None,
            stepped_down: None,
            failsafe: Failsafe::default(),
            promise: None,
            watchdog: super::Watchdog { left_over: true, ..super::Watchdog::default() },
            scheduled_restart: None,
        }
    }
}

impl Local {
    /// The mode in force is that of the store as it was just now: for what gives a promise up.
    pub fn mode_is_fresh(&self, now: BootInstant) -> bool {
        const YOUNG: Duration = Duration::from_secs(5);
        !self.configuring && self.config_read.is_some_and(|at| now.since(at) < YOUNG)
    }

    /// The sync key in the view was read since then.
    pub fn sync_read_since(&self, emptied: BootInstant) -> bool {
        self.sync_read.is_some_and(|at| at >= emptied)
    }

    /// Takes note whether the pod that is to initialize the cluster is still there.
    pub fn watch_initializer(&mut self, cluster: &Cluster, now: BootInstant) {
        let gone = cluster.initializer.as_ref().filter(|i| {
            cluster.initialize == Initialize::InProgress && !cluster.members.values().any(|m| m.uid == i.uid)
        });
        let before = self.initializer_gone.take();
        self.initializer_gone = gone.map(|i| before.filter(|b| b.0 == i.uid).unwrap_or((i.uid.clone(), now)));
    }
}

impl PostgresView {
    /// Nothing known, nothing running.
    pub fn at_start(now: BootInstant) -> PostgresView {
        PostgresView {
            state: PostgresState::Stopped,
            role: Role::Uninitialized,
            alive: false,
            started_as: None,
            since: now,
            stopping: None,
            promoting: None,
            last_death: None,
            crashed: false,
            ended: String::new(),
            failed_starts: 0,
            came_up: false,
            probe: None,
            login_refused: None,
            streamed: None,
            grew: None,
            following: None,
            followed_at: now,
            checkpointed: false,
            pending_restart: false,
            server_version: None,
            newest_history: Timeline(0),
        }
    }
}

#[cfg(test)]
mod tests;
