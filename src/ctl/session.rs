//! What every command needs: the configuration, the store of one cluster, the REST client, the terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ArgMatches;
use http::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::dates;
use super::error::{CtlError, Result};
use super::members::{self, MemberTable, Positions, Show};
use super::output::{self, Format};
use super::prompts::Terminal;
use super::rest::{Answer, Rest, RestOptions};
use crate::config::{self, Config, ConfigError};
use crate::dcs::kube::KubeStore;
use crate::dcs::options::{Access, Mode, Port, StoreOptions};
use crate::model::{BootInstant, Cluster, Lsn, Member, MemberName, WallTime};

/// `list` does not wait longer for a member's positions; the store's are good enough then.
const POSITIONS_TIMEOUT: Duration = Duration::from_secs(1);
const DCS_SCHEMES: [&str; 5] = ["zookeeper", "exhibitor", "consul", "etcd", "etcd3"];

/// A member that lives answers a question within this time.
const QUICK: std::time::Duration = std::time::Duration::from_secs(5);

/// The state of one run.
pub struct Session<'t> {
    /// The configuration.
    pub config: Config,
    /// For calls to members.
    pub rest: Rest,
    /// Where to talk to the person.
    pub terminal: &'t mut dyn Terminal,
}

impl<'t> Session<'t> {
    /// Reads the configuration the global options name and prepares the REST client.
    ///
    /// # Errors
    /// Unreadable configuration, no `kubernetes` section, unusable TLS files.
    pub fn open(globals: &ArgMatches, terminal: &'t mut dyn Terminal) -> Result<Session<'t>> {
        if let Some(url) = globals.get_one::<String>("dcs-url").filter(|u| !u.is_empty()) {
            return Err(refuse_dcs_url(url));
        }
        let config = load_config(globals.get_one::<String>("config-file").filter(|f| !f.is_empty()))?;
        let rest = Rest::new(&rest_options(&config, globals.get_flag("insecure")))?;
        Ok(Session { config, rest, terminal })
    }

    /// The cluster a command speaks of: the argument, else `scope`.
    ///
    /// # Errors
    /// When there is neither.
    pub fn scope(&self, args: &ArgMatches) -> Result<String> {
        let named = args.get_one::<String>("CLUSTER_NAME").cloned();
        named.or_else(|| Some(self.config.scope.clone()).filter(|s| !s.is_empty())).ok_or_else(|| {
            CtlError::plain("No cluster name was given: name it on the command line or set scope (PATRONI_SCOPE)")
        })
    }

    /// The store of `scope`, nothing read yet.
    ///
    /// # Errors
    /// No way to the API server.
    pub async fn store(&self, scope: &str) -> Result<KubeStore> {
        KubeStore::connect(store_options(&self.config, scope)).await.map_err(|e| CtlError::plain(e.to_string()))
    }

    /// Everything the store knows.
    ///
    /// # Errors
    /// The API server's refusal or silence, in one line.
    pub async fn read(&self, store: &KubeStore) -> Result<Arc<Cluster>> {
        let view = store.read_cluster_once().await.map_err(|e| CtlError::plain(e.to_string()))?;
        Ok(view.cluster.clone())
    }

    /// Text and a newline to stdout.
    pub fn say(&mut self, text: &str) {
        self.terminal.out(&format!("{text}\n"));
    }

    /// A log line on stderr.
    pub fn warn(&mut self, text: &str) {
        let now = dates::now();
        self.terminal.err(&format!("{} - WARNING - {text}", dates::stamp_seconds(&now)));
    }

    /// One request to a member.
    ///
    /// # Errors
    /// No address, no connection, no answer.
    pub async fn call(
        &self,
        method: Method,
        member: &Member,
        endpoint: &str,
        body: Option<&Value>,
    ) -> std::result::Result<Answer, String> {
        let url = member.api_url.as_deref().ok_or("the member has not published the address of its REST API")?;
        if method == Method::GET {
            return self.rest.call_within(QUICK, method, url, endpoint, body).await;
        }
        // What is asked for may take long; a member that does not even say that it lives is not waited for.
        let lives = self.rest.call_within(QUICK, Method::GET, url, "liveness", None).await;
        lives.map_err(|why| why.replacen("/liveness", &format!("/{endpoint}"), 1))?;
        self.rest.call(method, url, endpoint, body).await
    }

    /// The member table as operations print it.
    pub async fn print_members(&mut self, cluster: &Cluster, scope: &str) {
        let show = Show { scope, extended: false, format: Format::Pretty };
        let table = self.member_table(cluster, &show).await;
        self.terminal.out(&text_of(&table, Format::Pretty));
    }

    /// The member table with positions fresh from the members.
    pub async fn member_table(&self, cluster: &Cluster, show: &Show<'_>) -> MemberTable {
        members::table(cluster, &self.positions(cluster).await, show)
    }

    async fn positions(&self, cluster: &Cluster) -> BTreeMap<MemberName, Positions> {
        let asked = cluster.members.iter().map(|(name, member)| async move {
            let url = member.api_url.as_deref()?;
            let call = self.rest.call_within(POSITIONS_TIMEOUT, Method::GET, url, "patroni", None);
            let answer = call.await.ok().filter(|a| a.status == 200)?;
            let body: Value = serde_json::from_str(&answer.text).ok()?;
            let xlog = if body["xlog"].is_object() { &body["xlog"] } else { &body["wal"] };
            let lsn = |key: &str| xlog[key].as_u64().map(Lsn);
            let found = Positions {
                location: lsn("location"),
                received: lsn("received_location"),
                replayed: lsn("replayed_location"),
            };
            Some((name.clone(), found))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }
}

/// A table or list of members as text, service lines included.
pub fn text_of(table: &MemberTable, format: Format) -> String {
    let mut out = output::render(format, Some(&table.title), &table.columns, &table.rows, true);
    if format.is_table() {
        table.service.iter().for_each(|line| out.push_str(&format!("{line}\n")));
    }
    out
}

fn refuse_dcs_url(url: &str) -> CtlError {
    match url.split_once("://") {
        Some((scheme, _)) if !DCS_SCHEMES.contains(&scheme) => CtlError::plain(format!("Unknown dcs scheme: {scheme}")),
        Some(_) | None => CtlError::plain(format!(
            "--dcs-url {url} is not available in this version: clusters are kept in Kubernetes only, drop the option (and DCS_URL)"
        )),
    }
}

fn load_config(named: Option<&String>) -> Result<Config> {
    let path = named.map_or_else(default_path, |p| Some(PathBuf::from(p)));
    let not_there = |shown: &Path| {
        CtlError::plain(format!(
            "Provided config file {} not existing or no read rights. Check the -c/--config-file parameter",
            shown.display()
        ))
    };
    let sources = match &path {
        None => Vec::new(),
        Some(path) => match config::files::read(path) {
            Ok(sources) if sources.is_empty() && named.is_some() => return Err(not_there(path)),
            Ok(sources) => sources,
            Err(_) if named.is_some() => return Err(not_there(path)),
            Err(_) => Vec::new(),
        },
    };
    let env: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    match config::load(&sources, &env) {
        Ok(loaded) => Ok(loaded.config),
        Err(refusal) => Err(CtlError::plain(match &refusal.error {
            ConfigError::Empty | ConfigError::NoStore(None) => {
                let known = "Can not find suitable configuration of distributed configuration store\nAvailable implementations: kubernetes";
                refusal.warnings.iter().fold(known.to_owned(), |text, warning| format!("{text}\n{warning}"))
            }
            ConfigError::Yaml(_)
            | ConfigError::NotAMapping(_)
            | ConfigError::NoStore(Some(_))
            | ConfigError::Invalid(_) => refusal.to_string(),
        })),
    }
}

/// `$XDG_CONFIG_HOME/patroni/patronictl.yaml`.
fn default_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|h| h.join(".config")))?;
    Some(base.join("patroni").join("patronictl.yaml"))
}

