//! Divergence: a former primary may have WAL that its successor never had (ha-decisions §22).
//!
//! A data directory is only rewound or removed against a verified leader: somebody else holds the lock, has published
//! itself as primary, and has an address (S10).

use super::Ctx;
use crate::model::{
    Action, ClusterState, ControlData, DataDir, Decision, Member, MemberName, RewindState, Role, StopMode, TaskKind,
};

/// A leader that may be compared with: primary, with an address.
fn verified(member: Option<&Member>) -> Option<(&Member, &str)> {
    let member = member?;
    let conn_url = member.conn_url.as_deref()?;
    (member.role == Some(Role::Primary)).then_some((member, conn_url))
}

fn usable(ctx: &Ctx<'_>) -> bool {
    ctx.settings.use_pg_rewind && matches!(&ctx.local.data, DataDir::Present { control: Some(c), .. } if c.rewindable)
}

fn may_remove(ctx: &Ctx<'_>) -> bool {
    ctx.settings.remove_on_diverged_timelines
}

/// A running standby.
pub(super) fn of_running(ctx: &Ctx<'_>, leader: &MemberName, member: Option<&Member>) -> Option<Decision> {
    let probe = ctx.local.postgres.probe.as_ref()?;
    match &ctx.local.rewind {
        RewindState::Initial => {
            let theirs = member?.timeline?;
            let differs = theirs.0 != 0 && probe.timeline.0 != 0 && theirs != probe.timeline;
            (differs && !probe.streaming && verified(member).is_some()).then(|| {
                ctx.wait(format!("my timeline is {}, {leader}'s is {theirs}: checking for divergence", probe.timeline))
                    .then(Action::SetRewind(RewindState::Check))
            })
        }
        RewindState::Check if probe.streaming => {
            Some(ctx.wait("streaming: not diverged").then(Action::SetRewind(RewindState::NotNeeded)))
        }
        RewindState::Check => check(ctx, leader, member),
        RewindState::Need if usable(ctx) || may_remove(ctx) => {
            let stop = ctx.local.postgres.stopping.is_none();
            Some(
                ctx.wait(format!("diverged from {leader}: stopping Postgres to repair that"))
                    .then_if(stop, || Action::StopPostgres { mode: StopMode::Fast, why: "diverged" }),
            )
        }
        RewindState::Need | RewindState::NotNeeded | RewindState::Success | RewindState::Failed(_) => None,
    }
}

fn check(ctx: &Ctx<'_>, leader: &MemberName, member: Option<&Member>) -> Option<Decision> {
    let (member, conn_url) = verified(member)?;
    if ctx.local.checking {
        return Some(ctx.wait(format!("checking for divergence from {leader}")));
    }
    Some(ctx.wait(format!("checking for divergence from {leader}")).then(Action::CheckDivergence {
        leader: leader.clone(),
        conn_url: conn_url.to_owned(),
        timeline: member.timeline,
    }))
}

/// A stopped member whose leader is somebody else. `None`: just start it.
pub(super) fn of_stopped(
    ctx: &Ctx<'_>,
    leader: &MemberName,
    member: Option<&Member>,
    control: &ControlData,
    standby_signal: bool,
) -> Option<Decision> {
    match &ctx.local.rewind {
        RewindState::Initial if standby_signal && ctx.local.postgres.failed_starts == 0 => None,
        RewindState::NotNeeded | RewindState::Success => None,
        RewindState::Initial | RewindState::Check => {
            // Only of a former primary: a base backup says "in production" as well, and recovering that alone would give it
            // WAL of its own (ha-decisions §8.1 row 5, backup_label).
            if !standby_signal && let Some(d) = crash_recovery(ctx, control) {
                return Some(d);
            }
            if unclean(control) {
                // Single-user recovery failed or is not wanted; where the WAL ends shows only after recovery. As a
                // running standby it is compared again.
                return None;
            }
            if verified(member).is_none() {
                return Some(
                    ctx.wait(format!("waiting for {leader} to become primary before checking for divergence")),
                );
            }
            check(ctx, leader, member)
        }
        RewindState::Need => need(ctx, leader, member, control),
        RewindState::Failed(why) => failed(ctx, leader, member, why),
    }
}

/// pg_rewind wants a cleanly stopped target, and only then pg_control says where the WAL ends (ha-decisions §8.1 row 5).
fn crash_recovery(ctx: &Ctx<'_>, control: &ControlData) -> Option<Decision> {
    let failed = matches!(&ctx.local.task_end, Some(end) if end.kind == TaskKind::CrashRecovery && end.result.is_err());
    (unclean(control) && !failed && (usable(ctx) || may_remove(ctx)))
        .then(|| ctx.wait("doing crash recovery in a single user mode").then(Action::Begin(TaskKind::CrashRecovery)))
}

/// pg_control does not say where the WAL ends.
fn unclean(control: &ControlData) -> bool {
    match control.state {
        ClusterState::InProduction
        | ClusterState::ShuttingDown
        | ClusterState::InCrashRecovery
        | ClusterState::StartingUp => true,
        ClusterState::ShutDown | ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery => false,
    }
}

fn need(ctx: &Ctx<'_>, leader: &MemberName, member: Option<&Member>, control: &ControlData) -> Option<Decision> {
    let Some((member, conn_url)) = verified(member) else {
        return Some(ctx.wait(format!("diverged; waiting for {leader} to become primary")));
    };
    if usable(ctx) {
        if control.state == ClusterState::InArchiveRecovery {
            let failed =
                matches!(&ctx.local.task_end, Some(e) if e.kind == TaskKind::CrashRecovery && e.result.is_err());
            if !failed {
                return Some(
                    ctx.wait("doing crash recovery in a single user mode before pg_rewind")
                        .then(Action::Begin(TaskKind::CrashRecovery)),
                );
            }
        }
        if member.checkpoint_pending {
            return Some(ctx.wait(format!("waiting for checkpoint on {leader} before rewind")));
        }
        return Some(
            ctx.wait(format!("running pg_rewind from {leader}"))
                .then(Action::Begin(TaskKind::Rewind { from: leader.clone(), conn_url: conn_url.to_owned() })),
        );
    }
    if may_remove(ctx) {
        return Some(remove(ctx, format!("reinitializing due to diverged timelines (leader {leader})")));
    }
    None
}

fn failed(ctx: &Ctx<'_>, leader: &MemberName, member: Option<&Member>, why: &str) -> Option<Decision> {
    let allowed = ctx.settings.remove_on_rewind_failure || may_remove(ctx);
    (allowed && verified(member).is_some()).then(|| {
        remove(ctx, format!("pg_rewind from {leader} failed ({why}); removing the data directory to clone anew"))
    })
}

fn remove(ctx: &Ctx<'_>, why: String) -> Decision {
    ctx.wait(why.clone())
        .then(Action::RemoveDataDir { keep_as_failed: false, why })
        .then(Action::SetRewind(RewindState::Initial))
}
