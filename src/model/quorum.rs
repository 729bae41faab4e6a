//! The counting rules of synchronous replication: what the sync key promises, whom Postgres waits for, and in which order the
//! two are changed.
//!
//! The key names **voters** and a **quorum**: of the voters, any `quorum + 1` together have every commit that was acknowledged.
//! In other words, all but `quorum` of the voters have each of them: so many *must hold* it. Postgres waits for a **number** of
//! the standbys that it names. With quorum 0 and a number that is everybody, this is `synchronous_mode: on`.
//!
//! Two rules keep the key true, whatever happens in between:
//! * **Names** are changed only so that every commit reaches as many voters as must hold it, by every key that stands or may
//!   still land.
//! * **The key** may always be *weakened*: fewer must hold a commit, by one more for every voter that goes. It is
//!   *strengthened* only while the names it counts on are in force, and by as many as are seen to have what was acknowledged
//!   before they were.

use std::collections::BTreeSet;

use super::MemberName;
use crate::mutant::{self, Mutant};

/// What the sync key promises about those who may lead in the holder's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    /// Who may lead.
    pub voters: BTreeSet<MemberName>,
    /// Any so many of them and one more have every commit.
    pub quorum: usize,
}

impl Electorate {
    /// So many of the voters have each commit that was acknowledged.
    pub fn must_hold(&self) -> usize {
        self.voters.len().saturating_sub(self.quorum)
    }

    /// Of these voters so many must hold each commit; nobody votes where nobody must.
    fn of(voters: BTreeSet<MemberName>, must_hold: usize) -> Electorate {
        if must_hold == 0 {
            return Electorate::default();
        }
        let quorum = voters.len().saturating_sub(must_hold);
        Electorate { voters, quorum }
    }

    /// Of other voters, so many hold each commit that is held as this key says: every voter that goes may be one that holds.
    fn held_among(&self, voters: &BTreeSet<MemberName>) -> usize {
        self.must_hold().saturating_sub(self.voters.difference(voters).count())
    }
}

/// Whom a commit waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// So many of the named.
    pub number: usize,
    /// The named.
    pub names: BTreeSet<MemberName>,
}

impl Waited {
    /// Of these voters, so many have a commit once it is acknowledged.
    fn held_among(&self, voters: &BTreeSet<MemberName>) -> usize {
        self.number.saturating_sub(self.names.difference(voters).count())
    }

    /// Every commit reaches as many as this key says.
    pub fn suffices(&self, key: &Electorate) -> bool {
        key.must_hold() <= self.held_among(&key.voters)
    }
}

/// What stands.
#[derive(Clone, Debug)]
pub struct Standing<'a> {
    /// The key, as it is shown.
    pub key: &'a Electorate,
    /// Keys that may still land.
    pub unsure: &'a [Electorate],
    /// Postgres was told to wait for exactly what is wanted.
    pub told: bool,
    /// Of those that are named now, and are in force: who has everything that was acknowledged before they were.
    pub sure: &'a BTreeSet<MemberName>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the key.
    Key(Electorate),
    /// Tell Postgres.
    Names(Waited),
    /// Wait until more is seen of the standbys.
    Wait,
    /// Everything is as it should be.
    Nothing,
}

/// One step towards commits that wait for `wanted`; `majority`: any `number` of them and one more may fail, and whoever has
/// votes leads; else all of them are waited for, and each of them may lead.
pub fn step(standing: &Standing<'_>, wanted: &Waited, majority: bool) -> Step {
    let keys = || std::iter::once(standing.key).chain(standing.unsure);
    if !standing.told {
        if keys().all(|key| wanted.suffices(key)) || mutant::is(Mutant::NamesGoBeforeTheKey) {
            return Step::Names(wanted.clone());
        }
        if !wanted.suffices(standing.key) {
            return Step::Key(weaker(standing.key, wanted));
        }
    }
    if !standing.unsure.is_empty() {
        // One of them may stand instead: written again, what stands is known.
        return Step::Key(standing.key.clone());
    }
    let Some(next) = stronger(standing, wanted, majority) else { return Step::Wait };
    if next != *standing.key {
        return Step::Key(next);
    }
    let whole = next.voters == wanted.names && next.must_hold() == wanted.number;
    if whole { Step::Nothing } else { Step::Wait }
}

/// A key that says less, and that the wanted names keep: as many voters as can be.
fn weaker(stands: &Electorate, wanted: &Waited) -> Electorate {
    let stay: BTreeSet<MemberName> = stands.voters.intersection(&wanted.names).cloned().collect();
    [&wanted.names, &stay, &stands.voters]
        .into_iter()
        .map(|voters| {
            let held = stands.held_among(voters).min(wanted.held_among(voters));
            Electorate::of(voters.clone(), held)
        })
        .find(|key| key.must_hold() > 0)
        .unwrap_or_default()
}

/// The most that the key can say now. `None`: it stays as it is.
fn stronger(standing: &Standing<'_>, wanted: &Waited, majority: bool) -> Option<Electorate> {
    let key = standing.key;
    if wanted.names.is_empty() {
        return Some(Electorate::default());
    }
    if !majority {
        // Whoever leads alone has everything: by the key that stands, or as was seen.
        let by_key = |name: &&MemberName| key.quorum == 0 && key.voters.contains(*name);
        let voters = wanted.names.iter().filter(|name| by_key(name) || standing.sure.contains(*name));
        let voters: BTreeSet<MemberName> = voters.cloned().collect();
        let held = voters.len();
        return (held > 0).then(|| Electorate::of(voters, held));
    }
    // Those that are sure hold everything. Of the voters that are not, some more do, as the key says.
    let sure = standing.sure.intersection(&wanted.names).count();
    let both = standing.sure.iter().filter(|name| key.voters.contains(*name) && wanted.names.contains(*name)).count();
    let held = sure + key.held_among(&wanted.names).saturating_sub(both);
    let next = Electorate::of(wanted.names.clone(), held.min(wanted.number));
    // Never less than what stands, once these are the voters.
    let worse = key.voters == next.voters && next.must_hold() < key.must_hold();
    (next.must_hold() > 0 && !worse).then_some(next)
}

#[cfg(test)]
#[path = "quorum_tests.rs"]
mod tests;
