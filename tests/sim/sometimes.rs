//! What has to be reached sometimes: every kind of effect, and every reason that a decision gives. A path that no seed takes
//! is one that nobody has tried.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use patroni::member::Effect;

/// Seeds in which it must be seen.
const SEEDS_LEAST: u32 = 3;

/// Not reached here, and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("new standby", "no cluster begins as a standby cluster; a scenario and a cluster test do"),
    ("Script", "no scripts in the simulation"),
    (
        "starting it again with the settings of its leader",
        "no parameters in the simulation; a scenario and a cluster test take it",
    ),
    ("PendingRestart", "asked after a reload of changed parameters; the model has none"),
    ("login", "the model lets everybody in"),
    ("end of recovery after bootstrap", "no custom bootstrap"),
    ("): starting it again with higher settings", "no custom bootstrap; a scenario takes it"),
    (": SELECT pg_wal_replay_resume() ends the pause", "no custom bootstrap; a scenario takes it"),
    ("recovery is paused", "no custom bootstrap; a scenario takes it"),
    ("the recovery of the new cluster", "no custom bootstrap; a scenario and a cluster test take it"),
    ("no usable data directory", "every other state of a directory is decided before"),
    ("not initializing a cluster", "the configuration asks for nothing that is refused"),
    ("somebody is initializing the cluster", "every initializer leaves its mark"),
    ("makes a new copy of", "the flags that remove are set"),
    ("restoring", "a store that lost `initialize` belongs to the faults that are known (`StoreWiped`)"),
    ("nofailover", "no tags in the simulation"),
    ("pre-promote", "no scripts in the simulation"),
    ("bootstrap section", "every member may initialize"),
    ("unsupported", "the configuration asks for nothing that is refused"),
    ("data dir empty and currently leader", "nobody takes the data of a leader away"),
    (
        "took over the initialization",
        "a claim is taken over after a ttl, and a program that long is rare; a scenario takes it",
    ),
    ("because failover is not possible:", "a start of many minutes while nobody else can lead; scenarios take it"),
    (
        "; the store names this data",
        "a write lands while a bootstrap is given up: once in thousands of seeds; unit tests take it",
    ),
    (": going on as an ordinary member", "the same, before it is given up"),
    (
        "giving the lock up: the promotion failed",
        "three failed promotions in a row; a scenario and a unit test take it",
    ),
    (
        "my timeline has ended and WAL of it still comes, starting",
        "a receiver that does not end within five seconds of its upstream; a scenario takes it",
    ),
    (
        "giving the lock back:",
        "the sync key changes hands between the taking of the lock and the promotion; a scenario takes it",
    ),
    ("over the one of an earlier cluster", "there is one cluster"),
    ("the hand-over is given up", "a switchover to anybody in the moment of a pause; a scenario takes it"),
    (
        "removed leader lock because postgres is not running as primary",
        "a standby keeps no lock that it was not promoted with; a scenario takes it",
    ),
    ("no data directory", "while a copy is made there is one"),
    ("system ID mismatch: the store says", "nobody takes the data of another cluster; a scenario takes it"),
    (
        "demoting self because the lock could not be renewed after",
        "an outage that lasts from a resume until the moment of demotion; a scenario takes it",
    ),
    ("reinitialize: the keeper does not answer", "a person's wish within the seconds in which a keeper stands"),
];

const DECISIONS: [&str; 11] = [
    include_str!("../../src/decide/bootstrap.rs"),
    include_str!("../../src/decide/failsafe.rs"),
    include_str!("../../src/decide/leader.rs"),
    include_str!("../../src/decide/mod.rs"),
    include_str!("../../src/decide/pause.rs"),
    include_str!("../../src/decide/race.rs"),
    include_str!("../../src/decide/recover.rs"),
    include_str!("../../src/decide/replica.rs"),
    include_str!("../../src/decide/requests.rs"),
    include_str!("../../src/decide/rewind.rs"),
    include_str!("../../src/decide/sync.rs"),
];

/// Of one run, or of many: in how many runs each thing was seen.
#[derive(Default)]
pub struct Sometimes {
    effects: BTreeMap<&'static str, u32>,
    reasons: BTreeMap<String, u32>,
}

impl Sometimes {
    pub fn effect(&mut self, effect: &Effect) {
        self.effects.insert(name_of(effect), 1);
    }
    /// A line of the log: the reason of a decision is one when it changes.
    pub fn line(&mut self, text: &str) {
        if !self.reasons.contains_key(text) {
            self.reasons.insert(text.to_owned(), 1);
        }
    }
    pub fn add(&mut self, run: &Sometimes) {
        for name in run.effects.keys() {
            *self.effects.entry(name).or_default() += 1;
        }
        for needle in NEEDLES.iter() {
            let seen = self.reasons.get(*needle).copied().unwrap_or(0);
            // What was seen often enough is not looked for any more.
            if seen < SEEDS_LEAST && run.reasons.keys().any(|text| text.contains(needle)) {
                self.reasons.insert((*needle).to_owned(), seen + 1);
            }
        }
    }
    /// What was seen too rarely.
    pub fn never(&self) -> Vec<String> {
        let effects = EFFECTS.iter().filter(|e| self.effects.get(*e).is_none_or(|n| *n < SEEDS_LEAST));
        let reasons = NEEDLES.iter().filter(|n| self.reasons.get(**n).is_none_or(|n| *n < SEEDS_LEAST));
        let told = |text: &&str| !EXCEPTIONS.iter().any(|(word, _)| text.contains(word));
        effects.chain(reasons).copied().filter(told).map(str::to_owned).collect()
    }
}

static NEEDLES: LazyLock<Vec<&str>> = LazyLock::new(|| needles().collect());

/// The longest piece without a placeholder of every text that a decision waits with.
fn needles() -> impl Iterator<Item = &'static str> {
    let code = DECISIONS.iter().map(|text| text.split("#[cfg(test)]").next().unwrap_or(text));
    let calls = code.flat_map(|text| text.split(".wait(").skip(1));
    calls.filter_map(|call| {
        let call = call.trim_start().trim_start_matches("format!(").trim_start();
        let text = call.strip_prefix('"')?;
        let text = text.split('"').next()?;
        text.split(['{', '}', '\\']).step_by(2).max_by_key(|piece| piece.len()).map(str::trim)
    })
}

macro_rules! effects {
    ($($name:ident),+ $(,)?) => {
        const EFFECTS: &[&str] = &[$(stringify!($name)),+];
        fn name_of(effect: &Effect) -> &'static str {
            match effect { $(Effect::$name { .. } => stringify!($name)),+ }
        }
    };
}

effects! {
    ReadLeader, ReadConfig, ReadSync, WriteLeader, ReadPod, WriteStore, Publish, StripLabels, AskPeers, AskFailsafe, Permit, Stop, Start, Promote, Script, Task,
    Cancel, Probe, Look, Compare, Checkpoint, SyncSlots, PendingRestart, ReadHistory, Reconfigure, SaveFiles, EndBootstrap,
    KeepPublished, Configure, FeedWatchdog, DisarmWatchdog, LookAtWatchdog, Callback, Answer, Exit,
}
