//! The programs that say which parameters the installed server refuses (`postgres::trial`), run where they are: by the
//! keeper beside Postgres, or right here for `--validate-config`.
//!
//! A setup is asked about once. Whoever writes the files of Postgres takes the rest of it from here, so that a typo in the
//! cluster's configuration is a warning in the log and not a cluster that is down. Where asking fails everything is taken
//! but what was refused before.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tracing::warn;

use super::keeper::Run;
use super::perform::{Hands, blocking};
use super::settings::Wishes;
use super::{clock, settings};
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::trial::{self, AllRefused, Known, Next, Trial};
use crate::postgres::{Setup, conf, datadir};

/// All runs about one setup together; each takes some 20 ms.
const ASK_DEADLINE: Duration = Duration::from_secs(5);

/// What the server was asked last, and what it refuses.
pub(super) struct Trials {
    /// Held while it is asked: there is one file to be read.
    known: Mutex<Known>,
    refused: watch::Sender<Arc<AllRefused>>,
}

impl Trials {
    pub(super) fn new() -> Arc<Trials> {
        Arc::new(Trials { known: Mutex::default(), refused: watch::Sender::new(Arc::default()) })
    }

    /// Name → why, of everything that is not in force as it is configured.
    pub(super) fn shown(&self, major: u32) -> BTreeMap<String, String> {
        self.refused.borrow().iter().map(|(name, refused)| (name.clone(), refused.reason(major))).collect()
    }
}

impl Hands {
    /// With a setup that the server takes.
    pub(super) async fn judged(mut self) -> Hands {
        // Before there is a data directory no file of Postgres is written.
        let dir = self.setup.data_dir.clone();
        if !blocking(move || Ok(binaries::data_version(&dir).is_some())).await.unwrap_or(false) {
            return self;
        }
        let trials = self.trials.clone();
        let mut known = trials.known.lock().await;
        let asked = trial::asked(&self.setup, self.binaries.major);
        if !known.covers(&asked, clock::boot()) {
            let (refused, clear) = self.ask(asked.clone()).await;
            if let Err(why) = &clear {
                warn!(
                    "cannot ask Postgres which parameters it takes: what it has refused before stays out, all else is taken: {why}"
                );
            }
            known.heard(asked, refused, clear.is_ok(), clock::boot());
            let former = trials.refused.send_replace(Arc::new(known.refused().clone()));
            say(known.refused(), &former, &self.wishes, self.binaries.major);
        }
        if !known.refused().is_empty() {
            self.setup = Arc::new(trial::without(&self.setup, known.refused()));
        }
        drop(known);
        self
    }

    /// Has the keeper run it until nothing is refused.
    async fn ask(&self, asked: BTreeMap<String, String>) -> (AllRefused, Result<(), String>) {
        let setup = self.setup.clone();
        let before = blocking(move || Ok(in_force(&setup))).await.unwrap_or_default();
        let mut trial = Trial::new(asked, before);
        let until = clock::boot() + ASK_DEADLINE;
        let clear = loop {
            let next = match self.run(&trial, clock::boot().until(until)).await {
                Ok((success, output)) => trial.heard(success, &output),
                Err(why) => break Err(why),
            };
            match next {
                Next::Ask => {}
                Next::Over => break Ok(()),
                Next::Unclear(why) => break Err(why),
            }
        };
        (trial.refused(), clear)
    }

    async fn run(&self, trial: &Trial, left: Duration) -> Result<(bool, String), String> {
        if left.is_zero() {
            return Err(format!("it has not said all within {} s", ASK_DEADLINE.as_secs()));
        }
        let file = self.setup.data_dir.join(trial::FILE);
        let (text, path, dir) = (trial.text(), file.clone(), self.setup.data_dir.clone());
        let wrong = |path: &PathBuf, e: std::io::Error| format!("{}: {e}", path.display());
        let write = move || {
            datadir::write_atomically(&path, text.as_bytes(), datadir::file_mode(&dir)).map_err(|e| wrong(&path, e))
        };
        blocking(write).await?;
        let command = trial::command(&self.binaries, &file);
        let run = Run { argv: command.argv, env: command.env, ..Run::default() };
        let ended = self.keeper.run(run, left, |_| {}).await;
        blocking(move || datadir::remove_if_there(&file).map_err(|e| wrong(&file, e))).await?;
        ended.map(|ended| (ended.success, ended.output))
    }
}

/// The settings of the file that is there: a server has taken them.
fn in_force(setup: &Setup) -> BTreeMap<String, String> {
    fs_err::read_to_string(conf::conf_path(setup)).map(|text| conf::settings_of(&text)).unwrap_or_default()
}

/// One warning for each that is refused and was not before.
fn say(refused: &AllRefused, former: &AllRefused, wishes: &Wishes, major: u32) {
    for (name, what) in refused.iter().filter(|(name, what)| former.get(*name) != Some(what)) {
        warn!("{}", what.sentence(name, major, wishes.origin_of(name)));
    }
}

/// What the server that is installed here would refuse of a configuration, one line each.
pub(super) async fn here(read: &settings::Read, binaries: &Binaries) -> Vec<String> {
    let mut trial = Trial::new(trial::asked(&read.setup, binaries.major), BTreeMap::new());
    let file = std::env::temp_dir().join(format!("patroni-trial-{:016x}.conf", rand::random::<u64>()));
    let clear = loop {
        let next = match run_here(&trial, binaries, file.clone()).await {
            Ok((success, output)) => trial.heard(success, &output),
            Err(why) => break Err(why),
        };
        match next {
            Next::Ask => {}
            Next::Over => break Ok(()),
            Next::Unclear(why) => break Err(why),
        }
    };
    let removed =
        blocking(move || datadir::remove_if_there(&file).map_err(|e| format!("{}: {e}", file.display()))).await;
    let unasked = clear.and(removed).err().map(|why| format!("postgresql.parameters could not be checked: {why}"));
    let sentence =
        |(name, what): (&String, &trial::Refused)| what.sentence(name, binaries.major, read.wishes.origin_of(name));
    trial.refused().iter().map(sentence).chain(unasked).collect()
}

async fn run_here(trial: &Trial, binaries: &Binaries, file: PathBuf) -> Result<(bool, String), String> {
    let (text, path) = (trial.text(), file.clone());
    blocking(move || {
        datadir::write_atomically(&path, text.as_bytes(), 0o600).map_err(|e| format!("{}: {e}", path.display()))
    })
    .await?;
    let command = trial::command(binaries, &file);
    let mut run = tokio::process::Command::new(&command.argv[0]);
    run.args(&command.argv[1..]).envs(&command.env).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(ASK_DEADLINE, run.output()).await {
        Err(_) => Err(format!("{} did not end within {} s", command.argv[0], ASK_DEADLINE.as_secs())),
        Ok(Err(e)) => Err(format!("cannot run {}: {e}", command.argv[0])),
        Ok(Ok(output)) => Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
