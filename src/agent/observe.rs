//! Events into `Local`: what this member knows of itself changes here and nowhere else by its own will.
//!
//! Every function takes what happened and when; none waits, reads a clock or decides. Markers of things in flight are set
//! by `execute` and cleared here or in the outcome's function.

use crate::dcs::View;
use crate::model::{
    BootInstant, ControlData, DataDir, Local, PostgresState, PostgresView, Probe, Role, Settings, StartRole,
    StartRoleSeen, StopMode, StoreLink, TaskKind, Upstream,
};

/// Takes in a view of the store.
pub(super) fn view(local: &mut Local, view: &View, settings: &Settings) {
    local.store = view.link;
    if view.link == StoreLink::NotRead {
        return;
    }
    let record = view.cluster.leader.as_ref().map(|l| l.lease.clone());
    let named_other = record.as_ref().and_then(|r| r.leader.clone()).is_some_and(|who| who != local.me);
    if local.lease.observe(record, view.lease_received, settings.ttl) {
        local.death_proof = None;
        if named_other {
            // Somebody else has held the lock since I gave it away: I may race again.
            local.stepped_down = None;
        }
    }
    if local.reclaim.is_some() && local.reclaim.as_ref() != view.cluster.leader.as_ref().map(|l| &l.lease) {
        local.reclaim = None;
    }
}

/// Does the view say that my lease is somebody else's, or gone? A watch proves nothing: this only makes the next renewal
/// come at once, and its fresh read proves it.
pub(super) fn view_contradicts(local: &Local, view: &View, mine: bool) -> bool {
    local.own.as_ref().is_some_and(|own| !mine && view.lease_received > own.evidence)
}

fn enter(pg: &mut PostgresView, state: PostgresState, now: BootInstant) {
    if pg.state != state {
        pg.state = state;
        pg.since = now;
    }
}

/// A postmaster was started, or found running. `custom`: for the first time after a custom bootstrap method.
pub(super) fn started(local: &mut Local, role: StartRole, upstream: Upstream, custom: bool, now: BootInstant) {
    let restarting = local.restart.is_some();
    let pg = &mut local.postgres;
    pg.alive = true;
    pg.started_as = Some(match role {
        StartRole::Primary => StartRoleSeen::Primary,
        StartRole::Standby => StartRoleSeen::Standby,
    });
    pg.role = match role {
        StartRole::Primary => Role::Primary,
        StartRole::Standby => Role::Replica,
    };
    pg.stopping = None;
    pg.promoting = None;
    pg.crashed = false;
    pg.probe = None;
    pg.following = Some(upstream);
    pg.checkpointed = false;
    pg.pending_restart = false;
    let state = if restarting {
        PostgresState::Restarting
    } else if custom {
        PostgresState::BootstrapStarting
    } else {
        PostgresState::Starting
    };
    enter(pg, state, now);
}

/// A start was refused or could not be tried; nothing lives.
pub(super) fn start_failed(local: &mut Local, now: BootInstant) {
    let state = if local.restart.is_some() { PostgresState::RestartFailed } else { PostgresState::StartFailed };
    let pg = &mut local.postgres;
    pg.failed_starts += 1;
    enter(pg, state, now);
    pg.since = now;
}

/// A stop was ordered.
pub(super) fn stopping(local: &mut Local, mode: StopMode, now: BootInstant) {
    let restarting = local.restart.is_some();
    let pg = &mut local.postgres;
    pg.stopping = Some(mode);
    enter(pg, if restarting { PostgresState::Restarting } else { PostgresState::Stopping }, now);
}

