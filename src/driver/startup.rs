//! From a configuration to a running member: keeper, store, unique name, dynamic configuration.
//!
//! Nothing here decides about Postgres: what an earlier life of this pod has left is told to the machine as its first
//! inputs.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::keeper::{self, KeeperSide};
use super::peers::PeerClient;
use super::settings::{self, Source};
use super::trials::Trials;
use super::watchdog::Watchdog;
use super::{ANSWERS_MAX, Driver, clock, configure, shown, status, telemetry};
use crate::config::{Config, Dynamic};
use crate::dcs::kube::KubeStore;
use crate::dcs::{Dcs, MyPod};
use crate::door::{ApiSettings, Handle, Outside, channels};
use crate::member::{Identity, InForce, Input, Member, News, Signal, Standing};
use crate::model::{BootInstant, Periods, StoreLink, View};
use crate::postgres::Setup;
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::sql::Sql;

/// The dynamic configuration as last seen, in the data directory.
pub const DYNAMIC_FILE: &str = "patroni.dynamic.json";

/// Between two tries to reach the store at start.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Signals that wait for the loop.
const SIGNALS_MAX: usize = 8;

/// A member that is ready to run, and the REST API's door to it.
pub struct Started {
    /// The loop.
    pub driver: Driver,
    /// For the API server.
    pub handle: Handle,
}

/// Connects everything. `None`: asked to end (SIGTERM) while something was still waited for.
///
/// # Errors
/// One line (a configuration may have several): the process exits with 1.
pub async fn start(source: Source, api: Arc<ApiSettings>, config: Config) -> Result<Option<Started>, String> {
    refuse_root()?;
    let sidecar_began = clock::boot();
    let (signals_tx, mut signals) = mpsc::channel(SIGNALS_MAX);
    listen_to_signals(signals_tx)?;
    let session = format!("{:016x}", rand::random::<u64>());
    let peers = PeerClient::new(&settings::peers(&config))?;
    let first = settings::read(&config, &Dynamic::default(), &source.home, settings::Pod::default(), 0);
    let connecting = connect(&config, &first, (&session, sidecar_began), &peers);
    let (kept, (store, view, pod)) = tokio::select! {
        connected = connecting => connected?,
        () = told_to_end(&mut signals) => return Ok(None),
    };
    let Kept { keeper, standing, binaries } = kept;
    // Cloned out of the channel: what the store notes in between changes the view, and would wait for this borrow.
    let seen = view.borrow().clone();
    let (document, text) = dynamic_document(&seen, &first.setup.data_dir, &config);
    let (dynamic, warnings) = Dynamic::parse(&document);
    let mine = settings::Pod { uid: &pod.uid, site: pod.site.as_deref() };
    let read = settings::read(&config, &dynamic, &source.home, mine, binaries.major);
    let s = &read.wishes.settings;
    store.set_periods(Periods { ttl: s.ttl, loop_wait: s.loop_wait, retry_timeout: s.retry_timeout });
    for warning in read.warnings.iter().chain(&warnings) {
        warn!("{warning}");
    }
    if let Some(life) = keeper.life(&config) {
        store.set_life(life);
    }
    let in_force = configure::in_force(&read.wishes, &read.setup, &binaries, keeper.separate_container(), false);
    let in_force = InForce { document: text.as_str().into(), to_publish: document.to_string().into(), ..in_force };
    let who = Identity { name: config.name.as_str().into(), uid: pod.uid, session };
    let member = Member::new(who, Arc::new(in_force), clock::now());
    let setup = Arc::new(read.setup);
    let (setups, setups_rx) = watch::channel(setup.clone());
    let (answer, answers) = mpsc::channel(ANSWERS_MAX);
    let timer = clock::BootTimer::new().map_err(|e| format!("open a timer: {e}"))?;
    let outside = Outside { now: clock::now, peers: Arc::new(peers.clone()) };
    let (handle, mut ends) = channels(shown(member.snapshot(), &read.wishes, BTreeMap::new()), (*api).clone(), outside);
    let (_, unused) = mpsc::channel(1);
    let asked = std::mem::replace(&mut ends.status_ask, unused);
    tokio::spawn(status::serve(asked, ends.status.clone(), handle.watch(), setups_rx));
    let driver = Driver {
        member,
        store,
        view,
        keeper,
        peers,
        source,
        trials: Trials::new(),
        watchdog: Watchdog::start()?,
        sql: Arc::new(Sql::local(&setup, "Patroni heartbeat")),
        setup,
        setups,
        wishes: Arc::new(read.wishes),
        dynamic: document,
        dynamic_text: text.into(),
        binaries,
        ends,
        signals,
        answers,
        answer,
        next: VecDeque::from([Input::Keeper(News::Met(standing)), Input::View(seen)]),
        timer,
        wake_at: clock::boot(),
        tickets: BTreeMap::new(),
        last_ticket: 0,
        running: BTreeMap::new(),
    };
    Ok(Some(Started { driver, handle }))
}

