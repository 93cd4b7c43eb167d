"""Downloads end with the right blobs or a clear failure, whatever the link does to the chunks."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter, deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import WireError
from edge_runtime.protocol.blob import chunk, make_ref
from edge_runtime.protocol.messages import DIGEST_BYTES, BlobRef, Chunk, Fetch, Want
from edge_runtime.protocol.transfer import MAX_ATTEMPTS, MAX_RETRY_S, Download, Wants, serve

SMALL = 16
NOTHING = Wants([], [])


def blob(chunks: int, seed: int = 0, short: int = 5) -> bytes:
    """A blob of that many chunks, the last one `short` bytes short."""
    return random.Random(seed).randbytes(chunks * SMALL - short)


def parts_of(data: bytes) -> list[Chunk]:
    ref = make_ref(data)
    return [chunk(ref.digest, data, index, SMALL) for index in range(ref.chunks(SMALL))]


def keys(wants: list[Want]) -> list[tuple[bytes, int]]:
    return [(w.digest, i) for w in wants for i in range(w.first, w.first + w.count)]


def indices(wants: Wants) -> list[int]:
    return [index for _, index in keys(wants.all)]


def reason(download: Download, part: Chunk, now_s: float = 0.0) -> str:
    """The reason for which `download` refuses `part`."""
    with pytest.raises(WireError) as caught:
        download.accept(part, now_s)
    return caught.value.reason


class Link:
    """A peer and the link to it: chunks are lost, doubled, spoilt and shuffled, at random."""

    def __init__(self, held: dict[bytes, bytes], rng: random.Random, reach: int) -> None:
        self.held = held
        self.rng = rng
        self.reach = reach  # how far a chunk may overtake others
        self.way: list[Chunk] = []

    def ask(self, wants: Wants, loss: float, doubling: float, spoiling: float) -> None:
        for part in serve(Fetch(wants.all), self.held.get, SMALL):
            for _ in range(2 if self.rng.random() < doubling else 1):
                if self.rng.random() >= loss:
                    spoil = self.rng.random() < spoiling
                    self.way.append(self.spoilt(part) if spoil else part)

    def spoilt(self, part: Chunk) -> Chunk:
        i = self.rng.randrange(len(part.data))
        spoilt = bytes([part.data[i] ^ 1 << self.rng.randrange(8)])
        return self.rng.choice(
            [
                replace(part, data=part.data[:i] + spoilt + part.data[i + 1 :]),
                replace(part, data=part.data[:i]),
                replace(part, data=part.data + b"x"),
                replace(part, index=abs(part.index + self.rng.choice((-1, 1, 2**40)))),
                replace(part, digest=self.rng.randbytes(DIGEST_BYTES)),
            ]
        )

    def arrive(self) -> Chunk:
        return self.way.pop(self.rng.randrange(min(len(self.way), self.reach)))


@settings(max_examples=500, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12 * SMALL), min_size=1, max_size=5),
    window=st.integers(1, 10),
    loss=st.sampled_from([0.0, 0.05, 0.3, 0.6]),
    doubling=st.sampled_from([0.0, 0.3]),
    spoiling=st.sampled_from([0.0, 0.02, 0.2]),
    reach=st.sampled_from([1, 2, 100]),
    rng=st.randoms(use_true_random=False),
)
def test_any_link_ends_with_the_blobs_or_a_failure(
    sizes: list[int],
    window: int,
    loss: float,
    doubling: float,
    spoiling: float,
    reach: int,
    rng: random.Random,
) -> None:
    dice = random.Random(rng.randrange(2**32))
    blobs = [dice.randbytes(size) for size in sizes]
    refs = [make_ref(data) for data in blobs]
    download = Download(refs, SMALL, window)
    link = Link({ref.digest: data for ref, data in zip(refs, blobs, strict=True)}, dice, reach)
    waiting: set[tuple[bytes, int]] = set()  # asked for and not answered
    before: set[tuple[bytes, int]] = set()  # asked for since their blob began
    taken: dict[bytes, bytes] = {}
    failures: Counter[str] = Counter()
    now_s = 100.0
    for _ in range(20_000):
        if download.complete or download.failed:
            break
        wants = download.wants(now_s)
        waiting.update(keys(wants.all))
        assert len(keys(wants.all)) <= len(waiting) <= window
        assert before.isdisjoint(keys(wants.fresh)) and before.issuperset(keys(wants.again))
        before.update(keys(wants.fresh))
        link.ask(wants, loss, doubling, spoiling)
        if link.way and (wants.all or dice.random() < 0.9):
            now_s += 0.1
            part = link.arrive()
            missing_bytes = download.missing_bytes
            try:
                done = download.accept(part, now_s)
            except WireError as error:
                failures[error.reason] += 1
                if error.reason == "bad-digest":
                    waiting.discard((part.digest, part.index))
                    before = {key for key in before if key[0] != part.digest}
                else:
                    assert download.missing_bytes == missing_bytes
                continue
            assert download.missing_bytes == missing_bytes - len(part.data)
            waiting.discard((part.digest, part.index))
            if done is not None:
                assert done in refs
                assert dict(download.blobs) == {done.digest: link.held[done.digest]}
                taken[done.digest] = download.take(done.digest)
                assert done.digest not in download.blobs
        else:
            now_s += download.next_retry_s(now_s)
    else:
        pytest.fail("the download came to no end")
    assert download.wants(now_s + 1e6) == NOTHING
    if download.failed:
        assert spoiling > 0
        assert failures["bad-digest"] >= MAX_ATTEMPTS
        assert reason(download, parts_of(link.held[download.failed.digest])[0]) == "bad-digest"
    else:
        assert taken == link.held
        assert download.missing_bytes == 0
        assert spoiling > 0 or not set(failures) - {"duplicate-chunk"}


@given(
    chunks=st.integers(1, 30),
    window=st.integers(1, 10),
    seed=st.integers(0, 99),
    short=st.integers(0, 15),
)
def test_a_good_link_carries_every_chunk_once(
    chunks: int, window: int, seed: int, short: int
) -> None:
    data = blob(chunks, seed, short)
    download = Download([make_ref(data)], SMALL, window)
    way: deque[Chunk] = deque()
    asked = 0
    while not download.complete:
        wants = download.wants(0.0)
        asked += len(keys(wants.all))
        assert not wants.again
        way.extend(serve(Fetch(wants.all), {make_ref(data).digest: data}.get, SMALL))
        assert len(way) <= window
        download.accept(way.popleft(), 0.0)
    assert asked == chunks
    assert download.blobs == {make_ref(data).digest: data}


def test_wants_are_ranges_in_the_order_of_the_refs() -> None:
    first, second = make_ref(blob(3)), make_ref(blob(9, 1))
    download = Download([first, second], SMALL, window=8)
    asked = [Want(first.digest, 0, 3), Want(second.digest, 0, 5)]
    assert download.wants(0.0) == Wants(fresh=asked, again=[])
    assert download.wants(0.0) == NOTHING
    for part in parts_of(blob(9, 1))[:2]:
        assert download.accept(part, 0.0) is None
    # The first blob's chunks were asked for before those two, so they are lost.
    wants = download.wants(0.0)
    assert wants == Wants(fresh=[Want(second.digest, 5, 2)], again=[Want(first.digest, 0, 3)])
    assert wants.all == [Want(first.digest, 0, 3), Want(second.digest, 5, 2)]


def test_nothing_to_download() -> None:
    download = Download([], SMALL)
    assert download.complete
    assert download.wants(0.0) == NOTHING
    assert download.next_retry_s(0.0) == math.inf


def test_one_digest_is_one_download() -> None:
    data = blob(2)
    backbone, gate = make_ref(data), make_ref(data)
    download = Download([backbone, gate], SMALL)
    assert download.wants(0.0).fresh == [Want(backbone.digest, 0, 2)]
    assert download.missing_bytes == len(data)
    part, last = parts_of(data)
    download.accept(part, 0.0)
    assert download.accept(last, 0.0) == backbone
    assert download.complete
    with pytest.raises(WireError, match="bad-size"):
        Download([backbone, BlobRef(gate.digest, 7)], SMALL)


def test_refusals_change_nothing() -> None:
    data = blob(3)
    part, middle, last = parts_of(data)
    download = Download([make_ref(data)], SMALL)
    download.wants(0.0)
    assert reason(download, parts_of(blob(3, 1))[0]) == "unexpected-blob"
    for bad in (
        replace(part, index=3),
        replace(part, index=3, data=b""),
        replace(part, index=2**63 - 1, data=b""),
        replace(part, index=2),
        replace(part, data=part.data[1:]),
        replace(part, data=part.data + b"x"),
        replace(last, data=last.data + bytes(5)),
        replace(last, data=b""),
    ):
        assert reason(download, bad) == "bad-chunk"
    download.accept(part, 0.0)
    assert reason(download, part) == "duplicate-chunk"
    assert reason(download, replace(part, data=bytes(SMALL))) == "duplicate-chunk"
    download.accept(last, 0.0)
    assert download.accept(middle, 0.0) == make_ref(data)
    assert download.take(part.digest) == data
    assert reason(download, middle) == "duplicate-chunk"
    with pytest.raises(KeyError):
        download.take(part.digest)


def test_a_chunk_that_nobody_asked_for_is_not_asked_for() -> None:
    data = blob(4)
    download = Download([make_ref(data)], SMALL, window=2)
    for index in (0, 2):
        download.accept(parts_of(data)[index], 0.0)
    assert indices(download.wants(0.0)) == [1, 3]


def test_a_wrong_digest_begins_the_blob_again() -> None:
    good, other = blob(3), blob(2, 1)
    ref = make_ref(good)
    download = Download([ref, make_ref(other)], SMALL)
    bad = [replace(part, data=bytes(len(part.data))) for part in parts_of(good)]
    for attempt in range(MAX_ATTEMPTS):
        assert download.failed is None
        asked = keys(download.wants(0.0).fresh)
        assert [index for name, index in asked if name == ref.digest] == [0, 1, 2]
        download.accept(bad[0], 0.0)
        download.accept(bad[1], 0.0)
        if attempt == 1:
            download.accept(parts_of(other)[0], 0.0)  # another blob does not mind
        assert reason(download, bad[2]) == "bad-digest"
        assert download.missing_bytes == len(good + other) - (attempt >= 1) * SMALL
    assert download.failed == ref
    assert not download.complete
    assert reason(download, parts_of(good)[0]) == "bad-digest"


def test_a_failed_download_asks_for_nothing_more() -> None:
    good = blob(2)
    part, last = parts_of(good)
    download = Download([make_ref(good), make_ref(blob(3, 1))], SMALL)
    assert len(indices(download.wants(0.0))) == 5
    for _ in range(MAX_ATTEMPTS):
        assert download.next_retry_s(0.0) == 5
        download.accept(replace(part, data=bytes(SMALL)), 0.0)
        assert reason(download, last) == "bad-digest"
    assert download.next_retry_s(0.0) == math.inf
    assert download.wants(100.0) == NOTHING


def test_a_second_attempt_can_succeed() -> None:
    good = blob(2)
    part, last = parts_of(good)
    download = Download([make_ref(good)], SMALL)
    download.accept(replace(part, data=bytes(SMALL)), 0.0)
    assert reason(download, last) == "bad-digest"
    assert download.missing_bytes == len(good)
    download.accept(part, 0.0)
    assert download.accept(last, 0.0) == make_ref(good)
    assert download.take(part.digest) == good


def test_silence_is_met_with_ever_rarer_questions() -> None:
    download = Download([make_ref(blob(20))], SMALL, window=8, retry_s=5.0)
    assert len(indices(download.wants(1000.0))) == 8
    now_s, waits = 1000.0, []
    for _ in range(6):
        waits.append(download.next_retry_s(now_s))
        assert download.wants(now_s + waits[-1] - 0.01) == NOTHING
        now_s += waits[-1]
        assert indices(download.wants(now_s)) == [7]
    assert waits == [5, 10, 20, MAX_RETRY_S, MAX_RETRY_S, MAX_RETRY_S]


def test_a_lost_window_is_asked_for_again_at_once_when_the_peer_is_back() -> None:
    data = blob(20)
    parts = parts_of(data)
    download = Download([make_ref(data)], SMALL, window=8, retry_s=5.0)
    assert indices(download.wants(0.0)) == list(range(8))
    assert indices(download.wants(5.0)) == [7]
    download.accept(parts[7], 5.1)  # the first answer or the second? It says nothing about 0 to 6
    assert indices(download.wants(5.1)) == [8]
    download.accept(parts[8], 5.2)  # asked for once, after 0 to 6: they are lost
    assert indices(download.wants(5.2)) == [*range(7), 9]


def test_the_last_window_lost_is_asked_for_in_growing_steps() -> None:
    data = blob(8)
    parts = parts_of(data)
    download = Download([make_ref(data)], SMALL, window=8, retry_s=5.0)
    now_s = 0.0
    download.wants(now_s)
    steps = []
    while not download.complete:
        now_s += download.next_retry_s(now_s)
        steps.append(indices(download.wants(now_s)))
        for index in steps[-1]:
            download.accept(parts[index], now_s)
    assert list(map(len, steps)) == [1, 2, 5]
    assert now_s == 15.0


def test_the_retry_time_follows_the_gaps_between_arrivals() -> None:
    data = blob(30)
    download = Download([make_ref(data)], SMALL, window=8, retry_s=5.0)
    now_s, waits = 0.0, []
    for part, gap_s in zip(parts_of(data), (1, 3, 20, 0, 0, 0, 0, 500, 0, 0), strict=False):
        download.wants(now_s)
        now_s += gap_s
        download.accept(part, now_s)
        waits.append(download.next_retry_s(now_s))
    assert waits == [5, 6, 40, 20, 10, 5, 5, 120, 60, 30]


def test_after_news_a_silence_makes_us_ask_for_one_chunk_again() -> None:
    data = blob(30)
    parts = parts_of(data)
    download = Download([make_ref(data)], SMALL, window=8, retry_s=5.0)
    download.wants(0.0)
    download.wants(5.0)
    download.accept(parts[7], 5.0)
    assert indices(download.wants(5.0)) == [8]
    assert indices(download.wants(10.0)) == [6, 8]  # one was answered: two questions
    download.accept(parts[0], 10.0)
    assert indices(download.wants(10.0)) == [9]
    assert len(indices(download.wants(40.0))) == 1


@pytest.mark.parametrize("chunk_s", [2.0, 12.0, 26.0, 55.0, 105.0])
def test_a_slow_link_is_not_flooded_with_repeated_questions(chunk_s: float) -> None:
    """The peer answers each question, one chunk in `chunk_s`, long after the retry time."""
    data = blob(30)
    download = Download([make_ref(data)], SMALL, window=8, retry_s=5.0)
    parts = parts_of(data)
    queue: deque[int] = deque()
    now_s, sent, arrival_s = 0.0, 0, math.inf
    while not download.complete:
        asked = indices(download.wants(now_s))
        if asked and not queue:
            arrival_s = now_s + chunk_s
        queue.extend(asked)
        sent += len(asked)
        retry_s = now_s + download.next_retry_s(now_s)
        if retry_s < arrival_s:
            now_s = retry_s
            continue
        now_s = arrival_s
        try:
            download.accept(parts[queue.popleft()], now_s)
        except WireError as error:
            assert error.reason == "duplicate-chunk"
        arrival_s = now_s + chunk_s if queue else math.inf
    assert sent - 30 <= 6


def test_memory_is_one_copy_of_the_blob() -> None:
    chunk_bytes, data = 1 << 16, bytes(16 << 20)
    ref = make_ref(data)
    tracemalloc.start()
    try:
        download = Download([ref], chunk_bytes)
        for index in reversed(range(ref.chunks(chunk_bytes))):
            download.accept(chunk(ref.digest, data, index, chunk_bytes), 0.0)
        taken = download.take(ref.digest)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * len(data)
        assert taken == data
    finally:
        tracemalloc.stop()


def test_a_download_takes_memory_for_what_has_begun_to_arrive() -> None:
    refs = [BlobRef(bytes([number]) * DIGEST_BYTES, 1 << 29) for number in range(8)]
    tracemalloc.start()
    try:
        Download(refs, 1 << 16).wants(0.0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_lost_connection_makes_it_ask_for_its_window_again() -> None:
    data = blob(20)
    parts = parts_of(data)
    download = Download([make_ref(data)], SMALL, window=4)
    assert indices(download.wants(0.0)) == [0, 1, 2, 3]
    download.accept(parts[1], 0.0)  # 0 is lost
    name = parts[0].digest
    assert download.wants(0.0) == Wants([Want(name, 4, 1)], [Want(name, 0, 1)])
    download.forget_asked()
    assert download.next_retry_s(0.0) == math.inf
    assert download.wants(0.0) == Wants([], [Want(name, 2, 2), Want(name, 0, 1), Want(name, 4, 1)])
    for part in (parts[0], parts[2], parts[3], parts[4]):  # what they tell is not what is lost
        download.accept(part, 0.0)
    assert download.wants(0.0) == Wants([Want(name, 5, 4)], [])


@pytest.mark.parametrize(("window", "retry_s"), [(0, 5.0), (-1, 5.0), (10_000, 5.0), (8, 0.0)])
def test_impossible_settings(window: int, retry_s: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        Download([], SMALL, window, retry_s)


# --- serve -------------------------------------------------------------------------------------


class Finder:
    """Finds blobs, and counts how often it was asked."""

    def __init__(self, *blobs: bytes) -> None:
        self.held = {make_ref(data).digest: data for data in blobs}
        self.calls = 0

    def __call__(self, name: bytes) -> bytes | None:
        self.calls += 1
        return self.held.get(name)


def served(wants: list[Want], find: Finder, limit: int = 64) -> tuple[list[Chunk], str | None]:
    """The chunks, and the reason of the refusal if there was one."""
    parts = []
    try:
        for part in serve(Fetch(wants), find, SMALL, limit):
            parts.append(part)
    except WireError as error:
        return parts, error.reason
    return parts, None


def test_serve_answers_in_order() -> None:
    one, other = blob(5), blob(3, 1)
    a, b = parts_of(one), parts_of(other)
    wants = [Want(b[0].digest, 1, 2), Want(a[0].digest, 0, 2), Want(a[0].digest, 4, 1)]
    assert served(wants, Finder(one, other)) == ([*b[1:], *a[:2], a[4]], None)
    assert served([], Finder(one)) == ([], None)


def test_serve_gives_what_it_can_and_says_what_it_cannot() -> None:
    data = blob(3)
    parts = parts_of(data)
    name, unknown = parts[0].digest, bytes(DIGEST_BYTES)
    whole = Want(name, 0, 3)
    assert served([Want(unknown, 0, 1), whole], Finder(data)) == (parts, "unknown-blob")
    for bad in (Want(name, 3, 1), Want(name, 0, 4), Want(name, 2**63 - 1, 1)):
        assert served([bad, whole, Want(unknown, 0, 1)], Finder(data)) == (parts, "bad-want")


@given(
    wants=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 40)), max_size=20
    ),
    limit=st.integers(1, 64),
)
def test_one_fetch_costs_no_more_than_the_limit(
    wants: list[tuple[int, int, int]], limit: int
) -> None:
    one, other = blob(20), blob(30, 1)
    names = [make_ref(one).digest, make_ref(other).digest, bytes(DIGEST_BYTES)]
    find = Finder(one, other)
    asked = [Want(names[i], first, count) for i, first, count in wants]
    parts, refusal = served(asked, find, limit)
    assert len(parts) <= limit
    assert find.calls <= limit
    flat = keys(
        [
            w
            for w in asked
            if w.digest in find.held and w.first + w.count <= (20 if w.digest == names[0] else 30)
        ]
    )
    assert [(part.digest, part.index) for part in parts] == flat[: len(parts)]
    if refusal is None:
        assert len(parts) == sum(want.count for want in asked)


def test_a_greedy_fetch_gets_the_limit() -> None:
    data = blob(100)
    name = make_ref(data).digest
    parts, refusal = served([Want(name, 0, 100)] * 4096, Finder(data))
    assert ([part.index for part in parts], refusal) == (list(range(64)), "greedy-fetch")


def test_serving_stops_when_there_is_no_room() -> None:
    data = blob(5)
    name = make_ref(data).digest
    rooms = iter([True, True, False])
    served: list[int] = []
    with pytest.raises(WireError, match="busy"):
        for part in serve(
            Fetch([Want(name, 0, 5)]), {name: data}.get, SMALL, has_room=lambda: next(rooms)
        ):
            served.append(part.index)
    assert served == [0, 1]


# --- chunks that keep no order -----------------------------------------------------------------


def test_overtaken_chunks_are_lost_only_where_order_is_kept() -> None:
    data = blob(6)
    for ordered in (True, False):
        download = Download([make_ref(data)], SMALL, ordered=ordered)
        assert indices(download.wants(0)) == [0, 1, 2, 3, 4, 5]
        download.accept(parts_of(data)[4], 1)
        assert indices(download.wants(1)) == ([0, 1, 2, 3] if ordered else [])
        assert indices(download.wants(7)) == [3 if ordered else 5]  # silence: the newest


def test_a_doubt_costs_one_chunk_in_the_middle() -> None:
    data = blob(6)
    download = Download([make_ref(data)], SMALL)
    download.doubt()
    download.wants(0)
    download.doubt()
    assert download.wants(0) == Wants([], [Want(make_ref(data).digest, 3, 1)])


def test_an_outage_is_no_silence() -> None:
    data = blob(6)
    download = Download([make_ref(data)], SMALL, retry_s=5)
    download.wants(0)
    for index, now_s in ((0, 3), (1, 9)):
        download.accept(parts_of(data)[index], now_s)
    assert download.gap_s == 6
    download.wants(21)  # a retry, in vain
    download.wait_anew(100)
    assert download.next_retry_s(100) == 12 and download.wants(111) == NOTHING
    assert indices(download.wants(112)) == [5]


def test_a_download_goes_on_with_what_another_got() -> None:
    data = blob(12)
    ref = make_ref(data)
    first = Download([ref], SMALL, window=4)
    first.wants(0)
    for index in (0, 2, 3):
        first.accept(parts_of(data)[index], 0)
    (partial,) = first.open
    second = Download([ref, ref], SMALL, window=20, begin=lambda ref, size: partial)
    assert indices(second.wants(0)) == [1, *range(4, 12)]
    assert second.missing_bytes == len(data) - 3 * SMALL
    for index in (1, *range(4, 12)):
        done = second.accept(parts_of(data)[index], 0)
    assert done == ref and second.take(ref.digest) == data and not second.open
