//! One round of the loop: look, decide, check, execute; and again while something was settled at once.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::execute::Done;
use super::{Agent, Ended, Snapshot, clock, observe};
use crate::config::numbers::parse_int;
use crate::decide;
use crate::model::{
    BootInstant, DataDir, Decision, InFlight, Now, Permission, PostgresState, Request, StoreLink, Timings,
};

/// Rounds without an event in between. More would be two decisions that undo each other: then events decide again, or
/// this pause.
const ROUNDS_MAX: u32 = 12;
const ROUNDS_PAUSE: Duration = Duration::from_millis(200);

/// A probe this young is not asked again.
const PROBE_AGE: Duration = Duration::from_millis(200);
/// The longest the loop waits for the monitoring query.
pub(super) const PROBE_WAIT: Duration = Duration::from_millis(500);
/// While Postgres starts, stops recovering or promotes there is no event to wait for: it is asked this often.
const POLL_FAST: Duration = Duration::from_millis(50);
/// A start that takes longer is crash recovery or replay: asked less often.
const POLL_SLOW: Duration = Duration::from_millis(500);
const POLL_FAST_FOR: Duration = Duration::from_secs(5);
/// An early renewal after a view that contradicts my lease, at most this often.
const CONTRADICTED_PAUSE: Duration = Duration::from_millis(500);

impl Agent {
    /// Decides and acts until nothing more is settled at once.
    pub(super) async fn ticks(&mut self) -> Option<Ended> {
        for _ in 0..ROUNDS_MAX {
            match self.tick().await {
                Done::Ended(ended) => return Some(ended),
                Done::Again => {}
                Done::Wait => return None,
            }
        }
        self.wake_at = self.wake_at.min(clock::boot() + ROUNDS_PAUSE);
        None
    }

    async fn tick(&mut self) -> Done {
        self.take_view().await;
        if std::mem::take(&mut self.flags.reload) {
            self.reload_files().await;
        }
        self.apply_dynamic().await;
        self.look().await;
        self.due_restart();
        self.due_leave();
        let now = clock::now();
        let mut decision = decide::decide(&self.cluster, &self.local, &self.settings, now);
        self.drop_broken(&mut decision, now);
        self.say(&decision);
        self.wake_at = decision.wake_at.min(self.own_wake(now.boot)).max(now.boot);
        let done = self.execute(decision, now).await;
        self.call_back();
        self.show();
        done
    }

    /// The newest view into `Local`.
    async fn take_view(&mut self) {
        let view = self.view.borrow_and_update().clone();
        for warning in &view.warnings {
            if self.postgres.warned.insert(warning.clone()) {
                warn!("{warning}");
            }
        }
        self.cluster = view.cluster.clone();
        observe::view(&mut self.local, &view, &self.settings);
        if view.link == StoreLink::Following {
            self.dcs_last_seen = clock::wall().0 / 1_000_000;
        }
        let mine = view.cluster.leader.as_ref().is_some_and(|l| self.store.is_mine(l));
        let rested = self.local.last_attempt.is_none_or(|at| clock::boot() > at + CONTRADICTED_PAUSE);
        if observe::view_contradicts(&self.local, &view, mine) && self.local.lease_write.is_none() && rested {
            self.begin_renew().await;
        }
    }

    /// Postgres and its data directory, as fresh as a decision needs them.
    async fn look(&mut self) {
        let now = clock::boot();
        let pg = &self.local.postgres;
        if pg.alive {
            let settled = pg.state == PostgresState::Running && pg.promoting.is_none();
            // Who compares positions needs its own as fresh as the others' answers, and read after the lease changed:
            // an old one of mine makes everybody give way to everybody.
            let asked =
                self.local.peers.as_ref().map_or(self.local.lease.since, |r| r.asked_at.max(self.local.lease.since));
            let young = pg.probe.as_ref().is_some_and(|p| now.since(p.at) < PROBE_AGE && p.at >= asked);
            if !(settled && young) && pg.stopping.is_none() {
                let was = pg.state.clone();
                let looked = self.probe().await;
                observe::probed(&mut self.local, looked, clock::boot());
                self.look_at_history();
                if was != PostgresState::Running && self.local.postgres.state == PostgresState::Running {
                    self.came_up();
                }
            }
        }
        let pg = &self.local.postgres;
        let stale = !pg.alive || !pg.checkpointed || !matches!(self.local.data, DataDir::Present { .. });
        if self.local.task.is_none() && (stale || now.since(self.postgres.data_seen) > self.settings.loop_wait) {
            self.look_at_data();
        }
    }

