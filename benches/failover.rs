//! How long writes stop, what a member weighs, what the API server sees: `make bench`, beside its targets.
//!
//! Three members with real Postgres at 30/10/10, one client writing every 2 ms straight to the members; medians of
//! `ROUNDS` (5) rounds each. Prints a table and writes `target/bench-failover.json`. `cargo bench --bench failover WORD…` runs
//! only the measurements whose name contains a word. Nothing is asserted but what must never happen: two writers.

#[path = "table.rs"]
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use patroni::demo::cluster::{Cluster, Options};
use patroni::demo::writer::{self, Writer};
use patroni::demo::{Failure, Res, fail, machine, verdict};
use serde_json::json;
use table::{Table, memory_mb, processor_ms};
use tokio::time::{Instant, sleep};

const CLIENT_EVERY: Duration = Duration::from_millis(2);
/// Longer than a renewal period: rounds must not hit the same phase of the lease.
const REST_AT_MOST_MS: u64 = 3000;
/// How long the cluster is watched at rest.
const AT_REST: Duration = Duration::from_secs(60);

struct Bench {
    table: Table,
    rounds: usize,
    words: Vec<String>,
    acknowledged: usize,
    lost: usize,
    double: usize,
    thaws: Vec<Instant>,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let rounds = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(5);
    let mut bench =
        Bench { table: Table::default(), rounds, words, acknowledged: 0, lost: 0, double: 0, thaws: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                result = bench.run() => result,
                _ = tokio::signal::ctrl_c() => fail("interrupted; the members are stopped"),
            }
        }),
        Err(e) => Err(Failure::from(e)),
    };
    bench.print();
    if let Err(e) = result {
        eprintln!("bench: {e}");
        std::process::exit(1);
    }
}

