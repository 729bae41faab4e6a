//! The keeper's decisions as a value: inputs in, effects out, every instant an argument. No IO, no clock, no log.
//!
//! The shell (`server`) feeds what happened and carries out what comes back; a simulation does the same with a model of
//! Postgres and of the processes. Reading order: `words` (what comes in and goes out) → this file → `fence` (deadlines) →
//! `session` (who asks, and what) → `postmaster` (the life of one) → `deadman` (what the kernel does without us) →
//! `programs`.
//!
//! Rules that hold over any sequence of inputs:
//! * A deadline that has passed is judged before whatever comes in: a permission that arrives late rescues nobody, and the
//!   kill comes before every other effect of its step.
//! * One postmaster at a time. It is dead when it *and every descendant* are reaped; a backend with a statement in flight
//!   outlives a killed postmaster and acknowledges it. Only then `exited` is said and another one may start.
//! * The newest `hello` is the session. What older ones still say is dropped; their programs are ended, except callbacks,
//!   and except rewinds and restores, which the new session finds in the state. Start, removal and fill wait until those
//!   that are ended are reaped with all their children.

mod deadman;
mod fence;
mod postmaster;
mod programs;
mod session;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, VecDeque};

use self::deadman::Unarmed;
use self::fence::{Order, Terminating};
use self::postmaster::Postmaster;
use self::programs::Programs;
use self::session::{Asker, Link, Waiting};
pub use self::words::{Config, Conn, ControlState, End, Facts, In, Level, Out, Spawn, Started, Target, Ticket};
use super::protocol::{Event, Frame, Permission, StopMode};

const SECOND: u64 = 1_000_000_000;
/// While something dies, what is left of it is looked at, and killed again, this often; reaping itself is an input.
const DYING_LOOK: u64 = 10_000_000;
/// After a second of dying (a process in state D cannot be killed) it is looked at this often.
const DYING_LOOK_LATER: u64 = 100_000_000;
/// A keeper that a sidecar started, with nobody connected and nothing running, leaves after this time.
const IDLE: u64 = 60 * SECOND;
/// The same fence is told again after this time; the kill itself is repeated at every look.
const FENCE_SAID_AGAIN: u64 = 5 * SECOND;

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
    spawning: BTreeMap<Ticket, (Asker, u64)>,
    waiting: VecDeque<Waiting>,
    unarmed: VecDeque<Unarmed>,
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
            unarmed: VecDeque::new(),
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
        self.set_deadman(now);
        self.go_on(now);
        self.judge(now);
        self.look(now);
        self.may_leave(now);
        let mut out = std::mem::take(&mut self.out);
        // Stable: what is said goes last, kills first, the rest keeps its order.
        out.sort_by_key(|o| match o {
            Out::Kill { .. } => 0,
            Out::Say(..) => 2,
            Out::Arm { .. }
            | Out::Send { .. }
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
            at = at.min(self.fence_order(p, now).1).min(p.next_look()).min(self.deadman_wake(p, now));
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
            In::Spawned { ticket, result } => self.program_spawned(ticket, result),
            In::Warded { ticket, warden } => self.warded(ticket, warden),
            In::Started { ticket, result } => self.postmaster_started(ticket, result, now),
            In::Armed { warden, at } => self.armed(warden, at),
            In::Ended { pid } => self.ended(pid, now),
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
        let Some(p) = self.postmaster.as_mut().filter(|p| p.alive()) else { return self.judge_start(now) };
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
        self.serve_unarmed(now);
        self.hurry_warden(now);
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
