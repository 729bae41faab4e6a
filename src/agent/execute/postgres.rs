//! Postgres through the keeper and through SQL: permission, start, stop, promote, follow, checkpoint. Keeper requests are
//! awaited here with their own short deadlines; SQL that may take long is begun.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::super::callbacks::{self, Callback};
use super::super::keeper::{self, KeeperNews, Run};
use super::super::observe::{self, Looked};
use super::super::{Agent, Outcome, clock, tick};
use super::Step;
use crate::model::{
    BootInstant, DataDir, KeeperLink, MemberName, Permission, PostgresState, Request, RewindState, Role, StartRole,
    StopMode, Timeline, Upstream,
};
use crate::postgres::binaries::Binaries;
use crate::postgres::sql::{Sql, SqlError};
use crate::postgres::{bootstrap, conf, datadir, remote, rewind, start};

/// A checkpoint may take minutes on slow disks; nothing waits for it longer than decisions say.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(600);
/// Scripts that hold up a promotion or a stop (pre_promote, before_stop).
const SCRIPT_DEADLINE: Duration = Duration::from_secs(300);
/// After a reload Postgres takes a moment to read its files; then pending restarts are known (ha-decisions §24.4).
const AFTER_RELOAD: Duration = Duration::from_secs(1);

/// What the shell holds of Postgres.
pub(in crate::agent) struct PostgresSide {
    /// Monitoring connection.
    pub sql: Arc<Sql>,
    /// Programs and their version.
    pub binaries: Binaries,
    /// When the data directory was looked at last.
    pub data_seen: BootInstant,
    /// Warnings said once.
    pub warned: BTreeSet<String>,
    /// How the living postmaster was started, for rewrites of its files.
    pub role: StartRole,
}

impl Agent {
    /// Sends a permission with the note that lets a restarted sidecar go on with my lease.
    pub(in crate::agent) async fn permit(&mut self, permission: Permission) -> bool {
        let evidence = match permission {
            // There is no lease yet: the wish itself is the evidence.
            Permission::Unfenced => clock::boot(),
            Permission::None | Permission::Writer { .. } => self.renewal(),
        };
        let note = self.note();
        match self.keeper.permit(permission, evidence, note).await {
            Ok(()) => {
                self.local.keeper = KeeperLink::Connected { permission };
                true
            }
            Err(why) if why.lost => {
                self.keeper_failed(&why.text);
                false
            }
            Err(why) => {
                error!("{}", why.text);
                false
            }
        }
    }

    fn note(&self) -> String {
        let Some(own) = &self.local.own else { return String::new() };
        super::super::keeper::note(own)
    }

    pub(super) async fn permit_action(&mut self, permission: Permission) -> Step {
        if self.standing() == permission {
            return Step::Begun;
        }
        if self.permit(permission).await || permission == Permission::None {
            // A keeper that cannot be told to stop stops by itself at its deadline.
            return Step::Begun;
        }
        Step::Failed("the keeper did not take the permission".to_owned())
    }

    fn keeper_failed(&mut self, why: &str) {
        if !matches!(self.local.keeper, KeeperLink::Lost { .. }) {
            warn!("the keeper does not answer: {why}");
            self.local.keeper = KeeperLink::Lost { since: clock::boot() };
            self.keeper.reconnect();
        }
    }

    /// The latest evidence, for keeper requests that need a renewal sent after the last death.
    fn renewal(&self) -> BootInstant {
        self.local.own.as_ref().map_or(BootInstant::default(), |own| own.evidence)
    }

