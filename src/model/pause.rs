//! Maintenance mode, as a member observes it.

use super::{BootInstant, OwnLease, Timeline, UnfencedReason};
use crate::model::Permission;

/// Does a person look after Postgres, or this program?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maintenance {
    /// This program.
    #[default]
    Off,
    /// A person. Nothing is started, stopped or promoted but by request, and once the store says so nothing is fenced.
    On,
    /// This program again, once the lock was renewed without the mark of maintenance: until then nothing is known of who
    /// leads. A primary has until the moment of demotion, counted from here, and the keeper its deadlines behind it.
    Resuming {
        /// When that was heard.
        since: BootInstant,
    },
}

impl Maintenance {
    /// A person looks after Postgres.
    pub fn is_on(self) -> bool {
        self == Maintenance::On
    }
    /// What the deadlines of a running primary count from: after a resume from that moment, as long as the lock still says that
    /// its holder is in maintenance. Nobody takes such a lock for silence.
    pub fn runs_from(self, own: &OwnLease) -> BootInstant {
        match self {
            Maintenance::Resuming { since } if own.paused => own.runs_from().max(since),
            Maintenance::Resuming { .. } | Maintenance::On | Maintenance::Off => own.runs_from(),
        }
    }
}

/// A Postgres that answers where mine would, and that the keeper did not start: somebody has started it by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// When it was asked.
    pub at: BootInstant,
    /// Whether somebody answered.
    pub answers: bool,
    /// It says that it is a primary, on this timeline.
    pub writes: Option<Timeline>,
}

impl Permission {
    /// No deadline, because a person looks after Postgres.
    pub const PAUSED: Permission = Permission::Unfenced(UnfencedReason::Pause);
}
