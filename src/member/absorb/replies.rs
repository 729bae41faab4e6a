//! Every answer but the lease machine's: what it means depends on what its effect was for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::effect::{Effect, Id};
use super::super::flights::{About, Flight, Lane};
use super::super::input::{Answer, Fail, Looked, StartEnd};
use super::super::state::State;
use super::postgres;
use crate::model::{
    BootInstant, Callback, DataDir, HistoryRow, PeerRound, Permission, PostgresState, RewindState, SlotsNow,
    StoreWrite, TaskEnd, TaskKind, TaskOutcome, Upstream, WriteResult,
};
use crate::mutant::{self, Mutant};

/// Store writes that were refused are not tried again before.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// What a write was in conflict with shows with the next view, mostly within some ten milliseconds.
const CONFLICT_PAUSE: Duration = Duration::from_millis(250);
/// A comparison that could not be made is made again after this: nothing starts before the answer, or a standby runs
/// meanwhile.
const COMPARE_PAUSE: Duration = Duration::from_secs(1);
const COMPARE_PAUSE_RUNNING: Duration = Duration::from_secs(10);
/// After a reload Postgres takes a moment to read its files; then pending restarts are known.
const AFTER_RELOAD: Duration = Duration::from_secs(1);
/// A recovery of hours shows in the log that it moves, and does not fill it.
const RECOVERY_TOLD_AGAIN: Duration = Duration::from_secs(30);

impl State {
    pub(super) fn reply(&mut self, id: Id, answer: Result<Answer, Fail>) {
        if self.lease.knows(id) {
            return self.lease_reply(id, answer);
        }
        let Some(flight) = self.flights.end(id) else { return };
        if flight.late {
            // The member has gone on without it; that it has ended is all there is to learn. What it may have done shows
            // with the next look, but for a postmaster that runs now.
            if let (About::Start { role, .. }, Ok(Answer::Started(StartEnd::Started { .. }))) = (&flight.about, &answer)
            {
                self.found_running(*role, false);
                self.start_known(&answer);
            }
            self.look_soon();
            return;
        }
        self.answered(flight, answer);
    }

    /// What was given up as late has ended.
    pub(super) fn ended(&mut self, id: Id) {
        if let Some(flight) = self.flights.end(id)
            && !flight.late
        {
            self.answered(flight, Err(Fail::Interrupted));
        }
        self.look_soon();
    }

    /// The deadline of an effect has passed: it is late, not ended.
    pub(super) fn overdue(&mut self) {
        while let Some(flight) = self.flights.overdue(self.now.boot) {
            self.answered(flight, Err(Fail::Interrupted));
        }
    }

