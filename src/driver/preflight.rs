//! `--validate-config`: everything that a start would refuse or warn about, found without starting anything.
//!
//! It goes through the same functions as a start does, so that the two cannot disagree. What only a running cluster shows
//! (the API server, the configuration in the store, another member of the same name) is not looked at.

use super::keeper;
use super::settings::{self, Source};
use super::trials;
use crate::config::{self, Config, Dynamic};
use crate::model::WatchdogMode;
use crate::postgres::binaries;

/// What there is to say about a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A start would refuse it, or a value is wrong.
    pub problems: Vec<String>,
    /// A start would warn.
    pub warnings: Vec<String>,
}

/// Looks at the configuration and at the programs of Postgres; the configuration is there where it can be read.
pub async fn check(source: &Source) -> (Report, Option<Config>) {
    let mut report = Report::default();
    let texts = match source.path.as_deref().map(config::files::read).transpose() {
        Ok(texts) => texts.unwrap_or_default(),
        Err(why) => {
            report.problems.push(why);
            return (report, None);
        }
    };
    report.problems = config::validate(&texts, &source.environment);
    let loaded = match config::load(&texts, &source.environment).and_then(config::Loaded::for_daemon) {
        Ok(loaded) => loaded,
        Err(refusal) => {
            report.warnings = refusal.warnings;
            if report.problems.is_empty() {
                report.problems.push(refusal.error.to_string());
            }
            return (report, None);
        }
    };
    report.warnings = loaded.warnings;
    effects(&loaded.config, source, &mut report).await;
    (report, Some(loaded.config))
}

/// What follows from the values: with the first dynamic configuration, and with the programs that are installed.
async fn effects(config: &Config, source: &Source, report: &mut Report) {
    let document = config.bootstrap.as_ref().map(|b| b.dcs.clone()).unwrap_or_default();
    let (dynamic, warnings) = Dynamic::parse(&document);
    report.warnings.extend(warnings);
    let newest = *binaries::SUPPORTED.end();
    let mut read = settings::read(config, &dynamic, &source.home, settings::Pod::default(), newest);
    // With a socket the programs are in another container.
    if keeper::named_socket(config).is_none() {
        match binaries::find(&read.setup).await {
            Ok(found) => {
                read = settings::read(config, &dynamic, &source.home, settings::Pod::default(), found.major);
                report.warnings.extend(trials::here(&read, &found).await);
            }
            Err(why) => report.problems.push(why),
        }
    }
    report.warnings.extend(read.warnings);
    if config.watchdog.mode == WatchdogMode::Required
        && let Err(why) = super::watchdog::look(&settings::watchdog(config))
    {
        report.warnings.push(format!("{why}; the watchdog is required, so this member would not lead"));
    }
}
