//! What a written object must look like: normal form first, then the real server's checks for the kinds whose
//! refusals a client can meet.
use super::kinds::Kind;
use super::status::{FieldError, Status};
use serde_json::{Value, json};
use std::net::IpAddr;

/// Bytes of all annotations of one object (the real server's limit).
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// Brings an object into the form the server stores: no nulls, no empty maps in metadata, defaults set.
pub(crate) fn normalize(kind: &Kind, object: &mut Value) {
    drop_nulls(object);
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.shift_remove("managedFields");
        metadata.shift_remove("selfLink");
        for key in ["annotations", "labels", "finalizers", "ownerReferences", "generateName"] {
            if metadata.get(key).is_some_and(is_empty) {
                metadata.shift_remove(key);
            }
        }
    }
    if let Value::Object(map) = &mut *object {
        for key in ["subsets", "data", "binaryData"] {
            if map.get(key).is_some_and(is_empty) {
                map.shift_remove(key);
            }
        }
    }
    match kind.plural {
        "endpoints" => {
            let subsets = object.get_mut("subsets").and_then(Value::as_array_mut);
            subsets.into_iter().flatten().filter_map(|subset| subset.get_mut("ports")).for_each(default_protocol);
        }
        "services" => {
            object.get_mut("spec").and_then(|spec| spec.get_mut("ports")).into_iter().for_each(default_protocol);
        }
        _ => {}
    }
}

fn default_protocol(ports: &mut Value) {
    for port in ports.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        port.entry("protocol").or_insert_with(|| json!("TCP"));
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Types that a decoder would refuse before any validation: 400.
pub(crate) fn decodes(kind: &Kind, object: &Value) -> Result<(), Status> {
    let refuse = |what: &str| {
        let message = format!(
            "{} in version \"v1\" cannot be handled as a {}: json: cannot unmarshal {what}",
            kind.kind, kind.kind
        );
        Err(Status::bad_request(message))
    };
    if !object.is_object() || !object["metadata"].is_object() {
        return refuse("the body: it is not an object with metadata");
    }
    for (holder, key) in [("/metadata", "annotations"), ("/metadata", "labels"), ("", "data")] {
        if key == "data" && kind.plural != "configmaps" {
            continue;
        }
        let found = object.pointer(holder).and_then(|holder| holder.get(key));
        let fine = match found {
            None | Some(Value::Null) => true,
            Some(Value::Object(map)) => map.values().all(|value| value.is_string() || value.is_null()),
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => false,
        };
        if !fine {
            return refuse(&format!("a value of {key}: it is not a string"));
        }
    }
    if kind.plural == "endpoints" && !object.get("subsets").is_none_or(|s| s.is_array() || s.is_null()) {
        return refuse("subsets: it is not a list");
    }
    Ok(())
}

/// The real server's validation, reduced to what these kinds' clients can get wrong. Loopback addresses in
/// Endpoints pass when `loopback` says so.
pub(crate) fn validate(kind: &Kind, object: &Value, loopback: bool) -> Result<(), Status> {
    let mut errors = Vec::new();
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or("");
    check_name(name, &mut errors);
    let annotations = metadata["annotations"].as_object();
    let size: usize =
        annotations.into_iter().flatten().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_MAX));
    }
    for key in annotations.into_iter().flatten().map(|(key, _)| key) {
        // Upper case is welcome in the prefix of an annotation, and nowhere else.
        check_key("metadata.annotations", key, &key.to_lowercase(), &mut errors);
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        check_key("metadata.labels", key, key, &mut errors);
        check_label(value.as_str().unwrap_or(""), &mut errors);
    }
    match kind.plural {
        "endpoints" => check_subsets(&object["subsets"], loopback, &mut errors),
        "pods" => check_containers(&object["spec"]["containers"], &mut errors),
        _ => {}
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(kind, name, &errors)) }
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                         and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
                         validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const WORD: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
                    character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn check_name(name: &str, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
        return;
    }
    if name.len() > 253 {
        errors.push(FieldError::invalid("metadata.name", name, "must be no more than 253 characters"));
    }
    if !is_subdomain(name) {
        errors.push(FieldError::invalid("metadata.name", name, SUBDOMAIN));
    }
}

fn is_subdomain(name: &str) -> bool {
    name.split('.').all(|part| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    })
}

