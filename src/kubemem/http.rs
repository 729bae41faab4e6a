//! Connections, authentication, routes.
//!
//! A request goes: fault switches → token → route → rules → fault rules → the store → latency → the reply (or not).
use super::calls::Call;
use super::faults::{Client, Switches};
use super::kinds::Kind;
use super::status::Status;
use super::{Shared, discovery, lock};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

pub(crate) type Body = UnsyncBoxBody<Bytes, Error>;

/// Largest request body: etcd's default limit of 1.5 MiB, doubled as the real server does.
const BODY_MAX: usize = 3 * 1024 * 1024;
/// Pause after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the task is aborted.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, Arc::clone(&shared)))),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn reset(stream: &TcpStream) {
    // Without the option the peer sees an orderly close instead of a reset: still an end.
    stream.set_zero_linger().unwrap_or_default();
}

/// One connection, until it ends or a switch resets it.
async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut switches = shared.faults.switches();
    if switches.borrow_and_update().is_down(None) {
        return reset(&stream);
    }
    stream.set_nodelay(true).unwrap_or_default();
    let client: Arc<Mutex<Option<Client>>> = Arc::default();
    let seen = Arc::clone(&client);
    let service = service_fn(move |request| answer(request, Arc::clone(&shared), Arc::clone(&seen)));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    loop {
        tokio::select! {
            _ended = &mut connection => return,
            changed = switches.changed() => {
                let down = switches.borrow_and_update().is_down(lock(&client).as_ref());
                if changed.is_err() || down {
                    break;
                }
            }
        }
    }
    reset(connection.into_parts().io.inner());
}

fn broken(why: &str) -> Error {
    Error::new(ErrorKind::ConnectionReset, why)
}

pub(crate) fn reply(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    if code == 429 || code == 504 {
        response.headers_mut().insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    }
    response
}

/// One request; an error closes the connection without an answer.
async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    seen: Arc<Mutex<Option<Client>>>,
) -> Result<Response<Body>, Error> {
    let client = client_of(&request);
    lock(&seen).replace(client.clone());
    let mut switches = shared.faults.switches();
    if switches.borrow().is_down(Some(&client)) {
        return Err(broken("the server is down"));
    }
    wait_while_hanging(&mut switches, &client).await?;
    let method = request.method().as_str().to_owned();
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let response = match shared.faults.refusal(&method, &path, &client) {
        Some(code) => reply(code, &Status::injected(code).to_value()),
        None => {
            let dropped = shared.faults.drops_reply(&method, &path, &client);
            let response = match route(request, &shared, client.clone()).await {
                Ok(response) => response,
                Err(status) => reply(status.code, &status.to_value()),
            };
            if dropped {
                return Err(broken("the reply was dropped"));
            }
            response
        }
    };
    let delay = switches.borrow().delay(&client);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    wait_while_hanging(&mut switches, &client).await?;
    Ok(response)
}

async fn wait_while_hanging(
    switches: &mut tokio::sync::watch::Receiver<Switches>,
    client: &Client,
) -> Result<(), Error> {
    let waited = switches.wait_for(|s| !s.hangs(client)).await;
    waited.map(|_| ()).map_err(|_| broken("the server is gone"))
}

/// The token comes from the header or, since kubectl sends no credentials over plain HTTP, from a `/as/TOKEN`
/// before the path.
fn client_of(request: &Request<Incoming>) -> Client {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let token = match text(AUTHORIZATION).strip_prefix("Bearer ") {
        Some(token) => token.trim(),
        None => split_token(request.uri().path()).0,
    };
    Client { token: token.to_owned(), agent: text(USER_AGENT).to_owned() }
}

/// Splits `/as/TOKEN/PATH`; the token is empty when there is none.
fn split_token(path: &str) -> (&str, &str) {
    let Some(rest) = path.strip_prefix("/as/") else {
        return ("", path);
    };
    let end = rest.find('/').unwrap_or(rest.len());
    rest.split_at(end)
}

/// What a URL under `/api` or `/apis` names.
pub(crate) struct Target {
    pub kind: &'static Kind,
    pub namespace: String,
    pub name: String,
    pub status: bool,
}

