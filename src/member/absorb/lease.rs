//! How lease jobs end, and what the keeper is told then. The evidence of a lease is the moment its confirmed attempt was
//! sent; nothing else prolongs leadership.

use super::super::effect::{Effect, Id};
use super::super::flights::About;
use super::super::input::{Answer, Fail};
use super::super::lease::JobEnd;
use super::super::state::State;
use crate::model::{
    BootInstant, InFlight, KeeperLink, LeaderStatus, LeaseRecord, LeaseRefused, Maintenance, MemberName, OwnLease,
    Permission, Role, Upstream,
};
use crate::mutant::{self, Mutant};

impl State {
    /// An answer to a request of the lease machine.
    pub(super) fn lease_reply(&mut self, id: Id, answer: Result<Answer, Fail>) {
        let ended = self.with_lease(|lease, _, now, ids| match answer {
            Ok(Answer::Leader(result)) => lease.read(id, result, now, ids),
            Ok(Answer::LeaderWritten(result)) => lease.wrote(id, result, now, ids),
            Ok(_) => lease.failed(id, "an answer of another kind", now),
            Err(fail) => lease.failed(id, fail.text(), now),
        });
        self.lease_ended(ended);
    }

    /// Time has passed for the lease machine.
    pub(super) fn lease_due(&mut self) {
        let ended = self.with_lease(|lease, _, now, ids| lease.due(now, ids));
        self.lease_ended(ended);
    }

    fn lease_ended(&mut self, ended: Option<JobEnd>) {
        let Some(end) = ended else { return };
        match self.local.lease_write.take() {
            Some(InFlight::Acquire) => self.acquired(end),
            Some(InFlight::Renew) => self.renewed(end),
            Some(InFlight::Release) => self.released(end),
            None => {}
        }
    }

    fn acquired(&mut self, end: JobEnd) {
        let before = self.local.lease_refused.take().map_or(0, |r| r.count);
        if let JobEnd::Refused(_) = &end {
            self.local.lease_refused = Some(LeaseRefused { count: before + 1, at: self.now.boot });
        }
        match end {
            JobEnd::Written { record, sent } => {
                self.info("acquired the leader lock");
                self.local.death_proof = None;
                self.local.stepped_down = None;
                self.worked("acquire");
                self.confirm(record, sent);
            }
            JobEnd::Lost(holder, why) => {
                // One that names nobody looks as free as before: what has changed shows with the next view.
                if self.local.death_proof.take().is_some() || holder.is_none() {
                    self.failed("acquire");
                }
                self.info(format!("could not acquire the leader lock: {why}"));
            }
            JobEnd::Refused(why) => {
                self.failed("acquire");
                self.warn(format!("the API server refused to give the leader lock: {why}"));
            }
            JobEnd::Unknown(why) => {
                self.failed("acquire");
                self.warn(format!("it is not known whether the leader lock was acquired: {why}"));
            }
        }
    }

    fn renewed(&mut self, end: JobEnd) {
        match end {
            JobEnd::Written { record, sent } => {
                self.confirm(record, sent);
                let labelled =
                    |(name, m): (&MemberName, &crate::model::Member)| *name != self.local.me && m.role_label.is_some();
                if self.cluster.members.iter().any(labelled)
                    && !self.flights.busy(super::super::flights::Lane::Labels)
                    && !mutant::is(Mutant::LabelsStay)
                {
                    self.send(Effect::StripLabels, About::Strip);
                }
            }
            JobEnd::Lost(who, _) => {
                let to = who.as_ref().map_or("nobody".to_owned(), ToString::to_string);
                self.warn(format!("lost the leader lock, a fresh read shows it held by {to}"));
                self.lose();
            }
            JobEnd::Unknown(_) if mutant::is(Mutant::UnknownIsConfirmed) => {
                self.local.own.clone().into_iter().for_each(|own| self.confirm(own.record, self.now.boot));
            }
            JobEnd::Refused(why) | JobEnd::Unknown(why) => {
                self.warn(format!("the leader lock could not be renewed: {why}"));
                if mutant::is(Mutant::SilenceIsALostLock) {
                    self.lose();
                }
            }
        }
    }

