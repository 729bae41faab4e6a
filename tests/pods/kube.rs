//! The cluster, as a person at its command line has it: `tests/kube/cluster.sh`, `kubectl`, `helm`.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use patroni::demo::{Res, fail};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// What a script of tests/kube says when it cannot run here.
const SKIPPED: i32 = 77;
/// No command of a test takes longer; building the cluster's programs is not one of them.
const COMMAND: Duration = Duration::from_secs(180);

/// A running cluster.
pub struct Kube {
    script: PathBuf,
    kubeconfig: String,
    helm: PathBuf,
    /// Its API.
    pub client: kube::Client,
}

/// Why there is no cluster.
pub enum NoCluster {
    /// It cannot run on this machine.
    Skipped(String),
    /// It should, and did not.
    Failed(String),
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `target`, or where CARGO_TARGET_DIR says.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

impl Kube {
    /// Starts a cluster of `nodes` nodes and loads the image into it; one that runs already is ended first.
    pub async fn up(nodes: u32) -> Result<Kube, NoCluster> {
        let failed = |e: &dyn std::fmt::Display| NoCluster::Failed(e.to_string());
        let archive = target().join("image/patroni.tar");
        if !archive.exists() {
            return Err(NoCluster::Failed(format!("{} is missing: make image", archive.display())));
        }
        let script = root().join("tests/kube/cluster.sh");
        let up = Command::new(&script).args(["up", "--nodes", &nodes.to_string()]).stderr(Stdio::inherit()).output();
        let up = up.await.map_err(|e| failed(&e))?;
        let said = String::from_utf8_lossy(&up.stdout).into_owned();
        if up.status.code() == Some(SKIPPED) {
            let why = said.lines().rev().find_map(|l| l.strip_prefix("skipped: ")).unwrap_or("no reason was given");
            return Err(NoCluster::Skipped(why.to_owned()));
        }
        if !up.status.success() {
            return Err(NoCluster::Failed(format!("cluster.sh up failed: {said}")));
        }
        let kubeconfig = said.lines().find_map(|l| l.strip_prefix("KUBECONFIG=")).unwrap_or_default().to_owned();
        let cache = std::env::var("PATRONI_KUBE_CACHE").map_or_else(
            |_| {
                let home = std::env::var("XDG_CACHE_HOME")
                    .unwrap_or_else(|_| format!("{}/.cache", std::env::var("HOME").unwrap_or_default()));
                Path::new(&home).join("patroni-kube")
            },
            PathBuf::from,
        );
        let client = client(&kubeconfig).await.map_err(|e| failed(&e))?;
        let kube = Kube { script, kubeconfig, helm: cache.join("bin/helm"), client };
        kube.script(&["load", &archive.to_string_lossy()]).await.map_err(|e| failed(&e))?;
        Ok(kube)
    }

    /// Ends the cluster.
    pub async fn down(&self) -> Res<()> {
        self.script(&["down"]).await.map(drop)
    }

    /// Loads the same image under another name into every node.
    pub async fn load_as(&self, name: &str) -> Res<()> {
        let work = std::env::temp_dir().join(format!("pods-image-{}", std::process::id()));
        let unpacked = work.join("oci");
        std::fs::create_dir_all(&unpacked)?;
        let (archive, there) = (target().join("image/patroni.tar"), unpacked.to_string_lossy().into_owned());
        self.must(Path::new("tar"), &["-xf", &archive.to_string_lossy(), "-C", &there]).await?;
        let index = unpacked.join("index.json");
        let old = format!("localhost/patroni-rs:{}", env!("CARGO_PKG_VERSION"));
        std::fs::write(&index, std::fs::read_to_string(&index)?.replace(&old, name))?;
        let renamed = work.join("renamed.tar").to_string_lossy().into_owned();
        self.must(Path::new("tar"), &["-cf", &renamed, "-C", &there, "."]).await?;
        let loaded = self.script(&["load", &renamed]).await;
        std::fs::remove_dir_all(&work)?;
        loaded.map(drop)
    }

    async fn run(&self, what: &str, command: &mut Command, limit: Duration) -> Res<Output> {
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
        match timeout(limit, command.output()).await {
            Ok(output) => Ok(output?),
            Err(_) => fail(format!("{what}: not done within {} s", limit.as_secs())),
        }
    }

    async fn must(&self, program: &Path, args: &[&str]) -> Res<String> {
        let what = format!("{} {}", program.file_name().unwrap_or_default().to_string_lossy(), args.join(" "));
        let output = self.run(&what, Command::new(program).args(args), COMMAND).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        fail(format!("{what}: {}{text}", String::from_utf8_lossy(&output.stderr)))
    }

    /// A command of tests/kube/cluster.sh.
    pub async fn script(&self, args: &[&str]) -> Res<String> {
        self.must(&self.script, args).await
    }

    /// Breaks or mends something; see `cluster.sh fault`.
    pub async fn fault(&self, args: &[&str]) -> Res<Instant> {
        let words: Vec<&str> = ["fault"].iter().chain(args).copied().collect();
        self.script(&words).await?;
        Ok(Instant::now())
    }

    /// `kubectl`; its standard output.
    pub async fn kubectl(&self, args: &[&str]) -> Res<String> {
        self.must(Path::new("kubectl"), args).await
    }

    /// `kubectl`, whatever becomes of it: exit code and everything it said.
    pub async fn try_kubectl(&self, args: &[&str]) -> Res<(i32, String)> {
        let output = self.run("kubectl", Command::new("kubectl").args(args), COMMAND).await?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Applies a manifest.
    pub async fn apply(&self, manifest: &str) -> Res<()> {
        let path = std::env::temp_dir().join(format!("pods-{}.yaml", std::process::id()));
        std::fs::write(&path, manifest)?;
        let applied = self.kubectl(&["apply", "-f", &path.to_string_lossy()]).await;
        std::fs::remove_file(&path)?;
        applied.map(drop)
    }

    /// `helm`.
    pub async fn helm(&self, args: &[&str]) -> Res<String> {
        self.must(&self.helm, args).await
    }
}

async fn client(kubeconfig: &str) -> Res<kube::Client> {
    // Tests may come before anything else that wants TLS; the first provider stays.
    drop(rustls::crypto::ring::default_provider().install_default());
    let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(3));
    config.read_timeout = Some(Duration::from_secs(10));
    Ok(kube::Client::try_from(config)?)
}

/// Asks until the answer is there; `what` is for the message.
pub async fn wait_for<T, F>(what: &str, limit: Duration, mut ask: impl FnMut() -> F) -> Res<T>
where
    F: Future<Output = Res<Result<T, String>>>,
{
    let end = Instant::now() + limit;
    loop {
        let last = match ask().await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(not_yet)) => not_yet,
            Err(e) => e.to_string(),
        };
        if Instant::now() > end {
            return fail(format!("{what}: not within {:.0} s; last seen: {last}", limit.as_secs_f64()));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Shared by the tests of a run.
pub type SharedKube = Arc<Kube>;
