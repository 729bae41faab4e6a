//! Member data: the `status` annotation of a pod and the labels beside it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::options::StoreOptions;
use super::super::{CONTRACT_VERSION, IMPLEMENTATION, MemberStatus};
use super::{Annotations, Patch, STATUS, lsn_of};
use crate::model::{Lsn, Member, MemberName, PostgresState, Role, Tags, Timeline};

/// Label → value, `None` = the label is to be absent.
pub type Labels = BTreeMap<String, Option<String>>;

const IMPL: &str = "patroni.impl";

/// A pod's member data. What the annotation does not carry (UID, address, label, containers) is left at its default.
pub fn member_from(name: &str, a: &Annotations, warnings: &mut Vec<String>) -> Member {
    let Some(text) = a.get(STATUS).filter(|t| !t.is_empty()) else { return Member::default() };
    if text.starts_with("postgres") {
        return ancient(text);
    }
    let Ok(Value::Object(o)) = serde_json::from_str::<Value>(text) else {
        warnings.push(format!("annotation status of pod {name} is not a JSON object: ignored"));
        return Member { raw: text.clone(), ..Member::default() };
    };
    let string = |key: &str| o.get(key).and_then(Value::as_str).map(str::to_owned);
    let lsn = |key: &str| o.get(key).and_then(lsn_of);
    Member {
        conn_url: string("conn_url"),
        api_url: string("api_url"),
        state: string("state").map(|w| PostgresState::from_word(&w)),
        role: string("role").and_then(|w| Role::from_word(&w)),
        version: string("version"),
        implementation: string(IMPL),
        xlog_location: lsn("xlog_location"),
        receive_lsn: lsn("receive_lsn"),
        replay_lsn: lsn("replay_lsn"),
        replication_state: string("replication_state"),
        timeline: o.get("timeline").and_then(Value::as_u64).and_then(|t| u32::try_from(t).ok()).map(Timeline),
        checkpoint_pending: o.get("checkpoint_after_promote") == Some(&Value::Bool(false)),
        pending_restart: o.get("pending_restart").is_some_and(truthy),
        tags: o.get("tags").and_then(Value::as_object).map(tags_from).unwrap_or_default(),
        site: string("site"),
        pending_restart_reason: o
            .get("pending_restart_reason")
            .and_then(Value::as_object)
            .map(reasons_from)
            .unwrap_or_default(),
        raw: text.clone(),
        ..Member::default()
    }
}

/// The form of very old members: `postgres://host:port/db?application_name=<api_url>`.
fn ancient(text: &str) -> Member {
    let (conn_url, query) = text.split_once('?').unwrap_or((text, ""));
    let api_url = query.split('&').find_map(|pair| pair.strip_prefix("application_name="));
    Member {
        conn_url: Some(conn_url.to_owned()),
        api_url: api_url.map(|u| u.replace("%3A", ":").replace("%2F", "/")),
        raw: text.to_owned(),
        ..Member::default()
    }
}

