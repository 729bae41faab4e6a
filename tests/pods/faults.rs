//! What breaks: containers, pods, nodes, the API server. Each test has a release of its own, with a lease of 20 s.

use std::time::Duration;

use patroni::demo::{Res, fail};
use tokio::time::{Instant, sleep};

use super::kube::{SharedKube, wait_for};
use super::release::{Allowed, Release, Seen, WHOLE};

/// Leases of 20 s: what has to outlast two of them takes less of everybody's time.
const SHORT: &[&str] = &["dynamicConfig.ttl=20", "dynamicConfig.loop_wait=5", "dynamicConfig.retry_timeout=5"];
/// Two of those leases.
const TWO_LEASES: Duration = Duration::from_secs(40);

async fn install(kube: &SharedKube, name: &str) -> Res<(Release, Seen)> {
    let release = Release::install(kube, name, 3, SHORT).await?;
    let leader = release.whole(3).await?;
    Ok((release, leader))
}

/// Waits until a pod of this name runs again with another UID.
async fn made_anew(release: &Release, old: &Seen) -> Res<()> {
    wait_for(&format!("{} made anew", old.name), WHOLE, async || {
        let pods = release.pods().await?;
        let new = pods.iter().find(|p| p.name == old.name && p.uid != old.uid);
        Ok(new.map(|_| ()).ok_or_else(|| "the old one is there, or none".to_owned()))
    })
    .await
}

/// Waits until a container of a pod was restarted once more.
pub async fn restarted(release: &Release, before: &Seen, container: &str) -> Res<()> {
    let count = |p: &Seen| p.restarts.get(container).copied().unwrap_or_default();
    wait_for(&format!("a restart of {} {container}", before.name), WHOLE, async || {
        let pods = release.pods().await?;
        let now = pods.iter().find(|p| p.name == before.name).map(count);
        Ok(if now > Some(count(before)) { Ok(()) } else { Err(format!("{now:?} restarts")) })
    })
    .await
}

/// The leader's pod is deleted: handed over by SIGTERM to both containers at once, nothing is lost.
pub async fn the_leader_pod_is_deleted(kube: SharedKube) -> Res<()> {
    let (release, leader) = install(&kube, "deleted").await?;
    let since = Instant::now();
    release.kubectl(&["delete", "pod", &leader.name, "--wait=false"]).await?;
    made_anew(&release, &leader).await?;
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}

/// The Postgres container alone dies: restarted in place, by the same leader.
pub async fn the_postgres_container_is_killed(kube: SharedKube) -> Res<()> {
    let (release, leader) = install(&kube, "pgkilled").await?;
    let since = release.fault("container-kill", &leader.name, "postgres").await?;
    restarted(&release, &leader, "postgres").await?;
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}

/// SIGSTOP of the leader's sidecar for two leases: the keeper stops Postgres before anybody else writes.
pub async fn the_sidecar_is_frozen_for_two_leases(kube: SharedKube) -> Res<()> {
    let (release, leader) = install(&kube, "frozen").await?;
    let since = release.fault("container-freeze", &leader.name, "patroni").await?;
    sleep(TWO_LEASES).await;
    let pods = release.pods().await?;
    let now = pods.iter().find(|p| p.label == "master" && p.name != leader.name);
    let thawed = release.fault("container-thaw", &leader.name, "patroni").await?;
    if now.is_none() {
        return fail(format!("nobody took over from the frozen {} in {TWO_LEASES:?}", leader.name));
    }
    let wrote = release.direct.as_ref().map(|w| w.acks()).unwrap_or_default();
    if let Some(late) = wrote.iter().find(|a| a.member == leader.number() && a.sent >= thawed) {
        return fail(format!("the thawed {} acknowledged row {} on timeline {}", leader.name, late.id, late.timeline));
    }
    release.judge(3, since, Allowed::Tail).await?;
    release.remove().await
}

