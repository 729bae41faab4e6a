//! Physical replication slots for members and permanent ones (ha-decisions §21.1, §21.3).
//!
//! [`wanted`] says which slots this node should have, [`plan`] what to do about the difference, [`Sql::sync_slots`]
//! does it. [`Retention`] is the leader's memory of members it has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::Row;

use super::sql::{Sql, SqlError, lsn};
use crate::model::{BootInstant, Cluster, Lsn, MemberName, Settings};

/// A slot on this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// Name.
    pub name: String,
    /// Physical, as opposed to logical.
    pub physical: bool,
    /// Somebody streams from it.
    pub active: bool,
    /// WAL is kept from here.
    pub restart_lsn: Option<Lsn>,
    /// It holds back vacuum.
    pub has_xmin: bool,
    /// Its WAL is gone (`wal_status = lost`).
    pub lost: bool,
}

/// A slot this node should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name.
    pub name: String,
    /// Its member streams from this node.
    pub expected_active: bool,
    /// Move it here when nobody streams from it; `None`: leave it.
    pub advance_to: Option<Lsn>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotAction {
    /// Create, with WAL reserved.
    Create(String),
    /// Drop.
    Drop {
        /// Which.
        name: String,
        /// Why, for the log.
        why: &'static str,
    },
    /// Advance.
    Advance {
        /// Which.
        name: String,
        /// Where to.
        to: Lsn,
    },
}

/// The leader's memory: which member slots were wanted, and since when their member is away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    last_seen: BTreeMap<String, BootInstant>,
    inherited: bool,
}

impl Retention {
    /// Notes the members present now, and the first time those a former leader wanted kept (`retained`, the published
    /// list; later it is our own and must not keep itself alive). Returns the slots to be published in
    /// `retain_slots` and those that have expired just now, for the log. Call [`Retention::restart`] on promotion.
    pub fn update(
        &mut self,
        present: &BTreeSet<String>,
        retained: &[String],
        now: BootInstant,
        ttl: Duration,
    ) -> (Vec<String>, Vec<String>) {
        for name in present {
            self.last_seen.insert(name.clone(), now);
        }
        if !self.inherited {
            self.inherited = true;
            for name in retained {
                self.last_seen.entry(name.clone()).or_insert(now);
            }
        }
        let gone = |seen: &BootInstant| seen.until(now) > ttl;
        let expired: Vec<String> = self.last_seen.iter().filter(|(_, s)| gone(s)).map(|(n, _)| n.clone()).collect();
        self.last_seen.retain(|_, seen| !gone(seen));
        (self.last_seen.keys().cloned().collect(), expired)
    }
    /// Forgets everything: timers start again with the new leader, so that no WAL is lost by a change of leader.
    pub fn restart(&mut self) {
        *self = Retention::default();
    }
}

/// The names of the slots of all other members that stream, as this node would keep them.
///
/// # Errors
/// Two members have names that give the same slot name; names both.
pub fn member_slots(me: &MemberName, cluster: &Cluster) -> Result<BTreeMap<String, MemberName>, String> {
    let mut out: BTreeMap<String, MemberName> = BTreeMap::new();
    for (name, member) in cluster.members.iter().filter(|(n, m)| *n != me && !m.tags.nostream) {
        // A pod that has never published anything may have nothing to do with Postgres yet.
        if member.role.is_none() && member.conn_url.is_none() {
            continue;
        }
        if let Some(other) = out.insert(name.slot_name(), name.clone()) {
            return Err(format!(
                "members {other} and {name} both need a replication slot named {}; rename one of them",
                name.slot_name()
            ));
        }
    }
    Ok(out)
}

/// The slots this node should have. `leading`: it runs as primary with the lock. `retained`: kept for absent members
/// (the leader's own from [`Retention`], elsewhere the published list).
///
/// # Errors
/// See [`member_slots`].
pub fn wanted(
    me: &MemberName,
    cluster: &Cluster,
    settings: &Settings,
    leading: bool,
    retained: &[String],
) -> Result<Vec<Wanted>, String> {
    let own = me.slot_name();
    let published = |slot: &str| cluster.leader.as_ref().and_then(|l| l.slots.get(slot).copied());
    let mut out: BTreeMap<String, Wanted> = BTreeMap::new();
    let members = if settings.use_slots { member_slots(me, cluster)? } else { BTreeMap::new() };
    for (slot, name) in members {
        let Some(member) = cluster.members.get(&name) else { continue };
        let from = member.tags.replicatefrom.as_ref().filter(|f| cluster.members.contains_key(*f));
        let mine = from == Some(me) || (leading && from.is_none_or(|f| f == &name));
        let everywhere = !settings.member_slots_ttl.is_zero() && !settings.tags.nofailover;
        if !mine && !everywhere {
            continue;
        }
        let advance_to = match from {
            Some(_) => published(&slot).max(member.xlog_location),
            None => published(&slot),
        };
        out.insert(slot.clone(), Wanted { name: slot, expected_active: mine, advance_to });
    }
    if settings.use_slots && !settings.member_slots_ttl.is_zero() && !settings.tags.nofailover {
        for slot in retained.iter().filter(|s| **s != own) {
            out.entry(slot.clone()).or_insert(Wanted {
                name: slot.clone(),
                expected_active: leading,
                advance_to: None,
            });
        }
    }
    if !settings.tags.nofailover {
        for slot in settings.permanent_slots.keys().filter(|s| **s != own) {
            let advance_to = if leading { None } else { published(slot) };
            out.insert(slot.clone(), Wanted { name: slot.clone(), expected_active: leading, advance_to });
        }
    }
    Ok(out.into_values().collect())
}

