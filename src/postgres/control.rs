//! `global/pg_control`, read directly: no tool, no environment, the same bytes Postgres reads (PG 13–18).
//!
//! The file is one struct of at most 512 bytes that is rewritten in place; a reader may see it half-written, so the CRC
//! is checked and the read repeated a few times. Offsets are those of a 64-bit server of our byte order.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::wal;
use crate::model::{ClusterState, ControlData, Lsn, Timeline};

/// Why pg_control could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The file is missing or unreadable.
    #[error("read {path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// The checksum does not fit: damaged.
    #[error("{0}: the checksum is wrong; the file is damaged or of another architecture")]
    Damaged(String),
    /// A layout this program does not know.
    #[error("{path}: layout version {version} is not one of PostgreSQL 13 to 18")]
    Unknown {
        /// File.
        path: String,
        /// `pg_control_version`.
        version: u32,
    },
}

/// pg_control with the values that only this module needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlFile {
    /// What the rest of the program needs; `shutdown_position` is filled by [`read`] only.
    pub data: ControlData,
    /// Bytes per WAL segment.
    pub wal_segment_size: u64,
    /// Bytes per WAL page.
    pub wal_page_size: u64,
    /// Settings of the last primary the data directory has followed or been: GUC name → value.
    pub limits: [(&'static str, u32); 5],
    /// Page checksums are on.
    pub data_checksums: bool,
}

const PATH: &str = "global/pg_control";
/// How often a file with a wrong checksum is read again before it counts as damaged. A torn read lasts microseconds.
const ATTEMPTS: usize = 5;

/// Reads pg_control and, after a clean shutdown, the WAL record it points to.
///
/// # Errors
/// See [`ControlError`].
pub fn read(data_dir: &Path) -> Result<ControlData, ControlError> {
    let file = read_file(data_dir)?;
    let mut data = file.data.clone();
    data.shutdown_position = shutdown_position(data_dir, &file);
    Ok(data)
}

/// Reads pg_control alone.
///
/// # Errors
/// See [`ControlError`].
pub fn read_file(data_dir: &Path) -> Result<ControlFile, ControlError> {
    let path = data_dir.join(PATH);
    let name = path.to_string_lossy().into_owned();
    let mut last = ControlError::Damaged(name.clone());
    for _ in 0..ATTEMPTS {
        let bytes = std::fs::read(&path).map_err(|source| ControlError::Io { path: name.clone(), source })?;
        match parse(&bytes, &name) {
            Ok(file) => return Ok(file),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Where the next leader must have received everything up to, after a clean shutdown: the LSN of the
/// shutdown checkpoint, or of the WAL switch record right before it (the checkpoint that follows an archiving switch
/// sits in a segment of its own). `None`: not cleanly shut down, or the WAL cannot be read.
pub fn shutdown_position(data_dir: &Path, file: &ControlFile) -> Option<Lsn> {
    if file.data.state != ClusterState::ShutDown {
        return None;
    }
    let pages = pages(data_dir, file);
    let checkpoint = wal::record_at(&pages, file.data.checkpoint)?;
    if !checkpoint.is_shutdown_checkpoint() {
        return None;
    }
    let before = wal::record_at(&pages, checkpoint.prev);
    match before {
        Some(record) if record.is_switch() => Some(checkpoint.prev),
        Some(_) | None => Some(file.data.checkpoint),
    }
}

/// The end of the record of the latest checkpoint: equals the switch point of the next timeline when nothing was written
/// after a clean shutdown. `None` when the WAL cannot be read.
pub fn end_of_checkpoint_record(data_dir: &Path) -> Option<Lsn> {
    let file = read_file(data_dir).ok()?;
    wal::record_at(&pages(data_dir, &file), file.data.checkpoint).map(|r| r.end)
}

fn pages<'a>(data_dir: &'a Path, file: &ControlFile) -> wal::WalFiles<'a> {
    wal::WalFiles {
        data_dir,
        timeline: file.data.timeline,
        segment_size: file.wal_segment_size,
        page_size: file.wal_page_size,
    }
}

fn parse(bytes: &[u8], name: &str) -> Result<ControlFile, ControlError> {
    let damaged = || ControlError::Damaged(name.to_owned());
    let version = u32_at(bytes, 8).ok_or_else(damaged)?;
    // PG 18 put default_char_signedness (1 byte) before the nonce, which moves the checksum by one aligned word.
    let crc_at = match version {
        1300 | 1700 => 288,
        1800 => 292,
        _ => return Err(ControlError::Unknown { path: name.to_owned(), version }),
    };
    let stored = u32_at(bytes, crc_at).ok_or_else(damaged)?;
    if crc32c(&bytes[..crc_at]) != stored {
        return Err(damaged());
    }
    fields(bytes).ok_or_else(damaged)
}

/// Offsets of `ControlFileData`; they are the same in versions 13 to 18 (only what follows them differs).
fn fields(b: &[u8]) -> Option<ControlFile> {
    let state = match u32_at(b, 16)? {
        0 => ClusterState::StartingUp,
        1 => ClusterState::ShutDown,
        2 => ClusterState::ShutDownInRecovery,
        3 => ClusterState::ShuttingDown,
        4 => ClusterState::InCrashRecovery,
        5 => ClusterState::InArchiveRecovery,
        6 => ClusterState::InProduction,
        _ => return None,
    };
    let checksums = u32_at(b, 252)? != 0;
    let wal_log_hints = *b.get(176)? != 0;
    Some(ControlFile {
        data: ControlData {
            system_id: u64_at(b, 0)?.to_string(),
            state,
            checkpoint: Lsn(u64_at(b, 32)?),
            timeline: Timeline(u32_at(b, 48)?),
            min_recovery_end: (Lsn(u64_at(b, 136)?), Timeline(u32_at(b, 144)?)),
            rewindable: wal_log_hints || checksums,
            shutdown_position: None,
        },
        wal_segment_size: u64::from(u32_at(b, 228)?),
        wal_page_size: u64::from(u32_at(b, 224)?),
        limits: [
            ("max_connections", u32_at(b, 180)?),
            ("max_worker_processes", u32_at(b, 184)?),
            ("max_wal_senders", u32_at(b, 188)?),
            ("max_prepared_transactions", u32_at(b, 192)?),
            ("max_locks_per_transaction", u32_at(b, 196)?),
        ],
        data_checksums: checksums,
    })
}

/// Which of the settings in force are lower than those of the server whose WAL came last, in words.
pub fn too_low(control: &ControlFile, running: &BTreeMap<String, u32>) -> Option<String> {
    let low = |(name, last): &(&str, u32)| {
        let mine = running.get(*name).filter(|mine| *mine < last)?;
        Some(format!("{name} is {mine} here and {last} there"))
    };
    let found: Vec<String> = control.limits.iter().filter_map(low).collect();
    (!found.is_empty()).then(|| found.join(", "))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

/// CRC-32C (Castagnoli), bit by bit: 300 bytes do not need a table.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as Postgres would write it, for one version.
    fn sample(version: u32, crc_at: usize) -> Vec<u8> {
        let mut b = vec![0u8; 8192];
        b[0..8].copy_from_slice(&7_439_021_837_465_564_321u64.to_ne_bytes());
        b[8..12].copy_from_slice(&version.to_ne_bytes());
        b[16..20].copy_from_slice(&5u32.to_ne_bytes());
        b[32..40].copy_from_slice(&0x3000148u64.to_ne_bytes());
        b[48..52].copy_from_slice(&7u32.to_ne_bytes());
        b[136..144].copy_from_slice(&0x4000000u64.to_ne_bytes());
        b[144..148].copy_from_slice(&7u32.to_ne_bytes());
        b[176] = 1;
        b[180..184].copy_from_slice(&250u32.to_ne_bytes());
        let crc = crc32c(&b[..crc_at]);
        b[crc_at..crc_at + 4].copy_from_slice(&crc.to_ne_bytes());
        b
    }

    #[test]
    fn the_check_value_of_crc32c_comes_out() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn every_supported_layout_is_read() {
        for (version, crc_at) in [(1300, 288), (1700, 288), (1800, 292)] {
            let file = parse(&sample(version, crc_at), "x").unwrap();
            assert_eq!(file.data.state, ClusterState::InArchiveRecovery);
            assert_eq!(file.data.system_id, "7439021837465564321");
            assert_eq!(file.data.timeline, Timeline(7));
            assert_eq!(file.data.min_recovery_end, (Lsn(0x4000000), Timeline(7)));
            assert!(file.data.rewindable);
            assert_eq!(file.limits[0], ("max_connections", 250));
        }
    }

    #[test]
    fn a_flipped_bit_is_found_and_an_unknown_layout_named() {
        let mut b = sample(1300, 288);
        b[48] ^= 1;
        assert!(matches!(parse(&b, "x"), Err(ControlError::Damaged(_))));
        assert!(matches!(parse(&sample(1201, 288), "x"), Err(ControlError::Unknown { version: 1201, .. })));
        assert!(matches!(parse(b"", "x"), Err(ControlError::Damaged(_))));
    }
}
