//! What `GET /patroni` shows of a server, asked on the REST connection.

use tokio_postgres::Row;

use super::sql::{Sql, SqlError, lsn};
use crate::model::{Lsn, Timeline};

/// One WAL sender, as the status document lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationRow {
    /// `usename`.
    pub usename: Option<String>,
    /// `application_name`.
    pub application_name: Option<String>,
    /// `client_addr`.
    pub client_addr: Option<String>,
    /// `state`.
    pub state: Option<String>,
    /// `sync_state`.
    pub sync_state: Option<String>,
    /// `sync_priority`.
    pub sync_priority: i32,
}

/// The answer of the status query.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusRow {
    /// `2026-11-20 08:15:30.123456+00:00`.
    pub postmaster_start_time: String,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// `server_version_num`.
    pub server_version: u32,
    /// Primary: flush position.
    pub location: Option<Lsn>,
    /// Standby: written, else received, else replayed.
    pub received: Option<Lsn>,
    /// Standby: replayed.
    pub replayed: Option<Lsn>,
    /// Standby: time of the last replayed transaction, as text.
    pub replayed_timestamp: Option<String>,
    /// Standby: replay is paused.
    pub paused: bool,
    /// Primary: of the current WAL file. Standby: of the receiver, else of pg_control.
    pub timeline: Option<Timeline>,
    /// The WAL receiver's status, e.g. `streaming`.
    pub receiver_status: Option<String>,
    /// What the receiver knows of the upstream's flush position; for lag, never shown.
    pub latest_end_lsn: Option<Lsn>,
    /// Standby: its own WAL is not read to the end yet, so it has more than it can say.
    pub reads_on: bool,
    /// A restore_command is set.
    pub restore_command: bool,
    /// Who streams from here.
    pub replication: Vec<ReplicationRow>,
}

impl StatusRow {
    /// `replication_state` of the document; `None`: the key is absent.
    pub fn replication_state(&self) -> Option<&'static str> {
        if !self.in_recovery {
            None
        } else if self.receiver_status.as_deref() == Some("streaming") {
            Some("streaming")
        } else {
            self.restore_command.then_some("in archive recovery")
        }
    }
}

const STATUS: &str = "SELECT to_char(pg_postmaster_start_time(), 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM'), pg_is_in_recovery(), \
 current_setting('server_version_num')::int8, \
 CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::int8 END, \
 pg_wal_lsn_diff(COALESCE(r.written_lsn, pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0')::int8, \
 pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::int8, \
 to_char(pg_last_xact_replay_timestamp(), 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM'), \
 CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, \
 CASE WHEN pg_is_in_recovery() THEN GREATEST(CASE WHEN r.latest_end_lsn IS NOT NULL THEN r.received_tli ELSE \
   (SELECT max(('x' || pg_catalog.substr(w.name, 1, 8))::bit(32)::int8) FROM pg_ls_waldir() w \
    WHERE w.name ~ '^[0-9A-F]{24}$') END, \
   c.timeline_id, rec.min_recovery_end_timeline)::int8 \
   ELSE ('x' || pg_catalog.substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END, \
 r.status, pg_wal_lsn_diff(r.latest_end_lsn, '0/0')::int8, \
 COALESCE(current_setting('restore_command', true), '') <> '', \
 pg_is_in_recovery() AND pg_last_wal_receive_lsn() IS NULL AND pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') \
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_activity a WHERE a.backend_type = 'startup' \
     AND a.wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval', 'RecoveryWalAll')) \
 FROM pg_control_checkpoint() c, pg_control_recovery() rec LEFT JOIN pg_stat_get_wal_receiver() r ON true";

const REPLICATION: &str = "SELECT usename::text, application_name, client_addr::text, state, sync_state, \
 COALESCE(sync_priority, 0)::int4 FROM pg_stat_replication ORDER BY application_name, pid";

impl Sql {
    /// The status query.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn status(&self) -> Result<StatusRow, SqlError> {
        let row = self.one(STATUS, &[]).await?;
        let senders = self.all(REPLICATION, &[]).await?;
        let replication = senders.iter().map(replication_of).collect::<Result<_, _>>();
        replication.and_then(|list| status_of(&row, list)).map_err(|e| SqlError::of(&e))
    }
}

fn replication_of(row: &Row) -> Result<ReplicationRow, tokio_postgres::Error> {
    Ok(ReplicationRow {
        usename: row.try_get(0)?,
        application_name: row.try_get(1)?,
        client_addr: row.try_get::<_, Option<String>>(2)?.map(without_mask),
        state: row.try_get(3)?,
        sync_state: row.try_get(4)?,
        sync_priority: row.try_get(5)?,
    })
}

/// `inet` as text carries a mask.
fn without_mask(address: String) -> String {
    address.split_once('/').map_or(address.clone(), |(host, _)| host.to_owned())
}

fn status_of(row: &Row, replication: Vec<ReplicationRow>) -> Result<StatusRow, tokio_postgres::Error> {
    let in_recovery: bool = row.try_get(1)?;
    let number = |at: usize| -> Result<Option<u32>, tokio_postgres::Error> {
        Ok(row.try_get::<_, Option<i64>>(at)?.and_then(|v| u32::try_from(v).ok()))
    };
    Ok(StatusRow {
        postmaster_start_time: row.try_get(0)?,
        in_recovery,
        server_version: number(2)?.unwrap_or(0),
        location: lsn(row, 3)?,
        received: if in_recovery { lsn(row, 4)? } else { None },
        replayed: if in_recovery { lsn(row, 5)? } else { None },
        replayed_timestamp: if in_recovery { row.try_get(6)? } else { None },
        paused: row.try_get(7)?,
        timeline: number(8)?.filter(|t| *t > 0).map(Timeline),
        receiver_status: row.try_get(9)?,
        latest_end_lsn: lsn(row, 10)?,
        restore_command: row.try_get(11)?,
        reads_on: row.try_get(12)?,
        replication,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_their_mask() {
        assert_eq!(without_mask("10.0.0.6/32".into()), "10.0.0.6");
        assert_eq!(without_mask("::1".into()), "::1");
    }
}
