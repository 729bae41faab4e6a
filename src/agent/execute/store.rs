//! Writes into the store that are not the lease: initialize, configuration, history, the failover request. One that a
//! decision asked for at a time (`Local::store_write`); those of people carry their own answer.

use serde_json::Value;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::super::handle::{Answer, Command};
use super::super::{Agent, Outcome};
use crate::config::merge;
use crate::dcs::{RequestText, WriteResult};
use crate::model::{HistoryRow, Request, Version};

/// A write for the log: what, and the rest of the sentence.
pub(in crate::agent) type WriteName = &'static str;

impl Agent {
    pub(super) fn begin_claim(&mut self, expect: Option<Version>) {
        self.local.store_write = true;
        let store = self.store.clone();
        self.begin(async move { Outcome::Claimed(store.claim_initialize(expect).await) });
    }

    pub(super) fn begin_system_id(&mut self, expect: Option<Version>, system_id: String) {
        self.local.store_write = true;
        let store = self.store.clone();
        self.begin(
            async move { Outcome::Stored("the system identifier", store.write_system_id(expect, system_id).await) },
        );
    }

    pub(super) fn begin_cancel_initialize(&mut self, expect: Version) {
        self.local.store_write = true;
        let store = self.store.clone();
        self.begin(
            async move { Outcome::Stored("removing the initialize key", store.cancel_initialize(expect).await) },
        );
    }

    pub(super) fn begin_clear(&mut self, expect: Version, why: &str) {
        info!("clearing the failover request: {why}");
        self.local.store_write = true;
        let store = self.store.clone();
        self.begin(async move { Outcome::Stored("clearing the failover request", store.clear_request(expect).await) });
    }

    pub(super) fn begin_write_config(&mut self, expect: Option<Version>) {
        self.local.store_write = true;
        let store = self.store.clone();
        let document = self.dynamic.to_string();
        self.begin(
            async move { Outcome::Stored("the dynamic configuration", store.write_config(expect, document).await) },
        );
    }

    pub(super) fn begin_history(&mut self, rows: Vec<HistoryRow>) {
        self.local.store_write = true;
        let store = self.store.clone();
        self.begin(async move { Outcome::Stored("the timeline history", store.write_history(rows).await) });
    }

    pub(in crate::agent) fn stored(&mut self, what: WriteName, result: &WriteResult) {
        self.local.store_write = false;
        match result {
            WriteResult::Written(_) => info!("{what}: written"),
            WriteResult::Conflict => info!("{what}: somebody else wrote meanwhile, looking again"),
            WriteResult::Refused(why) | WriteResult::Unknown(why) => {
                warn!("{what}: not written: {why}");
                self.pause_store_writes();
            }
        }
    }

    /// A person's command. Quick ones are answered here; the rest is for the loop.
    pub(in crate::agent) async fn take_command(&mut self, command: Command, reply: oneshot::Sender<Answer>) {
        let answer = match command {
            Command::Restart { filter, timeout } => return self.enqueue(Request::Restart { filter, timeout }, reply),
            Command::Reinitialize { force, from_leader } => {
                return self.enqueue(Request::Reinitialize { force, from_leader }, reply);
            }
            Command::ScheduleRestart { at, filter, document } => {
                if self.local.scheduled_restart.is_some() {
                    Answer::new(409, "Another restart is already scheduled")
                } else {
                    self.local.scheduled_restart = Some((at, filter));
                    self.scheduled_restart = document.as_object().cloned();
                    Answer::new(202, "Restart scheduled")
                }
            }
            Command::DeleteScheduledRestart => {
                self.scheduled_restart = None;
                match self.local.scheduled_restart.take() {
                    Some(_) => Answer::new(200, "scheduled restart deleted"),
                    None => Answer::new(404, "no restarts are scheduled"),
                }
            }
            Command::Reload => {
                self.flags.reload = true;
                Answer::new(202, "reload scheduled")
            }
            Command::PatchConfig(patch) => return self.patch_config(&patch, reply),
            Command::PutConfig(document) => return self.put_config(document, reply),
            Command::SetRequest { leader, candidate, scheduled_at } => {
                return self.set_request(RequestText { leader, candidate, scheduled_at }, reply);
            }
            Command::ClearRequest { expect } => return self.clear_request(expect, reply),
        };
        give(reply, answer);
    }

