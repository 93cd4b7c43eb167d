"""A run in which half of the devices have a link that carries little."""

from __future__ import annotations

from collections.abc import Callable

from broker_server.books.link_bytes import carried
from broker_server.config import load_experiment
from broker_server.store import Store
from tests.e2e.processes import Run

ASKED = 8000
SETTINGS: dict[str, object] = {
    "rounds": 6,
    "model.experts": 4,
    "wire.links": '["wifi","nb-iot"]',
    "wire.bytes_per_round": f"{{nb-iot={ASKED}, device-03=0}}",
}


def test_a_budget_is_kept_after_the_first_round(finished_run: Callable[..., Run]) -> None:
    run = finished_run(SETTINGS)
    assert (run.end.code, run.end.err) == (0, "")
    with Store.open(run.directory) as store:
        records = store.records()
    asked = {"device-00": 0, "device-01": ASKED, "device-02": 0, "device-03": 0}
    for record in records:
        assert {c.client: c.budget_bytes for c in record.clients} == asked
        got = carried(record.bytes)
        assert all(client.status == "ok" for client in record.clients)
        if record.round > 1:  # which brings whole parts and programs
            assert got["device-01"].total_bytes <= ASKED < got["device-03"].total_bytes
    codecs = {c.client: {r.clients[i].codec for r in records} for i, c in enumerate(record.clients)}
    assert len(codecs["device-00"]) == 1
    assert all(codec.startswith("topk") for codec in codecs["device-01"])
    lines = run.end.out.splitlines()
    start = lines.index("Bytes a round: asked and got")
    (row,) = (line.split() for line in lines[start:] if line.startswith("device-01"))
    assert row[-5:] == ["1", "of", "6", "round", "1"]
    wire = load_experiment(run.directory / "config.toml").wire
    assert (wire.link_of(1), wire.budget_of("device-01", "nb-iot")) == ("nb-iot", ASKED)
