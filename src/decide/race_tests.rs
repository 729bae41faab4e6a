//! The race, seen from all members at once: whatever they are and answer, somebody wins or the reason names what is
//! waited for; nobody gives way in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{
    Cluster, Compared, ConfigRecord, FailoverSite, HistoryRow, HolderMark, LeaderRecord, LeaseRecord, Local, Member,
    Now, PeerRole, Released, RewindState, Settings, StartRoleSeen, StoreLink, Tags, Version, WallTime,
};

const ID: &str = "7000000000000000001";
const NAMES: [&str; 3] = ["a", "b", "c"];

/// One member as the proptest draws it.
#[derive(Clone, Debug)]
struct One {
    timeline: u32,
    heard: u32,
    position: u64,
    priority: i64,
    nofailover: bool,
    watchdog_failed: bool,
    diverged: bool,
    site: Option<&'static str>,
    /// Answers at all.
    up: bool,
}

#[derive(Clone, Debug)]
struct Drawn {
    members: Vec<One>,
    /// Where timelines 1, 2 … ended, as far as the store says.
    ends: Vec<u64>,
    optime: u64,
    oath: Option<(u64, u32, BTreeSet<usize>)>,
    strict: bool,
    seconds: u64,
    /// The site of the last leader is `x`.
    rule: FailoverSite,
}

fn sites() -> impl Strategy<Value = FailoverSite> {
    prop::sample::select(vec![FailoverSite::Any, FailoverSite::Any, FailoverSite::Prefer, FailoverSite::Require])
}

fn one() -> impl Strategy<Value = One> {
    let bools =
        (prop::bool::weighted(0.15), prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.8));
    let site = prop::sample::select(vec![None, Some("x"), Some("y")]);
    (1..4u32, 0..4u32, 80..130u64, 1..3i64, bools, site).prop_map(
        |(timeline, heard, position, priority, bools, site)| {
            let (nofailover, watchdog_failed, diverged, up) = bools;
            One { timeline, heard, position, priority, nofailover, watchdog_failed, diverged, site, up }
        },
    )
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let members = prop::collection::vec(one(), 3);
    let ends = prop::collection::vec(80..130u64, 0..3);
    let oath = prop::option::of((80..130u64, 1..4u32, prop::collection::btree_set(0..3usize, 1..4)));
    (members, ends, 80..160u64, oath, prop::bool::weighted(0.2), 0..400u64, sites()).prop_map(
        |(members, mut ends, optime, oath, strict, seconds, rule)| {
            ends.sort_unstable();
            Drawn { members, ends, optime, oath, strict, seconds, rule }
        },
    )
}

fn at(s: u64) -> BootInstant {
    BootInstant::from_nanos(s * 1_000_000_000)
}

fn cluster(d: &Drawn) -> Cluster {
    let lease = LeaseRecord {
        ttl: Some("30".into()),
        acquire_time: Some("t".into()),
        renew_time: Some("r".into()),
        transitions: Some("1".into()),
        leader: None,
    };
    let shutdown = d.oath.as_ref().map(|(position, timeline, who)| Shutdown {
        position: Lsn(*position),
        timeline: Timeline(*timeline),
        members: who.iter().map(|i| NAMES[*i].into()).collect(),
    });
    let optime = d.oath.as_ref().map_or(d.optime, |(position, ..)| *position);
    let released = Released { acquire_time: "t".into(), transitions: "1".into(), shutdown };
    let row = |(i, lsn): (usize, &u64)| HistoryRow {
        timeline: Timeline(i as u32 + 1),
        lsn: Lsn(*lsn),
        reason: String::new(),
        at: None,
        new_leader: None,
    };
    let member = |i: usize| Member {
        api_url: d.members[i].up.then(|| "http://x/patroni".to_owned()),
        tags: Tags { nofailover: d.members[i].nofailover, ..Tags::default() },
        site: d.members[i].site.map(str::to_owned),
        ..Member::default()
    };
    Cluster {
        config: Some(ConfigRecord { version: Version("1".into()), document: Some("{}".into()) }),
        initialize: Initialize::Value(ID.into()),
        history: Some(d.ends.iter().enumerate().map(row).collect()),
        leader: Some(LeaderRecord {
            optime: Some(Lsn(optime)),
            released: Some(released),
            holder: Some(HolderMark {
                acquire_time: "t".into(),
                renew_time: "r".into(),
                site: Some("x".into()),
                ..HolderMark::default()
            }),
            ..LeaderRecord::of(Version("1".into()), lease)
        }),
        members: (0..3).map(|i| (NAMES[i].into(), member(i))).collect(),
        ..Cluster::default()
    }
}

