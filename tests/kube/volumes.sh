# Volumes for claims, without a provisioner: directories of each node offered ahead as `local` volumes, bound when the
# first pod that wants one is scheduled. They are open to every user, since data directories here belong to uid 999 and
# nobody would change their owner. A volume keeps its data when its claim goes; `cluster.sh volumes` then empties it.
# shellcheck shell=bash

VOLUMES_PER_NODE=8

volume_yaml() { # node number, volume number
    cat <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: node$1-$2}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  persistentVolumeReclaimPolicy: Retain
  local: {path: $dir/volumes/node$1-$2}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node$1]}]
YAML
}

volumes_make() {
    local n v
    for ((n = 1; n <= nodes; n++)); do
        for ((v = 1; v <= VOLUMES_PER_NODE; v++)); do
            mkdir -p "$dir/volumes/node$n-$v"
            chmod 777 "$dir/volumes/node$n-$v"
            volume_yaml "$n" "$v"
        done
    done >"$dir/volumes.yaml"
    kubectl apply -f "$here/manifests/storage.yaml" -f "$dir/volumes.yaml" >/dev/null
}

volumes_renew() {
    local name
    for name in $(kubectl get pv -o 'jsonpath={range .items[?(@.status.phase=="Released")]}{.metadata.name}{"\n"}{end}'); do
        kubectl delete pv "$name" >/dev/null
        find "$dir/volumes/$name" -mindepth 1 -delete
        chmod 777 "$dir/volumes/$name"
        volume_yaml "${name:4:1}" "${name:6}" | kubectl apply -f - >/dev/null
        echo "$name"
    done
}