    fn released(&mut self, end: JobEnd) {
        if let (JobEnd::Refused(why) | JobEnd::Unknown(why), true) = (&end, self.marked()) {
            // It does not end by time: a later decision gives it up again.
            self.failed("release");
            return self.warn(format!("the leader lock could not be released yet: {why}"));
        }
        self.local.stepped_down = Some(self.now.boot);
        match end {
            JobEnd::Written { .. } => self.info("Leader key released"),
            JobEnd::Lost(_, why) => self.info(format!("the leader lock was not mine any more: {why}")),
            JobEnd::Refused(why) | JobEnd::Unknown(why) => {
                self.warn(format!("the leader lock could not be released, it ends with its ttl: {why}"));
            }
        }
        self.lose();
    }

    /// A record of mine stands: what it allows the keeper to let run, counted from its sending.
    fn confirm(&mut self, record: LeaseRecord, sent: BootInstant) {
        let ttl = record.ttl_or(self.in_force.settings.ttl);
        let sent = if mutant::is(Mutant::LeaseFromConfirmation) { self.now.boot } else { sent };
        // An earlier attempt may land after a later one: that takes nothing back of what was confirmed.
        let sent = self.local.own.as_ref().map_or(sent, |own| own.evidence.max(sent));
        let paused = self.lease.says_paused(&record);
        let prolonged = self.local.own.as_ref().and_then(|own| own.prolonged);
        self.local.failsafe.confirmed(sent);
        self.local.own = Some(OwnLease { record, evidence: sent, ttl, paused, prolonged });
        self.local.reclaim = None;
        self.send_evidence();
    }

    /// A write of mine that landed when its time was over (the API server was frozen, an answer was late): the record names me
    /// for everybody else, and counts for nothing by my own clock. Renewed first, it does.
    pub(super) fn late_lease(&mut self) {
        let over = self.local.own.as_ref().is_none_or(|own| !own.paused && self.now.boot >= own.runs_from() + own.ttl);
        if !over || self.local.stepped_down.is_some() || self.local.handover.is_some() || self.lease.busy() {
            return;
        }
        let mine =
            |l: &&crate::model::LeaderRecord| l.named() == Some(&self.local.me) && self.lease.attempted(&l.lease);
        if let Some(leader) = self.cluster.leader.as_ref().filter(mine)
            && self.local.reclaim.as_ref() != Some(&leader.lease)
        {
            self.local.own = None;
            self.local.reclaim = Some(leader.lease.clone());
        }
    }

    fn lose(&mut self) {
        self.lease.outrun();
        if self.marked() {
            let mine = |r: &LeaseRecord| r.leader.as_ref().is_none_or(|who| *who == self.local.me);
            if self.local.lease.record.as_ref().is_none_or(mine) {
                self.local.lease.forget_mark();
            }
        }
        self.local.failsafe.forget();
        self.local.own = None;
        self.local.claim = None;
        self.local.reclaim = None;
        self.pre_promoted = None;
        if self.standing() != Permission::PAUSED || !self.local.maintenance.is_on() {
            self.permit(Permission::None);
        }
    }

    /// Sends the permission that my lease allows, unless I am about to give the lease away.
    pub(super) fn send_evidence(&mut self) {
        let Some(own) = self.local.own.clone() else { return };
        let leaving = self.local.lease_write == Some(InFlight::Release)
            || self.local.handover.as_ref().is_some_and(|h| h.stopped.is_some());
        let reads = self.follows_another() && !self.local.postgres.may_write();
        if leaving || reads || matches!(self.local.keeper, KeeperLink::Lost { .. }) {
            return;
        }
        let permission = match self.local.maintenance {
            Maintenance::On if own.paused && self.may_unfence() => Some(Permission::PAUSED),
            Maintenance::Resuming { .. } if mutant::is(Mutant::ResumesUnrenewed) => None,
            Maintenance::On | Maintenance::Resuming { .. } | Maintenance::Off => self.permission_of(&own),
        };
        if let Some(permission) = permission {
            self.permit(permission);
        }
    }

