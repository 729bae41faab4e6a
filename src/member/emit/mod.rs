//! Decisions into effects. An action that only changes memory is applied at once; one that is *ready* is emitted; anything
//! else is dropped, and the answer that it waits for decides anew.
//!
//! | action | is ready when |
//! |---|---|
//! | permission `none`, stop, cancel | always |
//! | start or promotion of a writer | the permission that the lease allows stands, as the keeper has answered |
//! | release | permission `none` stands, as the keeper has answered; or its silence proves that no writer lives |
//! | write of another object | no other one is under way, and the last refusal is a moment ago |
//! | task | no other one is under way or not known to have ended |

mod postgres;
mod store;

use super::effect::Effect;
use super::flights::{About, Lane};
use super::state::State;
use crate::model::{Action, BootstrapFailed, Decision, Permission, PlannedRestart, Reinit, TaskKind};

/// Actions that only take away: `check` drops none of them.
pub(super) fn only_stops(action: &Action) -> bool {
    matches!(
        action,
        Action::StopPostgres { .. } | Action::Permit(Permission::None) | Action::PublishStatus | Action::CancelTask
    )
}

impl State {
    /// Carries a decision over into effects. True: memory has changed, decide again.
    pub(super) fn emit(&mut self, decision: Decision) -> bool {
        let mut again = false;
        for action in decision.actions {
            again |= self.act(action);
            if self.exiting {
                return false;
            }
        }
        again
    }

    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::ReadLease => {}
            Action::FeedWatchdog(_) | Action::DisarmWatchdog => self.act_on_watchdog(action),
            Action::AcquireLease { .. }
            | Action::RenewLease
            | Action::ClaimTimeline(_)
            | Action::ReleaseLease { .. }
            | Action::ProveDeath { .. } => {
                self.act_on_lease(action);
            }
            Action::ClaimInitialize { .. }
            | Action::WriteSystemId { .. }
            | Action::CancelInitialize { .. }
            | Action::MakeLeaderObject
            | Action::WriteHistory { .. }
            | Action::UpdateHistory
            | Action::ClearRequest { .. }
            | Action::WriteConfig { .. } => self.act_on_store(action),
            Action::Permit(permission) => self.want_permission(permission),
            Action::StartPostgres { role, upstream, names } => self.start(role, upstream, names),
            Action::StopPostgres { mode, why } => self.stop(mode, why),
            Action::Promote { claim } => self.promote(claim),
            Action::Follow { upstream, names } => self.follow(upstream, names),
            Action::NameStandbys(names) => self.name_standbys(names),
            Action::Checkpoint => self.checkpoint(),
            Action::ReadConfig
            | Action::ReadSync
            | Action::WriteSync { .. }
            | Action::AskFailsafe
            | Action::AskPeers { .. } => {
                self.ask_around(action);
            }
            Action::Begin(kind) => self.begin(kind),
            Action::CancelTask => {
                // A removal is let go on: it is short, and nobody may begin to fill what is still being removed.
                let removing = matches!(&self.local.task, Some(t) if matches!(t.kind, TaskKind::Remove { .. }));
                if let Some(id) = self.flights.task().map(|f| f.id).filter(|_| !removing) {
                    self.tell(Effect::Cancel(id));
                }
            }
            Action::CheckDivergence { leader, conn_url, .. } => self.compare(leader, conn_url),
            Action::SyncSlots => self.sync_slots(),
            Action::PublishStatus => self.publish(),
            Action::SetBootstrapping(false) => {
                if !self.flights.busy(Lane::Files) && self.rested("end bootstrap") {
                    self.send(Effect::EndBootstrap, About::EndBootstrap);
                }
            }
            Action::Exit { code, message, leave_postgres } => self.exit(code, message, leave_postgres),
            memory @ (Action::SetBootstrapping(true)
            | Action::BeginHandover(_)
            | Action::EndHandover
            | Action::AnswerRequest { .. }
            | Action::BeginReinit { .. }
            | Action::EndReinit
            | Action::FailBootstrap(_)
            | Action::PlanRestart { .. }
            | Action::RestartDone
            | Action::QuitSync
            | Action::SetRewind(_)) => return self.remember(memory),
        }
        false
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "only actions on the device come here")]
    fn act_on_watchdog(&mut self, action: Action) {
        if self.flights.busy(Lane::Watchdog) {
            return;
        }
        match action {
            Action::FeedWatchdog(feed) => {
                self.send(Effect::FeedWatchdog(feed), About::FeedWatchdog(feed.evidence));
            }
            _ if self.rested("disarm") => {
                self.send(Effect::DisarmWatchdog, About::DisarmWatchdog);
            }
            _ => {}
        }
    }

    /// Nothing half-done is left behind: a directory on its way out, a start or a write that may still land; a device that
    /// would reset the machine for nothing.
    fn exit(&mut self, code: u8, message: String, leave_postgres: bool) {
        let busy = [Lane::Task, Lane::Store, Lane::Postgres].into_iter().any(|lane| self.flights.busy(lane));
        let armed = self.local.watchdog.armed;
        let waits = busy || self.lease.busy() || armed.is_some() && !self.local.postgres.alive;
        if waits && !leave_postgres {
            return;
        }
        if let (true, Some(resets)) = (leave_postgres, armed) {
            let seconds = resets.as_secs();
            self.warn(format!(
                "the watchdog stays armed over a running primary: the machine is reset {seconds} s after it was fed last, \
                 unless a new sidecar feeds it before"
            ));
        }
        self.tell(Effect::Exit { code, message, leave_postgres });
        self.exiting = true;
    }

    fn checkpoint(&mut self) {
        if !self.flights.busy(Lane::Checkpoint) && self.rested("checkpoint") {
            self.send(Effect::Checkpoint, About::Checkpoint);
        }
    }

    /// Actions that only change what is remembered.
    #[expect(clippy::wildcard_enum_match_arm, reason = "only actions on memory come here")]
    fn remember(&mut self, action: Action) -> bool {
        match action {
            Action::SetBootstrapping(true) => self.local.bootstrapping = true,
            Action::BeginHandover(handover) => self.local.handover = Some(handover),
            Action::EndHandover => {
                if self.local.handover.take().is_some_and(|h| h.of_request()) {
                    self.local.given_up = self.cluster.request().map(|r| r.version.clone());
                }
            }
            Action::AnswerRequest { status, text } => self.answer_request(status, &text),
            Action::BeginReinit { from_leader } => {
                self.local.reinit = Some(Reinit { from_leader, began: self.now.boot });
            }
            Action::EndReinit => self.local.reinit = None,
            Action::FailBootstrap(why) => {
                self.local.bootstrap_failed = Some(BootstrapFailed { why, at: self.now.boot });
            }
            Action::PlanRestart { timeout } => {
                let from_stopped = !self.local.postgres.alive;
                if from_stopped {
                    // How it ended before says nothing of the start that a person asks for.
                    self.local.postgres.failed_starts = 0;
                }
                self.local.restart = Some(PlannedRestart { began: self.now.boot, timeout, from_stopped });
            }
            Action::RestartDone => self.local.restart = None,
            Action::QuitSync => self.local.quits_sync = Some(self.now.boot),
            Action::SetRewind(state) => self.local.rewind = state,
            other => {
                self.debug(format!("{other:?} changes no memory"));
                return false;
            }
        }
        true
    }
}
