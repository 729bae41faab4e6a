# A node: its link to the control plane, containerd, kubelet, kube-proxy, volumes.
# shellcheck shell=bash

node_network() { # number
    local name=node$1
    ip link add "veth$1" netns "$prefix-cp" type veth peer name eth0 netns "$prefix-$name"
    on cp ip link set "veth$1" master br0 up
    on cp ip route add "$pod_net.$1.0/24" via "$node_net.1$1"
    on "$name" ip addr add "$node_net.1$1/24" dev eth0
    # Made before the kubelet starts: containerd would else report the node without a network.
    on "$name" ip link add cni0 type bridge
    on "$name" ip addr add "$pod_net.$1.1/24" dev cni0
    on "$name" ip link set cni0 up
    link_up "$1"
}

# A link that goes down forgets its routes.
link_up() { # number
    on "node$1" ip link set eth0 up
    on "node$1" ip route replace default via "$cp_ip"
}

node_files() { # number
    local own=$dir/node$1
    mkdir -p "$own/cni"
    echo "nameserver $cp_ip" >"$own/resolv.conf"
    cat >"$own/cni/10-bridge.conflist" <<JSON
{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
  { "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
    "ipam": { "type": "host-local", "ranges": [[{ "subnet": "$pod_net.$1.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } } ] }
JSON
    # oom_score_adj: root of a test machine may not lower it, and runc then fails with "can't get final child's PID".
    cat >"$own/containerd.toml" <<TOML
version = 3
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "docker.io/library/pause:kube"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "$own/cni"
TOML
    # Anonymous access lets the API server in for exec and logs; the kubelet listens inside the namespaces only.
    cat >"$own/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDomain: cluster.local
clusterDNS: [$cp_ip]
resolvConf: $own/resolv.conf
cgroupDriver: cgroupfs
cgroupRoot: /$prefix-node$1
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
evictionHard: {memory.available: 1Mi}
volumePluginDir: /var/lib/kubelet/volume-plugins
YAML
}

runtime_ready() { # number
    on "node$1" ctr -n k8s.io version
}

runtime_start() { # number
    daemon "node$1" containerd --config "$dir/node$1/containerd.toml"
    until_ok 30 "containerd on node$1" runtime_ready "$1"
}

kubelet_start() { # number
    daemon "node$1" kubelet --config "$dir/node$1/kubelet.yaml" --kubeconfig "$dir/pki/node$1.kubeconfig" \
        --hostname-override "node$1" --node-ip "$node_net.1$1"
}

# Everything up to the point where only the API server is missing.
node_prepare() { # number
    cgroups_make "node$1"
    node_files "$1"
    store_copy "$images/store" "$dir/node$1/var/lib/containerd"
    runtime_start "$1"
}

# Layers and blobs never change, so they may be shared. Databases do.
store_copy() { # from, to
    local database
    cp -al "$1/." "$2" 2>/dev/null || cp -a "$1/." "$2"
    rm -rf "$2/io.containerd.grpc.v1.introspection"   # its identity
    while IFS= read -r database; do
        cp --remove-destination "$1/$database" "$2/$database"
    done < <(cd "$1" && find . -name '*.db')
}

node_start() { # number
    kubelet_start "$1"
    proxy_start "node$1" "node$1"
}

import() { # number, archive
    on "node$1" ctr -n k8s.io images import "$2" >>"$dir/logs/node$1-import.log" 2>&1 ||
        die "cannot import $2 into node$1; see $dir/logs/node$1-import.log"
}
