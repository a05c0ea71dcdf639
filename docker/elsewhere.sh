#!/usr/bin/env bash
# Run the tests on another distribution, and so with its PostgreSQL, Python and psql, below a root that debootstrap makes.
#
#   docker/elsewhere.sh SUITE [COMMAND...]   COMMAND (make test) in a clone of what is committed; the root is kept for the next time
#
# Suites of Debian: trixie (PostgreSQL 17), sid (the newest); of Ubuntu: jammy (14), noble (16).
#
# Needs root, debootstrap, and the archive's key, which a Debian has of Debian's only: KEYRING=FILE docker/elsewhere.sh noble, with
# ubuntu-archive-keyring.gpg of Debian 13's package ubuntu-keyring; MIRROR=URL for another archive than debootstrap's. Roots lie in
# /var/lib/pg_gpt2/roots (PG_GPT2_ROOTS), half a gigabyte to two each; nothing stays mounted, so one may be deleted.
set -euo pipefail
umask 022

die() {
    printf 'elsewhere: %s\n' "$*" >&2
    exit 1
}

suite=${1:-}
case $suite in # it becomes a path, and what lies there may be removed
'' | [!a-z]* | *[!a-z0-9]*) die "no suite: '$suite'; $(sed -n 's/^# \(Suites of .*\)/\1/p' "$0")" ;;
esac
shift
[ $# -gt 0 ] || set -- make test
[ "$(id -u)" = 0 ] || die "needs root"
command -v debootstrap >/dev/null || die "needs debootstrap: apt-get install debootstrap"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
roots=${PG_GPT2_ROOTS:-/var/lib/pg_gpt2/roots}
root=$roots/$suite

# What is mounted, started or allocated from here on is seen by this script's processes only, and ends with them.
if [ "${PG_GPT2_APART:-}" != "$$" ]; then
    exec unshare --mount --ipc --pid --fork --kill-child --mount-proc \
        bash -c 'export PG_GPT2_APART=$$; exec "$@"' bash "$0" "$suite" "$@"
fi

mkdir -p "$roots"
exec 9>"$roots/$suite.lock"
flock --nonblock 9 || die "somebody else works in $root"
if [ ! -e "$root/complete" ]; then
    case $suite in
    # Each suite's script of debootstrap is a link to one of two, and an older debootstrap has no link for a younger suite.
    bookworm | trixie | forky | sid) script=sid components=main pockets=() ;;
    *) script=gutsy components=main,universe pockets=(updates security) ;; # of Ubuntu: pgTAP, PostgreSQL's last minor
    esac
    rm -rf --one-file-system "$root"
    mkdir "$root"
    debootstrap --force-check-gpg ${KEYRING:+--keyring="$KEYRING"} --variant=minbase --include=ca-certificates --components="$components" \
        "$suite" "$root" "${MIRROR:-}" "$script" >&2
    for pocket in "${pockets[@]}"; do
        sed "s/ $suite / $suite-$pocket /;q" "$root/etc/apt/sources.list" >"$root/etc/apt/sources.list.d/$pocket.list"
    done
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/elsewhere"
    touch "$root/complete"
fi
cp -L --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
if [ -n "${SSL_CERT_FILE:-}" ]; then
    cp -L --remove-destination "$SSL_CERT_FILE" "$root/etc/ssl/certs/ca-certificates.crt"
fi
# Environments and clusters of an earlier run are used again.
clone=$root/pg_gpt2
[ -d "$clone/.git" ] || git clone --quiet "$checkout" "$clone"
git -C "$clone" fetch --quiet "$checkout" HEAD
git -C "$clone" reset --quiet --hard FETCH_HEAD

mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
# The lists that debootstrap leaves lack Ubuntu's pockets.
provided='[ -x /usr/bin/make ] || { apt-get -q update && docker/provision.sh test; } >/dev/null'
exec env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
    ${SSL_CERT_FILE:+PIP_CERT=/etc/ssl/certs/ca-certificates.crt} \
    chroot "$root" bash -c "cd /pg_gpt2 && { $provided; } && \"\$@\"" bash "$@"
