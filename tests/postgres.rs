//! The postgres module against a real server: what it writes Postgres starts with, what it reads is what Postgres says.
//!
//! The server refuses root, so everything that touches its files runs as user `postgres`: the test process itself changes
//! to that user once. Without the programs in `/usr/lib/postgresql/15/bin` the tests fail: they are part of the gate.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Output, Stdio};
use std::time::Duration;

use patroni::model::{
    BootInstant, ClusterState, DataDir, Lsn, OurSlots, Probe, SlotOrders, StartRole, Timeline, Upstream, WantedSlot,
};
use patroni::postgres::binaries::{self, Binaries};
use patroni::postgres::conninfo::Address;
use patroni::postgres::datadir::Work;
use patroni::postgres::rewind::Divergence;
use patroni::postgres::sql::{Readiness, Sql};
use patroni::postgres::{
    Command, Credentials, CustomMethod, ReplicaMethod, Setup, bootstrap, control, datadir, history, remote, replica,
    rewind, start,
};

#[path = "postgres/parameters.rs"]
mod parameters;
#[path = "postgres/promotion.rs"]
mod promotion;
#[path = "postgres/timelines.rs"]
mod timelines;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A member: its setup and its postmaster, stopped when dropped.
struct Node {
    setup: Setup,
    binaries: Binaries,
    server: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            signal(&server, rustix::process::Signal::QUIT);
            server.wait().unwrap();
        }
    }
}

fn signal(server: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(server);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// These slots, as a pod named `pg-…` would have them.
fn slots_wanted(wanted: &[WantedSlot]) -> SlotOrders {
    SlotOrders { wanted: wanted.to_vec(), ours: OurSlots::of_family(&"pg-0".into()), ..SlotOrders::default() }
}

/// A port nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn account(user: &str, password: &str) -> Credentials {
    Credentials { username: Some(user.to_owned()), password: Some(password.to_owned()), ..Credentials::default() }
}

/// A program as user postgres, with the environment of the command only.
fn process(command: &Command) -> Process {
    let mut argv =
        vec!["setpriv".to_owned(), "--reuid=postgres".into(), "--regid=postgres".into(), "--clear-groups".into()];
    if !rustix::process::geteuid().is_root() {
        argv.clear();
    }
    argv.extend(command.argv.iter().cloned());
    let mut process = Process::new(&argv[0]);
    process.args(&argv[1..]).envs(&command.env).stdin(Stdio::null()).current_dir("/");
    process
}

