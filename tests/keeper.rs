//! The keeper against a real Postgres: fences, deaths, locks, sessions; programs and what gets stuck in modules of their
//! own.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "keeper/deadman.rs"]
mod deadman;
#[path = "keeper/programs.rs"]
mod programs;
#[path = "keeper/stuck.rs"]
mod stuck;
#[path = "keeper/world.rs"]
mod world;

use std::fs;
use std::process::Command;
use std::time::Duration;

use patroni::keeper::protocol::{Answer, Ask, Permission, Role, UnfencedReason};
use patroni::postgres::keeper_client::{KeeperClient, KeeperError, KeeperEvent};
use tokio::time::timeout;
use world::*;

#[test]
fn a_primary_needs_permission_and_is_stopped_when_it_lapses() {
    as_postgres("a_primary_needs_permission_and_is_stopped_when_it_lapses", async |w| {
        let (client, _, mut events) = w.session().await;
        assert!(refusal(client.command(w.start(Role::Primary, 0)).await).contains("no permission"));
        client.command(permit(writer(60_000, 62_000))).await.unwrap();
        client.command(w.start(Role::Primary, now())).await.unwrap();
        w.ready().await;
        let permission = writer(1_000, 3_000);
        let Permission::Writer { stop_at, kill_at } = permission else { unreachable!() };
        client.command(permit(permission)).await.unwrap();
        let at = exited(&mut events).await;
        assert!(at >= stop_at, "stopped {} ms early", (stop_at - at) / 1_000_000);
        assert!(at <= kill_at + SECOND / 5, "still there {} ms after kill_at", (at - kill_at) / 1_000_000);
        assert_eq!(w.left(), Vec::<String>::new());
        client.command(permit(writer(60_000, 62_000))).await.unwrap();
        let stale = client.command(w.start(Role::Primary, at - 1)).await;
        assert!(refusal(stale).contains("not renewed since"), "a renewal older than the death starts nothing");
    });
}

#[test]
fn after_kill_9_of_the_postmaster_no_backend_acknowledges_anything() {
    as_postgres("after_kill_9_of_the_postmaster_no_backend_acknowledges_anything", async |w| {
        let (client, _, mut events) = w.session().await;
        w.primary(&client).await;
        assert!(w.psql("create table t(x int)").status().unwrap().success());
        // A loop looks at no latch, so this backend does not notice by itself that the postmaster is gone.
        let busy = "do $$ begin insert into t values (1); for i in 1..2000000000 loop end loop; end $$";
        let in_flight = w.psql(busy).spawn().unwrap();
        while w
            .psql("select 1 from pg_stat_activity where query like 'do $$%' and state='active'")
            .output()
            .unwrap()
            .stdout
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let Answer::State(state) = client.ask(Ask::Status).await.unwrap() else { panic!() };
        let pid = state.postgres.unwrap().pid.to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        exited(&mut events).await;
        assert_eq!(w.left(), Vec::<String>::new(), "exited means that every descendant is gone");
        let output = in_flight.wait_with_output().unwrap();
        assert!(!output.status.success(), "a backend acknowledged a statement after the postmaster's death");
    });
}

#[test]
fn standbys_are_not_fenced_but_a_promotion_by_hand_is_stopped_at_once() {
    as_postgres("standbys_are_not_fenced_but_a_promotion_by_hand_is_stopped_at_once", async |w| {
        let (client, _, mut events) = w.session().await;
        assert!(refusal(client.command(w.start(Role::Standby, 0)).await).contains("standby.signal"));
        fs::write(w.dir.path().join("data/standby.signal"), b"").unwrap();
        // Left by an earlier life whose number belongs to somebody else by now: this very process.
        fs::write(w.lock(), format!("{}\n", std::process::id())).unwrap();
        client.command(w.start(Role::Standby, 0)).await.unwrap();
        w.ready().await;
        client.command(permit(Permission::None)).await.unwrap();
        let early = timeout(Duration::from_millis(2_500), events.recv()).await;
        assert!(early.is_err(), "a standby without permission was touched: {early:?}");
        assert!(refusal(client.command(Ask::Promote { renewal: now() }).await).contains("no permission"));
        // -W: a pg_ctl that waits for the end of the promotion may find Postgres stopped first, and fail.
        let promoted =
            Command::new(bin_dir().unwrap().join("pg_ctl")).args(["promote", "-W", "-D", &w.data()]).output().unwrap();
        assert!(promoted.status.success());
        exited(&mut events).await;
        assert_eq!(w.left(), Vec::<String>::new());
    });
}

