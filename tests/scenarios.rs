//! Scenario tests of `decide`: scripts with golden traces in `tests/scenarios/*.txt`.
//!
//! A file is a list of blocks. A block is some commands, a line `----`, and the trace up to the next empty line. State
//! lives on from block to block. `REWRITE=1 cargo test --test scenarios` writes the traces anew; review the diff.
//! Every decision also passes `decide::check`: a broken invariant fails the test whatever the golden trace says.

#![cfg_attr(feature = "test-time-scale", allow(dead_code))]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test that fails says where")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use patroni::decide::{check, decide};
use patroni::model::*;

#[path = "scenarios/commits.rs"]
mod commits;
#[path = "scenarios/pause.rs"]
mod pause;
#[path = "scenarios/words.rs"]
mod words;
use words::*;

/// Scenario time 0, so that "before" can be expressed.
const EPOCH_S: f64 = 1000.0;
const SYSTEM_ID: &str = "7000000000000000001";

struct World {
    cluster: Cluster,
    local: Local,
    settings: Settings,
    now: f64,
}

fn boot(s: f64) -> BootInstant {
    BootInstant::from_secs_f64(EPOCH_S + s)
}

impl World {
    fn new() -> World {
        let settings = Settings::default();
        let start = boot(-100.0);
        let mut local = Local::at_start("a".into(), "s1".into(), start, settings.ttl);
        local.uid = "uid-a".into();
        local.store = StoreLink::Following;
        local.postgres.checkpointed = true;
        local.data_stale = false;
        // Read afresh by whoever wants to lead; `sync unread` takes it back.
        local.sync_read = Some(boot(1e6));
        local.postgres.server_version = Some(150_018);
        World { cluster: Cluster::default(), local, settings, now: 0.0 }
    }

    fn now(&self) -> Now {
        Now { boot: boot(self.now), wall: WallTime((self.now * 1e6) as i64) }
    }

    fn run(&mut self, line: &str, out: &mut String) {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        let args: Vec<&str> = words.collect();
        let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
        let flag = |key: &str| args.contains(&key);
        match command {
            "at" => self.now = args[0].parse().unwrap(),
            "me" => {
                self.local.me = args[0].into();
                self.local.uid = format!("uid-{}", args[0]);
            }
            "set" => self.set(args[0], args[1]),
            "member" => self.member(&args),
            "leader" => self.leader(&args),
            "own" => self.own(&args),
            "initialize" => self.initialize(args[0]),
            "config" => {
                let document = (args[0] == "yes").then(|| "{}".to_owned());
                self.cluster.config = Some(ConfigRecord { version: Version("c1".into()), document });
            }
            "history" => {
                // `history 3 120 150`: timeline 1 ended at 120, timeline 2 at 150; without numbers everything ended at 1000.
                let ends: Vec<u64> = args[1..].iter().map(|e| e.parse().unwrap()).collect();
                let row = |tl: u32| HistoryRow {
                    timeline: Timeline(tl),
                    lsn: Lsn(ends.get(tl as usize - 1).copied().unwrap_or(1000)),
                    reason: "r".into(),
                    at: None,
                    new_leader: None,
                };
                self.cluster.history = Some((1..args[0].parse::<u32>().unwrap()).map(row).collect());
            }
            "request" => {
                self.local.request_seen = Some((Version("f1".into()), boot(self.now)));
                self.cluster.failover = (!flag("none")).then(|| FailoverRequest {
                    version: Version("f1".into()),
                    leader: opt("leader").map(Into::into),
                    candidate: opt("candidate").map(Into::into),
                    scheduled_at: opt("at").map(|s| WallTime((s.parse::<f64>().unwrap() * 1e6) as i64)),
                });
            }
            "postgres" => self.postgres(&args),
            "data" => self.data(&args),
            "peers" => self.peers(&args),
            "config-read" => self.local.config_read = Some(boot(self.now)),
            "asking" => self.local.asking = (!flag("none")).then(|| boot(self.now)),
            "task" => {
                self.local.task = task_kind(args[0]).map(|kind| Task { kind, since: boot(self.now), progress: None });
            }
            "task-end" => self.task_end(&args),
            "rewind" => self.rewind(&args),
            "local" => self.local_flags(&args),
            "commits" | "key" | "named" | "senders" | "unsure" | "sync" => self.commits(command, &args),
            "standby-of" => {
                let slot = (!flag("slotless")).then(|| "here".to_owned());
                let conn_url = (args[0] != "archive").then(|| "postgres://r:5432".to_owned());
                self.settings.standby_of = (args[0] != "nobody").then_some(Remote { conn_url, slot });
            }
            "maintenance" => self.maintenance(&args),
            "decide" => self.decide(out),
            other => panic!("unknown command {other}"),
        }
    }

