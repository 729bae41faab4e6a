//! Replication slots, as far as the member wants them.

use std::collections::BTreeMap;

use super::Lsn;

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

/// What a round of slots came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotsNow {
    /// Slot name → position, for the published `slots` map.
    pub positions: BTreeMap<String, Lsn>,
    /// What was done, one line each.
    pub done: Vec<String>,
    /// What could not be done, one line each.
    pub failed: Vec<String>,
}
