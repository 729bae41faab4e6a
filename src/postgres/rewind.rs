//! Divergence from the leader, and the programs that end it: pg_rewind and single-user recovery.
//!
//! A running standby without a WAL receiver does not know its timeline for sure: pg_control lags behind until the next
//! restartpoint. A position beyond the switch point of that older timeline proves nothing then. What does: a pair of
//! position and timeline that pg_control itself holds, or that no WAL of a newer timeline is here at all.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::binaries::Binaries;
use super::conf;
use super::connect;
use super::conninfo::{self, Address};
use super::control;
use super::datadir;
use super::history::{self, Ended};
use super::remote::LeaderTimeline;
use super::setup::{Command, Setup};
use crate::model::{ClusterState, ControlData, Lsn, Probe, Timeline};

/// Where this member's WAL ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// Its timeline.
    pub timeline: Timeline,
    /// Standby: replayed or minimum recovery end. Former primary: location of the shutdown checkpoint.
    pub lsn: Lsn,
    /// It was a standby.
    pub in_recovery: bool,
    /// `lsn` is on `timeline` for sure. If not, it may be on a newer one.
    pub sure: bool,
    /// Standby: a position with its timeline that pg_control vouches for.
    pub vouched: Option<(Timeline, Lsn)>,
    /// Former primary: where the checkpoint record ends.
    pub checkpoint_end: Option<Lsn>,
    /// The history file of `timeline` here: where that branch came from. `None`: there is none.
    pub ancestors: Option<Vec<Ended>>,
}

/// The answer of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// The WAL here is not part of the leader's history.
    Diverged,
    /// It is.
    Same,
    /// Cannot be said now: look again.
    Undecided,
}

/// Where the WAL of this member ends: from a running server's probe, else from pg_control; `None`: not known (crashed
/// primary: recover first).
pub fn local_end(data_dir: &Path, probe: Option<&Probe>) -> Option<LocalEnd> {
    if let Some(p) = probe.filter(|p| p.timeline.0 > 0) {
        // Received is written here too, and will be replayed: a delayed standby ends where its WAL ends.
        let vouched = control::read(data_dir).ok().map(|c| (c.min_recovery_end.1, c.min_recovery_end.0));
        return Some(LocalEnd {
            timeline: p.timeline,
            lsn: if p.in_recovery { p.received.max(p.replayed).max(p.position) } else { p.position },
            in_recovery: p.in_recovery,
            sure: !p.in_recovery || p.streaming || newest_segment(data_dir) <= p.timeline,
            vouched: vouched.filter(|(timeline, _)| p.in_recovery && timeline.0 > 0),
            checkpoint_end: None,
            ancestors: history::read(data_dir, p.timeline),
        });
    }
    let control = control::read(data_dir).ok()?;
    let end = end_of_control(&control, || control::end_of_checkpoint_record(data_dir))?;
    Some(LocalEnd { ancestors: history::read(data_dir, end.timeline), ..end })
}

/// The same from pg_control alone; `checkpoint_end`: where the record of the latest checkpoint ends.
pub fn end_of_control(c: &ControlData, checkpoint_end: impl FnOnce() -> Option<Lsn>) -> Option<LocalEnd> {
    let was_primary = |checkpoint_end| LocalEnd {
        timeline: c.timeline,
        lsn: c.checkpoint,
        in_recovery: false,
        sure: true,
        vouched: None,
        checkpoint_end,
        ancestors: None,
    };
    match c.state {
        ClusterState::ShutDown => Some(was_primary(checkpoint_end())),
        ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery => {
            let (lsn, timeline) = c.min_recovery_end;
            if lsn == Lsn::ZERO || timeline.0 == 0 {
                return Some(was_primary(checkpoint_end()));
            }
            Some(LocalEnd { lsn, in_recovery: true, checkpoint_end: None, timeline, ..was_primary(None) })
        }
        ClusterState::StartingUp
        | ClusterState::ShuttingDown
        | ClusterState::InCrashRecovery
        | ClusterState::InProduction => None,
    }
}

