//! Physical replication slots for members and permanent ones: [`plan`] says what to do about the difference between what is
//! wanted and what is there, [`Sql::sync_slots`] does it.

use tokio_postgres::Row;

use super::sql::{Sql, SqlError, lsn};
use crate::model::{IgnoredSlot, Lsn, SlotOrders, SlotsNow};

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
    /// Of a logical one.
    pub database: Option<String>,
    /// Of a logical one.
    pub plugin: Option<String>,
}

impl Existing {
    /// Is it left alone by a row of `ignore_slots`? All that the row gives must be equal.
    fn ignored(&self, row: &IgnoredSlot) -> bool {
        let same = |given: &Option<String>, is: Option<&String>| given.is_none() || given.as_ref() == is;
        same(&row.name, Some(&self.name))
            && row.physical.is_none_or(|physical| physical == self.physical)
            && same(&row.database, self.database.as_ref())
            && same(&row.plugin, self.plugin.as_ref())
    }
    /// Somebody's slot, in words.
    fn stranger(&self) -> String {
        let (kind, list) = match (&self.database, &self.plugin) {
            (Some(database), Some(plugin)) => {
                (format!("logical, database {database}, plugin {plugin}"), "ignore_slots")
            }
            _ => ("physical".to_owned(), "slots or ignore_slots"),
        };
        let keeps = self.restart_lsn.map_or_else(String::new, |at| format!(" and keeps WAL from {at}"));
        format!(
            "replication slot {} ({kind}) is none of this cluster's, and nobody uses it: it stays{keeps} (not for long on a standby); drop \
             it by hand, or list it under {list}; max_slot_wal_keep_size bounds what slots keep",
            self.name
        )
    }
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
    /// Nothing can be done; why.
    Refuse(String),
    /// Advance.
    Advance {
        /// Which.
        name: String,
        /// Where to.
        to: Lsn,
    },
}

/// Slots that are neither wanted nor ignored nor this cluster's own, and that nobody uses now.
pub fn strangers<'a>(orders: &'a SlotOrders, existing: &'a [Existing]) -> impl Iterator<Item = &'a Existing> {
    unwanted(orders, existing).filter(|slot| !slot.active && (!slot.physical || !orders.ours.has(&slot.name)))
}

fn unwanted<'a>(orders: &'a SlotOrders, existing: &'a [Existing]) -> impl Iterator<Item = &'a Existing> {
    let wanted = |slot: &&Existing| !orders.wanted.iter().any(|w| w.name == slot.name);
    existing.iter().filter(wanted).filter(|slot| !orders.ignored.iter().any(|row| slot.ignored(row)))
}

