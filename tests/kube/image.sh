#!/usr/bin/env bash
# Turns a root file system into an image.
#
#   image.sh NAME ROOTFS [KEY=VALUE...]      ROOTFS: a directory or a tar file
#
#     out=FILE           where the archive goes; without it the image is imported into every node of the cluster
#     user=999:999       who the container runs as (default root)
#     workdir=/          where it starts
#     cmd='["a","b"]'    default command, as JSON
#     env.NAME=VALUE     a variable of the environment
#
# The result is what `docker save` writes: manifest.json, a configuration and one layer. NAME may be several, with
# commas between. Names without a host mean docker.io/library, as everywhere. Use them with a pull policy other than
# Always: there is no registry.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/kube/common.sh
source "$here/common.sh"

json_string() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

full_name() {
    case $1 in
    *.*/* | localhost/*) echo "$1" ;;
    */*) echo "docker.io/$1" ;;
    *) echo "docker.io/library/$1" ;;
    esac
}

main() {
    [ $# -ge 2 ] || die "image.sh NAME ROOTFS [KEY=VALUE...]"
    local names=$1 rootfs=$2 out="" user="" workdir=/ cmd=null env="" tags="" name pair work layer
    shift 2
    for pair in "$@"; do
        case $pair in
        out=*) out=${pair#out=} ;;
        user=*) user=${pair#user=} ;;
        workdir=*) workdir=${pair#workdir=} ;;
        cmd=*) cmd=${pair#cmd=} ;;
        env.*) env=$env${env:+,}$(json_string "${pair#env.}") ;;
        *) die "unknown key in '$pair'" ;;
        esac
    done
    for name in ${names//,/ }; do tags=$tags${tags:+,}$(json_string "$(full_name "$name")"); done

    work=$(mktemp -d "${out:-$dir/image}.XXXXXX")
    # shellcheck disable=SC2064  # the directory of this run
    trap "rm -rf '$work'" EXIT
    if [ -d "$rootfs" ]; then
        tar --numeric-owner --sort=name --mtime=@0 -C "$rootfs" -cf "$work/layer.tar" .
    else
        cp "$rootfs" "$work/layer.tar"
    fi
    layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
    cat >"$work/config.json" <<JSON
{"architecture":"$(dpkg --print-architecture)","os":"linux","created":"1970-01-01T00:00:00Z",
 "config":{"User":$(json_string "$user"),"WorkingDir":$(json_string "$workdir"),"Env":[$env],"Cmd":$cmd},
 "rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},
 "history":[{"created":"1970-01-01T00:00:00Z","created_by":"image.sh"}]}
JSON
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[$tags],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
    tar -C "$work" -cf "$work/image.tar" manifest.json config.json layer.tar
    if [ -n "$out" ]; then
        mv "$work/image.tar" "$out"
    else
        "$here/cluster.sh" load "$work/image.tar"
    fi
}

main "$@"
