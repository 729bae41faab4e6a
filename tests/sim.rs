//! Deterministic simulation: members, keepers, the store's client and the embedded API's store as they
//! ship, over models of Postgres, disks, networks and clocks, with faults from a seed. Checkers see the whole cluster; a
//! safety rule that is taken out (a mutant) must be caught.
//!
//! `make sim SEEDS=N FROM=K` runs more seeds, in a build of its own; `SIM_SEED=K cargo test --test sim` runs exactly one and
//! prints it. A seed that fails is run again without one fault after the other, as long as the same rule breaks; what is left
//! is printed, one line per event.
//! `SIM_MUTANT=Name` runs one mutant and prints its run.

#![cfg(not(feature = "test-time-scale"))]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test that fails says where")]

#[path = "sim/api.rs"]
mod api;
#[path = "sim/device.rs"]
mod device;
#[path = "sim/disasters.rs"]
mod disasters;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/effects.rs"]
mod effects;
#[path = "sim/failsafe.rs"]
mod failsafe;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/judge.rs"]
mod judge;
#[path = "sim/keeper.rs"]
mod keeper;
#[path = "sim/kubelet.rs"]
mod kubelet;
#[path = "sim/mutant.rs"]
mod mutant;
#[path = "sim/pause.rs"]
mod pause;
#[path = "sim/postgres.rs"]
mod postgres;
#[path = "sim/rng.rs"]
mod rng;
#[path = "sim/sidecar.rs"]
mod sidecar;
#[path = "sim/sometimes.rs"]
mod sometimes;
#[path = "sim/standby.rs"]
mod standby;
#[path = "sim/tasks.rs"]
mod tasks;
#[path = "sim/warden.rs"]
mod warden;
#[path = "sim/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mutant::{CASES, Case, rule_of};
use patroni::mutant as rules;
use sometimes::Sometimes;
use world::World;

/// A third of a run is spent in the allocator, with that of the system more than half.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds that failed once.
const KEPT: &str = include_str!("seeds/sim.txt");
const THREADS: usize = 2;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// Runs seeds on two threads; what is found of each, in order.
fn run_all<T: Send>(seeds: &[u64], work: impl Fn(u64) -> Option<T> + Sync) -> Vec<(u64, T)> {
    let next = AtomicU64::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    if let Some(one) = work(*seed) {
                        found.lock().unwrap().push((*seed, one));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(seed, _)| *seed);
    found
}

/// The same seed without these faults.
fn without(seed: u64, case: Option<&Case>, left_out: &BTreeSet<u64>) -> World {
    rules::set(case.map(|c| c.mutant));
    let mut w = World::new(seed, case.map(|c| &c.profile));
    w.left_out.clone_from(left_out);
    let w = w.run();
    rules::set(None);
    w
}

/// Leaves out every fault without which the same rule still breaks.
fn shrunk(seed: u64, case: Option<&Case>) -> World {
    let mut smallest = without(seed, case, &BTreeSet::new());
    let rule = smallest.broken.as_deref().map(rule_of).unwrap_or("").to_owned();
    let mut left_out = BTreeSet::new();
    for number in (0..smallest.faults_seen).rev() {
        left_out.insert(number);
        let w = without(seed, case, &left_out);
        if w.broken.as_deref().map(rule_of) == Some(rule.as_str()) {
            smallest = w;
        } else {
            left_out.remove(&number);
        }
    }
    smallest
}

fn show(w: &World, replay: &str) {
    let lines: Vec<&str> = w.trace.iter().map(String::as_str).collect();
    eprintln!("{}\nwithout faults {:?}\n{replay}", lines.join("\n"), w.left_out);
}

/// So many seeds, the first there are, reach every kind of effect and every reason of a decision. Of others it is only said
/// what they have not reached: which rare thing five thousand drawn seeds miss is chance.
const SOMETIMES_SEEDS: u64 = 5000;

