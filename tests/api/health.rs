//! Health checks: the recorded matrix, which path is which check, `?lag=` and tags.

use std::sync::Arc;
use std::time::Duration;

use patroni::door::{PostgresStatus, Snapshot};
use patroni::model::{Lsn, MemberName, PostgresState, Role, SyncRecord, Version};

use crate::world::{Says, World, as_primary, as_standby, edit_cluster, leader, replica};

const COLUMNS: [&str; 13] = [
    "/",
    "/leader",
    "/standby-leader",
    "/replica",
    "/read-only",
    "/sync",
    "/read-only-sync",
    "/async",
    "/quorum",
    "/read-only-quorum",
    "/health",
    "/readiness",
    "/liveness",
];

fn with(mut s: Snapshot, edit: impl FnOnce(&mut Snapshot)) -> Snapshot {
    edit(&mut s);
    s
}

fn without_lock(s: &mut Snapshot) {
    s.leader_until = None;
}

fn in_state(s: &mut Snapshot, state: PostgresState) {
    s.member.state = state;
}

fn loop_stuck(s: &mut Snapshot) {
    // The last step was 45 s ago, with loop_wait 10 the next was due 35 s ago.
    s.next_step = s.now.boot - Duration::from_secs(35);
    s.leader_until = None;
}

fn not_streaming() -> PostgresStatus {
    PostgresStatus { replication_state: None, latest_end_lsn: None, ..as_standby() }
}

fn in_sync_key(s: &mut Snapshot, quorum: u32) {
    let names = vec![MemberName::from("PG-0")];
    edit_cluster(s, |c| {
        c.sync =
            Some(SyncRecord { version: Version("s".into()), leader: Some("pg-1".into()), standbys: names, quorum });
    });
}

/// (situation, columns of the contract, snapshot, what Postgres says)
fn matrix() -> Vec<(&'static str, &'static str, Snapshot, Says)> {
    let primary = || Says::Status(as_primary());
    let standby = || Says::Status(as_standby());
    let hidden = |s: &mut Snapshot| Arc::make_mut(&mut s.settings).tags.noloadbalance = true;
    let no_dcs = |s: &mut Snapshot| s.dcs_available = false;
    let unlocked = |s: &mut Snapshot| edit_cluster(s, |c| c.leader = None);
    let paused = |s: &mut Snapshot| Arc::make_mut(&mut s.settings).pause = true;
    vec![
        ("primary with lock", "YY..Y.Y..YYYY", leader(), primary()),
        ("Postgres primary without lock", "..........Y.Y", with(leader(), without_lock), primary()),
        ("async replica, streaming", "...YY..Y..YYY", replica(), standby()),
        ("replica, not streaming", "...YY..Y..Y.Y", replica(), Says::Status(not_streaming())),
        ("replica, noloadbalance", "..........YYY", with(replica(), hidden), standby()),
        ("sync replica", "...YYYY...YYY", with(replica(), |s| in_sync_key(s, 0)), standby()),
        ("quorum replica", "...YY...YYYYY", with(replica(), |s| in_sync_key(s, 1)), standby()),
        (
            "leader, Postgres starting",
            "YY..Y.Y..Y.YY",
            with(leader(), |s| in_state(s, PostgresState::Starting)),
            Says::Nothing,
        ),
        ("leader, query failing", "YY..Y.Y..Y.YY", leader(), Says::Nothing),
        ("replica starting", "............Y", with(replica(), |s| in_state(s, PostgresState::Starting)), Says::Nothing),
        ("replica stopped", "............Y", with(replica(), |s| in_state(s, PostgresState::Stopped)), standby()),
        ("DCS unavailable, lease not expired, primary", "YY..Y.....YYY", with(leader(), no_dcs), primary()),
        (
            "DCS unavailable, lease expired, primary",
            "..........Y.Y",
            with(with(leader(), no_dcs), |s| s.leader_until = Some(s.now.boot)),
            primary(),
        ),
        ("DCS unavailable, replica streaming", "...YY.....YYY", with(replica(), no_dcs), standby()),
        (
            "DCS unavailable, replica not streaming",
            "...YY.....Y.Y",
            with(replica(), no_dcs),
            Says::Status(not_streaming()),
        ),
        ("unlocked cluster, replica streaming", "...YY..Y..YYY", with(replica(), unlocked), standby()),
        ("HA loop stuck 45 s, replica", "...YY..Y..YYY", with(replica(), loop_stuck), standby()),
        ("HA loop stuck 45 s, primary", "..........Y..", with(leader(), loop_stuck), primary()),
        ("paused, HA loop stuck 45 s, primary", "..........Y.Y", with(with(leader(), paused), loop_stuck), primary()),
        ("paused, DCS unavailable, primary", "YY..Y.....YYY", with(with(leader(), paused), no_dcs), primary()),
        ("paused, primary without lock", "..........Y.Y", with(with(leader(), paused), without_lock), primary()),
    ]
}

