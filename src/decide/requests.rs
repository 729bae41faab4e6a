//! What people ask for: switchover, failover, restart, reinitialize, shutdown (ha-decisions §14, §15, §25; design §2).

use std::time::Duration;

use super::{Ctx, Hold, RETRY_PAUSE, ROUND_MAX_AGE};
use crate::model::{
    Action, BootInstant, DataDir, Decision, FailoverRequest, Handover, InFlight, Lsn, MemberName, PeerAnswer,
    Permission, Request, RestartFilter, Role, StopMode,
};

/// Between two looks at whether a standby has everything (design §2).
const SHIPPED_POLL: Duration = Duration::from_millis(20);
/// How long a stopped leader waits for that (design §2).
const SHIPPED_WAIT: Duration = Duration::from_secs(2);
/// A checkpoint that takes longer than this does not hold up a hand-over; the stop does the rest of it.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(60);

/// SIGTERM of the sidecar alone, in a pod: Postgres, lock and permission stay (design §7).
pub(super) fn leave(ctx: &Ctx<'_>) -> Option<Decision> {
    match ctx.local.request {
        Some(Request::Terminate { leave_postgres: true }) => {
            let message = "leaving; Postgres, lock and permission stay as they are".to_owned();
            Some(ctx.wait(message.clone()).then(Action::Exit { code: 0, message, leave_postgres: true }))
        }
        Some(Request::Terminate { leave_postgres: false } | Request::Restart { .. } | Request::Reinitialize { .. })
        | None => None,
    }
}

/// SIGTERM: an orderly hand-over, then the end (ha-decisions §25).
pub(super) fn shutdown(ctx: &Ctx<'_>) -> Option<Decision> {
    let Some(Request::Terminate { leave_postgres: false }) = ctx.local.request else { return None };
    if ctx.local.handover.is_some() && matches!(ctx.hold, Hold::Leader(_)) {
        return None;
    }
    let pg = &ctx.local.postgres;
    if ctx.local.task.is_some() {
        return Some(ctx.wait("shutting down: cancelling the running action").then(Action::CancelTask));
    }
    if ctx.local.lease_write == Some(InFlight::Release) {
        return Some(ctx.wait("shutting down: releasing the lock").wake_by(ctx.now.boot + RETRY_PAUSE));
    }
    if pg.alive {
        let primary = pg.probe.as_ref().is_some_and(|p| !p.in_recovery);
        if matches!(ctx.hold, Hold::Leader(_)) && primary && pg.stopping.is_none() && !eligible(ctx, None).is_empty() {
            return Some(begin_handover(ctx, None, "shutdown", true));
        }
        return Some(
            ctx.wait("shutting down: stopping Postgres")
                .wake_by(ctx.now.boot + RETRY_PAUSE)
                .then_if(pg.stopping.is_none(), || Action::StopPostgres { mode: StopMode::Fast, why: "shutdown" }),
        );
    }
    if !matches!(ctx.hold, Hold::No) && ctx.local.last_attempt.is_none_or(|at| at + RETRY_PAUSE <= ctx.now.boot) {
        return Some(
            ctx.wait("shutting down: releasing the lock")
                .then(Action::Permit(Permission::None))
                .then_if(ctx.local.lease_write.is_none(), || Action::ReleaseLease { optime: shutdown_position(ctx) }),
        );
    }
    if !matches!(ctx.hold, Hold::No) {
        return Some(ctx.wait("shutting down: the lock could not be released yet").wake_by(ctx.now.boot + RETRY_PAUSE));
    }
    let message = "shut down".to_owned();
    Some(ctx.wait(message.clone()).then(Action::PublishStatus).then(Action::Exit {
        code: 0,
        message,
        leave_postgres: false,
    }))
}

fn begin_handover(ctx: &Ctx<'_>, candidate: Option<MemberName>, why: &'static str, in_any_case: bool) -> Decision {
    let handover = Handover { candidate, why, began: ctx.now.boot, checkpoint_done: false, in_any_case, stopped: None };
    ctx.wait(format!("{why}: demoting myself")).then(Action::BeginHandover(handover)).then(Action::Checkpoint)
}

fn shutdown_position(ctx: &Ctx<'_>) -> Option<Lsn> {
    match &ctx.local.data {
        DataDir::Present { control: Some(control), .. } => control.shutdown_position,
        DataDir::Present { control: None, .. } | DataDir::Empty | DataDir::HalfMade | DataDir::Unusable(_) => None,
    }
}

