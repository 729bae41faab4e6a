//! IO of each effect, beside the loop. Every one ends in an answer; what can be given up is given up at its deadline, and
//! what cannot (a write to a file system that hangs) reports its end when it comes.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::keeper::{Link, Run};
use super::{Driver, clock, tasks};
use crate::dcs::Dcs;
use crate::keeper::protocol::Kind;
use crate::member::{Answer, Effect, Fail, Id, Input, Looked, Reload, Script, StartEnd};
use crate::model::{BootInstant, Callback, Compared, Fence, RewindState, Role, StandbyNames, StartRole, Timeline};
use crate::postgres::binaries::Binaries;
use crate::postgres::sql::{Sql, SqlError};
use crate::postgres::{Setup, bootstrap, conf, control, datadir, history, params, remote, rewind, start};

/// Why a start came to nothing that the keeper had carried out.
const ENDED_AT_ONCE: &str = "it ended as soon as it was started: its own last lines in this log say why";
/// Scripts and callbacks.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(300);

type Outcome = Result<Answer, Fail>;

/// What an effect may need; it outlives the step that began it.
#[derive(Clone)]
pub(super) struct Hands {
    pub store: Arc<dyn Dcs>,
    pub keeper: Link,
    pub peers: super::peers::PeerClient,
    pub setup: Arc<Setup>,
    pub binaries: Binaries,
    pub sql: Arc<Sql>,
    pub trials: Arc<super::trials::Trials>,
    pub wishes: Arc<super::settings::Wishes>,
    pub watchdog: super::watchdog::Watchdog,
}

/// Are the parameters of Postgres written, or compared with what is in force? Then the server was asked before, within the time
/// that the effect has.
fn needs_parameters(effect: &Effect) -> bool {
    matches!(effect, Effect::Start { .. } | Effect::Reconfigure { .. } | Effect::PendingRestart | Effect::EndBootstrap)
}

/// Can an effect be given up by dropping what works on it?
fn can_be_dropped(effect: &Effect) -> bool {
    match effect {
        // File systems answer when they answer.
        Effect::Start { .. }
        | Effect::Promote { .. }
        | Effect::Reconfigure { .. }
        | Effect::Look
        | Effect::ReadHistory { .. }
        | Effect::FeedWatchdog(_)
        | Effect::DisarmWatchdog
        | Effect::LookAtWatchdog
        | Effect::SaveFiles
        | Effect::EndBootstrap
        | Effect::KeepPublished { .. } => false,
        // The store's client and the keeper's have deadlines of their own, and say what became of it.
        Effect::ReadLeader
        | Effect::ReadConfig
        | Effect::ReadSync
        | Effect::WriteLeader(_)
        | Effect::ReadPod { .. }
        | Effect::WriteStore(_)
        | Effect::Publish(_)
        | Effect::StripLabels
        | Effect::Permit { .. }
        | Effect::Stop { .. } => false,
        Effect::AskPeers { .. }
        | Effect::AskFailsafe { .. }
        | Effect::Script(_)
        | Effect::Task(_)
        | Effect::Probe
        | Effect::Compare { .. }
        | Effect::Checkpoint
        | Effect::SyncSlots { .. }
        | Effect::PendingRestart
        | Effect::Cancel(_)
        | Effect::Configure { .. }
        | Effect::Callback { .. }
        | Effect::Answer { .. }
        | Effect::Exit { .. } => true,
    }
}

impl Driver {
    pub(super) fn hands(&self) -> Hands {
        Hands {
            store: self.store.clone(),
            keeper: self.keeper.link(),
            peers: self.peers.clone(),
            setup: self.setup.clone(),
            binaries: self.binaries.clone(),
            sql: self.sql.clone(),
            trials: self.trials.clone(),
            wishes: self.wishes.clone(),
            watchdog: self.watchdog.clone(),
        }
    }

