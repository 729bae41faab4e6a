//! Bad input: one clear message, exit 1, nothing changed on disk.
//!
//! Each test runs the real `patroni` as the user members run as. No API server is needed: what is wrong with this machine
//! and this file is said before anybody else is asked.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use patroni::demo::machine;

/// A directory the members' user may write to, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        let dir = machine::private_dir("patroni-refusal").unwrap();
        machine::User::find().unwrap().own(&dir).unwrap();
        Place(dir)
    }
    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.join("patroni.yml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(self.0.join("kubeconfig"), KUBECONFIG).unwrap();
        path
    }
    fn untouched(&self) -> bool {
        !self.0.join("data").exists()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Port 9 (discard) has no server; nobody should get that far.
const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}]\n\
    users: [{name: u, user: {token: t}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n";

fn config(dir: &Path, rest: u16, port: u16, bin: &Path) -> String {
    let (dir, bin) = (dir.display(), bin.display());
    format!(
        "scope: refused\nname: refused-0\nrestapi:\n  listen: 127.0.0.1:{rest}\n  connect_address: 127.0.0.1:{rest}\n\
         kubernetes:\n  context: ''\n  labels: {{application: patroni}}\n\
         bootstrap:\n  dcs: {{ttl: 20, loop_wait: 1, retry_timeout: 3}}\n\
         postgresql:\n  listen: 127.0.0.1:{port}\n  connect_address: 127.0.0.1:{port}\n  data_dir: {dir}/data\n  \
         bin_dir: {bin}\n  pgpass: {dir}/pgpass\n  authentication:\n    superuser: {{username: postgres, password: x}}\n    \
         replication: {{username: replicator, password: x}}\n  parameters: {{unix_socket_directories: {dir}}}\n\
         watchdog: {{mode: off}}\n"
    )
}

enum As {
    Member,
    Root,
}

/// The running program and where it prints to.
fn begin(file: &Path, who: &As) -> (std::process::Child, PathBuf) {
    let dir = file.parent().unwrap();
    let built = PathBuf::from(env!("CARGO_BIN_EXE_patroni"));
    let built = std::env::var_os("PATRONI_BIN_DIR").map_or_else(|| built.with_file_name(""), PathBuf::from);
    // The members' user may not be allowed to enter the directory of the build.
    let user = machine::User::find().unwrap();
    let program = machine::publish_programs(&built, &dir.join("bin"), &user).unwrap().join("patroni");
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PATRONI_")) {
        command.env_remove(name);
    }
    command.arg(file).env("KUBECONFIG", dir.join("kubeconfig")).env("HOME", dir).stdin(Stdio::null());
    if let (As::Member, Some((uid, gid))) = (who, user.ids()) {
        command.uid(uid).gid(gid);
    }
    let printed = dir.join("out");
    let out = std::fs::File::create(&printed).unwrap();
    (command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap(), printed)
}

/// Exit code and everything printed. It has ten seconds.
fn end(mut child: std::process::Child, printed: &Path) -> (i32, String) {
    let said = || std::fs::read_to_string(printed).unwrap();
    for _ in 0..1000 {
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code().unwrap_or(-1), said());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    (-1, format!("still running after 10 s:\n{}", said()))
}

fn run(file: &Path, who: As) -> (i32, String) {
    let (child, printed) = begin(file, &who);
    end(child, &printed)
}

/// Runs it and checks: exit 1, every word said, at most `lines` lines that are errors or worse, no data directory.
fn refused(place: &Place, file: &Path, who: As, words: &[&str]) {
    let (code, said) = run(file, who);
    assert_eq!(code, 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(said.lines().count() <= 3, "one clear message, not: {said}");
    assert!(place.untouched(), "it made a data directory");
}

/// The tests run at the same time: each looks in a range of its own, or two would find the same port free.
fn free(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(30_100);
    machine::free_ports(NEXT.fetch_add(50, Ordering::Relaxed), count).unwrap()
}

/// Tests that need Postgres or another user say so and end, like the cluster tests.
fn postgres() -> Option<PathBuf> {
    let found = machine::find_postgres().filter(|_| machine::User::find().is_ok());
    if found.is_none() {
        println!("skipped: no Postgres, or no user to run it as");
    }
    found
}

#[test]
fn a_missing_file_is_named() {
    if postgres().is_none() {
        return;
    }
    let place = Place::new();
    place.file("");
    let file = place.0.join("nowhere.yml");
    refused(&place, &file, As::Member, &[&file.display().to_string()]);
}

#[test]
fn a_yaml_error_has_a_line_and_a_column() {
    if postgres().is_none() {
        return;
    }
    let place = Place::new();
    let file = place.file("scope: x\nname: y\nrestapi: {listen: [\n");
    refused(&place, &file, As::Member, &[&format!("{}:4:1", file.display())]);
}

#[test]
fn a_wrong_type_names_its_key() {
    let Some(bin) = postgres() else { return };
    let place = Place::new();
    let text = config(&place.0, 30_100, 30_101, &bin).replace("authentication:", "authentication: 7\n  ignored:");
    refused(&place, &place.file(&text), As::Member, &["authentication"]);
}

#[test]
fn missing_postgres_programs_are_named() {
    if postgres().is_none() {
        return;
    }
    let place = Place::new();
    let ports = free(2);
    let text = config(&place.0, ports[0], ports[1], &place.0.join("no-postgres"));
    refused(&place, &place.file(&text), As::Member, &["no-postgres"]);
}

#[test]
fn an_occupied_rest_port_is_named() {
    let Some(bin) = postgres() else { return };
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = config(&place.0, port, free(1)[0], &bin);
    refused(&place, &place.file(&text), As::Member, &[&port.to_string()]);
}

/// The keeper would hold on to the terminal for as long as it waits for somebody.
#[test]
fn a_missing_kubeconfig_is_named_and_no_keeper_is_left_behind() {
    let Some(bin) = postgres() else { return };
    let place = Place::new();
    let ports = free(2);
    let file = place.file(&config(&place.0, ports[0], ports[1], &bin));
    std::fs::remove_file(place.0.join("kubeconfig")).unwrap();
    refused(&place, &file, As::Member, &["kubeconfig"]);
    let started = place.0.join("data.keeper").exists();
    assert!(patroni::demo::processes::kill_all(&place.0, 100).is_empty() && !started, "a keeper was started");
}

#[test]
fn root_is_refused() {
    let Some(bin) = postgres() else { return };
    if machine::User::find().unwrap().ids().is_none() {
        println!("skipped: not started as root");
        return;
    }
    let place = Place::new();
    let ports = free(2);
    refused(&place, &place.file(&config(&place.0, ports[0], ports[1], &bin)), As::Root, &["root"]);
}

/// A pod that is deleted while the API server cannot be reached ends at once, not after its grace period.
#[test]
fn sigterm_ends_a_member_that_waits_for_the_api_server() {
    let Some(bin) = postgres() else { return };
    let place = Place::new();
    let ports = free(2);
    let (child, printed) = begin(&place.file(&config(&place.0, ports[0], ports[1], &bin)), &As::Member);
    let began = std::fs::metadata(&printed).unwrap().modified().unwrap();
    while !std::fs::read_to_string(&printed).unwrap().contains("waiting for the store") {
        assert!(began.elapsed().unwrap() < Duration::from_secs(20), "it does not say that it waits");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let (code, said) = end(child, &printed);
    let left = patroni::demo::processes::kill_all(&place.0, 100);
    assert_eq!((code, left.len()), (0, 0), "{said}");
    assert!(said.contains("told to end before this member had begun"), "{said}");
}

/// `patroni --validate-config` with these variables: exit code and everything printed.
fn validate(place: &Place, text: &str, variables: &[(&str, &str)]) -> (i32, String) {
    let file = place.file(text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_patroni"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PATRONI_")) {
        command.env_remove(name);
    }
    let output = command.args(["--validate-config", "-i"]).arg(file).envs(variables.iter().copied()).output().unwrap();
    let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), said(output.stdout) + &said(output.stderr))
}