    pub(super) async fn start_postgres(&mut self, role: StartRole, upstream: Upstream) -> Step {
        let fresh = matches!(&self.local.task_end, Some(end) if end.kind == crate::model::TaskKind::Bootstrap);
        let custom = self.local.bootstrapping && fresh && self.setup.bootstrap_method.is_some();
        let spec = if custom {
            start::prepare_after_custom_bootstrap(&self.setup, &self.postgres.binaries)
        } else {
            start::prepare(&self.setup, &self.postgres.binaries, role, &upstream)
        };
        let spec = match spec {
            Ok(spec) => spec,
            Err(why) => {
                observe::start_failed(&mut self.local, clock::boot());
                error!("{why}");
                return Step::Settled;
            }
        };
        self.warn_once(spec.warnings);
        match self.keeper.start(role, &spec.command, self.renewal(), start::socket_locks(&self.setup)).await {
            Ok(()) => {
                info!(
                    "starting Postgres {}",
                    match role {
                        StartRole::Primary => "as primary",
                        StartRole::Standby => "as a standby",
                    }
                );
                self.pending_restart = spec.pending_restart;
                self.postgres.role = role;
                observe::started(&mut self.local, role, upstream, custom, clock::boot());
                self.local.postgres.pending_restart = !self.pending_restart.is_empty();
                Step::Settled
            }
            Err(why) if why.lost => {
                self.keeper_failed(&why.text);
                Step::Failed(format!("could not start Postgres: {}", why.text))
            }
            Err(why) => {
                observe::start_failed(&mut self.local, clock::boot());
                error!("could not start Postgres: {}", why.text);
                Step::Settled
            }
        }
    }

    pub(super) async fn stop_postgres(&mut self, mode: StopMode, why: &'static str) -> Step {
        info!("stopping Postgres ({mode:?}): {why}");
        if let (Some(script), StopMode::Fast) = (self.wishes.before_stop.clone(), mode) {
            // The script holds up the orderly stop only: fences of the keeper end without asking it.
            observe::stopping(&mut self.local, mode, clock::boot());
            let runner = self.keeper.runner();
            self.begin(async move {
                let run = async {
                    let argv = bootstrap::split("postgresql.before_stop", &script)?;
                    runner.run(Run { argv, ..Run::default() }, SCRIPT_DEADLINE, |_| {}).await
                };
                match run.await {
                    Ok(ended) if ended.success => {}
                    Ok(ended) => warn!("postgresql.before_stop failed: {}", ended.summary()),
                    Err(e) => warn!("postgresql.before_stop: {e}"),
                }
                if let Err(e) = runner.stop(mode).await {
                    warn!("could not stop Postgres: {}", e.text);
                }
                Outcome::Look
            });
            return Step::Begun;
        }
        if let Err(e) = self.keeper.stop(mode).await {
            if e.lost {
                self.keeper_failed(&e.text);
            }
            return Step::Failed(format!("could not stop Postgres: {}", e.text));
        }
        observe::stopping(&mut self.local, mode, clock::boot());
        Step::Begun
    }

    pub(super) async fn promote(&mut self) -> Step {
        if self.local.postgres.promoting.is_some() {
            return Step::Begun;
        }
        self.local.postgres.promoting = Some(clock::boot());
        self.local.postgres.checkpointed = false;
        let Some(script) = self.wishes.pre_promote.clone() else { return self.promote_now().await };
        let runner = self.keeper.runner();
        let scope = self.setup.scope.clone();
        self.begin(async move {
            let argv = bootstrap::split("postgresql.pre_promote", &script);
            let run = match argv {
                Ok(argv) => runner.run(Run { argv, ..Run::default() }, SCRIPT_DEADLINE, |_| {}).await,
                Err(e) => Err(e),
            };
            debug!("pre_promote for {scope} has ended");
            Outcome::PrePromote(run.and_then(|r| if r.success { Ok(()) } else { Err(r.summary()) }))
        });
        Step::Begun
    }

    async fn promote_now(&mut self) -> Step {
        match self.keeper.promote(self.renewal()).await {
            Ok(()) => {
                info!("promoting Postgres");
                self.local.rewind = RewindState::Initial;
                self.local.postgres.following = None;
                self.postgres.role = StartRole::Primary;
                Step::Begun
            }
            Err(e) => {
                self.local.postgres.promoting = None;
                if e.lost {
                    self.keeper_failed(&e.text);
                }
                Step::Failed(format!("could not promote Postgres: {}", e.text))
            }
        }
    }

