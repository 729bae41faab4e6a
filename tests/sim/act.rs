//! Actions carried out on the model (`agent::execute` in small).

use std::collections::BTreeMap;

use patroni::model::*;

use super::parts::*;
use super::sidecar::started;
use super::world::*;

impl World {
    fn tell(&mut self, i: usize, after: f64, news: News) {
        let (t, life) = (self.t, self.pods[i].life);
        self.pods[i].inbox.push((t + after, life, news));
    }

    fn api(&self, i: usize) -> bool {
        self.t >= self.pods[i].api_cut
    }

    /// Sends a lease write: it may be slow, get lost, lose its answer, or land late.
    pub fn send(&mut self, i: usize, s: &mut Sidecar, wish: Wish, now: BootInstant) {
        let stamp = format!("m{i}-{}-{}", self.pods[i].life, now.as_nanos());
        let (kind, unknown) = match &wish {
            Wish::Acquire { .. } => (InFlight::Acquire, News::Acquired(None)),
            Wish::Renew => (InFlight::Renew, News::Renewed(None)),
            Wish::Release { .. } => (InFlight::Release, News::Released),
        };
        s.local.lease_write = Some(kind);
        if kind == InFlight::Renew {
            s.local.last_attempt = Some(now);
        }
        s.attempts.insert(stamp.clone(), now);
        let luck = if self.quiet { 99 } else { self.rng.below(40) };
        if !self.api(i) || luck == 0 {
            self.tell(i, 3.0, unknown);
            return;
        }
        let optime = s.local.postgres.probe.as_ref().filter(|p| !p.in_recovery).map(|p| p.position);
        let mut write = Write {
            at: self.t + self.rng.between(0.005, 0.1),
            pod: i,
            life: self.pods[i].life,
            wish,
            sent: now,
            stamp,
            answer: luck > 2,
            late: None,
            optime,
        };
        if luck == 1 {
            write.at = self.t + self.rng.between(3.0, 60.0);
            write.late = Some(s.view.leader.as_ref().map(|l| l.version.clone()));
            self.tell(i, 3.0, unknown);
        }
        self.writes.push(write);
    }

    /// `Some(true)`: settled at once; `Some(false)`: begun; `None`: failed.
    pub fn act(&mut self, i: usize, s: &mut Sidecar, action: Action, now: BootInstant) -> Option<bool> {
        match action {
            Action::AcquireLease { stood, .. } => self.send(i, s, Wish::Acquire { stood }, now),
            Action::RenewLease => self.send(i, s, Wish::Renew, now),
            Action::ReleaseLease { optime } => self.send(i, s, Wish::Release { optime }, now),
            Action::ProveDeath { record, uid, pod, containers } => {
                s.local.proving = true;
                let proof = self.prove(i, record, &uid, &pod, &containers);
                self.tell(i, 0.1, News::Proof(proof));
            }
            Action::ClaimInitialize { .. }
            | Action::WriteSystemId { .. }
            | Action::CancelInitialize { .. }
            | Action::WriteHistory { .. }
            | Action::UpdateHistory
            | Action::ClearRequest { .. }
            | Action::WriteConfig { .. } => self.write_store(i, s, action),
            Action::Permit(Permission::Writer { .. }) => self.permit_own(i, s),
            Action::Permit(permission) => self.pods[i].keeper.permit(permission, BootInstant::default(), None),
            Action::StartPostgres { role, upstream } => return self.start_postgres(i, s, role, upstream, now),
            Action::StopPostgres { mode, .. } => self.stop_postgres(i, s, mode),
            Action::Promote => return self.promote(i, s, now),
            Action::Follow { upstream } => {
                self.pods[i].postmaster.as_mut()?.upstream = upstream.clone();
                s.local.postgres.following = Some(upstream);
                return Some(true);
            }
            Action::Checkpoint => self.tell(i, 0.2, News::Checkpoint),
            Action::AskPeers { members } => self.ask(i, s, &members, now),
            Action::Begin(kind) => self.begin(i, s, kind, now),
            Action::CheckDivergence { leader, .. } => {
                s.local.checking = true;
                let verdict = self.divergence(i, &leader);
                self.tell(i, if verdict.is_some() { 0.1 } else { 1.0 }, News::Divergence(verdict));
            }
            Action::RemoveDataDir { why, .. } => self.remove(i, &why),
            Action::PublishStatus => self.publish(i, s),
            Action::SetBootstrapping(false) => self.tell(i, 0.1, News::BootstrapEnded),
            Action::SetBootstrapping(true) => s.local.bootstrapping = true,
            Action::BeginHandover(h) => {
                s.local.handover = Some(h);
                return Some(true);
            }
            Action::EndHandover => {
                s.local.handover = None;
                return Some(true);
            }
            Action::SetRewind(state) => {
                s.local.rewind = state;
                return Some(true);
            }
            Action::AnswerRequest { .. } => s.local.request = None,
            Action::PlanRestart { timeout } => s.local.restart = Some(PlannedRestart { began: now, timeout }),
            Action::RestartDone => s.local.restart = None,
            Action::Exit { .. } => self.exit(i, s),
            Action::CancelTask => s.local.task = None,
            Action::ReadLease | Action::SyncSlots | Action::FeedWatchdog | Action::DisarmWatchdog => {}
        }
        Some(false)
    }

