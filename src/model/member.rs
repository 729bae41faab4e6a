//! Members: one pod each, named as the pod.

use std::collections::BTreeMap;
use std::fmt;

use super::{Lsn, Timeline};
use crate::mutant::{self, Mutant};

/// The name of a member = of its pod. Leader and candidate names compare exactly, names in `/sync` ignoring case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(pub String);

impl MemberName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The same name but for upper and lower case, as Postgres compares names of standbys.
    pub fn is(&self, other: &MemberName) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
    /// The name of the physical replication slot of this member: lower case, `-` and `.` to
    /// `_`, any other character outside `[a-z0-9_]` to `u` + four decimal digits, cut to 63 characters.
    pub fn slot_name(&self) -> String {
        let mut out = String::new();
        for c in self.0.chars().flat_map(char::to_lowercase) {
            match c {
                'a'..='z' | '0'..='9' | '_' => out.push(c),
                '-' | '.' => out.push('_'),
                other => out.push_str(&format!("u{:04}", u32::from(other))),
            }
        }
        out.truncate(63);
        out
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MemberName {
    fn from(s: &str) -> Self {
        MemberName(s.to_owned())
    }
}

/// What a member says of its Postgres. `Other` keeps words of other versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresState {
    /// `initializing new cluster`
    Initdb,
    /// `initdb failed`
    InitdbFailed,
    /// `running custom bootstrap script`
    CustomBootstrap,
    /// `custom bootstrap failed`
    CustomBootstrapFailed,
    /// `creating replica`
    CreatingReplica,
    /// `running`
    Running,
    /// `starting`
    Starting,
    /// `starting after custom bootstrap`
    BootstrapStarting,
    /// `start failed`
    StartFailed,
    /// `restarting`
    Restarting,
    /// `restart failed`
    RestartFailed,
    /// `stopping`
    Stopping,
    /// `stopped`
    Stopped,
    /// `stop failed`
    StopFailed,
    /// `crashed`
    Crashed,
    /// A word this version does not know.
    Other(String),
}

impl PostgresState {
    const WORDS: [(&'static str, PostgresState); 15] = [
        ("initializing new cluster", PostgresState::Initdb),
        ("initdb failed", PostgresState::InitdbFailed),
        ("running custom bootstrap script", PostgresState::CustomBootstrap),
        ("custom bootstrap failed", PostgresState::CustomBootstrapFailed),
        ("creating replica", PostgresState::CreatingReplica),
        ("running", PostgresState::Running),
        ("starting", PostgresState::Starting),
        ("starting after custom bootstrap", PostgresState::BootstrapStarting),
        ("start failed", PostgresState::StartFailed),
        ("restarting", PostgresState::Restarting),
        ("restart failed", PostgresState::RestartFailed),
        ("stopping", PostgresState::Stopping),
        ("stopped", PostgresState::Stopped),
        ("stop failed", PostgresState::StopFailed),
        ("crashed", PostgresState::Crashed),
    ];
    /// The word on the wire.
    pub fn word(&self) -> &str {
        if let PostgresState::Other(word) = self {
            return word;
        }
        Self::WORDS.iter().find(|(_, s)| s == self).map_or("", |(w, _)| w)
    }
    /// The metric index of `patroni_postgres_state`, -1 for unknown words.
    pub fn index(&self) -> i32 {
        Self::WORDS.iter().position(|(_, s)| s == self).map_or(-1, |i| i as i32)
    }
    /// From the word on the wire.
    pub fn from_word(word: &str) -> Self {
        Self::WORDS
            .iter()
            .find(|(w, _)| *w == word)
            .map_or_else(|| PostgresState::Other(word.to_owned()), |(_, s)| s.clone())
    }
}

/// A member's role. `master` is read as [`Role::Primary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Read-write and out of recovery.
    Primary,
    /// `pg_ctl promote` succeeded, not yet "in production".
    Promoted,
    /// In recovery, following.
    Replica,
    /// The lock holder of a standby cluster.
    StandbyLeader,
    /// Stopped after having been primary.
    Demoted,
    /// No data directory yet.
    Uninitialized,
}

impl Role {
    /// The word on the wire; [`Role::Primary`] is `primary` here, `master` is a matter of `primary_role_name`.
    pub fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Promoted => "promoted",
            Role::Replica => "replica",
            Role::StandbyLeader => "standby_leader",
            Role::Demoted => "demoted",
            Role::Uninitialized => "uninitialized",
        }
    }
    /// From the word on the wire.
    pub fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "primary" | "master" => Role::Primary,
            "promoted" => Role::Promoted,
            "replica" => Role::Replica,
            "standby_leader" => Role::StandbyLeader,
            "demoted" => Role::Demoted,
            "uninitialized" => Role::Uninitialized,
            _ => return None,
        })
    }
}

