//! The connection to the API server. Each request has a deadline (kube sets none), and none is ever sent twice. What an
//! answer says is the desk's business.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use http::Request;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::{Status, WatchEvent};
use kube::{Client, Config};
use serde::de::DeserializeOwned;

use super::call::Call;
use super::options::{Access, StoreOptions};
use super::{DcsError, IMPLEMENTATION};

/// A stream of watch events.
pub(super) type Events<T> = Pin<Box<dyn Stream<Item = Result<WatchEvent<T>, kube::Error>> + Send>>;

/// One API server.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    /// Its address, for messages.
    at: String,
}

/// Why there is no answer; in words.
pub(super) struct NoAnswer(pub String);

/// Why a watch was not opened, or broke.
pub(super) enum WatchError {
    /// The server refused it.
    Status(Box<Status>),
    /// An event that is not one.
    NotUnderstood(String),
    /// Anything else; in words.
    Broken(String),
}

impl From<kube::Error> for WatchError {
    fn from(e: kube::Error) -> WatchError {
        if let kube::Error::SerdeError(e) = e {
            return WatchError::NotUnderstood(e.to_string());
        }
        let kube::Error::Api(status) = e else { return WatchError::Broken(words(&e)) };
        WatchError::Status(status)
    }
}

impl Api {
    /// Finds the API server and loads credentials. Sends nothing yet.
    pub async fn new(o: &StoreOptions) -> Result<Api, DcsError> {
        // Another caller may have installed it already; both times it is ring.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut config = find_config(o).await?;
        // A write sent twice by the client library would be an old write re-sent.
        config.default_retry = false;
        let agent = format!("patroni/{IMPLEMENTATION} ({})", o.member.as_ref().map_or("patronictl", |m| m.as_str()));
        if let Ok(agent) = agent.parse() {
            config.headers.push((http::header::USER_AGENT, agent));
        }
        config.connect_timeout = Some((o.retry_timeout / 2).max(Duration::from_secs(1)));
        let at = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config)
            .map_err(|e| DcsError::Config(format!("cannot set up the connection to the Kubernetes API: {e}")))?;
        Ok(Api { client, at })
    }

    /// Sends a call; status code and body of the answer.
    pub async fn send(&self, call: &Call, limit: Duration) -> Result<(u16, Vec<u8>), NoAnswer> {
        let request = request(call)?.map(Body::from);
        let work = async {
            let answer = self.client.send(request).await?;
            let status = answer.status().as_u16();
            Ok((status, answer.into_body().collect_bytes().await?.to_vec()))
        };
        match within(limit, work).await {
            Ok(answered) => answered.map_err(|e: kube::Error| NoAnswer(format!("{}: {}", self.at, words(&e)))),
            Err(late) => Err(late),
        }
    }

    /// Opens a watch.
    pub async fn watch<T>(&self, call: &Call, limit: Duration) -> Result<Events<T>, WatchError>
    where
        T: DeserializeOwned + Clone + Send + 'static,
    {
        let broken = |NoAnswer(why): NoAnswer| WatchError::Broken(why);
        let request = request(call).map_err(broken)?;
        let stream = within(limit, self.client.request_events::<T>(request)).await.map_err(broken)??;
        Ok(Box::pin(stream))
    }
}

fn request(call: &Call) -> Result<Request<Vec<u8>>, NoAnswer> {
    Request::builder()
        .method(call.method)
        .uri(call.uri())
        .header(http::header::ACCEPT, "application/json")
        .header(http::header::CONTENT_TYPE, call.content_type)
        .body(call.body.as_ref().map(|b| b.to_string().into_bytes()).unwrap_or_default())
        .map_err(|e| NoAnswer(format!("cannot form the request: {e}")))
}

async fn within<R>(limit: Duration, work: impl Future<Output = R>) -> Result<R, NoAnswer> {
    let late = |_| NoAnswer(format!("no answer from the Kubernetes API within {:.1} s", limit.as_secs_f64()));
    tokio::time::timeout(limit, work).await.map_err(late)
}

/// The connection's own error, without the name kube has for its layer.
fn words(e: &kube::Error) -> String {
    if let kube::Error::Service(inner) = e { chain(inner.as_ref()) } else { chain(e) }
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
            let named = file.display().to_string();
            with_context(Kubeconfig::read_from(file), &named, context.clone()).await
        }
        Access::Infer { .. } if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => in_cluster(o),
        Access::Infer { context } => {
            let named = std::env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".to_owned());
            with_context(Kubeconfig::read(), &named, Some(context.clone()).filter(|c| !c.is_empty())).await
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

/// A kubeconfig, called `named` in messages, with one of its contexts.
async fn with_context(
    file: Result<Kubeconfig, KubeconfigError>,
    named: &str,
    context: Option<String>,
) -> Result<Config, DcsError> {
    let unusable = |e: KubeconfigError| {
        let why = if let KubeconfigError::ReadConfig(cause, _) = &e {
            // Its own text names the file again, in quotes within quotes.
            cause.to_string()
        } else if matches!(e, KubeconfigError::CurrentContextNotSet) {
            "it has no current-context, and none was named".to_owned()
        } else {
            chain(&e).replace('\n', " ")
        };
        DcsError::Config(format!(
            "not in a pod (KUBERNETES_SERVICE_HOST is not set), and the kubeconfig {named} cannot be used: {why}; name one in \
             $KUBECONFIG, its context in kubernetes.context"
        ))
    };
    let file = file.map_err(unusable)?;
    let names: Vec<String> = file.contexts.iter().map(|c| c.name.clone()).collect();
    if let Some(wanted) = context.as_ref().filter(|c| !names.contains(c)) {
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(DcsError::Config(format!(
            "kubernetes.context: the kubeconfig {named} has no context {wanted:?}; contexts there: {there} (another file: $KUBECONFIG)"
        )));
    }
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_context_is_named_with_the_contexts_there_are() {
        let file = Kubeconfig::from_yaml(
            "{apiVersion: v1, kind: Config, contexts: [{name: prod, context: {cluster: c, user: u}}], clusters: [], users: []}",
        )
        .map(Ok)
        .unwrap();
        let err = with_context(file, "/some/file", Some("kind-kind".into())).await.unwrap_err().to_string();
        assert!(err.contains("kind-kind") && err.contains("prod") && err.contains("/some/file"), "{err}");
    }
}
