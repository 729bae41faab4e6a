//! The long programs: what initdb, pg_basebackup, pg_rewind and the removal of a directory do to a disk.

use patroni::keeper::core::End;
use patroni::member::{Answer, Id};
use patroni::model::{ClusterState, StandbyNames, TaskKind, TaskOutcome, Upstream};

use super::disk::{Branch, Disk, Marker};
use super::world::{MS, World};

/// What a program of the keeper does when it ends well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    Initdb,
    Copy { from: usize },
    Rewind { from: usize },
    Recover,
}

impl Work {
    /// In the argv of the model: a word and a number.
    pub fn argv(&self) -> Vec<String> {
        let (word, from) = match self {
            Work::Initdb => ("initdb", 0),
            Work::Copy { from } => ("copy", *from),
            Work::Rewind { from } => ("rewind", *from),
            Work::Recover => ("recover", 0),
        };
        vec![word.to_owned(), from.to_string()]
    }
    pub fn of(argv: &[String]) -> Option<Work> {
        let from = argv.get(1)?.parse().ok()?;
        match argv.first()?.as_str() {
            "initdb" => Some(Work::Initdb),
            "copy" => Some(Work::Copy { from }),
            "rewind" => Some(Work::Rewind { from }),
            "recover" => Some(Work::Recover),
            _ => None,
        }
    }
}

impl World {
    /// Prepares a task as the driver does, and has its program run.
    pub fn begin_task(&mut self, pod: usize, id: Id, kind: &TaskKind) {
        use patroni::keeper::protocol::Kind;
        let gone = |why: &str| Ok(Answer::Task(TaskOutcome::LeaderGone(why.to_owned())));
        match kind {
            TaskKind::Bootstrap => {
                self.check_initdb(pod);
                self.pods[pod].marker = Some(Marker::Bootstrap(self.pods[pod].uid.clone()));
                self.run_program(pod, id, Kind::Fill, &Work::Initdb);
            }
            TaskKind::PostBootstrap => {
                let takes = self.pods[pod].luck.between(20 * MS, 400 * MS);
                self.reply_in(pod, takes, id, Ok(Answer::Task(TaskOutcome::Done)));
            }
            TaskKind::CreateReplica { conn_url, .. } => {
                let Some(from) = conn_url.as_deref().and_then(|url| self.at_url(url)) else {
                    return self.reply_in(pod, MS, id, gone("no source"));
                };
                self.check_removal(pod, "a copy over it");
                self.pods[pod].disk = None;
                self.pods[pod].marker = Some(Marker::Copy);
                self.run_program(pod, id, Kind::Fill, &Work::Copy { from });
            }
            TaskKind::Rewind { conn_url, .. } => {
                let from = self.at_url(conn_url).filter(|from| self.linked(pod, *from) && self.leads_for(pod, *from));
                match from {
                    Some(from) => {
                        // The mark is there before the program begins.
                        self.pods[pod].disk.iter_mut().for_each(|d| d.half = true);
                        self.run_program(pod, id, Kind::Rewind, &Work::Rewind { from });
                    }
                    None => self.reply_in(pod, 20 * MS, id, gone("the leader does not answer")),
                }
            }
            TaskKind::CrashRecovery => self.run_program(pod, id, Kind::Tool, &Work::Recover),
            TaskKind::Remove { keep_as_failed, verify, .. } => {
                let answers =
                    |url: &String| self.at_url(url).is_some_and(|at| self.linked(pod, at) && self.leads_for(pod, at));
                if verify.as_ref().is_some_and(|url| !answers(url)) {
                    return self.reply_in(pod, 20 * MS, id, gone("the leader does not answer"));
                }
                if !keep_as_failed {
                    self.check_removal(pod, "removal");
                    self.check_asked(pod);
                }
                self.pods[pod].disk = None;
                self.pods[pod].marker = None;
                let takes = self.disk_takes(pod);
                self.reply_in(pod, takes, id, Ok(Answer::Task(TaskOutcome::Done)));
            }
        }
    }

    /// The program has ended well; false: it fails after all.
    pub fn work(&mut self, pod: usize, work: &Work) -> bool {
        match work {
            Work::Initdb => {
                self.systems += 1;
                self.makings += 1;
                let system_id = format!("7000000000000000{:03}", self.systems);
                self.pods[pod].disk = Some(Disk {
                    system_id,
                    log: vec![Branch { timeline: 1, start: 0, making: self.makings }],
                    end: 1000,
                    state: ClusterState::ShutDown,
                    checkpoint: (880, 1),
                    standby_signal: false,
                    half: false,
                    upstream: Upstream::Nobody,
                    names: StandbyNames::AsConfigured,
                });
                true
            }
            Work::Copy { from } => match self.source(pod, *from) {
                Some(d) => {
                    let state = ClusterState::InArchiveRecovery;
                    self.pods[pod].disk = Some(Disk { standby_signal: true, half: false, state, ..d });
                    self.pods[pod].marker = None;
                    true
                }
                None => {
                    self.pods[pod].marker = None;
                    false
                }
            },
            Work::Rewind { from } => {
                self.check_removal(pod, "rewind");
                match self.source(pod, *from) {
                    Some(d) => {
                        let state = ClusterState::InArchiveRecovery;
                        self.pods[pod].disk = Some(Disk { standby_signal: true, half: false, state, ..d });
                        true
                    }
                    None => false,
                }
            }
            Work::Recover => {
                if let Some(d) = &mut self.pods[pod].disk {
                    d.standby_signal = false;
                    if d.state != ClusterState::ShutDown {
                        d.shut_down();
                    }
                }
                true
            }
        }
    }

    /// It was ended on the way. pg_basebackup removes what it has made, by its path; pg_rewind leaves a mixture.
    pub fn work_fails(&mut self, pod: usize, work: &Work, end: End) {
        match work {
            Work::Copy { .. } => {
                if self.pods[pod].pg.is_some() {
                    self.violation(format!("S10 a copy of an earlier session removes the data of the running m{pod}"));
                }
                self.pods[pod].disk = None;
                if end != End::Signal(9) {
                    self.pods[pod].marker = None;
                }
            }
            Work::Initdb | Work::Recover | Work::Rewind { .. } => {}
        }
        self.note(format!("m{pod} {work:?} fails on the way"));
    }

    /// A primary, or what answers for one in a standby cluster.
    pub fn leads_for(&self, pod: usize, at: usize) -> bool {
        self.writable(at) || self.answers(at) && self.follows_another(pod)
    }

    fn source(&self, pod: usize, from: usize) -> Option<Disk> {
        let there = self.linked(pod, from) && self.answers(from);
        self.pods[from].disk.clone().filter(|_| there)
    }
}
