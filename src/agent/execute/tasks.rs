//! The long tasks: initdb or a custom bootstrap, accounts and post_bootstrap, copies, pg_rewind, single-user recovery. One
//! at a time, run by the keeper, cancelled by dropping its run.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::super::keeper::{Run, RunEnded, Runner};
use super::super::{Agent, Outcome, clock, observe};
use super::Step;
use crate::model::TaskKind;
use crate::postgres::binaries::Binaries;
use crate::postgres::replica::{self, BASEBACKUP_ATTEMPTS, BASEBACKUP_PAUSE};
use crate::postgres::{Command, ReplicaMethod, Setup, bootstrap, remote, rewind};

/// Nothing of ours runs longer than this; a copy of a large cluster may take days.
const TASK_DEADLINE: Duration = Duration::from_secs(14 * 24 * 3600);
/// pg_rewind fetches missing WAL at most this often before it gives up.
const REWIND_FETCHES: u32 = 64;
/// A leader's checkpoint before pg_rewind.
const LEADER_CHECKPOINT: Duration = Duration::from_secs(300);

/// What a task works with; it outlives the tick that began it.
struct Work {
    setup: Arc<Setup>,
    binaries: Binaries,
    runner: Runner,
    progress: mpsc::Sender<Outcome>,
}

impl Agent {
    pub(super) fn begin_task(&mut self, kind: TaskKind) -> Step {
        if self.local.task.is_some() {
            return Step::Failed("two long tasks at once".to_owned());
        }
        let now = clock::boot();
        info!("{}", kind.word());
        observe::task_state(&mut self.local, &kind, self.setup.bootstrap_method.is_some(), now);
        self.set_task(kind.clone(), now);
        let from_leader = std::mem::take(&mut self.flags.reinit_from_leader);
        let work = Work {
            setup: self.setup.clone(),
            binaries: self.postgres.binaries.clone(),
            runner: self.keeper.runner(),
            progress: self.outcome.clone(),
        };
        let outcome = self.outcome.clone();
        let task = tokio::spawn(async move {
            let result = match &kind {
                TaskKind::Bootstrap => work.bootstrap().await,
                TaskKind::PostBootstrap => work.post_bootstrap().await,
                TaskKind::CreateReplica { conn_url, .. } => work.create_replica(conn_url.as_deref(), from_leader).await,
                TaskKind::Rewind { conn_url, .. } => work.rewind(conn_url).await,
                TaskKind::CrashRecovery => work.crash_recovery().await,
            };
            // The loop is gone when nobody receives: the process is ending.
            drop(outcome.send(Outcome::TaskEnded(kind, result)).await);
        });
        self.flags.task = Some(task.abort_handle());
        Step::Settled
    }

    /// Ends the long task; its programs are ended by the keeper when their run is dropped.
    pub(super) fn cancel_task(&mut self) {
        let (Some(handle), Some(task)) = (self.flags.task.take(), self.local.task.clone()) else { return };
        handle.abort();
        warn!("{}: cancelled", task.kind.word());
        self.task_ended(task.kind, Err("cancelled".to_owned()));
    }

    pub(in crate::agent) fn progress(&mut self, text: String) {
        if let Some(task) = &mut self.local.task {
            task.progress = Some(text);
        }
    }

    pub(in crate::agent) fn task_ended(&mut self, kind: TaskKind, result: Result<(), String>) {
        if self.local.task.as_ref().is_none_or(|t| t.kind != kind) {
            return;
        }
        let now = clock::boot();
        self.flags.task = None;
        match &result {
            Ok(()) => info!("{} has ended well", kind.word()),
            Err(why) => warn!("{} failed: {why}", kind.word()),
        }
        let custom = self.setup.bootstrap_method.is_some();
        observe::task_ended_state(&mut self.local, &kind, result.is_ok(), custom, now);
        if let TaskKind::Rewind { .. } = &kind {
            self.local.rewind = match &result {
                Ok(()) => crate::model::RewindState::Success,
                Err(why) => crate::model::RewindState::Failed(why.clone()),
            };
        }
        if let (TaskKind::CreateReplica { .. }, Ok(())) = (&kind, &result) {
            self.local.rewind = crate::model::RewindState::Initial;
            self.local.postgres.failed_starts = 0;
        }
        self.end_task(kind, now, result);
        self.look_at_data();
    }
}

