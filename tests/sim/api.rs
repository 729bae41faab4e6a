//! API servers over one store: each with a watch cache that lags; requests that are slow, lost, answered to nobody, or land
//! when nobody waits for them any more. What is asked and what an answer says is the shipping [`Desk`]'s business.

use std::sync::Arc;

use patroni::dcs::desk::{Followed, WatchEnd};
use patroni::dcs::{Answer as Got, Body, Failure, Feed, Request, Sent};
use patroni::kubemem::{Call, Cursor, Event as Shown, Verb, run};
use patroni::model::StoreLink;
use serde_json::{Value, json};

use super::rng::Rng;
use super::sidecar::{ToSidecar, Why};
use super::world::{Event, MS, Ns, SEC, World};

/// Requests of one member within a second of virtual time; more is a busy loop.
const REQUESTS_MAX: u32 = 25;

/// Writes of one member that are refused within a second: two of the lock at most, one each of everything else.
const REFUSED_MAX: u32 = 8;

/// An open watch, as the server sees it.
struct Open {
    pod: usize,
    life: u64,
    feed: Feed,
    number: u64,
    cursor: Cursor,
    at: Ns,
}

/// One API server.
pub struct ApiServer {
    /// Its watch cache has come so far.
    seen: u64,
    open: Vec<Open>,
    applied: Ns,
    /// It shows nothing new before.
    pub stalled: Ns,
    luck: Rng,
}

impl ApiServer {
    pub fn new(seed: u64, i: usize, seen: u64) -> ApiServer {
        ApiServer { seen, open: Vec::new(), applied: 0, stalled: 0, luck: Rng::new(seed, i as u64, 5) }
    }
}

/// A request on its way.
pub struct Landing {
    pub pod: usize,
    pub life: u64,
    pub request: u64,
    pub call: Call,
    pub watch: Option<(Feed, u64)>,
    pub server: usize,
    pub answered: bool,
}

/// One of the two collections that are followed.
#[derive(Default)]
pub struct Following {
    /// Counts lists and watches.
    pub number: u64,
    /// The open watch.
    pub watch: Option<Sent>,
    pub paused: bool,
    heard: Ns,
}

/// A request that waits for its answer.
pub struct Asked {
    pub sent: Sent,
    pub why: Why,
}

impl World {
    /// Whatever was written reaches the watch caches.
    pub fn announce(&mut self) {
        let version = self.store.version();
        if version == self.announced {
            return;
        }
        self.announced = version;
        self.check_labels();
        for server in 0..self.servers.len() {
            let t = self.t;
            let s = &mut self.servers[server];
            let at = (t + s.luck.between(MS, 40 * MS)).max(s.stalled).max(s.applied);
            s.applied = at;
            self.at(at, Event::Applies { server, version });
        }
    }

    pub fn applies(&mut self, server: usize, version: u64) {
        let t = self.t;
        let stalled = self.servers[server].stalled;
        if t < stalled {
            return self.at(stalled, Event::Applies { server, version });
        }
        self.servers[server].seen = version.max(self.servers[server].seen);
        let mut open = std::mem::take(&mut self.servers[server].open);
        open.retain_mut(|o| {
            self.show(o, version);
            let living = self.pods[o.pod].sidecar.as_ref().is_some_and(|s| s.life == o.life);
            living && self.pods[o.pod].api_cut <= t && !o.cursor.is_over()
        });
        self.servers[server].open.append(&mut open);
    }

    fn show(&mut self, o: &mut Open, version: u64) {
        if self.pods[o.pod].api_cut > self.t {
            return;
        }
        while let Some(event) = o.cursor.next_until(&self.store, version) {
            o.at = o.at.max(self.t + self.pods[o.pod].net.between(MS / 2, 20 * MS));
            let to = ToSidecar::WatchEvent { feed: o.feed, number: o.number, event };
            self.at(o.at, Event::Sidecar { pod: o.pod, life: o.life, to: Box::new(to) });
        }
    }

