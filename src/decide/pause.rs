//! Maintenance mode: a person looks after Postgres. A situation of its own, written as a list of what is done all the same.
//!
//! | Postgres | what is done |
//! |---|---|
//! | is not running | it is not started, unless this program has stopped it or a person asks for a restart; the lock is given up |
//! | primary with the lock | the lock is renewed, saying that it is in maintenance; a person's switchover to a candidate |
//! | primary without the lock | goes on; takes the lock if it is nobody's |
//! | standby | follows the leader; promoted only if a person names it |
//! | standby with the lock | gives it up, unless its promotion was ordered, or this is a standby cluster |
//!
//! The fence comes off a primary only once the store says, in the record of the lock itself, that its holder is in
//! maintenance: whoever sees that record does not take it for silence, however old it gets. Until then, and whenever a person
//! resumes, a primary has the deadlines that every holder has.

use super::{Ctx, Hold, RETRY_PAUSE, Unlocked, failsafe, leader, race, recover, replica, requests, standby, sync};
use crate::model::{
    Action, BootInstant, DataDir, Decision, Maintenance, Member, MemberName, OwnLease, Permission, Probe, Request,
    StartRoleSeen, StopMode, StoreLink, TaskKind, Timeline,
};
use crate::mutant::{self, Mutant};

/// `None`: maintenance mode is off, or changes nothing of what goes on.
pub(super) fn situation(ctx: &Ctx<'_>) -> Option<Decision> {
    match ctx.local.maintenance {
        Maintenance::Off => None,
        Maintenance::Resuming { since } => resuming(ctx, since),
        Maintenance::On => paused(ctx).map(|mut d| {
            d.reason.0 = format!("PAUSE: {}", d.reason);
            d
        }),
    }
}

fn paused(ctx: &Ctx<'_>) -> Option<Decision> {
    if let Some(d) = recover::reclaim(ctx).filter(|_| ctx.writer()) {
        return Some(d);
    }
    let fenced = ctx.writer() && !unfenced(ctx) && !matches!(ctx.hold, Hold::Leader(_)) && !ctx.keeper_lost();
    if ctx.local.bootstrapping || fenced {
        return None;
    }
    if let Some(d) = quits(ctx) {
        return Some(d);
    }
    if ctx.local.store == StoreLink::NotRead {
        return Some(ctx.wait("waiting for the first complete view of the store"));
    }
    if !ctx.local.postgres.alive && ctx.local.data_stale && ctx.local.task.is_none() {
        return Some(ctx.wait("looking at the data directory"));
    }
    if let Some(d) = handover(ctx).or_else(|| requests::reinit(ctx)).or_else(|| ctx.task_under_way()) {
        return Some(d);
    }
    let d = match (ctx.local.postgres.alive, wish(ctx)) {
        (false, _) => down(ctx),
        (true, Some(d)) => d,
        (true, None) => alive(ctx),
    };
    Some(without_fence(ctx, d))
}

/// A hand-over to a candidate goes on; one to whoever is fit is over, since nobody takes a lock by itself now.
fn handover(ctx: &Ctx<'_>) -> Option<Decision> {
    let h = ctx.local.handover.as_ref()?;
    let goes_on = h.candidate.is_some() || !matches!(ctx.hold, Hold::Leader(_)) || ctx.local.lease_write.is_some();
    match (goes_on || ctx.local.postgres.stopping.is_some(), ctx.local.postgres.alive) {
        (true, _) => requests::handover(ctx),
        (false, true) => Some(ctx.wait("the hand-over is given up").then(Action::EndHandover).wake_by(ctx.now.boot)),
        (false, false) => Some(requests::give_up(ctx, h, "the cluster is paused")),
    }
}

/// The keeper has no deadline for what runs.
fn unfenced(ctx: &Ctx<'_>) -> bool {
    ctx.standing() == Permission::PAUSED && !mutant::is(Mutant::FencesInPause)
}

