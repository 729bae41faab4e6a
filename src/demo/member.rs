//! One member: its directory, configuration file and processes, seen as a kubelet and a user see them.
//!
//! `DIR/patroni.yml`, `DIR/data`, `DIR/run` (sockets), `DIR/patroni.log` (everything the daemon, its keeper and Postgres
//! print). A member is started by running `patroni DIR/patroni.yml` as the user of the cluster, never as root.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::apiserver::ApiServer;
use super::cluster::Options;
use super::http::Http;
use super::machine::User;
use super::processes::{self, Proc};
use super::{Doing, Res, fail};

/// The password of every role in a cluster that lives on loopback for minutes.
pub const PASSWORD: &str = "demo";

/// A member as it is told to run.
pub struct Member {
    /// Member and pod name.
    pub name: String,
    /// Everything it owns.
    pub dir: PathBuf,
    /// Postgres.
    pub port: u16,
    /// REST.
    pub rest: u16,
    /// Where its `patroni` and `patronictl` are.
    pub programs: PathBuf,
    /// How often its containers were started; names the container IDs.
    pub generation: u32,
    child: Option<Child>,
}

/// What a member says about itself, from `GET /patroni`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// HTTP status of the answer.
    pub status: u16,
    /// `state`: `running`, `creating replica`, …
    pub state: String,
    /// `role`: `primary` (or `master`), `replica`, …
    pub role: String,
    /// `timeline`.
    pub timeline: u64,
    /// `replication_state` of a standby.
    pub replication: String,
    /// WAL position in bytes: current for a primary, replayed for a standby.
    pub lsn: u64,
}

impl Said {
    /// It says that it is the primary and runs.
    pub fn is_primary(&self) -> bool {
        matches!(self.role.as_str(), "primary" | "master") && self.state == "running"
    }
    /// It says that it streams from somewhere.
    pub fn is_streaming(&self) -> bool {
        let follows = matches!(self.role.as_str(), "replica" | "standby_leader");
        follows && self.state == "running" && self.replication == "streaming"
    }
}

impl Member {
    /// A member of `options.scope` that has not been started.
    pub fn new(name: String, dir: PathBuf, port: u16, rest: u16, programs: PathBuf) -> Self {
        Member { name, dir, port, rest, programs, generation: 1, child: None }
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("patroni.yml")
    }

    /// PGDATA.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Makes the directories and the configuration file, owned by `user`.
    ///
    /// # Errors
    /// The file system refused.
    pub fn prepare(&self, options: &Options, user: &User, api: &ApiServer) -> Res<()> {
        let run = self.dir.join("run");
        for dir in [&self.dir, &run] {
            fs::create_dir_all(dir).doing(format!("create {}", dir.display()))?;
            user.own(dir)?;
        }
        let path = self.config_path();
        fs::write(&path, self.config(options, api)).doing(format!("write {}", path.display()))?;
        if options.watchdog != "off" {
            let device = self.watchdog_path();
            fs::write(&device, "").doing(format!("write {}", device.display()))?;
            user.own(&device)?;
        }
        user.own(&path)
    }

    /// The file in the place of a watchdog device.
    pub fn watchdog_path(&self) -> PathBuf {
        self.dir.join("watchdog")
    }

    /// The line that says where it is.
    fn site(&self, o: &Options) -> String {
        let number = self.name.rsplit('-').next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
        let site = o.sites.iter().cycle().nth(number);
        site.map_or_else(String::new, |site| format!("site: {site}\n"))
    }