    fn enqueue(&mut self, request: Request, reply: oneshot::Sender<Answer>) {
        if self.requests.len() >= super::super::handle::COMMANDS_MAX {
            return give(reply, Answer::new(503, "too many requests are pending, try again later"));
        }
        self.requests.push_back((request, Some(reply)));
        self.show_request();
    }

    /// The oldest request is the one that decisions see; an order to terminate comes before all.
    pub(in crate::agent) fn show_request(&mut self) {
        if !matches!(self.local.request, Some(Request::Terminate { .. })) {
            self.local.request = self.requests.front().map(|(request, _)| request.clone());
        }
    }

    /// The request that decisions saw is settled.
    pub(super) fn answer_request(&mut self, status: u16, text: &str) {
        if matches!(self.local.request, Some(Request::Terminate { .. })) {
            return;
        }
        if let Some((request, reply)) = self.requests.pop_front() {
            if let Request::Reinitialize { from_leader, .. } = request {
                self.flags.reinit_from_leader = from_leader && status == 200;
            }
            let word = match request {
                Request::Restart { .. } => "restart",
                Request::Reinitialize { .. } => "reinitialize",
                Request::Terminate { .. } => "shutdown",
            };
            info!("request to {word}: {text}");
            if let Some(reply) = reply {
                give(reply, Answer::new(status, text));
            }
        }
        self.local.request = None;
        self.show_request();
    }

    fn patch_config(&mut self, patch: &Value, reply: oneshot::Sender<Answer>) {
        let stored = self.cluster.config.as_ref().and_then(|c| Some((c.version.clone(), c.document.clone()?)));
        let Some((version, text)) = stored else {
            return give(reply, Answer::new(503, "no configuration in the store"));
        };
        let mut document: Value = serde_json::from_str(&text).unwrap_or_else(|_| Value::Object(serde_json::Map::new()));
        if !merge::patch(&mut document, patch) {
            return give(reply, Answer::new(200, document.to_string()));
        }
        self.write_config_for(reply, Some(version), document, 409);
    }

    fn put_config(&mut self, document: Value, reply: oneshot::Sender<Answer>) {
        let config = self.cluster.config.as_ref();
        let stored = config.and_then(|c| c.document.as_deref()).and_then(|t| serde_json::from_str::<Value>(t).ok());
        if stored.as_ref() == Some(&document) {
            return give(reply, Answer::new(200, document.to_string()));
        }
        let version = config.map(|c| c.version.clone());
        self.write_config_for(reply, version, document, 502);
    }

    fn write_config_for(
        &mut self,
        reply: oneshot::Sender<Answer>,
        expect: Option<Version>,
        document: Value,
        conflict: u16,
    ) {
        let store = self.store.clone();
        let text = document.to_string();
        self.begin(async move {
            let answer = match store.write_config(expect, text.clone()).await {
                WriteResult::Written(_) => Answer::new(200, text),
                WriteResult::Conflict => Answer::new(conflict, "somebody else wrote the configuration meanwhile"),
                WriteResult::Refused(why) | WriteResult::Unknown(why) => Answer::new(502, why),
            };
            give(reply, answer);
            Outcome::Look
        });
    }

    fn set_request(&mut self, request: RequestText, reply: oneshot::Sender<Answer>) {
        let store = self.store.clone();
        self.begin(async move {
            let answer = match store.set_request(request).await {
                WriteResult::Written(_) => Answer::new(200, ""),
                WriteResult::Conflict => Answer::new(503, "failed to write failover key into DCS"),
                WriteResult::Refused(why) | WriteResult::Unknown(why) => {
                    warn!("failover request: not written: {why}");
                    Answer::new(503, "failed to write failover key into DCS")
                }
            };
            give(reply, answer);
            Outcome::Look
        });
    }

    fn clear_request(&mut self, expect: Version, reply: oneshot::Sender<Answer>) {
        let store = self.store.clone();
        self.begin(async move {
            let answer = match store.clear_request(expect).await {
                WriteResult::Written(_) => Answer::new(200, "scheduled switchover deleted"),
                WriteResult::Conflict => Answer::new(409, "the request changed meanwhile"),
                WriteResult::Refused(why) | WriteResult::Unknown(why) => Answer::new(502, why),
            };
            give(reply, answer);
            Outcome::Look
        });
    }
}

/// Whoever asked may have hung up: the answer is then nobody's.
pub(in crate::agent) fn give(reply: oneshot::Sender<Answer>, answer: Answer) {
    drop(reply.send(answer));
}
