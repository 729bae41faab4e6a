//! Connection strings and the password file.
//!
//! libpq's programs get `key=value` strings without a password and find it in the file named by `passfile`/`PGPASSFILE`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::datadir;
use super::setup::{Credentials, Setup};

/// Where a server can be reached: the parts of its `conn_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or address (without brackets), or a socket directory.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Database; `None`: the caller's.
    pub database: Option<String>,
    /// Where else it may be: the members of another cluster, of which one writes.
    pub others: Vec<(String, u16)>,
}

impl Address {
    /// Reads `postgres://[user[:password]@]host[:port][,host[:port]…][/database][?…]`.
    pub fn parse(conn_url: &str) -> Option<Address> {
        let rest = conn_url.strip_prefix("postgres://").or_else(|| conn_url.strip_prefix("postgresql://"))?;
        let rest = rest.split(['?', '#']).next()?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let mut places = place.split(',').map(host_and_port).collect::<Option<Vec<_>>>()?.into_iter();
        let (host, port) = places.next()?;
        let database = (!path.is_empty()).then(|| path.to_owned());
        Some(Address { host, port, database, others: places.collect() })
    }

    /// Every place.
    pub fn places(&self) -> Vec<(String, u16)> {
        let first = (self.host.clone(), self.port);
        std::iter::once(first).chain(self.others.iter().cloned()).collect()
    }

    /// libpq's `host` and `port`, one each or lists of the same length.
    fn words(&self) -> (String, String) {
        let places = self.places();
        let hosts: Vec<&str> = places.iter().map(|(host, _)| host.as_str()).collect();
        let ports: Vec<String> = places.iter().map(|(_, port)| port.to_string()).collect();
        (hosts.join(","), ports.join(","))
    }
}

fn host_and_port(place: &str) -> Option<(String, u16)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(v6) => {
            let (host, tail) = v6.split_once(']')?;
            (host, tail.strip_prefix(':').unwrap_or("5432"))
        }
        None => place.split_once(':').unwrap_or((place, "5432")),
    };
    if host.is_empty() {
        return None;
    }
    Some((host.to_owned(), port.parse().ok()?))
}

/// Keywords of `authentication` that libpq of a major version knows, in order.
const OPTIONS: [(&str, u32); 10] = [
    ("sslmode", 0),
    ("sslcert", 0),
    ("sslkey", 0),
    ("sslpassword", 13),
    ("sslrootcert", 0),
    ("sslcrl", 0),
    ("sslcrldir", 14),
    ("gssencmode", 12),
    ("channel_binding", 13),
    ("sslnegotiation", 17),
];

