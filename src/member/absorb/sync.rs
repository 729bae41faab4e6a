//! Answers about synchronous replication: the names in the files, and the sync key.

use super::super::input::{Answer, Fail};
use super::super::state::State;
use crate::model::{BootInstant, StandbyNames, WriteResult};

impl State {
    /// The configuration files were written with these names, or nobody knows what they say.
    pub(super) fn names_written(&mut self, names: StandbyNames, done: bool) {
        if done {
            self.local.sync.wrote(names);
            self.local.sync.told(self.now.boot);
        } else {
            self.local.sync.forget();
        }
    }

    /// Names were written for their own sake, and Postgres told.
    pub(super) fn named(&mut self, names: StandbyNames, sent: BootInstant, answer: Result<Answer, Fail>) {
        self.names_written(names, answer.is_ok());
        // What the monitoring query said before says nothing of the names of now.
        self.probed_at = BootInstant::default();
        match answer {
            Ok(_) => self.worked("names"),
            Err(fail) => {
                if let Fail::Unreachable(why) = &fail {
                    self.unreachable(sent, why);
                }
                self.failed("names");
                self.warn(format!("could not tell Postgres its synchronous standbys: {}", fail.text()));
            }
        }
    }

    /// What stands in the key is known once this process has written it under the lock that it holds.
    pub(super) fn sync_written(&mut self, acquisition: Option<String>, result: &WriteResult) {
        self.local.sync.written(result);
        match result {
            WriteResult::Written(_) => {
                self.worked("sync key");
                self.local.sync.since = acquisition.filter(|at| self.acquisition().as_ref() == Some(at));
                let now = self.cluster.sync.as_ref().map_or_else(String::new, |r| r.in_words());
                self.info(format!("the sync key says: {now}"));
            }
            WriteResult::Conflict => {
                self.failed("sync key");
                self.warn("Synchronous replication key updated by someone else");
            }
            WriteResult::Refused(why) | WriteResult::Unknown(why) => {
                self.failed("sync key");
                self.warn(format!("the sync key was not written: {why}"));
            }
        }
    }

    /// The sync key was read afresh, and what was read is in the view already.
    pub(super) fn sync_read(&mut self, sent: BootInstant, answer: Result<Answer, Fail>) {
        match answer {
            Ok(Answer::Config(Ok(()))) => {
                self.worked("read the sync key");
                self.local.sync_read = Some(sent);
            }
            Ok(Answer::Config(Err(e))) => {
                self.failed("read the sync key");
                self.warn(format!("cannot read the sync key: {}", e.text()));
            }
            Ok(_) | Err(_) => self.failed("read the sync key"),
        }
    }
}
