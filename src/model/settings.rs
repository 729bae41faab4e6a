//! The settings in force: dynamic configuration after adjustment, and what decisions need of the local file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{IgnoredSlot, PermanentSlot, Synchronous, Tags};

/// What the site of the last leader means for who leads next (`failover_site`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailoverSite {
    /// Nothing.
    #[default]
    Any,
    /// Of members that are equal otherwise, priority included, one of the same site leads.
    Prefer,
    /// Nobody of another site leads unless a person names it.
    Require,
}

/// What counts as proof that a holder is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProofOfDeath {
    /// The object is there and names nobody.
    Released,
    /// Every container named in `patroni.holder` is reported terminated by the kubelet.
    Terminated,
    /// The pod object with that UID is gone (opt-in).
    Deleted,
}

/// `watchdog.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WatchdogMode {
    /// Never opened.
    #[default]
    Off,
    /// Used when it works.
    Automatic,
    /// No leadership without it.
    Required,
}

/// Filters of a restart request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestartFilter {
    /// Role the member must have: `primary`, `replica` or `standby_leader`.
    pub role: Option<String>,
    /// Only if the running version is lower than this `server_version` number.
    pub below_version: Option<u32>,
    /// Only if a restart is pending.
    pub pending_only: bool,
}

/// The cluster that a standby cluster follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// `postgres://` with one place, or several separated by commas, of which whichever writes is taken; `None`: its archive
    /// alone.
    pub conn_url: Option<String>,
    /// The slot there that the holder of the lock streams from.
    pub slot: Option<String>,
}

/// Everything `decide` reads besides the cluster and the local state.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Lease duration, after adjustment.
    pub ttl: Duration,
    /// Period of the loop at rest.
    pub loop_wait: Duration,
    /// Budget for retries against the API and Postgres.
    pub retry_timeout: Duration,
    /// Bytes a candidate may be behind.
    pub maximum_lag_on_failover: u64,
    /// Candidates must be on the latest timeline.
    pub check_timeline: bool,
    /// Maintenance mode: nothing is done to Postgres but what a person asks for.
    pub pause: bool,
    /// Failsafe mode: a primary goes on without the store while every member that could race promises not to.
    pub failsafe: bool,
    /// Synchronous replication.
    pub synchronous: Synchronous,
    /// This is a standby cluster: nobody writes here, and whoever has the lock follows this one.
    pub standby_of: Option<Remote>,
    /// How long a crashed primary may take to start; 0 = fail over at once.
    pub primary_start_timeout: Duration,
    /// How long a race over silence may be put off while WAL still comes; 0 = not at all.
    pub primary_race_backoff: Duration,
    /// Rows of history kept, 0 = all.
    pub max_timelines_history: usize,
    /// How long the slot of an absent member is kept; 0 = not at all.
    pub member_slots_ttl: Duration,
    /// Physical replication slots for members.
    pub use_slots: bool,
    /// Slot name → definition: permanent physical slots.
    pub permanent_slots: BTreeMap<String, PermanentSlot>,
    /// Slots of others that are not spoken of.
    pub ignored_slots: Vec<IgnoredSlot>,
    /// Own tags.
    pub tags: Tags,
    /// The site this member is in: a zone, a data centre.
    pub site: Option<String>,
    /// Whether the next leader should be where the last one was.
    pub failover_site: FailoverSite,
    /// The local file has a `bootstrap` section.
    pub may_bootstrap: bool,
    /// pg_rewind is configured.
    pub use_pg_rewind: bool,
    /// A failed rewind may remove the data directory.
    pub remove_on_rewind_failure: bool,
    /// A diverged timeline may remove the data directory.
    pub remove_on_diverged_timelines: bool,
    /// Accepted proofs.
    pub proofs: BTreeSet<ProofOfDeath>,
    /// Watchdog mode.
    pub watchdog: WatchdogMode,
    /// Seconds between watchdog timeout and ttl; `None` for -1 (half of the ttl).
    pub watchdog_margin: Option<Duration>,
    /// Wait for Postgres to accept connections after a start.
    pub pg_ctl_timeout: Duration,
    /// What this version cannot do yet but the configuration asks for, in words. A member with an entry here never
    /// becomes leader: ignoring a wish would break what somebody was promised.
    pub unsupported: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            maximum_lag_on_failover: 1_048_576,
            check_timeline: false,
            pause: false,
            failsafe: false,
            synchronous: Synchronous::default(),
            standby_of: None,
            primary_start_timeout: Duration::from_secs(300),
            primary_race_backoff: Duration::ZERO,
            max_timelines_history: 0,
            member_slots_ttl: Duration::from_secs(1800),
            use_slots: true,
            permanent_slots: BTreeMap::new(),
            ignored_slots: Vec::new(),
            tags: Tags::default(),
            site: None,
            failover_site: FailoverSite::Any,
            may_bootstrap: true,
            use_pg_rewind: false,
            remove_on_rewind_failure: false,
            remove_on_diverged_timelines: false,
            proofs: BTreeSet::from([ProofOfDeath::Released, ProofOfDeath::Terminated]),
            watchdog: WatchdogMode::Off,
            watchdog_margin: Some(Duration::from_secs(5)),
            pg_ctl_timeout: Duration::from_secs(60),
            unsupported: Vec::new(),
        }
    }
}
