//! Connections, authentication, routes.
//!
//! A request goes: fault switches → token → route → rules → fault rules → the store → latency → the reply (or not).
use super::faults::{Client, Switches};
use super::kinds::Kind;
use super::patch::PatchType;
use super::select::Selector;
use super::status::{FieldError, Status};
use super::store::{DeleteOptions, Part, Query};
use super::watch::{self, Watch};
use super::{Shared, discovery, lock};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

type Body = UnsyncBoxBody<Bytes, Error>;

/// Largest request body: etcd's default limit of 1.5 MiB, doubled as the real server does.
const BODY_MAX: usize = 3 * 1024 * 1024;
/// A watch without timeoutSeconds ends after this long (the real server: 30 to 60 minutes).
const WATCH_MAX: Duration = Duration::from_secs(2700);
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

fn reply(code: u16, value: &Value) -> Response<Body> {
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
struct Target {
    kind: &'static Kind,
    namespace: String,
    name: String,
    status: bool,
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
    let misplaced = (kind.namespaced && namespace.is_empty() && !name.is_empty())
        || (!kind.namespaced && !namespace.is_empty());
    let target = Target { kind, namespace: namespace.to_owned(), name: name.to_owned(), status };
    (!misplaced).then_some(target)
}

type Parameters = BTreeMap<String, String>;

fn is_true(parameters: &Parameters, key: &str) -> bool {
    parameters.get(key).is_some_and(|value| !matches!(value.as_str(), "false" | "0" | ""))
}

fn text<'a>(parameters: &'a Parameters, key: &str) -> &'a str {
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
        return if request.method() == Method::GET { Ok(reply(200, &document)) } else { Err(Status::method_not_allowed()) };
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

/// One authorized call on an object or a collection.
struct Call {
    shared: Arc<Shared>,
    target: Target,
    parameters: Parameters,
    content_type: String,
    client: Client,
}

impl Call {
    fn json(&self, body: &[u8]) -> Result<Value, Status> {
        let kind = self.content_type.split(';').next().unwrap_or("").trim();
        if !matches!(kind, "" | "application/json" | "*/*") {
            return Err(Status::unsupported_media_type("application/json"));
        }
        let value: Value = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
        let (group_version, expected) = (value["apiVersion"].as_str(), self.target.kind.api_version());
        if value["kind"].as_str().is_some_and(|kind| kind != self.target.kind.kind)
            || group_version.is_some_and(|version| version != expected)
        {
            let said = format!("{}, Kind={}", group_version.unwrap_or(""), value["kind"].as_str().unwrap_or(""));
            let message = format!(
                "the object provided is unrecognized (must be of type {}): got {said}, expected {expected}",
                self.target.kind.kind
            );
            return Err(Status::bad_request(message));
        }
        Ok(value)
    }

    fn selector(&self) -> Result<Selector, Status> {
        let labels = text(&self.parameters, "labelSelector");
        let selector = Selector::parse(self.target.kind, labels, text(&self.parameters, "fieldSelector"))?;
        Ok(if self.target.name.is_empty() { selector } else { selector.named(&self.target.name) })
    }

    fn get(&self) -> Result<Response<Body>, Status> {
        let found = self.shared.store.read(self.target.kind, &self.target.namespace, &self.target.name)?;
        Ok(reply(200, &found))
    }