    pub(in crate::agent) async fn pre_promoted(&mut self, result: Result<(), String>) {
        self.local.postgres.promoting = None;
        match result {
            Ok(()) if self.local.own.is_some() => {
                self.local.postgres.promoting = Some(clock::boot());
                if let Step::Failed(why) = self.promote_now().await {
                    error!("{why}");
                }
            }
            Ok(()) => info!("the lock was lost while pre_promote ran: not promoting"),
            Err(why) => {
                warn!("Promotion cancelled because the pre-promote script failed: {why}");
                self.local.backoff_until = Some(clock::boot() + self.settings.ttl);
                if self.local.own.is_some() && self.local.lease_write.is_none() {
                    self.permit(Permission::None).await;
                    self.begin_release(None);
                }
            }
        }
    }

    pub(super) async fn follow(&mut self, upstream: Upstream) -> Step {
        match start::rewrite(&self.setup, &self.postgres.binaries, StartRole::Standby, &upstream) {
            Ok(rewritten) => self.warn_once(rewritten.effective.warnings),
            Err(why) => return Step::Failed(why),
        }
        if let Err(e) = self.keeper.hup().await {
            if e.lost {
                self.keeper_failed(&e.text);
            }
            return Step::Failed(format!("could not reload Postgres: {}", e.text));
        }
        match &upstream {
            Upstream::Member { name, .. } => info!("following {name}"),
            Upstream::Nobody => info!("following nobody"),
        }
        self.local.postgres.following = Some(upstream);
        Step::Settled
    }

    pub(super) fn begin_checkpoint(&mut self) {
        if std::mem::replace(&mut self.flags.checkpointing, true) {
            return;
        }
        let sql = self.postgres.sql.clone();
        self.begin(
            async move { Outcome::Checkpoint(sql.checkpoint(CHECKPOINT_DEADLINE).await.map_err(|e| e.to_string())) },
        );
    }

    pub(in crate::agent) fn checkpointed(&mut self, result: Result<(), String>) {
        self.flags.checkpointing = false;
        if let Some(handover) = &mut self.local.handover {
            handover.checkpoint_done = true;
        }
        match result {
            Ok(()) => self.look_at_data(),
            Err(why) => warn!("CHECKPOINT failed: {why}"),
        }
    }

    pub(super) fn begin_divergence(&mut self, leader: MemberName, conn_url: String, _published: Option<Timeline>) {
        self.local.checking = true;
        let setup = self.setup.clone();
        let probe = self.local.postgres.probe.clone();
        self.begin(async move {
            let theirs = match remote::timeline_of(&setup, &conn_url).await {
                Ok(theirs) => theirs,
                Err(e) => return Outcome::Divergence(Err(format!("compare timelines with {leader}: {e}"))),
            };
            let mine = rewind::local_end(&setup.data_dir, probe.as_ref());
            let answer = rewind::check(mine.as_ref(), &theirs);
            let here = mine.as_ref().map_or_else(
                || "of this member has no known end".to_owned(),
                |end| format!("ends here on timeline {} at {}", end.timeline, end.lsn),
            );
            let verdict = match answer {
                rewind::Divergence::Diverged => "diverged from",
                rewind::Divergence::Same => "is part of the history of",
                rewind::Divergence::Undecided => "cannot be compared yet with",
            };
            info!("the WAL {here}: it {verdict} {leader} on timeline {}", theirs.timeline);
            Outcome::Divergence(Ok(match answer {
                rewind::Divergence::Diverged => Some(RewindState::Need),
                rewind::Divergence::Same => Some(RewindState::NotNeeded),
                rewind::Divergence::Undecided => None,
            }))
        });
    }

    pub(in crate::agent) fn divergence(&mut self, result: Result<Option<RewindState>, String>) {
        match result {
            Ok(Some(state)) => {
                self.local.checking = false;
                self.local.rewind = state;
            }
            Ok(None) => self.pause_checking("the leader is not ready to be compared with".to_owned()),
            Err(why) => self.pause_checking(why),
        }
    }

