//! The IO of each effect, on models. It chooses nothing; every effect gets an answer.

use std::collections::BTreeMap;

use patroni::dcs::{Answer as Got, Failure, Object, Request, leader_written, write_result};
use patroni::keeper::protocol::{self, Ask, State, UnfencedReason};
use patroni::member::{Answer, Effect, Fail, Id, Looked, Reload, Sent, StartEnd};
use patroni::model::{
    self, BootInstant, Compared, Fence, LeaderWritten, Lsn, MemberName, PeerAnswer, PeerRole, Permission,
    PostgresState, Probe, Replication, RewindState, Sender, SlotsNow, StartRole, StopMode, Tags, Timeline, Upstream,
    WriteResult,
};
use patroni::postgres::remote::LeaderTimeline;
use patroni::postgres::rewind::{self, Divergence, LocalEnd};

use super::disk::{Disk, Marker};
use super::postgres::{PgEvent, Phase};
use super::sidecar::{AskedKeeper, ToSidecar, Why, fence_of, note_of, running};
use super::world::{MS, SEC, World};

impl World {
    /// Begins an effect.
    pub fn perform(&mut self, pod: usize, sent: Sent) {
        let Sent { id, deadline, not_after, effect } = sent;
        let now = self.boot(pod);
        if now > not_after && !matches!(effect, Effect::Exit { .. } | Effect::Answer { .. } | Effect::Cancel(_)) {
            return self.reply_in(pod, 0, id, Err(Fail::TooLate));
        }
        if let Some(s) = &mut self.pods[pod].sidecar {
            s.running.insert(id, deadline);
        }
        match effect {
            Effect::ReadLeader
            | Effect::ReadConfig
            | Effect::ReadSync
            | Effect::WriteLeader(_)
            | Effect::ReadPod { .. }
            | Effect::WriteStore(_)
            | Effect::Publish(_)
            | Effect::StripLabels => self.perform_on_store(pod, id, effect),
            Effect::Permit { permission, evidence, note } => {
                let note = note.map_or_else(String::new, |(record, renewal)| note_of(&record, renewal));
                let ask = Ask::Permit { permission: in_protocol(permission), evidence: evidence.as_nanos(), note };
                self.ask_keeper(pod, ask, AskedKeeper::Kept(id));
            }
            Effect::Stop { mode } => self.stop(pod, id, mode),
            Effect::Promote { renewal, claim } => {
                self.pods[pod].claim = claim.map(|c| c.0);
                self.pods[pod].promote_ordered = self.t;
                self.ask_keeper(pod, Ask::Promote { renewal: renewal.as_nanos() }, AskedKeeper::Kept(id));
            }
            Effect::Start { role, upstream, names, renewal, .. } => {
                let p = &mut self.pods[pod];
                if let (Some(d), None) = (&mut p.disk, &p.pg) {
                    d.names = names;
                }
                self.prepare(pod, id, role, upstream, renewal);
            }
            Effect::Script(_) => self.reply_in(pod, 20 * MS, id, Ok(Answer::Script(Ok(())))),
            Effect::Task(kind) => {
                self.note(format!("m{pod} task {kind:?}"));
                self.begin_task(pod, id, &kind);
            }
            Effect::Cancel(id) => self.cancel(pod, id),
            Effect::AskPeers { members } => self.ask_peers(pod, id, &members),
            Effect::AskFailsafe { members } => self.ask_failsafe(pod, id, &members),
            Effect::Probe => self.probe(pod, id, deadline),
            Effect::Exit { code, message, leave_postgres } => {
                self.note(format!("m{pod} exits with {code}: {message}"));
                self.sidecar_exits(pod, leave_postgres);
            }
            Effect::Callback { .. } | Effect::Answer { .. } => {
                if let (Effect::Answer { ticket, status, text }, Some((asked, said))) = (&effect, &mut self.said)
                    && ticket == asked
                {
                    *said = Some((*status, text.clone()));
                }
                if let Some(s) = &mut self.pods[pod].sidecar {
                    s.running.remove(&id);
                }
            }
            Effect::FeedWatchdog(feed) => self.feed_device(pod, id, feed),
            Effect::DisarmWatchdog => self.disarm_device(pod, id, now > deadline),
            Effect::LookAtWatchdog => self.reply_in(pod, MS, id, Ok(Answer::Done)),
            other => self.perform_on_files(pod, id, other),
        }
    }

