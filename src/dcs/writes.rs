//! Every write that is not the lease: initialize, configuration, history, requests, the own pod, other pods' labels.
//!
//! Each is sent once. Without a clear answer the object is read again: what was written stands → written; the object is
//! still the one expected → unknown, it may land later; anything else → conflict. The caller decides anew in each case.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Map, Value, json};

use super::cache::KindEntry;
use super::client::ApiError;
use super::kube::{KubeStore, Mode};
use super::schema::{self, Labels, Patch};
use super::{MemberStatus, RequestText, WriteResult};
use crate::model::{HistoryRow, Initializer, MemberName, Version};

impl KubeStore {
    fn limit(&self) -> Duration {
        self.shared.periods().retry_timeout
    }

    /// Writes `patch` into an object: conditional on `expect`, or creating it.
    async fn write_kind(&self, name: &str, expect: Option<Version>, patch: Patch) -> WriteResult {
        let limit = self.limit();
        let began = tokio::time::Instant::now();
        let version = expect.as_ref().map(|v| v.0.as_str());
        let body = self.kind_body(name, version, patch.clone(), None);
        let result = match version {
            Some(_) => self.api.patch_kind(name, &body, limit).await,
            None => self.api.create_kind(&body, limit).await,
        };
        match result {
            Ok(kind) => {
                let version = Version(kind.metadata.resource_version.clone());
                self.shared.update(|cache, at| cache.put_kind(kind, at));
                WriteResult::Written(version)
            }
            Err(ApiError::Forbidden(why) | ApiError::Refused(why)) => WriteResult::Refused(why),
            Err(ApiError::Conflict(_) | ApiError::NotFound(_) | ApiError::Gone) => {
                self.after_conflict(name, version.is_none(), &patch).await
            }
            Err(ApiError::Unsure(why)) => {
                // At least a second, so that a write that used up its time can still be looked up.
                let left = limit.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
                match self.fresh(name, left).await {
                    Ok(Some(seen)) if stands(&seen, &patch) => WriteResult::Written(Version(seen.version)),
                    Ok(seen) if seen.as_ref().map(|s| s.version.as_str()) == version => WriteResult::Unknown(why),
                    Ok(_) => WriteResult::Conflict,
                    Err(_) => WriteResult::Unknown(why),
                }
            }
        }
    }

    /// Brings the present object into the view. One that exists without our labels (made by somebody else) was invisible
    /// to us: it gets them, so that the next decision sees it.
    async fn after_conflict(&self, name: &str, creating: bool, patch: &Patch) -> WriteResult {
        match self.fresh(name, self.limit()).await {
            Ok(Some(seen)) if creating && !seen.labelled => {
                let body = self.kind_body(name, Some(&seen.version), Patch::new(), None);
                match self.api.patch_kind(name, &body, self.limit()).await {
                    Ok(kind) => self.shared.update(|cache, at| cache.put_kind(kind, at)),
                    Err(e) => {
                        tracing::warn!(object = name, error = %e.text(), "cannot put our labels on an object made by somebody else")
                    }
                }
                WriteResult::Conflict
            }
            Ok(Some(seen)) if creating && stands(&seen, patch) => WriteResult::Written(Version(seen.version)),
            Ok(_) => WriteResult::Conflict,
            Err(e) => WriteResult::Unknown(e.text()),
        }
    }

    pub(super) async fn do_claim_initialize(&self, expect: Option<Version>) -> WriteResult {
        if let Err(why) = self.me() {
            return WriteResult::Refused(why);
        }
        self.create_service().await;
        let uid = self.own_pod().and_then(|p| p.metadata.uid).unwrap_or_default();
        let who = Initializer { uid, session: self.o.session.clone() };
        self.write_kind(&self.names.config, expect, schema::claim_patch(&who)).await
    }

    pub(super) async fn do_write_initialize(&self, expect: Option<Version>, system_id: Option<String>) -> WriteResult {
        self.write_kind(&self.names.config, expect, schema::initialize_patch(system_id.as_deref())).await
    }

    pub(super) async fn do_write_config(&self, expect: Option<Version>, document: String) -> WriteResult {
        let Some(patch) = schema::config_patch(&document) else {
            return WriteResult::Refused("the dynamic configuration must be a JSON object".into());
        };
        self.write_kind(&self.names.config, expect, patch).await
    }

    pub(super) async fn do_write_history(&self, rows: Vec<HistoryRow>) -> WriteResult {
        let expect = self.shared.read(|c| c.kind(&self.names.config).map(|k| Version(k.version.clone())));
        self.write_kind(&self.names.config, expect, schema::history_patch(&rows)).await
    }