    fn promote(&mut self, i: usize, s: &mut Sidecar, now: BootInstant) -> Option<bool> {
        let renewal = s.local.own.as_ref().map_or(BootInstant::default(), |o| o.evidence);
        if !self.pods[i].keeper.writer_may_begin(renewal, now) {
            return None;
        }
        let done = self.t + self.rng.between(0.05, 1.0);
        self.pods[i].postmaster.as_mut()?.promoted_at = Some(done);
        self.check_promotion(i, s);
        s.local.postgres.promoting = Some(now);
        Some(false)
    }

    fn exit(&mut self, i: usize, s: &mut Sidecar) {
        s.reason = "exit".into();
        self.pods[i].postmaster = None;
        self.pods[i].keeper = Keeper::new();
        self.pods[i].keeper_alive = false;
        self.pods[i].back_at = self.t + self.rng.between(1.0, 10.0);
    }

    fn permit_own(&mut self, i: usize, s: &Sidecar) {
        let Some(own) = &s.local.own else { return };
        if let Ok(x) = Timings::new(&self.settings, own.ttl, false) {
            let p = Permission::Writer { stop_at: own.evidence + x.stop, kill_at: own.evidence + x.kill };
            self.pods[i].keeper.permit(p, own.evidence, Some((own.record.clone(), own.evidence)));
        }
    }

    /// S5 and S7 at the moment of a promotion.
    fn check_promotion(&mut self, i: usize, s: &Sidecar) {
        let wiped = self.pods[i].boot(self.wiped_at.max(0.0));
        if self.t < self.wiped_at + 28.0 && s.local.own.as_ref().is_some_and(|o| o.evidence > wiped) {
            self.violation(format!("S7 m{i} promotes {:.1} s after a wipe", self.t - self.wiped_at));
        }
        let end = self.pods[i].disk.as_ref().map_or(0, |d| d.end);
        let lag = self.store.leader.as_ref().and_then(|l| l.optime).map_or(0, |o| o.0.saturating_sub(end));
        if lag > self.settings.maximum_lag_on_failover && self.store.request().is_none() {
            self.violation(format!("S5 m{i} promotes {lag} bytes behind the published position"));
        }
    }

    fn prove(
        &self,
        i: usize,
        record: LeaseRecord,
        uid: &str,
        pod: &MemberName,
        containers: &BTreeMap<String, String>,
    ) -> Option<DeathProof> {
        let leader = self.store.leader.as_ref().filter(|l| l.lease == record && self.api(i))?;
        leader.valid_holder()?;
        let member = self.store.members.get(pod)?;
        let dead = |(name, id): (&String, &String)| member.terminated.get(name).is_some_and(|ids| ids.contains(id));
        let all = if self.mutant == Mutant::ProofFromOneContainer {
            containers.iter().any(dead)
        } else {
            member.looks_terminated(uid, containers)
        };
        all.then(|| DeathProof { record, version: leader.version.clone(), how: "terminated".into() })
    }