/// Takes the fence away where it may be: from a standby, and from a primary whose lock says that it is in maintenance.
fn without_fence(ctx: &Ctx<'_>, d: Decision) -> Decision {
    let pg = &ctx.local.postgres;
    let decided =
        |a: &Action| matches!(a, Action::Permit(_) | Action::ReleaseLease { .. } | Action::StopPostgres { .. });
    let announced = matches!(&ctx.hold, Hold::Leader(own) if own.paused) && ctx.local.announced;
    if let Some(name) = patroni_member(ctx).filter(|_| ctx.writer()) {
        let text = format!(
            "the deadlines of a leader stay in maintenance mode: {name} is a member of Patroni, which does not read them off the lock"
        );
        return announce(ctx, d.warn(text));
    }
    let may = pg.alive && pg.stopping.is_none() && (announced || !ctx.writer());
    if !may || unfenced(ctx) || d.actions.iter().any(decided) {
        return announce(ctx, d);
    }
    d.then(Action::Permit(Permission::PAUSED))
}

/// A member of Patroni takes a lock for silence, whatever our mark says.
fn patroni_member<'a>(ctx: &'a Ctx<'_>) -> Option<&'a MemberName> {
    let theirs = |m: &Member| m.version.is_some() && m.implementation.is_none();
    ctx.cluster.members.iter().find(|(name, m)| **name != ctx.local.me && theirs(m)).map(|(name, _)| name)
}

/// The lock does not say yet that its holder is in maintenance: with the next renewal it does.
fn announce(ctx: &Ctx<'_>, d: Decision) -> Decision {
    let Hold::Leader(own) = &ctx.hold else { return d };
    let decided = |a: &Action| {
        matches!(
            a,
            Action::RenewLease | Action::ReleaseLease { .. } | Action::ClaimTimeline(_) | Action::AcquireLease { .. }
        )
    };
    let free = ctx.local.lease_write.is_none() && ctx.rested_since_attempt();
    if own.paused || d.actions.iter().any(decided) {
        return d;
    }
    d.then_if(free, || Action::RenewLease).wake_by(ctx.now.boot + RETRY_PAUSE)
}

/// The whole pod ends: Postgres is stopped in order, and nobody is called to lead.
fn quits(ctx: &Ctx<'_>) -> Option<Decision> {
    let Some(Request::Terminate { leave_postgres: false }) = ctx.local.request else { return None };
    let pg = &ctx.local.postgres;
    if ctx.local.stranger.is_some_and(|s| s.answers) {
        let message = "leaving; the Postgres that was started by hand keeps the lock".to_owned();
        return Some(ctx.wait(message.clone()).then(Action::Exit { code: 0, message, leave_postgres: true }));
    }
    if pg.alive && ctx.local.task.is_none() && !ctx.keeper_lost() {
        return Some(
            ctx.wait("shutting down: stopping Postgres")
                .wake_by(ctx.now.boot + RETRY_PAUSE)
                .then_if(pg.stopping.is_none(), || Action::StopPostgres { mode: StopMode::Fast, why: "shutdown" }),
        );
    }
    requests::shutdown(ctx)
}

/// What a person asks of a Postgres that runs.
fn wish(ctx: &Ctx<'_>) -> Option<Decision> {
    if let (Some(Request::Restart { .. }), None) = (&ctx.local.request, &ctx.local.restart) {
        let parallel = ctx.writer() && matches!(ctx.hold, Hold::No);
        let unheard = ctx.writer() && matches!(ctx.hold, Hold::Lapsed(_));
        if ctx.writer() && standby::is_one(ctx.settings) {
            let text = "restart refused: this is a standby cluster by now, and a restart would make this primary one that follows; set \
                        standby_cluster to null if it is to stay a primary, else resume";
            return Some(requests::answer(ctx, 503, text));
        }
        if parallel {
            return Some(requests::answer(
                ctx,
                503,
                "restart refused: a primary without the lock would come back as a standby",
            ));
        }
        if unheard {
            let text = "restart refused: the Kubernetes API does not answer, and a primary starts only with a lock that was renewed";
            return Some(requests::answer(ctx, 503, text));
        }
    }
    requests::quits_sync(ctx).or_else(|| requests::of_people(ctx))
}

