//! What lists, watches, fresh reads and own writes have shown, newest version of each object. Pure: no waiting, no clock.
//!
//! Versions compare as numbers; an older copy never replaces a newer one, so own writes can enter at once and the watch
//! may repeat them later. A deletion is remembered until something newer comes: an answer that was under way while the
//! object died does not bring it back. A list replaces everything that is not newer than itself, in one step.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::View;
use super::objects::{Kind, Names, Pod, Subset, object_labels, version_number};
use super::options::StoreOptions;
use super::schema;
use crate::model::{BootInstant, Cluster, LeaseRecord, Member, MemberName, OwnPod, StoreLink};

/// One of the two watched collections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// Endpoints or ConfigMaps.
    Kinds,
    /// Pods.
    Pods,
}

/// How a collection is being followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FeedState {
    NotRead,
    Live,
    Broken(BootInstant),
}

/// An Endpoints object or ConfigMap as kept.
#[derive(Clone, Debug)]
pub(super) struct KindEntry {
    pub version: String,
    pub annotations: schema::Annotations,
    pub labelled: bool,
    pub subsets: Vec<Subset>,
}

impl KindEntry {
    /// Out of an answer of the API server. `labels`: what an object of this cluster carries.
    pub fn new(object: Kind, labels: &BTreeMap<String, String>) -> KindEntry {
        let carried = object.metadata.labels.unwrap_or_default();
        KindEntry {
            version: object.metadata.resource_version,
            annotations: object.metadata.annotations.unwrap_or_default(),
            labelled: labels.iter().all(|(k, v)| carried.get(k) == Some(v)),
            subsets: object.subsets.unwrap_or_default(),
        }
    }
    /// The addresses clients are sent to.
    pub fn addresses(&self) -> Vec<String> {
        self.subsets.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.ip.clone()).collect()
    }
}

/// A pod as kept.
#[derive(Clone, Debug)]
pub(super) struct PodEntry {
    pub version: String,
    pub member: Member,
    pub labels: BTreeMap<String, String>,
    warnings: Vec<String>,
}

/// Everything seen.
pub(super) struct Cache {
    names: Names,
    labels: BTreeMap<String, String>,
    role_label: String,
    leader_values: [String; 2],
    me: Option<MemberName>,
    kinds: BTreeMap<String, KindEntry>,
    pods: BTreeMap<String, PodEntry>,
    /// Deleted object → the version of its deletion. At most four kinds and the pods of the cluster.
    dead_kinds: BTreeMap<String, u64>,
    dead_pods: BTreeMap<String, u64>,
    /// Version of the last complete list: what is not newer and not known was not there any more, or is not ours.
    listed: [u64; 2],
    /// My own pod, whole: its UID, address and containers go into what I write.
    own_pod: Option<Pod>,
    feeds: [FeedState; 2],
    lease: Option<LeaseRecord>,
    lease_received: BootInstant,
}

impl Cache {
    pub fn new(o: &StoreOptions, now: BootInstant) -> Cache {
        Cache {
            names: Names::new(o),
            labels: object_labels(o),
            role_label: o.role_label.clone(),
            leader_values: [o.leader_label_value.clone(), o.standby_leader_label_value.clone()],
            me: o.member.clone(),
            kinds: BTreeMap::new(),
            pods: BTreeMap::new(),
            dead_kinds: BTreeMap::new(),
            dead_pods: BTreeMap::new(),
            listed: [0; 2],
            own_pod: None,
            feeds: [FeedState::NotRead; 2],
            lease: None,
            lease_received: now,
        }
    }

    pub fn kind(&self, name: &str) -> Option<&KindEntry> {
        self.kinds.get(name)
    }
    pub fn own_pod(&self) -> Option<&Pod> {
        self.own_pod.as_ref()
    }
    pub fn pod(&self, name: &str) -> Option<&PodEntry> {
        self.pods.get(name)
    }
    pub fn pods(&self) -> impl Iterator<Item = (&String, &PodEntry)> {
        self.pods.iter()
    }

    /// Takes in one Endpoints object or ConfigMap, received at `at`.
    pub fn put_kind(&mut self, object: Kind, at: BootInstant) {
        let name = object.metadata.name.clone();
        let Names { leader, config, failover, sync } = &self.names;
        if ![leader, config, failover, sync].contains(&&name) {
            return;
        }
        let number = version_number(&object.metadata.resource_version);
        let newest = self.kinds.get(&name).map_or(self.listed[Feed::Kinds as usize], |k| version_number(&k.version));
        let died = self.dead_kinds.get(&name).copied().unwrap_or(0);
        if number <= newest.max(died) {
            return;
        }
        self.dead_kinds.remove(&name);
        self.kinds.insert(name, KindEntry::new(object, &self.labels));
        self.note_lease(at);
    }

