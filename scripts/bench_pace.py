"""Messages of one node with pauses of several lengths between them, by policy: how long each takes, and what it got.

One service; for each policy and pause, messages are sent one after the other, each when the one before was answered and
the pause is over.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from sandbox.client import Client
from tests.integration.service import served

POLICIES = ("default", "paced", "cells")
PACED = 'extends = "default"\n[isolation]\nper_run = "auto"\n'
PAUSES_S = (0.0, 0.1, 0.2, 0.3)
# So long after the last message of a pause the pool has started what it wants.
SETTLE_S = 1.5


def in_cell(document: dict[str, Any]) -> bool:
    """Tell whether a run had a cell, by its receipt."""
    rows = document["receipt"]["controls"]
    return any(row["control"] == "isolation" and row["mechanism"] != "container" for row in rows)


def messages(client: Client, policy: str, pause_s: float, count: int) -> str:
    """Send messages, and return the row of what came of them."""
    times, warm, cells = [], 0, 0
    for number in range(count):
        began = time.perf_counter()
        result = client.run("result = payload", payload=number, policy=policy, node_id=f"{policy} {pause_s}")
        times.append((time.perf_counter() - began) * 1000)
        assert result.value == number, result.document
        warm += result.document["durations"]["warm"]
        cells += in_cell(result.document)
        time.sleep(pause_s)
    ordered = sorted(times)
    p90 = ordered[int(0.9 * (count - 1))]
    return (
        f"{policy:<10} {pause_s * 1000:8.0f} {statistics.median(times):8.1f} {p90:8.1f} {ordered[-1]:8.1f} {warm:6}"
        f" {cells:6}"
    )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench pace", description="Measure messages of one node by their pauses."
    )
    parser.add_argument("--runs", type=int, default=50, help="messages for each policy and pause")
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "policies").mkdir()
        (home / "policies" / "paced.toml").write_text(PACED)
        with served(home) as service, service.client() as client:
            print(
                f"{count} messages each; milliseconds: pause, median, p90, greatest; how many found a sandbox ready,"
                " and had a cell"
            )
            for pause_s in PAUSES_S:
                for policy in POLICIES:
                    time.sleep(SETTLE_S)
                    print(messages(client, policy, pause_s, count), flush=True)


if __name__ == "__main__":
    main()
