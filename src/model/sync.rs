//! Synchronous replication: whom Postgres waits for, and who the store says may lead without loss.
//!
//! The rule that everything here serves: **whoever stands in the sync key is named to Postgres**. A member is named first and
//! enters the key afterwards, once every commit that was acknowledged before it was named has reached it; it leaves the key
//! first and is no longer named afterwards. So whoever stands in the key has every acknowledged commit.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::quorum::{Electorate, Waited};
use super::{BootInstant, Lsn, MemberName, SyncRecord, Version, WriteResult};

/// What Postgres is told instead of a name while nobody may acknowledge. Refused as the name of a member.
pub const PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// A walsender reads the names when it is woken. What it releases with the names of before, it has released after this time.
const SETTLED: Duration = Duration::from_millis(300);
/// A reload that takes longer than this does not come, or something else says otherwise.
const OVERRULED: Duration = Duration::from_secs(3);

/// `synchronous_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commits {
    /// Off: a commit waits for nobody, unless the configuration of Postgres says so.
    #[default]
    Asynchronous,
    /// On: a commit waits for every standby that is named.
    Synchronous,
    /// Quorum: a commit waits for so many of the standbys that are named, whichever they are.
    Quorum,
}

/// `synchronous_mode` and what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synchronous {
    /// `synchronous_mode`.
    pub mode: Commits,
    /// `synchronous_mode_strict`: without a standby nothing is committed.
    pub strict: bool,
    /// `synchronous_node_count`: so many standbys, at least 1.
    pub count: usize,
    /// `maximum_lag_on_syncnode`: bytes a standby may be behind the best one to be chosen; `None`: any.
    pub maximum_lag: Option<u64>,
}

impl Synchronous {
    /// Whom Postgres is told to wait for when it begins to write: nobody; in strict mode, nobody may acknowledge.
    pub fn at_first(&self) -> StandbyNames {
        match (self.mode, self.strict) {
            (Commits::Asynchronous, _) => StandbyNames::AsConfigured,
            (Commits::Synchronous | Commits::Quorum, true) => StandbyNames::Placeholder,
            (Commits::Synchronous | Commits::Quorum, false) => StandbyNames::All(BTreeSet::new()),
        }
    }
    /// Whom Postgres is told to wait for: these, and if there are none as [`Synchronous::at_first`].
    pub fn names(&self, waited: Waited) -> StandbyNames {
        match self.mode {
            _ if waited.names.is_empty() => self.at_first(),
            Commits::Quorum => StandbyNames::Any(waited),
            Commits::Synchronous | Commits::Asynchronous if waited.number < waited.names.len() => {
                StandbyNames::Any(waited)
            }
            Commits::Synchronous | Commits::Asynchronous => StandbyNames::All(waited.names),
        }
    }
    /// Whom a writer has to wait for that goes on under a key that stands.
    pub fn keep(&self, key: &Electorate) -> StandbyNames {
        self.names(Waited { number: key.must_hold(), names: key.voters.clone() })
    }
}

impl Default for Synchronous {
    fn default() -> Self {
        Synchronous { mode: Commits::Asynchronous, strict: false, count: 1, maximum_lag: None }
    }
}

/// The value of `synchronous_standby_names`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StandbyNames {
    /// Not ours: what the configuration says, if anything.
    #[default]
    AsConfigured,
    /// Every one of these acknowledges each commit; empty: nobody is waited for.
    All(BTreeSet<MemberName>),
    /// So many of these acknowledge each commit, whichever they are.
    Any(Waited),
    /// Nobody can acknowledge: commits wait until somebody is named.
    Placeholder,
}

impl StandbyNames {
    /// The value as Postgres reads it; `None`: it is not ours to write.
    pub fn text(&self) -> Option<String> {
        match self {
            StandbyNames::AsConfigured => None,
            StandbyNames::Placeholder => Some(PLACEHOLDER.to_owned()),
            StandbyNames::All(names) => Some(match names.len() {
                0 => String::new(),
                1 => names.iter().map(quoted).collect(),
                n => format!("{n} ({})", quoted_list(names)),
            }),
            StandbyNames::Any(Waited { number, names }) => Some(format!("ANY {number} ({})", quoted_list(names))),
        }
    }
    /// The members that may acknowledge a commit.
    pub fn members(&self) -> Option<&BTreeSet<MemberName>> {
        match self {
            StandbyNames::All(names) | StandbyNames::Any(Waited { names, .. }) => Some(names),
            StandbyNames::AsConfigured | StandbyNames::Placeholder => None,
        }
    }
    /// How `pg_stat_replication` shows a standby that is waited for: see [`Sender::rank`].
    pub fn rank(&self) -> u8 {
        if matches!(self, StandbyNames::Any(_)) { 2 } else { 3 }
    }
}