    /// The object was deleted in `version`.
    pub fn drop_kind(&mut self, name: &str, version: &str, at: BootInstant) {
        let number = version_number(version);
        if self.kinds.get(name).is_some_and(|k| version_number(&k.version) < number) {
            self.kinds.remove(name);
            self.dead_kinds.insert(name.to_owned(), number);
            self.note_lease(at);
        }
    }

    /// A fresh read answered "not found", and nothing newer than `known` came meanwhile.
    pub fn kind_is_gone(&mut self, name: &str, known: Option<&str>, at: BootInstant) {
        if self.kinds.get(name).map(|k| k.version.as_str()) == known
            && let Some(entry) = self.kinds.remove(name)
        {
            self.dead_kinds.insert(name.to_owned(), version_number(&entry.version));
            self.note_lease(at);
        }
    }

    /// A complete list as of `version`.
    pub fn replace_kinds(&mut self, items: Vec<Kind>, version: &str, at: BootInstant) {
        let as_of = version_number(version);
        self.listed[Feed::Kinds as usize] = 0;
        let listed: Vec<String> = items.iter().map(|k| k.metadata.name.clone()).collect();
        self.kinds.retain(|name, k| listed.contains(name) || version_number(&k.version) > as_of);
        self.dead_kinds.retain(|_, died| *died > as_of);
        for item in items {
            self.put_kind(item, at);
        }
        self.listed[Feed::Kinds as usize] = as_of;
        self.note_lease(at);
        self.live(Feed::Kinds);
    }

    /// Takes in a pod.
    pub fn put_pod(&mut self, pod: Pod) {
        let name = pod.metadata.name.clone();
        let number = version_number(&pod.metadata.resource_version);
        let newest = self.pods.get(&name).map_or(self.listed[Feed::Pods as usize], |p| version_number(&p.version));
        if number <= newest.max(self.dead_pods.get(&name).copied().unwrap_or(0)) {
            return;
        }
        self.dead_pods.remove(&name);
        let mut warnings = Vec::new();
        let empty = BTreeMap::new();
        let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let member = Member {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            pod_ip: pod.status.pod_ip.clone(),
            role_label: labels.get(&self.role_label).cloned(),
            terminated: pod.terminated(),
            ..schema::member_from(&name, annotations, &mut warnings)
        };
        let entry = PodEntry { version: pod.metadata.resource_version.clone(), member, labels, warnings };
        if self.me.as_ref().is_some_and(|me| me.0 == name) {
            self.own_pod = Some(pod);
        }
        self.pods.insert(name, entry);
    }

    /// A pod was deleted in `version`.
    pub fn drop_pod(&mut self, name: &str, version: &str) {
        let number = version_number(version);
        if self.pods.get(name).is_some_and(|p| version_number(&p.version) < number) {
            self.pods.remove(name);
            self.dead_pods.insert(name.to_owned(), number);
        }
    }

    /// A complete list of pods as of `version`.
    pub fn replace_pods(&mut self, items: Vec<Pod>, version: &str) {
        let as_of = version_number(version);
        self.listed[Feed::Pods as usize] = 0;
        let listed: Vec<String> = items.iter().map(|p| p.metadata.name.clone()).collect();
        self.pods.retain(|name, p| listed.contains(name) || version_number(&p.version) > as_of);
        self.dead_pods.retain(|_, died| *died > as_of);
        for item in items {
            self.put_pod(item);
        }
        self.listed[Feed::Pods as usize] = as_of;
        self.live(Feed::Pods);
    }

    /// The collection is followed.
    pub fn live(&mut self, feed: Feed) {
        self.feeds[feed as usize] = FeedState::Live;
    }

    /// Following broke at `at`; the first moment stays. Before the first list there is nothing to break.
    pub fn broken(&mut self, feed: Feed, at: BootInstant) {
        let state = &mut self.feeds[feed as usize];
        if *state == FeedState::Live {
            *state = FeedState::Broken(at);
        }
    }

    fn note_lease(&mut self, at: BootInstant) {
        let lease = self.kinds.get(&self.names.leader).map(|k| schema::lease_from(&k.annotations));
        if lease != self.lease {
            self.lease = lease;
            self.lease_received = at;
        }
    }

    fn link(&self) -> StoreLink {
        let mut since: Option<BootInstant> = None;
        for feed in self.feeds {
            match feed {
                FeedState::NotRead => return StoreLink::NotRead,
                FeedState::Live => {}
                FeedState::Broken(at) => since = Some(since.map_or(at, |s| s.min(at))),
            }
        }
        since.map_or(StoreLink::Following, |since| StoreLink::Broken { since })
    }

