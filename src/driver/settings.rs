//! Configuration into the values that the rest of the process is made of: `Settings` for decisions, `Setup` for Postgres,
//! [`Wishes`] for the shell itself.
//!
//! Read at start and on every reload; the dynamic document may change at any time. What this version cannot do is put in
//! words into `Settings::unsupported`: such a member runs as a standby and never leads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::peers::PeerTls;
use super::slots;
use super::telemetry::{self, LogSettings};
use super::watchdog::Place;
use crate::config::{self, Config, Dynamic, EffectivePostgres, PgAuth, StandbyCluster, SynchronousMode, merge, tags};
use crate::dcs::options::{Access, Mode, Port, StoreOptions};
use crate::door::ApiSettings;
use crate::model::{Commits, FailoverSite, MemberName, Remote, Settings, Synchronous, Tags, time_scale};
use crate::postgres::{self, Credentials, CustomMethod, ReplicaMethod, Setup};

/// Where the local configuration comes from: read again on reload.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// File or directory; `None`: environment only.
    pub path: Option<PathBuf>,
    /// `PATRONI_*`, as it was at start.
    pub environment: BTreeMap<String, String>,
    /// Home directory, for the default of `postgresql.pgpass`.
    pub home: PathBuf,
}

impl Source {
    /// Reads and checks the local configuration.
    ///
    /// # Errors
    /// What is wrong, where, what to do; may be several lines.
    pub fn load(&self) -> Result<config::Loaded, String> {
        let texts = match &self.path {
            Some(path) => config::files::read(path)?,
            None => Vec::new(),
        };
        // A file that is not there leaves the environment; where that is not enough, it is the reason.
        let missing = self.path.as_ref().filter(|_| texts.is_empty());
        let loaded = config::load(&texts, &self.environment).map_err(|e| match missing {
            Some(path) => format!("{}: no configuration file there: {e}", path.display()),
            None => e.to_string(),
        })?;
        loaded.for_daemon().map_err(|e| e.to_string())
    }
}

/// What the driver and the machine need of the configuration.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// For decisions.
    pub settings: Arc<Settings>,
    /// The local configuration in force.
    pub config: Config,
    /// The dynamic configuration in force.
    pub dynamic: Dynamic,
    /// Cluster name.
    pub scope: Arc<str>,
    /// `primary` or `master`.
    pub primary_word: &'static str,
    /// `api_url`.
    pub api_url: String,
    /// `proxy_url`, if configured.
    pub proxy_url: Option<String>,
    /// Callback → command.
    pub callbacks: BTreeMap<String, String>,
    /// `postgresql.pre_promote`.
    pub pre_promote: Option<String>,
    /// `postgresql.before_stop`.
    pub before_stop: Option<String>,
    /// Tags as configured.
    pub configured_tags: Arc<Map<String, Value>>,
    /// Tags as published.
    pub published_tags: Arc<Map<String, Value>>,
    /// The zone of this pod's node, as Kubernetes says.
    pub pod_site: Option<String>,
}

impl Wishes {
    /// Which configuration a parameter of Postgres comes from.
    pub fn origin_of(&self, name: &str) -> &'static str {
        let has = |key: &str| {
            let map = self.config.postgresql.raw.get(key).and_then(Value::as_object);
            map.into_iter().flatten().any(|(given, value)| given.eq_ignore_ascii_case(name) && !value.is_null())
        };
        match !config::is_controlled(name) && (has("parameters") || has("recovery_conf")) {
            true => "the local configuration",
            false => "the dynamic configuration",
        }
    }
}

/// Everything that follows from one reading of both documents.
pub struct Read {
    /// For Postgres.
    pub setup: Setup,
    /// For everything else.
    pub wishes: Wishes,
    /// One line each.
    pub warnings: Vec<String>,
}

/// What is known of the pod this process runs in; nothing before the store was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pod<'a> {
    /// UID.
    pub uid: &'a str,
    /// The zone of its node, where Kubernetes copies that to the pod.
    pub site: Option<&'a str>,
}

