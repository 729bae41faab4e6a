#!/usr/bin/env bash
# Runs a command beside a real API server: KUBE_API_URL, KUBE_API_TOKEN, KUBE_API_CA and KUBECONFIG lead to it.
#
#   with_api.sh [--oldest] COMMAND...
#
# Starts etcd and API server on loopback (building them if need be) and ends them afterwards. Where that cannot be done
# it says "skipped: why", does not run the command, and succeeds. A server named by KUBE_API_URL already is used as it is.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

oldest=
if [ "${1:-}" = --oldest ]; then oldest=$1 && shift; fi
[ -z "${KUBE_API_URL:-}" ] || exec "$@"

# One directory per tree and user: what a killed run left behind is found and ended by the next.
PATRONI_KUBE_DIR=/tmp/patroni-kube-api-$(id -u)-$(echo "$here" | sha256sum | cut -c1-8)
export PATRONI_KUBE_DIR
trap '"$here/cluster.sh" down' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
code=0
"$here/cluster.sh" up --api-only $oldest || code=$?
case $code in
0) ;;
77) exit 0 ;;
*) exit "$code" ;;
esac
set -a
# shellcheck source=/dev/null
source "$PATRONI_KUBE_DIR/env"
set +a
"$@"
