//! Acquire, renew, release: conditional writes of the leader object (design §4, kubernetes-objects §4).
//!
//! One machine runs all three. It writes on a version it has seen, and whatever does not come back as "done" is looked up
//! by a fresh read: one of our attempts stands → written, with *that* attempt's send time; the record is still the one
//! expected → another attempt, with a `renewTime` of its own; anything else → lost. A request without an answer is not
//! abandoned: the machine looks beside it, because a slow API server is not a lost lease.

use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::cache::KindEntry;
use super::client::ApiError;
use super::kube::{KubeStore, Mode, lock};
use super::objects::{Kind, subsets_are, subsets_for, wanted_ports};
use super::schema::{self, Patch};
use super::watch::Backoff;
use super::{Acquire, LeaseWrite, Renew, Renewal};
use crate::model::{BootInstant, HolderMark, LeaseRecord, Lsn, MemberName, WallTime, time_scale};

/// Attempts remembered. A renewal period fits a dozen at the fastest back-off; older ones expect versions long gone.
const ATTEMPTS_MAX: usize = 64;
/// Reads under way at once. More than one, since a read may hang on a connection that died silently.
const READS_MAX: u32 = 3;
/// Between attempts. Patroni's bounds (kubernetes-objects §4.1).
const PAUSE_MOST: Duration = Duration::from_secs(1);

/// Which records this process has written or may claim.
#[derive(Default)]
pub(super) struct OwnLeases {
    /// Attempts sent and when; the confirmed one among them.
    attempts: Vec<(LeaseRecord, BootInstant)>,
    adopted: Option<LeaseRecord>,
    last_stamp: i64,
}

impl OwnLeases {
    /// Declares a record of an earlier session to be ours.
    pub fn adopt(&mut self, record: LeaseRecord) {
        self.adopted = Some(record);
    }
    fn sent(&self, record: &LeaseRecord) -> Option<BootInstant> {
        self.attempts.iter().find(|(r, _)| r == record).map(|(_, sent)| *sent)
    }
    fn remember(&mut self, record: LeaseRecord, sent: BootInstant) {
        if self.attempts.len() == ATTEMPTS_MAX {
            self.attempts.remove(0);
        }
        self.attempts.push((record, sent));
    }
    /// `record` stands: attempts on older versions can no longer land.
    fn confirm(&mut self, record: &LeaseRecord, sent: BootInstant) {
        self.attempts = vec![(record.clone(), sent)];
        self.adopted = None;
    }
    fn forget(&mut self) {
        self.attempts.clear();
        self.adopted = None;
    }
    /// The wall clock, but never twice the same: a renewal must change `renewTime` whatever the clock does.
    fn stamp(&mut self, wall: WallTime) -> String {
        self.last_stamp = wall.0.max(self.last_stamp + 1);
        schema::format_wall(WallTime(self.last_stamp))
    }
}

enum Job {
    Acquire(Acquire),
    Renew(Renew),
    Release(Option<Lsn>),
}

/// How a job ended.
enum Ended {
    Written { record: LeaseRecord, sent: BootInstant },
    Lost(Option<MemberName>, String),
    Refused(String),
    Unknown(String),
}

/// What a fresh read means for a job.
enum Judged {
    Write,
    End(Ended),
}

enum Step {
    Read,
    Write(Option<KindEntry>),
}

enum Answer {
    Read(Result<Option<KindEntry>, ApiError>),
    Wrote { record: LeaseRecord, sent: BootInstant, result: Box<Result<Kind, ApiError>> },
}

/// What follows an answer.
enum Next {
    Step(Step, Duration),
    End(Ended),
}

/// One job under way.
struct Run<'a> {
    store: &'a KubeStore,
    job: Job,
    me: MemberName,
    began: BootInstant,
    until: Instant,
    pause: Backoff,
    writes: u32,
    reads: u32,
    /// An attempt of an earlier call that was seen to have landed: evidence if nothing better comes.
    landed: Option<(LeaseRecord, BootInstant)>,
    last_error: String,
}

impl KubeStore {
    /// Is this record ours: written by this process (known attempt, or the mark of this session), or adopted?
    pub(super) fn record_is_mine(&self, record: &LeaseRecord, holder: Option<&HolderMark>) -> bool {
        if record.leader.is_none() || record.leader != self.o.member {
            return false;
        }
        let own = lock(&self.own);
        own.adopted.as_ref() == Some(record)
            || own.sent(record).is_some()
            || holder.is_some_and(|h| !self.o.session.is_empty() && h.session == self.o.session)
    }

    fn entry_is_mine(&self, entry: &KindEntry) -> bool {
        let leader = schema::leader_from(&entry.version, &entry.annotations, Vec::new(), &mut Vec::new());
        self.record_is_mine(&leader.lease, leader.valid_holder())
    }

