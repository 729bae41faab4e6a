//! What the other members say of themselves: `GET api_url`, 2 s each, in parallel.
//!
//! A failed question is an answer too: `Unreachable`, with words for the log. Server certificates are not verified, as in
//! Patroni: the lease is the protection, a forged answer can only delay a promotion. With `ctl.certfile` our client
//! certificate is sent and the server is verified against `ctl.cacert`, but not its name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::clock;
use crate::door::{Later, LiveMember, Peers};
use crate::model::{Asked, BootInstant, Cluster, Lsn, MemberName, PeerAnswer, PeerRole, Tags, Timeline};
use crate::tls::{Verify, client};

/// One question, connection included.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// `/liveness` of a member with my name.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(3);
/// A status document is a few kB; whoever sends more is not a member.
const BODY_MAX: usize = 256 * 1024;
/// One poll of all members is shared for this long.
const LIVE_AGE: Duration = Duration::from_secs(1);

/// `ctl.certfile`, `ctl.keyfile`, `ctl.cacert`: how this member shows itself to the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerTls {
    /// PEM client certificate chain; set = servers are verified, but not by name.
    pub certfile: Option<String>,
    /// PEM key; else read from `certfile`.
    pub keyfile: Option<String>,
    /// PEM anchors.
    pub cacert: Option<String>,
    /// User and password of the other members' REST APIs, for what they protect.
    pub authentication: Option<(String, String)>,
}

type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;
type Live = Arc<BTreeMap<MemberName, LiveMember>>;

/// The client. Cheap to clone; all clones share the poll.
#[derive(Clone)]
pub struct PeerClient {
    http: Http,
    authorization: Option<HeaderValue>,
    live: Arc<Mutex<Option<(BootInstant, Live)>>>,
}

