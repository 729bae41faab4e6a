//! An empty data directory: initialize the cluster, or clone a member.
//!
//! Whoever wins the race on `initialize` makes the new cluster unfenced: no other member has data, and no lease exists. When
//! its scripts have ended the lock has a ttl to come, and the keeper's deadlines count that time as those of a lease: they end
//! also what a stalled sidecar leaves running. Data whose system identifier the store knows is the cluster's, whatever fails
//! afterwards.

use std::time::Duration;

use super::{Ctx, Hold, rewind, standby, sync};
use crate::model::{
    Action, BootInstant, Commits, DataDir, Decision, Electorate, Initialize, Initializer, KeeperLink, LeaseVerdict,
    Member, MemberName, Permission, PostgresView, Probe, StandbyNames, StartRole, Stood, StopMode, StoreLink, TaskKind,
    UnfencedReason, Upstream,
};
use crate::mutant::{self, Mutant};

/// Pause after a failed clone.
const CLONE_PAUSE: Duration = Duration::from_secs(5);

/// Bootstrapping myself, or nothing there yet.
pub(super) fn situation(ctx: &Ctx<'_>) -> Option<Decision> {
    if ctx.local.bootstrapping {
        return Some(initializing(ctx));
    }
    if ctx.local.postgres.alive {
        return goes_on(ctx).then(|| restored(ctx));
    }
    match ctx.local.data {
        DataDir::Empty => Some(empty(ctx, false)),
        DataDir::HalfMade => Some(empty(ctx, true)),
        DataDir::Restored => Some(restored(ctx)),
        DataDir::Present { .. } | DataDir::HalfRewound { .. } | DataDir::Unusable(_) => None,
    }
}

/// A new cluster recovers, or has recovered, that an earlier life of this member has begun: it lives under the permission that
/// was given for that, and its directory says that nothing else has begun, or was not looked at yet.
pub(super) fn goes_on(ctx: &Ctx<'_>) -> bool {
    let unseen = ctx.local.data == DataDir::Empty && ctx.local.data_stale;
    matches!(ctx.hold, Hold::No)
        && ctx.standing() == Permission::Unfenced(UnfencedReason::Bootstrap)
        && (unseen || ctx.local.data == DataDir::Restored)
}

/// What was restored is gone on with while this very pod is the one that initializes the cluster. A recovery of hours does
/// not begin anew because a sidecar did.
fn restored(ctx: &Ctx<'_>) -> Decision {
    if ctx.local.data != DataDir::Restored {
        return ctx.wait("looking at the data directory");
    }
    let announced = ctx.cluster.initializer.as_ref().filter(|_| ctx.cluster.initialize == Initialize::InProgress);
    if announced.is_some_and(|i| i.uid == ctx.local.uid && !i.uid.is_empty()) {
        if ctx.local.maintenance.is_on() {
            return ctx.wait("PAUSE: the recovery of the new cluster goes on by itself");
        }
        return claim(ctx, "going on with the recovery of the new cluster, as this pod has begun it");
    }
    if !ctx.local.postgres.alive {
        return empty(ctx, true);
    }
    ctx.wait("stopping the recovery of the new cluster: its initialization is not mine any more")
        .then(Action::Permit(Permission::None))
        .then_if(ctx.local.postgres.stopping.is_none(), || Action::StopPostgres {
            mode: StopMode::Immediate,
            why: "the initialization is not mine",
        })
}

/// Is the initialization still mine: `initialize` is empty and names my session, or is my own system identifier?
pub(super) fn still_mine(ctx: &Ctx<'_>) -> bool {
    match &ctx.cluster.initialize {
        Initialize::InProgress => {
            ctx.cluster.initializer.as_ref().is_some_and(|i| i.uid == ctx.local.uid && i.session == ctx.local.session)
        }
        Initialize::Value(_) => published(ctx),
        Initialize::Absent => false,
    }
}

/// The store names the system identifier of my data: it is the cluster's, and no failure may move it away.
fn published(ctx: &Ctx<'_>) -> bool {
    ctx.cluster.initialize.system_id().is_some_and(|id| ctx.my_system_id() == Some(id))
}

