//! The state field of `global/pg_control`, and whether standby.signal is there: all that the keeper reads of a data
//! directory.
//!
//! Layout since Postgres 9.4: system identifier (8 bytes), pg_control version (4), catalog version (4), state (4).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::core::{ControlState, Facts};

/// Looks. `at` is when the look began.
pub(super) fn look(data_dir: &Path, at: u64) -> Facts {
    Facts { at, control: state(data_dir), standby_signal: data_dir.join("standby.signal").exists() }
}

fn state(data_dir: &Path) -> ControlState {
    let mut head = [0u8; 20];
    let read = File::open(data_dir.join("global/pg_control")).and_then(|mut f| f.read_exact(&mut head));
    if read.is_err() {
        return ControlState::Other;
    }
    let Some(field) = head.last_chunk::<4>() else { return ControlState::Other };
    match u32::from_ne_bytes(*field) {
        2 | 5 => ControlState::InRecovery,
        1 | 3 => ControlState::ShuttingDown,
        _ => ControlState::Other,
    }
}
