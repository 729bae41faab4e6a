//! The loop: descriptors in, one look at everything, orders out.
//!
//! Single-threaded on purpose: the postmaster must be spawned from the main thread (PDEATHSIG), and nothing may be
//! between a deadline and the kill. Nothing in here waits except `poll`.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tracing::{error, info, warn};

use super::Options;
use super::fence::{self, Facts, Order, Terminating};
use super::postmaster::{self, Postmaster};
use super::process::{self, boot_now};
use super::programs::Programs;
use super::protocol::{Answer, Ask, Event, Permission, Role, State, StopMode};
use super::session::Connection;

const SECOND: u64 = 1_000_000_000;
/// While something dies, it is looked at this often; reaping itself is an event.
const DYING_LOOK: u64 = 10_000_000;
/// A writer is started or promoted only with this much of its permission left (design §7). Lease tests run on a fifth.
const LEAST_LEFT: u64 = if cfg!(feature = "test-time-scale") { 2 * SECOND / 5 } else { 2 * SECOND };
/// A keeper that a sidecar started, with nobody connected and nothing running, leaves after this time.
const IDLE: u64 = 60 * SECOND;
/// Connections at a time; the sidecar has one, a superseding sidecar another.
const CONNECTIONS_MAX: usize = 8;

/// The keeper.
pub(super) struct Keeper {
    options: Options,
    boot_id: String,
    listener: UnixListener,
    signals: OwnedFd,
    timer: OwnedFd,
    connections: Vec<Connection>,
    permission: Permission,
    evidence: u64,
    note: String,
    postmaster: Option<Postmaster>,
    last_death: Option<u64>,
    programs: Programs,
    terminating: Option<Terminating>,
    began: u64,
    idle_since: u64,
    leave: bool,
}

impl Keeper {
    /// Ready to run on this socket.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor or the subreaper flag.
    pub fn new(options: Options, listener: UnixListener) -> io::Result<Keeper> {
        listener.set_nonblocking(true)?;
        let signals = process::signal_fd()?;
        process::settle()?;
        Ok(Keeper {
            options,
            boot_id: super::boot_id(),
            listener,
            signals,
            timer: timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?,
            connections: Vec::new(),
            permission: Permission::None,
            evidence: 0,
            note: String::new(),
            postmaster: None,
            last_death: None,
            programs: Programs::default(),
            terminating: None,
            began: boot_now(),
            idle_since: boot_now(),
            leave: false,
        })
    }

