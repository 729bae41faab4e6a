//! One test body for the embedded Kubernetes API and for a real one.
//!
//! The conformance cases always run against `kubemem`; with `KUBE_API_URL` and `KUBE_API_TOKEN` they also run
//! against that server; `tests/kube/with_api.sh` starts one. The other modules need switches only `kubemem` has, or
//! `kubectl`.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "kube_api/conformance.rs"]
mod conformance;
#[path = "kube_api/deletion.rs"]
mod deletion;
#[path = "kube_api/embedded.rs"]
mod embedded;
#[path = "kube_api/in_process.rs"]
mod in_process;
#[path = "kube_api/kube_client.rs"]
mod kube_client;
#[path = "kube_api/kubectl.rs"]
mod kubectl;
#[path = "kube_api/target.rs"]
mod target;
#[path = "kube_api/words.rs"]
mod words;
