//! The rows of `list` and `topology` as a pure function of the cluster and of fresh positions.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::dates;
use super::output::{Column, Format};
use crate::config::{numbers, yaml};
use crate::model::{Cluster, Initialize, Lsn, Member, MemberName, Role};

/// A reason longer than this is hidden in tables.
const REASON_MAX: usize = 50;
const DEFAULT_PORT: u16 = 5432;

/// Positions a member's REST API gave; what is `None` is taken from the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// `xlog.location` of a primary.
    pub location: Option<Lsn>,
    /// `xlog.received_location` of a standby.
    pub received: Option<Lsn>,
    /// `xlog.replayed_location` of a standby.
    pub replayed: Option<Lsn>,
}

/// What is to be shown.
#[derive(Clone, Copy, Debug)]
pub struct Show<'a> {
    /// Cluster name.
    pub scope: &'a str,
    /// All optional columns.
    pub extended: bool,
    /// Decides how tags and reasons look, and whether the cluster column is there.
    pub format: Format,
}

/// A finished table.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberTable {
    /// For table formats.
    pub title: String,
    /// Columns.
    pub columns: Vec<Column>,
    /// Rows.
    pub rows: Vec<Vec<Value>>,
    /// Lines after a table.
    pub service: Vec<String>,
}

/// The dynamic configuration; an empty object when there is none or it is unreadable.
pub fn dynamic(cluster: &Cluster) -> Value {
    let document = cluster.config.as_ref().and_then(|c| c.document.as_deref());
    document.and_then(|d| serde_json::from_str(d).ok()).filter(Value::is_object).unwrap_or(Value::Object(Map::new()))
}

/// Is the cluster paused?
pub fn is_paused(cluster: &Cluster) -> bool {
    numbers::parse_bool(&super::output::cell_text(&dynamic(cluster)["pause"])).unwrap_or(false)
}

/// Host and port of a member's `conn_url`.
pub fn host_port(member: &Member) -> Option<(String, u16)> {
    let url = member.conn_url.as_deref()?;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next()?;
    let address = authority.rsplit_once('@').map_or(authority, |(_, a)| a);
    let (host, port) = match address.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => address.rsplit_once(':').map_or((address, None), |(h, p)| (h, Some(p))),
    };
    let port = port.filter(|p| !p.is_empty()).map_or(Ok(DEFAULT_PORT), str::parse).ok()?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// The table of `cluster`. In [`Format::Topology`] rows stand in tree order.
pub fn table(cluster: &Cluster, positions: &BTreeMap<MemberName, Positions>, show: &Show<'_>) -> MemberTable {
    let context = Context::new(cluster, positions, show);
    let names: Vec<(usize, &MemberName)> = match show.format {
        Format::Topology => tree(cluster),
        Format::Pretty | Format::Tsv | Format::Json | Format::Yaml => cluster.members.keys().map(|n| (0, n)).collect(),
    };
    let extras: Vec<(&str, Vec<Value>)> = EXTRAS
        .iter()
        .map(|(name, cell)| (*name, names.iter().map(|(_, n)| cell(&context.raw(n), show)).collect::<Vec<_>>()))
        .filter(|(name, cells)| show.extended && *name != FENCE || cells.iter().any(|c| c != ""))
        .collect();
    let table = show.format.is_table();
    let mut columns = columns(table);
    columns.extend(extras.iter().map(|(name, _)| Column::left(name)));
    let rows = names
        .iter()
        .enumerate()
        .map(|(i, (depth, name))| {
            let mut row = context.row(name, *depth);
            if table {
                row.remove(0);
            }
            row.extend(extras.iter().map(|(_, cells)| cells[i].clone()));
            row
        })
        .collect();
    MemberTable { title: title(cluster, show.scope), columns, rows, service: service(cluster) }
}

fn columns(table: bool) -> Vec<Column> {
    let (receive_lag, replay_lag) = if table { ("Lag", "Lag") } else { ("Receive Lag", "Replay Lag") };
    let mut all: Vec<Column> = ["Cluster", "Member", "Host", "Role", "State"].map(Column::left).into();
    all.extend(["TL", "Receive LSN", receive_lag, "Replay LSN", replay_lag].map(Column::right));
    if table {
        all.remove(0);
    }
    all
}

fn title(cluster: &Cluster, scope: &str) -> String {
    let init = match &cluster.initialize {
        Initialize::Absent => "uninitialized",
        Initialize::InProgress => "initializing",
        Initialize::Value(id) => id,
    };
    format!(" Cluster: {scope} ({init}) ")
}

