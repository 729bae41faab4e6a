//! The dynamic configuration: the `/config` document of the cluster.
//!
//! The store accepts anything, so nothing here fails hard: a bad value means its default and a warning; a document
//! whose timeouts or `parameters` cannot be read keeps the previous timeouts and `postgresql` section, while all
//! other keys are taken from it.
use serde_json::{Map, Value};

use super::keys::{DYNAMIC_KEYS, nearest};
use super::local::Section;
use super::{merge, numbers};

/// `synchronous_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SynchronousMode {
    /// Asynchronous.
    #[default]
    Off,
    /// Priority based.
    On,
    /// Quorum commit.
    Quorum,
}

/// `standby_cluster`, when active.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StandbyCluster {
    /// One host or a comma separated list.
    pub host: Option<String>,
    /// Port, or a comma separated list.
    pub port: Option<String>,
    /// `None`: no slot. `Some(None)`: a slot with the default name.
    pub primary_slot_name: Option<Option<String>>,
    /// Methods in order.
    pub create_replica_methods: Option<Vec<String>>,
    /// Recovery setting.
    pub restore_command: Option<String>,
    /// Recovery setting.
    pub archive_cleanup_command: Option<String>,
    /// Recovery setting.
    pub recovery_min_apply_delay: Option<String>,
}

impl StandbyCluster {
    /// Every host with its port; empty: there is nothing to stream from, only an archive.
    ///
    /// # Errors
    /// One line: the numbers of hosts and ports do not fit, or a port is none.
    pub fn places(&self) -> Result<Vec<(String, u16)>, String> {
        let list = |text: &Option<String>| -> Vec<String> {
            text.iter().flat_map(|t| t.split(',')).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
        };
        let (mut hosts, ports) = (list(&self.host), list(&self.port));
        if hosts.is_empty() && !ports.is_empty() {
            hosts.push("localhost".to_owned());
        }
        if ports.len() > 1 && ports.len() != hosts.len() {
            let (ports, hosts) = (ports.len(), hosts.len());
            return Err(format!(
                "standby_cluster.port: {ports} ports for {hosts} hosts; give one for all, or one each"
            ));
        }
        let port = |i: usize| ports.get(i).or(ports.first()).map_or("5432", String::as_str);
        let number = |text: &str| text.parse().ok().filter(|port| *port > 0);
        let place = |(i, host): (usize, String)| match number(port(i)) {
            Some(port) => Ok((host.trim_matches(['[', ']']).to_owned(), port)),
            None => Err(format!("standby_cluster.port: {} is no port (1 to 65535)", port(i))),
        };
        hosts.into_iter().enumerate().map(place).collect()
    }
}

/// The three timeouts, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Leader lock.
    pub ttl: i64,
    /// Period of the loop.
    pub loop_wait: i64,
    /// Retry budget.
    pub retry_timeout: i64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { ttl: 30, loop_wait: 10, retry_timeout: 10 }
    }
}

/// The parsed dynamic configuration.
#[derive(Clone, PartialEq)]
pub struct Dynamic {
    /// Lock lifetime in seconds, adjusted.
    pub ttl: i64,
    /// Seconds, adjusted.
    pub loop_wait: i64,
    /// Seconds, adjusted.
    pub retry_timeout: i64,
    /// The timeouts as written in the document.
    pub original: Timeouts,
    /// Bytes.
    pub maximum_lag_on_failover: i64,
    /// Bytes; ≤ 0 is off.
    pub maximum_lag_on_syncnode: i64,
    /// 0 keeps all.
    pub max_timelines_history: i64,
    /// Seconds; 0 is off.
    pub primary_race_backoff: i64,
    /// `prefer` or `require`; anything else is nothing.
    pub failover_site: Option<String>,
    /// Seconds; 0 fails over at once.
    pub primary_start_timeout: i64,
    /// Seconds; 0 is off.
    pub primary_stop_timeout: i64,
    /// Candidates must be on the latest timeline.
    pub check_timeline: bool,
    /// Off in a standby cluster.
    pub synchronous_mode: SynchronousMode,
    /// At least one synchronous node is required.
    pub synchronous_mode_strict: bool,
    /// At least 1 in strict mode.
    pub synchronous_node_count: i64,
    /// Failsafe mode.
    pub failsafe_mode: bool,
    /// Maintenance mode.
    pub pause: bool,
    /// Seconds; 0 drops at once.
    pub member_slots_ttl: i64,
    /// Permanent slots by name, as given.
    pub slots: Map<String, Value>,
    /// Slots to leave alone.
    pub ignore_slots: Vec<Map<String, Value>>,
    /// Active standby cluster section.
    pub standby_cluster: Option<StandbyCluster>,
    /// The `postgresql` section without the keys that only the local file may set.
    pub postgresql: Map<String, Value>,
    /// Why the timeouts and the `postgresql` section of the document were refused, if they were.
    pub rejected: Option<String>,
}

