//! Fit to lead: one question with one answer, for me and for whoever answered.
//!
//! A member is fit when it is on the newest timeline *by its own WAL* (a fetched history file is not being there), or
//! nobody who answers is and its WAL ends at or before the switch point that the store records for its timeline. Bytes of
//! different timelines are never compared: whoever is on an older one is behind, whatever its position, and beyond its
//! switch point it has diverged. Who is unfit neither wins a race nor is a reason to give way.
//!
//! With `failover_site: require` nobody of another site than the last leader's is fit, unless a person names it; its WAL counts.
//!
//! Among the fit the better one leads: the newer timeline, then whoever has everything of the last clean shutdown, then
//! whoever has heard of the newer timeline, then the further position, and at equality the higher priority. That is one
//! order for everybody, so nobody gives way in a circle.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use super::{Ctx, failsafe, sync, watchdog};
use crate::model::{
    FailoverSite, HistoryRow, LeaderRecord, Lsn, Member, MemberName, PeerAnswer, PeerRole, RewindState, Shutdown,
    SyncRecord, Tags, Timeline,
};
use crate::mutant::{self, Mutant};

/// Why a member may not lead. Reads after "I am" and "NAME is".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// `nofailover`.
    NoFailover,
    /// Its watchdog does not work; why, if that is known.
    Watchdog(Option<String>),
    /// The sync key does not name it: commits that were acknowledged may be missing there.
    NotSynchronous,
    /// The holder that is silent has not named it among those that it needs to go on (failsafe): it was not asked.
    Unlisted,
    /// A rewind began on its data and did not end.
    HalfMade(String),
    /// Compared with a leader, it had diverged.
    Diverged,
    /// Its WAL goes on where the history of the cluster left its timeline.
    BeyondSwitch { timeline: Timeline, position: Lsn, switch: Lsn },
    /// Its timeline is older, and somebody who answers is on a newer one, or may not be asked for less.
    Behind { timeline: Timeline, newest: Timeline },
    /// The history in the store does not know its timeline.
    Unrecorded { timeline: Timeline, recorded: Timeline },
    /// `failover_site: require`, and the last leader was elsewhere.
    Elsewhere { site: Option<String>, home: String },
}

impl Why {
    /// A person who accepts the loss may name it all the same: its data is whole.
    pub(super) fn by_history_alone(&self) -> bool {
        match self {
            Why::NoFailover | Why::Watchdog(_) | Why::NotSynchronous | Why::Unlisted | Why::HalfMade(_) => false,
            Why::Diverged
            | Why::BeyondSwitch { .. }
            | Why::Behind { .. }
            | Why::Unrecorded { .. }
            | Why::Elsewhere { .. } => true,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NoFailover => f.write_str("not allowed to promote"),
            Why::Watchdog(None) => f.write_str("without a working watchdog"),
            Why::Watchdog(Some(why)) => write!(f, "without a working watchdog, which is required: {why}"),
            Why::NotSynchronous => f.write_str("not a synchronous standby"),
            Why::Unlisted => f.write_str("not among the members that the last holder has named (failsafe)"),
            Why::HalfMade(why) => write!(f, "half-made: pg_rewind did not finish ({why})"),
            Why::Diverged => f.write_str("diverged from the last leader"),
            Why::BeyondSwitch { timeline, position, switch } => {
                write!(f, "diverged: at {position} on timeline {timeline}, which ended at {switch}")
            }
            Why::Behind { timeline, newest } => write!(f, "on timeline {timeline}, behind {newest}"),
            Why::Unrecorded { timeline, recorded } => {
                write!(f, "on timeline {timeline}, which the history of the cluster (on {recorded}) does not know")
            }
            Why::Elsewhere { site: Some(site), home } => {
                write!(f, "in site {site}, and failover_site requires that of the last leader, {home}")
            }
            Why::Elsewhere { site: None, home } => {
                write!(f, "in no known site, and failover_site requires that of the last leader, {home}")
            }
        }
    }
}

