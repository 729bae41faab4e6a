//! The sidecar or the API server is gone: a primary goes on as long as it may, and not longer.

use std::time::Duration;

use patroni::demo::cluster::Options;
use patroni::demo::{Res, processes};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Allowed, Trial, leader_object, must};

/// "a sidecar that dies and comes back within the lease re-adopts the running Postgres: no outage, no restart".
pub async fn a_restarted_sidecar_adopts_its_postgres(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = kill_and_restart_sidecar(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn kill_and_restart_sidecar(trial: &mut Trial, leader: usize) -> Res<()> {
    let pid = |t: &Trial| processes::postmaster(&t.cluster.members[leader].processes()).map(|p| p.pid);
    let before = pid(trial);
    let killed = trial.cluster.kill_sidecar(leader).await?;
    let half = trial.cluster.options.secs(1.0);
    sleep(half).await;
    trial.cluster.restart_sidecar(leader)?;
    sleep_until(killed + trial.cluster.options.lease() * 2).await;
    must(trial.whole().await? == leader, "another member leads")?;
    must(pid(trial) == before && before.is_some(), "Postgres was restarted")?;
    let acks = trial.client.acks();
    must(acks.iter().all(|a| a.member == leader), "another member accepted writes")?;
    let gap = trial.client.longest_gap(killed);
    must(gap < trial.cluster.options.lease(), format!("no write for {:.2} s", gap.as_secs_f64()))
}

/// "sidecar killed, Postgres left alone, nobody restarts it": one writer, the keeper stops the primary in time.
pub async fn without_its_sidecar_a_primary_is_stopped_in_time(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = leave_without_sidecar(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn leave_without_sidecar(trial: &mut Trial, leader: usize) -> Res<()> {
    let killed = trial.cluster.kill_sidecar(leader).await?;
    trial.taken_over_from(leader, killed).await?;
    silent_in_time(trial, leader, killed)?;
    trial.cluster.restart_sidecar(leader)?;
    trial.whole().await?;
    Ok(())
}

/// The last acknowledgement of the old leader came before the end of the lease, whose last renewal was sent before `cut`.
fn silent_in_time(trial: &Trial, old: usize, cut: Instant) -> Res<()> {
    let acks = trial.client.acks();
    let first_new = acks.iter().find(|a| a.member != old && a.at > cut).map(|a| a.at);
    let judged = |at: Instant| first_new.is_none_or(|first| at < first);
    let last = acks.iter().rev().find(|a| a.member == old && judged(a.at)).map(|a| a.at);
    let late = last.map(|l| l.saturating_duration_since(cut)).unwrap_or_default();
    must(late < trial.cluster.options.lease(), format!("the old leader wrote for {:.2} s more", late.as_secs_f64()))
}

/// A primary that cannot renew stops accepting writes before its lease ends for others, and the cluster heals.
pub async fn without_the_api_a_primary_stops_in_time_and_the_cluster_heals(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = cut_for_long(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn cut_for_long(trial: &mut Trial, leader: usize) -> Res<()> {
    let cut = Instant::now();
    trial.cluster.api.down(true);
    sleep_until(cut + trial.cluster.options.lease()).await;
    let end = Instant::now();
    let late = trial.client.acks().iter().rev().find(|a| a.sent > end).map(|a| a.member);
    must(late.is_none(), format!("member {late:?} accepts writes though the lease is over"))?;
    silent_in_time(trial, leader, cut)?;
    sleep(trial.cluster.options.secs(5.0)).await;
    let quiet = trial.client.acks().iter().all(|a| a.sent < end);
    must(quiet, "somebody accepted writes without an API server to get a lease from")?;
    trial.cluster.api.down(false);
    trial.client.wait_for_ack(Instant::now(), trial.cluster.options.healed_within(), |_| true).await?;
    trial.whole().await?;
    Ok(())
}

/// S8: "with failsafe on, an API outage alone never stops a primary all of whose members answer"; with one of them gone it is
/// stopped in time.
pub async fn with_failsafe_mode_an_outage_of_the_api_costs_nothing(options: Options) -> Res<()> {
    let options = Options { dcs_extra: "    failsafe_mode: true\n".to_owned(), ..options };
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = cut_with_failsafe(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn cut_with_failsafe(trial: &mut Trial, leader: usize) -> Res<()> {
    let lease = trial.cluster.options.lease();
    sleep(trial.cluster.options.secs(3.0)).await;
    let cut = Instant::now();
    trial.cluster.api.down(true);
    sleep_until(cut + lease * 4).await;
    let said = trial.cluster.rest(leader, "/patroni").await.map(|(_, said)| said["failsafe_mode_is_active"].clone());
    must(said == Some(true.into()), format!("failsafe_mode_is_active: {said:?}"))?;
    let gap = trial.client.longest_gap(cut);
    println!("the longest wait of a client without the API for four leases: {:.2} s", gap.as_secs_f64());
    must(gap < Duration::from_secs(1), format!("no write for {:.2} s", gap.as_secs_f64()))?;
    let killed = trial.cluster.kill_member((leader + 1) % 3).await?;
    sleep_until(killed + lease * 2).await;
    let late = trial.client.acks().iter().rev().find(|a| a.sent > killed + lease).map(|a| a.member);
    must(late.is_none(), format!("member {late:?} goes on although somebody does not promise"))?;
    trial.cluster.api.down(false);
    trial.cluster.start_member((leader + 1) % 3).await?;
    trial.client.wait_for_ack(Instant::now(), trial.cluster.options.healed_within(), |_| true).await?;
    trial.whole().await?;
    Ok(())
}

/// L2: "an API outage or slowness shorter than min(retry_timeout, D − N) causes no demotion".
pub async fn a_short_outage_of_the_api_demotes_nobody(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = cut_for_a_moment(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn cut_for_a_moment(trial: &mut Trial, leader: usize) -> Res<()> {
    let o = trial.cluster.options.clone();
    for _ in 0..3 {
        trial.cluster.api.down(true);
        sleep(o.secs(f64::from(o.retry_timeout) - 0.5)).await;
        trial.cluster.api.down(false);
        sleep(o.secs(f64::from(o.loop_wait) * 3.0)).await;
    }
    sleep(o.lease()).await;
    let acks = trial.client.acks();
    must(
        acks.iter().all(|a| a.member == leader && a.timeline == acks[0].timeline),
        "the leader changed or was promoted anew",
    )
}

/// "A leader object that is not there is made anew, naming nobody, and taken once it has stood untouched for a ttl."
pub async fn a_deleted_leader_object_costs_a_leader_nothing_and_its_heirs_a_ttl(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = delete_leader_object(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn delete_leader_object(trial: &mut Trial, leader: usize) -> Res<()> {
    let o = trial.cluster.options.clone();
    let (kind, object) = leader_object(o.mode);
    let began = Instant::now();
    trial.cluster.api.delete(kind, object).await?;
    sleep(o.lease()).await;
    let named = trial.cluster.api.annotations(kind, object).await?.get("leader").cloned();
    must(named.as_ref() == Some(&trial.cluster.members[leader].name), format!("the object names {named:?}"))?;
    must(trial.client.acks().iter().all(|a| a.member == leader), "another member accepted writes")?;
    let gap = trial.client.longest_gap(began);
    must(gap < o.lease(), format!("no write for {:.2} s", gap.as_secs_f64()))?;

    trial.cluster.kill_member(leader).await?;
    trial.cluster.api.delete(kind, object).await?;
    let deleted = Instant::now();
    let first = trial.client.wait_for_ack(deleted, o.lease() + o.healed_within(), |a| a.member != leader).await?;
    let waited = first.at.saturating_duration_since(deleted);
    must(waited > o.lease(), format!("taken after {:.2} s", waited.as_secs_f64()))?;
    trial.cluster.start_member(leader).await?;
    trial.whole().await?;
    Ok(())
}
