//! What is wrong is said in one clear line where people look first, and nothing is lost or restarted in circles.

use std::time::Duration;

use patroni::demo::{Res, fail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::kube::{SharedKube, wait_for};
use super::release::{Release, fixed_values, helm};

/// A log line or an event is there.
const SAID: Duration = Duration::from_secs(90);
/// A sidecar that crashed over a refusal would have been started again within this time.
const NO_CRASH_LOOP: Duration = Duration::from_secs(4);

/// A release of one name in a namespace of its own, nothing awaited.
async fn install(kube: &SharedKube, namespace: &str, name: &str, members: usize, values: &[&str]) -> Res<()> {
    let fixed = fixed_values(members);
    let all: Vec<&str> = fixed.iter().map(String::as_str).chain(values.iter().copied()).collect();
    helm(kube, "install", name, namespace, &all).await.map(drop)
}

/// Waits until a container's log has a line with all these words; returns it.
async fn says(kube: &SharedKube, namespace: &str, pod: &str, container: &str, words: &[&str]) -> Res<String> {
    wait_for(&format!("{pod} {container} says {words:?}"), SAID, async || {
        let (_, log) = kube.try_kubectl(&["-n", namespace, "logs", pod, "-c", container, "--tail=200"]).await?;
        let line = log.lines().find(|l| words.iter().all(|w| l.contains(w)));
        Ok(line.map(str::to_owned).ok_or_else(|| log.lines().last().unwrap_or_default().to_owned()))
    })
    .await
}

async fn remove(kube: &SharedKube, namespace: &str) -> Res<()> {
    kube.kubectl(&["delete", "namespace", namespace, "--wait=true"]).await?;
    kube.script(&["volumes"]).await.map(drop)
}

/// The Role without one verb of one rule, for another namespace.
fn without(role: &Value, rule: usize, verb: &str, namespace: &str) -> String {
    let mut rules = role["rules"].clone();
    if let Some(verbs) = rules[rule]["verbs"].as_array_mut() {
        verbs.retain(|v| v != verb);
    }
    let name = &role["metadata"]["name"];
    let group = "rbac.authorization.k8s.io";
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": {"name": name, "namespace": namespace},
            "rules": rules},
        {"apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]},
    ]});
    list.to_string()
}

/// docs/kubernetes.md, RBAC: the Role is the exact set. Without any one verb the sidecar says which, and does not crash.
pub async fn without_a_verb_the_sidecar_names_it(kube: SharedKube) -> Res<()> {
    let whole = Release::install(&kube, "rbac", 1, &[]).await?;
    let role: Value = serde_json::from_str(&whole.kubectl(&["get", "role", "rbac", "-o", "json"]).await?)?;
    whole.remove().await?;
    for (i, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
        let resource = rule["resources"][0].as_str().unwrap_or_default();
        for verb in rule["verbs"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if resource == "services" {
                // Only should the chart's own Service be missing.
                continue;
            }
            one_verb(&kube, &role, i, resource, verb).await?;
        }
    }
    Ok(())
}

async fn one_verb(kube: &SharedKube, role: &Value, rule: usize, resource: &str, verb: &str) -> Res<()> {
    let namespace = format!("rbac-{resource}-{verb}");
    kube.kubectl(&["create", "namespace", &namespace]).await?;
    kube.apply(&without(role, rule, verb, &namespace)).await?;
    // A pod is read afresh only for the proof that a lock holder is dead: that takes two members and a death.
    let proof = resource == "pods" && verb == "get";
    install(kube, &namespace, "rbac", if proof { 2 } else { 1 }, &["rbac.create=false"]).await?;
    let mut witness = "rbac-0".to_owned();
    if proof {
        witness = kill_the_leader(kube, &namespace).await?;
    }
    let words = ["Forbidden", &format!("needs verb {verb} on {resource}")];
    let line = says(kube, &namespace, &witness, "patroni", &words).await?;
    println!("  {line}");
    sleep(NO_CRASH_LOOP).await;
    let path = "jsonpath={.status.containerStatuses[?(@.name=='patroni')].restartCount}";
    let restarts = kube.kubectl(&["-n", &namespace, "get", "pod", &witness, "-o", path]).await?;
    if restarts.trim() != "0" {
        return fail(format!("without {verb} on {resource} the sidecar was restarted {restarts} times"));
    }
    remove(kube, &namespace).await
}

/// Kills both containers of the leader of two; returns the other one.
async fn kill_the_leader(kube: &SharedKube, namespace: &str) -> Res<String> {
    let role = async |pod: &str| {
        kube.kubectl(&["-n", namespace, "get", "pod", pod, "-o", "jsonpath={.metadata.labels.role}"]).await
    };
    let leader = wait_for("a leader and a replica", SAID, async || {
        let (a, b) = (role("rbac-0").await?, role("rbac-1").await?);
        Ok(match (a.as_str(), b.as_str()) {
            ("master", "replica") => Ok("rbac-0"),
            ("replica", "master") => Ok("rbac-1"),
            _ => Err(format!("roles {a}, {b}")),
        })
    })
    .await?;
    for container in ["patroni", "postgres"] {
        kube.fault(&["container-kill", "-n", namespace, leader, container]).await?;
    }
    Ok(if leader == "rbac-0" { "rbac-1" } else { "rbac-0" }.to_owned())
}

