//! The race for an empty throne. Every member runs it by itself; several may win, the conditional write decides.
//!
//! ```text
//! may I at all ─ a request of a person ─ ask everybody at once ─ a primary lives ─ am I fit ─ the oath ─ who is better
//! ```
//! The oath: a lock released after a clean shutdown carries the position of that shutdown. Whoever ends before it does not
//! take the lock while a fit member that has it may still come. A silent member is not "nobody".

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use super::fit::{self, Field, Standing};
use super::{ASK_BEFORE_EXPIRY, Ctx, ROUND_MAX_AGE, Unlocked, backoff, failsafe, replica, requests, standby, sync};
use crate::model::{
    Action, BootInstant, Decision, FailoverRequest, Initialize, LeaseVerdict, Lsn, Member, MemberName, PeerAnswer,
    PeerRound, Probe, Shutdown, Stood, StopMode, Timeline, Upstream,
};
use crate::mutant::{self, Mutant};

/// A member that has everything of a clean shutdown is waited for at least this long: a pod is scheduled, pulls its image
/// and starts Postgres in less.
const OATH_WAIT_LEAST: Duration = Duration::from_secs(60);

/// PostgreSQL ends its receiver where it waits for WAL: not while its replay is paused or delayed. After so long the server is
/// started again.
const CUT_WAIT: Duration = Duration::from_secs(5);

/// Postgres is asked no oftener than this.
const PROBE_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause before looking again after giving way.
const YIELD_PAUSE: Duration = Duration::from_secs(2);

/// What the race came to.
#[derive(Debug)]
enum Outcome {
    /// Take the lease; in words, what is lost by that.
    Win { claim: Option<Timeline>, lost: Option<String> },
    /// Somebody else should, or nobody yet; why, and until when at the latest.
    Yield {
        why: String,
        #[cfg_attr(not(test), expect(dead_code, reason = "who is named in `why`; the property tests follow it"))]
        to: Option<MemberName>,
        until: Option<BootInstant>,
    },
    /// First ask.
    Ask(Vec<MemberName>),
    /// Answers are on their way.
    Waiting,
    /// First read the history afresh.
    ReadHistory,
    /// First read the sync key afresh.
    ReadSync,
    /// First stop receiving, and look what is there then.
    Cut,
}

fn yields(why: impl Into<String>) -> Outcome {
    Outcome::Yield { why: why.into(), to: None, until: None }
}

fn yields_to(to: &MemberName, why: impl Into<String>) -> Outcome {
    Outcome::Yield { why: why.into(), to: Some(to.clone()), until: None }
}

