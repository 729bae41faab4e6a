//! The decisions, and nothing else: `(cluster, local, settings, now)` in, one [`Decision`] out.
//!
//! No IO, no clock, no log, no async, no `Result`. One file per situation; [`decide`] finds the situation, first match
//! wins, with the fence before everything else:
//!
//! ```text
//! leave ─ silence ─ maintenance ─ fence ─ shutdown ─ hand-over ─ task ─ bootstrap ─ data directory ─ requests ─ recover ─ lead | follow | race
//! ```
//! [`Ctx::upkeep`] then adds what every decision needs: the renewal when it is due, the proof of death when the view
//! suggests one, the member status, and the time to look again.
//!
//! What it deliberately does not do: remember anything. Memory is `Local`, kept by `member`.

mod backoff;
mod bootstrap;
pub mod check;
mod failsafe;
mod fit;
mod leader;
mod pause;
mod race;
mod recover;
mod replica;
mod requests;
mod rewind;
mod silence;
mod standby;
mod sync;
mod watchdog;

use std::time::Duration;

use crate::model::{
    Action, BootInstant, Cluster, DataDir, Decision, KeeperLink, LeaseVerdict, Local, Member, MemberName, Now,
    OwnLease, Permission, ProofOfDeath, Settings, Stood, StoreLink, Timings, Upstream, backoff,
};
use crate::mutant::{self, Mutant};

pub use check::check;
pub(crate) use silence::{Silence, judge as judge_silence};
pub(crate) use watchdog::failing as watchdog_failing;

/// How long before the expiry of a silent lease the peers are asked. A holder has killed its Postgres 2 s before its
/// lease ends (K = E − 1 = T − 2), so positions read after that are final; asking then, and not at the expiry, hides
/// the 2 s that a frozen member costs.
const ASK_BEFORE_EXPIRY: Duration = Duration::from_millis(1900);

/// A round of answers older than this is asked again.
const ROUND_MAX_AGE: Duration = Duration::from_secs(4);

/// Pause between two attempts of something that failed and has no event to wait for.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between two attempts to take a lease that the store refuses to give.
const LEASE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The decision for this moment.
pub fn decide(cluster: &Cluster, local: &Local, settings: &Settings, now: Now) -> Decision {
    let ctx = Ctx::new(cluster, local, settings, now);
    let decision = ctx.situation();
    ctx.upkeep(decision)
}

/// My own lease by my own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hold<'a> {
    /// Confirmed, and younger than D.
    Leader(&'a OwnLease),
    /// Older than D, younger than the ttl: no more writes, but still mine to renew or release.
    Lapsed(&'a OwnLease),
    /// Not mine.
    No,
}

/// The throne is empty, and on what grounds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unlocked {
    /// What the takeover write expects to find.
    stood: Stood,
    /// Since when.
    emptied: BootInstant,
    /// Positions read before this moment are not final.
    positions_final: BootInstant,
    /// The holder that is proven dead or silent; asking it is of no use when proven dead.
    gone: Option<MemberName>,
}

/// Everything a situation looks at.
struct Ctx<'a> {
    cluster: &'a Cluster,
    local: &'a Local,
    settings: &'a Settings,
    now: Now,
    timings: Timings,
    verdict: LeaseVerdict,
    hold: Hold<'a>,
    /// The cluster that this one follows, seen as a leader.
    remote: Option<(MemberName, Member)>,
}

impl<'a> Ctx<'a> {
    fn new(cluster: &'a Cluster, local: &'a Local, settings: &'a Settings, now: Now) -> Self {
        let ttl = local.own.as_ref().map_or(settings.ttl, |own| own.ttl);
        let timings = timings_for(settings, ttl, local.watchdog.armed);
        let hold = match &local.own {
            Some(own) if now.boot < own.runs_from() + timings.demote => Hold::Leader(own),
            // One that says that it is in maintenance does not end by time.
            Some(own) if own.paused || now.boot < own.runs_from() + timings.ttl => Hold::Lapsed(own),
            Some(_) | None => Hold::No,
        };
        let verdict = local.lease.verdict(now.boot, settings.ttl);
        let remote = standby::remote(settings).filter(|_| standby::is_one(settings));
        Ctx { cluster, local, settings, now, timings, verdict, hold, remote }
    }

