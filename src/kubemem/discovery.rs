//! Discovery: what `kubectl` reads before it does anything, and just enough OpenAPI for its validation handshake.
use super::kinds::{GROUPS, KINDS, Kind};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The document at a path outside the objects, if there is one. `segments` is the path split at `/`.
pub(crate) fn document(segments: &[&str], address: SocketAddr) -> Option<Value> {
    match segments {
        [] => Some(
            json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}),
        ),
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address.to_string()}],
        })),
        ["api", "v1"] => Some(resources("")),
        ["apis"] => {
            let groups: Vec<Value> = GROUPS.iter().map(|name| group(name)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] if GROUPS.contains(name) => {
            let mut value = group(name);
            value["kind"] = json!("APIGroup");
            value["apiVersion"] = json!("v1");
            Some(value)
        }
        ["apis", name, "v1"] if GROUPS.contains(name) => Some(resources(name)),
        ["version"] => Some(json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.3+patroni-demo", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
        })),
        ["openapi", "v3"] => Some(openapi_index()),
        ["openapi", "v3", "api", "v1"] => Some(openapi("")),
        ["openapi", "v3", "apis", name, "v1"] if GROUPS.contains(name) => Some(openapi(name)),
        _ => None,
    }
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resources(group: &str) -> Value {
    let mut list = Vec::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group) {
        let mut entry = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": VERBS,
        });
        if ["pods", "services", "statefulsets"].contains(&kind.plural) {
            entry["categories"] = json!(["all"]);
        }
        if !kind.short.is_empty() {
            entry["shortNames"] = json!([kind.short]);
        }
        list.push(entry);
        if kind.status {
            list.push(json!({
                "name": format!("{}/status", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list})
}

fn openapi_index() -> Value {
    let mut paths = Map::new();
    paths.insert("api/v1".to_owned(), json!({"serverRelativeURL": "/openapi/v3/api/v1"}));
    for group in GROUPS {
        paths.insert(format!("apis/{group}/v1"), json!({"serverRelativeURL": format!("/openapi/v3/apis/{group}/v1")}));
    }
    json!({"paths": paths})
}

fn object_path(kind: &Kind) -> String {
    let root = if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/v1", kind.group) };
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    format!("{root}{scope}/{}/{{name}}", kind.plural)
}

/// One PATCH operation per kind that names `fieldValidation`: this is how kubectl learns that the server
/// validates, and does not insist on a full schema to validate by itself.
fn openapi(group: &str) -> Value {
    let mut paths = Map::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group) {
        let parameters: Vec<Value> = ["fieldValidation", "dryRun"]
            .iter()
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}))
            .collect();
        let operation = json!({
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": kind.group, "version": "v1", "kind": kind.kind},
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
        });
        paths.insert(object_path(kind), json!({"patch": operation}));
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.34.0"},
        "paths": paths,
        "components": {"schemas": {}},
    })
}
