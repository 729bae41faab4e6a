//! A watch: a position in the history, turned into a stream of events.
//!
//! The stream reads the history from its position, sends what its selector sees, moves the position and sleeps
//! until the next write. It ends at its timeout, with an ERROR event when its position is compacted away, or broken off when a
//! fault cuts it.
use super::faults::{Client, Switches};
use super::kinds::Kind;
use super::select::Selector;
use super::store::{Change, Store};
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// An open watch.
pub(crate) struct Watch {
    pub kind: &'static Kind,
    pub namespace: String,
    pub selector: Selector,
    /// Everything up to here was sent.
    pub position: u64,
    /// Where it began. A bookmark that says no more than that is not sent.
    pub start: u64,
    /// Events to send before looking at the history.
    pub queue: VecDeque<Value>,
    pub bookmarks: Option<Duration>,
    pub next_bookmark: Instant,
    pub deadline: Instant,
    pub finished: bool,
    pub store: Store,
    pub latest: watch::Receiver<u64>,
    pub switches: watch::Receiver<Switches>,
    pub client: Client,
    pub cuts: u64,
}

/// One event as it goes over the wire: a JSON object and a newline.
fn line(event: &Value) -> Frame<Bytes> {
    Frame::data(Bytes::from(format!("{event}\n")))
}

/// An event of this type.
pub(crate) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// The next frame of the stream and the watch to ask again; `None` at the end.
pub(crate) async fn next(mut watch: Watch) -> Option<(Result<Frame<Bytes>, Error>, Watch)> {
    loop {
        let (hangs, cuts) = {
            let switches = watch.switches.borrow_and_update();
            (switches.hangs(&watch.client), switches.cuts(&watch.client))
        };
        if cuts != watch.cuts {
            watch.cuts = cuts;
            return Some((Err(Error::new(ErrorKind::ConnectionReset, "the watch was cut")), watch));
        }
        if hangs {
            watch.switches.changed().await.ok()?;
            continue;
        }
        if let Some(event) = watch.queue.pop_front() {
            return Some((Ok(line(&event)), watch));
        }
        if watch.finished {
            return None;
        }
        watch.latest.borrow_and_update();
        watch.read_history();
        if !watch.queue.is_empty() {
            continue;
        }
        watch.sleep().await?;
    }
}

impl Watch {
    fn read_history(&mut self) {
        match self.store.changes_after(self.kind, self.position) {
            Err(expired) => {
                self.queue.push_back(event("ERROR", &expired.to_value()));
                self.finished = true;
            }
            Ok((changes, position)) => {
                self.position = position;
                let seen: Vec<Value> = changes.iter().filter_map(|change| self.see(change)).collect();
                self.queue.extend(seen);
            }
        }
    }

    /// What this watch sees of a change: an object that leaves the selector is deleted, one that enters is added.
    fn see(&self, change: &Change) -> Option<Value> {
        if !self.namespace.is_empty() && self.namespace != change.key.0 {
            return None;
        }
        let before = change.before.as_deref().filter(|object| self.selector.matches(object));
        let after = Some(&*change.after).filter(|object| !change.deleted && self.selector.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(event("ADDED", after)),
            (Some(_), Some(after)) => Some(event("MODIFIED", after)),
            (Some(before), None) => {
                let mut last = before.clone();
                last["metadata"]["resourceVersion"] = json!(change.version.to_string());
                Some(event("DELETED", &last))
            }
        }
    }

    fn bookmark(&self) -> Value {
        let metadata = json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
        event("BOOKMARK", &json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata}))
    }

    /// Waits for a write, a switch, a bookmark's turn or the end. `None` when the server is gone.
    async fn sleep(&mut self) -> Option<()> {
        let wake = if self.bookmarks.is_some() { self.deadline.min(self.next_bookmark) } else { self.deadline };
        tokio::select! {
            changed = self.latest.changed() => changed.ok()?,
            changed = self.switches.changed() => changed.ok()?,
            () = tokio::time::sleep_until(wake) => {
                if let Some(interval) = self.bookmarks {
                    if self.position > self.start {
                        self.queue.push_back(self.bookmark());
                    }
                    self.next_bookmark = Instant::now() + interval;
                }
                self.finished = Instant::now() >= self.deadline;
            }
        }
        Some(())
    }

    /// Fills the queue with what stands, for a watch without a resourceVersion.
    pub(crate) fn start_with(&mut self, items: &[Arc<Value>], version: u64) {
        self.queue.extend(items.iter().map(|item| event("ADDED", item)));
        self.start_at(version);
    }

    /// Begins after a version the client has seen.
    pub(crate) fn start_at(&mut self, version: u64) {
        self.position = version;
        self.start = version;
    }
}
