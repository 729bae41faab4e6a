//! The node status document: `GET /patroni` and the body of every health check.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::json::text;
use crate::door::{Handle, PostgresStatus, Snapshot};
use crate::model::{Commits, PostgresState, Role, SyncRecord};

/// The document, and the facts health checks judge by.
pub(super) struct Status {
    /// The JSON object, keys in the order of the contract.
    pub document: Map<String, Value>,
    /// `role` of the document.
    pub role: Role,
    /// `state` is `running`.
    pub running: bool,
    /// The document as it is sent.
    pub text: String,
}

/// Health checks answer within a second ; the rest is for the answer itself.
const POSTGRES_DEADLINE: Duration = Duration::from_millis(950);

/// What Postgres says now, if it says it in time.
pub(super) async fn postgres(handle: &Handle) -> Option<Arc<PostgresStatus>> {
    tokio::time::timeout(POSTGRES_DEADLINE, handle.postgres_status()).await.ok().flatten()
}

/// The last document and what it was made of. Load balancers ask hundreds of times between two changes; the facts are
/// shared values, so "the same as last time" is a comparison of two addresses.
#[derive(Default)]
pub(super) struct Documents(Mutex<Option<Made>>);

struct Made {
    snapshot: Arc<Snapshot>,
    postgres: Option<Arc<PostgresStatus>>,
    status: Arc<Status>,
}

impl Documents {
    /// The status of these facts.
    pub fn status(&self, snapshot: &Arc<Snapshot>, postgres: Option<&Arc<PostgresStatus>>) -> Arc<Status> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*last
            && Arc::ptr_eq(&made.snapshot, snapshot)
            && match (&made.postgres, postgres) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            }
        {
            return made.status.clone();
        }
        let status = Arc::new(status(snapshot, postgres.map(|p| &**p)));
        *last = Some(Made { snapshot: snapshot.clone(), postgres: postgres.cloned(), status: status.clone() });
        status
    }
}

impl Status {
    /// Is it in recovery, as far as its role says?
    pub(super) fn follows(&self) -> bool {
        matches!(self.role, Role::Replica | Role::StandbyLeader)
    }
}

/// Builds the document. `postgres`: the answer to a query sent after the request came, if there was one in time.
fn status(snapshot: &Snapshot, postgres: Option<&PostgresStatus>) -> Status {
    let member = &snapshot.member;
    let queried = matches!(member.state, PostgresState::Running | PostgresState::Restarting | PostgresState::Starting);
    let postgres = postgres.filter(|_| queried);
    let role = match postgres {
        Some(p) if p.in_recovery && member.role == Role::StandbyLeader => Role::StandbyLeader,
        Some(p) if p.in_recovery => Role::Replica,
        Some(_) => Role::Primary,
        None => member.role,
    };
    let unknown = member.state == PostgresState::Running && postgres.is_none();
    let state = if unknown { "unknown" } else { member.state.word() };
    let mut d = Map::new();
    d.insert("state".into(), json!(state));
    if let Some(p) = postgres {
        d.insert("postmaster_start_time".into(), json!(p.postmaster_start_time));
    }
    d.insert("role".into(), json!(snapshot.role_word(role)));
    if let Some(p) = postgres {
        of_postgres(&mut d, snapshot, p);
    } else if role == Role::Primary
        && let Some(probe) = member.probe.as_ref().filter(|p| !p.in_recovery)
    {
        // A primary that does not answer in time still says its role and last known position .
        d.insert("xlog".into(), json!({"location": probe.position.0}));
        d.insert("timeline".into(), json!(probe.timeline.0));
    }
    of_cluster(&mut d, snapshot);
    Status { running: state == "running", text: text(&d), document: d, role }
}

