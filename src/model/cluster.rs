//! The cluster as the store shows it, in one consistent view.

use std::collections::BTreeMap;
use std::fmt;

use super::{LeaseRecord, Lsn, Member, MemberName, Released, Shutdown, Timeline, TimelineClaim, WallTime};

/// The version of an object in the store. Opaque outside `dcs`: it is only handed back in a conditional write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `patroni.holder`: who exactly holds the lease. Valid only while its two times equal the record's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HolderMark {
    /// UID of the holder's pod.
    pub uid: String,
    /// A random word per start of the sidecar.
    pub session: String,
    /// Container name → container ID, empty until the sidecar has learned them.
    pub containers: BTreeMap<String, String>,
    /// Must equal the record's.
    pub acquire_time: String,
    /// Must equal the record's.
    pub renew_time: String,
    /// It is in maintenance mode, and nothing stops its Postgres when it is silent: time alone ends no lock with this mark.
    pub paused: bool,
    /// The site of the holder.
    pub site: Option<String>,
}

/// The leader object.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaderRecord {
    /// For conditional writes.
    pub version: Version,
    /// The five keys that are the lease.
    pub lease: LeaseRecord,
    /// Our own annotation, if present and well-formed.
    pub holder: Option<HolderMark>,
    /// The leader's last published WAL position.
    pub optime: Option<Lsn>,
    /// Slot name → position.
    pub slots: BTreeMap<String, Lsn>,
    /// Slots to be kept on every node.
    pub retain_slots: Vec<String>,
    /// Member → REST address, written while failsafe mode is on.
    pub failsafe: Option<BTreeMap<String, String>>,
    /// Endpoints mode: the addresses clients are sent to. Empty in ConfigMaps mode.
    pub addresses: Vec<String>,
    /// The last release by a member of ours, as long as it stands in the object.
    pub released: Option<Released>,
    /// The number claimed for the next promotion, if it belongs to the record that stands: see
    /// [`LeaderRecord::claimed_timeline`].
    pub claim: Option<TimelineClaim>,
}

impl LeaderRecord {
    /// With nothing but the lease.
    pub fn of(version: Version, lease: LeaseRecord) -> LeaderRecord {
        LeaderRecord {
            version,
            lease,
            holder: None,
            optime: None,
            slots: BTreeMap::new(),
            retain_slots: Vec::new(),
            failsafe: None,
            addresses: Vec::new(),
            released: None,
            claim: None,
        }
    }
    /// The site of the last holder, as long as its words are about the record that stands.
    pub fn site(&self) -> Option<&str> {
        self.valid_holder().and_then(|holder| holder.site.as_deref())
    }
    /// The number that the promotion of the acquisition that stands will take, or has taken.
    pub fn claimed_timeline(&self) -> Option<Timeline> {
        self.claim
            .as_ref()
            .filter(|c| {
                Some(&c.acquire_time) == self.lease.acquire_time.as_ref()
                    && Some(&c.transitions) == self.lease.transitions.as_ref()
            })
            .map(|c| c.timeline)
    }
    /// Was the lock given up by its holder, in its own words? The release and the holder's mark must name the acquisition
    /// that stands without a leader; an object that was re-made or stripped of its keys is silence, not a release.
    pub fn released_by_holder(&self) -> bool {
        let of_this_acquisition = self.released.as_ref().is_some_and(|r| {
            Some(&r.acquire_time) == self.lease.acquire_time.as_ref()
                && Some(&r.transitions) == self.lease.transitions.as_ref()
        });
        self.lease.leader.is_none() && of_this_acquisition && self.valid_holder().is_some()
    }
    /// The clean shutdown that nobody whose WAL ends before it may lead past. A running holder that has renewed beyond it
    /// has ended it, whether or not it removed the words.
    pub fn oath(&self) -> Option<&Shutdown> {
        let shutdown = self.released.as_ref()?.shutdown.as_ref()?;
        let renewed_beyond = self.optime.is_some_and(|optime| optime > shutdown.position);
        (!renewed_beyond).then_some(shutdown)
    }
    /// Who the record names; `None` when released.
    pub fn named(&self) -> Option<&MemberName> {
        self.lease.leader.as_ref()
    }
    /// The holder mark, if it belongs to the record that stands.
    pub fn valid_holder(&self) -> Option<&HolderMark> {
        self.holder.as_ref().filter(|h| {
            Some(&h.acquire_time) == self.lease.acquire_time.as_ref()
                && Some(&h.renew_time) == self.lease.renew_time.as_ref()
        })
    }
}

