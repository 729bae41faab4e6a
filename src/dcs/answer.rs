//! What an answer of the API server says: an object, or a failure with what it proves. The answer enters the cache here,
//! judged by what was known when its request went out.

use kube::core::Status;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::DcsError;
use super::cache::{Feed, KindEntry};
use super::call::Call;
use super::desk::Desk;
use super::objects::{Kind, List, Pod};
use super::request::{Expects, Sent};
use crate::model::{BootInstant, LeaderWritten, PodFacts, ReadFailed, Version, WriteResult};

/// What a failed request proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// 409: the version was another one, or the object exists already. Nothing was written.
    Conflict(String),
    /// 404.
    NotFound(String),
    /// 403, with the missing permission in words. Nothing was written.
    Forbidden(String),
    /// 410: the version to watch from is too old.
    Gone,
    /// Another definite answer. Nothing was written.
    Refused(String),
    /// Time-out, connection error, 5xx, 429: anything may have happened or may still happen.
    Unsure(String),
}

impl Failure {
    /// In words.
    pub fn text(self) -> String {
        match self {
            Failure::Conflict(t)
            | Failure::NotFound(t)
            | Failure::Forbidden(t)
            | Failure::Refused(t)
            | Failure::Unsure(t) => t,
            Failure::Gone => "the version to watch from is too old".into(),
        }
    }
    /// For callers that only want to know whether the store can be asked.
    pub fn into_dcs(self) -> DcsError {
        match self {
            Failure::Forbidden(t) => DcsError::Forbidden(t),
            Failure::Unsure(t) => DcsError::Unreachable(t),
            Failure::Conflict(_) | Failure::NotFound(_) | Failure::Refused(_) | Failure::Gone => {
                DcsError::Refused(self.text())
            }
        }
    }
    /// As the answer to a read.
    pub fn into_read(self) -> ReadFailed {
        match self {
            Failure::Unsure(t) => ReadFailed::Unreachable(t),
            Failure::Conflict(_)
            | Failure::NotFound(_)
            | Failure::Forbidden(_)
            | Failure::Refused(_)
            | Failure::Gone => ReadFailed::Refused(self.text()),
        }
    }
}

/// What a request gave.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The object as it stands, or stands after the write. `None`: there is none.
    Object(Option<KindEntry>),
    /// A pod as it stands. `None`: there is none.
    Pod(Option<SeenPod>),
    /// Done: a list was taken in, a watch is open, a Service is there.
    Done,
}

/// A pod in an answer.
#[derive(Clone, Debug)]
pub struct SeenPod(pub(super) Box<Pod>);

impl SeenPod {
    /// What a proof of death looks at.
    pub fn facts(&self) -> PodFacts {
        PodFacts { uid: self.0.metadata.uid.clone().unwrap_or_default(), terminated: self.0.terminated() }
    }
    /// The version of the pod's object.
    pub fn version(&self) -> Version {
        Version(self.0.metadata.resource_version.clone())
    }
}

/// What one conditional write of the leader object came to.
pub fn leader_written(answer: Result<Answer, Failure>) -> LeaderWritten {
    match answer {
        Ok(_) => LeaderWritten::Wrote,
        Err(Failure::Conflict(_) | Failure::NotFound(_) | Failure::Gone) => LeaderWritten::Conflict,
        Err(Failure::Forbidden(why) | Failure::Refused(why)) => LeaderWritten::Refused(why),
        Err(Failure::Unsure(why)) => LeaderWritten::Unsure(why),
    }
}

/// What any other write came to, as far as its own answer tells.
pub fn write_result(answer: Result<Answer, Failure>) -> WriteResult {
    match answer {
        Ok(Answer::Object(Some(entry))) => WriteResult::Written(entry.version),
        Ok(Answer::Pod(Some(pod))) => WriteResult::Written(pod.version()),
        Ok(Answer::Object(None) | Answer::Pod(None) | Answer::Done) => WriteResult::Conflict,
        Err(Failure::Conflict(_) | Failure::NotFound(_) | Failure::Gone) => WriteResult::Conflict,
        Err(Failure::Forbidden(why) | Failure::Refused(why)) => WriteResult::Refused(why),
        Err(Failure::Unsure(why)) => WriteResult::Unknown(why),
    }
}

/// The body of an answer: as it came, or read already.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the words say it")]
pub enum Body<'a> {
    Bytes(&'a [u8]),
    Read(&'a Value),
}

impl Body<'_> {
    fn read<T: DeserializeOwned>(self) -> Result<T, serde_json::Error> {
        match self {
            Body::Bytes(bytes) => serde_json::from_slice(bytes),
            Body::Read(value) => T::deserialize(value),
        }
    }
}

