//! The lease: what is written, how an observer judges it, and what its holder may count on.
//!
//! Nobody parses another member's timestamp. An observer counts `ttl` of its own clock from the moment it *received* the
//! last change of the five keys; the holder counts from the moment it *sent* the renewal that was confirmed.
//!
//! An object without a holder is *released* only when the holder itself gave it up: it says so, or the record is the one
//! seen last with nothing but the name taken out. An object that vanished, was made anew, or was stripped of its keys by a
//! tool says nothing about its holder, who goes on until its own deadline: that is silence, and silence costs a full ttl.
//!
//! An object that is not there cannot be seen to stand still, however long one waits: behind a view that lags somebody may
//! have made it, led, and lost it again. It is made anew, naming nobody, and taken once it has stood for a ttl in the very
//! version that the takeover then writes on.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{BootInstant, LeaderRecord, MemberName, Timeline, Version};
use crate::mutant::{self, Mutant};

/// Longer than anybody waits.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The five keys of the lease. Times are opaque text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Holder; `None` when absent or empty (released).
    pub leader: Option<MemberName>,
    /// Seconds as text; see [`LeaseRecord::ttl_or`].
    pub ttl: Option<String>,
    /// Opaque.
    pub acquire_time: Option<String>,
    /// Opaque.
    pub renew_time: Option<String>,
    /// Decimal text.
    pub transitions: Option<String>,
}

impl LeaseRecord {
    /// The ttl of the record; missing, unparsable or 0 = the reader's own. The record has
    /// configured seconds; in builds with `test-time-scale` each of them is shorter.
    pub fn ttl_or(&self, own: Duration) -> Duration {
        match self.ttl.as_deref().and_then(|t| t.trim().parse::<u64>().ok()) {
            None | Some(0) => own,
            Some(secs) => Duration::from_secs(secs.min(u64::from(u32::MAX))).mul_f64(super::time_scale()),
        }
    }
    /// The `transitions` that a new acquirer writes.
    pub fn next_transitions(&self) -> u64 {
        self.number() + 1
    }
    /// The number of this acquisition, 0 where none is readable.
    fn number(&self) -> u64 {
        self.transitions.as_deref().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0)
    }
    /// Is this `seen`, or a later renewal of that very acquisition, with nothing but its leader taken out? That is how a
    /// member that leaves no words of its own (Patroni) gives the lock up.
    pub fn is_release_of(&self, seen: &LeaseRecord) -> bool {
        self.leader.is_none()
            && self.renew_time.is_some()
            && self.ttl.is_some()
            && self.acquire_time.is_some()
            && (&self.acquire_time, &self.transitions) == (&seen.acquire_time, &seen.transitions)
    }
}

/// What a takeover must find in its fresh read, and writes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stood {
    /// This record: given up by its holder, or silent for its ttl.
    Record(LeaseRecord),
    /// This record, with the valid mark of a holder that is proven dead.
    ProvenDead(LeaseRecord),
    /// An object that names nobody, in the very version that has stood for a ttl.
    Untouched(Version),
    /// No object. For the member alone that makes the cluster: nobody else has data to lead with.
    Nothing,
}

/// What an observer remembers of the leader object: the last record and when it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTracker {
    /// The last record seen; `None` while the object does not exist.
    pub record: Option<LeaseRecord>,
    /// Its version then; renewals apart, the object may have been touched since.
    pub version: Option<Version>,
    /// When the record above was received first, by our clock. At the start of the process: the start.
    pub since: BootInstant,
    /// Until when the last record *with a holder* counts while nobody is named. It outlives a vanished object: a wiped
    /// store is silence, and silence costs the full ttl.
    pub silent_until: BootInstant,
    /// The object was gone, or named nobody and nobody said why: until then somebody may hold the lock whom it does not show,
    /// whoever it names by now, and however dead that one is.
    pub hidden_until: BootInstant,
    /// The last record with a holder that was seen in this object; `None` when the object was gone since.
    pub seen: Option<LeaseRecord>,
    /// The ttl of the last record with a holder, in this object or an earlier one.
    pub last_ttl: Option<Duration>,
    /// Its holder leaves a mark of its own with every renewal.
    pub marked: bool,
    /// The number of the last acquisition that was seen with a holder.
    pub latest: u64,
    /// The highest timeline that was ever claimed in it. It outlives the object: a number that was given may have been taken.
    pub claimed: Timeline,
    /// The record names nobody because its holder gave it up.
    pub released: bool,
    /// The last holder that was named was in maintenance mode, and has not given the lock up: nothing stops its Postgres,
    /// however long it is silent, and whether or not the object is still there.
    pub paused: bool,
    /// Those that the last holder that was named needs to go on without the store, as long as it has not given the lock up,
    /// and whether or not the object is still there.
    pub listed: Option<BTreeMap<String, String>>,
}

