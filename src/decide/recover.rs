//! Postgres is not running, or its data directory is no good.

use std::time::Duration;

use super::{Ctx, Hold, RETRY_PAUSE, requests, rewind, standby, sync};
use crate::model::{
    Action, ClusterState, ControlData, DataDir, Decision, InFlight, LeaseVerdict, OwnLease, Permission, Request,
    RewindState, StartRole, StopMode, Upstream,
};

/// The longest pause between two attempts to start a standby that does not start.
const START_PAUSE_MAX: Duration = Duration::from_secs(10);

/// So many failed starts in a row do not mend themselves.
const STARTS_BEFORE_HELP: u32 = 3;

/// A data directory that is gone, unreadable, or of another cluster.
pub(super) fn data_directory(ctx: &Ctx<'_>) -> Option<Decision> {
    if ctx.local.data_stale {
        // What was seen of it is over: a mark that was just removed is no vanished directory.
        return None;
    }
    match &ctx.local.data {
        DataDir::Unusable(why) => Some(no_data(ctx, format!("data directory is not accessible: {why}"))),
        DataDir::Empty | DataDir::HalfMade | DataDir::Restored => {
            Some(no_data(ctx, "data directory has vanished under the running Postgres".to_owned()))
        }
        DataDir::Present { control: None, .. } => Some(no_data(
            ctx,
            "data directory is not empty, but has no readable pg_control (system ID is invalid); consider doing \
             reinitialize"
                .to_owned(),
        )),
        DataDir::Present { control: Some(control), .. } => other_cluster(ctx, control),
        DataDir::HalfRewound { control } => {
            control.as_ref().and_then(|control| other_cluster(ctx, control)).or_else(|| Some(half_rewound(ctx)))
        }
    }
}

fn half_rewound(ctx: &Ctx<'_>) -> Decision {
    let reinit = matches!(ctx.local.request, Some(crate::model::Request::Reinitialize { .. }));
    // Rewound again by a standby leader, unless that is hopeless: then somebody else leads.
    let again = standby::is_one(ctx.settings) && !matches!(ctx.local.rewind, RewindState::Failed { .. });
    let leads = !matches!(ctx.hold, Hold::No) && !again;
    if ctx.local.postgres.alive || leads || reinit {
        return no_data(ctx, "pg_rewind began in the data directory and did not finish".to_owned());
    }
    rewind::of_half_rewound(ctx)
}

fn no_data(ctx: &Ctx<'_>, reason: String) -> Decision {
    let holding = !matches!(ctx.hold, Hold::No);
    if let Some(crate::model::Request::Reinitialize { .. }) = &ctx.local.request
        && !holding
        && let Some(d) = requests::of_people(ctx)
    {
        return d;
    }
    if ctx.local.postgres.alive {
        let stop = ctx.local.postgres.stopping != Some(StopMode::Immediate);
        return ctx
            .wait(reason)
            .then_if(stop, || Action::StopPostgres { mode: StopMode::Immediate, why: "no data directory" });
    }
    ctx.wait(if holding { format!("released leader key voluntarily: {reason}") } else { reason })
        .then_if(holding, || Action::Permit(Permission::None))
        .then_if(holding && ctx.local.lease_write.is_none(), || Action::ReleaseLease { shutdown: None })
}

/// Another system identifier is never adopted: refused, and nothing deleted.
fn other_cluster(ctx: &Ctx<'_>, control: &ControlData) -> Option<Decision> {
    let theirs = ctx.cluster.initialize.system_id()?;
    if theirs == control.system_id {
        return None;
    }
    if ctx.local.postgres.alive && matches!(ctx.hold, Hold::Leader(_)) {
        return None;
    }
    let message = format!(
        "system ID mismatch: node {} belongs to a different cluster: the store says {theirs}, its data directory {}; \
         nothing was changed. Give it an empty data directory, or the right one",
        ctx.local.me, control.system_id
    );
    Some(ctx.wait(message.clone()).then(Action::Exit { code: 1, message, leave_postgres: false }))
}

