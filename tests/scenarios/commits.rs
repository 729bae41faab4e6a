//! Words of the scenarios about synchronous replication.

use std::collections::BTreeSet;

use super::*;

fn names(list: &str) -> Vec<MemberName> {
    list.split(',').filter(|n| !n.is_empty()).map(MemberName::from).collect()
}

impl World {
    /// `commits sync strict count=2 lag=100` · `key a b,c version=2` · `key none` · `named b,c` · `senders b:sync:100 c:async:90` ·
    /// `unsure c` · `sync mine|unread|quits`
    pub fn commits(&mut self, command: &str, args: &[&str]) {
        let opt = |key: &str| args.iter().find_map(|a| a.strip_prefix(key).and_then(|v| v.strip_prefix('=')));
        match command {
            "commits" => {
                let mode = match args[0] {
                    "sync" => Commits::Synchronous,
                    "quorum" => Commits::Quorum,
                    _ => Commits::Asynchronous,
                };
                let count = opt("count").map_or(1, |n| n.parse().unwrap());
                let maximum_lag = opt("lag").map(|n| n.parse().unwrap());
                self.settings.synchronous = Synchronous { mode, strict: args.contains(&"strict"), count, maximum_lag };
            }
            "key" => {
                self.cluster.sync = (args[0] != "none").then(|| SyncRecord {
                    version: Version(opt("version").unwrap_or("s1").into()),
                    leader: (args[0] != "nobody").then(|| args[0].into()),
                    standbys: args.get(1).filter(|a| !a.contains('=')).map_or_else(Vec::new, |list| names(list)),
                    quorum: opt("quorum").map_or(0, |q| q.parse().unwrap()),
                });
            }
            "named" => self.local.sync.wrote(match args[0] {
                "as-configured" => StandbyNames::AsConfigured,
                "placeholder" => StandbyNames::Placeholder,
                "nobody" => StandbyNames::All(Default::default()),
                list => {
                    let names = names(list).into_iter().collect();
                    let any = |number: &str| {
                        StandbyNames::Any(Waited { number: number.parse().unwrap(), names: BTreeSet::clone(&names) })
                    };
                    opt("any").map_or_else(|| StandbyNames::All(names.clone()), any)
                }
            }),
            "senders" => self.senders(args),
            "unsure" => {
                let expect = self.cluster.sync.as_ref().map(|r| r.version.clone());
                let electorate = Electorate { voters: names(args[0]).into_iter().collect(), quorum: 0 };
                self.local.sync.writes(SyncWrite { expect, electorate });
                self.local.sync.written(&WriteResult::Unknown("no answer".into()));
            }
            _ => match args[0] {
                "mine" => self.local.sync.since = self.local.own.as_ref().and_then(|o| o.record.acquire_time.clone()),
                "writing" => self.local.sync.writing = true,
                "unread" => self.local.sync_read = None,
                "read" => self.local.sync_read = Some(boot(self.now)),
                "quits" => self.local.quits_sync = Some(boot(self.now)),
                other => panic!("sync {other}"),
            },
        }
    }

    /// What the monitoring query says now, and has said for a while.
    fn senders(&mut self, args: &[&str]) {
        let Some(probe) = &mut self.local.postgres.probe else { panic!("no Postgres") };
        let senders = args.iter().map(|a| {
            let parts: Vec<&str> = a.split(':').collect();
            let rank = match parts[1] {
                "sync" => 3,
                "quorum" => 2,
                "potential" => 1,
                _ => 0,
            };
            let streaming = parts[1] != "catchup";
            Sender { name: parts[0].into(), streaming, rank, position: Lsn(parts[2].parse().unwrap()) }
        });
        let names = self.local.sync.named.as_ref().and_then(|n| n.text()).unwrap_or_default();
        probe.replication = Replication { names, senders: senders.collect(), read: true };
        for ago in [0.9, 0.5, 0.0] {
            self.local.sync.observe(&probe.replication, probe.position, boot(self.now - ago));
        }
    }
}
