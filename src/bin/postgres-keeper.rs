//! `postgres-keeper`: see `patroni::keeper`.

use std::process::ExitCode;

fn main() -> ExitCode {
    patroni::keeper::main(std::env::args().skip(1).collect())
}