    fn answered(&mut self, flight: Flight, answer: Result<Answer, Fail>) {
        let Flight { about, sent, .. } = flight;
        match about {
            About::Permit { permission } => self.permitted(permission, sent, answer),
            About::Stop => self.stop_answered(sent, answer),
            About::Start { role, upstream, names, first_custom } => match answer {
                Err(Fail::Unreachable(why)) => self.unreachable(sent, &why),
                answer => {
                    self.names_written(names, matches!(answer, Ok(Answer::Started(StartEnd::Started { .. }))));
                    self.start_answered(role, upstream, first_custom, answer);
                }
            },
            About::Promote => self.promote_answered(sent, answer),
            About::Reconfigure { follow, names } => {
                self.names_written(names, answer.is_ok());
                self.reconfigured(follow, sent, answer);
            }
            About::Names(names) => self.named(names, sent, answer),
            About::Sync { acquisition } => self.sync_written(acquisition, &written(answer)),
            About::SyncRead => self.sync_read(sent, answer),
            About::PrePromote { acquisition } => self.pre_promoted(acquisition, answer),
            About::BeforeStop => self.before_stop_ended(answer),
            About::Task(kind) => self.task_answered(kind, answer),
            About::Claim => self.claimed(written(answer)),
            About::Store { what } => self.stored(what, &written(answer)),
            About::People { ticket, ok, conflict, conflict_text, failed } => {
                let (status, text) = match written(answer) {
                    WriteResult::Written(_) => (200, ok),
                    WriteResult::Conflict => (conflict, conflict_text.to_owned()),
                    WriteResult::Refused(why) | WriteResult::Unknown(why) => {
                        self.warn(format!("a request was not written: {why}"));
                        (failed, if failed == 503 { conflict_text.to_owned() } else { why })
                    }
                };
                self.tell(Effect::Answer { ticket, status, text });
            }
            About::Publish(status) => self.published(*status, &written(answer)),
            About::Strip => {
                if let Ok(Answer::Stripped(names)) = answer
                    && !names.is_empty()
                {
                    let names: Vec<_> = names.iter().map(|n| n.as_str()).collect();
                    self.info(format!("removed the leader label from {}", names.join(", ")));
                }
            }
            About::Failsafe => self.failsafe_answered(sent, answer),
            About::Peers { asked_at } => self.peers_answered(asked_at, answer),
            About::Config => self.config_read(sent, answer),
            About::ProofPod => self.pod_read(answer),
            About::ProofLeader { how } => self.proof_read(how, answer),
            About::Probe => self.looked(answer, sent),
            About::Look => self.data_looked(sent, answer),
            About::Compare => self.compared(answer),
            About::Checkpoint => self.checkpointed(answer),
            About::Slots => self.slots_synced(answer),
            About::Pending => self.pending_found(answer),
            About::History => self.history_read(answer),
            About::FeedWatchdog(evidence) => self.watchdog_fed(evidence, answer),
            About::DisarmWatchdog => self.watchdog_disarmed(answer),
            About::LookAtWatchdog => self.watchdog_looked(answer),
            About::SaveFiles => {
                if let Err(fail) = answer {
                    self.warn(format!("could not save copies of the configuration files: {}", fail.text()));
                }
            }
            About::EndBootstrap => self.bootstrap_ended(answer),
            About::KeepPublished => self.published_judged(answer),
            About::Configure => self.look_at_document_again(),
        }
    }

    fn permitted(&mut self, permission: Permission, sent: BootInstant, answer: Result<Answer, Fail>) {
        match answer {
            Ok(_) => {
                self.permission_stands(permission);
            }
            Err(Fail::Unreachable(why)) => self.unreachable(sent, &why),
            Err(Fail::Interrupted) => {
                self.failed("permit");
                self.warn("the keeper's answer to a permission is late");
            }
            Err(Fail::Refused(why) | Fail::NotNow(why) | Fail::InUse(why)) => {
                self.failed("permit");
                self.error(why);
            }
            Err(Fail::TooLate) => {}
        }
    }

    fn stop_answered(&mut self, sent: BootInstant, answer: Result<Answer, Fail>) {
        let Err(fail) = answer else { return };
        if let Fail::Unreachable(why) = &fail {
            self.unreachable(sent, why);
        }
        if self.local.postgres.alive {
            // Not stopping after all: the next decision orders it again.
            self.local.postgres.stopping = None;
            self.failed("stop");
            self.error(format!("could not stop Postgres: {}", fail.text()));
        }
    }

    fn reconfigured(&mut self, follow: Option<Upstream>, sent: BootInstant, answer: Result<Answer, Fail>) {
        match answer {
            Ok(Answer::Rewritten { reloaded }) => {
                if let Some(upstream) = follow {
                    let whom = match &upstream {
                        Upstream::Member { name, .. } => name.as_str().to_owned(),
                        Upstream::Remote { conn_url, .. } => conn_url.clone(),
                        Upstream::Nobody => "nobody".to_owned(),
                    };
                    self.info(format!("following {whom}"));
                    postgres::follows(&mut self.local.postgres, upstream, self.now.boot);
                    self.worked("follow");
                } else if reloaded {
                    self.info("Reloading PostgreSQL configuration.");
                    let role = self.local.postgres.role;
                    self.tell(Effect::Callback { callback: Callback::OnReload, role });
                    self.pending_at = Some(self.now.boot + AFTER_RELOAD);
                } else {
                    self.info("No PostgreSQL configuration items changed, nothing to reload.");
                }
            }
            Ok(_) => {}
            Err(fail) => {
                if let Fail::Unreachable(why) = &fail {
                    self.unreachable(sent, why);
                }
                if follow.is_some() {
                    // Its files may be written already, and read with the next reload: whom it follows is not known.
                    self.local.postgres.following = None;
                    self.failed("follow");
                }
                self.error(format!("could not change the configuration of Postgres: {}", fail.text()));
            }
        }
    }

