//! The machine alone: answers in every order, late, lost and wrong.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for the effects it is about")]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{HolderMark, Version};

mod claims;
mod refused;

const TTL: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Now {
    let boot = BootInstant::from_nanos(1_000_000_000_000 + ms * 1_000_000);
    Now { boot, wall: WallTime(1_700_000_000_000_000 + ms as i64 * 1000) }
}

fn shown(version: u64, lease: LeaseRecord, holder: Option<HolderMark>) -> LeaderRecord {
    LeaderRecord {
        version: Version(version.to_string()),
        lease,
        holder,
        optime: None,
        slots: Default::default(),
        retain_slots: Vec::new(),
        failsafe: None,
        addresses: Vec::new(),
        released: None,
        claim: None,
    }
}

fn record(leader: Option<&str>, renewed: &str, transitions: &str) -> LeaseRecord {
    let text = |t: &str| Some(t.to_owned());
    LeaseRecord {
        leader: leader.map(MemberName::from),
        ttl: text("30"),
        acquire_time: text("t0"),
        renew_time: text(renewed),
        transitions: text(transitions),
    }
}

/// One lease machine and a store that answers when the test says so.
struct World {
    lease: Lease,
    cluster: Cluster,
    version: u64,
    stored: Option<LeaderRecord>,
    own: Option<(LeaseRecord, BootInstant)>,
    last_id: u64,
    flying: Vec<(Id, Effect)>,
    /// Every attempt that was emitted, and when.
    emitted: Vec<(LeaseRecord, BootInstant)>,
}

impl World {
    fn new() -> World {
        let writer = Writer { me: Some("a".into()), uid: "uid".into(), session: "session".into() };
        World {
            lease: Lease::new(writer),
            cluster: Cluster::default(),
            version: 1,
            stored: None,
            own: None,
            last_id: 0,
            flying: Vec::new(),
            emitted: Vec::new(),
        }
    }

    fn with<R>(&mut self, now: Now, run: impl FnOnce(&mut Lease, &Cluster, Now, &mut dyn FnMut() -> Id) -> R) -> R {
        let World { lease, cluster, last_id, .. } = self;
        let mut ids = || {
            *last_id += 1;
            Id(*last_id)
        };
        let done = run(lease, cluster, now, &mut ids);
        for (id, effect) in self.lease.take_effects() {
            if let Effect::WriteLeader(write) = &effect {
                self.emitted.push((write.record.clone(), now.boot));
            }
            self.flying.push((id, effect));
        }
        done
    }

    fn start(&mut self, job: Job, now: Now) {
        let (own, failsafe) = (self.own.clone(), Change::Keep);
        let start = Start { job, ttl: TTL, deadline: DEADLINE, own, paused: false, site: None, failsafe };
        self.with(now, |lease, cluster, now, ids| lease.start(start, cluster, now, ids));
    }

    fn renew(&mut self, now: Now) {
        self.start(Job::Renew { status: LeaderStatus::default(), fulfilled: false, claim: Claim::Keep }, now);
    }

    fn due(&mut self, now: Now) -> Option<JobEnd> {
        self.with(now, |lease, _, now, ids| lease.due(now, ids))
    }

    /// The only request under way of this kind, taken off the wire.
    fn take(&mut self, write: bool) -> (Id, Effect) {
        let of_kind = |e: &Effect| matches!(e, Effect::WriteLeader(_)) == write;
        let at = self.flying.iter().position(|(_, e)| of_kind(e)).expect("no such request");
        self.flying.remove(at)
    }

    fn writes(&self) -> usize {
        self.flying.iter().filter(|(_, e)| matches!(e, Effect::WriteLeader(_))).count()
    }

    fn reads(&self) -> usize {
        self.flying.len() - self.writes()
    }

    /// The store carries a write out, or not.
    fn apply(&mut self, write: &LeaderWrite) -> LeaderWritten {
        if self.stored.as_ref().map(|s| &s.version) != write.expect.as_ref() {
            return LeaderWritten::Conflict;
        }
        let holder = write.holder.clone().or_else(|| self.stored.as_ref().and_then(|s| s.holder.clone()));
        self.put(write.record.clone(), holder);
        LeaderWritten::Wrote
    }

