//! Programs run for the sidecar: initdb, pg_basebackup, pg_rewind, scripts, callbacks.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{ChildStderr, ChildStdout};

use super::process::{self, DirLock, End, Kind};
use super::protocol::{Event, Program, StopMode};

/// Programs at a time; a sidecar runs one long task, a callback and a helper or two.
const PROGRAMS_MAX: usize = 16;
/// A line longer than this is cut: progress lines are short, and nobody reads the rest.
const LINE_MAX: usize = 8 << 10;

struct Running {
    pid: i32,
    slot: Option<String>,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    partial: [Vec<u8>; 2],
    ended: Option<End>,
    _lock: Option<DirLock>,
}

/// All running programs.
#[derive(Default)]
pub(super) struct Programs {
    running: BTreeMap<u64, Running>,
}

impl Programs {
    /// Starts one.
    pub fn start(&mut self, run: u64, program: &Program) -> Result<(), String> {
        if self.running.contains_key(&run) {
            return Err(format!("run {run} is already in use"));
        }
        if self.running.len() >= PROGRAMS_MAX {
            return Err(format!("{PROGRAMS_MAX} programs are running already"));
        }
        if program.slot.is_some() {
            for other in self.running.values().filter(|r| r.slot == program.slot) {
                kill_tree(other.pid);
            }
        }
        let lock = match &program.data_dir {
            Some(dir) => {
                let dir = Path::new(dir);
                let lock =
                    DirLock::take(dir).map_err(|e| format!("{} is in use by another keeper: {e}", dir.display()))?;
                super::postmaster::clear_stale_pid(dir)?;
                lock
            }
            None => None,
        };
        let name = program.argv.first().cloned().unwrap_or_default();
        let mut child = process::spawn(program, Kind::Program).map_err(|e| format!("start {name}: {e}"))?;
        if let Some(mut stdin) = child.stdin.take()
            && let Some(text) = &program.stdin
            && let Err(e) = stdin.write_all(text.as_bytes())
        {
            tracing::warn!("{name}: write its input: {e}");
        }
        let (out, err) = (child.stdout.take(), child.stderr.take());
        for fd in [out.as_ref().map(|o| o.as_fd()), err.as_ref().map(|e| e.as_fd())].into_iter().flatten() {
            set_nonblocking(fd);
        }
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let partial = [Vec::new(), Vec::new()];
        self.running
            .insert(run, Running { pid, slot: program.slot.clone(), out, err, partial, ended: None, _lock: lock });
        Ok(())
    }

    /// Kills one with all its children.
    pub fn cancel(&self, run: u64) {
        if let Some(r) = self.running.get(&run) {
            kill_tree(r.pid);
        }
    }

    /// The processes of all programs.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.running.values().map(|r| r.pid)
    }

    /// The descriptors to poll.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running
            .values()
            .flat_map(|r| [r.out.as_ref().map(|o| o.as_fd()), r.err.as_ref().map(|e| e.as_fd())].into_iter().flatten())
    }

    /// A child was reaped; true if it was one of ours.
    pub fn reaped(&mut self, pid: i32, end: End) -> bool {
        let found = self.running.values_mut().find(|r| r.pid == pid && r.ended.is_none());
        found.map(|r| r.ended = Some(end)).is_some()
    }

    /// Reads what there is to read; programs that ended and have said everything are reported.
    pub fn pump(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for (run, r) in &mut self.running {
            read_lines(&mut r.out, &mut r.partial[0], *run, &mut events);
            read_lines(&mut r.err, &mut r.partial[1], *run, &mut events);
        }
        let ended: Vec<u64> = self.running.iter().filter(|(_, r)| r.ended.is_some()).map(|(run, _)| *run).collect();
        for run in ended {
            let Some(mut r) = self.running.remove(&run) else { continue };
            for partial in &mut r.partial {
                flush(partial, run, &mut events);
            }
            let Some(end) = r.ended else { continue };
            let code = match end {
                End::Code(code) => Some(code),
                End::Signal(_) => None,
            };
            events.push(Event::Finished { run, code, how: end.to_string() });
        }
        events
    }

    /// No program is running.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

fn kill_tree(pid: i32) {
    let below = process::descendants(pid);
    for each in std::iter::once(pid).chain(below) {
        process::signal(each, process::stop_signal(StopMode::Kill));
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) {
    let flags = rustix::fs::fcntl_getfl(fd);
    let set = flags.and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK));
    if let Err(e) = set {
        tracing::warn!("a pipe stays blocking: {e}");
    }
}

fn read_lines(pipe: &mut Option<impl Read>, partial: &mut Vec<u8>, run: u64, events: &mut Vec<Event>) {
    let Some(reader) = pipe else { return };
    let mut chunk = [0u8; 4096];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => {
                *pipe = None;
                return;
            }
            Ok(n) => {
                for byte in &chunk[..n] {
                    if matches!(byte, b'\n' | b'\r') || partial.len() >= LINE_MAX {
                        flush(partial, run, events);
                    }
                    if !matches!(byte, b'\n' | b'\r') {
                        partial.push(*byte);
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => {
                *pipe = None;
                return;
            }
        }
    }
}

fn flush(partial: &mut Vec<u8>, run: u64, events: &mut Vec<Event>) {
    if !partial.is_empty() {
        events.push(Event::Output { run, line: String::from_utf8_lossy(partial).into_owned() });
        partial.clear();
    }
}
