//! From configuration to a postmaster: files written, signal file set, argument vector ready.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::binaries::Binaries;
use super::conf::{self, Changed, HbaMode, Recovery};
use super::conninfo::{self, Address};
use super::control;
use super::datadir::{self, Work};
use super::history;
use super::params::{self, Effective};
use super::setup::{Command, CustomMethod, Setup};
use crate::model::{StandbyNames, StartRole, Upstream};

/// A start that is ready to be handed to the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct StartSpec {
    /// The postmaster's argument vector.
    pub command: Command,
    /// A restart is pending from the beginning: name → (value started with, value wanted).
    pub pending_restart: BTreeMap<String, (String, String)>,
    /// Parameters replaced or left out, one line each.
    pub warnings: Vec<String>,
    /// It recovers to a target first, and ends that by itself.
    pub recovers: bool,
}

/// The recovery section for a role and upstream. An upstream whose `conn_url` is not understood counts as nobody.
pub fn recovery_for(role: StartRole, upstream: &Upstream) -> Recovery {
    match role {
        StartRole::Primary => Recovery::Primary,
        StartRole::Standby => Recovery::Standby {
            upstream: upstream_address(upstream),
            remote: match upstream {
                Upstream::Remote { slot, .. } => Some(slot.clone()),
                Upstream::Member { .. } | Upstream::Nobody => None,
            },
        },
    }
}

/// The address of an upstream.
pub fn upstream_address(upstream: &Upstream) -> Option<Address> {
    match upstream {
        Upstream::Member { conn_url, .. } | Upstream::Remote { conn_url, .. } => Address::parse(conn_url),
        Upstream::Nobody => None,
    }
}

/// What the files of Postgres say besides the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// As what it runs.
    pub role: StartRole,
    /// Whom a standby streams from.
    pub upstream: Upstream,
    /// Whom its commits wait for, once it is a primary.
    pub names: StandbyNames,
}

impl Files {
    /// A primary that waits for whom the configuration says.
    pub fn primary() -> Files {
        Files { role: StartRole::Primary, upstream: Upstream::Nobody, names: StandbyNames::AsConfigured }
    }
}

/// Writes everything a start needs and returns the command: missing files restored, mode of the directory, parameters
/// (raised to pg_control's for a standby), password file, signal file, directories named in parameters.
///
/// # Errors
/// One line: a file or directory cannot be written, or the data directory is of another major version.
pub fn prepare(setup: &Setup, binaries: &Binaries, files: &Files) -> Result<StartSpec, String> {
    let standby = match files.role {
        StartRole::Primary => false,
        StartRole::Standby => true,
    };
    check_version(setup, binaries)?;
    let control = control::read_file(&setup.data_dir).ok().filter(|_| standby);
    let effective = params::effective(setup, control.as_ref()).with_names(&files.names);
    let spec = write(setup, binaries, &recovery_for(files.role, &files.upstream), HbaMode::Configured, effective)?;
    history::drop_placeholders(&setup.data_dir).map_err(|e| format!("remove placeholders of history files: {e}"))?;
    datadir::make_standby(&setup.data_dir, standby).map_err(|e| format!("prepare the start of Postgres: {e}"))?;
    Ok(spec)
}

/// A start after a custom bootstrap method, until its recovery is over: `recovery.signal` when it is to recover, local trust
/// only. The first one marks the directory as restored; later ones leave the signal file as Postgres has left it.
///
/// What reaches its target ends its recovery and goes on, unless `recovery_conf` asks for a pause there: Postgres itself would
/// wait for somebody who resumes it. The action goes on the command line, before whatever a tool has written.
///
/// # Errors
/// One line.
pub fn prepare_after_custom_bootstrap(setup: &Setup, binaries: &Binaries) -> Result<StartSpec, String> {
    check_version(setup, binaries)?;
    let Some(method) = &setup.bootstrap_method else {
        return Err("bootstrap.method names no custom method".to_owned());
    };
    let action = method.recovery_conf.get("recovery_target_action").map(|a| a.trim().to_lowercase());
    if action.as_deref() == Some("shutdown") {
        return Err(format!(
            "bootstrap.{}.recovery_conf: recovery_target_action shutdown ends Postgres at the target: use promote or pause",
            method.name
        ));
    }
    if !datadir::is_marked(setup, Work::Recovery) {
        begin_recovery(setup, method)?;
    }
    let (settings, keeps_existing) = (method.recovery_conf.clone(), method.keep_existing_recovery_conf);
    let recovers = !settings.is_empty() || keeps_existing;
    let recovery = if recovers { Recovery::Custom { settings, keeps_existing } } else { Recovery::Primary };
    let control = control::read_file(&setup.data_dir).ok();
    let effective = params::effective(setup, control.as_ref());
    let mut spec = write(setup, binaries, &recovery, HbaMode::TrustLocal, effective)?;
    let pauses = action.as_deref() == Some("pause");
    if recovers && !pauses {
        spec.command.argv.push("--recovery_target_action=promote".to_owned());
    }
    // An older server ends where its WAL wants higher settings than it has; from 14 on it pauses, and can be asked meanwhile.
    if recovers && !pauses && binaries.major < 14 {
        for word in spec.command.argv.iter_mut().filter(|word| word.starts_with("--hot_standby=")) {
            "--hot_standby=off".clone_into(word);
        }
    }
    Ok(StartSpec { recovers, ..spec })
}

