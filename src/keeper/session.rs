//! One connection: frames in, frames out, same user only.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;

use super::process;
use super::protocol::{Answer, Event, FRAME_MAX, Frame, Request, decode, encode};

/// Unsent bytes; a client that does not read this much is gone or frozen, and a frozen one must not fill our memory.
const UNSENT_MAX: usize = 4 * FRAME_MAX;

/// A client.
pub(super) struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    open: bool,
    /// This is the session.
    pub session: bool,
}

impl Connection {
    /// Takes a connection of our own user.
    ///
    /// # Errors
    /// One line: another user, or the kernel.
    pub fn new(stream: UnixStream) -> Result<Connection, String> {
        let peer = process::peer_uid(&stream).map_err(|e| format!("whose is it: {e}"))?;
        let own = rustix::process::geteuid().as_raw();
        if peer != own {
            return Err(format!("user {peer} is not {own}"));
        }
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        Ok(Connection { stream, incoming: Vec::new(), outgoing: Vec::new(), open: true, session: false })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn interest(&self) -> PollFlags {
        if self.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// The next whole request.
    pub fn next_request(&mut self) -> Option<Request> {
        let mut chunk = [0u8; 4096];
        while self.open && self.incoming.len() <= FRAME_MAX {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.open = false,
                Ok(n) => self.incoming.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.open = false,
            }
        }
        match decode(&mut self.incoming) {
            Ok(request) => request,
            Err(why) => {
                tracing::warn!("a connection is closed: {why}");
                self.close();
                None
            }
        }
    }

    pub fn reply(&mut self, id: u64, answer: Answer) {
        self.send(&Frame::Reply { id, answer });
    }

    pub fn event(&mut self, event: Event) {
        self.send(&Frame::Event(event));
    }

    fn send(&mut self, frame: &Frame) {
        match encode(frame) {
            Ok(bytes) => self.outgoing.extend_from_slice(&bytes),
            Err(why) => tracing::warn!("{why}"),
        }
        if self.outgoing.len() > UNSENT_MAX {
            tracing::warn!("a client does not read what it is told: closing its connection");
            self.outgoing.clear();
            self.close();
        }
    }

    /// Nothing more is read; what is to be said is still sent.
    pub fn close(&mut self) {
        self.session = false;
        self.open = false;
        self.incoming.clear();
    }

    pub fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Sends what there is to send. False: the connection is over.
    pub fn flush(&mut self) -> bool {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(0) => return false,
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.open
    }
}
