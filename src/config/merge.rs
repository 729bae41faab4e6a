//! Merging documents: layers of files, and the rules of `PATCH /config`.
//!
//! Values are compared the way Patroni compares them, by their Python text: `100` and `"100"` are the same setting.
use serde_json::{Map, Value};

use super::yaml::float_text;

/// Python's `str()` of a JSON value; lists and mappings in Python notation.
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => repr(value),
    }
}

fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) if number.is_f64() => float_text(number.as_f64().unwrap_or(0.0)),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("'{k}': {}", repr(v))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
    }
}

/// Equality as Patroni sees it: mappings key by key, everything else by text.
#[must_use]
pub fn equal_by_text(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| equal_by_text(value, other)))
        }
        _ => text(a) == text(b),
    }
}

/// Merges a PATCH body into the stored configuration and says whether anything changed: `null` deletes, mappings
/// merge, lists are replaced whole, scalars only if their text differs.
pub fn patch(stored: &mut Value, patch_body: &Value) -> bool {
    let Value::Object(changes) = patch_body else {
        return false;
    };
    if !stored.is_object() {
        *stored = Value::Object(Map::new());
    }
    match stored {
        Value::Object(map) => patch_map(map, changes),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => false,
    }
}

fn patch_map(stored: &mut Map<String, Value>, changes: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, wanted) in changes {
        if wanted.is_null() {
            changed |= stored.shift_remove(key).is_some_and(|old| !old.is_null());
            continue;
        }
        match (stored.get_mut(key), wanted) {
            (Some(Value::Object(old)), Value::Object(new)) => changed |= patch_map(old, new),
            (Some(old), _) if !wanted.is_object() && text(old) == text(wanted) => {}
            (Some(old), _) => {
                *old = wanted.clone();
                changed = true;
            }
            (None, _) => {
                stored.insert(key.clone(), wanted.clone());
                changed = true;
            }
        }
    }
    changed
}

/// Lays `over` on `base`: mappings merge, everything else is replaced (files of a directory, environment).
pub fn overlay(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    Some(slot) => overlay(slot, value),
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}
