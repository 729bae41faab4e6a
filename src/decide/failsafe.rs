//! Failsafe mode: a running primary whose lock could not be confirmed asks everybody who could race for it. If each of them
//! promises not to, it goes on for as long as after a confirmed renewal. That lets a primary go on; it starts none and promotes
//! none.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Ctx, Hold, sync};
use crate::model::{Action, BootInstant, Decision, LeaseVerdict, Maintenance, OwnLease, Promise, Stood};

/// After a round that came to nothing: there is time for another before the demotion.
const AGAIN: Duration = Duration::from_secs(1);

/// The next round, when it is due.
pub(super) fn ask(ctx: &Ctx<'_>, d: Decision) -> Decision {
    let Hold::Leader(own) = &ctx.hold else { return d };
    let pg = &ctx.local.postgres;
    let leads = pg.probe.as_ref().is_some_and(|p| !p.in_recovery) && pg.alive && pg.stopping.is_none();
    let may = ctx.settings.failsafe && leads && ctx.local.handover.is_none();
    if !may || ctx.local.maintenance != Maintenance::Off || ctx.local.failsafe.whom(&ctx.local.me).is_none() {
        return d;
    }
    let due = due(ctx, own);
    if ctx.now.boot < due {
        return d.wake_by(due);
    }
    d.then_if(ctx.local.failsafe.asking.is_none(), || Action::AskFailsafe)
}

/// F after the last renewal, N after the last round in which everybody promised.
fn due(ctx: &Ctx<'_>, own: &OwnLease) -> BootInstant {
    let due = match own.prolonged.filter(|at| *at > own.evidence) {
        Some(at) => at + ctx.timings.renew,
        None => own.evidence + ctx.timings.failsafe,
    };
    let again = ctx.local.failsafe.failed.filter(|at| *at > own.runs_from()).map(|at| at + AGAIN);
    again.map_or(due, |again| due.max(again))
}

/// I lead without the store: a primary that is stopped now, for whatever, is not started before the store is back.
pub(super) fn goes_on(ctx: &Ctx<'_>) -> bool {
    ctx.local.own.as_ref().is_some_and(|own| own.prolonged.is_some_and(|at| at > own.evidence))
}

/// My promise not to race binds, unless the lock was given up by its holder, or that is proven dead.
pub(super) fn promise<'a>(ctx: &'a Ctx<'_>, stood: &Stood) -> Option<&'a Promise> {
    let free = ctx.verdict == LeaseVerdict::Released || matches!(stood, Stood::ProvenDead(_));
    ctx.local.promise.as_ref().filter(|p| ctx.now.boot < p.until && !free)
}

/// Those that the holder that is silent has named: it may go on with them. Whoever is not among them was not asked. Whether the
/// mode is on by now, and whether its lock is still there to be seen, does not matter: the holder, and those it asks, may not
/// have heard of a change.
pub(super) fn listed<'a>(ctx: &Ctx<'a>) -> Option<&'a BTreeMap<String, String>> {
    let silent = matches!(ctx.verdict, LeaseVerdict::Expired(_) | LeaseVerdict::Vacant);
    ctx.local.lease.listed.as_ref().filter(|_| silent)
}

/// I am not among those that the holder that is silent has named. A person may know better: one who asks me since the lock is
/// over, not before.
pub(super) fn unlisted(ctx: &Ctx<'_>) -> bool {
    let over = ctx.local.lease.expires(ctx.settings.ttl);
    let asked = ctx.local.request_seen.as_ref().is_some_and(|(_, at)| *at > over);
    let vouched = asked && sync::waived(ctx.cluster) == Some(&ctx.local.me);
    !vouched && listed(ctx).is_some_and(|map| !map.contains_key(ctx.local.me.as_str()))
}
