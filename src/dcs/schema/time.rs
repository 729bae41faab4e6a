//! Wall time as text. Only for people and for `scheduled_at`; the lease compares texts and never reads them.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

use crate::model::WallTime;

/// ISO 8601 in UTC with offset: `2025-01-31T09:15:02.123456+00:00`, microseconds left out when exactly 0, never `Z`.
pub fn format_wall(at: WallTime) -> String {
    let stamp = Timestamp::from_microsecond(at.0).unwrap_or(Timestamp::UNIX_EPOCH);
    let format =
        if at.0.rem_euclid(1_000_000) == 0 { "%Y-%m-%dT%H:%M:%S+00:00" } else { "%Y-%m-%dT%H:%M:%S.%6f+00:00" };
    strtime::format(format, &stamp.to_zoned(TimeZone::UTC)).unwrap_or_default()
}

/// ISO 8601 with offset or `Z`; without either it is taken as UTC. `None` when it is no time.
pub fn parse_wall(text: &str) -> Option<WallTime> {
    let text = text.trim();
    let stamp = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp()))?;
    Some(WallTime(stamp.as_microsecond()))
}
