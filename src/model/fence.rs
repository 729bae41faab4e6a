//! What is known of the fence of the own postmaster, for the day on which its keeper says nothing.
//!
//! A keeper that is silent may have carried out whatever was ever sent to it, and stops nothing any more. What is left is the
//! kernel: it ends a postmaster whose warden has set a timer, half a second before the `kill_at` of its permission.

use super::{BootInstant, Permission, PostgresView, StartRoleSeen};

/// What ends a postmaster when its permission has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fence {
    /// The keeper, and without it the kernel.
    Full,
    /// The keeper alone, or it is not known.
    #[default]
    Partial,
}

/// What a silent keeper may have let run, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deadman {
    /// Of the postmaster that the keeper reported last.
    pub fence: Fence,
    /// The latest kill of all permissions that were ever sent, answered or not, or found in the keeper.
    pub kill_at: BootInstant,
    /// A permission without a deadline was sent or found, and none with one was confirmed since.
    pub unfenced: bool,
    /// An order that makes a writer was sent, and what became of it is not known.
    pub in_doubt: bool,
    /// Kubernetes shows the container of the keeper that was met last as ended, and everything in it is.
    pub container_ended: bool,
    /// My own session with the server, open before, is broken, and nobody listens there: since then.
    pub gone: Option<BootInstant>,
    /// A promotion of the postmaster was ordered: whatever became of the answer, it may follow the order at any moment.
    pub ordered: bool,
    /// Processes that the keeper did not start hold the data directory, as its last answer to a start says: why. What an
    /// earlier keeper of mine let run may be among them, and writes under my lock.
    pub in_use: Option<String>,
}

impl Deadman {
    /// A permission is sent.
    pub fn permitted(&mut self, permission: Permission) {
        match permission {
            Permission::None => {}
            Permission::Unfenced(_) => self.unfenced = true,
            Permission::Writer { kill_at, .. } => self.kill_at = self.kill_at.max(kill_at),
        }
    }

    /// The keeper has confirmed a permission, and nothing was sent after it.
    pub fn confirmed(&mut self, permission: Permission) {
        if let Permission::Writer { .. } = permission {
            self.unfenced = false;
        }
    }

    /// The keeper was met: what stands there is all there is.
    pub fn met(&mut self, permission: Permission, fence: Fence) {
        // Whoever is met says nothing of what it did not start.
        let in_use = self.in_use.take();
        *self = Deadman { fence, kill_at: self.kill_at, in_use, ..Deadman::default() };
        self.permitted(permission);
    }

    /// A start is ordered: whatever was known is of an earlier postmaster.
    pub fn starts(&mut self, writer: bool) {
        self.fence = Fence::Partial;
        self.gone = None;
        self.ordered = false;
        self.in_doubt = writer;
    }

    /// The keeper says that it runs.
    pub fn runs(&mut self, fence: Fence) {
        self.fence = fence;
        self.in_doubt = false;
        self.in_use = None;
    }

    /// The keeper says that nothing runs.
    pub fn died(&mut self) {
        self.starts(false);
    }
}

impl PostgresView {
    /// Is the living postmaster possibly a writer? Everything not provably in recovery is.
    pub fn may_write(&self) -> bool {
        self.alive
            && (self.started_as != Some(StartRoleSeen::Standby)
                || self.promoting.is_some()
                || self.probe.as_ref().is_some_and(|p| !p.in_recovery))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnfencedReason;

    fn writer(kill: u64) -> Permission {
        let at = |s: u64| BootInstant::from_nanos(s * 1_000_000_000);
        Permission::Writer { stop_at: at(kill - 2), kill_at: at(kill) }
    }

    #[test]
    fn what_was_sent_counts_from_its_sending_and_what_ends_it_from_its_confirmation() {
        let mut d = Deadman::default();
        d.permitted(Permission::Unfenced(UnfencedReason::Bootstrap));
        d.permitted(writer(30));
        assert!(d.unfenced, "a keeper that has not answered may not have heard of it");
        d.permitted(writer(40));
        d.permitted(Permission::None);
        d.confirmed(Permission::None);
        assert!(d.unfenced, "whoever takes a permission back sets no timer");
        d.confirmed(writer(40));
        assert_eq!(d, Deadman { kill_at: BootInstant::from_nanos(40_000_000_000), ..Deadman::default() });
    }

    #[test]
    fn a_keeper_that_is_met_tells_all_there_is() {
        let mut d =
            Deadman { unfenced: true, in_doubt: true, gone: Some(BootInstant::default()), ..Deadman::default() };
        d.permitted(writer(40));
        d.met(writer(30), Fence::Full);
        let kill_at = BootInstant::from_nanos(40_000_000_000);
        assert_eq!(d, Deadman { fence: Fence::Full, kill_at, ..Deadman::default() });
        d.starts(true);
        assert_eq!((d.fence, d.in_doubt), (Fence::Partial, true), "what an order made is not known before its answer");
        d.runs(Fence::Full);
        assert_eq!((d.fence, d.in_doubt), (Fence::Full, false));
        d.met(Permission::Unfenced(UnfencedReason::Bootstrap), Fence::Full);
        assert!(d.unfenced);
    }
}
