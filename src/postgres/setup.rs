//! The plain description of one Postgres: what the configuration says about it, resolved to values.
//!
//! The caller (`driver`) fills it; nothing here reads files or environments.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::MemberName;

/// One account of `postgresql.authentication`. Every field is optional: libpq's defaults apply.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Role name; empty or absent: the name of the operating system user.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Further libpq keywords that are set: sslmode, sslcert, sslkey, sslpassword, sslrootcert, sslcrl, sslcrldir,
    /// gssencmode, channel_binding, sslnegotiation.
    pub options: BTreeMap<String, String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The role name, if one is set and not empty.
    pub fn user(&self) -> Option<&str> {
        self.username.as_deref().filter(|u| !u.is_empty())
    }
    /// The password, if one is set and not empty.
    pub fn secret(&self) -> Option<&str> {
        self.password.as_deref().filter(|p| !p.is_empty())
    }
    /// `sslmode`, if set.
    pub fn sslmode(&self) -> Option<&str> {
        self.options.get("sslmode").map(String::as_str)
    }
}

/// `bootstrap.<method>` with a `command`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomMethod {
    /// Name of the section.
    pub name: String,
    /// Command line, split as a shell would.
    pub command: String,
    /// Leave out `--scope` and `--datadir`.
    pub no_params: bool,
    /// Keep recovery files the tool has produced.
    pub keep_existing_recovery_conf: bool,
    /// Recovery settings for the first start.
    pub recovery_conf: BTreeMap<String, String>,
    /// Every other key of the section: `--key=value`.
    pub extra: BTreeMap<String, String>,
}

/// One entry of `create_replica_methods`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// pg_basebackup, with [`Setup::basebackup`] options.
    Basebackup,
    /// A section of that name.
    Custom {
        /// Name of the section.
        name: String,
        /// Command line; the name when the section has no `command`.
        command: String,
        /// Leave out the four standard arguments.
        no_params: bool,
        /// May run without a source.
        no_leader: bool,
        /// Do not clear the data directory before and after.
        keep_data: bool,
        /// Every key of the section, as `--key=value` (without `command`).
        extra: BTreeMap<String, String>,
    },
}

/// The cluster that a standby cluster follows, as far as Postgres has to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// `postgres://` with one or several places; `None`: its archive alone.
    pub conn_url: Option<String>,
    /// How a copy of it is made; `None`: as one of a member.
    pub methods: Option<Vec<ReplicaMethod>>,
    /// Recovery settings of every member: `restore_command`, `archive_cleanup_command`.
    pub recovery: BTreeMap<String, String>,
    /// Recovery settings of whoever streams from it: `recovery_min_apply_delay`.
    pub of_leader: BTreeMap<String, String>,
}