    fn put(&mut self, lease: LeaseRecord, holder: Option<HolderMark>) {
        self.version += 1;
        self.stored = Some(shown(self.version, lease, holder));
    }

    fn answer_read(&mut self, now: Now) -> Option<JobEnd> {
        let (id, _) = self.take(false);
        let seen = self.stored.clone().map(Box::new);
        self.with(now, |lease, _, now, ids| lease.read(id, Ok(seen), now, ids))
    }

    fn answer(&mut self, id: Id, result: LeaderWritten, now: Now) -> Option<JobEnd> {
        self.with(now, |lease, _, now, ids| lease.wrote(id, result, now, ids))
    }

    fn answer_write(&mut self, result: LeaderWritten, now: Now) -> Option<JobEnd> {
        let (id, _) = self.take(true);
        self.answer(id, result, now)
    }

    /// Carries the next write out; the answer waits.
    fn land(&mut self) -> Id {
        let (id, effect) = self.take(true);
        let Effect::WriteLeader(write) = effect else { panic!() };
        assert_eq!(self.apply(&write), LeaderWritten::Wrote);
        id
    }

    /// Holds the lock since `0`, and its view shows it.
    fn leading() -> World {
        let mut w = World::new();
        w.start(Job::Acquire { stood: Stood::Nothing, claim: None }, ms(0));
        assert_eq!(w.answer_read(ms(0)), None);
        let id = w.land();
        let end = w.answer(id, LeaderWritten::Wrote, ms(5));
        let Some(JobEnd::Written { record, sent }) = end else { panic!("{end:?}") };
        assert_eq!(sent, ms(0).boot, "from the sending, not from the answer");
        w.own = Some((record, sent + TTL));
        w.see();
        w
    }

    fn see(&mut self) {
        self.cluster.leader = self.stored.clone();
    }

    fn stands(&self) -> LeaseRecord {
        self.stored.as_ref().unwrap().lease.clone()
    }
}

fn written(record: LeaseRecord, sent: Now) -> Option<JobEnd> {
    Some(JobEnd::Written { record, sent: sent.boot })
}

