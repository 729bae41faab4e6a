//! Orders that come to nothing: who may write all the same, and when they are given again.

use super::*;

/// A keeper was killed while its Postgres was deaf. The next one finds the data directory in use, for longer than any failure
/// is waited for: what works there writes under this lock.
#[test]
fn a_data_directory_in_use_is_no_failed_start_and_keeps_the_lock() {
    let DataDir::Present { control: Some(control), .. } = standby_data() else { panic!("made above") };
    let control = ControlData { state: ClusterState::InProduction, ..control };
    let data = DataDir::Present { control: Some(control), standby_signal: false };
    let start = |e: &Effect| matches!(e, Effect::Start { .. });
    let renewal = |e: &Effect| matches!(e, Effect::WriteLeader(_));
    let mut t = Trial::new(|_| {});
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    t.feed(view(Some(of_an_earlier_life())), 1.0);
    t.looks(1.1, &data, None);
    t.answer(1.2, Answer::LeaderWritten(LeaderWritten::Wrote), renewal);
    let mut tries = 0;
    for tenth in 13..1200 {
        let secs = f64::from(tenth) / 10.0;
        t.feed(Input::Due, secs);
        t.looks(secs, &data, None);
        while t.has(permit) {
            t.answer(secs, Answer::Kept, permit);
        }
        while let Some(sent) = t.sent.iter().find(|s| renewal(&s.effect)) {
            let Effect::WriteLeader(write) = &sent.effect else { unreachable!() };
            assert_eq!(write.record.leader, Some("a".into()), "released at {secs}");
            t.answer(secs, Answer::LeaderWritten(LeaderWritten::Wrote), renewal);
        }
        if t.has(start) {
            tries += 1;
            let id = t.take(&start);
            t.feed(Input::Reply { id, answer: Err(Fail::InUse("a postmaster (pid 77) runs there".into())) }, secs);
        }
    }
    assert!((10..40).contains(&tries), "tried again, with pauses: {tries}");
    let pg = &t.member.state.local.postgres;
    assert_eq!((pg.failed_starts, &pg.state), (0, &PostgresState::Stopped));
    let said = format!("{:?}", t.lines);
    assert!(said.contains("pid 77") && said.contains("kill -QUIT"), "{said}");
    // Free at last.
    for tenth in 1200..1400 {
        t.feed(Input::Due, f64::from(tenth) / 10.0);
        if t.has(start) {
            break;
        }
    }
    let started = StartEnd::Started { pending: BTreeMap::new(), fence: Fence::Full };
    t.answer(140.1, Answer::Started(started), start);
    assert!(t.member.snapshot().alive && t.member.state.local.deadman.in_use.is_none());
}

/// The store answers whoever reads its lock or renews it, and the keeper whoever permits.
fn lease_goes_on(t: &mut Trial, secs: f64) {
    let renewal = |e: &Effect| matches!(e, Effect::WriteLeader(w) if w.record.leader.is_some());
    let read = |e: &Effect| matches!(e, Effect::ReadLeader);
    let permits = |e: &Effect| matches!(e, Effect::Permit { .. });
    for _ in 0..20 {
        let own = t.member.state.local.own.clone();
        match own {
            Some(own) if t.has(read) => {
                let stands = LeaderRecord::of(Version("l2".into()), own.record);
                t.answer(secs, Answer::Leader(Ok(Some(Box::new(stands)))), read);
            }
            _ if t.has(renewal) => t.answer(secs, Answer::LeaderWritten(LeaderWritten::Wrote), renewal),
            _ if t.has(permits) => t.answer(secs, Answer::Kept, permits),
            _ => return,
        }
    }
}

