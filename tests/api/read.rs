//! What is read: the status document, /cluster, /history, /config, /metrics.

use std::sync::Arc;
use std::time::Duration;

use patroni::door::{PostgresStatus, WalSender};
use patroni::model::{
    FailoverRequest, HistoryRow, Lsn, MemberName, PostgresState, Probe, Role, SyncRecord, Timeline, Version, WallTime,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Says, World, as_primary, as_standby, edit_cluster, leader, replica};

/// The example of the contract, byte for byte.
#[tokio::test]
async fn a_primary_shows_the_document_of_the_contract() {
    let mut s = leader();
    s.effective_tags = Arc::new(serde_json::json!({"clonefrom": true}).as_object().unwrap().clone());
    let walsender = WalSender {
        usename: Some("replicator".into()),
        application_name: Some("pg-1".into()),
        client_addr: Some("10.0.0.6".into()),
        state: Some("streaming".into()),
        sync_state: Some("async".into()),
        sync_priority: 0,
    };
    let world = World::new(s, Says::Status(PostgresStatus { replication: vec![walsender], ..as_primary() })).await;
    let reply = world.get("/patroni").await;
    let expected = concat!(
        r#"{"state": "running", "postmaster_start_time": "2026-11-20 08:15:30.123456+00:00", "role": "primary", "#,
        r#""server_version": 170002, "xlog": {"location": 117440512}, "timeline": 7, "replication": [{"usename": "#,
        r#""replicator", "application_name": "pg-1", "client_addr": "10.0.0.6", "state": "streaming", "sync_state": "#,
        r#""async", "sync_priority": 0}], "dcs_last_seen": 1763626530, "tags": {"clonefrom": true}, "#,
        r#""database_system_identifier": "7439021837465564321", "patroni": {"version": "4.1.5", "scope": "demo", "#,
        r#""name": "pg-0"}}"#
    );
    assert_eq!(reply.says(), (200, expected));
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn a_replica_shows_every_key_in_order() {
    let mut s = replica();
    edit_cluster(&mut s, |c| {
        c.leader = None;
        let standbys = vec![MemberName::from("pg-0")];
        c.sync = Some(SyncRecord { version: Version("s".into()), leader: Some("x".into()), standbys, quorum: 0 });
    });
    s.pending_restart = true;
    s.pending_restart_reason = [("shared_buffers".to_owned(), ("128MB".to_owned(), "?".to_owned()))].into();
    s.scheduled_restart = Some(r#"{"schedule":"2030-01-01T00:00:00+00:00"}"#.into());
    s.effective_tags = Arc::new(serde_json::json!({"zone": "ü"}).as_object().unwrap().clone());
    s.ignored_parameters = [("foo_bar".to_owned(), "unknown to PostgreSQL 17".to_owned())].into();
    let world = World::new(s, Says::Status(as_standby())).await;
    let reply = world.get("/patroni/whatever?x=y").await;
    let keys = "state postmaster_start_time role server_version xlog sync_standby timeline replication_state \
                cluster_unlocked dcs_last_seen tags database_system_identifier pending_restart pending_restart_reason \
                patroni scheduled_restart ignored_parameters";
    assert_eq!(reply.keys(), keys.split_whitespace().collect::<Vec<_>>());
    let xlog = r#""xlog": {"received_location": 117440512, "replayed_location": 117440500, "replayed_timestamp": null, "paused": false}"#;
    assert!(reply.body.contains(xlog), "{}", reply.body);
    assert!(reply.body.contains(r#""tags": {"zone": "\u00fc"}"#), "{}", reply.body);
    assert!(reply.body.contains(r#"{"shared_buffers": {"old_value": "128MB", "new_value": "?"}}"#), "{}", reply.body);
    let ignored = r#""ignored_parameters": {"foo_bar": "unknown to PostgreSQL 17"}"#;
    assert!(reply.body.contains(ignored), "{}", reply.body);
    assert!(!reply.body.contains("latest_end_lsn"));
}

#[tokio::test]
async fn a_postgres_that_is_not_asked_leaves_its_keys_out() {
    let mut s = replica();
    s.member.state = PostgresState::Stopped;
    let world = World::new(s, Says::Status(as_standby())).await;
    let reply = world.get("/patroni").await;
    assert!(reply.body.starts_with(r#"{"state": "stopped", "role": "replica", "dcs_last_seen": "#), "{}", reply.body);
    world.change(|s| {
        s.role = Role::Uninitialized;
        s.system_id = None;
        s.dcs_available = false;
        s.dcs_last_seen = 0;
    });
    assert_eq!(world.get("/patroni").await.keys(), ["state", "role", "cluster_unlocked", "dcs_last_seen", "patroni"]);
}

/// Within a second, a primary with its role and last known position, a standby without `xlog`.
#[tokio::test]
async fn a_hanging_query_does_not_hang_the_answer() {
    let mut s = leader();
    s.probe = Some(Probe {
        at: Default::default(),
        in_recovery: false,
        timeline: Timeline(7),
        position: Lsn(4711),
        received: Lsn(0),
        replayed: Lsn(0),
        streaming: false,
        replay_paused: false,
        blocked: None,
        system_id: String::new(),
        replication: Default::default(),
    });
    s.position = Some(Lsn(4711));
    s.known_timeline = Timeline(7);
    let primary = World::new(s, Says::Never).await;
    let standby = World::new(replica(), Says::Never).await;
    let timed = async |world: &World, path: &str| {
        let began = tokio::time::Instant::now();
        let reply = world.get(path).await;
        let took = began.elapsed();
        // The wait ends after 0.95 s; the rest is for a busy test machine.
        assert!(took < Duration::from_millis(1500), "{path} took {took:?}");
        reply
    };
    let (on_primary, on_standby, metrics, ready, cluster) = tokio::join!(
        timed(&primary, "/primary"),
        timed(&standby, "/patroni"),
        timed(&primary, "/metrics"),
        timed(&standby, "/readiness"),
        timed(&primary, "/cluster"),
    );
    let document = on_primary.json();
    assert_eq!(on_primary.status, 200, "the lock does not ask Postgres");
    assert_eq!((&document["state"], &document["role"]), (&"unknown".into(), &"primary".into()));
    assert_eq!((&document["xlog"]["location"], &document["timeline"]), (&4711.into(), &7.into()));
    let document = on_standby.json();
    assert_eq!((&document["state"], &document["role"]), (&"unknown".into(), &"replica".into()));
    assert!(document.get("xlog").is_none() && document.get("timeline").is_none(), "a stale position is a wrong vote");
    assert!(metrics.body.contains("\npatroni_xlog_location{scope=\"demo\",name=\"pg-0\"} 4711\n"));
    assert_eq!((ready.status, cluster.status), (503, 200));
}

/// What is not asked of Postgres does not wait for it.
#[tokio::test]
async fn liveness_history_and_config_do_not_ask_postgres() {
    let world = World::new(leader(), Says::Never).await;
    let began = tokio::time::Instant::now();
    for path in ["/liveness", "/history", "/config"] {
        assert_eq!(world.get(path).await.status, 200, "{path}");
    }
    assert!(began.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn the_cluster_is_shown_member_by_member() {
    let mut s = leader();
    edit_cluster(&mut s, |c| {
        let replica = c.members.get_mut(&MemberName::from("pg-1")).unwrap();
        replica.raw = r#"{"timeline":7,"tags":{"clonefrom":true},"pending_restart":true,"other":1}"#.into();
        replica.replication_state = Some("streaming".into());
        replica.receive_lsn = Some(Lsn(0x7000000));
        replica.replay_lsn = Some(Lsn(0x6FFFFF4));
        c.members.insert("pg-2".into(), Default::default());
        c.failover = Some(FailoverRequest {
            version: Version("f".into()),
            leader: Some("pg-0".into()),
            candidate: Some("pg-1".into()),
            scheduled_at: Some(WallTime(1_893_492_000_000_000)),
        });
    });
    let world = World::new(s, Says::Status(as_primary())).await;
    let reply = world.get("/cluster").await;
    let expected = concat!(
        r#"{"members": [{"name": "pg-0", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:1/patroni", "#,
        r#""host": "10.0.0.4", "port": 5432}, {"name": "pg-1", "role": "replica", "state": "streaming", "api_url": "#,
        r#""http://127.0.0.1:1/patroni", "host": "10.0.0.4", "port": 5433, "timeline": 7, "pending_restart": true, "tags": "#,
        r#"{"clonefrom": true}, "receive_lag": 0, "receive_lsn": "0/7000000", "replay_lag": 12, "replay_lsn": "0/6FFFFF4", "#,
        r#""lag": 0, "lsn": "0/7000000"}, {"name": "pg-2", "role": "replica", "state": "", "api_url": null, "#,
        r#""receive_lag": "unknown", "receive_lsn": "unknown", "replay_lag": "unknown", "replay_lsn": "unknown", "lag": "#,
        r#""unknown", "lsn": "unknown"}], "scheduled_switchover": {"at": "2030-01-01T10:00:00+00:00", "from": "pg-0", "to": "#,
        r#""pg-1"}, "scope": "demo"}"#
    );
    assert_eq!(reply.says(), (200, expected));
}

/// Positions come from the members, and the lag from what the leader says of itself.
#[tokio::test]
async fn positions_are_asked_of_the_members() {
    let peer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", peer.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        loop {
            let (mut socket, _) = peer.accept().await.unwrap();
            assert!(socket.read(&mut [0; 1024]).await.unwrap() > 0);
            let reply = "HTTP/1.0 200 OK\r\n\r\n{\"xlog\": {\"received_location\": 117440500, \"replayed_location\": 117440412}}";
            socket.write_all(reply.as_bytes()).await.unwrap();
        }
    });
    let mut s = leader();
    edit_cluster(&mut s, |c| {
        c.leader.as_mut().unwrap().optime = Some(Lsn(1));
        c.members.get_mut(&MemberName::from("pg-1")).unwrap().api_url = Some(url);
    });
    let world = World::new(s, Says::Status(as_primary())).await;
    let document = world.get("/cluster").await.json();
    let replica = &document["members"][1];
    assert_eq!(
        (&replica["receive_lag"], &replica["replay_lag"], &replica["lag"]),
        (&12.into(), &100.into(), &12.into())
    );
    answering.abort();
}

#[tokio::test]
async fn history_shows_what_is_known_of_each_timeline() {
    let mut s = leader();
    let world = World::new(s.clone(), Says::Nothing).await;
    assert_eq!(world.get("/history").await.says(), (200, "[]"));
    let row = |timeline, at: Option<&str>, new_leader: Option<&str>| HistoryRow {
        timeline: Timeline(timeline),
        lsn: Lsn(25_000_000),
        reason: "no recovery target specified".into(),
        at: at.map(str::to_owned),
        new_leader: new_leader.map(str::to_owned),
    };
    let at = Some("2026-11-20T08:15:30.123456+01:00");
    edit_cluster(&mut s, |c| c.history = Some(vec![row(1, None, None), row(2, at, None), row(3, at, Some("pg-1"))]));
    let world = World::new(s, Says::Nothing).await;
    let expected = r#"[[1, 25000000, "no recovery target specified"], [2, 25000000, "no recovery target specified", "2026-11-20T08:15:30.123456+01:00"], [3, 25000000, "no recovery target specified", "2026-11-20T08:15:30.123456+01:00", "pg-1"]]"#;
    assert_eq!(world.get("/history").await.says(), (200, expected));
}

#[tokio::test]
async fn the_configuration_is_shown_as_stored() {
    let world = World::new(leader(), Says::Nothing).await;
    assert_eq!(world.get("/config").await.says(), (200, r#"{"ttl": 30, "x": {"y": null}}"#));
    world.change(|s| edit_cluster(s, |c| c.config = None));
    let page = world.get("/config").await;
    assert_eq!((page.status, page.header("content-type")), (502, Some("text/html;charset=utf-8")));
    assert!(page.body.contains("Error code: 502") && page.body.contains("Message: Bad Gateway."), "{}", page.body);
}

/// Patroni closes the connection without a word; a page says why.
#[tokio::test]
async fn without_a_view_of_the_store_nothing_is_made_up() {
    let mut s = leader();
    s.dcs_available = false;
    let world = World::new(s, Says::Nothing).await;
    for path in ["/cluster", "/history", "/config"] {
        let page = world.get(path).await;
        assert_eq!(page.status, 503, "{path}");
        assert!(page.body.contains("cannot be read from Kubernetes"), "{}", page.body);
    }
    assert_eq!(world.get("/failsafe").await.status, 502);
}

const METRICS: &str = "version postgres_running postmaster_start_time primary xlog_location standby_leader replica \
    sync_standby quorum_standby xlog_received_location xlog_replayed_location xlog_replayed_timestamp xlog_paused \
    postgres_streaming postgres_in_archive_recovery postgres_server_version cluster_unlocked failsafe_mode_enabled \
    failsafe_mode_is_active failsafe_member \
    postgres_timeline dcs_last_seen pending_restart is_paused fence_lost fence_partial postgres_state";

#[tokio::test]
async fn metrics_are_prometheus_text_with_the_names_of_the_contract() {
    let world = World::new(leader(), Says::Status(as_primary())).await;
    let reply = world.get("/metrics").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain")));
    let mut names = Vec::new();
    let mut lines = reply.body.lines();
    while let Some(help) = lines.next() {
        let name = help.strip_prefix("# HELP ").unwrap().split(' ').next().unwrap();
        if name == "patroni_postgres_state" {
            assert!(lines.next().unwrap().starts_with("# Values: 0=initdb, 1=initdb_failed, "), "{help}");
        }
        let kind = if name.ends_with("_location") { "counter" } else { "gauge" };
        assert_eq!(lines.next().unwrap(), format!("# TYPE {name} {kind}"));
        assert!(lines.next().unwrap().starts_with(&format!("{name}{{scope=\"demo\",name=\"pg-0\"}} ")), "{name}");
        names.push(name.strip_prefix("patroni_").unwrap());
    }
    assert_eq!(names, METRICS.split_whitespace().collect::<Vec<_>>());
    assert!(reply.body.ends_with("} 5\n"), "state running is 5: {}", reply.body);
    let expected = [
        ("version", "040105"),
        ("postgres_running", "1"),
        ("postmaster_start_time", "1763626530.5"),
        ("primary", "1"),
        ("xlog_location", "117440512"),
        ("replica", "0"),
        ("postgres_server_version", "170002"),
        ("postgres_timeline", "7"),
        ("dcs_last_seen", "1763626530"),
        ("cluster_unlocked", "0"),
    ];
    for (name, value) in expected {
        let line = format!("\npatroni_{name}{{scope=\"demo\",name=\"pg-0\"}} {value}\n");
        assert!(format!("\n{}", reply.body).contains(&line), "{line} not in {}", reply.body);
    }
}

#[tokio::test]
async fn what_the_fence_lacks_is_in_the_status_document_and_in_the_metrics() {
    for (lost, partial, said) in [(false, false, None), (true, false, Some("lost")), (false, true, Some("partial"))] {
        let mut shown = leader();
        (shown.member.fence_lost, shown.member.fence_partial) = (lost, partial);
        let world = World::new(shown, Says::Status(as_primary())).await;
        let document: serde_json::Value = serde_json::from_str(&world.get("/patroni").await.body).unwrap();
        assert_eq!(document["fence"].as_str(), said);
        let body = world.get("/metrics").await.body;
        for (name, flag) in [("lost", lost), ("partial", partial)] {
            let line = format!("patroni_fence_{name}{{scope=\"demo\",name=\"pg-0\"}} {}\n", u8::from(flag));
            assert!(body.contains(&line), "{line} not in {body}");
        }
    }
}

#[tokio::test]
async fn metrics_of_a_replica_and_of_a_postgres_that_does_not_answer() {
    let value = |body: &str, name: &str| {
        let prefix = format!("patroni_{name}{{");
        body.lines().find(|l| l.starts_with(&prefix)).map(|l| l.rsplit(' ').next().unwrap().to_owned())
    };
    let world = World::new(replica(), Says::Status(as_standby())).await;
    let body = world.get("/metrics").await.body;
    for (name, expected) in [
        ("primary", "0"),
        ("replica", "1"),
        ("xlog_location", "0"),
        ("postgres_streaming", "1"),
        ("xlog_received_location", "117440512"),
        ("xlog_replayed_location", "117440500"),
        ("xlog_replayed_timestamp", "0"),
    ] {
        assert_eq!(value(&body, name).as_deref(), Some(expected), "{name}");
    }
    let world = World::new(replica(), Says::Nothing).await;
    let body = world.get("/metrics").await.body;
    assert_eq!(value(&body, "postgres_state").as_deref(), Some("-1"), "unknown");
    assert_eq!(value(&body, "postmaster_start_time").as_deref(), Some("0"));
    assert_eq!(value(&body, "postgres_streaming"), None, "only when the version is known");
}
