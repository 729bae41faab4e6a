//! `edit-config`: change the stored dynamic configuration by hand, by key or from a file.

use std::io::Write;
use std::process::{Command, Stdio};

use clap::ArgMatches;
use serde_json::{Map, Value};
use similar::{ChangeTag, TextDiff};

use super::error::{CtlError, Result};
use super::members;
use super::prompts::{self, Terminal};
use super::session::Session;
use crate::config::{merge, newly_unsupported, yaml};
use crate::dcs::{Dcs, WriteResult};
use crate::model::StoreWrite;

/// Lines of context in the diff.
const CONTEXT: usize = 3;

/// `edit-config`.
///
/// # Errors
/// No record, unreadable input, editor failures, concurrent changes.
pub async fn edit(session: &mut Session<'_>, args: &ArgMatches) -> Result<()> {
    let scope = session.scope(args)?;
    let store = session.store(&scope).await?;
    let cluster = session.read(&store).await?;
    let missing = || CtlError::plain(format!("The config key does not exist in the cluster {scope}"));
    let record = cluster.config.as_ref().filter(|c| c.document.is_some()).ok_or_else(missing)?;
    let before = members::dynamic(&cluster);
    let before_text = yaml::to_string_block(&before);
    let (after, from_stdin) = match changed(session.terminal, args, &before)? {
        Some(changed) => changed,
        None => (edited(&before_text, &scope)?, false),
    };
    let after_text = yaml::to_string_block(&after);
    let quiet = args.get_flag("quiet");
    if before == after || before_text == after_text {
        if !quiet {
            session.say("Not changed");
        }
        return Ok(());
    }
    if !quiet {
        show_diff(session.terminal, &before_text, &after_text)?;
    }
    let wishes = newly_unsupported(&before, &after);
    if !wishes.is_empty() {
        return Err(CtlError::plain(format!("Configuration not changed: {}", wishes.join("; "))));
    }
    let force = args.get_flag("force");
    if from_stdin && !force {
        session.say("Use --force option to apply changes");
        return Ok(());
    }
    if !force && !prompts::confirm(session.terminal, "Apply these changes?")? {
        return Ok(());
    }
    match store
        .write(StoreWrite::Config { expect: Some(record.version.clone()), document: after.to_string().into() })
        .await
    {
        WriteResult::Written(_) => session.say("Configuration changed"),
        WriteResult::Conflict => return Err(CtlError::plain("Config modification aborted due to concurrent changes")),
        WriteResult::Refused(why) => return Err(CtlError::plain(format!("Can not write the configuration: {why}"))),
        WriteResult::Unknown(why) => {
            return Err(CtlError::plain(format!("It is not known whether the configuration was written: {why}")));
        }
    }
    Ok(())
}

/// The document after `--replace`, `--apply`, `--set` and `--pg`, in this order, and whether standard input was read;
/// `None` when none of them was given.
fn changed(terminal: &mut dyn Terminal, args: &ArgMatches, before: &Value) -> Result<Option<(Value, bool)>> {
    let mut after = before.clone();
    let (mut any, mut from_stdin) = (false, false);
    let mut document = |key: &str| -> Result<Option<Value>> {
        let Some(file) = args.get_one::<String>(key) else { return Ok(None) };
        from_stdin |= file == "-";
        read_document(terminal, file).map(Some)
    };
    if let Some(mut whole) = document("replace")? {
        if let Some(map) = whole.as_object_mut() {
            map.retain(|_, v| !v.is_null());
        }
        after = whole;
        any = true;
    }
    if let Some(patch) = document("apply")? {
        merge::patch(&mut after, &patch);
        any = true;
    }
    let sets = args.get_many::<String>("set").into_iter().flatten().cloned();
    let pgs = args.get_many::<String>("pg").into_iter().flatten().map(|p| format!("postgresql.parameters.{p}"));
    for (setting, shown) in
        sets.map(|s| (s.clone(), s)).chain(pgs.map(|p| (p.clone(), p["postgresql.parameters.".len()..].to_owned())))
    {
        let bad = || CtlError::plain(format!("Invalid parameter setting {shown}"));
        let (path, text) = setting.split_once('=').ok_or_else(bad)?;
        let value = yaml::parse(&shown, text).map_err(|e| CtlError::plain(e.to_string()))?;
        let path: Vec<&str> = path.trim().split('.').collect();
        if !after.is_object() {
            after = Value::Object(Map::new());
        }
        if let Some(map) = after.as_object_mut() {
            set_path(map, &path, value, &mut Vec::new());
        }
        any = true;
    }
    Ok(any.then_some((after, from_stdin)))
}