    fn situation(&self) -> Decision {
        if let Some(d) = requests::leave(self) {
            return d;
        }
        if let Some(d) = silence::let_go(self) {
            return d;
        }
        if let Some(d) = pause::situation(self) {
            return d;
        }
        if let Some(d) = leader::fence(self) {
            return d;
        }
        if self.local.store == StoreLink::NotRead {
            return self.wait("waiting for the first complete view of the store");
        }
        if !self.local.postgres.alive && self.local.data_stale && self.local.task.is_none() {
            return self.wait("looking at the data directory");
        }
        if let Some(d) = recover::in_use(self) {
            return d;
        }
        if let Some(d) = requests::quits_sync(self) {
            return d;
        }
        if let Some(d) = requests::shutdown(self) {
            return d;
        }
        if let Some(d) = requests::handover(self) {
            return d;
        }
        if let Some(d) = requests::reinit(self) {
            return d;
        }
        if let Some(d) = self.task_under_way() {
            return d;
        }
        if let Some(d) = bootstrap::situation(self) {
            return d;
        }
        // What was seen before the last event, or never yet by a process that finds Postgres running, stops no server.
        if let Some(d) = recover::data_directory(self).filter(|_| !self.local.data_stale) {
            return d;
        }
        if let Some(d) = requests::of_people(self) {
            return d;
        }
        if !self.local.postgres.alive {
            return recover::not_running(self);
        }
        match &self.hold {
            Hold::Leader(own) => leader::lead(self, own),
            Hold::Lapsed(_) => self.wait("the lease could not be confirmed in time; trying to renew it"),
            Hold::No => match (recover::reclaim(self), self.unlocked()) {
                (Some(d), _) => d,
                (None, Some(unlocked)) => race::race(self, &unlocked),
                (None, None) => replica::follow(self),
            },
        }
    }

    /// Adds what every decision needs.
    fn upkeep(&self, mut d: Decision) -> Decision {
        let leaving = d.actions.iter().any(|a| matches!(a, Action::ReleaseLease { .. } | Action::Exit { .. }));
        let holding = matches!(self.hold, Hold::Leader(_) | Hold::Lapsed(_));
        if holding && !leaving {
            let renews = |a: &Action| matches!(a, Action::RenewLease | Action::ClaimTimeline(_));
            if self.renewal_due() && !d.actions.iter().any(renews) {
                d.actions.insert(0, Action::RenewLease);
            }
            d = failsafe::ask(self, d.wake_by(self.next_lease_moment()));
            if let silence::Silence::Until(at) = silence::judge(self.local, self.now.boot) {
                d = d.wake_by(at);
            }
        } else if !leaving && let Some(action) = self.proof_to_look_for() {
            d = d.then(action);
        }
        if let LeaseVerdict::Held(_) = self.verdict
            && !holding
        {
            let expires = self.local.lease.expires(self.settings.ttl);
            let ask = expires - ASK_BEFORE_EXPIRY;
            d = d.wake_by(if self.now.boot < ask { ask } else { expires + Duration::from_millis(1) });
        }
        if let LeaseVerdict::Silence { until } = self.verdict {
            d = d.wake_by(until);
        }
        if self.hidden() && self.death_proof().is_some() {
            d = d.wake_by(self.local.lease.hidden_until);
        }
        if self.verdict == LeaseVerdict::Absent && !holding && !leaving {
            d = self.make_leader_object(d);
        }
        d = watchdog::upkeep(self, pause::fence_again(self, d));
        let leaving_now = d.actions.iter().any(|a| matches!(a, Action::Exit { .. }));
        d.then_if(!leaving_now, || Action::PublishStatus)
    }

