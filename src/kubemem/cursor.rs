//! A watch without its stream: a position in the history, turned into events when somebody asks.
//!
//! It reads the history from its position, shows what its selector sees and moves on. It may be asked late, or told to
//! look no further than some version: that is a watch cache that lags. Nothing is skipped either way; what was
//! compacted away meanwhile ends it with an ERROR event of 410.
use super::call::{Call, Verb};
use super::kinds::Kind;
use super::select::Selector;
use super::status::{FieldError, Status};
use super::store::{Change, Query, Store};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

/// What a watch shows: its type, and the object, which the store's history holds too.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    pub kind: &'static str,
    /// The object, or the `Status` of an error.
    pub object: Arc<Value>,
}

impl Event {
    fn new(kind: &'static str, object: &Arc<Value>) -> Event {
        Event { kind, object: Arc::clone(object) }
    }

    /// As it goes over the wire: `{"type": …, "object": …}`.
    pub fn to_value(&self) -> Value {
        json!({"type": self.kind, "object": *self.object})
    }
}

/// An open watch.
#[derive(Debug, Clone)]
pub struct Cursor {
    kind: &'static Kind,
    namespace: String,
    selector: Selector,
    /// Everything up to here was read.
    position: u64,
    /// Where it began. A bookmark that says no more than that is not shown.
    start: u64,
    /// Events read and not yet shown.
    queue: VecDeque<Event>,
    bookmarks: bool,
    over: bool,
}

impl Cursor {
    /// Opens a watch: after `resourceVersion`, or with an ADDED event for everything that stands.
    ///
    /// # Errors
    /// When the call is no watch, or one a server would refuse.
    pub fn open(store: &Store, call: &Call) -> Result<Cursor, Status> {
        if call.verb != Verb::Watch {
            return Err(Status::bad_request("the call is no watch"));
        }
        if call.has("sendInitialEvents") {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            let error = FieldError::forbidden("sendInitialEvents", why);
            return Err(Status::invalid(&LIST_OPTIONS, "", &[error]));
        }
        let mut cursor = Cursor {
            kind: call.target.kind,
            namespace: call.target.namespace.clone(),
            selector: call.selector()?,
            position: 0,
            start: 0,
            queue: VecDeque::new(),
            bookmarks: call.is_true("allowWatchBookmarks"),
            over: false,
        };
        cursor.start = match call.version()? {
            Some(version) => version,
            None => {
                let query =
                    Query { namespace: &cursor.namespace, selector: cursor.selector.clone(), ..Query::default() };
                let page = store.page(cursor.kind, &query)?;
                cursor.queue.extend(page.items.iter().map(|item| Event::new("ADDED", item)));
                page.version
            }
        };
        cursor.position = cursor.start;
        Ok(cursor)
    }

    /// The next event. `None`: nothing has happened, or the watch is [over](Cursor::is_over).
    pub fn next(&mut self, store: &Store) -> Option<Event> {
        self.next_until(store, u64::MAX)
    }

    /// The same in a server whose watch cache has come no further than `version`.
    pub fn next_until(&mut self, store: &Store, version: u64) -> Option<Event> {
        if self.queue.is_empty() && !self.over {
            self.read_history(store, version);
        }
        self.queue.pop_front()
    }

    /// The watch ended with an error that was shown, or stands in the queue; another one has to be opened.
    pub fn is_over(&self) -> bool {
        self.over && self.queue.is_empty()
    }

    /// Everything up to this version was read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// A BOOKMARK event, where the call allowed bookmarks and there is progress to tell. When one is due is the
    /// caller's business.
    pub fn bookmark(&self) -> Option<Event> {
        let tells = self.bookmarks && self.position > self.start && self.queue.is_empty() && !self.over;
        tells.then(|| {
            let metadata = json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
            let kind = self.kind;
            let mark = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
            Event { kind: "BOOKMARK", object: Arc::new(mark) }
        })
    }

    pub(crate) fn wants_bookmarks(&self) -> bool {
        self.bookmarks
    }

    fn read_history(&mut self, store: &Store, until: u64) {
        let mut seen = Vec::new();
        match store.changes_after(self.kind, self.position, until, |change| seen.extend(self.see(change))) {
            Err(expired) => {
                self.queue.push_back(Event { kind: "ERROR", object: Arc::new(expired.to_value()) });
                self.over = true;
            }
            Ok(position) => {
                self.position = position;
                self.queue.extend(seen);
            }
        }
    }

    /// What this watch sees of a change: an object that leaves the selector is deleted, one that enters is added.
    fn see(&self, change: &Change) -> Option<Event> {
        if !self.namespace.is_empty() && self.namespace != change.key.0 {
            return None;
        }
        let before = change.before.as_ref().filter(|object| self.selector.matches(object));
        let after = Some(&change.after).filter(|object| !change.deleted && self.selector.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(Event::new("ADDED", after)),
            (Some(_), Some(after)) => Some(Event::new("MODIFIED", after)),
            (Some(before), None) => {
                let mut last = Value::clone(before);
                last["metadata"]["resourceVersion"] = json!(change.version.to_string());
                Some(Event { kind: "DELETED", object: Arc::new(last) })
            }
        }
    }
}

/// What a refused parameter of a watch is a field of.
static LIST_OPTIONS: Kind = Kind {
    group: "meta.k8s.io",
    plural: "",
    singular: "",
    kind: "ListOptions",
    short: "",
    namespaced: false,
    status: false,
    put_creates: false,
    delete_returns_object: false,
};