impl std::fmt::Debug for Dynamic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Commands in the `postgresql` section may carry passwords.
        f.debug_struct("Dynamic")
            .field("ttl", &self.ttl)
            .field("loop_wait", &self.loop_wait)
            .field("retry_timeout", &self.retry_timeout)
            .field("synchronous_mode", &self.synchronous_mode)
            .field("failsafe_mode", &self.failsafe_mode)
            .field("pause", &self.pause)
            .field("rejected", &self.rejected)
            .finish_non_exhaustive()
    }
}

impl Default for Dynamic {
    fn default() -> Self {
        Dynamic::parse(&Value::Object(Map::new())).0
    }
}

/// Keys of the dynamic `postgresql` section that only the local file may set.
const LOCAL_ONLY: [&str; 7] =
    ["connect_address", "proxy_address", "listen", "config_dir", "data_dir", "pgpass", "authentication"];

impl Dynamic {
    /// Reads a document; refused parts have their defaults.
    #[must_use]
    pub fn parse(document: &Value) -> (Dynamic, Vec<String>) {
        Dynamic::read(document, None)
    }

    /// Reads a changed document; refused parts keep the values of `previous`.
    #[must_use]
    pub fn apply(document: &Value, previous: &Dynamic) -> (Dynamic, Vec<String>) {
        Dynamic::read(document, Some(previous))
    }

    fn read(document: &Value, previous: Option<&Dynamic>) -> (Dynamic, Vec<String>) {
        let mut warnings = Vec::new();
        let top = Section::of(document);
        if !document.is_object() && !document.is_null() {
            warnings.push("dynamic configuration: must be a mapping; the defaults are used".to_owned());
        }
        unknown_keys(top, &mut warnings);
        let hard = read_timeouts(top).and_then(|timeouts| Ok((timeouts, read_postgresql(top)?)));
        let (original, adjusted, postgresql, rejected) = match hard {
            Ok((original, postgresql)) => (original, adjust(original, &mut warnings), postgresql, None),
            Err(why) => {
                warnings.push(format!(
                    "Exception when setting dynamic_configuration: {why}; the previous timeouts and postgresql section stay"
                ));
                let old = previous.map_or_else(Timeouts::default, |p| p.original);
                let in_force = previous.map_or_else(Timeouts::default, |p| Timeouts {
                    ttl: p.ttl,
                    loop_wait: p.loop_wait,
                    retry_timeout: p.retry_timeout,
                });
                (old, in_force, previous.map(|p| p.postgresql.clone()).unwrap_or_default(), Some(why))
            }
        };
        let (slots, ignore_slots) = kept_slots(top, previous, &mut warnings);
        let mut number = |key: &str, default: i64, unit: Option<&str>| whole(top, key, default, unit, &mut warnings);
        let strict = flag(top, "synchronous_mode_strict");
        let node_count = number("synchronous_node_count", 1, None);
        let renamed = |new: &'static str, old: &'static str| if top.get(new).is_some() { new } else { old };
        let standby_cluster = standby_cluster(top);
        let dynamic = Dynamic {
            ttl: adjusted.ttl,
            loop_wait: adjusted.loop_wait,
            retry_timeout: adjusted.retry_timeout,
            original,
            maximum_lag_on_failover: number("maximum_lag_on_failover", 1_048_576, None),
            maximum_lag_on_syncnode: number("maximum_lag_on_syncnode", -1, None),
            max_timelines_history: number("max_timelines_history", 0, None),
            primary_race_backoff: number("primary_race_backoff", 0, None),
            failover_site: top.filled("failover_site"),
            primary_start_timeout: number(renamed("primary_start_timeout", "master_start_timeout"), 300, None),
            primary_stop_timeout: number(renamed("primary_stop_timeout", "master_stop_timeout"), 0, None),
            member_slots_ttl: number("member_slots_ttl", 1800, Some("s")),
            check_timeline: flag(top, "check_timeline"),
            synchronous_mode: if standby_cluster.is_some() { SynchronousMode::Off } else { synchronous_mode(top) },
            synchronous_mode_strict: strict,
            synchronous_node_count: if strict { node_count.max(1) } else { node_count },
            failsafe_mode: flag(top, "failsafe_mode"),
            pause: flag(top, "pause"),
            slots,
            ignore_slots,
            standby_cluster,
            postgresql,
            rejected,
        };
        (dynamic, warnings)
    }
}

