//! Divergence: a former primary may have WAL that its successor never had.
//!
//! * A verdict holds for the leader and the timeline it was found with; another leader, or another timeline of this one,
//!   is asked again. So is a standby that does not stream although there is a leader: whatever was said, it is not so.
//! * A data directory is only rewound or removed against a verified leader: somebody else holds the lock, has published
//!   itself as primary, and has an address; and the task itself asks it once more, just before it changes anything.
//! * A leader that is gone is no failure of the rewind: it is tried again when there is one. Only pg_rewind that was tried
//!   against a living leader has failed.
//! * What pg_rewind began to change and did not finish is neither this member's data nor the leader's: it is not started,
//!   but rewound again, or cloned anew where that is configured, or named with the command that helps.

use std::time::Duration;

use super::{Ctx, standby};
use crate::model::{
    Action, BootInstant, ClusterState, Compared, ControlData, DataDir, Decision, Member, MemberName, RewindState, Role,
    StopMode, TaskEnd, TaskKind, TaskOutcome,
};
use crate::mutant::{self, Mutant};

/// A standby that does not stream this long although there is a leader is compared again. Long enough for a leader that
/// restarts, short enough that nobody waits for a replica that will never come.
const NOT_STREAMING: Duration = Duration::from_secs(30);

/// Pause after a task that found no leader, or was interrupted.
const TASK_PAUSE: Duration = Duration::from_secs(5);

/// A leader that may be compared with: primary, or what leads a standby cluster, with an address.
pub(super) fn verified<'m>(ctx: &Ctx<'_>, member: Option<&'m Member>) -> Option<(&'m Member, &'m str)> {
    let member = member?;
    let conn_url = member.conn_url.as_deref()?;
    let leads = match member.role {
        Some(Role::Primary) => true,
        Some(Role::StandbyLeader) => standby::is_one(ctx.settings),
        Some(Role::Promoted | Role::Replica | Role::Demoted | Role::Uninitialized) | None => false,
    };
    leads.then_some((member, conn_url))
}

fn usable(ctx: &Ctx<'_>) -> bool {
    ctx.settings.use_pg_rewind && matches!(&ctx.local.data, DataDir::Present { control: Some(c), .. } if c.rewindable)
}

/// Not on behalf of another cluster: whoever leads a standby cluster is what it has of its own.
fn may_remove(ctx: &Ctx<'_>) -> bool {
    ctx.settings.remove_on_diverged_timelines && ctx.leader().is_some()
}

/// Would anything follow from the answer? If not, nobody is asked: a member without pg_rewind and without leave to remove
/// need not even be able to log in at the leader before it starts.
fn repairable(ctx: &Ctx<'_>) -> bool {
    usable(ctx) || may_remove(ctx)
}

/// What was found out, if it is about this leader on the timeline it is on now. What it has published may be older than
/// what it said when it was asked.
fn verdict<'a>(ctx: &'a Ctx<'_>, leader: &MemberName, member: Option<&Member>) -> &'a RewindState {
    let published = member.and_then(|m| m.timeline);
    let outdated = |about: &Compared| {
        about.leader != *leader || published.is_some_and(|t| about.timeline.0 != 0 && t > about.timeline)
    };
    match ctx.local.rewind.about() {
        Some(about) if outdated(about) => &RewindState::Check,
        Some(_) | None => &ctx.local.rewind,
    }
}

/// A running standby. Nothing here keeps it from following: a question is asked beside that.
pub(super) fn of_running(ctx: &Ctx<'_>, leader: &MemberName, member: Option<&Member>) -> Option<Decision> {
    let probe = ctx.local.postgres.probe.as_ref()?;
    if !repairable(ctx) || verified(ctx, member).is_none() {
        return None;
    }
    let state = verdict(ctx, leader, member);
    if probe.streaming {
        return matches!(state, RewindState::Check | RewindState::Need(_))
            .then(|| ctx.wait("streaming: not diverged").then(Action::SetRewind(RewindState::Initial)));
    }
    match state {
        RewindState::Initial => {
            let theirs = member.and_then(|m| m.timeline).unwrap_or_default();
            let differs = theirs.0 != 0 && probe.timeline.0 != 0 && theirs != probe.timeline;
            let check = |text: String| Some(ctx.wait(text).then(Action::SetRewind(RewindState::Check)));
            if differs {
                return check(format!(
                    "my timeline is {}, {leader}'s is {theirs}: checking for divergence",
                    probe.timeline
                ));
            }
            let long = not_streaming(ctx, patience(ctx, member));
            long.then(|| check(format!("not streaming from {leader}: checking for divergence"))).flatten()
        }
        RewindState::Check => check(ctx, leader, member),
        RewindState::Need(_) => {
            let stop = ctx.local.postgres.stopping.is_none();
            Some(
                ctx.wait(format!("diverged from {leader}: stopping Postgres to repair that"))
                    .then_if(stop, || Action::StopPostgres { mode: StopMode::Fast, why: "diverged" }),
            )
        }
        RewindState::NotNeeded(_) | RewindState::Success(_) => not_streaming(ctx, patience(ctx, member)).then(|| {
            ctx.wait(format!("not streaming from {leader}: checking for divergence again"))
                .then(Action::SetRewind(RewindState::Check))
        }),
        // Compared, tried, and nothing more may be done: another leader is asked anew.
        RewindState::Failed { .. } => None,
    }
}

