//! More of the conformance body: pages and deletion.
use super::conformance::{check, names};
use super::target::*;
use serde_json::json;

pub async fn pages_lists_consistently(t: &Target) {
    for name in ["page-a", "page-b", "page-c"] {
        let mut map = config_map(name, "1");
        map["metadata"]["labels"] = json!({"set": "page"});
        assert_eq!(t.post("configmaps", &map).await.0, 201);
    }
    let query = "configmaps?labelSelector=set%3Dpage&limit=2";
    let (_, first) = t.get(query).await;
    assert_eq!(names(&first), ["page-a", "page-b"]);
    let next = first["metadata"]["continue"].as_str().unwrap();
    assert_eq!(t.delete("configmaps/page-c").await.0, 200);
    let (code, second) = t.get(&format!("{query}&continue={next}")).await;
    assert_eq!((code, names(&second)), (200, vec!["page-c"]), "the second page shows the list as it began");
    assert_eq!(version(&second), version(&first));
    assert!(second["metadata"].get("continue").is_none());
}

pub async fn deletes_on_conditions_and_in_bulk(t: &Target) {
    let path = t.path("configmaps/page-a");
    let (_, map) = t.get("configmaps/page-a").await;
    for (field, what, guess) in
        [("uid", "UID", "deleted and then recreated"), ("resourceVersion", "ResourceVersion", "modified")]
    {
        let other = json!({"preconditions": {field: "other"}});
        let refused = t.call("DELETE", &path, "application/json", Some(&other)).await;
        let have = map["metadata"][field].as_str().unwrap();
        let words = format!(
            "Operation cannot be fulfilled on ConfigMap \"page-a\": the {what} in the precondition (other) does not \
             match the {what} in record ({have}). The object might have been {guess}"
        );
        check(&refused, 409, "Conflict", &words);
        assert_eq!(refused.1["details"], json!({"name": "page-a", "kind": "ConfigMap"}));
    }
    let own = json!({"preconditions": {"uid": map["metadata"]["uid"]}});
    let (code, body) = t.call("DELETE", &path, "application/json", Some(&own)).await;
    assert_eq!((code, &body["status"]), (200, &json!("Success")));
    assert_eq!(body["details"]["uid"], map["metadata"]["uid"]);
    assert_eq!(t.delete("configmaps/page-a").await.0, 404);
    let mut held = config_map("held", "1");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(t.post("configmaps", &held).await.0, 201);
    assert_eq!(t.delete("configmaps/held").await.0, 200);
    let (code, body) = t.get("configmaps/held").await;
    assert_eq!((code, body["metadata"]["deletionTimestamp"].is_string()), (200, true));
    assert_eq!(t.patch("configmaps/held", MERGE, &json!({"metadata": {"finalizers": null}})).await.0, 200);
    assert_eq!(t.get("configmaps/held").await.0, 404);
    let (code, _) = t.delete("pods?labelSelector=role%3Dreplica").await;
    assert_eq!(code, 200);
    assert_eq!(names(&t.get("pods").await.1), ["sel-b", "sel-c"]);
    assert_eq!(t.delete("pods").await.0, 200);
    assert!(names(&t.get("pods").await.1).is_empty());
}