    /// The leader object as last seen, if it is ours.
    fn known_as_mine(&self) -> Option<KindEntry> {
        self.shared.read(|c| c.kind(&self.names.leader).cloned()).filter(|e| self.entry_is_mine(e))
    }

    pub(super) async fn acquire_lease(&self, want: Acquire) -> LeaseWrite {
        let deadline = want.deadline;
        lease_write(self.run(Job::Acquire(want), None, deadline).await)
    }

    pub(super) async fn release_lease(&self, optime: Option<Lsn>, deadline: Duration) -> LeaseWrite {
        let ended = self.run(Job::Release(optime), self.known_as_mine(), deadline).await;
        if matches!(ended, Ended::Written { .. }) {
            lock(&self.own).forget();
        }
        lease_write(ended)
    }

    pub(super) async fn renew_lease(&self, want: Renew) -> Renewal {
        let deadline = want.deadline;
        match self.run(Job::Renew(want), self.known_as_mine(), deadline).await {
            Ended::Written { record, sent } => Renewal::Renewed { record, sent },
            Ended::Lost(holder, _) => Renewal::LostTo(holder),
            Ended::Refused(why) | Ended::Unknown(why) => Renewal::Unknown(why),
        }
    }

    async fn run(&self, job: Job, base: Option<KindEntry>, deadline: Duration) -> Ended {
        let me = match self.me() {
            Ok(me) => me.clone(),
            Err(why) => return Ended::Refused(why),
        };
        let run = Run {
            store: self,
            job,
            me,
            began: self.shared.now(),
            until: Instant::now() + deadline,
            pause: Backoff::up_to(PAUSE_MOST),
            writes: 0,
            reads: 0,
            landed: None,
            last_error: format!("no answer from the Kubernetes API within {:.1} s", deadline.as_secs_f64()),
        };
        // A quarter: time for a few looks beside a request that hangs, without doubling the load of a slow server.
        let look_after = (deadline / 4).max(Duration::from_millis(500).mul_f64(time_scale()));
        run.drive(base.map_or(Step::Read, |b| Step::Write(Some(b))), look_after).await
    }
}

fn lease_write(ended: Ended) -> LeaseWrite {
    match ended {
        Ended::Written { record, sent } => LeaseWrite::Written { record, sent },
        Ended::Lost(_, why) => LeaseWrite::Conflict(why),
        Ended::Refused(why) => LeaseWrite::Refused(why),
        Ended::Unknown(why) => LeaseWrite::Unknown(why),
    }
}

impl<'a> Run<'a> {
    async fn drive(mut self, first: Step, look_after: Duration) -> Ended {
        let mut flying: FuturesUnordered<BoxFuture<'a, Answer>> = FuturesUnordered::new();
        let mut step = Some((first, Instant::now()));
        let mut look_at = Instant::now() + look_after;
        loop {
            let wake = step.as_ref().map_or(look_at, |(_, at)| *at).min(self.until);
            tokio::select! {
                biased;
                Some(answer) = flying.next(), if !flying.is_empty() => match self.digest(answer) {
                    Next::Step(next, delay) => step = Some((next, Instant::now() + delay)),
                    Next::End(ended) => return ended,
                },
                () = sleep_until(wake) => {
                    if Instant::now() >= self.until {
                        return self.give_up();
                    }
                    let begin = match step.take() {
                        Some((step, _)) => Some(step),
                        None => (self.reads < READS_MAX).then_some(Step::Read),
                    };
                    if let Some(begin) = begin {
                        flying.push(self.begin(begin));
                    }
                    look_at = Instant::now() + look_after;
                }
            }
        }
    }

    fn give_up(self) -> Ended {
        match self.landed {
            Some((record, sent)) => Ended::Written { record, sent },
            None => Ended::Unknown(self.last_error),
        }
    }

