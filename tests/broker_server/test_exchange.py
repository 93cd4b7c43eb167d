"""A round's conversation with scripted devices, honest and other. No threads, no real time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker_server import intake
from broker_server.exchange import ACCOUNTS_S, MAX_ACCOUNTS_S
from broker_server.handout import MAX_PLANS
from broker_server.intake import MIN_DOWNLOADS, STALL_S
from broker_server.publishing.history import Frame
from broker_server.publishing.holdings import frames_of
from broker_server.work import Answer, Work
from edge_runtime.errors import BrokerError, FlexmoeError
from edge_runtime.protocol.ledger import EVERYONE
from edge_runtime.protocol.mailbox import UNKNOWN as STRANGERS
from edge_runtime.protocol.messages import (
    MAX_BLOB_BYTES,
    MAX_MESSAGE_BYTES,
    Account,
    Assign,
    BlobRef,
    Chunk,
    Failed,
    Fetch,
    Gone,
    Holding,
    Message,
    Moved,
    Received,
    Reject,
    Rollcall,
    Stop,
    Want,
    Welcome,
    pack,
)
from edge_runtime.protocol.topics import up_topic
from edge_runtime.protocol.transfer import Download
from edge_runtime.transport.memory_link import MemoryLink
from edge_runtime.transport.packet import Packet
from edge_runtime.work import contents_of
from tests.broker_server.exchange_stage import (
    BIG_MODEL,
    CHUNK_BYTES,
    DEADLINE_S,
    MODEL,
    REJOIN_S,
    Server,
    forget,
    three,
)
from tests.broker_server.sample_model import (
    changes,
    encode,
    encode_anything,
    make_assign,
    make_report,
)
from tests.broker_server.scripted_device import FEDERATION, HELLO, Device


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def a_small_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for the fewest updates at a time, whatever their size."""
    monkeypatch.setattr(intake, "MAX_OPEN_BYTES", 0)


# --- good rounds -------------------------------------------------------------------------------


def test_all_answer(server: Server) -> None:
    devices = three(server)
    began_s = server.world.now_s
    answers = server.run(devices)
    server.assert_ok(answers, *devices)
    assert list(answers) == ["a", "b", "c"]
    assert server.world.now_s - began_s < 2
    assert server.drops == {}


def test_rounds_follow_each_other(server: Server) -> None:
    devices = three(server)
    server.run(devices)
    forget(devices)
    for device in devices:
        device.seed += 10
    server.assert_ok(server.run(devices, number=2), *devices)
    assert server.drops == {}


def test_work_reaches_only_those_it_names(server: Server) -> None:
    devices = three(server)
    answers = server.run(devices[:2])
    server.assert_ok(answers, *devices[:2])
    assert devices[2].got(Assign) == []


def test_a_newcomer_is_welcome_and_waits(server: Server) -> None:
    slow, *rest = three(server)
    slow.delay_s = 3.0
    newcomer: list[Device] = []

    def join() -> None:
        if slow.got(Assign) and not newcomer:
            newcomer.append(server.device("newcomer"))

    server.world.actors.append(join)
    server.assert_ok(server.run([slow, *rest]), slow, *rest)
    assert newcomer[0].got(Welcome) and not newcomer[0].got(Assign)
    assert server.roster.present == ["a", "b", "c", "newcomer"]


class Taker(Device):
    """Takes the frames of its work off the broker before it begins; asks for what does not come."""

    download: Download | None = None

    def work(self, assign: Assign) -> None:
        if self.download is not None:
            return  # the same again: it said hello twice
        self.assign, self.asked = assign, 0
        refs = {ref.digest: kind for kind, part in contents_of(assign) for ref in part.frames}
        self.kinds = refs
        parts = (part for _, part in contents_of(assign))
        self.download = Download([r for part in parts for r in part.frames], CHUNK_BYTES)

    def step(self) -> None:
        super().step()
        if self.download is None or self.download.complete or not self.link.connected:
            return
        fresh, again = self.download.wants(self.world.now_s)
        for want in fresh:
            indexes = range(want.first, want.first + want.count)
            self.mailbox.listen(want.digest, self.kinds[want.digest], indexes)
        if again:
            self.asked += sum(want.count for want in again)
            self.mailbox.send(Fetch(again))

    def on(self, message: Message) -> None:
        if not isinstance(message, Chunk):
            return super().on(message)
        assert self.download is not None
        self.download.accept(message, self.world.now_s)
        self.mailbox.unlisten(message.digest, [message.index])
        if self.download.complete:
            super().work(self.assign)


ROUND_KINDS = ("program", "backbone", "gate", "expert:0", "expert:1", "expert:3")


def test_who_said_hello_is_not_called(server: Server) -> None:
    """Or all would say it twice, and be given their work twice."""
    devices = [server.device(name) for name in "abc"]
    for device in devices:
        device.step()
    server.gather(3)
    for device in devices:
        device.step()
        assert (len(device.got(Rollcall)), len(device.got(Welcome))) == (0, 1)
    late = server.device("late")
    late.link.kill()
    late.back_s = server.world.now_s + 3
    server.gather(4)
    assert [len(device.got(Rollcall)) for device in devices] == [2, 2, 2]


def test_a_flood_does_not_keep_the_roll_from_being_called(server: Server) -> None:
    mute = server.device("a")
    mute._greeted = mute.link.connections  # says hello only when it is called
    shouter = MemoryLink(server.world.broker, "shouter")
    plain_receive = server.link.receive

    def receive(timeout_s: float) -> Packet | None:
        server.world.now_s += 0.01
        shouter.publish(up_topic(FEDERATION, "shouter"), b"")
        mute.step()
        return plain_receive(timeout_s)

    server.link.receive = receive  # type: ignore[method-assign]
    server.gather(1)
    assert mute.got(Rollcall)
    assert set(server.drops) == {("shouter", "malformed")}


def test_frames_leave_once_for_all_who_take_them(tmp_path: Path) -> None:
    server = Server(tmp_path, BIG_MODEL)
    takers: list[Device] = [Taker(server.world, name, BIG_MODEL) for name in "ab"]
    server.gather(2)
    server.assert_ok(server.run(takers), *takers)
    assert server.drops == {}
    for kind in ROUND_KINDS:
        assert server.offered(kind) == server.frames[kind].ref.chunks(CHUNK_BYTES)
    assert not any(taker.got(Fetch)[1:] for taker in takers)  # none but for its update
    rows = [row for row in server.mailbox.ledger.rows() if row.client == "a" and row.payload_bytes]
    kinds = {way: {r.kind for r in rows if r.direction == way} for way in ("up", "down")}
    assert kinds == {"up": {"control", "backbone", "gate", "expert:0", "expert:3"},
                     "down": {"control"}}  # fmt: skip
    server.exchange.stop("over")
    assert server.world.broker.retained("fm4/#") == []


