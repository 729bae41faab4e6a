//! Synchronous replication: what the leader does with the sync key and with the names Postgres waits for, and who may lead.
//!
//! ```text
//! the key is mine ─ weaken the key ─ other names ─ sure of them ─ strengthen the key        (the order: model/quorum.rs)
//! ```
//! A commit that was acknowledged is with so many of those in the key as the key says, and so the key says who may lead without
//! losing one: each of them, or in quorum mode whoever has votes. It binds whoever wants the lock as long as it names a leader,
//! whatever the mode says: the mode may be switched off because of an outage that the key has not heard of.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use super::fit::{Field, Standing};
use super::{Ctx, RETRY_PAUSE};
use crate::model::quorum::{self, Step};
use crate::model::{
    Action, Cluster, Commits, Decision, Electorate, Lsn, Member, MemberName, OwnLease, Permission, Probe, StandbyNames,
    SyncRecord, Waited,
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

/// In quorum mode whoever leads has votes enough: of the voters, itself among them, so many are not ahead of it that one of them
/// has each commit. Why I have not, and the way out. Whoever led last has everything.
pub(super) fn outvoted(ctx: &Ctx<'_>, field: &Field<'_>, standing: &Standing) -> Option<String> {
    let me = &ctx.local.me;
    let record = binding(ctx.cluster).filter(|r| !r.vouches_for(me) && waived(ctx.cluster) != Some(me))?;
    let key = record.electorate();
    let not_ahead =
        |name: &&MemberName| name.is(me) || field.standing_of(name).is_some_and(|s| !s.is_ahead_of(standing));
    let votes = key.voters.iter().filter(not_ahead).count();
    let needed = key.quorum + 1;
    (votes < needed && !mutant::is(Mutant::QuorumNeedsNoVotes)).then(|| {
        format!(
            "{votes} of the voters ({}), myself counted, have answered and are not ahead of me, {needed} are needed: commits that were \
             acknowledged may be missing here; `patronictl failover --candidate {me}` accepts that",
            key.voters.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ")
        )
    })
}

/// A quorum of voters is there to lead in my place, whoever of them does. Why not.
pub(super) fn no_quorum(ctx: &Ctx<'_>, field: &Field<'_>) -> Option<String> {
    let key = binding(ctx.cluster).map(SyncRecord::electorate).filter(|key| key.quorum > 0)?;
    let there = key.voters.iter().filter(|name| field.standing_of(name).is_some()).count();
    let needed = key.quorum + 1;
    (there < needed).then(|| format!("{there} of {} voters answer, {needed} are needed", key.voters.len()))
}

/// Before a writer begins under a lock that is mine: the key says that from now on nobody leads in my place. It is written on
/// the very version that allows me, after the lock was mine: whoever may have written it since held the lock before me.
/// `Ok`: whom the writer waits for from its first commit.
///
/// A standby that is promoted begins without synchronous standbys: those of before do not follow it yet. A primary that goes
/// on under the same lock keeps them. In quorum mode the key is carried over (see [`inherited`]), and so commits wait for as many
/// as before from the first one on.
pub(super) fn before_writing(ctx: &Ctx<'_>, own: &OwnLease, promoted: bool) -> Result<StandbyNames, Decision> {
    let settings = ctx.settings.synchronous;
    let record = ctx.cluster.sync.as_ref();
    if settings.mode == Commits::Asynchronous && binding(ctx.cluster).is_none() {
        return Ok(StandbyNames::AsConfigured);
    }
    let mine = record.filter(|r| r.leader.as_ref() == Some(&ctx.local.me));
    let carried = settings.mode == Commits::Quorum;
    let kept = match mine {
        Some(mine) if carried || !promoted => mine.electorate(),
        Some(_) => Electorate::default(),
        None => record.filter(|_| carried && promoted).and_then(|r| inherited(ctx, r)).unwrap_or_default(),
    };
    let stands = mine.is_some_and(|r| r.electorate() == kept);
    if is_kept(ctx, own) && stands && ctx.local.sync.may_land(record).next().is_none() {
        return Ok(settings.keep(&kept));
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

/// What the key of my predecessor says once I lead in its place. Each commit is with so many of its voters; I have it, by my
/// votes, and so has who led. With it in my place among the voters, as many of them have it as before.
fn inherited(ctx: &Ctx<'_>, record: &SyncRecord) -> Option<Electorate> {
    let me = &ctx.local.me;
    let predecessor = record.leader.as_ref().filter(|_| waived(ctx.cluster) != Some(me))?;
    let mut key = record.electorate();
    (key.voters.remove(me) && key.voters.insert(predecessor.clone())).then_some(key)
}

/// This process has written the key under this lock, so what stands there is known.
fn is_kept(ctx: &Ctx<'_>, own: &OwnLease) -> bool {
    let since = &ctx.local.sync.since;
    since.is_some() && *since == own.record.acquire_time
}

pub(super) fn write(ctx: &Ctx<'_>, leader: Option<&MemberName>, electorate: Electorate) -> Action {
    let expect = ctx.cluster.sync.as_ref().map(|r| r.version.clone());
    Action::WriteSync { expect, leader: leader.cloned(), electorate }
}

/// The key names others, and it was mine when I was promoted: somebody has led since, and may have acknowledged what I lack.
pub(super) fn usurped(ctx: &Ctx<'_>) -> Option<String> {
    if ctx.settings.synchronous.mode == Commits::Asynchronous {
        return None;
    }
    let record = binding(ctx.cluster).filter(|r| !r.vouches_for(&ctx.local.me))?;
    Some(format!("demoting self because the sync key names others ({})", record.in_words()))
}

/// What the primary does for its standbys, beside everything else.
pub(super) fn keep(ctx: &Ctx<'_>, own: &OwnLease, d: Decision, probe: &Probe) -> Decision {
    if bars(ctx).is_some() || binding(ctx.cluster).is_some_and(|r| !r.vouches_for(&ctx.local.me)) {
        // Not mine to write. Whose lock this is shows with the next renewal.
        return d;
    }
    match ctx.settings.synchronous.mode {
        Commits::Asynchronous => let_go(ctx, d, probe),
        Commits::Quorum | Commits::Synchronous => assign(ctx, own, d, probe),
    }
}

/// The mode is off: the key first, then the names. Whoever races goes by the key.
fn let_go(ctx: &Ctx<'_>, d: Decision, probe: &Probe) -> Decision {
    if binding(ctx.cluster).is_some() {
        if !ctx.local.mode_is_fresh(ctx.now.boot) {
            let again = d.wake_by(ctx.now.boot + RETRY_PAUSE);
            return again.then_if(!ctx.local.configuring, || Action::ReadConfig);
        }
        return d.then_if(!ctx.local.sync.writing, || write(ctx, None, Electorate::default()));
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
        let kept = mine.map(SyncRecord::electorate).unwrap_or_default();
        return d.then_if(!keeping.writing, || write(ctx, Some(&ctx.local.me), kept));
    };
    if keeping.writing {
        return d;
    }
    let key = record.electorate();
    let wanted = wanted(ctx, probe, &key);
    let d = match wanted.names.is_empty() && settings.strict {
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
        let clear = key != Electorate::default();
        return soon(d.then_if(clear, || write(ctx, Some(&ctx.local.me), Electorate::default())));
    }
    let names = settings.names(wanted.clone());
    let unsure: Vec<Electorate> = keeping.may_land(Some(record)).map(|w| w.electorate.clone()).collect();
    let everybody = names.members().filter(|_| mutant::is(Mutant::KeyBeforeSure));
    let standing = quorum::Standing {
        key: &key,
        unsure: &unsure,
        told: keeping.named.as_ref() == Some(&names),
        sure: everybody.unwrap_or(keeping.sure()),
    };
    match quorum::step(&standing, &wanted, settings.mode == Commits::Quorum) {
        Step::Key(key) => soon(d.then(write(ctx, Some(&ctx.local.me), key))),
        Step::Names(_) => soon(d.then(Action::NameStandbys(names))),
        Step::Wait => soon(d),
        Step::Nothing if keeping.in_force() || wanted.names.is_empty() => d,
        Step::Nothing => soon(d),
    }
}

/// Whom commits are to wait for. In strict mode, if nobody is there, whoever the key vouches for stays named.
fn wanted(ctx: &Ctx<'_>, probe: &Probe, key: &Electorate) -> Waited {
    let settings = ctx.settings.synchronous;
    let mut names: BTreeSet<MemberName> = picked(ctx, probe).into_iter().collect();
    let mut least = 0;
    if names.is_empty() && settings.strict {
        names.clone_from(&key.voters);
        least = key.must_hold();
    }
    let number = match settings.mode {
        Commits::Quorum => settings.count.min(names.len()).max(least),
        Commits::Synchronous | Commits::Asynchronous => names.len(),
    };
    Waited { number, names }
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
    let quorum = settings.mode == Commits::Quorum;
    found.sort_by_key(|c| {
        let barred = c.member.tags.nofailover;
        // Of equal priority those in other sites first: what one site loses, the other has.
        let near = ctx.settings.site.is_some() && c.member.site == ctx.settings.site;
        (quorum && barred, Reverse(c.member.tags.sync_priority), near, Reverse(c.rank), barred, Reverse(c.position))
    });
    // In quorum mode everybody who may lead votes; who may not, only where there are too few.
    let taken = found.iter().enumerate().filter(|(i, c)| *i < settings.count || quorum && !c.member.tags.nofailover);
    taken.map(|(_, c)| c.name.clone()).collect()
}

/// I stand in the key of somebody else.
pub(super) fn in_key(ctx: &Ctx<'_>) -> bool {
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
    if !in_key(ctx) || !pg.alive || pg.stopping.is_some() || ctx.leader().is_none() || ctx.keeper_lost() {
        return None;
    }
    let text = "Waiting for primary to release us from synchronous standby";
    let Some(since) = ctx.local.quits_sync else {
        return Some(ctx.wait(text).then(Action::QuitSync).wake_by(ctx.now.boot));
    };
    let until = since + patience(ctx);
    (ctx.now.boot < until).then(|| ctx.wait(text).wake_by(until))
}
