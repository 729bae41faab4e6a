//! The list of cluster tests, and what they share: how a cluster is set up for a test and what is checked at the end of
//! every one.
//!
//! Safety is asserted: never two writers, no row lost that asynchronous replication does not excuse, the old primary silent
//! in time. Speed is not: that is `benches/failover.rs`. Lease times are scaled when the crate is built with the feature
//! `test-time-scale`; the tests called `unscaled` and `mixed` use binaries without it, from `PATRONI_UNSCALED_BIN_DIR`.

mod crash;
mod handover;
mod mixed;
mod outage;
mod parameters;
mod pause;
mod rejoin;
mod restore;
mod sites;
mod standby;
mod start;
mod stopped;
mod synchronous;
mod watchdog;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use patroni::demo::apiserver::External;
use patroni::demo::cluster::{Cluster, Options, StoreMode};
use patroni::demo::writer::{self, Writer};
use patroni::demo::{Res, fail, machine, verdict};
use tokio::time::Instant;

use super::runner::Outcome;

/// One test.
pub struct Test {
    /// MODE::FILE::SENTENCE, with `unscaled::` before it when it runs at true speed.
    pub name: &'static str,
    mode: StoreMode,
    kind: Kind,
    body: fn(Options) -> LocalBoxFuture<'static, Res<()>>,
}

/// Which programs it needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Those of this build.
    Scaled,
    /// At true speed.
    Unscaled,
    /// At true speed, and Patroni itself.
    Beside,
}

impl Test {
    /// A run that was not given Patroni is one without Patroni. Against a real API server neither it nor true speed says more
    /// than beside the embedded one.
    pub fn wanted(&self) -> bool {
        match self.kind {
            Kind::Scaled => true,
            Kind::Unscaled => !repeats(),
            Kind::Beside => venv().is_some() && !repeats(),
        }
    }

    /// Does it always run against a real API server too?
    pub fn smoke(&self) -> bool {
        SMOKE.iter().any(|name| self.name.ends_with(name))
    }
}

/// Is this run against a real API server? It repeats then what another run has shown beside the embedded one.
pub fn repeats() -> bool {
    External::from_environment().is_some()
}

/// What is most about the API server itself, in both modes.
const SMOKE: &[&str] = &[
    "::three_members_start_from_nothing",
    "::a_terminated_leader_hands_over_and_loses_nothing",
    "::a_deleted_leader_object_costs_a_leader_nothing_and_its_heirs_a_ttl",
];

/// The virtual environment with Patroni in it.
fn venv() -> Option<PathBuf> {
    std::env::var_os("PATRONI_VENV").filter(|v| !v.is_empty()).map(PathBuf::from)
}

macro_rules! tests {
    ($($kind:ident $mode:ident $module:ident :: $name:ident),* $(,)?) => {
        &[$(Test {
            name: concat!(tests!(@word $kind), stringify!($mode), "::", stringify!($module), "::", stringify!($name)),
            mode: tests!(@mode $mode),
            kind: tests!(@kind $kind),
            body: |options| $module::$name(options).boxed_local(),
        }),*]
    };
    (@mode endpoints) => { StoreMode::Endpoints };
    (@mode configmaps) => { StoreMode::ConfigMaps };
    (@word scaled) => { "" };
    (@word unscaled) => { "unscaled::" };
    (@word beside) => { "" };
    (@kind scaled) => { Kind::Scaled };
    (@kind unscaled) => { Kind::Unscaled };
    (@kind beside) => { Kind::Beside };
}

