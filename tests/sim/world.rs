//! The world: global time, the heap of events, pods with clocks of their own, the trace.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use patroni::kubemem::{Snapshot, Sources, Store};
use patroni::member::{Id, InForce, Ticket};
use patroni::model::{BootInstant, Commits, FailoverSite, MemberName, Now, Remote, Settings, Synchronous, WallTime};

use super::api::{ApiServer, Landing};
use super::device;
use super::disk::{Disk, Marker};
use super::failsafe::Ping;
use super::faults::Plan;
use super::judge::Judge;
use super::keeper::{Keeper, ToKeeper};
use super::kubelet::Kubelet;
use super::mutant::Profile;
use super::postgres::{Pg, PgEvent};
use super::rng::Rng;
use super::sidecar::{Sidecar, ToSidecar};
use super::sometimes::Sometimes;
use super::standby::follows_by;
use super::warden::{Order, Warden};

/// Nanoseconds of global time.
pub type Ns = u64;
pub const MS: Ns = 1_000_000;
pub const SEC: Ns = 1_000_000_000;
const NEVER: Ns = u64::MAX;
/// 2025-01-01.
pub const EPOCH_SECS: u64 = 1_735_689_600;
/// Lines of the trace that are kept.
const TRACE_MAX: usize = 1500;
/// A run takes fifty thousand.
const EVENTS_MAX: u64 = 1_000_000;

pub enum Event {
    Sidecar {
        pod: usize,
        life: u64,
        to: Box<ToSidecar>,
    },
    Keeper {
        pod: usize,
        life: u64,
        to: Box<ToKeeper>,
    },
    Warden {
        pod: usize,
        life: u64,
        order: Order,
    },
    WardenThaws {
        pod: usize,
        life: u64,
    },
    /// Postgres goes on after a freeze.
    Thawed(usize),
    /// The timer of a warden.
    Timer {
        pod: usize,
        life: u64,
    },
    SidecarThaws(usize),
    KeeperThaws(usize),
    Lands(Box<Landing>),
    Applies {
        server: usize,
        version: u64,
    },
    Postgres {
        pod: usize,
        life: u64,
        what: PgEvent,
    },
    Client(usize),
    Kubelet {
        pod: usize,
        what: Kubelet,
    },
    Fault,
    Heal,
    /// Somebody looks after what is left.
    Person,
    Ping(Ping),
    Pong {
        ping: Ping,
        answer: Result<(), String>,
    },
    RoundEnds {
        pod: usize,
        life: u64,
        id: Id,
    },
    DeviceFires {
        pod: usize,
        at: Ns,
    },
    End,
}

struct Entry {
    at: Ns,
    seq: u64,
    event: Event,
}
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// A machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub offset: Ns,
    /// Parts per million it runs too fast.
    ppm: i64,
    pub wall: i64,
}

impl Clock {
    pub fn boot(&self, t: Ns) -> BootInstant {
        let drift = i128::from(t) * i128::from(self.ppm) / 1_000_000;
        BootInstant::from_nanos((i128::from(self.offset + t) + drift) as u64)
    }
    /// The first global moment at which the clock shows it.
    pub fn global(&self, at: BootInstant) -> Ns {
        let of_pod = i128::from(at.as_nanos()) - i128::from(self.offset);
        let t = (of_pod * 1_000_000).div_euclid(1_000_000 + i128::from(self.ppm));
        let mut t = u64::try_from(t).unwrap_or(0);
        while self.boot(t) < at {
            t += 1;
        }
        t
    }
    pub fn now(&self, t: Ns) -> Now {
        Now { boot: self.boot(t), wall: self.wall(t) }
    }
    pub fn wall(&self, t: Ns) -> WallTime {
        WallTime(EPOCH_SECS as i64 * 1_000_000 + self.wall + (t / 1000) as i64)
    }
}

