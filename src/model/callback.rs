//! The callbacks of `postgresql.callbacks`.

/// The five callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// Ready after a start without change of role; first look at a running server; end of a bootstrap.
    OnStart,
    /// Stopped by us, not as part of a restart.
    OnStop,
    /// Ready after a restart, same role.
    OnRestart,
    /// Configuration reloaded.
    OnReload,
    /// Promoted, or turned into a standby.
    OnRoleChange,
}

impl Callback {
    /// The key in `postgresql.callbacks` and the first argument.
    pub fn word(self) -> &'static str {
        match self {
            Callback::OnStart => "on_start",
            Callback::OnStop => "on_stop",
            Callback::OnRestart => "on_restart",
            Callback::OnReload => "on_reload",
            Callback::OnRoleChange => "on_role_change",
        }
    }
    /// The slot in which a newer one replaces the older.
    pub fn slot(self) -> &'static str {
        match self {
            Callback::OnReload => "on_reload",
            Callback::OnStart | Callback::OnStop | Callback::OnRestart | Callback::OnRoleChange => "callback",
        }
    }
}
