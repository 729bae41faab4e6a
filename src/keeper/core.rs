//! The keeper's decisions as a value: inputs in, effects out, every instant an argument. No IO, no clock, no log.
//!
//! The shell (`server`) feeds what happened and carries out what comes back; a simulation does the same with a model of
//! Postgres and of the processes. Reading order: the vocabulary (this file) → `fence` (deadlines) → `session` (who asks,
//! and what) → `postmaster` (the life of one) → `programs`.
//!
//! Rules that hold over any sequence of inputs:
//! * A deadline that has passed is judged before whatever comes in: a permission that arrives late rescues nobody, and the
//!   kill comes before every other effect of its step.
//! * One postmaster at a time. It is dead when it *and every descendant* are reaped; a backend with a statement in flight
//!   outlives a killed postmaster and acknowledges it. Only then `exited` is said and another one may start.
//! * The newest `hello` is the session. What older ones still say is dropped; their programs are ended, except callbacks,
//!   and except rewinds and restores, which the new session finds in the state. Start, removal and fill wait until those
//!   that are ended are reaped with all their children.

mod fence;
mod postmaster;
mod programs;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use self::fence::{Order, Terminating};
use self::postmaster::Postmaster;
use self::programs::Programs;
use self::session::{Asker, Link, Waiting};
use super::protocol::{Event, Frame, Kind, Permission, Program, Role, StopMode};

/// A connection, numbered by the shell in the order in which they were accepted.
pub type Conn = u64;
/// An effect that is answered.
pub type Ticket = u64;

