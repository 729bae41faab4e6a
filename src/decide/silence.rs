//! A keeper that does not answer: what its silence proves.
//!
//! Nothing is sent to it any more. The kernel ends what it has let run when the last permission ends, and PostgreSQL kills
//! those of its children that hear nothing five seconds later. So after that, with my own session broken and nobody
//! listening in its place, no writer of mine lives: the lock may go to somebody else. It is the one exception to the rule
//! that a lock is given up only when the keeper has reaped every process.
//!
//! Where that is not proven (the session answers or hangs, the postmaster has no warden that the kernel ends, something may
//! run without a deadline), the lock is renewed on, for as long as it takes: a lock that ends by itself would call a second
//! writer. A person is told by `fence: lost`.

use std::time::Duration;

use super::{Ctx, Hold};
use crate::model::{Action, BootInstant, Decision, Fence, InFlight, KeeperLink, Local, Request, StartRoleSeen};
use crate::mutant::{self, Mutant};

/// After the last kill: five seconds for PostgreSQL's own, one for clocks and scheduling. True seconds on every time scale,
/// since PostgreSQL knows none.
const DEAF: Duration = Duration::from_secs(6);

/// What there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// The keeper answers.
    Broken,
    /// No writer of mine lives.
    Proof,
    /// It may be one then.
    Until(BootInstant),
    /// It is none; why.
    Nothing(&'static str),
}

/// Judges the silence of my keeper.
pub(crate) fn judge(local: &Local, now: BootInstant) -> Silence {
    let KeeperLink::Lost { .. } = local.keeper else { return Silence::Broken };
    let deadman = &local.deadman;
    if deadman.container_ended {
        return Silence::Proof;
    }
    let over = deadman.kill_at + DEAF;
    if deadman.in_use.is_some() {
        return Silence::Nothing("something that it did not start holds the data directory");
    }
    if deadman.unfenced {
        return Silence::Nothing("it may have let Postgres run without a deadline");
    }
    if may_write(local) && deadman.fence != Fence::Full {
        return Silence::Nothing("nothing but the keeper stops this Postgres");
    }
    if now < over && !mutant::is(Mutant::SilenceIsImpatient) {
        return Silence::Until(over);
    }
    if recovers(local, over) {
        return Silence::Proof;
    }
    if may_write(local) && deadman.gone.is_none() && !mutant::is(Mutant::SilenceNeedsNoSession) {
        return Silence::Nothing("my own session with Postgres is not known to be broken");
    }
    Silence::Proof
}

fn may_write(local: &Local) -> bool {
    // One that was ordered to promote may follow the order at any moment, whatever the answer was.
    local.deadman.in_doubt || local.deadman.ordered && local.postgres.alive || local.postgres.may_write()
}

/// A promotion that was ordered has not come about, and the order is worth nothing any more: it was a standby still when no
/// permission stood.
fn recovers(local: &Local, over: BootInstant) -> bool {
    let started = local.postgres.started_as == Some(StartRoleSeen::Standby);
    started && local.postgres.probe.as_ref().is_some_and(|p| p.in_recovery && p.at >= over)
}

/// The lock is mine, the keeper is silent, and no writer of mine lives: somebody else may lead, if somebody is there.
pub(super) fn let_go(ctx: &Ctx<'_>) -> Option<Decision> {
    let held = matches!(ctx.hold, Hold::Leader(_) | Hold::Lapsed(_));
    let others = ctx.cluster.members.keys().any(|name| *name != ctx.local.me);
    if !held || !others || judge(ctx.local, ctx.now.boot) != Silence::Proof {
        return None;
    }
    // Every end of a release is the end of the lease: it needs no rest between two.
    let free = ctx.local.lease_write.is_none();
    let why = "releasing the lock: the keeper does not answer, and no writer of mine lives any more (proof by silence)";
    let why = if ctx.local.lease_write == Some(InFlight::Release) { "releasing the lock" } else { why };
    Some(
        ctx.wait(why)
            .wake_by(ctx.now.boot + super::RETRY_PAUSE)
            .then_if(free, || Action::ReleaseLease { shutdown: None }),
    )
}

/// For the status line of a leader whose keeper is silent.
pub(super) fn in_words(ctx: &Ctx<'_>) -> String {
    match judge(ctx.local, ctx.now.boot) {
        Silence::Broken => String::new(),
        Silence::Proof => {
            " (fence: lost, the keeper does not answer, and nobody else could lead: delete this pod to start again)"
                .to_owned()
        }
        Silence::Until(_) => {
            " (fence: lost, the keeper does not answer: waiting for the end of its permission)".to_owned()
        }
        Silence::Nothing(why) => {
            let told = ctx.local.request == Some(Request::Terminate { leave_postgres: true });
            let stays =
                if told { "; told to end, staying: the lock would run out while Postgres may write" } else { "" };
            format!(
                " (fence: lost, the keeper does not answer: {why}; delete this pod, not with --force; outside Kubernetes end \
                 Postgres and all its children first, then the keeper{stays})"
            )
        }
    }
}
