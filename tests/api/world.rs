//! A member made of values: the test holds the loop's ends of the channels and speaks plain HTTP to the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use patroni::api;
use patroni::door::{
    Answer, ApiSettings, Asked, Command, Outside, PostgresStatus, Snapshot, Stamped, StatusWaiter, channels,
};
use patroni::driver::{clock, peers};
use patroni::model::{
    Cluster, ConfigRecord, LeaderRecord, LeaseRecord, Lsn, Member, MemberName, MemberSnapshot, PostgresState, Role,
    Settings, Timeline, Version,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

pub const DEADLINE: Duration = Duration::from_secs(10);

/// The server, and the ends of its channels that a test may pull.
pub struct World {
    pub addr: SocketAddr,
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    pub settings: watch::Sender<Arc<ApiSettings>>,
    pub commands: mpsc::Receiver<Asked>,
    _status: watch::Sender<Stamped>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// What Postgres answers.
pub enum Says {
    /// This, at once.
    Status(PostgresStatus),
    /// It accepts no connections.
    Nothing,
    /// It hangs.
    Never,
}

impl World {
    pub async fn new(snapshot: Snapshot, says: Says) -> World {
        World::with(snapshot, says, ApiSettings::default()).await
    }

    pub async fn with(snapshot: Snapshot, says: Says, mut settings: ApiSettings) -> World {
        if settings.listen.is_empty() {
            settings.listen = "127.0.0.1:0".to_owned();
        }
        let client = peers::PeerClient::new(&peers::PeerTls::default()).unwrap();
        let (handle, ends) = channels(snapshot, settings.clone(), Outside { now: clock::now, peers: Arc::new(client) });
        let bound = api::bind(&Arc::new(settings)).unwrap();
        let addr = bound.local_addr().unwrap();
        let server = tokio::spawn(bound.serve(handle));
        let answering = tokio::spawn(answer(ends.status_ask, says));
        World {
            addr,
            snapshot: ends.snapshot,
            settings: ends.api_settings,
            commands: ends.commands,
            _status: ends.status,
            tasks: vec![server, answering],
        }
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, method: &str, target: &str, body: Option<&str>) -> Reply {
        self.ask_with(method, target, &[], body).await
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.ask("GET", target, None).await
    }

    pub async fn ask_with(&self, method: &str, target: &str, headers: &[(&str, &str)], body: Option<&str>) -> Reply {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        exchange(&mut stream, method, target, headers, body).await
    }

    /// Asks while the loop answers the one command with `answer`; what the loop was asked comes back too.
    pub async fn command(
        &mut self,
        method: &str,
        target: &str,
        body: Option<&str>,
        answer: Answer,
    ) -> (Reply, Command) {
        let addr = self.addr;
        let asked = async {
            let asked = tokio::time::timeout(DEADLINE, self.commands.recv()).await.expect("no command came").unwrap();
            asked.reply.send(answer).unwrap();
            asked.command
        };
        let request = async {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            exchange(&mut stream, method, target, &[], body).await
        };
        tokio::join!(request, asked)
    }

    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = (**self.snapshot.borrow()).clone();
        change(&mut snapshot);
        self.snapshot.send_replace(Arc::new(snapshot));
    }
}

async fn answer(mut asked: mpsc::Receiver<StatusWaiter>, says: Says) {
    let mut kept = Vec::new();
    let status = match &says {
        Says::Status(status) => Some(Arc::new(status.clone())),
        Says::Nothing | Says::Never => None,
    };
    while let Some(waiter) = asked.recv().await {
        match says {
            Says::Status(_) | Says::Nothing => drop(waiter.send(status.clone())),
            Says::Never => kept.push(waiter),
        }
    }
}

/// An HTTP reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    pub fn keys(&self) -> Vec<String> {
        self.json().as_object().unwrap().keys().cloned().collect()
    }
    /// Status and body, for comparisons.
    pub fn says(&self) -> (u16, &str) {
        (self.status, self.body.as_str())
    }
}

/// Sends one request and reads one reply; the connection stays open.
pub async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Reply {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: member\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body.unwrap_or(""));
    stream.write_all(text.as_bytes()).await.unwrap();
    let read = read_reply(stream, method == "HEAD");
    tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("{method} {target}: no reply"))
}

