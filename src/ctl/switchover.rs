//! `switchover` and `failover`.

use clap::ArgMatches;
use http::Method;
use serde_json::{Map, Value};

use super::dates::{self, Moment};
use super::error::{CtlError, Result};
use super::members;
use super::output::cell_text;
use super::prompts;
use super::rest::Answer;
use super::session::Session;
use crate::config::numbers;
use crate::dcs::{Dcs, RequestText, WriteResult};
use crate::model::{Cluster, MemberName, StoreWrite};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manual {
    /// From a healthy leader, maybe later.
    Switchover,
    /// To a named member, now.
    Failover,
}

impl Manual {
    fn word(self) -> &'static str {
        match self {
            Manual::Switchover => "switchover",
            Manual::Failover => "failover",
        }
    }
    fn title(self) -> &'static str {
        match self {
            Manual::Switchover => "Switchover",
            Manual::Failover => "Failover",
        }
    }
}

/// What was agreed upon in the dialogue.
struct Plan {
    leader: Option<String>,
    candidate: Option<String>,
    at: Option<Moment>,
}

/// `switchover` and `failover`.
///
/// # Errors
/// Patroni's messages.
pub async fn run(session: &mut Session<'_>, args: &ArgMatches, action: Manual) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let mut cluster = session.read(&store).await?;
    session.say("Current cluster topology");
    session.print_members(&cluster, &scope).await;
    let plan = dialogue(session, args, action, &cluster, &scope)?;
    match request(session, action, &cluster, &plan).await {
        Ok(answer) if matches!(answer.status, 200 | 202) => {
            session.say(&format!("{} {}", dates::stamp(&dates::now()), answer.text));
            cluster = session.read(&store).await?;
        }
        Ok(answer) => {
            session.say(&format!("{} failed, details: {}, {}", action.title(), answer.status, answer.text));
            return Ok(());
        }
        Err(why) => {
            session.warn(&why);
            session.warn("Failing over to DCS");
            let stamp = dates::stamp(&dates::now());
            session.say(&format!("{stamp} Could not {} using Patroni api, falling back to DCS", action.word()));
            let request = RequestText {
                leader: plan.leader.as_deref().map(MemberName::from),
                candidate: plan.candidate.as_deref().map(MemberName::from),
                scheduled_at: plan.at.map(|at| at.iso()),
            };
            written(store.write(StoreWrite::SetRequest(request)).await)?;
        }
    }
    session.print_members(&cluster, &scope).await;
    Ok(())
}

fn written(result: WriteResult) -> Result<()> {
    match result {
        WriteResult::Written(_) => Ok(()),
        WriteResult::Conflict => {
            Err(CtlError::plain("Another request was written at the same time: look at it and try again"))
        }
        WriteResult::Refused(why) | WriteResult::Unknown(why) => {
            Err(CtlError::plain(format!("Can not write the request into the store: {why}")))
        }
    }
}

async fn request(
    session: &Session<'_>,
    action: Manual,
    cluster: &Cluster,
    plan: &Plan,
) -> std::result::Result<Answer, String> {
    let leader = cluster.leader.as_ref().and_then(|l| l.named()).map(|n| n.0.as_str());
    let target = leader.or(plan.candidate.as_deref()).unwrap_or_default();
    let member = cluster.members.get(&MemberName::from(target));
    let member = member.ok_or_else(|| format!("the pod of member {target} does not exist"))?;
    let mut body = Map::new();
    body.insert("candidate".into(), plan.candidate.clone().map_or(Value::Null, Value::from));
    if let Some(leader) = &plan.leader {
        body.insert("leader".into(), leader.clone().into());
    }
    if let Some(at) = &plan.at {
        body.insert("scheduled_at".into(), at.iso().into());
    }
    let body = Value::Object(body);
    let answer = session.call(Method::POST, member, action.word(), Some(&body)).await?;
    let old = answer.status == 501 && answer.text.contains("Server does not support this operation");
    if old && action == Manual::Switchover {
        return session.call(Method::POST, member, Manual::Failover.word(), Some(&body)).await;
    }
    Ok(answer)
}

