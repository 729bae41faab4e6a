//! The chart and the plain manifests, as far as `helm template` shows them; no cluster is needed.
//!
//! Every values file in charts/patroni/ci/ is rendered and linted, its patroni.yml is read by our own configuration code,
//! bad values are refused with a reason, and deploy/endpoints and deploy/configmaps are what the chart makes.
//! Helm is looked for in $HELM, in the cache of the test cluster and in PATH; without it each test says "skipped: why".

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use patroni::config::{self, SourceText, yaml};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> PathBuf {
    root().join("charts/patroni")
}

/// Helm, if there is one.
fn helm() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = var("PATRONI_KUBE_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("patroni-kube")))
        .or_else(|| Some(var("HOME")?.join(".cache/patroni-kube")));
    let path = var("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("helm"));
    let known =
        [var("HELM"), cache.map(|c| c.join("bin/helm"))].into_iter().flatten().chain(found).find(|h| h.exists());
    if known.is_none() {
        println!("skipped: no helm in $HELM, the cache of the test cluster (make kube-up) or PATH");
    }
    known
}

/// Objects of the chart, or what Helm says against it.
fn template(helm: &Path, args: &[&str]) -> Result<Vec<Value>, String> {
    let run = Command::new(helm)
        .args(["template", "demo"])
        .arg(chart())
        .args(["--namespace", "shop", "--kube-version", "1.36.0"])
        .args(args)
        .output()
        .unwrap();
    if run.status.success() {
        Ok(objects("helm template", &String::from_utf8(run.stdout).unwrap()))
    } else {
        Err(String::from_utf8_lossy(&run.stderr).into_owned())
    }
}

/// The documents of a file. A key that stands twice is an error: API servers take either or neither.
fn objects(name: &str, text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for part in format!("\n{text}").split("\n---").filter(|p| !p.trim().is_empty()) {
        let located = yaml::parse_located(name, part).unwrap_or_else(|e| panic!("{e}\n{part}"));
        assert!(located.warnings.is_empty(), "{:?}\n{part}", located.warnings);
        if !located.value.is_null() {
            found.push(located.value);
        }
    }
    found
}

fn ci_files() -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(chart().join("ci")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 5);
    files
}

fn kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|o| o["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Init containers too.
fn containers(stateful_set: &Value) -> impl Iterator<Item = &Value> {
    let all = ["/spec/template/spec/initContainers", "/spec/template/spec/containers"];
    all.into_iter().flat_map(|path| list(stateful_set, path))
}

/// Every rendering that must work: the defaults and each file in ci/.
fn renderings(helm: &Path) -> Vec<(String, Vec<Value>)> {
    let mut all = vec![("defaults".to_owned(), template(helm, &[]).unwrap())];
    for file in ci_files() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let rendered = template(helm, &["--values", file.to_str().unwrap()]);
        all.push((name.clone(), rendered.unwrap_or_else(|e| panic!("{name}: {e}"))));
    }
    all
}

#[test]
fn every_documented_value_lints() {
    let Some(helm) = helm() else { return };
    for file in ci_files() {
        let run = Command::new(&helm).args(["lint", "--strict"]).arg(chart()).arg("--values").arg(&file).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&run.stdout));
    }
}

