//! What goes wrong: drawn from the seed. Each seed enables some kinds only, so that rare meetings of two of them are not
//! drowned by the others. The kubelet is here too: it starts what has ended and reports what it saw.

use patroni::keeper::core::End;
use patroni::keeper::protocol::StopMode;
use patroni::member::Signal;
use serde_json::{Value, json};

use super::keeper::ToKeeper;
use super::mutant::Mutant;
use super::postgres::PgEvent;
use super::rng::Rng;
use super::sidecar::ToSidecar;
use super::world::{EPOCH_SECS, Event, MS, Ns, SEC, World};

/// Three members from nothing are streaming long before.
const CALM: Ns = 60 * SEC;
const FAULTS_END: Ns = 360 * SEC;
/// ttl + 2·loop_wait + 10 s (L1), and for late writes, starts, rewinds and clones, which L1 leaves out.
const HEALED: Ns = (30 + 20 + 10 + 30) * SEC;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillSidecar,
    KillPod { reported: bool },
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
}

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

/// Left out unless asked for by name (`SIM_FAULTS`): what they break is known and being mended elsewhere. A leader object
/// that lost its keys is taken for released; a wiped store is restored by stopped members only, and forgets which timelines
/// there have been.
const KNOWN: [Fault; 2] = [Fault::LeaderStripped, Fault::StoreWiped];

/// What this seed may do.
pub struct Plan {
    pub pods: usize,
    pub servers: usize,
    faults: Vec<Fault>,
    pub bad_api: bool,
    pub stalls: bool,
    pub slow_disk: bool,
    pub slow_network: bool,
    pub slow_starts: bool,
    pub slow_stops: bool,
    /// Between two faults at most.
    pause: Ns,
}

impl Plan {
    pub fn draw(chance: &mut Rng, mutant: Mutant) -> Plan {
        let on = std::env::var("SIM_FAULTS").unwrap_or_default();
        let share = chance.between(2, 6);
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| chance.one_in(share)).collect();
        if faults.is_empty() {
            faults.push(Fault::PostgresCrash);
        }
        if on.is_empty() {
            faults.retain(|f| !KNOWN.contains(f) || (mutant == Mutant::InitdbDespiteData && *f == Fault::StoreWiped));
            if mutant == Mutant::InitdbDespiteData {
                faults.extend([Fault::StoreWiped, Fault::DataWiped]);
            }
        } else {
            faults.retain(|f| on.split(',').any(|word| format!("{f:?}").starts_with(word)));
        }
        Plan {
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
        }
    }
}

/// What the kubelet does by and by.
#[derive(Clone, Debug)]
pub enum Kubelet {
    StartKeeper,
    StartSidecar,
    /// Writes what it saw into the pod's object.
    Report {
        container: &'static str,
        id: String,
        started: Ns,
    },
    ReportEnd {
        container: &'static str,
        id: String,
    },
    /// The grace period of a pod is over.
    Kill,
    /// The StatefulSet makes the pod again.
    Recreate,
    Back,
}

fn stamp(t: Ns, wall: i64) -> String {
    let secs = EPOCH_SECS as i64 + (t / SEC) as i64 + wall.div_euclid(1_000_000);
    patroni::model::WallTime(secs * 1_000_000).iso().split('.').next().map(|s| format!("{s}Z")).unwrap_or_default()
}

impl World {
    pub fn schedule_faults(&mut self) {
        let mut at = CALM;
        while at < FAULTS_END {
            self.at(at, Event::Fault);
            at += self.chance.between(SEC, self.plan.pause);
        }
        self.at(FAULTS_END, Event::Heal);
        self.at(FAULTS_END + HEALED, Event::End);
    }