    fn write_store(&mut self, i: usize, s: &mut Sidecar, action: Action) {
        if s.local.store_write {
            return;
        }
        s.local.store_write = true;
        let standing = self.store.config.as_ref().map(|c| c.version.clone());
        let mut news = News::Stored;
        let good = |expect: &Option<Version>| *expect == standing;
        if self.api(i) {
            let version = self.bump();
            let touch = |w: &mut World| {
                let document = w.store.config.as_ref().and_then(|c| c.document.clone());
                w.store.config = Some(ConfigRecord { version: version.clone(), document });
            };
            match action {
                Action::ClaimInitialize { expect } => {
                    let won = good(&expect);
                    if won {
                        self.store.initialize = Initialize::InProgress;
                        let (uid, session) = (s.local.uid.clone(), s.local.session.clone());
                        self.store.initializer = Some(Initializer { uid, session });
                        touch(self);
                    }
                    news = News::Claimed(won);
                }
                Action::WriteSystemId { expect, system_id } if good(&expect) => {
                    self.store.initialize = Initialize::Value(system_id);
                    touch(self);
                }
                Action::CancelInitialize { expect } if good(&Some(expect.clone())) => {
                    self.store.initialize = Initialize::Absent;
                    touch(self);
                }
                Action::WriteConfig { expect } if good(&expect) => {
                    self.store.config = Some(ConfigRecord { version, document: Some("{}".into()) });
                }
                Action::UpdateHistory => {
                    let log = self.pods[i].disk.as_ref().map(|d| d.log.clone()).unwrap_or_default();
                    let rows = log.windows(2).map(|x| HistoryRow {
                        timeline: Timeline(x[0].0),
                        lsn: Lsn(x[1].1),
                        reason: "r".into(),
                        at: None,
                        new_leader: None,
                    });
                    self.store.history = Some(rows.collect());
                    touch(self);
                }
                Action::ClearRequest { .. } => self.store.failover = None,
                _ => {}
            }
        } else if matches!(action, Action::ClaimInitialize { .. }) {
            news = News::Claimed(false);
        }
        let after = self.rng.between(0.4, 1.0);
        self.tell(i, after, news);
    }

    fn start_postgres(
        &mut self,
        i: usize,
        s: &mut Sidecar,
        role: StartRole,
        upstream: Upstream,
        now: BootInstant,
    ) -> Option<bool> {
        let standby = role == StartRole::Standby;
        let renewal = s.local.own.as_ref().map_or(BootInstant::default(), |o| o.evidence);
        if self.pods[i].postmaster.is_some() || (!standby && !self.pods[i].keeper.writer_may_begin(renewal, now)) {
            return None;
        }
        let up_at = self.t + self.rng.between(0.2, 2.0);
        let disk = self.pods[i].disk.as_mut()?;
        disk.standby_signal = standby;
        disk.state = if standby { ClusterState::InArchiveRecovery } else { ClusterState::InProduction };
        self.pods[i].postmaster = Some(Postmaster {
            standby,
            recovering: standby,
            up_at,
            promoted_at: None,
            stop: None,
            dies_at: f64::INFINITY,
            upstream: upstream.clone(),
        });
        started(&mut s.local, standby, Some(upstream), now);
        Some(false)
    }

    fn stop_postgres(&mut self, i: usize, s: &mut Sidecar, mode: StopMode) {
        let hangs = !self.quiet && self.rng.one_in(8);
        let takes = match mode {
            StopMode::Fast if hangs => 120.0,
            StopMode::Fast => self.rng.between(0.1, 0.8),
            StopMode::Immediate => self.rng.between(0.05, 0.3),
        };
        let t = self.t;
        if let Some(p) = &mut self.pods[i].postmaster {
            p.stop = Some(mode);
            p.dies_at = p.dies_at.min(t + takes);
        }
        s.local.postgres.stopping = Some(mode);
        s.local.postgres.state = PostgresState::Stopping;
    }

