//! The lease machine over a real store, as the driver runs it: requests spawned, answers fed back, woken by the clock.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use patroni::dcs::Dcs;
use patroni::dcs::kube::KubeStore;
use patroni::driver::clock;
use patroni::member::lease::{Claim, Job, JobEnd, Lease, Start, Writer};
use patroni::member::{Effect, Id};
use patroni::model::{
    BootInstant, LeaderRecord, LeaderStatus, LeaderWritten, LeaseRecord, Lsn, ReadFailed, Shutdown, Stood,
};
use tokio::sync::mpsc;

use super::world::{DEADLINE, ttl};

/// What comes back from the store.
#[allow(clippy::large_enum_variant, reason = "one at a time, on its way for a moment")]
enum Answer {
    Read(Result<Option<LeaderRecord>, ReadFailed>),
    Wrote(LeaderWritten),
}

type Answered = (Id, Answer);

/// One process: a store and the lease machine over it.
pub struct Shell {
    store: Arc<KubeStore>,
    inner: tokio::sync::Mutex<Inner>,
}

struct Inner {
    lease: Lease,
    /// My record, and until when it is unexpired.
    own: Option<(LeaseRecord, BootInstant)>,
    last_id: u64,
    answers: mpsc::UnboundedReceiver<Answered>,
    answer: mpsc::UnboundedSender<Answered>,
}

impl Deref for Shell {
    type Target = KubeStore;
    fn deref(&self) -> &KubeStore {
        &self.store
    }
}

/// A wish to take the lock.
#[derive(Clone)]
pub struct Acquire {
    pub stood: Stood,
}

/// A wish to renew it.
#[derive(Clone)]
pub struct Renew {
    pub status: LeaderStatus,
    pub deadline: Duration,
}

pub fn acquire(stood: Option<LeaseRecord>) -> Acquire {
    Acquire { stood: stood.map_or(Stood::Nothing, Stood::Record) }
}

pub fn renew(optime: u64) -> Renew {
    Renew { status: LeaderStatus { optime: Some(Lsn(optime)), ..LeaderStatus::default() }, deadline: DEADLINE }
}

#[track_caller]
pub fn written(end: JobEnd) -> (LeaseRecord, BootInstant) {
    match end {
        JobEnd::Written { record, sent } => (record, sent),
        other => panic!("not written: {other:?}"),
    }
}

/// Whoever a job was lost to.
#[track_caller]
pub fn lost(end: JobEnd) -> Option<String> {
    match end {
        JobEnd::Lost(who, _) => who.map(|who| who.0),
        other => panic!("not lost: {other:?}"),
    }
}

impl Shell {
    pub fn new(store: Arc<KubeStore>, writer: Writer) -> Shell {
        let (answer, answers) = mpsc::unbounded_channel();
        let inner = Inner { lease: Lease::new(writer), own: None, last_id: 0, answers, answer };
        Shell { store, inner: tokio::sync::Mutex::new(inner) }
    }

    pub async fn acquire(&self, want: Acquire) -> JobEnd {
        self.run(Job::Acquire { stood: want.stood, claim: None }, DEADLINE).await
    }

    pub async fn renew(&self, want: Renew) -> JobEnd {
        self.run(Job::Renew { status: want.status, fulfilled: false, claim: Claim::Keep }, want.deadline).await
    }

    pub async fn release(&self, shutdown: Option<Shutdown>) -> JobEnd {
        self.run(Job::Release { shutdown }, DEADLINE).await
    }

    /// The leader object, afresh.
    pub async fn leader(&self) -> Option<LeaderRecord> {
        self.read_leader().await.unwrap()
    }

    pub fn is_mine(&self, leader: &LeaderRecord) -> bool {
        self.inner.try_lock().unwrap().lease.is_mine(leader)
    }

    pub fn adopt(&self, record: LeaseRecord) {
        self.inner.try_lock().unwrap().lease.adopt(record);
    }

    /// My own pod is being deleted, or gone.
    pub fn is_leaving(&self) -> bool {
        self.view().borrow().me.leaving
    }

    async fn run(&self, job: Job, deadline: Duration) -> JobEnd {
        let release = matches!(job, Job::Release { .. });
        let mut inner = self.inner.lock().await;
        let Inner { lease, own, last_id, answers, answer } = &mut *inner;
        let mut ids = || {
            *last_id += 1;
            Id(*last_id)
        };
        let cluster = self.view().borrow().cluster.clone();
        // Whoever is leaving does not make the object again.
        let kept = own.clone().filter(|_| !self.is_leaving());
        lease.start(
            Start {
                job,
                ttl: ttl(),
                deadline,
                own: kept,
                paused: false,
                site: None,
                failsafe: patroni::model::Change::Keep,
            },
            &cluster,
            clock::now(),
            &mut ids,
        );
        let end = loop {
            for (id, effect) in lease.take_effects() {
                tokio::spawn(carry(self.store.clone(), id, effect, answer.clone()));
            }
            let wait = lease.wake().map_or(Duration::ZERO, |at| clock::boot().until(at));
            let ended = tokio::select! {
                answered = answers.recv() => match answered.unwrap() {
                    (id, Answer::Read(result)) => lease.read(id, result.map(|l| l.map(Box::new)), clock::now(), &mut ids),
                    (id, Answer::Wrote(result)) => lease.wrote(id, result, clock::now(), &mut ids),
                },
                () = tokio::time::sleep(wait) => lease.due(clock::now(), &mut ids),
            };
            if let Some(end) = ended {
                break end;
            }
        };
        match &end {
            JobEnd::Written { record, sent } if !release => *own = Some((record.clone(), *sent + ttl())),
            JobEnd::Written { .. } | JobEnd::Lost(..) => *own = None,
            JobEnd::Refused(_) | JobEnd::Unknown(_) => {}
        }
        end
    }
}

async fn carry(store: Arc<KubeStore>, id: Id, effect: Effect, answer: mpsc::UnboundedSender<Answered>) {
    let got = match effect {
        Effect::ReadLeader => Answer::Read(store.read_leader().await),
        Effect::WriteLeader(write) => Answer::Wrote(store.write_leader(*write).await),
        other => panic!("not a request of a lease: {other:?}"),
    };
    // Whoever asked may have ended.
    let _ = answer.send((id, got));
}
