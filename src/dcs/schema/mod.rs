//! Typed values ↔ annotations, byte-compatible with Patroni 4.1. No other file spells an annotation key.
//!
//! Reading never fails: what cannot be read becomes "absent" plus a line in the warnings, because one odd annotation must
//! not blind a member to its cluster. Writing gives a [`Patch`]: annotation → new value, or null to remove it, in the form
//! a strategic merge patch wants.

mod member;
mod promise;
mod time;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

pub use member::{Labels, labels_of, member_from, same_status, status_patch, status_text};
pub use promise::{claim_from, released_from, released_patch, timeline_patch};
pub use time::{format_wall, parse_wall};

use super::{LeaderStatus, RequestText};
use crate::model::{
    Change, ConfigRecord, Electorate, FailoverRequest, FailsafeMap, HistoryRow, HolderMark, Initialize, Initializer,
    LeaderRecord, LeaseRecord, Lsn, MemberName, SyncRecord, Timeline, Version, time_scale,
};

const LEADER: &str = "leader";
const TTL: &str = "ttl";
const RENEW_TIME: &str = "renewTime";
const ACQUIRE_TIME: &str = "acquireTime";
const TRANSITIONS: &str = "transitions";
const OPTIME: &str = "optime";
const SLOTS: &str = "slots";
const RETAIN_SLOTS: &str = "retain_slots";
const FAILSAFE: &str = "failsafe";
const CONFIG: &str = "config";
const INITIALIZE: &str = "initialize";
const HISTORY: &str = "history";
const MEMBER: &str = "member";
const SCHEDULED_AT: &str = "scheduled_at";
const SYNC_STANDBY: &str = "sync_standby";
const QUORUM: &str = "quorum";
const STATUS: &str = "status";
const WRITTEN: &str = "patroni.written";
const HOLDER: &str = "patroni.holder";
const INITIALIZER: &str = "patroni.initializer";

/// The annotations of an object.
pub type Annotations = BTreeMap<String, String>;
/// Annotation → text, or null to remove it.
pub type Patch = Map<String, Value>;

/// The lease keys of an annotation map. An empty leader is nobody.
pub fn lease_from(a: &Annotations) -> LeaseRecord {
    let get = |key: &str| a.get(key).cloned();
    LeaseRecord {
        leader: get(LEADER).filter(|l| !l.is_empty()).map(MemberName),
        ttl: get(TTL),
        acquire_time: get(ACQUIRE_TIME),
        renew_time: get(RENEW_TIME),
        transitions: get(TRANSITIONS),
    }
}

/// The leader object. `addresses`: the addresses of its subsets.
pub fn leader_from(version: &str, a: &Annotations, addresses: Vec<String>, warnings: &mut Vec<String>) -> LeaderRecord {
    let slots = a.get(SLOTS).and_then(|text| json_or_warn(text, "annotation slots of the leader object", warnings));
    let slots = slots
        .as_ref()
        .and_then(Value::as_object)
        .map(|m| m.iter().filter_map(|(name, v)| lsn_of(v).map(|lsn| (name.clone(), lsn))).collect::<BTreeMap<_, _>>());
    let retain = a
        .get(RETAIN_SLOTS)
        .and_then(|text| json_or_warn(text, "annotation retain_slots of the leader object", warnings));
    let failsafe =
        a.get(FAILSAFE).and_then(|text| json_or_warn(text, "annotation failsafe of the leader object", warnings));
    LeaderRecord {
        version: Version(version.to_owned()),
        lease: lease_from(a),
        holder: a.get(HOLDER).and_then(|text| holder_from(text)),
        optime: a.get(OPTIME).map(|text| Lsn(text.trim().parse().unwrap_or(0))),
        slots: slots.unwrap_or_default(),
        retain_slots: retain
            .as_ref()
            .and_then(Value::as_array)
            .map(|v| v.iter().filter_map(|s| s.as_str().map(str::to_owned)).collect())
            .unwrap_or_default(),
        failsafe: failsafe
            .as_ref()
            .and_then(Value::as_object)
            .map(|m| m.iter().filter_map(|(k, v)| v.as_str().map(|v| (k.clone(), v.to_owned()))).collect()),
        addresses,
        released: released_from(a, warnings),
        claim: claim_from(a, warnings),
    }
}

