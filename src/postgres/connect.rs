//! One SQL connection: where to, as whom, with or without TLS, and what its errors mean.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::Address;
use super::setup::{Credentials, Setup};
use crate::tls::{Verify, certificates, client};

/// Why a question to a server was not answered. One line each.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SqlError {
    /// Nobody listens.
    #[error("no server answers: {0}")]
    Refused(String),
    /// It says it is starting up or shutting down (SQLSTATE 57P03).
    #[error("{0}")]
    StartingUp(String),
    /// No answer within the deadline, or the connection broke.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The server answered with an error.
    #[error("{message} (SQLSTATE {code})")]
    Failed {
        /// SQLSTATE.
        code: String,
        /// Its words.
        message: String,
    },
    /// The configuration of the connection cannot be used.
    #[error("{0}")]
    Config(String),
}

impl SqlError {
    /// The server accepts connections, but not mine: account, password, pg_hba, database, or all its slots are taken. It is up.
    pub fn refuses_login(&self) -> bool {
        match self {
            SqlError::Failed { code, .. } => code.starts_with("28") || code == "53300" || code == "3D000",
            SqlError::Refused(_) | SqlError::StartingUp(_) | SqlError::NoAnswer(_) | SqlError::Config(_) => false,
        }
    }
    /// What a driver error means.
    pub fn of(e: &tokio_postgres::Error) -> SqlError {
        if let Some(db) = e.as_db_error() {
            let message = db.message().to_owned();
            return match db.code().code() {
                "57P03" => SqlError::StartingUp(message),
                "57P01" | "57P02" => SqlError::NoAnswer(message),
                code => SqlError::Failed { code: code.to_owned(), message },
            };
        }
        let mut source = std::error::Error::source(e);
        while let Some(cause) = source {
            if let Some(io) = cause.downcast_ref::<std::io::Error>() {
                let nobody = matches!(io.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound);
                return if nobody { SqlError::Refused(io.to_string()) } else { SqlError::NoAnswer(io.to_string()) };
            }
            source = cause.source();
        }
        SqlError::NoAnswer(e.to_string())
    }
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host, address or socket directory, and port.
    pub address: Address,
    /// As whom.
    pub who: Credentials,
    /// Database.
    pub database: String,
    /// `application_name`.
    pub application_name: String,
    /// Further settings as `name=value`, on top of the search path.
    pub settings: Vec<String>,
}

impl Target {
    /// The local server, as superuser.
    pub fn local(setup: &Setup, application_name: &str) -> Target {
        Target {
            address: local_address(setup),
            who: setup.superuser.clone(),
            database: setup.database.clone(),
            application_name: application_name.to_owned(),
            settings: vec!["statement_timeout=2000".to_owned(), "pg_stat_statements.track=none".to_owned()],
        }
    }
    /// Another member.
    pub fn remote(setup: &Setup, to: &Address, who: &Credentials) -> Target {
        Target {
            address: to.clone(),
            who: who.clone(),
            database: to.database.clone().unwrap_or_else(|| setup.database.clone()),
            application_name: setup.name.as_str().to_owned(),
            settings: vec!["statement_timeout=5000".to_owned()],
        }
    }
}

/// Hosts and ports of this server that programs may connect to: for the password file.
pub fn local_places(setup: &Setup) -> Vec<(String, u16)> {
    let mut out = vec![(tcp_host(setup), setup.port), (setup.connect_host.clone(), setup.connect_port)];
    if let Some(dir) = socket_dir(setup) {
        out.push((dir, setup.port));
    }
    out.dedup();
    out
}

/// Where this server is reached from here.
pub fn local_address(setup: &Setup) -> Address {
    let host = match socket_dir(setup) {
        Some(dir) if setup.use_unix_socket => dir,
        Some(_) | None => tcp_host(setup),
    };
    Address { host, port: setup.port, database: Some(setup.database.clone()), others: Vec::new() }
}

fn tcp_host(setup: &Setup) -> String {
    let mut addresses = setup.listen_addresses.split(',').map(str::trim);
    let everywhere = ["*", "localhost", "0.0.0.0", "127.0.0.1"];
    if addresses.clone().any(|a| everywhere.contains(&a)) {
        return "localhost".to_owned();
    }
    addresses.next().filter(|a| !a.is_empty()).unwrap_or("localhost").to_owned()
}

/// The first absolute socket directory; when none is configured, the one of the usual builds that exists.
fn socket_dir(setup: &Setup) -> Option<String> {
    match setup.parameters.get("unix_socket_directories") {
        Some(dirs) => {
            dirs.split(',').map(|d| d.trim().trim_matches('"')).find(|d| d.starts_with('/')).map(str::to_owned)
        }
        None => ["/var/run/postgresql", "/tmp"].iter().find(|d| Path::new(d).is_dir()).map(|d| (*d).to_owned()),
    }
}

