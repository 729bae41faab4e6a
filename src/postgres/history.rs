//! Timeline history: the files Postgres writes at each promotion, and the rows published from them (ha-decisions §16).

use std::path::Path;

use crate::model::{HistoryRow, Lsn, Timeline};

/// One line of a history file: a timeline that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The timeline.
    pub timeline: Timeline,
    /// Where the next one branched off.
    pub switchpoint: Lsn,
    /// Postgres' words.
    pub reason: String,
}

/// The file name of the history of a timeline.
pub fn file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// Reads the text of a history file; lines that are not of its form are skipped, as Postgres does with comments.
pub fn parse(text: &str) -> Vec<Ended> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.trim().splitn(3, char::is_whitespace);
            let timeline = words.next()?.parse().ok()?;
            let switchpoint = words.next()?.parse().ok()?;
            let reason = words.next().unwrap_or("").trim().to_owned();
            Some(Ended { timeline: Timeline(timeline), switchpoint, reason })
        })
        .collect()
}

/// Reads the history file of a timeline from `pg_wal`; `None` when it is not there.
pub fn read(data_dir: &Path, timeline: Timeline) -> Option<Vec<Ended>> {
    let text = std::fs::read_to_string(data_dir.join("pg_wal").join(file_name(timeline))).ok()?;
    Some(parse(&text))
}

/// When the history file of a timeline was written: seconds since 1970, for column 4 of the last row.
pub fn written_at(data_dir: &Path, timeline: Timeline) -> Option<std::time::SystemTime> {
    std::fs::metadata(data_dir.join("pg_wal").join(file_name(timeline))).ok()?.modified().ok()
}

/// The rows to publish. `at`: time of the last row as ISO 8601 text; `previous`: the published rows, from which older
/// rows take time and leader when timeline and position agree; `keep`: newest rows kept, 0 = all.
pub fn rows(
    ended: &[Ended],
    previous: &[HistoryRow],
    at: Option<String>,
    new_leader: &str,
    keep: usize,
) -> Vec<HistoryRow> {
    let count = ended.len();
    let mut out: Vec<HistoryRow> = ended
        .iter()
        .enumerate()
        .map(|(i, e)| {
            let known = previous.iter().find(|p| p.timeline == e.timeline && p.lsn == e.switchpoint);
            let last = i + 1 == count;
            let (row_at, leader) = match known {
                Some(p) if p.new_leader.is_some() && p.at.is_some() => (p.at.clone(), p.new_leader.clone()),
                Some(_) | None if last => (at.clone(), Some(new_leader.to_owned())),
                Some(p) => (p.at.clone(), p.new_leader.clone()),
                None => (None, None),
            };
            HistoryRow {
                timeline: e.timeline,
                lsn: e.switchpoint,
                reason: e.reason.clone(),
                at: row_at,
                new_leader: leader,
            }
        })
        .collect();
    if keep > 0 && out.len() > keep {
        out.drain(..out.len() - keep);
    }
    out
}

/// The rows for this data directory and timeline: timeline 1 has none. `None`: the history file cannot be read.
/// `print` turns the time of the file into ISO 8601 text (jiff and zones are the caller's).
pub fn local_rows(
    data_dir: &Path,
    timeline: Timeline,
    previous: &[HistoryRow],
    new_leader: &str,
    keep: usize,
    print: impl Fn(std::time::SystemTime) -> String,
) -> Option<Vec<HistoryRow>> {
    if timeline.0 <= 1 {
        return Some(Vec::new());
    }
    let ended = read(data_dir, timeline)?;
    Some(rows(&ended, previous, written_at(data_dir, timeline).map(print), new_leader, keep))
}

/// The newest timeline with a history file in pg_wal; 0 = none.
pub fn newest(data_dir: &Path) -> Timeline {
    let Ok(entries) = std::fs::read_dir(data_dir.join("pg_wal")) else { return Timeline(0) };
    let numbers = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        u32::from_str_radix(name.to_str()?.strip_suffix(".history")?, 16).ok()
    });
    Timeline(numbers.max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2000-01-01 00:00:00+00\n";

    #[test]
    fn history_files_are_read_line_by_line() {
        let ended = parse(FILE);
        assert_eq!(ended.len(), 2);
        assert_eq!(ended[0].switchpoint, Lsn(0x3000148));
        assert_eq!(ended[1].reason, "before 2000-01-01 00:00:00+00");
    }

    #[test]
    fn older_rows_keep_what_was_published_and_the_last_one_names_the_new_leader() {
        let previous = vec![HistoryRow {
            timeline: Timeline(1),
            lsn: Lsn(0x3000148),
            reason: String::new(),
            at: Some("then".into()),
            new_leader: Some("pg-1".into()),
        }];
        let out = rows(&parse(FILE), &previous, Some("now".into()), "pg-2", 0);
        assert_eq!((out[0].at.as_deref(), out[0].new_leader.as_deref()), (Some("then"), Some("pg-1")));
        assert_eq!((out[1].at.as_deref(), out[1].new_leader.as_deref()), (Some("now"), Some("pg-2")));
        assert_eq!(rows(&parse(FILE), &previous, None, "pg-2", 1).len(), 1);
    }
}