    /// Begins an effect; its answer comes back as an input.
    pub(super) fn perform(&mut self, id: Id, deadline: BootInstant, not_after: BootInstant, effect: Effect) {
        let hands = self.hands();
        let answers = self.answer.clone();
        let droppable = can_be_dropped(&effect);
        let cancel = CancellationToken::new();
        self.running.insert(id, cancel.clone());
        let progress = self.answer.clone();
        tokio::spawn(async move {
            let hands = if needs_parameters(&effect) { hands.judged().await } else { hands };
            let input = if clock::boot() > not_after {
                Input::Reply { id, answer: Err(Fail::TooLate) }
            } else if droppable {
                let left = clock::boot().until(deadline);
                tokio::select! {
                    answer = hands.work(id, effect, progress) => Input::Reply { id, answer },
                    () = cancel.cancelled() => Input::Reply { id, answer: Err(Fail::Interrupted) },
                    () = tokio::time::sleep(left) => Input::Ended(id),
                }
            } else {
                Input::Reply { id, answer: hands.work(id, effect, progress).await }
            };
            // The loop is gone when nobody receives: the process is ending.
            drop(answers.send(input).await);
        });
    }

    /// Runs a callback; nobody waits for it.
    pub(super) fn run_callback(&self, callback: Callback, role: Role) {
        let role = match role {
            Role::Primary | Role::Promoted => self.wishes.primary_word,
            role @ (Role::Replica | Role::StandbyLeader | Role::Demoted | Role::Uninitialized) => role.word(),
        };
        let argv = match super::configure::callback_line(&self.wishes.callbacks, callback, role, &self.setup.scope) {
            Ok(Some(argv)) => argv,
            Ok(None) => return,
            Err(why) => return warn!("{why}"),
        };
        let keeper = self.keeper.link();
        tokio::spawn(async move {
            let (slot, kind) = (Some(callback.slot().to_owned()), Kind::Callback);
            let run = Run { argv, slot, kind, ..Run::default() };
            match keeper.run(run, SCRIPT_DEADLINE, |_| {}).await {
                Ok(ended) if ended.success => debug!("callback {} has ended", callback.word()),
                Ok(ended) => warn!("callback {} failed: {}", callback.word(), ended.summary()),
                Err(e) => warn!("callback {} could not be run: {e}", callback.word()),
            }
        });
    }
}

