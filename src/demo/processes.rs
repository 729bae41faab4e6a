//! Finding and signalling the processes of one member without any help from it.
//!
//! A member is known by its directory: `patroni`, its keeper and the postmaster name it on their command line, every
//! Postgres process works in the data directory below it, and what else they started descends from one of those. The walk
//! therefore finds everything, also after parents died, and nothing of anybody else's cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// A process as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// `comm`: the first 15 bytes of the program's name.
    pub name: String,
    /// Arguments joined by spaces.
    pub command: String,
    /// It works in the directory asked for, or below.
    inside: bool,
}

fn read(pid: i32, dir: &Path) -> Option<Proc> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let inside = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    let name = head.split_once('(').map(|(_, n)| n.to_owned())?;
    Some(Proc { pid, parent, name, command, inside })
}

/// All living processes that belong to the member in `dir`, the keeper first, then `patroni`, then the others by age.
pub fn of_member(dir: &Path) -> Vec<Proc> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(p) = entry.file_name().to_str().and_then(|n| n.parse().ok()).and_then(|pid| read(pid, dir)) {
            all.insert(p.pid, p);
        }
    }
    let needle = dir.display().to_string();
    let mine = |p: &Proc| {
        let ours = ["patroni", "postgres-keeper", "postgres", "pg_", "initdb"].iter().any(|n| p.name.starts_with(n));
        ours && (p.inside || p.command.contains(&needle))
    };
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let mut chosen: BTreeSet<i32> = all.values().filter(|p| p.pid != me && mine(p)).map(|p| p.pid).collect();
    loop {
        let more: Vec<i32> =
            all.values().filter(|p| chosen.contains(&p.parent) && !chosen.contains(&p.pid)).map(|p| p.pid).collect();
        if more.is_empty() {
            break;
        }
        chosen.extend(more);
    }
    let mut found: Vec<Proc> = chosen.iter().filter_map(|pid| all.remove(pid)).collect();
    found.sort_by_key(|p| (!p.name.starts_with("postgres-keeper"), !p.name.starts_with("patroni"), p.pid));
    found
}

/// Processes whose command line (arguments end with a zero byte) has all these words.
pub fn with_words(words: &[&str]) -> Vec<i32> {
    let has = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).into_owned();
        words.iter().all(|w| line.contains(w)).then_some(pid)
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(has).collect()
}

/// The postmaster among `procs`: the `postgres` started with `-D` that no other `postgres` is the parent of.
pub fn postmaster(procs: &[Proc]) -> Option<&Proc> {
    let servers: Vec<&Proc> = procs.iter().filter(|p| p.name == "postgres" || p.name == "postmaster").collect();
    servers.iter().find(|p| !servers.iter().any(|q| q.pid == p.parent)).copied()
}

/// Sends `signal`; a process that is gone already is no error.
pub fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // The only failures are "gone" and "not mine", and both show in what the caller looks at next.
        kill_process(pid, signal).ok();
    }
}

/// Kills everything that belongs to the member in `dir`, again and again until nothing is left or `rounds` are over
/// (10 ms each). Returns what is still there.
pub fn kill_all(dir: &Path, rounds: u32) -> Vec<Proc> {
    for _ in 0..rounds {
        let left = of_member(dir);
        if left.is_empty() {
            return left;
        }
        for p in &left {
            send(p.pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    of_member(dir)
}