/// No unknown key, no unknown variable, nothing a member could not start with.
#[test]
fn the_rendered_configuration_is_one_that_patroni_takes_without_a_warning() {
    let Some(helm) = helm() else { return };
    for (name, objects) in renderings(&helm) {
        let text = kind(&objects, "ConfigMap")["data"]["patroni.yml"].as_str().unwrap().to_owned();
        let set = kind(&objects, "StatefulSet");
        for container in list(set, "/spec/template/spec/containers") {
            let variables = list(container, "/env").iter().filter_map(|v| v["name"].as_str());
            let environment: BTreeMap<String, String> = variables
                .filter(|v| v.starts_with("PATRONI_"))
                .map(|v| (v.to_owned(), if v.ends_with("ADDRESS") { "10.0.0.1:1" } else { "x" }.to_owned()))
                .collect();
            let source = SourceText { name: name.clone(), text: text.clone() };
            let loaded = config::load(&[source], &environment).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(loaded.warnings, Vec::<String>::new(), "{name}");
            let member =
                list(container, "/command").iter().any(|w| w.as_str().is_some_and(|w| w.ends_with("/patroni")));
            if member {
                loaded.config.require_daemon().unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
    }
}

/// A certificate that has expired may stop people, not a failover: members with `ctl.certfile` verify each other.
#[test]
fn only_patronictl_shows_a_client_certificate() {
    let Some(helm) = helm() else { return };
    for (name, objects) in renderings(&helm) {
        let read = |file: &str| {
            let text = kind(&objects, "ConfigMap")["data"][file].as_str()?.to_owned();
            Some(config::load(&[SourceText { name: name.clone(), text }], &BTreeMap::new()).unwrap().config)
        };
        let member = read("patroni.yml").unwrap();
        assert_eq!(member.ctl.certfile, None, "{name}");
        let shown = read("patronictl.yml").and_then(|c| c.ctl.certfile);
        assert_eq!(shown, member.restapi.certfile, "{name}");
    }
}

/// Pod security `restricted`, but for a watchdog device of the node.
#[test]
fn pods_ask_for_no_privilege_but_with_a_watchdog_device() {
    let Some(helm) = helm() else { return };
    for (name, objects) in renderings(&helm) {
        let set = kind(&objects, "StatefulSet");
        let pod = &set["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in containers(set).filter(|c| !c["securityContext"].is_null()) {
            let context = &container["securityContext"];
            let expected = name == "watchdog.yaml" && container["name"] == "patroni";
            assert_eq!(context["privileged"] == true, expected, "{name}: {}", container["name"]);
            if !expected {
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
            }
        }
        let of_the_node = list(pod, "/volumes").iter().any(|v| !v["hostPath"].is_null());
        assert_eq!(of_the_node, name == "watchdog.yaml", "{name}");
    }
}

/// A failed liveness probe must never restart Postgres.
#[test]
fn only_a_sidecar_of_its_own_has_a_liveness_probe() {
    let Some(helm) = helm() else { return };
    for (name, objects) in renderings(&helm) {
        let probed: Vec<&str> = containers(kind(&objects, "StatefulSet"))
            .filter(|c| !c["livenessProbe"].is_null() || !c["startupProbe"].is_null())
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        let expected: &[&str] = if name == "one-container.yaml" { &[] } else { &["patroni"] };
        assert_eq!(probed, expected, "{name}");
    }
}

#[test]
fn the_role_is_what_the_sidecar_asks_for_and_nothing_else() {
    let Some(helm) = helm() else { return };
    for (mode, leader) in [("endpoints", "demo"), ("configmaps", "demo-leader")] {
        let rendered = template(&helm, &["--set", &format!("mode={mode}")]).unwrap();
        let pods: Vec<String> = (0..10).map(|i| format!("demo-{i}")).collect();
        let state = [leader, "demo-config", "demo-failover", "demo-sync"].join(" ");
        let mut expected = BTreeSet::from([
            format!("{mode} list watch create:"),
            format!("{mode} get patch:{state}"),
            "pods list watch:".to_owned(),
            format!("pods get patch:{}", pods.join(" ")),
        ]);
        if mode == "endpoints" {
            expected.insert("services create:".to_owned());
        }
        let rules = list(kind(&rendered, "Role"), "/rules").iter().map(|rule| {
            assert_eq!(rule["apiGroups"], serde_json::json!([""]));
            let words = |key: &str| {
                list(rule, key).iter().map(|w| w.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
            };
            format!("{} {}:{}", words("/resources"), words("/verbs"), words("/resourceNames"))
        });
        assert_eq!(rules.collect::<BTreeSet<_>>(), expected);
    }
}

/// Members list objects of one kind by the labels of the cluster; what is not theirs must not carry them.
#[test]
fn objects_that_are_no_state_do_not_carry_the_labels_of_the_cluster() {
    let Some(helm) = helm() else { return };
    for (name, objects) in renderings(&helm).into_iter().filter(|(name, _)| name != "everything.yaml") {
        for object in objects.iter().filter(|o| ["ConfigMap", "Secret", "Pod"].contains(&o["kind"].as_str().unwrap())) {
            assert!(object["metadata"]["labels"]["cluster-name"].is_null(), "{name}: {}", object["metadata"]["name"]);
        }
    }
}

const REFUSED: &[(&str, &str)] = &[
    ("replica=3", "additional properties 'replica' not allowed"),
    ("postgres.imagee.tag=17", "additional properties 'imagee' not allowed"),
    ("mode=raft", "'/mode': value must be one of 'endpoints', 'configmaps'"),
    ("shape=three-containers", "'two-containers', 'one-container'"),
    ("replicas=0", "'/replicas': minimum"),
    ("replicas=three", "'/replicas'"),
    ("scope=Upper", "'/scope'"),
    ("scope=a23456789-123456789-123456789-123456789-123456789-123", "scope: \"a23456789"),
    ("postgres.uid=0", "'/postgres/uid': minimum"),
    ("postgres.dataDir=/home/postgres/pgdata", "postgres.dataDir /home/postgres/pgdata must lie below"),
    ("wal.enabled=true,wal.mountPath=/home/postgres/pgdata/wal", "must not lie in each other"),
    ("persistence.size=big", "'/persistence/size'"),
    ("dynamicConfig.ttl=10", "'/dynamicConfig/ttl': minimum"),
    ("dynamicConfig.lop_wait=10", "additional properties 'lop_wait' not allowed"),
    ("dynamicConfig.retry_timeout=15", "loop_wait + 2*retry_timeout is 40, more than ttl 30"),
    ("dynamicConfig.synchronous_mode=yess", "'/dynamicConfig/synchronous_mode'"),
    (
        "dynamicConfig.standby_cluster.primary_slot_name=a",
        "dynamicConfig.standby_cluster needs host, port or restore_command",
    ),
    ("dynamicConfig.slots.a.type=logical", "dynamicConfig.slots.a: logical slots are refused"),
    ("watchdog.mode=required", "watchdog.mode: required needs watchdog.enabled and a device"),
    ("config.watchdog.mode=required", "watchdog.mode: required needs watchdog.enabled"),
    ("watchdog.enabled=true", "watchdog.enabled needs a device"),
    ("watchdog.enabled=true,watchdog.hostPath=/dev/a,watchdog.resource=a/b", "exclude each other"),
    ("config.citus.group=0", "additional properties 'citus' not allowed"),
    ("config.kubernetes.bypass_api_service=true", "config.kubernetes.bypass_api_service is refused"),
    ("config.kubernetes.use_endpoints=true", "set the chart's own value"),
    ("config.bootstrap.dcs.ttl=60", "use dynamicConfig"),
    ("config.postgresql.data_dir=/data", "set the chart's own value"),
    ("kubernetes.labels.role=x", "kubernetes.labels: role is the label of the role"),
    ("kubernetes.labels.cluster-name=x", "cluster-name is the label of the scope"),
    ("kubernetes.leaderLabelValue=replica", "must differ"),
    ("kubernetes.proofOfDeath={gone}", "'/kubernetes/proofOfDeath/0'"),
    ("secret.existing=a,secret.passwords.superuser=b", "secret.passwords.superuser is of no use"),
    ("tls.rest.verifyClient=required", "would fail the kubelet's probes"),
    ("tls.postgres.secret=a,tls.postgres.ca=", "needs tls.postgres.ca"),
    ("metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true", "scrape every member twice"),
    ("serviceAccount.create=false", "name an existing one in serviceAccount.name"),
    ("affinity.podAffinity.a=b,antiAffinity=none", "set only one of them"),
];

#[test]
fn bad_values_are_refused_with_the_reason() {
    let Some(helm) = helm() else { return };
    let mut wrong = Vec::new();
    for (values, reason) in REFUSED {
        match template(&helm, &["--set", values]) {
            Ok(_) => wrong.push(format!("{values}: accepted")),
            Err(said) if !said.contains(reason) => wrong.push(format!("{values}: {said}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Labels that tell of Helm only; the text of patroni.yml is compared by its meaning.
fn normal(mut object: Value) -> Value {
    if let Some(text) = object.pointer("/data/patroni.yml").and_then(Value::as_str) {
        let meaning = yaml::parse("patroni.yml", text).unwrap();
        object["data"]["patroni.yml"] = meaning;
    }
    for path in ["/metadata", "/spec/template/metadata"] {
        let Some(metadata) = object.pointer_mut(path).and_then(Value::as_object_mut) else { continue };
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.retain(|key, _| !key.starts_with("app.kubernetes.io/") && !key.starts_with("helm.sh/"));
            if labels.is_empty() {
                metadata.remove("labels");
            }
        }
    }
    object
}

fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let named = |o: Value| (format!("{} {}", o["kind"].as_str().unwrap(), o["metadata"]["name"]), normal(o));
    objects.into_iter().map(named).collect()
}

#[test]
fn the_plain_manifests_are_what_the_chart_makes() {
    let Some(helm) = helm() else { return };
    for mode in ["endpoints", "configmaps"] {
        let args = ["--set", "secret.existing=demo-credentials", "--set", &format!("mode={mode}")];
        let mut made = by_name(template(&helm, &args).unwrap());
        made.remove("Pod \"demo-test\"").unwrap();
        let dir = root().join("deploy").join(mode);
        let mut plain = BTreeMap::new();
        for file in fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()) {
            plain.extend(by_name(objects(&file.display().to_string(), &fs::read_to_string(&file).unwrap())));
        }
        let names = |m: &BTreeMap<String, Value>| m.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&plain), names(&made), "deploy/{mode}");
        for (name, object) in &plain {
            let shown = |o: &Value| serde_json::to_string_pretty(o).unwrap();
            assert!(
                *object == made[name],
                "deploy/{mode}: {name} is\n{}\nthe chart's:\n{}",
                shown(object),
                shown(&made[name])
            );
        }
    }
}

/// Sections that the README explains in one row.
const ONE_VALUE: &[&str] = &[
    "dynamicConfig",
    "config",
    "postgres.resources",
    "sidecar.resources",
    "persistence.retentionPolicy",
    "probes.startup",
    "probes.liveness",
    "probes.readiness",
];

/// Every value, by its path; maps and lists that the user fills count as one.
fn values(schema: &Value, at: &str, found: &mut Vec<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        if inner["properties"].is_object() && !ONE_VALUE.contains(&path.as_str()) {
            values(inner, &path, found);
        } else if path != "global" {
            found.push(path);
        }
    }
}

#[test]
fn every_value_is_in_the_readme_of_the_chart() {
    let schema = fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let mut paths = Vec::new();
    values(&serde_json::from_str(&schema).unwrap(), "", &mut paths);
    assert!(paths.len() > 100);
    let readme = fs::read_to_string(chart().join("README.md")).unwrap();
    let missing: Vec<_> = paths.iter().filter(|p| !readme.contains(&format!("| `{p}` |"))).collect();
    assert!(missing.is_empty(), "not in charts/patroni/README.md: {missing:?}");
}
