//! Two kinds of time, two types. Deadlines are [`BootInstant`]s: CLOCK_BOOTTIME goes on while the machine sleeps and
//! nobody can set it. [`WallTime`] is for people and for `scheduled_at`, and no lease is ever judged by it (design §4).

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
}

/// The one moment a decision is taken at. Clocks are read in `agent`, decisions get the readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub boot: BootInstant,
    /// For `scheduled_at` and for printing.
    pub wall: WallTime,
}