    fn ask(&mut self, i: usize, s: &mut Sidecar, members: &[MemberName], now: BootInstant) {
        s.local.asking = Some(now);
        let mut answers = BTreeMap::new();
        for name in members {
            let Some(j) = self.pods.iter().position(|p| p.name == *name) else { continue };
            let up = self.reachable(i, j) && self.t >= self.pods[j].sidecar_frozen && self.pods[j].sidecar.is_some();
            let answer = match (&self.pods[j].disk, up && self.pods[j].answers(self.t)) {
                (Some(d), true) => PeerAnswer::Fit {
                    role: if self.pods[j].writable(self.t) { PeerRole::Primary } else { PeerRole::Standby },
                    position: Lsn(d.end),
                    timeline: Timeline(d.timeline()),
                    tags: Tags::default(),
                    watchdog_failed: false,
                },
                (Some(_) | None, _) => PeerAnswer::Unreachable("no".into()),
            };
            answers.insert(name.clone(), answer);
        }
        let after = self.rng.between(0.05, 0.5);
        self.tell(i, after, News::Peers(PeerRound { asked_at: now, answers }));
    }

    fn begin(&mut self, i: usize, s: &mut Sidecar, kind: TaskKind, now: BootInstant) {
        let mut result = Ok(());
        let source = |w: &World, name: &MemberName| {
            let j = w.pods.iter().position(|p| p.name == *name)?;
            (w.reachable(i, j) && w.pods[j].answers(w.t)).then(|| w.pods[j].disk.clone())?
        };
        match &kind {
            TaskKind::Bootstrap => {
                let data = self.store.members.iter().any(|(n, m)| *n != s.local.me && m.shows_data());
                if data {
                    self.violation(format!("S7 m{i} runs initdb while another member shows data"));
                }
                self.initdbs += 1;
                self.pods[i].disk = Some(Disk {
                    system_id: format!("70000000000000000{:02}", self.initdbs),
                    log: vec![(1, 0)],
                    end: 1000,
                    state: ClusterState::ShutDown,
                    standby_signal: false,
                });
            }
            TaskKind::CreateReplica { from, .. } => match from.as_ref().and_then(|n| source(self, n)) {
                Some(d) => {
                    self.pods[i].disk =
                        Some(Disk { standby_signal: true, state: ClusterState::InArchiveRecovery, ..d });
                }
                None => result = Err("no source".into()),
            },
            TaskKind::Rewind { from, .. } => match (source(self, from), &mut self.pods[i].disk) {
                (Some(theirs), Some(mine)) => *mine = Disk { state: ClusterState::ShutDown, ..theirs },
                (Some(_) | None, _) => result = Err("no source".into()),
            },
            TaskKind::CrashRecovery => {
                if let Some(d) = &mut self.pods[i].disk {
                    d.state = ClusterState::ShutDown;
                }
            }
            TaskKind::PostBootstrap => {}
        }
        s.local.task = Some(Task { kind: kind.clone(), since: now, progress: None });
        s.local.task_end = None;
        let takes = self.rng.between(0.3, 3.0);
        self.tell(i, takes, News::Task(kind, result));
    }

    fn divergence(&self, i: usize, leader: &MemberName) -> Option<RewindState> {
        let j = self.pods.iter().position(|p| p.name == *leader)?;
        let (mine, theirs) = (self.pods[i].disk.as_ref()?, self.pods[j].disk.as_ref()?);
        let ready = self.reachable(i, j) && self.pods[j].writable(self.t);
        ready.then(|| if mine.common(theirs) < mine.end { RewindState::Need } else { RewindState::NotNeeded })
    }

    /// S10: never the last copy.
    fn remove(&mut self, i: usize, why: &str) {
        if !self.pods.iter().enumerate().any(|(j, p)| j != i && p.disk.is_some()) {
            self.violation(format!("S10 m{i} removes the last copy: {why}"));
        }
        self.pods[i].disk = None;
    }

    fn publish(&mut self, i: usize, s: &Sidecar) {
        if !self.api(i) {
            return;
        }
        let pg = &s.local.postgres;
        let Some(old) = self.store.members.get(&s.local.me) else { return };
        let member = Member {
            conn_url: Some(format!("postgres://m{i}:5432/postgres")),
            api_url: Some(format!("http://m{i}:8008/patroni")),
            state: Some(pg.state.clone()),
            role: Some(pg.role),
            timeline: pg.probe.as_ref().map(|p| p.timeline),
            raw: "{}".into(),
            ..old.clone()
        };
        if *old != member {
            self.store.members.insert(s.local.me.clone(), member);
            let _ = self.bump();
        }
    }
}
