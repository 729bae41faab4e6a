//! What enters the view and what does not: older copies, deletions, lists, restored stores, namesakes of my pod.

use serde_json::json;

use super::super::options::Access;
use super::*;
use crate::model::Lsn;

fn at(s: u64) -> BootInstant {
    BootInstant::from_nanos(s * 1_000_000_000)
}

fn cache() -> Cache {
    let access = Access::Server { url: String::new(), token: None };
    let o = StoreOptions::new("demo", Some("a".into()), access, || at(0), Default::default);
    Cache::new(&o, at(0))
}

fn leader(version: &str, renew: &str, optime: &str) -> Kind {
    let record = LeaseRecord { leader: Some("a".into()), renew_time: Some(renew.to_owned()), ..LeaseRecord::default() };
    let mut annotations = schema::record_patch(&record);
    annotations.extend(schema::optime_patch(optime.parse().ok().map(Lsn)));
    annotations.retain(|_, value| value.is_string());
    let metadata = json!({"name": "demo-leader", "resourceVersion": version, "annotations": annotations});
    serde_json::from_value(json!({ "metadata": metadata })).unwrap()
}

fn pod(name: &str, version: &str, uid: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "resourceVersion": version, "uid": uid},
        "status": {"podIP": format!("ip-of-{uid}")}}))
    .unwrap()
}

/// A cache, and answers to requests that went out just before them.
struct Shown(Cache);

impl Shown {
    fn kind(&mut self, kind: Kind, s: u64) {
        let mark = self.0.mark_kind(&kind.metadata.name);
        self.0.put_kind(kind, mark, at(s));
    }
    /// By a watch, whose events prove nothing.
    fn watch(&mut self, kind: Kind, s: u64) {
        let mark = self.0.mark_version("");
        self.0.put_kind(kind, mark, at(s));
    }
    fn kinds(&mut self, kinds: Vec<Kind>, version: &str, s: u64) {
        let mark = self.0.mark_feed(Feed::Kinds);
        self.0.replace_kinds(kinds, version, mark, at(s), false);
    }
    fn pod(&mut self, pod: Pod) {
        let mark = self.0.mark_pod(&pod.metadata.name);
        self.0.meet_own(&pod, mark);
        self.0.put_pod(pod, mark);
    }
    fn pods(&mut self, pods: Vec<Pod>, version: &str) {
        let mark = self.0.mark_feed(Feed::Pods);
        self.0.replace_pods(pods, version, mark);
    }
    fn renewed(&self) -> Option<String> {
        self.0.view().cluster.leader.as_ref().and_then(|l| l.lease.renew_time.clone())
    }
}

#[test]
fn only_a_change_of_the_five_keys_restarts_the_observation() {
    let mut c = Shown(cache());
    c.kind(leader("5", "t1", "1"), 10);
    assert_eq!(c.0.view().lease_received, at(10));
    c.kind(leader("6", "t1", "2"), 20);
    assert_eq!(c.0.view().lease_received, at(10), "a status-only write is no heartbeat");
    c.kind(leader("7", "t2", "2"), 30);
    assert_eq!(c.0.view().lease_received, at(30));
}

#[test]
fn an_older_copy_never_replaces_a_newer_one_nor_a_deletion() {
    let mut c = Shown(cache());
    let early = c.0.mark_kind("demo-leader");
    c.kind(leader("9", "t2", ""), 1);
    c.0.put_kind(leader("8", "t1", ""), early, at(2));
    assert_eq!(c.0.kind("demo-leader").unwrap().version.0, "9");
    c.0.drop_kind("demo-leader", "12", at(3));
    c.0.put_kind(leader("11", "t3", ""), early, at(4));
    assert!(c.0.view().cluster.leader.is_none(), "an answer under way does not resurrect the object");
    assert_eq!(c.0.view().lease_received, at(3));
    c.kind(leader("13", "t4", ""), 5);
    assert!(c.0.view().cluster.leader.is_some());
    assert_eq!(c.0.epoch(), 0);
}

