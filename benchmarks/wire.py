"""What does a weight cost on the wire, in bytes and in time, and how fast does a blob arrive?

    python benchmarks/wire.py [--data DIR] [--model digits|har|cifar]... [--mib N]...
        [--broker mosquitto|amqtt]... [--repeat N] [--json]

1. Codecs (`wire_codecs.py`): real updates of the three reference models, one local round of the
   device with the most samples; each codec beside JSON lists, base64 and pickle, all in one run,
   taking turns. Medians.
2. Transfers (`wire_transfer.py`): a blob of N MiB in chunks from a server to a device, a process of
   its own, through a real broker on the loopback interface: MB/s from the first question to the
   checked blob, and by how much the device's peak memory rose. Medians over the repeats.

DIR holds the data sets (default: FLEXMOE_DATA, else ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import wire_codecs
import wire_transfer

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of the data sets")
    parser.add_argument("--model", action="append", choices=list(wire_codecs.EXPERIMENTS))
    parser.add_argument("--mib", action="append", type=int, help="[default: 1 4 16 32 64]")
    parser.add_argument("--broker", action="append", choices=wire_transfer.BROKERS)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = options.data or Path(os.environ.get("FLEXMOE_DATA", ROOT.parent / "shared" / "data"))
    codecs = {}
    for model in options.model or wire_codecs.EXPERIMENTS:
        facts, ways = wire_codecs.measure(model, data)
        codecs[model] = {**facts, "ways": ways}
    transfers = wire_transfer.measure(
        options.broker or list(wire_transfer.BROKERS),
        options.mib or [1, 4, 16, 32, 64],
        options.repeat,
    )
    if options.json:
        print(json.dumps({"codecs": codecs, "transfers": transfers}))
        return
    _print_codecs(codecs)
    _print_transfers(transfers)


def _print_codecs(codecs: dict[str, Any]) -> None:
    for model, costs in codecs.items():
        size = f"{costs['parameters']:,} weights in {costs['parts']} parts"
        print(f"\n{model}: an update of {size}")
        print(f"{'':24}{'bytes':>11}{'a weight':>10}{'encode ms':>11}{'decode ms':>11}")
        for way, cost in costs["ways"].items():
            print(
                f"{way:24}{cost['bytes']:11,}{cost['bytes_per_parameter']:10.3f}"
                f"{cost['encode_ms']:11.2f}{cost['decode_ms']:11.2f}"
            )


def _print_transfers(transfers: list[dict[str, Any]]) -> None:
    print(f"\n{'':18}{'until it is there':>26}{'built and checked':>26}")
    print(f"{'broker':12}{'MiB':>6}" + 2 * f"{'MB/s':>9}{'peak rise, MiB':>17}")
    for row in transfers:
        print(f"{row['broker']:12}{row['mib']:6}{row['mb_per_s']:9.0f}{row['peak_rise_mib']:17.1f}")


if __name__ == "__main__":
    main()
