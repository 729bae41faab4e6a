//! Carries out a decision: actions in order, up to the first that does not succeed. It chooses nothing.
//!
//! `leases` and `store` begin writes, `postgres` talks to the keeper and to SQL, `tasks` runs the long things. What takes
//! longer than a keeper request is begun here and ends as an outcome event.

mod leases;
mod postgres;
mod slots;
mod store;
mod tasks;

use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::{Agent, Ended, Outcome, clock};
use crate::dcs::{DcsError, WriteResult};
use crate::model::{
    Action, BootInstant, DeathProof, Decision, HistoryRow, MemberName, Now, PeerRound, Permission, PlannedRestart,
    Task, TaskEnd, TaskKind,
};
use crate::postgres::history;

pub(super) use postgres::PostgresSide;
pub(super) use slots::{SlotsKept, SlotsNow};
pub(super) use store::WriteName;

/// A decision older than this is not carried out any further: the world has moved on (design §7 "late action").
const NOT_AFTER: Duration = Duration::from_secs(3);
/// Store writes that were refused are not tried again before.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What a round came to.
#[must_use]
pub(super) enum Done {
    /// Something was settled at once: decide again.
    Again,
    /// Wait for an event.
    Wait,
    /// The process ends.
    Ended(Ended),
}

/// What one action came to.
#[must_use]
enum Step {
    /// Begun, or nothing to do.
    Begun,
    /// Done, and `Local` changed.
    Settled,
    /// Did not succeed; one line.
    Failed(String),
}

/// A step that only changes what this member remembers.
fn settled(change: impl FnOnce()) -> Step {
    change();
    Step::Settled
}

/// Actions that only take away: never dropped.
pub(super) fn only_stops(action: &Action) -> bool {
    matches!(
        action,
        Action::StopPostgres { .. } | Action::Permit(Permission::None) | Action::DisarmWatchdog | Action::PublishStatus
    )
}

impl Agent {
    /// Carries out the actions of a decision taken at `now`.
    pub(super) async fn execute(&mut self, decision: Decision, now: Now) -> Done {
        let mut again = false;
        for action in decision.actions {
            if clock::boot().since(now.boot) > NOT_AFTER && !only_stops(&action) {
                warn!("the decision is too old to go on with: {action:?} is left out");
                return Done::Again;
            }
            if let Action::Exit { code, message, leave_postgres } = action {
                return Done::Ended(Ended { code, message, leave_postgres });
            }
            debug!(?action);
            match self.act(action).await {
                Step::Begun => {}
                Step::Settled => again = true,
                Step::Failed(why) => {
                    error!("{why}");
                    self.wake_at = self.wake_at.min(clock::boot() + Duration::from_millis(500));
                    return Done::Wait;
                }
            }
        }
        if again { Done::Again } else { Done::Wait }
    }

    async fn act(&mut self, action: Action) -> Step {
        match action {
            Action::ReadLease => self.begin_read_lease(),
            Action::AcquireLease { stood, proven_dead } => self.begin_acquire(stood, proven_dead),
            Action::RenewLease => self.begin_renew().await,
            Action::ReleaseLease { optime } => self.begin_release(optime),
            Action::ProveDeath { record, uid, pod, containers } => self.begin_prove_death(record, uid, pod, containers),
            // A write that has to wait is wished again by a later decision.
            Action::ClaimInitialize { .. }
            | Action::WriteSystemId { .. }
            | Action::CancelInitialize { .. }
            | Action::WriteHistory { .. }
            | Action::ClearRequest { .. }
            | Action::WriteConfig { .. }
            | Action::UpdateHistory
                if !self.may_write_store() => {}
            Action::ClaimInitialize { expect } => self.begin_claim(expect),
            Action::WriteSystemId { expect, system_id } => self.begin_system_id(expect, system_id),
            Action::CancelInitialize { expect } => self.begin_cancel_initialize(expect),
            Action::WriteHistory { rows } => self.begin_history(rows),
            Action::ClearRequest { expect, why } => self.begin_clear(expect, &why),
            Action::WriteConfig { expect } => self.begin_write_config(expect),
            Action::UpdateHistory => self.begin_history_update(),
            Action::Permit(permission) => return self.permit_action(permission).await,
            Action::StartPostgres { role, upstream } => return self.start_postgres(role, upstream).await,
            Action::StopPostgres { mode, why } => return self.stop_postgres(mode, why).await,
            Action::Promote => return self.promote().await,
            Action::Follow { upstream } => return self.follow(upstream).await,
            Action::Checkpoint => self.begin_checkpoint(),
            Action::AskPeers { members } => self.begin_ask(members),
            Action::Begin(kind) => return self.begin_task(kind),
            Action::CancelTask => self.cancel_task(),
            Action::CheckDivergence { leader, conn_url, timeline } => self.begin_divergence(leader, conn_url, timeline),
            Action::RemoveDataDir { keep_as_failed, why } => return self.remove_data_dir(keep_as_failed, &why).await,
            Action::SyncSlots => self.begin_sync_slots(),
            Action::PublishStatus => self.publish(),
            Action::FeedWatchdog | Action::DisarmWatchdog => {}
            Action::SetBootstrapping(false) => self.begin_bootstrap_end(),
            Action::SetBootstrapping(true) => return settled(|| self.local.bootstrapping = true),
            Action::BeginHandover(handover) => return settled(|| self.local.handover = Some(handover)),
            Action::EndHandover => return settled(|| self.local.handover = None),
            Action::AnswerRequest { status, text } => return settled(|| self.answer_request(status, &text)),
            Action::PlanRestart { timeout } => return settled(|| self.plan_restart(timeout)),
            Action::RestartDone => return settled(|| self.local.restart = None),
            Action::SetRewind(state) => return settled(|| self.local.rewind = state),
            Action::Exit { .. } => {}
        }
        Step::Begun
    }