fn read_document(terminal: &mut dyn Terminal, file: &str) -> Result<Value> {
    let text = if file == "-" {
        terminal.read_rest()
    } else {
        std::fs::read_to_string(file).map_err(|e| CtlError::plain(format!("Can not read {file}: {e}")))?
    };
    parse(file, &text)
}

fn parse(name: &str, text: &str) -> Result<Value> {
    let value = yaml::parse(name, text).map_err(|e| CtlError::plain(e.to_string()))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(CtlError::plain(format!("{name}: the configuration must be a mapping")))
    }
}

/// Sets one value; `null` deletes, and a parent emptied by that goes too. Parameters of Postgres are one key however
/// many dots they have.
fn set_path<'p>(map: &mut Map<String, Value>, path: &[&'p str], value: Value, above: &mut Vec<&'p str>) {
    let whole;
    let (key, rest): (&str, &[&str]) = match path {
        path if above[..] == ["postgresql", "parameters"] => {
            whole = path.join(".");
            (&whole, &[])
        }
        [key, rest @ ..] => (key, rest),
        [] => return,
    };
    if rest.is_empty() {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            map.insert(key.to_owned(), value);
        }
        return;
    }
    let slot = map.entry(key.to_owned()).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    let Value::Object(inner) = slot else { return };
    above.push(path[0]);
    set_path(inner, rest, value, above);
    if inner.is_empty() {
        map.shift_remove(key);
    }
}

/// Lets the person edit the text.
fn edited(text: &str, scope: &str) -> Result<Value> {
    let named = std::env::var("EDITOR").ok().filter(|e| !e.trim().is_empty());
    let editor = named.or_else(|| ["editor", "vi"].into_iter().find(|e| on_path(e)).map(str::to_owned));
    let editor = editor
        .ok_or_else(|| CtlError::plain("EDITOR environment variable is not set. editor or vi are not available"))?;
    let name = format!("{}-config-{:08x}.yaml", scope.replace('/', "_"), rand::random::<u32>());
    let file = std::env::temp_dir().join(name);
    let failed = |what: &str, e: std::io::Error| CtlError::plain(format!("{what} {}: {e}", file.display()));
    let mut created = std::fs::OpenOptions::new();
    let mut handle = created.write(true).create_new(true).open(&file).map_err(|e| failed("Can not create", e))?;
    handle.write_all(text.as_bytes()).map_err(|e| failed("Can not write", e))?;
    drop(handle);
    let status = words(&editor).and_then(|w| Command::new(&w[0]).args(&w[1..]).arg(&file).status().ok());
    let after = std::fs::read_to_string(&file);
    if let Err(e) = std::fs::remove_file(&file) {
        return Err(failed("Can not remove", e));
    }
    match status {
        None => Err(CtlError::plain(format!("Can not run the editor {editor}: set EDITOR to one that is installed"))),
        Some(status) if !status.success() => {
            Err(CtlError::plain(format!("Editor exited with return code {}", status.code().unwrap_or(-1))))
        }
        Some(_) => parse(&file.display().to_string(), &after.map_err(|e| failed("Can not read", e))?),
    }
}

fn words(command: &str) -> Option<Vec<String>> {
    shlex::split(command).filter(|w| !w.is_empty())
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|dir| dir.join(program).is_file()))
}