/// The keeper reports the postmaster and every descendant gone.
pub(super) fn died(local: &mut Local, now: BootInstant) {
    let pg = &mut local.postgres;
    if !pg.alive {
        return;
    }
    let asked = pg.stopping.is_some();
    let never_answered = pg.probe.is_none()
        && matches!(pg.state, PostgresState::Starting | PostgresState::Restarting | PostgresState::BootstrapStarting);
    let was_primary =
        pg.started_as != Some(StartRoleSeen::Standby) || matches!(pg.role, Role::Primary | Role::Promoted);
    pg.alive = false;
    // A scheduled restart was meant for this postmaster (rest-api §5.3).
    local.scheduled_restart = None;
    pg.last_death = Some(now);
    pg.crashed = !asked;
    pg.started_as = None;
    pg.stopping = None;
    pg.promoting = None;
    pg.probe = None;
    pg.following = None;
    pg.checkpointed = false;
    pg.role = if was_primary { Role::Demoted } else { Role::Replica };
    let state = if asked && local.restart.is_some() {
        PostgresState::Restarting
    } else if asked {
        PostgresState::Stopped
    } else if never_answered {
        PostgresState::StartFailed
    } else {
        PostgresState::Crashed
    };
    enter(pg, state, now);
    if !asked && never_answered {
        pg.failed_starts += 1;
        pg.since = now;
    }
    if let Some(handover) = &mut local.handover {
        handover.stopped = Some(now);
    }
}

/// What a try of the monitoring query came to.
#[derive(Debug)]
pub(super) enum Looked {
    /// An answer.
    Answer(Probe),
    /// Connections are refused: starting up, or shutting down.
    NotReady,
    /// No answer in time, or an error that says nothing of the server's life: the last answer stays.
    Silent,
}

/// Takes in the outcome of the monitoring query.
pub(super) fn probed(local: &mut Local, looked: Looked, now: BootInstant) {
    let restarting = local.restart.is_some();
    let pg = &mut local.postgres;
    if !pg.alive {
        return;
    }
    match looked {
        Looked::Answer(probe) => {
            if !probe.in_recovery {
                pg.promoting = None;
            }
            pg.role = match (probe.in_recovery, pg.promoting) {
                (false, _) => Role::Primary,
                (true, Some(_)) => Role::Promoted,
                (true, None) => Role::Replica,
            };
            pg.failed_starts = 0;
            pg.probe = Some(probe);
            if pg.stopping.is_none() {
                enter(pg, PostgresState::Running, now);
            }
        }
        Looked::NotReady => {
            pg.probe = None;
            if pg.stopping.is_none() && pg.state == PostgresState::Running {
                enter(pg, if restarting { PostgresState::Restarting } else { PostgresState::Starting }, now);
            }
        }
        Looked::Silent => {}
    }
}

/// Takes in a look at the data directory. Role follows it while nothing runs.
pub(super) fn data(local: &mut Local, data: DataDir) {
    let pg = &mut local.postgres;
    if !pg.alive {
        pg.role = match &data {
            DataDir::Empty | DataDir::HalfMade => Role::Uninitialized,
            DataDir::Present { standby_signal: true, .. } => Role::Replica,
            DataDir::Present { standby_signal: false, .. } => Role::Demoted,
            DataDir::Unusable(_) => pg.role,
        };
    }
    if let DataDir::Present { control: Some(control), .. } = &data {
        pg.checkpointed |= checkpointed(pg, control);
    }
    local.data = data;
}

/// Has the primary completed a checkpoint on its present timeline?
fn checkpointed(pg: &PostgresView, control: &ControlData) -> bool {
    pg.probe.as_ref().is_some_and(|p| !p.in_recovery && p.timeline.0 != 0 && control.timeline == p.timeline)
}

/// A long task begins: the word in member data.
pub(super) fn task_state(local: &mut Local, kind: &TaskKind, custom: bool, now: BootInstant) {
    let state = match kind {
        TaskKind::Bootstrap if custom => PostgresState::CustomBootstrap,
        TaskKind::Bootstrap => PostgresState::Initdb,
        TaskKind::CreateReplica { .. } => PostgresState::CreatingReplica,
        TaskKind::PostBootstrap | TaskKind::Rewind { .. } | TaskKind::CrashRecovery => return,
    };
    enter(&mut local.postgres, state, now);
}

