//! The machine fed by hand: what goes out, what waits, what a lost answer means.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for the effects it is about")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Member;
use super::*;
use crate::model::*;

mod failsafe;
mod orders;

const SYSTEM: &str = "7439021837465564321";

fn at(secs: f64) -> Now {
    Now { boot: BootInstant::from_secs_f64(1000.0 + secs), wall: WallTime((1_790_000_000.0 + secs) as i64 * 1_000_000) }
}

fn in_force(edit: impl FnOnce(&mut InForce)) -> Arc<InForce> {
    let mut f = InForce {
        settings: Arc::new(Settings::default()),
        document: "{}".into(),
        to_publish: "{}".into(),
        conn_url: "postgres://a:5432/postgres".into(),
        api_url: "http://a:8008/patroni".into(),
        proxy_url: None,
        tags: "".into(),
        custom_bootstrap: false,
        pre_promote: false,
        before_stop: false,
        restores: false,
        separate_container: false,
        server_version: 170_000,
        reload: false,
    };
    edit(&mut f);
    Arc::new(f)
}

/// A member and everything it has sent.
struct Trial {
    member: Member,
    sent: Vec<Sent>,
    lines: Vec<Line>,
}

impl Trial {
    fn new(edit: impl FnOnce(&mut InForce)) -> Trial {
        let who = Identity { name: "a".into(), uid: "uid-a".into(), session: "s1".into() };
        Trial { member: Member::new(who, in_force(edit), at(0.0)), sent: Vec::new(), lines: Vec::new() }
    }
    fn feed(&mut self, input: Input, secs: f64) {
        let step = self.member.step(input, at(secs));
        self.sent.extend(step.effects);
        self.lines.extend(step.lines);
    }
    fn answer(&mut self, secs: f64, answer: Answer, which: impl Fn(&Effect) -> bool) {
        let id = self.take(&which);
        self.feed(Input::Reply { id, answer: Ok(answer) }, secs);
    }
    /// The id of the effect on its way that fits.
    fn take(&mut self, which: &impl Fn(&Effect) -> bool) -> Id {
        let place = self.sent.iter().position(|s| which(&s.effect));
        let place = place.unwrap_or_else(|| panic!("not sent; on their way: {:#?}", self.effects()));
        self.sent.remove(place).id
    }
    fn effects(&self) -> Vec<&Effect> {
        self.sent.iter().map(|s| &s.effect).collect()
    }
    fn has(&self, which: impl Fn(&Effect) -> bool) -> bool {
        self.sent.iter().any(|s| which(&s.effect))
    }
    /// Everybody who only looks gets an answer, until nobody asks any more.
    fn looks(&mut self, secs: f64, data: &DataDir, probe: Option<&Probe>) {
        for _ in 0..20 {
            let Some(place) = self.sent.iter().position(|s| matches!(s.effect, Effect::Look | Effect::Probe)) else {
                return;
            };
            let Sent { id, effect, .. } = self.sent.remove(place);
            let answer = match effect {
                Effect::Look => Answer::Data { data: data.clone(), newest_history: Timeline(0) },
                _ => Answer::Looked(probe.cloned().map_or(Looked::NotReady, Looked::Answer)),
            };
            self.feed(Input::Reply { id, answer: Ok(answer) }, secs);
        }
    }
}

/// A member as the store lists it.
type Listed = crate::model::Member;

fn member_view(name: &str, role: Role) -> Listed {
    Listed {
        conn_url: Some(format!("postgres://{name}:5432/postgres")),
        api_url: Some(format!("http://{name}:8008/patroni")),
        state: Some(PostgresState::Running),
        role: Some(role),
        timeline: Some(Timeline(1)),
        uid: format!("uid-{name}"),
        ..Listed::default()
    }
}

fn view(leader: Option<LeaderRecord>) -> Input {
    view_among(&["a", "b"], leader)
}