/// What to do about the difference. Active slots are never dropped.
pub fn plan(wanted: &[Wanted], existing: &[Existing]) -> Vec<SlotAction> {
    let mut out = Vec::new();
    let drop = |name: &str, why| SlotAction::Drop { name: name.to_owned(), why };
    for slot in existing.iter().filter(|s| !s.active) {
        if !wanted.iter().any(|w| w.name == slot.name) {
            out.push(drop(&slot.name, "no member needs it"));
        }
    }
    for want in wanted {
        let create = || SlotAction::Create(want.name.clone());
        let Some(slot) = existing.iter().find(|s| s.name == want.name) else {
            out.push(create());
            continue;
        };
        let why = if slot.active {
            None
        } else if !slot.physical {
            Some("it is logical, a physical one is wanted")
        } else if slot.lost {
            Some("its WAL is gone")
        } else if !want.expected_active && slot.has_xmin {
            Some("it holds back vacuum and nobody streams from it")
        } else if !want.expected_active && slot.restart_lsn.is_none() {
            Some("it keeps no WAL")
        } else {
            None
        };
        if let Some(why) = why {
            out.push(drop(&want.name, why));
            out.push(create());
        } else if let (false, false, Some(to), Some(at)) =
            (want.expected_active, slot.active, want.advance_to, slot.restart_lsn)
            && to > at
        {
            out.push(SlotAction::Advance { name: want.name.clone(), to });
        }
    }
    out
}

/// What [`Sql::sync_slots`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Slot name → position, for the published `slots` map.
    pub positions: BTreeMap<String, Lsn>,
    /// What was done, one line each.
    pub done: Vec<String>,
    /// What could not be done, one line each.
    pub failed: Vec<String>,
}

const EXISTING: &str = "SELECT slot_name::text, slot_type = 'physical', active, pg_wal_lsn_diff(restart_lsn, '0/0')::int8, \
 xmin IS NOT NULL OR catalog_xmin IS NOT NULL, COALESCE(wal_status = 'lost', false) \
 FROM pg_replication_slots WHERE NOT temporary \
 AND COALESCE((pg_catalog.to_jsonb(pg_replication_slots)->>'failover')::bool, false) = false";

impl Sql {
    /// The slots of this server; temporary ones and `failover` slots (PG 17) are not ours.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn slots(&self) -> Result<Vec<Existing>, SqlError> {
        let rows = self.all(EXISTING, &[]).await?;
        rows.iter().map(existing_of).collect::<Result<_, _>>().map_err(|e| SqlError::of(&e))
    }
    /// Makes the slots as wanted. A slot that fails does not stop the others.
    ///
    /// # Errors
    /// The slots cannot be listed.
    pub async fn sync_slots(&self, wanted: &[Wanted]) -> Result<Synced, SqlError> {
        let mut out = Synced::default();
        for action in plan(wanted, &self.slots().await?) {
            let (result, text) = match &action {
                SlotAction::Create(name) => (
                    self.all("SELECT pg_create_physical_replication_slot($1::text::name, true)", &[name]).await,
                    format!("created replication slot {name}"),
                ),
                SlotAction::Drop { name, why } => (
                    self.all("SELECT pg_drop_replication_slot($1::text::name)", &[name]).await,
                    format!("dropped replication slot {name}: {why}"),
                ),
                SlotAction::Advance { name, to } => (
                    self.all(
                        "SELECT pg_replication_slot_advance($1::text::name, $2::text::pg_lsn)",
                        &[name, &to.to_string()],
                    )
                    .await,
                    String::new(),
                ),
            };
            match result {
                Ok(_) if text.is_empty() => {}
                Ok(_) => out.done.push(text),
                Err(e) => out.failed.push(format!("{action:?}: {e}")),
            }
        }
        let slots = self.slots().await?;
        out.positions = slots.into_iter().filter_map(|s| Some((s.name, s.restart_lsn?))).collect();
        Ok(out)
    }
}

