//! What no decision may do about maintenance mode.

use super::Raw;
use crate::model::{Action, BootInstant, Maintenance, TaskKind, Timings};

/// In maintenance: nothing is begun that nobody asked for.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever is said of an action outside of maintenance holds besides"
)]
pub(super) fn broken_rule(raw: &Raw<'_>, action: &Action) -> Option<&'static str> {
    let pg = &raw.local.postgres;
    let asked = raw.local.restart.is_some() || raw.local.reinit.is_some() || raw.local.bootstrapping;
    match action {
        Action::StartPostgres { .. } if !asked => {
            let copied = raw.local.task_end.as_ref().is_some_and(|end| {
                matches!(end.kind, TaskKind::CreateReplica { .. }) && pg.last_death.is_none_or(|death| end.at > death)
            });
            let by_itself = (pg.crashed || pg.last_death.is_none() || raw.local.found_down) && !copied;
            by_itself.then_some("starting in maintenance what this program has not stopped")
        }
        Action::Begin(TaskKind::Bootstrap) | Action::ClaimInitialize { .. } if !raw.local.bootstrapping => {
            Some("a new cluster in maintenance")
        }
        Action::AcquireLease { claim: Some(_), .. } => {
            let wish = raw.cluster.failover.as_ref().filter(|r| r.scheduled_at.is_none());
            let named = wish.is_some_and(|r| r.candidate.as_ref() == Some(&raw.local.me));
            (!named).then_some("a standby that takes the lock by itself in maintenance")
        }
        Action::AcquireLease { claim: None, .. } if !pg.alive => {
            let writes = raw.local.stranger.is_some_and(|s| s.writes.is_some_and(|on| on >= raw.cluster.timeline()));
            (!writes).then_some("taking the lock in maintenance for nothing that runs")
        }
        _ => None,
    }
}

impl Raw<'_> {
    /// Nothing stops what runs, so the store says so first; only then nobody takes silence for death.
    pub(super) fn unfence(&self) -> Option<&'static str> {
        if self.local.maintenance != Maintenance::On {
            return Some("without a fence outside of maintenance");
        }
        let said = self.local.own.as_ref().is_some_and(|own| own.paused) && self.local.announced;
        (self.local.postgres.may_write() && !said).then_some("a primary without a fence before the store says so")
    }

    /// Deadlines that count from the end of the maintenance.
    pub(super) fn after_maintenance(&self, stop_at: BootInstant, kill_at: BootInstant) -> bool {
        let (Maintenance::Resuming { since }, Some(own)) = (self.local.maintenance, &self.local.own) else {
            return false;
        };
        let armed = Timings::new(self.settings, own.ttl, self.local.watchdog.armed);
        let timings = armed.or_else(|_| Timings::new(self.settings, own.ttl, None));
        let from = own.evidence.max(since);
        own.paused && timings.is_ok_and(|t| stop_at <= from + t.stop && kill_at <= from + t.kill)
    }
}
