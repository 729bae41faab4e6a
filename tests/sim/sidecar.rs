//! The sidecar's shell in small: news into `Local`, the real `decide` and `check`, actions out. It mirrors
//! `agent::{observe, startup, execute}`.

use std::collections::BTreeMap;

use patroni::decide::{check, decide};
use patroni::model::*;

use super::parts::*;
use super::world::*;

/// A new life, with what the keeper and the store tell of the one before (`agent::startup`).
pub fn start(pod: &Pod, store: &Cluster, now: BootInstant, ttl: std::time::Duration) -> Sidecar {
    let mut local = local_at_start(pod, now, ttl);
    let mut attempts = BTreeMap::new();
    local.keeper = KeeperLink::Connected { permission: pod.keeper.permission };
    local.postgres.last_death = pod.keeper.last_death;
    if let Some(p) = &pod.postmaster {
        started(&mut local, p.standby && p.promoted_at.is_none(), None, now);
    }
    if let Some(leader) = store.leader.as_ref().filter(|l| l.named() == Some(&pod.name)) {
        let stamp = leader.lease.renew_time.clone().unwrap_or_default();
        match &pod.keeper.note {
            Some((record, evidence)) if *record == leader.lease => {
                attempts.insert(stamp, *evidence);
                local.own = Some(OwnLease { record: record.clone(), evidence: *evidence, ttl });
            }
            Some(_) | None => {
                let this_pod = leader.valid_holder().is_some_and(|h| h.uid == pod.uid);
                if this_pod && pod.postmaster.is_none() {
                    attempts.insert(stamp, now);
                    local.reclaim = Some(leader.lease.clone());
                }
            }
        }
    }
    Sidecar { local, attempts, view: store.clone(), wake: now, reason: String::new() }
}

fn local_at_start(pod: &Pod, now: BootInstant, ttl: std::time::Duration) -> Local {
    let mut local = Local::at_start(pod.name.clone(), pod.life.to_string(), now, ttl);
    local.uid = pod.uid.clone();
    local.postgres.checkpointed = true;
    local.postgres.server_version = Some(150_000);
    local
}

pub fn started(local: &mut Local, standby: bool, upstream: Option<Upstream>, now: BootInstant) {
    let pg = &mut local.postgres;
    pg.alive = true;
    pg.started_as = Some(if standby { StartRoleSeen::Standby } else { StartRoleSeen::Primary });
    pg.role = if standby { Role::Replica } else { Role::Primary };
    (pg.stopping, pg.promoting, pg.probe, pg.crashed) = (None, None, None, false);
    pg.following = upstream;
    (pg.state, pg.since) = (PostgresState::Starting, now);
}

fn died(local: &mut Local, at: BootInstant) {
    let pg = &mut local.postgres;
    let primary = pg.started_as != Some(StartRoleSeen::Standby) || matches!(pg.role, Role::Primary | Role::Promoted);
    pg.crashed = pg.stopping.is_none();
    pg.state = if pg.crashed { PostgresState::Crashed } else { PostgresState::Stopped };
    pg.alive = false;
    pg.last_death = Some(at);
    (pg.started_as, pg.stopping, pg.promoting, pg.probe, pg.following) = (None, None, None, None, None);
    pg.role = if primary { Role::Demoted } else { Role::Replica };
    pg.since = at;
    if let Some(h) = &mut local.handover {
        h.stopped = Some(at);
    }
}

impl World {
    pub fn sidecar(&mut self, i: usize) {
        let Some(mut s) = self.pods[i].sidecar.take() else { return };
        let (t, now) = (self.t, self.pods[i].boot(self.t));
        let mut woken = now >= s.wake;
        let api = t >= self.pods[i].api_cut;
        let inbox = std::mem::take(&mut self.pods[i].inbox);
        for (due, life, news) in inbox {
            let held = matches!(news, News::View(_)) && !api;
            if due > t || held {
                self.pods[i].inbox.push((due, life, news));
            } else if life == self.pods[i].life {
                woken = true;
                self.hear(i, &mut s, news, now);
            }
        }
        woken |= self.look(i, &mut s, now);
        if woken {
            let mut rounds = 0;
            while rounds < 4 && self.round(i, &mut s, now) {
                self.look(i, &mut s, now);
                rounds += 1;
            }
        }
        if s.reason != "exit" {
            self.pods[i].sidecar = Some(s);
        }
    }

    /// Postgres and the data directory as they are.
    fn look(&mut self, i: usize, s: &mut Sidecar, now: BootInstant) -> bool {
        let (t, streaming) = (self.t, self.streams(i));
        let pod = &self.pods[i];
        let local = &mut s.local;
        let mut woken = false;
        if local.postgres.alive && pod.postmaster.is_none() {
            died(local, pod.keeper.last_death.unwrap_or(now));
            woken = true;
        }
        if let (Some(p), Some(d), true) = (&pod.postmaster, &pod.disk, pod.answers(t)) {
            woken |= local.postgres.probe.as_ref().is_none_or(|old| old.in_recovery != p.recovering);
            if !p.recovering {
                local.postgres.promoting = None;
            }
            local.postgres.role = match (p.recovering, local.postgres.promoting) {
                (false, _) => Role::Primary,
                (true, Some(_)) => Role::Promoted,
                (true, None) => Role::Replica,
            };
            local.postgres.failed_starts = 0;
            local.postgres.checkpointed = true;
            if local.postgres.stopping.is_none() {
                local.postgres.state = PostgresState::Running;
            }
            local.postgres.probe = Some(Probe {
                at: now,
                in_recovery: p.recovering,
                timeline: Timeline(d.timeline()),
                position: Lsn(d.end),
                received: Lsn(d.end),
                replayed: Lsn(d.end),
                streaming,
                replay_paused: false,
                system_id: d.system_id.clone(),
            });
        }
        local.data = match &pod.disk {
            None => DataDir::Empty,
            Some(d) => DataDir::Present { control: Some(d.control()), standby_signal: d.standby_signal },
        };
        if !local.postgres.alive {
            local.postgres.role = match &pod.disk {
                None => Role::Uninitialized,
                Some(d) if d.standby_signal => Role::Replica,
                Some(_) => Role::Demoted,
            };
        }
        woken
    }

