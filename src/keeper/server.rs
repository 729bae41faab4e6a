//! The shell: descriptors in, effects out. It decides nothing; the core does.
//!
//! Order of a turn: deadlines are judged with the facts as they are and their kills are sent; then children are reaped,
//! answers of the looker, programs and sockets are served. Files of a data directory are touched by the looker's thread
//! alone while a postmaster lives, log lines go through a queue: nothing here waits except `poll`, and the start of
//! something when nothing is to be fenced. Processes are started from this thread, because PDEATHSIG follows the thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tracing::{error, info, warn};

use super::Options;
use super::connection::Connection;
use super::core::{Config, Conn, Core, In, Level, Out, Spawn, Target, Ticket};
use super::launch;
use super::looker::Looker;
use super::pipes::{Next, Pipes};
use super::process::{self, boot_now};
use super::protocol::{Ask, Request, StopMode, ToWarden};
use super::wardens::Wardens;

const SECOND: u64 = 1_000_000_000;
/// A writer is started or promoted only with this much of its permission left: a start and its answer take less. Lease
/// tests run on a fifth.
const LEAST_LEFT: u64 = if cfg!(feature = "test-time-scale") { 2 * SECOND / 5 } else { 2 * SECOND };
/// So long before a writer is to be dead the kernel's deadman fires: PostgreSQL takes a fraction of it to end.
const DEADMAN: u64 = if cfg!(feature = "test-time-scale") { SECOND / 10 } else { SECOND / 2 };
/// Reads of one program in a turn; each is a chunk of each of its pipes.
const READS: usize = 2;
/// New connections in a turn.
const ACCEPTS: usize = 16;
/// Connections, closed ones with unsent frames included; of those that are open the core keeps fewer.
const CONNECTIONS_MAX: usize = 16;

/// The keeper.
pub(super) struct Keeper {
    core: Core,
    listener: UnixListener,
    signals: OwnedFd,
    timer: OwnedFd,
    connections: BTreeMap<Conn, Connection>,
    accepted: Conn,
    pipes: Pipes,
    wardens: Wardens,
    looker: Looker,
    /// The core has ended: what is unsent has until then.
    leaves: Option<u64>,
}

impl Keeper {
    /// Ready to run on this socket. `signals` is the descriptor of [`process::signal_fd`]; `deadman`: the kernel was tried
    /// out, and does what that needs.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor or a thread.
    pub fn new(options: &Options, listener: UnixListener, signals: OwnedFd, deadman: bool) -> io::Result<Keeper> {
        listener.set_nonblocking(true)?;
        let config = Config {
            boot_id: super::boot_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            grace: options.grace.saturating_mul(SECOND),
            exit_when_idle: options.exit_when_idle,
            least_left: LEAST_LEFT,
            deadman: deadman.then_some(DEADMAN),
        };
        Ok(Keeper {
            core: Core::new(config, boot_now()),
            listener,
            signals,
            timer: timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?,
            connections: BTreeMap::new(),
            accepted: 0,
            pipes: Pipes::default(),
            wardens: Wardens::default(),
            looker: Looker::start()?,
            leaves: None,
        })
    }