/// The Postgres container of the leader, keeper and all, is frozen for two leases and thawed: the Postgres that stood ends
/// with its thaw, because its permission is over.
pub async fn the_postgres_container_is_frozen_and_thawed(kube: SharedKube) -> Res<()> {
    let (mut release, leader) = install(&kube, "pgfrozen").await?;
    let began = async |release: &Release| {
        let rows = release.sql(leader.number(), "SELECT pg_postmaster_start_time()").await?;
        Res::Ok(rows.into_iter().flatten().next().unwrap_or_default())
    };
    let stood = began(&release).await?;
    let since = release.fault("container-freeze", &leader.name, "postgres").await?;
    sleep(TWO_LEASES).await;
    release.thaws.push(Instant::now());
    release.fault("container-thaw", &leader.name, "postgres").await?;
    wait_for("the end of the Postgres that stood", WHOLE, async || {
        Ok(match began(&release).await {
            Ok(now) if now != stood => Ok(()),
            Ok(now) => Err(format!("it runs since {now}")),
            Err(e) => Err(e.to_string()),
        })
    })
    .await?;
    release.judge(3, since, Allowed::Tail).await?;
    release.remove().await
}

/// A node is cut off for two leases: its primary has stopped before anybody else acknowledges a write, and rejoins.
pub async fn a_node_is_cut_off_for_two_leases(kube: SharedKube) -> Res<()> {
    let (release, leader) = install(&kube, "cut").await?;
    let node = leader.node.trim_start_matches("node").to_owned();
    let since = kube.fault(&["node-cut", &node]).await?;
    sleep(TWO_LEASES).await;
    kube.fault(&["node-heal", &node]).await?;
    release.judge(3, since, Allowed::Tail).await?;
    release.remove().await
}

/// A node loses power and boots minutes later: the others go on, its member comes back from its disk.
pub async fn a_node_is_lost_and_comes_back(kube: SharedKube) -> Res<()> {
    let (release, leader) = install(&kube, "lost").await?;
    let node = leader.node.trim_start_matches("node").to_owned();
    let since = kube.fault(&["node-kill", &node]).await?;
    let taken = release.written_again(since, |a| a.member != leader.number()).await?;
    println!("  taken over {:.1} s after the node was lost", (taken.at - since).as_secs_f64());
    kube.fault(&["node-start", &node]).await?;
    release.judge(3, since, Allowed::Tail).await?;
    release.remove().await
}

/// A pod that is deleted by force and made anew has another UID: a stranger to the lease of the old one.
pub async fn a_pod_deleted_by_force_is_a_stranger(kube: SharedKube) -> Res<()> {
    let (release, leader) = install(&kube, "forced").await?;
    let since = Instant::now();
    release.kubectl(&["delete", "pod", &leader.name, "--force", "--grace-period=0"]).await?;
    made_anew(&release, &leader).await?;
    release.judge(3, since, Allowed::Tail).await?;
    release.remove().await
}

/// The API server hangs for 15 s: nobody fails over (20/5/5 without a device endures 5 s; the default endures 14.5 s, so
/// this release has the default lease of 60/10/20).
pub async fn a_short_outage_of_the_api_demotes_nobody(kube: SharedKube) -> Res<()> {
    let values = &["dynamicConfig.ttl=60", "dynamicConfig.loop_wait=10", "dynamicConfig.retry_timeout=20"];
    let release = Release::install(&kube, "apishort", 3, values).await?;
    let leader = release.whole(3).await?;
    let since = kube.fault(&["apiserver-stop"]).await?;
    sleep(Duration::from_secs(15)).await;
    kube.fault(&["apiserver-cont"]).await?;
    sleep(Duration::from_secs(5)).await;
    let now = release.whole(3).await?;
    if now.name != leader.name {
        return fail(format!("{} leads after a short outage", now.name));
    }
    let (service, direct) = release.outage(since);
    if service.max(direct) > Duration::from_secs(1) {
        return fail(format!("writes stopped for {service:?}, {direct:?}"));
    }
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}

/// The API server hangs for 90 s: writes stop in time, nobody writes beside the leader, all heals.
pub async fn a_long_outage_of_the_api_heals(kube: SharedKube) -> Res<()> {
    let (release, _) = install(&kube, "apilong").await?;
    let since = kube.fault(&["apiserver-stop"]).await?;
    sleep(Duration::from_secs(90)).await;
    kube.fault(&["apiserver-cont"]).await?;
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}