    fn rewind(&mut self, args: &[&str]) {
        let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
        // About b on timeline 2 unless said otherwise.
        let timeline = Timeline(opt("tl").map_or(2, |t| t.parse().unwrap()));
        let about = Compared { leader: opt("about").unwrap_or("b").into(), timeline };
        self.local.rewind_checked = Some(boot(self.now));
        self.local.rewind = match args[0] {
            "initial" => RewindState::Initial,
            "check" => RewindState::Check,
            "need" => RewindState::Need(about),
            "not-needed" => RewindState::NotNeeded(about),
            "success" => RewindState::Success(about),
            "failed" => RewindState::Failed { about, why: "boom".into() },
            other => panic!("rewind {other}"),
        }
    }

    fn task_end(&mut self, args: &[&str]) {
        let why = || args[2..].join(" ");
        let result = match args[1] {
            "ok" => TaskOutcome::Done,
            "gone" => TaskOutcome::LeaderGone(why()),
            "interrupted" => TaskOutcome::Interrupted(why()),
            _ => TaskOutcome::Failed(args[1..].join(" ")),
        };
        let kind = task_kind(args[0]).unwrap();
        self.local.rewind = self.local.rewind.after_task(&kind, &result);
        self.local.task = None;
        self.local.task_end = Some(TaskEnd { kind, at: boot(self.now), result });
    }

    fn set(&mut self, key: &str, value: &str) {
        let secs = || Duration::from_secs_f64(value.parse().unwrap());
        let yes = value == "true";
        match key {
            "ttl" => self.settings.ttl = secs(),
            "loop_wait" => self.settings.loop_wait = secs(),
            "retry_timeout" => self.settings.retry_timeout = secs(),
            "primary_start_timeout" => self.settings.primary_start_timeout = secs(),
            "nofailover" => self.settings.tags.nofailover = yes,
            "failover_priority" => self.settings.tags.failover_priority = value.parse().unwrap(),
            "replicatefrom" => self.settings.tags.replicatefrom = Some(value.into()),
            "use_pg_rewind" => self.settings.use_pg_rewind = yes,
            "remove_on_diverged" => self.settings.remove_on_diverged_timelines = yes,
            "remove_on_failure" => self.settings.remove_on_rewind_failure = yes,
            "check_timeline" => self.settings.check_timeline = yes,
            "may_bootstrap" => self.settings.may_bootstrap = yes,
            "site" => self.settings.site = Some(value.to_owned()),
            "failover_site" if value == "require" => self.settings.failover_site = FailoverSite::Require,
            "failover_site" => self.settings.failover_site = FailoverSite::Prefer,
            "primary_race_backoff" => self.settings.primary_race_backoff = secs(),
            "maximum_lag" => self.settings.maximum_lag_on_failover = value.parse().unwrap(),
            "failsafe" => self.settings.failsafe = yes,
            "unsupported" if value == "none" => self.settings.unsupported.clear(),
            "unsupported" => self.settings.unsupported = vec![value.to_owned()],
            "proof_deleted" => {
                self.settings.proofs.insert(ProofOfDeath::Deleted);
            }
            other => panic!("set {other}"),
        }
    }

