//! Health checks: which path is 200 and which 503.

use serde_json::Value;

use super::status::Status;
use crate::config::numbers::parse_int;
use crate::door::{PostgresStatus, Snapshot};
use crate::model::{BootInstant, Lsn, Role};

/// Decoded query parameters, in order.
pub(super) type Query = Vec<(String, String)>;

/// The first value of a parameter.
pub(super) fn first<'q>(query: &'q Query, key: &str) -> Option<&'q str> {
    query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
}

/// Everything a check looks at.
pub(super) struct Facts<'a> {
    pub snapshot: &'a Snapshot,
    pub status: &'a Status,
    pub postgres: Option<&'a PostgresStatus>,
    pub now: BootInstant,
}

/// 200 or 503 for a path.
pub(super) fn is_ok(f: &Facts<'_>, path: &str, query: &Query) -> bool {
    let path = if path == "/" { "/primary" } else { path };
    let leads = f.snapshot.is_leader(f.now);
    let follows_another = f.snapshot.settings.standby_of.is_some();
    let (primary, standby_leader) = (leads && !follows_another, leads && follows_another && f.status.follows());
    let replica = replica_ok(f, query) && !(leads && follows_another);
    let tagged = |ok: bool| ok && tags_match(f.snapshot, query);
    if path.contains("standby_leader") || path.contains("standby-leader") {
        return standby_leader;
    }
    if path.contains("leader") {
        return leads;
    }
    if path.contains("master") || path.contains("primary") || path.contains("read-write") {
        return primary;
    }
    let leader = primary || standby_leader;
    if path.contains("replica") {
        return tagged(replica);
    }
    if path.contains("read-only") && !path.contains("sync") && !path.contains("quorum") {
        return tagged(leader || replica);
    }
    if path.contains("health") {
        return tagged(f.status.running);
    }
    if !f.snapshot.dcs_available {
        return false;
    }
    let has = |key: &str| f.status.document.contains_key(key);
    tagged(match path {
        "/sync" | "/synchronous" => replica && has("sync_standby"),
        "/quorum" => replica && has("quorum_standby"),
        "/async" | "/asynchronous" => replica && !has("sync_standby") && !has("quorum_standby"),
        "/read-only-quorum" => leader || replica && has("quorum_standby"),
        "/read-only-sync" | "/read-only-synchronous" => leader || replica && has("sync_standby"),
        _ => false,
    })
}

fn replica_ok(f: &Facts<'_>, query: &Query) -> bool {
    !f.snapshot.settings.tags.noloadbalance && f.status.role == Role::Replica && f.status.running && !lagging(f, query)
}

/// `?lag=` in bytes.
fn lag_limit(query: &Query) -> Option<i64> {
    first(query, "lag").and_then(|text| parse_int(text, Some("B")))
}

/// `?lag=`: unlimited when missing or unparsable, never lagging without a known leader position.
fn lagging(f: &Facts<'_>, query: &Query) -> bool {
    let leader = leader_position(f);
    let replayed = f.postgres.and_then(|p| p.replayed).unwrap_or(Lsn::ZERO);
    leader != Lsn::ZERO && lag_limit(query).is_some_and(|limit| behind(leader, replayed) > i128::from(limit))
}

/// Bytes from `own` to `leader`, negative when `own` is further.
fn behind(leader: Lsn, own: Lsn) -> i128 {
    i128::from(leader.0) - i128::from(own.0)
}

fn leader_position(f: &Facts<'_>) -> Lsn {
    let upstream = f.postgres.and_then(|p| p.latest_end_lsn).unwrap_or(Lsn::ZERO);
    f.snapshot.cluster.optime().max(upstream)
}

/// `tag_<key>=<value>`.
fn tags_match(snapshot: &Snapshot, query: &Query) -> bool {
    query.iter().all(|(parameter, _)| {
        let Some(key) = parameter.strip_prefix("tag_") else { return true };
        let Some(wanted) = first(query, parameter) else { return true };
        match snapshot.configured_tags.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => text == wanted,
            Some(other) => other.to_string().to_lowercase() == wanted,
        }
    })
}

/// `GET /readiness`.
pub(super) fn is_ready(f: &Facts<'_>, query: &Query) -> bool {
    if f.snapshot.is_leader(f.now) {
        return true;
    }
    if !f.status.running {
        return false;
    }
    let Some(postgres) = f.postgres else { return false };
    if postgres.replication_state.as_deref() != Some("streaming") {
        return false;
    }
    if !f.snapshot.dcs_available && postgres.latest_end_lsn.is_none() {
        return false;
    }
    let limit = lag_limit(query).map_or(i128::from(f.snapshot.settings.maximum_lag_on_failover), i128::from);
    let own = if first(query, "mode") == Some("write") { postgres.received } else { postgres.replayed };
    behind(leader_position(f), own.unwrap_or(Lsn::ZERO)) <= limit
}