/// What counts of a member: of me by my own probe, of another by its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) timeline: Timeline,
    /// The newest timeline it has heard of.
    pub(super) known: Timeline,
    pub(super) position: Lsn,
    pub(super) priority: i64,
    /// It has not seen the store for a ttl: it cannot take a lock.
    pub(super) cut_off: bool,
}

impl Standing {
    /// May it have WAL of the cluster that `other` lacks?
    pub(super) fn is_ahead_of(&self, other: &Standing) -> bool {
        (self.timeline, self.position) > (other.timeline, other.position)
    }
}

/// Everybody who answered, and what follows for each.
pub(super) struct Field<'a> {
    rows: &'a [HistoryRow],
    recorded: Timeline,
    strict: bool,
    oath: Option<&'a Shutdown>,
    /// Who may lead without losing what was acknowledged; `None`: nobody has promised anything.
    sync: Option<&'a SyncRecord>,
    /// Those whom the holder that is silent needs to go on; `None`: anybody may lead.
    listed: Option<&'a BTreeMap<String, String>>,
    /// A person asks for this one in spite of that.
    waived: Option<&'a MemberName>,
    answers: &'a BTreeMap<MemberName, PeerAnswer>,
    members: &'a BTreeMap<MemberName, Member>,
    /// The site of the last leader, where it matters.
    home: Option<&'a str>,
    site_rule: FailoverSite,
    /// Whom a person has named, wherever it is.
    named: Option<&'a MemberName>,
    /// My own timeline stands for "unknown": such an answer is compared by its bytes.
    mine: Option<Standing>,
    /// The newest timeline that somebody who may lead is on.
    newest: Timeline,
    /// The number of every timeline that anybody has heard of is at most this.
    heard: Timeline,
    /// Whoever has not seen the store since, in seconds since 1970, is cut off from it.
    store_since: i64,
}