    fn plan_restart(&mut self, timeout: Duration) {
        self.local.restart = Some(PlannedRestart { began: clock::boot(), timeout });
    }

    fn may_write_store(&self) -> bool {
        !self.local.store_write && clock::boot() >= self.flags.store_pause_until
    }

    pub(super) fn pause_store_writes(&mut self) {
        self.flags.store_pause_until = clock::boot() + STORE_PAUSE;
    }

    fn begin_ask(&mut self, members: Vec<MemberName>) {
        if self.local.asking.is_some() {
            return;
        }
        let asked_at = clock::boot();
        self.local.asking = Some(asked_at);
        let (peers, cluster) = (self.peers.clone(), self.cluster.clone());
        self.begin(async move { Outcome::Peers(PeerRound { asked_at, answers: peers.ask(&cluster, &members).await }) });
    }

    pub(super) fn answered(&mut self, round: PeerRound) {
        self.local.asking = None;
        for (name, answer) in &round.answers {
            debug!("{name} answered {answer:?}");
        }
        self.local.peers = Some(round);
    }

    pub(super) fn lease_read(&mut self, result: Result<(), DcsError>) {
        self.flags.reading_lease = false;
        if let Err(e) = result {
            warn!("could not read the leader object: {e}");
        }
    }

    pub(super) fn proof(&mut self, result: Result<Option<DeathProof>, DcsError>) {
        self.local.proving = false;
        self.local.proof_tried = Some(clock::boot());
        match result {
            Ok(Some(proof)) => {
                info!("the holder of the leader lock is dead: {}", proof.how);
                self.local.death_proof = Some(proof);
            }
            Ok(None) => debug!("no proof that the holder of the leader lock is dead"),
            Err(e) => warn!("could not look whether the holder of the leader lock is dead: {e}"),
        }
    }

    pub(super) fn claimed(&mut self, result: WriteResult) {
        match &result {
            WriteResult::Written(_) => {
                info!("won the race to initialize the cluster");
                self.local.bootstrapping = true;
                self.local.task_end = None;
                self.local.store_write = false;
            }
            WriteResult::Conflict => {
                info!("failed to acquire initialize lock");
                self.local.store_write = false;
            }
            WriteResult::Refused(_) | WriteResult::Unknown(_) => self.stored("the initialize key", &result),
        }
    }

    /// Reads local history files; its outcome is the write.
    fn begin_history_update(&mut self) {
        let Some(probe) = self.local.postgres.probe.clone().filter(|p| !p.in_recovery) else { return };
        if std::mem::replace(&mut self.flags.history, true) {
            return;
        }
        let data_dir = self.setup.data_dir.clone();
        let previous = self.cluster.history.clone().unwrap_or_default();
        let (me, keep) = (self.local.me.as_str().to_owned(), self.settings.max_timelines_history);
        self.begin(async move {
            Outcome::History(history::local_rows(&data_dir, probe.timeline, &previous, &me, keep, clock::iso))
        });
    }

    pub(super) fn history_read(&mut self, rows: Option<Vec<HistoryRow>>) {
        self.flags.history = false;
        match rows {
            Some(rows) if self.may_write_store() && self.local.own.is_some() => self.begin_history(rows),
            Some(_) => {}
            None => {
                warn!("the timeline history file of this timeline is not readable; trying again");
                self.pause_store_writes();
            }
        }
    }

    /// A long task has ended: what decisions see of it.
    fn end_task(&mut self, kind: TaskKind, at: BootInstant, result: Result<(), String>) {
        self.local.task = None;
        self.local.task_end = Some(TaskEnd { kind, at, result });
    }

    fn set_task(&mut self, kind: TaskKind, since: BootInstant) {
        self.local.task = Some(Task { kind, since, progress: None });
        self.local.task_end = None;
    }
}
