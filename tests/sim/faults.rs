//! What goes wrong: drawn from the seed. Each seed enables some kinds only, so that rare meetings of two of them are not
//! drowned by the others.

use patroni::keeper::core::End;
use patroni::keeper::protocol::StopMode;
use patroni::member::Signal;
use serde_json::{Value, json};

use super::keeper::ToKeeper;
use super::kubelet::{Kubelet, stamp};
use super::mutant::Profile;
use super::postgres::PgEvent;
use super::rng::Rng;
use super::sidecar::ToSidecar;
use super::world::{Event, MS, Ns, SEC, World};

/// Three members from nothing are streaming long before.
pub const CALM: Ns = 60 * SEC;
pub const FAULTS_END: Ns = 360 * SEC;
/// Between two outages of which each alone is too short to demote anybody: the lock is confirmed anew meanwhile.
const BLIP_REST: Ns = 15 * SEC;
/// ttl + 2·loop_wait + 10 s (L1), and for late writes, starts, rewinds and clones, which L1 leaves out.
const HEALED: Ns = (30 + 20 + 10 + 30) * SEC;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillSidecar,
    KillPod {
        reported: bool,
    },
    Recreated,
    FreezeSidecar,
    FreezeKeeper,
    FreezePod,
    ApiCut,
    ApiCutForAll,
    ApiStalls,
    StoreWiped,
    LeaderDeleted,
    LeaderStripped,
    NetworkCut,
    PostgresCrash,
    Switchover,
    SwitchoverTo,
    Terminate,
    DataWiped,
    StopAll,
    // Drawn from a stream of their own: a seed without any of these runs as it did before there were these.
    ApiRefuses,
    StoreRestored,
    OldDump,
    WallJump,
    VmPaused,
    DiskFull,
    PromotedByHand,
    Failover,
    Restart,
    Reinit,
    Edit,
    FreezeWarden,
    FreezeSidecarKeeper,
    FreezeSidecarWarden,
    FreezeKeeperWarden,
    /// Sidecar, keeper and warden.
    FreezeWatchers,
    /// The container that Postgres is in.
    FreezeContainer,
    /// Somebody switches `synchronous_mode`.
    CommitMode,
    /// Somebody pauses the cluster, or resumes it.
    Pause,
    /// Somebody makes a standby cluster of this one, or takes that back.
    Follow,
    /// The API is away or slow, for less than `min(retry_timeout, D − N)` (L2).
    ApiBlip,
}

/// Who can be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Sidecar,
    Keeper,
    Warden,
    Postgres,
}
pub const EVERYBODY: &[Part] = &[Part::Sidecar, Part::Keeper, Part::Warden, Part::Postgres];

const MORE: [Fault; 17] = [
    Fault::ApiRefuses,
    Fault::StoreRestored,
    Fault::OldDump,
    Fault::WallJump,
    Fault::VmPaused,
    Fault::DiskFull,
    Fault::PromotedByHand,
    Fault::Failover,
    Fault::Restart,
    Fault::Reinit,
    Fault::Edit,
    Fault::FreezeWarden,
    Fault::FreezeSidecarKeeper,
    Fault::FreezeSidecarWarden,
    Fault::FreezeKeeperWarden,
    Fault::FreezeWatchers,
    Fault::FreezeContainer,
];

const FAULTS: [Fault; 20] = [
    Fault::KillSidecar,
    Fault::KillPod { reported: true },
    Fault::KillPod { reported: false },
    Fault::Recreated,
    Fault::FreezeSidecar,
    Fault::FreezeKeeper,
    Fault::FreezePod,
    Fault::ApiCut,
    Fault::ApiCutForAll,
    Fault::ApiStalls,
    Fault::StoreWiped,
    Fault::LeaderDeleted,
    Fault::LeaderStripped,
    Fault::NetworkCut,
    Fault::PostgresCrash,
    Fault::Switchover,
    Fault::SwitchoverTo,
    Fault::Terminate,
    Fault::DataWiped,
    Fault::StopAll,
];

