# Machines of the test cluster: namespaces with a first process (machine.sh), and daemons inside them.
# Machines are found by the command line of that process, so a cluster whose `up` was killed is found too.
# shellcheck shell=bash

# The process 1 of a machine, as this machine numbers it.
machine_pid() { # name
    local pid
    for pid in $(pgrep -f -- "machine.sh $dir $1 "); do
        # Two numbers: the process has one here and is 1 in there. `unshare` beside it has only one.
        if awk '/^NSpid:/ && $NF == 1 && NF > 2 { found = 1 } END { exit !found }' "/proc/$pid/status" 2>/dev/null; then
            echo "$pid"
            return 0
        fi
    done
    return 1
}

machine_ready() { # name
    local pid
    pid=$(machine_pid "$1") && [ -e "/proc/$pid/root/run/ready" ]
}

machine_start() { # name
    local ns=$prefix-$1
    [ -e "/run/netns/$ns" ] || ip netns add "$ns"
    mkdir -p "$dir/logs" "$dir/$1"
    # nsenter and not `ip netns exec`: that one mounts /sys anew, and the kubelet finds no cgroups there.
    setsid nsenter --net="/run/netns/$ns" unshare --mount --pid --uts --fork --mount-proc \
        bash "$here/machine.sh" "$dir" "$1" "$cache/bin" </dev/null >>"$dir/logs/$1.log" 2>&1 8>&- &
    until_ok 20 "machine $1" machine_ready "$1"
}

# Runs a command on a machine.
on() { # name, command...
    local name=$1 pid
    shift
    pid=$(machine_pid "$name") || die "machine $name does not run"
    PATH=$dir/bin:/usr/sbin:/usr/bin:/sbin:/bin nsenter --target "$pid" --mount --pid --net --uts -- "$@"
}

# Starts a program on a machine that outlives this script; its output goes to logs/MACHINE-PROGRAM.log.
daemon() { # name, program, argument...
    local name=$1 program=$2
    # shellcheck disable=SC2016  # expanded by the inner shell
    on "$name" sh -c '
        log=$1 pidfile=$2; shift 2
        setsid "$@" </dev/null >>"$log" 2>&1 8>&- &
        echo $! >"$pidfile"' sh "$dir/logs/$name-$program.log" "/run/$program.pid" "$dir/bin/$program" "${@:3}"
}

# Sends a signal to a daemon. The pid is the machine's own, from the file `daemon` wrote.
signal_daemon() { # name, program, signal
    # shellcheck disable=SC2016
    on "$1" sh -c 'kill -s "$1" "$(cat "$2")"' sh "$3" "/run/$2.pid"
}

# The kernel ends process 1 only after everything else on the machine is gone.
machine_kill() { # name
    local pid
    pid=$(machine_pid "$1") || return 0
    kill -9 "$pid"
    thaw "$1"
    until_ok 20 "the end of machine $1" machine_gone "$1"
}

machine_gone() { # name
    ! machine_pid "$1" >/dev/null
}

# Every machine of this directory, nodes and control plane at once. Their `unshare` ends with them.
machines_end() {
    local pids
    pids=$(pgrep -f -- "machine.sh $dir ") || return 0
    # shellcheck disable=SC2086  # several numbers
    kill -9 $pids 2>/dev/null || true
    if number=$(claimed); then name_everything "$number" && thaw '*'; fi
    until_ok 20 "the end of the machines in $dir" machines_gone
}

machines_gone() {
    ! pgrep -f -- "machine.sh $dir " >/dev/null
}

# A frozen process does not die of a signal.
thaw() { # name
    local state
    while IFS= read -r state; do
        echo THAWED >"$state" 2>/dev/null || true
    done < <(find /sys/fs/cgroup -path "*/$prefix-$1/*" -name freezer.state 2>/dev/null)
    while IFS= read -r state; do
        echo 0 >"$state" 2>/dev/null || true
    done < <(find /sys/fs/cgroup -path "*/$prefix-$1/*" -name cgroup.freeze 2>/dev/null)
}

# One cgroup per node in every hierarchy, the root of all pods of that node.
cgroups_make() { # name
    local top group
    if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
        mkdir -p "/sys/fs/cgroup/$prefix-$1"
        return 0
    fi
    for top in /sys/fs/cgroup/*/; do
        [ -e "$top/cgroup.procs" ] || continue
        group=$top$prefix-$1
        mkdir -p "$group"
        # A new cpuset group is empty, and no process can enter an empty one.
        if [ -e "$group/cpuset.cpus" ] && [ -e "$top/cpuset.cpus" ] && [ -z "$(cat "$group/cpuset.cpus")" ]; then
            cat "$top/cpuset.cpus" >"$group/cpuset.cpus"
            cat "$top/cpuset.mems" >"$group/cpuset.mems"
        fi
    done
}

cgroups_gone() { # name
    find /sys/fs/cgroup -depth -type d -path "*/$prefix-$1*" -exec rmdir {} + 2>/dev/null
    [ -z "$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$prefix-$1" 2>/dev/null)" ]
}