/// Puts the local configuration and the dynamic one together. `major`: of the installed Postgres.
pub fn read(config: &Config, dynamic: &Dynamic, home: &Path, pod: Pod<'_>, major: u32) -> Read {
    let (effective, mut warnings) = config::effective_postgresql(config, dynamic, major);
    let mut settings = settings(config, dynamic, &effective, &mut warnings);
    settings.site = config.site.clone().or_else(|| pod.site.map(str::to_owned));
    let mut setup = setup(config, &effective, home, pod.uid);
    setup.standby_of = dynamic.standby_cluster.as_ref().map(|section| source(section, &effective));
    let mut wishes = wishes(config, dynamic, &effective, settings);
    wishes.pod_site = pod.site.map(str::to_owned);
    Read { setup, wishes, warnings }
}

fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

/// The three periods of the lease shrink in builds with `test-time-scale`.
fn lease_seconds(value: i64) -> Duration {
    seconds(value).mul_f64(time_scale())
}

fn settings(config: &Config, dynamic: &Dynamic, effective: &EffectivePostgres, warnings: &mut Vec<String>) -> Settings {
    let margin = config.watchdog.safety_margin;
    let (permanent_slots, skipped) = slots::permanent(&dynamic.slots, warnings);
    Settings {
        ttl: lease_seconds(dynamic.ttl),
        loop_wait: lease_seconds(dynamic.loop_wait),
        retry_timeout: lease_seconds(dynamic.retry_timeout),
        maximum_lag_on_failover: u64::try_from(dynamic.maximum_lag_on_failover).unwrap_or(1_048_576),
        check_timeline: dynamic.check_timeline,
        pause: dynamic.pause,
        failsafe: dynamic.failsafe_mode,
        synchronous: synchronous(dynamic),
        standby_of: dynamic.standby_cluster.as_ref().map(|s| remote(s, &config.name, warnings)),
        primary_start_timeout: seconds(dynamic.primary_start_timeout),
        site: None,
        failover_site: failover_site(dynamic, warnings),
        primary_race_backoff: seconds(dynamic.primary_race_backoff),
        max_timelines_history: usize::try_from(dynamic.max_timelines_history).unwrap_or(0),
        member_slots_ttl: seconds(dynamic.member_slots_ttl),
        use_slots: effective.use_slots,
        permanent_slots,
        ignored_slots: slots::ignored(&dynamic.ignore_slots, warnings).into_iter().chain(skipped).collect(),
        tags: effective_tags(&config.tags),
        may_bootstrap: config.bootstrap.is_some(),
        use_pg_rewind: effective.use_pg_rewind,
        remove_on_rewind_failure: effective.remove_data_directory_on_rewind_failure,
        remove_on_diverged_timelines: effective.remove_data_directory_on_diverged_timelines,
        proofs: config.kubernetes.proof_of_death.iter().copied().collect::<BTreeSet<_>>(),
        watchdog: config.watchdog.mode,
        watchdog_margin: (margin >= 0).then(|| lease_seconds(margin)),
        pg_ctl_timeout: Duration::from_secs(effective.pg_ctl_timeout),
        unsupported: unsupported(dynamic),
    }
}

/// The watchdog device.
pub fn watchdog(config: &Config) -> Place {
    Place { path: config.watchdog.device.clone().into(), testing: config.watchdog.testing }
}

/// `standby_cluster` as decisions see it.
fn remote(section: &StandbyCluster, name: &str, warnings: &mut Vec<String>) -> Remote {
    let conn_url = remote_url(section).unwrap_or_else(|why| {
        warnings.push(format!("{why}; streaming from nobody"));
        None
    });
    let own = || MemberName(name.to_owned()).slot_name();
    let slot = section.primary_slot_name.as_ref();
    Remote { conn_url, slot: slot.map(|named| named.as_ref().map_or_else(own, |n| MemberName(n.clone()).slot_name())) }
}

/// Where the other cluster is, as one address.
fn remote_url(section: &StandbyCluster) -> Result<Option<String>, String> {
    let place = |(host, port): &(String, u16)| match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let places: Vec<String> = section.places()?.iter().map(place).collect();
    Ok((!places.is_empty()).then(|| format!("postgres://{}", places.join(","))))
}

