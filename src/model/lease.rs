//! The lease: what is written, how an observer judges it, and what its holder may count on (design §4).
//!
//! Nobody parses another member's timestamp. An observer counts `ttl` of its own clock from the moment it *received* the
//! last change of the five keys; the holder counts from the moment it *sent* the renewal that was confirmed.

use std::time::Duration;

use super::{BootInstant, MemberName};

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
    /// The ttl of the record; missing, unparsable or 0 = the reader's own (kubernetes-objects §1.1). The record has
    /// configured seconds; in builds with `test-time-scale` each of them is shorter.
    pub fn ttl_or(&self, own: Duration) -> Duration {
        match self.ttl.as_deref().and_then(|t| t.trim().parse::<u64>().ok()) {
            None | Some(0) => own,
            Some(secs) => Duration::from_secs(secs.min(u64::from(u32::MAX))).mul_f64(super::time_scale()),
        }
    }
    /// The `transitions` that a new acquirer writes (kubernetes-objects §4.2).
    pub fn next_transitions(&self) -> u64 {
        self.transitions.as_deref().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0) + 1
    }
}

/// What an observer remembers of the leader object: the last record and when it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTracker {
    /// The last record seen; `None` while the object does not exist.
    pub record: Option<LeaseRecord>,
    /// When the record above was received first, by our clock. At the start of the process: the start.
    pub since: BootInstant,
    /// Until when the last record *with a holder* counts. It outlives a vanished object: a wiped store is silence, and
    /// silence costs the full ttl.
    pub silent_until: BootInstant,
}

/// What an observer may conclude from the leader object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseVerdict {
    /// Somebody holds it, as far as we can know.
    Held(MemberName),
    /// The object is there and names nobody: released. Nothing has to be waited for.
    Released,
    /// The holder was silent for its ttl.
    Expired(MemberName),
    /// No holder known, and a full ttl has not passed yet since the last one could have been there.
    Silence {
        /// When the silence may be taken for an empty throne.
        until: BootInstant,
    },
    /// No object, no record for a full ttl.
    Vacant,
}

impl LeaseTracker {
    /// At process start: nothing seen yet, so a full ttl has to pass (design §4, "process just started").
    pub fn new(now: BootInstant, ttl: Duration) -> Self {
        LeaseTracker { record: None, since: now, silent_until: now + ttl }
    }

    /// Takes in what was received at `at`. Returns true if the record changed.
    #[must_use]
    pub fn observe(&mut self, record: Option<LeaseRecord>, at: BootInstant, own_ttl: Duration) -> bool {
        if self.record == record {
            return false;
        }
        if let Some(r) = record.as_ref().filter(|r| r.leader.is_some()) {
            self.silent_until = self.silent_until.max(at + r.ttl_or(own_ttl));
        } else if let (None, Some(old)) = (&record, &self.record) {
            self.silent_until = self.silent_until.max(at + old.ttl_or(own_ttl));
        }
        self.record = record;
        self.since = at;
        true
    }

    /// The verdict at `now`.
    pub fn verdict(&self, now: BootInstant, own_ttl: Duration) -> LeaseVerdict {
        match &self.record {
            None if now >= self.silent_until => LeaseVerdict::Vacant,
            None => LeaseVerdict::Silence { until: self.silent_until },
            Some(r) => match &r.leader {
                None => LeaseVerdict::Released,
                Some(who) if now > self.expires(own_ttl) => LeaseVerdict::Expired(who.clone()),
                Some(who) => LeaseVerdict::Held(who.clone()),
            },
        }
    }

    /// When the record that stands expires for this observer.
    pub fn expires(&self, own_ttl: Duration) -> BootInstant {
        match &self.record {
            None => self.silent_until,
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
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn never_takes_over_a_holder_that_keeps_renewing() {
        let mut t = LeaseTracker::new(at(0), TTL);
        for i in 0..100 {
            assert!(t.observe(Some(record(Some("a"), &i.to_string())), at(i * 10), TTL));
            assert_eq!(t.verdict(at(i * 10 + 10), TTL), LeaseVerdict::Held("a".into()));
        }
    }

    #[test]
    fn a_silent_holder_expires_after_its_own_ttl_by_our_clock() {
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(record(Some("a"), "x")), at(5), TTL));
        assert!(!t.observe(Some(record(Some("a"), "x")), at(34), TTL), "the same record is not a heartbeat");
        assert_eq!(t.verdict(at(35), TTL), LeaseVerdict::Held("a".into()));
        assert_eq!(t.verdict(at(36), TTL), LeaseVerdict::Expired("a".into()));
    }

    #[test]
    fn a_released_lease_waits_for_nobody_but_a_vanished_one_costs_the_ttl() {
        let mut t = LeaseTracker::new(at(0), TTL);
        assert!(t.observe(Some(record(Some("a"), "x")), at(100), TTL));
        assert!(t.observe(Some(record(None, "x")), at(105), TTL));
        assert_eq!(t.verdict(at(105), TTL), LeaseVerdict::Released);
        assert!(t.observe(None, at(106), TTL));
        assert_eq!(t.verdict(at(107), TTL), LeaseVerdict::Silence { until: at(136) });
        assert_eq!(t.verdict(at(136), TTL), LeaseVerdict::Vacant);
    }

    #[test]
    fn a_process_that_just_started_waits_a_full_ttl_when_it_sees_nothing() {
        let t = LeaseTracker::new(at(50), TTL);
        assert_eq!(t.verdict(at(79), TTL), LeaseVerdict::Silence { until: at(80) });
        assert_eq!(t.verdict(at(80), TTL), LeaseVerdict::Vacant);
    }
}
