"""The devices' processes: who came back as another one, and what ended the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from broker_server.memory import killed_by

Restart = Literal["unknown", "killed", "other"]
"""What ended a process: nobody knows; its memory limit; something else."""


class Processes:
    """What is known of all devices' processes, in one life of the server.

    A device counts the kernel's memory kills in its group and tells them in each hello; the host of
    an emulation may know of a kill before that, and then the hello's count says nothing new. Where
    the host `sees_ends` of all processes, it never does.
    """

    def __init__(self, sees_ends: bool = False) -> None:
        self._sees_ends = sees_ends
        # What ended the last process of those who came as another one since they had work; of
        # several ends a kill is what counts.
        self.restarted: dict[str, Restart] = {}
        self._kills: dict[str, int] = {}  # as the last hello told
        self._told: set[str] = set()  # of whose kill the host has told, and no hello since
        self._limits_mib: dict[str, float] = {}

    def given_work(self, clients: Iterable[str]) -> None:
        """From now on what happens to them happens to this work."""
        for client in clients:
            self.restarted.pop(client, None)

    def killed(self, client: str) -> None:
        """The host says that its memory limit has killed this device."""
        self.restarted[client] = "killed"
        self._told.add(client)

    def greeted(self, client: str, kills: int, fresh: bool, there: bool) -> Restart | None:
        """What ended the process before this one; None if it is the same one.

        `kills` as its hello counts them. `fresh`: it knows no session of ours yet; at first it may
        say the same hello twice, so it was `there`.
        """
        before = self._kills.get(client, -1)
        self._kills[client] = kills
        risen = 0 <= before < kills
        if not fresh or (there and not risen):
            return None
        if client in self._told:
            self._told.remove(client)
            return "other"  # that one had its answer; what it may have now it never saw
        restart: Restart = "unknown"  # a count that fell, or is not told, is of another group
        if self._sees_ends or 0 <= before == kills:
            restart = "other"
        elif risen:
            restart = "killed"
        if self.restarted.get(client) != "killed":
            self.restarted[client] = restart
        return restart

    def measured(self, client: str, telemetry: Mapping[str, float]) -> None:
        """What a report says: the memory limit, if there is one."""
        if "memory_limit_mib" in telemetry:
            self._limits_mib[client] = telemetry["memory_limit_mib"]

    def kill_of(self, client: str, k: int) -> str:
        """What to say of a kill at work with `k` experts."""
        return killed_by(self._limits_mib.get(client), k)
