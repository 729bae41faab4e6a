//! Server parameters: the controlled ones with their rules, the others as configured, and the
//! adjustment a standby needs to start at all.

use std::collections::BTreeMap;

use super::control::ControlFile;
use super::setup::Setup;
use crate::model::StandbyNames;

/// The parameters in force for one start or reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// All of them, for postgresql.conf.
    pub file: BTreeMap<String, String>,
    /// The controlled ones that are passed as `--name=value`.
    pub command_line: BTreeMap<String, String>,
    /// Values replaced or left out, one line each.
    pub warnings: Vec<String>,
    /// Parameters started with pg_control's larger value: name → (value in force, value wanted).
    pub pending_restart: BTreeMap<String, (String, String)>,
}

enum Rule {
    Level,
    True,
    Bool,
    AtLeast(i64),
    SizeAtLeastMb(i64),
}

/// name, default, rule, passed on the command line.
const CONTROLLED: [(&str, &str, Rule, bool); 11] = [
    ("wal_level", "replica", Rule::Level, true),
    ("hot_standby", "on", Rule::True, true),
    ("max_connections", "100", Rule::AtLeast(25), true),
    ("max_wal_senders", "10", Rule::AtLeast(3), true),
    ("max_prepared_transactions", "0", Rule::AtLeast(0), true),
    ("max_locks_per_transaction", "64", Rule::AtLeast(32), true),
    ("max_replication_slots", "10", Rule::AtLeast(4), true),
    ("max_worker_processes", "8", Rule::AtLeast(2), true),
    ("track_commit_timestamp", "off", Rule::Bool, true),
    ("wal_log_hints", "on", Rule::Bool, true),
    ("wal_keep_size", "128MB", Rule::SizeAtLeastMb(16), false),
];

/// Settings that belong to recovery, not to `parameters`; found there they act as `recovery_conf`.
const RECOVERY: [&str; 18] = [
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "trigger_file",
    "standby_mode",
    "recovery_min_apply_delay",
    "wal_receiver_create_temp_slot",
];

impl Effective {
    /// The same, with whom commits wait for.
    #[must_use]
    pub fn with_names(mut self, names: &StandbyNames) -> Effective {
        if let Some(text) = names.text() {
            self.file.insert("synchronous_standby_names".to_owned(), text);
        }
        self
    }
}

/// Is it a setting of recovery?
pub fn is_recovery(name: &str) -> bool {
    RECOVERY.contains(&name)
}

/// Is it controlled: set cluster-wide only, never from local values?
pub fn is_controlled(name: &str) -> bool {
    matches!(name, "listen_addresses" | "port" | "cluster_name" | "wal_keep_segments")
        || CONTROLLED.iter().any(|(n, ..)| *n == name)
}

/// The parameters in force. `control`: pg_control of a standby about to start (`None`: primary, or nothing there yet).
pub fn effective(setup: &Setup, control: Option<&ControlFile>) -> Effective {
    let mut out = Effective::default();
    for (name, value) in &setup.parameters {
        let name = name.to_lowercase();
        if is_controlled(&name) || is_recovery(&name) {
            continue;
        }
        if !valid_name(&name) {
            out.warnings.push(format!("Removing unexpected parameter={name} value={value} from the config"));
            continue;
        }
        out.file.insert(name, value.clone());
    }
    let mut fixed = |name: &str, value: String| {
        out.file.insert(name.to_owned(), value.clone());
        out.command_line.insert(name.to_owned(), value);
    };
    fixed("listen_addresses", setup.listen_addresses.clone());
    fixed("port", setup.port.to_string());
    fixed("cluster_name", setup.scope.clone());
    let mut configured = setup.controlled.clone();
    if let Some(mb) = configured.get("wal_keep_segments").and_then(|s| s.trim().parse::<i64>().ok()) {
        configured.entry("wal_keep_size".to_owned()).or_insert(format!("{}MB", mb.saturating_mul(16)));
    }
    for (name, default, rule, on_command_line) in &CONTROLLED {
        let mut value = match configured.get(*name) {
            None => (*default).to_owned(),
            Some(wanted) => accept(rule, wanted).unwrap_or_else(|| {
                out.warnings
                    .push(format!("postgresql parameter {name}={wanted} failed validation, defaulting to {default}"));
                (*default).to_owned()
            }),
        };
        if let Some(needed) = control.and_then(|c| larger(c, name, &value)) {
            out.pending_restart.insert((*name).to_owned(), (needed.clone(), value));
            value = needed;
        }
        out.file.insert((*name).to_owned(), value.clone());
        if *on_command_line {
            out.command_line.insert((*name).to_owned(), value);
        }
    }
    out
}