/// Signal files as configured, and the mark.
fn begin_recovery(setup: &Setup, method: &CustomMethod) -> Result<(), String> {
    let io_error = |e: io::Error| format!("prepare the start after the custom bootstrap: {e}");
    conf::save_backups(setup).map_err(io_error)?;
    if method.keep_existing_recovery_conf && setup.data_dir.join("standby.signal").exists() {
        return Err(format!(
            "bootstrap.{}: its command has left a standby.signal, and a standby's recovery never ends: have it write \
             recovery.signal",
            method.name
        ));
    }
    let signal = setup.data_dir.join("recovery.signal");
    if !method.keep_existing_recovery_conf {
        datadir::make_standby(&setup.data_dir, false).map_err(io_error)?;
    }
    if !method.recovery_conf.is_empty() && !signal.exists() {
        datadir::write_atomically(&signal, b"", datadir::file_mode(&setup.data_dir)).map_err(io_error)?;
    }
    datadir::mark(setup, Work::Recovery).map_err(io_error)
}

/// After a custom bootstrap and its post_bootstrap: the real pg_hba.conf and a primary's configuration are back. The
/// caller sends SIGHUP, or restarts when a restart is pending or `hba_file` is configured.
///
/// # Errors
/// One line.
pub fn leave_custom_bootstrap(setup: &Setup, binaries: &Binaries) -> Result<Rewritten, String> {
    let io_error = |e: io::Error| format!("end the custom bootstrap: {e}");
    conf::restore_hba(setup).map_err(io_error)?;
    datadir::make_standby(&setup.data_dir, false).map_err(io_error)?;
    rewrite(setup, binaries, &Files::primary())
}

fn check_version(setup: &Setup, binaries: &Binaries) -> Result<(), String> {
    match super::binaries::data_version(&setup.data_dir) {
        Some(major) if major != binaries.major => Err(format!(
            "data directory {} is of PostgreSQL {major}, the programs in postgresql.bin_dir are {}",
            setup.data_dir.display(),
            binaries.major
        )),
        Some(_) => Ok(()),
        None => Err(format!("data directory {} has no readable PG_VERSION", setup.data_dir.display())),
    }
}

fn write(
    setup: &Setup,
    binaries: &Binaries,
    recovery: &Recovery,
    mode: HbaMode,
    effective: Effective,
) -> Result<StartSpec, String> {
    let io_error = |e: io::Error| format!("write the configuration of Postgres: {e}");
    datadir::restore_mode_0700(&setup.data_dir).map_err(io_error)?;
    make_directories(setup, &effective)?;
    write_passwords(setup, recovery).map_err(io_error)?;
    // The result says which files changed; a start reads them all.
    let Changed { .. } = conf::write_all(setup, binaries.major, &effective, recovery, mode).map_err(io_error)?;
    Ok(StartSpec {
        command: Command::new(argv(setup, binaries, &effective)),
        pending_restart: effective.pending_restart,
        warnings: effective.warnings,
        recovers: false,
    })
}

/// Writes the password file for the upstream and for this server itself.
///
/// # Errors
/// The file cannot be written.
pub fn write_passwords(setup: &Setup, recovery: &Recovery) -> io::Result<()> {
    let mut places = super::connect::local_places(setup);
    if let Recovery::Standby { upstream: Some(to), .. } = recovery {
        places.extend(to.places());
    }
    conninfo::write_pgpass(&setup.pgpass, &conninfo::pgpass_lines(setup, &places))
}

