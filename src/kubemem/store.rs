//! The objects and their history, under one lock and one counter.
//!
//! Every write takes the next resourceVersion and appends one `Change`; a watch is a position in that history,
//! so nothing can fall between a list and the watch that follows it. Compaction moves the floor of the history
//! up; whoever stands below it gets 410 Expired. A write that changes nothing takes no resourceVersion.
use super::kinds::Kind;
use super::patch::merge;
use super::select::Selector;
use super::sources::{Sources, stamp};
use super::status::Status;
use super::{lock, validate};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// resourceVersion before the first write: not zero, since "0" means "any" to list and watch.
const FIRST_VERSION: u64 = 100;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// One write: what stood before, what stands after (or the last state, when deleted).
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub version: u64,
    pub kind: &'static Kind,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    pub after: Arc<Value>,
    pub deleted: bool,
}

#[derive(Debug)]
struct Inner {
    version: u64,
    compacted: u64,
    objects: BTreeMap<&'static str, BTreeMap<Key, Arc<Value>>>,
    history: VecDeque<Change>,
    /// Objects whose grace period runs.
    dying: Vec<Dying>,
}

/// An object that is removed at `due`, since 1970, if it is still the one with this UID.
#[derive(Debug, Clone)]
struct Dying {
    due: Duration,
    kind: &'static Kind,
    key: Key,
    uid: String,
}

/// A copy of all objects, for [`Store::restore`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    version: u64,
    objects: BTreeMap<&'static str, BTreeMap<Key, Arc<Value>>>,
}

/// Which part of an object a write may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything: the in-process helpers.
    Whole,
    /// All but `status`, where the kind has a status subresource.
    Main,
    /// `status` and metadata.
    Status,
}

/// What DELETE was asked for besides deleting.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub uid: Option<String>,
    pub version: Option<String>,
    pub grace: Option<u64>,
}

/// A page of a list.
pub(crate) struct Page {
    pub version: u64,
    pub items: Vec<Arc<Value>>,
    /// Where the next page starts, when there is one.
    pub next: Option<Key>,
    /// Matching items after this page.
    pub remaining: usize,
}

/// What a list is asked for. An empty namespace means all of them.
#[derive(Default)]
pub(crate) struct Query<'a> {
    pub namespace: &'a str,
    pub selector: Selector,
    pub limit: usize,
    /// First key of the page and the version of the list it continues.
    pub from: Option<Key>,
    pub at: Option<u64>,
}

/// A handle on the objects; clones share them. The public methods are the in-process API: they go around
/// authentication, faults and the `status` subresource, and everything else is as over HTTP.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Mutex<Inner>>,
    latest: watch::Sender<u64>,
    sources: Sources,
    limit: usize,
    loopback: bool,
}

fn version_of(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or("")
}

impl Inner {
    fn get(&self, kind: &Kind, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(kind.plural).and_then(|all| all.get(key))
    }

    fn commit(&mut self, kind: &'static Kind, key: Key, mut object: Value, deleted: bool, limit: usize) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Arc::new(object);
        let all = self.objects.entry(kind.plural).or_default();
        let before = if deleted { all.remove(&key) } else { all.insert(key.clone(), Arc::clone(&after)) };
        self.history.push_back(Change { version: self.version, kind, key, before, after: Arc::clone(&after), deleted });
        while self.history.len() > limit {
            if let Some(gone) = self.history.pop_front() {
                self.compacted = gone.version;
            }
        }
        after
    }
}

impl Store {
    /// An empty store with the namespaces `default` and `kube-system`. It keeps the last `history` changes for watches
    /// and paged lists, and refuses loopback addresses in Endpoints, as a real server does, unless
    /// `loopback_addresses`.
    pub fn new(history: usize, loopback_addresses: bool, sources: Sources) -> Self {
        let inner = Inner {
            version: FIRST_VERSION,
            compacted: FIRST_VERSION,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            dying: Vec::new(),
        };
        let store = Self {
            inner: Arc::new(Mutex::new(inner)),
            latest: watch::Sender::new(FIRST_VERSION),
            sources,
            limit: history,
            loopback: loopback_addresses,
        };
        for name in ["default", "kube-system"] {
            let created =
                store.create("namespaces", "", json!({"metadata": {"name": name}, "status": {"phase": "Active"}}));
            debug_assert!(created.is_ok(), "an empty store takes its first namespaces");
        }
        store
    }

