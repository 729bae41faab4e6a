//! Who may change something: allowlist, client certificate, basic authentication; TLS.

use std::process::Command;
use std::sync::Arc;

use patroni::door::ApiSettings;
use patroni::driver::peers::{PeerClient, PeerTls};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{Says, World, as_primary, edit_cluster, exchange, leader};

async fn world(settings: ApiSettings) -> World {
    World::with(leader(), Says::Status(as_primary()), settings).await
}

/// A protected route that needs no loop.
const PROTECTED: (&str, &str) = ("POST", "/sigterm");

#[tokio::test]
async fn basic_authentication_is_compared_literally() {
    let settings = ApiSettings { authentication: Some(("user".into(), "pass".into())), ..ApiSettings::default() };
    let world = world(settings).await;
    let reply = world.ask(PROTECTED.0, PROTECTED.1, None).await;
    assert_eq!(reply.says(), (401, "no auth header received"));
    assert_eq!(reply.header("www-authenticate"), Some("Basic realm=\"Patroni\""));
    let cases = [
        ("Basic dXNlcjpwYXNz", 202, "shutdown scheduled"),
        ("basic dXNlcjpwYXNz", 401, "not authenticated"),
        ("Basic  dXNlcjpwYXNz", 401, "not authenticated"),
        ("Basic dXNlcjpwYXNy", 401, "not authenticated"),
        ("Bearer x", 401, "not authenticated"),
        ("Basic \u{fc}", 401, "not authenticated"),
    ];
    for (given, status, text) in cases {
        let reply = world.ask_with(PROTECTED.0, PROTECTED.1, &[("Authorization", given)], None).await;
        assert_eq!(reply.says(), (status, text), "{given}");
        assert_eq!(reply.header("www-authenticate").is_some(), status == 401);
    }
}

