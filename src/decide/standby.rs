//! A standby cluster: nobody writes here. Whoever has the lock follows another cluster, and everybody else follows it.
//!
//! ```text
//! a primary ends as one ─ a request of a person ─ compared with the remote ─ follow it ─ nothing to do
//! ```
//! The lock is taken without a number, because nothing is promoted, and its holder asks the keeper for no permission. When the
//! section goes, the holder of the lock is a standby with the lock like any other and is promoted, under a number that it claims
//! then; when it comes, a primary stops in order and comes back as the one that follows.

use super::{Ctx, Hold, RETRY_PAUSE, failsafe, leader, replica, requests, rewind, sync};
use crate::model::{
    Action, BootInstant, ControlData, Decision, Electorate, LeaseVerdict, Member, MemberName, Permission, Probe,
    RewindState, Role, Settings, StartRole, StopMode, TaskKind, TaskOutcome, Timeline, Upstream,
};
use crate::mutant::{self, Mutant};

/// Is this a standby cluster?
pub(super) fn is_one(settings: &Settings) -> bool {
    settings.standby_of.is_some() && !mutant::is(Mutant::LeadsInStandbyCluster)
}

/// The other cluster as a leader to follow, if it can be streamed from.
pub(super) fn remote(settings: &Settings) -> Option<(MemberName, Member)> {
    let conn_url = settings.standby_of.as_ref()?.conn_url.clone()?;
    let place = conn_url.split_once("://").map_or(conn_url.as_str(), |(_, place)| place);
    let name = MemberName(format!("remote({place})"));
    Some((name, Member { conn_url: Some(conn_url), role: Some(Role::Primary), ..Member::default() }))
}

/// What the holder of the lock streams from.
pub(super) fn upstream(ctx: &Ctx<'_>) -> Upstream {
    let remote = ctx.settings.standby_of.as_ref();
    let streams = remote.and_then(|r| Some((r.conn_url.clone()?, r.slot.clone())));
    streams.map_or(Upstream::Nobody, |(conn_url, slot)| Upstream::Remote { conn_url, slot })
}

/// The lock is mine, Postgres is alive and answers.
pub(super) fn lead(ctx: &Ctx<'_>, probe: &Probe) -> Decision {
    if !probe.in_recovery {
        return demote(ctx);
    }
    if ctx.local.deadman.ordered && ctx.local.postgres.promoting.is_none() {
        let why = "this is a standby cluster";
        let d = ctx.wait(
            "a promotion was ordered before this became a standby cluster: stopping what may still follow the order",
        );
        let stop = ctx.local.postgres.stopping.is_none();
        return d.then_if(stop, || Action::StopPostgres { mode: StopMode::Immediate, why });
    }
    if ctx.local.postgres.promoting.is_some() {
        // It may follow the order at any moment, whatever was wished since: only what is over can be undone.
        return ctx.wait("a promotion was ordered before this became a standby cluster: waiting for its end");
    }
    if let Some(d) = requests::failover_request(ctx) {
        return upkeep(ctx, d);
    }
    if let Some(d) = replica::blocked(ctx) {
        return upkeep(ctx, d);
    }
    let wanted = upstream(ctx);
    // Followed first: who lets me stream may not let me ask.
    if (ctx.local.postgres.following.as_ref() == Some(&wanted) || matches!(ctx.local.rewind, RewindState::Need(_)))
        && let Some((name, member)) = &ctx.remote
        && let Some(d) = rewind::of_running(ctx, name, Some(member))
    {
        return upkeep(ctx, d);
    }
    if ctx.local.postgres.following.as_ref() != Some(&wanted) {
        let d = ctx
            .wait("promoted self to a standby leader because i had the session lock")
            .then(Action::Follow { upstream: wanted, names: ctx.settings.synchronous.at_first() });
        return upkeep(ctx, d);
    }
    let done = matches!(ctx.local.rewind, RewindState::Success(_) | RewindState::NotNeeded(_));
    let text = if failsafe::goes_on(ctx) {
        "continue to run as a standby leader because failsafe mode is enabled and all members are accessible".to_owned()
    } else {
        format!("no action. I am ({}), the standby leader with the lock{}", ctx.local.me, trouble(ctx, probe))
    };
    let d = ctx.wait(text).then_if(done && probe.streaming, || Action::SetRewind(RewindState::Initial));
    upkeep(ctx, d)
}

/// Why nothing comes, in words.
fn trouble(ctx: &Ctx<'_>, probe: &Probe) -> String {
    let Some((name, _)) = ctx.remote.as_ref().filter(|_| !probe.streaming) else { return String::new() };
    match &ctx.local.rewind {
        RewindState::Failed { why, .. } => {
            let me = &ctx.local.me;
            format!(
                "; not streaming from {name}: diverged, and pg_rewind failed ({why}). Another member whose data is good takes over by \
                 `patronictl switchover`, and `patronictl reinit` makes {me} anew; where none has any, empty the data directories: \
                 the other cluster is copied again"
            )
        }
        RewindState::Initial
        | RewindState::Check
        | RewindState::Need(_)
        | RewindState::NotNeeded(_)
        | RewindState::Success(_) => format!("; not streaming from {name}, the log of Postgres says why"),
    }
}

