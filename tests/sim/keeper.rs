//! The keeper's shell over models: the shipping [`Core`] is told what happens and what it wants is done to the model of
//! Postgres, of programs and of the socket.

use std::collections::{BTreeMap, VecDeque};

use patroni::keeper::core::{Config, ControlState, Core, End, Facts, In, Level, Out, Spawn, Started, Target, Ticket};
use patroni::keeper::protocol::{Ask, NotStarted, Permission, StopMode};
use patroni::model::ClusterState;

use super::sidecar::ToSidecar;
use super::tasks::Work;
use super::warden::Order;
use super::world::{Event, MS, Ns, SEC, World};

/// What reaches a keeper.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one at a time, on its way for a moment")]
pub enum ToKeeper {
    Due,
    Open(u64),
    Request { conn: u64, id: u64, ask: Ask },
    Closed(u64),
    Reaped { pid: i32, end: End },
    Started { ticket: Ticket, result: Result<Started, NotStarted> },
    Armed { warden: i32, at: Option<u64> },
    Ended { pid: i32 },
    ProgramEnds { run: u64, end: End },
    Facts(Facts),
    PromoteWritten(u64),
    Terminate,
}

/// A program under way.
#[derive(Clone, Debug)]
pub struct Program {
    pub pid: i32,
    pub work: Option<Work>,
    /// Reaped.
    pub over: bool,
}

/// One life of a keeper.
pub struct Keeper {
    pub life: u64,
    pub began: Ns,
    core: Core,
    pub frozen: Ns,
    mailbox: VecDeque<ToKeeper>,
    pub programs: BTreeMap<u64, Program>,
    /// The connection that reads what is sent.
    pub conn: Option<u64>,
    due: Ns,
    /// As it was permitted last; for the checkers.
    pub permission: Permission,
    pub permitted_at: Ns,
    pub evidence: u64,
    left: bool,
}

impl World {
    pub fn start_keeper(&mut self, pod: usize) {
        let life = self.new_life(pod);
        let now = self.boot(pod).as_nanos();
        let config = Config {
            boot_id: "boot".to_owned(),
            version: "0".to_owned(),
            pid: 1,
            grace: 30 * SEC,
            exit_when_idle: false,
            least_left: 2 * SEC,
            deadman: Some(SEC / 2),
        };
        self.pods[pod].keeper = Some(Keeper {
            life,
            began: self.t,
            core: Core::new(config, now),
            frozen: 0,
            mailbox: VecDeque::new(),
            programs: BTreeMap::new(),
            conn: None,
            due: u64::MAX,
            permission: Permission::None,
            permitted_at: self.t,
            evidence: 0,
            left: false,
        });
        self.note(format!("m{pod} keeper starts"));
        self.keeper_wakes(pod);
    }

    /// Something reaches the keeper that lives.
    pub fn keeper_gets(&mut self, pod: usize, delay: Ns, to: ToKeeper) {
        if let Some(life) = self.pods[pod].keeper.as_ref().map(|k| k.life) {
            self.after(delay, Event::Keeper { pod, life, to: Box::new(to) });
        }
    }

    /// In order with everything the sidecar sends.
    pub fn over_socket(&mut self, pod: usize, to: ToKeeper) {
        let t = self.t;
        let p = &mut self.pods[pod];
        p.to_keeper = p.to_keeper.max(t + p.net.between(30_000, MS));
        let delay = p.to_keeper - t;
        self.keeper_gets(pod, delay, to);
    }

    pub fn tell_keeper(&mut self, pod: usize, life: u64, to: ToKeeper) {
        let t = self.t;
        let Some(k) = self.pods[pod].keeper.as_mut().filter(|k| k.life == life) else { return };
        if t < k.frozen {
            k.mailbox.push_back(to);
            return;
        }
        self.keeper_takes(pod, to);
    }

    pub fn keeper_thaws(&mut self, pod: usize) {
        let t = self.t;
        let Some(k) = self.pods[pod].keeper.as_mut().filter(|k| t >= k.frozen) else { return };
        let waiting = std::mem::take(&mut k.mailbox);
        self.keeper_takes(pod, ToKeeper::Due);
        for to in waiting {
            self.keeper_takes(pod, to);
        }
    }

