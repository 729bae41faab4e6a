//! One installed release: its pods as the API shows them, clients that write to it, and the verdict at the end.
//!
//! Two sets of clients write all the time, as superuser: one connection through the primary Service, as an application
//! has it, and one to every pod directly. The first tells what an outage costs, the second sees two writers at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ListParams};
use patroni::demo::writer::{self, Ack, Target, Writer};
use patroni::demo::{Res, fail, verdict};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::kube::{SharedKube, wait_for};

/// Members that clients can follow.
const MEMBERS_MAX: usize = 5;
/// The password of every role of a release that lives for minutes.
const PASSWORD: &str = "in-the-test-only";
/// Between two statements of a client.
const EVERY: Duration = Duration::from_millis(10);
/// An application gives a statement up after this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// A release that was just installed or broken is whole again within ttl + 2·loop_wait + 10 s, and pods
/// take their time to be made.
pub const WHOLE: Duration = Duration::from_secs(150);

/// A pod as far as a test looks at it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub name: String,
    pub uid: String,
    pub node: String,
    pub address: Option<SocketAddr>,
    /// The role label.
    pub label: String,
    /// `status` of the member.
    pub status: Value,
    pub ready: bool,
    pub deleting: bool,
    /// Container → restarts.
    pub restarts: BTreeMap<String, i32>,
}

impl Seen {
    fn of(pod: &Pod) -> Seen {
        let (meta, status) = (&pod.metadata, pod.status.clone().unwrap_or_default());
        let annotation = meta.annotations.as_ref().and_then(|a| a.get("status"));
        let containers = status.container_statuses.unwrap_or_default();
        Seen {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
            address: status.pod_ip.and_then(|ip| format!("{ip}:5432").parse().ok()),
            label: meta.labels.as_ref().and_then(|l| l.get("role")).cloned().unwrap_or_default(),
            status: annotation.and_then(|s| serde_json::from_str(s).ok()).unwrap_or_default(),
            ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
            deleting: meta.deletion_timestamp.is_some(),
            restarts: containers.iter().map(|c| (c.name.clone(), c.restart_count)).collect(),
        }
    }
    fn says(&self, key: &str) -> &str {
        self.status.get(key).and_then(Value::as_str).unwrap_or_default()
    }
    fn leads(&self) -> bool {
        self.label == "master" && self.says("role") == "primary" && self.says("state") == "running"
    }
    fn streams(&self) -> bool {
        self.label == "replica" && self.says("state") == "running" && self.says("replication_state") == "streaming"
    }
    /// Its number in the StatefulSet.
    pub fn number(&self) -> usize {
        self.name.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or_default()
    }
}

/// When the kubelet was first seen to report this container ID as terminated.
type Reports = Arc<Mutex<BTreeMap<String, Instant>>>;

/// An installed release.
pub struct Release {
    pub kube: SharedKube,
    /// Release, scope and namespace have one name.
    pub name: String,
    values: Vec<String>,
    addresses: Vec<Arc<watch::Sender<Option<SocketAddr>>>>,
    reports: Reports,
    follower: Option<JoinHandle<()>>,
    /// To every pod.
    pub direct: Option<Writer>,
    /// Through the Service.
    pub service: Option<Writer>,
    /// Statements in flight over a freeze are promised nothing without a watchdog.
    pub thaws: Vec<Instant>,
}

/// The values every test needs.
pub fn fixed_values(members: usize) -> Vec<String> {
    vec![
        "image.repository=localhost/patroni-rs".to_owned(),
        format!("image.tag={}", env!("CARGO_PKG_VERSION")),
        "image.pullPolicy=Never".to_owned(),
        "postgres.image.pullPolicy=Never".to_owned(),
        "persistence.storageClassName=local".to_owned(),
        "persistence.size=1Gi".to_owned(),
        "postgres.resources.requests.cpu=10m".to_owned(),
        "sidecar.resources.requests.cpu=10m".to_owned(),
        format!("replicas={members}"),
        format!("secret.passwords.superuser={PASSWORD}"),
    ]
}

