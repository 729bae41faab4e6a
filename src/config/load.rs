//! Layers of the local configuration: files in order, environment on top, old layouts
//! rewritten, then every value checked against the table of keys.
use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::environment::{self, OTHER_STORES};
use super::keys::{self, KEYS, Kind, nearest};
use super::local::Config;
use super::{build, merge, yaml};

const DYNAMIC_ONLY: &str = "is ignored here; set it with patronictl edit-config";

/// One text to read, with the name that errors show.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// File name.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// A usable configuration and what the operator should hear about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// One line each.
    pub warnings: Vec<String>,
}

/// Why there is no configuration. Each line of the display is one problem: what, where, what to do.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigError {
    /// A text is not YAML.
    Yaml(yaml::YamlError),
    /// The text with this name is not a mapping.
    NotAMapping(String),
    /// Neither file nor environment.
    Empty,
    /// No section for a store; the one of another store, if there is one.
    NoStore(Option<String>),
    /// Values that cannot be used.
    Invalid(Vec<String>),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Yaml(error) => error.fmt(f),
            ConfigError::NotAMapping(name) => {
                write!(f, "invalid config file {name}: it must be a mapping (key: value)")
            }
            ConfigError::Empty => f.write_str("Config is empty. Name a file, or set PATRONI_* variables"),
            ConfigError::NoStore(Some(store)) => write!(
                f,
                "{store}: this Patroni stores its state in Kubernetes only; replace the section by `kubernetes: {{labels: …}}`"
            ),
            ConfigError::NoStore(None) => {
                f.write_str("kubernetes: the section is missing; add `kubernetes: {labels: …}`")
            }
            ConfigError::Invalid(problems) => f.write_str(&problems.join("\n")),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Why there is no configuration, and what else was noticed: a key that is missing often stands there misspelt.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Why.
    pub error: ConfigError,
    /// One line each.
    pub warnings: Vec<String>,
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Refusal {
        Refusal { error, warnings: Vec::new() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\n{warning}"))
    }
}

impl std::error::Error for Refusal {}

/// The merged local document before typing.
pub(super) struct Document {
    pub(super) value: Value,
    pub(super) origins: BTreeMap<String, String>,
    pub(super) warnings: Vec<String>,
}

/// Reads the local configuration from texts (in order, later win) and the environment.
///
/// # Errors
/// Broken YAML, values of the wrong type, another store than Kubernetes, Citus, or nothing at all.
pub fn load(sources: &[SourceText], env: &BTreeMap<String, String>) -> Result<Loaded, Refusal> {
    let Document { value, origins, mut warnings } = document(sources, env)?;
    let mut problems = Vec::new();
    check_section(&value, "", &origins, &mut problems, &mut warnings);
    check_parameters(&value, &origins, &mut warnings);
    check_citus(&value, &origins, &mut problems, &mut warnings);
    if value.get("kubernetes").is_none() {
        let other = OTHER_STORES.iter().find(|store| value.get(**store).is_some());
        let error = ConfigError::NoStore(other.map(|store| located(&origins, store)));
        return Err(Refusal { error, warnings });
    }
    warnings.extend(super::tags::conflicts(&value));
    let mut late = Vec::new();
    let config = build::config(value, &mut late, &mut warnings);
    problems.extend(late.into_iter().map(|problem| {
        let path = problem.split(':').next().unwrap_or_default().to_owned();
        origins.get(&path).map_or(problem.clone(), |origin| format!("{origin}: {problem}"))
    }));
    if problems.is_empty() {
        Ok(Loaded { config, warnings })
    } else {
        Err(Refusal { error: ConfigError::Invalid(problems), warnings })
    }
}

impl Loaded {
    /// What the daemon can start with.
    ///
    /// # Errors
    /// As [`Config::require_daemon`], with the warnings.
    pub fn for_daemon(self) -> Result<Loaded, Refusal> {
        match self.config.require_daemon() {
            Ok(()) => Ok(self),
            Err(error) => Err(Refusal { error, warnings: self.warnings }),
        }
    }
}

