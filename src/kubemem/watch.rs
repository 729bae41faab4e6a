//! The stream of a watch: a cursor, asked again after every write.
//!
//! It sends what the cursor shows and sleeps until the next write. It ends at its timeout, with the cursor, or broken off
//! when a fault cuts it.
use super::Shared;
use super::call::Call;
use super::cursor::{Cursor, Event};
use super::faults::{Client, Switches};
use super::http::Body;
use super::status::Status;
use super::store::Store;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use std::io::{Error, ErrorKind};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A watch without timeoutSeconds ends after this long (the real server: 30 to 60 minutes).
const WATCH_MAX: Duration = Duration::from_secs(2700);

/// An open stream.
struct Stream {
    cursor: Cursor,
    bookmark_interval: Duration,
    next_bookmark: Instant,
    deadline: Instant,
    store: Store,
    latest: watch::Receiver<u64>,
    switches: watch::Receiver<Switches>,
    client: Client,
    cuts: u64,
}

/// The answer to a watch.
pub(crate) fn response(shared: &Shared, call: &Call, client: Client) -> Result<Response<Body>, Status> {
    let store = shared.store.clone();
    let latest = store.changes();
    let switches = shared.faults.switches();
    let cuts = switches.borrow().cuts(&client);
    let timeout = call.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let stream = Stream {
        cursor: Cursor::open(&store, call)?,
        bookmark_interval: shared.bookmark_interval,
        next_bookmark: Instant::now() + shared.bookmark_interval,
        deadline: Instant::now() + timeout.map_or(WATCH_MAX, Duration::from_secs).min(WATCH_MAX),
        store,
        latest,
        switches,
        client,
        cuts,
    };
    let frames = futures::stream::unfold(stream, next);
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// One event as it goes over the wire: a JSON object and a newline.
fn line(event: &Event) -> Frame<Bytes> {
    Frame::data(Bytes::from(format!("{}\n", event.to_value())))
}

/// The next frame and the stream to ask again; `None` at the end.
async fn next(mut stream: Stream) -> Option<(Result<Frame<Bytes>, Error>, Stream)> {
    loop {
        let (hangs, cuts) = {
            let switches = stream.switches.borrow_and_update();
            (switches.hangs(&stream.client), switches.cuts(&stream.client))
        };
        if cuts != stream.cuts {
            stream.cuts = cuts;
            return Some((Err(Error::new(ErrorKind::ConnectionReset, "the watch was cut")), stream));
        }
        if hangs {
            stream.switches.changed().await.ok()?;
            continue;
        }
        stream.latest.borrow_and_update();
        if let Some(event) = stream.cursor.next(&stream.store) {
            return Some((Ok(line(&event)), stream));
        }
        if stream.cursor.is_over() || Instant::now() >= stream.deadline {
            return None;
        }
        if let Some(event) = stream.sleep().await? {
            return Some((Ok(line(&event)), stream));
        }
    }
}

impl Stream {
    /// Waits for a write, a switch, a bookmark's turn (it is returned) or the end. `None` when the server is gone.
    async fn sleep(&mut self) -> Option<Option<Event>> {
        let bookmarks = self.cursor.wants_bookmarks();
        let wake = if bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
        tokio::select! {
            changed = self.latest.changed() => changed.ok()?,
            changed = self.switches.changed() => changed.ok()?,
            () = tokio::time::sleep_until(wake) => {
                if bookmarks && Instant::now() >= self.next_bookmark {
                    self.next_bookmark = Instant::now() + self.bookmark_interval;
                    return Some(self.cursor.bookmark());
                }
            }
        }
        Some(None)
    }
}