    /// Is it time to send a renewal? N after the last evidence; after a failed attempt, half a second after it ended.
    fn renewal_due(&self) -> bool {
        let (Hold::Leader(own) | Hold::Lapsed(own)) = &self.hold else { return false };
        if self.local.lease_write.is_some() {
            return false;
        }
        let due = own.evidence + self.timings.renew;
        let rested = self.local.last_attempt.is_none_or(|at| at <= own.evidence) || self.rested_since_attempt();
        self.now.boot >= due && rested
    }

    /// The last attempt to renew is long enough ago for another one.
    fn rested_since_attempt(&self) -> bool {
        self.local.last_attempt.is_none_or(|at| at + RETRY_PAUSE <= self.now.boot)
    }

    /// The next moment at which the lease asks for something: renewal, demotion, end.
    fn next_lease_moment(&self) -> BootInstant {
        let (Hold::Leader(own) | Hold::Lapsed(own)) = &self.hold else {
            return self.now.boot + self.settings.loop_wait;
        };
        let retry = self.local.last_attempt.filter(|at| *at > own.evidence).map(|at| at + RETRY_PAUSE);
        let renew = (own.evidence + self.timings.renew).max(retry.unwrap_or(own.evidence));
        let tick = Duration::from_millis(1);
        [renew, own.runs_from() + self.timings.demote, own.runs_from() + self.timings.ttl]
            .into_iter()
            .filter(|at| *at > self.now.boot)
            .min()
            .unwrap_or(self.now.boot + RETRY_PAUSE)
            .max(self.now.boot + tick)
    }

    /// The view suggests that the holder is dead: fresh reads may prove it.
    fn proof_to_look_for(&self) -> Option<Action> {
        let LeaseVerdict::Held(holder) = &self.verdict else { return None };
        let leader = self.cluster.leader.as_ref()?;
        let mark = leader.valid_holder()?;
        let rested = self.local.proof_tried.is_none_or(|at| at + RETRY_PAUSE <= self.now.boot);
        if *holder == self.local.me || self.local.proving || !rested || self.death_proof().is_some() {
            return None;
        }
        let pod = self.cluster.members.get(holder);
        let terminated = self.settings.proofs.contains(&ProofOfDeath::Terminated)
            && pod.is_some_and(|m| m.looks_terminated(&mark.uid, &mark.containers));
        let deleted = self.settings.proofs.contains(&ProofOfDeath::Deleted) && pod.is_none_or(|m| m.uid != mark.uid);
        (terminated || deleted).then(|| Action::ProveDeath {
            record: leader.lease.clone(),
            uid: mark.uid.clone(),
            pod: holder.clone(),
            containers: mark.containers.clone(),
        })
    }

    /// The proof that belongs to the record that stands, if there is one.
    fn death_proof(&self) -> Option<&crate::model::DeathProof> {
        let standing = &self.cluster.leader.as_ref()?.lease;
        self.local.death_proof.as_ref().filter(|p| p.record == *standing)
    }

    /// The death of whoever is named says nothing yet of whoever was not shown.
    fn hidden(&self) -> bool {
        self.now.boot < self.local.lease.hidden_until
    }

    /// A holder that was in maintenance is silent, and a person asks me to lead in its place: it is that person who says that
    /// it writes no more.
    fn given_for_dead(&self) -> bool {
        let me = Some(&self.local.me);
        let silent = self.local.lease.silent_in_maintenance(self.now.boot, self.settings.ttl);
        // A request of before says nothing of it.
        let since = self.local.lease.since + self.settings.ttl;
        let asked = self.local.request_seen.as_ref().is_some_and(|(_, at)| *at > since);
        silent && asked && sync::waived(self.cluster) == me
    }

