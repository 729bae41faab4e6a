//! What gets stuck around a keeper must not hold its fence: the volume, the reader of the log, a client.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use patroni::keeper::protocol::{Ask, Permission, StopMode};
use patroni::postgres::keeper_client::{KeeperClient, KeeperEvent};

use super::world::*;

/// A FIFO in place of pg_control holds whoever opens it for reading, as a hung volume does. Postgres keeps its own copy.
#[test]
fn a_data_directory_that_does_not_answer_does_not_hold_the_fence() {
    as_postgres("stuck::a_data_directory_that_does_not_answer_does_not_hold_the_fence", async |w| {
        let (client, _, mut events) = w.session().await;
        w.primary(&client).await;
        let control = w.dir.path().join("data/global/pg_control");
        fs::remove_file(&control).unwrap();
        assert!(Command::new("mkfifo").arg(&control).status().unwrap().success());
        // The keeper looks each second.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let permission = writer(1_000, 3_000);
        let Permission::Writer { stop_at, kill_at } = permission else { unreachable!() };
        client.command(permit(permission)).await.unwrap();
        let at = exited(&mut events).await;
        assert!(at >= stop_at && at <= kill_at + SECOND, "{at}: {permission:?}");
        assert_eq!(w.left(), Vec::<String>::new());
        // Let go of the thread that hangs: a process with one in state D could not end, and neither could this test.
        let _writer = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&control);
    });
}

#[test]
fn a_log_that_nobody_reads_holds_neither_the_fence_nor_an_answer() {
    as_postgres("stuck::a_log_that_nobody_reads_holds_neither_the_fence_nor_an_answer", async |mut w| {
        w.keeper.kill().unwrap();
        w.keeper.wait().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        // Another description of the same pipe: O_NONBLOCK would otherwise be the keeper's and Postgres' too.
        let own = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let mut fill = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(own).unwrap();
        w.keeper = World::spawn_logging(&w.dir.path().join("keeper.sock"), Stdio::from(writer));
        let (client, _, mut events) = w.session().await;
        w.primary(&client).await;
        while fill.write(&[b'x'; 4096]).is_ok() {}
        while fill.write(b"x").is_ok() {}
        client.command(permit(Permission::None)).await.unwrap();
        assert!(matches!(events.recv().await, Some(KeeperEvent::Fenced(_))));
        let taken_back = now();
        let at = exited(&mut events).await;
        assert!(at <= taken_back + 4 * SECOND, "{} ms", at.saturating_sub(taken_back) / 1_000_000);
        w.session().await;
        drop(reader);
    });
}

#[test]
fn a_log_that_cannot_be_written_ends_nobody() {
    as_postgres("stuck::a_log_that_cannot_be_written_ends_nobody", async |mut w| {
        w.keeper.kill().unwrap();
        w.keeper.wait().unwrap();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        w.keeper = World::spawn_logging(&w.dir.path().join("keeper.sock"), Stdio::from(full));
        for _ in 0..3 {
            let (client, _, _events) = w.session().await;
            client.command(Ask::Status).await.unwrap();
        }
        assert!(w.keeper.try_wait().unwrap().is_none());
    });
}

#[test]
fn what_an_older_session_still_asks_when_a_newer_one_is_there_is_not_done() {
    as_postgres("stuck::what_an_older_session_still_asks_when_a_newer_one_is_there_is_not_done", async |w| {
        let (old, _, _old_events) = w.session().await;
        w.primary(&old).await;
        let started = w.psql("select pg_postmaster_start_time()").output().unwrap().stdout;
        let keeper = w.keeper.id().to_string();
        let kill = |signal: &str| assert!(Command::new("kill").args([signal, &keeper]).status().unwrap().success());
        kill("-STOP");
        stopped(&keeper).await;
        // Both lie in their sockets, the older one's first.
        let stop = tokio::spawn(async move { old.command(Ask::Stop { mode: StopMode::Immediate }).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let socket = w.dir.path().join("keeper.sock");
        let hello = tokio::spawn(async move { KeeperClient::connect(&socket, "newer").await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill("-CONT");
        let (newer, _, _events) = hello.await.unwrap().unwrap();
        assert!(stop.await.unwrap().is_err());
        newer.command(Ask::Status).await.unwrap();
        let again = w.psql("select pg_postmaster_start_time()").output().unwrap();
        assert_eq!(again.stdout, started, "{again:?}");
    });
}