    fn known(resource: &str) -> Result<&'static Kind, Status> {
        Kind::by_plural(resource).ok_or_else(Status::no_such_path)
    }

    /// Creates an object of `resource` (its plural name, e.g. `pods`). 409 when it exists, 422 when invalid.
    pub fn create(&self, resource: &str, namespace: &str, object: Value) -> Result<Value, Status> {
        self.create_part(Self::known(resource)?, namespace, object, Part::Whole).map(|made| (*made).clone())
    }

    /// Reads one object; 404 when missing.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
        self.read(Self::known(resource)?, namespace, name).map(|found| (*found).clone())
    }

    /// Is there such an object? 404 when not.
    pub(crate) fn stands(&self, resource: &str, namespace: &str, name: &str) -> Result<(), Status> {
        self.read(Self::known(resource)?, namespace, name).map(drop)
    }

    /// Replaces an object, status included; conditional when it carries a resourceVersion (409).
    pub fn update(&self, resource: &str, namespace: &str, object: Value) -> Result<Value, Status> {
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        self.write(Self::known(resource)?, namespace, &name, Part::Whole, |_| Ok(object)).map(|made| (*made).clone())
    }

    /// Applies a JSON merge patch, status included; null deletes a key.
    pub fn merge(&self, resource: &str, namespace: &str, name: &str, patch: &Value) -> Result<Value, Status> {
        let change = |old: &Value| {
            let mut object = old.clone();
            merge(&mut object, patch);
            Ok(object)
        };
        self.write(Self::known(resource)?, namespace, name, Part::Whole, change).map(|made| (*made).clone())
    }

    /// Deletes at once, without grace; 404 when missing.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
        let options = DeleteOptions { grace: Some(0), ..DeleteOptions::default() };
        self.remove(Self::known(resource)?, namespace, name, &options).map(|(gone, _)| (*gone).clone())
    }

    /// All objects of `resource`, in order of namespace and name; an empty namespace means all.
    pub fn list(&self, resource: &str, namespace: &str) -> Result<Vec<Value>, Status> {
        let page = self.page(Self::known(resource)?, &Query { namespace, ..Query::default() })?;
        Ok(page.items.iter().map(|item| (**item).clone()).collect())
    }

    /// The resourceVersion of the latest write.
    pub fn version(&self) -> u64 {
        lock(&self.inner).version
    }

    /// A receiver that changes with every write: await it instead of polling.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// Forgets all history: every older resourceVersion answers 410 Expired from here on.
    pub fn compact(&self) {
        let mut inner = lock(&self.inner);
        inner.history.clear();
        inner.compacted = inner.version;
    }

    /// All objects as they stand, and the version they stand at.
    pub fn snapshot(&self) -> Snapshot {
        let inner = lock(&self.inner);
        Snapshot { version: inner.version, objects: inner.objects.clone() }
    }

    /// Goes back to a snapshot, as somebody who restores etcd from a backup does: resourceVersions count on from the
    /// snapshot's, so that those of the lost writes are given out a second time; the history is gone. A watch from a
    /// lost version hears nothing until the counter has passed it, as with a real server. Open watches stay open:
    /// cut them too, since a restore goes with a restart.
    pub fn restore(&self, snapshot: &Snapshot) {
        let mut inner = lock(&self.inner);
        inner.version = snapshot.version;
        inner.compacted = snapshot.version;
        inner.objects = snapshot.objects.clone();
        inner.history.clear();
        inner.dying.clear();
        self.announce(&inner);
    }

    /// Stands in for the kubelet: removes every object whose grace period is over at `now` (since 1970). Returns when
    /// the next one ends.
    pub fn expire(&self, now: Duration) -> Option<Duration> {
        let due: Vec<Dying> = {
            let mut inner = lock(&self.inner);
            let (due, later) = inner.dying.drain(..).partition(|dying| dying.due <= now);
            inner.dying = later;
            due
        };
        for Dying { kind, key, uid, .. } in due {
            let options = DeleteOptions { uid: Some(uid), grace: Some(0), version: None };
            // Not found or another uid: somebody removed the object earlier, as they may.
            drop(self.remove(kind, &key.0, &key.1, &options));
        }
        lock(&self.inner).dying.iter().map(|dying| dying.due).min()
    }

    /// The time of this store's wall clock, since 1970.
    pub fn now(&self) -> Duration {
        self.sources.now()
    }

    fn announce(&self, inner: &Inner) {
        self.latest.send_replace(inner.version);
    }

    pub(crate) fn read(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
        let inner = lock(&self.inner);
        let found = inner.get(kind, &(namespace.to_owned(), name.to_owned()));
        found.cloned().ok_or_else(|| Status::not_found(kind, name))
    }

    pub(crate) fn create_part(
        &self,
        kind: &'static Kind,
        namespace: &str,
        mut object: Value,
        part: Part,
    ) -> Result<Arc<Value>, Status> {
        validate::decodes(kind, &object)?;
        if !version_of(&object).is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        set_type(kind, &mut object);
        validate::normalize(kind, &mut object);
        place(kind, namespace, &mut object)?;
        let metadata = &mut object["metadata"];
        if metadata["name"].as_str().unwrap_or("").is_empty()
            && let Some(prefix) = metadata["generateName"].as_str()
        {
            let suffix = &self.sources.uid()[..5];
            metadata["name"] = json!(format!("{prefix}{suffix}"));
        }
        metadata["uid"] = json!(self.sources.uid());
        metadata["creationTimestamp"] = stamp(self.sources.now());
        if let Some(map) = metadata.as_object_mut() {
            map.shift_remove("deletionTimestamp");
            map.shift_remove("deletionGracePeriodSeconds");
        }
        if part == Part::Main && kind.status {
            object["status"] = validate::initial_status(kind);
        }
        validate::normalize(kind, &mut object);
        validate::validate(kind, &object, self.loopback)?;
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let key = (namespace.to_owned(), name);
        let mut inner = lock(&self.inner);
        if inner.get(kind, &key).is_some() {
            return Err(Status::already_exists(kind, &key.1));
        }
        let made = inner.commit(kind, key, object, false, self.limit);
        self.announce(&inner);
        Ok(made)
    }

    /// Reads, changes and writes one object under the lock. Conditional when the changed object carries another
    /// resourceVersion or uid than the one that stands.
    pub(crate) fn write(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        part: Part,
        change: impl FnOnce(&Value) -> Result<Value, Status>,
    ) -> Result<Arc<Value>, Status> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut inner = lock(&self.inner);
        let old = inner.get(kind, &key).cloned().ok_or_else(|| Status::not_found(kind, name))?;
        let mut new = change(&old)?;
        validate::decodes(kind, &new)?;
        same_name(name, &new)?;
        set_type(kind, &mut new);
        place(kind, namespace, &mut new)?;
        check_expected(kind, name, &old, &new)?;
        if part == Part::Status {
            let status = new["status"].take();
            let metadata = new["metadata"].take();
            new = (*old).clone();
            new["status"] = status;
            new["metadata"] = metadata;
        } else if part == Part::Main && kind.status {
            keep(&mut new, "status", &old["status"]);
        }
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"]
        {
            keep(&mut new["metadata"], field, &old["metadata"][field]);
        }
        validate::normalize(kind, &mut new);
        validate::validate(kind, &new, self.loopback)?;
        if kind.plural == "pods" && part == Part::Main {
            validate::validate_pod_spec(kind, name, &old, &new)?;
        }
        if new == *old {
            return Ok(old);
        }
        let metadata = &new["metadata"];
        let finished = metadata.get("deletionTimestamp").is_some()
            && metadata.get("finalizers").is_none()
            && metadata["deletionGracePeriodSeconds"].as_u64().unwrap_or(0) == 0;
        let made = inner.commit(kind, key, new, finished, self.limit);
        self.announce(&inner);
        Ok(made)
    }

    /// Deletes or, when finalizers or a grace period stand in the way, marks as being deleted. The flag tells
    /// whether the object is gone.
    pub(crate) fn remove(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(Arc<Value>, bool), Status> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut inner = lock(&self.inner);
        let old = inner.get(kind, &key).cloned().ok_or_else(|| Status::not_found(kind, name))?;
        let metadata = &old["metadata"];
        let preconditions = [
            ("UID", &options.uid, "uid", "deleted and then recreated"),
            ("ResourceVersion", &options.version, "resourceVersion", "modified"),
        ];
        for (what, expected, field, guess) in preconditions {
            let have = metadata[field].as_str().unwrap_or("");
            if let Some(expected) = expected.as_deref().filter(|expected| *expected != have) {
                let why = format!(
                    "the {what} in the precondition ({expected}) does not match the {what} in record ({have}). The \
                     object might have been {guess}"
                );
                return Err(Status::precondition(kind, name, &why));
            }
        }
        let scheduled = kind.plural == "pods" && old["spec"]["nodeName"].is_string();
        let grace = if scheduled { options.grace.unwrap_or(0) } else { 0 };
        if grace == 0 && metadata.get("finalizers").is_none() {
            let gone = inner.commit(kind, key, (*old).clone(), true, self.limit);
            self.announce(&inner);
            return Ok((gone, true));
        }
        let before = metadata["deletionGracePeriodSeconds"].as_u64();
        if metadata.get("deletionTimestamp").is_some() && before.is_some_and(|before| grace >= before) {
            return Ok((old, false));
        }
        let mut marked = (*old).clone();
        let due = self.sources.now() + Duration::from_secs(grace);
        marked["metadata"]["deletionTimestamp"] = stamp(due);
        marked["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if grace > 0 {
            let uid = metadata["uid"].as_str().unwrap_or("").to_owned();
            inner.dying.retain(|dying| dying.uid != uid);
            inner.dying.push(Dying { due, kind, key: key.clone(), uid });
        }
        let marked = inner.commit(kind, key, marked, false, self.limit);
        self.announce(&inner);
        Ok((marked, false))
    }

    /// One page of a list, as the objects stood at `query.at`. 410 when that is compacted.
    pub(crate) fn page(&self, kind: &'static Kind, query: &Query<'_>) -> Result<Page, Status> {
        let inner = lock(&self.inner);
        let version = query.at.unwrap_or(inner.version);
        if version > inner.version {
            return Err(Status::too_large_version(version, inner.version));
        }
        if version < inner.compacted {
            return Err(Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You must start a new \
                 list without the continue parameter.",
            ));
        }
        let empty = BTreeMap::new();
        let current = inner.objects.get(kind.plural).unwrap_or(&empty);
        let undone = (version < inner.version).then(|| as_it_stood(current, &inner.history, kind, version));
        let all = undone.as_ref().unwrap_or(current);
        let mut page = Page { version, items: Vec::new(), next: None, remaining: 0 };
        for (key, object) in all {
            let outside = !query.namespace.is_empty() && key.0 != query.namespace;
            let passed = query.from.as_ref().is_some_and(|from| key < from);
            if outside || passed || !query.selector.matches(object) {
                continue;
            }
            if query.limit > 0 && page.items.len() >= query.limit {
                page.next.get_or_insert_with(|| key.clone());
                page.remaining += 1;
            } else {
                page.items.push(Arc::clone(object));
            }
        }
        Ok(page)
    }

    /// Shows every change of one kind after `version` and up to `until`, in order. Returns the position reached; 410 when
    /// `version` is compacted.
    pub(crate) fn changes_after(
        &self,
        kind: &'static Kind,
        version: u64,
        until: u64,
        mut see: impl FnMut(&Change),
    ) -> Result<u64, Status> {
        let inner = lock(&self.inner);
        if version < inner.compacted {
            let message = format!("too old resource version: {version} ({})", inner.compacted);
            return Err(Status::expired(message));
        }
        if version < inner.version {
            let start = inner.history.partition_point(|change| change.version <= version);
            let shown = inner.history.range(start..).take_while(|change| change.version <= until);
            shown.filter(|change| change.kind == kind).for_each(&mut see);
        }
        Ok(inner.version.min(until).max(version))
    }
}