/// A member says when its timeline changes; another cluster does not.
fn patience(ctx: &Ctx<'_>, member: Option<&Member>) -> Duration {
    let says = member.is_some_and(|m| m.timeline.is_some());
    if says { NOT_STREAMING } else { NOT_STREAMING.min(ctx.settings.loop_wait) }
}

/// Long since anything streamed, and since the last answer.
fn not_streaming(ctx: &Ctx<'_>, patience: Duration) -> bool {
    let pg = &ctx.local.postgres;
    let quiet = |at: Option<BootInstant>| at.is_none_or(|at| at + patience <= ctx.now.boot);
    quiet(Some(pg.since)) && quiet(pg.streamed) && quiet(ctx.local.rewind_checked)
}

/// Asks, once at a time. `None`: the question is out.
fn check(ctx: &Ctx<'_>, leader: &MemberName, member: Option<&Member>) -> Option<Decision> {
    let (member, conn_url) = verified(ctx, member)?;
    (!ctx.local.checking).then(|| {
        ctx.wait(format!("checking for divergence from {leader}")).then(Action::CheckDivergence {
            leader: leader.clone(),
            conn_url: conn_url.to_owned(),
            timeline: member.timeline,
        })
    })
}

/// A stopped member whose leader is somebody else. `None`: just start it.
pub(super) fn of_stopped(
    ctx: &Ctx<'_>,
    leader: &MemberName,
    member: Option<&Member>,
    control: &ControlData,
    standby_signal: bool,
) -> Option<Decision> {
    if !repairable(ctx) {
        return None;
    }
    match verdict(ctx, leader, member) {
        RewindState::Initial if standby_signal && ctx.local.postgres.failed_starts == 0 => None,
        RewindState::NotNeeded(_) | RewindState::Success(_) => None,
        RewindState::Initial | RewindState::Check => {
            // Only of a former primary: a base backup says "in production" as well, and recovering that alone, without its
            // backup_label, would give it WAL of its own.
            if !standby_signal && let Some(d) = crash_recovery(ctx, control) {
                return Some(d);
            }
            if unclean(control) {
                // Single-user recovery failed or is not wanted; where the WAL ends shows only after recovery. As a
                // running standby it is compared again.
                return None;
            }
            if verified(ctx, member).is_none() {
                return Some(
                    ctx.wait(format!("waiting for {leader} to become primary before checking for divergence")),
                );
            }
            check(ctx, leader, member).or_else(|| Some(ctx.wait(format!("checking for divergence from {leader}"))))
        }
        RewindState::Need(_) => need(ctx, leader, member, control),
        RewindState::Failed { why, .. } => failed(ctx, leader, member, why),
    }
}

/// The last long task, if it was of this kind.
fn last<'a>(ctx: &'a Ctx<'_>, kind: impl Fn(&TaskKind) -> bool) -> Option<&'a TaskEnd> {
    ctx.local.task_end.as_ref().filter(|end| kind(&end.kind))
}

/// After a rewind or a removal that found no leader or was interrupted: not at once again.
pub(super) fn resting(ctx: &Ctx<'_>) -> Option<Decision> {
    let end = last(ctx, |k| matches!(k, TaskKind::Rewind { .. } | TaskKind::Remove { .. }))?;
    let removal = matches!(end.kind, TaskKind::Remove { .. });
    let why = match &end.result {
        TaskOutcome::Done => return None,
        TaskOutcome::Failed(_) if !removal => return None,
        TaskOutcome::Failed(why) | TaskOutcome::LeaderGone(why) | TaskOutcome::Interrupted(why) => why,
    };
    let again = end.at + ctx.settings.loop_wait.min(TASK_PAUSE);
    (ctx.now.boot < again)
        .then(|| ctx.wait(format!("{} came to nothing: {why}; trying again soon", end.kind.word())).wake_by(again))
}

