//! Synchronous replication: what the leader does with the sync key and with the names Postgres waits for, and who may lead.
//!
//! ```text
//! the key is mine ─ names cover the key ─ out of the key ─ other names ─ sure of them ─ into the key
//! ```
//! Whoever stands in the key is named: a member is named first and enters the key last; it leaves the key first. So a commit
//! that was acknowledged is with everybody in the key, and the key says who may lead without losing one. It binds whoever
//! wants the lock as long as it names a leader, whatever the mode says: the mode may be switched off because of an outage that
//! the key has not heard of.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::{Ctx, RETRY_PAUSE};
use crate::model::{
    Action, Cluster, Commits, Decision, Lsn, Member, MemberName, OwnLease, Permission, Probe, StandbyNames, SyncRecord,
};
use crate::mutant::{self, Mutant};

/// Names that were written, or standbys that catch up, are looked at again this soon: no event tells.
const CHANGES_POLL: Duration = Duration::from_millis(250);

/// The key, while it binds.
pub(super) fn binding(cluster: &Cluster) -> Option<&SyncRecord> {
    cluster.sync.as_ref().filter(|s| s.leader.is_some() && !mutant::is(Mutant::SyncKeyBindsNobody))
}

/// A person asks for a failover to this member, whatever is lost by it.
pub(super) fn waived(cluster: &Cluster) -> Option<&MemberName> {
    let request = cluster.request().filter(|r| r.leader.is_none() && r.scheduled_at.is_none())?;
    request.candidate.as_ref()
}

/// The key keeps me from an empty throne; why, and the way out.
pub(super) fn bars(ctx: &Ctx<'_>) -> Option<String> {
    let record = binding(ctx.cluster).filter(|r| !r.allows(&ctx.local.me))?;
    (waived(ctx.cluster) != Some(&ctx.local.me)).then(|| {
        format!(
            "I am not a synchronous standby ({}): commits that were acknowledged may be missing here; `patronictl failover \
             --candidate {}` accepts that",
            record.in_words(),
            ctx.local.me
        )
    })
}

/// Before a writer begins under a lock that is mine: the key says that from now on nobody leads in my place. It is written on
/// the very version that allows me, after the lock was mine: whoever may have written it since held the lock before me.
/// `Ok`: whom the writer waits for from its first commit.
///
/// A standby that is promoted begins without synchronous standbys: those of before do not follow it yet. A primary that goes
/// on under the same lock keeps them.
pub(super) fn before_writing(ctx: &Ctx<'_>, own: &OwnLease, promoted: bool) -> Result<StandbyNames, Decision> {
    let settings = ctx.settings.synchronous;
    let record = ctx.cluster.sync.as_ref();
    if settings.mode == Commits::Asynchronous && binding(ctx.cluster).is_none() {
        return Ok(StandbyNames::AsConfigured);
    }
    let mine = record.filter(|r| r.leader.as_ref() == Some(&ctx.local.me));
    let kept = mine.filter(|_| !promoted).map(|r| r.standbys.clone()).unwrap_or_default();
    if is_kept(ctx, own) && mine.is_some_and(|r| r.standbys == kept) && ctx.local.sync.may_land(record).next().is_none()
    {
        return Ok(settings.all_of(kept.into_iter().collect()));
    }
    if let Some(why) = bars(ctx) {
        let free = ctx.local.lease_write.is_none();
        return Err(ctx
            .wait(format!("giving the lock back: {why}"))
            .then(Action::Permit(Permission::None))
            .then_if(free, || Action::ReleaseLease { shutdown: None }));
    }
    let d = ctx.wait("writing the sync key before Postgres takes commits").wake_by(ctx.now.boot + RETRY_PAUSE);
    Err(d.then_if(!ctx.local.sync.writing, || write(ctx, Some(&ctx.local.me), kept)))
}

/// This process has written the key under this lock, so what stands there is known.
fn is_kept(ctx: &Ctx<'_>, own: &OwnLease) -> bool {
    let since = &ctx.local.sync.since;
    since.is_some() && *since == own.record.acquire_time
}

pub(super) fn write(ctx: &Ctx<'_>, leader: Option<&MemberName>, standbys: Vec<MemberName>) -> Action {
    let expect = ctx.cluster.sync.as_ref().map(|r| r.version.clone());
    Action::WriteSync { expect, leader: leader.cloned(), standbys }
}