/// The newest timeline that WAL segments in pg_wal are of; 0 = none. A standby that has WAL of a timeline has a file of it
/// until a restartpoint recycles it, and then pg_control says so.
fn newest_segment(data_dir: &Path) -> Timeline {
    let Ok(entries) = fs::read_dir(data_dir.join("pg_wal")) else { return Timeline(u32::MAX) };
    let timelines = entries.filter_map(Result::ok).filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str().filter(|n| n.len() == 24 && n.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u32::from_str_radix(&name[..8], 16).ok()
    });
    // One whose history is not there was left by a branch that pg_rewind took this member off.
    let known = history::present(data_dir);
    Timeline(timelines.filter(|t| *t == 1 || known.contains(&Timeline(*t))).max().unwrap_or(0))
}

/// Compares the two.
pub fn check(local: Option<&LocalEnd>, leader: &LeaderTimeline) -> Divergence {
    let Some(local) = local else { return Divergence::Undecided };
    if leader.in_recovery || leader.timeline.0 == 0 {
        return Divergence::Undecided;
    }
    if local.timeline > leader.timeline {
        return Divergence::Diverged;
    }
    if another_branch(local, leader) {
        return Divergence::Diverged;
    }
    if local.timeline == leader.timeline {
        return Divergence::Same;
    }
    let ended = |timeline: Timeline| leader.history.iter().find(|e| e.timeline == timeline);
    if let Some((timeline, lsn)) = local.vouched
        && ended(timeline).is_some_and(|e| lsn > e.switchpoint)
    {
        return Divergence::Diverged;
    }
    match ended(local.timeline) {
        None => Divergence::Diverged,
        Some(Ended { switchpoint, .. }) => {
            let beyond = if local.in_recovery {
                if local.lsn > *switchpoint && !local.sure {
                    return Divergence::Undecided;
                }
                local.lsn > *switchpoint
            } else {
                // A clean shutdown whose checkpoint record is the last of the old timeline has nothing of its own.
                local.lsn >= *switchpoint || local.checkpoint_end != Some(*switchpoint)
            };
            if beyond { Divergence::Diverged } else { Divergence::Same }
        }
    }
}

/// Does the timeline here have the number of one of the leader's and come from elsewhere? Somebody promoted behind the
/// program's back; nobody had heard of it when the number was taken again.
fn another_branch(local: &LocalEnd, leader: &LeaderTimeline) -> bool {
    let Some(mine) = &local.ancestors else { return false };
    let places = |ended: &[Ended]| ended.iter().map(|e| (e.timeline, e.switchpoint)).collect::<Vec<_>>();
    let theirs: Vec<_> = places(&leader.history).into_iter().filter(|(t, _)| *t < local.timeline).collect();
    places(mine) != theirs
}

/// Can pg_rewind work on this data directory?
pub fn is_usable(use_pg_rewind: bool, control: Option<&ControlData>) -> bool {
    use_pg_rewind && control.is_some_and(|c| c.rewindable)
}

/// The pg_rewind command against the member at `conn_url`. Writes the password file. `rehearsal`: everything but the
/// changes; what fails then has touched nothing.
///
/// # Errors
/// One line: `conn_url` is not understood, or the password file cannot be written.
pub fn command(setup: &Setup, binaries: &Binaries, conn_url: &str, rehearsal: bool) -> Result<Command, String> {
    let from = Address::parse(conn_url)
        .ok_or_else(|| format!("conn_url {conn_url:?} of the leader is not postgres://host:port/database"))?;
    let mut places = connect::local_places(setup);
    places.extend(from.places());
    conninfo::write_pgpass(&setup.pgpass, &conninfo::pgpass_lines(setup, &places))
        .map_err(|e| format!("write postgresql.pgpass {}: {e}", setup.pgpass.display()))?;
    let database = from.database.clone().unwrap_or_else(|| setup.database.clone());
    // The leader of a standby cluster writes nothing; what that cluster follows does.
    let writes = setup.standby_of.as_ref().is_none_or(|remote| remote.conn_url.as_deref() == Some(conn_url));
    let attributes = if writes { "read-write" } else { "" };
    let extra = [("target_session_attrs", attributes.to_owned())];
    let source = conninfo::dsn(&from, setup.rewind_credentials(), &database, &extra, binaries.major);
    let mut argv = vec![binaries.path("pg_rewind")];
    let config_inside = setup.config_dir == setup.data_dir && setup.config_base_name == "postgresql";
    if restore_command(setup).is_some() && (config_inside || binaries.major >= 15) {
        argv.push("--restore-target-wal".to_owned());
    }
    if binaries.major >= 15 && !config_inside {
        argv.push(format!("--config-file={}", conf::conf_path(setup).display()));
    }
    if rehearsal {
        argv.push("--dry-run".to_owned());
    }
    argv.push("-D".to_owned());
    argv.push(setup.data_dir.to_string_lossy().into_owned());
    argv.push("--source-server".to_owned());
    argv.push(source);
    Ok(Command::new(argv)
        .with_env("PGPASSFILE", setup.pgpass.to_string_lossy())
        .with_env("PGOPTIONS", "-c statement_timeout=0")
        .with_env("LC_ALL", "C")
        .with_env("LANG", "C"))
}

