//! `postgres-keeper`: starts and reaps the postmaster, runs programs for the sidecar, and stops Postgres when its
//! permission lapses (design §7). PID 1 of a stock Postgres container, or a child of `patroni` elsewhere.
//!
//! Reading order: `protocol` (the words) → `fence` (the one pure decision) → `server` (the loop) → `postmaster`,
//! `programs` (what runs) → `session` (who asks) → `process` (the kernel) → `pgcontrol`.
//!
//! What it deliberately does not do: know Kubernetes, leases, members or SQL; keep a permission on disk; start Postgres
//! by itself. It outlives the sidecar, and a sidecar that comes back finds everything as it was.

mod fence;
mod pgcontrol;
mod postmaster;
mod process;
mod programs;
pub mod protocol;
mod server;
mod session;

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
                     postgres-keeper install DIR\n       postgres-keeper --version";

/// The program: parses, and runs one of its three forms.
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
        ["install", dir] => report(install(Path::new(dir))),
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
    eprintln!("postgres-keeper: {why}\n{USAGE}");
    ExitCode::from(2)
}

fn report(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("postgres-keeper: {why}");
            ExitCode::FAILURE
        }
    }
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
    let listener = listen(&options.socket)?;
    let socket = options.socket.clone();
    tracing::info!("postgres-keeper {} on {}", env!("CARGO_PKG_VERSION"), socket.display());
    let kept = server::Keeper::new(options, listener).and_then(server::Keeper::run).map_err(|e| e.to_string());
    if let Err(e) = fs::remove_file(&socket) {
        tracing::warn!("remove {}: {e}", socket.display());
    }
    kept
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
