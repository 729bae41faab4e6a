//! The world: global time in steps, the model API server, faults, and the checkers that see everything.

use std::collections::BTreeMap;
use std::time::Duration;

use patroni::model::*;

use super::parts::*;

pub const STEP: f64 = 0.05;

/// A safety rule that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    None,
    ObserverIgnoresTtl,
    LeaseFromConfirmation,
    AcquireWithoutComparing,
    KeeperNeverFences,
    ProofFromOneContainer,
    ReleaseBeforeStop,
    InitdbDespiteData,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillSidecar,
    KillPod { reported: bool },
    FreezeSidecar,
    FreezePod,
    ApiCut,
    ApiCutForAll,
    StoreWiped,
    NetworkCut,
    PostgresCrash,
    Switchover,
    Terminate,
    DataWiped,
    PodRecreated,
}

pub enum Wish {
    Acquire { stood: Option<LeaseRecord> },
    Renew,
    Release { optime: Option<Lsn> },
}

/// A lease write under way. `late`: lands only on the version known when it was sent.
pub struct Write {
    pub at: f64,
    pub pod: usize,
    pub life: u64,
    pub wish: Wish,
    pub sent: BootInstant,
    pub stamp: String,
    pub answer: bool,
    pub late: Option<Option<Version>>,
    pub optime: Option<Lsn>,
}

pub struct World {
    pub seed: u64,
    pub t: f64,
    pub rng: Rng,
    pub mutant: Mutant,
    pub settings: Settings,
    pub store: Cluster,
    pub version: u64,
    pub pods: Vec<Pod>,
    pub writes: Vec<Write>,
    pub trace: Vec<String>,
    pub broken: Option<String>,
    pub newest: (u32, usize),
    pub wiped_at: f64,
    pub initdbs: u32,
    pub quiet: bool,
}

impl World {
    pub fn new(seed: u64, mutant: Mutant) -> World {
        let mut rng = Rng(seed);
        let n = 2 + rng.below(4) as usize;
        let settings = Settings { use_pg_rewind: true, remove_on_rewind_failure: true, ..Settings::default() };
        let mut w = World {
            seed,
            t: 0.0,
            rng,
            mutant,
            settings,
            store: Cluster::default(),
            version: 1,
            pods: Vec::new(),
            writes: Vec::new(),
            trace: Vec::new(),
            broken: None,
            newest: (0, 0),
            wiped_at: -1000.0,
            initdbs: 0,
            quiet: false,
        };
        for i in 0..n {
            let name = MemberName(format!("m{i}"));
            w.store.members.insert(name.clone(), Member::default());
            let pod = Pod {
                name,
                uid: format!("uid-{i}-0"),
                life: 0,
                containers: BTreeMap::new(),
                offset: w.rng.between(1000.0, 90_000.0),
                rate: w.rng.between(0.999, 1.001),
                disk: None,
                postmaster: None,
                keeper: Keeper::new(),
                keeper_alive: false,
                sidecar: None,
                back_at: w.rng.between(0.0, 3.0),
                sidecar_frozen: 0.0,
                pod_frozen: 0.0,
                api_cut: 0.0,
                net_cut: 0.0,
                inbox: Vec::new(),
                last_view: 0.0,
            };
            w.pods.push(pod);
        }
        w
    }

    pub fn note(&mut self, text: String) {
        if self.trace.len() > 400 {
            self.trace.drain(..200);
        }
        self.trace.push(format!("{:8.2} {text}", self.t));
    }

    pub fn violation(&mut self, text: String) {
        self.note(format!("VIOLATION {text}"));
        self.broken.get_or_insert(format!("seed {}: at {:.2}: {text}", self.seed, self.t));
    }

    pub fn bump(&mut self) -> Version {
        self.version += 1;
        Version(self.version.to_string())
    }

    /// Every member gets the store's state after a delay of its own, in order.
    pub fn publish_views(&mut self) {
        let view = self.store.clone();
        for i in 0..self.pods.len() {
            let at = (self.t + self.rng.between(0.005, 0.3)).max(self.pods[i].last_view);
            self.pods[i].last_view = at;
            let life = self.pods[i].life;
            self.pods[i].inbox.retain(|(due, _, news)| !(matches!(news, News::View(_)) && *due >= at));
            self.pods[i].inbox.push((at, life, News::View(Box::new(view.clone()))));
        }
    }

    pub fn holder(&self) -> Option<usize> {
        let name = self.store.leader.as_ref()?.named()?;
        self.pods.iter().position(|p| p.name == *name)
    }

    pub fn step(&mut self) {
        self.t += STEP;
        let t = self.t;
        let before = self.version;
        self.land_writes();
        for i in 0..self.pods.len() {
            if t >= self.pods[i].pod_frozen {
                self.come_back(i);
                self.keeper(i);
                self.postgres(i);
            }
        }
        for i in 0..self.pods.len() {
            let pod = &self.pods[i];
            if t >= pod.pod_frozen && t >= pod.sidecar_frozen && pod.sidecar.is_some() {
                self.sidecar(i);
            }
        }
        if self.version != before {
            self.publish_views();
        }
        self.check_leases();
    }

