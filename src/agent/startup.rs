//! From a configuration to a running member (ha-decisions §2): keeper, store, unique name, dynamic configuration, what an
//! earlier life of this pod has left.
//!
//! Nothing here decides about Postgres. A lease is taken over from an earlier life only on the keeper's word (design §4
//! "Mine"): the note of exactly the standing record, or no Postgres left and a record that names this very pod.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::keeper::{self, KeeperSide, Standing};
use super::peers::PeerClient;
use super::settings::{self, Source};
use super::{
    Agent, ApiSettings, Flags, Handle, OUTCOMES_MAX, Signal, callbacks, channels, clock, observe, publish, status,
};
use super::{execute, telemetry};
use crate::config::{Config, Dynamic};
use crate::dcs::kube::KubeStore;
use crate::dcs::{Dcs, MyPod, View};
use crate::model::{KeeperLink, Local, OwnLease, Settings, StartRole, StoreLink, Upstream};
use crate::postgres::Setup;
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::sql::Sql;

/// The dynamic configuration as last seen, in the data directory (configuration §2.3).
pub const DYNAMIC_FILE: &str = "patroni.dynamic.json";

/// Between two tries to reach the store at start (ha-decisions §2).
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Signals that wait for the loop.
const SIGNALS_MAX: usize = 8;

/// A member that is ready to run, and the REST API's door to it.
pub struct Started {
    /// The loop.
    pub agent: Agent,
    /// For the API server.
    pub handle: Handle,
}

/// Connects everything. `None`: asked to end (SIGTERM) while something was still waited for.
///
/// # Errors
/// One line (a configuration may have several): the process exits with 1.
pub async fn start(source: Source, api: Arc<ApiSettings>, config: Config) -> Result<Option<Started>, String> {
    refuse_root()?;
    let began = clock::boot();
    let (signals_tx, mut signals) = mpsc::channel(SIGNALS_MAX);
    listen_to_signals(signals_tx)?;
    let session = format!("{:016x}", rand::random::<u64>());
    let peers = PeerClient::new(&settings::peers(&config))?;
    let first = settings::read(&config, &Dynamic::default(), &source.home, "", 0);
    let connecting = connect(&config, &first, &session, &peers);
    let ((keeper, standing, binaries), (store, view, pod)) = tokio::select! {
        connected = connecting => connected?,
        () = told_to_end(&mut signals) => return Ok(None),
    };
    let (dynamic_document, dynamic_text) = dynamic_document(&view.borrow(), &first.setup.data_dir, &config);
    let (dynamic, warnings) = Dynamic::parse(&dynamic_document);
    let read = settings::read(&config, &dynamic, &source.home, &pod.uid, binaries.major);
    let s = &read.settings;
    store.set_periods(s.ttl, s.loop_wait, s.retry_timeout);
    let mut local = Local::at_start(config.name.as_str().into(), session, clock::boot(), s.ttl);
    local.uid = pod.uid;
    // Cloned out of the channel: what the store notes in between changes the view, and would wait for this borrow.
    let seen = view.borrow().clone();
    keeper::life(&config, standing.began, began).into_iter().for_each(|life| store.set_life(life));
    earlier_life(&mut local, store.as_ref(), &seen, &standing, s);
    let setup = Arc::new(read.setup);
    let (setups, setups_rx) = watch::channel(setup.clone());
    let (outcome, outcomes) = mpsc::channel(OUTCOMES_MAX);
    let timer = clock::BootTimer::new().map_err(|e| format!("open a timer: {e}"))?;
    let postgres = postgres_side(&setup, binaries, &standing);
    let (handle, ends, first_snapshot) = door(&local, &read.settings, &read.wishes, &api, peers.clone());
    let mut agent = Agent {
        store,
        view,
        cluster: Arc::default(),
        keeper,
        peers,
        source,
        setup,
        settings: Arc::new(read.settings),
        wishes: Arc::new(read.wishes),
        dynamic: dynamic_document,
        dynamic_text,
        setups,
        local,
        postgres,
        publisher: publish::Publisher::default(),
        told: callbacks::Told::default(),
        slots: execute::SlotsKept::default(),
        flags: Flags { keeper_ends: standing.terminating, keeper_began: standing.began, ..Flags::default() },
        requests: VecDeque::new(),
        scheduled_restart: None,
        pending_restart: Default::default(),
        ends,
        signals,
        outcomes,
        outcome,
        timer,
        wake_at: clock::boot(),
        last_reason: String::new(),
        dcs_last_seen: 0,
    };
    agent.warn_once(read.warnings);
    agent.warn_once(warnings);
    agent.serve_status(first_snapshot, setups_rx);
    agent.look_at_data();
    Ok(Some(Started { agent, handle }))
}

