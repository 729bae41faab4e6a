//! The calls: Linux' watchdog interface, and the pipe that stands in for a device in tests.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const GET_SUPPORT: libc::Ioctl = 0x8028_5700_u32 as libc::Ioctl;
const SET_TIMEOUT: libc::Ioctl = 0xC004_5706_u32 as libc::Ioctl;
const GET_TIMEOUT: libc::Ioctl = 0x8004_5707_u32 as libc::Ioctl;

/// The device can be told its timeout.
const CAN_SET_TIMEOUT: u32 = 0x0080;
/// The device is disarmed by a word before it is closed.
const MAGIC_CLOSE: u32 = 0x0100;

/// `struct watchdog_info`.
#[repr(C)]
struct Info {
    options: u32,
    firmware: u32,
    identity: [u8; 32],
}

/// An open device. Dropping it without [`Device::disarm`] leaves it armed.
pub(super) struct Device {
    file: File,
    testing: bool,
    options: u32,
    identity: String,
    /// It goes on counting whatever it is told.
    no_way_out: bool,
    /// What it was told last.
    timeout: Option<u32>,
}

/// May it be opened for writing?
pub(super) fn usable(path: &Path) -> io::Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    Ok(accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?)
}

impl Device {
    /// Opens it: from now on it counts.
    pub(super) fn open(path: &Path, testing: bool) -> io::Result<Device> {
        let mut how = OpenOptions::new();
        // A pipe without a reader is refused, and does not hang.
        how.append(testing).write(true).custom_flags(libc::O_CLOEXEC | if testing { libc::O_NONBLOCK } else { 0 });
        let mut file = how.open(path)?;
        if testing {
            let (options, identity) = (CAN_SET_TIMEOUT | MAGIC_CLOSE, "Watchdog test harness".to_owned());
            return Ok(Device { file, testing, options, identity, no_way_out: false, timeout: None });
        }
        let mut info = Info { options: 0, firmware: 0, identity: [0; 32] };
        // SAFETY: the call fills a struct of exactly this layout.
        let asked = check(unsafe { libc::ioctl(file.as_raw_fd(), GET_SUPPORT, &raw mut info) });
        if asked.is_err() {
            // Opening has armed it.
            drop(file.write_all(b"V"));
        }
        asked?;
        let end = info.identity.iter().position(|b| *b == 0).unwrap_or(info.identity.len());
        let identity = String::from_utf8_lossy(&info.identity[..end]).into_owned();
        let no_way_out = no_way_out(path);
        Ok(Device { file, testing, options: info.options, identity, no_way_out, timeout: None })
    }

    /// What it calls itself.
    pub(super) fn words(&self) -> String {
        if self.identity.is_empty() { "the watchdog".to_owned() } else { self.identity.clone() }
    }

    /// Can it be disarmed?
    pub(super) fn stops(&self) -> bool {
        !self.no_way_out
    }

    /// Does it stop whenever it is closed, and so with a program that was killed?
    pub(super) fn stops_too_easily(&self) -> bool {
        self.options & MAGIC_CLOSE == 0
    }

    /// Tells it its timeout, and answers how long it really waits, in seconds.
    pub(super) fn set_timeout(&mut self, wanted: u32) -> io::Result<u32> {
        if self.timeout == Some(wanted) {
            return self.waits(wanted);
        }
        if self.options & CAN_SET_TIMEOUT != 0 {
            if self.testing {
                self.file.write_all(format!("Ctimeout={wanted}\n").as_bytes())?;
            } else {
                let mut value = libc::c_int::try_from(wanted).unwrap_or(libc::c_int::MAX);
                // SAFETY: the call reads and writes one int.
                check(unsafe { libc::ioctl(self.file.as_raw_fd(), SET_TIMEOUT, &raw mut value) })?;
            }
        }
        self.timeout = Some(wanted);
        self.waits(wanted)
    }

    /// How long it waits, by its own word.
    fn waits(&self, told: u32) -> io::Result<u32> {
        if self.testing {
            return Ok(told);
        }
        let mut value: libc::c_int = 0;
        // SAFETY: the call writes one int.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), GET_TIMEOUT, &raw mut value) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Feeds it.
    pub(super) fn keep_alive(&mut self) -> io::Result<()> {
        self.file.write_all(b"1")
    }

    /// Disarms it, and closes it.
    pub(super) fn disarm(mut self) -> io::Result<()> {
        self.file.write_all(b"V")
    }
}

/// Was its driver loaded so that nothing stops it?
pub(super) fn no_way_out(path: &Path) -> bool {
    attribute(path, "nowayout").is_some_and(|value| value == "1")
}

/// Does it count, as far as the kernel says?
pub(super) fn counts(path: &Path) -> bool {
    attribute(path, "state").is_some_and(|value| value == "active")
}

/// What the kernel shows of it, where it shows anything. `/dev/watchdog` is the first one.
fn attribute(path: &Path, name: &str) -> Option<String> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let node = real.file_name().and_then(|n| n.to_str()).unwrap_or("watchdog0");
    let node = if node == "watchdog" { "watchdog0" } else { node };
    let text = std::fs::read_to_string(format!("/sys/class/watchdog/{node}/{name}")).ok()?;
    Some(text.trim().to_owned())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