/// Recovery settings a follower gets besides the standard ones: `recovery_conf` and recovery settings found in
/// `parameters`, without targets, conninfo and slot, and without names the version does not know.
pub fn recovery_extras(setup: &Setup, major: u32) -> BTreeMap<String, String> {
    let from_parameters = setup.parameters.iter().filter(|(n, _)| is_recovery(&n.to_lowercase()));
    from_parameters
        .chain(&setup.recovery_conf)
        .map(|(n, v)| (n.to_lowercase(), v.clone()))
        .map(|(n, v)| (if n == "trigger_file" { "promote_trigger_file".to_owned() } else { n }, v))
        .filter(|(n, _)| !n.starts_with("recovery_target") && n != "standby_mode")
        .filter(|(n, _)| n != "primary_conninfo" && n != "primary_slot_name")
        .filter(|(n, _)| n != "promote_trigger_file" || major < 16)
        .filter(|(n, _)| valid_name(n))
        .collect()
}

fn larger(control: &ControlFile, name: &str, value: &str) -> Option<String> {
    let (_, last) = control.limits.iter().find(|(n, _)| *n == name)?;
    (i64::from(*last) > value.parse::<i64>().ok()?).then(|| last.to_string())
}

fn accept(rule: &Rule, wanted: &str) -> Option<String> {
    let wanted = wanted.trim();
    match rule {
        Rule::Level => match wanted.to_lowercase().as_str() {
            "hot_standby" | "replica" | "archive" => Some("replica".to_owned()),
            "logical" => Some("logical".to_owned()),
            _ => None,
        },
        Rule::True => (parse_bool(wanted)? == "on").then(|| "on".to_owned()),
        Rule::Bool => parse_bool(wanted).map(str::to_owned),
        Rule::AtLeast(least) => (wanted.parse::<i64>().ok()? >= *least).then(|| wanted.to_owned()),
        Rule::SizeAtLeastMb(least) => (kilobytes(wanted, 1024)? >= least * 1024).then(|| wanted.to_owned()),
    }
}

/// `on` or `off`, from any spelling Postgres takes.
pub fn parse_bool(text: &str) -> Option<&'static str> {
    match text.trim().to_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => Some("on"),
        "off" | "false" | "no" | "0" | "f" | "n" => Some("off"),
        _ => None,
    }
}

/// A size in kB; a bare number counts in `unit_kb`.
fn kilobytes(text: &str, unit_kb: i64) -> Option<i64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: i64 = text[..split].parse().ok()?;
    let factor = match text[split..].trim() {
        "" => unit_kb,
        "kB" => 1,
        "MB" => 1024,
        "GB" => 1024 * 1024,
        "TB" => 1024 * 1024 * 1024,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A name Postgres' parser takes: letters, digits, `_`, `$`, with dots for extensions. Anything else would keep the
/// server from starting.
fn valid_name(name: &str) -> bool {
    name.split('.').all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    })
}

/// The value of a bare parameter in another server's or file's unit, for comparing "wanted" with pg_settings
///: both as numbers in the unit of pg_settings, else as text.
pub fn same_value(wanted: &str, current: &str, vartype: &str, unit: Option<&str>) -> bool {
    let wanted = wanted.trim();
    match vartype {
        "bool" => parse_bool(wanted).is_some() && parse_bool(wanted) == parse_bool(current),
        "integer" | "real" => match (in_unit(wanted, unit), current.trim().parse::<f64>().ok()) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-9 * b.abs().max(1.0),
            _ => wanted == current,
        },
        "enum" => wanted.eq_ignore_ascii_case(current),
        _ => wanted == current,
    }
}