fn quoted_list(names: &BTreeSet<MemberName>) -> String {
    names.iter().map(quoted).collect::<Vec<_>>().join(",")
}

impl fmt::Display for StandbyNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StandbyNames::AsConfigured => f.write_str("as configured"),
            StandbyNames::Placeholder => f.write_str("nobody, and commits wait"),
            StandbyNames::All(names) if names.is_empty() => f.write_str("nobody"),
            StandbyNames::All(names) => {
                f.write_str(&names.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", "))
            }
            StandbyNames::Any(Waited { number, names }) => {
                let list = names.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
                write!(f, "{number} of {} ({list})", names.len())
            }
        }
    }
}

/// A name as `synchronous_standby_names` takes it: quoted unless it is a plain identifier that is no word of its grammar.
fn quoted(name: &MemberName) -> String {
    let text = name.as_str();
    let plain = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain && text != "first" && text != "any" {
        text.to_owned()
    } else {
        format!("\"{}\"", text.replace('"', "\"\""))
    }
}

/// One standby that streams from here, as `pg_stat_replication` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// `application_name`.
    pub name: MemberName,
    /// `state` is `streaming`.
    pub streaming: bool,
    /// `sync_state` in the order of preference: 3 `sync`, 2 `quorum`, 1 `potential`, 0 `async`.
    pub rank: u8,
    /// What it has of the WAL in the sense of `synchronous_commit`: written, flushed or replayed.
    pub position: Lsn,
}

/// What the monitoring query says of synchronous replication. Empty on a standby.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replication {
    /// `synchronous_standby_names` in force.
    pub names: String,
    /// Who streams from here.
    pub senders: Vec<Sender>,
    /// The checkpointer, which alone makes commits wait for other names, is where it reads its files: during an immediate
    /// checkpoint, or one that is late, it does not.
    pub read: bool,
}

impl Replication {
    /// How far is this member, if commits wait for it at this moment? One that shows up twice is as far as the one that is behind.
    fn synchronous(&self, name: &MemberName, rank: u8) -> Option<Lsn> {
        let mine = || self.senders.iter().filter(|s| s.name.is(name));
        let all = mine().all(|s| s.streaming && s.rank == rank);
        mine().map(|s| s.position).min().filter(|_| all)
    }
}

/// A write of the sync key that may have landed, or may still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncWrite {
    /// It lands only on this version; `None`: only where there is no object.
    pub expect: Option<Version>,
    /// What it promises.
    pub electorate: Electorate,
}

/// What a member knows of the sync key that it keeps, and of whom its Postgres waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncKeeping {
    /// The acquisition of the lock (its time) for which this process has written the key: what stands there since is known.
    pub since: Option<String>,
    /// Writes that are under way or were not answered clearly.
    pub unsure: Vec<SyncWrite>,
    /// It is under way.
    pub writing: bool,
    /// What the configuration files name, as this process has written them last.
    pub named: Option<StandbyNames>,
    /// These names are in force, since when, and from which position on every commit waits for them.
    in_force: Option<(BootInstant, Option<Lsn>)>,
    /// Who has reached that position while named.
    reached: BTreeSet<MemberName>,
    /// When Postgres was told last.
    told: BootInstant,
    /// Postgres says that it waits for these names instead, since then.
    overruled: Option<(BootInstant, String)>,
}

impl SyncKeeping {
    /// The files were written with these names.
    pub fn wrote(&mut self, names: StandbyNames) {
        if self.named.as_ref() != Some(&names) {
            self.forget();
            self.named = Some(names);
        }
    }

    /// Postgres was told then: what it said when it was asked before says nothing of these names.
    pub fn told(&mut self, at: BootInstant) {
        self.told = at;
    }

    /// Nothing is known of what Postgres waits for.
    pub fn forget(&mut self) {
        self.in_force = None;
        self.overruled = None;
        self.reached.clear();
        self.named = None;
    }

    /// What a primary says of its replication. A member is sure once it is waited for and has everything that was
    /// acknowledged before it was.
    pub fn observe(&mut self, now: &Replication, position: Lsn, at: BootInstant) {
        if at < self.told {
            return;
        }
        let Some((named, names)) = self.named.as_ref().and_then(|named| Some((named, named.members()?))) else {
            return;
        };
        if named.text().as_deref() != Some(now.names.as_str()) {
            self.overruled.get_or_insert((at, now.names.clone()));
            self.in_force = None;
            self.reached.clear();
            return;
        }
        self.overruled = None;
        let (since, from) = *self.in_force.get_or_insert((at, None));
        let settled = (at >= since + SETTLED && now.read).then_some(position);
        let from = from.or(settled);
        self.in_force = Some((since, from));
        if let Some(from) = from {
            let caught_up = |name: &&MemberName| now.synchronous(name, named.rank()).is_some_and(|at| at >= from);
            let sure = names.iter().filter(caught_up);
            self.reached.extend(sure.cloned());
        }
    }

