//! A pipe in the place of a device: what it is told, in which order, and that nothing is said too late.
//! The words are those of the field's test driver, so a test of theirs reads them too.
//! What cannot be opened, or is no device, is named with what would help.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use super::*;

/// A pipe in the place of a device, and what was written into it so far.
struct Pipe {
    place: Place,
    end: std::fs::File,
    _dir: tempfile::TempDir,
}

impl Pipe {
    fn new() -> Pipe {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watchdog");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut how = std::fs::OpenOptions::new();
        let end = how.read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        Pipe { place: Place { path, testing: true }, end, _dir: dir }
    }

    fn said(&mut self) -> String {
        let mut bytes = [0; 4096];
        let n = self.end.read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    }
}

fn feed(age: Duration) -> Feed {
    let evidence = clock::boot();
    let until = evidence + Duration::from_secs(29).saturating_sub(age);
    Feed { evidence, until, most: Duration::from_secs(25), least: Duration::from_secs(10), required: true }
}

#[tokio::test]
async fn it_is_told_its_timeout_fed_and_disarmed_by_its_word() {
    let mut pipe = Pipe::new();
    let watchdog = Watchdog::start().unwrap();
    let fed = watchdog.feed(pipe.place.clone(), feed(Duration::ZERO)).await.unwrap();
    assert!(fed.resets_after.is_some_and(|d| d.as_secs() == 25), "{fed:?}");
    assert_eq!(fed.armed.as_deref(), Some("Watchdog test harness"));
    assert_eq!(pipe.said(), "Ctimeout=25\n1");
    let again = watchdog.feed(pipe.place.clone(), feed(Duration::ZERO)).await.unwrap();
    assert_eq!((again.armed, pipe.said().as_str()), (None, "1"));
    // An older evidence leaves less.
    let fed = watchdog.feed(pipe.place.clone(), feed(Duration::from_millis(9500))).await.unwrap();
    assert!(fed.resets_after.is_some_and(|d| d.as_secs() == 19), "{fed:?}");
    assert_eq!(pipe.said(), "Ctimeout=19\n1");
    assert_eq!(watchdog.disarm(pipe.place.clone()).await, Ok((true, None)));
    assert_eq!(pipe.said(), "V");
    assert_eq!(watchdog.disarm(pipe.place.clone()).await, Ok((false, None)));
    assert_eq!(pipe.said(), "");
}

#[tokio::test]
async fn what_comes_too_late_opens_nothing() {
    let mut pipe = Pipe::new();
    let fed = Watchdog::start().unwrap().feed(pipe.place.clone(), feed(Duration::from_secs(28))).await.unwrap();
    assert_eq!(fed, Fed::default());
    assert_eq!(pipe.said(), "");
}

#[tokio::test]
async fn a_device_that_cannot_be_opened_is_named() {
    let watchdog = Watchdog::start().unwrap();
    let nothing = Place { path: "/nonexistent/watchdog".into(), testing: false };
    let why = watchdog.feed(nothing.clone(), feed(Duration::ZERO)).await.unwrap_err();
    assert!(why.contains("watchdog.device /nonexistent/watchdog") && why.contains("modprobe softdog"), "{why}");
    assert_eq!(look(&nothing), Err(why));
    // Not a device at all.
    let file = tempfile::NamedTempFile::new().unwrap();
    let place = Place { path: file.path().to_owned(), testing: false };
    assert_eq!(look(&place), Ok(()));
    let why = watchdog.feed(place, feed(Duration::ZERO)).await.unwrap_err();
    assert!(why.contains("ioctl") || why.contains("os error 25"), "{why}");
}
