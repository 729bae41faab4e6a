//! What holds for every API server.
use super::deletion::{deletes_on_conditions_and_in_bulk, pages_lists_consistently};
use super::target::*;
use super::words::{refuses_bad_labels_and_annotations, refuses_contradictions_in_lists};
use serde_json::{Value, json};

#[tokio::test]
async fn the_embedded_server_keeps_the_api_conventions() {
    let server = embedded().await;
    all(&Target::of(&server)).await;
}

#[tokio::test]
async fn a_real_server_keeps_the_same_conventions() {
    let Some(target) = Target::from_environment() else {
        println!("skipped: no KUBE_API_URL");
        return;
    };
    let namespace = json!({"metadata": {"name": target.namespace}});
    assert_eq!(target.call("POST", "/api/v1/namespaces", "application/json", Some(&namespace)).await.0, 201);
    let account = json!({"metadata": {"name": "default"}});
    // The controller that makes the account may or may not run beside a bare API server.
    assert!([201, 409].contains(&target.post("serviceaccounts", &account).await.0));
    all(&target).await;
    let path = format!("/api/v1/namespaces/{}", target.namespace);
    assert_eq!(target.call("DELETE", &path, "application/json", None).await.0, 200);
}

async fn all(target: &Target) {
    creates_once_and_says_so(target).await;
    refuses_stale_writes(target).await;
    patches_in_three_ways(target).await;
    validates_subsets(target).await;
    selects_by_label_and_field(target).await;
    writes_status_apart(target).await;
    watches_from_a_list_without_gaps(target).await;
    shows_selector_changes_to_watches(target).await;
    sends_bookmarks(target).await;
    pages_lists_consistently(target).await;
    deletes_on_conditions_and_in_bulk(target).await;
    refuses_in_the_real_words(target).await;
    refuses_bad_labels_and_annotations(target).await;
    refuses_contradictions_in_lists(target).await;
}

pub fn check(answer: &(u16, Value), code: u16, reason: &str, message: &str) {
    let (got, body) = answer;
    assert_eq!((*got, body["reason"].as_str().unwrap_or("")), (code, reason), "{body}");
    assert_eq!(body["message"], message);
    assert_eq!((&body["kind"], &body["status"], &body["code"]), (&json!("Status"), &json!("Failure"), &json!(code)));
}

async fn creates_once_and_says_so(t: &Target) {
    let (code, made) = t.post("configmaps", &config_map("once", "1")).await;
    assert_eq!(code, 201);
    for field in ["uid", "creationTimestamp", "resourceVersion"] {
        assert!(made["metadata"][field].is_string(), "{field} in {made}");
    }
    assert_eq!((&made["kind"], &made["metadata"]["namespace"]), (&json!("ConfigMap"), &json!(t.namespace)));
    let again = t.post("configmaps", &config_map("once", "1")).await;
    check(&again, 409, "AlreadyExists", "configmaps \"once\" already exists");
    assert_eq!(again.1["details"], json!({"name": "once", "kind": "configmaps"}));
    let missing = t.get("configmaps/none").await;
    check(&missing, 404, "NotFound", "configmaps \"none\" not found");
    assert_eq!(missing.1["details"], json!({"name": "none", "kind": "configmaps"}));
    let (code, made) = t.post("configmaps", &json!({"metadata": {"generateName": "some-"}})).await;
    assert_eq!(code, 201);
    assert_eq!(made["metadata"]["name"].as_str().unwrap().len(), "some-".len() + 5);
    let versioned = json!({"metadata": {"name": "v", "resourceVersion": "1"}});
    let message = "resourceVersion should not be set on objects to be created";
    let answer = t.post("configmaps", &versioned).await;
    assert!(answer.1["message"].as_str().unwrap().contains(message), "{}", answer.1);
    let (code, _) = t.post("configmaps", &config_map("Not_A_Name", "1")).await;
    assert_eq!(code, 422);
    let nowhere = Target { namespace: "nowhere".to_owned(), ..t.clone() };
    let answer = nowhere.post("configmaps", &config_map("lost", "1")).await;
    check(&answer, 404, "NotFound", "namespaces \"nowhere\" not found");
    assert_eq!(answer.1["details"], json!({"name": "nowhere", "kind": "namespaces"}));
    let answer = nowhere.put("endpoints/lost", &json!({"metadata": {"name": "lost"}})).await;
    check(&answer, 404, "NotFound", "namespaces \"nowhere\" not found");
    let (code, list) = nowhere.get("configmaps").await;
    assert_eq!((code, names(&list)), (200, vec![]));
}

