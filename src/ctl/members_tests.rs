//! The tables of `patronictl list`, byte for byte.
use super::*;
use crate::ctl::output::render;
use crate::model::{
    ConfigRecord, FailoverRequest, LeaderRecord, LeaseRecord, PostgresState, Timeline, Version, WallTime,
};
use serde_json::json;

pub fn member(host: &str, extra: Value) -> Member {
    let role = extra["role"].as_str().unwrap_or("replica").to_owned();
    let number = |key: &str| extra[key].as_u64().map(Lsn);
    let replicatefrom = extra["tags"]["replicatefrom"].as_str().map(MemberName::from);
    let tags = crate::model::Tags { replicatefrom, ..Default::default() };
    Member {
        conn_url: Some(format!("postgres://{host}/postgres")),
        state: Some(PostgresState::Running),
        role: Role::from_word(&role),
        receive_lsn: number("receive_lsn"),
        replay_lsn: number("replay_lsn"),
        xlog_location: number("xlog_location"),
        replication_state: extra["replication_state"].as_str().map(str::to_owned),
        timeline: Some(Timeline(7)),
        tags,
        raw: extra.to_string(),
        ..Member::default()
    }
}

pub fn demo() -> Cluster {
    let leader = LeaderRecord {
        version: Version("1".into()),
        lease: LeaseRecord { leader: Some("pg-0".into()), ..LeaseRecord::default() },
        holder: None,
        optime: Some(Lsn(0x7000000)),
        slots: BTreeMap::new(),
        retain_slots: Vec::new(),
        failsafe: None,
        addresses: Vec::new(),
        released: None,
        claim: None,
    };
    let members = [
        ("pg-0", member("10.0.0.4:5432", json!({"role": "primary", "xlog_location": 0x7000000}))),
        (
            "pg-1",
            member(
                "10.0.0.5:5432",
                json!({"receive_lsn": 0x7000000, "replay_lsn": 0x6FFFFF4,
            "replication_state": "streaming", "tags": {"clonefrom": true}}),
            ),
        ),
        (
            "pg-2",
            member(
                "10.0.0.6:5432",
                json!({"receive_lsn": 0x6400000, "replay_lsn": 0x6000000,
            "replication_state": "in archive recovery"}),
            ),
        ),
    ];
    Cluster {
        config: Some(ConfigRecord { version: Version("2".into()), document: Some("{}".into()) }),
        initialize: Initialize::Value("7439021837465564321".into()),
        leader: Some(leader),
        members: members.into_iter().map(|(n, m)| (n.into(), m)).collect(),
        ..Cluster::default()
    }
}

fn print(cluster: &Cluster, format: Format, extended: bool) -> String {
    let t = table(cluster, &BTreeMap::new(), &Show { scope: "demo", extended, format });
    let mut out = render(format, Some(&t.title), &t.columns, &t.rows, true);
    if format.is_table() {
        t.service.iter().for_each(|l| out.push_str(&format!("{l}\n")));
    }
    out
}

#[test]
fn list_prints_the_table_of_the_reference() {
    let want = "\
+ Cluster: demo (7439021837465564321) --------------+----+-------------+-----+------------+-----+-----------------+
| Member | Host     | Role    | State               | TL | Receive LSN | Lag | Replay LSN | Lag | Tags            |
+--------+----------+---------+---------------------+----+-------------+-----+------------+-----+-----------------+
| pg-0   | 10.0.0.4 | Leader  | running             |  7 |             |     |            |     |                 |
| pg-1   | 10.0.0.5 | Replica | streaming           |  7 |   0/7000000 |   0 |  0/6FFFFF4 |   0 | clonefrom: true |
| pg-2   | 10.0.0.6 | Replica | in archive recovery |  7 |   0/6400000 |  12 |  0/6000000 |  16 |                 |
+--------+----------+---------+---------------------+----+-------------+-----+------------+-----+-----------------+
";
    assert_eq!(print(&demo(), Format::Pretty, false), want);
}

#[test]
fn a_fence_that_is_not_whole_is_shown_and_a_whole_one_never() {
    let mut c = demo();
    assert!(!print(&c, Format::Pretty, true).contains("Fence"), "of a healthy cluster nothing is said");
    c.members.insert("pg-0".into(), member("10.0.0.4:5432", json!({"role": "primary", "fence": "lost"})));
    c.members.insert("pg-1".into(), member("10.0.0.5:5432", json!({"fence": "partial"})));
    let tsv = print(&c, Format::Tsv, false);
    let cells: Vec<&str> = tsv.lines().map(|line| line.rsplit('\t').next().unwrap_or("")).collect();
    assert_eq!(cells[..4], ["Fence", "lost", "partial", ""]);
    assert!(print(&c, Format::Json, false).contains("\"Fence\": \"lost\""));
}

#[test]
fn json_and_tsv_are_those_of_the_reference() {
    let mut two = demo();
    two.members.remove(&"pg-2".into());
    let want = "[{\"Cluster\": \"demo\", \"Member\": \"pg-0\", \"Host\": \"10.0.0.4\", \"Role\": \"Leader\", \"State\": \"running\", \"TL\": 7}, {\"Cluster\": \"demo\", \"Member\": \"pg-1\", \"Host\": \"10.0.0.5\", \"Role\": \"Replica\", \"State\": \"streaming\", \"TL\": 7, \"Receive LSN\": \"0/7000000\", \"Receive Lag\": 0, \"Replay LSN\": \"0/6FFFFF4\", \"Replay Lag\": 0, \"Tags\": {\"clonefrom\": true}}]\n";
    assert_eq!(print(&two, Format::Json, false), want);
    let tsv = print(&two, Format::Tsv, false);
    let lines: Vec<&str> = tsv.lines().collect();
    assert_eq!(
        lines[0],
        "Cluster\tMember\tHost\tRole\tState\tTL\tReceive LSN\tReceive Lag\tReplay LSN\tReplay Lag\tTags"
    );
    assert_eq!(lines[2], "demo\tpg-1\t10.0.0.5\tReplica\tstreaming\t7\t0/7000000\t0\t0/6FFFFF4\t0\t{clonefrom: true}");
}

