//! `GET /cluster`, `/history`, `/config`, `/failsafe`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::routes::Reply;
use super::{status, times};
use crate::door::{Handle, LiveMember, PostgresStatus, Snapshot};
use crate::model::{Lsn, Member, MemberName, Role};

/// One poll of the members takes 2 s when one of them does not answer; whoever has to wait for the poll of another caller
/// too shows the annotations.
const LIVE_DEADLINE: Duration = Duration::from_millis(2500);
/// Patroni closes the connection without a word.
pub(super) const NO_VIEW: &str = "the cluster cannot be read from Kubernetes, try again later";

/// `GET /cluster`. Positions come from the members themselves (one shared poll, at most a second old), from the
/// annotation where a member does not answer.
pub(super) async fn cluster(handle: &Handle) -> Reply {
    let (live, own) =
        tokio::join!(tokio::time::timeout(LIVE_DEADLINE, handle.members_live()), status::postgres(handle));
    let live = live.unwrap_or_default();
    let snapshot = handle.snapshot();
    if !snapshot.dcs_available {
        return Reply::page_because(503, NO_VIEW);
    }
    let leader = leader_position(&snapshot, own.as_deref(), &live);
    let members: Vec<_> = snapshot
        .cluster
        .members
        .iter()
        .map(|(name, member)| {
            let mine = own.as_deref().filter(|_| name == snapshot.me());
            one(&snapshot, name, member, Positions { leader, live: live.get(name), own: mine })
        })
        .collect();
    let mut document = Map::new();
    document.insert("members".into(), Value::Array(members));
    if let Some(request) = snapshot.cluster.request()
        && let Some(at) = request.scheduled_at
    {
        let mut scheduled = Map::new();
        scheduled.insert("at".into(), json!(times::iso_utc(at)));
        if let Some(from) = &request.leader {
            scheduled.insert("from".into(), json!(from.as_str()));
        }
        if let Some(to) = &request.candidate {
            scheduled.insert("to".into(), json!(to.as_str()));
        }
        document.insert("scheduled_switchover".into(), Value::Object(scheduled));
    }
    document.insert("scope".into(), json!(&*snapshot.scope));
    if snapshot.settings.pause {
        document.insert("pause".into(), json!(true));
    }
    Reply::json(200, &document)
}

/// What is known of positions besides the annotation of the member.
struct Positions<'a> {
    /// The leader's.
    leader: Lsn,
    /// What the member says of itself.
    live: Option<&'a LiveMember>,
    /// What my Postgres says, if the member is me.
    own: Option<&'a PostgresStatus>,
}

fn one(snapshot: &Snapshot, name: &MemberName, member: &Member, known: Positions<'_>) -> Value {
    let owner = snapshot.cluster.leader.as_ref().and_then(|l| l.named()) == Some(name);
    let published: Map<String, Value> = serde_json::from_str(&member.raw).unwrap_or_default();
    let mut m = Map::new();
    m.insert("name".into(), json!(name.as_str()));
    m.insert("role".into(), json!(role(snapshot, name, member, owner)));
    let postgres_state = member.state.as_ref().map_or("", |s| s.word());
    let state = member.replication_state.as_deref().filter(|_| !owner).unwrap_or(postgres_state);
    m.insert("state".into(), json!(state));
    m.insert("api_url".into(), json!(member.api_url));
    if let Some((host, port)) = member.conn_url.as_deref().and_then(host_port) {
        m.insert("host".into(), json!(host));
        m.insert("port".into(), json!(port));
    }
    for key in ["timeline", "pending_restart", "pending_restart_reason", "scheduled_restart", "tags", "site", "fence"] {
        if let Some(value) = published.get(key) {
            m.insert(key.into(), value.clone());
        }
    }
    if !owner {
        let Positions { leader, live, own } = known;
        let received = own.and_then(|p| p.received).or(live.and_then(|l| l.received)).or(member.receive_lsn);
        let replayed = own.and_then(|p| p.replayed).or(live.and_then(|l| l.replayed)).or(member.replay_lsn);
        let best = received.max(replayed).or(live.and_then(|l| l.location)).or(member.xlog_location);
        lsn_and_lag(&mut m, "receive_", received, leader);
        lsn_and_lag(&mut m, "replay_", replayed, leader);
        lsn_and_lag(&mut m, "", best, leader);
    }
    Value::Object(m)
}

