//! The `postgresql` section in force: dynamic first, local key by key on top.
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::controlled::{self, is_controlled};
use super::dynamic::Dynamic;
use super::local::{Config, Section};
use super::merge;

/// Recovery settings: in `parameters` they act as `recovery_conf`.
const RECOVERY: [&str; 17] = [
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
    "recovery_min_apply_delay",
    "primary_conninfo",
    "primary_slot_name",
    "trigger_file",
    "promote_trigger_file",
    "standby_mode",
];

/// Callback scripts, `postgresql.callbacks`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callbacks {
    /// After a reload.
    pub on_reload: Option<String>,
    /// After a restart.
    pub on_restart: Option<String>,
    /// After promotion or demotion.
    pub on_role_change: Option<String>,
    /// After a start.
    pub on_start: Option<String>,
    /// After a stop.
    pub on_stop: Option<String>,
}

/// Everything about Postgres that a reload may change.
#[derive(Clone, PartialEq)]
pub struct EffectivePostgres {
    /// Parameters for postgresql.conf, lower-case names, controlled ones included.
    pub parameters: BTreeMap<String, String>,
    /// Controlled parameters for the command line as well (`listen_addresses`, `port`, `cluster_name` included).
    pub controlled: BTreeMap<String, String>,
    /// Whole pg_hba.conf, if configured.
    pub pg_hba: Option<Vec<String>>,
    /// Whole pg_ident.conf, if configured.
    pub pg_ident: Option<Vec<String>>,
    /// Dynamic only.
    pub use_slots: bool,
    /// pg_rewind allowed.
    pub use_pg_rewind: bool,
    /// After a failed rewind.
    pub remove_data_directory_on_rewind_failure: bool,
    /// When timelines diverged and rewind is impossible.
    pub remove_data_directory_on_diverged_timelines: bool,
    /// In order.
    pub create_replica_methods: Vec<String>,
    /// Sections of the methods named above (without `basebackup`).
    pub methods: BTreeMap<String, Map<String, Value>>,
    /// Options of pg_basebackup: name and value, `None` for a flag.
    pub basebackup: Vec<(String, Option<String>)>,
    /// Extra recovery settings, lower-case names.
    pub recovery_conf: BTreeMap<String, String>,
    /// Included instead of the base file.
    pub custom_conf: Option<String>,
    /// Scripts.
    pub callbacks: Callbacks,
    /// Before a promotion.
    pub pre_promote: Option<String>,
    /// Before a stop.
    pub before_stop: Option<String>,
    /// Seconds.
    pub pg_ctl_timeout: u64,
    /// Superuser connections over the Unix socket.
    pub use_unix_socket: bool,
    /// Replication connections over the Unix socket.
    pub use_unix_socket_repl: bool,
    /// Kerberos service name.
    pub krbsrvname: Option<String>,
    /// Directory of the programs; empty: PATH.
    pub bin_dir: String,
    /// Tool → program name.
    pub bin_name: BTreeMap<String, String>,
    /// Database of our own connections.
    pub database: String,
    /// Base of the names of the configuration files.
    pub config_base_name: String,
}

impl std::fmt::Debug for EffectivePostgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Commands and parameters may carry passwords.
        f.debug_struct("EffectivePostgres").field("controlled", &self.controlled).finish_non_exhaustive()
    }
}

/// Merges the two layers for a server of this major version (`15`; every 9.x is `9`).
#[must_use]
pub fn effective_postgresql(config: &Config, dynamic: &Dynamic, pg_major: u32) -> (EffectivePostgres, Vec<String>) {
    let mut warnings = Vec::new();
    let mut merged = dynamic.postgresql.clone();
    for (key, value) in &config.postgresql.raw {
        if !matches!(key.as_str(), "use_slots" | "parameters") {
            merged.insert(key.clone(), value.clone());
        }
    }
    let (controlled, parameters, mut recovery_conf) = parameters(config, dynamic, pg_major, &mut warnings);
    let merged = Value::Object(merged);
    let section = Section::of(&merged);
    for (name, value) in section.texts("recovery_conf") {
        recovery_conf.insert(name.to_lowercase(), value);
    }
    recovery_conf.retain(|name, _| {
        !name.starts_with("recovery_target") && !matches!(name.as_str(), "primary_conninfo" | "primary_slot_name")
    });
    let flag = |key: &str| section.flag(key).unwrap_or(false);
    let create_replica_methods = replica_methods(section);
    let effective = EffectivePostgres {
        parameters,
        controlled,
        pg_hba: section.lines("pg_hba").filter(|lines| !lines.is_empty()),
        pg_ident: section.lines("pg_ident").filter(|lines| !lines.is_empty()),
        use_slots: Section(Some(&dynamic.postgresql)).flag("use_slots").unwrap_or(true),
        use_pg_rewind: flag("use_pg_rewind"),
        remove_data_directory_on_rewind_failure: flag("remove_data_directory_on_rewind_failure"),
        remove_data_directory_on_diverged_timelines: flag("remove_data_directory_on_diverged_timelines"),
        methods: method_sections(section, &create_replica_methods),
        create_replica_methods,
        basebackup: options(section.get("basebackup")),
        recovery_conf,
        custom_conf: section.filled("custom_conf"),
        callbacks: callbacks(section.section("callbacks")),
        pre_promote: section.filled("pre_promote"),
        before_stop: section.filled("before_stop"),
        pg_ctl_timeout: section.whole("pg_ctl_timeout").and_then(|s| u64::try_from(s).ok()).unwrap_or(60),
        use_unix_socket: flag("use_unix_socket"),
        use_unix_socket_repl: flag("use_unix_socket_repl"),
        krbsrvname: section.filled("krbsrvname"),
        bin_dir: section.text_or("bin_dir", ""),
        bin_name: section.texts("bin_name"),
        database: section.filled("database").unwrap_or_else(|| "postgres".to_owned()),
        config_base_name: section.filled("config_base_name").unwrap_or_else(|| "postgresql".to_owned()),
    };
    (effective, warnings)
}

