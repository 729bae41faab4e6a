//! `patronictl`, the command line (patronictl.md): what people use with `kubectl exec`.
//!
//! ```text
//! cli (clap, click's words) ─► session (configuration, store, REST client, terminal) ─► one file per group of commands
//! ```
//! Everything people and scripts compare byte for byte is pure: `output` (table, tsv, JSON, YAML), `members` (rows of
//! `list` and `topology`), `dates`. Questions go through `prompts::Terminal`. The commands: `view` (list, topology, history,
//! version, show-config), `query` (dsn, query), `select` (which members), `restart` (reload, restart), `reinit`,
//! `flush`, `switchover` (and failover), `standby` (demote-cluster, promote-cluster), `remove`, `pause` (and resume), `config_edit`.
//!
//! A refusal of a member is an answer: it is printed and the exit code is 0. Errors of this program are one line on stderr,
//! exit 1; mistakes on the command line are 2. What it deliberately does not do: decide anything about the cluster, or
//! write into the store what a member's REST API could be asked for (except where Patroni does so too).

pub mod cli;
pub mod config_edit;
pub mod dates;
pub mod error;
pub mod flush;
pub mod members;
pub mod output;
pub mod pause;
pub mod prompts;
pub mod query;
pub mod reinit;
pub mod remove;
pub mod rest;
pub mod restart;
pub mod select;
pub mod session;
pub mod standby;
pub mod switchover;
pub mod tls;
pub mod view;

use std::process::ExitCode;

use clap::ArgMatches;

use cli::Parsed;
use error::{CtlError, Result};
use prompts::{Console, Terminal};
use session::Session;
use switchover::Manual;

/// Runs `patronictl` with these arguments (without the program name).
pub fn main(args: &[String]) -> ExitCode {
    exit_on_interrupt();
    let mut console = Console;
    let result = match cli::parse(args) {
        Ok(Parsed::Help(text, 0)) => {
            console.out(&text);
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::Help(text, code)) => {
            console.err(text.trim_end());
            return ExitCode::from(code);
        }
        Ok(Parsed::Run(matches)) => run(&matches, &mut console),
        Err(e) => Err(e),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            console.err(&e.to_string());
            ExitCode::from(e.code())
        }
    }
}

/// Ctrl-C prints `Aborted!` and ends with 1 wherever the program is, at a blocking prompt too: hence a thread.
fn exit_on_interrupt() {
    std::thread::spawn(|| {
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build()
            && runtime.block_on(tokio::signal::ctrl_c()).is_ok()
        {
            eprintln!("\n{}", CtlError::Aborted);
            std::process::exit(1);
        }
    });
}

fn run(matches: &ArgMatches, console: &mut dyn Terminal) -> Result<()> {
    let Some((name, args)) = matches.subcommand() else { return Ok(()) };
    if args.get_one::<i64>("group").is_some() {
        return Err(CtlError::plain("--group is not available in this version: it is for Citus clusters"));
    }
    if name == "version" {
        console.out(&format!("{}\n", view::version_line()));
        if args.get_one::<String>("CLUSTER_NAME").is_none() {
            return Ok(());
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CtlError::plain(format!("Can not start: {e}")))?;
    runtime.block_on(async {
        let mut session = Session::open(matches, console)?;
        command(name, args, &mut session).await
    })
}

async fn command(name: &str, args: &ArgMatches, session: &mut Session<'_>) -> Result<()> {
    match name {
        "list" => view::list(session, args, false).await,
        "topology" => view::list(session, args, true).await,
        "history" => view::history(session, args).await,
        "show-config" => view::show_config(session, args).await,
        "version" => view::version(session, args).await,
        "dsn" => query::dsn(session, args).await,
        "query" => query::query(session, args).await,
        "edit-config" => config_edit::edit(session, args).await,
        "demote-cluster" => standby::run(session, args, standby::Change::Demote).await,
        "promote-cluster" => standby::run(session, args, standby::Change::Promote).await,
        "remove" => remove::run(session, args).await,
        "pause" => pause::run(session, args, true).await,
        "resume" => pause::run(session, args, false).await,
        "reload" => restart::reload(session, args).await,
        "restart" => restart::restart(session, args).await,
        "reinit" => reinit::reinit(session, args).await,
        "flush" => flush::run(session, args).await,
        "switchover" => switchover::run(session, args, Manual::Switchover).await,
        "failover" => switchover::run(session, args, Manual::Failover).await,
        other => Err(CtlError::plain(format!("{other} is not available in this version"))),
    }
}
