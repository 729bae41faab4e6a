//! The checkers: they see the whole cluster, and nothing of the product but what it shows.

use patroni::dcs::schema;
use patroni::keeper::protocol::{Permission, Role, StopMode, UnfencedReason};
use patroni::model::{LeaderRecord, SyncRecord};

use super::disk::{Branch, Disk, Marker};
use super::faults::{CALM, Fault, is_on};
use super::tasks::Work;
use super::world::{MS, Ns, SEC, World};

/// What the checkers remember.
#[derive(Default)]
pub struct Judge {
    /// The newest branch a commit was acknowledged on, and by whom.
    newest: Option<(Branch, usize)>,
    /// When the first lock of all was written.
    pub first_lock: Option<Ns>,
    /// When the store was wiped, or the leader object was.
    pub wiped: Option<Ns>,
    /// The same until the holder of that moment has written it again, and who that was.
    pub silent: Option<(Ns, Option<usize>)>,
    /// A person asked for a failover to somebody who may be behind.
    pub forced: bool,
    /// Something happened whose consequences are known and being mended elsewhere: what follows says nothing new.
    pub known: bool,
    pub acknowledged: u64,
    /// Makings of branches that somebody made behind everybody's back.
    pub by_hand: Vec<u32>,
    /// Numbers that were given twice, after the leader object was gone with the claim in it.
    twins: Vec<u32>,
    /// When the lock was given up last.
    pub released: Ns,
    /// The data as the last acknowledged commit left it.
    acked: Option<Disk>,
    /// In synchronous mode: what nobody may lead without.
    promised: Option<Disk>,
    /// Since when the mode is on, as the store says; `None`: it is off.
    waits_since: Option<Ns>,
    /// Since when more than one pod carries the leader's label.
    labelled: Option<Ns>,
}

/// Two pods carry the leader's label no longer than this while the holder of the lock is well: it takes the other one's away
/// with its next renewal, a loop_wait later at most, and that takes two answers of the API.
const LABELS_SETTLE: Ns = 13 * SEC;

impl World {
    /// `named`: by the leader object of before; it may not have heard of that yet.
    pub fn store_is_wiped(&mut self, named: Option<usize>) {
        let t = self.t;
        let holder = (0..self.pods.len()).find(|i| self.pods[*i].sidecar.as_ref().is_some_and(|s| s.leads_until > t));
        let holder = holder.or(named);
        self.judge.wiped = Some(t);
        self.judge.silent = Some((t, holder));
    }

