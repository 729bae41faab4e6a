//! The watchdog device, in a thread of its own: a device that hangs holds up nothing else.
//!
//! It decides nothing: the order says until when the lease is counted on and how long the device may wait at most, and
//! [`Feed`] does the arithmetic for the moment at which the device is really fed.

mod device;

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use self::device::Device;
use super::clock;
use crate::member::Fed;
use crate::model::Feed;

/// Which device, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Path of the device.
    pub path: PathBuf,
    /// `driver: testing`: a pipe or a file that is told in words what a device is told by ioctls.
    pub testing: bool,
}

/// Was it armed, and what is to be warned about?
type Disarmed = Result<(bool, Option<String>), String>;

enum Order {
    Feed(Place, Feed, oneshot::Sender<Result<Fed, String>>),
    Disarm(Place, oneshot::Sender<Disarmed>),
}

/// The thread's door. Clones share it.
#[derive(Clone)]
pub struct Watchdog {
    orders: mpsc::Sender<Order>,
}

impl Watchdog {
    /// Starts the thread; it opens nothing before it is told to.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start() -> Result<Watchdog, String> {
        let (orders, inbox) = mpsc::channel();
        let run = move || serve(&inbox);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).stack_size(128 * 1024);
        thread.spawn(run).map_err(|e| format!("the thread of the watchdog could not be started: {e}"))?;
        Ok(Watchdog { orders })
    }

    /// Arms the device if it is closed, and feeds it.
    ///
    /// # Errors
    /// Why it could not. It is closed again if this was to arm it, and goes on counting if it was armed before.
    pub async fn feed(&self, place: Place, feed: Feed) -> Result<Fed, String> {
        let (tx, rx) = oneshot::channel();
        self.orders.send(Order::Feed(place, feed, tx)).map_err(|_| gone())?;
        rx.await.map_err(|_| gone())?
    }

    /// Disarms and closes it, also one that an earlier life of this program has left armed. Was it armed? A warning where
    /// it cannot be disarmed.
    ///
    /// # Errors
    /// The device failed.
    pub async fn disarm(&self, place: Place) -> Result<(bool, Option<String>), String> {
        let (tx, rx) = oneshot::channel();
        self.orders.send(Order::Disarm(place, tx)).map_err(|_| gone())?;
        rx.await.map_err(|_| gone())?
    }
}

/// Could the device be opened? Opening it would arm it, so only its permissions are looked at.
///
/// # Errors
/// One line: what is wrong with it, and what would be right.
pub fn look(place: &Place) -> Result<(), String> {
    device::usable(&place.path).map_err(|e| explained(place, &e))
}

fn explained(place: &Place, e: &std::io::Error) -> String {
    let path = place.path.display();
    let help = if e.kind() == std::io::ErrorKind::NotFound {
        "; load a driver on the host (modprobe softdog) and mount the device into the container"
    } else if e.kind() == std::io::ErrorKind::PermissionDenied {
        "; it must be writable for the user that runs patroni"
    } else if e.kind() == std::io::ErrorKind::ResourceBusy {
        "; another program has opened it"
    } else {
        ""
    };
    format!("watchdog.device {path}: {e}{help}")
}

fn gone() -> String {
    "the thread of the watchdog has ended".to_owned()
}

/// The end of the process closes an open device without a word: then it goes on counting, which is what it is for.
fn serve(inbox: &mpsc::Receiver<Order>) {
    let mut open: Option<Device> = None;
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Feed(place, feed, answer) => {
                let before = open.is_some();
                let fed = feed_it(&mut open, &place, &feed);
                let useless = fed.as_ref().map_or(true, |fed| fed.resets_after.is_none());
                // One that was armed before goes on counting over whoever writes; it is disarmed when nobody does.
                if useless
                    && !before
                    && let Some(device) = open.take()
                    && let Err(e) = device.disarm()
                {
                    warn!("the watchdog could not be disarmed: {e}");
                }
                drop(answer.send(fed));
            }
            Order::Disarm(place, answer) => {
                let disarmed = match open.take() {
                    Some(device) => disarm(device).map(|warning| (true, warning)),
                    None if !place.testing && device::counts(&place.path) => left_over(&place),
                    None => Ok((false, None)),
                };
                drop(answer.send(disarmed));
            }
        }
    }
}

fn feed_it(open: &mut Option<Device>, place: &Place, feed: &Feed) -> Result<Fed, String> {
    let Some(wanted) = feed.timeout(clock::boot()) else { return Ok(Fed::default()) };
    let mut fed = Fed::default();
    if open.is_none() {
        // Opening arms it.
        if !feed.required && !place.testing && device::no_way_out(&place.path) {
            return Err(format!(
                "watchdog.device {} cannot be disarmed (nowayout): every hand-over would reset the machine; only mode \
                 required uses it all the same",
                place.path.display()
            ));
        }
        let device = Device::open(&place.path, place.testing).map_err(|e| explained(place, &e))?;
        fed.armed = Some(device.words());
        if !device.stops() {
            fed.warning = Some(format!("{} cannot be disarmed: a member that hands over is reset", device.words()));
        } else if device.stops_too_easily() {
            fed.warning = Some(format!("{} stops with this program, however that ends", device.words()));
        }
        *open = Some(device);
    }
    let Some(device) = open else { return Ok(fed) };
    let of = |e: std::io::Error| explained(place, &e);
    let actual = at_most(device, wanted).map_err(of)?;
    // What age has shortened is not held against the device.
    if u64::from(wanted) == feed.most.as_secs()
        && let Some(warning) = feed.judge(wanted, actual)?
    {
        fed.warning = Some(warning);
    }
    // The time that the calls have taken counts.
    match feed.timeout(clock::boot()) {
        None => return Ok(fed),
        Some(still) if still < wanted => drop(at_most(device, still).map_err(of)?),
        Some(_) => {}
    }
    let age = clock::boot().since(feed.evidence);
    device.keep_alive().map_err(of)?;
    fed.resets_after = Some(age + Duration::from_secs(u64::from(actual)));
    Ok(fed)
}

/// Some devices round up: the longest timeout that is no longer than this, as far as the device has one.
fn at_most(device: &mut Device, wanted: u32) -> std::io::Result<u32> {
    let mut actual = device.set_timeout(wanted)?;
    for less in (2..wanted).rev() {
        if actual <= wanted {
            break;
        }
        let was = std::mem::replace(&mut actual, device.set_timeout(less)?);
        if actual == was && less + 10 < wanted {
            break;
        }
    }
    Ok(actual)
}

/// Whoever opens it takes it over. One that another program holds cannot be opened, and is none of ours.
fn left_over(place: &Place) -> Disarmed {
    match Device::open(&place.path, false) {
        Ok(device) => disarm(device).map(|warning| (true, warning)),
        Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => Ok((false, None)),
        Err(e) => Err(explained(place, &e)),
    }
}

fn disarm(mut device: Device) -> Result<Option<String>, String> {
    let words = device.words();
    if device.stops() {
        return device.disarm().map(|()| None).map_err(|e| e.to_string());
    }
    let last = device.keep_alive();
    let warning = format!(
        "{words} cannot be disarmed: it was fed once more and resets this machine soon, unless this member leads before"
    );
    last.map(|()| Some(warning)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