#[test]
fn a_newer_session_supersedes_the_older_and_finds_everything_as_it_was() {
    as_postgres("a_newer_session_supersedes_the_older_and_finds_everything_as_it_was", async |w| {
        let (old, _, mut old_events) = w.session().await;
        w.primary(&old).await;
        let started = w.psql("select pg_postmaster_start_time()").output().unwrap().stdout;
        let (new, state, _events) = w.session().await;
        assert_eq!(state.note, "a note");
        assert_eq!(state.permission, Permission::Unfenced { reason: UnfencedReason::Bootstrap });
        assert_eq!(state.postgres.map(|p| p.role), Some(Role::Primary));
        let lost = timeout(PATIENCE, old_events.recv()).await.unwrap().unwrap();
        assert!(matches!(&lost, KeeperEvent::Lost(why) if why.contains("newer")), "{lost:?}");
        assert!(matches!(old.command(Ask::Reload).await, Err(KeeperError::Unreachable(_))));
        drop(new);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(
            w.psql("select pg_postmaster_start_time()").output().unwrap().stdout,
            started,
            "Postgres was touched"
        );
    });
}

/// In a pod the containers see each other's processes as number 0. A namespace of the keeper's own makes it so here.
#[test]
fn a_sidecar_in_another_container_is_let_in() {
    as_postgres("a_sidecar_in_another_container_is_let_in", async |w| {
        let apart = ["--user", "--map-current-user", "--pid", "--fork", "--kill-child"];
        if !Command::new("unshare").args(apart).arg("true").status().is_ok_and(|s| s.success()) {
            println!("skipped: no namespaces for ordinary users");
            return;
        }
        let socket = w.dir.path().join("apart.sock");
        let log = fs::File::create(w.dir.path().join("apart.log")).unwrap();
        let exe = std::env::var_os("KEEPER").unwrap_or_else(|| env!("CARGO_BIN_EXE_postgres-keeper").into());
        let mut keeper =
            Command::new("unshare").args(apart).arg(exe).arg("--socket").arg(&socket).stderr(log).spawn().unwrap();
        let began = now();
        // The file is there a moment before anybody listens on it.
        let met = loop {
            match KeeperClient::connect(&socket, "sidecar").await {
                Err(KeeperError::Unreachable(_)) if now() < began + 10 * SECOND => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                met => break met,
            }
        };
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        let said = fs::read_to_string(w.dir.path().join("apart.log")).unwrap();
        assert!(met.is_ok(), "{:?}; the keeper: {said}", met.err());
    });
}

#[test]
fn a_data_directory_belongs_to_one_keeper_at_a_time() {
    as_postgres("a_data_directory_belongs_to_one_keeper_at_a_time", async |w| {
        let (client, _, _events) = w.session().await;
        w.primary(&client).await;
        let socket = w.dir.path().join("other.sock");
        let mut other = World::spawn(&socket, &w.dir.path().join("other.log"));
        let (second, _, _events2) = KeeperClient::connect(&socket, "second").await.unwrap();
        second.command(permit(Permission::Unfenced { reason: UnfencedReason::Bootstrap })).await.unwrap();
        let refused = second.command(w.start(Role::Primary, 0)).await;
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(matches!(&refused, Err(KeeperError::InUse(why)) if why.contains("another keeper")), "{refused:?}");
    });
}

