//! From the checked document to [`Config`]: Patroni's defaults.
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::environment::AUTH_KEYS;
use super::keys;
use super::local::{
    Authentication, BasicAuth, Bootstrap, Config, Ctl, Kubernetes, Log, PgAuth, Port, Postgresql, RestApi, Section,
    Watchdog,
};
use super::merge;
use crate::model::{ProofOfDeath, WatchdogMode};

/// Builds the typed configuration. Values that are outside their words go to `problems`, harmless ones to `warnings`.
pub(super) fn config(document: Value, problems: &mut Vec<String>, warnings: &mut Vec<String>) -> Config {
    let top = Section::of(&document);
    let namespace = top.filled("namespace");
    let primary_role_name = top.text_or("primary_role_name", "primary");
    if !matches!(primary_role_name.as_str(), "primary" | "master") {
        problems.push(format!("primary_role_name: {primary_role_name:?} must be primary or master"));
    }
    let restapi = restapi(top.section("restapi"), problems);
    let mut ctl = ctl(top.section("ctl"));
    ctl.authentication = ctl.authentication.or_else(|| restapi.authentication.clone());
    ctl.cacert = ctl.cacert.or_else(|| restapi.cafile.clone());
    let mut kubernetes = kubernetes(top.section("kubernetes"), problems);
    if let Some(namespace) = &namespace {
        if *namespace != kubernetes.namespace && top.section("kubernetes").filled("namespace").is_some() {
            warnings.push(format!(
                "namespace: {namespace:?} at the top level replaces kubernetes.namespace {:?}",
                kubernetes.namespace
            ));
        }
        kubernetes.namespace.clone_from(namespace);
    }
    Config {
        name: top.text_or("name", ""),
        scope: top.text_or("scope", ""),
        namespace,
        site: top.filled("site"),
        primary_role_name,
        log: log(top.section("log"), warnings),
        restapi,
        ctl,
        kubernetes,
        bootstrap: top.get("bootstrap").map(|_| bootstrap(top.section("bootstrap"), warnings)),
        postgresql: postgresql(top.section("postgresql")),
        watchdog: watchdog(top.section("watchdog"), warnings),
        tags: top.section("tags").0.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        raw: document,
    }
}

fn basic_auth(section: Section<'_>) -> Option<BasicAuth> {
    let auth = section.section("authentication");
    let username = auth.filled("username")?;
    Some(BasicAuth { username, password: auth.secret("password").unwrap_or_default() })
}

fn log(section: Section<'_>, warnings: &mut Vec<String>) -> Log {
    let mut level = |key: &str, default: &str| {
        let level = section.text_or(key, default).to_uppercase();
        if matches!(level.as_str(), "DEBUG" | "INFO" | "WARN" | "WARNING" | "ERROR" | "FATAL" | "CRITICAL") {
            return level;
        }
        warnings
            .push(format!("log.{key}: {level} is no level (DEBUG, INFO, WARNING, ERROR, CRITICAL); using {default}"));
        default.to_owned()
    };
    Log {
        level: level("level", "INFO"),
        traceback_level: level("traceback_level", "ERROR"),
        json: section.text("type").is_some_and(|kind| kind.eq_ignore_ascii_case("json")),
        format: section.get("format").cloned(),
        dateformat: section.filled("dateformat"),
        static_fields: section.section("static_fields").0.cloned().unwrap_or_default(),
        max_queue_size: section.whole("max_queue_size").unwrap_or(1000),
        dir: section.filled("dir"),
        mode: section.whole("mode"),
        file_num: section.whole("file_num").unwrap_or(4),
        file_size: section.whole("file_size").unwrap_or(25_000_000),
        loggers: section.texts("loggers"),
        deduplicate_heartbeat_logs: section.flag("deduplicate_heartbeat_logs").unwrap_or(false),
    }
}