fn role(snapshot: &Snapshot, name: &MemberName, member: &Member, owner: bool) -> &'static str {
    if owner {
        return if member.role == Some(Role::StandbyLeader) { "standby_leader" } else { "leader" };
    }
    let sync = snapshot.cluster.sync.as_ref().filter(|s| s.leader.is_some());
    match sync.filter(|s| s.standbys.iter().any(|n| n.as_str().eq_ignore_ascii_case(name.as_str()))) {
        Some(s) => super::status::sync_word(snapshot, s),
        None => "replica",
    }
}

/// The leader's position: what it says itself if it answers, never less than the store's.
fn leader_position(snapshot: &Snapshot, own: Option<&PostgresStatus>, live: &BTreeMap<MemberName, LiveMember>) -> Lsn {
    let owner = snapshot.cluster.leader.as_ref().and_then(|l| l.named());
    let said = match owner {
        Some(owner) if owner == snapshot.me() => own.and_then(|p| p.location),
        Some(owner) => live.get(owner).and_then(|l| l.location),
        None => None,
    };
    said.unwrap_or(Lsn::ZERO).max(snapshot.cluster.optime())
}

fn lsn_and_lag(m: &mut Map<String, Value>, prefix: &str, position: Option<Lsn>, leader: Lsn) {
    let known = position.filter(|l| *l != Lsn::ZERO);
    let lag = known
        .map_or(json!("unknown"), |l| if leader == Lsn::ZERO { json!("unknown") } else { json!(leader.ahead_of(l)) });
    m.insert(format!("{prefix}lag"), lag);
    m.insert(format!("{prefix}lsn"), known.map_or(json!("unknown"), |l| json!(l.to_string())));
}

/// `postgres://host:port/db` → host without brackets, port.
fn host_port(conn_url: &str) -> Option<(String, u16)> {
    let rest = conn_url.split_once("://")?.1;
    let authority = rest.split(['/', '?']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, a)| a);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, 5432),
    };
    Some((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

/// `GET /history`.
pub(super) fn history(snapshot: &Snapshot) -> Reply {
    if !snapshot.dcs_available {
        return Reply::page_because(503, NO_VIEW);
    }
    let rows: Vec<Value> = snapshot
        .cluster
        .history
        .iter()
        .flatten()
        .map(|row| {
            let mut columns = vec![json!(row.timeline.0), json!(row.lsn.0), json!(row.reason)];
            columns.extend(row.at.iter().map(|at| json!(at)));
            columns.extend(row.new_leader.iter().filter(|_| row.at.is_some()).map(|name| json!(name)));
            Value::Array(columns)
        })
        .collect();
    Reply::json(200, &rows)
}

/// `GET /config`: exactly as stored.
pub(super) fn config(snapshot: &Snapshot) -> Reply {
    if !snapshot.dcs_available {
        return Reply::page_because(503, NO_VIEW);
    }
    let document = snapshot.cluster.config.as_ref().and_then(|c| c.document.as_deref());
    match document.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        Some(value) => Reply::json(200, &value),
        None => Reply::page(502),
    }
}

/// `GET /failsafe`.
pub(super) fn failsafe(snapshot: &Snapshot) -> Reply {
    match snapshot.cluster.leader.as_ref().and_then(|l| l.failsafe.as_ref()) {
        Some(map) => Reply::json(200, map),
        None => Reply::page(502),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_come_out_of_connection_urls() {
        assert_eq!(host_port("postgres://10.0.0.4:5432/postgres"), Some(("10.0.0.4".into(), 5432)));
        assert_eq!(host_port("postgres://[fd00::1]:5433/postgres"), Some(("fd00::1".into(), 5433)));
        assert_eq!(host_port("postgres://h/x"), Some(("h".into(), 5432)));
    }

    #[test]
    fn lag_is_unknown_without_a_position_and_never_negative() {
        let mut m = Map::new();
        lsn_and_lag(&mut m, "", None, Lsn(10));
        assert_eq!(Value::Object(m.clone()), json!({"lag": "unknown", "lsn": "unknown"}));
        lsn_and_lag(&mut m, "", Some(Lsn(20)), Lsn(10));
        assert_eq!(Value::Object(m), json!({"lag": 0, "lsn": "0/14"}));
    }
}
