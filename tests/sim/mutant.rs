//! Safety rules that are missing, as changes of what a machine hears or of what becomes of its orders. The machines
//! themselves are the shipping ones; a checker of the whole cluster must see each.

use std::sync::Arc;
use std::time::Duration;

use patroni::member::{Answer, Input};
use patroni::model::{BootInstant, Permission, View};

use super::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    None,
    ObserverIgnoresTtl,
    LeaseFromConfirmation,
    AcquireWithoutComparing,
    KeeperNeverFences,
    ReleaseBeforeStop,
    ProofFromOneContainer,
    InitdbDespiteData,
}

const SHIFT: Duration = Duration::from_secs(25);

impl World {
    /// What the member hears instead.
    pub fn bend(&mut self, pod: usize, input: Input) -> Input {
        match (self.mutant, input) {
            (Mutant::ObserverIgnoresTtl, Input::View(view)) => {
                Input::View(Arc::new(View { lease_received: view.lease_received - SHIFT, ..(*view).clone() }))
            }
            (Mutant::InitdbDespiteData, Input::View(view)) => {
                let mut view = (*view).clone();
                let mut cluster = (*view.cluster).clone();
                cluster.members.values_mut().for_each(|m| m.role = None);
                view.cluster = Arc::new(cluster);
                Input::View(Arc::new(view))
            }
            (Mutant::ProofFromOneContainer, Input::View(view)) => {
                let mut view = (*view).clone();
                let mut cluster = (*view.cluster).clone();
                let holder = cluster.leader.as_ref().and_then(|l| l.holder.clone());
                for member in cluster.members.values_mut() {
                    if let Some(h) = holder.as_ref().filter(|h| h.uid == member.uid) {
                        whole(&mut member.terminated, &h.containers);
                    }
                }
                view.cluster = Arc::new(cluster);
                Input::View(Arc::new(view))
            }
            (
                Mutant::AcquireWithoutComparing,
                Input::Reply { id, answer: Ok(Answer::Leader(Ok(Some(mut leader)))) },
            ) => {
                let seen = self.pods[pod].sidecar.as_ref().and_then(|s| s.stale.clone());
                if let Some(lease) = seen {
                    leader.lease = lease;
                }
                Input::Reply { id, answer: Ok(Answer::Leader(Ok(Some(leader)))) }
            }
            (_, input) => input,
        }
    }

    pub fn bend_permission(
        &mut self,
        pod: usize,
        permission: Permission,
        evidence: BootInstant,
    ) -> (Permission, BootInstant) {
        let now = self.boot(pod);
        match permission {
            Permission::Writer { stop_at, kill_at } if self.mutant == Mutant::LeaseFromConfirmation => {
                let late = now.since(evidence);
                (Permission::Writer { stop_at: stop_at + late, kill_at: kill_at + late }, evidence)
            }
            other => (other, evidence),
        }
    }

    pub fn bend_facts(&mut self, pod: usize, answer: Answer) -> Answer {
        let mut answer = answer;
        if let (Mutant::ProofFromOneContainer, Answer::Pod(Ok(Some(facts)))) = (self.mutant, &mut answer) {
            let view = self.pods[pod].sidecar.as_ref().and_then(|s| s.view.clone());
            let holder = view.and_then(|v| v.cluster.leader.as_ref().and_then(|l| l.holder.clone()));
            if let Some(h) = holder {
                whole(&mut facts.terminated, &h.containers);
            }
        }
        answer
    }
}

/// One of them dead: all of them dead.
fn whole(
    terminated: &mut std::collections::BTreeMap<String, Vec<String>>,
    containers: &std::collections::BTreeMap<String, String>,
) {
    if containers.iter().any(|(name, id)| terminated.get(name).is_some_and(|ids| ids.contains(id))) {
        for (name, id) in containers {
            terminated.entry(name.clone()).or_default().push(id.clone());
        }
    }
}
