//! Proof of death: every container, the right incarnation, a valid mark. The member is the real machine; its view suggests
//! a death, the two reads that follow are fresh, and only they decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use patroni::dcs::Dcs;
use patroni::dcs::kube::Mode;
use patroni::dcs::schema;
use patroni::driver::clock;
use patroni::member::{Answer, Effect, Id, Identity, InForce, Input, Member, Step};
use patroni::model::{HolderMark, LeaseRecord, MemberName, ProofOfDeath, Settings, Stood, StoreLink, View};
use serde_json::{Value, json};

use super::world::*;

/// When reported containers began; those of `World` began half a year before.
const LATER: &str = "2025-06-01T00:00:00Z";

const P: &str = "containerd://a-postgres";
const S: &str = "containerd://a-patroni";

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

/// A member `b` that looks for a proof.
#[derive(Clone, Copy)]
struct Prover<'a> {
    store: &'a Shell,
    proofs: &'a [ProofOfDeath],
    record: &'a LeaseRecord,
}

impl Prover<'_> {
    fn member(&self) -> Member {
        let proofs: BTreeSet<ProofOfDeath> = self.proofs.iter().copied().collect();
        let in_force = InForce {
            settings: Arc::new(Settings { proofs, ..Settings::default() }),
            document: "".into(),
            to_publish: "{}".into(),
            conn_url: "postgres://b/postgres".into(),
            api_url: "http://b/patroni".into(),
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
        let who = Identity { name: "b".into(), uid: "uid-of-b".into(), session: "prover".into() };
        Member::new(who, Arc::new(in_force), clock::now())
    }

    /// What the member sees: the record with this mark, and a pod that looks as dead as the mark needs it. With `gone`: a
    /// pod that is not there.
    fn suggests(&self, uid: &str, containers: &BTreeMap<String, String>, gone: bool) -> Arc<View> {
        let mut view = (**self.store.view().borrow()).clone();
        let cluster = Arc::make_mut(&mut view.cluster);
        let mut leader = cluster.leader.clone().unwrap();
        leader.lease = self.record.clone();
        leader.holder = Some(HolderMark {
            uid: uid.to_owned(),
            session: "s".into(),
            containers: containers.clone(),
            acquire_time: self.record.acquire_time.clone().unwrap(),
            renew_time: self.record.renew_time.clone().unwrap(),
            paused: false,
            site: None,
        });
        cluster.leader = Some(leader);
        let a = MemberName::from("a");
        if gone {
            cluster.members.remove(&a);
        } else {
            let pod = cluster.members.entry(a).or_default();
            pod.uid = uid.to_owned();
            pod.terminated = containers.iter().map(|(name, id)| (name.clone(), vec![id.clone()])).collect();
        }
        view.link = StoreLink::Following;
        view.lease_received = clock::boot();
        Arc::new(view)
    }

    /// The line with which the member says that the holder is dead, if both reads say so.
    async fn prove(&self, view: Arc<View>) -> Option<String> {
        let mut member = self.member();
        let mut lines = Vec::new();
        let asked = next(
            member.step(Input::View(view), clock::now()),
            &mut lines,
            |e| matches!(e, Effect::ReadPod { name } if name.as_str() == "a"),
        )?;
        let pod = Answer::Pod(self.store.read_pod("a".into()).await);
        let step = member.step(Input::Reply { id: asked, answer: Ok(pod) }, clock::now());
        let Some(asked) = next(step, &mut lines, |e| *e == Effect::ReadLeader) else {
            assert!(lines.iter().any(|l| l.starts_with("no proof")), "{lines:?}");
            return None;
        };
        let leader = Answer::Leader(self.store.read_leader().await.map(|l| l.map(Box::new)));
        let _ = next(member.step(Input::Reply { id: asked, answer: Ok(leader) }, clock::now()), &mut lines, |_| false);
        lines.into_iter().find(|l| l.starts_with("the holder of the leader lock is dead"))
    }
}

/// The request that is looked for among what a step asks.
fn next(step: Step, lines: &mut Vec<String>, wanted: impl Fn(&Effect) -> bool) -> Option<Id> {
    lines.extend(step.lines.into_iter().map(|l| l.text));
    step.effects.into_iter().find(|sent| wanted(&sent.effect)).map(|sent| sent.id)
}

#[tokio::test]
async fn death_is_proven_by_every_container_and_a_valid_mark_only() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, record) = lead(&w, "a").await;
        let b = w.store("b").await;
        let mark = b.leader().await.unwrap().holder.unwrap();
        let proofs = [ProofOfDeath::Released, ProofOfDeath::Terminated];
        let prover = Prover { store: &b, proofs: &proofs, record: &record };
        let prove =
            |uid: &str, containers: &BTreeMap<String, String>| prover.prove(prover.suggests(uid, containers, false));
        let none = |got: Option<String>, why: &str| assert_eq!(got, None, "{mode:?}: {why}");
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
        let how = prove(&mark.uid, &mark.containers).await.expect("state and lastState name both IDs");
        assert!(how.contains("patroni, postgres"), "{how}");
        // The takeover needs the mark to be valid in its own fresh read.
        let other = HolderMark { renew_time: "other".into(), ..mark.clone() };
        w.annotate_leader(json!({"patroni.holder": schema::holder_text(&other)}));
        none(prove(&mark.uid, &mark.containers).await, "annotation not valid");
        let want = Acquire { stood: Stood::ProvenDead(record.clone()) };
        assert_eq!(lost(b.acquire(want.clone()).await).as_deref(), Some("a"));
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
    let b = w.store("b").await;
    let mark = b.leader().await.unwrap().holder.unwrap();
    let all = [ProofOfDeath::Released, ProofOfDeath::Terminated, ProofOfDeath::Deleted];
    let bold = Prover { store: &b, proofs: &all, record: &record };
    let careful = Prover { proofs: &all[..2], ..bold };
    let gone = |p: &Prover<'_>| p.suggests(&mark.uid, &mark.containers, true);
    let looks_dead = |p: &Prover<'_>| p.suggests(&mark.uid, &mark.containers, false);
    assert_eq!(bold.prove(gone(&bold)).await, None);
    w.server.store().delete("pods", "default", "a").unwrap();
    assert!(bold.prove(gone(&bold)).await.is_some());
    assert_eq!(careful.prove(gone(&careful)).await, None);
    assert_eq!(careful.prove(looks_dead(&careful)).await, None, "nor when it asks because the view looked like death");
    w.create_pod("a", 0);
    assert!(bold.prove(gone(&bold)).await.is_some(), "the new pod of that name has another UID");
    assert_eq!(careful.prove(looks_dead(&careful)).await, None);
}

#[tokio::test]
async fn container_ids_of_an_earlier_life_are_not_published() {
    let w = World::new(Mode::Endpoints).await;
    let (a, _) = lead(&w, "a").await;
    assert_eq!(a.my_pod().await.unwrap().containers.len(), 2);
    a.set_life(life_since(LATER));
    written(a.renew(renew(1)).await);
    let mark = a.leader().await.unwrap().holder.unwrap();
    assert!(mark.containers.is_empty());
    report(&w, &[("postgres", "containerd://new", false, Some(P)), ("patroni", S, false, None)]);
    see(&a, "the report", |v| !v.cluster.members[&MemberName::from("a")].terminated["postgres"].is_empty()).await;
    written(a.renew(renew(1)).await);
    let mark = a.leader().await.unwrap().holder.unwrap();
    assert_eq!(mark.containers["postgres"], "containerd://new");
}
