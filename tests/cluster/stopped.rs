//! Sidecar, keeper and warden of the primary stopped, in every combination, with clients that go on sending: whoever hangs,
//! one member writes at a time, and what was acknowledged is there.

use std::time::Duration;

use patroni::demo::cluster::Options;
use patroni::demo::processes::{self, Proc};
use patroni::demo::{Res, fail};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{Allowed, Trial, must};

/// Who is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Sidecar,
    Keeper,
    Warden,
}
use Part::{Keeper, Sidecar, Warden};

/// A proof by silence takes six seconds on any time scale, after a permission; then somebody has to be elected.
const LET_GO: Duration = Duration::from_secs(25);
/// A commit waits for a standby, so that the death of a primary loses none.
const NOTHING_IS_LOST: &str = "    synchronous_standby_names: '*'\n";

impl Part {
    fn is(self, p: &Proc) -> bool {
        match self {
            Sidecar => p.name == "patroni",
            Keeper => p.command.contains("postgres-keeper") && p.command.contains("--socket"),
            Warden => p.command.contains("postgres-keeper") && p.command.contains(" warden"),
        }
    }
}

/// Stops them; what was stopped.
fn stop(trial: &Trial, member: usize, parts: &[Part]) -> Res<Vec<i32>> {
    let all = trial.cluster.members[member].processes();
    let mut stopped = Vec::new();
    for part in parts {
        let Some(p) = all.iter().find(|p| part.is(p)) else { return fail(format!("no {part:?} among {all:?}")) };
        processes::send(p.pid, Signal::STOP);
        stopped.push(p.pid);
    }
    Ok(stopped)
}

fn go_on(stopped: &[i32]) {
    stopped.iter().for_each(|pid| processes::send(*pid, Signal::CONT));
}

async fn begin(mut options: Options) -> Res<(Trial, usize)> {
    options.parameters_extra.push_str(NOTHING_IS_LOST);
    Trial::begin(options).await
}

/// Its sidecar cannot say anything: the lease ends, and the old primary has ended before.
pub async fn with_its_sidecar_a_primary_ends_before_its_lease(options: Options) -> Res<()> {
    let (mut trial, mut leader) = begin(options).await?;
    let mut result = Ok(());
    for parts in [&[Sidecar, Keeper][..], &[Sidecar, Warden], &[Sidecar, Keeper, Warden]] {
        let round = taken_over(&mut trial, leader, parts).await;
        match round {
            Ok(next) => leader = next,
            Err(e) => {
                result = fail(format!("{parts:?}: {e}"));
                break;
            }
        }
    }
    trial.end(result, Allowed::Nothing).await
}

async fn taken_over(trial: &mut Trial, leader: usize, parts: &[Part]) -> Res<usize> {
    let stopped = stop(trial, leader, parts)?;
    let since = Instant::now();
    let taken = trial.client.wait_for_ack(since, LET_GO, |a| a.member != leader).await;
    // Time for an old primary to write beside the new one.
    sleep(trial.cluster.options.lease()).await;
    go_on(&stopped);
    report(trial, leader, parts, since);
    taken?;
    trial.whole().await
}

/// Its sidecar lives, and says nothing that is not so: while somebody may write it keeps the lock, and then it lets go.
pub async fn beside_its_sidecar_a_primary_ends_and_the_lock_goes_on(options: Options) -> Res<()> {
    let (mut trial, mut leader) = begin(options).await?;
    let mut result = Ok(());
    for parts in [&[Keeper][..], &[Keeper, Warden]] {
        match let_go(&mut trial, leader, parts).await {
            Ok(next) => leader = next,
            Err(e) => {
                result = fail(format!("{parts:?}: {e}"));
                break;
            }
        }
    }
    if result.is_ok() {
        result = restarted(&mut trial, leader).await;
    }
    trial.end(result, Allowed::Nothing).await
}

async fn let_go(trial: &mut Trial, leader: usize, parts: &[Part]) -> Res<usize> {
    let stopped = stop(trial, leader, parts)?;
    let since = Instant::now();
    loop {
        let said = trial.cluster.rest(leader, "/patroni").await;
        if said.as_ref().is_some_and(|(_, said)| said["fence"] == "lost") {
            break;
        }
        if since.elapsed() > LET_GO {
            let all = trial.cluster.members[leader].processes();
            return fail(format!("the member does not say that its fence is lost: {said:?}, {stopped:?} of {all:?}"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    let taken = trial.client.wait_for_ack(since, LET_GO, |a| a.member != leader).await;
    report(trial, leader, parts, since);
    let lines = trial.cluster.members[leader].log();
    go_on(&stopped);
    taken?;
    must(lines.contains("(proof by silence)"), "the lock went without the proof")?;
    trial.whole().await
}

/// A warden alone: its timer ends, and a keeper that lives goes on with another.
async fn restarted(trial: &mut Trial, leader: usize) -> Res<()> {
    let stopped = stop(trial, leader, &[Warden])?;
    let since = Instant::now();
    sleep(trial.cluster.options.lease()).await;
    trial.client.wait_for_ack(Instant::now(), LET_GO, |_| true).await?;
    report(trial, leader, &[Warden], since);
    must(!trial.cluster.members[leader].processes().iter().any(|p| stopped.contains(&p.pid)), "the warden is stuck")?;
    trial.whole().await?;
    Ok(())
}

fn report(trial: &Trial, old: usize, parts: &[Part], since: Instant) {
    let acks = trial.client.acks();
    let first = acks.iter().find(|a| a.member != old && a.at > since).map(|a| a.at);
    let before = |at: Instant| first.is_none_or(|first| at < first);
    let last = acks.iter().rev().find(|a| a.member == old && before(a.at)).map(|a| a.at);
    let after = |at: Option<Instant>| at.map_or(0.0, |at| at.saturating_duration_since(since).as_secs_f64());
    println!("{parts:?} stopped: last old commit after {:.2} s, first new after {:.2} s", after(last), after(first));
}
