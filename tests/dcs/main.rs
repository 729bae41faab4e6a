//! The store against the embedded Kubernetes API: races, lost answers, cut watches, proof of death. Both modes.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test that fails says where")]

mod death;
mod desk;
mod identity;
mod restore;
mod shell;
mod vanish;
mod world;

use std::time::Duration;

use patroni::dcs::kube::{Access, KubeStore, Mode, StoreOptions};
use patroni::dcs::{Dcs, MemberStatus, RequestText, WriteResult, schema};
use patroni::kubemem::FaultRule;
use patroni::member::lease::JobEnd;
use patroni::model::{
    Change, HistoryRow, Initialize, LeaderStatus, LeaderWrite, LeaderWritten, LeaseRecord, Lsn, MemberName,
    PostgresState, Role, Shutdown, StoreLink, StoreWrite, Timeline, Version, View, time_scale,
};
use serde_json::json;

use world::*;

#[tokio::test]
async fn of_two_that_race_for_the_lock_exactly_one_gets_it() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, b) = (w.store("a").await, w.store("b").await);
        let mut stood = None;
        for round in 0..6 {
            let (x, y) = tokio::join!(a.acquire(acquire(stood.clone())), b.acquire(acquire(stood.clone())));
            let wins = [&x, &y].into_iter().filter(|r| matches!(r, JobEnd::Written { .. })).count();
            assert_eq!(wins, 1, "{mode:?} round {round}: {x:?} {y:?}");
            let (record, _) = written(if matches!(x, JobEnd::Written { .. }) { x } else { y });
            assert_eq!(w.leader()["metadata"]["annotations"]["leader"], record.leader.as_ref().unwrap().as_str());
            stood = Some(record);
        }
    }
}

#[tokio::test]
async fn the_leader_object_has_the_form_patroni_members_expect() {
    let w = World::new(Mode::Endpoints).await;
    let (a, record) = lead(&w, "a").await;
    let object = w.leader();
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(annotations["ttl"], "30", "the configured integer whatever the time scale");
    assert_eq!(annotations["transitions"], "0");
    assert_eq!(annotations["acquireTime"], annotations["renewTime"]);
    assert_eq!(object["metadata"]["labels"], json!({"application": "patroni", "cluster-name": "demo"}));
    let address = &object["subsets"][0]["addresses"][0];
    assert_eq!(
        (&address["ip"], &address["nodeName"], &address["targetRef"]["name"]),
        (&json!("127.0.1.0"), &json!("node"), &json!("a"))
    );
    assert_eq!(object["subsets"][0]["ports"][0]["port"], 5432);
    let holder = schema::holder_from(annotations["patroni.holder"].as_str().unwrap()).unwrap();
    assert_eq!((holder.uid, holder.session.as_str()), (w.uid("a"), "session-of-a"));
    assert_eq!(holder.containers["postgres"], "containerd://a-postgres");
    assert_eq!(Some(&holder.renew_time), record.renew_time.as_ref());
    // A renewal changes renewTime, keeps the rest, publishes the position, and heals the addresses.
    w.server.store().merge("endpoints", "default", "demo", &json!({"subsets": []})).unwrap();
    see(&a, "addresses gone", |v| v.cluster.leader.as_ref().is_some_and(|l| l.addresses.is_empty())).await;
    let (second, _) = written(a.renew(renew(77)).await);
    assert_eq!(LeaseRecord { renew_time: record.renew_time.clone(), ..second.clone() }, record);
    assert_ne!(second.renew_time, record.renew_time);
    let view = a.view().borrow().clone();
    let leader = view.cluster.leader.as_ref().unwrap();
    assert_eq!((leader.optime, leader.addresses.as_slice()), (Some(Lsn(77)), &["127.0.1.0".to_owned()][..]));
    // Release: nobody, no addresses, the shutdown position.
    let members = [MemberName::from("a")].into();
    written(a.release(Some(Shutdown { position: Lsn(99), timeline: Timeline(1), members })).await);
    let object = w.leader();
    assert_eq!(object["metadata"]["annotations"].get("leader"), None);
    assert_eq!(object["metadata"]["annotations"]["optime"], "99");
    assert_eq!(object["subsets"].as_array().map_or(0, Vec::len), 0);
    assert_eq!(object["metadata"]["annotations"]["ttl"], "30", "the other keys stay");
    let given_up = a.leader().await.unwrap();
    assert!(given_up.released_by_holder(), "in the holder's own words: the mark stays, patroni.released names it");
    assert_eq!(given_up.valid_holder().unwrap().session, "session-of-a");
    assert_eq!(given_up.oath().map(|oath| (oath.position, oath.timeline)), Some((Lsn(99), Timeline(1))));
    // The next holder counts transitions on.
    let b = w.store("b").await;
    let stood = b.view().borrow().cluster.leader.as_ref().map(|l| l.lease.clone());
    let (record, _) = written(b.acquire(acquire(stood)).await);
    assert_eq!(record.transitions.as_deref(), Some("1"));
}

