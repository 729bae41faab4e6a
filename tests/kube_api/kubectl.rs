//! The real `kubectl`, when it is installed.
use super::target::{config_map, embedded, pod};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

const KUBECTL: &str = "/usr/bin/kubectl";

struct Kubectl {
    directory: tempfile::TempDir,
}

impl Kubectl {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(KUBECTL);
        command.arg("--kubeconfig").arg(self.file("kubeconfig"));
        command.arg("--cache-dir").arg(self.file("cache")).args(line.split(' '));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn run(&self, line: &str) -> String {
        let output = timeout(Duration::from_secs(30), self.command(line).output()).await.unwrap().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {line}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test]
async fn kubectl_works() {
    if !Path::new(KUBECTL).exists() {
        println!("skipped: no {KUBECTL}");
        return;
    }
    let server = embedded().await;
    let kubectl = Kubectl { directory: tempfile::tempdir().unwrap() };
    std::fs::write(kubectl.file("kubeconfig"), server.kubeconfig()).unwrap();
    server.store().create("pods", "default", pod("demo-0", "master")).unwrap();
    let yaml = kubectl.run("get pods,endpoints -o yaml").await;
    assert!(yaml.contains("name: demo-0") && yaml.contains("kind: Pod"), "{yaml}");
    assert_eq!(kubectl.run("get po -o name").await, "pod/demo-0\n");
    for table in ["get pods", "get all", "describe pod demo-0"] {
        assert!(kubectl.run(table).await.contains("demo-0"), "{table}");
    }
    applies_and_watches(&kubectl).await;
    assert_eq!(kubectl.run("label pod demo-0 role=replica --overwrite").await, "pod/demo-0 labeled\n");
    assert_eq!(kubectl.run("delete pod demo-0").await, "pod \"demo-0\" deleted\n");
    assert_eq!(kubectl.run("get pods -o name").await, "");
}

async fn applies_and_watches(kubectl: &Kubectl) {
    let mut map = config_map("settings", "1");
    map["apiVersion"] = "v1".into();
    map["kind"] = "ConfigMap".into();
    let file = kubectl.file("map.json");
    let file = file.to_str().unwrap();
    std::fs::write(file, map.to_string()).unwrap();
    let mut watch = kubectl.command("get configmaps -o name -w").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert_eq!(kubectl.run(&format!("apply -f {file}")).await, "configmap/settings created\n");
    let line = timeout(Duration::from_secs(30), lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("configmap/settings"));
    map["data"]["key"] = "2".into();
    std::fs::write(file, map.to_string()).unwrap();
    assert_eq!(kubectl.run(&format!("apply -f {file}")).await, "configmap/settings configured\n");
    assert_eq!(kubectl.run(&format!("apply -f {file}")).await, "configmap/settings unchanged\n");
    assert_eq!(kubectl.run("annotate configmap settings a=b").await, "configmap/settings annotated\n");
    assert_eq!(kubectl.run("get cm settings -o jsonpath={.metadata.annotations.a}{.data.key}").await, "b2");
    assert_eq!(kubectl.run("delete configmap settings").await, "configmap \"settings\" deleted\n");
    assert_eq!(kubectl.run(&format!("create -f {file}")).await, "configmap/settings created\n");
    drop(watch);
}
