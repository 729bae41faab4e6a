//! Everything the member remembers. Private to the machine: only `absorb` and `emit` change it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::callbacks::Told;
use super::effect::{Effect, Id, Sent, Ticket};
use super::flights::{About, Flight, Flights, Lane};
use super::input::{InForce, Standing};
use super::lease::{Lease, Writer};
use super::publish::Publisher;
use super::slots::SlotsKept;
use super::{Identity, Level, Line};
use crate::model::{
    BootInstant, Cluster, KeeperLink, Local, Maintenance, Now, Permission, Request, StopMode, StoreLink, Timeline,
    Timings, backoff,
};
use crate::mutant::{self, Mutant};

/// An effect that is not begun within this time after its decision is answered as too late.
const NOT_AFTER: Duration = Duration::from_secs(3);

/// A restart that waits for its time.
#[derive(Clone, Debug)]
pub(super) struct Scheduled {
    pub timeout: Option<Duration>,
    pub document: Arc<str>,
}

/// The memory of the machine.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub now: Now,
    pub cluster: Arc<Cluster>,
    pub local: Local,
    pub in_force: Arc<InForce>,
    pub lease: Lease,
    pub flights: Flights,
    /// What the keeper had when it was met, until the first view says whether its note is the standing lease.
    pub earlier: Option<Standing>,
    /// The store's view was seen at least once.
    pub viewed: bool,
    /// A renewal has named the containers of this life, since Kubernetes shows them.
    pub named: bool,
    /// The keeper was met at least once.
    pub met: bool,
    /// When the present session with it began.
    pub met_at: BootInstant,
    /// A postmaster has ended of whose start nothing was heard yet.
    pub ended_early: Option<BootInstant>,
    /// The last permission that was sent, answered or not.
    pub last_permit: Permission,
    /// Promotions in a row that failed.
    pub failed_promotions: u32,
    /// What has made the last look at the data directory stale happened then.
    pub stale_since: BootInstant,
    /// The half-made data is not that of the cluster, as was found out.
    pub not_published: bool,
    /// The keeper's container is ending.
    pub keeper_ends: bool,
    /// My pod is being deleted, or was replaced.
    pub pod_leaves: bool,
    /// SIGTERM came to a sidecar beside a keeper of another container: it leaves then, unless the whole pod turns out to end.
    pub leave_at: Option<BootInstant>,
    /// The last try of the monitoring query, and the last look at the data directory.
    pub probed_at: BootInstant,
    pub looked_at: BootInstant,
    /// When a stop was ordered whose before_stop script runs.
    pub stop_after_script: Option<StopMode>,
    /// pre_promote has succeeded for the acquisition with this time.
    pub pre_promoted: Option<Option<String>>,
    /// The number claimed for the promotion that was ordered, and the timeline it was ordered on.
    pub promoted_to: Option<(Timeline, Timeline)>,
    /// No write into the store before.
    pub store_pause: BootInstant,
    /// No comparison with the leader before.
    pub compare_pause: BootInstant,
    /// Files have to be written again after a change of the configuration; `true`: and read again in any case.
    pub rewrite: Option<bool>,
    /// The document that was last asked to be put in force.
    pub asked_document: Arc<str>,
    /// The local files have to be read again.
    pub reload: bool,
    /// Ask then which parameters wait for a restart.
    pub pending_at: Option<BootInstant>,
    pub pending_restart: BTreeMap<String, (String, String)>,
    pub publisher: Publisher,
    pub told: Told,
    pub slots: SlotsKept,
    /// When the log last said how far the recovery of a new cluster is.
    pub recovery_told: Option<BootInstant>,
    pub requests: VecDeque<(Request, Option<Ticket>)>,
    pub scheduled: Option<Scheduled>,
    /// Seconds since 1970 of the last live view.
    pub dcs_last_seen: i64,
    /// Until when each kind of action that failed is left alone, and how often it failed in a row.
    pub failures: BTreeMap<&'static str, (BootInstant, u32)>,
    pub warned: BTreeSet<String>,
    pub reason: String,
    /// Actions that `check` refused in the life of this process.
    pub refused: u64,
    pub exiting: bool,
    pub wake: BootInstant,
    next_id: u64,
    pub effects: Vec<Sent>,
    pub lines: Vec<Line>,
}

impl State {
    pub fn new(who: Identity, in_force: Arc<InForce>, now: Now) -> State {
        let mut local = Local::at_start(who.name.clone(), who.session.clone(), now.boot, in_force.settings.ttl);
        local.uid.clone_from(&who.uid);
        let writer = Writer { me: Some(who.name), uid: who.uid, session: who.session };
        State {
            now,
            cluster: Arc::default(),
            local,
            lease: Lease::new(writer),
            flights: Flights::default(),
            earlier: None,
            viewed: false,
            named: false,
            met: false,
            met_at: BootInstant::default(),
            ended_early: None,
            last_permit: Permission::None,
            failed_promotions: 0,
            stale_since: BootInstant::default(),
            not_published: false,
            keeper_ends: false,
            pod_leaves: false,
            leave_at: None,
            probed_at: BootInstant::default(),
            looked_at: BootInstant::default(),
            stop_after_script: None,
            pre_promoted: None,
            promoted_to: None,
            store_pause: BootInstant::default(),
            compare_pause: BootInstant::default(),
            rewrite: None,
            asked_document: in_force.document.clone(),
            reload: false,
            pending_at: None,
            pending_restart: BTreeMap::new(),
            publisher: Publisher::default(),
            told: Told::default(),
            recovery_told: None,
            slots: SlotsKept::default(),
            requests: VecDeque::new(),
            scheduled: None,
            dcs_last_seen: 0,
            failures: BTreeMap::new(),
            warned: BTreeSet::new(),
            reason: "starting".to_owned(),
            refused: 0,
            exiting: false,
            wake: now.boot,
            next_id: 0,
            effects: Vec::new(),
            lines: Vec::new(),
            in_force,
        }
    }