impl Desk {
    /// Takes in what was answered to a request, received at `at`.
    ///
    /// # Errors
    /// What the failure proves. A read of something that is not there is no failure.
    pub fn decode(&mut self, sent: &Sent, status: u16, body: Body<'_>, at: BootInstant) -> Result<Answer, Failure> {
        self.an_answer(at);
        if !(200..300).contains(&status) {
            return self.refused(sent, status, &status_of(status, body), at);
        }
        let call = &sent.call;
        match sent.expects {
            Expects::Nothing => Ok(Answer::Done),
            Expects::Object(_) => {
                let kind: Kind = parsed(call, body)?;
                let entry = KindEntry::new(kind.clone(), &self.labels);
                self.cache.put_kind(kind, sent.mark, at);
                Ok(Answer::Object(Some(entry)))
            }
            Expects::Pod { own } => {
                let pod: Pod = parsed(call, body)?;
                if own {
                    self.cache.meet_own(&pod, sent.mark);
                }
                self.cache.put_pod(pod.clone(), sent.mark);
                Ok(Answer::Pod(Some(SeenPod(Box::new(pod)))))
            }
            Expects::List(feed) => {
                let (epoch, as_of) = match feed {
                    Feed::Kinds => {
                        let list: List<Kind> = self.listed(sent, feed, body, at)?;
                        let as_of = list.metadata.resource_version;
                        let gap = self.gap_before(at);
                        self.hear(at);
                        (self.cache.replace_kinds(list.items.unwrap_or_default(), &as_of, sent.mark, at, gap), as_of)
                    }
                    Feed::Pods => {
                        let list: List<Pod> = self.listed(sent, feed, body, at)?;
                        let as_of = list.metadata.resource_version;
                        (self.cache.replace_pods(list.items.unwrap_or_default(), &as_of, sent.mark), as_of)
                    }
                };
                self.go_on_from(feed, as_of, epoch);
                Ok(Answer::Done)
            }
            Expects::Watch(feed) => {
                if feed == Feed::Kinds {
                    self.hear(at);
                }
                self.cache.live(feed);
                Ok(Answer::Done)
            }
        }
    }

    fn listed<T: DeserializeOwned>(
        &mut self,
        sent: &Sent,
        feed: Feed,
        body: Body<'_>,
        at: BootInstant,
    ) -> Result<List<T>, Failure> {
        parsed(&sent.call, body).inspect_err(|_| self.cache.broken(feed, at))
    }

    /// No answer came, in time or at all: `why` in words.
    pub fn unanswered(&mut self, sent: &Sent, why: &str, at: BootInstant) -> Failure {
        let kinds =
            matches!(sent.expects, Expects::List(Feed::Kinds) | Expects::Watch(Feed::Kinds) | Expects::Object(_));
        self.no_answer(kinds, at);
        if let Expects::List(feed) | Expects::Watch(feed) = sent.expects {
            self.cache.broken(feed, at);
        }
        Failure::Unsure(format!("{}: {why}", sent.call.what()))
    }

    pub(super) fn refused(
        &mut self,
        sent: &Sent,
        code: u16,
        status: &Status,
        at: BootInstant,
    ) -> Result<Answer, Failure> {
        let failure = self.classify(&sent.call, code, status);
        let read = sent.call.method == "GET";
        match (sent.expects, &failure) {
            (Expects::Object(object), Failure::NotFound(_)) if read => {
                let name = self.name(object).to_owned();
                self.cache.kind_is_gone(&name, sent.mark, at);
                Ok(Answer::Object(None))
            }
            (Expects::Pod { own }, Failure::NotFound(_)) if read => {
                if own {
                    self.cache.lose_own(sent.mark);
                }
                Ok(Answer::Pod(None))
            }
            (Expects::Pod { own: true }, Failure::NotFound(_) | Failure::Conflict(_) | Failure::Refused(_))
                if code == 404 || names_another_uid(status) =>
            {
                self.cache.lose_own(sent.mark);
                Err(Failure::Refused(self.replaced()))
            }
            (Expects::List(feed) | Expects::Watch(feed), Failure::Gone) => {
                self.list_again(feed);
                Err(failure)
            }
            (Expects::List(feed) | Expects::Watch(feed), _) => {
                self.cache.broken(feed, at);
                Err(failure)
            }
            (Expects::Object(_) | Expects::Pod { .. } | Expects::Nothing, _) => Err(failure),
        }
    }

    fn classify(&self, call: &Call, code: u16, status: &Status) -> Failure {
        let text = format!("{}: {} ({code})", call.what(), status.message);
        match code {
            code if self.o.retriable_codes.contains(&code) => Failure::Unsure(text),
            403 => Failure::Forbidden(format!(
                "Forbidden: the service account needs verb {} on {} in namespace {} ({})",
                call.verb, call.plural, self.o.namespace, status.message
            )),
            404 => Failure::NotFound(text),
            409 => Failure::Conflict(text),
            410 => Failure::Gone,
            // 401: the token is being rotated; 429 and 5xx: the server is in trouble; 0: not even a status.
            0 | 401 | 408 | 429 | 500.. => Failure::Unsure(text),
            _ => Failure::Refused(text),
        }
    }

    pub(super) fn replaced(&self) -> String {
        let me = self.o.member.as_ref().map_or("", |me| me.as_str());
        format!(
            "this pod was replaced: pod {me} with UID {} is gone, and what has its name now is not this member",
            self.cache.my_uid()
        )
    }
}

/// A server refuses a PATCH that names another UID than the object has as a change of a field that cannot change (422);
/// where it takes it for a precondition, it says so (409). A conflict of other writers says neither.
fn names_another_uid(status: &Status) -> bool {
    status.details.iter().flat_map(|d| &d.causes).any(|cause| cause.field == "metadata.uid")
        || status.message.contains("UID in precondition")
}

/// The `Status` of a refusal; what a proxy says instead is taken as the message.
fn status_of(code: u16, body: Body<'_>) -> Status {
    body.read().unwrap_or_else(|_| {
        let text = match body {
            Body::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Body::Read(value) => value.to_string(),
        };
        Status::failure(text.trim(), "").with_code(code)
    })
}

/// The request itself went through: an answer that cannot be read leaves its effect to be looked up.
fn parsed<T: DeserializeOwned>(call: &Call, body: Body<'_>) -> Result<T, Failure> {
    body.read().map_err(|e| Failure::Unsure(format!("{}: the API server's answer is not understood: {e}", call.what())))
}
