//! The store's client without its connection: everything between what a member wants and HTTP. Pure: no waiting, no clock.
//!
//! [`Desk::encode`] spells a request, [`Desk::decode`] takes its answer in, [`Desk::follow`] says how a collection is
//! followed, [`Desk::watch_event`] takes in what a watch shows, and [`Desk::view`] is what the member sees of all this. The
//! client around it sends and waits; a simulation drives the same desk over a store in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::core::{Status, WatchEvent};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::cache::{Cache, Feed, KindEntry};
use super::life::OwnLife;
use super::objects::{Kind, Meta, Names, Pod, object_labels, version_number};
use super::options::StoreOptions;
use super::request::{Expects, Object, Request, Sent};
use super::schema;
use super::{Failure, Life, MyPod, SeenPod, View};
use crate::model::{BootInstant, MemberName, Periods, Version};

/// A pod watch over which nothing came for this long is taken for dead. API servers send a bookmark about every minute.
const PODS_SILENT: Duration = Duration::from_secs(150);

/// A list that comes later than this after a watch was silent in vain comes after a gap.
const GAP: Duration = Duration::from_secs(2);

/// What is known of one cluster, and how its store is spoken to.
pub struct Desk {
    pub(super) o: StoreOptions,
    pub(super) names: Names,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) cache: Cache,
    life: OwnLife,
    periods: Periods,
    /// From where each collection is watched, and of which epoch of the store; `None`: it has to be listed.
    positions: [Option<(u32, String)>; 2],
    /// The last list of the kinds, or event of a watch of them.
    heard: BootInstant,
    /// A request came back without an answer, and none was answered since.
    unanswered: bool,
    /// The same of a request about the kinds: it cost the silence once, and does once more when there is an answer.
    deaf: bool,
    /// How often requests were answered again after one was not.
    troubles: u32,
}

/// How a watch goes on after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Followed {
    /// Another event may come.
    On,
    /// Nothing more may be read from it; [`Desk::follow`] says what comes next.
    Over,
    /// The same, and something is wrong: one line.
    Failed(String),
}

/// Why a watch ended without an event that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The server closed it.
    Closed,
    /// Nothing came for [`Desk::silence`].
    Silent,
    /// It broke, or could not be read; in words.
    Broken(String),
    /// An event is not understood; in words.
    NotUnderstood(String),
}

impl Desk {
    /// With nothing known, at `now`.
    pub fn new(o: StoreOptions, now: BootInstant) -> Desk {
        Desk {
            names: Names::new(&o),
            labels: object_labels(&o),
            cache: Cache::new(&o, now),
            life: OwnLife::default(),
            periods: Periods { ttl: o.ttl, loop_wait: o.loop_wait, retry_timeout: o.retry_timeout },
            positions: [None, None],
            heard: BootInstant::default(),
            unanswered: false,
            deaf: false,
            troubles: 0,
            o,
        }
    }

    /// The name of an object.
    pub fn name(&self, object: Object) -> &str {
        match object {
            Object::Leader => &self.names.leader,
            Object::Config => &self.names.config,
            Object::Failover => &self.names.failover,
            Object::Sync => &self.names.sync,
        }
    }

    /// The version of an object as last seen; `None`: there is none.
    pub fn version_of(&self, object: Object) -> Option<Version> {
        self.cache.kind(self.name(object)).map(|seen| seen.version.clone())
    }

    /// An object as last seen.
    pub fn seen(&self, object: Object) -> Option<KindEntry> {
        self.cache.kind(self.name(object)).cloned()
    }

    /// The UID of the pod this process runs in; empty while no pod of my name was seen.
    pub fn my_uid(&self) -> &str {
        self.cache.my_uid()
    }

    /// My name, or why there is none.
    pub fn me(&self) -> Result<&MemberName, Failure> {
        self.o.member.as_ref().ok_or_else(|| Failure::Refused("this program is no member of the cluster".into()))
    }

    /// The cluster as last seen.
    pub fn view(&self) -> Arc<View> {
        self.cache.named.set(self.cache.own_pod().is_some_and(|pod| !self.life.shown(pod).is_empty()));
        self.cache.view()
    }

    /// Which life of the pod's containers this is. Container IDs are published only while Kubernetes shows a container that
    /// can be the one of this life.
    pub fn set_life(&mut self, life: Life) {
        self.life.begin(life);
        self.cache.set_kept(self.life.kept());
    }

    /// The container IDs of my pod; none while Kubernetes may still show those of an earlier life.
    pub fn containers(&mut self) -> BTreeMap<String, String> {
        let named = self.cache.own_pod().map(|pod| self.life.containers(pod)).unwrap_or_default();
        self.cache.set_kept(self.life.kept());
        named
    }

    /// The same, if my pod is the one of this UID.
    pub(super) fn containers_of(&mut self, uid: &str) -> BTreeMap<String, String> {
        if !uid.is_empty() && self.cache.my_uid() == uid { self.containers() } else { BTreeMap::new() }
    }