impl Hands {
    async fn work(self, id: Id, effect: Effect, progress: tokio::sync::mpsc::Sender<Input>) -> Outcome {
        match effect {
            Effect::ReadLeader
            | Effect::ReadConfig
            | Effect::ReadSync
            | Effect::WriteLeader(_)
            | Effect::ReadPod { .. }
            | Effect::WriteStore(_)
            | Effect::Publish(_)
            | Effect::StripLabels => Ok(self.store(effect).await),
            Effect::AskFailsafe { members } => {
                Ok(Answer::Failsafe(self.peers.ask_to_leave(&members, &self.asks_for_the_lock()).await))
            }
            Effect::AskPeers { members } => Ok(Answer::Peers(self.peers.ask(&members).await)),
            Effect::Permit { permission, evidence, note } => {
                kept(self.keeper.permit(permission, evidence, note.as_ref()).await)
            }
            Effect::Stop { mode } => kept(self.keeper.stop(mode).await),
            Effect::Promote { renewal, claim } => self.promote(renewal, claim).await,
            Effect::Start { role, upstream, names, first_custom, renewal } => {
                let files = start::Files { role, upstream, names };
                self.start(files, first_custom, renewal).await
            }
            Effect::Script(script) => self.script(script).await,
            Effect::Task(kind) => Ok(Answer::Task(tasks::run(self, id, kind, progress).await)),
            Effect::Probe => Ok(Answer::Looked(self.probe().await)),
            Effect::Look => self.look().await,
            Effect::Compare { leader, conn_url } => self.compare(&leader, &conn_url).await,
            Effect::Checkpoint => sql(self.sql.checkpoint(Duration::from_secs(600)).await.map(|()| Answer::Done)),
            Effect::SyncSlots { orders } => sql(self.sql.sync_slots(&orders).await.map(Answer::Slots)),
            Effect::PendingRestart => self.pending_restart().await,
            Effect::ReadHistory { timeline, previous } => self.history(timeline, previous).await,
            Effect::Reconfigure { role, upstream, names, reload } => {
                self.reconfigure(start::Files { role, upstream, names }, reload).await
            }
            Effect::FeedWatchdog(feed) => {
                let place = super::settings::watchdog(&self.wishes.config);
                self.watchdog.feed(place, feed).await.map(Answer::Fed).map_err(Fail::Refused)
            }
            Effect::DisarmWatchdog => {
                let place = super::settings::watchdog(&self.wishes.config);
                let end = self.watchdog.disarm(place).await;
                end.map(|(armed, warning)| Answer::Disarmed { armed, warning }).map_err(Fail::Refused)
            }
            Effect::LookAtWatchdog => {
                self.files(|h| super::watchdog::look(&super::settings::watchdog(&h.wishes.config))).await
            }
            Effect::SaveFiles => self.files(|h| conf::save_backups(&h.setup).map_err(|e| e.to_string())).await,
            Effect::EndBootstrap => self.files(end_bootstrap).await,
            Effect::KeepPublished { system_id } => {
                let setup = self.setup.clone();
                let kept =
                    blocking(move || datadir::unmark_if_initialized(&setup, &system_id).map_err(|e| e.to_string()));
                let kept = kept.await.map_err(Fail::Refused)?;
                if kept {
                    info!(
                        "the data directory was initialized and published by an earlier life of this pod: keeping it"
                    );
                }
                Ok(Answer::Published(kept))
            }
            Effect::Cancel(_)
            | Effect::Configure { .. }
            | Effect::Callback { .. }
            | Effect::Answer { .. }
            | Effect::Exit { .. } => Ok(Answer::Done),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "only effects on the store come here; the last is the label")]
    async fn store(&self, effect: Effect) -> Answer {
        match effect {
            Effect::ReadLeader => Answer::Leader(self.store.read_leader().await.map(|l| l.map(Box::new))),
            Effect::ReadConfig => Answer::Config(self.store.read_config().await),
            Effect::ReadSync => Answer::Config(self.store.read_sync().await),
            Effect::WriteLeader(write) => Answer::LeaderWritten(self.store.write_leader(*write).await),
            Effect::ReadPod { name } => Answer::Pod(self.store.read_pod(name).await),
            Effect::WriteStore(write) => Answer::Written(self.store.write(write).await),
            Effect::Publish(status) => Answer::Written(self.store.publish_member(*status).await),
            _ => Answer::Stripped(self.store.strip_leader_label().await),
        }
    }

    /// File work, in a thread of its own.
    async fn files(self, work: impl FnOnce(&Hands) -> Result<(), String> + Send + 'static) -> Outcome {
        match blocking(move || work(&self)).await {
            Ok(()) => Ok(Answer::Done),
            Err(why) => Err(Fail::Refused(why)),
        }
    }

    async fn start(self, files: start::Files, first_custom: bool, renewal: BootInstant) -> Outcome {
        let (hands, role) = (self.clone(), files.role);
        let prepared = blocking(move || {
            if first_custom {
                start::prepare_after_custom_bootstrap(&hands.setup, &hands.binaries)
            } else {
                start::prepare(&hands.setup, &hands.binaries, &files)
            }
        });
        let spec = match prepared.await {
            Ok(spec) => spec,
            Err(why) => return Ok(Answer::Started(StartEnd::NotPrepared(why))),
        };
        for warning in &spec.warnings {
            warn!("{warning}");
        }
        let locks = start::socket_locks(&self.setup);
        let data_dir = self.setup.data_dir.to_string_lossy().into_owned();
        match self.keeper.start(role, &spec, data_dir, renewal, locks).await {
            Ok(()) => {
                let fence = match self.keeper.running().await {
                    Ok(Some((_, fence))) => fence,
                    Ok(None) => return Err(Fail::Refused(ENDED_AT_ONCE.to_owned())),
                    Err(_) => Fence::Partial,
                };
                let setup = self.setup.clone();
                let forget = move || datadir::forget_removal(&setup).map_err(|e| e.to_string());
                if let Err(why) = blocking(forget).await {
                    warn!("the mark of a removal that never began stays beside the data directory: {why}");
                }
                Ok(Answer::Started(StartEnd::Started { pending: spec.pending_restart, fence }))
            }
            // What the keeper has running decides: an order whose answer was lost may have been carried out.
            Err(fail @ Fail::Refused(_)) => match self.keeper.running().await {
                Ok(Some((running, fence))) => Ok(Answer::Started(StartEnd::Running(running, fence))),
                Ok(None) | Err(_) => Err(fail),
            },
            Err(fail) => Err(fail),
        }
    }

