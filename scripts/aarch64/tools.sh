#!/usr/bin/env bash
# tools.sh PYTHON: a cross compiler and qemu, installed if they are missing and we may.
set -euo pipefail

stop() {
    echo "aarch64: $1" >&2
    exit 1
}

release=$(. /etc/os-release 2>/dev/null && echo "${ID:-}-${VERSION_ID:-}")
[ "$release" = debian-12 ] ||
    stop "the cross build takes its arm64 Python from Debian 12; this is '$release'"
version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] ||
    stop "the cross build is for Python 3.11, as Debian's arm64 one; $1 is $version (make PYTHON=python3.11)"

packages=()
command -v aarch64-linux-gnu-g++ >/dev/null || packages+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64-static >/dev/null || packages+=(qemu-user-static)
[ "${#packages[@]}" -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || stop "missing: ${packages[*]}; run as root: apt-get install ${packages[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" \
    >/dev/null
