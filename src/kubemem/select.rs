//! Label and field selectors.
use super::kinds::Kind;
use super::status::Status;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Debug, Clone, PartialEq)]
struct FieldTerm {
    path: String,
    equal: bool,
    value: String,
}

/// What a list or a watch asks for. The default selects everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

/// Fields of pods and events that may be selected besides name and namespace (the real server's lists).
const POD_FIELDS: [&str; 8] = [
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];
const EVENT_FIELDS: [&str; 12] = [
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
    "source.component",
];

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`; a term that cannot be read is a 400.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Status> {
        let mut selector = Self::default();
        for term in split_terms(labels) {
            selector.labels.push(requirement(term)?);
        }
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            selector.fields.push(field_term(kind, term)?);
        }
        Ok(selector)
    }

    /// Adds `metadata.name=NAME`, for a watch on one object's own path.
    pub fn named(mut self, name: &str) -> Self {
        self.fields.push(FieldTerm { path: "metadata.name".to_owned(), equal: true, value: name.to_owned() });
        self
    }

    /// True when nothing is selected away.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Does this object match?
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|have| values.iter().any(|v| v == have)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|have| values.iter().all(|v| v != have)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        }) && self.fields.iter().all(|term| (field(object, &term.path) == term.value) == term.equal)
    }
}

fn field(object: &Value, path: &str) -> String {
    let path = if path == "source" { "source.component" } else { path };
    let found = path.split('.').try_fold(object, |value, key| value.get(key));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => String::new(),
    }
}

fn field_term(kind: &Kind, term: &str) -> Result<FieldTerm, Status> {
    let (path, equal, value) = if let Some((path, value)) = term.split_once("!=") {
        (path, false, value)
    } else if let Some((path, value)) = term.split_once("==") {
        (path, true, value)
    } else if let Some((path, value)) = term.split_once('=') {
        (path, true, value)
    } else {
        let message = format!("invalid selector: '{term}'; can't understand '{term}'");
        return Err(Status::bad_request(message));
    };
    let special: &[&str] = match kind.plural {
        "pods" => &POD_FIELDS,
        "events" => &EVENT_FIELDS,
        "namespaces" => &["status.phase"],
        "secrets" => &["type"],
        "services" => &["spec.clusterIP", "spec.type"],
        "nodes" => &["spec.unschedulable"],
        _ => &[],
    };
    let known = path == "metadata.name" || (path == "metadata.namespace" && kind.namespaced) || special.contains(&path);
    if known {
        return Ok(FieldTerm { path: path.to_owned(), equal, value: value.to_owned() });
    }
    Err(Status::bad_request(if special.is_empty() {
        format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {path}")
    }))
}

/// Splits at commas outside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut depth, mut start) = (0i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.into_iter().map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn requirement(term: &str) -> Result<Requirement, Status> {
    let bad =
        || Status::bad_request(format!("unable to parse requirement: found '{term}', expected: a label requirement"));
    let key_of = |key: &str| {
        let key = key.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if key.is_empty() || !key.chars().all(fine) { Err(bad()) } else { Ok(key.to_owned()) }
    };
    let value_of = |value: &str| {
        let value = value.trim();
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if value.len() > 63 || !value.chars().all(fine) { Err(bad()) } else { Ok(value.to_owned()) }
    };
    if let Some((key, value)) = term.split_once("!=") {
        return Ok(Requirement::NotIn(key_of(key)?, vec![value_of(value)?]));
    }
    if let Some(open) = term.find('(') {
        let values = term[open + 1..].strip_suffix(')').ok_or_else(bad)?;
        let values = values.split(',').map(value_of).collect::<Result<_, _>>()?;
        let head = term[..open].trim();
        if let Some(key) = head.strip_suffix(" notin") {
            return Ok(Requirement::NotIn(key_of(key)?, values));
        }
        let key = head.strip_suffix(" in").ok_or_else(bad)?;
        return Ok(Requirement::In(key_of(key)?, values));
    }
    if let Some((key, value)) = term.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Ok(Requirement::In(key_of(key)?, vec![value_of(value)?]));
    }
    match term.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent(key_of(key)?)),
        None => Ok(Requirement::Exists(key_of(term)?)),
    }
}
