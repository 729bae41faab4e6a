//! Maintenance mode: when it begins and ends for this member, and what it finds running that it has not started.

use super::super::input::Looked;
use super::super::state::State;
use crate::model::{BootInstant, Maintenance, Member, Permission, Stranger};

impl State {
    /// Follows the configuration in force. A member that was started beside a keeper in maintenance stays in it until the
    /// store says otherwise.
    pub(in crate::member) fn maintain(&mut self) {
        let before = self.local.maintenance;
        let now = self.now.boot;
        let marked = self.local.own.as_ref().is_some_and(|own| own.paused);
        let unfenced = self.standing() == Permission::PAUSED;
        self.local.maintenance = match before {
            _ if self.in_force.settings.pause => Maintenance::On,
            Maintenance::On if !self.document_is_in_force() => Maintenance::On,
            Maintenance::On if marked || unfenced => Maintenance::Resuming { since: now },
            Maintenance::Resuming { since } if marked || unfenced && !self.confirmed_since(since) => before,
            Maintenance::On | Maintenance::Resuming { .. } | Maintenance::Off => Maintenance::Off,
        };
        self.local.announced = marked && self.may_unfence();
        if self.local.maintenance == before {
            return;
        }
        if self.local.maintenance == Maintenance::Off {
            self.local.stranger = None;
        }
        if before.is_on() {
            // How it ended while a person looked after it says nothing of its data.
            self.local.postgres.failed_starts = 0;
        }
        match (before, self.local.maintenance) {
            (_, Maintenance::On) => self.info("maintenance mode is on: Postgres is left alone"),
            (Maintenance::On, _) => self.info("maintenance mode is off"),
            (_, _) => {}
        }
    }

    fn confirmed_since(&self, since: BootInstant) -> bool {
        self.local.own.as_ref().is_some_and(|own| !own.paused && own.evidence >= since)
    }

    /// The confirmed record says that I am in maintenance mode: it does not end by time.
    pub(in crate::member) fn marked(&self) -> bool {
        self.local.own.as_ref().is_some_and(|own| own.paused)
    }

    /// What the next record of my lock says. After a resume it says that I am in maintenance until the keeper itself has the
    /// deadlines: one that hangs would let Postgres run beside whoever takes the lock for silence.
    pub(in crate::member) fn says_paused(&self) -> bool {
        match self.local.maintenance {
            Maintenance::On => true,
            Maintenance::Resuming { .. } => self.marked() && (self.local.deadman.unfenced || self.beside_a_stranger()),
            Maintenance::Off => false,
        }
    }

    /// Nothing that may still land says that I am not in maintenance, and everybody reads it off the lock.
    pub(super) fn may_unfence(&self) -> bool {
        let theirs = |m: &Member| m.version.is_some() && m.implementation.is_none();
        let others = self.cluster.members.iter().filter(|(name, _)| **name != self.local.me);
        self.lease.says_nothing_else() && !others.into_iter().any(|(_, m)| theirs(m))
    }

    /// Somebody else's Postgres runs where mine would.
    fn beside_a_stranger(&self) -> bool {
        self.local.stranger.is_some_and(|s| s.answers) || self.local.deadman.in_use.is_some()
    }

    /// Is somebody asked where my Postgres would be, although the keeper runs none?
    pub(in crate::member) fn looks_for_strangers(&self) -> bool {
        self.local.maintenance != Maintenance::Off && !self.local.postgres.alive && self.local.task.is_none()
    }

    /// What was asked while nothing of mine runs.
    pub(super) fn met_stranger(&mut self, looked: &Looked, sent: BootInstant) {
        let (answers, writes) = match looked {
            Looked::Answer(probe) => (true, (!probe.in_recovery).then_some(probe.timeline)),
            Looked::NotReady | Looked::LoginRefused(_) => (true, None),
            Looked::Nobody | Looked::Gone => (false, None),
            // Nothing is known: what was known stays.
            Looked::Silent => return,
        };
        if answers {
            self.warn_once("a Postgres that I have not started answers here: it is not supervised".to_owned());
        }
        self.local.stranger = Some(Stranger { at: sent, answers, writes });
    }
}