/// A uid that the Postgres image does not know is said by the check before anything starts.
pub async fn a_wrong_uid_is_said_before_anything_starts(kube: SharedKube) -> Res<()> {
    kube.kubectl(&["create", "namespace", "uid"]).await?;
    install(&kube, "uid", "uid", 1, &["postgres.uid=998"]).await?;
    let line = says(&kube, "uid", "uid-0", "check", &["runs as user 998", "Set postgres.uid"]).await?;
    println!("  {line}");
    remove(&kube, "uid").await
}

/// Without the keeper's program the sidecar waits, and says for what.
pub async fn a_missing_keeper_is_waited_for_and_named(kube: SharedKube) -> Res<()> {
    kube.kubectl(&["create", "namespace", "nokeeper"]).await?;
    let thief = r#"initContainers=[{"name":"thief","image":"postgres:15","imagePullPolicy":"Never","command":["rm","/b/postgres-keeper"],"volumeMounts":[{"name":"bin","mountPath":"/b"}]}]"#;
    let fixed = fixed_values(1);
    let mut words = vec!["install", "nokeeper"];
    let chart = format!("{}/charts/patroni", env!("CARGO_MANIFEST_DIR"));
    words.extend([&*chart, "--namespace", "nokeeper", "--set-string", "postgres.image.tag=15", "--set-json", thief]);
    fixed.iter().for_each(|v| words.extend(["--set", v]));
    kube.helm(&words).await?;
    let line = says(&kube, "nokeeper", "nokeeper-0", "patroni", &["waiting for the keeper at", "keeper.sock"]).await?;
    println!("  {line}");
    remove(&kube, "nokeeper").await
}

/// A volume of another cluster: refused in one line, and nothing on it is changed.
pub async fn a_volume_of_another_cluster_is_refused(kube: SharedKube) -> Res<()> {
    let mut release = Release::install(&kube, "foreign", 1, &[]).await?;
    let leader = release.whole(1).await?;
    let id = release.sql(0, "SELECT system_identifier FROM pg_control_system()").await?;
    release.stop_clients();
    kube.kubectl(&["-n", "foreign", "scale", "statefulset", "foreign", "--replicas=0"]).await?;
    wait_for("no pod", SAID, async || {
        let left = release.pods().await?.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} pods")) })
    })
    .await?;
    let annotate = |id: &str| {
        let id = format!("initialize={id}");
        let kube = kube.clone();
        async move { kube.kubectl(&["-n", "foreign", "annotate", "--overwrite", "endpoints", "foreign-config", &id]).await }
    };
    annotate("1234567890123456789").await?;
    kube.kubectl(&["-n", "foreign", "scale", "statefulset", "foreign", "--replicas=1"]).await?;
    let line = says(&kube, "foreign", &leader.name, "patroni", &["system ID mismatch", "nothing was changed"]).await?;
    println!("  {line}");
    // The right name again, and everything is as it was.
    annotate(&id[0][0]).await?;
    release.whole(1).await?;
    let now = release.sql(0, "SELECT system_identifier FROM pg_control_system()").await?;
    if now != id {
        return fail(format!("system identifier {id:?} became {now:?}"));
    }
    release.remove().await
}

/// The same volume mounted by two pods: the second keeper finds the directory in use, the first goes on.
pub async fn a_volume_in_two_pods_is_used_by_one(kube: SharedKube) -> Res<()> {
    let release = Release::install(&kube, "twin", 1, &[]).await?;
    let since = Instant::now();
    let claim = release.kubectl(&["get", "pvc", "data-twin-0", "-o", "jsonpath={.spec.volumeName}"]).await?;
    let volume: Value = serde_json::from_str(&kube.kubectl(&["get", "pv", claim.trim(), "-o", "json"]).await?)?;
    let again = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "twin-again"}, "spec": {
        "capacity": volume["spec"]["capacity"], "accessModes": volume["spec"]["accessModes"],
        "storageClassName": volume["spec"]["storageClassName"], "persistentVolumeReclaimPolicy": "Retain",
        "local": volume["spec"]["local"], "nodeAffinity": volume["spec"]["nodeAffinity"],
        "claimRef": {"namespace": "twin2", "name": "data-twin-0"}}});
    kube.apply(&again.to_string()).await?;
    kube.kubectl(&["create", "namespace", "twin2"]).await?;
    install(&kube, "twin2", "twin", 1, &[]).await?;
    let line = says(&kube, "twin2", "twin-0", "patroni", &["in use by what another keeper has started"]).await?;
    println!("  {line}");
    release.judge(1, since, super::release::Allowed::Nothing).await?;
    kube.kubectl(&["delete", "namespace", "twin2", "--wait=true"]).await?;
    kube.kubectl(&["delete", "pv", "twin-again"]).await?;
    release.remove().await
}
