//! The one value that others may see.

use super::state::State;
use crate::decide;
use crate::model::{DataDir, Fence, KeeperLink, MemberSnapshot, StoreLink};

impl State {
    pub(super) fn snapshot(&self) -> MemberSnapshot {
        let pg = &self.local.postgres;
        MemberSnapshot {
            now: self.now,
            me: self.local.me.clone(),
            cluster: self.cluster.clone(),
            settings: self.in_force.settings.clone(),
            store_read: self.local.store != StoreLink::NotRead,
            dcs_available: self.store_available(),
            // A watch that is followed shows whatever changes, and mostly nothing does.
            dcs_last_seen: match self.local.store {
                StoreLink::Following => self.now.wall.0 / 1_000_000,
                StoreLink::NotRead | StoreLink::Broken { .. } => self.dcs_last_seen,
            },
            leader_until: self.leader_until(),
            alive: pg.alive,
            state: pg.state.clone(),
            role: pg.role,
            probe: pg.probe.clone(),
            server_version: pg.server_version,
            system_id: match &self.local.data {
                DataDir::Present { control: Some(control), .. } => Some(control.system_id.clone()),
                DataDir::Present { control: None, .. }
                | DataDir::HalfRewound { .. }
                | DataDir::Empty
                | DataDir::HalfMade
                | DataDir::Restored
                | DataDir::Unusable(_) => None,
            },
            known_timeline: pg.probe.as_ref().map(|p| p.timeline).unwrap_or_default().max(pg.newest_history),
            position: pg.probe.as_ref().map(|p| p.position),
            pending_restart: pg.pending_restart,
            pending_restart_reason: self.pending_restart.clone(),
            scheduled_restart: self.scheduled.as_ref().map(|s| s.document.clone()),
            next_step: self.wake,
            reason: self.reason.clone(),
            fence_lost: matches!(self.local.keeper, KeeperLink::Lost { .. }),
            fence_partial: pg.alive && self.local.deadman.fence == Fence::Partial,
            failsafe_active: self.failsafe_is_active(),
            watchdog_failed: decide::watchdog_failing(&self.in_force.settings, &self.local, self.now.boot).is_some(),
            quits_sync: self.local.quits_sync.is_some(),
        }
    }
}