fn view_among(names: &[&str], leader: Option<LeaderRecord>) -> Input {
    let cluster = Cluster {
        config: Some(ConfigRecord { version: Version("c1".into()), document: Some("{}".into()) }),
        initialize: Initialize::Value(SYSTEM.into()),
        leader,
        members: names.iter().map(|n| ((*n).into(), member_view(n, Role::Replica))).collect(),
        ..Cluster::default()
    };
    Input::View(Arc::new(View {
        cluster: Arc::new(cluster),
        lease_received: at(1.0).boot,
        link: StoreLink::Following,
        me: OwnPod { uid: "uid-a".into(), leaving: false, keeper_ended: false, named: false },
        warnings: Vec::new(),
    }))
}

/// A record without a holder that its holder gave up.
fn released() -> LeaderRecord {
    let lease = LeaseRecord {
        leader: None,
        ttl: Some("30".into()),
        acquire_time: Some("t0".into()),
        renew_time: Some("r0".into()),
        transitions: Some("3".into()),
    };
    let mut l = LeaderRecord::of(Version("l1".into()), lease);
    l.holder = Some(HolderMark {
        uid: "uid-b".into(),
        session: "x".into(),
        acquire_time: "t0".into(),
        renew_time: "r0".into(),
        ..HolderMark::default()
    });
    l.released = Some(Released { acquire_time: "t0".into(), transitions: "3".into(), shutdown: None });
    l
}

fn standby_data() -> DataDir {
    DataDir::Present {
        control: Some(ControlData {
            system_id: SYSTEM.into(),
            state: ClusterState::InArchiveRecovery,
            checkpoint: Lsn(100),
            timeline: Timeline(1),
            min_recovery_end: (Lsn(100), Timeline(1)),
            rewindable: true,
            shutdown_position: None,
        }),
        standby_signal: true,
    }
}

fn probe(in_recovery: bool) -> Probe {
    Probe {
        at: BootInstant::default(),
        in_recovery,
        timeline: Timeline(if in_recovery { 1 } else { 2 }),
        position: Lsn(100),
        received: Lsn(100),
        replayed: Lsn(100),
        streaming: false,
        replay_paused: false,
        blocked: None,
        system_id: SYSTEM.into(),
        replication: Default::default(),
    }
}

/// A running standby of a cluster whose lock was just given up.
fn racing(edit: impl FnOnce(&mut InForce)) -> Trial {
    let mut t = Trial::new(edit);
    t.feed(Input::Keeper(News::Met(Standing { postgres: Some(StartRole::Standby), ..Standing::default() })), 0.5);
    t.feed(view(Some(released())), 1.0);
    t.looks(1.1, &standby_data(), Some(&probe(true)));
    t.feed(Input::Due, 1.4);
    t.looks(1.4, &standby_data(), Some(&probe(true)));
    t.answer(1.45, Answer::Config(Ok(())), |e| matches!(e, Effect::ReadSync));
    let answers = [("b".into(), PeerAnswer::Unreachable("gone".into()))].into();
    t.answer(1.5, Answer::Peers(answers), |e| matches!(e, Effect::AskPeers { .. }));
    t.looks(1.5, &standby_data(), Some(&probe(true)));
    t
}

/// The same, with the lock in its hands.
fn holding(edit: impl FnOnce(&mut InForce)) -> Trial {
    let mut t = racing(edit);
    t.answer(1.6, Answer::Leader(Ok(Some(Box::new(released())))), |e| matches!(e, Effect::ReadLeader));
    t.answer(1.7, Answer::LeaderWritten(LeaderWritten::Wrote), |e| matches!(e, Effect::WriteLeader(_)));
    t
}

fn permit(e: &Effect) -> bool {
    matches!(e, Effect::Permit { permission: Permission::Writer { .. }, .. })
}
fn promote(e: &Effect) -> bool {
    matches!(e, Effect::Promote { .. })
}