/// One pod and the machine it is on.
pub struct Pod {
    pub name: MemberName,
    pub uid: String,
    pub clock: Clock,
    /// When its watchdog device resets it.
    pub device: Option<Ns>,
    /// When the last of its writes lands that take long.
    pub late: Ns,
    /// When its sidecar was started last.
    pub started: Ns,
    pub disk: Option<Disk>,
    pub marker: Option<Marker>,
    pub pg: Option<Pg>,
    pub keeper: Option<Keeper>,
    pub warden: Option<Warden>,
    pub sidecar: Option<Sidecar>,
    /// Counts processes: what was meant for an earlier one reaches nobody.
    pub lives: u64,
    pub pids: i32,
    /// Container → ID, as they run or ran last.
    pub containers: BTreeMap<&'static str, String>,
    /// The number that the promotion under way was ordered with: the gaps below it hold placeholders.
    pub claim: Option<u32>,
    /// When its last promotion was ordered.
    pub promote_ordered: Ns,
    /// When the last postmaster was gone with everything below it, by the clock of the pod.
    pub last_death: Option<u64>,
    /// Its clock stood until then: nothing is promised for a while.
    pub paused: Ns,
    /// Its postmaster has ended by itself, and nobody has asked for another.
    pub fell: bool,
    /// The volume is full until then.
    pub full_until: Ns,
    pub api_cut: Ns,
    /// Its member gave the lock away because no writer of it can live, by the silence of its keeper.
    pub let_go: bool,
    pub pg_frozen: Ns,
    /// A backend was frozen with a commit under way.
    pub in_flight: bool,
    /// After a freeze of everything: statements in flight are answered at the thaw.
    pub thawed: Ns,
    /// It was told to end.
    pub leaving: bool,
    /// Everything was stopped on purpose: nothing is started before.
    pub away: bool,
    pub server: usize,
    /// The session's two directions: nothing overtakes.
    pub to_keeper: Ns,
    pub to_sidecar: Ns,
    pub to_warden: Ns,
    pub net: Rng,
    pub luck: Rng,
}

pub struct World {
    pub seed: u64,
    pub t: Ns,
    heap: BinaryHeap<Entry>,
    seq: u64,
    pub pods: Vec<Pod>,
    pub store: Store,
    pub servers: Vec<ApiServer>,
    pub announced: u64,
    wall: Arc<AtomicU64>,
    pub settings: Arc<Settings>,
    pub endpoints: bool,
    pub plan: Plan,
    /// Requests that change something are refused until then.
    pub refuses_until: Ns,
    /// Requests take their time until then, all of it at most.
    pub slow_until: Ns,
    /// The API was away or slow for a moment that ended then.
    pub blip_until: Ns,
    /// The store of an earlier moment.
    pub backup: Option<Snapshot>,
    pub dump: Vec<serde_json::Value>,
    /// Faults by their number: which were left out, and how many there were.
    pub left_out: BTreeSet<u64>,
    pub faults_seen: u64,
    /// Faults are over.
    pub quiet: bool,
    /// Cut until then.
    pub links: Vec<Vec<Ns>>,
    pub makings: u32,
    pub systems: u32,
    pub judge: Judge,
    pub sometimes: Sometimes,
    pub trace: VecDeque<String>,
    /// A mark over everything that was traced.
    pub digest: u64,
    pub broken: Option<String>,
    pub chance: Rng,
    /// What the member that is asked just now answers.
    pub said: Option<(Ticket, Option<(u16, String)>)>,
    pub ended: bool,
    pub events: u64,
}

