//! What the store is told of this member: at once when anything but a position changes; positions ride along, and are
//! refreshed alone every loop_wait while somebody reads them from there (a Patroni member, a cascade), else after 16 MB or
//! a ttl.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::effect::Effect;
use super::flights::{About, Lane};
use super::state::State;
use crate::model::{
    BootInstant, Cluster, Fence, KeeperLink, Local, Lsn, MemberName, MemberStatus, PostgresState, Role, Settings,
    WriteResult,
};

/// A position that moved by less is not worth a write of its own.
const POSITION_STEP: u64 = 16 * 1024 * 1024;
/// Pause after a write that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The last status the store has taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Publisher {
    last: Option<(MemberStatus, BootInstant)>,
    not_before: BootInstant,
}

impl Publisher {
    /// The configuration changed: tags and addresses may be others now.
    pub fn changed(&mut self) {
        self.not_before = BootInstant::default();
    }
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
    if !same_but_positions(old, status) {
        return true;
    }
    let age = now.since(*at);
    let step = |a: Option<Lsn>, b: Option<Lsn>| b.unwrap_or_default().ahead_of(a.unwrap_or_default());
    let moved = step(old.xlog_location, status.xlog_location).max(step(old.replay_lsn, status.replay_lsn));
    age >= s.ttl || (age >= s.loop_wait && moved > 0 && (needed || moved > POSITION_STEP))
}

/// Every field is named: one that is new has to be put on one of the two sides.
fn same_but_positions(a: &MemberStatus, b: &MemberStatus) -> bool {
    let MemberStatus {
        conn_url,
        api_url,
        state,
        role,
        proxy_url,
        checkpoint_pending,
        tags,
        site,
        pending_restart,
        pending_restart_reason,
        xlog_location: _,
        receive_lsn: _,
        replay_lsn: _,
        replication_state,
        timeline,
        scheduled_restart,
        fence,
        pause,
        is_leader,
    } = a;
    (state, role, is_leader, timeline) == (&b.state, &b.role, &b.is_leader, &b.timeline)
        && (conn_url, api_url, proxy_url) == (&b.conn_url, &b.api_url, &b.proxy_url)
        && (tags, site, replication_state) == (&b.tags, &b.site, &b.replication_state)
        && *checkpoint_pending == b.checkpoint_pending
        && (pending_restart, pending_restart_reason, scheduled_restart)
            == (&b.pending_restart, &b.pending_restart_reason, &b.scheduled_restart)
        && (*fence, *pause) == (b.fence, b.pause)
}

/// Does anybody read positions from the store: a member that is not ours, or one that streams from me?
fn positions_needed(cluster: &Cluster, me: &MemberName) -> bool {
    cluster
        .members
        .iter()
        .filter(|(name, _)| *name != me)
        .any(|(_, m)| (m.version.is_some() && m.implementation.is_none()) || m.tags.replicatefrom.as_ref() == Some(me))
}

/// The status of a member in this state . Positions only while Postgres answers.
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

/// The tags of a member that nobody should wait for: it is about to stop.
fn with_nosync(tags: &Arc<str>) -> Arc<str> {
    let mut all: Map<String, Value> = serde_json::from_str(tags).unwrap_or_default();
    all.insert("nosync".to_owned(), Value::Bool(true));
    all.insert("sync_priority".to_owned(), 0.into());
    Value::Object(all).to_string().into()
}

impl State {
    /// My own status document as of now.
    pub(super) fn member_status(&self) -> MemberStatus {
        let pg = &self.local.postgres;
        let f = &self.in_force;
        let mut status = MemberStatus::new(f.conn_url.clone(), f.api_url.clone(), pg.state.clone(), pg.role);
        status.proxy_url.clone_from(&f.proxy_url);
        status.tags = if self.local.quits_sync.is_some() { with_nosync(&f.tags) } else { f.tags.clone() };
        status.site.clone_from(&f.settings.site);
        status.pending_restart_reason = self.pending_restart.clone();
        status.scheduled_restart = self.scheduled.as_ref().map(|s| s.document.clone());
        status.fence = match self.local.keeper {
            KeeperLink::Lost { .. } => Some("lost"),
            KeeperLink::Connected { .. } if pg.alive && self.local.deadman.fence == Fence::Partial => Some("partial"),
            KeeperLink::Connected { .. } => None,
        };
        status.pause = self.local.maintenance.is_on();
        let leader = self.leader_until().is_some_and(|until| self.now.boot < until);
        let mut status = status_of(&self.local, status, leader);
        if status.replication_state.is_none() && status.receive_lsn.or(status.replay_lsn).is_some() {
            let restores = f.restores || self.local.bootstrapping;
            status.replication_state = restores.then(|| "in archive recovery".to_owned());
        }
        status
    }

    /// Begins a write of the member status if it is due.
    pub(super) fn publish(&mut self) {
        let now = self.now.boot;
        if self.flights.busy(Lane::Pod) || now < self.publisher.not_before {
            return;
        }
        let status = self.member_status();
        let needed = positions_needed(&self.cluster, &self.local.me);
        if due(self.publisher.last.as_ref(), &status, needed, &self.in_force.settings, now) {
            let status = Box::new(status);
            self.send(Effect::Publish(status.clone()), About::Publish(status));
        }
    }

    pub(super) fn published(&mut self, status: MemberStatus, result: &WriteResult) {
        let now = self.now.boot;
        match result {
            WriteResult::Written(_) => {
                self.publisher.last = Some((status, now));
                return;
            }
            WriteResult::Conflict => self.debug("member status: the pod changed meanwhile"),
            WriteResult::Refused(why) | WriteResult::Unknown(why) => {
                self.warn(format!("could not publish the member status: {why}"));
            }
        }
        self.publisher.not_before = now + RETRY_AFTER;
    }

    /// When the next publication may be due although nothing happens.
    pub(super) fn publish_wake(&self) -> Option<BootInstant> {
        if self.flights.busy(Lane::Pod) {
            return None;
        }
        match &self.publisher.last {
            None => Some(self.publisher.not_before),
            Some(_) if self.publisher.not_before > self.now.boot => Some(self.publisher.not_before),
            Some((_, at)) => Some(*at + self.in_force.settings.ttl),
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