fn is_lost(end: Option<JobEnd>) -> Option<MemberName> {
    match end {
        Some(JobEnd::Lost(who, _)) => who,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_write_without_an_answer_is_looked_up_beside() {
    let mut w = World::leading();
    w.renew(ms(10_000));
    let _unanswered = w.land();
    assert_eq!(w.lease.wake(), Some(ms(12_500).boot), "a quarter of the deadline");
    assert_eq!(w.due(ms(12_499)), None);
    assert_eq!(w.reads(), 0);
    assert_eq!(w.due(ms(12_500)), None);
    assert_eq!((w.reads(), w.writes()), (1, 0), "the old write is not sent again");
    let stands = w.stands();
    assert_eq!(w.answer_read(ms(12_600)), written(stands, ms(10_000)), "it had landed: from its sending");
}

#[test]
fn an_answer_after_the_end_of_its_job_is_no_evidence() {
    let mut w = World::leading();
    w.renew(ms(10_000));
    let late = w.land();
    assert!(matches!(w.due(ms(20_000)), Some(JobEnd::Unknown(_))));
    assert_eq!(w.answer(late, LeaderWritten::Wrote, ms(20_001)), None);
    assert!(!w.lease.busy());
    // The next job is not ended by it either, and finds what landed by its own read.
    let mut w = World::leading();
    w.renew(ms(10_000));
    let late = w.land();
    assert!(matches!(w.due(ms(20_000)), Some(JobEnd::Unknown(_))));
    w.renew(ms(20_500));
    assert_eq!(w.answer(late, LeaderWritten::Wrote, ms(20_600)), None);
    assert!(w.lease.busy());
    assert_eq!(w.answer_write(LeaderWritten::Conflict, ms(20_700)), None, "its view was old");
    assert_eq!(w.answer_read(ms(20_800)), None, "the earlier attempt is mine: written again on it");
    let id = w.land();
    let stands = w.stands();
    assert_eq!(w.answer(id, LeaderWritten::Wrote, ms(20_900)), written(stands, ms(20_800)));
}

#[test]
fn of_two_attempts_the_one_that_stands_counts_from_its_own_sending() {
    let mut w = World::leading();
    w.renew(ms(10_000));
    // The first write is not carried out yet; a look shows the old record, and a second attempt goes out.
    let (_, first) = w.take(true);
    assert_eq!(w.due(ms(12_500)), None);
    assert_eq!(w.answer_read(ms(12_600)), None);
    assert_eq!(w.writes(), 1);
    let Effect::WriteLeader(first) = first else { panic!() };
    assert_ne!(Some(&first.record), w.emitted.last().map(|(r, _)| r), "another renewTime");
    // Now the first lands, and the second conflicts.
    assert_eq!(w.apply(&first), LeaderWritten::Wrote);
    assert_eq!(w.answer_write(LeaderWritten::Conflict, ms(12_700)), None);
    assert_eq!(w.answer_read(ms(12_800)), written(first.record, ms(10_000)), "the older one stands: its sending");
}

#[test]
fn a_conflict_is_read_and_only_the_read_says_lost() {
    let mut w = World::leading();
    w.renew(ms(10_000));
    w.put(record(Some("b"), "t9", "1"), None);
    assert_eq!(w.answer_write(LeaderWritten::Conflict, ms(10_100)), None);
    assert_eq!(w.reads(), 1);
    assert_eq!(is_lost(w.answer_read(ms(10_200))), Some("b".into()));
    assert!(!w.lease.busy());
    // A conflict by a write beside the five keys is no loss.
    let mut w = World::leading();
    w.renew(ms(10_000));
    let (lease, holder) = (w.stands(), w.stored.as_ref().unwrap().holder.clone());
    w.put(lease, holder);
    assert_eq!(w.answer_write(LeaderWritten::Conflict, ms(10_100)), None);
    assert_eq!(w.answer_read(ms(10_200)), None);
    let id = w.land();
    let stands = w.stands();
    assert_eq!(w.answer(id, LeaderWritten::Wrote, ms(10_300)), written(stands, ms(10_200)));
}

#[test]
fn a_refused_acquisition_ends_at_once_and_a_refused_renewal_is_tried_again_with_pauses() {
    let refused = || LeaderWritten::Refused("Forbidden".into());
    let mut w = World::new();
    w.start(Job::Acquire { stood: Stood::Nothing, claim: None }, ms(0));
    assert_eq!(w.answer_read(ms(1)), None);
    assert_eq!(w.answer_write(refused(), ms(2)), Some(JobEnd::Refused("Forbidden".into())));

    let mut w = World::leading();
    w.renew(ms(10_000));
    let mut now = 10_000;
    let mut pauses = Vec::new();
    for _ in 0..6 {
        assert_eq!(w.answer_write(refused(), ms(now)), None);
        let wake = w.lease.wake().unwrap();
        pauses.push(wake.since(ms(now).boot));
        assert_eq!((w.reads(), w.writes()), (0, 0), "not before the pause is over");
        now += wake.since(ms(now).boot).as_millis() as u64 + 1;
        assert_eq!(w.due(ms(now)), None);
        assert_eq!(w.answer_read(ms(now)), None);
    }
    let scale = time_scale();
    for (pause, base) in pauses.iter().zip([0.1, 0.2, 0.4, 0.8, 1.0, 1.0]) {
        let least = Duration::from_secs_f64(base * scale);
        assert!(*pause >= least && *pause <= least.mul_f64(1.2), "{pause:?} of {base}");
    }
    // An acquisition that can have written something is looked up instead.
    let mut w = World::new();
    w.start(Job::Acquire { stood: Stood::Nothing, claim: None }, ms(0));
    assert_eq!(w.answer_read(ms(1)), None);
    assert_eq!(w.answer_write(LeaderWritten::Unsure("503".into()), ms(2)), None);
    assert_eq!(w.due(ms(500)), None);
    assert_eq!(w.answer_read(ms(501)), None);
    assert_eq!(w.answer_write(refused(), ms(502)), None);
    assert!(w.lease.busy());
}

#[test]
fn members_that_failed_together_do_not_come_back_together() {
    let pause = |session: &str| {
        let mut w = World::leading();
        w.lease = Lease::new(Writer { me: Some("a".into()), uid: "uid".into(), session: session.into() });
        w.lease.adopt(w.stands());
        w.renew(ms(10_000));
        assert_eq!(w.answer_write(LeaderWritten::Unsure("503".into()), ms(10_000)), None);
        w.lease.wake().unwrap()
    };
    let pauses: std::collections::BTreeSet<_> = (0..8).map(|i| pause(&format!("session {i}"))).collect();
    assert!(pauses.len() > 5, "{pauses:?}");
}

#[test]
fn a_server_that_hangs_is_read_by_a_few_requests_only() {
    let mut w = World::leading();
    w.lease.forget();
    w.cluster.leader = None;
    w.renew(ms(0));
    for t in (0..10_000).step_by(100) {
        assert_eq!(w.due(ms(t)), None);
        assert!(w.reads() <= READS_MAX && w.writes() == 0);
    }
    assert_eq!(w.reads(), READS_MAX);
    assert!(matches!(w.due(ms(10_000)), Some(JobEnd::Unknown(_))));
    // What still hangs counts for the next job too.
    w.renew(ms(10_100));
    for t in (10_100..20_000).step_by(100) {
        assert_eq!(w.due(ms(t)), None);
    }
    assert!(w.reads() <= READS_MAX + 1, "{}", w.reads());
}

#[test]
fn at_the_deadline_an_earlier_attempt_that_was_seen_to_stand_is_the_evidence() {
    let mut w = World::leading();
    w.renew(ms(5_000));
    let _landed = w.land();
    let stands = w.stands();
    assert!(matches!(w.due(ms(15_000)), Some(JobEnd::Unknown(_))));
    w.renew(ms(15_500));
    assert_eq!(w.answer_write(LeaderWritten::Conflict, ms(15_600)), None);
    assert_eq!(w.answer_read(ms(15_700)), None);
    assert_eq!(w.writes(), 1);
    assert_eq!(w.due(ms(25_500)), written(stands, ms(5_000)), "that one's sending, nothing later");
}

#[test]
fn a_record_with_my_name_is_a_strangers_until_it_is_adopted() {
    let mut w = World::new();
    w.put(record(Some("a"), "t1", "3"), None);
    w.see();
    w.renew(ms(0));
    assert_eq!(w.reads(), 1, "not mine: nothing to write on");
    assert_eq!(is_lost(w.answer_read(ms(1))), Some("a".into()));
    w.lease.adopt(w.stands());
    w.renew(ms(100));
    let id = w.land();
    let stands = w.stands();
    assert_eq!((stands.acquire_time.as_deref(), stands.transitions.as_deref()), (Some("t0"), Some("3")));
    assert_eq!(w.answer(id, LeaderWritten::Wrote, ms(101)), written(stands, ms(100)));
}

#[test]
fn a_release_leaves_the_mark_and_says_which_acquisition_it_gave_up() {
    let mut w = World::leading();
    let before = w.stands();
    w.start(Job::Release { shutdown: None }, ms(1000));
    let (id, effect) = w.take(true);
    let Effect::WriteLeader(write) = effect else { panic!() };
    assert_eq!((write.record.leader.clone(), write.holder.clone()), (None, None), "the mark that stands is left");
    let Change::Set(released) = &write.released else { panic!() };
    assert_eq!(Some(&released.acquire_time), before.acquire_time.as_ref());
    assert_eq!(Some(&released.transitions), before.transitions.as_ref());
    // Its answer is lost: the read that shows it released is the answer.
    assert_eq!(w.apply(&write), LeaderWritten::Wrote);
    assert_eq!(w.answer(id, LeaderWritten::Unsure("cut".into()), ms(1100)), None);
    assert_eq!(w.due(ms(1300)), None);
    assert!(matches!(w.answer_read(ms(1301)), Some(JobEnd::Written { record, .. }) if record.leader.is_none()));
}

#[test]
fn a_vanished_object_is_made_again_only_while_the_lease_is_unexpired_and_nobody_held_it_since() {
    let attempt = |seen: Option<LeaderRecord>, at: u64| {
        let mut w = World::leading();
        w.stored = seen;
        w.see();
        w.renew(ms(at));
        let end = w.answer_read(ms(at + 10));
        (w.writes(), end)
    };
    assert_eq!(attempt(None, 10_000), (1, None));
    assert_eq!(attempt(Some(shown(9, LeaseRecord::default(), None)), 10_000), (1, None));
    assert!(matches!(attempt(None, 29_995), (0, Some(JobEnd::Lost(None, _)))), "expired by the time of the read");
    let released = shown(9, record(None, "t5", "1"), None);
    assert!(matches!(attempt(Some(released), 10_000), (0, Some(JobEnd::Lost(None, _)))), "held by another since");
    let mut w = World::leading();
    w.own = None;
    w.stored = None;
    w.see();
    w.renew(ms(10_000));
    assert_eq!(is_lost(w.answer_read(ms(10_010))), None, "whoever leaves does not say that it holds it");
}

/// What happens next in a random course.
#[derive(Clone, Debug)]
enum Event {
    /// The n-th request under way reaches the store; its answer waits.
    Reach(usize),
    /// The n-th waiting answer arrives.
    Arrive(usize),
    /// The n-th waiting answer is replaced by an error.
    Break(usize),
    /// The n-th request is refused without being carried out.
    Refuse(usize),
    /// Time passes, in ms.
    Wait(u64),
    /// Somebody else takes the lock.
    Usurp,
    /// Somebody writes beside the five keys.
    Touch,
    /// The object vanishes.
    Vanish,
    /// The view catches up.
    See,
    /// A job begins, if none is under way.
    Renew,
    Acquire,
    Release,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0..4_usize).prop_map(Event::Reach),
        6 => (0..4_usize).prop_map(Event::Arrive),
        2 => (0..4_usize).prop_map(Event::Break),
        1 => (0..4_usize).prop_map(Event::Refuse),
        6 => (1..4000_u64).prop_map(Event::Wait),
        1 => Just(Event::Usurp),
        1 => Just(Event::Touch),
        1 => Just(Event::Vanish),
        2 => Just(Event::See),
        4 => Just(Event::Renew),
        2 => Just(Event::Acquire),
        1 => Just(Event::Release),
    ];
    proptest::collection::vec(event, 1..120)
}

