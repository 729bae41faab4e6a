#!/bin/sh
# Makes the image of the Dockerfile as an OCI archive, without a container engine: builds the static programs and packs
# them. The same commit gives the same bytes.
#
#   deploy/image.sh [NAME:TAG]     writes target/image/patroni.tar
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=${1:-localhost/patroni-rs:$version}
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
x86_64-*) arch=amd64 ;;
aarch64-*) arch=arm64 ;;
*) echo "image: no name for the architecture of $target" >&2 && exit 1 ;;
esac
dir=${CARGO_TARGET_DIR:-target}

RUSTFLAGS="-C target-feature=+crt-static" "${CARGO:-cargo}" build --release --locked --target "$target" \
    --target-dir "$dir/static" --bin patroni --bin postgres-keeper --bin patronictl
built=$dir/static/$target/release

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root oci=$work/oci
mkdir -p "$root/usr/local/bin" "$oci/blobs/sha256"
for program in patroni postgres-keeper patronictl; do
    install -m 0755 "$built/$program" "$root/usr/local/bin/$program"
done

pack() { # directory: its content as a tar, the same for the same files
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode='u=rwX,go=rX' -C "$1" -cf - "$2"
}
blob() { # file: into the blobs, prints its digest
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    mv "$1" "$oci/blobs/sha256/$digest"
    echo "$digest"
}
size() { wc -c <"$oci/blobs/sha256/$1" | tr -d ' '; }

pack "$root" usr >"$work/layer.tar"
diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
gzip -n -9 "$work/layer.tar"
layer=$(blob "$work/layer.tar.gz")
printf '{"architecture":"%s","os":"linux","config":{"User":"999:999","Env":["PATH=/usr/local/bin"],"Entrypoint":["/usr/local/bin/patroni"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"deploy/image.sh"}]}' \
    "$arch" "$diff_id" >"$work/config.json"
config=$(blob "$work/config.json")
media=application/vnd.oci.image
printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"%s.layer.v1.tar+gzip","digest":"sha256:%s","size":%s}]}' \
    "$media" "$media" "$config" "$(size "$config")" "$media" "$layer" "$(size "$layer")" >"$work/manifest.json"
manifest=$(blob "$work/manifest.json")
printf '{"schemaVersion":2,"mediaType":"%s.index.v1+json","manifests":[{"mediaType":"%s.manifest.v1+json","digest":"sha256:%s","size":%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$media" "$media" "$manifest" "$(size "$manifest")" "$arch" "$name" "${name##*:}" >"$oci/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' >"$oci/oci-layout"

mkdir -p "$dir/image"
pack "$oci" . >"$dir/image/.patroni.tar.new"
mv "$dir/image/.patroni.tar.new" "$dir/image/patroni.tar"
bytes=$(cat "$root"/usr/local/bin/* | wc -c)
echo "$dir/image/patroni.tar: $name, $((bytes / 1000000)).$((bytes / 100000 % 10)) MB of programs"