/// The label of a pod that names the zone of its node: copied by the API server (1.35).
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// `patroni.holder`; `None` when it is not well-formed.
pub fn holder_from(text: &str) -> Option<HolderMark> {
    let v: Value = serde_json::from_str(text).ok()?;
    let get = |key: &str| v.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(HolderMark {
        uid: get("uid")?,
        session: get("session")?,
        containers: v
            .get("containers")?
            .as_object()?
            .iter()
            .map(|(name, id)| Some((name.clone(), id.as_str()?.to_owned())))
            .collect::<Option<_>>()?,
        acquire_time: get("acquireTime")?,
        renew_time: get("renewTime")?,
        paused: v.get("pause").and_then(Value::as_bool).unwrap_or(false),
        site: get("site"),
    })
}

/// The text of `patroni.holder`.
pub fn holder_text(mark: &HolderMark) -> String {
    let mut text = json!({
        "uid": mark.uid,
        "session": mark.session,
        "containers": mark.containers,
        "acquireTime": mark.acquire_time,
        "renewTime": mark.renew_time,
    });
    if mark.paused {
        text["pause"] = Value::Bool(true);
    }
    if let Some(site) = &mark.site {
        text["site"] = site.as_str().into();
    }
    text.to_string()
}

/// The five keys.
pub fn record_patch(record: &LeaseRecord) -> Patch {
    let text = |v: &Option<String>| v.clone().map_or(Value::Null, Value::String);
    let mut patch = Patch::new();
    patch.insert(LEADER.into(), record.leader.as_ref().map_or(Value::Null, |l| Value::String(l.0.clone())));
    patch.insert(TTL.into(), text(&record.ttl));
    patch.insert(RENEW_TIME.into(), text(&record.renew_time));
    patch.insert(ACQUIRE_TIME.into(), text(&record.acquire_time));
    patch.insert(TRANSITIONS.into(), text(&record.transitions));
    patch
}

/// Who holds it.
pub fn holder_patch(holder: &HolderMark) -> Patch {
    Patch::from_iter([(HOLDER.to_owned(), Value::String(holder_text(holder)))])
}

/// The five keys and the holder mark, for an acquire or a renewal.
pub fn lease_patch(record: &LeaseRecord, holder: Option<&HolderMark>) -> Patch {
    let mut patch = record_patch(record);
    patch.insert(HOLDER.into(), holder.map_or(Value::Null, |h| Value::String(holder_text(h))));
    patch
}

/// The position alone; nothing while it is unknown.
pub fn optime_patch(optime: Option<Lsn>) -> Patch {
    optime.iter().map(|lsn| (OPTIME.to_owned(), Value::String(lsn.0.to_string()))).collect()
}

/// Release: no leader, no holder mark, perhaps the shutdown position. The other keys stay, so that the next holder counts `transitions` on.
pub fn release_patch(optime: Option<Lsn>) -> Patch {
    let mut patch = Patch::new();
    patch.insert(LEADER.into(), Value::Null);
    patch.insert(HOLDER.into(), Value::Null);
    patch.extend(optime_patch(optime));
    patch
}

/// The status annotations of a renewal; nothing while the position is unknown: what stands is better than a guess.
pub fn leader_status_patch(status: &LeaderStatus) -> Patch {
    let mut patch = Patch::new();
    let Some(optime) = status.optime else { return patch };
    patch.insert(OPTIME.into(), Value::String(optime.0.to_string()));
    let slots: Map<String, Value> = status.slots.iter().map(|(name, lsn)| (name.clone(), lsn.0.into())).collect();
    patch.insert(
        SLOTS.into(),
        if slots.is_empty() { Value::Null } else { Value::String(Value::Object(slots).to_string()) },
    );
    let mut retain = status.retain_slots.clone();
    retain.sort();
    let quoted: Vec<String> = retain.iter().map(|name| Value::String(name.clone()).to_string()).collect();
    patch.insert(
        RETAIN_SLOTS.into(),
        // A blank after the comma, as Patroni members write it: otherwise the two would rewrite each other's text.
        if quoted.is_empty() { Value::Null } else { Value::String(format!("[{}]", quoted.join(", "))) },
    );
    patch
}

/// The `ttl` on the wire: the configured integer, also in builds with `test-time-scale`.
pub fn ttl_text(ttl: Duration) -> String {
    format!("{}", (ttl.as_secs_f64() / time_scale()).round() as u64)
}