    /// Sends a request; what it needs to know is fixed here, at its sending.
    fn begin(&mut self, step: Step) -> BoxFuture<'a, Answer> {
        let store = self.store;
        let limit = self.until.saturating_duration_since(Instant::now());
        match step {
            Step::Read => {
                self.reads += 1;
                Box::pin(async move { Answer::Read(store.fresh(&store.names.leader, limit).await) })
            }
            Step::Write(seen) => {
                self.writes += 1;
                let (record, body) = self.attempt(seen.as_ref());
                let sent = store.shared.now();
                lock(&store.own).remember(record.clone(), sent);
                Box::pin(async move {
                    let result = match seen {
                        Some(_) => store.api.patch_kind(&store.names.leader, &body, limit).await,
                        None => store.api.create_kind(&body, limit).await,
                    };
                    Answer::Wrote { record, sent, result: Box::new(result) }
                })
            }
        }
    }

    /// What to do after an answer: another step after a pause, or the end.
    fn digest(&mut self, answer: Answer) -> Next {
        match answer {
            Answer::Wrote { record, sent, result } => match *result {
                Ok(kind) => {
                    self.store.shared.answers.notify_waiters();
                    self.store.shared.update(|cache, at| cache.put_kind(kind, at));
                    lock(&self.store.own).confirm(&record, sent);
                    Next::End(Ended::Written { record, sent })
                }
                Err(ApiError::Conflict(_) | ApiError::NotFound(_) | ApiError::Gone) => {
                    Next::Step(Step::Read, Duration::ZERO)
                }
                Err(e @ (ApiError::Forbidden(_) | ApiError::Refused(_) | ApiError::Unsure(_))) => self.after_error(e),
            },
            Answer::Read(result) => {
                self.reads -= 1;
                match result {
                    Err(e) => self.after_error(e),
                    Ok(seen) => match self.judge(seen.as_ref()) {
                        Judged::Write => Next::Step(Step::Write(seen), Duration::ZERO),
                        Judged::End(ended) => Next::End(ended),
                    },
                }
            }
        }
    }

    /// A refusal ends an acquire or release that can have written nothing; everything else is looked up again.
    fn after_error(&mut self, e: ApiError) -> Next {
        let definite = match &e {
            ApiError::Forbidden(_) | ApiError::Refused(_) => self.writes <= 1,
            ApiError::Conflict(_) | ApiError::NotFound(_) | ApiError::Gone | ApiError::Unsure(_) => false,
        };
        self.last_error = e.text();
        match self.job {
            Job::Acquire(_) | Job::Release(_) if definite => Next::End(Ended::Refused(self.last_error.clone())),
            Job::Acquire(_) | Job::Release(_) | Job::Renew(_) => Next::Step(Step::Read, self.pause.pause()),
        }
    }

    fn judge(&mut self, seen: Option<&KindEntry>) -> Judged {
        let record = seen.map(|e| schema::lease_from(&e.annotations));
        let named_me = record.as_ref().filter(|r| r.leader.as_ref() == Some(&self.me));
        let ours = named_me.and_then(|r| lock(&self.store.own).sent(r));
        if let (Some(record), Some(sent)) = (&record, ours) {
            let of_this_call = sent >= self.began && self.writes > 0;
            match &self.job {
                Job::Renew(_) if !of_this_call => self.landed = Some((record.clone(), sent)),
                // Asked to take over from a record of our own: its send time is what the caller wants to leave behind.
                Job::Acquire(want) if want.stood.as_ref() == Some(record) => {}
                Job::Acquire(_) | Job::Renew(_) => {
                    lock(&self.store.own).confirm(record, sent);
                    return Judged::End(Ended::Written { record: record.clone(), sent });
                }
                // A release in flight has the same five keys but the leader; it is recognised below.
                Job::Release(_) => {}
            }
        }
        match &self.job {
            Job::Acquire(want) => judge_acquire(want, seen, record),
            Job::Renew(_) => self.judge_holder(seen, record),
            Job::Release(_) => self.judge_release(seen, record),
        }
    }

    fn judge_holder(&self, seen: Option<&KindEntry>, record: Option<LeaseRecord>) -> Judged {
        if seen.is_some_and(|e| self.store.entry_is_mine(e)) {
            return Judged::Write;
        }
        let holder = record.and_then(|r| r.leader);
        let why = match &holder {
            Some(who) if *who == self.me => format!("the lock names {who}, but another incarnation of it"),
            Some(who) => format!("the lock is held by {who}"),
            None => "the lock is released".to_owned(),
        };
        Judged::End(Ended::Lost(holder, why))
    }

    fn judge_release(&self, seen: Option<&KindEntry>, record: Option<LeaseRecord>) -> Judged {
        match record {
            Some(record) if record.leader.is_none() && self.store.record_was_mine(&record, &self.me) => {
                Judged::End(Ended::Written { record, sent: self.began })
            }
            record => self.judge_holder(seen, record),
        }
    }

    /// The record and the request body of an attempt on `seen`.
    fn attempt(&self, seen: Option<&KindEntry>) -> (LeaseRecord, Value) {
        let stood = seen.map(|e| schema::lease_from(&e.annotations)).unwrap_or_default();
        let stamp = || lock(&self.store.own).stamp((self.store.o.wall)());
        let again = stood.leader.as_ref() == Some(&self.me);
        let (record, patch) = match &self.job {
            Job::Release(optime) => (LeaseRecord { leader: None, ..stood }, schema::release_patch(*optime)),
            Job::Acquire(want) => {
                let now = stamp();
                let untouched = stood == LeaseRecord::default();
                let transitions = match (&stood.transitions, again, untouched) {
                    (_, _, true) => "0".to_owned(),
                    (Some(kept), true, false) => kept.clone(),
                    (None, true, false) => "0".to_owned(),
                    (_, false, false) => stood.next_transitions().to_string(),
                };
                let acquired = stood.acquire_time.filter(|_| again).unwrap_or_else(|| now.clone());
                let record = self.record(want.ttl, acquired, now, transitions);
                let patch = schema::lease_patch(&record, Some(&self.store.holder_mark(&record)));
                (record, patch)
            }
            Job::Renew(want) => {
                let now = stamp();
                let acquired = stood.acquire_time.unwrap_or_else(|| now.clone());
                let record = self.record(want.ttl, acquired, now, stood.transitions.unwrap_or_else(|| "0".into()));
                let mut patch = schema::lease_patch(&record, Some(&self.store.holder_mark(&record)));
                patch.extend(schema::leader_status_patch(&want.status));
                (record, patch)
            }
        };
        let subsets = self.subsets(seen);
        let body = self.store.kind_body(&self.store.names.leader, seen.map(|e| e.version.as_str()), patch, subsets);
        (record, body)
    }

    fn record(&self, ttl: Duration, acquired: String, renewed: String, transitions: String) -> LeaseRecord {
        LeaseRecord {
            leader: Some(self.me.clone()),
            ttl: Some(schema::ttl_text(ttl)),
            acquire_time: Some(acquired),
            renew_time: Some(renewed),
            transitions: Some(transitions),
        }
    }

    /// Endpoints mode: the subsets to send with this write, if they have to change (kubernetes-objects §4.5).
    fn subsets(&self, seen: Option<&KindEntry>) -> Option<Value> {
        if self.store.o.mode != Mode::Endpoints {
            return None;
        }
        let there = seen.map_or(&[][..], |e| &e.subsets[..]);
        if let Job::Release(_) = self.job {
            return (!there.is_empty()).then(|| json!([]));
        }
        let pod = self.store.own_pod();
        let ip = self.store.o.pod_ip.clone().or_else(|| pod.as_ref()?.status.pod_ip.clone())?;
        let ports = wanted_ports(&self.store.o);
        (!subsets_are(there, &ip, &ports)).then(|| subsets_for(&ip, pod.as_ref(), &self.store.o.namespace, &ports))
    }
}

