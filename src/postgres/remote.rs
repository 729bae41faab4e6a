//! Questions to another member: its timeline, its history, a checkpoint.
//!
//! The replication protocol's TIMELINE_HISTORY has an SQL equivalent (pg_read_binary_file), for which the rewind account
//! has its grants; without one the superuser asks.

use std::time::Duration;

use super::connect::{self, Connection, SqlError, Target};
use super::conninfo::Address;
use super::control;
use super::history::{self, Ended};
use super::setup::{Credentials, Setup};
use crate::model::{TaskKind, Timeline};

/// What a leader says of its timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderTimeline {
    /// Its database system identifier, decimal.
    pub system_id: String,
    /// It is in recovery: no leader to compare with, but in a standby cluster, whose leader only follows.
    pub in_recovery: bool,
    /// Its timeline; in recovery the newest that it shows to have reached.
    pub timeline: Timeline,
    /// Timeline of its latest checkpoint: behind `timeline` until the checkpoint after promotion is done.
    pub checkpoint_timeline: Timeline,
    /// Its history; empty on timeline 1.
    pub history: Vec<Ended>,
}

const DEADLINE: Duration = Duration::from_secs(5);

/// Asks the member at `conn_url` for its timeline and history.
///
/// # Errors
/// See [`SqlError`].
pub async fn timeline_of(setup: &Setup, conn_url: &str) -> Result<LeaderTimeline, SqlError> {
    match tokio::time::timeout(DEADLINE, ask(setup, conn_url)).await {
        Ok(result) => result,
        Err(_) => Err(SqlError::NoAnswer(format!("{conn_url} did not answer within {} s", DEADLINE.as_secs()))),
    }
}

async fn ask(setup: &Setup, conn_url: &str) -> Result<LeaderTimeline, SqlError> {
    const QUERY: &str = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN \
         GREATEST((SELECT received_tli::int8 FROM pg_stat_wal_receiver), timeline_id::int8, \
         (SELECT min_recovery_end_timeline::int8 FROM pg_control_recovery())) ELSE \
         ('x' || pg_catalog.substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END, \
         timeline_id::int8, (SELECT system_identifier::text FROM pg_control_system()) FROM pg_control_checkpoint()";
    let connection = reach(setup, conn_url).await?;
    let row = connection.client.query_one(QUERY, &[]).await.map_err(|e| SqlError::of(&e))?;
    let number = |at: usize| -> Result<Timeline, SqlError> {
        let value: i64 = row.try_get(at).map_err(|e| SqlError::of(&e))?;
        Ok(Timeline(u32::try_from(value).unwrap_or(0)))
    };
    let recovers: bool = row.try_get(0).map_err(|e| SqlError::of(&e))?;
    // The leader of a standby cluster only follows. What that cluster follows has to write: a server there that recovers may be
    // behind everything that is here.
    let in_recovery = recovers && setup.standby_of.as_ref().is_none_or(|r| r.conn_url.as_deref() == Some(conn_url));
    let (timeline, checkpoint_timeline) = (number(1)?, number(2)?);
    let system_id: String = row.try_get(3).map_err(|e| SqlError::of(&e))?;
    let mut ended = Vec::new();
    if timeline.0 > 1 {
        let file = format!("pg_wal/{}", history::file_name(timeline));
        let row = connection.client.query_one("SELECT pg_read_binary_file($1)", &[&file]).await;
        let bytes: Vec<u8> = row.and_then(|r| r.try_get(0)).map_err(|e| SqlError::of(&e))?;
        ended = history::parse(&String::from_utf8_lossy(&bytes));
    }
    Ok(LeaderTimeline { system_id, in_recovery, timeline, checkpoint_timeline, history: ended })
}

/// Is the member at `conn_url` a primary, just now, or at least the leader of a standby cluster? Asked before anything is rewound or removed on its behalf. An address may
/// be somebody else's by now: where my own data directory says of which system it is, a primary of another one is none.
///
/// # Errors
/// Why not: it does not answer, is in recovery, or of another cluster. One line.
pub async fn primary_answers(setup: &Setup, conn_url: &str) -> Result<LeaderTimeline, String> {
    let dir = setup.data_dir.clone();
    let mine = tokio::task::spawn_blocking(move || control::read(&dir).ok().map(|c| c.system_id)).await.ok().flatten();
    match timeline_of(setup, conn_url).await {
        Ok(leader) if leader.in_recovery => Err(format!("the leader at {conn_url} is in recovery")),
        Ok(leader) if mine.is_some_and(|mine| mine != leader.system_id) => Err(format!(
            "the primary at {conn_url} is of another cluster: its system identifier is {}, not that of {}",
            leader.system_id,
            setup.data_dir.display()
        )),
        Ok(leader) => Ok(leader),
        Err(e) => Err(format!("the leader at {conn_url}: {e}")),
    }
}

/// CHECKPOINT on the member at `conn_url`, as superuser.
///
/// # Errors
/// See [`SqlError`].
pub async fn checkpoint(setup: &Setup, conn_url: &str, deadline: Duration) -> Result<(), SqlError> {
    let address = address(conn_url)?;
    let mut target = Target::remote(setup, &address, &setup.superuser);
    target.settings = vec!["statement_timeout=0".to_owned()];
    let connection = connect::open(&target, Duration::from_secs(3)).await?;
    match tokio::time::timeout(deadline, connection.client.batch_execute("CHECKPOINT")).await {
        Ok(result) => result.map_err(|e| SqlError::of(&e)),
        Err(_) => {
            Err(SqlError::NoAnswer(format!("CHECKPOINT on {conn_url} took longer than {} s", deadline.as_secs())))
        }
    }
}

/// The rewind account if there is one, else the superuser; the latter also when the former is refused. In a standby cluster the
/// other way round: what the leader receives shows to a superuser alone.
async fn reach(setup: &Setup, conn_url: &str) -> Result<Connection, SqlError> {
    let address = address(conn_url)?;
    let (rewind, superuser) = (setup.rewind_credentials(), &setup.superuser);
    let (first, second) = if setup.standby_of.is_some() { (superuser, rewind) } else { (rewind, superuser) };
    let attempt =
        async |who: &Credentials| connect::open(&Target::remote(setup, &address, who), Duration::from_secs(3)).await;
    match attempt(first).await {
        Err(SqlError::Failed { .. }) if first != second => attempt(second).await,
        other => other,
    }
}

fn address(conn_url: &str) -> Result<Address, SqlError> {
    Address::parse(conn_url)
        .ok_or_else(|| SqlError::Config(format!("conn_url {conn_url:?} is not postgres://host:port/database")))
}

/// The `conn_url` a long task works against, if any.
pub fn source_of(task: &TaskKind) -> Option<&str> {
    match task {
        TaskKind::CreateReplica { conn_url, .. } => conn_url.as_deref(),
        TaskKind::Rewind { conn_url, .. } => Some(conn_url),
        TaskKind::Remove { verify, .. } => verify.as_deref(),
        TaskKind::Bootstrap | TaskKind::PostBootstrap | TaskKind::CrashRecovery => None,
    }
}
