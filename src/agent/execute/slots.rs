//! Member slots: kept as wanted, at most one round at a time, again when the wish changes or a loop_wait has passed
//! (ha-decisions §21).

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::super::{Agent, Outcome, clock};
use crate::model::{BootInstant, Lsn};
use crate::postgres::slots::{Retention, Synced, Wanted, member_slots, wanted};

/// What a round of slots came to.
pub(in crate::agent) type SlotsNow = Synced;

/// What is remembered of slots between rounds.
#[derive(Default)]
pub(in crate::agent) struct SlotsKept {
    /// Published by the leader.
    pub positions: BTreeMap<String, Lsn>,
    /// Published by the leader: slots that every node keeps.
    pub retain: Vec<String>,
    retention: Retention,
    leading: bool,
    in_flight: bool,
    last: Option<(BootInstant, Vec<Wanted>)>,
    complained: String,
}

impl Agent {
    pub(super) fn begin_sync_slots(&mut self) {
        let pg = &self.local.postgres;
        let Some(probe) = pg.probe.as_ref().filter(|_| pg.alive && pg.stopping.is_none() && pg.promoting.is_none())
        else {
            return;
        };
        let leading = self.local.own.is_some() && !probe.in_recovery;
        if self.slots.in_flight {
            return;
        }
        let want = match self.wanted_slots(leading) {
            Ok(want) => want,
            Err(why) => return self.complain_of_slots(why),
        };
        let now = clock::boot();
        let fresh = self
            .slots
            .last
            .as_ref()
            .is_some_and(|(at, last)| *last == want && now.since(*at) < self.settings.loop_wait);
        if fresh {
            return;
        }
        self.slots.last = Some((now, want.clone()));
        self.slots.in_flight = true;
        let sql = self.postgres.sql.clone();
        self.begin(async move { Outcome::Slots(sql.sync_slots(&want).await.map_err(|e| e.to_string())) });
    }

    fn wanted_slots(&mut self, leading: bool) -> Result<Vec<Wanted>, String> {
        let published = self.cluster.leader.as_ref().map(|l| l.retain_slots.clone()).unwrap_or_default();
        if leading && !self.slots.leading {
            self.slots.retention.restart();
        }
        self.slots.leading = leading;
        if leading && self.settings.use_slots && !self.settings.member_slots_ttl.is_zero() {
            let present: BTreeSet<String> = member_slots(&self.local.me, &self.cluster)?.into_keys().collect();
            let ttl = self.settings.member_slots_ttl;
            let (retain, expired) = self.slots.retention.update(&present, &published, clock::boot(), ttl);
            for slot in expired {
                info!("Replication slot {slot} for absent cluster member is expired");
            }
            self.slots.retain = retain;
        } else if !leading {
            self.slots.retain = published;
        }
        wanted(&self.local.me, &self.cluster, &self.settings, leading, &self.slots.retain)
    }

    fn complain_of_slots(&mut self, why: String) {
        if self.slots.complained != why {
            warn!("replication slots: {why}");
            self.slots.complained = why;
        }
    }

    pub(in crate::agent) fn slots_synced(&mut self, result: Result<SlotsNow, String>) {
        self.slots.in_flight = false;
        match result {
            Ok(synced) => {
                for line in &synced.done {
                    info!("{line}");
                }
                if !synced.failed.is_empty() {
                    self.complain_of_slots(synced.failed.join("; "));
                }
                self.slots.positions = synced.positions;
            }
            Err(why) => self.complain_of_slots(why),
        }
    }
}
