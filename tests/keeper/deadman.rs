//! The deadman on a real Postgres: whoever is stopped beside it, it acknowledges nothing after its permission has ended.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use patroni::keeper::protocol::{Answer, Ask, Fence, Permission, Role, StopMode};
use patroni::postgres::keeper_client::KeeperClient;
use tokio_postgres::NoTls;

use super::world::*;

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().unwrap().success(), "kill {name} {pid}");
}

/// The child of the keeper that holds the timer.
fn warden(w: &World) -> String {
    let keeper = w.keeper.id();
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    let is_warden =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("warden"));
    children.split_whitespace().find(is_warden).expect("the keeper has a warden").to_owned()
}

/// Sessions that insert as fast as they can; when the last of them was told that a row is there.
struct Writers {
    last: Arc<AtomicU64>,
    rows: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    async fn start(w: &World) -> Writers {
        assert!(w.psql("create table if not exists t(x int)").status().unwrap().success());
        let mut writers =
            Writers { last: Arc::default(), rows: Arc::default(), over: Arc::default(), tasks: Vec::new() };
        for _ in 0..4 {
            let mut config = tokio_postgres::Config::new();
            config.host(w.dir.path().to_str().unwrap()).port(w.port).user("postgres").dbname("postgres");
            let (client, driver) = config.connect(NoTls).await.unwrap();
            writers.tasks.push(tokio::spawn(async move { drop(driver.await) }));
            let (last, rows, over) = (writers.last.clone(), writers.rows.clone(), writers.over.clone());
            writers.tasks.push(tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) && client.execute("insert into t values (1)", &[]).await.is_ok() {
                    last.fetch_max(now(), Ordering::Relaxed);
                    rows.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        writers
    }

    fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Every row that was acknowledged.
    fn are_all_there(&self, w: &World) {
        let out = w.psql("select count(*) from t").output().unwrap();
        let found: u64 = String::from_utf8(out.stdout).unwrap().trim().parse().unwrap();
        let told = self.rows.load(Ordering::Relaxed);
        assert!(found >= told, "{told} rows were acknowledged, {found} are there");
    }

    async fn some(&self) {
        let before = self.rows.load(Ordering::Relaxed);
        while self.rows.load(Ordering::Relaxed) < before + 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A primary with this permission, and sessions that write into it.
async fn written(w: &World, client: &KeeperClient, permission: Permission) -> Writers {
    client.command(permit(permission)).await.unwrap();
    client.command(w.start(Role::Primary, now())).await.unwrap();
    w.ready().await;
    let Answer::State(state) = client.ask(Ask::Status).await.unwrap() else { panic!() };
    assert_eq!(state.postgres.unwrap().fence, Fence::Full);
    let writers = Writers::start(w).await;
    writers.some().await;
    writers
}

async fn all_gone(w: &World) {
    let began = now();
    while !w.left().is_empty() {
        assert!(now() < began + 30 * SECOND, "still there: {:?}", w.left());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// With these stopped, nothing is acknowledged once the permission has ended.
async fn ends_by_itself(w: World, keeper: bool, warden_too: bool) {
    let (client, _, mut events) = w.session().await;
    let permission = writer(6_000, 7_000);
    let Permission::Writer { kill_at, .. } = permission else { unreachable!() };
    let writers = written(&w, &client, permission).await;
    let pids = [(keeper, w.keeper.id().to_string()), (warden_too, warden(&w))];
    for (_, pid) in pids.iter().filter(|(stop, _)| *stop) {
        signal("-STOP", pid);
        stopped(pid).await;
    }
    writers.some().await;
    all_gone(&w).await;
    println!("last acknowledgement {} ms before kill_at", (kill_at as i64 - writers.last() as i64) / 1_000_000);
    assert!(writers.last() < kill_at, "acknowledged {} ms too late", (writers.last() - kill_at) / 1_000_000);
    if keeper {
        signal("-CONT", &w.keeper.id().to_string());
    }
    // The keeper reaps what is left, and says so.
    exited(&mut events).await;
    client.command(permit(writer(60_000, 62_000))).await.unwrap();
    client.command(w.start(Role::Primary, now())).await.unwrap();
    w.ready().await;
    writers.are_all_there(&w);
}

#[test]
fn a_primary_ends_with_its_permission_when_keeper_and_warden_are_stopped() {
    as_postgres("deadman::a_primary_ends_with_its_permission_when_keeper_and_warden_are_stopped", async |w| {
        ends_by_itself(w, true, true).await;
    });
}

#[test]
fn a_primary_ends_with_its_permission_when_the_keeper_is_stopped() {
    as_postgres("deadman::a_primary_ends_with_its_permission_when_the_keeper_is_stopped", async |w| {
        ends_by_itself(w, true, false).await;
    });
}

#[test]
fn a_primary_ends_with_its_permission_when_the_warden_is_stopped() {
    as_postgres("deadman::a_primary_ends_with_its_permission_when_the_warden_is_stopped", async |w| {
        ends_by_itself(w, false, true).await;
    });
}

/// PostgreSQL logs that it was told to stop before it tells its children: a pipe that nobody reads must not hold it there.
#[test]
fn a_full_log_does_not_hold_the_deadman() {
    as_postgres("deadman::a_full_log_does_not_hold_the_deadman", async |mut w| {
        w.keeper.kill().unwrap();
        w.keeper.wait().unwrap();
        let (reader, writer_end) = std::io::pipe().unwrap();
        // Another description of the same pipe: O_NONBLOCK would otherwise be the keeper's and Postgres' too.
        let own = format!("/proc/self/fd/{}", writer_end.as_raw_fd());
        let mut fill = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(own).unwrap();
        w.keeper = World::spawn_logging(&w.dir.path().join("keeper.sock"), Stdio::from(writer_end));
        let (client, _, _events) = w.session().await;
        let permission = writer(6_000, 7_000);
        let Permission::Writer { kill_at, .. } = permission else { unreachable!() };
        let writers = written(&w, &client, permission).await;
        while fill.write(&[b'x'; 4096]).is_ok() {}
        while fill.write(b"x").is_ok() {}
        for pid in [w.keeper.id().to_string(), warden(&w)] {
            signal("-STOP", &pid);
            stopped(&pid).await;
        }
        writers.some().await;
        all_gone(&w).await;
        assert!(writers.last() < kill_at, "acknowledged {} ms too late", (writers.last() - kill_at) / 1_000_000);
        drop(reader);
    });
}

#[test]
fn a_postmaster_whose_warden_is_killed_is_stopped_and_may_be_started_again() {
    as_postgres("deadman::a_postmaster_whose_warden_is_killed_is_stopped_and_may_be_started_again", async |w| {
        let (client, _, mut events) = w.session().await;
        let writers = written(&w, &client, writer(60_000, 62_000)).await;
        let killed = now();
        signal("-9", &warden(&w));
        let at = exited(&mut events).await;
        assert!(at < killed + 2 * SECOND, "{} ms", (at - killed) / 1_000_000);
        assert_eq!(w.left(), Vec::<String>::new());
        client.command(w.start(Role::Primary, now())).await.unwrap();
        w.ready().await;
        writers.are_all_there(&w);
    });
}

#[test]
fn a_warden_that_is_stuck_does_not_hide_the_death_of_its_postmaster() {
    as_postgres("deadman::a_warden_that_is_stuck_does_not_hide_the_death_of_its_postmaster", async |w| {
        let (client, _, mut events) = w.session().await;
        w.primary(&client).await;
        let warden = warden(&w);
        signal("-STOP", &warden);
        stopped(&warden).await;
        let asked = now();
        client.command(Ask::Stop { mode: StopMode::Immediate }).await.unwrap();
        let at = exited(&mut events).await;
        assert!(at < asked + 3 * SECOND, "{} ms", (at - asked) / 1_000_000);
        client.command(w.start(Role::Primary, 0)).await.unwrap();
        w.ready().await;
    });
}

/// A whole group of processes may be told to end, by a terminal or a service manager: the orderly end is the keeper's affair.
#[test]
fn an_order_to_end_does_not_end_a_warden() {
    as_postgres("deadman::an_order_to_end_does_not_end_a_warden", async |w| {
        let (client, _, _events) = w.session().await;
        w.primary(&client).await;
        let started = w.psql("select pg_postmaster_start_time()").output().unwrap().stdout;
        for name in ["-TERM", "-INT", "-HUP"] {
            signal(name, &warden(&w));
        }
        client.command(Ask::Status).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(w.psql("select pg_postmaster_start_time()").output().unwrap().stdout, started);
    });
}