/// All of them, cheapest first.
pub const TESTS: &[Test] = tests![
    scaled endpoints start::three_members_start_from_nothing,
    scaled configmaps start::three_members_start_from_nothing,
    scaled endpoints start::a_bootstrap_killed_half_way_is_finished,
    scaled endpoints start::a_custom_method_makes_the_cluster,
    scaled endpoints restore::a_recovery_to_a_restore_point_outlives_its_sidecar,
    scaled configmaps restore::what_a_tool_has_written_is_recovered_to,
    scaled endpoints restore::a_method_that_fails_gives_the_key_back,
    scaled endpoints start::a_data_directory_of_another_version_is_refused,
    scaled endpoints start::sighup_applies_the_changed_file,
    scaled endpoints start::a_cluster_killed_whole_comes_back,
    scaled endpoints parameters::a_server_that_cannot_be_asked_gets_what_is_configured,
    scaled endpoints parameters::a_standby_takes_the_settings_of_its_leader,
    scaled endpoints parameters::a_typo_in_the_document_keeps_no_member_down,
    scaled endpoints sites::a_failover_stays_in_its_site,
    scaled endpoints watchdog::the_watchdog_goes_with_the_writer,
    scaled endpoints handover::a_switchover_to_a_candidate_loses_nothing,
    scaled configmaps handover::a_switchover_through_rest_loses_nothing,
    scaled endpoints handover::a_terminated_leader_hands_over_and_loses_nothing,
    scaled configmaps handover::a_terminated_leader_hands_over_and_loses_nothing,
    scaled endpoints handover::a_failover_without_a_leader_goes_to_the_candidate,
    scaled endpoints handover::a_scheduled_switchover_goes_to_its_candidate,
    scaled endpoints crash::a_crashed_postgres_acknowledges_nothing_late_and_loses_nothing,
    scaled endpoints crash::a_killed_member_is_replaced_when_it_is_reported,
    scaled configmaps crash::a_killed_member_is_replaced_when_it_is_reported,
    scaled endpoints crash::silence_costs_the_whole_lease,
    scaled endpoints crash::a_frozen_leader_writes_nothing_after_the_thaw,
    scaled configmaps crash::a_frozen_leader_writes_nothing_after_the_thaw,
    scaled endpoints outage::a_restarted_sidecar_adopts_its_postgres,
    scaled endpoints outage::without_its_sidecar_a_primary_is_stopped_in_time,
    scaled endpoints outage::without_the_api_a_primary_stops_in_time_and_the_cluster_heals,
    scaled configmaps outage::without_the_api_a_primary_stops_in_time_and_the_cluster_heals,
    scaled endpoints outage::a_short_outage_of_the_api_demotes_nobody,
    scaled configmaps outage::with_failsafe_mode_an_outage_of_the_api_costs_nothing,
    scaled endpoints outage::a_deleted_leader_object_costs_a_leader_nothing_and_its_heirs_a_ttl,
    scaled configmaps outage::a_deleted_leader_object_costs_a_leader_nothing_and_its_heirs_a_ttl,
    scaled endpoints stopped::with_its_sidecar_a_primary_ends_before_its_lease,
    scaled endpoints stopped::beside_its_sidecar_a_primary_ends_and_the_lock_goes_on,
    scaled endpoints synchronous::a_leader_killed_under_load_loses_no_row,
    scaled configmaps synchronous::a_leader_killed_under_load_loses_no_row,
    scaled endpoints synchronous::a_standby_that_leaves_holds_up_no_commit,
    scaled endpoints synchronous::without_a_standby_strict_mode_commits_nothing,
    scaled configmaps synchronous::the_mode_is_switched_under_load,
    scaled endpoints synchronous::a_switchover_goes_to_the_synchronous_standby,
    scaled endpoints synchronous::in_quorum_mode_a_leader_killed_under_load_loses_no_row,
    scaled configmaps synchronous::in_quorum_mode_a_leader_killed_under_load_loses_no_row,
    scaled endpoints synchronous::in_quorum_mode_the_voters_come_back_without_their_leader,
    scaled endpoints synchronous::in_quorum_mode_a_switchover_goes_to_any_voter,
    scaled configmaps synchronous::the_kinds_of_synchronous_mode_are_switched_under_load,
    scaled endpoints pause::a_postgres_that_ends_stays_down_until_a_person_asks,
    scaled configmaps pause::without_the_api_a_paused_primary_goes_on,
    scaled configmaps pause::a_switchover_in_maintenance_needs_a_candidate,
    scaled endpoints pause::who_was_promoted_by_hand_is_a_standby_again_after_the_resume,
    scaled endpoints pause::a_postgres_that_was_started_by_hand_keeps_the_lock,
    scaled endpoints pause::a_former_leader_that_was_started_by_hand_is_stopped_after_the_resume,
    scaled endpoints rejoin::a_diverged_leader_is_rewound,
    scaled endpoints rejoin::a_diverged_leader_is_cloned_anew_where_rewind_is_off,
    scaled endpoints rejoin::a_replica_whose_data_vanished_is_cloned_anew,
    scaled endpoints standby::it_follows_through_failovers,
    scaled configmaps standby::two_clusters_change_their_roles,
    scaled endpoints start::the_demo_tells_its_story,
    unscaled endpoints crash::silence_costs_the_whole_lease,
    unscaled configmaps outage::without_the_api_a_primary_stops_in_time_and_the_cluster_heals,
    beside endpoints mixed::a_diverged_leader_of_either_kind_is_rewound_from_the_other,
    beside endpoints mixed::two_of_theirs_and_one_of_ours_lose_nothing,
    beside configmaps mixed::two_of_theirs_and_one_of_ours_lose_nothing,
    beside endpoints mixed::one_of_theirs_and_two_of_ours_lose_nothing,
    beside configmaps mixed::one_of_theirs_and_two_of_ours_lose_nothing,
];