/// Everything configured about this member's Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Member name.
    pub name: MemberName,
    /// Cluster name.
    pub scope: String,
    /// UID of the pod, for the bootstrap marker; empty while unknown.
    pub pod_uid: String,
    /// `postgresql.bin_dir`; `None`: PATH.
    pub bin_dir: Option<PathBuf>,
    /// `postgresql.bin_name`: tool → file name.
    pub bin_names: BTreeMap<String, String>,
    /// `postgresql.data_dir`.
    pub data_dir: PathBuf,
    /// `postgresql.config_dir`; defaults to the data directory.
    pub config_dir: PathBuf,
    /// `postgresql.config_base_name`.
    pub config_base_name: String,
    /// `postgresql.custom_conf`.
    pub custom_conf: Option<String>,
    /// Addresses of `postgresql.listen`, without the port.
    pub listen_addresses: String,
    /// Port of `postgresql.listen`.
    pub port: u16,
    /// Host other members reach this one under, for `conn_url`.
    pub connect_host: String,
    /// Port of `connect_address`.
    pub connect_port: u16,
    /// `postgresql.database`.
    pub database: String,
    /// `authentication.superuser`.
    pub superuser: Credentials,
    /// `authentication.replication`.
    pub replication: Credentials,
    /// `authentication.rewind`.
    pub rewind: Option<Credentials>,
    /// `postgresql.pgpass`.
    pub pgpass: PathBuf,
    /// `postgresql.parameters` after merging, without controlled ones; names lower case.
    pub parameters: BTreeMap<String, String>,
    /// Controlled parameters as configured in the dynamic configuration; missing ones get defaults.
    pub controlled: BTreeMap<String, String>,
    /// `postgresql.recovery_conf`.
    pub recovery_conf: BTreeMap<String, String>,
    /// This is a member of a standby cluster.
    pub standby_of: Option<Remote>,
    /// `postgresql.pg_hba`.
    pub pg_hba: Option<Vec<String>>,
    /// `postgresql.pg_ident`.
    pub pg_ident: Option<Vec<String>>,
    /// `postgresql.use_unix_socket`.
    pub use_unix_socket: bool,
    /// `postgresql.use_slots`.
    pub use_slots: bool,
    /// `postgresql.krbsrvname`.
    pub krbsrvname: Option<String>,
    /// `bootstrap.initdb`, as `--flag` or `--key=value` words without the dashes: (key, value).
    pub initdb: Vec<(String, Option<String>)>,
    /// `bootstrap.method` when it names a section with a `command`.
    pub bootstrap_method: Option<CustomMethod>,
    /// `bootstrap.post_bootstrap` or `post_init`.
    pub post_bootstrap: Option<String>,
    /// `bootstrap.pg_hba`.
    pub bootstrap_pg_hba: Vec<String>,
    /// `create_replica_methods`.
    pub replica_methods: Vec<ReplicaMethod>,
    /// `postgresql.basebackup` options: (key, value).
    pub basebackup: Vec<(String, Option<String>)>,
}

impl Setup {
    /// A setup with every default, for one data directory and port.
    pub fn new(name: &str, scope: &str, data_dir: impl Into<PathBuf>, port: u16) -> Setup {
        let data_dir = data_dir.into();
        Setup {
            name: MemberName::from(name),
            scope: scope.to_owned(),
            pod_uid: String::new(),
            bin_dir: None,
            bin_names: BTreeMap::new(),
            config_dir: data_dir.clone(),
            pgpass: data_dir.with_file_name("pgpass"),
            data_dir,
            config_base_name: "postgresql".to_owned(),
            custom_conf: None,
            listen_addresses: "127.0.0.1".to_owned(),
            port,
            connect_host: "127.0.0.1".to_owned(),
            connect_port: port,
            database: "postgres".to_owned(),
            superuser: Credentials::default(),
            replication: Credentials::default(),
            rewind: None,
            parameters: BTreeMap::new(),
            controlled: BTreeMap::new(),
            recovery_conf: BTreeMap::new(),
            standby_of: None,
            pg_hba: None,
            pg_ident: None,
            use_unix_socket: false,
            use_slots: true,
            krbsrvname: None,
            initdb: Vec::new(),
            bootstrap_method: None,
            post_bootstrap: None,
            bootstrap_pg_hba: Vec::new(),
            replica_methods: vec![ReplicaMethod::Basebackup],
            basebackup: Vec::new(),
        }
    }
    /// The `conn_url` this member publishes: without credentials.
    pub fn conn_url(&self) -> String {
        let host = if self.connect_host.contains(':') {
            format!("[{}]", self.connect_host)
        } else {
            self.connect_host.clone()
        };
        format!("postgres://{host}:{}/{}", self.connect_port, self.database)
    }
    /// The credentials pg_rewind and checks of another member use: `rewind`, else the superuser.
    pub fn rewind_credentials(&self) -> &Credentials {
        self.rewind.as_ref().filter(|r| r.user().is_some()).unwrap_or(&self.superuser)
    }
}

/// One program for the keeper to run. Nothing secret is in `argv`; passwords are in files named by the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables on top of the keeper's environment.
    pub env: BTreeMap<String, String>,
    /// Files to be removed when it has ended, whatever the result.
    pub cleanup: Vec<PathBuf>,
}

impl Command {
    /// A command without further environment.
    pub fn new(argv: Vec<String>) -> Command {
        Command { argv, ..Command::default() }
    }
    /// With one more variable.
    pub fn with_env(mut self, key: &str, value: impl Into<String>) -> Command {
        self.env.insert(key.to_owned(), value.into());
        self
    }
}
