//! Commands that only look: list, topology, history, version, show-config.

use std::time::Duration;

use clap::ArgMatches;
use http::Method;
use serde_json::Value;

use super::dates;
use super::error::{CtlError, Result};
use super::members::{self, Show};
use super::output::{self, Column, Format};
use super::session::{Session, text_of};
use crate::config::yaml;
use crate::dcs::CONTRACT_VERSION;

/// The redraw period of `-W`.
const WATCH_SECONDS: f64 = 2.0;

/// How often a command redraws; `None`: once.
///
/// # Errors
/// A negative or absurd period.
pub fn period(args: &ArgMatches) -> Result<Option<Duration>> {
    let seconds = match args.get_one::<f64>("watch") {
        Some(seconds) => Some(*seconds),
        None => args.get_flag("watch2").then_some(WATCH_SECONDS),
    };
    let bad = |_| CtlError::plain("--watch must be a number of seconds, 0 or more");
    seconds.map(Duration::try_from_secs_f64).transpose().map_err(bad)
}

/// `list` and `topology`.
///
/// # Errors
/// The store cannot be read.
pub async fn list(session: &mut Session<'_>, args: &ArgMatches, topology: bool) -> Result<()> {
    let format = if topology { Format::Topology } else { format_of(args) };
    let (extended, timestamp) =
        if topology { (false, false) } else { (args.get_flag("extended"), args.get_flag("timestamp")) };
    let mut names: Vec<String> = args.get_many::<String>("CLUSTER_NAMES").into_iter().flatten().cloned().collect();
    if names.is_empty() && !session.config.scope.is_empty() {
        names.push(session.config.scope.clone());
    }
    if names.is_empty() {
        session.warn("Listing members: No cluster names were provided");
        return Ok(());
    }
    let mut stores = Vec::new();
    for name in &names {
        stores.push(session.store(name).await?);
    }
    let mut redraw = period(args)?.map(|p| tokio::time::interval(p.max(Duration::from_millis(1))));
    loop {
        if let Some(redraw) = redraw.as_mut() {
            redraw.tick().await;
            if session.terminal.is_terminal() {
                session.terminal.out("\x1b[2J\x1b[1;1H");
            }
        }
        if timestamp {
            session.say(&dates::stamp_seconds(&dates::now()));
        }
        for (scope, store) in names.iter().zip(&stores) {
            let cluster = session.read(store).await?;
            let table = session.member_table(&cluster, &Show { scope, extended, format }).await;
            session.terminal.out(&text_of(&table, format));
        }
        if redraw.is_none() {
            return Ok(());
        }
    }
}

/// The format that was asked for; clap has checked the word.
pub fn format_of(args: &ArgMatches) -> Format {
    args.get_one::<String>("format").and_then(|w| Format::from_word(w)).unwrap_or(Format::Pretty)
}

/// `history`.
///
/// # Errors
/// The store cannot be read.
pub async fn history(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let rows: Vec<Vec<Value>> = cluster
        .history
        .iter()
        .flatten()
        .map(|r| {
            let text = |t: &Option<String>| Value::from(t.clone().unwrap_or_default());
            vec![r.timeline.0.into(), r.lsn.0.into(), r.reason.clone().into(), text(&r.at), text(&r.new_leader)]
        })
        .collect();
    session.terminal.out(&output::render(format_of(args), None, &history_columns(), &rows, false));
    Ok(())
}

fn history_columns() -> [Column; 5] {
    [
        Column::right("TL"),
        Column::right("LSN"),
        Column::left("Reason"),
        Column::left("Timestamp"),
        Column::left("New Leader"),
    ]
}

/// `show-config`.
///
/// # Errors
/// The store cannot be read.
pub async fn show_config(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    if let Some(stored) = cluster.config.as_ref().and_then(|c| c.document.as_deref()) {
        if !serde_json::from_str::<Value>(stored).is_ok_and(|document| document.is_object()) {
            session.warn("the stored configuration is no JSON object, members go on with the one before: mend it with patronictl edit-config");
        }
        let text = yaml::to_string_block(&members::dynamic(&cluster));
        session.say(&text);
    }
    Ok(())
}

/// The first line of `version`.
pub fn version_line() -> String {
    format!("patronictl version {CONTRACT_VERSION}")
}

/// `version CLUSTER [MEMBERS]`, after the first line.
///
/// # Errors
/// The store cannot be read.
pub async fn version(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let wanted: Vec<&String> = args.get_many::<String>("MEMBER_NAMES").into_iter().flatten().collect();
    session.say("");
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    for (name, member) in &cluster.members {
        if member.api_url.is_none() || !(wanted.is_empty() || wanted.contains(&&name.0)) {
            continue;
        }
        let answer = session.call(Method::GET, member, "patroni", None).await;
        let body = answer.and_then(|a| serde_json::from_str::<Value>(&a.text).map_err(|e| e.to_string()));
        let line = match body {
            Ok(body) => {
                let server = body["server_version"].as_u64().filter(|v| *v > 0);
                let server = server.map_or(String::new(), |v| format!(" PostgreSQL {}", server_version(v)));
                format!("{name}: Patroni {}{server}", output::cell_text(&body["patroni"]["version"]))
            }
            Err(why) => format!("{name}: failed to get version: {why}"),
        };
        session.say(&line);
    }
    Ok(())
}

/// 90624 → `9.6.24`, 170002 → `17.2`.
fn server_version(number: u64) -> String {
    let (major, middle, minor) = (number / 10_000, number / 100 % 100, number % 100);
    if major < 10 { format!("{major}.{middle}.{minor}") } else { format!("{major}.{}", number % 10_000) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn server_versions_read_as_people_write_them() {
        assert_eq!([90624, 170002, 150010].map(server_version), ["9.6.24", "17.2", "15.10"]);
    }

    #[test]
    fn history_is_the_table_of_the_reference() {
        let rows = [vec![
            json!(1),
            json!(67197376),
            json!("no recovery target specified"),
            json!("2026-11-01T00:00:00.123456+00:00"),
            json!("pg-1"),
        ]];
        let want = "\
+----+----------+------------------------------+----------------------------------+------------+
| TL |      LSN | Reason                       | Timestamp                        | New Leader |
+----+----------+------------------------------+----------------------------------+------------+
|  1 | 67197376 | no recovery target specified | 2026-11-01T00:00:00.123456+00:00 | pg-1       |
+----+----------+------------------------------+----------------------------------+------------+
";
        assert_eq!(output::render(Format::Pretty, None, &history_columns(), &rows, false), want);
    }
}