    fn version_parameter(&self) -> Result<Option<u64>, Status> {
        match text(&self.parameters, "resourceVersion") {
            "" | "0" => Ok(None),
            number => number.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("Invalid value: {number:?}: strconv.ParseUint: parsing {number:?}: invalid syntax"))
            }),
        }
    }

    fn list(&self) -> Result<Response<Body>, Status> {
        let (from, mut at) = match text(&self.parameters, "continue") {
            "" => (None, None),
            token => read_continue(token)?,
        };
        let version = self.version_parameter()?;
        if let Some(version) = version.filter(|_| from.is_none()) {
            let current = self.shared.store.version();
            if version > current {
                return Err(Status::too_large_version(version, current));
            }
            if text(&self.parameters, "resourceVersionMatch") == "Exact" {
                at = Some(version);
            }
        }
        let selector = self.selector()?;
        let everything = selector.is_everything();
        let limit = text(&self.parameters, "limit").parse().unwrap_or(0);
        let query = Query { namespace: &self.target.namespace, selector, limit, from, at };
        let page = self.shared.store.page(self.target.kind, &query)?;
        let items: Vec<Value> = page.items.iter().map(|item| bare(item)).collect();
        let mut metadata = json!({"resourceVersion": page.version.to_string()});
        if let Some((namespace, name)) = page.next {
            let token = json!({"v": "meta.k8s.io/v1", "rv": page.version, "start": format!("{namespace}/{name}")});
            metadata["continue"] = json!(STANDARD_NO_PAD.encode(token.to_string()));
            if everything {
                metadata["remainingItemCount"] = json!(page.remaining);
            }
        }
        Ok(reply(200, &self.list_of(metadata, items)))
    }

    fn list_of(&self, metadata: Value, items: Vec<Value>) -> Value {
        let kind = self.target.kind;
        json!({
            "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata, "items": items,
        })
    }

    fn watch(&self) -> Result<Response<Body>, Status> {
        if self.parameters.contains_key("sendInitialEvents") {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            let error = FieldError::forbidden("sendInitialEvents", why);
            let options = Kind { group: "meta.k8s.io", kind: "ListOptions", ..list_options() };
            return Err(Status::invalid(&options, "", &[error]));
        }
        let store = self.shared.store.clone();
        let switches = self.shared.faults.switches();
        let cuts = switches.borrow().cuts(&self.client);
        let timeout = text(&self.parameters, "timeoutSeconds").parse().ok().filter(|s| *s > 0);
        let interval = self.shared.bookmark_interval;
        let mut watch = Watch {
            kind: self.target.kind,
            namespace: self.target.namespace.clone(),
            selector: self.selector()?,
            position: 0,
            queue: Default::default(),
            bookmarks: is_true(&self.parameters, "allowWatchBookmarks").then_some(interval),
            next_bookmark: Instant::now() + interval,
            deadline: Instant::now() + timeout.map_or(WATCH_MAX, Duration::from_secs).min(WATCH_MAX),
            finished: false,
            latest: store.changes(),
            store,
            switches,
            client: self.client.clone(),
            cuts,
        };
        match self.version_parameter()? {
            Some(version) => watch.position = version,
            None => {
                let query = Query { namespace: &watch.namespace, selector: watch.selector.clone(), ..Query::default() };
                let page = watch.store.page(watch.kind, &query)?;
                watch.start_with(&page.items, page.version);
            }
        }
        let frames = futures::stream::unfold(watch, watch::next);
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        Ok(response)
    }

    fn create(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, .. } = &self.target;
        if kind.namespaced && namespace.is_empty() {
            return Err(Status::method_not_allowed());
        }
        let object = self.json(&body)?;
        self.refuse_dry_run()?;
        let made = self.shared.store.create_part(kind, namespace, object, Part::Main)?;
        Ok(reply(201, &made))
    }

    fn refuse_dry_run(&self) -> Result<(), Status> {
        if text(&self.parameters, "dryRun").is_empty() {
            return Ok(());
        }
        Err(Status::bad_request("this embedded API server does not do dry runs; leave dryRun out"))
    }

    fn part(&self) -> Part {
        if self.target.status { Part::Status } else { Part::Main }
    }

    fn update(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, name, .. } = &self.target;
        let object = self.json(&body)?;
        self.refuse_dry_run()?;
        let store = &self.shared.store;
        match store.write(kind, namespace, name, self.part(), |_| Ok(object.clone())) {
            Err(status) if status.code == 404 && kind.put_creates && !self.target.status => {
                let mut object = object;
                if object["metadata"]["name"].as_str() != Some(name) {
                    let said = object["metadata"]["name"].as_str().unwrap_or("");
                    let message = format!("the name of the object ({said}) does not match the name on the URL ({name})");
                    return Err(Status::bad_request(message));
                }
                object["metadata"]["resourceVersion"] = Value::Null;
                let made = store.create_part(kind, namespace, object, Part::Main)?;
                Ok(reply(201, &made))
            }
            written => written.map(|made| reply(200, &made)),
        }
    }

    fn patch(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, name, .. } = &self.target;
        let patch_type = PatchType::of(&self.content_type)?;
        let patch: Value = serde_json::from_slice(&body).map_err(|error| unreadable(&error))?;
        self.refuse_dry_run()?;
        let change = |old: &Value| {
            let new = patch_type.apply(kind, old, &patch)?;
            let uid = new["metadata"]["uid"].as_str().unwrap_or("");
            if uid.is_empty() || new["metadata"]["uid"] == old["metadata"]["uid"] {
                return Ok(new);
            }
            let error = FieldError::invalid("metadata.uid", uid, "field is immutable");
            Err(Status::invalid(kind, name, &[error]))
        };
        let made = self.shared.store.write(kind, namespace, name, self.part(), change)?;
        Ok(reply(200, &made))
    }

    fn delete(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, name, .. } = &self.target;
        let asked: Value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(|error| unreadable(&error))? };
        self.refuse_dry_run()?;
        let own = |key: &str| asked["preconditions"][key].as_str().map(str::to_owned);
        let grace = text(&self.parameters, "gracePeriodSeconds").parse().ok();
        let options = DeleteOptions {
            uid: own("uid"),
            version: own("resourceVersion"),
            grace: asked["gracePeriodSeconds"].as_u64().or(grace),
        };
        let (object, gone) = self.shared.store.remove(kind, namespace, name, &options)?;
        if !gone {
            expire_later(&self.shared, kind, &object);
        }
        if gone && !kind.delete_returns_object {
            return Ok(reply(200, &Status::deleted(kind, name, &object["metadata"]["uid"])));
        }
        Ok(reply(200, &object))
    }

    fn delete_collection(&self) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, .. } = &self.target;
        if kind.namespaced && namespace.is_empty() {
            return Err(Status::method_not_allowed());
        }
        let store = &self.shared.store;
        let page = store.page(kind, &Query { namespace, selector: self.selector()?, ..Query::default() })?;
        let mut gone = Vec::new();
        for item in &page.items {
            let name = item["metadata"]["name"].as_str().unwrap_or("");
            if let Ok((object, _)) = store.remove(kind, namespace, name, &DeleteOptions::default()) {
                gone.push(bare(&object));
            }
        }
        let metadata = json!({"resourceVersion": store.version().to_string()});
        Ok(reply(200, &self.list_of(metadata, gone)))
    }
}

