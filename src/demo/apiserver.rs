//! The embedded Kubernetes API in a thread of its own, and the part of the kubelet that bare processes need: pod objects
//! with labels, an address and container states.
//!
//! The API has its own thread so that neither the clients nor the harness delay it. What a kubelet reports is told to it
//! here: `running` with fresh container IDs when a member starts, `terminated` with the IDs of the past when it was killed
//! and somebody is there to see it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::http::Http;
use super::{Doing, Failure, Res, fail};
use crate::kubemem::{Options, Server};

const NAMESPACE: &str = "default";
/// The embedded API answers in microseconds; two seconds mean that it is switched off or hangs.
const CALL: Duration = Duration::from_secs(2);
/// The containers of a member's pod, as in the two-container shape.
const CONTAINERS: [&str; 2] = ["postgres", "patroni"];

/// The running API.
pub struct ApiServer {
    server: Arc<Server>,
    http: Http,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
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
        Ok(ApiServer { server, http, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://ADDRESS`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The server itself: faults, counts, objects.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Writes a kubeconfig for `kubectl` and the members to `path`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Res<()> {
        std::fs::write(path, self.server.kubeconfig()).doing(format!("write {}", path.display()))
    }

    fn at(&self, kind: &str, name: &str) -> String {
        format!("{}/api/v1/namespaces/{NAMESPACE}/{kind}/{name}", self.url())
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
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {"containers": containers, "nodeName": "localhost"},
        });
        let url = format!("{}/api/v1/namespaces/{NAMESPACE}/pods", self.url());
        let (status, body) = self.http.call("POST", &url, Some(("application/json", pod)), CALL).await?;
        if status != 201 {
            return fail(format!("create pod {name}: {status} {body}"));
        }
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
        let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1",
            "podIPs": [{"ip": "127.0.0.1"}], "containerStatuses": statuses}});
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

    /// Switches the API off (connections are cut, new ones get nothing) or on again.
    pub fn down(&self, down: bool) {
        self.server.faults().down(down);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the API thread was printed when it happened.
            drop(thread.join());
        }
    }
}
