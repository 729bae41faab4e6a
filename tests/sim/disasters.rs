//! More that goes wrong: clocks, volumes, stores of an earlier day, servers that refuse, and people.

use patroni::keeper::core::End;
use patroni::member::{Command, Input, Ticket};
use serde_json::{Value, json};

use super::faults::{EVERYBODY, FAULTS_END, Fault, Part, is_on};
use super::postgres::{PgEvent, Phase};
use super::world::{Ns, SEC, World};

impl World {
    pub fn inject_more(&mut self, fault: Fault, pod: usize, long: Ns, leader: Option<usize>) {
        match fault {
            Fault::ApiRefuses => self.refuses_until = self.refuses_until.max(self.t + long),
            Fault::StoreRestored => self.restore_store(),
            Fault::OldDump => self.apply_dump(),
            Fault::WallJump => {
                let hours = self.chance.below(7_200_000_000) as i64 - 3_600_000_000;
                self.pods[pod].clock.wall += hours;
            }
            Fault::VmPaused if self.pods[pod].paused > self.t => {}
            Fault::VmPaused => {
                let long = long.min(FAULTS_END.saturating_sub(self.t));
                self.freeze(pod, long, EVERYBODY);
                // Its clock stands meanwhile: what it counts on is over for everybody else.
                let p = &mut self.pods[pod];
                p.clock.offset = p.clock.offset.saturating_sub(long);
                p.paused = self.t + long;
            }
            Fault::DiskFull => {
                self.pods[pod].full_until = self.t + long;
                self.pg_event(pod, SEC, PgEvent::Exits(End::Code(1)));
            }
            Fault::PromotedByHand => {
                let t = self.t;
                let standby = self.pods[pod].pg.as_mut().filter(|g| g.phase == Phase::Standby && !g.dead);
                if let Some(g) = standby {
                    g.by_hand = Some(t);
                    self.pg_promote(pod);
                }
            }
            Fault::Failover => self.ask_for_failover(pod),
            Fault::Restart => {
                let filter = patroni::model::RestartFilter::default();
                self.ask_member(pod, Command::Restart { filter, timeout: None });
            }
            Fault::Reinit => {
                let (force, from_leader) = (self.chance.one_in(2), self.chance.one_in(2));
                if leader != Some(pod) {
                    self.ask_member(pod, Command::Reinitialize { force, from_leader });
                }
            }
            Fault::Edit => self.edit_config(),
            Fault::CommitMode => self.switch_commits(),
            Fault::Follow => self.follow_another(!self.is_standby_cluster()),
            Fault::Pause => self.pause_cluster(!self.is_paused()),
            Fault::FreezeWarden => self.freeze(pod, long, &[Part::Warden]),
            Fault::FreezeSidecarKeeper => self.freeze(pod, long, &[Part::Sidecar, Part::Keeper]),
            Fault::FreezeSidecarWarden => self.freeze(pod, long, &[Part::Sidecar, Part::Warden]),
            Fault::FreezeKeeperWarden => self.freeze(pod, long, &[Part::Keeper, Part::Warden]),
            Fault::FreezeWatchers => self.freeze(pod, long, &[Part::Sidecar, Part::Keeper, Part::Warden]),
            Fault::FreezeContainer => self.freeze(pod, long, &[Part::Keeper, Part::Warden, Part::Postgres]),
            _ => {}
        }
    }

    fn ask_member(&mut self, pod: usize, command: Command) {
        let t = self.t;
        self.pods[pod].fell = false;
        if self.pods[pod].sidecar.as_ref().is_some_and(|s| t >= s.frozen) {
            let ticket = Ticket(t);
            self.step(pod, Input::Asked { ticket, command });
        }
    }

    /// The first time a backup is made; every other time it is put back, and the servers begin anew over it.
    fn restore_store(&mut self) {
        let Some(backup) = self.backup.clone() else {
            self.backup = Some(self.store.snapshot());
            return;
        };
        let named = self.named();
        self.store.restore(&backup);
        self.store_is_wiped(named);
        self.servers_restart();
    }

    /// `kubectl get -o yaml` at one time, `kubectl apply` at another.
    fn apply_dump(&mut self) {
        let (kind, leader) = self.kind();
        let dump = std::mem::take(&mut self.dump);
        if dump.is_empty() {
            let names = [leader, "demo-config"];
            self.dump = names.iter().filter_map(|name| self.store.get(kind, "default", name).ok()).collect();
            return;
        }
        self.store_is_wiped(self.named());
        for object in dump {
            let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
            let patch = json!({"metadata": {"annotations": object["metadata"]["annotations"]}});
            if self.store.merge(kind, "default", &name, &patch).is_err() {
                self.note(format!("{name} of the dump does not fit"));
            }
        }
    }

    /// `patronictl failover --candidate`, with or without a leader.
    pub fn ask_for_failover(&mut self, pod: usize) {
        let (kind, _) = self.kind();
        self.judge.forced = true;
        let annotations = json!({"leader": Value::Null, "member": self.pods[pod].name.as_str()});
        let patch = json!({"metadata": {"annotations": annotations}});
        if self.store.merge(kind, "default", "demo-failover", &patch).is_ok() {
            return;
        }
        let labels = json!({"application": "patroni", "cluster-name": "demo"});
        let annotations = json!({"member": self.pods[pod].name.as_str()});
        let metadata = json!({"name": "demo-failover", "labels": labels, "annotations": annotations});
        if self.store.create(kind, "default", json!({"metadata": metadata})).is_err() {
            self.note("the failover could not be asked for");
        }
    }

    /// Somebody edits the dynamic configuration.
    fn edit_config(&mut self) {
        let (kind, _) = self.kind();
        let Some(mut document) = self.dynamic() else { return self.note("there is no configuration to edit") };
        document["loop_wait"] = json!(10);
        document["edit"] = json!(self.t);
        let patch = json!({"metadata": {"annotations": {"config": document.to_string()}}});
        if self.store.merge(kind, "default", "demo-config", &patch).is_err() {
            self.note("there is no configuration to edit");
        }
    }

    /// The dynamic configuration in the store.
    pub fn dynamic(&self) -> Option<Value> {
        let (kind, _) = self.kind();
        let object = self.store.get(kind, "default", "demo-config").ok()?;
        serde_json::from_str(object["metadata"]["annotations"]["config"].as_str()?).ok()
    }

    /// Somebody switches synchronous mode off, or on again.
    fn switch_commits(&mut self) {
        let (kind, _) = self.kind();
        let (Some(_), Some(document)) = (self.plan.commits, self.dynamic()) else { return };
        let on = is_on(&document);
        let mut switched = self.plan.document(!on);
        if document["pause"].as_bool() == Some(true) {
            switched["pause"] = json!(true);
        }
        if document["standby_cluster"].is_object() {
            switched["standby_cluster"] = document["standby_cluster"].clone();
        }
        let patch = json!({"metadata": {"annotations": {"config": switched.to_string()}}});
        if self.store.merge(kind, "default", "demo-config", &patch).is_ok() {
            self.commits_are_switched(!on);
        }
    }
}