/// Left out unless asked for by name (`SIM_FAULTS`) or by a mutant: the cluster broke under them, or has not been looked through
/// since its repair. A wiped store is restored by stopped members only, and forgets which timelines there have been. A store
/// of an earlier day shows locks that were given up then to members that have seen nothing since. Whoever was promoted by hand
/// may be on the number of another branch (told by its history since). A wall clock that goes back made the containers of an
/// earlier life those of this one (bounded since).
const KNOWN: [Fault; 6] = [
    Fault::LeaderStripped,
    Fault::StoreWiped,
    Fault::StoreRestored,
    Fault::OldDump,
    Fault::PromotedByHand,
    Fault::WallJump,
];

/// How commits wait.
#[derive(Clone, Copy, Debug)]
pub struct SyncPlan {
    pub strict: bool,
    pub count: u64,
    pub quorum: bool,
}

impl SyncPlan {
    fn document(self, on: bool) -> Value {
        let SyncPlan { strict, count, quorum } = self;
        let mode = if on && quorum { json!("quorum") } else { json!(on) };
        json!({"synchronous_mode": mode, "synchronous_mode_strict": strict, "synchronous_node_count": count})
    }
}

/// Does a dynamic configuration ask for commits that wait?
pub fn is_on(document: &Value) -> bool {
    document["synchronous_mode"].as_bool() == Some(true) || document["synchronous_mode"] == "quorum"
}

/// What this seed may do.
pub struct Plan {
    pub pods: usize,
    pub servers: usize,
    pub faults: Vec<Fault>,
    pub bad_api: bool,
    pub stalls: bool,
    pub slow_disk: bool,
    pub slow_network: bool,
    pub slow_starts: bool,
    pub slow_stops: bool,
    /// Between two faults at most.
    pub pause: Ns,
    /// Faults begin before there is a cluster.
    pub early: bool,
    /// Backends that are stuck.
    pub deaf: bool,
    /// Programs that fail on the way.
    pub bad_tools: bool,
    /// Clocks that are a hundredth too fast or too slow.
    pub bad_clocks: bool,
    /// `synchronous_mode`, and how.
    pub commits: Option<SyncPlan>,
    /// Nothing goes wrong but the API, each time for too short a time to demote anybody (L2).
    pub blips: bool,
    /// `failsafe_mode`.
    pub failsafe: bool,
    /// Nothing goes wrong but the API, for everybody and however long; every member answers the others (S8).
    pub outages: bool,
}