    /// My own pod, once it was seen; a failure says that it is gone.
    pub fn my_pod(&mut self) -> Option<Result<MyPod, Failure>> {
        if self.cache.own_is_gone() {
            return Some(Err(Failure::Refused(self.replaced())));
        }
        let containers = self.containers();
        let pod = self.cache.own_pod()?;
        Some(Ok(MyPod {
            uid: self.cache.my_uid().to_owned(),
            pod_ip: self.o.pod_ip.clone().or_else(|| pod.status.pod_ip.clone()),
            containers,
            site: pod.metadata.labels.as_ref().and_then(|labels| labels.get(schema::ZONE).cloned()),
        }))
    }

    /// The first of the labels that lists select by which this pod does not carry.
    pub fn missing_label(&self, pod: &SeenPod) -> Option<(String, String)> {
        let carried = pod.0.metadata.labels.as_ref();
        let missing = self.labels.iter().find(|(k, v)| carried.and_then(|c| c.get(*k)) != Some(v));
        missing.map(|(k, v)| (k.clone(), v.clone()))
    }

    /// The periods in force.
    pub fn periods(&self) -> Periods {
        self.periods
    }

    /// After a change of the dynamic configuration.
    pub fn set_periods(&mut self, periods: Periods) {
        self.periods = periods;
    }

    /// A read of my own pod that has to be made: a watch or a list shows it no more, which proves nothing (it may have lost
    /// a label).
    pub fn doubt(&self) -> Option<Request> {
        self.cache.own_in_doubt().then(|| self.o.member.clone().map(Request::ReadPod)).flatten()
    }

    /// How a collection is followed from here: a list, or a watch from where the last one ended.
    pub fn follow(&self, feed: Feed) -> Request {
        if self.position(feed).is_some() { Request::Watch(feed) } else { Request::List(feed) }
    }

    /// After how long a watch over which nothing came is taken for dead: a cut connection is silent, and so is a watch from
    /// a version that a restored store has not reached again. It is listed then.
    pub fn silence(&self, feed: Feed) -> Duration {
        match feed {
            // A living leader renews every loop_wait, and every renewal is an event; a ttl of silence is one too many.
            Feed::Kinds => (self.periods.loop_wait + self.periods.retry_timeout).min(self.periods.ttl),
            Feed::Pods => PODS_SILENT,
        }
    }

    /// Was nothing heard for longer than a watch is listened to in vain? Then more than one watch was missed: the process
    /// stood still, or nothing reached it.
    pub(super) fn gap_before(&self, at: BootInstant) -> bool {
        at.since(self.heard) > self.silence(Feed::Kinds) + GAP
    }
    /// The kinds were heard of.
    pub(super) fn hear(&mut self, at: BootInstant) {
        self.heard = at;
    }

    /// Takes in an event of an open watch: its type and its object.
    pub fn watch_event(&mut self, sent: &Sent, kind: &str, object: &Value, at: BootInstant) -> Followed {
        let Expects::Watch(feed) = sent.expects else { return Followed::Over };
        let taken = match feed {
            Feed::Kinds => read::<Kind>(kind, object).map(|event| self.take(sent, event, at)),
            Feed::Pods => read::<Pod>(kind, object).map(|event| self.take(sent, event, at)),
        };
        taken.unwrap_or_else(|why| self.watch_ended(sent, WatchEnd::NotUnderstood(why), at))
    }