    fn member(&mut self, args: &[&str]) {
        for name in args.iter().take_while(|a| !a.contains('=')) {
            let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
            if opt("gone").is_some() {
                self.cluster.members.remove(&MemberName::from(*name));
                continue;
            }
            let (nofailover, clonefrom) = (opt("nofailover").is_some(), opt("clonefrom").is_some());
            let tags = Tags {
                nofailover,
                clonefrom,
                nosync: opt("nosync").is_some(),
                sync_priority: opt("priority").map_or(1, |p| p.parse().unwrap()),
                replicatefrom: opt("from").map(Into::into),
                ..Tags::default()
            };
            let dead = opt("terminated");
            let member = Member {
                conn_url: opt("url").is_none().then(|| format!("postgres://{name}:5432/postgres")),
                api_url: opt("url").is_none().then(|| format!("http://{name}:8008/patroni")),
                state: opt("state").or(Some("running")).map(|s| PostgresState::from_word(&s.replace('-', " "))),
                role: opt("role").or(Some("replica")).and_then(Role::from_word),
                timeline: opt("tl").map(|t| Timeline(t.parse().unwrap())).or(Some(Timeline(1))),
                checkpoint_pending: opt("checkpoint").is_some(),
                site: opt("site").map(str::to_owned),
                uid: opt("uid").map_or_else(|| format!("uid-{name}"), str::to_owned),
                tags,
                terminated: dead
                    .map(|ids| BTreeMap::from([("postgres".to_owned(), ids.split(',').map(str::to_owned).collect())]))
                    .unwrap_or_default(),
                ..Member::default()
            };
            self.cluster.members.insert((*name).into(), member);
        }
    }

    fn leader(&mut self, args: &[&str]) {
        let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
        let old = self.cluster.leader.take();
        let optime = opt("optime").map(|o| Lsn(o.parse().unwrap())).or(old.and_then(|l| l.optime));
        let renew = opt("renew").unwrap_or("r1").to_owned();
        let stripped = args[0] == "stripped";
        let words = args.contains(&"released");
        self.cluster.leader = (args[0] != "gone").then(|| LeaderRecord {
            version: Version(opt("version").unwrap_or("l1").to_owned()),
            lease: if stripped {
                LeaseRecord::default()
            } else {
                LeaseRecord {
                    leader: (args[0] != "none").then(|| args[0].into()),
                    ttl: Some(self.settings.ttl.as_secs().to_string()),
                    acquire_time: Some("t0".into()),
                    renew_time: Some(renew.clone()),
                    transitions: Some("1".into()),
                }
            },
            holder: opt("holder").or(words.then_some("uid-was")).map(|uid| HolderMark {
                uid: uid.to_owned(),
                session: "s".into(),
                containers: BTreeMap::from([("postgres".to_owned(), "id1".to_owned())]),
                acquire_time: "t0".into(),
                renew_time: renew,
                paused: args.contains(&"paused"),
                site: opt("site").map(str::to_owned),
            }),
            optime,
            slots: BTreeMap::new(),
            retain_slots: Vec::new(),
            failsafe: opt("map").map(|list| list.split(',').map(|n| (n.to_owned(), String::new())).collect()),
            addresses: Vec::new(),
            released: (words || opt("sworn").is_some()).then(|| Released {
                acquire_time: "t0".into(),
                transitions: if words { "1" } else { "0" }.into(),
                shutdown: opt("sworn").map(shutdown),
            }),
            claim: opt("claim").map(|t| TimelineClaim {
                timeline: Timeline(t.parse().unwrap()),
                acquire_time: "t0".into(),
                transitions: "1".into(),
            }),
        });
        let record = self.cluster.leader.as_ref().map(|l| l.lease.clone());
        let touched =
            self.cluster.leader.as_ref().is_some_and(|l| Some(&l.version) != self.local.lease.version.as_ref());
        let same = self.local.lease.record == record && !touched;
        let received = if same { self.local.lease.since } else { boot(self.now) };
        let _changed = self.local.lease.observe(self.cluster.leader.as_ref(), received, self.settings.ttl);
    }

    fn own(&mut self, args: &[&str]) {
        let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
        let record = self.cluster.leader.as_ref().map(|l| l.lease.clone()).unwrap_or_default();
        self.local.own = (args[0] != "none").then(|| OwnLease {
            record,
            evidence: boot(args[0].parse().unwrap()),
            ttl: self.settings.ttl,
            paused: args.contains(&"paused"),
            prolonged: opt("prolonged").map(|s| boot(s.parse().unwrap())),
        });
    }

    fn initialize(&mut self, word: &str) {
        self.cluster.initializer = None;
        self.cluster.initialize = match word.split_once(':') {
            Some((_, who)) => {
                let (who, session) = who.split_once('/').unwrap_or((who, "s1"));
                self.cluster.initializer = Some(Initializer { uid: format!("uid-{who}"), session: session.into() });
                Initialize::InProgress
            }
            None if word == "absent" => Initialize::Absent,
            None if word == "yes" => Initialize::Value(SYSTEM_ID.into()),
            None => Initialize::Value(word.to_owned()),
        };
        if self.cluster.config.is_none() && self.cluster.initialize != Initialize::Absent {
            self.cluster.config = Some(ConfigRecord { version: Version("c1".into()), document: Some("{}".into()) });
        }
    }

