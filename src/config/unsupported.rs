//! What a dynamic configuration may ask for and this version cannot promise.
//!
//! Ignoring `standby_cluster` would do what somebody was promised would not happen, so a member that finds such a wish in the store does
//! not take the lock. That must not become an outage by a slip of the pen: whoever writes the configuration through this
//! program (REST, `patronictl edit-config`, `--validate-config`) is told at once, and the write refused.
use serde_json::Value;

use super::dynamic::Dynamic;
use super::merge;
use super::numbers::parse_bool;

/// The wishes, in words; empty when everything can be promised.
#[must_use]
pub fn unsupported(dynamic: &Dynamic) -> Vec<String> {
    let logical = dynamic.slots.values().any(|v| v.get("type").and_then(Value::as_str) == Some("logical"));
    [
        (
            dynamic.standby_cluster.is_some(),
            "standby_cluster is set in the dynamic configuration, but is not supported",
        ),
        (logical, "slots of type logical are set in the dynamic configuration, but are not supported"),
    ]
    .into_iter()
    .filter(|(asked, _)| *asked)
    .map(|(_, text)| text.to_owned())
    .collect()
}

/// What `after` asks for in vain and `before` did not: why a change is refused. What stands already refuses nothing, or
/// nobody could change anything else.
#[must_use]
pub fn newly_unsupported(before: &Value, after: &Value) -> Vec<String> {
    let wishes = |document: &Value| -> Vec<String> {
        let (dynamic, warnings) = Dynamic::parse(document);
        let numbers = no_numbers(&dynamic, &warnings);
        unsupported(&dynamic).into_iter().chain(no_words(document)).chain(numbers).collect()
    };
    let stood = wishes(before);
    wishes(after).into_iter().filter(|wish| !stood.contains(wish)).collect()
}

/// Values that are no numbers or sections where one is needed: they would be left out, and nobody who typed them told.
fn no_numbers(dynamic: &Dynamic, warnings: &[String]) -> Vec<String> {
    let left_out = |line: &String| {
        let text = line.strip_prefix("dynamic configuration: ")?.split_once("; using ")?.0;
        Some(text.to_owned())
    };
    let few = (dynamic.synchronous_node_count < 1)
        .then(|| format!("synchronous_node_count: {} must be at least 1", dynamic.synchronous_node_count));
    dynamic.rejected.iter().cloned().chain(warnings.iter().filter_map(left_out)).chain(few).collect()
}

/// Switches of a promise whose value means nothing: it would be off, and nobody would be told.
fn no_words(document: &Value) -> Vec<String> {
    let switches = ["synchronous_mode", "synchronous_mode_strict", "failsafe_mode", "pause"];
    let bad = |key: &&str| {
        let value = document.get(*key).filter(|v| !v.is_null())?;
        let text = merge::text(value);
        let quorum = *key == "synchronous_mode" && text.eq_ignore_ascii_case("quorum");
        let words = if *key == "synchronous_mode" { "on, off or quorum" } else { "on or off" };
        (!quorum && parse_bool(&text).is_none()).then(|| format!("{key}: {text} is not {words}"))
    };
    switches.iter().filter_map(bad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_a_change_adds_is_refused() {
        let (plain, sync) = (json!({"ttl": 30}), json!({"ttl": 30, "standby_cluster": {"host": "h"}}));
        assert_eq!(newly_unsupported(&plain, &sync).len(), 1);
        assert!(newly_unsupported(&sync, &json!({"ttl": 40, "standby_cluster": {"host": "h"}})).is_empty());
        assert!(
            newly_unsupported(&plain, &json!({"synchronous_mode": "quorum", "synchronous_mode_strict": true}))
                .is_empty()
        );
        assert!(newly_unsupported(&sync, &plain).is_empty());
        for (key, value) in [("synchronous_mode", "strict"), ("failsafe_mode", "maybe"), ("pause", "later")] {
            let told = newly_unsupported(&plain, &json!({key: value}));
            assert!(told.len() == 1 && told[0].starts_with(&format!("{key}: {value} is not on")), "{told:?}");
        }
        assert!(newly_unsupported(&plain, &json!({"pause": null, "failsafe_mode": "off"})).is_empty());
        for (document, told) in [
            (json!({"ttl": "abc"}), "ttl: abc must be a whole number of seconds"),
            (json!({"postgresql": {"parameters": "foo"}}), "postgresql.parameters: must be a mapping (name: value)"),
            (json!({"maximum_lag_on_failover": "1MB"}), "maximum_lag_on_failover: 1MB must be a number without unit"),
            (json!({"synchronous_node_count": 0}), "synchronous_node_count: 0 must be at least 1"),
        ] {
            assert_eq!(newly_unsupported(&plain, &document), [told], "{document}");
            assert!(newly_unsupported(&document, &document).is_empty(), "what stands refuses nothing");
        }
        assert!(
            newly_unsupported(&plain, &json!({"ttl": "40", "primary_start_timeout": 10, "loop_wait": 1000})).is_empty()
        );
        let wishes = json!({"standby_cluster": {"host": "h"},
                            "slots": {"l": {"type": "logical", "database": "d", "plugin": "p"}}});
        assert_eq!(newly_unsupported(&plain, &wishes).len(), 2);
    }
}
