//! `--generate-sample-config`: a complete file to start from. Unknown values are `#FIXME`. The tags
//! leave out `sync_priority`, which next to `nosync` would fail our own validation.
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{environment, merge, yaml};

/// What the program finds out about its surroundings.
#[derive(Clone, Debug)]
pub struct SampleFacts {
    /// Host name, used as member name.
    pub host_name: String,
    /// Address of this host.
    pub address: String,
    /// Major version of Postgres.
    pub pg_major: u32,
}

const ORDER: [&str; 10] =
    ["scope", "namespace", "name", "log", "restapi", "ctl", "kubernetes", "bootstrap", "postgresql", "watchdog"];

/// The sample as YAML, without a final newline. Environment variables override its values.
#[must_use]
pub fn sample(facts: &SampleFacts, env: &BTreeMap<String, String>) -> String {
    let mut document = document(facts);
    merge::overlay(&mut document, &environment::document(env).0);
    let mut parts = Vec::new();
    for key in ORDER.iter().copied().chain(["tags"]) {
        if key == "bootstrap" {
            parts.push(
                "\n# The bootstrap configuration. Works only when the cluster is not yet initialized.\n".to_owned(),
            );
            parts.push(
                "# `dcs` becomes the dynamic configuration; change it later with patronictl edit-config.\n".to_owned(),
            );
        }
        if let Some(value) = document.get(key) {
            let mut one = Map::new();
            one.insert(key.to_owned(), value.clone());
            parts.push(yaml::to_string_block(&Value::Object(one)));
        }
    }
    parts.concat().trim_end().to_owned()
}

fn document(facts: &SampleFacts) -> Value {
    let method = if facts.pg_major >= 10 { "scram-sha-256" } else { "md5" };
    let mut parameters = json!({
        "hot_standby": "on", "max_connections": 100, "max_locks_per_transaction": 64, "max_prepared_transactions": 0,
        "max_replication_slots": 10, "max_wal_senders": 10, "max_worker_processes": 8, "track_commit_timestamp": "off",
        "wal_level": "replica", "wal_log_hints": "on",
    });
    if facts.pg_major >= 13 {
        parameters["wal_keep_size"] = json!("128MB");
    } else {
        parameters["wal_keep_segments"] = json!(8);
    }
    let mut authentication = json!({
        "superuser": {"username": "postgres", "password": "#FIXME"},
        "replication": {"username": "replicator", "password": "#FIXME"},
    });
    if facts.pg_major >= 11 {
        authentication["rewind"] = json!({"username": "rewind_user", "password": "#FIXME"});
    }
    let (api, server) = (format!("{}:8008", facts.address), format!("{}:5432", facts.address));
    json!({
        "scope": "#FIXME",
        "name": facts.host_name,
        "log": {"type": "plain", "level": "INFO", "traceback_level": "ERROR", "format": "%(asctime)s %(levelname)s: %(message)s",
            "max_queue_size": 1000},
        "restapi": {"listen": api, "connect_address": api},
        "kubernetes": {"labels": {"application": "patroni"}, "namespace": "default", "use_endpoints": true},
        "bootstrap": {"dcs": {"ttl": 30, "loop_wait": 10, "retry_timeout": 10,
            "postgresql": {"parameters": parameters, "use_pg_rewind": true, "use_slots": true}}},
        "postgresql": {
            "listen": server, "connect_address": server, "data_dir": "#FIXME", "bin_dir": "", "authentication": authentication,
            "pg_hba": [format!("host all all all {method}"), format!("host replication replicator all {method}")],
        },
        "watchdog": {"mode": "off"},
        "tags": {"failover_priority": 1, "noloadbalance": false, "clonefrom": true, "nosync": false, "nostream": false},
    })
}
