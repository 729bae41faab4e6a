//! What the tests with a `main` of their own share: how a test ended, told in cargo's words.

use std::process::ExitCode;
use std::time::Duration;

/// How a test ended.
pub enum Outcome {
    /// Well.
    Passed,
    /// It could not run here; why.
    Skipped(String),
    /// What was wrong.
    Failed(String),
}

/// What became of all of them.
#[derive(Default)]
pub struct Report {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    total: Duration,
}

impl Report {
    /// Tells how one test ended.
    pub fn tell(&mut self, name: &str, outcome: Outcome, took: Duration) {
        self.total += took;
        let word = match outcome {
            Outcome::Passed => "ok",
            Outcome::Skipped(_) => "ignored",
            Outcome::Failed(_) => "FAILED",
        };
        println!("test {name} ... {word} ({:.1} s)", took.as_secs_f64());
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Skipped(why) => self.skipped.push(format!("skipped {name}: {why}")),
            Outcome::Failed(why) => {
                println!("{why}");
                self.failed.push(format!("failed {name}"));
            }
        }
    }

    /// The closing lines; `left_out` tests were not chosen.
    pub fn end(self, left_out: usize) -> ExitCode {
        self.skipped.iter().chain(&self.failed).for_each(|line| println!("{line}"));
        println!(
            "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {left_out} filtered out; finished in {:.2}s\n",
            if self.failed.is_empty() { "ok" } else { "FAILED" },
            self.passed,
            self.failed.len(),
            self.skipped.len(),
            self.total.as_secs_f64()
        );
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