/// pg_rewind wants a cleanly stopped target, and only then pg_control says where the WAL ends.
fn crash_recovery(ctx: &Ctx<'_>, control: &ControlData) -> Option<Decision> {
    if !unclean(control) || recovery_failed(ctx) {
        return None;
    }
    Some(ctx.wait("doing crash recovery in a single user mode").then(Action::Begin(TaskKind::CrashRecovery)))
}

fn recovery_failed(ctx: &Ctx<'_>) -> bool {
    last(ctx, |k| *k == TaskKind::CrashRecovery).is_some_and(|end| !end.result.is_done())
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
    let Some((member, conn_url)) = verified(ctx, member) else {
        return Some(ctx.wait(format!("diverged; waiting for {leader} to become primary")));
    };
    if let Some(d) = resting(ctx) {
        return Some(d);
    }
    if usable(ctx) {
        if control.state == ClusterState::InArchiveRecovery && !recovery_failed(ctx) {
            return Some(
                ctx.wait("doing crash recovery in a single user mode before pg_rewind")
                    .then(Action::Begin(TaskKind::CrashRecovery)),
            );
        }
        return Some(rewind(ctx, leader, member, conn_url));
    }
    may_remove(ctx)
        .then(|| remove(ctx, conn_url, format!("reinitializing due to diverged timelines (leader {leader})")))
}

fn rewind(ctx: &Ctx<'_>, leader: &MemberName, member: &Member, conn_url: &str) -> Decision {
    if member.checkpoint_pending {
        return ctx.wait(format!("waiting for checkpoint on {leader} before rewind"));
    }
    ctx.wait(format!("running pg_rewind from {leader}")).then(Action::Begin(TaskKind::Rewind {
        from: leader.clone(),
        conn_url: conn_url.to_owned(),
        timeline: member.timeline.unwrap_or_default(),
    }))
}

fn failed(ctx: &Ctx<'_>, leader: &MemberName, member: Option<&Member>, why: &str) -> Option<Decision> {
    if ctx.leader().is_none() || !ctx.settings.remove_on_rewind_failure && !may_remove(ctx) {
        return None;
    }
    let (_, conn_url) = verified(ctx, member)?;
    Some(resting(ctx).unwrap_or_else(|| {
        remove(
            ctx,
            conn_url,
            format!("pg_rewind from {leader} failed ({why}); removing the data directory to clone anew"),
        )
    }))
}

fn remove(ctx: &Ctx<'_>, conn_url: &str, why: String) -> Decision {
    ctx.wait(why.clone()).then(Action::Begin(TaskKind::Remove {
        keep_as_failed: false,
        verify: Some(conn_url.to_owned()).filter(|_| !mutant::is(Mutant::RemovesUnasked)),
        why,
    }))
}

/// pg_rewind did not finish here, and nothing runs.
pub(super) fn of_half_rewound(ctx: &Ctx<'_>) -> Decision {
    let word = "pg_rewind began here and did not finish: not starting this data directory";
    if ctx.keeper_lost() {
        return ctx.wait(format!("{word}; the keeper does not answer: waiting for it"));
    }
    let Some((leader, member)) = standby::model_of(ctx) else {
        return ctx.wait(format!("{word}; waiting for a leader to rewind it against again"));
    };
    let Some((member, conn_url)) = verified(ctx, member) else {
        return ctx.wait(format!("{word}; waiting for {leader} to become primary"));
    };
    if let Some(d) = resting(ctx) {
        return d;
    }
    let why = match verdict(ctx, leader, Some(member)) {
        RewindState::Failed { why, .. } => why,
        RewindState::Initial
        | RewindState::Check
        | RewindState::Need(_)
        | RewindState::NotNeeded(_)
        | RewindState::Success(_)
            if ctx.settings.use_pg_rewind =>
        {
            return rewind(ctx, leader, member, conn_url);
        }
        RewindState::Initial
        | RewindState::Check
        | RewindState::Need(_)
        | RewindState::NotNeeded(_)
        | RewindState::Success(_) => "use_pg_rewind is off",
    };
    if ctx.leader().is_some() && ctx.settings.remove_on_rewind_failure || may_remove(ctx) {
        return remove(ctx, conn_url, format!("{word}, and it can not be rewound ({why}): cloning anew"));
    }
    ctx.wait(format!("{word}, and it can not be rewound ({why}); `patronictl reinit` makes a new copy of {leader}"))
}