    /// A standby behind the recorded timeline may know it all the same: the file is fetched before its WAL is.
    fn look_at_history(&mut self) {
        let behind = |p: &crate::model::Probe| p.in_recovery && p.timeline < self.cluster.timeline();
        if self.local.postgres.probe.as_ref().is_some_and(behind) {
            self.local.postgres.newest_history = crate::postgres::history::newest(&self.setup.data_dir);
        }
    }

    /// Re-reads the data directory.
    pub(super) fn look_at_data(&mut self) {
        self.postgres.data_seen = clock::boot();
        let data = crate::postgres::datadir::inspect(&self.setup);
        observe::data(&mut self.local, data);
        if self.local.data == DataDir::HalfMade && self.keep_what_is_published() {
            observe::data(&mut self.local, crate::postgres::datadir::inspect(&self.setup));
        }
    }

    /// A bootstrap that ended between the last write to the store and the removal of its marker is whole: the store has
    /// its system identifier, others may have cloned it, and it must not be cleared as half-made. True: it was kept.
    pub(super) fn keep_what_is_published(&self) -> bool {
        let Some(id) = self.cluster.initialize.system_id().filter(|_| !self.local.bootstrapping) else { return false };
        match crate::postgres::datadir::unmark_if_initialized(&self.setup, id) {
            Ok(kept) => {
                if kept {
                    info!(
                        "the data directory was initialized and published by an earlier life of this pod: keeping it"
                    );
                }
                kept
            }
            Err(e) => {
                error!("remove the marker of a finished bootstrap: {e}");
                false
            }
        }
    }

    /// When I want to look again although no decision asks for it.
    fn own_wake(&self, now: BootInstant) -> BootInstant {
        let pg = &self.local.postgres;
        let mut wake = now + self.settings.loop_wait;
        if pg.alive && pg.stopping.is_none() && (pg.probe.is_none() || pg.promoting.is_some()) {
            let since = pg.promoting.unwrap_or(pg.since);
            wake = wake.min(now + if now.since(since) < POLL_FAST_FOR { POLL_FAST } else { POLL_SLOW });
        }
        if let Some(at) = self.flags.leave_at {
            wake = wake.min(at);
        }
        if let Some(at) = self.publish_wake() {
            wake = wake.min(at.max(now + Duration::from_millis(1)));
        }
        if let Some((at, _)) = &self.local.scheduled_restart {
            let left = clock::wall().micros_until(*at).max(1000);
            wake = wake.min(now + Duration::from_micros(left.unsigned_abs()));
        }
        wake
    }

    /// A scheduled restart that is due becomes a request; one that is much too late is forgotten (rest-api §5.3).
    fn due_restart(&mut self) {
        let Some((at, filter)) = self.local.scheduled_restart.clone() else {
            self.scheduled_restart = None;
            return;
        };
        let late = -clock::wall().micros_until(at);
        if late < 0 {
            return;
        }
        self.local.scheduled_restart = None;
        let document = self.scheduled_restart.take();
        let allowed = self.settings.loop_wait.as_micros() * 3 / 2;
        if u128::try_from(late).unwrap_or(0) > allowed {
            warn!("the scheduled restart is {} s late, forgetting it", late / 1_000_000);
            return;
        }
        info!("the scheduled restart is due");
        let timeout = document.and_then(|d| {
            let given = d.get("timeout")?;
            given.as_str().map_or_else(|| given.as_i64(), |text| parse_int(text, Some("s")))
        });
        let timeout = timeout.and_then(|secs| u64::try_from(secs).ok()).map(std::time::Duration::from_secs);
        self.requests.push_back((Request::Restart { filter, timeout }, None));
        self.show_request();
    }

