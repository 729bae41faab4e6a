//! `flush`: scheduled restarts of members and the scheduled switchover of the cluster.

use serde_json::{Value, json};

use super::world::*;
use super::{BASIC, TABLE, check, check_error};

const CONFIRM: &str = "Are you sure you want to flush members";

fn schedule_restart(w: &World, member: &str) {
    w.publish(member, &json!({"scheduled_restart": {"schedule": "2030-01-01T00:00:00+00:00"}}));
}

fn schedule_switchover(w: &World) {
    w.annotate(
        "demo-failover",
        json!({"leader": "pg-0", "member": "pg-1", "scheduled_at": "2030-01-01T10:00:00+00:00"}),
    );
}

#[tokio::test]
async fn a_scheduled_restart_is_discarded_where_one_is_shown() {
    let w = World::new(Some(Answers::from([("DELETE /restart", (200, "scheduled restart deleted"))]))).await;
    let none = "No scheduled restart for member pg-0\nNo scheduled restart for member pg-1\nNo scheduled restart for member pg-2\n";
    let run = w.run("flush demo restart", "y\n").await;
    check(&run, &format!("{TABLE}{CONFIRM} pg-0, pg-1, pg-2? [y/N]: {none}"), "", 0);
    assert!(w.calls().is_empty());
    schedule_restart(&w, "pg-1");
    let run = w.run("flush demo restart --force", "").await;
    let said = "\nNo scheduled restart for member pg-0\nSuccess: flush scheduled restart for member pg-1\nNo scheduled restart for member pg-2\n";
    assert!(run.out.ends_with(said) && run.out.contains("| Scheduled restart ") && run.code == 0, "{}", run.out);
    assert_eq!(w.calls(), [format!("pg-1 DELETE /restart  {BASIC}")]);
}

#[tokio::test]
async fn the_last_word_is_the_target_and_those_before_it_are_members() {
    let w = World::new(Some(Answers::from([("DELETE /restart", (404, "no restarts are scheduled"))]))).await;
    let run = w.run("flush demo pg-2 --force restart", "").await;
    check(&run, &format!("{TABLE}No scheduled restart for member pg-2\n"), "", 0);
    let run = w.run("flush demo -r leader restart", "y\n").await;
    check(&run, &format!("{TABLE}{CONFIRM} pg-0? [y/N]: No scheduled restart for member pg-0\n"), "", 0);
    schedule_restart(&w, "pg-2");
    let run = w.run("flush demo pg-2 restart --force", "").await;
    let refused = "Failed: flush scheduled restart for member pg-2, status code=404, (no restarts are scheduled)\n";
    assert!(run.out.ends_with(refused) && run.code == 0, "{}", run.out);
    let head = "Usage: patronictl flush [OPTIONS] CLUSTER_NAME [MEMBER_NAMES]... {restart|switchover}\nTry 'patronictl flush --help' for help.\n\nError: ";
    for (args, wrong) in [
        ("flush", "Missing argument 'CLUSTER_NAME'."),
        ("flush demo", "Missing argument '{restart|switchover}'. Choose from:\n\trestart,\n\tswitchover"),
        ("flush demo x", "Invalid value for '{restart|switchover}': 'x' is not one of 'restart', 'switchover'."),
    ] {
        check(&w.run(args, "").await, "", &format!("{head}{wrong}\n"), 2);
    }
    let help = w.run("flush --help", "").await;
    assert!(help.out.contains("[MEMBER_NAMES]... <restart|switchover>") && help.code == 0, "{}", help.out);
    assert!(help.out.contains("Discard scheduled events"), "{}", help.out);
}

