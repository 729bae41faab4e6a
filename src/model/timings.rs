//! The deadlines that follow from ttl, loop_wait, retry_timeout and the watchdog.
//!
//! ```text
//! evidence ──N──► renewals …  F failsafe  D demote  S keeper stops  K keeper kills  (W device)  E what we count on  ttl
//! ```
//! All of them count from the same evidence; each is earlier than the next, whatever the settings.

use std::fmt;
use std::time::Duration;

use super::{Settings, WatchdogMode};
use crate::mutant::{self, Mutant};

/// The computed deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// T: the ttl.
    pub ttl: Duration,
    /// N: a renewal is sent this long after the last.
    pub renew: Duration,
    /// F: the first failsafe round.
    pub failsafe: Duration,
    /// D: the sidecar demotes itself.
    pub demote: Duration,
    /// S: the keeper stops Postgres.
    pub stop: Duration,
    /// K: the keeper has killed everything.
    pub kill: Duration,
    /// W: the device fires, when one is armed.
    pub device: Option<Duration>,
    /// E: the end of what we count on.
    pub end: Duration,
}

/// The watchdog margin leaves no time to act (D < 3 s).
#[derive(Clone, Debug, PartialEq)]
pub struct TooTight {
    /// The demotion deadline that came out, in seconds.
    pub demote_s: f64,
    /// The ttl it was computed from.
    pub ttl: Duration,
}

impl fmt::Display for TooTight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "watchdog.safety_margin eats the lease: demotion would have to begin {:.1} s after a renewal, but needs at \
             least 3 s (ttl is {} s); lower safety_margin or raise ttl",
            self.demote_s,
            self.ttl.as_secs_f64()
        )
    }
}

const LEAST_DEMOTE_S: f64 = 3.0;

/// W: how long a device may wait to be fed under a lease of `ttl`; zero when the margin eats all of it.
pub fn device(settings: &Settings, ttl: Duration) -> Duration {
    match settings.watchdog_margin {
        Some(margin) => ttl.saturating_sub(margin),
        None => Duration::from_secs(ttl.as_secs() / 2),
    }
}

impl Timings {
    /// For a lease of `ttl`. `armed`: a device is armed now, and resets the machine this long after it was fed.
    ///
    /// # Errors
    /// [`TooTight`] when D < 3 s; without a device that cannot happen for legal settings (ttl ≥ 20 s).
    pub fn new(settings: &Settings, ttl: Duration, armed: Option<Duration>) -> Result<Timings, TooTight> {
        let scale = time_scale();
        let t = ttl.as_secs_f64();
        let (l, r) = (settings.loop_wait.as_secs_f64(), settings.retry_timeout.as_secs_f64());
        let w = armed
            .filter(|_| settings.watchdog != WatchdogMode::Off)
            .map_or(f64::INFINITY, |resets| device(settings, ttl).min(resets).as_secs_f64());
        let end = if mutant::is(Mutant::NoMarginForClocks) { t } else { t - scale };
        let last = if mutant::is(Mutant::FencesAfterTheLease) { end + 8.0 } else { end.min(w) };
        let kill = last - scale;
        let stop = kill - 1.5 * scale;
        let demote = stop - 2.0 * scale;
        if demote < LEAST_DEMOTE_S * scale {
            return Err(TooTight { demote_s: demote, ttl });
        }
        let renew = l.min((demote - r).max(demote / 3.0));
        let failsafe = (renew + 0.5 * scale).max((l + r).min(demote - 4.0 * scale));
        let secs = Duration::from_secs_f64;
        Ok(Timings {
            ttl,
            renew: secs(renew),
            failsafe: secs(failsafe),
            demote: secs(demote),
            stop: secs(stop),
            kill: secs(kill),
            device: w.is_finite().then(|| secs(w)),
            end: secs(end),
        })
    }
}

/// Seconds per second: 1, or 0.2 in builds with the feature `test-time-scale`, where the whole configuration (ttl,
/// loop_wait, retry_timeout) shrinks by the same factor.
pub fn time_scale() -> f64 {
    if cfg!(feature = "test-time-scale") { 0.2 } else { 1.0 }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |d: Duration| format!("{:.1}", d.as_secs_f64());
        writeln!(f, "seconds after the confirmed renewal (counted from its sending)")?;
        writeln!(f, "  N  renewals are sent every       {}", s(self.renew))?;
        writeln!(f, "  F  first failsafe round          {}", s(self.failsafe))?;
        writeln!(f, "  D  the sidecar demotes itself    {}", s(self.demote))?;
        writeln!(f, "  S  the keeper stops Postgres     {}", s(self.stop))?;
        writeln!(f, "  K  the keeper has killed it      {}", s(self.kill))?;
        writeln!(f, "  W  the watchdog device fires     {}", self.device.map_or("no device".to_owned(), s))?;
        writeln!(f, "  E  the end of what is counted on {}", s(self.end))?;
        write!(f, "  T  the lease ends for others     {}", s(self.ttl))
    }
}

#[cfg(all(test, not(feature = "test-time-scale")))]
mod tests {
    use super::*;

    fn row(t: u64, l: u64, r: u64, margin: Option<Option<u64>>) -> [f64; 6] {
        let settings = Settings {
            ttl: Duration::from_secs(t),
            loop_wait: Duration::from_secs(l),
            retry_timeout: Duration::from_secs(r),
            watchdog: WatchdogMode::Automatic,
            watchdog_margin: margin.flatten().map(Duration::from_secs),
            ..Settings::default()
        };
        let x = Timings::new(&settings, settings.ttl, margin.map(|_| device(&settings, settings.ttl)))
            .expect("the settings of the test are legal");
        [x.renew, x.failsafe, x.demote, x.stop, x.kill, x.device.unwrap_or_default()].map(|d| d.as_secs_f64())
    }

    #[test]
    fn the_rows_of_the_design_come_out() {
        assert_eq!(row(30, 10, 10, None), [10.0, 20.0, 24.5, 26.5, 28.0, 0.0]);
        assert_eq!(row(30, 10, 10, Some(Some(5)))[1..], [16.5, 20.5, 22.5, 24.0, 25.0]);
        assert_eq!(row(30, 10, 10, Some(None)), [3.5, 6.5, 10.5, 12.5, 14.0, 15.0]);
        assert_eq!(row(20, 1, 3, None), [1.0, 4.0, 14.5, 16.5, 18.0, 0.0]);
    }

    #[test]
    fn the_fences_keep_their_order_for_every_legal_setting() {
        for t in 20..=120 {
            for r in 3..=(t - 1) / 2 {
                for l in [1, (t - 2 * r) / 2, t - 2 * r] {
                    if l < 1 || l + 2 * r > t {
                        continue;
                    }
                    let [n, f, d, s, k, _] = row(t, l, r, None);
                    assert!(
                        n > 0.0 && n < f && f < d && d < s && s < k && k < t as f64,
                        "{t}/{l}/{r}: {n} {f} {d} {s} {k}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_margin_that_eats_the_lease_is_refused_in_words() {
        let settings = Settings {
            watchdog: WatchdogMode::Required,
            watchdog_margin: Some(Duration::from_secs(26)),
            ..Settings::default()
        };
        let err = Timings::new(&settings, settings.ttl, Some(device(&settings, settings.ttl))).unwrap_err();
        assert!(err.to_string().contains("safety_margin"), "{err}");
    }
}
