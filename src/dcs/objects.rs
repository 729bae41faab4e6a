//! The few fields of Kubernetes objects anybody here reads. Parsing only these keeps whole Pods and `managedFields` out
//! of memory. Names and labels of the objects are decided here too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::options::{Mode, StoreOptions};
use super::schema::parse_wall;
use crate::model::WallTime;

/// Object metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub name: String,
    pub uid: Option<String>,
    pub resource_version: String,
    pub deletion_timestamp: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub annotations: Option<BTreeMap<String, String>>,
}

/// An Endpoints object or a ConfigMap.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Kind {
    pub metadata: Meta,
    pub subsets: Option<Vec<Subset>>,
}

/// One subset of an Endpoints object.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Subset {
    pub addresses: Option<Vec<Address>>,
    pub ports: Option<Vec<WirePort>>,
}

/// One address of a subset.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Address {
    pub ip: String,
}

/// One port of a subset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct WirePort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub metadata: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

/// What of a pod's spec matters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub node_name: Option<String>,
    pub hostname: Option<String>,
    pub containers: Option<Vec<Container>>,
    pub init_containers: Option<Vec<Container>>,
}

/// A container of the spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub name: String,
    pub restart_policy: Option<String>,
}

/// What of a pod's status matters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    pub container_statuses: Option<Vec<ContainerStatus>>,
    pub init_container_statuses: Option<Vec<ContainerStatus>>,
}

/// A container as the kubelet reports it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerStatus {
    pub name: String,
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
    pub state: Option<ContainerState>,
    pub last_state: Option<ContainerState>,
}

/// One of its states.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    pub running: Option<Running>,
    pub terminated: Option<Terminated>,
}

/// Since when it runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Running {
    pub started_at: Option<String>,
}

/// The end of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Terminated {
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
}

/// A list answer.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    pub metadata: ListMeta,
    #[serde(default = "none")]
    pub items: Option<Vec<T>>,
}

fn none<T>() -> Option<T> {
    None
}

/// Metadata of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    pub resource_version: String,
}

impl Pod {
    /// Names of the non-ephemeral containers that count for a proof of death: regular ones, and init containers with
    /// `restartPolicy: Always`, which run as long as the pod.
    pub fn counted_containers(&self) -> Vec<&str> {
        let sidecars =
            self.spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        self.spec.containers.iter().flatten().chain(sidecars).map(|c| c.name.as_str()).collect()
    }

    fn status_of(&self, name: &str) -> Option<&ContainerStatus> {
        let regular = self.status.container_statuses.iter().flatten();
        regular.chain(self.status.init_container_statuses.iter().flatten()).find(|s| s.name == name)
    }

    /// Container name → ID; empty until every counted container has one.
    pub fn container_ids(&self) -> BTreeMap<String, String> {
        self.counted_containers()
            .into_iter()
            .map(|name| {
                let id = self.status_of(name)?.container_id.clone().filter(|id| !id.is_empty())?;
                Some((name.to_owned(), id))
            })
            .collect::<Option<_>>()
            .unwrap_or_default()
    }

    /// Since when this container runs; `None`: it does not, or nobody says.
    pub fn running_since(&self, name: &str) -> Option<WallTime> {
        let state = self.status_of(name)?.state.as_ref()?;
        parse_wall(state.running.as_ref()?.started_at.as_deref()?)
    }

    /// Counted container → the IDs shown as terminated, in `state` or `lastState`.
    pub fn terminated(&self) -> BTreeMap<String, Vec<String>> {
        self.counted_containers()
            .into_iter()
            .map(|name| {
                let ids = self.status_of(name).map_or_else(Vec::new, |s| {
                    let states = s.state.iter().chain(s.last_state.iter());
                    states.filter_map(|s| s.terminated.as_ref()?.container_id.clone()).collect()
                });
                (name.to_owned(), ids)
            })
            .collect()
    }
}

/// The names of the objects of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub leader: String,
    pub config: String,
    pub failover: String,
    pub sync: String,
}

impl Names {
    pub fn new(o: &StoreOptions) -> Names {
        Names {
            leader: match o.mode {
                Mode::Endpoints => o.scope.clone(),
                Mode::ConfigMaps => format!("{}-leader", o.scope),
            },
            config: format!("{}-config", o.scope),
            failover: format!("{}-failover", o.scope),
            sync: format!("{}-sync", o.scope),
        }
    }
}

