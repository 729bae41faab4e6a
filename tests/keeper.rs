//! The keeper against a real Postgres (design §7): fences, deaths, locks, sessions.
//!
//! Postgres refuses root and the keeper's socket takes its own user only, so a test started as root runs itself again as
//! the user `postgres`. Without Postgres or that user: "skipped: why".

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use patroni::keeper::protocol::{Answer, Ask, Permission, Program, Role, State, StopMode, UnfencedReason};
use patroni::postgres::keeper_client::{KeeperClient, KeeperError, KeeperEvent};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const SECOND: u64 = 1_000_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec as u64 * SECOND + t.tv_nsec as u64
}

fn bin_dir() -> Option<PathBuf> {
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin")).collect();
    found.sort();
    found.pop()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs the test of this name as the right user. The body runs in the process that is not root.
fn as_postgres(name: &str, body: impl AsyncFnOnce(World)) {
    if bin_dir().is_none() {
        println!("skipped: no Postgres under /usr/lib/postgresql");
        return;
    }
    if !is_root() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { body(World::new(name)).await });
        return;
    }
    if !Command::new("id").arg("postgres").stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
        println!("skipped: there is no user postgres");
        return;
    }
    let dir = tempfile::Builder::new().prefix("keeper-exe-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (test, keeper) = (dir.path().join("test"), dir.path().join("postgres-keeper"));
    fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_postgres-keeper"), &keeper).unwrap();
    let status = Command::new("setpriv")
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(&test)
        .args(["--exact", name, "--nocapture"])
        .env("KEEPER", &keeper)
        .env("TMPDIR", "/tmp")
        .env("HOME", "/tmp")
        .current_dir("/tmp")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed as user postgres");
}

/// A data directory, a keeper, and everything gone at the end.
struct World {
    dir: tempfile::TempDir,
    keeper: Child,
    port: u16,
}

impl World {
    fn new(name: &str) -> World {
        let dir = tempfile::Builder::new().prefix("keeper-").tempdir_in("/tmp").unwrap();
        let data = dir.path().join("data");
        let initdb = Command::new(bin_dir().unwrap().join("initdb"))
            .args(["-D", data.to_str().unwrap(), "-A", "trust", "--no-sync", "-U", "postgres"])
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{initdb:?}");
        let port = 20_000 + name.bytes().fold(0u16, |h, b| h.wrapping_mul(31).wrapping_add(u16::from(b))) % 9_000;
        let socket = dir.path().join("keeper.sock");
        let keeper = World::spawn(&socket, &dir.path().join("keeper.log"));
        World { dir, keeper, port }
    }

