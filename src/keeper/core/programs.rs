//! Programs run for the sidecar: their ids, their limit, their slots, and which of them end with their session.

use std::collections::{BTreeMap, BTreeSet};

use super::session::Asker;
use super::{Core, End, Out, Spawn, Target, Ticket};
use crate::keeper::protocol::{Kind, Living, Program, Refusal, StopMode};
use crate::mutant::{self, Mutant};

/// Programs at a time; a sidecar runs one long task, a callback and a helper or two.
const PROGRAMS_MAX: usize = 16;

#[derive(Debug)]
struct Run {
    kind: Kind,
    slot: Option<String>,
    session: u64,
    /// `None`: it is being started.
    pid: Option<i32>,
    end: Option<End>,
    /// It is to end with everything below it.
    killed: bool,
    /// Of a killed one: processes below it are left.
    left: bool,
    drained: bool,
}

impl Run {
    /// Nothing of it runs. What a program leaves behind that ended by itself is its own business.
    fn over(&self) -> bool {
        self.end.is_some() && !(self.killed && self.left)
    }
}

/// All programs that are not over.
#[derive(Debug, Default)]
pub(super) struct Programs {
    runs: BTreeMap<u64, Run>,
    highest: u64,
}

impl Programs {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn next_run(&self) -> u64 {
        self.highest + 1
    }

    pub fn living(&self) -> Vec<Living> {
        let living = self.runs.iter().filter(|(_, r)| !r.over());
        living.map(|(run, r)| Living { run: *run, kind: r.kind, ending: r.killed }).collect()
    }

    /// Ends all that are chosen; who already ends, goes on ending.
    pub fn kill_where(&mut self, mut chosen: impl FnMut(u64) -> bool) {
        for (run, r) in &mut self.runs {
            if r.end.is_none() && !r.killed && chosen(*run) {
                r.killed = true;
                r.left = true;
            }
        }
    }

    /// The runs that end when this session opens.
    pub fn superseded_by(&self, session: u64) -> BTreeSet<u64> {
        let session = if mutant::is(Mutant::OldProgramsGoOn) { 0 } else { session };
        let ends = |r: &Run| r.session < session && r.end.is_none() && !r.kind.outlives_its_session();
        self.runs.iter().filter(|(_, r)| ends(r)).map(|(run, _)| *run).collect()
    }

    /// Something was killed and is not over.
    pub fn dying(&self) -> bool {
        self.runs.values().any(|r| r.killed && r.pid.is_some() && !r.over())
    }

    /// Start, removal and fill wait while one of these is left.
    pub fn ending(&self) -> bool {
        self.runs.values().any(|r| r.killed && !r.over() && r.kind != Kind::Callback)
    }

    /// Killed ones with their first process.
    pub fn to_kill(&self) -> Vec<(u64, i32)> {
        let dying = self.runs.iter().filter(|(_, r)| r.killed && !r.over());
        dying.filter_map(|(run, r)| Some((*run, r.pid?))).collect()
    }

    /// A living program that changes a data directory.
    pub fn on_data(&self) -> Option<u64> {
        self.runs.iter().find(|(_, r)| r.kind.changes_data() && !r.over()).map(|(run, _)| *run)
    }

    /// What is left counts from the moment the first process is reaped: until then it may still make more.
    pub fn left(&mut self, runs: &BTreeSet<u64>) {
        for (run, r) in &mut self.runs {
            if r.end.is_some() {
                r.left = runs.contains(run);
            }
        }
    }

    pub fn reaped(&mut self, pid: i32, end: End) {
        if let Some(r) = self.runs.values_mut().find(|r| r.pid == Some(pid) && r.end.is_none()) {
            r.end = Some(end);
        }
    }

    pub fn drained(&mut self, run: u64) {
        if let Some(r) = self.runs.get_mut(&run) {
            r.drained = true;
        }
    }

    /// Takes out what is over and has said everything.
    pub fn take_finished(&mut self) -> Vec<(u64, End)> {
        let finished: Vec<(u64, End)> = self
            .runs
            .iter()
            .filter(|(_, r)| r.over() && r.drained)
            .filter_map(|(run, r)| Some((*run, r.end?)))
            .collect();
        for (run, _) in &finished {
            self.runs.remove(run);
        }
        finished
    }
}

impl Core {
    /// The id is used up by the request, whatever becomes of it.
    pub(super) fn use_id(&mut self, run: u64) -> Result<(), String> {
        if run <= self.programs.highest {
            return Err(format!("run {run} was used already: the next one is {}", self.programs.next_run()));
        }
        self.programs.highest = run;
        Ok(())
    }

    pub(super) fn run(&mut self, asker: Asker, run: u64, kind: Kind, program: Program) {
        if self.programs.runs.len() >= PROGRAMS_MAX {
            return self.refuse(asker, Refusal::Busy, format!("{PROGRAMS_MAX} programs are running already"));
        }
        if kind.changes_data() {
            if let Some(other) = self.programs.on_data() {
                return self.refuse(asker, Refusal::Busy, format!("run {other} works on a data directory"));
            }
            if self.postmaster.is_some() {
                let why = format!("a postmaster is running, or is not dead yet: no {kind:?} beside it");
                return self.refuse(asker, Refusal::Running, why);
            }
        }
        if program.slot.is_some() {
            let same: BTreeSet<u64> =
                self.programs.runs.iter().filter(|(_, r)| r.slot == program.slot).map(|(run, _)| *run).collect();
            self.kill_programs(|run| same.contains(&run));
        }
        let made = Run {
            kind,
            slot: program.slot.clone(),
            session: self.generation,
            pid: None,
            end: None,
            killed: false,
            left: false,
            drained: false,
        };
        self.programs.runs.insert(run, made);
        let ticket = self.ticket();
        self.spawning.insert(ticket, (asker, run));
        self.out.push(Out::Spawn { ticket, what: Spawn::Program { run, kind, program } });
    }

    pub(super) fn program_spawned(&mut self, ticket: Ticket, result: Result<i32, String>) {
        let Some((asker, run)) = self.spawning.remove(&ticket) else { return };
        match result {
            Ok(pid) => {
                if let Some(r) = self.programs.runs.get_mut(&run) {
                    r.pid = Some(pid);
                    if r.killed {
                        self.out.push(Out::Kill { target: Target::Run { run, pid }, mode: StopMode::Kill });
                    }
                }
                self.done(asker);
            }
            Err(why) => {
                self.programs.runs.remove(&run);
                self.refuse(asker, Refusal::Other, why);
            }
        }
    }

    pub(super) fn cancel(&mut self, asker: Asker, run: u64) {
        self.drop_waiting_run(run);
        self.kill_programs(|r| r == run);
        self.done(asker);
    }

    /// Ends programs at once; what is left of them is looked for, and killed again, until nothing is.
    pub(super) fn kill_programs(&mut self, chosen: impl FnMut(u64) -> bool) {
        let before: BTreeSet<(u64, i32)> = self.programs.to_kill().into_iter().collect();
        self.programs.kill_where(chosen);
        let fresh = self.programs.to_kill().into_iter().filter(|each| !before.contains(each)).collect();
        self.kill_runs(fresh);
    }
}
