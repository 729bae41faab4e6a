//! The checkers: they see the whole cluster, and nothing of the product but what it shows.

use patroni::keeper::protocol::Permission;

use super::disk::Branch;
use super::world::{MS, Ns, SEC, World};

/// What the checkers remember.
#[derive(Default)]
pub struct Judge {
    /// The newest branch a commit was acknowledged on, and by whom.
    newest: Option<(Branch, usize)>,
    /// When the store was wiped, or the leader object was.
    pub wiped: Option<Ns>,
    /// The same until the holder of that moment has written it again, and who that was.
    pub silent: Option<(Ns, Option<usize>)>,
    /// A person asked for a failover to somebody who may be behind.
    pub forced: bool,
    /// Something happened whose consequences are known and being mended elsewhere: what follows says nothing new.
    pub known: bool,
    pub acknowledged: u64,
}

impl World {
    pub fn store_is_wiped(&mut self) {
        let t = self.t;
        let holder = (0..self.pods.len()).find(|i| self.pods[*i].sidecar.as_ref().is_some_and(|s| s.leads_until > t));
        self.judge.wiped = Some(t);
        self.judge.silent = Some((t, holder));
    }

    pub fn leader_is_written(&mut self, pod: usize) {
        if self.judge.silent.is_some_and(|(_, holder)| holder == Some(pod)) {
            self.judge.silent = None;
        }
    }

    /// S1: one unexpired lease, each by its holder's own clock. Who is dead holds nothing.
    pub fn check_lease(&mut self, pod: usize) {
        let t = self.t;
        let until = |w: &World, i: usize| w.pods[i].sidecar.as_ref().map_or(0, |s| s.leads_until);
        if until(self, pod) <= t {
            return;
        }
        if let Some(other) = (0..self.pods.len()).find(|i| *i != pod && until(self, *i) > t) {
            self.violation(format!("S1 m{pod} and m{other} hold unexpired leases"));
        }
    }

    /// At every acknowledged commit: S2, S6, S9.
    pub fn acknowledged(&mut self, pod: usize) {
        self.judge.acknowledged += 1;
        let t = self.t;
        let p = &self.pods[pod];
        let thawing = t >= p.thawed && t < p.thawed + 700 * MS;
        let Some(branch) = p.disk.as_ref().map(|d| d.branch()) else { return };
        let Some(k) = &p.keeper else { return };
        // Not covered before there is a warden: a keeper that does not run (design §7).
        let frozen = t < k.frozen + 300 * MS && k.frozen > 0 && t + 120 * SEC > k.frozen;
        if let Permission::Unfenced { .. } = k.permission {
            return;
        }
        if thawing || frozen {
            return;
        }
        let now = p.clock.boot(t).as_nanos();
        let over = match k.permission {
            Permission::None => t > k.permitted_at + 2500 * MS,
            Permission::Writer { kill_at, .. } => now > kill_at + 50 * MS,
            Permission::Unfenced { .. } => false,
        };
        if over {
            self.violation(format!("S9 m{pod} acknowledges without a permission ({:?})", k.permission));
        }
        match self.judge.newest {
            Some((newest, who)) if newest.making == branch.making && who != pod => {
                self.violation(format!("S2 m{pod} and m{who} both acknowledge on timeline {}", branch.timeline));
            }
            Some((newest, who)) if newest.making > branch.making => {
                self.violation(format!(
                    "S2 m{pod} acknowledges on timeline {}, m{who} has done so on {}",
                    branch.timeline, newest.timeline
                ));
            }
            Some((newest, who)) if newest.making < branch.making && newest.timeline >= branch.timeline => {
                let alone = (0..self.pods.len()).all(|i| i == pod || !self.writable(i));
                if self.judge.wiped.is_none() || !alone {
                    self.violation(format!(
                        "S6 m{pod} acknowledges on a new timeline {}, m{who} has done so on {}",
                        branch.timeline, newest.timeline
                    ));
                }
            }
            _ => {}
        }
        self.judge.newest = Some((branch, pod));
    }