fn answer(m: &One) -> PeerAnswer {
    if !m.up {
        return PeerAnswer::Unreachable("no answer".into());
    }
    if m.diverged {
        return PeerAnswer::Unfit { why: "no position".into(), known_timeline: Timeline(0) };
    }
    PeerAnswer::Fit {
        role: PeerRole::Standby,
        position: Lsn(m.position),
        timeline: Timeline(m.timeline),
        known_timeline: Timeline(m.heard),
        tags: Tags { nofailover: m.nofailover, failover_priority: m.priority, ..Tags::default() },
        watchdog_failed: m.watchdog_failed,
        store_seen: None,
    }
}

/// What member `i` makes of it, all answers given and nothing received any more.
fn outcome_of(d: &Drawn, cluster: &Cluster, i: usize, now: u64) -> Outcome {
    receiving(d, cluster, i, now, (Upstream::Nobody, now, false))
}

/// The same with an upstream, since when, and whether WAL still comes from it.
fn receiving(d: &Drawn, cluster: &Cluster, i: usize, now: u64, from: (Upstream, u64, bool)) -> Outcome {
    let (upstream, since, streaming) = from;
    let m = &d.members[i];
    let mut settings = Settings { check_timeline: d.strict, maximum_lag_on_failover: 40, ..Settings::default() };
    settings.tags.nofailover = m.nofailover;
    settings.tags.failover_priority = m.priority;
    (settings.site, settings.failover_site) = (m.site.map(str::to_owned), d.rule);
    let mut local = Local::at_start(NAMES[i].into(), "s".into(), at(0), Duration::from_secs(30));
    local.store = StoreLink::Following;
    local.rewind = if m.diverged {
        RewindState::Need(Compared { leader: "z".into(), timeline: Timeline(0) })
    } else {
        RewindState::Initial
    };
    let _changed = local.lease.observe(cluster.leader.as_ref(), at(100), settings.ttl);
    local.lease.released = true;
    local.postgres.alive = true;
    local.postgres.started_as = Some(StartRoleSeen::Standby);
    local.postgres.newest_history = Timeline(m.heard);
    local.postgres.probe = Some(Probe {
        at: at(now),
        in_recovery: true,
        timeline: Timeline(m.timeline),
        position: Lsn(m.position),
        received: Lsn(m.position),
        replayed: Lsn(m.position),
        streaming,
        replay_paused: false,
        blocked: None,
        system_id: ID.into(),
        replication: Default::default(),
    });
    (local.postgres.following, local.postgres.followed_at) = (Some(upstream), at(since));
    let answers: BTreeMap<MemberName, PeerAnswer> =
        (0..3).filter(|j| *j != i && d.members[*j].up).map(|j| (NAMES[j].into(), answer(&d.members[j]))).collect();
    local.peers = Some(PeerRound { asked_at: at(now), answers });
    (local.config_read, local.sync_read) = (Some(at(now)), Some(at(now)));
    let ctx = Ctx::new(cluster, &local, &settings, Now { boot: at(now), wall: WallTime(0) });
    let Some(unlocked) = ctx.unlocked() else { panic!("the lock is free") };
    let d = crate::decide::decide(cluster, &local, &settings, ctx.now);
    assert_eq!(crate::decide::check(&d, cluster, &local, &settings, ctx.now), Ok(()));
    outcome(&ctx, &unlocked)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// Whoever gives way to somebody gives way, in the end, to one who takes the lock; whoever gives way to nobody says
    /// what is in its way. A watchdog that has failed is known to the others only, so such a member may win here.
    #[test]
    fn nobody_gives_way_in_a_circle(d in drawn()) {
        let cluster = cluster(&d);
        let up: Vec<usize> = (0..3).filter(|i| d.members[*i].up).collect();
        let outcomes: BTreeMap<usize, Outcome> =
            up.iter().map(|i| (*i, outcome_of(&d, &cluster, *i, 100 + d.seconds))).collect();
        for start in &up {
            let mut who = *start;
            for _ in 0..4 {
                match &outcomes[&who] {
                    Outcome::Win { claim, .. } => {
                        let newest = d.members.iter().filter(|m| m.up && !m.diverged).map(|m| m.timeline.max(m.heard)).max();
                        prop_assert!(claim.map(|c| c.0) > newest, "{outcomes:?}");
                        who = usize::MAX;
                        break;
                    }
                    Outcome::Yield { to: Some(name), .. } => {
                        who = NAMES.iter().position(|n| *n == name.as_str()).unwrap();
                        prop_assert!(d.members[who].up);
                    }
                    Outcome::Yield { to: None, why, .. } => {
                        let waits = ["lag", "not allowed", "diverged", "behind", "does not know", "waiting up to", "failover_site"];
                        prop_assert!(waits.iter().any(|w| why.contains(w)), "{why}");
                        prop_assert!(who == *start, "{start} gives way to {who}, who does not lead: {outcomes:?}");
                        who = usize::MAX;
                        break;
                    }
                    Outcome::Ask(_) | Outcome::Waiting | Outcome::ReadHistory | Outcome::ReadSync | Outcome::Cut => {
                        prop_assert!(false, "all have answered, and nothing comes any more");
                    }
                }
            }
            prop_assert!(who == usize::MAX, "a circle: {outcomes:?}");
        }
    }

    /// Whoever would win on a timeline that has ended takes nothing more of it first: a former leader that came back sends
    /// what the cluster does not have.
    #[test]
    fn nobody_leads_an_ended_timeline_while_more_of_it_may_come(d in drawn()) {
        let cluster = cluster(&d);
        let member = Upstream::Member { name: "z".into(), conn_url: "postgres://z:5432/postgres".into() };
        for i in (0..3).filter(|i| d.members[*i].up) {
            let Outcome::Win { .. } = outcome_of(&d, &cluster, i, 101) else { continue };
            let ended = Timeline(d.members[i].timeline) < cluster.timeline();
            for from in [(member.clone(), 50, false), (Upstream::Nobody, 101, true), (Upstream::Nobody, 102, false)] {
                let waits = matches!(receiving(&d, &cluster, i, 101, from), Outcome::Cut);
                prop_assert_eq!(waits, ended);
            }
        }
    }

    /// Nobody is kept from leading by an oath for ever, and nobody who lacks what a fit member has takes the lock.
    #[test]
    fn an_oath_is_kept_and_ends(d in drawn()) {
        let cluster = cluster(&d);
        let up: Vec<usize> = (0..3).filter(|i| d.members[*i].up).collect();
        for i in &up {
            let late = outcome_of(&d, &cluster, *i, 100 + 301);
            if let Outcome::Yield { why, .. } = &late {
                prop_assert!(!why.contains("waiting up to"), "{why}");
            }
        }
        if let Some((position, timeline, _)) = &d.oath {
            let whole = |m: &One| d.ends.get(m.timeline as usize - 1).is_none_or(|end| m.position <= *end && !d.strict);
            let has = |m: &One| m.timeline >= *timeline && m.position >= *position && whole(m);
            let winners = up.iter().filter(|i| matches!(outcome_of(&d, &cluster, **i, 101), Outcome::Win { .. }));
            for i in winners.filter(|i| !has(&d.members[**i])) {
                let best = up.iter().filter(|j| *j != i).any(|j| {
                    let m = &d.members[*j];
                    let may = !m.nofailover && !m.watchdog_failed && (d.rule != FailoverSite::Require || m.site == Some("x"));
                    has(m) && !m.diverged && may && m.timeline == d.members[*i].timeline
                });
                prop_assert!(!best, "{i} leads past the oath");
            }
        }
    }
}
