# The control plane: certificates and tokens, etcd, API server, controllers, scheduler, DNS, and the network around it.
# shellcheck shell=bash

# Names of everything that talks to the API server, with the groups its role bindings go by.
users() {
    cat <<TABLE
admin system:masters
system:kube-controller-manager
system:kube-scheduler
system:kube-proxy
coredns
TABLE
    local n
    for ((n = 1; n <= nodes; n++)); do echo "system:node:node$n system:nodes"; done
}

# A certificate authority, one certificate for the API server, the key for service account tokens, a token per user.
credentials() { # further addresses of the API server...
    local pki=$dir/pki user group token names address
    mkdir -p "$pki"
    names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
    for address in "$@"; do names=$names,IP:$address; done
    {
        openssl ecparam -name prime256v1 -genkey -noout -out "$pki/ca.key"
        openssl req -x509 -new -key "$pki/ca.key" -subj /CN=kube-test-ca -days 3650 -out "$pki/ca.crt"
        openssl ecparam -name prime256v1 -genkey -noout -out "$pki/server.key"
        openssl req -new -key "$pki/server.key" -subj /CN=kube-apiserver -out "$pki/server.csr"
        printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:false\n' "$names" >"$pki/server.ext"
        openssl x509 -req -in "$pki/server.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days 3650 \
            -extfile "$pki/server.ext" -out "$pki/server.crt"
        openssl genrsa -out "$pki/service-account.key" 2048
    } >"$dir/logs/credentials.log" 2>&1
    while read -r user group; do
        token=$(openssl rand -hex 16)
        echo "$token,$user,$user,\"$group\"" >>"$pki/tokens.csv"
        kubeconfig "$token" >"$pki/${user##*:}.kubeconfig"
    done < <(users)
    cp "$pki/admin.kubeconfig" "$dir/kubeconfig"
}

kubeconfig() { # token
    cat <<YAML
apiVersion: v1
kind: Config
clusters:
- name: test
  cluster:
    server: $api_url
    certificate-authority-data: $(base64 -w0 <"$dir/pki/ca.crt")
users:
- name: test
  user:
    token: $1
contexts:
- name: test
  context: {cluster: test, user: test}
current-context: test
YAML
}

# What a test needs to reach the API server, as lines for the shell.
environment() {
    cat <<SH
KUBECONFIG=$dir/kubeconfig
KUBE_API_URL=$api_url
KUBE_API_TOKEN=$(sed -n 's/^\([^,]*\),admin,.*/\1/p' "$dir/pki/tokens.csv")
KUBE_API_CA=$dir/pki/ca.crt
SH
}

# Nobody's data lives here: without the disk's flushes etcd is faster, and the machine has other things to do.
etcd_flags() { # client address, peer address
    echo --name test --data-dir "$dir/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls "http://$1" --advertise-client-urls "http://$1" \
        --listen-peer-urls "http://$2" --initial-advertise-peer-urls "http://$2" --initial-cluster "test=http://$2"
}

api_server_flags() { # etcd address, bind address, port, advertised address, service range
    local pki=$dir/pki
    echo --etcd-servers "http://$1" --bind-address "$2" --secure-port "$3" --advertise-address "$4" \
        --service-cluster-ip-range "$5" --tls-cert-file "$pki/server.crt" --tls-private-key-file "$pki/server.key" \
        --token-auth-file "$pki/tokens.csv" --authorization-mode Node,RBAC \
        --service-account-issuer https://kubernetes.default.svc.cluster.local \
        --service-account-key-file "$pki/service-account.key" \
        --service-account-signing-key-file "$pki/service-account.key" --allow-privileged=true --profiling=false
}

# The bridge all nodes hang on, and the way from this machine into it: tests, helm and kubectl run outside and reach the
# API server, pods and services by their addresses. Nothing in here has a way out.
cp_network() {
    on cp ip link add br0 type bridge
    on cp ip addr add "$cp_ip/24" dev br0
    on cp ip link set br0 up
    ip link add "$prefix-host" type veth peer name eth0 netns "$prefix-cp"
    ip addr add "$host_link.1/30" dev "$prefix-host"
    ip link set "$prefix-host" up
    on cp ip addr add "$host_link.2/30" dev eth0
    on cp ip link set eth0 up
    local range
    for range in "$node_net.0/24" "$pod_net.0.0/16" "$service_net.0/16"; do
        ip route add "$range" via "$host_link.2" || die "this machine uses $range already"
    done
}

cp_start() {
    local pki=$dir/pki
    # shellcheck disable=SC2046  # flags are words
    daemon cp etcd $(etcd_flags 127.0.0.1:2379 127.0.0.1:2380)
    # shellcheck disable=SC2046
    daemon cp kube-apiserver \
        $(api_server_flags 127.0.0.1:2379 0.0.0.0 6443 "$cp_ip" "$service_net.0/16") \
        --kubelet-preferred-address-types InternalIP --enable-admission-plugins NodeRestriction
    until_ok 60 "the API server" kubectl get --raw /readyz
    # At its usual 20 requests per second the first service account is four seconds late.
    daemon cp kube-controller-manager --kubeconfig "$pki/kube-controller-manager.kubeconfig" --leader-elect=false \
        --root-ca-file "$pki/ca.crt" --service-account-private-key-file "$pki/service-account.key" \
        --use-service-account-credentials=true --kube-api-qps 200 --kube-api-burst 400 --node-monitor-grace-period "$node_grace" \
        --controllers '*,-cloud-node-lifecycle-controller,-service-lb-controller,-node-route-controller,-node-ipam-controller'
    daemon cp kube-scheduler --kubeconfig "$pki/kube-scheduler.kubeconfig" --leader-elect=false
    proxy_start cp node1
    dns_start
}

# Services for this machine's processes: they enter through the control plane. It takes the identity of node 1, since a
# proxy without a node waits half a minute for one; only that node's address is read from it.
proxy_start() { # machine, node
    daemon "$1" kube-proxy --kubeconfig "$dir/pki/kube-proxy.kubeconfig" --hostname-override "$2" \
        --proxy-mode iptables --cluster-cidr "$pod_net.0.0/16" --conntrack-max-per-core 0
}

dns_start() {
    cat >"$dir/Corefile" <<COREFILE
cluster.local:53 in-addr.arpa:53 {
    bind $cp_ip
    errors
    ready $cp_ip:8181
    kubernetes cluster.local in-addr.arpa {
        kubeconfig $dir/pki/coredns.kubeconfig test
        pods insecure
        ttl 5
    }
}
.:53 {
    bind $cp_ip
    template ANY ANY {
        rcode NXDOMAIN
    }
}
COREFILE
    kubectl apply -f "$here/manifests/dns.yaml" >/dev/null
    daemon cp coredns -conf "$dir/Corefile"
}
