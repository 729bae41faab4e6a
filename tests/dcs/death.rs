//! Proof of death: every container, the right incarnation, a valid mark (design §5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use patroni::dcs::kube::{KubeStore, Mode};
use patroni::dcs::{Acquire, Dcs, DcsError, LeaseWrite, schema};
use patroni::model::{MemberName, ProofOfDeath};
use serde_json::{Value, json};

use super::world::*;

/// When reported containers began; those of `World` began half a year before.
const LATER: &str = "2025-06-01T00:00:00Z";

/// Container statuses of pod `a`: (container, ID, terminated in `state`, terminated ID in `lastState`).
fn report(w: &World, statuses: &[(&str, &str, bool, Option<&str>)]) {
    let ended =
        |id: &str| json!({"terminated": {"containerID": id, "exitCode": 137, "startedAt": null, "finishedAt": null}});
    let list: Vec<Value> = statuses
        .iter()
        .map(|(name, id, dead, last)| {
            json!({"name": name, "containerID": id, "image": "x", "imageID": "x", "ready": false, "restartCount": 1,
                "state": if *dead { ended(id) } else { json!({"running": {"startedAt": LATER}}) },
                "lastState": last.map_or(json!({}), ended)})
        })
        .collect();
    w.server.store().merge("pods", "default", "a", &json!({"status": {"containerStatuses": list}})).unwrap();
}

#[tokio::test]
async fn death_is_proven_by_every_container_and_a_valid_mark_only() {
    const P: &str = "containerd://a-postgres";
    const S: &str = "containerd://a-patroni";
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, record) = lead(&w, "a").await;
        let b = w.store("b").await;
        let mark = b.read_lease(DEADLINE).await.unwrap().unwrap().holder.unwrap();
        let prove = |uid: &str, containers: &BTreeMap<String, String>| {
            b.prove_death(record.clone(), uid.to_owned(), "a".into(), containers.clone())
        };
        let none = |got: Result<Option<_>, DcsError>, why: &str| assert_eq!(got, Ok(None), "{mode:?}: {why}");
        none(prove(&mark.uid, &mark.containers).await, "alive");
        let failed = json!({"status": {"phase": "Failed", "reason": "somebody said so",
            "conditions": [{"type": "Ready", "status": "False"}]}, "metadata": {"deletionTimestamp": "2025-06-01T00:00:00Z"}});
        w.server.store().merge("pods", "default", "a", &failed).unwrap();
        none(prove(&mark.uid, &mark.containers).await, "phase, conditions and deletionTimestamp prove nothing");
        report(&w, &[("postgres", P, true, None), ("patroni", S, false, None)]);
        none(prove(&mark.uid, &mark.containers).await, "one container of two");
        report(&w, &[("postgres", "containerd://new", true, None), ("patroni", S, true, None)]);
        none(prove(&mark.uid, &mark.containers).await, "another container of that name ended");
        report(&w, &[("postgres", "containerd://new", false, Some(P)), ("patroni", S, true, None)]);
        none(prove("another-uid", &mark.containers).await, "other UID");
        none(prove("", &mark.containers).await, "no UID");
        none(prove(&mark.uid, &BTreeMap::new()).await, "no containers");
        let one = BTreeMap::from([("patroni".to_owned(), S.to_owned())]);
        none(prove(&mark.uid, &one).await, "the mark names fewer containers than the pod has");
        let proof = prove(&mark.uid, &mark.containers).await.unwrap().expect("state and lastState name both IDs");
        assert_eq!((&proof.record, proof.how.contains("patroni, postgres")), (&record, true), "{}", proof.how);
        // The takeover needs the mark to be valid in its own fresh read.
        w.annotate_leader(json!({"patroni.holder": schema::holder_text(&patroni::model::HolderMark { renew_time: "other".into(), ..mark.clone() })}));
        none(prove(&mark.uid, &mark.containers).await, "annotation not valid");
        let want = Acquire { proven_dead: true, ..acquire(Some(record.clone())) };
        assert!(matches!(b.acquire(want.clone()).await, LeaseWrite::Conflict(_)));
        w.annotate_leader(json!({"patroni.holder": schema::holder_text(&mark)}));
        written(b.acquire(want).await);
        none(prove(&mark.uid, &mark.containers).await, "another record stands");
        drop(a);
    }
}

#[tokio::test]
async fn a_pod_that_is_gone_proves_death_only_when_that_is_opted_in() {
    let w = World::new(Mode::Endpoints).await;
    let (_a, record) = lead(&w, "a").await;
    let careful = w.store("b").await;
    let mut o = w.options("c");
    o.proofs = BTreeSet::from([ProofOfDeath::Released, ProofOfDeath::Terminated, ProofOfDeath::Deleted]);
    let bold = w.store_with(o).await;
    let mark = bold.read_lease(DEADLINE).await.unwrap().unwrap().holder.unwrap();
    let prove = |s: &Arc<KubeStore>| {
        let s = s.clone();
        let (record, uid, containers) = (record.clone(), mark.uid.clone(), mark.containers.clone());
        async move { s.prove_death(record, uid, "a".into(), containers).await.unwrap() }
    };
    assert_eq!(prove(&bold).await, None);
    w.server.store().delete("pods", "default", "a").unwrap();
    assert!(prove(&bold).await.is_some());
    assert_eq!(prove(&careful).await, None);
    w.create_pod("a", 0);
    assert!(prove(&bold).await.is_some(), "the new pod of that name has another UID");
}

#[tokio::test]
async fn container_ids_of_an_earlier_life_are_not_published() {
    let w = World::new(Mode::Endpoints).await;
    let (a, _) = lead(&w, "a").await;
    assert_eq!(a.my_pod().await.unwrap().containers.len(), 2);
    a.set_life(life_since(LATER));
    renewed(a.renew(renew(1)).await);
    let mark = a.read_lease(DEADLINE).await.unwrap().unwrap().holder.unwrap();
    assert!(mark.containers.is_empty());
    report(
        &w,
        &[
            ("postgres", "containerd://new", false, Some("containerd://a-postgres")),
            ("patroni", "containerd://a-patroni", false, None),
        ],
    );
    see(&a, "the report", |v| !v.cluster.members[&MemberName::from("a")].terminated["postgres"].is_empty()).await;
    renewed(a.renew(renew(1)).await);
    let mark = a.read_lease(DEADLINE).await.unwrap().unwrap().holder.unwrap();
    assert_eq!(mark.containers["postgres"], "containerd://new");
}
