//! A data directory: WAL by timeline, control file, signal file, marker. No process.

use patroni::model::{ClusterState, ControlData, DataDir, HistoryRow, Lsn, StandbyNames, Timeline, Upstream};
use patroni::postgres::history::Ended;

/// A shutdown checkpoint record.
const RECORD: u64 = 120;

/// A timeline from where it begins. `making`: two that were made by different promotions are different, whatever their
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    pub timeline: u32,
    pub start: u64,
    pub making: u32,
}

/// What the marker beside the directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marker {
    Bootstrap(String),
    Copy,
}

/// Data.
#[derive(Clone, Debug)]
pub struct Disk {
    pub system_id: String,
    pub log: Vec<Branch>,
    pub end: u64,
    pub state: ClusterState,
    /// Of the latest checkpoint.
    pub checkpoint: (u64, u32),
    pub standby_signal: bool,
    /// A rewind began here and did not end.
    pub half: bool,
    /// What the configuration files name.
    pub upstream: Upstream,
    /// Whom its commits wait for, by the same files.
    pub names: StandbyNames,
}

impl Disk {
    pub fn branch(&self) -> Branch {
        self.log[self.log.len() - 1]
    }
    pub fn timeline(&self) -> u32 {
        self.branch().timeline
    }
    /// The timeline of the last WAL here: a history file that was fetched is not WAL.
    pub fn wal_timeline(&self) -> u32 {
        self.log.iter().rev().find(|b| b.start < self.end).unwrap_or(&self.log[0]).timeline
    }
    /// Up to where both are the same WAL.
    pub fn common(&self, other: &Disk) -> u64 {
        let same = self.log.iter().zip(&other.log).take_while(|(a, b)| a == b).count();
        let end = |d: &Disk| d.log.get(same).map_or(d.end, |b| b.start).min(d.end);
        if same == 0 || self.system_id != other.system_id { 0 } else { end(self).min(end(other)) }
    }
    /// As far as the last branch, which a promotion has just begun, is not counted: up to where this was WAL of the other.
    pub fn before_promotion(&self) -> Disk {
        let mut before = self.clone();
        if let Some(last) = before.log.pop() {
            before.end = last.start;
        }
        before
    }
    /// Everything here is in the history of the other.
    pub fn is_part_of(&self, other: &Disk) -> bool {
        self.system_id == other.system_id && self.common(other) == self.end
    }
    pub fn control(&self) -> ControlData {
        let recovering = matches!(self.state, ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery);
        let (checkpoint, timeline) = self.checkpoint;
        ControlData {
            system_id: self.system_id.clone(),
            state: self.state,
            checkpoint: Lsn(checkpoint),
            timeline: Timeline(timeline),
            min_recovery_end: if recovering {
                (Lsn(self.end), Timeline(self.wal_timeline()))
            } else {
                (Lsn::ZERO, Timeline(0))
            },
            rewindable: true,
            shutdown_position: (self.state == ClusterState::ShutDown).then_some(Lsn(checkpoint)),
        }
    }
    /// As `datadir::inspect` sees it.
    pub fn seen(disk: Option<&Disk>, marker: Option<&Marker>, uid: &str) -> DataDir {
        let Some(disk) = disk else { return DataDir::Empty };
        match marker {
            Some(Marker::Bootstrap(of)) if of != uid => DataDir::Unusable("a new cluster of another pod".to_owned()),
            Some(_) => DataDir::HalfMade,
            None if disk.half => DataDir::HalfRewound { control: Some(disk.control()) },
            None => DataDir::Present { control: Some(disk.control()), standby_signal: disk.standby_signal },
        }
    }
    pub fn ended(&self) -> Vec<Ended> {
        let pairs = self.log.windows(2);
        pairs
            .map(|two| Ended {
                timeline: Timeline(two[0].timeline),
                switchpoint: Lsn(two[1].start),
                reason: "no recovery target specified".to_owned(),
            })
            .collect()
    }
    /// The history file of a timeline.
    pub fn ancestors(&self, of: Timeline) -> Vec<Ended> {
        self.ended().into_iter().filter(|e| e.timeline < of).collect()
    }
    pub fn rows(&self, previous: &[HistoryRow], me: &str) -> Vec<HistoryRow> {
        patroni::postgres::history::rows(
            Timeline(self.timeline()),
            &self.ended(),
            previous,
            Some("2025-01-01T00:00:00+00:00".into()),
            me,
            0,
        )
    }
    /// A clean end as primary.
    pub fn shut_down(&mut self) {
        self.checkpoint = (self.end, self.timeline());
        self.end += RECORD;
        self.state = ClusterState::ShutDown;
    }
    /// Where the shutdown checkpoint record ends.
    pub fn checkpoint_end(&self) -> Option<Lsn> {
        (self.state == ClusterState::ShutDown).then_some(Lsn(self.checkpoint.0 + RECORD))
    }
}