#[test]
fn validation_says_what_a_start_would_warn_about() {
    let Some(bin) = postgres() else { return };
    let place = Place::new();
    let text =
        config(&place.0, 30_100, 30_101, &bin).replace("connect_address: 127.0.0.1", "connect_address: 10.0.0.1");
    assert_eq!(validate(&place, &text, &[]), (0, String::new()), "nothing to say, nothing said");
    let odd = text.replace(
        "watchdog: {mode: off}",
        "watchdog: {mode: required, device: /nonexistent/watchdog}\npause: true\nrestapy: {}\nname: again",
    );
    let variables = [("PATRONI_SCOEP", "x"), ("PATRONI_KUBERNETES_USE_ENDPOINTS", "perhaps")];
    let (code, said) = validate(&place, &odd, &variables);
    assert_eq!(code, 0, "{said}");
    for words in [
        "pause: is ignored here; set it with patronictl edit-config",
        "restapy: unknown key, did you mean `restapi`?",
        "name is given twice",
        "PATRONI_SCOEP is not a variable of the configuration, did you mean PATRONI_SCOPE?",
        "PATRONI_KUBERNETES_USE_ENDPOINTS is ignored: kubernetes.use_endpoints must be true or false",
        "watchdog.device /nonexistent/watchdog: No such file or directory (os error 2); load a driver on the host (modprobe softdog)",
    ] {
        assert!(said.lines().any(|line| line.starts_with("WARNING: ") && line.contains(words)), "{words} in {said}");
    }
}

