//! `demote-cluster` and `promote-cluster`: a cluster follows another one, or stands on its own again.
//!
//! The change is one `PATCH /config` on the leader; the rest is watched, a line every second, until the leader is what it
//! should be. A cluster that does not get there is an error that names what is missing, not an endless wait.

use std::time::Duration;

use clap::ArgMatches;
use http::Method;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::dates;
use super::error::{CtlError, Result};
use super::members;
use super::prompts;
use super::session::Session;
use crate::dcs::kube::KubeStore;
use crate::model::{Cluster, Member, MemberName, PostgresState, Role};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A rewind and a restart take less; a promotion much less.
const PATIENCE: Duration = Duration::from_secs(600);

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Follow another cluster.
    Demote,
    /// Follow nobody.
    Promote,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Change::Demote => "demote",
            Change::Promote => "promote",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Change::Demote => "demotion",
            Change::Promote => "promotion",
        }
    }

    fn is_reached(self, role: Option<Role>) -> bool {
        match self {
            Change::Demote => role == Some(Role::StandbyLeader),
            Change::Promote => role == Some(Role::Primary),
        }
    }
}

/// `demote-cluster` or `promote-cluster`.
///
/// # Errors
/// No source is named; no leader; it is so already; the leader refuses; it does not become what it should in ten minutes.
pub async fn run(session: &mut Session<'_>, args: &ArgMatches, change: Change) -> Result<()> {
    let body = json!({ "standby_cluster": section(args, change)? });
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let (word, noun) = (change.word(), change.noun());
    let Some((name, Some(leader))) = leader_of(&cluster) else {
        return Err(CtlError::plain(format!("Cluster has no leader, {noun} is not possible")));
    };
    if change.is_reached(leader.role) {
        return Err(CtlError::plain("Cluster is already in the required state"));
    }
    if members::is_paused(&cluster) {
        let why = "in maintenance mode nobody carries it out, and at the resume it would happen unseen: `patronictl resume` first";
        return Err(CtlError::plain(format!("Failed to {word} {scope} cluster: {why}")));
    }
    if let Some(own) = itself(&cluster, &body["standby_cluster"]) {
        return Err(CtlError::plain(format!("Failed to {word} {scope} cluster: {own} is a member of it")));
    }
    session.say("Current cluster topology");
    session.print_members(&cluster, &scope).await;
    let question = format!("Are you sure you want to {word} {scope} cluster?");
    if !args.get_flag("force") && !prompts::confirm(session.terminal, &question)? {
        return Err(CtlError::plain(format!("Aborted cluster {noun}")));
    }
    let failed = format!("Failed to {word} {scope} cluster");
    match session.call(Method::PATCH, leader, "config", Some(&body)).await {
        Ok(answer) if answer.status == 200 => {}
        Ok(answer) => {
            let (status, text) = (answer.status, answer.text);
            return Err(CtlError::plain(format!("{failed}: {failed}: /config PATCH status code={status}, ({text})")));
        }
        Err(why) => return Err(CtlError::plain(format!("{failed}: {why}"))),
    }
    follow_to_its_end(session, &store, change, name).await?;
    session.say(&format!("{} cluster is successfully {word}d", dates::stamp_seconds(&dates::now())));
    let cluster = session.read(&store).await?;
    session.print_members(&cluster, &scope).await;
    Ok(())
}

/// What the configuration is to say.
fn section(args: &ArgMatches, change: Change) -> Result<Value> {
    if change == Change::Promote {
        return Ok(Value::Null);
    }
    let text = |key: &str| args.get_one::<String>(key).filter(|text| !text.is_empty()).cloned();
    let mut section = Map::new();
    for (option, key) in
        [("host", "host"), ("restore-command", "restore_command"), ("primary-slot-name", "primary_slot_name")]
    {
        section.extend(text(option).map(|value| (key.to_owned(), value.into())));
    }
    section.extend(args.get_one::<u16>("port").map(|port| ("port".to_owned(), (*port).into())));
    match ["host", "port", "restore_command"].iter().any(|key| section.contains_key(*key)) {
        true => Ok(section.into()),
        false => Err(CtlError::plain("At least --host, --port or --restore-command should be specified")),
    }
}