fn rest_options(config: &Config, insecure: bool) -> RestOptions {
    let user = config.ctl.authentication.as_ref().or(config.restapi.authentication.as_ref());
    RestOptions {
        authentication: user.map(|a| (a.username.clone(), a.password.expose().to_owned())),
        insecure: insecure || config.ctl.insecure,
        cacert: config.ctl.cacert.clone().or_else(|| config.restapi.cafile.clone()),
        certfile: config.ctl.certfile.clone(),
        keyfile: config.ctl.keyfile.clone(),
        keyfile_password: config.ctl.keyfile_password.as_ref().map(|p| p.expose().to_owned()),
    }
}

fn store_options(config: &Config, scope: &str) -> StoreOptions {
    let k = &config.kubernetes;
    let mut o = StoreOptions::new(scope, None, access(&k.context), boot, wall);
    o.mode = if k.use_endpoints { Mode::Endpoints } else { Mode::ConfigMaps };
    o.namespace = k.namespace.clone();
    o.labels = k.labels.clone();
    o.scope_label = k.scope_label.clone();
    o.role_label = k.role_label.clone();
    o.ports =
        k.ports.iter().map(|p| Port { port: p.port, name: p.name.clone(), protocol: p.protocol.clone() }).collect();
    o.cacert = k.cacert.as_ref().map(PathBuf::from);
    o.retriable_codes = k.retriable_http_codes.iter().copied().collect::<BTreeSet<u16>>();
    o
}

/// The service account in a pod; elsewhere the kubeconfig with the named context, an empty name being the current one.
fn access(context: &str) -> Access {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let file = set("KUBECONFIG").or_else(|| set("HOME").map(|h| h.join(".kube").join("config")));
    match file {
        Some(file) if context.is_empty() && set("KUBERNETES_SERVICE_HOST").is_none() => {
            Access::Kubeconfig { file, context: None }
        }
        Some(_) | None => Access::Infer { context: context.to_owned() },
    }
}

fn boot() -> BootInstant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootInstant::from_nanos(t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs())
}

fn wall() -> WallTime {
    WallTime(Timestamp::now().as_microsecond())
}