/// `helm VERB NAME charts/patroni` with values.
pub async fn helm(kube: &SharedKube, verb: &str, name: &str, namespace: &str, values: &[&str]) -> Res<String> {
    let chart = format!("{}/charts/patroni", env!("CARGO_MANIFEST_DIR"));
    let mut words = vec![verb, name, &chart, "--namespace", namespace, "--set-string", "postgres.image.tag=15"];
    for value in values {
        words.extend(["--set", value]);
    }
    kube.helm(&words).await
}

/// What may be missing at the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Nothing.
    Nothing,
    /// What asynchronous replication excuses: the tail of a timeline, at most a megabyte.
    Tail,
}

impl Release {
    /// Installs the chart into a namespace of its own, with `values` over those every test needs, and waits until it is
    /// whole and written to.
    pub async fn install(kube: &SharedKube, name: &str, members: usize, values: &[&str]) -> Res<Release> {
        let values: Vec<String> =
            fixed_values(members).into_iter().chain(values.iter().map(|v| (*v).to_owned())).collect();
        let addresses = (0..MEMBERS_MAX).map(|_| Arc::new(watch::channel(None).0)).collect();
        let mut release = Release {
            kube: kube.clone(),
            name: name.to_owned(),
            values,
            addresses,
            reports: Reports::default(),
            follower: None,
            direct: None,
            service: None,
            thaws: Vec::new(),
        };
        release.kube.kubectl(&["create", "namespace", name]).await?;
        release.helm("install", &[]).await?;
        release.follow();
        release.whole(members).await?;
        release.write().await?;
        Ok(release)
    }

    /// `helm install` or `helm upgrade` with more values.
    pub async fn helm(&self, verb: &str, more: &[&str]) -> Res<String> {
        let values: Vec<&str> = self.values.iter().map(String::as_str).chain(more.iter().copied()).collect();
        helm(&self.kube, verb, &self.name, &self.name, &values).await
    }

