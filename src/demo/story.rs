//! The scripted story of `make demo STORY=1`: what goes wrong in a cluster's life, one after the other, while a client writes.
//!
//! Each act breaks something, waits until the cluster is whole again and prints for how long no write was accepted. At the
//! end the client's memory is compared with the final primary. The story fails when the cluster does not heal in time,
//! when two members accepted writes at once, or when rows are missing that asynchronous replication does not excuse.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::Cluster;
use super::writer::{self, Ack, Writer};
use super::{Res, fail, verdict};

/// Plays it. `say` gets one line at a time.
///
/// # Errors
/// The cluster did not heal in time, two members accepted writes at once, or rows are missing without excuse.
pub async fn play(cluster: &mut Cluster, client: Writer, say: &dyn Fn(&str)) -> Res<()> {
    say("a client writes to every member directly and remembers each row it got an acknowledgement for");
    kill_postgres(cluster, &client, say).await?;
    let killed = kill_member(cluster, &client, say).await?;
    rejoin(cluster, killed, say).await?;
    switch_over(cluster, &client, say).await?;
    terminate(cluster, &client, say).await?;
    close(cluster, client, say).await
}

fn seconds(d: Duration) -> String {
    format!("{:.2} s", d.as_secs_f64())
}

async fn leader(cluster: &mut Cluster) -> Res<usize> {
    let deadline = cluster.options.healed_within();
    cluster.wait_whole(deadline).await
}

async fn kill_postgres(cluster: &mut Cluster, client: &Writer, say: &dyn Fn(&str)) -> Res<()> {
    let old = leader(cluster).await?;
    say(&format!("1. Postgres of the leader {} crashes: kill -9 of its postmaster", cluster.members[old].name));
    let killed = cluster.kill_postmaster(old)?;
    let ack = after_break(cluster, client, killed).await?;
    let new = leader(cluster).await?;
    say(&format!(
        "   writes stopped for {}; the first one after was accepted by {}; whole again, leader {}",
        seconds(client.longest_gap(killed)),
        cluster.members[ack.member].name,
        cluster.members[new].name
    ));
    Ok(())
}

/// The first row that was sent a moment after the break, when the old connections are known to be gone.
async fn after_break(cluster: &Cluster, client: &Writer, broken: Instant) -> Res<Ack> {
    let deadline = cluster.options.healed_within();
    client.wait_for_ack(broken + Duration::from_millis(50), deadline, |_| true).await
}

async fn kill_member(cluster: &mut Cluster, client: &Writer, say: &dyn Fn(&str)) -> Res<usize> {
    let old = leader(cluster).await?;
    say(&format!("2. The whole leader {} is killed: sidecar, keeper and Postgres", cluster.members[old].name));
    let killed = cluster.kill_member(old).await?;
    let reported = cluster.report_terminated(old).await?;
    say(&format!("   Kubernetes reports its containers terminated {} later", seconds(reported - killed)));
    let deadline = cluster.options.healed_within();
    let ack = client.wait_for_ack(killed, deadline, |a| a.member != old).await?;
    say(&format!(
        "   {} took over {} after the report; writes stopped for {} in all",
        cluster.members[ack.member].name,
        seconds(ack.at.saturating_duration_since(reported)),
        seconds(client.longest_gap(killed))
    ));
    Ok(old)
}

async fn rejoin(cluster: &mut Cluster, killed: usize, say: &dyn Fn(&str)) -> Res<()> {
    say(&format!("3. {} comes back", cluster.members[killed].name));
    let start = Instant::now();
    cluster.start_member(killed).await?;
    let new = leader(cluster).await?;
    say(&format!(
        "   it streams from {} after {}, rewound where it had diverged",
        cluster.members[new].name,
        seconds(start.elapsed())
    ));
    Ok(())
}

async fn switch_over(cluster: &mut Cluster, client: &Writer, say: &dyn Fn(&str)) -> Res<()> {
    let old = leader(cluster).await?;
    let candidate = (old + 1) % cluster.members.len();
    let (from, to) = (cluster.members[old].name.clone(), cluster.members[candidate].name.clone());
    say(&format!("4. patronictl switchover --leader {from} --candidate {to} --force"));
    let asked = Instant::now();
    let scope = cluster.options.scope.clone();
    let (code, _, stderr) =
        cluster.patronictl(&["switchover", &scope, "--leader", &from, "--candidate", &to, "--force"]).await?;
    if code != 0 {
        return fail(format!("patronictl switchover ended with {code}: {stderr}"));
    }
    client.wait_for_ack(asked, cluster.options.healed_within(), |a| a.member == candidate).await?;
    say(&format!("   writes stopped for {}; {to} leads", seconds(client.longest_gap(asked))));
    let now = leader(cluster).await?;
    if now == candidate { Ok(()) } else { fail(format!("{} leads instead of {to}", cluster.members[now].name)) }
}

async fn terminate(cluster: &mut Cluster, client: &Writer, say: &dyn Fn(&str)) -> Res<()> {
    let old = leader(cluster).await?;
    say(&format!("5. The leader {} is told to end (SIGTERM, as a drain does)", cluster.members[old].name));
    let asked = cluster.sigterm(old)?;
    client.wait_for_ack(asked, cluster.options.healed_within(), |a| a.member != old).await?;
    say(&format!("   writes stopped for {}", seconds(client.longest_gap(asked))));
    cluster.members[old].ended(Duration::from_secs(30)).await?;
    cluster.start_member(old).await?;
    leader(cluster).await?;
    say("   it was started again and streams");
    Ok(())
}

async fn close(cluster: &mut Cluster, client: Writer, say: &dyn Fn(&str)) -> Res<()> {
    let last = leader(cluster).await?;
    let acks = client.finish();
    let present: BTreeSet<u64> = writer::present(cluster.members[last].port).await?;
    let lost = verdict::loss(&acks, &present);
    let double = verdict::two_writers(&acks, &[]);
    say(&format!(
        "end: {} rows acknowledged, {} lost, two writable primaries: {}",
        acks.len(),
        lost.rows,
        double.len()
    ));
    if !double.is_empty() {
        return fail(format!("two members accepted writes at once: {}", double.join("; ")));
    }
    if !lost.holes.is_empty() || lost.bytes > LOSS_MAX {
        return fail(format!("rows are missing that asynchronous replication does not excuse: {lost:?}"));
    }
    Ok(())
}

/// `maximum_lag_on_failover` of the demo's configuration.
const LOSS_MAX: u64 = 1_048_576;
