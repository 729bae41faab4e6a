//! The house rules that a program can check as data: who may import whom and why, how long a file, a function
//! and `main` may be, where an annotation key may be spelled, and words that promise work instead of doing it.
//!
//! A broken rule fails with the place and the reason, so that the reader can judge whether the code or the rule is wrong.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs;
use std::path::{Path, PathBuf};

/// One row of the import table. `ours` are the paths below `crate::` it may name (a longer path is covered by a shorter
/// one); `never` are crates and texts that must not occur.
struct Layer {
    module: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
    why: &'static str,
}

const IMPORTS: &[Layer] = &[
    Layer {
        module: "model",
        ours: &["mutant"],
        never: &["tokio::", "kube::", "axum::", "tracing::", "serde::", "std::fs", "std::net", "std::env"],
        why: "plain values: everybody may use them, so they use nobody",
    },
    Layer {
        module: "mutant",
        ours: &[],
        never: &["tokio::", "kube::", "std::env", "std::fs"],
        why: "a switch that tests turn: the machines ask it, it asks nobody",
    },
    Layer {
        module: "decide",
        ours: &["model", "mutant"],
        never: &[
            "tokio::",
            "kube::",
            "axum::",
            "tracing::",
            "std::fs",
            "std::net",
            "std::env",
            "rustix::",
            "jiff::",
            "rand::",
        ],
        why: "a decision is a pure function of its arguments; a clock, file or socket in it could not be tested",
    },
    Layer {
        module: "dcs",
        ours: &["model", "mutant"],
        never: &["axum::", "tokio_postgres::"],
        why: "the store speaks of leases and views; it does not decide and does not know Postgres",
    },
    Layer {
        module: "postgres",
        ours: &["model", "keeper::protocol", "keeper::boot_id", "tls"],
        never: &["kube::", "k8s_openapi::", "axum::"],
        why: "Postgres is driven through the keeper and SQL; it knows no store and no decision",
    },
    Layer {
        module: "watchdog",
        ours: &["model"],
        never: &["kube::", "axum::", "tokio_postgres::"],
        why: "the last fence depends on nothing that can fail",
    },
    Layer {
        module: "keeper",
        ours: &["mutant"],
        never: &["kube::", "k8s_openapi::", "axum::", "tokio_postgres::", "hyper::"],
        why: "the keeper is a small static binary that knows nothing of Kubernetes",
    },
    Layer {
        module: "member",
        ours: &["model", "decide", "mutant"],
        never: &[
            "tokio::",
            "kube::",
            "axum::",
            "tracing::",
            "std::fs",
            "std::net",
            "std::env",
            "fs_err::",
            "rustix::",
            "jiff::",
            "rand::",
            "std::time::Instant",
            "SystemTime",
            "async ",
            ".await",
        ],
        why: "the member is one pure machine: production, scenarios and simulation drive the very same value",
    },
    Layer {
        module: "driver",
        ours: &["member", "dcs", "postgres", "watchdog", "keeper::protocol", "config", "tls", "door", "model"],
        never: &["axum::", "kube::", "k8s_openapi::"],
        why: "the driver carries effects out; formats and servers are its neighbours' business, decisions the member's",
    },
    Layer {
        module: "door",
        ours: &["model"],
        never: &["axum::", "kube::", "tokio_postgres::", "hyper::", "tracing::", "tokio::net", "tokio::fs"],
        why: "the door is channels and values: it knows no HTTP, no machine and no driver",
    },
    Layer {
        module: "api",
        ours: &["door", "model", "config::numbers", "config::merge", "config::newly_unsupported", "tls"],
        never: &["kube::", "k8s_openapi::", "tokio_postgres::"],
        why: "REST answers from the door's handle and never waits for store or Postgres itself",
    },
    Layer {
        module: "ctl",
        ours: &["model", "dcs", "config", "tls"],
        never: &["axum::"],
        why: "patronictl is a client: it reads the store and calls REST like anybody else",
    },
    Layer {
        module: "config",
        ours: &["model"],
        never: &["tokio::", "kube::", "axum::", "std::fs", "std::net", "fs_err::"],
        why: "configuration is text in, settings out",
    },
    Layer {
        module: "tls",
        ours: &[],
        never: &["tokio::", "kube::", "axum::", "tokio_postgres::"],
        why: "one rule whose certificate is accepted; who asks, and how strictly, is the callers' business",
    },
    Layer {
        module: "kubemem",
        ours: &[],
        never: &["kube::", "tokio_postgres::"],
        why: "the embedded API is held against a real one by the same tests, so it must not share code with us",
    },
    Layer {
        module: "demo",
        ours: &["kubemem", "model::time_scale"],
        never: &["axum::"],
        why: "the harness drives the binaries from outside, as a user and a kubelet would",
    },
];