/// Postgres is alive, the lock is nobody's.
pub(super) fn race(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Decision {
    let grounds = grounds(ctx, unlocked);
    match outcome(ctx, unlocked) {
        Outcome::Win { claim, lost } => win(ctx, unlocked, &grounds, claim, lost),
        Outcome::Ask(members) => ctx
            .wait(format!("the lock is free ({grounds}): asking the other members"))
            .then(Action::AskPeers { members }),
        Outcome::ReadHistory => ctx
            .wait(format!(
                "the lock is free ({grounds}): somebody has heard of a newer timeline, reading the history afresh"
            ))
            .wake_by(ctx.now.boot + super::RETRY_PAUSE)
            .then(Action::ReadConfig),
        Outcome::ReadSync => ctx
            .wait(format!("the lock is free ({grounds}): reading afresh who may lead without losing a commit"))
            .wake_by(ctx.now.boot + super::RETRY_PAUSE)
            .then(Action::ReadSync)
            .then_all(ask_meanwhile(ctx, unlocked)),
        Outcome::Cut if cut_is_overdue(ctx) => ctx
            .wait(format!(
                "the lock is free ({grounds}): my timeline has ended and WAL of it still comes, starting Postgres again without"
            ))
            .then_if(ctx.local.postgres.stopping.is_none(), || Action::StopPostgres {
                mode: StopMode::Fast,
                why: "its receiver does not end",
            }),
        Outcome::Cut => ctx
            .wait(format!(
                "the lock is free ({grounds}): my timeline has ended, taking no more WAL of it before I lead"
            ))
            .wake_by(ctx.now.boot + super::RETRY_PAUSE)
            .then_if(ctx.local.postgres.following != Some(Upstream::Nobody), || Action::Follow {
                upstream: Upstream::Nobody,
                names: ctx.settings.synchronous.at_first(),
            }),
        Outcome::Waiting => ctx.wait(format!("the lock is free ({grounds}): waiting for the other members' answers")),
        Outcome::Yield { why, until, .. } => replica::idle(ctx, format!("not taking the lock: {why}"))
            .wake_by(ctx.now.boot + ctx.settings.loop_wait.min(YIELD_PAUSE))
            .wake_by(until.unwrap_or(ctx.now.boot + YIELD_PAUSE)),
    }
}

/// The store must know the system first; then the lock is taken. A request of a person is cleared once the lock is mine
/// (see [`super::leader`]), not before: the others would see a free lock and no request, and race.
fn win(ctx: &Ctx<'_>, unlocked: &Unlocked, grounds: &str, claim: Option<Timeline>, lost: Option<String>) -> Decision {
    if let (true, Some(id)) = (ctx.cluster.initialize == Initialize::Absent || copied(ctx), ctx.my_system_id()) {
        return ctx
            .wait(format!(
                "the lock is free ({grounds}): restoring the lost initialize key, nobody who answers has more"
            ))
            .then_if(!ctx.local.store_write, || Action::WriteSystemId {
                expect: ctx.cluster.config.as_ref().map(|c| c.version.clone()),
                system_id: id.to_owned(),
            });
    }
    let mut d = ctx.wait(format!("taking the lock ({grounds})"));
    if let Some(lost) = lost {
        d = d.warn(lost);
    }
    if ctx.local.lease_write.is_some() {
        return d;
    }
    if let Some(again) = ctx.lease_rests_until() {
        return ctx
            .wait(format!("taking the lock ({grounds}): the store refused it, trying again soon"))
            .wake_by(again);
    }
    d.then(Action::AcquireLease { stood: unlocked.stood.clone(), claim })
}

/// The standby cluster whose making this pod has announced is made: its copy is whole, and an earlier life of this program ended
/// before it could say so.
fn copied(ctx: &Ctx<'_>) -> bool {
    let mine = ctx.cluster.initializer.as_ref().is_some_and(|i| i.uid == ctx.local.uid && !i.uid.is_empty());
    standby::is_one(ctx.settings) && ctx.cluster.initialize == Initialize::InProgress && mine
}

/// The sync key was read since the lock became free.
fn key_is_fresh(ctx: &Ctx<'_>, unlocked: &Unlocked) -> bool {
    // Free in the future is said by a rule that is missing: the key is no guard for that one.
    unlocked.emptied > ctx.now.boot || ctx.local.sync_read.is_some_and(|at| at >= unlocked.emptied)
}

fn grounds(ctx: &Ctx<'_>, unlocked: &Unlocked) -> String {
    match (&unlocked.gone, &unlocked.stood) {
        (Some(who), Stood::ProvenDead(_)) => {
            let how = ctx.local.death_proof.as_ref().map_or("", |p| p.how.as_str());
            format!("{who} is dead: {how}")
        }
        (Some(who), Stood::Record(_) | Stood::Untouched(_) | Stood::Nothing) => format!("{who} was silent for its ttl"),
        (None, _) if ctx.verdict == LeaseVerdict::Released => "released".to_owned(),
        (None, _) => "nobody was named for a ttl".to_owned(),
    }
}

/// The request that is to be carried out: an immediate one, or a switchover whose time has come, and for which the lock was given up.
fn request_in_force<'a>(ctx: &Ctx<'a>) -> Option<&'a FailoverRequest> {
    let released = ctx.verdict == LeaseVerdict::Released;
    ctx.cluster.request().filter(|r| r.scheduled_at.is_none() || released && requests::is_due(ctx, r))
}

