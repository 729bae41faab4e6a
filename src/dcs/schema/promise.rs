//! What the leader object says beyond the lease: a release in the holder's own words, and the number the next promotion takes.
//!
//! Both name the acquisition they belong to, and both stand through writes that say nothing of them.

use serde_json::{Value, json};

use super::{ACQUIRE_TIME, Annotations, Patch, TRANSITIONS, lsn_of};
use crate::model::{Change, MemberName, Released, Shutdown, Timeline, TimelineClaim};

pub(super) const RELEASED: &str = "patroni.released";
pub(super) const TIMELINE: &str = "patroni.timeline";

/// `patroni.released`; what is there and cannot be read is no release, with a warning.
pub fn released_from(a: &Annotations, warnings: &mut Vec<String>) -> Option<Released> {
    let read = |text: &String| {
        let v: Value = serde_json::from_str(text).ok()?;
        let shutdown = match v.get("position") {
            None => None,
            Some(position) => Some(Shutdown {
                position: lsn_of(position)?,
                timeline: timeline_of(&v)?,
                members: v
                    .get("members")?
                    .as_array()?
                    .iter()
                    .map(|m| m.as_str().map(MemberName::from))
                    .collect::<Option<_>>()?,
            }),
        };
        Some(Released { acquire_time: text_of(&v, ACQUIRE_TIME)?, transitions: text_of(&v, TRANSITIONS)?, shutdown })
    };
    known(a, RELEASED, warnings, read)
}

/// `patroni.timeline`; what is there and cannot be read is no claim, with a warning.
pub fn claim_from(a: &Annotations, warnings: &mut Vec<String>) -> Option<TimelineClaim> {
    let read = |text: &String| {
        let v: Value = serde_json::from_str(text).ok()?;
        let acquire_time = text_of(&v, ACQUIRE_TIME)?;
        Some(TimelineClaim { timeline: timeline_of(&v)?, acquire_time, transitions: text_of(&v, TRANSITIONS)? })
    };
    known(a, TIMELINE, warnings, read)
}

/// What a write says of the release.
pub fn released_patch(change: &Change<Released>) -> Patch {
    patch(RELEASED, change, |released| {
        let mut v = json!({ACQUIRE_TIME: released.acquire_time, TRANSITIONS: released.transitions});
        if let Some(shutdown) = &released.shutdown {
            v["position"] = json!(shutdown.position.0);
            v["timeline"] = json!(shutdown.timeline.0);
            v["members"] = shutdown.members.iter().map(MemberName::as_str).collect();
        }
        v
    })
}

/// What a write says of the claimed number.
pub fn timeline_patch(change: &Change<TimelineClaim>) -> Patch {
    patch(
        TIMELINE,
        change,
        |claim| json!({"timeline": claim.timeline.0, ACQUIRE_TIME: claim.acquire_time, TRANSITIONS: claim.transitions}),
    )
}

fn text_of(v: &Value, key: &str) -> Option<String> {
    v.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn timeline_of(v: &Value) -> Option<Timeline> {
    v.get("timeline")?.as_u64().and_then(|t| u32::try_from(t).ok()).map(Timeline)
}

fn known<T>(
    a: &Annotations,
    key: &str,
    warnings: &mut Vec<String>,
    read: impl FnOnce(&String) -> Option<T>,
) -> Option<T> {
    let text = a.get(key)?;
    let value = read(text);
    if value.is_none() {
        warnings.push(format!("annotation {key} of the leader object is not understood: ignored"));
    }
    value
}

fn patch<T>(key: &str, change: &Change<T>, text: impl FnOnce(&T) -> Value) -> Patch {
    let value = match change {
        Change::Keep => return Patch::new(),
        Change::Remove => Value::Null,
        Change::Set(value) => Value::String(text(value).to_string()),
    };
    Patch::from_iter([(key.to_owned(), value)])
}
