//! Timestamps of requests.

use jiff::fmt::rfc2822;
use jiff::fmt::temporal::Pieces;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::model::WallTime;

/// Why a schedule was refused: HTTP status and text.
pub(super) type Refused = (u16, String);

/// Parses a schedule and puts it into one form.
///
/// # Errors
/// 400 without a zone, 422 in the past or unparsable.
pub(super) fn schedule(text: &str, action: &str, now: WallTime) -> Result<(WallTime, String), Refused> {
    let parsed = parse(text).ok_or_else(|| {
        (422, "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601".to_owned())
    })?;
    let at = match parsed {
        Parsed::Zoned(at) => at,
        Parsed::NoZone => return Err((400, format!("Timezone information is mandatory for the scheduled {action}"))),
    };
    let wall = WallTime(at.timestamp().as_microsecond());
    if wall < now {
        return Err((422, format!("Cannot schedule {action} in the past")));
    }
    Ok((wall, iso(&at)))
}

enum Parsed {
    Zoned(Zoned),
    NoZone,
}

fn parse(text: &str) -> Option<Parsed> {
    let text = text.trim();
    // ISO 8601 in all its forms; "UTC" after a blank is what `date` and people write.
    let utc = text.strip_suffix("UTC").or_else(|| text.strip_suffix("GMT")).map(|rest| format!("{}Z", rest.trim_end()));
    let iso = utc.as_deref().unwrap_or(text);
    // The offset may stand apart: 2030-01-01 10:00 +02:00.
    let joined = iso
        .rsplit_once(' ')
        .filter(|(_, zone)| zone.starts_with(['+', '-']))
        .map(|(time, zone)| format!("{time}{zone}"));
    if let Ok(pieces) = Pieces::parse(joined.as_deref().unwrap_or(iso)) {
        let Some(offset) = pieces.to_numeric_offset() else { return Some(Parsed::NoZone) };
        let local = pieces.date().to_datetime(pieces.time()?);
        return local.to_zoned(TimeZone::fixed(offset)).ok().map(Parsed::Zoned);
    }
    rfc2822::parse(text).ok().map(Parsed::Zoned)
}

/// ISO 8601 with offset, microseconds only when there are some.
fn iso(at: &Zoned) -> String {
    let form = if at.subsec_nanosecond() / 1000 == 0 { "%Y-%m-%dT%H:%M:%S%:z" } else { "%Y-%m-%dT%H:%M:%S.%6f%:z" };
    at.strftime(form).to_string()
}

/// The same for a moment the store knows, in UTC.
pub(super) fn iso_utc(at: WallTime) -> String {
    Timestamp::from_microsecond(at.0).map_or_else(|_| String::new(), |t| iso(&t.to_zoned(TimeZone::UTC)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_need_a_zone_and_a_future() {
        let now = WallTime(0);
        let ok = |s| schedule(s, "switchover", now).map(|(_, text)| text);
        assert_eq!(ok("2030-01-01T10:00:00+02:00").as_deref(), Ok("2030-01-01T10:00:00+02:00"));
        assert_eq!(ok("2030-01-01 10:00+00:00").as_deref(), Ok("2030-01-01T10:00:00+00:00"));
        assert_eq!(ok("2030-01-01T10:00:00Z").as_deref(), Ok("2030-01-01T10:00:00+00:00"));
        assert_eq!(ok("2030-01-01T10:00:00.5-0330").as_deref(), Ok("2030-01-01T10:00:00.500000-03:30"));
        assert_eq!(ok("2030-01-01 10:00 +02").as_deref(), Ok("2030-01-01T10:00:00+02:00"));
        assert_eq!(ok("2030-01-01 10:00 UTC").as_deref(), Ok("2030-01-01T10:00:00+00:00"));
        assert_eq!(ok("Tue, 01 Jan 2030 10:00:00 +0200").as_deref(), Ok("2030-01-01T10:00:00+02:00"));
        assert_eq!(ok("2030-01-01T10:00:00").unwrap_err().0, 400);
        assert_eq!(ok("2030-01-01").unwrap_err().0, 400);
        assert_eq!(
            ok("1960-01-01T10:00:00+00:00").unwrap_err(),
            (422, "Cannot schedule switchover in the past".into())
        );
        assert_eq!(ok("tomorrow").unwrap_err().0, 422);
    }
}