/// The member whose address the section names: a cluster that follows itself has nobody who writes.
fn itself(cluster: &Cluster, section: &Value) -> Option<MemberName> {
    let host = section.get("host")?.as_str()?;
    let port = section.get("port").and_then(Value::as_u64).unwrap_or(5432);
    let place = format!("postgres://{host}:{port}/");
    let at = |m: &Member| m.conn_url.as_ref().is_some_and(|url| url.starts_with(&place));
    cluster.members.iter().find(|(_, m)| at(m)).map(|(name, _)| name.clone())
}

fn leader_of(cluster: &Cluster) -> Option<(&MemberName, Option<&Member>)> {
    let name = cluster.leader.as_ref().and_then(|l| l.named())?;
    Some((name, cluster.members.get(name)))
}

/// What a look shows: in words, and whether it is what it should be.
fn look(cluster: &Cluster, change: Change, former: &MemberName) -> (String, bool) {
    let state_of = |member: Option<&Member>| {
        member.and_then(|m| m.state.as_ref()).map_or_else(|| "unknown".to_owned(), |s| s.word().to_owned())
    };
    let runs = |member: Option<&Member>| member.is_some_and(|m| m.state == Some(PostgresState::Running));
    let leader = leader_of(cluster);
    let member = leader.and_then(|(_, member)| member);
    let role = member.and_then(|m| m.role);
    let mut words = format!(
        "cluster is unlocked: {}, leader role: {}, leader state: {}",
        if leader.is_none() { "True" } else { "False" },
        role.map_or("unknown", Role::word),
        state_of(member)
    );
    let before = cluster.members.get(former).filter(|_| leader.is_some_and(|(name, _)| name != former));
    if before.is_some() {
        words.push_str(&format!(", previous leader state: '{}'", state_of(before)));
    }
    let settled = change == Change::Promote || before.is_none() || runs(before);
    (words, change.is_reached(role) && runs(member) && settled)
}

async fn follow_to_its_end(
    session: &mut Session<'_>,
    store: &KubeStore,
    change: Change,
    former: &MemberName,
) -> Result<()> {
    let began = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let cluster = session.read(store).await?;
        let (words, reached) = look(&cluster, change, former);
        if reached {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            let wanted = if change == Change::Demote { "a running standby_leader" } else { "a running primary" };
            return Err(CtlError::plain(format!(
                "The change is written, and after {} s the leader is not {wanted}: {words}. `patronictl list` shows the reason \
                 of each member",
                PATIENCE.as_secs()
            )));
        }
        session.say(&format!("{} {words}", dates::stamp_seconds(&dates::now())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LeaderRecord, LeaseRecord, Version};
    use std::collections::BTreeMap;

    fn member(role: Role, state: PostgresState) -> Member {
        Member { role: Some(role), state: Some(state), ..Member::default() }
    }

    fn led_by(name: &str, members: &[(&str, Member)]) -> Cluster {
        let lease = LeaseRecord { leader: Some(name.into()), ..LeaseRecord::default() };
        let leader = LeaderRecord {
            version: Version("1".into()),
            lease,
            holder: None,
            optime: None,
            slots: BTreeMap::new(),
            retain_slots: Vec::new(),
            failsafe: None,
            addresses: Vec::new(),
            released: None,
            claim: None,
        };
        Cluster {
            leader: Some(leader),
            members: members.iter().map(|(name, m)| ((*name).into(), m.clone())).collect(),
            ..Cluster::default()
        }
    }

    #[test]
    fn it_is_over_when_the_leader_is_what_it_should_be_and_the_former_one_runs() {
        let (primary, follows) =
            (member(Role::Primary, PostgresState::Running), member(Role::StandbyLeader, PostgresState::Running));
        let stopped = member(Role::Replica, PostgresState::Stopped);
        let a = MemberName::from("a");
        let (words, reached) = look(&led_by("a", &[("a", primary.clone())]), Change::Demote, &a);
        let expected = "cluster is unlocked: False, leader role: primary, leader state: running";
        assert_eq!((words.as_str(), reached), (expected, false));
        assert!(look(&led_by("a", &[("a", follows.clone())]), Change::Demote, &a).1);
        let (words, reached) = look(&led_by("b", &[("a", stopped), ("b", follows)]), Change::Demote, &a);
        assert!(!reached && words.ends_with(", previous leader state: 'stopped'"), "{words}");
        assert!(look(&led_by("a", &[("a", primary)]), Change::Promote, &a).1);
        let (words, reached) = look(&Cluster::default(), Change::Promote, &a);
        assert!(!reached && words.starts_with("cluster is unlocked: True, leader role: unknown"), "{words}");
    }
}
