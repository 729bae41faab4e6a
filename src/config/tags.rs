//! Which tags a member publishes.
use std::collections::BTreeMap;

use serde_json::Value;

use super::{merge, numbers};

/// Tags that appear only when they are truthy.
const FLAGS: [&str; 5] = ["clonefrom", "nofailover", "noloadbalance", "nosync", "nostream"];
/// A flag that stays when its priority is given, and the priority.
const PAIRS: [(&str, &str); 2] = [("nofailover", "failover_priority"), ("nosync", "sync_priority")];

/// Python's truth of a value; the text `"false"` is true.
#[must_use]
pub fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// The tags that go into the member's data and `/patroni`.
#[must_use]
pub fn published(tags: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let paired = |tag: &str| PAIRS.iter().any(|(flag, priority)| *flag == tag && tags.contains_key(*priority));
    let keep = |tag: &str, value: &Value| !FLAGS.contains(&tag) || truthy(value) || paired(tag);
    tags.iter().filter(|(tag, value)| keep(tag, value)).map(|(tag, value)| (tag.clone(), value.clone())).collect()
}

/// Effective `failover_priority` or `sync_priority`: 0 when the flag is truthy, else the integer, else 1.
#[must_use]
pub fn priority(tags: &BTreeMap<String, Value>, flag: &str, priority: &str) -> i64 {
    if tags.get(flag).is_some_and(truthy) {
        return 0;
    }
    tags.get(priority).and_then(|value| numbers::parse_int(&merge::text(value), None)).unwrap_or(1)
}

/// Whether the member never becomes leader: the `nofailover` tag if present, else `failover_priority` ≤ 0.
#[must_use]
pub fn nofailover(tags: &BTreeMap<String, Value>) -> bool {
    match tags.get("nofailover").filter(|value| !value.is_null()) {
        Some(value) => truthy(value),
        None => priority(tags, "nofailover", "failover_priority") <= 0,
    }
}

/// Warnings about a flag and a priority that say opposite things.
pub(super) fn conflicts(document: &Value) -> Vec<String> {
    let tags = &document["tags"];
    let mut warnings = Vec::new();
    for (flag, priority) in PAIRS {
        let number = numbers::parse_int(&merge::text(&tags[priority]), None);
        if let (false, Some(number)) = (tags[flag].is_null(), number)
            && truthy(&tags[flag]) != (number <= 0)
        {
            warnings.push(format!(
                "Conflicting configuration between {flag}: {} and {priority}: {number}; {flag} counts",
                merge::text(&tags[flag])
            ));
        }
    }
    warnings
}
