//! Start a cluster, break it, watch it heal.
//!
//! Whatever happens, dropping a [`Cluster`] kills every process it started and removes its directory: also on a panic, also
//! on Ctrl-C. Names of the verbs: *postmaster* (Postgres alone), *sidecar* (`patroni` alone), *member* (everything,
//! keeper included), as a pod would lose them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::apiserver::{ApiServer, External};
use super::http::Http;
use super::machine::{self, User};
use super::member::{Member, Said};
use super::processes;
use super::writer::{self, Writer};
use super::{Doing, Res, fail};

/// Which objects hold the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMode {
    /// `use_endpoints: true`.
    Endpoints,
    /// `use_endpoints: false`.
    ConfigMaps,
}

/// Members that run another program than ours.
#[derive(Clone, Debug)]
pub struct Theirs {
    /// Where its `patroni` and `patronictl` are.
    pub bin_dir: PathBuf,
    /// Which members, by index.
    pub members: Vec<usize>,
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// `scope`; members are called SCOPE-0, SCOPE-1, …
    pub scope: String,
    /// How many.
    pub members: usize,
    /// Which objects hold the lease.
    pub mode: StoreMode,
    /// Seconds of configuration.
    pub ttl: u32,
    /// Seconds of configuration.
    pub loop_wait: u32,
    /// Seconds of configuration.
    pub retry_timeout: u32,
    /// Seconds per second of configuration in the binaries used: 1, or less in test builds.
    pub scale: f64,
    /// Where the three programs are.
    pub bin_dir: PathBuf,
    /// Who runs Patroni itself instead.
    pub theirs: Option<Theirs>,
    /// Where Postgres' programs are.
    pub postgres: PathBuf,
    /// First port tried for Postgres and for REST.
    pub ports: (u16, u16),
    /// First port tried for the API; 0 lets the kernel choose.
    pub api_port: u16,
    /// A real API server instead of the embedded one.
    pub external: Option<External>,
    /// pg_hba says `trust` instead of `scram-sha-256`: debug builds hash slowly.
    pub trust: bool,
    /// `use_pg_rewind`.
    pub rewind: bool,
    /// Lines (indentation 2) added to `kubernetes`.
    pub kubernetes_extra: String,
    /// Lines (with indentation 4) added to `bootstrap.dcs`.
    pub dcs_extra: String,
    /// Lines of `bootstrap`, indented by two.
    pub bootstrap_extra: String,
    /// Lines (indentation 6) added to `bootstrap.dcs.postgresql`.
    pub dcs_postgresql_extra: String,
    /// Lines (indentation 4) added to `postgresql.parameters`.
    pub parameters_extra: String,
    /// Lines (indentation 2) added to `postgresql`.
    pub postgresql_extra: String,
    /// Lines added at the end of the file.
    pub extra: String,
    /// `site` of each member in turn; empty: none.
    pub sites: Vec<String>,
    /// `watchdog.mode`; but for `off` with a file in the place of a device.
    pub watchdog: String,
}

impl Options {
    /// Three members, Endpoints, Patroni's default 30/10/10.
    pub fn new(bin_dir: PathBuf, postgres: PathBuf) -> Self {
        Options {
            scope: "demo".into(),
            members: 3,
            mode: StoreMode::Endpoints,
            ttl: 30,
            loop_wait: 10,
            retry_timeout: 10,
            scale: crate::model::time_scale(),
            bin_dir,
            theirs: None,
            postgres,
            ports: (25_432, 28_008),
            api_port: 0,
            external: None,
            trust: false,
            rewind: true,
            kubernetes_extra: String::new(),
            dcs_extra: String::new(),
            bootstrap_extra: String::new(),
            dcs_postgresql_extra: String::new(),
            parameters_extra: String::new(),
            postgresql_extra: String::new(),
            extra: String::new(),
            sites: Vec::new(),
            watchdog: "off".to_owned(),
        }
    }

    /// `secs` of configuration as time that passes.
    pub fn secs(&self, secs: f64) -> Duration {
        Duration::from_secs_f64(secs * self.scale)
    }

    /// The lease as time that passes.
    pub fn lease(&self) -> Duration {
        self.secs(f64::from(self.ttl))
    }

