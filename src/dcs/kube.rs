//! The store on Kubernetes: Endpoints or ConfigMaps with annotations, Pods as members (kubernetes-objects.md).
//!
//! [`KubeStore::connect`] finds the API server; [`KubeStore::follow`] starts the two watches that feed the view (the
//! daemon); [`KubeStore::read_cluster_once`] fills the view by two lists instead (`patronictl`). Writes work in both.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::cache::{Cache, Feed, KindEntry};
use super::client::{Api, ApiError};
use super::lease::OwnLeases;
use super::life::OwnLife;
use super::objects::{Kind, Names, Pod, object_labels};
pub use super::options::{Access, Mode, Port, StoreOptions};
use super::{
    Acquire, Dcs, DcsError, LeaseWrite, Life, MemberStatus, MyPod, Renew, Renewal, Reply, RequestText, View,
    WriteResult,
};
use super::{schema, watch as watching};
use crate::model::{BootInstant, DeathProof, HistoryRow, LeaderRecord, LeaseRecord, Lsn, MemberName, Version};

/// The periods in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Periods {
    pub ttl: Duration,
    pub loop_wait: Duration,
    pub retry_timeout: Duration,
}

/// What the watches and the writers share.
pub(super) struct Shared {
    cache: Mutex<Cache>,
    periods: Mutex<Periods>,
    view: watch::Sender<Arc<View>>,
    clock: fn() -> BootInstant,
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
    pub fn periods(&self) -> Periods {
        *lock(&self.periods)
    }
    /// Looks something up.
    pub fn read<R>(&self, f: impl FnOnce(&Cache) -> R) -> R {
        f(&lock(&self.cache))
    }
    /// Changes what is known and wakes the readers of the view if they can see a difference.
    pub fn update(&self, f: impl FnOnce(&mut Cache, BootInstant)) {
        let at = self.now();
        let mut cache = lock(&self.cache);
        f(&mut cache, at);
        let fresh = cache.view();
        // The lock is held until the view is out: views must not overtake each other.
        self.view.send_if_modified(|view| {
            let changed = **view != fresh;
            if changed {
                *view = Arc::new(fresh);
            }
            changed
        });
    }
}

/// The store on Kubernetes.
pub struct KubeStore {
    pub(super) o: StoreOptions,
    pub(super) api: Api,
    pub(super) names: Names,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) shared: Arc<Shared>,
    pub(super) own: Mutex<OwnLeases>,
    /// Whose container IDs may be published.
    pub(super) life: Mutex<OwnLife>,
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
        let cache = Cache::new(&o, (o.clock)());
        let view = watch::Sender::new(Arc::new(cache.view()));
        let shared = Shared {
            cache: Mutex::new(cache),
            periods: Mutex::new(Periods { ttl: o.ttl, loop_wait: o.loop_wait, retry_timeout: o.retry_timeout }),
            view,
            clock: o.clock,
            answers: Notify::new(),
        };
        Ok(KubeStore {
            api,
            names: Names::new(&o),
            labels: object_labels(&o),
            shared: Arc::new(shared),
            own: Mutex::new(OwnLeases::default()),
            life: Mutex::new(OwnLife::default()),
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
        let limit = self.shared.periods().retry_timeout;
        let (kinds, pods) =
            futures::join!(self.api.list::<Kind>(Feed::Kinds, limit), self.api.list::<Pod>(Feed::Pods, limit));
        let (kinds, kinds_as_of) = kinds.map_err(ApiError::into_dcs)?;
        let (pods, pods_as_of) = pods.map_err(ApiError::into_dcs)?;
        self.shared.update(|cache, at| {
            cache.replace_kinds(kinds, &kinds_as_of, at);
            cache.replace_pods(pods, &pods_as_of);
        });
        Ok(self.shared.view.borrow().clone())
    }

    /// My name, or why there is none.
    pub(super) fn me(&self) -> Result<&MemberName, String> {
        self.o.member.as_ref().ok_or_else(|| "this program is no member of the cluster".to_owned())
    }

    /// Reads one Endpoints object or ConfigMap afresh; the answer enters the view.
    pub(super) async fn fresh(&self, name: &str, limit: Duration) -> Result<Option<KindEntry>, ApiError> {
        let known = self.shared.read(|c| c.kind(name).map(|k| k.version.clone()));
        let answer = self.api.get_kind(name, limit).await?;
        self.shared.answers.notify_waiters();
        match answer {
            Some(kind) => {
                let entry = KindEntry::new(kind.clone(), &self.labels);
                self.shared.update(|cache, at| cache.put_kind(kind, at));
                Ok(Some(entry))
            }
            None => {
                self.shared.update(|cache, at| cache.kind_is_gone(name, known.as_deref(), at));
                Ok(None)
            }
        }
    }

    /// The own pod as last seen, if any.
    pub(super) fn own_pod(&self) -> Option<Pod> {
        self.shared.read(|c| c.own_pod().cloned())
    }

    /// The container IDs of my pod; none while Kubernetes may still show those of an earlier life.
    pub(super) fn current_containers(&self, pod: &Pod) -> BTreeMap<String, String> {
        lock(&self.life).containers(pod)
    }

    async fn find_my_pod(&self) -> Result<MyPod, DcsError> {
        let me = self.me().map_err(DcsError::Config)?;
        let limit = self.shared.periods().retry_timeout;
        let pod = match self.own_pod() {
            Some(pod) => pod,
            None => {
                let pod = self.api.get_pod(&me.0, limit).await.map_err(ApiError::into_dcs)?;
                let pod = pod.ok_or_else(|| {
                    DcsError::Config(format!(
                        "name: there is no pod {me} in namespace {}; a member's name must be that of its pod",
                        self.o.namespace
                    ))
                })?;
                let carried = pod.metadata.labels.clone().unwrap_or_default();
                if let Some((label, value)) = self.labels.iter().find(|(k, v)| carried.get(*k) != Some(v)) {
                    return Err(DcsError::Config(format!(
                        "kubernetes.labels: pod {me} does not carry the label {label}={value}, so no member would see it; \
                         add it to the pod template"
                    )));
                }
                pod
            }
        };
        Ok(MyPod {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            pod_ip: self.o.pod_ip.clone().or_else(|| pod.status.pod_ip.clone()),
            containers: self.current_containers(&pod),
        })
    }
}

