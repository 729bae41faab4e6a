//! The life of the one postmaster: asked for, started, watched, promoted, ended, and dead only when nothing of it is left.

use super::deadman::Warden;
use super::session::Asker;
use super::{Core, End, Facts, Level, Out, SECOND, Spawn, Target, Ticket, fence, target_of};
use crate::keeper::protocol::{Event, Fence, Permission, Program, Refusal, Role, StopMode};
use crate::mutant::{self, Mutant};

/// Facts older than this prove nothing: looks are a second apart, and a look that takes longer hangs.
const FRESH: u64 = 2 * SECOND;
/// A warden does nothing but answer: without an answer by then there is no promotion.
const ARMS: u64 = SECOND;
/// What a cleanly ended postmaster leaves (its logger writes the last lines) has this long before it is killed.
const LEFTOVERS_GRACE: u64 = 200_000_000;

/// A postmaster, or what is left of one.
#[derive(Debug)]
pub(super) struct Postmaster {
    /// `None`: it is being started.
    pub pid: Option<i32>,
    /// Who is to hear of the start.
    pub starting: Option<(Ticket, Asker)>,
    pub warden: Warden,
    /// The kernel ends it when this keeper does not.
    kernel: bool,
    pub role: Role,
    /// A promotion was ordered: from then on it counts as a writer, whatever the files say.
    pub promoted: bool,
    pub data_dir: String,
    /// The postmaster itself was reaped: how, and when.
    pub ended: Option<(End, u64)>,
    pub stopped: Option<StopMode>,
    pub killed_at: Option<u64>,
    started: u64,
    seen: Facts,
    /// pg_control said "in archive recovery" since the start.
    seen_recovery: bool,
    /// The latest instant at which a permission for a writer stood.
    permitted_at: u64,
    unpermitted_since: Option<u64>,
    /// When the last look was asked for, and whether its answer is still out.
    look_asked: u64,
    looking: bool,
    promoting: Option<Promoting>,
}

/// A promotion between its order and its file.
#[derive(Clone, Copy, Debug)]
struct Promoting {
    ticket: Ticket,
    asker: Asker,
    /// It waits for the deadman until then; `None`: the file was asked for.
    arms_by: Option<u64>,
}

impl Postmaster {
    fn new(role: Role, data_dir: String, now: u64) -> Postmaster {
        // The shell starts a standby only with standby.signal in place.
        let seen = Facts { at: now, control: super::ControlState::Other, standby_signal: role == Role::Standby };
        Postmaster {
            pid: None,
            starting: None,
            warden: Warden::default(),
            kernel: false,
            role,
            promoted: false,
            data_dir,
            ended: None,
            stopped: None,
            killed_at: None,
            started: now,
            seen,
            seen_recovery: false,
            permitted_at: 0,
            unpermitted_since: None,
            look_asked: 0,
            looking: false,
            promoting: None,
        }
    }

    pub fn is_starting(&self, ticket: Ticket) -> bool {
        self.starting.is_some_and(|(t, _)| t == ticket)
    }

    /// Its warden has started it.
    pub fn begun(&mut self, pid: i32, kernel: bool, now: u64) {
        self.pid = Some(pid);
        self.kernel = kernel;
        self.started = now;
        self.seen.at = now;
        self.warden.answered();
    }

    pub fn kernel_fence(&self) -> Fence {
        if self.kernel { Fence::Full } else { Fence::Partial }
    }

    /// Until when a promotion waits for the deadman.
    pub fn promotes_by(&self) -> u64 {
        self.promoting.and_then(|p| p.arms_by).unwrap_or(u64::MAX)
    }

    /// There is a process, and it was not reaped.
    pub fn alive(&self) -> bool {
        self.pid.is_some() && self.ended.is_none()
    }

    /// Everything not provably in recovery is a possible writer. Proof: started with standby.signal, not promoted by us,
    /// and pg_control "in archive recovery" — or, before recovery has begun, standby.signal still there (Postgres removes
    /// it when it leaves recovery). Facts that are old make a writer only where a permission stood since they were true:
    /// a promotion behind our back needs the very volume that does not answer.
    pub fn writer(&self, now: u64) -> bool {
        if self.role == Role::Primary || self.promoted {
            return true;
        }
        let recovering =
            self.seen.control == super::ControlState::InRecovery || (!self.seen_recovery && self.seen.standby_signal);
        if !recovering {
            return true;
        }
        now > self.seen.at + FRESH && self.permitted_at > self.seen.at
    }

