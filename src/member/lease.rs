//! The lease attempt: take, renew or give up the leader object by conditional writes. Pure: answers and moments in,
//! requests out.
//!
//! It writes on a version it has seen, and whatever does not come back as "done" is looked up by a fresh read: one of our
//! attempts stands → written, with *that* attempt's send time; the record is still the one expected → another attempt, with
//! a `renewTime` of its own; anything else → lost. A request without an answer is not abandoned: the machine looks beside
//! it, because a slow API server is not a lost lease. Answers come late and writes land late, by minutes: every attempt is
//! remembered with the moment it was emitted, which is earlier than the moment it is on the wire, and an answer that comes
//! after its job has ended is no evidence, only a reason to read.
//!
//! A renewal writes on its own last version without reading first; an acquisition always reads.

mod job;

use std::time::Duration;

pub use job::{Claim, Job, JobEnd, Start, Writer};

use super::effect::{Effect, Id};
use crate::model::{
    BootInstant, Change, Cluster, FailsafeMap, LeaderRecord, LeaderStatus, LeaderWrite, LeaderWritten, LeaseRecord,
    MemberName, Now, ReadFailed, Released, Stood, Timeline, TimelineClaim, WallTime, time_scale,
};
use crate::mutant::{self, Mutant};

/// Attempts remembered. A renewal period fits a dozen at the fastest back-off. A store that refuses every write makes more of
/// them while one lock of maintenance mode stands: the confirmed attempt stays, the oldest of the others is forgotten.
const ATTEMPTS_MAX: usize = 64;
/// Reads under way at once. More than one, since a read may hang on a connection that died silently.
const READS_MAX: usize = 3;
/// Between attempts: the first pause, doubled each time up to the last. Patroni's bounds.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(1);

/// An attempt that was sent.
#[derive(Clone, Debug)]
struct Sent {
    record: LeaseRecord,
    at: BootInstant,
    /// It says that its holder is in maintenance mode.
    paused: bool,
}

/// A request of ours that has not been answered.
#[derive(Clone, Debug)]
enum Flight {
    Read,
    Write { record: LeaseRecord, sent: BootInstant },
}

#[derive(Clone, Debug)]
enum Next {
    Read,
    Write(Option<Box<LeaderRecord>>),
}

/// One job under way.
#[derive(Clone, Debug)]
struct Attempt {
    job: Job,
    ttl: Duration,
    began: BootInstant,
    until: BootInstant,
    next: Option<(Next, BootInstant)>,
    look_at: BootInstant,
    look_after: Duration,
    pause: Duration,
    writes: u32,
    /// An attempt of an earlier job that was seen to have landed: evidence if nothing better comes.
    landed: Option<(LeaseRecord, BootInstant)>,
    last_error: String,
    /// My own record, unexpired until then: a renewal writes an object again that vanished or lost its keys.
    own: Option<(LeaseRecord, BootInstant)>,
    /// The holder is in maintenance mode.
    paused: bool,
    site: Option<String>,
    failsafe: Change<FailsafeMap>,
}

/// The lease machine of one process.
#[derive(Clone, Debug)]
pub struct Lease {
    writer: Writer,
    /// Attempts sent and when; the confirmed one among them.
    attempts: Vec<Sent>,
    adopted: Option<LeaseRecord>,
    /// The confirmed attempt is the first of them.
    confirmed: bool,
    /// One that was forgotten for want of room does not say that its holder is in maintenance mode. It may still land.
    said_otherwise: bool,
    last_stamp: i64,
    job: Option<Attempt>,
    flying: Vec<(Id, Flight)>,
    out: Vec<(Id, Effect)>,
    seed: u64,
}