const SECOND: u64 = 1_000_000_000;
/// While something dies, what is left of it is looked at, and killed again, this often; reaping itself is an input.
const DYING_LOOK: u64 = 10_000_000;
/// After a second of dying (a process in state D cannot be killed) it is looked at this often.
const DYING_LOOK_LATER: u64 = 100_000_000;
/// A keeper that a sidecar started, with nobody connected and nothing running, leaves after this time.
const IDLE: u64 = 60 * SECOND;
/// The same fence is told again after this time; the kill itself is repeated at every look.
const FENCE_SAID_AGAIN: u64 = 5 * SECOND;

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
        ask: super::protocol::Ask,
    },
    /// A connection is over.
    Closed(Conn),
    /// The answer to [`Out::Spawn`]: its process. Comes before [`In::Reaped`] of that process.
    Spawned {
        /// The effect's.
        ticket: Ticket,
        /// The process, or why there is none.
        result: Result<i32, String>,
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
    /// A postmaster, under the lock of its directory. The shell refuses when the directory is locked or when its signal
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
    /// Start something: [`In::Spawned`].
    Spawn {
        /// Comes back.
        ticket: Ticket,
        /// What.
        what: Spawn,
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

/// The keeper.
#[derive(Debug)]
pub struct Core {
    config: Config,
    began: u64,
    links: BTreeMap<Conn, Link>,
    session: Option<Conn>,
    /// Counts sessions; a program belongs to the one that asked for it.
    generation: u64,
    permission: Permission,
    evidence: u64,
    note: String,
    postmaster: Option<Postmaster>,
    last_death: Option<u64>,
    programs: Programs,
    tickets: Ticket,
    spawning: BTreeMap<Ticket, (Asker, Option<u64>)>,
    waiting: VecDeque<Waiting>,
    terminating: Option<Terminating>,
    fenced: Option<(Order, u64)>,
    looked_left: u64,
    dying_since: Option<u64>,
    idle_since: u64,
    leave: bool,
    left: bool,
    out: Vec<Out>,
}

impl Core {
    /// A keeper that begins.
    pub fn new(config: Config, now: u64) -> Core {
        Core {
            config,
            began: now,
            links: BTreeMap::new(),
            session: None,
            generation: 0,
            permission: Permission::None,
            evidence: 0,
            note: String::new(),
            postmaster: None,
            last_death: None,
            programs: Programs::default(),
            tickets: 0,
            spawning: BTreeMap::new(),
            waiting: VecDeque::new(),
            terminating: None,
            fenced: None,
            looked_left: 0,
            dying_since: None,
            idle_since: now,
            leave: false,
            left: false,
            out: Vec::new(),
        }
    }

    /// Takes one input and returns what is to be done. Deterministic and total; `now` never goes back.
    #[must_use]
    pub fn step(&mut self, input: In, now: u64) -> Vec<Out> {
        self.judge(now);
        self.take(input, now);
        self.go_on(now);
        self.judge(now);
        self.look(now);
        self.may_leave(now);
        let mut out = std::mem::take(&mut self.out);
        // Stable: what is said goes last, kills first, the rest keeps its order.
        out.sort_by_key(|o| match o {
            Out::Kill { .. } => 0,
            Out::Say(..) => 2,
            Out::Send { .. }
            | Out::Close(_)
            | Out::Spawn { .. }
            | Out::Hup(_)
            | Out::WritePromote { .. }
            | Out::LookForPromote(_)
            | Out::LookFacts { .. }
            | Out::LookLeft
            | Out::Leave => 1,
        });
        out
    }

    /// The latest instant of the next [`In::Due`], if nothing else happens before.
    #[must_use]
    pub fn wake(&self, now: u64) -> u64 {
        let mut at = u64::MAX;
        if let Some(p) = &self.postmaster {
            at = at.min(self.fence_order(p, now).1).min(p.next_look());
            // Once its moment has passed, nothing says any more that it is to be killed again: no reason to look.
            if let Some(again) = p.killed_at.filter(|_| p.alive()).map(|at| at + DYING_LOOK).filter(|at| *at > now) {
                at = at.min(again);
            }
        }
        if self.dying() {
            at = at.min(self.next_dying_look(now));
        }
        if let Some(first) = self.waiting.front() {
            at = at.min(first.until);
        }
        if self.postmaster.is_none() {
            if let Some(t) = self.terminating {
                at = at.min(t.end.saturating_sub(SECOND));
            }
            if self.config.exit_when_idle && self.session.is_none() && self.programs.is_empty() {
                at = at.min(self.idle_since + IDLE);
            }
        }
        // An instant that has passed was judged in the last step; asked for again at once, it would be a busy loop.
        at.max(now + 1)
    }

    /// The connection that is the session.
    #[must_use]
    pub fn session(&self) -> Option<Conn> {
        self.session
    }

    fn take(&mut self, input: In, now: u64) {
        match input {
            In::Opened(conn) => self.opened(conn),
            In::Request { conn, id, ask } => self.request(Asker { conn, id }, ask, now),
            In::Closed(conn) => self.closed(conn),
            In::Spawned { ticket, result } => self.spawned(ticket, result, now),
            In::Reaped { pid, end } => self.reaped(pid, end, now),
            In::Facts(facts) => {
                if let Some(p) = &mut self.postmaster {
                    p.saw(facts);
                }
            }
            In::Left { orphans, runs } => {
                self.programs.left(&runs);
                self.orphans(orphans, now);
            }
            In::PromoteWritten { ticket, result } => self.promote_written(ticket, result, now),
            In::Line { run, line } => self.tell(Event::Output { run, line }),
            In::Drained { run } => self.programs.drained(run),
            In::Terminate => self.terminate(now),
            In::Due => {}
        }
    }

    fn say(&mut self, level: Level, text: impl Into<String>) {
        self.out.push(Out::Say(level, text.into()));
    }

    fn tell(&mut self, event: Event) {
        if let Some(conn) = self.session {
            self.out.push(Out::Send { conn, frame: Frame::Event(event) });
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// SIGTERM is the order to hand over.
    fn terminate(&mut self, now: u64) {
        if self.terminating.is_some() {
            return;
        }
        let end = now.saturating_add(self.config.grace);
        self.say(Level::Info, format!("terminating: {} s to hand over", self.config.grace / SECOND));
        self.terminating = Some(Terminating { since: now, end, handed_over: false });
        self.tell(Event::Terminating { deadline: end });
    }

    fn fence_order(&self, p: &Postmaster, now: u64) -> (Option<Order>, u64) {
        let postgres = p.alive().then(|| p.view(now));
        fence::order(&fence::Facts { now, permission: self.permission, postgres, terminating: self.terminating })
    }

    /// What the deadlines demand of a living postmaster.
    fn judge(&mut self, now: u64) {
        // A sidecar that is gone hands nothing over any more.
        if let Some(t) = self.terminating.as_mut().filter(|t| t.handed_over && self.session.is_none()) {
            t.handed_over = false;
            t.since = now;
        }
        let permitted = self.permission != Permission::None;
        let Some(p) = self.postmaster.as_mut().filter(|p| p.alive()) else { return };
        p.watch(permitted, now);
        let Some(p) = &self.postmaster else { return };
        let (Some(order), Some(pid)) = (self.fence_order(p, now).0, p.pid) else { return };
        let Some(p) = &mut self.postmaster else { return };
        if order.mode == StopMode::Kill {
            if p.killed_at.is_some_and(|at| now < at + DYING_LOOK) {
                return;
            }
            p.killed_at = Some(now);
        }
        p.stopped = p.stopped.max(Some(order.mode));
        let target = target_of(pid, order.mode);
        self.out.push(Out::Kill { target, mode: order.mode });
        if self.fenced.is_some_and(|(said, at)| said == order && now < at + FENCE_SAID_AGAIN) {
            return;
        }
        self.fenced = Some((order, now));
        let Order { mode, why } = order;
        self.tell(Event::Fenced { why: format!("{why} ({mode:?} stop)") });
        self.say(Level::Error, format!("fence: {why}: {mode:?} stop of Postgres (pid {pid})"));
    }

    /// What became possible: programs that are over, requests that waited.
    fn go_on(&mut self, now: u64) {
        for (run, end) in self.programs.take_finished() {
            let code = match end {
                End::Code(code) => Some(code),
                End::Signal(_) => None,
            };
            self.tell(Event::Finished { run, code, how: end.to_string() });
        }
        self.serve_waiting(now);
    }

    /// Something was killed, or ended, and may have left processes.
    fn dying(&self) -> bool {
        self.postmaster.as_ref().is_some_and(|p| p.ended.is_some()) || self.programs.dying()
    }

    fn next_dying_look(&self, now: u64) -> u64 {
        let late = self.dying_since.is_some_and(|since| now >= since + SECOND);
        self.looked_left + if late { DYING_LOOK_LATER } else { DYING_LOOK }
    }

    fn look(&mut self, now: u64) {
        if let Some(p) = &mut self.postmaster
            && p.alive()
            && now >= p.next_look()
        {
            p.asked(now);
            let data_dir = p.data_dir.clone();
            self.out.push(Out::LookFacts { data_dir });
        }
        if !self.dying() {
            self.dying_since = None;
            return;
        }
        if self.dying_since.is_none() {
            self.dying_since = Some(now);
            self.looked_left = now;
            self.out.push(Out::LookLeft);
        } else if now >= self.next_dying_look(now) {
            self.looked_left = now;
            self.kill_runs(self.programs.to_kill());
            self.out.push(Out::LookLeft);
        }
    }

    fn kill_runs(&mut self, runs: Vec<(u64, i32)>) {
        let kill = |(run, pid)| Out::Kill { target: Target::Run { run, pid }, mode: StopMode::Kill };
        self.out.extend(runs.into_iter().map(kill));
    }

    fn may_leave(&mut self, now: u64) {
        if self.session.is_some() || self.postmaster.is_some() || !self.programs.is_empty() {
            self.idle_since = now;
        }
        if self.postmaster.is_some() || self.left {
            return;
        }
        let ends = self.terminating.is_some_and(|t| self.session.is_none() || now + SECOND >= t.end);
        let idle = self.config.exit_when_idle && now >= self.idle_since + IDLE;
        if self.leave || ends || idle {
            self.left = true;
            self.programs.kill_where(|_| true);
            self.kill_runs(self.programs.to_kill());
            self.out.push(Out::Leave);
        }
    }
}

/// From an immediate stop on, everybody is told: a postmaster that is stuck in a write to a full log passes nothing on.
fn target_of(pid: i32, mode: StopMode) -> Target {
    if mode >= StopMode::Immediate { Target::Tree(pid) } else { Target::Postmaster(pid) }
}