    pub fn id(&mut self) -> Id {
        self.next_id += 1;
        Id(self.next_id)
    }

    /// Sends an effect that will be answered.
    pub fn send(&mut self, effect: Effect, about: About) -> Id {
        let lane = Lane::of(&effect);
        self.send_in(lane, effect, about)
    }

    pub fn send_in(&mut self, lane: Lane, effect: Effect, about: About) -> Id {
        let id = self.id();
        let now = self.now.boot;
        let deadline = now + effect.patience(self.in_force.settings.retry_timeout);
        self.flights.begin(Flight { id, lane, about, sent: now, deadline, late: false });
        self.out(id, effect, deadline);
        id
    }

    /// Sends an effect that nobody answers.
    pub fn tell(&mut self, effect: Effect) {
        let id = self.id();
        self.out(id, effect, self.now.boot);
    }

    fn out(&mut self, id: Id, effect: Effect, deadline: BootInstant) {
        let not_after = if effect.only_stops() { deadline + NOT_AFTER } else { self.now.boot + NOT_AFTER };
        self.effects.push(Sent { id, deadline, not_after, effect });
    }

    /// Passes on what the lease machine wants sent.
    pub fn send_lease(&mut self) {
        let patience = self.in_force.settings.retry_timeout;
        let now = self.now.boot;
        for (id, effect) in self.lease.take_effects() {
            self.effects.push(Sent { id, deadline: now + patience, not_after: now + NOT_AFTER, effect });
        }
    }

    /// Runs something on the lease machine, which numbers its own requests.
    pub fn with_lease<R>(&mut self, run: impl FnOnce(&mut Lease, &Cluster, Now, &mut dyn FnMut() -> Id) -> R) -> R {
        let State { lease, cluster, now, next_id, .. } = self;
        let mut ids = || {
            *next_id += 1;
            Id(*next_id)
        };
        let result = run(lease, cluster, *now, &mut ids);
        self.send_lease();
        result
    }

    pub fn debug(&mut self, text: impl Into<String>) {
        self.line(Level::Debug, text.into());
    }
    pub fn info(&mut self, text: impl Into<String>) {
        self.line(Level::Info, text.into());
    }
    pub fn warn(&mut self, text: impl Into<String>) {
        self.line(Level::Warn, text.into());
    }
    pub fn error(&mut self, text: impl Into<String>) {
        self.line(Level::Error, text.into());
    }
    fn line(&mut self, level: Level, text: String) {
        self.lines.push(Line { level, text });
    }
    pub fn warn_once(&mut self, text: String) {
        if self.warned.insert(text.clone()) {
            self.warn(text);
        }
    }

    /// The permission that stands, as far as the keeper has told.
    pub fn standing(&self) -> Permission {
        match self.local.keeper {
            KeeperLink::Connected { permission } => permission,
            KeeperLink::Lost { .. } => Permission::None,
        }
    }

    /// The timings of my own lease.
    pub fn timings(&self, ttl: Duration) -> Option<Timings> {
        let settings = &self.in_force.settings;
        let armed = Timings::new(settings, ttl, self.local.watchdog.armed);
        armed.or_else(|_| Timings::new(settings, ttl, None)).ok()
    }

    /// Until when I may call myself leader.
    pub fn leader_until(&self) -> Option<BootInstant> {
        let own = self.local.own.as_ref()?;
        if self.local.lease_write == Some(crate::model::InFlight::Release) {
            return None;
        }
        let end = self.timings(own.ttl)?.end;
        match self.local.maintenance {
            // It does not end by time.
            Maintenance::On if own.paused => Some(self.now.boot + own.ttl),
            maintenance @ (Maintenance::On | Maintenance::Resuming { .. } | Maintenance::Off) => {
                Some(maintenance.runs_from(own) + end)
            }
        }
    }

    /// The store was read and is not silent for longer than a lease.
    pub fn store_available(&self) -> bool {
        match self.local.store {
            StoreLink::NotRead => false,
            StoreLink::Following => true,
            StoreLink::Broken { since } => self.now.boot.since(since) < self.in_force.settings.ttl,
        }
    }

    /// An action of this kind failed: it is left alone for a while, longer each time it fails again.
    pub fn failed(&mut self, kind: &'static str) {
        const FIRST: Duration = Duration::from_millis(500);
        const MOST: Duration = Duration::from_secs(10);
        let times = self.failures.get(kind).map_or(0, |(_, times)| *times);
        let pause = backoff(times + 1, FIRST, MOST);
        self.failures.insert(kind, (self.now.boot + pause, times.saturating_add(1).min(16)));
    }
    /// It worked.
    pub fn worked(&mut self, kind: &'static str) {
        self.failures.remove(kind);
    }
    /// How often it failed in a row.
    pub fn failed_times(&self, kind: &'static str) -> u32 {
        self.failures.get(kind).map_or(0, |(_, times)| *times)
    }
    /// May it be tried?
    pub fn rested(&self, kind: &'static str) -> bool {
        self.failures.get(kind).is_none_or(|(until, _)| *until <= self.now.boot) || mutant::is(Mutant::NeverRests)
    }
}
