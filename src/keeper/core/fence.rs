//! The one decision about a deadline, as a pure function: what is done to Postgres, and when to look again.
//!
//! | Postgres | permission | order |
//! |---|---|---|
//! | provably in recovery | any | nothing |
//! | possible writer | none | immediate stop at once, kill 1.5 s later |
//! | possible writer | writer | immediate stop at `stop_at` (not while it shuts down anyway), kill at `kill_at` |
//! | possible writer | unfenced | nothing |
//! | any, its warden gone | any | immediate stop at once, kill 1.5 s later |
//! | any | keeper terminating, nobody hands over | fast stop; immediate stop 2 s before the end |

use super::super::protocol::{Permission, StopMode};
use crate::mutant::{self, Mutant};

const SECOND: u64 = 1_000_000_000;
/// Between the immediate stop of a writer without permission and its kill: as far apart as the two deadlines of a
/// permission, and an immediate stop takes a tenth of it.
const KILL_AFTER: u64 = 3 * SECOND / 2;
/// Before the end of the grace period, an immediate stop: what comes after is the kubelet's SIGKILL.
const IMMEDIATE_BEFORE_END: u64 = 2 * SECOND;
/// A sidecar that does not answer `terminating` for this long does not hand over.
pub(super) const SILENCE: u64 = SECOND;
/// A promotion by hand shows in pg_control; it is looked at this often.
pub(super) const LOOK: u64 = SECOND;

/// What is known of a living postmaster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Postgres {
    /// Not provably in recovery.
    pub writer: bool,
    /// pg_control says "shutting down" or "shut down".
    pub shutting_down: bool,
    /// The strongest stop already sent.
    pub stopped: Option<StopMode>,
    /// Since when it is a writer without permission.
    pub unpermitted_since: Option<u64>,
    /// Since when its warden is gone: with it went the deadman.
    pub unwatched_since: Option<u64>,
}

/// The end of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terminating {
    /// When SIGTERM came.
    pub since: u64,
    /// End of the grace period.
    pub end: u64,
    /// A sidecar is connected and has answered.
    pub handed_over: bool,
}

/// Everything the decision looks at. Instants in ns since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub now: u64,
    pub permission: Permission,
    pub postgres: Option<Postgres>,
    pub terminating: Option<Terminating>,
}

/// An order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub mode: StopMode,
    pub why: &'static str,
}

/// The order, if there is one, and the instant to look again.
pub(super) fn order(f: &Facts) -> (Option<Order>, u64) {
    let Some(postgres) = f.postgres else { return (None, f.now + LOOK) };
    let fence = fence(f, &postgres);
    let end = terminating(f, &postgres);
    let strongest = [fence, unwatched(f, &postgres), end].into_iter().flatten().max_by_key(|o| o.mode);
    let order = strongest.filter(|o| o.mode == StopMode::Kill || postgres.stopped.is_none_or(|sent| sent < o.mode));
    (order, look_again(f, &postgres))
}

fn fence(f: &Facts, p: &Postgres) -> Option<Order> {
    if !p.writer || mutant::is(Mutant::KeeperNeverFences) {
        return None;
    }
    match f.permission {
        Permission::Unfenced { .. } => None,
        Permission::None if mutant::is(Mutant::WriterNeedsNoPermission) => None,
        Permission::None => Some(if p.unpermitted_since.is_some_and(|since| f.now >= since + KILL_AFTER) {
            Order { mode: StopMode::Kill, why: "a writer without permission did not stop" }
        } else {
            Order { mode: StopMode::Immediate, why: "a writer without permission" }
        }),
        Permission::Writer { kill_at, .. } if f.now >= kill_at && !mutant::is(Mutant::KeeperNeverKills) => {
            Some(Order { mode: StopMode::Kill, why: "the permission has ended and Postgres did not stop" })
        }
        Permission::Writer { stop_at, .. } if f.now >= stop_at && !p.shutting_down => {
            Some(Order { mode: StopMode::Immediate, why: "the permission has ended" })
        }
        Permission::Writer { .. } => None,
    }
}

/// With the warden went the deadman.
fn unwatched(f: &Facts, p: &Postgres) -> Option<Order> {
    let since = p.unwatched_since?;
    Some(if f.now >= since + KILL_AFTER {
        Order { mode: StopMode::Kill, why: "the warden of Postgres is gone, and Postgres did not stop" }
    } else {
        Order { mode: StopMode::Immediate, why: "the warden of Postgres is gone" }
    })
}

fn terminating(f: &Facts, _: &Postgres) -> Option<Order> {
    let t = f.terminating?;
    if f.now + IMMEDIATE_BEFORE_END >= t.end {
        return Some(Order { mode: StopMode::Immediate, why: "the grace period ends" });
    }
    let alone = !t.handed_over && f.now >= t.since + SILENCE;
    alone.then_some(Order { mode: StopMode::Fast, why: "terminating, and no sidecar hands over" })
}