#[test]
fn a_relist_drops_what_is_missing_but_keeps_own_writes_newer_than_itself() {
    let mut c = Shown(cache());
    let list = c.0.mark_feed(Feed::Kinds);
    c.kind(leader("20", "t1", ""), 1);
    c.0.replace_kinds(vec![], "15", list, at(2), false);
    assert!(c.0.view().cluster.leader.is_some());
    c.kinds(vec![], "25", 3);
    assert!(c.0.view().cluster.leader.is_none());
}

#[test]
fn the_link_is_following_only_when_both_collections_are() {
    let mut c = Shown(cache());
    assert_eq!(c.0.view().link, StoreLink::NotRead);
    c.kinds(vec![], "1", 1);
    assert_eq!(c.0.view().link, StoreLink::NotRead);
    c.pods(vec![], "1");
    assert_eq!(c.0.view().link, StoreLink::Following);
    c.0.broken(Feed::Pods, at(7));
    c.0.broken(Feed::Kinds, at(9));
    c.0.broken(Feed::Pods, at(11));
    assert_eq!(c.0.view().link, StoreLink::Broken { since: at(7) });
    c.0.live(Feed::Pods);
    c.0.live(Feed::Kinds);
    assert_eq!(c.0.view().link, StoreLink::Following);
}

#[test]
fn a_list_below_what_was_known_when_it_was_asked_for_is_taken_verbatim() {
    let mut c = Shown(cache());
    c.kinds(vec![leader("90", "t9", "")], "100", 1);
    c.0.drop_kind("demo-leader", "110", at(2));
    c.kinds(vec![leader("40", "t4", "")], "50", 3);
    assert_eq!(c.renewed().as_deref(), Some("t4"), "a deletion of the lost history does not hide it");
    c.watch(leader("51", "t5", ""), 4);
    assert_eq!(c.renewed().as_deref(), Some("t5"), "events go on from there");
    c.kinds(vec![], "60", 5);
    assert_eq!(c.renewed(), None);
    c.kind(leader("61", "t6", ""), 6);
    assert_eq!((c.renewed().as_deref(), c.0.epoch()), (Some("t6"), 1));
}

#[test]
fn what_was_asked_before_the_restore_was_found_resurrects_nothing() {
    let mut c = Shown(cache());
    c.kinds(vec![leader("90", "t9", "")], "100", 1);
    let (read, list) = (c.0.mark_kind("demo-leader"), c.0.mark_feed(Feed::Kinds));
    c.kinds(vec![leader("40", "t4", "")], "50", 2);
    c.0.put_kind(leader("101", "t10", ""), read, at(3));
    assert_eq!(c.0.replace_kinds(vec![leader("102", "t11", "")], "102", list, at(4), false), None);
    c.0.kind_is_gone("demo-leader", read, at(5));
    assert_eq!(c.renewed().as_deref(), Some("t4"));
    c.kind(leader("55", "t5", ""), 6);
    assert_eq!(c.renewed().as_deref(), Some("t5"), "and nothing of it stands in the way");
}

#[test]
fn one_answer_below_what_was_known_is_enough_and_the_next_list_tells_the_rest() {
    let mut c = Shown(cache());
    c.pods(vec![pod("a", "80", "A"), pod("b", "90", "B")], "100");
    c.kind(leader("90", "t9", ""), 1);
    c.kind(leader("40", "t4", ""), 2);
    assert_eq!((c.renewed().as_deref(), c.0.epoch()), (Some("t4"), 1));
    assert_eq!(c.0.view().cluster.members.len(), 2);
    c.pods(vec![pod("a", "30", "A")], "50");
    assert_eq!(c.0.view().cluster.members.len(), 1);
}

#[test]
fn the_container_of_my_keeper_ends_when_kubernetes_says_so_of_its_own_id() {
    let ended = |version: &str, id: &str| -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "a", "resourceVersion": version, "uid": "A"},
            "spec": {"containers": [{"name": "postgres"}]},
            "status": {"containerStatuses": [{"name": "postgres", "containerID": id,
                "state": {"terminated": {"containerID": id}}}]}}))
        .unwrap()
    };
    let mut c = Shown(cache());
    c.pods(vec![pod("a", "5", "A")], "5");
    c.0.set_kept(Some(("postgres".into(), "c://1".into())));
    assert!(!c.0.view().me.keeper_ended);
    c.pod(ended("6", "c://0"));
    assert!(!c.0.view().me.keeper_ended, "the one before it");
    c.pod(ended("7", "c://1"));
    assert!(c.0.view().me.keeper_ended);
    c.0.set_kept(None);
    assert!(!c.0.view().me.keeper_ended, "another keeper was met");
}

