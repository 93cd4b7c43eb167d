"""Finding, starting and stopping brokers, and every way in which that fails."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import paho.mqtt.client as paho
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from broker_server.brokers import broker as broker_module
from broker_server.brokers.broker import Broker, free_port, open_broker, serve
from device_profiles.fleet.process import ChildProcess
from edge_runtime.errors import BrokerError, ConfigError
from edge_runtime.protocol.messages import MAX_MESSAGE_BYTES
from edge_runtime.transport.address import parse_address
from edge_runtime.transport.mqtt import MqttLink

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 15.0
Eventually = Callable[[Callable[[], bool]], bool]


def test_the_largest_message_passes(broker: Broker, unique: str) -> None:
    with closing(MqttLink(broker.host, broker.port, unique)) as link:
        link.subscribe(unique)
        link.publish(unique, bytes(MAX_MESSAGE_BYTES))
        packet = link.receive(WAIT_S)
        assert packet is not None and len(packet.payload) == MAX_MESSAGE_BYTES


def test_a_message_over_the_limit_ends_its_sender_before_it_is_read(
    broker: Broker, unique: str
) -> None:
    topic = unique.encode()
    with closing(MqttLink(broker.host, broker.port, f"{unique}-steady")) as link:
        link.subscribe(unique)
        with socket.create_connection((broker.host, broker.port), WAIT_S) as stranger:
            stranger.sendall(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x00\x00\x02me")
            assert stranger.recv(4) == b"\x20\x02\x00\x00"
            # A PUBLISH of 256 MB, of which nothing follows the topic.
            stranger.sendall(b"\x30\xff\xff\xff\x7f\x00" + bytes([len(topic)]) + topic)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        link.publish(unique, b"others go on")
        packet = link.receive(WAIT_S)
        assert packet is not None and packet.payload == b"others go on"


def test_what_a_slow_client_has_not_read_is_queued_not_dropped(
    broker: Broker, unique: str, eventually: Eventually
) -> None:
    """More than the 1000 messages after which mosquitto, by default, drops in silence."""
    count = 3000
    received: list[bytes] = []
    slow = paho.Client(CallbackAPIVersion.VERSION2, f"{unique}-slow")
    slow.on_message = lambda client, userdata, message: received.append(bytes(message.payload))
    subscribed: list[int] = []
    slow.on_subscribe = lambda client, userdata, mid, *_: subscribed.append(mid)
    slow.connect(broker.host, broker.port)
    assert eventually(lambda: slow.loop(0.01) == 0 and slow.is_connected())
    slow.subscribe(unique, qos=1)
    assert eventually(lambda: slow.loop(0.01) == 0 and bool(subscribed))
    with closing(MqttLink(broker.host, broker.port, unique)) as sender:
        for number in range(count):
            sender.publish(unique, number.to_bytes(2, "big"))
        assert sender.flush(WAIT_S)
    slow.loop_start()
    eventually(lambda: len(received) == count)
    slow.disconnect()
    slow.loop_stop()
    assert received == [number.to_bytes(2, "big") for number in range(count)]


def test_it_starts_on_loopback_and_stops(
    broker_kind: str, tmp_path: Path, eventually: Eventually
) -> None:
    with open_broker(broker_kind, None, tmp_path / "broker") as broker:
        assert (broker.host, broker.kind) == ("127.0.0.1", broker_kind)
        assert broker.process is not None
        process = psutil.Process(broker.process.pid)
        listening = [c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening == [("127.0.0.1", broker.port)]
        with closing(MqttLink(broker.host, broker.port, "still here")) as link:
            broker.stop()
            assert eventually(lambda: not link.connected)
        assert not process.is_running()
    with pytest.raises(BrokerError):
        MqttLink(broker.host, broker.port, "device")


def test_a_newcomer_gets_nothing_that_others_subscribed_to(broker: Broker, unique: str) -> None:
    with (
        closing(MqttLink(broker.host, broker.port, f"{unique}-1")) as listener,
        closing(MqttLink(broker.host, broker.port, f"{unique}-2")) as sender,
    ):
        listener.listen([f"{unique}/1"])
        sender.publish(f"{unique}/1", bytes(5000), retain=True)
        assert sender.flush(WAIT_S) and listener.receive(WAIT_S)
        with closing(MqttLink(broker.host, broker.port, f"{unique}-3")) as newcomer:
            newcomer.subscribe(f"{unique}/2")
            newcomer.publish(f"{unique}/2", b"through")
            packet = newcomer.receive(WAIT_S)
            assert packet is not None and packet.payload == b"through"
            assert newcomer.received_bytes < 100


def test_the_end_of_a_device_that_takes_nothing_is_noticed(broker: Broker, unique: str) -> None:
    """It asked for retained messages and was cut off before it acknowledged the first one."""
    topics = [f"{unique}/{i}" for i in range(4)]
    gone = f"{unique}/gone".encode()
    with closing(MqttLink(broker.host, broker.port, f"{unique}-watcher")) as watcher:
        for topic in topics:
            watcher.publish(topic, bytes(1000), retain=True)
        assert watcher.flush(WAIT_S)
        watcher.subscribe(gone.decode())
        with socket.create_connection((broker.host, broker.port), WAIT_S) as device:
            name = unique.encode()
            body = b"\x00\x04MQTT\x04\x06\x00\x00"  # a clean session with a last will
            body += b"".join(len(text).to_bytes(2, "big") + text for text in (name, gone, b"!"))
            device.sendall(b"\x10" + bytes([len(body)]) + body)
            assert device.recv(4) == b"\x20\x02\x00\x00"
            wanted = [len(topic).to_bytes(2, "big") + topic.encode() + b"\x01" for topic in topics]
            body = b"\x00\x07" + b"".join(wanted)
            device.sendall(b"\x82" + bytes([len(body)]) + body)
            assert device.recv(4)  # the answer, or the first message
        packet = watcher.receive(WAIT_S)
        assert packet is not None and (packet.topic, packet.payload) == (gone.decode(), b"!")


def test_its_log_stays_quiet(broker_kind: str, tmp_path: Path) -> None:
    with open_broker(broker_kind, None, tmp_path) as broker:
        with closing(MqttLink(broker.host, broker.port, "device")) as link:
            link.subscribe("t")
            for _ in range(500):
                link.publish("t", bytes(100))
            for _ in range(500):
                assert link.receive(WAIT_S)
        assert broker.process is not None
        # mosquitto warns of being run as root.
        assert len(broker.process.tail(100).splitlines()) <= 2


def test_auto_prefers_mosquitto_then_amqtt(
    running_broker: Callable[[str], Broker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_broker("amqtt"), running_broker("mosquitto")  # or skip
    with open_broker("auto", None, tmp_path) as broker:
        assert broker.kind == "mosquitto"
    monkeypatch.setattr(broker_module, "_find_mosquitto", lambda: None)
    with open_broker("auto", None, tmp_path) as broker:
        assert broker.kind == "amqtt"


def test_mosquitto_is_found_beyond_the_path(
    running_broker: Callable[[str], Broker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_broker("mosquitto")  # or skip
    found = broker_module._find_mosquitto()
    assert found is not None
    monkeypatch.setattr(broker_module, "_SYSTEM_DIRECTORIES", (str(Path(found).parent),))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert broker_module._find_mosquitto() == found
    monkeypatch.setattr(broker_module, "_SYSTEM_DIRECTORIES", ())
    assert broker_module._find_mosquitto() is None


def test_without_any_broker_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "_find_mosquitto", lambda: None)
    with pytest.raises(BrokerError, match="mosquitto is not installed"):
        open_broker("mosquitto", None, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for choice in ("auto", "amqtt"):
        with pytest.raises(BrokerError, match=r"pip install 'flexmoe\[server\]'"):
            open_broker(choice, None, tmp_path)


def test_a_port_in_use_is_named(broker_kind: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} .*in use"):
            open_broker(broker_kind, port, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_port_of_our_own_choice_is_tried_again(
    broker_kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], good])
        monkeypatch.setattr(broker_module, "free_port", lambda host: next(ports))
        with open_broker(broker_kind, None, tmp_path) as broker:
            assert broker.port == good


def test_a_broker_that_does_not_start_says_why(
    running_broker: Callable[[str], Broker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_broker("mosquitto")  # or skip
    monkeypatch.setattr(broker_module, "_mosquitto_config", lambda host, port: "nonsense yes\n")
    before = set(psutil.Process().children())
    with pytest.raises(BrokerError, match=r"mosquitto does not start: .*mosquitto\.conf"):
        open_broker("mosquitto", None, tmp_path)
    assert set(psutil.Process().children()) == before


def test_a_running_broker_is_used_and_left_alone(broker: Broker, tmp_path: Path) -> None:
    with open_broker(f"{broker.host}:{broker.port}", None, tmp_path) as external:
        assert (external.host, external.port) == (broker.host, broker.port)
        assert (external.kind, external.process) == ("external", None)
    MqttLink(broker.host, broker.port, "after").close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(BrokerError, match="no MQTT broker answers"):
        open_broker(f"127.0.0.1:{free_port()}", None, tmp_path)


SERVE = """
import sys
from broker_server.brokers.broker import serve
serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("host", ["0.0.0.0", "::1"])
def test_serve_runs_until_it_is_told_to_stop(
    broker_kind: str, host: str, number: signal.Signals
) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    port = free_port()
    argv = [sys.executable, "-c", SERVE, host, str(port), broker_kind]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"{broker_kind} listens on {host}:{port} " in line
        MqttLink("127.0.0.1" if host == "0.0.0.0" else host, port, "device").close()
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=WAIT_S)
        assert (process.returncode, rest, errors) == (0, "", "")
        assert not child.is_running()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_server_leaves_no_broker(broker_kind: str, eventually: Eventually) -> None:
    """Also as root, where mosquitto would change its user and slip the leash."""
    argv = [sys.executable, "-c", SERVE, "127.0.0.1", str(free_port()), broker_kind]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        (child,) = psutil.Process(process.pid).children()
        process.kill()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_mosquitto_needs_no_name_for_its_user(
    running_broker: Callable[[str], Broker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user of a container may have no entry in passwd; $USER may say anything."""
    running_broker("mosquitto")  # or skip
    monkeypatch.setenv("USER", "somebody-else")
    with open_broker("mosquitto", None, tmp_path):
        lines = (tmp_path / "mosquitto.conf").read_text().splitlines()
    users = [line for line in lines if line.startswith("user ")]
    assert users == (["user root"] if os.geteuid() == 0 else [])
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4_200_042)
    monkeypatch.setattr(os, "getuid", lambda: 4_200_042)
    assert "user " not in broker_module._mosquitto_config("127.0.0.1", 1883)


def test_serve_refuses_what_it_cannot_run() -> None:
    with pytest.raises(ConfigError, match="expected one of auto, mosquitto, amqtt"):
        serve("127.0.0.1", free_port(), "127.0.0.1:1883")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port}"):
            serve("127.0.0.1", port, "auto")
    with pytest.raises(BrokerError, match=r"192\.0\.2\.1 cannot be used"):
        serve("192.0.2.1", free_port(), "auto")  # an address that is never ours (RFC 5737)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_serve_reports_a_broker_that_dies(
    broker_kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = broker_module._watch

    def kill_then_watch(broker: Broker) -> None:
        assert broker.process is not None
        os.kill(broker.process.pid, signal.SIGKILL)
        real(broker)

    monkeypatch.setattr(broker_module, "_watch", kill_then_watch)
    with pytest.raises(BrokerError, match=f"{broker_kind} ended by itself"):
        serve("127.0.0.1", free_port(), broker_kind)


HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True),
    st.ip_addresses().map(str),
)


@given(HOSTS, st.integers(1, 65535))
def test_addresses_are_parsed(host: str, port: int) -> None:
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert parse_address(text) == (host, port)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ConfigError as error:
        assert "expected host:port" in str(error) and "\n" not in str(error)
    else:
        assert host and 0 < port < 65536
        assert text.strip() in (f"{host}:{text.strip().rpartition(':')[2]}", f"[{host}]:{port}")


BAD_ADDRESSES = [
    "", "auto", "host", "host:", ":1883", "host:0", "host:65536", "host:-1", "host:1e3", "host:１",
    "host:" + "9" * 5000, "::1:1883", "[::1]", "[]:1883", "a b:1883", "mqtt://host:1883",
    "host:1883/x",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_bad_addresses(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        parse_address(text)
    if text not in broker_module.CHOICES:
        with pytest.raises(ConfigError, match="expected host:port"):
            open_broker(text, None, tmp_path)


def test_free_ports_are_free() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert ipaddress.ip_address(server.getsockname()[0]).is_loopback


def test_a_broker_that_has_ended_is_noticed(tmp_path: Path) -> None:
    with open_broker("auto", None, tmp_path) as broker:
        broker.check()
        assert broker.process is not None
        broker.process.signal(signal.SIGKILL)
        while broker.process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(BrokerError, match=rf"{broker.kind}\) has ended: .* --resume"):
            broker.check()
    Broker("192.0.2.1", 1883, "external").check()  # not ours to watch


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("1700000000: Warning: it runs as root", "9", "killed by signal 9"),
        ("1700000000: Warning: it runs as root", "3", "exit code 3"),
        ("", "0", "exit code 0"),
        ("1700000000: Error: no memory", "1", "Error: no memory"),
    ],
)
def test_why_a_broker_ended_is_told(line: str, code: str, told: str, tmp_path: Path) -> None:
    """A warning at its start is not why."""
    end = "os.kill(os.getpid(), 9)" if code == "9" else f"os._exit({code})"
    script = f"import os\nos.write(1, {line!r}.encode())\n{end}"
    process = ChildProcess.start([sys.executable, "-c", script], "b", tmp_path / "b.log")
    while process.poll() is None:
        time.sleep(0.01)
    broker = Broker("127.0.0.1", 1883, "mosquitto", process)
    assert broker.ended
    with pytest.raises(BrokerError, match=rf"has ended: .*{told} \(log: .*b\.log\)"):
        broker.check()
