//! The warden: the postmaster's parent, and a timer of the kernel that ends it.
//!
//! It is a process of its own with one thread. When the timer ends, the kernel kills it, stopped and starved as it may be,
//! and sends SIGQUIT to the postmaster, whose parent is gone. So a postmaster does not outlive its permission by more than
//! that, even when the sidecar, the keeper and this process hang, all three. It is not PID 1 of its container, which no
//! signal of its own would end, and it adopts nobody: what loses its parent comes to the keeper.
//!
//! It never reaps. When its child has ended, it ends too; the child then comes to the keeper, which reaps it. So until the
//! keeper has reaped the postmaster, its number means nobody else.

#![allow(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};

use super::protocol::{FromWarden, NotStarted, ToWarden, decode, encode};
use super::{launch, process};

const SECOND: u64 = 1_000_000_000;

/// The program `postgres-keeper warden`: the keeper's socket is its standard input.
///
/// # Errors
/// One line, for the log: something that a warden needs is not there.
pub(super) fn run() -> Result<(), String> {
    let signals = process::signal_fd().map_err(|e| format!("warden: take signals: {e}"))?;
    process::hurry();
    // It was started by the name of its file in /proc, which tells nobody what it is; a refusal tells no more.
    let _shown_otherwise = rustix::thread::set_name(c"postgres-warden");
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("warden: {e}"))?;
    let timer = Timer::new().map_err(|e| format!("warden: a timer of the kernel: {e}"))?;
    Warden { keeper: UnixStream::from(socket), incoming: Vec::new(), timer, child: None }.serve(&signals)
}

/// The program `postgres-keeper wait`: waits for the signal that ends it.
pub(super) fn wait() -> ExitCode {
    loop {
        std::thread::park();
    }
}

struct Warden {
    keeper: UnixStream,
    incoming: Vec<u8>,
    timer: Timer,
    child: Option<i32>,
}

impl Warden {
    /// Until there is nothing left to do: the child has ended, or never began, or the keeper is gone.
    fn serve(mut self, signals: &impl std::os::fd::AsFd) -> Result<(), String> {
        loop {
            let mut fds = [PollFd::new(&self.keeper, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(say("wait", e)),
            }
            let (asked, signalled) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if signalled {
                // An order to stop is the keeper's affair: a whole group of processes may have got it.
                while process::next_signal(signals).is_some() {}
                if self.child.is_some_and(process::has_ended) {
                    return Ok(());
                }
            }
            if asked && !self.orders()? {
                return Ok(());
            }
        }
    }

    /// Carries out what is there. False: that was all.
    fn orders(&mut self) -> Result<bool, String> {
        let mut chunk = [0u8; 4096];
        match self.keeper.read(&mut chunk) {
            Ok(0) => return Ok(false),
            Ok(n) => self.incoming.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(say("read", e)),
        }
        while let Some(order) = decode::<ToWarden>(&mut self.incoming)? {
            match order {
                ToWarden::Arm { at } => {
                    self.timer.set(at).map_err(|e| say("set the timer", e))?;
                    self.answer(&FromWarden::Armed { at })?;
                }
                ToWarden::Launch { role, program, data_dir, socket_locks } => {
                    let mut said = Vec::new();
                    let made = launch::postmaster(role, &program, &data_dir, &socket_locks, &mut said);
                    if !self.started(made, said)? {
                        return Ok(false);
                    }
                }
                ToWarden::Try => {
                    let made =
                        process::waiter().map(|child| launch::pid_of(&child)).map_err(|e| say("start", e).into());
                    if !self.started(made, Vec::new())? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    fn started(&mut self, made: Result<i32, NotStarted>, said: Vec<String>) -> Result<bool, String> {
        let answer = match made {
            Ok(pid) => {
                self.child = Some(pid);
                FromWarden::Started { pid, hears: process::hears(pid), said }
            }
            Err(NotStarted { why, class }) => FromWarden::Failed { why, class, said },
        };
        self.answer(&answer)?;
        // It may have ended before the first signal was waited for.
        Ok(self.child.is_some_and(|pid| !process::has_ended(pid)))
    }

    fn answer(&mut self, answer: &FromWarden) -> Result<(), String> {
        self.keeper.write_all(&encode(answer)?).map_err(|e| say("answer", e))
    }
}

fn say(what: &str, e: impl Display) -> String {
    format!("warden: {what}: {e}")
}

/// A timer on the clock that goes on while the machine sleeps. Its signal is SIGKILL, to this process.
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> io::Result<Timer> {
        // SAFETY: sigevent is plain data, for which zero is a valid value of every field.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both outlive the call, which writes the timer's name into `timer` and reads `event`.
        if unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Timer(timer))
    }

    /// To this instant, ns since boot; at once if that has passed. `None`: to nothing.
    fn set(&self, at: Option<u64>) -> io::Result<()> {
        // Zero would mean nothing.
        let at = at.map_or(0, |at| at.max(1));
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(at / SECOND).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::try_from(at % SECOND).unwrap_or(0),
        };
        let spec = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the timer is ours, `spec` outlives the call, and nobody asks for the old value.
        if unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &raw const spec, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
