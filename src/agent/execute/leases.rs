//! The lease: acquire, renew, release, read, proof of death. Each is begun as a task; its outcome comes back as an event
//! and only then changes what this member may do (design §4).

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::super::{Agent, Outcome, clock};
use crate::dcs::{Acquire, LeaderStatus, LeaseWrite, Renew, Renewal};
use crate::model::{BootInstant, InFlight, KeeperLink, LeaseRecord, Lsn, MemberName, OwnLease, Permission, Timings};

/// A lease write shorter than this would be given up before the API server can have answered.
const SHORTEST_WRITE: Duration = Duration::from_secs(1);

/// A fresh read of the leader object.
const READ_DEADLINE: Duration = Duration::from_secs(2);

impl Agent {
    pub(super) fn begin_acquire(&mut self, stood: Option<LeaseRecord>, proven_dead: bool) {
        self.local.lease_write = Some(InFlight::Acquire);
        let (ttl, deadline) = (self.settings.ttl, self.settings.retry_timeout);
        let store = self.store.clone();
        self.begin(
            async move { Outcome::Acquired(store.acquire(Acquire { stood, proven_dead, ttl, deadline }).await) },
        );
    }

    /// Sends a renewal. From this moment the shorter of the confirmed and the attempted ttl counts (design §4).
    pub(in crate::agent) async fn begin_renew(&mut self) {
        let now = clock::boot();
        let ttl = self.attempted_ttl().await;
        let left = match (&self.local.own, &self.local.reclaim) {
            (Some(own), _) => now.until(own.evidence + own.ttl),
            (None, Some(record)) => {
                self.store.adopt(record.clone());
                ttl
            }
            (None, None) => return,
        };
        self.local.lease_write = Some(InFlight::Renew);
        self.local.last_attempt = Some(now);
        let deadline = self.settings.retry_timeout.min(left).max(SHORTEST_WRITE);
        let want = Renew { ttl, status: self.leader_status(), deadline };
        let store = self.store.clone();
        self.begin(async move { Outcome::Renewed(store.renew(want).await) });
    }

    /// The ttl of the next attempt. A shorter one is sent only when the keeper's deadlines are the shorter ones already: the
    /// attempt may land and its answer be lost.
    async fn attempted_ttl(&mut self) -> Duration {
        let wanted = self.settings.ttl;
        let Some(own) = self.local.own.as_mut().filter(|own| wanted < own.ttl) else { return wanted };
        let before = std::mem::replace(&mut own.ttl, wanted);
        self.send_evidence().await;
        let keeper_knows = matches!(self.local.keeper, KeeperLink::Connected { .. });
        match self.local.own.as_mut() {
            Some(own) if !keeper_knows => {
                own.ttl = before;
                before
            }
            Some(_) | None => wanted,
        }
    }

    pub(super) fn begin_release(&mut self, optime: Option<Lsn>) {
        self.local.lease_write = Some(InFlight::Release);
        let deadline = self.settings.retry_timeout;
        let store = self.store.clone();
        self.begin(async move { Outcome::Released(store.release(optime, deadline).await) });
    }

    pub(super) fn begin_read_lease(&mut self) {
        if self.flags.reading_lease {
            return;
        }
        self.flags.reading_lease = true;
        let store = self.store.clone();
        self.begin(async move { Outcome::LeaseRead(store.read_lease(READ_DEADLINE).await.map(|_| ())) });
    }

    pub(super) fn begin_prove_death(
        &mut self,
        record: LeaseRecord,
        uid: String,
        pod: MemberName,
        containers: BTreeMap<String, String>,
    ) {
        self.local.proving = true;
        let store = self.store.clone();
        self.begin(async move { Outcome::Proof(store.prove_death(record, uid, pod, containers).await) });
    }

