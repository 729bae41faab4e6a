//! `standby_cluster`: a cluster that follows another one, through the failovers of both, and the change of roles between them.

use std::collections::BTreeSet;
use std::time::Duration;

use patroni::demo::Res;
use patroni::demo::cluster::{Cluster, Options};
use patroni::demo::writer;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Allowed, Trial, keep_logs, must};

/// Members of the one that follows.
const FOLLOWERS: usize = 2;
/// The slot that its leader streams from.
const SLOT: &str = "    slots:\n      other:\n        type: physical\n";

/// The section that follows this cluster, whoever leads it.
fn section(of: &Cluster) -> Value {
    let ports: Vec<String> = of.members.iter().map(|m| m.port.to_string()).collect();
    let hosts = vec!["127.0.0.1"; ports.len()];
    json!({"host": hosts.join(","), "port": ports.join(","), "primary_slot_name": "other"})
}

/// The other cluster, which has copied the first.
async fn follow(trial: &Trial) -> Res<Cluster> {
    let options = trial.cluster.options.clone();
    let section = section(&trial.cluster);
    let dcs_extra = format!("    standby_cluster: {section}\n{SLOT}");
    let copy = Cluster::start(Options { scope: "copy".into(), members: FOLLOWERS, dcs_extra, ..options }).await?;
    Ok(copy)
}

/// Its leader, once it is whole: one standby leader that streams from elsewhere, and the others from it.
async fn follows(copy: &mut Cluster, absent: &[usize]) -> Res<usize> {
    let deadline = copy.options.healed_within() + Duration::from_secs(20);
    let absent = absent.to_vec();
    copy.wait_for("a standby leader that streams, and everybody else", deadline, async |c: &mut Cluster| {
        let said = c.said().await;
        let there: Vec<usize> = (0..said.len()).filter(|i| !absent.contains(i)).collect();
        let role = |i: &usize| said[*i].as_ref().map(|s| s.role.clone()).unwrap_or_default();
        let leaders: Vec<usize> = there.iter().copied().filter(|i| role(i) == "standby_leader").collect();
        let streams = |i: &usize| said[*i].as_ref().is_some_and(|s| s.is_streaming());
        match leaders[..] {
            [leader] if there.iter().all(streams) => Some(leader),
            _ => None,
        }
    })
    .await
}

/// Every row that the other cluster has now comes: what it lost with a leader is nobody's to follow. Where nobody leads it any
/// more, every row that it acknowledged.
async fn catches_up(trial: &Trial, copy: &mut Cluster, member: usize) -> Res<()> {
    let said = trial.cluster.said().await;
    let primary = said.iter().position(|s| s.as_ref().is_some_and(|s| s.is_primary()));
    let acks: BTreeSet<u64> = match primary {
        Some(i) => writer::present(trial.cluster.members[i].port).await?,
        None => trial.client.acks().iter().map(|a| a.id).collect(),
    };
    let port = copy.members[member].port;
    let deadline = copy.options.healed_within();
    copy.wait_for("the rows of the other cluster", deadline, async |_: &mut Cluster| {
        let present = writer::present(port).await.ok()?;
        acks.iter().all(|id| present.contains(id)).then_some(())
    })
    .await
}

async fn end(trial: Trial, copy: Cluster, result: Res<()>, allowed: Allowed) -> Res<()> {
    if result.is_err() {
        keep_logs(&copy);
    }
    trial.end(result, allowed).await
}

/// "A standby cluster follows another cluster through its failovers, and its own".
pub async fn it_follows_through_failovers(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(Options { dcs_extra: SLOT.into(), ..options }).await?;
    let mut copy = follow(&trial).await?;
    let result = through_failovers(&mut trial, &mut copy, leader).await;
    end(trial, copy, result, Allowed::Tail).await
}

async fn through_failovers(trial: &mut Trial, copy: &mut Cluster, leader: usize) -> Res<()> {
    let first = follows(copy, &[]).await?;
    catches_up(trial, copy, first).await?;
    for (path, status) in [("/standby-leader", 200), ("/leader", 200), ("/primary", 503), ("/replica", 503)] {
        let (said, _) = copy.rest(first, path).await.unwrap_or_default();
        must(said == status, format!("{path} of a standby leader is {said}, not {status}"))?;
    }
    let (code, shown, _) = copy.patronictl(&["list"]).await?;
    must(code == 0 && shown.contains("Standby Leader"), format!("patronictl list says {code}: {shown}"))?;

    // The other cluster changes its leader: whichever writes is followed.
    trial.cluster.kill_member(leader).await?;
    trial.taken_over_from(leader, Instant::now()).await?;
    follows(copy, &[]).await?;
    catches_up(trial, copy, first).await?;
    trial.cluster.start_member(leader).await?;

    // By request, and by death, another of its members follows.
    let second = 1 - first;
    let body = json!({"leader": copy.members[first].name, "candidate": copy.members[second].name});
    let (status, said) = copy.rest_send(first, "POST", "/switchover", body).await?;
    must(status == 200, format!("the switchover of the standby cluster was answered {status} {said}"))?;
    let now = follows(copy, &[]).await?;
    must(now == second, "the switchover of the standby cluster went to nobody")?;
    copy.kill_member(second).await?;
    let now = follows(copy, &[second]).await?;
    must(now == first, "nobody took over in the standby cluster")?;
    copy.start_member(second).await?;
    follows(copy, &[]).await?;
    catches_up(trial, copy, second).await
}

