//! The driver: the machine's hands and ears, and nothing else. It chooses nothing: it knows no role, no lease, no timeline.
//!
//! ```text
//! signals · keeper · store's view · people · timer · answers ──► Member::step(input, now) ──► lines to the log
//!                                                                     │                  └──► snapshot to the door
//!                                                                     ▼
//!                                                   effects ──► perform (beside the loop) ──► answers
//! ```
//! One loop, one `select!`. The loop waits for nothing but the next input: whatever takes time is begun beside it and comes
//! back as an answer that names its effect. Requests to the keeper go out in the order of their effects.
//!
//! Reading order: this file, `perform` (store, peers, files, SQL), `keeper` (the session), `tasks` (the long programs),
//! `trials` (which parameters Postgres takes), `configure` (configuration into values), `startup`, then `settings`, `peers`, `status`, `telemetry`, `clock`.

pub mod clock;
mod configure;
mod keeper;
pub mod peers;
mod perform;
pub mod preflight;
pub mod settings;
mod slots;
pub mod startup;
mod status;
mod tasks;
pub mod telemetry;
mod trials;
mod watchdog;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::dcs::Dcs;
use crate::door::{Answer as Said, Asked, HandleEnds, Snapshot};
use crate::member::{Effect, Id, Input, Level, Line, Member, News, Sent, Signal, Standing, Ticket};
use crate::model::View;
use crate::postgres::Setup;
use crate::postgres::binaries::Binaries;
use crate::postgres::sql::Sql;

/// Answers that wait for the loop. Few things are under way at once; more would be a leak.
const ANSWERS_MAX: usize = 128;

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ended {
    /// Exit code.
    pub code: u8,
    /// One line.
    pub message: String,
    /// Postgres was left running on purpose.
    pub leave_postgres: bool,
}

/// Everything the loop owns.
pub struct Driver {
    member: Member,
    store: Arc<dyn Dcs>,
    view: watch::Receiver<Arc<View>>,
    keeper: keeper::KeeperSide,
    peers: peers::PeerClient,
    source: settings::Source,
    setup: Arc<Setup>,
    setups: watch::Sender<Arc<Setup>>,
    wishes: Arc<settings::Wishes>,
    /// The dynamic configuration in force, and its text as the store showed it.
    dynamic: Value,
    dynamic_text: Arc<str>,
    binaries: Binaries,
    trials: Arc<trials::Trials>,
    watchdog: watchdog::Watchdog,
    sql: Arc<Sql>,
    ends: HandleEnds,
    signals: mpsc::Receiver<Signal>,
    answers: mpsc::Receiver<Input>,
    answer: mpsc::Sender<Input>,
    /// Inputs that the loop itself has made.
    next: VecDeque<Input>,
    timer: clock::BootTimer,
    wake_at: crate::model::BootInstant,
    tickets: BTreeMap<Ticket, oneshot::Sender<Said>>,
    last_ticket: u64,
    /// What can be cancelled.
    running: BTreeMap<Id, CancellationToken>,
}

impl Driver {
    /// Runs until the member leaves.
    pub async fn run(mut self) -> Ended {
        loop {
            let input = match self.next.pop_front() {
                Some(input) => input,
                None => self.wait().await,
            };
            if let Some(ended) = self.step(input) {
                if !ended.leave_postgres {
                    self.keeper.shut_down().await;
                }
                return ended;
            }
        }
    }

    async fn wait(&mut self) -> Input {
        tokio::select! {
            biased;
            Some(signal) = self.signals.recv() => Input::Signal(signal),
            news = self.keeper.next() => {
                // A session is with one postmaster: that of another one would prove nothing by its end.
                if let News::Died { .. } | News::Met(Standing { postgres: None, .. }) = news {
                    self.sql.close().await;
                }
                self.keeper.told(&news, &self.wishes.config, self.store.as_ref());
                Input::Keeper(news)
            }
            // Before the answers: what a write has changed is seen before the write is known to be done.
            Ok(()) = self.view.changed() => Input::View(self.view.borrow_and_update().clone()),
            Some(input) = self.answers.recv() => input,
            Some(asked) = self.ends.commands.recv() => self.asked(asked),
            due = self.timer.until(self.wake_at) => {
                if let Err(e) = due {
                    warn!("the timer failed: {e}");
                }
                Input::Due
            }
        }
    }

    fn asked(&mut self, Asked { command, reply }: Asked) -> Input {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.tickets.insert(ticket, reply);
        // Whoever hung up waits no longer.
        self.tickets.retain(|_, reply| !reply.is_closed());
        Input::Asked { ticket, command }
    }

    /// One step of the machine: its lines are said, its new state is shown, its effects are begun.
    fn step(&mut self, input: Input) -> Option<Ended> {
        if let Input::Reply { id, .. } | Input::Ended(id) = &input {
            self.running.remove(id);
        }
        let step = self.member.step(input, clock::now());
        for line in step.lines {
            say(line);
        }
        self.wake_at = step.wake_at;
        self.show();
        let mut ended = None;
        for sent in step.effects {
            debug!(effect = ?sent.effect);
            ended = ended.or(self.carry_out(sent));
        }
        ended
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "what the loop does not do itself is performed beside it")]
    fn carry_out(&mut self, sent: Sent) -> Option<Ended> {
        let Sent { id, deadline, not_after, effect } = sent;
        match effect {
            Effect::Exit { code, message, leave_postgres } => return Some(Ended { code, message, leave_postgres }),
            Effect::Answer { ticket, status, text } => {
                if let Some(reply) = self.tickets.remove(&ticket) {
                    // Whoever asked may have hung up: the answer is then nobody's.
                    drop(reply.send(Said::new(status, text)));
                }
            }
            Effect::Cancel(id) => {
                if let Some(token) = self.running.get(&id) {
                    token.cancel();
                }
            }
            Effect::Configure { document } => self.configure(id, document),
            Effect::Callback { callback, role } => self.run_callback(callback, role),
            other => self.perform(id, deadline, not_after, other),
        }
        None
    }

    /// Replaces what the door shows.
    fn show(&mut self) {
        let ignored = self.trials.shown(self.binaries.major);
        self.ends.snapshot.send_replace(Arc::new(shown(self.member.snapshot(), &self.wishes, ignored)));
    }
}

/// The member's own snapshot with the words of its configuration.
fn shown(
    member: crate::model::MemberSnapshot,
    wishes: &settings::Wishes,
    ignored_parameters: BTreeMap<String, String>,
) -> Snapshot {
    Snapshot {
        member,
        scope: wishes.scope.clone(),
        version: crate::dcs::CONTRACT_VERSION,
        primary_word: wishes.primary_word,
        configured_tags: wishes.configured_tags.clone(),
        effective_tags: wishes.published_tags.clone(),
        ignored_parameters,
    }
}

fn say(line: Line) {
    let text = line.text;
    match line.level {
        Level::Debug => debug!("{text}"),
        Level::Info => info!("{text}"),
        Level::Warn => warn!("{text}"),
        Level::Error => error!("{text}"),
    }
}
