//! `restapi.certfile` and its companions (rest-api §6 "TLS").

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::agent::handle::ApiSettings;

/// The acceptor for these settings; `None` without `certfile`.
///
/// # Errors
/// One line: key, file, what is wrong.
pub(super) fn acceptor(settings: &ApiSettings) -> Result<Option<TlsAcceptor>, String> {
    let Some(certfile) = &settings.certfile else { return Ok(None) };
    if settings.keyfile_password.is_some() {
        return Err("restapi.keyfile_password: encrypted keys are not supported; give a key without a password".into());
    }
    if settings.ciphers.is_some() {
        return Err("restapi.ciphers: OpenSSL cipher lists are not supported; remove the key (TLS 1.2 and 1.3 with modern \
                    ciphers are always used)"
            .into());
    }
    let certs: Vec<_> = CertificateDer::pem_file_iter(certfile)
        .and_then(Iterator::collect)
        .map_err(|e| format!("restapi.certfile: {certfile}: {e}"))?;
    let keyfile = settings.keyfile.as_ref().unwrap_or(certfile);
    let key = PrivateKeyDer::from_pem_file(keyfile).map_err(|e| format!("restapi.keyfile: {keyfile}: {e}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("restapi: TLS: {e}"))?;
    let mode = settings.verify_client.as_deref().unwrap_or("none").to_ascii_lowercase();
    let builder = match (mode.as_str(), &settings.cafile) {
        ("required" | "optional", Some(cafile)) => {
            let mut roots = RootCertStore::empty();
            let anchors: Vec<_> = CertificateDer::pem_file_iter(cafile)
                .and_then(Iterator::collect)
                .map_err(|e| format!("restapi.cafile: {cafile}: {e}"))?;
            roots.add_parsable_certificates(anchors);
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if mode == "optional" { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|e| format!("restapi.cafile: {cafile}: {e}"))?;
            builder.with_client_cert_verifier(verifier)
        }
        ("required" | "optional", None) => return Err("restapi.verify_client: needs restapi.cafile".into()),
        ("none" | "", _) => builder.with_no_client_auth(),
        (other, _) => return Err(format!("restapi.verify_client: '{other}' is none of none, optional, required")),
    };
    let config = builder.with_single_cert(certs, key).map_err(|e| format!("restapi.certfile: {certfile}: {e}"))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