    /// `kubectl` in the release's namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Res<String> {
        let words: Vec<&str> = ["-n", &self.name].iter().chain(args).copied().collect();
        self.kube.kubectl(&words).await
    }

    /// A fault of a container: `what POD CONTAINER`.
    pub async fn fault(&self, what: &str, pod: &str, container: &str) -> Res<Instant> {
        self.kube.fault(&[what, "-n", &self.name, pod, container]).await
    }

    /// `patronictl` as users call it: kubectl exec into the default container.
    pub async fn patronictl(&self, pod: &str, args: &[&str]) -> Res<String> {
        let words: Vec<&str> = ["exec", pod, "--", "patronictl"].iter().chain(args).copied().collect();
        self.kubectl(&words).await
    }

    fn pods_api(&self) -> Api<Pod> {
        Api::namespaced(self.kube.client.clone(), &self.name)
    }

    /// The members' pods, by name.
    pub async fn pods(&self) -> Res<Vec<Seen>> {
        let members = ListParams::default().labels(&format!("cluster-name={}", self.name));
        let mut seen: Vec<Seen> = self.pods_api().list(&members).await?.items.iter().map(Seen::of).collect();
        seen.sort_by_key(Seen::number);
        Ok(seen)
    }

    /// Follows the pods' addresses for the clients, and notes when the kubelet reports the end of a container.
    fn follow(&mut self) {
        let (api, reports, addresses) = (self.pods_api(), Arc::clone(&self.reports), self.addresses.clone());
        let members = ListParams::default().labels(&format!("cluster-name={}", self.name));
        self.follower = Some(tokio::spawn(async move {
            loop {
                if let Ok(list) = api.list(&members).await {
                    note_reports(&list.items, &reports);
                    let seen: Vec<Seen> = list.items.iter().map(Seen::of).collect();
                    for (i, to) in addresses.iter().enumerate() {
                        let now = seen.iter().find(|s| s.number() == i && !s.name.is_empty()).and_then(|s| s.address);
                        to.send_if_modified(|is| std::mem::replace(is, now) != now);
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
        }));
    }

    /// Starts the clients.
    async fn write(&mut self) -> Res<()> {
        let service: Service = Api::namespaced(self.kube.client.clone(), &self.name).get(&self.name).await?;
        let ip = service.spec.and_then(|s| s.cluster_ip).unwrap_or_default();
        let to = Target {
            address: watch::channel(Some(format!("{ip}:5432").parse()?)).1,
            password: PASSWORD.to_owned(),
            patience: Some(PATIENCE),
        };
        self.service = Some(Writer::toward(vec![to], EVERY, 1 << 40)?);
        self.direct = Some(Writer::toward((0..MEMBERS_MAX).map(|i| self.target(i)).collect(), EVERY, 0)?);
        self.accepts(Instant::now(), WHOLE).await.map(drop)
    }

    /// A pod as a client's target.
    pub fn target(&self, i: usize) -> Target {
        Target { address: self.addresses[i].subscribe(), password: PASSWORD.to_owned(), patience: None }
    }

    /// Rows of a statement on a pod.
    pub async fn sql(&self, i: usize, statement: &str) -> Res<Vec<Vec<String>>> {
        let client = self.target(i).connect().await?;
        Ok(writer::rows(&client, statement).await?)
    }

    /// Waits for a write that was sent after `since` and accepted, through the Service and directly.
    pub async fn accepts(&self, since: Instant, limit: Duration) -> Res<(Ack, Ack)> {
        let (Some(service), Some(direct)) = (&self.service, &self.direct) else { return fail("nobody writes") };
        Ok((service.wait_for_ack(since, limit, |_| true).await?, direct.wait_for_ack(since, limit, |_| true).await?))
    }

    /// Waits until exactly `members` pods are there, one leads and all others stream; returns the leader.
    pub async fn whole(&self, members: usize) -> Res<Seen> {
        self.whole_within(members, WHOLE).await
    }

    /// As [`Release::whole`].
    pub async fn whole_within(&self, members: usize, limit: Duration) -> Res<Seen> {
        let whole = async || {
            let pods = self.pods().await?;
            let leaders: Vec<&Seen> = pods.iter().filter(|p| p.leads()).collect();
            let rest = pods.iter().filter(|p| p.streams()).count();
            let still = pods.len() == members && leaders.len() == 1 && rest + 1 == members;
            Ok(match (still && pods.iter().all(|p| p.ready && !p.deleting), leaders.first()) {
                (true, Some(leader)) => Ok((*leader).clone()),
                _ => Err(pods
                    .iter()
                    .map(|p| format!("{} {}: {}", p.name, p.label, p.status))
                    .collect::<Vec<_>>()
                    .join("\n")),
            })
        };
        let found = wait_for(&format!("{} whole", self.name), limit, whole).await;
        match found {
            Ok(leader) => Ok(leader),
            Err(e) => fail(format!("{e}\n{}", self.diagnosis().await)),
        }
    }

    /// Waits until the lock names these containers, so that their end proves the death of its holder.
    pub async fn names(&self, ids: &BTreeMap<String, String>) -> Res<()> {
        wait_for("a lock that names the containers of its holder", WHOLE, async || {
            let path = "jsonpath={.metadata.annotations.patroni\\.holder}";
            let holder: Value =
                serde_json::from_str(&self.kubectl(&["get", "endpoints", &self.name, "-o", path]).await?)?;
            let named = ids.iter().all(|(name, id)| holder["containers"][name].as_str() == Some(id));
            Ok(if named { Ok(()) } else { Err(holder.to_string()) })
        })
        .await
    }

    /// The first row acknowledged after `since` by a member that fits.
    pub async fn written_again(&self, since: Instant, fits: impl Fn(&Ack) -> bool) -> Res<Ack> {
        let Some(direct) = &self.direct else { return fail("nobody writes") };
        match direct.wait_for_ack(since, WHOLE, fits).await {
            Ok(ack) => Ok(ack),
            Err(e) => fail(format!("{e}\n{}", self.diagnosis().await)),
        }
    }

    /// When the kubelet was first seen to report the end of `container`s with this ID prefix.
    pub fn reported(&self, container_id: &str) -> Option<Instant> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).get(container_id).copied()
    }

    /// The container IDs of a pod.
    pub async fn container_ids(&self, pod: &str) -> Res<BTreeMap<String, String>> {
        let pod = self.pods_api().get(pod).await?;
        let statuses = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
        Ok(statuses.into_iter().filter_map(|s| Some((s.name, s.container_id?))).collect())
    }

    /// The sum of outages since `since` as both clients saw them: the longest time without an acknowledgement.
    pub fn outage(&self, since: Instant) -> (Duration, Duration) {
        let gap = |w: &Option<Writer>| w.as_ref().map_or(Duration::ZERO, |w| w.longest_gap(since));
        (gap(&self.service), gap(&self.direct))
    }

    /// The end of every test: whole, never two writers, nothing lost that may not be lost; tells the outage.
    pub async fn judge(&self, members: usize, since: Instant, allowed: Allowed) -> Res<()> {
        let leader = self.whole(members).await?;
        self.accepts(Instant::now(), WHOLE).await?;
        let (service, direct) = self.outage(since);
        let (Some(by_service), Some(by_pods)) = (&self.service, &self.direct) else { return fail("nobody writes") };
        let double = verdict::two_writers(&by_pods.acks(), &self.thaws);
        let acks: Vec<Ack> = by_service.acks().into_iter().chain(by_pods.acks()).collect();
        let present = writer::present_at(&self.target(leader.number())).await?;
        let lost = verdict::loss(&acks, &present);
        println!(
            "  writes stopped for {:.2} s through the Service, {:.2} s directly; {} rows acknowledged, {} lost",
            service.as_secs_f64(),
            direct.as_secs_f64(),
            acks.len(),
            lost.rows
        );
        for gone in acks.iter().filter(|a| !present.contains(&a.id)) {
            let since = gone.at.saturating_duration_since(since).as_secs_f64();
            println!(
                "  lost: row {} of member {} on timeline {}, acknowledged {since:.3} s after the fault",
                gone.id, gone.member, gone.timeline
            );
        }
        if let Some(first) = double.first() {
            return fail(format!("two writers, {} times: {first}", double.len()));
        }
        let excused = match allowed {
            Allowed::Nothing => lost.rows == 0,
            Allowed::Tail => lost.holes.is_empty() && lost.bytes <= 1 << 20,
        };
        if excused { Ok(()) } else { fail(format!("acknowledged rows are lost: {lost:?}")) }
    }

    /// What a person would look at first.
    pub async fn diagnosis(&self) -> String {
        let mut text = String::new();
        for args in [
            &["get", "pods", "-o", "wide"][..],
            &["get", "endpoints,configmaps", "-o", "yaml"],
            &["get", "events", "--sort-by=.lastTimestamp"],
        ] {
            text += &self.kubectl(args).await.unwrap_or_else(|e| e.to_string());
        }
        for pod in self.pods().await.unwrap_or_default() {
            for container in pod.restarts.keys() {
                let log = self.kubectl(&["logs", &pod.name, "-c", container, "--tail", "60"]).await;
                text += &format!("--- {} {container}\n{}\n", pod.name, log.unwrap_or_else(|e| e.to_string()));
            }
        }
        text
    }

    /// Uninstalls it with its namespace and empties its volumes.
    pub async fn remove(mut self) -> Res<()> {
        self.stop_clients();
        self.kube.kubectl(&["delete", "namespace", &self.name, "--wait=true"]).await?;
        self.kube.script(&["volumes"]).await.map(drop)
    }

    /// No client writes any more.
    pub fn stop_clients(&mut self) {
        self.direct = None;
        self.service = None;
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
    }
}

fn note_reports(pods: &[Pod], reports: &Reports) {
    let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
    for status in pods.iter().filter_map(|p| p.status.as_ref()?.container_statuses.as_ref()).flatten() {
        for state in [&status.state, &status.last_state].into_iter().flatten() {
            if let Some(id) = state.terminated.as_ref().and_then(|t| t.container_id.clone()) {
                reports.entry(id).or_insert_with(Instant::now);
            }
        }
    }
}