/// What an observer may conclude from the leader object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseVerdict {
    /// Somebody holds it, as far as we can know.
    Held(MemberName),
    /// Its holder gave it up. Nothing has to be waited for.
    Released,
    /// The holder was silent for its ttl.
    Expired(MemberName),
    /// No holder known, and a full ttl has not passed yet since the last one could have been there.
    Silence {
        /// When the silence may be taken for an empty throne.
        until: BootInstant,
    },
    /// The object names nobody and has stood untouched for a full ttl.
    Vacant,
    /// There is no object. It says nothing, for however long; see [`Stood::Untouched`].
    Absent,
}

impl LeaseTracker {
    /// At process start: nothing seen yet, so a full ttl has to pass.
    pub fn new(now: BootInstant, ttl: Duration) -> Self {
        LeaseTracker {
            record: None,
            version: None,
            since: now,
            silent_until: now + ttl,
            hidden_until: BootInstant::default(),
            seen: None,
            last_ttl: None,
            marked: false,
            latest: 0,
            claimed: Timeline(0),
            released: false,
            paused: false,
            listed: None,
        }
    }

    /// Takes in what was received at `at`: the same record received later than before comes after a gap in which others may
    /// have stood, and so does one without a holder in another version. Returns true if it says something new.
    #[must_use]
    pub fn observe(&mut self, leader: Option<&LeaderRecord>, at: BootInstant, own_ttl: Duration) -> bool {
        let claim = leader.and_then(|l| l.claim.as_ref()).map_or(Timeline(0), |c| c.timeline);
        self.claimed = self.claimed.max(claim);
        let record = leader.map(|l| l.lease.clone());
        let by_holder = leader.is_some_and(|l| l.released_by_holder() && !self.knows_later_than(&l.lease));
        let version = leader.map(|l| l.version.clone());
        let named = record.as_ref().is_some_and(|r| r.leader.is_some());
        // Every acquisition counts `transitions` up. An object that has lost them says nothing of who held it meanwhile: there
        // any change starts the wait anew.
        let uncounted = record.as_ref().is_none_or(|r| r.transitions.is_none());
        let touched = !named && uncounted && version != self.version && !mutant::is(Mutant::AnyVersionWillDo);
        self.version = version;
        if self.record == record && at <= self.since && !touched {
            self.released |= by_holder;
            return false;
        }
        match &record {
            Some(r) if r.leader.is_some() => {
                self.released = false;
                let ttl = r.ttl_or(own_ttl);
                self.silent_until = self.silent_until.max(at + ttl);
                self.last_ttl = Some(ttl);
                self.latest = r.number();
                self.marked = leader.is_some_and(|l| l.valid_holder().is_some());
                self.seen = Some(r.clone());
            }
            Some(r) => {
                // A holder that leaves its mark with every renewal also says so when it gives the lock up.
                let in_silence = !self.marked && self.seen.as_ref().is_some_and(|seen| r.is_release_of(seen));
                self.released = by_holder || in_silence || mutant::is(Mutant::BareObjectIsReleased);
                if !self.released {
                    self.fall_silent(at, own_ttl);
                }
            }
            None => {
                self.released = false;
                self.fall_silent(at, own_ttl);
                self.seen = None;
            }
        }
        self.paused = match leader.filter(|_| named) {
            Some(leader) => leader.valid_holder().is_some_and(|holder| holder.paused),
            // Whoever was named last writes on, unless it gave the lock up.
            None => self.paused && !self.released,
        };
        self.listed = match leader.filter(|_| named) {
            Some(leader) => leader.failsafe.clone(),
            None => self.listed.take().filter(|_| !self.released),
        };
        self.record = record;
        self.since = at;
        true
    }

    /// Whoever held the lock in maintenance has lost it, as it knows itself.
    pub fn forget_mark(&mut self) {
        self.paused = false;
    }

    /// The lock does not end by time.
    fn stays(&self) -> bool {
        self.paused && !mutant::is(Mutant::TakesPausedHolder)
    }

