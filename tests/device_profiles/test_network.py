"""The devices' links, made for real where this process may."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from device_profiles.emulation import addresses, belongings, iproute, network
from device_profiles.emulation.belongings import Belongings, make_run_token
from device_profiles.emulation.iproute import CommandError, ask, run_batch
from device_profiles.emulation.namespace import socket_in
from device_profiles.emulation.network import LinkCounters, Network, can_shape
from edge_runtime.errors import EmulationError
from edge_runtime.transport.shape import Shape

WAIT_S = 15.0
LTE_M = Shape(375e3, 300e3, delay_s=0.05, loss=0.01, seed=3)
FAST = Shape(50e6, 40e6)


# What needs neither root nor a kernel


def test_routes_that_only_lead_away_do_not_use_addresses() -> None:
    routes = [{"dst": dst} for dst in ("default", "128.0.0.0/1", "198.18.0.0/16", "198.19.0.1")]
    found = list(addresses._destinations(routes))
    assert found == [ipaddress.IPv4Network("198.18.0.0/16"), ipaddress.IPv4Network("198.19.0.1")]


def test_no_block_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_used_networks", lambda: [addresses.RANGE])
    with pytest.raises(EmulationError, match="flexmoe profiles clean"):
        addresses.claim_block("run", "lo")


def test_without_iproute2_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulationError, match="install iproute2"):
        run_batch("ip", ["link show"])


def fake_tool(folder: Path, script: str) -> None:
    (folder / "ip").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ip").chmod(0o755)


def test_a_tool_that_answers_nonsense_or_never(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake_tool(tmp_path, "echo 1: lo")
    with pytest.raises(CommandError, match="expected JSON"):
        ask("ip", ["link", "show"])
    fake_tool(tmp_path, "exec sleep 60")
    monkeypatch.setattr(iproute, "TIMEOUT_S", 0.1)
    with pytest.raises(CommandError, match=r"no answer in 0\.1 s"):
        run_batch("ip", ["link show"])


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    abilities = can_shape()
    assert not (abilities.namespaces or abilities.tbf or abilities.netem)
    assert "root" in abilities.why


@pytest.mark.parametrize("count", [0, addresses.MOST_DEVICES + 1])
def test_so_many_devices_have_no_network(count: int, tmp_path: Path) -> None:
    many = {str(index): FAST for index in range(count)}
    with pytest.raises(EmulationError, match=f"not {count}"):
        Network.open("abcdef", many, Belongings("abcdef", tmp_path), netem=False)


# What is made for real


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all belongings are noted in this test."""
    monkeypatch.setattr(belongings, "default_folder", lambda: tmp_path / "notes")
    return tmp_path / "notes"


@pytest.fixture
def mine(notes: Path) -> Iterator[Belongings]:
    """Belongings of a run, removed after the test."""
    if not (abilities := can_shape()).tbf:
        pytest.skip(abilities.why)
    made = Belongings(make_run_token())
    yield made
    assert made.remove_all() == []


@pytest.fixture
def netem(mine: Belongings) -> None:
    if not can_shape().netem:
        pytest.skip("this kernel has no netem")


def connect(made: Network, name: str) -> tuple[socket.socket, socket.socket]:
    """A connection from the device to this host: the device's end, and the host's."""
    with socket.create_server((made.host, 0)) as listener:
        listener.settimeout(WAIT_S)
        device = socket_in(made.namespace(name))
        device.settimeout(WAIT_S)
        device.connect(listener.getsockname())
        host, _ = listener.accept()
        host.settimeout(WAIT_S)
        return device, host


def move(source: socket.socket, sink: socket.socket, count: int) -> int:
    """Send so many bytes; how many arrived."""
    sender = threading.Thread(target=source.sendall, args=(bytes(count),))
    sender.start()
    left = count
    while left > 0 and (data := sink.recv(left)):
        left -= len(data)
    sender.join(WAIT_S)
    return count - left


