//! The long tasks: initdb or a custom bootstrap, accounts and post_bootstrap, copies, pg_rewind, single-user recovery,
//! removal. Run by the keeper; a task that is dropped ends its program.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::keeper::{Run, RunEnded};
use super::perform::{Hands, blocking};
use crate::keeper::protocol::Kind;
use crate::member::{Id, Input};
use crate::model::{TaskKind, TaskOutcome};
use crate::postgres::replica::{self, BASEBACKUP_ATTEMPTS, BASEBACKUP_PAUSE};
use crate::postgres::{Command, ReplicaMethod, bootstrap, datadir, remote, rewind};

/// Nothing of ours runs longer than this; a copy of a large cluster may take days.
const TASK_DEADLINE: Duration = Duration::from_secs(14 * 24 * 3600);
/// pg_rewind fetches missing WAL at most this often before it gives up.
const REWIND_FETCHES: u32 = 64;
/// A leader's checkpoint before pg_rewind.
const LEADER_CHECKPOINT: Duration = Duration::from_secs(300);

/// What a task works with.
struct Work {
    hands: Hands,
    id: Id,
    progress: mpsc::Sender<Input>,
}

/// Runs one task to its end and says what may be done next.
pub(super) async fn run(hands: Hands, id: Id, kind: TaskKind, progress: mpsc::Sender<Input>) -> TaskOutcome {
    let work = Work { hands, id, progress };
    match kind {
        TaskKind::Bootstrap => ended(work.bootstrap().await),
        TaskKind::PostBootstrap => ended(work.post_bootstrap().await),
        TaskKind::CreateReplica { conn_url, basebackup_only, .. } => {
            ended(work.create_replica(conn_url.as_deref(), basebackup_only).await)
        }
        TaskKind::Rewind { from, conn_url, .. } => work.rewind(from.as_str(), &conn_url).await,
        TaskKind::CrashRecovery => ended(work.crash_recovery().await),
        TaskKind::Remove { keep_as_failed, verify, .. } => work.remove(keep_as_failed, verify.as_deref()).await,
    }
}

/// Why a program did not do its work.
enum Tool {
    /// It was run, and says so.
    Failed(String),
    /// How it ended is not known: the keeper was lost, or never got to run it.
    Unheard(String),
}

/// What went wrong before any program was run, in words.
impl From<String> for Tool {
    fn from(why: String) -> Tool {
        Tool::Failed(why)
    }
}

impl Tool {
    /// The same, and what was wanted.
    fn during(self, what: &str) -> Tool {
        match self {
            Tool::Failed(why) => Tool::Failed(format!("{what}: {why}")),
            Tool::Unheard(why) => Tool::Unheard(format!("{what}: {why}")),
        }
    }
}

/// A task without a leader to verify.
fn ended(result: Result<(), Tool>) -> TaskOutcome {
    match result {
        Ok(()) => TaskOutcome::Done,
        Err(Tool::Failed(why)) => TaskOutcome::Failed(why),
        Err(Tool::Unheard(why)) => TaskOutcome::Interrupted(why),
    }
}

impl Work {
    async fn run(&self, kind: Kind, command: Command) -> Result<RunEnded, String> {
        self.run_as("", kind, command).await
    }

