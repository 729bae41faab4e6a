//! A small HTTP client for an API server: one request per connection, JSON in and out.
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use patroni::kubemem::{Options, Server};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// No answer in a test takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const JSON_PATCH: &str = "application/json-patch+json";

/// The server under test.
#[derive(Clone)]
pub struct Target {
    pub address: String,
    pub token: String,
    pub namespace: String,
    /// Speak TLS, and trust these.
    pub tls: Option<Arc<ClientConfig>>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A server as strict as a real one, with quick bookmarks.
pub async fn embedded() -> Server {
    let options =
        Options { loopback_addresses: false, bookmark_interval: Duration::from_millis(200), ..Options::default() };
    Server::start(options).await.unwrap()
}

impl Target {
    pub fn of(server: &Server) -> Self {
        let (address, token) = (server.addr().to_string(), server.token().to_owned());
        Self { address, token, namespace: "default".to_owned(), tls: None }
    }

    /// `KUBE_API_URL` (`http://HOST:PORT`, or `https://` with the file `KUBE_API_CA`) and `KUBE_API_TOKEN`.
    pub fn from_environment() -> Option<Self> {
        let url = std::env::var("KUBE_API_URL").ok()?;
        let token = std::env::var("KUBE_API_TOKEN").unwrap_or_default();
        let (scheme, rest) = url.split_once("://").expect("KUBE_API_URL has a scheme");
        let address = rest.trim_end_matches('/').to_owned();
        let tls = (scheme == "https").then(|| trust(&std::env::var("KUBE_API_CA").expect("https needs KUBE_API_CA")));
        Some(Self { address, token, namespace: format!("kube-api-{}", std::process::id()), tls })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let stream = TcpStream::connect(&self.address).await.map_err(|e| e.to_string())?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|e| e.to_string())?;
        Ok(Box::new(stream))
    }

    pub fn path(&self, rest: &str) -> String {
        format!("/api/v1/namespaces/{}/{rest}", self.namespace)
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<hyper::Response<Incoming>, String> {
        let work = async {
            let stream = self.connect().await?;
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            let request = hyper::Request::builder()
                .method(method)
                .uri(path)
                .header("host", &self.address)
                .header("authorization", format!("Bearer {}", self.token))
                .header("content-type", content_type)
                .body(Full::new(body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()))))
                .unwrap();
            sender.send_request(request).await.map_err(|e| e.to_string())
        };
        timeout(PATIENCE, work).await.map_err(|_| "no answer".to_owned())?
    }

    pub async fn call(&self, method: &str, path: &str, content_type: &str, body: Option<&Value>) -> (u16, Value) {
        let response = self.send(method, path, content_type, body).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        (code, value)
    }

    /// 36 of Kubernetes 1.36. What changed over the years is asserted for the servers that have it.
    pub async fn minor(&self) -> u32 {
        let (_, version) = self.call("GET", "/version", "application/json", None).await;
        version["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap()
    }

    pub async fn get(&self, rest: &str) -> (u16, Value) {
        self.call("GET", &self.path(rest), "application/json", None).await
    }

    pub async fn post(&self, rest: &str, body: &Value) -> (u16, Value) {
        self.call("POST", &self.path(rest), "application/json", Some(body)).await
    }

    pub async fn put(&self, rest: &str, body: &Value) -> (u16, Value) {
        self.call("PUT", &self.path(rest), "application/json", Some(body)).await
    }

    pub async fn patch(&self, rest: &str, content_type: &str, body: &Value) -> (u16, Value) {
        self.call("PATCH", &self.path(rest), content_type, Some(body)).await
    }

    pub async fn delete(&self, rest: &str) -> (u16, Value) {
        self.call("DELETE", &self.path(rest), "application/json", None).await
    }

    pub async fn watch(&self, rest: &str) -> Events {
        let response = self.send("GET", &self.path(rest), "application/json", None).await.unwrap();
        assert_eq!(response.status(), 200, "watch {rest}");
        Events { body: response.into_body(), text: String::new() }
    }
}

fn trust(file: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// An open watch.
pub struct Events {
    body: Incoming,
    text: String,
}

impl Events {
    /// The next event; `None` when the stream ended or broke.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let event = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                return Some(event);
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("an event in time")?.ok()?;
            self.text.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
        }
    }

    /// The next event as `TYPE name`.
    pub async fn next_short(&mut self) -> String {
        let event = self.next().await.expect("an event");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-");
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

pub fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub fn config_map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"key": value}})
}

pub fn pod(name: &str, role: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"role": role}},
        "spec": {"containers": [{"name": "main", "image": "example/main:1"}]}})
}

pub fn subset(ip: &str, ports: Value) -> Value {
    json!([{"addresses": [{"ip": ip}], "ports": ports}])
}
