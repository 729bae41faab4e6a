//! `--validate-config`: a list of problems, one line each, `<path> <value> <text>`.
//!
//! Works on texts alone. Whether ports are free and what lies in the data directory is for the program to look at.
use std::collections::BTreeMap;

use serde_json::Value;

use super::environment::OTHER_STORES;
use super::load::{ConfigError, Refusal, SourceText, document};
use super::local::Section;
use super::{merge, numbers};

const REQUIRED: [&str; 9] = [
    "name",
    "scope",
    "restapi.listen",
    "restapi.connect_address",
    "postgresql.listen",
    "postgresql.connect_address",
    "postgresql.data_dir",
    "postgresql.authentication.replication.username",
    "postgresql.authentication.superuser.username",
];
const LEVELS: [&str; 7] = ["DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"];
/// Key of `bootstrap.dcs` and its smallest value.
const DCS_LEAST: [(&str, i64); 10] = [
    ("ttl", 20),
    ("loop_wait", 1),
    ("retry_timeout", 3),
    ("maximum_lag_on_failover", 0),
    ("maximum_lag_on_syncnode", -1),
    ("member_slots_ttl", 0),
    ("primary_race_backoff", 0),
    ("primary_start_timeout", 0),
    ("primary_stop_timeout", 0),
    ("synchronous_node_count", 1),
];

/// All problems of a configuration; an empty list means it is valid.
#[must_use]
pub fn validate(sources: &[SourceText], env: &BTreeMap<String, String>) -> Vec<String> {
    let document = match document(sources, env) {
        Ok(document) => document.value,
        Err(error) => return vec![error.to_string()],
    };
    let mut problems = match super::load(sources, env) {
        Err(Refusal { error: ConfigError::Invalid(problems), .. }) => problems,
        Ok(_) | Err(_) => Vec::new(),
    };
    required(&document, &mut problems);
    addresses(&document, &mut problems);
    words(&document, &mut problems);
    tags(&document, &mut problems);
    unsupported(&document, &mut problems);
    bootstrap(&document, &mut problems);
    problems
}

fn at<'v>(document: &'v Value, path: &str) -> &'v Value {
    path.split('.').fold(document, |value, key| &value[key])
}

fn required(document: &Value, problems: &mut Vec<String>) {
    for path in REQUIRED {
        if at(document, path).is_null() {
            problems.push(format!("{path}  is not defined."));
        }
    }
    if document.get("kubernetes").is_some() {
        if document["kubernetes"]["labels"].is_null() {
            problems.push("kubernetes.labels  is not defined.".to_owned());
        }
    } else if let Some(store) = OTHER_STORES.iter().find(|store| document.get(**store).is_some()) {
        problems.push(format!("{store}  is not supported, only kubernetes is."));
    } else {
        problems.push("kubernetes  is not defined.".to_owned());
    }
}

/// What this version refuses at a start.
fn unsupported(document: &Value, problems: &mut Vec<String>) {
    let asked = at(document, "kubernetes.bypass_api_service");
    if !asked.is_null() && numbers::parse_bool(&merge::text(asked)) == Some(true) {
        problems.push("kubernetes.bypass_api_service  is not supported; remove the key".to_owned());
    }
}

fn complain(problems: &mut Vec<String>, path: &str, value: &Value, text: &str) {
    problems.push(format!("{path} {} didn't pass validation: {text}", merge::text(value)));
}

fn addresses(document: &Value, problems: &mut Vec<String>) {
    for path in ["restapi.listen", "restapi.connect_address", "postgresql.listen", "postgresql.connect_address"] {
        let value = at(document, path);
        if value.is_null() {
            continue;
        }
        let text = merge::text(value);
        let Some((host, port)) = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok_and(|p| p > 0))
        else {
            complain(problems, path, value, "contains a wrong value");
            continue;
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if path.ends_with("connect_address") && ["127.0.0.1", "0.0.0.0", "*", "::1", "localhost"].contains(&host) {
            complain(
                problems,
                path,
                value,
                "must not contain \"127.0.0.1\", \"0.0.0.0\", \"*\", \"::1\", \"localhost\"",
            );
        }
        if port.starts_with('+') {
            complain(problems, path, value, "contains a wrong value");
        }
    }
    let data_dir = at(document, "postgresql.data_dir");
    if !data_dir.is_null() && data_dir.as_str().is_none_or(str::is_empty) {
        problems.push(format!("postgresql.data_dir {} is an empty string", merge::text(data_dir)));
    }
}

