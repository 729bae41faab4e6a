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
        match request(session, name, member, op.force, from_leader).await? {
            Ok(true) => started.push((name, member)),
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

/// Waits until no member says `creating replica` any more. The person may interrupt it at any time.
async fn wait(session: &mut Session<'_>, mut waiting: Vec<(&MemberName, &Member)>) {
    let mut printed = 0;
    let mut poll = tokio::time::interval(POLL);
    poll.tick().await;
    while !waiting.is_empty() {
        if printed != waiting.len() {
            let names = waiting.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
            session.say(&format!("Waiting for reinitialize to complete on: {names}"));
            printed = waiting.len();
        }
        poll.tick().await;
        let mut still = Vec::new();
        for (name, member) in waiting {
            let answer = session.call(Method::GET, member, "patroni", None).await;
            let body = answer.ok().and_then(|a| serde_json::from_str::<Value>(&a.text).ok());
            match body {
                Some(body) if body["state"] != "creating replica" => {
                    session.say(&format!("Reinitialize is completed on: {name}"));
                }
                Some(_) | None => still.push((name, member)),
            }
        }
        waiting = still;
    }
}