def links_of(run: str) -> list[str]:
    names = [path.name for path in iproute.NAMESPACES.glob(f"flexmoe-{run}-*")]
    return names + [path.name for path in Path("/sys/class/net").glob(f"fm{run}.*")]


def test_bytes_pass_and_are_counted_by_device_and_direction(mine: Belongings) -> None:
    made = Network.open(mine.run, {"a": FAST, "b": FAST}, mine, netem=False)
    device, host = connect(made, "b")
    with closing(device), closing(host):
        assert device.getpeername()[0] == made.host
        assert move(device, host, 300_000) == 300_000
        assert move(host, device, 100_000) == 100_000
    counters = made.counters()
    assert counters["a"] == LinkCounters(0, 0, 0)
    # Headers are 4.6 % of full packets; acknowledgements go the other way.
    assert 300_000 < counters["b"].up_bytes < 360_000
    assert 100_000 < counters["b"].down_bytes < 160_000


def test_the_kernel_holds_each_device_to_its_own_rates(mine: Belongings) -> None:
    wanted = {"slow": Shape(62e3, 26e3), "lte-m": LTE_M, "Pi 4/ü": Shape(94.4e6, 0)}
    made = Network.open(mine.run, wanted, mine, netem=False)
    for name, shape in wanted.items():
        told = made.rates(name)
        assert told.up_bps == pytest.approx(shape.up_bps, rel=1e-3)
        assert told.down_bps == pytest.approx(shape.down_bps, rel=1e-3)
    assert made.left("slow") is None
    assert made.left("lte-m") == Shape(0, 0, delay_s=0.05, loss=0.01, seed=3)


def test_a_queue_that_is_full_drops_and_says_so(mine: Belongings) -> None:
    made = Network.open(mine.run, {"a": Shape(26e3, 26e3)}, mine, netem=False)
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        device = str(ipaddress.IPv4Address(made.host) + 1)
        for _ in range(200):  # far more than the queue's 24 KiB
            sender.sendto(bytes(1400), (device, 9))
    assert made.counters()["a"].down_drops > 100


def test_interfaces_have_nothing_of_their_own(mine: Belongings) -> None:
    made = Network.open(mine.run, {"a": FAST, "b": Shape(940e6, 940e6)}, mine, netem=False)
    for index, name in enumerate(("a", "b")):
        inside = made.namespace(name).name
        for namespace, interface in ((inside, "eth0"), ("", f"fm{mine.run}.{index}")):
            (link,) = ask("ip", ["-d", "addr", "show", "dev", interface], namespace)
            assert [address["family"] for address in link["addr_info"]] == ["inet"]
            assert link["mtu"] == 1500
            assert (link["gso_max_segs"] == 1) == (name == "a")
            (neighbour,) = ask("ip", ["neigh", "show", "dev", interface], namespace)
            assert neighbour["state"] == ["PERMANENT"]
    assert set(made.counters().values()) == {LinkCounters(0, 0, 0)}


def test_two_runs_have_networks_of_their_own(mine: Belongings) -> None:
    other = Belongings(make_run_token())
    try:
        one = Network.open(mine.run, {"a": FAST}, mine, netem=False)
        two = Network.open(other.run, {"a": FAST}, other, netem=False)
        assert one.host != two.host
        for made in (one, two):
            device, host = connect(made, "a")
            with closing(device), closing(host):
                assert move(device, host, 1000) == 1000
    finally:
        assert other.remove_all() == []
    assert links_of(other.run) == []
    assert len(links_of(mine.run)) == 2


