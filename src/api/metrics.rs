//! `GET /metrics`: Prometheus text, each metric with HELP and TYPE and the labels scope and name.

use std::fmt::Write as _;

use super::routes::Reply;
use super::status::Status;
use crate::door::{PostgresStatus, Snapshot};
use crate::model::{Lsn, Role};

const STATE_VALUES: &str = "# Values: 0=initdb, 1=initdb_failed, 2=custom_bootstrap, 3=custom_bootstrap_failed, \
                            4=creating_replica, 5=running, 6=starting, 7=bootstrap_starting, 8=start_failed, \
                            9=restarting, 10=restart_failed, 11=stopping, 12=stopped, 13=stop_failed, 14=crashed";

struct Page<'a> {
    out: String,
    scope: &'a str,
    name: &'a str,
}

impl Page<'_> {
    fn metric(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.with_comment(name, kind, help, None, value);
    }
    fn with_comment(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        comment: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        let (scope, member) = (self.scope, self.name);
        let comment = comment.map_or(String::new(), |c| format!("{c}\n"));
        let written = writeln!(
            self.out,
            "# HELP patroni_{name} {help}\n{comment}# TYPE patroni_{name} {kind}\npatroni_{name}{{scope=\"{scope}\",name=\"{member}\"}} {value}"
        );
        debug_assert!(written.is_ok(), "writing to a String does not fail");
    }
    fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.metric(name, "gauge", help, u8::from(value));
    }
}

pub(super) fn reply(s: &Snapshot, st: &Status, postgres: Option<&PostgresStatus>) -> Reply {
    let mut page = Page { out: String::with_capacity(6000), scope: &s.scope, name: s.me().as_str() };
    roles(&mut page, s, st, postgres);
    standby(&mut page, postgres);
    cluster(&mut page, s, st, postgres);
    Reply { status: 200, content_type: "text/plain", body: page.out, page: false }
}

/// Version, state and role.
fn roles(p: &mut Page<'_>, s: &Snapshot, st: &Status, postgres: Option<&PostgresStatus>) {
    let version: String = s.version.split('.').map(|part| format!("{part:0>2}")).collect();
    let has = |key: &str| st.document.contains_key(key);
    p.metric("version", "gauge", "Patroni semver without periods.", version);
    p.flag("postgres_running", "Value is 1 if Postgres is running, 0 otherwise.", st.running);
    p.metric(
        "postmaster_start_time",
        "gauge",
        "Epoch seconds since Postgres started.",
        postgres.map_or(0.0, |x| x.postmaster_start_epoch),
    );
    p.flag("primary", "Value is 1 if this node is the leader, 0 otherwise.", st.role == Role::Primary);
    p.metric(
        "xlog_location",
        "counter",
        "Current location of the Postgres transaction log, 0 if this node is not the leader.",
        st.document.get("xlog").and_then(|x| x["location"].as_u64()).unwrap_or(0),
    );
    p.flag(
        "standby_leader",
        "Value is 1 if this node is the standby_leader, 0 otherwise.",
        st.role == Role::StandbyLeader,
    );
    p.flag("replica", "Value is 1 if this node is a replica, 0 otherwise.", st.role == Role::Replica);
    p.flag("sync_standby", "Value is 1 if this node is a sync standby, 0 otherwise.", has("sync_standby"));
    p.flag("quorum_standby", "Value is 1 if this node is a quorum standby, 0 otherwise.", has("quorum_standby"));
}

/// Replay and streaming.
fn standby(p: &mut Page<'_>, postgres: Option<&PostgresStatus>) {
    let lsn = |l: Option<Lsn>| l.unwrap_or(Lsn::ZERO).0;
    let standby = postgres.filter(|x| x.in_recovery);
    p.metric(
        "xlog_received_location",
        "counter",
        "Current location of the received Postgres transaction log, 0 if this node is not a replica.",
        lsn(standby.and_then(|x| x.received)),
    );
    p.metric(
        "xlog_replayed_location",
        "counter",
        "Current location of the replayed Postgres transaction log, 0 if this node is not a replica.",
        lsn(standby.and_then(|x| x.replayed)),
    );
    p.metric(
        "xlog_replayed_timestamp",
        "gauge",
        "Current timestamp of the replayed Postgres transaction log, 0 if null.",
        standby.and_then(|x| x.replayed_epoch).unwrap_or(0.0),
    );
    p.flag("xlog_paused", "Value is 1 if the Postgres xlog is paused, 0 otherwise.", standby.is_some_and(|x| x.paused));
    if let Some(x) = postgres {
        let state = x.replication_state.as_deref();
        p.flag("postgres_streaming", "Value is 1 if Postgres is streaming, 0 otherwise.", state == Some("streaming"));
        p.flag(
            "postgres_in_archive_recovery",
            "Value is 1 if Postgres is replicating from archive, 0 otherwise.",
            state == Some("in archive recovery"),
        );
    }
}

/// Version of the server, the cluster, the metric index of the state.
fn cluster(p: &mut Page<'_>, s: &Snapshot, st: &Status, postgres: Option<&PostgresStatus>) {
    p.metric(
        "postgres_server_version",
        "gauge",
        "Version of Postgres (if running), 0 otherwise.",
        postgres.map_or(0, |x| x.server_version),
    );
    p.flag("cluster_unlocked", "Value is 1 if the cluster is unlocked, 0 if locked.", s.cluster_unlocked());
    p.flag("failsafe_mode_enabled", "Value is 1 if failsafe mode is enabled, 0 otherwise.", s.settings.failsafe);
    p.flag("failsafe_mode_is_active", "Value is 1 if failsafe mode is active, 0 if inactive.", s.failsafe_active);
    let listed =
        s.cluster.leader.as_ref().and_then(|l| l.failsafe.as_ref()).is_some_and(|m| m.contains_key(s.me().as_str()));
    p.flag("failsafe_member", "Value is 1 if the last leader may go on with this member, 0 otherwise.", listed);
    p.metric(
        "postgres_timeline",
        "gauge",
        "Postgres timeline of this node (if running), 0 otherwise.",
        st.document.get("timeline").and_then(serde_json::Value::as_u64).unwrap_or(0),
    );
    p.metric(
        "dcs_last_seen",
        "gauge",
        "Epoch timestamp when DCS was last contacted successfully by Patroni.",
        s.dcs_last_seen,
    );
    p.flag("pending_restart", "Value is 1 if the node needs a restart, 0 otherwise.", s.pending_restart);
    p.flag("is_paused", "Value is 1 if auto failover is disabled, 0 otherwise.", s.settings.pause);
    p.flag("fence_lost", "Value is 1 if the keeper does not answer, 0 otherwise.", s.fence_lost);
    p.flag(
        "fence_partial",
        "Value is 1 if nothing but the keeper would stop this Postgres, 0 otherwise.",
        s.fence_partial,
    );
    p.with_comment(
        "postgres_state",
        "gauge",
        "Numeric representation of Postgres state.",
        Some(STATE_VALUES),
        if st.document["state"] == "unknown" { -1 } else { s.state().index() },
    );
}