    fn hear(&mut self, i: usize, s: &mut Sidecar, news: News, now: BootInstant) {
        let local = &mut s.local;
        match news {
            News::View(view) => {
                local.store = StoreLink::Following;
                let record = view.leader.as_ref().map(|l| l.lease.clone());
                let other = record.as_ref().and_then(|r| r.leader.as_ref()).is_some_and(|who| *who != local.me);
                if local.lease.observe(record.clone(), now, self.settings.ttl) {
                    local.death_proof = None;
                    if other {
                        local.stepped_down = None;
                    }
                }
                if local.reclaim != record {
                    local.reclaim = None;
                }
                s.view = *view;
            }
            News::Acquired(outcome) | News::Renewed(outcome) => {
                local.lease_write = None;
                if let Some((record, sent)) = outcome {
                    let from = if self.mutant == Mutant::LeaseFromConfirmation { now } else { sent };
                    (local.death_proof, local.stepped_down, local.reclaim) = (None, None, None);
                    let ttl = record.ttl_or(self.settings.ttl);
                    local.own = Some(OwnLease { record, evidence: from, ttl });
                    self.send_evidence(i, local);
                }
            }
            News::Lost | News::Released => {
                if matches!(news, News::Released) {
                    local.stepped_down = Some(now);
                }
                (local.lease_write, local.own, local.reclaim) = (None, None, None);
                self.pods[i].keeper.permit(Permission::None, BootInstant::default(), None);
            }
            News::Peers(round) => (local.asking, local.peers) = (None, Some(round)),
            News::Proof(proof) => {
                (local.proving, local.proof_tried) = (false, Some(now));
                local.death_proof = proof;
            }
            News::Task(kind, result) => {
                if matches!(kind, TaskKind::Rewind { .. }) {
                    local.rewind = RewindState::Success;
                }
                local.postgres.state = PostgresState::Stopped;
                local.task = None;
                local.task_end = Some(TaskEnd { kind, at: now, result });
            }
            News::Divergence(Some(state)) => (local.checking, local.rewind) = (false, state),
            News::Divergence(None) => local.checking = false,
            News::Claimed(won) => {
                (local.store_write, local.task_end) = (false, None);
                local.bootstrapping |= won;
            }
            News::Stored => local.store_write = false,
            News::Checkpoint => {
                if let Some(h) = &mut local.handover {
                    h.checkpoint_done = true;
                }
            }
            News::BootstrapEnded => local.bootstrapping = false,
        }
    }

    fn send_evidence(&mut self, i: usize, local: &Local) {
        let Some(own) = &local.own else { return };
        let leaving = local.lease_write == Some(InFlight::Release)
            || local.handover.as_ref().is_some_and(|h| h.stopped.is_some());
        if !leaving && let Ok(x) = Timings::new(&self.settings, own.ttl, false) {
            let permission = Permission::Writer { stop_at: own.evidence + x.stop, kill_at: own.evidence + x.kill };
            self.pods[i].keeper.permit(permission, own.evidence, Some((own.record.clone(), own.evidence)));
        }
    }

    /// One decision, checked and carried out. True when something was settled at once.
    fn round(&mut self, i: usize, s: &mut Sidecar, now: BootInstant) -> bool {
        let at = Now { boot: now, wall: WallTime((self.t * 1e6) as i64) };
        let mut seen = s.local.clone();
        let mut view = s.view.clone();
        if self.mutant == Mutant::ObserverIgnoresTtl {
            seen.lease.since = seen.lease.since - std::time::Duration::from_secs(25);
        }
        if self.mutant == Mutant::InitdbDespiteData {
            view.members.values_mut().for_each(|m| m.role = None);
        }
        if self.mutant == Mutant::ProofFromOneContainer {
            view.members.values_mut().for_each(|m| m.terminated.retain(|name, _| name == "patroni"));
            if let Some(holder) = view.leader.as_mut().and_then(|l| l.holder.as_mut()) {
                holder.containers.retain(|name, _| name == "patroni");
            }
        }
        let d = decide(&view, &seen, &self.settings, at);
        if let Err(rules) = check(&d, &view, &seen, &self.settings, at) {
            self.violation(format!("m{i} check: {rules:?} in {:?}", d.reason));
        }
        if s.reason != d.reason.0 {
            s.reason.clone_from(&d.reason.0);
            self.note(format!("m{i}: {}", d.reason));
        }
        s.wake = d.wake_at;
        let stops = d.actions.iter().any(|a| matches!(a, Action::StopPostgres { .. }));
        if self.mutant == Mutant::ReleaseBeforeStop && stops && s.local.own.is_some() {
            self.send(i, s, Wish::Release { optime: None }, now);
        }
        let mut again = false;
        for action in d.actions {
            match self.act(i, s, action, now) {
                Some(settled) => again |= settled,
                None => {
                    s.wake = s.wake.min(now + std::time::Duration::from_millis(500));
                    return false;
                }
            }
        }
        again
    }
}
