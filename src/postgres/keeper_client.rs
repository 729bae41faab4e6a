//! The sidecar's end of the keeper's socket: requests with a deadline, events as they come.
//!
//! Nobody here waits for a slow reader of a program's lines: the reader keeps the newest of them, and answers and events
//! behind them on the socket come through.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::keeper::protocol::{
    Answer, Ask, Event, Frame, Kind, PROTOCOL, Program, Refusal, Request, State, decode, encode,
};

/// The keeper answers from memory; a second of silence means it is frozen or gone.
pub const KEEPER_DEADLINE: Duration = Duration::from_secs(2);
/// How long a keeper that was just spawned may take until its socket is there.
const SPAWN_DEADLINE: Duration = Duration::from_secs(5);
/// Output lines on their way to one reader; of a reader that is slower the oldest are dropped.
const LINES_MAX: usize = 256;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// The keeper says no, and will say it again.
    #[error("the keeper refuses: {0}")]
    Refused(String),
    /// A postmaster lives: what the keeper's state says is the truth, and nothing failed.
    #[error("the keeper refuses: {0}")]
    Running(String),
    /// A program is still at work or not dead yet: try again.
    #[error("the keeper refuses: {0}")]
    Busy(String),
    /// The permission does not cover it: permit first.
    #[error("the keeper refuses: {0}")]
    NotPermitted(String),
    /// Processes that this keeper did not start hold the data directory: nothing failed, try again.
    #[error("{0}")]
    InUse(String),
    /// No connection, or it broke.
    #[error("the keeper cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("the keeper did not answer within {0:?}")]
    Silent(Duration),
}

/// What happens outside of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeeperEvent {
    /// The postmaster and every descendant are gone: how, and when (ns since boot).
    Exited {
        /// In words.
        how: String,
        /// ns since boot.
        at: u64,
    },
    /// The keeper stops Postgres by itself.
    Fenced(String),
    /// The keeper's container is ending.
    Terminating,
    /// The connection is over: why.
    Lost(String),
}

impl KeeperError {
    fn refused(why: String, class: Refusal) -> KeeperError {
        match class {
            Refusal::Running => KeeperError::Running(why),
            Refusal::Busy => KeeperError::Busy(why),
            Refusal::NotPermitted => KeeperError::NotPermitted(why),
            Refusal::InUse => KeeperError::InUse(why),
            Refusal::Other => KeeperError::Refused(why),
        }
    }

    /// Was it refused, for whatever reason? Otherwise nobody knows whether it was done.
    pub fn is_refusal(&self) -> bool {
        match self {
            KeeperError::Refused(_)
            | KeeperError::Running(_)
            | KeeperError::Busy(_)
            | KeeperError::NotPermitted(_)
            | KeeperError::InUse(_) => true,
            KeeperError::Unreachable(_) | KeeperError::Silent(_) => false,
        }
    }
}

/// What a program said and how it ended, until its reader takes it.
#[derive(Default)]
struct News {
    lines: VecDeque<String>,
    dropped: u64,
    end: Option<(Option<i32>, String)>,
    bell: Arc<Notify>,
}

#[derive(Default)]
struct Waiting {
    replies: BTreeMap<u64, oneshot::Sender<Answer>>,
    runs: BTreeMap<u64, News>,
    /// 0: the keeper was not met.
    next_run: u64,
    closed: Option<String>,
}

impl Waiting {
    /// Before any event behind the keeper's first words is read: a program that lives must not end unheard.
    fn meet(&mut self, state: &State) {
        if self.next_run == 0 {
            self.next_run = state.next_run.max(1);
            self.runs.extend(state.programs.iter().filter(|p| !p.ending).map(|p| (p.run, News::default())));
        }
    }
}

/// A session. Cheap to clone.
#[derive(Clone)]
pub struct KeeperClient {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
    /// Rings when an answer did not come in time: the session is over then.
    hang_up: Arc<Notify>,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// In words.
    pub how: String,
    /// The last lines it wrote (at most 200).
    pub output: String,
}

