#!/bin/sh
# Makes a virtual environment with Patroni 4.1 from PyPI, for the tests in which its members and ours live in one cluster.
#
#   patroni.sh DIRECTORY      prints the directory; where it cannot be made, prints nothing and says why in one line
set -eu
venv=$1

skip() {
    echo "skipped a fleet of Patroni and ours: $1" >&2
    exit 0
}

ready() {
    echo "$venv"
    exit 0
}

[ ! -e "$venv/ready" ] || ready
# The members run as another user than root, who may not enter the home of whoever installed a Python there.
for python in /usr/bin/python3 "$(command -v python3 || true)"; do
    rm -rf "$venv"
    if [ -x "$python" ] && "$python" -m venv "$venv" >/dev/null 2>&1; then break; fi
done
[ -x "$venv/bin/pip" ] || skip "no Python 3 that makes virtual environments (Debian: python3-venv)"
"$venv/bin/pip" install -q --disable-pip-version-check 'patroni[kubernetes]==4.1.*' 'psycopg[binary]' >"$venv/pip.log" 2>&1 ||
    skip "pip cannot install Patroni: $(grep -m 1 '^ERROR' "$venv/pip.log" || echo "see $venv/pip.log")"
: >"$venv/ready"
ready
