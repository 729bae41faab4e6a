//! Connections, authentication, routes.
//!
//! A request goes: fault switches → token → route → rules → fault rules → the store → latency → the reply (or not).
use super::call::{Call, Verb, decode};
use super::faults::{Client, Switches};
use super::run::run;
use super::status::Status;
use super::{Shared, discovery, lock, watch};
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

/// 401 for a token nobody has, 403 for what its owner may not do.
fn authorize(shared: &Shared, client: &Client, call: &Call) -> Result<(), Status> {
    let (verb, target) = (call.verb().word(), &call.target);
    let users = lock(&shared.users);
    let user = users.get(&client.token).ok_or_else(Status::unauthorized)?;
    let Some(rules) = &user.rules else {
        return Ok(());
    };
    let resource = call.resource();
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
    let mut call = Call::route(request.method().as_str(), &path, request.uri().query().unwrap_or(""))?;
    let counted = (call.verb().word().to_owned(), call.target.kind.plural.to_owned());
    *lock(&shared.counts).entry(counted).or_default() += 1;
    authorize(shared, &client, &call)?;
    match call.verb() {
        Verb::Watch => return watch::response(shared, &call, client),
        Verb::Get | Verb::List | Verb::DeleteCollection => {}
        Verb::Create | Verb::Update | Verb::Patch | Verb::Delete => {
            let content_type = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
            let content_type = content_type.to_owned();
            call.read_body(&content_type, &read_body(request).await?)?;
        }
    }
    let answer = run(&shared.store, &call);
    Ok(reply(answer.status, &answer.body))
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Status> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|_| Status::too_large_body(BODY_MAX))
}
