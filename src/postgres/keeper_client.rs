//! The sidecar's end of the keeper's socket (design §7): requests with a deadline, events as they come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::keeper::protocol::{Answer, Ask, Event, Frame, PROTOCOL, Program, Request, State, decode, encode};

/// The keeper answers from memory; a second of silence means it is frozen or gone.
pub const KEEPER_DEADLINE: Duration = Duration::from_secs(2);
/// How long a keeper that was just spawned may take until its socket is there.
const SPAWN_DEADLINE: Duration = Duration::from_secs(5);
/// Output lines on their way to one reader; a reader that is slower makes the socket wait, not the memory grow.
const LINES_MAX: usize = 256;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// The keeper says no.
    #[error("the keeper refuses: {0}")]
    Refused(String),
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

enum RunNews {
    Line(String),
    Finished { code: Option<i32>, how: String },
}

#[derive(Default)]
struct Waiting {
    replies: BTreeMap<u64, oneshot::Sender<Answer>>,
    runs: BTreeMap<u64, mpsc::Sender<RunNews>>,
    closed: Option<String>,
}

/// A session. Cheap to clone.
#[derive(Clone)]
pub struct KeeperClient {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
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
        };
        tokio::spawn(read(reader, client.downgrade(), events));
        let hello = Ask::Hello { protocol: PROTOCOL, boot_id: crate::keeper::boot_id(), client: name.to_owned() };
        match client.ask(hello).await? {
            Answer::State(state) => Ok((client, *state, receiver)),
            Answer::Refused { why } => Err(KeeperError::Refused(why)),
            Answer::Done => Err(KeeperError::Unreachable("an answer that makes no sense".to_owned())),
        }
    }

    /// Sends a request and waits for its answer, two seconds at most.
    ///
    /// # Errors
    /// [`KeeperError::Unreachable`] or [`KeeperError::Silent`].
    pub async fn ask(&self, ask: Ask) -> Result<Answer, KeeperError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        self.with(|w| match &w.closed {
            Some(why) => Err(KeeperError::Unreachable(why.clone())),
            None => {
                w.replies.insert(id, tx);
                Ok(())
            }
        })?;
        let bytes = encode(&Request { id, ask }).map_err(KeeperError::Refused)?;
        let round = async {
            self.writer.lock().await.write_all(&bytes).await.map_err(|e| KeeperError::Unreachable(e.to_string()))?;
            rx.await.map_err(|_| KeeperError::Unreachable("the connection ended".to_owned()))
        };
        let answer = tokio::time::timeout(KEEPER_DEADLINE, round).await;
        self.with(|w| w.replies.remove(&id));
        answer.map_err(|_| KeeperError::Silent(KEEPER_DEADLINE))?
    }

    /// A request whose answer is "done".
    ///
    /// # Errors
    /// [`KeeperError`].
    pub async fn command(&self, ask: Ask) -> Result<(), KeeperError> {
        match self.ask(ask).await? {
            Answer::Done | Answer::State(_) => Ok(()),
            Answer::Refused { why } => Err(KeeperError::Refused(why)),
        }
    }

    /// Runs a program to its end. Dropping the future, or passing `deadline`, kills it with all its children.
    ///
    /// # Errors
    /// [`KeeperError`]; a program that fails is no error, see [`RunEnd`].
    pub async fn run(
        &self,
        program: Program,
        deadline: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<RunEnd, KeeperError> {
        let run = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, mut news) = mpsc::channel(LINES_MAX);
        self.with(|w| w.runs.insert(run, tx));
        let mut cancel = CancelOnDrop { client: self.clone(), run, armed: true };
        self.command(Ask::Run { run, program }).await.inspect_err(|_| cancel.armed = false)?;
        let mut kept = std::collections::VecDeque::new();
        let until_end = async {
            while let Some(next) = news.recv().await {
                match next {
                    RunNews::Line(text) => {
                        line(&text);
                        if kept.len() == OUTPUT_LINES_KEPT {
                            kept.pop_front();
                        }
                        kept.push_back(text);
                    }
                    RunNews::Finished { code, how } => return Ok((code, how)),
                }
            }
            Err(KeeperError::Unreachable("the connection ended while a program was running".to_owned()))
        };
        let (code, how) =
            tokio::time::timeout(deadline, until_end).await.map_err(|_| KeeperError::Silent(deadline))??;
        cancel.armed = false;
        self.with(|w| w.runs.remove(&run));
        Ok(RunEnd { code, how, output: kept.into_iter().collect::<Vec<_>>().join("\n") })
    }

    /// For the reading task: it must not keep the connection open when the last client is dropped.
    fn downgrade(&self) -> Ends {
        Ends { writer: Arc::downgrade(&self.writer), waiting: self.waiting.clone(), next: self.next.clone() }
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
}

impl Ends {
    fn client(&self) -> Option<KeeperClient> {
        let writer = self.writer.upgrade()?;
        Some(KeeperClient { writer, waiting: self.waiting.clone(), next: self.next.clone() })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Waiting) -> T) -> T {
        act(&mut self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn close(&self, why: &str) {
        self.with(|w| {
            w.closed = Some(why.to_owned());
            w.replies.clear();
            w.runs.clear();
        });
    }
}

struct CancelOnDrop {
    client: KeeperClient,
    run: u64,
    armed: bool,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.client.with(|w| w.runs.remove(&self.run));
        if self.armed
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (client, run) = (self.client.clone(), self.run);
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
        match reader.read(&mut chunk).await {
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
                if let Some(waiter) = client.with(|w| w.replies.remove(&id)) {
                    let _the_asker_gave_up = waiter.send(answer);
                }
                continue;
            }
            Frame::Event(Event::Output { run, line }) => {
                if let Some(reader) = client.with(|w| w.runs.get(&run).cloned()) {
                    let _nobody_reads_it = reader.send(RunNews::Line(line)).await;
                }
                continue;
            }
            Frame::Event(Event::Finished { run, code, how }) => {
                if let Some(reader) = client.with(|w| w.runs.remove(&run)) {
                    let _nobody_reads_it = reader.send(RunNews::Finished { code, how }).await;
                }
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
