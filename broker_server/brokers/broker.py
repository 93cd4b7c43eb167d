"""Find or start an MQTT broker: mosquitto if it is installed, else the embedded one (amqtt)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from broker_server.brokers.broker_counters import Counted
from device_profiles.fleet.process import ChildProcess, stop_all
from edge_runtime.errors import BrokerError, ConfigError, FleetError
from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES
from edge_runtime.transport.address import parse_address
from edge_runtime.transport.inbox import INBOX_BYTES, INBOX_PACKETS
from edge_runtime.transport.mqtt import MqttLink

CHOICES = ("auto", "mosquitto", "amqtt")
LOOPBACK = "127.0.0.1"
START_S = 15.0
STOP_S = 4.0
START_ATTEMPTS = 3
PACKET_ROOM_BYTES = 1024  # of a packet, beyond its payload: header and topic
_POLL_S = 0.05
NOTHING = Counted(0, 0)
_SYSTEM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port that nobody listens on, on the interface of `host`, at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Broker:
    """A broker that answers: where it is, what it is, and how to end it if it is ours."""

    host: str
    port: int
    kind: str  # "mosquitto", "amqtt" or "external"
    process: ChildProcess | None = None
    greeted: Counted = NOTHING  # what our first connection moved, from the broker's side

    def check(self) -> None:
        """Raise `BrokerError`, with its log's last line, if a broker that we started has ended."""
        if self.ended:
            assert self.process is not None
            raise BrokerError(
                f"the broker ({self.kind}) has ended: {_last_words(self.process)} "
                f"(log: {self.process.log_path}); go on with --resume"
            )

    @property
    def ended(self) -> bool:
        """Whether it is a process of ours that runs no more."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """End the broker if we started it."""
        if self.process is not None:
            stop_all([self.process], STOP_S)

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def open_broker(choice: str, port: int | None, directory: Path, host: str = LOOPBACK) -> Broker:
    """The broker that `choice` names, answering.

    ``auto`` starts mosquitto if there is one, else amqtt; ``mosquitto`` and ``amqtt`` start that
    one; all on `host`, an address of this machine, on `port` or a free one, with config and log in
    `directory`. ``host:port`` uses a broker that runs already. `BrokerError` if that fails,
    `ConfigError` if `choice` is none of these.
    """
    if choice not in CHOICES:
        external_host, external_port = parse_address(choice)
        _greet(external_host, external_port, START_S)
        return Broker(external_host, external_port, "external")
    kind = _pick(choice)
    if port is not None:
        return _start(kind, host, port, directory)
    for _ in range(START_ATTEMPTS - 1):
        # Between finding a free port and using it, another program may have taken it.
        with contextlib.suppress(_PortTaken):
            return _start(kind, host, free_port(host), directory)
    return _start(kind, host, free_port(host), directory)


def serve(host: str, port: int, choice: str) -> None:
    """Run a broker in the foreground until Ctrl-C or SIGTERM; `BrokerError` if it ends before."""
    if choice not in CHOICES:
        raise ConfigError(f"broker kind {choice!r}: expected one of {', '.join(CHOICES)}")
    kind = _pick(choice)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="flexmoe-broker-") as directory,
            _start(kind, host, port, Path(directory)) as broker,
        ):
            print(
                f"{kind} listens on {host}:{port} without passwords, for messages of up to "
                f"{MAX_MESSAGE_BYTES} bytes; Ctrl-C ends it",
                flush=True,
            )
            _watch(broker)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


class _PortTaken(BrokerError):
    """Somebody listens on the port already."""


def _watch(broker: Broker) -> None:
    """Return never; `BrokerError` when the broker's process ends by itself."""
    assert broker.process is not None
    while broker.process.poll() is None:
        time.sleep(_POLL_S)
    raise BrokerError(f"{broker.kind} ended by itself: {_last_words(broker.process)}")