fn dialogue(
    session: &mut Session<'_>,
    args: &ArgMatches,
    action: Manual,
    cluster: &Cluster,
    scope: &str,
) -> Result<Plan> {
    let force = args.get_flag("force");
    let owner = cluster.leader.as_ref().and_then(|l| l.named()).map(|n| n.0.clone());
    let leader = match action {
        Manual::Failover => None,
        Manual::Switchover => Some(agree_on_leader(session, args, cluster, scope, owner.as_deref())?),
    };
    let given = args.get_one::<String>("candidate").cloned();
    let candidate = agree_on_candidate(session, given, force, action, cluster, scope)?;
    if let (Manual::Failover, false, Some(to)) = (action, force, &candidate) {
        let question = format!("Are you sure you want to failover to the asynchronous node {to}?");
        if !is_in_sync(cluster, to) && !prompts::confirm(session.terminal, &question)? {
            return Err(CtlError::plain("Aborting failover"));
        }
    }
    let at = match action {
        Manual::Failover => None,
        Manual::Switchover => agree_on_time(session, args, cluster, force)?,
    };
    if !force {
        let demoting = owner.map_or(String::new(), |o| format!(", demoting current leader {o}"));
        let word = action.word();
        let (question, refused) = match &at {
            None => (format!("Are you sure you want to {word} cluster {scope}{demoting}?"), format!("Aborting {word}")),
            Some(at) => (
                format!("Are you sure you want to schedule {word} of cluster {scope} at {}{demoting}?", at.iso()),
                format!("Aborting scheduled {word}"),
            ),
        };
        if !prompts::confirm(session.terminal, &question)? {
            return Err(CtlError::plain(refused));
        }
    }
    Ok(Plan { leader, candidate, at })
}

fn agree_on_leader(
    session: &mut Session<'_>,
    args: &ArgMatches,
    cluster: &Cluster,
    scope: &str,
    owner: Option<&str>,
) -> Result<String> {
    let owner = owner.ok_or_else(|| CtlError::plain("This cluster has no leader"))?;
    let leader = match args.get_one::<String>("leader") {
        Some(leader) => leader.clone(),
        None if args.get_flag("force") => owner.to_owned(),
        None => {
            let standby = &members::dynamic(cluster)["standby_cluster"];
            let is_set = |key: &str| !matches!(cell_text(&standby[key]).as_str(), "None" | "" | "0");
            let standby = ["host", "port", "restore_command"].into_iter().any(is_set);
            prompts::ask(session.terminal, if standby { "Standby Leader" } else { "Primary" }, owner)?
        }
    };
    if leader == owner {
        Ok(leader)
    } else {
        Err(CtlError::plain(format!("Member {leader} is not the leader of cluster {scope}")))
    }
}

fn agree_on_candidate(
    session: &mut Session<'_>,
    given: Option<String>,
    force: bool,
    action: Manual,
    cluster: &Cluster,
    scope: &str,
) -> Result<Option<String>> {
    let owner = cluster.leader.as_ref().and_then(|l| l.named());
    let fits = cluster.members.iter().filter(|(n, m)| Some(*n) != owner && !m.tags.nofailover);
    let names: Vec<&str> = fits.map(|(n, _)| n.as_str()).collect();
    if names.is_empty() {
        return Err(CtlError::plain(format!("No candidates found to {} to", action.word())));
    }
    let candidate = match given {
        Some(name) => Some(name),
        None if force => None,
        None => {
            let shown = names.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ");
            Some(prompts::ask(session.terminal, &format!("Candidate [{shown}]"), "")?)
        }
    };
    let Some(name) = candidate.as_deref().filter(|c| !c.is_empty()) else {
        return match action {
            Manual::Switchover => Ok(None),
            Manual::Failover => Err(CtlError::plain("Failover could be performed only to a specific candidate")),
        };
    };
    if owner.is_some_and(|o| o.0 == name) {
        return Err(CtlError::plain(format!("Member {name} is already the leader of cluster {scope}")));
    }
    if !names.contains(&name) {
        return Err(CtlError::plain(format!(
            "Member {name} does not exist in cluster {scope} or is tagged as nofailover"
        )));
    }
    Ok(candidate)
}

/// Would a failover to this member leave the synchronous set? True also when there is none.
fn is_in_sync(cluster: &Cluster, candidate: &str) -> bool {
    let mode = cell_text(&members::dynamic(cluster)["synchronous_mode"]).to_lowercase();
    let on = mode == "quorum" || numbers::parse_bool(&mode).unwrap_or(false);
    match cluster.sync.as_ref().filter(|s| on && s.leader.is_some()) {
        None => true,
        Some(sync) => sync.leader.iter().chain(&sync.standbys).any(|n| n.0.eq_ignore_ascii_case(candidate)),
    }
}

fn agree_on_time(
    session: &mut Session<'_>,
    args: &ArgMatches,
    cluster: &Cluster,
    force: bool,
) -> Result<Option<Moment>> {
    let now = dates::now();
    let text = match args.get_one::<String>("scheduled") {
        Some(text) => text.clone(),
        None if force => return Ok(None),
        None => {
            let question = format!("When should the switchover take place (e.g. {} ) ", dates::hint(&now));
            prompts::ask(session.terminal, &question, "now")?
        }
    };
    let at = dates::parse_scheduled(&text, &now)?;
    if at.is_some() && members::is_paused(cluster) {
        return Err(CtlError::plain("Can't schedule switchover in the paused state"));
    }
    Ok(at)
}
