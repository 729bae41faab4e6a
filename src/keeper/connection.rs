//! One connection: frames in, frames out, same user only.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;

use super::process;
use super::protocol::{FRAME_MAX, Frame, Request, decode, encode};

/// Unsent bytes; a client that does not read this much is gone or frozen, and a frozen one must not fill our memory.
const UNSENT_MAX: usize = 4 * FRAME_MAX;
/// Unsent bytes above which programs keep what they print: far below the limit, far above what one turn adds.
const BEHIND: usize = 256 << 10;

/// A client.
pub(super) struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Something may still be read.
    open: bool,
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
        Ok(Connection { stream, incoming: Vec::new(), outgoing: Vec::new(), open: true })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn interest(&self) -> PollFlags {
        match (self.open, self.outgoing.is_empty()) {
            (true, true) => PollFlags::IN,
            (true, false) => PollFlags::IN | PollFlags::OUT,
            (false, _) => PollFlags::OUT,
        }
    }

    /// Every whole request that is here, at most a frame's worth of bytes at a time.
    pub fn requests(&mut self) -> Vec<Request> {
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
        let mut requests = Vec::new();
        loop {
            match decode(&mut self.incoming) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => return requests,
                Err(why) => {
                    tracing::warn!("a connection is closed: {why}");
                    self.close();
                    return requests;
                }
            }
        }
    }

    /// Puts a frame on it.
    pub fn send(&mut self, frame: &Frame) {
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
        self.open = false;
        self.incoming.clear();
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The client reads more slowly than it is told things.
    pub fn is_behind(&self) -> bool {
        self.outgoing.len() > BEHIND
    }

    pub fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Sends what can be sent. False: nobody is there to read.
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
        true
    }
}
