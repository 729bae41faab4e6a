//! Results in the four formats: ASCII table, tsv, JSON and YAML as Python writes them.
//!
//! The table is our own: its first rule carries the title, a rule between all rows appears as soon as one cell has two
//! lines, and scripts compare it byte for byte.

use serde_json::{Map, Value};

use crate::config::{merge, yaml};

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ASCII table.
    Pretty,
    /// The table of `topology`: tags on one line, members as a tree.
    Topology,
    /// Tab separated.
    Tsv,
    /// One line.
    Json,
    /// Block style.
    Yaml,
}

impl Format {
    /// From the word on the command line.
    pub fn from_word(word: &str) -> Option<Format> {
        Some(match word {
            "pretty" => Format::Pretty,
            "tsv" => Format::Tsv,
            "json" => Format::Json,
            "yaml" | "yml" => Format::Yaml,
            _ => return None,
        })
    }
    /// Is it drawn as a table?
    pub fn is_table(self) -> bool {
        match self {
            Format::Pretty | Format::Topology => true,
            Format::Tsv | Format::Json | Format::Yaml => false,
        }
    }
}

/// A column: its heading and where its cells stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// Numbers stand right.
    pub right: bool,
}

impl Column {
    /// Left aligned.
    pub fn left(name: &str) -> Column {
        Column { name: name.to_owned(), right: false }
    }
    /// Right aligned.
    pub fn right(name: &str) -> Column {
        Column { name: name.to_owned(), right: true }
    }
}

/// The text of a cell in tables and tsv.
pub fn cell_text(value: &Value) -> String {
    merge::text(value)
}

/// The ASCII table, without a final newline. Cells may have several lines.
pub fn table(title: Option<&str>, columns: &[Column], rows: &[Vec<Value>]) -> String {
    let cells: Vec<Vec<Vec<String>>> = rows
        .iter()
        .map(|row| row.iter().map(|v| cell_text(v).split('\n').map(str::to_owned).collect()).collect())
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let cell = |row: &Vec<Vec<String>>| row.get(i).into_iter().flatten().map(|l| l.chars().count()).max();
            cells.iter().filter_map(cell).max().unwrap_or(0).max(c.name.chars().count())
        })
        .collect();
    let rule: String = format!("+{}", widths.iter().map(|w| format!("{}+", "-".repeat(w + 2))).collect::<String>());
    let ruled = cells.iter().flatten().any(|lines| lines.len() > 1);
    let mut out = vec![title.map_or_else(|| rule.clone(), |t| titled(&rule, t))];
    out.push(line(columns, &widths, |i| columns[i].name.as_str()));
    out.push(rule.clone());
    for row in &cells {
        let height = row.iter().map(Vec::len).max().unwrap_or(1);
        for n in 0..height {
            out.push(line(columns, &widths, |i| row.get(i).and_then(|c| c.get(n)).map_or("", String::as_str)));
        }
        if ruled {
            out.push(rule.clone());
        }
    }
    if !ruled {
        out.push(rule);
    }
    out.join("\n")
}

fn line<'a>(columns: &[Column], widths: &[usize], text: impl Fn(usize) -> &'a str) -> String {
    let mut out = String::from("|");
    for (i, (column, width)) in columns.iter().zip(widths).enumerate() {
        let text = text(i);
        let pad = " ".repeat(width.saturating_sub(text.chars().count()));
        let (before, after) = if column.right { (pad.as_str(), "") } else { ("", pad.as_str()) };
        out.push_str(&format!(" {before}{text}{after} |"));
    }
    out
}

/// The first rule, overwritten after its first `+` by the title.
fn titled(rule: &str, title: &str) -> String {
    let room = rule.chars().count().saturating_sub(2);
    let title: String = title.chars().take(room).collect();
    format!("+{title}{}", rule.chars().skip(1 + title.chars().count()).collect::<String>())
}

/// Rows joined by `delimiter` under a header line.
pub fn tsv(columns: &[Column], rows: &[Vec<Value>], delimiter: &str) -> String {
    let header = columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(delimiter);
    let lines = rows.iter().map(|r| r.iter().map(cell_text).collect::<Vec<_>>().join(delimiter));
    std::iter::once(header).chain(lines).collect::<Vec<_>>().join("\n")
}

/// Rows as objects keyed by column name. `sparse`: keys with an empty text are left out.
pub fn objects(columns: &[Column], rows: &[Vec<Value>], sparse: bool) -> Value {
    let object = |row: &Vec<Value>| {
        let pairs = columns.iter().zip(row).filter(|(_, v)| !(sparse && v.as_str() == Some("")));
        Value::Object(pairs.map(|(c, v)| (c.name.clone(), v.clone())).collect::<Map<_, _>>())
    };
    Value::Array(rows.iter().map(object).collect())
}

/// JSON as Python's `json.dumps` writes it: `", "` and `": "`, everything beyond ASCII escaped.
pub fn json(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", items.iter().map(json).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{}: {}", quoted(k), json(v)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    for c in Value::String(text.to_owned()).to_string().chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let mut units = [0u16; 2];
            c.encode_utf16(&mut units).iter().for_each(|u| out.push_str(&format!("\\u{u:04x}")));
        }
    }
    out
}

/// A result in any format, as it goes to stdout (with the final newline). `sparse` is for lists of members.
pub fn render(format: Format, title: Option<&str>, columns: &[Column], rows: &[Vec<Value>], sparse: bool) -> String {
    match format {
        Format::Pretty | Format::Topology => table(title, columns, rows) + "\n",
        Format::Tsv => tsv(columns, rows, "\t") + "\n",
        Format::Json => json(&objects(columns, rows, sparse)) + "\n",
        Format::Yaml => yaml::to_string_block(&objects(columns, rows, sparse)) + "\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as j;

    #[test]
    fn the_title_overwrites_the_first_rule_and_is_cut_to_the_table() {
        let columns = [Column::left("A"), Column::right("B")];
        let rows = [vec![j!("x"), j!(10)]];
        assert_eq!(table(Some(" t "), &columns, &rows), "+ t +----+\n| A |  B |\n+---+----+\n| x | 10 |\n+---+----+");
        assert!(table(Some(" a very long title "), &columns, &rows).starts_with("+ a very +\n"));
    }

    #[test]
    fn a_cell_of_two_lines_draws_a_rule_between_all_rows() {
        let rows = [vec![j!("x\ny")], vec![j!("z")]];
        assert_eq!(table(None, &[Column::left("A")], &rows), "+---+\n| A |\n+---+\n| x |\n| y |\n+---+\n| z |\n+---+");
    }

    #[test]
    fn a_table_without_rows_keeps_both_rules() {
        assert_eq!(table(None, &[Column::left("A")], &[]), "+---+\n| A |\n+---+\n+---+");
    }

    #[test]
    fn json_looks_as_python_writes_it() {
        assert_eq!(json(&j!({"a": [1, null, "é\n"], "b": true})), r#"{"a": [1, null, "\u00e9\n"], "b": true}"#);
    }
}