#[test]
fn service_lines_follow_a_table() {
    let mut c = demo();
    c.config.as_mut().unwrap().document = Some("{\"pause\": true}".into());
    c.failover = Some(FailoverRequest {
        version: Version("3".into()),
        leader: Some("pg-0".into()),
        candidate: Some("pg-1".into()),
        scheduled_at: Some(WallTime(1_795_402_800_000_000)),
    });
    let want = " Maintenance mode: on\n Switchover scheduled at: 2026-11-23T03:00:00+00:00\n                    from: pg-0\n                      to: pg-1\n";
    let text = print(&c, Format::Pretty, false);
    assert!(text.ends_with(want), "{text}");
}

#[test]
fn extended_wraps_cells_and_hides_long_reasons() {
    let mut c = demo();
    c.members.insert(
        "pg-0".into(),
        member(
            "10.0.0.4:5432",
            json!({"role": "primary", "pending_restart": true,
        "pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "200"},
            "shared_preload_libraries": {"old_value": "", "new_value": "pg_stat_statements,auto_explain"}}}),
        ),
    );
    let raw = json!({"replication_state": "streaming",
        "scheduled_restart": {"schedule": "2026-11-23T02:00:00+00:00", "postgres_version": "17.4"}});
    c.members.insert("pg-1".into(), member("10.0.0.5:5433", raw));
    let text = print(&c, Format::Pretty, true);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[3].starts_with("| pg-0   | 10.0.0.4:5432 | Leader  | running "), "{text}");
    assert!(lines[3].contains("| *               | max_connections: 100->200                     |"), "{text}");
    assert!(lines[4].contains("| shared_preload_libraries: [hidden - too long] |"), "{text}");
    assert!(lines[5].starts_with("+--------+-"), "{text}");
    assert!(lines[6].contains("| 2026-11-23T02:00:00+00:00 if version < 17.4 |"), "{text}");
}

#[test]
fn an_empty_cluster_has_a_title_and_no_rows() {
    let text = print(&Cluster::default(), Format::Pretty, false);
    assert!(text.starts_with("+ Cluster: demo (uninitialized) -"), "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn topology_is_a_tree_and_members_in_a_loop_are_not_printed() {
    let mut c = demo();
    let from = |host: &str, who: &str| member(host, json!({"tags": {"replicatefrom": who}}));
    c.members.insert("pg-1".into(), from("10.0.0.5", "pg-2"));
    c.members.insert("pg-3".into(), from("10.0.0.7", "pg-4"));
    c.members.insert("pg-4".into(), from("10.0.0.8", "pg-3"));
    let text = print(&c, Format::Topology, false);
    let starts: Vec<String> = text.lines().skip(3).take(3).map(|l| l[..30].to_owned()).collect();
    assert_eq!(
        starts,
        ["| pg-0     | 10.0.0.4 | Leader", "| + pg-2   | 10.0.0.6 | Replic", "|   + pg-1 | 10.0.0.5 | Replic"]
    );
    assert!(text.contains("{replicatefrom: pg-2}") && !text.contains("pg-3 "), "{text}");
    c.leader = None;
    assert!(print(&c, Format::Topology, false).contains("| + pg-0   | 10.0.0.4 | Replica |"));
}

#[test]
fn fresh_positions_win_and_an_old_member_fills_one_lsn_only() {
    let mut c = demo();
    c.members.insert(
        "pg-2".into(),
        member("10.0.0.6", json!({"xlog_location": 0x6000000, "replication_state": "streaming"})),
    );
    let at = |l, r, p| Positions { location: l, received: r, replayed: p };
    let fresh = BTreeMap::from([
        ("pg-0".into(), at(Some(Lsn(0x7200000)), None, None)),
        ("pg-1".into(), at(None, Some(Lsn(0x7200000)), Some(Lsn(0x7100000)))),
    ]);
    let t = table(&c, &fresh, &Show { scope: "demo", extended: false, format: Format::Json });
    assert_eq!(t.rows[1][6..10], [json!("0/7200000"), json!(0), json!("0/7100000"), json!(1)]);
    assert_eq!(t.rows[2][6..10], [json!("0/6000000"), json!(18), json!("unknown"), json!("")]);
}

#[test]
fn megabytes_round_half_to_even() {
    let half = 1 << 19;
    assert_eq!([0, half, 3 * half, 5 * half, half + 1].map(megabytes), [0, 0, 2, 2, 1]);
}

#[test]
fn hosts_are_read_from_every_form_of_url() {
    let host = |url: &str| host_port(&Member { conn_url: Some(url.into()), ..Member::default() });
    assert_eq!(host("postgres://[::1]:5433/db"), Some(("::1".into(), 5433)));
    assert_eq!(host("postgres://u:p@h/db"), Some(("h".into(), 5432)));
    assert_eq!(host("postgres://:5432/db"), None);
}
