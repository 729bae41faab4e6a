//! The keeper's log: lines go through a bounded queue to a thread that writes them to stderr.
//!
//! stderr is shared with Postgres and belongs to a reader nobody knows: it may be full, stuck or gone. None of that may
//! hold the thread that fences, or end the process that keeps a healthy primary. What does not fit is dropped and
//! counted, and what cannot be written harms nobody.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Lines on their way; a keeper says a few in a minute, a burst of a crash some dozens.
const LINES_MAX: usize = 1024;
/// It calls nothing that needs more.
const STACK: usize = 128 << 10;
/// At the end of the process, the last lines get this long: 20 looks, 10 ms apart.
const LAST_LOOKS: u32 = 20;
const LAST_LOOK: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Counts {
    queued: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

/// The loop's end of the log. Cheap to clone; one clone is one line.
#[derive(Clone)]
pub(super) struct Log {
    lines: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

impl Log {
    /// Starts the thread that writes into `to`.
    ///
    /// # Errors
    /// When the kernel refuses the thread.
    fn start(mut to: impl Write + Send + 'static) -> io::Result<Log> {
        let (lines, todo) = sync_channel::<Vec<u8>>(LINES_MAX);
        let counts = Arc::new(Counts::default());
        let log = Log { lines, counts: counts.clone() };
        thread::Builder::new().name("log".to_owned()).stack_size(STACK).spawn(move || {
            while let Ok(line) = todo.recv() {
                let dropped = counts.dropped.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    let said = format!(
                        "{dropped} lines of the log were lost: they were not read in time, or could not be written\n"
                    );
                    if to.write_all(said.as_bytes()).is_err() {
                        counts.dropped.fetch_add(dropped, Ordering::Relaxed);
                    }
                }
                if to.write_all(&line).is_err() {
                    counts.dropped.fetch_add(1, Ordering::Relaxed);
                }
                counts.written.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(log)
    }

    /// Gives the last lines a moment.
    pub fn finish(&self) {
        for _ in 0..LAST_LOOKS {
            if self.counts.written.load(Ordering::Relaxed) >= self.counts.queued.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(LAST_LOOK);
        }
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.lines.try_send(line.to_vec()) {
            Ok(()) => self.counts.queued.fetch_add(1, Ordering::Relaxed),
            Err(_full) => self.counts.dropped.fetch_add(1, Ordering::Relaxed),
        };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends the lines of this process to stderr, from here on.
///
/// # Errors
/// When the kernel refuses the thread.
pub(super) fn to_stderr() -> io::Result<Log> {
    let log = Log::start(io::stderr())?;
    let writer = log.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).with_target(false).with_ansi(false).init();
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    /// A reader that takes nothing until it is told to, and then everything.
    struct Stuck(Option<Receiver<()>>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if let Some(go) = self.0.take() {
                go.recv().unwrap();
                return Err(io::Error::other("one line cannot be written"));
            }
            self.1.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_is_not_read_holds_nobody_and_what_is_dropped_is_counted() {
        let (go, gone) = channel();
        let read = Arc::new(Mutex::new(Vec::new()));
        let mut log = Log::start(Stuck(Some(gone), read.clone())).unwrap();
        for _ in 0..LINES_MAX + 100 {
            log.write_all(b"a line\n").unwrap();
        }
        go.send(()).unwrap();
        while log.counts.written.load(Ordering::Relaxed) < log.counts.queued.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let text = String::from_utf8(read.lock().unwrap().clone()).unwrap();
        assert!(text.lines().any(|l| l.contains("lines of the log were lost")));
    }
}