async fn refuses_stale_writes(t: &Target) {
    let endpoints = json!({"metadata": {"name": "lead", "annotations": {"a": "1"}}});
    let (_, first) = t.post("endpoints", &endpoints).await;
    let mut changed = first.clone();
    changed["metadata"]["annotations"]["a"] = json!("2");
    let (code, second) = t.put("endpoints/lead", &changed).await;
    assert_eq!(code, 200);
    assert!(version(&second) > version(&first));
    let words = "Operation cannot be fulfilled on endpoints \"lead\": the object has been modified; please apply your \
                 changes to the latest version and try again";
    let stale = t.put("endpoints/lead", &changed).await;
    check(&stale, 409, "Conflict", words);
    assert_eq!(stale.1["details"], json!({"name": "lead", "kind": "endpoints"}));
    let old = &first["metadata"]["resourceVersion"];
    let patch = json!({"metadata": {"resourceVersion": old, "annotations": {"a": "3"}}});
    for kind in [MERGE, STRATEGIC] {
        check(&t.patch("endpoints/lead", kind, &patch).await, 409, "Conflict", words);
    }
    let patch = json!([{"op": "replace", "path": "/metadata/resourceVersion", "value": old},
        {"op": "replace", "path": "/metadata/annotations/a", "value": "3"}]);
    check(&t.patch("endpoints/lead", JSON_PATCH, &patch).await, 409, "Conflict", words);
    writes_without_a_version_are_unconditional(t, &endpoints, &first, &second).await;
}

async fn writes_without_a_version_are_unconditional(t: &Target, endpoints: &Value, first: &Value, second: &Value) {
    let (code, same) = t.put("endpoints/lead", second).await;
    assert_eq!((code, version(&same)), (200, version(second)), "a write that changes nothing keeps the version");
    let (code, third) = t.put("endpoints/lead", endpoints).await;
    assert_eq!(code, 200, "a PUT without a version is unconditional");
    assert_eq!(third["metadata"]["annotations"]["a"], "1");
    assert_eq!(third["metadata"]["uid"], first["metadata"]["uid"]);
    let (code, body) = t.patch("endpoints/lead", MERGE, &json!({"metadata": {"uid": "other"}})).await;
    assert_eq!((code, &body["reason"]), (422, &json!("Invalid")), "a patch cannot change the uid");
    let mut stranger = endpoints.clone();
    stranger["metadata"]["uid"] = json!("other");
    let words = format!(
        "Operation cannot be fulfilled on endpoints \"lead\": StorageError: invalid object, Code: 4, Key: \
         /registry/services/endpoints/{}/lead, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in \
         precondition: other, UID in object meta: {}",
        t.namespace,
        first["metadata"]["uid"].as_str().unwrap()
    );
    check(&t.put("endpoints/lead", &stranger).await, 409, "Conflict", &words);
    let (code, _) = t.patch("endpoints/none", MERGE, &json!({"metadata": {"annotations": {"a": "3"}}})).await;
    assert_eq!(code, 404);
    assert_eq!(t.put("configmaps/none", &config_map("none", "1")).await.0, 404);
    assert_eq!(t.put("endpoints/fresh", &json!({"metadata": {"name": "fresh"}})).await.0, 201);
}

