//! Failsafe mode: the answers of those who could race for my lock, and what I promise to whoever asks me.

use std::collections::BTreeMap;

use super::super::effect::Effect;
use super::super::flights::{About, Lane};
use super::super::input::{Answer, Fail};
use super::super::state::State;
use crate::model::{
    Addressee, BootInstant, Change, FailsafeMap, InFlight, LeaseVerdict, Listed, Member, MemberName, Promise,
};
use crate::mutant::{self, Mutant};

impl State {
    /// What a write of my lock says of who could race for it.
    pub(in crate::member) fn failsafe_map(&mut self) -> Change<FailsafeMap> {
        if !self.in_force.settings.failsafe {
            self.local.failsafe.forget();
            let stands = self.cluster.leader.as_ref().is_some_and(|l| l.failsafe.is_some());
            return if stands { Change::Remove } else { Change::Keep };
        }
        let listed = |m: &Member| Some(Listed { url: m.api_url.clone()?, uid: m.uid.clone() });
        let all = self.cluster.members.iter().filter_map(|(name, member)| Some((name.clone(), listed(member)?)));
        let mut map: FailsafeMap = all.collect();
        let me = Listed { url: self.in_force.api_url.clone(), uid: self.local.uid.clone() };
        map.insert(self.local.me.clone(), me);
        self.local.failsafe.sends(self.now.boot, map.clone());
        Change::Set(map)
    }

    /// I go on without the store, or have promised somebody else that it may.
    pub(in crate::member) fn failsafe_is_active(&self) -> bool {
        let leads = self.local.own.as_ref().is_some_and(|own| own.runs_from() > own.evidence);
        leads || self.local.promise.as_ref().is_some_and(|promise| self.now.boot < promise.until)
    }

    /// Asks everybody who could race.
    pub(in crate::member) fn ask_failsafe(&mut self) {
        let Some(members) = self.local.failsafe.whom(&self.local.me).filter(|_| !self.flights.busy(Lane::Failsafe))
        else {
            return;
        };
        self.local.failsafe.asking = Some(self.now.boot);
        self.send(Effect::AskFailsafe { members }, About::Failsafe);
    }

    /// Everybody who could race has promised not to, or somebody has not.
    pub(super) fn failsafe_answered(&mut self, sent: BootInstant, answer: Result<Answer, Fail>) {
        self.local.failsafe.asking = None;
        let answers = match answer {
            Ok(Answer::Failsafe(answers)) => answers,
            Ok(_) | Err(_) => BTreeMap::new(),
        };
        let whom = self.local.failsafe.whom(&self.local.me);
        let all = whom.as_ref().is_some_and(|whom| {
            let count = whom.keys().filter(|asked| answers.get(asked).is_some_and(Result::is_ok)).count();
            count == whom.len() || mutant::is(Mutant::FailsafeByMajority) && (count + 1) * 2 > whom.len() + 1
        });
        for ((name, _), answer) in &answers {
            if let Err(why) = answer {
                self.warn_once(format!("failsafe: {name} does not promise to leave me the lock: {why}"));
            }
        }
        let now = self.now.boot;
        let demotion = self.local.own.as_ref().and_then(|own| Some(own.runs_from() + self.timings(own.ttl)?.demote));
        if !all || demotion.is_none_or(|at| now >= at) {
            self.local.failsafe.failed = Some(sent);
            return;
        }
        if let Some(own) = &mut self.local.own {
            own.prolonged = Some(sent);
        }
        self.send_evidence();
    }

    /// Somebody who holds the lock cannot reach the store: will I leave it to it? The status and the words of the answer.
    pub(super) fn promises(&mut self, to: MemberName, asked: &Addressee) -> (u16, String) {
        let now = self.now.boot;
        if !asked.is(&self.local.me, &self.local.uid) {
            let (me, uid) = (&self.local.me, &self.local.uid);
            return (500, format!("{asked} is asked, this is {me} (pod {uid})"));
        }
        if !self.in_force.settings.failsafe {
            return (502, "failsafe_mode is off".to_owned());
        }
        let acquires = self.local.lease_write == Some(InFlight::Acquire);
        let stranger = self.local.stranger.is_some_and(|s| s.answers);
        if stranger
            || self.local.postgres.may_write()
            || self.local.own.is_some()
            || acquires
            || self.local.bootstrapping
        {
            return (500, "Running as a leader".to_owned());
        }
        let own_ttl = self.in_force.settings.ttl;
        match self.local.lease.verdict(now, own_ttl) {
            LeaseVerdict::Held(other) if other != to && self.local.death_proof.is_none() => {
                return (500, format!("{other} holds the lock"));
            }
            LeaseVerdict::Held(_)
            | LeaseVerdict::Released
            | LeaseVerdict::Expired(_)
            | LeaseVerdict::Silence { .. }
            | LeaseVerdict::Vacant
            | LeaseVerdict::Absent => {}
        }
        if let Some(promise) = self.local.promise.as_ref().filter(|p| now < p.until && p.to != to) {
            return (500, format!("{} was promised that it keeps the lock", promise.to));
        }
        let ttl = self.cluster.leader.as_ref().map_or(own_ttl, |l| l.lease.ttl_or(own_ttl)).max(own_ttl);
        let ttl = ttl.max(self.local.lease.last_ttl.unwrap_or_default());
        if !mutant::is(Mutant::PromisesAreForgotten) {
            self.local.promise = Some(Promise { to, until: now + ttl });
        }
        (200, "Accepted".to_owned())
    }
}
