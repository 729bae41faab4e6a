//! Promises to a holder of the lock that cannot reach the store.

use super::*;

/// A standby that follows b.
fn standby() -> Trial {
    let mut t = Trial::new(|f| f.settings = Arc::new(Settings { failsafe: true, ..Settings::default() }));
    let lease = LeaseRecord { leader: Some("b".into()), ..released().lease };
    t.feed(view(Some(LeaderRecord::of(Version("l1".into()), lease))), 1.0);
    t
}

fn asks(t: &mut Trial, from: &str, asked: Addressee, secs: f64) -> (u16, String) {
    let ticket = Ticket(7);
    t.feed(Input::Asked { ticket, command: Command::Failsafe { from: from.into(), asked } }, secs);
    let answer = t.sent.iter().position(|s| matches!(s.effect, Effect::Answer { .. })).unwrap();
    match t.sent.remove(answer).effect {
        Effect::Answer { status, text, .. } => (status, text),
        other => panic!("{other:?}"),
    }
}

fn whom(name: &str, uid: &str) -> Addressee {
    Addressee { name: Some(name.into()), uid: Some(uid.to_owned()) }
}

/// An address may have passed on to another pod: what that one promises keeps nobody from racing.
#[test]
fn only_who_is_asked_promises() {
    let mut t = standby();
    for other in [whom("c", "uid-c"), whom("a", "uid-of-the-pod-before"), Addressee { uid: None, ..whom("c", "") }] {
        let (status, text) = asks(&mut t, "b", other, 2.0);
        assert_eq!(status, 500, "{text}");
        assert!(text.ends_with("is asked, this is a (pod uid-a)"), "{text}");
        assert!(t.member.snapshot().failsafe_active.eq(&false), "nothing is promised");
    }
    assert_eq!(asks(&mut t, "b", whom("a", "uid-a"), 3.0), (200, "Accepted".to_owned()));
    assert!(t.member.snapshot().failsafe_active);
}

/// A Patroni member does not say whom it asks.
#[test]
fn whoever_does_not_say_whom_it_asks_means_me() {
    assert_eq!(asks(&mut standby(), "b", Addressee::default(), 2.0).0, 200);
}

/// Two holders are never promised the same lock.
#[test]
fn a_promise_is_given_to_one() {
    let mut t = standby();
    assert_eq!(asks(&mut t, "c", whom("a", "uid-a"), 2.0), (500, "b holds the lock".to_owned()));
    assert_eq!(asks(&mut t, "b", whom("a", "uid-a"), 3.0).0, 200);
    let (status, text) = asks(&mut t, "c", whom("a", "uid-a"), 32.0);
    assert_eq!((status, text.as_str()), (500, "b was promised that it keeps the lock"), "b is silent by now");
}
