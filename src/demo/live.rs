//! `patroni-demo`: a cluster to look at and to break by hand, or the scripted story.
//!
//! It says at every step what it does, prints how to reach the cluster, and redraws a table of the members once a second
//! (on a terminal; else a line whenever something changes). Ctrl-C or SIGTERM ends it, and nothing of it stays behind.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, Options, StoreMode, Theirs};
use super::member::{PASSWORD, Said};
use super::writer::Writer;
use super::{Res, fail, machine, story};

/// A Patroni cluster on this machine: an embedded Kubernetes API and members with real Postgres, all on loopback.
#[derive(Debug, Parser)]
#[command(name = "patroni-demo", version)]
pub struct Args {
    /// Play the scripted story (crash, lost member, rejoin, switchover, SIGTERM) and exit.
    #[arg(long)]
    pub story: bool,
    /// How many members.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub members: u8,
    /// Keep the lease in ConfigMaps instead of Endpoints.
    #[arg(long)]
    pub configmaps: bool,
    /// Where patroni, postgres-keeper and patronictl are; beside this program when not given.
    #[arg(long, env = "PATRONI_BIN_DIR")]
    pub bin_dir: Option<PathBuf>,
    /// The `bin` of a virtual environment with Patroni 4.1: all members but the last run it, beside one of ours.
    #[arg(long)]
    pub beside: Option<PathBuf>,
    /// HOST:PORT,…: a standby cluster of the demo whose members are there; a second terminal runs that one. Its scope is
    /// `copy`, and it takes the next free ports.
    #[arg(long, value_delimiter = ',')]
    pub follow: Vec<String>,
    /// SITE,…: where each member is, in turn
    #[arg(long, value_delimiter = ',')]
    pub sites: Vec<String>,
    /// First port for Postgres; the members take the next free ones.
    #[arg(long, default_value_t = 5432)]
    pub port: u16,
    /// First port for REST.
    #[arg(long, default_value_t = 8008)]
    pub rest_port: u16,
    /// Port of the embedded Kubernetes API; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub api_port: u16,
    /// Seconds of configuration: ttl.
    #[arg(long, default_value_t = 30)]
    pub ttl: u32,
    /// Seconds of configuration: loop_wait.
    #[arg(long, default_value_t = 10)]
    pub loop_wait: u32,
    /// Seconds of configuration: retry_timeout.
    #[arg(long, default_value_t = 10)]
    pub retry_timeout: u32,
}

/// Runs the demo until it is over or somebody ends it.
///
/// # Errors
/// Whatever stopped it; everything started is gone again by then.
pub async fn run(args: Args) -> Res<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        result = show(args) => result,
        interrupted = tokio::signal::ctrl_c() => { interrupted?; say("ending: stopping members, removing their files"); Ok(()) }
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    }
}

fn say(line: &str) {
    println!("{line}");
    // A closed pipe ends the demo at the next line; there is nobody left to tell.
    drop(std::io::stdout().flush());
}

async fn show(args: Args) -> Res<()> {
    let begun = Instant::now();
    let postgres = machine::find_or_install_postgres(&|line| say(line))?;
    say(&format!("Postgres programs: {}", postgres.display()));
    let beside = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
    let mut options = Options::new(args.bin_dir.unwrap_or(beside), postgres);
    options.members = usize::from(args.members);
    options.theirs = args.beside.map(|bin_dir| Theirs { bin_dir, members: (0..options.members - 1).collect() });
    options.mode = if args.configmaps { StoreMode::ConfigMaps } else { StoreMode::Endpoints };
    (options.ttl, options.loop_wait, options.retry_timeout) = (args.ttl, args.loop_wait, args.retry_timeout);
    (options.ports, options.api_port) = ((args.port, args.rest_port), args.api_port);
    if !args.follow.is_empty() {
        options.scope = "copy".into();
        options.dcs_extra = format!("    standby_cluster: {}\n", section(&args.follow)?);
    }
    let mut cluster = Cluster::start(options).await?;
    say(&format!("embedded Kubernetes API: {}", cluster.api.url()));
    say(&format!("{} members started in {}", cluster.members.len(), cluster.dir.display()));
    first_steps(&mut cluster).await?;
    say(&format!("all streaming {:.1} s after the start\n", begun.elapsed().as_secs_f64()));
    say(&how_to_reach(&cluster));
    let client = cluster.clients(Duration::from_millis(10))?;
    if args.story { story::play(&mut cluster, client, &say).await } else { watch(&mut cluster, &client).await }
}

/// The section of a standby cluster that follows whoever writes of these.
fn section(places: &[String]) -> Res<serde_json::Value> {
    let mut parts = Vec::new();
    for place in places {
        match place.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => parts.push((host, port)),
            Some(_) | None => {
                return fail(format!("--follow {place}: must be HOST:PORT, or several separated by commas"));
            }
        }
    }
    let list = |words: Vec<&str>| words.join(",");
    let (hosts, ports) = parts.into_iter().unzip();
    Ok(serde_json::json!({"host": list(hosts), "port": list(ports)}))
}