    /// Is the throne empty?
    fn unlocked(&self) -> Option<Unlocked> {
        let since = self.local.lease.since;
        let stood = self.local.lease.stood();
        match &self.verdict {
            LeaseVerdict::Held(holder) if self.given_for_dead() => Some(Unlocked {
                stood,
                emptied: since + self.settings.ttl,
                positions_final: since + self.settings.ttl,
                gone: Some(holder.clone()),
            }),
            LeaseVerdict::Held(holder) => self.death_proof().filter(|_| !self.hidden()).map(|proof| Unlocked {
                stood: Stood::ProvenDead(proof.record.clone()),
                emptied: self.local.proof_tried.unwrap_or(since),
                positions_final: self.local.proof_tried.unwrap_or(since),
                gone: Some(holder.clone()),
            }),
            LeaseVerdict::Released if self.settings.proofs.contains(&ProofOfDeath::Released) => {
                Some(Unlocked { stood, emptied: since, positions_final: since, gone: None })
            }
            LeaseVerdict::Released => {
                let free = since + self.settings.ttl;
                (self.now.boot > free).then_some(Unlocked { stood, emptied: free, positions_final: since, gone: None })
            }
            LeaseVerdict::Expired(holder) => Some(Unlocked {
                stood,
                emptied: self.local.lease.expires(self.settings.ttl),
                positions_final: self.local.lease.expires(self.settings.ttl) - ASK_BEFORE_EXPIRY,
                gone: Some(holder.clone()),
            }),
            LeaseVerdict::Silence { .. } if self.given_for_dead() => {
                let emptied = since + self.settings.ttl;
                Some(Unlocked { stood, emptied, positions_final: emptied, gone: None })
            }
            LeaseVerdict::Silence { .. } | LeaseVerdict::Absent => None,
            LeaseVerdict::Vacant => {
                let until = self.local.lease.silent_until;
                Some(Unlocked { stood, emptied: until, positions_final: until, gone: None })
            }
        }
    }

    /// Whoever has data makes the object that is missing, a little after it went missing: a leader that lives writes its own
    /// record again before that.
    fn make_leader_object(&self, d: Decision) -> Decision {
        let has_data = matches!(self.local.data, DataDir::Present { .. } | DataDir::HalfRewound { .. });
        if !has_data || self.local.bootstrapping || self.local.store != StoreLink::Following {
            return d;
        }
        let from = self.local.lease.since + self.settings.loop_wait;
        if self.now.boot < from {
            return d.wake_by(from);
        }
        d.then_if(!self.local.store_write, || Action::MakeLeaderObject)
    }

    /// The leader to follow: the holder of the lock, if it is somebody else and not proven dead.
    fn leader(&self) -> Option<(&MemberName, Option<&Member>)> {
        match &self.verdict {
            LeaseVerdict::Held(name) if *name != self.local.me && self.death_proof().is_none() => {
                self.cluster.members.get_key_value(name).map_or(Some((name, None)), |(n, m)| Some((n, Some(m))))
            }
            LeaseVerdict::Held(_)
            | LeaseVerdict::Released
            | LeaseVerdict::Expired(_)
            | LeaseVerdict::Silence { .. }
            | LeaseVerdict::Vacant
            | LeaseVerdict::Absent => None,
        }
    }

    /// The node a standby streams from.
    fn upstream(&self) -> Upstream {
        if self.settings.tags.nostream {
            return Upstream::Nobody;
        }
        let leader = self.leader();
        if let Some(name) = &self.settings.tags.replicatefrom
            && *name != self.local.me
            && let Some(conn_url) = self.cluster.members.get(name).and_then(|m| m.conn_url.clone())
        {
            return Upstream::Member { name: name.clone(), conn_url };
        }
        match leader {
            Some((name, Some(member))) => match &member.conn_url {
                Some(conn_url) => Upstream::Member { name: name.clone(), conn_url: conn_url.clone() },
                None => Upstream::Nobody,
            },
            Some((_, None)) | None => Upstream::Nobody,
        }
    }