/// The key names others, and it was mine when I was promoted: somebody has led since, and may have acknowledged what I lack.
pub(super) fn usurped(ctx: &Ctx<'_>) -> Option<String> {
    if ctx.settings.synchronous.mode == Commits::Asynchronous {
        return None;
    }
    let record = binding(ctx.cluster).filter(|r| !r.allows(&ctx.local.me))?;
    Some(format!("demoting self because the sync key names others ({})", record.in_words()))
}

/// What the primary does for its standbys, beside everything else.
pub(super) fn keep(ctx: &Ctx<'_>, own: &OwnLease, d: Decision, probe: &Probe) -> Decision {
    if bars(ctx).is_some() {
        // Not mine to write. Whose lock this is shows with the next renewal.
        return d;
    }
    match ctx.settings.synchronous.mode {
        Commits::Asynchronous => let_go(ctx, d, probe),
        // What an earlier mode or another member has promised stays promised.
        Commits::Quorum => d,
        Commits::Synchronous => assign(ctx, own, d, probe),
    }
}

/// The mode is off: the key first, then the names. Whoever races goes by the key.
fn let_go(ctx: &Ctx<'_>, d: Decision, probe: &Probe) -> Decision {
    if binding(ctx.cluster).is_some() {
        if !ctx.local.mode_is_fresh(ctx.now.boot) {
            let again = d.wake_by(ctx.now.boot + RETRY_PAUSE);
            return again.then_if(!ctx.local.configuring, || Action::ReadConfig);
        }
        return d.then_if(!ctx.local.sync.writing, || write(ctx, None, Vec::new()));
    }
    let ours = match &ctx.local.sync.named {
        Some(names) => *names != StandbyNames::AsConfigured,
        None => !probe.replication.names.is_empty(),
    };
    let settled = ctx.local.sync.may_land(ctx.cluster.sync.as_ref()).next().is_none();
    d.then_if(ours && settled, || Action::NameStandbys(StandbyNames::AsConfigured))
}

/// One step at a time; the answer to it decides anew.
fn assign(ctx: &Ctx<'_>, own: &OwnLease, d: Decision, probe: &Probe) -> Decision {
    let keeping = &ctx.local.sync;
    let settings = ctx.settings.synchronous;
    // Nothing tells when a standby goes away.
    let d = d.wake_by(ctx.now.boot + (ctx.settings.loop_wait / 4).max(CHANGES_POLL));
    let mine = ctx.cluster.sync.as_ref().filter(|r| r.leader.as_ref() == Some(&ctx.local.me));
    let Some(record) = mine.filter(|_| is_kept(ctx, own)) else {
        let kept = mine.map(|r| r.standbys.clone()).unwrap_or_default();
        return d.then_if(!keeping.writing, || write(ctx, Some(&ctx.local.me), kept));
    };
    if keeping.writing {
        return d;
    }
    let in_key: BTreeSet<MemberName> = record.standbys.iter().cloned().collect();
    let mut wanted: BTreeSet<MemberName> = picked(ctx, probe).into_iter().collect();
    if wanted.is_empty() && settings.strict {
        // Nobody is there: who had everything stays named, or nobody may acknowledge.
        wanted.clone_from(&in_key);
    }
    let d = match wanted.is_empty() && settings.strict {
        true => d.warn(
            "No active replication connections and synchronous_mode_strict is requested. Commits will be delayed.",
        ),
        false => d,
    };
    let soon = |d: Decision| d.wake_by(ctx.now.boot + CHANGES_POLL);
    if let Some(names) = keeping.overruled(ctx.now.boot) {
        // Commits do not wait for those that the key vouches for.
        let written = keeping.named.as_ref().and_then(StandbyNames::text).unwrap_or_default();
        let d = d.warn(format!(
            "synchronous_standby_names is '{names}', and was written as '{written}': something overrules it (ALTER SYSTEM, an included \
             file, or a file that Postgres refuses; see pg_file_settings). Nobody is vouched for until it is gone"
        ));
        return soon(d.then_if(!in_key.is_empty(), || write(ctx, Some(&ctx.local.me), Vec::new())));
    }
    if !in_key.is_subset(&wanted) && !mutant::is(Mutant::NamesGoBeforeTheKey) {
        let stay = in_key.intersection(&wanted).cloned().collect();
        return d.then(write(ctx, Some(&ctx.local.me), stay));
    }
    // A write that was not answered clearly may name others still: it is written again before names are narrowed.
    if keeping.may_land(Some(record)).next().is_some() {
        return soon(d.then(write(ctx, Some(&ctx.local.me), record.standbys.clone())));
    }
    let names = settings.all_of(wanted.clone());
    if keeping.named.as_ref() != Some(&names) {
        return soon(d.then(Action::NameStandbys(names)));
    }
    let trusted =
        |name: &MemberName| in_key.contains(name) || keeping.is_sure(name) || mutant::is(Mutant::KeyBeforeSure);
    let sure: Vec<MemberName> = wanted.iter().filter(|name| trusted(name)).cloned().collect();
    if sure.len() == wanted.len() && sure.len() == in_key.len() {
        return if keeping.in_force() || wanted.is_empty() { d } else { soon(d) };
    }
    if sure.len() > in_key.len() { d.then(write(ctx, Some(&ctx.local.me), sure)) } else { soon(d) }
}

