//! How a member comes back whose data no longer fits.

use std::time::{Duration, SystemTime};

use patroni::demo::cluster::Options;
use patroni::demo::{Doing, Res};
use tokio::time::Instant;

use super::{Allowed, Trial, must};

/// pg_rewind writes files in place, a new clone makes new ones: the time of birth tells which it was (inodes are used
/// again).
pub(super) fn born(trial: &Trial, i: usize) -> Res<SystemTime> {
    let file = trial.cluster.members[i].data_dir().join("PG_VERSION");
    std::fs::metadata(&file).and_then(|m| m.created()).doing(format!("look at {}", file.display()))
}

/// Makes the leader write rows that no standby gets, kills it whole and lets another take over.
pub(super) async fn diverge(trial: &mut Trial, leader: usize) -> Res<()> {
    let standbys: Vec<usize> = (0..trial.cluster.members.len()).filter(|i| *i != leader).collect();
    for i in &standbys {
        trial.cluster.freeze(*i);
    }
    // What is in a socket's buffer still arrives after the thaw; with the connection ended, nothing more gets there.
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication";
    trial.cluster.sql(leader, ended).await?;
    let alone = Instant::now();
    let written = trial.client.wait_for_ack(alone + Duration::from_millis(300), Duration::from_secs(5), |_| true).await;
    let killed = trial.cluster.kill_member(leader).await?;
    for i in &standbys {
        trial.cluster.thaw(*i);
    }
    written?;
    trial.cluster.report_terminated(leader).await?;
    trial.taken_over_from(leader, killed).await?;
    Ok(())
}

/// pg_rewind for a diverged former leader.
pub async fn a_diverged_leader_is_rewound(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = diverge_and_return(&mut trial, leader, true).await;
    trial.end(result, Allowed::Tail).await
}

/// `remove_data_directory_on_diverged_timelines` without `use_pg_rewind`: a new clone.
pub async fn a_diverged_leader_is_cloned_anew_where_rewind_is_off(mut options: Options) -> Res<()> {
    options.rewind = false;
    options.dcs_postgresql_extra = "      remove_data_directory_on_diverged_timelines: true\n".into();
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = diverge_and_return(&mut trial, leader, false).await;
    trial.end(result, Allowed::Tail).await
}

async fn diverge_and_return(trial: &mut Trial, leader: usize, same_files: bool) -> Res<()> {
    let before = born(trial, leader)?;
    diverge(trial, leader).await?;
    trial.cluster.start_member(leader).await?;
    let now = trial.whole().await?;
    must(now != leader, "the diverged member leads")?;
    let after = born(trial, leader)?;
    let how = if after == before { "rewound" } else { "cloned" };
    must((after == before) == same_files, format!("the diverged member was {how}"))
}

/// `rm -rf` of a replica's data directory under its feet: it is cloned anew.
pub async fn a_replica_whose_data_vanished_is_cloned_anew(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = wipe(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn wipe(trial: &mut Trial, leader: usize) -> Res<()> {
    let replica = (leader + 1) % 3;
    trial.cluster.wipe_data(replica)?;
    let deadline = trial.cluster.options.healed_within();
    trial
        .cluster
        .wait_for("the replica has a data directory again", deadline, async |c| {
            c.members[replica].data_dir().join("PG_VERSION").exists().then_some(())
        })
        .await?;
    must(trial.whole().await? == leader, "the leader changed")
}