def test_what_is_held_is_not_named_again(server: Server) -> None:
    devices = three(server)
    server.assert_ok(server.run(devices), *devices)
    assert all(frames_of(device.got(Assign)[0]) for device in devices)  # type: ignore[arg-type]
    forget(devices)
    offered = server.offered(*ROUND_KINDS)
    dropped = server.contents["gate"]
    plain = devices[0].prepare

    def prepare(assign: Assign) -> None:
        plain(assign)
        devices[0].change_report(dropped=[dropped])

    devices[0].prepare = prepare  # type: ignore[method-assign]
    server.assert_ok(server.run(devices, number=2), *devices)
    for device in devices:
        (assign,) = device.got(Assign)
        assert frames_of(assign) == []  # type: ignore[arg-type]
    forget(devices)
    server.run(devices, number=3)
    named = {device.name: frames_of(device.got(Assign)[0]) for device in devices}  # type: ignore[arg-type]
    assert named == {"a": [server.frames["gate"].ref], "b": [], "c": []}
    assert server.offered(*ROUND_KINDS) == offered  # the broker has it


def test_a_hello_says_what_is_held(server: Server) -> None:
    device = server.device("a")
    device.hello = dataclasses.replace(HELLO, held=[server.contents["program"]])
    server.gather(1)
    server.assert_ok(server.run([device]), device)
    (assign,) = set(map(repr, device.got(Assign)))
    assert server.offered("program") == 0 and server.offered("backbone") == 1
    assert repr(server.frames["program"].ref) not in assign


@pytest.mark.parametrize("times", [1, MAX_PLANS - 1, MAX_PLANS, 99])
def test_one_that_lacks_what_its_work_builds_on_is_given_another_plan(
    server: Server, times: int
) -> None:
    held = [server.contents["program"]]
    odd, *rest = three(server)
    plans: list[Assign] = []

    def work(assign: Assign) -> None:
        plans.append(assign)
        if len(plans) <= times:
            odd.mailbox.send(Holding("s", 1, 1, held))
        else:
            Device.work(odd, assign)

    odd.work = work  # type: ignore[method-assign]
    server.exchange.holdings.say("a", server.contents.values())
    answers = server.run([odd, *rest])
    assert frames_of(plans[0]) == []
    wanted = [server.frames[kind].ref for kind in ("backbone", "gate", "expert:0", "expert:3")]
    assert all(frames_of(plan) == wanted for plan in plans[1:])
    assert len(plans) == min(times + 1, MAX_PLANS)
    if times < MAX_PLANS:
        server.assert_ok(answers, odd)
    else:
        assert answers["a"] == Answer("failed", "lacks what 4 plans of its work built on")
    server.assert_ok(answers, *rest)
    assert server.drops == {}


def test_a_new_process_is_given_a_new_plan_and_an_old_one_the_same(server: Server) -> None:
    lost, *rest = three(server)
    server.exchange.holdings.say("a", server.contents.values())
    plans: list[Assign] = []
    begins_s = server.world.now_s

    def work(assign: Assign) -> None:
        plans.append(assign)
        if len(plans) < 3:
            lost.hello = dataclasses.replace(HELLO, session="s" if len(plans) == 1 else "")
            lost.link.kill()
            lost.back_s = server.world.now_s + 1.0
        else:
            Device.work(lost, assign)

    lost.work = work  # type: ignore[method-assign]
    server.assert_ok(server.run([lost, *rest]), lost, *rest)
    assert server.world.now_s - begins_s < 2 * REJOIN_S
    assert plans[0] == plans[1] and frames_of(plans[0]) == []
    assert len(frames_of(plans[2])) == 6


def test_what_a_broker_forgot_is_published_again_once_for_all(tmp_path: Path) -> None:
    server = Server(tmp_path, BIG_MODEL)
    takers = [Taker(server.world, name, BIG_MODEL) for name in "abc"]
    server.gather(3)
    for taker in takers:
        server.world.actors.remove(taker.step)
    before: list[int] = []

    def restart() -> None:
        """All that was published is lost before any device has listened; so are its messages."""
        if not before:
            before.append(server.offered(*ROUND_KINDS, "expert:2"))
            server.world.broker.restart()
            for link in (server.link, *(taker.link for taker in takers)):
                link.restore()
            server.world.actors += [taker.step for taker in takers]

    server.world.actors.append(restart)
    server.assert_ok(server.run(takers), *takers)
    kinds = (*ROUND_KINDS, "expert:2")
    assert before == [sum(server.frames[kind].ref.chunks(CHUNK_BYTES) for kind in kinds)]
    # They ask at the same time, and are answered together.
    assert server.offered(*kinds) - before[0] == before[0]
    assert sum(taker.asked for taker in takers) > before[0]
    assert server.drops == {}


def test_strangers_and_those_who_are_done_are_not_served(server: Server) -> None:
    done, slow = server.device("a"), server.device("b", seed=1, delay_s=5.0)
    idle, fetched = server.device("idle"), Counter[str]()
    server.gather(3)
    stranger = server.device("stranger")
    stranger.hello = dataclasses.replace(HELLO, shape=[5])

    def fetch() -> None:
        if not done.got(Received) or fetched:
            return
        for device in (done, idle, stranger):
            fetched[device.name] += 1
            device.mailbox.send(Fetch([Want(server.frames["backbone"].ref.digest, 0, 1)]))

    server.world.actors.append(fetch)
    server.assert_ok(server.run([done, slow]), slow)
    assert server.drops == {(name, "stale"): 1 for name in ("a", "idle", "stranger")}
    assert server.offered("backbone") == 1


