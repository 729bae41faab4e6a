//! A standby cluster: somebody makes one of this cluster, and takes that back. The other cluster never answers here, so what
//! is simulated is who may lead, who must stop, and that nothing is lost that stood before: what comes from elsewhere is for real
//! servers (`tests/cluster`).
//!
//! | rule | says |
//! |---|---|
//! | B1 | nobody is promoted in a standby cluster |
//! | B2 | nobody writes in it for long |

use serde_json::{Value, json};

use super::faults::{Fault, Plan};
use super::rng::Rng;
use super::world::{Ns, SEC, World};

/// A promotion that was ordered before has ended by then, and a primary has stopped.
const SETTLED: Ns = 60 * SEC;

/// Does a dynamic configuration make a standby cluster?
pub fn follows_by(document: &str) -> bool {
    let read: Value = serde_json::from_str(document).unwrap_or_default();
    read["standby_cluster"].is_object()
}

impl Plan {
    /// In every eighth seed.
    pub fn draw_follow(&mut self, mut chance: Rng, on: &str) {
        if chance.one_in(8) && on.is_empty() {
            self.faults.extend([Fault::Follow; 2]);
        }
    }
}

impl World {
    /// `patronictl demote-cluster` and `patronictl promote-cluster`.
    pub fn follow_another(&mut self, on: bool) {
        let (kind, _) = self.kind();
        let Some(mut document) = self.dynamic() else { return };
        if document["standby_cluster"].is_object() == on {
            return;
        }
        if let Some(map) = document.as_object_mut() {
            map.remove("standby_cluster");
        }
        if on {
            document["standby_cluster"] = json!({"host": "elsewhere"});
        }
        let patch = json!({"metadata": {"annotations": {"config": document.to_string()}}});
        if self.store.merge(kind, "default", "demo-config", &patch).is_ok() {
            self.note(if on { "this is a standby cluster" } else { "this is no standby cluster any more" });
        }
    }

    /// Is it one now?
    pub fn is_standby_cluster(&self) -> bool {
        self.dynamic().is_some_and(|d| d["standby_cluster"].is_object())
    }

    /// Does this member take it for one?
    pub fn follows_another(&self, pod: usize) -> bool {
        self.pods[pod].sidecar.as_ref().is_some_and(|s| s.follows.is_some())
    }

    /// This member was told.
    pub fn member_follows(&mut self, pod: usize, document: &str) {
        let (t, on) = (self.t, follows_by(document));
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        s.follows = s.follows.or(Some(t)).filter(|_| on);
    }

    fn settled(&self, pod: usize) -> bool {
        let p = &self.pods[pod];
        let Some(s) = &p.sidecar else { return false };
        let keeper = p.keeper.as_ref().map_or(0, |k| k.frozen.max(k.began));
        s.follows.is_some_and(|since| self.t > since.max(s.frozen).max(s.began).max(keeper) + SETTLED)
    }

    /// B1, when a promotion has ended.
    pub fn check_promotion_of_follower(&mut self, pod: usize) {
        if self.settled(pod) {
            self.violation(format!("B1 m{pod} is promoted in a standby cluster"));
        }
    }

    /// B2, when a commit is acknowledged.
    pub fn check_writes_of_follower(&mut self, pod: usize) {
        let rests = self.pods[pod].sidecar.as_ref().is_some_and(|s| s.paused.is_some());
        if self.settled(pod) && !rests {
            self.violation(format!("B2 m{pod} acknowledges in a standby cluster"));
        }
    }
}
