//! `synchronous_mode`: whatever was acknowledged is there, whoever leads; and nobody waits for a standby that has gone.

use std::time::Duration;

use patroni::demo::cluster::Options;
use patroni::demo::{Res, fail};
use tokio::time::{Instant, sleep};

use super::{Allowed, Trial, must};

/// Leaders that are killed one after the other.
const ROUNDS: usize = 3;

fn synchronous(options: Options, more: &str) -> Options {
    Options { dcs_extra: format!("    synchronous_mode: true\n{more}"), ..options }
}

/// "Kill -9 anything: no acknowledged row of synchronous mode is missing": the leader with everything it has, under load,
/// again and again.
pub async fn a_leader_killed_under_load_loses_no_row(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(synchronous(options, "")).await?;
    let result = kill_leaders(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn kill_leaders(trial: &mut Trial, mut leader: usize) -> Res<()> {
    for _ in 0..ROUNDS {
        let standby = sync_standby(trial, leader).await?;
        let killed = trial.cluster.kill_member(leader).await?;
        let ack = trial.taken_over_from(leader, killed).await?;
        must(ack.member == standby, format!("{} leads, the synchronous standby was {standby}", ack.member))?;
        trial.cluster.start_member(leader).await?;
        leader = trial.whole().await?;
    }
    Ok(())
}

/// The member that the cluster shows as synchronous standby, once there is one.
async fn sync_standby(trial: &mut Trial, leader: usize) -> Res<usize> {
    let deadline = trial.cluster.options.healed_within();
    let since = Instant::now();
    while since.elapsed() < deadline {
        if let Some((200, shown)) = trial.cluster.rest(leader, "/cluster").await {
            let members = shown["members"].as_array().cloned().unwrap_or_default();
            let named = members.iter().find(|m| m["role"] == "sync_standby").map(|m| m["name"].clone());
            if let Some(i) = trial.cluster.members.iter().position(|m| named.as_ref().is_some_and(|n| *n == *m.name)) {
                return Ok(i);
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    fail(format!("nobody became a synchronous standby\n{}", trial.cluster.diagnosis().await))
}

/// A synchronous standby that is told to end is let go first: commits go on without waiting for it. One that dies is waited
/// for until the leader has seen that it is gone.
pub async fn a_standby_that_leaves_holds_up_no_commit(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(synchronous(options, "")).await?;
    let result = standbys_leave(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn standbys_leave(trial: &mut Trial, leader: usize) -> Res<()> {
    let standby = sync_standby(trial, leader).await?;
    let told = trial.cluster.sigterm(standby)?;
    trial.cluster.members[standby].ended(Duration::from_secs(30)).await?;
    let gap = trial.client.longest_gap(told);
    println!("the longest wait of a client while a synchronous standby ended: {:.2} s", gap.as_secs_f64());
    must(gap < Duration::from_secs(2), format!("commits waited {:.1} s for a standby that ended", gap.as_secs_f64()))?;
    trial.cluster.start_member(standby).await?;
    trial.whole().await?;
    let standby = sync_standby(trial, leader).await?;
    let killed = trial.cluster.kill_member(standby).await?;
    trial
        .client
        .wait_for_ack(killed + Duration::from_millis(500), trial.cluster.options.healed_within(), |_| true)
        .await?;
    println!("after its death: {:.2} s", trial.client.longest_gap(killed).as_secs_f64());
    let next = sync_standby(trial, leader).await?;
    must(next != standby, "the dead standby is named")?;
    trial.cluster.start_member(standby).await?;
    trial.whole().await?;
    Ok(())
}

/// `synchronous_mode_strict`: "without a standby nothing is committed".
pub async fn without_a_standby_strict_mode_commits_nothing(options: Options) -> Res<()> {
    let strict = "    synchronous_mode_strict: true\n";
    let (mut trial, leader) = Trial::begin(synchronous(options, strict)).await?;
    let result = nobody_is_there(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn nobody_is_there(trial: &mut Trial, leader: usize) -> Res<()> {
    sync_standby(trial, leader).await?;
    for i in (0..3).filter(|i| *i != leader) {
        trial.cluster.kill_member(i).await?;
    }
    // What was on its way may still be acknowledged by what the last standby had sent.
    sleep(Duration::from_millis(300)).await;
    let alone = Instant::now();
    sleep(trial.cluster.options.lease()).await;
    let late = trial.client.acks().iter().filter(|a| a.at > alone).count();
    must(late == 0, format!("{late} rows were acknowledged without a standby"))?;
    for i in (0..3).filter(|i| *i != leader) {
        trial.cluster.start_member(i).await?;
    }
    trial.client.wait_for_ack(Instant::now(), trial.cluster.options.healed_within(), |_| true).await?;
    Ok(())
}

/// On and off under load, through patronictl; `list` and the REST API show it; Postgres waits for whom they show.
pub async fn the_mode_is_switched_under_load(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = switch_mode(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switch_mode(trial: &mut Trial, leader: usize) -> Res<()> {
    for _ in 0..2 {
        set(trial, "synchronous_mode=true").await?;
        let standby = sync_standby(trial, leader).await?;
        let name = trial.cluster.members[standby].name.clone();
        let named = waited_for(trial, leader).await?;
        must(named == quoted(&name), format!("Postgres waits for {named}, {name} is shown"))?;
        let (code, list, err) = trial.cluster.patronictl(&["list", "test"]).await?;
        must(code == 0 && list.contains("Sync Standby"), format!("patronictl list: {code}\n{list}{err}"))?;
        let shown = trial.cluster.rest(standby, "/sync").await.map(|(status, _)| status);
        must(shown == Some(200), format!("GET /sync at the synchronous standby: {shown:?}"))?;
        set(trial, "synchronous_mode=false").await?;
        let since = Instant::now();
        while !waited_for(trial, leader).await?.is_empty() {
            must(since.elapsed() < trial.cluster.options.healed_within(), "Postgres still waits for a standby")?;
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

fn quoted(name: &str) -> String {
    if name.contains('-') { format!("\"{name}\"") } else { name.to_owned() }
}

async fn set(trial: &mut Trial, what: &str) -> Res<()> {
    let (code, out, err) = trial.cluster.patronictl(&["edit-config", "test", "--set", what, "--force"]).await?;
    must(code == 0, format!("patronictl edit-config --set {what}: {code}\n{out}{err}"))
}

async fn waited_for(trial: &Trial, leader: usize) -> Res<String> {
    let rows = trial.cluster.sql(leader, "SHOW synchronous_standby_names").await?;
    Ok(rows.first().and_then(|row| row.first()).cloned().unwrap_or_default())
}

/// The same in quorum mode: a commit is with one of two standbys, whichever it is, and whoever of them has it leads.
pub async fn in_quorum_mode_a_leader_killed_under_load_loses_no_row(options: Options) -> Res<()> {
    let options = Options { dcs_extra: "    synchronous_mode: quorum\n".into(), ..options };
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = kill_voted_leaders(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn kill_voted_leaders(trial: &mut Trial, mut leader: usize) -> Res<()> {
    for _ in 0..ROUNDS {
        quorum_standbys(trial, leader, 2).await?;
        let killed = trial.cluster.kill_member(leader).await?;
        trial.taken_over_from(leader, killed).await?;
        trial.cluster.start_member(leader).await?;
        leader = trial.whole().await?;
    }
    Ok(())
}

/// Waits until so many members are shown with a vote, by the REST API and in the list.
async fn quorum_standbys(trial: &mut Trial, leader: usize, count: usize) -> Res<()> {
    let (deadline, since) = (trial.cluster.options.healed_within(), Instant::now());
    let mut shown = String::new();
    while since.elapsed() < deadline {
        shown = trial.cluster.patronictl(&["list", "test"]).await?.1;
        let answers = trial.cluster.rest(leader, "/cluster").await.map(|(_, answer)| answer).unwrap_or_default();
        let members = answers["members"].as_array().cloned().unwrap_or_default();
        let named = members.iter().filter(|m| m["role"] == "quorum_standby").count();
        if shown.matches("Quorum Standby").count() == count && named == count {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    fail(format!("not {count} quorum standbys\n{shown}{}", trial.cluster.diagnosis().await))
}

/// Every mode to every other one under load; Postgres waits for whom they show.
pub async fn the_kinds_of_synchronous_mode_are_switched_under_load(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = switch_kinds(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switch_kinds(trial: &mut Trial, leader: usize) -> Res<()> {
    let votes = |number: usize| format!("ANY {number} (\"");
    set(trial, "synchronous_mode=quorum").await?;
    quorum_standbys(trial, leader, 2).await?;
    waits_for(trial, leader, &votes(1)).await?;
    let voter = (0..3).find(|i| *i != leader).unwrap_or_default();
    let shown = trial.cluster.rest(voter, "/quorum").await.map(|(status, _)| status);
    must(shown == Some(200), format!("GET /quorum at a voter: {shown:?}"))?;
    set(trial, "synchronous_node_count=2").await?;
    waits_for(trial, leader, &votes(2)).await?;
    set(trial, "synchronous_mode=on").await?;
    waits_for(trial, leader, "2 (\"").await?;
    sync_standby(trial, leader).await?;
    set(trial, "synchronous_mode=quorum").await?;
    set(trial, "synchronous_node_count=1").await?;
    quorum_standbys(trial, leader, 2).await?;
    waits_for(trial, leader, &votes(1)).await?;
    set(trial, "synchronous_mode=off").await?;
    waits_for(trial, leader, "").await
}

/// Until `synchronous_standby_names` begins so; with nothing, until it is empty.
async fn waits_for(trial: &Trial, leader: usize, begins: &str) -> Res<()> {
    let (deadline, since) = (trial.cluster.options.healed_within(), Instant::now());
    loop {
        let names = waited_for(trial, leader).await?;
        if names.starts_with(begins) && names.is_empty() == begins.is_empty() {
            return Ok(());
        }
        must(since.elapsed() < deadline, format!("Postgres waits for '{names}', wanted: '{begins}'"))?;
        sleep(Duration::from_millis(50)).await;
    }
}

/// After everybody was killed the voters alone find a leader among them, with nobody to stream from; the former one follows.
pub async fn in_quorum_mode_the_voters_come_back_without_their_leader(options: Options) -> Res<()> {
    let options = Options { dcs_extra: "    synchronous_mode: quorum\n".into(), ..options };
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = voters_come_back(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn voters_come_back(trial: &mut Trial, leader: usize) -> Res<()> {
    quorum_standbys(trial, leader, 2).await?;
    // The leader first: it would take those that die before it off the key.
    trial.cluster.kill_member(leader).await?;
    for i in (0..3).filter(|i| *i != leader) {
        trial.cluster.kill_member(i).await?;
    }
    let began = Instant::now();
    for i in (0..3).filter(|i| *i != leader) {
        trial.cluster.start_member(i).await?;
    }
    trial.client.wait_for_ack(began, trial.cluster.options.healed_within(), |a| a.member != leader).await?;
    trial.cluster.start_member(leader).await?;
    trial.whole().await?;
    Ok(())
}

/// In quorum mode a switchover may go to any voter, and a leader that stops leaves the lock to one.
pub async fn in_quorum_mode_a_switchover_goes_to_any_voter(options: Options) -> Res<()> {
    let options = Options { dcs_extra: "    synchronous_mode: quorum\n".into(), ..options };
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = switch_voters(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switch_voters(trial: &mut Trial, mut leader: usize) -> Res<()> {
    for _ in 0..3 {
        quorum_standbys(trial, leader, 2).await?;
        let to = (leader + 1) % 3;
        let (from, name) = (trial.cluster.members[leader].name.clone(), trial.cluster.members[to].name.clone());
        let asked = Instant::now();
        let body = serde_json::json!({"leader": from, "candidate": name});
        let (status, answer) = trial.cluster.rest_send(leader, "POST", "/switchover", body).await?;
        must(status == 200, format!("POST /switchover: {status} {answer}"))?;
        let ack = trial.taken_over_from(leader, asked).await?;
        must(ack.member == to, format!("{} leads instead of {to}", ack.member))?;
        leader = trial.whole().await?;
    }
    Ok(())
}

/// A switchover goes to a synchronous standby, and to nobody else; a failover to another one is taken at its word.
pub async fn a_switchover_goes_to_the_synchronous_standby(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(synchronous(options, "")).await?;
    let result = switchovers(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switchovers(trial: &mut Trial, leader: usize) -> Res<()> {
    let standby = sync_standby(trial, leader).await?;
    let other = 3 - leader - standby;
    let name = |trial: &Trial, i: usize| trial.cluster.members[i].name.clone();
    let (from, to) = (name(trial, leader), name(trial, other));
    let body = serde_json::json!({"leader": from, "candidate": to});
    let (status, answer) = trial.cluster.rest_send(leader, "POST", "/switchover", body).await?;
    must(status == 412, format!("a switchover to a member that is not synchronous: {status} {answer}"))?;
    let asked = Instant::now();
    let (status, answer) =
        trial.cluster.rest_send(leader, "POST", "/switchover", serde_json::json!({"leader": from})).await?;
    must(status == 200, format!("POST /switchover: {status} {answer}"))?;
    let ack = trial.taken_over_from(leader, asked).await?;
    must(ack.member == standby, "somebody else than the synchronous standby leads")?;
    trial.whole().await?;
    Ok(())
}
