//! `patroni`: the sidecar. Parses the command line, wires configuration, API and loop, and ends with the loop's word.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use patroni::driver::settings::{self, Source};
use patroni::driver::{preflight, startup};
use patroni::model::{Timings, WatchdogMode, timings};
use patroni::{api, config, dcs};
use tracing::{info, warn};

/// Keeps one PostgreSQL member of a highly available cluster on Kubernetes.
#[derive(Parser)]
#[command(name = "patroni", disable_version_flag = true)]
struct Args {
    /// Print the version and exit.
    #[arg(long)]
    version: bool,
    /// Check the configuration and exit: with 1 if a start would refuse it or a value is wrong, else with 0. What a start
    /// would only warn about is printed too, in lines that begin with WARNING.
    #[arg(long, conflicts_with = "generate_sample_config")]
    validate_config: bool,
    /// With --validate-config: do not complain about listen ports that are in use.
    #[arg(short = 'i', long)]
    ignore_listen_port: bool,
    /// With --validate-config: then print the effective local configuration.
    #[arg(short = 'p', long)]
    print: bool,
    /// Write a sample configuration to CONFIGFILE or standard output, and exit.
    #[arg(long)]
    generate_sample_config: bool,
    /// Print when what happens after a confirmed renewal of the lease, and exit.
    #[arg(long)]
    print_timings: bool,
    /// File, or directory with *.yml files. Without it: PATRONI_CONFIGURATION, then PATRONI_* variables alone.
    configfile: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.version {
        println!("patroni {} ({})", dcs::CONTRACT_VERSION, dcs::IMPLEMENTATION);
        return ExitCode::SUCCESS;
    }
    let source = Source {
        path: args.configfile.clone(),
        environment: environment(),
        home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from),
    };
    let result = if args.generate_sample_config {
        sample(&args, &source)
    } else if args.validate_config {
        validate(&args, &source)
    } else if args.print_timings {
        print_timings(&source)
    } else {
        return run(source);
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(lines) => {
            eprintln!("{lines}");
            ExitCode::FAILURE
        }
    }
}

/// `PATRONI_*` of the environment; what is no text is left out.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .filter(|(k, _)| k.starts_with("PATRONI_"))
        .collect()
}

fn sample(args: &Args, source: &Source) -> Result<(), String> {
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").map_err(|e| e.to_string())?.trim().to_owned();
    let facts = config::SampleFacts { address: host.clone(), host_name: host, pg_major: 15 };
    let text = config::sample(&facts, &source.environment);
    match &args.configfile {
        None => println!("{text}"),
        Some(path) => {
            if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
                fs_err::create_dir_all(dir).map_err(|e| e.to_string())?;
            }
            fs_err::write(path, text).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

fn validate(args: &Args, source: &Source) -> Result<(), String> {
    let (report, read) = runtime()?.block_on(preflight::check(source));
    let mut problems = report.problems;
    if let Some(config) = &read {
        // As at a start: the provider of TLS comes first.
        startup::prepare_tls();
        problems.extend(api::check(&settings::api(config)).err());
    }
    if let (Some(config), true, false) = (&read, problems.is_empty(), args.ignore_listen_port) {
        problems.extend(occupied("restapi", &config.restapi.listen));
        problems.extend(occupied("postgresql", &config.postgresql.listen));
    }
    for warning in &report.warnings {
        eprintln!("WARNING: {warning}");
    }
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    if let (Some(config), true) = (&read, args.print) {
        print!("{}", config::yaml::to_string_block(&config.raw));
    }
    Ok(())
}

/// Somebody listens there already.
fn occupied(key: &str, listen: &str) -> Option<String> {
    let (hosts, port) = config::split_listen(listen);
    let host = hosts.split(',').next().filter(|h| !h.is_empty() && *h != "*").unwrap_or("127.0.0.1");
    std::net::TcpStream::connect(format!("{host}:{port}"))
        .is_ok()
        .then(|| format!("{key}.listen {listen} didn't pass validation: Port {port} is already in use."))
}

fn print_timings(source: &Source) -> Result<(), String> {
    let config = source.load()?.config;
    let document = config.bootstrap.as_ref().map(|b| b.dcs.clone()).unwrap_or_default();
    let (dynamic, warnings) = config::Dynamic::parse(&document);
    for warning in warnings {
        eprintln!("{warning}");
    }
    let read = settings::read(&config, &dynamic, &source.home, settings::Pod::default(), 15);
    let (settings, ttl) = (&read.wishes.settings, read.wishes.settings.ttl);
    let device = Some(timings::device(settings, ttl)).filter(|_| settings.watchdog != WatchdogMode::Off);
    let timings = match Timings::new(settings, ttl, device) {
        Err(tight) if settings.watchdog == WatchdogMode::Automatic => {
            eprintln!("running without the watchdog: {tight}");
            Timings::new(settings, ttl, None)
        }
        other => other,
    };
    let timings = timings.map_err(|e| e.to_string())?;
    println!("{timings}");
    Ok(())
}

/// Threads for file work: one that hangs with its volume must not hold up the rest, more would only cost memory.
const BLOCKING_THREADS: usize = 2;

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let built = builder.enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    built.map_err(|e| format!("patroni: cannot start: {e}"))
}

fn run(source: Source) -> ExitCode {
    match runtime().and_then(|runtime| runtime.block_on(member(source))) {
        Ok(code) => ExitCode::from(code),
        Err(line) => {
            eprintln!("{line}");
            ExitCode::FAILURE
        }
    }
}

async fn member(source: Source) -> Result<u8, String> {
    let loaded = source.load()?;
    if let Err(why) = startup::prepare(&loaded.config) {
        warn!("{why}");
    }
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let api_settings = Arc::new(settings::api(&loaded.config));
    let bound = api::bind(&api_settings)?;
    let Some(started) = startup::start(source, api_settings, loaded.config).await? else { return Ok(0) };
    tokio::spawn(bound.serve(started.handle));
    let ended = started.driver.run().await;
    info!("{}", ended.message);
    Ok(ended.code)
}
