//! The data directory as a thing on disk: is it empty, half-made, whole; signal files; removal; the bootstrap marker.
//!
//! Whoever begins to fill or to remove the directory first writes a marker *beside* it. If this process dies meanwhile,
//! the next one sees half-made data and begins anew. A half-made new cluster is the business of the pod that began it
//! alone; a half-made copy or a half-removed directory holds nothing anybody could miss. pg_rewind has a mark of its own:
//! what it did not finish looks whole and is not.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::control;
use super::setup::Setup;
use crate::model::DataDir;

/// What is being done to the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A new cluster is being made.
    Bootstrap,
    /// A custom method has made its data; Postgres recovers on it, and what follows a recovery has not begun.
    Recovery,
    /// A copy of another member is being made.
    Copy,
    /// It is being removed.
    Removal,
}

impl Work {
    fn word(self) -> &'static str {
        match self {
            Work::Bootstrap => "bootstrap",
            Work::Recovery => "recovery",
            Work::Copy => "copy",
            Work::Removal => "removal",
        }
    }
}

/// The marker file: `<data_dir>.patroni-initializing`.
pub fn marker_path(setup: &Setup) -> PathBuf {
    beside(&setup.data_dir, ".patroni-initializing")
}

/// `<path><suffix>`, in the same directory.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The mark of a rewind: `<data_dir>.patroni-rewinding`.
pub fn rewind_mark_path(setup: &Setup) -> PathBuf {
    beside(&setup.data_dir, ".patroni-rewinding")
}

/// pg_rewind is about to change the directory. Durable before it starts.
///
/// # Errors
/// The file cannot be written: then pg_rewind must not be started.
pub fn mark_rewind(setup: &Setup, leader: &str) -> io::Result<()> {
    write_atomically(&rewind_mark_path(setup), format!("{leader}\n").as_bytes(), 0o600)
}

/// pg_rewind has ended well, and has synced what it wrote.
///
/// # Errors
/// The mark cannot be removed: the directory then counts as half-rewound, and is rewound again.
pub fn unmark_rewind(setup: &Setup) -> io::Result<()> {
    remove_durably(&rewind_mark_path(setup))
}

/// Writes the marker, durably. Call before anything else is done to the directory.
///
/// # Errors
/// The file cannot be written.
pub fn mark(setup: &Setup, work: Work) -> io::Result<()> {
    write_atomically(&marker_path(setup), format!("{} {}\n", work.word(), setup.pod_uid).as_bytes(), 0o600)
}

/// Does the marker say so?
pub fn is_marked(setup: &Setup, work: Work) -> bool {
    fs::read_to_string(marker_path(setup)).is_ok_and(|text| text.split_whitespace().next() == Some(work.word()))
}

/// Removes the marker: the directory is whole. initdb, pg_basebackup and pg_rewind have synced what they wrote.
///
/// # Errors
/// The marker cannot be removed.
pub fn unmark(setup: &Setup) -> io::Result<()> {
    remove_durably(&marker_path(setup))
}

/// The store says that the cluster with this system identifier is initialized. A bootstrap marker over exactly that data
/// is then a leftover of a crash between the last write to the store and [`unmark`], and must not cost the data: it is
/// removed. Says whether it was.
///
/// # Errors
/// The marker cannot be removed.
pub fn unmark_if_initialized(setup: &Setup, system_id: &str) -> io::Result<bool> {
    let marker = fs::read_to_string(marker_path(setup)).unwrap_or_default();
    let word = marker.split_whitespace().next();
    let bootstrap = [Work::Bootstrap, Work::Recovery].iter().any(|work| word == Some(work.word()));
    if !bootstrap || !setup.data_dir.join("global/pg_control").try_exists()? {
        return Ok(false);
    }
    let found = control::read_file(&setup.data_dir).map_err(|e| io::Error::other(e.to_string()))?;
    if found.data.system_id != system_id {
        return Ok(false);
    }
    unmark(setup).map(|()| true)
}