fn restapi(section: Section<'_>, problems: &mut Vec<String>) -> RestApi {
    let listen = section.text_or("listen", "");
    let verify_client = section.text_or("verify_client", "none").to_lowercase();
    if !matches!(verify_client.as_str(), "none" | "optional" | "required") {
        problems.push(format!("restapi.verify_client: {verify_client:?} must be none, optional or required"));
    }
    RestApi {
        connect_address: section.filled("connect_address").unwrap_or_else(|| listen.clone()),
        listen,
        authentication: basic_auth(section),
        certfile: section.filled("certfile"),
        keyfile: section.filled("keyfile"),
        keyfile_password: section.secret("keyfile_password"),
        cafile: section.filled("cafile"),
        verify_client,
        ciphers: section.filled("ciphers"),
        allowlist: section.list("allowlist"),
        allowlist_include_members: section.flag("allowlist_include_members").unwrap_or(false),
        http_extra_headers: section.texts("http_extra_headers"),
        https_extra_headers: section.texts("https_extra_headers"),
        request_queue_size: section.whole("request_queue_size").unwrap_or(5),
        server_tokens: section.text_or("server_tokens", "Original"),
    }
}

fn ctl(section: Section<'_>) -> Ctl {
    Ctl {
        authentication: basic_auth(section),
        insecure: section.flag("insecure").unwrap_or(false),
        cacert: section.filled("cacert"),
        certfile: section.filled("certfile"),
        keyfile: section.filled("keyfile"),
        keyfile_password: section.secret("keyfile_password"),
    }
}

fn kubernetes(section: Section<'_>, problems: &mut Vec<String>) -> Kubernetes {
    let mut proof_of_death = Vec::new();
    for word in section.list("proof_of_death") {
        match word.as_str() {
            "released" => proof_of_death.push(ProofOfDeath::Released),
            "terminated" => proof_of_death.push(ProofOfDeath::Terminated),
            "deleted" => proof_of_death.push(ProofOfDeath::Deleted),
            _ => problems.push(format!("kubernetes.proof_of_death: {word:?} must be released, terminated or deleted")),
        }
    }
    if section.get("proof_of_death").is_none() {
        proof_of_death = vec![ProofOfDeath::Released, ProofOfDeath::Terminated];
    }
    let mut codes = Vec::new();
    for code in section.list("retriable_http_codes") {
        match code.parse::<u16>() {
            Ok(code) if (100..600).contains(&code) => codes.push(code),
            Ok(_) | Err(_) => problems.push(format!("kubernetes.retriable_http_codes: {code:?} is no HTTP status")),
        }
    }
    Kubernetes {
        labels: section.texts("labels"),
        namespace: section.filled("namespace").unwrap_or_else(|| "default".to_owned()),
        scope_label: section.text_or("scope_label", "cluster-name"),
        role_label: section.text_or("role_label", "role"),
        leader_label_value: section.text_or("leader_label_value", "master"),
        follower_label_value: section.text_or("follower_label_value", "replica"),
        standby_leader_label_value: section.text_or("standby_leader_label_value", "primary"),
        tmp_role_label: section.filled("tmp_role_label"),
        bootstrap_labels: section.texts("bootstrap_labels"),
        use_endpoints: section.flag("use_endpoints").unwrap_or(false),
        pod_ip: section.filled("pod_ip"),
        ports: ports(section, problems),
        context: section.text_or("context", "kind-kind"),
        cacert: section.filled("cacert"),
        bypass_api_service: section.flag("bypass_api_service").unwrap_or(false),
        retriable_http_codes: codes,
        proof_of_death,
    }
}

fn ports(section: Section<'_>, problems: &mut Vec<String>) -> Vec<Port> {
    let Some(items) = section.get("ports").and_then(Value::as_array).filter(|items| !items.is_empty()) else {
        return vec![Port { name: None, port: 5432, protocol: None }];
    };
    let mut ports = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let item = Section::of(item);
        match item.whole("port").and_then(|port| u16::try_from(port).ok()) {
            Some(port) => ports.push(Port { name: item.filled("name"), port, protocol: item.filled("protocol") }),
            None => problems.push(format!("kubernetes.ports.{index}: needs `port`, a number up to 65535")),
        }
    }
    ports
}

