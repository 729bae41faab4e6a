//! One cluster of both: members of Patroni 4.1 from PyPI beside ours, as in a fleet that migrates pod by pod.
//!
//! Every member hands over to every other, through the `patronictl` of either kind; then a leader of each kind is killed
//! whole. A standby has every row before it is acknowledged (`synchronous_standby_names: '*'`), so that a kill may lose
//! nothing either: whoever is elected must be the one that has it, whichever kind judges.
//!
//! Patroni knows no time scale: these run at true speed, and only where `PATRONI_VENV` names its virtual environment.

use std::collections::BTreeMap;
use std::time::Duration;

use patroni::demo::cluster::{Cluster, Options, Theirs};
use patroni::demo::{Res, fail};
use serde_json::Value;
use tokio::time::Instant;

use super::rejoin::{born, diverge};
use super::{Allowed, Trial, must};

/// A silent leader costs the ttl of 20 s, and Patroni may look for a leader, rewind and start in its own time after that.
const WHOLE_AGAIN: Duration = Duration::from_secs(60);
/// Two loops of either kind, and a `patronictl list` of Patroni takes a second on a busy machine.
const AGREED: Duration = Duration::from_secs(20);

/// Two members run Patroni, the third is the first one that was migrated.
pub async fn two_of_theirs_and_one_of_ours_lose_nothing(options: Options) -> Res<()> {
    fleet(options, &[0, 1]).await
}

/// The last member that has not been migrated.
pub async fn one_of_theirs_and_two_of_ours_lose_nothing(options: Options) -> Res<()> {
    fleet(options, &[0]).await
}

fn beside(mut options: Options, theirs: &[usize]) -> Res<Options> {
    let Some(venv) = super::venv() else { return fail("PATRONI_VENV is not set") };
    options.theirs = Some(Theirs { bin_dir: venv.join("bin"), members: theirs.to_vec() });
    options.kubernetes_extra = "  leader_label_value: primary\n".into();
    Ok(options)
}

/// One of each. Whoever leads writes what the other never gets, and dies: it comes back as a standby of the other kind,
/// rewound; then the same the other way round.
pub async fn a_diverged_leader_of_either_kind_is_rewound_from_the_other(options: Options) -> Res<()> {
    let mut options = beside(options, &[0])?;
    options.members = 2;
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = diverge_twice(&mut trial, leader).await;
    trial.end(result, Allowed::Tail).await
}

async fn diverge_twice(trial: &mut Trial, leader: usize) -> Res<()> {
    for old in [leader, 1 - leader] {
        let before = born(trial, old)?;
        diverge(trial, old).await?;
        trial.cluster.start_member(old).await?;
        let now = trial.cluster.wait_whole(WHOLE_AGAIN).await?;
        let name = trial.cluster.members[old].name.clone();
        must(now != old, format!("{name} leads, and it had diverged"))?;
        must(born(trial, old)? == before, format!("{name} was cloned"))?;
    }
    Ok(())
}

async fn fleet(options: Options, theirs: &[usize]) -> Res<()> {
    let mut options = beside(options, theirs)?;
    options.parameters_extra = "    synchronous_standby_names: '*'\n".into();
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = a_day(&mut trial, leader, theirs).await;
    trial.end(result, Allowed::Nothing).await
}

async fn a_day(trial: &mut Trial, leader: usize, theirs: &[usize]) -> Res<()> {
    let (b, c) = ((leader + 1) % 3, (leader + 2) % 3);
    // Each ordered pair once, and back to the first.
    for (turn, pair) in [leader, b, c, leader, c, b, leader].windows(2).enumerate() {
        switch(trial, pair[0], pair[1], turn % 3).await?;
        agreed(trial, pair[1], theirs).await?;
    }
    let is_theirs = |i: usize| theirs.contains(&i);
    let next = kill(trial, leader, is_theirs(leader)).await?;
    let other_kind = (0..3).find(|i| is_theirs(*i) != is_theirs(leader)).unwrap_or(next);
    let victim = if is_theirs(next) == is_theirs(leader) { other_kind } else { next };
    if victim != next {
        switch(trial, next, victim, leader).await?;
    }
    let last = kill(trial, victim, is_theirs(victim)).await?;
    agreed(trial, last, theirs).await
}