/// An answer on its way back.
enum Waiting {
    Read(Option<Box<LeaderRecord>>),
    Wrote(LeaderWritten),
}

/// A course of events, and everything the store ever held.
struct Course {
    w: World,
    waiting: Vec<(Id, Waiting)>,
    held: Vec<LeaseRecord>,
    at: u64,
}

impl Course {
    fn arrive(&mut self, id: Id, answer: Waiting) {
        let end = self.w.with(ms(self.at), |lease, _, now, ids| match answer {
            Waiting::Read(seen) => lease.read(id, Ok(seen), now, ids),
            Waiting::Wrote(result) => lease.wrote(id, result, now, ids),
        });
        self.ended(end);
    }

    fn ended(&mut self, end: Option<JobEnd>) {
        let Some(end) = end else { return };
        match end {
            JobEnd::Written { record, sent } => {
                assert!(self.held.contains(&record), "written, but the store never held {record:?}");
                if record.leader.is_some() {
                    let emitted = self.w.emitted.iter().find(|(r, _)| *r == record).expect("no attempt of mine");
                    assert!(sent <= emitted.1, "evidence {sent:?} later than its sending {:?}", emitted.1);
                    self.w.own = Some((record, sent + TTL));
                } else {
                    self.w.own = None;
                }
            }
            JobEnd::Lost(..) => self.w.own = None,
            JobEnd::Refused(_) | JobEnd::Unknown(_) => {}
        }
    }

