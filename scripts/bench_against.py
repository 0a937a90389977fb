"""Two versions of the code against each other: the rows of `scripts/bench cold` or `service`, of both trees in turn.

Each round lets both trees measure, one after the other, and the next round in the other order: what else the machine
does at the moment meets both. A row is every number of the report; its values are those of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMANDS = {
    "cold": ("scripts/bench.py", "cold"),
    "service": ("-m", "scripts.bench_service"),
}


def numbers(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Yield every number of a report, with its name: that of a list's numbers is the list's."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from numbers(value, (*path, name))
    elif isinstance(found, list):
        for value in found:
            yield from numbers(value, path)
    elif isinstance(found, (int, float)) and not isinstance(found, bool):
        yield ", ".join(path), float(found)


def measured(tree: Path, what: str, runs: int) -> dict[str, list[float]]:
    """Let the code of a tree measure itself; return the values of each row."""
    done = subprocess.run(
        [sys.executable, *COMMANDS[what], "--json", "--runs", str(runs)],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    rows: dict[str, list[float]] = {}
    for name, value in numbers(json.loads(done.stdout)):
        rows.setdefault(name, []).append(value)
    return rows


def main() -> None:
    """Measure both, and print a line for each row that both have."""
    parser = argparse.ArgumentParser(prog="scripts/bench against TREE", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("what", choices=sorted(COMMANDS))
    parser.add_argument("--rounds", type=int, default=4, help="how often each of them measures")
    parser.add_argument("--runs", type=int, default=10, help="rounds within each of these")
    arguments = parser.parse_args()
    trees = (arguments.before, arguments.after)
    rows: dict[Path, dict[str, list[float]]] = {tree: {} for tree in trees}
    for number in range(arguments.rounds):
        for tree in trees if number % 2 else trees[::-1]:
            for name, values in measured(tree, arguments.what, arguments.runs).items():
                rows[tree].setdefault(name, []).extend(values)
    print(f"{'median of':<44} {'before':>10} {'after':>10} {'after/before':>13}  least  values")
    for name, before in rows[trees[0]].items():
        after = rows[trees[1]].get(name)
        middle, least = statistics.median(before), min(before)
        if after and middle and least:
            now = statistics.median(after)
            figures = f"{middle:10.2f} {now:10.2f} {now / middle:13.3f}  {min(after) / least:.3f}  {len(after)}"
            print(f"{name:<44} {figures}")


if __name__ == "__main__":
    main()