impl PeerClient {
    /// A client for all members.
    ///
    /// # Errors
    /// One line: which file of `ctl.*` could not be read or used.
    pub fn new(tls: &PeerTls) -> Result<PeerClient, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(PEER_TIMEOUT));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(client_config(tls)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let authorization = tls.authentication.as_ref().map(|(user, password)| {
            let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            HeaderValue::try_from(format!("Basic {text}")).map_err(|e| format!("ctl.authentication: {e}"))
        });
        let authorization = authorization.transpose()?;
        Ok(PeerClient { http, authorization, live: Arc::new(Mutex::new(None)) })
    }

    /// Asks these members to leave the lock to whom `body` names (`POST /failsafe`), each by its name and the UID of its
    /// pod: the address may be somebody else's by now. Every one of them is in the answer. A
    /// member promises with status 200 and the word `Accepted`, and with nothing else.
    pub async fn ask_to_leave(
        &self,
        members: &Asked,
        body: &Value,
    ) -> BTreeMap<(MemberName, String), Result<(), String>> {
        let questions = members.iter().map(|(asked, url)| async move {
            let (name, uid) = asked;
            let mut body = body.clone();
            body["member"] = name.as_str().into();
            if !uid.is_empty() {
                body["uid"] = uid.as_str().into();
            }
            let answer = tokio::time::timeout(PEER_TIMEOUT, self.post_failsafe(url, &body)).await;
            let silent = || Err(format!("no answer within {} s", PEER_TIMEOUT.as_secs()));
            (asked.clone(), answer.unwrap_or_else(|_| silent()))
        });
        join_all(questions).await.into_iter().collect()
    }

    async fn post_failsafe(&self, url: &str, body: &Value) -> Result<(), String> {
        let base = origin(url).ok_or_else(|| format!("{url}: no address of a REST API"))?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{base}/failsafe"))
            .header(CONTENT_TYPE, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).map_err(|e| e.to_string())?;
        let response = self.http.request(request).await.map_err(|e| innermost(&e))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let text = String::from_utf8_lossy(&body.map_err(|e| e.to_string())?.to_bytes()).into_owned();
        match (status, text.trim()) {
            (200, "Accepted") => Ok(()),
            (502, _) => Err("failsafe_mode is off there".to_owned()),
            (status, text) => Err(format!("status {status}: {}", text.lines().next().unwrap_or_default())),
        }
    }

    /// Asks these members; every one of them is in the answer.
    pub async fn ask(&self, members: &BTreeMap<MemberName, String>) -> BTreeMap<MemberName, PeerAnswer> {
        let questions = members.iter().map(|(name, url)| async move {
            let answer = match self.document_of(name, url).await {
                Ok(document) => judge(&document),
                Err(why) => PeerAnswer::Unreachable(why),
            };
            (name.clone(), answer)
        });
        join_all(questions).await.into_iter().collect()
    }

    /// What all members but me say now; whoever does not answer is missing. Shared for a second.
    pub async fn live(&self, cluster: &Cluster, me: &MemberName) -> Live {
        let mut cached = self.live.lock().await;
        if let Some((at, live)) = &*cached
            && clock::boot().since(*at) <= LIVE_AGE
        {
            return live.clone();
        }
        let others = cluster.members.iter().filter(|(name, _)| *name != me);
        let questions = others.map(|(name, m)| async move {
            let document = self.document_of(name, m.api_url.as_deref()?).await.ok()?;
            Some((name.clone(), live_member(document)))
        });
        let live: Live = Arc::new(join_all(questions).await.into_iter().flatten().collect());
        // Stamped at its end: with a silent member a poll takes longer than it may be shared.
        *cached = Some((clock::boot(), live.clone()));
        live
    }

    /// Does anything answer at the REST address of `api_url`? (`GET /liveness`, any HTTP answer counts.)
    pub async fn anybody_home(&self, api_url: &str) -> bool {
        let Some(base) = origin(api_url) else { return false };
        let Ok(uri) = format!("{base}/liveness").parse() else { return false };
        tokio::time::timeout(LIVENESS_TIMEOUT, self.http.get(uri)).await.is_ok_and(|r| r.is_ok())
    }

    /// The status of this very member: an address may be somebody else's by now, who answers for itself.
    async fn document_of(&self, name: &MemberName, url: &str) -> Result<Map<String, Value>, String> {
        let document = self.document(url).await?;
        match answered_by(&document) {
            Some(other) if other != name.as_str() => Err(format!("answered by {other}")),
            Some(_) | None => Ok(document),
        }
    }

    async fn document(&self, url: &str) -> Result<Map<String, Value>, String> {
        if url.is_empty() {
            return Err("has no api_url".to_owned());
        }
        match tokio::time::timeout(PEER_TIMEOUT, self.get(url)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("GET {url}: no answer within {} s", PEER_TIMEOUT.as_secs())),
        }
    }

    async fn get(&self, url: &str) -> Result<Map<String, Value>, String> {
        let uri = url.parse().map_err(|e| format!("GET {url}: {e}"))?;
        let response = self.http.get(uri).await.map_err(|e| format!("GET {url}: {}", innermost(&e)))?;
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
        let body = body.map_err(|e| format!("GET {url}: read answer: {e}"))?.to_bytes();
        serde_json::from_slice(&body).map_err(|e| format!("GET {url}: parse answer: {e}"))
    }
}

impl Peers for PeerClient {
    fn ask(&self, members: BTreeMap<MemberName, String>) -> Later<'_, BTreeMap<MemberName, PeerAnswer>> {
        Box::pin(async move { PeerClient::ask(self, &members).await })
    }
    fn live(&self, cluster: Arc<Cluster>, me: MemberName) -> Later<'_, Arc<BTreeMap<MemberName, LiveMember>>> {
        Box::pin(async move { PeerClient::live(self, &cluster, &me).await })
    }
}

/// `http://host:port` of an `api_url`.
fn origin(api_url: &str) -> Option<&str> {
    let after = api_url.find("://")? + 3;
    let end = api_url[after..].find('/').map_or(api_url.len(), |i| after + i);
    Some(&api_url[..end])
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Whose status it is. Old versions of Patroni do not say.
fn answered_by(document: &Map<String, Value>) -> Option<&str> {
    document.get("patroni")?.get("name")?.as_str()
}

fn lsn(of: &Map<String, Value>, key: &str) -> Option<Lsn> {
    of.get(key).and_then(Value::as_u64).map(Lsn)
}

fn xlog(document: &Map<String, Value>) -> Option<&Map<String, Value>> {
    document.get("xlog").or_else(|| document.get("wal")).and_then(Value::as_object)
}

fn timeline(document: &Map<String, Value>) -> Option<Timeline> {
    let number = document.get("timeline").and_then(Value::as_u64)?;
    u32::try_from(number).ok().map(Timeline)
}

/// The newest timeline it has heard of: members of this implementation say so.
fn known_timeline(document: &Map<String, Value>) -> Timeline {
    let number = document.get("patroni").and_then(|p| p.get("known_timeline")).and_then(Value::as_u64);
    Timeline(number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0))
}

