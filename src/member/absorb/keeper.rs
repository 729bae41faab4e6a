//! The keeper's news. What it reports when it is met again is the truth, whatever was asked and not answered before: a
//! start whose answer was lost may have happened.

use super::super::flights::Lane;
use super::super::input::{Answer, Fail, News, Standing, StartEnd};
use super::super::state::State;
use super::postgres;
use crate::model::{BootInstant, KeeperLink, Maintenance, Permission, Request, StartRole, StartRoleSeen, Upstream};
use crate::mutant::{self, Mutant};

impl State {
    pub(super) fn keeper(&mut self, news: News) {
        match news {
            News::Met(standing) => self.met(standing),
            News::Lost(why) => self.keeper_lost(&why),
            News::Died { how, at } => {
                self.info(format!("Postgres has ended ({how})"));
                let recovering = self.local.postgres.probe.as_ref().filter(|p| p.in_recovery);
                self.local.postgres.ended =
                    recovering.map_or(how.clone(), |p| format!("{how}, in recovery behind {}", p.replayed));
                self.died(at.min(self.now.boot));
            }
            News::Fenced(why) => self.warn(format!("the keeper stops Postgres: {why}")),
            News::Terminating => {
                self.info("the keeper is terminating: handing over");
                self.keeper_ends = true;
                self.local.request = Some(Request::Terminate { leave_postgres: false });
            }
        }
    }

    /// A session was opened.
    fn met(&mut self, standing: Standing) {
        self.keeper_ends = standing.terminating;
        if !(mutant::is(Mutant::KeeperStaysLost) && self.met) {
            self.local.keeper = KeeperLink::Connected { permission: standing.permission };
        }
        self.local.postgres.last_death = self.local.postgres.last_death.max(standing.last_death);
        self.local.deadman.met(standing.permission, standing.fence);
        self.met_at = self.now.boot;
        if standing.permission == Permission::PAUSED && self.local.maintenance == Maintenance::Off && !self.viewed {
            // Until the store says otherwise.
            self.local.maintenance = Maintenance::On;
        }
        let first = !std::mem::replace(&mut self.met, true);
        if !first {
            self.info("connected to the keeper again");
        }
        match standing.postgres {
            Some(role) => self.found_running(role, first),
            None if self.local.postgres.alive => {
                let at = standing.last_death.unwrap_or(self.now.boot).min(self.now.boot);
                if standing.last_death.is_none() && !self.in_force.separate_container {
                    // A keeper of later, outside of a container that ends as a whole: what the killed one let run may have
                    // heard nothing. Until a start has tried the directory, it counts as in use.
                    let why = "the keeper before this one was killed, and nobody saw the end of its Postgres";
                    self.local.deadman.in_use = Some(why.to_owned());
                }
                self.died(at);
            }
            None if first => self.local.found_down = true,
            None => {}
        }
        if standing.terminating {
            self.local.request = Some(Request::Terminate { leave_postgres: false });
        }
        if first {
            self.earlier = Some(standing);
            self.earlier_life();
        }
        self.send_evidence();
    }

    /// A postmaster lives that this process may know nothing of.
    pub(in crate::member) fn found_running(&mut self, role: StartRole, first: bool) {
        let seen = match role {
            StartRole::Primary => StartRoleSeen::Primary,
            StartRole::Standby => StartRoleSeen::Standby,
        };
        if self.local.postgres.alive && (self.local.postgres.started_as == Some(seen) || role == StartRole::Primary) {
            // The one I know. A standby whose promotion was ordered is reported as a primary: it may become one at any moment,
            // whatever became of the answer to the order.
            self.local.postgres.started_as = Some(seen);
            return;
        }
        let line =
            if first { "Postgres is running already: going on with it" } else { "Postgres was started after all" };
        self.info(line);
        postgres::started(&mut self.local, role, Upstream::Nobody, false, self.now.boot);
        self.local.postgres.following = None;
        self.probed_at = Default::default();
    }

    /// An order did not reach the keeper. One that went out in an earlier session says nothing of this one, nor does one of
    /// the very moment in which this one began: its own end is news. One of this session means that the session is over, and
    /// the news that a new one begins will follow.
    pub(in crate::member) fn unreachable(&mut self, sent: BootInstant, why: &str) {
        if sent > self.met_at {
            self.keeper_lost(why);
        }
    }

    /// The keeper cannot be reached. Its deadline stands, and so does the kernel's. Nothing that allows a writer is sent from
    /// here on until it is met again.
    pub(in crate::member) fn keeper_lost(&mut self, why: &str) {
        if !matches!(self.local.keeper, KeeperLink::Lost { .. }) {
            self.warn(format!("the keeper does not answer: {why}"));
            self.local.keeper = KeeperLink::Lost { since: self.now.boot };
        }
    }

    /// The keeper has confirmed a permission. One that was sent later, or a session that is over, is another matter.
    pub(super) fn permission_stands(&mut self, permission: Permission) {
        if !matches!(self.local.keeper, KeeperLink::Lost { .. }) {
            self.local.keeper = KeeperLink::Connected { permission };
            if self.last_permit == permission {
                self.local.deadman.confirmed(permission);
            }
        }
    }

    /// What an answer to a start says of the fence. One that does not come leaves in doubt what runs.
    pub(super) fn start_known(&mut self, answer: &Result<Answer, Fail>) {
        let deadman = &mut self.local.deadman;
        match answer {
            Ok(Answer::Started(StartEnd::Started { fence, .. } | StartEnd::Running(_, fence))) => deadman.runs(*fence),
            Err(Fail::Unreachable(_) | Fail::Interrupted) => {}
            Err(Fail::InUse(why)) => (deadman.in_doubt, deadman.in_use) = (false, Some(why.clone())),
            // The keeper has looked for others before it found fault with anything else.
            Err(Fail::Refused(_)) => (deadman.in_doubt, deadman.in_use) = (false, None),
            Ok(_) | Err(Fail::NotNow(_) | Fail::TooLate) => deadman.in_doubt = false,
        }
    }

    /// A postmaster has started. The news of its end may have come before the answer to the order.
    pub(super) fn ended_already(&mut self) {
        if let Some(at) = self.ended_early.take() {
            self.died(at);
        }
    }

    pub(in crate::member) fn died(&mut self, at: BootInstant) {
        if !self.local.postgres.alive && self.flights.busy(Lane::Postgres) {
            self.ended_early = Some(at);
        }
        postgres::died(&mut self.local, at);
        self.local.deadman.died();
        self.stop_after_script = None;
        if self.local.scheduled_restart.is_none() {
            self.scheduled = None;
        }
        self.look_soon();
    }
}