/// Rewrites the files for a running server; the caller sends SIGHUP if anything changed. `control`: as for a start, so
/// that a standby keeps pg_control's larger values.
///
/// # Errors
/// One line.
pub fn rewrite(setup: &Setup, binaries: &Binaries, files: &Files) -> Result<Rewritten, String> {
    let control = match files.role {
        StartRole::Primary => None,
        StartRole::Standby => control::read_file(&setup.data_dir).ok(),
    };
    let effective = params::effective(setup, control.as_ref()).with_names(&files.names);
    let recovery = recovery_for(files.role, &files.upstream);
    let io_error = |e: io::Error| format!("write the configuration of Postgres: {e}");
    write_passwords(setup, &recovery).map_err(io_error)?;
    let changed =
        conf::write_all(setup, binaries.major, &effective, &recovery, HbaMode::Configured).map_err(io_error)?;
    Ok(Rewritten { changed, effective })
}

/// The outcome of [`rewrite`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Rewritten {
    /// Which files differ from before.
    pub changed: Changed,
    /// What was written, for the comparison with pg_settings.
    pub effective: Effective,
}

fn argv(setup: &Setup, binaries: &Binaries, effective: &Effective) -> Vec<String> {
    let mut out = vec![
        binaries.path("postgres"),
        "-D".to_owned(),
        setup.data_dir.to_string_lossy().into_owned(),
        format!("--config-file={}", conf::conf_path(setup).display()),
    ];
    out.extend(effective.command_line.iter().map(|(name, value)| format!("--{name}={value}")));
    out
}

/// Creates the directories named in parameters.
fn make_directories(setup: &Setup, effective: &Effective) -> Result<(), String> {
    for key in ["unix_socket_directories", "stats_temp_directory"] {
        let Some(value) = effective.file.get(key) else { continue };
        for dir in value.split(',').map(|d| d.trim().trim_matches('"')).filter(|d| !d.is_empty() && !d.starts_with('@'))
        {
            let path = setup.data_dir.join(Path::new(dir));
            fs::create_dir_all(&path)
                .map_err(|e| format!("postgresql.parameters.{key}: create {}: {e}", path.display()))?;
        }
    }
    Ok(())
}

/// The lock files of the server's Unix sockets: in the configured directories, else in the two usual ones.
pub fn socket_locks(setup: &Setup) -> Vec<String> {
    let configured = setup.parameters.get("unix_socket_directories");
    let directories = configured.map_or("/tmp,/var/run/postgresql", String::as_str);
    let absolute = directories.split(',').map(|d| d.trim().trim_matches('"')).filter(|d| d.starts_with('/'));
    absolute.map(|dir| format!("{dir}/.s.PGSQL.{}.lock", setup.port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_vector_carries_the_controlled_parameters() {
        let dir = tempfile::tempdir().unwrap();
        let mut s = Setup::new("a", "demo", dir.path().join("data"), 5499);
        fs::create_dir(&s.data_dir).unwrap();
        s.parameters.insert("unix_socket_directories".into(), dir.path().join("run").display().to_string());
        let bins = Binaries::known(&s, 150_018);
        let primary = Files::primary();
        assert!(prepare(&s, &bins, &primary).unwrap_err().contains("PG_VERSION"));
        fs::write(s.data_dir.join("PG_VERSION"), "14\n").unwrap();
        assert!(prepare(&s, &bins, &primary).unwrap_err().contains("PostgreSQL 14"));
        fs::write(s.data_dir.join("PG_VERSION"), "15\n").unwrap();
        let upstream = Upstream::Member { name: "b".into(), conn_url: "postgres://b:1/postgres".into() };
        let standby = Files { role: StartRole::Standby, upstream, ..primary.clone() };
        let spec = prepare(&s, &bins, &standby).unwrap();
        assert_eq!(spec.command.argv[0..2], ["postgres", "-D"]);
        assert!(spec.command.argv.contains(&"--port=5499".to_owned()), "{:?}", spec.command.argv);
        assert!(spec.command.argv.contains(&"--wal_level=replica".to_owned()));
        assert!(s.data_dir.join("standby.signal").exists() && dir.path().join("run").is_dir());
        let names = StandbyNames::All(["pg-1".into()].into());
        let _ = prepare(&s, &bins, &Files { names, ..primary }).unwrap();
        assert!(!s.data_dir.join("standby.signal").exists());
        let text = fs::read_to_string(s.data_dir.join("postgresql.conf")).unwrap();
        assert!(text.contains("synchronous_standby_names = '\"pg-1\"'\n"), "{text}");
    }
}
