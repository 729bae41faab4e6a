//! The `kube` crate's client against the embedded server.
use super::target::{config_map, embedded};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, Config};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

fn client(server: &patroni::kubemem::Server) -> Client {
    let mut config = Config::new(server.url().parse().unwrap());
    config.auth_info.token = Some(server.token().to_owned().into());
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn kube_lists_patches_and_sees_conflicts() {
    let server = embedded().await;
    let api: Api<Endpoints> = Api::namespaced(client(&server), "default");
    let mut endpoints = Endpoints::default();
    endpoints.metadata.name = Some("demo".to_owned());
    let first = api.create(&PostParams::default(), &endpoints).await.unwrap();
    let patch =
        json!({"metadata": {"resourceVersion": first.metadata.resource_version, "annotations": {"leader": "a"}}});
    let second = api.patch("demo", &PatchParams::default(), &Patch::Strategic(&patch)).await.unwrap();
    assert_eq!(second.metadata.annotations.unwrap()["leader"], "a");
    let refused = api.patch("demo", &PatchParams::default(), &Patch::Strategic(&patch)).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("an API error: {refused}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(api.list(&Default::default()).await.unwrap().items.len(), 1);
    assert!(api.get_opt("none").await.unwrap().is_none());
}

#[tokio::test]
async fn the_watcher_follows_and_recovers_from_410() {
    let server = embedded().await;
    server.store().create("configmaps", "default", config_map("a", "1")).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    let mut stream = watcher(api, watcher::Config::default()).boxed();
    let mut seen = Vec::new();
    let mut step = 0;
    while step < 4 {
        let event = timeout(Duration::from_secs(20), stream.next()).await.unwrap().unwrap();
        match event {
            Ok(watcher::Event::Init) => seen.push("init".to_owned()),
            Ok(watcher::Event::InitApply(map)) => seen.push(format!("have {}", map.metadata.name.unwrap())),
            Ok(watcher::Event::InitDone) => {
                step += 1;
                let name = if step == 1 { "b" } else { "d" };
                server.store().create("configmaps", "default", config_map(name, "1")).unwrap();
            }
            Ok(watcher::Event::Apply(map)) => {
                seen.push(format!("apply {}", map.metadata.name.unwrap()));
                step += 1;
                if step == 2 {
                    server.faults().down(true);
                    server.store().create("configmaps", "default", config_map("c", "1")).unwrap();
                    server.compact();
                }
            }
            Ok(watcher::Event::Delete(map)) => seen.push(format!("delete {}", map.metadata.name.unwrap())),
            Err(_) => server.faults().down(false),
        }
    }
    assert_eq!(seen, ["init", "have a", "apply b", "init", "have a", "have b", "have c", "apply d"]);
}
