//! The embedded Kubernetes API in a thread of its own, and the part of the kubelet that bare processes need: pod objects
//! with labels, an address and container states.
//!
//! A real API server can take its place ([`External`]): then the members come with a token of their own and the rights of
//! the chart's Role, and nothing but that differs.
//!
//! The API has its own thread so that neither the clients nor the harness delay it. What a kubelet reports is told to it
//! here: `running` with fresh container IDs when a member starts, `terminated` with the IDs of the past when it was killed
//! and somebody is there to see it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::http::Http;
use super::{Doing, Failure, Res, fail, processes};
use crate::kubemem::{Options, Server};

const NAMESPACE: &str = "default";
/// The embedded API answers in microseconds, a real one in milliseconds; five seconds mean that it is off or hangs.
const CALL: Duration = Duration::from_secs(5);
/// The containers of a member's pod, as in the two-container shape.
const CONTAINERS: [&str; 2] = ["postgres", "patroni"];

/// A real API server, from the environment (tests/kube/with_api.sh).
#[derive(Clone, Debug)]
pub struct External {
    /// `https://HOST:PORT`.
    pub url: String,
    /// Of a cluster administrator.
    pub token: String,
    /// PEM file of its CA.
    pub ca: PathBuf,
}

impl External {
    /// `KUBE_API_URL`, `KUBE_API_TOKEN`, `KUBE_API_CA`, if there is such a server.
    pub fn from_environment() -> Option<External> {
        let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let ca = variable("KUBE_API_CA")?.into();
        Some(External { url: variable("KUBE_API_URL")?, token: variable("KUBE_API_TOKEN")?, ca })
    }
}

/// Which API it is.
enum Place {
    Embedded { server: Arc<Server>, stop: Option<oneshot::Sender<()>>, thread: Option<JoinHandle<()>> },
    External { ca: PathBuf, members_token: String },
}

/// The running API.
pub struct ApiServer {
    url: String,
    namespace: String,
    http: Http,
    place: Place,
}