#[test]
fn the_cluster_keeps_its_promises_under_every_seed() {
    let (first, count) = (variable("SIM_FROM").unwrap_or(1), variable("SIM_SEEDS").unwrap_or(40));
    let kept = KEPT.lines().filter_map(|l| l.split_whitespace().next()?.parse().ok());
    let seeds: Vec<u64> = match variable("SIM_SEED") {
        Some(one) => vec![one],
        None => kept.chain(first..first + count).collect(),
    };
    let known = AtomicU64::new(0);
    let sometimes = Mutex::new(Sometimes::default());
    let failed = run_all(&seeds, |seed| {
        let w = without(seed, None, &BTreeSet::new());
        known.fetch_add(u64::from(w.judge.known), Ordering::Relaxed);
        if std::env::var_os("SIM_SHOW").is_some() {
            println!("seed {seed}: {} events, {} commits, trace {:016x}", w.events, w.judge.acknowledged, w.digest);
        }
        if variable("SIM_SEED").is_some() && w.broken.is_none() {
            show(&w, "nothing broke");
        }
        sometimes.lock().unwrap().add(&w.sometimes);
        w.broken
    });
    for (i, (seed, broken)) in failed.iter().enumerate() {
        if i == 0 {
            show(&shrunk(*seed, None), &format!("replay: SIM_SEED={seed} cargo test --test sim"));
        }
        eprintln!("{broken}");
    }
    println!("{} seeds, {} ended in what is known (SIM_STRICT=1 shows them)", seeds.len(), known.into_inner());
    let never = sometimes.into_inner().unwrap().never();
    if count >= SOMETIMES_SEEDS && !never.is_empty() {
        println!("reached in fewer than three seeds: {never:#?}");
        assert!(first != 1, "what a decision says, and the first {SOMETIMES_SEEDS} seeds do not reach: {never:#?}");
    }
    assert!(failed.is_empty(), "{} of {} seeds failed", failed.len(), seeds.len());
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [3, 8] {
        let [a, b] = [0, 1].map(|_| without(seed, None, &BTreeSet::new()));
        assert_eq!((a.events, a.digest), (b.events, b.digest), "seed {seed}");
    }
}

/// The first seed of two hundred under which a checker finds that this rule is missing.
fn finder(case: &Case) -> Option<(u64, String)> {
    (1..=MUTANT_SEEDS).find_map(|seed| {
        let broken = without(seed, Some(case), &BTreeSet::new()).broken?;
        case.rules.contains(&rule_of(&broken)).then_some(())?;
        // With the rule in force nothing breaks there.
        rules::set(None);
        let sound = World::new(seed, Some(&case.profile)).run().broken;
        (sound.as_deref().map(rule_of) != Some(rule_of(&broken))).then_some((seed, broken))
    })
}

/// A mutant that lives longer than so many seeds says that a fault or a checker is missing.
const MUTANT_SEEDS: u64 = 200;

/// `SIM_MUTANT=NAME`: this one alone; with `SIM_SEED` besides, that run of it.
#[test]
fn a_rule_that_is_missing_is_found() {
    let one = std::env::var("SIM_MUTANT").ok();
    let numbers: Vec<u64> = (0..CASES.len() as u64).collect();
    if let (Some(name), Some(seed)) = (&one, variable("SIM_SEED")) {
        let case = CASES.iter().find(|case| format!("{:?}", case.mutant) == *name);
        return show(&without(seed, case, &BTreeSet::new()), "as the rule is missing");
    }
    let found = run_all(&numbers, |n| {
        let case = &CASES[n as usize];
        one.as_ref().is_none_or(|name| format!("{:?}", case.mutant) == *name).then(|| finder(case))
    });
    let mut alive = Vec::new();
    for (n, by) in &found {
        let case = &CASES[*n as usize];
        match by {
            Some((seed, broken)) => println!("{:?}: {seed} seeds: {broken}", case.mutant),
            None => alive.push(case.mutant),
        }
        if let (Some(_), Some((seed, _))) = (&one, by) {
            show(
                &shrunk(*seed, Some(case)),
                &format!("replay: SIM_MUTANT={:?} cargo test --test sim missing", case.mutant),
            );
        }
    }
    assert!(alive.is_empty(), "nobody sees that these rules are missing: {alive:?}");
}

#[test]
fn every_mutant_has_its_case() {
    for mutant in rules::ALL {
        assert!(CASES.iter().any(|case| case.mutant == *mutant), "{mutant:?}");
    }
}
