//! The benchmark's table in real pods: `make bench KUBE=1`. A cluster of three nodes (tests/kube), the chart at 30/10/10.
//!
//! Two clients write every 10 ms: one through the primary Service, one to every pod directly. A takeover is counted from the
//! kill and from the moment the kubelet reports the containers terminated. `ROUNDS` (3) rounds each, `WORD…` chooses. Nothing
//! is asserted but what must never happen: two writers.

#![allow(clippy::unwrap_used, reason = "a benchmark that fails says where")]

#[path = "../tests/pods/kube.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod kube;
#[path = "../tests/pods/release.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod release;
#[path = "table.rs"]
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::{Kube, NoCluster, SharedKube};
use patroni::demo::{Res, fail};
use release::{Allowed, Release, Seen, WHOLE};
use serde_json::json;
use table::{Table, memory_mb, processor_ms};
use tokio::time::{Instant, sleep};

/// How long the release is watched at rest.
const AT_REST: Duration = Duration::from_secs(60);
/// Longer than a renewal period: rounds must not hit the same phase of the lease.
const PHASE_MS: u64 = 12_000;

struct Bench {
    table: Table,
    rounds: usize,
    words: Vec<String>,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let rounds = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
    let mut bench = Bench { table: Table::default(), rounds, words };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(bench.run());
    bench.table.print();
    table::write("bench-pods.json", &json!({"rows": bench.table.json()}));
    if let Err(e) = result {
        eprintln!("bench: {e}");
        std::process::exit(1);
    }
}