#[tokio::test]
async fn at_rest_a_renewal_is_one_request() {
    let w = World::new(Mode::Endpoints).await;
    let (a, _) = lead(&w, "a").await;
    w.server.reset_request_counts();
    for i in 0..3 {
        written(a.renew(renew(i)).await);
    }
    let counts = w.server.request_counts();
    assert_eq!(counts.get(&("patch".into(), "endpoints".into())), Some(&3));
    assert_eq!(counts.get(&("get".into(), "endpoints".into())), None);
}

#[tokio::test]
async fn a_lost_answer_is_looked_up_and_counts_from_the_sending_of_the_attempt_that_stands() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, first) = lead(&w, "a").await;
        w.server.faults().drop_reply(w.writes_fault(0, 1));
        let before = now();
        let (record, sent) = written(a.renew(renew(1)).await);
        assert_eq!(
            Some(record.renew_time.clone().unwrap().as_str()),
            w.leader()["metadata"]["annotations"]["renewTime"].as_str()
        );
        assert_ne!(record.renew_time, first.renew_time);
        // One PATCH only: the send time is that of the first attempt, long before the answer to the look-up.
        assert!(sent >= before && sent.since(before) < Duration::from_millis(90), "{:?}", sent.since(before));
        let counts = w.server.request_counts();
        assert_eq!(
            counts.get(&("patch".into(), w.kind().into())),
            Some(&1),
            "the old write was not sent again: {counts:?}"
        );
    }
}

#[tokio::test]
async fn an_acquire_whose_answer_is_lost_is_ours() {
    for mode in MODES {
        let w = World::new(mode).await;
        let a = w.store("a").await;
        w.server.faults().drop_reply(FaultRule {
            method: "POST".into(),
            path_contains: w.kind().into(),
            count: 1,
            ..FaultRule::default()
        });
        let (record, _) = written(a.acquire(acquire(None)).await);
        assert_eq!(record.leader, Some("a".into()));
        assert_eq!(w.leader()["metadata"]["annotations"]["renewTime"], record.renew_time.unwrap());
    }
}

#[tokio::test]
async fn a_server_in_trouble_costs_a_renewal_nothing_but_time() {
    let w = World::new(Mode::Endpoints).await;
    let (a, _) = lead(&w, "a").await;
    for status in [500, 503, 429, 403] {
        w.server.faults().fail(w.writes_fault(status, 2));
        let before = now();
        let (record, sent) = written(a.renew(renew(1)).await);
        assert_eq!(w.leader()["metadata"]["annotations"]["renewTime"], record.renew_time.unwrap());
        assert!(
            sent.since(before) >= Duration::from_millis(100).mul_f64(time_scale()),
            "the third attempt stands, not the first"
        );
    }
}

#[tokio::test]
async fn a_server_that_hangs_for_a_while_is_not_a_lost_lease() {
    let w = World::new(Mode::Endpoints).await;
    let (a, _) = lead(&w, "a").await;
    w.server.faults().hang(true);
    let faults = w.server.faults();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        faults.hang(false);
    });
    let (record, _) = written(a.renew(renew(1)).await);
    let shown = w.leader()["metadata"]["annotations"]["renewTime"].as_str().unwrap().to_owned();
    assert_eq!(record.renew_time, Some(shown));
}

#[tokio::test]
async fn a_renewal_nobody_answers_is_unknown_and_when_it_landed_the_next_one_finds_it_ours() {
    let w = World::new(Mode::Endpoints).await;
    let (a, first) = lead(&w, "a").await;
    let faults = w.server.faults();
    faults.drop_reply(FaultRule {
        method: "PATCH".into(),
        path_contains: "/endpoints/demo".into(),
        ..FaultRule::default()
    });
    faults.fail(FaultRule { method: "GET".into(), path_contains: "/endpoints/demo".into(), ..FaultRule::default() });
    faults.cut_watches();
    let mut want = renew(1);
    want.deadline = Duration::from_millis(800);
    assert!(matches!(a.renew(want).await, JobEnd::Unknown(_)));
    faults.clear();
    let landed = w.leader()["metadata"]["annotations"]["renewTime"].clone();
    assert_ne!(landed, first.renew_time.clone().unwrap());
    let (record, _) = written(a.renew(renew(2)).await);
    assert_ne!(landed, record.renew_time.unwrap());
    assert_eq!(record.transitions, first.transitions);
}