/// What the holder of the lock does beside everything else.
fn upkeep(ctx: &Ctx<'_>, mut d: Decision) -> Decision {
    let cleared = d.actions.iter().any(|a| matches!(a, Action::ClearRequest { .. }));
    d = d.then_all(leader::consumed_request(ctx).filter(|_| !cleared));
    d = leader::repairs(ctx, d).then(Action::SyncSlots);
    let Some(probe) = ctx.local.postgres.probe.as_ref().filter(|_| arrived(ctx)) else { return d };
    if sync::binding(ctx.cluster).is_some() && !ctx.local.sync.writing {
        d = match ctx.local.mode_is_fresh(ctx.now.boot) {
            true => d.then(sync::write(ctx, None, Electorate::default())),
            false => d.then_if(!ctx.local.configuring, || Action::ReadConfig).wake_by(ctx.now.boot + RETRY_PAUSE),
        };
    }
    let other = probe.timeline.0 > 0 && ctx.cluster.timeline() != probe.timeline;
    d.then_if(other && !ctx.local.store_write, || match probe.timeline {
        Timeline(1) => Action::WriteHistory { rows: Vec::new() },
        _ => Action::UpdateHistory,
    })
}

/// The WAL of the other cluster comes, and goes on where mine ends. Until then whatever this cluster has promised of its own
/// stands: the sync key, the oath of a clean shutdown, its history. From then on none of that is worth anything, and the history
/// is that of the WAL that comes.
fn arrived(ctx: &Ctx<'_>) -> bool {
    let pg = &ctx.local.postgres;
    let follows = matches!(pg.following, Some(Upstream::Remote { .. }));
    follows && ctx.local.arrived && pg.probe.as_ref().is_some_and(|p| p.in_recovery && p.streaming)
}

/// A primary with the lock of what is a standby cluster now.
fn demote(ctx: &Ctx<'_>) -> Decision {
    ctx.wait("demoting self: cannot be a real primary in a standby cluster")
        .wake_by(ctx.now.boot + RETRY_PAUSE)
        .then(Action::StopPostgres { mode: StopMode::Fast, why: "this is a standby cluster" })
}

/// Compared with the other cluster before it follows that, and rewound: a server that has diverged from what it is to stream does
/// not start. A remote that does not answer keeps nobody down: as a running standby it is compared again.
fn compared(ctx: &Ctx<'_>, control: &ControlData, standby_signal: bool) -> Option<Decision> {
    let death = ctx.local.postgres.last_death.unwrap_or(ctx.local.started);
    let answers = ctx.local.compare_failed.is_none_or(|at| at < death);
    let (name, member) = ctx.remote.as_ref().filter(|_| answers && !gone(ctx, death))?;
    rewind::of_stopped(ctx, name, Some(member), control, standby_signal)
}

/// A rewind since then has found nobody who writes there.
fn gone(ctx: &Ctx<'_>, death: BootInstant) -> bool {
    let end = ctx.local.task_end.as_ref().filter(|end| end.at > death);
    end.is_some_and(|end| matches!((&end.kind, &end.result), (TaskKind::Rewind { .. }, TaskOutcome::LeaderGone(_))))
}

/// The lock is mine and Postgres does not run.
pub(super) fn start(ctx: &Ctx<'_>, control: &ControlData, standby_signal: bool) -> Decision {
    if let Some(d) = compared(ctx, control, standby_signal) {
        return d;
    }
    ctx.wait("starting as a standby leader because i had the session lock")
        .then(Action::Permit(Permission::None))
        .then(start_as(ctx, upstream(ctx)))
}

/// Nobody leads, and Postgres does not run: it is started where it was, without the slot that whoever leads uses.
pub(super) fn start_without_leader(ctx: &Ctx<'_>, control: &ControlData, standby_signal: bool) -> Option<Decision> {
    let Upstream::Remote { conn_url, .. } = upstream(ctx) else { return None };
    let upstream = Upstream::Remote { conn_url, slot: None };
    is_one(ctx.settings).then_some(())?;
    let text = "trying to follow a remote member because standby cluster is unhealthy";
    compared(ctx, control, standby_signal).or_else(|| Some(ctx.wait(text).then(start_as(ctx, upstream))))
}

fn start_as(ctx: &Ctx<'_>, upstream: Upstream) -> Action {
    Action::StartPostgres { role: StartRole::Standby, upstream, names: ctx.settings.synchronous.at_first() }
}

/// The hand-over of a standby leader: the lock alone, since nothing is written that somebody else would lack.
pub(super) fn hand_over(ctx: &Ctx<'_>, word: &str) -> Decision {
    let free = ctx.local.lease_write.is_none();
    ctx.wait(format!("{word}: releasing the lock of the standby cluster"))
        .wake_by(ctx.now.boot + RETRY_PAUSE)
        .then(Action::Permit(Permission::None))
        .then_if(free, || Action::ReleaseLease { shutdown: None })
}

/// Whom a member compares itself with: the leader; where there is none, or it is myself, the remote of a standby cluster.
pub(super) fn model_of<'a>(ctx: &'a Ctx<'_>) -> Option<(&'a MemberName, Option<&'a Member>)> {
    if let Some(found) = ctx.leader() {
        return Some(found);
    }
    let mine = !matches!(ctx.hold, Hold::No);
    let nobody = !matches!(ctx.verdict, LeaseVerdict::Held(_));
    ctx.remote.as_ref().filter(|_| is_one(ctx.settings) && (mine || nobody)).map(|(name, m)| (name, Some(m)))
}
