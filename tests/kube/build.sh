#!/usr/bin/env bash
# Builds the programs of the test cluster from the Go module proxy into a cache outside the tree.
#
#   build.sh              everything a cluster with nodes needs, and helm
#   build.sh NAME...      only these (kube-apiserver, etcd, ...)
#
# Each directory below build/ is a Go module without source of its own: its `tool` lines name the main packages, its
# go.mod and go.sum pin every version. A program is built again only when its module files or flags change: the stamp
# beside it holds their hash. Cold on two cores about ten minutes, nearly all of it the first kube program.
# Two builds at once are safe: a lock makes the second wait and then find the stamps.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/kube/common.sh
source "$here/common.sh"

kube_version=v1.36.3

# name | module directory | main package | flags | what to expect cold on two cores
programs() {
    local k="-X k8s.io/component-base/version"
    local kube="$k.gitVersion=$kube_version $k.gitMajor=1 $k.gitMinor=36 $k.gitTreeState=clean"
    cat <<TABLE
kube-apiserver|kubernetes|k8s.io/kubernetes/cmd/kube-apiserver|$kube||3.5 min
etcd|etcd|go.etcd.io/etcd/server/v3|||30 s
kube-controller-manager|kubernetes|k8s.io/kubernetes/cmd/kube-controller-manager|$kube||50 s
kube-scheduler|kubernetes|k8s.io/kubernetes/cmd/kube-scheduler|$kube||10 s
kube-proxy|kubernetes|k8s.io/kubernetes/cmd/kube-proxy|$kube||10 s
kubelet|kubernetes|k8s.io/kubernetes/cmd/kubelet|$kube||10 s
kubectl|kubernetes|k8s.io/kubernetes/cmd/kubectl|$kube||20 s
containerd|containerd|github.com/containerd/containerd/v2/cmd/containerd||no_btrfs no_zfs no_devmapper|50 s
containerd-shim-runc-v2|containerd|github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2||no_btrfs no_zfs no_devmapper|10 s
ctr|containerd|github.com/containerd/containerd/v2/cmd/ctr||no_btrfs no_zfs no_devmapper|10 s
coredns|coredns|github.com/coredns/coredns|||1.5 min
helm|helm|helm.sh/helm/v4/cmd/helm|||2 min
TABLE
}

# The hash of everything that decides what a program becomes.
stamp_of() { # module, package, linker flags, tags
    { cat "$here/build/$1/go.mod" "$here/build/$1/go.sum"; echo "$2|$3|$4"; } | sha256sum | cut -d' ' -f1
}

# A machine without a way to the modules cannot run these tests; anything else that fails is an error.
build_failed() { # name
    if grep -qE 'dial tcp|no such host|handshake timeout|module lookup disabled' "$cache/$1.log"; then
        skip "$1 is not built, and its Go modules cannot be fetched"
    fi
    die "cannot build $1: $(tail -n 3 "$cache/$1.log")"
}

build_one() { # name, module, package, linker flags, tags, expected, position
    local name=$1 module=$2 package=$3 ldflags=$4 tags=$5 expected=$6 position=$7 stamp started go
    stamp=$(stamp_of "$module" "$package" "$ldflags" "$tags")
    if [ -x "$cache/bin/$name" ] && [ "$(cat "$cache/bin/$name.stamp" 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    go=$(find_go) || skip "no Go compiler, and $name is not built: the test cluster is built from source"
    echo "building $name ($position), about $expected"
    started=$SECONDS
    (cd "$here/build/$module" &&
        CGO_ENABLED=0 GOFLAGS=-buildvcs=false "$go" build -trimpath -tags "$tags" -ldflags "-s -w $ldflags" \
            -o "$cache/bin/$name.new" "$package") >"$cache/$name.log" 2>&1 ||
        build_failed "$name"
    rm -f "$cache/$name.log"
    mv "$cache/bin/$name.new" "$cache/bin/$name"
    echo "$stamp" >"$cache/bin/$name.stamp"
    echo "built $name in $((SECONDS - started)) s"
}

main() {
    local wanted=" $* " rows=() row name module package ldflags tags expected n=0
    mkdir -p "$cache/bin"
    exec 9>"$cache/build.lock"
    flock -n 9 || { echo "waiting for another build into $cache"; flock 9; }
    while IFS= read -r row; do
        [ $# = 0 ] || [[ $wanted == *" ${row%%|*} "* ]] || continue
        rows+=("$row")
    done < <(programs)
    for row in "${rows[@]}"; do
        n=$((n + 1))
        IFS='|' read -r name module package ldflags tags expected <<<"$row"
        build_one "$name" "$module" "$package" "$ldflags" "$tags" "$expected" "$n of ${#rows[@]}"
    done
}

main "$@"