fn outcome(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Outcome {
    if let Some(wish) = ctx.settings.unsupported.first() {
        return yields(format!("I must not lead: {wish}"));
    }
    if ctx.local.backoff_until.is_some_and(|t| ctx.now.boot < t) {
        return yields("pre_promote failed here; backoff: skip leader race for a ttl");
    }
    if let Some(promise) = failsafe::promise(ctx, &unlocked.stood) {
        return Outcome::Yield {
            why: format!("I promised {} to leave it the lock (failsafe)", promise.to),
            to: Some(promise.to.clone()),
            until: Some(promise.until),
        };
    }
    if failsafe::unlisted(ctx) {
        return yields(format!(
            "its holder may go on without me: I am not among the members that it has named (failsafe); `patronictl \
             failover --candidate {} --force` once it is dead for certain",
            ctx.local.me
        ));
    }
    if ctx.keeper_lost() {
        return yields("my keeper does not answer (fence: lost); delete this pod if it stays so");
    }
    let Some(probe) = &ctx.local.postgres.probe else { return yields("PostgreSQL is still starting up") };
    let request = request_in_force(ctx);
    let named = request.is_some_and(|r| r.candidate.as_ref() == Some(&ctx.local.me));
    if let Some(why) = fit::of_me(ctx).filter(|why| !(named && why.by_history_alone())) {
        return yields(format!("I am {why}{}", way_out(ctx, &why)));
    }
    // A watch proves nothing: whoever leads without having heard of the key loses what it promises.
    if !key_is_fresh(ctx, unlocked) {
        return Outcome::ReadSync;
    }
    if let Some(why) = sync::bars(ctx) {
        return yields(why);
    }
    if ctx.cluster.initialize != Initialize::Absent && ctx.cluster.initialize.system_id().is_none() && !copied(ctx) {
        return yields("the initialize key says that somebody is initializing the cluster");
    }
    match request {
        Some(request) => with_request(ctx, unlocked, request, probe),
        None if ctx.local.stepped_down.is_some_and(|at| ctx.now.boot < at + ctx.settings.ttl) => {
            yields("I have just given the lock away")
        }
        None => match backoff::of(ctx, unlocked) {
            Some((why, until)) => Outcome::Yield { why, to: None, until: Some(until) },
            None => contest(ctx, unlocked, probe, Wish::default()),
        },
    }
}

fn way_out(ctx: &Ctx<'_>, why: &fit::Why) -> String {
    if let fit::Why::Elsewhere { .. } = why {
        format!("; `patronictl failover --candidate {} --force` moves the cluster here", ctx.local.me)
    } else if why.by_history_alone() {
        format!("; `patronictl failover --candidate {} --force` accepts the loss", ctx.local.me)
    } else {
        String::new()
    }
}

/// A request is there while there is no leader. A failover's candidate leads whatever it lacks; a switchover's, whose leader
/// died before it could hand over, is the first among equals: nobody who asked for a switchover accepted a loss.
fn with_request(ctx: &Ctx<'_>, unlocked: &Unlocked, request: &FailoverRequest, probe: &Probe) -> Outcome {
    let me = &ctx.local.me;
    let named = request.candidate.as_ref();
    let accepts_loss = request.leader.is_none();
    if named == Some(me) && (accepts_loss || has_the_oath(ctx)) {
        return candidate(ctx, unlocked, probe);
    }
    if accepts_loss && let Some(outcome) = named.and_then(|name| gives_way(ctx, unlocked, name)) {
        return outcome;
    }
    let stepped_down = request.leader.as_ref() == Some(me);
    if stepped_down && ctx.local.stepped_down.is_some_and(|at| ctx.now.boot < at + ctx.settings.ttl) {
        return yields("I have just given the lock away");
    }
    let prefers = named.filter(|_| ctx.now.boot < unlocked.emptied + ctx.settings.ttl);
    contest(ctx, unlocked, probe, Wish { steps_down: request.leader.as_ref(), prefers })
}

/// I have everything of the clean shutdown that freed the lock, and nobody has led since: nobody can have more.
fn has_the_oath(ctx: &Ctx<'_>) -> bool {
    let nobody = BTreeMap::new();
    let field = Field::new(ctx, &nobody);
    let claim = ctx.cluster.leader.as_ref().and_then(|l| l.claim.as_ref()).map(|c| c.timeline);
    ctx.verdict == LeaseVerdict::Released
        && field.oath().is_some_and(|oath| claim.is_none_or(|claim| claim <= oath.timeline))
        && field.me().is_some_and(|me| field.has_oath(&me))
}

/// Somebody else is to become the leader: for a ttl, while it answers as one that may.
fn gives_way(ctx: &Ctx<'_>, unlocked: &Unlocked, named: &MemberName) -> Option<Outcome> {
    let until = unlocked.emptied + ctx.settings.ttl;
    let everybody = voters(ctx, unlocked);
    if ctx.now.boot >= until || !everybody.contains(named) {
        return None;
    }
    let round = match fresh_round(ctx, unlocked, &everybody) {
        Ok(round) => round,
        Err(outcome) => return Some(outcome),
    };
    let Some(PeerAnswer::Fit { tags, watchdog_failed, .. }) = round.answers.get(named) else { return None };
    (!tags.nofailover && !watchdog_failed).then(|| Outcome::Yield {
        why: format!("{named} is to become the leader"),
        to: Some(named.clone()),
        until: Some(until),
    })
}

/// A person named me: at once where the record says that my WAL is the cluster's, else after the others were asked for the
/// timelines they have heard of. My place among them does not matter.
fn candidate(ctx: &Ctx<'_>, unlocked: &Unlocked, probe: &Probe) -> Outcome {
    let everybody = &voters(ctx, unlocked);
    let nobody = BTreeMap::new();
    let alone = Field::new(ctx, &nobody);
    if alone.me().is_some_and(|me| me.timeline >= ctx.cluster.timeline() && ctx.cluster.timeline().0 > 0) {
        let answers = ctx.local.peers.as_ref().map_or(&nobody, |round| &round.answers);
        let field = Field::new(ctx, answers);
        if history_may_be_old(ctx, unlocked, &field) {
            return Outcome::ReadHistory;
        }
        return Outcome::Win { claim: claim(ctx, &field, probe), lost: None };
    }
    let answers = match asked(ctx, unlocked, everybody, &nobody) {
        Ok(answers) => answers,
        Err(outcome) => return outcome,
    };
    let field = Field::new(ctx, answers);
    match field.primary() {
        Some(name) => yields_to(name, format!("primary ({name}) is still alive")),
        None if history_may_be_old(ctx, unlocked, &field) => Outcome::ReadHistory,
        None if may_grow(ctx, probe) => Outcome::Cut,
        None => Outcome::Win { claim: claim(ctx, &field, probe), lost: None },
    }
}

/// The number of the promotion, if there is to be one.
fn claim(ctx: &Ctx<'_>, field: &Field<'_>, probe: &Probe) -> Option<Timeline> {
    (probe.in_recovery && !standby::is_one(ctx.settings)).then(|| field.next_timeline())
}

/// Whom to ask, all in one round, so that no question evicts another's answers: everybody else with an address. Who may
/// not lead has heard of timelines all the same, or is a primary, or shows that it does not have what is waited for.
fn voters(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Vec<MemberName> {
    let dead = unlocked.gone.as_ref().filter(|_| matches!(unlocked.stood, Stood::ProvenDead(_)));
    let asked =
        |(name, m): &(&MemberName, &Member)| **name != ctx.local.me && m.api_url.is_some() && dead != Some(*name);
    ctx.cluster.members.iter().filter(asked).map(|(name, _)| name.clone()).collect()
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

/// The same; without anybody to ask there is nothing to wait for.
fn asked<'r>(
    ctx: &Ctx<'r>,
    unlocked: &Unlocked,
    members: &[MemberName],
    nobody: &'r BTreeMap<MemberName, PeerAnswer>,
) -> Result<&'r BTreeMap<MemberName, PeerAnswer>, Outcome> {
    if members.is_empty() {
        return Ok(nobody);
    }
    fresh_round(ctx, unlocked, members).map(|round| &round.answers)
}

/// A watch proves nothing: where somebody knows more than the history in the view, it is read afresh before it decides who is
/// fit to lead.
fn history_may_be_old(ctx: &Ctx<'_>, unlocked: &Unlocked, field: &Field<'_>) -> bool {
    // Whoever wrote to it last held the lock: nothing comes any more.
    let fresh = |at: BootInstant| at >= unlocked.emptied;
    field.history_may_be_old() && !ctx.local.config_read.is_some_and(fresh) && !mutant::is(Mutant::HistoryOnTrust)
}

fn covers(round: &PeerRound, positions_final: BootInstant, now: BootInstant) -> bool {
    round.asked_at >= positions_final && now.since(round.asked_at) <= ROUND_MAX_AGE
}

/// How far a member is behind everything the store knows of.
fn lag(ctx: &Ctx<'_>, position: Lsn) -> u64 {
    let sworn = ctx.cluster.leader.as_ref().and_then(|l| l.oath()).map_or(Lsn::ZERO, |o| o.position);
    ctx.cluster.optime().max(sworn).ahead_of(position)
}

/// Whom the sync key allows to lead has every commit that was acknowledged: what else was written is nobody's loss.
fn allowed_lag(ctx: &Ctx<'_>) -> u64 {
    if sync::binding(ctx.cluster).is_some() { u64::MAX } else { ctx.settings.maximum_lag_on_failover }
}

/// What a switchover asks for while there is no leader.
#[derive(Clone, Copy, Default)]
struct Wish<'a> {
    /// Who gave the lock away by it is no reason to give way.
    steps_down: Option<&'a MemberName>,
    /// The first among equals, for a ttl: it may be unable to take the lock.
    prefers: Option<&'a MemberName>,
}

