//! `postgres-keeper`: starts and reaps the postmaster, runs programs for the sidecar, and stops Postgres when its
//! permission lapses. PID 1 of a stock Postgres container, or a child of `patroni` elsewhere.
//!
//! A pure machine in a thin shell. Reading order: `protocol` (the words) → `core` (every decision; a simulation drives
//! the same one) → `server` (the loop around it) → `wardens`, `launch`, `pipes`, `connection`, `looker`, `log` (its hands)
//! → `warden` (the postmaster's parent, a process of its own) → `process` (the kernel) → `pgcontrol`, `remove`.
//!
//! What it deliberately does not do: know Kubernetes, leases, members or SQL; keep a permission on disk; start Postgres
//! by itself. It outlives the sidecar, and a sidecar that comes back finds everything as it was.

pub mod protocol;

pub mod core;

mod server;

mod launch;

mod pipes;

mod connection;

mod warden;

mod wardens;

mod looker;

mod log;

mod process;

mod pgcontrol;

mod remove;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Seconds between SIGTERM and the end of the container.
    pub grace: u64,
    /// Leave when nobody is connected and nothing runs.
    pub exit_when_idle: bool,
}

const USAGE: &str = "usage: postgres-keeper --socket PATH [--grace SECONDS] [--exit-when-idle] [--detach]\n       \
                     postgres-keeper install DIR\n       postgres-keeper remove DIR...\n       postgres-keeper --version";

/// The program: parses, and runs one of its forms.
pub fn main(args: Vec<String>) -> ExitCode {
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--version" | "-V"] => {
            println!("postgres-keeper {} (protocol {})", env!("CARGO_PKG_VERSION"), protocol::PROTOCOL);
            ExitCode::SUCCESS
        }
        ["--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        ["warden"] => report(warden::run()),
        ["wait"] => warden::wait(),
        ["install", dir] => report(install(Path::new(dir))),
        ["remove", ..] => report(remove::remove(&args[1..])),
        ["install", ..] | [] => usage("a directory or a socket is needed"),
        _ => match parse(&args) {
            Ok((_, true)) => {
                let rest: Vec<String> = args.into_iter().filter(|a| a != "--detach").collect();
                report(process::detach(&rest).map_err(|e| format!("detach: {e}")))
            }
            Ok((options, false)) => report(keep(options)),
            Err(why) => usage(&why),
        },
    }
}

fn usage(why: &str) -> ExitCode {
    complain(&format!("{why}\n{USAGE}"));
    ExitCode::from(2)
}

fn report(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// A stderr that takes nothing changes no exit code.
fn complain(why: &str) {
    let _nobody_reads_it = writeln!(io::stderr(), "postgres-keeper: {why}");
}

fn parse(args: &[String]) -> Result<(Options, bool), String> {
    let mut options = Options { socket: PathBuf::new(), grace: 300, exit_when_idle: false };
    let mut detach = false;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--socket" => options.socket = PathBuf::from(value()?),
            "--grace" => {
                let given = value()?;
                options.grace = given.parse().map_err(|_| format!("--grace: '{given}' is not a number of seconds"))?;
            }
            "--exit-when-idle" => options.exit_when_idle = true,
            "--detach" => detach = true,
            other => return Err(format!("unknown argument '{other}'")),
        }
    }
    if options.socket.as_os_str().is_empty() {
        return Err("--socket PATH is needed".to_owned());
    }
    Ok((options, detach))
}

/// Copies this program, and `patroni` and `patronictl` where they lie beside it, into a directory: an init container puts
/// them into a stock Postgres container this way.
fn install(dir: &Path) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|e| format!("find this program: {e}"))?;
    install_program(&own, dir, "postgres-keeper")?;
    for name in ["patroni", "patronictl"] {
        let beside = own.with_file_name(name);
        if beside.exists() {
            install_program(&beside, dir, name)?;
        }
    }
    Ok(())
}

/// Copies one program, whole or not at all: a container that starts meanwhile sees the old one or the new one.
fn install_program(from: &Path, dir: &Path, name: &str) -> Result<(), String> {
    let own = fs::read(from).map_err(|e| format!("read {}: {e}", from.display()))?;
    let target = dir.join(name);
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&temporary)?;
        file.write_all(&own)?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
        fs::rename(&temporary, &target)
    };
    write().map_err(|e| format!("install into {}: {e}", dir.display()))
}

fn keep(options: Options) -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        return Err(
            "Postgres will not run as root: start postgres-keeper as the user that owns the data directory".into()
        );
    }
    process::children_can_be_seen(Path::new("/proc"))?;
    let socket = &options.socket;
    // Before the first thread: threads inherit what is blocked, and their memory is not to be locked.
    let signals = process::signal_fd().map_err(|e| format!("take signals: {e}"))?;
    process::settle().map_err(|e| format!("become the parent of orphans: {e}"))?;
    let deadman = wardens::try_out();
    let listener = listen(socket)?;
    let log = log::to_stderr().map_err(|e| format!("start the log: {e}"))?;
    tracing::info!("postgres-keeper {} on {}", env!("CARGO_PKG_VERSION"), socket.display());
    if let Err(why) = &deadman {
        tracing::warn!("fence: partial: {why}: a keeper that is stopped or starved stops no Postgres on this machine");
    }
    let kept = server::Keeper::new(&options, listener, signals, deadman.is_ok()).and_then(server::Keeper::run);
    if let Err(e) = fs::remove_file(socket) {
        tracing::warn!("remove {}: {e}", socket.display());
    }
    log.finish();
    kept.map_err(|e| e.to_string())
}

fn listen(socket: &Path) -> Result<UnixListener, String> {
    let length = socket.as_os_str().len();
    if length > protocol::SOCKET_PATH_MAX {
        return Err(format!(
            "--socket {}: {length} bytes, at most {} are possible; choose a shorter directory",
            socket.display(),
            protocol::SOCKET_PATH_MAX
        ));
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(format!("another keeper already serves {}", socket.display()));
    }
    match fs::remove_file(socket) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(format!("remove the stale socket {}: {e}", socket.display())),
    }
    let listener = UnixListener::bind(socket).map_err(|e| format!("--socket {}: {e}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(|e| format!("{}: {e}", socket.display()))?;
    Ok(listener)
}

/// The kernel's name for this boot: two processes with the same one share CLOCK_BOOTTIME.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}
