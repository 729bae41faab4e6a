//! Copies of another member: pg_basebackup and custom methods.

use std::io;
use std::time::Duration;

use super::binaries::Binaries;
use super::bootstrap::{option_word, split};
use super::conf;
use super::connect;
use super::conninfo::{self, Address};
use super::datadir::{self, Work};
use super::setup::{Command, ReplicaMethod, Setup};

/// pg_basebackup is tried this often, with a pause between.
pub const BASEBACKUP_ATTEMPTS: u32 = 2;
/// The pause: long enough for a restarting source, short enough to wait for.
pub const BASEBACKUP_PAUSE: Duration = Duration::from_secs(5);

const REFUSED: [&str; 11] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
];

/// The methods to try in order. `from_leader`: pg_basebackup only. Without a source only `no_leader` methods remain. A copy of
/// the cluster that a standby cluster follows has methods of its own.
pub fn methods(setup: &Setup, source: Option<&str>, from_leader: bool) -> Vec<ReplicaMethod> {
    if from_leader {
        return vec![ReplicaMethod::Basebackup];
    }
    let have_source = source.is_some();
    let another = setup.standby_of.as_ref().filter(|remote| remote.conn_url.as_deref() == source);
    let configured = another.and_then(|remote| remote.methods.as_ref()).unwrap_or(&setup.replica_methods);
    let fits = |m: &&ReplicaMethod| match m {
        ReplicaMethod::Basebackup => have_source,
        ReplicaMethod::Custom { no_leader, .. } => have_source || *no_leader,
    };
    configured.iter().filter(fits).cloned().collect()
}

/// Must the data directory be cleared before (and after a failure of) this method?
pub fn clears_data(method: &ReplicaMethod) -> bool {
    match method {
        ReplicaMethod::Basebackup => true,
        ReplicaMethod::Custom { keep_data, .. } => !keep_data,
    }
}

/// Prepares one attempt and returns its command: writes marker and password file. The directory was cleared if the method
/// wants that ([`clears_data`]).
///
/// # Errors
/// One line: an option is not allowed, a file cannot be written.
pub fn prepare(
    setup: &Setup,
    binaries: &Binaries,
    method: &ReplicaMethod,
    conn_url: Option<&str>,
) -> Result<Command, String> {
    let source = conn_url.and_then(Address::parse);
    if clears_data(method) {
        datadir::mark(setup, Work::Copy).map_err(|e| format!("write the marker beside PGDATA: {e}"))?;
    }
    let mut places = connect::local_places(setup);
    places.extend(source.iter().flat_map(Address::places));
    conninfo::write_pgpass(&setup.pgpass, &conninfo::pgpass_lines(setup, &places))
        .map_err(|e| format!("write postgresql.pgpass {}: {e}", setup.pgpass.display()))?;
    let command = match (method, source) {
        (ReplicaMethod::Basebackup, Some(from)) => basebackup_command(setup, binaries, &from)?,
        (ReplicaMethod::Basebackup, None) => return Err("pg_basebackup needs a member to copy from".to_owned()),
        (ReplicaMethod::Custom { .. }, from) => custom_command(setup, method, from.as_ref(), binaries.major)?,
    };
    Ok(command.with_env("PGPASSFILE", setup.pgpass.to_string_lossy()))
}

/// The pg_basebackup command.
///
/// # Errors
/// An option of `postgresql.basebackup` is not allowed.
pub fn basebackup_command(setup: &Setup, binaries: &Binaries, from: &Address) -> Result<Command, String> {
    let mut argv = vec![
        binaries.path("pg_basebackup"),
        format!("--pgdata={}", setup.data_dir.display()),
        "-X".to_owned(),
        "stream".to_owned(),
        format!("--dbname={}", replication_dsn(setup, from, binaries.major)),
    ];
    for (key, value) in &setup.basebackup {
        let compress_ok = binaries.major >= 15 && value.as_deref().is_some_and(|v| v.starts_with("server"));
        if REFUSED.contains(&key.as_str()) || (key == "compress" && !compress_ok) {
            return Err(format!("postgresql.basebackup: option {key} is not allowed; remove it"));
        }
        argv.push(option_word(key, value.as_deref()));
    }
    if !setup.basebackup.iter().any(|(k, _)| k == "progress") {
        argv.push("--progress".to_owned());
    }
    Ok(Command::new(argv))
}

fn replication_dsn(setup: &Setup, from: &Address, major: u32) -> String {
    let database = from.database.clone().unwrap_or_else(|| setup.database.clone());
    conninfo::dsn(from, &setup.replication, &database, &[], major)
}

