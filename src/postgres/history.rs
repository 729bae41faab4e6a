//! Timeline history: the files Postgres writes at each promotion, the rows published from them, and placeholders.
//!
//! The number that a promotion takes is claimed in the store before it. Postgres takes the number after the newest history
//! file it finds, counted without a gap from its own timeline; for each number below the claim that has no file here a
//! *placeholder* is written. It descends from the own timeline at a point that lies behind everybody on it, so that no
//! running standby, which only follows a branch ahead of its replay, ever adopts it. A standby that is *started* would take
//! the newest file for its goal and refuse to start: placeholders that no history file of a real promotion comes after are
//! removed before every start ([`drop_placeholders`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::datadir;

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

/// The reason of a row for numbers that no branch of this cluster has.
const NOT_USED: &str = "no timeline of this cluster: claimed by promotions that came to nothing";

/// The rows to publish for a primary on `timeline`. Where numbers were skipped before it, a row for the last of them follows,
/// at position 0: the last row is always one less than the timeline in force, and nobody is on its timeline. `at`: time of the last row as ISO 8601 text; `previous`: the published rows, from which older
/// rows take time and leader when timeline and position agree; `keep`: newest rows kept, 0 = all.
pub fn rows(
    timeline: Timeline,
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
    let last = timeline.0.saturating_sub(1);
    if out.last().is_some_and(|row| row.timeline.0 < last) {
        let reason = NOT_USED.to_owned();
        out.push(HistoryRow { timeline: Timeline(last), lsn: Lsn(0), reason, at: None, new_leader: None });
    }
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
    Some(rows(timeline, &ended, previous, written_at(data_dir, timeline).map(print), new_leader, keep))
}

/// The newest timeline with a history file in pg_wal; 0 = none.
pub fn newest(data_dir: &Path) -> Timeline {
    present(data_dir).last().copied().unwrap_or_default()
}

/// The timelines with a history file in pg_wal.
pub fn present(data_dir: &Path) -> BTreeSet<Timeline> {
    let Ok(entries) = std::fs::read_dir(data_dir.join("pg_wal")) else { return BTreeSet::new() };
    let numbers = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        u32::from_str_radix(name.to_str()?.strip_suffix(".history")?, 16).ok().map(Timeline)
    });
    numbers.collect()
}

/// The reason in the last line of a placeholder; Postgres' own words never are.
const PLACEHOLDER: &str = "placeholder, this number was claimed by another promotion";

/// The files to write before a promotion that is to take the number `claim`: name and text. `own` and `ancestors`: the
/// present timeline and the text of its history file (empty on timeline 1). `replayed`: the own replay position.
/// `present`: timelines with a history file in pg_wal or the archive.
pub fn placeholders(
    own: Timeline,
    ancestors: &str,
    replayed: Lsn,
    claim: Timeline,
    present: &BTreeSet<Timeline>,
) -> BTreeMap<String, String> {
    let ended = parse(ancestors);
    // Just before the own timeline began: behind the replay of everybody who is on it.
    let began = ended.last().map_or(Lsn(2), |e| e.switchpoint);
    let switch = Lsn(began.0.min(replayed.0).saturating_sub(1).max(1));
    let mut text: String = ended.iter().map(|e| format!("{}\t{}\t{}\n", e.timeline, e.switchpoint, e.reason)).collect();
    text.push_str(&format!("{own}\t{switch}\t{PLACEHOLDER}\n"));
    (own.0 + 1..claim.0).map(Timeline).filter(|n| !present.contains(n)).map(|n| (file_name(n), text.clone())).collect()
}

/// Writes placeholders into pg_wal, each whole and durable or not at all. An existing file is left alone.
///
/// # Errors
/// A file cannot be written: then no promotion.
pub fn write_placeholders(data_dir: &Path, files: &BTreeMap<String, String>) -> io::Result<()> {
    for (name, text) in files {
        let path = data_dir.join("pg_wal").join(name);
        if !path.exists() {
            datadir::write_atomically(&path, text.as_bytes(), datadir::file_mode(data_dir))?;
        }
    }
    Ok(())
}

