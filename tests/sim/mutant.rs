//! Rules that are missing ([`patroni::mutant`]): for each the faults under which its loss must show, and the checkers that
//! must see it. A mutant that no checker of the cluster finds says that a checker or a fault is missing.

use patroni::mutant::Mutant::{self, *};

use super::faults::Fault as F;
use super::faults::{Fault, Plan, SyncPlan};
use super::world::SEC;

/// What may happen while a rule is missing.
pub struct Profile {
    pub faults: &'static [Fault],
    pub twist: fn(&mut Plan),
    /// Every machine has a watchdog.
    pub device: bool,
}

/// A mutant, where it shows, and to whom.
pub struct Case {
    pub mutant: Mutant,
    pub profile: Profile,
    /// A violation begins with one of these.
    pub rules: &'static [&'static str],
}

const fn case(mutant: Mutant, faults: &'static [Fault], twist: fn(&mut Plan), rules: &'static [&'static str]) -> Case {
    Case { mutant, profile: Profile { faults, twist, device: false }, rules }
}

/// The same on machines with a watchdog.
const fn watched(mut case: Case) -> Case {
    case.profile.device = true;
    case
}

const LEASE: &[Fault] = &[F::ApiCut, F::ApiStalls, F::FreezeSidecar, F::FreezePod, F::KillSidecar, F::ApiCutForAll];
const DEATH: &[Fault] =
    &[F::KillSidecar, F::KillPod { reported: true }, F::KillPod { reported: false }, F::PostgresCrash];
const OBJECT: &[Fault] = &[F::LeaderStripped, F::LeaderDeleted, F::KillSidecar, F::ApiCut];
const ABSENT: &[Fault] = &[F::LeaderDeleted, F::ApiCut, F::ApiStalls, F::FreezeSidecar, F::KillSidecar];
const MOVE: &[Fault] = &[F::Switchover, F::SwitchoverTo, F::Terminate, F::StopAll];
const DIVERGE: &[Fault] = &[F::FreezePod, F::NetworkCut, F::KillPod { reported: false }, F::ApiCut, F::Switchover];
/// A branch is made while somebody's watch shows nothing of it.
const UNSEEN: &[Fault] = &[F::ApiStalls, F::FreezePod, F::KillPod { reported: true }, F::ApiCut, F::PostgresCrash];

const WATCHERS: &[Fault] =
    &[F::FreezeWarden, F::FreezeSidecarKeeper, F::FreezeWatchers, F::FreezeKeeper, F::SwitchoverTo, F::KillSidecar];

/// Standbys come and go, and so does the leader.
const SYNC: &[Fault] =
    &[F::KillPod { reported: true }, F::NetworkCut, F::PostgresCrash, F::KillPod { reported: false }, F::ApiCut];

const SILENT: &[Fault] = &[F::FreezeContainer, F::FreezeKeeper, F::FreezeKeeperWarden, F::PostgresCrash];

fn plain(_: &mut Plan) {}
fn bad_api(plan: &mut Plan) {
    plan.bad_api = true;
}
fn slow_views(plan: &mut Plan) {
    (plan.bad_api, plan.slow_network) = (true, true);
    (plan.servers, plan.pods, plan.pause) = (3, 4, 5 * SEC);
}
fn deaf(plan: &mut Plan) {
    plan.deaf = true;
}
fn early(plan: &mut Plan) {
    plan.early = true;
}
fn bad_tools(plan: &mut Plan) {
    plan.bad_tools = true;
}

fn failsafe(plan: &mut Plan) {
    (plan.failsafe, plan.pods) = (true, 3);
}
fn commits(plan: &mut Plan) {
    plan.commits = Some(SyncPlan { strict: false, count: 1, quorum: false });
    (plan.slow_network, plan.pause) = (true, 4 * SEC);
}

/// Quorum mode among four, so that a commit is with one of three standbys.
fn votes(plan: &mut Plan) {
    plan.commits = Some(SyncPlan { strict: false, count: 1, quorum: true });
    (plan.slow_network, plan.pause, plan.pods) = (true, 4 * SEC, 4);
}
/// All of them.
pub const CASES: &[Case] = &[
    case(IgnoresTheTtl, LEASE, plain, &["S1", "S2"]),
    case(BareObjectIsReleased, OBJECT, plain, &["S1", "S2", "S7"]),
    case(SilenceCostsNothing, OBJECT, plain, &["S1", "S2", "S7"]),
    case(AbsenceIsVacancy, ABSENT, bad_api, &["S1", "S2", "S7"]),
    case(AnyVersionWillDo, ABSENT, |p| (p.bad_api, p.pods) = (true, 5), &["S1", "S2", "S7"]),
    case(LeaseFromConfirmation, LEASE, bad_api, &["S1", "S2"]),
    case(UnknownIsConfirmed, LEASE, bad_api, &["S1", "S2"]),
    case(TakesWithoutComparing, LEASE, plain, &["S1", "S2"]),
    case(WritesUnconditionally, LEASE, bad_api, &["S1", "S2"]),
    case(OneContainerIsAll, DEATH, plain, &["S1", "S2"]),
    case(NoMarginForClocks, LEASE, |p| p.bad_clocks = true, &["S1"]),
    case(FencesAfterTheLease, LEASE, plain, &["S2"]),
    case(KeeperNeverFences, LEASE, plain, &["S2", "S9"]),
    case(KeeperNeverKills, LEASE, deaf, &["S2", "S9"]),
    case(DeadmanIsNotSet, WATCHERS, plain, &["S2", "S9"]),
    case(DeadmanIsNotConfirmed, WATCHERS, plain, &["S2", "S9"]),
    case(StuckWardenStays, &[F::FreezeWarden, F::PostgresCrash, F::Switchover], plain, &["L1"]),
    case(SilenceIsImpatient, SILENT, plain, &["S2", "S9"]),
    case(SilenceNeedsNoSession, SILENT, plain, &["S2", "S9"]),
    case(WriterNeedsNoPermission, &[F::PromotedByHand], plain, &["S9"]),
    case(DeadBeforeItsBackends, DEATH, plain, &["S2", "S9", "S10"]),
    case(StopIsTheEnd, MOVE, deaf, &["S2", "S9"]),
    case(StartsWithoutRenewal, DEATH, plain, &["S2"]),
    case(OldProgramsGoOn, &[F::DataWiped, F::KillSidecar, F::FreezeSidecar], bad_tools, &["S10"]),
    case(OathIsForgotten, MOVE, |p| (p.slow_network, p.slow_starts) = (true, true), &["S5"]),
    case(LagIsIgnored, &[F::NetworkCut, F::KillPod { reported: false }, F::FreezePod], plain, &["S5"]),
    case(PositionsAcrossTimelines, DIVERGE, plain, &["S5", "S6"]),
    case(SyncKeyBindsNobody, DEATH, commits, &["S3"]),
    case(NamesGoBeforeTheKey, SYNC, commits, &["S3"]),
    case(KeyBeforeSure, SYNC, commits, &["S3"]),
    case(QuorumNeedsNoVotes, DEATH, votes, &["S4"]),
    case(LeadsInStandbyCluster, &[F::Follow, F::ApiCut, F::KillSidecar], |p| p.pause = 40 * SEC, &["B1", "B2"]),
    case(StartsInPause, &[F::Pause, F::PostgresCrash], plain, &["M1"]),
    case(PromotesInPause, &[F::Pause, F::PostgresCrash, F::KillPod { reported: true }], plain, &["M2"]),
    case(FencesInPause, &[F::Pause, F::ApiCut, F::ApiCutForAll], plain, &["M3"]),
    case(ResumesUnrenewed, &[F::Pause, F::ApiRefuses], |p| p.pause = 20 * SEC, &["M4"]),
    case(TakesPausedHolder, &[F::Pause, F::ApiCut, F::FreezeSidecar], plain, &["S1", "S2"]),
    case(FailsafeByMajority, &[F::NetworkCut, F::ApiCut], failsafe, &["S1", "S2"]),
    case(
        PromisesAreForgotten,
        &[F::ApiCut, F::NetworkCut],
        |p| (p.failsafe, p.pods, p.pause) = (true, 2, 10 * SEC),
        &["S1", "S2"],
    ),
    case(HistoryOnTrust, UNSEEN, slow_views, &["S5", "S6"]),
    watched(case(DisarmsTooEarly, &[F::ApiCut, F::KillSidecar, F::ApiCutForAll], plain, &["W1"])),
    case(NumbersAreNotShared, DIVERGE, plain, &["S6"]),
    case(InitdbDespiteData, &[F::StoreWiped, F::DataWiped], plain, &["S7"]),
    case(UnfencedForEver, &[F::ApiCutForAll, F::FreezeSidecar], early, &["S9"]),
    case(RemovesUnasked, DIVERGE, bad_tools, &["S10"]),
    case(HalfMadeIsWhole, DIVERGE, bad_tools, &["S10"]),
    case(DivergenceIsDenied, DIVERGE, plain, &["L1"]),
    case(NeverFollows, DEATH, plain, &["L1"]),
    case(RequestsStay, MOVE, plain, &["S11"]),
    case(NeverRests, &[F::ApiRefuses], plain, &["L3"]),
    case(KeeperStaysLost, &[F::FreezeKeeper], plain, &["L1"]),
    case(RestoreIsNotSeen, &[F::StoreRestored], plain, &["L1"]),
    case(SilenceIsALostLock, &[F::ApiBlip], |p| p.blips = true, &["L2"]),
    case(LabelsStay, &[F::KillPod { reported: false }, F::FreezePod], |p| p.bad_api = false, &["L3"]),
];

/// How a mutant's rules name a violation: `seed 7: at 80.12: S1 …`.
pub fn rule_of(broken: &str) -> &str {
    broken.splitn(3, ": ").nth(2).and_then(|text| text.split(' ').next()).unwrap_or("")
}