/// Nothing of mine runs.
fn down(ctx: &Ctx<'_>) -> Decision {
    if let Some(Request::Restart { .. }) = ctx.local.request
        && ctx.local.restart.is_none()
        && let Some(d) = start_wish(ctx)
    {
        return d;
    }
    if let Some(Request::Reinitialize { .. }) = ctx.local.request
        && let Some(d) = requests::of_people(ctx)
    {
        return d;
    }
    if is_ours_to_start(ctx) {
        if let Some(d) = requests::of_people(ctx) {
            return d;
        }
        // A copy that was asked for is made like any other; a new cluster is nobody's wish.
        let empty = matches!(ctx.local.data, DataDir::Empty | DataDir::HalfMade | DataDir::Restored);
        if empty && (ctx.leader().is_none() || ctx.local.reinit.is_none()) {
            return ctx.wait("no data directory");
        }
        if empty {
            return super::bootstrap::situation(ctx).unwrap_or_else(|| ctx.wait("no data directory"));
        }
        return recover::data_directory(ctx).unwrap_or_else(|| recover::not_running(ctx));
    }
    let (why, may_go) = match &ctx.local.stranger {
        Some(s) if s.answers => return stranger(ctx, s.writes),
        Some(s) => ("postgres is not running", s.at >= quiet_since(ctx)),
        None => ("postgres is not running", false),
    };
    match &ctx.hold {
        Hold::No => ctx.wait(format!("{why}; `patronictl restart` starts it")),
        Hold::Leader(_) | Hold::Lapsed(_) if ctx.local.deadman.in_use.is_some() || ctx.keeper_lost() => {
            ctx.wait(format!("{why}, and what an earlier keeper has let run may: keeping the lock"))
        }
        Hold::Leader(_) | Hold::Lapsed(_) if !may_go => ctx
            .wait(format!("{why}; whoever stopped it may be about to start it again"))
            .wake_by(quiet_since(ctx).max(ctx.now.boot + RETRY_PAUSE)),
        Hold::Leader(_) | Hold::Lapsed(_) => {
            let free = ctx.local.lease_write.is_none();
            ctx.wait("removed leader lock because postgres is not running")
                .then(Action::Permit(Permission::None))
                .then_if(free, || Action::ReleaseLease { shutdown: requests::oath(ctx) })
        }
    }
}

/// When a restart by hand is over: a loop_wait after the death, or after this process began.
fn quiet_since(ctx: &Ctx<'_>) -> BootInstant {
    ctx.local.postgres.last_death.unwrap_or(ctx.local.started) + ctx.settings.loop_wait
}

/// Somebody has started a Postgres by hand. Nothing stops it but a person, so the lock stays with it, or comes to it.
fn stranger(ctx: &Ctx<'_>, writes: Option<Timeline>) -> Decision {
    let way_out = "before resuming, stop it (pg_ctl stop), then `patronictl restart` starts one that is supervised";
    let d = ctx.wait(format!("a Postgres that was started by hand runs here; {way_out}"));
    match (&ctx.hold, ctx.unlocked()) {
        (Hold::No, Some(unlocked)) if writes.is_some_and(|on| takes(ctx, on)) => take(ctx, d, unlocked),
        (Hold::No | Hold::Leader(_) | Hold::Lapsed(_), _) => d,
    }
}

/// Was it stopped by this program, or does a person want it started?
fn is_ours_to_start(ctx: &Ctx<'_>) -> bool {
    let pg = &ctx.local.postgres;
    let copied = ctx.local.task_end.as_ref().is_some_and(|end| {
        matches!(end.kind, TaskKind::CreateReplica { .. }) && pg.last_death.is_none_or(|death| end.at > death)
    });
    let stopped = pg.last_death.is_some() && !pg.crashed && !ctx.local.found_down;
    let wanted = ctx.local.restart.is_some() || ctx.local.reinit.is_some() || stopped || copied;
    wanted || mutant::is(Mutant::StartsInPause)
}