    /// Runs until there is nothing left to keep.
    ///
    /// # Errors
    /// When `poll` itself fails.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            self.take_signals();
            self.serve_connections();
            for event in self.programs.pump() {
                self.tell(event);
            }
            self.look_at_death();
            let wake = self.fence();
            self.connections.retain_mut(Connection::flush);
            if self.may_leave() {
                return Ok(());
            }
            self.wait_until(wake)?;
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = process::next_signal(&self.signals) {
            match signal {
                process::CHILD | process::HANGUP => {}
                _ => self.terminate(),
            }
        }
        while let Some((pid, end)) = process::reap() {
            if let Some(p) = self.postmaster.as_mut().filter(|p| p.pid == pid) {
                info!("the postmaster (pid {pid}) ended: {end}");
                p.ended = Some((end, boot_now()));
            } else {
                self.programs.reaped(pid, end);
            }
        }
    }

    /// SIGTERM is the order to hand over.
    fn terminate(&mut self) {
        if self.terminating.is_some() {
            return;
        }
        let since = boot_now();
        let end = since + self.options.grace.saturating_mul(SECOND);
        info!("terminating: {} s to hand over", self.options.grace);
        self.terminating = Some(Terminating { since, end, handed_over: false });
        self.tell(Event::Terminating { deadline: end });
    }

    fn tell(&mut self, event: Event) {
        if let Some(session) = self.connections.iter_mut().find(|c| c.session) {
            session.event(event);
        }
    }

    fn serve_connections(&mut self) {
        while self.connections.len() < CONNECTIONS_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => match Connection::new(stream) {
                    Ok(connection) => self.connections.push(connection),
                    Err(why) => warn!("a connection is refused: {why}"),
                },
                Err(_) => break,
            }
        }
        let mut i = 0;
        while i < self.connections.len() {
            // Superseding removes connections; the index is looked up anew for every request.
            let Some(request) = self.connections[i].next_request() else {
                i += 1;
                continue;
            };
            let hello = matches!(request.ask, Ask::Hello { .. });
            if !hello && !self.connections[i].session {
                self.connections[i].reply(request.id, refused("say hello first"));
                continue;
            }
            let answer = self.answer(request.ask);
            self.connections[i].reply(request.id, answer.clone());
            if hello && matches!(answer, Answer::State(_)) {
                i = self.supersede(i);
            }
        }
    }

    /// The newest hello is the session; what older ones still had to say is dropped.
    fn supersede(&mut self, newest: usize) -> usize {
        let mut newest_connection = self.connections.remove(newest);
        newest_connection.session = true;
        for old in self.connections.iter_mut().filter(|c| c.session) {
            old.event(Event::Superseded);
            old.close();
        }
        if let Some(t) = &self.terminating {
            newest_connection.event(Event::Terminating { deadline: t.end });
        }
        self.connections.push(newest_connection);
        self.connections.len() - 1
    }

    fn answer(&mut self, ask: Ask) -> Answer {
        if let Some(t) = &mut self.terminating {
            t.handed_over = true;
        }
        let done = |result: Result<(), String>| match result {
            Ok(()) => Answer::Done,
            Err(why) => refused(why),
        };
        match ask {
            Ask::Hello { protocol, boot_id, client } => self.hello(protocol, &boot_id, &client),
            Ask::Status => Answer::State(Box::new(self.state())),
            Ask::Permit { permission, evidence, note } => done(self.permit(permission, evidence, note)),
            Ask::Start { role, program, data_dir, renewal, socket_locks } => {
                postmaster::clear_stale_locks(&socket_locks);
                done(self.start(role, &program, &data_dir, renewal))
            }
            Ask::Promote { renewal } => done(self.promote(renewal)),
            Ask::Stop { mode } => done(self.with_postmaster(|p| p.stop(mode))),
            Ask::Reload => done(self.with_postmaster(|p| p.reload())),
            Ask::Run { run, program } => done(self.programs.start(run, &program)),
            Ask::Cancel { run } => {
                self.programs.cancel(run);
                Answer::Done
            }
            Ask::Shutdown if self.postmaster.is_some() => refused("a postmaster is running"),
            Ask::Shutdown => {
                self.leave = true;
                Answer::Done
            }
        }
    }

    fn hello(&self, protocol: u32, boot_id: &str, client: &str) -> Answer {
        if protocol.abs_diff(super::protocol::PROTOCOL) > 1 {
            return refused(format!(
                "protocol {protocol} is not understood, this keeper ({}) speaks {}: use sidecar and keeper of the same \
                 release",
                env!("CARGO_PKG_VERSION"),
                super::protocol::PROTOCOL
            ));
        }
        if boot_id != self.boot_id {
            return refused("the sidecar runs on another machine: deadlines would mean nothing");
        }
        info!("session of {client}");
        Answer::State(Box::new(self.state()))
    }

    fn state(&self) -> State {
        State {
            protocol: super::protocol::PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            began: self.began,
            permission: self.permission,
            note: self.note.clone(),
            postgres: self.postmaster.as_ref().map(|p| super::protocol::Postmaster {
                pid: p.pid,
                role: p.role,
                promoted: p.promoted,
                data_dir: p.data_dir.display().to_string(),
                dying: p.ended.is_some(),
            }),
            last_death: self.last_death,
            terminating: self.terminating.is_some(),
        }
    }

    /// Only newer evidence replaces a permission; `none` always does, and is not undone by what it was taken back from.
    fn permit(&mut self, permission: Permission, evidence: u64, note: String) -> Result<(), String> {
        if note.len() > super::protocol::NOTE_MAX {
            return Err(format!("a note of {} bytes is too large", note.len()));
        }
        let newer = evidence > self.evidence || (evidence == self.evidence && self.permission != Permission::None);
        if permission != Permission::None && !newer {
            return Err("older evidence than that of the standing permission".to_owned());
        }
        if permission != self.permission && permission == Permission::None {
            info!("the permission is taken back");
        }
        self.permission = permission;
        self.evidence = self.evidence.max(evidence);
        self.note = note;
        Ok(())
    }

    /// May a writer begin now?
    fn writer_may_begin(&self, renewal: u64) -> Result<(), String> {
        match self.permission {
            Permission::None => Err("no permission for a writer".to_owned()),
            Permission::Unfenced { .. } => Ok(()),
            Permission::Writer { stop_at, .. } if stop_at < boot_now() + LEAST_LEFT => {
                Err("less than two seconds of the permission are left".to_owned())
            }
            // What ran before this keeper ended with the keeper before it.
            Permission::Writer { .. } if renewal <= self.last_death.unwrap_or(self.began) => {
                Err("the lease was not renewed since the last postmaster died".to_owned())
            }
            Permission::Writer { .. } => Ok(()),
        }
    }

    fn start(
        &mut self,
        role: Role,
        program: &super::protocol::Program,
        data_dir: &str,
        renewal: u64,
    ) -> Result<(), String> {
        if let Some(p) = &self.postmaster {
            return Err(format!("a postmaster (pid {}) is running already, or is not dead yet", p.pid));
        }
        if self.terminating.is_some() {
            return Err("the keeper is terminating".to_owned());
        }
        if role == Role::Primary {
            self.writer_may_begin(renewal)?;
        }
        let postmaster = Postmaster::start(role, program, data_dir)?;
        info!("started the postmaster (pid {}) as {role:?}", postmaster.pid);
        self.postmaster = Some(postmaster);
        Ok(())
    }

    fn promote(&mut self, renewal: u64) -> Result<(), String> {
        self.writer_may_begin(renewal)?;
        match &mut self.postmaster {
            Some(p) if p.ended.is_none() => p.promote(),
            Some(_) | None => Err("no postmaster is running".to_owned()),
        }
    }

    fn with_postmaster(&mut self, act: impl FnOnce(&mut Postmaster)) -> Result<(), String> {
        self.postmaster.as_mut().map(act).ok_or_else(|| "no postmaster is running".to_owned())
    }

    /// `exited` is said only when the postmaster and every descendant are reaped.
    fn look_at_death(&mut self) {
        let known: BTreeSet<i32> = self.programs.pids().collect();
        let now = boot_now();
        let Some(p) = &self.postmaster else { return };
        if p.ended.is_some() && p.gone(now, &known) {
            let how = p.ended.map_or_else(String::new, |(end, _)| end.to_string());
            let at = boot_now();
            self.postmaster = None;
            self.last_death = Some(at);
            self.idle_since = at;
            self.tell(Event::Exited { how, at });
        }
    }

    /// A sidecar that is gone hands nothing over any more (design §7: "gone or silent for 1 s").
    fn look_at_handover(&mut self, now: u64) {
        let session = self.connections.iter().any(|c| c.session);
        if let Some(t) = self.terminating.as_mut().filter(|t| t.handed_over && !session) {
            t.handed_over = false;
            t.since = now;
        }
    }

    /// Carries the fence's order out and says when to look again.
    fn fence(&mut self) -> u64 {
        let now = boot_now();
        self.look_at_handover(now);
        let permitted = self.permission != Permission::None;
        let dying = self.postmaster.as_ref().is_some_and(|p| p.ended.is_some());
        let postgres = self.postmaster.as_mut().filter(|p| p.ended.is_none()).map(|p| p.facts(now, permitted));
        let facts = Facts { now, permission: self.permission, postgres, terminating: self.terminating };
        let (order, wake) = fence::order(&facts);
        if let (Some(Order { mode, why }), Some(p)) = (order, &mut self.postmaster) {
            error!("fence: {why}: {mode:?} stop of Postgres (pid {})", p.pid);
            p.stop(mode);
            self.tell(Event::Fenced { why: format!("{why} ({mode:?} stop)") });
            if mode == StopMode::Kill {
                return now + DYING_LOOK;
            }
        }
        if dying { now + DYING_LOOK } else { wake }
    }

    fn may_leave(&mut self) -> bool {
        if self.postmaster.is_some() {
            return false;
        }
        let now = boot_now();
        let session = self.connections.iter().any(|c| c.session);
        if session || !self.programs.is_empty() {
            self.idle_since = now;
        }
        if self.leave {
            return self.connections.iter().all(Connection::is_flushed);
        }
        match self.terminating {
            Some(t) => !session || now + SECOND >= t.end,
            None => self.options.exit_when_idle && now >= self.idle_since + IDLE,
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
        fds.extend(self.connections.iter().map(|c| PollFd::from_borrowed_fd(c.fd(), c.interest())));
        fds.extend(self.programs.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn refused(why: impl Into<String>) -> Answer {
    Answer::Refused { why: why.into() }
}
