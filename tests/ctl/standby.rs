//! `demote-cluster` and `promote-cluster`: what they ask for, what they wait for, and what they say.

use std::time::Duration;

use serde_json::json;

use super::world::*;
use super::{BASIC, check, check_error};

const TOPOLOGY: &str = "Current cluster topology\n";

async fn answers(status: u16, text: &'static str) -> World {
    World::new(Some([("PATCH /config", (status, text))].into())).await
}

#[tokio::test]
async fn what_a_cluster_follows_is_written_by_its_leader() {
    let w = answers(200, "{}").await;
    let command = "demote-cluster --host h --port 5433 --primary-slot-name s --restore-command 'cp %f %p' --force";
    let becomes = async {
        while w.calls.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // A look or two later.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        w.publish("pg-0", &json!({"role": "standby_leader"}));
    };
    let (run, ()) = tokio::join!(w.run(command, ""), becomes);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with(TOPOLOGY), "{}", run.out);
    let waits = " cluster is unlocked: False, leader role: primary, leader state: running\n";
    assert!(run.out.contains(waits) && run.out.contains(" cluster is successfully demoted\n"), "{}", run.out);
    assert!(run.out.trim_end().ends_with('+') && run.out.contains("Standby Leader"), "{}", run.out);
    let section =
        r#"{"standby_cluster":{"host":"h","restore_command":"cp %f %p","primary_slot_name":"s","port":5433}}"#;
    assert_eq!(w.calls()[0], format!("pg-0 PATCH /config {section} {BASIC}"));
    check_error(&w.run("demote-cluster --host h --force", "").await, "Cluster is already in the required state");

    let promoted = async {
        while w.calls.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        w.publish("pg-0", &json!({"role": "primary"}));
    };
    let (run, ()) = tokio::join!(w.run("promote-cluster demo", "y\n"), promoted);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("Are you sure you want to promote demo cluster? [y/N]: "), "{}", run.out);
    assert!(run.out.contains(" cluster is successfully promoted\n"), "{}", run.out);
    assert_eq!(w.calls()[0], format!("pg-0 PATCH /config {{\"standby_cluster\":null}} {BASIC}"));
}

#[tokio::test]
async fn what_is_missing_refused_or_declined_changes_nothing() {
    let w = answers(400, "standby_cluster.port: 2 ports for 3 hosts").await;
    check_error(
        &w.run("demote-cluster --primary-slot-name s --force", "").await,
        "At least --host, --port or --restore-command should be specified",
    );
    let usage = w.run("demote-cluster --port http", "").await;
    assert!(usage.code == 2 && usage.err.contains("'http' is not a valid integer"), "{}", usage.err);
    check_error(&w.run("promote-cluster", "").await, "Cluster is already in the required state");
    let declined = w.run("demote-cluster --host h", "n\n").await;
    assert!(declined.code == 1 && declined.err == "Error: Aborted cluster demotion\n", "{}", declined.err);
    assert!(w.calls().is_empty());
    let refused = w.run("demote-cluster --host h --force", "").await;
    let failed = "Failed to demote demo cluster";
    let told = format!(
        "Error: {failed}: {failed}: /config PATCH status code=400, (standby_cluster.port: 2 ports for 3 hosts)\n"
    );
    assert_eq!((refused.code, refused.err.as_str()), (1, told.as_str()));
    w.server.store().delete("configmaps", "default", "demo-leader").unwrap();
    check_error(&w.run("demote-cluster --host h --force", "").await, "Cluster has no leader, demotion is not possible");
    check(&w.run("promote-cluster --force --bogus", "").await, "", &usage_of("promote-cluster", "--bogus"), 2);
}

fn usage_of(command: &str, option: &str) -> String {
    format!(
        "Usage: patronictl {command} [OPTIONS] [CLUSTER_NAME]\nTry 'patronictl {command} --help' for help.\n\nError: No such option: {option}\n"
    )
}
