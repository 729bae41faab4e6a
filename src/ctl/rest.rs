//! The HTTP client for members' REST APIs: basic authentication, TLS, bounded waits and answers.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::error::{CtlError, Result};
use super::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Restart and switchover answer when they are done; a restart may be given any timeout. An hour is longer than any of
/// them and shorter than forever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3600);
/// The largest answer (a status of a member with many replicas) is a few kilobytes.
const BODY_MAX: usize = 4 << 20;

/// How the members' APIs are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestOptions {
    /// User and password.
    pub authentication: Option<(String, String)>,
    /// No verification (with a client certificate: no check of the host name only).
    pub insecure: bool,
    /// CA file; else the system's.
    pub cacert: Option<String>,
    /// Client certificate.
    pub certfile: Option<String>,
    /// Its key; in the same file when absent.
    pub keyfile: Option<String>,
    /// Set when the key is encrypted.
    pub keyfile_password: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body as text.
    pub text: String,
}

/// The client.
#[derive(Debug)]
pub struct Rest {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    authorization: Option<HeaderValue>,
}

impl Rest {
    /// Builds the client; reads the TLS files.
    ///
    /// # Errors
    /// One line naming the file and the key of the configuration.
    pub fn new(options: &RestOptions) -> Result<Rest> {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.enforce_http(false);
        let tls = tls::client_config(options)?;
        let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let authorization = match &options.authentication {
            None => None,
            Some((user, password)) => {
                let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                Some(HeaderValue::try_from(format!("Basic {text}")).map_err(|e| CtlError::plain(e.to_string()))?)
            }
        };
        Ok(Rest { client: Client::builder(TokioExecutor::new()).build(https.wrap_connector(http)), authorization })
    }

    /// One request to the member at `api_url`, whose path is replaced by `/endpoint`.
    ///
    /// # Errors
    /// The reason in one line: no connection, no answer in time.
    pub async fn call(
        &self,
        method: Method,
        api_url: &str,
        endpoint: &str,
        body: Option<&Value>,
    ) -> std::result::Result<Answer, String> {
        self.call_within(ANSWER_TIMEOUT, method, api_url, endpoint, body).await
    }

    /// The same with a deadline for everything together.
    ///
    /// # Errors
    /// As [`Rest::call`].
    pub async fn call_within(
        &self,
        deadline: Duration,
        method: Method,
        api_url: &str,
        endpoint: &str,
        body: Option<&Value>,
    ) -> std::result::Result<Answer, String> {
        let base: Uri = api_url.parse().map_err(|e| format!("{api_url}: {e}"))?;
        let authority = base.authority().ok_or_else(|| format!("{api_url}: no host"))?;
        let uri = format!("{}://{authority}/{endpoint}", base.scheme_str().unwrap_or("http"));
        let mut request = Request::builder().method(method).uri(&uri).header(CONTENT_TYPE, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let bytes = body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string()));
        let request = request.body(Full::new(bytes)).map_err(|e| format!("{uri}: {e}"))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| format!("{uri}: {}", chain(&e)))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
            let bytes = body.map_err(|e| format!("{uri}: {e}"))?.to_bytes();
            Ok(Answer { status, text: String::from_utf8_lossy(&bytes).into_owned() })
        };
        let answer = tokio::time::timeout(deadline, exchange).await;
        answer.unwrap_or_else(|_| Err(format!("{uri}: no answer within {} s", deadline.as_secs_f64())))
    }
}

/// An error with its causes, most general first.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        out.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    out
}
