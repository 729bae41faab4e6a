//! Replication slots of members: kept as wanted, at most one round at a time, again when the wish changes or a loop_wait has
//! passed.
//!
//! [`wanted`] says which slots this node should have. [`Retention`] is the leader's memory of members it has seen. Slots that
//! this cluster never wanted are somebody's: they stay on the leader, and are told of once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::effect::Effect;
use super::flights::{About, Lane};
use super::input::InForce;
use super::state::State;
use crate::model::{BootInstant, Cluster, Lsn, MemberName, OurSlots, Settings, SlotOrders, WantedSlot};

/// A slot of others on a node that does not lead is not dropped before nobody has used it for this long.
const FORSAKEN_LEAST: Duration = Duration::from_secs(300);

/// What is remembered of slots between rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct SlotsKept {
    /// Published by the leader.
    pub positions: BTreeMap<String, Lsn>,
    /// Published by the leader: slots that every node keeps.
    pub retain: Vec<String>,
    retention: Retention,
    leading: bool,
    last: Option<(BootInstant, SlotOrders)>,
    /// Every name that was wanted since this process runs.
    ours: BTreeSet<String>,
    idle: Idle,
    /// What the last look at the cluster looked at: the same gives the same slots.
    looked: Option<(Arc<Cluster>, Arc<InForce>, bool)>,
    complained: String,
}

impl State {
    pub(super) fn sync_slots(&mut self) {
        let pg = &self.local.postgres;
        let Some(probe) = pg.probe.as_ref().filter(|_| pg.alive && pg.stopping.is_none() && pg.promoting.is_none())
        else {
            return;
        };
        // Whom the others stream from: in a standby cluster the one that follows the other cluster.
        // A standby leader that is about to be promoted is still that.
        let follows = self.in_force.settings.standby_of.is_some() || self.slots.leading;
        let leading = self.local.own.is_some() && (!probe.in_recovery || follows);
        if self.flights.busy(Lane::Slots) {
            return;
        }
        let now = self.now.boot;
        let period = self.in_force.settings.loop_wait;
        let fresh = self.slots.last.as_ref().is_some_and(|(at, _)| now.since(*at) < period);
        let looked = (self.cluster.clone(), self.in_force.clone(), leading);
        let same = self.slots.looked.as_ref().is_some_and(|(cluster, in_force, led)| {
            Arc::ptr_eq(cluster, &looked.0) && Arc::ptr_eq(in_force, &looked.1) && *led == leading
        });
        if fresh && same {
            return;
        }
        let wanted = match self.wanted_slots(leading) {
            Ok(wanted) => wanted,
            Err(why) => return self.complain_of_slots(why),
        };
        self.slots.looked = Some(looked);
        let orders = self.slot_orders(wanted);
        if fresh && self.slots.last.as_ref().is_some_and(|(_, last)| *last == orders) {
            return;
        }
        self.slots.last = Some((now, orders.clone()));
        self.send(Effect::SyncSlots { orders }, About::Slots);
    }

    /// What is wanted, with what may be dropped: physical slots that were wanted once, or that another pod of this
    /// StatefulSet would have.
    fn slot_orders(&mut self, wanted: Vec<WantedSlot>) -> SlotOrders {
        let settings = &self.in_force.settings;
        let known = wanted.iter().map(|w| &w.name).chain(settings.permanent_slots.keys()).chain(&self.slots.retain);
        self.slots.ours.extend(known.cloned());
        let names = self.slots.ours.clone();
        SlotOrders {
            wanted,
            ours: OurSlots { names, ..OurSlots::of_family(&self.local.me) },
            forsaken: self.slots.idle.forsaken(settings.member_slots_ttl, self.now.boot),
            ignored: settings.ignored_slots.clone(),
            keep: self.local.maintenance.is_on(),
        }
    }

    /// Slots of others that nobody uses: each is told of once.
    pub(super) fn tell_strangers(&mut self, mut strangers: BTreeMap<String, String>) {
        let (leading, now) = (self.slots.leading, self.now.boot);
        for slot in self.slots.idle.note(strangers.keys(), leading, now) {
            self.warn(strangers.remove(&slot).unwrap_or_default());
        }
    }

    fn wanted_slots(&mut self, leading: bool) -> Result<Vec<WantedSlot>, String> {
        let published = self.cluster.leader.as_ref().map(|l| l.retain_slots.clone()).unwrap_or_default();
        let in_force = self.in_force.clone();
        let settings = &in_force.settings;
        if leading && !self.slots.leading {
            self.slots.retention.restart();
        }
        self.slots.leading = leading;
        if leading && settings.use_slots && !settings.member_slots_ttl.is_zero() {
            let present: BTreeSet<String> = member_slots(&self.local.me, &self.cluster)?.into_keys().collect();
            let ttl = settings.member_slots_ttl;
            let (retain, expired) = self.slots.retention.update(&present, &published, self.now.boot, ttl);
            for slot in expired {
                self.info(format!("Replication slot {slot} for absent cluster member is expired"));
            }
            self.slots.retain = retain;
        } else if !leading {
            self.slots.retain = published;
        }
        wanted(&self.local.me, &self.cluster, settings, leading, &self.slots.retain)
    }

