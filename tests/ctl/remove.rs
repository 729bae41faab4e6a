//! `remove`: three questions, and then everything but the pods is gone.

use super::check;
use super::world::*;

fn left(w: &World) -> usize {
    w.server.store().list("configmaps", "default").unwrap().len()
}

#[tokio::test]
async fn who_answers_three_questions_removes_a_cluster() {
    let w = World::new(None).await;
    let before = left(&w);
    assert!(before >= 2);
    for (typed, why) in [
        ("dem\n", "Cluster names specified do not match"),
        ("demo\nyes\n", "You did not exactly type \"Yes I am aware\""),
        ("demo\nYes I am aware\npg-1\n", "You did not specify the current leader of the cluster"),
    ] {
        let refused = w.run("remove demo", typed).await;
        assert_eq!((refused.code, refused.err.clone()), (1, format!("Error: {why}\n")), "{}", refused.out);
        assert_eq!(left(&w), before, "nothing is removed");
    }
    let done = w.run("remove demo", "demo\nYes I am aware\npg-0\n").await;
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.out);
    for question in [
        "Please confirm the cluster name to remove: ",
        "You are about to remove all information in DCS for demo, please type: \"Yes I am aware\": ",
        "This cluster currently is healthy. Please specify the leader name to continue: ",
    ] {
        assert!(done.out.contains(question), "{}", done.out);
    }
    assert_eq!(left(&w), 0);
    assert!(w.server.store().get("pods", "default", "pg-0").is_ok(), "pods stay");
    let usage = "Usage: patronictl remove [OPTIONS] CLUSTER_NAME\nTry 'patronictl remove --help' for help.\n\nError: Missing argument 'CLUSTER_NAME'.\n";
    check(&w.run("remove", "").await, "", usage, 2);
}