/// A start goes on without them, so that they are no error.
#[test]
fn validation_names_the_parameters_that_the_installed_postgres_refuses() {
    let Some(bin) = postgres() else { return };
    let place = Place::new();
    let text = config(&place.0, 30_100, 30_101, &bin)
        .replace("connect_address: 127.0.0.1", "connect_address: 10.0.0.1")
        .replace("  parameters: {", "  parameters: {work_mem: banana, zero_damaged_pages: true, my.own: 1, ")
        .replace("dcs: {", "dcs: {postgresql: {parameters: {foo_bar: 1, shared_buffers: 1GB}}, ");
    let (code, said) = validate(&place, &text, &[]);
    assert_eq!((code, said.lines().count()), (0, 2), "{said}");
    for words in [
        "WARNING: parameter \"foo_bar\" (\"1\" in the dynamic configuration) is unknown to PostgreSQL ",
        "WARNING: parameter \"work_mem\" (\"banana\" in the local configuration) is refused by PostgreSQL ",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
}

#[test]
fn validation_ends_with_1_for_what_a_start_would_refuse() {
    let Some(bin) = postgres() else { return };
    let place = Place::new();
    let text =
        config(&place.0, 30_100, 30_101, &bin).replace("connect_address: 127.0.0.1", "connect_address: 10.0.0.1");
    for (wrong, words) in [
        (text.replace(&format!("bin_dir: {}", bin.display()), "bin_dir: /nonexistent"), "/nonexistent/postgres"),
        (text.replace("scope: refused", "scpoe: refused"), "scpoe: unknown key, did you mean `scope`?"),
        (text.replace("kubernetes:\n", "kubernetes:\n  bypass_api_service: true\n"), "bypass_api_service"),
        (text.replace("restapi:\n", "restapi:\n  certfile: /nonexistent/tls.crt\n"), "/nonexistent/tls.crt"),
    ] {
        let (code, said) = validate(&place, &wrong, &[]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(words), "{words} in {said}");
    }
}
