//! Writes what PyYAML's `safe_dump(allow_unicode=True, width=200)` writes.
//!
//! Keys are sorted, list items stand at their parent's indent, and quotes appear only where a reader would otherwise
//! see another type or another structure. Long texts are folded after column 200 at single spaces.
use serde_json::{Map, Value};

use super::scalar::{float_text, resolves_to_other};

/// Column after which texts and flow collections are folded.
const WIDTH: usize = 200;
/// A longer key is written in the explicit `? key` form.
/// PyYAML allows 128 characters and counts its hidden `!!str`.
const SIMPLE_KEY_MAX: usize = 123;
const BREAKS: [char; 4] = ['\n', '\u{85}', '\u{2028}', '\u{2029}'];

/// Block style, sorted keys, with a final newline (`default_flow_style=False`).
#[must_use]
pub fn to_string_block(value: &Value) -> String {
    let mut emitter = Emitter::default();
    emitter.block(value, None, false);
    emitter.finish(value)
}

/// One-line style such as `{clonefrom: true}`, without a final newline (`default_flow_style=True`).
#[must_use]
pub fn to_string_flow(value: &Value) -> String {
    let mut emitter = Emitter::default();
    emitter.flow(value, 0);
    emitter.out
}

#[derive(Default)]
struct Emitter {
    out: String,
    column: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Block,
    Flow,
}

impl Emitter {
    fn write(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn line_break(&mut self) {
        self.out.push('\n');
        self.column = 0;
    }

    fn indent(&mut self, indent: usize) {
        if self.column > 0 {
            self.line_break();
        }
        self.pad(indent);
    }

    fn pad(&mut self, indent: usize) {
        while self.column < indent {
            self.write(" ");
        }
    }

    fn finish(mut self, value: &Value) -> String {
        if self.column > 0 {
            self.line_break();
        }
        let open_ended = match value {
            Value::Array(_) | Value::Object(_) => false,
            Value::String(text) => choose(text, Place::Block, false) == Style::Plain,
            Value::Null | Value::Bool(_) | Value::Number(_) => true,
        };
        if open_ended {
            self.out.push_str("...\n");
        }
        self.out
    }

    /// `parent` is the indent of the enclosing collection; `in_map` says that the value follows `key:`.
    fn block(&mut self, value: &Value, parent: Option<usize>, in_map: bool) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                let indent = parent.map_or(0, |p| p + 2);
                for (position, key) in sorted(map).into_iter().enumerate() {
                    // The first key of a mapping that is a list item stands behind the dash.
                    if position > 0 || in_map {
                        self.indent(indent);
                    }
                    let simple = self.block_key(key, indent);
                    let inner = &map[key.as_str()];
                    if !simple && is_filled(inner) {
                        self.write(" ");
                    }
                    self.block(inner, Some(indent), simple);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let indent = match (parent, in_map) {
                    (None, _) => 0,
                    (Some(parent), true) => parent,
                    (Some(parent), false) => parent + 2,
                };
                for (position, item) in items.iter().enumerate() {
                    if position > 0 || in_map {
                        self.indent(indent);
                    }
                    self.write("-");
                    if is_filled(item) {
                        self.write(" ");
                    }
                    self.block(item, Some(indent), false);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                if parent.is_some() {
                    self.write(" ");
                }
                self.scalar(value, Place::Block, false, parent.map_or(2, |p| p + 2));
            }
        }
    }

    /// Writes the key and its colon; says whether it fitted the simple form.
    fn block_key(&mut self, key: &str, indent: usize) -> bool {
        let simple = is_simple_key(key);
        if simple {
            self.scalar(&Value::from(key), Place::Block, true, indent + 2);
        } else {
            self.write("? ");
            self.scalar(&Value::from(key), Place::Block, false, indent + 2);
            self.indent(indent);
        }
        self.write(":");
        simple
    }

