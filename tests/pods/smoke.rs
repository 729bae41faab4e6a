//! The part of every test run: install, switchover, the leader's containers killed, the sidecar killed, uninstall.

use std::time::Duration;

use patroni::demo::{Res, fail};
use tokio::time::Instant;

use super::kube::SharedKube;
use super::release::{Allowed, Release, WHOLE};

/// README: from nothing to a switchover; then what nobody asks for.
pub async fn a_release_lives_through_a_day(kube: SharedKube) -> Res<()> {
    let began = Instant::now();
    let release = Release::install(&kube, "smoke", 3, &[]).await?;
    println!(
        "  three members stream and the Service takes writes {:.1} s after helm install",
        began.elapsed().as_secs_f64()
    );
    switchover(&release).await?;
    sidecar_killed(&release).await?;
    leader_killed(&release).await?;
    release.remove().await
}

/// `kubectl exec … patronictl switchover` loses nothing.
pub async fn switchover(release: &Release) -> Res<()> {
    println!(" kubectl exec … patronictl switchover");
    let old = release.whole(3).await?;
    let since = Instant::now();
    release.patronictl(&old.name, &["switchover", "--leader", &old.name, "--force"]).await?;
    let new = release.whole(3).await?;
    if new.name == old.name {
        return fail(format!("{} still leads", old.name));
    }
    release.judge(3, since, Allowed::Nothing).await
}

/// The sidecar alone is killed: Postgres goes on, and clients notice nothing.
pub async fn sidecar_killed(release: &Release) -> Res<()> {
    println!(" the sidecar of the leader is killed");
    let leader = release.whole(3).await?;
    let started = || release.sql(leader.number(), "SELECT pg_postmaster_start_time()");
    let before = started().await?;
    let since = release.fault("container-kill", &leader.name, "patroni").await?;
    super::faults::restarted(release, &leader, "patroni").await?;
    let now = release.whole(3).await?;
    if now.name != leader.name || started().await? != before {
        return fail(format!("{} leads, Postgres was started at {before:?} and {:?}", now.name, started().await?));
    }
    let (service, direct) = release.outage(since);
    if service.max(direct) > Duration::from_secs(1) {
        return fail(format!("writes stopped for {service:?} and {direct:?}: clients must notice nothing"));
    }
    release.judge(3, since, Allowed::Nothing).await
}

/// Both containers of the leader are killed: taken over on the kubelet's word, not after the ttl.
pub async fn leader_killed(release: &Release) -> Res<()> {
    println!(" both containers of the leader are killed");
    let old = release.whole(3).await?;
    let ids = release.container_ids(&old.name).await?;
    let since = Instant::now();
    for container in ids.keys() {
        release.fault("container-kill", &old.name, container).await?;
    }
    let killed = Instant::now();
    let Some(direct) = &release.direct else { return fail("nobody writes") };
    let taken = direct.wait_for_ack(killed, WHOLE, |a| a.member != old.number()).await?;
    let reported = ids.values().filter_map(|id| release.reported(id)).max();
    let after = reported.map(|at| taken.at.saturating_duration_since(at).as_secs_f64());
    println!(
        "  taken over {:.2} s after the kill, {} s after the kubelet's report",
        (taken.at - killed).as_secs_f64(),
        after.map_or("(unseen)".to_owned(), |s| format!("{s:.2}"))
    );
    release.judge(3, since, Allowed::Tail).await
}
