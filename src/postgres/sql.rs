//! Questions to the local server over one connection that is opened when needed and kept.
//!
//! Every call has a deadline; a call that fails for any other reason than an error of the server itself gives the
//! connection up, so that the next one starts clean. One of those that were given up is kept open until another answers:
//! that it breaks says something about the server which a new connection cannot say.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

pub use super::connect::SqlError;
use super::connect::{self, Connection, Target};
use super::params::{self, Effective};
use super::setup::Setup;
use crate::model::{BootInstant, Lsn, MemberName, Probe, Replication, Sender, Timeline};

/// How long one monitoring question may take, connecting included: statement_timeout (2 s) plus the way.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// What a connection attempt says about a server (as pg_isready).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It accepts connections (even if it refuses ours, e.g. for a wrong password).
    Ready,
    /// It rejects: starting up or shutting down.
    StartingUp,
    /// Nobody listens.
    Refused,
    /// No answer within the deadline.
    NoAnswer,
}

/// A streaming standby as its WAL sender shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalSender {
    /// `application_name`: the member name.
    pub application_name: String,
    /// `streaming`, `catchup`, …
    pub state: String,
    /// Sent.
    pub sent: Lsn,
    /// Flushed there.
    pub flush: Lsn,
    /// Replayed there.
    pub replay: Lsn,
}

/// The connection manager.
#[derive(Debug)]
pub struct Sql {
    target: Mutex<Target>,
    connection: Mutex<Option<Connection>>,
    sessions: std::sync::Mutex<Sessions>,
}

/// What is known of sessions that are not in use.
#[derive(Debug, Default)]
struct Sessions {
    /// One was open and answered.
    opened: bool,
    /// One that was given up in the middle of a question.
    given_up: Option<Connection>,
}

/// A connection in use; dropped in the middle of a question it is given up.
struct InUse<'a>(&'a Sql, Option<Connection>);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.1.take() {
            self.0.with_sessions(|s| {
                // One that is open already says as much.
                if s.given_up.as_ref().is_none_or(|c| c.client.is_closed()) {
                    s.given_up = Some(connection);
                }
            });
        }
    }
}

/// A standby without a receiver knows its timeline from pg_control only at the next restartpoint. Its WAL knows at once:
/// segments carry the timeline they were written on. One whose history is not there is a leftover: what pg_rewind took this
/// member off leaves its segments behind.
const PROBE: &str = "SELECT pg_is_in_recovery(), \
 CASE WHEN pg_is_in_recovery() THEN 0 ELSE ('x' || pg_catalog.substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END, \
 CASE WHEN pg_is_in_recovery() THEN 0 ELSE pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::int8 END, \
 CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(GREATEST(pg_last_wal_receive_lsn(), r.written_lsn), '0/0')::int8 END, \
 pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::int8, \
 CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, \
 r.status = 'streaming', \
 CASE WHEN r.latest_end_lsn IS NOT NULL THEN r.received_tli WHEN pg_is_in_recovery() THEN \
   (SELECT max(('x' || pg_catalog.substr(w.name, 1, 8))::bit(32)::int8) FROM pg_ls_waldir() w \
    WHERE w.name ~ '^[0-9A-F]{24}$' AND EXISTS (SELECT 1 FROM pg_ls_waldir() h \
      WHERE h.name = pg_catalog.substr(w.name, 1, 8) || '.history')) END::int8, \
 c.timeline_id::int8, rec.min_recovery_end_timeline::int8, s.system_identifier, \
 current_setting('synchronous_standby_names'), current_setting('synchronous_commit'), \
 CASE WHEN NOT pg_is_in_recovery() THEN (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(w.application_name, w.state, \
   w.sync_state, pg_wal_lsn_diff(w.write_lsn, '0/0'), pg_wal_lsn_diff(w.flush_lsn, '0/0'), pg_wal_lsn_diff(w.replay_lsn, '0/0'))) \
   FROM pg_catalog.pg_stat_replication w)::text END, \
 CASE WHEN NOT pg_is_in_recovery() THEN NOT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') OR EXISTS (SELECT 1 \
   FROM pg_catalog.pg_stat_activity a WHERE a.backend_type = 'checkpointer' \
   AND a.wait_event IN ('CheckpointerMain', 'CheckpointWriteDelay')) END \
 FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() rec \
 LEFT JOIN pg_stat_get_wal_receiver() r ON true";