fn words(document: &Value, problems: &mut Vec<String>) {
    for path in ["log.level", "log.traceback_level"] {
        let value = at(document, path);
        if !value.is_null() && !LEVELS.contains(&merge::text(value).as_str()) {
            complain(problems, path, value, "Wrong value");
        }
    }
    let kind = at(document, "log.type");
    if !kind.is_null() && !matches!(kind.as_str(), Some("plain" | "json")) {
        complain(problems, "log.type", kind, "Wrong value");
    }
    let mode = at(document, "log.mode");
    if !mode.is_null() && !numbers::parse_int(&merge::text(mode), None).is_some_and(|mode| (0..=0o777).contains(&mode))
    {
        complain(problems, "log.mode", mode, "Wrong value");
    }
    let mode = at(document, "watchdog.mode");
    if !mode.is_null()
        && *mode != Value::Bool(false)
        && !matches!(mode.as_str(), Some("off" | "automatic" | "required"))
    {
        complain(problems, "watchdog.mode", mode, "Wrong value");
    }
    let ip = at(document, "kubernetes.pod_ip");
    if !ip.is_null() && merge::text(ip).parse::<std::net::IpAddr>().is_err() {
        complain(problems, "kubernetes.pod_ip", ip, "Wrong value");
    }
    for (index, port) in at(document, "kubernetes.ports").as_array().into_iter().flatten().enumerate() {
        if port["name"].is_null() {
            problems.push(format!("kubernetes.ports.{index}.name  is not defined."));
        }
    }
}

fn tags(document: &Value, problems: &mut Vec<String>) {
    let tags = &document["tags"];
    for key in ["nofailover", "clonefrom", "noloadbalance", "nosync", "nostream"] {
        if !tags[key].is_null() && !tags[key].is_boolean() {
            problems.push(format!("tags.{key} {} is not a boolean", merge::text(&tags[key])));
        }
    }
    for (flag, priority) in [("nofailover", "failover_priority"), ("nosync", "sync_priority")] {
        if !tags[flag].is_null() && !tags[priority].is_null() {
            problems.push(format!("tags  Multiple of ('{flag}', '{priority}') provided"));
        }
    }
}

fn bootstrap(document: &Value, problems: &mut Vec<String>) {
    let dcs = at(document, "bootstrap.dcs");
    for (key, least) in DCS_LEAST {
        let unit = (key == "member_slots_ttl").then_some("s");
        let value = &dcs[key];
        if !value.is_null() && numbers::parse_int(&merge::text(value), unit).is_none_or(|number| number < least) {
            complain(problems, &format!("bootstrap.dcs.{key}"), value, "Wrong value");
        }
    }
    let mode = &dcs["synchronous_mode"];
    let quorum = mode.as_str().is_some_and(|text| text.eq_ignore_ascii_case("quorum"));
    if !mode.is_null() && !quorum && numbers::parse_bool(&merge::text(mode)).is_none() {
        complain(problems, "bootstrap.dcs.synchronous_mode", mode, "Wrong value");
    }
    let wishes = super::unsupported(&super::Dynamic::parse(dcs).0);
    problems.extend(
        wishes.into_iter().map(|wish| format!("bootstrap.dcs  {}", wish.replace("the dynamic configuration", "it"))),
    );
    let standby = Section::of(dcs).section("standby_cluster");
    let named = ["host", "port", "restore_command"].iter().any(|key| standby.get(key).is_some());
    if standby.0.is_some() && !named {
        problems.push("bootstrap.dcs.standby_cluster  needs host, port or restore_command".to_owned());
    }
}
