"""`sandbox top`: the state of the service, every second."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from sandbox.cli.runs import age, connected, going_on, going_on_table, history_table, json_option, one_line
from sandbox.client import Client

EVERY_S = 1.0
LISTED = 50
LAST_RUNS = 10
ENDED = re.compile(r"^sandbox_runs_total\{.*\} (\S+)$", re.MULTILINE)
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class RunRate:
    """Counts how many runs end per second: since the last look, at first since the service began."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def seen(self, ended: float, *, uptime_s: float) -> float:
        """Take how many runs have ended in all; return how many did per second."""
        before, then_s = self._last or (0.0, 0.0)
        if uptime_s < then_s:  # the service began anew
            before, then_s = 0.0, 0.0
        self._last = (ended, uptime_s)
        return (ended - before) / max(uptime_s - then_s, 0.1)


@click.command("top")
@json_option
def top(*, as_json: bool) -> None:
    """Show how the service is, every second until Ctrl-C.

    If standard output is not a terminal, or a dumb one, show it once.
    """
    live = sys.stdout.isatty() and not as_json and os.environ.get("TERM") != "dumb"
    pace = RunRate()
    with connected() as client, contextlib.suppress(KeyboardInterrupt):
        while True:
            seen = look(client, pace)
            if as_json:
                click.echo(json.dumps(seen, indent=2))
            elif not live:
                click.echo("\n".join(frame(seen, now=time.time())))
            else:
                draw(frame(seen, now=time.time()))
            if not live:
                return
            time.sleep(EVERY_S)


def look(client: Client, pace: RunRate) -> dict[str, Any]:
    """Ask the service how it is."""
    health = client.health()
    ended = sum(map(float, ENDED.findall(client.raw("GET", "/v1/metrics").decode())))
    rate = pace.seen(ended, uptime_s=health["uptime_s"])
    listed = client.runs(limit=LISTED)
    last = [row for row in listed if row["state"] == "ended"][:LAST_RUNS]
    return {
        "health": health,
        "ended_runs": int(ended),
        "runs_per_s": round(rate, 2),
        "going_on": going_on(listed),
        "last": last,
    }


def frame(seen: dict[str, Any], *, now: float) -> list[str]:
    """Return the lines that show it."""
    health, runs, pool = seen["health"], seen["health"]["runs"], seen["health"]["pool"]
    memory = f" · {health['memory_mib']:,.0f} MiB" if "memory_mib" in health else ""
    lines = [
        f"service  {health['status']} · up {age(health['uptime_s'])}{memory}",
        *(f"         {one_line(problem)}" for problem in health["problems"]),
        (
            f"runs     {runs['running']} running · {runs['waiting']} waiting · {seen['runs_per_s']:.1f} per second ·"
            f" {seen['ended_runs']} ended"
        ),
        (
            f"pool     {pool['ready']} ready · {pool['starting']} starting · {pool['kinds']} kinds ·"
            f" {pool['memory_mib']:,.0f} MiB · {pool['taken']} taken · {pool['cold']} cold"
        ),
    ]
    if (cells := health.get("cells")) and cells["started"]:
        lines.append(
            f"cells    {cells['containers']} warm containers · {cells['memory_mib']:,.0f} MiB · {cells['cells']} taken"
        )
    if seen["going_on"]:
        lines += ["", *going_on_table(seen["going_on"], now=now)]
    if seen["last"]:
        lines += ["", *history_table(seen["last"])]
    return lines


def draw(lines: Sequence[str]) -> None:
    """Put the lines in the place of those that the terminal shows, without a flicker."""
    width, height = shutil.get_terminal_size()
    shown = [line[: width - 1] + REST_OF_LINE for line in lines[: height - 1]]
    sys.stdout.write(HOME + "\n".join(shown) + "\n" + REST_OF_SCREEN)
    sys.stdout.flush()
