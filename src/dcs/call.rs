//! One HTTP request to the Kubernetes API, as a value: the desk makes it, the client sends it, a simulation hands it to a
//! store of its own.

use serde_json::Value;

/// One request. It carries no credentials and no deadline.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// `GET`, `POST`, `PATCH` or `DELETE`.
    pub method: &'static str,
    /// Without the query.
    pub path: String,
    /// Not encoded.
    pub query: Vec<(&'static str, String)>,
    /// Of the body; it says which kind of patch a PATCH is.
    pub content_type: &'static str,
    /// JSON.
    pub body: Option<Value>,
    /// What it does, as a role names it: for messages.
    pub verb: &'static str,
    /// To what, in the plural.
    pub plural: &'static str,
}

impl Call {
    /// Path and encoded query.
    pub fn uri(&self) -> String {
        let query: Vec<String> = self.query.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
        if query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, query.join("&")) }
    }
    /// `patch endpoints`, for messages.
    pub fn what(&self) -> String {
        format!("{} {}", self.verb, self.plural)
    }
}

/// Percent-encoded.
fn encoded(plain: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_percent_encoded() {
        let call = Call {
            method: "GET",
            path: "/api/v1/namespaces/default/pods".into(),
            query: vec![
                ("labelSelector", "app.kubernetes.io/name=pg,cluster-name=demo".into()),
                ("watch", "true".into()),
            ],
            content_type: "application/json",
            body: None,
            verb: "watch",
            plural: "pods",
        };
        assert_eq!(
            call.uri(),
            "/api/v1/namespaces/default/pods?labelSelector=app.kubernetes.io%2Fname%3Dpg%2Ccluster-name%3Ddemo&watch=true"
        );
    }
}
