//! What the lock holder does, and what stops a primary that is none.

use super::{Ctx, Hold, bootstrap, failsafe, fit, requests, silence, standby, sync, watchdog};
use crate::model::{
    Action, Decision, Handover, LeaseVerdict, OwnLease, Permission, Role, StandbyNames, StopMode, StoreLink, Timeline,
};

/// A possible writer without an unexpired lease is stopped, before anything else is looked at.
///
/// * Lapsed (D reached, ttl not): fast stop; the keeper's standing permission ends at S and K behind it.
/// * Not mine: the permission goes first, then the stop.
///
/// The bootstrap of a new cluster runs unfenced: there is no other member with data, and no lease yet.
pub(super) fn fence(ctx: &Ctx<'_>) -> Option<Decision> {
    if !ctx.writer() || ctx.local.bootstrapping || matches!(ctx.hold, Hold::Leader(_)) || bootstrap::goes_on(ctx) {
        return None;
    }
    if ctx.local.store == StoreLink::NotRead && matches!(ctx.hold, Hold::No) && ctx.local.own.is_none() {
        // Just started beside a running primary: whether its lease is ours shows with the first view. Until then the
        // permission it was given stands, and ends, by itself.
        return None;
    }
    let reason = match (&ctx.hold, &ctx.verdict) {
        (Hold::Lapsed(_), _) => "demoted self because DCS is not accessible and I was a leader".to_owned(),
        (_, LeaseVerdict::Held(other)) if *other != ctx.local.me => {
            format!("demoting self because I do not have the lock and I was a leader ({other} has it)")
        }
        (_, LeaseVerdict::Held(_)) => "demoting self because the lock names me but is not mine".to_owned(),
        (
            _,
            LeaseVerdict::Released
            | LeaseVerdict::Expired(_)
            | LeaseVerdict::Silence { .. }
            | LeaseVerdict::Vacant
            | LeaseVerdict::Absent,
        ) => "demoting self because I do not have the lock and I was a leader".to_owned(),
    };
    if ctx.keeper_lost() {
        return Some(ctx.wait(format!("{reason}; the keeper does not answer, its deadline stops Postgres")));
    }
    let d = ctx.wait(reason).wake_by(ctx.now.boot + super::RETRY_PAUSE);
    let d = d.then_if(matches!(ctx.hold, Hold::No), || Action::Permit(Permission::None));
    Some(d.then_if(ctx.local.postgres.stopping.is_none(), || Action::StopPostgres {
        mode: StopMode::Fast,
        why: "the lease is gone",
    }))
}

/// The lock is mine and Postgres is alive.
pub(super) fn lead(ctx: &Ctx<'_>, own: &OwnLease) -> Decision {
    let pg = &ctx.local.postgres;
    if pg.stopping.is_some() {
        return ctx.wait("waiting for Postgres to stop");
    }
    if let Some(why) = watchdog::lost(ctx).filter(|_| ctx.writer() && pg.promoting.is_none()) {
        let text = format!("Demoting self because watchdog could not be activated: {why}");
        return step_down(ctx, "the watchdog", &text);
    }
    match &pg.probe {
        None => starting(ctx),
        Some(probe) if standby::is_one(ctx.settings) => standby::lead(ctx, probe),
        Some(probe) if probe.in_recovery => promote(ctx, own),
        Some(probe) => {
            if let Some(why) = &ctx.local.misnumbered {
                return step_down(ctx, "wrong timeline", &format!("demoting self: {why}"));
            }
            if let Some(d) = stale_primary(ctx, probe.timeline) {
                return d;
            }
            if let Some(text) = sync::usurped(ctx) {
                return step_down(ctx, "the sync key names others", &text);
            }
            let d = primary(ctx, probe.timeline);
            if ctx.local.handover.is_none() { sync::keep(ctx, own, d, probe) } else { d }
        }
    }
}

