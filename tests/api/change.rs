//! Everything that changes something: bodies, configuration, restart, switchover,
//! timestamps, reinitialize.

use std::sync::Arc;
use std::time::Duration;

use patroni::door::{Answer, COMMANDS_MAX, Command};
use patroni::model::{Addressee, FailoverRequest, MemberName, RequestText, RestartFilter, Version, WallTime};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::world::{DEADLINE, Reply, Says, World, edit_cluster, leader};

async fn world() -> World {
    World::new(leader(), Says::Nothing).await
}

fn request(leader: Option<&str>, candidate: Option<&str>, at: Option<i64>) -> Option<FailoverRequest> {
    let name = |n: &str| MemberName::from(n);
    let version = Version("f7".into());
    Some(FailoverRequest {
        version,
        leader: leader.map(name),
        candidate: candidate.map(name),
        scheduled_at: at.map(WallTime),
    })
}

/// (method, path, body, status). `None`: no Content-Length at all.
#[tokio::test]
async fn bodies_are_objects_and_mandatory_where_the_contract_says_so() {
    let world = world().await;
    let mandatory = [
        ("PATCH", "/config"),
        ("PUT", "/config"),
        ("POST", "/switchover"),
        ("POST", "/failover"),
        ("POST", "/failsafe"),
    ];
    for (method, path) in mandatory {
        for (body, status) in
            [(None, 411), (Some(""), 400), (Some("{}"), 400), (Some("[1]"), 400), (Some("{"), 400), (Some("1"), 400)]
        {
            let page = world.ask(method, path, body).await;
            assert_eq!(page.status, status, "{method} {path} {body:?}");
            assert_eq!(page.header("content-type"), Some("text/html;charset=utf-8"));
            assert!(page.body.contains(&format!("Error code: {status}")), "{}", page.body);
        }
    }
    for (body, why) in [
        ("", "a JSON object is needed, the body is empty"),
        ("{}", "the JSON object is empty"),
        ("[1]", "the body is not a JSON object"),
        ("garbage", "the body is not JSON: expected value at line 1 column 1"),
    ] {
        let page = world.ask("PATCH", "/config", Some(body)).await;
        assert!(page.body.contains(&format!("<p>Error code explanation: 400 - {why}.</p>")), "{}", page.body);
    }
    for path in ["/restart", "/reinitialize"] {
        for body in ["[1]", "{", "null", "\"x\""] {
            assert_eq!(
                world.ask("POST", path, Some(body)).await.status,
                400,
                "{path} {body}: nothing is started either"
            );
        }
    }
    let chunked = [("Transfer-Encoding", "chunked")];
    assert_eq!(world.ask_with("PUT", "/config", &chunked, None).await.status, 411);
    let huge = [("Content-Length", "1048577")];
    assert_eq!(world.ask_with("PUT", "/config", &huge, None).await.status, 413);
}

#[tokio::test]
async fn optional_bodies_may_be_missing_or_empty() {
    let mut world = world().await;
    for body in [None, Some(""), Some("{}")] {
        let (reply, command) =
            world.command("POST", "/restart", body, Answer::new(200, "restarted successfully")).await;
        assert_eq!(reply.says(), (200, "restarted successfully"));
        assert_eq!(command, Command::Restart { filter: RestartFilter::default(), timeout: None });
    }
}

fn write_config(document: &str, conflict: u16) -> Command {
    Command::WriteConfig { expect: Some(Version("c1".into())), document: document.into(), conflict }
}