/// Nothing here needs longer; a test that hangs is a failure, not a hung run.
const TEST_MAX: Duration = Duration::from_secs(180);
/// A mixed fleet changes its leader eight times, and waits for two leases.
const BESIDE_MAX: Duration = Duration::from_secs(420);

/// The test that runs, for the names of kept logs.
static RUNNING: Mutex<&str> = Mutex::new("");

/// Runs one test in a runtime of its own.
pub fn run(test: &Test) -> (Outcome, Duration) {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = test.name;
    let start = Instant::now();
    let outcome = match options(test) {
        Err(why) => Outcome::Skipped(why.0),
        Ok(options) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Err(e) => Outcome::Failed(e.to_string()),
            Ok(runtime) => runtime.block_on(judge(test, options)),
        },
    };
    (outcome, start.elapsed())
}

async fn judge(test: &Test, options: Options) -> Outcome {
    let body = AssertUnwindSafe((test.body)(options)).catch_unwind();
    let limit = if test.kind == Kind::Beside { BESIDE_MAX } else { TEST_MAX };
    let ended = tokio::select! {
        ended = tokio::time::timeout(limit, body) => Some(ended),
        _ = tokio::signal::ctrl_c() => None,
    };
    // The body and with it its cluster are gone by here: nothing stays behind.
    let Some(ended) = ended else { std::process::exit(130) };
    match ended {
        Ok(Ok(Ok(()))) => Outcome::Passed,
        Ok(Ok(Err(e))) => Outcome::Failed(e.0),
        Ok(Err(_)) => Outcome::Failed("it panicked; the message is above".into()),
        Err(_) => Outcome::Failed(format!("not over after {} s", limit.as_secs())),
    }
}

/// 20/1/3 in the mode of the test, or why it cannot run here.
fn options(test: &Test) -> Res<Options> {
    machine::User::find()?;
    let Some(postgres) = machine::find_postgres() else {
        return fail("no Postgres on this machine (make test installs it)");
    };
    let scaled = test.kind == Kind::Scaled;
    let built = PathBuf::from(env!("CARGO_BIN_EXE_patroni"));
    let given = std::env::var_os(if scaled { "PATRONI_BIN_DIR" } else { "PATRONI_UNSCALED_BIN_DIR" });
    let bin_dir = match given {
        Some(dir) => PathBuf::from(dir),
        None if !scaled && cfg!(feature = "test-time-scale") => {
            return fail("no binaries without the time scale: set PATRONI_UNSCALED_BIN_DIR (make test does)");
        }
        None => built.parent().map(PathBuf::from).unwrap_or_default(),
    };
    let mut options = Options::new(bin_dir, postgres);
    (options.ttl, options.loop_wait, options.retry_timeout) = (20, 1, 3);
    options.mode = test.mode;
    options.external = External::from_environment();
    options.trust = test.kind != Kind::Unscaled;
    options.scope = "test".into();
    if !scaled {
        options.scale = 1.0;
    }
    Ok(options)
}

