//! Whose server certificate is accepted: one rule for members, patronictl and Postgres.
//!
//! OpenSSL accepts in Patroni's setups what rustls alone refuses: one self-signed certificate that is CA, server and client
//! certificate at once. So a certificate that is byte-equal to a given anchor is its own issuer. The rest is rustls' own.
//!
//! What it deliberately does not do: read configuration, or choose how strictly to verify. Its callers know their contracts.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// How strictly a server is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Not at all: encrypted, no more (libpq's `prefer` and `require`, `ctl.insecure`).
    Nothing,
    /// An anchor has signed it (`verify-ca`).
    Issuer,
    /// As libpq's `verify-full`: the name fits as well, even that of an anchor.
    IssuerAndEveryName,
    /// The name fits as well; an anchor itself is trusted whatever it is called.
    IssuerAndName,
}

/// A client that verifies servers this way; the client certificate comes next.
///
/// # Errors
/// One line: the anchors cannot be used.
pub fn client(
    how: Verify,
    anchors: Vec<CertificateDer<'static>>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(anchors.iter().cloned());
    let webpki = match added {
        0 if !anchors.is_empty() => return Err("none of its certificates can be used as a CA".to_owned()),
        0 => None,
        _ => {
            let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
            Some(built.map_err(|e| e.to_string())?)
        }
    };
    let verifier = Arc::new(Verifier { how, anchors, webpki, provider: provider.clone() });
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

/// The certificates of a PEM file.
///
/// # Errors
/// It cannot be read, or is no PEM file; without its name.
pub fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(|e| e.to_string())?.collect();
    all.map_err(|e| e.to_string())
}

#[derive(Debug)]
struct Verifier {
    how: Verify,
    anchors: Vec<CertificateDer<'static>>,
    webpki: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let anchor = self.anchors.iter().any(|a| a.as_ref() == end.as_ref());
        if self.how == Verify::Nothing || (anchor && self.how != Verify::IssuerAndEveryName) {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(webpki) = &self.webpki else {
            return Err(Error::General("there is no CA certificate to verify the server with".into()));
        };
        match webpki.verify_server_cert(end, chain, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.how == Verify::Issuer => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