/// Who is best. Whoever lags too much does not lead, request or not: only a member that a person names in a failover may lose
/// more.
fn contest(ctx: &Ctx<'_>, unlocked: &Unlocked, probe: &Probe, wish: Wish<'_>) -> Outcome {
    let (behind, allowed) = (lag(ctx, probe.position), allowed_lag(ctx));
    if behind > allowed && !mutant::is(Mutant::LagIsIgnored) {
        return yields(format!(
            "my wal position exceeds maximum replication lag ({behind} bytes behind, {allowed} allowed)"
        ));
    }
    let everybody = voters(ctx, unlocked);
    let nobody = BTreeMap::new();
    let answers = match asked(ctx, unlocked, &everybody, &nobody) {
        Ok(answers) => answers,
        Err(outcome) => return outcome,
    };
    let field = Field::new(ctx, answers);
    let Some(me) = field.me() else { return yields("PostgreSQL is still starting up") };
    if probe.at < unlocked.positions_final {
        // It is asked with every event, a little apart.
        return Outcome::Yield {
            why: "PostgreSQL here has not answered since the lock became free".into(),
            to: None,
            until: Some(ctx.now.boot + PROBE_PAUSE),
        };
    }
    if let Some(name) = field.primary() {
        return yields_to(name, format!("primary ({name}) is still alive"));
    }
    if history_may_be_old(ctx, unlocked, &field) {
        return Outcome::ReadHistory;
    }
    if let Some(why) = field.unfit(&me) {
        return yields(format!("I am {why}{}", way_out(ctx, &why)));
    }
    let lost = match sworn(ctx, unlocked, &field, &me) {
        Ok(lost) => lost,
        Err(outcome) => return outcome,
    };
    let passed_over = match ahead_and_cut_off(ctx, unlocked, &field, &me) {
        Ok(lost) => lost,
        Err(outcome) => return outcome,
    };
    let losses: Vec<String> = lost.into_iter().chain(passed_over).collect();
    let lost = (!losses.is_empty()).then(|| losses.join("; "));
    if let Some(better) = better(ctx, unlocked, &field, &me, wish) {
        return better;
    }
    // After a clean stop nobody has more than what was sworn.
    if !has_the_oath(ctx)
        && let Some(why) = sync::outvoted(ctx, &field, &me)
    {
        return yields(why);
    }
    if may_grow(ctx, probe) { Outcome::Cut } else { Outcome::Win { claim: claim(ctx, &field, probe), lost } }
}

