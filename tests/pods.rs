//! The chart in real pods on a real cluster: kubelet, containerd, controllers, a stock Postgres image (tests/kube).
//!
//! `cargo test --test pods [WORD…]` runs the smoke part, or the tests whose name contains a word; `PATRONI_TIER=full` runs
//! all of them (make test-full), `PATRONI_TIER=slice:DAY` the smoke part and a fifth of the rest, by the day. Needs root, Go
//! and cgroups, and the image of `make image`; where the cluster cannot run, every test says why and counts as ignored. Each test prints what it cost: outage and lost rows as the clients saw them.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/runner.rs"]
mod runner;
#[path = "pods/mod.rs"]
mod suite;

use std::process::ExitCode;

use runner::{Report, Tier};
use suite::{TESTS, Test};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let tier = Tier::of_this_run();
    let wanted = |(i, t): &(usize, &Test)| match words.is_empty() {
        true => t.smoke || tier.has(*i),
        false => words.iter().any(|w| t.name.contains(w.as_str())),
    };
    let chosen: Vec<&Test> = TESTS.iter().enumerate().filter(wanted).map(|(_, t)| t).collect();
    if std::env::args().any(|a| a == "--list") {
        chosen.iter().for_each(|t| println!("{}: test", t.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut report = Report::default();
    suite::run(&chosen, |test, outcome, took| report.tell(test.name, outcome, took));
    report.end(TESTS.len() - chosen.len())
}
