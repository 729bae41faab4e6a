//! Orderly changes of the leader: nothing that was acknowledged may be missing afterwards.

use std::time::Duration;

use patroni::demo::cluster::Options;
use patroni::demo::{Res, fail};
use serde_json::json;
use tokio::time::Instant;

use super::{Allowed, Trial, must};

/// `patronictl switchover --candidate`: the candidate leads, the old leader follows it, no row is lost.
pub async fn a_switchover_to_a_candidate_loses_nothing(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = switch_with_patronictl(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switch_with_patronictl(trial: &mut Trial, leader: usize) -> Res<()> {
    let candidate = (leader + 2) % 3;
    let (from, to) = (trial.cluster.members[leader].name.clone(), trial.cluster.members[candidate].name.clone());
    let asked = Instant::now();
    let args = ["switchover", "test", "--leader", &from, "--candidate", &to, "--force"];
    let (code, out, err) = trial.cluster.patronictl(&args).await?;
    must(code == 0 && out.contains("Successfully switched over to"), format!("patronictl: {code}\n{out}{err}"))?;
    let ack = trial.taken_over_from(leader, asked).await?;
    must(ack.member == candidate, format!("{} leads instead of {to}", trial.cluster.members[ack.member].name))?;
    let now = trial.whole().await?;
    must(now == candidate, "the candidate does not lead in the end")
}

/// `POST /switchover` without a candidate: somebody else leads.
pub async fn a_switchover_through_rest_loses_nothing(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = switch_with_rest(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switch_with_rest(trial: &mut Trial, leader: usize) -> Res<()> {
    let asked = Instant::now();
    let body = json!({"leader": trial.cluster.members[leader].name});
    let (status, answer) = trial.cluster.rest_send(leader, "POST", "/switchover", body).await?;
    must(status == 200, format!("POST /switchover: {status} {answer}"))?;
    trial.taken_over_from(leader, asked).await?;
    let now = trial.whole().await?;
    must(now != leader, "the old leader leads again")
}

/// "An orderly hand-over is: early CHECKPOINT, fast stop, wait until a standby has the shutdown position,
/// release, the standby promotes."
pub async fn a_terminated_leader_hands_over_and_loses_nothing(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = terminate(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn terminate(trial: &mut Trial, leader: usize) -> Res<()> {
    let asked = trial.cluster.sigterm(leader)?;
    let ack = trial.taken_over_from(leader, asked).await?;
    // Waiting for the ttl would be a takeover of a silent member, not a hand-over.
    let lease = trial.cluster.options.lease();
    must(ack.at - asked < lease, format!("the hand-over took {:.1} s", (ack.at - asked).as_secs_f64()))?;
    trial.cluster.members[leader].ended(Duration::from_secs(30)).await?;
    let left = trial.cluster.members[leader].processes();
    must(left.is_empty(), format!("patroni ended, this did not: {left:?}"))?;
    trial.cluster.start_member(leader).await?;
    trial.whole().await?;
    Ok(())
}

/// `patronictl failover --candidate` while nobody leads: the candidate is chosen, and only after the dead leader's lease.
pub async fn a_failover_without_a_leader_goes_to_the_candidate(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = fail_over_by_hand(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn fail_over_by_hand(trial: &mut Trial, leader: usize) -> Res<()> {
    let candidate = (leader + 2) % 3;
    let to = trial.cluster.members[candidate].name.clone();
    let killed = trial.cluster.kill_member(leader).await?;
    // patronictl's own member list may name the dead leader; any member that lives can take the request.
    let body = json!({"candidate": to});
    let (status, answer) = trial.cluster.rest_send(candidate, "POST", "/failover", body).await?;
    // The request waits for its result for 15 s at most; the dead leader's lease may take longer.
    if status != 200 && !answer.contains("status unknown") {
        return fail(format!("POST /failover: {status} {answer}"));
    }
    let ack = trial.taken_over_from(leader, killed).await?;
    must(ack.member == candidate, format!("{} leads instead of {to}", trial.cluster.members[ack.member].name))?;
    trial.cluster.start_member(leader).await?;
    trial.whole().await?;
    Ok(())
}

/// A scheduled switchover goes to its candidate, whoever else could lead as well.
pub async fn a_scheduled_switchover_goes_to_its_candidate(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = switch_over_on_time(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn switch_over_on_time(trial: &mut Trial, mut leader: usize) -> Res<()> {
    for next in [1, 2, 2, 1] {
        let to = (leader + next) % 3;
        let soon =
            "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '2 s', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"+00:00\"')";
        let day = trial.cluster.sql(leader, soon).await?;
        let day = day.first().and_then(|row| row.first()).cloned().unwrap_or_default();
        let names: Vec<String> = trial.cluster.members.iter().map(|m| m.name.clone()).collect();
        let body = json!({"leader": names[leader], "candidate": names[to], "scheduled_at": day});
        let asked = Instant::now();
        let (status, answer) = trial.cluster.rest_send(leader, "POST", "/switchover", body).await?;
        must(status == 202, format!("POST /switchover at {day}: {status} {answer}"))?;
        let ack = trial.taken_over_from(leader, asked).await?;
        must(ack.member == to, format!("{} leads instead of {}", names[ack.member], names[to]))?;
        leader = trial.whole().await?;
    }
    Ok(())
}