/// Unified diff as Python's `difflib` prints it: the file names are empty, the spaces before them stay.
fn unified(before: &str, after: &str) -> Vec<String> {
    let diff = TextDiff::from_lines(before, after);
    let mut lines = vec!["--- ".to_owned(), "+++ ".to_owned()];
    for hunk in diff.unified_diff().context_radius(CONTEXT).iter_hunks() {
        lines.push(hunk.header().to_string());
        for change in hunk.iter_changes() {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            lines.push(format!("{sign}{}", change.value().trim_end_matches('\n')));
        }
    }
    lines
}

fn show_diff(terminal: &mut dyn Terminal, before: &str, after: &str) -> Result<()> {
    let lines = unified(before, after);
    if !terminal.is_terminal() {
        terminal.out(&(lines.join("\n") + "\n"));
        return Ok(());
    }
    let coloured = lines.iter().map(|line| match line.as_bytes().first() {
        Some(b'-') => format!("\x1b[31m{line}\x1b[0m\n"),
        Some(b'+') => format!("\x1b[32m{line}\x1b[0m\n"),
        Some(b'@') => format!("\x1b[36m{line}\x1b[0m\n"),
        Some(_) | None => format!("{line}\n"),
    });
    let text: String = coloured.collect();
    let named = std::env::var("PAGER").ok().filter(|p| !p.trim().is_empty());
    let pager = named.or_else(|| ["less", "more"].into_iter().find(|p| on_path(p)).map(str::to_owned));
    let pager = pager.and_then(|p| words(&p)).ok_or_else(|| {
        CtlError::plain("No pager could be found. Set PAGER, or install less or more, or use --quiet")
    })?;
    let mut command = Command::new(&pager[0]);
    command.args(&pager[1..]).env("LESS", "-FRX").stdin(Stdio::piped());
    let shown = command.spawn().and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        child.wait()
    });
    match shown {
        // A pager that was left early closes its input: that is no failure.
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(CtlError::plain(format!("Can not run the pager {}: {e}", pager[0]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(path: &str, value: Value) -> Value {
        let mut document = json!({"ttl": 30, "postgresql": {"parameters": {"a": 1}}});
        let path: Vec<&str> = path.split('.').collect();
        set_path(document.as_object_mut().unwrap(), &path, value, &mut Vec::new());
        document
    }

    #[test]
    fn keys_are_dotted_paths_and_parameters_are_one_key() {
        assert_eq!(set("ttl", json!(40))["ttl"], 40);
        assert_eq!(set("postgresql.parameters.b.c", json!(2))["postgresql"]["parameters"]["b.c"], 2);
        assert_eq!(set("ttl.x", json!(1))["ttl"], json!({"x": 1}));
    }

    #[test]
    fn null_deletes_and_takes_emptied_parents_along() {
        assert_eq!(set("postgresql.parameters.a", Value::Null), json!({"ttl": 30}));
        assert_eq!(
            set("standby_cluster.host", Value::Null),
            json!({"ttl": 30, "postgresql": {"parameters": {"a": 1}}})
        );
    }

    #[test]
    fn the_diff_is_the_one_of_the_reference() {
        let text = |max: u32, ttl: u32| {
            format!(
                "loop_wait: 10\nmaximum_lag_on_failover: 1048576\npostgresql:\n  parameters:\n    max_connections: {max}\n  \
                 use_pg_rewind: true\nretry_timeout: 10\nttl: {ttl}\n"
            )
        };
        let want = "--- |+++ |@@ -2,7 +2,7 @@| maximum_lag_on_failover: 1048576| postgresql:|   parameters:|-    max_connections: \
                    100|+    max_connections: 200|   use_pg_rewind: true| retry_timeout: 10|-ttl: 30|+ttl: 40";
        assert_eq!(unified(&text(100, 30), &text(200, 40)).join("|"), want);
    }
}
