//! What a dynamic configuration may ask for and this version cannot promise.
//!
//! Ignoring logical slots would lose what somebody was promised would be kept, so a member that finds such a wish in the store
//! does not take the lock. That must not become an outage by a slip of the pen: whoever writes the configuration through this
//! program (REST, `patronictl edit-config`, `--validate-config`) is told at once, and the write refused. So is a section or a
//! value that means nothing: a `standby_cluster` that names no other cluster would leave this one writing.

use serde_json::Value;

use super::dynamic::Dynamic;
use super::merge;
use super::numbers::parse_bool;

/// The wishes, in words; empty when everything can be promised.
#[must_use]
pub fn unsupported(dynamic: &Dynamic) -> Vec<String> {
    let logical = dynamic.slots.values().any(is_logical);
    let text = "slots of type logical are set in the dynamic configuration, but are not supported";
    logical.then(|| text.to_owned()).into_iter().collect()
}

/// Is this the definition of a logical slot? With a database and a plugin the type need not be said.
#[must_use]
pub fn is_logical(definition: &Value) -> bool {
    let given = |key: &str| definition.get(key).filter(|v| !v.is_null());
    match given("type").and_then(Value::as_str) {
        Some(kind) => kind == "logical",
        None => given("database").is_some() && given("plugin").is_some(),
    }
}

/// What `after` asks for in vain and `before` did not: why a change is refused. What stands already refuses nothing, or
/// nobody could change anything else.
#[must_use]
pub fn newly_unsupported(before: &Value, after: &Value) -> Vec<String> {
    let wishes = |document: &Value| -> Vec<String> {
        let (dynamic, warnings) = Dynamic::parse(document);
        let numbers = no_numbers(&dynamic, &warnings);
        let nobody = no_other_cluster(document, &dynamic);
        unsupported(&dynamic).into_iter().chain(no_words(document)).chain(numbers).chain(nobody).collect()
    };
    let stood = wishes(before);
    wishes(after).into_iter().filter(|wish| !stood.contains(wish)).collect()
}

/// A section that is to make a standby cluster, and does not.
fn no_other_cluster(document: &Value, dynamic: &Dynamic) -> Option<String> {
    let section = document.get("standby_cluster").filter(|section| !section.is_null())?;
    match &dynamic.standby_cluster {
        _ if !section.is_object() => {
            Some("standby_cluster: must be a section with host, port or restore_command".into())
        }
        // Left empty by a slip it would promote this cluster.
        None => Some("standby_cluster: needs host, port or restore_command; null ends it".into()),
        Some(remote) => remote.places().err(),
    }
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
    let nested = [
        "use_slots",
        "use_pg_rewind",
        "remove_data_directory_on_rewind_failure",
        "remove_data_directory_on_diverged_timelines",
    ];
    let section = document.get("postgresql");
    let nested = nested.iter().filter_map(|key| {
        let text = merge::text(section?.get(*key).filter(|v| !v.is_null())?);
        parse_bool(&text).is_none().then(|| format!("postgresql.{key}: {text} is not on or off"))
    });
    let site = document.get("failover_site").filter(|v| !v.is_null()).map(merge::text);
    let odd = site.filter(|word| !["prefer", "require"].contains(&word.as_str()));
    let odd = odd.map(|word| format!("failover_site: {word} is neither prefer nor require (null: any site)"));
    switches.iter().filter_map(bad).chain(nested).chain(odd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_a_change_adds_is_refused() {
        let logical = json!({"l": {"type": "logical", "database": "d", "plugin": "p"}});
        let (plain, sync) = (json!({"ttl": 30}), json!({"ttl": 30, "slots": logical}));
        assert_eq!(newly_unsupported(&plain, &sync).len(), 1);
        assert!(newly_unsupported(&sync, &json!({"ttl": 40, "slots": logical})).is_empty());
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
    }

    #[test]
    fn a_standby_cluster_names_another_one() {
        let told = |section: Value| newly_unsupported(&json!({}), &json!({"standby_cluster": section}));
        for good in [
            json!({"host": "h"}),
            json!({"host": "a,b", "port": "1,2"}),
            json!({"host": "a,b", "port": 5432, "primary_slot_name": null}),
            json!({"restore_command": "cp /a/%f %p"}),
            json!(null),
        ] {
            assert!(told(good.clone()).is_empty(), "{good}");
        }
        for (bad, text) in [
            (json!({"primary_slot_name": "x"}), "needs host, port or restore_command"),
            (json!({}), "null ends it"),
            (json!({"host": null, "port": null}), "null ends it"),
            (json!("h"), "must be a section"),
            (json!({"host": "a,b,c", "port": "1,2"}), "2 ports for 3 hosts"),
            (json!({"host": "h", "port": "http"}), "http is no port"),
        ] {
            let told = told(bad.clone());
            assert!(told.len() == 1 && told[0].contains(text), "{bad}: {told:?}");
        }
    }
}
