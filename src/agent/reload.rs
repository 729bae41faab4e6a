//! Changes of the configuration while running: the local file on SIGHUP or `POST /reload`, the dynamic document whenever
//! the store shows another one (configuration §2.4, §9).

use std::sync::Arc;

use serde_json::Value;
use tracing::{error, info, warn};

use super::callbacks::Callback;
use super::{Agent, settings, telemetry};
use crate::config::Dynamic;
use crate::model::Upstream;
use crate::postgres::start;

impl Agent {
    /// Re-reads the local files. A broken file changes nothing.
    pub(super) async fn reload_files(&mut self) {
        let loaded = match self.source.load() {
            Ok(loaded) => loaded,
            Err(why) => return error!("Failed to reload the configuration, the old one stays: {why}"),
        };
        self.warn_once(loaded.warnings);
        if loaded.config == self.wishes.config {
            info!("No local configuration items changed.");
        } else if let Err(why) = telemetry::configure(settings::log(&loaded.config)) {
            warn!("{why}");
        }
        self.ends.api_settings.send_replace(Arc::new(settings::api(&loaded.config)));
        let dynamic = self.wishes.dynamic.clone();
        self.put_in_force(&loaded.config, &dynamic).await;
        self.rewrite_files(true).await;
    }

    /// Takes over a dynamic document that differs from the one in force.
    pub(super) async fn apply_dynamic(&mut self) {
        let Some(text) = self.cluster.config.as_ref().and_then(|c| c.document.as_deref()) else { return };
        if self.dynamic_text == text {
            return;
        }
        text.clone_into(&mut self.dynamic_text);
        let document: Value = match serde_json::from_str(text) {
            Ok(document @ Value::Object(_)) => document,
            Ok(_) | Err(_) => {
                return warn!("the dynamic configuration in the store is no JSON object, the old one stays");
            }
        };
        if document == self.dynamic {
            return;
        }
        info!("the dynamic configuration has changed");
        let (dynamic, warnings) = Dynamic::apply(&document, &self.wishes.dynamic);
        self.warn_once(warnings);
        self.dynamic = document;
        let config = self.wishes.config.clone();
        self.put_in_force(&config, &dynamic).await;
        self.save_dynamic();
        self.rewrite_files(false).await;
    }

    /// Settings, setup and wishes from both documents; what never changes at run time stays.
    async fn put_in_force(&mut self, config: &crate::config::Config, dynamic: &Dynamic) {
        let major = self.postgres.binaries.major;
        let read = settings::read(config, dynamic, &self.source.home, &self.local.uid, major);
        self.warn_once(read.warnings);
        let mut setup = read.setup;
        let old = &self.setup;
        setup.name.clone_from(&old.name);
        setup.scope.clone_from(&old.scope);
        setup.data_dir.clone_from(&old.data_dir);
        setup.config_dir.clone_from(&old.config_dir);
        setup.bin_dir.clone_from(&old.bin_dir);
        setup.pgpass.clone_from(&old.pgpass);
        setup.database.clone_from(&old.database);
        setup.config_base_name.clone_from(&old.config_base_name);
        let s = &read.settings;
        if (s.ttl, s.loop_wait, s.retry_timeout)
            != (self.settings.ttl, self.settings.loop_wait, self.settings.retry_timeout)
        {
            self.store.set_periods(s.ttl, s.loop_wait, s.retry_timeout);
        }
        self.settings = Arc::new(read.settings);
        self.wishes = Arc::new(read.wishes);
        let setup = Arc::new(setup);
        self.postgres.sql.retarget(&setup).await;
        self.setups.send_replace(setup.clone());
        self.setup = setup;
    }

    /// Rewrites the files of the server if they differ, and has it read them. `always`: even if nothing differs.
    async fn rewrite_files(&mut self, always: bool) {
        if !self.has_server() || self.local.bootstrapping {
            return;
        }
        let role = self.postgres.role;
        let upstream = self.local.postgres.following.clone().unwrap_or(Upstream::Nobody);
        let rewritten = match start::rewrite(&self.setup, &self.postgres.binaries, role, &upstream) {
            Ok(rewritten) => rewritten,
            Err(why) => return error!("{why}"),
        };
        self.warn_once(rewritten.effective.warnings.clone());
        if !self.local.postgres.alive {
            return;
        }
        if !always && !rewritten.changed.any() {
            return info!("No PostgreSQL configuration items changed, nothing to reload.");
        }
        if let Err(e) = self.keeper.hup().await {
            return warn!("could not reload Postgres: {}", e.text);
        }
        info!("Reloading PostgreSQL configuration.");
        self.run_callback(Callback::OnReload);
        self.begin_pending_restart(rewritten.effective);
    }

    /// `patroni.dynamic.json` in the data directory: what a later start knows before it can read the store.
    pub(super) fn save_dynamic(&self) {
        if !self.has_server() {
            return;
        }
        let path = self.setup.data_dir.join(super::startup::DYNAMIC_FILE);
        let mode = crate::postgres::datadir::file_mode(&self.setup.data_dir);
        if let Err(e) = crate::postgres::datadir::write_atomically(&path, self.dynamic.to_string().as_bytes(), mode) {
            warn!("write {}: {e}", path.display());
        }
    }
}
