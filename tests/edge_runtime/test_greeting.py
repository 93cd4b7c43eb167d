"""How a device says hello, in a whole device's life."""

from __future__ import annotations

import pytest

from edge_runtime.errors import FlexmoeError
from edge_runtime.greeting import HELLO_EVERY_S
from edge_runtime.messages import (
    Gone,
    Hello,
    Rollcall,
    Stop,
    Welcome,
)
from edge_runtime.telemetry import memory_available_bytes
from tests.edge_runtime.stage import (
    SAMPLES,
    Script,
    Stage,
)


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
        )
        assert hello.cores > 0 and hello.memory_available_bytes > 0 and hello.version
        stage.say(Welcome("s"))
        stage.say(Stop("s", "the run is complete"))
        yield

    assert stage.play(script()) == "the run is complete"


def test_a_limit_is_the_memory_that_it_says_to_have() -> None:
    for limit, told in ((1000, 1000), (1 << 60, memory_available_bytes())):
        stage = Stage(memory_limit_bytes=limit)

        def script(stage: Stage = stage, told: int = told) -> Script:
            hello = yield from stage.hear(Hello)
            assert hello.memory_available_bytes == pytest.approx(told, rel=0.2)
            stage.say(Welcome("s"))
            stage.say(Stop("s", "enough"))
            yield

        stage.play(script())


def test_hello_is_said_until_it_is_answered(stage: Stage) -> None:
    def script() -> Script:
        yield from stage.rest(3 * HELLO_EVERY_S + 1)
        assert stage.count(Hello) == 4
        stage.say(Welcome("s"))
        yield from stage.rest(5 * HELLO_EVERY_S)
        assert stage.count(Hello) == 4
        stage.say(Rollcall("s"))
        yield from stage.rest(1)
        assert stage.count(Hello) == 5
        yield from stage.rest(2 * HELLO_EVERY_S)
        assert stage.count(Hello) == 7  # the answer to it is missing
        stage.say(Welcome("s"))
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
        stage.say(Welcome("s"))
        stage.say(Stop("s", "enough"))
        yield

    stage.play(script())


def test_the_answer_to_an_earlier_connections_hello_does_not_count(stage: Stage) -> None:
    """The server has heard the last will since: for it, this device is gone."""

    def script() -> Script:
        yield from stage.hear(Hello)
        stage.say(Welcome("s"))  # lies unread in the inbox while the connection changes
        stage.link.kill()
        stage.link.restore()
        yield from stage.hear(Hello)
        stage.say(Welcome("s"))
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
