//! `PATRONI_*` variables as a document.
//!
//! Empty values are ignored. A value of the wrong shape and an unknown variable are reported, never fatal: the
//! environment of a container holds many things.
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::keys::{Kind, is_dynamic, nearest};
use super::{merge, numbers, yaml};

const TOP: &[(&str, Kind)] = &[
    ("NAME", Kind::Text),
    ("SCOPE", Kind::Text),
    ("SITE", Kind::Text),
    ("NAMESPACE", Kind::Text),
    ("PRIMARY_ROLE_NAME", Kind::Text),
    ("THREAD_POOL_SIZE", Kind::Whole),
    ("THREAD_STACK_SIZE", Kind::Size),
];

/// Variables whose name is not simply `PATRONI_<SECTION>_<KEY>`; the newer of two names stands later and wins.
const SPECIAL: &[(&str, &str, Kind)] = &[
    ("LOGLEVEL", "log.level", Kind::Text),
    ("LOGFORMAT", "log.format", Kind::Text),
    ("LOG_DATEFMT", "log.dateformat", Kind::Text),
    ("RESTAPI_USERNAME", "restapi.authentication.username", Kind::Text),
    ("RESTAPI_PASSWORD", "restapi.authentication.password", Kind::Text),
    ("CTL_USERNAME", "ctl.authentication.username", Kind::Text),
    ("CTL_PASSWORD", "ctl.authentication.password", Kind::Text),
    ("CITUS_GROUP", "citus.group", Kind::Whole),
    ("CITUS_DATABASE", "citus.database", Kind::Text),
];

const POSTGRESQL: &[&str] =
    &["listen", "connect_address", "proxy_address", "data_dir", "config_dir", "bin_dir", "pgpass"];
/// Tools whose names `postgresql.bin_name` and `PATRONI_POSTGRESQL_BIN_<TOOL>` may change.
pub(super) const TOOLS: &[&str] =
    &["pg_ctl", "initdb", "pg_controldata", "pg_basebackup", "postgres", "pg_isready", "pg_rewind"];
/// Keys that survive in `postgresql.authentication.*`.
pub(super) const AUTH_KEYS: &[&str] = &[
    "username",
    "password",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];
/// Stores this implementation does not speak, in the order Patroni would pick them.
pub(super) const OTHER_STORES: &[&str] = &["consul", "etcd", "etcd3", "exhibitor", "raft", "zookeeper"];

/// Every recognized variable with the path it sets.
fn table() -> Vec<(String, String, Kind)> {
    let mut rows: Vec<(String, String, Kind)> = Vec::new();
    for (name, kind) in TOP {
        rows.push(((*name).to_owned(), name.to_lowercase(), *kind));
    }
    for (name, path, kind) in SPECIAL {
        rows.push(((*name).to_owned(), (*path).to_owned(), *kind));
    }
    for section in ["log", "restapi", "ctl", "kubernetes", "keeper"] {
        for (key, kind) in super::keys::children(section).filter(|(_, kind)| *kind != Kind::Section) {
            rows.push((format!("{section}_{key}").to_uppercase(), format!("{section}.{key}"), kind));
        }
    }
    for key in POSTGRESQL {
        rows.push((format!("POSTGRESQL_{}", key.to_uppercase()), format!("postgresql.{key}"), Kind::Text));
    }
    for tool in TOOLS {
        rows.push((
            format!("POSTGRESQL_BIN_{}", tool.to_uppercase()),
            format!("postgresql.bin_name.{tool}"),
            Kind::Text,
        ));
    }
    for user in ["superuser", "replication", "rewind"] {
        for key in AUTH_KEYS {
            let path = format!("postgresql.authentication.{user}.{key}");
            rows.push((format!("{user}_{key}").to_uppercase(), path, Kind::Text));
        }
    }
    rows
}

/// The document the environment describes, and warnings about variables that could not be used.
pub(super) fn document(env: &BTreeMap<String, String>) -> (Value, Vec<String>) {
    let mut document = Value::Object(Map::new());
    let mut warnings = Vec::new();
    let table = table();
    for (suffix, path, kind) in &table {
        let name = format!("PATRONI_{suffix}");
        let Some(text) = env.get(&name).filter(|text| !text.is_empty()) else {
            continue;
        };
        match read(*kind, path, text) {
            Some(value) => set(&mut document, path, value),
            None => warnings.push(format!("{name} is ignored: {path} must be {}", kind.wants())),
        }
    }
    for name in env.keys() {
        let Some(suffix) = name.strip_prefix("PATRONI_") else {
            continue;
        };
        let known = suffix == "CONFIGURATION" || table.iter().any(|(known, _, _)| known == suffix);
        let store = OTHER_STORES
            .iter()
            .find(|store| suffix.to_lowercase().strip_prefix(**store).is_some_and(|rest| rest.starts_with('_')));
        if let Some(store) = store {
            let key = suffix[store.len() + 1..].to_lowercase();
            set(&mut document, &format!("{store}.{key}"), Value::from(env[name].as_str()));
        } else if is_dynamic(&suffix.to_lowercase()) {
            let key = suffix.to_lowercase();
            warnings.push(format!("{name} is ignored; set {key} with patronictl edit-config"));
        } else if !known {
            let hint = nearest(suffix, table.iter().map(|(known, _, _)| known.as_str()));
            let hint = hint.map_or(String::new(), |near| format!(", did you mean PATRONI_{near}?"));
            warnings.push(format!("{name} is not a variable of the configuration{hint}"));
        }
    }
    (document, warnings)
}

fn read(kind: Kind, path: &str, text: &str) -> Option<Value> {
    match kind {
        Kind::Text | Kind::Size => Some(Value::from(text)),
        Kind::Flag => numbers::parse_bool(text).map(Value::Bool),
        Kind::Whole => numbers::parse_int(text, None).map(Value::from),
        Kind::Free | Kind::Section => {
            let braced = if text.trim_start().starts_with('{') { text.to_owned() } else { format!("{{{text}}}") };
            yaml::parse(path, &braced).ok().filter(Value::is_object)
        }
        Kind::List | Kind::ListOrFree | Kind::ListOrText => {
            let trimmed = text.trim();
            let bracketed = if trimmed.starts_with(['[', '-']) { trimmed.to_owned() } else { format!("[{trimmed}]") };
            yaml::parse(path, &bracketed).ok().filter(Value::is_array)
        }
        // `log.format` is text or a list of fields, `log.mode` an octal number.
        Kind::Any if path == "log.format" && !text.trim_start().starts_with('[') => Some(Value::from(text)),
        Kind::Any => yaml::parse(path, text).ok(),
    }
}

fn set(document: &mut Value, path: &str, value: Value) {
    let nested = path.rsplit('.').fold(value, |inner, key| {
        let mut map = Map::new();
        map.insert(key.to_owned(), inner);
        Value::Object(map)
    });
    merge::overlay(document, &nested);
}