impl Bench {
    fn wanted(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| name.contains(w.as_str()))
    }

    fn put(&mut self, name: &'static str, target: &'static str, unit: &'static str, value: f64) {
        self.table.put(name, target, unit, value);
    }

    async fn run(&mut self) -> Res<()> {
        let Some(postgres) = machine::find_postgres() else { return fail("no Postgres on this machine: make prepare") };
        let bin_dir = std::env::var_os("PATRONI_BIN_DIR").map(PathBuf::from);
        let built = PathBuf::from(env!("CARGO_BIN_EXE_patroni")).parent().map(PathBuf::from).unwrap_or_default();
        let mut options = Options::new(bin_dir.unwrap_or(built), postgres);
        options.scope = "bench".into();
        options.scale = 1.0;
        if self.wanted("start") {
            for _ in 0..self.rounds {
                self.start_from_nothing(&options).await?;
            }
        }
        let mut cluster = Cluster::start(options).await?;
        cluster.wait_whole(Duration::from_secs(120)).await?;
        let client = cluster.clients(CLIENT_EVERY)?;
        client.wait_for_ack(Instant::now(), Duration::from_secs(10), |_| true).await?;
        if self.wanted("rest") {
            self.at_rest(&mut cluster).await?;
        }
        self.break_things(&mut cluster, &client).await?;
        let leader = cluster.wait_whole(Duration::from_secs(120)).await?;
        let acks = client.finish();
        let present = writer::present(cluster.members[leader].port).await?;
        self.acknowledged = acks.len();
        self.lost = verdict::loss(&acks, &present).rows;
        self.double = verdict::two_writers(&acks, &self.thaws).len();
        if self.double > 0 { fail("two members accepted writes at once") } else { Ok(()) }
    }

    async fn break_things(&mut self, cluster: &mut Cluster, client: &Writer) -> Res<()> {
        for round in 1..=self.rounds {
            println!("round {round} of {}", self.rounds);
            if self.wanted("switchover") {
                self.switchover(cluster, client).await?;
            }
            if self.wanted("SIGTERM") {
                self.sigterm(cluster, client).await?;
            }
            if self.wanted("Postgres killed") {
                self.postgres_killed(cluster, client).await?;
            }
            if self.wanted("member killed, reported") {
                self.member_killed(cluster, client, true).await?;
            }
            if self.wanted("member killed, silent") {
                self.member_killed(cluster, client, false).await?;
            }
            if self.wanted("frozen") {
                self.frozen(cluster, client).await?;
            }
        }
        Ok(())
    }

    async fn start_from_nothing(&mut self, options: &Options) -> Res<()> {
        let begun = Instant::now();
        let mut cluster = Cluster::start(options.clone()).await?;
        cluster.wait_whole(Duration::from_secs(120)).await?;
        self.put("start: three members from nothing to streaming", "<= 6 s", "s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn switchover(&mut self, cluster: &mut Cluster, client: &Writer) -> Res<()> {
        let old = settled(cluster).await?;
        let candidate = (old + 1) % cluster.members.len();
        let asked = Instant::now();
        let body = json!({"leader": cluster.members[old].name, "candidate": cluster.members[candidate].name});
        let (status, answer) = cluster.rest_send(old, "POST", "/switchover", body).await?;
        if status != 200 {
            return fail(format!("POST /switchover: {status} {answer}"));
        }
        client.wait_for_ack(asked, Duration::from_secs(60), |a| a.member != old).await?;
        self.put("switchover, writes stopped", "<= 0.5 s", "s", client.longest_gap(asked).as_secs_f64());
        Ok(())
    }

    async fn sigterm(&mut self, cluster: &mut Cluster, client: &Writer) -> Res<()> {
        let old = settled(cluster).await?;
        let asked = cluster.sigterm(old)?;
        client.wait_for_ack(asked, Duration::from_secs(60), |a| a.member != old).await?;
        self.put("SIGTERM of the leader, writes stopped", "<= 0.6 s", "s", client.longest_gap(asked).as_secs_f64());
        cluster.members[old].ended(Duration::from_secs(30)).await?;
        cluster.start_member(old).await
    }

    async fn postgres_killed(&mut self, cluster: &mut Cluster, client: &Writer) -> Res<()> {
        let old = settled(cluster).await?;
        let killed = cluster.kill_postmaster(old)?;
        client.wait_for_ack(killed + Duration::from_millis(50), Duration::from_secs(60), |_| true).await?;
        self.put(
            "Postgres killed, sidecar alive, writes stopped",
            "<= 1 s",
            "s",
            client.longest_gap(killed).as_secs_f64(),
        );
        Ok(())
    }

    async fn member_killed(&mut self, cluster: &mut Cluster, client: &Writer, report: bool) -> Res<()> {
        let old = settled(cluster).await?;
        let killed = cluster.kill_member(old).await?;
        let reported = if report { Some(cluster.report_terminated(old).await?) } else { None };
        let ack = client.wait_for_ack(killed, Duration::from_secs(90), |a| a.member != old).await?;
        match reported {
            Some(at) => {
                let after = ack.at.saturating_duration_since(at).as_secs_f64();
                self.put("member killed, reported: first write after the report", "<= 2 s", "s", after);
            }
            None => {
                let stopped = client.longest_gap(killed).as_secs_f64();
                self.put("member killed, silent, writes stopped", "<= 30.7 s", "s", stopped);
            }
        }
        cluster.start_member(old).await
    }

    async fn frozen(&mut self, cluster: &mut Cluster, client: &Writer) -> Res<()> {
        let old = settled(cluster).await?;
        let frozen = cluster.freeze(old);
        let taken = client.wait_for_ack(frozen, Duration::from_secs(90), |a| a.member != old).await;
        self.thaws.push(cluster.thaw(old));
        taken?;
        self.put("member frozen, writes stopped", "<= 30.7 s", "s", client.longest_gap(frozen).as_secs_f64());
        Ok(())
    }

    /// Memory and processor time of `patroni` and its keeper, and what the API is asked, while the client writes.
    async fn at_rest(&mut self, cluster: &mut Cluster) -> Res<()> {
        settled(cluster).await?;
        println!("at rest for {} s", AT_REST.as_secs());
        let daemons: Vec<i32> = cluster.members.iter_mut().filter_map(|m| m.sidecar()).collect();
        let Some(api) = cluster.api.server() else { return fail("requests are counted by the embedded API only") };
        api.reset_request_counts();
        let before: Vec<u64> = daemons.iter().map(|p| processor_ms(*p)).collect();
        sleep(AT_REST).await;
        let counts = api.request_counts();
        let minutes = AT_REST.as_secs_f64() / 60.0;
        for (pid, before) in daemons.iter().zip(before) {
            let used = (processor_ms(*pid) - before) as f64 / minutes;
            let (pss, anonymous) = memory_mb(*pid);
            self.put("at rest: processor time of a member", "<= 10 ms/min", "ms/min", used);
            self.put("at rest: PSS of a member", "<= 12 MB", "MB", pss);
            self.put("at rest: of it anonymous", "<= 4 MB", "MB", anonymous);
        }
        let mut verbs: BTreeMap<String, u64> = BTreeMap::new();
        for ((verb, _), n) in counts {
            *verbs.entry(verb).or_default() += n;
        }
        println!("  requests by verb: {verbs:?}");
        let of = |names: &[&str]| names.iter().filter_map(|n| verbs.get(*n)).sum::<u64>() as f64 / minutes;
        self.put(
            "at rest: API writes of the cluster",
            "6 (<= 12)/min",
            "/min",
            of(&["patch", "update", "create", "delete"]),
        );
        self.put("at rest: API reads of the cluster", "0 /min", "/min", of(&["get", "list"]));
        self.put("at rest: API watches opened", "-", "/min", of(&["watch"]));
        Ok(())
    }

    fn print(&self) {
        self.table.print();
        println!(
            "{} rows acknowledged, {} lost, {} acknowledged by two primaries at once",
            self.acknowledged, self.lost, self.double
        );
        let all = json!({"rows": self.table.json(), "acknowledged": self.acknowledged, "lost": self.lost,
            "two_primaries": self.double});
        table::write("bench-failover.json", &all);
    }
}

/// Whole again, and a moment later that is not the same in every round.
async fn settled(cluster: &mut Cluster) -> Res<usize> {
    cluster.wait_whole(Duration::from_secs(120)).await?;
    sleep(Duration::from_millis(rand::random_range(500..REST_AT_MOST_MS))).await;
    cluster.wait_whole(Duration::from_secs(120)).await
}