/// What to do about the difference. Active slots are never dropped, nor those of others; with `keep` no slot is.
pub fn plan(orders: &SlotOrders, existing: &[Existing]) -> Vec<SlotAction> {
    let keep = orders.keep;
    let mut out = Vec::new();
    let drop = |name: &str, why| SlotAction::Drop { name: name.to_owned(), why };
    for slot in unwanted(orders, existing).filter(|s| !s.active && !keep) {
        if slot.physical && orders.ours.has(&slot.name) {
            out.push(drop(&slot.name, "no member needs it"));
        } else if orders.forsaken.contains(&slot.name) {
            out.push(drop(&slot.name, "it is none of this cluster's, and nobody has used it here for long"));
        }
    }
    for want in &orders.wanted {
        let create = || SlotAction::Create(want.name.clone());
        let Some(slot) = existing.iter().find(|s| s.name == want.name) else {
            out.push(create());
            continue;
        };
        if !slot.physical {
            // Somebody's: its place in the stream of changes would be lost with it.
            out.push(SlotAction::Refuse(format!("{} is a logical slot, and a physical one is wanted", slot.name)));
            continue;
        }
        let why = if slot.active || keep {
            None
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

const EXISTING: &str = "SELECT slot_name::text, slot_type = 'physical', active, pg_wal_lsn_diff(restart_lsn, '0/0')::int8, \
 xmin IS NOT NULL OR catalog_xmin IS NOT NULL, COALESCE(wal_status = 'lost', false), database::text, plugin::text \
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
    /// Makes the slots as ordered. A slot that fails does not stop the others.
    ///
    /// # Errors
    /// The slots cannot be listed.
    pub async fn sync_slots(&self, orders: &SlotOrders) -> Result<SlotsNow, SqlError> {
        let mut out = SlotsNow::default();
        for action in plan(orders, &self.slots().await?) {
            let (result, text) = match &action {
                SlotAction::Create(name) => (
                    self.all("SELECT pg_create_physical_replication_slot($1::text::name, true)", &[name]).await,
                    format!("created replication slot {name}"),
                ),
                SlotAction::Drop { name, why } => (
                    self.all("SELECT pg_drop_replication_slot($1::text::name)", &[name]).await,
                    format!("dropped replication slot {name}: {why}"),
                ),
                SlotAction::Refuse(why) => {
                    out.failed.push(why.clone());
                    continue;
                }
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
        out.strangers = strangers(orders, &slots).map(|s| (s.name.clone(), s.stranger())).collect();
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
        database: row.try_get(6)?,
        plugin: row.try_get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OurSlots, WantedSlot};

    fn slot(name: &str) -> Existing {
        Existing {
            name: name.into(),
            physical: true,
            active: false,
            restart_lsn: Some(Lsn(100)),
            has_xmin: false,
            lost: false,
            database: None,
            plugin: None,
        }
    }

    fn orders(wanted: &[WantedSlot], ours: &[&str]) -> SlotOrders {
        let names = ours.iter().map(|n| (*n).to_owned()).collect();
        SlotOrders { wanted: wanted.to_vec(), ours: OurSlots { names, family: None }, ..SlotOrders::default() }
    }

    #[test]
    fn the_plan_never_drops_an_active_slot() {
        let active = Existing { active: true, ..slot("old") };
        let old = orders(&[], &["old"]);
        assert_eq!(plan(&old, &[active]), []);
        assert_eq!(plan(&old, &[slot("old")]), [SlotAction::Drop { name: "old".into(), why: "no member needs it" }]);
        let keep = SlotOrders { keep: true, ..old };
        assert_eq!(plan(&keep, &[slot("old")]), [], "in maintenance none is dropped");
    }

    #[test]
    fn the_slot_of_a_consumer_stays_and_is_told_of_unless_it_is_listed() {
        let consumer =
            Existing { physical: false, database: Some("app".into()), plugin: Some("pgoutput".into()), ..slot("cdc") };
        let there = [consumer.clone(), slot("receivewal")];
        let none = orders(&[], &["cdc"]);
        assert_eq!(plan(&none, &there), [], "no logical slot is this cluster's, whatever its name");
        let told: Vec<String> = strangers(&none, &there).map(Existing::stranger).collect();
        assert_eq!(
            told[0],
            "replication slot cdc (logical, database app, plugin pgoutput) is none of this cluster's, and nobody uses it: it \
             stays and keeps WAL from 0/64 (not for long on a standby); drop it by hand, or list it under ignore_slots; \
             max_slot_wal_keep_size bounds what slots keep"
        );
        assert!(told[1].contains("receivewal (physical)"), "{told:?}");
        let logical = IgnoredSlot { physical: Some(false), database: Some("app".into()), ..IgnoredSlot::default() };
        let quiet = SlotOrders { ignored: vec![logical], ..orders(&[], &["receivewal"]) };
        assert_eq!(strangers(&quiet, &there).count(), 0);
        assert_eq!(plan(&quiet, &there).len(), 1, "the physical one was this cluster's");
        let other = IgnoredSlot { name: Some("cdc".into()), plugin: Some("wal2json".into()), ..IgnoredSlot::default() };
        assert!(!consumer.ignored(&other), "all that is given must be equal");
        let used = Existing { active: true, ..consumer.clone() };
        assert_eq!(strangers(&none, std::slice::from_ref(&used)).count(), 0, "one that is in use is nobody's trouble");
        let forsaken = SlotOrders { forsaken: ["cdc".to_owned()].into(), ..orders(&[], &[]) };
        assert!(matches!(&plan(&forsaken, &there)[..], [SlotAction::Drop { name, .. }] if name == "cdc"));
        assert_eq!(plan(&forsaken, &[used]), []);
        let same_name = WantedSlot { name: "cdc".into(), expected_active: true, advance_to: None };
        let refused = plan(&orders(&[same_name], &["cdc"]), &there[..1]);
        assert!(matches!(&refused[..], [SlotAction::Refuse(_)]), "{refused:?}");
    }

    #[test]
    fn idle_slots_advance_and_never_go_back() {
        let want = |to| WantedSlot { name: "a".into(), expected_active: false, advance_to: Some(Lsn(to)) };
        assert_eq!(
            plan(&orders(&[want(200)], &[]), &[slot("a")]),
            [SlotAction::Advance { name: "a".into(), to: Lsn(200) }]
        );
        assert_eq!(plan(&orders(&[want(50)], &[]), &[slot("a")]), []);
        let xmin = Existing { has_xmin: true, ..slot("a") };
        assert_eq!(plan(&orders(&[want(200)], &[]), &[xmin]).len(), 2);
        assert_eq!(plan(&orders(&[want(200)], &[]), &[]), [SlotAction::Create("a".into())]);
    }
}
