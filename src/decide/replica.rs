//! Following.

use super::{Ctx, failsafe, race, rewind, standby, sync};
use crate::model::{Action, Decision, LeaseVerdict, RewindState, StopMode, Upstream};

/// Postgres is alive as a standby (the fence has seen to that) and the lock is somebody else's, or silent.
pub(super) fn follow(ctx: &Ctx<'_>) -> Decision {
    let pg = &ctx.local.postgres;
    if pg.stopping.is_some() {
        return ctx.wait("waiting for Postgres to stop");
    }
    let Some((leader, member)) = ctx.leader() else {
        return idle(ctx, nobody(ctx));
    };
    if let Some(why) = &pg.login_refused {
        let me = &ctx.local.me;
        return ctx.wait(format!("I am ({me}), following ({leader}); Postgres is up but refuses my login: {why}"));
    }
    if pg.probe.is_none() {
        return ctx.wait(format!("PostgreSQL is still starting up; I am ({}), following ({leader})", ctx.local.me));
    }
    if let Some(d) = blocked(ctx) {
        return d;
    }
    if let Some(d) = rewind::of_running(ctx, leader, member) {
        return d;
    }
    let wanted = ctx.upstream();
    if wanted != Upstream::Nobody && pg.following.as_ref() != Some(&wanted) {
        let text = match &wanted {
            Upstream::Member { name, .. } => format!("following {name}"),
            Upstream::Remote { conn_url, .. } => format!("following {conn_url}"),
            Upstream::Nobody => "following nobody".to_owned(),
        };
        return ctx
            .wait(text)
            .then(Action::Follow { upstream: wanted, names: ctx.settings.synchronous.at_first() })
            .then(Action::SyncSlots);
    }
    let kind = if standby::is_one(ctx.settings) { "standby leader" } else { "leader" };
    idle(ctx, format!("no action. I am ({}), a secondary, and following a {kind} ({leader})", ctx.local.me))
}

/// PostgreSQL waits, with its replay paused, for settings as high as those of the server whose WAL it has. A start takes them.
pub(super) fn blocked(ctx: &Ctx<'_>) -> Option<Decision> {
    let pg = &ctx.local.postgres;
    let why = pg.probe.as_ref()?.blocked.as_ref().filter(|_| pg.stopping.is_none())?;
    let settled = pg.started_as.is_some() && !ctx.local.maintenance.is_on();
    settled.then(|| {
        ctx.wait(format!("replay is paused by PostgreSQL ({why}): starting it again with the settings of its leader"))
            .then(Action::StopPostgres { mode: StopMode::Fast, why: "its replay waits for higher settings" })
    })
}

/// A standby with nothing to do: slots, and the early question before a silent lease ends.
pub(super) fn idle(ctx: &Ctx<'_>, mut reason: String) -> Decision {
    if ctx.local.lease.silent_in_maintenance(ctx.now.boot, ctx.settings.ttl) && !ctx.local.maintenance.is_on() {
        let me = &ctx.local.me;
        reason.push_str(&format!(
            "; its holder was in maintenance mode when it was last heard of and may write on, so nobody takes the lock for \
             silence: once it is dead for certain, `patronictl failover --candidate {me} --force`"
        ));
    }
    let ahead = if ctx.leader().is_some() { race::ask_ahead(ctx) } else { None };
    let done = matches!(ctx.local.rewind, RewindState::Success(_) | RewindState::NotNeeded(_));
    let streaming = ctx.local.postgres.probe.as_ref().is_some_and(|p| p.streaming);
    ctx.wait(reason)
        .then_if(done && streaming, || Action::SetRewind(RewindState::Initial))
        .then(Action::SyncSlots)
        .then_all(ahead)
        .then_all(too_early(ctx))
}

/// A request to lead in the place of a holder that may write on (in maintenance, or with promises that I was not asked for) that
/// was made while it was heard of: it does not say that the holder is dead, and repeating it would change nothing as long as it
/// stands.
fn too_early(ctx: &Ctx<'_>) -> Option<Action> {
    let silent = ctx.local.lease.silent_in_maintenance(ctx.now.boot, ctx.settings.ttl);
    let may_write = silent && !ctx.given_for_dead() || failsafe::unlisted(ctx);
    let request = ctx.cluster.request().filter(|_| may_write && !ctx.local.store_write)?;
    (sync::waived(ctx.cluster) == Some(&ctx.local.me)).then(|| Action::ClearRequest {
        expect: request.version.clone(),
        why: "it was made while the holder of the lock was heard of; repeat it once that is dead for certain"
            .to_owned(),
    })
}

fn nobody(ctx: &Ctx<'_>) -> String {
    match &ctx.verdict {
        LeaseVerdict::Held(who) if *who == ctx.local.me && ctx.local.lease_write.is_some() => {
            "the lock names me: waiting for the answer that says so".to_owned()
        }
        LeaseVerdict::Held(who) if *who == ctx.local.me => {
            "the lock names me but is not mine (an earlier life of this pod): waiting for it to expire".to_owned()
        }
        LeaseVerdict::Silence { .. } => {
            "no leader known: waiting a full ttl before taking that for an empty throne".to_owned()
        }
        LeaseVerdict::Absent => {
            "no leader object: it is made anew, and taken if it stands untouched for a ttl".to_owned()
        }
        LeaseVerdict::Held(_) | LeaseVerdict::Released | LeaseVerdict::Expired(_) | LeaseVerdict::Vacant => {
            format!("no action. I am ({})", ctx.local.me)
        }
    }
}