    fn postgres(&mut self, args: &[&str]) {
        let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
        let flag = |key: &str| args.contains(&key);
        let pg = &mut self.local.postgres;
        let in_recovery = args[0] == "standby";
        pg.alive = args[0] != "dead";
        pg.since = boot(opt("since").map_or(self.now, |s| s.parse().unwrap()));
        pg.role = match args[0] {
            "primary" => Role::Primary,
            "dead" => pg.role,
            _ => Role::Replica,
        };
        pg.state = PostgresState::from_word(if pg.alive { "running" } else { "stopped" });
        pg.started_as = opt("started").map_or_else(
            || pg.alive.then_some(if in_recovery { StartRoleSeen::Standby } else { StartRoleSeen::Primary }),
            |s| Some(if s == "primary" { StartRoleSeen::Primary } else { StartRoleSeen::Standby }),
        );
        pg.stopping = flag("stopping").then_some(StopMode::Fast);
        pg.promoting = flag("promoting").then(|| boot(self.now));
        pg.crashed = flag("crashed");
        pg.checkpointed = !flag("no-checkpoint");
        pg.failed_starts = opt("failed").map_or(0, |n| n.parse().unwrap());
        pg.login_refused = flag("login-refused").then(|| "password authentication failed (SQLSTATE 28P01)".into());
        pg.streamed = flag("streaming").then(|| boot(self.now)).or(pg.streamed);
        pg.grew = flag("grew").then(|| boot(self.now)).or(pg.grew);
        if let Some(death) = opt("death") {
            pg.last_death = Some(boot(death.parse().unwrap()));
        }
        pg.followed_at = boot(self.now);
        self.local.arrived = flag("arrived");
        self.local.arrives_from = flag("arrived").then_some(Lsn(0));
        pg.following = opt("following").map(|name| match name {
            "nobody" => Upstream::Nobody,
            "remote" => Upstream::Remote { conn_url: "postgres://r:5432".into(), slot: Some("here".into()) },
            name => Upstream::Member { name: name.into(), conn_url: format!("postgres://{name}:5432/postgres") },
        });
        pg.probe = (pg.alive && args[0] != "starting").then(|| Probe {
            at: boot(self.now),
            in_recovery,
            timeline: Timeline(opt("tl").map_or(1, |t| t.parse().unwrap())),
            position: Lsn(opt("pos").map_or(100, |p| p.parse().unwrap())),
            received: Lsn(0),
            replayed: Lsn(0),
            streaming: flag("streaming"),
            replay_paused: flag("paused"),
            blocked: opt("blocked").map(str::to_owned),
            system_id: SYSTEM_ID.into(),
            replication: Default::default(),
        });
    }

    fn data(&mut self, args: &[&str]) {
        let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
        self.local.data_stale = args[0] == "unlooked";
        self.local.data = match args[0] {
            "unlooked" => DataDir::Empty,
            "empty" => DataDir::Empty,
            "half-made" => DataDir::HalfMade,
            "restored" => DataDir::Restored,
            "unusable" => DataDir::Unusable("permission denied".into()),
            "half-rewound" => DataDir::HalfRewound { control: None },
            "no-control" => DataDir::Present { control: None, standby_signal: false },
            word => {
                let (state, clean) = match word {
                    "in-production" => (ClusterState::InProduction, false),
                    "shut-down" => (ClusterState::ShutDown, true),
                    "shut-down-in-recovery" => (ClusterState::ShutDownInRecovery, false),
                    "in-archive-recovery" => (ClusterState::InArchiveRecovery, false),
                    other => panic!("data {other}"),
                };
                DataDir::Present {
                    control: Some(ControlData {
                        system_id: opt("id").unwrap_or(SYSTEM_ID).to_owned(),
                        state,
                        checkpoint: Lsn(100),
                        timeline: Timeline(opt("tl").map_or(1, |t| t.parse().unwrap())),
                        min_recovery_end: (Lsn(0), Timeline(0)),
                        rewindable: true,
                        shutdown_position: clean.then_some(Lsn(opt("pos").map_or(100, |p| p.parse().unwrap()))),
                    }),
                    standby_signal: args.contains(&"signal"),
                }
            }
        };
    }

