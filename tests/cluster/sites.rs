//! Members in two sites.

use std::time::Duration;

use patroni::demo::cluster::Options;
use patroni::demo::{Res, fail};
use tokio::time::Instant;

use super::{Allowed, Trial, must};

/// Commits wait for a standby in the other site, and a failover that has to stay in the site does.
pub async fn a_failover_stays_in_its_site(mut options: Options) -> Res<()> {
    options.sites = ["east", "west", "east"].map(str::to_owned).to_vec();
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = from_east_to_east(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn from_east_to_east(trial: &mut Trial, first: usize) -> Res<()> {
    let leader = if first == 1 { moved(trial, "test-0").await? } else { first };
    let (code, out, err) = trial.cluster.patronictl(&["list"]).await?;
    let heading = out.lines().nth(1).unwrap_or_default();
    let sites = |site: &str| out.lines().filter(|line| line.contains(site)).count();
    let shown = code == 0 && heading.contains("| Site |") && (sites("| east |"), sites("| west |")) == (2, 1);
    must(shown, format!("patronictl list ended with {code}: {out}{err}"))?;

    edit(trial, "synchronous_mode=on").await?;
    let named = async |c: &mut patroni::demo::cluster::Cluster| {
        let (_, cluster) = c.rest(leader, "/cluster").await?;
        let synchronous = |m: &&serde_json::Value| m["role"] == "sync_standby";
        let names: Vec<String> =
            cluster["members"].as_array()?.iter().filter(synchronous).map(|m| m["name"].to_string()).collect();
        (!names.is_empty()).then_some(names)
    };
    let names = trial.cluster.wait_for("a synchronous standby", Duration::from_secs(20), named).await?;
    must(names == ["\"test-1\""], format!("{names:?} is synchronous, west has test-1"))?;

    edit(trial, "synchronous_mode=off").await?;
    let over = async |c: &mut patroni::demo::cluster::Cluster| {
        let (_, cluster) = c.rest(leader, "/cluster").await?;
        cluster["members"].as_array()?.iter().all(|m| m["role"] != "sync_standby").then_some(())
    };
    trial.cluster.wait_for("the end of synchronous mode", Duration::from_secs(20), over).await?;
    edit(trial, "failover_site=require").await?;
    let since = trial.cluster.kill_member(leader).await?;
    let ack = trial.taken_over_from(leader, since).await?;
    must(ack.member == 2 - leader, format!("test-{} took over from test-{leader}", ack.member))?;
    trial.cluster.start_member(leader).await?;
    trial.whole().await?;

    let west = moved(trial, "test-1").await?;
    let ack = trial.client.wait_for_ack(Instant::now(), Duration::from_secs(10), |a| a.member == west).await?;
    must(ack.member == 1, "a person may move the cluster to the other site")
}

async fn moved(trial: &mut Trial, to: &str) -> Res<usize> {
    let (code, out, err) = trial.cluster.patronictl(&["switchover", "--candidate", to, "--force"]).await?;
    must(code == 0, format!("patronictl switchover ended with {code}: {out}{err}"))?;
    match trial.whole().await? {
        leader if trial.cluster.members[leader].name == to => Ok(leader),
        other => fail(format!("{} leads, not {to}", trial.cluster.members[other].name)),
    }
}

async fn edit(trial: &Trial, set: &str) -> Res<()> {
    let (code, out, err) = trial.cluster.patronictl(&["edit-config", "--force", "-s", set]).await?;
    must(code == 0, format!("patronictl edit-config -s {set} ended with {code}: {out}{err}"))
}
