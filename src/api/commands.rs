//! Everything that changes something. Words are validated here, conditions are the loop's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use serde_json::{Map, Value};

use super::cluster::NO_VIEW;
use super::routes::Reply;
use super::times;
use crate::config::merge;
use crate::config::newly_unsupported;
use crate::config::numbers::{parse_bool, parse_int};
use crate::door::{Answer, Command, Handle, NotTaken, Snapshot};
use crate::model::{Addressee, Commits, MemberName, PeerAnswer, RequestText, RestartFilter, Version};

/// The loop takes a command at once and a write into the store has a deadline of its own; whoever waits longer than this
/// waits for nothing.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// A restart first stops Postgres, which takes as long as its last checkpoint. patronictl waits no longer either.
const RESTART_DEADLINE: Duration = Duration::from_secs(3600);
/// The record of a switchover and the leader are two objects with a watch each: the end of the one may be seen this much
/// before the change of the other.
const LEADER_GRACE: Duration = Duration::from_secs(2);

/// A route that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    PatchConfig,
    PutConfig,
    Reload,
    Sigterm,
    Restart,
    DeleteRestart,
    Reinitialize,
    Switchover,
    Failover,
    DeleteSwitchover,
    Failsafe,
    Mpp,
}

/// Is a body needed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyRule {
    None,
    Optional,
    Mandatory,
}

impl Route {
    pub fn find(method: &Method, segment: &str) -> Option<Route> {
        Some(match (method.as_str(), segment) {
            ("PATCH", "config") => Route::PatchConfig,
            ("PUT", "config") => Route::PutConfig,
            ("POST", "reload") => Route::Reload,
            ("POST", "sigterm") => Route::Sigterm,
            ("POST", "restart") => Route::Restart,
            ("DELETE", "restart") => Route::DeleteRestart,
            ("POST", "reinitialize") => Route::Reinitialize,
            ("POST", "switchover") => Route::Switchover,
            ("POST", "failover") => Route::Failover,
            ("DELETE", "switchover") => Route::DeleteSwitchover,
            ("POST", "failsafe") => Route::Failsafe,
            ("POST", "citus" | "mpp") => Route::Mpp,
            _ => return None,
        })
    }

    pub fn body(self) -> BodyRule {
        match self {
            Route::PatchConfig
            | Route::PutConfig
            | Route::Switchover
            | Route::Failover
            | Route::Failsafe
            | Route::Mpp => BodyRule::Mandatory,
            Route::Restart | Route::Reinitialize => BodyRule::Optional,
            Route::Reload | Route::Sigterm | Route::DeleteRestart | Route::DeleteSwitchover => BodyRule::None,
        }
    }
}

pub(super) async fn run(handle: &Handle, route: Route, body: Map<String, Value>) -> Reply {
    match route {
        Route::PatchConfig => patch_config(handle, Value::Object(body)).await,
        Route::PutConfig => put_config(handle, Value::Object(body)).await,
        Route::Reload => {
            send(handle, Command::Reload).await.map_or_else(|refused| refused, |_| Reply::text(202, "reload scheduled"))
        }
        Route::Sigterm => Reply::text(202, "shutdown scheduled"),
        Route::Restart => restart(handle, &body).await,
        Route::DeleteRestart => ask(handle, Command::DeleteScheduledRestart).await,
        Route::Reinitialize => {
            let flag = |key: &str| body.get(key).is_some_and(truthy);
            let command = Command::Reinitialize { force: flag("force"), from_leader: flag("from_leader") };
            ask(handle, command).await
        }
        Route::Switchover => change_leader(handle, &body, Change::Switchover).await,
        Route::Failover => change_leader(handle, &body, Change::Failover).await,
        Route::DeleteSwitchover => delete_switchover(handle).await,
        Route::Failsafe => failsafe(handle, &body).await,
        Route::Mpp => Reply::text(501, "Citus is not supported"),
    }
}

