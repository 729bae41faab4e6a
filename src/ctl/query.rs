//! `dsn` and `query`: find a member, ask its Postgres directly.

use std::time::Duration;

use clap::ArgMatches;
use serde_json::{Value, json};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dates;
use super::error::{CtlError, Result};
use super::members;
use super::output::{self, Column, Format};
use super::rest::chain;
use super::select::WantedRole;
use super::session::Session;
use super::tls;
use super::view;
use crate::model::{Cluster, Member, MemberName};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// `dsn`.
///
/// # Errors
/// Contradicting options, no such member.
pub async fn dsn(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let target = Target::of(args)?;
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let found = target.members(&cluster).into_iter().find_map(|(_, m)| members::host_port(m));
    let (host, port) = found.ok_or_else(|| CtlError::plain("Can not find a suitable member"))?;
    session.say(&format!("host={host} port={port}"));
    Ok(())
}

/// Whom to ask.
struct Target {
    role: Option<String>,
    member: Option<String>,
}

impl Target {
    fn of(args: &ArgMatches) -> Result<Target> {
        let (role, member) = (args.get_one::<String>("role").cloned(), args.get_one::<String>("member").cloned());
        if role.is_some() && member.is_some() {
            return Err(CtlError::plain("--role and --member are mutually exclusive options"));
        }
        Ok(Target { role, member })
    }
    fn members<'c>(&self, cluster: &'c Cluster) -> Vec<(&'c MemberName, &'c Member)> {
        match &self.member {
            Some(name) => cluster.members.iter().filter(|(n, _)| n.0 == *name).collect(),
            None => WantedRole::from_word(self.role.as_deref().unwrap_or("leader")).members(cluster),
        }
    }
    /// Roles other than leader and any are verified: must it be in recovery?
    fn recovery(&self) -> Option<bool> {
        match self.role.as_deref() {
            Some("replica" | "standby" | "standby-leader") => Some(true),
            Some("primary") => Some(false),
            Some(_) | None => None,
        }
    }
    fn unavailable(&self) -> String {
        match (&self.role, &self.member) {
            (Some(role), _) => format!("No connection to role '{role}' is available"),
            (_, Some(member)) => format!("No connection to member {member} is available"),
            (None, None) => "No connection is available".to_owned(),
        }
    }
}

/// `query`.
///
/// # Errors
/// Contradicting options, unreadable file or store; a failing query is a row, not an error.
pub async fn query(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let target = Target::of(args)?;
    let sql = match (args.get_one::<String>("command"), args.get_one::<String>("file")) {
        (Some(_), Some(_)) => return Err(CtlError::plain("--file and --command are mutually exclusive options")),
        (None, None) => return Err(CtlError::plain("You need to specify either --command or --file")),
        (Some(sql), None) => sql.clone(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|e| CtlError::plain(format!("Can not read {file}: {e}")))?
        }
    };
    let password = if args.get_flag("password") { Some(hidden_password(session)?) } else { None };
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let mut redraw = view::period(args)?.map(|p| tokio::time::interval(p.max(Duration::from_millis(1))));
    loop {
        if let Some(redraw) = redraw.as_mut() {
            redraw.tick().await;
        }
        let text = match connect(&target, &cluster, args, password.as_deref()).await {
            Err(why) => Some(trouble(args, &why)),
            Ok(client) => match run(&client, &sql).await {
                Ok(None) => None,
                Ok(Some((columns, rows))) => print(args, &columns, &rows),
                Err(e) => Some(trouble(args, &sqlstate(&e))),
            },
        };
        if let Some(text) = text {
            session.terminal.out(&text);
        }
        if redraw.is_none() {
            return Ok(());
        }
    }
}

fn sqlstate(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(refusal) => format!("ERROR, SQLSTATE: {} ({})", refusal.code().code(), refusal.message()),
        None => format!("ERROR: {}", reason(error)),
    }
}

/// What Postgres said, else what the connection came to.
fn reason(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(refusal) => format!("{}: {}", refusal.severity(), refusal.message()),
        None => chain(error),
    }
}

/// One row: when and what. Without headings, except in a table.
fn trouble(args: &ArgMatches, message: &str) -> String {
    let stamp = dates::stamp_seconds(&dates::now());
    match args.get_one::<String>("format").map(String::as_str) {
        Some("tsv") | None => format!("{stamp}\t{message}\n"),
        Some(_) => {
            let columns = [Column::left("Field 1"), Column::left("Field 2")];
            print(args, &columns, &[vec![json!(stamp), json!(message)]]).unwrap_or_default()
        }
    }
}

/// An unknown format prints nothing.
fn print(args: &ArgMatches, columns: &[Column], rows: &[Vec<Value>]) -> Option<String> {
    let format = Format::from_word(args.get_one::<String>("format").map_or("tsv", String::as_str))?;
    if format == Format::Tsv {
        let delimiter = args.get_one::<String>("delimiter").map_or("\t", String::as_str);
        return Some(output::tsv(columns, rows, delimiter) + "\n");
    }
    Some(output::render(format, None, columns, rows, false))
}

