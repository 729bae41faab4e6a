//! What people ask for: switchover, failover, restart, reinitialize, shutdown.

use std::time::Duration;

use super::fit::Field;
use super::{Ctx, Hold, RETRY_PAUSE, ROUND_MAX_AGE, failsafe, silence, standby, sync};
use crate::model::{
    Action, BootInstant, DataDir, Decision, FailoverRequest, Handover, InFlight, MemberName, PeerAnswer, Permission,
    Request, RestartFilter, Role, Shutdown, StopMode, TaskKind,
};

/// Between two looks at whether a standby has everything. An answer takes a millisecond.
const SHIPPED_POLL: Duration = Duration::from_millis(20);
/// How long a stopped leader waits for that: what is not shipped by then will not be.
const SHIPPED_WAIT: Duration = Duration::from_secs(2);
/// A checkpoint that takes longer than this does not hold up a hand-over; the stop does the rest of it.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(60);

/// SIGTERM of the sidecar alone, in a pod: Postgres, lock and permission stay.
pub(super) fn leave(ctx: &Ctx<'_>) -> Option<Decision> {
    match ctx.local.request {
        Some(Request::Terminate { leave_postgres: true }) => {
            let unstopped = matches!(silence::judge(ctx.local, ctx.now.boot), silence::Silence::Nothing(_))
                || ctx.local.deadman.in_use.is_some() && !ctx.local.postgres.alive;
            if unstopped && matches!(ctx.hold, Hold::Leader(_)) {
                // The lock would end, and call a second writer. The status line says why it stays.
                return None;
            }
            let message = "leaving; Postgres, lock and permission stay as they are".to_owned();
            Some(ctx.wait(message.clone()).then(Action::Exit { code: 0, message, leave_postgres: true }))
        }
        Some(Request::Terminate { leave_postgres: false } | Request::Restart { .. } | Request::Reinitialize { .. })
        | None => None,
    }
}

/// A synchronous standby that is asked to stop or to restart is let go first.
pub(super) fn quits_sync(ctx: &Ctx<'_>) -> Option<Decision> {
    match &ctx.local.request {
        Some(Request::Terminate { leave_postgres: false }) => sync::leaves(ctx),
        Some(Request::Restart { filter, .. }) if ctx.local.restart.is_none() && matches(ctx, filter) => {
            sync::leaves(ctx)
        }
        Some(Request::Terminate { .. } | Request::Restart { .. } | Request::Reinitialize { .. }) | None => None,
    }
}