const OUTPUT_LINES_KEPT: usize = 200;

impl KeeperClient {
    /// Opens a session; the older one is superseded.
    ///
    /// # Errors
    /// [`KeeperError`]; a keeper of another protocol says so in words.
    pub async fn connect(
        socket: &Path,
        name: &str,
    ) -> Result<(KeeperClient, State, mpsc::Receiver<KeeperEvent>), KeeperError> {
        let connected = tokio::time::timeout(KEEPER_DEADLINE, UnixStream::connect(socket)).await;
        let stream = connected
            .map_err(|_| KeeperError::Silent(KEEPER_DEADLINE))?
            .map_err(|e| KeeperError::Unreachable(format!("{}: {e}", socket.display())))?;
        let (reader, writer) = stream.into_split();
        let (events, receiver) = mpsc::channel(64);
        let client = KeeperClient {
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            waiting: Arc::default(),
            next: Arc::new(AtomicU64::new(1)),
            hang_up: Arc::default(),
        };
        tokio::spawn(read(reader, client.downgrade(), events));
        let hello = Ask::Hello { protocol: PROTOCOL, boot_id: crate::keeper::boot_id(), client: name.to_owned() };
        match client.ask(hello).await? {
            Answer::State(state) => Ok((client, *state, receiver)),
            Answer::Refused { why, class } => Err(KeeperError::refused(why, class)),
            Answer::Done => Err(KeeperError::Unreachable("an answer that makes no sense".to_owned())),
        }
    }

    /// Sends a request and waits for its answer, two seconds at most.
    ///
    /// # Errors
    /// [`KeeperError::Unreachable`] or [`KeeperError::Silent`].
    pub async fn ask(&self, ask: Ask) -> Result<Answer, KeeperError> {
        self.send(|_| ask).await
    }

