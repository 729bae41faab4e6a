//! The watchdog device of the machine that a pod runs on: it resets the machine when it is not fed in time. Two seeds in
//! thirteen have one, and for one of these it is required.

use patroni::member::{Answer, Fail, Fed, Id};
use patroni::model::{Feed, Settings, Timings, WatchdogMode, timings};

use super::kubelet::Kubelet;
use super::mutant::Profile;
use super::postgres::Phase;
use super::world::{Event, MS, Ns, SEC, World};

/// The settings of a seed. Nothing is drawn: seeds without a device stay as they are.
pub fn settle(seed: u64, profile: Option<&Profile>, settings: &mut Settings) {
    settings.watchdog = match (profile, seed % 13) {
        (Some(profile), _) if !profile.device => return,
        (Some(_), 0..=6) | (None, 4) => WatchdogMode::Automatic,
        (Some(_), _) | (None, 9) => WatchdogMode::Required,
        (None, _) => return,
    };
    if seed.is_multiple_of(2) {
        // Half of the ttl.
        settings.watchdog_margin = None;
    }
}

/// The deadlines of a leader whose device is armed, if the seed has one.
pub fn timings(s: &Settings) -> Option<Timings> {
    Timings::new(s, s.ttl, Some(timings::device(s, s.ttl))).ok()
}

impl World {
    pub fn feed_device(&mut self, pod: usize, id: Id, feed: Feed) {
        let Some(wanted) = feed.timeout(self.boot(pod)) else {
            return self.reply_in(pod, MS, id, Ok(Answer::Fed(Fed::default())));
        };
        // One in four cannot be opened for a while.
        let broken = !self.quiet && self.seed.is_multiple_of(4) && pod == 1 && self.t % (100 * SEC) < 50 * SEC;
        if broken && self.pods[pod].device.is_none() {
            return self.reply_in(pod, MS, id, Err(Fail::Refused("no such device".to_owned())));
        }
        let at = self.t + Ns::from(wanted) * SEC;
        let armed = self.pods[pod].device.replace(at).is_none().then(|| "Model".to_owned());
        self.at(at, Event::DeviceFires { pod, at });
        let age = self.boot(pod).since(feed.evidence);
        let resets_after = Some(age + std::time::Duration::from_secs(wanted.into()));
        self.reply_in(pod, MS, id, Ok(Answer::Fed(Fed { resets_after, armed, warning: None })));
    }

    /// `late`: nobody waits for it any more.
    pub fn disarm_device(&mut self, pod: usize, id: Id, late: bool) {
        let shown = self.pods[pod].sidecar.as_ref().and_then(|s| s.member.as_ref()).map(|m| m.snapshot());
        let needed = shown.is_some_and(|s| !s.settings.pause && s.settings.watchdog != WatchdogMode::Off);
        let armed = self.pods[pod].device.take().is_some();
        if armed && needed && !late && self.pods[pod].pg.as_ref().is_some_and(|pg| pg.phase == Phase::Primary) {
            self.violation(format!("W1 m{pod} disarms the watchdog of a running primary"));
        }
        self.reply_in(pod, MS, id, Ok(Answer::Disarmed { armed, warning: None }));
    }

    /// The machine is reset, if nobody has fed the device since.
    pub fn device_fires(&mut self, pod: usize, at: Ns) {
        if self.pods[pod].device != Some(at) {
            return;
        }
        self.pods[pod].device = None;
        // What has not begun yet begins after the reset.
        if self.pods[pod].sidecar.as_ref().is_none_or(|s| s.member.is_none()) {
            return;
        }
        self.note(format!("m{pod}: the watchdog resets the machine"));
        let p = &self.pods[pod];
        let well = p.sidecar.as_ref().is_some_and(|s| s.member.is_some() && self.t >= s.frozen + 20 * SEC);
        let writes = p.pg.as_ref().is_some_and(|pg| pg.phase == Phase::Primary);
        if well
            && !writes
            && p.keeper.as_ref().is_some_and(|k| self.t >= k.frozen + 20 * SEC)
            && self.t >= p.started + 20 * SEC
        {
            self.violation(format!("W2 the machine of m{pod} is reset, and nobody there can write"));
        }
        self.kill_pod(pod, true);
        self.restart_soon(pod, Kubelet::StartKeeper);
        self.restart_soon(pod, Kubelet::StartSidecar);
    }
}