    /// The servers were restarted over a store of an earlier day: every watch breaks.
    pub fn servers_restart(&mut self) {
        let version = self.store.version();
        self.announced = version;
        for s in &mut self.servers {
            s.seen = version;
            s.open.clear();
        }
        for pod in 0..self.pods.len() {
            let delay = self.pods[pod].net.between(MS, SEC);
            self.sidecar_gets(pod, delay, ToSidecar::WatchBreaks);
        }
    }

    /// Sends a request of the desk. `None`: it cannot be said; the failure is the answer.
    pub fn request(&mut self, pod: usize, request: Request, why: Why) -> Result<(), Failure> {
        let Some(side) = &mut self.pods[pod].sidecar else { return Ok(()) };
        let mut sent = side.desk.encode(request)?;
        side.requests_made += 1;
        let second = self.t / SEC;
        side.rate = if side.rate.0 == second { (second, side.rate.1 + 1) } else { (second, 1) };
        let busy = side.rate.1 == REQUESTS_MAX;
        let (request, life) = (side.requests_made, side.life);
        let watch = match why {
            Why::Watch(feed) => Some((feed, side.feeds[feed as usize].number)),
            _ => None,
        };
        let body = sent.call.body.take().unwrap_or(Value::Null);
        let call = Call::new(sent.call.method, &sent.call.uri(), sent.call.content_type, body);
        let write = sent.call.method != "GET";
        side.asked.insert(request, Asked { sent, why });
        let limit = self.settings.retry_timeout.as_nanos() as Ns;
        self.after(limit, Event::Sidecar { pod, life, to: Box::new(ToSidecar::ApiSilent(request)) });
        if busy {
            self.violation(format!("L3 m{pod} sends {REQUESTS_MAX} requests within a second"));
        }
        let Ok(call) = call else { return Ok(()) };
        self.travel(Landing { pod, life, request, call, watch, server: 0, answered: true }, write);
        Ok(())
    }

    fn travel(&mut self, mut landing: Landing, write: bool) {
        let (t, quiet, servers) = (self.t, self.quiet, self.servers.len() as u64);
        let bad = !quiet && self.plan.bad_api;
        let p = &mut self.pods[landing.pod];
        if p.net.one_in(30) {
            p.server = p.net.below(servers) as usize;
        }
        landing.server = p.server;
        let mut takes = p.net.between(MS, 30 * MS);
        if t < p.api_cut {
            if p.net.one_in(2) {
                let (life, request) = (landing.life, landing.request);
                let to = Box::new(ToSidecar::ApiBroken(request));
                self.after(20 * MS, Event::Sidecar { pod: landing.pod, life, to });
            }
            return;
        }
        if t < self.slow_until {
            takes += p.net.below(self.slow_until - t);
        }
        let luck = if bad { p.net.below(60) } else { 60 };
        match luck {
            0 => return,
            1 => landing.answered = false,
            2 if write => takes = p.net.between(3 * SEC, 90 * SEC),
            3 | 4 => takes += p.net.between(SEC, 9 * SEC),
            _ => {}
        }
        if write && takes > 2 * SEC {
            p.late = p.late.max(t + takes);
        }
        self.after(takes, Event::Lands(Box::new(landing)));
    }

