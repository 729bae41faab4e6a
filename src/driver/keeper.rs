//! The keeper as the driver reaches it: one session, its news, and a way back when it is lost.
//!
//! Bare processes and one container: `patroni` starts `postgres-keeper` in a session of its own and finds it again by its
//! socket after a restart. Pod with two containers: the socket is named (`PATRONI_KEEPER_SOCKET`), the keeper is PID 1 of
//! the other container and only connected to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::clock;
use crate::config::Config;
use crate::dcs::{Dcs, Life, schema};
use crate::keeper::protocol::{self, Ask, Program, SOCKET_PATH_MAX, State, UnfencedReason};
use crate::member::{Fail, News, Standing};
use crate::model::{self, BootInstant, Fence, LeaseRecord, Permission, StartRole, StopMode, WallTime};
use crate::postgres::Setup;
use crate::postgres::keeper_client::{KeeperClient, KeeperError, KeeperEvent, spawn_keeper};
use crate::postgres::start::StartSpec;

/// Between two tries to reach a keeper that is gone.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// How long a pod's keeper may take to appear at start, before it is said and tried again.
const APPEAR: Duration = Duration::from_secs(5);
/// News that wait for the loop.
const NEWS_MAX: usize = 16;

fn fail(e: KeeperError) -> Fail {
    match e {
        KeeperError::Busy(_) | KeeperError::NotPermitted(_) => Fail::NotNow(e.to_string()),
        KeeperError::Refused(_) | KeeperError::Running(_) => Fail::Refused(e.to_string()),
        KeeperError::InUse(_) => Fail::InUse(e.to_string()),
        KeeperError::Unreachable(_) | KeeperError::Silent(_) => Fail::Unreachable(e.to_string()),
    }
}

/// A program to be run by the keeper.
#[derive(Default)]
pub(super) struct Run {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// A newer program in the same slot ends the older one.
    pub slot: Option<String>,
    /// What it is for.
    pub kind: protocol::Kind,
    /// The data directory it works on: locked while it runs.
    pub data_dir: Option<String>,
}

/// How a program ended.
pub(super) struct RunEnded {
    pub success: bool,
    pub output: String,
    pub how: String,
}

impl RunEnded {
    /// How it ended and its own reason.
    pub fn summary(&self) -> String {
        match reason(&self.output) {
            Some(line) => format!("{}: {line}", self.how),
            None => self.how.clone(),
        }
    }
}

/// The line that says why. Programs of Postgres go on after it, with hints and what they clean up: first the server's own
/// word counts (a host name with two addresses fails twice, the server that answered says more), then the first error,
/// because others follow from it; a script's last line else.
fn reason(output: &str) -> Option<&str> {
    let lines = || output.lines().map(str::trim).filter(|line| !line.is_empty());
    let says = |words: &'static [&'static str]| move |line: &&str| words.iter().any(|word| line.contains(word));
    lines()
        .rfind(says(&["FATAL:", "PANIC:"]))
        .or_else(|| lines().find(says(&["error:", "ERROR:", "fatal:"])))
        .or_else(|| lines().next_back())
}

/// The requests of one session. Cheap to clone; a clone outlives the session and then reaches nobody.
#[derive(Clone)]
pub(super) struct Link {
    client: KeeperClient,
}

