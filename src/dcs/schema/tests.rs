//! Round trips through annotations, and the byte-exact forms that Patroni 4.1 members read and write.

use proptest::prelude::*;

use super::super::MemberStatus;
use super::super::options::{Access, StoreOptions};
use super::*;
use crate::model::{BootInstant, Change, PostgresState, Released, Role, Shutdown, TimelineClaim, WallTime};

/// What a server holds after a patch on nothing.
fn applied(patch: &Patch) -> Annotations {
    patch.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

fn options() -> StoreOptions {
    let access = Access::Server { url: String::new(), token: None };
    StoreOptions::new("demo", Some("a".into()), access, BootInstant::default, WallTime::default)
}

fn names() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,12}"
}

fn leases() -> impl Strategy<Value = LeaseRecord> {
    let text = || proptest::option::of("[ -~]{0,30}");
    (proptest::option::of(names()), text(), text(), text(), text()).prop_map(
        |(leader, ttl, acquire_time, renew_time, transitions)| LeaseRecord {
            leader: leader.map(MemberName),
            ttl,
            acquire_time,
            renew_time,
            transitions,
        },
    )
}

fn holders() -> impl Strategy<Value = HolderMark> {
    let containers = proptest::collection::btree_map(names(), "[ -~]{0,20}", 0..4);
    let site = proptest::option::of("[a-z]{0,9}");
    ("[ -~]{0,20}", "[ -~]{0,20}", containers, ".{0,20}", ".{0,20}", any::<bool>(), site).prop_map(
        |(uid, session, containers, acquire_time, renew_time, paused, site)| HolderMark {
            uid,
            session,
            containers,
            acquire_time,
            renew_time,
            paused,
            site,
        },
    )
}

