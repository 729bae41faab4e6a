//! One HTTP request with a deadline: the harness reads REST and the embedded API with it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::{Res, fail};

/// A client that keeps its connections.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    token: Option<String>,
}

impl Http {
    /// With a bearer token, if the server wants one.
    pub fn new(token: Option<String>) -> Self {
        Http::trusting(token, RootCertStore::empty())
    }

    /// As [`Http::new`], and `https` to servers of the CAs in this file.
    ///
    /// # Errors
    /// It cannot be read, or holds no certificate.
    pub fn with_ca(token: Option<String>, ca: &Path) -> Res<Self> {
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(ca).map_err(|e| format!("read {}: {e}", ca.display()));
        for certificate in certificates.map_err(super::Failure)? {
            roots.add(certificate.map_err(|e| super::Failure(format!("{}: {e}", ca.display())))?)?;
        }
        Ok(Http::trusting(token, roots))
    }

    fn trusting(token: Option<String>, roots: RootCertStore) -> Self {
        // The first provider stays; all are the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Http { client: Client::builder(TokioExecutor::new()).build(connector), token }
    }

    /// Sends `body` (if any) and reads the whole answer; a body that is not JSON comes back as a string.
    ///
    /// # Errors
    /// No connection, a broken answer, or nothing within `deadline`.
    pub async fn call(
        &self,
        method: &str,
        url: &str,
        body: Option<(&str, Value)>,
        deadline: Duration,
    ) -> Res<(u16, Value)> {
        let mut request = http::Request::builder().method(method).uri(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let bytes = match body {
            None => Bytes::new(),
            Some((kind, value)) => {
                request = request.header("content-type", kind);
                Bytes::from(value.to_string())
            }
        };
        let request = request.body(Full::new(bytes))?;
        let answer = async {
            let response = self.client.request(request).await?;
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await?.to_bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(result) => result,
            Err(_) => fail(format!("{method} {url}: no answer within {} ms", deadline.as_millis())),
        }
    }

    /// A GET; see [`Http::call`].
    ///
    /// # Errors
    /// As [`Http::call`].
    pub async fn get(&self, url: &str, deadline: Duration) -> Res<(u16, Value)> {
        self.call("GET", url, None, deadline).await
    }
}
