//! What the clients' memory says about the cluster: were two members writable at once, and which promises were broken.
//!
//! Both are pure functions over the list of acknowledgements. S2: no commit is acknowledged by a member after
//! another member's first acknowledgement on a newer timeline. Loss is judged against the final primary: what is missing of a
//! timeline must be its tail, else something other than asynchronous replication lost it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::writer::Ack;

/// When a whole pod is thawed, a backend may get the processor before the keeper does, and answer what waits in its socket.
/// Without a watchdog nothing can prevent that; from here on every acknowledgement is judged.
const KEEPER_SCHEDULED: Duration = Duration::from_millis(500);

/// Every acknowledgement that breaks S2, in words. A whole pod that was frozen past its lease without a watchdog is promised
/// nothing for statements in flight when it was thawed; `thaws` are those moments.
pub fn two_writers(acks: &[Ack], thaws: &[Instant]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut newest: Option<&Ack> = None;
    let in_flight = |a: &&Ack| thaws.iter().any(|t| a.at >= *t && a.at <= *t + KEEPER_SCHEDULED);
    for ack in acks.iter().filter(|a| !in_flight(a)) {
        match newest {
            Some(first) if ack.timeline < first.timeline && ack.member != first.member => {
                broken.push(told(ack, first, "older"));
            }
            Some(first) if ack.timeline == first.timeline && ack.member != first.member => {
                broken.push(told(ack, first, "same"));
            }
            Some(first) if ack.timeline <= first.timeline => {}
            Some(_) | None => newest = Some(ack),
        }
    }
    broken
}

fn told(late: &Ack, first: &Ack, which: &str) -> String {
    format!(
        "member {} acknowledged row {} on the {which} timeline {}, {:.3} s after member {} had acknowledged row {} on timeline {}",
        late.member,
        late.id,
        late.timeline,
        (late.at - first.at).as_secs_f64(),
        first.member,
        first.id,
        first.timeline
    )
}

/// Acknowledged rows that are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub rows: usize,
    /// WAL between the first missing and the last acknowledged row of the timeline that lost most, in bytes.
    pub bytes: u64,
    /// Missing rows with a later row of the same timeline present: never excused.
    pub holes: Vec<u64>,
}

/// Compares what was acknowledged with what is there.
pub fn loss(acks: &[Ack], present: &BTreeSet<u64>) -> Loss {
    let mut timelines: BTreeMap<u32, Vec<&Ack>> = BTreeMap::new();
    for ack in acks {
        timelines.entry(ack.timeline).or_default().push(ack);
    }
    let mut loss = Loss::default();
    for acks in timelines.values_mut() {
        acks.sort_by_key(|a| (a.lsn, a.id));
        let last_present = acks.iter().rposition(|a| present.contains(&a.id));
        let missing: Vec<(usize, &&Ack)> = acks.iter().enumerate().filter(|(_, a)| !present.contains(&a.id)).collect();
        loss.rows += missing.len();
        loss.holes.extend(missing.iter().filter(|(i, _)| last_present.is_some_and(|l| *i < l)).map(|(_, a)| a.id));
        if let (Some((_, first)), Some(last)) = (missing.first(), acks.last()) {
            loss.bytes = loss.bytes.max(last.lsn - first.lsn);
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(list: &[(u64, usize, u32)]) -> Vec<Ack> {
        let start = Instant::now();
        let one = |(i, (id, member, timeline)): (usize, &(u64, usize, u32))| {
            let at = start + Duration::from_millis(i as u64);
            Ack { id: *id, member: *member, sent: at, at, timeline: *timeline, lsn: 100 * *id }
        };
        list.iter().enumerate().map(one).collect()
    }

    #[test]
    fn an_acknowledgement_of_the_old_leader_after_the_new_one_wrote_is_seen() {
        assert!(two_writers(&acks(&[(1, 0, 1), (2, 1, 2), (3, 1, 2), (4, 0, 3)]), &[]).is_empty());
        assert_eq!(two_writers(&acks(&[(1, 0, 1), (2, 1, 2), (3, 0, 1)]), &[]).len(), 1);
        assert_eq!(two_writers(&acks(&[(1, 0, 1), (2, 1, 1)]), &[]).len(), 1);
    }

    #[test]
    fn what_a_thawed_pod_answers_later_than_its_keeper_needs_is_seen() {
        let mut acks = acks(&[(1, 0, 1), (2, 1, 2), (3, 0, 1)]);
        let thawed = acks[1].at;
        assert!(two_writers(&acks, &[thawed + Duration::from_millis(1)]).is_empty());
        acks[2].at = thawed + Duration::from_secs(1);
        assert_eq!(two_writers(&acks, &[thawed + Duration::from_millis(1)]).len(), 1, "in flight, but much too late");
    }

    #[test]
    fn a_lost_tail_is_counted_and_a_hole_is_named() {
        let acks = acks(&[(1, 0, 1), (2, 0, 1), (3, 0, 1), (4, 1, 2)]);
        let tail = loss(&acks, &BTreeSet::from([1, 4]));
        assert_eq!(tail, Loss { rows: 2, bytes: 100, holes: vec![] });
        assert_eq!(loss(&acks, &BTreeSet::from([1, 3, 4])).holes, vec![2]);
    }
}