/// `standby_cluster` as Postgres is told of it.
fn source(section: &StandbyCluster, effective: &EffectivePostgres) -> postgres::Remote {
    let filled = |pairs: &[(&str, &Option<String>)]| {
        pairs.iter().filter_map(|(key, value)| Some(((*key).to_owned(), (*value).clone()?))).collect()
    };
    let names = section.create_replica_methods.as_ref();
    postgres::Remote {
        conn_url: remote_url(section).ok().flatten(),
        methods: names.map(|names| names.iter().map(|name| replica_method(name, effective)).collect()),
        recovery: filled(&[
            ("restore_command", &section.restore_command),
            ("archive_cleanup_command", &section.archive_cleanup_command),
        ]),
        of_leader: filled(&[("recovery_min_apply_delay", &section.recovery_min_apply_delay)]),
    }
}

fn synchronous(dynamic: &Dynamic) -> Synchronous {
    Synchronous {
        mode: match dynamic.synchronous_mode {
            SynchronousMode::Off => Commits::Asynchronous,
            SynchronousMode::On => Commits::Synchronous,
            SynchronousMode::Quorum => Commits::Quorum,
        },
        strict: dynamic.synchronous_mode_strict,
        count: usize::try_from(dynamic.synchronous_node_count).unwrap_or(1).max(1),
        maximum_lag: u64::try_from(dynamic.maximum_lag_on_syncnode).ok().filter(|bytes| *bytes > 0),
    }
}

/// What the configuration asks for and this version cannot promise.
fn unsupported(dynamic: &Dynamic) -> Vec<String> {
    config::unsupported(dynamic)
        .into_iter()
        .map(|wish| format!("{wish}; this member takes no lock until it is removed"))
        .collect()
}

fn failover_site(dynamic: &Dynamic, warnings: &mut Vec<String>) -> FailoverSite {
    match dynamic.failover_site.as_deref() {
        None => FailoverSite::Any,
        Some("prefer") => FailoverSite::Prefer,
        Some("require") => FailoverSite::Require,
        Some(other) => {
            warnings.push(format!("failover_site: {other} is neither prefer nor require; using any site"));
            FailoverSite::Any
        }
    }
}

fn effective_tags(tags: &BTreeMap<String, Value>) -> Tags {
    let set = |key: &str| tags.get(key).is_some_and(tags::truthy);
    let nofailover = tags::nofailover(tags);
    let nostream = tags.get("nostream").map(merge::text).and_then(|t| config::numbers::parse_bool(&t)).unwrap_or(false);
    let from = tags.get("replicatefrom").filter(|v| tags::truthy(v)).map(merge::text);
    Tags {
        nofailover,
        failover_priority: if nofailover { 0 } else { tags::priority(tags, "nofailover", "failover_priority") },
        clonefrom: set("clonefrom"),
        noloadbalance: set("noloadbalance"),
        nosync: tags::priority(tags, "nosync", "sync_priority") <= 0,
        sync_priority: tags::priority(tags, "nosync", "sync_priority").max(0),
        nostream,
        replicatefrom: from.map(MemberName),
    }
}

/// A member that takes no lock says so in the words every member knows: else the others would give way to it in an
/// election, and a leader that promises synchronous commits would count on it as the one to take over.
fn published_tags(config: &Config, settings: &Settings) -> Map<String, Value> {
    let mut published = tags::published(&config.tags);
    if !settings.unsupported.is_empty() {
        published.extend(["nofailover", "nosync"].map(|tag| (tag.to_owned(), Value::Bool(true))));
    }
    object(published)
}

fn object(map: BTreeMap<String, Value>) -> Map<String, Value> {
    map.into_iter().collect()
}

/// What this member publishes as the address of its REST API.
pub fn api_url(config: &Config) -> String {
    let scheme = if config.restapi.certfile.is_some() { "https" } else { "http" };
    format!("{scheme}://{}/patroni", config.restapi.connect_address)
}

fn wishes(config: &Config, dynamic: &Dynamic, effective: &EffectivePostgres, settings: Settings) -> Wishes {
    let c = &effective.callbacks;
    let named = [
        ("on_reload", &c.on_reload),
        ("on_restart", &c.on_restart),
        ("on_role_change", &c.on_role_change),
        ("on_start", &c.on_start),
        ("on_stop", &c.on_stop),
    ];
    let callbacks = named.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v.clone()?))).collect();
    Wishes {
        scope: config.scope.as_str().into(),
        primary_word: if config.primary_role_name == "master" { "master" } else { "primary" },
        api_url: api_url(config),
        proxy_url: config.postgresql.proxy_address.as_ref().map(|a| format!("postgres://{a}/{}", effective.database)),
        callbacks,
        pre_promote: effective.pre_promote.clone(),
        before_stop: effective.before_stop.clone(),
        configured_tags: Arc::new(object(config.tags.clone())),
        published_tags: Arc::new(published_tags(config, &settings)),
        pod_site: None,
        settings: Arc::new(settings),
        config: config.clone(),
        dynamic: dynamic.clone(),
    }
}