impl Sql {
    /// For the local server; nothing is opened yet. `application_name`: `Patroni heartbeat` or `Patroni restapi`.
    pub fn local(setup: &Setup, application_name: &str) -> Sql {
        Sql::to(Target::local(setup, application_name))
    }
    /// For any server.
    pub fn to(target: Target) -> Sql {
        Sql { target: Mutex::new(target), connection: Mutex::new(None), sessions: std::sync::Mutex::default() }
    }
    /// Changes the place or the account; the open connection is dropped if that is another one.
    pub async fn retarget(&self, setup: &Setup) {
        let mut target = self.target.lock().await;
        let next = Target::local(setup, &target.application_name);
        if *target != next {
            *target = next;
            self.close().await;
        }
    }
    /// Drops the open connection; call when the postmaster has died.
    pub async fn close(&self) {
        *self.connection.lock().await = None;
        self.with_sessions(|s| *s = Sessions::default());
    }

    /// A session was open that answered, and every one that was open is broken by the server.
    pub fn has_ended(&self) -> bool {
        let broken = |c: &Option<Connection>| c.as_ref().is_none_or(|c| c.client.is_closed());
        self.connection.try_lock().is_ok_and(|held| broken(&held))
            && self.with_sessions(|s| s.opened && broken(&s.given_up))
    }

    fn with_sessions<T>(&self, act: impl FnOnce(&mut Sessions) -> T) -> T {
        act(&mut self.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The monitoring query. `at`: now; it is put into the probe as the time of sending.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn probe(&self, at: BootInstant) -> Result<Probe, SqlError> {
        let row = self.one(PROBE, &[]).await?;
        probe_of(&row, at).map_err(|e| SqlError::of(&e))
    }
    /// One connection attempt of its own, as pg_isready makes.
    pub async fn is_ready(&self, deadline: Duration) -> Readiness {
        let target = self.target.lock().await.clone();
        match connect::open(&target, deadline).await {
            Ok(_) | Err(SqlError::Failed { .. } | SqlError::Config(_)) => Readiness::Ready,
            Err(SqlError::StartingUp(_)) => Readiness::StartingUp,
            Err(SqlError::Refused(_)) => Readiness::Refused,
            Err(SqlError::NoAnswer(_)) => Readiness::NoAnswer,
        }
    }
    /// CHECKPOINT on a connection of its own, because it may take minutes.
    ///
    /// # Errors
    /// See [`SqlError`]; `NoAnswer` when `deadline` has passed.
    pub async fn checkpoint(&self, deadline: Duration) -> Result<(), SqlError> {
        let mut target = self.target.lock().await.clone();
        target.settings = vec!["statement_timeout=0".to_owned()];
        let connection = connect::open(&target, DEADLINE).await?;
        match tokio::time::timeout(deadline, connection.client.batch_execute("CHECKPOINT")).await {
            Ok(result) => result.map_err(|e| SqlError::of(&e)),
            Err(_) => Err(SqlError::NoAnswer(format!("CHECKPOINT took longer than {} s", deadline.as_secs()))),
        }
    }
    /// The standbys that stream from here.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn walsenders(&self) -> Result<Vec<WalSender>, SqlError> {
        const QUERY: &str = "SELECT COALESCE(application_name, ''), COALESCE(state, ''), \
             pg_wal_lsn_diff(sent_lsn, '0/0')::int8, pg_wal_lsn_diff(flush_lsn, '0/0')::int8, \
             pg_wal_lsn_diff(replay_lsn, '0/0')::int8 FROM pg_stat_replication WHERE state IS NOT NULL";
        let rows = self.all(QUERY, &[]).await?;
        let read = |row: &Row| -> Result<WalSender, tokio_postgres::Error> {
            Ok(WalSender {
                application_name: row.try_get(0)?,
                state: row.try_get(1)?,
                sent: lsn(row, 2)?.unwrap_or_default(),
                flush: lsn(row, 3)?.unwrap_or_default(),
                replay: lsn(row, 4)?.unwrap_or_default(),
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|e| SqlError::of(&e))
    }
    /// Writes one transaction that waits for nobody: standbys report what they have when WAL comes.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn stir(&self) -> Result<(), SqlError> {
        let one = "SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.txid_current()";
        self.one(one, &[]).await.map(|_| ())
    }
    /// `server_version_num`.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn server_version(&self) -> Result<u32, SqlError> {
        let row = self.one("SELECT current_setting('server_version_num')::int4", &[]).await?;
        let number: i32 = row.try_get(0).map_err(|e| SqlError::of(&e))?;
        Ok(u32::try_from(number).unwrap_or(0))
    }
    /// Parameters whose change waits for a restart: name → (value in force, value wanted, `?` if unknown). Postgres
    /// marks those of its files; what stands on its command line is compared with `wanted`.
    /// Recovery settings never count.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn pending_restart(
        &self,
        wanted: Option<&Effective>,
    ) -> Result<BTreeMap<String, (String, String)>, SqlError> {
        const QUERY: &str = "SELECT s.name, current_setting(s.name), s.setting, s.vartype, s.unit, s.pending_restart, \
             (SELECT f.setting FROM pg_file_settings f WHERE pg_catalog.lower(f.name) = pg_catalog.lower(s.name) \
              AND f.error IS DISTINCT FROM 'setting could not be applied' ORDER BY f.seqno DESC LIMIT 1) \
             FROM pg_settings s WHERE s.context = 'postmaster' AND (s.pending_restart OR s.name = ANY($1))";
        let names: Vec<String> = wanted.map(|w| w.command_line.keys().cloned().collect()).unwrap_or_default();
        let rows = self.all(QUERY, &[&names]).await?;
        let mut out = BTreeMap::new();
        for row in &rows {
            if let Some((name, pair)) = pending_of(row, wanted).map_err(|e| SqlError::of(&e))? {
                out.insert(name, pair);
            }
        }
        Ok(out)
    }

