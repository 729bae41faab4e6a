//! A store, fake members that remember what they were asked, and `patronictl` run against them.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use patroni::kubemem::{Options, Server};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

pub type Calls = Arc<Mutex<Vec<String>>>;

/// What the fake members answer: `METHOD /path` → status and body.
pub type Answers = BTreeMap<&'static str, (u16, &'static str)>;

/// A REST API that nobody serves.
pub const NOWHERE: &str = "http://127.0.0.1:1/patroni";

pub struct World {
    pub server: Server,
    pub dir: TempDir,
    pub calls: Calls,
}

pub struct Run {
    pub out: String,
    pub err: String,
    pub code: i32,
}

#[derive(Clone)]
pub struct Fake {
    pub name: &'static str,
    pub answers: Arc<Answers>,
    pub calls: Calls,
}

pub async fn answer(
    State(fake): State<Fake>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let key = format!("{method} {}", uri.path());
    let auth = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or("-");
    if method != Method::GET {
        let line = format!("{} {key} {} {auth}", fake.name, String::from_utf8_lossy(&body));
        fake.calls.lock().unwrap().push(line);
    }
    match fake.answers.get(key.as_str()) {
        Some((status, text)) => (StatusCode::from_u16(*status).unwrap(), (*text).to_owned()),
        None => (StatusCode::NOT_FOUND, "nothing here".to_owned()),
    }
}

pub async fn fake_member(name: &'static str, answers: &Answers, calls: &Calls) -> String {
    let fake = Fake { name, answers: Arc::new(answers.clone()), calls: calls.clone() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/patroni", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer).with_state(fake);
    tokio::spawn(async move { axum::serve(Listener(listener), app).await });
    url
}

/// `axum::serve` wants a listener it can name the address of.
pub struct Listener(tokio::net::TcpListener);

impl axum::serve::Listener for Listener {
    type Io = tokio::net::TcpStream;
    type Addr = std::net::SocketAddr;
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.0.accept().await.unwrap()
    }
    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

pub fn labels() -> Value {
    json!({"application": "patroni", "cluster-name": "demo"})
}

impl World {
    /// Three members whose REST API answers like this; `None`: members without any address.
    pub async fn new(answers: Option<Answers>) -> World {
        let server = Server::start(Options::default()).await.unwrap();
        let calls = Calls::default();
        let dir = tempfile::tempdir().unwrap();
        let mut status = vec![
            (
                "pg-0",
                json!({"conn_url": "postgres://10.0.0.4:5432/postgres", "state": "running", "role": "primary",
                "version": "4.1.5", "xlog_location": 0x7000000, "timeline": 7}),
            ),
            (
                "pg-1",
                json!({"conn_url": "postgres://10.0.0.5:5432/postgres", "state": "running", "role": "replica",
                "version": "4.1.5", "receive_lsn": 0x7000000, "replay_lsn": 0x6FFFFF4, "replication_state": "streaming",
                "timeline": 7, "tags": {"clonefrom": true}}),
            ),
            (
                "pg-2",
                json!({"conn_url": "postgres://10.0.0.6:5432/postgres", "state": "running", "role": "replica",
                "version": "4.1.5", "receive_lsn": 0x6400000, "replay_lsn": 0x6000000,
                "replication_state": "in archive recovery", "timeline": 7}),
            ),
        ];
        for (name, value) in &mut status {
            if let Some(answers) = &answers {
                value["api_url"] = fake_member(name, answers, &calls).await.into();
            }
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c", "image": "i"}]},
                "metadata": {"name": *name, "namespace": "default", "labels": labels(), "annotations": {"status": value.to_string()}}});
            server.store().create("pods", "default", pod).unwrap();
        }
        let world = World { server, dir, calls };
        world.annotate(
            "demo-leader",
            json!({"leader": "pg-0", "ttl": "30", "optime": "117440512", "transitions": "1",
            "renewTime": "2026-11-22T20:00:00+00:00", "acquireTime": "2026-11-22T19:00:00+00:00"}),
        );
        let config = json!({"ttl": 30, "loop_wait": 10, "postgresql": {"use_pg_rewind": true, "parameters": {"max_connections": 100}}});
        let history = "[[1,67197376,\"no recovery target specified\",\"2026-11-01T00:00:00.123456+00:00\",\"pg-1\"]]";
        world.annotate(
            "demo-config",
            json!({"config": config.to_string(), "initialize": "7439021837465564321", "history": history}),
        );
        std::fs::write(world.dir.path().join("kubeconfig"), world.server.kubeconfig()).unwrap();
        let file = "scope: demo\nkubernetes:\n  labels: {application: patroni}\n  context: patroni-demo\nrestapi:\n  authentication: {username: u, password: p}\n";
        std::fs::write(world.dir.path().join("ctl.yaml"), file).unwrap();
        world
    }

    pub fn annotate(&self, name: &str, annotations: Value) {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default", "labels": labels(), "annotations": annotations}});
        self.server.store().create("configmaps", "default", object).unwrap();
    }

    pub fn annotation(&self, name: &str, key: &str) -> Value {
        let object = self.server.store().get("configmaps", "default", name).unwrap_or(Value::Null);
        object["metadata"]["annotations"][key].clone()
    }

    /// Puts these keys over what the member publishes.
    pub fn publish(&self, member: &str, keys: &Value) {
        let pod = self.server.store().get("pods", "default", member).unwrap();
        let text = pod["metadata"]["annotations"]["status"].as_str().unwrap();
        let mut status: Value = serde_json::from_str(text).unwrap();
        for (key, value) in keys.as_object().unwrap() {
            status[key.as_str()] = value.clone();
        }
        let patch = json!({"metadata": {"annotations": {"status": status.to_string()}}});
        self.server.store().merge("pods", "default", member, &patch).unwrap();
    }

    pub async fn run(&self, args: &str, input: &str) -> Run {
        let args: Vec<String> = shlex::split(args).unwrap();
        let config = self.dir.path().join("ctl.yaml");
        self.run_with(&args, input, &[("PATRONICTL_CONFIG_FILE", config.to_str().unwrap())]).await
    }

    pub async fn run_with(&self, args: &[String], input: &str, env: &[(&str, &str)]) -> Run {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_patronictl"))
            .args(args)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("TZ", "UTC")
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that does not read its input may have closed it already.
        drop(stdin.write_all(input.as_bytes()).await);
        drop(stdin);
        let limit = std::time::Duration::from_secs(30);
        let output = tokio::time::timeout(limit, child.wait_with_output()).await.expect("patronictl hangs").unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Run { out: text(output.stdout), err: text(output.stderr), code: output.status.code().unwrap() }
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}
