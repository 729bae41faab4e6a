//! Which handler serves a request.
//!
//! Only the first path segment selects a route. `GET`, `HEAD` and `OPTIONS` of an unknown segment are health checks with
//! the whole path; any other method there is 501, before any access check.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

use super::health::{self, Facts, Query};
use super::status::{Documents, Status};
use super::{Client, access, cluster, commands, json, metrics, status};
use crate::door::{Handle, PostgresStatus, Snapshot};

/// A request body is a handful of keys, `PUT /config` a configuration file.
const BODY_MAX: usize = 1024 * 1024;
/// A client that promises a body has this long to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a handler answers.
pub(super) struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
    /// The generic error page carries no extra headers.
    pub page: bool,
}

impl Reply {
    pub fn text(status: u16, body: impl Into<String>) -> Reply {
        Reply { status, content_type: "text/html", body: body.into(), page: false }
    }
    pub fn json(status: u16, value: &impl serde::Serialize) -> Reply {
        Reply { status, content_type: "application/json", body: json::text(value), page: false }
    }
    /// A document that is JSON already.
    fn rendered(status: u16, body: String) -> Reply {
        Reply { status, content_type: "application/json", body, page: false }
    }
    pub fn bare(ok: bool) -> Reply {
        Reply { status: if ok { 200 } else { 503 }, content_type: "", body: String::new(), page: false }
    }
    /// The generic error page.
    pub fn page(status: u16) -> Reply {
        let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        Reply::page_with(status, reason, reason)
    }
    /// The same with the reason in words.
    pub fn page_because(status: u16, why: &str) -> Reply {
        let reason = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        let why = why.trim_end_matches('.').replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        Reply::page_with(status, reason, if why.is_empty() { reason } else { &why })
    }
    fn page_with(status: u16, reason: &str, text: &str) -> Reply {
        let body = format!(
            "<!DOCTYPE html>\n<html><head><title>Error response</title></head><body>\n<h1>Error response</h1>\n\
             <p>Error code: {status}</p>\n<p>Message: {reason}.</p>\n<p>Error code explanation: {status} - {text}.</p>\n\
             </body></html>\n"
        );
        Reply { status, content_type: "text/html;charset=utf-8", body, page: true }
    }
    fn unsupported(method: &Method) -> Reply {
        let reason = format!("Unsupported method ('{method}')");
        Reply::page_with(501, &reason, "Server does not support this operation")
    }
}

pub(super) fn router(handle: Handle) -> Router {
    Router::new().fallback(serve).with_state(Door { handle, documents: Arc::default() })
}

/// What requests share.
#[derive(Clone)]
struct Door {
    handle: Handle,
    documents: Arc<Documents>,
}

async fn serve(State(door): State<Door>, request: Request) -> Response {
    let handle = &door.handle;
    let began = handle.now().boot;
    let (parts, body) = request.into_parts();
    let client = parts.extensions.get::<Client>().copied();
    let path = format!("/{}", parts.uri.path().trim_start_matches('/'));
    let query = parse_query(parts.uri.query().unwrap_or(""));
    let reply = match parts.method {
        Method::GET => get(&door, &path, &query).await,
        Method::HEAD | Method::OPTIONS => Reply::bare(check(&door, &path, &query).await.1),
        _ => write(handle, &parts.method, &path, &parts.headers, body, client).await,
    };
    let took = handle.now().boot.since(began);
    debug!(
        "API {} - - \"{} {}\" {} latency: {:.3} ms",
        client.map_or_else(String::new, |c| c.addr.ip().to_string()),
        parts.method,
        parts.uri,
        reply.status,
        took.as_secs_f64() * 1000.0
    );
    respond(handle, reply)
}

fn segment(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or("")
}

async fn get(door: &Door, path: &str, query: &Query) -> Reply {
    let handle = &door.handle;
    let snapshot = handle.snapshot();
    match segment(path) {
        "liveness" => Reply::bare(snapshot.is_live(handle.now().boot)),
        "readiness" => {
            let (snapshot, postgres, status) = door.look().await;
            let facts =
                Facts { snapshot: &snapshot, status: &status, postgres: postgres.as_deref(), now: handle.now().boot };
            Reply::bare(health::is_ready(&facts, query))
        }
        "patroni" => Reply::rendered(200, door.look().await.2.text.clone()),
        "cluster" => cluster::cluster(handle).await,
        "history" => cluster::history(&snapshot),
        "config" => cluster::config(&snapshot),
        "failsafe" => cluster::failsafe(&snapshot),
        "metrics" => {
            let (snapshot, postgres, status) = door.look().await;
            metrics::reply(&snapshot, &status, postgres.as_deref())
        }
        _ => {
            let (status, ok) = check(door, path, query).await;
            Reply::rendered(if ok { 200 } else { 503 }, status.text.clone())
        }
    }
}

