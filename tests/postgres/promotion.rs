//! What a promoted standby's configuration looks like to Postgres.

use patroni::postgres::start;

use super::*;

#[tokio::test]
async fn a_reload_after_a_promotion_changes_nothing_that_waits_for_a_restart() {
    let base = scratch();
    let a = Node::primary(base.path(), "pg-0").await;
    let want = [WantedSlot { name: "pg_1".into(), expected_active: true, advance_to: None }];
    a.sql().sync_slots(&slots_wanted(&want)).await.unwrap();
    let b = Node::copy_of(base.path(), "pg-1", &a).await;
    let sql = b.sql();
    until("streaming", async || sql.probe(at()).await.is_ok_and(|p| p.streaming)).await;
    b.promote();
    until("promoted", async || sql.probe(at()).await.is_ok_and(|p| !p.in_recovery)).await;

    let written = start::rewrite(&b.setup, &b.binaries, &start::Files::primary()).unwrap();
    assert!(written.changed.conf, "a primary streams from nobody");
    hand_over(b.home());
    let target = patroni::postgres::connect::Target::local(&b.setup, "test");
    let connection = patroni::postgres::connect::open(&target, Duration::from_secs(3)).await.unwrap();
    let loaded = "SELECT pg_conf_load_time()::text";
    let before: String = connection.client.query_one(loaded, &[]).await.unwrap().get(0);
    signal(b.server.as_ref().unwrap(), rustix::process::Signal::HUP);
    until("the files are read again", async || {
        connection.client.query_one(loaded, &[]).await.unwrap().get::<_, String>(0) != before
    })
    .await;
    let pending = "SELECT coalesce(string_agg(name, ' '), '') FROM pg_settings WHERE pending_restart";
    assert_eq!(connection.client.query_one(pending, &[]).await.unwrap().get::<_, String>(0), "");
    let log = std::fs::read_to_string(b.home().join("log")).unwrap();
    assert!(!log.contains("cannot be changed without restarting"), "{log}");
}