/// The answers to three orders to promote are late: any of them may be carried out at any moment.
#[test]
fn a_lock_is_not_given_up_under_a_postgres_that_was_ordered_to_promote() {
    let mut t = holding(|_| {});
    let release = |e: &Effect| matches!(e, Effect::WriteLeader(w) if w.record.leader.is_none());
    let stop = |e: &Effect| matches!(e, Effect::Stop { mode: StopMode::Immediate });
    let (mut orders, mut secs) = (0, 1.7);
    while !t.has(stop) && secs < 60.0 {
        secs += 0.1;
        t.feed(Input::Due, secs);
        t.looks(secs, &standby_data(), Some(&probe(true)));
        lease_goes_on(&mut t, secs);
        assert!(!t.has(release), "released at {secs} s, after {orders} orders: {:?}", t.lines.last());
        if t.has(promote) {
            orders += 1;
            let id = t.take(&promote);
            t.feed(Input::Reply { id, answer: Err(Fail::Interrupted) }, secs);
        }
    }
    assert_eq!(orders, 3);
    t.answer(secs, Answer::Kept, stop);
    t.feed(Input::Due, secs + 0.1);
    assert!(!t.has(release), "a stop that has begun is not enough");
    t.feed(Input::Keeper(News::Died { how: "exit code 2".into(), at: at(secs + 0.2).boot }), secs + 0.2);
    for _ in 0..20 {
        secs += 0.1;
        t.feed(Input::Due, secs + 0.2);
        t.looks(secs + 0.2, &standby_data(), None);
        lease_goes_on(&mut t, secs + 0.2);
    }
    assert!(t.has(release), "{:#?}\n{:#?}", t.effects(), t.lines);
}

/// The store's answer and the view differ, and nothing names anybody: neither reads nor writes follow each other at once.
#[test]
fn what_was_lost_to_nobody_is_not_tried_again_at_once() {
    let read = |e: &Effect| matches!(e, Effect::ReadLeader);
    let mut t = racing(|_| {});
    let mut other = released();
    other.lease.renew_time = Some("r9".into());
    let mut reads = 0;
    for hundredth in 160..460 {
        let secs = f64::from(hundredth) / 100.0;
        t.feed(Input::Due, secs);
        t.looks(secs, &standby_data(), Some(&probe(true)));
        while t.has(|e| matches!(e, Effect::AskPeers { .. })) {
            let answers = [("b".into(), PeerAnswer::Unreachable("gone".into()))].into();
            t.answer(secs, Answer::Peers(answers), |e| matches!(e, Effect::AskPeers { .. }));
        }
        if t.has(read) {
            reads += 1;
            t.answer(secs, Answer::Leader(Ok(Some(Box::new(other.clone())))), read);
        }
    }
    assert!((2..=4).contains(&reads), "{reads} reads in three seconds");
}

#[test]
fn a_leader_object_that_is_made_in_conflict_is_not_made_again_at_once() {
    let make = |e: &Effect| matches!(e, Effect::WriteStore(StoreWrite::LeaderObject));
    let mut t = Trial::new(|_| {});
    t.feed(Input::Keeper(News::Met(Standing { postgres: Some(StartRole::Standby), ..Standing::default() })), 0.5);
    t.feed(view(None), 1.0);
    let mut writes = 0;
    for hundredth in 100..2000 {
        let secs = f64::from(hundredth) / 100.0;
        t.feed(Input::Due, secs);
        t.looks(secs, &standby_data(), Some(&probe(true)));
        if t.has(make) {
            writes += 1;
            t.answer(secs, Answer::Written(WriteResult::Conflict), make);
        }
    }
    assert!((10..=45).contains(&writes), "{writes} writes in nine seconds");
}