/// The effective tags that decisions look at. Free-form tags stay with `config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Never becomes leader.
    pub nofailover: bool,
    /// Preferred at equal LSN; 0 when `nofailover`.
    pub failover_priority: i64,
    /// Other replicas clone from it.
    pub clonefrom: bool,
    /// Not behind the replica Service.
    pub noloadbalance: bool,
    /// Never a synchronous standby.
    pub nosync: bool,
    /// Preferred as a synchronous standby; 0 when `nosync`.
    pub sync_priority: i64,
    /// Does not stream.
    pub nostream: bool,
    /// Streams from this member instead of the leader.
    pub replicatefrom: Option<MemberName>,
}

impl Default for Tags {
    fn default() -> Self {
        Tags {
            nofailover: false,
            failover_priority: 1,
            clonefrom: false,
            noloadbalance: false,
            nosync: false,
            sync_priority: 1,
            nostream: false,
            replicatefrom: None,
        }
    }
}

/// A member as its pod's `status` annotation shows it. A pod without the annotation is a member with nothing but a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// `conn_url` without credentials: `postgres://host:port/database`.
    pub conn_url: Option<String>,
    /// `api_url`: `http://host:port/patroni`.
    pub api_url: Option<String>,
    /// Postgres state.
    pub state: Option<PostgresState>,
    /// Role.
    pub role: Option<Role>,
    /// Contract version (dotted integers).
    pub version: Option<String>,
    /// `patroni.impl`: present for members of this implementation only.
    pub implementation: Option<String>,
    /// WAL position when last published.
    pub xlog_location: Option<Lsn>,
    /// Received position when last published (standby).
    pub receive_lsn: Option<Lsn>,
    /// Replayed position when last published (standby).
    pub replay_lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`.
    pub replication_state: Option<String>,
    /// Timeline when last published.
    pub timeline: Option<Timeline>,
    /// True while the leader's checkpoint after promotion is not confirmed (`checkpoint_after_promote: false`).
    pub checkpoint_pending: bool,
    /// A restart of Postgres is pending.
    pub pending_restart: bool,
    /// Effective tags.
    pub tags: Tags,
    /// The site it is in.
    pub site: Option<String>,
    /// Reasons of the pending restart: parameter → (old, new).
    pub pending_restart_reason: BTreeMap<String, (String, String)>,
    /// The published JSON object, as text; what the typed fields do not carry is read from here.
    pub raw: String,
    /// UID of the pod.
    pub uid: String,
    /// Address of the pod, as its status shows it.
    pub pod_ip: Option<String>,
    /// Value of the role label on the pod.
    pub role_label: Option<String>,
    /// Every non-ephemeral container of the pod (regular, and init containers with `restartPolicy: Always`): name → the
    /// container IDs its status shows as terminated (`state` or `lastState`). A hint only; proof needs fresh reads.
    pub terminated: BTreeMap<String, Vec<String>>,
}

impl Member {
    /// Has this member ever shown a data directory? A pod that never ran, or runs nothing yet, has none.
    pub fn shows_data(&self) -> bool {
        match self.role {
            None | Some(Role::Uninitialized) => false,
            Some(Role::Primary | Role::Promoted | Role::Replica | Role::StandbyLeader | Role::Demoted) => !matches!(
                self.state,
                Some(
                    PostgresState::Initdb
                        | PostgresState::InitdbFailed
                        | PostgresState::CreatingReplica
                        | PostgresState::CustomBootstrap
                        | PostgresState::CustomBootstrapFailed
                )
            ),
        }
    }
    /// Does the view suggest that this very set of containers is dead? Never a proof by itself.
    pub fn looks_terminated(&self, uid: &str, containers: &BTreeMap<String, String>) -> bool {
        self.uid == uid
            && !containers.is_empty()
            && self.terminated.len() == containers.len()
            && containers
                .iter()
                .filter(|(name, id)| self.terminated.get(*name).is_some_and(|ids| ids.contains(id)))
                .count()
                >= if mutant::is(Mutant::OneContainerIsAll) { 1 } else { containers.len() }
    }
    /// Is the state exactly `running`?
    pub fn is_running(&self) -> bool {
        self.state == Some(PostgresState::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_follow_the_rule_both_sides_must_agree_on() {
        assert_eq!(MemberName::from("Pg-0.a").slot_name(), "pg_0_a");
        assert_eq!(MemberName::from("a b").slot_name(), "au0032b");
    }

    #[test]
    fn every_state_word_survives_the_round_trip() {
        for (i, (word, state)) in PostgresState::WORDS.iter().enumerate() {
            assert_eq!(PostgresState::from_word(word), *state);
            assert_eq!(state.index(), i as i32);
        }
        assert_eq!(PostgresState::from_word("odd").index(), -1);
    }
}
