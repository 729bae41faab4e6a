//! Two kinds of time, two types. Deadlines are [`BootInstant`]s: CLOCK_BOOTTIME goes on while the machine sleeps and
//! nobody can set it. [`WallTime`] is for people and for `scheduled_at`, and no lease is ever judged by it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A reading of CLOCK_BOOTTIME, in nanoseconds since the machine started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootInstant(u64);

impl BootInstant {
    /// From nanoseconds since boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
    /// Nanoseconds since boot; the form the keeper's protocol carries.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
    /// From seconds since boot; for tests and scenarios.
    pub fn from_secs_f64(secs: f64) -> Self {
        Self(Duration::from_secs_f64(secs).as_nanos() as u64)
    }
    /// Seconds since boot.
    pub fn as_secs_f64(self) -> f64 {
        Duration::from_nanos(self.0).as_secs_f64()
    }
    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: BootInstant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
    /// Time from `self` until `later`; zero when it has passed.
    pub fn until(self, later: BootInstant) -> Duration {
        later.since(self)
    }
}

/// The pause after the `count`-th failure in a row: `first`, doubling, never more than `longest`.
pub fn backoff(count: u32, first: Duration, longest: Duration) -> Duration {
    let doublings = count.saturating_sub(1).min(20);
    first.saturating_mul(1 << doublings).min(longest)
}

impl Add<Duration> for BootInstant {
    type Output = BootInstant;
    fn add(self, d: Duration) -> BootInstant {
        BootInstant(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for BootInstant {
    type Output = BootInstant;
    fn sub(self, d: Duration) -> BootInstant {
        BootInstant(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for BootInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{:.3}s", self.as_secs_f64())
    }
}

/// Wall-clock time in microseconds since 1970-01-01T00:00:00Z. Never used for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(pub i64);

impl WallTime {
    /// Microseconds from `self` until `later`, negative when it has passed.
    pub fn micros_until(self, later: WallTime) -> i64 {
        later.0 - self.0
    }
    /// ISO 8601 in UTC with microseconds, as a lease record carries it: `2026-01-31T09:15:02.000001+00:00`.
    pub fn iso(self) -> String {
        let (day, in_day) = (self.0.div_euclid(86_400_000_000), self.0.rem_euclid(86_400_000_000));
        let (secs, micros) = (in_day / 1_000_000, in_day % 1_000_000);
        let (year, month, day) = civil(day);
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}+00:00",
            secs / 3600,
            secs / 60 % 60,
            secs % 60
        )
    }
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar. Years are counted from March, so
/// that the leap day is the last of its year; 400 years have 146 097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The one moment a decision is taken at. Clocks are read in `driver`, decisions get the readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub boot: BootInstant,
    /// For `scheduled_at` and for printing.
    pub wall: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_time_prints_as_a_lease_record_carries_it() {
        assert_eq!(WallTime(0).iso(), "1970-01-01T00:00:00.000000+00:00");
        assert_eq!(WallTime(951_782_400_000_001).iso(), "2000-02-29T00:00:00.000001+00:00");
        assert_eq!(WallTime(1_769_850_902_123_456).iso(), "2026-01-31T09:15:02.123456+00:00");
        assert_eq!(WallTime(-1).iso(), "1969-12-31T23:59:59.999999+00:00");
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pause = |count| backoff(count, Duration::from_millis(500), Duration::from_secs(10)).as_millis();
        assert_eq!([0, 1, 2, 3, 6, 4_000_000_000].map(pause), [500, 500, 1000, 2000, 10_000, 10_000]);
    }
}
