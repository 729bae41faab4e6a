# etcd and API server alone, as plain processes on loopback: what programs that only talk to the API are tested with.
# Needs no root, no namespaces and no packages but openssl.
# shellcheck shell=bash

up_api_only() {
    local started port
    command -v openssl >/dev/null || skip "no openssl to make certificates with"
    "$here/build.sh" etcd kubectl $([ -n "$oldest" ] || echo kube-apiserver)
    if [ -n "$oldest" ]; then "$here/build_oldest.sh"; fi
    lock
    clean
    state_directory
    started=$SECONDS
    port=$(free_port) && etcd=127.0.0.1:$(free_port) && peer=127.0.0.1:$(free_port)
    api_url=https://127.0.0.1:$port
    nodes=0 credentials 127.0.0.1 10.96.0.1
    # shellcheck disable=SC2046  # flags are words
    plain_daemon etcd $(etcd_flags "$etcd" "$peer")
    # The address it would publish is loopback, which no Endpoints object may hold. Nothing makes service accounts here.
    # shellcheck disable=SC2046
    plain_daemon "kube-apiserver$oldest" $(api_server_flags "$etcd" 127.0.0.1 "$port" 127.0.0.1 10.96.0.0/16) \
        --endpoint-reconciler-type none --disable-admission-plugins ServiceAccount
    until_ok 60 "the API server" kubectl get --raw /readyz
    environment >"$dir/env"
    echo "API server up in $((SECONDS - started)) s"
}

plain_daemon() { # program, argument...
    setsid "$cache/bin/$1" "${@:2}" </dev/null >>"$dir/logs/$1.log" 2>&1 8>&- &
}

# Below the range the kernel gives to outgoing connections, so that nobody is handed it in between.
free_port() {
    local port
    for ((;;)); do
        port=$((23000 + RANDOM % 6000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return 0; }
    done
}

# By command line: every flag of theirs that names a file names one of this directory.
api_only_pids() {
    pgrep -f -- "^$cache/bin/(etcd|kube-apiserver[0-9.-]*) .*$dir/(etcd|pki)"
}

api_only_gone() {
    ! api_only_pids >/dev/null
}

api_only_end() {
    local pids
    pids=$(api_only_pids) || return 0
    # shellcheck disable=SC2086  # several numbers
    kill -9 $pids
    until_ok 20 "the end of the API server" api_only_gone
}