    /// Exactly one row.
    pub(super) async fn one(&self, query: &str, args: &[&(dyn ToSql + Sync)]) -> Result<Row, SqlError> {
        let rows = self.all(query, args).await?;
        rows.into_iter().next().ok_or_else(|| SqlError::NoAnswer("the server answered without a row".to_owned()))
    }
    /// The settings in force that a standby needs as high as its primary has them.
    ///
    /// # Errors
    /// See [`SqlError`].
    pub async fn limits(&self) -> Result<BTreeMap<String, u32>, SqlError> {
        let query = "SELECT name::text, setting::int8 FROM pg_settings WHERE name IN ('max_connections', \
                     'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')";
        let rows = self.all(query, &[]).await?;
        let limit = |row: &Row| Ok((row.try_get(0)?, u32::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0)));
        rows.iter().map(limit).collect::<Result<_, _>>().map_err(|e| SqlError::of(&e))
    }
    /// All rows, within [`DEADLINE`].
    pub(super) async fn all(&self, query: &str, args: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, SqlError> {
        let target = self.target.lock().await.clone();
        let mut held = self.connection.lock().await;
        // Taken out while in use: a call that is cancelled or fails leaves no half-used connection to the next one.
        let mut in_use = InUse(self, held.take().filter(|c| !c.client.is_closed()));
        let work = async {
            let connection = match in_use.1.take() {
                Some(connection) => connection,
                None => connect::open(&target, DEADLINE).await?,
            };
            in_use.1.insert(connection).client.query(query, args).await.map_err(|e| SqlError::of(&e))
        };
        let result = match tokio::time::timeout(DEADLINE, work).await {
            Err(_) => Err(SqlError::NoAnswer(format!("no answer within {} s", DEADLINE.as_secs()))),
            Ok(result) => result,
        };
        if matches!(result, Ok(_) | Err(SqlError::Failed { .. })) && in_use.1.is_some() {
            *held = in_use.1.take();
            self.with_sessions(|s| *s = Sessions { opened: true, given_up: None });
        }
        result
    }
}

