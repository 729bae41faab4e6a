//! The proof that a silent holder is dead: two fresh reads, its pod and then its record, each judged as it comes.

use std::collections::BTreeMap;

use super::super::effect::Effect;
use super::super::flights::{About, Lane};
use super::super::input::{Answer, Fail};
use super::super::state::State;
use crate::model::{DeathProof, MemberName, PodFacts, ProofOfDeath};
use crate::mutant::{self, Mutant};

impl State {
    /// The first of the two fresh reads of a proof of death: the pod.
    pub(super) fn pod_read(&mut self, answer: Result<Answer, Fail>) {
        let Some(wanted) = self.local.proof_wanted.clone() else { return self.proof_over() };
        let seen = match answer {
            Ok(Answer::Pod(Ok(seen))) => seen,
            Ok(Answer::Pod(Err(e))) => {
                self.warn(format!("could not look whether the holder of the leader lock is dead: {}", e.text()));
                return self.proof_over();
            }
            Ok(_) | Err(_) => return self.proof_over(),
        };
        let proofs = &self.in_force.settings.proofs;
        let how = how_it_died(seen.as_ref(), &wanted.uid, &wanted.pod, &wanted.containers, |p| proofs.contains(&p));
        match how {
            Some(how) => {
                self.send_in(Lane::Proof, Effect::ReadLeader, About::ProofLeader { how });
            }
            None => {
                self.debug("no proof that the holder of the leader lock is dead");
                self.proof_over();
            }
        }
    }

    /// The second: the record and its holder mark still stand.
    pub(super) fn proof_read(&mut self, how: String, answer: Result<Answer, Fail>) {
        let wanted = self.local.proof_wanted.clone();
        self.proof_over();
        let (Some(wanted), Ok(Answer::Leader(Ok(Some(leader))))) = (wanted, answer) else { return };
        let same = leader.lease == wanted.record
            && leader.valid_holder().is_some_and(|h| h.uid == wanted.uid && h.containers == wanted.containers);
        if same {
            self.info(format!("the holder of the leader lock is dead: {how}"));
            // Whatever it said when it was heard of last.
            if self.local.lease.record.as_ref() == Some(&wanted.record) {
                self.local.lease.forget_mark();
            }
            self.local.death_proof = Some(DeathProof { record: wanted.record, version: leader.version.clone(), how });
        }
    }

    fn proof_over(&mut self) {
        self.local.proving = false;
        self.local.proof_wanted = None;
        self.local.proof_tried = Some(self.now.boot);
    }
}

/// How the incarnation that wrote a record died, if this fresh read of its pod says so. Phase, conditions, deletion
/// timestamps, restart counts and connection errors prove nothing; a mark without UID was written before its writer knew its
/// pod, so "another UID" would prove nothing either.
fn how_it_died(
    seen: Option<&PodFacts>,
    uid: &str,
    pod: &MemberName,
    containers: &BTreeMap<String, String>,
    accepts: impl Fn(ProofOfDeath) -> bool,
) -> Option<String> {
    if uid.is_empty() {
        return None;
    }
    let deleted = accepts(ProofOfDeath::Deleted);
    match seen {
        None => deleted.then(|| format!("pod {pod} with UID {uid} is gone")),
        Some(p) if p.uid != uid => {
            deleted.then(|| format!("pod {pod} with UID {uid} is gone, another one has its name"))
        }
        Some(p) => {
            // Exactly the counted containers of the pod are named, and each with an ID that is reported terminated.
            let all = !containers.is_empty()
                && p.terminated.len() == containers.len()
                && containers
                    .iter()
                    .filter(|(name, id)| p.terminated.get(*name).is_some_and(|ids| ids.contains(id)))
                    .count()
                    >= if mutant::is(Mutant::OneContainerIsAll) { 1 } else { containers.len() };
            (all && accepts(ProofOfDeath::Terminated)).then(|| {
                let names = containers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                format!("every container of pod {pod} (UID {uid}) is terminated: {names}")
            })
        }
    }
}
