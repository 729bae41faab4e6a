//! The kinds that are served, as data.

/// What the server knows about one kind.
#[derive(Debug)]
pub(crate) struct Kind {
    pub group: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub short: &'static str,
    pub namespaced: bool,
    /// Has a `status` that only `/status` may write.
    pub status: bool,
    /// PUT of a missing object creates it (the kind's `AllowCreateOnUpdate`).
    pub put_creates: bool,
    /// DELETE answers with the object instead of a `Status`.
    pub delete_returns_object: bool,
}

/// There is one value of each.
impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

const fn core(plural: &'static str, singular: &'static str, kind: &'static str, short: &'static str) -> Kind {
    Kind {
        group: "",
        plural,
        singular,
        kind,
        short,
        namespaced: true,
        status: false,
        put_creates: false,
        delete_returns_object: false,
    }
}

/// Every kind served, all of version v1.
pub(crate) static KINDS: [Kind; 14] = [
    Kind { status: true, delete_returns_object: true, ..core("pods", "pod", "Pod", "po") },
    Kind { put_creates: true, ..core("endpoints", "endpoints", "Endpoints", "ep") },
    core("configmaps", "configmap", "ConfigMap", "cm"),
    Kind {
        status: true,
        put_creates: true,
        delete_returns_object: true,
        ..core("services", "service", "Service", "svc")
    },
    Kind { put_creates: true, ..core("events", "event", "Event", "ev") },
    Kind { delete_returns_object: true, ..core("serviceaccounts", "serviceaccount", "ServiceAccount", "sa") },
    core("secrets", "secret", "Secret", ""),
    Kind {
        status: true,
        delete_returns_object: true,
        ..core("persistentvolumeclaims", "persistentvolumeclaim", "PersistentVolumeClaim", "pvc")
    },
    Kind {
        namespaced: false,
        status: true,
        delete_returns_object: true,
        ..core("namespaces", "namespace", "Namespace", "ns")
    },
    Kind { namespaced: false, status: true, ..core("nodes", "node", "Node", "no") },
    Kind { group: "coordination.k8s.io", put_creates: true, ..core("leases", "lease", "Lease", "") },
    Kind { group: "apps", status: true, ..core("statefulsets", "statefulset", "StatefulSet", "sts") },
    Kind {
        group: "policy",
        status: true,
        ..core("poddisruptionbudgets", "poddisruptionbudget", "PodDisruptionBudget", "pdb")
    },
    Kind { group: "discovery.k8s.io", ..core("endpointslices", "endpointslice", "EndpointSlice", "") },
];

/// The groups besides the core one, in the order of discovery.
pub(crate) const GROUPS: [&str; 4] = ["apps", "coordination.k8s.io", "discovery.k8s.io", "policy"];

impl Kind {
    /// `v1` or `GROUP/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group) }
    }

    /// `pods` or `leases.coordination.k8s.io`, as messages spell it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Where etcd keeps them.
    pub fn registry(&self) -> String {
        match self.plural {
            "services" => "/registry/services/specs".to_owned(),
            "endpoints" => "/registry/services/endpoints".to_owned(),
            "nodes" => "/registry/minions".to_owned(),
            plural => format!("/registry/{plural}"),
        }
    }

    /// `Pod` or `Lease.coordination.k8s.io`.
    pub fn title(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The kind served under this group and plural name.
    pub fn find(group: &str, plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.group == group && kind.plural == plural)
    }

    /// The kind with this plural name in any group (plural names are unique here).
    pub fn by_plural(plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.plural == plural)
    }
}
