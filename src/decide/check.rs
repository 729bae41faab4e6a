//! What no decision may do, whatever led to it (style §9). Tests panic on it, production refuses the action.
//!
//! Stopping, demoting, permission `none` and disarming are never refused.

use super::{Ctx, Hold};
use crate::model::{
    Action, Cluster, DataDir, Decision, LeaseVerdict, Local, Now, Permission, Role, Settings, StartRole, TaskKind,
};

/// Checks every action of a decision.
///
/// # Errors
/// One line per broken invariant: the index of the action and the rule.
pub fn check(
    d: &Decision,
    cluster: &Cluster,
    local: &Local,
    settings: &Settings,
    now: Now,
) -> Result<(), Vec<(usize, String)>> {
    let ctx = Ctx::new(cluster, local, settings, now);
    let broken: Vec<_> = d
        .actions
        .iter()
        .enumerate()
        .filter_map(|(i, action)| broken_rule(&ctx, d, action).map(|rule| (i, rule.to_owned())))
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(broken) }
}

fn broken_rule(ctx: &Ctx<'_>, d: &Decision, action: &Action) -> Option<&'static str> {
    match action {
        Action::Permit(permission) => permit(ctx, permission),
        Action::StartPostgres { role: StartRole::Primary, .. } | Action::Promote => writer(ctx),
        Action::StartPostgres { role: StartRole::Standby, .. } => {
            ctx.local.postgres.alive.then_some("a second postmaster")
        }
        Action::AcquireLease { proven_dead, .. } => acquire(ctx, *proven_dead),
        Action::RenewLease => {
            let mine = !matches!(ctx.hold, Hold::No) || ctx.local.reclaim.is_some();
            if !mine {
                return Some("renewing a lease that is not mine");
            }
            ctx.local.lease_write.is_some().then_some("two lease writes at once")
        }
        Action::ReleaseLease { .. } => release(ctx),
        Action::RemoveDataDir { keep_as_failed, .. } => remove(ctx, *keep_as_failed),
        Action::Begin(kind) => begin(ctx, d, kind),
        Action::ClaimInitialize { .. } => initialize(ctx),
        Action::ReadLease
        | Action::ProveDeath { .. }
        | Action::WriteSystemId { .. }
        | Action::CancelInitialize { .. }
        | Action::WriteConfig { .. }
        | Action::WriteHistory { .. }
        | Action::UpdateHistory
        | Action::ClearRequest { .. }
        | Action::StopPostgres { .. }
        | Action::Follow { .. }
        | Action::Checkpoint
        | Action::AskPeers { .. }
        | Action::CancelTask
        | Action::CheckDivergence { .. }
        | Action::BeginHandover(_)
        | Action::EndHandover
        | Action::AnswerRequest { .. }
        | Action::PlanRestart { .. }
        | Action::RestartDone
        | Action::SyncSlots
        | Action::FeedWatchdog
        | Action::DisarmWatchdog
        | Action::SetRewind(_)
        | Action::SetBootstrapping(_)
        | Action::PublishStatus
        | Action::Exit { .. } => None,
    }
}

fn permit(ctx: &Ctx<'_>, permission: &Permission) -> Option<&'static str> {
    match permission {
        Permission::None => None,
        Permission::Unfenced => (!ctx.local.bootstrapping).then_some("unfenced permission outside a bootstrap"),
        Permission::Writer { stop_at, kill_at } => match &ctx.hold {
            Hold::Leader(own)
                if *stop_at <= own.evidence + ctx.timings.stop && *kill_at <= own.evidence + ctx.timings.kill =>
            {
                None
            }
            Hold::Leader(_) => Some("a permission that outlives the lease"),
            Hold::Lapsed(_) | Hold::No => Some("a writer's permission without an unexpired lease"),
        },
    }
}

fn writer(ctx: &Ctx<'_>) -> Option<&'static str> {
    if ctx.local.bootstrapping && !ctx.local.postgres.alive {
        return None;
    }
    match &ctx.hold {
        Hold::Leader(own) if ctx.renewed_since_death(own) => None,
        Hold::Leader(_) => Some("a writer without a renewal sent after the last death of a postmaster"),
        Hold::Lapsed(_) | Hold::No => Some("a writer without an unexpired lease"),
    }
}

fn acquire(ctx: &Ctx<'_>, proven_dead: bool) -> Option<&'static str> {
    if ctx.local.lease_write.is_some() {
        return Some("two lease writes at once");
    }
    if !ctx.settings.unsupported.is_empty() {
        return Some("leading although the configuration asks for what this version cannot promise");
    }
    if ctx.settings.tags.nofailover && !ctx.local.bootstrapping {
        return Some("nofailover");
    }
    match &ctx.verdict {
        LeaseVerdict::Held(_) if proven_dead && ctx.death_proof().is_some() => None,
        LeaseVerdict::Held(_) => Some("taking a lease that somebody holds"),
        LeaseVerdict::Silence { .. } if !ctx.local.bootstrapping => {
            Some("taking a lease in silence, before a full ttl")
        }
        LeaseVerdict::Silence { .. } | LeaseVerdict::Released | LeaseVerdict::Expired(_) | LeaseVerdict::Vacant => None,
    }
}

fn release(ctx: &Ctx<'_>) -> Option<&'static str> {
    if ctx.local.lease_write.is_some() {
        return Some("two lease writes at once");
    }
    // A stop that has only begun is not enough: backends acknowledge until they are dead.
    ctx.writer().then_some("releasing the lock under a running primary")
}

fn remove(ctx: &Ctx<'_>, keep_as_failed: bool) -> Option<&'static str> {
    if ctx.local.postgres.alive {
        return Some("removing the data directory of a living postmaster");
    }
    if keep_as_failed && ctx.local.bootstrapping || ctx.local.data == DataDir::HalfMade {
        return None;
    }
    verified_leader(ctx)
}

fn begin(ctx: &Ctx<'_>, d: &Decision, kind: &TaskKind) -> Option<&'static str> {
    if ctx.local.task.is_some() {
        return Some("two long tasks at once");
    }
    if ctx.local.postgres.alive && *kind != TaskKind::PostBootstrap {
        return Some("changing the data directory of a living postmaster");
    }
    match kind {
        TaskKind::Bootstrap => initialize(ctx),
        TaskKind::Rewind { .. } => verified_leader(ctx),
        TaskKind::CreateReplica { .. } => {
            let removed = d.actions.iter().any(|a| matches!(a, Action::RemoveDataDir { .. }));
            (ctx.local.data != DataDir::Empty && !removed).then_some("cloning over data")
        }
        TaskKind::PostBootstrap | TaskKind::CrashRecovery => None,
    }
}

fn initialize(ctx: &Ctx<'_>) -> Option<&'static str> {
    if ctx.local.data != DataDir::Empty {
        return Some("initializing over data");
    }
    let data = ctx.cluster.members.iter().any(|(name, m)| *name != ctx.local.me && m.shows_data());
    (data && ctx.cluster.initializer.as_ref().is_none_or(|i| i.uid != ctx.local.uid))
        .then_some("initializing while another member shows data")
}

fn verified_leader(ctx: &Ctx<'_>) -> Option<&'static str> {
    let leader = ctx.leader().and_then(|(_, member)| member);
    let good = leader.is_some_and(|m| m.conn_url.is_some() && m.role == Some(Role::Primary));
    (!good).then_some("rewinding or removing data without a verified leader")
}