def test_a_chunk_that_is_asked_for_again_and_again_leaves_once_at_a_time(server: Server) -> None:
    greedy, *rest = three(server)
    rest[0].delay_s = 2.0
    plain_work = greedy.work

    def work(assign: Assign) -> None:
        greedy.delay_s = 1.0
        want = Want(server.frames["backbone"].ref.digest, 0, 1)
        for _ in range(50):
            greedy.mailbox.send(Fetch([want] * 64))
        plain_work(assign)

    greedy.work = work  # type: ignore[method-assign]
    server.assert_ok(server.run([greedy, *rest]), greedy, *rest)
    assert server.offered("backbone") == 2
    assert set(server.drops) == {("a", "greedy-fetch")} and server.drops["a", "greedy-fetch"] > 40


def test_strangers_have_one_account(server: Server) -> None:
    devices = three(server)
    for i in range(100):
        server.link._broker.route(Packet.of(up_topic(FEDERATION, f"x{i}"), b"junk"))
        server.link._broker.route(Packet.of(up_topic(FEDERATION, f"y{i}"), pack(Gone("x"))))
    server.assert_ok(server.run(devices), *devices)
    rows = server.mailbox.ledger.rows()
    assert {row.client for row in rows} == {EVERYONE, STRANGERS, "a", "b", "c"}
    assert {row.kind for row in rows if row.client == STRANGERS} == {"control"}
    assert server.mailbox._updates._sections == {}


def test_another_server_of_the_same_name_ends_this_one(server: Server) -> None:
    devices = three(server)
    server.link.contested = True
    for act in (lambda: server.exchange.gather(4, 10.0), lambda: server.run(devices)):
        with pytest.raises(BrokerError, match=r"federation 'fed' .*broker\.federation.* refuses"):
            act()


def test_a_local_gate_is_not_collected(server: Server) -> None:
    device = server.device("a")
    server.gather(1)
    assign = make_assign([0, 3], local_gate=True)
    work = Work({"a": assign}, lambda client: assign, MODEL)
    answers = server.exchange.run(work, DEADLINE_S, REJOIN_S)
    server.assert_ok(answers, device)
    assert "gate" not in device.update


# --- late, gone, back, failed ------------------------------------------------------------------


def test_one_is_late(server: Server) -> None:
    late, *rest = three(server)
    late.delay_s = DEADLINE_S + 5
    began_s = server.world.now_s
    answers = server.run([late, *rest])
    assert server.world.now_s - began_s == pytest.approx(DEADLINE_S, abs=1)
    assert answers["a"] == Answer("late", "no answer by the deadline")
    server.assert_ok(answers, *rest)
    assert server.roster.present == ["a", "b", "c"]

    # Its answer comes in the next round: too late for the old one, and no part of the new one.
    server.run(rest, number=2)
    while not server.mailbox.drops:
        server.exchange.gather(4, 1.0)
    assert server.drops == {("a", "stale"): 1}


def test_a_device_that_dies_between_report_and_chunks_is_late(server: Server) -> None:
    silent, *rest = three(server)
    silent.serve = lambda fetch: None  # type: ignore[method-assign]
    answers = server.run([silent, *rest])
    assert answers["a"] == Answer("late", "its update was not complete by the deadline")
    server.assert_ok(answers, *rest)


def test_one_is_gone(server: Server) -> None:
    lost, *rest = three(server)
    lost.work = lambda assign: lost.link.kill()  # type: ignore[method-assign]
    began_s = server.world.now_s
    answers = server.run([lost, *rest])
    assert answers["a"] == Answer("gone", "disconnected and did not return in time")
    assert server.world.now_s - began_s == pytest.approx(REJOIN_S, abs=1)
    server.assert_ok(answers, *rest)
    assert server.roster.present == ["b", "c"]


def test_one_leaves_in_good_order(server: Server) -> None:
    lost, *rest = three(server)
    lost.work = lambda assign: lost.mailbox.send(Gone("interrupted"))  # type: ignore[method-assign]
    lost.on = lambda message: lost.work(message) if isinstance(message, Assign) else None  # type: ignore[method-assign, assignment]
    answers = server.run([lost, *rest])
    assert answers["a"].status == "gone"
    server.assert_ok(answers, *rest)


def test_gone_and_back_the_transfer_goes_on(tmp_path: Path) -> None:
    server = Server(tmp_path, BIG_MODEL)
    devices = [server.device(name, seed) for seed, name in enumerate("ab")]
    server.gather(2)
    shaky = devices[0]
    plain_send = shaky.send_chunk

    def send_three(chunk: Chunk) -> None:
        if shaky.link.connected:
            plain_send(chunk)
        if sum(shaky.served.values()) == 3 and shaky.link.connections == 1:
            shaky.link.kill()
            shaky.back_s = server.world.now_s + REJOIN_S - 1

    shaky.send_chunk = send_three  # type: ignore[method-assign]
    server.assert_ok(server.run(devices), *devices)
    assert len(shaky.got(Assign)) == 2
    update = shaky.report.update  # type: ignore[union-attr]
    chunks = {(update.digest, i) for i in range(update.chunks(CHUNK_BYTES))}
    assert len(chunks) == 6
    assert shaky.served == Counter(dict.fromkeys(chunks, 1))  # nothing travelled twice
    assert server.drops == {("a", "duplicate"): 1}  # it repeated its report


def test_one_may_return_late_while_others_are_at_work(server: Server) -> None:
    lost, slow, third = three(server)
    slow.delay_s = 4 * REJOIN_S

    def work(assign: Assign) -> None:
        lost.work = Device.work.__get__(lost)  # type: ignore[method-assign]
        lost.link.kill()
        lost.back_s = server.world.now_s + 2 * REJOIN_S

    lost.work = work  # type: ignore[method-assign]
    server.assert_ok(server.run([lost, slow, third]), lost, slow, third)


def test_a_device_that_starts_anew_answers_with_its_new_report(server: Server) -> None:
    first, *rest = three(server)
    reborn: list[Device] = []

    def die(fetch: Fetch) -> None:
        server.world.actors.remove(first.step)
        first.link.kill()
        reborn.append(Device(server.world, "a", MODEL, seed=5))

    first.serve = die  # type: ignore[method-assign]
    answers = server.run([first, *rest])
    server.assert_ok(answers, *reborn, *rest)
    assert answers["a"].report != first.report


def test_a_late_last_will_does_not_end_a_device(server: Server) -> None:
    """A broker may notice a dead connection long after the device has a new one."""
    slow, *rest = three(server)
    slow.delay_s = 4 * REJOIN_S
    stranger = server.device("stranger")
    server.gather(4)
    stranger.link.publish(up_topic(FEDERATION, "a"), pack(Gone("connection lost")))
    server.assert_ok(server.run([slow, *rest]), slow, *rest)
    assert server.roster.present == ["a", "b", "c", "stranger"]


