//! Processes: spawn, adopt, walk, signal, reap. The only file of the keeper that talks to the kernel without a net.
//!
//! A postmaster's children are sessions and groups of their own, so a group kill reaches none of them. The keeper is
//! therefore a subreaper (or PID 1): orphans become its own children, and `/proc/*/task/*/children` shows the rest.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::protocol::{Program, StopMode};

/// Nanoseconds since boot, the machine's sleep included.
pub(super) fn boot_now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}

/// Makes orphans our children, pages resident, and our priority high; the last two as far as we may.
pub(super) fn settle() -> io::Result<()> {
    // SAFETY: prctl with these arguments only sets a flag of this process.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    const MCL_ONFAULT: libc::c_int = 4;
    // SAFETY: both calls take plain numbers and change only this process; a refusal is harmless and expected without
    // privileges, so the results do not matter.
    unsafe {
        libc::mlockall(libc::MCL_CURRENT | MCL_ONFAULT);
        libc::setpriority(libc::PRIO_PROCESS, 0, -5);
    }
    Ok(())
}

/// The user at the other end of a Unix socket. A peer in another container has process id 0 here, which rustix's own type
/// for this answer cannot hold.
pub(super) fn peer_uid(socket: &UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `size` outlive the call and say truly how much may be written.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut size)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(peer.uid)
}

/// The signals the keeper takes from a descriptor: SIGCHLD, SIGTERM, SIGINT, SIGHUP.
fn our_signals() -> libc::sigset_t {
    // SAFETY: sigemptyset initializes the set before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// A descriptor that reports our signals; they are blocked otherwise.
pub(super) fn signal_fd() -> io::Result<OwnedFd> {
    let set = our_signals();
    // SAFETY: `set` is initialized and outlives both calls; a descriptor that is not negative is ours alone.
    unsafe {
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// The next pending signal, if there is one.
pub(super) fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut info = [0u8; 128];
    match rustix::io::read(fd, &mut info) {
        Ok(n) if n >= 4 => info.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)),
        Ok(_) | Err(_) => None,
    }
}

/// How a spawned process relates to the keeper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The postmaster: SIGQUIT when the keeper dies, output to ours. It and its children hold this lock open too: a keeper
    /// that comes after a killed one finds the directory in use until the last backend is gone.
    Postmaster(i32),
    /// A program: SIGKILL when the keeper dies, output to pipes.
    Program,
}

/// Marks programs we run (and their orphans), so that they are not taken for Postgres' own children.
const RUN_MARK: &str = "POSTGRES_KEEPER_RUN";

/// Starts a process in a session of its own. Must be called from the main thread: PDEATHSIG follows the thread.
pub(super) fn spawn(program: &Program, kind: Kind) -> io::Result<Child> {
    let (name, args) =
        program.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty argv"))?;
    let mut command = Command::new(name);
    command.args(args);
    for (key, value) in std::env::vars_os() {
        let text = key.to_string_lossy();
        if text.starts_with("PATRONI_") || text.starts_with("KUBERNETES_") || text == "NOTIFY_SOCKET" {
            command.env_remove(&key);
        } else if text == "PG_MALLOC_ARENA_MAX" {
            command.env_remove(&key).env("MALLOC_ARENA_MAX", value);
        }
    }
    command.envs(&program.env);
    if let Some(cwd) = &program.cwd {
        command.current_dir(cwd);
    }
    let death_signal = match kind {
        Kind::Postmaster(_) => {
            command.stdin(Stdio::null());
            libc::SIGQUIT
        }
        Kind::Program => {
            command.env(RUN_MARK, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            libc::SIGKILL
        }
    };
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec in a single-threaded child and calls only async-signal-safe
    // functions; `our_signals` works on the stack.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            let set = our_signals();
            libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
            if let Kind::Postmaster(lock) = kind {
                libc::fcntl(lock, libc::F_SETFD, 0);
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, death_signal, 0, 0, 0);
            if libc::getppid() as u32 != parent {
                return Err(io::Error::other("the keeper died"));
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Starts a copy of ourselves that outlives the caller: a session of its own, and this process ends.
pub(super) fn detach(args: &[String]) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).stdin(Stdio::null());
    // SAFETY: setsid is async-signal-safe and touches only the child.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command.spawn().map(|_child| ())
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
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

/// Reaps one dead child, whoever it is.
pub(super) fn reap() -> Option<(i32, End)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call; -1 and WNOHANG wait for nobody.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let end = if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Code(libc::WEXITSTATUS(status))
    };
    Some((pid, end))
}

/// Sends a signal; a process that is gone is no error.
pub(super) fn signal(pid: i32, number: i32) {
    if pid > 1 {
        // SAFETY: kill takes plain numbers; the pid is a child of ours that was not reaped, or was read from /proc below us.
        unsafe {
            libc::kill(pid, number);
        }
    }
}

/// The signal of a stop mode.
pub(super) fn stop_signal(mode: StopMode) -> i32 {
    match mode {
        StopMode::Smart => libc::SIGTERM,
        StopMode::Fast => libc::SIGINT,
        StopMode::Immediate => libc::SIGQUIT,
        StopMode::Kill => libc::SIGKILL,
    }
}

/// SIGHUP: the postmaster reads its files again.
pub(super) const RELOAD: i32 = libc::SIGHUP;
/// SIGUSR1: the postmaster looks for its `promote` file.
pub(super) const LOOK_FOR_PROMOTE: i32 = libc::SIGUSR1;
/// SIGCHLD.
pub(super) const CHILD: i32 = libc::SIGCHLD;
/// SIGHUP, to the keeper itself: ignored.
pub(super) const HANGUP: i32 = libc::SIGHUP;

/// The children of a process, threads included.
fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Every descendant of a process.
pub(super) fn descendants(pid: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut open = vec![pid];
    while let Some(next) = open.pop() {
        for child in children(next) {
            if found.insert(child) {
                open.push(child);
            }
        }
    }
    found
}

/// Our own children that are neither in `known` nor orphans of programs we ran: what a dead postmaster left, with all
/// their descendants. Zombies count: they are gone only when reaped.
pub(super) fn orphans(known: &BTreeSet<i32>) -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found = BTreeSet::new();
    for child in children(own) {
        if !known.contains(&child) && !marked(child) {
            found.insert(child);
            found.extend(descendants(child));
        }
    }
    found
}

fn marked(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|env| env.split(|b| *b == 0).any(|var| var.starts_with(RUN_MARK.as_bytes())))
}

/// The lock of a data directory, held as long as the file is open (OFD locks belong to the open file, and see through
/// PID namespaces, where Postgres' own interlock is blind).
#[derive(Debug)]
pub(super) struct DirLock {
    file: File,
}

impl DirLock {
    /// The descriptor, for a child that is to hold the lock too.
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Locks `PGDATA/PG_VERSION`; `Ok(None)` when there is no such file yet.
    pub fn take(data_dir: &Path) -> io::Result<Option<DirLock>> {
        let path = data_dir.join("PG_VERSION");
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        // SAFETY: flock is plain data; zero is a valid value for every field (l_pid must be 0 for OFD locks).
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        // SAFETY: the descriptor is open and `lock` outlives the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(DirLock { file }))
    }
}
