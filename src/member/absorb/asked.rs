//! What people ask for. Quick things are answered here; a restart or a reinitialize waits in a queue whose oldest entry the
//! decisions see.

use super::super::effect::{Effect, Ticket};
use super::super::flights::{About, Lane};
use super::super::input::Command;
use super::super::state::{Scheduled, State};
use crate::model::{Request, StoreWrite};

/// Requests that wait. People click; four is already someone clicking in anger.
const REQUESTS_MAX: usize = 4;

impl State {
    pub(super) fn asked(&mut self, ticket: Ticket, command: Command) {
        match command {
            Command::Restart { filter, timeout } => self.enqueue(Request::Restart { filter, timeout }, ticket),
            Command::Reinitialize { force, from_leader } => {
                self.enqueue(Request::Reinitialize { force, from_leader }, ticket);
            }
            Command::ScheduleRestart { at, filter, timeout, document } => {
                if self.local.scheduled_restart.is_some() {
                    self.answer(ticket, 409, "Another restart is already scheduled");
                } else {
                    self.local.scheduled_restart = Some((at, filter));
                    self.scheduled = Some(Scheduled { timeout, document });
                    self.answer(ticket, 202, "Restart scheduled");
                }
            }
            Command::DeleteScheduledRestart => {
                self.scheduled = None;
                match self.local.scheduled_restart.take() {
                    Some(_) => self.answer(ticket, 200, "scheduled restart deleted"),
                    None => self.answer(ticket, 404, "no restarts are scheduled"),
                }
            }
            Command::Failsafe { from, asked } => {
                let (status, text) = self.promises(from, &asked);
                self.answer(ticket, status, &text);
            }
            Command::Reload => {
                self.reload = true;
                self.answer(ticket, 202, "reload scheduled");
            }
            Command::WriteConfig { expect, document, conflict } => {
                let about = About::People {
                    ticket,
                    ok: document.to_string(),
                    conflict,
                    conflict_text: "somebody else wrote the configuration meanwhile",
                    failed: 502,
                };
                self.write_for(StoreWrite::Config { expect, document }, about);
            }
            Command::SetRequest(request) => {
                let text = "failed to write failover key into DCS";
                let about =
                    About::People { ticket, ok: String::new(), conflict: 503, conflict_text: text, failed: 503 };
                self.write_for(StoreWrite::SetRequest(request), about);
            }
            Command::ClearRequest { expect } => {
                let about = About::People {
                    ticket,
                    ok: "scheduled switchover deleted".to_owned(),
                    conflict: 409,
                    conflict_text: "the request changed meanwhile",
                    failed: 502,
                };
                self.write_for(StoreWrite::ClearRequest { expect }, about);
            }
        }
    }

    fn write_for(&mut self, write: StoreWrite, about: About) {
        self.send_in(Lane::StoreOfPeople, Effect::WriteStore(write), about);
    }

    fn answer(&mut self, ticket: Ticket, status: u16, text: &str) {
        self.tell(Effect::Answer { ticket, status, text: text.to_owned() });
    }

    fn enqueue(&mut self, request: Request, ticket: Ticket) {
        if self.requests.len() >= REQUESTS_MAX {
            return self.answer(ticket, 503, "too many requests are pending, try again later");
        }
        self.requests.push_back((request, Some(ticket)));
        self.show_request();
    }

    /// The oldest request is the one that decisions see; an order to terminate comes before all.
    pub(in crate::member) fn show_request(&mut self) {
        if !matches!(self.local.request, Some(Request::Terminate { .. })) {
            self.local.request = self.requests.front().map(|(request, _)| request.clone());
        }
    }

    /// The request that decisions saw is settled.
    pub(in crate::member) fn answer_request(&mut self, status: u16, text: &str) {
        if matches!(self.local.request, Some(Request::Terminate { .. })) {
            return;
        }
        if let Some((request, ticket)) = self.requests.pop_front() {
            let word = match request {
                Request::Restart { .. } => "restart",
                Request::Reinitialize { .. } => "reinitialize",
                Request::Terminate { .. } => "shutdown",
            };
            self.info(format!("request to {word}: {text}"));
            if let Some(ticket) = ticket {
                self.answer(ticket, status, text);
            }
        }
        if self.local.restart.is_none() {
            // Nothing stops after all: whoever waits for me may go on.
            self.local.quits_sync = None;
        }
        self.local.request = None;
        self.show_request();
    }
}
