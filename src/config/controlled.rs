//! GUCs that must be the same on all members: dynamic only, validated, passed on the command line.
use serde_json::Value;

use super::{merge, numbers};

/// How a value is checked.
enum Rule {
    /// Set by Patroni itself.
    Fixed,
    /// `hot_standby`, `replica` or `logical`.
    WalLevel,
    /// Must be true.
    True,
    /// Any boolean.
    Flag,
    /// At least this, in the unit.
    AtLeast(i64, Option<&'static str>),
}

struct Guc {
    name: &'static str,
    default: &'static str,
    rule: Rule,
    /// First and last major version (90400 style below 10 is not needed: 9.x is 9).
    from: u32,
    until: u32,
    /// Only in the file, not on the command line.
    file_only: bool,
}

const fn guc(name: &'static str, default: &'static str, rule: Rule) -> Guc {
    Guc { name, default, rule, from: 0, until: u32::MAX, file_only: false }
}

const GUCS: &[Guc] = &[
    guc("listen_addresses", "", Rule::Fixed),
    guc("port", "", Rule::Fixed),
    guc("cluster_name", "", Rule::Fixed),
    guc("wal_level", "hot_standby", Rule::WalLevel),
    guc("hot_standby", "on", Rule::True),
    guc("max_connections", "100", Rule::AtLeast(25, None)),
    guc("max_wal_senders", "10", Rule::AtLeast(3, None)),
    guc("max_prepared_transactions", "0", Rule::AtLeast(0, None)),
    guc("max_locks_per_transaction", "64", Rule::AtLeast(32, None)),
    guc("max_replication_slots", "10", Rule::AtLeast(4, None)),
    guc("max_worker_processes", "8", Rule::AtLeast(2, None)),
    guc("track_commit_timestamp", "off", Rule::Flag),
    guc("wal_log_hints", "on", Rule::Flag),
    Guc { until: 12, file_only: true, ..guc("wal_keep_segments", "8", Rule::AtLeast(1, None)) },
    Guc { from: 13, file_only: true, ..guc("wal_keep_size", "128MB", Rule::AtLeast(16, Some("MB"))) },
];

/// Whether a (lower-case) GUC may be set only in the dynamic configuration.
#[must_use]
pub fn is_controlled(name: &str) -> bool {
    GUCS.iter().any(|guc| guc.name == name)
}

/// One controlled GUC with the value to use.
pub(super) struct Controlled {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) file_only: bool,
}

/// Values of the controlled GUCs for a major version. `wanted` looks a name up in the dynamic parameters.
pub(super) fn resolve(
    wanted: impl Fn(&str) -> Option<Value>,
    pg_major: u32,
    warnings: &mut Vec<String>,
) -> Vec<Controlled> {
    let mut result = Vec::new();
    for guc in GUCS.iter().filter(|guc| (guc.from..=guc.until).contains(&pg_major)) {
        if matches!(guc.rule, Rule::Fixed) {
            if wanted(guc.name).is_some() {
                warnings.push(format!("postgresql parameter {} cannot be set; it is ignored", guc.name));
            }
            continue;
        }
        let given = wanted(guc.name).or_else(|| counterpart(guc.name, &wanted));
        let value = match given {
            None => guc.default.to_owned(),
            Some(given) if passes(&guc.rule, &given) => shown(&guc.rule, &given),
            Some(given) => {
                let given = merge::text(&given);
                warnings.push(format!(
                    "postgresql parameter {}={given} failed validation, defaulting to {}",
                    guc.name, guc.default
                ));
                guc.default.to_owned()
            }
        };
        let value = match value.as_str() {
            "hot_standby" if guc.name == "wal_level" => "replica".to_owned(),
            _ => value,
        };
        result.push(Controlled { name: guc.name, value, file_only: guc.file_only });
    }
    result
}

/// `wal_keep_segments` and `wal_keep_size` stand for each other at 16 MB per segment.
fn counterpart(name: &str, wanted: &impl Fn(&str) -> Option<Value>) -> Option<Value> {
    match name {
        "wal_keep_size" => {
            let segments = numbers::parse_int(&merge::text(&wanted("wal_keep_segments")?), None)?;
            Some(Value::from(format!("{}MB", segments.checked_mul(16)?)))
        }
        "wal_keep_segments" => {
            let megabytes = numbers::parse_int(&merge::text(&wanted("wal_keep_size")?), Some("MB"))?;
            Some(Value::from((megabytes + 8) / 16))
        }
        _ => None,
    }
}

fn passes(rule: &Rule, value: &Value) -> bool {
    let text = merge::text(value);
    match rule {
        Rule::Fixed => false,
        Rule::WalLevel => matches!(text.to_lowercase().as_str(), "hot_standby" | "replica" | "logical"),
        Rule::True => numbers::parse_bool(&text) == Some(true),
        Rule::Flag => numbers::parse_bool(&text).is_some(),
        Rule::AtLeast(least, unit) => numbers::parse_int(&text, *unit).is_some_and(|number| number >= *least),
    }
}

fn shown(rule: &Rule, value: &Value) -> String {
    let text = merge::text(value);
    match rule {
        Rule::True | Rule::Flag => if numbers::parse_bool(&text) == Some(true) { "on" } else { "off" }.to_owned(),
        Rule::WalLevel => text.to_lowercase(),
        Rule::Fixed | Rule::AtLeast(..) => text,
    }
}
