//! Maintenance mode: nothing is done to Postgres but what a person asks for, and whoever resumes finds one writer.

use std::time::Duration;

use patroni::demo::cluster::Options;
use patroni::demo::{Res, fail, machine, processes};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Allowed, Trial, leader_object, must};

/// `patronictl pause --wait` and `resume --wait`; every member says so.
async fn patronictl(trial: &Trial, command: &str) -> Res<()> {
    let (code, out, err) = trial.cluster.patronictl(&[command, "test", "--wait"]).await?;
    must(
        code == 0 && out.contains("Success: cluster management is"),
        format!("patronictl {command}: {code}\n{out}{err}"),
    )
}

async fn pause(trial: &Trial) -> Res<()> {
    patronictl(trial, "pause").await?;
    let (code, list, err) = trial.cluster.patronictl(&["list", "test"]).await?;
    must(code == 0 && list.contains("Maintenance mode: on"), format!("patronictl list: {code}\n{list}{err}"))
}

fn postmaster(trial: &Trial, i: usize) -> Option<i32> {
    processes::postmaster(&trial.cluster.members[i].processes()).map(|p| p.pid)
}

/// The leader object says that its holder is in maintenance.
async fn announced(trial: &Trial) -> Res<()> {
    let (kind, object) = leader_object(trial.cluster.options.mode);
    let since = Instant::now();
    loop {
        let annotations = trial.cluster.api.annotations(kind, object).await?;
        if annotations.get("patroni.holder").is_some_and(|mark| mark.contains("\"pause\":true")) {
            return Ok(());
        }
        must(
            since.elapsed() < trial.cluster.options.healed_within(),
            "the lock does not say that it is in maintenance",
        )?;
        sleep(Duration::from_millis(50)).await;
    }
}

