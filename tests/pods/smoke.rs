//! The part of every test run: install, switchover, the leader's containers killed, the sidecar killed, uninstall.

use std::time::Duration;

use patroni::demo::{Res, fail};
use tokio::time::Instant;

use super::kube::SharedKube;
use super::release::{Allowed, Release};

/// The lease of a release without values of its own.
const SILENCE: Duration = Duration::from_secs(30);

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

/// Both containers of the leader are killed: written to again long before the ttl has passed, by whoever is first. Another
/// member takes over on the kubelet's word; the old one leads on where its containers are back before that.
pub async fn leader_killed(release: &Release) -> Res<()> {
    println!(" both containers of the leader are killed");
    let old = release.whole(3).await?;
    let ids = release.container_ids(&old.name).await?;
    // The sidecar was restarted just now: its lock names its new container once Kubernetes shows that.
    release.names(&ids).await?;
    let since = Instant::now();
    for container in ids.keys() {
        release.fault("container-kill", &old.name, container).await?;
    }
    let killed = Instant::now();
    let next = release.written_again(killed, |_| true).await?;
    let reported = ids.values().filter_map(|id| release.reported(id)).max();
    let after = reported.map(|at| next.at.saturating_duration_since(at).as_secs_f64());
    println!(
        "  written by {} {:.2} s after the kill, {} s after the kubelet's report",
        if next.member == old.number() { "the same member" } else { "another member" },
        (next.at - killed).as_secs_f64(),
        after.map_or("(unseen)".to_owned(), |s| format!("{s:.2}"))
    );
    if next.at - killed > SILENCE / 2 {
        return fail(format!(
            "no proof of death, no reclaimed lock: the silence was waited for\n{}",
            release.diagnosis().await
        ));
    }
    release.judge(3, since, Allowed::Tail).await
}