/// The loop's answer, or the reply that says why there is none.
async fn send(handle: &Handle, command: Command) -> Result<Answer, Reply> {
    let deadline = if matches!(command, Command::Restart { .. }) { RESTART_DEADLINE } else { ANSWER_DEADLINE };
    match tokio::time::timeout(deadline, handle.command(command)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(why @ (NotTaken::QueueFull | NotTaken::Stopping))) => Err(Reply::text(503, why.to_string())),
        Err(_) => Err(Reply::text(503, format!("no answer within {} s, it may still happen", deadline.as_secs()))),
    }
}

/// The same where the answer goes out as it is.
async fn ask(handle: &Handle, command: Command) -> Reply {
    send(handle, command).await.map_or_else(|refused| refused, text)
}

fn text(answer: Answer) -> Reply {
    Reply::text(answer.status, answer.text)
}

/// `POST /failsafe`: a holder of the lock that cannot reach the store asks to be left it.
async fn failsafe(handle: &Handle, body: &Map<String, Value>) -> Reply {
    if !handle.snapshot().settings.failsafe {
        return Reply::page(502);
    }
    let from = body.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let Some(from) = from else { return Reply::text(400, "name: the name of the member that asks is missing") };
    let text = |key: &str| body.get(key).and_then(Value::as_str);
    let asked = Addressee { name: text("member").map(MemberName::from), uid: text("uid").map(str::to_owned) };
    match send(handle, Command::Failsafe { from: from.into(), asked }).await {
        Ok(Answer { status: 502, .. }) => Reply::page(502),
        Ok(answer) => self::text(answer),
        Err(refused) => refused,
    }
}

/// Deep-merges into the stored document, on the version it was read in; 503 without one.
async fn patch_config(handle: &Handle, patch: Value) -> Reply {
    let snapshot = handle.snapshot();
    let stored = snapshot.cluster.config.as_ref().and_then(|c| Some((c.version.clone(), c.document.clone()?)));
    let Some((version, text)) = stored else { return Reply::page_because(503, "no configuration in the store") };
    let mut document: Value = serde_json::from_str(&text).unwrap_or_else(|_| Value::Object(Map::new()));
    let before = document.clone();
    if !merge::patch(&mut document, &patch) {
        return Reply::json(200, &document);
    }
    if let Some(refused) = refuse(&before, &document) {
        return refused;
    }
    write_config(handle, Some(version), &document, 409).await
}

/// Replaces the stored document.
async fn put_config(handle: &Handle, document: Value) -> Reply {
    let snapshot = handle.snapshot();
    let config = snapshot.cluster.config.as_ref();
    let stored = config.and_then(|c| c.document.as_deref()).and_then(|t| serde_json::from_str::<Value>(t).ok());
    if stored.as_ref() == Some(&document) {
        return Reply::json(200, &document);
    }
    if let Some(refused) = refuse(&stored.unwrap_or(Value::Null), &document) {
        return refused;
    }
    write_config(handle, config.map(|c| c.version.clone()), &document, 502).await
}

/// A configuration that asks for what this version cannot promise, and did not before, is refused at the door.
fn refuse(before: &Value, after: &Value) -> Option<Reply> {
    let wishes = newly_unsupported(before, after);
    (!wishes.is_empty()).then(|| Reply::page_because(400, &wishes.join("; ")))
}