/// Who could race for the lock.
pub fn failsafe_patch(change: &Change<FailsafeMap>) -> Patch {
    let value = match change {
        Change::Keep => return Patch::new(),
        Change::Remove => Value::Null,
        Change::Set(map) => {
            let map: Map<String, Value> =
                map.iter().map(|(name, listed)| (name.0.clone(), listed.url.clone().into())).collect();
            Value::String(Value::Object(map).to_string())
        }
    };
    Patch::from_iter([(FAILSAFE.to_owned(), value)])
}

/// A record as the note the keeper keeps for us. Opaque to everybody else.
pub fn note(record: &LeaseRecord) -> String {
    json!({
        LEADER: record.leader.as_ref().map(MemberName::as_str),
        TTL: record.ttl,
        ACQUIRE_TIME: record.acquire_time,
        RENEW_TIME: record.renew_time,
        TRANSITIONS: record.transitions,
    })
    .to_string()
}

/// The record of a note; `None` when it is not one of ours.
pub fn from_note(text: &str) -> Option<LeaseRecord> {
    let v: Value = serde_json::from_str(text).ok()?;
    let object = v.as_object()?;
    let get = |key: &str| object.get(key).map(|v| v.as_str().map(str::to_owned));
    Some(LeaseRecord {
        leader: get(LEADER)?.map(MemberName),
        ttl: get(TTL)?,
        acquire_time: get(ACQUIRE_TIME)?,
        renew_time: get(RENEW_TIME)?,
        transitions: get(TRANSITIONS)?,
    })
}

/// What the config object carries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigParts {
    /// The dynamic configuration.
    pub config: Option<ConfigRecord>,
    /// Initialize key.
    pub initialize: Initialize,
    /// Who is bootstrapping.
    pub initializer: Option<Initializer>,
    /// History; `None` when absent or unreadable.
    pub history: Option<Vec<HistoryRow>>,
}

/// The config object.
pub fn config_from(version: &str, a: &Annotations, warnings: &mut Vec<String>) -> ConfigParts {
    ConfigParts {
        config: Some(ConfigRecord { version: Version(version.to_owned()), document: a.get(CONFIG).cloned() }),
        initialize: match a.get(INITIALIZE).map(String::as_str) {
            None => Initialize::Absent,
            Some("") => Initialize::InProgress,
            Some(value) => Initialize::Value(value.to_owned()),
        },
        initializer: a.get(INITIALIZER).and_then(|text| initializer_from(text)),
        history: a.get(HISTORY).and_then(|text| {
            let rows = history_from(text);
            if rows.is_none() {
                warnings.push("annotation history of the config object is not a list of timelines: ignored".into());
            }
            rows
        }),
    }
}

fn initializer_from(text: &str) -> Option<Initializer> {
    let v: Value = serde_json::from_str(text).ok()?;
    let get = |key: &str| v.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(Initializer { uid: get("uid")?, session: get("session")? })
}

/// Wins the initialize race.
pub fn claim_patch(who: &Initializer) -> Patch {
    let mut patch = Patch::new();
    patch.insert(INITIALIZE.into(), Value::String(String::new()));
    patch.insert(INITIALIZER.into(), Value::String(json!({"uid": who.uid, "session": who.session}).to_string()));
    patch
}

/// Ends the initialize race with a system identifier, or cancels it.
pub fn initialize_patch(system_id: Option<&str>) -> Patch {
    let mut patch = Patch::new();
    patch.insert(INITIALIZE.into(), system_id.map_or(Value::Null, Value::from));
    patch.insert(INITIALIZER.into(), Value::Null);
    patch
}

/// The dynamic configuration; compact. `None` when `document` is not a JSON object.
pub fn config_patch(document: &str) -> Option<Patch> {
    let v: Value = serde_json::from_str(document).ok()?;
    v.as_object()?;
    Some(Patch::from_iter([(CONFIG.to_owned(), Value::String(v.to_string()))]))
}

/// History rows of 3, 4 or 5 elements; `None` when it is anything else.
pub fn history_from(text: &str) -> Option<Vec<HistoryRow>> {
    let v: Value = serde_json::from_str(text).ok()?;
    v.as_array()?
        .iter()
        .map(|row| {
            let row = row.as_array().filter(|r| r.len() >= 3)?;
            let text = |i: usize| row.get(i).and_then(Value::as_str).map(str::to_owned);
            Some(HistoryRow {
                timeline: Timeline(u32::try_from(row[0].as_u64()?).ok()?),
                lsn: lsn_of(&row[1])?,
                reason: text(2)?,
                at: text(3),
                new_leader: text(4),
            })
        })
        .collect()
}

