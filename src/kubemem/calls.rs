//! The verbs: what an authorized request does to the store, and its answer.
use super::Shared;
use super::faults::Client;
use super::http::{Body, Parameters, Target, is_true, reply, text};
use super::kinds::Kind;
use super::patch::PatchType;
use super::select::Selector;
use super::status::{FieldError, Status};
use super::store::{DeleteOptions, Part, Query};
use super::watch::{self, Watch};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A watch without timeoutSeconds ends after this long (the real server: 30 to 60 minutes).
const WATCH_MAX: Duration = Duration::from_secs(2700);

/// One authorized call on an object or a collection.
pub(crate) struct Call {
    pub shared: Arc<Shared>,
    pub target: Target,
    pub parameters: Parameters,
    pub content_type: String,
    pub client: Client,
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

    pub fn get(&self) -> Result<Response<Body>, Status> {
        let found = self.shared.store.read(self.target.kind, &self.target.namespace, &self.target.name)?;
        Ok(reply(200, &found))
    }

    fn version_parameter(&self) -> Result<Option<u64>, Status> {
        match text(&self.parameters, "resourceVersion") {
            "" | "0" => Ok(None),
            number => number.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "invalid resource version: resourceVersion: Invalid value: {number:?}: strconv.ParseUint: parsing \
                     {number:?}: invalid syntax"
                ))
            }),
        }
    }

    /// A parameter that is a number.
    fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match text(&self.parameters, name) {
            "" => Ok(None),
            number => number
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {number:?}: invalid syntax"))),
        }
    }

    /// What `resourceVersionMatch` may not be said with.
    fn check_match(&self) -> Result<(), Status> {
        let parameter = |name| text(&self.parameters, name);
        let why = match (parameter("resourceVersionMatch"), parameter("resourceVersion")) {
            ("", _) => return Ok(()),
            (_, "") => "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ("Exact", "0") => "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            (_, _) => return Ok(()),
        };
        Err(Status::invalid_options(&FieldError::forbidden("resourceVersionMatch", why)))
    }

    pub fn list(&self) -> Result<Response<Body>, Status> {
        self.check_match()?;
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
        let limit = self.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
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

    pub fn watch(&self) -> Result<Response<Body>, Status> {
        if self.parameters.contains_key("sendInitialEvents") {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            let error = FieldError::forbidden("sendInitialEvents", why);
            let options = Kind { group: "meta.k8s.io", kind: "ListOptions", ..list_options() };
            return Err(Status::invalid(&options, "", &[error]));
        }
        let store = self.shared.store.clone();
        let switches = self.shared.faults.switches();
        let cuts = switches.borrow().cuts(&self.client);
        let timeout = self.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
        let interval = self.shared.bookmark_interval;
        let mut watch = Watch {
            kind: self.target.kind,
            namespace: self.target.namespace.clone(),
            selector: self.selector()?,
            position: 0,
            start: 0,
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
            Some(version) => watch.start_at(version),
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

    pub fn create(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, .. } = &self.target;
        if kind.namespaced && namespace.is_empty() {
            return Err(Status::method_not_allowed());
        }
        let object = self.json(&body)?;
        self.refuse_dry_run()?;
        self.namespace_exists()?;
        let made = self.shared.store.create_part(kind, namespace, object, Part::Main)?;
        Ok(reply(201, &made))
    }

    fn namespace_exists(&self) -> Result<(), Status> {
        let Target { kind, namespace, .. } = &self.target;
        if kind.namespaced { self.shared.store.get("namespaces", "", namespace).map(|_| ()) } else { Ok(()) }
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

    pub fn update(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, name, .. } = &self.target;
        let object = self.json(&body)?;
        self.refuse_dry_run()?;
        let store = &self.shared.store;
        match store.write(kind, namespace, name, self.part(), |_| Ok(object.clone())) {
            Err(status) if status.code == 404 && kind.put_creates && !self.target.status => {
                self.namespace_exists()?;
                let mut object = object;
                if object["metadata"]["name"].as_str() != Some(name) {
                    let said = object["metadata"]["name"].as_str().unwrap_or("");
                    let message =
                        format!("the name of the object ({said}) does not match the name on the URL ({name})");
                    return Err(Status::bad_request(message));
                }
                object["metadata"]["resourceVersion"] = Value::Null;
                let made = store.create_part(kind, namespace, object, Part::Main)?;
                Ok(reply(201, &made))
            }
            written => written.map(|made| reply(200, &made)),
        }
    }

    pub fn patch(&self, body: Bytes) -> Result<Response<Body>, Status> {
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

    pub fn delete(&self, body: Bytes) -> Result<Response<Body>, Status> {
        let Target { kind, namespace, name, .. } = &self.target;
        let asked: Value = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).map_err(|error| unreadable(&error))?
        };
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

    pub fn delete_collection(&self) -> Result<Response<Body>, Status> {
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