    /// Makes the request when its turn on the wire has come: what is numbered there is sent in that order.
    async fn send(&self, make: impl FnOnce(&mut Waiting) -> Ask) -> Result<Answer, KeeperError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        let round = async {
            let mut writer = self.writer.lock().await;
            let ask = self.with(|w| match &w.closed {
                Some(why) => Err(KeeperError::Unreachable(why.clone())),
                None => {
                    w.replies.insert(id, tx);
                    Ok(make(w))
                }
            })?;
            let bytes = encode(&Request { id, ask }).map_err(KeeperError::Refused)?;
            writer.write_all(&bytes).await.map_err(|e| KeeperError::Unreachable(e.to_string()))?;
            drop(writer);
            rx.await.map_err(|_| KeeperError::Unreachable("the connection ended".to_owned()))
        };
        let answer = tokio::time::timeout(KEEPER_DEADLINE, round).await;
        self.with(|w| w.replies.remove(&id));
        answer.map_err(|_| {
            // What it has done meanwhile, and whether it lives, a new session tells; this one would stay in doubt for ever.
            self.hang_up.notify_one();
            KeeperError::Silent(KEEPER_DEADLINE)
        })?
    }

    /// A request whose answer is "done".
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn command(&self, ask: Ask) -> Result<(), KeeperError> {
        match self.ask(ask).await? {
            Answer::Done | Answer::State(_) => Ok(()),
            Answer::Refused { why, class } => Err(KeeperError::refused(why, class)),
        }
    }

    /// Runs a program to its end. Dropping the future, or passing `deadline`, kills it with all its children.
    ///
    /// # Errors
    /// [`KeeperError`]; a program that fails is no error, see [`RunEnd`].
    pub async fn run(
        &self,
        kind: Kind,
        program: Program,
        deadline: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<RunEnd, KeeperError> {
        // Armed before the request is made: dropped or unanswered in the middle, the program may have begun.
        let cancel = CancelOnDrop { client: self.clone(), run: Arc::default() };
        let bell = Arc::new(Notify::new());
        let (ring, number) = (bell.clone(), cancel.run.clone());
        let asked = self.send(move |w| {
            let run = w.next_run;
            w.next_run += 1;
            w.runs.insert(run, News { bell: ring, ..News::default() });
            number.store(run, Ordering::Relaxed);
            Ask::Run { run, kind, program }
        });
        if let Answer::Refused { why, class } = asked.await? {
            cancel.disarm();
            return Err(KeeperError::refused(why, class));
        }
        let end = tokio::time::timeout(deadline, self.until_end(cancel.number(), &bell, &mut line)).await;
        let end = end.map_err(|_| KeeperError::Silent(deadline))??;
        cancel.disarm();
        Ok(end)
    }

    /// Waits for a run that an earlier session began and this one adopted, as [`Self::run`] does: its lines from here on,
    /// and its end. Dropping the future, or passing `deadline`, kills it.
    ///
    /// # Errors
    /// [`KeeperError::Silent`] after `deadline`, [`KeeperError::Unreachable`] when the connection ends.
    pub async fn adopt(&self, run: u64, deadline: Duration, mut line: impl FnMut(&str)) -> Result<RunEnd, KeeperError> {
        let cancel = CancelOnDrop { client: self.clone(), run: Arc::new(AtomicU64::new(run)) };
        let bell = self.with(|w| w.runs.entry(run).or_default().bell.clone());
        let end = tokio::time::timeout(deadline, self.until_end(run, &bell, &mut line)).await;
        let end = end.map_err(|_| KeeperError::Silent(deadline))??;
        cancel.disarm();
        Ok(end)
    }

    async fn until_end(&self, run: u64, bell: &Notify, line: &mut impl FnMut(&str)) -> Result<RunEnd, KeeperError> {
        let mut kept = VecDeque::new();
        loop {
            let news = self.with(|w| {
                let news = w.runs.get_mut(&run)?;
                Some((std::mem::take(&mut news.lines), std::mem::take(&mut news.dropped), news.end.take()))
            });
            let Some((lines, dropped, end)) = news else {
                return Err(KeeperError::Unreachable("the connection ended while a program was running".to_owned()));
            };
            if dropped > 0 {
                tracing::warn!(
                    "{dropped} lines of a program's output were dropped: it prints faster than they are read"
                );
            }
            for text in lines {
                line(&text);
                if kept.len() == OUTPUT_LINES_KEPT {
                    kept.pop_front();
                }
                kept.push_back(text);
            }
            if let Some((code, how)) = end {
                return Ok(RunEnd { code, how, output: Vec::from(kept).join("\n") });
            }
            bell.notified().await;
        }
    }

    /// For the reading task: it must not keep the connection open when the last client is dropped.
    fn downgrade(&self) -> Ends {
        Ends {
            writer: Arc::downgrade(&self.writer),
            waiting: self.waiting.clone(),
            next: self.next.clone(),
            hang_up: self.hang_up.clone(),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Waiting) -> T) -> T {
        act(&mut self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// The reading task's hold on a client.
struct Ends {
    writer: Weak<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
    hang_up: Arc<Notify>,
}

impl Ends {
    fn client(&self) -> Option<KeeperClient> {
        let writer = self.writer.upgrade()?;
        let (waiting, next, hang_up) = (self.waiting.clone(), self.next.clone(), self.hang_up.clone());
        Some(KeeperClient { writer, waiting, next, hang_up })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Waiting) -> T) -> T {
        act(&mut self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn news(&self, run: u64, act: impl FnOnce(&mut News)) {
        self.with(|w| {
            if let Some(news) = w.runs.get_mut(&run) {
                act(news);
                news.bell.notify_one();
            }
        });
    }

    fn close(&self, why: &str) {
        self.with(|w| {
            w.closed = Some(why.to_owned());
            w.replies.clear();
            for run in std::mem::take(&mut w.runs).into_values() {
                run.bell.notify_one();
            }
        });
    }
}

/// Ends a run that nobody waits for any more. Number 0: none was asked for.
struct CancelOnDrop {
    client: KeeperClient,
    run: Arc<AtomicU64>,
}

impl CancelOnDrop {
    fn number(&self) -> u64 {
        self.run.load(Ordering::Relaxed)
    }

    fn disarm(&self) {
        let run = self.run.swap(0, Ordering::Relaxed);
        self.client.with(|w| w.runs.remove(&run));
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let run = self.number();
        self.disarm();
        if run > 0
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let client = self.client.clone();
            runtime.spawn(async move {
                if let Err(e) = client.command(Ask::Cancel { run }).await {
                    tracing::warn!("cancel a program: {e}");
                }
            });
        }
    }
}

async fn read(mut reader: OwnedReadHalf, client: Ends, events: mpsc::Sender<KeeperEvent>) {
    let mut buffer = Vec::new();
    let mut chunk = [0u8; 4096];
    let why = loop {
        let read = tokio::select! {
            read = reader.read(&mut chunk) => read,
            () = client.hang_up.notified() => break format!("no answer within {} s", KEEPER_DEADLINE.as_secs()),
        };
        match read {
            Ok(0) => break "the keeper closed the connection".to_owned(),
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
            Err(e) => break e.to_string(),
        }
        match take_frames(&mut buffer, &client, &events).await {
            Ok(()) => {}
            Err(why) => break why,
        }
    };
    client.close(&why);
    let _nobody_listens_any_more = events.send(KeeperEvent::Lost(why)).await;
}

async fn take_frames(buffer: &mut Vec<u8>, client: &Ends, events: &mpsc::Sender<KeeperEvent>) -> Result<(), String> {
    while let Some(frame) = decode::<Frame>(buffer)? {
        let event = match frame {
            Frame::Reply { id, answer } => {
                if let Answer::State(state) = &answer {
                    client.with(|w| w.meet(state));
                }
                if let Some(waiter) = client.with(|w| w.replies.remove(&id)) {
                    let _the_asker_gave_up = waiter.send(answer);
                }
                continue;
            }
            Frame::Event(Event::Output { run, line }) => {
                client.news(run, |news| {
                    if news.lines.len() == LINES_MAX {
                        news.lines.pop_front();
                        news.dropped += 1;
                    }
                    news.lines.push_back(line);
                });
                continue;
            }
            Frame::Event(Event::Finished { run, code, how }) => {
                client.news(run, |news| news.end = Some((code, how)));
                continue;
            }
            Frame::Event(Event::Exited { how, at }) => KeeperEvent::Exited { how, at },
            Frame::Event(Event::Fenced { why }) => KeeperEvent::Fenced(why),
            Frame::Event(Event::Terminating { .. }) => {
                // Any request says that somebody is there to hand over.
                if let Some(client) = client.client() {
                    tokio::spawn(async move { client.command(Ask::Status).await });
                }
                KeeperEvent::Terminating
            }
            Frame::Event(Event::Superseded) => return Err("a newer sidecar took the session over".to_owned()),
        };
        let _nobody_listens_any_more = events.send(event).await;
    }
    Ok(())
}

/// Starts a keeper that outlives this process, and waits for its socket.
///
/// # Errors
/// One line: the program, or the socket that did not appear.
pub async fn spawn_keeper(program: &Path, socket: &Path) -> Result<(), String> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--socket").arg(socket).args(["--exit-when-idle", "--detach"]).stdin(Stdio::null());
    let status = command.status().await.map_err(|e| format!("start {}: {e}", program.display()))?;
    if !status.success() {
        return Err(format!("{} ended with {status}", program.display()));
    }
    let socket: PathBuf = socket.to_path_buf();
    let appears = async {
        while UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SPAWN_DEADLINE, appears)
        .await
        .map_err(|_| format!("{} did not open {} within {SPAWN_DEADLINE:?}", program.display(), socket.display()))
}