/// The history; a missing time with a leader known is kept in place as an empty text.
pub fn history_patch(rows: &[HistoryRow]) -> Patch {
    let rows: Vec<Value> = rows
        .iter()
        .map(|r| {
            let mut row = vec![json!(r.timeline.0), json!(r.lsn.0), json!(r.reason)];
            match (&r.at, &r.new_leader) {
                (at, Some(leader)) => row.extend([json!(at.as_deref().unwrap_or("")), json!(leader)]),
                (Some(at), None) => row.push(json!(at)),
                (None, None) => {}
            }
            Value::Array(row)
        })
        .collect();
    Patch::from_iter([(HISTORY.to_owned(), Value::String(Value::Array(rows).to_string()))])
}

/// The failover object.
pub fn failover_from(version: &str, a: &Annotations, warnings: &mut Vec<String>) -> FailoverRequest {
    let name = |key: &str| a.get(key).filter(|v| !v.is_empty()).map(|v| MemberName(v.clone()));
    let nothing =
        FailoverRequest { version: Version(version.to_owned()), leader: None, candidate: None, scheduled_at: None };
    let scheduled_at = match a.get(SCHEDULED_AT).filter(|v| !v.is_empty()) {
        None => None,
        Some(text) => match parse_wall(text) {
            Some(at) => Some(at),
            None => {
                warnings.push(format!(
                    "annotation scheduled_at of the failover object is not a time: {text:?}; the request is ignored"
                ));
                return nothing;
            }
        },
    };
    FailoverRequest { leader: name(LEADER), candidate: name(MEMBER), scheduled_at, ..nothing }
}

/// Writes or (with [`RequestText::default`]) clears a request.
///
/// # Errors
/// One line when `scheduled_at` does not parse.
pub fn failover_patch(request: &RequestText) -> Result<Patch, String> {
    let scheduled = match &request.scheduled_at {
        None => Value::Null,
        Some(text) if parse_wall(text).is_some() => Value::String(text.clone()),
        Some(text) => {
            return Err(format!("scheduled_at {text:?} is not a time; write it as 2025-01-31T09:15:02+00:00"));
        }
    };
    let name = |v: &Option<MemberName>| v.as_ref().map_or(Value::Null, |n| Value::String(n.0.clone()));
    let mut patch = Patch::new();
    patch.insert(LEADER.into(), name(&request.leader));
    patch.insert(MEMBER.into(), name(&request.candidate));
    patch.insert(SCHEDULED_AT.into(), scheduled);
    Ok(patch)
}

/// The sync object.
pub fn sync_from(version: &str, a: &Annotations) -> SyncRecord {
    let names = a.get(SYNC_STANDBY).map(String::as_str).unwrap_or_default();
    SyncRecord {
        version: Version(version.to_owned()),
        leader: a.get(LEADER).filter(|v| !v.is_empty()).map(|v| MemberName(v.clone())),
        standbys: names.split(',').map(str::trim).filter(|s| !s.is_empty()).map(MemberName::from).collect(),
        // What nobody can read promises nothing of a single one.
        quorum: a.get(QUORUM).map_or(0, |q| q.trim().parse().unwrap_or(u32::MAX)),
    }
}

/// Writes the sync object, or with no leader says that it binds nobody. The stamp makes every write one of its own.
pub fn sync_patch(leader: Option<&MemberName>, key: &Electorate, stamp: &str) -> Patch {
    let names = key.voters.iter().map(MemberName::as_str).collect::<Vec<_>>().join(",");
    let text = |v: Option<&str>| v.filter(|v| !v.is_empty()).map_or(Value::Null, |v| Value::String(v.to_owned()));
    let quorum = leader.map(|_| key.quorum.to_string());
    Patch::from_iter([
        (LEADER.to_owned(), text(leader.map(MemberName::as_str))),
        (SYNC_STANDBY.to_owned(), text(Some(&names))),
        (QUORUM.to_owned(), text(quorum.as_deref())),
        (WRITTEN.to_owned(), Value::String(stamp.to_owned())),
    ])
}

fn json_or_warn(text: &str, what: &str, warnings: &mut Vec<String>) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(v) => Some(v),
        Err(e) => {
            warnings.push(format!("{what} is not JSON ({e}): ignored"));
            None
        }
    }
}

/// A position as JSON number or as decimal text.
fn lsn_of(v: &Value) -> Option<Lsn> {
    v.as_u64().or_else(|| v.as_str().and_then(|s| s.trim().parse().ok())).map(Lsn)
}

#[cfg(test)]
mod tests;