/// An orderly hand-over: early CHECKPOINT, fast stop, a standby has the shutdown position, release (design §2).
pub(super) fn handover(ctx: &Ctx<'_>) -> Option<Decision> {
    let h = ctx.local.handover.as_ref()?;
    if !matches!(ctx.hold, Hold::Leader(_)) {
        return Some(
            ctx.wait(format!("{}: the lock is no longer mine", h.why)).then(Action::EndHandover).wake_by(ctx.now.boot),
        );
    }
    if ctx.local.lease_write == Some(InFlight::Release) {
        return Some(ctx.wait(format!("{}: releasing the lock", h.why)));
    }
    let pg = &ctx.local.postgres;
    if pg.alive {
        if pg.stopping.is_some() {
            return Some(ctx.wait(format!("{}: stopping Postgres", h.why)).wake_by(ctx.now.boot + RETRY_PAUSE));
        }
        if !h.checkpoint_done && ctx.now.boot < h.began + CHECKPOINT_WAIT {
            return Some(ctx.wait(format!("{}: checkpoint before the stop", h.why)).wake_by(h.began + CHECKPOINT_WAIT));
        }
        return Some(
            ctx.wait(format!("{}: stopping Postgres", h.why))
                .then(Action::StopPostgres { mode: StopMode::Fast, why: h.why }),
        );
    }
    Some(stopped(ctx, h))
}

/// Postgres is down and the lock still mine: to whom does it go?
fn stopped(ctx: &Ctx<'_>, h: &Handover) -> Decision {
    let at = h.stopped.or(ctx.local.postgres.last_death).unwrap_or(h.began);
    let release = |optime: Option<Lsn>, text: String| {
        // A renewal that is still under way ends first: two lease writes at once could land in either order.
        let free = ctx.local.lease_write.is_none();
        ctx.wait(text).then(Action::Permit(Permission::None)).then_if(free, || Action::ReleaseLease { optime })
    };
    let Some(position) = shutdown_position(ctx) else {
        if h.in_any_case {
            return release(None, format!("{}: Postgres did not stop cleanly, releasing the lock", h.why));
        }
        return give_up(ctx, h, "Postgres did not stop cleanly");
    };
    let members = eligible(ctx, h.candidate.as_ref());
    let round = ctx.local.peers.as_ref().filter(|r| r.asked_at >= at);
    if let Some(name) = members.iter().find(|m| {
        round.and_then(|r| r.answers.get(*m)).is_some_and(|a| fit(a).is_some_and(|theirs| theirs >= position))
    }) {
        return release(
            Some(position),
            format!("{}: {name} has everything up to {position}, releasing the lock", h.why),
        );
    }
    if ctx.now.boot >= at + SHIPPED_WAIT || members.is_empty() {
        return if h.in_any_case {
            release(
                Some(position),
                format!("{}: no standby has everything up to {position}; releasing the lock all the same", h.why),
            )
        } else {
            give_up(ctx, h, "no standby received everything in time")
        };
    }
    let rested = round.is_none_or(|r| r.asked_at + SHIPPED_POLL <= ctx.now.boot);
    ctx.wait(format!("{}: waiting until a standby has everything up to {position}", h.why))
        .then_if(ctx.local.asking.is_none() && rested, || Action::AskPeers { members })
        .wake_by(ctx.now.boot + SHIPPED_POLL)
}

/// The hand-over is off: the request goes, and the former primary starts again on its own timeline.
fn give_up(ctx: &Ctx<'_>, h: &Handover, why: &str) -> Decision {
    let clear = ctx
        .cluster
        .request()
        .filter(|_| !ctx.local.store_write)
        .map(|r| Action::ClearRequest { expect: r.version.clone(), why: why.to_owned() });
    ctx.wait(format!("{} given up: {why}; starting the primary again", h.why)).then(Action::EndHandover).then_all(clear)
}

/// The lock holder sees a failover request (ha-decisions §14.1).
pub(super) fn failover_request(ctx: &Ctx<'_>) -> Option<Decision> {
    let request = ctx.cluster.request()?;
    let word = if request.leader.is_some() { "switchover" } else { "manual failover" };
    let clear = |why: String| {
        Some(
            ctx.wait(format!("{word}: {why}"))
                .then_if(!ctx.local.store_write, || Action::ClearRequest { expect: request.version.clone(), why }),
        )
    };
    if let Some(d) = scheduled(ctx, request) {
        return d;
    }
    if request.leader.as_ref().is_some_and(|l| *l != ctx.local.me) {
        return clear("leader name does not match".to_owned());
    }
    if request.candidate.as_ref() == Some(&ctx.local.me) {
        return clear("already the leader".to_owned());
    }
    match fit_candidates(ctx, request.candidate.as_ref()) {
        Fitness::Ask(ask) => Some(ctx.wait(format!("{word}: asking the candidates")).then(ask)),
        Fitness::Waiting => Some(ctx.wait(format!("{word}: waiting for the candidates' answers"))),
        Fitness::Fit => Some(begin_handover(ctx, request.candidate.clone(), word, false)),
        Fitness::Nobody(why) => clear(format!("no healthy members found: {why}")),
    }
}

