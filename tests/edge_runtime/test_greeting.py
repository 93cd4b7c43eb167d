"""How a device says hello, in a whole device's life."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.codec import known_codecs
from edge_runtime.errors import FlexmoeError
from edge_runtime.greeting import HELLO_EVERY_S, HELLO_MOST_S
from edge_runtime.program_cache import ProgramCache
from edge_runtime.protocol.messages import (
    Gone,
    Hello,
    Report,
    Rollcall,
    Stop,
)
from edge_runtime.telemetry import memory_available_bytes
from edge_runtime.work import contents_of
from tests.edge_runtime.stage import SAMPLES, Script, Stage, make_model


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_device_says_who_it_is(stage: Stage) -> None:
    def script() -> Script:
        hello = yield from stage.hear(Hello)
        assert hello == Hello(
            session="",
            samples=SAMPLES,
            test_samples=5,
            shape=[4],
            labels=3,
            trainer="native",
            machine=hello.machine,
            cores=hello.cores,
            memory_available_bytes=hello.memory_available_bytes,
            version=hello.version,
            link="",
            board="",
            memory_kills=hello.memory_kills,
            codecs=known_codecs(),
            held=[],
        )
        assert hello.memory_kills >= -1
        assert hello.cores > 0 and hello.memory_available_bytes > 0 and hello.version
        stage.welcome()
        stage.say(Stop("s", "the run is complete"))
        yield

    assert stage.play(script()) == "the run is complete"


def test_a_limit_is_the_memory_that_it_says_to_have() -> None:
    for limit, told in ((1000, 1000), (1 << 60, memory_available_bytes())):
        stage = Stage(memory_limit_bytes=limit)

        def script(stage: Stage = stage, told: int = told) -> Script:
            hello = yield from stage.hear(Hello)
            assert hello.memory_available_bytes == pytest.approx(told, rel=0.2)
            stage.welcome()
            stage.say(Stop("s", "enough"))
            yield

        stage.play(script())


def test_it_says_what_it_holds_and_how_it_is_linked(tmp_path: Path) -> None:
    """Parts in memory, programs on its disk, also after a restart."""
    before = Stage(programs=ProgramCache(tmp_path), link_class="lte-m")
    assign = before.make_assign(make_model(0, before.layout))
    programs = {assign.training_program.digest, assign.evaluation_program.digest}

    def first() -> Script:
        yield from before.join()
        before.say(assign)
        yield from before.hear(Report)
        before.say(Rollcall("s"))
        hello = yield from before.hear(Hello)
        assert hello.link == "lte-m"
        assert set(hello.held) == {part.digest for _, part in contents_of(assign)}
        before.welcome()
        before.say(Stop("s", "enough"))
        yield

    before.play(first())
    after = Stage(programs=ProgramCache(tmp_path))

    def second() -> Script:
        hello = yield from after.hear(Hello)
        assert set(hello.held) == programs
        after.welcome()
        after.say(assign)
        after.make_assign(make_model(0, after.layout))
        yield from after.hear(Report)
        assert {name for name, _ in after.mailbox.listened}.isdisjoint(
            {part.frames[0].digest for _, part in contents_of(assign)[:2]}
        )
        after.say(Stop("s", "enough"))
        yield

    after.play(second())


def test_hello_is_said_until_it_is_answered(stage: Stage) -> None:
    def script() -> Script:
        yield from stage.rest(7 * HELLO_EVERY_S + 1)
        assert stage.count(Hello) == 4  # at 0, 1, 3 and 7 times: less and less often
        yield from stage.rest(4 * HELLO_MOST_S)
        assert stage.count(Hello) == 8  # at 15 and 31 times, then every 60 s
        stage.welcome()
        yield from stage.rest(2 * HELLO_MOST_S)
        assert stage.count(Hello) == 8
        stage.say(Rollcall("s"))
        yield from stage.rest(1)
        assert stage.count(Hello) == 9
        yield from stage.rest(3 * HELLO_EVERY_S)
        assert stage.count(Hello) == 11  # the answer to it is missing
        stage.welcome()
        stage.say(Stop("s", "enough"))
        yield

    assert stage.play(script()) == "enough"


def test_hello_is_said_at_once_on_a_new_connection(stage: Stage) -> None:
    def script() -> Script:
        yield from stage.join()
        yield from stage.rest(0.6)
        stage.link.kill()
        stage.link.restore()
        said = yield from stage.hear(Gone)
        assert said == Gone("connection lost")
        began_s = stage.world.now_s
        hello = yield from stage.hear(Hello)
        assert hello.session == "s" and stage.world.now_s - began_s < HELLO_EVERY_S / 2
        stage.welcome()
        stage.say(Stop("s", "enough"))
        yield

    stage.play(script())


def test_the_answer_to_an_earlier_connections_hello_does_not_count(stage: Stage) -> None:
    """The server has heard the last will since: for it, this device is gone."""

    def script() -> Script:
        yield from stage.hear(Hello)
        stage.welcome()  # lies unread in the inbox while the connection changes
        stage.link.kill()
        stage.link.restore()
        yield from stage.hear(Hello)
        stage.welcome()
        yield from stage.rest(3 * HELLO_EVERY_S)
        assert stage.count(Hello) == 0
        stage.say(Stop("s", "enough"))
        yield

    stage.play(script())


def test_a_contested_name_ends_the_device(stage: Stage) -> None:
    def script() -> Script:
        yield from stage.join()
        stage.link.contested = True
        yield

    with pytest.raises(FlexmoeError, match="another device with the id 'dev'"):
        stage.play(script())