    fn perform_on_files(&mut self, pod: usize, id: Id, effect: Effect) {
        let takes = self.disk_takes(pod);
        match effect {
            Effect::Look => {
                let p = &self.pods[pod];
                let data = Disk::seen(p.disk.as_ref(), p.marker.as_ref(), &p.uid);
                let newest = p.disk.as_ref().map_or(0, Disk::timeline);
                let newest_history = Timeline(if newest > 1 { newest } else { 0 });
                self.reply_in(pod, takes, id, Ok(Answer::Data { data, newest_history }));
            }
            Effect::Compare { leader, conn_url } => self.compare(pod, id, &leader, &conn_url),
            Effect::Checkpoint => {
                let answers = self.answers(pod);
                let takes = self.pods[pod].luck.between(30 * MS, 900 * MS);
                self.pg_event(pod, takes - MS, PgEvent::Checkpoint);
                let answer = if answers { Ok(Answer::Done) } else { Err(Fail::Unreachable("no server".to_owned())) };
                self.reply_in(pod, takes, id, answer);
            }
            Effect::SyncSlots { .. } => self.reply_in(pod, 5 * MS, id, Ok(Answer::Slots(SlotsNow::default()))),
            Effect::PendingRestart => self.reply_in(pod, 5 * MS, id, Ok(Answer::Pending(BTreeMap::new()))),
            Effect::ReadHistory { previous, .. } => {
                let p = &self.pods[pod];
                let rows = p.disk.as_ref().map(|d| d.rows(&previous, p.name.as_str()));
                self.reply_in(pod, takes, id, Ok(Answer::History(rows)));
            }
            Effect::Reconfigure { role, upstream, names, reload } => {
                let changed = self.pods[pod]
                    .disk
                    .as_mut()
                    .is_some_and(|d| std::mem::replace(&mut d.names, names.clone()) != names);
                let reload = if changed && reload == Reload::IfChanged { Reload::Always } else { reload };
                self.reconfigure(pod, id, role, upstream, reload);
            }
            Effect::Configure { document } => self.configure(pod, id, document),
            Effect::EndBootstrap => {
                self.pods[pod].marker = None;
                self.reply_in(pod, takes, id, Ok(Answer::Done));
            }
            Effect::KeepPublished { system_id } => {
                let p = &mut self.pods[pod];
                let published = p.disk.as_ref().is_some_and(|d| d.system_id == system_id)
                    && matches!(p.marker, Some(Marker::Bootstrap(_)));
                if published {
                    p.marker = None;
                }
                self.reply_in(pod, takes, id, Ok(Answer::Published(published)));
            }
            _ => self.reply_in(pod, takes, id, Ok(Answer::Done)),
        }
    }

    fn perform_on_store(&mut self, pod: usize, id: Id, effect: Effect) {
        let asked = match effect {
            Effect::ReadLeader => self.request(pod, Request::Read(Object::Leader), Why::ReadLeader(id)),
            Effect::ReadConfig => self.request(pod, Request::Read(Object::Config), Why::ReadConfig(id)),
            Effect::ReadSync => self.request(pod, Request::Read(Object::Sync), Why::ReadConfig(id)),
            Effect::WriteLeader(write) => self.request(pod, Request::WriteLeader(write), Why::WriteLeader(id)),
            Effect::ReadPod { name } => self.request(pod, Request::ReadPod(name), Why::ReadPod(id)),
            Effect::WriteStore(write) => {
                let object = Object::of(&write);
                self.request(pod, Request::Write(write), Why::Store(id, object))
            }
            Effect::Publish(status) => {
                let known = self.pods[pod].sidecar.as_ref().and_then(|s| s.desk.already_published(&status));
                if let Some(version) = known {
                    return self.reply_in(pod, 0, id, Ok(Answer::Written(WriteResult::Written(version))));
                }
                self.request(pod, Request::Publish(*status), Why::Publish(id))
            }
            _ => return self.strip(pod, id),
        };
        if let Err(failure) = asked {
            self.reply_in(pod, 0, id, Ok(Answer::Written(write_result(Err(failure)))));
        }
    }

