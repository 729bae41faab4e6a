//! The member as one pure machine: inputs and the moment in, effects and log lines out.
//!
//! ```text
//! input ─► absorb (input → what is known) ─► decide (what is known → decision) ─► check ─► emit (decision → effects)
//!             ▲                                                                                     │
//!             └──────────────────── answers, each with the id of its effect ◄───────── driver ◄─────┘
//! ```
//! [`Member::step`] is deterministic, total and bounded. It does no IO, reads no clock, awaits nothing and logs nothing: the
//! production driver, the scenarios and the simulation all drive this very value. Its state is private; what others may
//! see is one read-only [`MemberSnapshot`].
//!
//! A decision is an ordered list of actions. A step applies those that only change memory, emits those that are *ready*,
//! and drops the rest: the next answer decides anew. So order comes from waiting (lease, answer, permission, answer,
//! promotion) and never from a queue that could act on stale wishes. `Permit(None)`, stops and cancels are always ready.
//!
//! Every effect with an answer holds its *lane* until that answer. An answer that does not come by the deadline counts as
//! interrupted; what has side effects keeps its lane until the driver says that it has ended.
//!
//! Reading order: `input`, `effect`, `state`, `absorb`, `emit`, `lease` (the attempt to write the leader object),
//! `publish`, `slots`, `callbacks`, `snapshot`.

mod absorb;
mod callbacks;
pub mod effect;
mod emit;
mod flights;
pub mod input;
pub mod lease;
mod publish;
mod slots;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use effect::{Effect, Id, Reload, Script, Sent, Ticket};
pub use input::{Answer, Command, Fail, Fed, InForce, Input, Looked, News, Signal, Standing, StartEnd};

use crate::decide;
use crate::model::{BootInstant, Decision, MemberSnapshot, Now};
use state::State;

/// Decisions within one step. More would be two decisions that undo each other: then an event decides again, or the pause.
const ROUNDS_MAX: u32 = 12;
const ROUNDS_PAUSE: Duration = Duration::from_millis(200);

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// For everybody.
    Info,
    /// Somebody should know.
    Warn,
    /// A person must look.
    Error,
}

/// One line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How loud.
    pub level: Level,
    /// The sentence.
    pub text: String,
}

/// What one step came to.
#[derive(Debug)]
#[must_use]
pub struct Step {
    /// To be begun, in this order; none waits for another.
    pub effects: Vec<Sent>,
    /// To be logged.
    pub lines: Vec<Line>,
    /// Wake the member then, if nothing else does.
    pub wake_at: BootInstant,
}

/// Who a member is: fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of the member = of its pod.
    pub name: crate::model::MemberName,
    /// UID of the pod.
    pub uid: String,
    /// A random word per start of the process.
    pub session: String,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Member {
    state: State,
}

impl Member {
    /// A member that has just started and knows nothing yet.
    pub fn new(who: Identity, in_force: std::sync::Arc<InForce>, now: Now) -> Member {
        Member { state: State::new(who, in_force, now) }
    }

    /// Takes in what happened at `now` and says what is to be done.
    pub fn step(&mut self, input: Input, now: Now) -> Step {
        let s = &mut self.state;
        s.now = now;
        s.absorb(input);
        s.time_passed();
        s.maintain();
        s.local.configuring = s.flights.busy(flights::Lane::Configuration);
        s.settle_role();
        let mut wake_at = now.boot + ROUNDS_PAUSE;
        for _ in 0..ROUNDS_MAX {
            let mut decision = decide::decide(&s.cluster, &s.local, &s.in_force.settings, now);
            s.refuse_what_is_broken(&mut decision);
            s.say(&decision);
            let at = decision.wake_at;
            if !s.emit(decision) {
                wake_at = at;
                break;
            }
        }
        s.call_back();
        s.wake = wake_at.min(s.own_wake()).max(now.boot + Duration::from_millis(1));
        Step { wake_at: s.wake, effects: std::mem::take(&mut s.effects), lines: std::mem::take(&mut s.lines) }
    }

    /// Until when this member may call itself leader, by its own clock.
    pub fn leader_until(&self) -> Option<BootInstant> {
        self.state.leader_until()
    }

    /// What others may see of this member.
    pub fn snapshot(&self) -> MemberSnapshot {
        self.state.snapshot()
    }
}

impl State {
    /// Drops what no decision may do: a fault of this program, said loudly, and not done. What follows a refused action was
    /// meant to come after it and goes too; what only stops stays.
    fn refuse_what_is_broken(&mut self, decision: &mut Decision) {
        if crate::mutant::any() {
            // Whatever is wrong has to show in the cluster.
            return;
        }
        let Err(broken) = decide::check(decision, &self.cluster, &self.local, &self.in_force.settings, self.now) else {
            return;
        };
        for (_, rule) in &broken {
            self.error(format!("refusing to act: {rule} (decision: {})", decision.reason));
        }
        self.refused += broken.len() as u64;
        let first = broken.iter().map(|(i, _)| *i).min().unwrap_or(usize::MAX);
        let mut index = 0;
        decision.actions.retain(|action| {
            let keep = index < first || emit::only_stops(action);
            index += 1;
            keep
        });
    }

    /// One line per decision: the reason, loud when it changed.
    fn say(&mut self, decision: &Decision) {
        for warning in &decision.warnings {
            self.warn_once(warning.0.clone());
        }
        let reason = decision.reason.to_string();
        if reason == self.reason {
            self.debug(reason);
        } else {
            self.info(reason.clone());
            self.reason = reason;
        }
    }
}
