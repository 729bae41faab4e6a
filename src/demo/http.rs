//! One HTTP request with a deadline: the harness reads REST and the embedded API with it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::{Res, fail};

/// A client that keeps its connections.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    token: Option<String>,
}

impl Http {
    /// With a bearer token, if the server wants one.
    pub fn new(token: Option<String>) -> Self {
        Http { client: Client::builder(TokioExecutor::new()).build_http(), token }
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
