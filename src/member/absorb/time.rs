//! What is due by itself: late answers, scheduled restarts, looks at Postgres and its directory, the end of a wait.

use std::time::Duration;

use super::super::effect::{Effect, Reload};
use super::super::flights::{About, Lane};
use super::super::state::State;
use crate::model::{
    BootInstant, Commits, DataDir, KeeperLink, PostgresState, Request, StandbyNames, StartRole, StartRoleSeen, Upstream,
};

/// The kubelet signals the containers of a pod one by one: how long a sidecar waits for the keeper to say that it is ending
/// too. Nothing is lost by waiting, Postgres goes on; twice what was seen on a busy machine.
pub(super) const TOGETHER: Duration = Duration::from_secs(2);

/// A probe this young is not asked again because something happened.
const PROBE_AGE: Duration = Duration::from_millis(200);
/// While Postgres starts, stops recovering or promotes there is no event to wait for: it is asked this often.
const POLL_FAST: Duration = Duration::from_millis(50);
/// A start that takes longer is crash recovery or replay: asked less often.
const POLL_SLOW: Duration = Duration::from_millis(500);
const POLL_FAST_FOR: Duration = Duration::from_secs(5);
/// While the keeper is silent, its end shows in my own session and nowhere else.
const POLL_SILENT: Duration = Duration::from_secs(1);

impl State {
    /// Everything that time alone brings.
    pub(in crate::member) fn time_passed(&mut self) {
        self.overdue();
        self.lease_due();
        self.late_lease();
        self.due_leave();
        self.due_restart();
        self.due_reload();
        self.due_rewrite();
        self.due_pending();
        self.due_probe();
        self.due_watchdog();
        self.due_look();
    }

    /// The wait for the keeper's word is over.
    fn due_leave(&mut self) {
        if self.leave_at.is_some_and(|at| at <= self.now.boot)
            && !matches!(self.local.request, Some(Request::Terminate { .. }))
        {
            self.local.request = Some(Request::Terminate { leave_postgres: !self.pod_leaves });
        }
    }

    /// A scheduled restart that is due becomes a request; one that is much too late is forgotten.
    fn due_restart(&mut self) {
        let Some((at, filter)) = self.local.scheduled_restart.clone().filter(|_| !self.local.maintenance.is_on())
        else {
            return;
        };
        let late = -self.now.wall.micros_until(at);
        if late < 0 {
            return;
        }
        self.local.scheduled_restart = None;
        let timeout = self.scheduled.take().and_then(|s| s.timeout);
        let allowed = self.in_force.settings.loop_wait.as_micros() * 3 / 2;
        if u128::try_from(late).unwrap_or(0) > allowed {
            return self.warn(format!("the scheduled restart is {} s late, forgetting it", late / 1_000_000));
        }
        self.info("the scheduled restart is due");
        self.requests.push_back((Request::Restart { filter, timeout }, None));
        self.show_request();
    }

    fn due_reload(&mut self) {
        if self.reload && !self.flights.busy(Lane::Configuration) {
            self.reload = false;
            self.send(Effect::Configure { document: None }, About::Configure);
        }
    }

    /// A change of the configuration reaches the files of a server that is there.
    fn due_rewrite(&mut self) {
        let Some(always) = self.rewrite else { return };
        let there = matches!(self.local.data, DataDir::Present { .. })
            && self.local.task.is_none()
            && !self.local.bootstrapping
            && self.local.postgres.state != PostgresState::CustomBootstrap;
        if !there || self.flights.busy(Lane::Postgres) {
            if !there {
                // Nothing to write: a start writes its own.
                self.rewrite = None;
            }
            return;
        }
        let primary = match (self.local.postgres.alive, &self.local.data) {
            (true, _) => {
                self.local.postgres.started_as != Some(StartRoleSeen::Standby)
                    || self.local.postgres.promoting.is_some()
                    || self.local.postgres.probe.as_ref().is_some_and(|p| !p.in_recovery)
            }
            (false, DataDir::Present { standby_signal, .. }) => !standby_signal,
            (false, _) => false,
        };
        let role = if primary { StartRole::Primary } else { StartRole::Standby };
        let Some(names) = self.names_of(role) else { return };
        self.rewrite = None;
        let upstream = self.local.postgres.following.clone().unwrap_or(Upstream::Nobody);
        let reload = match (self.local.postgres.alive, always) {
            (false, _) => Reload::Never,
            (true, true) => Reload::Always,
            (true, false) => Reload::IfChanged,
        };
        let effect = Effect::Reconfigure { role, upstream, names: names.clone(), reload };
        self.send(effect, About::Reconfigure { follow: None, names });
    }