#[test]
fn a_namesake_is_never_mine() {
    let mut c = Shown(cache());
    c.pods(vec![pod("a", "5", "A"), pod("b", "6", "B")], "10");
    assert_eq!(c.0.view().me, OwnPod { uid: "A".into(), leaving: false, keeper_ended: false, named: false });
    c.pods(vec![pod("a", "12", "NEW")], "12");
    assert_eq!(c.0.view().me, OwnPod { uid: "A".into(), leaving: true, keeper_ended: false, named: false });
    assert_eq!(c.0.own_pod().and_then(|p| p.status.pod_ip.as_deref()), Some("ip-of-A"));
    let mark = c.0.mark_version("");
    c.0.put_pod(pod("a", "11", "A"), mark);
    c.pods(vec![pod("a", "14", "NEW")], "14");
    assert!(c.0.own_is_gone(), "an answer from before brings nothing back");
}

#[test]
fn a_pod_that_is_not_shown_is_in_doubt_until_it_was_asked_for() {
    let mut c = Shown(cache());
    c.pods(vec![pod("a", "5", "A")], "10");
    c.0.drop_pod("a", "11");
    assert!(c.0.own_in_doubt() && !c.0.view().me.leaving);
    c.pod(pod("a", "11", "A"));
    assert!(!c.0.own_in_doubt() && !c.0.view().me.leaving, "it lost a label");
    c.pods(vec![], "12");
    assert!(c.0.own_in_doubt());
    let mark = c.0.mark_pod("a");
    c.0.lose_own(mark);
    assert!(c.0.own_is_gone() && c.0.view().me.leaving);
    let early = c.0.mark_version("");
    c.0.meet_own(&pod("a", "5", "A"), early);
    assert!(c.0.own_is_gone(), "an answer from before");
    c.pod(pod("a", "13", "A"));
    assert!(!c.0.view().me.leaving, "it was a mistake of somebody on the way");
}

#[test]
fn what_a_gap_may_hide_counts_from_its_end() {
    let mut c = Shown(cache());
    c.kinds(vec![leader("5", "t1", "")], "5", 1);
    let gap = |c: &mut Shown, kinds: Vec<Kind>, version: &str, s: u64| {
        let mark = c.0.mark_feed(Feed::Kinds);
        c.0.replace_kinds(kinds, version, mark, at(s), true);
    };
    gap(&mut c, vec![leader("5", "t1", "")], "9", 50);
    assert_eq!(c.0.view().lease_received, at(1), "the very object, untouched: silent all the time");
    gap(&mut c, vec![leader("12", "t1", "")], "12", 60);
    assert_eq!(c.0.view().lease_received, at(60), "the same words in another version: others may have stood there");
    c.kinds(vec![], "15", 70);
    c.kinds(vec![], "16", 75);
    assert_eq!(c.0.view().lease_received, at(70), "no gap, nothing new");
    gap(&mut c, vec![], "20", 120);
    assert_eq!(c.0.view().lease_received, at(120), "no object says nothing about what came and went");
}

#[test]
fn an_object_that_names_nobody_is_observed_anew_whenever_it_is_touched() {
    let bare = |version: &str| {
        let mut object = leader(version, "t1", "");
        object.metadata.annotations = None;
        object
    };
    let mut c = Shown(cache());
    c.kind(bare("5"), 10);
    assert_eq!(c.0.view().lease_received, at(10));
    c.kind(bare("5"), 20);
    assert_eq!(c.0.view().lease_received, at(10), "the very object");
    c.kind(bare("6"), 30);
    assert_eq!(c.0.view().lease_received, at(30), "somebody may have led in between");
}