    pub(super) async fn do_set_request(&self, request: RequestText) -> WriteResult {
        let patch = match schema::failover_patch(&request) {
            Ok(patch) => patch,
            Err(why) => return WriteResult::Refused(why),
        };
        let expect = self.shared.read(|c| c.kind(&self.names.failover).map(|k| Version(k.version.clone())));
        self.write_kind(&self.names.failover, expect, patch).await
    }

    pub(super) async fn do_clear_request(&self, expect: Version) -> WriteResult {
        match schema::failover_patch(&RequestText::default()) {
            Ok(patch) => self.write_kind(&self.names.failover, Some(expect), patch).await,
            Err(why) => WriteResult::Refused(why),
        }
    }

    pub(super) async fn do_publish_member(&self, status: MemberStatus) -> WriteResult {
        let me = match self.me() {
            Ok(me) => me.clone(),
            Err(why) => return WriteResult::Refused(why),
        };
        self.create_service().await;
        let text = schema::status_text(&status, &self.o.primary_role_name);
        let labels = schema::labels_of(&status, &self.o);
        let equal = self.shared.read(|c| {
            c.pod(&me.0)
                .filter(|p| labels_match(&p.labels, &labels) && schema::same_status(&p.member.raw, &text))
                .map(|p| Version(p.version.clone()))
        });
        if let Some(version) = equal {
            return WriteResult::Written(version);
        }
        let body = json!({"metadata": {
            "namespace": self.o.namespace, "name": me.0, "labels": labels, "annotations": schema::status_patch(text),
        }});
        match self.api.patch_pod(&me.0, &body, self.limit()).await {
            Ok(pod) => {
                let version = Version(pod.metadata.resource_version.clone());
                self.shared.update(|cache, _| cache.put_pod(pod));
                WriteResult::Written(version)
            }
            Err(ApiError::Unsure(why)) => WriteResult::Unknown(why),
            Err(ApiError::Conflict(_)) => WriteResult::Conflict,
            Err(e) => WriteResult::Refused(e.text()),
        }
    }

    /// Endpoints mode: a Service keeps the control plane from collecting the `-config` Endpoints (kubernetes-objects
    /// §4.6). Tried once; again at the next write if it failed in a way that may pass.
    async fn create_service(&self) {
        if self.o.mode != Mode::Endpoints || self.service_done.load(Ordering::Relaxed) {
            return;
        }
        let body = json!({
            "metadata": {"namespace": self.o.namespace, "name": self.names.config, "labels": self.labels},
            "spec": {"clusterIP": "None"},
        });
        match self.api.create_service(&body, self.limit()).await {
            Ok(()) | Err(ApiError::Conflict(_) | ApiError::Forbidden(_)) => {
                self.service_done.store(true, Ordering::Relaxed)
            }
            Err(e) => {
                tracing::warn!(service = %self.names.config, error = %e.text(), "cannot create the headless Service; trying again later")
            }
        }
    }

    pub(super) async fn do_strip_leader_label(&self) -> Vec<MemberName> {
        let leader_values = [&self.o.leader_label_value, &self.o.standby_leader_label_value];
        let me = self.o.member.as_ref().map(|m| m.0.as_str());
        let wearing: Vec<(String, String)> = self.shared.read(|c| {
            c.pods()
                .filter(|(name, p)| {
                    Some(name.as_str()) != me
                        && p.member.role_label.as_ref().is_some_and(|v| leader_values.contains(&v))
                })
                .map(|(name, p)| (name.clone(), p.version.clone()))
                .collect()
        });
        let strips = wearing.into_iter().map(|(name, version)| async move {
            let mut labels = Map::from_iter([(self.o.role_label.clone(), Value::Null)]);
            if let Some(tmp) = &self.o.tmp_role_label {
                labels.insert(tmp.clone(), Value::Null);
            }
            // Conditional: whatever that pod says of itself in the meantime is newer than our view.
            let body = json!({"metadata": {"name": name, "namespace": self.o.namespace, "labels": labels, "resourceVersion": version}});
            match self.api.patch_pod(&name, &body, self.limit()).await {
                Ok(pod) => {
                    self.shared.update(|cache, _| cache.put_pod(pod));
                    Some(MemberName(name))
                }
                Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => None,
                Err(e) => {
                    tracing::warn!(pod = %name, error = %e.text(), "cannot remove the leader label from a pod that is not the leader");
                    None
                }
            }
        });
        join_all(strips).await.into_iter().flatten().collect()
    }
}

/// Does the object show exactly what the patch wanted?
fn stands(seen: &KindEntry, patch: &Patch) -> bool {
    patch.iter().all(|(key, wanted)| seen.annotations.get(key).map(String::as_str) == wanted.as_str())
}

fn labels_match(there: &std::collections::BTreeMap<String, String>, wanted: &Labels) -> bool {
    wanted.iter().all(|(label, value)| there.get(label) == value.as_ref())
}
