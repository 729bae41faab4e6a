//! Wardens: when their timer is set and who waits for it, and what becomes of the postmaster when one is stuck or gone.

use super::*;
use crate::keeper::protocol::Fence;

/// The timer of a permission that is to stop it at this second.
fn timer(stop_at: u64) -> Option<u64> {
    Some((stop_at + 2) * SECOND - SECOND / 2)
}

#[test]
fn the_timer_is_set_before_a_primary_starts_and_anew_with_each_permission() {
    let mut w = World::new();
    w.at(10).writer(20);
    w.start(Role::Primary, 10 * SECOND);
    w.spawn();
    assert_eq!(w.armed, [timer(30)]);
    assert_eq!(w.at(20).writer(20), Some(Answer::Done));
    assert_eq!(w.armed, [timer(30), timer(40)]);
    w.at(25).permit(Permission::None);
    assert_eq!(w.armed.len(), 2, "whoever takes the permission back leaves the timer as it is");
}

#[test]
fn a_timer_that_is_moved_earlier_is_waited_for_and_one_that_is_moved_later_is_not() {
    let mut w = World::up(Role::Primary);
    assert_eq!(w.at(10).writer(50), Some(Answer::Done));
    w.stuck = true;
    assert_eq!(w.at(11).writer(55), Some(Answer::Done), "it fires too early rather than too late");
    assert_eq!(w.at(12).writer(20), None, "a shorter lease: nothing in the kernel ends it in time yet");
    w.feed(In::Armed { warden: WARDEN, at: timer(32) });
    assert_eq!(w.answer(w.ids), Some(Answer::Done));
}

#[test]
fn standbys_and_the_unfenced_have_no_timer() {
    let mut w = World::up(Role::Standby);
    w.at(2).facts(ControlState::InRecovery, true);
    w.writer(20);
    assert_eq!(w.armed, [None]);
    let mut w = World::up(Role::Primary);
    assert_eq!(w.at(10).writer(20), Some(Answer::Done));
    assert_eq!(w.armed, [None, timer(30)]);
    w.at(11).permit(UNFENCED);
    assert_eq!(w.armed.last(), Some(&None));
}

#[test]
fn a_promotion_begins_when_the_timer_is_set_and_not_before() {
    let mut w = World::up(Role::Standby);
    w.stuck = true;
    w.at(2).facts(ControlState::InRecovery, true);
    w.writer(20);
    let asked = w.ask(1, Ask::Promote { renewal: 2 * SECOND });
    assert_eq!((asked, w.armed.last()), (None, Some(&timer(22))));
    let writes = |w: &World| w.out.iter().any(|o| matches!(o, Out::WritePromote { .. }));
    assert!(!writes(&w));
    w.feed(In::Armed { warden: WARDEN, at: None });
    assert!(!writes(&w), "the answer to an earlier order");
    w.feed(In::Armed { warden: WARDEN, at: timer(22) });
    assert!(writes(&w));

    let mut w = World::up(Role::Standby);
    w.stuck = true;
    w.at(2).facts(ControlState::InRecovery, true);
    w.writer(20);
    w.ask(1, Ask::Promote { renewal: 2 * SECOND });
    assert!(w.core.wake(w.now) <= 3 * SECOND);
    w.at(3).feed(In::Due);
    assert_eq!(class(w.answer(w.ids)), Refusal::Other, "a warden that does not answer holds nobody for ever");
    assert!(!writes(&w) && w.armed.last() == Some(&None), "{:?}", w.armed);
    assert_eq!(w.kills(), [(Target::Warden(WARDEN), StopMode::Kill)], "and Postgres begins again with another");
}

#[test]
fn a_permission_that_ends_an_unfenced_run_is_answered_when_the_timer_is_set() {
    let mut w = World::up(Role::Primary);
    w.stuck = true;
    assert_eq!(w.at(10).writer(20), None);
    let first = w.ids;
    w.feed(In::Armed { warden: WARDEN, at: timer(30) });
    assert_eq!(w.answer(first), Some(Answer::Done));
    assert_eq!(w.at(20).writer(20), Some(Answer::Done), "one that is set already fires too early, never too late");

    let mut w = World::up(Role::Primary);
    w.stuck = true;
    w.at(10).writer(20);
    let first = w.ids;
    assert_eq!(w.permit(Permission::None), Some(Answer::Done));
    assert_eq!(class(w.answer(first)), Refusal::NotPermitted, "answers come in the order of their requests");
}