fn bootstrap(section: Section<'_>, warnings: &mut Vec<String>) -> Bootstrap {
    if section.get("users").is_some() {
        warnings
            .push("bootstrap.users is ignored since Patroni 4.0; create users in bootstrap.post_bootstrap".to_owned());
    }
    let known: Vec<&str> = keys::children("bootstrap").map(|(key, _)| key).collect();
    let methods: BTreeMap<String, Map<String, Value>> = section
        .0
        .into_iter()
        .flatten()
        .filter(|(key, _)| !known.contains(&key.as_str()))
        .filter_map(|(key, value)| Some((key.clone(), value.as_object()?.clone())))
        .collect();
    let mut method = section.text_or("method", "initdb");
    if method != "initdb" && !methods.get(&method).is_some_and(|m| m.contains_key("command")) {
        warnings
            .push(format!("bootstrap.method: {method} has no section bootstrap.{method} with `command`; using initdb"));
        method = "initdb".to_owned();
    }
    Bootstrap {
        dcs: section.get("dcs").cloned().unwrap_or(Value::Object(Map::new())),
        method,
        initdb: section.get("initdb").cloned().unwrap_or(Value::Null),
        methods,
        post_bootstrap: section.filled("post_bootstrap").or_else(|| section.filled("post_init")),
        pg_hba: section.lines("pg_hba").unwrap_or_default(),
    }
}

fn pg_auth(section: Section<'_>) -> PgAuth {
    let plain = AUTH_KEYS.iter().filter(|key| !matches!(**key, "username" | "password" | "sslpassword"));
    PgAuth {
        username: section.filled("username"),
        password: section.secret("password"),
        sslpassword: section.secret("sslpassword"),
        options: plain.filter_map(|key| Some(((*key).to_owned(), section.text(key)?))).collect(),
    }
}

fn postgresql(section: Section<'_>) -> Postgresql {
    let auth = section.section("authentication");
    let data_dir = section.text_or("data_dir", "");
    let mut raw = section.0.cloned().unwrap_or_default();
    raw.shift_remove("authentication");
    Postgresql {
        listen: section.text_or("listen", ""),
        connect_address: section.filled("connect_address"),
        proxy_address: section.filled("proxy_address"),
        config_dir: section.filled("config_dir").unwrap_or_else(|| data_dir.clone()),
        data_dir,
        pgpass: section.filled("pgpass"),
        bin_dir: section.text_or("bin_dir", ""),
        bin_name: section.texts("bin_name"),
        database: section.filled("database").unwrap_or_else(|| "postgres".to_owned()),
        config_base_name: section.filled("config_base_name").unwrap_or_else(|| "postgresql".to_owned()),
        authentication: Authentication {
            superuser: pg_auth(auth.section("superuser")),
            replication: pg_auth(auth.section("replication")),
            rewind: auth.get("rewind").map(|_| pg_auth(auth.section("rewind"))),
        },
        raw,
    }
}

fn watchdog(section: Section<'_>, warnings: &mut Vec<String>) -> Watchdog {
    let word = section.get("mode").map_or_else(|| "automatic".to_owned(), merge::text);
    let mode = match word.to_lowercase().as_str() {
        "off" | "disable" | "disabled" | "false" => WatchdogMode::Off,
        "auto" | "automatic" => WatchdogMode::Automatic,
        "require" | "required" => WatchdogMode::Required,
        _ => {
            warnings.push(format!("watchdog.mode: {word} is unknown (off, automatic, required); the watchdog is off"));
            WatchdogMode::Off
        }
    };
    let testing = match section.text_or("driver", "default").as_str() {
        "default" => false,
        "testing" => true,
        other => {
            warnings.push(format!("watchdog.driver: {other} is unknown (default, testing); using default"));
            false
        }
    };
    Watchdog {
        mode,
        testing,
        device: section.text_or("device", "/dev/watchdog"),
        safety_margin: section.whole("safety_margin").unwrap_or(5),
    }
}