    fn strip(&mut self, pod: usize, id: Id) {
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        let strips = s.desk.strips();
        if strips.is_empty() {
            return self.reply_in(pod, 0, id, Ok(Answer::Stripped(Vec::new())));
        }
        s.strips.insert(id, (strips.len(), Vec::new()));
        for (name, request) in strips {
            let asked = self.request(pod, request, Why::Strip(id, name.clone()));
            if let Err(failure) = asked {
                self.store_answer(pod, Why::Strip(id, name), Err(failure));
            }
        }
    }

    /// What the store answered, to whoever asked.
    pub fn store_answer(&mut self, pod: usize, why: Why, got: Result<Got, Failure>) {
        let (id, answer) = match why {
            Why::ReadLeader(id) => (id, Answer::Leader(read(got, |o| o.map(|entry| Box::new(entry.leader()))))),
            Why::ReadConfig(id) => (id, Answer::Config(read(got, |_| ()))),
            Why::WriteLeader(id) => {
                let written = leader_written(got);
                if written == LeaderWritten::Wrote {
                    self.note(format!("m{pod} wrote the leader object"));
                    self.judge.first_lock.get_or_insert(self.t);
                }
                (id, Answer::LeaderWritten(written))
            }
            Why::ReadPod(id) => {
                let facts = match got {
                    Ok(Got::Pod(seen)) => Ok(seen.map(|s| s.facts())),
                    Ok(_) => Ok(None),
                    Err(failure) => Err(failure.into_read()),
                };
                (id, Answer::Pod(facts))
            }
            Why::Store(id, object) => {
                let answer = Answer::Written(write_result(got));
                if matches!(&answer, Answer::Written(WriteResult::Written(_) | WriteResult::Refused(_))) {
                    (id, answer)
                } else {
                    // The present object enters the view before the answer is heard.
                    if self.request(pod, Request::Read(object), Why::LookedUp(id, answer)).is_err() {
                        self.note(format!("m{pod} cannot look up a write"));
                    }
                    return;
                }
            }
            Why::LookedUp(id, answer) => (id, answer),
            Why::Publish(id) => (id, Answer::Written(write_result(got))),
            Why::Strip(id, name) => {
                let Some(s) = &mut self.pods[pod].sidecar else { return };
                let Some((left, done)) = s.strips.get_mut(&id) else { return };
                *left -= 1;
                if got.is_ok() {
                    done.push(name);
                }
                if *left > 0 {
                    return;
                }
                let done = s.strips.remove(&id).map(|(_, done)| done).unwrap_or_default();
                (id, Answer::Stripped(done))
            }
            Why::MyPod => return self.my_pod_read(pod, matches!(got, Ok(Got::Pod(Some(_))))),
            Why::List(_) | Why::Watch(_) | Why::Nobody => return,
        };
        self.step(pod, patroni::member::Input::Reply { id, answer: Ok(answer) });
    }

    fn my_pod_read(&mut self, pod: usize, good: bool) {
        if good {
            self.store_is_there(pod);
        } else {
            self.sidecar_gets(pod, 5 * SEC, ToSidecar::AskMyPod);
        }
    }

    fn stop(&mut self, pod: usize, id: Id, mode: StopMode) {
        let mode = match mode {
            StopMode::Fast => protocol::StopMode::Fast,
            StopMode::Immediate => protocol::StopMode::Immediate,
        };
        self.ask_keeper(pod, Ask::Stop { mode }, AskedKeeper::Kept(id));
    }

