//! Who asks, and what: connections, the one session, the permission, and requests that wait for programs to end.

use super::programs::Programs;
use super::{Conn, Core, Level, Out, SECOND};
use crate::keeper::protocol::{
    Answer, Ask, Event, Frame, Kind, NOTE_MAX, PROTOCOL, Permission, Postmaster, Program, Refusal, Role, State,
};

/// Connections at a time; the sidecar has one, a superseding sidecar another.
const CONNECTIONS_MAX: usize = 8;
/// Requests that wait for programs to end. A sidecar has one long task.
const WAITING_MAX: usize = 4;
/// How long they wait. Clients give an answer up after two seconds, and what they gave up must not be done later.
const WAITING_FOR: u64 = 3 * SECOND / 2;

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Said nothing that counts.
    New,
    /// The session.
    Session,
}

/// Whom an answer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub conn: Conn,
    pub id: u64,
}

/// A request that must not overlap with programs that are being ended.
#[derive(Debug)]
pub(super) struct Waiting {
    asker: Asker,
    pub until: u64,
    what: Gated,
}

#[derive(Debug)]
pub(super) enum Gated {
    Start { role: Role, what: (Program, String, Vec<String>), renewal: u64 },
    Run { run: u64, kind: Kind, program: Program },
}

impl Core {
    pub(super) fn opened(&mut self, conn: Conn) {
        if self.links.len() >= CONNECTIONS_MAX {
            // The session is never among those: a crowd must not lock the sidecar out.
            let oldest = self.links.iter().find(|(_, link)| **link == Link::New).map(|(conn, _)| *conn);
            if let Some(oldest) = oldest {
                self.links.remove(&oldest);
                self.out.push(Out::Close(oldest));
            }
        }
        self.links.insert(conn, Link::New);
    }

    pub(super) fn closed(&mut self, conn: Conn) {
        self.links.remove(&conn);
        self.waiting.retain(|w| w.asker.conn != conn);
        if self.session == Some(conn) {
            self.session = None;
        }
    }

    /// Requests of connections that were superseded, or that are unknown, are dropped.
    pub(super) fn request(&mut self, asker: Asker, ask: Ask, now: u64) {
        let Some(link) = self.links.get(&asker.conn) else { return };
        if let Ask::Hello { protocol, boot_id, client } = &ask {
            return self.hello(asker, *protocol, boot_id, client);
        }
        if *link == Link::New {
            return self.refuse(asker, Refusal::Other, "say hello first");
        }
        self.somebody_is_there();
        match ask {
            Ask::Hello { .. } => {}
            Ask::Status => self.reply(asker, Answer::State(Box::new(self.state()))),
            Ask::Permit { permission, evidence, note } => match self.permit(permission, evidence, note) {
                Ok(()) => self.permitted(asker, now),
                Err((class, why)) => self.refuse(asker, class, why),
            },
            Ask::Start { role, program, data_dir, renewal, socket_locks } => {
                self.gate(asker, Gated::Start { role, what: (program, data_dir, socket_locks), renewal }, now);
            }
            Ask::Promote { renewal } => self.promote(asker, renewal, now),
            Ask::Stop { mode } => self.stop(asker, mode, now),
            Ask::Reload => self.reload(asker),
            Ask::Run { run, kind, program } => match self.use_id(run) {
                Err(why) => self.refuse(asker, Refusal::Other, why),
                Ok(()) if kind.changes_data() => self.gate(asker, Gated::Run { run, kind, program }, now),
                Ok(()) => self.run(asker, run, kind, program),
            },
            Ask::Cancel { run } => self.cancel(asker, run),
            Ask::Shutdown if self.postmaster.is_some() => {
                self.refuse(asker, Refusal::Running, "a postmaster is running");
            }
            Ask::Shutdown => {
                self.leave = true;
                self.done(asker);
            }
        }
    }

    /// Any request says that somebody is there to hand over.
    fn somebody_is_there(&mut self) {
        if let Some(t) = &mut self.terminating {
            t.handed_over = true;
        }
    }

    fn hello(&mut self, asker: Asker, protocol: u32, boot_id: &str, client: &str) {
        if protocol.abs_diff(PROTOCOL) > 1 {
            let why = format!(
                "protocol {protocol} is not understood, this keeper ({}) speaks {PROTOCOL}: use sidecar and keeper of \
                 the same release",
                self.config.version,
            );
            return self.refuse(asker, Refusal::Other, why);
        }
        if boot_id != self.config.boot_id {
            let why = "the sidecar runs on another machine: deadlines would mean nothing";
            return self.refuse(asker, Refusal::Other, why);
        }
        self.somebody_is_there();
        if self.session != Some(asker.conn) {
            self.supersede(asker.conn);
        }
        self.reply(asker, Answer::State(Box::new(self.state())));
        if let Some(t) = self.terminating {
            self.tell(Event::Terminating { deadline: t.end });
        }
        self.say(Level::Info, format!("session of {client}"));
    }

