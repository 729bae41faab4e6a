//! The watchdog: a file in the place of a device, which keeps whatever it is told (`driver: testing`).

use std::time::Duration;

use patroni::demo::cluster::{Cluster, Options};
use patroni::demo::{Res, fail};

use super::{Allowed, Trial, must};

/// Armed before the promotion, fed with every renewal, disarmed when nobody writes any more, and not by a sidecar that was killed.
pub async fn the_watchdog_goes_with_the_writer(mut options: Options) -> Res<()> {
    options.watchdog = "required".to_owned();
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = goes_with_the_writer(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

/// What the device of a member was told.
fn told(cluster: &Cluster, i: usize) -> Res<String> {
    Ok(std::fs::read_to_string(cluster.members[i].watchdog_path())?)
}

/// Waits until the device was told something.
async fn until(trial: &mut Trial, i: usize, what: &str, has: fn(&str) -> bool) -> Res<String> {
    let look = async |c: &mut Cluster| told(c, i).ok().filter(|text| has(text));
    trial.cluster.wait_for(what, Duration::from_secs(20), look).await
}

async fn goes_with_the_writer(trial: &mut Trial, first: usize) -> Res<()> {
    let second = (first + 1) % 3;
    let text = until(trial, first, "the leader to feed its watchdog", |t| t.matches('1').count() > 2).await?;
    must(text.starts_with("Ctimeout=3\n1") && !text.contains('V'), format!("the device was told {text:?}"))?;
    must(told(&trial.cluster, second)?.is_empty(), "a standby arms no device")?;

    // A sidecar that is killed says nothing to its device, and the next one feeds it again.
    trial.cluster.kill_sidecar(first).await?;
    let fed = told(&trial.cluster, first)?;
    must(!fed.contains('V'), format!("a killed sidecar has disarmed its device: {fed:?}"))?;
    trial.cluster.restart_sidecar(first)?;
    let look = async |c: &mut Cluster| told(c, first).ok().filter(|text| text.len() > fed.len());
    trial.cluster.wait_for("the device to be fed again", Duration::from_secs(20), look).await?;
    must(!told(&trial.cluster, first)?.contains('V'), "a restarted sidecar disarms no running primary")?;
    must(trial.whole().await? == first, "the restarted sidecar leads on")?;

    let to = trial.cluster.members[second].name.clone();
    let (code, out, err) = trial.cluster.patronictl(&["switchover", "--candidate", &to, "--force"]).await?;
    must(code == 0, format!("patronictl switchover ended with {code}: {out}{err}"))?;
    until(trial, second, "the new leader to arm its watchdog", |t| t.starts_with("Ctimeout=3\n1")).await?;
    until(trial, first, "the former leader to disarm its watchdog", |t| t.ends_with('V')).await?;
    must(trial.whole().await? == second, format!("{to} leads"))?;

    // In maintenance it is off.
    let (code, out, err) = trial.cluster.patronictl(&["pause", "--wait"]).await?;
    must(code == 0, format!("patronictl pause ended with {code}: {out}{err}"))?;
    until(trial, second, "the watchdog to be off in maintenance", |t| t.ends_with('V')).await?;
    let (code, out, err) = trial.cluster.patronictl(&["resume", "--wait"]).await?;
    must(code == 0, format!("patronictl resume ended with {code}: {out}{err}"))?;
    until(trial, second, "the watchdog to be armed after it", |t| t.ends_with("V1") || !t.ends_with('V')).await?;

    // Without a device a member says so, and is no candidate.
    std::fs::remove_file(trial.cluster.members[first].watchdog_path())?;
    let failed = async |c: &mut Cluster| {
        let (_, status) = c.rest(first, "/patroni").await?;
        (status["watchdog_failed"] == true).then_some(())
    };
    trial.cluster.wait_for("watchdog_failed", Duration::from_secs(20), failed).await?;
    let to = trial.cluster.members[first].name.clone();
    let (code, out, err) = trial.cluster.patronictl(&["switchover", "--candidate", &to, "--force"]).await?;
    if !format!("{out}{err}").contains("no good candidates have been found") {
        return fail(format!("a switchover to a member without its watchdog ended with {code}: {out}{err}"));
    }
    Ok(())
}