    fn flow(&mut self, value: &Value, indent: usize) {
        let indent = indent + 2;
        match value {
            Value::Object(map) => {
                self.write("{");
                for (position, key) in sorted(map).into_iter().enumerate() {
                    self.flow_separator(position, indent);
                    if is_simple_key(key) {
                        self.scalar(&Value::from(key.as_str()), Place::Flow, true, indent);
                    } else {
                        self.write("? ");
                        self.scalar(&Value::from(key.as_str()), Place::Flow, false, indent + 2);
                        if self.column > WIDTH {
                            self.indent(indent);
                        } else {
                            self.write(" ");
                        }
                    }
                    self.write(": ");
                    self.flow(&map[key.as_str()], indent);
                }
                self.write("}");
            }
            Value::Array(items) => {
                self.write("[");
                for (position, item) in items.iter().enumerate() {
                    self.flow_separator(position, indent);
                    self.flow(item, indent);
                }
                self.write("]");
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                self.scalar(value, Place::Flow, false, indent);
            }
        }
    }

    fn flow_separator(&mut self, position: usize, indent: usize) {
        if position > 0 {
            self.write(",");
        }
        if self.column > WIDTH {
            self.indent(indent);
        } else if position > 0 {
            self.write(" ");
        }
    }

    fn scalar(&mut self, value: &Value, place: Place, key: bool, indent: usize) {
        match value {
            Value::Null => self.write("null"),
            Value::Bool(true) => self.write("true"),
            Value::Bool(false) => self.write("false"),
            Value::Number(number) => {
                let text = number_text(number);
                self.write(&text);
            }
            Value::String(text) => match choose(text, place, key) {
                Style::Plain => self.plain(text, !key, indent),
                Style::Single => self.single(text, !key, indent),
                Style::Double => self.double(text, !key, indent),
            },
            Value::Array(_) => self.write("[]"),
            Value::Object(_) => self.write("{}"),
        }
    }

    fn plain(&mut self, text: &str, split: bool, indent: usize) {
        for (position, (spaces, word)) in words(text).into_iter().enumerate() {
            if position > 0 && spaces == 1 && split && self.column > WIDTH {
                self.indent(indent);
            } else {
                self.write(&" ".repeat(spaces));
            }
            self.write(word);
        }
    }

    fn single(&mut self, text: &str, split: bool, indent: usize) {
        self.write("'");
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let run = |wanted: fn(char) -> bool| chars[at..].iter().take_while(|c| wanted(**c)).count();
            if chars[at] == ' ' {
                let count = run(|c| c == ' ');
                if count == 1 && self.column > WIDTH && split && at != 0 && at + count != chars.len() {
                    self.indent(indent);
                } else {
                    self.write(&" ".repeat(count));
                }
                at += count;
            } else if BREAKS.contains(&chars[at]) {
                let count = run(|c| BREAKS.contains(&c));
                if chars[at] == '\n' {
                    self.line_break();
                }
                for c in &chars[at..at + count] {
                    self.out.push(*c);
                    self.column = 0;
                }
                self.pad(indent);
                at += count;
            } else if chars[at] == '\'' {
                self.write("''");
                at += 1;
            } else {
                let count = run(|c| c != ' ' && c != '\'' && !BREAKS.contains(&c));
                let data: String = chars[at..at + count].iter().collect();
                self.write(&data);
                at += count;
            }
        }
        self.write("'");
    }

    fn double(&mut self, text: &str, split: bool, indent: usize) {
        self.write("\"");
        let chars: Vec<char> = text.chars().collect();
        let (mut start, mut end) = (0, 0);
        while end <= chars.len() {
            let current = chars.get(end).copied();
            if current.is_none_or(needs_escape) {
                if start < end {
                    let data: String = chars[start..end].iter().collect();
                    self.write(&data);
                    start = end;
                }
                if let Some(c) = current {
                    let data = escape(c);
                    self.write(&data);
                    start = end + 1;
                }
            }
            let inside = 0 < end && end + 1 < chars.len();
            let pending = end.saturating_sub(start);
            if inside && (current == Some(' ') || start >= end) && self.column + pending > WIDTH && split {
                let mut data: String = chars[start.min(end)..end].iter().collect();
                data.push('\\');
                start = start.max(end);
                self.write(&data);
                self.indent(indent);
                if chars.get(start) == Some(&' ') {
                    self.write("\\");
                }
            }
            end += 1;
        }
        self.write("\"");
    }
}

fn sorted(map: &Map<String, Value>) -> Vec<&String> {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort();
    keys
}