    /// Files first, then the order.
    fn prepare(&mut self, pod: usize, id: Id, role: StartRole, upstream: Upstream, renewal: BootInstant) {
        let takes = self.disk_takes(pod);
        let runs = self.pods[pod].pg.is_some();
        match &mut self.pods[pod].disk {
            None => {
                let why = "there is no data directory".to_owned();
                self.reply_in(pod, takes, id, Ok(Answer::Started(StartEnd::NotPrepared(why))));
            }
            Some(_) if runs => self.sidecar_gets(pod, takes, ToSidecar::Prepared { id, role, renewal }),
            Some(d) => {
                d.standby_signal = role == StartRole::Standby;
                d.upstream = upstream;
                self.sidecar_gets(pod, takes, ToSidecar::Prepared { id, role, renewal });
            }
        }
    }

    pub fn ask_start(&mut self, pod: usize, id: Id, role: StartRole, renewal: BootInstant) {
        let role = match role {
            StartRole::Primary => protocol::Role::Primary,
            StartRole::Standby => protocol::Role::Standby,
        };
        let ask = Ask::Start {
            role,
            program: protocol::Program::default(),
            data_dir: "data".to_owned(),
            renewal: renewal.as_nanos(),
            socket_locks: Vec::new(),
        };
        self.ask_keeper(pod, ask, AskedKeeper::Start(id));
    }

    pub fn start_answered(&mut self, pod: usize, id: Id, answer: Result<Option<State>, Fail>) {
        let answer = match answer {
            Ok(_) => return self.ask_keeper(pod, Ask::Status, AskedKeeper::Begun(id)),
            Err(Fail::Refused(why)) => return self.ask_keeper(pod, Ask::Status, AskedKeeper::Running(id, why)),
            Err(fail) => Err(fail),
        };
        self.step(pod, patroni::member::Input::Reply { id, answer });
    }

    /// It was started: what does the keeper say of its fence?
    pub fn begun_answered(&mut self, pod: usize, id: Id, answer: Result<Option<State>, Fail>) {
        let fence = answer.ok().flatten().map_or(Fence::Partial, |state| fence_of(&state));
        let answer = Ok(Answer::Started(StartEnd::Started { pending: BTreeMap::new(), fence }));
        self.step(pod, patroni::member::Input::Reply { id, answer });
    }

    pub fn running_answered(&mut self, pod: usize, id: Id, why: String, answer: Result<Option<State>, Fail>) {
        let found = answer.ok().flatten().and_then(|state| Some((running(&state)?, fence_of(&state))));
        let answer = match found {
            Some((role, fence)) => Ok(Answer::Started(StartEnd::Running(role, fence))),
            None => Err(Fail::Refused(why)),
        };
        self.step(pod, patroni::member::Input::Reply { id, answer });
    }

    fn cancel(&mut self, pod: usize, id: Id) {
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        let run = s.runs.iter().find(|(_, of)| **of == id).map(|(run, _)| *run);
        if let Some(run) = run {
            s.runs.remove(&run);
            self.ask_keeper(pod, Ask::Cancel { run }, AskedKeeper::Nobody);
            self.reply_in(pod, 0, id, Err(Fail::Interrupted));
        }
    }

    fn probe(&mut self, pod: usize, id: Id, deadline: BootInstant) {
        let frozen = self.t < self.pods[pod].pg_frozen;
        if frozen {
            let at = self.pods[pod].clock.global(deadline);
            return self.sidecar_gets(pod, at.saturating_sub(self.t), ToSidecar::Ended(id));
        }
        let takes = self.pods[pod].luck.between(200_000, 10 * MS);
        // The postmaster is gone, and with it my session; what it has left may live longer.
        let gone = self.pods[pod].pg.as_ref().is_none_or(|g| g.dead);
        let answer = self.look_at(pod);
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        let looked = match answer {
            Some(probe) => {
                s.asked_postgres = true;
                Looked::Answer(probe)
            }
            None if gone && s.asked_postgres => Looked::Gone,
            None if gone => Looked::Nobody,
            None => Looked::NotReady,
        };
        self.reply_in(pod, takes, id, Ok(Answer::Looked(looked)));
    }

