//! What no decision may do, whatever led to it. Tests panic on it, production refuses the action.
//!
//! Taking the lease, giving it up and becoming a writer are judged from what this member knows, once more and in other
//! words (`Raw`): a mistake in how `decide` reads its lease must not mislead both.
//!
//! Stopping, demoting and permission `none` are never refused.

mod pause;
mod sync;

use super::{Ctx, Hold};
use crate::model::{
    Action, BootInstant, Cluster, DataDir, Decision, Fence, KeeperLink, Local, Now, PeerAnswer, Permission, Role,
    Settings, Shutdown, StandbyNames, StartRole, StartRoleSeen, Stood, TaskKind, Timeline, Timings, UnfencedReason,
    Upstream, WatchdogMode, timings,
};
use crate::mutant::{self, Mutant};

/// Checks every action of a decision.
///
/// # Errors
/// One line per broken invariant: the index of the action and the rule.
pub fn check(
    d: &Decision,
    cluster: &Cluster,
    local: &Local,
    settings: &Settings,
    now: Now,
) -> Result<(), Vec<(usize, String)>> {
    let ctx = Ctx::new(cluster, local, settings, now);
    let broken: Vec<_> = d
        .actions
        .iter()
        .enumerate()
        .filter_map(|(i, action)| broken_rule(&ctx, action).map(|rule| (i, rule.to_owned())))
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(broken) }
}