/// Looks at the data directory.
pub fn inspect(setup: &Setup) -> DataDir {
    let dir = &setup.data_dir;
    let names = match fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned()),
        Err(e) if e.kind() == ErrorKind::NotFound => return DataDir::Empty,
        Err(e) => return DataDir::Unusable(format!("cannot read data directory {}: {e}", dir.display())),
    };
    if !names.into_iter().any(|n| !n.starts_with('.') && n != "lost+found") {
        return DataDir::Empty;
    }
    if let Ok(text) = fs::read_to_string(marker_path(setup)) {
        let mut words = text.split_whitespace();
        let (work, uid) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let mine = !uid.is_empty() && uid == setup.pod_uid;
        let removal = work == Work::Removal.word();
        if removal && dir.join("global/pg_control").exists() {
            // It was ordered and never began: whole, and not to be removed without asking a leader again.
            return whole(setup);
        }
        if mine && work == Work::Recovery.word() && dir.join("global/pg_control").exists() {
            return DataDir::Restored;
        }
        if mine || work == Work::Copy.word() || removal {
            return DataDir::HalfMade;
        }
        return DataDir::Unusable(format!(
            "{} holds a new cluster that pod {} has not finished; if nothing in it is needed, remove the directory and {}",
            dir.display(),
            if uid.is_empty() { "(unknown)" } else { uid },
            marker_path(setup).display()
        ));
    }
    whole(setup)
}

/// No mark says otherwise.
fn whole(setup: &Setup) -> DataDir {
    let dir = &setup.data_dir;
    if !dir.join("PG_VERSION").exists() {
        return DataDir::Unusable(format!(
            "{} is not empty and is no data directory (no file PG_VERSION): empty it or correct postgresql.data_dir",
            dir.display()
        ));
    }
    if rewind_mark_path(setup).exists() {
        return DataDir::HalfRewound { control: control::read(dir).ok() };
    }
    let standby_signal = dir.join("standby.signal").exists() || dir.join("recovery.signal").exists();
    DataDir::Present { control: control::read(dir).ok(), standby_signal }
}

/// Makes the directory start as a standby (standby.signal) or as a primary (no signal file), durably. `recovery.conf`,
/// which a server from 12 on refuses to start with, and trigger files of a restore are removed.
///
/// # Errors
/// A file cannot be written or removed.
pub fn make_standby(data_dir: &Path, standby: bool) -> io::Result<()> {
    for name in ["recovery.signal", "recovery.conf", "recovery.done", "promote", "fallback_promote"] {
        remove_if_there(&data_dir.join(name))?;
    }
    let signal = data_dir.join("standby.signal");
    if standby {
        let file = fs::OpenOptions::new().create(true).append(true).open(&signal)?;
        file.set_permissions(fs::Permissions::from_mode(file_mode(data_dir)))?;
        file.sync_all()?;
    } else {
        remove_if_there(&signal)?;
    }
    File::open(data_dir)?.sync_all()
}

/// Marks the data directory for its removal; `None`: there is none. What [`end_removal`] does not follow is gone on with.
///
/// # Errors
/// A postmaster.pid in it names a living process of this machine; the mark cannot be written.
pub fn begin_removal(setup: &Setup) -> io::Result<Option<PathBuf>> {
    let dir = std::path::absolute(&setup.data_dir)?;
    refuse_if_in_use(&dir)?;
    if fs::symlink_metadata(&dir).is_err() {
        remove_marks(setup)?;
        return Ok(None);
    }
    // What is half-made stays that until it is gone.
    if !marker_path(setup).exists() {
        mark(setup, Work::Removal)?;
    }
    Ok(Some(dir))
}

/// A server runs on the directory: a removal that was ordered earlier has not begun and never will. Its mark would take
/// the directory for half-removed as soon as pg_control cannot be seen.
///
/// # Errors
/// The mark cannot be removed.
pub fn forget_removal(setup: &Setup) -> io::Result<()> {
    if is_marked(setup, Work::Removal) { unmark(setup) } else { Ok(()) }
}

/// It is gone.
///
/// # Errors
/// A mark cannot be removed.
pub fn end_removal(setup: &Setup) -> io::Result<()> {
    remove_marks(setup)
}

fn remove_marks(setup: &Setup) -> io::Result<()> {
    remove_durably(&rewind_mark_path(setup))?;
    remove_durably(&marker_path(setup))
}

