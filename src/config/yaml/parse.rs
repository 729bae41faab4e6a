//! Parser events to `serde_json::Value`, with the position of every value.
//!
//! Anchors, aliases and merge keys work as in PyYAML; a repeated key keeps its last value and is reported. Two limits
//! keep a hostile file from eating the memory: depth and the number of values that aliases may add.
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

use super::scalar::resolve_plain;

/// Nesting that no configuration reaches; deeper input is refused.
const DEPTH_MAX: usize = 100;
/// Values copied by aliases in one document ("billion laughs").
const ALIASED_MAX: usize = 100_000;

/// Why a text is not usable YAML. Displayed as `name:line:column: what`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// File name or whatever the caller named the text.
    pub name: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.name, self.line, self.column, self.message)
    }
}

impl std::error::Error for YamlError {}

/// A document with positions: dotted path → (line, column) of the key or item, and warnings.
#[derive(Clone, Debug, Default)]
pub struct Located {
    /// The document.
    pub value: Value,
    /// Where each value stands, by dotted path (`restapi.listen`, list items by index).
    pub positions: BTreeMap<String, (usize, usize)>,
    /// Repeated keys.
    pub warnings: Vec<String>,
}

/// Reads one YAML document.
///
/// # Errors
/// Syntax errors, unknown tags, a second document, an unknown alias, or a text beyond the limits.
pub fn parse(name: &str, text: &str) -> Result<Value, YamlError> {
    parse_located(name, text).map(|located| located.value)
}

/// Reads one YAML document and keeps positions.
///
/// # Errors
/// As [`parse`].
pub fn parse_located(name: &str, text: &str) -> Result<Located, YamlError> {
    let mut builder = Builder { name, ..Builder::default() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| YamlError {
            name: name.to_owned(),
            line: e.marker().line(),
            column: e.marker().col() + 1,
            message: e.info().to_owned(),
        })?;
        builder.event(event, span)?;
    }
    Ok(Located { value: builder.root.unwrap_or(Value::Null), positions: builder.positions, warnings: builder.warnings })
}

enum Frame {
    List { items: Vec<Value>, anchor: usize, at: (usize, usize) },
    Map { own: Map<String, Value>, merged: Map<String, Value>, key: Option<Key>, anchor: usize, at: (usize, usize) },
}

enum Key {
    Text(String),
    Merge,
}

#[derive(Default)]
struct Builder<'n> {
    name: &'n str,
    stack: Vec<Frame>,
    path: Vec<String>,
    anchors: HashMap<usize, Value>,
    aliased: usize,
    documents: usize,
    root: Option<Value>,
    positions: BTreeMap<String, (usize, usize)>,
    warnings: Vec<String>,
}

