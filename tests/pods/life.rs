//! What people do: scale, roll, drain, upgrade, uninstall, change secrets.

use std::time::Duration;

use patroni::demo::{Res, fail};
use tokio::time::Instant;

use super::faults::restarted;
use super::kube::{SharedKube, wait_for};
use super::release::{Allowed, Release, Seen, WHOLE};

/// One, three, five, three members.
pub async fn it_scales_up_and_down(kube: SharedKube) -> Res<()> {
    let release = Release::install(&kube, "scale", 1, &[]).await?;
    let since = Instant::now();
    for members in [3, 5, 3] {
        release.kubectl(&["scale", "statefulset", &release.name, &format!("--replicas={members}")]).await?;
        release.judge(members, since, Allowed::Nothing).await?;
    }
    release.remove().await
}

/// How often the leader changed, from the timeline.
async fn timeline(release: &Release) -> Res<u64> {
    let leader = release.pods().await?.into_iter().find(|p| p.label == "master");
    Ok(leader.and_then(|l| l.status.get("timeline")?.as_u64()).unwrap_or_default())
}

async fn rolled(release: &Release) -> Res<()> {
    let to = format!("statefulset/{}", release.name);
    release.kubectl(&["rollout", "status", &to, "--timeout=170s"]).await.map(drop)
}

/// A rolling restart hands over at most twice and loses nothing.
pub async fn a_rolling_restart_hands_over_at_most_twice(kube: SharedKube) -> Res<()> {
    let release = Release::install(&kube, "roll", 3, &[]).await?;
    let before = timeline(&release).await?;
    let since = Instant::now();
    release.kubectl(&["rollout", "restart", &format!("statefulset/{}", release.name)]).await?;
    rolled(&release).await?;
    release.judge(3, since, Allowed::Nothing).await?;
    let changes = timeline(&release).await? - before;
    println!("  {changes} hand-overs");
    if changes > 2 {
        return fail(format!("{changes} hand-overs for one rolling restart"));
    }
    release.remove().await
}

/// Another image of the sidecar in the running pod: clients notice nothing, Postgres is not started again.
pub async fn a_new_image_of_the_sidecar_costs_nothing(kube: SharedKube) -> Res<()> {
    // The same bytes under another name.
    let image = format!("localhost/patroni-rs-again:{}", env!("CARGO_PKG_VERSION"));
    kube.load_as(&image).await?;
    let release = Release::install(&kube, "image", 3, &[]).await?;
    let leader = release.whole(3).await?;
    let started = || release.sql(leader.number(), "SELECT pg_postmaster_start_time()");
    let before = started().await?;
    let since = Instant::now();
    let patch = format!(r#"[{{"op":"replace","path":"/spec/containers/1/image","value":"{image}"}}]"#);
    release.kubectl(&["patch", "pod", &leader.name, "--type=json", "-p", &patch]).await?;
    restarted(&release, &leader, "patroni").await?;
    let now = release.whole(3).await?;
    if now.name != leader.name || started().await? != before {
        return fail(format!("{} leads, Postgres was started at {before:?}, {:?}", now.name, started().await?));
    }
    let (service, direct) = release.outage(since);
    if service.max(direct) > Duration::from_secs(1) {
        return fail(format!("writes stopped for {service:?}, {direct:?}"));
    }
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}

/// A drain respects the disruption budget and loses nothing.
pub async fn a_drained_node_hands_over(kube: SharedKube) -> Res<()> {
    let release = Release::install(&kube, "drain", 3, &[]).await?;
    let leader = release.whole(3).await?;
    let since = Instant::now();
    kube.kubectl(&["drain", &leader.node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"]).await?;
    kube.kubectl(&["uncordon", &leader.node]).await?;
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}

/// `helm uninstall` keeps volumes, and `helm install` goes on with them: every row is there.
pub async fn it_is_installed_again_on_its_volumes(kube: SharedKube) -> Res<()> {
    let mut release = Release::install(&kube, "again", 3, &[]).await?;
    let id = release.sql(release.whole(3).await?.number(), "SELECT system_identifier FROM pg_control_system()").await?;
    let rows = release.direct.as_ref().map(|w| w.acks()).unwrap_or_default();
    release.stop_clients();
    kube.helm(&["uninstall", &release.name, "--namespace", &release.name, "--wait"]).await?;
    wait_for("no pods", WHOLE, async || {
        let left = release.pods().await?.len();
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} pods")) })
    })
    .await?;
    release.helm("install", &[]).await?;
    let leader = release.whole(3).await?;
    let now = release.sql(leader.number(), "SELECT system_identifier FROM pg_control_system()").await?;
    let present = patroni::demo::writer::present_at(&release.target(leader.number())).await?;
    let missing = rows.iter().filter(|a| !present.contains(&a.id)).count();
    if now != id || missing > 0 {
        return fail(format!("system identifier {id:?} is now {now:?}; {missing} of {} rows are missing", rows.len()));
    }
    release.remove().await
}

/// An upgrade with another parameter rolls through and applies it.
pub async fn an_upgrade_changes_values(kube: SharedKube) -> Res<()> {
    let release = Release::install(&kube, "upgrade", 3, &[]).await?;
    let since = Instant::now();
    let values = ["postgres.parameters.work_mem=9MB", "restartOnConfigChange=true"];
    release.helm("upgrade", &values).await?;
    rolled(&release).await?;
    let leader = release.whole(3).await?;
    let value = release.sql(leader.number(), "SHOW work_mem").await?;
    if value != [["9MB"]] {
        return fail(format!("work_mem is {value:?} after the upgrade"));
    }
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}

/// The password of the replication user changes in the Secret and in Postgres: after a restart of the pods all stream.
pub async fn a_secret_is_rotated(kube: SharedKube) -> Res<()> {
    let release = Release::install(&kube, "secret", 3, &[]).await?;
    let since = Instant::now();
    let leader: Seen = release.whole(3).await?;
    release.sql(leader.number(), "ALTER USER standby PASSWORD 'another-one'").await?;
    let patch = r#"{"stringData":{"replication-password":"another-one"}}"#;
    release
        .kubectl(&["patch", "secret", &format!("{}-credentials", release.name), "--type=merge", "-p", patch])
        .await?;
    release.kubectl(&["rollout", "restart", &format!("statefulset/{}", release.name)]).await?;
    rolled(&release).await?;
    release.judge(3, since, Allowed::Nothing).await?;
    release.remove().await
}
