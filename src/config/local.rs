//! The local configuration as types: what one member reads from its file and environment.
//!
//! Passwords are `Secret`, and `Debug` of the whole leaves the raw documents out, so that no log line can show one.
use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::{merge, numbers};
use crate::model::{ProofOfDeath, WatchdogMode};

/// A password. `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The password itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// User name and password of the REST API, or of its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasicAuth {
    /// `authentication.username`.
    pub username: String,
    /// `authentication.password`.
    pub password: Secret,
}

/// One user of `postgresql.authentication`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PgAuth {
    /// Absent: libpq's default.
    pub username: Option<String>,
    /// Absent: none, or pgpass.
    pub password: Option<Secret>,
    /// `sslpassword`.
    pub sslpassword: Option<Secret>,
    /// The other libpq settings (`sslmode`, `gssencmode`, …).
    pub options: BTreeMap<String, String>,
}

/// `postgresql.authentication`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authentication {
    /// Superuser of the local server and of rewinds on old servers.
    pub superuser: PgAuth,
    /// User of streaming and base backups.
    pub replication: PgAuth,
    /// User of pg_rewind; absent: the superuser.
    pub rewind: Option<PgAuth>,
}

/// `log`.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// True for `type: json`.
    pub json: bool,
    /// Upper-case level name.
    pub level: String,
    /// Upper-case level name.
    pub traceback_level: String,
    /// Python format text, or for JSON a list of fields.
    pub format: Option<Value>,
    /// strftime format.
    pub dateformat: Option<String>,
    /// Fields added to every JSON record.
    pub static_fields: Map<String, Value>,
    /// Records.
    pub max_queue_size: i64,
    /// Directory of `patroni.log`; absent: stderr.
    pub dir: Option<String>,
    /// File mode.
    pub mode: Option<i64>,
    /// Rotated copies.
    pub file_num: i64,
    /// Bytes per file.
    pub file_size: i64,
    /// Logger name → level.
    pub loggers: BTreeMap<String, String>,
    /// Suppress identical consecutive heartbeat lines.
    pub deduplicate_heartbeat_logs: bool,
}

/// `restapi`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestApi {
    /// `HOST:PORT`; empty when not configured (patronictl).
    pub listen: String,
    /// What `api_url` advertises; defaults to `listen`.
    pub connect_address: String,
    /// Credentials of unsafe requests.
    pub authentication: Option<BasicAuth>,
    /// Server certificate, PEM.
    pub certfile: Option<String>,
    /// Its key.
    pub keyfile: Option<String>,
    /// Password of the key.
    pub keyfile_password: Option<Secret>,
    /// Certificate authorities of clients.
    pub cafile: Option<String>,
    /// `none`, `optional` or `required`.
    pub verify_client: String,
    /// OpenSSL cipher list.
    pub ciphers: Option<String>,
    /// Hosts and networks that may send unsafe requests; empty: all.
    pub allowlist: Vec<String>,
    /// Members are allowed too.
    pub allowlist_include_members: bool,
    /// Headers of every answer.
    pub http_extra_headers: BTreeMap<String, String>,
    /// Headers of answers over TLS, replacing the ones above.
    pub https_extra_headers: BTreeMap<String, String>,
    /// Listen backlog.
    pub request_queue_size: i64,
    /// `Original`, `Minimal` or `ProductOnly`.
    pub server_tokens: String,
}

/// `ctl`: how this process calls REST APIs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ctl {
    /// Falls back to `restapi.authentication`.
    pub authentication: Option<BasicAuth>,
    /// Do not verify server certificates.
    pub insecure: bool,
    /// Falls back to `restapi.cafile`.
    pub cacert: Option<String>,
    /// Client certificate.
    pub certfile: Option<String>,
    /// Its key.
    pub keyfile: Option<String>,
    /// Password of the key.
    pub keyfile_password: Option<Secret>,
}

/// One entry of `kubernetes.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name, if given.
    pub name: Option<String>,
    /// Port number.
    pub port: u16,
    /// `TCP` unless given.
    pub protocol: Option<String>,
}