proptest! {
    #[test]
    fn a_lease_and_its_holder_survive_the_store(record in leases(), holder in holders()) {
        let a = applied(&lease_patch(&record, Some(&holder)));
        let leader = leader_from("7", &a, vec![], &mut Vec::new());
        prop_assert_eq!(&leader.lease, &record);
        prop_assert_eq!(leader.holder, Some(holder));
        prop_assert_eq!(from_note(&note(&record)), Some(record));
    }

    #[test]
    fn a_release_and_a_claimed_number_survive_the_store_and_writes_that_do_not_name_them(
        record in leases(), acquire_time in ".{0,20}", transitions in ".{0,6}", timeline in any::<u32>(),
        shutdown in proptest::option::of((any::<u64>(), any::<u32>(), proptest::collection::btree_set(names(), 0..4))),
    ) {
        let shutdown = shutdown.map(|(position, timeline, members)| Shutdown {
            position: Lsn(position),
            timeline: Timeline(timeline),
            members: members.into_iter().map(MemberName).collect(),
        });
        let released = Released { acquire_time: acquire_time.clone(), transitions: transitions.clone(), shutdown };
        let claim = TimelineClaim { timeline: Timeline(timeline), acquire_time, transitions };
        let mut a = applied(&released_patch(&Change::Set(released.clone())));
        a.extend(applied(&timeline_patch(&Change::Set(claim.clone()))));
        for patch in [record_patch(&record), released_patch(&Change::Keep), timeline_patch(&Change::Keep)] {
            for (key, value) in patch {
                match value.as_str() {
                    Some(text) => a.insert(key, text.to_owned()),
                    None => a.remove(&key),
                };
            }
        }
        let mut warnings = Vec::new();
        let leader = leader_from("7", &a, vec![], &mut warnings);
        prop_assert_eq!((leader.released, leader.claim, warnings), (Some(released), Some(claim), vec![]));
    }

    #[test]
    fn the_status_of_a_leader_survives_the_store(
        optime in any::<u64>(),
        slots in proptest::collection::btree_map(names(), any::<u64>().prop_map(Lsn), 0..4),
        retain in proptest::collection::btree_set("[a-z\"\\\\]{1,6}", 0..4),
    ) {
        let status = LeaderStatus { optime: Some(Lsn(optime)), slots, retain_slots: retain.into_iter().collect() };
        let leader = leader_from("7", &applied(&leader_status_patch(&status)), vec![], &mut Vec::new());
        prop_assert_eq!(leader.optime, status.optime);
        prop_assert_eq!(leader.slots, status.slots);
        prop_assert_eq!(leader.retain_slots, status.retain_slots);
    }

    #[test]
    fn history_survives_the_store(rows in proptest::collection::vec(
        (any::<u32>(), any::<u64>(), ".{0,20}", proptest::option::of(".{0,20}"), proptest::option::of(names())), 0..5)
    ) {
        let rows: Vec<HistoryRow> = rows.into_iter().map(|(tl, lsn, reason, at, new_leader)| HistoryRow {
            timeline: Timeline(tl),
            lsn: Lsn(lsn),
            reason,
            at: if new_leader.is_some() { Some(at.unwrap_or_default()) } else { at },
            new_leader,
        }).collect();
        let parts = config_from("1", &applied(&history_patch(&rows)), &mut Vec::new());
        prop_assert_eq!(parts.history, Some(rows));
    }

    #[test]
    fn a_request_survives_the_store(leader in proptest::option::of(names()), candidate in proptest::option::of(names()), at in 0i64..4_000_000_000_000_000) {
        let request = RequestText {
            leader: leader.clone().map(MemberName),
            candidate: candidate.clone().map(MemberName),
            scheduled_at: Some(format_wall(WallTime(at))),
        };
        let read = failover_from("1", &applied(&failover_patch(&request).unwrap()), &mut Vec::new());
        prop_assert_eq!(read.leader, request.leader);
        prop_assert_eq!(read.candidate, request.candidate);
        prop_assert_eq!(read.scheduled_at, Some(WallTime(at)));
    }

    #[test]
    fn member_data_survives_the_store(
        xlog in proptest::option::of(any::<u64>()), replay in 1u64.., timeline in 1u32..,
        pending in any::<bool>(), checkpoint in any::<bool>(), state in 0usize..15,
    ) {
        let words = ["running", "starting", "stopped", "crashed", "creating replica"];
        let mut status = MemberStatus::new("postgres://h:5432/postgres", "http://h:8008/patroni",
            PostgresState::from_word(words[state % words.len()]), Role::Replica);
        status.xlog_location = xlog.map(Lsn);
        status.replay_lsn = Some(Lsn(replay));
        status.timeline = Some(Timeline(timeline));
        status.pending_restart = pending;
        status.checkpoint_pending = checkpoint;
        let text = status_text(&status, "primary");
        let m = member_from("a", &applied(&status_patch(text.clone())), &mut Vec::new());
        prop_assert_eq!(m.conn_url.as_ref(), Some(&status.conn_url));
        prop_assert_eq!(m.api_url.as_ref(), Some(&status.api_url));
        prop_assert_eq!(m.state, Some(status.state));
        prop_assert_eq!(m.role, Some(status.role));
        prop_assert_eq!(m.xlog_location, status.xlog_location);
        prop_assert_eq!(m.replay_lsn, status.replay_lsn);
        prop_assert_eq!(m.timeline, status.timeline);
        prop_assert_eq!(m.pending_restart, pending);
        prop_assert_eq!(m.checkpoint_pending, checkpoint);
        prop_assert_eq!(m.raw, text);
    }

    #[test]
    fn nothing_anybody_writes_makes_reading_fail(key in "[a-z_.A-Z]{1,20}", text in ".{0,60}") {
        for key in [key.as_str(), promise::RELEASED, promise::TIMELINE, SLOTS, RETAIN_SLOTS, FAILSAFE, HISTORY, HOLDER, INITIALIZER, STATUS, OPTIME, QUORUM, SCHEDULED_AT] {
            let a = Annotations::from([(key.to_owned(), text.clone())]);
            let mut warnings = Vec::new();
            assert_eq!(released_from(&a, &mut warnings), None);
            assert_eq!(claim_from(&a, &mut warnings), None);
            leader_from("1", &a, vec![], &mut warnings);
            config_from("1", &a, &mut warnings);
            failover_from("1", &a, &mut warnings);
            sync_from("1", &a);
            member_from("a", &a, &mut warnings);
        }
    }

    #[test]
    fn times_survive(micros in 0i64..4_000_000_000_000_000) {
        prop_assert_eq!(parse_wall(&format_wall(WallTime(micros))), Some(WallTime(micros)));
    }
}

#[test]
fn times_are_written_as_python_does() {
    assert_eq!(format_wall(WallTime(1_738_314_902_123_456)), "2025-01-31T09:15:02.123456+00:00");
    assert_eq!(format_wall(WallTime(1_738_314_902_000_000)), "2025-01-31T09:15:02+00:00");
    assert_eq!(format_wall(WallTime(1_738_314_902_000_007)), "2025-01-31T09:15:02.000007+00:00");
    for text in
        ["2025-01-31T10:15:02+01:00", "2025-01-31T09:15:02Z", "2025-01-31 09:15:02+00:00", "2025-01-31T09:15:02"]
    {
        assert_eq!(parse_wall(text), Some(WallTime(1_738_314_902_000_000)), "{text}");
    }
    assert_eq!(parse_wall("tomorrow"), None);
}