fn credentials(auth: &PgAuth) -> Credentials {
    let mut options = auth.options.clone();
    if let Some(password) = &auth.sslpassword {
        options.insert("sslpassword".to_owned(), password.expose().to_owned());
    }
    Credentials {
        username: auth.username.clone(),
        password: auth.password.as_ref().map(|p| p.expose().to_owned()),
        options,
    }
}

/// Host and port of `HOST:PORT`; brackets around an IPv6 address are taken off.
fn host_port(text: &str, default_port: u16) -> (String, u16) {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')) => {
            (host, port.parse().unwrap_or(default_port))
        }
        Some(_) | None => (text, default_port),
    };
    (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port)
}

fn setup(config: &Config, effective: &EffectivePostgres, home: &Path, pod_uid: &str) -> Setup {
    let pg = &config.postgresql;
    let (listen_addresses, port) = config::split_listen(&pg.listen);
    let port: u16 = port.parse().unwrap_or(5432);
    let first = listen_addresses.split(',').next().unwrap_or("").trim();
    let local = if matches!(first, "" | "*" | "0.0.0.0" | "::") { "localhost" } else { first };
    let (connect_host, connect_port) = match &pg.connect_address {
        Some(address) => host_port(address, port),
        None => (local.to_owned(), port),
    };
    let controlled = effective
        .controlled
        .iter()
        .chain(effective.parameters.iter().filter(|(name, _)| config::is_controlled(name)))
        .filter(|(name, _)| !matches!(name.as_str(), "listen_addresses" | "port" | "cluster_name"));
    let bootstrap = config.bootstrap.as_ref();
    Setup {
        pod_uid: pod_uid.to_owned(),
        bin_dir: (!effective.bin_dir.is_empty()).then(|| PathBuf::from(&effective.bin_dir)),
        bin_names: effective.bin_name.clone(),
        config_dir: PathBuf::from(&pg.config_dir),
        config_base_name: effective.config_base_name.clone(),
        custom_conf: effective.custom_conf.clone(),
        listen_addresses: listen_addresses.clone(),
        connect_host,
        connect_port,
        database: effective.database.clone(),
        superuser: credentials(&pg.authentication.superuser),
        replication: credentials(&pg.authentication.replication),
        rewind: pg.authentication.rewind.as_ref().map(credentials),
        pgpass: pg.pgpass.as_ref().map_or_else(|| home.join("pgpass"), PathBuf::from),
        parameters: effective
            .parameters
            .iter()
            .filter(|(name, _)| !config::is_controlled(name))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        controlled: controlled.map(|(k, v)| (k.clone(), v.clone())).collect(),
        recovery_conf: effective.recovery_conf.clone(),
        pg_hba: effective.pg_hba.clone(),
        pg_ident: effective.pg_ident.clone(),
        use_unix_socket: effective.use_unix_socket,
        use_slots: effective.use_slots,
        krbsrvname: effective.krbsrvname.clone(),
        initdb: bootstrap.map(|b| config::options(Some(&b.initdb))).unwrap_or_default(),
        bootstrap_method: bootstrap.and_then(bootstrap_method),
        post_bootstrap: bootstrap.and_then(|b| b.post_bootstrap.clone()),
        bootstrap_pg_hba: bootstrap.map(|b| b.pg_hba.clone()).unwrap_or_default(),
        replica_methods: effective.create_replica_methods.iter().map(|name| replica_method(name, effective)).collect(),
        basebackup: effective.basebackup.clone(),
        ..Setup::new(&config.name, &config.scope, &pg.data_dir, port)
    }
}

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).is_some_and(|v| config::numbers::parse_bool(&merge::text(v)).unwrap_or(false))
}

fn extra(map: &Map<String, Value>, without: &[&str]) -> BTreeMap<String, String> {
    let kept = map.iter().filter(|(k, v)| !without.contains(&k.as_str()) && !v.is_null());
    kept.map(|(k, v)| (k.clone(), merge::text(v))).collect()
}

