//! What the benchmarks share: a table of medians beside their targets, and how a process is weighed.

use std::path::PathBuf;

use serde_json::{Value, json};

/// One line of the table.
struct Row {
    name: &'static str,
    target: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

impl Row {
    fn median(&self) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => sorted.get(middle).copied(),
            _ => Some((sorted.get(middle - 1)? + sorted.get(middle)?) / 2.0),
        }
    }
}

/// The table, in the order of first values.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a value, and says it.
    pub fn put(&mut self, name: &'static str, target: &'static str, unit: &'static str, value: f64) {
        println!("  {name}: {value:.2} {unit}");
        match self.rows.iter_mut().find(|r| r.name == name) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { name, target, unit, values: vec![value] }),
        }
    }

    /// For people.
    pub fn print(&self) {
        println!("\n{:<56} {:>16} {:>10} {:>8} {:>8}", "", "target", "median", "least", "most");
        for row in &self.rows {
            let least = row.values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = row.values.iter().copied().fold(0.0, f64::max);
            let (median, rounds) = (row.median().unwrap_or_default(), row.values.len());
            println!(
                "{:<56} {:>16} {median:>10.2} {least:>8.2} {most:>8.2} {} ({rounds})",
                row.name, row.target, row.unit
            );
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        self.rows
            .iter()
            .map(|r| json!({"name": r.name, "target": r.target, "unit": r.unit, "median": r.median(), "values": r.values}))
            .collect()
    }
}

/// Writes a result below `target`.
pub fn write(name: &str, all: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target").join(name);
    match std::fs::write(&path, format!("{all:#}\n")) {
        Ok(()) => println!("{}", path.display()),
        Err(e) => eprintln!("bench: write {}: {e}", path.display()),
    }
}

/// Time on the processor so far, user and system, in milliseconds.
pub fn processor_ms(pid: i32) -> u64 {
    let nanos: u64 = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|t| std::fs::read_to_string(t.path().join("schedstat")).ok())
        .filter_map(|s| s.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    nanos / 1_000_000
}

/// PSS of a process in MB, and how much of it is anonymous.
pub fn memory_mb(pid: i32) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    };
    (field("Pss:"), field("Pss_Anon:"))
}
