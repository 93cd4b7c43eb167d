"""What does the assignment itself cost in a run, in bytes and in seconds, beside the updates?

    python benchmarks/assign_cost.py RUN_DIR... [--json]

FLEX-MoE would be refuted by an assignment that costs more than the updates that it saves. What it
adds to the wire is the list of experts in `Assign`, and usage, loss and hits in `Report`; they are
counted here with all else that is not a blob (kind ``message``: hellos, requests, telemetry), so
the share is an upper bound. A solve on the server adds no rounds. Read from `run.sqlite`.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from pathlib import Path


def cost(directory: Path) -> dict[str, float]:
    """Means over the rounds of one run: bytes of messages and of blobs, seconds."""
    with sqlite3.connect(f"file:{directory / 'run.sqlite'}?mode=ro", uri=True) as store:
        rounds, assign_s, round_s, experts = store.execute(
            "SELECT COUNT(*), SUM(assign_s), SUM(round_s), (SELECT COUNT(*) FROM assignments) "
            "FROM rounds"
        ).fetchone()
        messages, blobs, connection = store.execute(
            "SELECT SUM(wire_bytes * (kind = 'message')), "
            "SUM(wire_bytes * (kind NOT IN ('message', 'connection'))), "
            "SUM(wire_bytes * (kind = 'connection')) FROM bytes"
        ).fetchone()
    return {
        "rounds": rounds,
        "experts_per_round": experts / rounds,
        "message_bytes_per_round": messages / rounds,
        "blob_bytes_per_round": blobs / rounds,
        "message_share": messages / (messages + blobs + connection),
        "assign_s_per_round": assign_s / rounds,
        "round_s": round_s / rounds,
        "assign_share": assign_s / round_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {str(directory): cost(directory) for directory in options.directory}
    if options.json:
        print(json.dumps({"runs": found}))
        return
    for directory, figures in found.items():
        print(directory)
        for name, value in figures.items():
            print(f"  {name:26}{value:>14,.4g}")


if __name__ == "__main__":
    main()
