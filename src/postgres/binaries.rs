//! Where the Postgres programs are, and which version they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::setup::Setup;

/// Oldest and newest major version this program was made for.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

/// The programs of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// Major version, e.g. 15.
    pub major: u32,
    /// As `server_version_num`, e.g. 150018.
    pub version: u32,
    bin_dir: Option<PathBuf>,
    names: BTreeMap<String, String>,
}

impl Binaries {
    /// Path of a tool (`postgres`, `initdb`, `pg_basebackup`, `pg_rewind`, …), as it is to be executed.
    pub fn path(&self, tool: &str) -> String {
        tool_path(self.bin_dir.as_deref(), &self.names, tool)
    }
    /// From parts; for callers that know the version already (another container holds the programs).
    pub fn known(setup: &Setup, version: u32) -> Binaries {
        Binaries { major: version / 10_000, version, bin_dir: setup.bin_dir.clone(), names: setup.bin_names.clone() }
    }
}

fn tool_path(bin_dir: Option<&Path>, names: &BTreeMap<String, String>, tool: &str) -> String {
    let file = names.get(tool).map_or(tool, String::as_str);
    match bin_dir {
        Some(dir) if !dir.as_os_str().is_empty() => dir.join(file).to_string_lossy().into_owned(),
        Some(_) | None => file.to_owned(),
    }
}

/// The command that prints the version; the keeper runs it, [`parse`] reads its output.
pub fn version_command(setup: &Setup) -> Vec<String> {
    vec![tool_path(setup.bin_dir.as_deref(), &setup.bin_names, "postgres"), "--version".to_owned()]
}

/// Reads the output of `postgres --version`.
///
/// # Errors
/// One line: what was printed, or that the major version is not supported.
pub fn parse(setup: &Setup, output: &str) -> Result<Binaries, String> {
    let program = &version_command(setup)[0];
    let version = version_number(output)
        .ok_or_else(|| format!("{program} --version printed {:?}, which names no version", output.trim()))?;
    let binaries = Binaries::known(setup, version);
    if !SUPPORTED.contains(&binaries.major) {
        return Err(format!(
            "{program} is PostgreSQL {}; supported are {} to {}: point postgresql.bin_dir at one of these",
            binaries.major,
            SUPPORTED.start(),
            SUPPORTED.end()
        ));
    }
    Ok(binaries)
}

/// Runs `postgres --version` here (bare processes and one container; it ends at once).
///
/// # Errors
/// One line: the program is missing, fails, or is of an unsupported version.
pub async fn find(setup: &Setup) -> Result<Binaries, String> {
    let argv = version_command(setup);
    let run = tokio::process::Command::new(&argv[0]).arg(&argv[1]).kill_on_drop(true).output();
    let output = match tokio::time::timeout(std::time::Duration::from_secs(10), run).await {
        Err(_) => return Err(format!("{} --version did not end within 10 s", argv[0])),
        Ok(Err(e)) => return Err(format!("cannot run {} --version: {e}; check postgresql.bin_dir", argv[0])),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        return Err(format!(
            "{} --version failed ({}): {}",
            argv[0],
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    parse(setup, &String::from_utf8_lossy(&output.stdout))
}

/// Major version of a data directory: the file PG_VERSION.
pub fn data_version(data_dir: &Path) -> Option<u32> {
    std::fs::read_to_string(data_dir.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// `postgres (PostgreSQL) 15.18 (Debian …)` → 150018; beta and devel versions count as `.0`.
fn version_number(output: &str) -> Option<u32> {
    let word = output.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let number = |s: &str| -> Option<u32> {
        let digits: String = s.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let (major, minor) = word.split_once('.').unwrap_or((word, "0"));
    Some(number(major)? * 10_000 + number(minor).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_server_version_num() {
        assert_eq!(version_number("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(150_018));
        assert_eq!(version_number("postgres (PostgreSQL) 18beta1"), Some(180_000));
        assert_eq!(version_number("hello"), None);
    }

    #[test]
    fn an_old_version_is_refused_in_words() {
        let setup = Setup::new("a", "s", "/tmp/none", 5432);
        let err = parse(&setup, "postgres (PostgreSQL) 12.1").unwrap_err();
        assert!(err.contains("PostgreSQL 12") && err.contains("bin_dir"), "{err}");
    }
}