impl ApiServer {
    /// Starts it on `bind` (port 0 picks one).
    ///
    /// # Errors
    /// The address is taken, or the thread could not be made.
    pub fn start(bind: SocketAddr) -> Res<ApiServer> {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(e) => return drop(ready.send(Err(Failure::from(e)))),
            };
            runtime.block_on(async {
                let options = Options { bind, ..Options::default() };
                match Server::start(options).await {
                    Err(e) => drop(ready.send(Err(Failure(format!("listen on {bind}: {e}"))))),
                    Ok(server) => {
                        drop(ready.send(Ok(Arc::new(server))));
                        drop(stopped.await);
                    }
                }
            });
        };
        let thread = std::thread::Builder::new().name("kubemem".into()).spawn(serve)?;
        let server: Arc<Server> = started.recv().doing("start the embedded API")??;
        let http = Http::new(Some(server.token().to_owned()));
        let (url, namespace) = (server.url(), NAMESPACE.to_owned());
        Ok(ApiServer {
            url,
            namespace,
            http,
            place: Place::Embedded { server, stop: Some(stop), thread: Some(thread) },
        })
    }

    /// A namespace of its own on a real server, and a service account with the rights that members need there.
    ///
    /// # Errors
    /// The server cannot be reached, or refused.
    pub async fn external(at: &External, scope: &str) -> Res<ApiServer> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("cluster-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let http = Http::with_ca(Some(at.token.clone()), &at.ca)?;
        let place = Place::External { ca: at.ca.clone(), members_token: String::new() };
        let mut api = ApiServer { url: at.url.clone(), namespace, http, place };
        let answer = api.make_account(scope).await?;
        let token = answer.pointer("/status/token").and_then(Value::as_str).unwrap_or_default().to_owned();
        api.place = Place::External { ca: at.ca.clone(), members_token: token };
        Ok(api)
    }

    /// Namespace, service account, Role and RoleBinding; the answer holds a token.
    async fn make_account(&self, scope: &str) -> Res<Value> {
        let ns = &self.namespace;
        let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}");
        let group = "rbac.authorization.k8s.io";
        let name = json!({"name": "patroni", "namespace": ns});
        let role = json!({"metadata": name, "rules": rules(scope)});
        let binding = json!({"metadata": name, "roleRef": {"apiGroup": group, "kind": "Role", "name": "patroni"},
            "subjects": [{"kind": "ServiceAccount", "name": "patroni", "namespace": ns}]});
        self.create("/api/v1/namespaces", json!({"metadata": {"name": ns}})).await?;
        self.create(&format!("/api/v1/namespaces/{ns}/serviceaccounts"), json!({"metadata": name})).await?;
        self.create(&format!("{rbac}/roles"), role).await?;
        self.create(&format!("{rbac}/rolebindings"), binding).await?;
        let token = json!({"spec": {"expirationSeconds": 7200}});
        self.create(&format!("/api/v1/namespaces/{ns}/serviceaccounts/patroni/token"), token).await
    }

    async fn create(&self, path: &str, body: Value) -> Res<Value> {
        match self.http.call("POST", &format!("{}{path}", self.url), Some(("application/json", body)), CALL).await? {
            (201, made) => Ok(made),
            (status, body) => fail(format!("POST {path}: {status} {body}")),
        }
    }

    /// `http://ADDRESS` or `https://ADDRESS`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Where everything of this cluster is.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// An address that pods may have: a real server refuses loopback in Endpoints. Nobody connects to it.
    pub fn pod_ip(&self) -> &'static str {
        match self.place {
            Place::Embedded { .. } => "127.0.0.1",
            Place::External { .. } => "10.254.254.254",
        }
    }

    /// The embedded server itself: faults, counts, objects.
    pub fn server(&self) -> Option<&Server> {
        match &self.place {
            Place::Embedded { server, .. } => Some(server),
            Place::External { .. } => None,
        }
    }

    /// Writes a kubeconfig for `kubectl` and the members to `path`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Res<()> {
        let text = match &self.place {
            Place::Embedded { server, .. } => server.kubeconfig(),
            Place::External { ca, members_token } => {
                // Members may not be able to enter the directory of the CA.
                let beside = path.with_extension("ca");
                std::fs::copy(ca, &beside).doing(format!("copy {}", ca.display()))?;
                json!({"apiVersion": "v1", "kind": "Config", "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": beside}}],
                    "users": [{"name": "test", "user": {"token": members_token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test",
                        "namespace": self.namespace}}]})
                .to_string()
            }
        };
        std::fs::write(path, text).doing(format!("write {}", path.display()))
    }

    fn at(&self, kind: &str, name: &str) -> String {
        format!("{}/api/v1/namespaces/{}/{kind}/{name}", self.url, self.namespace)
    }

    /// The annotations of an object; empty when it does not exist.
    ///
    /// # Errors
    /// The API did not answer, or with an error other than 404.
    pub async fn annotations(&self, kind: &str, name: &str) -> Res<BTreeMap<String, String>> {
        let object = self.object(kind, name).await?;
        let found = object.pointer("/metadata/annotations").and_then(Value::as_object);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        Ok(found.map(|m| m.iter().map(|(k, v)| (k.clone(), text(v))).collect()).unwrap_or_default())
    }

    /// An object, or null.
    ///
    /// # Errors
    /// As [`ApiServer::annotations`].
    pub async fn object(&self, kind: &str, name: &str) -> Res<Value> {
        match self.http.get(&self.at(kind, name), CALL).await? {
            (200, object) => Ok(object),
            (404, _) => Ok(Value::Null),
            (status, body) => fail(format!("get {kind} {name}: {status} {body}")),
        }
    }

    /// Creates the pod object of a member, its containers running.
    ///
    /// # Errors
    /// The API refused.
    pub async fn create_pod(&self, name: &str, labels: &Value, generation: u32) -> Res<()> {
        let containers: Vec<Value> = CONTAINERS.iter().map(|c| json!({"name": c, "image": "bare-process"})).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
            "spec": {"containers": containers, "nodeName": "localhost"},
        });
        self.create(&format!("/api/v1/namespaces/{}/pods", self.namespace), pod).await?;
        self.report(name, generation, None).await
    }

    /// Reports the containers of generation `running` as running, or those of it as terminated when `ended` says with
    /// which exit code.
    ///
    /// # Errors
    /// The API refused.
    pub async fn report(&self, name: &str, generation: u32, ended: Option<i32>) -> Res<()> {
        // Seconds, as a kubelet writes them.
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let id = |container: &str, generation: u32| format!("demo://{name}-{container}-{generation}");
        let statuses: Vec<Value> = CONTAINERS
            .iter()
            .map(|c| {
                let state = match ended {
                    None => json!({"running": {"startedAt": now}}),
                    Some(code) => json!({"terminated": {"exitCode": code, "containerID": id(c, generation)}}),
                };
                let last = match generation.checked_sub(1) {
                    Some(g) if g > 0 && ended.is_none() => {
                        json!({"terminated": {"exitCode": 137, "containerID": id(c, g)}})
                    }
                    Some(_) | None => json!({}),
                };
                json!({"name": c, "image": "bare-process", "imageID": "", "ready": ended.is_none(),
                    "restartCount": generation - 1, "containerID": id(c, generation), "state": state, "lastState": last})
            })
            .collect();
        let ip = self.pod_ip();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "containerStatuses": statuses}});
        let url = format!("{}/status", self.at("pods", name));
        let patch = Some(("application/merge-patch+json", status));
        match self.http.call("PATCH", &url, patch, CALL).await? {
            (200, _) => Ok(()),
            (status, body) => fail(format!("report the containers of {name}: {status} {body}")),
        }
    }

    /// Deletes an object, as a person with kubectl would.
    ///
    /// # Errors
    /// The API refused.
    pub async fn delete(&self, kind: &str, name: &str) -> Res<()> {
        match self.http.call("DELETE", &self.at(kind, name), None, CALL).await? {
            (200 | 202 | 404, _) => Ok(()),
            (status, body) => fail(format!("delete {kind} {name}: {status} {body}")),
        }
    }

    /// Switches the API off or on again. Embedded: connections are cut, new ones get nothing; a real server hangs.
    pub fn down(&self, down: bool) {
        match &self.place {
            Place::Embedded { server, .. } => server.faults().down(down),
            Place::External { .. } => {
                let signal = if down { Signal::STOP } else { Signal::CONT };
                let port = self.url.rsplit(':').next().unwrap_or_default();
                for pid in processes::with_words(&["kube-apiserver", &format!("--secure-port\0{port}\0")]) {
                    processes::send(pid, signal);
                }
            }
        }
    }
}

/// What members may do, rule by rule as in the chart's Role (charts/patroni/templates/rbac.yaml).
fn rules(scope: &str) -> Value {
    let kinds = json!(["endpoints", "configmaps"]);
    let objects: Vec<String> =
        ["", "-leader", "-config", "-failover", "-sync"].iter().map(|s| format!("{scope}{s}")).collect();
    let pods: Vec<String> = (0..9).map(|i| format!("{scope}-{i}")).collect();
    json!([
        {"apiGroups": [""], "resources": kinds, "verbs": ["list", "watch", "create"]},
        {"apiGroups": [""], "resources": kinds, "resourceNames": objects, "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["pods"], "resourceNames": pods, "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["services"], "verbs": ["create"]},
    ])
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down(false);
        let Place::Embedded { stop, thread, .. } = &mut self.place else { return };
        drop(stop.take());
        if let Some(thread) = thread.take() {
            // A panic of the API thread was printed when it happened.
            drop(thread.join());
        }
    }
}