fn truthy(v: &Value) -> bool {
    match v {
        Value::Bool(b) => *b,
        Value::String(s) => matches!(s.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1"),
        Value::Number(n) => n.as_i64().is_some_and(|n| n != 0),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Effective tags out of the published ones: a priority of 0 or less is the same as the flag, unless the flag is said too.
fn tags_from(o: &Map<String, Value>) -> Tags {
    let flag = |key: &str| o.get(key).is_some_and(truthy);
    let number =
        |key: &str| o.get(key).and_then(|v| v.as_i64().or_else(|| v.as_str().and_then(|s| s.trim().parse().ok())));
    let priority = number("failover_priority");
    let nofailover = match o.get("nofailover") {
        Some(v) if !v.is_null() => truthy(v),
        Some(_) | None => priority.is_some_and(|p| p <= 0),
    };
    let nosync = match o.get("nosync") {
        Some(v) if !v.is_null() => truthy(v),
        Some(_) | None => number("sync_priority").is_some_and(|p| p <= 0),
    };
    Tags {
        nofailover,
        failover_priority: if nofailover { 0 } else { priority.unwrap_or(1) },
        clonefrom: flag("clonefrom"),
        noloadbalance: flag("noloadbalance"),
        nosync,
        sync_priority: if nosync { 0 } else { number("sync_priority").unwrap_or(1) },
        nostream: flag("nostream"),
        replicatefrom: o.get("replicatefrom").and_then(Value::as_str).filter(|s| !s.is_empty()).map(MemberName::from),
    }
}

fn reasons_from(o: &Map<String, Value>) -> BTreeMap<String, (String, String)> {
    let text = |v: Option<&Value>| match v {
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    o.iter().map(|(guc, v)| (guc.clone(), (text(v.get("old_value")), text(v.get("new_value"))))).collect()
}

/// The text of the `status` annotation: compact JSON, absent rather than null.
pub fn status_text(s: &MemberStatus, primary_word: &str) -> String {
    let mut o = Map::new();
    let role = if s.role == Role::Primary { primary_word } else { s.role.word() };
    o.insert("conn_url".into(), s.conn_url.clone().into());
    o.insert("api_url".into(), s.api_url.clone().into());
    o.insert("state".into(), s.state.word().into());
    o.insert("role".into(), role.into());
    o.insert("version".into(), CONTRACT_VERSION.into());
    o.insert(IMPL.into(), IMPLEMENTATION.into());
    if let Some(url) = &s.proxy_url {
        o.insert("proxy_url".into(), url.clone().into());
    }
    if s.checkpoint_pending {
        o.insert("checkpoint_after_promote".into(), false.into());
    }
    if let Some(tags) = object_of(&s.tags).filter(|tags| !tags.is_empty()) {
        o.insert("tags".into(), Value::Object(tags));
    }
    if let Some(site) = &s.site {
        o.insert("site".into(), site.clone().into());
    }
    if s.pending_restart {
        o.insert("pending_restart".into(), true.into());
        let reasons: Map<String, Value> = s
            .pending_restart_reason
            .iter()
            .map(|(guc, (old, new))| (guc.clone(), serde_json::json!({"old_value": old, "new_value": new})))
            .collect();
        if !reasons.is_empty() {
            o.insert("pending_restart_reason".into(), Value::Object(reasons));
        }
    }
    if let Some(word) = s.fence {
        o.insert("fence".into(), word.into());
    }
    let mut lsn = |key: &str, v: Option<Lsn>| {
        if let Some(lsn) = v {
            o.insert(key.into(), lsn.0.into());
        }
    };
    lsn("xlog_location", s.xlog_location);
    lsn("receive_lsn", s.receive_lsn.filter(|l| *l != Lsn::ZERO));
    lsn("replay_lsn", s.replay_lsn.filter(|l| *l != Lsn::ZERO));
    if let Some(state) = &s.replication_state {
        o.insert("replication_state".into(), state.clone().into());
    }
    if let Some(timeline) = s.timeline.filter(|t| t.0 != 0) {
        o.insert("timeline".into(), timeline.0.into());
    }
    if s.pause {
        o.insert("pause".into(), Value::Bool(true));
    }
    if let Some(restart) = s.scheduled_restart.as_deref().and_then(object_of) {
        o.insert("scheduled_restart".into(), Value::Object(restart));
    }
    Value::Object(o).to_string()
}

/// A JSON object out of its text; anything else is nothing.
fn object_of(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// The annotations of the own pod.
pub fn status_patch(text: String) -> Patch {
    Patch::from_iter([(STATUS.to_owned(), Value::String(text))])
}

/// Do two `status` texts say the same? Order of keys and blanks do not matter.
pub fn same_status(a: &str, b: &str) -> bool {
    a == b
        || match (serde_json::from_str::<Value>(a), serde_json::from_str::<Value>(b)) {
            (Ok(a), Ok(b)) => a == b,
            (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => false,
        }
}

/// The labels that go with a status: whoever holds the lock is the leader, whatever its Postgres is doing; a running Postgres
/// that is no primary has its role; everybody else has none.
pub fn labels_of(s: &MemberStatus, o: &StoreOptions) -> Labels {
    let word = if s.role == Role::Primary { o.primary_role_name.as_str() } else { s.role.word() };
    let (role, raw) = if s.is_leader {
        let value = if s.role == Role::StandbyLeader { &o.standby_leader_label_value } else { &o.leader_label_value };
        (Some(value.clone()), Some("primary".to_owned()))
    } else if s.state == PostgresState::Running && s.role != Role::Primary {
        let value = if s.role == Role::Replica { o.follower_label_value.as_str() } else { word };
        (Some(value.to_owned()), Some(word.to_owned()))
    } else {
        (None, None)
    };
    let mut labels = Labels::from([(o.role_label.clone(), role)]);
    if let Some(tmp) = &o.tmp_role_label {
        labels.insert(tmp.clone(), raw);
    }
    let bootstrapping = matches!(
        s.state,
        PostgresState::Initdb
            | PostgresState::CustomBootstrap
            | PostgresState::CreatingReplica
            | PostgresState::BootstrapStarting
    );
    for (label, value) in &o.bootstrap_labels {
        labels.insert(label.clone(), bootstrapping.then(|| value.clone()));
    }
    labels
}