fn postgres_side(setup: &Setup, binaries: Binaries, standing: &Standing) -> execute::PostgresSide {
    execute::PostgresSide {
        sql: Arc::new(Sql::local(setup, "Patroni heartbeat")),
        binaries,
        data_seen: Default::default(),
        warned: BTreeSet::new(),
        role: standing.postgres.unwrap_or(StartRole::Standby),
    }
}

type Kept = (KeeperSide, Standing, Binaries);

/// Whatever has to be waited for: the keeper and the programs in its container, the API server.
async fn connect(
    config: &Config,
    first: &settings::Read,
    session: &str,
    peers: &PeerClient,
) -> Result<(Kept, Connected), String> {
    let kept = keeper_and_programs(config, &first.setup).await?;
    Ok((kept, connect_store(config, &first.settings, session, peers).await?))
}

/// Nothing was begun yet: a pod that is deleted need not wait for an API server that nobody can reach.
async fn told_to_end(signals: &mut mpsc::Receiver<Signal>) {
    while let Some(signal) = signals.recv().await {
        if matches!(signal, Signal::Terminate) {
            return info!("told to end before this member had begun");
        }
    }
    std::future::pending().await
}

/// Postgres refuses to run as root, and so does everything that writes its files.
fn refuse_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        return Err(
            "patroni must not run as root: run it as the user that owns the data directory (e.g. postgres)".to_owned()
        );
    }
    Ok(())
}

fn listen_to_signals(to: mpsc::Sender<Signal>) -> Result<(), String> {
    let kinds = [
        (SignalKind::hangup(), Signal::Reload),
        (SignalKind::terminate(), Signal::Terminate),
        (SignalKind::interrupt(), Signal::Terminate),
    ];
    for (kind, meaning) in kinds {
        let mut stream = signal(kind).map_err(|e| format!("listen to signals: {e}"))?;
        let to = to.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if to.try_send(meaning).is_err() {
                    warn!("a signal is left out: others are still waiting for the loop");
                }
            }
        });
    }
    Ok(())
}

/// The keeper, what it has kept, and the programs of Postgres. Ours are looked for before a keeper is started, so that a
/// member that cannot run leaves nothing behind.
async fn keeper_and_programs(config: &Config, setup: &Setup) -> Result<(KeeperSide, Standing, Binaries), String> {
    if keeper::named_socket(config).is_none() {
        let binaries = binaries::find(setup).await?;
        let (keeper, standing) = KeeperSide::open(config, setup).await?;
        return Ok((keeper, standing, binaries));
    }
    let (keeper, standing) = KeeperSide::open(config, setup).await?;
    let binaries = ask_for_binaries(&keeper, setup).await?;
    Ok((keeper, standing, binaries))
}

/// The version of the programs, which are in the keeper's container.
async fn ask_for_binaries(keeper: &KeeperSide, setup: &Setup) -> Result<Binaries, String> {
    let argv = binaries::version_command(setup);
    let run = keeper::Run { argv, ..keeper::Run::default() };
    let ended = keeper.runner().run(run, Duration::from_secs(10), |_| {}).await?;
    if ended.success {
        binaries::parse(setup, &ended.output)
    } else {
        Err(format!("postgres --version: {}", ended.summary()))
    }
}

type Connected = (Arc<dyn Dcs>, watch::Receiver<Arc<View>>, MyPod);

/// The store with its first complete view. An unreachable API server is waited for; a wrong configuration is not.
async fn connect_store(
    config: &Config,
    settings: &Settings,
    session: &str,
    peers: &PeerClient,
) -> Result<Connected, String> {
    let store = KubeStore::connect(settings::store(config, settings, session)).await.map_err(|e| e.to_string())?;
    store.follow();
    let store: Arc<dyn Dcs> = Arc::new(store);
    let mut view = store.view();
    while tokio::time::timeout(STORE_RETRY, view.wait_for(|v| v.link == StoreLink::Following)).await.is_err() {
        let why = view.borrow().warnings.join("; ");
        info!("waiting for the store{}{why}", if why.is_empty() { "" } else { ": " });
    }
    let pod = loop {
        match store.my_pod().await {
            Ok(pod) => break pod,
            Err(e) => error!("my own pod cannot be read (name must be the name of the pod): {e}"),
        }
        tokio::time::sleep(STORE_RETRY).await;
    };
    // A borrow held across the question would stop the watches that feed the channel.
    let seen = view.borrow().clone();
    unique_name(config, &seen, peers).await?;
    Ok((store, view, pod))
}

