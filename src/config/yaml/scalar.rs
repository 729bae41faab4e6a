//! Which plain scalars are not text (YAML 1.1 as PyYAML's safe loader resolves it).
//!
//! Written as small hand scanners, one per type; the golden table in `tests/config.rs` came from PyYAML 6.
use serde_json::{Number, Value};

/// The value of an unquoted scalar: null, boolean, number, or the text itself. `.inf` and `.nan` stay text, since
/// JSON has no such numbers.
#[must_use]
pub fn resolve_plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Value::Bool(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => return Value::Bool(false),
        _ => {}
    }
    int(text).or_else(|| float(text)).unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Whether a text must be quoted when written, because it would be read back as something else.
pub(super) fn resolves_to_other(text: &str) -> bool {
    !resolve_plain(text).is_string() || matches!(text, "<<" | "=") || is_infinite_or_nan(text) || is_timestamp(text)
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) | None => (false, text),
    }
}

fn digits(text: &str, radix: u32) -> bool {
    !text.is_empty() && text.chars().all(|c| c == '_' || c.is_digit(radix))
}

fn integer(negative: bool, magnitude: u128) -> Value {
    if negative {
        match i64::try_from(-(i128::try_from(magnitude).unwrap_or(i128::MAX))) {
            Ok(value) => Value::from(value),
            Err(_) => big(-(magnitude as f64)),
        }
    } else {
        match u64::try_from(magnitude) {
            Ok(value) => Value::from(value),
            Err(_) => big(magnitude as f64),
        }
    }
}

