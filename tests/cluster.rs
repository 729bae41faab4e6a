//! Clusters of real binaries and real Postgres against the embedded API, one test after the other (they are heavy).
//!
//! `cargo test --test cluster [WORD…]` runs the tests whose name contains a word. A test that cannot run says why and
//! counts as ignored. What a failed cluster left in its logs is kept in `target/cluster-logs/`, nothing else of it.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "cluster/mod.rs"]
mod suite;

use std::process::ExitCode;
use std::time::Duration;

use suite::{Outcome, TESTS, Test, run};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<&Test> =
        TESTS.iter().filter(|t| words.is_empty() || words.iter().any(|w| t.name.contains(w.as_str()))).collect();
    if std::env::args().any(|a| a == "--list") {
        chosen.iter().for_each(|t| println!("{}: test", t.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let (mut failed, mut skipped, mut passed, mut total) = (Vec::new(), Vec::new(), 0, Duration::ZERO);
    for test in &chosen {
        let (outcome, took) = run(test);
        total += took;
        println!("test {} ... {} ({:.1} s)", test.name, outcome.word(), took.as_secs_f64());
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::Skipped(why) => skipped.push(format!("skipped {}: {why}", test.name)),
            Outcome::Failed(why) => {
                println!("{why}");
                failed.push(format!("failed {}", test.name));
            }
        }
    }
    skipped.iter().chain(&failed).for_each(|line| println!("{line}"));
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        skipped.len(),
        TESTS.len() - chosen.len(),
        total.as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
