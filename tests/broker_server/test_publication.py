"""The published model against devices that follow it, miss rounds, forget, and know few codecs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_server.publishing.history import FRAME_COST_BYTES
from broker_server.publishing.publication import Publication, changed_kinds, parts_of
from edge_runtime.artifact import build_part
from edge_runtime.codec import PRESETS, Preset, known_codecs
from edge_runtime.errors import FlexmoeError
from edge_runtime.parts import ModelParts
from edge_runtime.protocol.messages import Artifact
from edge_runtime.tensor_blob import Tensors, unpack_tensors
from tests.broker_server.sample_model import random_model

CODECS = known_codecs()
KINDS = ["backbone", "gate", "expert:0", "expert:1", "expert:2", "expert:3"]
LOSSY = Preset("int8", "int8", "fp16")
SPARSE = Preset("raw", "topk(0.05)", "fp16")
MODEL = random_model(0, big=40)


class Stepwise(Publication):
    """Finds out itself what has changed since the last round."""

    last: ModelParts

    def begin(self, model: ModelParts, codecs: Collection[str]) -> ModelParts:
        self.last = super().begin(model, codecs)
        return self.last

    def step(self, model: ModelParts, number: int, codecs: Collection[str]) -> ModelParts:
        changed, self.last = changed_kinds(self.last, model), model
        return self.publish(model, changed, number, codecs)


def publication(codings: Preset = LOSSY, whole_every: int = 0, seed: int = 3) -> Stepwise:
    return Stepwise(codings, whole_every, seed)


def trained(model: ModelParts, seed: int, experts: Collection[int], size: float) -> ModelParts:
    """The model after a round in which these experts were trained."""
    rng = np.random.default_rng(seed)

    def moved(tensors: Tensors) -> Tensors:
        return {
            name: (value + size * rng.normal(size=value.shape)).astype(np.float32)
            for name, value in tensors.items()
        }

    return ModelParts(
        backbone=moved(model.backbone),
        gate=moved({"gate": model.gate})["gate"],
        experts=tuple(moved(t) if e in experts else t for e, t in enumerate(model.experts)),
    )


def assert_equal(left: ModelParts, right: ModelParts) -> None:
    for (kind, one), (_, other) in zip(parts_of(left), parts_of(right), strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one), kind


class Follower:
    """A device: takes what it is told to, one version of each part."""

    def __init__(self, published: Publication, codecs: Sequence[str] = CODECS) -> None:
        self.published = published
        self.codecs = codecs
        self.held: dict[str, tuple[bytes, Tensors]] = {}

    def take(self, kind: str) -> Artifact:
        held = {name: tensors for name, tensors in self.held.values()}
        artifact = self.published.artifact(kind, held, self.codecs)
        if artifact.frames:
            found = [self.published.find(ref.digest) for ref in artifact.frames]
            frames = [frame for frame in found if frame is not None]
            assert len(frames) == len(found)
            assert all(frame.kind == kind for frame in frames)
            assert all(frame.needs <= set(self.codecs) for frame in frames)
            base = held[artifact.base] if artifact.base else None
            content = build_part(artifact, base, [frame.data for frame in frames])
            self.held[kind] = artifact.digest, unpack_tensors(content)
        else:
            assert artifact.digest in held
        return artifact

    def follow(self, model: ModelParts) -> dict[str, Artifact]:
        """Take all parts: they are those of `model`, to the bit."""
        taken = {kind: self.take(kind) for kind in KINDS}
        for kind, tensors in parts_of(model):
            mine = self.held[kind][1]
            assert all(mine[name].tobytes() == value.tobytes() for name, value in tensors.items())
        return taken


def size_bytes(artifact: Artifact) -> int:
    return sum(ref.size_bytes for ref in artifact.frames)


# --- what is published -------------------------------------------------------------------------


@pytest.mark.parametrize("codings", [PRESETS["lossless"], Preset("raw", "raw", "raw")])
def test_without_loss_the_published_model_is_the_servers(codings: Preset) -> None:
    server = publication(codings)
    assert_equal(server.begin(MODEL, CODECS), MODEL)
    follower = Follower(server)
    follower.follow(MODEL)
    model = trained(MODEL, 1, [0, 2], 0.1)
    assert_equal(server.step(model, 1, CODECS), model)
    taken = follower.follow(model)
    assert [len(taken[kind].frames) for kind in KINDS] == [1, 1, 1, 0, 1, 0]
    assert not any(artifact.base for artifact in taken.values())


@pytest.mark.parametrize("codings", [LOSSY, SPARSE, PRESETS["default"], PRESETS["narrow"]])
def test_what_a_step_loses_comes_with_a_later_one(codings: Preset) -> None:
    server = publication(codings)
    model = server.begin(MODEL, CODECS)
    follower = Follower(server)
    follower.follow(model)
    lost: list[float] = []
    for number in range(1, 60):
        # After some rounds only tiny changes come: the published model goes on to follow.
        model = trained(model, number, range(4), 0.1 if number < 10 else 1e-7)
        after = server.step(model, number, CODECS)
        taken = follower.follow(after)
        assert all(len(artifact.frames) == 1 for artifact in taken.values())
        lost.append(
            float(np.abs(after.experts[0]["0.weight"] - model.experts[0]["0.weight"]).max())
        )
    assert lost[8] > 1e-4 and lost[8] > 10 * lost[-1]


def test_a_part_that_is_as_it_was_is_not_sent_again() -> None:
    """Though something of it is still to be sent."""
    server = publication()
    model = server.begin(MODEL, CODECS)
    first = trained(model, 1, range(4), 0.1)
    server.step(first, 1, CODECS)
    follower = Follower(server)
    follower.follow(server.published)  # type: ignore[arg-type]
    second = trained(first, 2, [1], 0.1)
    after = server.step(second, 2, CODECS)
    assert (after.experts[0]["0.weight"] != second.experts[0]["0.weight"]).any()
    taken = follower.follow(after)
    assert [len(taken[kind].frames) for kind in KINDS] == [1, 1, 0, 1, 0, 0]
    server.step(dataclasses.replace(second, gate=second.gate.copy()), 3, CODECS)
    assert not any(artifact.frames for artifact in follower.follow(after).values())


def test_the_same_seed_publishes_the_same() -> None:
    runs = []
    for seed in (1, 1, 2):
        server = publication(Preset("int4", "int4", "int8"), seed=seed)
        model = server.begin(MODEL, CODECS)
        runs.append((model, server.step(trained(MODEL, 1, range(4), 0.1), 1, CODECS)))
    for one, other in zip(runs[0], runs[1], strict=True):
        assert_equal(one, other)
    assert (runs[0][1].gate != runs[2][1].gate).any()


@pytest.mark.parametrize("codings", [LOSSY, SPARSE, PRESETS["lossless"]])
@pytest.mark.parametrize("whole_every", [0, 3])
def test_a_resumed_server_publishes_the_same(codings: Preset, whole_every: int) -> None:
    one = publication(codings, whole_every)
    models = [one.begin(MODEL, CODECS)]
    after, ways = models[:], [one.ways]
    for number in range(1, 7):
        models.append(trained(models[-1], number, [number % 4], 0.1))
        after.append(one.step(models[-1], number, CODECS))
        ways.append(one.ways)
    other = publication(codings, whole_every)
    other.resume(after[2], ways[2])
    assert other.published is after[2]
    other.last = models[2]
    follower = Follower(other)
    follower.follow(after[2])
    for number in range(3, 7):
        assert_equal(other.step(models[number], number, CODECS), after[number])
        assert other.ways == ways[number]
        follower.follow(after[number])


@pytest.mark.parametrize("codings", [LOSSY, SPARSE, PRESETS["default"], PRESETS["narrow"]])
def test_a_resumed_server_leads_all_devices_as_before(codings: Preset) -> None:
    """Also those that hold nothing: its frames are not forgotten."""
    one = publication(codings)
    model = one.begin(MODEL, CODECS)
    old = Follower(one)
    old.follow(model)
    for number in range(1, 4):
        model = trained(model, number, range(4), 0.1)
        one.step(model, number, CODECS)
    other = publication(codings)
    other.resume(one.published, one.ways)  # type: ignore[arg-type]
    for held in ((), {name for name, _ in old.held.values()}):
        for kind in KINDS:
            way = one.artifact(kind, held, CODECS)
            assert other.artifact(kind, held, CODECS) == way
            assert all(other.find(ref.digest) == one.find(ref.digest) for ref in way.frames)
    old.published = other
    old.follow(one.published)  # type: ignore[arg-type]
    Follower(other).follow(one.published)  # type: ignore[arg-type]


def test_every_so_many_rounds_what_changed_is_sent_without_loss() -> None:
    server = publication(whole_every=2)
    model = server.begin(MODEL, CODECS)
    follower = Follower(server)
    follower.follow(model)
    for number in range(1, 5):
        model = trained(model, number, [0], 0.1)
        after = server.step(model, number, CODECS)
        taken = follower.follow(after)
        whole = number % 2 == 0
        assert (after.experts[0]["0.weight"] == model.experts[0]["0.weight"]).all() == whole
        assert bool(taken["expert:0"].base) != whole and len(taken["gate"].frames) == 1
        assert taken["expert:1"].frames == []


@pytest.mark.parametrize("codings", [LOSSY, Preset("raw", "fp16", "fp16"), SPARSE])
def test_a_change_that_no_codec_bears_is_sent_without_loss(codings: Preset) -> None:
    server = publication(codings)
    low = dataclasses.replace(MODEL, gate=np.full_like(MODEL.gate, -3e38))
    server.resume(low, {})
    server.last = low
    high = dataclasses.replace(MODEL, gate=np.full_like(MODEL.gate, 3e38))
    assert_equal(server.step(high, 1, CODECS), high)
    Follower(server).follow(high)


def test_a_model_that_the_codec_of_whole_parts_cannot_bear_is_named() -> None:
    model = dataclasses.replace(MODEL, gate=np.full_like(MODEL.gate, np.inf))
    with pytest.raises(FlexmoeError, match=r"wire.whole = fp16 cannot code the model's gate"):
        publication().begin(model, CODECS)


# --- the ways to it ----------------------------------------------------------------------------


def cost(artifact: Artifact) -> int:
    return size_bytes(artifact) + FRAME_COST_BYTES * len(artifact.frames)


def after_rounds(server: Publication, rounds: int) -> tuple[list[bytes], list[int]]:
    """The versions of one expert, from the first on, and what each step costs who is up to date."""
    model = server.begin(MODEL, CODECS)
    follower = Follower(server)
    versions, steps = [follower.take("expert:0").digest], []
    for number in range(1, rounds + 1):
        model = trained(model, number, [0], 0.1)
        server.step(model, number, CODECS)
        taken = follower.take("expert:0")
        assert taken.base == versions[-1] and len(taken.frames) == 1
        versions.append(taken.digest)
        steps.append(cost(taken))
    return versions, steps


@pytest.mark.parametrize("rounds", [1, 5, 60])
def test_the_way_is_the_one_of_fewest_bytes(rounds: int) -> None:
    server = publication(SPARSE)
    versions, steps = after_rounds(server, rounds)
    whole = cost(server.artifact("expert:0", (), ["raw", "zlib", "zstd"]))
    ways = []
    for age in range(1, rounds + 1):
        taken = server.artifact("expert:0", {versions[-1 - age]}, CODECS)
        assert cost(taken) == min(sum(steps[-age:]), whole)
        assert len(taken.frames) == (age if taken.base else 1)
        ways.append(bool(taken.base))
    assert all(ways) == (rounds < 60) and any(ways)


def test_who_holds_nothing_begins_with_the_first_frame_as_long_as_that_is_less() -> None:
    few, many = publication(SPARSE), publication(SPARSE)
    after_rounds(few, 2)
    after_rounds(many, 60)
    assert len(Follower(few).take("expert:0").frames) == 3
    assert len(Follower(many).take("expert:0").frames) == 1


@pytest.mark.parametrize("codecs", [["raw"], ["raw", "zlib"], ["raw", "fp16", "zlib"]])
def test_a_device_is_sent_nothing_that_it_cannot_decode(codecs: list[str]) -> None:
    server = publication(Preset("raw", "int8+zip", "fp16"))
    model = server.begin(MODEL, CODECS)
    knows_all, knows_few = Follower(server), Follower(server, codecs)
    for number in range(1, 4):
        knows_all.follow(server.published)  # type: ignore[arg-type]
        knows_few.follow(server.published)  # type: ignore[arg-type]
        model = trained(model, number, range(4), 0.1)
        server.step(model, number, ["raw", "int8", "zlib"])
    assert knows_all.take("expert:0").base and not knows_few.take("expert:0").base


def test_frames_use_no_compressor_that_one_lacks() -> None:
    for shared, used in ((CODECS, CODECS[-1]), (["raw", "int8", "zlib"], "zlib")):
        server = publication(Preset("raw", "int8+zip", "fp16"))
        model = server.begin(MODEL, shared)
        base = {server.artifact("expert:0", (), CODECS).digest}
        server.step(trained(model, 1, [0], 0.1), 1, shared)
        (ref,) = server.artifact("expert:0", base, CODECS).frames
        frame = server.find(ref.digest)
        assert frame is not None and frame.needs == {"int8", used}


def test_what_is_remembered_is_bounded() -> None:
    server = publication(SPARSE)
    raw_bytes = sum(value.nbytes for value in MODEL.experts[0].values())
    after_rounds(server, 100)
    frames = server._parts["expert:0"].frames().values()
    assert raw_bytes / 2 < sum(frame.ref.size_bytes for frame in frames) < 2 * raw_bytes


def test_a_change_of_which_nothing_is_left_makes_no_version() -> None:
    """0 and -0 differ in a bit, and not by any change that could be added."""
    server = publication(Preset("raw", "fp16", "raw"))
    zero = dataclasses.replace(MODEL, gate=np.zeros_like(MODEL.gate))
    server.begin(zero, CODECS)
    held = {server.artifact("gate", (), CODECS).digest}
    negative = dataclasses.replace(zero, gate=-zero.gate)
    assert_equal(server.step(negative, 1, CODECS), zero)
    assert server.artifact("gate", held, CODECS).frames == []
    more = dataclasses.replace(zero, gate=zero.gate + np.float32(0.5))
    assert server.step(more, 2, CODECS).gate == pytest.approx(more.gate, abs=1e-3)
    assert len(server.artifact("gate", held, CODECS).frames) == 1


STEPS = st.lists(
    st.tuples(
        st.sets(st.integers(0, 3)),  # experts that are trained
        st.lists(st.booleans(), min_size=3, max_size=3),  # who takes part
        st.sampled_from(["", *KINDS]),  # what the first one forgets
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(STEPS, st.sampled_from([LOSSY, SPARSE, PRESETS["lossless"]]), st.integers(0, 4))
def test_all_who_take_a_part_hold_the_same_bits(
    steps: list[tuple[set[int], list[bool], str]], codings: Preset, whole_every: int
) -> None:
    server = publication(codings, whole_every)
    model = server.begin(random_model(5), CODECS)
    followers = [Follower(server), Follower(server, ["raw", "zlib"]), Follower(server)]
    for number, (experts, present, forgotten) in enumerate(steps, 1):
        model = trained(model, number, experts, 0.1)
        after = server.step(model, number, CODECS)
        followers[0].held.pop(forgotten, None)
        for follower, there in zip(followers, present, strict=True):
            if there:
                follower.follow(after)
