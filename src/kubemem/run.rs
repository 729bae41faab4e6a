//! The verbs: what a call does to the store, and its answer. No waiting, no connection, nobody to authorize.
use super::call::{Call, Verb};
use super::status::{FieldError, Status};
use super::store::{DeleteOptions, Part, Query, Store};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};
use std::sync::Arc;

/// What a server answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// The object, the list, or a `Status`.
    pub body: Arc<Value>,
}

impl Answer {
    fn ok(body: impl Into<Arc<Value>>) -> Answer {
        Answer { status: 200, body: body.into() }
    }

    fn created(body: Arc<Value>) -> Answer {
        Answer { status: 201, body }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Answer {
        Answer { status: status.code, body: Arc::new(status.to_value()) }
    }
}

/// Makes one call. A watch is opened with [`Cursor::open`](super::Cursor::open) instead; here it is a 400.
pub fn run(store: &Store, call: &Call) -> Answer {
    let done = match call.verb {
        Verb::Get => get(store, call),
        Verb::List => list(store, call),
        Verb::Watch => Err(Status::bad_request("a watch has no single answer")),
        Verb::Create => create(store, call),
        Verb::Update => update(store, call),
        Verb::Patch => patch(store, call),
        Verb::Delete => delete(store, call),
        Verb::DeleteCollection => delete_collection(store, call),
    };
    done.unwrap_or_else(Answer::from)
}

/// The body as an object of the kind the URL names.
fn object(call: &Call) -> Result<Value, Status> {
    let (value, kind) = (&call.body, call.target.kind);
    let (group_version, expected) = (value["apiVersion"].as_str(), kind.api_version());
    if value["kind"].as_str().is_some_and(|said| said != kind.kind)
        || group_version.is_some_and(|version| version != expected)
    {
        let said = format!("{}, Kind={}", group_version.unwrap_or(""), value["kind"].as_str().unwrap_or(""));
        let message = format!(
            "the object provided is unrecognized (must be of type {}): got {said}, expected {expected}",
            kind.kind
        );
        return Err(Status::bad_request(message));
    }
    Ok(value.clone())
}

fn get(store: &Store, call: &Call) -> Result<Answer, Status> {
    let found = store.read(call.target.kind, &call.target.namespace, &call.target.name)?;
    Ok(Answer::ok(found))
}

fn list(store: &Store, call: &Call) -> Result<Answer, Status> {
    call.check_match()?;
    let (from, mut at) = match call.text("continue") {
        "" => (None, None),
        token => read_continue(token)?,
    };
    let version = call.version()?;
    if let Some(version) = version.filter(|_| from.is_none()) {
        let current = store.version();
        if version > current {
            return Err(Status::too_large_version(version, current));
        }
        if call.text("resourceVersionMatch") == "Exact" {
            at = Some(version);
        }
    }
    let selector = call.selector()?;
    let everything = selector.is_everything();
    let limit = call.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
    let query = Query { namespace: &call.target.namespace, selector, limit, from, at };
    let page = store.page(call.target.kind, &query)?;
    let items: Vec<Value> = page.items.iter().map(|item| bare(item)).collect();
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some((namespace, name)) = page.next {
        let token = json!({"v": "meta.k8s.io/v1", "rv": page.version, "start": format!("{namespace}/{name}")});
        metadata["continue"] = json!(STANDARD_NO_PAD.encode(token.to_string()));
        if everything {
            metadata["remainingItemCount"] = json!(page.remaining);
        }
    }
    Ok(Answer::ok(list_of(call, metadata, items)))
}

fn list_of(call: &Call, metadata: Value, items: Vec<Value>) -> Value {
    let kind = call.target.kind;
    json!({
        "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata, "items": items,
    })
}

fn create(store: &Store, call: &Call) -> Result<Answer, Status> {
    let target = &call.target;
    if target.kind.namespaced && target.namespace.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let object = object(call)?;
    refuse_dry_run(call)?;
    namespace_exists(store, call)?;
    let made = store.create_part(target.kind, &target.namespace, object, Part::Main)?;
    Ok(Answer::created(made))
}

fn namespace_exists(store: &Store, call: &Call) -> Result<(), Status> {
    if call.target.kind.namespaced { store.stands("namespaces", "", &call.target.namespace) } else { Ok(()) }
}

fn refuse_dry_run(call: &Call) -> Result<(), Status> {
    if call.text("dryRun").is_empty() {
        return Ok(());
    }
    Err(Status::bad_request("this embedded API server does not do dry runs; leave dryRun out"))
}

fn part(call: &Call) -> Part {
    if call.target.status { Part::Status } else { Part::Main }
}

fn update(store: &Store, call: &Call) -> Result<Answer, Status> {
    let target = &call.target;
    let mut object = object(call)?;
    refuse_dry_run(call)?;
    match store.write(target.kind, &target.namespace, &target.name, part(call), |_| Ok(object.clone())) {
        Err(status) if status.code == 404 && target.kind.put_creates && !target.status => {
            namespace_exists(store, call)?;
            if object["metadata"]["name"].as_str() != Some(&target.name) {
                let said = object["metadata"]["name"].as_str().unwrap_or("");
                let message =
                    format!("the name of the object ({said}) does not match the name on the URL ({})", target.name);
                return Err(Status::bad_request(message));
            }
            object["metadata"]["resourceVersion"] = Value::Null;
            let made = store.create_part(target.kind, &target.namespace, object, Part::Main)?;
            Ok(Answer::created(made))
        }
        written => written.map(Answer::ok),
    }
}

fn patch(store: &Store, call: &Call) -> Result<Answer, Status> {
    let target = &call.target;
    refuse_dry_run(call)?;
    let patch_type = call.patch_type.ok_or_else(Status::method_not_allowed)?;
    let change = |old: &Value| {
        let new = patch_type.apply(target.kind, old, &call.body)?;
        let uid = new["metadata"]["uid"].as_str().unwrap_or("");
        if uid.is_empty() || new["metadata"]["uid"] == old["metadata"]["uid"] {
            return Ok(new);
        }
        let error = FieldError::invalid("metadata.uid", uid, "field is immutable");
        Err(Status::invalid(target.kind, &target.name, &[error]))
    };
    let made = store.write(target.kind, &target.namespace, &target.name, part(call), change)?;
    Ok(Answer::ok(made))
}

fn delete(store: &Store, call: &Call) -> Result<Answer, Status> {
    let target = &call.target;
    refuse_dry_run(call)?;
    let asked = &call.body;
    let own = |key: &str| asked["preconditions"][key].as_str().map(str::to_owned);
    let grace = call.text("gracePeriodSeconds").parse().ok();
    let options = DeleteOptions {
        uid: own("uid"),
        version: own("resourceVersion"),
        grace: asked["gracePeriodSeconds"].as_u64().or(grace),
    };
    let (object, gone) = store.remove(target.kind, &target.namespace, &target.name, &options)?;
    if gone && !target.kind.delete_returns_object {
        return Ok(Answer::ok(Status::deleted(target.kind, &target.name, &object["metadata"]["uid"])));
    }
    Ok(Answer::ok(object))
}

fn delete_collection(store: &Store, call: &Call) -> Result<Answer, Status> {
    let (kind, namespace) = (call.target.kind, &call.target.namespace);
    if kind.namespaced && namespace.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let page = store.page(kind, &Query { namespace, selector: call.selector()?, ..Query::default() })?;
    let mut gone = Vec::new();
    for item in &page.items {
        let name = item["metadata"]["name"].as_str().unwrap_or("");
        if let Ok((object, _)) = store.remove(kind, namespace, name, &DeleteOptions::default()) {
            gone.push(bare(&object));
        }
    }
    let metadata = json!({"resourceVersion": store.version().to_string()});
    Ok(Answer::ok(list_of(call, metadata, gone)))
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

type Continue = (Option<(String, String)>, Option<u64>);

fn read_continue(token: &str) -> Result<Continue, Status> {
    let bad = || Status::bad_request("continue key is not valid: encoded continue field has invalid value");
    let bytes = STANDARD_NO_PAD.decode(token).map_err(|_| bad())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let (namespace, name) = value["start"].as_str().and_then(|start| start.split_once('/')).ok_or_else(bad)?;
    Ok((Some((namespace.to_owned(), name.to_owned())), value["rv"].as_u64()))
}