def test_what_was_missed_while_the_server_was_away_is_said_again(server: Server) -> None:
    slow, *rest = three(server)
    slow.delay_s = 3.0
    began_s = server.world.now_s

    def lose_connection() -> None:
        if server.link.connections == 1 and server.world.now_s - began_s > 2:
            server.link.kill()
        if not server.link.connected and server.world.now_s - began_s > 4:
            server.link.restore()

    server.world.actors.insert(0, lose_connection)
    server.assert_ok(server.run([slow, *rest]), slow, *rest)
    assert server.world.now_s - began_s < REJOIN_S + 5
    assert server.link.connections == 2


def test_who_died_while_the_server_was_away_is_noticed(server: Server) -> None:
    dead, *rest = three(server)
    dead.delay_s = 2.0
    began_s = server.world.now_s

    def lose_connection() -> None:
        if server.link.connections == 1 and server.world.now_s - began_s > 1:
            server.link.kill()
            dead.link.kill()  # nobody hears its last will
            server.link.restore()

    server.world.actors.insert(0, lose_connection)
    answers = server.run([dead, *rest])
    assert answers["a"].status == "gone"
    assert server.world.now_s - began_s < REJOIN_S + 5
    server.assert_ok(answers, *rest)
    assert server.roster.present == ["b", "c"]


@pytest.mark.parametrize(("told", "taken"), [(5000, 5000), (0, 0), (-7, 0)])
def test_one_fails(server: Server, told: int, taken: int) -> None:
    bad, *rest = three(server)
    bad.work = lambda assign: bad.mailbox.send(Failed("s", 1, 1, "too large", told))  # type: ignore[method-assign]
    began_s = server.world.now_s
    answers = server.run([bad, *rest])
    assert answers["a"] == Answer("failed", "too large", needed_bytes=taken)
    assert server.world.now_s - began_s < 2
    server.assert_ok(answers, *rest)


# --- what is seen of a device at work ----------------------------------------------------------


def test_the_time_of_an_update_is_from_the_first_question_to_the_last_chunk(
    server: Server,
) -> None:
    slow, quick = server.device("a", delay_s=7.0), server.device("b", seed=1)
    server.gather(2)
    plain_serve, waiting = slow.serve, list[tuple[float, Fetch]]()
    slow.serve = lambda fetch: waiting.append((server.world.now_s + 3.0, fetch))  # type: ignore[method-assign]

    def answer() -> None:
        while waiting and waiting[0][0] <= server.world.now_s:
            plain_serve(waiting.pop(0)[1])

    server.world.actors.append(answer)
    answers = server.run([slow, quick])
    for device, seconds in ((slow, 3.0), (quick, 0.0)):
        seen = answers[device.name].observed
        assert seen.uplink_bytes == len(device.data)
        assert seen.uplink_s == pytest.approx(seconds, abs=0.5)
        assert not seen.kept_waiting and not seen.vanished and not seen.restarted


def test_what_arrived_of_a_late_update_is_measured(tmp_path: Path) -> None:
    server = Server(tmp_path, BIG_MODEL)
    device = server.device("a", delay_s=20.0)
    server.gather(1)
    plain_send = device.send_chunk

    def send(chunk: Chunk) -> None:
        if chunk.index < 2:
            plain_send(chunk)

    device.send_chunk = send  # type: ignore[method-assign]
    answer = server.run([device])["a"]
    assert answer.status == "late" and answer.report is None
    assert device.report is not None
    seen = answer.observed
    assert seen.uplink_bytes == 2 * CHUNK_BYTES
    assert seen.uplink_s == pytest.approx(DEADLINE_S - 20.0, abs=1.0)
    assert answer.telemetry == device.report.telemetry and not seen.kept_waiting


@pytest.mark.usefixtures("a_small_server")
def test_a_device_whose_update_nobody_asked_for_was_kept_waiting(server: Server) -> None:
    """Its report came too late for that: the time until it is the device's, though."""
    silent = [server.device(f"a{i}", seed=i) for i in range(MIN_DOWNLOADS)]
    honest = server.device("b", seed=9, delay_s=DEADLINE_S - STALL_S / 2)
    server.gather(len(silent) + 1)
    for device in silent:
        device.delay_s = DEADLINE_S - STALL_S / 2 - 1
        device.serve = lambda fetch: None  # type: ignore[method-assign]
    answers = server.run([*silent, honest])
    assert answers["b"].status == "late" and answers["b"].observed.kept_waiting
    assert not any(answers[device.name].observed.kept_waiting for device in silent)


def test_a_last_will_and_a_goodbye_are_told_apart(server: Server) -> None:
    lost, left, *_ = devices = three(server)
    lost.work = lambda assign: lost.link.kill()  # type: ignore[method-assign]
    left.work = lambda assign: left.mailbox.send(Gone("interrupted"))  # type: ignore[method-assign]
    left.on = lambda message: left.work(message) if isinstance(message, Assign) else None  # type: ignore[method-assign, assignment]
    answers = server.run(devices)
    assert answers["a"].status == answers["b"].status == "gone"
    assert answers["a"].observed.vanished and not answers["b"].observed.vanished


@pytest.mark.parametrize("anew", [True, False])
def test_a_process_that_comes_back_is_told_by_its_hello(server: Server, anew: bool) -> None:
    """Only a process that has just begun does not know the session."""
    lost, *rest = three(server)
    assert server.exchange.restarted == dict.fromkeys("abc", "unknown")

    def work(assign: Assign) -> None:
        lost.hello = dataclasses.replace(HELLO, session="" if anew else "s")
        lost.link.kill()

    lost.work = work  # type: ignore[method-assign]
    answers = server.run([lost, *rest])
    assert answers["a"].observed.vanished and not answers["a"].observed.restarted
    assert server.exchange.restarted == {}
    lost.back_s = server.world.now_s
    server.gather(3)
    assert server.exchange.restarted == ({"a": "unknown"} if anew else {})


@pytest.mark.parametrize("anew", [True, False])
def test_a_process_that_ends_and_comes_back_within_the_round(server: Server, anew: bool) -> None:
    lost, *rest = three(server)

    def work(assign: Assign) -> None:
        if lost.link.connections == 1:
            lost.hello = dataclasses.replace(HELLO, session="" if anew else "s")
            lost.link.kill()
            lost.back_s = server.world.now_s + 1.0

    lost.work = work  # type: ignore[method-assign]
    answer = server.run([lost, *rest])["a"]
    assert answer.status == "late" and not answer.observed.vanished
    assert answer.observed.restarted == anew