    pub fn land(&mut self, landing: Landing) {
        let Landing { pod, life, request, call, watch, server, answered } = landing;
        let refuses = self.t < self.refuses_until && call.verb() != Verb::Get && call.verb() != Verb::List;
        let mut back = self.pods[pod].net.between(MS, 30 * MS);
        if !self.quiet && self.plan.bad_api && self.pods[pod].net.one_in(60) {
            back += self.pods[pod].net.between(SEC, 9 * SEC);
        }
        let (status, body) = match watch {
            None if refuses => {
                self.refused(pod);
                let body = json!({"kind": "Status", "status": "Failure", "message": "quota exceeded", "code": 403});
                (403, Arc::new(body))
            }
            None => {
                let answer = run(&self.store, &call);
                self.leader_is_written(pod);
                (answer.status, answer.body)
            }
            Some((feed, number)) => match Cursor::open(&self.store, &call) {
                Ok(cursor) => {
                    let version = self.servers[server].seen;
                    // Events come after the answer that opens the watch.
                    let mut open = Open { pod, life, feed, number, cursor, at: self.t + back + MS };
                    self.show(&mut open, version);
                    self.servers[server].open.push(open);
                    (200, Arc::new(Value::Null))
                }
                Err(status) => (status.code, Arc::new(status.to_value())),
            },
        };
        if !answered || self.t < self.pods[pod].api_cut {
            return;
        }
        let to = Box::new(ToSidecar::ApiAnswer { request, status, body });
        self.after(back, Event::Sidecar { pod, life, to });
    }

    /// L3: after a refusal a member rests. Lock, status, configuration and labels each have their own pause.
    fn refused(&mut self, pod: usize) {
        let second = self.t / SEC;
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        side.refused = if side.refused.0 == second { (second, side.refused.1 + 1) } else { (second, 1) };
        if side.refused.1 == REFUSED_MAX {
            self.violation(format!("L3 m{pod} is refused {REFUSED_MAX} times within a second"));
        }
    }

    /// An answer, or none: into the desk, and on to whoever asked.
    pub fn api_answered(&mut self, pod: usize, request: u64, answer: Result<(u16, Arc<Value>), &str>) {
        let at = self.boot(pod);
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let Some(Asked { sent, why }) = side.asked.remove(&request) else { return };
        let got = match answer {
            Ok((status, body)) => side.desk.decode(&sent, status, Body::Read(&body), at),
            Err(silence) => Err(side.desk.unanswered(&sent, silence, at)),
        };
        let good = got.is_ok();
        self.view_changes(pod);
        match why {
            Why::List(feed) => self.listed(pod, feed, &got),
            Why::Watch(feed) => self.watching(pod, feed, sent, &got),
            other => self.store_answer(pod, other, got),
        }
        if good {
            // Another request was answered: the server is there.
            for feed in [Feed::Kinds, Feed::Pods] {
                let Some(side) = &self.pods[pod].sidecar else { return };
                let f = &side.feeds[feed as usize];
                if f.paused || f.watch.as_ref().is_some_and(|sent| sent.trust() != side.desk.trust()) {
                    self.follow(pod, feed);
                }
            }
        }
    }

    /// Lists, or watches from where the last one ended.
    pub fn follow(&mut self, pod: usize, feed: Feed) {
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let f = &mut side.feeds[feed as usize];
        f.number += 1;
        f.watch = None;
        f.paused = false;
        let request = side.desk.follow(feed);
        let why = if matches!(request, Request::Watch(_)) { Why::Watch(feed) } else { Why::List(feed) };
        if self.request(pod, request, why).is_err() {
            self.follow_later(pod, feed);
        }
    }

    fn follow_later(&mut self, pod: usize, feed: Feed) {
        let pause = self.pods[pod].net.between(100 * MS, 2 * SEC);
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let f = &mut side.feeds[feed as usize];
        f.number += 1;
        f.watch = None;
        f.paused = true;
        let (number, life) = (f.number, side.life);
        let to = Box::new(ToSidecar::Follow { feed, number });
        self.after(pause, Event::Sidecar { pod, life, to });
    }

    fn listed(&mut self, pod: usize, feed: Feed, got: &Result<Got, Failure>) {
        if got.is_err() {
            return self.follow_later(pod, feed);
        }
        let doubt = self.pods[pod].sidecar.as_ref().and_then(|s| s.desk.doubt());
        if let Some(request) = doubt
            && self.request(pod, request, Why::Nobody).is_err()
        {
            self.note(format!("m{pod} cannot ask for its own pod"));
        }
        self.follow(pod, feed);
    }

