"""What is built and shipped: the extension's dependencies, the libraries beside it, the wheel."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from nanobind.stubgen import StubGen

from edge_runtime.layout import ROLES
from edge_runtime.native import _native
from model_export.cache import ProgramCache
from tests.model_export.eager import BATCH, SPECS, K

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
EXTENSION = Path(_native.__file__)
WHEEL = "-m pip wheel --quiet --no-deps --no-build-isolation . --wheel-dir"
BESIDE = ("libexecutorch.so", "libexecutorch_kernels_optimized.so", "libexecutorch_threadpool.so")


def readelf(option: str) -> str:
    return subprocess.run(
        ["readelf", option, "--wide", EXTENSION], capture_output=True, text=True, check=True
    ).stdout


def test_the_extension_needs_libexecutorch_beside_it_and_the_systems_libraries() -> None:
    dynamic = readelf("--dynamic")
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    system = r"lib(stdc\+\+|m|gcc_s|c|pthread|dl)\.so\.\d+|ld-linux.*"
    assert {name for name in needed if not re.fullmatch(system, name)} == {"libexecutorch.so"}
    assert re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", dynamic) == ["$ORIGIN"]


def test_the_extension_exports_its_module_and_nothing_of_its_own() -> None:
    symbols = re.findall(r" (?:GLOBAL|WEAK|UNIQUE) +DEFAULT +\d+ (\S+)", readelf("--dyn-syms"))
    assert "PyInit__native" in symbols
    assert not [symbol for symbol in symbols if re.match("_ZN?K?7flexmoe", symbol)]
    assert ".symtab" not in readelf("--sections"), "not stripped"
    assert str(ROOT).encode() not in EXTENSION.read_bytes(), "names the folder it was built in"


def test_the_libraries_beside_it_are_those_that_the_server_exports_for() -> None:
    package = find_spec("executorch")
    assert package is not None and package.submodule_search_locations is not None
    theirs = Path(next(iter(package.submodule_search_locations))) / "lib"
    for library in BESIDE:
        assert EXTENSION.with_name(library).read_bytes() == (theirs / library).read_bytes()


def test_one_release_of_executorch_is_named_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = (
        *project["build-system"]["requires"],
        *project["project"]["optional-dependencies"]["server"],
    )
    releases = re.findall(
        r"find_package\(executorch (\S+) EXACT", (ROOT / "CMakeLists.txt").read_text()
    )
    assert len(releases) == 1
    pins = [text for text in requirements if text.startswith("executorch")]
    assert pins == [f"executorch=={releases[0]}"] * 2


def test_make_reads_every_build_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    command = re.findall(r"^BUILD_REQUIREMENTS = \$\$\((.*)\)$", makefile, re.MULTILINE)[0]
    read = subprocess.run(
        ["sh", "-c", command.replace("$$", "$")], cwd=ROOT, capture_output=True, text=True
    )
    assert read.stdout.split() == project["build-system"]["requires"]


BOTH = """
import sys
from pathlib import Path
import numpy as np
from edge_runtime.trainer import Batch, Rates

def step(name):
    if name == "native":
        from edge_runtime.native_trainer import NativeTrainer as Trainer
    else:
        from edge_runtime.executorch_trainer import ExecuTorchTrainer as Trainer
    trainer, rng = Trainer(), np.random.default_rng(0)
    trainer.load(*(Path(path).read_bytes() for path in sys.argv[1:3]))
    held = {
        weight.name: rng.normal(0, 0.1, weight.shape).astype(np.float32)
        for weight in trainer.layout.weights
    }
    trainer.assign([1, 6], held)
    batch = trainer.layout.batch
    x = rng.standard_normal((batch, *trainer.layout.shape)).astype(np.float32)
    y = rng.integers(0, trainer.layout.classes, batch)
    trainer.train_step(Batch(x, y, np.full(batch, 1 / batch, np.float32)), Rates(0.1))
    return trainer.weights()

first, second = step(sys.argv[3]), step(sys.argv[4])
for name in first:
    np.testing.assert_allclose(first[name], second[name], atol=1e-5)
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "libexecutorch" in line}
print(*sorted(path.rpartition("/")[2] for path in loaded))
"""


@pytest.mark.parametrize("order", [("native", "executorch"), ("executorch", "native")])
def test_both_runtimes_share_one_process_and_one_copy_of_each_library(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, order: tuple[str, str]
) -> None:
    cache = ProgramCache(tmp_path_factory.getbasetemp() / "programs")  # the tests' common one
    files = [tmp_path / role for role in ROLES]
    for file in files:
        file.write_bytes(cache.get(SPECS["digits"], K, BATCH["digits"], file.name, "stock").data)
    done = subprocess.run(
        [sys.executable, "-c", BOTH, *map(str, files), *order], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert set(BESIDE) <= set(loaded)
    assert len(loaded) == len(set(loaded))
    assert "Re-registering" not in done.stderr


def signatures(code: str) -> dict[str, str]:
    """What a module's stub names, and the parameters of its functions; `...` for defaults."""
    found: dict[str, str] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                node.args.defaults = [ast.Constant(...) for _ in node.args.defaults]
                for argument in (*node.args.args, *node.args.kwonlyargs):
                    argument.annotation = None
                found[prefix + node.name] = ast.unparse(node.args)

    visit(ast.parse(code).body, "")
    return found


def test_the_stub_names_what_the_extension_has() -> None:
    generator = StubGen(module=_native, quiet=True)
    generator.put(_native)
    stub = (ROOT / "edge_runtime" / "native" / "_native.pyi").read_text()
    assert signatures(stub) == signatures(generator.get())


def test_the_native_runtime_needs_no_torch_and_loads_no_stock_kernels() -> None:
    code = """
import sys
from edge_runtime.native import _native
loaded = {line.split()[-1].rpartition("/")[2] for line in open("/proc/self/maps")}
print(sorted(name for name in loaded if "executorch" in name or "torch" in name))
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "executorch", "pandas"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['libexecutorch.so']", "[]"]


def test_a_wheel_holds_the_four_packages_and_no_sources_of_the_extension(tmp_path: Path) -> None:
    """And the profiles, and the programs for the benchmark, although git ignores those."""
    packages = ("broker_server", "device_profiles", "edge_runtime", "model_export")
    copy = tmp_path / "copy"
    for package in packages:
        skip = shutil.ignore_patterns("__pycache__", "bench_programs")
        shutil.copytree(ROOT / package, copy / package, ignore=skip)
    for file in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / file, copy)
    program = copy / "edge_runtime" / "bench_programs" / "digits-k2-b32-train.pte"
    program.parent.mkdir()
    program.write_bytes(b"program")
    subprocess.run(
        [sys.executable, *WHEEL.split(), str(tmp_path)],
        cwd=copy,
        env={**os.environ, "SKBUILD_WHEEL_CMAKE": "0"},  # Python only: without compiling
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    files = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {file.parts[0] for file in files if ".dist-info" not in str(file)} == set(packages)
    others = [f for f in files if f.parts[0] in packages and f.suffix not in (".py", ".pyi")]
    profiles = [file.relative_to(ROOT) for file in (ROOT / "device_profiles").rglob("*.toml")]
    assert len(profiles) > 15
    assert sorted(others) == sorted([program.relative_to(copy), *profiles])