/// With the `patronictl` of member `through`.
async fn switch(trial: &mut Trial, from: usize, to: usize, through: usize) -> Res<()> {
    let name = |i: usize| trial.cluster.members[i].name.clone();
    let (old, new) = (name(from), name(to));
    let asked = Instant::now();
    let args = ["switchover", "test", "--leader", &old, "--candidate", &new, "--force"];
    let (code, out, err) = trial.cluster.patronictl_of(through, &args).await?;
    let said = format!("patronictl of {} said {code} to {args:?}\n{out}{err}", name(through));
    must(code == 0 && out.contains("Successfully switched over to"), said)?;
    trial.taken_over_from(from, asked).await?;
    let now = trial.cluster.wait_whole(WHOLE_AGAIN).await?;
    must(now == to, format!("{} leads instead of {new}", trial.cluster.members[now].name))
}

/// Everything of the leader dies, the kubelet reports it, and it comes back. Returns who leads then.
async fn kill(trial: &mut Trial, leader: usize, patroni: bool) -> Res<usize> {
    let killed = trial.cluster.kill_member(leader).await?;
    trial.cluster.report_terminated(leader).await?;
    let ack = trial.taken_over_from(leader, killed).await?;
    // Its record names no containers, so no report of a kubelet proves its death.
    let lease = trial.cluster.options.lease().saturating_sub(Duration::from_secs(2));
    let took = ack.at - killed;
    let early = format!("taken over from a Patroni member {:.2} s after its death", took.as_secs_f64());
    must(!patroni || took >= lease, early)?;
    trial.cluster.start_member(leader).await?;
    trial.cluster.wait_whole(WHOLE_AGAIN).await
}

/// What is seen from outside of a cluster that is whole: the label that a Service routes by names the leader alone, who writes
/// as the member of its kind, and both kinds of `patronictl list` say the same. What a member publishes follows a moment
/// after what it does, so all of it is waited for.
async fn agreed(trial: &mut Trial, leader: usize, theirs: &[usize]) -> Res<()> {
    let theirs = theirs.to_vec();
    let look = async |c: &mut Cluster| {
        for i in 0..3 {
            let pod = c.api.object("pods", &c.members[i].name).await.ok()?;
            let label = pod.pointer("/metadata/labels/role").and_then(Value::as_str)?;
            let status = pod.pointer("/metadata/annotations/status").and_then(Value::as_str)?;
            let ours = status.contains("\"patroni.impl\"");
            let good = label == if i == leader { "primary" } else { "replica" } && ours != theirs.contains(&i);
            good.then_some(())?;
        }
        let (a, b) = (list(c, theirs[0]).await?, list(c, (0..3).find(|i| !theirs.contains(i))?).await?);
        let streams = a.values().filter(|(role, state, _)| role == "Replica" && state == "streaming").count();
        (a == b && streams == 2).then_some(())
    };
    trial.cluster.wait_for("labels and two equal lists of one leader and two streaming replicas", AGREED, look).await
}

/// What `patronictl list` of member `through` says of each: role, state and timeline.
async fn list(cluster: &Cluster, through: usize) -> Option<BTreeMap<String, (String, String, u64)>> {
    let (_, out, _) = cluster.patronictl_of(through, &["list", "--format", "json"]).await.ok()?;
    let rows: Vec<Value> = serde_json::from_str(&out).ok()?;
    let text = |row: &Value, key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let of = |row: &Value| {
        let timeline = row.get("TL").and_then(Value::as_u64).unwrap_or_default();
        (text(row, "Member"), (text(row, "Role"), text(row, "State"), timeline))
    };
    Some(rows.iter().map(of).collect())
}
