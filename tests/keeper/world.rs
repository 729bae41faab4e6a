//! A data directory with a keeper on it.
//!
//! Postgres refuses root and the keeper's socket takes its own user only, so a test started as root runs itself again as
//! the user `postgres`. Without Postgres or that user: "skipped: why".

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use patroni::keeper::protocol::{Ask, Permission, Program, Role, State, UnfencedReason};
use patroni::postgres::keeper_client::{KeeperClient, KeeperError, KeeperEvent};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

pub const SECOND: u64 = 1_000_000_000;
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec as u64 * SECOND + t.tv_nsec as u64
}

pub fn bin_dir() -> Option<PathBuf> {
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin")).collect();
    found.sort();
    found.pop()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs the test of this name as the right user. The body runs in the process that is not root.
pub fn as_postgres(name: &str, body: impl AsyncFnOnce(World)) {
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
pub struct World {
    pub dir: tempfile::TempDir,
    pub keeper: Child,
    pub port: u16,
}

impl World {
    pub fn new(name: &str) -> World {
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

    pub fn spawn(socket: &Path, log: &Path) -> Child {
        World::spawn_logging(socket, fs::File::create(log).unwrap().into())
    }

    /// With its log, and that of Postgres, in there.
    pub fn spawn_logging(socket: &Path, log: Stdio) -> Child {
        let exe =
            std::env::var_os("KEEPER").map_or_else(|| env!("CARGO_BIN_EXE_postgres-keeper").into(), PathBuf::from);
        let keeper = Command::new(exe)
            .args(["--socket", socket.to_str().unwrap(), "--grace", "30"])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let began = now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(now() < began + 10 * SECOND, "the keeper did not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        keeper
    }

    pub fn data(&self) -> String {
        self.dir.path().join("data").to_str().unwrap().to_owned()
    }

    pub async fn session(&self) -> (KeeperClient, State, Receiver<KeeperEvent>) {
        KeeperClient::connect(&self.dir.path().join("keeper.sock"), "test").await.unwrap()
    }

    pub fn lock(&self) -> String {
        format!("{}/.s.PGSQL.{}.lock", self.dir.path().display(), self.port)
    }

    pub fn postmaster(&self) -> Program {
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

    pub fn start(&self, role: Role, renewal: u64) -> Ask {
        Ask::Start { role, program: self.postmaster(), data_dir: self.data(), renewal, socket_locks: vec![self.lock()] }
    }

    pub fn psql(&self, sql: &str) -> Command {
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

    pub async fn ready(&self) {
        let began = now();
        while !self.psql("select 1").output().unwrap().status.success() {
            assert!(now() < began + 20 * SECOND, "Postgres did not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A primary that is up, unfenced.
    pub async fn primary(&self, client: &KeeperClient) {
        client.command(permit(Permission::Unfenced { reason: UnfencedReason::Bootstrap })).await.unwrap();
        client.command(self.start(Role::Primary, 0)).await.unwrap();
        self.ready().await;
    }

    /// Processes that work in the data directory.
    pub fn left(&self) -> Vec<String> {
        let Ok(data) = fs::canonicalize(self.data()) else { return Vec::new() };
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

pub fn permit(permission: Permission) -> Ask {
    Ask::Permit { permission, evidence: now(), note: "a note".into() }
}

pub fn writer(stop_in_ms: u64, kill_in_ms: u64) -> Permission {
    let at = |ms: u64| now() + ms * 1_000_000;
    Permission::Writer { stop_at: at(stop_in_ms), kill_at: at(kill_in_ms) }
}

pub async fn exited(events: &mut Receiver<KeeperEvent>) -> u64 {
    loop {
        match timeout(PATIENCE, events.recv()).await.expect("no exited event").unwrap() {
            KeeperEvent::Exited { at, .. } => return at,
            KeeperEvent::Fenced(_) | KeeperEvent::Terminating => {}
            KeeperEvent::Lost(why) => panic!("{why}"),
        }
    }
}

/// SIGSTOP takes effect a moment after `kill` returned.
pub async fn stopped(pid: &str) {
    let began = now();
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    while !state().rsplit(')').next().unwrap().trim_start().starts_with('T') {
        assert!(now() < began + 10 * SECOND, "{pid} does not stop");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub fn refusal(result: Result<(), KeeperError>) -> String {
    match result {
        Err(
            KeeperError::Refused(why)
            | KeeperError::Running(why)
            | KeeperError::Busy(why)
            | KeeperError::NotPermitted(why),
        ) => why,
        other => panic!("not refused: {other:?}"),
    }
}