fn bootstrap_method(bootstrap: &config::Bootstrap) -> Option<CustomMethod> {
    let section = bootstrap.methods.get(&bootstrap.method)?;
    let command = section.get("command").map(merge::text).filter(|c| !c.is_empty())?;
    let recovery = section.get("recovery_conf").and_then(Value::as_object);
    const OURS: [&str; 6] =
        ["command", "no_params", "keep_existing_recovery_conf", "recovery_conf", "scope", "datadir"];
    Some(CustomMethod {
        name: bootstrap.method.clone(),
        command,
        no_params: flag(section, "no_params"),
        keep_existing_recovery_conf: flag(section, "keep_existing_recovery_conf"),
        recovery_conf: recovery.map(|r| extra(r, &[])).unwrap_or_default(),
        extra: extra(section, &OURS),
    })
}

fn replica_method(name: &str, effective: &EffectivePostgres) -> ReplicaMethod {
    let empty = Map::new();
    let section = match effective.methods.get(name) {
        None if name == "basebackup" => return ReplicaMethod::Basebackup,
        found => found.unwrap_or(&empty),
    };
    ReplicaMethod::Custom {
        name: name.to_owned(),
        command: section.get("command").map(merge::text).filter(|c| !c.is_empty()).unwrap_or_else(|| name.to_owned()),
        no_params: flag(section, "no_params"),
        no_leader: flag(section, "no_leader") || flag(section, "no_master"),
        keep_data: flag(section, "keep_data"),
        extra: extra(section, &["command"]),
    }
}

/// The store this configuration names.
pub fn store(config: &Config, settings: &Settings, session: &str) -> StoreOptions {
    let k = &config.kubernetes;
    let ports = k.ports.iter().map(|p| Port { port: p.port, name: p.name.clone(), protocol: p.protocol.clone() });
    let access = Access::Infer { context: k.context.clone() };
    StoreOptions {
        mode: if k.use_endpoints { Mode::Endpoints } else { Mode::ConfigMaps },
        namespace: k.namespace.clone(),
        labels: k.labels.clone(),
        scope_label: k.scope_label.clone(),
        role_label: k.role_label.clone(),
        leader_label_value: k.leader_label_value.clone(),
        follower_label_value: k.follower_label_value.clone(),
        standby_leader_label_value: k.standby_leader_label_value.clone(),
        tmp_role_label: k.tmp_role_label.clone(),
        bootstrap_labels: k.bootstrap_labels.clone(),
        primary_role_name: config.primary_role_name.clone(),
        pod_ip: k.pod_ip.clone(),
        ports: ports.collect(),
        cacert: k.cacert.as_ref().map(PathBuf::from),
        bypass_api_service: k.bypass_api_service,
        retriable_codes: k.retriable_http_codes.iter().copied().collect(),
        proofs: settings.proofs.clone(),
        ttl: settings.ttl,
        loop_wait: settings.loop_wait,
        retry_timeout: settings.retry_timeout,
        session: session.to_owned(),
        ..StoreOptions::new(
            config.scope.clone(),
            Some(MemberName(config.name.clone())),
            access,
            super::clock::boot,
            super::clock::wall,
        )
    }
}

/// `restapi` as plain values.
pub fn api(config: &Config) -> ApiSettings {
    let r = &config.restapi;
    ApiSettings {
        listen: r.listen.clone(),
        connect_address: r.connect_address.clone(),
        certfile: r.certfile.clone(),
        keyfile: r.keyfile.clone(),
        keyfile_password: r.keyfile_password.as_ref().map(|p| p.expose().to_owned()),
        cafile: r.cafile.clone(),
        verify_client: Some(r.verify_client.clone()).filter(|v| !v.is_empty()),
        ciphers: r.ciphers.clone(),
        authentication: r.authentication.as_ref().map(|a| (a.username.clone(), a.password.expose().to_owned())),
        allowlist: r.allowlist.clone(),
        allowlist_include_members: r.allowlist_include_members,
        http_extra_headers: r.http_extra_headers.clone(),
        https_extra_headers: r.https_extra_headers.clone(),
        server_tokens: Some(r.server_tokens.clone()).filter(|t| !t.is_empty()),
        request_queue_size: u32::try_from(r.request_queue_size).unwrap_or(5),
    }
}

