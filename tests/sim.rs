//! Deterministic simulation: members, keepers, the store's client and the embedded API's store as they
//! ship, over models of Postgres, disks, networks and clocks, with faults from a seed. Checkers see the whole cluster; a
//! safety rule that is taken out (a mutant) must be caught.
//!
//! `SIM_SEEDS=N cargo test --test sim` runs more seeds, `SIM_SEED=K` exactly one; a failure prints seed and trace.

#![cfg(not(feature = "test-time-scale"))]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test that fails says where")]

#[path = "sim/api.rs"]
mod api;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/effects.rs"]
mod effects;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/judge.rs"]
mod judge;
#[path = "sim/keeper.rs"]
mod keeper;
#[path = "sim/mutant.rs"]
mod mutant;
#[path = "sim/postgres.rs"]
mod postgres;
#[path = "sim/rng.rs"]
mod rng;
#[path = "sim/sidecar.rs"]
mod sidecar;
#[path = "sim/tasks.rs"]
mod tasks;
#[path = "sim/world.rs"]
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mutant::Mutant;
use world::World;

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

#[test]
fn the_cluster_keeps_its_promises_under_every_seed() {
    let seeds: Vec<u64> = match variable("SIM_SEED") {
        Some(one) => vec![one],
        None => {
            let kept = KEPT.lines().filter_map(|l| l.split_whitespace().next()?.parse().ok());
            let first = variable("SIM_FROM").unwrap_or(1);
            kept.chain(first..first + variable("SIM_SEEDS").unwrap_or(40)).collect()
        }
    };
    let known = AtomicU64::new(0);
    let failed = run_all(&seeds, |seed| {
        let w = World::new(seed, Mutant::None).run();
        known.fetch_add(u64::from(w.judge.known), Ordering::Relaxed);
        if std::env::var_os("SIM_SHOW").is_some() {
            println!("seed {seed}: {} events, {} commits", w.events, w.judge.acknowledged);
        }
        w.broken.map(|broken| (broken, w.trace))
    });
    let one = variable("SIM_SEED").is_some();
    for (i, (seed, (broken, trace))) in failed.iter().enumerate() {
        if one || i == 0 {
            let lines: Vec<&str> = trace.iter().map(String::as_str).collect();
            eprintln!("{}\nreplay: SIM_SEED={seed} cargo test --test sim", lines.join("\n"));
        }
        eprintln!("{broken}");
    }
    println!("{} seeds, {} ended in what is known (SIM_STRICT=1 shows them)", seeds.len(), known.into_inner());
    assert!(failed.is_empty(), "{} of {} seeds failed", failed.len(), seeds.len());
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [3, 8] {
        let [a, b] = [0, 1].map(|_| World::new(seed, Mutant::None).run());
        assert_eq!((a.events, a.digest), (b.events, b.digest), "seed {seed}");
    }
}

/// Some seed catches the cluster without this rule.
#[track_caller]
fn caught(mutant: Mutant, rules: &[&str]) {
    let seeds: Vec<u64> = (1..=variable("SIM_MUTANT_SEEDS").unwrap_or(400)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let by = run_all(&seeds, |seed| {
        if done.load(Ordering::Relaxed) {
            return None;
        }
        let broken = World::new(seed, mutant).run().broken?;
        let caught = rules.iter().any(|rule| broken.contains(rule));
        done.fetch_or(caught, Ordering::Relaxed);
        caught.then_some(broken)
    });
    assert!(!by.is_empty(), "no seed catches {mutant:?}");
    println!("{mutant:?}: {}", by[0].1);
}

#[test]
fn an_observer_that_ignores_the_ttl_is_caught() {
    caught(Mutant::ObserverIgnoresTtl, &["S1", "S2"]);
}

#[test]
fn a_lease_counted_from_its_confirmation_is_caught() {
    caught(Mutant::LeaseFromConfirmation, &["S1", "S2"]);
}

#[test]
fn a_takeover_that_does_not_compare_is_caught() {
    caught(Mutant::AcquireWithoutComparing, &["S1", "S2"]);
}

#[test]
fn a_keeper_that_never_fences_is_caught() {
    caught(Mutant::KeeperNeverFences, &["S2", "S9"]);
}

#[test]
fn a_release_before_the_stop_is_caught() {
    caught(Mutant::ReleaseBeforeStop, &["S1", "S2", "S9"]);
}

#[test]
fn proof_of_death_from_one_of_two_containers_is_caught() {
    caught(Mutant::ProofFromOneContainer, &["S1", "S2"]);
}

#[test]
fn initdb_despite_data_elsewhere_is_caught() {
    caught(Mutant::InitdbDespiteData, &["S7"]);
}