    /// The newest hello is the session; what older ones still had to say is dropped, and their programs end.
    fn supersede(&mut self, conn: Conn) {
        if let Some(old) = self.session {
            self.tell(Event::Superseded);
            self.out.push(Out::Close(old));
            self.links.remove(&old);
        }
        self.waiting.clear();
        self.unarmed.clear();
        self.links.insert(conn, Link::Session);
        self.session = Some(conn);
        self.generation += 1;
        let ends = self.programs.superseded_by(self.generation);
        if !ends.is_empty() {
            self.say(Level::Info, format!("programs of an earlier session are ended: runs {ends:?}"));
        }
        self.kill_programs(|run| ends.contains(&run));
    }

    pub(super) fn state(&self) -> State {
        let programs: &Programs = &self.programs;
        State {
            protocol: PROTOCOL,
            version: self.config.version.clone(),
            pid: self.config.pid,
            began: self.began,
            permission: self.permission,
            note: self.note.clone(),
            postgres: self.postmaster.as_ref().map(|p| Postmaster {
                pid: p.pid.unwrap_or(0),
                role: p.role,
                promoted: p.promoted,
                data_dir: p.data_dir.clone(),
                dying: p.ended.is_some(),
                fence: p.kernel_fence(),
            }),
            last_death: self.last_death,
            terminating: self.terminating.is_some(),
            programs: programs.living(),
            next_run: programs.next_run(),
        }
    }

    /// Only newer evidence replaces a permission; `none` always does, and is not undone by what it was taken back from.
    fn permit(&mut self, permission: Permission, evidence: u64, note: String) -> Result<(), (Refusal, String)> {
        if note.len() > NOTE_MAX {
            return Err((Refusal::Other, format!("a note of {} bytes is too large", note.len())));
        }
        let newer = evidence > self.evidence || (evidence == self.evidence && self.permission != Permission::None);
        if permission != Permission::None && !newer {
            return Err((Refusal::NotPermitted, "older evidence than that of the standing permission".to_owned()));
        }
        if permission != self.permission && permission == Permission::None {
            self.say(Level::Info, "the permission is taken back");
        }
        self.permission = permission;
        self.evidence = self.evidence.max(evidence);
        self.note = note;
        Ok(())
    }

    pub(super) fn reply(&mut self, asker: Asker, answer: Answer) {
        if self.links.contains_key(&asker.conn) {
            self.out.push(Out::Send { conn: asker.conn, frame: Frame::Reply { id: asker.id, answer } });
        }
    }

    pub(super) fn done(&mut self, asker: Asker) {
        self.reply(asker, Answer::Done);
    }

    pub(super) fn refuse(&mut self, asker: Asker, class: Refusal, why: impl Into<String>) {
        self.reply(asker, Answer::Refused { why: why.into(), class });
    }

    /// Nothing begins on a data directory while a program that was killed may still write to one.
    fn gate(&mut self, asker: Asker, what: Gated, now: u64) {
        if self.waiting.len() >= WAITING_MAX {
            return self.refuse(asker, Refusal::Busy, "too many requests wait for programs to end");
        }
        self.waiting.push_back(Waiting { asker, until: now + WAITING_FOR, what });
        self.serve_waiting(now);
    }

    pub(super) fn serve_waiting(&mut self, now: u64) {
        while let Some(first) = self.waiting.front() {
            let late = now >= first.until;
            if self.programs.ending() && !late {
                return;
            }
            let Some(Waiting { asker, what, .. }) = self.waiting.pop_front() else { return };
            if late {
                self.refuse(asker, Refusal::Busy, "a program that was killed is not dead yet");
                continue;
            }
            match what {
                Gated::Start { role, what, renewal } => self.start(asker, role, what, renewal, now),
                Gated::Run { run, kind, program } => self.run(asker, run, kind, program),
            }
        }
    }

    pub(super) fn drop_waiting_starts(&mut self) {
        self.drop_waiting(|what| matches!(what, Gated::Start { .. }), "a stop came first");
    }

    pub(super) fn drop_waiting_run(&mut self, run: u64) {
        self.drop_waiting(|what| matches!(what, Gated::Run { run: r, .. } if *r == run), "cancelled");
    }

    fn drop_waiting(&mut self, dropped: impl Fn(&Gated) -> bool, why: &str) {
        let waiting = std::mem::take(&mut self.waiting);
        for each in waiting {
            if dropped(&each.what) {
                self.refuse(each.asker, Refusal::Other, why);
            } else {
                self.waiting.push_back(each);
            }
        }
    }
}