    /// Looks again after a second; `checking` stays set meanwhile, so that no decision begins one at once.
    fn pause_checking(&mut self, why: String) {
        info!("{why}; looking again");
        self.begin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Outcome::CheckAgain
        });
    }

    pub(super) async fn remove_data_dir(&mut self, keep_as_failed: bool, why: &str) -> Step {
        if self.local.postgres.alive {
            return Step::Failed("refusing to remove the data directory of a living postmaster".to_owned());
        }
        if self.local.data == DataDir::HalfMade && self.keep_what_is_published() {
            self.look_at_data();
            return Step::Settled;
        }
        warn!(
            "{} the data directory {}: {why}",
            if keep_as_failed { "moving away" } else { "removing" },
            self.setup.data_dir.display()
        );
        let setup = self.setup.clone();
        let work = tokio::task::spawn_blocking(move || {
            if keep_as_failed { datadir::move_to_failed(&setup).map(|_: PathBuf| ()) } else { datadir::remove(&setup) }
        });
        let result = match work.await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        self.look_at_data();
        match result {
            Ok(()) => Step::Settled,
            Err(e) => Step::Failed(format!("data directory {}: {e}", self.setup.data_dir.display())),
        }
    }

    /// One try of the monitoring query, within its short wait.
    pub(in crate::agent) async fn probe(&self) -> Looked {
        match tokio::time::timeout(tick::PROBE_WAIT, self.postgres.sql.probe(clock::boot())).await {
            Err(_) => Looked::Silent,
            Ok(Ok(probe)) => Looked::Answer(probe),
            Ok(Err(SqlError::Refused(_) | SqlError::StartingUp(_))) => Looked::NotReady,
            Ok(Err(e)) => {
                debug!("monitoring query: {e}");
                Looked::Silent
            }
        }
    }

    /// Postgres accepts connections after a start.
    pub(in crate::agent) fn came_up(&mut self) {
        info!("Postgres is up");
        self.local.postgres.server_version = Some(self.postgres.binaries.version);
        if !self.local.bootstrapping
            && let Err(e) = conf::save_backups(&self.setup)
        {
            warn!("could not save copies of the configuration files: {e}");
        }
        self.look_at_data();
    }

    /// Makes the new cluster durable and removes its marker, beside the loop: syncing a file system takes its time. Until
    /// then the bootstrap is not over.
    pub(super) fn begin_bootstrap_end(&mut self) {
        if std::mem::replace(&mut self.flags.ending_bootstrap, true) {
            return;
        }
        let (setup, binaries) = (self.setup.clone(), self.postgres.binaries.clone());
        self.begin(async move {
            let work = tokio::task::spawn_blocking(move || {
                if setup.bootstrap_method.is_some() {
                    // What changed takes effect with the reload after it.
                    drop(start::leave_custom_bootstrap(&setup, &binaries)?);
                }
                bootstrap::finished(&setup).map_err(|e| e.to_string())
            });
            Outcome::BootstrapEnded(work.await.unwrap_or_else(|e| Err(e.to_string())))
        });
    }

    pub(in crate::agent) async fn bootstrap_ended(&mut self, result: Result<(), String>) {
        self.flags.ending_bootstrap = false;
        match result {
            Ok(()) => {
                self.local.bootstrapping = false;
                self.save_dynamic();
                // Recovery after a custom method let nobody in but this machine.
                if self.setup.bootstrap_method.is_some()
                    && let Err(e) = self.keeper.hup().await
                {
                    warn!("could not reload the configuration after the bootstrap: {}", e.text);
                }
            }
            Err(e) => {
                warn!("could not end the bootstrap ({}): {e}", datadir::marker_path(&self.setup).display())
            }
        }
    }

    /// What the keeper reports.
    pub(in crate::agent) async fn keeper_says(&mut self, news: KeeperNews) {
        let now = clock::boot();
        match news {
            KeeperNews::Died(how, at) => {
                info!("Postgres has ended ({how})");
                self.postgres.sql.close().await;
                observe::died(&mut self.local, at.min(now));
                self.look_at_data();
            }
            KeeperNews::Fenced(why) => warn!("the keeper stops Postgres: {why}"),
            KeeperNews::Terminating => {
                info!("the keeper is terminating: handing over");
                self.flags.keeper_ends = true;
                self.local.request = Some(Request::Terminate { leave_postgres: false });
            }
            KeeperNews::Lost(why) => self.keeper_failed(&why),
            KeeperNews::Back(standing) => {
                info!("connected to the keeper again");
                self.flags.keeper_ends = standing.terminating;
                self.keeper_lives(standing.began);
                self.local.keeper = KeeperLink::Connected { permission: standing.permission };
                if standing.postgres.is_none() && self.local.postgres.alive {
                    self.postgres.sql.close().await;
                    observe::died(&mut self.local, now);
                    self.look_at_data();
                }
                self.send_evidence().await;
            }
        }
    }

    /// The store learns which life of the pod's containers this is.
    fn keeper_lives(&mut self, keeper_began: Option<BootInstant>) {
        let another = std::mem::replace(&mut self.flags.keeper_began, keeper_began) != keeper_began;
        // A keeper of ours that was started again is in the same container as before.
        if another
            && self.keeper.separate_container()
            && let Some(life) = keeper::life(&self.wishes.config, keeper_began, clock::boot())
        {
            self.store.set_life(life);
        }
    }

    /// Runs the callback that a change of Postgres calls for.
    pub(in crate::agent) fn call_back(&mut self) {
        let restarting = self.local.restart.is_some();
        let callback = self.told.next(&self.local.postgres, restarting, self.local.bootstrapping);
        if let Some(callback) = callback {
            self.run_callback(callback);
        }
    }

    pub(in crate::agent) fn run_callback(&self, callback: Callback) {
        let role = match self.local.postgres.role {
            Role::Primary | Role::Promoted => self.wishes.primary_word,
            role @ (Role::Replica | Role::StandbyLeader | Role::Demoted | Role::Uninitialized) => role.word(),
        };
        match callbacks::command_line(&self.wishes.callbacks, callback, role, &self.setup.scope) {
            Ok(None) => {}
            Ok(Some(argv)) => {
                let runner = self.keeper.runner();
                tokio::spawn(async move {
                    let run = Run { argv, slot: Some(callback.slot().to_owned()), ..Run::default() };
                    match runner.run(run, SCRIPT_DEADLINE, |_| {}).await {
                        Ok(ended) if ended.success => debug!("callback {} has ended", callback.word()),
                        Ok(ended) => warn!("callback {} failed: {}", callback.word(), ended.summary()),
                        Err(e) => warn!("callback {} could not be run: {e}", callback.word()),
                    }
                });
            }
            Err(why) => warn!("{why}"),
        }
    }

    /// Looks, a moment after a reload, which parameters wait for a restart.
    pub(in crate::agent) fn begin_pending_restart(&self, wanted: crate::postgres::params::Effective) {
        let sql = self.postgres.sql.clone();
        self.begin(async move {
            tokio::time::sleep(AFTER_RELOAD).await;
            match sql.pending_restart(Some(&wanted)).await {
                Ok(reasons) => Outcome::PendingRestart(reasons),
                Err(e) => {
                    warn!("could not ask which parameters wait for a restart: {e}");
                    Outcome::Look
                }
            }
        });
    }

    pub(in crate::agent) fn pending_restart_found(&mut self, reasons: BTreeMap<String, (String, String)>) {
        for (name, (old, new)) in &reasons {
            if !self.pending_restart.contains_key(name) {
                info!("parameter {name} changes from {old} to {new} with the next restart of Postgres");
            }
        }
        self.local.postgres.pending_restart = !reasons.is_empty();
        self.pending_restart = reasons;
    }

    pub(in crate::agent) fn warn_once(&mut self, warnings: Vec<String>) {
        for warning in warnings {
            if self.postgres.warned.insert(warning.clone()) {
                warn!("{warning}");
            }
        }
    }

    /// Is a server there whose files may be rewritten?
    pub(in crate::agent) fn has_server(&self) -> bool {
        matches!(self.local.data, DataDir::Present { .. })
            && self.local.task.is_none()
            && self.local.postgres.state != PostgresState::CustomBootstrap
    }
}
