"""mosquitto with a config of one's own: as it is by default, but for some lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker_server.brokers import broker as broker_module
from broker_server.brokers.broker import Broker, open_broker
from tests.conftest import require_broker


@contextmanager
def mosquitto(directory: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Iterator[Broker]:
    """A running mosquitto that has these lines in its config; skips where there is none."""
    require_broker("mosquitto")

    def config(host: str, port: int) -> str:
        user = ["user root"] if os.geteuid() == 0 else []
        return "\n".join([f"listener {port} {host}", "allow_anonymous true", *user, *lines, ""])

    monkeypatch.setattr(broker_module, "_mosquitto_config", config)
    with open_broker("mosquitto", None, directory) as broker:
        yield broker