impl Plan {
    /// `profile`: exactly these faults.
    pub fn draw(seed: u64, chance: &mut Rng, profile: Option<&Profile>) -> Plan {
        let on = std::env::var("SIM_FAULTS").unwrap_or_default();
        let share = chance.between(2, 6);
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| chance.one_in(share)).collect();
        if faults.is_empty() {
            faults.push(Fault::PostgresCrash);
        }
        if on.is_empty() {
            faults.retain(|f| !KNOWN.contains(f));
        } else {
            faults.retain(|f| on.split(',').any(|word| format!("{f:?}").starts_with(word)));
        }
        let mut plan = Plan {
            pods: [2, 3, 3, 3, 3, 4, 5][chance.below(7) as usize],
            servers: 1 + chance.below(3) as usize,
            faults,
            bad_api: chance.one_in(2),
            stalls: chance.one_in(3),
            slow_disk: chance.one_in(3),
            slow_network: chance.one_in(3),
            slow_starts: chance.one_in(3),
            slow_stops: chance.one_in(3),
            pause: [10, 30, 60][chance.below(3) as usize] * SEC,
            early: false,
            deaf: false,
            bad_tools: false,
            bad_clocks: false,
            commits: None,
            blips: false,
            failsafe: false,
            outages: false,
        };
        plan.draw_more(Rng::new(seed, 0, 6), &on);
        plan.draw_commits(Rng::new(seed, 0, 15), &on);
        if Rng::new(seed, 0, 14).one_in(8) && on.is_empty() {
            // Often enough to meet whatever else happens.
            plan.faults.extend([Fault::Pause; 3]);
        }
        plan.draw_follow(Rng::new(seed, 0, 17), &on);
        let mut more = Rng::new(seed, 0, 16);
        plan.failsafe = more.one_in(4);
        let outages = plan.failsafe && more.one_in(4);
        if let Some(profile) = profile {
            plan.failsafe = false;
            plan.faults = profile.faults.to_vec();
            plan.commits = None;
            (profile.twist)(&mut plan);
        } else if on.is_empty() {
            plan.blips = Rng::new(seed, 0, 13).one_in(16);
            plan.outages = outages && !plan.blips;
        }
        if plan.outages {
            plan.only_blips();
            plan.faults = vec![Fault::ApiCutForAll, Fault::ApiCutForAll, Fault::ApiRefuses];
        }
        if plan.blips {
            plan.only_blips();
        }
        plan
    }

    /// Synchronous mode in every third seed, and somebody who changes it in every third of those.
    fn draw_commits(&mut self, mut chance: Rng, on: &str) {
        if !chance.one_in(3) {
            return;
        }
        let (strict, count) = (chance.one_in(4), 1 + chance.below(3) / 2);
        let switched = chance.one_in(3) && on.is_empty();
        self.commits = Some(SyncPlan { strict, count, quorum: chance.one_in(2) });
        if switched {
            self.faults.push(Fault::CommitMode);
        }
    }

    /// The dynamic configuration that a new cluster writes; `on`: with synchronous mode, if that is planned at all.
    pub fn document(&self, on: bool) -> Value {
        let mut document = self.commits.map_or_else(|| json!({}), |plan| plan.document(on));
        if self.failsafe {
            document["failsafe_mode"] = json!(true);
        }
        document
    }

    fn only_blips(&mut self) {
        self.faults = vec![Fault::ApiBlip];
        (self.bad_api, self.stalls, self.early, self.deaf) = (false, false, false, false);
    }

    fn draw_more(&mut self, mut chance: Rng, on: &str) {
        if chance.one_in(2) {
            return;
        }
        let more: Vec<Fault> = MORE.into_iter().filter(|_| chance.one_in(4)).collect();
        let wanted = |f: &Fault| match on {
            "" => !KNOWN.contains(f),
            on => on.split(',').any(|word| format!("{f:?}").starts_with(word)),
        };
        self.faults.extend(more.into_iter().filter(wanted));
        self.early = chance.one_in(3);
        self.deaf = chance.one_in(4);
        self.bad_tools = chance.one_in(3);
        self.bad_clocks = chance.one_in(3);
    }
}

impl World {
    pub fn schedule_faults(&mut self) {
        let mut at = if self.plan.early { SEC } else { CALM };
        while at < FAULTS_END {
            self.at(at, Event::Fault);
            at += self.chance.between(SEC, self.plan.pause);
        }
        self.at(FAULTS_END, Event::Heal);
        if self.plan.faults.contains(&Fault::Pause) {
            self.at(FAULTS_END + 40 * SEC, Event::Person);
            // Told to repeat it once the holder has been silent for its ttl.
            self.at(FAULTS_END + 60 * SEC, Event::Person);
            self.at(FAULTS_END + 75 * SEC, Event::Person);
        }
        self.at(FAULTS_END + HEALED, Event::End);
    }

    pub fn kill_pod(&mut self, pod: usize, reported: bool) {
        self.kill_sidecar(pod);
        self.end_keeper(pod, reported);
        if reported {
            self.report_end(pod, "patroni");
        }
    }

    pub fn recreate(&mut self, pod: usize) {
        let name = self.pods[pod].name.clone();
        self.kill_pod(pod, false);
        if self.store.delete("pods", "default", name.as_str()).is_err() {
            self.note(format!("m{pod} had no object"));
        }
        (self.pods[pod].leaving, self.pods[pod].device) = (false, None);
        self.create_pod(pod);
        self.note(format!("m{pod} is made again"));
        self.restart_soon(pod, Kubelet::StartKeeper);
        self.restart_soon(pod, Kubelet::StartSidecar);
    }

