//! `slots` and `ignore_slots` of the dynamic configuration into values.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::config::merge;
use crate::model::{IgnoredSlot, PermanentSlot};

/// The permanent physical slots. What is no slot is skipped with a warning, and its name left alone: a slip in the definition of
/// a slot that is there is no reason to drop it.
pub(super) fn permanent(
    slots: &Map<String, Value>,
    warnings: &mut Vec<String>,
) -> (BTreeMap<String, PermanentSlot>, Vec<IgnoredSlot>) {
    let (mut out, mut skipped) = (BTreeMap::new(), Vec::new());
    for (name, definition) in slots {
        let kind = definition.get("type").and_then(Value::as_str).unwrap_or("physical");
        if crate::config::is_logical(definition) {
            continue;
        }
        match permanent_one(name, kind, definition) {
            Ok(slot) => drop(out.insert(name.clone(), slot)),
            Err(why) => {
                warnings.push(format!("slots.{name}: {why}; skipped"));
                skipped.push(IgnoredSlot { name: Some(name.clone()), ..IgnoredSlot::default() });
            }
        }
    }
    (out, skipped)
}

fn permanent_one(name: &str, kind: &str, definition: &Value) -> Result<PermanentSlot, String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(good) {
        return Err("a slot's name is 1 to 63 of a-z, 0-9 and _".into());
    }
    if kind != "physical" {
        return Err(format!("type: {kind} is neither physical nor logical"));
    }
    match definition.get("cluster_type").filter(|v| !v.is_null()).map(merge::text).as_deref() {
        None => Ok(PermanentSlot::Always),
        Some("primary") => Ok(PermanentSlot::OfPrimary),
        Some("standby") => Ok(PermanentSlot::OfStandby),
        Some(other) => Err(format!("cluster_type: {other} is neither primary nor standby")),
    }
}

/// The rows of `ignore_slots`. A row that can match nothing is skipped with a warning, and so is one that would match all.
pub(super) fn ignored(rows: &[Map<String, Value>], warnings: &mut Vec<String>) -> Vec<IgnoredSlot> {
    let mut out = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        match ignored_one(row) {
            Ok(slot) => out.push(slot),
            Err(why) => warnings.push(format!("ignore_slots[{i}]: {why}; skipped")),
        }
    }
    out
}

fn ignored_one(row: &Map<String, Value>) -> Result<IgnoredSlot, String> {
    let mut slot = IgnoredSlot::default();
    for (key, value) in row {
        let text = merge::text(value);
        match (key.as_str(), text.as_str()) {
            ("name", _) => slot.name = Some(text),
            ("type", "physical") => slot.physical = Some(true),
            ("type", "logical") => slot.physical = Some(false),
            ("type", _) => return Err(format!("type: {text} is neither physical nor logical")),
            ("database", _) => slot.database = Some(text),
            ("plugin", _) => slot.plugin = Some(text),
            _ => return Err(format!("{key} is not one of name, type, database, plugin")),
        }
    }
    match slot == IgnoredSlot::default() {
        true => Err("needs one of name, type, database, plugin".into()),
        false => Ok(slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn permanent_slots_say_in_which_clusters_they_are() {
        let mut warnings = Vec::new();
        let slots = map(json!({
            "a": null, "b": {"type": "physical"}, "p": {"cluster_type": "primary"},
            "s": {"type": "physical", "cluster_type": "standby"}, "l": {"type": "logical"},
            "m": {"database": "d", "plugin": "p"},
            "Bad": {}, "t": {"type": "temporal"}, "c": {"cluster_type": "both"},
        }));
        let (found, skipped) = permanent(&slots, &mut warnings);
        let left_alone: Vec<_> = skipped.into_iter().filter_map(|slot| slot.name).collect();
        assert_eq!(left_alone, ["Bad", "t", "c"]);
        let expected = [
            ("a", PermanentSlot::Always),
            ("b", PermanentSlot::Always),
            ("p", PermanentSlot::OfPrimary),
            ("s", PermanentSlot::OfStandby),
        ];
        assert_eq!(found, expected.map(|(n, s)| (n.to_owned(), s)).into());
        assert_eq!(
            warnings,
            [
                "slots.Bad: a slot's name is 1 to 63 of a-z, 0-9 and _; skipped",
                "slots.t: type: temporal is neither physical nor logical; skipped",
                "slots.c: cluster_type: both is neither primary nor standby; skipped",
            ]
        );
    }

    #[test]
    fn an_ignored_slot_needs_a_mark_that_means_something() {
        let mut warnings = Vec::new();
        let rows = [
            json!({"name": "cdc", "type": "logical", "database": "app", "plugin": "pgoutput"}),
            json!({"type": "physical"}),
            json!({}),
            json!({"type": "odd"}),
            json!({"slot": "x"}),
        ]
        .map(map);
        let found = ignored(&rows, &mut warnings);
        let text = |t: &str| Some(t.to_owned());
        let cdc =
            IgnoredSlot { name: text("cdc"), physical: Some(false), database: text("app"), plugin: text("pgoutput") };
        assert_eq!(found, [cdc, IgnoredSlot { physical: Some(true), ..IgnoredSlot::default() }]);
        assert_eq!(
            warnings,
            [
                "ignore_slots[2]: needs one of name, type, database, plugin; skipped",
                "ignore_slots[3]: type: odd is neither physical nor logical; skipped",
                "ignore_slots[4]: slot is not one of name, type, database, plugin; skipped",
            ]
        );
    }
}
