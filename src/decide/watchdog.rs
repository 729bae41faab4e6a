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
    time_scale,
};
use crate::mutant::{self, Mutant};

/// With less there is no time to demote before the device fires.
const LEAST: Duration = Duration::from_secs(8);

/// Why a member whose watchdog is required must not race for the lock. `None`: it may, or none is required.
pub(crate) fn failing(settings: &Settings, local: &Local, now: BootInstant) -> Option<String> {
    let watchdog = &local.watchdog;
    if !required(settings, local) || watchdog.armed.is_some() {
        return None;
    }
    if let Err(tight) = with_device(settings, settings.ttl) {
        return Some(tight.to_string());
    }
    if watchdog.looked.is_none() {
        return Some("the device was not looked at yet".to_owned());
    }
    let silent = watchdog.hung.then_some("the device does not answer");
    silent.or_else(|| watchdog.trouble(now, settings.ttl)).map(str::to_owned)
}

fn required(settings: &Settings, local: &Local) -> bool {
    settings.watchdog == WatchdogMode::Required && settings.standby_of.is_none() && !local.maintenance.is_on()
}

/// The same for this moment.
pub(super) fn bars(ctx: &Ctx<'_>) -> Option<String> {
    failing(ctx.settings, ctx.local, ctx.now.boot)
}

/// Why whoever holds the lock must not lead: an attempt to arm or to feed the required device has failed. What a look has found,
/// or not found yet, stops nobody.
pub(super) fn lost(ctx: &Ctx<'_>) -> Option<String> {
    let watchdog = &ctx.local.watchdog;
    if !required(ctx.settings, ctx.local) {
        return None;
    }
    if let Err(tight) = with_device(ctx.settings, ctx.settings.ttl) {
        return Some(tight.to_string());
    }
    if watchdog.hung && watchdog.armed.is_none() {
        return Some("the device does not answer".to_owned());
    }
    let recent = |(_, at): &&(String, BootInstant)| ctx.now.boot < *at + ctx.settings.ttl;
    watchdog.failed.as_ref().filter(recent).map(|(why, _)| why.clone())
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
    let tried = watchdog.fed == Some(feed.evidence) || watchdog.hung;
    if watchdog.armed.is_some() || tried && !required {
        return None;
    }
    Some(ctx.wait("arming the watchdog before promoting").wake_by(ctx.now.boot + super::RETRY_PAUSE))
}

/// What the device is to be fed with, if it is to be fed at all: by whoever holds the lock, outside of maintenance, in a cluster
/// that follows no other one. It is armed over a living Postgres, and kept while one is started again.
fn feed(ctx: &Ctx<'_>) -> Option<Feed> {
    let Hold::Leader(own) = &ctx.hold else { return None };
    let on = ctx.settings.watchdog != WatchdogMode::Off && ctx.local.maintenance == Maintenance::Off;
    let armed = ctx.local.watchdog.armed;
    let idle = !ctx.local.postgres.alive && armed.is_none();
    if !on || idle || standby::is_one(ctx.settings) && !ctx.writer() {
        return None;
    }
    let required = ctx.settings.watchdog == WatchdogMode::Required;
    let evidence = own.runs_from();
    let timings = match with_device(ctx.settings, own.ttl) {
        Ok(timings) => timings,
        // It goes on being fed until Postgres is stopped.
        Err(_) if required && armed.is_some() => ctx.timings,
        Err(_) => return None,
    };
    // A closed device that is armed late would move the demotion into the past.
    if armed.is_none() && ctx.now.boot >= evidence + timings.demote {
        return None;
    }
    Some(Feed {
        evidence,
        until: evidence + timings.end,
        most: timings.device.or(armed).unwrap_or(own.ttl),
        least: ctx.settings.loop_wait.max(LEAST.mul_f64(time_scale())),
        required,
    })
}

/// Feeds it when there is newer evidence, and disarms it when it is needed no more.
pub(super) fn upkeep(ctx: &Ctx<'_>, d: Decision) -> Decision {
    let watchdog = &ctx.local.watchdog;
    let tight = match with_device(ctx.settings, ctx.settings.ttl) {
        Err(tight) if ctx.settings.watchdog == WatchdogMode::Automatic => Some(tight),
        Ok(_) | Err(_) => None,
    };
    let d = tight.iter().fold(d, |d, tight| d.warn(format!("running without the watchdog: {tight}")));
    // Whoever gives the lock away, or ends, starts nothing again.
    let ends = |a: &Action| matches!(a, Action::Exit { .. } | Action::ReleaseLease { .. });
    let over = ctx.local.handover.is_some() || d.actions.iter().any(ends);
    if let Some(feed) = feed(ctx).filter(|_| ctx.local.postgres.alive || !over) {
        return d.then_if(watchdog.fed != Some(feed.evidence), || Action::FeedWatchdog(feed));
    }
    let off = ctx.settings.watchdog == WatchdogMode::Off || ctx.local.maintenance.is_on() || tight.is_some();
    let dead = silence::judge(ctx.local, ctx.now.boot) == silence::Silence::Proof;
    let writes = ctx.local.postgres.alive && (ctx.writer() || ctx.local.deadman.ordered) && !dead;
    let needed = writes && !off && !mutant::is(Mutant::DisarmsTooEarly);
    // What an earlier life has left is looked after once it is known what runs here.
    let left_over = watchdog.left_over
        && ctx.settings.watchdog != WatchdogMode::Off
        && ctx.local.store != StoreLink::NotRead
        && (!ctx.keeper_lost() || dead);
    d.then_if((watchdog.armed.is_some() || left_over) && !needed, || Action::DisarmWatchdog)
}
