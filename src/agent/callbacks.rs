//! Callbacks of `postgresql.callbacks`: which one a change of Postgres calls for, and running it (configuration §5.3,
//! ha-decisions §26). Nobody waits for them. A new one ends the one before with all its children (the keeper's group
//! slot does that); `on_reload` has a slot of its own.

use std::collections::BTreeMap;

use crate::model::{PostgresState, PostgresView, Role};

/// The five callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// Ready after a start without change of role; first look at a running server; end of a bootstrap.
    OnStart,
    /// Stopped by us, not as part of a restart.
    OnStop,
    /// Ready after a restart, same role.
    OnRestart,
    /// Configuration reloaded.
    OnReload,
    /// Promoted, or turned into a standby.
    OnRoleChange,
}

impl Callback {
    /// The key in `postgresql.callbacks` and the first argument.
    pub fn word(self) -> &'static str {
        match self {
            Callback::OnStart => "on_start",
            Callback::OnStop => "on_stop",
            Callback::OnRestart => "on_restart",
            Callback::OnReload => "on_reload",
            Callback::OnRoleChange => "on_role_change",
        }
    }
    /// The slot in which a newer one replaces the older.
    pub fn slot(self) -> &'static str {
        match self {
            Callback::OnReload => "on_reload",
            Callback::OnStart | Callback::OnStop | Callback::OnRestart | Callback::OnRoleChange => "callback",
        }
    }
}

/// What the callbacks have been told last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
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

/// The command line of a callback: the configured words, then action, role, scope. `None`: not configured.
///
/// # Errors
/// The configured text cannot be split like a shell command.
pub fn command_line(
    configured: &BTreeMap<String, String>,
    callback: Callback,
    role: &str,
    scope: &str,
) -> Result<Option<Vec<String>>, String> {
    let Some(text) = configured.get(callback.word()).filter(|t| !t.trim().is_empty()) else { return Ok(None) };
    let mut argv = shlex::split(text)
        .filter(|words| !words.is_empty())
        .ok_or_else(|| format!("postgresql.callbacks.{}: unbalanced quotes in {text:?}", callback.word()))?;
    argv.extend([callback.word().to_owned(), role.to_owned(), scope.to_owned()]);
    Ok(Some(argv))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PostgresView;
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
            system_id: "1".into(),
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

    #[test]
    fn the_command_line_is_split_like_a_shell_and_gets_three_arguments() {
        let configured = BTreeMap::from([("on_start".to_owned(), "/bin/sh -c 'a b'".to_owned())]);
        let argv = command_line(&configured, Callback::OnStart, "primary", "demo").unwrap().unwrap();
        assert_eq!(argv, ["/bin/sh", "-c", "a b", "on_start", "primary", "demo"]);
        assert_eq!(command_line(&configured, Callback::OnStop, "primary", "demo"), Ok(None));
        let broken = BTreeMap::from([("on_stop".to_owned(), "'".to_owned())]);
        assert!(command_line(&broken, Callback::OnStop, "primary", "demo").unwrap_err().contains("on_stop"));
    }
}