#[test]
fn a_postmaster_without_its_warden_is_stopped_and_killed() {
    let mut w = World::up(Role::Standby);
    w.at(2).facts(ControlState::InRecovery, true);
    w.at(5).feed(In::Reaped { pid: WARDEN, end: End::Signal(9) });
    assert_eq!(w.kills(), [STOPPED]);
    w.at(7).feed(In::Due);
    assert_eq!(w.kills(), [(Target::Tree(PID), StopMode::Kill)]);
    w.feed(In::Reaped { pid: PID, end: End::Signal(9) });
    w.left(false, &[]);
    assert!(w.events().iter().any(|e| matches!(e, Event::Exited { .. })));
}

#[test]
fn a_warden_that_does_not_let_go_of_a_dead_postmaster_is_ended() {
    let mut w = World::up(Role::Primary);
    w.at(5).feed(In::Ended { pid: PID });
    assert_eq!(w.kills(), []);
    assert_eq!(w.core.wake(w.now), 6 * SECOND);
    w.at(6).feed(In::Due);
    assert_eq!(w.kills(), [(Target::Warden(WARDEN), StopMode::Kill)]);
    w.feed(In::Reaped { pid: WARDEN, end: End::Signal(9) });
    w.feed(In::Reaped { pid: PID, end: End::Code(2) });
    w.left(false, &[]);
    assert_eq!(w.events(), [Event::Exited { how: "exit code 2".into(), at: 6 * SECOND }]);
}

#[test]
fn a_start_that_hangs_ends_with_its_permission_and_so_does_whatever_it_made() {
    let begin = |w: &mut World| {
        w.at(10).writer(20);
        w.start(Role::Primary, 10 * SECOND);
        let Some(Out::Spawn { ticket, .. }) = w.out.iter().find(|o| matches!(o, Out::Spawn { .. })).cloned() else {
            panic!()
        };
        w.feed(In::Warded { ticket, warden: WARDEN });
    };
    let mut w = World::new();
    begin(&mut w);
    w.at(12).permit(Permission::None);
    assert_eq!(w.kills(), [(Target::Warden(WARDEN), StopMode::Kill)]);

    let mut w = World::new();
    begin(&mut w);
    w.at(20).feed(In::Due);
    assert_eq!(
        w.kills(),
        [(Target::Warden(WARDEN), StopMode::Kill)],
        "ten seconds are enough for any volume that answers"
    );
    let asked = w.ids;
    w.feed(In::Reaped { pid: WARDEN, end: End::Signal(9) });
    assert_eq!(class(w.answer(asked)), Refusal::Other);
    assert!(w.out.contains(&Out::LookLeft), "a postmaster may have been made that nobody has reported");
    w.left(true, &[]);
    assert_eq!(w.kills(), [(Target::Orphans, StopMode::Kill)]);
    w.at(21).left(false, &[]);
    assert_eq!(w.start(Role::Standby, 0), None);
}

#[test]
fn only_a_postmaster_that_hears_of_its_wardens_death_has_the_full_fence() {
    assert_eq!(World::up(Role::Primary).hello(2).postgres.unwrap().fence, Fence::Full);
    let mut w = World::new();
    w.permit(UNFENCED);
    w.start(Role::Primary, 0);
    let Some(Out::Spawn { ticket, .. }) = w.out.iter().find(|o| matches!(o, Out::Spawn { .. })).cloned() else {
        panic!()
    };
    w.feed(In::Warded { ticket, warden: WARDEN });
    w.feed(In::Started { ticket, result: Ok(Started { pid: PID, hears: false }) });
    assert_eq!(w.hello(2).postgres.unwrap().fence, Fence::Partial);
}

#[test]
fn a_session_that_was_told_of_a_start_hears_that_it_failed() {
    let mut w = World::new();
    w.permit(UNFENCED);
    w.start(Role::Primary, 0);
    let Some(Out::Spawn { ticket, .. }) = w.out.iter().find(|o| matches!(o, Out::Spawn { .. })).cloned() else {
        panic!()
    };
    w.feed(In::Warded { ticket, warden: WARDEN });
    assert!(w.hello(2).postgres.is_some());
    w.out.clear();
    w.feed(In::Started { ticket, result: Err("the volume is gone".to_owned().into()) });
    assert_eq!(w.events(), [Event::Exited { how: "the volume is gone".into(), at: SECOND }]);
}
