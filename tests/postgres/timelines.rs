//! What Postgres does with placeholders of history files, and what a standby without a WAL receiver knows of its timeline.

use super::*;

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.home().join("log")).unwrap()
}

/// Placeholders for every number between the node's timeline and the claim.
async fn claim(node: &Node, claim: u32) {
    let probe = node.sql().probe(at()).await.unwrap();
    let own = probe.timeline;
    let path = node.setup.data_dir.join("pg_wal").join(history::file_name(own));
    let ancestors = std::fs::read_to_string(path).unwrap_or_default();
    let present = history::present(&node.setup.data_dir);
    let files = history::placeholders(own, &ancestors, probe.replayed, Timeline(claim), &present);
    history::write_placeholders(&node.setup.data_dir, &files).unwrap();
    hand_over(node.home());
}

async fn streams_on(node: &Node, timeline: u32) {
    let sql = node.sql();
    until("streaming", async || sql.probe(at()).await.is_ok_and(|p| p.streaming && p.timeline == Timeline(timeline)))
        .await;
}

#[tokio::test]
async fn a_promotion_takes_the_claimed_number_and_a_follower_streams_from_it() {
    let base = scratch();
    let mut a = Node::primary(base.path(), "pg-0").await;
    let slots = ["pg_1", "pg_2"].map(|name| WantedSlot { name: name.into(), expected_active: true, advance_to: None });
    a.sql().sync_slots(&slots_wanted(&slots)).await.unwrap();
    let mut b = Node::copy_of(base.path(), "pg-1", &a).await;
    let mut c = Node::copy_of(base.path(), "pg-2", &a).await;
    streams_on(&b, 1).await;
    streams_on(&c, 1).await;

    claim(&b, 4).await;
    // Not adopted: it goes on replaying timeline 1, also after it had to look for a source again.
    let backends = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    a.exec(backends).await;
    a.exec("CREATE TABLE public.later AS SELECT 1 AS x").await;
    let end = a.sql().probe(at()).await.unwrap().position;
    let sql = b.sql();
    until("replays on", async || sql.probe(at()).await.is_ok_and(|p| p.replayed >= end)).await;
    streams_on(&b, 1).await;
    assert!(!log(&b).contains("new target timeline"), "{}", log(&b));

    // Started again with them, Postgres would take the newest for its goal: they are removed before a start.
    b.stop(rustix::process::Signal::INT);
    b.start(StartRole::Standby, &a.upstream()).await;
    assert!(history::present(&b.setup.data_dir).is_empty());
    streams_on(&b, 1).await;

    claim(&b, 4).await;
    a.stop(rustix::process::Signal::INT);
    b.promote();
    let sql = b.sql();
    until("promoted", async || sql.probe(at()).await.is_ok_and(|p| !p.in_recovery)).await;
    let leader = remote::timeline_of(&b.setup, &b.url()).await.unwrap();
    assert!(history::promotion_is_as_claimed(leader.timeline, &leader.history, Timeline(4), Timeline(1)), "{leader:?}");

    let slot = [WantedSlot { name: "pg_2".into(), expected_active: true, advance_to: None }];
    b.sql().sync_slots(&slots_wanted(&slot)).await.unwrap();
    c.stop(rustix::process::Signal::INT);
    c.start(StartRole::Standby, &b.upstream()).await;
    streams_on(&c, 4).await;
    a.start(StartRole::Standby, &b.upstream()).await;
    let follower = c.sql();
    let end = sql.probe(at()).await.unwrap().position;
    until("follows", async || follower.probe(at()).await.is_ok_and(|p| p.replayed >= end)).await;
    b.stop(rustix::process::Signal::INT);
}

#[tokio::test]
async fn a_standby_started_over_placeholders_alone_refuses() {
    let base = scratch();
    let a = Node::primary(base.path(), "pg-0").await;
    let slot = [WantedSlot { name: "pg_1".into(), expected_active: true, advance_to: None }];
    a.sql().sync_slots(&slots_wanted(&slot)).await.unwrap();
    let mut b = Node::copy_of(base.path(), "pg-1", &a).await;
    streams_on(&b, 1).await;
    claim(&b, 3).await;
    b.stop(rustix::process::Signal::INT);
    let spec = start::prepare(&b.setup, &b.binaries, &files_of(StartRole::Standby, &a.upstream())).unwrap();
    let text = "1\t0/1\tplaceholder, this number was claimed by another promotion\n";
    std::fs::write(b.setup.data_dir.join("pg_wal/00000002.history"), text).unwrap();
    hand_over(b.home());
    let output = process(&spec.command).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("requested timeline 2 is not a child of this server's history"), "{words}");
}

