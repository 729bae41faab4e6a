//! What becomes of the server: starts, answers, deaths, looks at its directory. Every function takes what happened and when.

use super::super::input::Looked;
use crate::model::{
    BootInstant, ControlData, DataDir, Local, PostgresState, PostgresView, Probe, Role, StartRole, StartRoleSeen,
    StopMode, TaskKind, Upstream,
};

fn enter(pg: &mut PostgresView, state: PostgresState, now: BootInstant) {
    if pg.state != state {
        pg.state = state;
        pg.since = now;
    }
}

/// Its upstream is configured.
pub(super) fn follows(pg: &mut PostgresView, upstream: Upstream, now: BootInstant) {
    (pg.following, pg.followed_at) = (Some(upstream), now);
}

/// A postmaster was started, or found running. `custom`: for the first time after a custom bootstrap method.
pub(in crate::member) fn started(
    local: &mut Local,
    role: StartRole,
    upstream: Upstream,
    custom: bool,
    now: BootInstant,
) {
    let restarting = local.restart.is_some();
    local.found_down = false;
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
    pg.came_up = false;
    pg.probe = None;
    (pg.login_refused, pg.streamed) = (None, None);
    follows(pg, upstream, now);
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
pub(in crate::member) fn start_failed(local: &mut Local, now: BootInstant) {
    let state = if local.restart.is_some() { PostgresState::RestartFailed } else { PostgresState::StartFailed };
    let pg = &mut local.postgres;
    pg.failed_starts += 1;
    enter(pg, state, now);
    pg.since = now;
}

/// A stop was ordered.
pub(in crate::member) fn stopping(local: &mut Local, mode: StopMode, now: BootInstant) {
    let restarting = local.restart.is_some();
    let pg = &mut local.postgres;
    pg.stopping = Some(mode);
    enter(pg, if restarting { PostgresState::Restarting } else { PostgresState::Stopping }, now);
}

/// The keeper reports the postmaster and every descendant gone.
pub(in crate::member) fn died(local: &mut Local, now: BootInstant) {
    let pg = &mut local.postgres;
    if !pg.alive {
        return;
    }
    let asked = pg.stopping.is_some();
    let never_answered = !pg.came_up
        && matches!(pg.state, PostgresState::Starting | PostgresState::Restarting | PostgresState::BootstrapStarting);
    let was_primary =
        pg.started_as != Some(StartRoleSeen::Standby) || matches!(pg.role, Role::Primary | Role::Promoted);
    pg.alive = false;
    // A scheduled restart was meant for this postmaster.
    local.scheduled_restart = None;
    pg.last_death = Some(now);
    local.misnumbered = None;
    pg.crashed = !asked;
    pg.started_as = None;
    pg.stopping = None;
    pg.promoting = None;
    pg.probe = None;
    pg.login_refused = None;
    pg.following = None;
    pg.checkpointed = false;
    local.sync.forget();
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

/// What a look says of the WAL that a standby receives.
fn wal_comes(local: &mut Local, probe: &Probe, now: BootInstant) {
    let pg = &mut local.postgres;
    let before = pg.probe.as_ref().filter(|old| old.in_recovery && probe.in_recovery && probe.streaming);
    if before.is_some_and(|old| probe.position > old.position) {
        pg.grew = Some(now);
    }
    // A receiver calls itself streaming before it has asked for anything, and again with every attempt. What grows
    // beyond where mine ended has come from there, and goes on from there.
    let remote = probe.in_recovery && matches!(pg.following, Some(Upstream::Remote { .. }));
    match local.arrives_from {
        _ if !remote => (local.arrives_from, local.arrived) = (None, false),
        _ if !probe.streaming || probe.at < pg.followed_at => {}
        None => local.arrives_from = Some(probe.position),
        Some(from) => local.arrived |= probe.position > from,
    }
}

/// Takes in the outcome of the monitoring query.
pub(in crate::member) fn probed(local: &mut Local, looked: Looked, now: BootInstant) {
    let restarting = local.restart.is_some();
    let pg = &mut local.postgres;
    if !pg.alive {
        return;
    }
    local.deadman.gone = match looked {
        Looked::Gone => local.deadman.gone.or(Some(now)),
        Looked::Answer(_) | Looked::NotReady | Looked::Nobody | Looked::LoginRefused(_) | Looked::Silent => None,
    };
    match looked {
        Looked::Answer(mut probe) => {
            // While a standby does not stream, its timeline is read from pg_control, which is behind until the next
            // restartpoint: what it was on, it is on.
            if let Some(old) = pg.probe.as_ref().filter(|old| old.in_recovery && probe.in_recovery) {
                probe.timeline = probe.timeline.max(old.timeline);
            }
            if !probe.in_recovery {
                pg.promoting = None;
            }
            if !probe.in_recovery && pg.role != Role::Primary {
                // What the others said before they could follow me does not tell who may take over from me.
                local.peers = None;
            }
            pg.role = match (probe.in_recovery, pg.promoting) {
                (false, _) => Role::Primary,
                (true, Some(_)) => Role::Promoted,
                (true, None) => Role::Replica,
            };
            (pg.failed_starts, pg.came_up) = (0, true);
            pg.login_refused = None;
            if !probe.in_recovery {
                local.sync.observe(&probe.replication, probe.position, probe.at);
            }
            if probe.streaming {
                pg.streamed = Some(now);
            }
            wal_comes(local, &probe, now);
            let pg = &mut local.postgres;
            pg.probe = Some(probe);
            if pg.stopping.is_none() {
                enter(pg, PostgresState::Running, now);
            }
        }
        Looked::LoginRefused(why) => {
            (pg.failed_starts, pg.came_up) = (0, true);
            pg.login_refused = Some(why);
            if pg.stopping.is_none() {
                enter(pg, PostgresState::Running, now);
            }
        }
        Looked::NotReady | Looked::Nobody | Looked::Gone => {
            pg.login_refused = None;
            pg.probe = None;
            if pg.stopping.is_none() && pg.state == PostgresState::Running {
                enter(pg, if restarting { PostgresState::Restarting } else { PostgresState::Starting }, now);
            }
        }
        Looked::Silent => {}
    }
}

/// Takes in a look at the data directory. Role follows it while nothing runs.
pub(in crate::member) fn data(local: &mut Local, data: DataDir) {
    let pg = &mut local.postgres;
    if !pg.alive {
        pg.role = match &data {
            DataDir::Empty | DataDir::HalfMade | DataDir::Restored => Role::Uninitialized,
            DataDir::Present { standby_signal: true, .. } => Role::Replica,
            DataDir::Present { standby_signal: false, .. } | DataDir::HalfRewound { .. } => Role::Demoted,
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
pub(in crate::member) fn task_state(local: &mut Local, kind: &TaskKind, custom: bool, now: BootInstant) {
    let state = match kind {
        TaskKind::Bootstrap if custom => PostgresState::CustomBootstrap,
        TaskKind::Bootstrap => PostgresState::Initdb,
        TaskKind::CreateReplica { .. } => PostgresState::CreatingReplica,
        TaskKind::PostBootstrap | TaskKind::Rewind { .. } | TaskKind::CrashRecovery | TaskKind::Remove { .. } => return,
    };
    enter(&mut local.postgres, state, now);
}

/// A long task has ended: the word in member data.
pub(in crate::member) fn task_ended_state(
    local: &mut Local,
    kind: &TaskKind,
    ok: bool,
    custom: bool,
    now: BootInstant,
) {
    let state = match (kind, ok) {
        (TaskKind::Bootstrap, false) if custom => PostgresState::CustomBootstrapFailed,
        (TaskKind::Bootstrap, false) => PostgresState::InitdbFailed,
        (TaskKind::Bootstrap | TaskKind::CreateReplica { .. }, _) => PostgresState::Stopped,
        (TaskKind::PostBootstrap | TaskKind::Rewind { .. } | TaskKind::CrashRecovery | TaskKind::Remove { .. }, _) => {
            return;
        }
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
            blocked: None,
            system_id: "7439021837465564321".into(),
            replication: Default::default(),
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
        probed(&mut l, Looked::NotReady, at(5));
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
    fn a_server_that_refuses_my_login_is_up_and_no_start_is_counted_against_it() {
        let mut l = local();
        started(&mut l, StartRole::Primary, Upstream::Nobody, false, at(1));
        l.postgres.failed_starts = 1;
        probed(&mut l, Looked::LoginRefused("no (SQLSTATE 28P01)".into()), at(2));
        assert_eq!((l.postgres.state.clone(), l.postgres.failed_starts), (PostgresState::Running, 0));
        assert!(l.postgres.login_refused.is_some());
        probed(&mut l, Looked::NotReady, at(3));
        assert!(l.postgres.login_refused.is_none() && l.postgres.state == PostgresState::Starting);
        probed(&mut l, Looked::LoginRefused("no".into()), at(4));
        probed(&mut l, probe(false), at(5));
        assert!(l.postgres.login_refused.is_none() && l.postgres.probe.is_some());
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
        l.restart =
            Some(PlannedRestart { began: at(3), timeout: std::time::Duration::from_secs(9), from_stopped: false });
        stopping(&mut l, StopMode::Fast, at(3));
        died(&mut l, at(4));
        assert_eq!(l.postgres.state, PostgresState::Restarting);
        started(&mut l, StartRole::Standby, Upstream::Nobody, false, at(5));
        assert_eq!(l.postgres.state, PostgresState::Restarting);
    }
}
