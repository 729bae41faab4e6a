//! The list of pod tests, and how they are run: one cluster of three nodes for all of them, a release per group of tests.

mod kube;
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

/// How it ended.
pub enum Outcome {
    /// Well.
    Passed,
    /// It could not run here; why.
    Skipped(String),
    /// What was wrong.
    Failed(String),
}

impl Outcome {
    /// As cargo's own runner says it.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Passed => "ok",
            Outcome::Skipped(_) => "ignored",
            Outcome::Failed(_) => "FAILED",
        }
    }
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