fn existing_of(row: &Row) -> Result<Existing, tokio_postgres::Error> {
    Ok(Existing {
        name: row.try_get(0)?,
        physical: row.try_get(1)?,
        active: row.try_get(2)?,
        restart_lsn: lsn(row, 3)?,
        has_xmin: row.try_get(4)?,
        lost: row.try_get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Member, Role};

    fn cluster(names: &[&str]) -> Cluster {
        let member = || Member { role: Some(Role::Replica), ..Member::default() };
        Cluster { members: names.iter().map(|n| (MemberName::from(*n), member())).collect(), ..Cluster::default() }
    }

    fn names(list: &[Wanted]) -> Vec<(&str, bool)> {
        list.iter().map(|w| (w.name.as_str(), w.expected_active)).collect()
    }

    fn slot(name: &str) -> Existing {
        Existing {
            name: name.into(),
            physical: true,
            active: false,
            restart_lsn: Some(Lsn(100)),
            has_xmin: false,
            lost: false,
        }
    }

    #[test]
    fn every_node_keeps_slots_for_all_others_but_only_the_leader_expects_them_active() {
        let (me, c, s) = (MemberName::from("pg-0"), cluster(&["pg-0", "pg-1", "pg-2"]), Settings::default());
        assert_eq!(names(&wanted(&me, &c, &s, true, &[]).unwrap()), [("pg_1", true), ("pg_2", true)]);
        assert_eq!(names(&wanted(&me, &c, &s, false, &[]).unwrap()), [("pg_1", false), ("pg_2", false)]);
        let none = Settings { member_slots_ttl: Duration::ZERO, ..Settings::default() };
        assert_eq!(names(&wanted(&me, &c, &none, false, &[]).unwrap()), []);
        let off = Settings { use_slots: false, ..Settings::default() };
        assert_eq!(names(&wanted(&me, &c, &off, true, &["gone".into()]).unwrap()), []);
    }

    #[test]
    fn cascading_members_stream_from_whom_they_name() {
        let mut c = cluster(&["pg-0", "pg-1", "pg-2"]);
        c.members.get_mut(&MemberName::from("pg-2")).unwrap().tags.replicatefrom = Some("pg-1".into());
        let s = Settings::default();
        assert_eq!(names(&wanted(&"pg-0".into(), &c, &s, true, &[]).unwrap()), [("pg_1", true), ("pg_2", false)]);
        assert_eq!(names(&wanted(&"pg-1".into(), &c, &s, false, &[]).unwrap()), [("pg_0", false), ("pg_2", true)]);
    }

    #[test]
    fn equal_slot_names_are_an_error_that_names_both_members() {
        let err = wanted(&"x".into(), &cluster(&["a-b", "a.b"]), &Settings::default(), true, &[]).unwrap_err();
        assert!(err.contains("a-b") && err.contains("a.b"), "{err}");
    }

    #[test]
    fn absent_members_are_remembered_for_the_ttl_and_not_longer() {
        let mut r = Retention::default();
        let at = BootInstant::from_secs_f64;
        let ttl = Duration::from_secs(60);
        let both = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        assert_eq!(r.update(&both, &[], at(0.0), ttl).0, ["a", "b"]);
        let one = BTreeSet::from(["a".to_owned()]);
        assert_eq!(r.update(&one, &[], at(60.0), ttl).0, ["a", "b"]);
        let (keep, expired) = r.update(&one, &[], at(61.0), ttl);
        assert_eq!((keep, expired), (vec!["a".to_owned()], vec!["b".to_owned()]));
        r.restart();
        let published = ["b".to_owned()];
        assert_eq!(r.update(&one, &published, at(62.0), ttl).0, ["a", "b"]);
        assert_eq!(r.update(&one, &published, at(123.0), ttl).1, ["b"]);
        assert_eq!(r.update(&one, &published, at(124.0), ttl).0, ["a"], "the published list does not revive it");
    }

    #[test]
    fn the_plan_never_drops_an_active_slot() {
        let active = Existing { active: true, ..slot("old") };
        assert_eq!(plan(&[], &[active]), []);
        assert_eq!(plan(&[], &[slot("old")]), [SlotAction::Drop { name: "old".into(), why: "no member needs it" }]);
    }

    #[test]
    fn idle_slots_advance_and_never_go_back() {
        let want = |to| Wanted { name: "a".into(), expected_active: false, advance_to: Some(Lsn(to)) };
        assert_eq!(plan(&[want(200)], &[slot("a")]), [SlotAction::Advance { name: "a".into(), to: Lsn(200) }]);
        assert_eq!(plan(&[want(50)], &[slot("a")]), []);
        let xmin = Existing { has_xmin: true, ..slot("a") };
        assert_eq!(plan(&[want(200)], &[xmin]).len(), 2);
        assert_eq!(plan(&[want(200)], &[]), [SlotAction::Create("a".into())]);
    }
}