/// There is data, and no postmaster.
pub(super) fn not_running(ctx: &Ctx<'_>) -> Decision {
    if ctx.keeper_lost() {
        return ctx
            .wait("Postgres is not running and the keeper does not answer (fence: lost): waiting for the keeper");
    }
    if ctx.local.lease_write == Some(InFlight::Release) {
        return ctx.wait("releasing the lock");
    }
    let DataDir::Present { control: Some(control), standby_signal } = &ctx.local.data else {
        return ctx.wait("no usable data directory");
    };
    match &ctx.hold {
        Hold::Leader(own) => with_lock(ctx, own, control, *standby_signal),
        Hold::Lapsed(_) => {
            ctx.wait("Postgres is stopped; the lease could not be confirmed in time, trying to renew it")
        }
        Hold::No => without_lock(ctx, control, *standby_signal),
    }
}

/// The lock is mine and Postgres is down: start it as what it was, or give the lock to somebody who can.
///
/// What this version does not support but finds in the configuration is no reason to give the lock up: nobody else would
/// take it. The incumbent goes on, also through a restart of its Postgres.
fn with_lock(ctx: &Ctx<'_>, own: &OwnLease, control: &ControlData, standby_signal: bool) -> Decision {
    let pg = &ctx.local.postgres;
    let release = |reason: String| {
        ctx.wait(reason)
            .then(Action::Permit(Permission::None))
            .then_if(ctx.local.lease_write.is_none(), || Action::ReleaseLease { shutdown: requests::oath(ctx) })
    };
    if ctx.backs_off() {
        return release("releasing the lock: the promotion failed, and Postgres has ended".to_owned());
    }
    if standby::is_one(ctx.settings) && pg.failed_starts == 0 {
        return standby::start(ctx, control, standby_signal);
    }
    if pg.failed_starts > 0 {
        return release("removed leader key after trying and failing to start postgres".to_owned());
    }
    if pg.crashed && ctx.settings.primary_start_timeout.is_zero() {
        match requests::fit_candidates(ctx, None) {
            requests::Fitness::Ask(ask) => return ctx.wait("crashed: looking for a member to take over").then(ask),
            requests::Fitness::Waiting => return ctx.wait("crashed: waiting for the answers of the other members"),
            requests::Fitness::Fit => return release("stopped PostgreSQL to fail over after a crash".to_owned()),
            requests::Fitness::Nobody(_) => {}
        }
    }
    start_as_it_was(ctx, own, control, standby_signal)
}

/// Something that my keeper did not start holds the data directory, and the lock is mine: what an earlier keeper of mine let
/// run writes under it, for as long as it lives. So the lock is neither given away nor left to end; Postgres is started again
/// and again, until the directory is free.
pub(super) fn in_use(ctx: &Ctx<'_>) -> Option<Decision> {
    let why = ctx.local.deadman.in_use.as_ref().filter(|_| !ctx.local.postgres.alive)?;
    if matches!(ctx.hold, Hold::No) || ctx.keeper_lost() {
        return None;
    }
    let told = matches!(ctx.local.request, Some(Request::Terminate { .. }));
    let stays = if told { "; told to end, staying" } else { "" };
    let reason = format!(
        "waiting for the data directory: {why}. What holds it may write, so the lock stays here{stays}. End that Postgres with \
         all its children (kill -QUIT), or the other pod that uses this volume"
    );
    let start = match (&ctx.hold, &ctx.local.data) {
        (Hold::Leader(own), DataDir::Present { control: Some(control), standby_signal }) => {
            start_as_it_was(ctx, own, control, *standby_signal)
        }
        (Hold::Leader(_) | Hold::Lapsed(_) | Hold::No, _) => ctx.wait(""),
    };
    Some(ctx.wait(reason).then_all(start.actions).wake_by(ctx.now.boot + RETRY_PAUSE))
}

/// The lock is mine: a primary that was one, else a standby that is to be promoted.
fn start_as_it_was(ctx: &Ctx<'_>, own: &OwnLease, control: &ControlData, standby_signal: bool) -> Decision {
    let as_primary = !standby_signal
        && !standby::is_one(ctx.settings)
        && control.timeline >= ctx.cluster.timeline()
        && matches!(
            control.state,
            ClusterState::InProduction
                | ClusterState::InCrashRecovery
                | ClusterState::ShuttingDown
                | ClusterState::ShutDown
                | ClusterState::StartingUp
        );
    if !as_primary {
        return ctx
            .wait("starting as readonly because i had the session lock")
            .then(start_standby(ctx, Upstream::Nobody));
    }
    if !ctx.renewed_since_death(own) {
        let renew = ctx.local.lease_write.is_none();
        return ctx
            .wait("renewing the lock before starting the primary: its old holder must not have been usurped meanwhile")
            .then_if(renew, || Action::RenewLease);
    }
    let names = match sync::before_writing(ctx, own, false) {
        Ok(names) => names,
        Err(d) => return d,
    };
    let reason = if ctx.local.postgres.crashed { "starting primary after failure" } else { "starting primary" };
    ctx.wait(reason).then(Action::Permit(ctx.permission(own))).then(Action::StartPostgres {
        role: StartRole::Primary,
        upstream: Upstream::Nobody,
        names,
    })
}

