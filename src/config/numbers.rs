//! Numbers with units and words for true and false.

/// Reads a number as `parse_int` of Patroni does: sign, decimal, `0x` hex, leading-`0` octal or a fraction (rounded),
/// then an optional unit. With a base unit such as `s`, `kB` or `16MB` the result is counted in that unit; a unit
/// without a base unit, or one of the other kind, gives `None`.
#[must_use]
pub fn parse_int(text: &str, base_unit: Option<&str>) -> Option<i64> {
    let (number, unit) = split_number(text.trim())?;
    let unit = unit.trim();
    if unit.is_empty() {
        return to_i64(number);
    }
    let (base_size, base_kind) = base_unit.and_then(base)?;
    let (size, kind) = unit_size(unit)?;
    (kind == base_kind).then(|| to_i64(number * size / base_size)).flatten()
}

/// Words for true and false in any case: on/true/yes/1, off/false/no/0.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn to_i64(value: f64) -> Option<i64> {
    let rounded = value.round_ties_even();
    // 2^63 is the first float that does not fit.
    (rounded.abs() < 9_223_372_036_854_775_808.0).then_some(rounded as i64)
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Memory,
    Time,
}

/// Size of a unit in bytes or milliseconds.
fn unit_size(unit: &str) -> Option<(f64, Kind)> {
    const KIB: f64 = 1024.0;
    Some(match unit {
        "B" => (1.0, Kind::Memory),
        "kB" => (KIB, Kind::Memory),
        "MB" => (KIB * KIB, Kind::Memory),
        "GB" => (KIB * KIB * KIB, Kind::Memory),
        "TB" => (KIB * KIB * KIB * KIB, Kind::Memory),
        "us" => (0.001, Kind::Time),
        "ms" => (1.0, Kind::Time),
        "s" => (1000.0, Kind::Time),
        "min" => (60_000.0, Kind::Time),
        "h" => (3_600_000.0, Kind::Time),
        "d" => (86_400_000.0, Kind::Time),
        _ => return None,
    })
}

fn base(unit: &str) -> Option<(f64, Kind)> {
    let end = unit.bytes().take_while(u8::is_ascii_digit).count();
    let factor: f64 = if end == 0 { 1.0 } else { unit[..end].parse().ok()? };
    let (size, kind) = unit_size(&unit[end..])?;
    Some((size * factor, kind))
}

fn split_number(text: &str) -> Option<(f64, &str)> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    if let Some(hex) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        let end = hex.bytes().take_while(u8::is_ascii_hexdigit).count();
        let value = u64::from_str_radix(&hex[..end], 16).ok()?;
        return Some((sign * value as f64, &hex[end..]));
    }
    let whole = unsigned.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &unsigned[whole..];
    if !rest.starts_with(['.', 'e', 'E']) {
        if whole == 0 {
            return None;
        }
        let digits = &unsigned[..whole];
        let octal = digits.len() > 1 && digits.starts_with('0');
        let value = if octal { u64::from_str_radix(digits, 8).ok()? as f64 } else { digits.parse().ok()? };
        return Some((sign * value, rest));
    }
    let mut end = whole;
    let bytes = unsigned.as_bytes();
    if bytes.get(end) == Some(&b'.') {
        end += 1 + bytes[end + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let mut tail = end + 1;
        if matches!(bytes.get(tail), Some(b'+' | b'-')) {
            tail += 1;
        }
        let count = bytes[tail..].iter().take_while(|b| b.is_ascii_digit()).count();
        if count > 0 {
            end = tail + count;
        }
    }
    Some((sign * unsigned[..end].parse::<f64>().ok()?, &unsigned[end..]))
}
