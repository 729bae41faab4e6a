#!/usr/bin/env bash
# Builds the oldest API server that is tested, 1.20.2, from Debian's source package `kubernetes` into the cache, as
# kube-apiserver-1.20.2. About five minutes on two cores, once.
#
# It wants the Go of its Debian, 1.19, and a newer github.com/modern-go/reflect2 than the one it brings along: built
# with Go 1.18 or later, that one crashes the server. Debian has both. Nothing is installed into this machine's apt lists.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/kube/common.sh
source "$here/common.sh"

version=1.20.2
packages="golang-1.19-go golang-github-modern-go-reflect2-dev rsync jq make dpkg-dev xz-utils"
program=$cache/bin/kube-apiserver-$version

# apt with lists of its own, where the sources are known.
private_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}

fetch() {
    mkdir -p "$work/lists/partial" "$work/cache"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main" >"$work/sources.list"
    private_apt update
    (cd "$work" && private_apt --download-only source kubernetes)
    dpkg-source --no-check -x "$work"/kubernetes_*really"$version"*.dsc "$work/source"
}

build() {
    local reflect2=vendor/github.com/modern-go/reflect2
    cd "$work/source"
    rm -rf "${reflect2:?}"/*
    cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.go /usr/share/gocode/src/github.com/modern-go/reflect2/*.s \
        "$reflect2/"
    env -i HOME="$work" PATH=/usr/lib/go-1.19/bin:/usr/sbin:/usr/bin:/sbin:/bin CGO_ENABLED=0 \
        KUBE_GIT_VERSION=v$version KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 KUBE_GIT_COMMIT=unknown KUBE_GIT_TREE_STATE=clean \
        make WHAT=cmd/kube-apiserver GOLDFLAGS="-s -w"
    mkdir -p "$cache/bin"
    mv _output/bin/kube-apiserver "$program"
}

main() {
    local work stamp from suite started=$SECONDS
    stamp=$(sha256sum "$here/build_oldest.sh" | cut -d' ' -f1)
    mkdir -p "$cache"
    exec 9>"$cache/oldest.lock"
    flock 9
    if [ -x "$program" ] && [ "$(cat "$program.stamp" 2>/dev/null)" = "$stamp" ]; then return 0; fi
    read -r from suite < <(mirror)
    [ "$suite" = bookworm ] || skip "Kubernetes $version is built from Debian 12's source, and this is '$suite'"
    # shellcheck disable=SC2086  # a list of words
    install_packages $packages
    echo "building kube-apiserver $version, about 5 min"
    work=$(mktemp -d "$cache/oldest.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    (fetch && build) >"$cache/kube-apiserver-$version.log" 2>&1 ||
        die "cannot build kube-apiserver $version; see $cache/kube-apiserver-$version.log"
    echo "$stamp" >"$program.stamp"
    echo "built kube-apiserver $version in $((SECONDS - started)) s"
}

main "$@"
