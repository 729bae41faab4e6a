//! What a real server says of parameters: what it refuses is left out, and with the rest it starts.

use std::collections::BTreeMap;
use std::time::Duration;

use patroni::postgres::trial::{self, AllRefused, Next, Trial, Why};
use patroni::postgres::{conf, start};

use super::{Node, StartRole, Upstream, hand_over, node, process, scratch};

/// As a member asks before it writes the files.
fn refused(a: &Node, before: BTreeMap<String, String>) -> AllRefused {
    let file = a.setup.data_dir.join(trial::FILE);
    let mut trial = Trial::new(trial::asked(&a.setup, a.binaries.major), before);
    loop {
        std::fs::write(&file, trial.text()).unwrap();
        hand_over(a.home());
        let output = process(&trial::command(&a.binaries, &file)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        match trial.heard(output.status.success(), &said) {
            Next::Ask => {}
            Next::Over => break,
            Next::Unclear(why) => panic!("{why}\n{said}"),
        }
    }
    std::fs::remove_file(&file).unwrap();
    trial.refused()
}

fn set(a: &mut Node, pairs: &[(&str, &str)]) {
    a.setup.parameters.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
}

async fn shown(a: &Node, name: &str) -> String {
    let target = patroni::postgres::connect::Target::local(&a.setup, "test");
    let connection = patroni::postgres::connect::open(&target, Duration::from_secs(3)).await.unwrap();
    connection.client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_server_starts_without_what_it_refuses_and_with_all_else() {
    let base = scratch();
    let mut a = node(base.path(), "pg-0").await;
    a.initdb();
    let bad = [
        ("no_such_thing", "1"),
        ("no_such_thing_either", "it's"),
        ("work_mem", "banana"),
        ("shared_buffers", "100TB"),
        ("random_page_cost", "-1"),
        ("enable_seqscan", "perhaps"),
        ("log_min_error_statement", "warn"),
        ("timezone", "Middle/Earth"),
        ("recovery_min_apply_delay", "banana"),
    ];
    // Developer options, which --describe-config does not list, dotted names, units, prefixes of words, silence.
    let good = [
        ("zero_damaged_pages", "on"),
        ("my.own", "1"),
        ("maintenance_work_mem", "0.25GB"),
        ("checkpoint_timeout", "600 s"),
        ("enable_hashjoin", "of"),
        ("log_min_messages", "panic"),
        ("lc_messages", "C"),
    ];
    set(&mut a, &bad);
    set(&mut a, &good);
    a.setup.controlled.insert("max_connections".into(), "99999999".into());
    let spec = start::prepare(&a.setup, &a.binaries, &start::Files::primary()).unwrap();
    hand_over(a.home());
    assert!(!process(&spec.command).output().unwrap().status.success(), "as configured no server starts");

    let refused = refused(&a, BTreeMap::new());
    let mut names: Vec<&str> = bad.iter().map(|(name, _)| *name).chain(["max_connections"]).collect();
    names.sort_unstable();
    assert_eq!(refused.keys().collect::<Vec<_>>(), names);
    assert!(
        refused.iter().all(|(name, r)| (r.why == Why::Unknown) == name.starts_with("no_such") && r.instead.is_none())
    );
    assert!(refused["log_min_error_statement"].reason(15).contains("Available values: debug5"), "{refused:?}");
    a.setup = trial::without(&a.setup, &refused);
    a.start(StartRole::Primary, &Upstream::Nobody).await;
    let wanted = [
        ("work_mem", "4MB"),
        ("max_connections", "100"),
        ("zero_damaged_pages", "on"),
        ("my.own", "1"),
        ("maintenance_work_mem", "256MB"),
        ("checkpoint_timeout", "10min"),
        ("enable_hashjoin", "off"),
    ];
    for (name, value) in wanted {
        assert_eq!(shown(&a, name).await, value, "{name}");
    }
    a.stop(rustix::process::Signal::INT);
}

#[tokio::test]
async fn the_value_in_the_file_stays_where_another_is_refused() {
    let base = scratch();
    let mut a = node(base.path(), "pg-0").await;
    set(&mut a, &[("work_mem", "7MB"), ("maintenance_work_mem", "64mb")]);
    a.initdb();
    // As another program may have left it: what is in the file was never taken.
    let _ = start::prepare(&a.setup, &a.binaries, &start::Files::primary()).unwrap();
    let in_force = conf::settings_of(&std::fs::read_to_string(conf::conf_path(&a.setup)).unwrap());
    set(&mut a, &[("work_mem", "7mb"), ("maintenance_work_mem", "64Mb")]);
    let refused = refused(&a, in_force);
    assert_eq!(refused["work_mem"].instead.as_deref(), Some("7MB"));
    assert_eq!(refused["maintenance_work_mem"].instead, None);
    a.setup = trial::without(&a.setup, &refused);
    a.start(StartRole::Primary, &Upstream::Nobody).await;
    assert_eq!(
        (shown(&a, "work_mem").await.as_str(), shown(&a, "maintenance_work_mem").await.as_str()),
        ("7MB", "64MB")
    );
    a.stop(rustix::process::Signal::INT);
}