/// The labels every object gets, which are also the selector of lists and watches.
pub(super) fn object_labels(o: &StoreOptions) -> BTreeMap<String, String> {
    let mut labels = o.labels.clone();
    labels.insert(o.scope_label.clone(), o.scope.clone());
    labels
}

/// The ports of the client Endpoints.
pub(super) fn wanted_ports(o: &StoreOptions) -> Vec<WirePort> {
    o.ports.iter().map(|p| WirePort { name: p.name.clone(), port: p.port, protocol: p.protocol.clone() }).collect()
}

/// Are these subsets exactly one address, `ip`, with `ports`? A missing protocol is TCP; the order of ports is
/// free.
pub(super) fn subsets_are(subsets: &[Subset], ip: &str, ports: &[WirePort]) -> bool {
    let [subset] = subsets else { return false };
    let [address] = subset.addresses.as_deref().unwrap_or_default() else { return false };
    let normal = |ports: &[WirePort]| {
        let mut ports: Vec<WirePort> = ports
            .iter()
            .map(|p| WirePort {
                name: p.name.clone().filter(|n| !n.is_empty()),
                port: p.port,
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
            })
            .collect();
        ports.sort();
        ports
    };
    address.ip == ip && normal(subset.ports.as_deref().unwrap_or_default()) == normal(ports)
}

/// The subsets that send clients to this pod.
pub(super) fn subsets_for(ip: &str, pod: Option<&Pod>, namespace: &str, ports: &[WirePort]) -> Value {
    let mut address = json!({ "ip": ip });
    if let (Some(pod), Value::Object(a)) = (pod, &mut address) {
        if let Some(hostname) = &pod.spec.hostname {
            a.insert("hostname".into(), json!(hostname));
        }
        if let Some(node) = &pod.spec.node_name {
            a.insert("nodeName".into(), json!(node));
        }
        let target = json!({
            "kind": "Pod",
            "uid": pod.metadata.uid,
            "namespace": namespace,
            "name": pod.metadata.name,
            "resourceVersion": pod.metadata.resource_version,
        });
        a.insert("targetRef".into(), target);
    }
    json!([{ "addresses": [address], "ports": ports }])
}

/// Resource versions compare as numbers, within one history of the store.
pub(super) fn version_number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(statuses: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a", "resourceVersion": "1"},
            "spec": {"containers": [{"name": "postgres"}], "initContainers": [
                {"name": "copy"}, {"name": "patroni", "restartPolicy": "Always"}]},
            "status": statuses,
        }))
        .unwrap()
    }

    #[test]
    fn container_ids_are_published_only_when_all_are_known() {
        let half = pod(json!({"containerStatuses": [{"name": "postgres", "containerID": "c://p"}]}));
        assert!(half.container_ids().is_empty());
        let whole = pod(json!({
            "containerStatuses": [{"name": "postgres", "containerID": "c://p"}],
            "initContainerStatuses": [{"name": "copy", "containerID": "c://x"}, {"name": "patroni", "containerID": "c://q"}],
        }));
        assert_eq!(
            whole.container_ids(),
            BTreeMap::from([("patroni".into(), "c://q".into()), ("postgres".into(), "c://p".into())])
        );
    }

    #[test]
    fn terminated_ids_come_from_both_states() {
        let p = pod(json!({"containerStatuses": [{"name": "postgres", "containerID": "c://2",
            "state": {"terminated": {"containerID": "c://2"}}, "lastState": {"terminated": {"containerID": "c://1"}}}]}));
        assert_eq!(p.terminated()["postgres"], ["c://2", "c://1"]);
        assert!(p.terminated()["patroni"].is_empty());
    }

    #[test]
    fn subsets_are_left_alone_when_only_order_and_the_default_protocol_differ() {
        let port = |name: Option<&str>, port, protocol: Option<&str>| WirePort {
            name: name.map(Into::into),
            port,
            protocol: protocol.map(Into::into),
        };
        let wanted = [port(Some("a"), 1, None), port(Some("b"), 2, None)];
        let there = Subset {
            addresses: Some(vec![Address { ip: "10.0.0.1".into() }]),
            ports: Some(vec![port(Some("b"), 2, Some("TCP")), port(Some("a"), 1, Some("TCP"))]),
        };
        assert!(subsets_are(std::slice::from_ref(&there), "10.0.0.1", &wanted));
        assert!(!subsets_are(std::slice::from_ref(&there), "10.0.0.2", &wanted));
        assert!(!subsets_are(&[there.clone(), there], "10.0.0.1", &wanted));
        assert!(!subsets_are(&[], "10.0.0.1", &wanted));
    }
}