/// SIGTERM: an orderly hand-over, then the end.
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
        let how = if ctx.keeper_lost() {
            "shutting down: the keeper does not answer, Postgres cannot be stopped in order; the end of the pod's grace period \
             ends it"
        } else {
            "shutting down: stopping Postgres"
        };
        return Some(
            ctx.wait(how)
                .wake_by(ctx.now.boot + RETRY_PAUSE)
                .then_if(pg.stopping.is_none(), || Action::StopPostgres { mode: StopMode::Fast, why: "shutdown" }),
        );
    }
    if !matches!(ctx.hold, Hold::No) && ctx.local.last_attempt.is_none_or(|at| at + RETRY_PAUSE <= ctx.now.boot) {
        return Some(
            ctx.wait("shutting down: releasing the lock")
                .then(Action::Permit(Permission::None))
                .then_if(ctx.local.lease_write.is_none(), || Action::ReleaseLease { shutdown: oath(ctx) }),
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

/// Where Postgres was shut down cleanly, and who had data then: what a release promises.
pub(super) fn oath(ctx: &Ctx<'_>) -> Option<Shutdown> {
    match &ctx.local.data {
        DataDir::Present { control: Some(control), .. } => {
            let others = ctx.cluster.members.iter().filter(|(_, m)| m.shows_data()).map(|(name, _)| name.clone());
            control.shutdown_position.map(|position| Shutdown {
                position,
                timeline: control.timeline,
                members: others.chain([ctx.local.me.clone()]).collect(),
            })
        }
        DataDir::Present { control: None, .. }
        | DataDir::HalfRewound { .. }
        | DataDir::Empty
        | DataDir::HalfMade
        | DataDir::Restored
        | DataDir::Unusable(_) => None,
    }
}

/// An orderly hand-over: early CHECKPOINT, fast stop, a standby has the shutdown position, release.
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
    let release = |shutdown: Option<Shutdown>, text: String| {
        // A renewal that is still under way ends first: two lease writes at once could land in either order.
        let free = ctx.local.lease_write.is_none();
        ctx.wait(text).then(Action::Permit(Permission::None)).then_if(free, || Action::ReleaseLease { shutdown })
    };
    let Some(shutdown) = oath(ctx) else {
        if h.in_any_case {
            return release(None, format!("{}: Postgres did not stop cleanly, releasing the lock", h.why));
        }
        return give_up(ctx, h, "Postgres did not stop cleanly");
    };
    let position = shutdown.position;
    let members = eligible(ctx, h.candidate.as_ref());
    let round = ctx.local.peers.as_ref().filter(|r| r.asked_at >= at);
    let has_all = |field: &Field<'_>, name: &MemberName| {
        field.fit(name).is_ok_and(|s| s.timeline >= shutdown.timeline && s.position >= position)
    };
    let field = round.map(|r| Field::new(ctx, &r.answers));
    if let Some(name) = members.iter().find(|m| field.as_ref().is_some_and(|f| has_all(f, m))) {
        let text = format!("{}: {name} has everything up to {position}, releasing the lock", h.why);
        return release(Some(shutdown), text);
    }
    if ctx.now.boot >= at + SHIPPED_WAIT || members.is_empty() {
        return if h.in_any_case {
            release(
                Some(shutdown),
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
pub(super) fn give_up(ctx: &Ctx<'_>, h: &Handover, why: &str) -> Decision {
    let clear = ctx
        .cluster
        .request()
        .filter(|_| !ctx.local.store_write)
        .map(|r| Action::ClearRequest { expect: r.version.clone(), why: why.to_owned() });
    ctx.wait(format!("{} given up: {why}; starting the primary again", h.why)).then(Action::EndHandover).then_all(clear)
}

/// The lock holder sees a failover request.
pub(super) fn failover_request(ctx: &Ctx<'_>) -> Option<Decision> {
    let request = ctx.cluster.request().filter(|_| !failsafe::goes_on(ctx))?;
    let word = if request.leader.is_some() { "switchover" } else { "manual failover" };
    let clear = |why: String| {
        Some(
            ctx.wait(format!("{word}: {why}"))
                .then_if(!ctx.local.store_write, || Action::ClearRequest { expect: request.version.clone(), why }),
        )
    };
    if ctx.local.given_up.as_ref() == Some(&request.version) {
        return clear("its hand-over was given up".to_owned());
    }
    if let Some(d) = scheduled(ctx, request) {
        return d;
    }
    if ctx.local.maintenance.is_on() && request.candidate.is_none() {
        return clear("possible only to a specific candidate in a paused state".to_owned());
    }
    if let Some(from) = request.leader.as_ref().filter(|l| **l != ctx.local.me) {
        // Mostly the end of a good hand-over, seen by the one who was handed the lock.
        let elsewhere = request.candidate.as_ref().filter(|c| **c != ctx.local.me);
        return clear(match elsewhere {
            None => format!("ended: I lead in place of {from}"),
            Some(to) => format!("void: I lead, neither {from} nor {to}"),
        });
    }
    if request.candidate.as_ref() == Some(&ctx.local.me) {
        return clear("already the leader".to_owned());
    }
    match fit_candidates(ctx, request.candidate.as_ref()) {
        Fitness::Ask(ask) => Some(ctx.wait(format!("{word}: asking the candidates")).then(ask)),
        Fitness::Waiting => Some(ctx.wait(format!("{word}: waiting for the candidates' answers"))),
        Fitness::Fit if standby::is_one(ctx.settings) && !ctx.writer() => Some(standby::hand_over(ctx, word)),
        Fitness::Fit => Some(begin_handover(ctx, request.candidate.clone(), word, false)),
        Fitness::Nobody(why) => clear(format!("no healthy members found: {why}")),
    }
}

/// Its time has come, or comes within a `loop_wait`: clocks differ, and whoever leads goes by its own.
pub(super) fn is_due(ctx: &Ctx<'_>, request: &FailoverRequest) -> bool {
    let tolerance = i64::try_from(ctx.settings.loop_wait.as_micros()).unwrap_or(i64::MAX);
    request.scheduled_at.is_none_or(|at| ctx.now.wall.micros_until(at) <= tolerance)
}

/// `Some(None)`: a scheduled request is not due, nothing else to do with it; `None`: act on it.
fn scheduled(ctx: &Ctx<'_>, request: &FailoverRequest) -> Option<Option<Decision>> {
    let at = request.scheduled_at?;
    if ctx.local.maintenance.is_on() {
        return Some(None);
    }
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

/// Members that may become leader at all.
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

/// Everybody else who can be asked.
fn everybody(ctx: &Ctx<'_>) -> Vec<MemberName> {
    let others = ctx.cluster.members.iter().filter(|(name, m)| **name != ctx.local.me && m.api_url.is_some());
    others.map(|(name, _)| name.clone()).collect()
}

/// Is failover possible? Needs a round of answers not older than four seconds.
pub(super) fn fit_candidates(ctx: &Ctx<'_>, candidate: Option<&MemberName>) -> Fitness {
    let members = eligible(ctx, candidate);
    if members.is_empty() {
        return Fitness::Nobody("no other member may become leader".to_owned());
    }
    let asked_since = ctx.now.boot - ROUND_MAX_AGE;
    // Whoever is to lead needs the votes of others.
    let votes = candidate.is_none() && sync::binding(ctx.cluster).is_some_and(|r| r.quorum > 0);
    let asked = if votes { everybody(ctx) } else { members.clone() };
    let round = ctx.local.peers.as_ref().filter(|r| r.asked_at >= asked_since && covers(r.answers.keys(), &asked));
    let Some(round) = round else {
        let ask = Action::AskPeers { members: asked };
        return if ctx.local.asking.is_some() { Fitness::Waiting } else { Fitness::Ask(ask) };
    };
    let own = ctx.local.postgres.probe.as_ref().map_or(ctx.cluster.optime(), |p| p.position);
    let field = Field::new(ctx, &round.answers);
    // A candidate has everything of the clean stop that hands over to it, and needs no votes.
    if let (None, Some(why)) = (candidate, sync::no_quorum(ctx, &field)) {
        return Fitness::Nobody(why);
    }
    let mut why = Vec::new();
    for name in &members {
        match (field.fit(name), round.answers.get(name)) {
            (Ok(s), _) if own.ahead_of(s.position) > ctx.settings.maximum_lag_on_failover => {
                why.push(format!("{name} lags by {} bytes", own.ahead_of(s.position)));
            }
            (Ok(_), _) => return Fitness::Fit,
            (Err(Some(reason)), _) => why.push(format!("{name} is {reason}")),
            (Err(None), Some(PeerAnswer::Unreachable(reason))) => why.push(format!("{name} is unreachable ({reason})")),
            (Err(None), Some(PeerAnswer::Down { .. })) => why.push(format!("Postgres of {name} does not run")),
            (Err(None), Some(PeerAnswer::Unfit { why: reason, .. })) => {
                why.push(format!("{name} may not lead ({reason})"));
            }
            (Err(None), Some(PeerAnswer::Fit { .. }) | None) => why.push(format!("{name} did not answer")),
        }
    }
    Fitness::Nobody(why.join(", "))
}

fn covers<'n>(mut answered: impl Iterator<Item = &'n MemberName> + Clone, members: &[MemberName]) -> bool {
    members.iter().all(|m| answered.clone().any(|a| a == m)) || (members.is_empty() && answered.next().is_none())
}

/// Restart and reinitialize.
pub(super) fn of_people(ctx: &Ctx<'_>) -> Option<Decision> {
    match ctx.local.request.as_ref()? {
        Request::Terminate { .. } => None,
        Request::Restart { filter, timeout } => restart(ctx, filter, *timeout),
        Request::Reinitialize { force, from_leader } => Some(begin_reinit(ctx, *force, *from_leader)),
    }
}

pub(super) fn answer(ctx: &Ctx<'_>, status: u16, text: &str) -> Decision {
    ctx.wait(text).then(Action::AnswerRequest { status, text: text.to_owned() }).wake_by(ctx.now.boot)
}

fn restart(ctx: &Ctx<'_>, filter: &RestartFilter, timeout: Option<Duration>) -> Option<Decision> {
    let pg = &ctx.local.postgres;
    let limit = timeout.unwrap_or(ctx.settings.primary_start_timeout);
    if let Some(plan) = &ctx.local.restart {
        if pg.alive
            && pg.stopping.is_none()
            && pg.probe.as_ref().is_some_and(|p| p.at > plan.began)
            && (plan.from_stopped || restarted(ctx, plan.began))
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
    if failsafe::goes_on(ctx) {
        let why = "the store cannot be reached and failsafe mode keeps this primary running: stopped now, it would stay down \
                   until the store is back; restart it then";
        return Some(answer(ctx, 503, why));
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

pub(super) fn matches(ctx: &Ctx<'_>, filter: &RestartFilter) -> bool {
    let pg = &ctx.local.postgres;
    let role = filter.role.as_ref().is_none_or(|r| Role::from_word(r) == Some(pg.role));
    let version = filter.below_version.is_none_or(|v| pg.server_version.is_some_and(|mine| mine < v));
    role && version && (!filter.pending_only || pg.pending_restart)
}

/// The person is answered once, here; the rest is [`reinit`], step by step.
fn begin_reinit(ctx: &Ctx<'_>, force: bool, from_leader: bool) -> Decision {
    if ctx.local.reinit.is_some() {
        return answer(ctx, 503, "reinitialize already in progress");
    }
    if !matches!(ctx.hold, Hold::No) {
        return answer(ctx, 503, "I am the leader, can not reinitialize");
    }
    if let Some(task) = &ctx.local.task
        && (!force || ctx.local.bootstrapping)
    {
        return answer(ctx, 503, &format!("{} already in progress", task.kind.word()));
    }
    let Some((_, Some(member))) = ctx.leader() else {
        return answer(ctx, 503, "Cluster has no leader, can not reinitialize");
    };
    if super::rewind::verified(ctx, Some(member)).is_none() {
        return answer(ctx, 503, "Cluster has no leader, can not reinitialize: its leader is not a primary yet");
    }
    ctx.wait("reinitialize")
        .then(Action::BeginReinit { from_leader })
        .then(Action::AnswerRequest { status: 200, text: "reinitialize started".to_owned() })
        .then_if(ctx.local.task.is_some(), || Action::CancelTask)
        .wake_by(ctx.now.boot)
}

/// A reinitialize under way: the older task ends, Postgres stops, the directory goes (the leader is asked just before),
/// a copy is made. Every step waits for the one before. `None`: nothing to do here; making the copy is the same as for any
/// empty member.
pub(super) fn reinit(ctx: &Ctx<'_>) -> Option<Decision> {
    let reinit = ctx.local.reinit.as_ref()?;
    if let Some(Request::Reinitialize { .. }) = &ctx.local.request {
        return Some(answer(ctx, 503, "reinitialize already in progress"));
    }
    let over = |why: &str| Some(ctx.wait(why).then(Action::EndReinit).wake_by(ctx.now.boot));
    if !matches!(ctx.hold, Hold::No) {
        return over("reinitialize given up: the lock is mine");
    }
    if let Some(task) = &ctx.local.task {
        return (task.since <= reinit.began)
            .then(|| ctx.wait(format!("reinitialize: waiting for the end of {}", task.kind.word())));
    }
    if ctx.local.postgres.alive {
        let stop = ctx.local.postgres.stopping != Some(StopMode::Immediate);
        let copied = copied(ctx, reinit.began);
        return if copied {
            over("reinitialized")
        } else {
            Some(
                ctx.wait("reinitialize: stopping Postgres")
                    .then_if(stop, || Action::StopPostgres { mode: StopMode::Immediate, why: "reinitialize" }),
            )
        };
    }
    match &ctx.local.data {
        DataDir::Empty | DataDir::HalfMade | DataDir::Restored => None,
        DataDir::Present { .. } if copied(ctx, reinit.began) => over("reinitialized"),
        DataDir::Present { .. } | DataDir::HalfRewound { .. } | DataDir::Unusable(_) => Some(clear(ctx)),
    }
}

/// The copy was made since then.
fn copied(ctx: &Ctx<'_>, began: BootInstant) -> bool {
    ctx.local
        .task_end
        .as_ref()
        .is_some_and(|end| matches!(end.kind, TaskKind::CreateReplica { .. }) && end.result.is_done() && end.at > began)
}

/// The directory goes, on behalf of a leader that answers.
fn clear(ctx: &Ctx<'_>) -> Decision {
    if ctx.keeper_lost() {
        return ctx.wait("reinitialize: the keeper does not answer, waiting for it");
    }
    let leader =
        ctx.leader().and_then(|(name, member)| super::rewind::verified(ctx, member).map(|(_, url)| (name, url)));
    let Some((leader, conn_url)) = leader else {
        return ctx.wait("reinitialize: waiting for a leader before anything is removed");
    };
    super::rewind::resting(ctx).unwrap_or_else(|| {
        let why = format!("reinitialize: cloning from {leader} or a replica of it");
        ctx.wait(why.clone()).then(Action::Begin(TaskKind::Remove {
            keep_as_failed: false,
            verify: Some(conn_url.to_owned()),
            why,
        }))
    })
}
