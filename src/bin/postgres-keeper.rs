//! `postgres-keeper`: see `patroni::keeper`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false).init();
    patroni::keeper::main(std::env::args().skip(1).collect())
}