#[tokio::test]
async fn errors_of_flush_restart() {
    let w = World::new(Some(Answers::new())).await;
    check_error(&w.run("flush demo restart", "n\n").await, "Aborted flush");
    check_error(&w.run("flush demo nobody restart --force", "").await, "No 'any' among provided members");
    check_error(&w.run("flush empty restart --force", "").await, "empty cluster doesn't have any members");
    let citus = "--group is not available in this version: it is for Citus clusters";
    check_error(&w.run("flush demo restart --group 0", "").await, citus);
    assert!(w.calls().is_empty());
    schedule_restart(&w, "pg-1");
    w.publish("pg-1", &json!({"api_url": NOWHERE}));
    let run = w.run("flush demo restart --force", "").await;
    assert!(run.err.starts_with("Error: Can not reach pg-1 (http://127.0.0.1:1/restart: "), "{}", run.err);
    assert!(run.out.ends_with("\nNo scheduled restart for member pg-2\n") && run.code == 1, "{}", run.out);
}

#[tokio::test]
async fn a_scheduled_switchover_is_discarded_by_the_leader_without_a_question() {
    let w = World::new(Some(Answers::from([("DELETE /switchover", (200, "scheduled switchover deleted"))]))).await;
    check(&w.run("flush demo switchover", "").await, "No pending scheduled switchover\n", "", 0);
    w.annotate("demo-failover", json!({"leader": "pg-0", "member": "pg-1"}));
    check(&w.run("flush demo switchover", "").await, "No pending scheduled switchover\n", "", 0);
    assert!(w.calls().is_empty());
    let at = json!({"metadata": {"annotations": {"scheduled_at": "2030-01-01T10:00:00+00:00"}}});
    w.server.store().merge("configmaps", "default", "demo-failover", &at).unwrap();
    check(&w.run("flush demo switchover", "").await, "Success: scheduled switchover deleted\n", "", 0);
    assert_eq!(w.calls(), [format!("pg-0 DELETE /switchover  {BASIC}")]);
    assert_eq!(w.annotation("demo-failover", "member"), "pg-1", "the member clears it, not this program");
}

#[tokio::test]
async fn a_member_that_knows_of_no_switchover_has_the_last_word() {
    let w = World::new(Some(Answers::from([("DELETE /switchover", (404, "no switchover is scheduled"))]))).await;
    schedule_switchover(&w);
    w.publish("pg-0", &json!({"api_url": NOWHERE}));
    let run = w.run("flush demo switchover", "").await;
    assert_eq!((run.out.as_str(), run.code), ("Failed: no switchover is scheduled\n", 0), "{}", run.err);
    let silent = " - WARNING - Member pg-0 is not accessible: http://127.0.0.1:1/switchover: ";
    assert!(run.err.contains(silent), "{}", run.err);
    assert_eq!(w.calls(), [format!("pg-1 DELETE /switchover  {BASIC}")]);
    assert_eq!(w.annotation("demo-failover", "member"), "pg-1");
}

#[tokio::test]
async fn where_nobody_discards_it_the_switchover_is_cleared_in_the_store() {
    let w = World::new(Some(Answers::from([("DELETE /switchover", (409, "Conflict"))]))).await;
    schedule_switchover(&w);
    let leader = json!({"metadata": {"annotations": {"leader": "pg-1"}}});
    w.server.store().merge("configmaps", "default", "demo-leader", &leader).unwrap();
    let run = w.run("flush demo switchover", "").await;
    let failed = |name: &str| format!("Failed: member={name}, status_code=409, (Conflict)\n");
    let all = ["pg-1", "pg-0", "pg-2"].map(failed).concat();
    assert!(run.out.starts_with(&all) && run.code == 0, "{}{}", run.out, run.err);
    assert!(run.out.ends_with(" Could not find any accessible member of cluster demo\n"), "{}", run.out);
    assert!(run.err.ends_with(" - WARNING - Failing over to DCS\n"), "{}", run.err);
    for key in ["leader", "member", "scheduled_at"] {
        assert_eq!(w.annotation("demo-failover", key), Value::Null, "{key}");
    }
    let nobody = World::new(None).await;
    schedule_switchover(&nobody);
    let run = nobody.run("flush demo switchover", "").await;
    assert!(run.out.ends_with(" Could not find any accessible member of cluster demo\n"), "{}{}", run.out, run.err);
    assert_eq!(nobody.annotation("demo-failover", "scheduled_at"), Value::Null);
}