impl World {
    pub fn new(seed: u64, profile: Option<&Profile>) -> World {
        let mut chance = Rng::new(seed, 0, 1);
        let plan = Plan::draw(seed, &mut chance, profile);
        let n = plan.pods;
        let mut bits = Rng::new(seed, 0, 2);
        let wall = Arc::new(AtomicU64::new(0));
        let shown = wall.clone();
        let sources = Sources::new(
            move || u128::from(bits.next()) << 64 | u128::from(bits.next()),
            move || Duration::from_secs(EPOCH_SECS) + Duration::from_nanos(shown.load(Ordering::Relaxed)),
        );
        let store = Store::new(4096, true, sources);
        let timeout = [300, 300, 20, 0][chance.below(4) as usize];
        let mut settings = Settings {
            use_pg_rewind: !chance.one_in(4),
            remove_on_rewind_failure: true,
            remove_on_diverged_timelines: true,
            primary_start_timeout: Duration::from_secs(timeout),
            primary_race_backoff: Duration::from_secs(if seed % 11 == 4 { 15 } else { 0 }),
            ..Settings::default()
        };
        device::settle(seed, profile, &mut settings);
        let mut w = World {
            seed,
            t: 0,
            heap: BinaryHeap::new(),
            seq: 0,
            pods: (0..n).map(|i| pod(seed, i, &mut chance, &plan)).collect(),
            announced: store.version(),
            servers: (0..plan.servers).map(|i| ApiServer::new(seed, i, store.version())).collect(),
            store,
            wall,
            settings: Arc::new(settings),
            endpoints: chance.one_in(2),
            plan,
            refuses_until: 0,
            slow_until: 0,
            blip_until: 0,
            backup: None,
            dump: Vec::new(),
            left_out: BTreeSet::new(),
            faults_seen: 0,
            quiet: false,
            links: vec![vec![0; n]; n],
            makings: 0,
            systems: 0,
            judge: Judge::default(),
            sometimes: Sometimes::default(),
            trace: VecDeque::new(),
            digest: 0,
            broken: None,
            chance,
            said: None,
            ended: false,
            events: 0,
        };
        for i in 0..n {
            w.create_pod(i);
            let at = w.chance.below(3 * SEC);
            w.at(at, Event::Kubelet { pod: i, what: Kubelet::StartKeeper });
            let at = w.chance.below(3 * SEC);
            w.at(at, Event::Kubelet { pod: i, what: Kubelet::StartSidecar });
            w.at(SEC, Event::Client(i));
        }
        w.schedule_faults();
        w
    }

    pub fn at(&mut self, at: Ns, event: Event) {
        self.seq += 1;
        self.heap.push(Entry { at: at.max(self.t), seq: self.seq, event });
    }
    pub fn after(&mut self, delay: Ns, event: Event) {
        self.at(self.t + delay, event);
    }

    pub fn run(mut self) -> World {
        while !self.ended && self.broken.is_none() {
            let Some(Entry { at, event, .. }) = self.heap.pop() else { break };
            self.t = at;
            self.events += 1;
            if self.events == EVENTS_MAX {
                self.violation("the simulation does not end");
            }
            self.wall.store(at, Ordering::Relaxed);
            self.happen(event);
            self.announce();
        }
        self
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Sidecar { pod, life, to } => self.tell_sidecar(pod, life, *to),
            Event::Keeper { pod, life, to } => self.tell_keeper(pod, life, *to),
            Event::Warden { pod, life, order } => self.warden(pod, life, order),
            Event::WardenThaws { pod, life } => self.warden_thaws(pod, life),
            Event::Thawed(pod) => self.pg_thaws(pod),
            Event::Timer { pod, life } => self.timer(pod, life),
            Event::SidecarThaws(pod) => self.sidecar_thaws(pod),
            Event::KeeperThaws(pod) => self.keeper_thaws(pod),
            Event::Lands(landing) => self.land(*landing),
            Event::Applies { server, version } => self.applies(server, version),
            Event::DeviceFires { pod, at } => self.device_fires(pod, at),
            Event::Postgres { pod, life, what } => self.postgres(pod, life, what),
            Event::Client(pod) => self.client(pod),
            Event::Kubelet { pod, what } => self.kubelet(pod, what),
            Event::Fault => self.fault(),
            Event::Heal => self.heal(),
            Event::Person => self.person_looks(),
            Event::Ping(ping) => self.pinged(ping),
            Event::Pong { ping, answer } => self.ponged(&ping, answer),
            Event::RoundEnds { pod, life, id } => self.failsafe_ends(pod, life, id, true),
            Event::End => {
                self.healthy();
                self.ended = true;
            }
        }
    }

    pub fn note(&mut self, text: impl AsRef<str>) {
        let line = format!("{:10.4} {}", self.t as f64 / 1e9, text.as_ref());
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    pub fn violation(&mut self, text: impl AsRef<str>) {
        let text = text.as_ref();
        self.note(format!("VIOLATION {text}"));
        self.broken.get_or_insert(format!("seed {}: at {:.2}: {text}", self.seed, self.t as f64 / 1e9));
    }

    pub fn boot(&self, pod: usize) -> BootInstant {
        self.pods[pod].clock.boot(self.t)
    }
    pub fn who(&self, name: &MemberName) -> Option<usize> {
        self.pods.iter().position(|p| p.name == *name)
    }
    pub fn linked(&self, a: usize, b: usize) -> bool {
        a == b || (self.links[a][b] <= self.t && self.links[b][a] <= self.t)
    }
    pub fn in_force(&self, pod: usize, document: &Arc<str>) -> Arc<InForce> {
        let name = &self.pods[pod].name;
        let zoned = self.seed % 7 == 2;
        let settings = Settings {
            site: zoned.then(|| if pod.is_multiple_of(2) { "x" } else { "y" }.to_owned()),
            failover_site: if zoned { FailoverSite::Prefer } else { FailoverSite::Any },
            synchronous: if follows_by(document) { Synchronous::default() } else { commits_of(document) },
            pause: paused_by(document),
            standby_of: follows_by(document)
                .then(|| Remote { conn_url: Some("postgres://elsewhere:5432".to_owned()), slot: None }),
            failsafe: failsafe_by(document),
            ..(*self.settings).clone()
        };
        Arc::new(InForce {
            settings: Arc::new(settings),
            document: document.clone(),
            to_publish: Arc::from(self.plan.document(true).to_string()),
            conn_url: format!("postgres://{name}:5432/postgres"),
            api_url: format!("http://{name}:8008/patroni"),
            proxy_url: None,
            tags: Arc::from(""),
            custom_bootstrap: false,
            pre_promote: false,
            before_stop: false,
            restores: false,
            separate_container: true,
            server_version: 150_000,
            reload: false,
        })
    }
    /// The pod a connection string leads to.
    pub fn at_url(&self, url: &str) -> Option<usize> {
        let host = url.split("://").nth(1)?.split([':', '/']).next()?;
        self.pods.iter().position(|p| p.name.as_str() == host)
    }
    pub fn new_life(&mut self, pod: usize) -> u64 {
        self.pods[pod].lives += 1;
        self.pods[pod].lives
    }
}