    /// The gaps below the claimed number are filled first: Postgres takes the number behind the last history file it finds
    /// without a gap. Written to the running standby, whose own timeline they do not concern.
    async fn promote(self, renewal: BootInstant, claim: Option<Timeline>) -> Outcome {
        if let Some(claim) = claim {
            let probe = self.sql.probe(clock::boot()).await.map_err(|e| Fail::Refused(e.to_string()))?;
            let dir = self.setup.data_dir.clone();
            let written = blocking(move || {
                let own = history::file_name(probe.timeline);
                let ancestors = fs_err::read_to_string(dir.join("pg_wal").join(own)).unwrap_or_default();
                let present = history::present(&dir);
                let files = history::placeholders(probe.timeline, &ancestors, probe.replayed, claim, &present);
                history::write_placeholders(&dir, &files).map_err(|e| format!("write placeholders of timelines: {e}"))
            });
            written.await.map_err(Fail::Refused)?;
        }
        kept(self.keeper.promote(renewal).await)
    }

    async fn script(&self, script: Script) -> Outcome {
        let (key, command) = match script {
            Script::PrePromote => ("postgresql.pre_promote", &self.wishes.pre_promote),
            Script::BeforeStop => ("postgresql.before_stop", &self.wishes.before_stop),
        };
        let Some(command) = command else { return Ok(Answer::Script(Ok(()))) };
        let argv = match bootstrap::split(key, command) {
            Ok(argv) => argv,
            Err(why) => return Ok(Answer::Script(Err(why))),
        };
        let ended = self.keeper.run(Run { argv, ..Run::default() }, SCRIPT_DEADLINE, |_| {}).await;
        Ok(Answer::Script(ended.and_then(|e| if e.success { Ok(()) } else { Err(e.summary()) })))
    }

    /// Who asks to be left the lock.
    fn asks_for_the_lock(&self) -> serde_json::Value {
        let (name, conn_url) = (self.setup.name.as_str(), self.setup.conn_url());
        serde_json::json!({"name": name, "conn_url": conn_url, "api_url": self.wishes.api_url})
    }

    async fn probe(&self) -> Looked {
        match self.sql.probe(clock::boot()).await {
            Ok(mut probe) => {
                if probe.in_recovery && probe.replay_paused {
                    probe.blocked = self.blocked().await;
                }
                Looked::Answer(probe)
            }
            Err(SqlError::Refused(_)) if self.sql.has_ended() => Looked::Gone,
            Err(SqlError::Refused(_)) => Looked::Nobody,
            Err(SqlError::StartingUp(_)) => Looked::NotReady,
            Err(e) if e.refuses_login() => Looked::LoginRefused(e.to_string()),
            Err(e) => {
                debug!("monitoring query: {e}");
                Looked::Silent
            }
        }
    }

    /// Why PostgreSQL itself keeps replay from going on; `None` where a person has paused it.
    async fn blocked(&self) -> Option<String> {
        let running = self.sql.limits().await.ok()?;
        let dir = self.setup.data_dir.clone();
        let control = blocking(move || control::read_file(&dir).map_err(|e| e.to_string())).await.ok()?;
        control::too_low(&control, &running)
    }