/// I won the race on `initialize`.
fn initializing(ctx: &Ctx<'_>) -> Decision {
    let pg = &ctx.local.postgres;
    if let Some(failed) = &ctx.local.bootstrap_failed {
        return fail(ctx, &failed.why, failed.at);
    }
    if let Some(d) = initializing_standby(ctx) {
        return d;
    }
    if published(ctx) {
        return publish_new_cluster(ctx);
    }
    if !still_mine(ctx) {
        return give_up(ctx, "the initialize key was changed by somebody else");
    }
    let ended = ctx.local.task_end.as_ref();
    if let Some(end) = ended
        && matches!(end.kind, TaskKind::Bootstrap | TaskKind::PostBootstrap)
        && let Some(why) = end.result.why()
    {
        return give_up(ctx, why);
    }
    let Some(done) = ended.filter(|e| matches!(e.kind, TaskKind::Bootstrap | TaskKind::PostBootstrap)) else {
        return ctx.wait("trying to bootstrap a new cluster").then(Action::Begin(TaskKind::Bootstrap));
    };
    if !pg.alive {
        if pg.failed_starts > 0 || pg.crashed || done.kind == TaskKind::PostBootstrap {
            return give_up(ctx, &ended_early(pg));
        }
        return ctx
            .wait("starting the new cluster")
            .then(Action::Permit(Permission::Unfenced(UnfencedReason::Bootstrap)))
            .then(Action::StartPostgres {
                role: StartRole::Primary,
                upstream: Upstream::Nobody,
                names: StandbyNames::AsConfigured,
            });
    }
    let Some(probe) = &pg.probe else { return ctx.wait("starting the new cluster") };
    if probe.in_recovery {
        return recovering(ctx, probe);
    }
    if done.kind == TaskKind::Bootstrap {
        return ctx.wait("running post_bootstrap").then(Action::Begin(TaskKind::PostBootstrap));
    }
    publish_new_cluster(ctx)
}

fn ended_early(pg: &PostgresView) -> String {
    let how = if pg.ended.is_empty() { String::new() } else { format!(" ({}; its own last lines say why)", pg.ended) };
    format!("Postgres did not start, or ended, after its initialization{how}")
}

/// Recovery after a custom method ends by itself: at its target, or at the end of the WAL where there is none. That may take
/// hours, and has no deadline.
fn recovering(ctx: &Ctx<'_>, probe: &Probe) -> Decision {
    if let Some(why) = &probe.blocked {
        // The next start takes them from pg_control.
        let stops = ctx.local.postgres.stopping.is_none();
        return ctx
            .wait(format!("recovery is paused by PostgreSQL ({why}): starting it again with higher settings"))
            .then_if(stops, || Action::StopPostgres {
                mode: StopMode::Fast,
                why: "its recovery waits for higher settings",
            });
    }
    let again = ctx.now.boot + super::RETRY_PAUSE;
    if probe.replay_paused {
        let at = probe.replayed;
        return ctx
            .wait(format!("recovery is paused at {at}: SELECT pg_wal_replay_resume() ends the pause"))
            .wake_by(again);
    }
    ctx.wait("waiting for end of recovery after bootstrap").wake_by(again)
}

/// A new standby cluster: a copy of the one that it follows, which nobody writes to. `None`: it began as one that writes.
fn initializing_standby(ctx: &Ctx<'_>) -> Option<Decision> {
    let pg = &ctx.local.postgres;
    let ended = ctx.local.task_end.as_ref();
    let copied = ended.filter(|end| matches!(end.kind, TaskKind::CreateReplica { .. }));
    let began = ended.is_some_and(|end| matches!(end.kind, TaskKind::Bootstrap | TaskKind::PostBootstrap));
    if began || copied.is_none() && !standby::is_one(ctx.settings) {
        return None;
    }
    if !published(ctx) && !still_mine(ctx) {
        return Some(give_up(ctx, "the initialize key was changed by somebody else"));
    }
    if let Some(why) = copied.and_then(|end| end.result.why()) {
        return Some(give_up(ctx, why));
    }
    if !pg.alive && copied.is_some() && ctx.local.data != DataDir::Empty {
        if pg.failed_starts > 0 || pg.crashed {
            return Some(give_up(ctx, "Postgres did not start, or ended, after it was copied"));
        }
        let upstream = standby::upstream(ctx);
        let names = StandbyNames::AsConfigured;
        let start = Action::StartPostgres { role: StartRole::Standby, upstream, names };
        return Some(ctx.wait("starting the new standby cluster").then(start));
    }
    if !pg.alive {
        return Some(ctx.wait("trying to bootstrap a new standby leader").then(copy_of_remote(ctx)));
    }
    if pg.probe.is_none() {
        return Some(ctx.wait("starting the new standby cluster"));
    }
    let held = matches!(&ctx.verdict, LeaseVerdict::Held(other) if *other != ctx.local.me);
    if matches!(ctx.hold, Hold::Leader(_)) || held {
        return Some(ctx.wait("initialized a new standby cluster").then(Action::SetBootstrapping(false)));
    }
    let d = ctx.wait("initializing a new standby cluster: writing its configuration, system identifier and lock");
    Some(write_the_next(ctx, d))
}

