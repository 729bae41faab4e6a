//! Clusters of real binaries and real Postgres against the embedded API, one test after the other (they are heavy).
//!
//! `cargo test --test cluster [WORD…]` runs the tests whose name contains a word. Against a real API server (`KUBE_API_URL`) it
//! is the same tests once more: a few of both modes, `PATRONI_TIER=slice:DAY` a fifth of the others beside
//! them, by the day, and `PATRONI_TIER=full` all. A test that cannot run says why and
//! counts as ignored. What a failed cluster left in its logs is kept in `target/cluster-logs/`, nothing else of it.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/runner.rs"]
mod runner;
#[path = "cluster/mod.rs"]
mod suite;

use std::process::ExitCode;

use runner::{Report, Tier};
use suite::{TESTS, Test, run};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let tier = Tier::of_this_run();
    let named = |(i, t): &(usize, &Test)| match words.is_empty() {
        true => !suite::repeats() || t.smoke() || tier.has(*i),
        false => words.iter().any(|w| t.name.contains(w.as_str())),
    };
    let wanted = TESTS.iter().enumerate().filter(|(_, t)| t.wanted());
    let chosen: Vec<&Test> = wanted.filter(named).map(|(_, t)| t).collect();
    if std::env::args().any(|a| a == "--list") {
        chosen.iter().for_each(|t| println!("{}: test", t.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut report = Report::default();
    for test in &chosen {
        let (outcome, took) = run(test);
        report.tell(test.name, outcome, took);
    }
    report.end(TESTS.len() - chosen.len())
}
