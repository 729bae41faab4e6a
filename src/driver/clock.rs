//! The only place that reads clocks: CLOCK_BOOTTIME for deadlines, wall time for printing and `scheduled_at`.
//!
//! Waiting for a [`BootInstant`] goes through a timerfd on CLOCK_BOOTTIME: a wait that ends while the machine sleeps ends
//! right after it wakes, which tokio's own timer (CLOCK_MONOTONIC) would not do.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

use crate::model::{BootInstant, Now, WallTime};

const NANOS: u64 = 1_000_000_000;

/// CLOCK_BOOTTIME.
pub fn boot() -> BootInstant {
    let t = rustix::time::clock_gettime(ClockId::Boottime);
    BootInstant::from_nanos(t.tv_sec.unsigned_abs() * NANOS + t.tv_nsec.unsigned_abs())
}

/// Wall time in microseconds since 1970.
pub fn wall() -> WallTime {
    let t = rustix::time::clock_gettime(ClockId::Realtime);
    WallTime(t.tv_sec * 1_000_000 + t.tv_nsec / 1_000)
}

/// Both clocks.
pub fn now() -> Now {
    Now { boot: boot(), wall: wall() }
}

/// The time of a file as ISO 8601 with offset, local time, for people.
pub fn iso(at: std::time::SystemTime) -> String {
    let Ok(time) = jiff::Timestamp::try_from(at) else { return String::new() };
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S%.6f%:z").to_string()
}

/// A timer for one deadline at a time.
pub struct BootTimer {
    fd: AsyncFd<OwnedFd>,
}

impl BootTimer {
    /// Opens the timer, disarmed.
    ///
    /// # Errors
    /// When the kernel refuses a timerfd (out of file descriptors).
    pub fn new() -> io::Result<BootTimer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?;
        // `new` is deprecated in favour of an unsafe constructor, because a caller might swap the descriptor inside. The
        // field is private and nothing here reaches for the descriptor mutably, so what `register` asks for holds.
        #[allow(deprecated)]
        let fd = AsyncFd::new(fd)?;
        Ok(BootTimer { fd })
    }

    /// Waits until `deadline`. Cancel-safe: every call arms the timer anew.
    ///
    /// # Errors
    /// When the kernel refuses the timer; the caller treats it as "due".
    pub async fn until(&mut self, deadline: BootInstant) -> io::Result<()> {
        // A zero value would disarm: the first nanosecond after boot stands for "long past".
        let nanos = deadline.as_nanos().max(1);
        let at = Timespec { tv_sec: (nanos / NANOS) as i64, tv_nsec: (nanos % NANOS) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        rustix::time::timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::ABSTIME, &once)?;
        loop {
            let mut ready = self.fd.readable().await?;
            let mut count = [0_u8; 8];
            match rustix::io::read(ready.get_inner(), &mut count) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn the_timer_ends_at_its_deadline_and_at_once_for_a_past_one() {
        let mut timer = BootTimer::new().unwrap();
        let start = boot();
        timer.until(start + Duration::from_millis(30)).await.unwrap();
        let end = boot();
        assert!(end >= start + Duration::from_millis(30) && end < start + Duration::from_secs(2));
        timer.until(start).await.unwrap();
        timer.until(BootInstant::default()).await.unwrap();
        assert!(boot() < end + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_does_not_end_the_next_one_early() {
        let mut timer = BootTimer::new().unwrap();
        let start = boot();
        let short = start + Duration::from_millis(20);
        let given_up = tokio::time::timeout(Duration::from_millis(5), timer.until(short)).await;
        assert!(given_up.is_err());
        tokio::time::sleep(Duration::from_millis(40)).await;
        let later = boot() + Duration::from_millis(50);
        timer.until(later).await.unwrap();
        assert!(boot() >= later, "woken by the expiry of the earlier arming");
    }
}
