//! Processes: spawn, adopt, walk, signal, reap. The only file of the keeper that talks to the kernel without a net.
//!
//! A postmaster's children are sessions and groups of their own, so a group kill reaches none of them. The keeper is
//! therefore a subreaper (or PID 1): orphans become its own children, and `/proc/*/task/*/children` shows the rest.

#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::core::End;
use super::protocol::{NotStarted, Program, Refusal, StopMode};

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
    hurry();
    Ok(())
}

/// Makes pages resident and our priority high, as far as we may.
pub(super) fn hurry() {
    const MCL_ONFAULT: libc::c_int = 4;
    // SAFETY: both calls take plain numbers and change only this process; a refusal is harmless and expected without
    // privileges, so the results do not matter.
    unsafe {
        libc::mlockall(libc::MCL_CURRENT | MCL_ONFAULT);
        libc::setpriority(libc::PRIO_PROCESS, 0, -5);
    }
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
pub(super) fn next_signal(fd: &impl AsFd) -> Option<i32> {
    let mut info = [0u8; 128];
    match rustix::io::read(fd, &mut info) {
        Ok(n) if n >= 4 => info.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)),
        Ok(_) | Err(_) => None,
    }
}

/// How a spawned process relates to its parent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The postmaster: SIGQUIT when its parent, the warden, dies; output to ours, and never waiting for its reader.
    Postmaster,
    /// A program of this run: SIGKILL when the keeper dies, output to pipes.
    Program(u64),
}

/// Marks programs we run (and their orphans) with their run, so that they are not taken for Postgres' own children.
const RUN_MARK: &str = "POSTGRES_KEEPER_RUN";

/// So often the children of a process that is signalled are listed, at most: one list more than what forks while it lives.
const LISTS_MAX: u32 = 16;

/// Starts a process in a session of its own. Must be called from the main thread: PDEATHSIG follows the thread.
///
/// The process and its children hold the lock of the directory from here on, and nobody else does: it is free when the
/// last of them is gone, also for a keeper that comes after a killed one.
pub(super) fn spawn(program: &Program, kind: Kind, lock: Option<&DirLock>) -> io::Result<Child> {
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
        Kind::Postmaster => {
            let own = (io::stdout(), io::stderr());
            command.stdin(Stdio::null()).stdout(unblocked(own.0.as_fd())).stderr(unblocked(own.1.as_fd()));
            libc::SIGQUIT
        }
        Kind::Program(run) => {
            let mut mark = String::new();
            write!(mark, "{run}").map_err(io::Error::other)?;
            command.env(RUN_MARK, mark).stdin(input(program)?).stdout(Stdio::piped()).stderr(Stdio::piped());
            libc::SIGKILL
        }
    };
    in_a_session(&mut command, death_signal, lock);
    command.spawn()
}

/// Starts a warden, with this socket as its standard input: SIGKILL when the keeper dies. From the main thread as well.
pub(super) fn warden(socket: OwnedFd) -> io::Result<Child> {
    // Also where the file was replaced since this program was started.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("postgres-keeper").arg("warden").stdin(socket);
    in_a_session(&mut command, libc::SIGKILL, None);
    command.spawn()
}

/// What a warden starts to try the kernel out: a process that waits for a signal, under the same conditions as a postmaster.
pub(super) fn waiter() -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("postgres-keeper").arg("wait").stdin(Stdio::null());
    in_a_session(&mut command, libc::SIGQUIT, None);
    command.spawn()
}

/// The child gets a session of its own, its signals back, the lock, and a signal when the thread that starts it is gone.
fn in_a_session(command: &mut Command, death_signal: i32, lock: Option<&DirLock>) {
    let parent = std::process::id();
    let lock = lock.map(DirLock::fd);
    // SAFETY: the closure runs between fork and exec in a single-threaded child and calls only async-signal-safe
    // functions; `our_signals` works on the stack.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            let set = our_signals();
            libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
            if let Some(lock) = lock {
                libc::fcntl(lock, libc::F_SETFD, 0);
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, death_signal, 0, 0, 0);
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// The same place to write to, for a process that must not wait there. PostgreSQL says that it was told to stop before it
/// tells its children: with a full pipe they would go on for as long as nobody reads.
///
/// Whether a write waits belongs to an open file, not to a descriptor, and ours is shared with others: it is opened anew. A
/// socket cannot be; where it is shared, everybody's lines are dropped rather than waited for.
fn unblocked(fd: BorrowedFd<'_>) -> Stdio {
    use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, open};
    let Ok(stat) = fstat(fd) else { return Stdio::inherit() };
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        return Stdio::inherit();
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if let Ok(own) = open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty()) {
        return own.into();
    }
    match fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK)) {
        Ok(()) | Err(_) => Stdio::inherit(),
    }
}

