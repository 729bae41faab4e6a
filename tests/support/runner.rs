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

/// So many days see every test of a slice once.
const SLICES: usize = 5;

/// How much of what is long is run: `PATRONI_TIER`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Unset: nothing of it.
    Fast,
    /// `slice:DAY`: a fifth, another one every day.
    Slice(usize),
    /// `full`: all of it.
    Full,
}

impl Tier {
    /// What this run was told.
    pub fn of_this_run() -> Tier {
        let said = std::env::var("PATRONI_TIER").unwrap_or_default();
        match said.strip_prefix("slice:").map(str::parse) {
            Some(Ok(day)) => Tier::Slice(day),
            _ if said == "full" => Tier::Full,
            _ => Tier::Fast,
        }
    }

    /// Is the long test that stands at this place of its list run?
    pub fn has(self, place: usize) -> bool {
        match self {
            Tier::Fast => false,
            Tier::Slice(day) => (place + day).is_multiple_of(SLICES),
            Tier::Full => true,
        }
    }
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
                self.failed.push(format!("failed {name}: {}", why.lines().next().unwrap_or_default()));
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