async fn patches_in_three_ways(t: &Target) {
    let ports = json!([{"name": "postgresql", "port": 5432}]);
    let made = json!({"metadata": {"name": "patched", "annotations": {"a": "1", "b": "2"}}, "subsets": subset("10.1.0.1", ports.clone())});
    assert_eq!(t.post("endpoints", &made).await.0, 201);
    let patch = json!({"metadata": {"annotations": {"a": null, "c": "3"}}, "subsets": subset("10.1.0.2", ports)});
    let (code, got) = t.patch("endpoints/patched", STRATEGIC, &patch).await;
    assert_eq!((code, &got["metadata"]["annotations"]), (200, &json!({"b": "2", "c": "3"})));
    assert_eq!(got["subsets"].as_array().unwrap().len(), 1);
    assert_eq!(got["subsets"][0]["addresses"], json!([{"ip": "10.1.0.2"}]), "subsets are replaced whole");
    assert_eq!(got["subsets"][0]["ports"][0]["protocol"], "TCP");
    let (_, again) = t.patch("endpoints/patched", STRATEGIC, &patch).await;
    assert_eq!(version(&again), version(&got), "a patch that changes nothing keeps the version");
    let (code, got) =
        t.patch("endpoints/patched", MERGE, &json!({"metadata": {"annotations": {"b": null}}, "subsets": null})).await;
    assert_eq!((code, &got["metadata"]["annotations"]), (200, &json!({"c": "3"})));
    assert!(got.get("subsets").is_none());
    let patch = json!([{"op": "test", "path": "/metadata/annotations/c", "value": "3"},
        {"op": "add", "path": "/metadata/annotations/d", "value": "4"}, {"op": "remove", "path": "/metadata/annotations/c"}]);
    let (code, got) = t.patch("endpoints/patched", JSON_PATCH, &patch).await;
    assert_eq!((code, &got["metadata"]["annotations"]), (200, &json!({"d": "4"})));
    assert_eq!(t.patch("endpoints/patched", JSON_PATCH, &patch).await.0, 422, "its test fails now");
    assert_eq!(t.patch("endpoints/patched", "text/plain", &json!({})).await.0, 415);
    assert_eq!(t.post("pods", &pod("merged", "x")).await.0, 201);
    let patch = json!({"spec": {"containers": [{"name": "main", "image": "example/main:2"}]}});
    let (code, got) = t.patch("pods/merged", STRATEGIC, &patch).await;
    assert_eq!((code, got["spec"]["containers"].as_array().unwrap().len()), (200, 1));
    assert_eq!(got["spec"]["containers"][0]["image"], "example/main:2");
    let patch = json!({"spec": {"containers": [{"name": "second", "image": "example/main:2"}]}});
    assert_eq!(t.patch("pods/merged", STRATEGIC, &patch).await.0, 422, "containers cannot be added");
    assert_eq!(t.delete("pods/merged").await.0, 200);
}

async fn validates_subsets(t: &Target) {
    let cases = [
        (subset("nonsense", json!([{"port": 1}])), "subsets[0].addresses[0].ip"),
        (subset("127.0.0.1", json!([{"port": 1}])), "subsets[0].addresses[0].ip"),
        (subset("10.1.0.1", json!([{"port": 1}, {"name": "b", "port": 2}])), "subsets[0].ports[0].name"),
        (subset("10.1.0.1", json!([{"port": 70000}])), "subsets[0].ports[0].port"),
        (json!([{"ports": [{"port": 1}]}]), "subsets[0]"),
    ];
    for (subsets, field) in cases {
        let (code, body) = t.post("endpoints", &json!({"metadata": {"name": "bad"}, "subsets": subsets})).await;
        assert_eq!((code, &body["reason"]), (422, &json!("Invalid")), "{body}");
        assert_eq!((&body["details"]["name"], &body["details"]["kind"]), (&json!("bad"), &json!("Endpoints")));
        let message = body["message"].as_str().unwrap();
        assert!(message.starts_with("Endpoints \"bad\" is invalid: "), "{message}");
        let fields: Vec<&Value> = body["details"]["causes"].as_array().unwrap().iter().map(|c| &c["field"]).collect();
        assert!(fields.contains(&&json!(field)), "{field}: {fields:?}");
    }
    let number = json!({"metadata": {"name": "bad", "annotations": {"a": 1}}});
    assert_eq!(t.post("endpoints", &number).await.0, 400);
}