impl Bench {
    fn wanted(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| name.contains(w.as_str()))
    }

    async fn run(&mut self) -> Res<()> {
        let kube: SharedKube = match Kube::up(3).await {
            Ok(kube) => Arc::new(kube),
            Err(NoCluster::Skipped(why)) => return fail(format!("skipped: {why}")),
            Err(NoCluster::Failed(why)) => return fail(why),
        };
        let result = self.measure(&kube).await;
        kube.down().await?;
        result
    }

    async fn measure(&mut self, kube: &SharedKube) -> Res<()> {
        if self.wanted("install") {
            for _ in 0..self.rounds {
                let began = Instant::now();
                let release = Release::install(kube, "start", 3, &[]).await?;
                let took = began.elapsed().as_secs_f64();
                self.table.put("helm install to three streaming, pods made", "(6, bare)", "s", took);
                release.remove().await?;
            }
        }
        let mut release = Release::install(kube, "bench", 3, &[]).await?;
        if self.wanted("rest") {
            self.at_rest(&release).await?;
        }
        for _ in 0..self.rounds {
            self.round(&mut release).await?;
        }
        release.judge(3, Instant::now(), Allowed::Tail).await?;
        release.remove().await
    }

    async fn round(&mut self, release: &mut Release) -> Res<()> {
        if self.wanted("switchover") {
            let leader = settled(release).await?;
            let since = Instant::now();
            release.patronictl(&leader.name, &["switchover", "--leader", &leader.name, "--force"]).await?;
            self.outage(release, since, ["switchover, writes stopped", "  through the Service (switchover)"], "<= 0.5")
                .await?;
        }
        if self.wanted("delete") {
            let leader = settled(release).await?;
            let since = Instant::now();
            release.kubectl(&["delete", "pod", &leader.name, "--wait=false"]).await?;
            self.outage(
                release,
                since,
                ["leader pod deleted (SIGTERM), writes stopped", "  through the Service (deleted)"],
                "<= 0.6",
            )
            .await?;
        }
        if self.wanted("postgres") {
            let leader = settled(release).await?;
            let since = Instant::now();
            let kill = "kill -9 $(head -n 1 $PGDATA/postmaster.pid)";
            release.kubectl(&["exec", &leader.name, "-c", "postgres", "--", "sh", "-c", kill]).await?;
            self.outage(
                release,
                since,
                ["Postgres killed, writes stopped", "  through the Service (Postgres killed)"],
                "<= 1",
            )
            .await?;
        }
        if self.wanted("leader") {
            self.leader_killed(release).await?;
        }
        if self.wanted("frozen") {
            self.leader_frozen(release).await?;
        }
        Ok(())
    }

    /// Waits for the end of an outage and notes it as both clients saw it.
    async fn outage(
        &mut self,
        release: &Release,
        since: Instant,
        [name, through]: [&'static str; 2],
        target: &'static str,
    ) -> Res<()> {
        release.whole(3).await?;
        release.accepts(Instant::now(), WHOLE).await?;
        let (service, direct) = release.outage(since);
        self.table.put(name, target, "s", direct.as_secs_f64());
        self.table.put(through, "", "s", service.as_secs_f64());
        Ok(())
    }

    async fn leader_killed(&mut self, release: &Release) -> Res<()> {
        let leader = settled(release).await?;
        let ids = release.container_ids(&leader.name).await?;
        let began = Instant::now();
        for container in ids.keys() {
            release.fault("container-kill", &leader.name, container).await?;
        }
        let killed = Instant::now();
        let (Some(direct), Some(service)) = (&release.direct, &release.service) else { return fail("nobody writes") };
        let taken = direct.wait_for_ack(killed, WHOLE, |a| a.member != leader.number()).await?;
        let resumed = service.wait_for_ack(killed, WHOLE, |a| a.timeline >= taken.timeline).await?;
        release.whole(3).await?;
        self.table.put("leader's containers killed, writes stopped", "", "s", release.outage(began).1.as_secs_f64());
        self.table.put("  first write after the last kill", "", "s", (taken.at - killed).as_secs_f64());
        if let Some(reported) = ids.values().filter_map(|id| release.reported(id)).max() {
            let after = taken.at.saturating_duration_since(reported).as_secs_f64();
            self.table.put("  first write after the kubelet's report", "<= 2", "s", after);
        }
        self.table.put(
            "  first write through the Service after the kill",
            "",
            "s",
            (resumed.at - killed).as_secs_f64(),
        );
        Ok(())
    }

    async fn leader_frozen(&mut self, release: &mut Release) -> Res<()> {
        let leader = settled(release).await?;
        let since = Instant::now();
        for container in ["patroni", "postgres"] {
            release.fault("container-freeze", &leader.name, container).await?;
        }
        let Some(direct) = &release.direct else { return fail("nobody writes") };
        let taken = direct.wait_for_ack(since, WHOLE, |a| a.member != leader.number()).await;
        release.thaws.push(Instant::now());
        for container in ["postgres", "patroni"] {
            release.fault("container-thaw", &leader.name, container).await?;
        }
        taken?;
        self.outage(release, since, ["member frozen, writes stopped", "  through the Service (frozen)"], "<= 30.7")
            .await
    }

    async fn at_rest(&mut self, release: &Release) -> Res<()> {
        settled(release).await?;
        let sidecars = sidecars();
        for pid in &sidecars {
            let (pss, anonymous) = memory_mb(*pid);
            self.table.put("memory of patroni, PSS", "<= 12", "MB", pss);
            self.table.put("  of it anonymous", "<= 4", "MB", anonymous);
        }
        let busy: Vec<u64> = sidecars.iter().map(|pid| processor_ms(*pid)).collect();
        let before = requests(release).await?;
        sleep(AT_REST).await;
        for (pid, before) in sidecars.iter().zip(busy) {
            self.table.put("processor time at rest, per minute", "<= 10", "ms", (processor_ms(*pid) - before) as f64);
        }
        let after = requests(release).await?;
        for (verb, name) in
            [("PATCH", "API requests at rest: PATCH per minute"), ("GET", "API requests at rest: GET per minute")]
        {
            let count = |of: &BTreeMap<String, u64>| of.get(verb).copied().unwrap_or_default();
            let target = if verb == "PATCH" { "<= 12" } else { "0" };
            self.table.put(name, target, "", (count(&after) - count(&before)) as f64);
        }
        Ok(())
    }
}

/// Whole, and a moment later that is not the same in every round.
async fn settled(release: &Release) -> Res<Seen> {
    release.whole(3).await?;
    sleep(Duration::from_millis(rand::random_range(1000..PHASE_MS))).await;
    release.whole(3).await
}

/// The processes of all sidecars on this machine that belong to pods of a test cluster.
fn sidecars() -> Vec<i32> {
    let of = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        line.starts_with("/usr/local/bin/patroni\0/etc/patroni/").then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

/// Requests for Endpoints and for pods (not their status, which is the kubelets') so far, by verb.
async fn requests(release: &Release) -> Res<BTreeMap<String, u64>> {
    let metrics = release.kube.kubectl(&["get", "--raw", "/metrics"]).await?;
    let mut sums = BTreeMap::new();
    for line in metrics.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
        let label =
            |name: &str| line.split(&format!("{name}=\"")).nth(1).and_then(|r| r.split('"').next()).unwrap_or_default();
        let ours = matches!(label("resource"), "endpoints" | "pods") && label("subresource").is_empty();
        if ours && let Some(count) = line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()) {
            *sums.entry(label("verb").to_owned()).or_insert(0) += count as u64;
        }
    }
    Ok(sums)
}
