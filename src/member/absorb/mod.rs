//! Inputs into memory. Nothing here decides: whatever is learned lands in the state, and the decision after it acts.
//!
//! `view` (the store and the configuration), `lease` (how lease jobs end), `keeper`, `postgres` (what becomes of the server),
//! `proof` (is a holder dead?), `orders` (starts and promotions),
//! `pause` (maintenance mode), `failsafe`, `replies` (every other answer), `sync` (synchronous replication), `asked` (people), `watchdog`, `time` (what is due by itself).

mod asked;
mod failsafe;
mod keeper;
mod lease;
mod orders;
mod pause;
pub(super) mod postgres;
mod proof;
mod replies;
mod sync;
mod time;
mod view;
mod watchdog;

use super::input::{Input, Signal};
use super::state::State;
use crate::model::Request;

impl State {
    /// Takes in one input.
    pub(super) fn absorb(&mut self, input: Input) {
        match input {
            Input::Due => {}
            Input::Signal(Signal::Reload) => self.reload = true,
            Input::Signal(Signal::Terminate) => self.told_to_end(),
            Input::View(view) => self.view(&view),
            Input::Settings(in_force) => self.settings(in_force),
            Input::Keeper(news) => self.keeper(news),
            Input::Asked { ticket, command } => self.asked(ticket, command),
            Input::Reply { id, answer } => self.reply(id, answer),
            Input::Ended(id) => self.ended(id),
            Input::Progress { id, text } => {
                if let (Some(task), Some(flight)) = (&mut self.local.task, self.flights.task())
                    && flight.id == id
                {
                    task.progress = Some(text);
                }
            }
        }
    }

    /// SIGTERM. Where Postgres has a container of its own it may be for the sidecar alone (a new image, a failed liveness
    /// probe): Postgres stays then. When the whole pod ends, the keeper gets its own SIGTERM at about the same time.
    fn told_to_end(&mut self) {
        if matches!(self.local.request, Some(Request::Terminate { .. })) {
            return;
        }
        if self.in_force.separate_container && !self.keeper_ends && !self.pod_leaves {
            let at = self.now.boot + time::TOGETHER;
            self.leave_at.get_or_insert(at);
        } else {
            self.local.request = Some(Request::Terminate { leave_postgres: false });
        }
    }
}
