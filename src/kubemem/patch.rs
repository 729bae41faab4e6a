//! The three kinds of patch: JSON merge patch (RFC 7386), strategic merge patch, JSON patch (RFC 6902).
use super::kinds::Kind;
use super::status::Status;
use serde_json::{Map, Value};

/// How a PATCH body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchType {
    Merge,
    Strategic,
    Json,
}

impl PatchType {
    /// From the Content-Type, without its parameters.
    pub fn of(content_type: &str) -> Result<Self, Status> {
        match content_type.split(';').next().unwrap_or("").trim() {
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/json-patch+json" => Ok(Self::Json),
            _ => Err(Status::unsupported_media_type(
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
            )),
        }
    }

    /// The object after the patch.
    pub fn apply(self, kind: &Kind, object: &Value, patch: &Value) -> Result<Value, Status> {
        let mut object = object.clone();
        match self {
            Self::Json => json_patch(&mut object, patch)?,
            Self::Merge | Self::Strategic if !patch.is_object() => {
                return Err(Status::bad_request("error decoding patch: the patch is not a JSON object"));
            }
            Self::Merge => merge(&mut object, patch),
            Self::Strategic => strategic(kind, &mut object, patch)?,
        }
        Ok(object)
    }
}

fn make_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object above")
}

/// JSON merge patch: null deletes a key, objects merge, anything else replaces.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = make_map(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The key by which items of a list merge. Lists without one (such as an Endpoints' `subsets`) are replaced.
fn merge_key(kind: &Kind, list: &str) -> Option<&'static str> {
    match (kind.kind, list) {
        ("Service", "ports") => Some("port"),
        ("Pod" | "StatefulSet", "ports") => Some("containerPort"),
        ("Endpoints" | "EndpointSlice", "ports") => None,
        (
            _,
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "env"
            | "volumes"
            | "imagePullSecrets"
            | "secrets",
        ) => Some("name"),
        (_, "volumeMounts") => Some("mountPath"),
        (_, "volumeDevices") => Some("devicePath"),
        (_, "topologySpreadConstraints") => Some("topologyKey"),
        (_, "hostAliases" | "podIPs" | "hostIPs") => Some("ip"),
        (_, "ownerReferences") => Some("uid"),
        (_, "conditions") => Some("type"),
        _ => None,
    }
}

fn strategic(kind: &Kind, target: &mut Value, patch: &Value) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    let target = make_map(target);
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace" | "delete") => target.clear(),
        Some("merge") | None => {}
        Some(other) => return Err(Status::bad_request(format!("Unknown patch type: {other}"))),
    }
    if patch.get("$patch").and_then(Value::as_str) == Some("delete") {
        return Ok(());
    }
    if let Some(Value::Array(keep)) = patch.get("$retainKeys") {
        target.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        if value.is_null() {
            target.remove(key);
            continue;
        }
        let entry = target.entry(key.clone()).or_insert(Value::Null);
        match (value, merge_key(kind, key)) {
            (Value::Array(items), Some(by)) => merge_list(kind, entry, items, by)?,
            (Value::Array(items), None) if key == "finalizers" => merge_set(entry, items),
            (Value::Array(_), None) => *entry = value.clone(),
            _ => strategic(kind, entry, value)?,
        }
    }
    for (directive, value) in patch.iter() {
        if let (Some(key), Value::Array(gone)) = (directive.strip_prefix("$deleteFromPrimitiveList/"), value)
            && let Some(Value::Array(have)) = target.get_mut(key)
        {
            have.retain(|item| !gone.contains(item));
        }
        if let (Some(key), Value::Array(order)) = (directive.strip_prefix("$setElementOrder/"), value)
            && let Some(Value::Array(have)) = target.get_mut(key)
        {
            let by = merge_key(kind, key);
            have.sort_by_key(|item| {
                let same = |o: &Value| by.map_or(o == item, |by| o.get(by) == item.get(by));
                order.iter().position(same).unwrap_or(usize::MAX)
            });
        }
    }
    Ok(())
}

fn merge_set(target: &mut Value, items: &[Value]) {
    let mut all = target.as_array().cloned().unwrap_or_default();
    for item in items {
        if !all.contains(item) {
            all.push(item.clone());
        }
    }
    *target = Value::Array(all);
}

fn merge_list(kind: &Kind, target: &mut Value, items: &[Value], by: &str) -> Result<(), Status> {
    let directive = |item: &Value| item.get("$patch").and_then(Value::as_str).map(str::to_owned);
    let mut all = target.as_array().cloned().unwrap_or_default();
    if items.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        all = items.iter().filter(|item| directive(item).is_none()).cloned().collect();
        *target = Value::Array(all);
        return Ok(());
    }
    for item in items {
        let Some(name) = item.get(by) else {
            return Err(Status::bad_request(format!("map: {item} does not contain declared merge key: {by}")));
        };
        if directive(item).as_deref() == Some("delete") {
            all.retain(|have| have.get(by) != Some(name));
            continue;
        }
        match all.iter_mut().find(|have| have.get(by) == Some(name)) {
            Some(have) => strategic(kind, have, item)?,
            None => {
                let mut fresh = Value::Null;
                strategic(kind, &mut fresh, item)?;
                all.push(fresh);
            }
        }
    }
    *target = Value::Array(all);
    Ok(())
}