    fn pre_promoted(&mut self, acquisition: Option<String>, answer: Result<Answer, Fail>) {
        if acquisition != self.acquisition() {
            return self.info("the pre-promote script of an earlier lock has ended");
        }
        let why = match answer {
            Ok(Answer::Script(Ok(()))) => {
                self.pre_promoted = Some(self.acquisition());
                return;
            }
            Ok(Answer::Script(Err(why))) => why,
            Ok(_) => "an answer of another kind".to_owned(),
            Err(fail) => fail.text().to_owned(),
        };
        self.warn(format!("Promotion cancelled because the pre-promote script failed: {why}"));
        self.local.backoff_until = Some(self.now.boot + self.in_force.settings.ttl);
    }

    /// The acquisition my lease belongs to: what was prepared for one says nothing for another.
    pub(in crate::member) fn acquisition(&self) -> Option<String> {
        self.local.own.as_ref().and_then(|own| own.record.acquire_time.clone())
    }

    fn before_stop_ended(&mut self, answer: Result<Answer, Fail>) {
        match answer {
            Ok(Answer::Script(Ok(()))) => {}
            Ok(Answer::Script(Err(why))) => self.warn(format!("postgresql.before_stop failed: {why}")),
            Ok(_) => {}
            Err(fail) => self.warn(format!("postgresql.before_stop: {}", fail.text())),
        }
        if let Some(mode) = self.stop_after_script.take()
            && self.local.postgres.alive
        {
            self.send(Effect::Stop { mode }, About::Stop);
        }
    }

    fn task_answered(&mut self, kind: TaskKind, answer: Result<Answer, Fail>) {
        let now = self.now.boot;
        let result = match answer {
            Ok(Answer::Task(result)) => result,
            Ok(_) => TaskOutcome::Interrupted("an answer of another kind".to_owned()),
            Err(fail) => TaskOutcome::Interrupted(fail.text().to_owned()),
        };
        match &result {
            TaskOutcome::Done => self.info(format!("{} has ended well", kind.word())),
            TaskOutcome::LeaderGone(why) | TaskOutcome::Interrupted(why) => {
                self.warn(format!("{} came to nothing: {why}", kind.word()));
            }
            TaskOutcome::Failed(why) => self.warn(format!("{} failed: {why}", kind.word())),
        }
        let custom = self.in_force.custom_bootstrap;
        postgres::task_ended_state(&mut self.local, &kind, result.is_done(), custom, now);
        self.local.rewind = self.local.rewind.after_task(&kind, &result);
        if let (TaskKind::CreateReplica { .. }, TaskOutcome::Done) = (&kind, &result) {
            self.local.postgres.failed_starts = 0;
        }
        self.local.task = None;
        self.local.task_end = Some(TaskEnd { kind, at: now, result });
        self.look_soon();
    }

    fn claimed(&mut self, result: WriteResult) {
        self.local.store_write = false;
        match &result {
            WriteResult::Written(_) => {
                self.info("won the race to initialize the cluster");
                self.local.bootstrapping = true;
                self.local.bootstrap_failed = None;
                // An earlier life of this member has seen its method end well.
                let restored = self.local.data == DataDir::Restored;
                let done = TaskEnd { kind: TaskKind::Bootstrap, at: self.now.boot, result: TaskOutcome::Done };
                self.local.task_end = restored.then_some(done);
            }
            WriteResult::Conflict => {
                self.info("failed to acquire initialize lock");
                self.store_pause = self.now.boot + CONFLICT_PAUSE;
            }
            WriteResult::Refused(_) | WriteResult::Unknown(_) => self.stored("the initialize key", &result),
        }
    }

