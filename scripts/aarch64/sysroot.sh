#!/usr/bin/env bash
# sysroot.sh DIR: an arm64 Python 3.11, its libraries and its headers in DIR/sysroot.
#
# Debian's own arm64 packages, by apt with a state and a cache of its own: the system's packages
# and architectures stay as they are.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
rm -rf "$dir/apt" "$dir/sysroot"
mkdir -p "$dir/apt/state/lists/partial" "$dir/apt/cache/archives/partial" "$dir/sysroot"
touch "$dir/apt/status"

cat >"$dir/apt/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Dir::State "$dir/apt/state";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt/cache";
CONF
export APT_CONFIG="$dir/apt/apt.conf"

# Headers without what they depend on: the cross compiler brings the C and C++ ones.
run=(python3.11 libstdc++6)
headers=(libpython3.11-dev)
apt-get update -qq
apt-get install -qq -y --download-only "${run[@]}" >/dev/null
(cd "$dir/apt/cache/archives" && apt-get download -qq "${headers[@]}")
for package in "$dir"/apt/cache/archives/*.deb; do
    dpkg-deb --extract "$package" "$dir/sysroot"
done
rm -rf "$dir/apt"