impl Link {
    /// Runs a program to its end; dropping the future ends the program.
    pub async fn run(&self, run: Run, deadline: Duration, line: impl FnMut(&str) + Send) -> Result<RunEnded, String> {
        let Run { argv, env, slot, kind, data_dir } = run;
        let program = Program { argv, env, slot, data_dir, ..Program::default() };
        let end = self.client.run(kind, program, deadline, line).await.map_err(|e| e.to_string())?;
        Ok(RunEnded { success: end.code == Some(0), output: end.output, how: end.how })
    }
    /// Replaces the permission and the note.
    pub async fn permit(
        &self,
        permission: Permission,
        evidence: BootInstant,
        note: Option<&(LeaseRecord, BootInstant)>,
    ) -> Result<(), Fail> {
        let note = note.map_or_else(String::new, |(record, renewal)| note_of(record, *renewal));
        let permission = match permission {
            Permission::None => protocol::Permission::None,
            Permission::Writer { stop_at, kill_at } => {
                protocol::Permission::Writer { stop_at: stop_at.as_nanos(), kill_at: kill_at.as_nanos() }
            }
            Permission::Unfenced(reason) => protocol::Permission::Unfenced {
                reason: match reason {
                    model::UnfencedReason::Bootstrap => UnfencedReason::Bootstrap,
                    model::UnfencedReason::Pause => UnfencedReason::Pause,
                },
            },
        };
        let ask = Ask::Permit { permission, evidence: evidence.as_nanos(), note };
        self.client.command(ask).await.map_err(fail)
    }
    /// Starts the postmaster.
    pub async fn start(
        &self,
        role: StartRole,
        spec: &StartSpec,
        data_dir: String,
        renewal: BootInstant,
        socket_locks: Vec<String>,
    ) -> Result<(), Fail> {
        let (command, recovers) = (&spec.command, spec.recovers);
        let role = match role {
            StartRole::Primary => protocol::Role::Primary,
            StartRole::Standby => protocol::Role::Standby,
        };
        let program = Program { argv: command.argv.clone(), env: command.env.clone(), recovers, ..Program::default() };
        let ask = Ask::Start { role, program, data_dir, renewal: renewal.as_nanos(), socket_locks };
        self.client.command(ask).await.map_err(fail)
    }
    /// How the living postmaster was started, and what ends it; `None`: there is none.
    ///
    /// # Errors
    /// The keeper does not say.
    pub async fn running(&self) -> Result<Option<(StartRole, Fence)>, Fail> {
        match self.client.ask(Ask::Status).await {
            Ok(protocol::Answer::State(state)) => Ok(role_of(&state).map(|role| (role, fence_of(&state)))),
            Ok(_) => Err(Fail::Unreachable("an answer of another kind".to_owned())),
            Err(e) => Err(fail(e)),
        }
    }
    /// Does a program live that changes a data directory? A keeper that does not say may have one.
    pub async fn works_on_data(&self) -> bool {
        match self.client.ask(Ask::Status).await {
            Ok(protocol::Answer::State(state)) => state.programs.iter().any(|p| p.kind.changes_data()),
            Ok(_) | Err(_) => true,
        }
    }
    /// Promotes the running standby.
    pub async fn promote(&self, renewal: BootInstant) -> Result<(), Fail> {
        self.client.command(Ask::Promote { renewal: renewal.as_nanos() }).await.map_err(fail)
    }
    /// Orders the postmaster to stop.
    pub async fn stop(&self, mode: StopMode) -> Result<(), Fail> {
        let mode = match mode {
            StopMode::Fast => protocol::StopMode::Fast,
            StopMode::Immediate => protocol::StopMode::Immediate,
        };
        self.client.command(Ask::Stop { mode }).await.map_err(fail)
    }
    /// Has the postmaster read its files.
    pub async fn hup(&self) -> Result<(), Fail> {
        self.client.command(Ask::Reload).await.map_err(fail)
    }
}

/// The loop's end of the keeper.
pub(super) struct KeeperSide {
    client: KeeperClient,
    events: mpsc::Receiver<KeeperEvent>,
    back: mpsc::Receiver<(KeeperClient, State, mpsc::Receiver<KeeperEvent>)>,
    lost: bool,
    socket: PathBuf,
    /// The program to start when no keeper answers; `None`: it is somebody else's process.
    program: Option<PathBuf>,
    name: String,
    /// When the keeper that was met last began.
    began: Option<BootInstant>,
    /// And the one that the store was told of: the same one, met again, is the same life.
    told: Option<BootInstant>,
    /// When this program began.
    program_began: BootInstant,
}

impl KeeperSide {
    /// Connects to the keeper, starting it first where it is ours.
    /// `program_began`: when this program did.
    pub async fn open(
        config: &Config,
        setup: &Setup,
        program_began: BootInstant,
    ) -> Result<(KeeperSide, Standing), String> {
        let name = format!("patroni {} ({})", config.name, std::process::id());
        let (socket, program) = match named_socket(config) {
            Some(socket) => (socket, None),
            None => (own_socket(&setup.data_dir), Some(own_program()?)),
        };
        let (client, state, events) = loop {
            match KeeperClient::connect(&socket, &name).await {
                Ok(connected) => break connected,
                Err(e) if e.is_refusal() => return Err(format!("{}: {e}", socket.display())),
                Err(_unreachable) => {}
            }
            if let Some(program) = &program {
                spawn_keeper(program, &socket).await?;
                break KeeperClient::connect(&socket, &name).await.map_err(|e| e.to_string())?;
            }
            info!("waiting for the keeper at {}", socket.display());
            tokio::time::sleep(APPEAR).await;
        };
        let (_, back) = mpsc::channel(1);
        let began = began(&state);
        let standing = standing(&state);
        let side =
            KeeperSide { client, events, back, lost: false, socket, program, name, began, told: began, program_began };
        Ok((side, standing))
    }