/// Until when the new primary may wait for its lock, as deadlines for the keeper: they count from the end of its scripts.
fn waits_for_lock(ctx: &Ctx<'_>) -> Option<Permission> {
    let ended = ctx.local.task_end.as_ref()?.at;
    Some(Permission::Writer { stop_at: ended + ctx.timings.stop, kill_at: ended + ctx.timings.kill })
}

/// Deadlines first; then configuration, system identifier, lock; each write on the version the one before has left.
fn publish_new_cluster(ctx: &Ctx<'_>) -> Decision {
    if let (Hold::Leader(_), Some(record)) = (&ctx.hold, sync::binding(ctx.cluster))
        && record.leader.as_ref() != Some(&ctx.local.me)
    {
        // A key that an earlier cluster has left promises nothing of this one.
        let on = ctx.settings.synchronous.mode != Commits::Asynchronous;
        let d = ctx.wait("initialized a new cluster: writing its sync key over the one of an earlier cluster");
        let d = d.wake_by(ctx.now.boot + super::RETRY_PAUSE);
        return d
            .then_if(!ctx.local.sync.writing, || sync::write(ctx, on.then_some(&ctx.local.me), Electorate::default()));
    }
    if let Hold::Leader(own) = &ctx.hold {
        return ctx
            .wait("initialized a new cluster")
            .then(Action::Permit(ctx.permission(own)))
            .then(Action::SetBootstrapping(false));
    }
    let until = ctx.local.task_end.as_ref().map_or(ctx.now.boot, |end| end.at) + ctx.timings.demote;
    let held = matches!(&ctx.verdict, LeaseVerdict::Held(other) if *other != ctx.local.me);
    if held || ctx.now.boot >= until && !mutant::is(Mutant::UnfencedForEver) || !ctx.local.postgres.alive {
        return stop_unfenced(ctx);
    }
    let d =
        ctx.wait("initializing a new cluster: writing its configuration, system identifier and lock").wake_by(until);
    // Nothing is published before the keeper itself says that it has the deadlines: one that hangs would keep the new primary
    // running beside whoever leads next.
    let fenced = matches!(ctx.local.keeper, KeeperLink::Connected { permission: Permission::Writer { .. } });
    if !fenced && !mutant::is(Mutant::UnfencedForEver) {
        return if ctx.keeper_lost() { d } else { d.then_all(waits_for_lock(ctx).map(Action::Permit)) };
    }
    write_the_next(ctx, d)
}

/// Configuration, system identifier, lock.
fn write_the_next(ctx: &Ctx<'_>, d: Decision) -> Decision {
    if ctx.local.store_write || ctx.local.lease_write.is_some() {
        return d;
    }
    let expect = ctx.cluster.config.as_ref().map(|c| c.version.clone());
    if ctx.cluster.config.as_ref().is_none_or(|c| c.document.is_none()) {
        return d.then(Action::WriteConfig { expect });
    }
    if ctx.cluster.initialize == Initialize::InProgress {
        let Some(system_id) = ctx.my_system_id().map(str::to_owned) else { return d };
        return d.then(Action::WriteSystemId { expect, system_id });
    }
    match (&ctx.verdict, ctx.lease_rests_until()) {
        // My own write, or one of an earlier life: what became of it shows with the next read.
        (LeaseVerdict::Held(_), _) => d,
        (_, Some(again)) => d.wake_by(again),
        (
            LeaseVerdict::Released
            | LeaseVerdict::Expired(_)
            | LeaseVerdict::Silence { .. }
            | LeaseVerdict::Vacant
            | LeaseVerdict::Absent,
            None,
        ) => {
            let stood = ctx.local.lease.record.clone().map_or(Stood::Nothing, Stood::Record);
            d.then(Action::AcquireLease { stood, claim: None })
        }
    }
}

