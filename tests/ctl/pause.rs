//! `pause` and `resume`: whom they ask, what they wait for, and what they say.

use std::time::Duration;

use serde_json::json;

use super::world::*;
use super::{BASIC, check, check_error};

fn set_config(w: &World, document: &str) {
    let patch = json!({"metadata": {"annotations": {"config": document}}});
    w.server.store().merge("configmaps", "default", "demo-config", &patch).unwrap();
}

/// The leader is asked first; whoever answers is asked alone.
#[tokio::test]
async fn maintenance_mode_is_switched_through_the_leader() {
    let w = World::new(Some([("PATCH /config", (200, "{}"))].into())).await;
    check(&w.run("pause", "").await, "Success: cluster management is paused\n", "", 0);
    assert_eq!(w.calls(), ["pg-0 PATCH /config {\"pause\":true} Basic dTpw"]);
    check_error(&w.run("resume", "").await, "Cluster is not paused");
    set_config(&w, r#"{"pause": true, "loop_wait": 1}"#);
    check_error(&w.run("pause", "").await, "Cluster is already paused");
    check(&w.run("resume", "").await, "Success: cluster management is resumed\n", "", 0);
    assert_eq!(w.calls().last().unwrap(), "pg-0 PATCH /config {\"pause\":null} Basic dTpw");
    // Nobody shows it: it is what everybody observes at once.
    let waited = w.run("resume --wait", "").await;
    let sent = "'resume' request sent, waiting until it is recognized by all nodes\n";
    check(&waited, &format!("{sent}Success: cluster management is resumed\n"), "", 0);
}

#[tokio::test]
async fn a_refusal_ends_it_and_silence_asks_the_next() {
    let w = World::new(Some([("PATCH /config", (503, "no configuration in the store"))].into())).await;
    let refused = "Failed: pause cluster management status code=503, (no configuration in the store)\n";
    check(&w.run("pause demo", "").await, refused, "", 0);
    assert_eq!(w.calls().len(), 1);
    let nobody = World::new(None).await;
    check_error(&nobody.run("pause", "").await, "Can not find accessible cluster member");
}

#[tokio::test]
async fn who_does_not_answer_is_named_and_the_next_is_asked() {
    let w = World::new(Some([("PATCH /config", (200, "{}"))].into())).await;
    w.publish("pg-0", &json!({"api_url": NOWHERE}));
    let run = w.run("pause", "").await;
    assert_eq!((run.out.as_str(), run.code), ("Success: cluster management is paused\n", 0), "{}", run.err);
    assert!(run.err.contains(" - WARNING - Member pg-0 is not accessible: http://127.0.0.1:1/config: "), "{}", run.err);
    assert_eq!(w.calls(), [format!("pg-1 PATCH /config {{\"pause\":true}} {BASIC}")]);
}

/// Runs `command`; once a member has been asked, every member publishes what is said here.
async fn meanwhile(w: &World, command: &str, published: [(&str, bool); 3]) -> Run {
    let publish = async {
        while w.calls.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for (member, pause) in published {
            w.publish(member, &json!({"pause": pause, "timeline": 8}));
        }
    };
    tokio::join!(w.run(command, ""), publish).0
}

#[tokio::test]
async fn waiting_ends_when_every_member_shows_it() {
    let w = World::new(Some([("PATCH /config", (200, "{}"))].into())).await;
    let sent = "'pause' request sent, waiting until it is recognized by all nodes\n";
    let run = meanwhile(&w, "pause --wait", [("pg-0", true), ("pg-1", true), ("pg-2", true)]).await;
    check(&run, &format!("{sent}Success: cluster management is paused\n"), "", 0);
}

#[tokio::test]
async fn members_that_publish_something_else_are_named_and_silent_ones_are_not() {
    let w = World::new(Some([("PATCH /config", (200, "{}"))].into())).await;
    set_config(&w, r#"{"loop_wait": 1}"#);
    let sent = "'pause' request sent, waiting until it is recognized by all nodes\n";
    let silent = w.run("pause --wait", "").await;
    check(&silent, &format!("{sent}Success: cluster management is paused\n"), "", 0);
    assert_eq!(w.calls().len(), 1);
    let run = meanwhile(&w, "pause --wait", [("pg-0", true), ("pg-1", true), ("pg-2", false)]).await;
    check(&run, &format!("{sent}pg-2 members didn't recognized pause state after 1 seconds\n"), "", 0);
}

#[tokio::test]
async fn a_resume_that_is_not_observed_is_reported_in_the_same_words() {
    let w = World::new(Some([("PATCH /config", (200, "{}"))].into())).await;
    set_config(&w, r#"{"pause": true, "loop_wait": 1}"#);
    for member in ["pg-0", "pg-1", "pg-2"] {
        w.publish(member, &json!({"pause": true}));
    }
    let sent = "'resume' request sent, waiting until it is recognized by all nodes\n";
    let run = meanwhile(&w, "resume --wait", [("pg-0", true), ("pg-1", true), ("pg-2", false)]).await;
    check(&run, &format!("{sent}pg-0, pg-1 members didn't recognized pause state after 1 seconds\n"), "", 0);
}
