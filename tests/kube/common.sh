# What the scripts of the test cluster share: where things are, what they are called, how to say no.
# shellcheck shell=bash

# Built programs and images, kept between clusters and outside the tree.
cache=${PATRONI_KUBE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/patroni-kube}
# Everything of one cluster. Its absolute path is also the name under which its processes are found again.
dir=${PATRONI_KUBE_DIR:-/tmp/patroni-kube}

# A test tells "could not run here" from "went wrong" by this exit code (automake's word for a skipped test).
SKIPPED=77
# One claim per running cluster: a link named by its number, pointing to its directory.
CLAIMS=/run/patroni-kube
# Numbers decide addresses; six keep node, pod and service ranges of all clusters apart.
CLUSTERS_MAX=6
NODES_MAX=9

# One line, and nothing else: callers print it as it is.
skip() {
    echo "skipped: $*"
    exit $SKIPPED
}

die() {
    echo "kube: $*" >&2
    exit 1
}

find_go() {
    command -v go || { [ -x /usr/local/go/bin/go ] && echo /usr/local/go/bin/go; }
}

# What is missing, with apt.
install_packages() { # package...
    local package missing=""
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || skip "not root, and missing:$missing"
    command -v apt-get >/dev/null || skip "missing, and no apt-get to install them:$missing"
    echo "installing$missing"
    mkdir -p "$cache"
    # shellcheck disable=SC2086  # a list of words
    {
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
    } >"$cache/apt.log" 2>&1 || skip "cannot install$missing; see $cache/apt.log"
}

# Mirror and release of this machine: "address suite".
mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        awk '$3 == "main" && $2 !~ /-/ { print $1, $2; exit }'
}

# Names and addresses of cluster number $1. Two clusters share nothing, so they may run side by side.
name_everything() {
    number=$1
    prefix=pk$number                      # network namespaces, veth and cgroups begin with it
    node_net=10.$((250 - number)).0       # bridge of the control plane: .1, node N: .1N
    pod_net=10.$((244 - number))          # node N: .N.0/24
    service_net=10.$((96 + number)).0     # .0/16; the API server is .1
    host_link=10.$((250 - number)).255    # .1 this machine, .2 the control plane's end
    cp_ip=$node_net.1
}

# The number this directory already holds, if any.
claimed() {
    local link
    for link in "$CLAIMS"/[0-9]*; do
        [ "$(readlink "$link")" = "$dir" ] && { echo "${link##*/}"; return 0; }
    done
    return 1
}

# Takes a free number for this directory. A claim whose directory was deleted is nobody's: its cluster is ended.
claim() {
    local n
    mkdir -p "$CLAIMS"
    for ((n = 0; n < CLUSTERS_MAX; n++)); do
        if [ -L "$CLAIMS/$n" ] && [ ! -e "$CLAIMS/$n" ]; then (dir=$(readlink "$CLAIMS/$n") && clean); fi
        mkdir -p "$CLAIMS"
        # -T: a link to an existing directory is not a place to put links into.
        ln -sT "$dir" "$CLAIMS/$n" 2>/dev/null && { echo "$n"; return 0; }
    done
    return 1
}

# Repeats a command until it succeeds. Every wait of the cluster goes through here, so none is endless.
until_ok() { # seconds, what is awaited, command...
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || die "waited in vain for $what; see $dir/logs"
        sleep 0.1
    done
}

kubectl() {
    "$cache/bin/kubectl" --kubeconfig "$dir/kubeconfig" "$@"
}
