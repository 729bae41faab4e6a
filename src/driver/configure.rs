//! Configuration into values in force: the local files again, or another dynamic document. What never changes at run time
//! stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tracing::{debug, error, info, warn};

use super::{Driver, settings, telemetry};
use crate::config::{Config, Dynamic};
use crate::member::{Answer, Id, InForce, Input};
use crate::model::{Callback, Periods};
use crate::postgres::Setup;
use crate::postgres::binaries::Binaries;

impl Driver {
    /// Puts a document in force, or reads the local files again; what came of it are inputs.
    pub(super) fn configure(&mut self, id: Id, document: Option<Arc<str>>) {
        let changed = match document {
            Some(text) => self.apply_dynamic(&text),
            None => self.reload_files(),
        };
        if let Some(reload) = changed {
            let in_force =
                in_force(&self.wishes, &self.setup, &self.binaries, self.keeper.separate_container(), reload);
            let in_force = InForce {
                document: self.dynamic_text.clone(),
                to_publish: self.dynamic.to_string().into(),
                ..in_force
            };
            self.next.push_back(Input::Settings(Arc::new(in_force)));
        }
        self.next.push_back(Input::Reply { id, answer: Ok(Answer::Done) });
    }

    /// Re-reads the local files. A broken file changes nothing.
    fn reload_files(&mut self) -> Option<bool> {
        let mut loaded = match self.source.load() {
            Ok(loaded) => loaded,
            Err(why) => {
                error!("Failed to reload the configuration, the old one stays: {why}");
                return None;
            }
        };
        for warning in loaded.warnings {
            warn!("{warning}");
        }
        let fixed = loaded.config.keep_fixed(&self.wishes.config);
        if !fixed.is_empty() {
            warn!("changed, but taken over only when patroni is started again: {}", fixed.join(", "));
        }
        if loaded.config == self.wishes.config {
            info!("No local configuration items changed.");
        } else if let Err(why) = telemetry::configure(settings::log(&loaded.config)) {
            warn!("{why}");
        }
        self.ends.api_settings.send_replace(Arc::new(settings::api(&loaded.config)));
        let dynamic = self.wishes.dynamic.clone();
        self.put_in_force(&loaded.config, &dynamic);
        Some(true)
    }

    /// Takes over a dynamic document.
    fn apply_dynamic(&mut self, text: &Arc<str>) -> Option<bool> {
        self.dynamic_text = text.clone();
        let document: Value = match serde_json::from_str(text) {
            Ok(document @ Value::Object(_)) => document,
            Ok(_) | Err(_) => {
                warn!("the dynamic configuration in the store is no JSON object, the old one stays");
                return None;
            }
        };
        if document == self.dynamic {
            return None;
        }
        info!("the dynamic configuration has changed");
        let (dynamic, warnings) = Dynamic::apply(&document, &self.wishes.dynamic);
        for warning in warnings {
            warn!("{warning}");
        }
        self.dynamic = document;
        let config = self.wishes.config.clone();
        self.put_in_force(&config, &dynamic);
        save_dynamic(&self.setup, &self.dynamic);
        Some(false)
    }

    fn put_in_force(&mut self, config: &Config, dynamic: &Dynamic) {
        let pod = settings::Pod { uid: &self.setup.pod_uid, site: self.wishes.pod_site.as_deref() };
        let read = settings::read(config, dynamic, &self.source.home, pod, self.binaries.major);
        for warning in read.warnings {
            warn!("{warning}");
        }
        let old = &self.setup;
        let setup = Setup {
            name: old.name.clone(),
            scope: old.scope.clone(),
            data_dir: old.data_dir.clone(),
            config_dir: old.config_dir.clone(),
            bin_dir: old.bin_dir.clone(),
            pgpass: old.pgpass.clone(),
            database: old.database.clone(),
            config_base_name: old.config_base_name.clone(),
            ..read.setup
        };
        let s = &read.wishes.settings;
        self.store.set_periods(Periods { ttl: s.ttl, loop_wait: s.loop_wait, retry_timeout: s.retry_timeout });
        self.wishes = Arc::new(read.wishes);
        let setup = Arc::new(setup);
        self.setups.send_replace(setup.clone());
        self.setup = setup.clone();
        let sql = self.sql.clone();
        tokio::spawn(async move { sql.retarget(&setup).await });
    }
}

/// What the machine looks at.
pub(super) fn in_force(
    wishes: &settings::Wishes,
    setup: &Setup,
    binaries: &Binaries,
    separate_container: bool,
    reload: bool,
) -> InForce {
    let tags = if wishes.published_tags.is_empty() {
        Arc::from("")
    } else {
        Value::Object((*wishes.published_tags).clone()).to_string().into()
    };
    InForce {
        settings: wishes.settings.clone(),
        document: Arc::from(""),
        to_publish: Arc::from("{}"),
        conn_url: setup.conn_url(),
        api_url: wishes.api_url.clone(),
        proxy_url: wishes.proxy_url.clone(),
        tags,
        custom_bootstrap: setup.bootstrap_method.is_some(),
        pre_promote: wishes.pre_promote.is_some(),
        before_stop: wishes.before_stop.is_some(),
        restores: setup.recovery_conf.contains_key("restore_command"),
        separate_container,
        server_version: binaries.version,
        reload,
    }
}

/// `patroni.dynamic.json` in the data directory: what a later start knows before it can read the store.
pub(super) fn save_dynamic(setup: &Setup, document: &Value) {
    if !setup.data_dir.join("PG_VERSION").exists() {
        return debug!("no data directory yet to keep the dynamic configuration in");
    }
    let path = setup.data_dir.join(super::startup::DYNAMIC_FILE);
    let mode = crate::postgres::datadir::file_mode(&setup.data_dir);
    if let Err(e) = crate::postgres::datadir::write_atomically(&path, document.to_string().as_bytes(), mode) {
        warn!("write {}: {e}", path.display());
    }
}

/// The command line of a callback: the configured words, then action, role, scope. `None`: not configured.
///
/// # Errors
/// The configured text cannot be split like a shell command.
pub(super) fn callback_line(
    configured: &BTreeMap<String, String>,
    callback: Callback,
    role: &str,
    scope: &str,
) -> Result<Option<Vec<String>>, String> {
    let Some(text) = configured.get(callback.word()).filter(|t| !t.trim().is_empty()) else { return Ok(None) };
    let mut argv = shlex::split(text)
        .filter(|words| !words.is_empty())
        .ok_or_else(|| format!("postgresql.callbacks.{}: unbalanced quotes in {text:?}", callback.word()))?;
    argv.extend([callback.word().to_owned(), role.to_owned(), scope.to_owned()]);
    Ok(Some(argv))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_split_like_a_shell_and_gets_three_arguments() {
        let configured = BTreeMap::from([("on_start".to_owned(), "/bin/sh -c 'a b'".to_owned())]);
        let argv = callback_line(&configured, Callback::OnStart, "primary", "demo").unwrap().unwrap();
        assert_eq!(argv, ["/bin/sh", "-c", "a b", "on_start", "primary", "demo"]);
        assert_eq!(callback_line(&configured, Callback::OnStop, "primary", "demo"), Ok(None));
        let broken = BTreeMap::from([("on_stop".to_owned(), "'".to_owned())]);
        assert!(callback_line(&broken, Callback::OnStop, "primary", "demo").unwrap_err().contains("on_stop"));
    }
}