/// Moves the data directory to `<dir>.failed`, WAL and tablespace targets likewise; an older copy is deleted.
///
/// # Errors
/// It is in use, a mount point, or cannot be renamed.
pub fn move_to_failed(setup: &Setup) -> io::Result<PathBuf> {
    let dir = &setup.data_dir;
    refuse_if_in_use(dir)?;
    let failed = beside(dir, ".failed");
    if failed.exists() {
        for link in links(&failed) {
            if let Ok(target) = fs::canonicalize(&link) {
                fs::remove_dir_all(target)?;
            }
        }
        fs::remove_dir_all(&failed)?;
    }
    for link in links(dir) {
        if let Ok(target) = fs::canonicalize(&link) {
            let moved = beside(&target, ".failed");
            if moved.exists() {
                fs::remove_dir_all(&moved)?;
            }
            fs::rename(&target, &moved)?;
            fs::remove_file(&link)?;
            symlink(&moved, &link)?;
        }
    }
    fs::rename(dir, &failed)?;
    remove_marks(setup)?;
    Ok(failed)
}

/// Gives the directory mode 0700 unless it is 0700 or 0750 already: kubelets open volumes up (fsGroup), and Postgres
/// refuses to start then. A directory of another owner is left alone.
///
/// # Errors
/// The mode cannot be changed.
pub fn restore_mode_0700(data_dir: &Path) -> io::Result<()> {
    let meta = match fs::metadata(data_dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mode = meta.permissions().mode() & 0o7777;
    if mode == 0o700 || mode == 0o750 || meta.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700))
}

/// Mode of configuration files: 0640 when the group may read the directory, else 0600.
pub fn file_mode(data_dir: &Path) -> u32 {
    match fs::metadata(data_dir) {
        Ok(meta) if meta.permissions().mode() & 0o050 == 0o050 => 0o640,
        Ok(_) | Err(_) => 0o600,
    }
}

/// Writes a file so that a crash leaves the old or the new contents: temporary file, sync, rename, sync of the directory.
///
/// # Errors
/// Any of these steps fails.
pub fn write_atomically(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path, ".new");
    remove_if_there(&temporary)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        Some(_) | None => Ok(()),
    }
}

