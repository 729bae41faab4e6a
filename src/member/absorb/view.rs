//! The store's view, and the configuration that follows from it.

use std::sync::Arc;
use std::time::Duration;

use super::super::effect::Effect;
use super::super::flights::{About, Lane};
use super::super::input::{Answer, Fail, InForce};
use super::super::lease;
use super::super::state::State;
use crate::model::{
    BootInstant, DataDir, InFlight, LeaderRecord, LeaseRecord, Maintenance, OwnLease, StartRole, StoreLink, Timeline,
    View,
};

/// An early renewal after a view that contradicts my lease, at most this often.
const CONTRADICTED_PAUSE: Duration = Duration::from_millis(500);

impl State {
    pub(super) fn view(&mut self, view: &View) {
        for warning in &view.warnings {
            self.warn_once(warning.clone());
        }
        let named = view.cluster.initialize.system_id() != self.cluster.initialize.system_id();
        self.cluster = view.cluster.clone();
        self.local.store = view.link;
        let marked = matches!(self.local.data, DataDir::HalfMade | DataDir::Restored | DataDir::Unusable(_));
        if named && marked && !self.local.postgres.alive {
            // The system identifier was written after all, or is another one: the data stays until it is known whose it is.
            self.not_published = false;
            self.look_soon();
        }
        if view.me.uid == self.local.uid {
            self.pod_leaves = view.me.leaving;
            self.local.deadman.container_ended = view.me.keeper_ended;
        }
        if view.link == StoreLink::NotRead {
            return;
        }
        if view.link == StoreLink::Following {
            self.dcs_last_seen = self.now.wall.0 / 1_000_000;
        }
        self.observe_lease(view);
        let request = self.cluster.failover.as_ref().map(|r| r.version.clone());
        let seen = self.local.request_seen.take().filter(|(version, _)| Some(version) == request.as_ref());
        self.local.request_seen = seen.or_else(|| request.map(|version| (version, self.now.boot)));
        self.local.watch_initializer(&self.cluster, self.now.boot);
        self.viewed = true;
        self.earlier_life();
        self.contradicted(view);
        self.names_containers(view);
        self.new_document();
    }

    /// The record of my lease names no containers, because Kubernetes showed those of an earlier life when it was written: once it
    /// shows mine, they are published at once. Without them my death is proven by nothing, and costs the others a whole ttl.
    fn names_containers(&mut self, view: &View) {
        self.named &= view.me.named;
        let runs = self.local.own.as_ref().is_some_and(|own| self.now.boot < own.runs_from() + own.ttl);
        let own = runs && self.local.lease_write.is_none();
        let mine = view.cluster.leader.as_ref().filter(|l| own && self.lease.is_mine(l));
        let unnamed = mine.and_then(LeaderRecord::valid_holder).is_some_and(|holder| holder.containers.is_empty());
        if unnamed && view.me.named && !self.named {
            self.named = true;
            self.renew(None);
        }
    }

    /// The configuration object was read afresh, and what was read is in the view already.
    pub(super) fn config_read(&mut self, sent: BootInstant, answer: Result<Answer, Fail>) {
        match answer {
            Ok(Answer::Config(Ok(()))) => {
                self.worked("read the history");
                self.local.config_read = Some(sent);
            }
            Ok(Answer::Config(Err(e))) => {
                self.failed("read the history");
                self.warn(format!("cannot read the history of the cluster: {}", e.text()));
            }
            Ok(_) | Err(_) => self.failed("read the history"),
        }
    }

    fn observe_lease(&mut self, view: &View) {
        let leader = view.cluster.leader.as_ref();
        let named_other = leader.and_then(|l| l.named()).is_some_and(|who| *who != self.local.me);
        let ttl = self.in_force.settings.ttl;
        let local = &mut self.local;
        if local.lease.observe(leader, view.lease_received, ttl) {
            local.death_proof = None;
            if named_other {
                // Somebody else has held the lock since I gave it away: I may race again.
                local.stepped_down = None;
                // Whoever was promised that it keeps the lock has lost it.
                local.promise.take_if(|p| leader.and_then(|l| l.named()) != Some(&p.to));
                self.lease.outrun();
            }
        }
        if local.reclaim.is_some() {
            // A watch is often quicker than the answer to the renewal that it shows.
            let still_mine = |l: &&LeaderRecord| local.reclaim.as_ref() == Some(&l.lease) || self.lease.is_mine(l);
            local.reclaim = leader.filter(still_mine).map(|l| l.lease.clone());
        }
    }