impl Door {
    /// Postgres, asked after the request came, and everything else as of the last tick.
    async fn look(&self) -> (Arc<Snapshot>, Option<Arc<PostgresStatus>>, Arc<Status>) {
        let postgres = status::postgres(&self.handle).await;
        let snapshot = self.handle.snapshot();
        let status = self.documents.status(&snapshot, postgres.as_ref());
        (snapshot, postgres, status)
    }
}

async fn check(door: &Door, path: &str, query: &Query) -> (Arc<Status>, bool) {
    let (snapshot, postgres, status) = door.look().await;
    let now = door.handle.now().boot;
    let facts = Facts { snapshot: &snapshot, status: &status, postgres: postgres.as_deref(), now };
    let ok = health::is_ok(&facts, path, query);
    (status, ok)
}

async fn write(
    handle: &Handle,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: Body,
    client: Option<Client>,
) -> Reply {
    let Some(route) = commands::Route::find(method, segment(path)) else { return Reply::unsupported(method) };
    if let Some(refusal) = access::refuse(handle, headers, client, route).await {
        return refusal;
    }
    let body = match read_body(headers, body, route.body()).await {
        Ok(body) => body,
        Err((status, why)) => return Reply::page_because(status, &why),
    };
    commands::run(handle, route, body).await
}

/// Reads the JSON object; else the status and the reason.
async fn read_body(
    headers: &HeaderMap,
    body: Body,
    wanted: commands::BodyRule,
) -> Result<Map<String, Value>, (u16, String)> {
    use commands::BodyRule;
    let refuse = |status: u16, why: &str| Err((status, why.to_owned()));
    if wanted == BodyRule::None {
        return Ok(Map::new());
    }
    let mandatory = wanted == BodyRule::Mandatory;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    match length {
        None if mandatory => return refuse(411, "a JSON object and its Content-Length are needed"),
        Some(0) if mandatory => return refuse(400, "a JSON object is needed, the body is empty"),
        None | Some(0) => return Ok(Map::new()),
        Some(_) => {}
    }
    if length.is_some_and(|n| n > BODY_MAX as u64) {
        return refuse(413, "the body is larger than 1 MiB");
    }
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(read)) => read.to_bytes(),
        Ok(Err(e)) => return refuse(400, &format!("the body cannot be read: {e}")),
        Err(_) => return refuse(408, "the body did not come in time"),
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) if mandatory && map.is_empty() => refuse(400, "the JSON object is empty"),
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => refuse(400, "the body is not a JSON object"),
        Err(e) => refuse(400, &format!("the body is not JSON: {e}")),
    }
}

fn respond(handle: &Handle, reply: Reply) -> Response {
    let settings = handle.api_settings().borrow().clone();
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if reply.content_type.is_empty() {
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    let server = match settings.server_tokens.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("productonly") => "Patroni".to_owned(),
        _ => format!("Patroni/{}", handle.snapshot().version),
    };
    if let Ok(value) = HeaderValue::from_str(&server) {
        headers.insert(header::SERVER, value);
    }
    if reply.status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Patroni\""));
    }
    if !reply.page {
        let https = settings.certfile.is_some();
        let extra = settings.http_extra_headers.iter().chain(settings.https_extra_headers.iter().filter(|_| https));
        for (name, value) in extra {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
    }
    response
}

/// A parameter without a value counts as not given.
fn parse_query(text: &str) -> Query {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (percent_decode(key), percent_decode(value)))
        .collect()
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let hex: Vec<u8> = bytes.clone().take(2).collect();
                match std::str::from_utf8(&hex).ok().and_then(|h| u8::from_str_radix(h, 16).ok()) {
                    Some(byte) if hex.len() == 2 => {
                        out.push(byte);
                        bytes.nth(1);
                    }
                    _ => out.push(b'%'),
                }
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = parse_query("lag=1%20MB&tag_a=x+y&flag");
        assert_eq!(health::first(&query, "lag"), Some("1 MB"));
        assert_eq!(health::first(&query, "tag_a"), Some("x y"));
        assert_eq!(health::first(&query, "flag"), None);
        assert_eq!(percent_decode("50%"), "50%");
    }

    #[test]
    fn only_the_first_segment_selects() {
        assert_eq!(segment("/patroni/anything"), "patroni");
        assert_eq!(segment("/"), "");
    }

    #[test]
    fn the_unsupported_page_carries_the_words_patronictl_looks_for() {
        let reply = Reply::unsupported(&Method::POST);
        assert_eq!(reply.status, 501);
        assert!(reply.body.contains("Server does not support this operation"));
        assert!(reply.body.contains("Message: Unsupported method ('POST')."));
    }
}