fn in_unit(text: &str, unit: Option<&str>) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number = match text[..split].trim() {
        hex if hex == "0" && text[split..].starts_with('x') => {
            return i64::from_str_radix(text.get(2..)?, 16).ok().map(|n| n as f64);
        }
        plain => plain.parse::<f64>().ok()?,
    };
    let suffix = text[split..].trim();
    let Some(unit) = unit.filter(|_| !suffix.is_empty()) else { return suffix.is_empty().then_some(number) };
    let scaled = number * scale(suffix)? / unit_scale(unit)?;
    // Integers are rounded to the base unit by the server.
    Some(scaled.round())
}

/// Bytes or milliseconds per suffix; both kinds never meet in one parameter.
fn scale(suffix: &str) -> Option<f64> {
    Some(match suffix {
        "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1_048_576.0,
        "GB" => 1_073_741_824.0,
        "TB" => 1_099_511_627_776.0,
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    })
}

fn unit_scale(unit: &str) -> Option<f64> {
    let split = unit.find(|c: char| c.is_ascii_alphabetic())?;
    let count = if split == 0 { 1.0 } else { unit[..split].parse::<f64>().ok()? };
    Some(count * scale(&unit[split..])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(controlled: &[(&str, &str)], parameters: &[(&str, &str)]) -> Setup {
        let own = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let mut s = Setup::new("a", "demo", "/tmp/x", 5433);
        s.controlled = own(controlled);
        s.parameters = own(parameters);
        s
    }

    #[test]
    fn controlled_parameters_have_defaults_rules_and_no_local_override() {
        let s = setup(
            &[("max_connections", "7"), ("wal_level", "hot_standby"), ("max_wal_senders", "20")],
            &[
                ("max_connections", "500"),
                ("shared_buffers", "16MB"),
                ("port", "1"),
                ("bad name", "1"),
                ("pg_x.y", "z"),
            ],
        );
        let e = effective(&s, None);
        assert_eq!(e.file["max_connections"], "100");
        assert_eq!(e.file["wal_level"], "replica");
        assert_eq!(e.command_line["max_wal_senders"], "20");
        assert_eq!(e.file["port"], "5433");
        assert_eq!(e.file["pg_x.y"], "z");
        assert!(!e.command_line.contains_key("wal_keep_size") && e.file["wal_keep_size"] == "128MB");
        assert_eq!(e.warnings.len(), 2, "{:?}", e.warnings);
    }

    #[test]
    fn old_segment_counts_become_a_size() {
        let e = effective(&setup(&[("wal_keep_segments", "4")], &[]), None);
        assert_eq!(e.file["wal_keep_size"], "64MB");
        let e = effective(&setup(&[("wal_keep_size", "8MB")], &[]), None);
        assert_eq!((e.file["wal_keep_size"].as_str(), e.warnings.len()), ("128MB", 1));
    }

    #[test]
    fn values_are_compared_in_the_units_of_the_server() {
        assert!(same_value("16MB", "2048", "integer", Some("8kB")));
        assert!(same_value("1min", "60", "integer", Some("s")));
        assert!(!same_value("2min", "60", "integer", Some("s")));
        assert!(same_value("yes", "on", "bool", None));
        assert!(same_value("0.90", "0.9", "real", None));
        assert!(same_value("LOGICAL", "logical", "enum", None));
        assert!(!same_value("a", "b", "string", None));
    }

    #[test]
    fn recovery_extras_leave_out_targets_and_what_is_managed() {
        let mut s = setup(&[], &[("restore_command", "cp a b"), ("recovery_target_time", "now")]);
        s.recovery_conf.insert("primary_conninfo".into(), "x".into());
        s.recovery_conf.insert("recovery_min_apply_delay".into(), "5s".into());
        s.recovery_conf.insert("trigger_file".into(), "/t".into());
        let names = |major| recovery_extras(&s, major).into_keys().collect::<Vec<_>>();
        assert_eq!(names(15), ["promote_trigger_file", "recovery_min_apply_delay", "restore_command"]);
        assert_eq!(names(16), ["recovery_min_apply_delay", "restore_command"]);
    }
}
