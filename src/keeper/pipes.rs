//! What programs print: read in bounded turns, cut into lines, and left in the pipe while nobody can take it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdout};

use super::launch;

/// Read from each pipe of a program at a time.
const CHUNK: usize = 16 << 10;
/// What a pipe of Linux holds: the output of a program that has ended is at most this.
const PIPE: usize = 64 << 10;
/// A line longer than this is cut: progress lines are short, and nobody reads the rest.
const LINE_MAX: usize = 8 << 10;

struct Pipe<R> {
    from: Option<R>,
    partial: Vec<u8>,
}

struct Piped {
    pid: i32,
    out: Pipe<ChildStdout>,
    err: Pipe<ChildStderr>,
    /// It was reaped: this much of what it wrote may still be there. What children of it write later is not waited for.
    rest: Option<usize>,
}

/// The pipes of all programs.
#[derive(Default)]
pub(super) struct Pipes {
    running: BTreeMap<u64, Piped>,
}

impl Pipes {
    /// Takes the pipes of a program that was started.
    pub fn insert(&mut self, run: u64, child: &mut Child) {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        for fd in [out.as_ref().map(|o| o.as_fd()), err.as_ref().map(|e| e.as_fd())].into_iter().flatten() {
            set_nonblocking(fd);
        }
        let (out, err) = (Pipe { from: out, partial: Vec::new() }, Pipe { from: err, partial: Vec::new() });
        self.running.insert(run, Piped { pid: launch::pid_of(child), out, err, rest: None });
    }

    /// The runs.
    pub fn runs(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    /// The first processes of all programs.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.running.values().filter(|r| r.rest.is_none()).map(|r| r.pid)
    }

    /// A run whose first process was not reaped: only then its number means it.
    pub fn lives(&self, run: u64) -> bool {
        self.running.get(&run).is_some_and(|r| r.rest.is_none())
    }

    /// The descriptors to poll.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.values().flat_map(|r| {
            [r.out.from.as_ref().map(|o| o.as_fd()), r.err.from.as_ref().map(|e| e.as_fd())].into_iter().flatten()
        })
    }

    /// A child was reaped, whoever it is.
    pub fn reaped(&mut self, pid: i32) {
        if let Some(r) = self.running.values_mut().find(|r| r.pid == pid && r.rest.is_none()) {
            r.rest = Some(2 * PIPE);
        }
    }

    /// Something that ended has not said everything.
    pub fn some_ended(&self) -> bool {
        self.running.values().any(|r| r.rest.is_some())
    }

    /// The next lines of a program, and whether it may say more. The last lines of one that was reaped come with `false`,
    /// and it is forgotten.
    pub fn read(&mut self, run: u64) -> (Vec<String>, Next) {
        let mut lines = Vec::new();
        let Some(r) = self.running.get_mut(&run) else { return (lines, Next::Later) };
        let read = r.out.read(&mut lines) + r.err.read(&mut lines);
        let next = match &mut r.rest {
            None if read == 0 => Next::Later,
            Some(rest) if read == 0 || *rest <= read => Next::Never,
            None => Next::More,
            Some(rest) => {
                *rest -= read;
                Next::More
            }
        };
        if next == Next::Never {
            r.out.flush(&mut lines);
            r.err.flush(&mut lines);
            self.running.remove(&run);
        }
        (lines, next)
    }
}

/// When there is more to read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    More,
    Later,
    Never,
}

impl<R: Read> Pipe<R> {
    fn read(&mut self, lines: &mut Vec<String>) -> usize {
        let mut chunk = [0u8; 4096];
        let mut total = 0;
        while total < CHUNK {
            let Some(from) = &mut self.from else { break };
            match from.read(&mut chunk) {
                Ok(0) => self.from = None,
                Ok(n) => {
                    total += n;
                    self.take(&chunk[..n], lines);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.from = None,
            }
        }
        total
    }

    fn take(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        for byte in bytes {
            let ends = matches!(byte, b'\n' | b'\r');
            if ends || self.partial.len() >= LINE_MAX {
                self.flush(lines);
            }
            if !ends {
                self.partial.push(*byte);
            }
        }
    }

    fn flush(&mut self, lines: &mut Vec<String>) {
        if !self.partial.is_empty() {
            lines.push(String::from_utf8_lossy(&self.partial).into_owned());
            self.partial.clear();
        }
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) {
    let flags = rustix::fs::fcntl_getfl(fd);
    let set = flags.and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK));
    if let Err(e) = set {
        tracing::warn!("a pipe stays blocking: {e}");
    }
}
