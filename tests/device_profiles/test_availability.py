"""When devices are there: against the state by brute force at sampled times."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_profiles.fleet.availability import Availability, Change, parse_availability
from edge_runtime.errors import ConfigError

At = Callable[[float], bool]
SECONDS = st.integers(0, 50)
SEEDS = st.integers(-(2**40), 2**40)
TRACE_LINES = st.lists(st.tuples(SECONDS, st.sampled_from("01234"), st.booleans()), min_size=1)


def of(spec: str) -> Availability:
    return parse_availability(spec, None)


def first(spec: str, count: int, seed: int = 0, number: int = 0) -> list[Change]:
    return list(islice(of(spec).changes(seed, number, f"device-{number:02d}"), count))


def trace(folder: Path, text: str) -> Availability:
    (folder / "trace.csv").write_text(text, encoding="utf-8")
    return parse_availability("trace(trace.csv)", folder)


def write_trace(folder: Path, lines: list[tuple[int, str, bool]]) -> None:
    rows = (f"{time},{device},{'on' if on else 'off'}\n" for time, device, on in lines)
    (folder / "trace.csv").write_text("time,device,state\n" + "".join(rows))


def state_at(changes: list[Change], time_s: float) -> bool:
    return [change.on for change in changes if change.time_s <= time_s][-1]


def trace_at(lines: list[tuple[int, str, bool]], device: str, time_s: float) -> bool:
    """What the file says of a device, read from the top for each time."""
    mine = [(time, on) for time, name, on in lines if name == device]
    if not mine:
        return True
    earliest = min(time for time, _ in mine)
    told = not next(on for time, on in mine if time == earliest)
    for second in range(math.floor(time_s) + 1):
        for time, on in mine:
            if time == second:
                told = on
    return told


def test_always() -> None:
    assert first("always", 9) == first(" always + always", 9) == [Change(0.0, True)]


@given(st.tuples(SECONDS, SECONDS).map(sorted), SEEDS, st.integers(0, 300))
def test_arriving_and_departing(range_s: list[int], seed: int, number: int) -> None:
    a, b = range_s
    for word, on in (("arrive", True), ("depart", False)):
        changes = first(f"{word}({a}, {b})", 9, seed, number)
        assert changes[-1].on == on and a <= changes[-1].time_s <= b
        assert [change.time_s for change in changes[:-1]] == [0.0] * (changes[-1].time_s > 0)


@pytest.mark.parametrize("word", ["arrive", "depart"])
def test_seconds_are_spread_over_the_range(word: str) -> None:
    times = sorted(first(f"{word}(100,200)", 2, number=n)[1].time_s for n in range(2000))
    # Kolmogorov-Smirnov against the uniform distribution; 1.95 is its 0.1 % point.
    gap = max(abs((t - 100) / 100 - i / len(times)) for i, t in enumerate(times))
    assert gap < 1.95 / math.sqrt(len(times))


def test_churn_has_exponential_times_with_these_means() -> None:
    changes = first("churn(600,60)", 4001)
    assert changes[0] == Change(0.0, True)
    for mean_s, on in ((600, True), (60, False)):
        times = sorted(b.time_s - a.time_s for a, b in pairwise(changes) if a.on == on)
        expected = [1 - math.exp(-time / mean_s) for time in times]
        gap = max(abs(share - i / len(times)) for i, share in enumerate(expected))
        assert gap < 1.95 / math.sqrt(len(times))


PARTS = st.one_of(
    st.just("always"),
    st.builds(
        "{}({},{})".format, st.sampled_from(["arrive", "depart"]), SECONDS, st.integers(50, 99)
    ),
    st.builds("churn({},{})".format, st.sampled_from([0.5, 3, 40]), st.sampled_from([0.5, 3, 40])),
    st.just("trace(trace.csv)"),
)


@given(st.lists(PARTS, min_size=1, max_size=4), TRACE_LINES, SEEDS, st.integers(0, 4))
def test_joined_parts_against_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[str],
    lines: list[tuple[int, str, bool]],
    seed: int,
    number: int,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_trace(folder, lines)
    joined = parse_availability(" + ".join(parts), folder)
    changes = list(islice(joined.changes(seed, number, "x"), 100))
    times = [change.time_s for change in changes]
    assert times[0] == 0.0 and all(a < b for a, b in pairwise(times))
    assert all(a.on != b.on for a, b in pairwise(changes))
    # Each part alone: at its place in the text, beside parts that are always on.
    alone: list[At] = []
    for index, part in enumerate(parts):
        if part.startswith("trace"):
            alone.append(lambda time_s: trace_at(lines, str(number), time_s))
        else:
            padded = of("+".join(["always"] * index + [part]))
            own = list(islice(padded.changes(seed, number, "x"), 1000))
            alone.append(lambda time_s, own=own: state_at(own, time_s))  # type: ignore[misc]
    until = min(times[-1], 120.0) if len(changes) == 100 else 120.0
    sampled = [until * step / 97 for step in range(98)]
    for time_s in [*sampled, *(time for time in times if time <= until)]:
        assert state_at(changes, time_s) == all(at(time_s) for at in alone)


def test_it_ends_when_nothing_can_change_any_more() -> None:
    changes = first("depart(5,5)+churn(0.5,0.5)", 1000)
    assert len(changes) < 1000 and changes[-1].time_s <= 5 and not changes[-1].on
    assert first("depart(1,2)+arrive(3,4)+churn(1,1)", 9) == [Change(0.0, False)]


@given(SEEDS, st.integers(0, 100), st.integers(0, 100))
def test_changes_depend_on_seed_and_number_only(seed: int, number: int, other: int) -> None:
    spec = "arrive(0,100)+churn(10,10)"
    one, mixed = of(spec), of(spec)
    mine = list(islice(one.changes(seed, number, "a"), 20))
    beside = mixed.changes(seed, other, "b")
    stream = mixed.changes(seed, number, "c")
    assert mine == [(next(stream), next(beside))[0] for _ in mine]
    if other != number:
        assert mine != list(islice(one.changes(seed, other, "a"), 20))
    assert mine != list(islice(one.changes(seed + 1, number, "a"), 20))


def test_the_random_numbers_stay_those_of_old_runs() -> None:
    changes = first("churn(100,10)", 3, seed=7, number=3)
    assert [round(change.time_s, 6) for change in changes] == [0.0, 21.698155, 23.876897]


def test_parts_of_one_kind_are_independent() -> None:
    twice, once = first("arrive(0,100)+arrive(0,100)", 2), first("arrive(0,100)", 2)
    assert any(
        first("arrive(0,100)+arrive(0,100)", 2, number=n)[1].time_s
        > first("arrive(0,100)", 2, number=n)[1].time_s
        for n in range(20)
    )
    assert twice[1].time_s >= once[1].time_s


def test_a_trace_by_name_and_by_number(tmp_path: Path) -> None:
    said = trace(
        tmp_path,
        "\ufeffdevice, State ,battery,TIME\r\ndevice-01,1,80,5.5\r\n\r\n"
        "007,OFF,,2\n7,on,,2\n7,0,,9\n",
    )
    assert said.devices() == {"device-01", "7"}
    assert list(said.changes(0, 1, "device-01")) == [Change(0.0, False), Change(5.5, True)]
    # Off and on in the same second: nobody sees it.
    assert list(said.changes(0, 7, "device-07")) == [Change(0.0, True), Change(9.0, False)]
    assert list(said.changes(0, 2, "device-02")) == [Change(0.0, True)]


def test_a_trace_starts_at_the_folder(tmp_path: Path) -> None:
    odd = tmp_path / "a+b (1)"
    odd.mkdir()
    write_trace(odd, [(3, "0", False)])
    absolute = parse_availability(f"trace({odd / 'trace.csv'})+always", tmp_path / "nowhere")
    relative = parse_availability("always + trace( a+b (1)/trace.csv )", tmp_path)
    for said in (absolute, relative):
        assert list(said.changes(0, 0, "x")) == [Change(0.0, True), Change(3.0, False)]
    assert absolute.devices() == {"0"} and of("churn(1,1)").devices() == set()


def test_equal_texts_are_equal(tmp_path: Path) -> None:
    write_trace(tmp_path, [(3, "0", False)])
    specs = ["trace(trace.csv)", "arrive(1,2)+churn(3,4)"]
    for spec in specs:
        one, same = parse_availability(spec, tmp_path), parse_availability(spec, tmp_path)
        assert one == same and hash(one) == hash(same) and one.spec == spec
    assert parse_availability(specs[0], tmp_path) != parse_availability(specs[1], tmp_path)


@pytest.mark.parametrize(
    "spec",
    ["", "+", "always+", "+always", "sometimes", "always()", "Always", "always,always"]
    + [f"{word}{rest}" for word in ("arrive", "churn", "trace") for rest in ("", "()", " 1,2")]
    + ["churn(1,2", "churn(1,2))", "trace(a\nb)"],
)
def test_words_that_nobody_knows(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"^availability: .*expected .*; got '.*'$"):
        of(spec)


@pytest.mark.parametrize("word", ["arrive", "depart"])
@pytest.mark.parametrize("range_s", ["2,1", "-1,2", "1", "1,2,3", "a,b", "", "nan,1", "1,inf"])
def test_ranges_that_are_none(word: str, range_s: str) -> None:
    with pytest.raises(ConfigError, match=rf"{word} expected two seconds, 0 <= a <= b <= 1e\+09"):
        of(f"always+{word}({range_s})")


@pytest.mark.parametrize("means", ["0,1", "1,0", "-1,2", "1", "1,2,3", "nan,1", "1,nan", "1,2e9"])
def test_means_that_are_none(means: str) -> None:
    with pytest.raises(ConfigError, match=r"churn expected two means in seconds, each from 0.001"):
        of(f"churn({means})")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"line 1: expected a header with the columns time, device, state; got ''"),
        ("0,a,on\n", r"line 1: expected a header"),
        ("time,device,state,time\n", r"line 1: expected a header"),
        ("time,device,state\n", r"expected at least one line below the header"),
        ("time,device,state\n\n0,a,on\n0,a\n", r"line 4: expected time, device and state; got '0,"),
        ("time,device,state\nsoon,a,on\n", r"line 2: time: expected 0 to .*; got 'soon'"),
        ("time,device,state\n-1,a,on\n", r"line 2: time: .*; got '-1'"),
        ("time,device,state\nnan,a,on\n", r"line 2: time: .*; got 'nan'"),
        ("time,device,state\n1, ,on\n", r"line 2: device: expected a name or a number"),
        ("time,device,state\n1,a,maybe\n", r"line 2: state: expected on, off, 1 or 0; got 'maybe'"),
        ('time,device,state\n1,"a,on\n', r"expected a CSV text in UTF-8"),
    ],
)
def test_traces_that_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        trace(tmp_path, text)
    assert "trace.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.csv: cannot read the trace: No such file"):
        parse_availability("trace(gone.csv)", tmp_path)
    (tmp_path / "raw.csv").write_bytes(b"time,device,state\n\xff\n")
    with pytest.raises(ConfigError, match=r"raw\.csv: expected a CSV text in UTF-8"):
        parse_availability("trace(raw.csv)", tmp_path)