/// Who is rather to lead than I, of all who are fit.
fn better(ctx: &Ctx<'_>, unlocked: &Unlocked, field: &Field<'_>, me: &Standing, wish: Wish<'_>) -> Option<Outcome> {
    for (name, theirs) in field.all_fit() {
        if lag(ctx, theirs.position) > allowed_lag(ctx) || theirs.cut_off {
            continue;
        }
        let former = unlocked.gone.as_ref() == Some(name);
        match field.compare(&theirs, me) {
            // Who is to step down is no reason to give way, unless it has more: then that would be lost.
            Ordering::Equal if wish.steps_down == Some(name) => {}
            Ordering::Greater if theirs.known > me.known => {
                return Some(yields_to(name, format!("{name} has heard of timeline {}, I have not", theirs.known)));
            }
            Ordering::Greater => {
                return Some(yields_to(name, format!("wal position of {name} is ahead of my wal position")));
            }
            Ordering::Equal if wish.prefers == Some(name) => {
                return Some(yields_to(name, format!("{name} has the same wal position and is to become the leader")));
            }
            Ordering::Equal if !former && wish.prefers != Some(&ctx.local.me) && theirs.priority > me.priority => {
                return Some(yields_to(
                    name,
                    format!("{name} has the same wal position and a higher failover_priority"),
                ));
            }
            Ordering::Equal
                if !former
                    && wish.prefers != Some(&ctx.local.me)
                    && theirs.priority == me.priority
                    && field.nearer(name, ctx.settings.site.as_deref()) =>
            {
                return Some(yields_to(
                    name,
                    format!("{name} has the same wal position, in the site of the last leader"),
                ));
            }
            Ordering::Equal | Ordering::Less => {}
        }
    }
    None
}

