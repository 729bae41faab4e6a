//! The one status query that all callers of the REST API share: whoever asks while one is under way, or
//! within 100 ms of one that was sent, gets its answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::clock;
use crate::door::{PostgresStatus, Snapshot, Stamped, StatusWaiter, WalSender};
use crate::model::PostgresState;
use crate::postgres::Setup;
use crate::postgres::sql::Sql;
use crate::postgres::status::StatusRow;

/// Callers wait a second at most; a query that takes longer helps nobody.
const QUERY_WAIT: Duration = Duration::from_millis(900);

/// Serves callers until the loop and the last handle are gone.
pub(super) async fn serve(
    mut asked: mpsc::Receiver<StatusWaiter>,
    answers: watch::Sender<Stamped>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    mut setup: watch::Receiver<Arc<Setup>>,
) {
    let sql = Sql::local(&setup.borrow_and_update().clone(), "Patroni restapi");
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, usize::MAX).await > 0 {
        if setup.has_changed().unwrap_or(false) {
            let next = setup.borrow_and_update().clone();
            sql.retarget(&next).await;
        }
        let at = clock::boot();
        let status = if answers_queries(&snapshot.borrow()) { query(&sql).await } else { None };
        answers.send_replace(Some((at, status.clone())));
        for waiter in waiting.drain(..) {
            // Whoever hung up needs no answer.
            drop(waiter.send(status.clone()));
        }
    }
}

/// SQL is attempted only in these states.
fn answers_queries(snapshot: &Snapshot) -> bool {
    snapshot.alive
        && matches!(snapshot.member.state, PostgresState::Running | PostgresState::Restarting | PostgresState::Starting)
}

async fn query(sql: &Sql) -> Option<Arc<PostgresStatus>> {
    match tokio::time::timeout(QUERY_WAIT, sql.status()).await {
        Ok(Ok(row)) => Some(Arc::new(status(row))),
        Ok(Err(e)) => {
            debug!("status query: {e}");
            None
        }
        Err(_) => None,
    }
}

fn status(row: StatusRow) -> PostgresStatus {
    let epoch = |text: &str| {
        let time: Option<jiff::Timestamp> = text.replacen(' ', "T", 1).parse().ok();
        time.map(|t| t.as_microsecond() as f64 / 1e6)
    };
    PostgresStatus {
        postmaster_start_epoch: epoch(&row.postmaster_start_time).unwrap_or(0.0),
        postmaster_start_time: without_zero_micros(&row.postmaster_start_time),
        in_recovery: row.in_recovery,
        server_version: row.server_version,
        location: row.location,
        received: row.received,
        replayed: row.replayed,
        replayed_epoch: row.replayed_timestamp.as_deref().and_then(epoch),
        replayed_timestamp: row.replayed_timestamp.as_deref().map(without_zero_micros),
        reads_on: row.reads_on,
        paused: row.paused,
        timeline: row.timeline,
        replication_state: row.replication_state().map(str::to_owned),
        latest_end_lsn: row.latest_end_lsn,
        replication: row
            .replication
            .into_iter()
            .map(|r| WalSender {
                usename: r.usename,
                application_name: r.application_name,
                client_addr: r.client_addr,
                state: r.state,
                sync_state: r.sync_state,
                sync_priority: r.sync_priority,
            })
            .collect(),
    }
}

/// Microseconds are left out when they are zero.
fn without_zero_micros(text: &str) -> String {
    text.replacen(".000000", "", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_patroni_does_and_counted_in_seconds() {
        let row = |start: &str| StatusRow {
            postmaster_start_time: start.to_owned(),
            in_recovery: false,
            server_version: 150_018,
            location: None,
            received: None,
            replayed: None,
            replayed_timestamp: None,
            paused: false,
            timeline: None,
            receiver_status: None,
            latest_end_lsn: None,
            restore_command: false,
            reads_on: false,
            replication: Vec::new(),
        };
        let shown = status(row("1970-01-01 02:00:10.500000+02:00"));
        assert_eq!(shown.postmaster_start_time, "1970-01-01 02:00:10.500000+02:00");
        assert!((shown.postmaster_start_epoch - 10.5).abs() < 1e-9);
        assert_eq!(status(row("1970-01-01 00:00:10.000000+00:00")).postmaster_start_time, "1970-01-01 00:00:10+00:00");
    }
}
