//! Which callback a change of Postgres calls for. Nobody waits for them: a new one ends the one before with all its children
//! (the keeper's slot does that), `on_reload` has a slot of its own.

use super::effect::Effect;
use super::state::State;
use crate::model::{Callback, PostgresState, PostgresView, Role};

/// What the callbacks have been told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The role of the server when it was last ready.
    role: Option<Role>,
    /// Ready now.
    ready: bool,
    /// It went down as part of a restart.
    restarting: bool,
}

impl Told {
    /// The callback that the present state calls for, if any. `restarting`: a planned restart is in progress.
    /// `bootstrapping`: none run (the end of the bootstrap is then the first look).
    pub fn next(&mut self, pg: &PostgresView, restarting: bool, bootstrapping: bool) -> Option<Callback> {
        if bootstrapping {
            return None;
        }
        let ready = pg.alive && pg.state == PostgresState::Running && pg.probe.is_some();
        if ready {
            let role = pg.role;
            let before = self.role.replace(role);
            let was_ready = std::mem::replace(&mut self.ready, true);
            let restarted = std::mem::take(&mut self.restarting);
            return match before {
                Some(before) if before != role && !settling(before, role) => Some(Callback::OnRoleChange),
                Some(_) if was_ready => None,
                Some(_) if restarted => Some(Callback::OnRestart),
                Some(_) | None => Some(Callback::OnStart),
            };
        }
        if self.ready && !pg.alive {
            self.ready = false;
            self.restarting = restarting;
            return (!restarting && !pg.crashed).then_some(Callback::OnStop);
        }
        None
    }
}

/// `promoted` becoming `primary` is one change of role, told already.
fn settling(before: Role, now: Role) -> bool {
    before == Role::Promoted && now == Role::Primary
}

impl State {
    /// Runs the callback that a change of Postgres calls for.
    pub(super) fn call_back(&mut self) {
        let restarting = self.local.restart.is_some();
        if let Some(callback) = self.told.next(&self.local.postgres, restarting, self.local.bootstrapping) {
            let role = self.local.postgres.role;
            self.tell(Effect::Callback { callback, role });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BootInstant, Lsn, Probe, Timeline};

    fn ready(role: Role) -> PostgresView {
        let mut pg = PostgresView::at_start(BootInstant::default());
        pg.alive = true;
        pg.state = PostgresState::Running;
        pg.role = role;
        pg.probe = Some(Probe {
            at: BootInstant::default(),
            in_recovery: role == Role::Replica,
            timeline: Timeline(1),
            position: Lsn(1),
            received: Lsn(1),
            replayed: Lsn(1),
            streaming: true,
            replay_paused: false,
            blocked: None,
            system_id: "1".into(),
            replication: Default::default(),
        });
        pg
    }
    fn dead(crashed: bool) -> PostgresView {
        let mut pg = PostgresView::at_start(BootInstant::default());
        pg.crashed = crashed;
        pg
    }

    #[test]
    fn a_life_of_a_member_calls_each_callback_once() {
        let mut told = Told::default();
        assert_eq!(told.next(&ready(Role::Replica), false, true), None, "not while bootstrapping");
        assert_eq!(told.next(&ready(Role::Replica), false, false), Some(Callback::OnStart));
        assert_eq!(told.next(&ready(Role::Replica), false, false), None);
        assert_eq!(told.next(&ready(Role::Promoted), false, false), Some(Callback::OnRoleChange));
        assert_eq!(told.next(&ready(Role::Primary), false, false), None, "one promotion, one call");
        assert_eq!(told.next(&dead(false), true, false), None, "down for a restart");
        assert_eq!(told.next(&ready(Role::Primary), true, false), Some(Callback::OnRestart));
        assert_eq!(told.next(&dead(true), false, false), None, "nobody stopped it");
        assert_eq!(told.next(&ready(Role::Primary), false, false), Some(Callback::OnStart));
        assert_eq!(told.next(&dead(false), false, false), Some(Callback::OnStop));
        assert_eq!(told.next(&ready(Role::Replica), false, false), Some(Callback::OnRoleChange));
    }
}