    fn stored(&mut self, what: &'static str, result: &WriteResult) {
        self.local.store_write = false;
        match result {
            WriteResult::Written(_) => self.info(format!("{what}: written")),
            WriteResult::Conflict => {
                self.info(format!("{what}: somebody else wrote meanwhile, looking again"));
                self.store_pause = self.now.boot + CONFLICT_PAUSE;
            }
            WriteResult::Refused(why) | WriteResult::Unknown(why) => {
                self.warn(format!("{what}: not written: {why}"));
                self.store_pause = self.now.boot + STORE_PAUSE;
            }
        }
    }

    fn peers_answered(&mut self, asked_at: BootInstant, answer: Result<Answer, Fail>) {
        self.local.asking = None;
        if let Ok(Answer::Peers(answers)) = answer {
            for (name, answer) in &answers {
                self.debug(format!("{name} answered {answer:?}"));
            }
            self.local.peers = Some(PeerRound { asked_at, answers });
        }
    }

    fn looked(&mut self, answer: Result<Answer, Fail>, sent: BootInstant) {
        let looked = match answer {
            Ok(Answer::Looked(looked)) => looked,
            Ok(_) | Err(_) => Looked::Silent,
        };
        // Stamped with its sending, whatever clock the answer came with.
        let looked = match looked {
            Looked::Answer(probe) => Looked::Answer(crate::model::Probe { at: sent, ..probe }),
            other @ (Looked::NotReady | Looked::Nobody | Looked::Gone | Looked::LoginRefused(_) | Looked::Silent) => {
                other
            }
        };
        if self.looks_for_strangers() {
            return self.met_stranger(&looked, sent);
        }
        let was = self.local.postgres.state.clone();
        postgres::probed(&mut self.local, looked, self.now.boot);
        if was != PostgresState::Running && self.local.postgres.state == PostgresState::Running {
            self.came_up();
        }
        self.judge_promotion();
        self.tell_recovery();
    }

    /// How far the recovery of a new cluster has come: it may take hours.
    fn tell_recovery(&mut self) {
        let probe = self.local.postgres.probe.as_ref().filter(|p| p.in_recovery && self.local.bootstrapping);
        let Some(replayed) = probe.map(|p| p.replayed) else { return };
        if self.recovery_told.is_none_or(|at| self.now.boot >= at + RECOVERY_TOLD_AGAIN) {
            self.info(format!("recovery has replayed WAL up to {replayed}"));
            self.recovery_told = Some(self.now.boot);
        }
    }

    /// After a promotion the timeline must be the one that was claimed with the lock.
    fn judge_promotion(&mut self) {
        let Some(now) = self.local.postgres.probe.as_ref().filter(|p| !p.in_recovery).map(|p| p.timeline) else {
            return;
        };
        if let Some((claim, _)) = self.promoted_to
            && now.0 != 0
            && now != claim
        {
            self.promoted_to = None;
            self.local.misnumbered = Some(format!("the promotion took timeline {now}, {claim} was claimed for it"));
        }
    }

    /// Postgres accepts connections after a start.
    fn came_up(&mut self) {
        self.info("Postgres is up");
        self.local.postgres.server_version = Some(self.in_force.server_version);
        if !self.local.bootstrapping {
            self.send(Effect::SaveFiles, About::SaveFiles);
        }
        self.look_soon();
    }

