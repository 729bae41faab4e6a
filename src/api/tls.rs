//! `restapi.certfile` and its companions.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::TlsAcceptor;

use crate::door::ApiSettings;

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
        return Err(
            "restapi.ciphers: OpenSSL cipher lists are not supported; remove the key (TLS 1.2 and 1.3 with modern \
                    ciphers are always used)"
                .into(),
        );
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
            roots.add_parsable_certificates(anchors.iter().cloned());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if mode == "optional" { verifier.allow_unauthenticated() } else { verifier };
            let webpki = verifier.build().map_err(|e| format!("restapi.cafile: {cafile}: {e}"))?;
            builder.with_client_cert_verifier(Arc::new(Clients { anchors, webpki }))
        }
        ("required" | "optional", None) => return Err("restapi.verify_client: needs restapi.cafile".into()),
        ("none" | "", _) => builder.with_no_client_auth(),
        (other, _) => return Err(format!("restapi.verify_client: '{other}' is none of none, optional, required")),
    };
    let config = builder.with_single_cert(certs, key).map_err(|e| format!("restapi.certfile: {certfile}: {e}"))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// As webpki, and a certificate that is itself in `cafile` is good: people use one self-signed certificate (`openssl req
/// -x509`) as CA, server and client at once, and OpenSSL takes it.
#[derive(Debug)]
struct Clients {
    anchors: Vec<CertificateDer<'static>>,
    webpki: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Clients {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.anchors.iter().any(|a| a.as_ref() == end_entity.as_ref()) {
            return Ok(ClientCertVerified::assertion());
        }
        self.webpki.verify_client_cert(end_entity, intermediates, now)
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }
    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
