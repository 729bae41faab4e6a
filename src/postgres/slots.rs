//! Physical replication slots for members and permanent ones: [`plan`] says what to do about the difference between what is
//! wanted and what is there, [`Sql::sync_slots`] does it.

use tokio_postgres::Row;

use super::sql::{Sql, SqlError, lsn};
use crate::model::{Lsn, SlotsNow, WantedSlot};

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

/// What to do about the difference. Active slots are never dropped, with `keep` no slot is.
pub fn plan(wanted: &[WantedSlot], existing: &[Existing], keep: bool) -> Vec<SlotAction> {
    let mut out = Vec::new();
    let drop = |name: &str, why| SlotAction::Drop { name: name.to_owned(), why };
    for slot in existing.iter().filter(|s| !s.active && !keep) {
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
        let why = if slot.active || keep {
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
    /// Makes the slots as wanted; with `keep` none is dropped. A slot that fails does not stop the others.
    ///
    /// # Errors
    /// The slots cannot be listed.
    pub async fn sync_slots(&self, wanted: &[WantedSlot], keep: bool) -> Result<SlotsNow, SqlError> {
        let mut out = SlotsNow::default();
        for action in plan(wanted, &self.slots().await?, keep) {
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
    fn the_plan_never_drops_an_active_slot() {
        let active = Existing { active: true, ..slot("old") };
        assert_eq!(plan(&[], &[active], false), []);
        assert_eq!(
            plan(&[], &[slot("old")], false),
            [SlotAction::Drop { name: "old".into(), why: "no member needs it" }]
        );
        assert_eq!(plan(&[], &[slot("old")], true), [], "in maintenance none is dropped");
    }

    #[test]
    fn idle_slots_advance_and_never_go_back() {
        let want = |to| WantedSlot { name: "a".into(), expected_active: false, advance_to: Some(Lsn(to)) };
        assert_eq!(plan(&[want(200)], &[slot("a")], false), [SlotAction::Advance { name: "a".into(), to: Lsn(200) }]);
        assert_eq!(plan(&[want(50)], &[slot("a")], false), []);
        let xmin = Existing { has_xmin: true, ..slot("a") };
        assert_eq!(plan(&[want(200)], &[xmin], false).len(), 2);
        assert_eq!(plan(&[want(200)], &[], false), [SlotAction::Create("a".into())]);
    }
}
