//! Effects on the store and questions to other members.

use std::collections::BTreeMap;

use super::super::effect::Effect;
use super::super::flights::{About, Lane};
use super::super::lease::{Job, Start};
use super::super::state::State;
use crate::decide::{Silence, judge_silence};
use crate::model::{
    Action, BootInstant, Change, Electorate, InFlight, MemberName, Permission, ProofWanted, StoreWrite, SyncWrite,
    Version,
};
use crate::mutant::{self, Mutant};

impl State {
    #[expect(clippy::wildcard_enum_match_arm, reason = "of the lease's actions, those that are not ready are dropped")]
    pub(super) fn act_on_lease(&mut self, action: Action) {
        match action {
            Action::AcquireLease { stood, claim } if self.rested("acquire") && !self.lease.busy() => {
                self.local.claim = claim;
                self.lease_job(InFlight::Acquire, Job::Acquire { stood, claim });
            }
            Action::RenewLease => self.renew(None),
            Action::ClaimTimeline(number) => self.renew(Some(number)),
            // The permission is gone before the lock is, by the keeper's own answer, or by what its silence proves.
            Action::ReleaseLease { shutdown }
                if self.standing() == Permission::None
                    && self.rested("release")
                    && (self.fence_known() && !self.flights.busy(Lane::Permission)
                        || judge_silence(&self.local, self.now.boot) == Silence::Proof) =>
            {
                self.lease_job(InFlight::Release, Job::Release { shutdown });
            }
            Action::ProveDeath { record, uid, pod, containers } if !self.flights.busy(Lane::Proof) => {
                self.local.proving = true;
                self.local.proof_wanted = Some(ProofWanted { record, uid, pod: pod.clone(), containers });
                self.send(Effect::ReadPod { name: pod }, About::ProofPod);
            }
            _ => {}
        }
    }

    fn lease_job(&mut self, kind: InFlight, job: Job) {
        if self.lease.busy() {
            return;
        }
        self.local.lease_write = Some(kind);
        let own = self.local.own.as_ref().map(|own| (own.record.clone(), own.evidence + own.ttl));
        let s = &self.in_force.settings;
        let paused = self.says_paused();
        let (ttl, deadline, site) = (s.ttl, s.retry_timeout, s.site.clone());
        let failsafe = if kind == InFlight::Acquire { self.failsafe_map() } else { Change::Keep };
        let start = Start { job, ttl, deadline, own, paused, site, failsafe };
        self.with_lease(|lease, cluster, now, ids| lease.start(start, cluster, now, ids));
    }

    /// Does the keeper answer, so that what it said last stands?
    fn fence_known(&self) -> bool {
        matches!(self.local.keeper, crate::model::KeeperLink::Connected { .. })
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "only actions on the store come here")]
    pub(super) fn act_on_store(&mut self, action: Action) {
        // A write that has to wait is wished again by a later decision.
        if !self.may_write_store() || self.flights.busy(Lane::Store) {
            return;
        }
        let (write, about) = match action {
            Action::ClaimInitialize { expect } => (StoreWrite::ClaimInitialize { expect }, About::Claim),
            Action::WriteSystemId { expect, system_id } => plain(StoreWrite::SystemId { expect, system_id }),
            Action::CancelInitialize { expect } => plain(StoreWrite::CancelInitialize { expect }),
            Action::MakeLeaderObject => plain(StoreWrite::LeaderObject),
            Action::WriteHistory { rows } => {
                let expect = self.cluster.config.as_ref().map(|c| c.version.clone());
                plain(StoreWrite::History { expect, rows })
            }
            Action::ClearRequest { .. } if mutant::is(Mutant::RequestsStay) => return,
            Action::ClearRequest { expect, why } => {
                self.info(format!("clearing the failover request: {why}"));
                plain(StoreWrite::ClearRequest { expect })
            }
            Action::WriteConfig { expect } => {
                plain(StoreWrite::Config { expect, document: self.in_force.to_publish.clone() })
            }
            Action::UpdateHistory => return self.read_history(),
            _ => return,
        };
        self.local.store_write = true;
        self.send(Effect::WriteStore(write), about);
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "only these come here")]
    pub(super) fn ask_around(&mut self, action: Action) {
        match action {
            Action::ReadConfig => self.read_config(),
            Action::ReadSync => self.read_sync(),
            Action::WriteSync { expect, leader, electorate } => self.write_sync(expect, leader, electorate),
            Action::AskPeers { members } => self.ask(&members),
            Action::AskFailsafe => self.ask_failsafe(),
            _ => {}
        }
    }

    fn read_config(&mut self) {
        if !self.flights.busy(Lane::Config) && self.rested("read the history") {
            self.send(Effect::ReadConfig, About::Config);
        }
    }

    fn read_sync(&mut self) {
        if !self.flights.busy(Lane::SyncRead) && self.rested("read the sync key") {
            self.send(Effect::ReadSync, About::SyncRead);
        }
    }

    fn write_sync(&mut self, expect: Option<Version>, leader: Option<MemberName>, electorate: Electorate) {
        if self.flights.busy(Lane::Sync) || !self.rested("sync key") {
            return;
        }
        let mine = leader.as_ref() == Some(&self.local.me);
        let acquisition = self.acquisition().filter(|_| mine);
        self.local.sync.writes(SyncWrite { expect: expect.clone(), electorate: electorate.clone() });
        let stamp = format!("{} {}", self.local.session, self.now.boot.as_nanos());
        self.send(
            Effect::WriteStore(StoreWrite::Sync { expect, leader, electorate, stamp }),
            About::Sync { acquisition },
        );
    }

    fn read_history(&mut self) {
        let follows = self.follows_another();
        let Some(probe) = self.local.postgres.probe.as_ref().filter(|p| !p.in_recovery || follows) else { return };
        if self.flights.busy(Lane::History) || !self.rested("history") {
            return;
        }
        let effect = Effect::ReadHistory {
            timeline: probe.timeline,
            previous: self.cluster.history.clone().unwrap_or_default(),
        };
        self.send(effect, About::History);
    }

    fn ask(&mut self, members: &[MemberName]) {
        if self.flights.busy(Lane::Peers) {
            return;
        }
        let urls: BTreeMap<MemberName, String> = members
            .iter()
            .map(|name| {
                let url = self.cluster.members.get(name).and_then(|m| m.api_url.clone()).unwrap_or_default();
                (name.clone(), url)
            })
            .collect();
        let asked_at = self.now.boot;
        self.local.asking = Some(asked_at);
        self.send(Effect::AskPeers { members: urls }, About::Peers { asked_at });
        // Who compares positions needs its own as fresh as the others' answers.
        if self.flights.busy(Lane::Probe) {
            // The one under way is older than the question: again as soon as it ends.
            self.probed_at = BootInstant::default();
        } else if self.local.postgres.alive && self.local.postgres.stopping.is_none() {
            self.probed_at = asked_at;
            self.send(Effect::Probe, About::Probe);
        }
    }
}

fn plain(write: StoreWrite) -> (StoreWrite, About) {
    let what = write.name();
    (write, About::Store { what })
}
