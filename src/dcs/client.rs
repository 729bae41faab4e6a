//! Requests to the API server. Each has a deadline (kube sets none), none is ever sent twice, and every error says what
//! it proves: a conflict, a definite refusal, or nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::WatchEvent;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cache::Feed;
use super::objects::{Kind, List, Pod, object_labels};
use super::options::{Access, Mode, StoreOptions};
use super::{DcsError, IMPLEMENTATION};

/// What a failed request proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ApiError {
    /// 409: the version was another one, or the object exists already. Nothing was written.
    Conflict(String),
    /// 404.
    NotFound(String),
    /// 403, with the missing permission in words. Nothing was written.
    Forbidden(String),
    /// 410: the version to watch from is too old.
    Gone,
    /// Another definite answer. Nothing was written.
    Refused(String),
    /// Time-out, connection error, 5xx, 429: anything may have happened or may still happen.
    Unsure(String),
}

impl ApiError {
    /// In words.
    pub fn text(self) -> String {
        match self {
            ApiError::Conflict(t)
            | ApiError::NotFound(t)
            | ApiError::Forbidden(t)
            | ApiError::Refused(t)
            | ApiError::Unsure(t) => t,
            ApiError::Gone => "the version to watch from is too old".into(),
        }
    }
    /// For callers that only want to know whether the store can be asked.
    pub fn into_dcs(self) -> DcsError {
        match self {
            ApiError::Forbidden(t) => DcsError::Forbidden(t),
            ApiError::Unsure(t) => DcsError::Unreachable(t),
            ApiError::Conflict(t) | ApiError::NotFound(t) | ApiError::Refused(t) => DcsError::Refused(t),
            ApiError::Gone => DcsError::Refused("the version to watch from is too old".into()),
        }
    }
}

/// A stream of watch events.
pub(super) type Events<T> = Pin<Box<dyn Stream<Item = Result<WatchEvent<T>, kube::Error>> + Send>>;

/// One API server, one namespace, the objects of one cluster.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    namespace: String,
    plural: &'static str,
    selector: String,
    retriable: BTreeSet<u16>,
}

impl Api {
    /// Finds the API server and loads credentials. Sends nothing yet.
    pub async fn new(o: &StoreOptions) -> Result<Api, DcsError> {
        // Another caller may have installed it already; both times it is ring.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut config = find_config(o).await?;
        // A write sent twice by the client library would be an old write re-sent (design §4).
        config.default_retry = false;
        let agent = format!("patroni/{IMPLEMENTATION} ({})", o.member.as_ref().map_or("patronictl", |m| m.as_str()));
        if let Ok(agent) = agent.parse() {
            config.headers.push((http::header::USER_AGENT, agent));
        }
        config.connect_timeout = Some((o.retry_timeout / 2).max(Duration::from_secs(1)));
        let client = Client::try_from(config)
            .map_err(|e| DcsError::Config(format!("cannot set up the connection to the Kubernetes API: {e}")))?;
        Ok(Api {
            client,
            namespace: o.namespace.clone(),
            plural: match o.mode {
                Mode::Endpoints => "endpoints",
                Mode::ConfigMaps => "configmaps",
            },
            selector: selector(&object_labels(o)),
            retriable: o.retriable_codes.clone(),
        })
    }