/// My timeline has ended, I am not past its end, and who sends me WAL may be: a former leader that came back has more of it
/// than belongs to the cluster. What I have counts once nothing can come any more.
fn may_grow(ctx: &Ctx<'_>, probe: &Probe) -> bool {
    let ended = probe.in_recovery && probe.timeline < ctx.cluster.timeline();
    let pg = &ctx.local.postgres;
    let cut = pg.following == Some(Upstream::Nobody) && probe.at >= pg.followed_at && !probe.streaming;
    ended && !cut
}

/// Its upstream was taken away for long enough, and the receiver is there still.
fn cut_is_overdue(ctx: &Ctx<'_>) -> bool {
    let pg = &ctx.local.postgres;
    pg.following == Some(Upstream::Nobody) && ctx.now.boot >= pg.followed_at + CUT_WAIT
}

/// Whoever has more than I and cannot take a lock is waited for as long as a lease, and then passed over; in words, what is
/// lost by that.
fn ahead_and_cut_off(
    ctx: &Ctx<'_>,
    unlocked: &Unlocked,
    field: &Field<'_>,
    me: &Standing,
) -> Result<Option<String>, Outcome> {
    let ahead = |s: &Standing| s.cut_off && field.compare(s, me) == Ordering::Greater;
    let in_reach = |s: &Standing| lag(ctx, s.position) <= allowed_lag(ctx);
    let Some((name, theirs)) = field.all_fit().find(|(_, s)| ahead(s) && in_reach(s)) else { return Ok(None) };
    let until = unlocked.emptied + ctx.settings.ttl;
    if ctx.now.boot < until {
        return Err(Outcome::Yield {
            why: format!("{name} is ahead of me, and does not reach the API server: waiting for it for a ttl"),
            to: None,
            until: Some(until),
        });
    }
    let unseen = "has not reached the API server for a ttl";
    Ok(Some(match theirs.position.ahead_of(me.position) {
        0 => format!("{name} has heard of a newer timeline and {unseen}: going on without it"),
        bytes => format!(
            "{name} is {bytes} bytes ahead and {unseen}: going on without them, they are lost to the cluster; copy its data \
             directory before it rejoins if they are needed"
        ),
    }))
}

