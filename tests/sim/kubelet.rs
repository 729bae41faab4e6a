//! The kubelet: it starts what has ended and reports what it saw.

use serde_json::{Value, json};

use super::keeper::ToKeeper;
use super::sidecar::ToSidecar;
use super::world::{EPOCH_SECS, Event, MS, Ns, SEC, World};

/// What the kubelet does by and by.
#[derive(Clone, Debug)]
pub enum Kubelet {
    StartKeeper,
    StartSidecar,
    /// Writes what it saw into the pod's object.
    Report {
        container: &'static str,
        id: String,
        started: Ns,
    },
    ReportEnd {
        container: &'static str,
        id: String,
    },
    /// The grace period of a pod is over.
    Kill,
    /// The StatefulSet makes the pod again.
    Recreate,
    Back,
}

pub fn stamp(t: Ns, wall: i64) -> String {
    let secs = EPOCH_SECS as i64 + (t / SEC) as i64 + wall.div_euclid(1_000_000);
    patroni::model::WallTime(secs * 1_000_000).iso().split('.').next().map(|s| format!("{s}Z")).unwrap_or_default()
}

impl World {
    pub fn create_pod(&mut self, pod: usize) {
        let name = self.pods[pod].name.clone();
        let container = |c: &str| json!({"name": c, "image": "x"});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name.as_str(), "labels": {"application": "patroni", "cluster-name": "demo"}},
            "spec": {"nodeName": format!("n{pod}"), "containers": [container("postgres"), container("patroni")]},
            "status": {"podIP": format!("10.0.0.{}", pod + 1)},
        });
        let made = self.store.create("pods", "default", object).map(|o| o["metadata"]["uid"].clone());
        if let Ok(Value::String(uid)) = made {
            self.pods[pod].uid = uid;
        }
    }

    pub fn kubelet(&mut self, pod: usize, what: Kubelet) {
        let begins = matches!(what, Kubelet::StartKeeper | Kubelet::StartSidecar);
        if begins && self.t < self.pods[pod].paused {
            // Nothing begins on a machine that stands.
            return self.at(self.pods[pod].paused, Event::Kubelet { pod, what });
        }
        match what {
            Kubelet::StartKeeper => {
                let p = &self.pods[pod];
                if p.keeper.is_some() || p.leaving || p.away {
                    return;
                }
                // The container is whole: nothing of the one before is left.
                self.pods[pod].pg = None;
                self.start_keeper(pod);
                self.container_starts(pod, "postgres");
            }
            Kubelet::StartSidecar => {
                let p = &self.pods[pod];
                if p.sidecar.is_some() || p.leaving || p.away {
                    return;
                }
                self.start_sidecar(pod);
                self.container_starts(pod, "patroni");
            }
            // One report follows the other: what was started again since is not shown any more.
            Kubelet::Report { container, id, .. } if self.pods[pod].containers.get(container) != Some(&id) => {}
            Kubelet::Report { container, id, started } => self.report(pod, container, |wall| {
                json!({"name": container, "containerID": id, "image": "x", "imageID": "x", "ready": true,
                    "restartCount": 0, "state": {"running": {"startedAt": stamp(started, wall)}}})
            }),
            Kubelet::ReportEnd { container, id } => self.report(pod, container, |_| {
                json!({"name": container, "containerID": id, "image": "x", "imageID": "x", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": 1, "containerID": id}}})
            }),
            Kubelet::Kill => {
                if self.pods[pod].leaving {
                    self.kill_pod(pod, true);
                    self.after(SEC, Event::Kubelet { pod, what: Kubelet::Recreate });
                }
            }
            Kubelet::Recreate => self.recreate(pod),
            Kubelet::Back => {
                self.pods[pod].away = false;
                self.after(MS, Event::Kubelet { pod, what: Kubelet::StartKeeper });
                self.after(MS, Event::Kubelet { pod, what: Kubelet::StartSidecar });
            }
        }
    }

    pub fn container_starts(&mut self, pod: usize, container: &'static str) {
        let lives = self.pods[pod].lives;
        let id = format!("containerd://{container}-{pod}-{lives}");
        self.pods[pod].containers.insert(container, id.clone());
        let delay = self.pods[pod].luck.between(20 * MS, 2 * SEC);
        let what = Kubelet::Report { container, id, started: self.t };
        self.after(delay, Event::Kubelet { pod, what });
    }

    fn report(&mut self, pod: usize, container: &str, status: impl Fn(i64) -> Value) {
        let name = self.pods[pod].name.clone();
        let Ok(object) = self.store.get("pods", "default", name.as_str()) else { return };
        if object["metadata"]["uid"].as_str() != Some(&self.pods[pod].uid) {
            return;
        }
        let wall = self.pods[pod].clock.wall(0).0 - EPOCH_SECS as i64 * 1_000_000;
        let mut fresh = status(wall);
        let mut all = object["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        match all.iter_mut().find(|s| s["name"] == container) {
            Some(old) => {
                if old["containerID"] != fresh["containerID"] && fresh["state"].get("terminated").is_none() {
                    fresh["lastState"] = json!({"terminated": {"exitCode": 1, "containerID": old["containerID"]}});
                } else if fresh["state"].get("terminated").is_some() && old["containerID"] != fresh["containerID"] {
                    return;
                }
                *old = fresh;
            }
            None => all.push(fresh),
        }
        let patch = json!({"status": {"containerStatuses": all}});
        if self.store.merge("pods", "default", name.as_str(), &patch).is_err() {
            self.note(format!("m{pod} status could not be reported"));
        }
    }

    pub fn report_end(&mut self, pod: usize, container: &'static str) {
        let Some(id) = self.pods[pod].containers.get(container).cloned() else { return };
        let delay = self.pods[pod].luck.between(20 * MS, 3 * SEC);
        self.after(delay, Event::Kubelet { pod, what: Kubelet::ReportEnd { container, id } });
    }

    pub fn restart_soon(&mut self, pod: usize, what: Kubelet) {
        let most = if self.quiet { 2 } else { 12 };
        let delay = self.pods[pod].luck.between(500 * MS, most * SEC);
        self.after(delay, Event::Kubelet { pod, what });
    }

    /// The process is gone.
    pub fn kill_sidecar(&mut self, pod: usize) {
        let Some(s) = self.pods[pod].sidecar.take() else { return };
        if let Some(conn) = s.conn {
            self.over_socket(pod, ToKeeper::Closed(conn));
        }
    }

    pub fn sidecar_exits(&mut self, pod: usize, leave_postgres: bool) {
        self.kill_sidecar(pod);
        self.report_end(pod, "patroni");
        if self.pods[pod].leaving && !leave_postgres {
            return;
        }
        self.restart_soon(pod, Kubelet::StartSidecar);
    }

    pub fn keeper_left(&mut self, pod: usize) {
        self.end_keeper(pod, true);
        if self.pods[pod].leaving {
            self.kill_pod(pod, true);
            return self.after(SEC, Event::Kubelet { pod, what: Kubelet::Recreate });
        }
        self.restart_soon(pod, Kubelet::StartKeeper);
    }

    /// PID 1 of its container ends, and everything in it.
    pub fn end_keeper(&mut self, pod: usize, reported: bool) {
        let conn = self.pods[pod].sidecar.as_ref().and_then(|s| s.conn);
        self.pods[pod].keeper = None;
        self.pods[pod].warden = None;
        self.pods[pod].pg = None;
        if reported {
            self.report_end(pod, "postgres");
        }
        if let Some(conn) = conn {
            self.sidecar_gets(pod, MS, ToSidecar::KeeperClosed(conn));
        }
    }
}