impl Config {
    /// Checks what the daemon cannot start without; patronictl does not need these.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with one line per missing key.
    pub fn require_daemon(&self) -> Result<(), ConfigError> {
        let needed = [
            ("name", self.name.is_empty()),
            ("scope", self.scope.is_empty()),
            ("restapi.listen", self.restapi.listen.is_empty()),
            ("postgresql.listen", self.postgresql.listen.is_empty()),
            ("postgresql.data_dir", self.postgresql.data_dir.is_empty()),
            (
                "postgresql.authentication.replication.username",
                self.postgresql.authentication.replication.username.is_none(),
            ),
            ("kubernetes.labels", self.kubernetes.labels.is_empty()),
        ];
        let mut problems: Vec<String> = needed
            .iter()
            .filter(|(_, missing)| *missing)
            .map(|(key, _)| format!("{key} is not defined; set it in the file or by environment variable"))
            .collect();
        let port = self.restapi.listen.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if !self.restapi.listen.is_empty() && port.is_none() {
            problems.push(format!("restapi.listen: {:?} must be HOST:PORT", self.restapi.listen));
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }
}

pub(super) fn document(sources: &[SourceText], env: &BTreeMap<String, String>) -> Result<Document, ConfigError> {
    let mut value = Value::Object(Map::new());
    let mut origins = BTreeMap::new();
    let mut warnings = Vec::new();
    let whole = env.get("PATRONI_CONFIGURATION").filter(|text| sources.is_empty() && !text.is_empty());
    let from_env = whole.map(|text| SourceText { name: "PATRONI_CONFIGURATION".to_owned(), text: text.clone() });
    for source in sources.iter().chain(&from_env) {
        let located = yaml::parse_located(&source.name, &source.text).map_err(ConfigError::Yaml)?;
        warnings.extend(located.warnings);
        if located.value.is_null() {
            continue;
        }
        if !located.value.is_object() {
            return Err(ConfigError::NotAMapping(source.name.clone()));
        }
        merge::overlay(&mut value, &located.value);
        let named = |(path, (line, column))| (path, format!("{}:{line}:{column}", source.name));
        origins.extend(located.positions.into_iter().map(named));
    }
    if from_env.is_none() {
        let (over, complaints) = environment::document(env);
        warnings.extend(complaints);
        mark_environment(&over, "", &mut origins);
        merge::overlay(&mut value, &over);
    }
    if value.as_object().is_none_or(Map::is_empty) {
        return Err(ConfigError::Empty);
    }
    rewrite_old_layouts(&mut value);
    Ok(Document { value, origins, warnings })
}

fn mark_environment(value: &Value, path: &str, origins: &mut BTreeMap<String, String>) {
    if let Value::Object(map) = value {
        for (key, inner) in map {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if !inner.is_object() {
                origins.insert(path.clone(), "environment".to_owned());
            }
            mark_environment(inner, &path, origins);
        }
    }
}

/// `postgresql.replication`, `.superuser`, `.pg_rewind` and `.name` of old files.
fn rewrite_old_layouts(document: &mut Value) {
    let Some(top) = document.as_object_mut() else {
        return;
    };
    let Some(Value::Object(postgresql)) = top.get_mut("postgresql") else {
        return;
    };
    if !postgresql.contains_key("authentication") {
        let old_rewind = postgresql.shift_remove("pg_rewind");
        let replication = postgresql.shift_remove("replication");
        let superuser = postgresql.shift_remove("superuser");
        if old_rewind.is_some() || replication.is_some() || superuser.is_some() {
            postgresql.insert("use_pg_rewind".to_owned(), Value::Bool(old_rewind.is_some()));
            let users = [("superuser", superuser.or(old_rewind)), ("replication", replication)];
            let users: Map<String, Value> =
                users.into_iter().filter_map(|(name, user)| Some((name.to_owned(), user?))).collect();
            postgresql.insert("authentication".to_owned(), Value::Object(users));
        }
    }
    if let Some(name) = postgresql.shift_remove("name") {
        top.entry("name").or_insert(name);
    }
}

pub(super) fn located(origins: &BTreeMap<String, String>, path: &str) -> String {
    origins.get(path).map_or_else(|| path.to_owned(), |origin| format!("{origin}: {path}"))
}

fn check_section(
    value: &Value,
    section: &str,
    origins: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
    warnings: &mut Vec<String>,
) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        let Some((_, kind)) = KEYS.iter().find(|(known, _)| *known == path) else {
            // Sections of bootstrap and replica methods carry names of the user's choice.
            if !(matches!(section, "bootstrap" | "postgresql") && (inner.is_object() || inner.is_null())) {
                warnings.push(format!("{}: {}", located(origins, &path), misplaced(section, key)));
            }
            continue;
        };
        if !kind.fits(inner) {
            let shown = if is_secret(&path) || inner.is_array() || inner.is_object() {
                describe(inner).to_owned()
            } else {
                inner.to_string()
            };
            problems.push(format!("{}: must be {}, not {shown}", located(origins, &path), kind.wants()));
        } else if *kind == Kind::Section {
            check_section(inner, &path, origins, problems, warnings);
        }
    }
}

/// What to say about a key that does not belong where it stands.
fn misplaced(section: &str, key: &str) -> String {
    if section.is_empty() && keys::is_dynamic(key) {
        return DYNAMIC_ONLY.to_owned();
    }
    let here = nearest(key, keys::children(section).map(|(key, _)| key)).map(str::to_owned);
    match here.or_else(|| keys::elsewhere(key)) {
        Some(meant) => format!("unknown key, did you mean `{meant}`?"),
        None => "unknown key".to_owned(),
    }
}

fn is_secret(path: &str) -> bool {
    path.contains("password") || path.contains("authentication")
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
        Value::String(_) => "text",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "nothing",
    }
}

/// Settings that come only from the dynamic configuration are dropped from the file; say so.
fn check_parameters(value: &Value, origins: &BTreeMap<String, String>, warnings: &mut Vec<String>) {
    for key in ["ttl", "loop_wait", "retry_timeout", "standby_cluster"] {
        if value.get(key).is_some() {
            warnings.push(format!("{}: {DYNAMIC_ONLY}", located(origins, key)));
        }
    }
    for name in value["postgresql"]["parameters"].as_object().into_iter().flatten().map(|(name, _)| name) {
        if super::controlled::is_controlled(&name.to_lowercase()) {
            let path = format!("postgresql.parameters.{name}");
            warnings.push(format!("{}: {DYNAMIC_ONLY}", located(origins, &path)));
        }
    }
}

fn check_citus(
    value: &Value,
    origins: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
    warnings: &mut Vec<String>,
) {
    let Some(citus) = value.get("citus").filter(|citus| !citus.is_null()) else {
        return;
    };
    let at = located(origins, "citus");
    if citus["group"].is_i64() && citus["database"].is_string() {
        problems.push(format!("{at}: Citus is not supported; remove the section"));
    } else {
        warnings.push(format!(
            "{at}: is ignored, it needs `group` (a number) and `database` (text); Citus is not supported"
        ));
    }
}
