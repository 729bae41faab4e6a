//! A postmaster with everything below it: starts, recovers, streams, promotes, acknowledges, ends.

use patroni::keeper::core::End;
use patroni::keeper::protocol::{Permission, StopMode};
use std::collections::BTreeMap;

use patroni::model::{ClusterState, StandbyNames, Upstream};

use super::disk::Branch;
use super::world::{Event, MS, Ns, SEC, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Standby,
    Primary,
}

/// A postmaster, or what one has left.
#[derive(Clone, Debug)]
pub struct Pg {
    pub pid: i32,
    pub life: u64,
    pub phase: Phase,
    pub stop: Option<StopMode>,
    /// The postmaster itself is gone; backends are left until then.
    pub dead: bool,
    pub orphans_until: Ns,
    pub promoting: bool,
    /// What its configuration names, as it was read last.
    pub upstream: Upstream,
    /// Whom it streams from: pod, life of the postmaster there.
    pub streams: Option<(usize, u64)>,
    wal_at: Ns,
    pub began: Ns,
    /// A backend is stuck and hears no signal but the last.
    pub deaf: bool,
    /// Started without a fence, for a new cluster.
    pub unfenced: bool,
    /// Promoted by somebody who is not the keeper, since then.
    pub by_hand: Option<Ns>,
    /// Whom its commits wait for, as it has read its files last.
    pub names: StandbyNames,
    /// Commits that wait, by where they end.
    waiting: Vec<u64>,
    /// How far each pod has said that it is.
    reached: BTreeMap<usize, u64>,
}

#[derive(Clone, Copy, Debug)]
pub enum PgEvent {
    Up,
    Promoted,
    Checkpoint,
    Exits(End),
    OrphansGone,
    Connects,
    Wal {
        from: usize,
        life: u64,
        end: u64,
    },
    /// A standby reports how far it is.
    Reached {
        by: usize,
        its: u64,
        end: u64,
    },
    /// The files are read again.
    Reads,
}

impl World {
    pub fn pg_event(&mut self, pod: usize, delay: Ns, what: PgEvent) {
        let Some(life) = self.pods[pod].pg.as_ref().map(|p| p.life) else { return };
        self.after(delay, Event::Postgres { pod, life, what });
    }

    /// Is there a server that answers queries?
    pub fn answers(&self, pod: usize) -> bool {
        let p = &self.pods[pod];
        let up = |g: &Pg| !g.dead && g.stop.is_none() && g.phase != Phase::Starting;
        self.t >= p.pg_frozen && p.pg.as_ref().is_some_and(up)
    }
    pub fn writable(&self, pod: usize) -> bool {
        self.answers(pod) && self.pods[pod].pg.as_ref().is_some_and(|g| g.phase == Phase::Primary)
    }

    /// Begins a postmaster; the files fit the role.
    pub fn start_pg(&mut self, pod: usize) -> i32 {
        let life = self.new_life(pod);
        let quiet = self.quiet || !self.plan.slow_starts;
        let t = self.t;
        let p = &mut self.pods[pod];
        let unfenced = matches!(p.keeper.as_ref().map(|k| k.permission), Some(Permission::Unfenced { .. }));
        let deaf = !self.quiet && self.plan.deaf && p.luck.one_in(3);
        p.pids += 1;
        let pid = p.pids;
        let upstream = p.disk.as_ref().map_or(Upstream::Nobody, |d| d.upstream.clone());
        let names = p.disk.as_ref().map_or(StandbyNames::AsConfigured, |d| d.names.clone());
        let crashed = p.disk.as_ref().is_some_and(|d| d.state == ClusterState::InProduction);
        p.let_go = false;
        p.pg = Some(Pg {
            pid,
            life,
            phase: Phase::Starting,
            stop: None,
            dead: false,
            orphans_until: 0,
            promoting: false,
            upstream,
            streams: None,
            wal_at: 0,
            began: t,
            deaf,
            unfenced,
            by_hand: None,
            names,
            waiting: Vec::new(),
            reached: BTreeMap::new(),
        });
        let mut takes = p.luck.between(50 * MS, 800 * MS);
        if crashed {
            takes += p.luck.between(200 * MS, 3 * SEC);
        }
        if !quiet && p.luck.one_in(12) {
            takes += p.luck.between(2 * SEC, 40 * SEC);
        }
        self.pg_event(pod, takes, PgEvent::Up);
        pid
    }