    fn plural(&self, feed: Feed) -> &'static str {
        match feed {
            Feed::Kinds => self.plural,
            Feed::Pods => "pods",
        }
    }

    fn path(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// Reads one Endpoints object or ConfigMap; `None`: there is none.
    pub async fn get_kind(&self, name: &str, limit: Duration) -> Result<Option<Kind>, ApiError> {
        optional(self.request("get", self.plural, Method::GET, &format!("/{name}"), None, limit).await)
    }

    /// Reads one pod; `None`: there is none.
    pub async fn get_pod(&self, name: &str, limit: Duration) -> Result<Option<Pod>, ApiError> {
        optional(self.request("get", "pods", Method::GET, &format!("/{name}"), None, limit).await)
    }

    /// Strategic-merge PATCH of an Endpoints object or ConfigMap.
    pub async fn patch_kind(&self, name: &str, body: &Value, limit: Duration) -> Result<Kind, ApiError> {
        self.request("patch", self.plural, Method::PATCH, &format!("/{name}"), Some(body), limit).await
    }

    /// POST of an Endpoints object or ConfigMap.
    pub async fn create_kind(&self, body: &Value, limit: Duration) -> Result<Kind, ApiError> {
        self.request("create", self.plural, Method::POST, "", Some(body), limit).await
    }

    /// Strategic-merge PATCH of a pod.
    pub async fn patch_pod(&self, name: &str, body: &Value, limit: Duration) -> Result<Pod, ApiError> {
        self.request("patch", "pods", Method::PATCH, &format!("/{name}"), Some(body), limit).await
    }

    /// POST of a Service.
    pub async fn create_service(&self, body: &Value, limit: Duration) -> Result<(), ApiError> {
        self.request::<Value>("create", "services", Method::POST, "", Some(body), limit).await.map(drop)
    }

    /// All objects of the cluster, as of one version.
    pub async fn list<T: DeserializeOwned>(&self, feed: Feed, limit: Duration) -> Result<(Vec<T>, String), ApiError> {
        let query = format!("?labelSelector={}", self.selector);
        let list: List<T> = self.request("list", self.plural(feed), Method::GET, &query, None, limit).await?;
        Ok((list.items.unwrap_or_default(), list.metadata.resource_version))
    }

    /// Opens a watch from `version`; the server ends it after `lasting`.
    pub async fn watch<T>(
        &self,
        feed: Feed,
        version: &str,
        lasting: Duration,
        limit: Duration,
    ) -> Result<Events<T>, ApiError>
    where
        T: DeserializeOwned + Clone + Send + 'static,
    {
        let plural = self.plural(feed);
        let uri = format!(
            "{}?labelSelector={}&watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={}",
            self.path(plural),
            self.selector,
            lasting.as_secs().max(1)
        );
        let request = Request::get(uri)
            .body(Vec::new())
            .map_err(|e| ApiError::Refused(format!("cannot form the request to watch {plural}: {e}")))?;
        let stream = self.within("watch", plural, limit, self.client.request_events::<T>(request)).await?;
        Ok(Box::pin(stream))
    }

    async fn request<T: DeserializeOwned>(
        &self,
        verb: &str,
        plural: &str,
        method: Method,
        rest: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<T, ApiError> {
        let content = match method {
            Method::PATCH => "application/strategic-merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{rest}", self.path(plural)))
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, content)
            .body(body.map(|b| b.to_string().into_bytes()).unwrap_or_default())
            .map_err(|e| ApiError::Refused(format!("cannot form the request to {verb} {plural}: {e}")))?;
        let text = self.within(verb, plural, limit, self.client.request_text(request)).await?;
        // The write itself went through: an answer that cannot be read leaves its effect to be looked up.
        serde_json::from_str(&text)
            .map_err(|e| ApiError::Unsure(format!("{verb} {plural}: the API server's answer is not understood: {e}")))
    }

    async fn within<R>(
        &self,
        verb: &str,
        plural: &str,
        limit: Duration,
        call: impl Future<Output = Result<R, kube::Error>>,
    ) -> Result<R, ApiError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(self.classify(verb, plural, e)),
            Err(_) => Err(ApiError::Unsure(format!(
                "{verb} {plural}: no answer from the Kubernetes API within {:.1} s",
                limit.as_secs_f64()
            ))),
        }
    }

    fn classify(&self, verb: &str, plural: &str, e: kube::Error) -> ApiError {
        let kube::Error::Api(status) = e else {
            return ApiError::Unsure(format!("{verb} {plural}: {}", chain(&e)));
        };
        let text = format!("{verb} {plural}: {} ({})", status.message, status.code);
        match status.code {
            code if self.retriable.contains(&code) => ApiError::Unsure(text),
            403 => ApiError::Forbidden(format!(
                "Forbidden: the service account needs verb {verb} on {plural} in namespace {} ({})",
                self.namespace, status.message
            )),
            404 => ApiError::NotFound(text),
            409 => ApiError::Conflict(text),
            410 => ApiError::Gone,
            // 401: the token is being rotated; 429 and 5xx: the server is in trouble; 0: not even a status.
            0 | 401 | 408 | 429 | 500.. => ApiError::Unsure(text),
            _ => ApiError::Refused(text),
        }
    }
}

