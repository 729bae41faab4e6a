//! Every write that is not the lease: initialize, configuration, history, requests, the own pod, other pods' labels.
//!
//! Each is sent once. Without a clear answer the object is read again: what was written stands → written; the object is
//! still the one expected → unknown, it may land later; anything else → conflict. The caller decides anew in each case.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;

use super::answer::write_result;
use super::kube::{KubeStore, Mode};
use super::request::{Object, Request, Sent};
use super::{Failure, MemberStatus, WriteResult};
use crate::model::{MemberName, StoreWrite};

impl KubeStore {
    /// Writes into the config or the failover object: conditional on a version, or creating it.
    pub(super) async fn write_store(&self, write: StoreWrite) -> WriteResult {
        let (limit, began) = (self.limit(), tokio::time::Instant::now());
        let object = Object::of(&write);
        let sent = match self.shared.with(|desk| desk.encode(Request::Write(write))) {
            Ok(sent) => sent,
            Err(failure) => return write_result(Err(failure)),
        };
        match self.carry(&sent, limit).await {
            Err(Failure::Conflict(_) | Failure::NotFound(_) | Failure::Gone) => {
                self.after_conflict(object, &sent).await
            }
            Err(Failure::Unsure(why)) => {
                // At least a second, so that a write that used up its time can still be looked up.
                let left = limit.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
                match self.fresh(object, left).await {
                    Ok(Some(seen)) if sent.stands(&seen) => WriteResult::Written(seen.version),
                    Ok(seen) if seen.as_ref().map(|s| &s.version) == sent.expected() => WriteResult::Unknown(why),
                    Ok(_) => WriteResult::Conflict,
                    Err(_) => WriteResult::Unknown(why),
                }
            }
            answer @ (Ok(_) | Err(Failure::Forbidden(_) | Failure::Refused(_))) => write_result(answer),
        }
    }

    /// Brings the present object into the view. One that exists without our labels (made by somebody else) was invisible
    /// to us: it gets them, so that the next decision sees it.
    async fn after_conflict(&self, object: Object, sent: &Sent) -> WriteResult {
        let creating = sent.expected().is_none();
        match self.fresh(object, self.limit()).await {
            Ok(Some(seen)) if creating && !seen.labelled => {
                if let Err(e) = self.ask(Request::PutLabels(object, seen.version), self.limit()).await {
                    tracing::warn!(?object, error = %e.text(), "cannot put our labels on an object made by somebody else");
                }
                WriteResult::Conflict
            }
            Ok(Some(seen)) if creating && sent.stands(&seen) => WriteResult::Written(seen.version),
            Ok(_) => WriteResult::Conflict,
            Err(e) => WriteResult::Unknown(e.text()),
        }
    }

    pub(super) async fn do_publish_member(&self, status: MemberStatus) -> WriteResult {
        self.create_service().await;
        if let Some(version) = self.shared.with(|desk| desk.already_published(&status)) {
            return WriteResult::Written(version);
        }
        match self.ask(Request::Publish(status), self.limit()).await {
            Err(e @ (Failure::NotFound(_) | Failure::Gone)) => WriteResult::Refused(e.text()),
            answer => write_result(answer),
        }
    }

    /// Endpoints mode: Services keep the control plane from collecting the Endpoints that hold the configuration and the sync
    /// key, which would take a promise away. Tried once; again at the next write if it failed in a way that may pass.
    pub(super) async fn create_service(&self) {
        if self.o.member.is_none() || self.o.mode != Mode::Endpoints || self.service_done.load(Ordering::Relaxed) {
            return;
        }
        for object in [Object::Config, Object::Sync] {
            match self.ask(Request::CreateService(object), self.limit()).await {
                Ok(_) | Err(Failure::Conflict(_) | Failure::Forbidden(_)) => {}
                Err(e) => {
                    return tracing::warn!(error = %e.text(), "cannot create a headless Service; trying again later");
                }
            }
        }
        self.service_done.store(true, Ordering::Relaxed);
    }

    pub(super) async fn do_strip_leader_label(&self) -> Vec<MemberName> {
        let strips = self.shared.with(|desk| desk.strips()).into_iter().map(|(pod, request)| async move {
            match self.ask(request, self.limit()).await {
                Ok(_) => Some(pod),
                Err(Failure::Conflict(_) | Failure::NotFound(_)) => None,
                Err(e) => {
                    tracing::warn!(%pod, error = %e.text(), "cannot remove the leader label from a pod that is not the leader");
                    None
                }
            }
        });
        join_all(strips).await.into_iter().flatten().collect()
    }
}