/// The keeper with what it has kept, and the programs of Postgres.
struct Kept {
    keeper: KeeperSide,
    standing: Standing,
    binaries: Binaries,
}

/// Whatever has to be waited for: the keeper and the programs in its container, the API server. How the server is reached
/// is looked up first: a keeper that was started for nothing lives for a while and holds the terminal. `life`: the name of
/// this process's life, and when it began.
async fn connect(
    config: &Config,
    first: &settings::Read,
    life: (&str, BootInstant),
    peers: &PeerClient,
) -> Result<(Kept, Connected), String> {
    let (session, began) = life;
    let options = settings::store(config, &first.wishes.settings, session);
    let store = KubeStore::connect(options).await.map_err(|e| e.to_string())?;
    let kept = keeper_and_programs(config, &first.setup, began).await?;
    match connect_store(config, store, peers).await {
        Ok(connected) => Ok((kept, connected)),
        Err(why) => {
            kept.keeper.shut_down().await;
            Err(why)
        }
    }
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
async fn keeper_and_programs(config: &Config, setup: &Setup, began: BootInstant) -> Result<Kept, String> {
    if keeper::named_socket(config).is_none() {
        let binaries = binaries::find(setup).await?;
        let (keeper, standing) = KeeperSide::open(config, setup, began).await?;
        return Ok(Kept { keeper, standing, binaries });
    }
    let (keeper, standing) = KeeperSide::open(config, setup, began).await?;
    let binaries = ask_for_binaries(&keeper, setup).await?;
    Ok(Kept { keeper, standing, binaries })
}

/// The version of the programs, which are in the keeper's container.
async fn ask_for_binaries(keeper: &KeeperSide, setup: &Setup) -> Result<Binaries, String> {
    let argv = binaries::version_command(setup);
    let run = keeper::Run { argv, ..keeper::Run::default() };
    let ended = keeper.link().run(run, Duration::from_secs(10), |_| {}).await?;
    if ended.success {
        binaries::parse(setup, &ended.output)
    } else {
        Err(format!("postgres --version: {}", ended.summary()))
    }
}

type Connected = (Arc<dyn Dcs>, watch::Receiver<Arc<View>>, MyPod);

/// The store with its first complete view. An unreachable API server is waited for; a wrong configuration is not.
async fn connect_store(config: &Config, store: KubeStore, peers: &PeerClient) -> Result<Connected, String> {
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

/// A living member under my name is somebody else's life.
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

/// Installs the log and the TLS provider: before anything else speaks.
///
/// # Errors
/// One line; the log goes to standard error then.
pub fn prepare(config: &Config) -> Result<(), String> {
    prepare_tls();
    telemetry::configure(settings::log(config))
}

/// Installs the TLS provider.
pub fn prepare_tls() {
    // Installed twice only in tests; the first stays.
    drop(rustls::crypto::ring::default_provider().install_default());
}