/// In the middle of a hand-over the keeper is killed, and its Postgres hears nothing of that: the one that comes after it knows
/// of no Postgres, which proves nothing. Trying to start one does.
#[test]
fn what_a_killed_keeper_leaves_is_not_dead_before_a_start_has_tried_the_directory() {
    for apart in [false, true] {
        let mut t = holding(|f| f.separate_container = apart);
        t.answer(1.8, Answer::Kept, permit);
        t.answer(1.9, Answer::Kept, promote);
        t.looks(2.0, &standby_data(), Some(&probe(false)));
        t.feed(Input::Due, 2.3);
        t.looks(2.3, &standby_data(), Some(&probe(false)));
        t.member.state.local.handover = Some(Handover {
            candidate: None,
            why: "switchover",
            began: at(2.3).boot,
            checkpoint_done: true,
            in_any_case: true,
            stopped: None,
        });
        t.feed(Input::Due, 2.4);
        t.feed(Input::Keeper(News::Lost("it was killed".into())), 2.5);
        t.sent.retain(|s| !matches!(s.effect, Effect::Permit { .. }));
        t.feed(Input::Keeper(News::Met(Standing::default())), 2.6);
        let DataDir::Present { control: Some(control), .. } = standby_data() else { panic!("made above") };
        let control = ControlData { state: ClusterState::InProduction, timeline: Timeline(2), ..control };
        let data = DataDir::Present { control: Some(control), standby_signal: false };
        let release = |e: &Effect| matches!(e, Effect::WriteLeader(w) if w.record.leader.is_none());
        let (mut released, mut started) = (false, false);
        for tenth in 27..100 {
            let secs = f64::from(tenth) / 10.0;
            t.feed(Input::Due, secs);
            t.looks(secs, &data, None);
            lease_goes_on(&mut t, secs);
            released |= t.has(release);
            started |= t.has(|e| matches!(e, Effect::Start { .. }));
        }
        assert_eq!((released, started), (apart, !apart), "in a container of its own: {apart}; {:#?}", t.lines);
    }
}

/// A sidecar that was killed alone is back before Kubernetes shows its new container: its first renewal names none.
#[test]
fn containers_that_are_shown_later_are_named_at_once_and_once() {
    let mut t = Trial::new(|_| {});
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    t.feed(view(Some(of_an_earlier_life())), 1.0);
    let DataDir::Present { control: Some(control), .. } = standby_data() else { panic!("made above") };
    let control = ControlData { state: ClusterState::InProduction, ..control };
    t.looks(1.1, &DataDir::Present { control: Some(control), standby_signal: false }, None);
    let renewal = |e: &Effect| matches!(e, Effect::WriteLeader(_));
    let shown = |t: &mut Trial, named: bool, containers: &[&str], secs: f64| {
        let place = t.sent.iter().position(|s| renewal(&s.effect)).expect("a renewal");
        let Sent { id, effect: Effect::WriteLeader(write), .. } = t.sent.remove(place) else { panic!("just looked") };
        t.feed(Input::Reply { id, answer: Ok(Answer::LeaderWritten(LeaderWritten::Wrote)) }, secs);
        let ids = containers.iter().map(|c| ((*c).to_owned(), format!("id-{c}"))).collect();
        let mut seen = of_an_earlier_life();
        (seen.version, seen.lease) = (Version(format!("l{secs}")), write.record.clone());
        seen.holder = write.holder.clone().map(|h| HolderMark { containers: ids, ..h });
        let Input::View(view) = view(Some(seen)) else { panic!("made above") };
        let me = OwnPod { named, ..view.me.clone() };
        t.feed(Input::View(Arc::new(View { me, ..(*view).clone() })), secs + 0.1);
    };
    shown(&mut t, false, &[], 1.2);
    assert!(!t.has(renewal), "they are not known yet: {:#?}", t.effects());
    t.feed(Input::Due, 11.3);
    shown(&mut t, true, &[], 11.4);
    assert!(t.has(renewal), "{:#?}", t.lines);
    shown(&mut t, true, &[], 11.6);
    assert!(!t.has(renewal), "once is enough, whatever became of it");
    t.feed(Input::Due, 21.8);
    shown(&mut t, true, &["patroni", "postgres"], 21.9);
    assert!(!t.has(renewal), "the next one named them");
}