#[tokio::test]
async fn a_status_only_write_by_somebody_else_is_no_loss() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, record) = lead(&w, "a").await;
        let b = w.store("b").await;
        // Behind a's back: its watch is cut and cannot come back before the renewal is sent.
        w.server.faults().fail(FaultRule {
            method: "GET".into(),
            path_contains: "watch=true".into(),
            ..FaultRule::default()
        });
        w.server.faults().cut_watches();
        w.annotate_leader(json!({"optime": "4711"}));
        let (second, _) = written(a.renew(renew(1)).await);
        assert_eq!(second.acquire_time, record.acquire_time);
        // The same for a takeover: a bare change of the version does not spoil what stood.
        w.annotate_leader(json!({"optime": "4712"}));
        let (third, _) = written(b.acquire(acquire(Some(second))).await);
        assert_eq!(third.leader, Some("b".into()));
    }
}

#[tokio::test]
async fn a_lease_is_lost_only_to_a_holder_that_a_fresh_read_names() {
    let w = World::new(Mode::ConfigMaps).await;
    let (a, record) = lead(&w, "a").await;
    let b = w.store("b").await;
    written(b.acquire(acquire(Some(record.clone()))).await);
    assert_eq!(lost(a.renew(renew(1)).await).as_deref(), Some("b"));
    assert_eq!(lost(a.acquire(acquire(Some(record))).await).as_deref(), Some("b"));
    assert_eq!(lost(a.release(None).await).as_deref(), Some("b"));
    written(b.release(None).await);
    assert_eq!(lost(b.renew(renew(1)).await), None);
}

#[tokio::test]
async fn a_record_with_my_name_is_a_strangers_until_it_is_adopted() {
    let w = World::new(Mode::Endpoints).await;
    let (old, record) = lead(&w, "a").await;
    drop(old);
    let mut o = w.options("a");
    o.session = "another session".into();
    let again = w.store_with(o).await;
    let leader = again.leader().await.unwrap();
    assert!(!again.is_mine(&leader));
    assert_eq!(lost(again.renew(renew(1)).await).as_deref(), Some("a"));
    again.adopt(schema::from_note(&schema::note(&record)).unwrap());
    assert!(again.is_mine(&leader));
    let (kept, _) = written(again.renew(renew(1)).await);
    assert_eq!((kept.acquire_time, kept.transitions), (record.acquire_time, record.transitions));
}

