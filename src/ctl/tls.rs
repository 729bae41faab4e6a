//! TLS as OpenSSL would accept it in Patroni's setups.
//!
//! Three ways to verify: nothing at all (insecure), everything but the host name (insecure with a client certificate),
//! or everything. A certificate that is byte-equal to a given CA certificate is accepted as its own issuer, because
//! people use one self-signed certificate for all roles.

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::{CtlError, Result};
use super::rest::RestOptions;
use crate::tls::{self, Verify};

/// Where distributions keep the public CAs.
const SYSTEM_CAS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The configuration for calls to members.
///
/// # Errors
/// One line naming the file and the key.
pub fn client_config(options: &RestOptions) -> Result<ClientConfig> {
    let how = match (options.insecure, options.certfile.is_some()) {
        (true, false) => Verify::Nothing,
        (true, true) => Verify::Issuer,
        (false, _) => Verify::IssuerAndName,
    };
    let anchors = match &options.cacert {
        Some(file) => certificates(file, "ctl.cacert (or restapi.cafile)")?,
        None => Vec::new(),
    };
    let builder = verified_by(how, anchors)?;
    let Some(certfile) = &options.certfile else { return Ok(builder.with_no_client_auth()) };
    if options.keyfile_password.is_some() {
        return Err(CtlError::plain(
            "ctl.keyfile_password: encrypted keys are not available in this version, give ctl.keyfile an unencrypted key",
        ));
    }
    let chain = certificates(certfile, "ctl.certfile")?;
    let keyfile = options.keyfile.as_ref().unwrap_or(certfile);
    let key = PrivateKeyDer::from_pem_file(keyfile)
        .map_err(|e| CtlError::plain(format!("Can not read the private key {keyfile} (ctl.keyfile): {e}")))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| CtlError::plain(format!("Can not use {certfile} (ctl.certfile) as a client certificate: {e}")))
}

/// TLS that verifies nothing: libpq's `sslmode=prefer`.
///
/// # Errors
/// None in practice; the protocol versions are fixed.
pub fn unverified() -> Result<ClientConfig> {
    Ok(verified_by(Verify::Nothing, Vec::new())?.with_no_client_auth())
}

fn verified_by(
    how: Verify,
    mut anchors: Vec<CertificateDer<'static>>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
    if anchors.is_empty() && how != Verify::Nothing {
        anchors = SYSTEM_CAS.iter().find_map(|f| tls::certificates(f).ok()).unwrap_or_default();
    }
    tls::client(how, anchors).map_err(|e| CtlError::plain(format!("Can not use the CA certificates: {e}")))
}

fn certificates(file: &str, key: &str) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |why: String| CtlError::plain(format!("Can not read certificates from {file} ({key}): {why}"));
    let list = tls::certificates(file).map_err(bad)?;
    if list.is_empty() { Err(bad("there are none in it".into())) } else { Ok(list) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::Command;

    use http::Method;

    use super::super::rest::{Answer, Rest};
    use std::sync::Arc;

    use rustls::crypto::ring;

    use super::*;

    /// A self-signed `CA:TRUE` certificate as people make it, and a server with it that answers one request per connection.
    fn server(dir: &std::path::Path) -> (String, String) {
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=demo", "-days", "2", "-keyout"])
            .args([&key, std::path::Path::new("-out"), &cert].map(std::path::Path::as_os_str))
            .output()
            .unwrap();
        assert!(made.status.success());
        let chain = certificates(cert.to_str().unwrap(), "test").unwrap();
        let key = PrivateKeyDer::from_pem_file(&key).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/patroni", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let session = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(session, socket.unwrap());
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).is_ok() {
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"));
                    drop(stream.flush());
                }
            }
        });
        (url, cert.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn verifies_unless_told_not_to_and_takes_a_self_signed_certificate_as_its_own_ca() {
        let dir = tempfile::tempdir().unwrap();
        let (url, cert) = server(dir.path());
        let call =
            async |options: RestOptions| Rest::new(&options).unwrap().call(Method::GET, &url, "patroni", None).await;
        let hi = Ok(Answer { status: 200, text: "hi".into() });
        assert_eq!(call(RestOptions { cacert: Some(cert), ..RestOptions::default() }).await, hi);
        assert_eq!(call(RestOptions { insecure: true, ..RestOptions::default() }).await, hi);
        let refused = call(RestOptions::default()).await.unwrap_err();
        assert!(refused.contains("certificate"), "{refused}");
        let missing = Rest::new(&RestOptions { cacert: Some("/nonexistent".into()), ..RestOptions::default() });
        assert!(missing.unwrap_err().to_string().contains("ctl.cacert"));
    }
}