    fn data_looked(&mut self, sent: BootInstant, answer: Result<Answer, Fail>) {
        if sent < self.stale_since {
            // It may show the directory as it was before what made it stale.
            self.looked_at = BootInstant::default();
            return;
        }
        let answered = answer.is_ok();
        let (data, newest) = match answer {
            Ok(Answer::Data { data, newest_history }) => (data, Some(newest_history)),
            Ok(_) | Err(Fail::TooLate) => return,
            Err(fail) if self.local.postgres.alive => {
                return self.warn_once(format!("the data directory does not answer: {}", fail.text()));
            }
            Err(fail) => (DataDir::Unusable(format!("it does not answer: {}", fail.text())), None),
        };
        let data = match &data {
            DataDir::HalfRewound { control } if mutant::is(Mutant::HalfMadeIsWhole) => {
                DataDir::Present { control: control.clone(), standby_signal: true }
            }
            DataDir::HalfRewound { .. }
            | DataDir::Empty
            | DataDir::HalfMade
            | DataDir::Restored
            | DataDir::Present { .. }
            | DataDir::Unusable(_) => data,
        };
        self.local.data_stale = false;
        if let Some(newest) = newest {
            self.local.postgres.newest_history = newest;
        }
        postgres::data(&mut self.local, data);
        // A bootstrap that ended between the last write to the store and the removal of its mark is whole, also if another
        // pod did it: the store has its system identifier, others may have cloned it, and it must not be cleared as half-made.
        // While it runs, what follows is written beside it; once it has ended, its data is the cluster's or nobody's.
        let running = self.local.bootstrapping && self.local.postgres.alive;
        let marked =
            matches!(self.local.data, DataDir::HalfMade | DataDir::Restored | DataDir::Unusable(_)) && answered;
        if marked
            && !running
            && let Some(id) = self.cluster.initialize.system_id()
            && !self.not_published
        {
            // Until it is known whose data this is, nobody may clear it.
            let system_id = id.to_owned();
            self.local.data_stale = true;
            if self.rested("keep published") && !self.flights.busy(Lane::Files) {
                self.send(Effect::KeepPublished { system_id }, About::KeepPublished);
            }
        }
    }

    /// Is half-made data the published one? Only an answer says that it is not; a failure says nothing.
    fn published_judged(&mut self, answer: Result<Answer, Fail>) {
        match answer {
            Ok(Answer::Published(published)) => self.not_published = !published,
            Ok(_) => {}
            Err(fail) => {
                self.failed("keep published");
                self.warn_once(format!("cannot tell whose half-made data this is: {}", fail.text()));
            }
        }
        self.look_soon();
    }

    fn compared(&mut self, answer: Result<Answer, Fail>) {
        self.local.checking = false;
        match answer {
            Ok(Answer::Compared(Some(RewindState::Need(about)))) if mutant::is(Mutant::DivergenceIsDenied) => {
                self.local.rewind = RewindState::NotNeeded(about);
            }
            Ok(Answer::Compared(Some(state))) => {
                self.local.rewind_checked = Some(self.now.boot);
                self.local.compare_failed = None;
                self.local.rewind = state;
            }
            Ok(Answer::Compared(None)) => self.pause_comparing("divergence cannot be judged now"),
            Ok(_) => {}
            Err(fail) => self.pause_comparing(fail.text()),
        }
    }

    fn pause_comparing(&mut self, why: &str) {
        self.info(format!("{why}; looking again"));
        let pause = if self.local.postgres.alive { COMPARE_PAUSE_RUNNING } else { COMPARE_PAUSE };
        self.compare_pause = self.now.boot + pause;
        self.local.compare_failed = Some(self.now.boot);
    }

    fn checkpointed(&mut self, answer: Result<Answer, Fail>) {
        if let Some(handover) = &mut self.local.handover {
            handover.checkpoint_done = true;
        }
        match answer {
            Ok(_) => self.look_soon(),
            Err(fail) => {
                self.failed("checkpoint");
                self.warn(format!("CHECKPOINT failed: {}", fail.text()));
            }
        }
    }

