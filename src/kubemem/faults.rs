//! The switches that make the server misbehave: late, wrong, mute, cut or gone, for everybody or for one client.
//!
//! A client is named by its bearer token or its User-Agent, so that a test can cut one member off and leave the others alone.
use super::lock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Which requests a fault hits. Empty strings match everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRule {
    /// HTTP method, e.g. `PATCH`; empty: any.
    pub method: String,
    /// Part of the path with its query, e.g. `/endpoints/demo`; empty: any.
    pub path_contains: String,
    /// Status code to answer with (not read by `drop_reply`).
    pub status: u16,
    /// How many requests it hits before it is spent; `u64::MAX`: all.
    pub count: u64,
    /// Only requests with this bearer token, or with this text in their User-Agent.
    pub only_token: Option<String>,
}

impl Default for FaultRule {
    fn default() -> Self {
        Self { method: String::new(), path_contains: String::new(), status: 500, count: u64::MAX, only_token: None }
    }
}

/// Who sent a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Client {
    pub token: String,
    pub agent: String,
}

impl Client {
    fn is(&self, name: &str) -> bool {
        self.token == name || (!name.is_empty() && self.agent.contains(name))
    }
}

/// The switches that open connections follow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Switches {
    down: bool,
    hang: bool,
    latency: Duration,
    cuts: u64,
    down_for: BTreeSet<String>,
    hang_for: BTreeSet<String>,
    latency_for: BTreeMap<String, Duration>,
    cuts_for: BTreeMap<String, u64>,
}

impl Switches {
    /// Must this client's connections be reset? `None` is a connection that said nothing yet.
    pub fn is_down(&self, client: Option<&Client>) -> bool {
        self.down || client.is_some_and(|client| self.down_for.iter().any(|name| client.is(name)))
    }

    /// Must this client wait without an answer?
    pub fn hangs(&self, client: &Client) -> bool {
        self.hang || self.hang_for.iter().any(|name| client.is(name))
    }

    /// Delay before each answer to this client.
    pub fn delay(&self, client: &Client) -> Duration {
        let own = self.latency_for.iter().filter(|(name, _)| client.is(name)).map(|(_, delay)| *delay).max();
        own.unwrap_or(self.latency)
    }

    /// Grows whenever this client's watches are cut.
    pub fn cuts(&self, client: &Client) -> u64 {
        self.cuts + self.cuts_for.iter().filter(|(name, _)| client.is(name)).map(|(_, cuts)| cuts).sum::<u64>()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Answer,
    DropReply,
}

/// A handle on the switches; clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    switches: watch::Sender<Switches>,
    rules: Arc<Mutex<Vec<(Effect, FaultRule)>>>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { switches: watch::Sender::new(Switches::default()), rules: Arc::default() }
    }

    /// Delays every answer; zero switches it off.
    pub fn latency(&self, delay: Duration) {
        self.switches.send_modify(|s| s.latency = delay);
    }

    /// Delays every answer to one client; zero overrides the general latency.
    pub fn latency_for(&self, client: &str, delay: Duration) {
        self.switches.send_modify(|s| {
            s.latency_for.insert(client.to_owned(), delay);
        });
    }

    /// Answers matching requests with `rule.status` and does nothing for them.
    pub fn fail(&self, rule: FaultRule) {
        lock(&self.rules).push((Effect::Answer, rule));
    }

    /// Does the work of matching requests, then closes the connection instead of answering.
    pub fn drop_reply(&self, rule: FaultRule) {
        lock(&self.rules).push((Effect::DropReply, rule));
    }

    /// Cuts all watches that are open at this moment.
    pub fn cut_watches(&self) {
        self.switches.send_modify(|s| s.cuts += 1);
    }

    /// Cuts the open watches of one client.
    pub fn cut_watches_for(&self, client: &str) {
        self.switches.send_modify(|s| *s.cuts_for.entry(client.to_owned()).or_default() += 1);
    }

    /// As if the server were down: resets open connections and every new one.
    pub fn down(&self, down: bool) {
        self.switches.send_modify(|s| s.down = down);
    }

    /// The same for one client; a new connection is reset as soon as it says whose it is.
    pub fn down_for(&self, client: &str, down: bool) {
        self.switches.send_modify(|s| set(&mut s.down_for, client, down));
    }

    /// Accepts connections and requests, answers nothing, sends nothing on watches. What waited is served afterwards.
    pub fn hang(&self, hang: bool) {
        self.switches.send_modify(|s| s.hang = hang);
    }

    /// The same for one client.
    pub fn hang_for(&self, client: &str, hang: bool) {
        self.switches.send_modify(|s| set(&mut s.hang_for, client, hang));
    }

    /// Ends all faults. Watches that were cut stay cut.
    pub fn clear(&self) {
        lock(&self.rules).clear();
        self.switches.send_modify(|s| {
            *s = Switches { cuts: s.cuts, cuts_for: std::mem::take(&mut s.cuts_for), ..Switches::default() }
        });
    }

    pub(crate) fn switches(&self) -> watch::Receiver<Switches> {
        self.switches.subscribe()
    }

    /// The status code to refuse this request with, using the rule up by one.
    pub(crate) fn refusal(&self, method: &str, path: &str, client: &Client) -> Option<u16> {
        self.take(Effect::Answer, method, path, client).map(|rule| rule.status)
    }

    /// Must the reply to this request be dropped? Uses the rule up by one.
    pub(crate) fn drops_reply(&self, method: &str, path: &str, client: &Client) -> bool {
        self.take(Effect::DropReply, method, path, client).is_some()
    }

    fn take(&self, effect: Effect, method: &str, path: &str, client: &Client) -> Option<FaultRule> {
        let mut rules = lock(&self.rules);
        let (_, rule) = rules.iter_mut().find(|(e, rule)| {
            *e == effect
                && rule.count > 0
                && (rule.method.is_empty() || rule.method.eq_ignore_ascii_case(method))
                && path.contains(&rule.path_contains)
                && rule.only_token.as_deref().is_none_or(|name| client.is(name))
        })?;
        if rule.count != u64::MAX {
            rule.count -= 1;
        }
        Some(rule.clone())
    }
}

fn set(names: &mut BTreeSet<String>, name: &str, on: bool) {
    if on {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}
