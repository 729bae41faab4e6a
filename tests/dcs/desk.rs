//! The desk over a store in memory, without a connection: as a simulation drives it. Every request it can spell is made.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use patroni::dcs::Body;
use patroni::dcs::desk::{Desk, Followed, WatchEnd};
use patroni::dcs::kube::{Access, Mode, StoreOptions};
use patroni::dcs::{
    Answer, Failure, Feed, KindEntry, LeaderStatus, MemberStatus, Object, Request, RequestText, Sent, leader_written,
};
use patroni::kubemem::{Call, Cursor, Snapshot, Sources, Store, run};
use patroni::model::{
    BootInstant, Change, HistoryRow, HolderMark, Initialize, LeaderWrite, LeaderWritten, LeaseRecord, Lsn, MemberName,
    PostgresState, Released, Role, Shutdown, StoreLink, StoreWrite, Timeline, TimelineClaim, WallTime,
};
use serde_json::{Value, json};

use super::world::{MODES, life_since, pod};

fn at(s: u64) -> BootInstant {
    BootInstant::from_nanos(s * 1_000_000_000)
}

/// A member's desk, its watches, and the store they speak to.
struct Member {
    store: Store,
    desk: Desk,
    watches: BTreeMap<usize, (Sent, Cursor)>,
}

fn store() -> Store {
    let mut next = 0;
    let bits = move || {
        next += 1;
        next
    };
    let store = Store::new(64, true, Sources::new(bits, || Duration::from_secs(1_735_689_600)));
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        store.create("pods", "default", pod(name, i)).unwrap();
    }
    store
}

fn kube_call(sent: &Sent) -> Call {
    let call = &sent.call;
    Call::new(call.method, &call.uri(), call.content_type, call.body.clone().unwrap_or(Value::Null)).unwrap()
}

impl Member {
    fn new(store: &Store, name: &str, mode: Mode) -> Member {
        let access = Access::Server { url: String::new(), token: None };
        let mut o = StoreOptions::new("demo", Some(name.into()), access, || at(0), WallTime::default);
        o.mode = mode;
        o.labels = BTreeMap::from([("application".into(), "patroni".into())]);
        o.session = format!("session-of-{name}");
        let mut desk = Desk::new(o, at(0));
        desk.set_life(life_since("2025-01-01T00:00:00Z"));
        Member { store: store.clone(), desk, watches: BTreeMap::new() }
    }

    fn send(&mut self, sent: &Sent) -> Result<Answer, Failure> {
        let answer = run(&self.store, &kube_call(sent));
        self.desk.decode(sent, answer.status, Body::Bytes(answer.body.to_string().as_bytes()), at(1))
    }

    fn ask(&mut self, request: Request) -> Result<Answer, Failure> {
        let sent = self.desk.encode(request)?;
        self.send(&sent)
    }

    fn seen(&mut self, request: Request) -> KindEntry {
        match self.ask(request) {
            Ok(Answer::Object(Some(seen))) => seen,
            other => panic!("{other:?}"),
        }
    }

    /// Follows both collections as far as the store has come.
    fn follow(&mut self) {
        for feed in [Feed::Kinds, Feed::Pods] {
            for _ in 0..9 {
                let Some((sent, mut cursor)) = self.watches.remove(&(feed as usize)) else {
                    let sent = self.desk.encode(self.desk.follow(feed)).unwrap();
                    if sent.call.verb == "watch" {
                        let cursor = Cursor::open(&self.store, &kube_call(&sent)).unwrap();
                        assert!(self.desk.decode(&sent, 200, Body::Bytes(b""), at(1)).is_ok());
                        self.watches.insert(feed as usize, (sent, cursor));
                    } else {
                        self.send(&sent).unwrap();
                    }
                    continue;
                };
                let mut over = !self.desk.is_current(&sent);
                while let (false, Some(event)) = (over, cursor.next(&self.store)) {
                    over = self.desk.watch_event(&sent, event.kind, &event.object, at(1)) != Followed::On;
                }
                if !over {
                    self.watches.insert(feed as usize, (sent, cursor));
                    break;
                }
            }
        }
    }