    /// Is the living postmaster possibly a writer? Everything not provably in recovery is.
    fn writer(&self) -> bool {
        self.local.postgres.may_write()
    }

    /// The store refused to give me the lease: when to ask again. Nobody is helped by hundreds of attempts a second.
    fn lease_rests_until(&self) -> Option<BootInstant> {
        let refused = self.local.lease_refused?;
        let again = refused.at + backoff(refused.count, RETRY_PAUSE, LEASE_PAUSE_MAX);
        (self.now.boot < again && !mutant::is(Mutant::NeverRests)).then_some(again)
    }

    /// What was to make a primary of me has failed: for a ttl somebody else may lead.
    fn backs_off(&self) -> bool {
        self.local.backoff_until.is_some_and(|until| self.now.boot < until)
    }

    fn keeper_lost(&self) -> bool {
        matches!(self.local.keeper, KeeperLink::Lost { .. })
    }

    /// What the keeper has said that it lets run.
    fn standing(&self) -> Permission {
        match self.local.keeper {
            KeeperLink::Connected { permission } => permission,
            KeeperLink::Lost { .. } => Permission::None,
        }
    }

    /// The permission that my lease allows.
    fn permission(&self, own: &OwnLease) -> Permission {
        if self.local.maintenance.is_on() && own.paused {
            return Permission::PAUSED;
        }
        let from = self.local.maintenance.runs_from(own);
        Permission::Writer { stop_at: from + self.timings.stop, kill_at: from + self.timings.kill }
    }

    /// A renewal sent after the last death of a postmaster (the old holder may not know it was usurped).
    fn renewed_since_death(&self, own: &OwnLease) -> bool {
        self.local.postgres.last_death.is_none_or(|death| own.evidence > death)
            || mutant::is(Mutant::StartsWithoutRenewal)
    }

    /// A task runs: wait for it, unless its reason has gone.
    fn task_under_way(&self) -> Option<Decision> {
        let task = self.local.task.as_ref()?;
        let progress = task.progress.as_ref().map_or(String::new(), |p| format!(" ({p})"));
        if let Some(crate::model::Request::Reinitialize { .. }) = &self.local.request {
            return requests::of_people(self);
        }
        let lost_initialize = self.local.bootstrapping && !bootstrap::still_mine(self);
        if lost_initialize {
            return Some(
                self.wait("somebody else took over the initialization; giving up mine").then(Action::CancelTask),
            );
        }
        Some(self.wait(format!("{}{progress} in progress", task.kind.word())))
    }

    /// A decision that waits for events, and looks again after loop_wait at the latest.
    fn wait(&self, reason: impl Into<String>) -> Decision {
        Decision::new(reason, self.now.boot + self.settings.loop_wait)
    }

    /// Does my data directory hold data, and of which system?
    fn my_system_id(&self) -> Option<&str> {
        match &self.local.data {
            DataDir::Present { control: Some(control), .. } | DataDir::HalfRewound { control: Some(control) } => {
                Some(&control.system_id)
            }
            DataDir::Present { control: None, .. }
            | DataDir::HalfRewound { control: None }
            | DataDir::Empty
            | DataDir::HalfMade
            | DataDir::Restored
            | DataDir::Unusable(_) => self.local.postgres.probe.as_ref().map(|p| p.system_id.as_str()),
        }
    }
}

/// Timings for a lease of `ttl`; a watchdog margin that does not fit falls back to the fences without device.
fn timings_for(settings: &Settings, ttl: Duration, armed: Option<Duration>) -> Timings {
    Timings::new(settings, ttl, armed).or_else(|_| Timings::new(settings, ttl, None)).unwrap_or(Timings {
        ttl,
        renew: ttl / 6,
        failsafe: ttl / 4,
        demote: ttl / 3,
        stop: ttl / 2,
        kill: ttl * 2 / 3,
        device: None,
        end: ttl * 3 / 4,
    })
}