/// "Postgres stopped by hand or crashed: it is not started, nobody takes over, and the lock is given up"; a restart starts it.
pub async fn a_postgres_that_ends_stays_down_until_a_person_asks(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = stays_down(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn stays_down(trial: &mut Trial, leader: usize) -> Res<()> {
    pause(trial).await?;
    trial.cluster.kill_postmaster(leader)?;
    let down = Instant::now() + trial.cluster.options.secs(3.0);
    sleep(trial.cluster.options.lease() * 2).await;
    must(postmaster(trial, leader).is_none(), "Postgres was started again")?;
    must(!trial.client.acks().iter().any(|a| a.sent > down), "somebody else leads")?;
    let (kind, object) = leader_object(trial.cluster.options.mode);
    let named = trial.cluster.api.annotations(kind, object).await?.get("leader").cloned().unwrap_or_default();
    must(named.is_empty(), format!("{named} still holds the lock"))?;
    // Whoever has given the lock up starts as a standby; the person names it.
    let (status, answer) = trial.cluster.rest_send(leader, "POST", "/restart", json!({})).await?;
    must(status == 200, format!("POST /restart: {status} {answer}"))?;
    let name = trial.cluster.members[leader].name.clone();
    let asked = Instant::now();
    let (status, answer) = trial.cluster.rest_send(leader, "POST", "/failover", json!({"candidate": name})).await?;
    must(status == 200, format!("POST /failover: {status} {answer}"))?;
    trial.client.wait_for_ack(asked, trial.cluster.options.healed_within(), |a| a.member == leader).await?;
    patronictl(trial, "resume").await
}

/// "Without the API server a paused primary goes on, however long"; its sidecar may be killed meanwhile.
pub async fn without_the_api_a_paused_primary_goes_on(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = goes_on(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn goes_on(trial: &mut Trial, leader: usize) -> Res<()> {
    let before = postmaster(trial, leader);
    pause(trial).await?;
    announced(trial).await?;
    sleep(trial.cluster.options.secs(2.0)).await;
    let began = Instant::now();
    trial.cluster.api.down(true);
    sleep(trial.cluster.options.lease()).await;
    trial.cluster.kill_sidecar(leader).await?;
    sleep(trial.cluster.options.lease()).await;
    trial.cluster.restart_sidecar(leader)?;
    sleep(trial.cluster.options.lease()).await;
    trial.cluster.api.down(false);
    sleep(trial.cluster.options.lease()).await;
    patronictl(trial, "resume").await?;
    sleep(trial.cluster.options.lease() * 2).await;
    let (gap, acks) = (trial.client.longest_gap(began), trial.client.acks());
    println!("longest wait of a client: {:.2} s", gap.as_secs_f64());
    must(acks.iter().all(|a| a.member == leader), "somebody else leads")?;
    must(postmaster(trial, leader) == before && before.is_some(), "Postgres was restarted")?;
    must(gap < Duration::from_secs(1), format!("no write for {:.2} s", gap.as_secs_f64()))
}

/// "A switchover to a candidate works in maintenance, one without is refused"; the former leader follows.
pub async fn a_switchover_in_maintenance_needs_a_candidate(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = switches(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switches(trial: &mut Trial, leader: usize) -> Res<()> {
    pause(trial).await?;
    let (from, to) = (trial.cluster.members[leader].name.clone(), (leader + 1) % 3);
    let (status, answer) = trial.cluster.rest_send(leader, "POST", "/switchover", json!({"leader": from})).await?;
    let told = "Switchover is possible only to a specific candidate in a paused state";
    must(status == 400 && answer == told, format!("POST /switchover: {status} {answer}"))?;
    let asked = Instant::now();
    let body = json!({"leader": from, "candidate": trial.cluster.members[to].name});
    let (status, answer) = trial.cluster.rest_send(leader, "POST", "/switchover", body).await?;
    must(status == 200, format!("POST /switchover: {status} {answer}"))?;
    let ack = trial.taken_over_from(leader, asked).await?;
    must(ack.member == to, "somebody else leads")?;
    must(trial.whole().await? == to, "the former leader does not follow")?;
    patronictl(trial, "resume").await
}

/// "A standby promoted by hand is left alone, and follows again after the resume": two primaries are what a person wanted,
/// and one is left in the end.
pub async fn who_was_promoted_by_hand_is_a_standby_again_after_the_resume(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = promoted_by_hand(&mut trial, leader).await;
    if result.is_err() {
        super::keep_logs(&trial.cluster);
    }
    // Clients that write to whatever takes writes have written to both.
    result
}

async fn promoted_by_hand(trial: &mut Trial, leader: usize) -> Res<()> {
    let standby = (leader + 1) % 3;
    pause(trial).await?;
    announced(trial).await?;
    sleep(trial.cluster.options.secs(2.0)).await;
    trial.cluster.sql(standby, "SELECT pg_promote(true, 30)").await?;
    sleep(trial.cluster.options.lease() * 2).await;
    for i in [leader, standby] {
        if !trial.cluster.said().await[i].as_ref().is_some_and(|s| s.is_primary()) {
            return fail(format!("member {i} was not left alone\n{}", trial.cluster.diagnosis().await));
        }
    }
    let leads = trial.cluster.rest(standby, "/primary").await.map(|(status, _)| status);
    must(leads == Some(503), format!("GET /primary without the lock: {leads:?}"))?;
    patronictl(trial, "resume").await?;
    must(trial.whole().await? == leader, "somebody else leads")
}

/// "A Postgres that was started by hand keeps the lock, after a resume too, until it is stopped."
pub async fn a_postgres_that_was_started_by_hand_keeps_the_lock(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = started_by_hand(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

/// As a person does it, with the server's own tool.
async fn pg_ctl(trial: &Trial, i: usize, words: &[&str]) -> Res<()> {
    let mut command = tokio::process::Command::new(trial.cluster.options.postgres.join("pg_ctl"));
    command
        .arg("-D")
        .arg(trial.cluster.members[i].data_dir())
        .args(["-m", "fast", "-w", "-l", "/dev/null"])
        .args(words);
    machine::User::find()?.run_as(&mut command);
    let done = command.stdout(std::process::Stdio::null()).status().await;
    must(done.is_ok_and(|status| status.success()), format!("pg_ctl {words:?} failed"))
}

async fn started_by_hand(trial: &mut Trial, leader: usize) -> Res<()> {
    let lease = trial.cluster.options.lease();
    pause(trial).await?;
    announced(trial).await?;
    sleep(trial.cluster.options.secs(2.0)).await;
    pg_ctl(trial, leader, &["restart"]).await?;
    sleep(lease).await;
    patronictl(trial, "resume").await?;
    sleep(lease * 3).await;
    must(trial.client.acks().iter().all(|a| a.member == leader), "somebody else leads beside it")?;
    let name = trial.cluster.members[leader].name.clone();
    let (kind, object) = leader_object(trial.cluster.options.mode);
    let named = trial.cluster.api.annotations(kind, object).await?.get("leader").cloned();
    must(named == Some(name), format!("the lock names {named:?}"))?;
    let stopped = Instant::now();
    pg_ctl(trial, leader, &["stop"]).await?;
    trial.client.wait_for_ack(stopped, trial.cluster.options.healed_within(), |_| true).await?;
    trial.whole().await?;
    Ok(())
}

/// "A Postgres that was started by hand beside another leader is stopped after the resume": nobody writes beside the leader.
pub async fn a_former_leader_that_was_started_by_hand_is_stopped_after_the_resume(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = writes_beside(&mut trial, leader).await;
    if result.is_err() {
        super::keep_logs(&trial.cluster);
    }
    // Clients that write to whatever takes writes have written to both.
    result
}

async fn writes_beside(trial: &mut Trial, leader: usize) -> Res<()> {
    let lease = trial.cluster.options.lease();
    pause(trial).await?;
    announced(trial).await?;
    pg_ctl(trial, leader, &["stop"]).await?;
    let stopped = Instant::now();
    let (kind, object) = leader_object(trial.cluster.options.mode);
    while trial.cluster.api.annotations(kind, object).await?.get("leader").is_some_and(|who| !who.is_empty()) {
        must(stopped.elapsed() < lease * 3, "the lock was not given up")?;
        sleep(Duration::from_millis(50)).await;
    }
    let to = (leader + 1) % 3;
    let name = trial.cluster.members[to].name.clone();
    let body = serde_json::json!({"candidate": name});
    let (status, answer) = trial.cluster.rest_send(to, "POST", "/failover", body).await?;
    must(status == 200 || answer.contains("status unknown"), format!("POST /failover: {status} {answer}"))?;
    trial.client.wait_for_ack(stopped, trial.cluster.options.healed_within(), |a| a.member == to).await?;
    pg_ctl(trial, leader, &["start"]).await?;
    trial.cluster.sql(leader, "CREATE TABLE by_hand ()").await?;
    patronictl(trial, "resume").await?;
    must(trial.whole().await? == to, "somebody else leads")?;
    must(
        trial.cluster.sql(leader, "SELECT 'by_hand'::regclass").await.is_err(),
        "the former leader was not made to follow",
    )
}