    /// The programs of member `i`.
    fn programs_of(&self, i: usize) -> PathBuf {
        match &self.theirs {
            Some(theirs) if theirs.members.contains(&i) => theirs.bin_dir.clone(),
            Some(_) | None => self.bin_dir.clone(),
        }
    }

    /// L1: ttl + 2·loop_wait + 10 s, after which a healed cluster is whole. The 10 s are for Postgres, which
    /// no time scale makes faster.
    pub fn healed_within(&self) -> Duration {
        self.secs(f64::from(self.ttl + 2 * self.loop_wait)) + Duration::from_secs(10)
    }
}

/// A running cluster.
pub struct Cluster {
    /// How it was made.
    pub options: Options,
    /// The embedded API.
    pub api: ApiServer,
    /// The members, by index.
    pub members: Vec<Member>,
    /// Everything it has on disk.
    pub dir: PathBuf,
    http: Http,
    user: User,
    kubeconfig: PathBuf,
}

/// A kubelet shows the new container some time after it has started. A member that was there before publishes its
/// container IDs only when it sees them change, so the order matters.
const KUBELET_NOTICES: Duration = Duration::from_millis(500);
/// Between two looks while waiting.
const LOOK: Duration = Duration::from_millis(20);

impl Cluster {
    /// Starts the API and makes the members' files and pods; starts no member.
    ///
    /// # Errors
    /// A missing program, no ports, no user, an API that does not start.
    pub async fn prepare(options: Options) -> Res<Cluster> {
        let user = User::find_or_make()?;
        let dir = machine::private_dir("patroni")?;
        let api = match &options.external {
            None => ApiServer::start(([127, 0, 0, 1], options.api_port).into())?,
            Some(server) => ApiServer::external(server, &options.scope).await?,
        };
        let kubeconfig = dir.join("kubeconfig");
        let mut cluster =
            Cluster { api, members: Vec::new(), http: Http::new(None), user, kubeconfig, dir: dir.clone(), options };
        let o = &mut cluster.options;
        o.bin_dir = machine::publish_programs(&o.bin_dir, &dir.join("bin"), &cluster.user)?;
        cluster.api.write_kubeconfig(&cluster.kubeconfig)?;
        cluster.user.own(&cluster.kubeconfig)?;
        let ports = machine::free_ports(cluster.options.ports.0, cluster.options.members)?;
        let rest = machine::free_ports(cluster.options.ports.1, cluster.options.members)?;
        for (i, (port, rest)) in ports.into_iter().zip(rest).enumerate() {
            let name = format!("{}-{i}", cluster.options.scope);
            let member = Member::new(name.clone(), dir.join(&name), port, rest, cluster.options.programs_of(i));
            member.prepare(&cluster.options, &cluster.user, &cluster.api)?;
            let labels = json!({"application": "patroni", "cluster-name": cluster.options.scope});
            cluster.api.create_pod(&name, &labels, member.generation).await?;
            cluster.members.push(member);
        }
        Ok(cluster)
    }

    /// As [`Cluster::prepare`], then starts all members.
    ///
    /// # Errors
    /// As [`Cluster::prepare`], or a member's program cannot be run.
    pub async fn start(options: Options) -> Res<Cluster> {
        let mut cluster = Cluster::prepare(options).await?;
        for i in 0..cluster.members.len() {
            let member = &mut cluster.members[i];
            member.start(&cluster.user, &cluster.kubeconfig)?;
            cluster.api.report(&member.name, member.generation, None).await?;
        }
        Ok(cluster)
    }