    /// Drops what no decision may do: a bug, said loudly, and not done.
    fn drop_broken(&self, decision: &mut Decision, now: Now) {
        let Err(broken) = decide::check(decision, &self.cluster, &self.local, &self.settings, now) else { return };
        for (_, rule) in &broken {
            error!("refusing to act: {rule} (decision: {})", decision.reason);
        }
        // Whatever follows a refused action was meant to come after it: stops and demotions excepted, it goes too.
        let first = broken.iter().map(|(i, _)| *i).min().unwrap_or(usize::MAX);
        let mut index = 0;
        decision.actions.retain(|action| {
            let keep = index < first || super::execute::only_stops(action);
            index += 1;
            keep
        });
    }

    /// One line per tick: the reason, INFO when it changed.
    fn say(&mut self, decision: &Decision) {
        for warning in &decision.warnings {
            if self.postgres.warned.insert(warning.0.clone()) {
                warn!("{}", warning.0);
            }
        }
        let reason = decision.reason.to_string();
        if reason == self.last_reason {
            debug!("{reason}");
        } else {
            info!("{reason}");
            self.last_reason = reason;
        }
        debug!(actions = ?decision.actions);
    }

    /// Until when I may call myself leader.
    pub(super) fn leader_until(&self) -> Option<BootInstant> {
        let own = self.local.own.as_ref()?;
        if self.local.lease_write == Some(InFlight::Release) {
            return None;
        }
        let timings = Timings::new(&self.settings, own.ttl, self.local.watchdog_armed).ok()?;
        Some(own.evidence + timings.end)
    }

    /// Replaces what the REST API sees.
    fn show(&mut self) {
        let snapshot = self.snapshot();
        self.ends.snapshot.send_replace(Arc::new(snapshot));
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let now = clock::now();
        let available = match self.local.store {
            StoreLink::NotRead => false,
            StoreLink::Following => true,
            StoreLink::Broken { since } => now.boot.since(since) < self.settings.ttl,
        };
        Snapshot {
            now,
            cluster: self.cluster.clone(),
            local: Arc::new(self.local.clone()),
            settings: self.settings.clone(),
            scope: self.wishes.scope.clone(),
            version: crate::dcs::CONTRACT_VERSION,
            primary_word: self.wishes.primary_word,
            dcs_last_seen: self.dcs_last_seen,
            dcs_available: available,
            leader_until: self.leader_until(),
            system_id: self.system_id(),
            configured_tags: self.wishes.configured_tags.clone(),
            effective_tags: Arc::new(self.effective_tags()),
            pending_restart_reason: self.pending_restart.clone(),
            scheduled_restart: self.scheduled_restart.clone().map(serde_json::Value::Object),
            last_loop: now.boot,
            next_loop: self.wake_at.max(now.boot),
            reason: self.last_reason.clone(),
            fence_lost: matches!(self.local.keeper, crate::model::KeeperLink::Lost { .. }),
        }
    }

    fn system_id(&self) -> Option<String> {
        match &self.local.data {
            DataDir::Present { control: Some(control), .. } => Some(control.system_id.clone()),
            DataDir::Present { control: None, .. } | DataDir::Empty | DataDir::HalfMade | DataDir::Unusable(_) => None,
        }
    }

    /// The permission that stands, as far as the keeper has told.
    pub(super) fn standing(&self) -> Permission {
        match self.local.keeper {
            crate::model::KeeperLink::Connected { permission } => permission,
            crate::model::KeeperLink::Lost { .. } => Permission::None,
        }
    }
}