    pub fn postgres(&mut self, pod: usize, life: u64, what: PgEvent) {
        if self.pods[pod].pg.as_ref().is_none_or(|g| g.life != life) {
            return;
        }
        let frozen = self.pods[pod].pg_frozen;
        if self.t < frozen {
            return self.at(frozen, Event::Postgres { pod, life, what });
        }
        match what {
            PgEvent::Up => self.pg_up(pod),
            PgEvent::Promoted => self.pg_promoted(pod),
            PgEvent::Checkpoint => {
                let p = &mut self.pods[pod];
                if let (Some(g), Some(d)) = (&p.pg, &mut p.disk)
                    && g.phase == Phase::Primary
                    && !g.dead
                {
                    d.checkpoint = (d.end, d.timeline());
                }
            }
            PgEvent::Exits(end) => self.pg_exits(pod, end),
            PgEvent::OrphansGone => {
                let gone = self.pods[pod].pg.as_ref().is_some_and(|g| g.dead && self.t >= g.orphans_until);
                if gone {
                    self.pods[pod].pg = None;
                    self.pods[pod].last_death = Some(self.boot(pod).as_nanos());
                }
            }
            PgEvent::Connects => self.pg_connects(pod),
            PgEvent::Wal { from, life, end } => self.wal_arrives(pod, from, life, end),
            PgEvent::Reached { by, its, end } => self.standby_reached(pod, by, its, end),
            PgEvent::Reads => self.pg_reads(pod),
        }
    }

    fn pg_up(&mut self, pod: usize) {
        let p = &mut self.pods[pod];
        let (Some(g), Some(d)) = (&mut p.pg, &mut p.disk) else { return };
        if g.dead || g.phase != Phase::Starting {
            return;
        }
        if self.t < p.full_until {
            return self.pg_event(pod, 0, PgEvent::Exits(End::Code(1)));
        }
        if d.standby_signal {
            g.phase = Phase::Standby;
            d.state = ClusterState::InArchiveRecovery;
            d.checkpoint.1 = d.wal_timeline();
            self.pg_event(pod, 10 * MS, PgEvent::Connects);
        } else {
            g.phase = Phase::Primary;
            d.state = ClusterState::InProduction;
            d.checkpoint = (d.end, d.timeline());
        }
        let phase = self.pods[pod].pg.as_ref().map(|g| g.phase);
        self.note(format!("m{pod} Postgres is up as {phase:?}"));
    }

    /// `promote` was seen.
    pub fn pg_promote(&mut self, pod: usize) {
        let takes = self.pods[pod].luck.between(30 * MS, 900 * MS);
        let Some(g) = self.pods[pod].pg.as_mut().filter(|g| g.phase != Phase::Primary && !g.dead) else { return };
        if !std::mem::replace(&mut g.promoting, true) {
            self.pg_event(pod, takes, PgEvent::Promoted);
        }
    }

    fn pg_promoted(&mut self, pod: usize) {
        let making = self.makings + 1;
        let p = &mut self.pods[pod];
        let by_hand = p.pg.as_ref().is_some_and(|g| g.by_hand.is_some());
        let claim = p.claim.filter(|_| !by_hand);
        let (Some(g), Some(d)) = (&mut p.pg, &mut p.disk) else { return };
        if g.dead || g.stop.is_some() {
            return;
        }
        if g.phase == Phase::Starting {
            return self.pg_event(pod, 500 * MS, PgEvent::Promoted);
        }
        g.phase = Phase::Primary;
        g.streams = None;
        self.makings = making;
        let number = claim.unwrap_or(0).max(d.timeline() + 1);
        let branch = Branch { timeline: number, start: d.end, making };
        d.log.push(branch);
        d.end += 100;
        d.standby_signal = false;
        d.state = ClusterState::InProduction;
        self.note(format!("m{pod} is primary on timeline {} from {}", branch.timeline, branch.start));
        let takes = self.pods[pod].luck.between(200 * MS, 3 * SEC);
        self.pg_event(pod, takes, PgEvent::Checkpoint);
        if by_hand {
            self.judge.by_hand.push(making);
        } else {
            self.promoted(pod);
        }
    }

