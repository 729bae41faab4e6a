//! Things that die or stop without a word.

use std::time::Duration;

use patroni::demo::cluster::Options;
use patroni::demo::writer::{self, TABLE};
use patroni::demo::{Res, fail, processes};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Allowed, Trial, must};

/// Dead means every process: "After `kill -9` of a postmaster a backend with a statement in flight was seen to acknowledge an INSERT
/// 2.4 s later". Here none may acknowledge anything once the restarted Postgres accepts writes.
pub async fn a_crashed_postgres_acknowledges_nothing_late_and_loses_nothing(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = crash(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

/// A statement that computes for seconds without looking at the postmaster, then inserts. Ends with the moment of its
/// acknowledgement, if it got one.
async fn slow_insert(port: u16, id: i64) -> Res<JoinHandle<Option<Instant>>> {
    let client = writer::connect(port).await?;
    let sql = format!(
        "INSERT INTO {TABLE} (id, member) SELECT {id}, sum(length(md5(i::text))) % 7 FROM generate_series(1, 4000000) i"
    );
    Ok(tokio::spawn(async move { client.batch_execute(&sql).await.is_ok().then(Instant::now) }))
}

async fn crash(trial: &mut Trial, leader: usize) -> Res<()> {
    let port = trial.cluster.members[leader].port;
    let mut slow = Vec::new();
    for i in 0..3 {
        slow.push(slow_insert(port, -1 - i).await?);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let killed = trial.cluster.kill_postmaster(leader)?;
    let deadline = trial.cluster.options.healed_within();
    let after = trial.client.wait_for_ack(killed + Duration::from_millis(100), deadline, |_| true).await;
    let Ok(after) = after else {
        return fail(format!("no write after the crash\n{}", trial.cluster.diagnosis().await));
    };
    for statement in slow {
        if let Some(at) = statement.await?
            && at > after.at
        {
            let late = (at - after.at).as_secs_f64();
            return fail(format!("an old backend acknowledged {late:.3} s after the first new write"));
        }
    }
    Ok(())
}

/// A proven death: takeover without waiting for the ttl.
pub async fn a_killed_member_is_replaced_when_it_is_reported(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = kill_and_report(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn kill_and_report(trial: &mut Trial, leader: usize) -> Res<()> {
    let killed = trial.cluster.kill_member(leader).await?;
    let reported = trial.cluster.report_terminated(leader).await?;
    let early = trial.client.acks().iter().any(|a| a.member != leader && a.at > killed && a.at < reported);
    must(!early, "a standby led before anybody reported the leader's death")?;
    trial.taken_over_from(leader, killed).await?;
    trial.cluster.start_member(leader).await?;
    trial.whole().await?;
    Ok(())
}

/// "Silence always costs the full ttl."
pub async fn silence_costs_the_whole_lease(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = kill_in_silence(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn kill_in_silence(trial: &mut Trial, leader: usize) -> Res<()> {
    let killed = trial.cluster.kill_member(leader).await?;
    let ack = trial.taken_over_from(leader, killed).await?;
    let o = &trial.cluster.options;
    // The last renewal was sent at most one renewal period and one slow answer before the kill.
    let least = o.lease().saturating_sub(o.secs(f64::from(o.loop_wait) + 1.0));
    let took = ack.at - killed;
    must(took >= least, format!("taken over {:.2} s after the death of a silent leader", took.as_secs_f64()))?;
    trial.cluster.start_member(leader).await?;
    trial.whole().await?;
    Ok(())
}

/// Freeze and thaw: the old leader wakes up as a primary whose lease is over; it may not acknowledge any new statement.
pub async fn a_frozen_leader_writes_nothing_after_the_thaw(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = freeze(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn freeze(trial: &mut Trial, leader: usize) -> Res<()> {
    let frozen = trial.cluster.freeze(leader);
    let taken = trial.taken_over_from(leader, frozen).await;
    trial.thawed = Some(trial.cluster.thaw(leader));
    taken?;
    trial.whole().await?;
    let postmaster = processes::postmaster(&trial.cluster.members[leader].processes()).map(|p| p.pid);
    must(postmaster.is_some(), "the thawed member runs no Postgres")
}