/// An error with its causes, on one line: kube's own texts leave the causes out.
fn chain(e: &dyn std::error::Error) -> String {
    let mut line = e.to_string();
    let mut cause = e.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = inner.source();
    }
    line
}

fn optional<T>(answer: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(ApiError::NotFound(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// `a=b,c=d`, percent-encoded.
fn selector(labels: &BTreeMap<String, String>) -> String {
    let plain = labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let mut out = String::new();
    for b in plain.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

async fn find_config(o: &StoreOptions) -> Result<Config, DcsError> {
    if o.bypass_api_service {
        return Err(DcsError::Config(
            "kubernetes.bypass_api_service: talking to single API servers past the Service `kubernetes` is not supported; \
             remove the key (kube-proxy already spreads the connections)"
                .into(),
        ));
    }
    match &o.access {
        Access::Server { url, token } => {
            let uri = url
                .parse()
                .map_err(|e| DcsError::Config(format!("{url:?} is not the address of an API server: {e}")))?;
            let mut config = Config::new(uri);
            config.auth_info.token = token.clone().map(Into::into);
            Ok(config)
        }
        Access::Kubeconfig { file, context } => {
            let file = Kubeconfig::read_from(file).map_err(|e| DcsError::Config(one_line(&e)))?;
            with_context(file, context.clone()).await
        }
        Access::Infer { .. } if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => in_cluster(o),
        Access::Infer { context } => {
            let file = Kubeconfig::read().map_err(|e| {
                DcsError::Config(format!(
                    "not in a pod (KUBERNETES_SERVICE_HOST is not set) and no kubeconfig: {}; set $KUBECONFIG",
                    one_line(&e)
                ))
            })?;
            with_context(file, Some(context.clone()).filter(|c| !c.is_empty())).await
        }
    }
}

fn in_cluster(o: &StoreOptions) -> Result<Config, DcsError> {
    let mut config = Config::incluster_env()
        .map_err(|e| DcsError::Config(format!("in a pod, but its service account cannot be used: {}", chain(&e))))?;
    if let Some(file) = &o.cacert {
        let bad = |why: String| DcsError::Config(format!("kubernetes.cacert: {}: {why}", file.display()));
        fs_err::metadata(file).map_err(|e| bad(e.to_string()))?;
        config.root_cert_file = Some(file.clone());
        config.root_cert = None;
    }
    Ok(config)
}

async fn with_context(file: Kubeconfig, context: Option<String>) -> Result<Config, DcsError> {
    let names: Vec<String> = file.contexts.iter().map(|c| c.name.clone()).collect();
    if let Some(wanted) = context.as_ref().filter(|c| !names.contains(c)) {
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(DcsError::Config(format!(
            "kubernetes.context: the kubeconfig has no context {wanted:?}; contexts there: {there}"
        )));
    }
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(file, &options).await.map_err(|e| DcsError::Config(one_line(&e)))
}

fn one_line(e: &KubeconfigError) -> String {
    chain(e).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_is_percent_encoded() {
        let labels = BTreeMap::from([
            ("app.kubernetes.io/name".to_owned(), "pg".to_owned()),
            ("cluster-name".to_owned(), "demo".to_owned()),
        ]);
        assert_eq!(selector(&labels), "app.kubernetes.io%2Fname%3Dpg%2Ccluster-name%3Ddemo");
    }

    #[tokio::test]
    async fn a_missing_context_is_named_with_the_contexts_there_are() {
        let file = Kubeconfig::from_yaml(
            "{apiVersion: v1, kind: Config, contexts: [{name: prod, context: {cluster: c, user: u}}], clusters: [], users: []}",
        )
        .unwrap();
        let err = with_context(file, Some("kind-kind".into())).await.unwrap_err();
        assert!(err.to_string().contains("kind-kind") && err.to_string().contains("prod"), "{err}");
    }
}