fn start_standby(ctx: &Ctx<'_>, upstream: Upstream) -> Action {
    Action::StartPostgres { role: StartRole::Standby, upstream, names: ctx.settings.synchronous.at_first() }
}

/// The store lost `initialize`: a stopped member restores it once the throne is provably empty. It stays stopped until then, because a running replica may not.
fn restore_initialize(ctx: &Ctx<'_>, control: &ControlData) -> Decision {
    if ctx.unlocked().is_none() {
        return ctx
            .wait("the initialize key is missing: restoring it from my stopped data directory after a ttl of silence");
    }
    ctx.wait("restoring the lost initialize key from my stopped data directory").then_if(!ctx.local.store_write, || {
        Action::WriteSystemId {
            expect: ctx.cluster.config.as_ref().map(|c| c.version.clone()),
            system_id: control.system_id.clone(),
        }
    })
}

/// Trying on changes nothing by itself: what a person can do.
fn hopeless(ctx: &Ctx<'_>) -> String {
    format!(
        "Postgres does not start here: its own last lines in this log say why. If its data is at fault, \
         `patronictl reinit CLUSTER {}` makes it anew from the leader",
        ctx.local.me
    )
}

/// The lock names this very pod, and its time is over by my own clock: it is renewed before it is used.
pub(super) fn reclaim(ctx: &Ctx<'_>) -> Option<Decision> {
    let record = ctx.local.reclaim.as_ref()?;
    if ctx.keeper_lost() || ctx.backs_off() || ctx.local.misnumbered.is_some() {
        // A lock that nobody can use is not prolonged.
        return None;
    }
    let stands = ctx.cluster.leader.as_ref().is_some_and(|l| l.lease == *record);
    if !stands || !matches!(&ctx.verdict, LeaseVerdict::Held(who) if *who == ctx.local.me) {
        return None;
    }
    let d = ctx.wait("the lock is this pod's own: renewing it before it is used").wake_by(ctx.now.boot + RETRY_PAUSE);
    Some(d.then_if(ctx.local.lease_write.is_none() && ctx.rested_since_attempt(), || Action::RenewLease))
}

/// Compared with the leader, if there is one, then started as a standby.
fn without_lock(ctx: &Ctx<'_>, control: &ControlData, standby_signal: bool) -> Decision {
    let pg = &ctx.local.postgres;
    if let Some(d) = reclaim(ctx) {
        return d;
    }
    if pg.failed_starts > 0 {
        let pause = START_PAUSE_MAX.min(RETRY_PAUSE * 2u32.saturating_pow(pg.failed_starts.min(6)));
        let again = pg.since + pause;
        if ctx.now.boot < again {
            let d = ctx.wait("failed to start postgres; trying again soon").wake_by(again);
            let helpless = pg.failed_starts >= STARTS_BEFORE_HELP && ctx.leader().is_some();
            return if helpless { d.warn(hopeless(ctx)) } else { d };
        }
    }
    if let Some((leader, member)) = ctx.leader() {
        if let Some(d) = rewind::of_stopped(ctx, leader, member, control, standby_signal) {
            return d;
        }
        let upstream = ctx.upstream();
        return ctx.wait("starting as a secondary").then(start_standby(ctx, upstream));
    }
    if ctx.local.stepped_down.is_some_and(|at| ctx.now.boot < at + ctx.settings.ttl) {
        let until = ctx.local.stepped_down.unwrap_or(ctx.now.boot) + ctx.settings.ttl;
        return ctx.wait("gave the lock away: waiting for the new leader").wake_by(until);
    }
    if ctx.cluster.initialize == crate::model::Initialize::Absent {
        return restore_initialize(ctx, control);
    }
    standby::start_without_leader(ctx, control, standby_signal).unwrap_or_else(|| {
        ctx.wait("starting as a secondary; there is no leader to follow yet").then(start_standby(ctx, Upstream::Nobody))
    })
}
