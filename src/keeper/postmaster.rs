//! The one postmaster: started under a lock, watched, stopped, and dead only when nothing of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::fence::Postgres;
use super::pgcontrol::{self, ControlState};
use super::process::{self, DirLock, End, Kind};
use super::protocol::{Program, Role, StopMode};

/// What a cleanly ended postmaster leaves (its logger writes the last lines) has this long before it is killed.
const LEFTOVERS_GRACE: u64 = 200_000_000;

/// A postmaster, or what is left of one.
pub(super) struct Postmaster {
    pub pid: i32,
    pub role: Role,
    pub promoted: bool,
    pub data_dir: PathBuf,
    /// pg_control said "in archive recovery" since the start.
    seen_recovery: bool,
    stopped: Option<StopMode>,
    unpermitted_since: Option<u64>,
    /// The postmaster itself was reaped: how, and when.
    pub ended: Option<(End, u64)>,
    _lock: DirLock,
}

impl Postmaster {
    /// Starts it.
    ///
    /// # Errors
    /// One line: the directory is in use, standby.signal does not fit, the program cannot be started.
    pub fn start(role: Role, program: &Program, data_dir: &str) -> Result<Postmaster, String> {
        let dir = PathBuf::from(data_dir);
        let lock = DirLock::take(&dir).map_err(|e| format!("{data_dir} is in use by another keeper: {e}"))?;
        let Some(lock) = lock else {
            return Err(format!("{data_dir} is not a data directory: PG_VERSION is missing"));
        };
        let signal = dir.join("standby.signal").exists();
        if role == Role::Standby && !signal {
            return Err(format!("{data_dir}/standby.signal is missing: without it Postgres would start read-write"));
        }
        if role == Role::Primary && (signal || dir.join("recovery.signal").exists()) {
            return Err(format!("{data_dir} holds standby.signal or recovery.signal: it would not start as a primary"));
        }
        clear_stale_pid(&dir)?;
        let child = process::spawn(program, Kind::Postmaster(lock.fd()))
            .map_err(|e| format!("start {}: {e}", program.argv.first().map_or("postgres", String::as_str)))?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        Ok(Postmaster {
            pid,
            role,
            promoted: false,
            data_dir: dir,
            seen_recovery: false,
            stopped: None,
            unpermitted_since: None,
            ended: None,
            _lock: lock,
        })
    }

    /// Everything not provably in recovery is a possible writer: started with standby.signal, not promoted by us, and
    /// pg_control "in archive recovery" — or, before recovery has begun, standby.signal still there (Postgres removes it
    /// when it leaves recovery).
    fn writer(&mut self, control: ControlState) -> bool {
        if control == ControlState::InRecovery {
            self.seen_recovery = true;
        }
        let in_recovery = control == ControlState::InRecovery
            || (!self.seen_recovery && self.data_dir.join("standby.signal").exists());
        self.role == Role::Primary || self.promoted || !in_recovery
    }

    /// What the fence looks at.
    pub fn facts(&mut self, now: u64, permitted: bool) -> Postgres {
        let control = pgcontrol::state(&self.data_dir);
        let writer = self.writer(control);
        if !writer || permitted {
            self.unpermitted_since = None;
        } else if self.unpermitted_since.is_none() {
            self.unpermitted_since = Some(now);
        }
        Postgres {
            writer,
            shutting_down: control == ControlState::ShuttingDown,
            stopped: self.stopped,
            unpermitted_since: self.unpermitted_since,
        }
    }

    /// Sends a stop.
    pub fn stop(&mut self, mode: StopMode) {
        self.stopped = self.stopped.max(Some(mode));
        if self.ended.is_none() {
            if mode == StopMode::Kill {
                for pid in process::descendants(self.pid) {
                    process::signal(pid, process::stop_signal(StopMode::Kill));
                }
            }
            process::signal(self.pid, process::stop_signal(mode));
        }
    }

    /// SIGHUP.
    pub fn reload(&self) {
        if self.ended.is_none() {
            process::signal(self.pid, process::RELOAD);
        }
    }

    /// Writes `PGDATA/promote` and tells the postmaster.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn promote(&mut self) -> Result<(), String> {
        let path = self.data_dir.join("promote");
        fs::write(&path, b"").map_err(|e| format!("write {}: {e}", path.display()))?;
        self.promoted = true;
        process::signal(self.pid, process::LOOK_FOR_PROMOTE);
        Ok(())
    }

    /// Is anything left? What is, is killed: at once if the postmaster was killed or crashed, after a moment if it ended
    /// by itself. A backend with a statement in flight outlives a killed postmaster and acknowledges it.
    pub fn gone(&self, now: u64, known: &BTreeSet<i32>) -> bool {
        let Some((end, at)) = self.ended else { return false };
        let left = process::orphans(known);
        if left.is_empty() {
            return true;
        }
        if end != End::Code(0) || now >= at + LEFTOVERS_GRACE {
            for pid in left {
                process::signal(pid, process::stop_signal(StopMode::Kill));
            }
        }
        false
    }
}

/// With the lock held, a postmaster.pid is judged by what the process is: exe and cwd. A stranger's pid (containers
/// reuse small numbers) would keep Postgres from starting; a live postmaster of this directory is never started beside.
pub(super) fn clear_stale_pid(data_dir: &Path) -> Result<(), String> {
    let path = data_dir.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok()).map(i32::abs) else { return Ok(()) };
    let proc_dir = PathBuf::from(format!("/proc/{pid}"));
    if !proc_dir.exists() {
        return Ok(());
    }
    let exe = fs::read_link(proc_dir.join("exe")).unwrap_or_default();
    let cwd = fs::read_link(proc_dir.join("cwd")).unwrap_or_default();
    let here = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
    let is_postgres = exe.file_name().is_some_and(|n| n.to_string_lossy().starts_with("postgres"));
    if is_postgres && cwd == here {
        return Err(format!("a postmaster (pid {pid}) already runs in {}; stop it first", data_dir.display()));
    }
    tracing::info!("{}: process {pid} is no postmaster of this directory: removing the stale file", path.display());
    fs::remove_file(&path).map_err(|e| format!("remove stale {}: {e}", path.display()))
}

/// A socket's lock file names a process; in a new container, or with nobody to reap the dead, that number may belong to a
/// stranger or a zombie, and Postgres would refuse to start. A living Postgres keeps its lock.
pub(super) fn clear_stale_locks(paths: &[String]) {
    for path in paths {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let pid = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok()).map_or(0, i32::abs);
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if exe.file_name().is_some_and(|n| n.to_string_lossy().starts_with("postgres")) {
            continue;
        }
        match fs::remove_file(path) {
            Ok(()) => tracing::info!("{path}: process {pid} is no Postgres: removed the stale lock"),
            Err(e) => tracing::warn!("remove the stale lock {path}: {e}"),
        }
    }
}
