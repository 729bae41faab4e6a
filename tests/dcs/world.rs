//! The world of these tests: an embedded API server with three pods, stores on it, and ways to wait for a view.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use patroni::dcs::kube::{Access, KubeStore, Mode, StoreOptions};
use patroni::dcs::{Dcs, Life, View};
use patroni::kubemem::{FaultRule, Options, Server};
use patroni::member::lease::Writer;
use patroni::model::{BootInstant, LeaseRecord, StoreLink, time_scale};
use serde_json::{Value, json};

pub use super::shell::*;

pub const MODES: [Mode; 2] = [Mode::Endpoints, Mode::ConfigMaps];
pub const DEADLINE: Duration = Duration::from_secs(4);

pub fn ttl() -> Duration {
    Duration::from_secs(30).mul_f64(time_scale())
}

pub fn now() -> BootInstant {
    patroni::driver::clock::boot()
}

/// A server with pods `a`, `b`, `c`, two containers each.
pub struct World {
    pub server: Server,
    pub mode: Mode,
}

impl World {
    pub async fn new(mode: Mode) -> World {
        let server = Server::start(Options { bookmark_interval: Duration::from_millis(200), ..Options::default() })
            .await
            .unwrap();
        let world = World { server, mode };
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            world.create_pod(name, i);
        }
        world
    }
    pub fn create_pod(&self, name: &str, i: usize) {
        let pod = pod(name, i);
        self.server.store().create("pods", "default", pod.clone()).unwrap();
        self.server.store().merge("pods", "default", name, &json!({"status": pod["status"]})).unwrap();
    }
    pub fn options(&self, member: &str) -> StoreOptions {
        let access = Access::Server { url: self.server.url(), token: Some(self.server.token().to_owned()) };
        let mut o = StoreOptions::new("demo", Some(member.into()), access, now, patroni::driver::clock::wall);
        o.mode = self.mode;
        o.labels = BTreeMap::from([("application".into(), "patroni".into())]);
        o.session = format!("session-of-{member}");
        o.retry_timeout = Duration::from_secs(3);
        o.loop_wait = Duration::from_secs(2);
        o
    }
    pub async fn store(&self, member: &str) -> Arc<Shell> {
        self.store_with(self.options(member)).await
    }
    pub async fn store_with(&self, o: StoreOptions) -> Arc<Shell> {
        let (me, session) = (o.member.clone(), o.session.clone());
        let store = Arc::new(KubeStore::connect(o).await.unwrap());
        store.follow();
        store.set_life(life_since("2025-01-01T00:00:00Z"));
        see(&store, "following", |v| v.link == StoreLink::Following && v.cluster.members.len() == 3).await;
        let uid = store.my_pod().await.unwrap().uid;
        Arc::new(Shell::new(store, Writer { me, uid, session }))
    }
    pub fn kind(&self) -> &'static str {
        match self.mode {
            Mode::Endpoints => "endpoints",
            Mode::ConfigMaps => "configmaps",
        }
    }
    pub fn leader_name(&self) -> &'static str {
        match self.mode {
            Mode::Endpoints => "demo",
            Mode::ConfigMaps => "demo-leader",
        }
    }
    pub fn leader(&self) -> Value {
        self.server.store().get(self.kind(), "default", self.leader_name()).unwrap()
    }
    pub fn annotate_leader(&self, annotations: Value) {
        let patch = json!({"metadata": {"annotations": annotations}});
        self.server.store().merge(self.kind(), "default", self.leader_name(), &patch).unwrap();
    }
    pub fn uid(&self, pod: &str) -> String {
        self.server.store().get("pods", "default", pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned()
    }
    pub fn writes_fault(&self, status: u16, count: u64) -> FaultRule {
        FaultRule {
            method: "PATCH".into(),
            path_contains: format!("/{}/{}", self.kind(), self.leader_name()),
            status,
            count,
            only_token: None,
        }
    }
}

/// A running pod of the cluster, two containers.
pub fn pod(name: &str, i: usize) -> Value {
    let container = |c: &str| json!({"name": c, "image": "x"});
    let status = |c: &str| {
        json!({"name": c, "containerID": format!("containerd://{name}-{c}"), "image": "x", "imageID": "x",
        "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2025-01-01T00:00:00Z"}}})
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"application": "patroni", "cluster-name": "demo"}},
        "spec": {"nodeName": "node", "hostname": name, "containers": [container("postgres"), container("patroni")]},
        "status": {"podIP": format!("127.0.1.{i}"), "containerStatuses": [status("postgres"), status("patroni")]},
    })
}

/// Waits until the view is as wanted.
pub async fn see(store: &KubeStore, what: &str, wanted: impl Fn(&View) -> bool) -> Arc<View> {
    let mut view = store.view();
    let waited = tokio::time::timeout(Duration::from_secs(10), view.wait_for(|v| wanted(v))).await;
    match waited {
        Ok(view) => view.unwrap().clone(),
        Err(_) => panic!("never seen: {what}; last view {:?}", store.view().borrow()),
    }
}

/// The life whose `postgres` container began then.
pub fn life_since(when: &str) -> Life {
    let began = patroni::dcs::schema::parse_wall(when).unwrap();
    Life { container: Some("postgres".into()), began, program: began }
}

pub async fn lead(world: &World, member: &str) -> (Arc<Shell>, LeaseRecord) {
    let store = world.store(member).await;
    let (record, _) = written(store.acquire(acquire(None)).await);
    (store, record)
}
