//! `primary_race_backoff`: a lock that is free because nobody was heard of is not raced for while WAL of its holder still comes. The
//! holder may be alive, and a program that is not ours may not stop its Postgres in time.
//!
//! Off for whatever ends the doubt (a lock that was given up, a holder that is proven dead, one with a mark of ours, whose keeper
//! has stopped its Postgres), in a standby cluster, where nobody writes, and for a member that a person names.

use super::{Ctx, Unlocked, standby};
use crate::model::{BootInstant, LeaseVerdict, Stood};

/// Why the race is put off, and until when at the latest.
pub(super) fn of(ctx: &Ctx<'_>, unlocked: &Unlocked) -> Option<(String, BootInstant)> {
    let most = ctx.settings.primary_race_backoff;
    let silence = ctx.verdict != LeaseVerdict::Released && !matches!(unlocked.stood, Stood::ProvenDead(_));
    let fenced = ctx.cluster.leader.as_ref().is_some_and(|l| l.valid_holder().is_some());
    if most.is_zero() || !silence || fenced || standby::is_one(ctx.settings) {
        return None;
    }
    let now = ctx.now.boot;
    let (until, first) = (unlocked.emptied + most, unlocked.emptied + ctx.settings.loop_wait.min(most));
    let moves = ctx.local.postgres.grew.is_some_and(|at| at + ctx.settings.loop_wait > now);
    let seconds = |end: BootInstant| now.until(end).as_secs_f64().ceil();
    if moves && now < until {
        let (me, left) = (&ctx.local.me, seconds(until));
        let why = format!("My ({me}) wal position moved since last heart beat loop, {left} seconds until leader race");
        return Some((why, until));
    }
    let why = format!("primary_race_backoff: whether WAL still comes shows within {} seconds", seconds(first));
    (now < first).then_some((why, first))
}