fn custom_command(
    setup: &Setup,
    method: &ReplicaMethod,
    from: Option<&Address>,
    major: u32,
) -> Result<Command, String> {
    let ReplicaMethod::Custom { name, command, no_params, no_leader, keep_data, extra } = method else {
        return Err("pg_basebackup is no custom method".to_owned());
    };
    let mut argv = split(&format!("postgresql.{name}.command"), command)?;
    if !no_params {
        let connstring = from.map(|f| replication_dsn(setup, f, major)).unwrap_or_default();
        argv.push(format!("--scope={}", setup.scope));
        argv.push("--role=replica".to_owned());
        argv.push(format!("--datadir={}", setup.data_dir.display()));
        argv.push(format!("--connstring={connstring}"));
        for (key, on) in [("no_leader", no_leader), ("keep_data", keep_data)] {
            if *on && !extra.contains_key(key) {
                argv.push(format!("--{key}=1"));
            }
        }
    }
    let dropped = |key: &str| *no_params && matches!(key, "no_params" | "no_leader" | "keep_data" | "no_master");
    argv.extend(extra.iter().filter(|(k, _)| !dropped(k)).map(|(k, v)| format!("--{k}={v}")));
    Ok(Command::new(argv))
}

/// A copy is complete: configuration restored from its copies, standby.signal set, everything durable, marker removed.
///
/// # Errors
/// A file cannot be written.
pub fn finished(setup: &Setup) -> io::Result<()> {
    datadir::restore_mode_0700(&setup.data_dir)?;
    conf::restore_backups(setup)?;
    datadir::make_standby(&setup.data_dir, true)?;
    datadir::unmark_rewind(setup)?;
    datadir::unmark(setup)
}

/// Reads a line of pg_basebackup's `--progress`: `23552/47104 kB (50%), 0/1 tablespace` → `50 %`. The line may hold
/// several reports separated by carriage returns; the last counts.
pub fn progress(line: &str) -> Option<String> {
    let last = line.split('\r').rfind(|part| part.contains("kB (") && part.contains("%)"))?;
    let percent = last.split_once("kB (")?.1.split_once("%)")?.0;
    let percent: u32 = percent.trim().parse().ok()?;
    Some(format!("{} %", percent.min(100)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basebackup_is_called_with_a_dsn_and_refuses_what_it_sets_itself() {
        let mut s = Setup::new("a", "demo", "/data/x", 5432);
        s.replication.username = Some("rep".into());
        s.basebackup = vec![("max-rate".into(), Some("100M".into())), ("verbose".into(), None)];
        let from = Address::parse("postgres://h:5433/postgres").unwrap();
        let argv = basebackup_command(&s, &Binaries::known(&s, 150_000), &from).unwrap().argv;
        let expected =
            ["pg_basebackup", "--pgdata=/data/x", "-X", "stream", "--dbname=dbname=postgres user=rep host=h port=5433"];
        assert_eq!(argv[..5], expected);
        assert_eq!(argv[5..], ["--max-rate=100M", "--verbose", "--progress"]);
        for (key, value) in [("host", "x"), ("compress", "gzip")] {
            s.basebackup = vec![(key.into(), Some(value.into()))];
            assert!(basebackup_command(&s, &Binaries::known(&s, 150_000), &from).unwrap_err().contains(key));
        }
    }

    #[test]
    fn without_a_source_only_methods_that_need_none_remain() {
        let mut s = Setup::new("a", "demo", "/data/x", 5432);
        let custom = ReplicaMethod::Custom {
            name: "wal_e".into(),
            command: "fetch --now".into(),
            no_params: false,
            no_leader: true,
            keep_data: false,
            extra: [("envdir".to_owned(), "/e".to_owned())].into(),
        };
        s.replica_methods.insert(0, custom.clone());
        assert_eq!(methods(&s, None, false), std::slice::from_ref(&custom));
        assert_eq!(methods(&s, Some("postgres://h"), false).len(), 2);
        let of = |methods| Some(crate::postgres::setup::Remote { methods, ..Default::default() });
        s.standby_of = of(None);
        assert_eq!(methods(&s, None, false), std::slice::from_ref(&custom));
        s.standby_of = of(Some(vec![ReplicaMethod::Basebackup]));
        assert!(methods(&s, None, false).is_empty(), "its own list counts");
        assert_eq!(methods(&s, Some("postgres://member"), false).len(), 2);
        let argv = custom_command(&s, &custom, None, 15).unwrap().argv;
        let words = ["fetch", "--now", "--scope=demo", "--role=replica", "--datadir=/data/x", "--connstring="];
        assert_eq!(argv[..6], words);
        assert_eq!(argv[6..], ["--no_leader=1", "--envdir=/e"]);
    }

    #[test]
    fn progress_lines_are_understood() {
        assert_eq!(progress("23552/47104 kB (50%), 0/1 tablespace").as_deref(), Some("50 %"));
        assert_eq!(progress("1/9 kB (11%), 0/1 tablespace\r9/9 kB (100%), 1/1 tablespace").as_deref(), Some("100 %"));
        assert_eq!(progress("pg_basebackup: error: x"), None);
    }
}
