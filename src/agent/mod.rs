//! The thin shell around `decide`: one loop that looks, decides, checks, acts.
//!
//! ```text
//! event ─► take (outcome, request, view → Local) ─► look (probe, data directory) ─► decide ─► check ─► execute ─┐
//!   ▲                                                                                                           │
//!   └──────────── begun actions end as outcome events; the timer ends at the decision's wake_at ◄───────────────┘
//! ```
//! Events wake the loop, they never act: a lost lease seen by a watch is only a new view. Whatever takes longer than a
//! keeper request is begun as a task, leaves its marker in `Local`, and comes back as an [`Event::Outcome`].
//!
//! Reading order: `handle` (what the REST API sees), `clock`, `observe` (events into `Local`), `tick` (one round of the
//! loop), `execute` (actions, one file per group), `publish`, `callbacks`, `peers`, `reload`, `settings` (configuration
//! into values), `startup`, `telemetry`.
//!
//! What it deliberately does not do: choose. Which member leads, what is stopped, when: `decide` says so.

pub mod callbacks;
pub mod clock;
mod execute;
pub mod handle;
mod keeper;
mod observe;
pub mod peers;
mod publish;
mod reload;
pub mod settings;
pub mod startup;
mod status;
pub mod telemetry;
mod tick;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

pub use handle::{
    Answer, ApiSettings, Asked, Command, Handle, HandleEnds, LiveMember, NotTaken, PostgresStatus, Snapshot, WalSender,
    channels,
};

use crate::dcs::{Dcs, DcsError, LeaseWrite, Renewal, View, WriteResult};
use crate::model::{
    BootInstant, Cluster, DeathProof, HistoryRow, Local, PeerRound, Request, RewindState, Settings, TaskKind,
};
use crate::postgres::Setup;

/// Outcomes of begun actions that wait for the loop. Few things are in flight at once; more would be a leak.
const OUTCOMES_MAX: usize = 64;

/// What wakes the loop.
enum Event {
    /// SIGHUP, SIGTERM, SIGINT.
    Signal(Signal),
    /// The keeper reports something, or is gone.
    Keeper(keeper::KeeperNews),
    /// A begun action has ended.
    Outcome(Outcome),
    /// The store's view changed.
    View,
    /// A person wants something.
    Asked(Asked),
    /// The decision's wake_at has come.
    Due,
}

/// Signals the process listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Re-read the configuration.
    Reload,
    /// Leave.
    Terminate,
}

/// How a begun action ended.
enum Outcome {
    /// Nothing to remember: look again.
    Look,
    Acquired(LeaseWrite),
    Renewed(Renewal),
    Released(LeaseWrite),
    LeaseRead(Result<(), DcsError>),
    Proof(Result<Option<DeathProof>, DcsError>),
    Claimed(WriteResult),
    Stored(execute::WriteName, WriteResult),
    History(Option<Vec<HistoryRow>>),
    Published(WriteResult),
    Peers(PeerRound),
    Progress(String),
    TaskEnded(TaskKind, Result<(), String>),
    Divergence(Result<Option<RewindState>, String>),
    CheckAgain,
    Checkpoint(Result<(), String>),
    Slots(Result<execute::SlotsNow, String>),
    PrePromote(Result<(), String>),
    BootstrapEnded(Result<(), String>),
    PendingRestart(BTreeMap<String, (String, String)>),
}

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ended {
    /// Exit code.
    pub code: u8,
    /// One line.
    pub message: String,
    /// Postgres was left running on purpose.
    pub leave_postgres: bool,
}

/// Marks of the shell itself; `decide` never sees them.
#[derive(Default)]
struct Flags {
    reading_lease: bool,
    checkpointing: bool,
    reload: bool,
    history: bool,
    reinit_from_leader: bool,
    ending_bootstrap: bool,
    task: Option<tokio::task::AbortHandle>,
    store_pause_until: BootInstant,
    /// SIGTERM came to the sidecar of a pod: it leaves then, unless the whole pod turns out to end.
    leave_at: Option<BootInstant>,
    /// The keeper's container is ending.
    keeper_ends: bool,
    /// When the keeper that the store was told of began: the same one, met again, is the same life.
    keeper_began: Option<BootInstant>,
}

/// The kubelet signals the containers of a pod one by one: how long a sidecar waits for the keeper to say that it is ending
/// too. Nothing is lost by waiting, Postgres goes on; twice what was seen on a busy machine.
const TOGETHER: Duration = Duration::from_secs(2);

