//! What people ask of a member, once whoever takes it in has judged the words.

use std::sync::Arc;
use std::time::Duration;

use super::{MemberName, RequestText, RestartFilter, Version, WallTime};

/// Whom a question is meant for, as far as it says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addressee {
    /// The member.
    pub name: Option<MemberName>,
    /// UID of its pod.
    pub uid: Option<String>,
}

impl Addressee {
    /// Is it this pod? Whoever does not say whom it asks (Patroni) means whoever answers.
    pub fn is(&self, me: &MemberName, uid: &str) -> bool {
        self.name.as_ref().is_none_or(|name| name == me) && self.uid.as_ref().is_none_or(|asked| asked == uid)
    }
}

impl std::fmt::Display for Addressee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.name.as_ref().map_or("a member", MemberName::as_str);
        let uid = self.uid.as_deref().map(|uid| format!(" (pod {uid})"));
        write!(f, "{name}{}", uid.unwrap_or_default())
    }
}

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
        /// Who is asked: an address may be somebody else's by now.
        asked: Addressee,
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
