//! Every way from every state, for few members: one commit is watched, whichever standbys acknowledge it.

use std::collections::{HashSet, VecDeque};

use super::*;

type Set = BTreeSet<MemberName>;

fn subsets(n: usize) -> Vec<Set> {
    let name = |i: usize| MemberName(["b", "c", "d", "e", "f"][i].to_owned());
    (0..1 << n).map(|bits: usize| (0..n).filter(|i| bits >> i & 1 == 1).map(name).collect()).collect()
}

/// Everything that decides what may happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    key: (Set, usize),
    unsure: Option<(Set, usize)>,
    /// What Postgres was told last.
    told: (Set, usize),
    /// What some walsender may still go by.
    lingers: Option<(Set, usize)>,
    sure: Set,
    /// Who has the commit that is watched, and whether it was acknowledged before the present names were in force.
    commit: Option<(Set, bool)>,
}

fn key((voters, quorum): &(Set, usize)) -> Electorate {
    Electorate { voters: voters.clone(), quorum: *quorum }
}
fn waited((names, number): &(Set, usize)) -> Waited {
    Waited { number: *number, names: names.clone() }
}

impl State {
    fn first() -> State {
        let nobody = (Set::new(), 0);
        State { key: nobody.clone(), unsure: None, told: nobody, lingers: None, sure: Set::new(), commit: None }
    }

    fn step(&self, wanted: &Waited, majority: bool) -> Step {
        let (stands, unsure) = (key(&self.key), self.unsure.as_ref().map(key));
        let told = waited(&self.told) == *wanted;
        step(&Standing { key: &stands, unsure: unsure.as_slice(), told, sure: &self.sure }, wanted, majority)
    }

    fn holds(&self) -> bool {
        let Some((holders, _)) = &self.commit else { return true };
        [Some(&self.key), self.unsure.as_ref()].into_iter().flatten().map(key).all(|key| {
            let lack = key.voters.difference(holders).count();
            key.voters.is_empty() || lack <= key.quorum
        })
    }

    /// Whatever may happen beside a step.
    fn world(&self) -> Vec<State> {
        let mut next = Vec::new();
        if self.lingers.is_some() {
            let commit = self.commit.as_ref().map(|(holders, _)| (holders.clone(), true));
            next.push(State { lingers: None, commit, ..self.clone() });
        } else {
            for name in self.told.0.difference(&self.sure) {
                let mut grown = self.clone();
                grown.sure.insert(name.clone());
                if let Some((holders, true)) = &mut grown.commit {
                    holders.insert(name.clone());
                }
                next.push(grown);
            }
        }
        if let Some(landed) = &self.unsure {
            next.push(State { key: landed.clone(), unsure: None, ..self.clone() });
        }
        if self.commit.is_none() {
            for (names, number) in [Some(&self.told), self.lingers.as_ref()].into_iter().flatten() {
                let enough = subsets(5).into_iter().filter(|s| s.is_subset(names) && s.len() == *number);
                next.extend(enough.map(|holders| State { commit: Some((holders, false)), ..self.clone() }));
            }
        }
        next
    }

    /// What the step makes of it. A write of the key may be answered, or not.
    fn after(&self, step: &Step, doubts: bool) -> Vec<State> {
        match step {
            Step::Key(key) => {
                let key = (key.voters.clone(), key.quorum);
                let landed = State { key: key.clone(), unsure: None, ..self.clone() };
                let doubt = State { unsure: Some(key), ..self.clone() };
                if doubts && self.unsure.is_none() { vec![landed, doubt] } else { vec![landed] }
            }
            Step::Names(names) => {
                // Names that are written while others are on their way: the ones of before are read first.
                let told = (names.names.clone(), names.number);
                vec![State { told, lingers: Some(self.told.clone()), sure: Set::new(), ..self.clone() }]
            }
            Step::Wait | Step::Nothing => Vec::new(),
        }
    }
}