impl Lease {
    /// Nothing sent yet.
    pub fn new(writer: Writer) -> Lease {
        let seed = writer
            .session
            .bytes()
            .fold(0x9E37_79B9_7F4A_7C15_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Lease {
            writer,
            attempts: Vec::new(),
            adopted: None,
            confirmed: false,
            said_otherwise: false,
            last_stamp: 0,
            job: None,
            flying: Vec::new(),
            out: Vec::new(),
            seed,
        }
    }

    /// The UID of my pod became known.
    pub fn set_uid(&mut self, uid: &str) {
        uid.clone_into(&mut self.writer.uid);
    }

    /// Declares a standing record to be mine: the keeper's note proves it, or no Postgres of an earlier session is left.
    pub fn adopt(&mut self, record: LeaseRecord) {
        self.adopted = Some(record);
    }

    /// Is this record mine: written by this process (a known attempt, or the mark of this session), or adopted? My name
    /// alone says nothing: StatefulSets reuse names.
    pub fn is_mine(&self, leader: &LeaderRecord) -> bool {
        let record = &leader.lease;
        if record.leader.is_none() || record.leader != self.writer.me {
            return false;
        }
        self.adopted.as_ref() == Some(record)
            || self.sent(record).is_some()
            || leader
                .valid_holder()
                .is_some_and(|h| !self.writer.session.is_empty() && h.session == self.writer.session)
    }

    /// Was this very record sent, and nobody else seen since? The session's mark says less: old copies of the object have it.
    pub fn attempted(&self, record: &LeaseRecord) -> bool {
        self.sent(record).is_some()
    }

    /// Somebody else was seen to hold the lease: nothing that was sent before can land any more.
    pub fn outrun(&mut self) {
        if self.job.is_none() {
            self.forget();
        }
    }

    /// A job is under way.
    pub fn busy(&self) -> bool {
        self.job.is_some()
    }

    /// Begins a job. One at a time; the caller has made sure.
    pub fn start(&mut self, start: Start, cluster: &Cluster, now: Now, ids: &mut dyn FnMut() -> Id) {
        let known = cluster.leader.as_ref().filter(|l| self.is_mine(l));
        let first = match (&start.job, known) {
            (Job::Acquire { .. }, _) | (_, None) => Next::Read,
            (Job::Renew { .. } | Job::Release { .. }, Some(mine)) => Next::Write(Some(Box::new(mine.clone()))),
        };
        // A quarter: time for a few looks beside a request that hangs, without doubling the load of a slow server.
        let look_after = (start.deadline / 4).max(Duration::from_millis(500).mul_f64(time_scale()));
        self.job = Some(Attempt {
            job: start.job,
            ttl: start.ttl,
            began: now.boot,
            until: now.boot + start.deadline,
            next: None,
            look_at: now.boot + look_after,
            look_after,
            pause: PAUSE_FIRST,
            writes: 0,
            landed: None,
            last_error: format!("no answer from the Kubernetes API within {:.1} s", start.deadline.as_secs_f64()),
            own: start.own,
            paused: start.paused,
            site: start.site,
            failsafe: start.failsafe,
        });
        self.send(first, now, ids);
    }

    /// What is to be sent.
    pub fn take_effects(&mut self) -> Vec<(Id, Effect)> {
        std::mem::take(&mut self.out)
    }

    /// When something is due although no answer comes.
    pub fn wake(&self) -> Option<BootInstant> {
        let a = self.job.as_ref()?;
        Some(a.next.as_ref().map_or(a.look_at, |(_, at)| *at).min(a.until))
    }

    /// Time has passed.
    pub fn due(&mut self, now: Now, ids: &mut dyn FnMut() -> Id) -> Option<JobEnd> {
        let a = self.job.as_mut()?;
        if now.boot >= a.until {
            let a = self.job.take()?;
            return Some(match a.landed {
                Some((record, sent)) => JobEnd::Written { record, sent },
                None => JobEnd::Unknown(a.last_error),
            });
        }
        let next = match a.next.take() {
            Some((next, at)) if now.boot >= at => Some(next),
            Some(waiting) => {
                a.next = Some(waiting);
                None
            }
            None if now.boot >= a.look_at => {
                a.look_at = now.boot + a.look_after;
                let reads = self.flying.iter().filter(|(_, f)| matches!(f, Flight::Read)).count();
                (reads < READS_MAX).then_some(Next::Read)
            }
            None => None,
        };
        if let Some(next) = next {
            self.send(next, now, ids);
        }
        None
    }

    /// Does this id belong to a request of the lease?
    pub fn knows(&self, id: Id) -> bool {
        self.flying.iter().any(|(i, _)| *i == id)
    }

    /// A read was answered.
    pub fn read(
        &mut self,
        id: Id,
        result: Result<Option<Box<LeaderRecord>>, ReadFailed>,
        now: Now,
        ids: &mut dyn FnMut() -> Id,
    ) -> Option<JobEnd> {
        self.landed_flight(id)?;
        self.job.as_ref()?;
        match result {
            Ok(seen) => self.judge(seen, now, ids),
            Err(e) => {
                let refused = matches!(e, ReadFailed::Refused(_));
                self.after_error(e.text().to_owned(), refused, now)
            }
        }
    }

    /// A write was answered.
    pub fn wrote(&mut self, id: Id, result: LeaderWritten, now: Now, ids: &mut dyn FnMut() -> Id) -> Option<JobEnd> {
        let Flight::Write { record, sent } = self.landed_flight(id)? else { return None };
        let Some(a) = self.job.as_mut().filter(|a| sent >= a.began) else {
            // Its job is over. What it did shows with the next read.
            return None;
        };
        match result {
            LeaderWritten::Wrote => {
                let release = matches!(a.job, Job::Release { .. });
                self.job = None;
                if release {
                    self.forget()
                } else {
                    self.confirm(&record, sent)
                }
                Some(JobEnd::Written { record, sent })
            }
            LeaderWritten::Conflict => {
                self.send(Next::Read, now, ids);
                None
            }
            LeaderWritten::Refused(why) => self.after_error(why, true, now),
            LeaderWritten::Unsure(why) => self.after_error(why, false, now),
        }
    }

    /// A request came to nothing: it was too late, or nobody carried it out.
    pub fn failed(&mut self, id: Id, why: &str, now: Now) -> Option<JobEnd> {
        self.landed_flight(id)?;
        self.job.as_ref()?;
        self.after_error(why.to_owned(), false, now)
    }

    fn landed_flight(&mut self, id: Id) -> Option<Flight> {
        let at = self.flying.iter().position(|(i, _)| *i == id)?;
        Some(self.flying.remove(at).1)
    }

    fn sent(&self, record: &LeaseRecord) -> Option<BootInstant> {
        self.attempts.iter().find(|sent| sent.record == *record).map(|sent| sent.at)
    }

    /// Every record of mine that stands or may still land says that its holder is in maintenance mode.
    pub fn says_nothing_else(&self) -> bool {
        let remembered = self.attempts.iter().all(|sent| sent.paused);
        remembered && !self.said_otherwise && self.job.as_ref().is_none_or(|job| job.paused)
    }

    /// Does this record of mine say that its holder is in maintenance mode?
    pub fn says_paused(&self, record: &LeaseRecord) -> bool {
        self.attempts.iter().any(|sent| sent.record == *record && sent.paused)
    }

    /// `record` stands: attempts on older versions can no longer land.
    fn confirm(&mut self, record: &LeaseRecord, sent: BootInstant) {
        self.attempts = vec![Sent { record: record.clone(), at: sent, paused: self.says_paused(record) }];
        self.adopted = None;
        (self.confirmed, self.said_otherwise) = (true, false);
    }

    fn forget(&mut self) {
        self.attempts.clear();
        self.adopted = None;
        (self.confirmed, self.said_otherwise) = (false, false);
    }

    fn remember(&mut self, sent: Sent) {
        if self.attempts.len() == ATTEMPTS_MAX {
            let oldest = self.attempts.remove(usize::from(self.confirmed));
            self.said_otherwise |= !oldest.paused;
        }
        self.attempts.push(sent);
    }

    /// The wall clock, but never twice the same: a renewal must change `renewTime` whatever the clock does.
    fn stamp(&mut self, wall: WallTime) -> String {
        self.last_stamp = wall.0.max(self.last_stamp + 1);
        WallTime(self.last_stamp).iso()
    }

    fn send(&mut self, next: Next, now: Now, ids: &mut dyn FnMut() -> Id) {
        let id = ids();
        let Some(a) = self.job.as_mut() else { return };
        a.look_at = now.boot + a.look_after;
        match next {
            Next::Read => {
                self.flying.push((id, Flight::Read));
                self.out.push((id, Effect::ReadLeader));
            }
            Next::Write(seen) => {
                a.writes += 1;
                let paused = a.paused;
                let Some(write) = self.attempt(seen.as_deref(), now.wall) else { return };
                self.remember(Sent { record: write.record.clone(), at: now.boot, paused });
                self.flying.push((id, Flight::Write { record: write.record.clone(), sent: now.boot }));
                self.out.push((id, Effect::WriteLeader(Box::new(write))));
            }
        }
    }

    /// A refusal ends an acquire or release that can have written nothing; everything else is looked up again.
    fn after_error(&mut self, why: String, refused: bool, now: Now) -> Option<JobEnd> {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Up to a fifth longer, so that members that failed together do not come back together.
        let jitter = 1.0 + (self.seed >> 40) as f64 / (1_u64 << 24) as f64 / 5.0;
        let a = self.job.as_mut()?;
        a.last_error = why;
        let nothing_written = refused && a.writes <= 1;
        if nothing_written && matches!(a.job, Job::Acquire { .. } | Job::Release { .. }) {
            return self.job.take().map(|a| JobEnd::Refused(a.last_error));
        }
        if a.next.is_none() {
            a.next = Some((Next::Read, now.boot + a.pause.mul_f64(jitter * time_scale())));
            a.pause = (a.pause * 2).min(PAUSE_MOST);
        }
        None
    }

    fn end(&mut self, end: JobEnd) -> Option<JobEnd> {
        self.job = None;
        Some(end)
    }

    /// What a fresh read means for the job.
    fn judge(&mut self, seen: Option<Box<LeaderRecord>>, now: Now, ids: &mut dyn FnMut() -> Id) -> Option<JobEnd> {
        let record = seen.as_ref().map(|l| l.lease.clone());
        let ours = record
            .as_ref()
            .filter(|r| r.leader.is_some() && r.leader == self.writer.me)
            .and_then(|r| Some((r.clone(), self.sent(r)?)));
        let a = self.job.as_mut()?;
        if let Some((record, sent)) = ours {
            let of_this_job = sent >= a.began && a.writes > 0;
            match &a.job {
                Job::Renew { .. } if !of_this_job => a.landed = Some((record, sent)),
                // Asked to take over from a record of our own: its send time is what the caller wants to leave behind.
                Job::Acquire { stood: Stood::Record(stood), .. } if *stood == record => {}
                Job::Acquire { .. } | Job::Renew { .. } => {
                    self.confirm(&record, sent);
                    return self.end(JobEnd::Written { record, sent });
                }
                // A release in flight has the same five keys but the leader; it is recognised below.
                Job::Release { .. } => {}
            }
        }
        let job = a.job.clone();
        let own = a.own.clone();
        let verdict = match job {
            Job::Acquire { stood, .. } => judge_acquire(&stood, seen.as_deref()),
            Job::Renew { .. } => self.judge_renew(seen.as_deref(), own, now.boot),
            Job::Release { .. } => self.judge_release(seen.as_deref()),
        };
        match verdict {
            None => {
                self.send(Next::Write(seen), now, ids);
                None
            }
            Some(end) => self.end(end),
        }
    }

    fn lost(&self, record: Option<&LeaseRecord>) -> JobEnd {
        let holder = record.and_then(|r| r.leader.clone());
        let why = match &holder {
            Some(who) if Some(who) == self.writer.me.as_ref() => {
                format!("the lock names {who}, but another incarnation of it")
            }
            Some(who) => format!("the lock is held by {who}"),
            None => "the lock is released".to_owned(),
        };
        JobEnd::Lost(holder, why)
    }

    /// `None`: write. An object of mine that vanished, was re-made or lost its keys is written again while my lease is
    /// unexpired; unless somebody has held the lock since.
    fn judge_renew(
        &self,
        seen: Option<&LeaderRecord>,
        own: Option<(LeaseRecord, BootInstant)>,
        now: BootInstant,
    ) -> Option<JobEnd> {
        if seen.is_some_and(|l| self.is_mine(l)) {
            return None;
        }
        let record = seen.map(|l| &l.lease);
        let nobody = record.is_none_or(|r| r.leader.is_none());
        if let Some((mine, until)) = own
            && nobody
            && now < until
            && record.is_none_or(|r| number(r) <= number(&mine))
        {
            return None;
        }
        Some(self.lost(record))
    }

    /// `None`: write.
    fn judge_release(&self, seen: Option<&LeaderRecord>) -> Option<JobEnd> {
        if let Some(l) = seen
            && l.lease.leader.is_none()
        {
            let before = LeaseRecord { leader: self.writer.me.clone(), ..l.lease.clone() };
            let was_mine = self.adopted.as_ref() == Some(&before) || self.sent(&before).is_some();
            let sent = self.sent(&l.lease);
            if was_mine || sent.is_some() {
                return Some(JobEnd::Written { record: l.lease.clone(), sent: sent.unwrap_or_default() });
            }
        }
        if seen.is_some_and(|l| self.is_mine(l)) { None } else { Some(self.lost(seen.map(|l| &l.lease))) }
    }

    /// The record and everything beside it for an attempt on `seen`.
    fn attempt(&mut self, seen: Option<&LeaderRecord>, wall: WallTime) -> Option<LeaderWrite> {
        let a = self.job.clone()?;
        let stood = seen.map(|l| l.lease.clone()).unwrap_or_default();
        let expect = seen.map(|l| l.version.clone());
        let again = stood.leader.is_some() && stood.leader == self.writer.me;
        let ttl = format!("{}", (a.ttl.as_secs_f64() / time_scale()).round() as u64);
        let full = |me: &Option<MemberName>, acquired: String, renewed: String, transitions: String| LeaseRecord {
            leader: me.clone(),
            ttl: Some(ttl.clone()),
            acquire_time: Some(acquired),
            renew_time: Some(renewed),
            transitions: Some(transitions),
        };
        let plain = LeaderWrite {
            expect,
            record: stood.clone(),
            holder: None,
            status: LeaderStatus::default(),
            released: Change::Keep,
            claim: Change::Keep,
            failsafe: Change::Keep,
        };
        Some(match a.job {
            Job::Release { shutdown } => {
                // Who gives the lock back without a clean shutdown of its own leaves the promise that stands.
                let shutdown = shutdown.or_else(|| seen.and_then(LeaderRecord::oath).cloned());
                let released = Released {
                    acquire_time: stood.acquire_time.clone().unwrap_or_default(),
                    transitions: stood.transitions.clone().unwrap_or_default(),
                    shutdown: shutdown.clone(),
                };
                let optime = shutdown.map(|s| s.position);
                LeaderWrite {
                    record: LeaseRecord { leader: None, ..stood },
                    status: LeaderStatus { optime, ..LeaderStatus::default() },
                    released: Change::Set(released),
                    ..plain
                }
            }
            Job::Acquire { claim, .. } => {
                let stamp = self.stamp(wall);
                let untouched = stood == LeaseRecord::default();
                let transitions = match (&stood.transitions, again, untouched) {
                    (_, _, true) | (None, true, false) => "0".to_owned(),
                    (Some(kept), true, false) => kept.clone(),
                    (_, false, false) => stood.next_transitions().to_string(),
                };
                let acquired = stood.acquire_time.filter(|_| again).unwrap_or_else(|| stamp.clone());
                let record = full(&self.writer.me, acquired, stamp, transitions);
                let claim = claim.map_or_else(|| spent(seen), |timeline| claim_of(&record, timeline));
                let holder = Some(self.writer.mark(&record, a.paused, &a.site));
                LeaderWrite { record, holder, claim, failsafe: a.failsafe, ..plain }
            }
            Job::Renew { status, fulfilled, claim } => {
                let stamp = self.stamp(wall);
                // An object that lost its keys gets those of my own acquisition again.
                let base = if again { stood } else { a.own.map(|(own, _)| own).unwrap_or_default() };
                let acquired = base.acquire_time.unwrap_or_else(|| stamp.clone());
                let record = full(&self.writer.me, acquired, stamp, base.transitions.unwrap_or_else(|| "0".into()));
                let holder = Some(self.writer.mark(&record, a.paused, &a.site));
                let released = if fulfilled { Change::Remove } else { Change::Keep };
                let claim = match claim {
                    Claim::Keep => Change::Keep,
                    Claim::Make(timeline) => claim_of(&record, timeline),
                    Claim::Spend => spent(seen),
                };
                LeaderWrite { record, holder, status, released, claim, failsafe: a.failsafe, ..plain }
            }
        })
    }
}

/// How often the lock has changed hands, as far as the record says.
fn number(record: &LeaseRecord) -> u64 {
    record.transitions.as_deref().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

/// `None`: write.
fn judge_acquire(stood: &Stood, seen: Option<&LeaderRecord>) -> Option<JobEnd> {
    let record = seen.map(|l| l.lease.clone()).unwrap_or_default();
    let holder = record.leader.clone();
    let as_observed = match stood {
        Stood::Record(stood) | Stood::ProvenDead(stood) => record == *stood,
        Stood::Untouched(version) => {
            let same = seen.is_some_and(|l| l.version == *version) || mutant::is(Mutant::AnyVersionWillDo);
            holder.is_none() && same
        }
        // One without lease keys (made by a manifest) is as good as none.
        Stood::Nothing => record == LeaseRecord::default(),
    };
    if !as_observed && !mutant::is(Mutant::TakesWithoutComparing) {
        let who = holder.as_ref().map_or("nobody", |l| l.as_str()).to_owned();
        return Some(JobEnd::Lost(holder, format!("the leader object is not as observed: it names {who}")));
    }
    if matches!(stood, Stood::ProvenDead(_)) && seen.is_none_or(|l| l.valid_holder().is_none()) {
        let why = "the holder mark is not that of the record: no proof of death holds".to_owned();
        return Some(JobEnd::Lost(holder, why));
    }
    None
}

fn claim_of(record: &LeaseRecord, timeline: Timeline) -> Change<TimelineClaim> {
    Change::Set(TimelineClaim {
        timeline,
        acquire_time: record.acquire_time.clone().unwrap_or_default(),
        transitions: record.transitions.clone().unwrap_or_default(),
    })
}

/// The number that stands, of no acquisition.
fn spent(seen: Option<&LeaderRecord>) -> Change<TimelineClaim> {
    let mine = |claim: &&TimelineClaim| !(claim.acquire_time.is_empty() && claim.transitions.is_empty());
    let stands = seen.and_then(|l| l.claim.as_ref()).filter(mine).map(|claim| claim.timeline);
    let of_nobody = |timeline| TimelineClaim { timeline, acquire_time: String::new(), transitions: String::new() };
    stands.map_or(Change::Keep, |timeline| Change::Set(of_nobody(timeline)))
}

#[cfg(test)]
mod tests;