/// `Some(None)`: a scheduled request is not due, nothing else to do with it; `None`: act on it.
fn scheduled(ctx: &Ctx<'_>, request: &FailoverRequest) -> Option<Option<Decision>> {
    let at = request.scheduled_at?;
    let left = ctx.now.wall.micros_until(at);
    let late = Duration::from_micros(u64::try_from(-left).unwrap_or(0));
    if left > 0 {
        let wait = Duration::from_micros(u64::try_from(left).unwrap_or(0));
        let text = format!(
            "no action. I am ({}), the leader with the lock; awaiting switchover in {} s",
            ctx.local.me,
            wait.as_secs()
        );
        return Some(Some(ctx.wait(text).wake_by(ctx.now.boot + wait)));
    }
    if late > ctx.settings.loop_wait * 3 / 2 {
        let why = format!("found a stale scheduled_at value, {} s late", late.as_secs());
        return Some(Some(
            ctx.wait(why.clone())
                .then_if(!ctx.local.store_write, || Action::ClearRequest { expect: request.version.clone(), why }),
        ));
    }
    None
}

/// Who could take over?
pub(super) enum Fitness {
    /// Ask first.
    Ask(Action),
    /// Asked, not answered yet.
    Waiting,
    /// Somebody.
    Fit,
    /// Nobody; why.
    Nobody(String),
}

/// Members that may become leader at all (ha-decisions §14.2).
fn eligible(ctx: &Ctx<'_>, candidate: Option<&MemberName>) -> Vec<MemberName> {
    ctx.cluster
        .members
        .iter()
        .filter(|(name, m)| {
            **name != ctx.local.me && candidate.is_none_or(|c| c == *name) && m.api_url.is_some() && !m.tags.nofailover
        })
        .map(|(name, _)| name.clone())
        .collect()
}

/// The position of a fit standby.
fn fit(answer: &PeerAnswer) -> Option<Lsn> {
    match answer {
        PeerAnswer::Fit { position, tags, watchdog_failed, .. } if !tags.nofailover && !watchdog_failed => {
            Some(*position)
        }
        PeerAnswer::Fit { .. } | PeerAnswer::Unreachable(_) => None,
    }
}

/// Is failover possible (ha-decisions §14.3)? Needs a round of answers not older than four seconds.
pub(super) fn fit_candidates(ctx: &Ctx<'_>, candidate: Option<&MemberName>) -> Fitness {
    let members = eligible(ctx, candidate);
    if members.is_empty() {
        return Fitness::Nobody("no other member may become leader".to_owned());
    }
    let asked_since = ctx.now.boot - ROUND_MAX_AGE;
    let round = ctx.local.peers.as_ref().filter(|r| r.asked_at >= asked_since && covers(r.answers.keys(), &members));
    let Some(round) = round else {
        return if ctx.local.asking.is_some() { Fitness::Waiting } else { Fitness::Ask(Action::AskPeers { members }) };
    };
    let own = ctx.local.postgres.probe.as_ref().map_or(ctx.cluster.optime(), |p| p.position);
    let timeline = ctx.cluster.timeline();
    let mut why = Vec::new();
    let mut good = Vec::new();
    for name in &members {
        match round.answers.get(name) {
            Some(PeerAnswer::Unreachable(reason)) => why.push(format!("{name} is unreachable ({reason})")),
            Some(PeerAnswer::Fit { timeline: theirs, .. }) if ctx.settings.check_timeline && *theirs < timeline => {
                why.push(format!("{name} is on timeline {theirs}, behind {timeline}"));
            }
            Some(answer) => match fit(answer) {
                Some(position) if own.ahead_of(position) > ctx.settings.maximum_lag_on_failover => {
                    why.push(format!("{name} lags by {} bytes", own.ahead_of(position)));
                }
                Some(_) => good.push(name.clone()),
                None => why.push(format!("{name} must not become leader (nofailover or watchdog)")),
            },
            None => why.push(format!("{name} did not answer")),
        }
    }
    if good.is_empty() { Fitness::Nobody(why.join(", ")) } else { Fitness::Fit }
}

fn covers<'n>(mut answered: impl Iterator<Item = &'n MemberName> + Clone, members: &[MemberName]) -> bool {
    members.iter().all(|m| answered.clone().any(|a| a == m)) || (members.is_empty() && answered.next().is_none())
}