def _pick(choice: str) -> str:
    """``mosquitto`` or ``amqtt``, whichever `choice` means on this machine."""
    has_mosquitto = _find_mosquitto() is not None
    has_amqtt = importlib.util.find_spec("amqtt") is not None
    if choice == "mosquitto" and not has_mosquitto:
        raise BrokerError("mosquitto is not installed; install it, or choose the broker 'amqtt'")
    if choice != "amqtt" and has_mosquitto:
        return "mosquitto"
    if not has_amqtt:
        raise BrokerError(
            "no MQTT broker here; pip install 'flexmoe[server]', or install mosquitto"
        )
    return "amqtt"


def _find_mosquitto() -> str | None:
    # Debian installs it where a user's PATH does not lead.
    path = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_DIRECTORIES])
    return shutil.which("mosquitto", path=path)


def _start(kind: str, host: str, port: int, directory: Path) -> Broker:
    """Start a broker and wait until it answers."""
    _check_free(host, port)
    argv = [sys.executable, "-m", "broker_server.brokers.embedded_broker", host, str(port)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if kind == "mosquitto":
            config = directory / "mosquitto.conf"
            config.write_text(_mosquitto_config(host, port))
            argv = [str(_find_mosquitto()), "-c", str(config)]
    except OSError as error:
        raise BrokerError(
            f"{directory}: the broker's files cannot be written there ({error.strerror}); choose "
            "another directory with --out"
        ) from None
    try:
        process = ChildProcess.start(argv, kind, directory / f"{kind}.log")
    except FleetError as error:
        raise BrokerError(str(error)) from None
    broker = Broker(host, port, kind, process)
    try:
        _await(broker)
    except BaseException:
        broker.stop()
        raise
    return broker


def _await(broker: Broker) -> None:
    assert broker.process is not None
    deadline = time.monotonic() + START_S
    while True:
        if broker.process.poll() is not None:
            _check_free(broker.host, broker.port)
            raise BrokerError(f"{broker.kind} does not start: {_last_words(broker.process)}")
        try:
            broker.greeted = _greet(_reachable(broker.host), broker.port, timeout_s=2.0)
        except BrokerError as error:
            if time.monotonic() > deadline:
                log = broker.process.log_path
                raise BrokerError(f"{broker.kind} does not answer: {error} (log: {log})") from None
            time.sleep(_POLL_S)
        else:
            return


def _greet(host: str, port: int, timeout_s: float) -> Counted:
    """Connect and leave; what the broker got and sent. `BrokerError` if none accepts us there."""
    link = MqttLink(host, port, f"flexmoe-probe-{os.getpid()}", connect_timeout_s=timeout_s)
    link.close()
    return Counted(link.sent_bytes, link.received_bytes)


def _check_free(host: str, port: int) -> None:
    """`BrokerError` if we cannot listen on this port."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As brokers do; it passes over connections that are still closing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _PortTaken(
            f"port {port} on {host} cannot be used ({reason}); choose another with --port (of an "
            f"experiment: broker.port), or use the broker that runs there: {host}:{port}"
        ) from None


def _reachable(host: str) -> str:
    """Where to connect to a broker that listens on `host`."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)


def _last_words(process: ChildProcess) -> str:
    """Why it ended: its last line, if that tells, else how."""
    last, code = process.tail(1), process.poll() or 0
    if last and "warning" not in last.lower():  # a warning is of what went on nevertheless
        return last
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _mosquitto_config(host: str, port: int) -> str:
    lines = [
        f"listener {port} {host}",
        "allow_anonymous true",
        "persistence false",
        "set_tcp_nodelay true",
        "sys_interval 1",
        f"max_packet_size {MAX_MESSAGE_BYTES + PACKET_ROOM_BYTES}",
        # Per client; the default of 1000 messages drops the rest without a word. Also retained
        # chunks pass this queue: of those, a client asks for a window at a time.
        f"max_queued_messages {INBOX_PACKETS}",
        f"max_queued_bytes {4 * INBOX_BYTES}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "connection_messages false",
    ]
    if os.geteuid() == 0:
        # Else root's mosquitto changes its user, and so slips its leash (fleet/leash.py).
        lines.append("user root")
    return "\n".join(lines) + "\n"