    pub fn fault(&mut self) {
        if self.plan.faults.is_empty() || self.quiet {
            return;
        }
        let kinds = self.plan.faults.len() as u64;
        let fault = self.plan.faults[self.chance.below(kinds) as usize];
        let n = self.pods.len() as u64;
        let any = self.chance.below(n) as usize;
        let leader =
            (0..self.pods.len()).find(|i| self.pods[*i].sidecar.as_ref().is_some_and(|s| s.leads_until > self.t));
        let pod = if self.chance.one_in(2) { leader.unwrap_or(any) } else { any };
        let long = self.chance.between(2 * SEC, 60 * SEC);
        if self.plan.blips && self.t < self.blip_until + BLIP_REST {
            return;
        }
        let number = self.faults_seen;
        self.faults_seen += 1;
        if self.left_out.contains(&number) {
            return;
        }
        self.note(format!("FAULT {number} {fault:?} on m{pod} ({:.1} s)", long as f64 / 1e9));
        self.inject(fault, pod, long, leader);
    }

    fn inject(&mut self, fault: Fault, pod: usize, long: Ns, leader: Option<usize>) {
        match fault {
            Fault::KillSidecar => {
                self.kill_sidecar(pod);
                self.report_end(pod, "patroni");
                self.after(long / 2, Event::Kubelet { pod, what: Kubelet::StartSidecar });
            }
            Fault::KillPod { reported } => {
                self.kill_pod(pod, reported);
                self.after(long, Event::Kubelet { pod, what: Kubelet::StartKeeper });
                self.after(long, Event::Kubelet { pod, what: Kubelet::StartSidecar });
            }
            Fault::Recreated => self.recreate(pod),
            Fault::FreezeSidecar => self.freeze(pod, long, &[Part::Sidecar]),
            Fault::FreezeKeeper => self.freeze(pod, long, &[Part::Keeper]),
            Fault::FreezePod => self.freeze(pod, long, EVERYBODY),
            Fault::ApiCut => self.cut_api(pod, long),
            Fault::ApiCutForAll => (0..self.pods.len()).for_each(|i| self.cut_api(i, long)),
            Fault::ApiStalls => {
                let server = self.chance.below(self.servers.len() as u64) as usize;
                self.servers[server].stalled = self.t + long;
            }
            Fault::StoreWiped | Fault::LeaderDeleted | Fault::LeaderStripped => self.spoil_store(fault),
            Fault::NetworkCut => {
                let other = self.chance.below(self.pods.len() as u64) as usize;
                self.links[pod][other] = self.t + long;
                self.links[other][pod] = self.t + long;
            }
            Fault::PostgresCrash => self.crash(pod),
            Fault::Switchover => self.ask_for_switchover(leader, None),
            Fault::SwitchoverTo => self.ask_for_switchover(leader, Some(pod)),
            Fault::Terminate => self.terminate(pod),
            Fault::DataWiped => self.wipe_data(pod, leader),
            Fault::StopAll => self.stop_all(long),
            Fault::ApiBlip => self.blip(pod),
            other => self.inject_more(other, pod, long, leader),
        }
    }

    pub fn freeze(&mut self, pod: usize, long: Ns, whom: &[Part]) {
        let [sidecar, keeper, warden, postgres] =
            [Part::Sidecar, Part::Keeper, Part::Warden, Part::Postgres].map(|part| whom.contains(&part));
        // A clock that stands goes on where it stood, and no sooner.
        let until = (self.t + long).max(self.pods[pod].paused);
        if let Some(s) = self.pods[pod].sidecar.as_mut().filter(|_| sidecar) {
            s.frozen = until;
            self.at(until, Event::SidecarThaws(pod));
        }
        if let Some(k) = self.pods[pod].keeper.as_mut().filter(|_| keeper) {
            k.frozen = until;
            self.at(until, Event::KeeperThaws(pod));
        }
        if warden {
            // One that was stopped by itself may stay so: nobody but its keeper ends it.
            let for_ever = !postgres && self.chance.one_in(2);
            self.freeze_warden(pod, if for_ever { Ns::MAX } else { until });
        }
        if postgres {
            // Of a whole pod nothing is promised then.
            self.pods[pod].in_flight = !sidecar && self.writable(pod);
            self.pods[pod].pg_frozen = until;
            self.pods[pod].thawed = until;
            self.at(until, Event::Thawed(pod));
        }
    }

