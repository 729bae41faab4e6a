//! Where the store's chance and its dates come from: UIDs, generated names, creation times, ends of grace periods.
//!
//! A server takes both from the machine. A simulation gives its own, and the same calls give the same objects.
use super::lock;
use serde_json::{Value, json};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Chance and wall clock of a [`Store`](super::Store). Clones share them.
#[derive(Clone)]
pub struct Sources {
    bits: Arc<Mutex<dyn FnMut() -> u128 + Send>>,
    wall: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

impl Default for Sources {
    /// Those of this machine.
    fn default() -> Self {
        let since_epoch = || Duration::try_from(jiff::Timestamp::now().as_duration()).unwrap_or_default();
        Self::new(rand::random::<u128>, since_epoch)
    }
}

impl Sources {
    /// `bits` gives 128 bits of chance for each UID, `wall` the time since 1970.
    pub fn new(
        bits: impl FnMut() -> u128 + Send + 'static,
        wall: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        Self { bits: Arc::new(Mutex::new(bits)), wall: Arc::new(wall) }
    }

    /// Since 1970.
    pub(crate) fn now(&self) -> Duration {
        (self.wall)()
    }

    /// A UUID (version 4).
    pub(crate) fn uid(&self) -> String {
        let bits: u128 = lock(&self.bits)();
        let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// A moment as objects carry it: whole seconds, `2025-01-31T09:15:02Z`.
pub(crate) fn stamp(at: Duration) -> Value {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    json!(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
