//! Making a new cluster: initdb or a custom method, then accounts and the post_bootstrap script.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::binaries::Binaries;
use super::conf;
use super::connect::{self, SqlError, Target};
use super::conninfo;
use super::datadir::{self, Work};
use super::setup::{Command, Credentials, Setup};

/// initdb options that are ours.
const REFUSED: [&str; 5] = ["pgdata", "nosync", "pwfile", "sync-only", "version"];

/// `key=value` options of `initdb`/`pg_basebackup`/custom methods as words; fully quoted values lose the quotes.
pub(super) fn option_word(key: &str, value: Option<&str>) -> String {
    let unquoted = value.map(|v| {
        let inner = |q: char| v.strip_prefix(q).and_then(|v| v.strip_suffix(q));
        inner('\'').or_else(|| inner('"')).unwrap_or(v)
    });
    match unquoted {
        Some(v) => format!("--{key}={v}"),
        None => format!("--{key}"),
    }
}

/// The command of `bootstrap.initdb`. Writes the bootstrap marker, and the password file for initdb beside `pgpass`
/// (listed in `cleanup`).
///
/// # Errors
/// An option is not allowed, or a file cannot be written. One line.
pub fn initdb_command(setup: &Setup, binaries: &Binaries) -> Result<Command, String> {
    for (key, _) in &setup.initdb {
        if REFUSED.contains(&key.as_str()) {
            return Err(format!("bootstrap.initdb: option {key} is not allowed; remove it"));
        }
    }
    datadir::mark(setup, Work::Bootstrap).map_err(|e| format!("write the bootstrap marker beside PGDATA: {e}"))?;
    let mut argv = vec![binaries.path("initdb")];
    argv.extend(setup.initdb.iter().map(|(k, v)| option_word(k, v.as_deref())));
    if let Some(user) = setup.superuser.user() {
        argv.push(format!("--username={user}"));
    }
    let mut cleanup = Vec::new();
    if let Some(password) = setup.superuser.secret() {
        let file = datadir::beside(&setup.pgpass, ".initdb");
        conninfo::write_pgpass(&file, &[password.to_owned()])
            .map_err(|e| format!("write the password file for initdb {}: {e}", file.display()))?;
        argv.push(format!("--pwfile={}", file.display()));
        cleanup.push(file);
    }
    argv.push(format!("--pgdata={}", setup.data_dir.display()));
    Ok(Command { argv, env: BTreeMap::new(), cleanup })
}

/// The command of the custom bootstrap method, if one is configured. Writes the bootstrap marker.
///
/// # Errors
/// The command cannot be split, or the marker not written. One line.
pub fn custom_command(setup: &Setup) -> Result<Option<Command>, String> {
    let Some(method) = &setup.bootstrap_method else { return Ok(None) };
    let key = format!("bootstrap.{}.command", method.name);
    let mut argv = split(&key, &method.command)?;
    datadir::mark(setup, Work::Bootstrap).map_err(|e| format!("write the bootstrap marker beside PGDATA: {e}"))?;
    if !method.no_params {
        argv.push(format!("--scope={}", setup.scope));
        argv.push(format!("--datadir={}", setup.data_dir.display()));
    }
    argv.extend(method.extra.iter().map(|(k, v)| format!("--{k}={v}")));
    Ok(Some(Command::new(argv)))
}

/// Splits a configured command as a shell would.
///
/// # Errors
/// Unbalanced quotes, or empty; names the key.
pub fn split(key: &str, command: &str) -> Result<Vec<String>, String> {
    match shlex::split(command) {
        Some(words) if !words.is_empty() => Ok(words),
        Some(_) => Err(format!("{key} is empty; name a command")),
        None => Err(format!("{key}: unbalanced quotes in {command:?}")),
    }
}

/// After initdb or the custom method has ended well: restore saved configuration, append `bootstrap.pg_hba`.
///
/// # Errors
/// There is no data, or a file cannot be written.
pub fn after_method(setup: &Setup) -> io::Result<()> {
    if !setup.data_dir.join("PG_VERSION").exists() {
        let dir = setup.data_dir.display();
        return Err(io::Error::other(format!("the command ended well and left no data directory in {dir}")));
    }
    datadir::restore_mode_0700(&setup.data_dir)?;
    conf::restore_backups(setup)?;
    conf::append_bootstrap_hba(setup)
}

/// The cluster is initialized and its lock is taken: make it durable and remove the marker.
///
/// # Errors
/// The marker cannot be removed.
pub fn finished(setup: &Setup) -> io::Result<()> {
    conf::save_backups(setup)?;
    datadir::unmark(setup)
}

/// The `post_bootstrap` script with the superuser's connection string, if one is configured.
///
/// # Errors
/// The command cannot be split, or the password file not written. One line.
pub fn post_bootstrap_command(setup: &Setup, major: u32) -> Result<Option<Command>, String> {
    let Some(script) = &setup.post_bootstrap else { return Ok(None) };
    let mut argv = split("bootstrap.post_bootstrap", script)?;
    let local = connect::local_address(setup);
    argv.push(conninfo::dsn(&local, &setup.superuser, &setup.database, &[], major));
    let lines = conninfo::pgpass_lines(setup, &connect::local_places(setup));
    conninfo::write_pgpass(&setup.pgpass, &lines)
        .map_err(|e| format!("write postgresql.pgpass {}: {e}", setup.pgpass.display()))?;
    Ok(Some(
        Command::new(argv)
            .with_env("PGPASSFILE", setup.pgpass.to_string_lossy())
            .with_env("PGOPTIONS", "-c synchronous_commit=local -c statement_timeout=0"),
    ))
}