    /// The view of all this.
    pub fn view(&self) -> View {
        let mut warnings: Vec<String> = Vec::new();
        let leader = self
            .kinds
            .get(&self.names.leader)
            .map(|k| schema::leader_from(&k.version, &k.annotations, k.addresses(), &mut warnings));
        let config = self
            .kinds
            .get(&self.names.config)
            .map(|k| schema::config_from(&k.version, &k.annotations, &mut warnings))
            .unwrap_or_default();
        let failover = self
            .kinds
            .get(&self.names.failover)
            .map(|k| schema::failover_from(&k.version, &k.annotations, &mut warnings));
        let sync = self.kinds.get(&self.names.sync).map(|k| schema::sync_from(&k.version, &k.annotations));
        for (name, pod) in &self.pods {
            warnings.extend(pod.warnings.iter().cloned());
            let foreign = pod
                .member
                .role_label
                .as_ref()
                .filter(|v| ["master", "primary"].contains(&v.as_str()) && !self.leader_values.contains(v));
            if let Some(value) = foreign {
                warnings.push(format!(
                    "pod {name} carries {}={value}, but leader_label_value here is {}: Services may select both; set \
                     kubernetes.leader_label_value alike on all members",
                    self.role_label, self.leader_values[0]
                ));
            }
        }
        let cluster = Cluster {
            config: config.config,
            initialize: config.initialize,
            initializer: config.initializer,
            history: config.history,
            leader,
            members: self.pods.iter().map(|(name, p)| (MemberName(name.clone()), p.member.clone())).collect(),
            failover,
            sync,
        };
        let me = self.own_pod.as_ref().map(|p| OwnPod {
            uid: p.metadata.uid.clone().unwrap_or_default(),
            leaving: p.metadata.deletion_timestamp.is_some(),
        });
        View {
            cluster: Arc::new(cluster),
            lease_received: self.lease_received,
            link: self.link(),
            me: me.unwrap_or_default(),
            warnings,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::options::Access;
    use super::*;

    fn at(s: u64) -> BootInstant {
        BootInstant::from_nanos(s * 1_000_000_000)
    }
    fn cache() -> Cache {
        let o = StoreOptions::new(
            "demo",
            Some("a".into()),
            Access::Server { url: String::new(), token: None },
            || at(0),
            Default::default,
        );
        Cache::new(&o, at(0))
    }
    fn leader(version: &str, renew: &str, extra: &str) -> Kind {
        serde_json::from_value(json!({"metadata": {"name": "demo-leader", "resourceVersion": version,
            "annotations": {"leader": "a", "renewTime": renew, "optime": extra}}}))
        .unwrap()
    }

    #[test]
    fn only_a_change_of_the_five_keys_restarts_the_observation() {
        let mut c = cache();
        c.put_kind(leader("5", "t1", "1"), at(10));
        assert_eq!(c.view().lease_received, at(10));
        c.put_kind(leader("6", "t1", "2"), at(20));
        assert_eq!(c.view().lease_received, at(10), "a status-only write is no heartbeat");
        c.put_kind(leader("7", "t2", "2"), at(30));
        assert_eq!(c.view().lease_received, at(30));
    }

    #[test]
    fn an_older_copy_never_replaces_a_newer_one_nor_a_deletion() {
        let mut c = cache();
        c.put_kind(leader("9", "t2", ""), at(1));
        c.put_kind(leader("8", "t1", ""), at(2));
        assert_eq!(c.kind("demo-leader").unwrap().version, "9");
        c.drop_kind("demo-leader", "12", at(3));
        c.put_kind(leader("11", "t3", ""), at(4));
        assert!(c.view().cluster.leader.is_none(), "an answer under way does not resurrect the object");
        assert_eq!(c.view().lease_received, at(3));
        c.put_kind(leader("13", "t4", ""), at(5));
        assert!(c.view().cluster.leader.is_some());
    }

    #[test]
    fn a_relist_drops_what_is_missing_but_keeps_own_writes_newer_than_itself() {
        let mut c = cache();
        c.put_kind(leader("20", "t1", ""), at(1));
        c.replace_kinds(vec![], "15", at(2));
        assert!(c.view().cluster.leader.is_some());
        c.replace_kinds(vec![], "25", at(3));
        assert!(c.view().cluster.leader.is_none());
    }

    #[test]
    fn the_link_is_following_only_when_both_collections_are() {
        let mut c = cache();
        assert_eq!(c.view().link, StoreLink::NotRead);
        c.replace_kinds(vec![], "1", at(1));
        assert_eq!(c.view().link, StoreLink::NotRead);
        c.replace_pods(vec![], "1");
        assert_eq!(c.view().link, StoreLink::Following);
        c.broken(Feed::Pods, at(7));
        c.broken(Feed::Kinds, at(9));
        c.broken(Feed::Pods, at(11));
        assert_eq!(c.view().link, StoreLink::Broken { since: at(7) });
        c.live(Feed::Pods);
        c.live(Feed::Kinds);
        assert_eq!(c.view().link, StoreLink::Following);
    }
}