    /// A request of this pod has landed, whether or not it hears of that: names the leader object it again?
    pub fn leader_is_written(&mut self, pod: usize) {
        if self.judge.silent.is_some_and(|(_, holder)| holder == Some(pod))
            && self.leader_record().is_some_and(|l| l.named() == Some(&self.pods[pod].name))
        {
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
        // Whose clock stood writes a lock again that is long over for everybody else, and may give it up.
        let stood = self.pods.iter().any(|p| p.paused > 0 && t < p.paused + 60 * SEC);
        // In maintenance a lock ends when a person says so, and whoever held it may not have heard of that.
        let by_word = self.judge.forced && self.plan.faults.contains(&Fault::Pause);
        let stood = stood || by_word;
        if let Some(other) = (0..self.pods.len()).find(|i| *i != pod && until(self, *i) > t).filter(|_| !stood) {
            self.violation(format!("S1 m{pod} and m{other} hold unexpired leases"));
        }
    }

    /// At every acknowledged commit: S2, S6, S9.
    pub fn acknowledged(&mut self, pod: usize, end: u64) {
        self.judge.acknowledged += 1;
        self.check_fence_again(pod);
        self.check_writes_of_follower(pod);
        let t = self.t;
        let p = &self.pods[pod];
        let thawing = t >= p.thawed && t < p.thawed + 700 * MS;
        let Some(branch) = p.disk.as_ref().map(|d| d.branch()) else { return };
        let Some(k) = &p.keeper else { return };
        if k.permission == Permission::None && matches!(p.marker, Some(Marker::Bootstrap(_))) {
            // A new cluster that came to nothing: no store has named it, nobody was sent to it.
            return;
        }
        let woke = |p: &super::world::Pod| p.paused > 0 && t < p.paused + 60 * SEC;
        if woke(p) || self.judge.wiped.is_some_and(|at| t < at + 60 * SEC) && self.pods.iter().any(woke) {
            // A clock that stood; and a leader object that was deleted is written again by whoever takes a lease for unexpired
            // that is long over.
            return;
        }
        if p.pg.as_ref().is_some_and(|g| g.by_hand.is_some_and(|since| t < since.max(k.frozen) + 9 * SEC)) {
            // The keeper looks once a second, as soon as it runs, and a slow volume takes its time.
            return;
        }
        let (frozen, beyond, let_go) = (self.keeper_stood(pod), self.beyond_the_kernel(pod), p.let_go);
        let paused = k.permission == Permission::Unfenced { reason: UnfencedReason::Pause };
        if paused {
            if self.judge.forced {
                // A person has said that whoever led before is dead.
                return;
            }
        } else if let Permission::Unfenced { .. } = k.permission {
            // While the scripts of a new cluster run, its sidecar alone ends it, and one that stands, or sees no store, ends
            // nothing. Nobody is sent there before the store names it.
            let stands = p.sidecar.as_ref().is_none_or(|s| {
                s.member.is_none() || t < s.began + 30 * SEC || s.frozen > 0 && t < s.frozen + 30 * SEC
            });
            let stands = stands || p.pg.as_ref().is_some_and(|g| g.stop.is_some());
            if t > k.permitted_at.max(k.frozen) + 50 * SEC && !frozen && !thawing && !let_go && !stands {
                self.violation(format!("S9 m{pod} acknowledges for long without a fence"));
            }
            return;
        }
        if (thawing || frozen && beyond) && !let_go {
            return;
        }
        let now = p.clock.boot(t).as_nanos();
        let over = match k.permission {
            Permission::None => t > k.permitted_at + 2500 * MS,
            Permission::Writer { kill_at, .. } => now > kill_at + 50 * MS,
            Permission::Unfenced { .. } => false,
        };
        let (permission, is_new) = (k.permission, matches!(p.marker, Some(Marker::Bootstrap(_))));
        if over {
            self.violation(format!("S9 m{pod} acknowledges without a permission ({permission:?})"));
        }
        if is_new {
            // A new cluster that waits for its lock: nobody is sent there, and it may come to nothing.
            return;
        }
        self.check_branch(pod, branch);
        self.judge.newest = Some((branch, pod));
        let upto = self.pods[pod].disk.clone().map(|d| Disk { end, ..d });
        self.judge.acked.clone_from(&upto);
        if self.promises(pod) {
            self.judge.promised = upto;
        }
    }

    /// Somebody has switched synchronous mode. Whoever leads hears of it in its own time.
    pub fn commits_are_switched(&mut self, on: bool) {
        self.judge.promised = None;
        // A key that binds still is of a leader that has not heard of the first of two changes.
        self.judge.waits_since = (on && self.key().is_some()).then_some(self.t);
    }

    /// Is this commit one that survives, as synchronous mode says? While the mode is on and was not switched a moment ago,
    /// and the key says who leads.
    fn promises(&self, pod: usize) -> bool {
        let on = self.dynamic().is_some_and(|d| is_on(&d));
        let settled = self.judge.waits_since.is_none_or(|since| self.t > since + 60 * SEC);
        on && settled && self.key().is_some_and(|key| key.leader.as_ref() == Some(&self.pods[pod].name))
    }

    /// The sync key in the store, while it binds.
    fn key(&self) -> Option<SyncRecord> {
        let (kind, _) = self.kind();
        let object = self.store.get(kind, "default", "demo-sync").ok()?;
        let annotations = object["metadata"]["annotations"].as_object()?;
        let annotations = annotations.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
        Some(schema::sync_from("0", &annotations)).filter(|key| key.leader.is_some())
    }

    /// S3 and S4, when a promotion has ended: what was acknowledged in synchronous mode is there, whoever leads.
    fn check_promised(&mut self, pod: usize) {
        let Some(promised) = self.judge.promised.clone() else { return };
        // A person may have named somebody who lacks some of it; a store that lost the key has lost the promise.
        if self.plan.faults.iter().any(|f| matches!(f, Fault::Failover)) || self.judge.wiped.is_some() {
            return;
        }
        let Some(mine) = self.pods[pod].disk.as_ref().map(Disk::before_promotion) else { return };
        if mine.common(&promised) < promised.end {
            let rule = if self.plan.commits.is_some_and(|c| c.quorum) { "S4" } else { "S3" };
            self.violation(format!("{rule} m{pod} leads without a commit that synchronous mode has acknowledged"));
        }
    }

    /// S2 and S6: whoever acknowledges does so on the newest branch there is, and alone.
    fn check_branch(&mut self, pod: usize, branch: Branch) {
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
    }

    /// L2, when a primary is told to stop.
    pub fn check_demotion(&mut self, pod: usize, mode: StopMode) {
        self.check_stop_at_rest(pod, mode);
        // A cluster that began late has to form first, as every other.
        let formed = self.judge.first_lock.is_some_and(|at| self.t > at + CALM);
        if self.plan.outages && formed && self.stays_itself(pod) {
            self.violation(format!("S8 m{pod} is demoted, everybody answers it, and failsafe mode is on"));
        }
        if self.plan.blips && self.t > CALM {
            self.violation(format!("L2 m{pod} is demoted, and the API was never away for long"));
        }
    }

    /// It was the leader before the outage and its member was not asked for anything; everybody's sidecar is there to answer.
    fn stays_itself(&self, pod: usize) -> bool {
        let p = &self.pods[pod];
        let answer = self.pods.iter().all(|p| p.sidecar.as_ref().is_some_and(|s| s.member.is_some()));
        answer && !p.leaving && p.marker.is_none()
    }

    /// L3: at any write, who is labelled as the leader. Services send their clients there.
    pub fn check_labels(&mut self) {
        let Ok(pods) = self.store.list("pods", "default") else { return };
        let leads =
            |pod: &serde_json::Value| matches!(pod["metadata"]["labels"]["role"].as_str(), Some("master" | "primary"));
        let led: Vec<&str> =
            pods.iter().filter(|pod| leads(pod)).filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
        let t = self.t;
        if led.len() < 2 {
            self.judge.labelled = None;
            return;
        }
        let since = *self.judge.labelled.get_or_insert(t);
        let holder = (0..self.pods.len()).find(|i| self.pods[*i].sidecar.as_ref().is_some_and(|s| s.leads_until > t));
        let Some(holder) = holder.filter(|holder| self.holds_well(*holder)) else {
            // Nobody who could take one away; it has its time from the next write on.
            self.judge.labelled = Some(t);
            return;
        };
        if t > since + LABELS_SETTLE {
            self.violation(format!("L3 m{holder} leads, and {} are labelled as leaders for long", led.join(" and ")));
        }
    }

    /// It has held the lock, and nothing kept it from the API.
    fn holds_well(&self, pod: usize) -> bool {
        let p = &self.pods[pod];
        let before = self.t.saturating_sub(LABELS_SETTLE);
        let api = p.api_cut < before && self.refuses_until < before && self.slow_until < before && !self.plan.bad_api;
        let fresh = self.servers.iter().all(|server| server.stalled < before);
        let side = p.sidecar.as_ref().is_some_and(|s| s.frozen < before && s.began < before && s.member.is_some());
        // Whoever hands over renews nothing.
        let side = side && !p.leaving && p.pg.is_some();
        api && fresh && side && !self.plan.stalls
    }

    /// The keeper does not run, or did not a moment ago.
    fn keeper_stood(&self, pod: usize) -> bool {
        let (t, frozen) = (self.t, self.pods[pod].keeper.as_ref().map_or(0, |k| k.frozen));
        t < frozen.saturating_add(300 * MS) && frozen > 0 && t + 120 * SEC > frozen
    }

    /// Not covered: what the kernel cannot end while the keeper does not run. A backend that hears no signal, what a killed
    /// postmaster has left, a new cluster on its way from no fence to one. Covered again where its own member said that no
    /// writer of it lives.
    fn beyond_the_kernel(&self, pod: usize) -> bool {
        let p = &self.pods[pod];
        p.pg.as_ref().is_some_and(|g| g.deaf || g.dead || g.unfenced || p.warden.is_none() && g.stop.is_none())
    }

    /// S5 and S7, when a promotion has ended.
    pub fn promoted(&mut self, pod: usize) {
        // A clock that stood: its lease is over for everybody else.
        let woke = self.t < self.pods[pod].paused + 60 * SEC;
        if let Some(branch) = self.pods[pod].disk.as_ref().map(|d| d.branch()).filter(|b| self.is_second(*b)) {
            if self.judge.wiped.is_none() && !woke {
                self.violation(format!("S6 m{pod} was promoted to a number that is given already"));
            }
            self.judge.twins.push(branch.timeline);
            return;
        }
        if woke {
            return;
        }
        self.check_promised(pod);
        self.check_fitness(pod);
        self.check_promotion_at_rest(pod);
        self.check_promotion_of_follower(pod);
        // Whose clock stood writes a lock again that is long over for everybody else, and may give it up.
        let stood = self.pods.iter().any(|p| p.paused > 0 && self.t < p.paused + 60 * SEC);
        let leases = self.pods[pod].sidecar.as_ref().is_some_and(|s| s.leads_until > self.t);
        if let Some((wiped, holder)) = self.judge.silent.filter(|_| !stood)
            // Whoever held the lock then goes on with it as long as its lease lasts.
            && !(holder == Some(pod) && leases)
            && self.t < wiped + 28 * SEC
            && self.t > wiped + 3 * SEC
            // A promotion that was ordered before ends when Postgres ends it; the lease that allows it is unexpired.
            && self.pods[pod].promote_ordered > wiped
        {
            self.violation(format!("S7 m{pod} promoted {:.1} s after a wipe", (self.t - wiped) as f64 / 1e9));
        }
        let end = self.pods[pod].disk.as_ref().map_or(0, |d| d.branch().start);
        let published = self.published().unwrap_or(0);
        let lag = published.saturating_sub(end);
        // Whom the sync key names has all that was acknowledged, however much was written besides.
        let keyed = self.key().is_some();
        if lag > self.settings.maximum_lag_on_failover && !keyed && !self.judge.forced && self.judge.wiped.is_none() {
            self.violation(format!("S5 m{pod} was promoted {lag} bytes behind the published position"));
        }
    }

    fn is_second(&self, made: Branch) -> bool {
        let all = self.pods.iter().filter_map(|p| p.disk.as_ref()).flat_map(|d| &d.log).copied();
        let newest = self.judge.newest.map(|(branch, _)| branch);
        let by_hand = |b: &Branch| self.judge.by_hand.contains(&b.making);
        all.chain(newest).any(|b| b.making != made.making && b.timeline >= made.timeline && !by_hand(&b))
    }

    pub fn is_known(&mut self, what: &str) {
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
        let data =
            (0..self.pods.len()).find(|i| *i != pod && self.pods[*i].disk.is_some() && self.pods[*i].marker.is_none());
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

    /// S5, S6: who was promoted had not diverged from what was acknowledged last, and has all of the last clean shutdown
    /// if anybody who is well has.
    fn check_fitness(&mut self, pod: usize) {
        if self.judge.forced || self.judge.wiped.is_some() {
            return;
        }
        let Some(mine) = self.pods[pod].disk.as_ref().map(Disk::before_promotion) else { return };
        if let Some(acked) = &self.judge.acked
            && mine.common(acked) < mine.end
            && self.recorded() >= acked.timeline()
            && acked.timeline() > mine.timeline()
        {
            let text = format!("S6 m{pod} leads, and had diverged from timeline {}", acked.timeline());
            return self.violation(text);
        }
        let Some(oath) = self.leader_record().and_then(|l| l.oath().cloned()).filter(|_| self.key().is_none()) else {
            return;
        };
        let has = |d: &Disk| d.wal_timeline() >= oath.timeline.0 && d.end >= oath.position.0 && !d.half;
        if has(&mine) {
            return;
        }
        // One that is away, and had a minute to come.
        let soon = self.t < self.judge.released + 60 * SEC;
        let waited = (0..self.pods.len()).find(|i| {
            let has = self.pods[*i].marker.is_none() && self.pods[*i].disk.as_ref().is_some_and(has);
            *i != pod && has && oath.members.contains(&self.pods[*i].name) && self.pods[*i].sidecar.is_none()
        });
        if let Some(waited) = waited.filter(|_| soon) {
            return self
                .violation(format!("S5 m{pod} does not wait for m{waited}, which has all of the last clean shutdown"));
        }
        let better = (0..self.pods.len())
            .find(|i| *i != pod && self.is_well(*i, pod) && self.pods[*i].disk.as_ref().is_some_and(has));
        // It took the lock before it stood, and went on when others had come.
        let stood = self.pods[pod].keeper.as_ref().is_some_and(|k| k.frozen > 0 && self.t < k.frozen + 5 * SEC);
        if let Some(better) = better.filter(|_| !stood) {
            self.violation(format!("S5 m{pod} leads without all of the last clean shutdown, m{better} has it"));
        }
    }

    /// It has run undisturbed for a while, and can be asked from there.
    fn is_well(&self, pod: usize, from: usize) -> bool {
        let p = &self.pods[pod];
        let before = self.t.saturating_sub(20 * SEC);
        let side = p.sidecar.as_ref().is_some_and(|s| s.frozen < before && s.began < before && s.member.is_some());
        // Whoever hands over renews nothing.
        let side = side && !p.leaving && p.pg.is_some();
        let server = p.pg.as_ref().is_some_and(|g| g.began < before);
        // Who may write nothing says nowhere where it can be asked.
        let link = self.links[pod][from].max(self.links[from][pod]) < before && self.refuses_until < before;
        side && server && link && p.api_cut < before && p.pg_frozen < before && self.answers(pod)
    }

    /// Whom the leader object names.
    pub fn named(&self) -> Option<usize> {
        let leader = self.leader_record()?;
        self.pods.iter().position(|p| leader.named() == Some(&p.name))
    }

    pub fn leader_record(&self) -> Option<LeaderRecord> {
        let (kind, name) = self.kind();
        let object = self.store.get(kind, "default", name).ok()?;
        let annotations = object["metadata"]["annotations"].as_object()?;
        let annotations = annotations.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
        Some(schema::leader_from("0", &annotations, Vec::new(), &mut Vec::new()))
    }

    /// The timeline that the history in the store ends with.
    fn recorded(&self) -> u32 {
        let (kind, _) = self.kind();
        let Ok(object) = self.store.get(kind, "default", "demo-config") else { return 0 };
        let rows = object["metadata"]["annotations"]["history"].as_str().and_then(schema::history_from);
        rows.and_then(|rows| rows.last().map(|row| row.timeline.0 + 1)).unwrap_or(1)
    }

    /// S10, S2: when a postmaster begins.
    pub fn check_start(&mut self, pod: usize, role: Role) {
        self.check_rest(pod);
        let p = &self.pods[pod];
        if p.pg.is_some() {
            return self.violation(format!("S10 two postmasters in m{pod}"));
        }
        if p.disk.as_ref().is_some_and(|d| d.half) {
            return self.violation(format!("S10 m{pod} starts what a rewind has not finished"));
        }
        let Some(k) = &p.keeper else { return };
        if k.programs.values().any(|program| program.work.is_some() && !program.over) {
            return self.violation(format!("S10 m{pod} starts while a program works on its data"));
        }
        let (Permission::Writer { .. }, Role::Primary) = (k.permission, role) else { return };
        if p.last_death.is_some_and(|death| k.evidence <= death) {
            self.violation(format!("S2 a primary starts in m{pod} without a renewal since the last one died"));
        }
    }

    /// S10: when a program begins on a data directory.
    pub fn check_program(&mut self, pod: usize, work: &Work) {
        let p = &self.pods[pod];
        if p.pg.is_some() {
            self.violation(format!("S10 {work:?} begins under the running server of m{pod}"));
        } else if p.keeper.iter().flat_map(|k| k.programs.values()).any(|one| one.work.is_some() && !one.over) {
            self.violation(format!("S10 {work:?} begins in m{pod} beside another program"));
        }
    }

    /// S10: what is whole is removed only beside a leader that answers.
    pub fn check_asked(&mut self, pod: usize) {
        let whole = self.pods[pod].disk.is_some() && self.pods[pod].marker.is_none();
        let leader = (0..self.pods.len()).any(|i| i != pod && self.linked(pod, i) && self.leads_for(pod, i));
        if whole && !leader {
            self.violation(format!("S10 m{pod} removes its data, and no leader answers"));
        }
    }

    /// S11: what was asked for is over.
    fn check_requests(&mut self) {
        let (kind, _) = self.kind();
        let Ok(object) = self.store.get(kind, "default", "demo-failover") else { return };
        let stands = ["leader", "member"].iter().find_map(|key| object["metadata"]["annotations"][key].as_str());
        if let Some(who) = stands.filter(|who| !who.is_empty()) {
            self.violation(format!("S11 a request about {who} stands for ever"));
        }
    }

    /// L1: one primary, everybody else streams from it, and everybody's data is part of its own.
    pub fn healthy(&mut self) {
        let n = self.pods.len();
        let primaries: Vec<usize> = (0..n).filter(|i| self.writable(*i)).collect();
        let idle: Vec<String> = (0..n)
            .filter(|i| !self.writable(*i) && !self.streams(*i, primaries.first()) && !self.needs_a_person(*i))
            .filter(|i| primaries.first().is_none_or(|leader| !self.looks_the_same(*i, *leader)))
            .map(|i| format!("m{i} ({})", self.state_of(i)))
            .collect();
        if primaries.is_empty() && idle.iter().any(|why| why.contains("accepts the loss")) {
            // Who is unfit by its history makes others yield all the same.
            self.is_known("a member that may not lead is waited for");
        }
        if primaries.is_empty() && (0..n).all(|i| self.needs_a_person(i)) {
            // Each pod was made again in the middle of its own initdb: what is left is somebody's, as far as a program knows.
            self.is_known("every member waits for a person");
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
        self.check_requests();
    }

    /// The unfinished new cluster of another pod: only a person says that nothing in it is needed. The state names what to
    /// remove.
    fn needs_a_person(&self, pod: usize) -> bool {
        let p = &self.pods[pod];
        matches!(&p.marker, Some(Marker::Bootstrap(of)) if p.disk.is_some() && *of != p.uid)
    }

    /// It was promoted by hand where the leader's timeline begins, and to the same number while nobody could ask it, or the
    /// claim of the number went with the leader object before anybody who is left had seen it: two branches whose history
    /// files say the same. Only the WAL itself differs; a person makes a new copy.
    fn looks_the_same(&self, pod: usize, leader: usize) -> bool {
        let (Some(mine), Some(theirs)) = (&self.pods[pod].disk, &self.pods[leader].disk) else { return false };
        let named = |d: &Disk| d.log.iter().map(|b| (b.timeline, b.start)).collect::<Vec<_>>();
        let twin = |b: &Branch| self.judge.by_hand.contains(&b.making) || self.judge.twins.contains(&b.timeline);
        mine.log.iter().any(|b| twin(b) && !theirs.log.contains(b)) && named(theirs).starts_with(&named(mine))
    }

    fn streams(&self, pod: usize, leader: Option<&usize>) -> bool {
        let Some((up, life)) = self.pods[pod].pg.as_ref().and_then(|g| g.streams) else { return false };
        leader == Some(&up)
            && self.answers(pod)
            && self.answers(up)
            && self.pods[up].pg.as_ref().is_some_and(|g| g.life == life)
    }

    fn state_of(&self, pod: usize) -> String {
        let reason = self.pods[pod].sidecar.as_ref().and_then(|s| s.member.as_ref()).map(|m| m.snapshot().reason);
        reason.unwrap_or_else(|| "no member".to_owned())
    }
}