/// Stands in for the kubelet: removes a pod when the grace period it was given is over.
fn expire_later(shared: &Arc<Shared>, kind: &'static Kind, object: &Value) {
    let metadata = &object["metadata"];
    let grace = metadata["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
    if grace == 0 {
        return;
    }
    let text = |key: &str| metadata[key].as_str().unwrap_or("").to_owned();
    let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
    let store = shared.store.clone();
    drop(tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(grace)).await;
        let options = DeleteOptions { uid: Some(uid), grace: Some(0), version: None };
        // Not found or another uid: somebody removed the pod earlier, as they may.
        drop(store.remove(kind, &namespace, &name, &options));
    }));
}

fn list_options() -> Kind {
    Kind {
        group: "",
        plural: "",
        singular: "",
        kind: "",
        short: "",
        namespaced: false,
        status: false,
        put_creates: false,
        delete_returns_object: false,
    }
}

/// An item of a list goes without kind and apiVersion, as the real server sends it.
fn bare(item: &Value) -> Value {
    let mut item = item.clone();
    if let Value::Object(map) = &mut item {
        map.shift_remove("kind");
        map.shift_remove("apiVersion");
    }
    item
}

fn unreadable(error: &serde_json::Error) -> Status {
    Status::bad_request(format!("the body of the request could not be read as JSON: {error}"))
}

type Continue = (Option<(String, String)>, Option<u64>);

fn read_continue(token: &str) -> Result<Continue, Status> {
    let bad = || Status::bad_request("continue key is not valid: encoded continue field has invalid value");
    let bytes = STANDARD_NO_PAD.decode(token).map_err(|_| bad())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let (namespace, name) = value["start"].as_str().and_then(|start| start.split_once('/')).ok_or_else(bad)?;
    Ok((Some((namespace.to_owned(), name.to_owned())), value["rv"].as_u64()))
}