/// A living member under my name is somebody else's life (ha-decisions §2, SAFETY).
async fn unique_name(config: &Config, view: &View, peers: &PeerClient) -> Result<(), String> {
    let me = config.name.as_str().into();
    let Some(api_url) = view.cluster.members.get(&me).and_then(|m| m.api_url.as_deref()) else { return Ok(()) };
    if api_url == settings::api_url(config) {
        // I listen there myself: nobody else can.
        return Ok(());
    }
    if peers.anybody_home(api_url).await {
        return Err(format!(
            "Can't start; there is already a node named '{}' running (it answers at {api_url})",
            config.name
        ));
    }
    Ok(())
}

/// From the store; else as this data directory saw it last; else `bootstrap.dcs`. The second value is the store's text.
fn dynamic_document(view: &View, data_dir: &Path, config: &Config) -> (Value, String) {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    let stored = view.cluster.config.as_ref().and_then(|c| c.document.as_deref());
    if let Some((text, document)) = stored.and_then(|t| Some((t, parse(t)?))) {
        return (document, text.to_owned());
    }
    let cached = fs_err::read_to_string(data_dir.join(DYNAMIC_FILE)).ok();
    let document = cached
        .as_deref()
        .and_then(parse)
        .or_else(|| config.bootstrap.as_ref().map(|b| b.dcs.clone()).filter(Value::is_object));
    (document.unwrap_or_else(|| Value::Object(serde_json::Map::new())), String::new())
}

/// What an earlier life of this pod has left: a running Postgres, and maybe the lease.
fn earlier_life(local: &mut Local, store: &dyn Dcs, view: &View, standing: &Standing, settings: &Settings) {
    local.keeper = KeeperLink::Connected { permission: standing.permission };
    local.postgres.last_death = standing.last_death;
    let now = clock::boot();
    if let Some(role) = standing.postgres {
        info!("Postgres is running already: going on with it");
        observe::started(local, role, Upstream::Nobody, false, now);
        local.postgres.following = None;
    }
    let me = local.me.clone();
    let Some(leader) = view.cluster.leader.as_ref().filter(|l| l.named() == Some(&me)) else { return };
    match keeper::from_note(&standing.note) {
        Some((record, evidence)) if record == leader.lease => {
            info!("the lock is mine: the keeper has the note of the standing record");
            store.adopt(record.clone());
            let ttl = record.ttl_or(settings.ttl);
            local.own = Some(OwnLease { record, evidence, ttl });
            return;
        }
        Some(_) | None => {}
    }
    let this_pod = leader.valid_holder().is_some_and(|h| !local.uid.is_empty() && h.uid == local.uid);
    if this_pod && standing.postgres.is_none() {
        info!("the lock names this pod, and nothing of its earlier life is left");
        local.reclaim = Some(leader.lease.clone());
    } else {
        warn!("the lock names me, but nothing proves that it is mine: watching it like everybody else");
    }
}

type Door = (Handle, super::HandleEnds, watch::Receiver<Arc<super::Snapshot>>);

fn door(local: &Local, settings: &Settings, wishes: &settings::Wishes, api: &ApiSettings, peers: PeerClient) -> Door {
    let first = super::Snapshot {
        now: clock::now(),
        cluster: Arc::default(),
        local: Arc::new(local.clone()),
        settings: Arc::new(settings.clone()),
        scope: wishes.scope.clone(),
        version: crate::dcs::CONTRACT_VERSION,
        primary_word: wishes.primary_word,
        dcs_last_seen: 0,
        dcs_available: false,
        leader_until: None,
        system_id: None,
        configured_tags: wishes.configured_tags.clone(),
        effective_tags: Arc::new(wishes.published_tags.clone()),
        pending_restart_reason: Default::default(),
        scheduled_restart: None,
        last_loop: clock::boot(),
        next_loop: clock::boot(),
        reason: "starting".to_owned(),
        fence_lost: false,
    };
    let (handle, ends) = channels(first, api.clone(), peers);
    let snapshots = handle.watch();
    (handle, ends, snapshots)
}

impl Agent {
    /// Serves the shared status query beside the loop.
    fn serve_status(&mut self, snapshots: watch::Receiver<Arc<super::Snapshot>>, setups: watch::Receiver<Arc<Setup>>) {
        let (_, unused) = mpsc::channel(1);
        let asked = std::mem::replace(&mut self.ends.status_ask, unused);
        tokio::spawn(status::serve(asked, self.ends.status.clone(), snapshots, setups));
    }
}

/// Installs the log and the TLS provider: before anything else speaks.
///
/// # Errors
/// One line; the log goes to standard error then.
pub fn prepare(config: &Config) -> Result<(), String> {
    // Installed twice only in tests; the first stays.
    drop(rustls::crypto::ring::default_provider().install_default());
    telemetry::configure(settings::log(config))
}
