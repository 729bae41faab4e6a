//! Starting what the core orders: under the lock of the directory, with stale files out of the way.
//!
//! Everything here touches files and may wait for a volume. A postmaster is started by its warden, which has nothing else
//! to do; programs that change a data directory are started only while no postmaster lives: nothing that must be fenced
//! waits behind them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::process::{self, DirLock};
use super::protocol::{Kind, NotStarted, Program, Refusal, Role};

/// Starts a postmaster; what was put right on the way is said in `said`.
///
/// # Errors
/// The directory is in use, the signal files do not fit, the program cannot be started.
pub(super) fn postmaster(
    role: Role,
    program: &Program,
    data_dir: &str,
    socket_locks: &[String],
    said: &mut Vec<String>,
) -> Result<i32, NotStarted> {
    let dir = Path::new(data_dir);
    clear_stale_locks(socket_locks, said);
    let Some(lock) = DirLock::take(dir)? else {
        return Err(format!("{data_dir} is not a data directory: PG_VERSION is missing").into());
    };
    // Before anything else is found fault with: every other refusal says that nobody else works here.
    clear_stale_pid(dir, said)?;
    let signal = dir.join("standby.signal").exists();
    if role == Role::Standby && !signal {
        return Err(format!("{data_dir}/standby.signal is missing: without it Postgres would start read-write").into());
    }
    if role == Role::Primary && (signal || !program.recovers && dir.join("recovery.signal").exists()) {
        return Err(
            format!("{data_dir} holds standby.signal or recovery.signal: it would not start as a primary").into()
        );
    }
    let child = process::spawn(program, process::Kind::Postmaster, Some(&lock))
        .map_err(|e| format!("start {}: {e}", program.argv.first().map_or("postgres", String::as_str)))?;
    Ok(pid_of(&child))
}

/// Starts a program.
///
/// # Errors
/// One line: the directory it names is in use, or it cannot be started.
pub(super) fn program(run: u64, kind: Kind, program: Program) -> Result<Child, String> {
    let program = match kind {
        Kind::Removal => Program { argv: super::remove::command(program.argv)?, ..program },
        Kind::Callback | Kind::Rewind | Kind::Restore | Kind::Fill | Kind::Tool => program,
    };
    let lock = match &program.data_dir {
        None => None,
        Some(dir) => {
            let lock = DirLock::take(Path::new(dir)).map_err(|e| e.why)?;
            let mut said = Vec::new();
            let cleared = clear_stale_pid(Path::new(dir), &mut said);
            said.iter().for_each(|line| tracing::info!("{line}"));
            cleared.map_err(|e| e.why)?;
            lock
        }
    };
    let name = program.argv.first().cloned().unwrap_or_default();
    process::spawn(&program, process::Kind::Program(run), lock.as_ref()).map_err(|e| format!("start {name}: {e}"))
}

/// The process of a child.
pub(super) fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap_or(0)
}

/// With the lock held, a postmaster.pid is judged by what the process is: exe and cwd. A stranger's pid (containers
/// reuse small numbers) would keep Postgres from starting; a live postmaster of this directory is never started beside. No
/// keeper has started it, or it would hold the lock: it was started by hand, and nothing would fence it. It is told to stop in
/// order (fast), and a later try finds the directory free.
fn clear_stale_pid(data_dir: &Path, said: &mut Vec<String>) -> Result<(), NotStarted> {
    let path = data_dir.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok()).map(i32::abs) else { return Ok(()) };
    let proc_dir = PathBuf::from(format!("/proc/{pid}"));
    // Held before it is judged: the number cannot pass on to another process meanwhile.
    let Some(held) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return Ok(());
    };
    let exe = fs::read_link(proc_dir.join("exe")).unwrap_or_default();
    let cwd = fs::read_link(proc_dir.join("cwd")).unwrap_or_default();
    let here = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
    if is_postgres(&exe) && cwd == here {
        let told = match pidfd_send_signal(held, Signal::INT) {
            Ok(()) => "telling it to stop (fast)".to_owned(),
            Err(e) => format!("cannot tell it to stop: {e}; stop it with pg_ctl stop"),
        };
        let why = format!("a postmaster (pid {pid}) that was started by hand runs in {}: {told}", data_dir.display());
        return Err(NotStarted { why, class: Refusal::InUse });
    }
    said.push(format!("{}: process {pid} is no postmaster of this directory: removing the stale file", path.display()));
    fs::remove_file(&path).map_err(|e| format!("remove stale {}: {e}", path.display()).into())
}

/// A server, and neither this keeper nor one of its wardens.
fn is_postgres(exe: &Path) -> bool {
    let name = exe.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    name.starts_with("postgres") && !name.starts_with("postgres-keeper")
}

/// A socket's lock file names a process; in a new container, or with nobody to reap the dead, that number may belong to a
/// stranger or a zombie, and Postgres would refuse to start. A living Postgres keeps its lock.
fn clear_stale_locks(paths: &[String], said: &mut Vec<String>) {
    for path in paths {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let pid = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok()).map_or(0, i32::abs);
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if is_postgres(&exe) {
            continue;
        }
        match fs::remove_file(path) {
            Ok(()) => said.push(format!("{path}: process {pid} is no Postgres: removed the stale lock")),
            Err(e) => said.push(format!("remove the stale lock {path}: {e}")),
        }
    }
}
