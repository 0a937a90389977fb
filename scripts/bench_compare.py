"""What one trivial run costs in each way that a reader may compare: the README's table, as Markdown.

The ways and the rounds are those of `scripts/bench service`; this makes nothing else, so it is done in a minute or two.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.bench_service import Rounds, ratios_of, single, times_of
from tests.integration.service import served

WAYS = {
    "service, warm": "this runner, a fresh container from the service's pool",
    "service, cell": "this runner, a cell in a warm container (policy `cells`)",
    "service, cold": "this runner, a container that has to be made first",
    "python3": "`python3 -I -c`: no sandbox at all",
    "bwrap": "`bwrap --unshare-all python3`: namespaces alone",
    "podman run": "`podman run`, same image, flags and limits",
}


def version(*command: str) -> str:
    """Return the first line of what a program says about its version."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]


def machine() -> str:
    """Return where and when this was measured."""
    with Path("/etc/os-release").open() as file:
        system = dict(line.rstrip().replace('"', "").split("=", 1) for line in file if "=" in line)["PRETTY_NAME"]
    group = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    programs = ", ".join(
        [version("podman", "--version"), version("bwrap", "--version"), f"Python {platform.python_version()}"]
    )
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {system}, Linux {platform.release().partition('-')[0]}, "
        f"cgroup {group}, {programs}; {datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()}"
    )


def table(rounds: Rounds) -> str:
    """Return the table: median and nine of ten, and how many times as long as a warm run took, round by round."""
    lines = ["| one run of `result = 6 * 7` | median | p90 | warm = 1 |", "|---|---|---|---|"]
    times = times_of(rounds)
    for name, what in WAYS.items():
        values = sorted(times[name])
        p90 = values[min(len(values) - 1, int(len(values) * 0.9))]
        ratio = statistics.median(ratios_of(rounds, name, "service, warm"))
        lines.append(f"| {what} | {statistics.median(values):.1f} ms | {p90:.1f} ms | {ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench compare", description="Measure the README's table.")
    parser.add_argument("--runs", type=int, default=30, help="rounds")
    arguments = parser.parse_args()
    os.environ.setdefault("LANG", "C.UTF-8")
    for program, package in (("podman", "podman"), ("bwrap", "bubblewrap")):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed; run: apt-get install {package}")
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as service:
        rounds = single(service, arguments.runs, libraries=False)
    print(f"{arguments.runs} rounds, interleaved. {machine()}.\n\n{table(rounds)}")


if __name__ == "__main__":
    main()
