//! Every key of the local file, once: the type check, the unknown-key warning and the JSON Schema all read this table.
use serde_json::{Map, Value, json};

use super::{merge, numbers};

/// What a value must look like. Scalars are lenient, as Patroni is: `name: 5` and `port: "5432"` are fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text (any scalar).
    Text,
    /// True or false, also as on/off/yes/no text.
    Flag,
    /// Integer, also as text.
    Whole,
    /// Integer with or without unit.
    Size,
    /// A mapping with keys listed in the table.
    Section,
    /// A mapping with free keys.
    Free,
    /// A list.
    List,
    /// A list, or a mapping.
    ListOrFree,
    /// A list, or comma separated text, or a number.
    ListOrText,
    /// Anything.
    Any,
}

use Kind::{Any, Flag, Free, List, ListOrFree, ListOrText, Section, Size, Text, Whole};

/// `section.key`, its kind. Sections stand before their keys.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("name", Text),
    ("scope", Text),
    ("namespace", Text),
    ("site", Text),
    ("primary_role_name", Text),
    ("thread_pool_size", Whole),
    ("thread_stack_size", Size),
    ("ttl", Whole),
    ("loop_wait", Whole),
    ("retry_timeout", Whole),
    ("tags", Free),
    ("standby_cluster", Free),
    ("citus", Free),
    ("etcd", Any),
    ("etcd3", Any),
    ("consul", Any),
    ("zookeeper", Any),
    ("exhibitor", Any),
    ("raft", Any),
    ("log", Section),
    ("log.type", Text),
    ("log.level", Text),
    ("log.traceback_level", Text),
    ("log.format", Any),
    ("log.dateformat", Text),
    ("log.static_fields", Free),
    ("log.max_queue_size", Whole),
    ("log.dir", Text),
    ("log.mode", Any),
    ("log.file_num", Whole),
    ("log.file_size", Whole),
    ("log.loggers", Free),
    ("log.deduplicate_heartbeat_logs", Flag),
    ("restapi", Section),
    ("restapi.listen", Text),
    ("restapi.connect_address", Text),
    ("restapi.authentication", Section),
    ("restapi.authentication.username", Text),
    ("restapi.authentication.password", Text),
    ("restapi.certfile", Text),
    ("restapi.keyfile", Text),
    ("restapi.keyfile_password", Text),
    ("restapi.cafile", Text),
    ("restapi.verify_client", Text),
    ("restapi.ciphers", Text),
    ("restapi.allowlist", ListOrText),
    ("restapi.allowlist_include_members", Flag),
    ("restapi.http_extra_headers", Free),
    ("restapi.https_extra_headers", Free),
    ("restapi.request_queue_size", Whole),
    ("restapi.server_tokens", Text),
    ("restapi.thread_pool_size", Whole),
    ("ctl", Section),
    ("ctl.authentication", Section),
    ("ctl.authentication.username", Text),
    ("ctl.authentication.password", Text),
    ("ctl.insecure", Flag),
    ("ctl.cacert", Text),
    ("ctl.certfile", Text),
    ("ctl.keyfile", Text),
    ("ctl.keyfile_password", Text),
    ("kubernetes", Section),
    ("kubernetes.labels", Free),
    ("kubernetes.scope_label", Text),
    ("kubernetes.namespace", Text),
    ("kubernetes.role_label", Text),
    ("kubernetes.leader_label_value", Text),
    ("kubernetes.follower_label_value", Text),
    ("kubernetes.standby_leader_label_value", Text),
    ("kubernetes.tmp_role_label", Text),
    ("kubernetes.bootstrap_labels", Free),
    ("kubernetes.use_endpoints", Flag),
    ("kubernetes.pod_ip", Text),
    ("kubernetes.ports", List),
    ("kubernetes.bypass_api_service", Flag),
    ("kubernetes.cacert", Text),
    ("kubernetes.context", Text),
    ("kubernetes.retriable_http_codes", ListOrText),
    ("kubernetes.proof_of_death", ListOrText),
    ("bootstrap", Section),
    ("bootstrap.dcs", Free),
    ("bootstrap.method", Text),
    ("bootstrap.initdb", ListOrFree),
    ("bootstrap.post_bootstrap", Text),
    ("bootstrap.post_init", Text),
    ("bootstrap.pg_hba", List),
    ("bootstrap.users", Any),
    ("keeper", Section),
    ("keeper.socket", Text),
    ("keeper.container", Text),
    ("watchdog", Section),
    ("watchdog.mode", Text),
    ("watchdog.device", Text),
    ("watchdog.safety_margin", Whole),
    ("watchdog.driver", Text),
    ("postgresql", Section),
    ("postgresql.listen", Text),
    ("postgresql.connect_address", Text),
    ("postgresql.proxy_address", Text),
    ("postgresql.data_dir", Text),
    ("postgresql.config_dir", Text),
    ("postgresql.bin_dir", Text),
    ("postgresql.bin_name", Free),
    ("postgresql.pgpass", Text),
    ("postgresql.database", Text),
    ("postgresql.config_base_name", Text),
    ("postgresql.authentication", Section),
    ("postgresql.authentication.superuser", Free),
    ("postgresql.authentication.replication", Free),
    ("postgresql.authentication.rewind", Free),
    ("postgresql.parameters", Free),
    ("postgresql.pg_hba", List),
    ("postgresql.pg_ident", List),
    ("postgresql.use_slots", Flag),
    ("postgresql.use_pg_rewind", Flag),
    ("postgresql.remove_data_directory_on_rewind_failure", Flag),
    ("postgresql.remove_data_directory_on_diverged_timelines", Flag),
    ("postgresql.create_replica_methods", List),
    ("postgresql.create_replica_method", List),
    ("postgresql.basebackup", ListOrFree),
    ("postgresql.recovery_conf", Free),
    ("postgresql.custom_conf", Text),
    ("postgresql.callbacks", Section),
    ("postgresql.callbacks.on_reload", Text),
    ("postgresql.callbacks.on_restart", Text),
    ("postgresql.callbacks.on_role_change", Text),
    ("postgresql.callbacks.on_start", Text),
    ("postgresql.callbacks.on_stop", Text),
    ("postgresql.pre_promote", Text),
    ("postgresql.before_stop", Text),
    ("postgresql.pg_ctl_timeout", Whole),
    ("postgresql.use_unix_socket", Flag),
    ("postgresql.use_unix_socket_repl", Flag),
    ("postgresql.krbsrvname", Text),
    ("postgresql.name", Text),
    ("postgresql.replication", Free),
    ("postgresql.superuser", Free),
    ("postgresql.pg_rewind", Free),
];