    /// The next news. Cancel-safe.
    pub async fn next(&mut self) -> News {
        if self.lost {
            let Some((client, state, events)) = self.back.recv().await else { return std::future::pending().await };
            self.client = client;
            self.events = events;
            self.lost = false;
            self.began = began(&state);
            return News::Met(standing(&state));
        }
        match self.events.recv().await {
            Some(KeeperEvent::Exited { how, at }) => News::Died { how, at: BootInstant::from_nanos(at) },
            Some(KeeperEvent::Fenced(why)) => News::Fenced(why),
            Some(KeeperEvent::Terminating) => News::Terminating,
            Some(KeeperEvent::Lost(why)) => {
                self.reconnect();
                News::Lost(why)
            }
            None => {
                self.reconnect();
                News::Lost("its connection ended".to_owned())
            }
        }
    }

    /// Which life of the pod's containers this is. A keeper of ours may be younger than the container, and older than a
    /// restarted sidecar of bare processes: the earlier of both is in it.
    pub fn life(&self, config: &Config) -> Option<Life> {
        let keeper = self.began?;
        let began = if self.separate_container() { keeper } else { keeper.min(self.program_began) };
        let now = clock::now();
        let wall = |at: BootInstant| Some(WallTime(now.wall.0 - i64::try_from(now.boot.since(at).as_micros()).ok()?));
        Some(Life { container: named_container(config), began: wall(began)?, program: wall(self.program_began)? })
    }

    /// The store learns which life of the pod's containers this is, when another keeper was met. A keeper of ours that was
    /// started again is in the same container as before.
    pub fn told(&mut self, news: &News, config: &Config, store: &dyn Dcs) {
        if let News::Met(_) = news
            && self.separate_container()
            && self.told != self.began
            && let Some(life) = self.life(config)
        {
            self.told = self.began;
            store.set_life(life);
        }
    }

    /// Looks for the way back, beside the loop. A keeper of ours that is gone is started again: Postgres went with it.
    pub fn reconnect(&mut self) {
        if std::mem::replace(&mut self.lost, true) {
            return;
        }
        let (found, back) = mpsc::channel(NEWS_MAX);
        self.back = back;
        let (socket, name, program) = (self.socket.clone(), self.name.clone(), self.program.clone());
        tokio::spawn(async move {
            loop {
                match KeeperClient::connect(&socket, &name).await {
                    Ok(connected) => return drop(found.send(connected).await),
                    Err(KeeperError::Unreachable(_)) => {
                        if let Some(program) = &program
                            && let Err(e) = spawn_keeper(program, &socket).await
                        {
                            warn!("{e}");
                        }
                    }
                    Err(KeeperError::Silent(_)) => {}
                    Err(refused) => warn!("{refused}"),
                }
                if found.is_closed() {
                    return;
                }
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        });
    }

    /// Is Postgres in a container of its own?
    pub fn separate_container(&self) -> bool {
        self.program.is_none()
    }
    /// For effects.
    pub fn link(&self) -> Link {
        Link { client: self.client.clone() }
    }
    /// Ends a keeper of ours; it refuses while a postmaster lives.
    pub async fn shut_down(&self) {
        if self.program.is_some()
            && let Err(e) = self.client.command(Ask::Shutdown).await
        {
            warn!("the keeper stays: {e}");
        }
    }
}

fn began(state: &State) -> Option<BootInstant> {
    (state.began > 0).then(|| BootInstant::from_nanos(state.began))
}

fn role_of(state: &State) -> Option<StartRole> {
    state.postgres.as_ref().map(|p| match (p.role, p.promoted) {
        (protocol::Role::Standby, false) => StartRole::Standby,
        (protocol::Role::Standby, true) | (protocol::Role::Primary, _) => StartRole::Primary,
    })
}

fn fence_of(state: &State) -> Fence {
    match state.postgres.as_ref().map(|p| p.fence) {
        Some(protocol::Fence::Full) => Fence::Full,
        Some(protocol::Fence::Partial) | None => Fence::Partial,
    }
}

fn standing(state: &State) -> Standing {
    let permission = match state.permission {
        protocol::Permission::None => Permission::None,
        protocol::Permission::Writer { stop_at, kill_at } => {
            Permission::Writer { stop_at: BootInstant::from_nanos(stop_at), kill_at: BootInstant::from_nanos(kill_at) }
        }
        protocol::Permission::Unfenced { reason: UnfencedReason::Bootstrap } => {
            Permission::Unfenced(model::UnfencedReason::Bootstrap)
        }
        protocol::Permission::Unfenced { reason: UnfencedReason::Pause } => Permission::PAUSED,
    };
    Standing {
        permission,
        note: from_note(&state.note),
        postgres: role_of(state),
        fence: fence_of(state),
        last_death: state.last_death.map(BootInstant::from_nanos),
        terminating: state.terminating,
    }
}

/// The socket of a keeper in a container of its own; `None`: the keeper is ours to start.
pub(super) fn named_socket(config: &Config) -> Option<PathBuf> {
    config.raw.get("keeper")?.get("socket")?.as_str().filter(|s| !s.is_empty()).map(PathBuf::from)
}

/// The container that Postgres and its keeper are in.
fn named_container(config: &Config) -> Option<String> {
    config.raw.get("keeper")?.get("container")?.as_str().filter(|c| !c.is_empty()).map(str::to_owned)
}

/// Beside the data directory; where that path is too long for a socket, in `/tmp` under a name made of it.
fn own_socket(data_dir: &Path) -> PathBuf {
    let beside = crate::postgres::datadir::beside(data_dir, ".keeper");
    if beside.as_os_str().len() <= SOCKET_PATH_MAX {
        return beside;
    }
    // FNV-1a: any stable mix will do, the same after a restart.
    let hash = beside
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    PathBuf::from(format!("/tmp/patroni-keeper-{hash:016x}"))
}

/// `postgres-keeper` beside this very program.
fn own_program() -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|e| format!("find my own program: {e}"))?;
    let program = me.with_file_name("postgres-keeper");
    if program.exists() {
        return Ok(program);
    }
    Err(format!(
        "{} is missing: install it beside patroni, or name the socket of a running keeper in PATRONI_KEEPER_SOCKET",
        program.display()
    ))
}