/// Of a dynamic document, as far as the model reads it.
pub fn commits_of(document: &str) -> Synchronous {
    let read: serde_json::Value = serde_json::from_str(document).unwrap_or_default();
    let flag = |key: &str| read[key].as_bool().unwrap_or(false);
    let count = read["synchronous_node_count"].as_u64().unwrap_or(1) as usize;
    let mode = match (flag("synchronous_mode"), read["synchronous_mode"].as_str()) {
        (true, _) => Commits::Synchronous,
        (false, Some("quorum")) => Commits::Quorum,
        (false, _) => Commits::Asynchronous,
    };
    Synchronous { mode, strict: flag("synchronous_mode_strict"), count, maximum_lag: None }
}

/// Does a dynamic document ask for failsafe mode?
fn failsafe_by(document: &str) -> bool {
    let read: serde_json::Value = serde_json::from_str(document).unwrap_or_default();
    read["failsafe_mode"].as_bool() == Some(true)
}

/// Does a dynamic document ask for maintenance mode?
pub fn paused_by(document: &str) -> bool {
    let read: serde_json::Value = serde_json::from_str(document).unwrap_or_default();
    read["pause"].as_bool() == Some(true)
}

fn pod(seed: u64, i: usize, chance: &mut Rng, plan: &Plan) -> Pod {
    let id = i as u64 + 1;
    Pod {
        name: MemberName(format!("m{i}")),
        uid: String::new(),
        clock: Clock {
            offset: chance.between(1000 * SEC, 90_000 * SEC),
            ppm: (chance.below(2001) as i64 - 1000) * if plan.bad_clocks { 10 } else { 1 },
            wall: chance.below(4_000_000) as i64 - 2_000_000,
        },
        disk: None,
        marker: None,
        pg: None,
        keeper: None,
        warden: None,
        sidecar: None,
        lives: 0,
        pids: 100,
        containers: BTreeMap::new(),
        claim: None,
        promote_ordered: 0,
        device: None,
        late: 0,
        started: 0,
        last_death: None,
        paused: 0,
        fell: false,
        full_until: 0,
        api_cut: 0,
        let_go: false,
        pg_frozen: 0,
        in_flight: false,
        thawed: NEVER,
        leaving: false,
        away: false,
        server: i % plan.servers,
        to_keeper: 0,
        to_sidecar: 0,
        to_warden: 0,
        net: Rng::new(seed, id, 3),
        luck: Rng::new(seed, id, 4),
    }
}