/// A long task has ended: the word in member data.
pub(super) fn task_ended_state(local: &mut Local, kind: &TaskKind, ok: bool, custom: bool, now: BootInstant) {
    let state = match (kind, ok) {
        (TaskKind::Bootstrap, false) if custom => PostgresState::CustomBootstrapFailed,
        (TaskKind::Bootstrap, false) => PostgresState::InitdbFailed,
        (TaskKind::Bootstrap | TaskKind::CreateReplica { .. }, _) => PostgresState::Stopped,
        (TaskKind::PostBootstrap | TaskKind::Rewind { .. } | TaskKind::CrashRecovery, _) => return,
    };
    enter(&mut local.postgres, state, now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Handover, Lsn, PlannedRestart, Timeline};

    fn at(secs: u64) -> BootInstant {
        BootInstant::from_nanos(secs * 1_000_000_000)
    }
    fn local() -> Local {
        Local::at_start("a".into(), "s".into(), at(0), std::time::Duration::from_secs(30))
    }
    fn probe(in_recovery: bool) -> Looked {
        Looked::Answer(Probe {
            at: at(1),
            in_recovery,
            timeline: Timeline(2),
            position: Lsn(7),
            received: Lsn(7),
            replayed: Lsn(7),
            streaming: in_recovery,
            replay_paused: false,
            system_id: "7439021837465564321".into(),
        })
    }

    #[test]
    fn a_postmaster_that_dies_before_it_ever_answered_is_a_failed_start() {
        let mut l = local();
        started(&mut l, StartRole::Standby, Upstream::Nobody, false, at(1));
        died(&mut l, at(2));
        assert_eq!((&l.postgres.state, l.postgres.failed_starts), (&PostgresState::StartFailed, 1));
        started(&mut l, StartRole::Standby, Upstream::Nobody, false, at(3));
        assert_eq!(l.postgres.failed_starts, 1, "counted until one succeeds");
        probed(&mut l, probe(true), at(4));
        assert_eq!(l.postgres.failed_starts, 0);
        died(&mut l, at(5));
        assert!(l.postgres.crashed && l.postgres.state == PostgresState::Crashed && l.postgres.failed_starts == 0);
    }

    #[test]
    fn a_stop_that_was_asked_for_is_no_crash_and_ends_the_handovers_stop() {
        let mut l = local();
        started(&mut l, StartRole::Primary, Upstream::Nobody, false, at(1));
        probed(&mut l, probe(false), at(2));
        l.handover = Some(Handover {
            candidate: None,
            why: "switchover",
            began: at(3),
            checkpoint_done: true,
            in_any_case: false,
            stopped: None,
        });
        stopping(&mut l, StopMode::Fast, at(3));
        probed(&mut l, Looked::NotReady, at(3));
        assert_eq!(l.postgres.state, PostgresState::Stopping, "refusing connections is part of stopping");
        died(&mut l, at(4));
        assert!(!l.postgres.crashed);
        assert_eq!(l.postgres.role, Role::Demoted);
        assert_eq!(l.handover.unwrap().stopped, Some(at(4)));
    }

    #[test]
    fn one_unanswered_query_of_a_busy_primary_changes_nothing() {
        let mut l = local();
        started(&mut l, StartRole::Primary, Upstream::Nobody, false, at(1));
        probed(&mut l, probe(false), at(2));
        probed(&mut l, Looked::Silent, at(9));
        assert!(l.postgres.probe.is_some() && l.postgres.since == at(2));
        probed(&mut l, Looked::NotReady, at(10));
        assert!(
            l.postgres.probe.is_none() && l.postgres.state == PostgresState::Starting && l.postgres.since == at(10)
        );
    }

    #[test]
    fn a_promotion_shows_as_promoted_until_recovery_has_ended() {
        let mut l = local();
        started(&mut l, StartRole::Standby, Upstream::Nobody, false, at(1));
        probed(&mut l, probe(true), at(2));
        l.postgres.promoting = Some(at(3));
        probed(&mut l, probe(true), at(3));
        assert_eq!(l.postgres.role, Role::Promoted);
        probed(&mut l, probe(false), at(4));
        assert_eq!((l.postgres.role, l.postgres.promoting), (Role::Primary, None));
    }

    #[test]
    fn a_restart_shows_as_restarting_all_the_way() {
        let mut l = local();
        started(&mut l, StartRole::Standby, Upstream::Nobody, false, at(1));
        probed(&mut l, probe(true), at(2));
        l.restart = Some(PlannedRestart { began: at(3), timeout: std::time::Duration::from_secs(9) });
        stopping(&mut l, StopMode::Fast, at(3));
        died(&mut l, at(4));
        assert_eq!(l.postgres.state, PostgresState::Restarting);
        started(&mut l, StartRole::Standby, Upstream::Nobody, false, at(5));
        assert_eq!(l.postgres.state, PostgresState::Restarting);
    }
}
