"""Who may import whom (docs/architecture.md), and that a device needs no server package.

Imports are read from the source, so those inside functions count too.
"""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edge_runtime

ROOT = Path(__file__).parents[1]
ROOMS = ("edge_runtime", "model_export", "device_profiles", "broker_server")
MAY_IMPORT = {
    "edge_runtime": set(),
    "model_export": {"edge_runtime"},
    "device_profiles": {"edge_runtime"},
    "broker_server": {"edge_runtime", "model_export", "device_profiles"},
}
BASE_INSTALL = {"numpy", "msgpack", "paho", "psutil"}
OPTIONAL = {
    "edge_runtime/executorch_trainer.py": {"torch", "executorch"},
    "edge_runtime/compression.py": {"zstandard"},
}
"""What a device does without where it is not installed."""
DOORS = ("edge_runtime/cli.py", "edge_runtime/bench.py")
"""Where the device's commands hand over to what the server extra brings, if it is installed."""

SERVER_ONLY = ("torch", "executorch", "ortools", "sklearn", "amqtt", "pydantic", "rich", "typer")
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def sources(room: str) -> list[str]:
    """A room's files, from the root of the repository."""
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / room).rglob("*.py"))]


def imports(file: str) -> Iterator[str]:
    """The top-level names of all that a file imports by a statement."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield node.module.partition(".")[0]


def names(file: str) -> set[str]:
    """All identifiers and attributes in a file."""
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
    found = {node.id for node in nodes if isinstance(node, ast.Name)}
    return found | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    assert len(sources(room)) > 3
    for file in sources(room):
        entered = set(imports(file)) & set(ROOMS)
        assert entered <= MAY_IMPORT[room] | {room}, file


def test_a_devices_room_needs_the_base_install_and_nothing_else() -> None:
    for file in sources("edge_runtime"):
        needed = set(imports(file)) - set(sys.stdlib_module_names) - {"edge_runtime"}
        allowed = BASE_INSTALL | OPTIONAL.get(file, set())
        assert needed <= allowed, file


def test_zstandard_is_imported_by_one_file_and_only_once_it_is_used() -> None:
    for room in ROOMS:
        users = [file for file in sources(room) if "zstandard" in imports(file)]
        assert users == (["edge_runtime/compression.py"] if room == "edge_runtime" else []), room
    tree = ast.parse((ROOT / "edge_runtime/compression.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside:
            assert "zstandard" not in ast.unparse(node)


def test_only_commands_are_doors_from_the_device_to_the_server() -> None:
    for file in sources("edge_runtime"):
        dynamic = names(file) & {"import_module", "__import__", "exec", "eval"}
        assert dynamic == ({"import_module"} if file in DOORS else set()), file


def test_a_device_can_be_imported_without_the_server_extra() -> None:
    end = without_server_extra(
        "import edge_runtime.cli, edge_runtime.agent, edge_runtime.transport.mqtt\n"
        "import edge_runtime.local_training, edge_runtime.telemetry, edge_runtime.trainer\n"
    )
    assert (end.returncode, end.stderr) == (0, "")


def test_the_native_trainer_needs_neither_torch_nor_executorch() -> None:
    end = without_server_extra(
        "from edge_runtime.trainers import make_trainer\nprint(make_trainer('native').name)"
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, "native\n", "")


def test_a_devices_modules_load_no_torch_even_where_it_is_installed() -> None:
    modules = [file[:-3].replace("/", ".") for file in sources("edge_runtime")]
    kept = [m for m in modules if not m.endswith(("__main__", "executorch_trainer"))]
    code = f"import sys, {', '.join(kept)}\nprint(*sorted(set(sys.modules) & set({SERVER_ONLY!r})))"
    end = python(code)
    assert (end.returncode, end.stdout.split()) == (0, [])


def test_the_device_command_works_without_the_server_extra() -> None:
    end = without_server_extra(
        "from edge_runtime.cli import main\nsys.exit(main(['device', '--help']))"
    )
    assert (end.returncode, end.stderr) == (0, "")
    assert "--broker HOST:PORT" in end.stdout
    alone = without_server_extra("from edge_runtime.cli import main\nsys.exit(main([]))")
    assert alone.returncode == 0
    assert "flexmoe device" in alone.stdout
    assert "flexmoe[server]" in alone.stdout


@pytest.mark.parametrize("missing", [SERVER_ONLY, ("torch",)], ids=["all", "torch alone"])
def test_a_servers_command_names_the_extra_that_is_missing(missing: tuple[str, ...]) -> None:
    """Many machines have typer anyway, so the command line alone may be there."""
    run = "sys.exit(main(['run', 'experiments/quickstart.toml']))"
    end = without(missing, f"from edge_runtime.cli import main\n{run}")
    (line,) = end.stderr.splitlines()
    assert line.startswith("flexmoe: error: ")
    assert "pip install 'flexmoe[server]'" in line
    assert end.returncode == 2


def without_server_extra(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where nothing of the server extra can be imported."""
    return without(SERVER_ONLY, code)


def without(packages: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    return python(f"BLOCKED = {packages!r}\n{BLOCKER}\n{code}")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_version_is_that_of_the_package() -> None:
    assert edge_runtime.__version__ == importlib.metadata.version("flexmoe")