/// The configured restore_command: of a standby cluster, else from `recovery_conf` or `parameters`.
pub fn restore_command(setup: &Setup) -> Option<&str> {
    let key = "restore_command";
    let another = setup.standby_of.as_ref().and_then(|remote| remote.recovery.get(key));
    another
        .or_else(|| setup.recovery_conf.get(key))
        .or_else(|| setup.parameters.get(key))
        .map(String::as_str)
        .filter(|c| !c.is_empty())
}

/// The WAL segment that pg_rewind could not open, from its output.
pub fn missing_wal(output: &str) -> Option<String> {
    let name = |text: &str| -> Option<String> {
        let at = text.find("pg_wal/").map(|i| i + "pg_wal/".len())?;
        let name = text.get(at..at + 24)?;
        name.bytes().all(|b| b.is_ascii_hexdigit()).then(|| name.to_owned())
    };
    output.lines().filter(|l| l.contains("could not open file")).find_map(name)
}

/// The command that fetches a segment into `pg_wal`, when restore_command is set: `%f`, `%p`, `%r` and `%%` replaced.
pub fn fetch_wal_command(setup: &Setup, segment: &str) -> Option<Command> {
    let template = restore_command(setup)?;
    let target = setup.data_dir.join("pg_wal").join(segment);
    let mut line = String::new();
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, false) => line.push(c),
            (_, true) => match chars.next() {
                Some('f' | 'r') => line.push_str(segment),
                Some('p') => line.push_str(&target.to_string_lossy()),
                Some('%') | None => line.push('%'),
                Some(other) => line.extend(['%', other]),
            },
        }
    }
    Some(Command::new(vec!["/bin/sh".to_owned(), "-c".to_owned(), line]))
}

/// The command of single-user recovery, which brings a crashed directory to a clean shutdown. It reads nothing: its standard input must be closed or empty. Signal files are removed and the archiver is kept from
/// recycling WAL that was not archived.
///
/// # Errors
/// A signal file cannot be removed.
pub fn crash_recovery_command(setup: &Setup, binaries: &Binaries) -> io::Result<Command> {
    datadir::make_standby(&setup.data_dir, false)?;
    let mut argv = vec![binaries.path("postgres"), "--single".to_owned(), "-D".to_owned()];
    argv.push(setup.data_dir.to_string_lossy().into_owned());
    let mut settings = last_options(&setup.data_dir);
    settings.insert("archive_mode".to_owned(), "on".to_owned());
    settings.insert("archive_command".to_owned(), "false".to_owned());
    let config = settings.remove("config_file").or_else(|| settings.remove("config-file"));
    let config = config.unwrap_or_else(|| conf::conf_path(setup).to_string_lossy().into_owned());
    if Path::new(&config).exists() {
        argv.extend(["-c".to_owned(), format!("config_file={config}")]);
    }
    for (name, value) in settings {
        argv.extend(["-c".to_owned(), format!("{name}={value}")]);
    }
    argv.push("template1".to_owned());
    Ok(Command::new(argv))
}