    fn write(&self, record: LeaseRecord) -> LeaderWrite {
        let holder = record.leader.as_ref().map(|_| HolderMark {
            uid: self.desk.my_uid().to_owned(),
            session: "s".into(),
            containers: BTreeMap::new(),
            acquire_time: record.acquire_time.clone().unwrap(),
            renew_time: record.renew_time.clone().unwrap(),
            paused: false,
            site: None,
        });
        LeaderWrite {
            expect: self.desk.version_of(Object::Leader),
            record,
            holder,
            status: LeaderStatus::default(),
            released: Change::Keep,
            claim: Change::Keep,
            failsafe: Change::Keep,
        }
    }
}

fn record(leader: Option<&str>, renewed: &str) -> LeaseRecord {
    let text = |t: &str| Some(t.to_owned());
    LeaseRecord {
        leader: leader.map(MemberName::from),
        ttl: text("30"),
        acquire_time: text("t0"),
        renew_time: text(renewed),
        transitions: text("3"),
    }
}

#[test]
fn a_lease_is_taken_kept_and_given_back_with_an_oath() {
    for mode in MODES {
        let store = store();
        let (mut a, mut b) = (Member::new(&store, "a", mode), Member::new(&store, "b", mode));
        a.follow();
        b.follow();
        assert_eq!(a.desk.view().link, StoreLink::Following);
        assert!(matches!(a.ask(Request::Read(Object::Leader)), Ok(Answer::Object(None))));
        let claim = TimelineClaim { timeline: Timeline(7), acquire_time: "t0".into(), transitions: "3".into() };
        let first = LeaderWrite { claim: Change::Set(claim), ..a.write(record(Some("a"), "t0")) };
        let late = b.desk.encode(Request::WriteLeader(Box::new(b.write(record(Some("b"), "t0"))))).unwrap();
        assert_eq!(leader_written(a.ask(Request::WriteLeader(Box::new(first)))), LeaderWritten::Wrote);
        assert_eq!(leader_written(b.send(&late)), LeaderWritten::Conflict);
        b.follow();
        let view = b.desk.view();
        let leader = view.cluster.leader.as_ref().unwrap();
        assert_eq!((leader.lease.clone(), leader.claimed_timeline()), (record(Some("a"), "t0"), Some(Timeline(7))));
        let holder = leader.valid_holder().unwrap();
        assert_eq!(holder.containers["postgres"], "containerd://a-postgres", "filled in by the desk");
        let addresses = if mode == Mode::Endpoints { vec!["127.0.1.0".to_owned()] } else { vec![] };
        assert_eq!(leader.addresses, addresses);
        // A renewal that names neither keeps the claim.
        let status = LeaderStatus { optime: Some(Lsn(40)), slots: [("s".into(), Lsn(1))].into(), retain_slots: vec![] };
        let renewal = LeaderWrite { status, ..a.write(record(Some("a"), "t1")) };
        assert_eq!(leader_written(a.ask(Request::WriteLeader(Box::new(renewal)))), LeaderWritten::Wrote);
        assert_eq!(a.desk.view().cluster.leader.as_ref().unwrap().claimed_timeline(), Some(Timeline(7)));
        // The release: the mark stays, the addresses are emptied, the oath stands through the next acquisition.
        let members = BTreeSet::from(["a".into(), "b".into()]);
        let shutdown = Shutdown { position: Lsn(50), timeline: Timeline(6), members };
        let released =
            Released { acquire_time: "t0".into(), transitions: "3".into(), shutdown: Some(shutdown.clone()) };
        let status = LeaderStatus { optime: Some(Lsn(50)), ..LeaderStatus::default() };
        let release = LeaderWrite { status, released: Change::Set(released), ..a.write(record(None, "t1")) };
        assert_eq!(leader_written(a.ask(Request::WriteLeader(Box::new(release)))), LeaderWritten::Wrote);
        b.follow();
        let leader = b.desk.view().cluster.leader.clone().unwrap();
        assert!(leader.released_by_holder() && leader.addresses.is_empty());
        assert_eq!((leader.oath(), leader.optime, leader.slots.len()), (Some(&shutdown), Some(Lsn(50)), 1));
        let next = LeaseRecord { acquire_time: Some("t2".into()), ..record(Some("b"), "t2") };
        assert_eq!(leader_written(b.ask(Request::WriteLeader(Box::new(b.write(next))))), LeaderWritten::Wrote);
        let leader = b.desk.view().cluster.leader.clone().unwrap();
        assert_eq!((leader.oath(), leader.claimed_timeline()), (Some(&shutdown), None), "the claim was another's");
        let end = LeaderWrite { released: Change::Remove, ..b.write(leader.lease) };
        assert_eq!(leader_written(b.ask(Request::WriteLeader(Box::new(end)))), LeaderWritten::Wrote);
        assert_eq!(b.desk.view().cluster.leader.as_ref().unwrap().oath(), None);
    }
}

