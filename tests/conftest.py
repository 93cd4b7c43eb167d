"""Fixtures that several packages' tests share: real brokers, and waiting for other threads."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from broker_server.brokers.broker import Broker, open_broker

BROKER_KINDS = ("mosquitto", "amqtt")
EVENTUALLY_S = 15.0

# A loaded machine is slow; that is no failure.
hypothesis.settings.register_profile("flexmoe", deadline=None)
hypothesis.settings.load_profile("flexmoe")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests export and devices keep goes to a temporary folder, unless one is named."""
    with pytest.MonkeyPatch.context() as patch:
        if "FLEXMOE_CACHE" not in os.environ:
            patch.setenv("FLEXMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def require_broker(kind: str) -> None:
    """Skip the test if this machine does not have that broker."""
    if kind == "mosquitto" and not (shutil.which(kind) or Path("/usr/sbin/mosquitto").exists()):
        pytest.skip("mosquitto is not installed")
    if kind == "amqtt" and importlib.util.find_spec("amqtt") is None:
        pytest.skip("amqtt is not installed; pip install 'flexmoe[server]'")


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], bool]:
    """Tells whether a condition becomes true; the limit only bounds how long a failure takes."""

    def wait(condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + EVENTUALLY_S
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    return wait


@pytest.fixture(scope="session")
def running_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Broker]]:
    """Gives the session's broker of a kind, started at its first use."""
    brokers: dict[str, Broker] = {}
    with contextlib.ExitStack() as stack:

        def get(kind: str) -> Broker:
            if kind not in brokers:
                require_broker(kind)
                directory = tmp_path_factory.mktemp(kind)
                brokers[kind] = stack.enter_context(open_broker(kind, None, directory))
            return brokers[kind]

        yield get


@pytest.fixture(params=BROKER_KINDS)
def broker_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of broker that this machine has."""
    kind: str = request.param
    require_broker(kind)
    return kind


@pytest.fixture
def broker(broker_kind: str, running_broker: Callable[[str], Broker]) -> Broker:
    """A running broker, of each kind. Shared by the session: use names of your own on it."""
    return running_broker(broker_kind)


@pytest.fixture
def unique() -> str:
    """A name that no other test uses, for topics, clients and federations."""
    return f"t{uuid.uuid4().hex[:12]}"