impl Work {
    async fn run(&self, command: Command) -> Result<RunEnded, String> {
        let progress = self.progress.clone();
        let cleanup = command.cleanup.clone();
        let data_dir = self.works_on_data(&command.argv).then(|| self.setup.data_dir.to_string_lossy().into_owned());
        let run = Run { argv: command.argv, env: command.env, data_dir, ..Run::default() };
        let ended = self
            .runner
            .run(run, TASK_DEADLINE, move |line| {
                if let Some(percent) = replica::progress(line) {
                    // A full queue only means that a newer percentage comes soon.
                    drop(progress.try_send(Outcome::Progress(percent)));
                } else if !line.trim().is_empty() {
                    info!("{}", line.trim_end());
                }
            })
            .await;
        for file in cleanup {
            if let Err(e) = fs_err::remove_file(&file)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                warn!("{e}");
            }
        }
        ended
    }

    /// Does this program change an existing data directory? Then the keeper locks it meanwhile.
    fn works_on_data(&self, argv: &[String]) -> bool {
        let program = argv.first().map_or("", |p| p.as_str());
        ["pg_rewind", "postgres"].iter().any(|tool| program == self.binaries.path(tool))
    }

    async fn must(&self, command: Command) -> Result<(), String> {
        let program = command.argv.first().cloned().unwrap_or_default();
        let ended = self.run(command).await?;
        if ended.success { Ok(()) } else { Err(format!("{program}: {}", ended.summary())) }
    }

    async fn bootstrap(&self) -> Result<(), String> {
        let command = match bootstrap::custom_command(&self.setup)? {
            Some(custom) => custom,
            None => bootstrap::initdb_command(&self.setup, &self.binaries)?,
        };
        self.must(command).await?;
        bootstrap::after_method(&self.setup).map_err(|e| format!("configuration of the new cluster: {e}"))
    }

    async fn post_bootstrap(&self) -> Result<(), String> {
        bootstrap::set_superuser(&self.setup).await.map_err(|e| format!("set the superuser's password: {e}"))?;
        if let Some(script) = bootstrap::post_bootstrap_command(&self.setup, self.binaries.major)? {
            self.must(script).await.map_err(|e| format!("bootstrap.post_bootstrap: {e}"))?;
        }
        bootstrap::create_accounts(&self.setup).await.map_err(|e| format!("create the replication account: {e}"))
    }

    async fn create_replica(&self, conn_url: Option<&str>, from_leader: bool) -> Result<(), String> {
        let mut why = "no method of postgresql.create_replica_methods can be used without a source".to_owned();
        for method in replica::methods(&self.setup, conn_url.is_some(), from_leader) {
            let attempts = if method == ReplicaMethod::Basebackup { BASEBACKUP_ATTEMPTS } else { 1 };
            for attempt in 1..=attempts {
                let command = replica::prepare(&self.setup, &self.binaries, &method, conn_url)?;
                match self.must(command).await {
                    Ok(()) => return replica::finished(&self.setup).map_err(|e| format!("finish the copy: {e}")),
                    Err(e) => why = e,
                }
                if attempt < attempts {
                    warn!("{why}; trying again");
                    tokio::time::sleep(BASEBACKUP_PAUSE).await;
                }
            }
        }
        if let Err(e) = replica::failed(&self.setup) {
            warn!("could not clear the data directory after a failed copy: {e}");
        }
        Err(why)
    }

    async fn rewind(&self, conn_url: &str) -> Result<(), String> {
        let leader = remote::timeline_of(&self.setup, conn_url).await.map_err(|e| e.to_string())?;
        if leader.in_recovery {
            return Err("the leader is still in recovery".to_owned());
        }
        if leader.checkpoint_timeline < leader.timeline {
            remote::checkpoint(&self.setup, conn_url, LEADER_CHECKPOINT)
                .await
                .map_err(|e| format!("checkpoint on the leader before pg_rewind: {e}"))?;
        }
        let mut fetched = String::new();
        for _ in 0..REWIND_FETCHES {
            let ended = self.run(rewind::command(&self.setup, &self.binaries, conn_url)?).await?;
            if ended.success {
                return Ok(());
            }
            let missing = rewind::missing_wal(&ended.output).filter(|m| *m != fetched);
            let fetch = missing.as_ref().and_then(|m| rewind::fetch_wal_command(&self.setup, m));
            let (Some(segment), Some(fetch)) = (missing, fetch) else {
                return Err(format!("pg_rewind: {}", ended.summary()));
            };
            info!("pg_rewind misses WAL {segment}: fetching it with restore_command");
            self.must(fetch).await.map_err(|e| format!("fetch WAL {segment} for pg_rewind: {e}"))?;
            fetched = segment;
        }
        Err(format!("pg_rewind missed WAL {REWIND_FETCHES} times"))
    }

    async fn crash_recovery(&self) -> Result<(), String> {
        let command = rewind::crash_recovery_command(&self.setup, &self.binaries)
            .map_err(|e| format!("prepare single-user recovery: {e}"))?;
        self.must(command).await
    }
}
