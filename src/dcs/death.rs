//! Proof that the incarnation that wrote a record is dead (design §5).
//!
//! Two fresh reads in this order: the pod (every counted container with the very ID the record names is reported
//! terminated by the kubelet, or, opt-in, the pod of that UID is gone), then the leader object (the record and its holder
//! mark still stand). Phase, conditions, deletion timestamps, restart counts and connection errors prove nothing.

use std::collections::BTreeMap;

use super::DcsError;
use super::client::ApiError;
use super::kube::KubeStore;
use super::objects::Pod;
use super::schema;
use crate::model::{DeathProof, LeaseRecord, MemberName, ProofOfDeath, Version};

impl KubeStore {
    pub(super) async fn look_for_death(
        &self,
        record: LeaseRecord,
        uid: String,
        pod: MemberName,
        containers: BTreeMap<String, String>,
    ) -> Result<Option<DeathProof>, DcsError> {
        // A mark without UID was written before its writer knew its pod: "another UID" would prove nothing.
        if uid.is_empty() || record.leader.as_ref() != Some(&pod) {
            return Ok(None);
        }
        let limit = self.shared.periods().retry_timeout;
        let seen = self.api.get_pod(&pod.0, limit).await.map_err(ApiError::into_dcs)?;
        let how = self.how_it_died(seen.as_ref(), &uid, &pod, &containers);
        if let Some(seen) = seen {
            self.shared.update(|cache, _| cache.put_pod(seen));
        }
        let Some(how) = how else { return Ok(None) };
        let entry = self.fresh(&self.names.leader, limit).await.map_err(ApiError::into_dcs)?;
        let Some(entry) = entry else { return Ok(None) };
        let leader = schema::leader_from(&entry.version, &entry.annotations, Vec::new(), &mut Vec::new());
        let same =
            leader.lease == record && leader.valid_holder().is_some_and(|h| h.uid == uid && h.containers == containers);
        Ok(same.then_some(DeathProof { record, version: Version(entry.version), how }))
    }

    fn how_it_died(
        &self,
        seen: Option<&Pod>,
        uid: &str,
        pod: &MemberName,
        containers: &BTreeMap<String, String>,
    ) -> Option<String> {
        let deleted = self.o.proofs.contains(&ProofOfDeath::Deleted);
        match seen {
            None => deleted.then(|| format!("pod {pod} with UID {uid} is gone")),
            Some(p) if p.metadata.uid.as_deref() != Some(uid) => {
                deleted.then(|| format!("pod {pod} with UID {uid} is gone, another one has its name"))
            }
            Some(p) => {
                let proven = self.o.proofs.contains(&ProofOfDeath::Terminated) && all_terminated(p, containers);
                proven.then(|| {
                    let names = containers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                    format!("every container of pod {pod} (UID {uid}) is terminated: {names}")
                })
            }
        }
    }
}

/// Exactly the counted containers of the pod are named, and each with an ID that is reported terminated.
fn all_terminated(pod: &Pod, containers: &BTreeMap<String, String>) -> bool {
    let terminated = pod.terminated();
    !containers.is_empty()
        && terminated.len() == containers.len()
        && containers.iter().all(|(name, id)| terminated.get(name).is_some_and(|ids| ids.contains(id)))
}
