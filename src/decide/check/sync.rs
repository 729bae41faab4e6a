//! What the sync key allows, judged from what is known and by arithmetic of its own.

use super::Raw;
use crate::model::{Commits, Electorate, MemberName, PeerAnswer, StandbyNames, Upstream};

impl Raw<'_> {
    /// The sync key, read since the lock became free, names me, or a person takes the loss.
    pub(super) fn allowed(&self) -> Option<&'static str> {
        if self.local.bootstrapping {
            return None;
        }
        if self.local.sync_read.is_none_or(|at| at < self.local.lease.since) {
            return Some("leading by a sync key that was not read since the lock became free");
        }
        if self.outvoted() {
            return Some("leading without the votes that the sync key asks for");
        }
        self.outsider().then_some("leading although the sync key does not name me")
    }

    fn outsider(&self) -> bool {
        let me = &self.local.me;
        let Some(record) = self.cluster.sync.as_ref().filter(|r| r.leader.is_some()) else { return false };
        let named = record.leader.iter().chain(&record.standbys).any(|n| n.is(me));
        !named && !self.names_me()
    }

    /// In quorum mode any so many voters and one more have everything: as many as that are not ahead of me.
    fn outvoted(&self) -> bool {
        let Some(record) = self.cluster.sync.as_ref().filter(|r| r.leader.is_some() && r.quorum > 0) else {
            return false;
        };
        let leads = record.leader.as_ref().is_some_and(|n| n.is(&self.local.me));
        if leads || self.names_me() || self.has_all_of_a_release() {
            return false;
        }
        let mine = self.local.postgres.probe.as_ref().map(|p| (p.timeline, p.position));
        let answers = || self.local.peers.iter().flat_map(|round| &round.answers);
        let not_ahead = |voter: &MemberName| {
            voter.is(&self.local.me)
                || answers().any(|(name, a)| match a {
                    PeerAnswer::Fit { timeline, position, .. } => {
                        name.is(voter) && Some((*timeline, *position)) <= mine
                    }
                    PeerAnswer::Unfit { .. } | PeerAnswer::Down { .. } | PeerAnswer::Unreachable(_) => false,
                })
        };
        let votes = record.standbys.iter().filter(|voter| not_ahead(voter)).count();
        votes <= usize::try_from(record.quorum).unwrap_or(usize::MAX)
    }

    /// The holder gave the lock up after a clean stop, and what it had then is here.
    fn has_all_of_a_release(&self) -> bool {
        let oath = self.cluster.leader.as_ref().and_then(|l| l.oath()).filter(|_| self.local.lease.released);
        let probe = self.local.postgres.probe.as_ref();
        oath.zip(probe).is_some_and(|(oath, p)| p.timeline >= oath.timeline && p.position >= oath.position)
    }

    /// A writer begins: the key says that I lead, as this process has written it under this lock, and its first commit waits
    /// for everybody in the key.
    pub(super) fn waits_for(&self, names: &StandbyNames) -> Option<&'static str> {
        let binds = self.cluster.sync.as_ref().is_some_and(|r| r.leader.is_some());
        let off = self.settings.synchronous.mode == Commits::Asynchronous;
        if self.local.bootstrapping || off && !binds {
            return None;
        }
        let since = self.local.own.as_ref().and_then(|own| own.record.acquire_time.as_ref());
        let leads = self.cluster.sync.as_ref().is_some_and(|r| r.leader.as_ref() == Some(&self.local.me));
        if !leads || since.is_none() || self.local.sync.since.as_ref() != since {
            return Some("a writer whose sync key may name others");
        }
        self.narrower(names)
    }

    /// Of those in the key, or in one that may land, as many are waited for as it says have each commit.
    pub(super) fn narrower(&self, names: &StandbyNames) -> Option<&'static str> {
        let record = self.cluster.sync.as_ref().filter(|r| r.leader.as_ref() == Some(&self.local.me))?;
        let sent = self.local.sync.unsure.iter().filter(|w| w.expect.as_ref() == Some(&record.version));
        let mut keys = std::iter::once(record.electorate()).chain(sent.map(|w| w.electorate.clone()));
        keys.any(|key| falls_short(names, &key))
            .then_some("no longer waiting for a standby that the sync key vouches for")
    }

    /// The key of who led before me, with that one in my place: both of us have every commit that is promised.
    fn carried_over(&self) -> Option<Electorate> {
        let record = self.cluster.sync.as_ref().filter(|_| self.settings.synchronous.mode == Commits::Quorum)?;
        let before = record.leader.as_ref().filter(|_| !self.names_me())?;
        let mut key = record.electorate();
        let voted = key.voters.iter().any(|name| *name == self.local.me);
        key.voters.retain(|name| *name != self.local.me);
        (voted && key.voters.insert(before.clone())).then_some(key)
    }

    /// The WAL of another cluster comes: no promise of this one is worth anything any more.
    fn arrived(&self) -> bool {
        let pg = &self.local.postgres;
        let remote = matches!(pg.following, Some(Upstream::Remote { .. }));
        let grown =
            pg.probe.as_ref().zip(self.local.arrives_from).is_some_and(|(p, from)| p.in_recovery && p.position > from);
        self.settings.standby_of.is_some() && remote && grown
    }

    /// The key promises only what is known of its voters.
    pub(super) fn vouch(&self, leader: Option<&MemberName>, next: &Electorate) -> Option<&'static str> {
        if self.local.own.is_none() {
            return Some("writing the sync key without the lock");
        }
        if leader.is_none() && self.arrived() {
            return None;
        }
        if self.outsider() && !self.local.bootstrapping {
            return Some("taking the sync key although it does not name me");
        }
        if leader.is_none() {
            let on = self.settings.synchronous.mode != Commits::Asynchronous;
            return (on || !next.voters.is_empty()).then_some("a sync key that binds nobody, in synchronous mode");
        }
        if next.quorum > 0 && next.quorum >= next.voters.len() {
            return Some("a sync key that nobody could lead by");
        }
        let mine = self.cluster.sync.as_ref().filter(|r| r.leader.as_ref() == Some(&self.local.me));
        let stood = mine.map(|r| r.electorate()).or_else(|| self.carried_over()).unwrap_or_default();
        // Voters that are not known to have a commit: at most as many as the key of now allows, of those that stay.
        let sure = |name: &&MemberName| self.local.sync.is_sure(name);
        let doubtful = next.voters.iter().filter(|name| !sure(name));
        let (stay, come): (Vec<_>, Vec<_>) = doubtful.partition(|name| stood.voters.contains(*name));
        let lacks = stay.len().min(stood.quorum) + come.len();
        if lacks > next.quorum {
            return Some("vouching for a standby that may lack a commit");
        }
        let gone = stood.voters.difference(&next.voters).count();
        let says_less = next.voters.len() + gone + stood.quorum <= next.quorum + stood.voters.len();
        let names = self.local.sync.named.as_ref().unwrap_or(&StandbyNames::AsConfigured);
        (!says_less && !next.voters.is_empty() && falls_short(names, next))
            .then_some("vouching for standbys that commits do not wait for")
    }
}

/// Commits that wait for these may be with fewer of the voters than the key says. The worst case: those that acknowledge are, as
/// far as possible, no voters.
fn falls_short(names: &StandbyNames, key: &Electorate) -> bool {
    let (number, of) = match names {
        StandbyNames::Placeholder => return false,
        StandbyNames::All(of) => (of.len(), Some(of)),
        StandbyNames::Any(waited) => (waited.number, Some(&waited.names)),
        StandbyNames::AsConfigured => (0, None),
    };
    let strangers = of.map_or(0, |of| of.iter().filter(|name| !key.voters.contains(*name)).count());
    key.voters.len() > key.quorum + number.saturating_sub(strangers)
}
