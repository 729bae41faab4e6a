//! Maintenance mode: who pauses and resumes, and what the checkers say of it.
//!
//! | rule | says |
//! |---|---|
//! | M1 | what has ended by itself is not started |
//! | M2 | nobody is promoted unless a person asks |
//! | M3 | a primary is not stopped because of its lock |
//! | M4 | after a resume nobody writes without a deadline |

use patroni::keeper::protocol::{Permission, StopMode, UnfencedReason};
use serde_json::{Value, json};

use super::faults::Fault;
use super::world::{Ns, SEC, World};

/// What was ordered before the pause has ended by then.
const SETTLED: Ns = 30 * SEC;
/// The longest that a holder's deadlines can be away, and two seconds of grace.
const FENCED: Ns = 30 * SEC;

const UNFENCED: Permission = Permission::Unfenced { reason: UnfencedReason::Pause };

impl World {
    /// `patronictl pause` and `patronictl resume`.
    pub fn pause_cluster(&mut self, on: bool) {
        let (kind, _) = self.kind();
        let Some(mut document) = self.dynamic() else { return };
        if (document["pause"].as_bool() == Some(true)) == on {
            return;
        }
        if let Some(map) = document.as_object_mut() {
            map.remove("pause");
        }
        if on {
            document["pause"] = json!(true);
        }
        let patch = json!({"metadata": {"annotations": {"config": document.to_string()}}});
        if self.store.merge(kind, "default", "demo-config", &patch).is_ok() {
            self.note(if on { "the cluster is paused" } else { "the cluster is resumed" });
        }
    }

    pub fn is_paused(&self) -> bool {
        self.dynamic().is_some_and(|d: Value| d["pause"].as_bool() == Some(true))
    }

    /// This member was told.
    pub fn member_is_told(&mut self, pod: usize, document: &str) {
        let (t, on) = (self.t, super::world::paused_by(document));
        let Some(s) = &mut self.pods[pod].sidecar else { return };
        match (s.paused, on) {
            (None, true) => s.paused = Some(t),
            (Some(_), false) => (s.paused, s.resumed) = (None, t),
            (None, false) | (Some(_), true) => {}
        }
    }

    /// It has been in maintenance for so long that nothing of before goes on.
    fn rests(&self, pod: usize) -> bool {
        let told = self.pods[pod].sidecar.as_ref().and_then(|s| s.paused);
        told.is_some_and(|since| self.t > since + SETTLED)
    }

    /// Somebody asks for things: what is done may be what was asked for.
    fn is_asked(&self) -> bool {
        let asks = [
            Fault::Switchover,
            Fault::SwitchoverTo,
            Fault::Failover,
            Fault::Restart,
            Fault::Reinit,
            Fault::Terminate,
            Fault::StopAll,
            Fault::PromotedByHand,
        ];
        self.judge.forced || self.plan.faults.iter().any(|f| asks.contains(f))
    }

    /// M1, when a postmaster begins.
    pub fn check_rest(&mut self, pod: usize) {
        if std::mem::take(&mut self.pods[pod].fell) && self.rests(pod) && !self.is_asked() {
            self.violation(format!("M1 m{pod} is started in maintenance mode, and nobody has asked for that"));
        }
    }

    /// M2, when a promotion has ended.
    pub fn check_promotion_at_rest(&mut self, pod: usize) {
        if self.rests(pod) && !self.is_asked() {
            if self.t < self.pods[pod].late + 10 * SEC {
                return self.is_known(
                    "a lock that was asked for before the maintenance and landed in it: its promotion goes on",
                );
            }
            self.violation(format!("M2 m{pod} is promoted in maintenance mode, and nobody has asked for that"));
        }
    }

    /// M3, when a primary is told to stop.
    pub fn check_stop_at_rest(&mut self, pod: usize, mode: StopMode) {
        let unfenced = self.pods[pod].keeper.as_ref().is_some_and(|k| k.permission == UNFENCED);
        if mode < StopMode::Kill && unfenced && self.rests(pod) && !self.is_asked() {
            self.violation(format!("M3 the primary m{pod} is stopped in maintenance mode"));
        }
    }

    /// M4, when a commit is acknowledged.
    pub fn check_fence_again(&mut self, pod: usize) {
        let p = &self.pods[pod];
        let Some(s) = p.sidecar.as_ref().filter(|s| s.paused.is_none() && s.resumed > 0) else { return };
        let told = s.resumed.max(s.frozen).max(s.began);
        let keeper = p.keeper.as_ref().filter(|k| k.permission == UNFENCED);
        if keeper.is_some_and(|k| self.t > told.max(k.frozen).max(k.began) + FENCED) {
            self.violation(format!("M4 m{pod} acknowledges without a deadline long after the maintenance"));
        }
    }

    /// A holder that was in maintenance and is gone for good keeps its lock until a person says that it is dead.
    pub fn person_looks(&mut self) {
        let marked = self.leader_record().and_then(|l| l.valid_holder().map(|h| (h.paused, h.uid.clone())));
        let gone = match (self.named(), marked) {
            (None, _) => true,
            (Some(holder), Some((true, uid))) => self.pods[holder].uid != uid || self.pods[holder].pg.is_none(),
            (Some(_), _) => false,
        };
        if !gone || (0..self.pods.len()).any(|i| self.writable(i)) {
            return;
        }
        let ends = |i: &usize| self.pods[*i].disk.as_ref().map_or(0, |d| d.end);
        let best = (0..self.pods.len()).filter(|i| self.answers(*i)).max_by_key(ends);
        if let Some(best) = best {
            self.note("a person says that whoever led in maintenance is dead");
            self.ask_for_failover(best);
        }
    }
}