    /// What the leader publishes with a renewal: its position and slots, only while it is a primary that answers.
    fn leader_status(&self) -> LeaderStatus {
        let Some(probe) = self.local.postgres.probe.as_ref().filter(|p| !p.in_recovery) else {
            return LeaderStatus::default();
        };
        let mut slots = self.slots.positions.clone();
        slots.insert(self.local.me.slot_name(), probe.position);
        LeaderStatus { optime: Some(probe.position), slots, retain_slots: self.slots.retain.clone() }
    }

    pub(in crate::agent) async fn acquired(&mut self, outcome: LeaseWrite) {
        self.local.lease_write = None;
        match outcome {
            LeaseWrite::Written { record, sent } => {
                info!("acquired the leader lock");
                self.local.death_proof = None;
                self.local.stepped_down = None;
                self.confirm(record, sent).await;
            }
            LeaseWrite::Conflict(why) => info!("could not acquire the leader lock: {why}"),
            LeaseWrite::Refused(why) => warn!("the API server refused to give the leader lock: {why}"),
            LeaseWrite::Unknown(why) => warn!("it is not known whether the leader lock was acquired: {why}"),
        }
    }

    pub(in crate::agent) async fn renewed(&mut self, outcome: Renewal) {
        self.local.lease_write = None;
        match outcome {
            Renewal::Renewed { record, sent } => {
                self.confirm(record, sent).await;
                let store = self.store.clone();
                tokio::spawn(async move {
                    let stripped = store.strip_leader_label().await;
                    if !stripped.is_empty() {
                        let names: Vec<_> = stripped.iter().map(MemberName::as_str).collect();
                        info!("removed the leader label from {}", names.join(", "));
                    }
                });
            }
            Renewal::LostTo(who) => {
                let to = who.as_ref().map_or("nobody".to_owned(), ToString::to_string);
                warn!("lost the leader lock, a fresh read shows it held by {to}");
                self.lose().await;
            }
            Renewal::Unknown(why) => warn!("the leader lock could not be renewed: {why}"),
        }
    }

    pub(in crate::agent) async fn released(&mut self, outcome: LeaseWrite) {
        self.local.lease_write = None;
        self.local.stepped_down = Some(clock::boot());
        match outcome {
            LeaseWrite::Written { .. } => info!("Leader key released"),
            LeaseWrite::Conflict(why) => info!("the leader lock was not mine any more: {why}"),
            LeaseWrite::Refused(why) | LeaseWrite::Unknown(why) => {
                warn!("the leader lock could not be released, it ends with its ttl: {why}");
            }
        }
        self.lose().await;
    }

    /// A record of mine stands: what it allows the keeper to let run, counted from its sending.
    async fn confirm(&mut self, record: LeaseRecord, sent: BootInstant) {
        let ttl = record.ttl_or(self.settings.ttl);
        let own = OwnLease { record, evidence: sent, ttl };
        debug!(evidence = ?own.evidence, "the leader lock is confirmed");
        self.local.own = Some(own);
        self.local.reclaim = None;
        self.send_evidence().await;
    }

    /// Sends the permission that my lease allows, unless I am about to give the lease away.
    pub(in crate::agent) async fn send_evidence(&mut self) {
        let Some(own) = &self.local.own else { return };
        let leaving = self.local.lease_write == Some(InFlight::Release)
            || self.local.handover.as_ref().is_some_and(|h| h.stopped.is_some());
        if leaving || matches!(self.local.keeper, KeeperLink::Lost { .. }) {
            return;
        }
        if let Ok(t) = Timings::new(&self.settings, own.ttl, self.local.watchdog_armed) {
            let permission = Permission::Writer { stop_at: own.evidence + t.stop, kill_at: own.evidence + t.kill };
            // A keeper that does not answer shows as `KeeperLink::Lost`; its deadline stands.
            self.permit(permission).await;
        }
    }

    async fn lose(&mut self) {
        self.local.own = None;
        self.local.reclaim = None;
        self.permit(Permission::None).await;
    }
}