/// Removes the placeholders that are newer than every other history file here: a promotion that they were written for has
/// not happened, or its history did not arrive. Only while nothing runs. Says which.
///
/// # Errors
/// A file cannot be removed.
pub fn drop_placeholders(data_dir: &Path) -> io::Result<Vec<Timeline>> {
    let mut dropped = Vec::new();
    for timeline in present(data_dir).into_iter().rev() {
        if read(data_dir, timeline).is_none_or(|ended| ended.last().is_none_or(|e| e.reason != PLACEHOLDER)) {
            break;
        }
        datadir::remove_if_there(&data_dir.join("pg_wal").join(file_name(timeline)))?;
        dropped.push(timeline);
    }
    Ok(dropped)
}

/// Did a promotion take the number that was claimed for it, from the timeline it was claimed on? `now`: the timeline the new
/// primary is on; `history`: the history file of that timeline. If not, two branches may have one number: stop at once.
pub fn promotion_is_as_claimed(now: Timeline, history: &[Ended], claim: Timeline, former: Timeline) -> bool {
    now == claim && history.last().is_some_and(|e| e.timeline == former)
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
    fn placeholders_fill_every_gap_below_the_claim_and_branch_off_behind_everybody_on_the_own_timeline() {
        let files = placeholders(Timeline(1), "", Lsn(0x3000000), Timeline(4), &BTreeSet::from([Timeline(3)]));
        assert_eq!(files.len(), 1);
        assert_eq!(files["00000002.history"], format!("1\t0/1\t{PLACEHOLDER}\n"));
        let files = placeholders(Timeline(3), FILE, Lsn(0x5000000), Timeline(5), &BTreeSet::new());
        assert_eq!(files.keys().collect::<Vec<_>>(), ["00000004.history"]);
        let ended = parse(&files["00000004.history"]);
        assert_eq!(ended[..2], parse(FILE));
        assert_eq!((ended[2].timeline, ended[2].switchpoint), (Timeline(3), Lsn(0x4FFFFFF)));
        assert!(placeholders(Timeline(3), FILE, Lsn(1), Timeline(4), &BTreeSet::new()).is_empty());
    }

    #[test]
    fn only_placeholders_that_nothing_real_comes_after_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let files = placeholders(Timeline(1), "", Lsn(9), Timeline(6), &BTreeSet::from([Timeline(4)]));
        write_placeholders(dir.path(), &files).unwrap();
        let real = dir.path().join("pg_wal/00000004.history");
        std::fs::write(&real, "1\t0/9\tno recovery target specified\n").unwrap();
        assert_eq!(drop_placeholders(dir.path()).unwrap(), [Timeline(5)]);
        assert_eq!(present(dir.path()), [2, 3, 4].map(Timeline).into());
        std::fs::remove_file(real).unwrap();
        assert_eq!(drop_placeholders(dir.path()).unwrap(), [Timeline(3), Timeline(2)]);
    }

    #[test]
    fn a_promotion_must_take_the_claimed_number_from_the_former_timeline() {
        let history = parse(FILE);
        let claimed =
            |now, claim, former| promotion_is_as_claimed(Timeline(now), &history, Timeline(claim), Timeline(former));
        assert!(claimed(3, 3, 2));
        assert!(!claimed(4, 3, 2) && !claimed(3, 3, 1));
        assert!(!promotion_is_as_claimed(Timeline(2), &[], Timeline(2), Timeline(1)));
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
        let out = rows(Timeline(3), &parse(FILE), &previous, Some("now".into()), "pg-2", 0);
        assert_eq!((out[0].at.as_deref(), out[0].new_leader.as_deref()), (Some("then"), Some("pg-1")));
        assert_eq!((out[1].at.as_deref(), out[1].new_leader.as_deref()), (Some("now"), Some("pg-2")));
        assert_eq!(rows(Timeline(3), &parse(FILE), &previous, None, "pg-2", 1).len(), 1);
    }

    #[test]
    fn skipped_numbers_are_recorded_so_that_the_last_row_always_precedes_the_timeline_in_force() {
        let out = rows(Timeline(6), &parse(FILE), &[], None, "pg-2", 0);
        assert_eq!(out.iter().map(|r| (r.timeline.0, r.lsn.0)).collect::<Vec<_>>()[1..], [(2, 0x5000000), (5, 0)]);
        let again = rows(Timeline(6), &parse(FILE), &out, None, "pg-2", 0);
        assert_eq!(again.len(), out.len());
    }
}
