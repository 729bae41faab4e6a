//! An embedded Kubernetes API server: the demo's cluster and the tests' cluster, in one process and in memory.
//!
//! It serves the handful of kinds a PostgreSQL cluster touches (pods, endpoints, configmaps, services, events,
//! leases, ...) over plain HTTP/1.1 with bearer tokens, precisely enough that `kubectl` and the `kube` crate
//! cannot tell: one global resourceVersion, conditional writes, the three kinds of patch, selectors, watches without gaps,
//! bookmarks, 410 after compaction, and the real server's words in every refusal. `tests/kube_api.rs` holds it
//! and a real kube-apiserver to the same test body.
//!
//! Below HTTP nothing waits: [`run`] makes a [`Call`] on a [`Store`] and returns the [`Answer`], a [`Cursor`] is a watch that
//! is asked for its next event, and [`Sources`] say what time it is and which UIDs come next. A simulation drives these;
//! the server is a layer around them.
//!
//! Reading order: `kinds` (what is served) → `store` (the objects and their history), `sources` → `call`, `run` (the
//! verbs) → `cursor` → `http` (routes, authentication), `watch` (its stream) → `faults` (how it is made to misbehave). It
//! imports nothing of ours and deliberately does not run controllers, schedule pods, keep data on disk, or speak TLS, protobuf or server-side apply.
mod call;
mod cursor;
mod discovery;
mod faults;
mod http;
mod kinds;
mod patch;
mod run;
mod select;
mod sources;
mod status;
mod store;
mod validate;
mod watch;

pub use call::{Call, Verb};
pub use cursor::{Cursor, Event};
pub use faults::{FaultRule, Faults};
pub use run::{Answer, run};
pub use sources::Sources;
pub use status::Status;
pub use store::{Snapshot, Store};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Between two looks at grace periods when nothing is written: the wall clock may be set meanwhile.
const REAP_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on; port 0 picks a free one.
    pub bind: SocketAddr,
    /// Bearer token of the user `admin`, who may do everything. `None` invents one.
    pub token: Option<String>,
    /// Distance between two bookmarks of a watch that asked for them.
    pub bookmark_interval: Duration,
    /// Changes kept for watches and paged lists; older ones are compacted away (410 Expired).
    pub history: usize,
    /// Accept loopback addresses in Endpoints. A real server answers 422; the demo's members live on 127.0.0.0/8.
    pub loopback_addresses: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: None,
            bookmark_interval: Duration::from_secs(10),
            history: 4096,
            loopback_addresses: true,
        }
    }
}

/// A (verb, resource) pair a user may use; `"*"` stands for any. Subresources read `pods/status`.
pub type Rule = (String, String);

/// Who a token belongs to and what that user may do (`None`: everything).
#[derive(Debug, Clone)]
pub(crate) struct User {
    name: String,
    rules: Option<Vec<Rule>>,
}

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Shared {
    store: Store,
    faults: Faults,
    users: Mutex<BTreeMap<String, User>>,
    counts: Mutex<BTreeMap<(String, String), u64>>,
    bookmark_interval: Duration,
    address: SocketAddr,
}

/// A poisoned lock means a panic elsewhere; the maps behind it are still whole.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server. Dropping it stops listening and resets open connections.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    token: String,
    accept: JoinHandle<()>,
    reap: JoinHandle<()>,
}

impl Server {
    /// Binds and serves on the current tokio runtime. Fails when the address cannot be bound.
    pub async fn start(options: Options) -> std::io::Result<Server> {
        let listener = TcpListener::bind(options.bind).await?;
        let address = listener.local_addr()?;
        let sources = Sources::default();
        let token = options.token.unwrap_or_else(|| sources.uid());
        let admin = User { name: "admin".to_owned(), rules: None };
        let shared = Arc::new(Shared {
            store: Store::new(options.history, options.loopback_addresses, sources),
            faults: Faults::new(),
            users: Mutex::new(BTreeMap::from([(token.clone(), admin)])),
            counts: Mutex::new(BTreeMap::new()),
            bookmark_interval: options.bookmark_interval,
            address,
        });
        let accept = tokio::spawn(http::accept(listener, Arc::clone(&shared)));
        let reap = tokio::spawn(reap(shared.store.clone()));
        Ok(Server { shared, token, accept, reap })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// `http://ADDRESS`, as a kubeconfig's `server:`.
    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// The admin's bearer token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A kubeconfig (YAML) for the admin: cluster, user and context are called `patroni-demo`. The token stands in
    /// the server's URL as well, since kubectl sends no credentials over plain HTTP.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_for(&self.token)
    }

    /// The same kubeconfig for another token (see [`Server::add_token`]).
    pub fn kubeconfig_for(&self, token: &str) -> String {
        let name = "patroni-demo";
        let server = format!("{}/as/{token}", self.url());
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\nusers:\n\
             - name: {name}\n  user:\n    token: \"{token}\"\ncontexts:\n- name: {name}\n  context:\n    \
             cluster: {name}\n    user: {name}\n    namespace: default\ncurrent-context: {name}\n"
        )
    }

    /// Lets `token` in as user `name`, allowed everything.
    pub fn add_token(&self, name: &str, token: &str) {
        let user = User { name: name.to_owned(), rules: None };
        lock(&self.shared.users).insert(token.to_owned(), user);
    }

    /// Lets `token` in as user `name`, allowed only these (verb, resource) pairs; the rest answers 403.
    pub fn add_token_with_rules(&self, name: &str, token: &str, rules: Vec<Rule>) {
        let user = User { name: name.to_owned(), rules: Some(rules) };
        lock(&self.shared.users).insert(token.to_owned(), user);
    }

    /// Takes a token away: its next request answers 401.
    pub fn remove_token(&self, token: &str) {
        lock(&self.shared.users).remove(token);
    }

    /// The switches for misbehaving.
    pub fn faults(&self) -> Faults {
        self.shared.faults.clone()
    }

    /// The objects, without HTTP.
    pub fn store(&self) -> Store {
        self.shared.store.clone()
    }

    /// Requests since the start or the last reset, by (verb, resource): `("patch", "endpoints")`.
    pub fn request_counts(&self) -> BTreeMap<(String, String), u64> {
        lock(&self.shared.counts).clone()
    }

    /// Sets all request counts to zero.
    pub fn reset_request_counts(&self) {
        lock(&self.shared.counts).clear();
    }

    /// Forgets all history: every older resourceVersion answers 410 Expired from here on.
    pub fn compact(&self) {
        self.shared.store.compact();
    }
}

/// Removes pods when the grace periods they were given are over, until the task is aborted.
async fn reap(store: Store) {
    let mut changes = store.changes();
    loop {
        changes.borrow_and_update();
        let pause = store.expire(store.now()).map_or(REAP_PAUSE_MAX, |due| due.saturating_sub(store.now()));
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause.min(REAP_PAUSE_MAX)) => {}
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
        self.reap.abort();
        self.shared.faults.down(true);
    }
}