/// Has this child ended? It is not reaped by asking.
pub(super) fn has_ended(pid: i32) -> bool {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Pid::from_raw(pid).is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), how), Ok(Some(_))))
}

/// Is this no child of ours (any more)?
pub(super) fn is_reaped(pid: i32) -> bool {
    !children(std::process::id().cast_signed()).contains(&pid)
}

/// Readable when this process has ended, whoever reaps it.
pub(super) fn watch(pid: i32) -> Option<OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Does the signal of its parent's death reach this child? The kernel clears it for a program that runs with more rights than
/// its parent (set-user-ID, file capabilities, a change of domain by a security module), and says so to the program.
pub(super) fn hears(pid: i32) -> bool {
    /// The kernel fills the list in a moment after the old program is gone; seen: at once.
    const LOOKS: u32 = 100;
    for _ in 0..LOOKS {
        if let Some(secure) = fs::read(format!("/proc/{pid}/auxv")).ok().and_then(|list| secure(&list)) {
            return !secure;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    false
}

/// The kernel's word to a program about more rights, out of its list of pairs; `None`: the list is not there yet.
fn secure(auxv: &[u8]) -> Option<bool> {
    const WORD: usize = size_of::<libc::c_ulong>();
    let word = |bytes: &[u8]| bytes.first_chunk::<WORD>().map(|b| libc::c_ulong::from_ne_bytes(*b));
    auxv.chunks_exact(2 * WORD)
        .find_map(|pair| (word(pair)? == libc::AT_SECURE).then(|| word(&pair[WORD..])).flatten().map(|v| v != 0))
}

/// What the program reads: from memory, so that a program that does not read makes nobody wait.
fn input(program: &Program) -> io::Result<Stdio> {
    let Some(text) = &program.stdin else { return Ok(Stdio::null()) };
    let mut file = File::from(rustix::fs::memfd_create("stdin", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
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

/// Reaps one dead child, whoever it is.
pub(super) fn reap() -> Option<(i32, End)> {
    reap_of(-1)
}

/// Reaps this child, if it is dead.
pub(super) fn reap_one(pid: i32) -> Option<End> {
    reap_of(pid).map(|(_, end)| end)
}

fn reap_of(whom: i32) -> Option<(i32, End)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call; WNOHANG waits for nobody.
    let pid = unsafe { libc::waitpid(whom, &mut status, libc::WNOHANG) };
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

/// Sends a signal to a process first, and to everything below it, down to what it starts meanwhile. Whoever is to be killed
/// stands still first: what a process starts between a look at its children and its end would get away.
pub(super) fn signal_tree(pid: i32, number: i32) {
    signal(pid, if number == KILL { libc::SIGSTOP } else { number });
    if number == KILL {
        stands(pid);
    }
    let mut told = BTreeSet::new();
    for _ in 0..LISTS_MAX {
        let more: Vec<i32> = descendants(pid).into_iter().filter(|each| told.insert(*each)).collect();
        if more.is_empty() {
            break;
        }
        more.into_iter().for_each(|each| signal(each, number));
    }
    if number == KILL {
        signal(pid, KILL);
    }
}

/// A process that is told to stop does so within microseconds, unless it is in state D: then it starts nothing either.
fn stands(pid: i32) {
    const LOOKS: u32 = 50;
    for _ in 0..LOOKS {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        if state.is_none_or(|state| "tTZXx".contains(state)) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
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

/// SIGKILL.
pub(super) const KILL: i32 = libc::SIGKILL;
/// SIGQUIT.
pub(super) const QUIT: i32 = libc::SIGQUIT;
/// SIGHUP: the postmaster reads its files again.
pub(super) const RELOAD: i32 = libc::SIGHUP;
/// SIGUSR1: the postmaster looks for its `promote` file.
pub(super) const LOOK_FOR_PROMOTE: i32 = libc::SIGUSR1;
/// SIGCHLD.
pub(super) const CHILD: i32 = libc::SIGCHLD;
/// SIGHUP, to the keeper itself: ignored.
pub(super) const HANGUP: i32 = libc::SIGHUP;

/// Can the children of a process be listed at all? Where they cannot (sandboxed runtimes, kernels without the file),
/// "nothing is left of the dead postmaster" would be a guess.
///
/// # Errors
/// One line for the person who chose the runtime.
pub(super) fn children_can_be_seen(proc_dir: &Path) -> Result<(), String> {
    let pid = std::process::id();
    let path = proc_dir.join(format!("{pid}/task/{pid}/children"));
    fs::read_to_string(&path).map(|_| ()).map_err(|e| {
        format!(
            "{}: {e}: this kernel or container runtime does not show the children of a process, so it cannot be known \
             when a postmaster is dead; use a runtime with a Linux kernel of its own /proc (runc, crun, Kata)",
            path.display()
        )
    })
}

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

/// Children of ours that we did not start: their parents are gone.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// What a dead postmaster left, with all descendants.
    pub postgres: BTreeSet<i32>,
    /// What programs left, by their run.
    pub runs: BTreeMap<u64, BTreeSet<i32>>,
}

/// Our own children but those in `known`. Zombies count: they are gone only when reaped.
pub(super) fn orphans(known: &BTreeSet<i32>) -> Orphans {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut found = Orphans::default();
    for child in children(own).into_iter().filter(|child| !known.contains(child)) {
        let of = match mark(child) {
            Some(run) => found.runs.entry(run).or_default(),
            None => &mut found.postgres,
        };
        of.insert(child);
        of.extend(descendants(child));
    }
    found
}

/// The run that a process belongs to.
fn mark(pid: i32) -> Option<u64> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environ.split(|b| *b == 0).find_map(|var| var.strip_prefix(RUN_MARK.as_bytes())?.strip_prefix(b"="))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The lock of a data directory, held as long as the file is open (OFD locks belong to the open file, and see through
/// PID namespaces, where Postgres' own interlock is blind).
#[derive(Debug)]
pub(super) struct DirLock {
    file: File,
}

impl DirLock {
    fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Locks `PGDATA/PG_VERSION`; `Ok(None)` when there is no such file yet.
    ///
    /// # Errors
    /// Somebody holds it, or the file system cannot lock.
    pub fn take(data_dir: &Path) -> Result<Option<DirLock>, NotStarted> {
        let path = data_dir.join("PG_VERSION");
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("open {}: {e}", path.display()).into()),
        };
        // SAFETY: flock is plain data; zero is a valid value for every field (l_pid must be 0 for OFD locks).
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        // SAFETY: the descriptor is open and `lock` outlives the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } != 0 {
            return Err(not_locked(data_dir, &io::Error::last_os_error()));
        }
        Ok(Some(DirLock { file }))
    }
}

/// A lock that somebody holds and a file system without locks call for different people.
fn not_locked(data_dir: &Path, e: &io::Error) -> NotStarted {
    match e.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            let why = format!("{} is in use by what another keeper has started: {e}", data_dir.display());
            NotStarted { why, class: Refusal::InUse }
        }
        Some(_) | None => format!(
            "{} cannot be locked: {e}: its file system has no working locks (NFS without lockd, for instance), so a \
             second pod on the same volume could not be kept out",
            data_dir.display()
        )
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_locks_is_not_another_keeper() {
        let said = |errno| not_locked(Path::new("/data"), &io::Error::from_raw_os_error(errno));
        assert_eq!(said(libc::EAGAIN).class, Refusal::InUse);
        for errno in [libc::ENOLCK, libc::EOPNOTSUPP, libc::EIO] {
            assert!(said(errno).why.contains("no working locks"), "{:?}", said(errno));
            assert_eq!(said(errno).class, Refusal::Other);
        }
    }

    /// A shell that starts one child after the other, until it is ended.
    #[test]
    fn what_a_process_starts_while_it_is_killed_is_killed_too() {
        for round in 0..20 {
            let mark = format!("{}.{}{round}", 86_400, std::process::id());
            let script = format!("trap '' CHLD; while :; do sleep {mark} & done");
            let mut shell = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("sh is there");
            let pid = shell.id().cast_signed();
            while descendants(pid).len() < 3 {
                std::thread::yield_now();
            }
            signal_tree(pid, KILL);
            shell.wait().expect("it is a child");
            let named = |entry: &fs::DirEntry| {
                fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == format!("sleep\0{mark}\0").as_bytes())
            };
            // The dead keep no command line, but die a moment after the signal.
            let left = || fs::read_dir("/proc").expect("is there").flatten().filter(named).count();
            let by = boot_now() + 2_000_000_000;
            while left() > 0 && boot_now() < by {
                std::thread::yield_now();
            }
            let found = left();
            if found > 0 {
                assert!(Command::new("pkill").args(["-9", "-f", &mark]).status().is_ok());
            }
            assert_eq!(found, 0, "children got away in round {round}");
        }
    }

    #[test]
    fn a_runtime_that_does_not_show_children_is_refused() {
        assert_eq!(children_can_be_seen(Path::new("/proc")), Ok(()));
        let why = children_can_be_seen(Path::new("/nonexistent")).unwrap_err();
        assert!(why.contains("does not show the children"), "{why}");
    }
}
