//! Failsafe mode: the holder of the lock goes on without the store while every other member that could race for the lock
//! has promised that it will not.
//!
//! Whom that takes is what the holder has written beside its lock: the map that is confirmed, and every map that was sent
//! since and may have landed.

use std::collections::BTreeMap;

use super::{BootInstant, MemberName};

/// A member that could race for the lock, as its holder sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Address of its REST API.
    pub url: String,
    /// UID of its pod: another one that has its address by now has promised nothing.
    pub uid: String,
}

/// Member → how it is asked. Its address is written beside the lock.
pub type FailsafeMap = BTreeMap<MemberName, Listed>;

/// Who is asked: member and UID of its pod. The address is where.
pub type Asked = BTreeMap<(MemberName, String), String>;

/// A promise not to race for the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Whose lock it is.
    pub to: MemberName,
    /// Until then.
    pub until: BootInstant,
}

/// What the holder of the lock needs to go on without the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failsafe {
    /// Maps that were sent, and when; once one is confirmed, it is the first.
    sent: Vec<(BootInstant, FailsafeMap)>,
    confirmed: bool,
    /// A round of questions is out since.
    pub asking: Option<BootInstant>,
    /// When the last round began that came to nothing.
    pub failed: Option<BootInstant>,
}

impl Failsafe {
    /// A map goes out with a write of the lock.
    pub fn sends(&mut self, at: BootInstant, map: FailsafeMap) {
        if self.sent.last().is_none_or(|(_, last)| *last != map) {
            self.sent.push((at, map));
        }
    }

    /// The write that was sent then is confirmed: what was written before it is over.
    pub fn confirmed(&mut self, at: BootInstant) {
        if let Some(last) = self.sent.iter().rposition(|(sent, _)| *sent <= at) {
            self.sent.drain(..last);
            self.confirmed = true;
        }
    }

    /// The mode is off, or the lock is not mine.
    pub fn forget(&mut self) {
        *self = Failsafe::default();
    }

    /// Who has to promise, each where it was seen last. `None`: nothing that stands in the store says who could race.
    pub fn whom(&self, me: &MemberName) -> Option<Asked> {
        self.confirmed.then(|| {
            let all = self.sent.iter().flat_map(|(_, map)| map).filter(|(name, _)| *name != me);
            all.map(|(name, listed)| ((name.clone(), listed.uid.clone()), listed.url.clone())).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(names: &[&str]) -> FailsafeMap {
        let listed = |name: &str| Listed { url: format!("http://{name}:8008/patroni"), uid: format!("uid-{name}") };
        names.iter().map(|name| (MemberName::from(*name), listed(name))).collect()
    }

    #[test]
    fn every_map_counts_that_stands_or_may_stand() {
        let at = |s: u64| BootInstant::from_nanos(s * 1_000_000_000);
        let me = MemberName::from("a");
        let names = |f: &Failsafe| f.whom(&me).map(|map| map.into_keys().map(|n| n.0.0).collect::<Vec<_>>().join(","));
        let mut f = Failsafe::default();
        f.sends(at(10), map(&["a", "b"]));
        assert_eq!(names(&f), None, "nothing is confirmed");
        f.confirmed(at(10));
        f.sends(at(20), map(&["a", "b", "c"]));
        assert_eq!(names(&f).as_deref(), Some("b,c"), "it may have landed");
        f.sends(at(30), map(&["a", "c"]));
        f.confirmed(at(31));
        assert_eq!(names(&f).as_deref(), Some("c"));
        let mut anew = map(&["a", "c"]);
        anew.get_mut(&MemberName::from("c")).unwrap().uid = "uid-of-another-pod".into();
        f.sends(at(40), anew.clone());
        assert_eq!(names(&f).as_deref(), Some("c,c"), "the one of before may still race");
        for _ in 0..100 {
            f.sends(at(50), anew.clone());
        }
        assert_eq!(f.sent.len(), 2, "an outage does not let it grow");
        f.confirmed(at(45));
        assert_eq!(names(&f).as_deref(), Some("c"), "the first of the same maps has landed");
        f.forget();
        assert_eq!(names(&f), None);
    }
}