/// A word of letters, digits, `-`, `_` and `.` that begins and ends with a letter or digit.
fn is_word(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// `NAME` or `PREFIX/NAME`. `key` is what the message shows, `checked` what is looked at.
fn check_key(field: &str, key: &str, checked: &str, errors: &mut Vec<FieldError>) {
    let mut refuse = |why: String| errors.push(FieldError::invalid(field, key, &why));
    let (prefix, name) = match checked.split_once('/') {
        Some((_, name)) if name.contains('/') => {
            let what = if field == "metadata.labels" { "a valid label key" } else { "a qualified name" };
            let hint = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return refuse(format!("{what} {WORD} {hint}"));
        }
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, checked),
    };
    match prefix {
        Some("") => refuse("prefix part must be non-empty".to_owned()),
        Some(prefix) if !is_subdomain(prefix) => refuse(format!("prefix part {SUBDOMAIN}")),
        Some(_) | None => {}
    }
    if name.is_empty() {
        refuse("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        refuse("name part must be no more than 63 bytes".to_owned());
    }
    if !is_word(name) {
        refuse(format!("name part {WORD}"));
    }
}

fn check_label(value: &str, errors: &mut Vec<FieldError>) {
    if value.len() > 63 {
        errors.push(FieldError::invalid("metadata.labels", value, "must be no more than 63 bytes"));
    }
    if !value.is_empty() && !is_word(value) {
        let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
                   must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', \
                   regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
        errors.push(FieldError::invalid("metadata.labels", value, why));
    }
}

fn check_containers(containers: &Value, errors: &mut Vec<FieldError>) {
    let list = containers.as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        errors.push(FieldError::required("spec.containers", ""));
    }
    for (at, container) in list.iter().enumerate() {
        for key in ["name", "image"] {
            if container[key].as_str().unwrap_or("").is_empty() {
                errors.push(FieldError::required(format!("spec.containers[{at}].{key}"), ""));
            }
        }
    }
}

fn check_subsets(subsets: &Value, loopback: bool, errors: &mut Vec<FieldError>) {
    for (at, subset) in subsets.as_array().into_iter().flatten().enumerate() {
        let path = format!("subsets[{at}]");
        let list = |key: &str| subset[key].as_array().map_or(&[][..], Vec::as_slice);
        if list("addresses").is_empty() && list("notReadyAddresses").is_empty() {
            errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (i, address) in list(key).iter().enumerate() {
                let field = format!("{path}.{key}[{i}].ip");
                check_ip(field, address["ip"].as_str().unwrap_or(""), loopback, errors);
            }
        }
        let ports = list("ports");
        for (i, port) in ports.iter().enumerate() {
            check_port(&format!("{path}.ports[{i}]"), port, ports.len() > 1, errors);
        }
    }
}

fn check_ip(field: String, text: &str, loopback: bool, errors: &mut Vec<FieldError>) {
    let Ok(ip) = text.parse::<IpAddr>() else {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(field, text, why));
        return;
    };
    if ip.is_unspecified() {
        errors.push(FieldError::invalid(field, text, &format!("may not be unspecified ({ip})")));
    } else if ip.is_loopback() && !loopback {
        errors.push(FieldError::invalid(field, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)"));
    } else if matches!(ip, IpAddr::V4(v4) if v4.is_link_local()) {
        errors.push(FieldError::invalid(field, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"));
    }
}

fn check_port(path: &str, port: &Value, named: bool, errors: &mut Vec<FieldError>) {
    let name = port["name"].as_str().unwrap_or("");
    if named && name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else if !name.is_empty() && !is_dns_label(name) {
        let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                   and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                   '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        errors.push(FieldError::invalid(format!("{path}.name"), name, why));
    }
    let number = port["port"].as_i64().unwrap_or(0);
    if !(1..=65535).contains(&number) {
        let why = "must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid_number(format!("{path}.port"), number, why));
    }
}

fn is_dns_label(name: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 63 && name.starts_with(word) && name.ends_with(word) && name.chars().all(|c| word(c) || c == '-')
}

/// The status a kind is created with over HTTP.
pub(crate) fn initial_status(kind: &Kind) -> Value {
    match kind.plural {
        "pods" => json!({"phase": "Pending", "qosClass": "BestEffort"}),
        "namespaces" => json!({"phase": "Active"}),
        "persistentvolumeclaims" => json!({"phase": "Pending"}),
        "services" => json!({"loadBalancer": {}}),
        _ => json!({}),
    }
}

/// A pod's spec is fixed but for images, tolerations and the deadline.
pub(crate) fn validate_pod_spec(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<(), Status> {
    let fixed = |pod: &Value| {
        let mut spec = pod["spec"].clone();
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                container["image"] = Value::Null;
            }
        }
        for key in ["tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"] {
            spec[key] = Value::Null;
        }
        spec
    };
    if old["spec"] == new["spec"] || fixed(old) == fixed(new) {
        return Ok(());
    }
    let why = "pod updates may not change fields other than `spec.containers[*].image`,\
               `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
               tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    Err(Status::invalid(kind, name, &[FieldError::forbidden("spec", why)]))
}