    fn cut_api(&mut self, pod: usize, long: Ns) {
        self.pods[pod].api_cut = self.t + long;
        if self.chance.one_in(2) {
            let delay = self.chance.between(0, 5 * SEC);
            self.sidecar_gets(pod, delay, ToSidecar::WatchBreaks);
        }
    }

    /// The API is away for one member or for all, shows nothing new, or takes its time.
    fn blip(&mut self, pod: usize) {
        let long = self.chance.between(SEC / 2, self.least_outage());
        self.blip_until = self.t + long;
        match self.chance.below(4) {
            0 => self.cut_api(pod, long),
            1 => (0..self.pods.len()).for_each(|i| self.cut_api(i, long)),
            2 => self.servers.iter_mut().for_each(|server| server.stalled = self.blip_until),
            _ => self.slow_until = self.blip_until,
        }
    }

    /// L2: an outage shorter than this demotes nobody.
    fn least_outage(&self) -> Ns {
        let s = &self.settings;
        let spare = super::device::timings(s).map_or(SEC, |t| (t.demote - t.renew).as_nanos() as Ns);
        // A device at half of the ttl leaves no time for a request that hangs and another one.
        (if s.watchdog_margin.is_none() { spare / 3 } else { spare }).min(s.retry_timeout.as_nanos() as Ns)
    }

    pub fn kind(&self) -> (&'static str, &'static str) {
        if self.endpoints { ("endpoints", "demo") } else { ("configmaps", "demo-leader") }
    }

    fn spoil_store(&mut self, fault: Fault) {
        let (kind, leader) = self.kind();
        if fault == Fault::LeaderStripped {
            let patch = json!({"metadata": {"annotations": null}});
            let named = self.named();
            if self.store.merge(kind, "default", leader, &patch).is_ok() {
                self.store_is_wiped(named);
            }
            return;
        }
        let all = [leader, "demo-config", "demo-failover", "demo-sync"];
        let names = if fault == Fault::StoreWiped { &all[..] } else { &all[..1] };
        for name in names {
            let (held, named) = (self.published().is_some(), self.named());
            if self.store.delete(kind, "default", name).is_ok() && *name == leader {
                self.judge.wiped = Some(self.t);
                if held {
                    self.store_is_wiped(named);
                }
            }
        }
    }

    pub fn crash(&mut self, pod: usize) {
        let lingers = self.chance.below(2400 * MS);
        let t = self.t;
        let Some(g) = self.pods[pod].pg.as_mut().filter(|g| !g.dead) else { return };
        g.orphans_until = t + lingers;
        g.stop = Some(StopMode::Kill);
        self.pods[pod].fell = true;
        // A postmaster killed alone: its backends do not know yet.
        self.pg_event(pod, 0, PgEvent::Exits(End::Signal(9)));
    }

    fn ask_for_switchover(&mut self, leader: Option<usize>, candidate: Option<usize>) {
        let (kind, _) = self.kind();
        let Some(leader) = leader else { return };
        // Whom a person names takes the lock however far it is behind.
        self.judge.forced |= candidate.is_some();
        let name = |i: usize| json!(self.pods[i].name.as_str());
        let candidate = candidate.filter(|c| *c != leader).map(name);
        let annotations = json!({"leader": name(leader), "member": candidate});
        let labels = json!({"application": "patroni", "cluster-name": "demo"});
        let mut metadata = json!({"name": "demo-failover", "labels": labels, "annotations": annotations});
        if self.store.merge(kind, "default", "demo-failover", &json!({"metadata": metadata})).is_err() {
            if candidate.is_none() {
                metadata["annotations"] = json!({"leader": name(leader)});
            }
            if self.store.create(kind, "default", json!({"metadata": metadata})).is_err() {
                self.note("the switchover could not be asked for");
            }
        }
    }