def test_a_first_hello_said_twice_is_no_second_process(server: Server) -> None:
    """The welcome was slow, and work was handed out meanwhile."""
    late, *rest = three(server)
    late.work = lambda assign: said.append(late.mailbox.send(HELLO)) if not said else None  # type: ignore[method-assign, func-returns-value]
    said: list[None] = []
    answer = server.run([late, *rest])["a"]
    assert answer.status == "late" and said and len(late.got(Welcome)) == 2
    assert "a" not in server.exchange.restarted and not answer.observed.restarted


# --- answers that are refused ------------------------------------------------------------------


def spoil(device: Device, value: float) -> None:
    plain_prepare = device.prepare

    def prepare(assign: Assign) -> None:
        plain_prepare(assign)
        tensors = changes(device.seed, device.model, assign.experts)
        tensors["expert:3"]["0.bias"][1] = value
        section = encode_anything(tensors["expert:3"])
        device.answer_with(assign, {**device.update, "expert:3": section})

    device.prepare = prepare  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_rejected(server: Server, value: float) -> None:
    bad, *rest = three(server)
    spoil(bad, value)
    answers = server.run([bad, *rest])
    assert answers["a"].status == "rejected" and answers["a"].report is None
    assert "expert:3: '0.bias' has values that are not finite" in answers["a"].detail
    server.assert_ok(answers, *rest)
    assert server.drops == {("a", "not-finite"): 1}
    bad.step()
    assert bad.got(Received)  # it need not keep what nobody wants


def gigabytes(device: Device) -> None:
    assert device.report is not None
    _, *sections = device.report.sections
    huge = BlobRef(device.report.update.digest, MAX_BLOB_BYTES)
    device.change_report(update=huge, sections=[MAX_BLOB_BYTES - sum(sections), *sections])


def a_section_too_few(device: Device) -> None:
    assert device.report is not None
    device.change_report(sections=device.report.sections[1:])


def shifted(device: Device) -> None:
    assert device.report is not None
    first, second, *others = device.report.sections
    device.change_report(sections=[first - 1, second + 1, *others])


def unknown_kind(device: Device) -> None:
    device.change_report(account=[Moved("expert:4", 1, 1, 1, 1, 1, 1)])


def wrong_sum(device: Device) -> None:
    device.change_report(usage=[3, 3])


def other_experts(device: Device) -> None:
    device.change_report(experts=[1, 2])


def damaged_forever(device: Device) -> None:
    device.blobs = {name: data[:-1] + b"!" for name, data in device.blobs.items()}


@pytest.mark.parametrize(
    ("spoil_report", "drops"),
    [
        (gigabytes, {"wrong-sections": 1}),
        (a_section_too_few, {"wrong-sections": 1}),
        (shifted, {"bad-body": 1}),
        (unknown_kind, {"bad-account": 1}),
        (wrong_sum, {"wrong-count": 1}),
        (other_experts, {"wrong-experts": 1}),
        (damaged_forever, {"bad-digest": 12}),
    ],
)
def test_useless_answers_are_rejected(
    server: Server, spoil_report: Callable[[Device], None], drops: dict[str, int]
) -> None:
    bad, *rest = three(server)
    plain_prepare = bad.prepare

    def prepare(assign: Assign) -> None:
        plain_prepare(assign)
        spoil_report(bad)

    bad.prepare = prepare  # type: ignore[method-assign]
    began_s = server.world.now_s
    answers = server.run([bad, *rest])
    assert answers["a"].status == "rejected", answers["a"]
    assert next(iter(drops)) in answers["a"].detail
    assert server.world.now_s - began_s < DEADLINE_S / 2
    server.assert_ok(answers, *rest)
    assert set(server.drops) == {("a", reason) for reason in drops}
    assert all(server.drops["a", reason] <= count for reason, count in drops.items())


def test_one_that_comes_back_with_data_that_do_not_fit_is_rejected(server: Server) -> None:
    bad, *rest = three(server)

    def change_shape(assign: Assign) -> None:
        bad.hello = dataclasses.replace(HELLO, shape=[5])
        bad.mailbox.send(bad.hello)

    bad.work = change_shape  # type: ignore[method-assign]
    answers = server.run([bad, *rest])
    assert answers["a"].status == "rejected" and "shape [5]" in answers["a"].detail
    assert bad.got(Reject)
    server.assert_ok(answers, *rest)
    assert server.roster.present == ["b", "c"]


def test_an_answer_stands_though_its_device_is_refused_afterwards(server: Server) -> None:
    quick, slow = server.device("a"), server.device("b", seed=1, delay_s=5.0)
    server.gather(2)

    def change_shape() -> None:
        if quick.got(Received) and quick.hello is HELLO:
            quick.hello = dataclasses.replace(HELLO, shape=[5])
            quick.mailbox.send(quick.hello)

    server.world.actors.append(change_shape)
    server.assert_ok(server.run([quick, slow]), quick, slow)
    assert "a" not in server.roster


def test_a_report_is_measured_by_the_samples_that_the_work_was_given_for(server: Server) -> None:
    """Or a device could raise its weight in the mean after the assignment."""
    bad, *rest = three(server)
    plain_work = bad.work

    def grow(assign: Assign) -> None:
        if bad.hello is HELLO:
            bad.hello = dataclasses.replace(HELLO, samples=10**9)
            bad.mailbox.send(bad.hello)
        plain_work(assign)

    bad.work = grow  # type: ignore[method-assign]
    answers = server.run([bad, *rest])
    assert answers["a"].status == "rejected" and "10 samples" in answers["a"].detail
    server.assert_ok(answers, *rest)


# --- messages that have no place ---------------------------------------------------------------

UNKNOWN = bytes(range(16))


def out_of_the_blue(device: Device, assign: Assign) -> None:
    device.mailbox.send(Chunk(UNKNOWN, 0, b"data"))


def stale_round(device: Device, assign: Assign) -> None:
    old = dataclasses.replace(assign, round=assign.round - 1)
    device.mailbox.send(make_report(old, encode(changes(7, MODEL, assign.experts))))


def wrong_session(device: Device, assign: Assign) -> None:
    old = dataclasses.replace(assign, session="of yesterday")
    device.mailbox.send(make_report(old, encode(changes(7, MODEL, assign.experts))))


