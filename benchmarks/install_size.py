"""What does a device's install weigh? The base package, without extras, in a fresh environment.

    python benchmarks/install_size.py [--json]

Builds a wheel of this checkout and installs it. Sizes are of the files' content, with the bytecode
that pip compiles; the total is what the environment's site-packages grew by. Fails over the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_MIB = 110


def pip(python: Path | str, arguments: str, *paths: Path) -> None:
    """Run pip in a Python's environment, or end with what it said."""
    command = [str(python), "-m", "pip", "--quiet", *arguments.split(), *map(str, paths)]
    # Where the Makefile builds: only what has changed since is compiled.
    environment = {**os.environ, "SKBUILD_BUILD_DIR": str(Path(sys.prefix) / "native")}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())


def mebibytes(files: list[Path]) -> float:
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def measure(folder: Path) -> dict[str, float]:
    """MiB of site-packages: of each distribution that our wheel brings, and of all, as `total`."""
    pip(sys.executable, "wheel --no-deps --no-build-isolation . --wheel-dir", folder)
    venv.create(folder / "venv", with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    before = mebibytes([*site.rglob("*")])
    there = {found.name for found in distributions(path=[str(site)])}
    pip(folder / "venv" / "bin" / "python", "install", *folder.glob("*.whl"))
    sizes = {
        found.name: mebibytes([Path(str(file.locate())) for file in found.files or []])
        for found in distributions(path=[str(site)])
        if found.name not in there
    }
    by_size = dict(sorted(sizes.items(), key=lambda item: -item[1]))
    return {**by_size, "total": mebibytes([*site.rglob("*")]) - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = measure(Path(folder))
    if options.json:
        print(json.dumps({f"{name}_mib": round(size, 1) for name, size in sizes.items()}))
    else:
        print(f"{'distribution':14}{'MiB':>8}")
        for name, size in sizes.items():
            print(f"{name:14}{size:8.1f}")
    if sizes["total"] > LIMIT_MIB:
        sys.exit(f"more than {LIMIT_MIB} MiB: what grew?")


if __name__ == "__main__":
    main()
