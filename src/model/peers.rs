//! What the other members say of themselves when they are asked.

use std::collections::BTreeMap;

use super::{BootInstant, Lsn, MemberName, Tags, Timeline};

/// Role in a peer's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// Runs as primary (`location` present or role primary/master).
    Primary,
    /// In recovery.
    Standby,
}

/// One peer's answer to `GET /patroni`.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerAnswer {
    /// Answered, with a WAL position.
    Fit {
        /// Primary or standby.
        role: PeerRole,
        /// max(received, replayed), or location.
        position: Lsn,
        /// 0 = unknown.
        timeline: Timeline,
        /// The newest timeline it has heard of (its history files); 0 = it does not say.
        known_timeline: Timeline,
        /// Its effective tags.
        tags: Tags,
        /// `watchdog_failed`.
        watchdog_failed: bool,
        /// `dcs_last_seen`, seconds since 1970.
        store_seen: Option<i64>,
    },
    /// Answered, its Postgres runs, and it gives no position on purpose: it says itself that it may not lead.
    Unfit {
        /// In words.
        why: String,
        /// As above.
        known_timeline: Timeline,
    },
    /// Answered; its Postgres does not run (yet), but the numbers that its data has used are used.
    Down {
        /// As above.
        known_timeline: Timeline,
    },
    /// No answer; why.
    Unreachable(String),
}

impl PeerAnswer {
    /// The newest timeline this member has heard of; 0 = it does not say.
    pub fn known_timeline(&self) -> Timeline {
        match self {
            PeerAnswer::Fit { timeline, known_timeline, .. } => *timeline.max(known_timeline),
            PeerAnswer::Unfit { known_timeline, .. } | PeerAnswer::Down { known_timeline } => *known_timeline,
            PeerAnswer::Unreachable(_) => Timeline(0),
        }
    }
}

/// A completed round of questions.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerRound {
    /// When it was sent.
    pub asked_at: BootInstant,
    /// Every member that was asked.
    pub answers: BTreeMap<MemberName, PeerAnswer>,
}
