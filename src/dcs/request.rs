//! Every request of a member, spelled once: what is wanted → the call that asks for it.
//!
//! A request goes out with a mark of what was known at its sending: an answer is judged against that, not against what
//! came meanwhile.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::cache::{Feed, Mark};
use super::call::Call;
use super::desk::Desk;
use super::objects::{subsets_are, subsets_for, wanted_ports};
use super::options::Mode;
use super::schema::{self, Patch};
use super::{Failure, MemberStatus};
use crate::model::{HolderMark, Initializer, LeaderWrite, MemberName, RequestText, StoreWrite, Version};
use crate::mutant::{self, Mutant};

/// How long the server keeps a watch open. Half an hour keeps the renewals of three members' watches below one a minute;
/// bookmarks keep the version fresh meanwhile.
const LASTING: Duration = Duration::from_secs(1800);

const JSON: &str = "application/json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// One of the objects that carry the state of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// Lease, position, slots.
    Leader,
    /// Dynamic configuration, initialize, history.
    Config,
    /// Failover or switchover request.
    Failover,
    /// Synchronous standbys.
    Sync,
}

impl Object {
    /// The object a write goes into.
    pub fn of(write: &StoreWrite) -> Object {
        match write {
            StoreWrite::ClaimInitialize { .. }
            | StoreWrite::SystemId { .. }
            | StoreWrite::CancelInitialize { .. }
            | StoreWrite::Config { .. }
            | StoreWrite::History { .. } => Object::Config,
            StoreWrite::SetRequest(_) | StoreWrite::ClearRequest { .. } => Object::Failover,
            StoreWrite::LeaderObject => Object::Leader,
            StoreWrite::Sync { .. } => Object::Sync,
        }
    }
}

/// What a member asks the API server.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// An object, afresh.
    Read(Object),
    /// A pod, afresh.
    ReadPod(MemberName),
    /// One conditional write of the leader object.
    WriteLeader(Box<LeaderWrite>),
    /// Any other conditional write.
    Write(StoreWrite),
    /// Puts our labels on an object that somebody else made in this version.
    PutLabels(Object, Version),
    /// Member data and labels on the own pod.
    Publish(MemberStatus),
    /// Removes the leader label from a pod that carried it in this version.
    StripLabel(MemberName, Version),
    /// All objects of the cluster, or all its pods, as of one version.
    List(Feed),
    /// What happens to them after the version heard of last.
    Watch(Feed),
    /// A Service that keeps the control plane from collecting the `-config` Endpoints.
    CreateService(Object),
    /// All objects of the cluster go, but its pods.
    RemoveCluster,
}

/// A request as it goes out.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What to send.
    pub call: Call,
    pub(super) expects: Expects,
    pub(super) mark: Mark,
    patch: Patch,
    expect: Option<Version>,
    trust: u32,
}

/// What an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expects {
    Object(Object),
    Pod { own: bool },
    List(Feed),
    Watch(Feed),
    Nothing,
}

impl Sent {
    /// Does the object show exactly what this write wanted?
    pub fn stands(&self, seen: &super::cache::KindEntry) -> bool {
        self.patch.iter().all(|(key, wanted)| seen.annotation(key) == wanted.as_str())
    }
    /// [`Desk::trust`] as it will be once this is answered.
    pub fn trust(&self) -> u32 {
        self.trust
    }
    /// The version it is conditional on; `None`: it is not, or creates the object.
    pub fn expected(&self) -> Option<&Version> {
        self.expect.as_ref()
    }
}