async fn write_config(handle: &Handle, expect: Option<Version>, document: &Value, conflict: u16) -> Reply {
    let command = Command::WriteConfig { expect, document: document.to_string().into(), conflict };
    let answer = match send(handle, command).await {
        Ok(answer) => answer,
        Err(refused) => return refused,
    };
    match answer.status {
        200 => match serde_json::from_str::<Value>(&answer.text) {
            Ok(document) => Reply::json(200, &document),
            Err(_) => Reply::text(200, answer.text),
        },
        status => Reply::page_because(status, &answer.text),
    }
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_i64() == Some(1),
        Value::String(s) => parse_bool(s) == Some(true),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// `POST /restart`: keys are validated in the order sent, the first error wins.
async fn restart(handle: &Handle, body: &Map<String, Value>) -> Reply {
    if body.contains_key("schedule") && handle.snapshot().settings.pause {
        return Reply::text(500, "Can't schedule restart in the paused state");
    }
    let mut filter = RestartFilter::default();
    let mut timeout = None;
    let mut schedule = None;
    for (key, value) in body {
        let given = word(value);
        match key.as_str() {
            "schedule" => match times::schedule(&given, "restart", handle.now().wall) {
                Ok(at) => schedule = Some(at),
                Err((status, text)) => return Reply::text(status, text),
            },
            "role" if ["primary", "standby_leader", "replica"].contains(&given.as_str()) => filter.role = Some(given),
            "role" => {
                return Reply::text(400, "PostgreSQL role should be either primary, standby_leader, or replica");
            }
            "postgres_version" => match postgres_version(&given) {
                Ok(version) => filter.below_version = Some(version),
                Err(text) => return Reply::text(400, text),
            },
            "timeout" => match parse_int(&given, Some("s")).filter(|n| *n > 0) {
                Some(secs) => timeout = Some(Duration::from_secs(secs.unsigned_abs())),
                None => return Reply::text(400, "Timeout should be a positive number of seconds"),
            },
            "restart_pending" => filter.pending_only = true,
            other => return Reply::text(400, format!("Unknown filter for the scheduled restart: {other}")),
        }
    }
    match schedule {
        Some((at, iso)) => {
            let mut document = body.clone();
            document.insert("schedule".into(), Value::String(iso));
            ask(
                handle,
                Command::ScheduleRestart { at, filter, timeout, document: Value::Object(document).to_string().into() },
            )
            .await
        }
        None => ask(handle, Command::Restart { filter, timeout }).await,
    }
}

/// `X.Y` or `X.Y.Z` as `server_version_num`.
fn postgres_version(text: &str) -> Result<u32, String> {
    let number = |part: &str| part.trim().parse::<u32>().ok().filter(|n| *n < 100);
    let numbers: Option<Vec<u32>> = text.split('.').map(number).collect();
    let numbers = numbers.ok_or_else(|| format!("Invalid PostgreSQL version: {text}"))?;
    match numbers[..] {
        [major, minor] if major >= 10 => Ok(major * 10_000 + minor),
        [major, minor, patch] => Ok(major * 10_000 + minor * 100 + patch),
        _ => Err(format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {text}")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Switchover,
    Failover,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Change::Switchover => "switchover",
            Change::Failover => "failover",
        }
    }
    fn title(self) -> &'static str {
        match self {
            Change::Switchover => "Switchover",
            Change::Failover => "Failover",
        }
    }
    /// How it ended, with `new` as the leader.
    fn done(self, new: &MemberName, wanted: Option<&MemberName>) -> String {
        match (self, wanted.filter(|w| *w != new)) {
            (Change::Switchover, None) => format!("Successfully switched over to \"{new}\""),
            (Change::Failover, None) => format!("Successfully failed over to \"{new}\""),
            (Change::Switchover, Some(wanted)) => format!("Switched over to \"{new}\" instead of \"{wanted}\""),
            (Change::Failover, Some(wanted)) => format!("Failed over to \"{new}\" instead of \"{wanted}\""),
        }
    }
}

