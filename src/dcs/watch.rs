//! Follows one collection: list, watch, again. A watch proves nothing; it only wakes people up.
//!
//! A watch that ends is resumed from the last version heard of; 410 means a new list, which replaces the old picture in
//! one step. Errors back off with jitter and show in the view as a broken link until the next watch is open. Every wait
//! has a limit: a watch over which nothing came for that long is taken for dead, since a cut connection is silent.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use super::Failure;
use super::answer::Body;
use super::client::{Api, Events, NoAnswer, WatchError};
use super::desk::{Desk, Followed, WatchEnd, Watched};
use super::kube::Shared;
use super::request::{Request, Sent};
use crate::model::{BootInstant, time_scale};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Two watches per member: at most one request a second each way while the API server is in trouble.
const BACKOFF_MOST: Duration = Duration::from_secs(2);

/// Follows a collection for ever.
pub(super) async fn follow<T: Watched>(shared: Arc<Shared>, api: Api) {
    let mut pause = Backoff::default();
    let mut failing = false;
    loop {
        let opened = shared.now();
        if let Followed::Failed(why) = once::<T>(&shared, &api, &mut failing).await
            && !std::mem::replace(&mut failing, true)
        {
            tracing::warn!(error = %why, "the view of the cluster is no longer kept up to date; trying again");
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

/// Lists, if that has to be, and watches until the watch is over.
async fn once<T: Watched>(shared: &Shared, api: &Api, failing: &mut bool) -> Followed {
    let limit = shared.with(|desk| desk.periods().retry_timeout);
    loop {
        let request = shared.with(|desk| desk.follow(T::FEED));
        let watching = matches!(request, Request::Watch(_));
        let sent = match shared.with(|desk| desk.encode(request)) {
            Ok(sent) => sent,
            Err(e) => return Followed::Failed(e.text()),
        };
        if watching {
            return watch::<T>(shared, api, &sent, limit, failing).await;
        }
        match ask(shared, api, &sent, limit).await {
            Ok(()) => clear_doubt(shared, api, limit).await,
            Err(e) => return Followed::Failed(e.text()),
        }
    }
}

async fn ask(shared: &Shared, api: &Api, sent: &Sent, limit: Duration) -> Result<(), Failure> {
    match api.send(&sent.call, limit).await {
        Ok((status, body)) => shared.update(|desk, at| desk.decode(sent, status, Body::Bytes(&body), at)).map(drop),
        Err(NoAnswer(why)) => Err(shared.update(|desk, at| desk.unanswered(sent, &why, at))),
    }
}

/// My own pod is not shown any more: asks for it. Without an answer the doubt stays, and the next list asks again.
async fn clear_doubt(shared: &Shared, api: &Api, limit: Duration) {
    let doubt = |desk: &mut Desk| desk.doubt().and_then(|request| desk.encode(request).ok());
    if let Some(sent) = shared.with(doubt)
        && let Err(e) = ask(shared, api, &sent, limit).await
    {
        tracing::debug!(error = %e.text(), "cannot read the own pod");
    }
}

async fn watch<T: Watched>(shared: &Shared, api: &Api, sent: &Sent, limit: Duration, failing: &mut bool) -> Followed {
    let mut trust = shared.trust.subscribe();
    match api.watch::<T>(&sent.call, limit).await {
        Ok(events) => {
            if let Err(e) = shared.update(|desk, at| desk.decode(sent, 200, Body::Bytes(b""), at)) {
                return Followed::Failed(e.text());
            }
            if std::mem::take(failing) {
                tracing::info!("the view of the cluster is kept up to date again");
            }
            tokio::select! {
                over = drain(shared, api, sent, limit, events) => over,
                _ = trust.wait_for(|trust| *trust != sent.trust()) => Followed::Over,
            }
        }
        Err(e) => shared.update(|desk, at| broke(desk, sent, e, at)),
    }
}

fn broke(desk: &mut Desk, sent: &Sent, e: WatchError, at: BootInstant) -> Followed {
    match e {
        WatchError::Status(status) => desk.watch_error(sent, &status, at),
        WatchError::NotUnderstood(why) => desk.watch_ended(sent, WatchEnd::NotUnderstood(why), at),
        WatchError::Broken(why) => desk.watch_ended(sent, WatchEnd::Broken(why), at),
    }
}

async fn drain<T: Watched>(
    shared: &Shared,
    api: &Api,
    sent: &Sent,
    limit: Duration,
    mut events: Events<T>,
) -> Followed {
    loop {
        let silence = shared.with(|desk| desk.silence(T::FEED));
        let next = tokio::time::timeout(silence, events.next()).await;
        let followed = shared.update(|desk, at| match next {
            Err(_) => desk.watch_ended(sent, WatchEnd::Silent, at),
            Ok(None) => desk.watch_ended(sent, WatchEnd::Closed, at),
            Ok(Some(Err(e))) => broke(desk, sent, e.into(), at),
            Ok(Some(Ok(event))) => desk.take(sent, event, at),
        });
        if followed != Followed::On {
            return followed;
        }
        clear_doubt(shared, api, limit).await;
    }
}

/// Growing pauses with jitter, so that the members of many clusters do not come back in step.
struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: BACKOFF_FIRST.mul_f64(time_scale()) }
    }
}

impl Backoff {
    fn reset(&mut self) {
        self.next = BACKOFF_FIRST.mul_f64(time_scale());
    }
    /// The next pause.
    fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(BACKOFF_MOST.mul_f64(time_scale()));
        pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)
    }
}
