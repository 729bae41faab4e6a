//! `patronictl` as people run it: the real binary against the embedded Kubernetes API and fake members.
//!
//! Every test starts its own API server, seeds the objects of the cluster `demo` (`pg-0` leads), and compares stdout,
//! stderr and exit code with the texts of patronictl.md.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "ctl/flush.rs"]
mod flush;
#[path = "ctl/pause.rs"]
mod pause;
#[path = "ctl/remove.rs"]
mod remove;
#[path = "ctl/standby.rs"]
mod standby;
#[path = "ctl/world.rs"]
mod world;

use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;

use world::*;

const TABLE: &str = "\
+ Cluster: demo (7439021837465564321) --------------+----+-------------+-----+------------+-----+-----------------+
| Member | Host     | Role    | State               | TL | Receive LSN | Lag | Replay LSN | Lag | Tags            |
+--------+----------+---------+---------------------+----+-------------+-----+------------+-----+-----------------+
| pg-0   | 10.0.0.4 | Leader  | running             |  7 |             |     |            |     |                 |
| pg-1   | 10.0.0.5 | Replica | streaming           |  7 |   0/7000000 |   0 |  0/6FFFFF4 |   0 | clonefrom: true |
| pg-2   | 10.0.0.6 | Replica | in archive recovery |  7 |   0/6400000 |  12 |  0/6000000 |  16 |                 |
+--------+----------+---------+---------------------+----+-------------+-----+------------+-----+-----------------+
";

const BASIC: &str = "Basic dTpw";

#[track_caller]
fn check(run: &Run, out: &str, err: &str, code: i32) {
    assert_eq!(run.out, out, "stderr: {}", run.err);
    assert_eq!((run.err.as_str(), run.code), (err, code));
}

/// A run whose only result is one error.
#[track_caller]
fn check_error(run: &Run, text: &str) {
    assert_eq!((run.err.as_str(), run.code), (format!("Error: {text}\n").as_str(), 1), "stdout: {}", run.out);
}

#[tokio::test]
async fn looking_commands_print_the_reference_texts() {
    let w = World::new(None).await;
    check(&w.run("list", "").await, TABLE, "", 0);
    check(&w.run("list demo", "").await, TABLE, "", 0);
    let topology = w.run("topology", "").await;
    assert!(
        topology.out.contains("| + pg-1 | 10.0.0.5 | Replica |") && topology.out.contains("{clonefrom: true}"),
        "{}",
        topology.out
    );
    let json = w.run("list -f json", "").await;
    assert!(
        json.out.starts_with("[{\"Cluster\": \"demo\", \"Member\": \"pg-0\", \"Host\": \"10.0.0.4\""),
        "{}",
        json.out
    );
    let yaml = w.run("list -f yml", "").await;
    assert!(
        yaml.out.starts_with("- Cluster: demo\n  Host: 10.0.0.4\n  Member: pg-0\n") && yaml.out.ends_with("TL: 7\n\n"),
        "{}",
        yaml.out
    );
    let history = w.run("history -f tsv", "").await;
    let want = "TL\tLSN\tReason\tTimestamp\tNew Leader\n1\t67197376\tno recovery target specified\t2026-11-01T00:00:00.123456+00:00\tpg-1\n";
    check(&history, want, "", 0);
    let config =
        "loop_wait: 10\npostgresql:\n  parameters:\n    max_connections: 100\n  use_pg_rewind: true\nttl: 30\n\n";
    check(&w.run("show-config", "").await, config, "", 0);
    check(&w.run("dsn", "").await, "host=10.0.0.4 port=5432\n", "", 0);
    check(&w.run("dsn -r replica", "").await, "host=10.0.0.5 port=5432\n", "", 0);
    check(&w.run("dsn -m pg-2", "").await, "host=10.0.0.6 port=5432\n", "", 0);
    check_error(&w.run("dsn -m pg-2 -r any", "").await, "--role and --member are mutually exclusive options");
    check_error(&w.run("dsn -m pg-9", "").await, "Can not find a suitable member");
    let stamped = w.run("list -t", "").await;
    assert_eq!(stamped.out.find(TABLE), Some(20), "{}", stamped.out);
}

