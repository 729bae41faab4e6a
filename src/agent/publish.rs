//! What this member says of itself in the store, and when (design §6, "Writes per cluster at rest").
//!
//! Everything but positions is published at once. Positions ride along; alone they are refreshed every loop_wait while
//! somebody needs them from there (a Patroni member, a cascade), else after 16 MB or a ttl.

use std::time::Duration;

use serde_json::{Map, Value};
use tracing::{debug, warn};

use super::{Agent, Outcome, clock};
use crate::dcs::{MemberStatus, WriteResult};
use crate::model::{BootInstant, Cluster, Local, Lsn, MemberName, PostgresState, Role, Settings};

/// A position that moved by less is not worth a write of its own.
const POSITION_STEP: u64 = 16 * 1024 * 1024;
/// Pause after a write that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The last status the store has taken.
#[derive(Default)]
pub(super) struct Publisher {
    last: Option<(MemberStatus, BootInstant)>,
    in_flight: Option<MemberStatus>,
    not_before: BootInstant,
}

/// Is this status to be written now?
fn due(
    last: Option<&(MemberStatus, BootInstant)>,
    status: &MemberStatus,
    needed: bool,
    s: &Settings,
    now: BootInstant,
) -> bool {
    let Some((old, at)) = last else { return true };
    if without_positions(old) != without_positions(status) {
        return true;
    }
    let age = now.since(*at);
    let step = |a: Option<Lsn>, b: Option<Lsn>| b.unwrap_or_default().ahead_of(a.unwrap_or_default());
    let moved = step(old.xlog_location, status.xlog_location).max(step(old.replay_lsn, status.replay_lsn));
    age >= s.ttl || (age >= s.loop_wait && moved > 0 && (needed || moved > POSITION_STEP))
}

fn without_positions(status: &MemberStatus) -> MemberStatus {
    MemberStatus { xlog_location: None, receive_lsn: None, replay_lsn: None, ..status.clone() }
}

/// Does anybody read positions from the store: a member that is not ours, or one that streams from me?
fn positions_needed(cluster: &Cluster, me: &MemberName) -> bool {
    cluster
        .members
        .iter()
        .filter(|(name, _)| *name != me)
        .any(|(_, m)| (m.version.is_some() && m.implementation.is_none()) || m.tags.replicatefrom.as_ref() == Some(me))
}

/// The status of a member in this state (kubernetes-objects §2.1). Positions only while Postgres answers.
fn status_of(local: &Local, mut status: MemberStatus, leader: bool) -> MemberStatus {
    let pg = &local.postgres;
    let answers = matches!(pg.state, PostgresState::Running | PostgresState::Restarting | PostgresState::Starting);
    status.is_leader = leader;
    status.pending_restart = pg.pending_restart;
    status.checkpoint_pending = leader && pg.role == Role::Primary && !pg.checkpointed;
    if let Some(probe) = pg.probe.as_ref().filter(|_| answers && pg.alive) {
        let known = |lsn: Lsn| (lsn != Lsn::ZERO).then_some(lsn);
        status.xlog_location = Some(probe.position);
        status.timeline = (probe.timeline.0 != 0).then_some(probe.timeline);
        if probe.in_recovery {
            status.receive_lsn = known(probe.received);
            status.replay_lsn = known(probe.replayed);
            status.replication_state = probe.streaming.then(|| "streaming".to_owned());
        }
    }
    status
}

impl Agent {
    /// My own status document as of now.
    pub(super) fn member_status(&self) -> MemberStatus {
        let pg = &self.local.postgres;
        let mut status =
            MemberStatus::new(self.setup.conn_url(), self.wishes.api_url.clone(), pg.state.clone(), pg.role);
        status.proxy_url = self.wishes.proxy_url.clone();
        status.tags = serde_json::Value::Object(self.effective_tags()).to_string().into();
        status.pending_restart_reason = self.pending_restart.clone();
        status.scheduled_restart = self.scheduled_restart.clone().map(|d| Value::Object(d).to_string().into());
        let leader = self.leader_until().is_some_and(|until| clock::boot() < until);
        let mut status = status_of(&self.local, status, leader);
        if status.replication_state.is_none()
            && status.receive_lsn.or(status.replay_lsn).is_some()
            && self.setup.recovery_conf.contains_key("restore_command")
        {
            status.replication_state = Some("in archive recovery".to_owned());
        }
        status
    }