/// Keys of the dynamic configuration.
pub(super) const DYNAMIC_KEYS: &[&str] = &[
    "ttl",
    "loop_wait",
    "retry_timeout",
    "maximum_lag_on_failover",
    "maximum_lag_on_syncnode",
    "max_timelines_history",
    "primary_race_backoff",
    "failover_site",
    "primary_start_timeout",
    "master_start_timeout",
    "primary_stop_timeout",
    "master_stop_timeout",
    "check_timeline",
    "synchronous_mode",
    "synchronous_mode_strict",
    "synchronous_node_count",
    "failsafe_mode",
    "pause",
    "member_slots_ttl",
    "slots",
    "permanent_slots",
    "permanent_replication_slots",
    "ignore_slots",
    "standby_cluster",
    "postgresql",
];

impl Kind {
    /// What is right, for an error message.
    pub(super) fn wants(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Flag => "true or false",
            Kind::Whole => "a whole number",
            Kind::Size => "a number, with or without unit",
            Kind::Section | Kind::Free => "a mapping (key: value)",
            Kind::List => "a list (- item)",
            Kind::ListOrFree => "a list or a mapping",
            Kind::ListOrText => "a list or comma separated text",
            Kind::Any => "anything",
        }
    }

    /// Whether a value is of this kind. Null always is: it means absent.
    pub(super) fn fits(self, value: &Value) -> bool {
        let scalar = !value.is_array() && !value.is_object();
        value.is_null()
            || match self {
                Kind::Text => scalar,
                Kind::Flag => scalar && numbers::parse_bool(&merge::text(value)).is_some(),
                Kind::Whole => scalar && numbers::parse_int(&merge::text(value), None).is_some(),
                Kind::Size => scalar && numbers::parse_int(&merge::text(value), Some("B")).is_some(),
                Kind::Section | Kind::Free => value.is_object(),
                Kind::List => value.is_array(),
                Kind::ListOrFree => !scalar,
                Kind::ListOrText => !value.is_object(),
                Kind::Any => true,
            }
    }

    fn schema(self) -> Value {
        match self {
            Kind::Text => json!({"type": ["string", "number", "boolean", "null"]}),
            Kind::Flag => {
                json!({"anyOf": [{"type": ["boolean", "null"]}, {"enum": ["on", "off", "yes", "no", "true", "false", 0, 1]}]})
            }
            Kind::Whole => json!({"type": ["integer", "string", "null"]}),
            Kind::Size => json!({"type": ["integer", "string", "null"]}),
            Kind::Section | Kind::Free => json!({"type": ["object", "null"]}),
            Kind::List => json!({"type": ["array", "null"]}),
            Kind::ListOrFree => json!({"type": ["array", "object", "null"]}),
            Kind::ListOrText => json!({"type": ["array", "string", "integer", "null"]}),
            Kind::Any => json!({}),
        }
    }
}