/// How much of what was acknowledged may be missing at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Nothing: switchover, SIGTERM, crash of Postgres alone.
    Nothing,
    /// S5: the tail of a timeline, at most `maximum_lag_on_failover` (1 MiB).
    Tail,
}

/// A cluster with a client, under test.
pub struct Trial {
    /// The cluster.
    pub cluster: Cluster,
    /// The clients.
    pub client: Writer,
    /// When a whole frozen member was thawed, if it was.
    pub thawed: Option<Instant>,
}

impl Trial {
    /// Starts the cluster, waits until it is whole and a client writes. Returns the leader too.
    pub async fn begin(options: Options) -> Res<(Trial, usize)> {
        let mut cluster = Cluster::start(options).await?;
        let deadline = cluster.options.healed_within() + Duration::from_secs(20);
        let leader = match cluster.wait_whole(deadline).await {
            Ok(leader) => leader,
            Err(e) => {
                keep_logs(&cluster);
                return Err(e);
            }
        };
        let client = cluster.clients(Duration::from_millis(10))?;
        client.wait_for_ack(Instant::now(), Duration::from_secs(10), |_| true).await?;
        Ok((Trial { cluster, client, thawed: None }, leader))
    }

    /// Waits until the cluster is whole again.
    pub async fn whole(&mut self) -> Res<usize> {
        let deadline = self.cluster.options.healed_within();
        self.cluster.wait_whole(deadline).await
    }

    /// Waits for a write that another member than `old` accepted.
    pub async fn taken_over_from(&mut self, old: usize, since: Instant) -> Res<writer::Ack> {
        let deadline = self.cluster.options.healed_within();
        match self.client.wait_for_ack(since, deadline, |a| a.member != old).await {
            Ok(ack) => Ok(ack),
            Err(e) => fail(format!("{e}\n{}", self.cluster.diagnosis().await)),
        }
    }

    /// The end of every test: whole, never two writers, nothing lost that may not be lost. Keeps the logs of a failure.
    pub async fn end(mut self, so_far: Res<()>, allowed: Allowed) -> Res<()> {
        let result = match so_far {
            Ok(()) => self.verdict(allowed).await,
            Err(e) => Err(e),
        };
        if result.is_err() {
            keep_logs(&self.cluster);
        }
        result
    }

    async fn verdict(&mut self, allowed: Allowed) -> Res<()> {
        let leader = self.whole().await?;
        // The last rows may still be on their way through the clients; what is acknowledged from here on is not judged.
        let acks = self.client.acks();
        let present = writer::present(self.cluster.members[leader].port).await?;
        let lost = verdict::loss(&acks, &present);
        let double = verdict::two_writers(&acks, self.thawed.as_slice());
        if !double.is_empty() {
            return fail(format!("two writers, {} times: {}", double.len(), double[0]));
        }
        match allowed {
            Allowed::Nothing if lost.rows > 0 => fail(format!("acknowledged rows are lost: {lost:?}")),
            Allowed::Tail if !lost.holes.is_empty() || lost.bytes > 1_048_576 => {
                fail(format!("more is lost than asynchronous replication excuses: {lost:?}"))
            }
            Allowed::Nothing | Allowed::Tail => Ok(()),
        }
    }
}

/// Copies the logs of a cluster that failed to `target/cluster-logs/`.
pub fn keep_logs(cluster: &Cluster) {
    let to = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("cluster-logs");
    if std::fs::create_dir_all(&to).is_ok() {
        for member in &cluster.members {
            let name = RUNNING.lock().unwrap_or_else(PoisonError::into_inner).replace("::", "-");
            let kept = to.join(format!("{name}-{}.log", member.name));
            if std::fs::copy(member.log_path(), &kept).is_ok() {
                println!("kept {}", kept.display());
            }
        }
    }
}

/// Kind and name of the leader object of a cluster under test.
pub fn leader_object(mode: StoreMode) -> (&'static str, &'static str) {
    match mode {
        StoreMode::Endpoints => ("endpoints", "test"),
        StoreMode::ConfigMaps => ("configmaps", "test-leader"),
    }
}

/// Fails with `what` unless `ok`.
pub fn must(ok: bool, what: impl Into<String>) -> Res<()> {
    if ok { Ok(()) } else { fail(what) }
}
