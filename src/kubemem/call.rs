//! A call: what one HTTP request asks for, as a value. Whoever has one can [`run`](super::run) it without a server.
use super::kinds::Kind;
use super::patch::PatchType;
use super::select::Selector;
use super::status::{FieldError, Status};
use serde_json::Value;
use std::collections::BTreeMap;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET of one object.
    Get,
    /// GET of a collection.
    List,
    /// GET with `watch=true`: open a [`Cursor`](super::Cursor) with it.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE of one object.
    Delete,
    /// DELETE of a collection.
    DeleteCollection,
}

impl Verb {
    /// As roles spell it.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }

    fn of(method: &str, target: &Target, watching: bool) -> Result<Verb, Status> {
        let one = !target.name.is_empty();
        match (method, one) {
            ("GET", _) if watching => Ok(Verb::Watch),
            ("GET", true) => Ok(Verb::Get),
            ("GET", false) => Ok(Verb::List),
            ("POST", false) => Ok(Verb::Create),
            ("PUT", true) => Ok(Verb::Update),
            ("PATCH", true) => Ok(Verb::Patch),
            ("DELETE", true) if !target.status => Ok(Verb::Delete),
            ("DELETE", false) => Ok(Verb::DeleteCollection),
            _ => Err(Status::method_not_allowed()),
        }
    }
}

/// What a URL under `/api` or `/apis` names.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub kind: &'static Kind,
    pub namespace: String,
    pub name: String,
    pub status: bool,
}

impl Target {
    fn of(segments: &[&str]) -> Option<Target> {
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
}

/// One call on an object or a collection, by somebody who may make it.
#[derive(Debug, Clone)]
pub struct Call {
    pub(crate) verb: Verb,
    pub(crate) target: Target,
    pub(crate) patch_type: Option<PatchType>,
    pub(crate) body: Value,
    parameters: BTreeMap<String, String>,
}

impl Call {
    /// A whole request: `method` in capitals, `url` as path and encoded query, `content_type` of the body (it says
    /// which kind of patch a PATCH is), `body` null for none.
    ///
    /// # Errors
    /// The refusal a server would answer: no such path, a method not allowed there, a type of body not understood.
    pub fn new(method: &str, url: &str, content_type: &str, body: Value) -> Result<Call, Status> {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let mut call = Call::route(method, &decode(path), query)?;
        call.check_content_type(content_type)?;
        call.body = body;
        Ok(call)
    }

    /// The same before the body has come. `path` is decoded, `query` is not.
    pub(crate) fn route(method: &str, path: &str, query: &str) -> Result<Call, Status> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let target = Target::of(&segments).ok_or_else(Status::no_such_path)?;
        let parameters = parse_query(query);
        let mut call = Call { verb: Verb::Get, target, patch_type: None, body: Value::Null, parameters };
        call.verb = Verb::of(method, &call.target, call.is_true("watch"))?;
        Ok(call)
    }

    /// Takes the body in as it came over the wire.
    pub(crate) fn read_body(&mut self, content_type: &str, body: &[u8]) -> Result<(), Status> {
        self.check_content_type(content_type)?;
        let optional = matches!(self.verb, Verb::Delete | Verb::DeleteCollection);
        if !(optional && body.is_empty()) {
            self.body = serde_json::from_slice(body).map_err(|error| {
                Status::bad_request(format!("the body of the request could not be read as JSON: {error}"))
            })?;
        }
        Ok(())
    }

    fn check_content_type(&mut self, content_type: &str) -> Result<(), Status> {
        let kind = content_type.split(';').next().unwrap_or("").trim();
        match self.verb {
            Verb::Patch => self.patch_type = Some(PatchType::of(content_type)?),
            Verb::Create | Verb::Update if !matches!(kind, "" | "application/json" | "*/*") => {
                return Err(Status::unsupported_media_type("application/json"));
            }
            Verb::Create
            | Verb::Update
            | Verb::Get
            | Verb::List
            | Verb::Watch
            | Verb::Delete
            | Verb::DeleteCollection => {}
        }
        Ok(())
    }

    /// What it does.
    pub fn verb(&self) -> Verb {
        self.verb
    }

    /// On what: the plural name, with `/status` where it is that subresource.
    pub fn resource(&self) -> String {
        format!("{}{}", self.target.kind.plural, if self.target.status { "/status" } else { "" })
    }

    /// In which namespace; empty: in none, or in all.
    pub fn namespace(&self) -> &str {
        &self.target.namespace
    }

    /// On which object; empty: on the collection.
    pub fn name(&self) -> &str {
        &self.target.name
    }

    /// A parameter of the query; empty when it is not there.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.parameters.get(key).map_or("", String::as_str)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.parameters.contains_key(key)
    }

    pub(crate) fn is_true(&self, key: &str) -> bool {
        self.parameters.get(key).is_some_and(|value| !matches!(value.as_str(), "false" | "0" | ""))
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.text(name) {
            "" => Ok(None),
            number => number
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {number:?}: invalid syntax"))),
        }
    }

    /// `resourceVersion`; none and "0" mean any.
    pub(crate) fn version(&self) -> Result<Option<u64>, Status> {
        match self.text("resourceVersion") {
            "" | "0" => Ok(None),
            number => number.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "invalid resource version: resourceVersion: Invalid value: {number:?}: strconv.ParseUint: parsing \
                     {number:?}: invalid syntax"
                ))
            }),
        }
    }

    /// What `resourceVersionMatch` may not be said with.
    pub(crate) fn check_match(&self) -> Result<(), Status> {
        let why = match (self.text("resourceVersionMatch"), self.text("resourceVersion")) {
            ("", _) => return Ok(()),
            (_, "") => "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ("Exact", "0") => "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            (_, _) => return Ok(()),
        };
        Err(Status::invalid_options(&FieldError::forbidden("resourceVersionMatch", why)))
    }

    pub(crate) fn selector(&self) -> Result<Selector, Status> {
        let labels = self.text("labelSelector");
        let selector = Selector::parse(self.target.kind, labels, self.text("fieldSelector"))?;
        Ok(if self.target.name.is_empty() { selector } else { selector.named(&self.target.name) })
    }
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

/// Undoes the percent encoding of a URL.
pub(crate) fn decode(text: &str) -> String {
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