/// The oath. Whom the sync key allows to lead is not bound by it. `Ok`: it does not stand in my way; in words, what is lost if I lead.
fn sworn(ctx: &Ctx<'_>, unlocked: &Unlocked, field: &Field<'_>, me: &Standing) -> Result<Option<String>, Outcome> {
    let bound = sync::binding(ctx.cluster).is_none();
    let Some(oath) = field.oath().filter(|_| bound && !field.has_oath(me) && !mutant::is(Mutant::OathIsForgotten))
    else {
        return Ok(None);
    };
    let all = format!("everything up to {}, the last clean shutdown", oath.position);
    if let Some((name, _)) = field.all_fit().find(|(_, s)| field.has_oath(s) && !s.cut_off) {
        return Err(yields_to(name, format!("{name} has {all}")));
    }
    let silent = silent_of(ctx, field, oath);
    let until = waited_until(ctx, unlocked);
    if !silent.is_empty() && ctx.now.boot < until {
        let who = silent.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", ");
        let left = until.since(ctx.now.boot).as_secs();
        return Err(Outcome::Yield {
            why: format!(
                "I do not have {all}, waiting up to {left} s for {who}; `patronictl failover --candidate NAME` goes on \
                 without"
            ),
            to: None,
            until: Some(until),
        });
    }
    let bytes = oath.position.ahead_of(me.position);
    let who =
        if silent.is_empty() { "no member that answers has them" } else { "who may have them did not come in time" };
    Ok(Some(format!(
        "my WAL ends at {}, the last clean shutdown was at {} on timeline {}: {bytes} bytes are lost, {who}",
        me.position, oath.position, oath.timeline
    )))
}

/// Members that had data at the shutdown and have not shown what they have: any of them may still come. What one of them said
/// in an earlier round was before the shutdown: only the answers of this field count, and who could not be asked is silent.
fn silent_of<'o>(ctx: &Ctx<'_>, field: &Field<'_>, oath: &'o Shutdown) -> Vec<&'o MemberName> {
    let answered = |name: &MemberName| match field.answer(name) {
        Some(PeerAnswer::Fit { .. }) if field.fit(name).is_ok_and(|s| s.cut_off) => false,
        Some(PeerAnswer::Fit { .. } | PeerAnswer::Unfit { .. }) => true,
        Some(PeerAnswer::Down { .. } | PeerAnswer::Unreachable(_)) | None => false,
    };
    oath.members.iter().filter(|name| **name != ctx.local.me && !answered(name)).collect()
}

/// Counted by my own clock from when I could otherwise lead.
fn waited_until(ctx: &Ctx<'_>, unlocked: &Unlocked) -> BootInstant {
    let could_lead = unlocked.emptied.max(ctx.local.started).max(ctx.local.postgres.since);
    could_lead + ctx.settings.primary_start_timeout.max(OATH_WAIT_LEAST)
}

/// The others are asked while the key is read: most who may lead have to know what they say.
fn ask_meanwhile(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Option<Action> {
    let members = voters(ctx, unlocked);
    match fresh_round(ctx, unlocked, &members) {
        Err(Outcome::Ask(members)) if !members.is_empty() => Some(Action::AskPeers { members }),
        Ok(_) | Err(_) => None,
    }
}

/// Asks early when a silent lease is about to expire, so that no answer has to be waited for afterwards.
pub(super) fn ask_ahead(ctx: &Ctx<'_>) -> Option<Action> {
    let expires = ctx.local.lease.expires(ctx.settings.ttl);
    let from = expires - ASK_BEFORE_EXPIRY;
    let asked = ctx.local.peers.as_ref().is_some_and(|r| r.asked_at >= from);
    if ctx.now.boot < from || asked || ctx.local.asking.is_some() || ctx.settings.tags.nofailover {
        return None;
    }
    let stood = ctx.local.lease.stood();
    let unlocked = Unlocked { stood, positions_final: from, emptied: expires, gone: None };
    let members = voters(ctx, &unlocked);
    (!members.is_empty()).then_some(Action::AskPeers { members })
}

#[cfg(test)]
#[path = "race_tests.rs"]
mod tests;