/// Postgres is up but does not answer yet.
///
/// A start that takes longer than it may ends in a hand-over, if somebody is there to take it: starting the same primary
/// again would kill the same recovery again. One that refuses only my login is up.
fn starting(ctx: &Ctx<'_>) -> Decision {
    let pg = &ctx.local.postgres;
    if ctx.keeper_lost() {
        return ctx.wait(format!("Postgres does not answer{}", silence::in_words(ctx)));
    }
    if let Some(why) = &pg.login_refused {
        return ctx.wait(format!(
            "no action. I am ({}), the leader with the lock; Postgres is up but refuses my login: {why}",
            ctx.local.me
        ));
    }
    if standby::is_one(ctx.settings) {
        // However long it recovers: somebody else would have no more to offer.
        return ctx.wait("PostgreSQL is still starting up; I am the standby leader with the lock");
    }
    let timeout = ctx.local.restart.as_ref().map_or(ctx.settings.primary_start_timeout, |r| r.timeout);
    let in_state = ctx.now.boot.since(pg.since);
    let left = timeout.saturating_sub(in_state);
    if left.is_zero() && !timeout.is_zero() {
        return overdue(ctx, "startup timeout", "primary start has timed out, but continuing to wait");
    }
    ctx.wait(format!("PostgreSQL is still starting up, {} seconds until timeout", left.as_secs()))
        .wake_by(ctx.now.boot + left.max(super::RETRY_PAUSE))
}

/// It takes too long: somebody else leads, if somebody is there who can.
fn overdue(ctx: &Ctx<'_>, what: &'static str, waits: &str) -> Decision {
    match requests::fit_candidates(ctx, None) {
        requests::Fitness::Ask(ask) => ctx.wait(format!("{what}: looking for a member to take over")).then(ask),
        requests::Fitness::Waiting => ctx.wait(format!("{what}: waiting for the answers of the other members")),
        requests::Fitness::Fit => step_down(ctx, what, &format!("stopped PostgreSQL because of {what}")),
        requests::Fitness::Nobody(why) => ctx.wait(format!("{waits} because failover is not possible: {why}")),
    }
}

/// A standby with the lock becomes primary: permission first, then the promotion. Whatever this version does not support
/// stands in the way of taking the lock, not of using it: one that is held and not used helps nobody.
fn promote(ctx: &Ctx<'_>, own: &OwnLease) -> Decision {
    promotion(ctx, own).then_all(consumed_request(ctx))
}

fn promotion(ctx: &Ctx<'_>, own: &OwnLease) -> Decision {
    if ctx.keeper_lost() {
        return ctx.wait("not promoting because the keeper does not answer (fence: lost)");
    }
    if ctx.backs_off() {
        return gives_back(ctx, "releasing the lock: the pre-promote script failed");
    }
    if let Some(why) = watchdog::lost(ctx) {
        return gives_back(ctx, &format!("Not promoting self because watchdog could not be activated: {why}"));
    }
    if !ctx.renewed_since_death(own) {
        let renew = ctx.local.lease_write.is_none();
        return ctx.wait("renewing the lock before promoting").then_if(renew, || Action::RenewLease);
    }
    if let Some(since) = ctx.local.postgres.promoting {
        let timeout = ctx.settings.primary_start_timeout;
        if !timeout.is_zero() && ctx.now.boot.since(since) >= timeout {
            return overdue(
                ctx,
                "promotion timeout",
                "the promotion takes longer than primary_start_timeout, waiting on",
            )
            .wake_by(ctx.now.boot + super::RETRY_PAUSE);
        }
        return ctx.wait("promote in progress").wake_by(ctx.now.boot + super::RETRY_PAUSE);
    }
    if let Some(d) = watchdog::before_promoting(ctx) {
        return d;
    }
    let claim = match claimed(ctx, own) {
        Ok(claim) => claim,
        Err(next) => {
            // The last renewal shows that nothing claims a number: no reason to rest. Renewals of a short loop_wait would else
            // keep the claim from ever being sent.
            let shown = ctx.cluster.leader.as_ref().is_some_and(|l| l.lease == own.record);
            let free = ctx.local.lease_write.is_none() && (shown || ctx.rested_since_attempt());
            return ctx
                .wait(format!("claiming timeline {next} before promoting"))
                .then_if(free, || Action::ClaimTimeline(next))
                .wake_by(ctx.now.boot + super::RETRY_PAUSE);
        }
    };
    let names = match sync::before_writing(ctx, own, true) {
        Ok(names) => names,
        Err(d) => return d,
    };
    let keeps = names != StandbyNames::AsConfigured || ctx.local.sync.named.is_some();
    if keeps && ctx.local.sync.named.as_ref() != Some(&names) {
        return ctx
            .wait("before promoting: telling Postgres whom its commits wait for")
            .then(Action::NameStandbys(names))
            .wake_by(ctx.now.boot + super::RETRY_PAUSE);
    }
    ctx.wait("promoted self to leader by acquiring session lock")
        .then(Action::Permit(ctx.permission(own)))
        .then(Action::Promote { claim: Some(claim) })
        .wake_by(ctx.now.boot + super::RETRY_PAUSE)
}

