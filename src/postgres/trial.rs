//! Which parameters the installed server refuses: the server is asked before it has to start with them.
//!
//! One unknown name or impossible value in postgresql.conf keeps every member of a cluster down. So a file with nothing but
//! the parameters is given to `postgres -C`, which reads it as a start would, prints one value and ends: what it
//! refuses is left out, or keeps the value that is in force, and the rest is asked about again.
//!
//! The words of the server are taken rather than rules of our own: `postgres --describe-config` tells neither units nor the
//! words of an enum, and keeps the developer options to itself. What shows only when memory is taken, libraries are
//! loaded or parameters are held against each other is not found here.
//!
//! [`Trial`] is pure; who runs the command (the keeper beside Postgres, or `--validate-config`) is the callers' business.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::binaries::Binaries;
use super::conf;
use super::params;
use super::setup::{Command, Setup};
use crate::model::BootInstant;

/// The file that is tried, in the data directory: both containers of a pod see that one.
pub const FILE: &str = "patroni.trial.conf";

/// Runs of one trial. Names are refused before values are looked at, and a value that is put back may be refused too: four
/// do. Twice that is a server whose words are not understood.
const ROUNDS_MAX: usize = 8;

/// Not asked about: another data directory has an `ALTER SYSTEM` of its own, and what is included is a file, not a value.
const NOT_ASKED: [&str; 4] = ["data_directory", "include", "include_dir", "include_if_exists"];

/// They change in which words, or whether at all, the server speaks of what comes after them in the file.
const AT_THE_END: [&str; 4] = ["lc_messages", "log_destination", "log_min_messages", "log_timezone"];

/// Why the server refuses a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It knows none of that name.
    Unknown,
    /// The value, in the server's words.
    Value(String),
}

/// A parameter that the server refuses as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As configured.
    pub value: String,
    /// Why.
    pub why: Why,
    /// The value before, which stays; `None`: the server's default.
    pub instead: Option<String>,
}

impl Refused {
    /// Why, in a few words. `major`: of the server.
    pub fn reason(&self, major: u32) -> String {
        match (&self.why, &self.instead) {
            (Why::Unknown, _) => format!("unknown to PostgreSQL {major}"),
            (Why::Value(words), None) => words.clone(),
            (Why::Value(words), Some(before)) => format!("{words}; \"{before}\" stays"),
        }
    }

    /// For the log. `origin`: where it is configured.
    pub fn sentence(&self, name: &str, major: u32, origin: &str) -> String {
        let what = format!("parameter \"{name}\" (\"{}\" in {origin})", self.value);
        match (&self.why, &self.instead) {
            (Why::Unknown, _) => format!("{what} is unknown to PostgreSQL {major} and was left out"),
            (Why::Value(words), None) => format!("{what} is refused by PostgreSQL {major} and was left out: {words}"),
            (Why::Value(words), Some(before)) => {
                format!("{what} is refused by PostgreSQL {major}, \"{before}\" stays: {words}")
            }
        }
    }
}

/// Name → what is refused.
pub type AllRefused = BTreeMap<String, Refused>;

/// What to do after a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Nothing: what is left the server takes.
    Over,
    /// Another run, with another text.
    Ask,
    /// Nothing: it failed for another reason, which is one line. What it refused so far it refuses.
    Unclear(String),
}

/// What a setup would have the server take: name → value.
pub fn asked(setup: &Setup, major: u32) -> BTreeMap<String, String> {
    let mut out = params::effective(setup, None).file;
    out.extend(params::recovery_extras(setup, major));
    if let Some(another) = &setup.standby_of {
        out.extend(another.recovery.clone());
        out.extend(another.of_leader.clone());
    }
    out.retain(|name, _| !NOT_ASKED.contains(&name.as_str()));
    out
}

/// The setup with what is refused left out, or with the value before.
#[must_use]
pub fn without(setup: &Setup, refused: &AllRefused) -> Setup {
    let mut out = setup.clone();
    let remote = out.standby_of.as_mut().map(|r| [&mut r.recovery, &mut r.of_leader]);
    let own = [&mut out.parameters, &mut out.controlled, &mut out.recovery_conf];
    for map in own.into_iter().chain(remote.into_iter().flatten()) {
        map.retain(|name, value| match refused.get(&name.to_lowercase()).map(|r| &r.instead) {
            None => true,
            Some(None) => false,
            Some(Some(before)) => {
                value.clone_from(before);
                true
            }
        });
    }
    out
}