    /// What a lease allows.
    pub(in crate::member) fn permission_of(&self, own: &OwnLease) -> Option<Permission> {
        let t = self.timings(own.ttl)?;
        let from = self.local.maintenance.runs_from(own);
        Some(Permission::Writer { stop_at: from + t.stop, kill_at: from + t.kill })
    }

    /// Sends a permission with the note that lets a restarted sidecar go on with my lease.
    pub(in crate::member) fn permit(&mut self, permission: Permission) {
        if matches!(self.local.keeper, KeeperLink::Lost { .. }) && permission != Permission::None {
            // Whoever does not answer is allowed nothing more: the end of what it may let run stays where it is.
            return;
        }
        let evidence = match permission {
            // There is no lease yet, or it does not matter: the wish itself is the evidence, and then the end of the new
            // cluster's scripts, or the resume.
            Permission::Unfenced(_) => self.now.boot,
            Permission::Writer { .. } if self.local.own.is_none() => {
                self.local.task_end.as_ref().map_or(BootInstant::default(), |end| end.at)
            }
            Permission::None | Permission::Writer { .. } => {
                let from = |own| self.local.maintenance.runs_from(own);
                self.local.own.as_ref().map_or(BootInstant::default(), from)
            }
        };
        let note = self.local.own.as_ref().map(|own| (own.record.clone(), own.evidence));
        self.last_permit = permission;
        self.local.deadman.permitted(permission);
        self.send(Effect::Permit { permission, evidence, note }, About::Permit { permission });
    }

    /// When the last confirmed renewal was sent.
    pub(in crate::member) fn evidence(&self) -> BootInstant {
        self.local.own.as_ref().map_or(BootInstant::default(), |own| own.evidence)
    }

    /// This is a standby cluster, whose leader writes nothing either.
    pub(in crate::member) fn follows_another(&self) -> bool {
        self.in_force.settings.standby_of.is_some()
    }

    /// Whoever has the lock of a standby cluster is more than a replica.
    pub(in crate::member) fn settle_role(&mut self) {
        let leads = self.local.own.is_some() && self.follows_another();
        if leads {
            let shown = self.cluster.leader.as_ref().and_then(|l| l.claimed_timeline());
            self.local.claim_void = self.local.claim_void.max(shown.or(self.local.claim).unwrap_or_default());
        }
        let role = &mut self.local.postgres.role;
        match (*role, leads) {
            (Role::Replica, true) => *role = Role::StandbyLeader,
            (Role::StandbyLeader, false) => *role = Role::Replica,
            (
                Role::Primary
                | Role::Promoted
                | Role::Replica
                | Role::StandbyLeader
                | Role::Demoted
                | Role::Uninitialized,
                _,
            ) => {}
        }
    }

    /// What the leader publishes with a renewal: its position and slots, only while it answers as what it is to be.
    pub(in crate::member) fn leader_status(&self) -> LeaderStatus {
        let follows = self.follows_another();
        let Some(probe) = self.local.postgres.probe.as_ref().filter(|p| !p.in_recovery || follows) else {
            return LeaderStatus::default();
        };
        let mut slots = self.slots.positions.clone();
        slots.insert(self.local.me.slot_name(), probe.position);
        LeaderStatus { optime: Some(probe.position), slots, retain_slots: self.slots.retain.clone() }
    }

    /// I run as primary beyond the position of the oath that stands.
    pub(in crate::member) fn oath_fulfilled(&self) -> bool {
        let Some(oath) = self.cluster.leader.as_ref().and_then(|l| l.oath()) else { return false };
        if self.follows_another() {
            // What this cluster had of its own counts no more once the WAL of the other one comes.
            let pg = &self.local.postgres;
            let remote = matches!(pg.following, Some(Upstream::Remote { .. }));
            return remote && self.local.arrived && pg.probe.as_ref().is_some_and(|p| p.in_recovery && p.streaming);
        }
        self.local.postgres.probe.as_ref().is_some_and(|p| !p.in_recovery && p.position > oath.position)
    }
}