    /// What an earlier life of this pod has left: a running Postgres, and maybe the lease. It is taken over only on the
    /// keeper's word: the note of the standing record or of an earlier renewal of it, or a record that names this very pod and
    /// no Postgres left (in a standby cluster one that follows may be left: nobody has permitted it to write, so there is no note,
    /// and it is promoted without a race by nobody). Any other record with my name is a stranger's.
    pub(super) fn earlier_life(&mut self) {
        if !self.viewed {
            return;
        }
        let Some(standing) = self.earlier.take() else { return };
        let Some(leader) = self.cluster.leader.clone().filter(|l| l.named() == Some(&self.local.me)) else { return };
        let this_pod = leader.valid_holder().filter(|h| !self.local.uid.is_empty() && h.uid == self.local.uid);
        // A renewal of that life that landed later is of the same acquisition, and has the mark of this pod.
        let renewed = |of: &LeaseRecord| {
            this_pod.is_some()
                && (&of.acquire_time, &of.transitions) == (&leader.lease.acquire_time, &leader.lease.transitions)
        };
        // Where nothing runs, the record may be proven dead for the containers that it names: renewed first, it is mine.
        let runs = standing.postgres.is_some() || this_pod.is_none();
        if let Some((noted, evidence)) = standing.note.filter(|(of, _)| runs && (*of == leader.lease || renewed(of))) {
            self.info("the lock is mine: the keeper has the note of the standing record");
            let record = leader.lease.clone();
            self.lease.adopt(record.clone());
            let ttl = self.in_force.settings.ttl;
            let ttl = record.ttl_or(ttl).min(noted.ttl_or(ttl));
            let paused = leader.valid_holder().is_some_and(|holder| holder.paused);
            self.local.own = Some(OwnLease { record, evidence, ttl, paused, prolonged: None });
            if paused && !self.local.maintenance.is_on() {
                // The life before this one had heard of the resume, and has not renewed the lock since.
                self.local.maintenance = Maintenance::Resuming { since: self.now.boot };
            }
            return;
        }
        // One that says that it is in maintenance was taken by nobody.
        let paused = this_pod.is_some_and(|h| h.paused);
        let harmless = match standing.postgres {
            None => true,
            Some(StartRole::Standby) => self.follows_another(),
            Some(StartRole::Primary) => false,
        };
        if this_pod.is_some() && (harmless || paused) {
            let how = match standing.postgres {
                _ if paused => "was in maintenance mode",
                None => "has left nothing",
                Some(_) => "has left a standby",
            };
            self.info(format!("the lock names this pod, whose earlier life {how}"));
            self.local.reclaim = Some(leader.lease);
        } else {
            self.warn("the lock names me, but nothing proves that it is mine: watching it like everybody else");
        }
    }

    /// The view says that my lease is somebody else's, or gone. A watch proves nothing: the next renewal comes at once, and
    /// its fresh read proves it.
    fn contradicted(&mut self, view: &View) {
        let mine = view.cluster.leader.as_ref().is_some_and(|l| self.lease.is_mine(l));
        let contradicts = self.local.own.as_ref().is_some_and(|own| !mine && view.lease_received > own.evidence);
        let rested = self.local.last_attempt.is_none_or(|at| self.now.boot > at + CONTRADICTED_PAUSE);
        if contradicts && self.local.lease_write.is_none() && rested {
            self.renew(None);
        }
    }

    /// Begins a renewal; `claim`: the number of the promotion that follows.
    pub(in crate::member) fn renew(&mut self, claim: Option<Timeline>) {
        if self.lease.busy() {
            return;
        }
        let now = self.now.boot;
        let ttl = self.attempted_ttl();
        let own = self.local.own.as_ref().map(|own| (own.record.clone(), own.runs_from() + own.ttl));
        let left = match (&own, &self.local.reclaim) {
            _ if self.marked() => ttl,
            (Some((_, until)), _) => now.until(*until),
            (None, Some(record)) => {
                self.lease.adopt(record.clone());
                ttl
            }
            (None, None) => return,
        };
        self.local.lease_write = Some(InFlight::Renew);
        self.local.last_attempt = Some(now);
        let deadline = self.in_force.settings.retry_timeout.min(left).max(SHORTEST_WRITE);
        let own = own.filter(|_| !self.pod_leaves);
        let claim = match claim {
            Some(number) => lease::Claim::Make(number),
            None if self.follows_another() => lease::Claim::Spend,
            None => lease::Claim::Keep,
        };
        let job = lease::Job::Renew { status: self.leader_status(), fulfilled: self.oath_fulfilled(), claim };
        let (paused, failsafe) = (self.says_paused(), self.failsafe_map());
        let site = self.in_force.settings.site.clone();
        let start = lease::Start { job, ttl, deadline, own, paused, site, failsafe };
        self.with_lease(|lease, cluster, now, ids| lease.start(start, cluster, now, ids));
    }

    /// The ttl of the next attempt. A shorter one is sent only when the keeper's deadlines are the shorter ones already: the
    /// attempt may land and its answer be lost. Until it is confirmed the shorter one counts.
    fn attempted_ttl(&mut self) -> Duration {
        let wanted = self.in_force.settings.ttl;
        let Some(own) = self.local.own.clone().filter(|own| wanted < own.ttl && !self.says_paused()) else {
            return wanted;
        };
        let shorter = OwnLease { ttl: wanted, ..own.clone() };
        if self.permission_of(&shorter).is_some_and(|p| self.standing() == p) {
            self.local.own = Some(shorter);
            return wanted;
        }
        if let Some(permission) = self.permission_of(&shorter) {
            self.permit(permission);
        }
        own.ttl
    }

    /// What the store says of maintenance mode is in force.
    pub(super) fn document_is_in_force(&self) -> bool {
        let text = self.cluster.config.as_ref().and_then(|c| c.document.as_deref());
        self.viewed && !self.flights.busy(Lane::Configuration) && text.is_some_and(|text| *self.asked_document == *text)
    }

    /// Another dynamic document than the one in force is put in force.
    fn new_document(&mut self) {
        let Some(text) = self.cluster.config.as_ref().and_then(|c| c.document.clone()) else { return };
        if *self.asked_document == *text || self.flights.busy(Lane::Configuration) {
            return;
        }
        let text: Arc<str> = Arc::from(text.as_str());
        self.asked_document = text.clone();
        self.send(Effect::Configure { document: Some(text) }, About::Configure);
    }

    /// A configuration was put in force.
    pub(super) fn settings(&mut self, in_force: Arc<InForce>) {
        let again = in_force.reload;
        self.in_force = in_force;
        self.rewrite = Some(self.rewrite.unwrap_or(false) || again);
        self.publisher.changed();
    }

    /// A document that came while another one was being put in force.
    pub(super) fn look_at_document_again(&mut self) {
        self.new_document();
    }
}

/// A lease write shorter than this would be given up before the API server can have answered.
pub(in crate::member) const SHORTEST_WRITE: Duration = Duration::from_secs(1);
