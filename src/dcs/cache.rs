//! What lists, watches, fresh reads and own writes have shown, newest version of each object. Pure: no waiting, no clock.
//!
//! Versions compare as numbers; an older copy never replaces a newer one, so own writes can enter at once and the watch
//! may repeat them later. A deletion is remembered until something newer comes: an answer that was under way while the
//! object died does not bring it back. A list replaces everything that is not newer than itself, in one step.
//!
//! A store that was restored from a backup gives versions out again. It is found by an answer that shows less than was
//! known when its request went out: reads and lists without a version are answered from the newest state there is. From
//! there on another epoch counts: what was known before it gives way to anything, and answers to requests of before it
//! are not taken in.
//!
//! My own pod is the pod of my UID. One that has its name and another UID is a stranger, and then mine is gone.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::View;
use super::objects::{Kind, Names, Pod, Subset, object_labels, version_number};
use super::options::StoreOptions;
use super::schema::{self, ConfigParts};
use crate::model::{BootInstant, Cluster, LeaderRecord, LeaseRecord, Member, MemberName, OwnPod, StoreLink, Version};
use crate::mutant::{self, Mutant};

/// One of the two watched collections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
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

/// What was known when a request went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub epoch: u32,
    /// The version of what is asked for; 0: nothing is known of it.
    pub known: u64,
}

/// An Endpoints object or ConfigMap as kept.
#[derive(Clone, Debug)]
pub struct KindEntry {
    pub(super) version: Version,
    pub(super) annotations: schema::Annotations,
    pub(super) labelled: bool,
    pub(super) subsets: Vec<Subset>,
    epoch: u32,
    /// What it says as the leader or as the config object, with the warnings of reading it: most changes of a cluster leave
    /// the one or the other alone.
    as_leader: OnceCell<Box<(LeaderRecord, Vec<String>)>>,
    as_config: OnceCell<Box<(ConfigParts, Vec<String>)>>,
}

impl KindEntry {
    /// Out of an answer of the API server. `labels`: what an object of this cluster carries.
    pub(super) fn new(object: Kind, labels: &BTreeMap<String, String>) -> KindEntry {
        let carried = object.metadata.labels.unwrap_or_default();
        KindEntry {
            version: Version(object.metadata.resource_version),
            annotations: object.metadata.annotations.unwrap_or_default(),
            labelled: labels.iter().all(|(k, v)| carried.get(k) == Some(v)),
            subsets: object.subsets.unwrap_or_default(),
            epoch: 0,
            as_leader: OnceCell::new(),
            as_config: OnceCell::new(),
        }
    }
    /// The version to expect in a write.
    pub fn version(&self) -> &Version {
        &self.version
    }
    /// Does it carry our labels? Without them no list or watch shows it.
    pub fn is_labelled(&self) -> bool {
        self.labelled
    }
    /// One of its annotations.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
    /// Read as the leader object.
    pub fn leader(&self) -> LeaderRecord {
        self.leader_told(&mut Vec::new())
    }
    fn leader_told(&self, warnings: &mut Vec<String>) -> LeaderRecord {
        let read = self.as_leader.get_or_init(|| {
            let mut told = Vec::new();
            Box::new((schema::leader_from(&self.version.0, &self.annotations, self.addresses(), &mut told), told))
        });
        warnings.extend(read.1.iter().cloned());
        read.0.clone()
    }
    fn config_told(&self, warnings: &mut Vec<String>) -> ConfigParts {
        let read = self.as_config.get_or_init(|| {
            let mut told = Vec::new();
            Box::new((schema::config_from(&self.version.0, &self.annotations, &mut told), told))
        });
        warnings.extend(read.1.iter().cloned());
        read.0.clone()
    }
    /// The addresses clients are sent to.
    pub fn addresses(&self) -> Vec<String> {
        self.subsets.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.ip.clone()).collect()
    }
}

/// A pod as kept.
#[derive(Clone, Debug)]
pub(super) struct PodEntry {
    pub version: Version,
    pub member: Member,
    pub labels: BTreeMap<String, String>,
    warnings: Vec<String>,
    epoch: u32,
}