    /// The same, already read.
    pub(super) fn take<T: Watched>(&mut self, sent: &Sent, event: WatchEvent<T>, at: BootInstant) -> Followed {
        let (version, change) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (object.meta().resource_version.clone(), Change::Put(object))
            }
            WatchEvent::Deleted(object) => (object.meta().resource_version.clone(), Change::Drop(object)),
            WatchEvent::Bookmark(mark) => (mark.metadata.resource_version, Change::None),
            WatchEvent::Error(status) => return self.watch_error(sent, &status, at),
        };
        if !self.is_current(sent) {
            return Followed::Over;
        }
        if version_number(&version) < sent.mark.known {
            // Events come after the version the watch is from. A watch proves nothing; a list will.
            self.list_again(T::FEED);
            return Followed::Over;
        }
        self.go_on_from(T::FEED, version, Some(self.cache.epoch()));
        if T::FEED == Feed::Kinds {
            self.hear(at);
        }
        match change {
            Change::Put(object) => object.put(&mut self.cache, sent, at),
            Change::Drop(object) => object.drop(&mut self.cache, at),
            Change::None => {}
        }
        Followed::On
    }

    pub(super) fn watch_error(&mut self, sent: &Sent, status: &Status, at: BootInstant) -> Followed {
        match self.refused(sent, status.code, status, at) {
            Ok(_) | Err(Failure::Gone) => Followed::Over,
            Err(_) => Followed::Failed(format!("watch: {} ({})", status.message, status.code)),
        }
    }

    /// A watch is over.
    pub fn watch_ended(&mut self, sent: &Sent, end: WatchEnd, at: BootInstant) -> Followed {
        let Expects::Watch(feed) = sent.expects else { return Followed::Over };
        match end {
            WatchEnd::Closed => Followed::Over,
            WatchEnd::Silent => {
                self.list_again(feed);
                if feed == Feed::Kinds {
                    // What cut this one in silence has cut the other as well, and nothing shows that one's silence for
                    // minutes: a leader would be waited for that has long said what it is.
                    self.troubles = self.troubles.wrapping_add(1);
                }
                Followed::Over
            }
            WatchEnd::Broken(why) => {
                self.no_answer(feed == Feed::Kinds, at);
                self.cache.broken(feed, at);
                Followed::Failed(format!("watch: {why}"))
            }
            WatchEnd::NotUnderstood(why) => {
                // From the same version the same event would come again for ever.
                self.list_again(feed);
                self.cache.broken(feed, at);
                Followed::Failed(format!("watch: an event is not understood: {why}"))
            }
        }
    }

    /// Is this watch still worth listening to? Not when the store was found restored since it was opened.
    pub fn is_current(&self, sent: &Sent) -> bool {
        self.cache.is_current(sent.mark)
    }

    /// Changes whenever watches opened before are over: when the store was found to have gone back to an older state, when
    /// a watch of the kinds was silent, and when requests are answered again after one was not. What cut the one off may have cut a watch as well, and a cut watch
    /// is silent; it goes on from where it was.
    pub fn trust(&self) -> u32 {
        self.cache.epoch().wrapping_add(self.troubles)
    }
    /// The same, once the next answer is there.
    pub(super) fn next_trust(&self) -> u32 {
        self.trust().wrapping_add(u32::from(self.unanswered))
    }
    /// `kinds`: the leader object may have been heard of by it.
    pub(super) fn no_answer(&mut self, kinds: bool, at: BootInstant) {
        if kinds && !std::mem::replace(&mut self.deaf, true) {
            self.cache.deaf(at);
        }
        self.unanswered = true;
    }
    pub(super) fn an_answer(&mut self, at: BootInstant) {
        if std::mem::take(&mut self.unanswered) {
            self.troubles = self.troubles.wrapping_add(1);
        }
        if std::mem::take(&mut self.deaf) {
            self.cache.deaf(at);
        }
    }

    /// From where a collection is watched. Versions of before a restore mean nothing after it.
    pub(super) fn position(&self, feed: Feed) -> Option<&str> {
        let position = self.positions[feed as usize].as_ref();
        position.filter(|(epoch, _)| *epoch == self.cache.epoch()).map(|(_, version)| version.as_str())
    }

    /// `epoch`: in which the version was given out; `None`: nobody knows.
    pub(super) fn go_on_from(&mut self, feed: Feed, version: String, epoch: Option<u32>) {
        self.positions[feed as usize] = epoch.map(|epoch| (epoch, version));
    }

    pub(super) fn list_again(&mut self, feed: Feed) {
        self.positions[feed as usize] = None;
    }
}

enum Change<T> {
    Put(T),
    Drop(T),
    None,
}

fn read<T: DeserializeOwned>(kind: &str, object: &Value) -> Result<WatchEvent<T>, String> {
    let read = match kind {
        "ADDED" => T::deserialize(object).map(WatchEvent::Added),
        "MODIFIED" => T::deserialize(object).map(WatchEvent::Modified),
        "DELETED" => T::deserialize(object).map(WatchEvent::Deleted),
        other => WatchEvent::deserialize(json!({"type": other, "object": object})),
    };
    read.map_err(|e| e.to_string())
}

/// A watched type and how the cache takes it in.
pub(super) trait Watched: DeserializeOwned + Clone + Send + 'static {
    const FEED: Feed;
    fn meta(&self) -> &Meta;
    fn put(self, cache: &mut Cache, sent: &Sent, at: BootInstant);
    fn drop(self, cache: &mut Cache, at: BootInstant);
}

impl Watched for Kind {
    const FEED: Feed = Feed::Kinds;
    fn meta(&self) -> &Meta {
        &self.metadata
    }
    fn put(self, cache: &mut Cache, sent: &Sent, at: BootInstant) {
        cache.put_kind(self, sent.mark, at);
    }
    fn drop(self, cache: &mut Cache, at: BootInstant) {
        cache.drop_kind(&self.metadata.name, &self.metadata.resource_version, at);
    }
}

impl Watched for Pod {
    const FEED: Feed = Feed::Pods;
    fn meta(&self) -> &Meta {
        &self.metadata
    }
    fn put(self, cache: &mut Cache, sent: &Sent, _at: BootInstant) {
        cache.put_pod(self, sent.mark);
    }
    fn drop(self, cache: &mut Cache, _at: BootInstant) {
        cache.drop_pod(&self.metadata.name, &self.metadata.resource_version);
    }
}