/// One `key=value` string: keys in the order given, values escaped, empty ones left out.
pub fn render(pairs: &[(&str, String)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs.iter().filter(|(_, v)| !v.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(key);
        out.push('=');
        for c in value.chars() {
            if matches!(c, '\'' | '\\' | ' ') {
                out.push('\\');
            }
            out.push(c);
        }
    }
    out
}

/// The connection string for a program (pg_basebackup, pg_rewind, scripts), without password.
pub fn dsn(to: &Address, who: &Credentials, database: &str, extra: &[(&str, String)], major: u32) -> String {
    let (host, port) = to.words();
    let mut pairs = vec![
        ("dbname", database.to_owned()),
        ("user", who.user().unwrap_or("").to_owned()),
        ("host", host),
        ("port", port),
    ];
    pairs.extend(options(who, major));
    pairs.extend(extra.iter().cloned());
    render(&pairs)
}

/// `primary_conninfo` of a standby that streams from `to`. `writes`: of several places, whichever takes writes.
pub fn primary_conninfo(setup: &Setup, to: &Address, writes: bool, major: u32) -> String {
    let who = &setup.replication;
    let database = to.database.clone().unwrap_or_else(|| setup.database.clone());
    let (host, port) = to.words();
    let mut pairs = vec![
        ("dbname", database),
        ("user", who.user().unwrap_or("").to_owned()),
        ("passfile", setup.pgpass.to_string_lossy().into_owned()),
        ("host", host),
        ("port", port),
    ];
    let mut rest: BTreeMap<&str, String> = options(who, major).into_iter().collect();
    for key in ["sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslcrldir"] {
        let default = if key == "sslmode" { "prefer" } else { "" };
        pairs.push((key, rest.remove(key).unwrap_or_else(|| default.to_owned())));
    }
    pairs.push(("application_name", setup.name.as_str().to_owned()));
    pairs.push(("krbsrvname", setup.krbsrvname.clone().unwrap_or_default()));
    let known = |key: &str| OPTIONS.iter().any(|(k, from)| *k == key && major >= *from);
    for (key, default) in [("gssencmode", "prefer"), ("channel_binding", "prefer"), ("sslnegotiation", "postgres")] {
        if known(key) {
            pairs.push((key, rest.remove(key).unwrap_or_else(|| default.to_owned())));
        }
    }
    if writes && !to.others.is_empty() {
        pairs.push(("target_session_attrs", "read-write".to_owned()));
    }
    render(&pairs)
}

fn options(who: &Credentials, major: u32) -> Vec<(&'static str, String)> {
    OPTIONS
        .iter()
        .filter(|(_, from)| major >= *from)
        .filter_map(|(key, _)| who.options.get(*key).map(|v| (*key, v.clone())))
        .collect()
}

/// The lines of the password file for these places: every configured account, so that streaming, pg_rewind and scripts
/// share one file. A socket directory gets a `localhost` line as well, which is what libpq looks up for the default one.
pub fn pgpass_lines(setup: &Setup, places: &[(String, u16)]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let accounts = [Some(&setup.replication), Some(&setup.superuser), setup.rewind.as_ref()];
    for (host, port) in places {
        let mut hosts = vec![host.as_str()];
        if host.starts_with('/') {
            hosts.push("localhost");
        }
        for host in hosts {
            for account in accounts.into_iter().flatten() {
                let Some(password) = account.secret() else { continue };
                let user = account.user().map_or("*".to_owned(), escape);
                let line = format!("{}:{port}:*:{user}:{}", escape(host), escape(password));
                if !out.contains(&line) {
                    out.push(line);
                }
            }
        }
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:")
}

/// Writes the password file (mode 0600) if it would change. Creates its directory when missing.
///
/// # Errors
/// It is not a regular file or cannot be written.
pub fn write_pgpass(path: &Path, lines: &[String]) -> io::Result<()> {
    let mut text = lines.join("\n");
    text.push('\n');
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if path.is_dir() {
        return Err(io::Error::other(format!("postgresql.pgpass {} is a directory; name a file", path.display())));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    datadir::write_atomically(path, text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conn_urls_of_every_kind_are_read() {
        let a = |h: &str, port, db: Option<&str>| {
            Some(Address { host: h.into(), port, database: db.map(Into::into), others: Vec::new() })
        };
        let several = Address::parse("postgres://a,[::1]:2,c:3/db").unwrap();
        assert_eq!(several.places(), [("a".to_owned(), 5432), ("::1".to_owned(), 2), ("c".to_owned(), 3)]);
        assert_eq!(several.words(), ("a,::1,c".to_owned(), "5432,2,3".to_owned()));
        assert_eq!(Address::parse("postgres://a,,c"), None);
        assert_eq!(Address::parse("postgres://10.0.0.1:5433/db"), a("10.0.0.1", 5433, Some("db")));
        assert_eq!(Address::parse("postgres://u:p@[::1]:5432/postgres?x=y"), a("::1", 5432, Some("postgres")));
        assert_eq!(Address::parse("postgresql://host"), a("host", 5432, None));
        assert_eq!(Address::parse("mysql://host"), None);
        assert_eq!(Address::parse("postgres://host:port"), None);
    }

    #[test]
    fn values_are_escaped_and_keys_in_the_published_order() {
        let mut s = Setup::new("pg-0", "demo", "/d", 5432);
        s.replication.username = Some("it's me".into());
        s.pgpass = "/tmp/pgpass".into();
        let to = Address::parse("postgres://h:1/app").unwrap();
        assert_eq!(
            primary_conninfo(&s, &to, true, 15),
            "dbname=app user=it\\'s\\ me passfile=/tmp/pgpass host=h port=1 sslmode=prefer application_name=pg-0 \
             gssencmode=prefer channel_binding=prefer"
        );
        assert!(primary_conninfo(&s, &to, true, 17).ends_with("sslnegotiation=postgres"));
        let several = Address::parse("postgres://h:1,i:2").unwrap();
        assert!(primary_conninfo(&s, &several, true, 15).ends_with("target_session_attrs=read-write"));
        assert!(!primary_conninfo(&s, &several, false, 15).contains("target_session_attrs"));
    }

    #[test]
    fn the_password_file_serves_every_account_and_escapes() {
        let mut s = Setup::new("pg-0", "demo", "/d", 5432);
        s.replication =
            Credentials { username: Some("rep".into()), password: Some("a:b\\c".into()), ..Default::default() };
        s.superuser = Credentials { username: Some("su".into()), password: None, ..Default::default() };
        assert_eq!(pgpass_lines(&s, &[("h".into(), 1)]), ["h:1:*:rep:a\\:b\\\\c"]);
        assert_eq!(pgpass_lines(&s, &[("/run".into(), 1)]).len(), 2);
    }
}