    /// S1: by global time, one unexpired lease. A pod that is dead holds nothing.
    fn check_leases(&mut self) {
        let t = self.t;
        let holds = |p: &Pod| {
            p.sidecar.as_ref().is_some_and(|s| {
                s.local.lease_write != Some(InFlight::Release)
                    && s.local.own.as_ref().is_some_and(|o| p.boot(t) < o.evidence + (o.ttl - Duration::from_secs(1)))
            })
        };
        let who: Vec<_> = self.pods.iter().filter(|p| holds(p)).map(|p| p.name.to_string()).collect();
        if who.len() > 1 {
            // A holder who does not know that the store was wiped still counts, so this holds then too.
            self.violation(format!("S1 two unexpired leases: {who:?}"));
        }
    }

    /// S2 and S6, at every acknowledged write.
    pub fn acknowledged(&mut self, i: usize) {
        let tl = self.pods[i].disk.as_ref().map_or(0, Disk::timeline);
        let (newest, who) = self.newest;
        let alone = (0..self.pods.len()).all(|j| j == i || !self.pods[j].writable(self.t));
        if self.wiped_at > 0.0 && alone {
            // A wiped store has lost the history: if the member of the newest timeline is away too, nobody can know that
            // its number is taken. One writer at a time is still asked for.
            self.newest = (tl, i);
        } else if tl < newest {
            self.violation(format!("S2 m{i} acknowledges on timeline {tl}, m{who} has done so on {newest}"));
        } else if tl == newest && who != i {
            self.violation(format!("S2 m{i} and m{who} both acknowledge on timeline {tl}"));
        }
        self.newest = (tl, i);
    }

    pub fn inject(&mut self, fault: Fault, i: usize) {
        let t = self.t;
        self.note(format!("fault {fault:?} on m{i}"));
        let (short, long) = (self.rng.between(0.5, 8.0), self.rng.between(5.0, 60.0));
        match fault {
            Fault::KillSidecar => {
                self.pods[i].sidecar = None;
                let any = self.rng.one_in(2);
                self.pods[i].back_at = t + if any { short } else { long };
                let (name, id) = ("patroni".to_owned(), self.pods[i].containers.get("patroni").cloned());
                self.terminated(i, id.into_iter().map(|id| (name.clone(), id)).collect());
            }
            Fault::KillPod { reported } => self.kill_pod(i, reported, long),
            Fault::FreezeSidecar => self.pods[i].sidecar_frozen = t + long,
            Fault::FreezePod => self.pods[i].pod_frozen = t + long,
            Fault::ApiCut => self.pods[i].api_cut = t + long,
            Fault::ApiCutForAll => self.pods.iter_mut().for_each(|p| p.api_cut = t + long),
            Fault::StoreWiped => {
                if self.holder().is_some() {
                    self.wiped_at = t;
                }
                self.store.leader = None;
                self.store.config = None;
                self.store.initialize = Initialize::Absent;
                self.store.initializer = None;
                self.store.history = None;
                self.store.failover = None;
                let _ = self.bump();
            }
            Fault::NetworkCut => self.pods[i].net_cut = t + long,
            Fault::PostgresCrash => {
                // A backend may live on, and acknowledge, for a while after its postmaster (design §7).
                let lingering = t + self.rng.between(0.0, 2.4);
                if let Some(p) = &mut self.pods[i].postmaster {
                    p.dies_at = p.dies_at.min(lingering);
                }
            }
            Fault::Switchover => {
                let version = self.bump();
                self.store.failover = Some(FailoverRequest {
                    version,
                    leader: self.store.leader.as_ref().and_then(|l| l.named().cloned()),
                    candidate: None,
                    scheduled_at: None,
                });
            }
            Fault::Terminate => {
                if let Some(s) = &mut self.pods[i].sidecar {
                    s.local.request = Some(Request::Terminate { leave_postgres: false });
                }
            }
            Fault::DataWiped => {
                let others = self.pods.iter().enumerate().filter(|(j, p)| *j != i && p.disk.is_some()).count();
                if others > 0 && self.holder() != Some(i) {
                    self.kill_pod(i, false, short);
                    self.pods[i].disk = None;
                }
            }
            Fault::PodRecreated => {
                self.kill_pod(i, true, short);
                self.pods[i].uid = format!("uid-{i}-{}", self.pods[i].life);
            }
        }
    }

    fn terminated(&mut self, i: usize, which: Vec<(String, String)>) {
        let name = self.pods[i].name.clone();
        if let Some(m) = self.store.members.get_mut(&name) {
            for (container, id) in which {
                m.terminated.entry(container).or_default().push(id);
            }
        }
        let _ = self.bump();
    }

    fn kill_pod(&mut self, i: usize, reported: bool, away: f64) {
        let t = self.t;
        if reported {
            let all = self.pods[i].containers.clone().into_iter().collect();
            self.terminated(i, all);
        }
        let pod = &mut self.pods[i];
        pod.sidecar = None;
        pod.postmaster = None;
        pod.keeper = Keeper::new();
        pod.keeper_alive = false;
        pod.back_at = t + away;
    }

    pub fn heal(&mut self) {
        let t = self.t;
        self.quiet = true;
        for p in &mut self.pods {
            p.sidecar_frozen = p.sidecar_frozen.min(t);
            p.pod_frozen = p.pod_frozen.min(t);
            p.api_cut = p.api_cut.min(t);
            p.net_cut = p.net_cut.min(t);
            p.back_at = p.back_at.min(t);
            if let Some(pm) = p.postmaster.as_mut().filter(|pm| pm.stop.is_some()) {
                pm.dies_at = pm.dies_at.min(t + 1.0);
            }
        }
        self.note("all faults healed".to_owned());
    }
}
