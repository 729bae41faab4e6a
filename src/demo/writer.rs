//! Clients that write to every member directly and remember what they were promised.
//!
//! One connection per member, all alike: each asks its own member whether it is a primary and, when it is, inserts a row
//! every so often. Nobody tells them who leads, so two members that accept writes at once are seen as two streams of
//! acknowledgements. A statement is waited for without a limit: an acknowledgement that comes seconds late is exactly what
//! must be noticed. The clients live in a thread of their own and measure nothing but their own waiting.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::member::PASSWORD;
use super::{Res, fail};

/// The table every client writes to.
pub const TABLE: &str = "demo_writes";
/// A connection that is not up by then is tried again; a frozen postmaster accepts and says nothing.
const CONNECT: Duration = Duration::from_secs(3);
/// Pause after a refused connection, and between two questions to a standby.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// One acknowledged row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Its primary key.
    pub id: u64,
    /// Index of the member that acknowledged it.
    pub member: usize,
    /// When the statement was sent.
    pub sent: Instant,
    /// When the acknowledgement was read.
    pub at: Instant,
    /// Timeline the row was written on.
    pub timeline: u32,
    /// Insert position when it was written, in bytes.
    pub lsn: u64,
}

/// Where a client connects.
#[derive(Clone)]
pub struct Target {
    /// The address; it changes when a pod is made anew, and is `None` while there is no pod.
    pub address: watch::Receiver<Option<SocketAddr>>,
    /// Of the superuser.
    pub password: String,
    /// A statement without an answer for this long is given up and the connection with it, and so is a standby; `None`:
    /// waited for however long.
    pub patience: Option<Duration>,
}

impl Target {
    /// A port of this machine, for good.
    pub fn local(port: u16) -> Target {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Target { address: watch::channel(Some(address)).1, password: PASSWORD.to_owned(), patience: None }
    }

    /// Connects as the superuser; the connection's task ends with the client.
    ///
    /// # Errors
    /// There is no address, refused, or not up within three seconds.
    pub async fn connect(&self) -> Res<Client> {
        let Some(address) = *self.address.borrow() else { return fail("no address to connect to") };
        let mut config = tokio_postgres::Config::new();
        config.host(address.ip().to_string()).port(address.port()).user("postgres").password(&self.password);
        config.dbname("postgres").application_name("demo");
        match timeout(CONNECT, config.connect(NoTls)).await {
            Err(_) => fail(format!("{address}: no connection within {} s", CONNECT.as_secs())),
            Ok(connected) => {
                let (client, connection) = connected?;
                tokio::spawn(async move { drop(connection.await) });
                Ok(client)
            }
        }
    }