fn broken_rule(ctx: &Ctx<'_>, action: &Action) -> Option<&'static str> {
    if ctx.local.maintenance.is_on()
        && let Some(rule) = pause::broken_rule(&Raw::of(ctx), action)
    {
        return Some(rule);
    }
    match action {
        Action::Permit(permission) => permit(ctx, permission),
        Action::StartPostgres { .. } if matches!(ctx.local.data, DataDir::HalfRewound { .. }) => {
            Some("starting what pg_rewind has not finished as if it were whole")
        }
        Action::StartPostgres { role: StartRole::Primary, names, .. } => {
            Raw::of(ctx).writer().or_else(|| Raw::of(ctx).waits_for(names))
        }
        Action::Promote { claim } => {
            let names = ctx.local.sync.named.as_ref().unwrap_or(&StandbyNames::AsConfigured);
            Raw::of(ctx).promote(*claim).or_else(|| Raw::of(ctx).waits_for(names))
        }
        Action::NameStandbys(names) => Raw::of(ctx).narrower(names),
        Action::WriteSync { leader, electorate, .. } => Raw::of(ctx).vouch(leader.as_ref(), electorate),
        Action::StartPostgres { role: StartRole::Standby, .. } => {
            ctx.local.postgres.alive.then_some("a second postmaster")
        }
        Action::AcquireLease { stood, claim } => Raw::of(ctx).acquire(stood, *claim),
        Action::RenewLease | Action::ClaimTimeline(_) => {
            let mine = !matches!(ctx.hold, Hold::No) || ctx.local.reclaim.is_some();
            if !mine {
                return Some("renewing a lease that is not mine");
            }
            ctx.local.lease_write.is_some().then_some("two lease writes at once")
        }
        Action::ReleaseLease { shutdown } => Raw::of(ctx).release(shutdown.as_ref()),
        Action::Begin(kind) => begin(ctx, kind),
        Action::DisarmWatchdog => Raw::of(ctx).disarm(),
        Action::ClaimInitialize { .. } => initialize(ctx),
        Action::ReadLease
        | Action::ReadSync
        | Action::QuitSync
        | Action::ReadConfig
        | Action::ProveDeath { .. }
        | Action::WriteSystemId { .. }
        | Action::CancelInitialize { .. }
        | Action::MakeLeaderObject
        | Action::WriteConfig { .. }
        | Action::WriteHistory { .. }
        | Action::UpdateHistory
        | Action::ClearRequest { .. }
        | Action::StopPostgres { .. }
        | Action::Follow { .. }
        | Action::Checkpoint
        | Action::AskPeers { .. }
        | Action::AskFailsafe
        | Action::CancelTask
        | Action::CheckDivergence { .. }
        | Action::BeginHandover(_)
        | Action::EndHandover
        | Action::AnswerRequest { .. }
        | Action::BeginReinit { .. }
        | Action::EndReinit
        | Action::FailBootstrap(_)
        | Action::PlanRestart { .. }
        | Action::RestartDone
        | Action::SyncSlots
        | Action::FeedWatchdog(_)
        | Action::SetRewind(_)
        | Action::SetBootstrapping(_)
        | Action::PublishStatus
        | Action::Exit { .. } => None,
    }
}

fn permit(ctx: &Ctx<'_>, permission: &Permission) -> Option<&'static str> {
    match permission {
        Permission::None => None,
        Permission::Unfenced(UnfencedReason::Bootstrap) => {
            (!ctx.local.bootstrapping).then_some("unfenced permission outside a bootstrap")
        }
        Permission::Unfenced(UnfencedReason::Pause) => Raw::of(ctx).unfence(),
        Permission::Writer { stop_at, kill_at } if Raw::of(ctx).after_maintenance(*stop_at, *kill_at) => None,
        Permission::Writer { stop_at, kill_at } => match &ctx.hold {
            Hold::Leader(own)
                if *stop_at <= own.runs_from() + ctx.timings.stop && *kill_at <= own.runs_from() + ctx.timings.kill =>
            {
                None
            }
            Hold::Leader(_) => Some("a permission that outlives the lease"),
            Hold::Lapsed(_) | Hold::No => {
                // A new cluster waits for its first lock, for less than a ttl from the end of its scripts.
                let ended = ctx.local.task_end.as_ref().filter(|_| ctx.local.bootstrapping).map(|end| end.at);
                let in_time = ended.is_some_and(|ended| stop_at < kill_at && *kill_at < ended + ctx.settings.ttl);
                (!in_time).then_some("a writer's permission without an unexpired lease")
            }
        },
    }
}

/// What this member knows, read anew: nothing here comes from `Ctx::hold`, `Ctx::verdict` or their helpers.
struct Raw<'a> {
    cluster: &'a Cluster,
    local: &'a Local,
    settings: &'a Settings,
    now: BootInstant,
}

impl<'a> Raw<'a> {
    fn of(ctx: &Ctx<'a>) -> Raw<'a> {
        Raw { cluster: ctx.cluster, local: ctx.local, settings: ctx.settings, now: ctx.now.boot }
    }

    /// My lease allows a writer: it was confirmed, the moment of demotion has not come, no process of Postgres died since.
    fn writer(&self) -> Option<&'static str> {
        let pg = &self.local.postgres;
        if self.local.bootstrapping && !pg.alive {
            return None;
        }
        if self.settings.standby_of.is_some() {
            return Some("a writer in a standby cluster");
        }
        let Some(own) = &self.local.own else { return Some("a writer without a lease") };
        let armed = Timings::new(self.settings, own.ttl, self.local.watchdog.armed);
        let demote = armed.or_else(|_| Timings::new(self.settings, own.ttl, None)).map_or(own.ttl / 3, |t| t.demote);
        if self.now >= own.evidence + demote {
            return Some("a writer without an unexpired lease");
        }
        if pg.last_death.is_some_and(|death| own.evidence <= death) {
            return Some("a writer without a renewal sent after the last death of a postmaster");
        }
        None
    }

    fn promote(&self, claim: Option<Timeline>) -> Option<&'static str> {
        let own = self.local.postgres.probe.as_ref().map_or(Timeline(0), |p| p.timeline);
        match claim {
            None => return Some("promoting to a number that nobody claimed"),
            Some(number) if number <= own => return Some("promoting to a timeline that is not newer than my own"),
            Some(number) if number <= self.cluster.timeline() => {
                return Some("promoting to a timeline that the history of the cluster has already");
            }
            Some(_) => {}
        }
        // A promotion that an earlier life ordered may not have begun: it may be ordered again.
        let standby = self.local.postgres.probe.as_ref().is_some_and(|p| p.in_recovery);
        if self.local.postgres.started_as == Some(StartRoleSeen::Primary) && !standby {
            return Some("promoting what runs as a primary");
        }
        let unarmed = self.settings.watchdog == WatchdogMode::Required && self.local.watchdog.armed.is_none();
        if unarmed && !self.local.maintenance.is_on() {
            return Some("a promotion without the watchdog that is required");
        }
        self.writer()
    }

    /// Whatever stops everything else stops no device: only when nobody can write it is switched off.
    fn disarm(&self) -> Option<&'static str> {
        let ttl = self.local.own.as_ref().map_or(self.settings.ttl, |own| own.ttl).min(self.settings.ttl);
        let fits = Timings::new(self.settings, ttl, Some(timings::device(self.settings, ttl))).is_ok();
        let wanted = match self.settings.watchdog {
            WatchdogMode::Off => false,
            WatchdogMode::Automatic => fits && !self.local.maintenance.is_on(),
            WatchdogMode::Required => !self.local.maintenance.is_on(),
        };
        (wanted && self.may_acknowledge() && !mutant::is(Mutant::DisarmsTooEarly))
            .then_some("disarming the watchdog while somebody may write")
    }

    /// Nobody holds the lease any more, as far as can be known here.
    fn acquire(&self, stood: &Stood, claim: Option<Timeline>) -> Option<&'static str> {
        let (local, settings) = (self.local, self.settings);
        if local.lease_write.is_some() {
            return Some("two lease writes at once");
        }
        if !settings.unsupported.is_empty() {
            return Some("leading although the configuration asks for what this version cannot promise");
        }
        if settings.tags.nofailover && !local.bootstrapping {
            return Some("nofailover");
        }
        let (seen, shown) = (&local.lease, self.cluster.leader.as_ref());
        let standing = match stood {
            Stood::Record(record) => seen.record.as_ref() == Some(record),
            Stood::ProvenDead(record) => shown.is_some_and(|l| l.lease == *record),
            Stood::Untouched(version) => shown.is_some_and(|l| l.version == *version && l.lease.leader.is_none()),
            Stood::Nothing => seen.record.is_none(),
        };
        if !standing {
            return Some("taking over from another record than the one that stood");
        }
        let fenced = matches!(local.keeper, KeeperLink::Connected { permission: Permission::Writer { .. } });
        let reads = local.postgres.probe.as_ref().is_some_and(|p| p.in_recovery);
        if local.bootstrapping && !fenced && !reads {
            return Some("a new cluster takes its lock before the keeper has its deadlines");
        }
        let given_up = matches!(stood, Stood::Record(r) if r.leader.is_none() && seen.released);
        let over = given_up || matches!(stood, Stood::ProvenDead(_)) || local.bootstrapping;
        if local.promise.as_ref().is_some_and(|p| self.now < p.until) && !over {
            return Some("racing against a promise");
        }
        let asked = seen.listed.as_ref().is_none_or(|map| map.contains_key(local.me.as_str()));
        if !over && !asked && !self.named_after(self.end_of(stood)) {
            return Some("taking the lock of a holder that did not ask me (failsafe)");
        }
        self.held(stood)
            .or_else(|| self.allowed())
            .or_else(|| self.history())
            .or_else(|| self.number(claim))
            .or_else(|| self.growing())
    }

    /// The person who names me knows that the holder has been silent for its ttl.
    fn given_for_dead(&self) -> bool {
        self.named_after(self.local.lease.since + self.settings.ttl)
    }

    fn named_after(&self, end: BootInstant) -> bool {
        self.names_me() && self.local.request_seen.as_ref().is_some_and(|(_, at)| *at > end)
    }

    /// When the lock that stood was over by my clock.
    fn end_of(&self, stood: &Stood) -> BootInstant {
        match stood {
            Stood::Record(r) | Stood::ProvenDead(r) if r.leader.is_some() => {
                self.local.lease.since + r.ttl_or(self.settings.ttl)
            }
            Stood::Record(_) | Stood::ProvenDead(_) | Stood::Untouched(_) | Stood::Nothing => {
                self.local.lease.silent_until
            }
        }
    }

    /// A person asks for a failover to me, whatever is lost by it.
    fn names_me(&self) -> bool {
        let me = Some(&self.local.me);
        self.cluster.failover.as_ref().is_some_and(|r| r.leader.is_none() && r.candidate.as_ref() == me)
    }

    /// On a timeline that has ended, more of it may be what the cluster has not.
    fn growing(&self) -> Option<&'static str> {
        let pg = &self.local.postgres;
        let probe = pg.probe.as_ref().filter(|p| p.in_recovery && p.timeline < self.cluster.timeline())?;
        let looked = probe.at >= pg.followed_at && !probe.streaming;
        let cut = pg.following == Some(Upstream::Nobody) && looked;
        (!cut).then_some("leading while more of an ended timeline may come")
    }

    /// The history that this member leads by is not older than what anybody has said.
    fn history(&self) -> Option<&'static str> {
        let local = self.local;
        let told = local.peers.iter().flat_map(|round| round.answers.values()).map(PeerAnswer::known_timeline).max();
        let heard = told.unwrap_or_default().max(local.postgres.newest_history);
        // Nobody but a holder of the lock writes to it: what was read since its last record was received stays good.
        let fresh = local.config_read.is_some_and(|at| at >= local.lease.since);
        (heard > self.cluster.timeline().max(Timeline(1)) && !fresh && !local.bootstrapping)
            .then_some("leading by a history that others know to be old")
    }

    fn held(&self, stood: &Stood) -> Option<&'static str> {
        let seen = &self.local.lease;
        match stood {
            Stood::ProvenDead(record) => {
                let proven = self.local.death_proof.as_ref().is_some_and(|proof| proof.record == *record);
                if proven && self.now < seen.hidden_until {
                    return Some("a proof of death of one, while another may hold the lock unseen");
                }
                (!proven).then_some("a proof of death of another record")
            }
            Stood::Record(record) if record.leader.is_some() => {
                let end = seen.since + record.ttl_or(self.settings.ttl);
                if seen.paused && !self.given_for_dead() {
                    return Some("taking a paused holder's lock for silence");
                }
                (self.now <= end).then_some("taking a lease that somebody holds")
            }
            Stood::Record(_) | Stood::Untouched(_) | Stood::Nothing if self.local.bootstrapping => None,
            Stood::Record(_) if seen.released => None,
            Stood::Record(_) => Some("taking an object that names nobody in whatever version it is found"),
            Stood::Nothing => Some("taking a lock whose object is not there"),
            Stood::Untouched(_) if seen.paused && !self.given_for_dead() => {
                Some("taking what a paused holder may still hold")
            }
            Stood::Untouched(_) => {
                let long = self.now >= seen.silent_until && self.now >= self.local.started + self.settings.ttl;
                (!long).then_some("taking a lease in silence, before a full ttl")
            }
        }
    }

    /// The number of the promotion: none for what is a primary already, else one that is nobody's as far as I know.
    fn number(&self, claim: Option<Timeline>) -> Option<&'static str> {
        let pg = &self.local.postgres;
        match (pg.probe.as_ref().filter(|p| p.in_recovery && !self.local.bootstrapping), claim) {
            (Some(probe), Some(number)) => {
                let taken = probe.timeline.max(pg.newest_history).max(self.cluster.timeline());
                (number <= taken).then_some("claiming a timeline that is taken")
            }
            (Some(_), None) if self.settings.standby_of.is_some() => None,
            (Some(_), None) => Some("a standby that takes the lock without claiming a timeline"),
            (None, Some(_)) => Some("claiming a timeline without anything to promote"),
            (None, None) => None,
        }
    }

    /// May a process of Postgres still acknowledge a commit? A standby that was not told to promote does not, nor what the kernel
    /// has ended while the keeper is silent.
    fn may_acknowledge(&self) -> bool {
        let pg = &self.local.postgres;
        let standby = pg.started_as == Some(StartRoleSeen::Standby)
            && pg.promoting.is_none()
            && !self.local.deadman.ordered
            && pg.probe.as_ref().is_none_or(|p| p.in_recovery);
        let ended = matches!(self.local.keeper, KeeperLink::Lost { .. }) && self.ended_by_the_kernel();
        pg.alive && !standby && !ended
    }

    /// A stop that has only begun is not enough: backends acknowledge until they are dead.
    fn release(&self, shutdown: Option<&Shutdown>) -> Option<&'static str> {
        if self.local.lease_write.is_some() {
            return Some("two lease writes at once");
        }
        let silent = matches!(self.local.keeper, KeeperLink::Lost { .. });
        let doubt = silent && self.local.deadman.in_doubt && !self.ended_by_the_kernel();
        if self.may_acknowledge() || doubt {
            return Some("releasing the lock under a running primary");
        }
        if self.local.stranger.is_some_and(|s| s.answers) {
            return Some("releasing the lock under a Postgres that was started by hand");
        }
        if self.local.deadman.in_use.is_some() && !self.local.deadman.container_ended {
            return Some("releasing the lock while something that may write holds the data directory");
        }
        let sworn = shutdown?;
        let clean = match &self.local.data {
            DataDir::Present { control: Some(control), .. } => control.shutdown_position,
            DataDir::Present { control: None, .. }
            | DataDir::HalfRewound { .. }
            | DataDir::Empty
            | DataDir::HalfMade
            | DataDir::Restored
            | DataDir::Unusable(_) => None,
        };
        let true_words =
            clean == Some(sworn.position) && sworn.members.contains(&self.local.me) && !self.local.postgres.alive;
        (!true_words).then_some("an oath about a shutdown that was none")
    }
}