/// The `initialize` key. `""` and absent mean different things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Initialize {
    /// Never initialized, or cancelled.
    #[default]
    Absent,
    /// Somebody is bootstrapping.
    InProgress,
    /// The system identifier (anything not empty; see [`Initialize::system_id`]).
    Value(String),
}

impl Initialize {
    /// The system identifier if it is valid: at least 10 characters, all digits.
    pub fn system_id(&self) -> Option<&str> {
        match self {
            Initialize::Value(v) if v.len() >= 10 && v.bytes().all(|b| b.is_ascii_digit()) => Some(v),
            Initialize::Value(_) | Initialize::Absent | Initialize::InProgress => None,
        }
    }
}

/// `patroni.initializer`: which incarnation is bootstrapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initializer {
    /// UID of its pod.
    pub uid: String,
    /// Its session.
    pub session: String,
}

/// The config object: dynamic configuration, initialize, history.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigRecord {
    /// For conditional writes.
    pub version: Version,
    /// The dynamic configuration as JSON text, if the annotation exists.
    pub document: Option<String>,
}

/// One row of the timeline history.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryRow {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended.
    pub lsn: Lsn,
    /// Postgres' words.
    pub reason: String,
    /// When, ISO 8601, for people.
    pub at: Option<String>,
    /// Who became leader.
    pub new_leader: Option<String>,
}

impl HistoryRow {
    /// Did a branch of this cluster end there, or was the number claimed by promotions that came to nothing?
    pub fn of_a_branch(&self) -> bool {
        self.lsn > Lsn::ZERO
    }
}

/// The failover request object: `leader` present = switchover, absent = failover.
#[derive(Clone, Debug, PartialEq)]
pub struct FailoverRequest {
    /// For conditional writes.
    pub version: Version,
    /// Who is to step down.
    pub leader: Option<MemberName>,
    /// Who is to take over.
    pub candidate: Option<MemberName>,
    /// When. An unparsable text is reported by `dcs` and read as no request at all.
    pub scheduled_at: Option<WallTime>,
}

impl FailoverRequest {
    /// Is there a request? The object stays when a request is cleared.
    pub fn is_present(&self) -> bool {
        self.leader.is_some() || self.candidate.is_some()
    }
}

/// The sync object.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncRecord {
    /// For conditional writes.
    pub version: Version,
    /// Primary that manages the key; absent = synchronous mode not active.
    pub leader: Option<MemberName>,
    /// Synchronous standbys.
    pub standbys: Vec<MemberName>,
    /// Quorum.
    pub quorum: u32,
}

/// Everything the store knows, read at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// The config object; `None` if it does not exist.
    pub config: Option<ConfigRecord>,
    /// The `initialize` key of it.
    pub initialize: Initialize,
    /// Who is bootstrapping.
    pub initializer: Option<Initializer>,
    /// Timeline history; `None` when the key is absent.
    pub history: Option<Vec<HistoryRow>>,
    /// The leader object; `None` if it does not exist.
    pub leader: Option<LeaderRecord>,
    /// All pods of the cluster.
    pub members: BTreeMap<MemberName, Member>,
    /// The failover object, if it exists.
    pub failover: Option<FailoverRequest>,
    /// The sync object, if it exists.
    pub sync: Option<SyncRecord>,
}

impl Cluster {
    /// The pending request, if any.
    pub fn request(&self) -> Option<&FailoverRequest> {
        self.failover.as_ref().filter(|f| f.is_present())
    }
    /// The timeline the history speaks for: last row + 1; 1 without rows; 0 without a config object.
    pub fn timeline(&self) -> Timeline {
        match (&self.config, &self.history) {
            (None, _) => Timeline(0),
            (Some(_), None) => Timeline(1),
            (Some(_), Some(rows)) => rows.last().map_or(Timeline(1), |r| Timeline(r.timeline.0 + 1)),
        }
    }
    /// The last known position of the leader; unknown = 0.
    pub fn optime(&self) -> Lsn {
        self.leader.as_ref().and_then(|l| l.optime).unwrap_or(Lsn::ZERO)
    }
}