    fn slots_synced(&mut self, answer: Result<Answer, Fail>) {
        match answer {
            Ok(Answer::Slots(SlotsNow { positions, done, failed, strangers })) => {
                for line in done {
                    self.info(line);
                }
                if !failed.is_empty() {
                    self.complain_of_slots(failed.join("; "));
                }
                self.slots.positions = positions;
                self.tell_strangers(strangers);
            }
            Ok(_) => {}
            Err(fail) => self.complain_of_slots(fail.text().to_owned()),
        }
    }

    fn pending_found(&mut self, answer: Result<Answer, Fail>) {
        let reasons: BTreeMap<String, (String, String)> = match answer {
            Ok(Answer::Pending(reasons)) => reasons,
            Ok(_) => return,
            Err(fail) => {
                return self.warn(format!("could not ask which parameters wait for a restart: {}", fail.text()));
            }
        };
        for (name, (old, new)) in &reasons {
            if !self.pending_restart.contains_key(name) {
                self.info(format!("parameter {name} changes from {old} to {new} with the next restart of Postgres"));
            }
        }
        self.local.postgres.pending_restart = !reasons.is_empty();
        self.pending_restart = reasons;
    }

    /// The rows go into the store only as primary, or leader of a standby cluster, with the lock: a former leader's are its successor's business.
    fn history_read(&mut self, answer: Result<Answer, Fail>) {
        let rows: Option<Vec<HistoryRow>> = match answer {
            Ok(Answer::History(rows)) => rows,
            Ok(_) | Err(_) => None,
        };
        // What is written is seen in the next view. Until then, and should it not say what it should, it is not written again.
        self.failed("history");
        let last = rows.as_ref().and_then(|rows| rows.iter().rfind(|row| row.of_a_branch()));
        if let (Some((_, former)), Some(last)) = (self.promoted_to, last) {
            self.promoted_to = None;
            if last.timeline != former {
                let why = format!("the promotion came from timeline {}, it was ordered on {former}", last.timeline);
                self.local.misnumbered = Some(why);
                return;
            }
        }
        let follows = self.follows_another();
        let probe = self.local.postgres.probe.as_ref();
        let leading = self.local.own.is_some() && probe.is_some_and(|p| !p.in_recovery || follows);
        match rows {
            Some(rows) if leading && self.may_write_store() => {
                let expect = self.cluster.config.as_ref().map(|c| c.version.clone());
                let write = StoreWrite::History { expect, rows };
                self.local.store_write = true;
                self.send(Effect::WriteStore(write), About::Store { what: "the timeline history" });
            }
            Some(_) => {}
            None => {
                self.warn("the timeline history file of this timeline is not readable; trying again");
                self.store_pause = self.now.boot + STORE_PAUSE;
            }
        }
    }

    fn bootstrap_ended(&mut self, answer: Result<Answer, Fail>) {
        match answer {
            Ok(_) => {
                self.local.bootstrapping = false;
                self.local.bootstrap_failed = None;
                self.look_soon();
                // Recovery after a custom method let nobody in but this machine.
                self.rewrite = Some(self.in_force.custom_bootstrap);
            }
            Err(fail) => {
                self.failed("end bootstrap");
                self.warn(format!("could not end the bootstrap: {}", fail.text()));
            }
        }
    }

    /// May a decision's write go into the store?
    pub(in crate::member) fn may_write_store(&self) -> bool {
        !self.local.store_write && self.now.boot >= self.store_pause
    }

    /// The data directory is looked at before the next decision that depends on it.
    pub(in crate::member) fn look_soon(&mut self) {
        self.local.data_stale = true;
        self.stale_since = self.now.boot;
        self.looked_at = BootInstant::default();
    }
}

fn written(answer: Result<Answer, Fail>) -> WriteResult {
    match answer {
        Ok(Answer::Written(result)) => result,
        Ok(_) => WriteResult::Unknown("an answer of another kind".to_owned()),
        Err(Fail::Refused(why)) => WriteResult::Refused(why),
        Err(fail) => WriteResult::Unknown(fail.text().to_owned()),
    }
}
