//! The words between sidecar and keeper, and between keeper and warden: length-prefixed JSON over a Unix socket.
//!
//! A frame is a big-endian u32 length and that many bytes of JSON. Instants are CLOCK_BOOTTIME in nanoseconds: both
//! containers of a pod share the kernel's clock, and `hello` compares the boot id to be sure. [`PROTOCOL`] ± 1 is
//! understood, anything else is refused with a sentence.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of this protocol. 2: kinds of programs, living programs and the next run id in the state, classes of refusals.
pub const PROTOCOL: u32 = 2;
/// The largest frame: a note of 64 KiB and the output of a script fit many times.
pub const FRAME_MAX: usize = 1 << 20;
/// The largest note.
pub const NOTE_MAX: usize = 64 << 10;
/// A Unix socket path ends at 107 bytes; the rest is for temporary names.
pub const SOCKET_PATH_MAX: usize = 100;

/// What may run. It covers one postmaster at a time, is replaced only by newer evidence, and is never kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// No writer.
    None,
    /// One writer, until these instants.
    Writer {
        /// Immediate stop, in ns since boot.
        stop_at: u64,
        /// SIGKILL, in ns since boot.
        kill_at: u64,
    },
    /// One writer without a deadline.
    Unfenced {
        /// Why.
        reason: UnfencedReason,
    },
}

/// The two situations without a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnfencedReason {
    /// Maintenance mode.
    Pause,
    /// A new cluster: nobody else has data, and there is no lease yet.
    Bootstrap,
}

/// How a postmaster is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read-write.
    Primary,
    /// With standby.signal.
    Standby,
}

/// How Postgres is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// SIGTERM: waits for sessions.
    Smart,
    /// SIGINT.
    Fast,
    /// SIGQUIT.
    Immediate,
    /// SIGKILL of everything.
    Kill,
}

/// What a program is for: what may run beside it, and what becomes of it when a newer session opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Tells the outside about a change of role; outlives the session that asked for it.
    Callback,
    /// pg_rewind: stopped in the middle it leaves a directory that cannot be used, so a newer session adopts it.
    Rewind,
    /// A restore from a backup: adopted, as it may have run for hours.
    Restore,
    /// Fills an empty data directory (initdb, pg_basebackup); ended by a newer session.
    Fill,
    /// Removes directories: `argv` is the list of them, the program is the keeper's own `remove`. Ended by a newer session.
    Removal,
    /// Anything else (scripts, single-user recovery); ended by a newer session.
    #[default]
    Tool,
}

impl Kind {
    /// It changes a data directory: never beside a postmaster, never two at a time.
    pub fn changes_data(self) -> bool {
        match self {
            Kind::Rewind | Kind::Restore | Kind::Fill | Kind::Removal => true,
            Kind::Callback | Kind::Tool => false,
        }
    }