/// Seen in a cluster: a switchover, four seconds later a restart of the new leader, and both healthy replicas removed their
/// directories. Their WAL receivers were down, and pg_control still said timeline 1.
#[tokio::test]
async fn a_healthy_replica_of_a_leader_that_restarts_is_not_taken_for_diverged() {
    let base = scratch();
    let mut a = Node::primary(base.path(), "pg-0").await;
    let slots = ["pg_1", "pg_2"].map(|name| WantedSlot { name: name.into(), expected_active: true, advance_to: None });
    a.sql().sync_slots(&slots_wanted(&slots)).await.unwrap();
    let mut b = Node::copy_of(base.path(), "pg-1", &a).await;
    let mut c = Node::copy_of(base.path(), "pg-2", &a).await;
    streams_on(&b, 1).await;
    streams_on(&c, 1).await;
    a.stop(rustix::process::Signal::INT);
    b.promote();
    let sql = b.sql();
    until("promoted", async || sql.probe(at()).await.is_ok_and(|p| !p.in_recovery)).await;
    sql.sync_slots(&slots_wanted(&[WantedSlot { name: "pg_2".into(), expected_active: true, advance_to: None }]))
        .await
        .unwrap();
    let rewritten = start::rewrite(&c.setup, &c.binaries, &files_of(StartRole::Standby, &b.upstream())).unwrap();
    assert!(rewritten.changed != Default::default());
    hand_over(c.home());
    signal(c.server.as_ref().unwrap(), rustix::process::Signal::HUP);
    streams_on(&c, 2).await;
    b.exec("CREATE TABLE public.later AS SELECT 1 AS x").await;
    let end = sql.probe(at()).await.unwrap().position;
    let replica = c.sql();
    until("replays on", async || replica.probe(at()).await.is_ok_and(|p| p.replayed >= end)).await;
    let leader = remote::timeline_of(&c.setup, &b.url()).await.unwrap();

    b.stop(rustix::process::Signal::INT);
    until("no receiver", async || replica.probe(at()).await.is_ok_and(|p| !p.streaming)).await;
    let probe = replica.probe(at()).await.unwrap();
    // Its WAL names the timeline at once, pg_control only after the next restartpoint: neither makes it diverged.
    assert_eq!(probe.timeline, Timeline(2), "what the WAL says");
    for timeline in [Timeline(2), Timeline(1)] {
        let mine = rewind::local_end(&c.setup.data_dir, Some(&Probe { timeline, ..probe.clone() }));
        assert_ne!(rewind::check(mine.as_ref(), &leader), Divergence::Diverged, "{mine:?}");
    }
    c.stop(rustix::process::Signal::INT);
}

/// Seen in a cluster: a replica that was promoted by hand was rewound and streamed again; at the next switchover it took the
/// number of its stray timeline a second time, because a segment of it was left in pg_wal.
#[tokio::test]
async fn a_segment_left_by_a_branch_that_was_rewound_is_not_the_own_timeline() {
    let base = scratch();
    let mut a = Node::primary(base.path(), "pg-0").await;
    let slot = [WantedSlot { name: "pg_1".into(), expected_active: true, advance_to: None }];
    a.sql().sync_slots(&slots_wanted(&slot)).await.unwrap();
    let mut b = Node::copy_of(base.path(), "pg-1", &a).await;
    streams_on(&b, 1).await;
    let stray = b.setup.data_dir.join("pg_wal/000000020000000000000003");
    std::fs::write(&stray, b"left by another branch").unwrap();
    hand_over(b.home());
    a.stop(rustix::process::Signal::INT);
    let replica = b.sql();
    until("no receiver", async || replica.probe(at()).await.is_ok_and(|p| !p.streaming)).await;
    assert_eq!(replica.probe(at()).await.unwrap().timeline, Timeline(1));
    b.stop(rustix::process::Signal::INT);
}

/// Its address was that of the leader before.
#[tokio::test]
async fn a_primary_of_another_cluster_does_not_answer_for_the_leader() {
    let base = scratch();
    let a = Node::primary(base.path(), "pg-0").await;
    let b = node(base.path(), "pg-1").await;
    b.initdb();
    let refused = remote::primary_answers(&b.setup, &a.url()).await.unwrap_err();
    assert!(refused.contains("another cluster"), "{refused}");
    let own = remote::primary_answers(&a.setup, &a.url()).await.unwrap();
    assert_eq!((own.timeline, own.in_recovery), (Timeline(1), false));
}
