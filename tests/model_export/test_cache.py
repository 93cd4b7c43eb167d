"""Programs on disk: exported once, never half, never wrong; every trouble is one clear line."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime import layout as layout_module
from edge_runtime.errors import ProgramError
from edge_runtime.layout import KERNEL_SETS, ROLES
from model_export import cache as cache_module
from model_export.cache import ProgramCache, default_directory
from model_export.models import ModelSpec
from model_export.program import Program, make_layout
from tests.model_export.eager import BATCH, SPECS, K

SPEC = SPECS["digits"]
Exported = Callable[..., Program]


def get(cache: ProgramCache, role: str = "evaluate") -> Program:
    return cache.get(SPEC, K, BATCH["digits"], role, "stock")


@pytest.fixture
def quick_export(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take no time here: they give what a real export of the same program gave before."""
    ready = {role: exported("digits", role) for role in ROLES}

    def export(
        spec: ModelSpec, k: int, batch: int, role: str, kernels: str, *, balance: float
    ) -> Program:
        assert (spec, k, batch, kernels) == (SPEC, K, BATCH["digits"], "stock")
        return ready[role]

    monkeypatch.setattr(cache_module, "export_program", export)


@pytest.fixture
def filled(tmp_path: Path, quick_export: None) -> Path:
    """A cache folder that holds one program."""
    get(ProgramCache(tmp_path))
    return tmp_path


def entry(folder: Path, suffix: str) -> Path:
    (path,) = folder.glob(f"*{suffix}")
    return path


def test_a_real_export_is_made_once(tmp_path: Path, exported: Exported) -> None:
    first, folder = ProgramCache(tmp_path / "new" / "folder"), tmp_path / "new" / "folder"
    program = first.get(SPEC, 1, 1, "evaluate", "native")
    assert first.get(SPEC, 1, 1, "evaluate", "native") is program and first.exported == 1
    second = ProgramCache(folder)
    assert second.get(SPEC, 1, 1, "evaluate", "native") == program and second.exported == 0
    assert entry(folder, ".pte").read_bytes() == program.data


def test_each_kernel_set_is_an_entry(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = {kernels: exported("digits", "evaluate", kernels) for kernels in KERNEL_SETS}
    asked = []

    def export(
        spec: ModelSpec, k: int, batch: int, role: str, kernels: str, *, balance: float
    ) -> Program:
        asked.append(kernels)
        return ready[kernels]

    monkeypatch.setattr(cache_module, "export_program", export)
    for _ in range(2):
        cache = ProgramCache(tmp_path)
        stock = cache.get(SPEC, K, BATCH["digits"], "evaluate", "stock")
        native = cache.get(SPEC, K, BATCH["digits"], "evaluate", "native")
        assert (stock, native) == (ready["stock"], ready["native"])
    assert asked == ["stock", "native"]


def test_each_coefficient_of_the_balance_term_is_an_entry(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one for all where nothing is balanced: in evaluation, and with one expert."""
    ready, asked = exported("digits", "train"), []

    def export(
        spec: ModelSpec, k: int, batch: int, role: str, kernels: str, *, balance: float
    ) -> Program:
        asked.append((role, k, balance))
        data = f"{role} {k} {balance}".encode()
        return Program(data, make_layout(spec, k, batch, role, kernels), ready.arena_bytes)

    monkeypatch.setattr(cache_module, "export_program", export)
    for _ in range(2):
        cache = ProgramCache(tmp_path)
        for balance in (0.0, 0.01, 0.5):
            for role, k, data in (
                ("train", 2, f"train 2 {balance}"),
                ("evaluate", 2, "evaluate 2 0.0"),
                ("train", 1, "train 1 0.0"),
            ):
                program = cache.get(SPEC, k, 4, role, "native", balance=balance)
                assert program.data == data.encode()
    assert asked == [
        ("train", 2, 0.0),
        ("evaluate", 2, 0.0),
        ("train", 1, 0.0),
        ("train", 2, 0.01),
        ("train", 2, 0.5),
    ]


@pytest.mark.parametrize("file", ["passes/lower.py", "reference.py", "models.py"])
def test_new_code_is_another_entry(
    filled: Path, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of the package counts, those in folders, too."""
    package = Path(cache_module.__file__).parent
    assert package / file in cache_module._SOURCES
    edited = tmp_path / "edited.py"
    edited.write_bytes((package / file).read_bytes() + b"\n# edited\n")
    sources = tuple(edited if s == package / file else s for s in cache_module._SOURCES)
    monkeypatch.setattr(cache_module, "_SOURCES", sources)
    cache = ProgramCache(filled)
    get(cache)
    assert cache.exported == 1


def test_each_role_is_an_entry(filled: Path, exported: Exported) -> None:
    cache = ProgramCache(filled)
    assert get(cache, "train") == exported("digits", "train")
    assert get(cache, "evaluate") == exported("digits", "evaluate")
    assert cache.exported == 1 and len(list(filled.glob("*.pte"))) == 2


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".pte", lambda data: data[:-1]),
        (".pte", lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:]),
        (".pte", lambda data: b""),
        (".json", lambda data: data[: len(data) // 2]),
        (".json", lambda data: b""),
        (".json", lambda data: b"[]"),
        (".json", lambda data: b"{}"),
        (".json", lambda data: b"\xff\xfe"),
        (".json", lambda data: json.dumps({**json.loads(data), "arena_bytes": "much"}).encode()),
        (".json", lambda data: json.dumps({**json.loads(data), "arena_bytes": None}).encode()),
    ],
)
def test_a_damaged_entry_is_exported_again(
    filled: Path, suffix: str, damage: Callable[[bytes], bytes], exported: Exported
) -> None:
    path = entry(filled, suffix)
    path.write_bytes(damage(path.read_bytes()))
    cache = ProgramCache(filled)
    assert get(cache) == exported("digits", "evaluate") and cache.exported == 1
    mended = ProgramCache(filled)
    assert get(mended) == exported("digits", "evaluate") and mended.exported == 0