fn service(cluster: &Cluster) -> Vec<String> {
    let mut lines = Vec::new();
    if is_paused(cluster) {
        lines.push(" Maintenance mode: on".to_owned());
    }
    if let Some((request, at)) = cluster.request().and_then(|r| r.scheduled_at.map(|at| (r, at))) {
        lines.push(format!(" Switchover scheduled at: {}", dates::wall_iso(at)));
        for (word, name) in [("from", &request.leader), ("to", &request.candidate)] {
            if let Some(name) = name {
                lines.push(format!("{word:>24}: {name}"));
            }
        }
    }
    lines
}

struct Context<'a> {
    cluster: &'a Cluster,
    positions: &'a BTreeMap<MemberName, Positions>,
    show: &'a Show<'a>,
    with_port: bool,
    leader_lsn: Lsn,
    sync_role: Option<&'static str>,
}

impl<'a> Context<'a> {
    fn new(cluster: &'a Cluster, positions: &'a BTreeMap<MemberName, Positions>, show: &'a Show<'a>) -> Self {
        let addresses: Vec<(String, u16)> = cluster.members.values().filter_map(host_port).collect();
        let hosts: BTreeSet<&String> = addresses.iter().map(|(h, _)| h).collect();
        let with_port = hosts.len() < addresses.len() || addresses.iter().any(|(_, p)| *p != DEFAULT_PORT);
        let leader = cluster.leader.as_ref().and_then(|l| l.named());
        let fresh = leader.and_then(|l| positions.get(l)).and_then(|p| p.location).unwrap_or(Lsn::ZERO);
        let mode = dynamic(cluster)["synchronous_mode"].clone();
        let text = super::output::cell_text(&mode).to_lowercase();
        let sync_role = if text == "quorum" {
            Some("Quorum Standby")
        } else {
            numbers::parse_bool(&text).unwrap_or(false).then_some("Sync Standby")
        };
        Context { cluster, positions, show, with_port, leader_lsn: cluster.optime().max(fresh), sync_role }
    }

    fn raw(&self, name: &MemberName) -> Value {
        self.cluster.members.get(name).and_then(|m| serde_json::from_str(&m.raw).ok()).unwrap_or(Value::Null)
    }

    fn row(&self, name: &MemberName, depth: usize) -> Vec<Value> {
        let Some(member) = self.cluster.members.get(name) else { return Vec::new() };
        let owner = self.cluster.leader.as_ref().and_then(|l| l.named()) == Some(name);
        let role = self.role(name, member, owner);
        let shown = if depth == 0 { name.0.clone() } else { format!("{}+ {name}", "  ".repeat(depth - 1)) };
        let state = member.state.as_ref().map_or("", |s| s.word());
        let state = member.replication_state.as_deref().filter(|_| role != "Leader").unwrap_or(state);
        let mut row: Vec<Value> = vec![self.show.scope.into(), shown.into(), self.host(member).into(), role.into()];
        row.push(state.into());
        row.push(member.timeline.filter(|t| t.0 > 0).map_or_else(|| "".into(), |t| t.0.into()));
        let (receive, replay) = if owner { (None, None) } else { self.lsns(name, member, state) };
        for lsn in [receive, replay] {
            match lsn {
                _ if owner => row.extend(["".into(), "".into()]),
                None => row.extend(["unknown".into(), "".into()]),
                Some(lsn) => row.extend([lsn.to_string().into(), self.lag(lsn)]),
            }
        }
        row
    }

    fn role(&self, name: &MemberName, member: &Member, owner: bool) -> &'static str {
        if owner {
            return if member.role == Some(Role::StandbyLeader) { "Standby Leader" } else { "Leader" };
        }
        let in_sync = self
            .cluster
            .sync
            .as_ref()
            .filter(|s| s.leader.is_some())
            .is_some_and(|s| s.standbys.iter().any(|n| n.0.eq_ignore_ascii_case(&name.0)));
        self.sync_role.filter(|_| in_sync).unwrap_or("Replica")
    }

    fn host(&self, member: &Member) -> String {
        match host_port(member) {
            None => String::new(),
            Some((host, _)) if !self.with_port => host,
            Some((host, port)) if host.contains(':') => format!("[{host}]:{port}"),
            Some((host, port)) => format!("{host}:{port}"),
        }
    }

    /// Received and replayed positions; 0 counts as unknown.
    fn lsns(&self, name: &MemberName, member: &Member, state: &str) -> (Option<Lsn>, Option<Lsn>) {
        let fresh = self.positions.get(name).cloned().unwrap_or_default();
        let mut receive = fresh.received.or(member.receive_lsn).filter(|l| *l > Lsn::ZERO);
        let mut replay = fresh.replayed.or(member.replay_lsn).filter(|l| *l > Lsn::ZERO);
        if receive.is_none() && replay.is_none() {
            // Members before 4.1 publish one position only.
            let single = member.xlog_location.filter(|l| *l > Lsn::ZERO);
            *(if state == "streaming" { &mut receive } else { &mut replay }) = single;
        }
        (receive, replay)
    }

    fn lag(&self, lsn: Lsn) -> Value {
        if self.leader_lsn == Lsn::ZERO {
            return "".into();
        }
        megabytes(self.leader_lsn.ahead_of(lsn)).into()
    }
}

