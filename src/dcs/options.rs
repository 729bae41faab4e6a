//! What the Kubernetes store has to be told: names, labels, ways in, clocks. `driver` and `ctl` fill it from the
//! configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::model::{BootInstant, MemberName, ProofOfDeath, WallTime};

/// Which objects carry the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `use_endpoints: true`: lease and client addresses change in one write.
    Endpoints,
    /// ConfigMaps; clients are routed by the role label.
    ConfigMaps,
}

/// How the API server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// In a pod: service account; elsewhere `$KUBECONFIG` or `~/.kube/config` with this context.
    Infer {
        /// `kubernetes.context`.
        context: String,
    },
    /// A kubeconfig file; `None`: its current context.
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// Context.
        context: Option<String>,
    },
    /// This very server (demo, tests).
    Server {
        /// `http://host:port`.
        url: String,
        /// Bearer token.
        token: Option<String>,
    },
}

/// One port of the client Endpoints (`kubernetes.ports`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Number.
    pub port: u16,
    /// Name, if any.
    pub name: Option<String>,
    /// `TCP` when absent.
    pub protocol: Option<String>,
}

/// Everything [`super::kube::KubeStore`] is built from. [`StoreOptions::new`] has Patroni's defaults.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Endpoints or ConfigMaps.
    pub mode: Mode,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Cluster name.
    pub scope: String,
    /// My name = that of my pod. `None` for `patronictl`, which is no member.
    pub member: Option<MemberName>,
    /// `kubernetes.labels`.
    pub labels: BTreeMap<String, String>,
    /// `kubernetes.scope_label`.
    pub scope_label: String,
    /// `kubernetes.role_label`.
    pub role_label: String,
    /// `kubernetes.leader_label_value`.
    pub leader_label_value: String,
    /// `kubernetes.follower_label_value`.
    pub follower_label_value: String,
    /// `kubernetes.standby_leader_label_value`.
    pub standby_leader_label_value: String,
    /// `kubernetes.tmp_role_label`.
    pub tmp_role_label: Option<String>,
    /// `kubernetes.bootstrap_labels`.
    pub bootstrap_labels: BTreeMap<String, String>,
    /// The word for the role of a primary in member data: `primary`, or `master` as the manual has it.
    pub primary_role_name: String,
    /// `kubernetes.pod_ip`; else what the pod's status shows.
    pub pod_ip: Option<String>,
    /// `kubernetes.ports`.
    pub ports: Vec<Port>,
    /// The way in.
    pub access: Access,
    /// `kubernetes.cacert`, for the in-cluster way only.
    pub cacert: Option<PathBuf>,
    /// `kubernetes.bypass_api_service`; refused by name.
    pub bypass_api_service: bool,
    /// `kubernetes.retriable_http_codes`.
    pub retriable_codes: BTreeSet<u16>,
    /// Accepted proofs of death.
    pub proofs: BTreeSet<ProofOfDeath>,
    /// ttl, as in `Settings`.
    pub ttl: Duration,
    /// loop_wait, as in `Settings`.
    pub loop_wait: Duration,
    /// retry_timeout, as in `Settings`.
    pub retry_timeout: Duration,
    /// A random word per start of the process.
    pub session: String,
    /// The clock of deadlines.
    pub clock: fn() -> BootInstant,
    /// The clock for people; only printed into `renewTime` and `acquireTime`.
    pub wall: fn() -> WallTime,
}

impl StoreOptions {
    /// With Patroni's defaults and the timings 30/10/10.
    pub fn new(
        scope: impl Into<String>,
        member: Option<MemberName>,
        access: Access,
        clock: fn() -> BootInstant,
        wall: fn() -> WallTime,
    ) -> Self {
        let secs = |s: f64| Duration::from_secs_f64(s * crate::model::time_scale());
        StoreOptions {
            mode: Mode::ConfigMaps,
            namespace: "default".into(),
            scope: scope.into(),
            member,
            labels: BTreeMap::new(),
            scope_label: "cluster-name".into(),
            role_label: "role".into(),
            leader_label_value: "master".into(),
            follower_label_value: "replica".into(),
            standby_leader_label_value: "master".into(),
            tmp_role_label: None,
            bootstrap_labels: BTreeMap::new(),
            primary_role_name: "primary".into(),
            pod_ip: None,
            ports: vec![Port { port: 5432, name: None, protocol: None }],
            access,
            cacert: None,
            bypass_api_service: false,
            retriable_codes: BTreeSet::new(),
            proofs: BTreeSet::from([ProofOfDeath::Released, ProofOfDeath::Terminated]),
            ttl: secs(30.0),
            loop_wait: secs(10.0),
            retry_timeout: secs(10.0),
            session: String::new(),
            clock,
            wall,
        }
    }
}