@pytest.mark.parametrize("suffix", [".pte", ".json"])
def test_half_an_entry_is_exported_again(filled: Path, suffix: str) -> None:
    entry(filled, suffix).unlink()
    cache = ProgramCache(filled)
    get(cache)
    assert cache.exported == 1 and entry(filled, suffix).is_file()


def test_a_new_layout_version_is_another_entry(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program carries its layout: an old one would be refused by every device."""
    monkeypatch.setattr(layout_module, "LAYOUT_VERSION", 1000)
    cache = ProgramCache(filled)
    get(cache)
    assert cache.exported == 1


@pytest.mark.parametrize("package", ["torch", "executorch"])
def test_another_release_of_the_exporter_is_another_entry(
    filled: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_version = cache_module.importlib.metadata.version
    monkeypatch.setattr(
        cache_module.importlib.metadata,
        "version",
        lambda name: "0.0" if name == package else true_version(name),
    )
    cache = ProgramCache(filled)
    get(cache)
    assert cache.exported == 1


@pytest.mark.parametrize("below", ["", "programs/deep"])
def test_a_folder_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, below: str, quick_export: None
) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / below
    with pytest.raises(ProgramError, match="set FLEXMOE_CACHE to a folder") as caught:
        get(ProgramCache(folder))
    assert str(caught.value).startswith(f"cannot write the program cache {folder}: ")
    assert "\n" not in str(caught.value) and "None" not in str(caught.value)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLEXMOE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_directory() == tmp_path / "mine"
    monkeypatch.delenv("FLEXMOE_CACHE")
    assert default_directory() == tmp_path / "xdg" / "flexmoe" / "programs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".cache" / "flexmoe" / "programs"


def test_concurrent_runs_never_see_half_a_program(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each export gives other bytes here, so a file that two of them wrote would be seen."""
    runs, rounds, size = 4, 25, 200_000
    numbers = itertools.count()
    real = exported("digits", "evaluate")

    def export(
        spec: ModelSpec, k: int, batch: int, role: str, kernels: str, *, balance: float
    ) -> Program:
        return Program(next(numbers).to_bytes(4, "little") * size, real.layout, real.arena_bytes)

    monkeypatch.setattr(cache_module, "export_program", export)
    torn: list[bytes] = []
    failures: list[BaseException] = []
    start = threading.Barrier(runs)

    def run(me: int) -> None:
        try:
            start.wait()
            for _ in range(rounds):
                if me == 0:  # damage makes the others export again and again
                    for path in tmp_path.glob("*.json"):
                        path.write_text("{}")
                seen = [get(ProgramCache(tmp_path)).data]
                seen += [path.read_bytes() for path in tmp_path.glob("*.pte")]
                torn.extend(data for data in seen if not data or data != data[:4] * size)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(me,)) for me in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and not torn
    assert next(numbers) > runs, "nobody wrote at the same time"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".pte"]
