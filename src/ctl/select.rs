//! Which members an operation is for.

use clap::ArgMatches;

use super::dates::Moment;
use super::error::{CtlError, Result};
use super::prompts;
use super::session::Session;
use crate::model::{Cluster, Member, MemberName, Role};

/// `--role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedRole {
    /// The lock owner.
    Leader,
    /// The lock owner unless it is a standby leader.
    Primary,
    /// The lock owner unless it is a primary.
    StandbyLeader,
    /// Everybody else.
    Replica,
    /// Everybody.
    Any,
}

impl WantedRole {
    /// From the word on the command line; clap has checked it.
    pub fn from_word(word: &str) -> WantedRole {
        match word {
            "leader" => WantedRole::Leader,
            "primary" => WantedRole::Primary,
            "standby-leader" => WantedRole::StandbyLeader,
            "replica" | "standby" => WantedRole::Replica,
            _ => WantedRole::Any,
        }
    }
    /// The members with this role, by name.
    pub fn members(self, cluster: &Cluster) -> Vec<(&MemberName, &Member)> {
        let leader = cluster.leader.as_ref().and_then(|l| l.named());
        let fits = |name: &MemberName, member: &Member| {
            let owner = leader == Some(name);
            match self {
                WantedRole::Leader => owner,
                WantedRole::Primary => owner && member.role != Some(Role::StandbyLeader),
                WantedRole::StandbyLeader => owner && member.role != Some(Role::Primary),
                WantedRole::Replica => !owner,
                WantedRole::Any => true,
            }
        };
        cluster.members.iter().filter(|(n, m)| fits(n, m)).collect()
    }
}

/// Members with an address, the leader first: the order in which somebody is looked for who answers for the cluster.
pub fn leader_first(cluster: &Cluster) -> Vec<(&MemberName, &Member)> {
    let leader = cluster.leader.as_ref().and_then(|l| l.named());
    let mut all: Vec<_> = cluster.members.iter().filter(|(_, m)| m.api_url.is_some()).collect();
    all.sort_by_key(|(name, _)| Some(*name) != leader);
    all
}

/// One operation on members.
pub struct Operation<'a> {
    /// `reload`, `restart`, `reinitialize`, `flush`.
    pub verb: &'a str,
    /// The cluster.
    pub scope: &'a str,
    /// `--role` as typed; reinit: `replica`.
    pub role: &'a str,
    /// Names on the command line.
    pub names: Vec<String>,
    /// No prompts.
    pub force: bool,
}

impl<'a> Operation<'a> {
    /// From the command line.
    pub fn new(verb: &'a str, scope: &'a str, role: &'a str, args: &ArgMatches) -> Operation<'a> {
        let names = args.get_many::<String>("MEMBER_NAMES").into_iter().flatten().cloned().collect();
        Operation { verb, scope, role, names, force: args.get_flag("force") }
    }
}

/// Prints the table and finds the members; asks for one where reinit needs it.
///
/// # Errors
/// Patroni's messages.
pub async fn select<'c>(
    session: &mut Session<'_>,
    cluster: &'c Cluster,
    op: &Operation<'_>,
) -> Result<Vec<(&'c MemberName, &'c Member)>> {
    let candidates = WantedRole::from_word(op.role).members(cluster);
    if candidates.is_empty() && op.names.is_empty() {
        return Err(CtlError::plain(format!("{} cluster doesn't have any members", op.scope)));
    }
    session.print_members(cluster, op.scope).await;
    let reinit = op.verb == "reinitialize";
    let is_candidate = |name: &str| candidates.iter().any(|(n, _)| n.0 == name);
    let mut wanted: Vec<String> = op.names.iter().filter(|n| is_candidate(n)).cloned().collect();
    if !op.names.is_empty() && wanted.is_empty() {
        let role = if reinit { op.role.to_owned() } else { format!("'{}'", op.role) };
        return Err(CtlError::plain(format!("No {role} among provided members")));
    }
    if op.names.is_empty() && reinit && !op.force {
        let names: Vec<&str> = candidates.iter().map(|(n, _)| n.as_str()).collect();
        let question = format!("Which member do you want to {} [{}]?", op.verb, names.join(", "));
        let answer = prompts::ask(session.terminal, &question, "")?;
        if !is_candidate(&answer) {
            return Err(CtlError::plain(format!("{answer} is not a member of cluster")));
        }
        wanted.push(answer);
    } else if op.names.is_empty() && !reinit {
        wanted = candidates.iter().map(|(n, _)| n.0.clone()).collect();
    }
    Ok(candidates.into_iter().filter(|(n, _)| wanted.contains(&n.0)).collect())
}

/// Asks before the operation, unless forced.
///
/// # Errors
/// `Aborted <verb>` or `Aborted scheduled <verb>`.
pub fn confirm(
    session: &mut Session<'_>,
    op: &Operation<'_>,
    members: &[(&MemberName, &Member)],
    at: Option<&Moment>,
    pending: bool,
) -> Result<()> {
    if op.force {
        return Ok(());
    }
    let names = members.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
    let verb = op.verb;
    let (question, refused) = match at {
        None => (format!("Are you sure you want to {verb} members {names}?"), format!("Aborted {verb}")),
        Some(_) if pending => (
            "The nodes needing a restart will be identified at the scheduled time, and might be different from the ones \
             showing pending restart right now. Is this fine?"
                .to_owned(),
            format!("Aborted scheduled {verb}"),
        ),
        Some(at) => (
            format!("Are you sure you want to schedule {verb} of members {names} at {}?", at.spaced()),
            format!("Aborted scheduled {verb}"),
        ),
    };
    if prompts::confirm(session.terminal, &question)? { Ok(()) } else { Err(CtlError::plain(refused)) }
}