    fn keeper_takes(&mut self, pod: usize, to: ToKeeper) {
        if let ToKeeper::Due = &to
            && let Some(k) = &mut self.pods[pod].keeper
        {
            k.due = u64::MAX;
        }
        self.core(pod, In::Due);
        match to {
            ToKeeper::Due => {}
            ToKeeper::Open(conn) => {
                if let Some(k) = &mut self.pods[pod].keeper {
                    k.conn = Some(conn);
                }
                self.core(pod, In::Opened(conn));
            }
            ToKeeper::Request { conn, id, ask } => {
                if let (Ask::Permit { permission, evidence, .. }, Some(k)) = (&ask, &mut self.pods[pod].keeper) {
                    // What is older than what stands is refused.
                    if *permission == Permission::None || *evidence >= k.evidence {
                        (k.permission, k.permitted_at, k.evidence) = (*permission, self.t, k.evidence.max(*evidence));
                    }
                }
                self.core(pod, In::Request { conn, id, ask });
            }
            ToKeeper::Closed(conn) => self.core(pod, In::Closed(conn)),
            ToKeeper::Reaped { pid, end } => self.core(pod, In::Reaped { pid, end }),
            ToKeeper::Started { ticket, result } => self.core(pod, In::Started { ticket, result }),
            ToKeeper::Armed { warden, at } => self.core(pod, In::Armed { warden, at }),
            ToKeeper::Ended { pid } => self.core(pod, In::Ended { pid }),
            ToKeeper::ProgramEnds { run, end } => self.program_ends(pod, run, end),
            ToKeeper::Facts(facts) => self.core(pod, In::Facts(facts)),
            ToKeeper::PromoteWritten(ticket) => self.core(pod, In::PromoteWritten { ticket, result: Ok(()) }),
            ToKeeper::Terminate => self.core(pod, In::Terminate),
        }
        self.keeper_wakes(pod);
    }

    fn keeper_wakes(&mut self, pod: usize) {
        let t = self.t;
        let clock = self.pods[pod].clock;
        let Some(k) = &mut self.pods[pod].keeper else { return };
        let wake = k.core.wake(clock.boot(t).as_nanos());
        if wake == u64::MAX {
            return;
        }
        let at = clock.global(patroni::model::BootInstant::from_nanos(wake)).max(t + 1);
        if at < k.due {
            k.due = at;
            let life = k.life;
            self.at(at, Event::Keeper { pod, life, to: Box::new(ToKeeper::Due) });
        }
    }

    /// One step of the core, and what it wants done.
    fn core(&mut self, pod: usize, input: In) {
        let now = self.boot(pod).as_nanos();
        let Some(k) = self.pods[pod].keeper.as_mut().filter(|k| !k.left) else { return };
        for out in k.core.step(input, now) {
            self.carry_out(pod, out);
        }
    }

    fn carry_out(&mut self, pod: usize, out: Out) {
        match out {
            Out::Send { conn, frame } => self.tell_client(pod, ToSidecar::Frame { conn, frame }, conn),
            Out::Close(conn) => self.tell_client(pod, ToSidecar::KeeperClosed(conn), conn),
            Out::Spawn { ticket, what: Spawn::Postmaster { role, deadman, .. } } => {
                let warden = self.start_warden(pod, ticket, deadman, role);
                self.core(pod, In::Warded { ticket, warden });
            }
            Out::Spawn { ticket, what: Spawn::Program { run, program, .. } } => {
                let pid = self.run_work(pod, run, Work::of(&program.argv));
                self.core(pod, In::Spawned { ticket, result: Ok(pid) });
            }
            Out::Arm { warden, at } => {
                if self.pods[pod].warden.as_ref().is_some_and(|w| w.pid == warden) {
                    self.tell_warden(pod, Order::Arm(at));
                }
            }
            Out::Kill { target, mode } => self.kill(pod, target, mode),
            Out::Hup(_) => {
                let p = &mut self.pods[pod];
                if let (Some(g), Some(d)) = (&mut p.pg, &p.disk) {
                    g.upstream = d.upstream.clone();
                }
                self.pg_told(pod);
                self.pg_event(pod, 5 * MS, super::postgres::PgEvent::Connects);
            }
            Out::WritePromote { ticket, .. } => {
                let takes = self.disk_takes(pod);
                self.keeper_gets(pod, takes, ToKeeper::PromoteWritten(ticket));
            }
            Out::LookForPromote(_) => self.pg_promote(pod),
            Out::LookFacts { .. } => {
                let takes = self.disk_takes(pod);
                let facts = self.facts(pod);
                self.keeper_gets(pod, takes, ToKeeper::Facts(facts));
            }
            Out::LookLeft => {
                let orphans = self.pods[pod].pg.is_some();
                let runs = Default::default();
                self.core(pod, In::Left { orphans, runs });
            }
            Out::Leave => {
                if let Some(k) = &mut self.pods[pod].keeper {
                    k.left = true;
                }
                self.keeper_left(pod);
            }
            Out::Say(Level::Info, _) => {}
            Out::Say(_, text) => self.note(format!("m{pod} keeper: {text}")),
        }
    }