    /// The same, with a word before each line of its output in the log.
    async fn run_as(&self, word: &'static str, kind: Kind, command: Command) -> Result<RunEnded, String> {
        let (progress, id) = (self.progress.clone(), self.id);
        let cleanup = command.cleanup.clone();
        let data_dir =
            self.works_on_data(&command.argv).then(|| self.hands.setup.data_dir.to_string_lossy().into_owned());
        let run = Run { argv: command.argv, env: command.env, kind, data_dir, ..Run::default() };
        let ended = self
            .hands
            .keeper
            .run(run, TASK_DEADLINE, move |line| {
                if let Some(percent) = replica::progress(line) {
                    // A full queue only means that a newer percentage comes soon.
                    drop(progress.try_send(Input::Progress { id, text: percent }));
                } else if !line.trim().is_empty() {
                    info!("{word}{}", line.trim_end());
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
        ["pg_rewind", "postgres"].iter().any(|tool| program == self.hands.binaries.path(tool))
    }

    async fn must(&self, kind: Kind, command: Command) -> Result<(), Tool> {
        let program = command.argv.first().cloned().unwrap_or_default();
        let ended = self.run(kind, command).await.map_err(Tool::Unheard)?;
        if ended.success { Ok(()) } else { Err(Tool::Failed(format!("{program}: {}", ended.summary()))) }
    }

    /// Removes the data directory with the targets of its links. A program of the keeper does it: it may take long, can be
    /// ended, and never runs beside another one that works there.
    async fn clear(&self) -> Result<(), Tool> {
        let setup = self.hands.setup.clone();
        let wrong = |e: std::io::Error| format!("remove the data directory: {e}");
        let Some(dir) = blocking(move || datadir::begin_removal(&setup).map_err(wrong)).await? else { return Ok(()) };
        let dir = dir.to_string_lossy().into_owned();
        self.must(Kind::Removal, Command { argv: vec![dir], ..Command::default() })
            .await
            .map_err(|e| e.during("remove the data directory"))?;
        let setup = self.hands.setup.clone();
        Ok(blocking(move || datadir::end_removal(&setup).map_err(wrong)).await?)
    }

    async fn bootstrap(&self) -> Result<(), Tool> {
        let custom = bootstrap::custom_command(&self.hands.setup)?;
        let what = self.hands.setup.bootstrap_method.as_ref().map(|m| format!("bootstrap.{}.command", m.name));
        let command = match custom {
            Some(custom) => custom,
            None => bootstrap::initdb_command(&self.hands.setup, &self.hands.binaries)?,
        };
        let filled = self.must(Kind::Fill, command).await;
        filled.map_err(|e| what.iter().fold(e, |e, what| e.during(what)))?;
        Ok(bootstrap::after_method(&self.hands.setup).map_err(|e| format!("configuration of the new cluster: {e}"))?)
    }

    async fn post_bootstrap(&self) -> Result<(), Tool> {
        // From here on nobody goes on with what an earlier life has begun.
        datadir::mark(&self.hands.setup, datadir::Work::Bootstrap)
            .map_err(|e| format!("write the bootstrap marker beside PGDATA: {e}"))?;
        bootstrap::set_superuser(&self.hands.setup).await.map_err(|e| format!("set the superuser's password: {e}"))?;
        if let Some(script) = bootstrap::post_bootstrap_command(&self.hands.setup, self.hands.binaries.major)? {
            self.must(Kind::Tool, script).await.map_err(|e| e.during("bootstrap.post_bootstrap"))?;
        }
        let accounts = bootstrap::create_accounts(&self.hands.setup).await;
        Ok(accounts.map_err(|e| format!("create the replication account: {e}"))?)
    }

    async fn create_replica(&self, conn_url: Option<&str>, from_leader: bool) -> Result<(), Tool> {
        let mut why = "no method of postgresql.create_replica_methods can be used without a source".to_owned();
        for method in replica::methods(&self.hands.setup, conn_url, from_leader) {
            let attempts = if method == ReplicaMethod::Basebackup { BASEBACKUP_ATTEMPTS } else { 1 };
            for attempt in 1..=attempts {
                if replica::clears_data(&method) {
                    self.clear().await?;
                }
                let command = replica::prepare(&self.hands.setup, &self.hands.binaries, &method, conn_url)?;
                match self.must(Kind::Fill, command).await {
                    Ok(()) => {
                        return Ok(replica::finished(&self.hands.setup).map_err(|e| format!("finish the copy: {e}"))?);
                    }
                    Err(Tool::Failed(e)) => why = e,
                    // It may run on: what it fills is not touched.
                    Err(unheard) => return Err(unheard),
                }
                if attempt < attempts {
                    warn!("{why}; trying again");
                    tokio::time::sleep(BASEBACKUP_PAUSE).await;
                }
            }
        }
        // Even with `keep_data`: what a method left is nothing to go on with.
        if let Err(Tool::Failed(e) | Tool::Unheard(e)) = self.clear().await {
            warn!("could not clear the data directory after a failed copy: {e}");
        }
        Err(Tool::Failed(why))
    }

    /// First without changes, because what fails then has touched nothing; then marked, and in earnest.
    async fn rewind(&self, from: &str, conn_url: &str) -> TaskOutcome {
        let leader = match remote::primary_answers(&self.hands.setup, conn_url).await {
            Ok(leader) => leader,
            Err(why) => return TaskOutcome::LeaderGone(why),
        };
        if leader.checkpoint_timeline < leader.timeline
            && let Err(e) = remote::checkpoint(&self.hands.setup, conn_url, LEADER_CHECKPOINT).await
        {
            return TaskOutcome::Interrupted(format!("checkpoint on the leader before pg_rewind: {e}"));
        }
        for rehearsal in [true, false] {
            if !rehearsal && let Err(e) = datadir::mark_rewind(&self.hands.setup, from) {
                return TaskOutcome::Interrupted(format!("write the mark of pg_rewind beside PGDATA: {e}"));
            }
            let why = match self.pg_rewind(conn_url, rehearsal).await {
                Ok(()) => continue,
                Err(why) => why,
            };
            return match (why, remote::primary_answers(&self.hands.setup, conn_url).await) {
                (Tool::Unheard(why), _) => TaskOutcome::Interrupted(why),
                (Tool::Failed(why), Ok(_)) => TaskOutcome::Failed(why),
                (Tool::Failed(why), Err(gone)) => TaskOutcome::LeaderGone(format!("{why}; {gone}")),
            };
        }
        match datadir::unmark_rewind(&self.hands.setup) {
            Ok(()) => TaskOutcome::Done,
            Err(e) => TaskOutcome::Interrupted(format!("remove the mark of pg_rewind: {e}")),
        }
    }

    /// Runs pg_rewind; WAL that it misses is fetched with restore_command.
    async fn pg_rewind(&self, conn_url: &str, rehearsal: bool) -> Result<(), Tool> {
        let mut fetched = String::new();
        for _ in 0..REWIND_FETCHES {
            let command =
                rewind::command(&self.hands.setup, &self.hands.binaries, conn_url, rehearsal).map_err(Tool::Failed)?;
            let word = if rehearsal { "dry run: " } else { "" };
            let ended = self.run_as(word, Kind::Rewind, command).await.map_err(Tool::Unheard)?;
            if ended.success {
                return Ok(());
            }
            let missing = rewind::missing_wal(&ended.output).filter(|m| *m != fetched);
            let fetch = missing.as_ref().and_then(|m| rewind::fetch_wal_command(&self.hands.setup, m));
            let (Some(segment), Some(fetch)) = (missing, fetch) else {
                return Err(Tool::Failed(format!("pg_rewind: {}", ended.summary())));
            };
            info!("pg_rewind misses WAL {segment}: fetching it with restore_command");
            let restored = self.run(Kind::Tool, fetch).await.map_err(Tool::Unheard)?;
            if !restored.success {
                return Err(Tool::Failed(format!("fetch WAL {segment} for pg_rewind: {}", restored.summary())));
            }
            fetched = segment;
        }
        Err(Tool::Failed(format!("pg_rewind missed WAL {REWIND_FETCHES} times")))
    }

    /// The directory goes, or is kept as `.failed`. On behalf of a leader only if that answers as a primary just now.
    async fn remove(&self, keep_as_failed: bool, verify: Option<&str>) -> TaskOutcome {
        if let Some(conn_url) = verify
            && let Err(why) = remote::primary_answers(&self.hands.setup, conn_url).await
        {
            return TaskOutcome::LeaderGone(why);
        }
        if !keep_as_failed {
            return ended(self.clear().await);
        }
        if self.hands.keeper.works_on_data().await {
            return TaskOutcome::Interrupted("a program still works on the data directory".to_owned());
        }
        let setup = self.hands.setup.clone();
        let moved = blocking(move || {
            datadir::move_to_failed(&setup)
                .map_err(|e| format!("move the data directory {} aside: {e}", setup.data_dir.display()))
        });
        ended(moved.await.map(|_| ()).map_err(Tool::from))
    }

    async fn crash_recovery(&self) -> Result<(), Tool> {
        let command = rewind::crash_recovery_command(&self.hands.setup, &self.hands.binaries)
            .map_err(|e| format!("prepare single-user recovery: {e}"))?;
        self.must(Kind::Tool, command).await
    }
}
