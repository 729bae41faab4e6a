//! Single records of the write-ahead log, read from the segment files of one timeline.
//!
//! Just enough of the format to look at a checkpoint record and its predecessor: the fixed record header and the page
//! headers a record may be split by. Nothing is decoded beyond the header.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::model::{Lsn, Timeline};

/// Where the segments of one timeline are.
#[derive(Clone, Debug)]
pub struct WalFiles<'a> {
    /// Data directory; segments are in its `pg_wal`.
    pub data_dir: &'a Path,
    /// Timeline the segments are named after.
    pub timeline: Timeline,
    /// Bytes per segment.
    pub segment_size: u64,
    /// Bytes per page.
    pub page_size: u64,
}

/// The header of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where the previous record begins.
    pub prev: Lsn,
    /// Where this record ends (aligned), as Postgres counts it: may be a page boundary.
    pub end: Lsn,
    rmgr: u8,
    info: u8,
}

impl Record {
    /// XLOG/CHECKPOINT_SHUTDOWN.
    pub fn is_shutdown_checkpoint(&self) -> bool {
        self.rmgr == 0 && self.info & 0xF0 == 0x00
    }
    /// XLOG/SWITCH.
    pub fn is_switch(&self) -> bool {
        self.rmgr == 0 && self.info & 0xF0 == 0x40
    }
}

/// Size of a page header, and of the longer one at the beginning of a segment.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
/// Size of a record header.
const RECORD_HEADER: usize = 24;
/// A record longer than this is damage (Postgres' own limit is 1020 MiB).
const RECORD_MAX: u64 = 1_069_547_520;

/// The file name of a segment.
pub fn segment_name(timeline: Timeline, lsn: Lsn, segment_size: u64) -> String {
    let number = lsn.0 / segment_size.max(1);
    let per_id = 0x1_0000_0000 / segment_size.max(1);
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_id.max(1), number % per_id.max(1))
}

/// Reads the record header at `lsn`; `None` if the segment is missing or there is no sane record.
pub fn record_at(files: &WalFiles<'_>, lsn: Lsn) -> Option<Record> {
    if files.segment_size == 0 || files.page_size < LONG_HEADER || lsn.0 == 0 || !lsn.0.is_multiple_of(8) {
        return None;
    }
    let mut header = [0u8; RECORD_HEADER];
    let start = skip_header(files, lsn.0);
    let mut at = start;
    let mut filled = 0;
    while filled < RECORD_HEADER {
        at = skip_header(files, at);
        let room = usize::try_from(files.page_size - at % files.page_size).ok()?.min(RECORD_HEADER - filled);
        read_exact(files, at, &mut header[filled..filled + room])?;
        filled += room;
        at += room as u64;
    }
    let word = |i: usize| -> Option<[u8; 4]> { header.get(i..i + 4)?.try_into().ok() };
    let total = u64::from(u32::from_ne_bytes(word(0)?));
    if total < RECORD_HEADER as u64 || total > RECORD_MAX {
        return None;
    }
    let prev = u64::from_ne_bytes(header[8..16].try_into().ok()?);
    let record = Record { prev: Lsn(prev), end: Lsn(end_of(files, start, total)), rmgr: header[17], info: header[16] };
    (prev < lsn.0).then_some(record)
}

/// Where a record of `total` bytes that begins at `start` ends, aligned to 8 bytes, page headers counted.
fn end_of(files: &WalFiles<'_>, start: u64, total: u64) -> u64 {
    let mut left = total.next_multiple_of(8);
    let mut at = start;
    loop {
        let room = files.page_size - at % files.page_size;
        if left <= room {
            return at + left;
        }
        left -= room;
        at = skip_header(files, at + room);
    }
}

/// Moves a position at a page boundary behind the header of that page.
fn skip_header(files: &WalFiles<'_>, at: u64) -> u64 {
    if at.is_multiple_of(files.segment_size) {
        at + LONG_HEADER
    } else if at.is_multiple_of(files.page_size) {
        at + SHORT_HEADER
    } else {
        at
    }
}

fn read_exact(files: &WalFiles<'_>, at: u64, into: &mut [u8]) -> Option<()> {
    let name = segment_name(files.timeline, Lsn(at), files.segment_size);
    let file = File::open(files.data_dir.join("pg_wal").join(name)).ok()?;
    file.read_exact_at(into, at % files.segment_size).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: fn(&Path) -> WalFiles<'_> =
        |dir| WalFiles { data_dir: dir, timeline: Timeline(3), segment_size: 0x100_0000, page_size: 8192 };

    #[test]
    fn segments_are_named_as_postgres_names_them() {
        assert_eq!(segment_name(Timeline(1), Lsn(0x3000148), 0x100_0000), "000000010000000000000003");
        assert_eq!(segment_name(Timeline(0x1F), Lsn(0x2_FF00_0000), 0x100_0000), "0000001F00000002000000FF");
    }

    #[test]
    fn a_record_split_by_a_page_header_is_put_together() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let mut header = [0u8; 24];
        header[0..4].copy_from_slice(&114u32.to_ne_bytes());
        header[8..16].copy_from_slice(&0x2000100u64.to_ne_bytes());
        header[16] = 0x00;
        let mut page = vec![0u8; 3 * 8192];
        // Eight bytes on the first page, the rest behind the header of the second.
        page[8184..8192].copy_from_slice(&header[..8]);
        page[8192 + 24..8192 + 40].copy_from_slice(&header[8..]);
        std::fs::write(dir.path().join("pg_wal/000000030000000000000002"), &page).unwrap();
        let record = record_at(&FILES(dir.path()), Lsn(0x2000000 + 8184)).unwrap();
        assert!(record.is_shutdown_checkpoint() && !record.is_switch());
        assert_eq!(record.prev, Lsn(0x2000100));
        assert_eq!(record.end, Lsn(0x2000000 + 8192 + 24 + 112));
        assert_eq!(record_at(&FILES(dir.path()), Lsn(0x2000000 + 64)), None);
        assert_eq!(record_at(&FILES(dir.path()), Lsn(0x9000040)), None);
    }

    #[test]
    fn a_record_may_end_exactly_at_a_page_boundary() {
        let dir = Path::new("/");
        assert_eq!(end_of(&FILES(dir), 0x2000000 + 8192 - 120, 114), 0x2000000 + 8192);
    }
}
