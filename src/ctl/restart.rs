//! `reload` and `restart`: one member after the other.

use clap::ArgMatches;
use http::Method;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

use super::dates::{self, Moment};
use super::error::{CtlError, Result};
use super::members;
use super::prompts;
use super::rest::Answer;
use super::select::{self, Operation};
use super::session::Session;
use crate::config::numbers;
use crate::model::{Cluster, Member, MemberName};

/// `--role` as typed; `any` without.
pub fn role(args: &ArgMatches) -> &str {
    args.get_one::<String>("role").map_or("any", String::as_str)
}

/// `Failed: <what> for member X, status code=503, (text)`.
pub fn failed(what: &str, name: &MemberName, answer: &Answer) -> String {
    format!("Failed: {what} for member {name}, status code={}, ({})", answer.status, answer.text)
}

/// Members that could not be asked at all; ends the command with exit code 1 after all others had their turn.
#[derive(Default)]
pub struct Unreachable(Vec<String>);

impl Unreachable {
    /// Notes one.
    pub fn add(&mut self, name: &MemberName, why: &str) {
        self.0.push(format!("{name} ({why})"));
    }
    /// The end of the command.
    ///
    /// # Errors
    /// When there were any.
    pub fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(CtlError::plain(format!("Can not reach {}", self.0.join(", ")))) }
    }
}

/// `reload`.
///
/// # Errors
/// Wrong selection, refusal, unreachable members.
pub async fn reload(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let op = Operation::new("reload", &scope, role(args), args);
    let chosen = select::select(session, &cluster, &op).await?;
    select::confirm(session, &op, &chosen, None, false)?;
    let wait = loop_wait(&cluster);
    let mut unreachable = Unreachable::default();
    for (name, member) in chosen {
        match session.call(Method::POST, member, "reload", None).await {
            Ok(answer) => session.say(&match answer.status {
                200 => format!("No changes to apply on member {name}"),
                202 => format!("Reload request received for member {name} and will be processed within {wait} seconds"),
                _ => failed("reload", name, &answer),
            }),
            Err(why) => unreachable.add(name, &why),
        }
    }
    unreachable.finish()
}

/// The cluster's loop_wait in seconds.
fn loop_wait(cluster: &Cluster) -> i64 {
    let value = members::dynamic(cluster)["loop_wait"].clone();
    numbers::parse_int(&super::output::cell_text(&value), None).unwrap_or(10)
}

/// `restart`.
///
/// # Errors
/// Wrong selection or values, refusal, unreachable members.
pub async fn restart(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let op = Operation::new("restart", &scope, role(args), args);
    let mut chosen = select::select(session, &cluster, &op).await?;
    let at = schedule(session, args, op.force)?;
    let pending = args.get_flag("pending");
    if pending && at.is_none() {
        chosen.retain(|(_, m)| m.pending_restart);
        if chosen.is_empty() {
            session.say("No member needs a restart");
            return Ok(());
        }
    }
    select::confirm(session, &op, &chosen, at.as_ref(), pending)?;
    if args.get_flag("any") {
        chosen = chosen.choose(&mut rand::rng()).copied().into_iter().collect();
    }
    let body = body(session, args, &cluster, at.as_ref(), op.force)?;
    let mut unreachable = Unreachable::default();
    for (name, member) in chosen {
        if let Err(why) = restart_one(session, name, member, &body, op.force && at.is_some()).await {
            unreachable.add(name, &why);
        }
    }
    unreachable.finish()
}

fn schedule(session: &mut Session<'_>, args: &ArgMatches, force: bool) -> Result<Option<Moment>> {
    let now = dates::now();
    let text = match args.get_one::<String>("scheduled") {
        Some(text) => text.clone(),
        None if force => return Ok(None),
        None => {
            let question = format!("When should the restart take place (e.g. {}) ", dates::hint(&now));
            prompts::ask(session.terminal, &question, "now")?
        }
    };
    dates::parse_scheduled(&text, &now)
}

fn body(
    session: &mut Session<'_>,
    args: &ArgMatches,
    cluster: &Cluster,
    at: Option<&Moment>,
    force: bool,
) -> Result<Value> {
    let version = match args.get_one::<String>("pg-version") {
        Some(version) => version.clone(),
        None if force => String::new(),
        None => {
            let question = "Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ";
            prompts::ask(session.terminal, question, "")?
        }
    };
    let mut body = Map::new();
    if args.get_flag("pending") {
        body.insert("restart_pending".into(), json!(true));
    }
    if !version.is_empty() {
        let numbers: Vec<&str> = version.split('.').collect();
        if !(2..=3).contains(&numbers.len()) || numbers.iter().any(|n| n.parse::<u32>().is_err()) {
            let text = format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {version}");
            return Err(CtlError::plain(text));
        }
        body.insert("postgres_version".into(), version.into());
    }
    if let Some(at) = at {
        if members::is_paused(cluster) {
            return Err(CtlError::plain("Can't schedule restart in the paused state"));
        }
        body.insert("schedule".into(), at.iso().into());
    }
    if let Some(timeout) = args.get_one::<String>("timeout") {
        body.insert("timeout".into(), timeout.clone().into());
    }
    Ok(Value::Object(body))
}

async fn restart_one(
    session: &mut Session<'_>,
    name: &MemberName,
    member: &Member,
    body: &Value,
    replace: bool,
) -> std::result::Result<(), String> {
    if replace && is_scheduled(member) {
        discard(session, name, member).await?;
    }
    let answer = session.call(Method::POST, member, "restart", Some(body)).await?;
    session.say(&match answer.status {
        200 => format!("Success: restart on member {name}"),
        202 => format!("Success: restart scheduled on member {name}"),
        409 => format!("Failed: another restart is already scheduled on member {name}"),
        _ => failed("restart", name, &answer),
    });
    Ok(())
}

/// Does the member show a scheduled restart?
pub fn is_scheduled(member: &Member) -> bool {
    serde_json::from_str::<Value>(&member.raw).is_ok_and(|status| status["scheduled_restart"].is_object())
}

/// Has the member discard its scheduled restart, and says what it answered.
///
/// # Errors
/// As [`Session::call`].
pub async fn discard(session: &mut Session<'_>, name: &MemberName, member: &Member) -> std::result::Result<(), String> {
    let answer = session.call(Method::DELETE, member, "restart", None).await?;
    session.say(&match answer.status {
        200 => format!("Success: flush scheduled restart for member {name}"),
        _ => failed("flush scheduled restart", name, &answer),
    });
    Ok(())
}
