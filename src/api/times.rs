//! Timestamps of requests (rest-api §5.6).

use jiff::fmt::strtime;
use jiff::{Timestamp, Zoned, civil};

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
    for form in ["%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M%:z", "%Y-%m-%d %H:%M%:z",
        "%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%d %H:%M%z",
        "%Y-%m-%d %H:%M:%S%.f %z", "%Y-%m-%d %H:%M %z"]
    {
        if let Ok(zoned) = strtime::parse(form, text).and_then(|t| t.to_zoned()) {
            return Some(Parsed::Zoned(zoned));
        }
    }
    if let Some(naive) = text.strip_suffix('Z').or_else(|| text.strip_suffix(" UTC"))
        && let Ok(at) = naive.trim().parse::<civil::DateTime>()
    {
        return at.to_zoned(jiff::tz::TimeZone::UTC).ok().map(Parsed::Zoned);
    }
    text.parse::<civil::DateTime>().ok().map(|_| Parsed::NoZone)
}

/// ISO 8601 with offset, microseconds only when there are some.
fn iso(at: &Zoned) -> String {
    let form = if at.subsec_nanosecond() / 1000 == 0 { "%Y-%m-%dT%H:%M:%S%:z" } else { "%Y-%m-%dT%H:%M:%S.%6f%:z" };
    at.strftime(form).to_string()
}

/// The same for a moment the store knows, in UTC.
pub(super) fn iso_utc(at: WallTime) -> String {
    Timestamp::from_microsecond(at.0).map_or_else(|_| String::new(), |t| iso(&t.to_zoned(jiff::tz::TimeZone::UTC)))
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
        assert_eq!(ok("2030-01-01T10:00:00").unwrap_err().0, 400);
        assert_eq!(ok("1960-01-01T10:00:00+00:00").unwrap_err(), (422, "Cannot schedule switchover in the past".into()));
        assert_eq!(ok("tomorrow").unwrap_err().0, 422);
    }
}
