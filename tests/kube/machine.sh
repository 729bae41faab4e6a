#!/usr/bin/env bash
# The first process of one machine of the test cluster, the control plane or a node.
#
#   machine.sh STATE_DIR NAME PROGRAMS_DIR      (started by `machine_start` in machines.sh, in fresh namespaces)
#
# A machine has its own processes, mounts, host name and network, so killing this process ends everything on it at once
# and takes its mounts along, as pulling the plug would. Its /var is a directory below STATE_DIR and survives that, its
# /run is memory and does not. The file systems are otherwise those of the machine it runs on, /sys above all: the
# kubelet needs the cgroups mounted there.
set -euo pipefail
dir=$1 name=$2 programs=$3

mkdir -p "$dir/bin" "$dir/$name/var/"{tmp,lib/kubelet,lib/containerd,log/pods}
ln -sfn /run "$dir/$name/var/run"
# Kept reachable under a path of ours: the two mounts below hide what lies beneath /var and /run.
mount --bind "$programs" "$dir/bin"
mount --bind "$dir/$name/var" /var
mount -t tmpfs tmpfs /run
mount --make-rshared /
hostname "$name"
sysctl_set() { [ ! -e "/proc/sys/$1" ] || echo "$2" >"/proc/sys/$1"; }
sysctl_set net/ipv4/ip_forward 1
sysctl_set net/ipv4/conf/all/route_localnet 1
sysctl_set net/bridge/bridge-nf-call-iptables 1
ip link set lo up
touch /run/ready

# As process 1 it adopts every orphan; bash reaps them.
trap 'exit 0' TERM
while :; do
    sleep infinity &
    wait $! || true
done
