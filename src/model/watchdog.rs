//! What a member knows of its watchdog device, and the arithmetic of its timeout.
//!
//! The device resets the whole machine when it is not fed in time: the last fence, behind the demotion, the keeper and the
//! kernel's timers. It is armed before a promotion, fed with every renewal that is confirmed, and disarmed when nobody can
//! write any more.

use std::time::Duration;

use super::BootInstant;

/// The device as the member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watchdog {
    /// Open: the machine is reset this long after the evidence it was fed for last. `None`: closed.
    pub armed: Option<Duration>,
    /// It did not answer in time, and nothing was heard of it since.
    pub hung: bool,
    /// It may be armed although `armed` does not say so: by an earlier life of this program, or by an order that was given up.
    pub left_over: bool,
    /// The evidence for which it was fed last, or for which that was tried last.
    pub fed: Option<BootInstant>,
    /// When it was looked at last, without opening it.
    pub looked: Option<BootInstant>,
    /// What the last look found wrong.
    pub unusable: Option<String>,
    /// Why the last attempt to arm or to feed it failed, and when.
    pub failed: Option<(String, BootInstant)>,
}

impl Watchdog {
    /// What speaks against the device: a failure within the last `ttl`, or what the last look found.
    pub fn trouble(&self, now: BootInstant, ttl: Duration) -> Option<&str> {
        let failed = self.failed.as_ref().filter(|(_, at)| now < *at + ttl).map(|(why, _)| why.as_str());
        failed.or(self.unusable.as_deref())
    }
}

/// One order to feed the device, and to arm it first if it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The evidence that allows it: when the confirmed renewal was sent.
    pub evidence: BootInstant,
    /// The lease is not counted on beyond this moment: the device has reset the machine by then.
    pub until: BootInstant,
    /// The longest timeout: the ttl less the safety margin, or half of the ttl.
    pub most: Duration,
    /// A device that resets the machine earlier than this would do so between two renewals, or before a demotion.
    pub least: Duration,
    /// A device that waits longer than it is told is not good enough.
    pub required: bool,
}

impl Feed {
    /// The timeout in whole seconds for a feeding at `now`. `None`: below two seconds nothing is fed any more, the
    /// demotion is long under way.
    #[must_use]
    pub fn timeout(&self, now: BootInstant) -> Option<u32> {
        const LEAST: u64 = 2;
        let seconds = self.most.min(now.until(self.until)).as_secs();
        (seconds >= LEAST).then(|| u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// Does a device do that was told `wanted` seconds and waits `actual`? What is to be warned about.
    ///
    /// # Errors
    /// Why it must not be used.
    pub fn judge(&self, wanted: u32, actual: u32) -> Result<Option<String>, String> {
        if Duration::from_secs(u64::from(actual)) < self.least {
            let least = self.least.as_secs_f64();
            return Err(format!(
                "it resets after {actual} s, and {least:.0} s are needed to renew or to demote (loop_wait, at least 8 s)"
            ));
        }
        match actual > wanted {
            true if self.required => Err(format!(
                "it resets after {actual} s, and not after {wanted} s as safety_margin and ttl ask for: another member \
                 could lead before"
            )),
            true => Ok(Some(format!(
                "the watchdog resets after {actual} s, and not after {wanted} s as safety_margin and ttl ask for: \
                 another member may lead before"
            ))),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(required: bool) -> Feed {
        let evidence = BootInstant::from_secs_f64(100.0);
        let least = Duration::from_secs(10);
        Feed { evidence, until: evidence + Duration::from_secs(29), most: Duration::from_secs(25), least, required }
    }

    #[test]
    fn the_device_has_reset_the_machine_before_the_lease_ends() {
        let at = |seconds: f64| feed(false).timeout(feed(false).evidence + Duration::from_secs_f64(seconds));
        assert_eq!(at(0.0), Some(25));
        assert_eq!(at(4.0), Some(25));
        assert_eq!(at(4.1), Some(24));
        assert_eq!(at(27.0), Some(2));
        assert_eq!(at(27.1), None);
        assert_eq!(at(40.0), None);
        for tenths in 0..290 {
            let after = f64::from(tenths) / 10.0;
            assert!(at(after).is_none_or(|timeout| after + f64::from(timeout) <= 29.0), "{after}");
        }
    }

    #[test]
    fn a_device_that_does_not_do_as_it_is_told() {
        assert_eq!(feed(true).judge(25, 25), Ok(None));
        assert_eq!(feed(true).judge(25, 15), Ok(None));
        assert!(feed(false).judge(25, 60).is_ok_and(|w| w.is_some_and(|w| w.contains("after 60 s"))));
        assert!(feed(true).judge(25, 60).is_err_and(|why| why.contains("not after 25 s")));
        assert!(feed(false).judge(25, 9).is_err_and(|why| why.contains("10 s are needed")));
    }
}
