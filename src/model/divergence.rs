//! What is known of divergence from the leader. A verdict names the leader and the timeline it was found with.

use super::{MemberName, TaskKind, TaskOutcome, Timeline};

/// Whom a verdict about divergence is about. It says nothing of another leader, nor of another timeline of this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The leader it was compared with.
    pub leader: MemberName,
    /// On this timeline; 0 = not known.
    pub timeline: Timeline,
}

/// Is the WAL of this member part of the leader's history?
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RewindState {
    /// Nothing to check.
    #[default]
    Initial,
    /// To be checked against the leader.
    Check,
    /// Diverged.
    Need(Compared),
    /// Checked, not diverged.
    NotNeeded(Compared),
    /// pg_rewind succeeded.
    Success(Compared),
    /// pg_rewind failed.
    Failed {
        /// Against whom.
        about: Compared,
        /// Why.
        why: String,
    },
}

impl RewindState {
    /// Whom the verdict is about, if there is one.
    pub fn about(&self) -> Option<&Compared> {
        match self {
            RewindState::Initial | RewindState::Check => None,
            RewindState::Need(about)
            | RewindState::NotNeeded(about)
            | RewindState::Success(about)
            | RewindState::Failed { about, .. } => Some(about),
        }
    }
    /// What is known of divergence after a long task: a rewind that only was interrupted, or found no leader, is still
    /// needed; only one that was tried and did not work has failed. Other data has no verdict yet.
    pub fn after_task(&self, kind: &TaskKind, outcome: &TaskOutcome) -> RewindState {
        match (kind, outcome) {
            (TaskKind::Rewind { from, timeline, .. }, ended) => {
                let about = Compared { leader: from.clone(), timeline: *timeline };
                match ended {
                    TaskOutcome::Done => RewindState::Success(about),
                    TaskOutcome::Failed(why) => RewindState::Failed { about, why: why.clone() },
                    TaskOutcome::LeaderGone(_) | TaskOutcome::Interrupted(_) => self.clone(),
                }
            }
            (TaskKind::CreateReplica { .. } | TaskKind::Remove { .. }, TaskOutcome::Done) => RewindState::Initial,
            (
                TaskKind::CreateReplica { .. }
                | TaskKind::Remove { .. }
                | TaskKind::Bootstrap
                | TaskKind::PostBootstrap
                | TaskKind::CrashRecovery,
                _,
            ) => self.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rewind_that_was_tried_has_failed() {
        let about = Compared { leader: "b".into(), timeline: Timeline(2) };
        let need = RewindState::Need(about.clone());
        let rewind = TaskKind::Rewind { from: "b".into(), conn_url: "u".into(), timeline: Timeline(2) };
        for again in [TaskOutcome::LeaderGone("x".into()), TaskOutcome::Interrupted("x".into())] {
            assert_eq!(need.after_task(&rewind, &again), need);
        }
        let failed = RewindState::Failed { about: about.clone(), why: "x".into() };
        assert_eq!(need.after_task(&rewind, &TaskOutcome::Failed("x".into())), failed);
        assert_eq!(need.after_task(&rewind, &TaskOutcome::Done), RewindState::Success(about));
        let remove = TaskKind::Remove { keep_as_failed: false, verify: None, why: String::new() };
        assert_eq!(failed.after_task(&remove, &TaskOutcome::LeaderGone("x".into())), failed);
        assert_eq!(failed.after_task(&remove, &TaskOutcome::Done), RewindState::Initial);
    }
}