    /// Has it, by what this process has seen, every commit that was acknowledged?
    pub fn is_sure(&self, name: &MemberName) -> bool {
        self.reached.contains(name)
    }

    /// Everybody of whom that was seen.
    pub fn sure(&self) -> &BTreeSet<MemberName> {
        &self.reached
    }

    /// What Postgres waits for in spite of the files, for longer than it takes to read them.
    pub fn overruled(&self, now: BootInstant) -> Option<&str> {
        self.overruled.as_ref().filter(|(since, _)| now >= *since + OVERRULED).map(|(_, names)| names.as_str())
    }

    /// The names that were written are in force, as far as was seen.
    pub fn in_force(&self) -> bool {
        self.in_force.is_some()
    }

    /// Writes that may still land over what the view shows.
    pub fn may_land<'a>(&'a self, record: Option<&'a SyncRecord>) -> impl Iterator<Item = &'a SyncWrite> {
        self.unsure.iter().filter(move |w| w.expect.as_ref() == record.map(|r| &r.version))
    }

    /// A write goes out.
    pub fn writes(&mut self, write: SyncWrite) {
        self.unsure.retain(|w| w.expect == write.expect);
        self.unsure.push(write);
        self.writing = true;
    }

    /// It was answered. What the store has, or has refused to take, the view shows by now.
    pub fn written(&mut self, result: &WriteResult) {
        self.writing = false;
        match result {
            WriteResult::Written(_) | WriteResult::Conflict => self.unsure.clear(),
            // Definitely not this one.
            WriteResult::Refused(_) => drop(self.unsure.pop()),
            WriteResult::Unknown(_) => {}
        }
    }
}