    fn spawn(socket: &Path, log: &Path) -> Child {
        let exe =
            std::env::var_os("KEEPER").map_or_else(|| env!("CARGO_BIN_EXE_postgres-keeper").into(), PathBuf::from);
        let keeper = Command::new(exe)
            .args(["--socket", socket.to_str().unwrap(), "--grace", "30"])
            .stdin(Stdio::null())
            .stderr(fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let began = now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(now() < began + 10 * SECOND, "the keeper did not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        keeper
    }

    fn data(&self) -> String {
        self.dir.path().join("data").to_str().unwrap().to_owned()
    }

    async fn session(&self) -> (KeeperClient, State, Receiver<KeeperEvent>) {
        KeeperClient::connect(&self.dir.path().join("keeper.sock"), "test").await.unwrap()
    }

    fn lock(&self) -> String {
        format!("{}/.s.PGSQL.{}.lock", self.dir.path().display(), self.port)
    }

    fn postmaster(&self) -> Program {
        let socket_dir = self.dir.path().to_str().unwrap();
        let (exe, data, port) = (bin_dir().unwrap().join("postgres"), self.data(), self.port.to_string());
        let argv = [
            exe.to_str().unwrap(),
            "-D",
            &data,
            "-p",
            &port,
            "-k",
            socket_dir,
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ];
        Program { argv: argv.map(str::to_owned).to_vec(), ..Program::default() }
    }

    fn start(&self, role: Role, renewal: u64) -> Ask {
        Ask::Start { role, program: self.postmaster(), data_dir: self.data(), renewal, socket_locks: vec![self.lock()] }
    }

    fn psql(&self, sql: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.args([
            "-h",
            self.dir.path().to_str().unwrap(),
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
            "-d",
            "postgres",
        ])
        .args(["-v", "ON_ERROR_STOP=1", "-qAtc", sql])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
        psql
    }

    async fn ready(&self) {
        let began = now();
        while !self.psql("select 1").output().unwrap().status.success() {
            assert!(now() < began + 20 * SECOND, "Postgres did not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A primary that is up, unfenced.
    async fn primary(&self, client: &KeeperClient) {
        client.command(permit(Permission::Unfenced { reason: UnfencedReason::Bootstrap })).await.unwrap();
        client.command(self.start(Role::Primary, 0)).await.unwrap();
        self.ready().await;
    }

    /// Processes that work in the data directory.
    fn left(&self) -> Vec<String> {
        let data = fs::canonicalize(self.data()).unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            if fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data) {
                found.push(fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The keeper's death takes the postmaster with it (PDEATHSIG).
        let killed = self.keeper.kill().and_then(|()| self.keeper.wait());
        let began = now();
        while !self.left().is_empty() && now() < began + 10 * SECOND {
            std::thread::sleep(Duration::from_millis(10));
        }
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.dir.path().join("keeper.log")).unwrap_or_default());
        } else {
            killed.unwrap();
        }
    }
}

fn permit(permission: Permission) -> Ask {
    Ask::Permit { permission, evidence: now(), note: "a note".into() }
}

fn writer(stop_in_ms: u64, kill_in_ms: u64) -> Permission {
    let at = |ms: u64| now() + ms * 1_000_000;
    Permission::Writer { stop_at: at(stop_in_ms), kill_at: at(kill_in_ms) }
}

async fn exited(events: &mut Receiver<KeeperEvent>) -> u64 {
    loop {
        match timeout(PATIENCE, events.recv()).await.expect("no exited event").unwrap() {
            KeeperEvent::Exited { at, .. } => return at,
            KeeperEvent::Fenced(_) | KeeperEvent::Terminating => {}
            KeeperEvent::Lost(why) => panic!("{why}"),
        }
    }
}

fn refusal(result: Result<(), KeeperError>) -> String {
    match result {
        Err(KeeperError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_primary_needs_permission_and_is_stopped_when_it_lapses() {
    as_postgres("a_primary_needs_permission_and_is_stopped_when_it_lapses", async |w| {
        let (client, _, mut events) = w.session().await;
        assert!(refusal(client.command(w.start(Role::Primary, 0)).await).contains("no permission"));
        let permission = writer(3_000, 5_000);
        let Permission::Writer { stop_at, kill_at } = permission else { unreachable!() };
        client.command(permit(permission)).await.unwrap();
        client.command(w.start(Role::Primary, now())).await.unwrap();
        w.ready().await;
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
        let in_flight = w.psql("insert into t select 1 from pg_sleep(3)").spawn().unwrap();
        while w
            .psql("select 1 from pg_stat_activity where query like 'insert%' and state='active'")
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
        let promoted =
            Command::new(bin_dir().unwrap().join("pg_ctl")).args(["promote", "-D", &w.data()]).output().unwrap();
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
        while !socket.exists() && now() < began + 10 * SECOND {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let met = KeeperClient::connect(&socket, "sidecar").await;
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
        let why = refusal(second.command(w.start(Role::Primary, 0)).await);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(why.contains("in use by another keeper"), "{why}");
    });
}

/// Design §7 "Dead": the postmaster and every descendant, also for the keeper that comes after a killed one.
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
        kill("-STOP", &pid);
        kill("-9", &postmaster);
        w.keeper.kill().unwrap();
        w.keeper.wait().unwrap();
        w.keeper = World::spawn(&w.dir.path().join("keeper.sock"), &w.dir.path().join("keeper.log"));
        let (client, _, _events) = w.session().await;
        client.command(permit(Permission::Unfenced { reason: UnfencedReason::Bootstrap })).await.unwrap();
        let why = refusal(client.command(w.start(Role::Primary, 0)).await);
        assert!(why.contains("in use by another keeper"), "{why}");
        kill("-9", &pid);
        let began = now();
        while !w.left().is_empty() {
            assert!(now() < began + 10 * SECOND, "still there: {:?}", w.left());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        client.command(w.start(Role::Primary, 0)).await.unwrap();
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
fn programs_stream_their_output_and_are_cancelled_with_all_their_children() {
    as_postgres("programs_stream_their_output_and_are_cancelled_with_all_their_children", async |w| {
        let (client, _, _events) = w.session().await;
        let shell = |script: &str, slot: Option<&str>| Program {
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            slot: slot.map(str::to_owned),
            stdin: Some("hello\n".into()),
            ..Program::default()
        };
        let mut lines = Vec::new();
        let end =
            client.run(shell("cat; echo two >&2; exit 3", None), PATIENCE, |l| lines.push(l.to_owned())).await.unwrap();
        lines.sort();
        assert_eq!((end.code, lines), (Some(3), vec!["hello".to_owned(), "two".to_owned()]));
        let mark = w.dir.path().join("alive");
        let script = format!("(while :; do touch {0}; sleep 0.02; done) & wait", mark.display());
        let running = {
            let (client, program) = (client.clone(), shell(&script, Some("callback")));
            tokio::spawn(async move { client.run(program, PATIENCE, |_| {}).await })
        };
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let next = client.run(shell("true", Some("callback")), PATIENCE, |_| {}).await.unwrap();
        assert_eq!(next.code, Some(0));
        let first = running.await.unwrap().unwrap();
        assert_eq!(first.code, None, "the running program of the slot is killed");
        fs::remove_file(&mark).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!mark.exists(), "a child of a killed program lives on");
        client.command(Ask::Stop { mode: StopMode::Fast }).await.unwrap_err();
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