impl Builder<'_> {
    fn error(&self, at: (usize, usize), message: impl Into<String>) -> YamlError {
        YamlError { name: self.name.to_owned(), line: at.0, column: at.1, message: message.into() }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let at = (span.start.line(), span.start.col() + 1);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.error(at, "a second document starts here; one is expected"));
                }
                Ok(())
            }
            Event::Alias(id) => {
                let Some(value) = self.anchors.get(&id).cloned() else {
                    return Err(self.error(at, "this alias refers to itself or to nothing"));
                };
                self.aliased += count(&value);
                if self.aliased > ALIASED_MAX {
                    return Err(self.error(at, format!("aliases expand to more than {ALIASED_MAX} values")));
                }
                self.value(value, true, at)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let merge = plain && text == "<<";
                let value = self.scalar(&text, style, tag.as_deref(), at)?;
                self.remember(anchor, &value);
                self.value(value, !merge, at)
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), &["seq"], at)?;
                self.open(Frame::List { items: Vec::new(), anchor, at })
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), &["map"], at)?;
                self.open(Frame::Map { own: Map::new(), merged: Map::new(), key: None, anchor, at })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
        }
    }

    fn remember(&mut self, anchor: usize, value: &Value) {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
    }

    fn open(&mut self, frame: Frame) -> Result<(), YamlError> {
        let (Frame::List { at, .. } | Frame::Map { at, .. }) = &frame;
        let at = *at;
        if self.stack.len() >= DEPTH_MAX {
            return Err(self.error(at, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        match self.stack.last() {
            Some(Frame::Map { key: None, .. }) => return Err(self.error(at, "a list or mapping cannot be a key")),
            Some(Frame::List { items, .. }) => {
                let index = items.len().to_string();
                self.path.push(index);
                self.positions.insert(self.path.join("."), at);
            }
            Some(Frame::Map { .. }) | None => {}
        }
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self) -> Result<(), YamlError> {
        let (value, anchor, at) = match self.stack.pop() {
            Some(Frame::List { items, anchor, at }) => (Value::Array(items), anchor, at),
            Some(Frame::Map { own, mut merged, anchor, at, .. }) => {
                for (key, value) in own {
                    merged.insert(key, value);
                }
                (Value::Object(merged), anchor, at)
            }
            None => return Ok(()),
        };
        self.remember(anchor, &value);
        if matches!(self.stack.last(), Some(Frame::List { .. })) {
            self.path.pop();
        }
        self.value(value, true, at)
    }

    fn value(&mut self, value: Value, text_key: bool, at: (usize, usize)) -> Result<(), YamlError> {
        let fault = |s: &Self, message: &str| Err(s.error(at, message));
        match self.stack.last_mut() {
            None => {
                self.root = Some(value);
                Ok(())
            }
            Some(Frame::List { items, .. }) => {
                self.positions.insert(joined(&self.path, &items.len().to_string()), at);
                items.push(value);
                Ok(())
            }
            Some(Frame::Map { own, key: key @ None, .. }) => {
                if !text_key {
                    *key = Some(Key::Merge);
                    self.path.push("<<".to_owned());
                    return Ok(());
                }
                let Some(text) = key_text(&value) else {
                    return fault(self, "a list or mapping cannot be a key");
                };
                let path = joined(&self.path, &text);
                if own.contains_key(&text) {
                    let (name, (line, column)) = (self.name, at);
                    self.warnings.push(format!("{name}:{line}:{column}: {path} is given twice; the last one counts"));
                }
                self.positions.insert(path, at);
                self.path.push(text.clone());
                *key = Some(Key::Text(text));
                Ok(())
            }
            Some(Frame::Map { own, merged, key, .. }) => {
                self.path.pop();
                match key.take() {
                    Some(Key::Text(name)) => {
                        own.insert(name, value);
                        Ok(())
                    }
                    Some(Key::Merge) | None => {
                        if merge_into(merged, value) {
                            Ok(())
                        } else {
                            fault(self, "`<<` needs a mapping or a list of mappings")
                        }
                    }
                }
            }
        }
    }

    fn check_tag(&self, tag: Option<&Tag>, accepted: &[&str], at: (usize, usize)) -> Result<(), YamlError> {
        match tag {
            None => Ok(()),
            Some(tag) if core_suffix(tag).is_some_and(|suffix| accepted.contains(&suffix)) => Ok(()),
            Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(()),
            Some(tag) => Err(self.error(at, format!("unknown tag {tag}"))),
        }
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: (usize, usize),
    ) -> Result<Value, YamlError> {
        let Some(tag) = tag else {
            return Ok(if style == ScalarStyle::Plain { resolve_plain(text) } else { Value::from(text) });
        };
        self.check_tag(Some(tag), &["str", "int", "float", "bool", "null"], at)?;
        let resolved = resolve_plain(text);
        let fits = match core_suffix(tag) {
            Some("int") => resolved.is_i64() || resolved.is_u64(),
            Some("float") => resolved.is_number(),
            Some("bool") => resolved.is_boolean(),
            Some("null") => resolved.is_null(),
            Some(_) | None => return Ok(Value::from(text)),
        };
        if fits { Ok(resolved) } else { Err(self.error(at, format!("{text:?} does not fit its tag {tag}"))) }
    }
}

fn core_suffix(tag: &Tag) -> Option<&str> {
    if tag.is_yaml_core_schema() || tag.handle == "!!" { Some(tag.suffix.as_str()) } else { None }
}

fn joined(path: &[String], last: &str) -> String {
    if path.is_empty() { last.to_owned() } else { format!("{}.{last}", path.join(".")) }
}

fn key_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// Earlier merged mappings win over later ones.
fn merge_into(merged: &mut Map<String, Value>, value: Value) -> bool {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                merged.entry(key).or_insert(value);
            }
            true
        }
        Value::Array(items) => items.into_iter().all(|item| item.is_object() && merge_into(merged, item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}
