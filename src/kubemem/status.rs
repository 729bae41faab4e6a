//! Refusals in the real server's words: the `Status` object.
use super::kinds::Kind;
use serde_json::{Value, json};

/// A refusal: what goes over the wire as a `Status` object.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, e.g. `Conflict`.
    pub reason: &'static str,
    /// The sentence for people.
    pub message: String,
    /// The `details` object, or null.
    pub details: Value,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

impl std::error::Error for Status {}

/// One field that is wrong: path, cause and the whole sentence.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FieldError {
    pub field: String,
    pub cause: &'static str,
    pub message: String,
}

impl FieldError {
    pub fn invalid(field: impl Into<String>, value: &str, why: &str) -> Self {
        Self { field: field.into(), cause: "FieldValueInvalid", message: format!("Invalid value: {value:?}: {why}") }
    }

    pub fn invalid_number(field: impl Into<String>, value: i64, why: &str) -> Self {
        Self { field: field.into(), cause: "FieldValueInvalid", message: format!("Invalid value: {value}: {why}") }
    }

    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Self { field: field.into(), cause: "FieldValueRequired", message }
    }

    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self { field: field.into(), cause: "FieldValueForbidden", message: format!("Forbidden: {why}") }
    }

    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let message = format!("Too long: may not be more than {limit} bytes");
        Self { field: field.into(), cause: "FieldValueTooLong", message }
    }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self { code, reason, message, details: Value::Null }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        let mut details = json!({});
        if !name.is_empty() {
            details["name"] = json!(name);
        }
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        details["kind"] = json!(kind.plural);
        self.details = details;
        self
    }

    pub(crate) fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", kind.qualified())).about(kind, name)
    }

    pub(crate) fn no_such_path() -> Self {
        let mut status = Self::new(404, "NotFound", "the server could not find the requested resource".to_owned());
        status.details = json!({});
        status
    }

    pub(crate) fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", kind.qualified())).about(kind, name)
    }

    pub(crate) fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.qualified());
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// A deletion whose condition does not hold. Here, and nowhere else, the kind stands in the resource's place.
    pub(crate) fn precondition(kind: &Kind, name: &str, why: &str) -> Self {
        let title = kind.title();
        let mut status =
            Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {title} {name:?}: {why}"));
        status.details = json!({"name": name, "kind": kind.kind});
        if !kind.group.is_empty() {
            status.details["group"] = json!(kind.group);
        }
        status
    }

    pub(crate) fn modified(kind: &Kind, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    pub(crate) fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let sentences: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let all = if sentences.len() == 1 { sentences.join("") } else { format!("[{}]", sentences.join(", ")) };
        let title = kind.title();
        let mut status = Self::new(422, "Invalid", format!("{title} {name:?} is invalid: {all}"));
        let causes: Vec<Value> =
            errors.iter().map(|e| json!({"reason": e.cause, "message": e.message, "field": e.field})).collect();
        status.details = json!({"name": name, "kind": kind.kind, "causes": causes});
        if name.is_empty() {
            status.details.as_object_mut().map(|details| details.shift_remove("name"));
        }
        if !kind.group.is_empty() {
            status.details["group"] = json!(kind.group);
        }
        status
    }

    pub(crate) fn unprocessable() -> Self {
        let message = "the server rejected our request due to an error in our request";
        let mut status = Self::new(422, "Invalid", message.to_owned());
        status.details = json!({});
        status
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into())
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized".to_owned())
    }

    pub(crate) fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let what = if name.is_empty() { kind.qualified() } else { format!("{} {name:?}", kind.qualified()) };
        Self::new(403, "Forbidden", format!("{what} is forbidden: {why}")).about(kind, name)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let mut status = Self::new(405, "MethodNotAllowed", message.to_owned());
        status.details = json!({});
        status
    }

    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn too_large_body(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// Parameters of a list or watch that contradict each other.
    pub(crate) fn invalid_options(error: &FieldError) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {}: {}", error.field, error.message);
        let mut status = Self::new(422, "Invalid", message);
        let cause = json!({"reason": error.cause, "message": error.message, "field": error.field});
        status.details = json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]});
        status
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message.into())
    }

    pub(crate) fn too_large_version(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(504, "Timeout", message);
        status.details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1
        });
        status
    }

    /// What a fault rule answers with.
    pub(crate) fn injected(code: u16) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: refused by a fault rule"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => (
                "Conflict",
                "Operation cannot be fulfilled: the object has been modified; please apply your \
                    changes to the latest version and try again",
            ),
            410 => ("Expired", "too old resource version"),
            429 => ("TooManyRequests", "Too many requests, please try again later."),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "the server was unable to return a response in the time allotted"),
            _ => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
        };
        Self::new(code, reason, message.to_owned())
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason,
        });
        if !self.details.is_null() {
            value["details"] = self.details.clone();
        }
        value["code"] = json!(self.code);
        value
    }

    /// The answer to a successful delete of kinds whose objects are not returned.
    pub(crate) fn deleted(kind: &Kind, name: &str, uid: &Value) -> Value {
        let mut details = json!({"name": name, "kind": kind.plural, "uid": uid});
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }
}
