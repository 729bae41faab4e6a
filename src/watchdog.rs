//! The watchdog device. This version opens none: `off` and `automatic` run without a device, as Patroni
//! does where there is none, and `required` is refused in words, because promising a reset that never comes would be
//! worse than not leading.

use crate::model::WatchdogMode;

/// Why a member with this mode must not lead; `None`: it may.
pub fn refusal(mode: WatchdogMode) -> Option<String> {
    match mode {
        WatchdogMode::Off | WatchdogMode::Automatic => None,
        WatchdogMode::Required => Some(
            "watchdog.mode is required, but no watchdog device can be driven; set it to automatic or off to let this \
             member lead"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_required_watchdog_keeps_a_member_from_leading() {
        assert_eq!(refusal(WatchdogMode::Off), None);
        assert_eq!(refusal(WatchdogMode::Automatic), None);
        assert!(refusal(WatchdogMode::Required).is_some_and(|why| why.contains("watchdog.mode")));
    }
}
