//! Answers to the orders that begin a server or make it a primary: what was begun, what failed, and what was never begun.

use super::super::input::{Answer, Fail, StartEnd};
use super::super::state::State;
use super::postgres;
use crate::model::{BootInstant, RewindState, StartRole, Upstream};

/// So many times in a row, in about half a minute, the keeper may say that it cannot now.
const NOT_NOW_MAX: u32 = 6;
/// So many promotions in a row may fail before the lock goes to somebody else for a ttl.
const PROMOTIONS_MAX: u32 = 3;

impl State {
    pub(super) fn start_answered(
        &mut self,
        role: StartRole,
        upstream: Upstream,
        custom: bool,
        answer: Result<Answer, Fail>,
    ) {
        let now = self.now.boot;
        self.start_known(&answer);
        match answer {
            Ok(Answer::Started(StartEnd::Started { pending, .. })) => {
                let how = match role {
                    StartRole::Primary => "as primary",
                    StartRole::Standby => "as a standby",
                };
                self.info(format!("starting Postgres {how}"));
                self.worked("start");
                postgres::started(&mut self.local, role, upstream, custom, now);
                self.local.quits_sync = None;
                self.local.postgres.pending_restart = !pending.is_empty();
                self.pending_restart = pending;
                self.probed_at = BootInstant::default();
                self.ended_already();
            }
            Ok(Answer::Started(StartEnd::Running(running, _))) => self.found_running(running, false),
            Ok(Answer::Started(StartEnd::NotPrepared(why))) | Err(Fail::Refused(why)) => {
                postgres::start_failed(&mut self.local, now);
                self.error(format!("could not start Postgres: {why}"));
            }
            Err(Fail::Interrupted) => {
                postgres::start_failed(&mut self.local, now);
                self.error("no answer in time to the order to start Postgres");
            }
            Err(Fail::NotNow(why)) => {
                // Not begun, so not failed: it says nothing about the data. What never can be begun helps nobody.
                self.failed("start");
                if self.failed_times("start") >= NOT_NOW_MAX {
                    postgres::start_failed(&mut self.local, now);
                }
                self.info(format!("not starting Postgres yet: {why}"));
            }
            Err(Fail::InUse(why)) => {
                // Somebody else's processes say nothing about this data, and no number of them makes a failure.
                self.failed("start");
                self.warn_once(format!("not starting Postgres yet: {why}"));
            }
            Err(Fail::Unreachable(why)) => self.error(format!("could not start Postgres: {why}")),
            Ok(_) | Err(Fail::TooLate) => {}
        }
    }

    pub(super) fn promote_answered(&mut self, sent: BootInstant, answer: Result<Answer, Fail>) {
        self.local.deadman.in_doubt &= matches!(answer, Err(Fail::Unreachable(_) | Fail::Interrupted));
        match answer {
            Ok(_) => {
                self.info("promoting Postgres");
                self.local.rewind = RewindState::Initial;
                self.local.postgres.following = None;
                self.failed_promotions = 0;
                self.worked("promote");
                self.worked("history");
            }
            Err(fail) => {
                self.local.postgres.promoting = None;
                self.promoted_to = None;
                if let Fail::Unreachable(why) = &fail {
                    self.unreachable(sent, why);
                }
                self.failed("promote");
                self.error(format!("could not promote Postgres: {}", fail.text()));
                if matches!(fail, Fail::NotNow(_)) && self.failed_times("promote") < NOT_NOW_MAX {
                    return;
                }
                self.failed_promotions += 1;
                if self.failed_promotions >= PROMOTIONS_MAX {
                    // A lock that is held and not used helps nobody.
                    self.failed_promotions = 0;
                    self.local.backoff_until = Some(self.now.boot + self.in_force.settings.ttl);
                }
            }
        }
    }
}