/// The `--name=value` options of the last start: `postmaster.opts`, where every word is in double quotes.
fn last_options(data_dir: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(data_dir.join("postmaster.opts")).unwrap_or_default();
    text.trim()
        .split("\" \"")
        .flat_map(|w| w.split(" \""))
        .filter_map(|w| w.trim_matches('"').strip_prefix("--")?.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

/// Segments that wait to be archived (`archive_status/*.ready`), oldest first; archive them before a rewind removes them.
pub fn ready_segments(data_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(data_dir.join("pg_wal/archive_status")) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).map(|e| e.file_name().to_string_lossy().into_owned());
    let mut out: Vec<String> = names.filter_map(|n| n.strip_suffix(".ready").map(str::to_owned)).collect();
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(timeline: u32, ended: &[(u32, u64)]) -> LeaderTimeline {
        LeaderTimeline {
            system_id: "7".into(),
            in_recovery: false,
            timeline: Timeline(timeline),
            checkpoint_timeline: Timeline(timeline),
            history: ended
                .iter()
                .map(|(t, l)| Ended { timeline: Timeline(*t), switchpoint: Lsn(*l), reason: String::new() })
                .collect(),
        }
    }

    fn end(timeline: u32, lsn: u64, in_recovery: bool, checkpoint_end: Option<u64>) -> LocalEnd {
        LocalEnd {
            timeline: Timeline(timeline),
            lsn: Lsn(lsn),
            in_recovery,
            sure: true,
            vouched: None,
            checkpoint_end: checkpoint_end.map(Lsn),
            ancestors: None,
        }
    }

    #[test]
    fn the_same_number_from_another_place_is_another_branch() {
        let ended = |timeline, at| Ended { timeline: Timeline(timeline), switchpoint: Lsn(at), reason: String::new() };
        let l = leader(4, &[(1, 100), (2, 200), (3, 300)]);
        let from = |timeline, ancestors| LocalEnd { ancestors: Some(ancestors), ..end(timeline, 150, true, None) };
        let own = vec![ended(1, 100), ended(2, 190), ended(3, 300)];
        assert_eq!(check(Some(&from(4, own)), &l), Divergence::Diverged, "promoted by hand at 190");
        assert_eq!(check(Some(&from(3, vec![ended(1, 90), ended(2, 200)])), &l), Divergence::Diverged);
        assert_eq!(check(Some(&from(3, vec![ended(1, 100), ended(2, 200)])), &l), Divergence::Same);
        assert_eq!(check(Some(&from(4, vec![ended(1, 100), ended(2, 200), ended(3, 300)])), &l), Divergence::Same);
    }

    #[test]
    fn a_running_standby_whose_timeline_is_not_known_for_sure_is_never_judged_by_its_position() {
        let l = leader(3, &[(1, 100), (2, 200)]);
        // Its WAL receiver is down; it may well have followed to timeline 2 or 3 and pg_control not know yet.
        let unsure = LocalEnd { sure: false, ..end(1, 150, true, None) };
        assert_eq!(check(Some(&unsure), &l), Divergence::Undecided);
        assert_eq!(check(Some(&LocalEnd { lsn: Lsn(90), ..unsure.clone() }), &l), Divergence::Same);
        let vouched = LocalEnd { vouched: Some((Timeline(1), Lsn(101))), ..unsure.clone() };
        assert_eq!(check(Some(&vouched), &l), Divergence::Diverged);
        let before = LocalEnd { vouched: Some((Timeline(1), Lsn(100))), ..unsure };
        assert_eq!(check(Some(&before), &l), Divergence::Undecided);
    }

    #[test]
    fn the_timeline_of_a_standby_is_sure_when_no_newer_wal_is_here_and_received_counts_as_well() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let probe = Probe {
            at: Default::default(),
            in_recovery: true,
            timeline: Timeline(1),
            position: Lsn(150),
            received: Lsn(150),
            replayed: Lsn(90),
            streaming: false,
            replay_paused: true,
            blocked: None,
            system_id: "1".into(),
            replication: Default::default(),
        };
        fs::write(dir.path().join("pg_wal/000000010000000000000001"), "").unwrap();
        fs::write(dir.path().join("pg_wal/000000020000000000000001"), "").unwrap();
        let mine = local_end(dir.path(), Some(&probe)).unwrap();
        assert!(mine.sure && mine.lsn == Lsn(150), "a leftover without a history: {mine:?}");
        fs::write(dir.path().join("pg_wal/00000002.history"), "").unwrap();
        assert!(!local_end(dir.path(), Some(&probe)).unwrap().sure);
    }

    #[test]
    fn the_table_of_the_manual_comes_out() {
        let l = leader(3, &[(1, 100), (2, 200)]);
        let cases = [
            (end(4, 1, true, None), Divergence::Diverged),
            (end(3, 900, true, None), Divergence::Same),
            (end(2, 200, true, None), Divergence::Same),
            (end(2, 201, true, None), Divergence::Diverged),
            (end(2, 80, false, Some(200)), Divergence::Same),
            (end(2, 80, false, Some(180)), Divergence::Diverged),
            (end(2, 80, false, None), Divergence::Diverged),
            (end(2, 200, false, Some(320)), Divergence::Diverged),
        ];
        for (local, expected) in cases {
            assert_eq!(check(Some(&local), &l), expected, "{local:?}");
        }
        assert_eq!(check(Some(&end(1, 1, true, None)), &leader(3, &[(2, 200)])), Divergence::Diverged);
        assert_eq!(check(None, &l), Divergence::Undecided);
        assert_eq!(
            check(Some(&end(1, 1, true, None)), &LeaderTimeline { in_recovery: true, ..l }),
            Divergence::Undecided
        );
    }

    #[test]
    fn a_crashed_primary_is_undecided_until_it_has_recovered() {
        let mut c = ControlData {
            system_id: "1".into(),
            state: ClusterState::InProduction,
            checkpoint: Lsn(5),
            timeline: Timeline(1),
            min_recovery_end: (Lsn::ZERO, Timeline(0)),
            rewindable: true,
            shutdown_position: None,
        };
        assert_eq!(end_of_control(&c, || None), None);
        c.state = ClusterState::ShutDownInRecovery;
        assert!(!end_of_control(&c, || Some(Lsn(9))).unwrap().in_recovery);
        c.min_recovery_end = (Lsn(7), Timeline(1));
        assert_eq!(end_of_control(&c, || None), Some(end(1, 7, true, None)));
    }

    #[test]
    fn the_missing_segment_is_found_in_the_output_and_fetched() {
        let out =
            "pg_rewind: error: could not open file \"/d/pg_wal/000000010000000000000003\": No such file or directory\n";
        assert_eq!(missing_wal(out).as_deref(), Some("000000010000000000000003"));
        assert_eq!(missing_wal("pg_rewind: fatal: x"), None);
        let mut s = Setup::new("a", "s", "/d", 1);
        assert_eq!(fetch_wal_command(&s, "F"), None);
        s.recovery_conf.insert("restore_command".into(), "cp /a/%f %p # 100%%".into());
        assert_eq!(fetch_wal_command(&s, "F").unwrap().argv[2], "cp /a/F /d/pg_wal/F # 100%");
    }

    #[test]
    fn single_user_recovery_starts_with_the_options_of_the_last_start() {
        let dir = tempfile::tempdir().unwrap();
        let opts =
            "/usr/bin/postgres \"-D\" \"/d\" \"--config-file=/x\" \"--max_connections=200\" \"--cluster_name=a b\"\n";
        fs::write(dir.path().join("postmaster.opts"), opts).unwrap();
        let s = Setup::new("a", "s", dir.path(), 1);
        let argv = crash_recovery_command(&s, &Binaries::known(&s, 150_000)).unwrap().argv;
        for word in ["max_connections=200", "cluster_name=a b", "archive_command=false"] {
            assert!(argv.contains(&word.to_owned()), "{argv:?}");
        }
        assert_eq!(argv.last().map(String::as_str), Some("template1"));
    }
}