fn unknown_keys(top: Section<'_>, warnings: &mut Vec<String>) {
    for key in top.0.into_iter().flatten().map(|(key, _)| key.as_str()) {
        if !DYNAMIC_KEYS.contains(&key) {
            let hint = nearest(key, DYNAMIC_KEYS.iter().copied());
            let hint = hint.map_or(String::new(), |near| format!(", did you mean `{near}`?"));
            warnings.push(format!("dynamic configuration: unknown key {key}{hint}"));
        }
    }
}

fn flag(top: Section<'_>, key: &str) -> bool {
    top.flag(key).unwrap_or(false)
}

fn whole(top: Section<'_>, key: &str, default: i64, unit: Option<&str>, warnings: &mut Vec<String>) -> i64 {
    let Some(value) = top.get(key) else {
        return default;
    };
    numbers::parse_int(&merge::text(value), unit).unwrap_or_else(|| {
        let kind = if unit.is_some() { "a number of seconds or one with a time unit" } else { "a number without unit" };
        let given = merge::text(value);
        warnings.push(format!("dynamic configuration: {key}: {given} must be {kind}; using {default}"));
        default
    })
}

/// Python's `int()`: integers, floats cut, booleans, decimal text.
fn timeout(top: Section<'_>, key: &str, default: i64) -> Result<i64, String> {
    let Some(value) = top.0.and_then(|map| map.get(key)) else {
        return Ok(default);
    };
    let number = match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|float| float.trunc() as i64)),
        Value::Bool(flag) => Some(i64::from(*flag)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    number.ok_or_else(|| format!("{key}: {} must be a whole number of seconds", merge::text(value)))
}

fn read_timeouts(top: Section<'_>) -> Result<Timeouts, String> {
    let default = Timeouts::default();
    Ok(Timeouts {
        ttl: timeout(top, "ttl", default.ttl)?,
        loop_wait: timeout(top, "loop_wait", default.loop_wait)?,
        retry_timeout: timeout(top, "retry_timeout", default.retry_timeout)?,
    })
}

/// Raises each timeout to its minimum, then makes `loop_wait + 2·retry_timeout ≤ ttl` hold.
pub fn adjust(given: Timeouts, warnings: &mut Vec<String>) -> Timeouts {
    // Ten years: keeps every sum far from overflow.
    const MOST: i64 = 315_360_000;
    let mut at_least = |key: &str, value: i64, least: i64| {
        if value < least {
            warnings.push(format!("{key}={value} can't be smaller than {least}, adjusting"));
        }
        value.clamp(least, MOST)
    };
    let mut now = Timeouts {
        ttl: at_least("ttl", given.ttl, 20),
        loop_wait: at_least("loop_wait", given.loop_wait, 1),
        retry_timeout: at_least("retry_timeout", given.retry_timeout, 3),
    };
    let before = now;
    if 1 + 2 * now.retry_timeout > now.ttl {
        now.loop_wait = 1;
        now.retry_timeout = (now.ttl - 1) / 2;
    } else if now.loop_wait + 2 * now.retry_timeout > now.ttl {
        now.loop_wait = now.ttl - 2 * now.retry_timeout;
    }
    if now != before {
        warnings.push(format!(
            "Violated the rule \"loop_wait + 2*retry_timeout <= ttl\", where ttl={}: adjusting loop_wait from {} to {} and retry_timeout from {} to {}",
            now.ttl, before.loop_wait, now.loop_wait, before.retry_timeout, now.retry_timeout
        ));
    }
    now
}