fn live_member(document: Map<String, Value>) -> LiveMember {
    let wal = xlog(&document);
    LiveMember {
        location: wal.and_then(|w| lsn(w, "location")),
        received: wal.and_then(|w| lsn(w, "received_location")),
        replayed: wal.and_then(|w| lsn(w, "replayed_location")),
        timeline: timeline(&document),
        document,
    }
}

/// What the race makes of a status document.
fn judge(document: &Map<String, Value>) -> PeerAnswer {
    let Some(wal) = xlog(document) else {
        let runs = document.get("state").and_then(Value::as_str) == Some("running");
        let known_timeline = timeline(document).unwrap_or_default().max(known_timeline(document));
        let why = "answered without a WAL position".to_owned();
        return if runs { PeerAnswer::Unfit { why, known_timeline } } else { PeerAnswer::Down { known_timeline } };
    };
    let says_primary = matches!(document.get("role").and_then(Value::as_str), Some("primary" | "master"));
    let (role, position) = match lsn(wal, "location") {
        Some(position) => (PeerRole::Primary, position),
        None => {
            let received = lsn(wal, "received_location").unwrap_or(Lsn::ZERO);
            let replayed = lsn(wal, "replayed_location").unwrap_or(Lsn::ZERO);
            (if says_primary { PeerRole::Primary } else { PeerRole::Standby }, received.max(replayed))
        }
    };
    PeerAnswer::Fit {
        role,
        position,
        timeline: timeline(document).unwrap_or_default(),
        known_timeline: known_timeline(document),
        tags: document.get("tags").and_then(Value::as_object).map(tags).unwrap_or_default(),
        watchdog_failed: document.get("watchdog_failed").and_then(Value::as_bool).unwrap_or(false),
        store_seen: document.get("dcs_last_seen").and_then(Value::as_i64),
    }
}