type Texts = BTreeMap<String, String>;

/// Command line, file and recovery settings.
fn parameters(config: &Config, dynamic: &Dynamic, pg_major: u32, warnings: &mut Vec<String>) -> (Texts, Texts, Texts) {
    let lower = |section: &Map<String, Value>| -> BTreeMap<String, Value> {
        let map = section.get("parameters").and_then(Value::as_object);
        map.into_iter().flatten().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_lowercase(), v.clone())).collect()
    };
    let global = lower(&dynamic.postgresql);
    let mut controlled = Texts::new();
    let mut file = Texts::new();
    let mut recovery = Texts::new();
    let local = lower(&config.postgresql.raw).into_iter();
    let rest = global.clone().into_iter().chain(local).filter(|(name, _)| !is_controlled(name));
    for (name, value) in rest {
        let target = if RECOVERY.contains(&name.as_str()) { &mut recovery } else { &mut file };
        target.insert(name, parameter_text(&value));
    }
    for guc in controlled::resolve(|name| global.get(name).cloned(), pg_major, warnings) {
        file.insert(guc.name.to_owned(), guc.value.clone());
        if !guc.file_only {
            controlled.insert(guc.name.to_owned(), guc.value);
        }
    }
    let (addresses, port) = split_listen(&config.postgresql.listen);
    for (name, value) in [("listen_addresses", addresses), ("port", port), ("cluster_name", config.scope.clone())] {
        controlled.insert(name.to_owned(), value.clone());
        file.insert(name.to_owned(), value);
    }
    (controlled, file, recovery)
}

fn parameter_text(value: &Value) -> String {
    match value {
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => merge::text(value),
    }
}

/// `a,b:5433` → (`a,b`, `5433`); without a port 5432. IPv6 addresses may stand in brackets.
#[must_use]
pub fn split_listen(listen: &str) -> (String, String) {
    let bare = |host: &str| {
        let hosts = host.split(',').map(|host| host.trim().trim_start_matches('[').trim_end_matches(']'));
        hosts.collect::<Vec<_>>().join(",")
    };
    match listen.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (bare(host), port.to_owned())
        }
        Some(_) | None => (bare(listen), "5432".to_owned()),
    }
}

fn replica_methods(section: Section<'_>) -> Vec<String> {
    let listed = |key: &str| Some(section.list(key)).filter(|methods| !methods.is_empty());
    let methods = listed("create_replica_methods").or_else(|| listed("create_replica_method"));
    methods.unwrap_or_else(|| vec!["basebackup".to_owned()])
}

fn method_sections(section: Section<'_>, names: &[String]) -> BTreeMap<String, Map<String, Value>> {
    let named = names.iter().filter(|name| name.as_str() != "basebackup");
    named
        .map(|name| {
            let mut method = section.section(name).0.cloned().unwrap_or_default();
            // The name before Patroni 4.
            if let Some(old) = method.shift_remove("no_master") {
                method.entry("no_leader").or_insert(old);
            }
            (name.clone(), method)
        })
        .collect()
}

/// Options given as a list of flags and one-key maps, or as a map (`initdb`, `basebackup`): name and value, `None` for
/// a flag. Fully quoted values are unquoted.
#[must_use]
pub fn options(given: Option<&Value>) -> Vec<(String, Option<String>)> {
    let pair = |(name, value): (&String, &Value)| {
        let text = merge::text(value);
        let quoted = |q: char| text.len() > 1 && text.starts_with(q) && text.ends_with(q);
        let text = if quoted('\'') || quoted('"') { text[1..text.len() - 1].to_owned() } else { text };
        (name.clone(), (!value.is_null()).then_some(text))
    };
    match given {
        Some(Value::Array(items)) => items
            .iter()
            .flat_map(|item| match item {
                Value::Object(map) => map.iter().map(pair).collect(),
                Value::Null => Vec::new(),
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    vec![(merge::text(item), None)]
                }
            })
            .collect(),
        Some(Value::Object(map)) => map.iter().map(pair).collect(),
        Some(Value::String(flag)) => vec![(flag.clone(), None)],
        Some(Value::Null | Value::Bool(_) | Value::Number(_)) | None => Vec::new(),
    }
}

fn callbacks(section: Section<'_>) -> Callbacks {
    Callbacks {
        on_reload: section.filled("on_reload"),
        on_restart: section.filled("on_restart"),
        on_role_change: section.filled("on_role_change"),
        on_start: section.filled("on_start"),
        on_stop: section.filled("on_stop"),
    }
}