#[tokio::test]
async fn the_recorded_matrix() {
    let mut wrong = Vec::new();
    for (situation, expected, snapshot, says) in matrix() {
        let world = World::new(snapshot, says).await;
        let mut got = String::new();
        for path in COLUMNS {
            let reply = world.get(path).await;
            got.push(match reply.status {
                200 => 'Y',
                503 => '.',
                other => panic!("{situation} {path}: {other}"),
            });
        }
        if got != expected {
            wrong.push(format!("{situation}: expected {expected}, got {got}"));
        }
    }
    assert!(wrong.is_empty(), "{COLUMNS:?}\n{}", wrong.join("\n"));
}

/// Matched by substring, in the order of the table.
#[tokio::test]
async fn paths_are_matched_by_substring() {
    let cases: [(&str, u16, u16); 22] = [
        // path, on the leader, on a replica
        ("/primary", 200, 503),
        ("/master", 200, 503),
        ("/read-write", 200, 503),
        ("/foo-primary", 200, 503),
        ("/x/leader", 200, 503),
        ("/standby_leader", 503, 503),
        ("/standby-leader", 503, 503),
        ("/replica", 503, 200),
        ("/replica/x", 503, 200),
        ("/read-only", 200, 200),
        ("/x-read-only", 200, 200),
        ("/health", 200, 200),
        ("/healthz", 200, 200),
        ("/asynchronous", 503, 200),
        ("/synchronous", 503, 503),
        ("/read-only-synchronous", 200, 503),
        ("/quorum", 503, 503),
        ("/unknown", 503, 503),
        ("/Primary", 503, 503),
        ("/async/", 503, 503),
        ("//primary", 200, 503),
        ("/?x=1", 200, 503),
    ];
    let on_leader = World::new(leader(), Says::Status(as_primary())).await;
    let on_replica = World::new(replica(), Says::Status(as_standby())).await;
    for (path, first, second) in cases {
        assert_eq!(on_leader.get(path).await.status, first, "{path} on the leader");
        let reply = on_replica.get(path).await;
        assert_eq!(reply.status, second, "{path} on a replica");
        assert_eq!(reply.json()["patroni"]["name"], "pg-0", "{path}: the status document comes with every check");
        let head = on_replica.ask("HEAD", path, None).await;
        assert_eq!((head.status, head.body.as_str()), (second, ""), "HEAD {path}");
        assert_eq!(on_replica.ask("OPTIONS", path, None).await.says(), (second, ""), "OPTIONS {path}");
    }
}

