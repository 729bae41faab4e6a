//! Plain values that every other module speaks in.
//!
//! Nothing here waits, reads a clock, logs or talks to anybody: a value in, a value out. The folder's reading order is
//! the order of the `mod` lines: time, positions in the WAL, the names and states of members, the cluster as the store
//! shows it, the settings in force, the deadlines that follow from them, what this member knows of itself, and at last
//! the decision that comes out of all that.
//!
//! What it deliberately does not do: parse or print wire formats (that is `dcs::schema`, `api`, `ctl::output`).

pub mod callback;
pub mod cluster;
pub mod command;
pub mod decision;
pub mod divergence;
pub mod failsafe;
pub mod fence;
pub mod lease;
pub mod local;
pub mod member;
pub mod pause;
pub mod peers;
pub mod quorum;
pub mod settings;
pub mod slots;
pub mod snapshot;
pub mod store;
pub mod sync;
pub mod time;
pub mod timings;
pub mod wal;
pub mod watchdog;

pub use callback::Callback;
pub use cluster::{
    Cluster, ConfigRecord, FailoverRequest, HistoryRow, HolderMark, Initialize, Initializer, LeaderRecord, SyncRecord,
    Version,
};
pub use command::{Addressee, Command};
pub use decision::{
    Action, Decision, Permission, Reason, Rewrite, StartRole, StopMode, TaskKind, TaskOutcome, UnfencedReason,
    Upstream, Warning,
};
pub use divergence::{Compared, RewindState};
pub use failsafe::{Asked, Failsafe, FailsafeMap, Listed, Promise};
pub use fence::{Deadman, Fence};
pub use lease::{LeaseRecord, LeaseTracker, LeaseVerdict, OwnLease, Stood};
pub use local::{
    BootstrapFailed, ClusterState, ControlData, DataDir, DeathProof, Handover, InFlight, KeeperLink, LeaseRefused,
    Local, PlannedRestart, PostgresView, Probe, ProofWanted, Reinit, Request, StartRoleSeen, StoreLink, Task, TaskEnd,
};
pub use member::{Member, MemberName, PostgresState, Role, Tags};
pub use pause::{Maintenance, Stranger};
pub use peers::{PeerAnswer, PeerRole, PeerRound};
pub use quorum::{Electorate, Waited};
pub use settings::{FailoverSite, ProofOfDeath, Remote, RestartFilter, Settings, WatchdogMode};
pub use slots::{IgnoredSlot, OurSlots, PermanentSlot, SlotOrders, SlotsNow, WantedSlot};
pub use snapshot::MemberSnapshot;
pub use store::{
    Change, LeaderStatus, LeaderWrite, LeaderWritten, MemberStatus, OwnPod, Periods, PodFacts, ReadFailed, Released,
    RequestText, Shutdown, StoreWrite, TimelineClaim, View, WriteResult,
};
pub use sync::{Commits, PLACEHOLDER, Replication, Sender, StandbyNames, SyncKeeping, SyncWrite, Synchronous};
pub use time::{BootInstant, Now, WallTime, backoff};
pub use timings::{Timings, TooTight, time_scale};
pub use wal::{Lsn, Timeline};
pub use watchdog::{Feed, Watchdog};