    fn config(&self, o: &Options, api: &ApiServer) -> String {
        let (name, rest, port) = (&self.name, self.rest, self.port);
        let (dir, run) = (self.dir.display(), self.dir.join("run"));
        let hba = if o.trust { "trust" } else { "scram-sha-256" };
        format!(
            "scope: {scope}\nname: {name}\n{site}\
             restapi:\n  listen: 127.0.0.1:{rest}\n  connect_address: 127.0.0.1:{rest}\n\
             kubernetes:\n  context: ''\n  namespace: {namespace}\n  labels: {{application: patroni}}\n  \
             scope_label: cluster-name\n  use_endpoints: {endpoints}\n  pod_ip: {pod_ip}\n  \
             ports: [{{name: postgresql, port: {port}}}]\n{kubernetes}\
             bootstrap:\n  dcs:\n    ttl: {ttl}\n    loop_wait: {wait}\n    retry_timeout: {retry}\n    \
             maximum_lag_on_failover: 1048576\n{dcs}    postgresql:\n      use_pg_rewind: {rewind}\n{dcs_postgresql}      \
             parameters:\n        max_connections: 50\n        shared_buffers: 16MB\n        wal_keep_size: 64MB\n  \
             initdb:\n  - encoding: UTF8\n  - data-checksums\n{bootstrap}\
             postgresql:\n  listen: 127.0.0.1:{port}\n  connect_address: 127.0.0.1:{port}\n  data_dir: {dir}/data\n  \
             bin_dir: {bin}\n  pgpass: {dir}/pgpass\n  authentication:\n    \
             superuser: {{username: postgres, password: {PASSWORD}}}\n    \
             replication: {{username: replicator, password: {PASSWORD}}}\n    \
             rewind: {{username: rewinder, password: {PASSWORD}}}\n  parameters:\n    \
             unix_socket_directories: {run}\n    logging_collector: 'off'\n{parameters}  pg_hba:\n  - local all all trust\n  \
             - host replication replicator 127.0.0.1/32 {hba}\n  - host all all 127.0.0.1/32 {hba}\n{postgresql}\
             watchdog:\n  mode: {watchdog}\n{extra}",
            scope = o.scope,
            site = self.site(o),
            watchdog = match o.watchdog.as_str() {
                "off" => "off".to_owned(),
                mode => format!("{mode}\n  driver: testing\n  device: {}", self.watchdog_path().display()),
            },
            namespace = api.namespace(),
            pod_ip = api.pod_ip(),
            endpoints = o.mode == super::cluster::StoreMode::Endpoints,
            ttl = o.ttl,
            wait = o.loop_wait,
            retry = o.retry_timeout,
            kubernetes = o.kubernetes_extra,
            dcs = o.dcs_extra,
            rewind = o.rewind,
            dcs_postgresql = o.dcs_postgresql_extra,
            parameters = o.parameters_extra,
            postgresql = o.postgresql_extra,
            extra = o.extra,
            bootstrap = o.bootstrap_extra,
            bin = o.postgres.display(),
            run = run.display(),
        )
    }

    /// Starts `patroni`.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn start(&mut self, user: &User, kubeconfig: &Path) -> Res<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        user.own(&self.log_path())?;
        let program = self.programs.join("patroni");
        let mut command = Command::new(&program);
        command
            .arg(self.config_path())
            .current_dir(&self.dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", &self.dir)
            .env("LANG", "C.UTF-8")
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        user.run_as(&mut command);
        self.child = Some(command.spawn().doing(format!("run {}", program.display()))?);
        Ok(())
    }

    /// Where everything it prints goes.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("patroni.log")
    }

    /// Everything it printed, bytes that are no text replaced.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// All its living processes.
    pub fn processes(&self) -> Vec<Proc> {
        processes::of_member(&self.dir)
    }

    /// The pid of the `patroni` that was started last, while it lives.
    pub fn sidecar(&mut self) -> Option<i32> {
        let child = self.child.as_mut()?;
        match child.try_wait() {
            Ok(None) => child.id().and_then(|id| i32::try_from(id).ok()),
            Ok(Some(_)) | Err(_) => None,
        }
    }

    /// Signals the sidecar alone.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal_sidecar(&mut self, signal: Signal) -> Res<()> {
        match self.sidecar() {
            Some(pid) => {
                processes::send(pid, signal);
                Ok(())
            }
            None => fail(format!("{}: patroni does not run", self.name)),
        }
    }

    /// Waits until the sidecar ended.
    ///
    /// # Errors
    /// It still runs after `deadline`.
    pub async fn ended(&mut self, deadline: Duration) -> Res<()> {
        let Some(child) = self.child.as_mut() else { return Ok(()) };
        match tokio::time::timeout(deadline, child.wait()).await {
            Ok(status) => {
                status?;
                Ok(())
            }
            Err(_) => fail(format!("{}: patroni still runs after {:.1} s", self.name, deadline.as_secs_f64())),
        }
    }

    /// Asks `GET /patroni`.
    ///
    /// # Errors
    /// No answer within a second, which is what a member promises.
    pub async fn said(&self, http: &Http) -> Res<Said> {
        let url = format!("http://127.0.0.1:{}/patroni", self.rest);
        let (status, body) = http.get(&url, Duration::from_secs(1)).await?;
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |path: &str| body.pointer(path).and_then(Value::as_u64).unwrap_or_default();
        Ok(Said {
            status,
            state: text("state"),
            role: text("role"),
            timeline: number("/timeline"),
            replication: text("replication_state"),
            lsn: number("/xlog/location").max(number("/xlog/replayed_location")),
        })
    }
}