    /// A signal to the postmaster or to all of it.
    pub fn pg_signal(&mut self, pod: usize, mode: StopMode, everybody: bool) {
        let quiet = self.quiet || !self.plan.slow_stops;
        let t = self.t;
        let p = &mut self.pods[pod];
        let Some(g) = &mut p.pg else { return };
        if mode == StopMode::Kill && everybody {
            g.orphans_until = t;
        }
        if g.dead {
            return self.pg_event(pod, MS, PgEvent::OrphansGone);
        }
        if g.stop.is_some_and(|sent| sent >= mode && mode != StopMode::Kill) {
            return;
        }
        g.stop = Some(mode);
        // Their clients are told that nothing is known.
        g.waiting.clear();
        let demoted = g.phase == Phase::Primary;
        let takes = match mode {
            // PostgreSQL kills children that hear nothing five seconds after an immediate stop.
            StopMode::Smart | StopMode::Fast if g.deaf => p.luck.between(20 * SEC, 60 * SEC),
            StopMode::Immediate if g.deaf => p.luck.between(4 * SEC, 6 * SEC),
            StopMode::Smart | StopMode::Fast if !quiet && p.luck.one_in(10) => p.luck.between(5 * SEC, 120 * SEC),
            StopMode::Smart | StopMode::Fast => p.luck.between(50 * MS, 700 * MS),
            StopMode::Immediate => p.luck.between(5 * MS, 250 * MS),
            StopMode::Kill => p.luck.between(100_000, 3 * MS),
        };
        let end = match mode {
            StopMode::Smart | StopMode::Fast => End::Code(0),
            StopMode::Immediate => End::Code(2),
            StopMode::Kill => End::Signal(9),
        };
        self.pg_event(pod, takes, PgEvent::Exits(end));
        if demoted {
            self.check_demotion(pod, mode);
        }
    }

    fn pg_exits(&mut self, pod: usize, end: End) {
        let t = self.t;
        let Some(g) = self.pods[pod].pg.as_mut().filter(|g| !g.dead) else { return };
        // An order that came later ends it otherwise.
        if end == End::Code(0) && g.stop.is_some_and(|mode| mode > StopMode::Fast) {
            return;
        }
        g.dead = true;
        let pid = g.pid;
        let phase = g.phase;
        let left = g.orphans_until.max(t);
        g.orphans_until = left;
        if let Some(d) = &mut self.pods[pod].disk {
            match (end == End::Code(0), phase) {
                (true, Phase::Primary) => d.shut_down(),
                (true, Phase::Standby) => d.state = ClusterState::ShutDownInRecovery,
                _ => {}
            }
        }
        if end == End::Code(0) && phase == Phase::Primary {
            self.ship(pod);
        }
        self.note(format!("m{pod} postmaster {pid} ended: {end}"));
        self.child_ends(pod, pid, end);
        self.pg_event(pod, (left - t) + 50_000, PgEvent::OrphansGone);
        for other in 0..self.pods.len() {
            if self.pods[other].pg.as_ref().and_then(|g| g.streams).is_some_and(|(from, _)| from == pod) {
                // What is on the way still arrives; then it looks for its upstream again.
                self.pg_event(other, 60 * MS, PgEvent::Connects);
            }
        }
    }