    /// A holder in maintenance mode has not been heard of for its ttl. It may be dead, or write on.
    pub fn silent_in_maintenance(&self, now: BootInstant, own_ttl: Duration) -> bool {
        let ttl = self.record.as_ref().map_or(own_ttl, |r| r.ttl_or(own_ttl));
        self.stays() && now > self.since + ttl
    }

    /// An old copy of an object that was released once, applied while a later acquisition stands, is no release of that.
    fn knows_later_than(&self, record: &LeaseRecord) -> bool {
        self.latest > record.number()
    }

    /// Nobody is named and nobody said why. The holder may have renewed up to this moment: views skip what was
    /// overwritten soon.
    fn fall_silent(&mut self, at: BootInstant, own_ttl: Duration) {
        let ttl = self.last_ttl.unwrap_or(own_ttl).max(own_ttl);
        self.silent_until = self.silent_until.max(at + ttl);
        self.hidden_until = self.hidden_until.max(at + ttl);
    }

    /// The verdict at `now`.
    pub fn verdict(&self, now: BootInstant, own_ttl: Duration) -> LeaseVerdict {
        match self.record.as_ref().and_then(|r| r.leader.as_ref()) {
            Some(who) if now > self.expires(own_ttl) => LeaseVerdict::Expired(who.clone()),
            Some(who) => LeaseVerdict::Held(who.clone()),
            None if self.released => LeaseVerdict::Released,
            None if self.record.is_none() && !mutant::is(Mutant::AbsenceIsVacancy) => LeaseVerdict::Absent,
            None if self.stays() => LeaseVerdict::Silence { until: self.since + NEVER },
            None if now >= self.silent_until || mutant::is(Mutant::SilenceCostsNothing) => LeaseVerdict::Vacant,
            None => LeaseVerdict::Silence { until: self.silent_until },
        }
    }

    /// What a takeover by time or by release must find.
    pub fn stood(&self) -> Stood {
        match (&self.record, &self.version) {
            (Some(record), _) if record.leader.is_some() || self.released => Stood::Record(record.clone()),
            (Some(_), Some(version)) => Stood::Untouched(version.clone()),
            (_, None) | (None, _) => Stood::Nothing,
        }
    }

    /// When the record that stands expires for this observer.
    pub fn expires(&self, own_ttl: Duration) -> BootInstant {
        match self.record.as_ref().filter(|r| r.leader.is_some()) {
            None => self.silent_until,
            Some(_) if self.stays() => self.since + NEVER,
            Some(_) if mutant::is(Mutant::IgnoresTheTtl) => self.since,
            Some(r) => self.since + r.ttl_or(own_ttl),
        }
    }
}

/// A lease of ours that the store has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLease {
    /// The record as confirmed.
    pub record: LeaseRecord,
    /// When the confirmed attempt was sent (or the failsafe round began): everything is counted from here.
    pub evidence: BootInstant,
    /// The ttl in force: that of the confirmed record, or a shorter one while an attempt with another ttl is unconfirmed.
    pub ttl: Duration,
    /// The confirmed record says that I am in maintenance mode: nobody takes it for silence.
    pub paused: bool,
    /// When the last round of questions began in which everybody who could race promised not to. It lets a primary go on as a
    /// renewal does, and starts none.
    pub prolonged: Option<BootInstant>,
}