#[test]
fn every_other_object_is_written_and_seen() {
    for mode in MODES {
        let store = store();
        let mut a = Member::new(&store, "a", mode);
        a.follow();
        let version = |a: &Member| a.desk.version_of(Object::Config);
        a.seen(Request::Write(StoreWrite::ClaimInitialize { expect: None }));
        assert_eq!(a.desk.view().cluster.initializer.as_ref().unwrap().uid, a.desk.my_uid());
        a.seen(Request::Write(StoreWrite::CancelInitialize { expect: version(&a).unwrap() }));
        assert_eq!(a.desk.view().cluster.initialize, Initialize::Absent);
        a.seen(Request::Write(StoreWrite::SystemId { expect: version(&a), system_id: "7123456789012345678".into() }));
        a.seen(Request::Write(StoreWrite::Config { expect: version(&a), document: "{}".into() }));
        let bad = StoreWrite::Config { expect: version(&a), document: "[]".into() };
        assert!(matches!(a.desk.encode(Request::Write(bad)), Err(Failure::Refused(_))));
        let rows =
            vec![HistoryRow { timeline: Timeline(1), lsn: Lsn(5), reason: "r".into(), at: None, new_leader: None }];
        a.seen(Request::Write(StoreWrite::History { expect: version(&a), rows: rows.clone() }));
        let request = RequestText { candidate: Some("b".into()), ..RequestText::default() };
        let asked = a.seen(Request::Write(StoreWrite::SetRequest(request)));
        let view = a.desk.view();
        assert_eq!(
            (view.cluster.initialize.system_id(), view.cluster.history.as_ref()),
            (Some("7123456789012345678"), Some(&rows))
        );
        assert_eq!(view.cluster.request().unwrap().candidate, Some("b".into()));
        a.seen(Request::Write(StoreWrite::ClearRequest { expect: asked.version().clone() }));
        assert_eq!(a.desk.view().cluster.request(), None);
        // Somebody else's object without our labels.
        let kind = if mode == Mode::Endpoints { "endpoints" } else { "configmaps" };
        store.create(kind, "default", json!({"metadata": {"name": "demo-sync"}})).unwrap();
        let foreign = a.seen(Request::Read(Object::Sync));
        assert!(!foreign.is_labelled());
        assert!(a.seen(Request::PutLabels(Object::Sync, foreign.version().clone())).is_labelled());
        assert!(matches!(a.ask(Request::CreateService(Object::Config)), Ok(Answer::Done)));
        assert!(matches!(a.ask(Request::CreateService(Object::Config)), Err(Failure::Conflict(_))));
    }
}

#[test]
fn a_member_publishes_itself_and_strips_others() {
    let store = store();
    let (mut a, mut b) = (Member::new(&store, "a", Mode::Endpoints), Member::new(&store, "b", Mode::Endpoints));
    a.follow();
    b.follow();
    let mut status =
        MemberStatus::new("postgres://h/postgres", "http://h/patroni", PostgresState::Running, Role::Primary);
    status.is_leader = true;
    assert_eq!(b.desk.already_published(&status), None);
    assert!(matches!(b.ask(Request::Publish(status.clone())), Ok(Answer::Pod(Some(_)))));
    assert!(b.desk.already_published(&status).is_some());
    a.follow();
    let strips = a.desk.strips();
    assert_eq!(strips.iter().map(|(pod, _)| pod.as_str()).collect::<Vec<_>>(), ["b"]);
    for (_, request) in strips {
        assert!(a.ask(request).is_ok());
    }
    assert_eq!(store.get("pods", "default", "b").unwrap()["metadata"]["labels"].get("role"), None);
    let Ok(Answer::Pod(Some(facts))) = a.ask(Request::ReadPod("b".into())) else { panic!() };
    assert_eq!(facts.facts().uid, b.desk.my_uid());
    let sent = a.desk.encode(Request::Read(Object::Leader)).unwrap();
    assert!(matches!(a.desk.unanswered(&sent, "the server is gone", at(2)), Failure::Unsure(_)));
}