#[test]
fn the_order_is_lease_answer_permission_answer_promotion() {
    let mut t = racing(|_| {});
    assert!(t.has(|e| matches!(e, Effect::ReadLeader)) && !t.has(permit) && !t.has(promote), "{:#?}", t.effects());
    t.answer(1.6, Answer::Leader(Ok(Some(Box::new(released())))), |e| matches!(e, Effect::ReadLeader));
    assert!(!t.has(permit), "the write is not confirmed yet");
    t.answer(1.7, Answer::LeaderWritten(LeaderWritten::Wrote), |e| matches!(e, Effect::WriteLeader(_)));
    assert!(t.has(permit) && !t.has(promote), "{:#?}", t.effects());
    t.answer(1.8, Answer::Kept, permit);
    assert!(t.has(promote), "{:#?}", t.effects());
}

#[test]
fn a_promotion_waits_for_its_script_and_does_not_come_after_one_that_failed() {
    let mut t = holding(|f| f.pre_promote = true);
    t.answer(1.8, Answer::Kept, permit);
    assert!(t.has(|e| matches!(e, Effect::Script(Script::PrePromote))) && !t.has(promote));
    t.answer(2.0, Answer::Script(Err("no".into())), |e| matches!(e, Effect::Script(_)));
    assert!(!t.has(promote), "{:#?}", t.effects());
    let none = |e: &Effect| matches!(e, Effect::Permit { permission: Permission::None, .. });
    assert!(t.has(none) && !t.has(|e| matches!(e, Effect::WriteLeader(_))), "the permission goes before the lock");
    t.answer(2.1, Answer::Kept, none);
    let gives_up = |e: &Effect| matches!(e, Effect::WriteLeader(w) if w.record.leader.is_none());
    assert!(t.has(gives_up) || t.has(|e| matches!(e, Effect::ReadLeader)), "{:#?}", t.effects());
}

#[test]
fn a_keeper_that_does_not_answer_is_lost_and_nothing_is_promoted() {
    let mut t = holding(|_| {});
    t.feed(Input::Due, 6.0);
    assert!(!t.has(promote), "the permission was not answered in time");
    let id = t.take(&permit);
    t.feed(Input::Reply { id, answer: Err(Fail::Unreachable("it stalls".into())) }, 6.1);
    t.feed(Input::Keeper(News::Lost("it stalls".into())), 6.2);
    assert!(t.member.snapshot().fence_lost);
    assert_eq!(t.member.state.member_status().fence, Some("lost"), "people read it in the list");
    assert!(!t.has(promote));
}

#[test]
fn a_keeper_that_is_silent_is_allowed_nothing_more() {
    let mut t = holding(|_| {});
    t.feed(Input::Keeper(News::Lost("it stalls".into())), 2.0);
    while t.has(permit) {
        t.take(&permit);
    }
    let s = Duration::from_secs;
    let shorter = Settings { ttl: s(20), loop_wait: s(5), retry_timeout: s(5), ..Settings::default() };
    t.feed(Input::Settings(in_force(|f| f.settings = Arc::new(shorter))), 3.0);
    for second in 4..20 {
        t.feed(Input::Due, f64::from(second));
        assert!(!t.has(permit), "the end of what it may let run stays where it is");
    }
}

#[test]
fn the_end_of_a_postmaster_may_be_told_before_its_start() {
    let mut t = Trial::new(|_| {});
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    t.feed(view(Some(released())), 1.0);
    t.looks(1.1, &standby_data(), None);
    let id = t.take(&|e: &Effect| matches!(e, Effect::Start { .. }));
    t.feed(Input::Keeper(News::Died { how: "exit code 1".into(), at: at(1.2).boot }), 1.3);
    let started = StartEnd::Started { pending: BTreeMap::new(), fence: Fence::Full };
    t.feed(Input::Reply { id, answer: Ok(Answer::Started(started)) }, 1.4);
    assert!(!t.member.snapshot().alive, "it is dead, and nobody will say so again");
}

#[test]
fn a_start_whose_answer_was_lost_is_no_failed_start_when_the_keeper_says_that_it_runs() {
    let mut t = Trial::new(|_| {});
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    t.feed(view(Some(released())), 1.0);
    t.looks(1.1, &standby_data(), None);
    let start = |e: &Effect| matches!(e, Effect::Start { .. });
    let id = t.take(&start);
    t.feed(Input::Keeper(News::Lost("it stalls".into())), 2.0);
    t.feed(Input::Reply { id, answer: Err(Fail::Unreachable("it stalls".into())) }, 3.0);
    t.feed(Input::Keeper(News::Met(Standing { postgres: Some(StartRole::Standby), ..Standing::default() })), 3.5);
    let shown = t.member.snapshot();
    assert!(shown.alive && shown.state == PostgresState::Starting, "{:?}", shown.state);
    assert!(!t.has(start), "a second one beside it");
}