impl OwnLease {
    /// What the deadlines of a running primary count from.
    pub fn runs_from(&self) -> BootInstant {
        self.prolonged.map_or(self.evidence, |at| at.max(self.evidence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HolderMark, Released};

    const TTL: Duration = Duration::from_secs(30);
    fn at(s: u64) -> BootInstant {
        BootInstant::from_nanos(s * 1_000_000_000)
    }
    fn record(leader: Option<&str>, renew: &str) -> LeaseRecord {
        LeaseRecord {
            leader: leader.map(MemberName::from),
            ttl: Some("30".into()),
            acquire_time: Some("a".into()),
            renew_time: Some(renew.into()),
            transitions: Some("1".into()),
        }
    }

    fn object(lease: LeaseRecord) -> LeaderRecord {
        LeaderRecord::of(Version("1".into()), lease)
    }

    #[test]
    fn never_takes_over_a_holder_that_keeps_renewing() {
        let mut t = LeaseTracker::new(at(0), TTL);
        for i in 0..100 {
            assert!(t.observe(Some(&object(record(Some("a"), &i.to_string()))), at(i * 10), TTL));
            assert_eq!(t.verdict(at(i * 10 + 10), TTL), LeaseVerdict::Held("a".into()));
        }
    }

    #[test]
    fn a_silent_holder_expires_after_its_own_ttl_by_our_clock() {
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&object(record(Some("a"), "x"))), at(5), TTL));
        assert!(
            !t.observe(Some(&object(record(Some("a"), "x"))), at(5), TTL),
            "a view of something else is no heartbeat"
        );
        assert_eq!(t.verdict(at(35), TTL), LeaseVerdict::Held("a".into()));
        assert_eq!(t.verdict(at(36), TTL), LeaseVerdict::Expired("a".into()));
    }

    #[test]
    fn a_released_lease_waits_for_nobody_but_a_vanished_one_costs_the_ttl() {
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&object(record(Some("a"), "x"))), at(100), TTL));
        assert!(t.observe(Some(&object(record(None, "x"))), at(105), TTL));
        assert_eq!(t.verdict(at(105), TTL), LeaseVerdict::Released);
        assert!(t.observe(None, at(106), TTL));
        assert_eq!(t.verdict(at(1000), TTL), LeaseVerdict::Absent, "nothing that is not there stands still");
        assert!(t.observe(Some(&object(LeaseRecord::default())), at(1000), TTL));
        assert_eq!(t.verdict(at(1001), TTL), LeaseVerdict::Silence { until: at(1030) });
        assert_eq!(t.verdict(at(1030), TTL), LeaseVerdict::Vacant);
        assert_eq!(t.stood(), Stood::Untouched(Version("1".into())));
    }

    #[test]
    fn an_object_that_names_nobody_and_is_touched_costs_the_ttl_again() {
        let bare = |version: &str| LeaderRecord::of(Version(version.into()), LeaseRecord::default());
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&bare("1")), at(10), TTL));
        assert!(!t.observe(Some(&bare("1")), at(10), TTL));
        assert!(t.observe(Some(&bare("2")), at(39), TTL), "somebody may have led in between");
        assert_eq!(t.verdict(at(41), TTL), LeaseVerdict::Silence { until: at(69) });
        assert_eq!(t.stood(), Stood::Untouched(Version("2".into())));
    }

    #[test]
    fn an_object_that_counts_its_holders_may_be_touched() {
        let mut t = LeaseTracker::new(at(0), TTL);
        let bare = |version: &str| LeaderRecord::of(Version(version.into()), record(None, "x"));
        assert!(t.observe(Some(&bare("1")), at(10), TTL));
        assert!(!t.observe(Some(&bare("2")), at(10), TTL), "nobody has taken it in between");
        assert_eq!(t.verdict(at(41), TTL), LeaseVerdict::Vacant);
        assert_eq!(t.stood(), Stood::Untouched(Version("2".into())), "what is taken is the version seen last");
    }

    #[test]
    fn silence_lasts_the_longer_of_the_own_ttl_and_that_of_the_last_holder() {
        let long = LeaseRecord { ttl: Some("100".into()), ..record(Some("a"), "x") };
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&object(long)), at(10), TTL));
        assert!(t.observe(None, at(20), TTL));
        assert!(t.observe(Some(&object(LeaseRecord::default())), at(30), TTL));
        assert_eq!(t.verdict(at(31), TTL), LeaseVerdict::Silence { until: at(130) });
    }

    #[test]
    fn a_process_that_just_started_waits_a_full_ttl_when_it_sees_nothing() {
        let mut t = LeaseTracker::new(at(50), TTL);
        assert_eq!(t.verdict(at(79), TTL), LeaseVerdict::Absent);
        assert!(t.observe(Some(&object(LeaseRecord::default())), at(51), TTL));
        assert_eq!(t.verdict(at(80), TTL), LeaseVerdict::Silence { until: at(81) });
        assert_eq!(t.verdict(at(81), TTL), LeaseVerdict::Vacant);
    }

    #[test]
    fn an_object_stripped_of_its_keys_or_made_anew_is_silence_not_a_release() {
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&object(record(Some("a"), "x"))), at(100), TTL));
        assert!(t.observe(Some(&object(LeaseRecord::default())), at(105), TTL));
        assert_eq!(t.verdict(at(106), TTL), LeaseVerdict::Silence { until: at(135) }, "stripped");
        assert!(t.observe(Some(&object(record(Some("a"), "y"))), at(110), TTL));
        assert!(t.observe(None, at(111), TTL));
        assert!(t.observe(Some(&object(record(None, "y"))), at(112), TTL));
        assert_eq!(t.verdict(at(113), TTL), LeaseVerdict::Silence { until: at(142) }, "an old copy applied anew");
        assert_eq!(t.verdict(at(142), TTL), LeaseVerdict::Vacant);
    }

    #[test]
    fn a_record_without_its_leader_is_a_release_only_of_the_acquisition_that_was_seen() {
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&object(record(None, "x"))), at(1), TTL));
        assert_eq!(t.verdict(at(2), TTL), LeaseVerdict::Silence { until: at(31) }, "none was seen before");
        assert!(t.observe(Some(&object(record(Some("a"), "x"))), at(40), TTL));
        assert!(t.observe(Some(&object(record(None, "z"))), at(41), TTL));
        assert_eq!(t.verdict(at(41), TTL), LeaseVerdict::Released, "a later renewal that this view has skipped");
        let other = LeaseRecord { transitions: Some("7".into()), ..record(None, "x") };
        assert!(t.observe(Some(&object(other)), at(42), TTL));
        assert_eq!(t.verdict(at(43), TTL), LeaseVerdict::Silence { until: at(72) }, "a restored store");
    }

    #[test]
    fn a_release_in_the_words_of_its_holder_needs_nothing_that_was_seen_before() {
        let mark =
            |transitions: &str| Released { acquire_time: "a".into(), transitions: transitions.into(), shutdown: None };
        let holder = HolderMark { acquire_time: "a".into(), renew_time: "x".into(), ..HolderMark::default() };
        let said = |transitions| LeaderRecord {
            holder: Some(holder.clone()),
            released: Some(mark(transitions)),
            ..object(record(None, "x"))
        };
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&said("1")), at(1), TTL));
        assert_eq!(t.verdict(at(1), TTL), LeaseVerdict::Released);
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&said("0")), at(1), TTL));
        assert_eq!(t.verdict(at(1), TTL), LeaseVerdict::Silence { until: at(31) }, "words about an older acquisition");
    }

    #[test]
    fn what_came_and_went_while_nobody_looked_costs_the_ttl_again() {
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&object(LeaseRecord::default())), at(1), TTL));
        assert_eq!(t.verdict(at(40), TTL), LeaseVerdict::Vacant);
        assert!(t.observe(Some(&object(LeaseRecord::default())), at(41), TTL), "a list after a gap, and still nobody");
        assert_eq!(t.verdict(at(42), TTL), LeaseVerdict::Silence { until: at(71) });
        assert!(t.observe(Some(&object(record(Some("a"), "x"))), at(80), TTL));
        assert!(
            t.observe(Some(&object(record(Some("a"), "x"))), at(120), TTL),
            "an old copy, others held it meanwhile"
        );
        assert_eq!(t.verdict(at(121), TTL), LeaseVerdict::Held("a".into()));
    }

    #[test]
    fn an_old_release_applied_over_a_later_acquisition_is_silence() {
        let words = Released { acquire_time: "a".into(), transitions: "1".into(), shutdown: None };
        let mark =
            |renew: &str| HolderMark { acquire_time: "a".into(), renew_time: renew.into(), ..HolderMark::default() };
        let old = LeaderRecord { holder: Some(mark("x")), released: Some(words), ..object(record(None, "x")) };
        let later = LeaseRecord { transitions: Some("2".into()), ..record(Some("b"), "y") };
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&object(later)), at(50), TTL));
        assert!(t.observe(Some(&old), at(52), TTL));
        assert_eq!(t.verdict(at(53), TTL), LeaseVerdict::Silence { until: at(82) });
    }

    #[test]
    fn a_marked_holder_gives_the_lock_up_in_words_only() {
        let mark = HolderMark { acquire_time: "a".into(), renew_time: "x".into(), ..HolderMark::default() };
        let marked = LeaderRecord { holder: Some(mark), ..object(record(Some("a"), "x")) };
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(&marked), at(50), TTL));
        assert!(t.observe(Some(&object(record(None, "x"))), at(52), TTL));
        assert_eq!(t.verdict(at(53), TTL), LeaseVerdict::Silence { until: at(82) }, "a tool took the name out");
    }
}
