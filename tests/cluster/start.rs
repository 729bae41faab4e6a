//! From nothing to a cluster: the first start, a start that was interrupted, a start after everything died, the demo.

use std::process::Stdio;
use std::time::Duration;

use patroni::demo::cluster::{Cluster, Options, StoreMode};
use patroni::demo::{Doing, Res, fail};
use serde_json::Value;

use super::{Allowed, Trial, keep_logs, leader_object, must};

/// "The sidecars of a cluster elect a leader through one annotated Endpoints or ConfigMap object".
pub async fn three_members_start_from_nothing(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = looks_like_patroni(&mut trial.cluster, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn looks_like_patroni(cluster: &mut Cluster, leader: usize) -> Res<()> {
    let name = cluster.members[leader].name.clone();
    let (kind, object) = leader_object(cluster.options.mode);
    let lease = cluster.api.annotations(kind, object).await?;
    must(lease.get("leader") == Some(&name), format!("{object} names {:?}, {name} leads", lease.get("leader")))?;
    must(lease.contains_key("ttl"), "the lease has no ttl")?;
    if cluster.options.mode == StoreMode::Endpoints {
        let endpoints = cluster.api.object(kind, object).await?;
        let port = endpoints.pointer("/subsets/0/ports/0/port").and_then(Value::as_u64);
        must(port == Some(cluster.members[leader].port.into()), format!("the Endpoints lead to port {port:?}"))?;
    }
    let config = cluster.api.annotations(kind, "test-config").await?;
    let system = cluster.sql(leader, "SELECT system_identifier FROM pg_control_system()").await?;
    must(
        config.get("initialize") == system.first().and_then(|r| r.first()),
        format!("initialize is {:?}, the system identifier {system:?}", config.get("initialize")),
    )?;
    for i in 0..cluster.members.len() {
        let (good, bad) = if i == leader { ("/primary", "/replica") } else { ("/replica", "/primary") };
        for (path, wanted) in [(good, 200), (bad, 503), ("/health", 200), ("/readiness", 200), ("/liveness", 200)] {
            let got = cluster.rest(i, path).await.map(|(status, _)| status);
            must(got == Some(wanted), format!("{} answers {path} with {got:?}", cluster.members[i].name))?;
        }
        let wanted = if i == leader { "the leader's label" } else { "the label of a replica" };
        let deadline = cluster.options.secs(10.0);
        cluster
            .wait_for(&format!("{} has {wanted}", cluster.members[i].name), deadline, async |c| {
                let pod = c.api.object("pods", &c.members[i].name).await.ok()?;
                let role = pod.pointer("/metadata/labels/role").and_then(Value::as_str)?.to_owned();
                ((role == "replica") != (i == leader)).then_some(())
            })
            .await?;
    }
    let slots = cluster.sql(leader, "SELECT slot_name FROM pg_replication_slots WHERE active ORDER BY 1").await?;
    must(slots.len() == cluster.members.len() - 1, format!("active slots on the leader: {slots:?}"))?;
    // A member publishes that it streams a moment after it says so itself.
    let deadline = cluster.options.secs(20.0);
    cluster
        .wait_for("a list with a leader and two streaming replicas", deadline, async |c| {
            let (code, table, _) = c.patronictl(&["list"]).await.ok()?;
            let whole = table.matches("Replica").count() == 2 && table.matches("streaming").count() == 2;
            (code == 0 && table.contains("Leader") && whole).then_some(())
        })
        .await
}

/// "The same pod restarted clears its own half-made directory (the only case) and starts again".
pub async fn a_bootstrap_killed_half_way_is_finished(options: Options) -> Res<()> {
    let mut cluster = Cluster::start(options).await?;
    let result = kill_during_initdb(&mut cluster).await;
    if result.is_err() {
        keep_logs(&cluster);
    }
    result
}

async fn kill_during_initdb(cluster: &mut Cluster) -> Res<()> {
    let bootstrapping = cluster
        .wait_for("a member runs initdb", Duration::from_secs(20), async |c| {
            c.members.iter().position(|m| m.processes().iter().any(|p| p.name == "initdb"))
        })
        .await?;
    cluster.kill_member(bootstrapping).await?;
    cluster.start_member(bootstrapping).await?;
    let deadline = cluster.options.healed_within() + Duration::from_secs(20);
    cluster.wait_whole(deadline).await?;
    Ok(())
}

/// "a whole-cluster kill and restart" heals, and what was acknowledged is there.
pub async fn a_cluster_killed_whole_comes_back(options: Options) -> Res<()> {
    let (mut trial, _) = Trial::begin(options).await?;
    let result = kill_everybody(&mut trial).await;
    trial.end(result, Allowed::Tail).await
}

async fn kill_everybody(trial: &mut Trial) -> Res<()> {
    let cluster = &mut trial.cluster;
    for i in 0..cluster.members.len() {
        cluster.kill_member(i).await?;
    }
    for i in 0..cluster.members.len() {
        // As a crash between the last write to the store and the removal of the marker would leave it: what the store
        // knows as initialized is never cleared as half-made, or every row would be gone here.
        let pod = cluster.api.object("pods", &cluster.members[i].name).await?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut marker = cluster.members[i].data_dir().into_os_string();
        marker.push(".patroni-initializing");
        std::fs::write(marker, format!("bootstrap {uid}\n")).doing("leave a bootstrap marker")?;
        cluster.start_member(i).await?;
    }
    trial.whole().await?;
    Ok(())
}

/// `make demo STORY=1` is also a test: it exits 0, and nothing of it stays behind.
pub async fn the_demo_tells_its_story(options: Options) -> Res<()> {
    let mut demo = tokio::process::Command::new(env!("CARGO_BIN_EXE_patroni-demo"));
    demo.args(["--story", "--ttl", "20", "--loop-wait", "1", "--retry-timeout", "3", "--port", "26000"]);
    demo.args(["--rest-port", "28500", "--bin-dir"]).arg(&options.bin_dir).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(150), demo.output()).await;
    let Ok(output) = output else { return fail("the story is not over after 150 s") };
    let output = output.doing("run patroni-demo")?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    must(output.status.success(), format!("{}\n{told}{}", output.status, String::from_utf8_lossy(&output.stderr)))?;
    must(told.contains("two writable primaries: 0"), told.clone())?;
    let dir = told.lines().find_map(|l| l.split_once(" members started in ")).map(|(_, dir)| dir.to_owned());
    let left = dir.is_none_or(|d| std::path::Path::new(&d).exists());
    must(!left, format!("the demo left its directory behind\n{told}"))
}

/// `bootstrap.method`: a script makes the data directory, and afterwards everybody comes in as with initdb.
pub async fn a_custom_method_makes_the_cluster(mut options: Options) -> Res<()> {
    let initdb = options.postgres.join("initdb");
    options.bootstrap_extra = format!(
        "  method: mine\n  mine:\n    command: >-\n      sh -c 'echo made by mine; {} -k -E UTF8 -U postgres -A trust -D \"${{2#--datadir=}}\" >&2' sh\n",
        initdb.display()
    );
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = made_by_the_method(&mut trial.cluster, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn made_by_the_method(cluster: &mut Cluster, leader: usize) -> Res<()> {
    let log = cluster.members[leader].log();
    must(log.contains("made by mine"), "the log of the leader does not name the method")?;
    let rules = cluster.sql(leader, "SELECT count(*) FROM pg_hba_file_rules WHERE database = '{replication}'").await?;
    must(rules.first().and_then(|r| r.first()).is_some_and(|n| n != "0"), format!("rules for replication: {rules:?}"))
}

/// A data directory of another major version: one line says which, nothing is changed, and the right one goes on.
pub async fn a_data_directory_of_another_version_is_refused(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = another_version(&mut trial, (leader + 1) % 3).await;
    trial.end(result, Allowed::Nothing).await
}

async fn another_version(trial: &mut Trial, replica: usize) -> Res<()> {
    let cluster = &mut trial.cluster;
    let file = cluster.members[replica].data_dir().join("PG_VERSION");
    let right = std::fs::read_to_string(&file)?;
    cluster.kill_member(replica).await?;
    std::fs::write(&file, "12\n")?;
    cluster.start_member(replica).await?;
    let said = "is of PostgreSQL 12";
    let deadline = cluster.options.secs(60.0);
    cluster.wait_for(said, deadline, async |c| c.members[replica].log().contains(said).then_some(())).await?;
    cluster.kill_member(replica).await?;
    std::fs::write(&file, right)?;
    cluster.start_member(replica).await
}

/// SIGHUP: the file is read again, and Postgres takes what it may take without a restart.
pub async fn sighup_applies_the_changed_file(options: Options) -> Res<()> {
    let (mut trial, leader) = Trial::begin(options).await?;
    let result = changed_file(&mut trial.cluster, leader).await;
    trial.end(result, Allowed::Nothing).await
}

async fn changed_file(cluster: &mut Cluster, leader: usize) -> Res<()> {
    let path = cluster.members[leader].config_path();
    let text = std::fs::read_to_string(&path)?;
    let changed = text.replace("    unix_socket_directories:", "    work_mem: 7MB\n    unix_socket_directories:");
    must(changed != text, "the file has no place for a parameter")?;
    std::fs::write(&path, changed)?;
    cluster.members[leader].signal_sidecar(rustix::process::Signal::HUP)?;
    let deadline = cluster.options.secs(60.0);
    cluster
        .wait_for("work_mem of 7MB", deadline, async |c| {
            let rows = c.sql(leader, "SHOW work_mem").await.ok()?;
            (rows == [["7MB"]]).then_some(())
        })
        .await
}
