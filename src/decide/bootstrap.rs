//! An empty data directory: initialize the cluster, or clone a member (ha-decisions §4; design §4 "Bootstrap").

use std::time::Duration;

use super::{Ctx, Hold};
use crate::model::{
    Action, DataDir, Decision, Initialize, LeaseVerdict, MemberName, Permission, Role, StartRole, StopMode, TaskKind,
    Upstream,
};

/// Pause after a failed clone.
const CLONE_PAUSE: Duration = Duration::from_secs(5);

/// Bootstrapping myself, or nothing there yet.
pub(super) fn situation(ctx: &Ctx<'_>) -> Option<Decision> {
    if ctx.local.bootstrapping {
        return Some(initializing(ctx));
    }
    if ctx.local.postgres.alive {
        return None;
    }
    match ctx.local.data {
        DataDir::Empty => Some(empty(ctx, false)),
        DataDir::HalfMade => Some(empty(ctx, true)),
        DataDir::Present { .. } | DataDir::Unusable(_) => None,
    }
}

/// Is the initialization still mine: `initialize` is empty and names my session, or is my own system identifier?
pub(super) fn still_mine(ctx: &Ctx<'_>) -> bool {
    match &ctx.cluster.initialize {
        Initialize::InProgress => {
            ctx.cluster.initializer.as_ref().is_some_and(|i| i.uid == ctx.local.uid && i.session == ctx.local.session)
        }
        Initialize::Value(id) => ctx.local.postgres.probe.as_ref().is_some_and(|p| p.system_id == *id),
        Initialize::Absent => false,
    }
}

/// I won the race on `initialize` (ha-decisions §4.3).
fn initializing(ctx: &Ctx<'_>) -> Decision {
    let pg = &ctx.local.postgres;
    if !still_mine(ctx) {
        return fail(ctx, "the initialize key was changed by somebody else");
    }
    let ended = ctx.local.task_end.as_ref();
    if let Some(end) = ended
        && matches!(end.kind, TaskKind::Bootstrap | TaskKind::PostBootstrap)
        && let Err(why) = &end.result
    {
        return fail(ctx, why);
    }
    let Some(done) = ended.filter(|e| matches!(e.kind, TaskKind::Bootstrap | TaskKind::PostBootstrap)) else {
        return ctx.wait("trying to bootstrap a new cluster").then(Action::Begin(TaskKind::Bootstrap));
    };
    if !pg.alive {
        if pg.failed_starts > 0 || pg.crashed || done.kind == TaskKind::PostBootstrap {
            return fail(ctx, "Postgres did not start, or ended, after its initialization");
        }
        return ctx
            .wait("starting the new cluster")
            .then(Action::Permit(Permission::Unfenced))
            .then(Action::StartPostgres { role: StartRole::Primary, upstream: Upstream::Nobody });
    }
    let Some(probe) = &pg.probe else { return ctx.wait("starting the new cluster") };
    if probe.in_recovery {
        return ctx.wait("waiting for end of recovery after bootstrap").wake_by(ctx.now.boot + super::RETRY_PAUSE);
    }
    if done.kind == TaskKind::Bootstrap {
        return ctx.wait("running post_bootstrap").then(Action::Begin(TaskKind::PostBootstrap));
    }
    publish_new_cluster(ctx, &probe.system_id)
}

/// Configuration, system identifier, lock; each write on the version the one before has left.
fn publish_new_cluster(ctx: &Ctx<'_>, system_id: &str) -> Decision {
    if let Hold::Leader(own) = &ctx.hold {
        return ctx
            .wait("initialized a new cluster")
            .then(Action::Permit(ctx.permission(own)))
            .then(Action::SetBootstrapping(false));
    }
    let d = ctx.wait("initializing a new cluster: writing its configuration, system identifier and lock");
    if ctx.local.store_write || ctx.local.lease_write.is_some() {
        return d;
    }
    let expect = ctx.cluster.config.as_ref().map(|c| c.version.clone());
    if ctx.cluster.config.as_ref().is_none_or(|c| c.document.is_none()) {
        return d.then(Action::WriteConfig { expect });
    }
    if ctx.cluster.initialize == Initialize::InProgress {
        return d.then(Action::WriteSystemId { expect, system_id: system_id.to_owned() });
    }
    match &ctx.verdict {
        // My own write, or one of an earlier life: what became of it shows with the next read.
        LeaseVerdict::Held(me) if *me == ctx.local.me => return d,
        // The new primary runs unfenced: it may not stay beside somebody else's (design §4 "Bootstrap").
        LeaseVerdict::Held(other) => return fail(ctx, &format!("{other} holds the lock")),
        LeaseVerdict::Released | LeaseVerdict::Expired(_) | LeaseVerdict::Silence { .. } | LeaseVerdict::Vacant => {}
    }
    d.then(Action::AcquireLease { stood: ctx.local.lease.record.clone(), proven_dead: false })
}