/// These are unknown health checks for HEAD and OPTIONS.
#[tokio::test]
async fn head_of_what_is_no_health_check_is_503() {
    let world = World::new(leader(), Says::Status(as_primary())).await;
    for path in ["/liveness", "/readiness", "/patroni", "/metrics", "/config", "/cluster", "/history"] {
        for method in ["HEAD", "OPTIONS"] {
            assert_eq!(world.ask(method, path, None).await.status, 503, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn status_only_replies_have_no_body_and_no_type() {
    let world = World::new(leader(), Says::Status(as_primary())).await;
    for (method, path) in [("GET", "/liveness"), ("GET", "/readiness"), ("HEAD", "/primary"), ("OPTIONS", "/")] {
        let reply = world.ask(method, path, None).await;
        assert_eq!(reply.says(), (200, ""), "{method} {path}");
        assert_eq!((reply.header("content-type"), reply.header("server")), (None, None), "{method} {path}");
    }
}

/// The replica has replayed 12 bytes less than its upstream has flushed, 1012 less than the store says.
#[tokio::test]
async fn lag_is_counted_against_the_further_of_store_and_upstream() {
    let mut s = replica();
    let world = World::new(s.clone(), Says::Status(as_standby())).await;
    edit_cluster(&mut s, |c| c.leader.as_mut().unwrap().optime = Some(Lsn(117_441_512)));
    let behind = World::new(s, Says::Status(as_standby())).await;
    let cases = [
        ("/replica?lag=12", 200, 503),
        ("/replica?lag=11", 503, 503),
        ("/replica?lag=0", 503, 503),
        ("/replica?lag=-1", 503, 503),
        ("/replica?lag=1kB", 200, 200),
        ("/replica?lag=0x3f4", 200, 200),
        ("/replica?lag=1KB", 200, 200),
        ("/replica?lag=", 200, 200),
        ("/replica?lag=much", 200, 200),
        ("/async?lag=11", 503, 503),
        ("/read-only?lag=11", 503, 503),
        ("/health?lag=0", 200, 200),
        ("/readiness?lag=11", 503, 503),
        ("/readiness?lag=12", 200, 503),
        ("/readiness?lag=0&mode=write", 200, 503),
        ("/readiness?lag=1000&mode=write", 200, 200),
        ("/readiness", 200, 200),
    ];
    for (path, near, far) in cases {
        assert_eq!(world.get(path).await.status, near, "{path}");
        assert_eq!(behind.get(path).await.status, far, "{path} behind the store");
    }
    let mut unknown = replica();
    edit_cluster(&mut unknown, |c| c.leader = None);
    let unknown = World::new(unknown, Says::Status(PostgresStatus { latest_end_lsn: None, ..as_standby() })).await;
    assert_eq!(unknown.get("/replica?lag=0").await.status, 200, "no leader position is known");
}

#[tokio::test]
async fn tag_filters_compare_the_configured_tags() {
    let tags = serde_json::json!({"zone": "a b", "clonefrom": true, "weight": 1.4, "n": 1, "none": null});
    let tagged = |mut s: Snapshot| {
        s.configured_tags = Arc::new(tags.as_object().unwrap().clone());
        s.effective_tags = Arc::new(serde_json::json!({"nosync": true}).as_object().unwrap().clone());
        s
    };
    let on_replica = World::new(tagged(replica()), Says::Status(as_standby())).await;
    let cases = [
        ("/replica?tag_zone=a+b", 200),
        ("/replica?tag_zone=a%20b", 200),
        ("/replica?tag_zone=c", 503),
        ("/replica?tag_zone=a+b&tag_zone=c", 200),
        ("/replica?tag_clonefrom=true", 200),
        ("/replica?tag_clonefrom=True", 503),
        ("/replica?tag_weight=1.4&tag_n=1", 200),
        ("/replica?tag_weight=1.4&tag_n=2", 503),
        ("/replica?tag_missing=x", 503),
        ("/replica?tag_none=null", 503),
        ("/replica?tag_missing=", 200),
        ("/replica?tag_nosync=true", 503),
        ("/health?tag_zone=c", 503),
        ("/async?tag_zone=c", 503),
        ("/read-only?tag_zone=c", 503),
        ("/replica?replication_state=none", 200),
    ];
    for (path, status) in cases {
        assert_eq!(on_replica.get(path).await.status, status, "{path}");
    }
    let on_leader = World::new(tagged(leader()), Says::Status(as_primary())).await;
    for (path, status) in
        [("/primary?tag_zone=c", 200), ("/leader?tag_zone=c", 200), ("/read-only-sync?tag_zone=c", 503)]
    {
        assert_eq!(on_leader.get(path).await.status, status, "{path}");
    }
    assert_eq!(on_leader.get("/read-only-sync?tag_zone=a+b").await.status, 200);
}

/// Nothing of it is cached beyond the facts it was made of.
#[tokio::test]
async fn a_check_follows_the_next_snapshot_at_once() {
    let world = World::new(leader(), Says::Status(as_primary())).await;
    assert_eq!(world.get("/primary").await.status, 200);
    world.change(|s| {
        s.leader_until = None;
        s.role = Role::Demoted;
        in_state(s, PostgresState::Stopping);
    });
    let reply = world.get("/primary").await;
    assert_eq!(
        (reply.status, &reply.json()["role"], &reply.json()["state"]),
        (503, &"demoted".into(), &"stopping".into())
    );
}

/// After a restart a standby shows the position up to which it has replayed, and may have more: as a voter it says nothing until
/// it has read all of its own.
#[tokio::test]
async fn a_voter_that_still_reads_its_own_wal_shows_no_position() {
    for (quorum, reads_on, shown) in [(1, true, false), (1, false, true), (0, true, true)] {
        let snapshot = with(replica(), |s| in_sync_key(s, quorum));
        let says = PostgresStatus { reads_on, ..as_standby() };
        let world = World::new(snapshot, Says::Status(says)).await;
        let document = world.get("/patroni").await.json();
        assert_eq!(document.get("xlog").is_some(), shown, "quorum {quorum}, reads on: {reads_on}");
        assert_eq!(document["state"], "running");
    }
}
