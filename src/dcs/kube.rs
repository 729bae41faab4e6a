//! The store on Kubernetes: Endpoints or ConfigMaps with annotations, Pods as members .
//!
//! [`KubeStore::connect`] finds the API server; [`KubeStore::follow`] starts the two watches that feed the view (the
//! daemon); [`KubeStore::read_cluster_once`] fills the view by two lists instead (`patronictl`). Writes work in both.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::answer::Body;
use super::cache::{Feed, KindEntry};
use super::client::{Api, NoAnswer};
use super::desk::Desk;
use super::objects::{Kind, Pod};
pub use super::options::{Access, Mode, Port, StoreOptions};
use super::request::{Object, Request, Sent};
use super::{
    Answer, Dcs, DcsError, Failure, Life, MemberStatus, MyPod, Reply, View, WriteResult, leader_written,
    watch as watching,
};
use crate::model::{
    BootInstant, LeaderRecord, LeaderWrite, LeaderWritten, MemberName, Periods, PodFacts, ReadFailed, StoreWrite,
};

/// What the watches and the writers share.
pub(super) struct Shared {
    desk: Mutex<Desk>,
    view: watch::Sender<Arc<View>>,
    clock: fn() -> BootInstant,
    /// [`Desk::trust`]: open watches end when it changes.
    pub trust: watch::Sender<u32>,
    /// Rings when a write or a fresh read was answered.
    pub answers: Notify,
}

/// A poisoned lock only says that another thread panicked; every value here is replaced whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn now(&self) -> BootInstant {
        (self.clock)()
    }
    /// Looks something up, or forms a request.
    pub fn with<R>(&self, f: impl FnOnce(&mut Desk) -> R) -> R {
        f(&mut lock(&self.desk))
    }
    /// Changes what is known and wakes the readers of the view if they can see a difference.
    pub fn update<R>(&self, f: impl FnOnce(&mut Desk, BootInstant) -> R) -> R {
        let at = self.now();
        let mut desk = lock(&self.desk);
        let done = f(&mut desk, at);
        let fresh = desk.view();
        let trust = desk.trust();
        // The lock is held until the view is out: views must not overtake each other.
        self.view.send_if_modified(|view| {
            let changed = !Arc::ptr_eq(view, &fresh) && **view != *fresh;
            if changed {
                *view = fresh;
            }
            changed
        });
        self.trust.send_if_modified(|known| std::mem::replace(known, trust) != trust);
        done
    }
}

/// The store on Kubernetes.
pub struct KubeStore {
    pub(super) o: StoreOptions,
    pub(super) api: Api,
    pub(super) shared: Arc<Shared>,
    pub(super) service_done: AtomicBool,
    watchers: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for KubeStore {
    fn drop(&mut self) {
        for watcher in lock(&self.watchers).drain(..) {
            watcher.abort();
        }
    }
}

impl KubeStore {
    /// Finds the API server and loads credentials; nothing is sent yet.
    ///
    /// # Errors
    /// [`DcsError::Config`], one line: no way in, unknown context, unreadable CA.
    pub async fn connect(o: StoreOptions) -> Result<KubeStore, DcsError> {
        let api = Api::new(&o).await?;
        let desk = Desk::new(o.clone(), (o.clock)());
        let shared = Shared {
            view: watch::Sender::new(desk.view()),
            desk: Mutex::new(desk),
            clock: o.clock,
            trust: watch::Sender::new(0),
            answers: Notify::new(),
        };
        Ok(KubeStore {
            api,
            shared: Arc::new(shared),
            service_done: AtomicBool::new(false),
            watchers: Mutex::new(Vec::new()),
            o,
        })
    }

    /// Starts the two watches. They end with the store.
    pub fn follow(&self) {
        let mut watchers = lock(&self.watchers);
        if watchers.is_empty() {
            watchers.push(tokio::spawn(watching::follow::<Kind>(self.shared.clone(), self.api.clone())));
            watchers.push(tokio::spawn(watching::follow::<Pod>(self.shared.clone(), self.api.clone())));
        }
    }

    /// Reads everything once, by two lists, into the view.
    ///
    /// # Errors
    /// When one of the lists fails.
    pub async fn read_cluster_once(&self) -> Result<Arc<View>, DcsError> {
        let limit = self.limit();
        let list = |feed| self.ask(Request::List(feed), limit);
        let (kinds, pods) = futures::join!(list(Feed::Kinds), list(Feed::Pods));
        kinds.and(pods).map_err(Failure::into_dcs)?;
        Ok(self.shared.view.borrow().clone())
    }

    /// Removes every Endpoints object or ConfigMap that carries the labels of the cluster. Pods stay.
    ///
    /// # Errors
    /// The API server refuses, or does not answer: nobody knows then what is left.
    pub async fn remove_cluster(&self) -> Result<(), DcsError> {
        self.ask(Request::RemoveCluster, self.limit()).await.map(|_| ()).map_err(Failure::into_dcs)
    }

    /// My name, or why there is none.
    pub(super) fn me(&self) -> Result<&MemberName, String> {
        self.o.member.as_ref().ok_or_else(|| "this program is no member of the cluster".to_owned())
    }