    /// S5 and S7, when a promotion has ended.
    pub fn promoted(&mut self, pod: usize) {
        if self.pods[pod].disk.as_ref().is_some_and(|d| self.is_second(d.branch())) {
            // Nobody claims the number of a timeline before a promotion.
            return self.is_known("a timeline's number was given twice");
        }
        if let Some((wiped, _)) = self.judge.silent
            && self.t < wiped + 28 * SEC
            && self.t > wiped + 3 * SEC
        {
            self.violation(format!("S7 m{pod} promoted {:.1} s after a wipe", (self.t - wiped) as f64 / 1e9));
        }
        let end = self.pods[pod].disk.as_ref().map_or(0, |d| d.branch().start);
        let published = self.published().unwrap_or(0);
        let lag = published.saturating_sub(end);
        if lag > self.settings.maximum_lag_on_failover && !self.judge.forced && self.judge.wiped.is_none() {
            self.violation(format!("S5 m{pod} was promoted {lag} bytes behind the published position"));
        }
    }

    fn is_second(&self, made: Branch) -> bool {
        let all = self.pods.iter().filter_map(|p| p.disk.as_ref()).flat_map(|d| &d.log).copied();
        let newest = self.judge.newest.map(|(branch, _)| branch);
        all.chain(newest).any(|b| b.making != made.making && b.timeline >= made.timeline)
    }

    fn is_known(&mut self, what: &str) {
        self.note(format!("known: {what}"));
        if std::env::var_os("SIM_STRICT").is_none() {
            self.judge.known = true;
            self.ended = true;
        }
    }

    /// The published position, while somebody is named as the leader.
    pub fn published(&self) -> Option<u64> {
        let (kind, name) = if self.endpoints { ("endpoints", "demo") } else { ("configmaps", "demo-leader") };
        let object = self.store.get(kind, "default", name).ok()?;
        let said = &object["metadata"]["annotations"];
        said["leader"].as_str()?;
        Some(said["optime"].as_str().and_then(|o| o.parse().ok()).unwrap_or(0))
    }

    /// S7 when initdb begins.
    pub fn check_initdb(&mut self, pod: usize) {
        let data = (0..self.pods.len()).find(|i| *i != pod && self.pods[*i].disk.is_some());
        if let Some(other) = data {
            self.violation(format!("S7 m{pod} runs initdb, m{other} has data"));
        }
    }

    /// S10 when data goes: not the last copy, and only beside a living primary.
    pub fn check_removal(&mut self, pod: usize, why: &str) {
        let Some(mine) = &self.pods[pod].disk else { return };
        if self.pods[pod].marker.is_some() {
            return;
        }
        let same = |i: usize| self.pods[i].disk.as_ref().is_some_and(|d| d.system_id == mine.system_id);
        if !(0..self.pods.len()).any(|i| i != pod && same(i)) {
            self.violation(format!("S10 m{pod} loses the last copy: {why}"));
        }
    }

    /// L1: one primary, everybody else streams from it, and everybody's data is part of its own.
    pub fn healthy(&mut self) {
        let n = self.pods.len();
        let primaries: Vec<usize> = (0..n).filter(|i| self.writable(*i)).collect();
        let idle: Vec<String> = (0..n)
            .filter(|i| !self.writable(*i) && !self.streams(*i))
            .map(|i| format!("m{i} ({})", self.state_of(i)))
            .collect();
        if primaries.is_empty() && idle.iter().any(|why| why.contains("accepts the loss")) {
            // Who is unfit by its history makes others yield all the same.
            self.is_known("a member that may not lead is waited for");
        }
        if !self.judge.known && (primaries.len() != 1 || !idle.is_empty()) {
            for i in 0..n {
                let p = &self.pods[i];
                let log: Vec<_> = p.disk.iter().flat_map(|d| &d.log).rev().take(4).collect();
                let line = format!("m{i} end {:?} {:?} {log:?}", p.disk.as_ref().map(|d| d.end), p.pg);
                self.note(line);
            }
            self.violation(format!("L1 primaries {primaries:?}, not streaming: {idle:?}"));
        }
    }

    fn streams(&self, pod: usize) -> bool {
        let Some((up, life)) = self.pods[pod].pg.as_ref().and_then(|g| g.streams) else { return false };
        self.answers(pod) && self.answers(up) && self.pods[up].pg.as_ref().is_some_and(|g| g.life == life)
    }

    fn state_of(&self, pod: usize) -> String {
        let reason = self.pods[pod].sidecar.as_ref().and_then(|s| s.member.as_ref()).map(|m| m.snapshot().reason);
        reason.unwrap_or_else(|| "no member".to_owned())
    }
}
