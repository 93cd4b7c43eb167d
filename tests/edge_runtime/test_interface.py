"""An interface's counters: from a file as the kernel writes it, and from this kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime import interface
from edge_runtime.interface import InterfaceUsage, is_loopback, read_interfaces

ROOT = Path(__file__).parents[2]
HEAD = "Inter-|   Receive    |  Transmit\n face |bytes    packets ...\n"
LO = "    lo: 500 5 0 9 0 0 0 0 500 5 0 9 0 0 0 0\n"
ETH = "  eth0: 1000 10 1 2 0 0 0 3 70 7 0 4 0 0 0 0\n"
WLAN = " wlan0:20000000000 99 0 0 0 0 0 0 8000000000 9 0 1 0 0 0 0\n"


@pytest.mark.parametrize(
    ("lines", "usage"),
    [
        (LO + ETH, InterfaceUsage(up_bytes=70, down_bytes=1000, drops=106)),
        (ETH + LO + WLAN, InterfaceUsage(8_000_000_070, 20_000_001_000, 107)),
        (LO, None),
        ("", None),
        ("  odd: 1 2 3\n", None),
    ],
    ids=["one", "two", "loopback alone", "none", "strange"],
)
def test_the_sum_of_all_but_the_loopback(
    lines: str, usage: InterfaceUsage | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root queues count what the queues below them drop; what is not sent here is no drop.
    queues = [(0xFFFFFFFF, 60), (0x10000, 60), (0xFFFFFFF1, 5), (0xFFFFFFFF, 40)]
    monkeypatch.setattr(interface, "_queues", lambda: iter(queues))
    (tmp_path / "dev").write_text(HEAD + lines)
    assert read_interfaces(tmp_path / "dev") == usage


def test_without_the_file_nothing_is_told(tmp_path: Path) -> None:
    assert read_interfaces(tmp_path / "dev") is None


def test_queues_that_cannot_be_asked_drop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*of: object) -> None:
        raise PermissionError("netlink is not for everybody")

    monkeypatch.setattr(interface.socket, "socket", refuse)
    (tmp_path / "dev").write_text(HEAD + ETH)
    assert read_interfaces(tmp_path / "dev") == InterfaceUsage(70, 1000, 6)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("localhost", True),
        ("::1", True),
        ("198.18.0.1", False),
        ("broker.local", False),
        ("12.7.0.1", False),
    ],
)
def test_what_passes_no_interface(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counters")
def test_this_kernels_queues_are_those_that_tc_shows() -> None:
    """In a namespace of its own: a queue for three packets is sent forty."""
    missing = [tool for tool in ("unshare", "ip", "tc") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'no tool more'}")
    make = (
        "ip link add d0 type veth peer name d1 && ip link set d1 up && "
        "ip addr add 198.18.255.1/24 dev d0 && ip link set d0 up && "
        "ip neigh add 198.18.255.2 lladdr 02:00:00:00:00:02 dev d0 && "
        "tc qdisc add dev d0 root tbf rate 8kbit burst 1600 limit 3000"
    )
    code = """
import json, socket, subprocess
from edge_runtime.interface import read_interfaces

sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(40):
    sender.sendto(bytes(1000), ("198.18.255.2", 9))
shown = subprocess.run(["tc", "-s", "-j", "qdisc"], capture_output=True, check=True).stdout
usage = read_interfaces()
print(json.dumps([usage.drops, usage.up_bytes, sum(q["drops"] for q in json.loads(shown))]))
"""
    run = subprocess.run(
        ["unshare", "-n", "sh", "-c", f'{make} && exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if "Operation not permitted" in run.stderr or "Unknown device type" in run.stderr:
        pytest.skip(f"no namespace with a link here: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    drops, up_bytes, expected = json.loads(run.stdout)
    assert drops == expected > 30
    assert 1000 < up_bytes < 10_000