/// A restart of what does not run is a start.
fn start_wish(ctx: &Ctx<'_>) -> Option<Decision> {
    let Some(Request::Restart { filter, timeout }) = &ctx.local.request else { return None };
    if ctx.local.stranger.is_some_and(|s| s.answers) {
        let text = "restart refused: a Postgres that was started by hand runs here; stop it first (pg_ctl stop)";
        return Some(requests::answer(ctx, 503, text));
    }
    if !requests::matches(ctx, filter) {
        return Some(requests::answer(ctx, 503, "restart conditions are not satisfied"));
    }
    let timeout = timeout.unwrap_or(ctx.settings.primary_start_timeout);
    Some(ctx.wait("starting Postgres, as a person asks").then(Action::PlanRestart { timeout }).wake_by(ctx.now.boot))
}

fn alive(ctx: &Ctx<'_>) -> Decision {
    let pg = &ctx.local.postgres;
    if pg.stopping.is_some() {
        return ctx.wait("waiting for Postgres to stop");
    }
    if let Some(d) = other_cluster(ctx) {
        return d;
    }
    match (&ctx.hold, &pg.probe) {
        (Hold::Leader(own), Some(probe)) if probe.in_recovery => standby_with_lock(ctx, own),
        (Hold::Leader(own), Some(probe)) => with_lock(ctx, own, probe),
        (Hold::Leader(_), None) => ctx.wait("PostgreSQL is still starting up, or refuses my login"),
        (Hold::Lapsed(_), _) => {
            ctx.wait("DCS is not accessible; Postgres is left alone, the lock does not end meanwhile")
        }
        (Hold::No, _) => without_lock(ctx),
    }
}

/// A directory of another cluster gives the lock up when it no longer runs; while it runs, it is said.
fn other_cluster(ctx: &Ctx<'_>) -> Option<Decision> {
    let theirs = ctx.cluster.initialize.system_id().filter(|id| ctx.my_system_id().is_some_and(|mine| mine != *id))?;
    let mine = ctx.my_system_id().unwrap_or_default();
    Some(ctx.wait(format!("system ID mismatch: the store says {theirs}, my data directory {mine}; nothing is changed")))
}

fn with_lock(ctx: &Ctx<'_>, own: &OwnLease, probe: &Probe) -> Decision {
    let d = leader::primary(ctx, probe.timeline);
    let d = if ctx.local.handover.is_none() { sync::keep(ctx, own, d, probe) } else { d };
    match &ctx.local.misnumbered {
        Some(why) => d.warn(format!("demoting myself after the maintenance: {why}")),
        None => d,
    }
}

/// The promotion that this lock was won for goes on; for anything else the lock is of no use here.
fn standby_with_lock(ctx: &Ctx<'_>, own: &OwnLease) -> Decision {
    if let Some(probe) = ctx.local.postgres.probe.as_ref().filter(|_| standby::is_one(ctx.settings)) {
        return standby::lead(ctx, probe);
    }
    let wanted = ctx.local.claim.is_some() && !ctx.backs_off();
    // One that was found running and had been told to promote counts as a primary.
    let told = ctx.local.deadman.ordered || ctx.local.postgres.started_as == Some(StartRoleSeen::Primary);
    if wanted || told || ctx.local.postgres.promoting.is_some() {
        return leader::lead(ctx, own);
    }
    let free = ctx.local.lease_write.is_none();
    ctx.wait("removed leader lock because postgres is not running as primary")
        .then(Action::Permit(Permission::None))
        .then_if(free, || Action::ReleaseLease { shutdown: None })
}

fn without_lock(ctx: &Ctx<'_>) -> Decision {
    if let Some(d) = recover::reclaim(ctx) {
        return d;
    }
    let Some(unlocked) = ctx.unlocked() else {
        return if ctx.writer() { ctx.wait("continue to run as primary without lock") } else { replica::follow(ctx) };
    };
    if !ctx.writer() {
        let me = &ctx.local.me;
        let named = ctx.cluster.request().is_some_and(|r| r.scheduled_at.is_none() && r.candidate.as_ref() == Some(me));
        return if named || mutant::is(Mutant::PromotesInPause) {
            race::race(ctx, &unlocked)
        } else {
            replica::idle(ctx, format!("no leader, and none is made by itself. I am ({me})"))
        };
    }
    if !ctx.local.postgres.probe.as_ref().is_some_and(|p| takes(ctx, p.timeline)) {
        return ctx.wait("continue to run as primary without lock: the cluster has gone on without me");
    }
    take(ctx, ctx.wait("acquiring the lock: it is nobody's, and I run as primary"), unlocked)
}

