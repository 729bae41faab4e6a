//! The number of the next promotion, beside the lease.

use super::*;

/// A standby cluster's leader promotes nothing: the number its lock was taken with is spent, and stays known.
#[test]
fn a_spent_number_stays_known_and_is_nobodys() {
    let mut w = World::leading();
    let renews_with = |w: &mut World, claim, now: Now| {
        w.start(Job::Renew { status: LeaderStatus::default(), fulfilled: false, claim }, now);
        let (id, Effect::WriteLeader(write)) = w.take(true) else { panic!() };
        let stood = w.stored.as_ref().and_then(|l| l.claim.clone());
        assert_eq!(w.apply(&write), LeaderWritten::Wrote);
        let stored = w.stored.as_mut().unwrap();
        stored.claim = if let Change::Set(claim) = write.claim { Some(claim) } else { stood };
        assert!(matches!(w.answer(id, LeaderWritten::Wrote, now), Some(JobEnd::Written { .. })));
        w.see();
        w.stored.as_ref().map(|l| (l.claim.as_ref().map(|c| c.timeline.0), l.claimed_timeline()))
    };
    let Change::Set(two) = claim_of(&w.stands(), Timeline(2)) else { panic!() };
    w.stored.as_mut().unwrap().claim = Some(two);
    w.see();
    assert_eq!(renews_with(&mut w, Claim::Keep, ms(1000)), Some((Some(2), Some(Timeline(2)))));
    assert_eq!(renews_with(&mut w, Claim::Spend, ms(2000)), Some((Some(2), None)));
    assert_eq!(renews_with(&mut w, Claim::Spend, ms(3000)), Some((Some(2), None)));
}