fn of_postgres(d: &mut Map<String, Value>, snapshot: &Snapshot, p: &PostgresStatus) {
    d.insert("server_version".into(), json!(p.server_version));
    let xlog = if p.in_recovery {
        json!({
            "received_location": p.received.or(p.replayed).map(|l| l.0),
            "replayed_location": p.replayed.map(|l| l.0),
            "replayed_timestamp": p.replayed_timestamp,
            "paused": p.paused,
        })
    } else {
        json!({"location": p.location.map(|l| l.0)})
    };
    if !votes_with_less(snapshot, p) {
        d.insert("xlog".into(), xlog);
    }
    if let Some(key) = sync_standby(snapshot).filter(|_| p.in_recovery) {
        d.insert(key.into(), json!(true));
    }
    d.insert("timeline".into(), json!(p.timeline.map(|t| t.0)));
    if let Some(state) = p.replication_state.as_ref().filter(|_| p.in_recovery) {
        d.insert("replication_state".into(), json!(state));
    }
    if !p.replication.is_empty() {
        let rows: Vec<_> = p
            .replication
            .iter()
            .map(|s| {
                json!({"usename": s.usename, "application_name": s.application_name, "client_addr": s.client_addr,
                       "state": s.state, "sync_state": s.sync_state, "sync_priority": s.sync_priority})
            })
            .collect();
        d.insert("replication".into(), json!(rows));
    }
}

/// `sync_standby` when my name stands in the sync key.
fn sync_standby(snapshot: &Snapshot) -> Option<&'static str> {
    let sync = snapshot.cluster.sync.as_ref().filter(|s| s.leader.is_some())?;
    let mine = |n: &crate::model::MemberName| n.as_str().eq_ignore_ascii_case(snapshot.me().as_str());
    sync.standbys.iter().any(mine).then(|| sync_word(snapshot, sync))
}

/// A voter that has more than it can say would be counted as one that has no more: it shows no position until it has read its
/// own WAL to the end.
fn votes_with_less(snapshot: &Snapshot, p: &PostgresStatus) -> bool {
    p.reads_on && sync_standby(snapshot).is_some() && snapshot.cluster.sync.as_ref().is_some_and(|s| s.quorum > 0)
}

/// What a standby in the sync key is called.
pub(super) fn sync_word(snapshot: &Snapshot, sync: &SyncRecord) -> &'static str {
    let quorum = snapshot.settings.synchronous.mode == Commits::Quorum || sync.quorum > 0;
    if quorum { "quorum_standby" } else { "sync_standby" }
}

/// Who answers, and the newest timeline it has heard of: its vote counts less than that of a member that knows a newer one.
fn of_member(snapshot: &Snapshot) -> Value {
    let mut of = json!({"version": snapshot.version, "scope": &*snapshot.scope, "name": snapshot.me().as_str()});
    if snapshot.known_timeline.0 > 0 {
        of["known_timeline"] = json!(snapshot.known_timeline.0);
    }
    of
}

fn of_cluster(d: &mut Map<String, Value>, snapshot: &Snapshot) {
    if snapshot.cluster_unlocked() {
        d.insert("cluster_unlocked".into(), json!(true));
    }
    d.insert("dcs_last_seen".into(), json!(snapshot.dcs_last_seen));
    if snapshot.failsafe_active {
        d.insert("failsafe_mode_is_active".into(), json!(true));
    }
    if snapshot.watchdog_failed {
        d.insert("watchdog_failed".into(), json!(true));
    }
    if snapshot.settings.pause {
        d.insert("pause".into(), json!(true));
    }
    let mut tags = (*snapshot.effective_tags).clone();
    if snapshot.quits_sync {
        tags.insert("nosync".into(), true.into());
        tags.insert("sync_priority".into(), 0.into());
    }
    if !tags.is_empty() {
        d.insert("tags".into(), Value::Object(tags));
    }
    if let Some(id) = &snapshot.system_id {
        d.insert("database_system_identifier".into(), json!(id));
    }
    if snapshot.pending_restart {
        d.insert("pending_restart".into(), json!(true));
        if !snapshot.pending_restart_reason.is_empty() {
            let reasons: Map<_, _> = snapshot
                .pending_restart_reason
                .iter()
                .map(|(name, (old, new))| (name.clone(), json!({"old_value": old, "new_value": new})))
                .collect();
            d.insert("pending_restart_reason".into(), Value::Object(reasons));
        }
    }
    d.insert("patroni".into(), of_member(snapshot));
    if let Some(document) = &snapshot.scheduled_restart {
        d.insert("scheduled_restart".into(), serde_json::from_str(document).unwrap_or_default());
    }
    if !snapshot.ignored_parameters.is_empty() {
        d.insert("ignored_parameters".into(), json!(snapshot.ignored_parameters));
    }
    if snapshot.fence_lost {
        d.insert("fence".into(), json!("lost"));
    } else if snapshot.fence_partial {
        d.insert("fence".into(), json!("partial"));
    }
}