    fn reach(&mut self, n: usize) {
        if n >= self.w.flying.len() {
            return;
        }
        let (id, effect) = self.w.flying.remove(n);
        let answer = match effect {
            Effect::WriteLeader(write) => {
                let result = self.w.apply(&write);
                Waiting::Wrote(result)
            }
            _ => Waiting::Read(self.w.stored.clone().map(Box::new)),
        };
        self.waiting.push((id, answer));
    }

    fn begin(&mut self, job: Job) {
        if !self.w.lease.busy() {
            self.w.start(job, ms(self.at));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reach(n) => self.reach(n),
            Event::Arrive(n) if n < self.waiting.len() => {
                let (id, answer) = self.waiting.remove(n);
                self.arrive(id, answer);
            }
            Event::Break(n) if n < self.waiting.len() => {
                let (id, answer) = self.waiting.remove(n);
                match answer {
                    Waiting::Read(_) => {
                        let end = self.w.with(ms(self.at), |lease, _, now, _| lease.failed(id, "cut", now));
                        self.ended(end);
                    }
                    Waiting::Wrote(_) => self.arrive(id, Waiting::Wrote(LeaderWritten::Unsure("cut".into()))),
                }
            }
            Event::Refuse(n) if n < self.w.flying.len() && matches!(self.w.flying[n].1, Effect::WriteLeader(_)) => {
                let (id, _) = self.w.flying.remove(n);
                self.arrive(id, Waiting::Wrote(LeaderWritten::Refused("no".into())));
            }
            Event::Arrive(_) | Event::Break(_) | Event::Refuse(_) => {}
            Event::Wait(by) => {
                self.at += by;
                let end = self.w.due(ms(self.at));
                self.ended(end);
            }
            Event::Usurp => {
                let next = self.w.stored.as_ref().map_or(0, |s| s.lease.next_transitions());
                self.w.put(record(Some("b"), &format!("b{}", self.at), &next.to_string()), None);
            }
            Event::Touch => {
                if let Some(s) = self.w.stored.clone() {
                    self.w.put(s.lease, s.holder);
                }
            }
            Event::Vanish => self.w.stored = None,
            Event::See => self.w.see(),
            Event::Renew => {
                self.begin(Job::Renew { status: LeaderStatus::default(), fulfilled: false, claim: Claim::Keep })
            }
            Event::Acquire => {
                let stood = self.w.stored.as_ref().map_or(Stood::Nothing, |s| Stood::Record(s.lease.clone()));
                self.begin(Job::Acquire { stood, claim: None });
            }
            Event::Release => self.begin(Job::Release { shutdown: None }),
        }
        self.held.extend(self.w.stored.as_ref().map(|s| s.lease.clone()));
    }
}

