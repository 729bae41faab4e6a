#!/usr/bin/env bash
# The images every cluster has, made once and kept in the cache.
#
#   pause:kube, busybox:1    Debian's static busybox with a link per command; pause is its `sleep`
#   postgres:15              Debian with postgresql-15, arranged as the stock image is: user postgres is 999:999, its
#                            programs are on PATH, data belongs under /var/lib/postgresql/data. No entry point script.
#
# Cold about a minute, nearly all of it debootstrap from the mirror this machine itself uses.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/kube/common.sh
source "$here/common.sh"
images=$cache/images

# Done already, by this very recipe?
current() { # archive
    [ -e "$1" ] && [ "$(cat "$1.stamp" 2>/dev/null)" = "$recipe" ]
}

busybox_image() {
    local root=$work/busybox
    mkdir -p "$root"/{bin,etc,tmp,proc,sys,dev,run,root}
    chmod 1777 "$root/tmp"
    cp "$(command -v busybox)" "$root/bin/busybox"
    "$root/bin/busybox" --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
    echo root:x:0: >"$root/etc/group"
    "$here/image.sh" pause:kube,busybox:1 "$root" out="$images/busybox.tar" \
        cmd='["/bin/sleep","2147483647"]' env.PATH=/bin
}

postgres_image() {
    local root=$work/postgres from suite
    read -r from suite < <(mirror)
    [ "$suite" = bookworm ] || skip "the stock Postgres 15 image is made from Debian 12, and this is '$suite'"
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
    "$here/image.sh" postgres:15 "$root" out="$images/postgres.tar" cmd='["postgres"]' \
        env.PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin \
        env.PGDATA=/var/lib/postgresql/data env.PG_MAJOR=15 env.LANG=C.UTF-8
}

# A containerd's data directory with all images unpacked. Every node starts from a copy made of hard links: nothing is
# unpacked again, and nothing large is deleted at the end.
store_make() {
    local store=$work/store image pid failed=""
    # Without the plugins that would leave directories below /run and /opt.
    cat >"$work/containerd.toml" <<TOML
version = 3
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
TOML
    "$cache/bin/containerd" --config "$work/containerd.toml" --root "$store" --state "$work/state" \
        --address "$work/socket" --log-level warn &
    pid=$!
    until_ok 20 "containerd" "$cache/bin/ctr" -a "$work/socket" version
    for image in "$images"/*.tar; do
        "$cache/bin/ctr" -a "$work/socket" -n k8s.io images import "$image" || failed=yes
    done
    kill "$pid"
    wait "$pid" || true
    [ -z "$failed" ] || return 1
    rm -rf "$images/store"
    mv "$store" "$images/store"
}

main() {
    local image recipe work
    mkdir -p "$images"
    exec 9>"$images/.lock"
    flock 9
    recipe=$({ declare -f busybox_image postgres_image && cat "$here/image.sh"; } | sha256sum)
    work=$(mktemp -d "$images/.work.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    for image in busybox postgres; do
        current "$images/$image.tar" && continue
        echo "making the image $image$([ $image = busybox ] || echo ', about a minute')"
        "${image}_image" >"$images/$image.log" 2>&1 || die "cannot make the image $image; see $images/$image.log"
        echo "$recipe" >"$images/$image.tar.stamp"
        rm -f "$images/store.stamp"
    done
    recipe="$recipe $(cat "$cache/bin/containerd.stamp")"
    if [ "$(cat "$images/store.stamp" 2>/dev/null)" != "$recipe" ]; then
        store_make >"$images/store.log" 2>&1 || die "cannot unpack the images; see $images/store.log"
        echo "$recipe" >"$images/store.stamp"
    fi
}

main "$@"