#[tokio::test]
async fn a_forbidden_write_says_which_permission_is_missing() {
    let w = World::new(Mode::Endpoints).await;
    let rules = [("get", "*"), ("list", "*"), ("watch", "*")].map(|(v, r)| (v.to_owned(), r.to_owned()));
    w.server.add_token_with_rules("reader", "reader-token", rules.to_vec());
    let mut o = w.options("a");
    o.access = Access::Server { url: w.server.url(), token: Some("reader-token".into()) };
    let a = w.store_with(o).await;
    match a.acquire(acquire(None)).await {
        JobEnd::Refused(why) => {
            assert!(why.starts_with("Forbidden: the service account needs verb create on endpoints"), "{why}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn no_change_is_lost_when_watches_are_cut_or_expired() {
    tokio::join!(cut_and_expire(Mode::Endpoints), cut_and_expire(Mode::ConfigMaps));
}

async fn cut_and_expire(mode: Mode) {
    let w = World::new(mode).await;
    let (a, _) = lead(&w, "a").await;
    let b = w.store("b").await;
    let mut last = String::new();
    for round in 0..4 {
        w.server.faults().cut_watches();
        let (record, _) = written(a.renew(renew(round)).await);
        if round % 2 == 1 {
            w.server.compact();
        }
        last = record.renew_time.unwrap();
        see(&b, "the renewal", |v| {
            v.cluster.leader.as_ref().is_some_and(|l| l.lease.renew_time.as_ref() == Some(&last))
        })
        .await;
    }
    // A pod and an object that vanish while nobody listens are missing after the relist.
    w.server.faults().fail(FaultRule { method: "GET".into(), ..FaultRule::default() });
    w.server.faults().cut_watches();
    see(&b, "a broken link", |v| matches!(v.link, StoreLink::Broken { .. })).await;
    w.server.store().delete("pods", "default", "c").unwrap();
    w.server.store().delete(w.kind(), "default", w.leader_name()).unwrap();
    w.server.compact();
    let received = b.view().borrow().lease_received;
    w.server.faults().clear();
    let view = see(&b, "both gone", |v| {
        v.cluster.leader.is_none() && v.cluster.members.len() == 2 && v.link == StoreLink::Following
    })
    .await;
    assert!(view.lease_received > received, "a vanished object is a change of the record");
    assert!(!last.is_empty());
}

fn claim(expect: Option<Version>) -> StoreWrite {
    StoreWrite::ClaimInitialize { expect }
}

fn config(expect: Version, document: &str) -> StoreWrite {
    StoreWrite::Config { expect: Some(expect), document: document.into() }
}

fn system_id(expect: Version, system_id: &str) -> StoreWrite {
    StoreWrite::SystemId { expect: Some(expect), system_id: system_id.into() }
}

fn clear(expect: Version) -> StoreWrite {
    StoreWrite::ClearRequest { expect }
}

fn version_of_config(view: &View) -> Option<Version> {
    view.cluster.config.as_ref().map(|c| c.version.clone())
}

#[tokio::test]
async fn the_initialize_race_has_one_winner_and_ends_with_the_system_identifier() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, b) = (w.store("a").await, w.store("b").await);
        let (x, y) = tokio::join!(a.write(claim(None)), b.write(claim(None)));
        let wins: Vec<bool> = [&x, &y].iter().map(|r| matches!(r, WriteResult::Written(_))).collect();
        assert_eq!(wins.iter().filter(|w| **w).count(), 1, "{x:?} {y:?}");
        let (winner, session) = if wins[0] { (&a, "session-of-a") } else { (&b, "session-of-b") };
        let view = see(winner, "the claim", |v| v.cluster.initialize == Initialize::InProgress).await;
        assert_eq!(view.cluster.initializer.as_ref().unwrap().session, session);
        let version = view.cluster.config.as_ref().unwrap().version.clone();
        let WriteResult::Written(next) = winner.write(config(version.clone(), r#"{ "ttl": 30 }"#)).await else {
            panic!()
        };
        assert_eq!(winner.write(config(version, "{}")).await, WriteResult::Conflict);
        assert!(matches!(winner.write(config(next.clone(), "[]")).await, WriteResult::Refused(_)));
        assert!(matches!(winner.write(system_id(next, "7123456789012345678")).await, WriteResult::Written(_)));
        let view = see(&b, "the identifier", |v| v.cluster.initialize.system_id() == Some("7123456789012345678")).await;
        assert_eq!(
            (view.cluster.initializer.clone(), view.cluster.config.as_ref().unwrap().document.as_deref()),
            (None, Some(r#"{"ttl":30}"#))
        );
        let rows =
            vec![HistoryRow { timeline: Timeline(1), lsn: Lsn(5), reason: "r".into(), at: None, new_leader: None }];
        let history = StoreWrite::History { expect: version_of_config(&view), rows: rows.clone() };
        assert!(matches!(a.write(history).await, WriteResult::Written(_)));
        see(&b, "the history", |v| v.cluster.history.as_ref() == Some(&rows)).await;
        let services = w.server.store().list("services", "default").unwrap();
        assert_eq!(services.iter().any(|s| s["metadata"]["name"] == "demo-config"), mode == Mode::Endpoints);
    }
}

#[tokio::test]
async fn a_request_is_written_seen_and_cleared_once() {
    let w = World::new(Mode::ConfigMaps).await;
    let ctl = KubeStore::connect(StoreOptions { member: None, ..w.options("a") }).await.unwrap();
    let a = w.store("a").await;
    ctl.read_cluster_once().await.unwrap();
    let request = RequestText { candidate: Some("b".into()), ..RequestText::default() };
    assert!(matches!(ctl.write(StoreWrite::SetRequest(request.clone())).await, WriteResult::Written(_)));
    let bad = RequestText { scheduled_at: Some("soon".into()), ..request };
    assert!(matches!(ctl.write(StoreWrite::SetRequest(bad)).await, WriteResult::Refused(_)));
    let view = see(&a, "the request", |v| v.cluster.request().is_some()).await;
    let version = view.cluster.failover.as_ref().unwrap().version.clone();
    assert!(matches!(a.write(clear(version.clone())).await, WriteResult::Written(_)));
    assert_eq!(a.write(clear(version)).await, WriteResult::Conflict);
    assert!(a.view().borrow().cluster.request().is_none());
    let take = LeaderWrite {
        expect: None,
        record: LeaseRecord::default(),
        holder: None,
        status: LeaderStatus::default(),
        released: Change::Keep,
        claim: Change::Keep,
        failsafe: Change::Keep,
    };
    assert!(matches!(ctl.write_leader(take).await, LeaderWritten::Refused(_)), "patronictl is no member");
}

#[tokio::test]
async fn objects_made_by_somebody_else_without_our_labels_are_adopted() {
    let w = World::new(Mode::Endpoints).await;
    for name in ["demo", "demo-config"] {
        w.server
            .store()
            .create(
                "endpoints",
                "default",
                json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}}),
            )
            .unwrap();
    }
    let a = w.store("a").await;
    assert!(a.view().borrow().cluster.leader.is_none(), "invisible without labels");
    written(a.acquire(acquire(None)).await);
    assert_eq!(w.leader()["metadata"]["labels"]["cluster-name"], "demo");
    assert_eq!(a.write(claim(None)).await, WriteResult::Conflict);
    let view = see(&a, "the config object", |v| v.cluster.config.is_some()).await;
    let version = view.cluster.config.as_ref().unwrap().version.clone();
    assert!(matches!(a.write(claim(Some(version))).await, WriteResult::Written(_)));
}

