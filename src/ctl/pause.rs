//! `pause` and `resume`: maintenance mode.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ArgMatches;
use http::Method;
use serde_json::{Value, json};

use super::error::{CtlError, Result};
use super::members;
use super::select;
use super::session::Session;
use crate::dcs::kube::KubeStore;
use crate::model::{Cluster, Member, MemberName};

/// Between two looks whether every member observes it.
const LOOK: Duration = Duration::from_secs(1);

/// `pause` (`on`) or `resume`.
///
/// # Errors
/// It is so already; no member answers.
pub async fn run(session: &mut Session<'_>, args: &ArgMatches, on: bool) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    if members::is_paused(&cluster) == on {
        let is = if on { "already" } else { "not" };
        return Err(CtlError::plain(format!("Cluster is {is} paused")));
    }
    let word = if on { "pause" } else { "resume" };
    let body = json!({"pause": if on { Value::Bool(true) } else { Value::Null }});
    for (name, member) in select::leader_first(&cluster) {
        let answer = match session.call(Method::PATCH, member, "config", Some(&body)).await {
            Ok(answer) => answer,
            Err(why) => {
                session.warn(&format!("Member {name} is not accessible: {why}"));
                continue;
            }
        };
        if answer.status != 200 {
            let (status, text) = (answer.status, answer.text);
            session.say(&format!("Failed: {word} cluster management status code={status}, ({text})"));
            return Ok(());
        }
        if args.get_flag("wait") {
            session.say(&format!("'{word}' request sent, waiting until it is recognized by all nodes"));
            if let Some(late) = late(session, &store, on, &published(&cluster)).await? {
                session.say(&late);
                return Ok(());
            }
        }
        session.say(&format!("Success: cluster management is {word}d"));
        return Ok(());
    }
    Err(CtlError::plain("Can not find accessible cluster member"))
}

/// What each member has published.
fn published(cluster: &Cluster) -> BTreeMap<MemberName, String> {
    cluster.members.iter().map(|(name, member)| (name.clone(), member.raw.clone())).collect()
}

fn observes(member: &Member) -> bool {
    serde_json::from_str::<Value>(&member.raw).is_ok_and(|status| status["pause"].as_bool() == Some(true))
}

/// Waits until every member shows it, `loop_wait` and a second at most. `Some`: who has published something else since, in
/// the words for a person, which are the same for a resume; a member that says nothing at all may be gone, and one that
/// came meanwhile was not there to be told.
async fn late(
    session: &Session<'_>,
    store: &KubeStore,
    on: bool,
    before: &BTreeMap<MemberName, String>,
) -> Result<Option<String>> {
    let mut looks = 0;
    loop {
        let cluster = session.read(store).await?;
        let missing: Vec<_> =
            cluster.members.iter().filter(|(_, m)| m.api_url.is_some() && observes(m) != on).collect();
        let limit = members::dynamic(&cluster)["loop_wait"].as_u64().unwrap_or(10);
        if missing.is_empty() {
            return Ok(None);
        }
        if looks > limit {
            let changed = |(name, m): &&(&MemberName, &Member)| before.get(*name).is_some_and(|b| *b != m.raw);
            let names: Vec<&str> = missing.iter().filter(changed).map(|(name, _)| name.as_str()).collect();
            return Ok((!names.is_empty())
                .then(|| format!("{} members didn't recognized pause state after {limit} seconds", names.join(", "))));
        }
        looks += 1;
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_observes_it_when_its_status_says_so() {
        let member = |raw: &str| Member { raw: raw.to_owned(), ..Member::default() };
        assert!(observes(&member(r#"{"pause": true, "state": "running"}"#)));
        assert!(!observes(&member(r#"{"state": "running"}"#)) && !observes(&member("")));
    }
}
