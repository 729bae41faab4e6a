//! What only the embedded server can be asked: compaction, faults, rules, counts, the in-process store.
use super::target::*;
use patroni::kubemem::{FaultRule, Options, Server};
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn a_watch_below_the_compaction_gets_410_and_a_relist_helps() {
    let server = embedded().await;
    let t = Target::of(&server);
    let old = server.store().version();
    server.store().create("configmaps", "default", config_map("a", "1")).unwrap();
    server.compact();
    let mut events = t.watch(&format!("configmaps?watch=true&resourceVersion={old}")).await;
    let error = events.next().await.unwrap();
    assert_eq!(error["type"], "ERROR");
    assert_eq!((&error["object"]["code"], &error["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert!(events.next().await.is_none());
    let (_, list) = t.get("configmaps").await;
    let mut events = t.watch(&format!("configmaps?watch=true&resourceVersion={}", version(&list))).await;
    server.store().create("configmaps", "default", config_map("b", "1")).unwrap();
    assert_eq!(events.next_short().await, "ADDED b");
}

#[tokio::test]
async fn history_beyond_its_length_is_compacted() {
    let server = Server::start(Options { history: 3, ..Options::default() }).await.unwrap();
    let t = Target::of(&server);
    let old = server.store().version();
    for number in 0..4 {
        server.store().create("configmaps", "default", config_map(&format!("m{number}"), "1")).unwrap();
    }
    let event = t.watch(&format!("configmaps?watch=true&resourceVersion={old}")).await.next().await.unwrap();
    assert_eq!(event["object"]["code"], 410);
    let event = t.watch(&format!("configmaps?watch=true&resourceVersion={}", old + 1)).await.next_short().await;
    assert_eq!(event, "ADDED m1");
}

#[tokio::test]
async fn fault_rules_refuse_and_drop_replies_as_often_as_told() {
    let server = embedded().await;
    let t = Target::of(&server);
    let rule = FaultRule { method: "GET".to_owned(), path_contains: "/configmaps".to_owned(), ..FaultRule::default() };
    server.faults().fail(FaultRule { status: 503, count: 2, ..rule.clone() });
    assert_eq!(t.get("configmaps").await.0, 503);
    assert_eq!(t.get("configmaps").await.0, 503);
    assert_eq!(t.get("configmaps").await.0, 200);
    server.faults().drop_reply(FaultRule { method: "POST".to_owned(), count: 1, ..rule });
    let body = config_map("lost", "1");
    let lost = t.send("POST", &t.path("configmaps"), "application/json", Some(&body)).await;
    assert!(lost.is_err(), "the answer is lost");
    assert_eq!(t.get("configmaps/lost").await.0, 200, "the work is done");
}

#[tokio::test]
async fn one_client_can_be_cut_off_and_the_other_served() {
    let server = embedded().await;
    server.add_token("member-a", "token-a");
    let a = Target { token: "token-a".to_owned(), ..Target::of(&server) };
    let b = Target::of(&server);
    let mut watch_a = a.watch("configmaps?watch=true").await;
    let mut watch_b = b.watch("configmaps?watch=true").await;
    server.faults().down_for("token-a", true);
    assert!(watch_a.next().await.is_none(), "its open watch is reset");
    assert!(a.send("GET", &a.path("pods"), "application/json", None).await.is_err());
    assert_eq!(b.get("pods").await.0, 200);
    server.faults().clear();
    assert_eq!(a.get("pods").await.0, 200);
    server.faults().cut_watches();
    assert!(watch_b.next().await.is_none());
}

#[tokio::test]
async fn down_resets_everything_and_comes_back() {
    let server = embedded().await;
    let t = Target::of(&server);
    let mut events = t.watch("configmaps?watch=true").await;
    server.faults().down(true);
    assert!(events.next().await.is_none());
    assert!(t.send("GET", &t.path("pods"), "application/json", None).await.is_err());
    server.faults().down(false);
    assert_eq!(t.get("pods").await.0, 200);
}

#[tokio::test]
async fn hang_keeps_everybody_waiting_and_serves_them_afterwards() {
    let server = embedded().await;
    let t = Target::of(&server);
    let mut events = t.watch("configmaps?watch=true").await;
    server.faults().hang(true);
    let waiting = tokio::spawn({
        let t = t.clone();
        async move { t.get("pods").await.0 }
    });
    server.store().create("configmaps", "default", config_map("silent", "1")).unwrap();
    assert!(timeout(Duration::from_millis(200), events.next()).await.is_err(), "a hung watch says nothing");
    assert!(!waiting.is_finished());
    server.faults().hang(false);
    assert_eq!(waiting.await.unwrap(), 200);
    assert_eq!(events.next_short().await, "ADDED silent");
    server.faults().latency(Duration::from_millis(150));
    let start = Instant::now();
    assert_eq!(t.get("pods").await.0, 200);
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn rules_forbid_in_the_real_words() {
    let server = embedded().await;
    let rules = vec![("get".to_owned(), "pods".to_owned()), ("list".to_owned(), "*".to_owned())];
    server.add_token_with_rules("u", "limited", rules);
    server.store().create("pods", "default", pod("x", "a")).unwrap();
    let t = Target { token: "limited".to_owned(), ..Target::of(&server) };
    assert_eq!(t.get("pods/x").await.0, 200);
    assert_eq!(t.get("endpoints").await.0, 200);
    let (code, body) = t.patch("pods/x", MERGE, &json!({})).await;
    let words = "pods \"x\" is forbidden: User \"u\" cannot patch resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!((code, &body["reason"], &body["message"]), (403, &json!("Forbidden"), &json!(words)));
    let counts = server.request_counts();
    assert_eq!(counts[&("get".to_owned(), "pods".to_owned())], 1);
    server.reset_request_counts();
    assert!(server.request_counts().is_empty());
}

#[tokio::test]
async fn a_scheduled_pod_gets_the_grace_it_is_asked_to_have() {
    let server = embedded().await;
    let t = Target::of(&server);
    let mut made = pod("x", "a");
    made["spec"]["nodeName"] = json!("node-1");
    server.store().create("pods", "default", made).unwrap();
    let mut events = t.watch("pods?watch=true").await;
    assert_eq!(events.next_short().await, "ADDED x");
    assert_eq!(t.delete("pods/x?gracePeriodSeconds=1").await.0, 200);
    let marked = events.next().await.unwrap();
    assert_eq!(marked["type"], "MODIFIED");
    assert!(marked["object"]["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(events.next_short().await, "DELETED x");
}