/// Somebody else is to lead. A standby goes on as one; but one that was ordered to promote may follow the order at any moment,
/// whatever the answer to it was: it is stopped, and the lock goes when it is dead.
fn gives_back(ctx: &Ctx<'_>, text: &str) -> Decision {
    if ctx.local.deadman.ordered {
        let why = "failed promotion";
        return ctx
            .wait("giving the lock up: the promotion failed; stopping Postgres first, which may still follow the order")
            .then(Action::Permit(Permission::None))
            .then(Action::StopPostgres { mode: StopMode::Immediate, why });
    }
    let free = ctx.local.lease_write.is_none();
    ctx.wait(text).then(Action::Permit(Permission::None)).then_if(free, || Action::ReleaseLease { shutdown: None })
}

/// The number that was claimed with the lock that I hold. `Err`: none was (the lock of an earlier life, renewed), or it is used
/// up (I was primary on it, was demoted, and the same lock was confirmed late; or rewound since, to what another cluster has on
/// an older timeline); then the next that nobody has heard of, which has to be claimed first: whoever comes after me must know
/// of it.
fn claimed(ctx: &Ctx<'_>, own: &OwnLease) -> Result<Timeline, Timeline> {
    let leader = ctx.cluster.leader.as_ref().filter(|l| {
        (&l.lease.acquire_time, &l.lease.transitions) == (&own.record.acquire_time, &own.record.transitions)
    });
    // What stands counts. Before the view shows it, what the acquisition has sent.
    let claim = leader.map_or(ctx.local.claim, |l| l.claimed_timeline()).unwrap_or_default();
    let pg = &ctx.local.postgres;
    let mine = pg.probe.as_ref().map_or(Timeline(0), |p| p.timeline).max(pg.newest_history);
    let published = ctx.cluster.members.values().filter_map(|m| m.timeline).max().unwrap_or_default();
    let used = mine.max(published).max(ctx.cluster.timeline()).max(ctx.local.claim_void);
    let answers = ctx.local.peers.as_ref().map(|round| round.answers.clone()).unwrap_or_default();
    if claim > used { Ok(claim) } else { Err(fit::Field::new(ctx, &answers).next_timeline()) }
}

/// An immediate or due request that my acquisition has fulfilled, if it still stands: were it left to the primary, a promotion
/// that fails would be followed by the same hand-over again, for ever.
pub(super) fn consumed_request(ctx: &Ctx<'_>) -> Option<Action> {
    let request = ctx.cluster.request().filter(|r| requests::is_due(ctx, r) && !ctx.local.store_write)?;
    // While the sync key names others, the request is what lets me lead.
    sync::binding(ctx.cluster).is_none_or(|r| r.vouches_for(&ctx.local.me)).then_some(())?;
    let mine = match (&request.candidate, &request.leader) {
        (Some(candidate), _) => *candidate == ctx.local.me,
        (None, leader) => leader.as_ref() != Some(&ctx.local.me),
    };
    mine.then(|| Action::ClearRequest {
        expect: request.version.clone(),
        why: format!("{} has taken the lock", ctx.local.me),
    })
}