/// Places that may use a word their layer may not, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/config/files.rs", "std::fs", "the one file that reads configuration files; the rest of config gets text"),
    ("src/config/validate.rs", "std::net", "an address is text that parses or not; nothing is opened"),
];

/// The sample configuration is Patroni's, down to the word it marks the values with that a user must fill in.
const SAMPLE: &str = "src/config/sample.rs";

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const MAIN_LINES_MAX: usize = 40;

/// Keys of our objects that have one spelling and one place. Words that are also REST or SQL words are not listed.
const ANNOTATION_KEYS: &[&str] = &[
    "\"acquireTime\"",
    "\"renewTime\"",
    "\"transitions\"",
    "\"retain_slots\"",
    "\"patroni.holder\"",
    "\"patroni.initializer\"",
    "\"patroni.impl\"",
    "\"patroni.released\"",
    "\"patroni.timeline\"",
];

/// Words in comments that put work off. Split so that this file passes its own rule.
const PROMISES: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("for", " now")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    into.sort();
}

fn files(dirs: &[&str]) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for dir in dirs {
        rust_files(&root().join(dir), &mut paths);
    }
    paths
        .iter()
        .map(|p| {
            let name = p.strip_prefix(root()).unwrap().display().to_string();
            (name, fs::read_to_string(p).unwrap())
        })
        .collect()
}

/// The text without comments, and without the test module at the end (tests may reach further).
fn code_of(text: &str) -> String {
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next_is_module = lines.peek().is_some_and(|l| l.trim_start().starts_with("mod ") && l.ends_with('{'));
        if line.starts_with("#[cfg(") && line.contains("test") && next_is_module {
            break;
        }
        out.push_str(line.split("//").next().unwrap_or_default());
        out.push('\n');
    }
    out
}

/// Every path after `crate::` (or `patroni::`), groups in braces taken apart one level deep.
fn paths_of(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(leading_path(rest)),
            Some(group) => {
                let (mut depth, mut item) = (0, String::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => found.push(leading_path(item.trim())),
                        _ => {}
                    }
                    if c == ',' && depth == 0 { item.clear() } else { item.push(c) }
                }
                found.push(leading_path(item.trim()));
            }
        }
    }
    found.retain(|p| !p.is_empty());
    found
}

fn leading_path(text: &str) -> String {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    text[..end].trim_end_matches(':').to_owned()
}

fn module_of(file: &str) -> Option<&str> {
    let rest = file.strip_prefix("src/")?;
    rest.split('/').next().map(|m| m.trim_end_matches(".rs"))
}

fn occurs(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().filter(|_| !word.starts_with('.'));
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn nobody_imports_what_the_table_forbids() {
    let mut broken = Vec::new();
    for (name, text) in files(&["src"]) {
        let Some(layer) = module_of(&name).and_then(|m| IMPORTS.iter().find(|l| l.module == m)) else { continue };
        let code = code_of(&text);
        for path in paths_of(&code) {
            let own = path == layer.module || path.starts_with(&format!("{}::", layer.module));
            let allowed = layer.ours.iter().any(|a| path == *a || path.starts_with(&format!("{a}::")));
            if !own && !allowed {
                broken
                    .push(format!("{name}: crate::{path} ({} may use {:?}: {})", layer.module, layer.ours, layer.why));
            }
        }
        let excused = |word: &str| EXCEPTIONS.iter().any(|(file, w, _)| *file == name && *w == word);
        for word in layer.never.iter().filter(|w| occurs(&code, w) && !excused(w)) {
            broken.push(format!("{name}: {word} ({}: {})", layer.module, layer.why));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_has_a_row_in_the_import_table() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for module in lib.lines().filter_map(|l| l.strip_prefix("pub mod ")).map(|l| l.trim_end_matches(';')) {
        assert!(IMPORTS.iter().any(|l| l.module == module), "{module} is not in the import table of tests/tidy.rs");
    }
}

/// (name, first line, length) of every function of a formatted file: a body ends at the closing brace that is indented
/// like its `fn`.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let Some(at) = body.find("fn ").filter(|at| {
            body[..*at].split_whitespace().all(|w| {
                w.starts_with("pub") || w.ends_with(')') || ["const", "async", "unsafe", "extern", "\"C\""].contains(&w)
            })
        }) else {
            continue;
        };
        let name = leading_path(&body[at + 3..]);
        let indent = &line[..line.len() - body.len()];
        let head = lines[i..].iter().position(|l| l.ends_with('{') || l.ends_with(';') || l.ends_with('}'));
        let Some(head) = head.filter(|h| lines[i + h].ends_with('{')) else { continue };
        let close = format!("{indent}}}");
        if let Some(end) = lines[i + head..].iter().position(|l| *l == close) {
            found.push((name, i + 1, head + end + 1));
        }
    }
    found
}

