//! `postgres-keeper remove DIR…`: empties and removes exactly these directories, as a program that can be killed.
//!
//! A directory goes with the targets of its WAL and tablespace links. `global/pg_control` goes before everything else, so
//! that a removal that never began is told from one that was killed; whatever is emptied loses PG_VERSION last. A mount point stays, empty, and so does `lost+found`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The program of a removal: ourselves.
///
/// # Errors
/// One line: nothing to remove, or a path that is not absolute.
pub(super) fn command(dirs: Vec<String>) -> Result<Vec<String>, String> {
    check(&dirs)?;
    Ok(["/proc/self/exe".to_owned(), "remove".to_owned()].into_iter().chain(dirs).collect())
}

/// Removes them, in this order. What is not there is removed already.
///
/// # Errors
/// One line: what could not be removed, or is in use.
pub(super) fn remove(dirs: &[String]) -> Result<(), String> {
    check(dirs)?;
    for dir in dirs {
        let dir = Path::new(dir);
        refuse_if_in_use(dir)?;
        one(dir).map_err(|e| format!("remove {}: {e}", dir.display()))?;
    }
    Ok(())
}

fn check(dirs: &[String]) -> Result<(), String> {
    if dirs.is_empty() {
        return Err("which directories are to be removed?".to_owned());
    }
    match dirs.iter().find(|dir| !Path::new(dir).is_absolute() || Path::new(dir).parent().is_none()) {
        Some(dir) => Err(format!("'{dir}' is not removed: an absolute path below / is needed")),
        None => Ok(()),
    }
}

fn one(dir: &Path) -> io::Result<()> {
    if fs::symlink_metadata(dir).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return Ok(());
    }
    // First of all: whoever finds this file knows that the removal has not begun.
    match fs::remove_file(dir.join("global/pg_control")) {
        Ok(()) => fs::File::open(dir.join("global"))?.sync_all()?,
        Err(e) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&e.kind()) => {}
        Err(e) => return Err(e),
    }
    for link in links(dir) {
        if let Ok(target) = fs::canonicalize(&link) {
            empty(&target)?;
            fs::remove_dir(&target).or_else(keep_if_busy)?;
        }
    }
    empty(dir)?;
    if fs::symlink_metadata(dir)?.is_symlink() {
        fs::remove_file(dir)
    } else {
        fs::remove_dir(dir).or_else(keep_if_busy)
    }
}

/// The target may be a mount point, or lie in a directory of somebody else; empty is enough.
fn keep_if_busy(e: io::Error) -> io::Result<()> {
    const KEPT: [ErrorKind; 5] = [
        ErrorKind::ResourceBusy,
        ErrorKind::PermissionDenied,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::DirectoryNotEmpty,
        ErrorKind::NotFound,
    ];
    if KEPT.contains(&e.kind()) { Ok(()) } else { Err(e) }
}

/// The symbolic links for WAL and tablespaces.
fn links(dir: &Path) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = ["pg_wal", "pg_xlog"].iter().map(|n| dir.join(n)).collect();
    if let Ok(entries) = fs::read_dir(dir.join("pg_tblspc")) {
        out.extend(entries.filter_map(Result::ok).map(|e| e.path()));
    }
    out.retain(|p| fs::symlink_metadata(p).is_ok_and(|m| m.is_symlink()));
    out.sort();
    out
}

fn empty(dir: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|e| e.file_name() == "PG_VERSION");
    for entry in entries.into_iter().filter(|e| e.file_name() != "lost+found") {
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The core orders no removal beside a postmaster; this is the last look before something that cannot be undone.
fn refuse_if_in_use(dir: &Path) -> Result<(), String> {
    let Ok(text) = fs::read_to_string(dir.join("postmaster.pid")) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|l| l.trim().parse::<u32>().ok()) else { return Ok(()) };
    let there = fs::canonicalize(format!("/proc/{pid}/cwd")).ok();
    if there.is_some() && there == fs::canonicalize(dir).ok() {
        return Err(format!("{} is in use by process {pid}: it is not removed", dir.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_goes_with_its_wal_and_tablespaces_and_nothing_else() {
        let keep = tempfile::tempdir().unwrap();
        let at = |name: &str| keep.path().join(name);
        for dir in ["data", "data/pg_tblspc", "wal", "space", "other"] {
            fs::create_dir(at(dir)).unwrap();
            fs::write(at(dir).join("file"), "").unwrap();
        }
        symlink(at("wal"), at("data/pg_wal")).unwrap();
        symlink(at("space"), at("data/pg_tblspc/16384")).unwrap();
        let dirs = [at("data").to_str().unwrap().to_owned(), at("missing").to_str().unwrap().to_owned()];
        remove(&dirs).unwrap();
        assert!(!at("data").exists() && !at("wal").exists() && !at("space").exists() && at("other/file").exists());
        remove(&dirs).unwrap();
        assert!(
            remove(&["relative".to_owned()]).is_err() && remove(&[]).is_err() && remove(&["/".to_owned()]).is_err()
        );
    }

    #[test]
    fn a_directory_in_use_stays() {
        let keep = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(keep.path()).spawn().unwrap();
        fs::write(keep.path().join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        let refused = remove(&[keep.path().to_str().unwrap().to_owned()]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(refused.unwrap_err().contains("in use"));
        assert!(keep.path().join("postmaster.pid").exists());
    }
}