pub(super) fn lsn(row: &Row, at: usize) -> Result<Option<Lsn>, tokio_postgres::Error> {
    let value: Option<i64> = row.try_get(at)?;
    Ok(value.and_then(|v| u64::try_from(v).ok()).map(Lsn))
}

fn timeline(row: &Row, at: usize) -> Result<Option<Timeline>, tokio_postgres::Error> {
    let value: Option<i64> = row.try_get(at)?;
    Ok(value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).map(Timeline))
}

fn probe_of(row: &Row, at: BootInstant) -> Result<Probe, tokio_postgres::Error> {
    let in_recovery: bool = row.try_get(0)?;
    let replayed = lsn(row, 4)?.unwrap_or_default();
    let received = lsn(row, 3)?.unwrap_or_default();
    let streamed = timeline(row, 7)?;
    let controlled = timeline(row, 8)?.max(timeline(row, 9)?);
    let system_id: i64 = row.try_get(10)?;
    let own = if in_recovery { streamed.max(controlled) } else { timeline(row, 1)? };
    Ok(Probe {
        at,
        in_recovery,
        timeline: own.unwrap_or_default(),
        position: if in_recovery { received.max(replayed) } else { lsn(row, 2)?.unwrap_or_default() },
        received,
        replayed,
        streaming: row.try_get::<_, Option<bool>>(6)?.unwrap_or(false),
        replay_paused: row.try_get(5)?,
        blocked: None,
        system_id: u64::from_ne_bytes(system_id.to_ne_bytes()).to_string(),
        replication: replication_of(row)?,
    })
}

/// A row of `pg_stat_replication`: name, state, sync_state, and how far it has written, flushed and replayed.
type Shown = (Option<String>, Option<String>, Option<String>, Option<u64>, Option<u64>, Option<u64>);

fn replication_of(row: &Row) -> Result<Replication, tokio_postgres::Error> {
    let commit: String = row.try_get(12)?;
    let senders: Option<String> = row.try_get(13)?;
    let senders: Vec<Shown> = senders.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(Replication {
        read: row.try_get::<_, Option<bool>>(14)?.unwrap_or(false),
        names: row.try_get(11)?,
        senders: senders.into_iter().filter_map(|s| sender_of(s, &commit)).collect(),
    })
}

fn sender_of((name, state, sync, write, flush, replay): Shown, commit: &str) -> Option<Sender> {
    let reached = match commit {
        "remote_apply" => replay,
        "remote_write" => write,
        _ => flush,
    };
    Some(Sender {
        name: MemberName(name.filter(|n| !n.is_empty())?),
        streaming: state.as_deref() == Some("streaming"),
        rank: match sync.as_deref() {
            Some("sync") => 3,
            Some("quorum") => 2,
            Some("potential") => 1,
            Some(_) | None => 0,
        },
        position: Lsn(reached?),
    })
}

type Pending = Option<(String, (String, String))>;

fn pending_of(row: &Row, wanted: Option<&Effective>) -> Result<Pending, tokio_postgres::Error> {
    let name: String = row.try_get(0)?;
    let shown: String = row.try_get(1)?;
    let setting: String = row.try_get(2)?;
    let vartype: String = row.try_get(3)?;
    let unit: Option<String> = row.try_get(4)?;
    let marked: bool = row.try_get(5)?;
    let in_file: Option<String> = row.try_get(6)?;
    if params::is_recovery(&name) || name == "hot_standby" {
        return Ok(None);
    }
    let ours = wanted.and_then(|w| {
        let value = w.command_line.get(&name)?;
        let raised = w.pending_restart.get(&name);
        let differs = !params::same_value(value, &setting, &vartype, unit.as_deref());
        raised.map(|(_, to)| to.clone()).or_else(|| differs.then(|| value.clone()))
    });
    Ok(match ours {
        Some(to) => Some((name, (shown, to))),
        None if marked => Some((name, (shown, in_file.unwrap_or_else(|| "?".to_owned())))),
        None => None,
    })
}