    pub(super) fn limit(&self) -> Duration {
        self.shared.with(|desk| desk.periods().retry_timeout)
    }

    /// Sends a request; the answer enters the view.
    pub(super) async fn ask(&self, request: Request, limit: Duration) -> Result<Answer, Failure> {
        let sent = self.shared.with(|desk| desk.encode(request))?;
        self.carry(&sent, limit).await
    }

    /// Sends what is encoded already.
    pub(super) async fn carry(&self, sent: &Sent, limit: Duration) -> Result<Answer, Failure> {
        match self.api.send(&sent.call, limit).await {
            Ok((status, body)) => {
                let answer = self.shared.update(|desk, at| desk.decode(sent, status, Body::Bytes(&body), at));
                if answer.is_ok() {
                    self.shared.answers.notify_waiters();
                }
                answer
            }
            Err(NoAnswer(why)) => Err(self.shared.update(|desk, at| desk.unanswered(sent, &why, at))),
        }
    }

    /// Reads one Endpoints object or ConfigMap afresh; the answer enters the view.
    pub(super) async fn fresh(&self, object: Object, limit: Duration) -> Result<Option<KindEntry>, Failure> {
        match self.ask(Request::Read(object), limit).await? {
            Answer::Object(seen) => Ok(seen),
            Answer::Pod(_) | Answer::Done => Ok(None),
        }
    }

    async fn find_my_pod(&self) -> Result<MyPod, DcsError> {
        let me = self.me().map_err(DcsError::Config)?;
        if let Some(known) = self.shared.with(|desk| desk.my_pod()) {
            return known.map_err(Failure::into_dcs);
        }
        let read = self.ask(Request::ReadPod(me.clone()), self.limit()).await.map_err(Failure::into_dcs)?;
        let seen = match read {
            Answer::Pod(seen) => seen,
            Answer::Object(_) | Answer::Done => None,
        };
        let seen = seen.ok_or_else(|| {
            DcsError::Config(format!(
                "name: there is no pod {me} in namespace {}; a member's name must be that of its pod",
                self.o.namespace
            ))
        })?;
        if let Some((label, value)) = self.shared.with(|desk| desk.missing_label(&seen)) {
            return Err(DcsError::Config(format!(
                "kubernetes.labels: pod {me} does not carry the label {label}={value}, so no member would see it; \
                 add it to the pod template"
            )));
        }
        let known = self.shared.with(|desk| desk.my_pod());
        known.unwrap_or_else(|| Err(Failure::Unsure(format!("pod {me} is not known yet")))).map_err(Failure::into_dcs)
    }
}

impl Dcs for KubeStore {
    fn view(&self) -> watch::Receiver<Arc<View>> {
        self.shared.view.subscribe()
    }
    fn read_leader(&self) -> Reply<'_, Result<Option<LeaderRecord>, ReadFailed>> {
        Box::pin(async move {
            let entry = self.fresh(Object::Leader, self.limit()).await.map_err(Failure::into_read)?;
            Ok(entry.map(|entry| entry.leader()))
        })
    }
    fn read_config(&self) -> Reply<'_, Result<(), ReadFailed>> {
        Box::pin(async move {
            self.fresh(Object::Config, self.limit()).await.map_err(Failure::into_read)?;
            Ok(())
        })
    }
    fn read_sync(&self) -> Reply<'_, Result<(), ReadFailed>> {
        Box::pin(async move {
            self.fresh(Object::Sync, self.limit()).await.map_err(Failure::into_read)?;
            Ok(())
        })
    }
    fn write_leader(&self, write: LeaderWrite) -> Reply<'_, LeaderWritten> {
        Box::pin(async move { leader_written(self.ask(Request::WriteLeader(Box::new(write)), self.limit()).await) })
    }
    fn read_pod(&self, name: MemberName) -> Reply<'_, Result<Option<PodFacts>, ReadFailed>> {
        Box::pin(async move {
            match self.ask(Request::ReadPod(name), self.limit()).await.map_err(Failure::into_read)? {
                Answer::Pod(seen) => Ok(seen.map(|seen| seen.facts())),
                Answer::Object(_) | Answer::Done => Ok(None),
            }
        })
    }
    fn write(&self, write: StoreWrite) -> Reply<'_, WriteResult> {
        Box::pin(async move {
            if let StoreWrite::ClaimInitialize { .. } = write {
                self.create_service().await;
            }
            self.write_store(write).await
        })
    }
    fn publish_member(&self, status: MemberStatus) -> Reply<'_, WriteResult> {
        Box::pin(self.do_publish_member(status))
    }
    fn strip_leader_label(&self) -> Reply<'_, Vec<MemberName>> {
        Box::pin(self.do_strip_leader_label())
    }
    fn my_pod(&self) -> Reply<'_, Result<MyPod, DcsError>> {
        Box::pin(self.find_my_pod())
    }
    fn set_life(&self, life: Life) {
        self.shared.update(|desk, _| desk.set_life(life));
    }
    fn set_periods(&self, periods: Periods) {
        self.shared.with(|desk| desk.set_periods(periods));
    }
}