impl Desk {
    /// The call for a request, with what is known at this moment.
    ///
    /// # Errors
    /// [`Failure::Refused`]: what is wanted cannot be said, or not by this program; nothing needs to be sent.
    pub fn encode(&mut self, request: Request) -> Result<Sent, Failure> {
        Ok(match request {
            Request::Read(object) => {
                let call = self.call("GET", "get", self.plural(Feed::Kinds), Some(self.name(object)), None);
                self.sent(call, Expects::Object(object), self.cache.mark_kind(self.name(object)))
            }
            Request::ReadPod(pod) => {
                let own = self.o.member.as_ref() == Some(&pod);
                let call = self.call("GET", "get", "pods", Some(&pod.0), None);
                self.sent(call, Expects::Pod { own }, self.cache.mark_pod(&pod.0))
            }
            Request::WriteLeader(write) => {
                self.me()?;
                self.encode_leader(*write)
            }
            Request::Write(write) => self.encode_write(write)?,
            Request::PutLabels(object, version) => self.write(object, Some(&version), Patch::new(), None),
            Request::Publish(status) => self.encode_publish(&status)?,
            Request::StripLabel(pod, version) => {
                let mut labels = Map::from_iter([(self.o.role_label.clone(), Value::Null)]);
                if let Some(tmp) = &self.o.tmp_role_label {
                    labels.insert(tmp.clone(), Value::Null);
                }
                // Conditional: whatever that pod says of itself in the meantime is newer than our view.
                let body = json!({"metadata": {"name": pod.0, "namespace": self.o.namespace, "labels": labels,
                    "resourceVersion": version.0}});
                let call = self.call("PATCH", "patch", "pods", Some(&pod.0), Some(body));
                self.sent(call, Expects::Pod { own: false }, self.cache.mark_pod(&pod.0))
            }
            Request::RemoveCluster => {
                let mut call = self.call("DELETE", "deletecollection", self.plural(Feed::Kinds), None, None);
                call.query = vec![("labelSelector", self.selector())];
                self.sent(call, Expects::Nothing, self.cache.mark_feed(Feed::Kinds))
            }
            Request::List(feed) => {
                let mut call = self.call("GET", "list", self.plural(feed), None, None);
                call.query = vec![("labelSelector", self.selector())];
                self.sent(call, Expects::List(feed), self.cache.mark_feed(feed))
            }
            Request::Watch(feed) => {
                let from = self.position(feed).ok_or_else(|| Failure::Refused("a watch follows a list".into()))?;
                let mut call = self.call("GET", "watch", self.plural(feed), None, None);
                call.query = vec![
                    ("labelSelector", self.selector()),
                    ("watch", "true".into()),
                    ("allowWatchBookmarks", "true".into()),
                    ("resourceVersion", from.to_owned()),
                    ("timeoutSeconds", LASTING.as_secs().to_string()),
                ];
                let mark = self.cache.mark_version(from);
                self.sent(call, Expects::Watch(feed), mark)
            }
            Request::CreateService(object) => {
                let body = json!({
                    "metadata": {"namespace": self.o.namespace, "name": self.name(object), "labels": self.labels},
                    "spec": {"clusterIP": "None"},
                });
                let call = self.call("POST", "create", "services", None, Some(body));
                self.sent(call, Expects::Nothing, self.cache.mark_version(""))
            }
        })
    }

    fn sent(&self, call: Call, expects: Expects, mark: Mark) -> Sent {
        Sent { call, expects, mark, patch: Patch::new(), expect: None, trust: self.next_trust() }
    }