fn look_again(f: &Facts, p: &Postgres) -> u64 {
    let mut at = f.now + LOOK;
    let mut consider = |t: u64| {
        if t > f.now {
            at = at.min(t);
        }
    };
    if let Permission::Writer { stop_at, kill_at } = f.permission {
        consider(stop_at);
        consider(kill_at);
    }
    for since in [p.unpermitted_since, p.unwatched_since].into_iter().flatten() {
        consider(since + KILL_AFTER);
    }
    if let Some(t) = f.terminating {
        consider(t.since + SILENCE);
        consider(t.end.saturating_sub(IMMEDIATE_BEFORE_END));
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(now: u64, permission: Permission, writer: bool) -> Facts {
        let postgres =
            Postgres { writer, shutting_down: false, stopped: None, unpermitted_since: None, unwatched_since: None };
        Facts { now: now * SECOND, permission, postgres: Some(postgres), terminating: None }
    }
    fn mode(f: &Facts) -> Option<StopMode> {
        order(f).0.map(|o| o.mode)
    }
    const WRITER: Permission = Permission::Writer { stop_at: 20 * SECOND, kill_at: 22 * SECOND };

    #[test]
    fn a_permitted_writer_runs_until_its_deadlines() {
        assert_eq!(mode(&facts(19, WRITER, true)), None);
        assert_eq!(order(&facts(19, WRITER, true)).1, 20 * SECOND);
        assert_eq!(mode(&facts(20, WRITER, true)), Some(StopMode::Immediate));
        assert_eq!(mode(&facts(22, WRITER, true)), Some(StopMode::Kill));
    }

    #[test]
    fn standbys_are_never_fenced() {
        for now in [0, 20, 22, 100] {
            assert_eq!(mode(&facts(now, WRITER, false)), None);
            assert_eq!(mode(&facts(now, Permission::None, false)), None);
        }
    }

    #[test]
    fn a_writer_without_permission_is_stopped_at_once_and_killed_if_it_stays() {
        let mut f = facts(5, Permission::None, true);
        assert_eq!(mode(&f), Some(StopMode::Immediate));
        f.postgres = f.postgres.map(|p| Postgres {
            stopped: Some(StopMode::Immediate),
            unpermitted_since: Some(5 * SECOND),
            ..p
        });
        assert_eq!(mode(&f), None);
        f.now = 5 * SECOND + KILL_AFTER;
        assert_eq!(mode(&f), Some(StopMode::Kill));
        assert_eq!(mode(&f), Some(StopMode::Kill), "repeated until reaped");
    }

    #[test]
    fn the_stop_is_skipped_while_it_shuts_down_but_the_kill_stays() {
        let mut f = facts(20, WRITER, true);
        f.postgres = f.postgres.map(|p| Postgres { shutting_down: true, ..p });
        assert_eq!(mode(&f), None);
        f.now = 22 * SECOND;
        assert_eq!(mode(&f), Some(StopMode::Kill));
    }

    #[test]
    fn whatever_has_lost_its_warden_is_stopped_and_killed_if_it_stays() {
        for (permission, writer) in [(WRITER, true), (Permission::None, false)] {
            let mut f = facts(5, permission, writer);
            f.postgres = f.postgres.map(|p| Postgres { unwatched_since: Some(5 * SECOND), ..p });
            assert_eq!(mode(&f), Some(StopMode::Immediate));
            f.now += KILL_AFTER;
            assert_eq!(mode(&f), Some(StopMode::Kill));
        }
        let mut f = facts(22, WRITER, true);
        f.postgres = f.postgres.map(|p| Postgres { unwatched_since: Some(22 * SECOND - SECOND / 2), ..p });
        assert_eq!(mode(&f), Some(StopMode::Kill), "the end of its permission moves no further");
    }

    #[test]
    fn bootstrap_and_pause_run_unfenced() {
        let unfenced = Permission::Unfenced { reason: super::super::super::protocol::UnfencedReason::Bootstrap };
        assert_eq!(mode(&facts(1000, unfenced, true)), None);
    }

    #[test]
    fn a_terminating_keeper_stops_postgres_unless_somebody_hands_over() {
        let mut f = facts(10, WRITER, true);
        f.terminating = Some(Terminating { since: 10 * SECOND, end: 100 * SECOND, handed_over: false });
        assert_eq!(mode(&f), None, "the sidecar has a second to answer");
        f.now = 11 * SECOND;
        assert_eq!(mode(&f), Some(StopMode::Fast));
        f.terminating = f.terminating.map(|t| Terminating { handed_over: true, ..t });
        assert_eq!(mode(&f), None);
        f.permission = Permission::Writer { stop_at: 200 * SECOND, kill_at: 202 * SECOND };
        f.now = 98 * SECOND;
        assert_eq!(mode(&f), Some(StopMode::Immediate), "two seconds before the end");
    }
}
