#!/usr/bin/env bash
# A real Kubernetes on this machine, without Docker: one to nine nodes, each a machine of its own as far as processes,
# mounts and network go. See README.md beside this file for where things are and how to look inside.
#
#   cluster.sh up [--nodes N] [--dir DIR]    start it (cleans up a half-dead one first); prints how to reach it
#   cluster.sh up --api-only [--oldest]      etcd and API server alone on loopback; needs no root. The oldest server
#                                            that is tested is 1.20.2, built from Debian's source package
#   cluster.sh down [--dir DIR]              end it and leave nothing
#   cluster.sh shell                         a shell with KUBECONFIG, kubectl and helm
#   cluster.sh env                           how to reach it, as lines for a shell
#   cluster.sh load ARCHIVE...               images (docker save or OCI archive) into every node
#   cluster.sh volumes                       empty every released volume and offer it again
#   cluster.sh fault ...                     break something; `cluster.sh fault` lists what
#
# Exit code 77 and one line "skipped: why" where it cannot run: no root, no Go, no cgroups.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for part in common machines control_plane node volumes faults api_only; do
    # shellcheck source=/dev/null
    source "$here/$part.sh"
done

nodes=1
api_only=
# What the name of the API server's program ends with.
oldest=
# How long a silent node stays Ready; Kubernetes' own default is 50s since 1.32, 40s before.
node_grace=${PATRONI_KUBE_NODE_GRACE:-40s}
packages="runc containernetworking-plugins iptables busybox-static debootstrap openssl iproute2 procps"

