#!/usr/bin/env bash
# Run the tests on another distribution, and so with its PostgreSQL, Python and psql, below a root that debootstrap makes.
#
#   docker/elsewhere.sh SUITE [COMMAND...]   COMMAND (make test) in a clone of what is committed; the root is kept for the next time
#
# Suites of Debian: trixie (PostgreSQL 17), sid (the newest); of Ubuntu: jammy (14), noble (16). Needs root, debootstrap, and the
# archive's key, which a Debian has of Debian's only: KEYRING=FILE MIRROR=URL docker/elsewhere.sh noble. Roots lie in
# /var/lib/pg_gpt2/roots (PG_GPT2_ROOTS), half a gigabyte to two each; nothing stays mounted, so one may simply be deleted.
set -euo pipefail
umask 022

die() {
    printf 'elsewhere: %s\n' "$*" >&2
    exit 1
}

[ $# -gt 0 ] || die "which suite? $(sed -n 's/^# Suites of //p' "$0")"
suite=$1
shift
[ $# -gt 0 ] || set -- make test
[ "$(id -u)" = 0 ] || die "needs root"
command -v debootstrap >/dev/null || die "needs debootstrap: apt-get install debootstrap"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
root=${PG_GPT2_ROOTS:-/var/lib/pg_gpt2/roots}/$suite

if [ ! -e "$root/complete" ]; then
    case $suite in
    bookworm | trixie | forky | sid) components=main ;;
    *) components=main,universe ;; # of Ubuntu, where universe has pgTAP
    esac
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase --include=ca-certificates --components="$components" ${KEYRING:+--keyring="$KEYRING"} \
        "$suite" "$root" ${MIRROR:+"$MIRROR"} >&2
    touch "$root/complete"
fi
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
[ -z "${SSL_CERT_FILE:-}" ] || cp -L "$SSL_CERT_FILE" "$root/etc/ssl/certs/ca-certificates.crt"
# Environments and clusters of an earlier run are used again.
[ -d "$root/work/.git" ] || git clone --quiet "$checkout" "$root/work"
git -C "$root/work" fetch --quiet "$checkout" HEAD
git -C "$root/work" reset --quiet --hard FETCH_HEAD

# Mounts and processes of its own: what is left of either ends with the command.
# shellcheck disable=SC2016 # the inner shell's
exec unshare --mount --pid --fork --kill-child --mount-proc bash -c '
    root=$1
    shift
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t proc proc "$root/proc"
    exec env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
        ${SSL_CERT_FILE:+PIP_CERT=/etc/ssl/certs/ca-certificates.crt} \
        chroot "$root" bash -c "cd /work && { [ -x /usr/bin/make ] || docker/provision.sh test >/dev/null; } && \"\$@\"" bash "$@"
' bash "$root" "$@"