impl Dcs for KubeStore {
    fn view(&self) -> watch::Receiver<Arc<View>> {
        self.shared.view.subscribe()
    }
    fn read_lease(&self, deadline: Duration) -> Reply<'_, Result<Option<LeaderRecord>, DcsError>> {
        Box::pin(async move {
            let entry = self.fresh(&self.names.leader, deadline).await.map_err(ApiError::into_dcs)?;
            Ok(entry.map(|e| schema::leader_from(&e.version, &e.annotations, e.addresses(), &mut Vec::new())))
        })
    }
    fn acquire(&self, want: Acquire) -> Reply<'_, LeaseWrite> {
        Box::pin(self.acquire_lease(want))
    }
    fn renew(&self, want: Renew) -> Reply<'_, Renewal> {
        Box::pin(self.renew_lease(want))
    }
    fn adopt(&self, record: LeaseRecord) {
        lock(&self.own).adopt(record);
    }
    fn is_mine(&self, leader: &LeaderRecord) -> bool {
        self.record_is_mine(&leader.lease, leader.valid_holder())
    }
    fn release(&self, optime: Option<Lsn>, deadline: Duration) -> Reply<'_, LeaseWrite> {
        Box::pin(self.release_lease(optime, deadline))
    }
    fn claim_initialize(&self, expect: Option<Version>) -> Reply<'_, WriteResult> {
        Box::pin(self.do_claim_initialize(expect))
    }
    fn write_system_id(&self, expect: Option<Version>, system_id: String) -> Reply<'_, WriteResult> {
        Box::pin(self.do_write_initialize(expect, Some(system_id)))
    }
    fn cancel_initialize(&self, expect: Version) -> Reply<'_, WriteResult> {
        Box::pin(self.do_write_initialize(Some(expect), None))
    }
    fn write_config(&self, expect: Option<Version>, document: String) -> Reply<'_, WriteResult> {
        Box::pin(self.do_write_config(expect, document))
    }
    fn write_history(&self, rows: Vec<HistoryRow>) -> Reply<'_, WriteResult> {
        Box::pin(self.do_write_history(rows))
    }
    fn set_request(&self, request: RequestText) -> Reply<'_, WriteResult> {
        Box::pin(self.do_set_request(request))
    }
    fn clear_request(&self, expect: Version) -> Reply<'_, WriteResult> {
        Box::pin(self.do_clear_request(expect))
    }
    fn publish_member(&self, status: MemberStatus) -> Reply<'_, WriteResult> {
        Box::pin(self.do_publish_member(status))
    }
    fn strip_leader_label(&self) -> Reply<'_, Vec<MemberName>> {
        Box::pin(self.do_strip_leader_label())
    }
    fn prove_death(
        &self,
        record: LeaseRecord,
        uid: String,
        pod: MemberName,
        containers: BTreeMap<String, String>,
    ) -> Reply<'_, Result<Option<DeathProof>, DcsError>> {
        Box::pin(self.look_for_death(record, uid, pod, containers))
    }
    fn my_pod(&self) -> Reply<'_, Result<MyPod, DcsError>> {
        Box::pin(self.find_my_pod())
    }
    fn set_life(&self, life: Life) {
        lock(&self.life).begin(life);
    }
    fn is_being_deleted(&self) -> bool {
        self.own_pod().is_some_and(|p| p.metadata.deletion_timestamp.is_some())
    }
    fn set_periods(&self, ttl: Duration, loop_wait: Duration, retry_timeout: Duration) {
        *lock(&self.shared.periods) = Periods { ttl, loop_wait, retry_timeout };
    }
}