    fn peers(&mut self, args: &[&str]) {
        self.local.asking = None;
        let answers = args[1..].iter().map(|a| {
            let (name, answer) = a.split_once('=').unwrap();
            let answer = match answer.split_once(':') {
                Some(("down", known)) => PeerAnswer::Down { known_timeline: Timeline(known.parse().unwrap()) },
                Some((role, rest)) => fit_answer(role, rest),
                None if answer == "unfit" => {
                    PeerAnswer::Unfit { why: "answered without a WAL position".into(), known_timeline: Timeline(0) }
                }
                None if answer == "down" => PeerAnswer::Down { known_timeline: Timeline(0) },
                None => PeerAnswer::Unreachable("connection refused".into()),
            };
            (name.into(), answer)
        });
        let asked_at = boot(args[0].parse().unwrap());
        // My own Postgres is asked with the others.
        if let Some(probe) = &mut self.local.postgres.probe {
            probe.at = probe.at.max(asked_at);
        }
        self.local.peers = Some(PeerRound { asked_at, answers: answers.collect() });
    }

    fn local_flags(&mut self, args: &[&str]) {
        for arg in args {
            let (key, value) = arg.split_once('=').unwrap_or((arg, ""));
            let l = &mut self.local;
            match key {
                "store" => {
                    l.store = match value {
                        "not-read" => StoreLink::NotRead,
                        "broken" => StoreLink::Broken { since: boot(self.now) },
                        _ => StoreLink::Following,
                    }
                }
                "keeper" if value == "lost" => l.keeper = KeeperLink::Lost { since: boot(self.now) },
                "keeper" => {
                    let (stop_at, kill_at) = (boot(self.now), boot(self.now));
                    let permission = match value {
                        "unfenced" => Permission::Unfenced(UnfencedReason::Bootstrap),
                        "paused" => Permission::PAUSED,
                        "writer" => Permission::Writer { stop_at, kill_at },
                        _ => Permission::None,
                    };
                    l.keeper = KeeperLink::Connected { permission };
                }
                "kill-at" => l.deadman.kill_at = boot(value.parse().unwrap()),
                "fence" => l.deadman.fence = if value == "full" { Fence::Full } else { Fence::Partial },
                "ordered" => l.deadman.ordered = value != "no",
                "in-use" => {
                    l.deadman.in_use = (value != "no").then(|| format!("a postmaster (pid {value}) runs there"));
                }
                "unfenced" => l.deadman.unfenced = value != "no",
                "container" => l.deadman.container_ended = value == "ended",
                "session" => l.deadman.gone = (value == "broken").then(|| boot(self.now)),
                "bootstrapping" => l.bootstrapping = value != "no",
                "stepped-down" => l.stepped_down = Some(boot(self.now)),
                "newest-history" => l.postgres.newest_history = Timeline(value.parse().unwrap()),
                "promised" => {
                    let (to, until) = value.split_once(':').unwrap();
                    l.promise = Some(Promise { to: to.into(), until: boot(until.parse().unwrap()) });
                }
                "failsafe" => {
                    let listed = |n: &str| Listed { url: format!("http://{n}:8008/patroni"), ..Listed::default() };
                    let map = value.split(',').map(|n| (n.into(), listed(n)));
                    l.failsafe.sends(boot(0.0), map.collect());
                    l.failsafe.confirmed(boot(0.0));
                }
                "failsafe-failed" => l.failsafe.failed = Some(boot(self.now)),
                "backoff" => l.backoff_until = Some(boot(value.parse().unwrap())),
                "reclaim" => l.reclaim = self.cluster.leader.as_ref().map(|x| x.lease.clone()),
                "proof" => {
                    l.proof_tried = Some(boot(self.now));
                    l.death_proof = self.cluster.leader.as_ref().map(|x| DeathProof {
                        record: x.lease.clone(),
                        version: x.version.clone(),
                        how: "its containers are terminated".into(),
                    })
                }
                "attempt" => l.last_attempt = Some(boot(value.parse().unwrap())),
                "write" => {
                    l.lease_write = match value {
                        "acquire" => Some(InFlight::Acquire),
                        "renew" => Some(InFlight::Renew),
                        "release" => Some(InFlight::Release),
                        _ => None,
                    }
                }
                "no-request" => l.request = None,
                other => self.local_work(other, value),
            }
        }
    }