/// The lock did not come in time, is somebody else's, or Postgres has ended: no writer without a fence. Data that the store
/// knows goes on as any member's; the rest is a failed bootstrap.
fn stop_unfenced(ctx: &Ctx<'_>) -> Decision {
    let pg = &ctx.local.postgres;
    let why = match &ctx.verdict {
        LeaseVerdict::Held(other) if *other != ctx.local.me => format!("{other} holds the lock"),
        LeaseVerdict::Held(_)
        | LeaseVerdict::Released
        | LeaseVerdict::Expired(_)
        | LeaseVerdict::Silence { .. }
        | LeaseVerdict::Vacant
        | LeaseVerdict::Absent
            if pg.alive =>
        {
            "the store did not give the lock in time".to_owned()
        }
        LeaseVerdict::Held(_)
        | LeaseVerdict::Released
        | LeaseVerdict::Expired(_)
        | LeaseVerdict::Silence { .. }
        | LeaseVerdict::Vacant
        | LeaseVerdict::Absent => "Postgres ended before the lock was there".to_owned(),
    };
    if pg.alive {
        // Beside somebody else's lock at once; else in order, so that what was made starts again without recovery.
        let held = matches!(&ctx.verdict, LeaseVerdict::Held(other) if *other != ctx.local.me);
        let mode = if held { StopMode::Immediate } else { StopMode::Fast };
        return ctx
            .wait(format!("stopping the new cluster: {why}"))
            .then(Action::Permit(Permission::None))
            .then_if(pg.stopping != Some(mode), || Action::StopPostgres { mode, why: "no lock" });
    }
    if !published(ctx) {
        return give_up(ctx, &why);
    }
    ctx.wait(format!("{why}: going on as an ordinary member"))
        .then(Action::Permit(Permission::None))
        .then(Action::SetBootstrapping(false))
}

fn give_up(ctx: &Ctx<'_>, why: &str) -> Decision {
    ctx.wait(failed_text(why)).then(Action::FailBootstrap(why.to_owned())).wake_by(ctx.now.boot)
}

fn failed_text(why: &str) -> String {
    format!("Failed to bootstrap cluster: {why}")
}

/// Gives the unfinished initialization up: Postgres stops, the data directory is kept aside and never deleted, the key is
/// removed, and only when that is known, or waited for long enough, this process ends. Where the system identifier may have
/// been written already, the key comes first: a write that landed unseen shows by the conflict, and the data stays.
fn fail(ctx: &Ctx<'_>, why: &str, at: BootInstant) -> Decision {
    let message = failed_text(why);
    let d = ctx.wait(message.clone()).wake_by(ctx.now.boot + super::RETRY_PAUSE);
    if ctx.local.task.is_some() {
        return d;
    }
    if ctx.local.postgres.alive {
        let stop = ctx.local.postgres.stopping != Some(StopMode::Immediate);
        return d.then_if(stop, || Action::StopPostgres { mode: StopMode::Immediate, why: "failed bootstrap" });
    }
    if published(ctx) {
        return ctx
            .wait(format!("{message}; the store names this data: keeping it"))
            .then(Action::SetBootstrapping(false));
    }
    let ended = |kind: fn(&TaskKind) -> bool| ctx.local.task_end.as_ref().is_some_and(|end| kind(&end.kind));
    let moved = ctx.local.task_end.as_ref().is_some_and(|end| end.result.is_done())
        && ended(|kind| matches!(kind, TaskKind::Remove { .. }));
    let mine = still_mine(ctx) && ctx.cluster.initialize == Initialize::InProgress;
    let open = mine || ctx.local.store_write;
    let id_may_be_written = open && ended(|kind| *kind == TaskKind::PostBootstrap);
    if !moved && !id_may_be_written && ctx.local.data != DataDir::Empty {
        return d.then(Action::Permit(Permission::None)).then(Action::Begin(TaskKind::Remove {
            keep_as_failed: true,
            verify: None,
            why: message,
        }));
    }
    let patience = ctx.settings.retry_timeout * 2;
    if open && ctx.now.boot < at + patience {
        let expect = ctx.cluster.config.as_ref().map(|c| c.version.clone());
        let free = !ctx.local.store_write;
        return d.then_all(expect.filter(|_| free && mine).map(|expect| Action::CancelInitialize { expect }));
    }
    ctx.wait(message.clone()).then(Action::Permit(Permission::None)).then(Action::Exit {
        code: 1,
        message,
        leave_postgres: false,
    })
}