/// Undoes the changes after `version`, newest first.
fn as_it_stood(
    current: &BTreeMap<Key, Arc<Value>>,
    history: &VecDeque<Change>,
    kind: &Kind,
    version: u64,
) -> BTreeMap<Key, Arc<Value>> {
    let mut all = current.clone();
    for change in history.iter().rev().take_while(|change| change.version > version) {
        if change.kind == kind {
            match &change.before {
                Some(before) => all.insert(change.key.clone(), Arc::clone(before)),
                None => all.remove(&change.key),
            };
        }
    }
    all
}

/// Puts back what stood; null: nothing did.
fn keep(object: &mut Value, key: &str, stood: &Value) {
    if object[key] != *stood {
        object[key] = stood.clone();
    }
}

fn say(object: &mut Value, key: &str, text: &str) {
    if object[key] != *text {
        object[key] = json!(text);
    }
}

fn set_type(kind: &Kind, object: &mut Value) {
    say(object, "kind", kind.kind);
    say(object, "apiVersion", &kind.api_version());
}

/// Puts an object into the namespace of its URL, or refuses when it names another.
fn place(kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Status> {
    if !kind.namespaced {
        return Ok(());
    }
    let said = object["metadata"]["namespace"].as_str().unwrap_or("");
    if !said.is_empty() && said != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    say(&mut object["metadata"], "namespace", namespace);
    Ok(())
}

fn same_name(name: &str, object: &Value) -> Result<(), Status> {
    let said = object["metadata"]["name"].as_str().unwrap_or("");
    if said == name {
        return Ok(());
    }
    Err(Status::bad_request(format!("the name of the object ({said}) does not match the name on the URL ({name})")))
}

fn check_expected(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<(), Status> {
    let (have, expected) = (&old["metadata"]["uid"], &new["metadata"]["uid"]);
    if let (Some(have), Some(expected)) = (have.as_str(), expected.as_str().filter(|uid| !uid.is_empty()))
        && have != expected
    {
        let namespace = old["metadata"]["namespace"].as_str().unwrap_or("");
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: {}/{namespace}/{name}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: UID in precondition: {expected}, UID in object meta: {have}",
            kind.registry()
        );
        return Err(Status::conflict(kind, name, &why));
    }
    let expected = version_of(new);
    if expected.is_empty() || expected == version_of(old) {
        return Ok(());
    }
    if expected.parse::<u64>().is_err() {
        let why = format!("invalid resource version: {expected:?}");
        return Err(Status::bad_request(why));
    }
    Err(Status::modified(kind, name))
}