pub fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

async fn selects_by_label_and_field(t: &Target) {
    for (name, role) in [("sel-a", "master"), ("sel-b", "replica"), ("sel-c", "replica")] {
        assert_eq!(t.post("pods", &pod(name, role)).await.0, 201);
    }
    let cases: [(&str, &[&str]); 9] = [
        ("labelSelector=role%3Dreplica", &["sel-b", "sel-c"]),
        ("labelSelector=role!%3Dreplica", &["sel-a"]),
        ("labelSelector=role%20in%20(master,replica)", &["sel-a", "sel-b", "sel-c"]),
        ("labelSelector=role%20notin%20(master),role", &["sel-b", "sel-c"]),
        ("labelSelector=!role", &[]),
        ("fieldSelector=metadata.name%3Dsel-b", &["sel-b"]),
        ("fieldSelector=metadata.name!%3Dsel-b", &["sel-a", "sel-c"]),
        ("fieldSelector=status.phase%3DPending&labelSelector=role%3Dmaster", &["sel-a"]),
        ("fieldSelector=spec.nodeName%3Dnowhere", &[]),
    ];
    for (query, expected) in cases {
        let (code, list) = t.get(&format!("pods?{query}")).await;
        assert_eq!((code, names(&list)), (200, expected.to_vec()), "{query}");
        assert_eq!(list["kind"], "PodList");
    }
    let namespace = format!("/api/v1/pods?fieldSelector=metadata.namespace%3D{}", t.namespace);
    let (_, list) = t.call("GET", &namespace, "application/json", None).await;
    assert_eq!(names(&list), ["sel-a", "sel-b", "sel-c"]);
    let (code, body) = t.get("pods?fieldSelector=spec.nonsense%3Dx").await;
    assert_eq!((code, &body["reason"]), (400, &json!("BadRequest")));
    assert_eq!(t.get("pods?labelSelector=a%3D%3D%3D").await.0, 400);
    assert_eq!(t.get("pods?resourceVersion=0").await.0, 200);
}

async fn writes_status_apart(t: &Target) {
    let (_, first) = t.get("pods/sel-a").await;
    let (_, got) = t.patch("pods/sel-a", MERGE, &json!({"status": {"phase": "Running"}})).await;
    assert_eq!(got["status"]["phase"], "Pending", "status is not written through the object");
    // The oldest servers note in the object's managedFields who tried.
    assert!(version(&got) == version(&first) || t.minor().await < 22);
    let (code, got) = t.patch("pods/sel-a/status", STRATEGIC, &json!({"status": {"phase": "Running"}})).await;
    assert_eq!((code, &got["status"]["phase"]), (200, &json!("Running")));
    let mut changed = got.clone();
    changed["status"]["podIP"] = json!("10.1.0.9");
    changed["status"]["podIPs"] = json!([{"ip": "10.1.0.9"}]);
    let (code, got) = t.put("pods/sel-a/status", &changed).await;
    assert_eq!((code, &got["status"]["podIP"]), (200, &json!("10.1.0.9")));
    assert_eq!(t.put("pods/sel-a/status", &changed).await.0, 409);
    assert_eq!(t.get("endpoints/lead/status").await.0, 404);
}