/// The command that reads a file and ends. The directory has no postgresql.auto.conf, whose own errors would end it too.
pub fn command(binaries: &Binaries, file: &Path) -> Command {
    // As the first argument, -C is allowed to root.
    let words = ["-C", "config_file", "-D", "/"].map(str::to_owned);
    let file = format!("--config-file={}", file.display());
    let argv = std::iter::once(binaries.path("postgres")).chain(words).chain([file]).collect();
    Command::new(argv).with_env("LC_ALL", "C")
}

/// Asking until the server refuses nothing.
#[derive(Clone, Debug)]
pub struct Trial {
    asked: BTreeMap<String, String>,
    before: BTreeMap<String, String>,
    refused: AllRefused,
    rounds: usize,
}

impl Trial {
    /// About these parameters. `before`: values that a server has taken; one of them stays where another is refused.
    pub fn new(asked: BTreeMap<String, String>, before: BTreeMap<String, String>) -> Trial {
        Trial { asked, before, refused: AllRefused::new(), rounds: 0 }
    }

    /// The file of the next run.
    pub fn text(&self) -> String {
        let at_the_end = |name: &String| AT_THE_END.contains(&name.as_str());
        let (last, first): (Vec<_>, Vec<_>) = self.asked.iter().partition(|(name, _)| at_the_end(name));
        first.into_iter().chain(last).map(|(name, value)| conf::setting(name, value)).collect()
    }

    /// Takes what a run has shown.
    pub fn heard(&mut self, success: bool, output: &str) -> Next {
        if success {
            return Next::Over;
        }
        self.rounds += 1;
        let named: Vec<_> = refusals(output).into_iter().filter(|(name, _)| self.asked.contains_key(name)).collect();
        if named.is_empty() || self.rounds == ROUNDS_MAX {
            let line = output.lines().map(str::trim).rfind(|line| !line.is_empty());
            return Next::Unclear(line.unwrap_or("it printed nothing").to_owned());
        }
        for (name, why) in named {
            self.refuse(name, why);
        }
        Next::Ask
    }

    fn refuse(&mut self, name: String, why: Why) {
        let Some(value) = self.asked.remove(&name) else { return };
        if let Some(refused) = self.refused.get_mut(&name) {
            // This was the value before.
            refused.instead = None;
            return;
        }
        let instead = match &why {
            Why::Unknown => None,
            Why::Value(_) => self.before.get(&name).filter(|before| **before != value).cloned(),
        };
        if let Some(before) = &instead {
            self.asked.insert(name.clone(), before.clone());
        }
        self.refused.insert(name, Refused { value, why, instead });
    }

    /// What the server refuses.
    pub fn refused(self) -> AllRefused {
        self.refused
    }
}

/// After asking has failed, the same parameters are not asked about again for this long: each of the things that need them would
/// wait.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What the server was asked last, and what it refuses.
#[derive(Clone, Debug, Default)]
pub struct Known {
    asked: Option<BTreeMap<String, String>>,
    /// It did not say all, and may be asked again then.
    unanswered_until: Option<BootInstant>,
    refused: AllRefused,
}

impl Known {
    /// Is the answer about these parameters here, or was it asked for just now?
    pub fn covers(&self, asked: &BTreeMap<String, String>, now: BootInstant) -> bool {
        self.asked.as_ref() == Some(asked) && self.unanswered_until.is_none_or(|until| now < until)
    }

    /// It was asked. `clear`: it has said all. Where it has not, what it refused before it refuses still.
    pub fn heard(&mut self, asked: BTreeMap<String, String>, refused: AllRefused, clear: bool, now: BootInstant) {
        let former = std::mem::replace(&mut self.refused, refused);
        if !clear {
            for (name, what) in former.into_iter().filter(|(name, what)| asked.get(name) == Some(&what.value)) {
                self.refused.entry(name).or_insert(what);
            }
        }
        self.unanswered_until = (!clear).then(|| now + ASK_AGAIN);
        self.asked = Some(asked);
    }

    /// What it refuses.
    pub fn refused(&self) -> &AllRefused {
        &self.refused
    }
}