fn is_filled(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn number_text(number: &serde_json::Number) -> String {
    if number.is_f64() {
        let text = float_text(number.as_f64().unwrap_or(0.0));
        // YAML 1.1 knows an exponent only behind a dot.
        if text.contains('.') { text } else { text.replacen('e', ".0e", 1) }
    } else {
        number.to_string()
    }
}

/// Words with the number of spaces before each.
fn words(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let trimmed = rest.trim_start_matches(' ');
        let spaces = rest.len() - trimmed.len();
        let end = trimmed.find(' ').unwrap_or(trimmed.len());
        found.push((spaces, &trimmed[..end]));
        rest = &trimmed[end..];
    }
    found
}

fn is_simple_key(key: &str) -> bool {
    !key.is_empty() && key.chars().count() < SIMPLE_KEY_MAX && !key.contains(BREAKS)
}

fn needs_escape(c: char) -> bool {
    matches!(c, '"' | '\\' | '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
        || !matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
}

fn escape(c: char) -> String {
    let short = match c {
        '\0' => "0",
        '\u{7}' => "a",
        '\u{8}' => "b",
        '\t' => "t",
        '\n' => "n",
        '\u{b}' => "v",
        '\u{c}' => "f",
        '\r' => "r",
        '\u{1b}' => "e",
        '"' => "\"",
        '\\' => "\\",
        '\u{85}' => "N",
        '\u{a0}' => "_",
        '\u{2028}' => "L",
        '\u{2029}' => "P",
        other => {
            let code = u32::from(other);
            return match code {
                0..=0xff => format!("\\x{code:02X}"),
                0x100..=0xffff => format!("\\u{code:04X}"),
                0x1_0000.. => format!("\\U{code:08X}"),
            };
        }
    };
    format!("\\{short}")
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Plain,
    Single,
    Double,
}

fn choose(text: &str, place: Place, key: bool) -> Style {
    let look = Look::at(text);
    let plain_fits = match place {
        Place::Block => look.block_plain,
        Place::Flow => look.flow_plain,
    };
    let awkward_key = key && (text.is_empty() || look.multiline);
    if plain_fits && !awkward_key && !resolves_to_other(text) {
        Style::Plain
    } else if look.single && !(key && look.multiline) {
        Style::Single
    } else {
        Style::Double
    }
}

/// Which styles can carry a text.
struct Look {
    block_plain: bool,
    flow_plain: bool,
    single: bool,
    multiline: bool,
}

impl Look {
    fn at(text: &str) -> Look {
        if text.is_empty() {
            return Look { block_plain: true, flow_plain: false, single: true, multiline: false };
        }
        let chars: Vec<char> = text.chars().collect();
        let blank =
            |index: usize| chars.get(index).is_none_or(|c| matches!(c, '\0' | ' ' | '\t' | '\r') || BREAKS.contains(c));
        let marker = text.starts_with("---") || text.starts_with("...");
        let (mut block_bad, mut flow_bad) = (marker, marker);
        for (index, c) in chars.iter().enumerate() {
            let followed = blank(index + 1);
            if index == 0 {
                let indicator = "#,[]{}&*!|>'\"%@`".contains(*c);
                block_bad |= indicator || ("?:-".contains(*c) && followed);
                flow_bad |= indicator || "?:".contains(*c) || (*c == '-' && followed);
            } else {
                let comment = *c == '#' && blank(index - 1);
                block_bad |= comment || (*c == ':' && followed);
                flow_bad |= comment || ",?[]{}:".contains(*c);
            }
        }
        let edge = |c: &char| *c == ' ' || BREAKS.contains(c);
        let edges = chars.first().is_some_and(edge) || chars.last().is_some_and(edge);
        let pair = |first: fn(char) -> bool, second: fn(char) -> bool| {
            chars.windows(2).any(|pair| first(pair[0]) && second(pair[1]))
        };
        let is_space: fn(char) -> bool = |c| c == ' ';
        let is_break: fn(char) -> bool = |c| BREAKS.contains(&c);
        let around_break = pair(is_break, is_space) || pair(is_space, is_break);
        let special = chars.iter().any(|c| !printable(*c));
        let multiline = chars.iter().any(|c| BREAKS.contains(c));
        let plain = !(edges || around_break || special || multiline);
        Look {
            block_plain: plain && !block_bad,
            flow_plain: plain && !flow_bad,
            single: !(around_break || special),
            multiline,
        }
    }
}

fn printable(c: char) -> bool {
    c == '\n'
        || matches!(c, ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
        || matches!(c, '\u{1_0000}'..='\u{10_fffe}')
}
