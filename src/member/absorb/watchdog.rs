//! What becomes of the watchdog device.

use crate::member::effect::Effect;
use crate::member::flights::{About, Lane};
use crate::member::input::{Answer, Fail};
use crate::member::state::State;
use crate::model::{BootInstant, WatchdogMode};

impl State {
    /// A required device is looked at every `loop_wait` while it is closed: the others must know before they race.
    pub(super) fn due_watchdog(&mut self) {
        let settings = &self.in_force.settings;
        let required = settings.watchdog == WatchdogMode::Required && self.local.watchdog.armed.is_none();
        let rested = self.local.watchdog.looked.is_none_or(|at| self.now.boot >= at + settings.loop_wait);
        if required && rested && !self.flights.busy(Lane::Watchdog) {
            self.send(Effect::LookAtWatchdog, About::LookAtWatchdog);
        }
    }

    pub(super) fn watchdog_looked(&mut self, answer: Result<Answer, Fail>) {
        self.local.watchdog.looked = Some(self.now.boot);
        self.local.watchdog.hung = matches!(answer, Err(Fail::Interrupted));
        let found = answer.err().map(|fail| fail.text().to_owned());
        if let Some(why) = found.as_ref().filter(|why| self.local.watchdog.unusable.as_ref() != Some(*why)) {
            self.warn(format!("the watchdog is required and cannot be used: {why}; this member takes no lock"));
        }
        if found.is_none() && self.local.watchdog.unusable.is_some() {
            self.info("the watchdog can be used again");
        }
        self.local.watchdog.unusable = found;
    }

    pub(super) fn watchdog_fed(&mut self, evidence: BootInstant, answer: Result<Answer, Fail>) {
        let now = self.now.boot;
        let watchdog = &mut self.local.watchdog;
        watchdog.fed = Some(evidence);
        watchdog.looked = Some(now);
        watchdog.hung = matches!(answer, Err(Fail::Interrupted));
        match answer {
            Ok(Answer::Fed(fed)) => {
                if fed.resets_after.is_some() {
                    watchdog.armed = fed.resets_after;
                    watchdog.left_over = false;
                    (watchdog.failed, watchdog.unusable) = (None, None);
                }
                if let (Some(device), Some(resets)) = (fed.armed, fed.resets_after) {
                    let slack = resets.saturating_sub(self.in_force.settings.loop_wait);
                    self.info(format!(
                        "{device} activated with {} second timeout, timing slack {} seconds",
                        resets.as_secs(),
                        slack.as_secs()
                    ));
                }
                if let Some(warning) = fed.warning {
                    self.warn_once(warning);
                }
            }
            Ok(_) | Err(Fail::TooLate) => {}
            // One that counts goes on counting: it was fed, or it resets the machine.
            Err(Fail::Interrupted) => {
                watchdog.left_over = true;
                self.warn("the watchdog does not answer".to_owned());
            }
            Err(fail) => {
                let why = fail.text().to_owned();
                let known = watchdog.failed.as_ref().is_some_and(|(was, _)| *was == why);
                let what = if watchdog.armed.is_some() { "fed" } else { "activated" };
                watchdog.failed = Some((why.clone(), now));
                watchdog.left_over = true;
                if !known {
                    self.warn(format!("Watchdog could not be {what}: {why}"));
                }
            }
        }
    }

    pub(super) fn watchdog_disarmed(&mut self, answer: Result<Answer, Fail>) {
        let watchdog = &mut self.local.watchdog;
        watchdog.hung = matches!(answer, Err(Fail::Interrupted));
        (watchdog.armed, watchdog.fed, watchdog.left_over) = (None, None, answer.is_err());
        match answer {
            Ok(Answer::Disarmed { warning: Some(warning), .. }) => self.warn(warning),
            Ok(Answer::Disarmed { armed: true, warning: None }) => self.info("the watchdog is disarmed"),
            Ok(_) => {}
            Err(fail) => {
                self.failed("disarm");
                self.warn_once(format!("the watchdog could not be disarmed: {}", fail.text()));
                return;
            }
        }
        self.worked("disarm");
    }
}