/// The lease as a note: what a restarted sidecar needs to go on with it.
fn note_of(record: &LeaseRecord, evidence: BootInstant) -> String {
    json!({ "record": schema::note(record), "evidence": evidence.as_nanos() }).to_string()
}

/// The record of a note and when its confirmed attempt was sent. Evidence from the future is none.
fn from_note(text: &str) -> Option<(LeaseRecord, BootInstant)> {
    let value: Value = serde_json::from_str(text).ok()?;
    let record = schema::from_note(value.get("record")?.as_str()?)?;
    let evidence = BootInstant::from_nanos(value.get("evidence")?.as_u64()?);
    (evidence <= clock::boot()).then_some((record, evidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_of_a_lease_gives_the_same_lease_back() {
        let record = LeaseRecord {
            leader: Some("a".into()),
            ttl: Some("30".into()),
            acquire_time: Some("x".into()),
            renew_time: Some("y".into()),
            transitions: None,
        };
        let evidence = clock::boot();
        assert_eq!(from_note(&note_of(&record, evidence)), Some((record, evidence)));
        assert_eq!(from_note(""), None);
    }

    #[test]
    fn a_failed_program_is_quoted_with_the_line_that_says_why() {
        let refused = "pg_basebackup: error: connection to server at \"10.0.0.4\", port 5432 failed: FATAL:  password \
                       authentication failed for user \"replicator\"\npassword retrieved from file \"/tmp/pgpass\"\n";
        assert!(reason(refused).unwrap().ends_with("password authentication failed for user \"replicator\""));
        let full = "pg_basebackup: error: could not write to file: No space left on device\n\
                    pg_basebackup: removing data directory \"/data\"\n";
        assert!(reason(full).unwrap().ends_with("No space left on device"));
        assert_eq!(reason("begin\n  my own word\n\n"), Some("my own word"));
        assert_eq!(reason("\n"), None);
    }

    #[test]
    fn the_socket_is_the_same_after_a_restart_and_never_too_long() {
        assert_eq!(own_socket(Path::new("/data/pg")), PathBuf::from("/data/pg.keeper"));
        let long = PathBuf::from(format!("/{}", "x".repeat(120)));
        assert_eq!(own_socket(&long), own_socket(&long));
        assert!(own_socket(&long).as_os_str().len() <= SOCKET_PATH_MAX);
    }
}
