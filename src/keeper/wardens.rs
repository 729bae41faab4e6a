//! The keeper's end of its wardens: orders out, words in, and an eye on the postmaster of each.
//!
//! Nothing here waits. Trying the kernel out at the start does, for two seconds at most: nothing is there to be fenced then.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::core::{End, In, Started, Ticket};
use super::protocol::{FromWarden, NotStarted, Refusal, ToWarden, decode, encode};
use super::{launch, process};

const SECOND: u64 = 1_000_000_000;
/// One is alive, and one or two that have failed may not be reaped yet.
const WARDENS_MAX: usize = 8;
/// Trying the kernel out takes 20 ms.
const TRY: u64 = 2 * SECOND;

struct Warden {
    ticket: Ticket,
    socket: UnixStream,
    incoming: Vec<u8>,
    /// Readable when the postmaster has ended.
    postmaster: Option<(i32, OwnedFd)>,
}

impl Warden {
    /// A stuck one that has too much to read already gets no more: it will not come to it.
    fn tell(&mut self, order: &ToWarden) -> Result<(), String> {
        let bytes = encode(order)?;
        self.socket.write_all(&bytes).map_err(|e| e.to_string())
    }

    fn words(&mut self) -> Vec<FromWarden> {
        let mut chunk = [0u8; 4096];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => self.incoming.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut words = Vec::new();
        while let Ok(Some(word)) = decode(&mut self.incoming) {
            words.push(word);
        }
        words
    }
}

/// All that are not reaped.
#[derive(Default)]
pub(super) struct Wardens {
    living: BTreeMap<i32, Warden>,
}

impl Wardens {
    /// Starts one and gives it its orders.
    ///
    /// # Errors
    /// Those that were ended are not dead yet, or the kernel refuses another one.
    pub fn start(&mut self, ticket: Ticket, orders: &[ToWarden]) -> Result<i32, NotStarted> {
        if self.living.len() >= WARDENS_MAX {
            return Err(NotStarted { why: format!("{WARDENS_MAX} wardens do not end"), class: Refusal::Busy });
        }
        let (pid, socket) = start()?;
        let mut warden = Warden { ticket, socket, incoming: Vec::new(), postmaster: None };
        for order in orders {
            if let Err(why) = warden.tell(order) {
                process::signal(pid, process::KILL);
                return Err(format!("the warden of Postgres: {why}").into());
            }
        }
        self.living.insert(pid, warden);
        Ok(pid)
    }

    /// Has one set its timer.
    pub fn arm(&mut self, pid: i32, at: Option<u64>) {
        if let Some(warden) = self.living.get_mut(&pid)
            && let Err(why) = warden.tell(&ToWarden::Arm { at })
        {
            tracing::warn!("the warden of Postgres (pid {pid}): {why}");
        }
    }

    /// Their processes.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.living.keys().copied()
    }

    /// What to poll.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let postmasters = self.living.values().filter_map(|w| w.postmaster.as_ref().map(|(_, fd)| fd.as_fd()));
        self.living.values().map(|w| w.socket.as_fd()).chain(postmasters)
    }

    /// What there is to know, in its order.
    pub fn news(&mut self) -> Vec<In> {
        let mut news = Vec::new();
        for (pid, warden) in &mut self.living {
            for word in warden.words() {
                let ticket = warden.ticket;
                let (result, said) = match word {
                    FromWarden::Armed { at } => {
                        news.push(In::Armed { warden: *pid, at });
                        continue;
                    }
                    FromWarden::Started { pid, hears, said } => {
                        // Nobody but this thread reaps it, so the number means the postmaster.
                        warden.postmaster = process::watch(pid).map(|fd| (pid, fd));
                        (Ok(Started { pid, hears }), said)
                    }
                    FromWarden::Failed { why, class, said } => (Err(NotStarted { why, class }), said),
                };
                said.iter().for_each(|line| tracing::info!("{line}"));
                news.push(In::Started { ticket, result });
            }
            if let Some((pid, _)) = warden.postmaster.take_if(|(_, fd)| readable_by(fd.as_fd(), 0)) {
                news.push(In::Ended { pid });
            }
        }
        news
    }

    /// A child was reaped, whoever it is.
    pub fn reaped(&mut self, pid: i32) {
        self.living.remove(&pid);
    }
}

fn start() -> Result<(i32, UnixStream), String> {
    let failed = |e: std::io::Error| format!("start the warden of Postgres: {e}");
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let child = process::warden(theirs.into()).map_err(failed)?;
    Ok((launch::pid_of(&child), ours))
}

/// Does the kernel do here what the deadman needs: end a warden by its timer, and tell its child? Some security modules
/// prevent it, and sandboxes do not know it.
///
/// # Errors
/// What it does not do, one line.
pub(super) fn try_out() -> Result<(), String> {
    let (pid, socket) = start()?;
    let mut warden = Warden { ticket: 0, socket, incoming: Vec::new(), postmaster: None };
    let tried = try_on(pid, &mut warden);
    // Whatever came of it, nobody of it stays.
    for left in [Some(pid), warden.postmaster.map(|(pid, _)| pid)].into_iter().flatten() {
        if !process::is_reaped(left) {
            process::signal(left, process::KILL);
            // In vain only for a process that no signal ends; the loop reaps it when it can be.
            let _its_end = ends_by(left, process::KILL, process::boot_now() + TRY);
        }
    }
    tried
}

fn try_on(pid: i32, warden: &mut Warden) -> Result<(), String> {
    let by = process::boot_now() + TRY;
    warden.tell(&ToWarden::Try)?;
    let (child, hears) = loop {
        if !readable_by(warden.socket.as_fd(), by) {
            return Err("a warden does not answer".to_owned());
        }
        match warden.words().pop() {
            Some(FromWarden::Started { pid, hears, .. }) => break (pid, hears),
            Some(FromWarden::Failed { why, .. }) => return Err(why),
            Some(FromWarden::Armed { .. }) => {}
            None => return Err("a warden has hung up".to_owned()),
        }
    };
    warden.postmaster = process::watch(child).map(|fd| (child, fd));
    warden.tell(&ToWarden::Arm { at: Some(process::boot_now()) })?;
    ends_by(pid, process::KILL, by).map_err(|how| format!("a timer does not end a warden: {how}"))?;
    ends_by(child, process::QUIT, by)
        .map_err(|how| format!("the death of a warden does not reach its child: {how}"))?;
    if hears { Ok(()) } else { Err("a child has more rights than its warden".to_owned()) }
}

/// A child of this process ends by this signal. It is reaped.
fn ends_by(pid: i32, signal: i32, by: u64) -> Result<(), String> {
    let ended = process::watch(pid).is_some_and(|fd| readable_by(fd.as_fd(), by));
    match process::reap_one(pid) {
        Some(End::Signal(number)) if ended && number == signal => Ok(()),
        Some(end) => Err(end.to_string()),
        None => Err("it lives".to_owned()),
    }
}

fn readable_by(fd: BorrowedFd<'_>, by: u64) -> bool {
    let left = by.saturating_sub(process::boot_now());
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout(left))), Ok(1))
}

fn timeout(ns: u64) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(ns / SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % SECOND).unwrap_or(0),
    }
}