fn read_postgresql(top: Section<'_>) -> Result<Map<String, Value>, String> {
    let mut section = match top.get("postgresql") {
        None => return Ok(Map::new()),
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err("postgresql: must be a mapping (key: value)".to_owned()),
    };
    if section.get("parameters").is_some_and(|parameters| !parameters.is_object() && !parameters.is_null()) {
        return Err("postgresql.parameters: must be a mapping (name: value)".to_owned());
    }
    section.retain(|key, _| !LOCAL_ONLY.contains(&key.as_str()));
    Ok(section)
}

fn synchronous_mode(top: Section<'_>) -> SynchronousMode {
    match top.text("synchronous_mode") {
        Some(text) if text.eq_ignore_ascii_case("quorum") => SynchronousMode::Quorum,
        Some(text) if numbers::parse_bool(&text) == Some(true) => SynchronousMode::On,
        Some(_) | None => SynchronousMode::Off,
    }
}

/// Permanent and ignored slots. Nonsense in their place leaves what was in force: it would drop every one of them.
fn kept_slots(
    top: Section<'_>,
    previous: Option<&Dynamic>,
    warnings: &mut Vec<String>,
) -> (Map<String, Value>, Vec<Map<String, Value>>) {
    let (mut permanent, mut ignored) = (slots(top), ignore_slots(top));
    if wrong_slots(top, warnings) {
        permanent = previous.map(|p| p.slots.clone()).unwrap_or_default();
    }
    if wrong_kind(top, "ignore_slots", Value::is_array, "a list", warnings) {
        ignored = previous.map(|p| p.ignore_slots.clone()).unwrap_or_default();
    }
    (permanent, ignored)
}

/// One of the three names has a value that is no mapping of names.
fn wrong_slots(top: Section<'_>, warnings: &mut Vec<String>) -> bool {
    SLOTS.iter().filter(|key| wrong_kind(top, key, Value::is_object, "a mapping (name: definition)", warnings)).count()
        > 0
}

fn wrong_kind(top: Section<'_>, key: &str, right: fn(&Value) -> bool, kind: &str, warnings: &mut Vec<String>) -> bool {
    let wrong = top.get(key).filter(|value| !value.is_null() && !right(value));
    if let Some(value) = wrong {
        let given = merge::text(value);
        warnings.push(format!("dynamic configuration: {key}: {given} must be {kind}; using what was in force"));
    }
    wrong.is_some()
}

/// What permanent slots are listed under.
const SLOTS: [&str; 3] = ["permanent_replication_slots", "permanent_slots", "slots"];

/// The first filled one of the three names.
fn slots(top: Section<'_>) -> Map<String, Value> {
    let filled = SLOTS.iter().filter_map(|name| top.section(name).0).find(|map| !map.is_empty());
    filled.cloned().unwrap_or_default()
}

fn ignore_slots(top: Section<'_>) -> Vec<Map<String, Value>> {
    let items = top.get("ignore_slots").and_then(Value::as_array);
    items.into_iter().flatten().filter_map(|item| item.as_object().cloned()).collect()
}

fn standby_cluster(top: Section<'_>) -> Option<StandbyCluster> {
    let section = top.section("standby_cluster");
    let active =
        ["host", "port", "restore_command"].iter().any(|key| section.get(key).is_some_and(super::tags::truthy));
    active.then(|| StandbyCluster {
        host: section.filled("host"),
        port: section.filled("port"),
        primary_slot_name: section
            .0
            .and_then(|map| map.get("primary_slot_name"))
            .map(|_| section.filled("primary_slot_name")),
        create_replica_methods: section.lines("create_replica_methods"),
        restore_command: section.filled("restore_command"),
        archive_cleanup_command: section.filled("archive_cleanup_command"),
        recovery_min_apply_delay: section.filled("recovery_min_apply_delay"),
    })
}
