//! Effects on the server and its directory.

use super::super::absorb::postgres as seen;
use super::super::effect::{Effect, Reload, Script};
use super::super::flights::{About, Lane};
use super::super::state::State;
use crate::model::{
    KeeperLink, MemberName, Permission, StandbyNames, StartRole, StopMode, Task, TaskKind, Timeline, UnfencedReason,
    Upstream,
};
use crate::mutant::{self, Mutant};

impl State {
    pub(super) fn want_permission(&mut self, permission: Permission) {
        let lost = matches!(self.local.keeper, KeeperLink::Lost { .. });
        let asked = self.flights.busy(Lane::Permission);
        if self.standing() == permission && (!asked || self.last_permit == permission) {
            return;
        }
        // `None` waits for nothing but a session to be sent in and its own answer; what gives something waits for every
        // answer, and for its last refusal to be over.
        let waits = asked && (permission != Permission::None || self.last_permit == Permission::None);
        if !lost && !waits && (permission == Permission::None || self.rested("permit")) {
            self.permit(permission);
        }
    }

    /// Does the keeper let a writer begin, by its own answer?
    fn writer_permitted(&self) -> bool {
        // A device that is being disarmed would be off under it.
        if self.flights.expected(Lane::Watchdog) {
            return false;
        }
        match self.standing() {
            Permission::None => false,
            Permission::Unfenced(UnfencedReason::Bootstrap) => self.local.bootstrapping,
            Permission::Unfenced(UnfencedReason::Pause) => self.local.maintenance.is_on() && self.marked(),
            Permission::Writer { .. } => {
                let wanted = self.local.own.as_ref().and_then(|own| self.permission_of(own));
                wanted == Some(self.standing())
            }
        }
    }

    pub(super) fn start(&mut self, role: StartRole, upstream: Upstream, names: StandbyNames) {
        let lost = matches!(self.local.keeper, KeeperLink::Lost { .. });
        let ready = !lost
            && !self.local.postgres.alive
            && !self.local.data_stale
            && !self.flights.busy(Lane::Postgres)
            && !self.flights.busy(Lane::Task)
            && self.rested("start");
        if !ready || (role == StartRole::Primary && !self.writer_permitted()) {
            return;
        }
        let fresh = matches!(&self.local.task_end, Some(end) if end.kind == TaskKind::Bootstrap);
        let first_custom = self.local.bootstrapping && fresh && self.in_force.custom_bootstrap;
        let renewal = self.evidence();
        self.local.deadman.starts(role == StartRole::Primary);
        self.ended_early = None;
        self.send(
            Effect::Start { role, upstream: upstream.clone(), names: names.clone(), first_custom, renewal },
            About::Start { role, upstream, names, first_custom },
        );
    }

    pub(super) fn stop(&mut self, mode: StopMode, why: &'static str) {
        if matches!(self.local.keeper, KeeperLink::Lost { .. }) || !self.rested("stop") && mode == StopMode::Fast {
            return;
        }
        self.info(format!("stopping Postgres ({mode:?}): {why}"));
        seen::stopping(&mut self.local, mode, self.now.boot);
        if self.in_force.before_stop && mode == StopMode::Fast && !self.flights.busy(Lane::Script) {
            // The script holds up the orderly stop only: fences of the keeper end without asking it.
            self.stop_after_script = Some(mode);
            self.send(Effect::Script(Script::BeforeStop), About::BeforeStop);
            return;
        }
        self.stop_after_script = None;
        self.send(Effect::Stop { mode }, About::Stop);
    }

    pub(super) fn promote(&mut self, claim: Option<Timeline>) {
        if self.local.postgres.promoting.is_some()
            || self.flights.busy(Lane::Postgres)
            || !self.rested("promote")
            || !self.writer_permitted()
        {
            return;
        }
        if self.in_force.pre_promote && self.pre_promoted != Some(self.acquisition()) {
            if !self.flights.busy(Lane::Script) {
                let acquisition = self.acquisition();
                self.send(Effect::Script(Script::PrePromote), About::PrePromote { acquisition });
            }
            return;
        }
        self.local.postgres.promoting = Some(self.now.boot);
        self.local.postgres.checkpointed = false;
        self.promoted_to = claim.zip(self.local.postgres.probe.as_ref().map(|p| p.timeline));
        let renewal = self.evidence();
        (self.local.deadman.in_doubt, self.local.deadman.ordered) = (true, true);
        self.send(Effect::Promote { renewal, claim }, About::Promote);
    }

    pub(super) fn follow(&mut self, upstream: Upstream, names: StandbyNames) {
        if !self.flights.busy(Lane::Postgres) && self.rested("follow") && !mutant::is(Mutant::NeverFollows) {
            let effect = Effect::Reconfigure {
                role: StartRole::Standby,
                upstream: upstream.clone(),
                names: names.clone(),
                reload: Reload::Always,
            };
            self.send(effect, About::Reconfigure { follow: Some(upstream), names });
        }
    }

    /// Whom Postgres waits for. The files keep the rest of what they say.
    pub(super) fn name_standbys(&mut self, names: StandbyNames) {
        let pg = &self.local.postgres;
        if !pg.alive || pg.stopping.is_some() || self.flights.busy(Lane::Postgres) || !self.rested("names") {
            return;
        }
        let role =
            if pg.probe.as_ref().is_some_and(|p| p.in_recovery) { StartRole::Standby } else { StartRole::Primary };
        let upstream = pg.following.clone().unwrap_or(Upstream::Nobody);
        match (&names, role) {
            (StandbyNames::All(of), StartRole::Primary) if of.is_empty() => self.warn("No standbys available!"),
            (StandbyNames::Any(_), StartRole::Primary) => {
                self.info(format!("Setting synchronous replication to {names}"));
            }
            (StandbyNames::All(_) | StandbyNames::Placeholder, StartRole::Primary) => {
                self.info(format!("Assigning synchronous standby status to {names}"));
            }
            (StandbyNames::AsConfigured, StartRole::Primary) => self.info("synchronous_standby_names is as configured"),
            (_, StartRole::Standby) => {}
        }
        // From here to the answer nobody knows whom commits wait for.
        self.local.sync.forget();
        let effect = Effect::Reconfigure { role, upstream, names: names.clone(), reload: Reload::Always };
        self.send(effect, About::Names(names));
    }

    pub(super) fn begin(&mut self, kind: TaskKind) {
        if self.flights.busy(Lane::Task) || self.flights.busy(Lane::Postgres) {
            return;
        }
        let now = self.now.boot;
        if let TaskKind::Remove { why, .. } = &kind {
            if self.local.postgres.alive {
                return;
            }
            self.warn(format!("{}: {why}", kind.word()));
        } else {
            self.info(kind.word());
        }
        seen::task_state(&mut self.local, &kind, self.in_force.custom_bootstrap, now);
        self.local.task = Some(Task { kind: kind.clone(), since: now, progress: None });
        self.local.task_end = None;
        self.send(Effect::Task(kind.clone()), About::Task(kind));
    }

    pub(super) fn compare(&mut self, leader: MemberName, conn_url: String) {
        if !self.flights.busy(Lane::Compare) && self.now.boot >= self.compare_pause {
            self.local.checking = true;
            self.send(Effect::Compare { leader, conn_url }, About::Compare);
        }
    }
}