fn run(command: &Command) -> Output {
    let output = process(command).output().unwrap();
    for file in &command.cleanup {
        std::fs::remove_file(file).unwrap();
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {stderr}", command.argv);
    output
}

/// Gives everything below to postgres: the files this process wrote as root.
fn hand_over(dir: &Path) {
    let status = Process::new("chown").args(["-R", "postgres:postgres"]).arg(dir).status().unwrap();
    assert!(status.success());
}

async fn node(base: &Path, name: &str) -> Node {
    let port = free_port();
    let mut setup = Setup::new(name, "demo", base.join(name).join("data"), port);
    std::fs::create_dir_all(base.join(name)).unwrap();
    setup.pod_uid = format!("uid-{name}");
    setup.bin_dir = Some(PathBuf::from(BIN));
    setup.superuser = account("postgres", "it's \\ secret");
    setup.replication = account("replicator", "rep:pass");
    setup.rewind = Some(account("rewind_user", "rewind"));
    setup.initdb = vec![
        ("encoding".into(), Some("UTF8".into())),
        ("auth".into(), Some("scram-sha-256".into())),
        ("data-checksums".into(), None),
        ("locale".into(), Some("C".into())),
        ("no-sync".into(), None),
    ];
    setup.bootstrap_pg_hba =
        vec!["host replication replicator all scram-sha-256".into(), "host all all all scram-sha-256".into()];
    setup.parameters.insert("unix_socket_directories".into(), base.join(name).display().to_string());
    setup.parameters.insert("fsync".into(), "off".into());
    let binaries = binaries::find(&setup).await.unwrap();
    assert_eq!(binaries.major, 15);
    Node { setup, binaries, server: None }
}

fn files_of(role: StartRole, upstream: &Upstream) -> start::Files {
    start::Files { role, upstream: upstream.clone(), ..start::Files::primary() }
}

impl Node {
    fn url(&self) -> String {
        self.setup.conn_url()
    }
    fn home(&self) -> &Path {
        self.setup.data_dir.parent().unwrap()
    }
    fn sql(&self) -> Sql {
        Sql::local(&self.setup, "Patroni heartbeat")
    }
    fn upstream(&self) -> Upstream {
        Upstream::Member { name: self.setup.name.clone(), conn_url: self.url() }
    }
    fn initdb(&self) {
        let command = bootstrap::initdb_command(&self.setup, &self.binaries).unwrap();
        hand_over(self.home());
        run(&command);
        bootstrap::after_method(&self.setup).unwrap();
    }
    async fn start(&mut self, role: StartRole, upstream: &Upstream) {
        let spec = start::prepare(&self.setup, &self.binaries, &files_of(role, upstream)).unwrap();
        hand_over(self.home());
        let log = std::fs::File::create(self.home().join("log")).unwrap();
        let mut process = process(&spec.command);
        self.server = Some(process.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        self.wait_ready().await;
    }
    async fn wait_ready(&mut self) {
        let (name, home) = (self.setup.name.clone(), self.home().to_owned());
        let sql = self.sql();
        for _ in 0..200 {
            if sql.is_ready(Duration::from_secs(2)).await == Readiness::Ready {
                return;
            }
            if let Some(server) = &mut self.server {
                let ended = server.try_wait().unwrap();
                assert_eq!(ended, None, "{name}: {}", std::fs::read_to_string(home.join("log")).unwrap());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} does not accept connections: {}", std::fs::read_to_string(home.join("log")).unwrap());
    }
    fn stop(&mut self, how: rustix::process::Signal) {
        let mut server = self.server.take().unwrap();
        signal(&server, how);
        server.wait().unwrap();
    }
    fn promote(&self) {
        let argv =
            [self.binaries.path("pg_ctl"), "promote".into(), "-D".into(), self.setup.data_dir.display().to_string()];
        run(&Command::new(argv.to_vec()));
    }
    async fn exec(&self, statement: &str) {
        let target = patroni::postgres::connect::Target::local(&self.setup, "test");
        let connection = patroni::postgres::connect::open(&target, Duration::from_secs(3)).await.unwrap();
        connection.client.batch_execute(statement).await.unwrap();
    }
    async fn primary(base: &Path, name: &str) -> Node {
        let mut node = node(base, name).await;
        node.initdb();
        node.start(StartRole::Primary, &Upstream::Nobody).await;
        bootstrap::set_superuser(&node.setup).await.unwrap();
        bootstrap::create_accounts(&node.setup).await.unwrap();
        bootstrap::finished(&node.setup).unwrap();
        hand_over(node.home());
        node
    }
    async fn copy_of(base: &Path, name: &str, source: &Node) -> Node {
        let mut node = node(base, name).await;
        let command =
            replica::prepare(&node.setup, &node.binaries, &ReplicaMethod::Basebackup, Some(&source.url())).unwrap();
        hand_over(node.home());
        let output = run(&command);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(shown.lines().any(|l| replica::progress(l).is_some()), "{shown}");
        assert_eq!(datadir::inspect(&node.setup), DataDir::HalfMade, "until it is declared finished");
        replica::finished(&node.setup).unwrap();
        node.start(StartRole::Standby, &source.upstream()).await;
        node
    }
}

fn at() -> BootInstant {
    BootInstant::from_nanos(7)
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not reached within 10 s: {what}");
}

/// A scratch directory user postgres can walk into.
fn scratch() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("postgres-test-").tempdir_in("/tmp").unwrap();
    hand_over(dir.path());
    dir
}

/// pg_controldata's value for a label.
fn controldata(node: &Node, label: &str) -> String {
    let argv = [node.binaries.path("pg_controldata"), node.setup.data_dir.display().to_string()];
    let output = run(&Command::new(argv.to_vec()).with_env("LC_ALL", "C"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|l| l.starts_with(label)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[tokio::test]
async fn a_new_cluster_starts_answers_and_leaves_a_control_file_that_reads_as_pg_controldata_says() {
    let base = scratch();
    let mut a = node(base.path(), "pg-0").await;
    assert_eq!(datadir::inspect(&a.setup), DataDir::Empty);
    assert_eq!(a.sql().is_ready(Duration::from_secs(1)).await, Readiness::Refused);
    a.initdb();
    assert_eq!(datadir::inspect(&a.setup), DataDir::HalfMade);
    a.start(StartRole::Primary, &Upstream::Nobody).await;
    bootstrap::set_superuser(&a.setup).await.unwrap();
    bootstrap::create_accounts(&a.setup).await.unwrap();
    bootstrap::create_accounts(&a.setup).await.unwrap();
    bootstrap::finished(&a.setup).unwrap();

    let sql = a.sql();
    let probe = sql.probe(at()).await.unwrap();
    assert!(!probe.in_recovery && probe.timeline == Timeline(1) && probe.position > Lsn::ZERO, "{probe:?}");
    let status = Sql::local(&a.setup, "Patroni restapi").status().await.unwrap();
    assert_eq!((status.timeline, status.server_version / 10_000), (Some(Timeline(1)), 15));
    assert!(status.postmaster_start_time.ends_with("+00:00") || status.postmaster_start_time.contains(':'));
    assert_eq!(sql.server_version().await.unwrap(), a.binaries.version);
    sql.checkpoint(Duration::from_secs(30)).await.unwrap();
    let log = std::fs::read_to_string(a.home().join("log")).unwrap();
    assert!(!log.contains("rep:pass") && !log.contains("secret"), "passwords stay out of the log: {log}");

    a.stop(rustix::process::Signal::INT);
    let DataDir::Present { control: Some(control), standby_signal: false } = datadir::inspect(&a.setup) else {
        panic!("{:?}", datadir::inspect(&a.setup))
    };
    assert_eq!(control.state, ClusterState::ShutDown);
    assert_eq!(control.system_id, controldata(&a, "Database system identifier"));
    assert_eq!(control.system_id, probe.system_id);
    assert_eq!(control.checkpoint.to_string(), controldata(&a, "Latest checkpoint location"));
    assert_eq!(control.timeline.to_string(), controldata(&a, "Latest checkpoint's TimeLineID"));
    assert_eq!(control.shutdown_position, Some(control.checkpoint));
    assert!(control.rewindable);
    let file = control::read_file(&a.setup.data_dir).unwrap();
    for (label, name) in [
        ("max_connections", 0),
        ("max_worker_processes", 1),
        ("max_wal_senders", 2),
        ("max_prepared_xacts", 3),
        ("max_locks_per_xact", 4),
    ] {
        assert_eq!(file.limits[name].1.to_string(), controldata(&a, &format!("{label} setting")), "{label}");
    }
    let end = control::end_of_checkpoint_record(&a.setup.data_dir).unwrap();
    let waldump = [
        a.binaries.path("pg_waldump"),
        "-s".into(),
        control.checkpoint.to_string(),
        "-p".into(),
        a.setup.data_dir.join("pg_wal").display().to_string(),
    ];
    let output = process(&Command::new(waldump.to_vec())).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let padded = format!("{:X}/{:08X}", end.0 >> 32, end.0 & 0xFFFF_FFFF);
    assert!(
        text.contains(&end.to_string()) || text.contains(&padded),
        "pg_waldump finds no record after {end}: {text}"
    );
}

#[tokio::test]
async fn a_copy_streams_gets_its_slot_and_sees_the_shutdown_of_its_leader() {
    let base = scratch();
    let mut a = Node::primary(base.path(), "pg-0").await;
    let existing = a.sql().slots().await.unwrap();
    assert_eq!(existing, []);
    let want = [WantedSlot { name: "pg_1".into(), expected_active: true, advance_to: None }];
    let synced = a.sql().sync_slots(&slots_wanted(&want)).await.unwrap();
    assert!(synced.failed.is_empty() && synced.positions.contains_key("pg_1"), "{synced:?}");

    let mut b = Node::copy_of(base.path(), "pg-1", &a).await;
    let sql = b.sql();
    until("streaming", async || sql.probe(at()).await.is_ok_and(|p| p.streaming)).await;
    let probe = sql.probe(at()).await.unwrap();
    assert!(probe.in_recovery && probe.timeline == Timeline(1), "{probe:?}");
    let status = sql.status().await.unwrap();
    assert_eq!(status.replication_state(), Some("streaming"));
    assert!(status.received.is_some() && status.location.is_none() && status.replayed.is_some(), "{status:?}");
    let senders = a.sql().walsenders().await.unwrap();
    assert_eq!((senders[0].application_name.as_str(), senders[0].state.as_str()), ("pg-1", "streaming"));
    assert_eq!(a.sql().status().await.unwrap().replication[0].client_addr.as_deref(), Some("127.0.0.1"));
    let dropped = a.sql().sync_slots(&slots_wanted(&[])).await.unwrap();
    assert!(dropped.positions.contains_key("pg_1"), "an active slot stays: {dropped:?}");
    let others = ["receivewal", "pg_7"].map(|n| WantedSlot { name: n.into(), expected_active: true, advance_to: None });
    a.sql().sync_slots(&slots_wanted(&others)).await.unwrap();
    let now = a.sql().sync_slots(&slots_wanted(&[])).await.unwrap();
    assert_eq!(now.done, ["dropped replication slot pg_7: no member needs it"], "{now:?}");
    assert!(now.strangers["receivewal"].contains("it stays and keeps WAL from 0/"), "{now:?}");
    assert!(now.positions.contains_key("receivewal"));

    a.stop(rustix::process::Signal::INT);
    let shutdown = control::read(&a.setup.data_dir).unwrap().shutdown_position.unwrap();
    until("the standby has all of it", async || sql.probe(at()).await.is_ok_and(|p| p.received >= shutdown)).await;

    b.promote();
    until("promoted", async || sql.probe(at()).await.is_ok_and(|p| !p.in_recovery)).await;
    let leader = remote::timeline_of(&b.setup, &b.url()).await.unwrap();
    assert_eq!((leader.timeline, leader.history.len(), leader.in_recovery), (Timeline(2), 1, false));
    let rows = history::local_rows(&b.setup.data_dir, Timeline(2), &[], "pg-1", 0, |_| "then".into()).unwrap();
    assert_eq!(
        (rows.len(), rows[0].lsn, rows[0].new_leader.as_deref()),
        (1, leader.history[0].switchpoint, Some("pg-1"))
    );
    let local = rewind::local_end(&a.setup.data_dir, None);
    assert_eq!(
        rewind::check(local.as_ref(), &leader),
        Divergence::Same,
        "a clean hand-over needs no rewind: {local:?}"
    );

    a.start(StartRole::Standby, &b.upstream()).await;
    let old = a.sql();
    let slot = [WantedSlot { name: "pg_0".into(), expected_active: true, advance_to: None }];
    b.sql().sync_slots(&slots_wanted(&slot)).await.unwrap();
    until("the old leader follows", async || {
        old.probe(at()).await.is_ok_and(|p| p.streaming && p.timeline == Timeline(2))
    })
    .await;
    b.stop(rustix::process::Signal::INT);
}

#[tokio::test]
async fn a_crashed_leader_with_writes_of_its_own_is_recovered_rewound_and_follows() {
    let base = scratch();
    let mut a = Node::primary(base.path(), "pg-0").await;
    let want = [WantedSlot { name: "pg_1".into(), expected_active: true, advance_to: None }];
    a.sql().sync_slots(&slots_wanted(&want)).await.unwrap();
    let mut b = Node::copy_of(base.path(), "pg-1", &a).await;
    let sql = b.sql();
    until("streaming", async || sql.probe(at()).await.is_ok_and(|p| p.streaming)).await;
    b.promote();
    until("promoted", async || sql.probe(at()).await.is_ok_and(|p| !p.in_recovery)).await;
    a.exec("CREATE TABLE public.only_here AS SELECT 1 AS x").await;
    a.stop(rustix::process::Signal::QUIT);

    sql.checkpoint(Duration::from_secs(30)).await.unwrap();
    remote::checkpoint(&a.setup, &b.url(), Duration::from_secs(30)).await.unwrap();
    let leader = remote::timeline_of(&a.setup, &b.url()).await.unwrap();
    assert_eq!(leader.checkpoint_timeline, Timeline(2));
    assert_eq!(rewind::check(rewind::local_end(&a.setup.data_dir, None).as_ref(), &leader), Divergence::Undecided);
    let recover = rewind::crash_recovery_command(&a.setup, &a.binaries).unwrap();
    hand_over(a.home());
    run(&recover);
    assert_eq!(control::read(&a.setup.data_dir).unwrap().state, ClusterState::ShutDown);
    let local = rewind::local_end(&a.setup.data_dir, None);
    assert_eq!(rewind::check(local.as_ref(), &leader), Divergence::Diverged, "{local:?}");

    let rehearsal = rewind::command(&a.setup, &a.binaries, &b.url(), true).unwrap();
    hand_over(a.home());
    run(&rehearsal);
    assert_eq!(rewind::local_end(&a.setup.data_dir, None), local, "the rehearsal has changed nothing");
    let command = rewind::command(&a.setup, &a.binaries, &b.url(), false).unwrap();
    assert!(command.argv.iter().all(|w| !w.contains("password")));
    hand_over(a.home());
    run(&command);
    b.sql()
        .sync_slots(&slots_wanted(&[WantedSlot { name: "pg_0".into(), expected_active: true, advance_to: None }]))
        .await
        .unwrap();
    a.start(StartRole::Standby, &b.upstream()).await;
    let old = a.sql();
    until("it follows", async || old.probe(at()).await.is_ok_and(|p| p.streaming && p.timeline == Timeline(2))).await;
    b.stop(rustix::process::Signal::INT);
}

#[tokio::test]
async fn changes_that_need_a_restart_are_named_with_old_and_wanted_value() {
    let base = scratch();
    let mut a = Node::primary(base.path(), "pg-0").await;
    a.setup.controlled.insert("max_connections".into(), "150".into());
    a.setup.parameters.insert("shared_buffers".into(), "64MB".into());
    a.setup.parameters.insert("work_mem".into(), "5MB".into());
    let rewritten = start::rewrite(&a.setup, &a.binaries, &start::Files::primary()).unwrap();
    assert!(rewritten.changed.conf);
    hand_over(a.home());
    signal(a.server.as_ref().unwrap(), rustix::process::Signal::HUP);
    let sql = a.sql();
    until("both are pending", async || {
        sql.pending_restart(Some(&rewritten.effective)).await.is_ok_and(|p| p.len() == 2)
    })
    .await;
    let pending = sql.pending_restart(Some(&rewritten.effective)).await.unwrap();
    assert_eq!(pending["max_connections"], ("100".to_owned(), "150".to_owned()));
    assert_eq!(pending["shared_buffers"].0, "128MB");
    assert!(!start::rewrite(&a.setup, &a.binaries, &start::Files::primary()).unwrap().changed.any());

    a.stop(rustix::process::Signal::INT);
    a.start(StartRole::Primary, &Upstream::Nobody).await;
    assert!(a.sql().pending_restart(Some(&rewritten.effective)).await.unwrap().is_empty());
    a.stop(rustix::process::Signal::INT);
    let spec = start::prepare(&a.setup, &a.binaries, &files_of(StartRole::Standby, &Upstream::Nobody)).unwrap();
    assert!(spec.pending_restart.is_empty());
    a.setup.controlled.remove("max_connections");
    let spec = start::prepare(&a.setup, &a.binaries, &files_of(StartRole::Standby, &Upstream::Nobody)).unwrap();
    assert_eq!(spec.pending_restart["max_connections"], ("150".to_owned(), "100".to_owned()));
    assert!(spec.command.argv.contains(&"--max_connections=150".to_owned()));
}

#[tokio::test]
async fn with_archiving_the_shutdown_position_is_the_wal_switch_before_the_checkpoint() {
    let base = scratch();
    let mut a = node(base.path(), "pg-0").await;
    a.setup.parameters.insert("archive_mode".into(), "on".into());
    a.setup.parameters.insert("archive_command".into(), "true".into());
    a.initdb();
    a.start(StartRole::Primary, &Upstream::Nobody).await;
    a.exec("CREATE TABLE public.t AS SELECT 1 AS x").await;
    a.stop(rustix::process::Signal::INT);
    let control = control::read(&a.setup.data_dir).unwrap();
    let position = control.shutdown_position.unwrap();
    assert!(position < control.checkpoint, "{position} {}", control.checkpoint);
    let dump = [
        a.binaries.path("pg_waldump"),
        "-n1".into(),
        "-s".into(),
        position.to_string(),
        "-p".into(),
        a.setup.data_dir.join("pg_wal").display().to_string(),
    ];
    let output = run(&Command::new(dump.to_vec()));
    assert!(String::from_utf8_lossy(&output.stdout).contains("SWITCH"));
}

#[tokio::test]
async fn tls_follows_sslmode_and_a_self_signed_certificate_is_its_own_root() {
    let base = scratch();
    let mut a = node(base.path(), "pg-0").await;
    let (cert, key) = (base.path().join("tls.crt"), base.path().join("tls.key"));
    let files = ["-keyout".into(), key.display().to_string(), "-out".into(), cert.display().to_string()];
    let made = Process::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=elsewhere"])
        .args(files)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    hand_over(base.path());
    for (name, value) in [
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", cert.display().to_string()),
        ("ssl_key_file", key.display().to_string()),
    ] {
        a.setup.parameters.insert(name.into(), value);
    }
    a.setup.pg_hba = Some(vec!["hostssl all all all scram-sha-256".into(), "local all all trust".into()]);
    a.initdb();
    a.start(StartRole::Primary, &Upstream::Nobody).await;
    let answers = async |mode: &str, root: bool| {
        let mut setup = a.setup.clone();
        setup.superuser.options.insert("sslmode".into(), mode.into());
        if root {
            setup.superuser.options.insert("sslrootcert".into(), cert.display().to_string());
        }
        Sql::local(&setup, "test").probe(at()).await.map(|_| ())
    };
    for (mode, root) in [("prefer", false), ("require", false), ("verify-ca", true)] {
        assert_eq!(answers(mode, root).await, Ok(()), "{mode}");
    }
    for (mode, root) in [("disable", false), ("verify-full", true), ("verify-full", false)] {
        assert!(answers(mode, root).await.is_err(), "{mode}");
    }
}

#[tokio::test]
async fn a_custom_bootstrap_recovers_behind_local_trust_and_gets_its_files_back() {
    let base = scratch();
    let mut a = Node::primary(base.path(), "pg-0").await;
    a.exec("CREATE TABLE public.t AS SELECT 1 AS x").await;
    a.stop(rustix::process::Signal::INT);
    let mut b = node(base.path(), "pg-1").await;
    b.setup.bootstrap_method = Some(CustomMethod {
        name: "copy".into(),
        command: format!("sh -c 'cp -a {} \"${{2#--datadir=}}\"' x", a.setup.data_dir.display()),
        recovery_conf: [("restore_command".to_owned(), "false".to_owned())].into(),
        ..CustomMethod::default()
    });
    let command = bootstrap::custom_command(&b.setup).unwrap().unwrap();
    hand_over(b.home());
    run(&command);
    bootstrap::after_method(&b.setup).unwrap();
    let spec = start::prepare_after_custom_bootstrap(&b.setup, &b.binaries).unwrap();
    assert!(std::fs::read_to_string(b.setup.data_dir.join("pg_hba.conf")).unwrap().contains("127.0.0.1/32 trust"));
    assert!(spec.recovers && spec.command.argv.ends_with(&["--recovery_target_action=promote".to_owned()]));
    assert_eq!(datadir::inspect(&b.setup), DataDir::Restored);
    hand_over(b.home());
    let log = std::fs::File::create(b.home().join("log")).unwrap();
    b.server = Some(process(&spec.command).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    b.wait_ready().await;
    let sql = b.sql();
    until("end of recovery", async || sql.probe(at()).await.is_ok_and(|p| !p.in_recovery)).await;
    assert_eq!(sql.probe(at()).await.unwrap().timeline, Timeline(2));
    // A start in a new life, after the recovery, recovers nothing again.
    assert!(start::prepare_after_custom_bootstrap(&b.setup, &b.binaries).unwrap().recovers);
    assert!(!b.setup.data_dir.join("recovery.signal").exists());
    datadir::mark(&b.setup, Work::Bootstrap).unwrap();
    bootstrap::set_superuser(&b.setup).await.unwrap();
    bootstrap::create_accounts(&b.setup).await.unwrap();
    assert!(start::leave_custom_bootstrap(&b.setup, &b.binaries).unwrap().changed.conf);
    hand_over(b.home());
    let hba = std::fs::read_to_string(b.setup.data_dir.join("pg_hba.conf")).unwrap();
    assert!(!hba.contains("/32 trust") && hba.contains("host replication replicator all scram-sha-256"), "{hba}");

    assert_eq!(datadir::inspect(&b.setup), DataDir::HalfMade);
    let id = sql.probe(at()).await.unwrap().system_id;
    assert!(!datadir::unmark_if_initialized(&b.setup, "7000000000000000000").unwrap());
    assert!(datadir::unmark_if_initialized(&b.setup, &id).unwrap(), "an initialized cluster is never half-made");
    assert!(matches!(datadir::inspect(&b.setup), DataDir::Present { control: Some(_), .. }));
}

#[test]
fn a_marker_left_by_this_pod_means_half_made_even_over_a_whole_looking_directory() {
    let base = scratch();
    let mut setup = Setup::new("pg-0", "demo", base.path().join("data"), 1);
    setup.pod_uid = "u".into();
    std::fs::create_dir(&setup.data_dir).unwrap();
    std::fs::write(setup.data_dir.join("PG_VERSION"), "15\n").unwrap();
    datadir::mark(&setup, Work::Bootstrap).unwrap();
    assert_eq!(datadir::inspect(&setup), DataDir::HalfMade);
    assert!(Address::parse(&setup.conn_url()).is_some());
}