    /// Whom the files name besides. Those of a primary stay as they were written; `None`: nobody knows what an earlier life
    /// has written, and a decision will say first.
    fn names_of(&self, role: StartRole) -> Option<StandbyNames> {
        let mode = self.in_force.settings.synchronous;
        let plain = mode.mode == Commits::Asynchronous && self.cluster.sync.as_ref().is_none_or(|r| r.leader.is_none());
        match (&self.local.sync.named, role) {
            (Some(names), _) => Some(names.clone()),
            (None, StartRole::Standby) => Some(mode.at_first()),
            (None, StartRole::Primary) => plain.then_some(StandbyNames::AsConfigured),
        }
    }

    fn due_pending(&mut self) {
        if self.pending_at.is_some_and(|at| at <= self.now.boot) && !self.flights.busy(Lane::Pending) {
            self.pending_at = None;
            self.send(Effect::PendingRestart, About::Pending);
        }
    }

    /// Between two tries of the monitoring query when nothing happens.
    fn probe_period(&self) -> Duration {
        let pg = &self.local.postgres;
        if self.keeper_is_silent() || self.looks_for_strangers() {
            return POLL_SILENT.min(self.in_force.settings.loop_wait);
        }
        if pg.probe.is_none() || pg.promoting.is_some() {
            let since = pg.promoting.unwrap_or(pg.since);
            return if self.now.boot.since(since) < POLL_FAST_FOR { POLL_FAST } else { POLL_SLOW };
        }
        self.in_force.settings.loop_wait
    }

    fn keeper_is_silent(&self) -> bool {
        matches!(self.local.keeper, KeeperLink::Lost { .. })
    }

    /// A server that stops is not asked, unless nobody else says what becomes of it.
    fn asks_postgres(&self) -> bool {
        let pg = &self.local.postgres;
        pg.alive && (pg.stopping.is_none() || self.keeper_is_silent()) || self.looks_for_strangers()
    }

    /// Whatever happened, decisions want to know Postgres as it is: it is asked with every event, not oftener than every
    /// 200 ms, and while nothing happens as often as its state changes by itself.
    fn due_probe(&mut self) {
        let pg = &self.local.postgres;
        if !self.asks_postgres() || self.flights.busy(Lane::Probe) {
            return;
        }
        let age = self.now.boot.since(self.probed_at);
        let settled = pg.state == PostgresState::Running && pg.promoting.is_none() && pg.probe.is_some();
        if (settled && age >= PROBE_AGE) || (!settled && age >= self.probe_period()) {
            self.probed_at = self.now.boot;
            self.send(Effect::Probe, About::Probe);
        }
    }

    /// The directory is looked at when something may have changed it, and every loop_wait.
    fn due_look(&mut self) {
        let pg = &self.local.postgres;
        if self.local.task.is_some() || self.flights.busy(Lane::Look) {
            return;
        }
        let stale = !pg.alive || !pg.checkpointed || !matches!(self.local.data, DataDir::Present { .. });
        let age = self.now.boot.since(self.looked_at);
        let period = self.in_force.settings.loop_wait;
        if self.looked_at == BootInstant::default() || (stale && age >= PROBE_AGE) || age >= period {
            self.looked_at = self.now.boot;
            self.send(Effect::Look, About::Look);
        }
    }

    /// When the member wants to be woken although no decision asks for it.
    pub(in crate::member) fn own_wake(&self) -> BootInstant {
        let now = self.now.boot;
        let mut wake = now + self.in_force.settings.loop_wait;
        let mut by = |at: Option<BootInstant>| wake = at.map_or(wake, |at| wake.min(at));
        by(self.flights.deadline());
        by(self.lease.wake());
        by(self.leave_at.filter(|at| *at > now));
        by(self.pending_at.filter(|_| !self.flights.busy(Lane::Pending)));
        // Due and not done: this step did not want it (a member that is about to exit publishes nothing).
        by(self.publish_wake().filter(|at| *at > now));
        if self.asks_postgres() && !self.flights.busy(Lane::Probe) {
            by(Some(self.probed_at + self.probe_period()));
        }
        by(self.failures.values().map(|(until, _)| *until).filter(|until| *until > now).min());
        by(Some(self.store_pause).filter(|at| *at > now));
        by(Some(self.compare_pause).filter(|at| *at > now));
        if let Some((at, _)) = self.local.scheduled_restart.as_ref().filter(|_| !self.local.maintenance.is_on()) {
            let left = self.now.wall.micros_until(*at).max(1000);
            by(Some(now + Duration::from_micros(left.unsigned_abs())));
        }
        wake
    }
}