/// An open connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    /// For queries.
    pub client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Opens a connection within `deadline`.
///
/// # Errors
/// See [`SqlError`].
pub async fn open(target: &Target, deadline: Duration) -> Result<Connection, SqlError> {
    match tokio::time::timeout(deadline, open_unbounded(target)).await {
        Ok(result) => result,
        Err(_) => Err(SqlError::NoAnswer(format!("connecting took longer than {} ms", deadline.as_millis()))),
    }
}

async fn open_unbounded(target: &Target) -> Result<Connection, SqlError> {
    let mut config = tokio_postgres::Config::new();
    for (host, port) in target.address.places() {
        config.host(&host).port(port);
    }
    if !target.address.others.is_empty() {
        // Of several members one is asked for what all of them follow.
        config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    }
    config
        .user(target.who.user().map_or_else(os_user, str::to_owned))
        .dbname(&target.database)
        .application_name(&target.application_name)
        .connect_timeout(Duration::from_secs(3))
        .options(options(&target.settings));
    if let Some(password) = target.who.secret() {
        config.password(password);
    }
    let mode = target.who.sslmode().unwrap_or("prefer");
    if target.address.host.starts_with('/') || mode == "disable" {
        let (client, driver) = config.connect(NoTls).await.map_err(|e| SqlError::of(&e))?;
        return Ok(Connection { client, driver: tokio::spawn(async move { drop(driver.await) }) });
    }
    config.ssl_mode(if matches!(mode, "prefer" | "allow") { SslMode::Prefer } else { SslMode::Require });
    let tls = MakeRustlsConnect::new(tls_config(&target.who)?);
    let (client, driver) = config.connect(tls).await.map_err(|e| SqlError::of(&e))?;
    Ok(Connection { client, driver: tokio::spawn(async move { drop(driver.await) }) })
}

/// `-c name=value …` for the startup packet; a blank or backslash in a value is escaped.
fn options(settings: &[String]) -> String {
    let mut out = "-c search_path=pg_catalog".to_owned();
    for setting in settings {
        out.push_str(" -c ");
        out.push_str(&setting.replace('\\', "\\\\").replace(' ', "\\ "));
    }
    out
}

/// The name of the operating system user, which libpq takes when no user is configured.
fn os_user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = passwd.lines().find(|l| l.split(':').nth(2) == Some(uid.as_str()));
    entry.and_then(|l| l.split(':').next()).unwrap_or("postgres").to_owned()
}

fn tls_config(who: &Credentials) -> Result<rustls::ClientConfig, SqlError> {
    let bad =
        |what: &str, file: &str, e: String| SqlError::Config(format!("postgresql.authentication {what} {file}: {e}"));
    // libpq: verify-ca the issuer, verify-full the name as well, anything else nothing.
    let (mut how, mut roots) = (Verify::Nothing, Vec::new());
    let mode = who.sslmode().unwrap_or("prefer");
    if matches!(mode, "verify-ca" | "verify-full") {
        let file = who
            .options
            .get("sslrootcert")
            .ok_or_else(|| SqlError::Config(format!("postgresql.authentication: sslmode {mode} needs sslrootcert")))?;
        roots = certificates(file).map_err(|e| bad("sslrootcert", file, e))?;
        how = if mode == "verify-full" { Verify::IssuerAndEveryName } else { Verify::Issuer };
    }
    let builder = client(how, roots).map_err(SqlError::Config)?;
    match (who.options.get("sslcert"), who.options.get("sslkey")) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert).map_err(|e| bad("sslcert", cert, e))?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("sslkey", key, e.to_string()))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|e| bad("sslcert", cert, e.to_string()))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_address_follows_the_manual() {
        let mut s = Setup::new("a", "s", "/d", 5432);
        for (listen, host) in [("10.0.0.1,127.0.0.1", "localhost"), ("*", "localhost"), ("10.0.0.1,::1", "10.0.0.1")] {
            s.listen_addresses = listen.into();
            assert_eq!(local_address(&s).host, host);
        }
        s.use_unix_socket = true;
        s.parameters.insert("unix_socket_directories".into(), "@abstract, /run/pg".into());
        assert_eq!(local_address(&s).host, "/run/pg");
        s.parameters.insert("unix_socket_directories".into(), "".into());
        assert_eq!(local_address(&s).host, "10.0.0.1");
    }

    #[test]
    fn verification_without_a_root_is_refused_in_words() {
        let mut who = Credentials::default();
        who.options.insert("sslmode".into(), "verify-full".into());
        let err = tls_config(&who).unwrap_err().to_string();
        assert!(err.contains("sslrootcert"), "{err}");
        who.options.insert("sslmode".into(), "require".into());
        tls_config(&who).unwrap();
    }
}
