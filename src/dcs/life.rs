//! Which container IDs name this life of the pod.
//!
//! Kubernetes shows a restarted container late. Whoever publishes the ID of the one before names something dead, and its
//! death would "prove" that of a running primary. What counts is the container that keeps Postgres: its ID is published
//! only while it is shown running since the moment at which this life began, neither earlier nor, as after a wall clock was
//! set back, later. The same holds of the container that this program is in, by its own beginning: whoever holds a lock is
//! dead when both are. In doubt none is published, which costs the ttl at a takeover and nothing else.

use std::collections::BTreeMap;

use super::Life;
use super::objects::Pod;

/// `startedAt` is written once the container's process runs, in whole seconds, by the clock of the same machine: it is at
/// most one second before what the process itself took for its beginning. Another second for clocks that are set. A
/// container that is started again at once began longer ago than this, or its ID is known to be over.
const SLACK_MICROS: i64 = 2_000_000;

/// The life in force, and what was published for the one before.
#[derive(Default)]
pub(super) struct OwnLife {
    life: Option<Life>,
    published: BTreeMap<String, String>,
    over: BTreeMap<String, String>,
}

impl OwnLife {
    /// Another life begins; the IDs published so far are over. The same life told again changes nothing.
    pub fn begin(&mut self, life: Life) {
        if self.life.as_ref() != Some(&life) {
            self.over.append(&mut self.published);
            self.life = Some(life);
        }
    }

    /// The container of the keeper in this life and its ID, once it was published.
    pub fn kept(&self) -> Option<(String, String)> {
        let name = self.life.as_ref()?.container.as_ref()?;
        Some((name.clone(), self.published.get(name)?.clone()))
    }

    /// What is published of this pod.
    pub fn containers(&mut self, pod: &Pod) -> BTreeMap<String, String> {
        let ids = self.shown(pod);
        if !ids.is_empty() {
            self.published.clone_from(&ids);
        }
        ids
    }

    /// What may be published of it.
    pub fn shown(&self, pod: &Pod) -> BTreeMap<String, String> {
        let Some(life) = &self.life else { return BTreeMap::new() };
        let ids = pod.container_ids();
        let early = |name: &str| pod.running_since(name).map(|at| at.micros_until(life.began));
        let of_this_life =
            |name: &str| early(name).is_some_and(|early| early <= SLACK_MICROS) && self.over.get(name) != ids.get(name);
        // Another container of the pod may have been started again since; the one of the keeper cannot be younger than it.
        let no_later = |name: &str| early(name).is_some_and(|early| early >= -SLACK_MICROS);
        // The container of this program, whatever its name.
        let mine =
            |name: &str| pod.running_since(name).is_some_and(|at| at.micros_until(life.program).abs() <= SLACK_MICROS);
        let known = match &life.container {
            Some(name) => {
                let other = ids.len() == 1 || ids.keys().any(|other| other != name && mine(other));
                ids.contains_key(name) && of_this_life(name) && no_later(name) && other
            }
            None => {
                !ids.is_empty() && ids.keys().all(|name| of_this_life(name)) && ids.keys().any(|name| no_later(name))
            }
        };
        if known { ids } else { BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dcs::schema::parse_wall;

    fn pod(postgres: (&str, &str), patroni: (&str, &str)) -> Pod {
        let status = |name: &str, (id, since): (&str, &str)| json!({"name": name, "containerID": id, "state": {"running": {"startedAt": since}}});
        serde_json::from_value(json!({"metadata": {"name": "a"},
            "spec": {"containers": [{"name": "postgres"}, {"name": "patroni"}]},
            "status": {"containerStatuses": [status("postgres", postgres), status("patroni", patroni)]}}))
        .unwrap()
    }
    fn life(container: Option<&str>, began: &str) -> Life {
        let program = parse_wall("2026-01-01T10:00:00Z").unwrap();
        Life { container: container.map(str::to_owned), began: parse_wall(began).unwrap(), program }
    }

    #[test]
    fn nothing_is_published_before_anybody_says_which_life_this_is() {
        let p = pod(("c://1", "2026-01-01T10:00:00Z"), ("c://2", "2026-01-01T10:00:00Z"));
        assert!(OwnLife::default().containers(&p).is_empty());
    }

    #[test]
    fn a_container_that_began_before_the_keeper_is_an_earlier_life() {
        let mut own = OwnLife::default();
        own.begin(life(Some("postgres"), "2026-01-01T10:00:03.5Z"));
        let before = pod(("c://1", "2026-01-01T10:00:00Z"), ("c://2", "2026-01-01T10:00:00Z"));
        assert!(own.containers(&before).is_empty());
        let mine = pod(("c://3", "2026-01-01T10:00:03Z"), ("c://2", "2026-01-01T10:00:00Z"));
        assert_eq!(own.containers(&mine)["postgres"], "c://3");
    }

    #[test]
    fn a_container_that_began_after_the_keeper_is_of_a_time_before_the_clock_was_set_back() {
        let shown = pod(("c://1", "2026-01-01T10:00:30Z"), ("c://2", "2026-01-01T10:00:30Z"));
        for container in [Some("postgres"), None] {
            let mut own = OwnLife::default();
            own.begin(life(container, "2026-01-01T10:00:20Z"));
            assert!(own.containers(&shown).is_empty());
        }
    }

    #[test]
    fn a_container_of_an_earlier_program_is_not_named() {
        let mut own = OwnLife::default();
        let began = "2026-01-01T10:00:00Z";
        own.begin(Life { program: parse_wall("2026-01-01T10:05:00Z").unwrap(), ..life(Some("postgres"), began) });
        assert!(own.containers(&pod(("c://1", began), ("c://2", began))).is_empty(), "its end is not mine");
        let shown = pod(("c://1", began), ("c://3", "2026-01-01T10:04:59Z"));
        assert_eq!(own.containers(&shown)["patroni"], "c://3");
    }

    #[test]
    fn an_id_published_for_an_earlier_keeper_is_never_published_again() {
        let mut own = OwnLife::default();
        own.begin(life(Some("postgres"), "2026-01-01T10:00:00Z"));
        let first = pod(("c://1", "2026-01-01T10:00:00Z"), ("c://2", "2026-01-01T10:00:00Z"));
        assert_eq!(own.containers(&first).len(), 2);
        assert_eq!(own.kept(), Some(("postgres".into(), "c://1".into())));
        own.begin(life(Some("postgres"), "2026-01-01T10:00:01Z"));
        assert_eq!(own.kept(), None);
        assert!(own.containers(&first).is_empty(), "started again within the slack");
        let second = pod(("c://3", "2026-01-01T10:00:01Z"), ("c://2", "2026-01-01T10:00:00Z"));
        assert_eq!(own.containers(&second)["postgres"], "c://3");
    }

    #[test]
    fn without_a_name_every_container_is_judged() {
        let mut own = OwnLife::default();
        own.begin(life(None, "2026-01-01T10:00:05Z"));
        let half = pod(("c://1", "2026-01-01T10:00:05Z"), ("c://2", "2026-01-01T10:00:00Z"));
        assert!(own.containers(&half).is_empty());
        let all = pod(("c://1", "2026-01-01T10:00:05Z"), ("c://3", "2026-01-01T10:00:06Z"));
        assert_eq!(own.containers(&all).len(), 2);
    }
}
