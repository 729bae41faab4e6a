//! The deadman: what the kernel does when this keeper, its warden and the sidecar are all stopped, starved or hung.
//!
//! The postmaster's parent is a *warden*. It holds one timer of the kernel, whose end kills the warden, and the kernel
//! sends SIGQUIT to a postmaster whose parent has died. Here is decided when that timer is to end, who has to wait until it
//! is set, and when a warden that says nothing is ended itself.
//!
//! | permission | timer |
//! |---|---|
//! | writer, and the postmaster may be one | a moment before `kill_at`, set anew with each permission |
//! | writer, and the postmaster is a standby | none |
//! | unfenced | none |
//! | none | as it is: who takes a permission back makes nothing safer by moving it |

use super::session::Asker;
use super::{Core, End, Level, Out, Postmaster, SECOND, Started, Target, Ticket};
use crate::keeper::protocol::{Event, NotStarted, Permission, Refusal, Role, StopMode};
use crate::mutant::{self, Mutant};

/// A warden does nothing but answer; one that has not after this time is stuck.
const SILENT: u64 = SECOND;
/// Before it starts a postmaster it waits for the volume, which may take its time.
const START: u64 = 10 * SECOND;

/// The warden of one postmaster.
#[derive(Debug, Default)]
pub(super) struct Warden {
    /// Its process, while it was not reaped.
    pub pid: Option<i32>,
    /// It was reaped, the postmaster was not: since then.
    pub gone: Option<u64>,
    /// What its timer was told last.
    asked: Option<u64>,
    /// Its timer runs, and not beyond that.
    armed: bool,
    /// It is ended then, unless it has done before what it is there for.
    due: Option<u64>,
    /// Its postmaster has ended.
    over: bool,
    /// It was sent its own end.
    ended: bool,
}

impl Warden {
    /// One that is to start a postmaster, with its timer set first.
    pub fn new(deadman: Option<u64>, now: u64) -> Warden {
        Warden { asked: deadman, due: Some(now + START), ..Warden::default() }
    }

    /// It has said what became of the start.
    pub fn answered(&mut self) {
        self.due = None;
    }

    /// The postmaster has ended: it has nothing more to do.
    pub fn let_go(&mut self, now: u64) {
        if !std::mem::replace(&mut self.over, true) {
            self.due = Some(now + SILENT);
        }
    }

    pub fn confirms(&mut self, at: Option<u64>) {
        if at == self.asked {
            self.armed = at.is_some();
        }
    }
}

/// A permission that is answered when the timer is set.
#[derive(Debug)]
pub(super) struct Unarmed {
    asker: Asker,
    until: u64,
}

impl Core {
    /// When the timer is to end.
    pub(super) fn deadman(&self, p: &Postmaster, now: u64) -> Option<u64> {
        let before = self.config.deadman?;
        match self.permission {
            Permission::None => p.warden.asked,
            Permission::Writer { kill_at, .. } if p.writer(now) && !mutant::is(Mutant::DeadmanIsNotSet) => {
                Some(kill_at.saturating_sub(before))
            }
            Permission::Writer { .. } | Permission::Unfenced { .. } => None,
        }
    }

    /// Tells the warden, when that changes.
    pub(super) fn set_deadman(&mut self, now: u64) {
        let Some(p) = self.postmaster.as_ref().filter(|p| p.ended.is_none()) else { return };
        let Some(warden) = p.warden.pid else { return };
        let at = self.deadman(p, now);
        let Some(p) = &mut self.postmaster else { return };
        if p.warden.asked != at {
            // A timer that is only moved later fires too early rather than too late. One that is moved earlier is no fence
            // before the warden says so.
            let later = matches!((p.warden.asked, at), (Some(set), Some(at)) if set < at);
            p.warden.asked = at;
            p.warden.armed &= later;
            self.out.push(Out::Arm { warden, at });
        }
    }

    /// Must whoever lets a writer go on wait for the timer?
    pub(super) fn unarmed(&self, now: u64) -> bool {
        self.postmaster.as_ref().is_some_and(|p| {
            let lives = p.ended.is_none() && p.warden.gone.is_none();
            lives && self.deadman(p, now).is_some() && !p.warden.armed && !mutant::is(Mutant::DeadmanIsNotConfirmed)
        })
    }

    /// A permission stands. It is answered when it holds in the kernel too.
    pub(super) fn permitted(&mut self, asker: Asker, now: u64) {
        if self.permission == Permission::None {
            for earlier in std::mem::take(&mut self.unarmed) {
                self.refuse(earlier.asker, Refusal::NotPermitted, "the permission was taken back");
            }
            return self.done(asker);
        }
        self.set_deadman(now);
        self.unarmed.push_back(Unarmed { asker, until: now + SILENT });
        self.serve_unarmed(now);
    }

    pub(super) fn serve_unarmed(&mut self, now: u64) {
        let waits = self.unarmed(now);
        while let Some(first) = self.unarmed.front() {
            if waits && now < first.until {
                break;
            }
            let asker = first.asker;
            self.unarmed.pop_front();
            if waits {
                self.warden_is_stuck(asker, now);
            } else {
                self.done(asker);
            }
        }
        self.go_on_promoting(waits, now);
    }

    pub(super) fn warded(&mut self, ticket: Ticket, warden: i32) {
        if let Some(p) = self.postmaster.as_mut().filter(|p| p.is_starting(ticket)) {
            p.warden.pid = Some(warden);
        }
    }