/// The first member that fits and answers; else one line with the reason of each.
async fn connect(
    target: &Target,
    cluster: &Cluster,
    args: &ArgMatches,
    password: Option<&str>,
) -> std::result::Result<Client, String> {
    let mut whys = Vec::new();
    for (name, member) in target.members(cluster) {
        let Some((host, port)) = members::host_port(member) else {
            whys.push(format!("{name} has not published its address"));
            continue;
        };
        match connect_to(&host, port, args, password).await {
            Err(why) => whys.push(format!("{name} at {host}:{port}: {why}")),
            Ok(client) => {
                let Some(wanted) = target.recovery() else { return Ok(client) };
                let row = client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
                match row.and_then(|r| r.try_get::<_, bool>(0)) {
                    Ok(found) if found == wanted => return Ok(client),
                    Ok(true) => whys.push(format!("{name} is in recovery")),
                    Ok(false) => whys.push(format!("{name} is not in recovery")),
                    Err(e) => whys.push(format!("{name}: {}", reason(&e))),
                }
            }
        }
    }
    let what = target.unavailable();
    Err(if whys.is_empty() { what } else { format!("{what}: {}", whys.join("; ")) })
}

/// Connects as libpq would with this address: options, then libpq's variables. TLS if the server has it.
async fn connect_to(
    host: &str,
    port: u16,
    args: &ArgMatches,
    password: Option<&str>,
) -> std::result::Result<Client, String> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let option = |name: &str, variable: &str| args.get_one::<String>(name).cloned().or_else(|| env(variable));
    let mut config = tokio_postgres::Config::new();
    config.host(host).port(port).connect_timeout(CONNECT_TIMEOUT);
    config.application_name(env("PGAPPNAME").unwrap_or_else(|| "Patroni ctl".into()));
    let user = option("username", "PGUSER");
    if let Some(user) = &user {
        config.user(user);
    }
    if let Some(database) = option("dbname", "PGDATABASE").or(user) {
        config.dbname(database);
    }
    if let Some(password) = password.map(str::to_owned).or_else(|| env("PGPASSWORD")) {
        config.password(password);
    }
    let tls = MakeRustlsConnect::new(tls::unverified().map_err(|e| e.to_string())?);
    // The whole handshake, not only the TCP connection.
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(tls)).await;
    let late = |_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
    let (client, connection) = connected.map_err(late)?.map_err(|e| reason(&e))?;
    tokio::spawn(async move {
        // Its errors reach the client as failed queries.
        drop(connection.await);
    });
    Ok(client)
}

type Rows = (Vec<Column>, Vec<Vec<Value>>);

/// The rows of the last statement that returned any; `None`: no statement did.
async fn run(client: &Client, sql: &str) -> std::result::Result<Option<Rows>, tokio_postgres::Error> {
    // Types are known for single statements only; scripts get text.
    let types: Vec<Type> = match client.prepare(sql).await {
        Ok(statement) => statement.columns().iter().map(|c| c.type_().clone()).collect(),
        Err(_) => Vec::new(),
    };
    let mut found: Option<Rows> = None;
    #[allow(clippy::wildcard_enum_match_arm)]
    for message in client.simple_query(sql).await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                found = Some((columns.iter().map(|c| Column::left(c.name())).collect(), Vec::new()));
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|i| cell(row.get(i), types.get(i))).collect();
                if let Some((_, rows)) = found.as_mut() {
                    rows.push(cells);
                }
            }
            // CommandComplete, and whatever kinds the library adds: nothing to print.
            other => drop(other),
        }
    }
    Ok(found)
}

/// A value as JSON: numbers and booleans as such, everything else as Postgres prints it.
fn cell(text: Option<&str>, kind: Option<&Type>) -> Value {
    let Some(text) = text else { return Value::Null };
    let typed = match kind {
        Some(&Type::INT2 | &Type::INT4 | &Type::INT8 | &Type::OID) => text.parse::<i64>().ok().map(Value::from),
        Some(&Type::FLOAT4 | &Type::FLOAT8) => text.parse::<f64>().ok().filter(|f| f.is_finite()).map(Value::from),
        Some(&Type::BOOL) => Some(Value::Bool(text == "t")),
        Some(_) | None => None,
    };
    typed.unwrap_or_else(|| text.into())
}

/// Asks without echo.
fn hidden_password(session: &mut Session<'_>) -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    session.terminal.out("Password: ");
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).ok();
    if let Some(mut silent) = before.clone() {
        silent.local_modes.remove(LocalModes::ECHO);
        if tcsetattr(&stdin, OptionalActions::Now, &silent).is_err() {
            return Err(CtlError::plain("Can not switch the echo of the terminal off"));
        }
    }
    let answer = session.terminal.read_line();
    if let Some(before) = before {
        session.terminal.out("\n");
        if tcsetattr(&stdin, OptionalActions::Now, &before).is_err() {
            session.warn("Can not switch the echo of the terminal on again: run `stty echo`");
        }
    }
    answer.ok_or(CtlError::Aborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_the_type_of_their_column() {
        assert_eq!(cell(Some("7"), Some(&Type::INT8)), json!(7));
        assert_eq!(cell(Some("t"), Some(&Type::BOOL)), json!(true));
        assert_eq!(cell(Some("7"), Some(&Type::TEXT)), json!("7"));
        assert_eq!(cell(Some("NaN"), Some(&Type::FLOAT8)), json!("NaN"));
        assert_eq!(cell(None, None), Value::Null);
    }
}
