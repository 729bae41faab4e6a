//! What people ask of a member, once whoever takes it in has judged the words.

use std::sync::Arc;
use std::time::Duration;

use super::{MemberName, RequestText, RestartFilter, Version, WallTime};

/// Something to do for a person. Whoever takes it in has judged its words; its conditions are the member's.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Restart Postgres once. Answered when it is done (or refused).
    Restart {
        /// Filter.
        filter: RestartFilter,
        /// Start timeout, else `primary_start_timeout`.
        timeout: Option<Duration>,
    },
    /// Restart later.
    ScheduleRestart {
        /// When.
        at: WallTime,
        /// Filter.
        filter: RestartFilter,
        /// Start timeout, else `primary_start_timeout`.
        timeout: Option<Duration>,
        /// The accepted request as a JSON object, as it is shown in status and member data.
        document: Arc<str>,
    },
    /// Forget the scheduled restart.
    DeleteScheduledRestart,
    /// Throw the data away and clone anew. Answered when it begins.
    Reinitialize {
        /// Cancel what runs.
        force: bool,
        /// Only from the leader, only pg_basebackup.
        from_leader: bool,
    },
    /// As SIGHUP.
    Reload,
    /// A holder of the lock that cannot reach the store asks whether it may go on. 200 `Accepted` is a promise not to race.
    Failsafe {
        /// Who asks.
        from: MemberName,
    },
    /// Write the dynamic configuration. 200 with the document, `conflict` when somebody else wrote meanwhile, 502 when the
    /// write fails.
    WriteConfig {
        /// The version it was made from; `None`: there is no object.
        expect: Option<Version>,
        /// The whole document.
        document: Arc<str>,
        /// The status for a conflict.
        conflict: u16,
    },
    /// Write the failover request. 200, or 503 when the write fails.
    SetRequest(RequestText),
    /// Remove the failover request of exactly this version. 200, or 409.
    ClearRequest {
        /// The version the caller has seen.
        expect: Version,
    },
}