#[test]
fn what_is_late_keeps_its_lane_until_it_has_ended() {
    let mut t = Trial::new(|_| {});
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    t.feed(view(Some(released())), 1.0);
    t.looks(1.1, &standby_data(), None);
    let start = |e: &Effect| matches!(e, Effect::Start { .. });
    let id = t.take(&start);
    t.feed(Input::Due, 60.0);
    t.feed(Input::Keeper(News::Met(Standing::default())), 61.0);
    t.looks(61.1, &standby_data(), None);
    assert!(!t.has(start), "the files of the first may still be written");
    t.feed(Input::Ended(id), 62.0);
    t.looks(62.1, &standby_data(), None);
    assert!(t.has(start), "{:#?}", t.effects());
}

#[test]
fn the_same_inputs_give_the_same_effects() {
    let run = || {
        let t = holding(|_| {});
        format!("{:?}", t.sent)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_lapsed_lease_stops_the_primary_even_if_nothing_is_ever_answered() {
    let mut t = holding(|_| {});
    t.answer(1.8, Answer::Kept, permit);
    t.answer(1.9, Answer::Kept, promote);
    t.looks(2.0, &standby_data(), Some(&probe(false)));
    t.feed(Input::Due, 2.3);
    t.looks(2.3, &standby_data(), Some(&probe(false)));
    for tenth in 30..300 {
        t.feed(Input::Due, f64::from(tenth) / 10.0);
    }
    let last = t.lines.last();
    assert!(t.has(|e| matches!(e, Effect::Stop { mode: StopMode::Fast })), "{last:?}");
    let stop = t.sent.iter().find(|s| matches!(s.effect, Effect::Stop { .. })).expect("just seen");
    assert!(stop.deadline > at(0.0).boot + Duration::from_secs(24), "not before its time");
}

#[test]
fn a_promotion_that_took_another_number_is_stopped_at_once() {
    let mut t = holding(|_| {});
    t.answer(1.8, Answer::Kept, permit);
    t.answer(1.9, Answer::Kept, promote);
    let other = Probe { timeline: Timeline(4), ..probe(false) };
    t.looks(2.0, &standby_data(), Some(&other));
    t.feed(Input::Due, 2.3);
    t.looks(2.3, &standby_data(), Some(&other));
    assert!(t.has(|e| matches!(e, Effect::Stop { mode: StopMode::Immediate })), "{:?}", t.effects());
}

/// Seen with a frozen API server: the write landed half a minute later, the record named its writer, and nobody led for a
/// whole ttl.
#[test]
fn a_lock_whose_write_landed_too_late_is_renewed_before_it_is_used() {
    let mut t = racing(|_| {});
    t.answer(1.6, Answer::Leader(Ok(Some(Box::new(released())))), |e| matches!(e, Effect::ReadLeader));
    let written = t.effects().into_iter().find_map(|e| match e {
        Effect::WriteLeader(write) => Some((**write).clone()),
        _ => None,
    });
    let written = written.expect("the write");
    t.feed(Input::Due, 12.0);
    t.feed(Input::Due, 50.0);
    let mut landed = LeaderRecord::of(Version("l2".into()), written.record);
    landed.holder = written.holder;
    let Input::View(seen) = view(Some(landed)) else { unreachable!() };
    let seen = View { lease_received: at(50.1).boot, ..(*seen).clone() };
    t.sent.clear();
    t.feed(Input::View(Arc::new(seen)), 50.1);
    assert!(!t.has(promote), "its time is over by the own clock");
    assert!(t.has(|e| matches!(e, Effect::WriteLeader(_))), "renewed: {:#?}", t.effects());
    t.answer(50.2, Answer::LeaderWritten(LeaderWritten::Wrote), |e| matches!(e, Effect::WriteLeader(_)));
    assert!(t.has(permit), "{:#?}", t.effects());
}

/// The lock of this very pod, left behind by an earlier life of it.
fn of_an_earlier_life() -> LeaderRecord {
    let mut l = released();
    l.lease.leader = Some("a".into());
    l.released = None;
    let holder = l.holder.take().expect("released() has one");
    l.holder = Some(HolderMark { uid: "uid-a".into(), session: "s0".into(), ..holder });
    l
}

/// The last renewal of an earlier life landed, and its answer did not come: the keeper has the note of the one before.
#[test]
fn a_lock_that_an_earlier_life_has_renewed_once_more_is_mine() {
    let mut t = Trial::new(|_| {});
    let noted = LeaseRecord { renew_time: Some("one before".into()), ..of_an_earlier_life().lease };
    let writes = Permission::Writer { stop_at: at(20.0).boot, kill_at: at(22.0).boot };
    let standing = Standing {
        permission: writes,
        note: Some((noted.clone(), at(-2.0).boot)),
        postgres: Some(StartRole::Primary),
        ..Standing::default()
    };
    let lease = |t: &Trial| t.member.snapshot().leader_until;
    t.feed(Input::Keeper(News::Met(standing.clone())), 0.5);
    t.feed(view(Some(of_an_earlier_life())), 1.0);
    assert!(lease(&t).is_some(), "{:#?}", t.lines);
    // Another acquisition is another lock, and another pod's mark another holder's.
    for pod in [true, false] {
        let mut t = Trial::new(|_| {});
        t.feed(Input::Keeper(News::Met(standing.clone())), 0.5);
        let mut l = of_an_earlier_life();
        match pod {
            true => l.holder.as_mut().expect("it has one").uid = "uid-of-another".into(),
            false => l.lease.transitions = Some("4".into()),
        }
        t.feed(view(Some(l)), 1.0);
        assert!(lease(&t).is_none(), "{:#?}", t.lines);
    }
}

/// The leader of a standby cluster writes nothing, so no keeper has a note of its lock: the mark of this pod is enough where
/// nothing that runs can write.
#[test]
fn a_lock_whose_earlier_life_has_left_a_standby_is_renewed_before_it_is_used() {
    let remote = || Some(Remote { conn_url: Some("postgres://elsewhere:5432".into()), slot: None });
    let (standby, primary) = (Some(StartRole::Standby), Some(StartRole::Primary));
    for (follows, left, reclaims) in [
        (true, standby, true),
        (false, standby, false),
        (true, primary, false),
        (false, primary, false),
        (false, None, true),
    ] {
        let mut t = Trial::new(|s| {
            Arc::make_mut(&mut s.settings).standby_of = if follows { remote() } else { None };
        });
        t.feed(Input::Keeper(News::Met(Standing { postgres: left, ..Standing::default() })), 0.5);
        t.feed(view(Some(of_an_earlier_life())), 1.0);
        assert!(t.member.snapshot().leader_until.is_none(), "no lock before it is confirmed: {:#?}", t.lines);
        let told = t.lines.iter().any(|l| l.text.starts_with("the lock names this pod, whose earlier life has left"));
        assert_eq!(told, reclaims, "{follows} {left:?}: {:#?}", t.lines);
        t.looks(1.1, &standby_data(), left.map(|role| probe(role == StartRole::Standby)).as_ref());
        if follows || !reclaims {
            assert_eq!(
                t.has(|e| matches!(e, Effect::WriteLeader(_))),
                reclaims,
                "{follows} {left:?}: {:#?}",
                t.effects()
            );
        }
    }
}

/// A watch is often quicker than the answer to the request that it shows.
#[test]
fn a_renewal_seen_before_it_is_answered_does_not_make_a_standby_of_the_killed_primary() {
    let DataDir::Present { control: Some(control), .. } = standby_data() else { panic!("made above") };
    let control = ControlData { state: ClusterState::InProduction, ..control };
    let data = DataDir::Present { control: Some(control), standby_signal: false };
    let start = |e: &Effect| matches!(e, Effect::Start { .. });
    let mut t = Trial::new(|_| {});
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    t.feed(view(Some(of_an_earlier_life())), 1.0);
    t.looks(1.1, &data, None);
    let place = t.sent.iter().position(|s| matches!(s.effect, Effect::WriteLeader(_))).expect("a renewal");
    let Sent { id, effect: Effect::WriteLeader(write), .. } = t.sent.remove(place) else { panic!("just looked") };
    let mut seen = of_an_earlier_life();
    (seen.version, seen.lease, seen.holder) = (Version("l2".into()), write.record.clone(), write.holder.clone());
    t.feed(view(Some(seen)), 1.2);
    t.looks(1.2, &data, None);
    assert!(!t.has(start), "{:#?}", t.effects());
    t.feed(Input::Reply { id, answer: Ok(Answer::LeaderWritten(LeaderWritten::Wrote)) }, 1.3);
    t.answer(1.4, Answer::Kept, permit);
    assert!(t.has(|e| matches!(e, Effect::Start { role: StartRole::Primary, .. })), "{:#?}", t.effects());
}

/// Answers are young enough to vote with for four seconds; of these, none is about following me.
#[test]
fn a_switchover_soon_after_the_promotion_asks_the_candidates_anew() {
    let mut t = holding(|_| {});
    t.answer(1.8, Answer::Kept, permit);
    t.answer(1.9, Answer::Kept, promote);
    t.looks(2.0, &standby_data(), Some(&probe(false)));
    t.feed(Input::Due, 2.3);
    t.looks(2.3, &standby_data(), Some(&probe(false)));
    assert!(!t.has(|e| matches!(e, Effect::AskPeers { .. })), "{:#?}", t.effects());
    let Input::View(view) = view(Some(released())) else { panic!("it makes a view") };
    let mut view = (*view).clone();
    let mut cluster = (*view.cluster).clone();
    cluster.leader = None;
    cluster.failover = Some(FailoverRequest {
        version: Version("f1".into()),
        leader: Some("a".into()),
        candidate: Some("b".into()),
        scheduled_at: None,
    });
    view.cluster = Arc::new(cluster);
    t.feed(Input::View(Arc::new(view)), 2.5);
    assert!(t.has(|e| matches!(e, Effect::AskPeers { .. })), "{:#?}\n{:#?}", t.effects(), t.lines);
}

/// The store was put back to a moment when this member led. Another one leads since.
#[test]
fn an_old_copy_of_the_own_record_is_not_the_lock() {
    let mut t = racing(|_| {});
    t.answer(1.6, Answer::Leader(Ok(Some(Box::new(released())))), |e| matches!(e, Effect::ReadLeader));
    let written = t.effects().into_iter().find_map(|e| match e {
        Effect::WriteLeader(write) => Some((**write).clone()),
        _ => None,
    });
    let written = written.expect("the write");
    t.answer(1.7, Answer::LeaderWritten(LeaderWritten::Wrote), |e| matches!(e, Effect::WriteLeader(_)));
    let seen = |leader: LeaderRecord, secs: f64| {
        let Input::View(seen) = view(Some(leader)) else { unreachable!() };
        Input::View(Arc::new(View { lease_received: at(secs).boot, ..(*seen).clone() }))
    };
    let others = LeaseRecord { leader: Some("b".into()), transitions: Some("5".into()), ..written.record.clone() };
    t.feed(seen(LeaderRecord::of(Version("l9".into()), others), 60.0), 60.0);
    t.feed(Input::Due, 75.0);
    let mut old = LeaderRecord::of(Version("l2".into()), written.record);
    old.holder = written.holder;
    t.sent.clear();
    t.feed(seen(old, 90.0), 90.0);
    assert!(!t.has(|e| matches!(e, Effect::WriteLeader(_) | Effect::ReadLeader)), "{:#?}", t.effects());
}

/// Its server ended before the mark of the bootstrap was removed. The store names this data: nobody else has a copy of it.
#[test]
fn a_new_cluster_that_the_store_names_outlives_the_end_of_its_server() {
    let mut t = Trial::new(|_| ());
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    let s = &mut t.member.state;
    s.local.bootstrapping = true;
    s.local.task_end = Some(TaskEnd { kind: TaskKind::PostBootstrap, at: at(0.4).boot, result: TaskOutcome::Done });
    t.feed(view(None), 1.0);
    t.looks(1.1, &DataDir::HalfMade, None);
    assert_eq!(t.member.state.local.bootstrap_failed, None, "whose data this is is asked first");
    t.answer(1.2, Answer::Published(true), |e| matches!(e, Effect::KeepPublished { .. }));
    t.looks(2.0, &standby_data(), None);
    let s = &t.member.state;
    assert_eq!(s.local.bootstrap_failed, None);
    assert!(s.reason.ends_with("going on as an ordinary member"), "{}", s.reason);
}

/// The same, and the write of the system identifier lands when the bootstrap is being given up already.
#[test]
fn a_new_cluster_that_the_store_names_late_is_kept_too() {
    let mut t = Trial::new(|_| ());
    t.feed(Input::Keeper(News::Met(Standing::default())), 0.5);
    let s = &mut t.member.state;
    s.local.bootstrapping = true;
    s.local.task_end = Some(TaskEnd { kind: TaskKind::PostBootstrap, at: at(0.4).boot, result: TaskOutcome::Done });
    let Input::View(named) = view(None) else { unreachable!() };
    let initializer = Some(Initializer { uid: "uid-a".into(), session: s.local.session.clone() });
    let unnamed = Cluster { initialize: Initialize::InProgress, initializer, ..(*named.cluster).clone() };
    t.feed(Input::View(Arc::new(View { cluster: Arc::new(unnamed), ..(*named).clone() })), 1.0);
    t.looks(1.1, &DataDir::HalfMade, None);
    assert!(t.member.state.local.bootstrap_failed.is_some(), "its server has ended");
    t.feed(Input::View(named), 2.0);
    t.looks(2.1, &DataDir::HalfMade, None);
    assert!(!t.has(|e| matches!(e, Effect::Task(_))), "{:#?}", t.effects());
    t.answer(2.2, Answer::Published(true), |e| matches!(e, Effect::KeepPublished { .. }));
    t.looks(3.0, &standby_data(), None);
    assert!(!t.has(|e| matches!(e, Effect::Task(_))), "{:#?}", t.effects());
    assert!(!t.member.state.local.bootstrapping || t.member.state.reason.contains("keeping it"));
}

/// What came of an order that failed is not known: back at the leader of before, it is told again whom to follow.
#[test]
fn whoever_was_to_follow_another_and_may_do_so_is_told_again() {
    let led = |who: &str, renewed: &str| {
        let mut l = released();
        l.released = None;
        (l.lease.leader, l.lease.renew_time) = (Some(who.into()), Some(renewed.into()));
        view_among(&["a", "b", "c"], Some(l))
    };
    let follows = |name: &'static str| move |e: &Effect| matches!(e, Effect::Reconfigure { upstream: Upstream::Member { name: n, .. }, .. } if n.as_str() == name);
    let mut t = Trial::new(|_| ());
    t.feed(Input::Keeper(News::Met(Standing { postgres: Some(StartRole::Standby), ..Standing::default() })), 0.5);
    t.feed(led("b", "r1"), 1.0);
    t.looks(1.1, &standby_data(), Some(&probe(true)));
    t.answer(1.2, Answer::Rewritten { reloaded: true }, follows("b"));
    t.feed(led("c", "r2"), 2.0);
    t.looks(2.1, &standby_data(), Some(&probe(true)));
    let id = t.take(&follows("c"));
    t.feed(Input::Reply { id, answer: Err(Fail::Refused("the connection ended".into())) }, 2.2);
    t.feed(led("b", "r3"), 12.0);
    t.looks(12.1, &standby_data(), Some(&probe(true)));
    assert!(t.has(follows("b")), "{:#?}", t.effects());
}
