//! The embedded server without a server: the store with chance and time of the caller's own, as a simulation drives it.
use super::target::*;
use patroni::kubemem::{Answer, Call, Cursor, Event, Sources, Store, run};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A store whose UIDs count and whose clock stands until it is set.
fn store() -> (Store, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(1_738_314_902));
    let (mut next, wall) = (0u128, Arc::clone(&clock));
    let bits = move || {
        next += 1;
        next
    };
    let sources = Sources::new(bits, move || Duration::from_secs(wall.load(Ordering::Relaxed)));
    (Store::new(16, true, sources), clock)
}

fn call(method: &str, rest: &str, body: Value) -> Call {
    let content_type = if method == "PATCH" { STRATEGIC } else { "application/json" };
    Call::new(method, &format!("/api/v1/namespaces/default/{rest}"), content_type, body).unwrap()
}

fn ask(store: &Store, method: &str, rest: &str, body: Value) -> Answer {
    run(store, &call(method, rest, body))
}

fn watch(store: &Store, rest: &str) -> Cursor {
    Cursor::open(store, &call("GET", rest, Value::Null)).unwrap()
}

fn short(event: Option<Event>) -> String {
    event.map_or_else(String::new, |event| {
        let name = event.object["metadata"]["name"].as_str().unwrap_or("-");
        format!("{} {name}", event.kind)
    })
}

#[test]
fn the_same_calls_on_the_same_sources_give_the_same_objects() {
    let run = || {
        let (store, clock) = store();
        store.create("configmaps", "default", config_map("a", "1")).unwrap();
        clock.fetch_add(1, Ordering::Relaxed);
        let mut generated = config_map("", "2");
        generated["metadata"] = json!({"generateName": "gen-"});
        store.create("configmaps", "default", generated).unwrap();
        store.list("configmaps", "").unwrap()
    };
    let first = run();
    assert_eq!(first, run());
    assert_eq!(first[0]["metadata"]["uid"], "00000000-0000-4000-8000-000000000003", "after the two namespaces");
    assert_eq!(first[0]["metadata"]["creationTimestamp"], "2025-01-31T09:15:02Z");
    assert_eq!(first[1]["metadata"]["creationTimestamp"], "2025-01-31T09:15:03Z");
}

#[test]
fn a_restored_store_has_the_old_objects_and_gives_versions_out_again() {
    let (store, _) = store();
    let first = store.create("configmaps", "default", config_map("a", "1")).unwrap();
    let backup = store.snapshot();
    let lost = store.create("configmaps", "default", config_map("b", "1")).unwrap();
    store.restore(&backup);
    assert_eq!(store.version(), version(&first));
    assert_eq!(store.get("configmaps", "default", "b").unwrap_err().code, 404);
    let again = store.create("configmaps", "default", config_map("c", "1")).unwrap();
    assert_eq!(version(&again), version(&lost));
}

#[tokio::test]
async fn a_call_is_answered_as_over_http() {
    let server = embedded().await;
    let (t, store) = (Target::of(&server), server.store());
    let made = ask(&store, "POST", "configmaps", config_map("a", "1"));
    assert_eq!((made.status, &*made.body), (201, &t.get("configmaps/a").await.1));
    let patch = json!({"data": {"key": "2"}, "metadata": {"resourceVersion": "1"}});
    let refused = ask(&store, "PATCH", "configmaps/a", patch.clone());
    assert_eq!((refused.status, (*refused.body).clone()), t.patch("configmaps/a", STRATEGIC, &patch).await);
    for rest in ["configmaps", "configmaps/none", "configmaps?labelSelector=a%3Db", "configmaps?resourceVersion=x"] {
        let here = ask(&store, "GET", rest, Value::Null);
        assert_eq!((here.status, (*here.body).clone()), t.get(rest).await, "{rest}");
    }
    assert_eq!(ask(&store, "DELETE", "configmaps/a", Value::Null).status, 200);
    assert_eq!(t.get("configmaps/a").await.0, 404);
    assert_eq!(Call::new("GET", "/api/v1/nothing", "", Value::Null).unwrap_err().code, 404);
}