fn target(segments: &[&str]) -> Option<Target> {
    let (group, rest) = match segments {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, "v1", rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, plural, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if *plural != "status" => (*namespace, *plural, rest),
        [plural, rest @ ..] => ("", *plural, rest),
        [] => return None,
    };
    let kind = Kind::find(group, plural)?;
    let (name, status) = match rest {
        [] => ("", false),
        [name] => (*name, false),
        [name, "status"] if kind.status => (*name, true),
        _ => return None,
    };
    let misplaced =
        (kind.namespaced && namespace.is_empty() && !name.is_empty()) || (!kind.namespaced && !namespace.is_empty());
    let target = Target { kind, namespace: namespace.to_owned(), name: name.to_owned(), status };
    (!misplaced).then_some(target)
}

pub(crate) type Parameters = BTreeMap<String, String>;

pub(crate) fn is_true(parameters: &Parameters, key: &str) -> bool {
    parameters.get(key).is_some_and(|value| !matches!(value.as_str(), "false" | "0" | ""))
}

pub(crate) fn text<'a>(parameters: &'a Parameters, key: &str) -> &'a str {
    parameters.get(key).map_or("", String::as_str)
}

fn parse_query(query: &str) -> Parameters {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn verb(method: &Method, target: &Target, watching: bool) -> Result<&'static str, Status> {
    let one = !target.name.is_empty();
    match (method.as_str(), one) {
        ("GET", _) if watching => Ok("watch"),
        ("GET", true) => Ok("get"),
        ("GET", false) => Ok("list"),
        ("POST", false) => Ok("create"),
        ("PUT", true) => Ok("update"),
        ("PATCH", true) => Ok("patch"),
        ("DELETE", true) if !target.status => Ok("delete"),
        ("DELETE", false) => Ok("deletecollection"),
        _ => Err(Status::method_not_allowed()),
    }
}

/// 401 for a token nobody has, 403 for what its owner may not do.
fn authorize(shared: &Shared, client: &Client, verb: &str, target: &Target) -> Result<(), Status> {
    let users = lock(&shared.users);
    let user = users.get(&client.token).ok_or_else(Status::unauthorized)?;
    let Some(rules) = &user.rules else {
        return Ok(());
    };
    let slash = if target.status { "/status" } else { "" };
    let resource = format!("{}{slash}", target.kind.plural);
    let allowed = |(v, r): &(String, String)| (v == "*" || v == verb) && (r == "*" || *r == resource);
    if rules.iter().any(allowed) {
        return Ok(());
    }
    let scope = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", target.namespace)
    };
    let why = format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {:?} {scope}",
        user.name, target.kind.group
    );
    Err(Status::forbidden(target.kind, &target.name, &why))
}

async fn route(request: Request<Incoming>, shared: &Arc<Shared>, client: Client) -> Result<Response<Body>, Status> {
    let path = decode(split_token(request.uri().path()).1);
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    if let ["healthz" | "livez" | "readyz", ..] = segments.as_slice() {
        let body = Full::new(Bytes::from_static(b"ok")).map_err(|never| match never {}).boxed_unsync();
        return Ok(Response::new(body));
    }
    if segments != ["version"] && !lock(&shared.users).contains_key(&client.token) {
        return Err(Status::unauthorized());
    }
    if let Some(document) = discovery::document(&segments, shared.address) {
        return if request.method() == Method::GET {
            Ok(reply(200, &document))
        } else {
            Err(Status::method_not_allowed())
        };
    }
    let target = target(&segments).ok_or_else(Status::no_such_path)?;
    let parameters = parse_query(request.uri().query().unwrap_or(""));
    let verb = verb(request.method(), &target, is_true(&parameters, "watch"))?;
    *lock(&shared.counts).entry((verb.to_owned(), target.kind.plural.to_owned())).or_default() += 1;
    authorize(shared, &client, verb, &target)?;
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let call = Call { shared: Arc::clone(shared), target, parameters, content_type, client };
    match verb {
        "watch" => call.watch(),
        "get" => call.get(),
        "list" => call.list(),
        "create" => call.create(read_body(request).await?),
        "update" => call.update(read_body(request).await?),
        "patch" => call.patch(read_body(request).await?),
        "delete" => call.delete(read_body(request).await?),
        _ => call.delete_collection(),
    }
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Status> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|_| Status::too_large_body(BODY_MAX))
}