/// `ctl` as this member uses it towards others.
pub fn peers(config: &Config) -> PeerTls {
    let c = &config.ctl;
    PeerTls {
        certfile: c.certfile.clone(),
        keyfile: c.keyfile.clone(),
        cacert: c.cacert.clone(),
        authentication: c.authentication.as_ref().map(|a| (a.username.clone(), a.password.expose().to_owned())),
    }
}

/// `log` as plain values.
pub fn log(config: &Config) -> LogSettings {
    let l = &config.log;
    let default = LogSettings::default();
    let (format, json_fields) = match &l.format {
        Some(Value::String(text)) => (text.clone(), default.json_fields),
        Some(Value::Array(items)) => (default.format, json_fields(items)),
        Some(_) | None => (default.format, default.json_fields),
    };
    let loggers = l.loggers.iter().filter_map(|(k, v)| Some((k.replace('.', "::"), telemetry::level(v)?))).collect();
    LogSettings {
        level: telemetry::level(&l.level).unwrap_or(default.level),
        json: l.json,
        format,
        json_fields,
        dateformat: l.dateformat.clone(),
        static_fields: l.static_fields.clone(),
        dir: l.dir.as_ref().map(PathBuf::from),
        mode: l.mode.and_then(|m| u32::try_from(m).ok()),
        file_num: u32::try_from(l.file_num).unwrap_or(default.file_num),
        file_size: u64::try_from(l.file_size).unwrap_or(default.file_size),
        loggers,
    }
}

fn json_fields(items: &[Value]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for item in items {
        match item {
            Value::String(name) => out.push((name.clone(), name.clone())),
            Value::Object(map) => out.extend(map.iter().map(|(name, label)| (name.clone(), merge::text(label)))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "scope: s\nname: n\nrestapi: {listen: '127.0.0.1:8008', connect_address: '127.0.0.1:8008'}\n\
        kubernetes: {labels: {application: patroni}}\ntags: {clonefrom: true, nofailover: false}\n\
        postgresql: {listen: '127.0.0.1:5432', connect_address: '127.0.0.1:5432', data_dir: /nowhere, bin_dir: /bin, \
        authentication: {superuser: {username: u, password: p}, replication: {username: r, password: p}}}\n";

    fn published(dynamic: &str) -> String {
        let sources = [config::SourceText { name: "file".into(), text: FILE.into() }];
        let config = config::load(&sources, &BTreeMap::new()).unwrap().config;
        let dynamic = Dynamic::parse(&serde_json::from_str(dynamic).unwrap()).0;
        let read = read(&config, &dynamic, Path::new("/"), Pod::default(), 15);
        Value::Object((*read.wishes.published_tags).clone()).to_string()
    }

    #[test]
    fn a_member_that_takes_no_lock_tells_the_others_not_to_count_on_it() {
        assert_eq!(published("{}"), r#"{"clonefrom":true}"#);
        let unable = r#"{"clonefrom":true,"nofailover":true,"nosync":true}"#;
        assert_eq!(published(r#"{"slots": {"l": {"type": "logical", "database": "d", "plugin": "p"}}}"#), unable);
    }

    #[test]
    fn the_cluster_that_is_followed_has_one_address_and_a_slot() {
        let read = |section: &str| {
            let (dynamic, _) =
                Dynamic::parse(&serde_json::from_str(&format!(r#"{{"standby_cluster": {section}}}"#)).unwrap());
            dynamic.standby_cluster.map(|s| remote(&s, "pg-0", &mut Vec::new()))
        };
        let of = |url: Option<&str>, slot: Option<&str>| {
            Some(Remote { conn_url: url.map(Into::into), slot: slot.map(Into::into) })
        };
        assert_eq!(read(r#"{"host": "h"}"#), of(Some("postgres://h:5432"), None));
        assert_eq!(
            read(r#"{"port": 5433, "primary_slot_name": null}"#),
            of(Some("postgres://localhost:5433"), Some("pg_0"))
        );
        let several = r#"{"host": "a, ::1", "port": "1,2", "primary_slot_name": "of-Us"}"#;
        assert_eq!(read(several), of(Some("postgres://a:1,[::1]:2"), Some("of_us")));
        assert_eq!(read(r#"{"restore_command": "true"}"#), of(None, None));
        assert_eq!(read(r#"{"primary_slot_name": "x"}"#), None);
    }
}