    fn watching(&mut self, pod: usize, feed: Feed, sent: Sent, got: &Result<Got, Failure>) {
        if got.is_err() {
            return self.follow_later(pod, feed);
        }
        let t = self.t;
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let f = &mut side.feeds[feed as usize];
        f.watch = Some(sent);
        f.heard = t;
        self.look_for_silence(pod, feed);
    }

    fn look_for_silence(&mut self, pod: usize, feed: Feed) {
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let f = &side.feeds[feed as usize];
        let due = f.heard + side.desk.silence(feed).as_nanos() as Ns;
        let (life, number) = (side.life, f.number);
        let to = Box::new(ToSidecar::WatchSilent { feed, number });
        self.at(due, Event::Sidecar { pod, life, to });
    }

    pub fn watch_silent(&mut self, pod: usize, feed: Feed, number: u64) {
        let (t, at) = (self.t, self.boot(pod));
        let open = |s: &ApiServer| {
            s.open.iter().any(|o| (o.pod, o.number) == (pod, number) && o.feed as usize == feed as usize)
        };
        let cut = self.pods[pod].api_cut > t || !self.servers.iter().any(open);
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let f = &mut side.feeds[feed as usize];
        if f.number != number || f.watch.is_none() {
            return;
        }
        if feed == Feed::Pods && !cut {
            // Bookmarks came.
            f.heard = t;
        }
        if t < f.heard + side.desk.silence(feed).as_nanos() as Ns {
            return self.look_for_silence(pod, feed);
        }
        let Some(sent) = f.watch.take() else { return };
        let followed = side.desk.watch_ended(&sent, WatchEnd::Silent, at);
        self.followed(pod, feed, followed);
    }

    pub fn watch_event(&mut self, pod: usize, feed: Feed, number: u64, event: &Shown) {
        let (t, at) = (self.t, self.boot(pod));
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let f = &mut side.feeds[feed as usize];
        if f.number != number {
            return;
        }
        f.heard = t;
        let Some(sent) = &f.watch else { return };
        let followed = side.desk.watch_event(sent, event.kind, &event.object, at);
        self.followed(pod, feed, followed);
    }

    /// The connection of an open watch breaks.
    pub fn watch_breaks(&mut self, pod: usize) {
        let at = self.boot(pod);
        for feed in [Feed::Kinds, Feed::Pods] {
            let Some(side) = &mut self.pods[pod].sidecar else { return };
            if let Some(sent) = side.feeds[feed as usize].watch.take() {
                let followed = side.desk.watch_ended(&sent, WatchEnd::Broken("cut".to_owned()), at);
                self.followed(pod, feed, followed);
            }
        }
    }

    fn followed(&mut self, pod: usize, feed: Feed, followed: Followed) {
        self.view_changes(pod);
        match followed {
            Followed::On => {
                let Some(side) = &self.pods[pod].sidecar else { return };
                let f = &side.feeds[feed as usize];
                if f.watch.as_ref().is_some_and(|sent| sent.trust() != side.desk.trust()) {
                    self.follow_later(pod, feed);
                }
            }
            Followed::Over | Followed::Failed(_) => self.follow_later(pod, feed),
        }
    }

    /// Tells the member what it can see now, if that is something else.
    fn view_changes(&mut self, pod: usize) {
        let Some(side) = &mut self.pods[pod].sidecar else { return };
        let view = side.desk.view();
        if side.view.as_ref().is_some_and(|old| std::sync::Arc::ptr_eq(old, &view) || *old == view) {
            return;
        }
        side.view = Some(view.clone());
        if side.member.is_some() {
            self.show_view(pod, &view);
        } else if view.link == StoreLink::Following {
            self.store_is_there(pod);
        }
    }
}
