"""Addresses for the links of one run: a block that nothing on this host uses."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from device_profiles.emulation.iproute import CommandError, ask, run_batch
from edge_runtime.errors import EmulationError

RANGE = ipaddress.IPv4Network("198.18.0.0/15")
"""For tests of network devices (RFC 2544): not used by anybody in earnest."""
BLOCK_PREFIX = 21
MOST_DEVICES = 2 ** (32 - BLOCK_PREFIX) - 3
"""In one block: without its first, its last and the host's address."""
# Routes that cover as much as this do not say that an address is in use.
_DEFAULT_LIKE_PREFIX = 7


def claim_block(run: str, interface: str) -> ipaddress.IPv4Network:
    """Addresses that nothing here uses, routed to `interface` so that no other run takes them.

    The route is what makes it safe: the kernel has only one to the same destination. It goes with
    the interface.
    """
    used = list(_used_networks())
    free = [
        block
        for block in RANGE.subnets(new_prefix=BLOCK_PREFIX)
        if not any(block.overlaps(network) for network in used)
    ]
    random.Random(run).shuffle(free)  # so that two runs seldom try the same one
    for block in free:
        try:
            run_batch("ip", [f"route add {block} dev {interface}"])
        except CommandError as error:
            if "File exists" not in error.reason:
                raise
        else:
            return block
    raise EmulationError(
        f"all addresses of {RANGE} are in use on this host; end other runs, or remove what they "
        "left with `flexmoe profiles clean`"
    )


def _used_networks() -> Iterator[ipaddress.IPv4Network]:
    """What this host's addresses and routes cover, default routes apart."""
    for entry in ask("ip", ["-4", "addr", "show"]):
        for address in entry.get("addr_info", ()):
            yield ipaddress.IPv4Network((address["local"], address["prefixlen"]), strict=False)
    yield from _destinations(ask("ip", ["-4", "route", "show", "table", "all"]))


def _destinations(routes: Iterable[Mapping[str, Any]]) -> Iterator[ipaddress.IPv4Network]:
    for route in routes:
        if route["dst"] != "default":
            network = ipaddress.IPv4Network(route["dst"], strict=False)
            if network.prefixlen > _DEFAULT_LIKE_PREFIX:
                yield network
