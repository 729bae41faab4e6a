//! My pod is the pod of my UID. A namesake is a stranger: StatefulSets give a name out again.

use patroni::dcs::{Dcs, MemberStatus, WriteResult, schema};
use patroni::kubemem::FaultRule;
use patroni::model::{PostgresState, Role};
use serde_json::json;

use super::world::*;

/// The pod `a` is deleted by force and made again, while the process in the first one lives on.
fn replace_a(w: &World) {
    w.server.store().delete("pods", "default", "a").unwrap();
    w.create_pod("a", 7);
}

fn status(state: PostgresState) -> MemberStatus {
    MemberStatus::new("postgres://127.0.1.0/postgres", "http://127.0.1.0:8008/patroni", state, Role::Primary)
}

#[tokio::test]
async fn the_uid_of_a_namesake_never_gets_into_the_lock() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, _) = lead(&w, "a").await;
        let (mine, known) = (w.uid("a"), a.my_pod().await.unwrap());
        assert_eq!(known.uid, mine);
        replace_a(&w);
        see(&a, "the namesake", |v| v.cluster.members.get(&"a".into()).is_some_and(|m| m.uid == w.uid("a"))).await;
        written(a.renew(renew(5)).await);
        let object = w.leader();
        let holder =
            schema::holder_from(object["metadata"]["annotations"]["patroni.holder"].as_str().unwrap()).unwrap();
        assert_eq!(holder.uid, mine, "{mode:?}");
        if object["subsets"].is_array() {
            assert_eq!(object["subsets"][0]["addresses"][0]["ip"], "127.0.1.0", "clients are not sent to the namesake");
        }
        assert!(a.is_leaving(), "{mode:?}: this pod is gone");
        let me = a.view().borrow().me.clone();
        assert_eq!((me.uid, me.leaving), (mine, true));
    }
}

#[tokio::test]
async fn a_member_whose_pod_was_replaced_publishes_nothing_on_the_namesake() {
    let w = World::new(patroni::dcs::kube::Mode::ConfigMaps).await;
    let a = w.store("a").await;
    assert!(matches!(a.publish_member(status(PostgresState::Starting)).await, WriteResult::Written(_)));
    // Behind a's back: its watches are cut and cannot come back.
    w.server.faults().fail(FaultRule { method: "GET".into(), ..FaultRule::default() });
    w.server.faults().cut_watches();
    replace_a(&w);
    let refused = a.publish_member(status(PostgresState::Running)).await;
    let WriteResult::Refused(why) = refused else { panic!("{refused:?}") };
    assert!(why.contains("this pod was replaced"), "{why}");
    let namesake = w.server.store().get("pods", "default", "a").unwrap();
    assert_eq!(namesake["metadata"]["annotations"].get("status"), None);
    assert_eq!(namesake["metadata"]["labels"].get("role"), None);
    assert!(a.is_leaving());
}

#[tokio::test]
async fn a_pod_that_vanished_is_gone_but_one_that_lost_its_label_is_not() {
    let w = World::new(patroni::dcs::kube::Mode::Endpoints).await;
    let (a, b) = (w.store("a").await, w.store("b").await);
    let label = |value: serde_json::Value| json!({"metadata": {"labels": {"application": value}}});
    w.server.store().merge("pods", "default", "b", &label(json!(null))).unwrap();
    w.server.store().delete("pods", "default", "a").unwrap();
    see(&a, "that it is gone", |v| v.me.leaving).await;
    assert!(a.is_leaving());
    see(&b, "one member left", |v| v.cluster.members.len() == 1).await;
    w.server.store().merge("pods", "default", "b", &label(json!("patroni"))).unwrap();
    see(&b, "itself", |v| v.cluster.members.contains_key(&"b".into())).await;
    assert!(!b.is_leaving() && !b.view().borrow().me.leaving);
}

#[tokio::test]
async fn a_conflict_of_other_writers_does_not_mean_that_the_pod_was_replaced() {
    let w = World::new(patroni::dcs::kube::Mode::ConfigMaps).await;
    let a = w.store("a").await;
    w.server.faults().fail(FaultRule {
        method: "PATCH".into(),
        path_contains: "/pods/a".into(),
        status: 409,
        count: 1,
        only_token: None,
    });
    assert_eq!(a.publish_member(status(PostgresState::Starting)).await, WriteResult::Conflict);
    assert!(!a.is_leaving());
    assert!(matches!(a.publish_member(status(PostgresState::Starting)).await, WriteResult::Written(_)));
}
