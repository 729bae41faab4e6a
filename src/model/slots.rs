//! Replication slots, as far as the member wants them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Lsn, MemberName};

/// A slot this node should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSlot {
    /// Name.
    pub name: String,
    /// Its member streams from this node.
    pub expected_active: bool,
    /// Move it here when nobody streams from it; `None`: leave it.
    pub advance_to: Option<Lsn>,
}

/// How the slots of a server are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotOrders {
    /// Those that there are to be.
    pub wanted: Vec<WantedSlot>,
    /// Which of the others may be dropped.
    pub ours: OurSlots,
    /// Slots of others that may be dropped all the same: nobody has used them here for long.
    pub forsaken: BTreeSet<String>,
    /// Left alone, and not spoken of.
    pub ignored: Vec<IgnoredSlot>,
    /// Drop none.
    pub keep: bool,
}

/// The physical slots that this cluster makes for itself. A slot that is neither wanted nor one of these is somebody's, and
/// stays: a consumer between two connections would lose its place with its slot, and with it every change since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OurSlots {
    /// Those this member has wanted, or seen wanted, while it runs.
    pub names: BTreeSet<String>,
    /// What the slots of all pods of this StatefulSet begin with, before the pod's number: known also after a restart.
    pub family: Option<String>,
}

impl OurSlots {
    /// None but those the pods of the same StatefulSet would have.
    pub fn of_family(me: &MemberName) -> OurSlots {
        let own = me.slot_name();
        let stem = own.trim_end_matches(|c: char| c.is_ascii_digit());
        let family = (stem.len() < own.len() && stem.ends_with('_')).then(|| stem.to_owned());
        OurSlots { names: BTreeSet::new(), family }
    }
    /// May the physical slot of this name be dropped once nobody wants it?
    pub fn has(&self, slot: &str) -> bool {
        let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
        let pod = self.family.as_ref().and_then(|f| slot.strip_prefix(f.as_str())).is_some_and(number);
        pod || self.names.contains(slot)
    }
}

/// A row of `ignore_slots`: what is given must be equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoredSlot {
    /// Name.
    pub name: Option<String>,
    /// `true` for `type: physical`, `false` for `type: logical`.
    pub physical: Option<bool>,
    /// Of a logical one.
    pub database: Option<String>,
    /// Of a logical one.
    pub plugin: Option<String>,
}

/// A permanent physical slot, of a name that `slots` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermanentSlot {
    /// On every node, whatever the cluster is (no `cluster_type`).
    Always,
    /// Only while the cluster is no standby cluster.
    OfPrimary,
    /// Only in a standby cluster.
    OfStandby,
}

impl PermanentSlot {
    /// Should it be, in a cluster that is a standby cluster or none?
    pub fn belongs(self, standby_cluster: bool) -> bool {
        match self {
            PermanentSlot::Always => true,
            PermanentSlot::OfPrimary => !standby_cluster,
            PermanentSlot::OfStandby => standby_cluster,
        }
    }
}

/// What a round of slots came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotsNow {
    /// Slot name → position, for the published `slots` map.
    pub positions: BTreeMap<String, Lsn>,
    /// What was done, one line each.
    pub done: Vec<String>,
    /// What could not be done, one line each.
    pub failed: Vec<String>,
    /// Slots that are nobody's in this cluster and that nobody uses: name → what it is and keeps, in words.
    pub strangers: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_the_same_set_are_told_from_consumers() {
        let ours = OurSlots::of_family(&"demo-pg-1".into());
        assert!(ours.has("demo_pg_0") && ours.has("demo_pg_12"));
        for other in ["demo_pg_", "demo_pg_1a", "demo_pgx_1", "debezium", "debezium_1"] {
            assert!(!ours.has(other), "{other}");
        }
        assert_eq!(OurSlots::of_family(&"demo".into()).family, None);
        assert_eq!(OurSlots::of_family(&"pg1".into()).family, None, "pg2 may be anybody's");
        let named = OurSlots { names: BTreeSet::from(["archive".to_owned()]), family: None };
        assert!(named.has("archive") && !named.has("pg_1"));
    }
}
