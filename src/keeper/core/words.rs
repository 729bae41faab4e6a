//! What the core is told and what it wants done: plain values, and the only ones that pass between it and its shell.

use std::collections::BTreeSet;

use super::super::protocol::{Ask, Frame, Kind, NotStarted, Program, Role, StopMode};

/// A connection, numbered by the shell in the order in which they were accepted.
pub type Conn = u64;
/// An effect that is answered.
pub type Ticket = u64;

/// What does not change in the life of a keeper.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel's name for this boot; a client of another boot has another clock.
    pub boot_id: String,
    /// Version of the program.
    pub version: String,
    /// The keeper's own process.
    pub pid: u32,
    /// Between SIGTERM and the end of the container, in ns.
    pub grace: u64,
    /// Leave when nobody is connected and nothing runs.
    pub exit_when_idle: bool,
    /// A writer is started or promoted only with this much of its permission left, in ns.
    pub least_left: u64,
    /// So long before a writer is to be dead the kernel's deadman fires, in ns; `None`: there is none on this machine, as
    /// was found out by trying.
    pub deadman: Option<u64>,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Exit code.
    Code(i32),
    /// Signal number.
    Signal(i32),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Code(code) => write!(f, "exit code {code}"),
            End::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// "Database cluster state" of pg_control, as far as the keeper distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlState {
    /// In archive recovery, or shut down in it.
    InRecovery,
    /// Shutting down, or shut down.
    ShuttingDown,
    /// Anything else, unreadable included.
    Other,
}

/// What was seen in the files of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// When the look began, ns since boot: facts are as old as that.
    pub at: u64,
    /// pg_control.
    pub control: ControlState,
    /// standby.signal is there.
    pub standby_signal: bool,
}

/// A postmaster that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its process.
    pub pid: i32,
    /// The signal of its parent's death reaches it: the kernel has not cleared that, as it does for programs that run with
    /// more rights than their parent.
    pub hears: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum In {
    /// Somebody connected.
    Opened(Conn),
    /// Somebody asks. Of what waits in several connections, those that begin with `hello` come first.
    Request {
        /// Who.
        conn: Conn,
        /// The id of the request; it comes back in the reply.
        id: u64,
        /// What.
        ask: Ask,
    },
    /// A connection is over.
    Closed(Conn),
    /// The answer to [`Out::Spawn`] of a program: its process. Comes before [`In::Reaped`] of that process.
    Spawned {
        /// The effect's.
        ticket: Ticket,
        /// The process, or why there is none.
        result: Result<i32, String>,
    },
    /// The first answer to [`Out::Spawn`] of a postmaster: the warden that will start it. Comes before everything else of it.
    Warded {
        /// The effect's.
        ticket: Ticket,
        /// The warden's process.
        warden: i32,
    },
    /// The second one: what the warden says, or why there is none. Comes before [`In::Reaped`] of either process.
    Started {
        /// The effect's.
        ticket: Ticket,
        /// The postmaster, or why there is none.
        result: Result<Started, NotStarted>,
    },
    /// A warden has set its timer as it was told ([`Out::Arm`], [`Spawn::Postmaster`]).
    Armed {
        /// The warden.
        warden: i32,
        /// When it fires.
        at: Option<u64>,
    },
    /// The postmaster has ended, and was not reaped: its warden has to let go of it first.
    Ended {
        /// The postmaster.
        pid: i32,
    },
    /// A child was reaped, whoever it is.
    Reaped {
        /// Its process.
        pid: i32,
        /// How it ended.
        end: End,
    },
    /// The answer to [`Out::LookFacts`]; late is better than wrong, never is possible (a hung volume).
    Facts(Facts),
    /// The answer to [`Out::LookLeft`].
    Left {
        /// Processes are left that are neither programs nor theirs: a dead postmaster's.
        orphans: bool,
        /// The runs of which a process other than the first is left.
        runs: BTreeSet<u64>,
    },
    /// The answer to [`Out::WritePromote`].
    PromoteWritten {
        /// The effect's.
        ticket: Ticket,
        /// Is `PGDATA/promote` there?
        result: Result<(), String>,
    },
    /// A program wrote a line.
    Line {
        /// Which.
        run: u64,
        /// Without its end.
        line: String,
    },
    /// A reaped program has said everything: no line of it follows. Comes after its [`In::Reaped`], once.
    Drained {
        /// Which.
        run: u64,
    },
    /// SIGTERM: the order to hand over.
    Terminate,
    /// It is time to look ([`Core::wake`]); also fed before anything else whenever the shell wakes.
    Due,
}

/// What is to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spawn {
    /// A postmaster, by a warden and under the lock of its directory. The shell refuses when the directory is locked or when its signal
    /// files do not fit the role, and removes a stale postmaster.pid and stale socket locks.
    Postmaster {
        /// How.
        role: Role,
        /// Postmaster and arguments.
        program: Program,
        /// PGDATA.
        data_dir: String,
        /// Lock files of its sockets.
        socket_locks: Vec<String>,
        /// The warden sets its timer to this before anything else.
        deadman: Option<u64>,
    },
    /// A program, under the lock of the directory it names.
    Program {
        /// Its mark: orphans of it are recognised by that.
        run: u64,
        /// What for.
        kind: Kind,
        /// What.
        program: Program,
    },
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The postmaster alone: it passes the order on.
    Postmaster(i32),
    /// The postmaster first, then every descendant: one that is stuck passes nothing on.
    Tree(i32),
    /// A warden with every descendant.
    Warden(i32),
    /// What a dead postmaster left.
    Orphans,
    /// A program with every descendant, those that lost their parent included.
    Run {
        /// Its mark.
        run: u64,
        /// Its first process.
        pid: i32,
    },
}

/// How loud something is said. Error: a person must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words say it")]
pub enum Level {
    Error,
    Warn,
    Info,
}

/// What is to be done. All of one step are independent of each other, and are begun in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Put a frame on a connection. No answer.
    Send {
        /// Which.
        conn: Conn,
        /// What.
        frame: Frame,
    },
    /// Send what was put on it, then close it. [`In::Closed`] may follow; nothing depends on it.
    Close(Conn),
    /// Start something: [`In::Spawned`] for a program, [`In::Warded`] and [`In::Started`] for a postmaster.
    Spawn {
        /// Comes back.
        ticket: Ticket,
        /// What.
        what: Spawn,
    },
    /// Have a warden set its timer: [`In::Armed`], unless it is stuck. `None`: to nothing.
    Arm {
        /// The warden.
        warden: i32,
        /// When it fires, ns since boot.
        at: Option<u64>,
    },
    /// Send the signal of a stop mode. Who is gone already is no error; [`In::Reaped`] tells the rest.
    Kill {
        /// Whom.
        target: Target,
        /// Which.
        mode: StopMode,
    },
    /// SIGHUP.
    Hup(i32),
    /// Write `PGDATA/promote` beside the loop: [`In::PromoteWritten`], or never.
    WritePromote {
        /// Comes back.
        ticket: Ticket,
        /// PGDATA.
        data_dir: String,
    },
    /// SIGUSR1: the postmaster looks for its `promote` file.
    LookForPromote(i32),
    /// Read the files of a data directory beside the loop: [`In::Facts`], or never.
    LookFacts {
        /// PGDATA.
        data_dir: String,
    },
    /// Look for what is left of the dying: [`In::Left`], at once.
    LookLeft,
    /// End the process, after what was put on the connections has been sent or a second has passed.
    Leave,
    /// A line for the log, after everything else.
    Say(Level, String),
}
