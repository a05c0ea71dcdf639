#!/usr/bin/env bash
# Build the image of docker/Dockerfile and run a command that starts it (tests/image/test_image.py), without a container engine or a
# registry: buildah works in a chroot, and tests/image/base, on a Debian that debootstrap makes, stands in for the official image.
#
#   tests/image/run.sh COMMAND...    with PG_GPT2_BUILDAH, the command that knows the image pg_gpt2, and PG_GPT2_IMAGE_STATE, a new directory
#
# COMMAND sees no network but a loopback of its own, so that a container has its port 5432. Needs root. What stands in is kept in
# /var/lib/pg_gpt2/image (PG_GPT2_IMAGES), 0.8 GB, which may be deleted; it is made anew when its sources change. MIRROR and KEYRING
# name another archive of Debian than the one that apt has.
set -euo pipefail
umask 022

suite=bookworm
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
base=$checkout/tests/image/base
state=${PG_GPT2_IMAGES:-/var/lib/pg_gpt2/image}

die() {
    printf 'image: %s\n' "$*" >&2
    exit 1
}
say() { printf 'image: %s (%s s)\n' "$*" "$SECONDS" >&2; }

[ $# -gt 0 ] || die "$(sed -n 's/^#   //p' "$0")"
[ "$(id -u)" = 0 ] || die "needs root"

# What is mounted or started from here on is seen by this script's processes only, and ends with them.
if [ "${PG_GPT2_APART:-}" != "$$" ]; then
    exec unshare --mount --ipc --pid --fork --kill-child --mount-proc \
        bash -c 'export PG_GPT2_APART=$$; exec "$@"' bash "$0" "$@"
fi

mkdir -p "$state"
exec 9>"$state/lock"
flock 9
work=$state/work
rm -rf --one-file-system "$work"
mkdir "$work"
mount -t tmpfs tmpfs "$work" # files of one run, and buildah's own that must not outlive it
trap 'umount --recursive "$work" && rmdir "$work"' EXIT
mkdir "$work/run" "$work/test"
buildah=(buildah --root "$state/storage" --runroot "$work/run" --storage-driver overlay)
"${buildah[@]}" rm --all >/dev/null # of a run that was killed

make_debian() { # the image debian:bookworm-slim
    local root=$work/debian mirror container
    mirror=${MIRROR:-$(apt-get indextargets --format "\$(CODENAME) \$(REPO_URI)" 'Created-By: Packages' | sed -n "/^$suite /h;\${x;s/^$suite //p}")}
    say "debootstrap $suite"
    debootstrap --variant=minbase ${KEYRING:+--keyring="$KEYRING"} "$suite" "$root" ${mirror:+"$mirror"} >&2
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/image"
    printf 'path-exclude /usr/share/%s/*\n' doc man locale >>"$root/etc/dpkg/dpkg.cfg.d/image"
    echo 'Acquire::Languages "none";' >"$root/etc/apt/apt.conf.d/image"
    container=$("${buildah[@]}" from scratch)
    cp -a "$root/." "$("${buildah[@]}" mount "$container")"
    "${buildah[@]}" commit --quiet --rm "$container" docker.io/library/debian:$suite-slim >/dev/null
    rm -rf --one-file-system "$root"
}

build() { # name of the image, its context, other arguments
    "${buildah[@]}" bud --quiet --isolation chroot --pull-never --tag "$1" "${@:3}" "$2" >/dev/null
}

sources=$(cat "$base"/* "$0" | sha256sum | cut -c1-16)
if [ "$(cat "$state/complete" 2>/dev/null)" != "$sources" ]; then
    rm -f "$state/complete"
    "${buildah[@]}" rmi --all --force >/dev/null
    make_debian
    say 'building what stands in for the official image'
    build docker.io/library/postgres:15-$suite "$base"
    echo "$sources" >"$state/complete"
fi

# pip in the image trusts whom pip here trusts.
trusted=()
if [ -n "${SSL_CERT_FILE:-}" ]; then
    cp -L "$SSL_CERT_FILE" "$work/certificates.crt"
    printf '[global]\ncert = /etc/ssl/pip.crt\n' >"$work/pip.conf"
    trusted=(--volume "$work/certificates.crt:/etc/ssl/pip.crt:ro" --volume "$work/pip.conf:/etc/pip.conf:ro")
fi
say "building the image of docker/Dockerfile"
build localhost/pg_gpt2 "$checkout" --file "$checkout/docker/Dockerfile" --build-arg PG_MAJOR=15 --build-arg DEBIAN=$suite "${trusted[@]}"
"${buildah[@]}" rmi --prune >/dev/null # the image of an earlier run
say built
PG_GPT2_BUILDAH=${buildah[*]} PG_GPT2_IMAGE_STATE=$work/test unshare --net "$@" 9>&-
