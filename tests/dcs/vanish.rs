//! The holder of an unexpired lease whose object vanished, was re-made or lost its keys writes it again: nobody can have
//! taken the lock meanwhile, and to demote would only add an outage. Not when somebody has held it since, and not when its
//! own pod is leaving.

use patroni::dcs::Dcs as _;
use patroni::kubemem::FaultRule;
use patroni::model::{LeaseRecord, Stood, StoreWrite, Version, WriteResult};
use serde_json::{Value, json};

use super::world::*;

/// The record is there again as the same acquisition, renewed.
fn same_acquisition(w: &World, before: &LeaseRecord, after: &LeaseRecord) {
    assert_eq!(LeaseRecord { renew_time: before.renew_time.clone(), ..after.clone() }, *before, "{:?}", w.mode);
    assert_ne!(after.renew_time, before.renew_time, "{:?}", w.mode);
    let annotations = &w.leader()["metadata"]["annotations"];
    let text = |key: &str| annotations[key].as_str().map(ToOwned::to_owned);
    assert_eq!((text("leader"), text("acquireTime")), (Some("a".into()), before.acquire_time.clone()));
    assert_eq!((text("transitions"), text("renewTime")), (before.transitions.clone(), after.renew_time.clone()));
}

fn delete_leader(w: &World) {
    w.server.store().delete(w.kind(), "default", w.leader_name()).unwrap();
}

fn create_leader(w: &World, annotations: &Value) {
    let labels = json!({"application": "patroni", "cluster-name": "demo"});
    let metadata = json!({"name": w.leader_name(), "labels": labels, "annotations": annotations});
    w.server.store().create(w.kind(), "default", json!({"metadata": metadata})).unwrap();
}

/// The second holder of a lock, so that `transitions` is not what a new object begins with.
async fn second_holder(w: &World) -> (std::sync::Arc<Shell>, LeaseRecord) {
    let (b, first) = lead(w, "b").await;
    let a = w.store("a").await;
    let (record, _) = written(a.acquire(acquire(Some(first))).await);
    assert_eq!(record.transitions.as_deref(), Some("1"));
    drop(b);
    (a, record)
}

#[tokio::test]
async fn an_object_that_vanished_is_made_again_for_the_same_acquisition() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, record) = second_holder(&w).await;
        // Once seen, once behind its back.
        delete_leader(&w);
        see(&a, "that it is gone", |v| v.cluster.leader.is_none()).await;
        let (second, _) = written(a.renew(renew(1)).await);
        same_acquisition(&w, &record, &second);
        let watches = FaultRule { method: "GET".into(), path_contains: "watch=true".into(), ..FaultRule::default() };
        w.server.faults().fail(watches);
        w.server.faults().cut_watches();
        delete_leader(&w);
        let (third, _) = written(a.renew(renew(2)).await);
        same_acquisition(&w, &second, &third);
    }
}

#[tokio::test]
async fn an_object_that_was_made_again_without_keys_gets_them_back() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, record) = second_holder(&w).await;
        delete_leader(&w);
        create_leader(&w, &json!({}));
        let (renewed, _) = written(a.renew(renew(1)).await);
        same_acquisition(&w, &record, &renewed);
    }
}

#[tokio::test]
async fn an_object_stripped_of_its_leader_gets_it_back() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, record) = second_holder(&w).await;
        w.annotate_leader(json!({"leader": null}));
        assert!(!a.leader().await.unwrap().released_by_holder(), "nobody released it");
        let (renewed, _) = written(a.renew(renew(1)).await);
        same_acquisition(&w, &record, &renewed);
    }
}

#[tokio::test]
async fn a_lock_that_somebody_else_has_held_since_is_lost() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, record) = lead(&w, "a").await;
        let b = w.store("b").await;
        written(b.acquire(acquire(Some(record.clone()))).await);
        written(b.release(None).await);
        assert_eq!(lost(a.renew(renew(1)).await), None, "{mode:?}: released by the next holder");
        assert_eq!(w.leader()["metadata"]["annotations"].get("leader"), None);
    }
}

#[tokio::test]
async fn an_object_made_again_with_another_holder_is_lost() {
    let w = World::new(patroni::dcs::kube::Mode::ConfigMaps).await;
    let (a, _) = lead(&w, "a").await;
    delete_leader(&w);
    create_leader(&w, &json!({"leader": "b", "ttl": "30", "acquireTime": "x", "renewTime": "x", "transitions": "0"}));
    assert_eq!(lost(a.renew(renew(1)).await).as_deref(), Some("b"));
}

#[tokio::test]
async fn a_member_whose_pod_is_leaving_does_not_make_the_object_again() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, _) = lead(&w, "a").await;
        w.server.store().delete("pods", "default", "a").unwrap();
        see(&a, "that it is leaving", |v| v.me.leaving).await;
        delete_leader(&w);
        see(&a, "that it is gone", |v| v.cluster.leader.is_none()).await;
        assert_eq!(lost(a.renew(renew(1)).await), None, "{mode:?}");
        assert!(w.server.store().get(w.kind(), "default", w.leader_name()).is_err());
        assert!(a.view().borrow().cluster.leader.is_none());
    }
}

#[tokio::test]
async fn an_object_that_is_not_there_is_made_naming_nobody_and_taken_in_the_version_that_stood() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, b) = (w.store("a").await, w.store("b").await);
        let WriteResult::Written(version) = a.write(StoreWrite::LeaderObject).await else { panic!("{mode:?}") };
        let WriteResult::Written(same) = b.write(StoreWrite::LeaderObject).await else { panic!("{mode:?}") };
        assert_eq!(version, same, "one that is there stays as it is");
        let view = see(&b, "the object", |v| v.cluster.leader.is_some()).await;
        assert_eq!(view.cluster.leader.as_ref().map(|l| l.lease.clone()), Some(LeaseRecord::default()));
        w.annotate_leader(json!({"somebody": "was here"}));
        let untouched = |version: &Version| Acquire { stood: Stood::Untouched(version.clone()) };
        assert_eq!(lost(b.acquire(untouched(&version)).await), None, "touched since: {mode:?}");
        let stands = b.leader().await.unwrap().version;
        written(b.acquire(untouched(&stands)).await);
        assert_eq!(lost(a.acquire(untouched(&stands)).await).as_deref(), Some("b"), "{mode:?}");
    }
}