/// The member: everything the loop owns.
pub struct Agent {
    store: Arc<dyn Dcs>,
    view: watch::Receiver<Arc<View>>,
    cluster: Arc<Cluster>,
    keeper: keeper::KeeperSide,
    peers: peers::PeerClient,
    source: settings::Source,
    setup: Arc<Setup>,
    settings: Arc<Settings>,
    wishes: Arc<settings::Wishes>,
    /// The dynamic configuration in force.
    dynamic: Value,
    /// Its text as the store showed it last.
    dynamic_text: String,
    setups: watch::Sender<Arc<Setup>>,
    local: Local,
    postgres: execute::PostgresSide,
    publisher: publish::Publisher,
    told: callbacks::Told,
    slots: execute::SlotsKept,
    flags: Flags,
    requests: VecDeque<(Request, Option<oneshot::Sender<Answer>>)>,
    scheduled_restart: Option<Map<String, Value>>,
    pending_restart: BTreeMap<String, (String, String)>,
    ends: HandleEnds,
    signals: mpsc::Receiver<Signal>,
    outcomes: mpsc::Receiver<Outcome>,
    outcome: mpsc::Sender<Outcome>,
    timer: clock::BootTimer,
    wake_at: BootInstant,
    last_reason: String,
    dcs_last_seen: i64,
}

impl Agent {
    /// Runs until the member leaves.
    pub async fn run(mut self) -> Ended {
        loop {
            if let Some(ended) = self.ticks().await {
                if !self.local.postgres.alive {
                    self.keeper.shut_down().await;
                }
                return ended;
            }
            let event = tokio::select! {
                biased;
                Some(signal) = self.signals.recv() => Event::Signal(signal),
                news = self.keeper.next() => Event::Keeper(news),
                Some(outcome) = self.outcomes.recv() => Event::Outcome(outcome),
                Ok(()) = self.view.changed() => Event::View,
                Some(asked) = self.ends.commands.recv() => Event::Asked(asked),
                due = self.timer.until(self.wake_at) => {
                    if let Err(e) = due {
                        warn!("the timer failed: {e}");
                    }
                    Event::Due
                }
            };
            self.take(event).await;
        }
    }

    /// What the event says goes into `Local`; acting on it is the decision's.
    async fn take(&mut self, event: Event) {
        match event {
            Event::Signal(signal) => self.signalled(signal),
            Event::Keeper(news) => self.keeper_says(news).await,
            Event::Outcome(outcome) => self.ended(outcome).await,
            Event::Asked(Asked { command, reply }) => self.take_command(command, reply).await,
            Event::View | Event::Due => {}
        }
    }

    fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::Reload => self.flags.reload = true,
            Signal::Terminate => self.told_to_end(),
        }
    }

    /// SIGTERM. Where Postgres has a container of its own it may be for the sidecar alone (a new image, a failed liveness
    /// probe): Postgres stays then. When the whole pod ends, the keeper gets its own SIGTERM at about the same time.
    fn told_to_end(&mut self) {
        if matches!(self.local.request, Some(Request::Terminate { .. })) {
            return;
        }
        if self.keeper.separate_container() && !self.flags.keeper_ends && !self.store.is_being_deleted() {
            let at = clock::boot() + TOGETHER;
            self.flags.leave_at.get_or_insert(at);
        } else {
            self.local.request = Some(Request::Terminate { leave_postgres: false });
        }
    }

    /// The wait for the keeper's word is over.
    fn due_leave(&mut self) {
        if self.flags.leave_at.is_some_and(|at| at <= clock::boot())
            && !matches!(self.local.request, Some(Request::Terminate { .. }))
        {
            let leave_postgres = !self.store.is_being_deleted();
            self.local.request = Some(Request::Terminate { leave_postgres });
        }
    }

    async fn ended(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Look => {}
            Outcome::Acquired(result) => self.acquired(result).await,
            Outcome::Renewed(result) => self.renewed(result).await,
            Outcome::Released(result) => self.released(result).await,
            Outcome::LeaseRead(result) => self.lease_read(result),
            Outcome::Proof(result) => self.proof(result),
            Outcome::Claimed(result) => self.claimed(result),
            Outcome::Stored(what, result) => self.stored(what, &result),
            Outcome::History(rows) => self.history_read(rows),
            Outcome::Published(result) => self.published(result),
            Outcome::Peers(round) => self.answered(round),
            Outcome::Progress(text) => self.progress(text),
            Outcome::TaskEnded(kind, result) => self.task_ended(kind, result),
            Outcome::Divergence(result) => self.divergence(result),
            Outcome::CheckAgain => self.local.checking = false,
            Outcome::Checkpoint(result) => self.checkpointed(result),
            Outcome::Slots(result) => self.slots_synced(result),
            Outcome::BootstrapEnded(result) => self.bootstrap_ended(result).await,
            Outcome::PrePromote(result) => self.pre_promoted(result).await,
            Outcome::PendingRestart(reasons) => self.pending_restart_found(reasons),
        }
    }

    /// Runs something beside the loop; its outcome comes back as an event.
    fn begin(&self, work: impl Future<Output = Outcome> + Send + 'static) {
        let outcome = self.outcome.clone();
        tokio::spawn(async move {
            let ended = work.await;
            // The loop is gone when nobody receives: the process is ending.
            drop(outcome.send(ended).await);
        });
    }
}