/// Reading is never protected; what is not there is 501 before any check; the body is not looked at before.
#[tokio::test]
async fn only_what_changes_something_is_protected() {
    let settings = ApiSettings {
        authentication: Some(("user".into(), "pass".into())),
        allowlist: vec!["10.9.8.7".into()],
        ..ApiSettings::default()
    };
    let world = world(settings).await;
    for path in ["/primary", "/patroni", "/liveness", "/readiness", "/config", "/cluster", "/history", "/metrics"] {
        assert_eq!(world.get(path).await.status, 200, "{path}");
    }
    assert_eq!(world.ask("POST", "/unknown", None).await.status, 501);
    let protected = [
        ("PATCH", "/config"),
        ("PUT", "/config"),
        ("POST", "/reload"),
        ("POST", "/sigterm"),
        ("POST", "/reinitialize"),
        ("POST", "/restart"),
        ("DELETE", "/restart"),
        ("POST", "/switchover"),
        ("DELETE", "/switchover"),
        ("POST", "/failover"),
        ("POST", "/failsafe"),
        ("POST", "/citus"),
        ("POST", "/mpp"),
    ];
    for (method, path) in protected {
        let reply = world.ask(method, path, Some("{")).await;
        assert_eq!(reply.says(), (403, "Access is denied"), "{method} {path}: the allowlist comes first");
    }
    world.settings.send_modify(|s| Arc::make_mut(s).allowlist.clear());
    for (method, path) in protected {
        assert_eq!(
            world.ask(method, path, Some("{")).await.says(),
            (401, "no auth header received"),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn the_allowlist_takes_networks_addresses_and_names() {
    let world = world(ApiSettings::default()).await;
    let cases: [(&[&str], u16); 8] = [
        (&[], 202),
        (&["127.0.0.0/8"], 202),
        (&["127.1.2.3/8"], 202),
        (&["127.0.0.1"], 202),
        (&["::ffff:127.0.0.1"], 202),
        (&["localhost"], 202),
        (&["10.0.0.0/8", "127.0.0.2"], 403),
        (&["no-such-host.invalid", "300.0.0.0/8"], 403),
    ];
    for (list, status) in cases {
        world.settings.send_modify(|s| Arc::make_mut(s).allowlist = list.iter().map(|e| (*e).to_owned()).collect());
        assert_eq!(world.ask(PROTECTED.0, PROTECTED.1, None).await.status, status, "{list:?}");
    }
}

#[tokio::test]
async fn members_are_listed_if_the_list_includes_them() {
    let world = world(ApiSettings { allowlist_include_members: true, ..ApiSettings::default() }).await;
    assert_eq!(world.ask(PROTECTED.0, PROTECTED.1, None).await.status, 202, "the members are at 127.0.0.1");
    let elsewhere = |url: &str| {
        let url = url.to_owned();
        world.change(|s| edit_cluster(s, |c| c.members.values_mut().for_each(|m| m.api_url = Some(url.clone()))));
    };
    elsewhere("http://[fd00::1]:8008/patroni");
    assert_eq!(world.ask(PROTECTED.0, PROTECTED.1, None).await.says(), (403, "Access is denied"));
    let failsafe = world.ask("POST", "/failsafe", Some(r#"{"name":"x"}"#)).await;
    assert_eq!(failsafe.status, 502, "the member list is not asked about a failsafe ping");
    elsewhere("https://localhost:8008/patroni");
    assert_eq!(world.ask(PROTECTED.0, PROTECTED.1, None).await.status, 202);
}

/// Certificates made by openssl: a CA with a server and a client, a self-signed one that is everything at once, and a
/// stranger.
struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Pki {
        let pki = Pki { dir: tempfile::Builder::new().prefix("api-tls-").tempdir_in("/tmp").unwrap() };
        let subject = |name: &str| format!("/CN={name}");
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        for name in ["ca", "alone", "stranger"] {
            pki.openssl(
                &format!("req -x509 {key} -keyout {name}.key -out {name}.crt -addext subjectAltName=IP:127.0.0.1"),
                &subject(name),
            );
        }
        for (name, address) in [("server", "IP:127.0.0.1"), ("client", "IP:127.0.0.1"), ("pod", "DNS:demo")] {
            pki.openssl(
                &format!("req {key} -keyout {name}.key -out {name}.csr -addext subjectAltName={address}"),
                &subject(name),
            );
            let sign = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy";
            pki.openssl(&format!("x509 -req -in {name}.csr {sign} -out {name}.crt"), "");
        }
        pki
    }
    fn openssl(&self, words: &str, subject: &str) {
        let mut command = Command::new("openssl");
        command.args(words.split_whitespace()).current_dir(self.dir.path());
        if !subject.is_empty() {
            command.args(["-subj", subject]);
        }
        let output = command.output().expect("openssl");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
    fn settings(&self, server: &str, ca: &str, verify: &str) -> ApiSettings {
        ApiSettings {
            certfile: Some(self.file(&format!("{server}.crt"))),
            keyfile: Some(self.file(&format!("{server}.key"))),
            cafile: Some(self.file(&format!("{ca}.crt"))),
            verify_client: Some(verify.to_owned()),
            https_extra_headers: [("X-Over".to_owned(), "tls".to_owned())].into(),
            ..ApiSettings::default()
        }
    }
    /// Connects as `client`, checking the server against `ca`. A handshake the server refuses is an error on first use.
    async fn connect(&self, world: &World, client: Option<&str>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for name in ["ca.crt", "alone.crt"] {
            roots.add(CertificateDer::from_pem_file(self.file(name)).unwrap()).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let cert = CertificateDer::from_pem_file(self.file(&format!("{name}.crt"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let tcp = TcpStream::connect(world.addr).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        // In TLS 1.3 the client learns that its certificate is refused when it reads.
        let mut probe = [0u8; 1];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut probe);
        match tokio::time::timeout(std::time::Duration::from_millis(300), read).await {
            Ok(Ok(_)) => Err(std::io::Error::other("closed")),
            Ok(Err(e)) => Err(e),
            Err(_) => Ok(stream),
        }
    }
}

/// (verify_client, client, handshake, status of a protected route, status of /primary)
#[tokio::test]
async fn client_certificates_are_asked_for_as_configured() {
    let pki = Pki::new();
    let cases = [
        ("none", None, true, 202),
        ("none", Some("stranger"), true, 202),
        ("optional", None, true, 403),
        ("optional", Some("client"), true, 202),
        ("optional", Some("stranger"), false, 0),
        ("required", None, false, 0),
        ("required", Some("stranger"), false, 0),
        ("required", Some("client"), true, 202),
    ];
    for (verify, client, works, status) in cases {
        let world = world(pki.settings("server", "ca", verify)).await;
        let stream = pki.connect(&world, client).await;
        assert_eq!(stream.is_ok(), works, "{verify} {client:?}: {:?}", stream.err());
        let Ok(mut stream) = stream else { continue };
        let reply = exchange(&mut stream, PROTECTED.0, PROTECTED.1, &[], None).await;
        assert_eq!(reply.status, status, "{verify} {client:?}");
        if status == 403 {
            assert_eq!(reply.body, "client certificate required");
        }
        let reply = exchange(&mut stream, "GET", "/primary", &[], None).await;
        assert_eq!((reply.status, reply.header("x-over")), (200, Some("tls")), "{verify} {client:?}");
    }
}

/// Members find each other by the addresses of their pods, which no certificate names.
#[tokio::test]
async fn members_verify_each_others_issuer_but_not_the_name() {
    let pki = Pki::new();
    for (server, client, trusted) in [("pod", "ca", true), ("alone", "alone", true), ("stranger", "ca", false)] {
        let world = world(pki.settings(server, "ca", "none")).await;
        let url = format!("https://127.0.0.1:{}/patroni", world.addr.port());
        let tls = PeerTls {
            certfile: Some(pki.file("client.crt")),
            keyfile: Some(pki.file("client.key")),
            cacert: Some(pki.file(&format!("{client}.crt"))),
            authentication: None,
        };
        assert_eq!(PeerClient::new(&tls).unwrap().anybody_home(&url).await, trusted, "{server}");
        let believing = PeerClient::new(&PeerTls::default()).unwrap();
        assert!(believing.anybody_home(&url).await, "without ctl.certfile nothing is verified");
    }
    let lonely = PeerTls { certfile: Some(pki.file("client.crt")), ..PeerTls::default() };
    assert!(PeerClient::new(&lonely).err().unwrap().contains("ctl.cacert"));
}

/// `openssl req -x509` makes one certificate that people use as CA and client at once.
#[tokio::test]
async fn a_certificate_that_is_its_own_ca_is_a_good_client() {
    let pki = Pki::new();
    let world = world(pki.settings("server", "alone", "required")).await;
    let mut stream = pki.connect(&world, Some("alone")).await.unwrap();
    assert_eq!(exchange(&mut stream, PROTECTED.0, PROTECTED.1, &[], None).await.status, 202);
    assert!(pki.connect(&world, Some("client")).await.is_err());
}

#[tokio::test]
async fn a_reload_takes_a_renewed_certificate_and_keeps_the_old_one_when_it_is_bad() {
    let pki = Pki::new();
    let world = world(pki.settings("server", "ca", "none")).await;
    let serial = async || {
        let stream = pki.connect(&world, None).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].as_ref().to_vec()
    };
    let first = serial().await;
    pki.openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3 -copy_extensions copy -out server.crt", "");
    world.settings.send_modify(|_| {});
    let second = serial().await;
    assert_ne!(first, second, "the same settings, another file");
    std::fs::write(pki.file("server.crt"), "not a certificate").unwrap();
    world.settings.send_modify(|_| {});
    assert_eq!(serial().await, second);
}