/// "Two clusters change their roles, and nothing is lost": the follower is promoted, and the one that led follows it.
pub async fn two_clusters_change_their_roles(options: Options) -> Res<()> {
    let (mut trial, _) = Trial::begin(Options { dcs_extra: SLOT.into(), ..options }).await?;
    let mut copy = follow(&trial).await?;
    let result = change_roles(&mut trial, &mut copy).await;
    end(trial, copy, result, Allowed::Tail).await
}

async fn change_roles(trial: &mut Trial, copy: &mut Cluster) -> Res<()> {
    follows(copy, &[]).await?;
    let leader = trial.whole().await?;
    // First the one that leads is to follow; it ends what it writes in order.
    let body = json!({"standby_cluster": section(copy)});
    let (status, said) = trial.cluster.rest_send(leader, "PATCH", "/config", body).await?;
    must(status == 200, format!("PATCH /config was answered {status} {said}"))?;
    let deadline = trial.cluster.options.healed_within();
    let demoted = async |c: &mut Cluster| {
        let said = c.said().await;
        said.iter().flatten().all(|s| !s.is_primary()).then_some(())
    };
    trial.cluster.wait_for("the end of the primary", deadline, demoted).await?;
    let before = trial.client.acks();
    let member = follows_leader(copy).await?;
    catches_up(trial, copy, member).await?;
    let (code, out, err) = copy.patronictl(&["promote-cluster", "--force"]).await?;
    must(code == 0 && out.contains("cluster is successfully promoted"), format!("promote-cluster: {code} {out}{err}"))?;
    let promoted = copy.wait_whole(copy.options.healed_within() + Duration::from_secs(10)).await?;
    copy.sql(promoted, "CREATE TABLE of_the_copy AS SELECT 1 AS one").await?;
    follows(&mut trial.cluster, &[]).await?;
    let present = writer::present(copy.members[promoted].port).await?;
    must(before.iter().all(|a| present.contains(&a.id)), "rows of before are missing in the cluster that leads now")?;
    for i in 0..trial.cluster.members.len() {
        let deadline = trial.cluster.options.healed_within();
        let there =
            async |c: &mut Cluster| c.sql(i, "SELECT one FROM of_the_copy").await.ok().filter(|r| !r.is_empty());
        trial.cluster.wait_for("the table of the other cluster", deadline, there).await?;
    }
    // And back, without the orderly end: what was written beside the new leader goes.
    let leader = follows(&mut trial.cluster, &[]).await?;
    let (status, said) = trial.cluster.rest_send(leader, "PATCH", "/config", json!({"standby_cluster": null})).await?;
    must(status == 200, format!("PATCH /config was answered {status} {said}"))?;
    let whole = trial.whole().await?;
    copy.sql(promoted, "CREATE TABLE beside AS SELECT 1 AS one").await?;
    let body = json!({"standby_cluster": section(&trial.cluster)});
    let (status, said) = copy.rest_send(promoted, "PATCH", "/config", body).await?;
    must(status == 200, format!("PATCH /config was answered {status} {said}"))?;
    trial.cluster.sql(whole, "CREATE TABLE after_all AS SELECT 1 AS one").await?;
    follows(copy, &[]).await?;
    for i in 0..FOLLOWERS {
        let deadline = copy.options.healed_within() + Duration::from_secs(20);
        let there = async |c: &mut Cluster| c.sql(i, "SELECT one FROM after_all").await.ok().filter(|r| !r.is_empty());
        copy.wait_for("the table of the cluster that leads again", deadline, there).await?;
        let gone = copy.sql(i, "SELECT to_regclass('beside')::text IS NULL").await?;
        must(gone == [["t"]], format!("what was written beside the leader is there: {gone:?}"))?;
    }
    Ok(())
}

async fn follows_leader(copy: &mut Cluster) -> Res<usize> {
    let deadline = copy.options.healed_within();
    copy.wait_for("a standby leader", deadline, async |c: &mut Cluster| {
        let said = c.said().await;
        (0..said.len()).find(|i| said[*i].as_ref().is_some_and(|s| s.role == "standby_leader"))
    })
    .await
}