    pub(super) fn complain_of_slots(&mut self, why: String) {
        if self.slots.complained != why {
            self.warn(format!("replication slots: {why}"));
            self.slots.complained = why;
        }
    }
}

/// Slots of others that nobody uses, and since when. On a node that does not lead they would keep WAL until its disk is full. Where
/// their consumers connect, at the leader, their time does not begin: there they stay whatever they cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Idle(BTreeMap<String, Option<BootInstant>>);

impl Idle {
    /// These are idle now. Returns those that were not before.
    fn note<'s>(&mut self, slots: impl Iterator<Item = &'s String>, leading: bool, now: BootInstant) -> Vec<String> {
        let before = std::mem::take(&mut self.0);
        let since = |slot: &String| before.get(slot).copied().flatten().unwrap_or(now);
        self.0 = slots.map(|slot| (slot.clone(), (!leading).then(|| since(slot)))).collect();
        self.0.keys().filter(|slot| !before.contains_key(*slot)).cloned().collect()
    }
    /// Those that were idle here for longer than `ttl`, and five minutes at least.
    fn forsaken(&self, ttl: Duration, now: BootInstant) -> BTreeSet<String> {
        let over = |since: &Option<BootInstant>| since.is_some_and(|at| at.until(now) > ttl.max(FORSAKEN_LEAST));
        self.0.iter().filter(|(_, since)| over(since)).map(|(slot, _)| slot.clone()).collect()
    }
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
            match self.last_seen.get_mut(name) {
                Some(seen) => *seen = now,
                None => drop(self.last_seen.insert(name.clone(), now)),
            }
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

/// The slots this node should have. `leading`: it holds the lock, and the others stream from it. `retained`: kept for absent members
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
) -> Result<Vec<WantedSlot>, String> {
    let own = me.slot_name();
    let published = |slot: &str| cluster.leader.as_ref().and_then(|l| l.slots.get(slot).copied());
    let mut out: BTreeMap<String, WantedSlot> = BTreeMap::new();
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
        out.insert(slot.clone(), WantedSlot { name: slot, expected_active: mine, advance_to });
    }
    if settings.use_slots && !settings.member_slots_ttl.is_zero() && !settings.tags.nofailover {
        for slot in retained.iter().filter(|s| **s != own) {
            out.entry(slot.clone()).or_insert(WantedSlot {
                name: slot.clone(),
                expected_active: leading,
                advance_to: None,
            });
        }
    }
    if !settings.tags.nofailover {
        let here = settings.permanent_slots.iter().filter(|(_, kind)| kind.belongs(settings.standby_of.is_some()));
        for slot in here.map(|(name, _)| name).filter(|s| **s != own) {
            let advance_to = if leading { None } else { published(slot) };
            out.insert(slot.clone(), WantedSlot { name: slot.clone(), expected_active: leading, advance_to });
        }
    }
    Ok(out.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Member, Role};

    fn cluster(names: &[&str]) -> Cluster {
        let member = || Member { role: Some(Role::Replica), ..Member::default() };
        Cluster { members: names.iter().map(|n| (MemberName::from(*n), member())).collect(), ..Cluster::default() }
    }

    fn names(list: &[WantedSlot]) -> Vec<(&str, bool)> {
        list.iter().map(|w| (w.name.as_str(), w.expected_active)).collect()
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
    fn a_slot_that_nobody_uses_goes_from_a_standby_and_never_from_the_leader() {
        let (at, ttl) = (BootInstant::from_secs_f64, Duration::from_secs(1800));
        let (cdc, none) = (["cdc".to_owned()], [].into());
        let mut idle = Idle::default();
        assert_eq!(idle.note(cdc.iter(), true, at(0.0)), cdc, "told of");
        assert!(idle.note(cdc.iter(), true, at(9000.0)).is_empty(), "once");
        assert_eq!(idle.forsaken(ttl, at(9000.0)), none, "the leader keeps it");
        let _told = idle.note(cdc.iter(), false, at(9010.0));
        assert_eq!(idle.forsaken(ttl, at(10_800.0)), none, "its time began when this node stopped leading");
        assert_eq!(idle.forsaken(ttl, at(10_811.0)), cdc.clone().into());
        assert_eq!(idle.forsaken(Duration::ZERO, at(9300.0)), none, "five minutes at least");
        let _told = idle.note([].iter(), false, at(10_800.0));
        let _told = idle.note(cdc.iter(), false, at(10_805.0));
        assert_eq!(idle.forsaken(ttl, at(10_811.0)), none, "somebody used it meanwhile");
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
}