    /// The WAL receiver looks for its upstream.
    fn pg_connects(&mut self, pod: usize) {
        let Some(g) = self.pods[pod].pg.as_ref().filter(|g| g.phase == Phase::Standby && !g.dead) else { return };
        let upstream = match &g.upstream {
            Upstream::Member { name, .. } => self.who(name),
            Upstream::Remote { .. } | Upstream::Nobody => None,
        };
        let held = g.streams;
        let good = upstream.filter(|up| {
            let (mine, theirs) = (&self.pods[pod].disk, &self.pods[*up].disk);
            self.linked(pod, *up)
                && self.answers(*up)
                && matches!((mine, theirs), (Some(mine), Some(theirs)) if mine.is_part_of(theirs))
        });
        let found = good.and_then(|up| Some((up, self.pods[up].pg.as_ref()?.life)));
        if found.is_some() && found == held {
            return self.pg_event(pod, SEC, PgEvent::Connects);
        }
        let again = self.pods[pod].luck.between(900 * MS, 2500 * MS);
        if let Some(g) = &mut self.pods[pod].pg {
            g.streams = found;
        }
        if let Some((up, life)) = found {
            let log = self.pods[up].disk.as_ref().map(|d| (d.log.clone(), d.end));
            if let (Some((log, end)), Some(d)) = (log, &mut self.pods[pod].disk) {
                d.log = log;
                self.send_wal(pod, up, life, end);
            }
            if held.is_none() {
                self.note(format!("m{pod} streams from m{up}"));
            }
        }
        self.pg_event(pod, again, PgEvent::Connects);
    }

    /// New WAL goes to everybody who streams from here.
    pub fn ship(&mut self, pod: usize) {
        let (Some(life), Some(end)) =
            (self.pods[pod].pg.as_ref().map(|g| g.life), self.pods[pod].disk.as_ref().map(|d| d.end))
        else {
            return;
        };
        for to in 0..self.pods.len() {
            if self.pods[to].pg.as_ref().is_some_and(|g| g.streams == Some((pod, life))) {
                self.send_wal(to, pod, life, end);
            }
        }
    }

    fn send_wal(&mut self, to: usize, from: usize, life: u64, end: u64) {
        let t = self.t;
        let slow = !self.quiet && self.plan.slow_network;
        let p = &mut self.pods[to];
        let mut takes = p.net.between(MS / 2, 20 * MS);
        if slow && p.net.one_in(20) {
            takes += p.net.between(50 * MS, 3 * SEC);
        }
        let Some(g) = &mut p.pg else { return };
        g.wal_at = g.wal_at.max(t + takes);
        let delay = g.wal_at - t;
        self.pg_event(to, delay, PgEvent::Wal { from, life, end });
    }

    fn wal_arrives(&mut self, pod: usize, from: usize, life: u64, end: u64) {
        let streaming = self.pods[pod]
            .pg
            .as_ref()
            .is_some_and(|g| g.streams == Some((from, life)) && !g.dead && g.phase == Phase::Standby);
        if !streaming || self.pods[pod].pg.as_ref().is_some_and(|g| g.stop.is_some()) {
            return;
        }
        if !self.linked(pod, from) {
            if let Some(g) = &mut self.pods[pod].pg {
                g.streams = None;
            }
            return;
        }
        let theirs = self.pods[from].disk.as_ref().map(|d| (d.branch(), d.log.clone()));
        let Some(mine) = &mut self.pods[pod].disk else { return };
        match theirs {
            Some((branch, log)) if branch != mine.branch() => {
                let there = super::disk::Disk { log, end: u64::MAX, ..mine.clone() };
                if mine.common(&there) == mine.end {
                    mine.log = there.log;
                    mine.end = mine.end.max(end);
                }
            }
            _ => mine.end = mine.end.max(end),
        }
        self.tell_reached(pod, from);
        self.ship(pod);
    }

    /// A statement in flight is answered at the thaw, before any signal that came meanwhile is heard.
    pub fn pg_thaws(&mut self, pod: usize) {
        let p = &mut self.pods[pod];
        if self.t < p.pg_frozen || !std::mem::take(&mut p.in_flight) {
            return;
        }
        if p.pg.as_ref().is_some_and(|g| g.phase == Phase::Primary && !g.dead) {
            self.commits(pod);
        }
    }