#[tokio::test]
async fn member_data_is_sent_only_when_it_changed_and_the_leader_strips_foreign_labels() {
    let w = World::new(Mode::ConfigMaps).await;
    let (a, b) = (w.store("a").await, w.store("b").await);
    let mut status =
        MemberStatus::new("postgres://h:5432/postgres", "http://h:8008/patroni", PostgresState::Running, Role::Primary);
    status.is_leader = true;
    assert!(matches!(a.publish_member(status.clone()).await, WriteResult::Written(_)));
    let view = see(&b, "the member", |v| v.cluster.members[&MemberName::from("a")].role == Some(Role::Primary)).await;
    let member = &view.cluster.members[&MemberName::from("a")];
    assert_eq!((member.role_label.as_deref(), member.version.as_deref()), (Some("master"), Some("4.1.5")));
    assert_eq!(member.implementation.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    w.server.reset_request_counts();
    assert!(matches!(a.publish_member(status.clone()).await, WriteResult::Written(_)));
    assert_eq!(w.server.request_counts().get(&("patch".into(), "pods".into())), None, "nothing changed, nothing sent");
    assert_eq!(b.strip_leader_label().await, ["a".into()]);
    let pod = w.server.store().get("pods", "default", "a").unwrap();
    assert_eq!(pod["metadata"]["labels"].get("role"), None);
    assert_eq!(a.strip_leader_label().await, Vec::<MemberName>::new());
    // Its own data differs now (the label is gone), so it is written again.
    see(&a, "the stripped label", |v| v.cluster.members[&MemberName::from("a")].role_label.is_none()).await;
    status.is_leader = false;
    status.role = Role::Replica;
    assert!(matches!(a.publish_member(status).await, WriteResult::Written(_)));
    assert_eq!(w.server.store().get("pods", "default", "a").unwrap()["metadata"]["labels"]["role"], "replica");
}

#[tokio::test]
async fn wishes_that_cannot_be_met_are_refused_by_name() {
    let w = World::new(Mode::Endpoints).await;
    let mut o = w.options("a");
    o.bypass_api_service = true;
    let err = KubeStore::connect(o).await.err().unwrap();
    assert!(err.to_string().contains("bypass_api_service"), "{err}");
    w.server.store().merge("pods", "default", "c", &json!({"metadata": {"labels": {"application": null}}})).unwrap();
    let err = KubeStore::connect(w.options("c")).await.unwrap().my_pod().await.unwrap_err();
    assert!(err.to_string().contains("application=patroni"), "{err}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), w.server.kubeconfig()).unwrap();
    let mut o = w.options("a");
    o.access = Access::Kubeconfig { file: file.path().to_owned(), context: Some("kind-kind".into()) };
    let err = KubeStore::connect(o.clone()).await.err().unwrap();
    assert!(err.to_string().contains("kind-kind") && err.to_string().contains("patroni-demo"), "{err}");
    o.access = Access::Kubeconfig { file: file.path().to_owned(), context: None };
    let store = KubeStore::connect(o).await.unwrap();
    assert_eq!(store.read_cluster_once().await.unwrap().cluster.members.len(), 2);
}