/// A primary behind the recorded timeline never keeps the lock.
fn stale_primary(ctx: &Ctx<'_>, timeline: Timeline) -> Option<Decision> {
    let recorded = ctx.cluster.timeline();
    if timeline.0 == 0 || timeline >= recorded {
        return None;
    }
    let text = format!("demoting self because my timeline {timeline} is behind the cluster's {recorded}");
    Some(step_down(ctx, "stale timeline", &text))
}

/// Stops at once and gives the lock away. The release comes with the hand-over's last step: once every process of Postgres
/// is dead.
fn step_down(ctx: &Ctx<'_>, why: &'static str, text: &str) -> Decision {
    let handover =
        Handover { candidate: None, why, began: ctx.now.boot, checkpoint_done: true, in_any_case: true, stopped: None };
    ctx.wait(text)
        .then(Action::BeginHandover(handover))
        .then(Action::Permit(Permission::None))
        .then(Action::StopPostgres { mode: StopMode::Immediate, why })
}

/// The normal life of a leader.
pub(super) fn primary(ctx: &Ctx<'_>, timeline: Timeline) -> Decision {
    if let Some(d) = requests::failover_request(ctx) {
        return upkeep_of_primary(ctx, d, timeline);
    }
    let fence = silence::in_words(ctx);
    let mut d = if failsafe::goes_on(ctx) {
        ctx.wait("continue to run as a leader because failsafe mode is enabled and all members are accessible")
    } else {
        ctx.wait(format!("no action. I am ({}), the leader with the lock{fence}", ctx.local.me))
    };
    if ctx.cluster.initialize.system_id().is_some_and(|id| Some(id) != ctx.my_system_id()) {
        d = d.warn(format!(
            "the store says system identifier {}, my data directory {}: I keep serving while my lease holds; find out \
             who wrote it before restarting me",
            ctx.cluster.initialize.system_id().unwrap_or(""),
            ctx.my_system_id().unwrap_or("unknown")
        ));
    }
    for wish in &ctx.settings.unsupported {
        d = d.warn(wish.clone());
    }
    upkeep_of_primary(ctx, d, timeline)
}

/// What of the store is lost and can be written again.
pub(super) fn repairs(ctx: &Ctx<'_>, d: Decision) -> Decision {
    let version = ctx.cluster.config.as_ref().map(|c| c.version.clone());
    let has_config = ctx.cluster.config.as_ref().is_some_and(|c| c.document.is_some());
    match (ctx.cluster.initialize.system_id(), ctx.my_system_id()) {
        _ if ctx.local.store_write => d,
        (None, Some(id)) => d.then(Action::WriteSystemId { expect: version, system_id: id.to_owned() }),
        (Some(_), _) | (None, None) => d.then_if(!has_config, || Action::WriteConfig { expect: version }),
    }
}

/// Repairs of the store, history, checkpoint, slots: whatever else the primary does.
fn upkeep_of_primary(ctx: &Ctx<'_>, d: Decision, timeline: Timeline) -> Decision {
    let mut d = repairs(ctx, d);
    let writes = |a: &Action| matches!(a, Action::WriteSystemId { .. } | Action::WriteConfig { .. });
    if !ctx.local.store_write && !d.actions.iter().any(writes) && timeline.0 > 1 && ctx.cluster.timeline() < timeline {
        d = d.then(Action::UpdateHistory);
    }
    let promoted_here = timeline.0 > 1 && ctx.local.postgres.role != Role::Demoted;
    d.then_if(promoted_here && !ctx.local.postgres.checkpointed && ctx.local.handover.is_none(), || Action::Checkpoint)
        .then(Action::SyncSlots)
}