    pub fn create_pod(&mut self, pod: usize) {
        let name = self.pods[pod].name.clone();
        let container = |c: &str| json!({"name": c, "image": "x"});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name.as_str(), "labels": {"application": "patroni", "cluster-name": "demo"}},
            "spec": {"nodeName": format!("n{pod}"), "containers": [container("postgres"), container("patroni")]},
            "status": {"podIP": format!("10.0.0.{}", pod + 1)},
        });
        let made = self.store.create("pods", "default", object).map(|o| o["metadata"]["uid"].clone());
        if let Ok(Value::String(uid)) = made {
            self.pods[pod].uid = uid;
        }
    }

    pub fn kubelet(&mut self, pod: usize, what: Kubelet) {
        match what {
            Kubelet::StartKeeper => {
                let p = &self.pods[pod];
                if p.keeper.is_some() || p.leaving || p.away {
                    return;
                }
                // The container is whole: nothing of the one before is left.
                self.pods[pod].pg = None;
                self.start_keeper(pod);
                self.container_starts(pod, "postgres");
            }
            Kubelet::StartSidecar => {
                let p = &self.pods[pod];
                if p.sidecar.is_some() || p.leaving || p.away {
                    return;
                }
                self.start_sidecar(pod);
                self.container_starts(pod, "patroni");
            }
            Kubelet::Report { container, id, started } => self.report(pod, container, |wall| {
                json!({"name": container, "containerID": id, "image": "x", "imageID": "x", "ready": true,
                    "restartCount": 0, "state": {"running": {"startedAt": stamp(started, wall)}}})
            }),
            Kubelet::ReportEnd { container, id } => self.report(pod, container, |_| {
                json!({"name": container, "containerID": id, "image": "x", "imageID": "x", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": 1, "containerID": id}}})
            }),
            Kubelet::Kill => {
                if self.pods[pod].leaving {
                    self.kill_pod(pod, true);
                    self.after(SEC, Event::Kubelet { pod, what: Kubelet::Recreate });
                }
            }
            Kubelet::Recreate => self.recreate(pod),
            Kubelet::Back => {
                self.pods[pod].away = false;
                self.after(MS, Event::Kubelet { pod, what: Kubelet::StartKeeper });
                self.after(MS, Event::Kubelet { pod, what: Kubelet::StartSidecar });
            }
        }
    }

    fn container_starts(&mut self, pod: usize, container: &'static str) {
        let lives = self.pods[pod].lives;
        let id = format!("containerd://{container}-{pod}-{lives}");
        self.pods[pod].containers.insert(container, id.clone());
        let delay = self.pods[pod].luck.between(20 * MS, 2 * SEC);
        let what = Kubelet::Report { container, id, started: self.t };
        self.after(delay, Event::Kubelet { pod, what });
    }

    fn report(&mut self, pod: usize, container: &str, status: impl Fn(i64) -> Value) {
        let name = self.pods[pod].name.clone();
        let Ok(object) = self.store.get("pods", "default", name.as_str()) else { return };
        if object["metadata"]["uid"].as_str() != Some(&self.pods[pod].uid) {
            return;
        }
        let wall = self.pods[pod].clock.wall(0).0 - EPOCH_SECS as i64 * 1_000_000;
        let mut fresh = status(wall);
        let mut all = object["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        match all.iter_mut().find(|s| s["name"] == container) {
            Some(old) => {
                if old["containerID"] != fresh["containerID"] && fresh["state"].get("terminated").is_none() {
                    fresh["lastState"] = json!({"terminated": {"exitCode": 1, "containerID": old["containerID"]}});
                } else if fresh["state"].get("terminated").is_some() && old["containerID"] != fresh["containerID"] {
                    return;
                }
                *old = fresh;
            }
            None => all.push(fresh),
        }
        let patch = json!({"status": {"containerStatuses": all}});
        if self.store.merge("pods", "default", name.as_str(), &patch).is_err() {
            self.note(format!("m{pod} status could not be reported"));
        }
    }

    fn report_end(&mut self, pod: usize, container: &'static str) {
        let Some(id) = self.pods[pod].containers.get(container).cloned() else { return };
        let delay = self.pods[pod].luck.between(20 * MS, 3 * SEC);
        self.after(delay, Event::Kubelet { pod, what: Kubelet::ReportEnd { container, id } });
    }

    fn restart_soon(&mut self, pod: usize, what: Kubelet) {
        let most = if self.quiet { 2 } else { 12 };
        let delay = self.pods[pod].luck.between(500 * MS, most * SEC);
        self.after(delay, Event::Kubelet { pod, what });
    }

    /// The process is gone.
    pub fn kill_sidecar(&mut self, pod: usize) {
        let Some(s) = self.pods[pod].sidecar.take() else { return };
        if let Some(conn) = s.conn {
            self.over_socket(pod, ToKeeper::Closed(conn));
        }
    }

    pub fn sidecar_exits(&mut self, pod: usize, leave_postgres: bool) {
        self.kill_sidecar(pod);
        self.report_end(pod, "patroni");
        if self.pods[pod].leaving && !leave_postgres {
            return;
        }
        self.restart_soon(pod, Kubelet::StartSidecar);
    }

    pub fn keeper_left(&mut self, pod: usize) {
        self.end_keeper(pod, true);
        if self.pods[pod].leaving {
            self.kill_pod(pod, true);
            return self.after(SEC, Event::Kubelet { pod, what: Kubelet::Recreate });
        }
        self.restart_soon(pod, Kubelet::StartKeeper);
    }

    /// PID 1 of its container ends, and everything in it.
    fn end_keeper(&mut self, pod: usize, reported: bool) {
        let conn = self.pods[pod].sidecar.as_ref().and_then(|s| s.conn);
        self.pods[pod].keeper = None;
        self.pods[pod].pg = None;
        if reported {
            self.report_end(pod, "postgres");
        }
        if let Some(conn) = conn {
            self.sidecar_gets(pod, MS, ToSidecar::KeeperClosed(conn));
        }
    }

    fn kill_pod(&mut self, pod: usize, reported: bool) {
        self.kill_sidecar(pod);
        self.end_keeper(pod, reported);
        if reported {
            self.report_end(pod, "patroni");
        }
    }

    fn recreate(&mut self, pod: usize) {
        let name = self.pods[pod].name.clone();
        self.kill_pod(pod, false);
        if self.store.delete("pods", "default", name.as_str()).is_err() {
            self.note(format!("m{pod} had no object"));
        }
        self.pods[pod].leaving = false;
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
        self.note(format!("FAULT {fault:?} on m{pod} ({:.1} s)", long as f64 / 1e9));
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
            Fault::FreezeSidecar => self.freeze(pod, long, true, false, false),
            Fault::FreezeKeeper => self.freeze(pod, long, false, true, false),
            Fault::FreezePod => self.freeze(pod, long, true, true, true),
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
        }
    }

    fn freeze(&mut self, pod: usize, long: Ns, sidecar: bool, keeper: bool, postgres: bool) {
        let until = self.t + long;
        if let Some(s) = self.pods[pod].sidecar.as_mut().filter(|_| sidecar) {
            s.frozen = until;
            self.at(until, Event::SidecarThaws(pod));
        }
        if let Some(k) = self.pods[pod].keeper.as_mut().filter(|_| keeper) {
            k.frozen = until;
            self.at(until, Event::KeeperThaws(pod));
        }
        if postgres {
            self.pods[pod].pg_frozen = until;
            self.pods[pod].thawed = until;
        }
    }

    fn cut_api(&mut self, pod: usize, long: Ns) {
        self.pods[pod].api_cut = self.t + long;
        if self.chance.one_in(2) {
            let delay = self.chance.between(0, 5 * SEC);
            self.sidecar_gets(pod, delay, ToSidecar::WatchBreaks);
        }
    }

    fn kind(&self) -> (&'static str, &'static str) {
        if self.endpoints { ("endpoints", "demo") } else { ("configmaps", "demo-leader") }
    }

    fn spoil_store(&mut self, fault: Fault) {
        let (kind, leader) = self.kind();
        if fault == Fault::LeaderStripped {
            let patch = json!({"metadata": {"annotations": null}});
            if self.store.merge(kind, "default", leader, &patch).is_ok() {
                self.store_is_wiped();
            }
            return;
        }
        let all = [leader, "demo-config", "demo-failover", "demo-sync"];
        let names = if fault == Fault::StoreWiped { &all[..] } else { &all[..1] };
        for name in names {
            let held = self.published().is_some();
            if self.store.delete(kind, "default", name).is_ok() && *name == leader && held {
                self.store_is_wiped();
            }
        }
    }

    fn crash(&mut self, pod: usize) {
        let lingers = self.chance.below(2400 * MS);
        let t = self.t;
        let Some(g) = self.pods[pod].pg.as_mut().filter(|g| !g.dead) else { return };
        g.orphans_until = t + lingers;
        g.stop = Some(StopMode::Kill);
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
        self.note("everything is healed");
        for pod in 0..self.pods.len() {
            let p = &mut self.pods[pod];
            p.api_cut = p.api_cut.min(t);
            p.pg_frozen = p.pg_frozen.min(t);
            p.thawed = if p.thawed == u64::MAX { p.thawed } else { p.thawed.min(t) };
            p.away = false;
            if let Some(s) = &mut p.sidecar {
                s.frozen = s.frozen.min(t);
            }
            if let Some(k) = &mut p.keeper {
                k.frozen = k.frozen.min(t);
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