def test_a_race_for_a_block_has_one_winner(
    mine: Belongings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs look before either has claimed, and try the blocks in the same order."""
    Network.open(mine.run, {"a": FAST, "b": FAST}, mine, netem=False)
    used = list(addresses._used_networks())
    monkeypatch.setattr(addresses, "_used_networks", lambda: used)
    one = addresses.claim_block("run", f"fm{mine.run}.0")
    two = addresses.claim_block("run", f"fm{mine.run}.1")
    assert not one.overlaps(two)


def test_nothing_is_left_of_a_network(mine: Belongings) -> None:
    made = Network.open(mine.run, {"a": FAST, "b": FAST}, mine, netem=False)
    assert len(links_of(mine.run)) == 4
    assert mine.remove_all() == []
    assert links_of(mine.run) == []
    routes = ask("ip", ["-4", "route", "show", "table", "all"])
    assert not any(route.get("prefsrc") == made.host for route in routes)


def test_what_was_made_before_a_failure_is_noted(
    mine: Belongings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "qdiscs", lambda *_: ["qdisc add dev eth0 root no-such-kind"])
    with pytest.raises(EmulationError, match="no-such-kind"):
        Network.open(mine.run, {"a": FAST, "b": FAST}, mine, netem=False)
    assert mine.remove_all() == []
    assert links_of(mine.run) == []


def test_the_command_that_failed_is_named(mine: Belongings) -> None:
    with pytest.raises(CommandError, match=r"`ip link set dev no-such up` failed: .*no-such"):
        run_batch("ip", ["link show dev lo", "link set dev no-such up", "link show dev lo"])
    with pytest.raises(EmulationError, match="no-such"):
        ask("tc", ["qdisc", "show", "dev", "no-such"])


def test_what_is_no_namespace_cannot_be_entered(mine: Belongings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path / "file", "Invalid")):
        with pytest.raises(EmulationError, match=reason):
            socket_in(path)


def test_trying_leaves_nothing(mine: Belongings, notes: Path) -> None:
    before = sorted(path.name for path in notes.iterdir())
    abilities = can_shape()
    assert abilities.namespaces and abilities.tbf
    assert bool(abilities.why) == (not abilities.netem)
    assert sorted(path.name for path in notes.iterdir()) == before


def test_packets_that_do_not_arrive_are_noticed(
    mine: Belongings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_neighbour(*arguments: Any) -> Any:
        return address(*arguments[:3], "02:00:00:00:00:09")

    address = network._address
    monkeypatch.setattr(network, "_address", wrong_neighbour)
    monkeypatch.setattr(network, "_TIMEOUT_S", 0.2)
    abilities = can_shape()
    assert not abilities.namespaces
    assert "firewall" in abilities.why


@pytest.mark.usefixtures("netem")
def test_the_kernel_does_delay_and_loss(mine: Belongings) -> None:
    shape = Shape(10e6, 8e6, delay_s=0.05, loss=0.1)
    made = Network.open(mine.run, {"a": shape, "b": FAST}, mine, netem=True)
    assert made.left("a") is None
    told = made.rates("a")
    assert told.up_bps == pytest.approx(10e6, rel=1e-3)
    assert told.down_bps == pytest.approx(8e6, rel=1e-3)
    assert told.delay_s == pytest.approx(0.05, rel=1e-3)
    assert told.loss == pytest.approx(0.1, rel=1e-3)
    assert (made.rates("b").delay_s, made.rates("b").loss) == (0, 0)
    device, host = connect(made, "a")
    with closing(device), closing(host):
        assert move(host, device, 300_000) == 300_000
        assert move(device, host, 300_000) == 300_000
    assert made.counters()["a"].down_drops > 0


@pytest.mark.usefixtures("netem")
def test_bytes_of_a_kernel_link_do_not_arrive_before_the_delay(mine: Belongings) -> None:
    made = Network.open(mine.run, {"a": Shape(0, 0, delay_s=0.1)}, mine, netem=True)
    device, host = connect(made, "a")
    with closing(device), closing(host):
        began = time.monotonic()
        assert move(device, host, 1) == move(host, device, 1) == 1
        assert time.monotonic() - began >= 0.2
    assert made.counters()["a"].down_drops == 0