    /// The pod is deleted: both containers get SIGTERM at about the same time.
    fn terminate(&mut self, pod: usize) {
        let alone = self.chance.one_in(3);
        self.sidecar_gets(pod, self.chance.clone().below(300 * MS), ToSidecar::Signal(Signal::Terminate));
        if alone {
            return;
        }
        self.pods[pod].leaving = true;
        let delay = self.chance.below(300 * MS);
        self.keeper_gets(pod, delay, ToKeeper::Terminate);
        let name = self.pods[pod].name.clone();
        let patch = json!({"metadata": {"deletionTimestamp": stamp(self.t, 0), "deletionGracePeriodSeconds": 30}});
        if self.store.merge("pods", "default", name.as_str(), &patch).is_err() {
            self.note(format!("m{pod} could not be marked for deletion"));
        }
        self.after(30 * SEC, Event::Kubelet { pod, what: Kubelet::Kill });
    }

    fn wipe_data(&mut self, pod: usize, leader: Option<usize>) {
        let Some(leader) = leader.filter(|l| *l != pod && self.writable(*l)) else { return };
        if self.pods[leader].disk.is_none() {
            return;
        }
        self.kill_pod(pod, false);
        self.pods[pod].disk = None;
        self.pods[pod].marker = None;
        self.restart_soon(pod, Kubelet::StartKeeper);
        self.restart_soon(pod, Kubelet::StartSidecar);
    }

    /// Scaled to nothing and back.
    fn stop_all(&mut self, long: Ns) {
        for pod in 0..self.pods.len() {
            self.pods[pod].away = true;
            self.sidecar_gets(pod, MS, ToSidecar::Signal(Signal::Terminate));
            self.keeper_gets(pod, MS, ToKeeper::Terminate);
            let delay = self.pods[pod].luck.below(5 * SEC) + long;
            self.after(delay, Event::Kubelet { pod, what: Kubelet::Back });
        }
    }

    pub fn heal(&mut self) {
        let t = self.t;
        self.quiet = true;
        self.refuses_until = self.refuses_until.min(t);
        self.note("everything is healed");
        self.pause_cluster(false);
        self.follow_another(false);
        for pod in 0..self.pods.len() {
            let p = &mut self.pods[pod];
            p.api_cut = p.api_cut.min(t);
            p.pg_frozen = p.pg_frozen.min(t);
            self.at(t, Event::Thawed(pod));
            let p = &mut self.pods[pod];
            p.thawed = if p.thawed == u64::MAX { p.thawed } else { p.thawed.min(t) };
            p.away = false;
            p.full_until = p.full_until.min(t);
            if let Some(g) = &mut p.pg {
                g.deaf = false;
            }
            if let Some(s) = &mut p.sidecar {
                s.frozen = s.frozen.min(t);
            }
            if let Some(k) = &mut p.keeper {
                k.frozen = k.frozen.min(t);
            }
            if self.pods[pod].warden.as_ref().is_some_and(|w| w.frozen != Ns::MAX) {
                self.freeze_warden(pod, t);
            }
            self.at(t, Event::SidecarThaws(pod));
            self.at(t, Event::KeeperThaws(pod));
            self.links[pod].iter_mut().for_each(|until| *until = (*until).min(t));
            self.after(SEC, Event::Kubelet { pod, what: Kubelet::StartKeeper });
            self.after(SEC, Event::Kubelet { pod, what: Kubelet::StartSidecar });
            if self.pods[pod].pg.as_ref().is_some_and(|g| g.stop.is_some()) {
                self.pg_event(pod, SEC, PgEvent::Exits(End::Code(0)));
            }
        }
        for server in &mut self.servers {
            server.stalled = server.stalled.min(t);
        }
    }
}