/// Effective tags as published. Any value that is not false-like counts as set.
pub(super) fn tags(map: &Map<String, Value>) -> Tags {
    let set = |key: &str| map.get(key).is_some_and(truthy);
    let priority = map.get("failover_priority").and_then(|v| v.as_i64().or_else(|| v.as_str()?.trim().parse().ok()));
    let nofailover = if map.contains_key("nofailover") { set("nofailover") } else { priority.is_some_and(|p| p <= 0) };
    Tags {
        nofailover,
        failover_priority: if nofailover { 0 } else { priority.unwrap_or(1) },
        clonefrom: set("clonefrom"),
        noloadbalance: set("noloadbalance"),
        nosync: set("nosync"),
        sync_priority: 1,
        nostream: set("nostream"),
        replicatefrom: map.get("replicatefrom").and_then(Value::as_str).filter(|s| !s.is_empty()).map(MemberName::from),
    }
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn client_config(tls: &PeerTls) -> Result<ClientConfig, String> {
    let Some(certfile) = &tls.certfile else {
        return Ok(client(Verify::Nothing, Vec::new())?.with_no_client_auth());
    };
    let cacert =
        tls.cacert.as_deref().ok_or("ctl.certfile is set: name the CA of the members in ctl.cacert as well")?;
    // Never by name: members are found by the addresses of their pods, and a certificate rarely names these.
    let builder = client(Verify::Issuer, certificates("ctl.cacert", cacert)?)
        .map_err(|e| format!("ctl.cacert: {cacert}: {e}"))?;
    let keyfile = tls.keyfile.as_ref().unwrap_or(certfile);
    let key =
        PrivateKeyDer::from_pem_file(keyfile).map_err(|e| format!("ctl.keyfile: read key from {keyfile}: {e}"))?;
    builder
        .with_client_auth_cert(certificates("ctl.certfile", certfile)?, key)
        .map_err(|e| format!("ctl.certfile: use {certfile}: {e}"))
}

fn certificates(key: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    crate::tls::certificates(file).map_err(|e| format!("{key}: read certificates from {file}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn object(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_reply_without_a_position_counts_as_unreachable_and_as_unfit_when_postgres_runs() {
        assert!(matches!(judge(&object(r#"{"state":"running","role":"replica"}"#)), PeerAnswer::Unfit { .. }));
        assert!(matches!(judge(&object(r#"{"state":"starting","role":"replica"}"#)), PeerAnswer::Down { .. }));
    }

    #[test]
    fn a_standby_counts_with_the_further_of_received_and_replayed() {
        let answer = judge(&object(
            r#"{"role":"replica","timeline":3,"tags":{"nofailover":true},"patroni":{"known_timeline":4},
                "xlog":{"received_location":100,"replayed_location":140,"paused":false}}"#,
        ));
        let PeerAnswer::Fit { role, position, timeline, known_timeline, tags, watchdog_failed, store_seen: None } =
            answer
        else {
            panic!("{answer:?}")
        };
        assert_eq!((role, position, timeline), (PeerRole::Standby, Lsn(140), Timeline(3)));
        assert_eq!(known_timeline, Timeline(4));
        assert!(tags.nofailover && tags.failover_priority == 0 && !watchdog_failed);
    }

    #[test]
    fn old_words_are_understood() {
        let answer = judge(&object(r#"{"role":"master","wal":{"location":7}}"#));
        assert!(matches!(answer, PeerAnswer::Fit { role: PeerRole::Primary, position: Lsn(7), .. }), "{answer:?}");
    }

    #[test]
    fn the_origin_of_an_address_keeps_ipv6_and_port() {
        assert_eq!(origin("https://[::1]:8008/patroni"), Some("https://[::1]:8008"));
        assert_eq!(origin("http://a:1"), Some("http://a:1"));
        assert_eq!(origin("a:1"), None);
    }

    /// Its pod is gone, and its address went to another one.
    #[tokio::test]
    async fn an_answer_by_another_name_is_none() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/patroni", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                assert!(socket.read(&mut request).await.unwrap() > 0);
                let reply = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n\
                             {\"role\": \"replica\", \"xlog\": {\"received_location\": 9}, \"patroni\": {\"name\": \"b\"}}";
                socket.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        let client = PeerClient::new(&PeerTls::default()).unwrap();
        let members = BTreeMap::from([("a".into(), url.clone()), ("b".into(), url.clone())]);
        let answers = client.ask(&members).await;
        assert_eq!(answers[&MemberName::from("a")], PeerAnswer::Unreachable("answered by b".to_owned()));
        assert!(matches!(answers[&MemberName::from("b")], PeerAnswer::Fit { position: Lsn(9), .. }));
        let mut cluster = Cluster::default();
        let listed = crate::model::Member { api_url: Some(url), ..Default::default() };
        cluster.members.extend(["a", "b"].map(|name| (name.into(), listed.clone())));
        let live = client.live(&cluster, &"c".into()).await;
        assert_eq!(live.keys().map(MemberName::as_str).collect::<Vec<_>>(), ["b"]);
    }

    /// HTTP/1.0 without a length, body ended by closing: what Patroni sends.
    #[tokio::test]
    async fn asks_members_in_parallel_and_names_those_that_fail() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert!(socket.read(&mut request).await.unwrap() > 0);
            let reply = "HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\n\r\n\
                         {\"role\": \"replica\", \"xlog\": {\"received_location\": 9}}";
            socket.write_all(reply.as_bytes()).await.unwrap();
        });
        let members = BTreeMap::from([
            ("a".into(), format!("http://{address}/patroni")),
            ("b".into(), String::new()),
            ("c".into(), "http://127.0.0.1:1/patroni".to_owned()),
        ]);
        let client = PeerClient::new(&PeerTls::default()).unwrap();
        let answers = client.ask(&members).await;
        assert!(matches!(answers[&MemberName::from("a")], PeerAnswer::Fit { position: Lsn(9), .. }));
        for name in ["b", "c"] {
            assert!(matches!(answers[&MemberName::from(name)], PeerAnswer::Unreachable(_)), "{name}");
        }
    }
}