#[tokio::test]
async fn no_way_to_the_api_server_is_named_with_file_or_address() {
    let w = World::new(None).await;
    let config = w.dir.path().join("ctl.yaml");
    let with = async |kubeconfig: &str| {
        let env = [("PATRONICTL_CONFIG_FILE", config.to_str().unwrap()), ("KUBECONFIG", kubeconfig)];
        w.run_with(&["list".into()], "", &env).await.err
    };
    let missing = with("/nonexistent").await;
    assert!(missing.matches("/nonexistent").count() == 1 && missing.contains("$KUBECONFIG"), "{missing}");
    let empty = with("/dev/null").await;
    assert!(empty.contains("/dev/null") && empty.contains("$KUBECONFIG"), "{empty}");
    let closed = w.dir.path().join("closed");
    let text = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n\
        users: [{name: u, user: {token: t}}]\ncontexts: [{name: patroni-demo, context: {cluster: c, user: u}}]\n";
    std::fs::write(&closed, text).unwrap();
    let refused = with(closed.to_str().unwrap()).await;
    assert!(refused.contains("http://127.0.0.1:9") && refused.contains("Connection refused"), "{refused}");
    assert!(!refused.contains("ServiceError"), "{refused}");
}

#[tokio::test]
async fn list_takes_positions_from_the_members_and_falls_back_to_the_store() {
    let answers = Answers::from([(
        "GET /patroni",
        (200, r#"{"xlog": {"location": 119537664, "received_location": 119537664, "replayed_location": 118489088}}"#),
    )]);
    let w = World::new(Some(answers)).await;
    let run = w.run("list -f tsv", "").await;
    assert!(run.out.contains("pg-1\t10.0.0.5\tReplica\tstreaming\t7\t0/7200000\t0\t0/7100000\t1\t"), "{}", run.out);
}

#[tokio::test]
async fn environment_alone_is_enough() {
    let w = World::new(None).await;
    let env = [
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_KUBERNETES_LABELS", "{application: patroni}"),
        ("PATRONI_KUBERNETES_CONTEXT", "patroni-demo"),
    ];
    check(&w.run_with(&["list".into()], "", &env).await, TABLE, "", 0);
    let file = w.dir.path().join("current.yml");
    std::fs::write(&file, "scope: demo\nkubernetes: {labels: {application: patroni}, context: ''}\n").unwrap();
    let args = ["-c", file.to_str().unwrap(), "list"].map(String::from);
    check(&w.run_with(&args, "", &[]).await, TABLE, "", 0);
    let none = w.run_with(&["list".into()], "", &[]).await;
    check_error(
        &none,
        "Can not find suitable configuration of distributed configuration store\nAvailable implementations: kubernetes",
    );
    let args = ["-c", "/nonexistent/x.yaml", "list"].map(String::from);
    check_error(
        &w.run_with(&args, "", &[]).await,
        "Provided config file /nonexistent/x.yaml not existing or no read rights. Check the -c/--config-file parameter",
    );
    check_error(&w.run("-d foo://x list", "").await, "Unknown dcs scheme: foo");
    let no_scope = w.run_with(&["list".into()], "", &env[1..]).await;
    assert!(
        no_scope.code == 0 && no_scope.err.ends_with(" - WARNING - Listing members: No cluster names were provided\n"),
        "{}",
        no_scope.err
    );
}

#[tokio::test]
async fn usage_errors_and_refusals() {
    let w = World::new(None).await;
    let usage = "Usage: patronictl restart [OPTIONS] CLUSTER_NAME [MEMBER_NAMES]...\nTry 'patronictl restart --help' for help.\n\nError: Missing argument 'CLUSTER_NAME'.\n";
    check(&w.run("restart", "").await, "", usage, 2);
    let usage = "Usage: patronictl [OPTIONS] COMMAND [ARGS]...\nTry 'patronictl --help' for help.\n\nError: No such command 'scaffold'.\n";
    check(&w.run("scaffold", "").await, "", usage, 2);
    let none = w.run("", "").await;
    assert!(
        none.code == 2 && none.err.contains("Command-line interface for interacting with Patroni."),
        "{}",
        none.err
    );
    check_error(
        &w.run("list --group 0", "").await,
        "--group is not available in this version: it is for Citus clusters",
    );
    check(&w.run("version", "").await, "patronictl version 4.1.5\n", "", 0);
}

#[tokio::test]
async fn version_asks_the_members() {
    let answers =
        Answers::from([("GET /patroni", (200, r#"{"server_version": 170002, "patroni": {"version": "4.1.5"}}"#))]);
    let w = World::new(Some(answers)).await;
    let want = "patronictl version 4.1.5\n\npg-1: Patroni 4.1.5 PostgreSQL 17.2\n";
    check(&w.run("version demo pg-1", "").await, want, "", 0);
}

#[tokio::test]
async fn a_stored_configuration_that_is_none_is_called_that() {
    let w = World::new(None).await;
    let garbage = json!({"metadata": {"annotations": {"config": "ttl: 30"}}});
    w.server.store().merge("configmaps", "default", "demo-config", &garbage).unwrap();
    let run = w.run("show-config", "").await;
    assert_eq!((run.out.as_str(), run.code), ("{}\n\n", 0));
    assert!(run.err.contains(" - WARNING - the stored configuration is no JSON object"), "{}", run.err);
}

#[tokio::test]
async fn switchover_goes_through_the_whole_dialogue() {
    let w =
        World::new(Some(Answers::from([("POST /switchover", (200, "Successfully switched over to \"pg-1\""))]))).await;
    let run = w.run("switchover", "\npg-1\n\ny\n").await;
    let want = format!(
        "Current cluster topology\n{TABLE}Primary [pg-0]: Candidate ['pg-1', 'pg-2'] []: When should the switchover take place (e.g.  )  [now]: \
         Are you sure you want to switchover cluster demo, demoting current leader pg-0? [y/N]: "
    );
    let steady = steady_prompts(&run.out);
    assert!(steady.starts_with(&want), "{steady}");
    assert!(steady.ends_with(&format!(" Successfully switched over to \"pg-1\"\n{TABLE}")), "{steady}");
    assert_eq!((run.err.as_str(), run.code), ("", 0));
    assert_eq!(w.calls(), [format!("pg-0 POST /switchover {{\"candidate\":\"pg-1\",\"leader\":\"pg-0\"}} {BASIC}")]);
}

/// Takes the hint of a schedule prompt out, which depends on the clock.
fn steady_prompts(text: &str) -> String {
    match text.find("(e.g. 2") {
        Some(at) => format!("{}{}", &text[..at + 6], &text[at + 22..]),
        None => text.to_owned(),
    }
}

#[tokio::test]
async fn switchover_scheduled_refused_and_declined() {
    let w = World::new(Some(Answers::from([("POST /switchover", (412, "no good candidates"))]))).await;
    let run = w.run("switchover --force --scheduled 2030-01-01T10:00+02:00", "").await;
    let want = format!("Current cluster topology\n{TABLE}Switchover failed, details: 412, no good candidates\n");
    check(&run, &want, "", 0);
    let body = "{\"candidate\":null,\"leader\":\"pg-0\",\"scheduled_at\":\"2030-01-01T10:00:00+02:00\"}";
    assert_eq!(w.calls(), [format!("pg-0 POST /switchover {body} {BASIC}")]);
    let run = w.run("switchover --leader pg-0 --candidate pg-1 --scheduled 2030-01-01T10:00+02:00", "n\n").await;
    let asked = "Are you sure you want to schedule switchover of cluster demo at 2030-01-01T10:00:00+02:00, demoting current leader pg-0? [y/N]: ";
    assert!(run.out.ends_with(asked), "{}", run.out);
    check_error(&run, "Aborting scheduled switchover");
    let eof = w.run("switchover", "").await;
    assert_eq!((eof.err.as_str(), eof.code), ("Aborted!\n", 1));
    assert!(w.calls().is_empty());
}

#[tokio::test]
async fn errors_of_switchover_and_failover() {
    let w = World::new(Some(Answers::new())).await;
    for (args, want) in [
        ("switchover --leader pg-1 --force", "Member pg-1 is not the leader of cluster demo"),
        ("failover --force", "Failover could be performed only to a specific candidate"),
        ("failover --candidate pg-0 --force", "Member pg-0 is already the leader of cluster demo"),
        ("failover --candidate x --force", "Member x does not exist in cluster demo or is tagged as nofailover"),
        (
            "switchover --force --scheduled soon",
            "Unable to parse scheduled timestamp (soon). It should be in an unambiguous format (e.g. ISO 8601)",
        ),
    ] {
        check_error(&w.run(args, "").await, want);
    }
    check_error(&w.run("failover --candidate pg-1", "n\n").await, "Aborting failover");
    w.server
        .store()
        .merge(
            "configmaps",
            "default",
            "demo-config",
            &json!({"metadata": {"annotations": {"config": "{\"pause\":true}"}}}),
        )
        .unwrap();
    let paused = w.run("switchover --force --scheduled 2030-01-01T00:00Z", "").await;
    check_error(&paused, "Can't schedule switchover in the paused state");
    w.server
        .store()
        .merge("configmaps", "default", "demo-leader", &json!({"metadata": {"annotations": {"leader": null}}}))
        .unwrap();
    check_error(&w.run("switchover --force", "").await, "This cluster has no leader");
    check_error(&w.run("switchover nosuch --force", "").await, "This cluster has no leader");
    check_error(&w.run("failover nosuch --force", "").await, "No candidates found to failover to");
    assert!(w.calls().is_empty());
}

#[tokio::test]
async fn an_unreachable_leader_leaves_the_request_in_the_store() {
    let w = World::new(None).await;
    let run = w.run("switchover --force --candidate pg-1", "").await;
    assert!(run.out.contains(" Could not switchover using Patroni api, falling back to DCS\n"), "{}", run.out);
    assert!(run.err.contains(" - WARNING - Failing over to DCS\n") && run.code == 0, "{}", run.err);
    assert_eq!(
        (w.annotation("demo-failover", "leader"), w.annotation("demo-failover", "member")),
        (json!("pg-0"), json!("pg-1"))
    );
}

#[tokio::test]
async fn failover_without_a_leader_goes_to_the_candidate() {
    let w = World::new(Some(Answers::from([("POST /failover", (200, "Successfully failed over to \"pg-1\""))]))).await;
    w.server
        .store()
        .merge("configmaps", "default", "demo-leader", &json!({"metadata": {"annotations": {"leader": ""}}}))
        .unwrap();
    let run = w.run("failover --candidate pg-1", "y\n").await;
    assert!(run.out.contains("Are you sure you want to failover cluster demo? [y/N]: "), "{}", run.out);
    assert_eq!(w.calls(), [format!("pg-1 POST /failover {{\"candidate\":\"pg-1\"}} {BASIC}")]);
}

#[tokio::test]
async fn restart_asks_in_order_and_reports_every_answer() {
    let w = World::new(Some(Answers::from([("POST /restart", (200, "restarted successfully"))]))).await;
    let run = w.run("restart demo", "\ny\n\n").await;
    let want = format!(
        "{TABLE}When should the restart take place (e.g. )  [now]: Are you sure you want to restart members pg-0, pg-1, pg-2? [y/N]: \
         Restart if the PostgreSQL version is less than provided (e.g. 9.5.2)  []: Success: restart on member pg-0\n\
         Success: restart on member pg-1\nSuccess: restart on member pg-2\n"
    );
    assert_eq!((steady_prompts(&run.out), run.err.as_str(), run.code), (want, "", 0));
    assert_eq!(w.calls().len(), 3);
    let run = w
        .run("restart demo pg-1 --force --pg-version 17.4 --timeout 2min --scheduled 2030-01-01T00:00Z --pending", "")
        .await;
    check(&run, &format!("{TABLE}Success: restart on member pg-1\n"), "", 0);
    let body =
        r#"{"restart_pending":true,"postgres_version":"17.4","schedule":"2030-01-01T00:00:00+00:00","timeout":"2min"}"#;
    assert_eq!(w.calls(), [format!("pg-1 POST /restart {body} {BASIC}")]);
    check_error(
        &w.run("restart demo --force --pg-version 17", "").await,
        "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 17",
    );
    check_error(&w.run("restart demo nobody --force", "").await, "No 'any' among provided members");
    check_error(&w.run("restart empty --force", "").await, "empty cluster doesn't have any members");
    check_error(&w.run("restart demo --scheduled 2030-01-01", "n\n").await, "Aborted scheduled restart");
    check_error(&w.run("restart demo -r leader --scheduled now", "n\n").await, "Aborted restart");
    assert!(w.calls().is_empty());
}

#[tokio::test]
async fn refusals_of_members_are_printed_and_the_exit_code_is_zero() {
    let answers = Answers::from([
        ("POST /restart", (409, "Another restart is already scheduled")),
        ("POST /reload", (401, "no auth header received")),
        ("POST /reinitialize", (503, "I am the leader, can not reinitialize")),
    ]);
    let w = World::new(Some(answers)).await;
    let run = w.run("restart demo pg-1 --force", "").await;
    check(&run, &format!("{TABLE}Failed: another restart is already scheduled on member pg-1\n"), "", 0);
    let run = w.run("reload demo pg-0 --force", "").await;
    check(&run, &format!("{TABLE}Failed: reload for member pg-0, status code=401, (no auth header received)\n"), "", 0);
    let run = w.run("reinit demo pg-2 --force", "").await;
    let want = "Failed: reinitialize for member pg-2, status code=503, (I am the leader, can not reinitialize)\n";
    check(&run, &format!("{TABLE}{want}"), "", 0);
}

#[tokio::test]
async fn reload_and_its_refusal() {
    let w = World::new(Some(Answers::from([("POST /reload", (202, "reload scheduled"))]))).await;
    let run = w.run("reload demo -r leader", "y\n").await;
    let want = format!(
        "{TABLE}Are you sure you want to reload members pg-0? [y/N]: Reload request received for member pg-0 and will be processed within 10 seconds\n"
    );
    check(&run, &want, "", 0);
    let run = w.run("reload demo", "n\n").await;
    assert!(run.out.ends_with("Are you sure you want to reload members pg-0, pg-1, pg-2? [y/N]: "), "{}", run.out);
    check_error(&run, "Aborted reload");
    assert_eq!(World::new(None).await.run("reload demo pg-1 --force", "").await.code, 1);
}

#[tokio::test]
async fn reinit_asks_for_a_member_cancels_and_waits() {
    let answers = Answers::from([
        ("POST /reinitialize", (200, "reinitialize started")),
        ("GET /patroni", (200, r#"{"state": "running"}"#)),
    ]);
    let w = World::new(Some(answers)).await;
    let run = w.run("reinit demo --from-leader --wait", "pg-2\ny\n").await;
    let want = format!(
        "{TABLE}Which member do you want to reinitialize [pg-1, pg-2]? []: Are you sure you want to reinitialize members pg-2? [y/N]: \
         Success: reinitialize for member pg-2\nWaiting for reinitialize to complete on: pg-2\nReinitialize is completed on: pg-2\n"
    );
    check(&run, &want, "", 0);
    assert_eq!(w.calls(), [format!("pg-2 POST /reinitialize {{\"force\":false,\"from_leader\":true}} {BASIC}")]);
    check_error(&w.run("reinit demo", "bad\n").await, "bad is not a member of cluster");
    check_error(&w.run("reinit demo pg-0", "").await, "No replica among provided members");
    check(&w.run("reinit demo --force", "").await, TABLE, "", 0);
    let busy = World::new(Some(Answers::from([("POST /reinitialize", (503, "restart already in progress"))]))).await;
    let run = busy.run("reinit demo pg-1", "y\ny\n").await;
    assert!(run.out.contains("Do you want to cancel it and reinitialize anyway? [y/N]: "), "{}", run.out);
    assert!(busy.calls()[1].contains("\"force\":true"));
}

#[tokio::test]
async fn edit_config_shows_a_diff_and_writes_what_was_agreed() {
    let w = World::new(None).await;
    let run = w.run("edit-config -s ttl=40 -p max_connections=200", "y\n").await;
    let want = "--- \n+++ \n@@ -1,6 +1,6 @@\n loop_wait: 10\n postgresql:\n   parameters:\n-    max_connections: 100\n+    max_connections: 200\n   use_pg_rewind: true\n-ttl: 30\n+ttl: 40\nApply these changes? [y/N]: Configuration changed\n";
    check(&run, want, "", 0);
    let stored = "{\"ttl\":40,\"loop_wait\":10,\"postgresql\":{\"use_pg_rewind\":true,\"parameters\":{\"max_connections\":200}}}";
    assert_eq!(w.annotation("demo-config", "config"), json!(stored));
    check(&w.run("edit-config -s ttl=40", "").await, "Not changed\n", "", 0);
    check(&w.run("edit-config -q -s ttl=40", "").await, "", "", 0);
    check_error(&w.run("edit-config -s ttl", "").await, "Invalid parameter setting ttl");
    let refused = w.run("edit-config -q --force -s standby_cluster.primary_slot_name=s", "").await;
    check_error(
        &refused,
        "Configuration not changed: standby_cluster: needs host, port or restore_command; null ends it",
    );
    check_error(&w.run("edit-config nosuch -s ttl=1", "").await, "The config key does not exist in the cluster nosuch");
    let refused = w.run("edit-config -q --apply -", "ttl: 50\n").await;
    check(&refused, "Use --force option to apply changes\n", "", 0);
    check(&w.run("edit-config -q --force --apply -", "ttl: null\n").await, "Configuration changed\n", "", 0);
    check(&w.run("edit-config -q -s loop_wait=5", "n\n").await, "Apply these changes? [y/N]: ", "", 0);
    let after = "{\"loop_wait\":10,\"postgresql\":{\"use_pg_rewind\":true,\"parameters\":{\"max_connections\":200}}}";
    assert_eq!(w.annotation("demo-config", "config"), json!(after));
    let config = w.dir.path().join("ctl.yaml");
    let env = [("PATRONICTL_CONFIG_FILE", config.to_str().unwrap()), ("EDITOR", "sed -i s/10/7/")];
    let args = ["edit-config", "-q", "--force"].map(String::from);
    check(&w.run_with(&args, "", &env).await, "Configuration changed\n", "", 0);
    assert!(w.annotation("demo-config", "config").to_string().contains("loop_wait\\\":7"));
    let env = [env[0], ("EDITOR", "false")];
    check_error(&w.run_with(&args, "", &env).await, "Editor exited with return code 1");
}

#[tokio::test]
async fn a_query_without_connection_is_a_row_and_not_a_failure() {
    let w = World::new(None).await;
    let url = json!({"conn_url": "postgres://127.0.0.1:1/postgres", "state": "running", "role": "replica"}).to_string();
    for pod in ["pg-0", "pg-1", "pg-2"] {
        w.server.store().merge("pods", "default", pod, &json!({"metadata": {"annotations": {"status": url}}})).unwrap();
    }
    for (args, want) in [
        ("query -c 'SELECT 1'", "No connection is available: pg-0 at 127.0.0.1:1: "),
        ("query -c 'SELECT 1' -r replica", "No connection to role 'replica' is available: pg-1 at 127.0.0.1:1: "),
        ("query -c 'SELECT 1' -m pg-2", "No connection to member pg-2 is available: pg-2 at 127.0.0.1:1: "),
    ] {
        let run = w.run(args, "").await;
        let said = run.out.split_once('\t').map(|s| s.1).unwrap_or_default();
        assert!(
            said.starts_with(want) && said.contains("Connection refused") && run.code == 0,
            "{}{}",
            run.out,
            run.err
        );
    }
    let nobody = w.run("query -c 'SELECT 1' -m pg-9", "").await;
    assert!(nobody.out.ends_with("\tNo connection to member pg-9 is available\n"), "{}", nobody.out);
    let pretty = w.run("query -c 'SELECT 1' --format pretty", "").await;
    assert!(pretty.out.contains("| Field 1             | Field 2 "), "{}", pretty.out);
    check_error(&w.run("query", "").await, "You need to specify either --command or --file");
    check_error(&w.run("query -c x -f y", "").await, "--file and --command are mutually exclusive options");
}

/// A real Postgres 15, owned by the user `postgres`, on a free loopback port.
struct Postgres {
    dir: TempDir,
    port: u16,
}

const BIN: &str = "/usr/lib/postgresql/15/bin";

fn as_postgres(program: &str, args: &[&str]) {
    let mut all = vec!["-u", "postgres", "--", program];
    all.extend(args);
    let output = std::process::Command::new("runuser").args(all).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Postgres {
    fn start() -> Postgres {
        let dir = tempfile::Builder::new().prefix("ctl-").tempdir_in("/tmp").unwrap();
        let path = dir.path().to_str().unwrap().to_owned();
        assert!(std::process::Command::new("chown").args(["postgres", &path]).status().unwrap().success());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (data, log) = (format!("{path}/data"), format!("{path}/log"));
        as_postgres(&format!("{BIN}/initdb"), &["-D", &data, "-N", "-A", "trust", "-U", "postgres"]);
        let options = format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={path} -c fsync=off");
        as_postgres(&format!("{BIN}/pg_ctl"), &["-D", &data, "-w", "-l", &log, "-o", &options, "start"]);
        Postgres { dir, port }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = format!("{}/data", self.dir.path().display());
        as_postgres(&format!("{BIN}/pg_ctl"), &["-D", &data, "-m", "immediate", "stop"]);
    }
}

#[tokio::test]
async fn a_query_prints_rows_of_a_real_server() {
    let w = World::new(None).await;
    let pg = Postgres::start();
    let url = json!({"conn_url": format!("postgres://127.0.0.1:{}/postgres", pg.port), "state": "running", "role": "primary"});
    w.server
        .store()
        .merge("pods", "default", "pg-0", &json!({"metadata": {"annotations": {"status": url.to_string()}}}))
        .unwrap();
    let sql = "-U postgres -d postgres -c \"SELECT 1 AS one, 'x'::text AS two, NULL AS three, true AS four\"";
    check(&w.run(&format!("query {sql}"), "").await, "one\ttwo\tthree\tfour\n1\tx\tNone\tTrue\n", "", 0);
    check(&w.run(&format!("query {sql} --delimiter ,"), "").await, "one,two,three,four\n1,x,None,True\n", "", 0);
    let want = "[{\"one\": 1, \"two\": \"x\", \"three\": null, \"four\": true}]\n";
    check(&w.run(&format!("query {sql} --format json -r primary"), "").await, want, "", 0);
    check(&w.run(&format!("query {sql} --format nonsense"), "").await, "", "", 0);
    let wrong = w.run("query -U postgres -c 'SELECT 1/0'", "").await;
    assert!(
        wrong.out.ends_with("\tERROR, SQLSTATE: 22012 (division by zero)\n") && wrong.code == 0,
        "the state as Patroni prints it, and what it means: {}",
        wrong.out
    );
    let at = format!("No connection is available: pg-0 at 127.0.0.1:{}: FATAL: ", pg.port);
    for (args, why) in [
        ("-U nosuch", "role \"nosuch\" does not exist"),
        ("-U postgres -d nosuch", "database \"nosuch\" does not exist"),
    ] {
        let refused = w.run(&format!("query {args} -c 'SELECT 1'"), "").await;
        assert!(refused.out.ends_with(&format!("\t{at}{why}\n")) && refused.code == 0, "{}", refused.out);
    }
    let replica = w.run("query -U postgres -r standby-leader -c 'SELECT 1'", "").await;
    assert!(replica.out.ends_with("\tNo connection to role 'standby-leader' is available\n"), "{}", replica.out);
    check(&w.run("query -U postgres -c 'CREATE TABLE t ()'", "").await, "", "", 0);
}