fn big(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn radix_int(negative: bool, text: &str, radix: u32) -> Option<Value> {
    let clean: String = text.chars().filter(|c| *c != '_').collect();
    if clean.is_empty() {
        return None;
    }
    match u128::from_str_radix(&clean, radix) {
        Ok(magnitude) => Some(integer(negative, magnitude)),
        Err(_) => clean.parse::<f64>().ok().filter(|_| radix == 10).map(|v| big(if negative { -v } else { v })),
    }
}

fn int(text: &str) -> Option<Value> {
    let (negative, body) = split_sign(text);
    if let Some(rest) = body.strip_prefix("0b") {
        return if digits(rest, 2) { radix_int(negative, rest, 2) } else { None };
    }
    if let Some(rest) = body.strip_prefix("0x") {
        return if digits(rest, 16) { radix_int(negative, rest, 16) } else { None };
    }
    if body == "0" {
        return Some(Value::from(0));
    }
    if let Some(rest) = body.strip_prefix('0') {
        // "0_" has only separators behind the zero and is zero.
        return if digits(rest, 8) { radix_int(negative, body, 8) } else { None };
    }
    if !body.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    match body.split_once(':') {
        None => digits(body, 10).then(|| radix_int(negative, body, 10)).flatten(),
        Some((first, rest)) => {
            let groups = sexagesimal(first, rest)?;
            let total = groups.iter().try_fold(0u128, |sum, group| sum.checked_mul(60)?.checked_add(*group))?;
            Some(integer(negative, total))
        }
    }
}

/// `first[:nn]+` where every later group is `[0-5]?[0-9]`.
fn sexagesimal(first: &str, rest: &str) -> Option<Vec<u128>> {
    if !digits(first, 10) {
        return None;
    }
    let clean: String = first.chars().filter(|c| *c != '_').collect();
    let mut groups = vec![clean.parse().ok()?];
    for group in rest.split(':') {
        let fits = match group.as_bytes() {
            [one] => one.is_ascii_digit(),
            [ten, one] => (b'0'..=b'5').contains(ten) && one.is_ascii_digit(),
            [] | [_, _, _, ..] => false,
        };
        if !fits {
            return None;
        }
        groups.push(group.parse().ok()?);
    }
    Some(groups)
}

fn is_infinite_or_nan(text: &str) -> bool {
    let (_, body) = split_sign(text);
    matches!(body, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

/// `e+10`, `E-3`: the sign is part of the YAML 1.1 rule, which is why `1.0e3` is text.
fn exponent(text: &str) -> bool {
    let mut chars = text.chars();
    matches!(chars.next(), Some('e' | 'E'))
        && matches!(chars.next(), Some('+' | '-'))
        && !chars.as_str().is_empty()
        && chars.all(|c| c.is_ascii_digit())
}

fn fraction_and_exponent(text: &str, fraction_required: bool) -> bool {
    let end = text.find(['e', 'E']).unwrap_or(text.len());
    let (fraction, tail) = text.split_at(end);
    let fraction_fits = if fraction_required {
        fraction.starts_with(|c: char| c.is_ascii_digit()) && digits(fraction, 10)
    } else {
        fraction.is_empty() || digits(fraction, 10)
    };
    fraction_fits && (tail.is_empty() || exponent(tail))
}

fn float(text: &str) -> Option<Value> {
    let (negative, body) = split_sign(text);
    let (whole, rest) = body.split_once('.')?;
    if whole.is_empty() {
        let unsigned = body.len() == text.len();
        return (unsigned && fraction_and_exponent(rest, true)).then(|| decimal(text)).flatten();
    }
    if !whole.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if let Some((first, more)) = whole.split_once(':') {
        if !(rest.is_empty() || digits(rest, 10)) {
            return None;
        }
        let groups = sexagesimal(first, more)?;
        let clean: String = rest.chars().filter(|c| *c != '_').collect();
        let last: f64 = format!("0.{clean}0").parse().ok()?;
        let total = groups.iter().fold(0f64, |sum, group| sum * 60.0 + *group as f64) + last;
        return Number::from_f64(if negative { -total } else { total }).map(Value::Number);
    }
    (digits(whole, 10) && fraction_and_exponent(rest, false)).then(|| decimal(text)).flatten()
}

fn decimal(text: &str) -> Option<Value> {
    let clean: String = text.chars().filter(|c| *c != '_').collect();
    Number::from_f64(clean.parse().ok()?).map(Value::Number)
}

/// `2026-11-22` or a full timestamp; only asked when writing, to decide about quotes.
fn is_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| bytes.get(from..to).is_some_and(|b| b.iter().all(u8::is_ascii_digit));
    if !number(0, 4) || bytes.get(4) != Some(&b'-') {
        return false;
    }
    if bytes.len() == 10 && number(5, 7) && bytes[7] == b'-' && number(8, 10) {
        return true;
    }
    full_timestamp(&text[5..]).is_some()
}

fn take_digits(text: &str, least: usize, most: usize) -> Option<&str> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    (count >= least).then(|| &text[count..])
}

fn full_timestamp(text: &str) -> Option<()> {
    let text = take_digits(text, 1, 2)?.strip_prefix('-')?;
    let text = take_digits(text, 1, 2)?;
    let blanks = |text: &'static str, c: char| text.contains(c);
    let text = match text.strip_prefix(['T', 't']) {
        Some(text) => text,
        None => {
            let rest = text.trim_start_matches([' ', '\t']);
            (rest.len() < text.len()).then_some(rest)?
        }
    };
    let text = take_digits(text, 1, 2)?.strip_prefix(':')?;
    let text = take_digits(text, 2, 2)?.strip_prefix(':')?;
    let mut text = take_digits(text, 2, 2)?;
    if let Some(rest) = text.strip_prefix('.') {
        text = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    if text.is_empty() {
        return Some(());
    }
    let zone = text.trim_start_matches(|c| blanks(" \t", c));
    if zone == "Z" {
        return Some(());
    }
    let zone = take_digits(zone.strip_prefix(['+', '-'])?, 1, 2)?;
    match zone.strip_prefix(':') {
        None => zone.is_empty().then_some(()),
        Some(minutes) => take_digits(minutes, 2, 2)?.is_empty().then_some(()),
    }
}

/// A float the way Python prints it: shortest digits, exponent below 1e-4 and from 1e16 on.
#[must_use]
pub fn float_text(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}