/// No data here. `half_made`: the marker of this very pod's own unfinished work is there.
fn empty(ctx: &Ctx<'_>, half_made: bool) -> Decision {
    if !matches!(ctx.hold, Hold::No) {
        return ctx
            .wait("released leader key voluntarily as data dir empty and currently leader")
            .then(Action::Permit(Permission::None))
            .then_if(ctx.local.lease_write.is_none(), || Action::ReleaseLease { shutdown: None });
    }
    if ctx.keeper_lost() {
        return ctx.wait("the keeper does not answer: waiting for it before creating a data directory");
    }
    if half_made {
        if let Some(d) = rewind::resting(ctx) {
            return d;
        }
        let why = "clearing the half-made data directory of this pod's own unfinished bootstrap".to_owned();
        return ctx.wait(why.clone()).then(Action::Begin(TaskKind::Remove {
            keep_as_failed: false,
            verify: None,
            why,
        }));
    }
    if let Some((leader, _)) = ctx.leader() {
        return clone(ctx, leader);
    }
    if matches!(&ctx.verdict, LeaseVerdict::Held(_)) {
        return ctx.wait(
            "waiting for leader to bootstrap (the last holder of the lock is dead or was an earlier life of this pod)",
        );
    }
    match &ctx.cluster.initialize {
        Initialize::Value(_) if standby::is_one(ctx.settings) && with_data(ctx).is_none() => clone_remote(ctx),
        Initialize::Value(_) => ctx.wait(format!("waiting for leader to bootstrap{}", who_has_data(ctx))),
        Initialize::InProgress => match &ctx.cluster.initializer {
            Some(i) if i.uid == ctx.local.uid && !ctx.local.uid.is_empty() => {
                claim(ctx, "initializing the cluster, as this pod has announced")
            }
            Some(i) => somebody_initializes(ctx, i),
            None => ctx.wait("waiting for leader to bootstrap (somebody is initializing the cluster)"),
        },
        Initialize::Absent => absent(ctx),
    }
}

/// Another pod began to initialize the cluster. One that is gone from the view for a ttl, while nobody shows data, will not
/// finish: its key is removed, and the race begins anew. If it lives all the same, it finds its key gone and gives up.
fn somebody_initializes(ctx: &Ctx<'_>, who: &Initializer) -> Decision {
    if let Some((name, _)) = ctx.cluster.members.iter().find(|(_, m)| m.uid == who.uid) {
        return ctx.wait(format!("waiting for leader to bootstrap ({name} is initializing the cluster)"));
    }
    let word = format!("the pod that began to initialize the cluster (uid {}) is gone", who.uid);
    if let Some((name, _)) = with_data(ctx) {
        return ctx.wait(format!("waiting for leader to bootstrap: {word}, but member {name} has data"));
    }
    let since = ctx.local.initializer_gone.as_ref().filter(|(uid, _)| *uid == who.uid).map(|(_, since)| *since);
    let until = since.unwrap_or(ctx.now.boot) + ctx.settings.ttl;
    if ctx.now.boot < until || ctx.local.store != StoreLink::Following {
        return ctx
            .wait(format!("waiting for leader to bootstrap: {word}; its claim is removed after a ttl"))
            .wake_by(until.max(ctx.now.boot + super::RETRY_PAUSE));
    }
    let expect = ctx.cluster.config.as_ref().map(|c| c.version.clone());
    ctx.wait(format!("{word} for a ttl: removing its claim"))
        .then_all(expect.filter(|_| !ctx.local.store_write).map(|expect| Action::CancelInitialize { expect }))
}

/// Another member that shows data.
fn with_data<'a>(ctx: &'a Ctx<'_>) -> Option<(&'a MemberName, &'a Member)> {
    ctx.cluster.members.iter().find(|(name, m)| **name != ctx.local.me && m.shows_data())
}