/// JSON Schema of the local file, for editors.
#[must_use]
pub fn schema() -> schemars::Schema {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Patroni configuration",
        "type": "object",
        "properties": {},
    });
    for (path, kind) in KEYS {
        let mut node = &mut root;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let properties = &mut node["properties"];
            if properties.is_null() {
                *properties = Value::Object(Map::new());
            }
            node = &mut properties[part];
            if parts.peek().is_none() {
                *node = kind.schema();
            }
        }
    }
    if let Value::Object(properties) = &mut root["properties"]["bootstrap"]["properties"]["dcs"] {
        let known: Map<String, Value> = DYNAMIC_KEYS.iter().map(|key| ((*key).to_owned(), json!({}))).collect();
        properties.insert("properties".to_owned(), Value::Object(known));
    }
    match root {
        Value::Object(map) => map.into(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            schemars::Schema::default()
        }
    }
}

/// Direct children of a section (`""` is the top level).
pub(super) fn children(section: &str) -> impl Iterator<Item = (&'static str, Kind)> {
    KEYS.iter().filter_map(move |(path, kind)| match path.rsplit_once('.') {
        Some((parent, key)) => (parent == section).then_some((key, *kind)),
        None => section.is_empty().then_some((*path, *kind)),
    })
}

/// A key of the dynamic configuration that the local file does not have.
pub(super) fn is_dynamic(key: &str) -> bool {
    key != "postgresql" && DYNAMIC_KEYS.contains(&key)
}

/// Where a key that stands in the wrong section belongs, if it is the only such place.
pub(super) fn elsewhere(key: &str) -> Option<String> {
    if is_dynamic(key) {
        return Some(format!("bootstrap.dcs.{key}"));
    }
    let mut places = KEYS.iter().map(|(path, _)| *path).filter(|path| path.rsplit('.').next() == Some(key));
    places.next().filter(|_| places.next().is_none()).map(str::to_owned)
}

/// The known key closest to a mistyped one, if close enough to be meant.
pub(super) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).max(1);
    known.map(|key| (distance(wrong, key), key)).filter(|(d, _)| *d <= limit).min().map(|(_, key)| key)
}

/// How many keys were pressed wrongly: missing, superfluous and wrong ones, and two in the wrong order.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = substituted.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