/// `POST /switchover` and `/failover`: the first check that hits wins.
async fn change_leader(handle: &Handle, body: &Map<String, Value>, asked: Change) -> Reply {
    let value = |keys: &[&str]| keys.iter().find_map(|k| body.get(*k).map(word).filter(|v| !v.is_empty()));
    let leader = value(&["leader"]).map(MemberName);
    let candidate = value(&["candidate", "member"]).map(MemberName);
    let scheduled = value(&["scheduled_at"]);
    if asked == Change::Failover && candidate.is_none() {
        return Reply::text(400, "Failover could be performed only to a specific candidate");
    }
    if asked == Change::Switchover && leader.is_none() {
        return Reply::text(400, "Switchover could be performed only from a specific leader");
    }
    if asked == Change::Failover && scheduled.is_some() {
        return Reply::text(400, "Failover can't be scheduled");
    }
    let paused = handle.snapshot().settings.pause;
    if scheduled.is_some() && paused {
        return Reply::text(400, "Can't schedule switchover in the paused state");
    }
    let schedule = match scheduled.map(|s| times::schedule(&s, "switchover", handle.now().wall)).transpose() {
        Ok(schedule) => schedule.map(|(_, iso)| iso),
        Err((status, text)) => return Reply::text(status, text),
    };
    if candidate.is_none() && paused {
        return Reply::text(400, "Switchover is possible only to a specific candidate in a paused state");
    }
    let change = if leader.is_some() { Change::Switchover } else { asked };
    if asked != change {
        tracing::warn!("POST /failover with a leader is treated as a switchover");
    }
    if leader.is_some() && leader == candidate {
        return Reply::text(400, "Switchover target and source are the same");
    }
    if schedule.is_none()
        && let Some(refusal) = impossible(handle, leader.as_ref(), candidate.as_ref(), change).await
    {
        return refusal;
    }
    let before = handle.snapshot().cluster.leader.as_ref().and_then(|l| l.named().cloned());
    let is_scheduled = schedule.is_some();
    let request = Command::SetRequest(RequestText { leader, candidate: candidate.clone(), scheduled_at: schedule });
    match send(handle, request).await {
        Ok(written) if written.status == 200 => {}
        Ok(_) => return Reply::text(503, "failed to write failover key into DCS"),
        Err(refused) => return refused,
    }
    if is_scheduled {
        return Reply::text(202, "Switchover scheduled");
    }
    await_change(handle, change, before, candidate).await
}

/// The 412 checks of an immediate request.
async fn impossible(
    handle: &Handle,
    leader: Option<&MemberName>,
    candidate: Option<&MemberName>,
    change: Change,
) -> Option<Reply> {
    let snapshot = handle.snapshot();
    if !snapshot.dcs_available {
        return Some(Reply::text(503, NO_VIEW));
    }
    let cluster = &snapshot.cluster;
    let owner = cluster.leader.as_ref().and_then(|l| l.named());
    if leader.is_some() && leader != owner {
        return Some(Reply::text(412, "leader name does not match"));
    }
    let synchronous = synchronous(&snapshot).filter(|_| change == Change::Switchover);
    if candidate.is_some_and(|c| synchronous.as_ref().is_some_and(|names| !names.iter().any(|n| n.is(c)))) {
        return Some(Reply::text(412, "candidate name does not match with sync_standby"));
    }
    if candidate.is_some_and(|c| !cluster.members.contains_key(c)) {
        return Some(Reply::text(412, "candidate does not exists"));
    }
    let others: BTreeSet<_> = cluster.members.keys().filter(|n| Some(*n) != owner).collect();
    let word = change.word();
    if candidate.is_none() && synchronous.as_ref().is_some_and(Vec::is_empty) {
        return Some(Reply::text(412, format!("{word} is not possible: can not find sync_standby")));
    }
    if candidate.is_none() && others.is_empty() {
        return Some(Reply::text(412, format!("{word} is not possible: cluster does not have members except leader")));
    }
    let may = |n: &MemberName| synchronous.as_ref().is_none_or(|names| names.iter().any(|s| s.is(n)));
    let wanted = |n: &&MemberName| candidate.is_none_or(|c| c == *n) && may(n);
    let probed: Vec<MemberName> = others.into_iter().filter(wanted).cloned().collect();
    let answers = handle.ask_peers(&probed).await;
    let own_fit = probed.contains(snapshot.me()) && !snapshot.settings.tags.nofailover;
    let good = own_fit
        || answers.values().any(|a| match a {
            PeerAnswer::Fit { tags, watchdog_failed, .. } => !tags.nofailover && !watchdog_failed,
            PeerAnswer::Unfit { .. } | PeerAnswer::Down { .. } | PeerAnswer::Unreachable(_) => false,
        });
    (!good).then(|| Reply::text(412, format!("{word} is not possible: no good candidates have been found")))
}

/// In synchronous mode: the standbys that may take over, members of the cluster.
fn synchronous(snapshot: &Snapshot) -> Option<Vec<MemberName>> {
    if snapshot.settings.synchronous.mode != Commits::Synchronous {
        return None;
    }
    let names = snapshot.cluster.sync.as_ref().map(|s| s.standbys.clone()).unwrap_or_default();
    Some(names.into_iter().filter(|n| snapshot.cluster.members.keys().any(|m| m.is(n))).collect())
}