    fn tell_client(&mut self, pod: usize, to: ToSidecar, conn: u64) {
        let t = self.t;
        let p = &mut self.pods[pod];
        let Some(life) = p.sidecar.as_ref().filter(|s| s.conn == Some(conn)).map(|s| s.life) else { return };
        p.to_sidecar = p.to_sidecar.max(t + p.net.between(30_000, MS));
        let at = p.to_sidecar;
        self.at(at, Event::Sidecar { pod, life, to: Box::new(to) });
    }

    pub fn disk_takes(&mut self, pod: usize) -> Ns {
        let slow = !self.quiet && self.plan.slow_disk;
        let luck = &mut self.pods[pod].luck;
        if slow && luck.one_in(40) { luck.between(100 * MS, 4 * SEC) } else { luck.between(50_000, 8 * MS) }
    }

    fn facts(&self, pod: usize) -> Facts {
        let p = &self.pods[pod];
        let control = match p.disk.as_ref().map(|d| d.state) {
            Some(ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery) => ControlState::InRecovery,
            Some(ClusterState::ShutDown | ClusterState::ShuttingDown) => ControlState::ShuttingDown,
            _ => ControlState::Other,
        };
        let standby_signal = p.disk.as_ref().is_some_and(|d| d.standby_signal);
        Facts { at: self.boot(pod).as_nanos(), control, standby_signal }
    }

    fn run_work(&mut self, pod: usize, run: u64, work: Option<Work>) -> i32 {
        let p = &mut self.pods[pod];
        p.pids += 1;
        let pid = p.pids;
        let mut takes = if work.is_some() { p.luck.between(300 * MS, 3 * SEC) } else { 5 * MS };
        let mut end = End::Code(0);
        if work.is_some() && !self.quiet && self.plan.bad_tools {
            takes *= 1 + p.luck.below(20);
            end = if p.luck.one_in(3) { End::Code(1) } else { end };
        }
        if let Some(work) = &work {
            self.check_program(pod, work);
        }
        let p = &mut self.pods[pod];
        if let Some(k) = &mut p.keeper {
            k.programs.insert(run, Program { pid, work, over: false });
        }
        self.keeper_gets(pod, takes, ToKeeper::ProgramEnds { run, end });
        pid
    }

    fn program_ends(&mut self, pod: usize, run: u64, end: End) {
        let Some(k) = &mut self.pods[pod].keeper else { return };
        let Some(program) = k.programs.get_mut(&run).filter(|p| !p.over) else { return };
        program.over = true;
        let (pid, work) = (program.pid, program.work.take());
        let end = match (work, end) {
            (Some(work), End::Code(0)) if !self.work(pod, &work) => End::Code(1),
            (Some(work), end) if end != End::Code(0) => {
                self.work_fails(pod, &work, end);
                end
            }
            (_, end) => end,
        };
        self.core(pod, In::Reaped { pid, end });
        self.core(pod, In::Drained { run });
        if let Some(k) = &mut self.pods[pod].keeper {
            k.programs.remove(&run);
        }
    }

    fn kill(&mut self, pod: usize, target: Target, mode: StopMode) {
        match target {
            Target::Postmaster(pid) | Target::Tree(pid) => {
                if self.pods[pod].pg.as_ref().is_some_and(|g| g.pid == pid) {
                    self.note(format!("m{pod} signal {mode:?} to {target:?}"));
                    self.pg_signal(pod, mode, matches!(target, Target::Tree(_)));
                }
            }
            Target::Warden(pid) => {
                if self.pods[pod].warden.as_ref().is_some_and(|w| w.pid == pid) {
                    self.note(format!("m{pod} the keeper ends the warden"));
                    self.pg_signal(pod, mode, true);
                    self.warden_ends(pod, End::Signal(9));
                }
            }
            Target::Orphans => self.pg_signal(pod, mode, true),
            Target::Run { run, .. } => {
                self.keeper_gets(pod, 200_000, ToKeeper::ProgramEnds { run, end: End::Signal(9) });
            }
        }
    }
}
