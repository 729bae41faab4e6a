#!/usr/bin/env bash
# The images every cluster has, made once and kept in the cache.
#
#   pause:kube, busybox:1    Debian's static busybox with a link per command; pause is its `sleep`
#   postgres:15              Debian with postgresql-15, arranged as the stock image is: user postgres is 999:999, its
#                            programs are on PATH, data belongs under /var/lib/postgresql/data. No entry point script.
#
#   stock_images.sh          makes them if need be
#   stock_images.sh path     prints the directory: NAME.tar, and `store`, a containerd's data with all of them unpacked
#
# Cold about a minute, nearly all of it debootstrap from the mirror this machine itself uses. The directory is named
# after the recipe and complete from the moment it is there, so trees of different age do not fight over it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/kube/common.sh
source "$here/common.sh"
busybox_image() {
    local root=$work/root/busybox
    mkdir -p "$root"/{bin,etc,tmp,proc,sys,dev,run,root}
    chmod 1777 "$root/tmp"
    cp "$(command -v busybox)" "$root/bin/busybox"
    "$root/bin/busybox" --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
    echo root:x:0: >"$root/etc/group"
    "$here/image.sh" pause:kube,busybox:1 "$root" out="$work/busybox.tar" \
        cmd='["/bin/sleep","2147483647"]' env.PATH=/bin
}

postgres_image() {
    local root=$work/root/postgres from suite
    read -r from suite < <(mirror)
    debootstrap --variant=minbase "$suite" "$root" "$from"
    # The package would make a cluster, and take whatever uid is free.
    mkdir -p "$root/etc/postgresql-common"
    echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
    chroot "$root" groupadd --gid 999 postgres
    chroot "$root" useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql --shell /bin/bash postgres
    chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        -o Dpkg::Options::=--force-confold postgresql-15
    install -d -o 999 -g 999 -m 3777 "$root/run/postgresql"
    install -d -o 999 -g 999 -m 1777 "$root/var/lib/postgresql/data"
    # Half of it nobody here uses: the just-in-time compiler (Postgres does without when its file is missing), sources of
    # locales, documentation.
    rm -rf "$root"/usr/lib/x86_64-linux-gnu/lib{LLVM,z3}* "$root"/usr/lib/postgresql/15/lib/{llvmjit*,bitcode} \
        "$root"/usr/share/{doc,man,info,locale,i18n,lintian}/* "$root"/usr/lib/x86_64-linux-gnu/perl/*/CORE \
        "$root"/var/cache/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
    "$here/image.sh" postgres:15 "$root" out="$work/postgres.tar" cmd='["postgres"]' \
        env.PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin \
        env.PGDATA=/var/lib/postgresql/data env.PG_MAJOR=15 env.LANG=C.UTF-8
}

# A containerd's data directory with all images unpacked. Every node starts from a copy made of hard links: nothing is
# unpacked again, and nothing large is deleted at the end.
store_make() {
    local image pid failed=""
    # Without the plugins that would leave directories below /run and /opt.
    cat >"$work/containerd.toml" <<TOML
version = 3
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
TOML
    "$cache/bin/containerd" --config "$work/containerd.toml" --root "$work/store" --state "$work/state" \
        --address "$work/socket" --log-level warn &
    pid=$!
    until_ok 20 "containerd" "$cache/bin/ctr" -a "$work/socket" version
    for image in "$work"/*.tar; do
        "$cache/bin/ctr" -a "$work/socket" -n k8s.io images import "$image" || failed=yes
    done
    kill "$pid"
    wait "$pid" || true
    [ -z "$failed" ]
}

# Directories of recipes nobody has used for three days go.
forget_old() {
    find "$cache/images" -mindepth 1 -maxdepth 1 -type d -mtime +3 -exec rm -rf {} +
}

main() {
    local recipe images work step suite
    recipe=$({
        declare -f busybox_image postgres_image store_make
        cat "$here/image.sh" "$cache/bin/containerd.stamp"
    } | sha256sum | cut -c1-12)
    images=$cache/images/$recipe
    if [ "${1:-}" = path ]; then
        echo "$images"
        return 0
    fi
    mkdir -p "$cache/images"
    exec 9>"$cache/images/.lock"
    flock 9
    if [ -d "$images" ]; then
        touch "$images"
        return 0
    fi
    read -r _ suite < <(mirror)
    [ "$suite" = bookworm ] || skip "the stock Postgres 15 image is made from Debian 12, and this is '$suite'"
    echo "making the images busybox and postgres, about a minute"
    forget_old
    work=$(mktemp -d "$cache/images/.work.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    for step in busybox_image postgres_image store_make; do
        "$step" >"$cache/images.log" 2>&1 || die "$step failed; see $cache/images.log"
    done
    rm -rf "$work"/{root,state,socket*,containerd.toml}
    mv "$work" "$images"
}

main "$@"
