#!/usr/bin/env bash
# python.sh DIR: DIR/venv, whose python runs the one of DIR/sysroot under qemu.
#
# Told with -0 that it is venv/bin/python, it takes that for its own name: it finds pyvenv.cfg, and
# whatever it starts by sys.executable runs under qemu again, without binfmt_misc.
set -euo pipefail
dir=$(cd "$1" && pwd)
rm -rf "$dir/venv"
mkdir -p "$dir/venv/bin" "$dir/venv/lib/python3.11/site-packages"
cat >"$dir/venv/pyvenv.cfg" <<CFG
home = $dir/sysroot/usr/bin
include-system-site-packages = false
CFG
cat >"$dir/venv/bin/python" <<RUN
#!/bin/sh
exec qemu-aarch64-static -L '$dir/sysroot' -0 "\$0" '$dir/sysroot/usr/bin/python3.11' "\$@"
RUN
chmod +x "$dir/venv/bin/python"