#[test]
fn one_answer_that_shows_a_restored_store_ends_the_watches_and_lists_again() {
    let store = store();
    let mut a = Member::new(&store, "a", Mode::ConfigMaps);
    a.follow();
    let first = a.write(record(Some("a"), "t0"));
    assert_eq!(leader_written(a.ask(Request::WriteLeader(Box::new(first)))), LeaderWritten::Wrote);
    let backup: Snapshot = store.snapshot();
    for i in 1..9 {
        let renewal = a.write(record(Some("a"), &format!("t{i}")));
        assert_eq!(leader_written(a.ask(Request::WriteLeader(Box::new(renewal)))), LeaderWritten::Wrote);
    }
    store.delete("pods", "default", "b").unwrap();
    a.follow();
    assert_eq!(a.desk.view().cluster.members.len(), 1);
    store.restore(&backup);
    a.follow();
    assert_eq!(a.desk.trust(), 0, "a watch from a lost version is silent");
    let fresh = a.seen(Request::Read(Object::Leader)).leader();
    assert_eq!((fresh.lease, a.desk.trust()), (record(Some("a"), "t0"), 1));
    a.follow();
    let view = a.desk.view();
    assert_eq!(
        (view.cluster.members.len(), view.cluster.leader.as_ref().unwrap().lease.clone()),
        (2, record(Some("a"), "t0"))
    );
    let renewal = a.write(record(Some("a"), "t10"));
    assert_eq!(leader_written(a.ask(Request::WriteLeader(Box::new(renewal)))), LeaderWritten::Wrote);
    assert_eq!(a.desk.view().cluster.leader.as_ref().unwrap().lease, record(Some("a"), "t10"));
}

/// Nobody asks anything meanwhile: a member without data would wait for a leader that it still sees as a standby.
#[test]
fn what_cut_a_watch_of_the_kinds_in_silence_has_cut_that_of_the_pods() {
    let store = store();
    let mut a = Member::new(&store, "a", Mode::Endpoints);
    a.follow();
    let [kinds, pods] = [Feed::Kinds, Feed::Pods].map(|feed| a.watches[&(feed as usize)].0.clone());
    assert_eq!(a.desk.watch_ended(&kinds, WatchEnd::Silent, at(30)), Followed::Over);
    assert!(pods.trust() != a.desk.trust(), "it is opened anew");
    assert!(matches!(a.desk.follow(Feed::Pods), Request::Watch(Feed::Pods)), "from where it was");
    let again = a.desk.encode(a.desk.follow(Feed::Pods)).unwrap();
    assert_eq!(a.desk.watch_ended(&again, WatchEnd::Silent, at(200)), Followed::Over);
    assert_eq!(again.trust(), a.desk.trust(), "pods may be quiet for long");
}

/// A cut connection is silent: a watch of pods would be listened to in vain for minutes.
#[test]
fn what_one_request_went_unanswered_for_the_watches_are_opened_anew_from_where_they_are() {
    let store = store();
    let mut a = Member::new(&store, "a", Mode::Endpoints);
    a.follow();
    let open: Vec<Sent> = a.watches.values().map(|(sent, _)| sent.clone()).collect();
    let lost = a.desk.encode(Request::Read(Object::Leader)).unwrap();
    let _failure = a.desk.unanswered(&lost, "no answer in time", at(2));
    assert!(open.iter().all(|sent| sent.trust() == a.desk.trust()), "the server may be away altogether");
    assert_eq!(a.desk.view().lease_received, at(2), "no object is there, and nobody could have told of one");
    assert!(a.ask(Request::Read(Object::Leader)).is_ok());
    assert!(open.iter().all(|sent| sent.trust() != a.desk.trust()));
    for feed in [Feed::Kinds, Feed::Pods] {
        let again = a.desk.encode(a.desk.follow(feed)).unwrap();
        assert_eq!((again.call.verb, again.trust()), ("watch", a.desk.trust()));
    }
}