/// Dead means the postmaster and every descendant, also for the keeper that comes after a killed one.
#[test]
fn after_kill_9_of_the_keeper_the_last_backend_still_holds_the_directory() {
    as_postgres("after_kill_9_of_the_keeper_the_last_backend_still_holds_the_directory", async |mut w| {
        let (client, _, events) = w.session().await;
        w.primary(&client).await;
        let backend = w.psql("select pg_backend_pid(), pg_sleep(60)").spawn().unwrap();
        let asked = "select pid from pg_stat_activity where query like '%pg_sleep(60)' and wait_event = 'PgSleep'";
        let pid = loop {
            let out = String::from_utf8(w.psql(asked).output().unwrap().stdout).unwrap();
            if let Ok(pid) = out.trim().parse::<u32>() {
                break pid.to_string();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let Answer::State(state) = client.ask(Ask::Status).await.unwrap() else { panic!() };
        let postmaster = state.postgres.unwrap().pid.to_string();
        let kill =
            |signal: &str, pid: &str| assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
        drop((client, events));
        // The backend first, and then the keeper, stand still before the postmaster dies: a keeper that runs reaps the
        // dead postmaster and kills the backend before it is killed itself.
        let keeper = w.keeper.id().to_string();
        for each in [&pid, &keeper] {
            kill("-STOP", each);
            stopped(each).await;
        }
        kill("-9", &postmaster);
        w.keeper.kill().unwrap();
        w.keeper.wait().unwrap();
        w.keeper = World::spawn(&w.dir.path().join("keeper.sock"), &w.dir.path().join("keeper.log"));
        let (client, _, _events) = w.session().await;
        client.command(permit(Permission::Unfenced { reason: UnfencedReason::Bootstrap })).await.unwrap();
        let refused = client.command(w.start(Role::Primary, 0)).await;
        assert!(matches!(&refused, Err(KeeperError::InUse(why)) if why.contains("another keeper")), "{refused:?}");
        kill("-9", &pid);
        // A dying process gives up its directory before its files: only the lock says when it is really gone.
        let began = now();
        while let Err(e) = client.command(w.start(Role::Primary, 0)).await {
            assert!(now() < began + 10 * SECOND && matches!(e, KeeperError::InUse(_)), "{e}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        w.ready().await;
        backend.wait_with_output().unwrap();
    });
}

#[test]
fn sigterm_stops_postgres_when_nobody_hands_over() {
    as_postgres("sigterm_stops_postgres_when_nobody_hands_over", async |mut w| {
        let (client, _, events) = w.session().await;
        w.primary(&client).await;
        drop((client, events));
        let pid = w.keeper.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let began = now();
        let status = loop {
            if let Some(status) = w.keeper.try_wait().unwrap() {
                break status;
            }
            assert!(now() < began + 15 * SECOND, "the keeper did not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(status.success(), "{status}");
        assert_eq!(w.left(), Vec::<String>::new());
        let control = Command::new(bin_dir().unwrap().join("pg_controldata")).arg(w.data()).output().unwrap();
        assert!(String::from_utf8_lossy(&control.stdout).contains("shut down"), "not a clean stop");
    });
}

#[test]
fn bad_command_lines_are_one_clear_line() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_postgres-keeper")).args(args).output().unwrap();
    let bad = run(&["--nonsense"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).starts_with("postgres-keeper: unknown argument '--nonsense'"));
    if is_root() {
        let root = run(&["--socket", "/tmp/keeper-root.sock"]);
        assert_eq!(root.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&root.stderr).contains("will not run as root"));
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&["install", dir.path().to_str().unwrap()]).status.success());
    let copy = Command::new(dir.path().join("postgres-keeper")).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&copy.stdout).starts_with("postgres-keeper "));
}