/// Statements with passwords in them must not show up in any log.
const UNLOGGED: [&str; 7] = [
    "log_statement=none",
    "log_min_duration_statement=-1",
    "log_min_error_statement=panic",
    "pg_stat_statements.track_utility=off",
    "pgaudit.log=none",
    "synchronous_commit=local",
    "statement_timeout=0",
];

/// Sets the superuser's password; runs before the post_bootstrap script.
///
/// # Errors
/// See [`SqlError`].
pub async fn set_superuser(setup: &Setup) -> Result<(), SqlError> {
    let who = &setup.superuser;
    match (who.user(), who.secret()) {
        (Some(user), Some(_)) => run_unlogged(setup, vec![role_statement(user, who, "SUPERUSER LOGIN")]).await,
        _ => Ok(()),
    }
}

/// Creates or alters the replication and rewind accounts; runs after the post_bootstrap script.
///
/// # Errors
/// See [`SqlError`].
pub async fn create_accounts(setup: &Setup) -> Result<(), SqlError> {
    run_unlogged(setup, account_statements(setup)).await
}

/// The statements of [`create_accounts`].
pub fn account_statements(setup: &Setup) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(user) = setup.replication.user() {
        out.push(role_statement(user, &setup.replication, "REPLICATION LOGIN"));
    }
    let Some(rewind) = setup.rewind.as_ref() else { return out };
    let Some(user) = rewind.user().filter(|u| Some(*u) != setup.superuser.user()) else { return out };
    if Some(user) != setup.replication.user() {
        out.push(role_statement(user, rewind, "LOGIN"));
    }
    for function in [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ] {
        out.push(format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {}", identifier(user)));
    }
    out
}

/// One statement that creates the role or alters the existing one.
fn role_statement(user: &str, who: &Credentials, rights: &str) -> String {
    let password = who.secret().map(|p| format!(" PASSWORD {}", literal(p))).unwrap_or_default();
    let statement = |verb: &str| literal(&format!("{verb} ROLE {} WITH {rights}{password}", identifier(user)));
    let tag = dollar_tag(user, &password);
    format!(
        "DO {tag}BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN EXECUTE {}; ELSE EXECUTE {}; \
         END IF; END{tag}",
        literal(user),
        statement("ALTER"),
        statement("CREATE")
    )
}

/// A dollar quote that occurs in none of the texts.
fn dollar_tag(user: &str, password: &str) -> String {
    let mut tag = "$patroni$".to_owned();
    while user.contains(&tag) || password.contains(&tag) {
        tag.insert(tag.len() - 1, 'x');
    }
    tag
}

/// A quoted identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted literal, safe whatever standard_conforming_strings says.
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

async fn run_unlogged(setup: &Setup, statements: Vec<String>) -> Result<(), SqlError> {
    let mut target = Target::local(setup, "Patroni heartbeat");
    target.settings = UNLOGGED.iter().map(|s| (*s).to_owned()).collect();
    let connection = connect::open(&target, Duration::from_secs(3)).await?;
    for statement in statements {
        let run = connection.client.batch_execute(&statement);
        match tokio::time::timeout(Duration::from_secs(30), run).await {
            Ok(result) => result.map_err(|e| SqlError::of(&e))?,
            Err(_) => return Err(SqlError::NoAnswer("creating accounts took longer than 30 s".to_owned())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::setup::CustomMethod;

    fn setup() -> (tempfile::TempDir, Setup) {
        let dir = tempfile::tempdir().unwrap();
        let mut s = Setup::new("a", "demo", dir.path().join("data"), 5432);
        s.superuser =
            Credentials { username: Some("postgres".into()), password: Some("secret".into()), ..Default::default() };
        (dir, s)
    }

    #[test]
    fn initdb_gets_its_password_in_a_file_and_never_in_its_arguments() {
        let (_keep, mut s) = setup();
        s.initdb = vec![("encoding".into(), Some("'UTF8'".into())), ("data-checksums".into(), None)];
        let c = initdb_command(&s, &Binaries::known(&s, 150_000)).unwrap();
        assert_eq!(c.argv[0..4], ["initdb", "--encoding=UTF8", "--data-checksums", "--username=postgres"]);
        assert!(c.argv.iter().all(|a| !a.contains("secret")));
        assert_eq!(std::fs::read_to_string(&c.cleanup[0]).unwrap(), "secret\n");
        assert!(datadir::marker_path(&s).exists());
        s.initdb.push(("pgdata".into(), Some("/x".into())));
        assert!(initdb_command(&s, &Binaries::known(&s, 150_000)).unwrap_err().contains("pgdata"));
    }

    #[test]
    fn a_custom_method_gets_its_arguments() {
        let (_keep, mut s) = setup();
        assert_eq!(custom_command(&s).unwrap(), None);
        s.bootstrap_method = Some(CustomMethod {
            name: "clone".into(),
            command: "sh -c 'exit 0'".into(),
            extra: [("bucket".to_owned(), "b".to_owned())].into(),
            ..CustomMethod::default()
        });
        let argv = custom_command(&s).unwrap().unwrap().argv;
        assert_eq!(argv[..4], ["sh", "-c", "exit 0", "--scope=demo"]);
        assert_eq!(argv.last().map(String::as_str), Some("--bucket=b"));
    }

    #[test]
    fn quotes_in_names_and_passwords_stay_quotes() {
        let who =
            Credentials { username: Some("o'x".into()), password: Some("p'\\$patroni$".into()), ..Default::default() };
        let text = role_statement("o'x", &who, "LOGIN");
        assert!(text.starts_with("DO $patronix$BEGIN") && text.ends_with("END$patronix$"), "{text}");
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
