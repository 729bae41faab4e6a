#!/bin/sh
# Makes sure that the tests find a Postgres and a user it may run as. Does nothing where both are there.
set -eu

have_postgres() {
    [ -n "${PATRONI_DEMO_POSTGRES:-}" ] || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 ||
        command -v postgres >/dev/null 2>&1
}

if [ "$(id -u)" != 0 ]; then
    have_postgres || echo "prepare: no Postgres and not root: install postgresql, else the cluster tests are skipped" >&2
    exit 0
fi
if ! have_postgres && command -v apt-get >/dev/null 2>&1; then
    echo "prepare: installing postgresql"
    # The package would otherwise make and start a cluster of its own.
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold postgresql
fi
if ! id postgres >/dev/null 2>&1; then
    echo "prepare: making the user postgres"
    useradd --system --user-group postgres
fi