async fn read_reply(stream: &mut (impl AsyncRead + Unpin), bare: bool) -> Reply {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed within the head: {bytes:?}");
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(": ")).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut reply = Reply { status, headers, body: String::new() };
    let length: usize = reply.header("content-length").map_or(0, |l| l.parse().unwrap());
    while !bare && bytes.len() < head + length {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "closed within the body");
    }
    reply.body = String::from_utf8(bytes.split_off(head)).unwrap();
    reply
}

/// `pg-0`, a primary that leads a cluster of its own, `pg-1` beside it.
pub fn leader() -> Snapshot {
    let now = clock::now();
    let me = MemberName::from("pg-0");
    let lease = LeaseRecord { leader: Some(me.clone()), ..LeaseRecord::default() };
    let member = |port: u16, state, role| Member {
        conn_url: Some(format!("postgres://10.0.0.4:{port}/postgres")),
        api_url: Some("http://127.0.0.1:1/patroni".to_owned()),
        state: Some(state),
        role: Some(role),
        ..Member::default()
    };
    let cluster = Cluster {
        config: Some(ConfigRecord {
            version: Version("c1".into()),
            document: Some(r#"{"ttl":30,"x":{"y":null}}"#.into()),
        }),
        leader: Some(LeaderRecord { optime: Some(Lsn(0x7000000)), ..LeaderRecord::of(Version("l1".into()), lease) }),
        members: [
            (me.clone(), member(5432, PostgresState::Running, Role::Primary)),
            ("pg-1".into(), member(5433, PostgresState::Running, Role::Replica)),
        ]
        .into(),
        ..Cluster::default()
    };
    let member = MemberSnapshot {
        watchdog_failed: false,
        now,
        me,
        cluster: Arc::new(cluster),
        settings: Arc::new(Settings::default()),
        store_read: true,
        dcs_available: true,
        dcs_last_seen: 1_763_626_530,
        leader_until: Some(now.boot + Duration::from_secs(29)),
        alive: true,
        state: PostgresState::Running,
        role: Role::Primary,
        probe: None,
        server_version: Some(170_002),
        system_id: Some("7439021837465564321".to_owned()),
        known_timeline: Timeline(0),
        position: None,
        pending_restart: false,
        pending_restart_reason: Default::default(),
        scheduled_restart: None,
        next_step: now.boot + Duration::from_secs(10),
        reason: "I am the leader with the lock".to_owned(),
        fence_lost: false,
        fence_partial: false,
        failsafe_active: false,
        quits_sync: false,
    };
    Snapshot {
        member,
        scope: "demo".into(),
        version: "4.1.5",
        primary_word: "primary",
        configured_tags: Arc::default(),
        effective_tags: Arc::default(),
        ignored_parameters: Default::default(),
    }
}

/// The same member as a replica of `pg-1`.
pub fn replica() -> Snapshot {
    let mut s = leader();
    s.leader_until = None;
    edit_cluster(&mut s, |c| c.leader.as_mut().unwrap().lease.leader = Some("pg-1".into()));
    s.role = Role::Replica;
    s
}

pub fn edit_cluster(s: &mut Snapshot, edit: impl FnOnce(&mut Cluster)) {
    edit(Arc::make_mut(&mut s.cluster));
}

pub fn as_primary() -> PostgresStatus {
    PostgresStatus {
        postmaster_start_time: "2026-11-20 08:15:30.123456+00:00".into(),
        postmaster_start_epoch: 1_763_626_530.5,
        server_version: 170_002,
        location: Some(Lsn(117_440_512)),
        timeline: Some(Timeline(7)),
        ..PostgresStatus::default()
    }
}

pub fn as_standby() -> PostgresStatus {
    PostgresStatus {
        in_recovery: true,
        location: None,
        received: Some(Lsn(117_440_512)),
        replayed: Some(Lsn(117_440_500)),
        replication_state: Some("streaming".into()),
        latest_end_lsn: Some(Lsn(117_440_512)),
        ..as_primary()
    }
}