    /// Runs until there is nothing left to keep.
    ///
    /// # Errors
    /// When `poll` itself fails.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            self.step(In::Due);
            self.take_wardens();
            self.take_signals();
            self.take_looks();
            self.pump();
            self.serve();
            self.flush();
            let now = boot_now();
            if self.leaves.is_some_and(|at| now >= at || self.connections.values().all(Connection::is_flushed)) {
                return Ok(());
            }
            let mut wake = self.core.wake(now).min(self.leaves.unwrap_or(u64::MAX));
            if self.pipes.some_ended() && !self.session_is_behind() {
                wake = now;
            }
            self.wait_until(wake)?;
        }
    }

    fn step(&mut self, input: In) {
        for out in self.core.step(input, boot_now()) {
            self.carry_out(out);
        }
    }

    fn carry_out(&mut self, out: Out) {
        match out {
            Out::Send { conn, frame } => {
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.send(&frame);
                }
            }
            Out::Close(conn) => {
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.close();
                }
            }
            Out::Spawn { ticket, what } => self.spawn(ticket, what),
            Out::Arm { warden, at } => self.wardens.arm(warden, at),
            Out::Kill { target, mode } => self.kill(target, mode),
            Out::Hup(pid) => process::signal(pid, process::RELOAD),
            Out::WritePromote { ticket, data_dir } => {
                if let Err(why) = self.looker.promote(ticket, data_dir) {
                    self.step(In::PromoteWritten { ticket, result: Err(why) });
                }
            }
            Out::LookForPromote(pid) => process::signal(pid, process::LOOK_FOR_PROMOTE),
            Out::LookFacts { data_dir } => self.looker.look(data_dir),
            Out::LookLeft => {
                let left = process::orphans(&self.known());
                let runs = left.runs.into_keys().collect();
                self.step(In::Left { orphans: !left.postgres.is_empty(), runs });
            }
            Out::Leave => self.leaves = Some(boot_now() + SECOND),
            Out::Say(Level::Error, text) => error!("{text}"),
            Out::Say(Level::Warn, text) => warn!("{text}"),
            Out::Say(Level::Info, text) => info!("{text}"),
        }
    }

    fn spawn(&mut self, ticket: Ticket, what: Spawn) {
        match what {
            Spawn::Postmaster { role, program, data_dir, socket_locks, deadman } => {
                let arm = deadman.map(|at| ToWarden::Arm { at: Some(at) });
                let launch = ToWarden::Launch { role, program, data_dir, socket_locks };
                let orders: Vec<ToWarden> = arm.into_iter().chain([launch]).collect();
                match self.wardens.start(ticket, &orders) {
                    Ok(warden) => self.step(In::Warded { ticket, warden }),
                    Err(why) => self.step(In::Started { ticket, result: Err(why) }),
                }
            }
            Spawn::Program { run, kind, program } => {
                let result = launch::program(run, kind, program).map(|mut child| {
                    self.pipes.insert(run, &mut child);
                    launch::pid_of(&child)
                });
                self.step(In::Spawned { ticket, result });
            }
        }
    }

    /// Children that were started here and are not reaped, postmasters aside.
    fn known(&self) -> BTreeSet<i32> {
        self.pipes.pids().chain(self.wardens.pids()).collect()
    }

    fn kill(&self, target: Target, mode: StopMode) {
        let number = process::stop_signal(mode);
        match target {
            Target::Postmaster(pid) => process::signal(pid, number),
            Target::Tree(pid) | Target::Warden(pid) => process::signal_tree(pid, number),
            Target::Orphans => {
                let left = process::orphans(&self.known());
                left.postgres.into_iter().for_each(|pid| process::signal(pid, number));
            }
            Target::Run { run, pid } => {
                if self.pipes.lives(run) {
                    process::signal_tree(pid, number);
                }
                let left = process::orphans(&self.known());
                left.runs.into_iter().filter(|(of, _)| *of == run).for_each(|(_, pids)| {
                    pids.into_iter().for_each(|pid| process::signal(pid, number));
                });
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = process::next_signal(&self.signals) {
            match signal {
                process::CHILD | process::HANGUP => {}
                _ => self.step(In::Terminate),
            }
        }
        while let Some((pid, end)) = process::reap() {
            // What a warden said, and how its postmaster fared, comes before anybody's end.
            self.take_wardens();
            self.wardens.reaped(pid);
            self.pipes.reaped(pid);
            self.step(In::Reaped { pid, end });
        }
    }

    fn take_wardens(&mut self) {
        for news in self.wardens.news() {
            self.step(news);
        }
    }

    fn take_looks(&mut self) {
        self.looker.hush();
        while let Some(answer) = self.looker.next() {
            self.step(answer);
        }
    }

    fn session_is_behind(&self) -> bool {
        self.core.session().and_then(|conn| self.connections.get(&conn)).is_some_and(Connection::is_behind)
    }

    /// Passes on what programs print, as long as the session keeps up.
    fn pump(&mut self) {
        for run in self.pipes.runs() {
            for _ in 0..READS {
                if self.session_is_behind() {
                    return;
                }
                let (lines, next) = self.pipes.read(run);
                for line in lines {
                    self.step(In::Line { run, line });
                }
                match next {
                    Next::More => {}
                    Next::Later => break,
                    Next::Never => {
                        self.step(In::Drained { run });
                        break;
                    }
                }
            }
        }
    }

    /// Requests of all connections, those first that begin a session: what an older one still asks is then dropped.
    fn serve(&mut self) {
        for _ in 0..ACCEPTS {
            let Ok((stream, _)) = self.listener.accept() else { break };
            // Who was closed and does not read its last frames makes room.
            if self.connections.len() >= CONNECTIONS_MAX
                && let Some(deaf) = self.connections.iter().find(|(_, c)| !c.is_open()).map(|(conn, _)| *conn)
            {
                self.connections.remove(&deaf);
            }
            match Connection::new(stream) {
                Ok(connection) => {
                    self.accepted += 1;
                    self.connections.insert(self.accepted, connection);
                    self.step(In::Opened(self.accepted));
                }
                Err(why) => warn!("a connection is refused: {why}"),
            }
        }
        let mut asked: Vec<(Conn, VecDeque<Request>)> =
            self.connections.iter_mut().map(|(conn, c)| (*conn, c.requests().into())).collect();
        for (conn, requests) in &mut asked {
            while requests.front().is_some_and(|r| matches!(r.ask, Ask::Hello { .. })) {
                let Some(Request { id, ask }) = requests.pop_front() else { break };
                self.step(In::Request { conn: *conn, id, ask });
            }
        }
        for (conn, requests) in asked {
            for Request { id, ask } in requests {
                self.step(In::Request { conn, id, ask });
            }
        }
    }

    fn flush(&mut self) {
        let mut over = Vec::new();
        for (conn, connection) in &mut self.connections {
            let reads = connection.flush();
            // A client that closed its end is not waited for; one that we closed gets its last frames.
            if !reads || (!connection.is_open() && connection.is_flushed()) {
                over.push(*conn);
            }
        }
        let closed: Vec<Conn> = self.connections.iter().filter(|(_, c)| !c.is_open()).map(|(conn, _)| *conn).collect();
        for conn in &over {
            self.connections.remove(conn);
        }
        for conn in closed.into_iter().chain(over) {
            self.step(In::Closed(conn));
        }
    }

    fn wait_until(&self, wake: u64) -> io::Result<()> {
        let at = Timespec {
            tv_sec: i64::try_from(wake / SECOND).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(wake % SECOND).unwrap_or(0),
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(8);
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        fds.push(PollFd::new(&self.timer, PollFlags::IN));
        fds.push(PollFd::from_borrowed_fd(self.looker.fd(), PollFlags::IN));
        fds.extend(self.wardens.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        fds.extend(self.connections.values().map(|c| PollFd::from_borrowed_fd(c.fd(), c.interest())));
        if !self.session_is_behind() {
            fds.extend(self.pipes.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