fn absent(ctx: &Ctx<'_>) -> Decision {
    if let Some((name, _)) = with_data(ctx).filter(|_| !mutant::is(Mutant::InitdbDespiteData)) {
        return ctx.wait(format!("store is empty but member {name} has data: waiting for {name}"));
    }
    if !ctx.settings.may_bootstrap || ctx.settings.tags.nofailover {
        return ctx.wait("waiting for leader to bootstrap (no bootstrap section here, or nofailover)");
    }
    if let Some(wish) = ctx.settings.unsupported.first() {
        return ctx.wait(format!("not initializing a cluster: {wish}"));
    }
    if let Some(why) = super::watchdog::bars(ctx) {
        return ctx.wait(format!("not initializing a cluster: the watchdog is required and does not work: {why}"));
    }
    claim(ctx, "no cluster here yet: racing to initialize it")
}

fn claim(ctx: &Ctx<'_>, why: &str) -> Decision {
    let expect = ctx.cluster.config.as_ref().map(|c| c.version.clone());
    ctx.wait(why).then_if(!ctx.local.store_write, || Action::ClaimInitialize { expect })
}

fn who_has_data(ctx: &Ctx<'_>) -> String {
    let names: Vec<_> = ctx
        .cluster
        .members
        .iter()
        .filter(|(n, m)| **n != ctx.local.me && m.shows_data())
        .map(|(n, _)| n.as_str())
        .collect();
    if names.is_empty() { "; no other member shows data".to_owned() } else { format!(" (data: {})", names.join(", ")) }
}

/// After a copy that failed: not at once again.
fn rests_after_copy(ctx: &Ctx<'_>) -> Option<Decision> {
    let end = ctx.local.task_end.as_ref().filter(|end| matches!(end.kind, TaskKind::CreateReplica { .. }))?;
    let why = end.result.why()?;
    let again = end.at + ctx.settings.loop_wait.min(CLONE_PAUSE);
    (ctx.now.boot < again).then(|| {
        ctx.wait(format!("failed to bootstrap from a replica or leader: {why}; trying again soon")).wake_by(again)
    })
}

/// No member of the standby cluster has data any more: what it follows has.
fn clone_remote(ctx: &Ctx<'_>) -> Decision {
    rests_after_copy(ctx).unwrap_or_else(|| {
        let text = "nobody leads and no member shows data: copying the cluster that is followed";
        ctx.wait(text).then(copy_of_remote(ctx))
    })
}

fn copy_of_remote(ctx: &Ctx<'_>) -> Action {
    let remote = ctx.remote.as_ref();
    Action::Begin(TaskKind::CreateReplica {
        from: remote.map(|(name, _)| name.clone()),
        conn_url: remote.and_then(|(_, member)| member.conn_url.clone()),
        basebackup_only: false,
    })
}

/// A copy of a replica tagged `clonefrom`, else of the leader; of the leader alone if a person asked for that, or while the
/// sync key names me.
fn clone(ctx: &Ctx<'_>, leader: &MemberName) -> Decision {
    if let Some(d) = rests_after_copy(ctx) {
        return d;
    }
    // The sync key says that I have every commit: a copy of anything but the leader may not.
    let from_leader = ctx.local.reinit.as_ref().is_some_and(|r| r.from_leader) || sync::in_key(ctx);
    let members = &ctx.cluster.members;
    let fits = |(name, m): &(&MemberName, &Member)| {
        *name != leader && **name != ctx.local.me && m.tags.clonefrom && m.is_running() && m.conn_url.is_some()
    };
    // One in my own site first.
    let far = |(_, m): &(&MemberName, &Member)| ctx.settings.site.is_none() || m.site != ctx.settings.site;
    let replica = members.iter().filter(fits).min_by_key(far);
    let primary =
        || members.get_key_value(leader).filter(|(_, m)| rewind::verified(ctx, Some(m)).is_some() && m.is_running());
    let Some((name, member)) = replica.filter(|_| !from_leader).or_else(primary) else {
        return ctx.wait(format!("waiting for leader to bootstrap ({leader} is not ready yet)"));
    };
    let kind = if name == leader { "leader" } else { "replica" };
    ctx.wait(format!("trying to bootstrap from {kind} '{name}'")).then(Action::Begin(TaskKind::CreateReplica {
        from: Some(name.clone()),
        conn_url: member.conn_url.clone(),
        basebackup_only: from_leader,
    }))
}