    /// The kubeconfig of the members and of `kubectl`.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Clients that write to every member every `every`.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn clients(&self, every: Duration) -> Res<Writer> {
        Writer::start(&self.members.iter().map(|m| m.port).collect::<Vec<_>>(), every)
    }

    /// What every member says; `None` for no answer.
    pub async fn said(&self) -> Vec<Option<Said>> {
        let asked = self.members.iter().map(|m| async { m.said(&self.http).await.ok() });
        futures::future::join_all(asked).await
    }

    /// Asks `path` of a member's REST; the status code, if it answers.
    pub async fn rest(&self, i: usize, path: &str) -> Option<(u16, serde_json::Value)> {
        let url = format!("http://127.0.0.1:{}{path}", self.members[i].rest);
        self.http.get(&url, Duration::from_secs(2)).await.ok()
    }

    /// Sends a JSON body to a member's REST.
    ///
    /// # Errors
    /// No answer within 30 s (a switchover waits for its result).
    pub async fn rest_send(&self, i: usize, method: &str, path: &str, body: serde_json::Value) -> Res<(u16, String)> {
        let url = format!("http://127.0.0.1:{}{path}", self.members[i].rest);
        let body = Some(("application/json", body));
        let (status, answer) = self.http.call(method, &url, body, Duration::from_secs(30)).await?;
        Ok((status, answer.as_str().map_or_else(|| answer.to_string(), str::to_owned)))
    }

    /// The leader when the cluster is whole: exactly one primary, everybody else (but `absent`) streaming on its timeline.
    pub async fn whole_without(&self, absent: &[usize]) -> Option<usize> {
        let said = self.said().await;
        let primaries: Vec<usize> = (0..said.len())
            .filter(|i| said[*i].as_ref().is_some_and(|s| s.role != "replica" && s.is_primary()))
            .collect();
        let [leader] = primaries[..] else { return None };
        let timeline = said[leader].as_ref()?.timeline;
        let others = (0..said.len()).filter(|i| *i != leader && !absent.contains(i));
        let streaming = |s: &Said| s.is_streaming() && s.timeline == timeline;
        others.into_iter().all(|i| said[i].as_ref().is_some_and(streaming)).then_some(leader)
    }

    /// Waits until the cluster is whole; returns the leader's index.
    ///
    /// # Errors
    /// Not within `deadline`; the message says what every member said last.
    pub async fn wait_whole(&mut self, deadline: Duration) -> Res<usize> {
        self.wait_whole_without(&[], deadline).await
    }

    /// As [`Cluster::wait_whole`], not counting `absent`.
    ///
    /// # Errors
    /// As [`Cluster::wait_whole`].
    pub async fn wait_whole_without(&mut self, absent: &[usize], deadline: Duration) -> Res<usize> {
        let what = format!("one primary and the others streaming (without {absent:?})");
        self.wait_for(&what, deadline, async |c| c.whole_without(absent).await).await
    }

    /// Waits until `look` finds something.
    ///
    /// # Errors
    /// Nothing within `deadline`; the message says what every member said last.
    pub async fn wait_for<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut look: impl AsyncFnMut(&mut Cluster) -> Option<T>,
    ) -> Res<T> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(found) = look(self).await {
                return Ok(found);
            }
            if Instant::now() > end {
                return fail(format!("not within {:.1} s: {what}\n{}", deadline.as_secs_f64(), self.diagnosis().await));
            }
            sleep(LOOK).await;
        }
    }

    /// What a person would look at: what the members say and the end of their logs.
    pub async fn diagnosis(&mut self) -> String {
        let mut text = String::new();
        for (i, said) in self.said().await.into_iter().enumerate() {
            let member = &mut self.members[i];
            let sidecar = member.sidecar().map_or("gone".to_owned(), |pid| format!("pid {pid}"));
            text.push_str(&format!("  {} (sidecar {sidecar}): {said:?}\n", member.name));
            let log = member.log();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(8)..] {
                text.push_str(&format!("    | {line}\n"));
            }
        }
        text
    }

    /// `kill -9` of a member's postmaster alone. Returns the moment.
    ///
    /// # Errors
    /// It has none.
    pub fn kill_postmaster(&mut self, i: usize) -> Res<Instant> {
        let procs = self.members[i].processes();
        match processes::postmaster(&procs) {
            Some(p) => {
                let now = Instant::now();
                processes::send(p.pid, Signal::KILL);
                Ok(now)
            }
            None => fail(format!("{} has no postmaster", self.members[i].name)),
        }
    }

    /// `kill -9` of everything of a member. Returns the moment.
    ///
    /// # Errors
    /// Something of it cannot be killed.
    pub async fn kill_member(&mut self, i: usize) -> Res<Instant> {
        let now = Instant::now();
        let left = processes::kill_all(&self.members[i].dir, 500);
        if !left.is_empty() {
            return fail(format!("{}: cannot kill {left:?}", self.members[i].name));
        }
        self.members[i].ended(Duration::from_secs(5)).await?;
        Ok(now)
    }

    /// The kubelet notices that a member's containers ended, after a random 0.5–1.5 s. Returns the moment of the report.
    ///
    /// # Errors
    /// The API refused.
    pub async fn report_terminated(&mut self, i: usize) -> Res<Instant> {
        sleep(Duration::from_millis(rand::random_range(500..1500))).await;
        let member = &self.members[i];
        let now = Instant::now();
        self.api.report(&member.name, member.generation, Some(137)).await?;
        Ok(now)
    }

    /// Starts a member whose processes ended: new containers in the same pod.
    ///
    /// # Errors
    /// The API refused, or the program cannot be run.
    pub async fn start_member(&mut self, i: usize) -> Res<()> {
        let member = &mut self.members[i];
        member.generation += 1;
        member.start(&self.user, &self.kubeconfig)?;
        sleep(KUBELET_NOTICES).await;
        self.api.report(&member.name, member.generation, None).await
    }

    /// Starts only the sidecar again, as a supervisor of bare processes would; nothing is reported.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn restart_sidecar(&mut self, i: usize) -> Res<()> {
        self.members[i].start(&self.user, &self.kubeconfig)
    }

    /// `kill -9` of `patroni` alone.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill_sidecar(&mut self, i: usize) -> Res<Instant> {
        let now = Instant::now();
        self.members[i].signal_sidecar(Signal::KILL)?;
        self.members[i].ended(Duration::from_secs(5)).await?;
        Ok(now)
    }

    /// SIGTERM to `patroni`: the orderly hand-over of bare processes.
    ///
    /// # Errors
    /// It does not run.
    pub fn sigterm(&mut self, i: usize) -> Res<Instant> {
        let now = Instant::now();
        self.members[i].signal_sidecar(Signal::TERM)?;
        Ok(now)
    }

    /// Stops every process of a member where it stands.
    pub fn freeze(&mut self, i: usize) -> Instant {
        let now = Instant::now();
        for _ in 0..2 {
            for p in self.members[i].processes() {
                processes::send(p.pid, Signal::STOP);
            }
        }
        now
    }

    /// Lets them go on, the keeper first.
    pub fn thaw(&mut self, i: usize) -> Instant {
        let now = Instant::now();
        for p in self.members[i].processes() {
            processes::send(p.pid, Signal::CONT);
        }
        now
    }

    /// Removes a member's data directory under its feet.
    ///
    /// # Errors
    /// The file system refused.
    pub fn wipe_data(&mut self, i: usize) -> Res<()> {
        let data = self.members[i].data_dir();
        std::fs::remove_dir_all(&data).doing(format!("remove {}", data.display()))
    }

    /// Runs the first member's `patronictl -c CONFIG ARGS` as the cluster's user: (exit code, stdout, stderr).
    ///
    /// # Errors
    /// It cannot be run, or takes longer than a minute.
    pub async fn patronictl(&self, args: &[&str]) -> Res<(i32, String, String)> {
        self.patronictl_of(0, args).await
    }

    /// The same with program and configuration of member `i`.
    ///
    /// # Errors
    /// As [`Cluster::patronictl`].
    pub async fn patronictl_of(&self, i: usize, args: &[&str]) -> Res<(i32, String, String)> {
        let member = &self.members[i];
        let mut command = Command::new(member.programs.join("patronictl"));
        command.arg("-c").arg(member.config_path()).args(args).current_dir("/");
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
        self.user.run_as(&mut command);
        let Ok(output) = timeout(Duration::from_secs(60), command.output()).await else {
            return fail(format!("patronictl {args:?} takes longer than a minute"));
        };
        let output = output.doing("run patronictl")?;
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    /// Runs SQL on a member.
    ///
    /// # Errors
    /// No connection, or what Postgres said.
    pub async fn sql(&self, i: usize, statement: &str) -> Res<Vec<Vec<String>>> {
        let client = writer::connect(self.members[i].port).await?;
        Ok(writer::rows(&client, statement).await?)
    }

    /// Kills everything and removes the directory.
    pub fn tear_down(&mut self) {
        for member in &self.members {
            let left = processes::kill_all(&member.dir, 500);
            if !left.is_empty() {
                eprintln!("{}: cannot kill {left:?}", member.name);
            }
        }
        if let Err(e) = std::fs::remove_dir_all(&self.dir)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("remove {}: {e}", self.dir.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tear_down();
    }
}