fn judge_acquire(want: &Acquire, seen: Option<&KindEntry>, record: Option<LeaseRecord>) -> Judged {
    // An object without lease keys (made by a manifest) is as good as none.
    let stood = want.stood.clone().unwrap_or_default();
    let record = record.unwrap_or_default();
    let lost = |why: String| Judged::End(Ended::Lost(record.leader.clone(), why));
    if record != stood {
        let who = record.leader.as_ref().map_or("nobody", |l| l.as_str());
        return lost(format!("the leader object is not as observed: it names {who}"));
    }
    if want.proven_dead {
        let valid = seen.is_some_and(|e| {
            schema::leader_from(&e.version, &e.annotations, Vec::new(), &mut Vec::new()).valid_holder().is_some()
        });
        if !valid {
            return lost("the holder mark is not that of the record: no proof of death holds".into());
        }
    }
    Judged::Write
}

impl KubeStore {
    /// Is this a record of ours with the leader taken out?
    fn record_was_mine(&self, released: &LeaseRecord, me: &MemberName) -> bool {
        let before = LeaseRecord { leader: Some(me.clone()), ..released.clone() };
        let own = lock(&self.own);
        own.adopted.as_ref() == Some(&before) || own.sent(&before).is_some() || own.sent(released).is_some()
    }

    /// Who I am, exactly, for the record about to be written.
    fn holder_mark(&self, record: &LeaseRecord) -> HolderMark {
        let pod = self.own_pod();
        HolderMark {
            uid: pod.as_ref().and_then(|p| p.metadata.uid.clone()).unwrap_or_default(),
            session: self.o.session.clone(),
            containers: pod.as_ref().map(|p| self.current_containers(p)).unwrap_or_default(),
            acquire_time: record.acquire_time.clone().unwrap_or_default(),
            renew_time: record.renew_time.clone().unwrap_or_default(),
        }
    }

    /// A PATCH body (with a version: conditional on it), or a POST body, where nulls have no place.
    pub(super) fn kind_body(&self, name: &str, version: Option<&str>, patch: Patch, subsets: Option<Value>) -> Value {
        let annotations: Patch =
            if version.is_some() { patch } else { patch.into_iter().filter(|(_, v)| !v.is_null()).collect() };
        let mut metadata = json!({
            "namespace": self.o.namespace, "name": name, "labels": self.labels, "annotations": annotations,
        });
        if let (Some(version), Value::Object(m)) = (version, &mut metadata) {
            m.insert("resourceVersion".into(), json!(version));
        }
        let mut body = json!({ "metadata": metadata });
        if let (Some(subsets), Value::Object(b)) = (subsets, &mut body) {
            b.insert("subsets".into(), subsets);
        }
        body
    }
}
