//! The race for an empty throne (ha-decisions §9). Every member runs it by itself; several may win, the conditional
//! write decides.

use super::{ASK_BEFORE_EXPIRY, Ctx, ROUND_MAX_AGE, Unlocked, replica};
use crate::model::{
    Action, BootInstant, Decision, FailoverRequest, MemberName, PeerAnswer, PeerRole, PeerRound, Probe,
};

/// What the race came to.
enum Outcome {
    /// Take the lease.
    Win,
    /// Somebody else should; why.
    Yield(String),
    /// First ask.
    Ask(Vec<MemberName>),
    /// Answers are on their way.
    Waiting,
}

/// Postgres is alive, the lock is nobody's.
pub(super) fn race(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Decision {
    let grounds = grounds(ctx, unlocked);
    match outcome(ctx, unlocked) {
        Outcome::Win if ctx.local.lease_write.is_some() => ctx.wait(format!("taking the lock ({grounds})")),
        Outcome::Win => ctx
            .wait(format!("taking the lock ({grounds})"))
            .then(Action::AcquireLease { stood: unlocked.stood.clone(), proven_dead: unlocked.proven_dead }),
        Outcome::Ask(members) => ctx
            .wait(format!("the lock is free ({grounds}): asking the other members"))
            .then(Action::AskPeers { members }),
        Outcome::Waiting => ctx.wait(format!("the lock is free ({grounds}): waiting for the other members' answers")),
        Outcome::Yield(why) => replica::idle(ctx, format!("following a different leader because {why}"))
            .wake_by(ctx.now.boot + ctx.settings.loop_wait.min(std::time::Duration::from_secs(2))),
    }
}

fn grounds(ctx: &Ctx<'_>, unlocked: &Unlocked) -> String {
    match (&unlocked.gone, unlocked.proven_dead) {
        (Some(who), true) => {
            let how = ctx.local.death_proof.as_ref().map_or("", |p| p.how.as_str());
            format!("{who} is dead: {how}")
        }
        (Some(who), false) => format!("{who} was silent for its ttl"),
        (None, _) if unlocked.stood.is_some() => "released".to_owned(),
        (None, _) => "no leader object".to_owned(),
    }
}

fn outcome(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Outcome {
    let settings = ctx.settings;
    let yields = |why: &str| Outcome::Yield(why.to_owned());
    if let Some(wish) = settings.unsupported.first() {
        return Outcome::Yield(format!("I must not lead: {wish}"));
    }
    if ctx.local.backoff_until.is_some_and(|t| ctx.now.boot < t) {
        return yields("pre_promote failed here; backoff: skip leader race for a ttl");
    }
    if ctx.local.promised_until.is_some_and(|t| ctx.now.boot < t) {
        return yields("I promised another leader not to (failsafe)");
    }
    if ctx.keeper_lost() {
        return yields("my keeper does not answer");
    }
    let Some(probe) = &ctx.local.postgres.probe else { return yields("PostgreSQL is still starting up") };
    if settings.tags.nofailover {
        return yields("I am not allowed to promote");
    }
    if ctx.cluster.initialize.system_id().is_none() {
        return yields(
            "the initialize key is missing and a running replica may not restore it; start the former primary, or a \
             stopped member",
        );
    }
    if let Some(request) = ctx.cluster.request().filter(|r| r.scheduled_at.is_none()) {
        return with_request(ctx, unlocked, request, probe);
    }
    if ctx.local.stepped_down.is_some_and(|at| ctx.now.boot < at + settings.ttl) {
        return yields("I have just given the lock away");
    }
    let others = contenders(ctx, unlocked);
    contest(ctx, unlocked, others, probe, &Rules { check_lag: true })
}

/// A request is there while there is no leader (ha-decisions §9.3).
fn with_request(ctx: &Ctx<'_>, unlocked: &Unlocked, request: &FailoverRequest, probe: &Probe) -> Outcome {
    let me = &ctx.local.me;
    if request.candidate.as_ref() == Some(me) {
        return Outcome::Win;
    }
    let stepped_down = request.leader.as_ref() == Some(me);
    if let Some(candidate) = &request.candidate
        && ctx.cluster.members.contains_key(candidate)
    {
        let round = match fresh_round(ctx, unlocked, std::slice::from_ref(candidate)) {
            Ok(round) => round,
            Err(outcome) => return outcome,
        };
        if let Some(PeerAnswer::Fit { tags, watchdog_failed, .. }) = round.answers.get(candidate)
            && !tags.nofailover
            && !watchdog_failed
        {
            return Outcome::Yield(format!("{candidate} is to become the leader"));
        }
    }
    if stepped_down && ctx.local.stepped_down.is_some_and(|at| ctx.now.boot < at + ctx.settings.ttl) {
        return Outcome::Yield("I have just given the lock away".to_owned());
    }
    let others: Vec<_> = contenders(ctx, unlocked).into_iter().filter(|m| Some(m) != request.leader.as_ref()).collect();
    contest(ctx, unlocked, others, probe, &Rules { check_lag: false })
}

struct Rules {
    check_lag: bool,
}

/// Whom to ask: everybody else with an address who may lead.
fn contenders(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Vec<MemberName> {
    ctx.cluster
        .members
        .iter()
        .filter(|(name, m)| {
            **name != ctx.local.me
                && m.api_url.is_some()
                && !m.tags.nofailover
                && !(unlocked.proven_dead && unlocked.gone.as_ref() == Some(*name))
        })
        .map(|(name, _)| name.clone())
        .collect()
}

/// The answers, if they are young enough to vote with: a stale position is a wrong vote.
fn fresh_round<'r>(ctx: &Ctx<'r>, unlocked: &Unlocked, members: &[MemberName]) -> Result<&'r PeerRound, Outcome> {
    if let Some(round) = &ctx.local.peers
        && covers(round, unlocked.positions_final, ctx.now.boot)
        && members.iter().all(|m| round.answers.contains_key(m))
    {
        return Ok(round);
    }
    Err(if ctx.local.asking.is_some() { Outcome::Waiting } else { Outcome::Ask(members.to_vec()) })
}

fn covers(round: &PeerRound, positions_final: BootInstant, now: BootInstant) -> bool {
    round.asked_at >= positions_final && now.since(round.asked_at) <= ROUND_MAX_AGE
}

/// ha-decisions §9.4.
fn contest(ctx: &Ctx<'_>, unlocked: &Unlocked, others: Vec<MemberName>, probe: &Probe, rules: &Rules) -> Outcome {
    let position = probe.position;
    let lag = ctx.cluster.optime().ahead_of(position);
    if rules.check_lag && lag > ctx.settings.maximum_lag_on_failover {
        return Outcome::Yield(format!(
            "my wal position exceeds maximum replication lag ({lag} bytes behind, {} allowed)",
            ctx.settings.maximum_lag_on_failover
        ));
    }
    let recorded = ctx.cluster.timeline();
    if ctx.settings.check_timeline && (probe.timeline.0 == 0 || probe.timeline < recorded) {
        return Outcome::Yield(format!("my timeline {} is behind the cluster's {recorded}", probe.timeline));
    }
    let known = probe.timeline.max(ctx.local.postgres.newest_history);
    if known.0 != 0 && known < recorded {
        // Promoted, it would take a timeline's number a second time, and nobody could tell the two apart (S6).
        return Outcome::Yield(format!(
            "I know of timeline {known} only, the cluster has been on {recorded}; if no member of that is left, \
             `patronictl failover --candidate` accepts the loss"
        ));
    }
    if others.is_empty() {
        return Outcome::Win;
    }
    let round = match fresh_round(ctx, unlocked, &others) {
        Ok(round) => round,
        Err(outcome) => return outcome,
    };
    for (name, answer) in round.answers.iter().filter(|(n, _)| others.contains(n)) {
        let PeerAnswer::Fit { role, position: theirs, tags, watchdog_failed, .. } = answer else { continue };
        if tags.nofailover || *watchdog_failed {
            continue;
        }
        if *role == PeerRole::Primary {
            return Outcome::Yield(format!("primary ({name}) is still alive"));
        }
        if *theirs > position {
            return Outcome::Yield(format!("wal position of {name} is ahead of my wal position"));
        }
        let former = unlocked.gone.as_ref() == Some(name);
        if *theirs == position && !former && tags.failover_priority > ctx.settings.tags.failover_priority {
            return Outcome::Yield(format!("{name} has the same wal position and a higher failover_priority"));
        }
    }
    Outcome::Win
}

/// Asks early when a silent lease is about to expire, so that no answer has to be waited for afterwards.
pub(super) fn ask_ahead(ctx: &Ctx<'_>) -> Option<Action> {
    let expires = ctx.local.lease.expires(ctx.settings.ttl);
    let from = expires - ASK_BEFORE_EXPIRY;
    let asked = ctx.local.peers.as_ref().is_some_and(|r| r.asked_at >= from);
    if ctx.now.boot < from || asked || ctx.local.asking.is_some() || ctx.settings.tags.nofailover {
        return None;
    }
    let unlocked = Unlocked { stood: None, proven_dead: false, positions_final: from, gone: None };
    let members = contenders(ctx, &unlocked);
    (!members.is_empty()).then_some(Action::AskPeers { members })
}
