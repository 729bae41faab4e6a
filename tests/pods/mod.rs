//! The list of pod tests, and how they are run: one cluster of three nodes for all of them, a release per group of tests.

mod faults;
mod kube;
mod life;
mod refusals;
mod release;
mod smoke;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use kube::{Kube, NoCluster, SharedKube};
use patroni::demo::Res;
use tokio::time::Instant;

use super::runner::Outcome;

/// Nodes of the cluster.
const NODES: u32 = 3;

/// One test.
pub struct Test {
    /// FILE::SENTENCE.
    pub name: &'static str,
    /// Part of `make test`.
    pub smoke: bool,
    body: fn(SharedKube) -> LocalBoxFuture<'static, Res<()>>,
}

macro_rules! tests {
    ($($tier:ident $module:ident :: $name:ident),* $(,)?) => {
        &[$(Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            smoke: tests!(@smoke $tier),
            body: |kube| $module::$name(kube).boxed_local(),
        }),*]
    };
    (@smoke smoke) => { true };
    (@smoke full) => { false };
}

/// All of them.
pub const TESTS: &[Test] = tests![
    smoke smoke::a_release_lives_through_a_day,
    full faults::the_leader_pod_is_deleted,
    full faults::the_postgres_container_is_killed,
    full faults::the_sidecar_is_frozen_for_two_leases,
    full faults::the_postgres_container_is_frozen_and_thawed,
    full faults::a_node_is_cut_off_for_two_leases,
    full faults::a_node_is_lost_and_comes_back,
    full faults::a_pod_deleted_by_force_is_a_stranger,
    full faults::a_short_outage_of_the_api_demotes_nobody,
    full faults::a_long_outage_of_the_api_heals,
    full life::it_scales_up_and_down,
    full life::a_rolling_restart_hands_over_at_most_twice,
    full life::a_new_image_of_the_sidecar_costs_nothing,
    full life::a_drained_node_hands_over,
    full life::it_is_installed_again_on_its_volumes,
    full life::an_upgrade_changes_values,
    full life::a_secret_is_rotated,
    full refusals::without_a_verb_the_sidecar_names_it,
    full refusals::a_wrong_uid_is_said_before_anything_starts,
    full refusals::a_missing_keeper_is_waited_for_and_named,
    full refusals::a_volume_of_another_cluster_is_refused,
    full refusals::a_volume_in_two_pods_is_used_by_one,
];

/// Runs the chosen tests, one after the other, and tells how each ended.
pub fn run(chosen: &[&Test], mut tell: impl FnMut(&Test, Outcome, Duration)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let began = Instant::now();
        let kube = match Kube::up(NODES).await {
            Ok(kube) => Arc::new(kube),
            Err(none) => {
                for test in chosen {
                    let outcome = match &none {
                        NoCluster::Skipped(why) => Outcome::Skipped(why.clone()),
                        NoCluster::Failed(why) => Outcome::Failed(why.clone()),
                    };
                    tell(test, outcome, began.elapsed());
                }
                return;
            }
        };
        println!("a cluster of {NODES} nodes is up after {:.1} s", began.elapsed().as_secs_f64());
        for test in chosen {
            println!("{}", test.name);
            let began = Instant::now();
            let result = AssertUnwindSafe((test.body)(kube.clone())).catch_unwind().await;
            let outcome = match result {
                Ok(Ok(())) => Outcome::Passed,
                Ok(Err(e)) => Outcome::Failed(e.to_string()),
                Err(_) => Outcome::Failed("it panicked; see above".to_owned()),
            };
            tell(test, outcome, began.elapsed());
        }
        if std::env::var_os("PATRONI_PODS_KEEP").is_some() {
            println!("the cluster is kept: make kube-shell, then make kube-down");
        } else if let Err(e) = kube.down().await {
            println!("the cluster could not be ended: {e}");
        }
    });
}