    /// What the fence looks at.
    pub fn view(&self, now: u64) -> fence::Postgres {
        let fresh = now <= self.seen.at + FRESH;
        fence::Postgres {
            writer: self.writer(now),
            shutting_down: fresh && self.seen.control == super::ControlState::ShuttingDown,
            stopped: self.stopped,
            unpermitted_since: self.unpermitted_since,
            unwatched_since: self.warden.gone,
        }
    }

    /// Remembers since when it is what it may not be.
    pub fn watch(&mut self, permitted: bool, now: u64) {
        if permitted {
            self.permitted_at = now;
        }
        if permitted || !self.writer(now) {
            self.unpermitted_since = None;
        } else {
            self.unpermitted_since.get_or_insert(now);
        }
    }

    pub fn saw(&mut self, facts: Facts) {
        self.looking = false;
        // A look that began before the start saw another life of the directory.
        if facts.at < self.started {
            return;
        }
        self.seen = facts;
        self.seen_recovery |= facts.control == super::ControlState::InRecovery;
    }

    pub fn asked(&mut self, now: u64) {
        self.look_asked = now;
        self.looking = true;
    }

    /// When the files are to be looked at again. After SIGKILL nothing depends on them.
    pub fn next_look(&self) -> u64 {
        if !self.alive() || self.looking || self.stopped == Some(StopMode::Kill) {
            return u64::MAX;
        }
        if self.look_asked == 0 { 0 } else { self.look_asked + fence::LOOK }
    }
}

impl Core {
    /// May a writer begin? With `unfenced`; or with two seconds of its permission left, and a renewal sent after the last
    /// death: what died may have died of the loss of the lease.
    fn writer_may_begin(&self, renewal: u64, now: u64) -> Result<(), String> {
        match self.permission {
            Permission::None => Err("no permission for a writer".to_owned()),
            Permission::Unfenced { .. } => Ok(()),
            Permission::Writer { stop_at, .. } if stop_at < now + self.config.least_left => {
                Err("less than two seconds of the permission are left".to_owned())
            }
            // What ran before this keeper ended with the keeper before it.
            Permission::Writer { .. }
                if renewal <= self.last_death.unwrap_or(self.began) && !mutant::is(Mutant::StartsWithoutRenewal) =>
            {
                Err("the lease was not renewed since the last postmaster died".to_owned())
            }
            Permission::Writer { .. } => Ok(()),
        }
    }

    pub(super) fn start(
        &mut self,
        asker: Asker,
        role: Role,
        what: (Program, String, Vec<String>),
        renewal: u64,
        now: u64,
    ) {
        let (program, data_dir, socket_locks) = what;
        if let Some(p) = &self.postmaster {
            let pid = p.pid.unwrap_or(0);
            let why = format!("a postmaster (pid {pid}) is running already, or is not dead yet");
            return self.refuse(asker, Refusal::Running, why);
        }
        if self.terminating.is_some() {
            return self.refuse(asker, Refusal::Busy, "the keeper is terminating");
        }
        if let Some(run) = self.programs.on_data() {
            return self.refuse(asker, Refusal::Busy, format!("run {run} works on a data directory"));
        }
        if role == Role::Primary
            && let Err(why) = self.writer_may_begin(renewal, now)
        {
            return self.refuse(asker, Refusal::NotPermitted, why);
        }
        let ticket = self.ticket();
        let mut p = Postmaster::new(role, data_dir.clone(), now);
        let deadman = self.deadman(&p, now);
        p.starting = Some((ticket, asker));
        p.warden = Warden::new(deadman, now);
        self.postmaster = Some(p);
        self.out
            .push(Out::Spawn { ticket, what: Spawn::Postmaster { role, program, data_dir, socket_locks, deadman } });
    }

    /// The order is remembered before the file is asked for: any signal of a child makes the postmaster look for it. And the
    /// deadman is set before.
    pub(super) fn promote(&mut self, asker: Asker, renewal: u64, now: u64) {
        if let Err(why) = self.writer_may_begin(renewal, now) {
            return self.refuse(asker, Refusal::NotPermitted, why);
        }
        let ticket = self.ticket();
        let Some(p) = self.postmaster.as_mut().filter(|p| p.alive()) else {
            return self.refuse(asker, Refusal::Other, "no postmaster is running");
        };
        if p.promoting.is_some() {
            return self.refuse(asker, Refusal::Busy, "a promotion is being ordered already");
        }
        if p.warden.gone.is_some() {
            return self.refuse(asker, Refusal::Other, "the warden of Postgres is gone");
        }
        p.promoted = true;
        p.promoting = Some(Promoting { ticket, asker, arms_by: Some(now + ARMS) });
        self.set_deadman(now);
        self.go_on_promoting(self.unarmed(now), now);
    }

