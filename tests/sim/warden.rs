//! What the kernel does for a postmaster, and the warden that it does it through: a process that carries out what it is
//! told, while it runs, and a timer that ends it whether it runs or not.

use std::collections::VecDeque;

use patroni::keeper::core::{End, Started, Ticket};
use patroni::keeper::protocol::{Role, StopMode};

use super::keeper::ToKeeper;
use super::world::{Event, MS, Ns, World};

/// What a warden is told.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Arm(Option<u64>),
    Launch(Role),
    /// The kernel: the child has ended.
    Child,
}

/// The parent of a postmaster.
pub struct Warden {
    pub pid: i32,
    life: u64,
    ticket: Ticket,
    /// Its timer, by the clock of the pod.
    pub armed: Option<u64>,
    pub frozen: Ns,
    mailbox: VecDeque<Order>,
    /// The number of its child, and how that ended: nobody has reaped it.
    child: Option<i32>,
    zombie: Option<(i32, End)>,
}

impl World {
    pub fn start_warden(&mut self, pod: usize, ticket: Ticket, deadman: Option<u64>, role: Role) -> i32 {
        let life = self.new_life(pod);
        let p = &mut self.pods[pod];
        p.pids += 1;
        let pid = p.pids;
        let warden =
            Warden { pid, life, ticket, armed: None, frozen: 0, mailbox: VecDeque::new(), child: None, zombie: None };
        p.warden = Some(warden);
        if deadman.is_some() {
            self.tell_warden(pod, Order::Arm(deadman));
        }
        self.tell_warden(pod, Order::Launch(role));
        pid
    }

    pub fn tell_warden(&mut self, pod: usize, order: Order) {
        let t = self.t;
        let p = &mut self.pods[pod];
        let Some(life) = p.warden.as_ref().map(|w| w.life) else { return };
        // In their order.
        p.to_warden = p.to_warden.max(t + p.luck.between(100_000, 3 * MS));
        let at = p.to_warden;
        self.at(at, Event::Warden { pod, life, order });
    }

    pub fn warden(&mut self, pod: usize, life: u64, order: Order) {
        let t = self.t;
        let Some(w) = self.pods[pod].warden.as_mut().filter(|w| w.life == life) else { return };
        if t < w.frozen {
            return w.mailbox.push_back(order);
        }
        match order {
            Order::Arm(at) => {
                w.armed = at;
                let warden = w.pid;
                self.plan_timer(pod);
                self.keeper_gets(pod, 100_000, ToKeeper::Armed { warden, at });
            }
            Order::Launch(role) => self.launch(pod, role),
            Order::Child => self.warden_ends(pod, End::Code(0)),
        }
    }

    fn launch(&mut self, pod: usize, role: Role) {
        let fits = self.pods[pod].disk.as_ref().map(|d| d.standby_signal == (role == Role::Standby));
        let result = match fits {
            None => Err("no data directory".to_owned().into()),
            Some(false) => Err("the signal files do not fit the role".to_owned().into()),
            Some(true) => {
                self.check_start(pod, role);
                Ok(Started { pid: self.start_pg(pod), hears: true })
            }
        };
        let Some(w) = &mut self.pods[pod].warden else { return };
        w.child = result.as_ref().ok().map(|started| started.pid);
        let ticket = w.ticket;
        let failed = result.is_err();
        self.keeper_gets(pod, 100_000, ToKeeper::Started { ticket, result });
        if failed {
            self.warden_ends(pod, End::Code(0));
        }
    }

    fn plan_timer(&mut self, pod: usize) {
        let p = &self.pods[pod];
        let Some((life, at)) = p.warden.as_ref().and_then(|w| Some((w.life, w.armed?))) else { return };
        let fires = p.clock.global(patroni::model::BootInstant::from_nanos(at));
        self.at(fires, Event::Timer { pod, life });
    }

    /// The kernel's timer. A machine whose clock stands has no kernel that runs.
    pub fn timer(&mut self, pod: usize, life: u64) {
        let now = self.boot(pod).as_nanos();
        let p = &self.pods[pod];
        let Some(at) = p.warden.as_ref().filter(|w| w.life == life).and_then(|w| w.armed) else { return };
        if self.t < p.paused {
            return self.at(p.paused, Event::Timer { pod, life });
        }
        if now < at {
            // It was moved, and its own moment will come.
            return self.plan_timer(pod);
        }
        self.note(format!("m{pod} the kernel ends the warden"));
        self.warden_ends(pod, End::Signal(9));
    }

    /// Its end: the kernel sends the child SIGQUIT, and what was not reaped comes to the keeper.
    pub fn warden_ends(&mut self, pod: usize, end: End) {
        let Some(w) = self.pods[pod].warden.take() else { return };
        self.keeper_gets(pod, 100_000, ToKeeper::Reaped { pid: w.pid, end });
        if let Some((pid, end)) = w.zombie {
            self.keeper_gets(pod, 100_000, ToKeeper::Reaped { pid, end });
        } else if self.pods[pod].pg.as_ref().is_some_and(|g| Some(g.pid) == w.child) {
            self.pg_signal(pod, StopMode::Immediate, false);
        }
    }

    /// The postmaster has ended.
    pub fn child_ends(&mut self, pod: usize, pid: i32, end: End) {
        match self.pods[pod].warden.as_mut().filter(|w| w.child == Some(pid)) {
            Some(w) => {
                w.zombie = Some((pid, end));
                self.keeper_gets(pod, 50_000, ToKeeper::Ended { pid });
                self.tell_warden(pod, Order::Child);
            }
            None => self.keeper_gets(pod, 100_000, ToKeeper::Reaped { pid, end }),
        }
    }

    /// Somebody stops it, perhaps for ever.
    pub fn freeze_warden(&mut self, pod: usize, until: Ns) {
        if let Some(w) = &mut self.pods[pod].warden {
            w.frozen = until;
            let life = w.life;
            if until != Ns::MAX {
                self.at(until, Event::WardenThaws { pod, life });
            }
        }
    }

    pub fn warden_thaws(&mut self, pod: usize, life: u64) {
        let t = self.t;
        let Some(w) = self.pods[pod].warden.as_mut().filter(|w| w.life == life && t >= w.frozen) else { return };
        for order in std::mem::take(&mut w.mailbox) {
            self.warden(pod, life, order);
        }
    }
}
