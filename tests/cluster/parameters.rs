//! A typo in the parameters of a cluster is a line in the log, not a cluster that is down.

use std::os::unix::fs::PermissionsExt as _;

use patroni::demo::cluster::{Cluster, Options};
use patroni::demo::{Res, fail, machine};
use serde_json::json;

use super::{Allowed, Trial, must};

/// Every member restarts with the document in force, on the server's defaults for what it refuses and on the value before
/// where there was one; the corrected document arrives.
pub async fn a_typo_in_the_document_keeps_no_member_down(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = typed_wrong_then_right(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn typed_wrong_then_right(trial: &mut Trial, leader: usize) -> Res<()> {
    let all = trial.cluster.members.len();
    let before = started(&trial.cluster).await?;
    let wrong = json!({"foo_bar": 1, "work_mem": "banana", "shared_buffers": "100TB", "max_connections": 60});
    document(&trial.cluster, leader, wrong).await?;
    let unknown = "parameter \"foo_bar\" (\"1\" in the dynamic configuration) is unknown to PostgreSQL ";
    let refused = "parameter \"work_mem\" (\"banana\" in the dynamic configuration) is refused by PostgreSQL ";
    let deadline = trial.cluster.options.healed_within();
    let said = async |c: &mut Cluster| {
        c.members.iter().all(|m| m.log().contains(unknown) && m.log().contains(refused)).then_some(())
    };
    trial.cluster.wait_for("a warning of every member", deadline, said).await?;

    let (code, out, err) = trial.cluster.patronictl(&["restart", "test", "--force"]).await?;
    must(code == 0, format!("patronictl restart ended with {code}: {out}{err}"))?;
    trial.whole().await?;
    let after = started(&trial.cluster).await?;
    must(before.iter().zip(&after).all(|(b, a)| a != b), format!("not everybody has restarted: {before:?} {after:?}"))?;
    for i in 0..all {
        shows(&trial.cluster, i, ["4MB", "16MB", "60"]).await?;
        let (_, status) = trial.cluster.rest(i, "/patroni").await.unwrap_or_default();
        let ignored = status["ignored_parameters"].as_object().cloned().unwrap_or_default();
        let names: Vec<&String> = ignored.keys().collect();
        must(names == ["foo_bar", "shared_buffers", "work_mem"], format!("ignored_parameters of {i}: {ignored:?}"))?;
        let log = trial.cluster.members[i].log();
        must(log.matches(unknown).count() == 1, format!("said {} times", log.matches(unknown).count()))?;
    }

    // A process that begins anew finds the same, on the same values.
    trial.cluster.kill_member(leader).await?;
    trial.cluster.start_member(leader).await?;
    let leader = trial.whole().await?;
    for i in 0..all {
        shows(&trial.cluster, i, ["4MB", "16MB", "60"]).await?;
    }

    document(&trial.cluster, leader, json!({"foo_bar": null, "work_mem": "7MB", "shared_buffers": "17MB"})).await?;
    let arrived = async |c: &mut Cluster| {
        for i in 0..c.members.len() {
            let rows = c.sql(i, "SHOW work_mem").await.ok()?;
            let (_, status) = c.rest(i, "/patroni").await?;
            if rows != [["7MB"]] || status.get("ignored_parameters").is_some() {
                return None;
            }
        }
        Some(())
    };
    trial.cluster.wait_for("the corrected values", deadline, arrived).await
}

/// A leader that was restarted with more connections stops the replay of its standbys: they take the same, without a person.
pub async fn a_standby_takes_the_settings_of_its_leader(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = more_connections(&mut trial, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn more_connections(trial: &mut Trial, leader: usize) -> Res<()> {
    document(&trial.cluster, leader, json!({"max_connections": 90})).await?;
    let name = trial.cluster.members[leader].name.clone();
    let waits = async |c: &mut Cluster| c.rest(leader, "/patroni").await?.1.get("pending_restart").map(drop);
    trial.cluster.wait_for("the leader to wait for a restart", trial.cluster.options.healed_within(), waits).await?;
    let (code, out, err) = trial.cluster.patronictl(&["restart", "test", &name, "--force"]).await?;
    must(code == 0, format!("patronictl restart ended with {code}: {out}{err}"))?;
    let deadline = trial.cluster.options.healed_within();
    let all = async |c: &mut Cluster| {
        for i in 0..c.members.len() {
            let rows = c
                .sql(i, "SELECT current_setting('max_connections'), pg_is_in_recovery() AND pg_is_wal_replay_paused()");
            if rows.await.ok()? != [["90", "f"]] {
                return None;
            }
        }
        Some(())
    };
    trial.cluster.wait_for("every member with the settings of the leader", deadline, all).await
}

/// A server that does not say what it takes gets everything, and one warning says so.
pub async fn a_server_that_cannot_be_asked_gets_what_is_configured(mut options: Options) -> Res<()> {
    let dir = machine::private_dir("patroni-postgres")?;
    let program = dir.join("postgres");
    let real = options.postgres.join("postgres");
    let script = format!("#!/bin/sh\n[ \"$1\" != -C ] || exit 7\nexec {} \"$@\"\n", real.display());
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    machine::User::find()?.own(&dir)?;
    options.members = 1;
    options.postgresql_extra = format!("  bin_name:\n    postgres: {}\n", program.display());
    options.parameters_extra = "    work_mem: 7MB\n".into();
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = taken_as_configured(&mut trial, leader).await;
    std::fs::remove_dir_all(&dir)?;
    trial.end(result, Allowed::Nothing).await
}

async fn taken_as_configured(trial: &mut Trial, leader: usize) -> Res<()> {
    let (code, out, err) = trial.cluster.patronictl(&["restart", "test", "--force"]).await?;
    must(code == 0, format!("patronictl restart ended with {code}: {out}{err}"))?;
    trial.whole().await?;
    shows(&trial.cluster, leader, ["7MB", "16MB", "50"]).await?;
    let said = trial.cluster.members[leader].log().matches("cannot ask Postgres which parameters it takes").count();
    must(said == 1, format!("it is said {said} times that Postgres cannot be asked"))
}

async fn document(cluster: &Cluster, i: usize, parameters: serde_json::Value) -> Res<()> {
    let body = json!({"postgresql": {"parameters": parameters}});
    let (status, said) = cluster.rest_send(i, "PATCH", "/config", body).await?;
    must(status == 200, format!("PATCH /config was answered {status} {said}"))
}

async fn started(cluster: &Cluster) -> Res<Vec<String>> {
    let mut out = Vec::new();
    for i in 0..cluster.members.len() {
        let rows = cluster.sql(i, "SELECT pg_postmaster_start_time()::text").await?;
        out.extend(rows.into_iter().flatten());
    }
    Ok(out)
}

async fn shows(cluster: &Cluster, i: usize, wanted: [&str; 3]) -> Res<()> {
    let query =
        "SELECT current_setting('work_mem'), current_setting('shared_buffers'), current_setting('max_connections')";
    match cluster.sql(i, query).await? {
        rows if rows == [wanted.map(str::to_owned)] => Ok(()),
        rows => fail(format!("{} has {rows:?}, not {wanted:?}", cluster.members[i].name)),
    }
}
