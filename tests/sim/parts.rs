//! The parts of a simulated member: disk, postmaster, keeper, sidecar; and a small random source.

use std::collections::BTreeMap;

use patroni::model::*;

/// SplitMix64: the same seed, the same run.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.below(1_000_000) as f64 / 1e6)
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A data directory. `log`: each timeline with the position where it begins.
#[derive(Clone, Debug)]
pub struct Disk {
    pub system_id: String,
    pub log: Vec<(u32, u64)>,
    pub end: u64,
    pub state: ClusterState,
    pub standby_signal: bool,
}

impl Disk {
    pub fn timeline(&self) -> u32 {
        self.log.last().map_or(0, |l| l.0)
    }
    /// Up to where both logs are the same WAL.
    pub fn common(&self, other: &Disk) -> u64 {
        let same = self.log.iter().zip(&other.log).take_while(|(a, b)| a == b).count();
        let end = |d: &Disk| d.log.get(same).map_or(d.end, |l| l.1).min(d.end);
        if same == 0 { 0 } else { end(self).min(end(other)) }
    }
    pub fn control(&self) -> ControlData {
        ControlData {
            system_id: self.system_id.clone(),
            state: self.state,
            checkpoint: Lsn(self.end),
            timeline: Timeline(self.timeline()),
            min_recovery_end: (Lsn(self.end), Timeline(self.timeline())),
            rewindable: true,
            shutdown_position: (self.state == ClusterState::ShutDown).then_some(Lsn(self.end)),
        }
    }
}

/// A postmaster and its descendants. `dies_at`: the moment the last of them is reaped.
#[derive(Clone, Debug)]
pub struct Postmaster {
    pub standby: bool,
    pub recovering: bool,
    pub up_at: f64,
    pub promoted_at: Option<f64>,
    pub stop: Option<StopMode>,
    pub dies_at: f64,
    pub upstream: Upstream,
}

/// What the keeper keeps (design §7).
#[derive(Clone, Debug)]
pub struct Keeper {
    pub permission: Permission,
    pub evidence: BootInstant,
    pub note: Option<(LeaseRecord, BootInstant)>,
    pub last_death: Option<BootInstant>,
}

impl Keeper {
    pub fn new() -> Keeper {
        Keeper { permission: Permission::None, evidence: BootInstant::default(), note: None, last_death: None }
    }
    /// Only newer evidence replaces a permission; `none` always does.
    pub fn permit(&mut self, permission: Permission, evidence: BootInstant, note: Option<(LeaseRecord, BootInstant)>) {
        let newer = evidence > self.evidence || (evidence == self.evidence && self.permission != Permission::None);
        if permission == Permission::None || permission == Permission::Unfenced || newer {
            self.permission = permission;
            self.evidence = self.evidence.max(evidence);
            self.note = note;
        }
    }
    pub fn writer_may_begin(&self, renewal: BootInstant, now: BootInstant) -> bool {
        match self.permission {
            Permission::None => false,
            Permission::Unfenced => true,
            Permission::Writer { stop_at, .. } => {
                now + std::time::Duration::from_secs(2) <= stop_at && self.last_death.is_none_or(|d| renewal > d)
            }
        }
    }
}

/// The sidecar's own memory; gone when it is killed.
pub struct Sidecar {
    pub local: Local,
    /// `renewTime` of every attempt of this life (and of an adopted record) → when it was sent.
    pub attempts: BTreeMap<String, BootInstant>,
    pub view: Cluster,
    pub wake: BootInstant,
    pub reason: String,
}

/// Answers on their way to a sidecar.
#[derive(Clone, Debug)]
pub enum News {
    View(Box<Cluster>),
    Acquired(Option<(LeaseRecord, BootInstant)>),
    Renewed(Option<(LeaseRecord, BootInstant)>),
    Lost,
    Released,
    Peers(PeerRound),
    Proof(Option<DeathProof>),
    Task(TaskKind, Result<(), String>),
    Divergence(Option<RewindState>),
    Claimed(bool),
    Stored,
    Checkpoint,
    BootstrapEnded,
}

/// One pod.
pub struct Pod {
    pub name: MemberName,
    pub uid: String,
    pub life: u64,
    pub containers: BTreeMap<String, String>,
    pub offset: f64,
    pub rate: f64,
    pub disk: Option<Disk>,
    pub postmaster: Option<Postmaster>,
    pub keeper: Keeper,
    pub keeper_alive: bool,
    pub sidecar: Option<Sidecar>,
    pub back_at: f64,
    pub sidecar_frozen: f64,
    pub pod_frozen: f64,
    pub api_cut: f64,
    pub net_cut: f64,
    pub inbox: Vec<(f64, u64, News)>,
    pub last_view: f64,
}

impl Pod {
    pub fn boot(&self, t: f64) -> BootInstant {
        BootInstant::from_secs_f64(self.offset + t * self.rate)
    }
    pub fn answers(&self, t: f64) -> bool {
        t >= self.pod_frozen && self.postmaster.as_ref().is_some_and(|p| t >= p.up_at)
    }
    pub fn writable(&self, t: f64) -> bool {
        self.answers(t) && self.postmaster.as_ref().is_some_and(|p| !p.recovering)
    }
}