/// A watch proves nothing: the sync key is read afresh first.
fn take(ctx: &Ctx<'_>, d: Decision, unlocked: Unlocked) -> Decision {
    let d = d.wake_by(ctx.now.boot + RETRY_PAUSE);
    if !ctx.local.sync_read_since(unlocked.emptied) {
        return d.then(Action::ReadSync);
    }
    let free = ctx.local.lease_write.is_none() && ctx.lease_rests_until().is_none();
    d.then_if(free, || Action::AcquireLease { stood: unlocked.stood, claim: None })
}

/// A primary that runs beside nobody's lock may have it: it is on the timeline of the cluster, and no synchronous standby
/// has what it lacks.
fn takes(ctx: &Ctx<'_>, on: Timeline) -> bool {
    let current = on >= ctx.cluster.timeline();
    let named = sync::binding(ctx.cluster).is_none_or(|r| r.vouches_for(&ctx.local.me));
    let named = named || sync::waived(ctx.cluster) == Some(&ctx.local.me);
    let promised = ctx.local.promise.as_ref().is_some_and(|p| ctx.now.boot < p.until) || failsafe::unlisted(ctx);
    current && named && !promised && ctx.settings.unsupported.is_empty() && ctx.local.postgres.stopping.is_none()
}

/// The person has let go: a primary renews its lock, or is none when the time of every holder has passed.
fn resuming(ctx: &Ctx<'_>, since: BootInstant) -> Option<Decision> {
    let (down, holds) = (!ctx.local.postgres.alive && ctx.local.task.is_none(), !matches!(ctx.hold, Hold::No));
    match &ctx.local.stranger {
        Some(s) if s.answers && holds => return Some(stranger(ctx, s.writes)),
        // Somebody may have started one while the keeper ran none.
        None if down && holds && !ctx.keeper_lost() => {
            return Some(
                ctx.wait("looking whether somebody has started Postgres by hand").wake_by(ctx.now.boot + RETRY_PAUSE),
            );
        }
        Some(_) | None => {}
    }
    if ctx.local.bootstrapping || !ctx.writer() || ctx.keeper_lost() {
        return None;
    }
    let own = ctx.local.own.as_ref().filter(|own| own.paused)?;
    let timings = super::timings_for(ctx.settings, own.ttl, ctx.local.watchdog.armed);
    let forgotten = mutant::is(Mutant::ResumesUnrenewed);
    let from = ctx.local.maintenance.runs_from(own);
    let until = if forgotten { ctx.now.boot + ctx.settings.loop_wait } else { from + timings.demote };
    if ctx.now.boot >= until {
        let d = ctx.wait("demoting self because the lock could not be renewed after the maintenance");
        let stop = ctx.local.postgres.stopping.is_none();
        return Some(d.wake_by(ctx.now.boot + RETRY_PAUSE).then_if(stop, || Action::StopPostgres {
            mode: StopMode::Fast,
            why: "the lock was not renewed after the maintenance",
        }));
    }
    let deadlines = ctx.permission(own);
    let fenced = ctx.standing() == deadlines || forgotten;
    let heard = ctx.local.last_attempt.is_none_or(|at| at < since) || ctx.rested_since_attempt();
    Some(
        ctx.wait("maintenance is over: renewing the lock, which says so")
            .wake_by(until)
            .wake_by(ctx.now.boot + RETRY_PAUSE)
            .then_if(!fenced, || Action::Permit(deadlines))
            .then_if(fenced && ctx.local.lease_write.is_none() && heard, || Action::RenewLease),
    )
}

/// A standby after the maintenance may not write.
pub(super) fn fence_again(ctx: &Ctx<'_>, d: Decision) -> Decision {
    let decided = d.actions.iter().any(|a| matches!(a, Action::Permit(_)));
    let over = !ctx.local.maintenance.is_on() && ctx.standing() == Permission::PAUSED;
    let idle = !ctx.writer() && !ctx.local.bootstrapping;
    d.then_if(over && idle && !decided, || Action::Permit(Permission::None))
}