#[test]
fn an_object_that_names_nobody_is_taken_in_the_very_version_that_stood() {
    let untouched = |version: &str| Job::Acquire { stood: Stood::Untouched(Version(version.into())), claim: None };
    let mut w = World::new();
    w.put(LeaseRecord::default(), None);
    let stood = w.stored.clone().unwrap().version;
    w.put(LeaseRecord::default(), None);
    w.start(untouched(&stood.0), ms(0));
    let Some(JobEnd::Lost(None, _)) = w.answer_read(ms(1)) else { panic!("somebody may have led in between") };
    let stands = w.stored.clone().unwrap().version;
    w.start(untouched(&stands.0), ms(2));
    assert_eq!(w.answer_read(ms(3)), None);
    assert_eq!(w.writes(), 1);
    let mut w = World::new();
    w.start(untouched("1"), ms(0));
    let Some(JobEnd::Lost(None, _)) = w.answer_read(ms(1)) else { panic!("what is not there stands in no version") };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes in whatever order: what is said to be written the store has held, and the evidence is not later than
    /// the sending of the attempt that stands.
    #[test]
    fn nothing_is_evidence_but_an_attempt_that_stood(events in events()) {
        let mut course = Course { w: World::new(), waiting: Vec::new(), held: Vec::new(), at: 0 };
        for event in events {
            course.happen(event);
        }
    }
}