    /// What is under way, or wanted.
    fn local_work(&mut self, key: &str, value: &str) {
        let l = &mut self.local;
        match key {
            "handover" => {
                l.handover = (value != "none").then(|| Handover {
                    candidate: (!value.is_empty()).then(|| value.into()),
                    why: "switchover",
                    began: boot(self.now),
                    checkpoint_done: false,
                    in_any_case: false,
                    stopped: None,
                })
            }
            "checkpointed" => l.handover.as_mut().unwrap().checkpoint_done = true,
            "exiting" => l.handover.as_mut().unwrap().in_any_case = true,
            "terminate" if value == "none" => l.request = None,
            "terminate" => l.request = Some(Request::Terminate { leave_postgres: value == "leave" }),
            "restart" => {
                let filter = RestartFilter { role: (!value.is_empty()).then(|| value.into()), ..Default::default() };
                l.request = Some(Request::Restart { filter, timeout: None })
            }
            "planned" => {
                l.restart = Some(PlannedRestart {
                    began: boot(self.now),
                    timeout: Duration::from_secs(300),
                    from_stopped: false,
                })
            }
            "reinit" => l.request = Some(Request::Reinitialize { force: value == "force", from_leader: false }),
            "reinit-from-leader" => l.request = Some(Request::Reinitialize { force: false, from_leader: true }),
            "reinit-began" => l.reinit = Some(Reinit { from_leader: value == "leader", began: boot(self.now) }),
            "no-reinit" => l.reinit = None,
            "failed" => l.bootstrap_failed = Some(BootstrapFailed { why: value.replace('-', " "), at: boot(self.now) }),
            "not-failed" => l.bootstrap_failed = None,
            "refused" => {
                l.lease_refused =
                    Some(LeaseRefused { count: value.parse().unwrap(), at: boot(self.now) }).filter(|r| r.count > 0)
            }
            "store-write" => l.store_write = value != "none",
            other => panic!("local {other}"),
        }
    }

    fn decide(&mut self, out: &mut String) {
        let (cluster, now) = (self.cluster.clone(), boot(self.now));
        self.local.watch_initializer(&cluster, now);
        let d = decide(&self.cluster, &self.local, &self.settings, self.now());
        if let Err(broken) = check(&d, &self.cluster, &self.local, &self.settings, self.now()) {
            panic!("invariant broken at {}: {broken:?}\n{d:#?}", self.now);
        }
        let actions: Vec<_> = d.actions.iter().filter(|a| **a != Action::PublishStatus).map(brief).collect();
        writeln!(out, "{}: {}", self.local.me, d.reason).unwrap();
        let wake = d.wake_at.since(boot(self.now)).as_secs_f64();
        writeln!(out, "   [{}] wake +{}", actions.join(", "), (wake * 1000.0).round() / 1000.0).unwrap();
        for warning in &d.warnings {
            writeln!(out, "   warning: {}", warning.0).unwrap();
        }
    }
}

fn play(text: &str) -> String {
    let mut world = World::new();
    let mut result = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            result.push_str(line);
            result.push('\n');
            continue;
        }
        let mut out = String::new();
        let mut current = line;
        loop {
            result.push_str(current);
            result.push('\n');
            if current == "----" {
                break;
            }
            world.run(current.split('#').next().unwrap().trim(), &mut out);
            current = lines.next().unwrap_or("----");
        }
        while lines.next_if(|l| !l.trim().is_empty()).is_some() {}
        result.push_str(&out);
    }
    result
}

/// The traces hold the deadlines of true time; `make test` runs this file in the build without the time scale.
#[cfg_attr(not(feature = "test-time-scale"), test)]
fn the_traces_of_all_scenarios_are_as_written() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut failed = Vec::new();
    let mut played = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let got = play(&text);
        played += 1;
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, &got).unwrap();
        } else if got != text {
            failed.push(format!("{}:\n{}", path.display(), difference(&text, &got)));
        }
    }
    assert!(played > 0, "no scenarios in {}", dir.display());
    assert!(failed.is_empty(), "traces differ (REWRITE=1 writes them anew):\n{}", failed.join("\n"));
}

fn difference(want: &str, got: &str) -> String {
    similar::TextDiff::from_lines(want, got).unified_diff().context_radius(3).to_string()
}
