//! Deterministic simulation (design §9, level 2): the real `decide` and `check` of 2 to 5 members over a model API
//! server, keeper and Postgres, with clocks of their own and faults from a seed. Checkers see the whole cluster; a
//! safety rule that is taken out (a mutant) must be caught.
//!
//! `SIM_SEEDS=N cargo test --test sim` runs more seeds, `SIM_SEED=K` exactly one; a failure prints seed and trace.

#![cfg(not(feature = "test-time-scale"))]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test that fails says where")]

#[path = "sim/act.rs"]
mod act;
#[path = "sim/machine.rs"]
mod machine;
#[path = "sim/parts.rs"]
mod parts;
#[path = "sim/sidecar.rs"]
mod sidecar;
#[path = "sim/world.rs"]
mod world;

use world::{Fault, Mutant, STEP, World};

/// Faults begin here: three members from nothing are streaming long before.
const CALM: f64 = 60.0;
const FAULTS_END: f64 = 400.0;
/// ttl + 2·loop_wait + 10 s (L1), and 15 s for late writes and for starts, rewinds and clones, which L1 leaves out.
const HEALED: f64 = 30.0 + 20.0 + 10.0 + 15.0;

const FAULTS: [Fault; 14] = [
    Fault::KillSidecar,
    Fault::KillPod { reported: true },
    Fault::KillPod { reported: false },
    Fault::FreezeSidecar,
    Fault::FreezePod,
    Fault::ApiCut,
    Fault::ApiCutForAll,
    Fault::StoreWiped,
    Fault::NetworkCut,
    Fault::PostgresCrash,
    Fault::Switchover,
    Fault::Terminate,
    Fault::DataWiped,
    Fault::PodRecreated,
];

fn run(seed: u64, mutant: Mutant) -> World {
    let mut w = World::new(seed, mutant);
    let mut next = CALM;
    while w.t < FAULTS_END && w.broken.is_none() {
        w.step();
        if w.t >= next {
            let fault = FAULTS[w.rng.below(FAULTS.len() as u64) as usize];
            let any = w.rng.below(w.pods.len() as u64) as usize;
            let at = if w.rng.one_in(2) { w.holder().unwrap_or(any) } else { any };
            w.inject(fault, at);
            next = w.t + w.rng.between(1.0, 45.0);
        }
    }
    w.heal();
    let end = w.t + HEALED;
    while w.t < end && w.broken.is_none() {
        w.step();
    }
    if w.broken.is_none() {
        healthy(&mut w);
    }
    w
}

/// L1: one primary, everybody else streaming. A wiped store with every member already running as a standby waits for a
/// person by rule (ha-decisions §3 row 13: a running replica may not restore `initialize`) and says so.
fn healthy(w: &mut World) {
    if w.store.initialize == patroni::model::Initialize::Absent {
        return;
    }
    let t = w.t + STEP;
    let primaries = (0..w.pods.len()).filter(|i| w.pods[*i].writable(t)).count();
    let idle: Vec<_> =
        (0..w.pods.len()).filter(|i| !w.pods[*i].writable(t) && !w.streams(*i)).map(|i| format!("m{i}")).collect();
    if primaries != 1 || !idle.is_empty() {
        w.violation(format!("L1 {primaries} primaries, not streaming: {idle:?}"));
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

#[test]
fn the_cluster_keeps_its_promises_under_every_seed() {
    let seeds = match variable("SIM_SEED") {
        Some(one) => one..one + 1,
        None => 1..1 + variable("SIM_SEEDS").unwrap_or(40),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let w = run(seed, Mutant::None);
        if let Some(broken) = w.broken {
            eprintln!("{}\nreplay: SIM_SEED={seed} cargo test --test sim\n{broken}\n", w.trace.join("\n"));
            failed.push(broken);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Some seed catches the cluster without this rule.
#[track_caller]
fn caught(mutant: Mutant, rules: &[&str]) {
    for seed in 1..=60 {
        if let Some(broken) = run(seed, mutant).broken
            && rules.iter().any(|rule| broken.contains(rule))
        {
            return;
        }
    }
    panic!("no seed catches {mutant:?}");
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
    caught(Mutant::KeeperNeverFences, &["S2"]);
}

#[test]
fn a_release_before_the_stop_is_caught() {
    caught(Mutant::ReleaseBeforeStop, &["S1", "S2"]);
}

#[test]
fn proof_of_death_from_one_of_two_containers_is_caught() {
    caught(Mutant::ProofFromOneContainer, &["S1", "S2"]);
}

#[test]
fn initdb_despite_data_elsewhere_is_caught() {
    caught(Mutant::InitdbDespiteData, &["S7"]);
}