    /// Ends when the address is another than at the call.
    fn moved(&self) -> impl Future<Output = ()> + use<> {
        let mut address = self.address.clone();
        address.mark_unchanged();
        async move {
            if address.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[derive(Default)]
struct Shared {
    acks: Mutex<Vec<Ack>>,
    next: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The running clients.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts one client for each port, each writing every `every` while its member is a primary.
    ///
    /// # Errors
    /// No thread or runtime could be made.
    pub fn start(ports: &[u16], every: Duration) -> Res<Writer> {
        Writer::toward(ports.iter().map(|port| Target::local(*port)).collect(), every, 0)
    }

    /// As [`Writer::start`], to any targets; the rows' keys begin after `first`.
    ///
    /// # Errors
    /// As [`Writer::start`].
    pub fn toward(targets: Vec<Target>, every: Duration, first: u64) -> Res<Writer> {
        let shared = Arc::new(Shared { next: AtomicU64::new(first), ..Shared::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let theirs = Arc::clone(&shared);
        let serve = move || {
            runtime.block_on(async {
                let clients = targets.iter().enumerate().map(|(i, t)| client(i, t, Arc::clone(&theirs), every));
                let all = futures::future::join_all(clients);
                let until_stopped = async {
                    while !theirs.stopped() {
                        sleep(Duration::from_millis(20)).await;
                    }
                };
                tokio::select! { _ = all => (), () = until_stopped => () }
            });
        };
        let thread = std::thread::Builder::new().name("clients".into()).spawn(serve)?;
        Ok(Writer { shared, thread: Some(thread) })
    }

    /// Everything acknowledged since the start, in the order the answers were read.
    pub fn acks(&self) -> Vec<Ack> {
        self.shared.acks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rows acknowledged so far, and the member that acknowledged the last one.
    pub fn count(&self) -> (usize, Option<usize>) {
        let acks = self.shared.acks.lock().unwrap_or_else(PoisonError::into_inner);
        (acks.len(), acks.last().map(|a| a.member))
    }

    /// Waits for a row that was *sent* after `since`, by a member `ok` accepts; returns it.
    ///
    /// # Errors
    /// None within `deadline`.
    pub async fn wait_for_ack(&self, since: Instant, deadline: Duration, ok: impl Fn(&Ack) -> bool) -> Res<Ack> {
        let end = Instant::now() + deadline;
        loop {
            let found = {
                let acks = self.shared.acks.lock().unwrap_or_else(PoisonError::into_inner);
                acks.iter().rev().take_while(|a| a.at >= since).filter(|a| a.sent >= since && ok(a)).last().cloned()
            };
            if let Some(ack) = found {
                return Ok(ack);
            }
            if Instant::now() > end {
                return fail(format!("no write was accepted for {:.1} s", deadline.as_secs_f64()));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The longest time without an acknowledgement between `since` and the last one.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let acks = self.acks();
        let before = acks.iter().rev().find(|a| a.at < since).map_or(since, |a| a.at);
        let mut last = before;
        let mut longest = Duration::ZERO;
        for ack in acks.iter().filter(|a| a.at >= since) {
            longest = longest.max(ack.at - last);
            last = ack.at;
        }
        longest
    }

    /// Stops the clients and returns what they were promised.
    pub fn finish(mut self) -> Vec<Ack> {
        self.halt();
        self.acks()
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the client thread was printed when it happened.
            drop(thread.join());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.halt();
    }
}

/// Connects to a member of this machine; see [`Target::connect`].
///
/// # Errors
/// As [`Target::connect`].
pub async fn connect(port: u16) -> Res<Client> {
    Target::local(port).connect().await
}

async fn client(member: usize, target: &Target, shared: Arc<Shared>, every: Duration) {
    while !shared.stopped() {
        let moved = target.moved();
        if let Ok(client) = target.connect().await {
            tokio::select! {
                () = serve_connection(&client, member, &shared, every, target.patience) => (),
                () = moved => (),
            }
        }
        sleep(ASK_AGAIN).await;
    }
}

async fn serve_connection(
    client: &Client,
    member: usize,
    shared: &Shared,
    every: Duration,
    patience: Option<Duration>,
) {
    while !shared.stopped() && !client.is_closed() {
        match first_value(client, "SELECT pg_is_in_recovery()", patience).await {
            Some(Err(_)) | None => return,
            // Whoever has patience with one member waits for its promotion; behind a Service another one may be the leader.
            Some(Ok(answer)) if answer != ["f"] && patience.is_some() => return,
            Some(Ok(answer)) if answer != ["f"] => sleep(ASK_AGAIN).await,
            Some(Ok(_)) => write_until_refused(client, member, shared, every, patience).await,
        }
    }
}

async fn write_until_refused(
    client: &Client,
    member: usize,
    shared: &Shared,
    every: Duration,
    patience: Option<Duration>,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.stopped() {
        ticks.tick().await;
        let id = shared.next.fetch_add(1, Ordering::Relaxed) + 1;
        let insert = format!(
            "INSERT INTO {TABLE} (id, member) VALUES ({id}, {member}) \
             RETURNING pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_insert_lsn()"
        );
        let sent = Instant::now();
        match first_value(client, &insert, patience).await {
            Some(Ok(row)) => {
                let at = Instant::now();
                let timeline = row.first().and_then(|f| u32::from_str_radix(f.get(..8)?, 16).ok()).unwrap_or_default();
                let lsn = row.get(1).and_then(|l| parse_lsn(l)).unwrap_or_default();
                let ack = Ack { id, member, sent, at, timeline, lsn };
                shared.acks.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
            }
            Some(Err(e)) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                let create = format!(
                    "CREATE TABLE IF NOT EXISTS {TABLE} \
                     (id bigint PRIMARY KEY, member int NOT NULL, at timestamptz NOT NULL DEFAULT now())"
                );
                if client.batch_execute(&create).await.is_err() {
                    return sleep(ASK_AGAIN).await;
                }
            }
            Some(Err(_)) | None => return,
        }
    }
}

/// `16/B374D848` as bytes.
pub fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some((u64::from_str_radix(high, 16).ok()? << 32) | u64::from_str_radix(low, 16).ok()?)
}

/// The columns of the first row; `None`: no answer in time.
async fn first_value(
    client: &Client,
    sql: &str,
    patience: Option<Duration>,
) -> Option<Result<Vec<String>, tokio_postgres::Error>> {
    let answer = rows(client, sql);
    let found = match patience {
        None => answer.await,
        Some(limit) => timeout(limit, answer).await.ok()?,
    };
    Some(found.map(|rows| rows.into_iter().next().unwrap_or_default()))
}

/// All rows as text, NULL as an empty string.
///
/// # Errors
/// What Postgres or the connection said.
pub async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
    let mut found = Vec::new();
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            found.push((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect());
        }
    }
    Ok(found)
}

/// The rows that the member on `port` has.
///
/// # Errors
/// It cannot be reached or asked.
pub async fn present(port: u16) -> Res<BTreeSet<u64>> {
    present_at(&Target::local(port)).await
}

/// As [`present`], of any target.
///
/// # Errors
/// As [`present`].
pub async fn present_at(target: &Target) -> Res<BTreeSet<u64>> {
    let client = target.connect().await?;
    let found = rows(&client, &format!("SELECT id FROM {TABLE}")).await?;
    Ok(found.iter().filter_map(|r| r.first()?.parse().ok()).collect())
}