impl SyncRecord {
    /// May this member lead, if it has votes enough? Names compare without regard to case.
    pub fn allows(&self, name: &MemberName) -> bool {
        self.leader.as_ref().is_some_and(|n| n.is(name)) || self.standbys.iter().any(|n| n.is(name))
    }
    /// Has this member everything that was acknowledged? Where a quorum is needed, a commit is with some of the standbys, and no
    /// single one of them is known to have them all.
    pub fn vouches_for(&self, name: &MemberName) -> bool {
        self.leader.as_ref().is_some_and(|n| n.is(name)) || self.quorum == 0 && self.allows(name)
    }
    /// What it promises. A quorum that the voters could never be promises nothing.
    pub fn electorate(&self) -> Electorate {
        let quorum = usize::try_from(self.quorum).unwrap_or(usize::MAX);
        let key = Electorate { voters: self.standbys.iter().cloned().collect(), quorum };
        if key.must_hold() > 0 { key } else { Electorate::default() }
    }
    /// Whom it names, for people.
    pub fn in_words(&self) -> String {
        let leader = self.leader.as_ref().map_or("nobody", MemberName::as_str);
        if self.standbys.is_empty() {
            return format!("leader {leader}, no standby");
        }
        let names = self.standbys.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
        match self.quorum {
            0 => format!("leader {leader}, {names}"),
            q => format!("leader {leader}, {} of {} ({names})", q.saturating_add(1), self.standbys.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(names: &[&str]) -> StandbyNames {
        StandbyNames::All(names.iter().map(|n| MemberName::from(*n)).collect())
    }
    fn at(ms: u64) -> BootInstant {
        BootInstant::from_nanos(ms * 1_000_000)
    }
    fn sender(name: &str, rank: u8, position: u64) -> Sender {
        Sender { name: name.into(), streaming: true, rank, position: Lsn(position) }
    }

    #[test]
    fn names_are_written_as_postgres_reads_them() {
        let text = |names: &[&str]| all(names).text().unwrap();
        assert_eq!(text(&[]), "");
        assert_eq!(text(&["node1"]), "node1");
        assert_eq!(text(&["pg-1", "b"]), "2 (b,\"pg-1\")");
        assert_eq!(text(&["first"]), "\"first\"", "a word of the grammar");
        assert_eq!(text(&["Any", "9a"]), "2 (\"9a\",\"Any\")");
        let any = Waited { number: 1, names: BTreeSet::from(["b".into(), "pg-1".into()]) };
        assert_eq!(StandbyNames::Any(any.clone()).text().unwrap(), "ANY 1 (b,\"pg-1\")");
        assert_eq!(StandbyNames::Any(any).to_string(), "1 of 2 (b, pg-1)");
        assert_eq!(StandbyNames::Placeholder.text().unwrap(), PLACEHOLDER);
        assert_eq!(StandbyNames::AsConfigured.text(), None);
    }

    #[test]
    fn a_standby_is_sure_once_it_is_waited_for_and_has_what_was_acknowledged_before() {
        let mut keeping = SyncKeeping::default();
        keeping.wrote(all(&["b"]));
        let b = MemberName::from("b");
        let now = |names: &str, rank, position| Replication {
            names: names.into(),
            senders: vec![sender("b", rank, position)],
            read: true,
        };
        keeping.observe(&now("", 0, 900), Lsn(900), at(0));
        assert!(!keeping.in_force(), "Postgres has not read its files yet");
        keeping.observe(&now("b", 3, 900), Lsn(1000), at(100));
        keeping.observe(&now("b", 3, 1100), Lsn(1100), at(200));
        assert!(keeping.in_force() && !keeping.is_sure(&b), "some walsender may still go by the names of before");
        keeping.observe(&now("b", 3, 1100), Lsn(1200), at(400));
        assert!(!keeping.is_sure(&b), "it has not reached what was acknowledged meanwhile");
        keeping.observe(&now("b", 1, 1300), Lsn(1300), at(500));
        assert!(!keeping.is_sure(&b), "nobody waits for it");
        keeping.observe(&now("b", 3, 1200), Lsn(1400), at(600));
        assert!(keeping.is_sure(&b));
        keeping.wrote(all(&["b", "c"]));
        assert!(!keeping.is_sure(&b), "other names, from the beginning");
    }

    #[test]
    fn names_bind_nobody_before_the_checkpointer_has_read_them() {
        let mut keeping = SyncKeeping::default();
        keeping.wrote(all(&["b"]));
        let now = |read| Replication { names: "b".into(), senders: vec![sender("b", 3, 10)], read };
        keeping.observe(&now(false), Lsn(5), at(0));
        keeping.observe(&now(false), Lsn(5), at(900));
        assert!(!keeping.is_sure(&"b".into()), "a checkpoint is under way");
        keeping.observe(&now(true), Lsn(5), at(1000));
        assert!(keeping.is_sure(&"b".into()));
    }

    #[test]
    fn names_that_something_overrules_are_told_after_a_while() {
        let mut keeping = SyncKeeping::default();
        keeping.wrote(all(&["b"]));
        let other = Replication { names: "x".into(), ..Replication::default() };
        keeping.observe(&other, Lsn(5), at(0));
        assert_eq!((keeping.overruled(at(100)), keeping.overruled(at(9000))), (None, Some("x")));
        keeping.observe(&Replication { names: "b".into(), ..other }, Lsn(5), at(9100));
        assert_eq!(keeping.overruled(at(20_000)), None);
    }

    #[test]
    fn one_that_shows_up_twice_is_as_far_as_the_one_behind() {
        let mut keeping = SyncKeeping::default();
        keeping.wrote(all(&["b"]));
        let now = Replication { names: "b".into(), senders: vec![sender("b", 3, 10), sender("B", 0, 5)], read: true };
        keeping.observe(&now, Lsn(5), at(0));
        keeping.observe(&now, Lsn(5), at(900));
        assert!(!keeping.is_sure(&"b".into()));
    }

    #[test]
    fn a_write_without_a_clear_answer_counts_as_long_as_it_may_land() {
        let mut keeping = SyncKeeping::default();
        let record = |version: &str, standbys: &[&str]| SyncRecord {
            version: Version(version.into()),
            leader: Some("a".into()),
            standbys: standbys.iter().map(|n| MemberName::from(*n)).collect(),
            quorum: 0,
        };
        let electorate = Electorate { voters: BTreeSet::from(["c".into()]), quorum: 0 };
        keeping.writes(SyncWrite { expect: Some(Version("5".into())), electorate });
        keeping.written(&WriteResult::Unknown("no answer".into()));
        let lands = |keeping: &SyncKeeping, record: &SyncRecord| keeping.may_land(Some(record)).count();
        assert_eq!(lands(&keeping, &record("5", &["b"])), 1);
        assert_eq!(lands(&keeping, &record("6", &["b"])), 0, "it can land no more");
        assert!(record("6", &["b"]).vouches_for(&"B".into()) && !record("6", &[]).allows(&"b".into()));
        let quorum = SyncRecord { quorum: 1, ..record("6", &["b", "c"]) };
        assert!(quorum.allows(&"b".into()) && !quorum.vouches_for(&"b".into()) && quorum.vouches_for(&"a".into()));
        assert_eq!(quorum.in_words(), "leader a, 2 of 2 (b, c)");
        assert_eq!(record("6", &["b"]).in_words(), "leader a, b");
    }
}