async fn watches_from_a_list_without_gaps(t: &Target) {
    let (_, list) = t.get("configmaps").await;
    let from = version(&list);
    assert_eq!(t.post("configmaps", &config_map("gap", "1")).await.0, 201);
    assert_eq!(t.put("configmaps/gap", &config_map("gap", "2")).await.0, 200);
    let mut events = t.watch(&format!("configmaps?watch=true&resourceVersion={from}")).await;
    assert_eq!(events.next_short().await, "ADDED gap");
    let second = events.next().await.unwrap();
    assert_eq!((&second["type"], &second["object"]["data"]["key"]), (&json!("MODIFIED"), &json!("2")));
    assert_eq!(second["object"]["kind"], "ConfigMap");
    assert_eq!(t.delete("configmaps/gap").await.0, 200);
    let third = events.next().await.unwrap();
    assert_eq!(third["type"], "DELETED");
    assert!(version(&third["object"]) > version(&second["object"]), "a deletion has a version of its own");
    let one = "configmaps?watch=1&fieldSelector=metadata.name%3Donce";
    let mut events = t.watch(one).await;
    assert_eq!(events.next_short().await, "ADDED once", "without a version, a watch begins with what stands");
    let mut ended = t.watch(&format!("configmaps?watch=true&resourceVersion={from}&timeoutSeconds=1")).await;
    let mut seen = 0;
    while ended.next().await.is_some() {
        seen += 1;
    }
    assert_eq!(seen, 3);
}

async fn shows_selector_changes_to_watches(t: &Target) {
    let (_, list) = t.get("pods").await;
    let query = format!("pods?watch=true&labelSelector=role%3Dmaster&resourceVersion={}", version(&list));
    let mut events = t.watch(&query).await;
    let role = |role: &str| json!({"metadata": {"labels": {"role": role}}});
    assert_eq!(t.patch("pods/sel-b", MERGE, &role("master")).await.0, 200);
    assert_eq!(t.patch("pods/sel-a", MERGE, &role("replica")).await.0, 200);
    assert_eq!(t.patch("pods/sel-c", MERGE, &role("other")).await.0, 200);
    assert_eq!(t.patch("pods/sel-b", MERGE, &json!({"metadata": {"annotations": {"x": "y"}}})).await.0, 200);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(events.next_short().await);
    }
    assert_eq!(seen, ["ADDED sel-b", "DELETED sel-a", "MODIFIED sel-b"]);
}

async fn sends_bookmarks(t: &Target) {
    let (_, list) = t.get("configmaps").await;
    let from = version(&list);
    let quiet = "configmaps?watch=true&allowWatchBookmarks=true&timeoutSeconds=3&fieldSelector=metadata.name%3Dnone";
    let mut events = t.watch(&format!("{quiet}&resourceVersion={from}")).await;
    assert!(events.next().await.is_none(), "no bookmark says what the client said itself");
    let mut events = t.watch(&format!("{quiet}&resourceVersion={from}")).await;
    let (_, unseen) = t.post("configmaps", &config_map("unseen", "1")).await;
    let bookmark = events.next().await.unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert!(version(&bookmark["object"]) >= version(&unseen), "it moves a watch past what its selector hides");
}

async fn refuses_in_the_real_words(t: &Target) {
    let stranger = Target { token: "nobody".to_owned(), ..t.clone() };
    check(&stranger.get("pods").await, 401, "Unauthorized", "Unauthorized");
    let missing = "the server could not find the requested resource";
    let answer = t.call("GET", "/api/v1/nonsense", "application/json", None).await;
    if answer.1.is_object() {
        check(&answer, 404, "NotFound", missing);
    } else {
        assert_eq!(answer.0, 404);
    }
    let (code, _) = t.call("POST", &t.path("pods/x"), "application/json", Some(&json!({}))).await;
    assert_eq!(code, 405);
    let mismatch = t.put("configmaps/once", &config_map("other", "1")).await;
    check(&mismatch, 400, "BadRequest", "the name of the object (other) does not match the name on the URL (once)");
}