#[tokio::test]
async fn config_answers_are_mapped_to_documents_and_pages() {
    let mut world = world().await;
    let (reply, command) = world
        .command("PATCH", "/config", Some(r#"{"ttl":20,"x":null}"#), Answer::new(200, r#"{"ttl":20,"ü":1}"#))
        .await;
    assert_eq!(reply.says(), (200, r#"{"ttl": 20, "\u00fc": 1}"#));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    // Merged into the stored document, on the version it was read in.
    assert_eq!(command, write_config(r#"{"ttl":20}"#, 409));
    let (reply, command) =
        world.command("PUT", "/config", Some(r#"{"ttl":20}"#), Answer::new(200, r#"{"ttl":20}"#)).await;
    assert_eq!((reply.says(), command), ((200, r#"{"ttl": 20}"#), write_config(r#"{"ttl":20}"#, 502)));
    for (method, status, reason) in [
        ("PATCH", 409, "Conflict"),
        ("PATCH", 503, "Service Unavailable"),
        ("PUT", 502, "Bad Gateway"),
        ("PATCH", 502, "Bad Gateway"),
    ] {
        let (page, _) =
            world.command(method, "/config", Some(r#"{"ttl":20}"#), Answer::new(status, "why <it> failed")).await;
        assert_eq!(page.status, status);
        assert!(page.body.contains(&format!("Message: {reason}.")), "{}", page.body);
        assert!(page.body.contains("why &lt;it&gt; failed"), "{}", page.body);
    }
}

#[tokio::test]
async fn a_configuration_that_stays_as_it_is_is_not_written() {
    let world = world().await;
    let stored = r#"{"ttl": 30, "x": {"y": null}}"#;
    assert_eq!(world.ask("PATCH", "/config", Some(r#"{"ttl":30}"#)).await.says(), (200, stored));
    assert_eq!(world.ask("PUT", "/config", Some(r#"{"ttl":30,"x":{"y":null}}"#)).await.says(), (200, stored));
    world.change(|s| edit_cluster(s, |c| c.config = None));
    assert_eq!(world.ask("PATCH", "/config", Some(r#"{"ttl":20}"#)).await.status, 503, "nothing to merge into");
}

#[tokio::test]
async fn a_restart_that_is_scheduled_keeps_its_start_timeout() {
    let mut world = world().await;
    let body = r#"{"schedule":"2030-01-01T10:00Z","timeout":"1min"}"#;
    let (_, command) = world.command("POST", "/restart", Some(body), Answer::new(202, "Restart scheduled")).await;
    let Command::ScheduleRestart { timeout, .. } = command else { panic!("{command:?}") };
    assert_eq!(timeout, Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn reload_and_sigterm_are_always_accepted() {
    let mut world = world().await;
    let (reply, command) = world.command("POST", "/reload", None, Answer::new(202, "reload scheduled")).await;
    assert_eq!((reply.says(), command), ((202, "reload scheduled"), Command::Reload));
    assert_eq!(world.ask("POST", "/sigterm", None).await.says(), (202, "shutdown scheduled"));
}

const ROLE: &str = "PostgreSQL role should be either primary, standby_leader, or replica";
const TIMEOUT: &str = "Timeout should be a positive number of seconds";
const PARSE: &str = "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601";

/// Keys in the order sent, the first error wins.
#[tokio::test]
async fn restarts_with_bad_words_are_refused_in_the_words_of_the_contract() {
    let world = world().await;
    let cases = [
        (r#"{"role":"master"}"#, 400, ROLE),
        (r#"{"role":""}"#, 400, ROLE),
        (r#"{"postgres_version":"x"}"#, 400, "Invalid PostgreSQL version: x"),
        (r#"{"postgres_version":"17"}"#, 400, "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 17"),
        (
            r#"{"postgres_version":"9.6.1.2"}"#,
            400,
            "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 9.6.1.2",
        ),
        (r#"{"timeout":0}"#, 400, TIMEOUT),
        (r#"{"timeout":-1}"#, 400, TIMEOUT),
        (r#"{"timeout":"soon"}"#, 400, TIMEOUT),
        (r#"{"timeout":"2kB"}"#, 400, TIMEOUT),
        (r#"{"timeout":null}"#, 400, TIMEOUT),
        (r#"{"colour":1}"#, 400, "Unknown filter for the scheduled restart: colour"),
        (r#"{"timeout":0,"role":"x"}"#, 400, TIMEOUT),
        (r#"{"role":"x","timeout":0}"#, 400, ROLE),
        (r#"{"schedule":"2030-01-01T10:00"}"#, 400, "Timezone information is mandatory for the scheduled restart"),
        (r#"{"schedule":"2020-01-01T10:00+00:00"}"#, 422, "Cannot schedule restart in the past"),
        (r#"{"schedule":"tomorrow"}"#, 422, PARSE),
        (r#"{"schedule":""}"#, 422, PARSE),
        (r#"{"schedule":17}"#, 422, PARSE),
    ];
    for (body, status, text) in cases {
        assert_eq!(world.ask("POST", "/restart", Some(body)).await.says(), (status, text), "{body}");
    }
}

#[tokio::test]
async fn restarts_reach_the_loop_with_their_filter() {
    let mut world = world().await;
    let body = r#"{"role":"replica","postgres_version":"15.4","timeout":"2min","restart_pending":false}"#;
    let filter = RestartFilter { role: Some("replica".into()), below_version: Some(150_004), pending_only: true };
    for (status, text) in [
        (503, "restart conditions are not satisfied"),
        (503, "reinitialize already in progress"),
        (503, "postgres is still starting"),
        (503, "restart failed"),
    ] {
        let (reply, command) = world.command("POST", "/restart", Some(body), Answer::new(status, text)).await;
        assert_eq!(reply.says(), (status, text));
        assert_eq!(reply.header("content-type"), Some("text/html"));
        assert_eq!(command, Command::Restart { filter: filter.clone(), timeout: Some(Duration::from_secs(120)) });
    }
    let body = r#"{"schedule":"2030-01-01 10:00 +02:00","restart_pending":true}"#;
    let (reply, command) = world.command("POST", "/restart", Some(body), Answer::new(202, "Restart scheduled")).await;
    assert_eq!(reply.says(), (202, "Restart scheduled"));
    let Command::ScheduleRestart { at, filter, timeout: None, document } = command else { panic!("{command:?}") };
    assert_eq!((at, filter.pending_only), (WallTime(1_893_484_800_000_000), true));
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document, json!({"schedule": "2030-01-01T10:00:00+02:00", "restart_pending": true}));
    let (reply, _) =
        world.command("POST", "/restart", Some(body), Answer::new(409, "Another restart is already scheduled")).await;
    assert_eq!(reply.says(), (409, "Another restart is already scheduled"));
}

#[tokio::test]
async fn scheduled_restarts_are_deleted() {
    let mut world = world().await;
    for (status, text) in [(200, "scheduled restart deleted"), (404, "no restarts are scheduled")] {
        let (reply, command) = world.command("DELETE", "/restart", None, Answer::new(status, text)).await;
        assert_eq!((reply.says(), command), ((status, text), Command::DeleteScheduledRestart));
    }
}

#[tokio::test]
async fn reinitialize_passes_its_wishes_and_its_answers_on() {
    let mut world = world().await;
    let cases = [
        (None, false, false),
        (Some(r#"{"force":true}"#), true, false),
        (Some(r#"{"force":"ON","from_leader":"Yes"}"#), true, true),
        (Some(r#"{"force":1,"from_leader":"0"}"#), true, false),
        (Some(r#"{"force":"maybe"}"#), false, false),
    ];
    for (body, force, from_leader) in cases {
        let (reply, command) =
            world.command("POST", "/reinitialize", body, Answer::new(200, "reinitialize started")).await;
        assert_eq!(
            (reply.says(), command),
            ((200, "reinitialize started"), Command::Reinitialize { force, from_leader })
        );
    }
    let busy = Answer::new(503, "restart already in progress");
    let (reply, _) = world.command("POST", "/reinitialize", None, busy).await;
    assert_eq!(reply.says(), (503, "restart already in progress"));
}

/// The rows that look at words alone; nothing is written.
#[tokio::test]
async fn switchovers_with_bad_words_are_refused() {
    let world = world().await;
    let no_leader = "Switchover could be performed only from a specific leader";
    let no_candidate = "Failover could be performed only to a specific candidate";
    let same = "Switchover target and source are the same";
    let cases = [
        ("/failover", r#"{"leader":"pg-0"}"#, 400, no_candidate),
        ("/failover", r#"{"candidate":"","x":1}"#, 400, no_candidate),
        ("/switchover", r#"{"candidate":"pg-1"}"#, 400, no_leader),
        ("/switchover", r#"{"leader":null}"#, 400, no_leader),
        (
            "/failover",
            r#"{"candidate":"pg-1","scheduled_at":"2030-01-01T10:00+00:00"}"#,
            400,
            "Failover can't be scheduled",
        ),
        (
            "/switchover",
            r#"{"leader":"pg-0","scheduled_at":"2030-01-01T10:00"}"#,
            400,
            "Timezone information is mandatory for the scheduled switchover",
        ),
        (
            "/switchover",
            r#"{"leader":"pg-0","scheduled_at":"2001-01-01T10:00Z"}"#,
            422,
            "Cannot schedule switchover in the past",
        ),
        ("/switchover", r#"{"leader":"pg-0","scheduled_at":"x"}"#, 422, PARSE),
        ("/switchover", r#"{"leader":"pg-0","candidate":"pg-0"}"#, 400, same),
        ("/failover", r#"{"leader":"pg-0","member":"pg-0"}"#, 400, same),
        ("/switchover", r#"{"leader":"pg-1"}"#, 412, "leader name does not match"),
        ("/failover", r#"{"leader":"pg-1","candidate":"pg-0"}"#, 412, "leader name does not match"),
        ("/switchover", r#"{"leader":"pg-0","candidate":"pg-9"}"#, 412, "candidate does not exists"),
        ("/failover", r#"{"candidate":"pg-9"}"#, 412, "candidate does not exists"),
        ("/switchover", r#"{"leader":"pg-0"}"#, 412, "switchover is not possible: no good candidates have been found"),
        ("/failover", r#"{"candidate":"pg-1"}"#, 412, "failover is not possible: no good candidates have been found"),
    ];
    for (path, body, status, text) in cases {
        assert_eq!(world.ask("POST", path, Some(body)).await.says(), (status, text), "{path} {body}");
    }
    world.change(|s| edit_cluster(s, |c| drop(c.members.remove(&MemberName::from("pg-1")))));
    let alone = "switchover is not possible: cluster does not have members except leader";
    assert_eq!(world.ask("POST", "/switchover", Some(r#"{"leader":"pg-0"}"#)).await.says(), (412, alone));
    world.change(|s| edit_cluster(s, |c| c.leader = None));
    let body = r#"{"leader":"pg-0"}"#;
    assert_eq!(world.ask("POST", "/switchover", Some(body)).await.says(), (412, "leader name does not match"));
    world.change(|s| s.dcs_available = false);
    assert_eq!(world.ask("POST", "/switchover", Some(body)).await.status, 503);
}

/// A world whose `pg-1` answers its `GET /patroni` with this document.
async fn with_peer(document: &'static str) -> World {
    let peer = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", peer.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = peer.accept().await.unwrap();
            assert!(socket.read(&mut [0; 1024]).await.unwrap() > 0);
            socket.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{document}").as_bytes()).await.unwrap();
        }
    });
    let mut s = leader();
    edit_cluster(&mut s, |c| c.members.get_mut(&MemberName::from("pg-1")).unwrap().api_url = Some(url));
    World::new(s, Says::Nothing).await
}

const GOOD: &str = r#"{"role": "replica", "xlog": {"received_location": 9}}"#;

#[tokio::test]
async fn candidates_that_may_not_lead_are_no_candidates() {
    for document in [
        r#"{"role": "replica"}"#,
        r#"{"role": "replica", "xlog": {"received_location": 9}, "tags": {"nofailover": true}}"#,
        r#"{"role": "replica", "xlog": {"received_location": 9}, "watchdog_failed": true}"#,
    ] {
        let world = with_peer(document).await;
        let text = "switchover is not possible: no good candidates have been found";
        assert_eq!(
            world.ask("POST", "/switchover", Some(r#"{"leader":"pg-0"}"#)).await.says(),
            (412, text),
            "{document}"
        );
    }
}

/// Sends the request, checks what the loop is asked to write, shows these snapshots, returns the reply.
async fn play(path: &str, body: &str, leaders: &[(Option<&str>, bool)]) -> (Reply, Command) {
    let mut world = with_peer(GOOD).await;
    let addr = world.addr;
    let (path, body) = (path.to_owned(), body.to_owned());
    let asking = tokio::spawn(async move {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        crate::world::exchange(&mut stream, "POST", &path, &[], Some(&body)).await
    });
    let asked = tokio::time::timeout(DEADLINE, world.commands.recv()).await.expect("no command").unwrap();
    asked.reply.send(Answer::new(200, "")).unwrap();
    for (leader, pending) in leaders {
        // The handler looks at each of them before the next one comes.
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.change(|s| {
            edit_cluster(s, |c| {
                c.leader.as_mut().unwrap().lease.leader = leader.map(MemberName::from);
                c.failover = pending.then(|| request(Some("pg-0"), None, None)).flatten();
            });
        });
    }
    (tokio::time::timeout(DEADLINE, asking).await.expect("no reply").unwrap(), asked.command)
}

#[tokio::test]
async fn a_switchover_is_answered_when_it_has_ended() {
    let to_pg1 = r#"{"leader":"pg-0","candidate":"pg-1"}"#;
    let anyone = r#"{"leader":"pg-0"}"#;
    let held = [(Some("pg-0"), true), (None, true)];
    let won = |name| [held[0], held[1], (Some(name), true)];
    // The record may be seen to vanish a moment before the new leader is seen.
    let early = [held[0], (None, false), (Some("pg-1"), false)];
    let failed = [held[0], (Some("pg-0"), false)];
    let cases: [(&str, &str, &[_], u16, &str); 6] = [
        ("/switchover", to_pg1, &won("pg-1"), 200, r#"Successfully switched over to "pg-1""#),
        ("/switchover", anyone, &won("pg-2"), 200, r#"Successfully switched over to "pg-2""#),
        ("/switchover", to_pg1, &won("pg-2"), 200, r#"Switched over to "pg-2" instead of "pg-1""#),
        ("/failover", r#"{"member":"pg-1"}"#, &won("pg-2"), 200, r#"Failed over to "pg-2" instead of "pg-1""#),
        ("/failover", r#"{"candidate":"pg-1"}"#, &early, 200, r#"Successfully failed over to "pg-1""#),
        ("/switchover", anyone, &failed, 503, "Switchover failed: pg-0 leads, its log says why"),
    ];
    for (path, body, leaders, status, text) in cases {
        let (reply, command) = play(path, body, leaders).await;
        assert_eq!(reply.says(), (status, text), "{path} {body}");
        let Command::SetRequest(RequestText { leader, scheduled_at: None, .. }) = command else {
            panic!("{command:?}")
        };
        assert_eq!(leader.is_some(), path == "/switchover");
    }
}

#[tokio::test]
async fn a_scheduled_switchover_is_only_written() {
    let mut world = world().await;
    // No 412 check: the leader of then is not the leader of today.
    let body = r#"{"leader":"pg-7","candidate":"pg-9","scheduled_at":"2030-01-01T10:00:00+02:00"}"#;
    let (reply, command) = world.command("POST", "/switchover", Some(body), Answer::new(200, "")).await;
    assert_eq!(reply.says(), (202, "Switchover scheduled"));
    let expected = Command::SetRequest(RequestText {
        leader: Some("pg-7".into()),
        candidate: Some("pg-9".into()),
        scheduled_at: Some("2030-01-01T10:00:00+02:00".into()),
    });
    assert_eq!(command, expected);
    let (reply, _) = world.command("POST", "/switchover", Some(body), Answer::new(503, "whatever")).await;
    assert_eq!(reply.says(), (503, "failed to write failover key into DCS"));
}

#[tokio::test]
async fn a_scheduled_switchover_is_deleted_at_the_version_seen() {
    let mut world = world().await;
    assert_eq!(world.ask("DELETE", "/switchover", None).await.says(), (404, "no switchover is scheduled"));
    world.change(|s| edit_cluster(s, |c| c.failover = request(Some("pg-0"), None, None)));
    assert_eq!(world.ask("DELETE", "/switchover", None).await.status, 404, "that one is under way, not scheduled");
    world.change(|s| edit_cluster(s, |c| c.failover = request(Some("pg-0"), None, Some(1))));
    let (reply, command) = world.command("DELETE", "/switchover", None, Answer::new(200, "")).await;
    assert_eq!(reply.says(), (200, "scheduled switchover deleted"));
    assert_eq!(command, Command::ClearRequest { expect: Version("f7".into()) });
    let (page, _) = world.command("DELETE", "/switchover", None, Answer::new(409, "")).await;
    assert_eq!(page.status, 409);
    assert!(page.body.contains("Message: Conflict."), "{}", page.body);
}

#[tokio::test]
async fn a_full_queue_is_said_at_once() {
    let world = world().await;
    let waiting: Vec<_> = (0..COMMANDS_MAX)
        .map(|_| {
            let addr = world.addr;
            tokio::spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
                crate::world::exchange(&mut stream, "POST", "/restart", &[], None).await
            })
        })
        .collect();
    while world.commands.len() < COMMANDS_MAX {
        tokio::task::yield_now().await;
    }
    for (method, path, body) in [
        ("POST", "/restart", None),
        ("POST", "/reload", None),
        ("PATCH", "/config", Some(r#"{"ttl":1}"#)),
        ("DELETE", "/restart", None),
    ] {
        let reply = world.ask(method, path, body).await;
        assert_eq!(reply.says(), (503, "too many requests are pending, try again later"), "{method} {path}");
    }
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Restart waits, reading goes on.
#[tokio::test]
async fn a_command_that_takes_long_holds_nobody_up() {
    let mut world = world().await;
    let addr = world.addr;
    let asking = tokio::spawn(async move {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        crate::world::exchange(&mut stream, "POST", "/restart", &[], None).await
    });
    let asked = world.commands.recv().await.unwrap();
    assert_eq!(world.get("/primary").await.status, 200);
    asked.reply.send(Answer::new(200, "restarted successfully")).unwrap();
    assert_eq!(asking.await.unwrap().says(), (200, "restarted successfully"));
}

/// A holder that cannot reach the store asks; the member's answer goes out as it is, and a member without the mode is none.
#[tokio::test]
async fn a_request_to_be_left_the_lock_is_the_members_to_answer() {
    let mut world = world().await;
    let body = r#"{"name": "pg-1", "conn_url": "postgres://b:5432/postgres", "api_url": "http://b:8008/patroni"}"#;
    assert_eq!(world.ask("POST", "/failsafe", Some(body)).await.status, 502, "the mode is off");
    world.change(|s| Arc::make_mut(&mut s.settings).failsafe = true);
    let told = world.ask("POST", "/failsafe", Some(r#"{"x": 1}"#)).await;
    assert_eq!(told.says(), (400, "name: the name of the member that asks is missing"));
    let meant = r#"{"name": "pg-1", "member": "pg-0", "uid": "u-0"}"#;
    for (body, asked) in
        [(body, Addressee::default()), (meant, Addressee { name: Some("pg-0".into()), uid: Some("u-0".to_owned()) })]
    {
        for answer in [Answer::new(200, "Accepted"), Answer::new(500, "Running as a leader")] {
            let (reply, command) = world.command("POST", "/failsafe", Some(body), answer.clone()).await;
            assert_eq!(command, Command::Failsafe { from: "pg-1".into(), asked: asked.clone() });
            assert_eq!(reply.says(), (answer.status, answer.text.as_str()));
        }
    }
}

/// Nothing is scheduled in maintenance mode, and a switchover names its candidate.
#[tokio::test]
async fn maintenance_mode_is_told_and_refuses_what_it_cannot_keep() {
    let world = world().await;
    world.change(|s| Arc::make_mut(&mut s.settings).pause = true);
    for (path, body, status, text) in [
        ("/restart", r#"{"schedule": "2099-01-01T00:00Z"}"#, 500, "Can't schedule restart in the paused state"),
        (
            "/switchover",
            r#"{"leader": "pg-0", "candidate": "pg-1", "scheduled_at": "2099-01-01T00:00Z"}"#,
            400,
            "Can't schedule switchover in the paused state",
        ),
        (
            "/switchover",
            r#"{"leader": "pg-0"}"#,
            400,
            "Switchover is possible only to a specific candidate in a paused state",
        ),
    ] {
        assert_eq!(world.ask("POST", path, Some(body)).await.says(), (status, text), "{path} {body}");
    }
    for path in ["/patroni", "/cluster"] {
        assert_eq!(world.get(path).await.json()["pause"], json!(true), "{path}");
    }
    assert!(world.get("/metrics").await.body.contains("patroni_is_paused{scope=\"demo\",name=\"pg-0\"} 1"));
}

#[tokio::test]
async fn what_is_not_there_is_said_before_anything_else() {
    let world = world().await;
    let cases = [
        ("POST", "/unknown"),
        ("DELETE", "/failover"),
        ("PUT", "/restart"),
        ("POST", "/config"),
        ("PATCH", "/patroni"),
        ("POST", "/primary"),
        ("DELETE", "/reinitialize"),
        ("BREW", "/"),
    ];
    for (method, path) in cases {
        let page = world.ask(method, path, None).await;
        assert_eq!(page.status, 501, "{method} {path}");
        assert!(page.body.contains(&format!("Message: Unsupported method ('{method}').")), "{}", page.body);
        assert!(
            page.body.contains("Error code explanation: 501 - Server does not support this operation."),
            "{}",
            page.body
        );
    }
    assert_eq!(world.ask("POST", "/failsafe", Some(r#"{"name":"x"}"#)).await.status, 502);
    assert_eq!(world.ask("POST", "/citus", Some(r#"{"type":"x"}"#)).await.says(), (501, "Citus is not supported"));
}