usage() {
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

options() {
    while [ $# -gt 0 ]; do
        case $1 in
        --nodes) nodes=${2:?a number of nodes} && shift 2 ;;
        --dir) dir=${2:?a directory} && shift 2 ;;
        --api-only) api_only=yes && shift ;;
        --oldest) oldest=-1.20.2 && shift ;;
        *) die "unknown option $1" ;;
        esac
    done
    [ -z "$oldest" ] || [ -n "$api_only" ] || die "--oldest goes with --api-only: no kubelet of ours talks to it"
    [[ $nodes =~ ^[1-9]$ ]] || die "--nodes takes 1 to $NODES_MAX"
    dir=$(realpath -m "$dir")
    case $dir/ in
    /var/* | /run/* | /) die "the state directory may not lie below /var or /run: machines have their own" ;;
    esac
    case $dir in *[!A-Za-z0-9/._-]*) die "unusual characters in the state directory $dir" ;; esac
}

# What only root on a suitable machine can do.
require_machine() {
    [ "$(id -u)" = 0 ] || skip "not root: nodes need namespaces and cgroups"
    [ -d /sys/fs/cgroup ] && mkdir -p "/sys/fs/cgroup/$1/patroni-kube-probe-$$" 2>/dev/null ||
        skip "no cgroups can be made below /sys/fs/cgroup"
    rmdir "/sys/fs/cgroup/$1/patroni-kube-probe-$$"
    unshare --mount --pid --uts --net --fork true 2>/dev/null || skip "no namespaces can be made"
}

node_ready() { # number
    [ "$(kubectl get node "node$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]
}

dns_ready() {
    (exec 3<>"/dev/tcp/$cp_ip/8181" && printf 'GET /ready HTTP/1.0\r\n\r\n' >&3 && grep -q ' 200 ' <&3)
}

up_nodes() {
    local n started=$SECONDS jobs=()
    require_machine "$([ -d /sys/fs/cgroup/pids ] && echo pids)"
    # shellcheck disable=SC2086  # a list of words
    install_packages $packages
    "$here/build.sh"
    "$here/stock_images.sh"
    images=$("$here/stock_images.sh" path)
    lock
    clean
    state_directory
    number=$(claim) || die "six clusters run already: $(readlink "$CLAIMS"/[0-9]* | tr '\n' ' ')"
    name_everything "$number"
    api_url=https://$cp_ip:6443
    started=$SECONDS
    tunables_save
    credentials "$cp_ip" "$service_net.1" 127.0.0.1
    machine_start cp
    cp_network
    for ((n = 1; n <= nodes; n++)); do
        machine_start "node$n"
        node_network "$n"
        node_prepare "$n" &
        jobs+=($!)
    done
    cp_start
    for n in "${jobs[@]}"; do wait "$n" || die "a node did not come up; see $dir/logs"; done
    for ((n = 1; n <= nodes; n++)); do node_start "$n"; done
    volumes_make
    for ((n = 1; n <= nodes; n++)); do until_ok 60 "node$n" node_ready "$n"; done
    until_ok 30 "DNS" dns_ready
    until_ok 30 "the default service account" kubectl get serviceaccount default
    environment >"$dir/env"
    echo "kubernetes $(kubectl get node node1 -o 'jsonpath={.status.nodeInfo.kubeletVersion}') with $nodes node(s) up in" \
        "$((SECONDS - started)) s"
}

# Everything below is only ever deleted with this file in it, or with a claim that points here.
state_directory() {
    [ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || die "$dir exists and is not a cluster's"
    mkdir -p "$dir/logs"
    touch "$dir/.patroni-kube"
}

# One `up` or `down` at a time on this machine: they hand out numbers and routes.
lock() {
    exec 8</tmp
    flock 8
}

# The kubelet sets these for the whole machine. The first cluster keeps what they were, the last one puts them back.
tunables="vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes"
tunables_save() {
    local name
    [ ! -e "$CLAIMS/tunables" ] || return 0
    for name in $tunables; do
        [ ! -e "/proc/sys/$name" ] || echo "$name $(cat "/proc/sys/$name")"
    done >"$CLAIMS/tunables"
}

tunables_restore() {
    local name value
    while read -r name value; do echo "$value" >"/proc/sys/$name"; done <"$CLAIMS/tunables"
    rm -f "$CLAIMS/tunables"
}

# Ends whatever is left of this directory's cluster, however it came to be left.
clean() {
    local ours=
    if [ -e "$dir/.patroni-kube" ]; then ours=yes; fi
    api_only_end
    machines_end
    if number=$(claimed); then
        name_everything "$number"
        ours=yes
        clean_names
        rm -f "$CLAIMS/$number"
        if ! ls "$CLAIMS"/[0-9]* >/dev/null 2>&1; then
            [ ! -e "$CLAIMS/tunables" ] || tunables_restore
            rmdir "$CLAIMS" 2>/dev/null || true
        fi
    fi
    if [ -n "$ours" ]; then rm -rf --one-file-system "$dir"; fi
}

# Everything that is named by the cluster's number.
clean_names() {
    local machine mount
    ip link del "$prefix-host" 2>/dev/null || true
    for machine in $(machine_names); do
        [ ! -e "/run/netns/$prefix-$machine" ] || ip netns del "$prefix-$machine"
        until_ok 20 "the cgroups of $machine" cgroups_gone "$machine"
    done
    # Nothing of ours mounts here; a bind mount someone made by hand while looking around would keep the directory.
    while read -r mount; do umount -l "$mount"; done < <(awk -v d="$dir/" 'index($2, d) == 1 { print $2 }' /proc/self/mounts | sort -r)
}

machine_names() {
    local n
    for ((n = 1; n <= NODES_MAX; n++)); do echo "node$n"; done
    echo cp
}

# Finds the running cluster for every command that needs one.
attach() {
    [ -e "$dir/env" ] || die "no cluster in $dir; \`cluster.sh up\` starts one"
    if number=$(claimed); then
        name_everything "$number"
        nodes=$(ls -d "$dir"/node[0-9] | wc -l)
    fi
}

main() {
    local command=${1:-help}
    [ $# = 0 ] || shift
    case $command in
    up)
        options "$@"
        if [ -n "$api_only" ]; then up_api_only; else up_nodes; fi
        cat "$dir/env"
        ;;
    down)
        options "$@"
        if [ ! -e "$dir" ] && ! claimed >/dev/null; then return 0; fi
        lock
        clean
        ;;
    shell)
        options && attach
        echo "kubectl and helm talk to the cluster in $dir; leave with exit"
        PATH=$cache/bin:$PATH KUBECONFIG=$dir/kubeconfig exec "${SHELL:-bash}"
        ;;
    env) options && attach && cat "$dir/env" ;;
    load)
        options && attach
        local archive n
        for archive in "$@"; do
            archive=$(realpath -e "$archive")
            for ((n = 1; n <= nodes; n++)); do import "$n" "$archive"; done
        done
        ;;
    volumes) options && attach && volumes_renew ;;
    fault) options && attach && fault "$@" ;;
    help | -h | --help) usage ;;
    *) die "unknown command $command; \`cluster.sh help\` lists them" ;;
    esac
}

main "$@"
