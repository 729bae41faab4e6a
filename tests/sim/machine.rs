//! What goes on without the sidecar: the API server lands writes, the keeper fences, Postgres runs.

use patroni::model::*;

use super::parts::*;
use super::world::*;

impl World {
    pub fn land_writes(&mut self) {
        let t = self.t;
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.writes).into_iter().partition(|w| w.at <= t);
        self.writes = rest;
        for write in due {
            let news = self.land(&write);
            let delay = if self.quiet { self.rng.between(0.01, 0.1) } else { self.answer_delay() };
            if self.pods[write.pod].life == write.life {
                let lost = match write.wish {
                    Wish::Acquire { .. } => News::Acquired(None),
                    Wish::Renew => News::Renewed(None),
                    Wish::Release { .. } => News::Released,
                };
                if write.late.is_none() {
                    let news = if write.answer { news } else { lost };
                    self.pods[write.pod].inbox.push((t + delay, write.life, news));
                }
            }
        }
    }

    fn answer_delay(&mut self) -> f64 {
        if self.rng.one_in(15) { self.rng.between(2.0, 9.5) } else { self.rng.between(0.01, 0.2) }
    }

    fn land(&mut self, w: &Write) -> News {
        let standing = self.store.leader.as_ref().map(|l| l.lease.clone());
        let mine = self.pods[w.pod].sidecar.as_ref().filter(|_| self.pods[w.pod].life == w.life).is_some_and(|s| {
            standing.as_ref().is_some_and(|r| {
                r.leader.as_ref() == Some(&s.local.me)
                    && r.renew_time.as_ref().is_some_and(|x| s.attempts.contains_key(x))
            })
        });
        if let Some(expected) = &w.late {
            if self.store.leader.as_ref().map(|l| l.version.clone()) == *expected {
                self.write_lease(w);
            }
            return News::Stored;
        }
        match &w.wish {
            Wish::Acquire { stood, .. } => {
                if standing == *stood || self.mutant == Mutant::AcquireWithoutComparing {
                    News::Acquired(Some((self.write_lease(w), self.counted_from(w))))
                } else {
                    News::Acquired(None)
                }
            }
            Wish::Renew if mine => News::Renewed(Some((self.write_lease(w), self.counted_from(w)))),
            Wish::Renew => News::Lost,
            Wish::Release { .. } if mine => {
                self.write_lease(w);
                News::Released
            }
            Wish::Release { .. } => News::Released,
        }
    }

    fn counted_from(&self, w: &Write) -> BootInstant {
        w.sent
    }

    fn write_lease(&mut self, w: &Write) -> LeaseRecord {
        let version = self.bump();
        let pod = &self.pods[w.pod];
        let old = self.store.leader.clone();
        let mut record = old.as_ref().map(|l| l.lease.clone()).unwrap_or_default();
        let mut optime = w.optime.or_else(|| old.as_ref().and_then(|l| l.optime));
        match &w.wish {
            Wish::Acquire { .. } => {
                record.transitions = Some(record.next_transitions().to_string());
                record.acquire_time = Some(w.stamp.clone());
                record.renew_time = Some(w.stamp.clone());
                record.leader = Some(pod.name.clone());
                record.ttl = Some("30".into());
            }
            Wish::Renew => record.renew_time = Some(w.stamp.clone()),
            Wish::Release { optime: last } => {
                record.leader = None;
                optime = last.or(optime);
            }
        }
        let holder = HolderMark {
            uid: pod.uid.clone(),
            session: w.life.to_string(),
            containers: pod.containers.clone(),
            acquire_time: record.acquire_time.clone().unwrap_or_default(),
            renew_time: record.renew_time.clone().unwrap_or_default(),
        };
        let text = format!("m{} wrote the lease: {:?} {:?}", w.pod, record.leader, record.renew_time);
        self.note(text);
        self.store.leader = Some(LeaderRecord {
            version,
            lease: record.clone(),
            holder: Some(holder),
            optime,
            slots: Default::default(),
            retain_slots: Vec::new(),
            failsafe: None,
            addresses: Vec::new(),
            released: None,
            claim: None,
        });
        record
    }

    /// The keeper's fence on its own clock, and reaping.
    pub fn keeper(&mut self, i: usize) {
        let (t, crash, fast) = (self.t, self.rng.between(0.02, 0.4), self.mutant != Mutant::KeeperNeverFences);
        let pod = &mut self.pods[i];
        let now = pod.boot(t);
        let Some(p) = &mut pod.postmaster else { return };
        if t >= p.dies_at {
            let clean = p.stop == Some(StopMode::Fast);
            let primary = !p.recovering;
            pod.postmaster = None;
            pod.keeper.last_death = Some(now);
            if let Some(d) = &mut pod.disk {
                d.state = match (clean, primary) {
                    (true, true) => ClusterState::ShutDown,
                    (true, false) => ClusterState::ShutDownInRecovery,
                    (false, true) => ClusterState::InProduction,
                    (false, false) => ClusterState::InArchiveRecovery,
                };
            }
            self.note(format!("m{i} Postgres is dead (clean {clean})"));
            return;
        }
        let writer = !p.standby || p.promoted_at.is_some() || !p.recovering;
        if !writer || !fast {
            return;
        }
        let (stop, kill) = match pod.keeper.permission {
            Permission::None => (true, false),
            Permission::Writer { stop_at, kill_at } => (now >= stop_at, now >= kill_at),
            Permission::Unfenced => (false, false),
        };
        if kill {
            p.dies_at = p.dies_at.min(t + crash / 2.0);
            p.stop = Some(StopMode::Immediate);
        } else if stop && p.stop != Some(StopMode::Immediate) {
            p.dies_at = p.dies_at.min(t + crash);
            p.stop = Some(StopMode::Immediate);
        }
    }

    /// Promotion, client writes, replication.
    pub fn postgres(&mut self, i: usize) {
        let t = self.t;
        let pod = &mut self.pods[i];
        if let (Some(p), Some(d)) = (&mut pod.postmaster, &mut pod.disk)
            && p.promoted_at.is_some_and(|at| t >= at)
            && p.recovering
        {
            p.recovering = false;
            let end = d.end;
            let tl = d.timeline() + 1;
            d.log.push((tl, end));
            d.standby_signal = false;
            d.state = ClusterState::InProduction;
            self.note(format!("m{i} is primary on timeline {tl} from {end}"));
        }
        if self.pods[i].writable(t) {
            let initializing = self.pods[i].keeper.permission == Permission::Unfenced;
            let grown = self.rng.below(20_000);
            if let Some(d) = &mut self.pods[i].disk {
                d.end += grown;
            }
            // Not promised (S2): statements in flight of a pod that thaws past its lease, until its keeper has stopped them.
            let thawing = self.pods[i].pod_frozen > 0.0 && t < self.pods[i].pod_frozen + 0.6;
            if !initializing && !thawing {
                self.acknowledged(i);
            }
        } else if self.pods[i].answers(t) && self.streams(i) && !self.rng.one_in(4) {
            self.receive(i);
        }
    }

    pub fn reachable(&self, i: usize, j: usize) -> bool {
        let t = self.t;
        t >= self.pods[i].net_cut && t >= self.pods[j].net_cut && t >= self.pods[j].pod_frozen
    }

    fn upstream_of(&self, i: usize) -> Option<usize> {
        let Upstream::Member { name, .. } = &self.pods[i].postmaster.as_ref()?.upstream else { return None };
        self.pods.iter().position(|p| p.name == *name)
    }

    pub fn streams(&self, i: usize) -> bool {
        let Some(j) = self.upstream_of(i) else { return false };
        let (Some(mine), Some(theirs)) = (&self.pods[i].disk, &self.pods[j].disk) else { return false };
        self.reachable(i, j) && self.pods[j].answers(self.t) && mine.common(theirs) == mine.end
    }

    pub fn receive(&mut self, i: usize) {
        let Some(j) = self.upstream_of(i) else { return };
        let Some(theirs) = self.pods[j].disk.clone() else { return };
        if let Some(d) = &mut self.pods[i].disk {
            d.log = theirs.log;
            d.end = d.end.max(theirs.end);
        }
    }

    /// The kubelet starts what has ended.
    pub fn come_back(&mut self, i: usize) {
        let t = self.t;
        if self.pods[i].sidecar.is_some() || t < self.pods[i].back_at {
            return;
        }
        let fresh_keeper = !self.pods[i].keeper_alive;
        let (store, ttl) = (self.store.clone(), self.settings.ttl);
        let pod = &mut self.pods[i];
        pod.life += 1;
        pod.inbox.clear();
        pod.keeper_alive = true;
        pod.containers.insert("patroni".into(), format!("patroni-{i}-{}", pod.life));
        if fresh_keeper {
            pod.containers.insert("postgres".into(), format!("postgres-{i}-{}", pod.life));
        }
        let uid = pod.uid.clone();
        let member = self.store.members.entry(pod.name.clone()).or_default();
        if member.uid != uid {
            *member = Member { uid, ..Member::default() };
        }
        for name in pod.containers.keys() {
            member.terminated.entry(name.clone()).or_default();
        }
        let sidecar = super::sidecar::start(pod, &store, pod.boot(t), ttl);
        pod.sidecar = Some(sidecar);
        let _ = self.bump();
        self.note(format!("m{i} sidecar starts"));
    }
}
