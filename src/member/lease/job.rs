//! What is wanted of the leader object, by whom, and how it ends.

use std::time::Duration;

use crate::model::{
    BootInstant, Change, FailsafeMap, HolderMark, LeaderStatus, LeaseRecord, MemberName, Shutdown, Stood, Timeline,
};

/// What is wanted of the leader object.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Take it, if a fresh read still shows `stood`.
    Acquire {
        /// What a fresh read must show.
        stood: Stood,
        /// The number the promotion that follows will take; `None`: none follows, and the number that stands is spent.
        claim: Option<Timeline>,
    },
    /// Renew it.
    Renew {
        /// Position and slots.
        status: LeaderStatus,
        /// I am a running primary beyond the position of the oath that stands: it is fulfilled.
        fulfilled: bool,
        /// What becomes of the number of the next promotion.
        claim: Claim,
    },
    /// Give it up.
    Release {
        /// A clean shutdown: the oath.
        shutdown: Option<Shutdown>,
    },
}

/// What a renewal does to the claimed number of the next promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// What stands, stands.
    Keep,
    /// The promotion that follows will take this one.
    Make(Timeline),
    /// No promotion of this lock takes the number that stands, whoever holds it later: this is a standby cluster. The number stays
    /// there to be seen, because it may be used up, but belongs to no acquisition any more.
    Spend,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum JobEnd {
    /// The store has it.
    Written {
        /// The record that stands.
        record: LeaseRecord,
        /// When the attempt that stands was sent: the lease counts from here.
        sent: BootInstant,
    },
    /// A fresh read shows something else; who holds it, and one line.
    Lost(Option<MemberName>, String),
    /// The store refused it definitely; nothing was written. One line.
    Refused(String),
    /// Nobody knows. It may even land later; a later read that shows one of our attempts is ours.
    Unknown(String),
}

/// Who writes.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    /// Name of this member.
    pub me: Option<MemberName>,
    /// UID of its pod, empty while unknown.
    pub uid: String,
    /// A random word per start of the process.
    pub session: String,
}

impl Writer {
    /// The mark that belongs to a record. The store's client fills in the container IDs.
    pub(super) fn mark(&self, record: &LeaseRecord, paused: bool, site: &Option<String>) -> HolderMark {
        HolderMark {
            uid: self.uid.clone(),
            session: self.session.clone(),
            acquire_time: record.acquire_time.clone().unwrap_or_default(),
            renew_time: record.renew_time.clone().unwrap_or_default(),
            paused,
            site: site.clone(),
            ..HolderMark::default()
        }
    }
}

/// What begins a job.
pub struct Start {
    /// What is wanted.
    pub job: Job,
    /// The ttl to write.
    pub ttl: Duration,
    /// For everything together.
    pub deadline: Duration,
    /// My lease, and until when it is unexpired by my own clock.
    pub own: Option<(LeaseRecord, BootInstant)>,
    /// I am in maintenance mode: the mark says so.
    pub paused: bool,
    /// The site I am in: the mark says so.
    pub site: Option<String>,
    /// Who could race for the lock. A release leaves what stands.
    pub failsafe: Change<FailsafeMap>,
}
