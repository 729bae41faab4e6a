//! Follows one collection: list, watch, again. A watch proves nothing; it only wakes people up.
//!
//! A watch that ends is resumed from the last version heard of; 410 means a new list, which replaces the old picture in
//! one step. Errors back off with jitter and show in the view as a broken link until the next watch is open. Every wait
//! has a limit: a watch over which nothing came for that long is taken for dead, since a cut connection is silent.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::core::WatchEvent;
use serde::de::DeserializeOwned;

use super::cache::{Cache, Feed};
use super::client::{Api, ApiError, Events};
use super::kube::Shared;
use super::objects::{Kind, Meta, Pod};
use crate::model::{BootInstant, time_scale};

/// How long the server keeps a watch open. Half an hour keeps the renewals of three members' watches below one a minute;
/// bookmarks keep the version fresh meanwhile.
const LASTING: Duration = Duration::from_secs(1800);
/// A pod watch over which nothing came for this long is taken for dead. API servers send a bookmark about every minute.
const PODS_SILENT: Duration = Duration::from_secs(150);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Two watches per member: at most one request a second each way while the API server is in trouble.
const BACKOFF_MOST: Duration = Duration::from_secs(2);

/// A watched type and how the cache takes it in.
pub(super) trait Watched: DeserializeOwned + Clone + Send + 'static {
    const FEED: Feed;
    fn meta(&self) -> &Meta;
    fn put(self, cache: &mut Cache, at: BootInstant);
    fn delete(self, cache: &mut Cache, at: BootInstant);
    fn replace(items: Vec<Self>, version: &str, cache: &mut Cache, at: BootInstant);
    fn silent(shared: &Shared) -> Duration;
}

impl Watched for Kind {
    const FEED: Feed = Feed::Kinds;
    fn meta(&self) -> &Meta {
        &self.metadata
    }
    fn put(self, cache: &mut Cache, at: BootInstant) {
        cache.put_kind(self, at);
    }
    fn delete(self, cache: &mut Cache, at: BootInstant) {
        cache.drop_kind(&self.metadata.name, &self.metadata.resource_version, at);
    }
    fn replace(items: Vec<Self>, version: &str, cache: &mut Cache, at: BootInstant) {
        cache.replace_kinds(items, version, at);
    }
    /// A living leader renews every loop_wait, and every renewal is an event; a ttl of silence is one too many.
    fn silent(shared: &Shared) -> Duration {
        let periods = shared.periods();
        (periods.loop_wait + periods.retry_timeout).min(periods.ttl)
    }
}

impl Watched for Pod {
    const FEED: Feed = Feed::Pods;
    fn meta(&self) -> &Meta {
        &self.metadata
    }
    fn put(self, cache: &mut Cache, _at: BootInstant) {
        cache.put_pod(self);
    }
    fn delete(self, cache: &mut Cache, _at: BootInstant) {
        cache.drop_pod(&self.metadata.name, &self.metadata.resource_version);
    }
    fn replace(items: Vec<Self>, version: &str, cache: &mut Cache, _at: BootInstant) {
        cache.replace_pods(items, version);
    }
    fn silent(_shared: &Shared) -> Duration {
        PODS_SILENT
    }
}

/// Why a watch is over.
enum Over {
    /// The server closed it, or it was silent for too long.
    Ended,
    /// The version is too old: list again.
    Gone,
    /// An error.
    Failed(String),
}

/// Follows a collection for ever.
pub(super) async fn follow<T: Watched>(shared: Arc<Shared>, api: Api) {
    let mut version: Option<String> = None;
    let mut pause = Backoff::default();
    let mut failing = false;
    loop {
        let opened = shared.now();
        match once::<T>(&shared, &api, &mut version, &mut failing).await {
            Over::Ended => {}
            Over::Gone => version = None,
            Over::Failed(why) => {
                shared.update(|cache, at| cache.broken(T::FEED, at));
                if !failing {
                    tracing::warn!(error = %why, "the view of the cluster is no longer kept up to date; trying again");
                    failing = true;
                }
            }
        }
        if shared.now().since(opened) > Duration::from_millis(500) {
            pause.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(pause.pause()) => {}
            // Another request was answered: the server is there.
            () = shared.answers.notified() => {}
        }
    }
}

async fn once<T: Watched>(shared: &Shared, api: &Api, version: &mut Option<String>, failing: &mut bool) -> Over {
    let limit = shared.periods().retry_timeout;
    let from = match version {
        Some(from) => from.clone(),
        None => match api.list::<T>(T::FEED, limit).await {
            Ok((items, as_of)) => {
                shared.update(|cache, at| T::replace(items, &as_of, cache, at));
                *version = Some(as_of.clone());
                as_of
            }
            Err(e) => return Over::Failed(e.text()),
        },
    };
    match api.watch::<T>(T::FEED, &from, LASTING, limit).await {
        Ok(events) => {
            shared.update(|cache, _| cache.live(T::FEED));
            if std::mem::take(failing) {
                tracing::info!("the view of the cluster is kept up to date again");
            }
            drain(shared, events, version).await
        }
        Err(ApiError::Gone) => Over::Gone,
        Err(e) => Over::Failed(e.text()),
    }
}

async fn drain<T: Watched>(shared: &Shared, mut events: Events<T>, version: &mut Option<String>) -> Over {
    loop {
        let event = match tokio::time::timeout(T::silent(shared), events.next()).await {
            Err(_) | Ok(None) => return Over::Ended,
            Ok(Some(Err(kube::Error::Api(status)))) if status.code == 410 => return Over::Gone,
            Ok(Some(Err(kube::Error::SerdeError(e)))) => {
                // From the same version the same event would come again for ever.
                *version = None;
                return Over::Failed(format!("watch: an event is not understood: {e}"));
            }
            Ok(Some(Err(e))) => return Over::Failed(format!("watch: {e}")),
            Ok(Some(Ok(event))) => event,
        };
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                *version = Some(object.meta().resource_version.clone());
                shared.update(|cache, at| object.put(cache, at));
            }
            WatchEvent::Deleted(object) => {
                *version = Some(object.meta().resource_version.clone());
                shared.update(|cache, at| object.delete(cache, at));
            }
            WatchEvent::Bookmark(mark) => *version = Some(mark.metadata.resource_version),
            WatchEvent::Error(status) if status.code == 410 => return Over::Gone,
            WatchEvent::Error(status) => return Over::Failed(format!("watch: {} ({})", status.message, status.code)),
        }
    }
}

/// Growing pauses with jitter, so that the members of many clusters do not come back in step.
pub(super) struct Backoff {
    next: Duration,
    most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: BACKOFF_FIRST.mul_f64(time_scale()), most: BACKOFF_MOST.mul_f64(time_scale()) }
    }
}

impl Backoff {
    /// Growing up to `most` only.
    pub fn up_to(most: Duration) -> Self {
        Backoff { most: most.mul_f64(time_scale()), ..Backoff::default() }
    }
    fn reset(&mut self) {
        self.next = BACKOFF_FIRST.mul_f64(time_scale());
    }
    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.most);
        pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)
    }
}
