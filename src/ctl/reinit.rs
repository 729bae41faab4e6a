//! `reinit`.

use std::time::Duration;

use clap::ArgMatches;
use http::Method;
use serde_json::{Value, json};

use super::error::Result;
use super::prompts;
use super::restart::{Unreachable, failed};
use super::select::{self, Operation};
use super::session::Session;
use crate::model::{Member, MemberName};

/// A member offers no event to wait for: it is asked at this interval.
const POLL: Duration = Duration::from_secs(2);

/// `reinit`.
///
/// # Errors
/// Wrong selection, refusal, unreachable members.
pub async fn reinit(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let op = Operation::new("reinitialize", &scope, "replica", args);
    let chosen = select::select(session, &cluster, &op).await?;
    if chosen.is_empty() {
        return Ok(());
    }
    select::confirm(session, &op, &chosen, None, false)?;
    let from_leader = args.get_flag("from-leader");
    let mut started = Vec::new();
    let mut unreachable = Unreachable::default();
    for (name, member) in chosen {
        let before = status(session, member).await.and_then(|s| began(&s));
        match request(session, name, member, op.force, from_leader).await? {
            Ok(true) => started.push(Started { name, member, before }),
            Ok(false) => {}
            Err(why) => unreachable.add(name, &why),
        }
    }
    if args.get_flag("wait") {
        wait(session, started).await;
    }
    unreachable.finish()
}

/// Asks one member; was it started?
async fn request(
    session: &mut Session<'_>,
    name: &MemberName,
    member: &Member,
    mut force: bool,
    from_leader: bool,
) -> Result<std::result::Result<bool, String>> {
    loop {
        let body = json!({"force": force, "from_leader": from_leader});
        let answer = match session.call(Method::POST, member, "reinitialize", Some(&body)).await {
            Ok(answer) => answer,
            Err(why) => return Ok(Err(why)),
        };
        if answer.status == 200 {
            session.say(&format!("Success: reinitialize for member {name}"));
            return Ok(Ok(true));
        }
        session.say(&failed("reinitialize", name, &answer));
        let question = "Do you want to cancel it and reinitialize anyway?";
        if force || !answer.text.ends_with(" already in progress") || !prompts::confirm(session.terminal, question)? {
            return Ok(Ok(false));
        }
        force = true;
    }
}

/// A member whose reinitialize has begun.
struct Started<'a> {
    name: &'a MemberName,
    member: &'a Member,
    /// When the Postgres of before was started.
    before: Option<Value>,
}

async fn status(session: &Session<'_>, member: &Member) -> Option<Value> {
    let answer = session.call(Method::GET, member, "patroni", None).await.ok()?;
    serde_json::from_str(&answer.text).ok()
}

fn began(status: &Value) -> Option<Value> {
    status.get("postmaster_start_time").filter(|at| !at.is_null()).cloned()
}

/// Waits until another Postgres runs than the one of before: the data were removed and copied meanwhile. The person may interrupt it at any time.
async fn wait(session: &mut Session<'_>, mut waiting: Vec<Started<'_>>) {
    let mut printed = 0;
    let mut poll = tokio::time::interval(POLL);
    poll.tick().await;
    while !waiting.is_empty() {
        if printed != waiting.len() {
            let names = waiting.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
            session.say(&format!("Waiting for reinitialize to complete on: {names}"));
            printed = waiting.len();
        }
        poll.tick().await;
        let mut still = Vec::new();
        for started in waiting {
            let said = status(session, started.member).await;
            let runs = |s: &Value| s["state"] == "running" && (started.before.is_none() || began(s) != started.before);
            if said.as_ref().is_some_and(runs) {
                session.say(&format!("Reinitialize is completed on: {}", started.name));
            } else {
                still.push(started);
            }
        }
        waiting = still;
    }
}