/// Gives the unfinished initialization up. The data directory is kept aside, never deleted.
fn fail(ctx: &Ctx<'_>, why: &str) -> Decision {
    let message = format!("Failed to bootstrap cluster: {why}");
    if ctx.local.postgres.alive {
        let stop = ctx.local.postgres.stopping != Some(StopMode::Immediate);
        return ctx
            .wait(message)
            .then_if(stop, || Action::StopPostgres { mode: StopMode::Immediate, why: "failed bootstrap" });
    }
    let expect = ctx.cluster.config.as_ref().map(|c| c.version.clone());
    let mine = still_mine(ctx) && ctx.cluster.initialize == Initialize::InProgress;
    ctx.wait(message.clone())
        .then(Action::Permit(Permission::None))
        .then(Action::RemoveDataDir { keep_as_failed: true, why: message.clone() })
        .then_all(expect.filter(|_| mine).map(|expect| Action::CancelInitialize { expect }))
        .then(Action::Exit { code: 1, message, leave_postgres: false })
}

/// No data here. `half_made`: the marker of this very pod's own unfinished work is there.
fn empty(ctx: &Ctx<'_>, half_made: bool) -> Decision {
    if !matches!(ctx.hold, Hold::No) {
        return ctx
            .wait("released leader key voluntarily as data dir empty and currently leader")
            .then(Action::Permit(Permission::None))
            .then_if(ctx.local.lease_write.is_none(), || Action::ReleaseLease { optime: None });
    }
    if ctx.keeper_lost() {
        return ctx.wait("the keeper does not answer: waiting for it before creating a data directory");
    }
    if half_made {
        let why = "clearing the half-made data directory of this pod's own unfinished bootstrap".to_owned();
        return ctx.wait(why.clone()).then(Action::RemoveDataDir { keep_as_failed: false, why });
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
        Initialize::Value(_) => ctx.wait(format!("waiting for leader to bootstrap{}", who_has_data(ctx))),
        Initialize::InProgress => match &ctx.cluster.initializer {
            Some(i) if i.uid == ctx.local.uid && !ctx.local.uid.is_empty() => {
                claim(ctx, "taking up this pod's own unfinished initialization")
            }
            Some(i) => {
                let name = ctx.cluster.members.iter().find(|(_, m)| m.uid == i.uid).map(|(n, _)| n.as_str());
                match name {
                    Some(name) => ctx.wait(format!("waiting for leader to bootstrap ({name} is initializing the cluster)")),
                    None => ctx.wait(format!(
                        "waiting for leader to bootstrap: the pod that began to initialize the cluster (uid {}) is gone; \
                         if it never comes back, remove the annotation `initialize` from the config object",
                        i.uid
                    )),
                }
            }
            None => ctx.wait("waiting for leader to bootstrap (somebody is initializing the cluster)"),
        },
        Initialize::Absent => absent(ctx),
    }
}

fn absent(ctx: &Ctx<'_>) -> Decision {
    let with_data = ctx.cluster.members.iter().find(|(name, m)| **name != ctx.local.me && m.shows_data());
    if let Some((name, _)) = with_data {
        return ctx.wait(format!("store is empty but member {name} has data: waiting for {name}"));
    }
    if !ctx.settings.may_bootstrap || ctx.settings.tags.nofailover {
        return ctx.wait("waiting for leader to bootstrap (no bootstrap section here, or nofailover)");
    }
    if let Some(wish) = ctx.settings.unsupported.first() {
        return ctx.wait(format!("not initializing a cluster: {wish}"));
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

/// ha-decisions §4.1 row 2.
fn clone(ctx: &Ctx<'_>, leader: &MemberName) -> Decision {
    if let Some(end) = &ctx.local.task_end
        && let (TaskKind::CreateReplica { .. }, Err(why)) = (&end.kind, &end.result)
    {
        let again = end.at + ctx.settings.loop_wait.min(CLONE_PAUSE);
        if ctx.now.boot < again {
            return ctx
                .wait(format!("failed to bootstrap from a replica or leader: {why}; trying again soon"))
                .wake_by(again);
        }
    }
    let source = ctx
        .cluster
        .members
        .iter()
        .find(|(name, m)| {
            *name != leader && **name != ctx.local.me && m.tags.clonefrom && m.is_running() && m.conn_url.is_some()
        })
        .or_else(|| {
            ctx.cluster
                .members
                .get_key_value(leader)
                .filter(|(_, m)| m.role == Some(Role::Primary) && m.is_running() && m.conn_url.is_some())
        });
    let Some((name, member)) = source else {
        return ctx.wait(format!("waiting for leader to bootstrap ({leader} is not ready yet)"));
    };
    let kind = if name == leader { "leader" } else { "replica" };
    ctx.wait(format!("trying to bootstrap from {kind} '{name}'"))
        .then(Action::Begin(TaskKind::CreateReplica { from: Some(name.clone()), conn_url: member.conn_url.clone() }))
}
