//! Words of the scenarios about maintenance mode.

use super::*;

impl World {
    /// `maintenance on|off|resumed` · `maintenance stranger=primary:2|standby|up|nobody` · `maintenance restart` ·
    /// `maintenance asks=restart|reinit|terminate`
    pub fn maintenance(&mut self, args: &[&str]) {
        for arg in args {
            let (key, value) = arg.split_once('=').unwrap_or((arg, ""));
            let (now, l) = (boot(self.now), &mut self.local);
            match key {
                "on" => {
                    (l.maintenance, l.announced) = (Maintenance::On, true);
                    self.settings.pause = true;
                }
                "off" | "resumed" => {
                    let since = now;
                    l.maintenance = if key == "off" { Maintenance::Off } else { Maintenance::Resuming { since } };
                    self.settings.pause = false;
                }
                "stranger" => {
                    let on = value.strip_prefix("primary:").map(|tl| Timeline(tl.parse().unwrap()));
                    l.stranger = Some(Stranger { at: now, answers: value != "nobody", writes: on });
                }
                "asks" => {
                    l.request = Some(match value {
                        "restart" => Request::Restart { filter: RestartFilter::default(), timeout: None },
                        "reinit" => Request::Reinitialize { force: false, from_leader: false },
                        _ => Request::Terminate { leave_postgres: false },
                    });
                }
                "restart" => {
                    let timeout = Duration::from_secs(60);
                    l.restart = Some(PlannedRestart { began: now, timeout, from_stopped: !l.postgres.alive });
                }
                "no-wish" => l.request = None,
                "claims" => l.claim = Some(Timeline(value.parse().unwrap())),
                other => panic!("maintenance {other}"),
            }
        }
    }
}