#[test]
fn a_grace_period_ends_when_the_clock_says_so() {
    let (store, clock) = store();
    let mut pod = pod("x", "a");
    pod["spec"]["nodeName"] = json!("node");
    assert_eq!(ask(&store, "POST", "pods", pod).status, 201);
    assert_eq!(ask(&store, "DELETE", "pods/x", json!({"gracePeriodSeconds": 30})).status, 200);
    let due = store.now() + Duration::from_secs(30);
    assert_eq!(store.expire(store.now()), Some(due));
    assert_eq!(ask(&store, "GET", "pods/x", Value::Null).body["metadata"]["deletionTimestamp"], "2025-01-31T09:15:32Z");
    clock.fetch_add(30, Ordering::Relaxed);
    assert_eq!(store.expire(store.now()), None);
    assert_eq!(ask(&store, "GET", "pods/x", Value::Null).status, 404);
}

#[test]
fn a_cursor_that_is_asked_late_or_lags_misses_nothing() {
    let (store, _) = store();
    let began = store.version();
    let mut prompt = watch(&store, &format!("configmaps?watch=true&resourceVersion={began}"));
    let mut lagging = prompt.clone();
    assert_eq!(short(prompt.next(&store)), "");
    store.create("configmaps", "default", config_map("a", "1")).unwrap();
    assert_eq!(short(prompt.next(&store)), "ADDED a");
    store.create("configmaps", "default", config_map("b", "1")).unwrap();
    store.delete("configmaps", "default", "a").unwrap();
    assert_eq!(short(lagging.next_until(&store, began + 1)), "ADDED a");
    assert_eq!(short(lagging.next_until(&store, began + 1)), "");
    assert_eq!(lagging.position(), began + 1);
    for cursor in [&mut prompt, &mut lagging] {
        assert_eq!(short(cursor.next(&store)), "ADDED b");
        assert_eq!(short(cursor.next(&store)), "DELETED a");
        assert_eq!(short(cursor.next(&store)), "");
        assert!(!cursor.is_over());
    }
    assert_eq!(prompt.bookmark(), None, "it was not asked for");
    let mut marked = watch(&store, "configmaps?watch=true&allowWatchBookmarks=true");
    assert_eq!(short(marked.next(&store)), "ADDED b");
    assert_eq!(marked.bookmark(), None, "no progress");
    store.create("pods", "default", pod("x", "a")).unwrap();
    assert_eq!(short(marked.next(&store)), "");
    assert_eq!(marked.bookmark().unwrap().object["metadata"]["resourceVersion"], store.version().to_string());
}

#[test]
fn a_cursor_below_the_compaction_ends_with_410() {
    let (store, _) = store();
    let mut cursor = watch(&store, &format!("configmaps?watch=true&resourceVersion={}", store.version()));
    store.create("configmaps", "default", config_map("a", "1")).unwrap();
    store.compact();
    assert_eq!(cursor.next(&store).unwrap().object["code"], 410);
    assert!(cursor.is_over() && cursor.next(&store).is_none());
}

#[test]
fn a_watch_from_a_version_that_a_restore_took_away_is_silent() {
    let (store, _) = store();
    let backup = store.snapshot();
    store.create("configmaps", "default", config_map("a", "1")).unwrap();
    let lost = store.version();
    store.restore(&backup);
    let mut cursor = watch(&store, &format!("configmaps?watch=true&resourceVersion={lost}"));
    store.create("configmaps", "default", config_map("b", "1")).unwrap();
    assert_eq!(short(cursor.next(&store)), "", "it has the version of a write that is gone");
    store.create("configmaps", "default", config_map("c", "1")).unwrap();
    assert_eq!(short(cursor.next(&store)), "ADDED c");
}