/// Waits until there is a new leader, or the record is gone and stays without consequence.
async fn await_change(
    handle: &Handle,
    change: Change,
    before: Option<MemberName>,
    candidate: Option<MemberName>,
) -> Reply {
    let limit = handle.snapshot().settings.loop_wait.max(Duration::from_secs(10)) * 2;
    let mut watch = handle.watch();
    let new_leader = |s: &Snapshot| {
        let leader = s.cluster.leader.as_ref().and_then(|l| l.named());
        leader.filter(|l| Some(*l) != before.as_ref()).map(|l| change.done(l, candidate.as_ref()))
    };
    let mut seen = false;
    let settled = |s: &Arc<Snapshot>| {
        let present = s.cluster.request().is_some();
        let gone = seen && !present;
        seen |= present;
        gone || new_leader(s).is_some()
    };
    let unknown = Reply::text(503, format!("{} status unknown", change.title()));
    let Ok(Ok(snapshot)) = tokio::time::timeout(limit, watch.wait_for(settled)).await.map(|r| r.map(|s| s.clone()))
    else {
        return unknown;
    };
    if let Some(text) = new_leader(&snapshot) {
        return Reply::text(200, text);
    }
    let late = tokio::time::timeout(LEADER_GRACE, watch.wait_for(|s| new_leader(s).is_some())).await;
    match late.ok().and_then(Result::ok).and_then(|s| new_leader(&s)) {
        Some(text) => Reply::text(200, text),
        None => Reply::text(503, format!("{} failed: {}", change.title(), outcome(handle, candidate.as_ref()).await)),
    }
}

/// Who leads after a change that came to nothing, and what its candidate says.
async fn outcome(handle: &Handle, candidate: Option<&MemberName>) -> String {
    let leader = handle.snapshot().cluster.leader.as_ref().and_then(|l| l.named().cloned());
    let leads = leader.map_or_else(|| "nobody leads".to_owned(), |l| format!("{l} leads, its log says why"));
    let Some(candidate) = candidate else { return leads };
    match handle.ask_peers(std::slice::from_ref(candidate)).await.get(candidate) {
        Some(PeerAnswer::Unfit { why, .. }) => format!("{leads}; {candidate} may not lead: {why}"),
        Some(PeerAnswer::Down { .. }) => format!("{leads}; Postgres of {candidate} does not run"),
        Some(PeerAnswer::Unreachable(why)) => format!("{leads}; {candidate}: {why}"),
        Some(PeerAnswer::Fit { .. }) | None => leads,
    }
}

async fn delete_switchover(handle: &Handle) -> Reply {
    if !handle.snapshot().dcs_available {
        return Reply::text(503, NO_VIEW);
    }
    let request = handle.snapshot().cluster.request().filter(|r| r.scheduled_at.is_some()).map(|r| r.version.clone());
    let Some(expect) = request else { return Reply::text(404, "no switchover is scheduled") };
    let answer = match send(handle, Command::ClearRequest { expect }).await {
        Ok(answer) => answer,
        Err(refused) => return refused,
    };
    match answer.status {
        200 => Reply::text(200, "scheduled switchover deleted"),
        409 => Reply::page(409),
        _ => text(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_two_or_three_numbers() {
        assert_eq!(postgres_version("15.4"), Ok(150_004));
        assert_eq!(postgres_version("9.6.24"), Ok(90_624));
        assert!(postgres_version("17").unwrap_err().starts_with("Invalid PostgreSQL version format"));
        assert!(postgres_version("9.6").unwrap_err().starts_with("Invalid PostgreSQL version format"));
        assert_eq!(postgres_version("a.b"), Err("Invalid PostgreSQL version: a.b".into()));
        assert_eq!(postgres_version("x"), Err("Invalid PostgreSQL version: x".into()));
    }

    #[test]
    fn unknown_routes_are_not_routes() {
        assert_eq!(Route::find(&Method::DELETE, "failover"), None);
        assert_eq!(Route::find(&Method::POST, "restart"), Some(Route::Restart));
    }
}