impl<'a> Field<'a> {
    pub(super) fn new(ctx: &Ctx<'a>, answers: &'a BTreeMap<MemberName, PeerAnswer>) -> Field<'a> {
        let cluster = ctx.cluster;
        let recorded = cluster.timeline();
        let mut field = Field {
            rows: cluster.history.as_deref().unwrap_or_default(),
            recorded,
            strict: ctx.settings.check_timeline,
            oath: cluster.leader.as_ref().and_then(|l| l.oath()),
            sync: sync::binding(cluster),
            listed: failsafe::listed(ctx),
            waived: sync::waived(cluster),
            answers,
            members: &cluster.members,
            home: home(ctx),
            site_rule: ctx.settings.failover_site,
            named: named(ctx),
            mine: None,
            newest: Timeline(0),
            heard: recorded.max(ctx.local.postgres.newest_history),
            store_since: ctx.now.wall.0 / 1_000_000 - i64::try_from(ctx.settings.ttl.as_secs()).unwrap_or(i64::MAX),
        };
        field.mine = ctx.local.postgres.probe.as_ref().map(|probe| Standing {
            timeline: if probe.timeline.0 == 0 { recorded } else { probe.timeline },
            known: probe.timeline.max(ctx.local.postgres.newest_history).max(recorded),
            position: probe.position,
            priority: ctx.settings.tags.failover_priority,
            cut_off: false,
        });
        let mine = field.mine.filter(|_| of_me(ctx).is_none());
        // Whom the sync key does not name has promoted nobody: its timeline is not the cluster's.
        let counts = |(name, a): &(&MemberName, &PeerAnswer)| barred(a).is_none() && field.excluded(name).is_none();
        let others = answers.iter().filter(counts).filter_map(|(_, a)| field.of(a));
        let on_record = others.chain(mine).filter(|s| field.off_record(s).is_none()).map(|s| s.timeline);
        field.newest = on_record.max().unwrap_or_default();
        let mine = field.mine.map(|s| s.known.max(s.timeline));
        // What was heard in an earlier round stays heard.
        let earlier = ctx.local.peers.iter().flat_map(|round| round.answers.values());
        let told = answers.values().chain(earlier).map(PeerAnswer::known_timeline).chain(mine);
        field.heard = told.max().unwrap_or_default().max(field.heard);
        // A claim binds numbers whether or not its promotion came about, and whether or not its object is still there.
        let claimed = ctx.local.lease.claimed;
        // What the pods have published outlives a wiped store.
        let published = cluster.members.values().filter_map(|m| m.timeline).max().unwrap_or_default();
        field.heard = field.heard.max(claimed).max(published);
        field
    }

    /// What others have promised keeps it from leading, and no person has named it.
    fn excluded(&self, name: &MemberName) -> Option<Why> {
        if self.waived == Some(name) {
            return None;
        }
        let outside = self.sync.is_some_and(|s| !s.allows(name));
        let unlisted = self.listed.is_some_and(|map| !map.contains_key(name.as_str()));
        outside.then_some(Why::NotSynchronous).or(unlisted.then_some(Why::Unlisted))
    }

    pub(super) fn me(&self) -> Option<Standing> {
        self.mine
    }

    /// The number that a promotion takes: nobody has heard of it yet.
    pub(super) fn next_timeline(&self) -> Timeline {
        let own = self.mine.map_or(self.heard, |me| me.timeline);
        let heard = if mutant::is(Mutant::NumbersAreNotShared) { own } else { self.heard };
        Timeline(heard.0.max(1) + 1)
    }

    fn of(&self, answer: &PeerAnswer) -> Option<Standing> {
        match answer {
            PeerAnswer::Fit { position, timeline, known_timeline, tags, store_seen, .. } => {
                let unknown = self.mine.map_or(self.recorded, |m| m.timeline.max(self.recorded));
                let timeline = if timeline.0 == 0 { unknown } else { *timeline };
                let known = timeline.max(*known_timeline).max(self.recorded);
                let cut_off = store_seen.is_some_and(|at| at < self.store_since);
                Some(Standing { timeline, known, position: *position, priority: tags.failover_priority, cut_off })
            }
            PeerAnswer::Unfit { .. } | PeerAnswer::Down { .. } | PeerAnswer::Unreachable(_) => None,
        }
    }

    /// Judged by the record alone, whoever else is there.
    fn off_record(&self, s: &Standing) -> Option<Why> {
        if s.timeline >= self.recorded || mutant::is(Mutant::PositionsAcrossTimelines) {
            return None;
        }
        let Some(row) = self.rows.iter().find(|row| row.timeline == s.timeline) else {
            return Some(Why::Unrecorded { timeline: s.timeline, recorded: self.recorded });
        };
        if s.position > row.lsn {
            return Some(Why::BeyondSwitch { timeline: s.timeline, position: s.position, switch: row.lsn });
        }
        self.strict.then_some(Why::Behind { timeline: s.timeline, newest: self.recorded })
    }

    /// By its history.
    pub(super) fn unfit(&self, s: &Standing) -> Option<Why> {
        self.off_record(s).or_else(|| {
            (s.timeline < self.newest && !mutant::is(Mutant::PositionsAcrossTimelines))
                .then_some(Why::Behind { timeline: s.timeline, newest: self.newest })
        })
    }

    /// Somebody has heard of a timeline that the history in the view does not lead to: the view may lag, or a leader died
    /// before it could write the history.
    pub(super) fn history_may_be_old(&self) -> bool {
        self.heard > self.recorded.max(Timeline(1))
    }

    /// What `name` said, if it was asked.
    pub(super) fn answer(&self, name: &MemberName) -> Option<&'a PeerAnswer> {
        self.answers.get(name)
    }

    /// How far `name` is, if it answered, fit or not. Names compare without regard to case.
    pub(super) fn standing_of(&self, name: &MemberName) -> Option<Standing> {
        self.answers.iter().find(|(n, _)| n.is(name)).and_then(|(_, answer)| self.of(answer))
    }

    /// What `name` counts for, if it answered and is fit.
    pub(super) fn fit(&self, name: &MemberName) -> Result<Standing, Option<Why>> {
        let answer = self.answers.get(name).ok_or(None)?;
        let standing = self.of(answer).ok_or(None)?;
        let site = self.members.get(name).and_then(|m| m.site.as_deref());
        let away = || elsewhere(self.site_rule, self.home, site).filter(|_| self.named != Some(name));
        match barred(answer).or_else(|| self.excluded(name)).or_else(|| self.unfit(&standing)).or_else(away) {
            Some(why) => Err(Some(why)),
            None => Ok(standing),
        }
    }

    /// All who are fit.
    pub(super) fn all_fit(&self) -> impl Iterator<Item = (&'a MemberName, Standing)> {
        self.answers.keys().filter_map(|name| Some((name, self.fit(name).ok()?)))
    }

    /// Of two that are equal otherwise: is `name` where the last leader was, and I am not?
    pub(super) fn nearer(&self, name: &MemberName, mine: Option<&str>) -> bool {
        let site = self.members.get(name).and_then(|m| m.site.as_deref());
        self.site_rule != FailoverSite::Any && self.home.is_some() && site == self.home && mine != self.home
    }

    /// A member that says it is a primary.
    pub(super) fn primary(&self) -> Option<&'a MemberName> {
        let says = |a: &PeerAnswer| matches!(a, PeerAnswer::Fit { role: PeerRole::Primary, .. });
        self.answers.iter().find(|(_, a)| says(a)).map(|(name, _)| name)
    }

    /// Has it everything of the last clean shutdown?
    pub(super) fn has_oath(&self, s: &Standing) -> bool {
        self.oath.is_none_or(|o| s.timeline >= o.timeline && s.position >= o.position)
    }

    pub(super) fn oath(&self) -> Option<&'a Shutdown> {
        self.oath
    }

    /// `a` against `b`, both fit: who leads rather? Priority aside.
    pub(super) fn compare(&self, a: &Standing, b: &Standing) -> Ordering {
        let key = |s: &Standing| (s.timeline, self.has_oath(s), s.known, s.position);
        if mutant::is(Mutant::PositionsAcrossTimelines) { a.position.cmp(&b.position) } else { key(a).cmp(&key(b)) }
    }
}