/// What the store says of the pod of my UID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Own {
    /// It is there, as far as anybody knows.
    #[default]
    There,
    /// A watch or a list shows it no more. It may have lost a label.
    InDoubt,
    /// It is not there, or another pod has its name: until something newer shows it again.
    Gone,
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
    /// My own pod, whole: its UID, address and containers go into what I write. As last seen, also when it is gone.
    own_pod: Option<Pod>,
    /// The container of my keeper and its ID.
    kept: Option<(String, String)>,
    /// My containers are those of this life.
    pub named: Cell<bool>,
    /// Learned from the first answer that showed a pod of my name, and never changed. Empty: not yet.
    my_uid: String,
    own: Own,
    epoch: u32,
    feeds: [FeedState; 2],
    lease: Option<LeaseRecord>,
    /// Version of the leader object that showed it.
    lease_version: Option<Version>,
    lease_received: BootInstant,
    /// `kinds` and `pods` as the member sees them, with warnings; emptied by whatever changes them.
    cluster: OnceCell<(Arc<Cluster>, Vec<String>)>,
    shown: RefCell<Option<Arc<View>>>,
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
            kept: None,
            named: Cell::new(false),
            my_uid: String::new(),
            own: Own::There,
            epoch: 0,
            feeds: [FeedState::NotRead; 2],
            lease: None,
            lease_version: None,
            lease_received: now,
            cluster: OnceCell::new(),
            shown: RefCell::new(None),
        }
    }

    pub fn kind(&self, name: &str) -> Option<&KindEntry> {
        self.kinds.get(name)
    }
    pub fn set_kept(&mut self, kept: Option<(String, String)>) {
        self.kept = kept;
    }
    fn keeper_ended(&self) -> bool {
        let (Some(pod), Some((name, id))) = (&self.own_pod, &self.kept) else { return false };
        pod.terminated().get(name).is_some_and(|ids| ids.contains(id))
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

    pub fn my_uid(&self) -> &str {
        &self.my_uid
    }
    pub fn own_is_gone(&self) -> bool {
        self.own == Own::Gone
    }
    pub fn own_in_doubt(&self) -> bool {
        self.own == Own::InDoubt
    }
    pub fn is_current(&self, mark: Mark) -> bool {
        mark.epoch == self.epoch
    }
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// For a request about one object. Lists do not count: they pass over what does not carry our labels.
    pub fn mark_kind(&self, name: &str) -> Mark {
        let seen = self.kinds.get(name).filter(|k| k.epoch == self.epoch).map_or(0, |k| version_number(&k.version.0));
        Mark { epoch: self.epoch, known: seen.max(self.dead_kinds.get(name).copied().unwrap_or(0)) }
    }
    pub fn mark_pod(&self, name: &str) -> Mark {
        let seen = self.pods.get(name).filter(|p| p.epoch == self.epoch).map_or(0, |p| version_number(&p.version.0));
        Mark { epoch: self.epoch, known: seen.max(self.dead_pods.get(name).copied().unwrap_or(0)) }
    }
    /// For a list.
    pub fn mark_feed(&self, feed: Feed) -> Mark {
        let (seen, dead): (Vec<Mark>, _) = match feed {
            Feed::Kinds => (self.kinds.keys().map(|k| self.mark_kind(k)).collect(), &self.dead_kinds),
            Feed::Pods => (self.pods.keys().map(|p| self.mark_pod(p)).collect(), &self.dead_pods),
        };
        let seen = seen.iter().map(|mark| mark.known).chain(dead.values().copied()).max().unwrap_or(0);
        Mark { epoch: self.epoch, known: seen.max(self.listed[feed as usize]) }
    }
    /// For a watch from this version.
    pub fn mark_version(&self, version: &str) -> Mark {
        Mark { epoch: self.epoch, known: version_number(version) }
    }

    /// May the answer to a request with this mark be taken in? One below what was known then begins another epoch.
    fn admit(&mut self, mark: Mark, version: &str) -> bool {
        if !self.is_current(mark) {
            return false;
        }
        if version_number(version) < mark.known && !mutant::is(Mutant::RestoreIsNotSeen) {
            self.epoch += 1;
            self.listed = [0; 2];
            self.dead_kinds.clear();
            self.dead_pods.clear();
            if self.own == Own::Gone {
                self.own = Own::InDoubt;
            }
        }
        true
    }

    /// Takes in one Endpoints object or ConfigMap, received at `at`.
    pub fn put_kind(&mut self, object: Kind, mark: Mark, at: BootInstant) {
        let Names { leader, config, failover, sync } = &self.names;
        if ![leader, config, failover, sync].contains(&&object.metadata.name)
            || !self.admit(mark, &object.metadata.resource_version)
        {
            return;
        }
        self.insert_kind(object);
        self.note_lease(at);
    }

    fn insert_kind(&mut self, object: Kind) {
        let name = object.metadata.name.clone();
        let number = version_number(&object.metadata.resource_version);
        let newest = match self.kinds.get(&name) {
            Some(seen) if seen.epoch == self.epoch => version_number(&seen.version.0),
            Some(_) => 0,
            None => self.listed[Feed::Kinds as usize],
        };
        if number <= newest.max(self.dead_kinds.get(&name).copied().unwrap_or(0)) {
            return;
        }
        self.dead_kinds.remove(&name);
        self.cluster.take();
        self.kinds.insert(name, KindEntry { epoch: self.epoch, ..KindEntry::new(object, &self.labels) });
    }

    /// The object was deleted in `version`, as a watch of this epoch shows.
    pub fn drop_kind(&mut self, name: &str, version: &str, at: BootInstant) {
        let number = version_number(version);
        if self.kinds.get(name).is_some_and(|k| k.epoch < self.epoch || version_number(&k.version.0) < number) {
            self.kinds.remove(name);
            self.cluster.take();
            self.dead_kinds.insert(name.to_owned(), number);
            self.note_lease(at);
        }
    }

    /// A fresh read answered "not found", and nothing newer than what was known at its sending came meanwhile.
    pub fn kind_is_gone(&mut self, name: &str, mark: Mark, at: BootInstant) {
        let unchanged = |k: &&KindEntry| k.epoch < self.epoch || version_number(&k.version.0) == mark.known;
        if !self.is_current(mark) || self.kinds.get(name).filter(unchanged).is_none() {
            return;
        }
        self.kinds.remove(name);
        self.cluster.take();
        if mark.known > 0 {
            self.dead_kinds.insert(name.to_owned(), mark.known);
        }
        self.note_lease(at);
    }

    /// A complete list as of `version`; `gap`: nothing was heard for so long before it that much may have come and gone.
    /// Returns the epoch it belongs to; `None`: it was not taken in.
    pub fn replace_kinds(
        &mut self,
        items: Vec<Kind>,
        version: &str,
        mark: Mark,
        at: BootInstant,
        gap: bool,
    ) -> Option<u32> {
        let before = self.epoch;
        if !self.admit(mark, version) {
            return None;
        }
        let gap = gap || self.epoch != before;
        let as_of = version_number(version);
        self.listed[Feed::Kinds as usize] = 0;
        let listed: Vec<String> = items.iter().map(|k| k.metadata.name.clone()).collect();
        let epoch = self.epoch;
        self.kinds
            .retain(|name, k| listed.contains(name) || (k.epoch == epoch && version_number(&k.version.0) > as_of));
        self.cluster.take();
        self.dead_kinds.retain(|_, died| *died > as_of);
        let Names { leader, config, failover, sync } = self.names.clone();
        for item in items {
            if [&leader, &config, &failover, &sync].contains(&&item.metadata.name) {
                self.insert_kind(item);
            }
        }
        self.listed[Feed::Kinds as usize] = as_of;
        if gap {
            self.note_gap(at);
        }
        self.note_lease(at);
        self.live(Feed::Kinds);
        Some(epoch)
    }

    fn is_me(&self, name: &str) -> bool {
        self.me.as_ref().is_some_and(|me| me.0 == name)
    }

    /// Takes in a pod.
    pub fn put_pod(&mut self, pod: Pod, mark: Mark) {
        if self.admit(mark, &pod.metadata.resource_version) {
            self.insert_pod(pod);
        }
    }

    fn insert_pod(&mut self, pod: Pod) {
        let name = pod.metadata.name.clone();
        let number = version_number(&pod.metadata.resource_version);
        let newest = match self.pods.get(&name) {
            Some(seen) if seen.epoch == self.epoch => version_number(&seen.version.0),
            Some(_) => 0,
            None => self.listed[Feed::Pods as usize],
        };
        if number <= newest.max(self.dead_pods.get(&name).copied().unwrap_or(0)) {
            return;
        }
        self.dead_pods.remove(&name);
        if self.is_me(&name) {
            self.recognise(&pod);
        }
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
        let version = Version(pod.metadata.resource_version);
        self.cluster.take();
        self.pods.insert(name, PodEntry { version, member, labels, warnings, epoch: self.epoch });
    }

    /// A pod of my name: is it mine?
    fn recognise(&mut self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if self.my_uid.is_empty() {
            self.my_uid = uid.to_owned();
        }
        if uid != self.my_uid {
            self.own = Own::Gone;
        } else {
            self.own = Own::There;
            self.own_pod = Some(pod.clone());
        }
    }

    /// A fresh read or a write of my own pod showed a pod, which lists may pass over for want of a label.
    pub fn meet_own(&mut self, pod: &Pod, mark: Mark) {
        let passed_over = !self.pods.contains_key(&pod.metadata.name);
        // Gone: this may be an answer from before.
        if self.is_current(mark) && passed_over && self.own != Own::Gone {
            self.recognise(pod);
        }
    }

    /// The API server says that there is no pod of my name, or one with another UID.
    pub fn lose_own(&mut self, mark: Mark) {
        if self.is_current(mark) && !self.my_uid.is_empty() {
            self.own = Own::Gone;
        }
    }

    fn miss_own(&mut self) {
        if self.own == Own::There && !self.my_uid.is_empty() {
            self.own = Own::InDoubt;
        }
    }

    /// A pod was deleted in `version`, as a watch of this epoch shows, or left the selector.
    pub fn drop_pod(&mut self, name: &str, version: &str) {
        let number = version_number(version);
        if self.pods.get(name).is_some_and(|p| p.epoch < self.epoch || version_number(&p.version.0) < number) {
            self.pods.remove(name);
            self.cluster.take();
            self.dead_pods.insert(name.to_owned(), number);
            if self.is_me(name) {
                self.miss_own();
            }
        }
    }

    /// A complete list of pods as of `version`. Returns the epoch it belongs to; `None`: it was not taken in.
    pub fn replace_pods(&mut self, items: Vec<Pod>, version: &str, mark: Mark) -> Option<u32> {
        if !self.admit(mark, version) {
            return None;
        }
        let as_of = version_number(version);
        self.listed[Feed::Pods as usize] = 0;
        let listed: Vec<String> = items.iter().map(|p| p.metadata.name.clone()).collect();
        let epoch = self.epoch;
        self.pods.retain(|name, p| listed.contains(name) || (p.epoch == epoch && version_number(&p.version.0) > as_of));
        self.cluster.take();
        self.dead_pods.retain(|_, died| *died > as_of);
        for item in items {
            self.insert_pod(item);
        }
        if self.me.as_ref().is_some_and(|me| !self.pods.contains_key(&me.0)) {
            self.miss_own();
        }
        self.listed[Feed::Pods as usize] = as_of;
        self.live(Feed::Pods);
        Some(epoch)
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
        let leader = self.kinds.get(&self.names.leader);
        let lease = leader.map(|k| schema::lease_from(&k.annotations));
        let version = leader.map(|k| k.version.clone());
        let named = lease.as_ref().is_some_and(|l| l.leader.is_some());
        let touched = !named && version != self.lease_version;
        self.lease_version = version;
        if lease != self.lease || touched {
            self.lease = lease;
            self.lease_received = at;
        }
    }

    /// A list does not tell what came and went before it: somebody may have taken the lease, and the object vanished again.
    /// Only the very object that was seen last, untouched, has gone on being silent.
    fn note_gap(&mut self, at: BootInstant) {
        let version = self.kinds.get(&self.names.leader).map(|k| k.version.clone());
        if version.is_none() || version != self.lease_version {
            self.lease_received = at;
        }
    }

    /// What the view does not show could not be heard of at `at`: while the object is not there, that costs the silence.
    pub fn deaf(&mut self, at: BootInstant) {
        if !self.kinds.contains_key(&self.names.leader) {
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

    /// The view of all this; the same value until something in it changes.
    pub fn view(&self) -> Arc<View> {
        let (cluster, warnings) = self.cluster.get_or_init(|| self.read_cluster());
        let leaving =
            self.own_is_gone() || self.own_pod.as_ref().is_some_and(|p| p.metadata.deletion_timestamp.is_some());
        let (link, lease_received) = (self.link(), self.lease_received);
        let (keeper_ended, named) = (self.keeper_ended(), self.named.get());
        let me = OwnPod { uid: self.my_uid.clone(), leaving, keeper_ended, named };
        let mut shown = self.shown.borrow_mut();
        if let Some(view) = shown.as_ref().filter(|view| {
            Arc::ptr_eq(&view.cluster, cluster)
                && (view.link, view.lease_received) == (link, lease_received)
                && view.me == me
        }) {
            return view.clone();
        }
        let view = View { cluster: cluster.clone(), lease_received, link, me, warnings: warnings.clone() };
        shown.insert(Arc::new(view)).clone()
    }

    fn read_cluster(&self) -> (Arc<Cluster>, Vec<String>) {
        let mut warnings: Vec<String> = Vec::new();
        let leader = self.kinds.get(&self.names.leader).map(|k| k.leader_told(&mut warnings));
        let config = self.kinds.get(&self.names.config).map(|k| k.config_told(&mut warnings)).unwrap_or_default();
        let failover = self
            .kinds
            .get(&self.names.failover)
            .map(|k| schema::failover_from(&k.version.0, &k.annotations, &mut warnings));
        let sync = self.kinds.get(&self.names.sync).map(|k| schema::sync_from(&k.version.0, &k.annotations));
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
        (Arc::new(cluster), warnings)
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
