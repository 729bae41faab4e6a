//! The thread that touches the files of a data directory while a postmaster lives.
//!
//! A volume that hangs holds whoever opens a file on it, for minutes, beyond every signal. It must not be the thread that
//! fences: that one hands its looks over here, and judges with the facts it has when no answer comes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use super::core::{In, Ticket};
use super::{pgcontrol, process};

/// Work on its way; the core asks for one look and one promotion at a time, and again after a new start.
const WORK_MAX: usize = 16;
/// It calls nothing that needs more.
const STACK: usize = 128 << 10;

enum Work {
    Look { data_dir: PathBuf },
    Promote { ticket: Ticket, data_dir: PathBuf },
}

/// The loop's end of it.
pub(super) struct Looker {
    work: SyncSender<Work>,
    answers: Receiver<In>,
    bell: OwnedFd,
}

impl Looker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start() -> io::Result<Looker> {
        let (work, todo) = sync_channel::<Work>(WORK_MAX);
        let (answer, answers) = sync_channel(WORK_MAX);
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let ring = bell.try_clone()?;
        thread::Builder::new().name("looker".to_owned()).stack_size(STACK).spawn(move || {
            while let Ok(work) = todo.recv() {
                let found = match work {
                    Work::Look { data_dir } => In::Facts(pgcontrol::look(&data_dir, process::boot_now())),
                    Work::Promote { ticket, data_dir } => {
                        let path = data_dir.join("promote");
                        let result = fs::write(&path, b"").map_err(|e| format!("write {}: {e}", path.display()));
                        In::PromoteWritten { ticket, result }
                    }
                };
                if answer.send(found).is_err() || rustix::io::write(&ring, &1u64.to_ne_bytes()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Looker { work, answers, bell })
    }

    /// Asks for a look. When the queue is full the thread hangs, and so would this look.
    pub fn look(&self, data_dir: String) {
        if self.work.try_send(Work::Look { data_dir: data_dir.into() }).is_err() {
            tracing::warn!("the data directory does not answer");
        }
    }

    /// Asks for the promote file.
    ///
    /// # Errors
    /// The thread hangs: there will be no answer.
    pub fn promote(&self, ticket: Ticket, data_dir: String) -> Result<(), String> {
        let work = Work::Promote { ticket, data_dir: data_dir.into() };
        self.work.try_send(work).map_err(|_| "the data directory does not answer".to_owned())
    }

    /// The next answer.
    pub fn next(&self) -> Option<In> {
        self.answers.try_recv().ok()
    }

    /// Readable when there is an answer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Makes it unreadable. Before the answers are taken: one that comes meanwhile rings again.
    pub fn hush(&self) {
        let mut count = [0u8; 8];
        let _empty_is_fine = rustix::io::read(&self.bell, &mut count);
    }
}