impl Raw<'_> {
    /// Nothing was ever allowed that the kernel has not ended by now, with what hears no signal; and my session has seen it.
    fn ended_by_the_kernel(&self) -> bool {
        let known = &self.local.deadman;
        let bounded = known.fence == Fence::Full && !known.unfenced;
        let over = known.kill_at + std::time::Duration::from_secs(6);
        let gone = known.gone.is_some_and(|at| at <= self.now);
        let pg = &self.local.postgres;
        let asked = pg.started_as == Some(StartRoleSeen::Standby);
        let recovers = asked && pg.probe.as_ref().is_some_and(|p| p.in_recovery && p.at >= over);
        known.container_ended || bounded && (gone || recovers) && self.now >= over
    }
}

fn remove(ctx: &Ctx<'_>, keep_as_failed: bool, verify: bool) -> Option<&'static str> {
    if keep_as_failed && ctx.local.bootstrapping || matches!(ctx.local.data, DataDir::HalfMade | DataDir::Restored) {
        return None;
    }
    if !verify {
        return Some("removing data without asking the leader just before");
    }
    verified_leader(ctx, true)
}

fn begin(ctx: &Ctx<'_>, kind: &TaskKind) -> Option<&'static str> {
    if ctx.local.task.is_some() {
        return Some("two long tasks at once");
    }
    if ctx.local.postgres.alive && *kind != TaskKind::PostBootstrap {
        return Some("changing the data directory of a living postmaster");
    }
    match kind {
        TaskKind::Bootstrap if ctx.local.data == DataDir::Restored => Some("restoring over what is restored"),
        TaskKind::Bootstrap => initialize(ctx),
        TaskKind::Rewind { .. } => verified_leader(ctx, false),
        TaskKind::CreateReplica { .. } => (ctx.local.data != DataDir::Empty).then_some("cloning over data"),
        TaskKind::Remove { keep_as_failed, verify, .. } => remove(ctx, *keep_as_failed, verify.is_some()),
        TaskKind::PostBootstrap | TaskKind::CrashRecovery => None,
    }
}

fn initialize(ctx: &Ctx<'_>) -> Option<&'static str> {
    if !matches!(ctx.local.data, DataDir::Empty | DataDir::Restored) {
        return Some("initializing over data");
    }
    let data = ctx.cluster.members.iter().any(|(name, m)| *name != ctx.local.me && m.shows_data());
    (data && ctx.cluster.initializer.as_ref().is_none_or(|i| i.uid != ctx.local.uid))
        .then_some("initializing while another member shows data")
}

fn verified_leader(ctx: &Ctx<'_>, removes: bool) -> Option<&'static str> {
    if ctx.leader().is_none() && removes {
        return Some("removing data on behalf of another cluster");
    }
    let another = ctx.settings.standby_of.is_some();
    let leader = ctx.leader().map_or(ctx.remote.as_ref().map(|(_, remote)| remote), |(_, member)| member);
    let leads = |role: Option<Role>| role == Some(Role::Primary) || another && role == Some(Role::StandbyLeader);
    let good = leader.is_some_and(|m| m.conn_url.is_some() && leads(m.role));
    (!good).then_some("rewinding or removing data without a verified leader")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LeaderRecord, LeaseRecord, OwnLease, Version, WallTime};
    use std::time::Duration;

    fn at(s: u64) -> BootInstant {
        BootInstant::from_nanos(s * 1_000_000_000)
    }

    /// A reading of the lease that is wrong from the start: the writer is refused all the same.
    #[test]
    fn a_forged_hold_does_not_fool_the_check() {
        let (cluster, settings) = (Cluster::default(), Settings::default());
        let local = Local::at_start("a".into(), "s".into(), at(0), Duration::from_secs(30));
        let forged = OwnLease {
            record: LeaseRecord::default(),
            evidence: at(100),
            ttl: Duration::from_secs(30),
            paused: false,
            prolonged: None,
        };
        let mut ctx = Ctx::new(&cluster, &local, &settings, Now { boot: at(100), wall: WallTime(0) });
        ctx.hold = Hold::Leader(&forged);
        ctx.verdict = crate::model::LeaseVerdict::Released;
        let primary = Action::StartPostgres {
            role: StartRole::Primary,
            upstream: crate::model::Upstream::Nobody,
            names: StandbyNames::AsConfigured,
        };
        for action in [primary, Action::Promote { claim: Some(Timeline(2)) }] {
            assert_eq!(broken_rule(&ctx, &action), Some("a writer without a lease"));
        }
        let absent = Action::AcquireLease { stood: Stood::Nothing, claim: None };
        ctx.now.boot = at(300);
        assert_eq!(broken_rule(&ctx, &absent), Some("taking a lock whose object is not there"));
        let bare = LeaderRecord::of(Version("1".into()), LeaseRecord::default());
        let cluster = Cluster { leader: Some(bare.clone()), ..Cluster::default() };
        let mut local = local.clone();
        assert!(local.lease.observe(Some(&bare), at(50), settings.ttl));
        local.sync_read = Some(at(78));
        let mut ctx = Ctx::new(&cluster, &local, &settings, Now { boot: at(79), wall: WallTime(0) });
        ctx.verdict = crate::model::LeaseVerdict::Vacant;
        let acquire =
            |version: &str| Action::AcquireLease { stood: Stood::Untouched(Version(version.into())), claim: None };
        assert_eq!(broken_rule(&ctx, &acquire("1")), Some("taking a lease in silence, before a full ttl"));
        ctx.now.boot = at(80);
        assert_eq!(broken_rule(&ctx, &acquire("1")), None);
        assert!(broken_rule(&ctx, &acquire("2")).is_some());
    }

    #[test]
    fn a_lease_that_somebody_holds_is_not_taken_whatever_the_verdict_says() {
        let settings = Settings::default();
        let mut local = Local::at_start("a".into(), "s".into(), at(0), Duration::from_secs(30));
        let record = LeaseRecord { leader: Some("b".into()), ttl: Some("30".into()), ..LeaseRecord::default() };
        let leader = LeaderRecord::of(Version("1".into()), record.clone());
        assert!(local.lease.observe(Some(&leader), at(50), settings.ttl));
        let cluster = Cluster { leader: Some(leader), ..Cluster::default() };
        let mut ctx = Ctx::new(&cluster, &local, &settings, Now { boot: at(60), wall: WallTime(0) });
        ctx.verdict = crate::model::LeaseVerdict::Expired("b".into());
        for stood in [Stood::Record(record.clone()), Stood::ProvenDead(record)] {
            let acquire = Action::AcquireLease { stood, claim: None };
            assert!(broken_rule(&ctx, &acquire).is_some());
        }
    }

    #[test]
    fn a_silent_keeper_lets_the_lock_go_when_the_kernel_has_ended_whatever_it_let_run() {
        let settings = Settings::default();
        let cluster = Cluster::default();
        let refused = |change: fn(&mut Local), now: u64| {
            let mut local = Local::at_start("a".into(), "s".into(), at(0), Duration::from_secs(30));
            local.postgres.alive = true;
            local.postgres.started_as = Some(StartRoleSeen::Primary);
            local.keeper = KeeperLink::Lost { since: at(60) };
            let bounded = crate::model::Deadman { fence: Fence::Full, kill_at: at(80), ..Default::default() };
            local.deadman = crate::model::Deadman { gone: Some(at(81)), ..bounded };
            change(&mut local);
            let ctx = Ctx::new(&cluster, &local, &settings, Now { boot: at(now), wall: WallTime(0) });
            broken_rule(&ctx, &Action::ReleaseLease { shutdown: None }).is_some()
        };
        assert!(!refused(|_| {}, 86));
        assert!(refused(|_| {}, 85), "PostgreSQL may not have killed its deaf children");
        assert!(refused(|l| l.keeper = KeeperLink::Connected { permission: Permission::None }, 86));
        assert!(refused(|l| l.deadman.fence = Fence::Partial, 86));
        assert!(refused(|l| l.deadman.unfenced = true, 86));
        assert!(refused(|l| l.deadman.gone = None, 86));
        assert!(refused(|l| (l.postgres.alive, l.deadman.in_doubt, l.deadman.gone) = (false, true, None), 86));
    }

    #[test]
    fn an_oath_is_about_a_clean_shutdown_of_a_postmaster_that_is_dead() {
        let settings = Settings::default();
        let local = Local::at_start("a".into(), "s".into(), at(0), Duration::from_secs(30));
        let cluster = Cluster::default();
        let ctx = Ctx::new(&cluster, &local, &settings, Now { boot: at(60), wall: WallTime(0) });
        let shutdown = Shutdown { position: crate::model::Lsn(7), timeline: Timeline(1), members: ["a".into()].into() };
        let with = Action::ReleaseLease { shutdown: Some(shutdown) };
        assert_eq!(broken_rule(&ctx, &with), Some("an oath about a shutdown that was none"));
        assert_eq!(broken_rule(&ctx, &Action::ReleaseLease { shutdown: None }), None);
    }
}