    async fn look(self) -> Outcome {
        let hands = self.clone();
        let looked = blocking(move || {
            let data = datadir::inspect(&hands.setup);
            Ok((data, history::newest(&hands.setup.data_dir)))
        });
        let (data, newest_history) = looked.await.map_err(Fail::Refused)?;
        Ok(Answer::Data { data, newest_history })
    }

    async fn compare(&self, leader: &crate::model::MemberName, conn_url: &str) -> Outcome {
        let theirs = match remote::timeline_of(&self.setup, conn_url).await {
            Ok(theirs) => theirs,
            Err(e) => return Err(Fail::Unreachable(format!("compare timelines with {leader}: {e}"))),
        };
        let probe = self.sql.probe(clock::boot()).await.ok();
        let mine = rewind::local_end(&self.setup.data_dir, probe.as_ref());
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
        let about = Compared { leader: leader.clone(), timeline: theirs.timeline };
        Ok(Answer::Compared(match answer {
            rewind::Divergence::Diverged => Some(RewindState::Need(about)),
            rewind::Divergence::Same => Some(RewindState::NotNeeded(about)),
            rewind::Divergence::Undecided => None,
        }))
    }

    async fn pending_restart(&self) -> Outcome {
        let hands = self.clone();
        let wanted = blocking(move || {
            let standby = hands.setup.data_dir.join("standby.signal").exists();
            let control = standby.then(|| control::read_file(&hands.setup.data_dir).ok()).flatten();
            Ok(params::effective(&hands.setup, control.as_ref()))
        });
        let wanted = wanted.await.map_err(Fail::Refused)?;
        sql(self.sql.pending_restart(Some(&wanted)).await.map(Answer::Pending))
    }

    async fn history(self, timeline: crate::model::Timeline, previous: Vec<crate::model::HistoryRow>) -> Outcome {
        let keep = self.wishes.dynamic.max_timelines_history;
        let keep = usize::try_from(keep).unwrap_or(0);
        let rows = blocking(move || {
            let me = self.setup.name.as_str();
            Ok(history::local_rows(&self.setup.data_dir, timeline, &previous, me, keep, clock::iso))
        });
        Ok(Answer::History(rows.await.map_err(Fail::Refused)?))
    }

    async fn reconfigure(self, files: start::Files, reload: Reload) -> Outcome {
        let hands = self.clone();
        let named = files.role == StartRole::Primary && files.names != StandbyNames::AsConfigured;
        let rewritten = blocking(move || start::rewrite(&hands.setup, &hands.binaries, &files));
        let rewritten = rewritten.await.map_err(Fail::Refused)?;
        for warning in &rewritten.effective.warnings {
            warn!("{warning}");
        }
        let reloads = match reload {
            Reload::Always => true,
            Reload::IfChanged => rewritten.changed.any(),
            Reload::Never => false,
        };
        if reloads {
            self.keeper.hup().await?;
            if named && let Err(e) = self.sql.stir().await {
                debug!("a transaction for the standbys to report on: {e}");
            }
        }
        Ok(Answer::Rewritten { reloaded: reloads })
    }
}

fn end_bootstrap(hands: &Hands) -> Result<(), String> {
    // A copy of another cluster was made by no such method, and stays a standby.
    if hands.setup.bootstrap_method.is_some() && hands.setup.standby_of.is_none() {
        // What changed takes effect with the reload after it.
        drop(start::leave_custom_bootstrap(&hands.setup, &hands.binaries)?);
    }
    bootstrap::finished(&hands.setup).map_err(|e| e.to_string())
}

fn kept(result: Result<(), Fail>) -> Outcome {
    result.map(|()| Answer::Kept)
}

fn sql(result: Result<Answer, SqlError>) -> Outcome {
    result.map_err(|e| Fail::Unreachable(e.to_string()))
}

/// Runs file work in a thread of its own and waits for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(tokio::task::spawn_blocking(work));
    match done.await {
        Ok(result) => result,
        Err(e) => Err(e.to_string()),
    }
}