/// Parameters that are refused in the words of a server, by their lower-case names.
fn refusals(output: &str) -> BTreeMap<String, Why> {
    let mut out = BTreeMap::new();
    let mut about: Option<String> = None;
    for line in output.lines() {
        let after = |words: &[&str]| words.iter().find_map(|word| Some(line.split_once(word)?.1.trim()));
        if let Some(words) = after(&["LOG:  ", "ERROR:  ", "FATAL:  "]) {
            about = parameter_in(words);
            if let Some(name) = &about {
                let unknown = words.starts_with("unrecognized configuration parameter");
                out.insert(name.clone(), if unknown { Why::Unknown } else { Why::Value(words.to_owned()) });
            }
        } else if let (Some(more), Some(name)) = (after(&["DETAIL:  ", "HINT:  "]), &about)
            && let Some(Why::Value(words)) = out.get_mut(name)
        {
            words.push_str(&format!(" ({})", more.trim_end_matches('.')));
        }
    }
    out
}

fn parameter_in(words: &str) -> Option<String> {
    let (_, rest) = words.split_once("parameter \"")?;
    rest.split_once('"').map(|(name, _)| name.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    /// A server that is too busy to answer has not learned a name since.
    #[test]
    fn what_was_refused_stays_out_while_nobody_answers() {
        let at = BootInstant::from_secs_f64;
        let asked = map(&[("foo_bar", "1"), ("work_mem", "banana")]);
        let refused = |value: &str| Refused { value: value.into(), why: Why::Unknown, instead: None };
        let both = AllRefused::from([("foo_bar".into(), refused("1")), ("work_mem".into(), refused("banana"))]);
        let mut known = Known::default();
        assert!(!known.covers(&asked, at(0.0)));
        known.heard(asked.clone(), both, true, at(0.0));
        assert!(known.covers(&asked, at(1e6)));
        let changed = map(&[("foo_bar", "1"), ("work_mem", "5MB")]);
        assert!(!known.covers(&changed, at(1.0)));
        known.heard(changed.clone(), AllRefused::new(), false, at(1.0));
        assert_eq!(known.refused().keys().collect::<Vec<_>>(), ["foo_bar"], "another value may be a good one");
        assert!(known.covers(&changed, at(10.0)) && !known.covers(&changed, at(11.5)));
        known.heard(changed, AllRefused::new(), true, at(12.0));
        assert!(known.refused().is_empty());
    }

    const NAMES: &str = "\
2026-11-28 08:33:04.796 GMT [21998] LOG:  skipping missing configuration file \"/postgresql.auto.conf\"
2026-11-28 08:33:04.796 GMT [21998] LOG:  unrecognized configuration parameter \"foo_bar\" in file \"/x/t.conf\" line 2
2026-11-28 08:33:04.796 GMT [21998] FATAL:  configuration file \"/x/t.conf\" contains errors
";
    const VALUES: &str = "\
2026-11-28 08:33:04.821 GMT [22000] LOG:  invalid value for parameter \"shared_buffers\": \"100TB\"
2026-11-28 08:33:04.821 GMT [22000] HINT:  Value exceeds integer range.
2026-11-28 08:33:04.821 GMT [22000] LOG:  invalid value for parameter \"work_mem\": \"banana\"
2026-11-28 08:33:04.821 GMT [22000] LOG:  invalid value for parameter \"TimeZone\": \"Foo/Bar\"
2026-11-28 08:33:04.821 GMT [22000] LOG:  99999999 is outside the valid range for parameter \"max_connections\" (1 .. 262143)
2026-11-28 08:33:04.821 GMT [22000] LOG:  parameter \"server_version\" cannot be changed
2026-11-28 08:33:04.821 GMT [22000] LOG:  invalid value for parameter \"max_stack_depth\": 1048576
2026-11-28 08:33:04.821 GMT [22000] DETAIL:  \"max_stack_depth\" must not exceed 7680kB.
2026-11-28 08:33:04.821 GMT [22000] HINT:  Increase the platform's stack depth limit via \"ulimit -s\" or local equivalent.
2026-11-28 08:33:04.821 GMT [22000] FATAL:  configuration file \"/x/t.conf\" contains errors
";

    #[test]
    fn the_words_of_the_server_name_what_it_refuses_and_why() {
        assert_eq!(refusals(NAMES), [("foo_bar".to_owned(), Why::Unknown)].into());
        let values = refusals(VALUES);
        let names: Vec<&str> = values.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["max_connections", "max_stack_depth", "server_version", "shared_buffers", "timezone", "work_mem"]
        );
        let words = "invalid value for parameter \"shared_buffers\": \"100TB\" (Value exceeds integer range)";
        assert_eq!(values["shared_buffers"], Why::Value(words.to_owned()));
        assert!(matches!(&values["max_stack_depth"], Why::Value(words) if words.contains("(\"max_stack_depth\" must")));
    }

    #[test]
    fn names_then_values_are_left_out_until_the_server_takes_the_rest() {
        let wanted = map(&[("foo_bar", "1"), ("work_mem", "banana"), ("fsync", "off"), ("my.own", "x")]);
        let mut trial = Trial::new(wanted, BTreeMap::new());
        assert_eq!(trial.heard(false, NAMES), Next::Ask);
        assert_eq!(trial.text(), "fsync = 'off'\nmy.own = 'x'\nwork_mem = 'banana'\n");
        assert_eq!(trial.heard(false, VALUES), Next::Ask);
        assert_eq!(trial.text(), "fsync = 'off'\nmy.own = 'x'\n");
        assert_eq!(trial.heard(true, "/x/t.conf\n"), Next::Over);
        let refused = trial.refused();
        assert_eq!(refused["foo_bar"].reason(15), "unknown to PostgreSQL 15");
        assert_eq!(
            refused["foo_bar"].sentence("foo_bar", 15, "the dynamic configuration"),
            "parameter \"foo_bar\" (\"1\" in the dynamic configuration) is unknown to PostgreSQL 15 and was left out"
        );
        assert!(refused["work_mem"].sentence("work_mem", 15, "x").contains("left out: invalid value for parameter"));
    }

    #[test]
    fn the_value_before_stays_unless_it_is_refused_too() {
        let wanted = map(&[("work_mem", "banana"), ("shared_buffers", "100TB")]);
        let mut trial = Trial::new(wanted, map(&[("work_mem", "64MB"), ("shared_buffers", "100TB"), ("x", "y")]));
        assert_eq!(trial.heard(false, VALUES), Next::Ask);
        assert_eq!(trial.text(), "work_mem = '64MB'\n", "and not the same value again");
        assert_eq!(trial.clone().refused()["work_mem"].instead.as_deref(), Some("64MB"));
        assert_eq!(trial.heard(false, VALUES), Next::Ask);
        assert_eq!(trial.text(), "");
        assert_eq!(trial.refused()["work_mem"].instead, None);
    }

    #[test]
    fn a_run_that_fails_without_a_name_refuses_nothing_and_does_not_go_on_for_ever() {
        let mut trial = Trial::new(map(&[("work_mem", "4MB")]), BTreeMap::new());
        let other = "FATAL:  could not open file: Permission denied\n";
        assert_eq!(trial.heard(false, other), Next::Unclear(other.trim().to_owned()));
        assert_eq!(trial.heard(false, ""), Next::Unclear("it printed nothing".to_owned()));
        let about_another = "LOG:  invalid value for parameter \"port\": \"x\"\n";
        assert_eq!(trial.heard(false, about_another), Next::Unclear(about_another.trim().to_owned()));
        assert!(trial.refused().is_empty());
    }

    #[test]
    fn what_changes_the_servers_own_words_comes_last() {
        let wanted = map(&[("lc_messages", "de"), ("log_min_messages", "panic"), ("work_mem", "it's")]);
        let text = Trial::new(wanted, BTreeMap::new()).text();
        assert_eq!(text, "work_mem = 'it''s'\nlc_messages = 'de'\nlog_min_messages = 'panic'\n");
    }

    #[test]
    fn all_that_reaches_the_file_is_asked_about_and_can_be_left_out() {
        let mut setup = Setup::new("a", "demo", "/tmp/x", 5433);
        setup.parameters = map(&[("Work_Mem", "1"), ("fsync", "off"), ("data_directory", "/y"), ("include", "z")]);
        setup.controlled = map(&[("max_connections", "99999999")]);
        setup.recovery_conf = map(&[("recovery_min_apply_delay", "banana")]);
        let names = ["fsync", "max_connections", "port", "recovery_min_apply_delay", "work_mem"];
        let found = asked(&setup, 15);
        assert!(names.iter().all(|name| found.contains_key(*name)), "{found:?}");
        assert!(!found.contains_key("data_directory") && !found.contains_key("include"));
        let refused = |instead: Option<&str>| Refused {
            value: String::new(),
            why: Why::Value(String::new()),
            instead: instead.map(str::to_owned),
        };
        let all = [("work_mem", None), ("max_connections", Some("50")), ("recovery_min_apply_delay", None)];
        let all = all.into_iter().map(|(name, instead)| (name.to_owned(), refused(instead))).collect();
        let rest = without(&setup, &all);
        assert_eq!(rest.parameters, map(&[("fsync", "off"), ("data_directory", "/y"), ("include", "z")]));
        assert_eq!(rest.controlled, map(&[("max_connections", "50")]));
        assert!(rest.recovery_conf.is_empty());
    }
}