#[test]
fn the_five_keys_and_the_holder_have_their_exact_form() {
    let record = LeaseRecord {
        leader: Some("pg-0".into()),
        ttl: Some(ttl_text(Duration::from_secs(30).mul_f64(time_scale()))),
        acquire_time: Some("A".into()),
        renew_time: Some("R".into()),
        transitions: Some("3".into()),
    };
    let mark = HolderMark {
        uid: "u".into(),
        session: "s".into(),
        containers: BTreeMap::from([("postgres".into(), "c://1".into())]),
        acquire_time: "A".into(),
        renew_time: "R".into(),
        paused: false,
        site: None,
    };
    let a = applied(&lease_patch(&record, Some(&mark)));
    let expected = [
        ("acquireTime", "A"),
        ("leader", "pg-0"),
        (
            "patroni.holder",
            r#"{"uid":"u","session":"s","containers":{"postgres":"c://1"},"acquireTime":"A","renewTime":"R"}"#,
        ),
        ("renewTime", "R"),
        ("transitions", "3"),
        ("ttl", "30"),
    ];
    assert_eq!(a, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn a_release_and_a_claimed_number_have_their_exact_form() {
    let shutdown =
        Shutdown { position: Lsn(67_108_960), timeline: Timeline(4), members: ["pg-1".into(), "pg-0".into()].into() };
    let released = Released { acquire_time: "A".into(), transitions: "3".into(), shutdown: Some(shutdown) };
    assert_eq!(
        released_patch(&Change::Set(released.clone()))["patroni.released"],
        r#"{"acquireTime":"A","transitions":"3","position":67108960,"timeline":4,"members":["pg-0","pg-1"]}"#
    );
    let unclean = Released { shutdown: None, ..released };
    assert_eq!(released_patch(&Change::Set(unclean))["patroni.released"], r#"{"acquireTime":"A","transitions":"3"}"#);
    let claim = TimelineClaim { timeline: Timeline(5), acquire_time: "A".into(), transitions: "4".into() };
    assert_eq!(
        timeline_patch(&Change::Set(claim))["patroni.timeline"],
        r#"{"timeline":5,"acquireTime":"A","transitions":"4"}"#
    );
    assert_eq!(released_patch(&Change::Remove)["patroni.released"], Value::Null);
    assert_eq!(timeline_patch(&Change::Remove)["patroni.timeline"], Value::Null);
}

#[test]
fn half_an_oath_is_no_release() {
    let mut warnings = Vec::new();
    for text in [
        r#"{"acquireTime":"A","transitions":"3","position":9}"#,
        r#"{"acquireTime":"A","transitions":"3","position":-1,"timeline":1,"members":[]}"#,
        r#"{"acquireTime":"A","transitions":"3","position":9,"timeline":1,"members":[1]}"#,
        r#"{"transitions":"3"}"#,
    ] {
        let a = Annotations::from([(promise::RELEASED.to_owned(), text.to_owned())]);
        assert_eq!(released_from(&a, &mut warnings), None, "{text}");
    }
    assert_eq!(warnings.len(), 4);
}

#[test]
fn slots_are_compact_and_retained_slots_have_pythons_blank() {
    let status = LeaderStatus {
        optime: Some(Lsn(5)),
        slots: BTreeMap::from([("a".into(), Lsn(1)), ("b".into(), Lsn(2))]),
        retain_slots: vec!["y".into(), "x".into()],
    };
    let patch = leader_status_patch(&status);
    assert_eq!(patch["slots"], r#"{"a":1,"b":2}"#);
    assert_eq!(patch["retain_slots"], r#"["x", "y"]"#);
    let empty = leader_status_patch(&LeaderStatus { optime: Some(Lsn(5)), ..LeaderStatus::default() });
    assert_eq!((&empty["slots"], &empty["retain_slots"]), (&Value::Null, &Value::Null));
    assert!(leader_status_patch(&LeaderStatus::default()).is_empty(), "an unknown position leaves everything as it is");
}

#[test]
fn an_empty_initialize_is_not_an_absent_one() {
    let read = |a: Annotations| config_from("1", &a, &mut Vec::new()).initialize;
    assert_eq!(read(Annotations::new()), Initialize::Absent);
    assert_eq!(read(Annotations::from([(INITIALIZE.into(), String::new())])), Initialize::InProgress);
    let mine = config_from(
        "1",
        &applied(&claim_patch(&Initializer { uid: "u".into(), session: "s".into() })),
        &mut Vec::new(),
    );
    assert_eq!(mine.initialize, Initialize::InProgress);
    assert_eq!(mine.initializer, Some(Initializer { uid: "u".into(), session: "s".into() }));
    assert_eq!(initialize_patch(None)[INITIALIZE], Value::Null);
}

#[test]
fn a_request_whose_time_cannot_be_read_is_none_at_all_and_is_never_written() {
    let a = Annotations::from([(LEADER.into(), "a".into()), (SCHEDULED_AT.into(), "soon".into())]);
    let mut warnings = Vec::new();
    assert!(!failover_from("1", &a, &mut warnings).is_present());
    assert_eq!(warnings.len(), 1);
    let bad = RequestText { scheduled_at: Some("soon".into()), ..RequestText::default() };
    assert!(failover_patch(&bad).is_err());
}

#[test]
fn a_patroni_members_status_is_understood() {
    let text = r#"{"conn_url": "postgres://10.0.0.1:5432/postgres", "api_url": "http://10.0.0.1:8008/patroni",
        "state": "running", "role": "master", "version": "3.3.2", "xlog_location": 67108960, "timeline": 4,
        "tags": {"nofailover": true, "failover_priority": 5, "replicatefrom": "b", "nosync": "true"}, "unknown": [1]}"#;
    let m = member_from("a", &Annotations::from([(STATUS.into(), text.into())]), &mut Vec::new());
    assert_eq!((m.role, m.timeline, m.xlog_location), (Some(Role::Primary), Some(Timeline(4)), Some(Lsn(67_108_960))));
    assert_eq!(m.implementation, None);
    assert!(m.tags.nofailover && m.tags.nosync);
    assert_eq!((m.tags.failover_priority, m.tags.replicatefrom), (0, Some("b".into())));
    let old = "postgres://h:5432/postgres?application_name=http://h:8008/patroni";
    let m = member_from("a", &Annotations::from([(STATUS.into(), old.into())]), &mut Vec::new());
    assert_eq!(
        (m.conn_url.as_deref(), m.api_url.as_deref()),
        (Some("postgres://h:5432/postgres"), Some("http://h:8008/patroni"))
    );
}

#[test]
fn member_data_has_its_exact_form() {
    let mut s =
        MemberStatus::new("postgres://h:5432/postgres", "http://h:8008/patroni", PostgresState::Running, Role::Primary);
    s.xlog_location = Some(Lsn(9));
    s.timeline = Some(Timeline(2));
    let text = status_text(&s, "master");
    assert_eq!(
        text,
        format!(
            r#"{{"conn_url":"postgres://h:5432/postgres","api_url":"http://h:8008/patroni","state":"running","role":"master","version":"4.1.5","patroni.impl":"{}","xlog_location":9,"timeline":2}}"#,
            env!("CARGO_PKG_VERSION")
        )
    );
    s.fence = Some("lost");
    let lost = status_text(&s, "master");
    assert!(lost.contains(r#""fence":"lost""#) && !same_status(&text, &lost), "{lost}");
    assert!(same_status(&text, &text.replace(':', ": ").replace(": //", "://").replace("h: ", "h:")));
}

#[test]
fn labels_follow_the_lock_first_and_then_the_role() {
    let mut o = options();
    o.tmp_role_label = Some("tmp".into());
    o.bootstrap_labels = BTreeMap::from([("boot".into(), "yes".into())]);
    let labels = |state: PostgresState, role, is_leader| {
        let mut s = MemberStatus::new("", "", state, role);
        s.is_leader = is_leader;
        let l = labels_of(&s, &o);
        (l["role"].clone(), l["tmp"].clone(), l["boot"].clone())
    };
    let some = |t: &str| Some(t.to_owned());
    assert_eq!(labels(PostgresState::Running, Role::Replica, true), (some("master"), some("primary"), None));
    assert_eq!(labels(PostgresState::Running, Role::Replica, false), (some("replica"), some("replica"), None));
    assert_eq!(labels(PostgresState::Running, Role::Primary, false), (None, None, None));
    assert_eq!(labels(PostgresState::Running, Role::Promoted, false), (some("promoted"), some("promoted"), None));
    assert_eq!(labels(PostgresState::Stopped, Role::Demoted, false), (None, None, None));
    assert_eq!(labels(PostgresState::CreatingReplica, Role::Uninitialized, false), (None, None, some("yes")));
}

/// A write that says what stands already moves the version all the same: what is late, on the version of before, cannot land
/// behind it.
#[test]
fn no_two_writes_of_the_sync_key_are_the_same() {
    let key = Electorate { voters: ["b".into(), "c".into()].into(), quorum: 1 };
    let patch = |stamp: &str| sync_patch(Some(&"a".into()), &key, stamp);
    assert_ne!(patch("s1 1"), patch("s1 2"));
    let written = patch("s1 1").into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))).collect();
    let read = sync_from("v", &written);
    assert_eq!((read.electorate(), read.leader), (key, Some("a".into())));
    let unreadable: Annotations =
        [("leader", "a"), ("sync_standby", "b,c"), ("quorum", "?")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let read = sync_from("v", &unreadable);
    assert!(!read.vouches_for(&"b".into()) && read.electorate() == Electorate::default());
}
