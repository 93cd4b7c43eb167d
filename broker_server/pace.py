"""What past rounds showed of a client: how fast it trains and moves bytes, and where it fell short.

Moving averages of measured seconds, and a ceiling: a client that missed a deadline, or whose
process its memory limit killed or may have killed, is given fewer experts until it has come through
enough rounds. Each time that it falls again it must come through twice as many: what does not
suffice is tried ever less. Where fewer cannot be given it sits out as many rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from broker_server.capacity import Limit
from broker_server.demand import Demand
from broker_server.memory import Peak
from broker_server.processes import Restart
from broker_server.work import Answer

WEIGHT = 0.3  # of the newest measurement
HOLD = 5  # rounds in good order, or sat out, before one more expert is tried after a fall
MAX_DOUBLINGS = 4


@dataclass(frozen=True)
class Rate:
    """A link's speed: moving averages of the bytes of a round, and of the seconds that they took.

    So a round that moved little, most of whose time was waiting, weighs little.
    """

    moved_bytes: float
    seconds: float

    def seconds_for(self, size_bytes: int) -> float:
        """How long `size_bytes` take."""
        return size_bytes * self.seconds / self.moved_bytes


@dataclass(frozen=True)
class Pace:
    """A client as its rounds with `trainer` showed it.

    `seconds` is what training takes, per sample and epoch, by the number of experts; `down` and
    `up` are its link. `k` experts were given to it last, 0 if it could hold none, and `limit` said
    why not more; `streak` rounds in a row one more would have fitted. What was measured has made k
    fall `falls` times, and `clean` rounds went well since anything changed. `too_many` experts (0:
    none) were too many, for lack of `cause`; `killed`: its memory limit killed it with them. With
    `suspect` experts (0: none) it vanished at work, and its next hello will tell whether its
    process had ended. It sits out until round `sits_out` is over; it had to `rests` times. `peak`
    is the most memory that its process held, where a limit holds it.
    """

    trainer: str
    seconds: Mapping[int, float] = field(default_factory=dict)
    down: Rate | None = None
    up: Rate | None = None
    k: int = 0
    limit: Limit = "asked"
    streak: int = 0
    falls: int = 0
    clean: int = 0
    too_many: int = 0
    cause: Limit = "asked"
    suspect: int = 0
    killed: bool = False
    sits_out: int = 0
    rests: int = 0
    peak: Peak | None = None

    @property
    def ceiling(self) -> int:
        """The most experts to give it as long as `too_many` are."""
        return max(1, self.too_many - 1)

    def training_s(self, k: int, passes: int) -> float:
        """How long training takes with `k` experts, samples times epochs being `passes`.

        What was not measured is in proportion to the nearest k that was: upwards that never says
        too little, as a part of the time is the backbone's. 0 if nothing was measured.
        """
        if not self.seconds:
            return 0.0
        nearest = min(self.seconds, key=lambda measured: (abs(measured - k), measured))
        return self.seconds[nearest] * k / nearest * passes

    def transfer_s(self, k: int, demand: Demand) -> float:
        """How long the weights of `k` experts take, there and back; 0 for what was not measured."""
        down_s = self.down.seconds_for(demand.down_bytes(k)) if self.down else 0.0
        return down_s + (self.up.seconds_for(demand.up_bytes(k)) if self.up else 0.0)

    def round_s(self, k: int, passes: int, demand: Demand) -> float:
        """How long a round takes with `k` experts, as far as it was measured."""
        return self.training_s(k, passes) + self.transfer_s(k, demand)

    def returned(self, restart: Restart | None, least: int, rounds: int) -> Pace:
        """The client is here, after `rounds`: if it had vanished at work, why was that?

        `restart`: what ended its process, None if that goes on. `least` as in `Demand`.
        """
        pace = self
        if self.suspect and restart == "unknown":
            pace = self._lowered("memory", self.suspect)
        if self.suspect and restart == "killed":
            pace = self._killed(self.suspect, least, rounds)
        return replace(pace, suspect=0)

    def after(self, answer: Answer, passes: int, demand: Demand, number: int) -> Pace:
        """What the `answer` of round `number` showed, to work with `self.k` experts."""
        seen = answer.observed
        if answer.status == "ok":
            return self._measured(answer, passes)._cleared()
        if answer.status == "killed":
            return self._killed(self.k, demand.least, number)
        if seen.restarted:
            return self._lowered("memory", self.k)
        if seen.vanished:
            return replace(self, suspect=self.k)
        if answer.status == "late" and not seen.kept_waiting:
            return self._missed(answer, passes, demand)
        return self

    def _measured(self, answer: Answer, passes: int) -> Pace:
        seen, told = answer.observed, answer.telemetry
        train_s = told.get("train_s", math.nan)
        seconds = dict(self.seconds)
        if 0 < train_s < math.inf:
            newest = train_s / passes
            seconds[self.k] = _average(seconds.get(self.k, newest), newest)
        down = _rate_after(self.down, told.get("fetch_bytes", 0.0), told.get("fetch_s", 0.0))
        up = _rate_after(self.up, seen.uplink_bytes, seen.uplink_s)
        peak = Peak.after(self.peak, told, self.k)
        return replace(self, seconds=seconds, down=down, up=up, peak=peak)

    def _missed(self, answer: Answer, passes: int, demand: Demand) -> Pace:
        """Too late: what it measured counts; at least, that the deadline was not enough."""
        pace = self._measured(answer, passes)
        told = answer.telemetry
        if told.get("fetch_s", 0.0) + answer.observed.uplink_s > told.get("train_s", math.inf):
            return pace._lowered("link", self.k)
        least = max(0.0, demand.deadline_s - pace.transfer_s(self.k, demand)) / passes
        seconds = {**pace.seconds, self.k: max(least, pace.seconds.get(self.k, 0.0))}
        return replace(pace, seconds=seconds)._lowered("compute", self.k)

    def _lowered(self, cause: Limit, k: int) -> Pace:
        """`k` experts were too many."""
        too_many = min(self.too_many or k, k)
        return replace(self, too_many=too_many, cause=cause, killed=False, clean=0, suspect=0)

    def _killed(self, k: int, least: int, number: int) -> Pace:
        """`k` experts were too many for its memory limit; fewer than `least` cannot be given."""
        pace = replace(self._lowered("memory", k), killed=True)
        if k > least:
            return pace
        rest = HOLD << min(self.rests, MAX_DOUBLINGS)
        return replace(pace, rests=self.rests + 1, sits_out=number + rest)

    def _cleared(self) -> Pace:
        """One more round in good order: after enough of them, old trouble is forgotten."""
        hold = HOLD << min(max(self.falls - 1, 0), MAX_DOUBLINGS)
        if self.clean + 1 < hold:
            return replace(self, clean=self.clean + 1)
        held = {k: seconds for k, seconds in self.seconds.items() if k <= self.k}
        if self.too_many and self.ceiling <= self.k:
            return replace(self, too_many=self.too_many + 1, seconds=held, clean=0)
        if len(held) < len(self.seconds):
            return replace(self, seconds=held, clean=0)
        return replace(self, too_many=0, cause="asked", killed=False, falls=0, rests=0, clean=0)

    def to_plain(self) -> dict[str, Any]:
        """As msgpack takes it."""
        return {**asdict(self), "seconds": list(self.seconds.items())}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Pace:
        """What `to_plain` gave."""
        rates = {name: Rate(**plain[name]) if plain[name] else None for name in ("down", "up")}
        peak = Peak(**plain["peak"]) if plain["peak"] else None
        return cls(**{**plain, **rates, "seconds": dict(plain["seconds"]), "peak": peak})


def paces_after(
    paces: Mapping[str, Pace],
    given: Mapping[str, int],
    answers: Mapping[str, Answer],
    samples: Mapping[str, int],
    demand: Demand,
    number: int,
) -> dict[str, Pace]:
    """All `paces` after round `number`: those who had work with what their `answers` showed.

    `given`: how many experts each had; a policy may give fewer than it could hold.
    """

    def shown(client: str, answer: Answer) -> Pace:
        pace = paces[client]
        at_work = replace(pace, k=given[client])
        after = at_work.after(answer, samples[client] * demand.epochs, demand, number)
        return replace(after, k=pace.k)  # or it would have to earn again what it could hold

    return {**paces, **{client: shown(client, answer) for client, answer in answers.items()}}


def _average(before: float, newest: float) -> float:
    return before + WEIGHT * (newest - before)


def _rate_after(rate: Rate | None, moved_bytes: float, seconds: float) -> Rate | None:
    """The rate with one more round; a device's figures may be anything."""
    if not (1 <= moved_bytes < math.inf and 0 < seconds < math.inf):
        return rate
    if rate is None:
        return Rate(moved_bytes, seconds)
    return Rate(_average(rate.moved_bytes, moved_bytes), _average(rate.seconds, seconds))