    fn plural(&self, feed: Feed) -> &'static str {
        match (feed, self.o.mode) {
            (Feed::Pods, _) => "pods",
            (Feed::Kinds, Mode::Endpoints) => "endpoints",
            (Feed::Kinds, Mode::ConfigMaps) => "configmaps",
        }
    }

    fn selector(&self) -> String {
        self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
    }

    fn call(
        &self,
        method: &'static str,
        verb: &'static str,
        plural: &'static str,
        name: Option<&str>,
        body: Option<Value>,
    ) -> Call {
        let collection = format!("/api/v1/namespaces/{}/{plural}", self.o.namespace);
        Call {
            method,
            path: name.map_or_else(|| collection.clone(), |name| format!("{collection}/{name}")),
            query: Vec::new(),
            content_type: if method == "PATCH" { STRATEGIC } else { JSON },
            body,
            verb,
            plural,
        }
    }

    /// Writes `patch` into an object: a PATCH conditional on a version, or a POST that creates it, where nulls have no
    /// place.
    pub(super) fn write(&self, object: Object, expect: Option<&Version>, patch: Patch, subsets: Option<Value>) -> Sent {
        let (name, plural) = (self.name(object), self.plural(Feed::Kinds));
        let annotations: Patch = match expect {
            Some(_) => patch.clone(),
            None => patch.clone().into_iter().filter(|(_, v)| !v.is_null()).collect(),
        };
        let mut metadata = json!({
            "namespace": self.o.namespace, "name": name, "labels": self.labels, "annotations": annotations,
        });
        let expected = expect.filter(|_| !mutant::is(Mutant::WritesUnconditionally));
        if let (Some(version), Value::Object(m)) = (expected, &mut metadata) {
            m.insert("resourceVersion".into(), json!(version.0));
        }
        let mut body = json!({ "metadata": metadata });
        if let (Some(subsets), Value::Object(b)) = (subsets, &mut body) {
            b.insert("subsets".into(), subsets);
        }
        let call = match expect {
            Some(_) => self.call("PATCH", "patch", plural, Some(name), Some(body)),
            None => self.call("POST", "create", plural, None, Some(body)),
        };
        Sent { patch, expect: expect.cloned(), ..self.sent(call, Expects::Object(object), self.cache.mark_kind(name)) }
    }

    fn encode_leader(&mut self, write: LeaderWrite) -> Sent {
        let LeaderWrite { expect, record, holder, status, released, claim, failsafe } = write;
        let mut patch = schema::record_patch(&record);
        if let Some(holder) = holder {
            let containers = self.containers_of(&holder.uid);
            patch.extend(schema::holder_patch(&HolderMark { containers, ..holder }));
        }
        patch.extend(match record.leader {
            Some(_) => schema::leader_status_patch(&status),
            // Slots and the rest of the status stand until there is a holder again.
            None => schema::optime_patch(status.optime),
        });
        patch.extend(schema::released_patch(&released));
        patch.extend(schema::timeline_patch(&claim));
        patch.extend(schema::failsafe_patch(&failsafe));
        let subsets = self.subsets(expect.as_ref(), record.leader.is_some());
        self.write(Object::Leader, expect.as_ref(), patch, subsets)
    }

    /// Endpoints mode: the addresses to send with a write of the leader object, if those of the version it expects have to
    /// change. `mine`: clients are sent to this pod; otherwise to nobody.
    fn subsets(&self, expect: Option<&Version>, mine: bool) -> Option<Value> {
        let seen = self.cache.kind(&self.names.leader).filter(|seen| expect == Some(&seen.version));
        let there = match (expect, seen) {
            (_, Some(seen)) => Some(&seen.subsets[..]),
            (None, None) => Some(&[][..]),
            (Some(_), None) => None,
        };
        self.subsets_over(there, mine)
    }

    /// The same over known subsets; `None`: nobody knows which stand.
    pub(super) fn subsets_over(&self, there: Option<&[super::objects::Subset]>, mine: bool) -> Option<Value> {
        if self.o.mode != Mode::Endpoints {
            return None;
        }
        if !mine {
            return there.is_none_or(|there| !there.is_empty()).then(|| json!([]));
        }
        let pod = self.cache.own_pod();
        let ip = self.o.pod_ip.clone().or_else(|| pod?.status.pod_ip.clone())?;
        let ports = wanted_ports(&self.o);
        let right = there.is_some_and(|there| subsets_are(there, &ip, &ports));
        (!right).then(|| subsets_for(&ip, pod, &self.o.namespace, &ports))
    }

    fn encode_write(&self, write: StoreWrite) -> Result<Sent, Failure> {
        let refused = |why: String| Failure::Refused(why);
        let object = Object::of(&write);
        let (expect, patch) = match write {
            StoreWrite::ClaimInitialize { expect } => {
                self.me()?;
                let who = Initializer { uid: self.cache.my_uid().to_owned(), session: self.o.session.clone() };
                (expect, schema::claim_patch(&who))
            }
            StoreWrite::SystemId { expect, system_id } => (expect, schema::initialize_patch(Some(&system_id))),
            StoreWrite::LeaderObject => (None, Patch::new()),
            StoreWrite::CancelInitialize { expect } => (Some(expect), schema::initialize_patch(None)),
            StoreWrite::Config { expect, document } => {
                let patch = schema::config_patch(&document);
                let patch = patch.ok_or_else(|| refused("the dynamic configuration must be a JSON object".into()))?;
                (expect, patch)
            }
            StoreWrite::History { expect, rows } => (expect, schema::history_patch(&rows)),
            StoreWrite::Sync { expect, leader, electorate, stamp } => {
                (expect, schema::sync_patch(leader.as_ref(), &electorate, &stamp))
            }
            StoreWrite::SetRequest(request) => {
                let patch = schema::failover_patch(&request).map_err(refused)?;
                (self.version_of(Object::Failover), patch)
            }
            StoreWrite::ClearRequest { expect } => {
                let patch = schema::failover_patch(&RequestText::default()).map_err(refused)?;
                (Some(expect), patch)
            }
        };
        Ok(self.write(object, expect.as_ref(), patch, None))
    }

    fn encode_publish(&self, status: &MemberStatus) -> Result<Sent, Failure> {
        let me = self.me()?;
        let text = schema::status_text(status, &self.o.primary_role_name);
        let mut metadata = json!({
            "namespace": self.o.namespace, "name": me.0, "labels": schema::labels_of(status, &self.o),
            "annotations": schema::status_patch(text),
        });
        // Whoever has my name and another UID is not me: the server refuses then.
        if let (false, Value::Object(m)) = (self.cache.my_uid().is_empty(), &mut metadata) {
            m.insert("uid".into(), json!(self.cache.my_uid()));
        }
        let call = self.call("PATCH", "patch", "pods", Some(&me.0), Some(json!({ "metadata": metadata })));
        Ok(self.sent(call, Expects::Pod { own: true }, self.cache.mark_pod(&me.0)))
    }

    /// The version of my pod's object that shows this status and its labels already: nothing needs to be sent.
    pub fn already_published(&self, status: &MemberStatus) -> Option<Version> {
        let text = schema::status_text(status, &self.o.primary_role_name);
        let labels = schema::labels_of(status, &self.o);
        let pod = self.cache.pod(&self.o.member.as_ref()?.0).filter(|_| !self.cache.own_is_gone())?;
        let carried = labels.iter().all(|(label, value)| pod.labels.get(label) == value.as_ref());
        (carried && schema::same_status(&pod.member.raw, &text)).then(|| pod.version.clone())
    }

    /// Requests that take the leader label off every other pod of the view that carries it.
    pub fn strips(&self) -> Vec<(MemberName, Request)> {
        let leader_values = [&self.o.leader_label_value, &self.o.standby_leader_label_value];
        let others = self.cache.pods().filter(|(name, _)| self.o.member.as_ref().is_none_or(|me| me.0 != **name));
        others
            .filter(|(_, pod)| pod.member.role_label.as_ref().is_some_and(|v| leader_values.contains(&v)))
            .map(|(name, pod)| {
                let name = MemberName(name.clone());
                (name.clone(), Request::StripLabel(name, pod.version.clone()))
            })
            .collect()
    }
}