fn json_patch(object: &mut Value, patch: &Value) -> Result<(), Status> {
    let Value::Array(operations) = patch else {
        return Err(Status::bad_request("error decoding patch: json: cannot unmarshal into a list of operations"));
    };
    for operation in operations {
        let text = |key: &str| operation.get(key).and_then(Value::as_str);
        let path = text("path").ok_or_else(|| Status::bad_request("error decoding patch: missing path"))?;
        let value = || operation.get("value").cloned().unwrap_or(Value::Null);
        let from = || text("from").ok_or_else(|| Status::bad_request("error decoding patch: missing from"));
        match text("op").unwrap_or("") {
            "add" => add(object, path, value())?,
            "remove" => drop(remove(object, path)?),
            "replace" => *object.pointer_mut(path).ok_or_else(Status::unprocessable)? = value(),
            "test" => {
                let have = object.pointer(path).cloned().unwrap_or(Value::Null);
                if have != value() {
                    return Err(Status::unprocessable());
                }
            }
            "move" => {
                let moved = remove(object, from()?)?;
                add(object, path, moved)?;
            }
            "copy" => {
                let copied = object.pointer(from()?).cloned().ok_or_else(Status::unprocessable)?;
                add(object, path, copied)?;
            }
            other => {
                return Err(Status::bad_request(format!("error decoding patch: unexpected kind: {other}")));
            }
        }
    }
    Ok(())
}

fn split_pointer(path: &str) -> Result<(&str, String), Status> {
    let (parent, last) = path.rsplit_once('/').ok_or_else(Status::unprocessable)?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), Status> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    let (parent, key) = split_pointer(path)?;
    match object.pointer_mut(parent) {
        Some(Value::Object(map)) => {
            map.insert(key, value);
        }
        Some(Value::Array(list)) => {
            let at = if key == "-" { list.len() } else { key.parse().map_err(|_| Status::unprocessable())? };
            if at > list.len() {
                return Err(Status::unprocessable());
            }
            list.insert(at, value);
        }
        _ => return Err(Status::unprocessable()),
    }
    Ok(())
}

fn remove(object: &mut Value, path: &str) -> Result<Value, Status> {
    let (parent, key) = split_pointer(path)?;
    match object.pointer_mut(parent) {
        Some(Value::Object(map)) => map.shift_remove(&key).ok_or_else(Status::unprocessable),
        Some(Value::Array(list)) => match key.parse::<usize>() {
            Ok(at) if at < list.len() => Ok(list.remove(at)),
            Ok(_) | Err(_) => Err(Status::unprocessable()),
        },
        _ => Err(Status::unprocessable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(plural: &str) -> &'static Kind {
        Kind::by_plural(plural).unwrap()
    }

    #[test]
    fn strategic_merge_replaces_subsets_and_merges_containers_by_name() {
        let have = json!({"metadata": {"annotations": {"a": "1", "b": "2"}}, "subsets": [{"x": 1}, {"y": 2}]});
        let patch = json!({"metadata": {"annotations": {"a": null, "c": "3"}}, "subsets": [{"z": 3}]});
        let got = PatchType::Strategic.apply(kind("endpoints"), &have, &patch).unwrap();
        assert_eq!(got, json!({"metadata": {"annotations": {"b": "2", "c": "3"}}, "subsets": [{"z": 3}]}));
        let have = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
        let patch = json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "a", "$patch": "delete"}]}});
        let got = PatchType::Strategic.apply(kind("pods"), &have, &patch).unwrap();
        assert_eq!(got, json!({"spec": {"containers": [{"name": "b", "image": "2"}]}}));
    }

    #[test]
    fn json_patch_tests_moves_and_refuses() {
        let have = json!({"a": {"b/c": 1}, "l": [1, 2]});
        let patch = json!([{"op": "test", "path": "/a/b~1c", "value": 1}, {"op": "add", "path": "/l/-", "value": 3},
            {"op": "move", "from": "/a/b~1c", "path": "/d"}, {"op": "remove", "path": "/l/0"}]);
        let got = PatchType::Json.apply(kind("pods"), &have, &patch).unwrap();
        assert_eq!(got, json!({"a": {}, "l": [2, 3], "d": 1}));
        let bad = json!([{"op": "remove", "path": "/nothing"}]);
        assert_eq!(PatchType::Json.apply(kind("pods"), &have, &bad).unwrap_err().code, 422);
    }
}