    /// A newer session finds it running instead of having it ended.
    pub fn outlives_its_session(self) -> bool {
        match self {
            Kind::Callback | Kind::Rewind | Kind::Restore => true,
            Kind::Fill | Kind::Removal | Kind::Tool => false,
        }
    }
}

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Program and arguments; of a removal: the directories.
    pub argv: Vec<String>,
    /// Variables added to the keeper's own environment (from which PATRONI_*, KUBERNETES_* and NOTIFY_SOCKET are removed).
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; else the keeper's.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Written to its standard input, which is then closed.
    #[serde(default)]
    pub stdin: Option<String>,
    /// A new program in the same slot kills the running one with all its children first (callbacks).
    #[serde(default)]
    pub slot: Option<String>,
    /// The data directory it works on: locked while it runs.
    #[serde(default)]
    pub data_dir: Option<String>,
    /// Of a postmaster that is started as a primary: recovery.signal may be there. It counts as a writer all the same, since a
    /// recovery ends by itself.
    #[serde(default)]
    pub recovers: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the reply.
    pub id: u64,
    /// What.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Opens a session and supersedes the older one.
    Hello {
        /// [`PROTOCOL`] of the client.
        protocol: u32,
        /// `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
        /// For the log.
        client: String,
    },
    /// Replaces the permission, if the evidence is newer, and the note.
    Permit {
        /// The permission.
        permission: Permission,
        /// The evidence it comes from, ns since boot.
        evidence: u64,
        /// Opaque to the keeper; given back at the next hello.
        note: String,
    },
    /// Starts the postmaster.
    Start {
        /// How.
        role: Role,
        /// Postmaster and arguments.
        program: Program,
        /// PGDATA.
        data_dir: String,
        /// When the last confirmed renewal was sent, ns since boot; 0 = none.
        renewal: u64,
        /// Lock files of its Unix sockets; one left by a process that is no Postgres any more is removed.
        #[serde(default)]
        socket_locks: Vec<String>,
    },
    /// Promotes the running standby.
    Promote {
        /// As in `start`.
        renewal: u64,
    },
    /// Signals the postmaster to stop. `exited` follows.
    Stop {
        /// How.
        mode: StopMode,
    },
    /// SIGHUP to the postmaster.
    Reload,
    /// Starts a program. `output` and `finished` follow.
    Run {
        /// Chosen by the client: at least [`State::next_run`], and greater than any it used. Never used twice in the
        /// life of a keeper, whatever became of the request.
        run: u64,
        /// What it is for.
        #[serde(default)]
        kind: Kind,
        /// What.
        program: Program,
    },
    /// Kills a program with all its children. `finished` follows.
    Cancel {
        /// Which.
        run: u64,
    },
    /// The state of things; also the answer to `terminating`.
    Status,
    /// Ends the keeper; refused while a postmaster lives.
    Shutdown,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// The answer to a request.
    Reply {
        /// The request's.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// Something happened.
    Event(Event),
}

/// Answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done, or begun.
    Done,
    /// To `hello` and `status`.
    State(Box<State>),
    /// Not done.
    Refused {
        /// Why, one line.
        why: String,
        /// What the client does next.
        #[serde(default)]
        class: Refusal,
    },
}

/// Why something was not done, by what the client does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A postmaster lives, or is not dead yet: ask for the state, and take what it says as the truth.
    Running,
    /// A program is still at work, or not dead yet: try again.
    Busy,
    /// The permission does not cover it: permit first, with newer evidence.
    NotPermitted,
    /// Processes that this keeper did not start hold the data directory, and may write to it: nothing failed, try again.
    InUse,
    /// Anything else: tell a person.
    #[default]
    #[serde(other)]
    Other,
}

/// The keeper's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`PROTOCOL`] of the keeper.
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it began, ns since boot; another value is another keeper. 0: a keeper that does not tell.
    #[serde(default)]
    pub began: u64,
    /// The standing permission.
    pub permission: Permission,
    /// The note that came with it.
    pub note: String,
    /// The postmaster, or what is left of one.
    pub postgres: Option<Postmaster>,
    /// When the last postmaster was seen dead with all descendants, ns since boot.
    pub last_death: Option<u64>,
    /// SIGTERM came: the keeper waits for the hand-over.
    #[serde(default)]
    pub terminating: bool,
    /// The programs that live.
    #[serde(default)]
    pub programs: Vec<Living>,
    /// The smallest run id that was never used.
    #[serde(default)]
    pub next_run: u64,
}

/// A program that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Living {
    /// Which.
    pub run: u64,
    /// What it is for.
    pub kind: Kind,
    /// It was killed, and something of it is not reaped yet.
    pub ending: bool,
}

/// A running postmaster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postmaster {
    /// Its process.
    pub pid: i32,
    /// How it was started.
    pub role: Role,
    /// It was promoted since.
    pub promoted: bool,
    /// PGDATA.
    pub data_dir: String,
    /// The postmaster itself is dead, descendants are left.
    pub dying: bool,
    /// What holds it when this keeper is silent. A keeper that does not say holds it alone.
    #[serde(default)]
    pub fence: Fence,
}

/// What fences a postmaster besides the keeper itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fence {
    /// The kernel too: its warden's timer was set before it could write, and reaches it.
    Full,
    /// The keeper alone.
    #[default]
    #[serde(other)]
    Partial,
}

