#!/usr/bin/env bash
# wheel.sh PYTHON DIR: cross-compiles this repository's wheel for aarch64 Linux into DIR/wheel.
#
# PYTHON has what pyproject.toml asks for to build; DIR holds sysroot/ (sysroot.sh).
set -euo pipefail
python=$1
dir=$(cd "$2" && pwd)
platform=manylinux_2_35_aarch64 # Debian 12 has 2.36, Ubuntu 22.04 has 2.35; checked below
pip=("$python" -m pip --disable-pip-version-check --quiet)

executorch=$(sed -n 's/.*"\(executorch==[^"]*\)".*/\1/p' pyproject.toml | head -n 1)
if [ "$(cat "$dir/executorch/version" 2>/dev/null)" != "$executorch" ]; then
    rm -rf "$dir/executorch"
    "${pip[@]}" download --no-deps --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --dest "$dir/executorch" "$executorch"
    "$python" -m zipfile -e "$dir"/executorch/*.whl "$dir/executorch"
    rm "$dir"/executorch/*.whl
    echo "$executorch" >"$dir/executorch/version"
fi

# The first variable is Python's name for the machine it runs on; the wheel's tag comes from it.
rm -rf "$dir/wheel"
FLEXMOE_AARCH64=$dir \
    _PYTHON_HOST_PLATFORM=linux-aarch64 \
    SETUPTOOLS_EXT_SUFFIX=.cpython-311-aarch64-linux-gnu.so \
    CMAKE_ARGS="-DCMAKE_TOOLCHAIN_FILE=$PWD/scripts/aarch64/toolchain.cmake
        -DPython_INCLUDE_DIR=$dir/sysroot/usr/include/python3.11
        -DEXECUTORCH_ROOT=$dir/executorch/executorch" \
    "${pip[@]}" wheel . --no-deps --no-build-isolation --wheel-dir "$dir/wheel" \
    --config-settings "build-dir=$dir/cmake"
"${pip[@]}" install wheel
"$python" -m wheel tags --remove --platform-tag "$platform" "$dir"/wheel/*.whl >/dev/null

# What the platform's name promises: no newer glibc, nor C++ library than that of its time.
"$python" -m zipfile -e "$dir"/wheel/*.whl "$dir/wheel/unpacked"
needed=$(find "$dir/wheel/unpacked" -name '*.so' -exec aarch64-linux-gnu-readelf --version-info {} + |
    grep -oE 'GLIBC(XX)?_[0-9.]+' | sort -uV)
for newest in GLIBC_2.35 GLIBCXX_3.4.30; do
    family=$(grep "^${newest%_*}_" <<<"$needed")
    last=$(printf '%s\n' "$family" "$newest" | sort -V | tail -n 1)
    [ "$last" = "$newest" ] || { echo "aarch64: needs $last, $platform has $newest" >&2; exit 1; }
done
