# Faults. Each returns when it is done, not when the cluster noticed.
# shellcheck shell=bash

fault_usage() {
    cat <<'TEXT'
node-cut N, node-heal N                    the node's link goes down; up again
node-kill N, node-start N                  the node loses power: silent at once, memory gone, disk kept; boots again
kubelet-stop N, kubelet-start N            the kubelet alone; containers go on
apiserver-stop, apiserver-cont             the API server hangs; goes on
container-kill [-n NS] POD CONTAINER       its first process gets SIGKILL
container-freeze, container-thaw  [-n NS] POD CONTAINER
api-cut, api-heal  [-n NS] POD             the pod cannot reach the API server; all else goes on
TEXT
}

fault() {
    local what=${1:-help} namespace=default node
    [ $# = 0 ] || shift
    if [ "${1:-}" = -n ]; then
        namespace=${2:?a namespace}
        shift 2
    fi
    case $what in
    node-cut | node-heal | node-kill | kubelet-*) node=$(node_of "$@") ;;
    esac
    case $what in
    node-cut) on "$node" ip link set eth0 down ;;
    node-heal) link_up "$1" ;;
    node-kill) node_kill "$node" ;;
    node-start) node_boot "${1:?a node number}" ;;
    kubelet-stop) signal_daemon "$node" kubelet KILL ;;
    kubelet-start) kubelet_start "$1" ;;
    apiserver-stop) signal_daemon cp kube-apiserver STOP ;;
    apiserver-cont) signal_daemon cp kube-apiserver CONT ;;
    container-kill) in_container_tasks kill --signal SIGKILL "$@" ;;
    container-freeze) in_container_tasks pause "$@" ;;
    container-thaw) in_container_tasks resume "$@" ;;
    api-cut) api_path -I "${1:?a pod}" ;;
    api-heal) api_path -D "${1:?a pod}" ;;
    help) fault_usage ;;
    *) die "unknown fault $what; \`cluster.sh fault\` lists them" ;;
    esac
}

# The name of a node given by number, if that node runs.
node_of() { # number
    [[ ${1:-} =~ ^[1-9]$ ]] || die "which node? a number from 1 to $nodes"
    machine_pid "node$1" >/dev/null || die "node$1 does not run"
    echo "node$1"
}

# Nobody hears a goodbye: the link goes before the processes whose sockets the kernel would close politely.
node_kill() { # name
    on "$1" ip link set eth0 down
    machine_kill "$1"
}

node_boot() { # number
    if machine_pid "node$1" >/dev/null; then die "node$1 runs"; fi
    until_ok 20 "the cgroups of node$1" cgroups_gone "node$1"
    machine_start "node$1"
    link_up "$1"
    cgroups_make "node$1"
    runtime_start "$1"
    node_start "$1"
}

# "node container-id" of a container, sidecars included.
container() { # pod, container
    local found
    found=$(kubectl -n "$namespace" get pod "$1" -o "jsonpath={.spec.nodeName} \
{.status.containerStatuses[?(@.name=='$2')].containerID}\
{.status.initContainerStatuses[?(@.name=='$2')].containerID}") || exit 1
    [[ $found == *containerd://* ]] || die "pod $1 has no running container $2"
    echo "${found/containerd:\/\//}"
}

# in_container_tasks SUBCOMMAND [FLAG VALUE] POD CONTAINER
in_container_tasks() {
    local pod=${*: -2:1} name=${*: -1} node id found said
    found=$(container "$pod" "$name")
    read -r node id <<<"$found"
    # Its words only if it fails: with old cgroups every call warns.
    said=$(on "$node" ctr -n k8s.io tasks "${@:1:$#-2}" "$id" 2>&1) || die "ctr: $said"
}

# Packets between one pod and the API server are dropped on the pod's node, both ways: a hung connection, not a refused.
api_path() { # -I or -D, pod
    local found node address
    found=$(kubectl -n "$namespace" get pod "$2" -o 'jsonpath={.spec.nodeName} {.status.podIP}') || exit 1
    read -r node address <<<"$found"
    on "$node" iptables -w "$1" FORWARD -s "$address" -d "$cp_ip" -p tcp --dport 6443 -j DROP
    on "$node" iptables -w "$1" FORWARD -s "$cp_ip" -d "$address" -p tcp --sport 6443 -j DROP
}