def stale_failure(device: Device, assign: Assign) -> None:
    device.mailbox.send(Failed("s", assign.round + 1, 1, "of another round", 0))


def late_report(device: Device, assign: Assign) -> None:
    """Of the attempt before, in which it was given other experts."""
    old = dataclasses.replace(assign, attempt=assign.attempt - 1, experts=[2], expert_parts=[])
    device.mailbox.send(make_report(old, encode(changes(7, MODEL, [2]))))


def late_failure(device: Device, assign: Assign) -> None:
    device.mailbox.send(Failed("s", assign.round, assign.attempt - 1, "needs more", 5000))


def fetch_unknown(device: Device, assign: Assign) -> None:
    device.mailbox.send(Fetch([Want(UNKNOWN, 0, 1)]))


def fetch_what_another_holds(device: Device, assign: Assign) -> None:
    (other,) = {0, 1, 2} - set(assign.experts) - {0}
    frame = Frame.of("x", encode(changes(99, MODEL, range(4)))[f"expert:{other}"], ())
    device.mailbox.send(Fetch([Want(frame.ref.digest, 0, 1)]))


def fetch_beyond_the_end(device: Device, assign: Assign) -> None:
    device.mailbox.send(Fetch([Want(assign.backbone.frames[0].digest, 0, 4096)]))


def fetch_without_end(device: Device, assign: Assign) -> None:
    device.mailbox.send(Fetch([Want(assign.backbone.frames[0].digest, 0, 1)] * 4096))


def fetch_a_content(device: Device, assign: Assign) -> None:
    device.mailbox.send(Fetch([Want(assign.backbone.digest, 0, 1)]))


def holding_of_another_attempt(device: Device, assign: Assign) -> None:
    device.mailbox.send(Holding("s", assign.round, assign.attempt - 1, []))


def an_account_that_nobody_waits_for(device: Device, assign: Assign) -> None:
    device.mailbox.send(Account("s", []))


def wrong_way(device: Device, assign: Assign) -> None:
    device.link.publish(up_topic(FEDERATION, device.name), pack(Stop("s", "says who?")))


def garbage(device: Device, assign: Assign) -> None:
    for payload in (b"", b"\xc1", b"\x00" * 1000, pack(HELLO)[:-1]):
        device.link.publish(up_topic(FEDERATION, device.name), payload)


def bare_name(device: Device, assign: Assign) -> None:
    device.link.publish(up_topic(FEDERATION, "a name with blanks"), pack(HELLO))


ACTS: list[tuple[Callable[[Device, Assign], None], dict[tuple[str, str], int]]] = [
    (out_of_the_blue, {("m", "unexpected-blob"): 1}),
    (stale_round, {("m", "stale"): 1}),
    (wrong_session, {("m", "stale"): 1}),
    (stale_failure, {("m", "stale"): 1}),
    (late_report, {("m", "stale"): 1}),
    (late_failure, {("m", "stale"): 1}),
    (fetch_unknown, {("m", "unknown-blob"): 1}),
    (fetch_what_another_holds, {("m", "unknown-blob"): 1}),
    (fetch_beyond_the_end, {("m", "bad-want"): 1}),
    (fetch_without_end, {("m", "greedy-fetch"): 1}),
    (fetch_a_content, {("m", "unknown-blob"): 1}),
    (holding_of_another_attempt, {("m", "stale"): 1}),
    (an_account_that_nobody_waits_for, {("m", "stale"): 1}),
    (wrong_way, {("m", "direction"): 1}),
    (garbage, {("m", "malformed"): 4}),
    (bare_name, {("", "name"): 1}),
]