/// Waits until the cluster is whole for the first time and prints each member's state as it changes.
async fn first_steps(cluster: &mut Cluster) -> Res<usize> {
    let deadline = cluster.options.healed_within() + Duration::from_secs(60);
    let mut before: Vec<Option<Said>> = Vec::new();
    let others = if cluster.members.len() == 1 { "a leader" } else { "one leader and the others streaming" };
    cluster
        .wait_for(others, deadline, async |c| {
            let said = c.said().await;
            for (i, now) in said.iter().enumerate() {
                if let Some(now) = now
                    && before
                        .get(i)
                        .and_then(Option::as_ref)
                        .is_none_or(|b| (&b.state, &b.role) != (&now.state, &now.role))
                {
                    say(&format!("  {}: {} ({})", c.members[i].name, now.state, now.role));
                }
            }
            before = said;
            let leads = |s: &Said| s.role == "standby_leader" && s.is_streaming();
            let follows = before.iter().flatten().all(Said::is_streaming);
            let leader = before.iter().position(|s| s.as_ref().is_some_and(leads));
            match leader.filter(|_| follows && before.iter().all(Option::is_some)) {
                Some(leader) => Some(leader),
                None => c.whole_without(&[]).await,
            }
        })
        .await
}

fn how_to_reach(cluster: &Cluster) -> String {
    let o = &cluster.options;
    let kubeconfig = cluster.kubeconfig().display();
    let config = cluster.members[0].config_path();
    let ports: Vec<String> = cluster.members.iter().map(|m| m.port.to_string()).collect();
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let ctl = format!("KUBECONFIG={kubeconfig} {}/patronictl -c {}", o.bin_dir.display(), config.display());
    format!(
        "psql        {}/psql 'host={hosts} port={} user=postgres password={PASSWORD} target_session_attrs=read-write'\n\
         patronictl  {ctl} list\n\
         switchover  {ctl} switchover --force\n\
         REST        http://127.0.0.1:{}/cluster\n\
         KUBECONFIG  KUBECONFIG={kubeconfig} kubectl get pods,endpoints -o yaml\n\
         logs        tail -f {}/{}-*/patroni.log\n\
         fail over   kill -9 the postmaster or the whole member listed below, and watch\n",
        o.postgres.display(),
        ports.join(","),
        cluster.members[0].rest,
        cluster.dir.display(),
        o.scope
    )
}

const HEAD: &str = "member      port  patroni  role       state                   TL     position";

/// One line of the table for a member.
fn row(name: &str, port: u16, pid: Option<i32>, said: Option<&Said>) -> String {
    let pid = pid.map_or("-".to_owned(), |p| p.to_string());
    match said {
        None => format!("{name:<10} {port:>5} {pid:>8}  no answer"),
        Some(s) => format!(
            "{name:<10} {port:>5} {pid:>8}  {:<10} {:<22} {:>3} {:>12}",
            s.role,
            if s.replication.is_empty() { &s.state } else { &s.replication },
            s.timeline,
            format!("{:X}/{:X}", s.lsn >> 32, s.lsn & 0xffff_ffff)
        ),
    }
}

/// Redraws the table until the caller is interrupted. Postgres gone means that its member heals or that it was killed
/// whole, and then the demo starts it again after three seconds, as a kubelet would.
async fn watch(cluster: &mut Cluster, client: &Writer) -> Res<()> {
    let terminal = std::io::stdout().is_terminal();
    let (mut drawn, mut before) = (0, Vec::new());
    loop {
        revive(cluster).await?;
        let said = cluster.said().await;
        let mut lines = vec![HEAD.to_owned()];
        for (member, said) in cluster.members.iter_mut().zip(&said) {
            let pid = member.sidecar();
            lines.push(row(&member.name, member.port, pid, said.as_ref()));
        }
        let (count, last) = client.count();
        let gap = client.longest_gap(Instant::now() - Duration::from_secs(60));
        let by = last.map_or("nobody yet", |i| cluster.members[i].name.as_str());
        lines.push(format!(
            "client: {count} rows acknowledged, the last by {by}; longest pause in the last minute {:.2} s",
            gap.as_secs_f64()
        ));
        if terminal {
            if drawn > 0 {
                print!("\x1b[{drawn}A");
            }
            let text: Vec<String> = lines.iter().map(|l| format!("\x1b[2K{l}")).collect();
            say(&text.join("\n"));
            drawn = lines.len();
        } else {
            let states: Vec<Option<(String, String)>> =
                said.iter().map(|s| s.as_ref().map(|s| (s.role.clone(), s.state.clone()))).collect();
            if states != before {
                say(&lines.join("\n"));
                before = states;
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// A member of which nothing is left is reported terminated and started again.
async fn revive(cluster: &mut Cluster) -> Res<()> {
    for i in 0..cluster.members.len() {
        if cluster.members[i].sidecar().is_some() {
            continue;
        }
        if cluster.members[i].processes().is_empty() {
            cluster.report_terminated(i).await?;
            sleep(Duration::from_secs(1)).await;
            cluster.start_member(i).await?;
        } else {
            cluster.restart_sidecar(i)?;
        }
    }
    Ok(())
}