/// Bytes in megabytes, halves rounded to even.
fn megabytes(bytes: u64) -> u64 {
    const MB: u64 = 1 << 20;
    let (whole, rest) = (bytes / MB, bytes % MB);
    match rest.cmp(&(MB / 2)) {
        std::cmp::Ordering::Less => whole,
        std::cmp::Ordering::Equal => whole + whole % 2,
        std::cmp::Ordering::Greater => whole + 1,
    }
}

type Extra = (&'static str, fn(&Value, &Show<'_>) -> Value);

/// The optional columns: heading, and the cell from the member's published data.
const EXTRAS: [Extra; 6] = [
    ("Pending restart", |raw, _| if truthy(&raw["pending_restart"]) { "*".into() } else { "".into() }),
    ("Pending restart reason", reason),
    ("Scheduled restart", |raw, _| scheduled(&raw["scheduled_restart"]).into()),
    ("Site", |raw, _| raw["site"].as_str().unwrap_or("").into()),
    ("Tags", tags),
    (FENCE, |raw, _| raw["fence"].as_str().unwrap_or("").into()),
];
/// Only where something is wrong with it, whatever else is shown: of a healthy cluster nothing is said.
const FENCE: &str = "Fence";

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn reason(raw: &Value, show: &Show<'_>) -> Value {
    let Some(reasons) = raw["pending_restart_reason"].as_object() else { return "".into() };
    let sorted: BTreeMap<&String, &Value> = reasons.iter().collect();
    let word = |v: &Value| v.as_str().map_or_else(|| super::output::cell_text(v), str::to_owned);
    let lines = sorted.into_iter().map(|(name, change)| {
        let full = format!("{name}: {}->{}", word(&change["old_value"]), word(&change["new_value"]));
        if show.format.is_table() && full.chars().count() > REASON_MAX {
            format!("{name}: [hidden - too long]")
        } else {
            full
        }
    });
    lines.collect::<Vec<_>>().join("\n").into()
}

fn scheduled(restart: &Value) -> String {
    let Some(at) = restart["schedule"].as_str() else { return String::new() };
    match restart["postgres_version"].as_str() {
        Some(version) => format!("{at} if version < {version}"),
        None => at.to_owned(),
    }
}

fn tags(raw: &Value, show: &Show<'_>) -> Value {
    let tags = &raw["tags"];
    if !truthy(tags) {
        return "".into();
    }
    match show.format {
        Format::Json | Format::Yaml => tags.clone(),
        Format::Pretty => yaml::to_string_block(tags).trim_end().into(),
        Format::Topology | Format::Tsv => yaml::to_string_flow(tags).into(),
    }
}

/// Members in tree order with their depth. Members in a replication loop have no root and are not printed.
fn tree(cluster: &Cluster) -> Vec<(usize, &MemberName)> {
    let leader = cluster.leader.as_ref().and_then(|l| l.named()).filter(|l| cluster.members.contains_key(*l));
    let mut children: BTreeMap<Option<&MemberName>, Vec<&MemberName>> = BTreeMap::new();
    for (name, member) in &cluster.members {
        if Some(name) == leader {
            continue;
        }
        let from = member.tags.replicatefrom.as_ref();
        let parent = from.filter(|f| Some(*f) != leader && *f != name && cluster.members.contains_key(*f)).or(leader);
        children.entry(parent).or_default().push(name);
    }
    let mut out = Vec::new();
    let mut stack: Vec<(usize, &MemberName)> = match leader {
        Some(leader) => vec![(0, leader)],
        None => children.get(&None).into_iter().flatten().rev().map(|n| (1, *n)).collect(),
    };
    while let Some((depth, name)) = stack.pop() {
        out.push((depth, name));
        stack.extend(children.get(&Some(name)).into_iter().flatten().rev().map(|n| (depth + 1, *n)));
    }
    out
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