    fn look_at(&self, pod: usize) -> Option<Probe> {
        let p = &self.pods[pod];
        let (g, d) = (p.pg.as_ref()?, p.disk.as_ref()?);
        if !self.answers(pod) {
            return None;
        }
        let in_recovery = g.phase == Phase::Standby;
        let streaming = in_recovery && g.streams.is_some();
        let timeline = if in_recovery && !streaming { d.wal_timeline() } else { d.timeline() };
        Some(Probe {
            at: BootInstant::default(),
            in_recovery,
            timeline: Timeline(timeline),
            position: Lsn(d.end),
            received: Lsn(d.end),
            replayed: Lsn(d.end),
            streaming,
            replay_paused: false,
            blocked: None,
            system_id: d.system_id.clone(),
            replication: if in_recovery { Replication::default() } else { self.replication(pod) },
        })
    }

    fn replication(&self, pod: usize) -> Replication {
        let Some(g) = &self.pods[pod].pg else { return Replication::default() };
        let senders = (0..self.pods.len()).filter_map(|by| {
            let name = self.pods[by].name.clone();
            let named = g.names.members().is_some_and(|names| names.contains(&name));
            let rank = if named { g.names.rank() } else { 0 };
            Some(Sender { streaming: true, rank, position: Lsn(self.known_reached(pod, by)?), name })
        });
        Replication { names: g.names.text().unwrap_or_default(), senders: senders.collect(), read: true }
    }

    /// The dynamic document is put in force, in a moment.
    fn configure(&mut self, pod: usize, id: Id, document: Option<std::sync::Arc<str>>) {
        let takes = self.disk_takes(pod);
        if let Some(document) = document {
            self.sidecar_gets(pod, takes, ToSidecar::Configured(document));
        }
        self.reply_in(pod, takes, id, Ok(Answer::Done));
    }

    fn ask_peers(&mut self, pod: usize, id: Id, members: &BTreeMap<MemberName, String>) {
        let mut takes = self.pods[pod].net.between(2 * MS, 60 * MS);
        let mut answers = BTreeMap::new();
        for (name, url) in members {
            let answer = self.at_url(url).filter(|to| self.linked(pod, *to)).and_then(|to| self.document(to));
            if answer.is_none() {
                takes = takes.max(if self.at_url(url).is_some() { 2 * SEC } else { 0 });
            }
            answers.insert(name.clone(), answer.unwrap_or_else(|| PeerAnswer::Unreachable("no answer".to_owned())));
        }
        self.reply_in(pod, takes, id, Ok(Answer::Peers(answers)));
    }

    /// What a member says of itself, as far as a race reads it.
    fn document(&self, pod: usize) -> Option<PeerAnswer> {
        let side = self.pods[pod].sidecar.as_ref().filter(|s| self.t >= s.frozen)?;
        let shown = side.member.as_ref()?.snapshot();
        let asks = matches!(shown.state, PostgresState::Running | PostgresState::Restarting | PostgresState::Starting);
        let live = self.look_at(pod).filter(|_| asks && shown.alive && self.t >= self.pods[pod].pg_frozen);
        let Some(probe) = live.or_else(|| shown.probe.filter(|p| !p.in_recovery)) else {
            return Some(PeerAnswer::Down { known_timeline: shown.known_timeline });
        };
        Some(PeerAnswer::Fit {
            role: if probe.in_recovery { PeerRole::Standby } else { PeerRole::Primary },
            position: probe.position,
            timeline: probe.timeline,
            known_timeline: shown.known_timeline,
            tags: Tags::default(),
            watchdog_failed: shown.watchdog_failed,
            store_seen: Some(shown.dcs_last_seen),
        })
    }