/// Events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The postmaster *and every descendant* are reaped.
    Exited {
        /// How, in words.
        how: String,
        /// When, ns since boot.
        at: u64,
    },
    /// The keeper stops or kills Postgres by itself.
    Fenced {
        /// Why.
        why: String,
    },
    /// SIGTERM came: hand over. Answer with `status` within a second.
    Terminating {
        /// Latest moment for an orderly stop, ns since boot.
        deadline: u64,
    },
    /// A line of output of a program.
    Output {
        /// Which.
        run: u64,
        /// Without the newline; a carriage return ends a line as well.
        line: String,
    },
    /// A program ended.
    Finished {
        /// Which.
        run: u64,
        /// Exit code; `None` when killed by a signal.
        code: Option<i32>,
        /// How, in words.
        how: String,
    },
    /// A newer session took over; this connection ends.
    Superseded,
}

/// What the keeper tells a warden, the process that starts the postmaster and holds the kernel's deadman.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWarden {
    /// Set the timer; `None`: to nothing.
    Arm {
        /// When it ends the warden, ns since boot.
        at: Option<u64>,
    },
    /// Start the postmaster.
    Launch {
        /// How.
        role: Role,
        /// Postmaster and arguments.
        program: Program,
        /// PGDATA.
        data_dir: String,
        /// Lock files of its Unix sockets.
        socket_locks: Vec<String>,
    },
    /// Start a process that only waits, as a postmaster is started: what the kernel does here is tried out on it.
    Try,
}

/// What a warden says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWarden {
    /// The timer is set.
    Armed {
        /// When it ends the warden.
        at: Option<u64>,
    },
    /// The process was started.
    Started {
        /// Which.
        pid: i32,
        /// The signal of its parent's death reaches it.
        hears: bool,
        /// Lines for the log.
        said: Vec<String>,
    },
    /// It was not.
    Failed {
        /// Why, one line.
        why: String,
        /// And what to do about it.
        #[serde(default)]
        class: Refusal,
        /// Lines for the log.
        said: Vec<String>,
    },
}

/// Why nothing was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotStarted {
    /// One line.
    pub why: String,
    /// What to do about it.
    pub class: Refusal,
}

impl From<String> for NotStarted {
    fn from(why: String) -> NotStarted {
        NotStarted { why, class: Refusal::Other }
    }
}

/// Puts a frame into bytes.
///
/// # Errors
/// When it is larger than [`FRAME_MAX`].
pub fn encode(frame: &impl Serialize) -> Result<Vec<u8>, String> {
    let body = serde_json::to_vec(frame).map_err(|e| format!("encode a frame: {e}"))?;
    if body.len() > FRAME_MAX {
        return Err(format!("a frame of {} bytes is larger than {FRAME_MAX}", body.len()));
    }
    let mut out = Vec::with_capacity(body.len() + 4);
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// Takes the first whole frame out of `buffer`.
///
/// # Errors
/// A frame that is too large or not understood: the connection is of no more use.
pub fn decode<T: serde::de::DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, String> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > FRAME_MAX {
        return Err(format!("a frame of {length} bytes is larger than {FRAME_MAX}"));
    }
    if buffer.len() < length + 4 {
        return Ok(None);
    }
    let frame = serde_json::from_slice(&buffer[4..length + 4]).map_err(|e| format!("a frame is not understood: {e}"));
    buffer.drain(..length + 4);
    frame.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire_in_pieces() {
        let frame = Frame::Event(Event::Terminating { deadline: 7 });
        let bytes = encode(&frame).unwrap();
        let mut buffer = bytes[..5].to_vec();
        assert_eq!(decode::<Frame>(&mut buffer), Ok(None));
        buffer.extend_from_slice(&bytes[5..]);
        assert_eq!(decode::<Frame>(&mut buffer), Ok(Some(frame)));
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_frame_that_is_too_large_is_an_error_before_it_is_read() {
        let mut buffer = u32::MAX.to_be_bytes().to_vec();
        assert!(decode::<Frame>(&mut buffer).is_err());
    }
}