/// Removes a file; a missing one is fine.
///
/// # Errors
/// It is there and cannot be removed.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The same, on disk when it returns.
fn remove_durably(path: &Path) -> io::Result<()> {
    remove_if_there(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && parent.exists() => File::open(parent)?.sync_all(),
        Some(_) | None => Ok(()),
    }
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

/// The keeper's word counts for decisions; this is the last look before something that cannot be undone.
fn refuse_if_in_use(dir: &Path) -> io::Result<()> {
    let Ok(text) = fs::read_to_string(dir.join("postmaster.pid")) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|l| l.trim().parse::<u32>().ok()) else { return Ok(()) };
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let same_dir = fs::canonicalize(proc.join("cwd")).ok() == fs::canonicalize(dir).ok();
    if same_dir {
        return Err(io::Error::new(
            ErrorKind::ResourceBusy,
            format!("data directory {} is in use by process {pid}", dir.display()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (tempfile::TempDir, Setup) {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = Setup::new("a", "s", dir.path().join("data"), 5432);
        setup.pod_uid = "me".into();
        (dir, setup)
    }

    #[test]
    fn a_missing_directory_and_one_with_dotfiles_only_are_empty() {
        let (_keep, s) = setup();
        assert_eq!(inspect(&s), DataDir::Empty);
        fs::create_dir_all(s.data_dir.join("lost+found")).unwrap();
        fs::write(s.data_dir.join(".snapshot"), "").unwrap();
        assert_eq!(inspect(&s), DataDir::Empty);
        fs::write(s.data_dir.join("something"), "").unwrap();
        assert!(matches!(inspect(&s), DataDir::Unusable(_)));
    }

    #[test]
    fn only_the_pod_that_began_a_bootstrap_sees_half_made_data_but_copies_are_anybodys() {
        let (_keep, mut s) = setup();
        fs::create_dir(&s.data_dir).unwrap();
        fs::write(s.data_dir.join("PG_VERSION"), "15\n").unwrap();
        mark(&s, Work::Bootstrap).unwrap();
        assert_eq!(inspect(&s), DataDir::HalfMade);
        s.pod_uid = "another".into();
        assert!(matches!(inspect(&s), DataDir::Unusable(_)));
        mark(&s, Work::Copy).unwrap();
        s.pod_uid = "third".into();
        assert_eq!(inspect(&s), DataDir::HalfMade);
        unmark(&s).unwrap();
        assert!(matches!(inspect(&s), DataDir::Present { control: None, standby_signal: false }));
        make_standby(&s.data_dir, true).unwrap();
        assert!(matches!(inspect(&s), DataDir::Present { standby_signal: true, .. }));
    }

    #[test]
    fn what_pg_rewind_did_not_finish_is_seen_until_it_did_or_the_directory_is_gone() {
        let (_keep, s) = setup();
        fs::create_dir(&s.data_dir).unwrap();
        fs::write(s.data_dir.join("PG_VERSION"), "15\n").unwrap();
        mark_rewind(&s, "b").unwrap();
        assert_eq!(inspect(&s), DataDir::HalfRewound { control: None });
        unmark_rewind(&s).unwrap();
        assert!(matches!(inspect(&s), DataDir::Present { .. }));
        mark_rewind(&s, "b").unwrap();
        mark(&s, Work::Removal).unwrap();
        assert_eq!(inspect(&s), DataDir::HalfMade, "a removal that began goes on");
        fs::remove_dir_all(begin_removal(&s).unwrap().unwrap()).unwrap();
        end_removal(&s).unwrap();
        assert!(!rewind_mark_path(&s).exists());
        assert_eq!(inspect(&s), DataDir::Empty);
    }

    #[test]
    fn a_removal_that_never_began_has_touched_nothing() {
        let (_keep, s) = setup();
        fs::create_dir_all(s.data_dir.join("global")).unwrap();
        fs::write(s.data_dir.join("PG_VERSION"), "15\n").unwrap();
        fs::write(s.data_dir.join("global/pg_control"), "").unwrap();
        begin_removal(&s).unwrap();
        assert!(matches!(inspect(&s), DataDir::Present { .. }), "the keeper was not there to do it");
        forget_removal(&s).unwrap();
        fs::remove_file(s.data_dir.join("global/pg_control")).unwrap();
        assert!(matches!(inspect(&s), DataDir::Present { .. }), "a server ran on it: that removal never will begin");
        begin_removal(&s).unwrap();
        assert_eq!(inspect(&s), DataDir::HalfMade, "it has begun");
        unmark(&s).unwrap();
        fs::write(s.data_dir.join("global/pg_control"), "").unwrap();
        mark(&s, Work::Copy).unwrap();
        forget_removal(&s).unwrap();
        begin_removal(&s).unwrap();
        assert_eq!(inspect(&s), DataDir::HalfMade, "half a copy is no whole one because its removal was ordered");
    }

    #[test]
    fn a_failed_bootstrap_is_moved_aside_with_its_wal() {
        let (keep, s) = setup();
        let wal = keep.path().join("wal");
        fs::create_dir(&s.data_dir).unwrap();
        fs::create_dir(&wal).unwrap();
        symlink(&wal, s.data_dir.join("pg_wal")).unwrap();
        let failed = move_to_failed(&s).unwrap();
        assert!(!s.data_dir.exists() && !wal.exists());
        assert_eq!(fs::read_link(failed.join("pg_wal")).unwrap(), keep.path().join("wal.failed"));
        fs::create_dir(&s.data_dir).unwrap();
        move_to_failed(&s).unwrap();
    }

    #[test]
    fn a_directory_in_use_is_never_removed() {
        let (_keep, s) = setup();
        fs::create_dir(&s.data_dir).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(&s.data_dir).spawn().unwrap();
        fs::write(s.data_dir.join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        let refused = begin_removal(&s);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ResourceBusy);
        assert_eq!(begin_removal(&s).unwrap().as_ref(), Some(&s.data_dir));
    }
}
