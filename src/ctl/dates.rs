//! Timestamps as people type them and as Patroni prints them.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::error::{CtlError, Result};
use crate::model::WallTime;

/// A point in time with the offset it was given in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    at: DateTime,
    offset: Offset,
}

impl Moment {
    /// `2030-01-01T10:00:00+02:00`, with six fraction digits unless they are zero.
    pub fn iso(&self) -> String {
        self.print('T')
    }
    /// The same with a space, as Python's `str()` has it.
    pub fn spaced(&self) -> String {
        self.print(' ')
    }
    fn print(&self, between: char) -> String {
        let d = self.at;
        let micros = d.subsec_nanosecond() / 1000;
        let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
        let seconds = self.offset.seconds();
        let (sign, seconds) = (if seconds < 0 { '-' } else { '+' }, seconds.abs());
        format!(
            "{}{between}{:02}:{:02}:{:02}{fraction}{sign}{:02}:{:02}",
            d.date(),
            d.hour(),
            d.minute(),
            d.second(),
            seconds / 3600,
            seconds / 60 % 60
        )
    }
}

/// `None`: immediately (`now` or empty). A text without zone is in `local`.
///
/// # Errors
/// Patroni's message.
pub fn parse_scheduled(text: &str, now: &Zoned) -> Result<Option<Moment>> {
    let trimmed = text.trim();
    if trimmed.is_empty() || trimmed.eq_ignore_ascii_case("now") {
        return Ok(None);
    }
    parse(trimmed, now).map(Some).ok_or_else(|| {
        CtlError::plain(format!(
            "Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format (e.g. ISO 8601)"
        ))
    })
}

fn parse(text: &str, now: &Zoned) -> Option<Moment> {
    let (civil, offset) = split_offset(text);
    let at = civil_time(civil.trim(), now)?;
    let offset = match offset {
        Some(offset) => offset?,
        None => now.time_zone().to_ambiguous_timestamp(at).compatible().ok().map(|t| now.time_zone().to_offset(t))?,
    };
    Some(Moment { at, offset })
}

/// The civil part, and the offset if one is written; `Some(None)`: written but unreadable.
fn split_offset(text: &str) -> (&str, Option<Option<Offset>>) {
    for zone in ["Z", "z", "UTC", "GMT", "utc", "gmt"] {
        if let Some(rest) = text.strip_suffix(zone) {
            return (rest, Some(Some(Offset::UTC)));
        }
    }
    let Some(colon) = text.find(':') else { return (text, None) };
    let Some(sign) = text[colon..].find(['+', '-']).map(|i| colon + i) else { return (text, None) };
    (&text[..sign], Some(offset(&text[sign..])))
}

fn offset(text: &str) -> Option<Offset> {
    let digits: String = text[1..].chars().filter(|c| *c != ':').collect();
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes): (i32, i32) = match digits.len() {
        1 | 2 => (digits.parse().ok()?, 0),
        4 => (digits[..2].parse().ok()?, digits[2..].parse().ok()?),
        _ => return None,
    };
    let seconds = hours * 3600 + minutes * 60;
    Offset::from_seconds(if text.starts_with('-') { -seconds } else { seconds }).ok()
}

fn civil_time(text: &str, now: &Zoned) -> Option<DateTime> {
    if let Some((date, time)) = text.split_once(['T', 't', ' ']) {
        let date: Date = date.trim().parse().ok()?;
        return Some(date.to_datetime(time_of_day(time.trim())?));
    }
    if let Ok(date) = text.parse::<Date>() {
        return Some(date.to_datetime(Time::midnight()));
    }
    Some(now.date().to_datetime(time_of_day(text)?))
}

fn time_of_day(text: &str) -> Option<Time> {
    let mut parts = text.split(':');
    let hour: i8 = parts.next()?.parse().ok()?;
    let minute: i8 = parts.next().map_or(Ok(0), str::parse).ok()?;
    let seconds = parts.next().unwrap_or("0");
    if parts.next().is_some() {
        return None;
    }
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Time::new(hour, minute, whole.parse().ok()?, nanos).ok()
}

/// The current time in the local zone (UTC when the system names none).
pub fn now() -> Zoned {
    Timestamp::now().to_zoned(TimeZone::try_system().unwrap_or(TimeZone::UTC))
}

/// The hint of the schedule prompts: local time plus one hour, `2026-11-22T20:30`.
pub fn hint(now: &Zoned) -> String {
    let later = now.timestamp().checked_add(SignedDuration::from_hours(1)).unwrap_or(now.timestamp());
    let d = later.to_zoned(now.time_zone().clone()).datetime();
    format!("{}T{:02}:{:02}", d.date(), d.hour(), d.minute())
}

/// `2026-11-22 19:30:49.98925`: five fraction digits, as Patroni prints them.
pub fn stamp(now: &Zoned) -> String {
    format!("{}.{:05}", stamp_seconds(now), now.subsec_nanosecond() / 10_000)
}

/// `2026-11-22 19:30:49`.
pub fn stamp_seconds(now: &Zoned) -> String {
    let d = now.datetime();
    format!("{} {:02}:{:02}:{:02}", d.date(), d.hour(), d.minute(), d.second())
}

/// ISO 8601 in UTC.
pub fn wall_iso(at: WallTime) -> String {
    Timestamp::from_microsecond(at.0).map_or_else(
        |_| at.0.to_string(),
        |t| Moment { at: t.to_zoned(TimeZone::UTC).datetime(), offset: Offset::UTC }.iso(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> Zoned {
        "2026-11-22T19:30:49.989257+02:00[+02:00]".parse().unwrap()
    }

    #[test]
    fn timestamps_are_read_as_people_type_them() {
        for (text, want) in [
            ("2030-01-01T10:00:00+02:00", "2030-01-01T10:00:00+02:00"),
            ("2030-01-01 10:00", "2030-01-01T10:00:00+02:00"),
            ("2030-01-01T10:00Z", "2030-01-01T10:00:00+00:00"),
            ("2030-01-01 10:00:01.5 UTC", "2030-01-01T10:00:01.500000+00:00"),
            ("2030-01-01", "2030-01-01T00:00:00+02:00"),
            ("23:15", "2026-11-22T23:15:00+02:00"),
            ("2030-01-01T10:00-0330", "2030-01-01T10:00:00-03:30"),
        ] {
            assert_eq!(parse_scheduled(text, &noon()).unwrap().unwrap().iso(), want, "{text}");
        }
        assert_eq!(parse_scheduled("now", &noon()), Ok(None));
        assert_eq!(parse_scheduled("", &noon()), Ok(None));
        let bad = parse_scheduled("tomorrow-ish", &noon()).unwrap_err().to_string();
        assert_eq!(
            bad,
            "Error: Unable to parse scheduled timestamp (tomorrow-ish). It should be in an unambiguous format (e.g. ISO 8601)"
        );
        for bad in ["2030-13-01", "25:00", "2030-01-01T10:00+99x", "2030-01-01T1é:00"] {
            assert!(parse_scheduled(bad, &noon()).is_err(), "{bad}");
        }
    }

    #[test]
    fn stamps_have_five_digits_and_the_hint_is_an_hour_ahead() {
        assert_eq!(stamp(&noon()), "2026-11-22 19:30:49.98925");
        assert_eq!(hint(&noon()), "2026-11-22T20:30");
        assert_eq!(wall_iso(WallTime(0)), "1970-01-01T00:00:00+00:00");
    }
}