#[test]
fn files_and_functions_fit_on_a_few_screens() {
    let mut broken = Vec::new();
    for (name, text) in files(&["src", "tests", "benches"]) {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}: split it by what its parts are for"));
        }
        for (function, at, length) in functions(&text) {
            let main = function == "main" && (name.starts_with("src/bin/") || name == "tests/cluster.rs");
            let max = if main { MAIN_LINES_MAX } else { FUNCTION_LINES_MAX };
            if length > max {
                broken.push(format!("{name}:{at}: fn {function} has {length} lines, at most {max}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn annotation_keys_are_spelled_in_one_place() {
    let mut broken = Vec::new();
    for (name, text) in files(&["src"]) {
        let elsewhere = name.starts_with("src/dcs/schema/") || name.starts_with("src/demo/");
        if elsewhere || name.starts_with("src/kubemem/") {
            continue;
        }
        let code = code_of(&text);
        for key in ANNOTATION_KEYS.iter().filter(|k| code.contains(**k)) {
            broken.push(format!("{name}: {key} belongs in src/dcs/schema/, the one place that spells annotation keys"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn nothing_is_put_off_in_words() {
    let mut broken = Vec::new();
    for (name, text) in files(&["src", "tests", "benches"]).into_iter().filter(|(name, _)| name != SAMPLE) {
        for (i, line) in text.lines().enumerate() {
            let said = line.find("//").map_or("", |at| &line[at..]);
            if let Some(word) = PROMISES.iter().find(|w| said.contains(**w)) {
                broken.push(format!("{name}:{}: {word:?}: do it, or say in an error message what is not there", i + 1));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A rule stands where it is applied, in words: nobody can follow a reference to a text that is not here.
#[test]
fn nothing_refers_to_documents_that_are_not_in_the_repository() {
    let sign = char::from_u32(0xA7).unwrap();
    let refers = |text: &str| text.lines().position(|line| line.contains(sign));
    assert_eq!(refers(&format!("fine\nsee {sign}4")), Some(1));
    for (name, text) in files(&["src", "tests", "benches", "docs"]) {
        if let Some(line) = refers(&text) {
            panic!("{name}:{}: a section of what? Write the rule itself", line + 1);
        }
    }
}

#[test]
fn unsafe_code_lives_in_three_files() {
    for (name, text) in files(&["src"]) {
        let named =
            ["src/keeper/process.rs", "src/keeper/warden.rs", "src/driver/watchdog/device.rs"].contains(&name.as_str());
        assert!(
            named || !code_of(&text).contains("unsafe {"),
            "{name}: unsafe belongs in keeper/process.rs, keeper/warden.rs or driver/watchdog/device.rs"
        );
    }
}

#[test]
fn a_module_opens_with_its_story() {
    for (name, text) in files(&["src"]) {
        assert!(text.starts_with("//!"), "{name}: open with what the module is for (`//!`), 3 to 15 lines");
    }
}

#[test]
fn the_checks_of_this_file_can_fail() {
    assert_eq!(
        paths_of("use crate::{model::Lsn, dcs::{A, B}}; x(crate::driver::y)"),
        ["model::Lsn", "dcs::", "driver::y"].map(|p| p.trim_end_matches(':'))
    );
    let long = format!("fn long() {{\n{}}}\n", "    x();\n".repeat(80));
    assert_eq!(functions(&long), [("long".to_owned(), 1, 82)]);
    assert!(occurs("use kube::Api;", "kube::") && !occurs("use mykube::Api;", "kube::"));
    assert!(occurs("async fn x() { y.await }", "async ") && occurs("y().await;", ".await"));
    assert!(!code_of("a\n#[cfg(test)]\nmod tests {\nkube::x\n}\n").contains("kube"));
}
