//! Health checks: which path is 200 and which 503 (rest-api §3).

use serde_json::Value;

use super::status::Status;
use crate::agent::handle::{PostgresStatus, Snapshot};
use crate::config::numbers::parse_int;
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

/// 200 or 503 for a path (rest-api §3.2).
pub(super) fn is_ok(f: &Facts<'_>, path: &str, query: &Query) -> bool {
    let path = if path == "/" { "/primary" } else { path };
    let leader = f.snapshot.is_leader(f.now);
    let replica = replica_ok(f, query);
    let tagged = |ok: bool| ok && tags_match(f.snapshot, query);
    if path.contains("standby_leader") || path.contains("standby-leader") {
        return false;
    }
    if path.contains("leader") || path.contains("master") || path.contains("primary") || path.contains("read-write") {
        return leader;
    }
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
    let hidden = f.snapshot.configured_tags.get("noloadbalance").is_some_and(|v| *v != Value::Bool(false) && !v.is_null());
    !hidden && f.status.role == Role::Replica && f.status.running && !lagging(f, query)
}

/// `?lag=` (rest-api §3.1): unlimited when missing or unparsable, never lagging without a known leader position.
fn lagging(f: &Facts<'_>, query: &Query) -> bool {
    let Some(limit) = first(query, "lag").and_then(|t| parse_int(t, Some("B"))).and_then(|n| u64::try_from(n).ok()) else {
        return false;
    };
    let replayed = f.postgres.and_then(|p| p.replayed).unwrap_or(Lsn::ZERO);
    leader_position(f).ahead_of(replayed) > limit
}

fn leader_position(f: &Facts<'_>) -> Lsn {
    let upstream = f.postgres.and_then(|p| p.latest_end_lsn).unwrap_or(Lsn::ZERO);
    f.snapshot.cluster.optime().max(upstream)
}

/// `tag_<key>=<value>` (rest-api §3.3).
fn tags_match(snapshot: &Snapshot, query: &Query) -> bool {
    query.iter().filter_map(|(k, v)| k.strip_prefix("tag_").map(|k| (k, v))).all(|(key, wanted)| {
        snapshot.configured_tags.get(key).is_some_and(|tag| match tag {
            Value::String(text) => text == wanted,
            other => other.to_string().to_lowercase() == *wanted,
        })
    })
}

/// `GET /readiness` (rest-api §3.6).
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
    let limit = first(query, "lag")
        .and_then(|t| parse_int(t, Some("B")))
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(f.snapshot.settings.maximum_lag_on_failover);
    let own = if first(query, "mode") == Some("write") { postgres.received } else { postgres.replayed };
    leader_position(f).ahead_of(own.unwrap_or(Lsn::ZERO)) <= limit
}