fn wishes(members: usize) -> Vec<(Waited, bool)> {
    let mut all = Vec::new();
    for names in subsets(members) {
        all.push((Waited { number: names.len(), names: names.clone() }, false));
        all.extend((1..=names.len()).map(|number| (Waited { number, names: names.clone() }, true)));
        if names.is_empty() {
            all.push((Waited::default(), true));
        }
    }
    all
}

/// From every state, whatever was wished before, and with every wish.
fn explore(members: usize, doubts: bool) -> usize {
    let wishes = wishes(members);
    let mut seen = HashSet::from([State::first()]);
    let mut open = VecDeque::from([State::first()]);
    while let Some(state) = open.pop_front() {
        assert!(state.holds(), "a commit that the key promises is missing: {state:?}");
        let mut next = state.world();
        for (wanted, majority) in &wishes {
            // Names that linger are read before others are written: one at a time.
            let step = state.step(wanted, *majority);
            if state.lingers.is_none() || !matches!(step, Step::Names(_)) {
                next.extend(state.after(&step, doubts));
            }
            arrives(&state, wanted, *majority);
        }
        open.extend(next.into_iter().filter(|n| seen.insert(n.clone())));
    }
    seen.len()
}

/// With a wish that stays, and standbys that catch up, it comes true, whatever stood.
fn arrives(from: &State, wanted: &Waited, majority: bool) {
    let mut state = from.clone();
    for _ in 0..8 {
        state.lingers = None;
        state.sure = state.told.0.clone();
        let step = state.step(wanted, majority);
        if step == Step::Nothing {
            assert_eq!((key(&state.key).voters, waited(&state.told)), (wanted.names.clone(), wanted.clone()));
            return;
        }
        let after = state.after(&step, false);
        state = after.into_iter().next().unwrap_or_else(|| panic!("waits for nothing: {state:?} wants {wanted:?}"));
    }
    panic!("no end: {from:?} wants {wanted:?}, majority {majority}");
}

#[test]
fn no_commit_is_lost_on_any_way_between_two_standbys() {
    let states = explore(2, true);
    assert!(states > 500, "{states} states");
}

#[test]
fn no_commit_is_lost_on_any_way_between_three_standbys() {
    let states = explore(3, true);
    assert!(states > 7_000, "{states} states");
}

/// For more members than can be gone through whole: long walks, a new commit to watch every few steps.
#[test]
fn no_commit_is_lost_on_long_walks_between_five_standbys() {
    let wishes = wishes(5);
    let mut dice: u64 = 1;
    let mut roll = |n: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(dice >> 33).unwrap() % n
    };
    let (mut state, mut wish) = (State::first(), 0);
    for _ in 0..20_000 {
        match roll(8) {
            0 => wish = roll(wishes.len()),
            1 if state.commit.is_some() => state.commit = None,
            _ => {}
        }
        let (wanted, majority) = &wishes[wish];
        let mut next = state.world();
        let step = state.step(wanted, *majority);
        if state.lingers.is_none() || !matches!(step, Step::Names(_)) {
            next.extend(state.after(&step, true));
        }
        if !next.is_empty() {
            state = next.swap_remove(roll(next.len()));
        }
        assert!(state.holds(), "a commit that the key promises is missing: {state:?}");
    }
    arrives(&state, &wishes[wish].0, wishes[wish].1);
}

/// Who is elected puts its predecessor in its own place among the voters: both have every commit, and so as many voters have it
/// as before.
#[test]
fn a_key_that_is_carried_over_promises_no_more_than_is_so() {
    for voters in subsets(4) {
        for quorum in 0..voters.len() {
            for elected in &voters {
                // Everybody who may lack a commit, as the key says; who is elected and who led before lack none.
                for lack in
                    subsets(4).into_iter().filter(|l| l.is_subset(&voters) && l.len() <= quorum && !l.contains(elected))
                {
                    let mut next = voters.clone();
                    next.remove(elected);
                    next.insert("a".into());
                    let lacking = next.intersection(&lack).count();
                    assert!(lacking <= quorum, "{voters:?} {quorum} {elected} {lack:?}");
                }
            }
        }
    }
}