@pytest.mark.parametrize(("act", "drops"), ACTS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("when", ["before", "after"])
def test_odd_messages_are_counted_and_change_nothing(
    server: Server,
    act: Callable[[Device, Assign], None],
    drops: dict[tuple[str, str], int],
    when: str,
) -> None:
    """Sent before or right after the device's own good report, which counts all the same."""
    devices = [server.device(name, seed) for seed, name in enumerate("amz")]
    server.gather(3)
    odd = devices[1]
    plain_work = odd.work

    def work(assign: Assign) -> None:
        if when == "before":
            act(odd, assign)
        plain_work(assign)
        if when == "after":
            assert odd.report is not None
            odd.mailbox.send(odd.report)
            odd._due_s = None
            act(odd, assign)

    odd.work = work  # type: ignore[method-assign]
    server.assert_ok(server.run(devices, attempt=2), *devices)
    assert server.drops == drops


def test_a_report_said_twice_counts_once(server: Server) -> None:
    devices = three(server)
    server.assert_ok(server.run(devices), *devices)
    twice = devices[0]
    plain_work = twice.work

    def work(assign: Assign) -> None:
        plain_work(assign)
        twice.mailbox.send(twice.report)  # type: ignore[arg-type]

    twice.work = work  # type: ignore[method-assign]
    forget(devices)
    server.assert_ok(server.run(devices, number=2), *devices)
    assert server.drops == {("a", "duplicate"): 1}


def test_a_report_after_the_answer_is_confirmed_again(server: Server) -> None:
    """The device did not hear that all was received: else it would keep its update for ever."""
    quick, slow = server.device("a"), server.device("b", seed=1, delay_s=5.0)
    server.gather(2)

    def repeat() -> None:
        if len(quick.got(Received)) == 1:
            quick.mailbox.send(quick.report)  # type: ignore[arg-type]

    server.world.actors.append(repeat)
    answers = server.run([quick, slow])
    assert quick.got(Received) == [Received("s", 1, 1)] * 2
    assert answers["a"] == Answer("ok", report=quick.report)
    server.assert_ok(answers, slow)
    assert server.drops == {("a", "duplicate"): 1}


def test_a_second_failure_changes_nothing(server: Server) -> None:
    bad, *rest = three(server)
    rest[0].delay_s = 2.0

    def fail(assign: Assign) -> None:
        bad.mailbox.send(Failed("s", 1, 1, "first", 0))
        bad.mailbox.send(Failed("s", 1, 1, "second", 0))

    bad.work = fail  # type: ignore[method-assign]
    answers = server.run([bad, *rest])
    assert answers["a"] == Answer("failed", "first")
    server.assert_ok(answers, *rest)
    assert server.drops == {("a", "duplicate"): 1}


def test_a_device_without_work_cannot_report(server: Server) -> None:
    devices = three(server)
    outsider = server.device("outsider", seed=9)
    server.gather(4)
    assign = make_assign([0, 3])
    outsider.prepare(assign)
    outsider.mailbox.send(outsider.report)  # type: ignore[arg-type]
    outsider.mailbox.send(Failed("s", 1, 1, "me too", 0))
    outsider.serve(Fetch([Want(outsider.report.update.digest, 0, 1)]))  # type: ignore[union-attr]
    answers = server.run(devices)
    assert list(answers) == ["a", "b", "c"]
    server.assert_ok(answers, *devices)
    assert server.drops == {("outsider", "stale"): 2, ("outsider", "unexpected-blob"): 1}


def test_bad_chunks_in_a_transfer_are_counted_and_asked_for_again(tmp_path: Path) -> None:
    server = Server(tmp_path, BIG_MODEL)
    device = server.device("a")
    server.gather(1)
    plain_send = device.send_chunk
    spoilt: list[str] = []

    def send(chunk: Chunk) -> None:
        if len(spoilt) < 2:
            if not spoilt:
                spoilt.append("content")  # noticed by the digest: the blob begins again
                chunk = dataclasses.replace(chunk, data=bytes(len(chunk.data)))
            else:
                spoilt.append("length")  # noticed at once: this chunk is asked for again
                chunk = dataclasses.replace(chunk, data=b"short")
        plain_send(chunk)

    device.send_chunk = send  # type: ignore[method-assign]
    server.assert_ok(server.run([device]), device)
    assert server.drops == {("a", "bad-chunk"): 1, ("a", "bad-digest"): 1}


def test_packets_larger_than_any_message_never_reach_the_exchange(server: Server) -> None:
    devices = three(server)
    huge = bytes(MAX_MESSAGE_BYTES + 1)
    server.world.broker.route(Packet.of(up_topic(FEDERATION, "a"), huge))
    server.assert_ok(server.run(devices), *devices)
    assert server.link.oversized == 1 and server.drops == {}


def test_everything_is_stale_before_the_first_round(server: Server) -> None:
    device = server.device("a")
    assign = make_assign([0, 3])
    device.prepare(assign)
    device.mailbox.send(HELLO)
    for message in (
        device.report,
        Failed("s", 1, 1, "x", 0),
        Fetch([Want(UNKNOWN, 0, 1)]),
        Chunk(UNKNOWN, 0, b"data"),
    ):
        device.mailbox.send(message)  # type: ignore[arg-type]
    server.exchange.gather(2, 1.0)
    assert server.drops == {("a", "stale"): 3, ("a", "unexpected-blob"): 1}
    assert server.roster.present == ["a"]


# --- many transfers ----------------------------------------------------------------------------


@pytest.mark.parametrize(("updates", "most_open"), [(0, MIN_DOWNLOADS), (6.5, 6)])
def test_a_few_devices_are_asked_at_a_time(
    server: Server, monkeypatch: pytest.MonkeyPatch, updates: float, most_open: int
) -> None:
    """Four, or as many as their updates have room together."""
    size_bytes = len(b"".join(encode(changes(0, MODEL, [0, 3]), "raw").values()))
    monkeypatch.setattr(intake, "MAX_OPEN_BYTES", int(updates * size_bytes))
    devices = [server.device(f"d{i}", seed=i) for i in range(MIN_DOWNLOADS + 5)]
    server.gather(len(devices))
    most = 0
    for device in devices:
        waiting: list[tuple[float, Fetch]] = []
        device.serve = (  # type: ignore[method-assign]
            lambda fetch, waiting=waiting: waiting.append((server.world.now_s + 2, fetch))
        )

        def answer(device: Device = device, waiting: list[tuple[float, Fetch]] = waiting) -> None:
            nonlocal most
            open_now = [d for d in devices if d.got(Fetch) and not d.got(Received)]
            most = max(most, len(open_now))
            while waiting and waiting[0][0] <= server.world.now_s:
                Device.serve(device, waiting.pop(0)[1])

        server.world.actors.append(answer)
    server.assert_ok(server.run(devices), *devices)
    assert most == most_open


@pytest.mark.usefixtures("a_small_server")
def test_devices_that_promise_and_do_not_send_hold_up_no_other(server: Server) -> None:
    silent = [server.device(f"a{i}", seed=i) for i in range(2 * MIN_DOWNLOADS)]
    honest = [server.device(f"b{i}", seed=i) for i in range(2)]
    server.gather(len(silent) + 2)
    for device in silent:
        device.serve = lambda fetch: None  # type: ignore[method-assign]
    answers = server.run([*silent, *honest])
    server.assert_ok(answers, *honest)
    assert {answers[device.name].status for device in silent} == {"late"}


@pytest.mark.usefixtures("a_small_server")
def test_one_that_stalls_for_a_while_is_still_collected(server: Server) -> None:
    silent = [server.device(f"a{i}", seed=i) for i in range(MIN_DOWNLOADS)]
    other = server.device("b", seed=9)
    server.gather(len(silent) + 1)
    begin_s = server.world.now_s + 2 * STALL_S
    for device in silent:
        device.serve = (  # type: ignore[method-assign]
            lambda fetch, device=device: (
                Device.serve(device, fetch) if server.world.now_s > begin_s else None
            )
        )
    server.assert_ok(server.run([*silent, other]), *silent, other)


@pytest.mark.usefixtures("a_small_server")
def test_worthless_chunks_do_not_keep_a_transfer_alive(server: Server) -> None:
    """Else four devices that send nothing but nonsense would keep all others out."""
    bad = [server.device(f"a{i}", seed=i) for i in range(MIN_DOWNLOADS)]
    honest = server.device("b", seed=9)
    server.gather(len(bad) + 1)
    sent_s = 0.0

    def babble() -> None:
        nonlocal sent_s
        if server.world.now_s > sent_s + 1:
            sent_s = server.world.now_s
            for device in bad:
                device.mailbox.send(Chunk(UNKNOWN, 0, b"data"))

    server.world.actors.append(babble)
    for device in bad:
        device.serve = lambda fetch: None  # type: ignore[method-assign]
    answers = server.run([*bad, honest])
    server.assert_ok(answers, honest)
    assert all(server.mailbox.drops[d.name, "unexpected-blob"] > 9 for d in bad)


# --- before and after --------------------------------------------------------------------------


def test_gathering_ends_when_all_are_there(server: Server) -> None:
    for name in "ab":
        server.device(name)
    late: list[Device] = []

    def arrive() -> None:
        if server.world.now_s > 103 and not late:
            late.append(server.device("c"))

    server.world.actors.append(arrive)
    counts: list[int] = []
    server.exchange.gather(3, 60.0, counts.append)
    assert counts[0] == 0 and counts[-1] == 3 and counts == sorted(set(counts))
    assert server.world.now_s < 105


def test_gathering_gives_up_with_too_few(server: Server) -> None:
    device = server.device("a")
    counts: list[int] = []
    began_s = server.world.now_s
    server.exchange.gather(2, 9.0, counts.append)
    assert counts == [0, 1]
    assert server.world.now_s - began_s == pytest.approx(9.0, abs=0.5)
    assert 4 <= len(device.got(Rollcall)) <= 5  # every two seconds


def test_gathering_stops_when_the_watch_raises(server: Server) -> None:
    def watch() -> None:
        raise RuntimeError("a device process ended")

    with pytest.raises(RuntimeError, match="a device process ended"):
        server.exchange.gather(1, 60.0, watch=watch)


def test_those_who_were_there_before_the_server_are_called(server: Server) -> None:
    device = server.device("a")
    device.step()
    while server.mailbox.receive(0) is not None:
        pass  # its first hello is lost
    server.gather(1)
    assert device.got(Rollcall) == [Rollcall("s")]


MOVED = Moved("control", 10, 20, 1, 30, 40, 1)


class Teller(Device):
    """Tells its account when the run is over."""

    said = (MOVED,)

    def on(self, message: Message) -> None:
        super().on(message)
        if isinstance(message, Stop):
            self.mailbox.send(Account("s", list(self.said)))


def test_stopping_tells_everyone_and_waits_for_their_accounts(server: Server) -> None:
    tellers = [Teller(server.world, name, MODEL) for name in "ab"]
    server.gather(2)
    began_s = server.world.now_s
    assert server.exchange.stop("the run is complete") == {
        "a": Account("s", [MOVED]),
        "b": Account("s", [MOVED]),
    }
    assert server.world.now_s - began_s < ACCOUNTS_S / 2
    for device in tellers:
        device.step()
        assert device.received[-1] == Stop("s", "the run is complete")
    assert server.drops == {}


def test_stopping_does_not_wait_for_ever(server: Server) -> None:
    silent, left = server.device("a"), server.device("c")
    Teller(server.world, "b", MODEL)
    stranger, odd = Teller(server.world, "d", MODEL), Teller(server.world, "e", MODEL)
    stranger.hello = dataclasses.replace(HELLO, shape=[5])
    odd.said = (Moved("expert:4", 1, 1, 1, 1, 1, 1),)
    server.gather(4)
    left.on = lambda message: left.link.kill() if isinstance(message, Stop) else None  # type: ignore[method-assign]
    began_s = server.world.now_s
    assert server.exchange.stop("over") == {"b": Account("s", [MOVED])}
    assert server.world.now_s - began_s == pytest.approx(ACCOUNTS_S, abs=0.5)
    assert set(server.drops) == {("d", "unknown-client"), ("e", "bad-account")}
    assert silent.received[-1] == Stop("s", "over")


@pytest.mark.parametrize("pause_s", [ACCOUNTS_S / 2, 2 * ACCOUNTS_S])
def test_accounts_that_come_one_after_the_other_are_waited_for(
    server: Server, pause_s: float
) -> None:
    """As long as another comes soon enough, and not for ever."""
    due: list[tuple[float, Device]] = []

    class Slow(Device):
        def on(self, message: Message) -> None:
            super().on(message)
            if isinstance(message, Stop):
                due.append((server.world.now_s + (len(due) + 1) * pause_s, self))

    def tell() -> None:
        while due and due[0][0] <= server.world.now_s:
            due.pop(0)[1].mailbox.send(Account("s", [MOVED]))

    for index in range(30):
        Slow(server.world, f"d{index:02}", MODEL)
    server.gather(30)
    server.world.actors.append(tell)
    began_s = server.world.now_s
    told = server.exchange.stop("over")
    if pause_s > ACCOUNTS_S:
        assert told == {}
    else:
        assert len(told) == pytest.approx(MAX_ACCOUNTS_S / pause_s, abs=2)
        assert server.world.now_s - began_s == pytest.approx(MAX_ACCOUNTS_S, abs=0.5)


def test_a_device_that_comes_back_after_the_stop_is_told_of_it(server: Server) -> None:
    lost = Teller(server.world, "a", MODEL)
    silent = server.device("b")
    server.gather(2)
    lost.link.kill()
    server.world.actors.append(
        lambda: lost.link.restore() if silent.got(Stop) and lost.link.connections == 1 else None
    )
    assert server.exchange.stop("over") == {"a": Account("s", [MOVED])}
    assert server.drops == {}


def test_without_a_connection_nobody_is_waited_for(server: Server) -> None:
    three(server)
    server.link.kill()
    began_s = server.world.now_s
    assert server.exchange.stop("over") == {} and server.world.now_s == began_s


def test_what_a_report_tells_of_counts_once_and_also_when_it_is_late(server: Server) -> None:
    late, *rest = three(server)

    def telling(device: Device) -> None:
        plain = device.prepare

        def prepare(assign: Assign) -> None:
            plain(assign)
            device.change_report(account=[dataclasses.replace(MOVED, up_messages=assign.round)])

        device.prepare = prepare  # type: ignore[method-assign]

    for device in (late, *rest):
        telling(device)
    late.delay_s = DEADLINE_S + 1
    server.run([late, *rest])
    taken = server.exchange.accounts.take()
    assert taken == {name: [MOVED] for name in "bc"}
    for device in rest:
        device.mailbox.send(device.report)  # type: ignore[arg-type]
    server.exchange.gather(4, 3.0)  # the late one's comes
    assert server.exchange.accounts.take() == {"a": [MOVED]}
    assert server.drops == {(name, "stale"): 1 for name in "abc"}


def test_the_spool_of_a_round_does_not_hold_the_last_ones_updates(server: Server) -> None:
    devices = three(server)
    server.run(devices)
    forget(devices)
    answers = server.run(devices[:1], number=2)
    server.assert_ok(answers, devices[0])
    with pytest.raises(FlexmoeError, match="cannot read the update of b"):
        server.spool.get("b")