/// `kubernetes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Kubernetes {
    /// Selector of, and labels on, all objects (without the scope label).
    pub labels: BTreeMap<String, String>,
    /// Namespace; a top-level `namespace` wins over `kubernetes.namespace`.
    pub namespace: String,
    /// Label that holds the scope.
    pub scope_label: String,
    /// Pod label of the role.
    pub role_label: String,
    /// Role label of a leader; `master` unless configured.
    pub leader_label_value: String,
    /// Role label of a replica.
    pub follower_label_value: String,
    /// Role label of a standby leader.
    pub standby_leader_label_value: String,
    /// Second role label.
    pub tmp_role_label: Option<String>,
    /// Labels while initializing.
    pub bootstrap_labels: BTreeMap<String, String>,
    /// Endpoints instead of ConfigMaps.
    pub use_endpoints: bool,
    /// Own address for Endpoints.
    pub pod_ip: Option<String>,
    /// Ports of the Endpoints.
    pub ports: Vec<Port>,
    /// kubeconfig context outside a cluster; empty: the current one.
    pub context: String,
    /// API server's CA; absent: the service account's.
    pub cacert: Option<String>,
    /// Talk to API servers directly.
    pub bypass_api_service: bool,
    /// Added to 500, 503 and 504.
    pub retriable_http_codes: Vec<u16>,
    /// What counts as proof that a holder is gone.
    pub proof_of_death: Vec<ProofOfDeath>,
}

/// `bootstrap`.
#[derive(Clone, Default, PartialEq)]
pub struct Bootstrap {
    /// First dynamic configuration.
    pub dcs: Value,
    /// `initdb` or the name of a section in `methods`.
    pub method: String,
    /// List or map of initdb options, as given.
    pub initdb: Value,
    /// Custom methods by name (each with `command`).
    pub methods: BTreeMap<String, Map<String, Value>>,
    /// Script after initialization.
    pub post_bootstrap: Option<String>,
    /// Lines appended to pg_hba.conf.
    pub pg_hba: Vec<String>,
}

impl fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The documents may carry passwords in commands and connection strings.
        f.debug_struct("Bootstrap").field("method", &self.method).finish_non_exhaustive()
    }
}

/// `postgresql`: the keys that only the local file may set, and the whole section as given.
#[derive(Clone, Default, PartialEq)]
pub struct Postgresql {
    /// `HOST[,HOST]:PORT`.
    pub listen: String,
    /// Host and port published as `conn_url`.
    pub connect_address: Option<String>,
    /// Published as `proxy_url`.
    pub proxy_address: Option<String>,
    /// PGDATA.
    pub data_dir: String,
    /// Directory of postgresql.conf; `data_dir` unless configured.
    pub config_dir: String,
    /// Password file; absent: `~/pgpass`.
    pub pgpass: Option<String>,
    /// Empty: PATH.
    pub bin_dir: String,
    /// Tool → name of its program.
    pub bin_name: BTreeMap<String, String>,
    /// Database of our own connections.
    pub database: String,
    /// Base of the names of the configuration files.
    pub config_base_name: String,
    /// Users.
    pub authentication: Authentication,
    /// The section as given (without `authentication`).
    pub raw: Map<String, Value>,
}

impl fmt::Debug for Postgresql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgresql")
            .field("listen", &self.listen)
            .field("connect_address", &self.connect_address)
            .field("data_dir", &self.data_dir)
            .field("authentication", &self.authentication)
            .finish_non_exhaustive()
    }
}

/// `watchdog`.
#[derive(Clone, Debug, PartialEq)]
pub struct Watchdog {
    /// Mode.
    pub mode: WatchdogMode,
    /// Device path.
    pub device: String,
    /// Seconds; -1 means half of the ttl.
    pub safety_margin: i64,
    /// `driver: testing`: a pipe in the place of a device.
    pub testing: bool,
}

