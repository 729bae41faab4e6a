//! A store that answers reads and refuses every write, for longer than a lease lasts: in maintenance mode the lock stands all
//! the same, and its holder has to know it again.

use super::*;

impl World {
    fn job(&mut self, job: Job, paused: bool, now: Now) {
        let (own, failsafe) = (self.own.clone(), Change::Keep);
        let start = Start { job, ttl: TTL, deadline: DEADLINE, own, paused, site: None, failsafe };
        self.with(now, |lease, cluster, now, ids| lease.start(start, cluster, now, ids));
    }

    /// Holds a lock that says that its holder is in maintenance mode.
    fn paused() -> World {
        let mut w = World::leading();
        w.job(Job::Renew { status: LeaderStatus::default(), fulfilled: false, claim: Claim::Keep }, true, ms(0));
        let id = w.land();
        let end = w.answer(id, LeaderWritten::Wrote, ms(5));
        assert!(matches!(end, Some(JobEnd::Written { .. })), "{end:?}");
        w.see();
        w
    }

    /// Renews in vain until so many attempts were made. Returns how the last job ended.
    fn renews_in_vain(&mut self, paused: bool, attempts: usize) -> Option<JobEnd> {
        let (before, mut t, mut last) = (self.emitted.len(), 1000, None);
        while self.emitted.len() < before + attempts {
            if !self.lease.busy() {
                let job = Job::Renew { status: LeaderStatus::default(), fulfilled: false, claim: Claim::Keep };
                self.job(job, paused, ms(t));
            }
            last = self.due(ms(t)).or(last);
            while self.writes() > 0 {
                let end = self.answer_write(LeaderWritten::Refused("quota exceeded".into()), ms(t));
                assert_eq!(end, None);
            }
            while self.reads() > 0 {
                let end = self.answer_read(ms(t));
                assert_eq!(end, None);
            }
            t += 50;
        }
        last
    }
}

#[test]
fn a_lock_of_maintenance_is_known_again_however_many_attempts_were_refused() {
    let mut w = World::paused();
    let stands = w.stands();
    let end = w.renews_in_vain(false, 3 * ATTEMPTS_MAX);
    assert_eq!(end, written(stands.clone(), ms(0)), "the record that stands, since when it stands");
    assert!(w.lease.attempted(&stands) && w.lease.says_paused(&stands));
    assert_eq!(w.lease.attempts.len(), ATTEMPTS_MAX);
}

#[test]
fn a_forgotten_attempt_that_says_nothing_of_maintenance_may_still_land() {
    let mut w = World::paused();
    w.renews_in_vain(true, 2 * ATTEMPTS_MAX);
    assert!(w.lease.says_nothing_else());
    w.due(ms(1_000_000));
    w.renews_in_vain(false, 1);
    w.due(ms(2_000_000));
    w.renews_in_vain(true, 2 * ATTEMPTS_MAX);
    assert!(!w.lease.says_nothing_else(), "one of them does, whether it is remembered or not");
}
