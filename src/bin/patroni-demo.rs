//! `patroni-demo`: an embedded Kubernetes API and members with real Postgres on this machine (see `demo::live`).

use std::process::ExitCode;

use clap::Parser;
use patroni::demo::live::{Args, run};

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("patroni-demo: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("patroni-demo: {e}");
            ExitCode::FAILURE
        }
    }
}
