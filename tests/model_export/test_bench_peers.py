"""The benchmark with everything beside our trainer; and the programs that boards measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from broker_server.cli import main
from edge_runtime import bench, bench_step, turns
from edge_runtime.errors import ConfigError, ProgramError
from edge_runtime.layout import ROLES, ProgramLayout
from edge_runtime.native import _native
from edge_runtime.program_file import unseal
from model_export import bench as peers

QUICK = turns.Pace(turns=2, turn_s=0.001)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of these tests stay with them; and a glance at a product is enough."""
    cache = tmp_path_factory.getbasetemp() / "bench-cache"
    monkeypatch.setenv("FLEXMOE_CACHE", str(cache))
    monkeypatch.setattr(bench, "PEAK_SIZES", (8,))
    monkeypatch.setattr(bench, "BUNDLED", cache / "none")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_all_variants_take_turns_and_leave_nothing_behind(
    scratch: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = bench.measure("digits", 1, 2, pace=QUICK)
    assert list(scratch.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    times = ("ours_ms", "eager_ms", "stock_ms", "stock_passes_ms")
    assert all(result[name] > 0 for name in times)
    assert {key for _, key, _ in bench.COLUMNS} <= result.keys()
    assert result["ours_over_eager"] == result["ours_ms"] / result["eager_ms"]
    assert result["stock_over_ours"] == result["stock_ms"] / result["ours_ms"]
    rate = result["gflop"] / (result["ours_ms"] / 1000)
    assert result["ours_share_of_peak"] == pytest.approx(rate / result["gemm_peak_gflops"])
    head, row, _ = bench.table({"digits": result}).splitlines()
    assert len(row.split()) == 1 + len(bench.COLUMNS) and "eager of peak" in head


def test_with_more_threads_pytorch_takes_as_many_and_the_stock_runtime_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {}

    def medians_s(variants: dict[str, list[str]], threads: int, pace: turns.Pace) -> object:
        asked.update(variants, threads=threads)
        return dict.fromkeys(variants, 0.002)

    monkeypatch.setattr(turns, "medians_s", medians_s)
    result = bench.measure("digits", 1, 2, threads=2, pace=QUICK)
    assert asked.keys() == {"ours", "eager", "threads"} and asked["threads"] == 2
    assert asked["ours"][-1] == asked["eager"][-1] == "2"
    assert not [name for name in result if "stock" in name]
    before = torch.get_num_threads()
    try:
        peers.eager_step("digits", 1, 2, threads=2)
        assert torch.get_num_threads() == 2
        peers.product(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_step_counts_its_products() -> None:
    """Of digits: six layers, forward and back; the first needs no gradient of its input."""
    width, hidden, batch = 64, 128, 2
    layers = [(64, width), (width, 8), (width, hidden), (hidden, 10)]
    one = [2 * batch * a * b for a, b in layers]
    counted = peers.step_flops("digits", 1, batch)  # with the mixture, which is small
    assert counted == pytest.approx(3 * sum(one) - one[0], rel=0.001)


def test_programs_are_written_for_boards(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "folder"
    arguments = ["programs", str(folder), "--model", "digits", "--k", "1", "--batch", "2"]
    assert main(arguments) == 0
    assert capfd.readouterr() == (f"the programs are in {folder}\n", "")
    paths = [bench_step.program_path(folder, "digits", 1, 2, role) for role in ROLES]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path, role in zip(paths, ROLES, strict=True):
        text = _native.describe(unseal(path.read_bytes()))["layout"]
        layout = ProgramLayout.from_json(text)
        assert (layout.role, layout.kernels, layout.k, layout.batch) == (role, "native", 1, 2)
    monkeypatch.setattr(bench, "_peers", lambda: None)
    assert bench.measure("digits", 1, 2, folder=folder, pace=QUICK)["ours_ms"] > 0


def test_programs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    small = ["--model", "digits", "--k", "1", "--batch", "2"]
    with pytest.raises(ConfigError, match=r"file/sub: cannot be written: "):
        main(["programs", str(tmp_path / "file" / "sub"), *small])
    with pytest.raises(ConfigError, match="--model gpt: expected one of digits, har, cifar"):
        main(["programs", str(tmp_path), "--model", "gpt"])
    with pytest.raises(ProgramError, match="k=9 of 8 experts"):
        main(["programs", str(tmp_path), "--k", "9"])
    with pytest.raises(ConfigError, match=r"see flexmoe programs --help"):
        main(["programs", str(tmp_path), "--batch", "0"])