    pub(super) fn armed(&mut self, warden: i32, at: Option<u64>) {
        if let Some(p) = self.postmaster.as_mut().filter(|p| p.warden.pid == Some(warden)) {
            p.warden.confirms(at);
        }
    }

    pub(super) fn postmaster_started(&mut self, ticket: Ticket, result: Result<Started, NotStarted>, now: u64) {
        let Some(p) = self.postmaster.as_mut().filter(|p| p.is_starting(ticket)) else { return };
        let Some((_, asker)) = p.starting.take() else { return };
        match result {
            Ok(Started { pid, hears }) => {
                p.begun(pid, hears && self.config.deadman.is_some(), now);
                let (role, stopped) = (p.role, p.stopped);
                self.done(asker);
                self.say(Level::Info, format!("started the postmaster (pid {pid}) as {role:?}"));
                if !hears {
                    self.say(
                        Level::Warn,
                        "fence: partial: the kernel does not tell this Postgres when its parent dies; look for set-user-ID, file \
                         capabilities or a security module on the postgres program",
                    );
                }
                if let Some(mode) = stopped {
                    self.out.push(Out::Kill { target: super::target_of(pid, mode), mode });
                }
            }
            Err(why) => self.start_failed(asker, why, now),
        }
    }

    /// There is no postmaster. A session that was opened meanwhile was told of one.
    fn start_failed(&mut self, asker: Asker, NotStarted { why, class }: NotStarted, now: u64) {
        self.postmaster = None;
        if self.session != Some(asker.conn) {
            self.last_death = Some(now);
            self.tell(Event::Exited { how: why.clone(), at: now });
        }
        self.refuse(asker, class, why);
    }

    /// The postmaster has ended. Its warden lets go of it, and it can be reaped.
    pub(super) fn ended(&mut self, pid: i32, now: u64) {
        if let Some(p) = self.postmaster.as_mut().filter(|p| p.pid == Some(pid)) {
            p.warden.let_go(now);
        }
    }

    /// Reaped; true: it was a warden. Where the postmaster lives the kernel has told it, and the fence sees to the rest; where
    /// none was reported, something may have been started all the same.
    pub(super) fn warden_reaped(&mut self, pid: i32, end: End, now: u64) -> bool {
        let Some(p) = self.postmaster.as_mut().filter(|p| p.warden.pid == Some(pid)) else { return false };
        p.warden.pid = None;
        let expected = p.warden.over;
        p.warden.due = None;
        if let Some((_, asker)) = p.starting.take() {
            p.ended = Some((end, now));
            self.refuse(asker, Refusal::Other, format!("the warden that was to start Postgres ended: {end}"));
        } else if !expected {
            p.warden.gone = Some(now);
            self.say(Level::Error, format!("the warden of Postgres (pid {pid}) ended: {end}"));
        }
        true
    }

    /// A start that may not go on, before its postmaster was seen: whatever it has made goes with its warden.
    pub(super) fn judge_start(&mut self, now: u64) {
        let stands = match self.permission {
            Permission::None => false,
            Permission::Unfenced { .. } => true,
            Permission::Writer { kill_at, .. } => now < kill_at,
        };
        let Some(p) = self.postmaster.as_mut().filter(|p| p.role == Role::Primary && p.ended.is_none()) else { return };
        if !stands && !p.warden.ended {
            p.warden.due = Some(now);
            self.hurry_warden(now);
        }
    }

    /// A Postgres that the kernel would not end is not to write: it ends with its warden, and starts again with another.
    pub(super) fn warden_is_stuck(&mut self, asker: Asker, now: u64) {
        self.refuse(asker, Refusal::Other, "the warden of Postgres does not answer: both are ended");
        if let Some(p) = &mut self.postmaster {
            p.warden.due = Some(now);
        }
    }

    /// One that is stuck is ended: what it holds comes to this process.
    pub(super) fn hurry_warden(&mut self, now: u64) {
        let Some(p) = &self.postmaster else { return };
        if let (Some(warden), Some(due)) = (p.warden.pid, p.warden.due)
            && now >= due
            && !mutant::is(Mutant::StuckWardenStays)
        {
            if !p.warden.ended {
                let why =
                    format!("the warden of Postgres (pid {warden}) does not do what it is there for: it is ended");
                self.say(Level::Warn, why);
            }
            let Some(p) = &mut self.postmaster else { return };
            p.warden.ended = true;
            // Repeated until it is reaped.
            p.warden.due = Some(now + super::DYING_LOOK_LATER);
            self.out.push(Out::Kill { target: Target::Warden(warden), mode: StopMode::Kill });
        }
    }

    /// When something here is due.
    pub(super) fn deadman_wake(&self, p: &Postmaster, now: u64) -> u64 {
        let starting = match self.permission {
            Permission::Writer { kill_at, .. } if p.starting.is_some() => kill_at,
            Permission::None | Permission::Writer { .. } | Permission::Unfenced { .. } => u64::MAX,
        };
        let due = p.warden.pid.and(p.warden.due).filter(|_| !mutant::is(Mutant::StuckWardenStays)).unwrap_or(u64::MAX);
        let unarmed = self.unarmed.front().map_or(u64::MAX, |first| first.until);
        // What is past was judged: of a start that may not go on, the warden is ended again when that is due.
        let at = [starting, due, unarmed, p.promotes_by()].into_iter().filter(|at| *at > now);
        at.min().unwrap_or(u64::MAX)
    }
}
