//! Failsafe mode: a holder that cannot reach the store asks the others to leave it the lock. Requests go over the same links as
//! every other question between members, and an answer may be lost.

use std::collections::BTreeMap;

use patroni::member::{Answer, Command, Id, Input, Ticket};
use patroni::model::{Addressee, Asked, MemberName};

use super::world::{Event, MS, Ns, SEC, World};

/// One request takes no longer than this.
const PATIENCE: Ns = 2 * SEC;

/// A round of requests on its way.
#[derive(Clone, Debug, Default)]
pub struct Round {
    answers: BTreeMap<(MemberName, String), Result<(), String>>,
    asked: usize,
}

/// A request, or its answer.
#[derive(Clone, Debug)]
pub struct Ping {
    pub from: usize,
    /// The life of the sidecar that asks, and its effect.
    pub life: u64,
    pub id: Id,
    pub to: usize,
    /// Whom it asks: name and UID.
    pub asked: (MemberName, String),
}

impl World {
    pub fn ask_failsafe(&mut self, pod: usize, id: Id, members: &Asked) {
        let Some(life) = self.pods[pod].sidecar.as_ref().map(|s| s.life) else { return };
        if let Some(s) = &mut self.pods[pod].sidecar {
            s.rounds.insert(id, Round { asked: members.len(), ..Round::default() });
        }
        for (asked, url) in members {
            let takes = self.pods[pod].net.between(MS, 40 * MS);
            let asked = asked.clone();
            match self.at_url(url) {
                Some(to) => self.after(takes, Event::Ping(Ping { from: pod, life, id, to, asked })),
                None => self.failsafe_answer(pod, life, id, asked, Err("nobody is there".to_owned())),
            }
        }
        self.failsafe_ends(pod, life, id, false);
        self.after(PATIENCE, Event::RoundEnds { pod, life, id });
    }

    /// The request arrives.
    pub fn pinged(&mut self, ping: Ping) {
        let Ping { from, to, asked: (name, uid), .. } = ping.clone();
        let t = self.t;
        let there = self.pods[to].sidecar.as_ref().is_some_and(|s| s.member.is_some() && t >= s.frozen);
        if !self.linked(from, to) || !there {
            return;
        }
        let ticket = Ticket(u64::MAX - self.events);
        self.said = Some((ticket, None));
        let asked = Addressee { name: Some(name), uid: Some(uid) };
        let command = Command::Failsafe { from: self.pods[from].name.clone(), asked };
        self.step(to, Input::Asked { ticket, command });
        let Some((_, Some((status, text)))) = self.said.take() else { return };
        let accepted = status == 200 && text == "Accepted";
        let takes = self.pods[to].net.between(MS, 40 * MS);
        self.after(takes, Event::Pong { ping, answer: if accepted { Ok(()) } else { Err(text) } });
    }

    /// Its answer arrives.
    pub fn ponged(&mut self, ping: &Ping, answer: Result<(), String>) {
        if self.linked(ping.from, ping.to) {
            self.failsafe_answer(ping.from, ping.life, ping.id, ping.asked.clone(), answer);
            self.failsafe_ends(ping.from, ping.life, ping.id, false);
        }
    }

    fn failsafe_answer(
        &mut self,
        pod: usize,
        life: u64,
        id: Id,
        asked: (MemberName, String),
        answer: Result<(), String>,
    ) {
        let Some(s) = self.pods[pod].sidecar.as_mut().filter(|s| s.life == life) else { return };
        if let Some(round) = s.rounds.get_mut(&id) {
            round.answers.insert(asked, answer);
        }
    }

    /// Everybody has answered, or the time is over.
    pub fn failsafe_ends(&mut self, pod: usize, life: u64, id: Id, over: bool) {
        let Some(s) = self.pods[pod].sidecar.as_mut().filter(|s| s.life == life) else { return };
        let whole = s.rounds.get(&id).is_some_and(|round| round.answers.len() == round.asked);
        if (whole || over)
            && let Some(round) = s.rounds.remove(&id)
        {
            self.reply_in(pod, 0, id, Ok(Answer::Failsafe(round.answers)));
        }
    }
}
