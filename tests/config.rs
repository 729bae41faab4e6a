//! Configuration: YAML against tables made with PyYAML 6.0.3 (`safe_load`, and `safe_dump` with width 200), and the
//! promises of docs/configuration.md.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]
use std::collections::BTreeMap;

use patroni::config::merge::{equal_by_text, patch};
use patroni::config::numbers::parse_int;
use patroni::config::{Dynamic, SourceText, SynchronousMode, effective_postgresql, load, tags, yaml};
use serde_json::{Value, json};

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn source(text: &str) -> Vec<SourceText> {
    vec![SourceText { name: "patroni.yml".to_owned(), text: text.to_owned() }]
}

fn loaded(text: &str) -> patroni::config::Loaded {
    load(&source(text), &BTreeMap::new()).expect("a usable file")
}

fn refusal(text: &str) -> String {
    load(&source(text), &BTreeMap::new()).expect_err("a refused file").to_string()
}

const SMALL: &str = "name: a\nscope: demo\nkubernetes: {labels: {app: demo}}\n";

#[test]
fn plain_scalars_resolve_as_in_pyyaml() {
    let rows: Vec<(String, Value)> = serde_json::from_str(include_str!("config/yaml_scalars.json")).unwrap();
    let mut wrong = Vec::new();
    for (text, expected) in rows {
        let found = yaml::parse("t", &format!("k: {text}")).map(|v| v["k"].clone());
        let same = found.as_ref().is_ok_and(|found| match (found.as_f64(), expected.as_f64()) {
            (Some(a), Some(b)) => a == b && (found.is_f64() == expected.is_f64() || a.abs() > 1e18),
            _ => *found == expected,
        });
        if !same {
            wrong.push(format!("{text}: {found:?}, PyYAML {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn documents_are_written_as_by_pyyaml() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("config/yaml_dump.json")).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let block = yaml::to_string_block(&case["value"]);
        if block != case["block"].as_str().unwrap() {
            wrong.push(format!(
                "block {}\n  ours   {block:?}\n  pyyaml {:?}",
                case["value"],
                case["block"].as_str().unwrap()
            ));
        }
        if let Some(flow) = case["flow"].as_str() {
            let ours = yaml::to_string_flow(&case["value"]);
            if ours != flow {
                wrong.push(format!("flow {}\n  ours   {ours:?}\n  pyyaml {flow:?}", case["value"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn anchors_and_merge_keys_work_and_own_keys_win() {
    let text = "base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\nuse:\n  <<: [*b, *o]\n  x: 9\nlist: [*b]\n";
    let value = yaml::parse("t", text).unwrap();
    assert_eq!(value["use"], json!({"x": 9, "y": 2, "z": 4}));
    assert_eq!(value["list"][0], json!({"x": 1, "y": 2}));
}

#[test]
fn yaml_errors_say_where() {
    let error = yaml::parse("patroni.yml", "a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
    assert!(error.to_string().starts_with("patroni.yml:"), "{error}");
    assert!(error.line >= 2, "{error}");
    assert!(yaml::parse("t", "a: !foo 1").unwrap_err().message.contains("unknown tag"));
    assert!(yaml::parse("t", "a: 1\n---\nb: 2\n").unwrap_err().message.contains("second document"));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e]\n";
    assert!(yaml::parse("t", bomb).unwrap_err().message.contains("aliases expand"));
}

#[test]
fn numbers_with_units() {
    let cases = [
        ("1", None, Some(1)),
        ("0x1F", None, Some(31)),
        ("010", None, Some(8)),
        ("-5", None, Some(-5)),
        ("30min", Some("s"), Some(1800)),
        ("1.5 GB", Some("MB"), Some(1536)),
        ("6GB", Some("16MB"), Some(384)),
        ("1.5", None, Some(2)),
        ("2.5", None, Some(2)),
        ("10s", None, None),
        ("10kb", Some("kB"), None),
        ("10MB", Some("s"), None),
        ("abc", None, None),
        ("500ms", Some("s"), Some(0)),
        ("1h", Some("min"), Some(60)),
    ];
    for (text, unit, expected) in cases {
        assert_eq!(parse_int(text, unit), expected, "{text} in {unit:?}");
    }
}

#[test]
fn patch_deletes_nulls_merges_maps_and_ignores_equal_text() {
    let mut stored = json!({"ttl": 30, "postgresql": {"parameters": {"a": 100}}, "pause": true});
    assert!(!patch(&mut stored, &json!({"ttl": "30", "postgresql": {"parameters": {"a": "100"}}, "absent": null})));
    assert_eq!(stored["ttl"], json!(30));
    assert!(patch(&mut stored, &json!({"pause": null, "postgresql": {"parameters": {"b": 1}}, "slots": [1]})));
    assert_eq!(stored, json!({"ttl": 30, "postgresql": {"parameters": {"a": 100, "b": 1}}, "slots": [1]}));
    assert!(equal_by_text(&json!({"a": 100}), &json!({"a": "100"})));
    assert!(!equal_by_text(&json!({"a": 100}), &json!({"a": "100", "b": 1})));
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    let result = loaded(&format!("{SMALL}restapi:\n  listn: 1.2.3.4:8008\n"));
    assert_eq!(result.warnings, ["patroni.yml:5:3: restapi.listn: unknown key, did you mean `listen`?"]);
}

#[test]
fn a_misplaced_or_mistyped_key_says_where_it_belongs() {
    let text =
        format!("{SMALL}synchronous_mode: on\npause: true\nuse_pg_rewind: true\nscoep: x\nbootstrap: {{ttl: 40}}\n");
    assert_eq!(
        loaded(&text).warnings,
        [
            "patroni.yml:4:1: synchronous_mode: is ignored here; set it with patronictl edit-config",
            "patroni.yml:5:1: pause: is ignored here; set it with patronictl edit-config",
            "patroni.yml:6:1: use_pg_rewind: unknown key, did you mean `postgresql.use_pg_rewind`?",
            "patroni.yml:7:1: scoep: unknown key, did you mean `scope`?",
            "patroni.yml:8:13: bootstrap.ttl: unknown key, did you mean `bootstrap.dcs.ttl`?",
        ]
    );
    let variables = env(&[("PATRONI_SCOEP", "x"), ("PATRONI_TTL", "40"), ("PATRONI_SYNCHRONOUS_MODE", "on")]);
    assert_eq!(
        load(&source(SMALL), &variables).unwrap().warnings,
        [
            "PATRONI_SCOEP is not a variable of the configuration, did you mean PATRONI_SCOPE?",
            "PATRONI_SYNCHRONOUS_MODE is ignored; set synchronous_mode with patronictl edit-config",
            "PATRONI_TTL is ignored; set ttl with patronictl edit-config",
        ]
    );
}

/// What is missing often stands there under another name: the warnings are part of the refusal.
#[test]
fn a_missing_key_is_shown_beside_its_misspelling() {
    let said = |text: &str| {
        let loaded = load(&source(text), &BTreeMap::new()).and_then(patroni::config::Loaded::for_daemon);
        loaded.expect_err("a refused file").to_string()
    };
    let misspelt = said("name: a\nscpoe: demo\nkubernetes: {labels: {app: demo}}\nrestapi: {lisetn: '0.0.0.0:8008'}\n");
    assert!(
        misspelt.contains("scope is not defined") && misspelt.contains("restapi.listen is not defined"),
        "{misspelt}"
    );
    assert!(misspelt.contains("patroni.yml:2:1: scpoe: unknown key, did you mean `scope`?"), "{misspelt}");
    assert!(misspelt.contains("restapi.lisetn: unknown key, did you mean `listen`?"), "{misspelt}");
    let twice = said(&format!("{SMALL}postgresql: {{data_dir: /d}}\npostgresql: {{listen: x}}\n"));
    assert!(twice.contains("postgresql.data_dir is not defined"), "{twice}");
    assert!(twice.lines().any(|line| line.starts_with("patroni.yml:5:1: ") && line.contains("postgresql")), "{twice}");
    let store = said("name: a\nscope: b\nkubernets: {labels: {app: demo}}\n");
    assert!(store.contains("kubernets: unknown key, did you mean `kubernetes`?"), "{store}");
}

#[test]
fn text_where_a_mapping_belongs_is_called_text_and_stays_secret() {
    assert_eq!(
        refusal(&format!("{SMALL}postgresql:\n  authentication:\n    superuser: hush\n    replication: 7\n")),
        "patroni.yml:6:5: postgresql.authentication.superuser: must be a mapping (key: value), not text\n\
         patroni.yml:7:5: postgresql.authentication.replication: must be a mapping (key: value), not a number"
    );
}

#[test]
fn a_wrong_type_names_file_key_and_what_is_right() {
    let message = refusal(&format!("{SMALL}postgresql:\n  parameters: [a]\n  pg_hba: x\n"));
    assert_eq!(
        message,
        "patroni.yml:5:3: postgresql.parameters: must be a mapping (key: value), not a list\n\
         patroni.yml:6:3: postgresql.pg_hba: must be a list (- item), not \"x\""
    );
}

#[test]
fn other_stores_and_citus_are_refused_by_name() {
    assert!(
        refusal("name: a\nscope: b\netcd3: {hosts: x}\n").starts_with("patroni.yml:3:1: etcd3: this Patroni stores")
    );
    assert!(refusal("name: a\n").contains("kubernetes: the section is missing"));
    assert!(refusal(&format!("{SMALL}citus: {{group: 0, database: x}}\n")).contains("Citus is not supported"));
    let ignored = loaded(&format!("{SMALL}citus: {{group: 0}}\n"));
    assert_eq!(ignored.warnings.len(), 1);
}

#[test]
fn the_environment_wins_over_the_file() {
    let env = env(&[
        ("PATRONI_NAME", "b"),
        ("PATRONI_SCOPE", ""),
        ("PATRONI_KUBERNETES_LABELS", "{x: y}"),
        ("PATRONI_KUBERNETES_USE_ENDPOINTS", "yes"),
        ("PATRONI_KUBERNETES_PORTS", "[{name: pg, port: 5433}]"),
        ("PATRONI_SUPERUSER_PASSWORD", "hush"),
        ("PATRONI_LOGLEVEL", "debug"),
        ("PATRONI_LOG_LEVEL", "error"),
        ("PATRONI_RESTAPI_ALLOWLIST", "10.0.0.1,10.0.0.2"),
        ("PATRONI_POSTGRESQL_BIN_POSTGRES", "pg15"),
        ("PATRONI_RESTAPI_LISTN", "x"),
        ("PATRONI_KUBERNETES_BYPASS_API_SERVICE", "maybe"),
        ("PATRONI_RESTAPI_HTTP_EXTRA_HEADERS", "X-A: b"),
    ]);
    let result = load(&source(SMALL), &env).unwrap();
    let config = result.config;
    assert_eq!((config.name.as_str(), config.scope.as_str()), ("b", "demo"));
    assert_eq!(config.kubernetes.labels, BTreeMap::from([("app".into(), "demo".into()), ("x".into(), "y".into())]));
    assert!(config.kubernetes.use_endpoints);
    assert_eq!(config.kubernetes.ports[0].port, 5433);
    assert_eq!(config.log.level, "ERROR");
    assert_eq!(config.restapi.allowlist, ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(config.restapi.http_extra_headers["X-A"], "b");
    assert_eq!(config.postgresql.bin_name["postgres"], "pg15");
    assert_eq!(result.warnings.len(), 2, "{:?}", result.warnings);
    assert!(result.warnings.iter().any(|w| w.contains("did you mean PATRONI_RESTAPI_LISTEN?")));
    assert!(!format!("{config:?}").contains("hush"));
    assert_eq!(config.postgresql.authentication.superuser.password.unwrap().expose(), "hush");
}

#[test]
fn patroni_configuration_replaces_the_other_variables_and_only_without_a_file() {
    let env = env(&[("PATRONI_CONFIGURATION", "name: x\nkubernetes: {}\n"), ("PATRONI_SCOPE", "s")]);
    let alone = load(&[], &env).unwrap().config;
    assert_eq!((alone.name.as_str(), alone.scope.as_str()), ("x", ""));
    let with_file = load(&source(SMALL), &env).unwrap().config;
    assert_eq!((with_file.name.as_str(), with_file.scope.as_str()), ("a", "s"));
    assert!(load(&[], &BTreeMap::new()).unwrap_err().to_string().starts_with("Config is empty."));
}

#[test]
fn defaults_of_the_kubernetes_section() {
    let kubernetes = loaded(SMALL).config.kubernetes;
    assert_eq!(kubernetes.leader_label_value, "master");
    assert_eq!(kubernetes.context, "kind-kind");
    assert_eq!(kubernetes.proof_of_death.len(), 2);
    assert_eq!(loaded(&format!("{SMALL}namespace: other\n")).config.kubernetes.namespace, "other");
}

#[test]
fn old_layouts_are_rewritten() {
    let text =
        "postgresql:\n  name: old\n  replication: {username: r, junk: 1}\n  pg_rewind: {username: w}\nkubernetes: {}\n";
    let config = loaded(text).config;
    assert_eq!(config.name, "old");
    assert_eq!(config.postgresql.authentication.superuser.username.as_deref(), Some("w"));
    assert_eq!(config.postgresql.authentication.replication.username.as_deref(), Some("r"));
    assert!(config.postgresql.authentication.replication.options.is_empty());
    assert_eq!(config.postgresql.raw["use_pg_rewind"], json!(true));
}

#[test]
fn timeouts_are_adjusted_and_bad_documents_keep_the_old_ones() {
    let at = |document: Value| {
        let (d, warnings) = Dynamic::parse(&document);
        (d.ttl, d.loop_wait, d.retry_timeout, warnings.len())
    };
    assert_eq!(at(json!({})), (30, 10, 10, 0));
    assert_eq!(at(json!({"ttl": "40"})), (40, 10, 10, 0));
    assert_eq!(at(json!({"ttl": 20})), (20, 1, 9, 1));
    assert_eq!(at(json!({"ttl": 25})), (25, 5, 10, 1));
    assert_eq!(at(json!({"ttl": 5, "loop_wait": 0, "retry_timeout": 1})), (20, 1, 3, 3));
    let (old, _) = Dynamic::parse(&json!({"ttl": 60, "postgresql": {"use_pg_rewind": true}}));
    let (new, warnings) = Dynamic::apply(&json!({"ttl": "30s", "pause": true, "postgresql": {}}), &old);
    assert_eq!((new.ttl, new.pause, new.rejected.is_some()), (60, true, true));
    assert_eq!(new.postgresql, old.postgresql);
    assert!(warnings[0].starts_with("Exception when setting dynamic_configuration"));
}

#[test]
fn dynamic_values_follow_their_rules() {
    let (d, warnings) = Dynamic::parse(&json!({
        "maximum_lag_on_failover": "1MB", "master_start_timeout": 5, "member_slots_ttl": "30min",
        "synchronous_mode": "quorum", "synchronous_mode_strict": "on", "synchronous_node_count": 0,
        "permanent_slots": {"p": null}, "slots": {"s": null}, "check_timeline": "maybe",
    }));
    assert_eq!(d.maximum_lag_on_failover, 1_048_576);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!((d.primary_start_timeout, d.member_slots_ttl, d.synchronous_node_count), (5, 1800, 1));
    assert_eq!(d.synchronous_mode, SynchronousMode::Quorum);
    assert!(d.slots.contains_key("p") && !d.check_timeline);
    let (d, _) =
        Dynamic::parse(&json!({"synchronous_mode": true, "standby_cluster": {"host": "h", "primary_slot_name": null}}));
    assert_eq!(d.synchronous_mode, SynchronousMode::Off);
    assert_eq!(d.standby_cluster.unwrap().primary_slot_name, Some(None));
    let (d, _) = Dynamic::parse(&json!({"standby_cluster": {"create_replica_methods": ["x"]}}));
    assert!(d.standby_cluster.is_none());
}

#[test]
fn local_parameters_win_except_controlled_ones() {
    let text = format!(
        "{SMALL}postgresql:\n  listen: '0.0.0.0,::1:5433'\n  use_slots: false\n  parameters: {{Work_Mem: 8MB, max_connections: 7, \
         restore_command: cp}}\n  basebackup: [verbose, {{max-rate: '100M'}}]\n  create_replica_methods: [w, basebackup]\n  \
         w: {{command: x, no_master: 1}}\n"
    );
    let result = loaded(&text);
    assert!(result.warnings.iter().any(|w| w.contains("postgresql.parameters.max_connections: is ignored here")));
    let (dynamic, _) = Dynamic::parse(&json!({"postgresql": {"data_dir": "/x", "use_pg_rewind": true, "pg_hba": ["l"],
        "parameters": {"work_mem": "4MB", "max_connections": 10, "max_wal_senders": 20, "wal_keep_segments": 4, "fsync": true}}}));
    let (pg, warnings) = effective_postgresql(&result.config, &dynamic, 15);
    assert_eq!(warnings, ["postgresql parameter max_connections=10 failed validation, defaulting to 100"]);
    assert_eq!((pg.parameters["work_mem"].as_str(), pg.parameters["fsync"].as_str()), ("8MB", "on"));
    assert_eq!((pg.parameters["wal_keep_size"].as_str(), pg.controlled.get("wal_keep_size")), ("64MB", None));
    assert!(!pg.parameters.contains_key("wal_keep_segments") && !pg.parameters.contains_key("restore_command"));
    assert_eq!((pg.controlled["max_wal_senders"].as_str(), pg.controlled["wal_level"].as_str()), ("20", "replica"));
    assert_eq!((pg.controlled["listen_addresses"].as_str(), pg.controlled["port"].as_str()), ("0.0.0.0,::1", "5433"));
    assert_eq!(pg.controlled["cluster_name"], "demo");
    assert_eq!(pg.recovery_conf["restore_command"], "cp");
    assert!(pg.use_slots && pg.use_pg_rewind && !pg.methods.contains_key("basebackup"));
    assert_eq!(pg.methods["w"]["no_leader"], json!(1));
    assert_eq!(pg.basebackup, [("verbose".to_owned(), None), ("max-rate".to_owned(), Some("100M".to_owned()))]);
    assert_eq!(pg.pg_hba.unwrap(), ["l"]);
}

#[test]
fn what_counts_only_at_a_start_is_named_and_kept_at_a_reload() {
    let text = |scope: &str, dir: &str, more: &str| {
        format!(
            "name: a\nscope: {scope}\nkubernetes: {{labels: {{app: demo}}{more}}}\npostgresql: {{data_dir: {dir}}}\n"
        )
    };
    let start = loaded(&text("demo", "/d", "")).config;
    let mut again = loaded(&text("demo", "/d", ", proof_of_death: [released]")).config;
    assert_eq!(again.keep_fixed(&start), Vec::<&str>::new());
    assert_eq!(again.kubernetes.proof_of_death.len(), 1, "that one is taken over");
    let mut moved = loaded(&text("other", "/e", ", use_endpoints: true")).config;
    assert_eq!(moved.keep_fixed(&start), ["scope", "postgresql.data_dir", "kubernetes"]);
    assert_eq!((moved.scope.as_str(), moved.postgresql.config_dir.as_str()), ("demo", "/d"));
    assert_eq!(moved.keep_fixed(&start), Vec::<&str>::new());
}

#[test]
fn false_flags_are_not_published_unless_a_priority_stands_beside_them() {
    let given = |value: Value| -> BTreeMap<String, Value> { serde_json::from_value(value).unwrap() };
    let published = tags::published(&given(json!({"nofailover": false, "clonefrom": true, "x": false, "nosync": 0})));
    assert_eq!(published, given(json!({"clonefrom": true, "x": false})));
    let paired = given(json!({"nofailover": false, "failover_priority": 0}));
    assert_eq!(tags::published(&paired), paired);
    assert!(!tags::nofailover(&paired) && tags::nofailover(&given(json!({"nofailover": "false"}))));
}

#[test]
fn the_schema_knows_every_section() {
    let schema = patroni::config::schema();
    assert!(schema.as_value()["properties"]["kubernetes"]["properties"]["proof_of_death"].is_object());
}

#[test]
fn the_sample_passes_our_own_validation() {
    let facts = patroni::config::SampleFacts { host_name: "h1".into(), address: "10.0.0.5".into(), pg_major: 15 };
    let text = patroni::config::sample(&facts, &env(&[("PATRONI_SCOPE", "demo")]));
    assert!(text.starts_with("scope: demo\nname: h1\n") && !text.ends_with('\n'), "{text}");
    let result = loaded(&text);
    assert!(result.warnings.is_empty(), "{:?}", result.warnings);
    result.config.require_daemon().unwrap();
    assert_eq!(patroni::config::validate(&source(&text), &BTreeMap::new()), Vec::<String>::new());
}

#[test]
fn validation_lists_one_problem_per_line() {
    let text = format!(
        "{SMALL}log: {{level: debug}}\ntags: {{clonefrom: \"yes\", nofailover: true, failover_priority: 1}}\n\
         restapi: {{listen: '0.0.0.0:8008', connect_address: 'localhost:8008'}}\nbootstrap: {{dcs: {{ttl: 5}}}}\n"
    );
    let problems = patroni::config::validate(&source(&text), &BTreeMap::new());
    for wanted in [
        "postgresql.data_dir  is not defined.",
        "log.level debug didn't pass validation: Wrong value",
        "tags.clonefrom yes is not a boolean",
        "tags  Multiple of ('nofailover', 'failover_priority') provided",
        "bootstrap.dcs.ttl 5 didn't pass validation: Wrong value",
    ] {
        assert!(problems.iter().any(|p| p == wanted), "{wanted} in {problems:?}");
    }
    assert!(problems.iter().any(|p| p.starts_with("restapi.connect_address localhost:8008 didn't pass")));
}

#[test]
fn a_directory_is_read_in_name_order_and_later_files_win() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("20.yaml", "scope: late\n"), ("10.yml", SMALL), ("30.txt", "scope: no\n")] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let sources = patroni::config::files::read(dir.path()).unwrap();
    assert_eq!(sources.len(), 2);
    let config = load(&sources, &BTreeMap::new()).unwrap().config;
    assert_eq!((config.name.as_str(), config.scope.as_str()), ("a", "late"));
    assert!(patroni::config::files::read(&dir.path().join("absent")).unwrap().is_empty());
}
