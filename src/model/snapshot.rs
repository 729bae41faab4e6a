//! What others may see of a member: one read-only value, replaced after every step of its machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BootInstant, Cluster, Lsn, MemberName, Now, PostgresState, Probe, Role, Settings, Timeline};

/// A member as it was after its last step.
#[derive(Clone, Debug)]
pub struct MemberSnapshot {
    /// When.
    pub now: Now,
    /// Its name.
    pub me: MemberName,
    /// The cluster as the store shows it.
    pub cluster: Arc<Cluster>,
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// The store was read at least once.
    pub store_read: bool,
    /// The store was read and has not been silent for longer than a lease.
    pub dcs_available: bool,
    /// Seconds since 1970 of the last live view of the store, 0: never.
    pub dcs_last_seen: i64,
    /// Until when this member may call itself leader; `None`: it is not.
    pub leader_until: Option<BootInstant>,
    /// A postmaster is alive.
    pub alive: bool,
    /// What Postgres is said to do.
    pub state: PostgresState,
    /// Its role.
    pub role: Role,
    /// The last answer to the monitoring query.
    pub probe: Option<Probe>,
    /// `server_version_num`, once it was up.
    pub server_version: Option<u32>,
    /// The system identifier of the data directory, if known.
    pub system_id: Option<String>,
    /// The newest timeline this member knows of: its own, or one whose history file it has.
    pub known_timeline: Timeline,
    /// The last known position.
    pub position: Option<Lsn>,
    /// A restart of Postgres is pending.
    pub pending_restart: bool,
    /// Its reasons: parameter → (old, new).
    pub pending_restart_reason: BTreeMap<String, (String, String)>,
    /// The accepted scheduled restart, a JSON object as text.
    pub scheduled_restart: Option<Arc<str>>,
    /// When the machine means to be woken at the latest.
    pub next_step: BootInstant,
    /// The reason of the last decision: the status line.
    pub reason: String,
    /// The keeper cannot be reached.
    pub fence_lost: bool,
    /// A postmaster lives that nothing but its keeper would stop.
    pub fence_partial: bool,
    /// It leads without the store, because everybody who could race has promised not to; or it has promised that itself.
    pub failsafe_active: bool,
    /// Its watchdog is required and does not work.
    pub watchdog_failed: bool,
    /// It is about to stop: nobody should wait for it, and its tags say so.
    pub quits_sync: bool,
}