    /// Tags as published.
    pub(super) fn effective_tags(&self) -> Map<String, Value> {
        self.wishes.published_tags.clone()
    }

    /// Begins a write of the member status if it is due.
    pub(super) fn publish(&mut self) {
        let now = clock::boot();
        let status = self.member_status();
        let needed = positions_needed(&self.cluster, &self.local.me);
        let publisher = &self.publisher;
        if publisher.in_flight.is_some()
            || now < publisher.not_before
            || !due(publisher.last.as_ref(), &status, needed, &self.settings, now)
        {
            return;
        }
        self.publisher.in_flight = Some(status.clone());
        let store = self.store.clone();
        self.begin(async move { Outcome::Published(store.publish_member(status).await) });
    }

    pub(super) fn published(&mut self, result: WriteResult) {
        let now = clock::boot();
        let sent = self.publisher.in_flight.take();
        match result {
            WriteResult::Written(_) => self.publisher.last = sent.map(|s| (s, now)),
            WriteResult::Conflict => debug!("member status: the pod changed meanwhile"),
            WriteResult::Refused(why) | WriteResult::Unknown(why) => {
                warn!("could not publish the member status: {why}");
            }
        }
        if self.publisher.last.as_ref().is_none_or(|(_, at)| *at != now) {
            self.publisher.not_before = now + RETRY_AFTER;
        }
    }

    /// When the next publication may be due although nothing happens.
    pub(super) fn publish_wake(&self) -> Option<BootInstant> {
        let publisher = &self.publisher;
        match &publisher.last {
            None if publisher.in_flight.is_none() => Some(publisher.not_before),
            None => None,
            Some(_) if publisher.not_before > clock::boot() => Some(publisher.not_before),
            Some((_, at)) => Some(*at + self.settings.ttl),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Member;

    fn at(secs: u64) -> BootInstant {
        BootInstant::from_nanos(secs * 1_000_000_000)
    }
    fn status(position: u64) -> MemberStatus {
        let mut s =
            MemberStatus::new("postgres://a:1/postgres", "http://a:2/patroni", PostgresState::Running, Role::Replica);
        s.xlog_location = Some(Lsn(position));
        s
    }

    #[test]
    fn a_position_alone_waits_for_its_reason() {
        let s = Settings::default();
        let last = Some((status(1), at(100)));
        let write = |position, needed, t| due(last.as_ref(), &status(position), needed, &s, at(t));
        assert!(due(None, &status(1), false, &s, at(0)), "nothing published yet");
        assert!(!write(1000, false, 115), "nobody needs it");
        assert!(write(1000, true, 110), "a Patroni member reads it every loop_wait");
        assert!(!write(1000, true, 109), "but not oftener");
        assert!(!write(1, true, 120), "it did not move");
        assert!(write(2 + POSITION_STEP, false, 110), "16 MB");
        assert!(write(1, false, 130), "every ttl");
    }

    #[test]
    fn any_other_change_is_published_at_once() {
        let last = (status(1), at(100));
        let mut changed = status(1);
        changed.state = PostgresState::Stopping;
        assert!(due(Some(&last), &changed, false, &Settings::default(), at(100)));
    }

    #[test]
    fn positions_are_needed_by_members_of_the_other_kind_and_by_cascades() {
        let member = |version: Option<&str>, ours: bool| Member {
            version: version.map(str::to_owned),
            implementation: ours.then(|| "0.1.0".to_owned()),
            ..Member::default()
        };
        let cluster = |m: Member| Cluster { members: [("b".into(), m)].into(), ..Cluster::default() };
        let me = MemberName::from("a");
        assert!(positions_needed(&cluster(member(Some("4.1.5"), false)), &me));
        assert!(!positions_needed(&cluster(member(Some("4.1.5"), true)), &me));
        assert!(!positions_needed(&cluster(member(None, false)), &me), "a pod in which nothing ran yet");
        let mut cascading = member(Some("4.1.5"), true);
        cascading.tags.replicatefrom = Some(me.clone());
        assert!(positions_needed(&cluster(cascading), &me));
    }
}