    fn commits(&mut self, pod: usize) {
        let grown = self.pods[pod].luck.below(20_000);
        let p = &mut self.pods[pod];
        let (Some(g), Some(d)) = (&mut p.pg, &mut p.disk) else { return };
        d.end += grown;
        g.waiting.push(d.end);
        self.release(pod);
        self.ship(pod);
    }

    /// A standby tells whom it streams from how far it is.
    fn tell_reached(&mut self, pod: usize, to: usize) {
        let p = &mut self.pods[pod];
        let takes = p.net.between(MS / 2, 10 * MS);
        let (Some(its), Some(end)) = (p.pg.as_ref().map(|g| g.life), p.disk.as_ref().map(|d| d.end)) else { return };
        self.pg_event(to, takes, PgEvent::Reached { by: pod, its, end });
    }

    fn standby_reached(&mut self, pod: usize, by: usize, its: u64, end: u64) {
        if !self.streams_to(by, pod) || self.pods[by].pg.as_ref().is_none_or(|g| g.life != its) {
            return;
        }
        if let Some(g) = &mut self.pods[pod].pg {
            g.reached.insert(by, end);
        }
        self.release(pod);
    }

    fn streams_to(&self, by: usize, pod: usize) -> bool {
        let life = self.pods[pod].pg.as_ref().map(|g| g.life);
        life.is_some() && self.pods[by].pg.as_ref().and_then(|g| g.streams) == life.map(|life| (pod, life))
    }

    /// How far this standby is, as the server of `pod` knows; `None`: it does not stream from there.
    pub fn known_reached(&self, pod: usize, by: usize) -> Option<u64> {
        let reached = self.pods[pod].pg.as_ref()?.reached.get(&by).copied()?;
        self.streams_to(by, pod).then_some(reached)
    }

    /// Files were written and the postmaster told: its processes read them in their own time.
    pub fn pg_told(&mut self, pod: usize) {
        let takes = self.pods[pod].net.between(MS, 60 * MS);
        self.pg_event(pod, takes, PgEvent::Reads);
    }

    fn pg_reads(&mut self, pod: usize) {
        let p = &mut self.pods[pod];
        if let (Some(g), Some(d)) = (&mut p.pg, &p.disk) {
            g.names = d.names.clone();
        }
        self.release(pod);
    }

    /// Commits that everybody who is named has are acknowledged.
    fn release(&mut self, pod: usize) {
        let Some(g) = self.pods[pod].pg.as_ref().filter(|g| g.phase == Phase::Primary) else { return };
        let upto = match &g.names {
            StandbyNames::AsConfigured => u64::MAX,
            StandbyNames::Placeholder => 0,
            StandbyNames::All(names) => {
                let of = |name| self.who(name).and_then(|by| self.known_reached(pod, by)).unwrap_or(0);
                names.iter().map(of).min().unwrap_or(u64::MAX)
            }
            StandbyNames::Any(waited) => {
                let of = |name| self.who(name).and_then(|by| self.known_reached(pod, by)).unwrap_or(0);
                let mut reached: Vec<u64> = waited.names.iter().map(of).collect();
                reached.sort_unstable_by(|a, b| b.cmp(a));
                waited.number.checked_sub(1).map_or(u64::MAX, |last| reached[last])
            }
        };
        let Some(g) = &mut self.pods[pod].pg else { return };
        let done: Vec<u64> = g.waiting.extract_if(.., |end| *end <= upto).collect();
        for end in done {
            self.acknowledged(pod, end);
        }
    }

    /// A client that writes wherever it is let.
    pub fn client(&mut self, pod: usize) {
        let next = self.pods[pod].luck.between(100 * MS, 400 * MS);
        self.after(next, Event::Client(pod));
        if self.t < self.pods[pod].pg_frozen {
            return;
        }
        let Some(g) = &self.pods[pod].pg else { return };
        let stuck = g.deaf && !g.dead && g.stop.is_some_and(|mode| mode < StopMode::Kill);
        let backend = (stuck || g.dead && self.t < g.orphans_until) && g.phase == Phase::Primary;
        if self.writable(pod) || backend {
            self.commits(pod);
        }
    }
}