/// What bars another member whatever its WAL.
fn barred(answer: &PeerAnswer) -> Option<Why> {
    match answer {
        PeerAnswer::Fit { tags: Tags { nofailover: true, .. }, .. } => Some(Why::NoFailover),
        PeerAnswer::Fit { watchdog_failed: true, .. } => Some(Why::Watchdog(None)),
        PeerAnswer::Fit { .. } | PeerAnswer::Unfit { .. } | PeerAnswer::Down { .. } | PeerAnswer::Unreachable(_) => {
            None
        }
    }
}

/// The site of the last leader, where it matters.
fn home<'a>(ctx: &Ctx<'a>) -> Option<&'a str> {
    let matters = ctx.settings.failover_site != FailoverSite::Any;
    ctx.cluster.leader.as_ref().filter(|_| matters).and_then(LeaderRecord::site)
}

/// The candidate of a request that stands, or of my hand-over.
fn named<'a>(ctx: &Ctx<'a>) -> Option<&'a MemberName> {
    let handover = ctx.local.handover.as_ref().and_then(|h| h.candidate.as_ref());
    handover.or_else(|| ctx.cluster.request().and_then(|r| r.candidate.as_ref()))
}

fn elsewhere(rule: FailoverSite, home: Option<&str>, site: Option<&str>) -> Option<Why> {
    let home = home.filter(|home| rule == FailoverSite::Require && site != Some(home))?;
    Some(Why::Elsewhere { site: site.map(str::to_owned), home: home.to_owned() })
}

/// What bars me whatever the others say.
pub(super) fn of_me(ctx: &Ctx<'_>) -> Option<Why> {
    if ctx.settings.tags.nofailover {
        return Some(Why::NoFailover);
    }
    if let Some(why) = watchdog::bars(ctx) {
        return Some(Why::Watchdog(Some(why)));
    }
    match &ctx.local.rewind {
        RewindState::Failed { why, .. } => Some(Why::HalfMade(why.clone())),
        RewindState::Need(_) => Some(Why::Diverged),
        RewindState::Initial | RewindState::Check | RewindState::NotNeeded(_) | RewindState::Success(_) => {
            elsewhere(ctx.settings.failover_site, home(ctx), ctx.settings.site.as_deref())
        }
    }
}