/// A standby that may be chosen.
struct Candidate<'a> {
    name: &'a MemberName,
    member: &'a Member,
    rank: u8,
    position: Lsn,
}

/// The standbys that should be synchronous now: those that stream from here and are well, the preferred and the present
/// ones first.
fn picked(ctx: &Ctx<'_>, probe: &Probe) -> Vec<MemberName> {
    let settings = ctx.settings.synchronous;
    let senders = &probe.replication.senders;
    let streams = |name: &MemberName| senders.iter().any(|s| s.streaming && s.name.is(name));
    let mut found: Vec<Candidate<'_>> = Vec::new();
    for (name, member) in &ctx.cluster.members {
        let mine = || senders.iter().filter(|s| s.name.is(name));
        let cascades = member
            .tags
            .replicatefrom
            .as_ref()
            .is_some_and(|from| *from != ctx.local.me && *from != *name && streams(from));
        let well = member.is_running() && !member.tags.nosync && *name != ctx.local.me && !cascades;
        // Of two that call themselves so, commits wait for one: nobody knows for which.
        let alone = mine().count() == 1;
        if let (true, Some(position), Some(rank)) =
            (well && alone && streams(name), mine().map(|s| s.position).min(), mine().map(|s| s.rank).max())
        {
            found.push(Candidate { name, member, rank, position });
        }
    }
    let best = if found.len() > 1 { found.iter().map(|c| c.position).max() } else { None }.unwrap_or(probe.position);
    found.retain(|c| settings.maximum_lag.is_none_or(|most| best.ahead_of(c.position) <= most));
    found.sort_by_key(|c| {
        (Reverse((c.member.tags.sync_priority, c.rank)), c.member.tags.nofailover, Reverse(c.position))
    });
    found.into_iter().take(settings.count).map(|c| c.name.clone()).collect()
}

/// The key says that I have every commit that was acknowledged.
pub(super) fn vouched(ctx: &Ctx<'_>) -> bool {
    let me = &ctx.local.me;
    binding(ctx.cluster).is_some_and(|r| r.leader.as_ref() != Some(me) && r.standbys.iter().any(|n| n.is(me)))
}

/// How long a synchronous standby that stops waits until it is one no more.
fn patience(ctx: &Ctx<'_>) -> Duration {
    ctx.settings.loop_wait * 2
}

/// A synchronous standby that is about to stop says so, and waits for a moment until nobody waits for it: else every commit
/// of the cluster would hang until its leader finds out.
pub(super) fn leaves(ctx: &Ctx<'_>) -> Option<Decision> {
    let pg = &ctx.local.postgres;
    if !vouched(ctx) || !pg.alive || pg.stopping.is_some() || ctx.leader().is_none() || ctx.keeper_lost() {
        return None;
    }
    let text = "Waiting for primary to release us from synchronous standby";
    let Some(since) = ctx.local.quits_sync else {
        return Some(ctx.wait(text).then(Action::QuitSync).wake_by(ctx.now.boot));
    };
    let until = since + patience(ctx);
    (ctx.now.boot < until).then(|| ctx.wait(text).wake_by(until))
}