/// The local configuration of one member.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// Member name; empty when not configured (patronictl).
    pub name: String,
    /// Cluster name; empty when not configured (patronictl).
    pub scope: String,
    /// Top-level `namespace`.
    pub namespace: Option<String>,
    /// The site of this member: a zone, a data centre.
    pub site: Option<String>,
    /// Word for the primary in REST answers, callbacks and member data: `primary` or `master`.
    pub primary_role_name: String,
    /// Logging.
    pub log: Log,
    /// REST server.
    pub restapi: RestApi,
    /// REST client.
    pub ctl: Ctl,
    /// The store.
    pub kubernetes: Kubernetes,
    /// Absent: this member never initializes a cluster.
    pub bootstrap: Option<Bootstrap>,
    /// Postgres.
    pub postgresql: Postgresql,
    /// Watchdog.
    pub watchdog: Watchdog,
    /// Tags as given; see [`super::tags::published`].
    pub tags: BTreeMap<String, Value>,
    /// The effective local document (file and environment), for `--print`. Contains passwords.
    pub raw: Value,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("name", &self.name)
            .field("scope", &self.scope)
            .field("restapi", &self.restapi)
            .field("kubernetes", &self.kubernetes)
            .field("postgresql", &self.postgresql)
            .field("watchdog", &self.watchdog)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Takes back what counts only at the start of the process, as it was at `start`; says which keys were changed.
    #[must_use]
    pub fn keep_fixed(&mut self, start: &Config) -> Vec<&'static str> {
        fn keep<T: Clone + PartialEq>(changed: &mut Vec<&'static str>, key: &'static str, mine: &mut T, start: &T) {
            if mine != start {
                changed.push(key);
                mine.clone_from(start);
            }
        }
        let mut changed = Vec::new();
        keep(&mut changed, "scope", &mut self.scope, &start.scope);
        keep(&mut changed, "name", &mut self.name, &start.name);
        let (pg, was) = (&mut self.postgresql, &start.postgresql);
        let beside = pg.config_dir == pg.data_dir && was.config_dir == was.data_dir;
        keep(&mut changed, "postgresql.data_dir", &mut pg.data_dir, &was.data_dir);
        if beside {
            pg.config_dir.clone_from(&was.config_dir);
        }
        keep(&mut changed, "postgresql.config_dir", &mut pg.config_dir, &was.config_dir);
        keep(&mut changed, "postgresql.bin_dir", &mut pg.bin_dir, &was.bin_dir);
        keep(&mut changed, "postgresql.pgpass", &mut pg.pgpass, &was.pgpass);
        keep(&mut changed, "postgresql.database", &mut pg.database, &was.database);
        keep(&mut changed, "postgresql.config_base_name", &mut pg.config_base_name, &was.config_base_name);
        // Proofs of death are rules for decisions, everything else here is how the store is reached.
        let proofs = std::mem::replace(&mut self.kubernetes.proof_of_death, start.kubernetes.proof_of_death.clone());
        keep(&mut changed, "kubernetes", &mut self.kubernetes, &start.kubernetes);
        self.kubernetes.proof_of_death = proofs;
        changed
    }
}

/// A section of a document, read leniently: null is absent, scalars convert.
#[derive(Clone, Copy)]
pub(super) struct Section<'v>(pub Option<&'v Map<String, Value>>);

impl<'v> Section<'v> {
    pub(super) fn of(value: &'v Value) -> Section<'v> {
        Section(value.as_object())
    }

    pub(super) fn get(self, key: &str) -> Option<&'v Value> {
        self.0.and_then(|map| map.get(key)).filter(|value| !value.is_null())
    }

    pub(super) fn section(self, key: &str) -> Section<'v> {
        Section(self.get(key).and_then(Value::as_object))
    }

    pub(super) fn text(self, key: &str) -> Option<String> {
        self.get(key).filter(|v| !v.is_array() && !v.is_object()).map(merge::text)
    }

    pub(super) fn filled(self, key: &str) -> Option<String> {
        self.text(key).filter(|text| !text.is_empty())
    }

    pub(super) fn text_or(self, key: &str, default: &str) -> String {
        self.text(key).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn flag(self, key: &str) -> Option<bool> {
        self.text(key).map(|text| numbers::parse_bool(&text).unwrap_or(false))
    }

    pub(super) fn whole(self, key: &str) -> Option<i64> {
        self.text(key).and_then(|text| numbers::parse_int(&text, None))
    }

    pub(super) fn secret(self, key: &str) -> Option<Secret> {
        self.text(key).map(Secret)
    }

    pub(super) fn texts(self, key: &str) -> BTreeMap<String, String> {
        let pairs = self.section(key).0.into_iter().flatten().filter(|(_, value)| !value.is_null());
        pairs.map(|(key, value)| (key.clone(), merge::text(value))).collect()
    }

    /// A list, or comma separated text, or one scalar.
    pub(super) fn list(self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Value::Array(items)) => items.iter().map(merge::text).collect(),
            Some(Value::Object(_)) | None => Vec::new(),
            Some(scalar) => {
                let text = merge::text(scalar);
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
            }
        }
    }

    /// A list whose items may contain commas.
    pub(super) fn lines(self, key: &str) -> Option<Vec<String>> {
        self.get(key).and_then(Value::as_array).map(|items| items.iter().map(merge::text).collect())
    }
}
