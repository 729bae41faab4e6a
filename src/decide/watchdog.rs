//! The watchdog device: the last fence, which resets the machine.
//!
//! It is armed before a promotion and fed whenever the evidence for the lease is newer than that it was fed for. It is
//! disarmed when nobody can write any more: not when a stop is ordered, not when the lease is gone. Whoever hangs in between
//! is reset. In maintenance it is off.

use std::time::Duration;

use super::{Ctx, Hold, silence, standby};
use crate::model::timings;
use crate::model::{
    Action, BootInstant, Decision, Feed, Local, Maintenance, Settings, StoreLink, Timings, TooTight, WatchdogMode,
};
use crate::mutant::{self, Mutant};

/// Why a member whose watchdog is required must not lead. `None`: it may, or none is required.
pub(crate) fn failing(settings: &Settings, local: &Local, now: BootInstant) -> Option<String> {
    let needed = settings.watchdog == WatchdogMode::Required && settings.standby_of.is_none();
    if !needed || local.maintenance.is_on() || local.watchdog.armed.is_some() {
        return None;
    }
    if let Err(tight) = with_device(settings, settings.ttl) {
        return Some(tight.to_string());
    }
    if local.watchdog.looked.is_none() {
        return Some("the device was not looked at yet".to_owned());
    }
    local.watchdog.trouble(now, settings.ttl).map(str::to_owned)
}

/// The same for this moment.
pub(super) fn bars(ctx: &Ctx<'_>) -> Option<String> {
    failing(ctx.settings, ctx.local, ctx.now.boot)
}

/// The deadlines as they are once a device is armed that does as it is told.
fn with_device(settings: &Settings, ttl: Duration) -> Result<Timings, TooTight> {
    Timings::new(settings, ttl, Some(timings::device(settings, ttl)))
}

/// A standby with the lock waits until the device is armed, or known not to be.
pub(super) fn before_promoting(ctx: &Ctx<'_>) -> Option<Decision> {
    let watchdog = &ctx.local.watchdog;
    let required = ctx.settings.watchdog == WatchdogMode::Required && !ctx.local.maintenance.is_on();
    let Some(feed) = feed(ctx) else {
        let unarmed = required && watchdog.armed.is_none();
        return unarmed
            .then(|| ctx.wait("waiting for the next renewal: the watchdog is armed with it, before promoting"));
    };
    if watchdog.armed.is_some() || watchdog.fed == Some(feed.evidence) && !required {
        return None;
    }
    Some(ctx.wait("arming the watchdog before promoting").wake_by(ctx.now.boot + super::RETRY_PAUSE))
}

/// What the device is to be fed with, if it is to be fed at all: whoever holds the lock with a living Postgres, outside of
/// maintenance, in a cluster that follows no other one.
fn feed(ctx: &Ctx<'_>) -> Option<Feed> {
    let Hold::Leader(own) = &ctx.hold else { return None };
    let on = ctx.settings.watchdog != WatchdogMode::Off && ctx.local.maintenance == Maintenance::Off;
    if !on || standby::is_one(ctx.settings) || !ctx.local.postgres.alive {
        return None;
    }
    let timings = with_device(ctx.settings, own.ttl).ok()?;
    let evidence = own.runs_from();
    // A closed device that is armed late would move the demotion into the past.
    if ctx.local.watchdog.armed.is_none() && ctx.now.boot >= evidence + timings.demote {
        return None;
    }
    Some(Feed {
        evidence,
        until: evidence + timings.end,
        most: timings.device.unwrap_or(own.ttl),
        least: ctx.settings.loop_wait,
        required: ctx.settings.watchdog == WatchdogMode::Required,
    })
}

/// Feeds it when there is newer evidence, and disarms it when it is needed no more.
pub(super) fn upkeep(ctx: &Ctx<'_>, d: Decision) -> Decision {
    let watchdog = &ctx.local.watchdog;
    let d = match with_device(ctx.settings, ctx.settings.ttl) {
        Err(tight) if ctx.settings.watchdog == WatchdogMode::Automatic => {
            d.warn(format!("running without the watchdog: {tight}"))
        }
        Ok(_) | Err(_) => d,
    };
    if let Some(feed) = feed(ctx) {
        return d.then_if(watchdog.fed != Some(feed.evidence), || Action::FeedWatchdog(feed));
    }
    let off = ctx.settings.watchdog == WatchdogMode::Off || ctx.local.maintenance.is_on();
    let dead = silence::judge(ctx.local, ctx.now.boot) == silence::Silence::Proof;
    let writes = ctx.local.postgres.alive && (ctx.writer() || ctx.local.deadman.ordered) && !dead;
    let lost = matches!(ctx.hold, Hold::Lapsed(_)) && ctx.local.postgres.alive;
    let needed = (writes || lost) && !off && !mutant::is(Mutant::DisarmsTooEarly);
    // What an earlier life has left is looked after once it is known what runs here.
    let left_over = watchdog.left_over
        && ctx.settings.watchdog != WatchdogMode::Off
        && ctx.local.store != StoreLink::NotRead
        && (!ctx.keeper_lost() || dead);
    d.then_if((watchdog.armed.is_some() || left_over) && !needed, || Action::DisarmWatchdog)
}
