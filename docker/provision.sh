#!/usr/bin/env bash
# Make sure that this Debian or Ubuntu has a PostgreSQL server with PL/Python, and print the path of its pg_config.
#
#   docker/provision.sh               the server, PL/Python, and what a virtual environment needs
#   docker/provision.sh test          also make, pgTAP, pg_prove, pgbouncer, pg_cron and Chromium (the largest: 113 MB, 414 MB on disk)
#   docker/provision.sh notebooks     also Graphviz
#   docker/provision.sh distribution  also its NumPy, with OpenBLAS
#   docker/provision.sh image         also buildah and debootstrap
#
# Does nothing when all is there; otherwise says on stderr what it installs, as root or with sudo. A server that has
# PL/Python already is taken as it is: the newest under /usr/lib/postgresql, or the one that $PG_CONFIG names. Without
# one, the distribution's default version is installed (or PG_MAJOR=N), and no cluster is created or started by it.
set -euo pipefail
umask 022 # what root makes here is for everybody

oldest=14
no_main_cluster=/etc/postgresql-common/createcluster.d/pg_gpt2_provision.conf

say() { printf 'provision: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@" >&2
    elif command -v sudo >/dev/null; then
        sudo "$@" >&2
    else
        die "needs root or sudo to run: $*"
    fi
}

pg_configs() { # candidates, best first
    if [ -n "${PG_CONFIG:-}" ]; then
        command -v "$PG_CONFIG" || die "PG_CONFIG names no program: $PG_CONFIG"
    else
        find /usr/lib/postgresql -path '*/bin/pg_config' 2>/dev/null | sort -rV
        command -v pg_config || true
    fi
}

find_server() { # pg_config of the first server that has PL/Python
    local candidate
    for candidate in $(pg_configs); do
        if [ -x "$("$candidate" --bindir)/postgres" ] &&
            [ -e "$("$candidate" --pkglibdir)/plpython3.so" ] &&
            [ -e "$("$candidate" --sharedir)/extension/plpython3u.control" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

major_version() { "$1" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/'; }

major_to_install() { # of a server that lacks only PL/Python, else the distribution's default
    local installed
    if [ -n "${PG_MAJOR:-}" ]; then
        echo "$PG_MAJOR"
        return
    fi
    installed=$(find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null | sort -rV | head -n 1 | cut -d/ -f5)
    if [ -n "$installed" ]; then
        echo "$installed"
        return
    fi
    apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1
}

known_to_apt() { # all of the packages have a version to install
    local package
    for package in "$@"; do
        apt-cache policy "$package" | grep 'Candidate: [0-9]' >/dev/null || return 1
    done
}

apt_updated=
apt_update() {
    [ -z "$apt_updated" ] || return 0
    say "apt-get update"
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update
    apt_updated=1
}

apt_install() {
    known_to_apt "$@" || apt_update
    say "apt-get install $*"
    # A package list that is out of date names files that are gone: then update and try once more.
    apt_get_install "$@" || { apt_update && apt_get_install "$@"; }
}

apt_get_install() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
}

install_server() {
    local major status=0
    known_to_apt postgresql || apt_update
    major=$(major_to_install)
    [ -n "$major" ] || die "found no PostgreSQL server package; install PostgreSQL $oldest or newer"
    # Debian's package would create a cluster on port 5432 and start it. The file is in the way only while we install.
    as_root mkdir -p "$(dirname "$no_main_cluster")"
    as_root sh -c "echo create_main_cluster = false >$no_main_cluster"
    apt_install "postgresql-$major" "postgresql-plpython3-$major" || status=$?
    as_root rm -f "$no_main_cluster"
    as_root rmdir --ignore-fail-on-non-empty "$(dirname "$no_main_cluster")"
    [ "$status" = 0 ] || die "apt-get could not install PostgreSQL $major with PL/Python"
}

if ! pg_config=$(find_server); then
    [ -z "${PG_CONFIG:-}" ] || die "the server that PG_CONFIG=$PG_CONFIG names has no PL/Python (plpython3u)"
    command -v apt-get >/dev/null ||
        die "no PostgreSQL server with PL/Python (plpython3u) found, and no apt-get to install one; set PG_CONFIG"
    install_server
    pg_config=$(find_server) || die "PL/Python is still missing after installation"
fi
major=$(major_version "$pg_config")
[ "$major" -ge "$oldest" ] || die "PostgreSQL $major is too old: $oldest or newer is needed"

missing=()
/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
command -v setpriv >/dev/null && command -v flock >/dev/null || missing+=(util-linux)
if [ "${1:-}" = test ]; then
    command -v make >/dev/null || missing+=(make)
    command -v curl >/dev/null || missing+=(curl) # pages of the documentation use it
    command -v pg_prove >/dev/null || missing+=(libtap-parser-sourcehandler-pgtap-perl)
    [ -e "$("$pg_config" --sharedir)/extension/pgtap.control" ] || missing+=("postgresql-$major-pgtap")
    command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
    command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
    command -v pgpool >/dev/null || [ -x /usr/sbin/pgpool ] || missing+=(pgpool2)
    [ -e "$("$pg_config" --sharedir)/extension/pg_cron.control" ] || missing+=("postgresql-$major-cron")
    if ! command -v chromium >/dev/null; then
        known_to_apt chromium || apt_update
        if known_to_apt chromium; then
            missing+=(chromium)
        else # Ubuntu has it as a snap only
            say "no package of Chromium here, without which tests/server/window fail: snap install chromium"
        fi
    fi
fi
if [ "${1:-}" = notebooks ]; then
    command -v dot >/dev/null || missing+=(graphviz)
fi
if [ "${1:-}" = distribution ]; then
    /usr/bin/python3 -I -c 'import numpy' 2>/dev/null || missing+=(python3-numpy)
    /usr/bin/python3 -I -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null || missing+=(libopenblas0)
fi
if [ "${1:-}" = image ]; then
    command -v buildah >/dev/null || missing+=(buildah)
    [ -x /usr/sbin/debootstrap ] || missing+=(debootstrap)
    command -v ip >/dev/null || [ -x /usr/sbin/ip ] || missing+=(iproute2)
fi
if [ "${#missing[@]}" -gt 0 ]; then
    apt_install "${missing[@]}"
fi
for service in pgbouncer haproxy pgpool2; do # the tests start their own; Debian's packages start one at every boot
    if [[ " ${missing[*]} " == *" $service "* ]]; then
        as_root sh -c "systemctl --quiet disable --now $service 2>/dev/null || service $service stop" || true
    fi
done
echo "$pg_config"