    fn compare(&mut self, pod: usize, id: Id, name: &MemberName, url: &str) {
        let leader = self.at_url(url).filter(|to| self.linked(pod, *to) && self.answers(*to));
        let theirs = leader.and_then(|to| {
            let (g, d) = (self.pods[to].pg.as_ref()?, self.pods[to].disk.as_ref()?);
            let in_recovery = g.phase != Phase::Primary && !self.follows_another(pod);
            let timeline = Timeline(if in_recovery { 0 } else { d.timeline() });
            let checkpoint_timeline = Timeline(d.checkpoint.1);
            Some(LeaderTimeline {
                system_id: String::new(),
                in_recovery,
                timeline,
                checkpoint_timeline,
                history: d.ended(),
            })
        });
        let Some(theirs) = theirs else {
            return self.reply_in(pod, SEC, id, Err(Fail::Unreachable("no answer of the leader".to_owned())));
        };
        let mine = self.local_end(pod);
        let about = Compared { leader: name.clone(), timeline: theirs.timeline };
        let answer = match rewind::check(mine.as_ref(), &theirs) {
            Divergence::Diverged => Some(RewindState::Need(about)),
            Divergence::Same => Some(RewindState::NotNeeded(about)),
            Divergence::Undecided => None,
        };
        self.note(format!("m{pod} compared {mine:?}: {answer:?}"));
        self.reply_in(pod, 30 * MS, id, Ok(Answer::Compared(answer)));
    }

    fn local_end(&self, pod: usize) -> Option<LocalEnd> {
        if let Some(p) = self.look_at(pod) {
            let lsn = if p.in_recovery { p.replayed } else { p.position };
            return Some(LocalEnd {
                timeline: p.timeline,
                lsn,
                in_recovery: p.in_recovery,
                sure: true,
                vouched: None,
                checkpoint_end: None,
                ancestors: self.pods[pod].disk.as_ref().map(|d| d.ancestors(p.timeline)),
            });
        }
        let d = self.pods[pod].disk.as_ref()?;
        let end = rewind::end_of_control(&d.control(), || d.checkpoint_end())?;
        Some(LocalEnd { ancestors: Some(d.ancestors(end.timeline)), ..end })
    }

    fn reconfigure(&mut self, pod: usize, id: Id, role: StartRole, upstream: Upstream, reload: Reload) {
        let Some(d) = &mut self.pods[pod].disk else {
            return self.reply_in(pod, MS, id, Err(Fail::Refused("no data directory".to_owned())));
        };
        let changed = d.upstream != upstream && role == StartRole::Standby;
        d.upstream = upstream;
        match reload {
            Reload::IfChanged if changed => self.ask_keeper(pod, Ask::Reload, AskedKeeper::Reload(id)),
            Reload::Always => self.ask_keeper(pod, Ask::Reload, AskedKeeper::Reload(id)),
            Reload::IfChanged | Reload::Never => {
                self.reply_in(pod, MS, id, Ok(Answer::Rewritten { reloaded: false }));
            }
        }
    }
}

fn read<T>(
    got: Result<Got, Failure>,
    take: impl FnOnce(Option<patroni::dcs::KindEntry>) -> T,
) -> Result<T, patroni::model::ReadFailed> {
    match got {
        Ok(Got::Object(seen)) => Ok(take(seen)),
        Ok(_) => Ok(take(None)),
        Err(failure) => Err(failure.into_read()),
    }
}

fn in_protocol(permission: Permission) -> protocol::Permission {
    match permission {
        Permission::None => protocol::Permission::None,
        Permission::Writer { stop_at, kill_at } => {
            protocol::Permission::Writer { stop_at: stop_at.as_nanos(), kill_at: kill_at.as_nanos() }
        }
        Permission::Unfenced(model::UnfencedReason::Bootstrap) => {
            protocol::Permission::Unfenced { reason: UnfencedReason::Bootstrap }
        }
        Permission::Unfenced(model::UnfencedReason::Pause) => {
            protocol::Permission::Unfenced { reason: UnfencedReason::Pause }
        }
    }
}