    /// The deadman is set, or its warden does not answer.
    pub(super) fn go_on_promoting(&mut self, waits: bool, now: u64) {
        let Some(p) = &mut self.postmaster else { return };
        let Some(Promoting { ticket, asker, arms_by: Some(by) }) = p.promoting else { return };
        if !waits {
            p.promoting = Some(Promoting { ticket, asker, arms_by: None });
            let data_dir = p.data_dir.clone();
            self.out.push(Out::WritePromote { ticket, data_dir });
        } else if now >= by {
            p.promoting = None;
            p.promoted = false;
            self.set_deadman(now);
            self.warden_is_stuck(asker, now);
        }
    }

    /// The volume may have taken its time: only a permission that still stands lets the postmaster look for the file.
    /// Where none does, it counts as a writer all the same, and the fence stops it in this very step.
    pub(super) fn promote_written(&mut self, ticket: u64, result: Result<(), String>, now: u64) {
        let stands = match self.permission {
            Permission::None => false,
            Permission::Unfenced { .. } => true,
            Permission::Writer { stop_at, .. } => now < stop_at,
        };
        let Some(p) = self.postmaster.as_mut().filter(|p| p.promoting.is_some_and(|p| p.ticket == ticket)) else {
            return;
        };
        let Some(Promoting { asker, .. }) = p.promoting.take() else { return };
        let Some(pid) = p.pid else { return };
        match result {
            Ok(()) if stands => {
                self.out.push(Out::LookForPromote(pid));
                self.done(asker);
            }
            Ok(()) => self.refuse(asker, Refusal::NotPermitted, "the permission ended before the promotion"),
            Err(why) => {
                p.promoted = false;
                self.refuse(asker, Refusal::Other, why);
            }
        }
    }

    pub(super) fn stop(&mut self, asker: Asker, mode: StopMode, now: u64) {
        // A start that waits would come up after the stop.
        self.drop_waiting_starts();
        let Some(p) = &mut self.postmaster else {
            return self.refuse(asker, Refusal::Other, "no postmaster is running");
        };
        p.stopped = p.stopped.max(Some(mode));
        let over = mutant::is(Mutant::StopIsTheEnd);
        if p.alive()
            && let Some(pid) = p.pid
        {
            self.out.push(Out::Kill { target: target_of(pid, mode), mode });
        }
        self.done(asker);
        over.then(|| self.tell(Event::Exited { how: "exit code 0".to_owned(), at: now }));
    }

    pub(super) fn reload(&mut self, asker: Asker) {
        match &self.postmaster {
            None => self.refuse(asker, Refusal::Other, "no postmaster is running"),
            Some(p) => {
                if p.alive()
                    && let Some(pid) = p.pid
                {
                    self.out.push(Out::Hup(pid));
                }
                self.done(asker);
            }
        }
    }

    pub(super) fn reaped(&mut self, pid: i32, end: End, now: u64) {
        if self.warden_reaped(pid, end, now) {
            return;
        }
        let Some(p) = self.postmaster.as_mut().filter(|p| p.pid == Some(pid) && p.ended.is_none()) else {
            self.programs.reaped(pid, end);
            return;
        };
        p.ended = Some((end, now));
        p.warden.let_go(now);
        let promoting = p.promoting.take();
        self.say(Level::Info, format!("the postmaster (pid {pid}) ended: {end}"));
        if let Some(Promoting { asker, .. }) = promoting {
            self.refuse(asker, Refusal::Other, "the postmaster ended");
        }
    }

    /// What is left of it is killed: at once if the postmaster was killed or crashed, after a moment if it ended by itself.
    pub(super) fn orphans(&mut self, left: bool, now: u64) {
        let Some((end, at)) = self.postmaster.as_ref().and_then(|p| p.ended) else { return };
        if left && !mutant::is(Mutant::DeadBeforeItsBackends) {
            if end != End::Code(0) || now >= at + LEFTOVERS_GRACE {
                self.out.push(Out::Kill { target: Target::Orphans, mode: StopMode::Kill });
            }
            return;
        }
        if self.postmaster.as_ref().is_some_and(|p| p.warden.pid.is_some()) {
            // It goes by itself, or is ended soon.
            return;
        }
        self.postmaster = None;
        self.fenced = None;
        self.last_death = Some(now);
        self.tell(Event::Exited { how: end.to_string(), at: now });
    }
}
