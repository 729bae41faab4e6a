//! An API server whose store was restored from a backup gives versions out that were seen before, for other contents.

use std::time::Duration;

use patroni::kubemem::Snapshot;
use patroni::model::{LeaseRecord, Lsn, time_scale};
use serde_json::json;

use super::world::*;

/// Back to the backup, with a restart's end to all watches.
fn restore(w: &World, backup: &Snapshot) {
    w.server.store().restore(backup);
    w.server.faults().cut_watches();
}

#[tokio::test]
async fn the_holder_of_a_restored_store_renews_and_its_view_follows() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, _) = lead(&w, "a").await;
        let backup = w.server.store().snapshot();
        for i in 0..5 {
            written(a.renew(renew(i)).await);
        }
        restore(&w, &backup);
        let (record, _) = written(a.renew(renew(100)).await);
        see(&a, "its own renewal", |v| v.cluster.leader.as_ref().is_some_and(|l| l.lease == record)).await;
        w.annotate_leader(json!({"optime": "4711"}));
        see(&a, "what came after", |v| v.cluster.leader.as_ref().is_some_and(|l| l.optime == Some(Lsn(4711)))).await;
    }
}

#[tokio::test]
async fn a_standby_sees_the_restored_store_and_can_take_over_in_it() {
    for mode in MODES {
        let w = World::new(mode).await;
        let (a, first) = lead(&w, "a").await;
        let mut o = w.options("b");
        o.ttl = Duration::from_secs(5).mul_f64(time_scale());
        let b = w.store_with(o).await;
        let backup = w.server.store().snapshot();
        for i in 0..20 {
            written(a.renew(renew(i)).await);
        }
        w.server.store().delete("pods", "default", "c").unwrap();
        see(&b, "two members", |v| v.cluster.members.len() == 2).await;
        drop(a);
        restore(&w, &backup);
        // Nobody writes: the watch from the lost version is silent, and silence is looked into.
        let shows = |record: &LeaseRecord| {
            let record = record.clone();
            move |v: &patroni::dcs::View| v.cluster.leader.as_ref().is_some_and(|l| l.lease == record)
        };
        see(&b, "the record of the backup", shows(&first)).await;
        let (record, _) = written(b.acquire(acquire(Some(first))).await);
        see(&b, "its own record", shows(&record)).await;
    }
}