/// Restart and reinitialize (ha-decisions §15).
pub(super) fn of_people(ctx: &Ctx<'_>) -> Option<Decision> {
    match ctx.local.request.as_ref()? {
        Request::Terminate { .. } => None,
        Request::Restart { filter, timeout } => restart(ctx, filter, *timeout),
        Request::Reinitialize { from_leader, .. } => Some(reinitialize(ctx, *from_leader)),
    }
}

fn answer(ctx: &Ctx<'_>, status: u16, text: &str) -> Decision {
    ctx.wait(text).then(Action::AnswerRequest { status, text: text.to_owned() }).wake_by(ctx.now.boot)
}

fn restart(ctx: &Ctx<'_>, filter: &RestartFilter, timeout: Option<Duration>) -> Option<Decision> {
    let pg = &ctx.local.postgres;
    let limit = timeout.unwrap_or(ctx.settings.primary_start_timeout);
    if let Some(plan) = &ctx.local.restart {
        if pg.alive
            && pg.stopping.is_none()
            && pg.probe.as_ref().is_some_and(|p| p.at > plan.began)
            && restarted(ctx, plan.began)
        {
            return Some(
                ctx.wait("restarted successfully")
                    .then(Action::RestartDone)
                    .then(Action::AnswerRequest { status: 200, text: "restarted successfully".to_owned() })
                    .wake_by(ctx.now.boot),
            );
        }
        if pg.failed_starts > 0 {
            return Some(answer(ctx, 503, "restart failed").then(Action::RestartDone));
        }
        if ctx.now.boot > plan.began + plan.timeout.max(RETRY_PAUSE) && pg.alive && pg.stopping.is_none() {
            return Some(answer(ctx, 503, "postgres is still starting").then(Action::RestartDone));
        }
        return None;
    }
    if !pg.alive {
        return Some(answer(ctx, 503, "restart failed: Postgres is not running"));
    }
    if pg.stopping.is_some() {
        return None;
    }
    if !matches(ctx, filter) {
        return Some(answer(ctx, 503, "restart conditions are not satisfied"));
    }
    Some(
        ctx.wait("restarting Postgres")
            .then(Action::PlanRestart { timeout: limit })
            .then(Action::StopPostgres { mode: StopMode::Fast, why: "restart" }),
    )
}

/// Did a postmaster die after the restart was planned? Then the living one is the new one.
fn restarted(ctx: &Ctx<'_>, began: BootInstant) -> bool {
    ctx.local.postgres.last_death.is_some_and(|death| death >= began)
}

fn matches(ctx: &Ctx<'_>, filter: &RestartFilter) -> bool {
    let pg = &ctx.local.postgres;
    let role = filter.role.as_ref().is_none_or(|r| Role::from_word(r) == Some(pg.role));
    let version = filter.below_version.is_none_or(|v| pg.server_version.is_some_and(|mine| mine < v));
    role && version && (!filter.pending_only || pg.pending_restart)
}

fn reinitialize(ctx: &Ctx<'_>, from_leader: bool) -> Decision {
    if !matches!(ctx.hold, Hold::No) {
        return answer(ctx, 503, "I am the leader, can not reinitialize");
    }
    let Some((leader, Some(member))) = ctx.leader() else {
        return answer(ctx, 503, "Cluster has no leader, can not reinitialize");
    };
    let (Some(conn_url), Some(Role::Primary)) = (&member.conn_url, member.role) else {
        return answer(ctx, 503, "Cluster has no leader, can not reinitialize: its leader is not a primary yet");
    };
    if ctx.local.postgres.alive {
        let stop = ctx.local.postgres.stopping != Some(StopMode::Immediate);
        return ctx
            .wait("reinitialize: stopping Postgres")
            .then_if(stop, || Action::StopPostgres { mode: StopMode::Immediate, why: "reinitialize" });
    }
    let source = if from_leader { None } else { clone_source(ctx, leader) };
    let (from, conn_url) = source.unwrap_or((leader.clone(), conn_url.clone()));
    let why = format!("reinitialize: cloning from {from}");
    ctx.wait(why.clone())
        .then(Action::RemoveDataDir { keep_as_failed: false, why })
        .then(Action::SetRewind(crate::model::RewindState::Initial))
        .then(Action::AnswerRequest { status: 200, text: "reinitialize started".to_owned() })
        .then(Action::Begin(crate::model::TaskKind::CreateReplica { from: Some(from), conn_url: Some(conn_url) }))
}

fn clone_source(ctx: &Ctx<'_>, leader: &MemberName) -> Option<(MemberName, String)> {
    ctx.cluster.members.iter().find_map(|(name, m)| {
        let good = name != leader && *name != ctx.local.me && m.tags.clonefrom && m.is_running();
        m.conn_url.as_ref().filter(|_| good).map(|url| (name.clone(), url.clone()))
    })
}
