"""Environments: this runner against pip and uv on the host, interleaved in one process run.

Each round makes the same libraries available seven times: by `pip install` and by `uv pip install` into a fresh virtual
environment on the host (nothing cached; the virtual environment itself counts), by this runner from nothing, by this
runner with wheels cached (each with its tree, as every build leaves them), the same when another environment has the
same libraries (and so most of the layers), by this runner when the environment is there, which is what every later run
costs, and with wheels alone: what the first build costs on a new base image or under another [build] section, for which
no tree counts.

Nothing is deleted before the end: for minutes after many files were deleted, ext4 is several times as slow at making
new ones. Each round has a cache of its own instead, and asks for the libraries in other words, which makes another
environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox import places
from sandbox.cli.handover import leave_root
from sandbox.engine.podman import PodmanEngine
from sandbox.host.probe import probe
from sandbox.models import RunRequest
from sandbox.policy.directories import policy_directories
from sandbox.runner import Places, Runner

LIBRARIES = ("numpy", "pandas", "scikit-learn")


def timed(work: Callable[[], object]) -> float:
    """Return how long `work` takes, in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def host_install(scratch: Path, *, with_uv: bool) -> None:
    """Install the libraries into a fresh virtual environment of the host's Python."""
    from uv import find_uv_bin

    target = Path(tempfile.mkdtemp(prefix="venv-", dir=scratch))
    python = "/usr/bin/python3"
    if with_uv:
        uv = find_uv_bin()
        commands = [
            [uv, "venv", "--quiet", "--allow-existing", "--python", python, str(target)],
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--no-cache",
                "--only-binary",
                ":all:",
                "--python",
                str(target),
                *LIBRARIES,
            ],
        ]
    else:
        pip = [
            str(target / "bin/python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--only-binary",
            ":all:",
        ]
        commands = [[python, "-m", "venv", str(target)], [*pip, *LIBRARIES]]
    for command in commands:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=600)


class Ours:
    """The runner, with caches of its own in a scratch directory."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.runtime_dir = places.runtime_dir()
        self.facts = probe(self.runtime_dir)
        self.engine = PodmanEngine(self.facts.engine, runtime_dir=self.runtime_dir)
        self.made: set[str] = set()

    def build(self, number: int, variant: int, *, beside: int | None = None) -> None:
        """Make the environment of one round available; a variant needs the same files under another name.

        Its layers are its own, by the date in them, unless it shall have those of the variant `beside`.
        """
        os.environ["SOURCE_DATE_EPOCH"] = str(1_700_000_000 + 10 * number + (beside or variant))
        top = self.scratch / f"round-{number}"
        where = Places(
            runtime_dir=self.runtime_dir,
            cache_dir=top / "cache",
            data_dir=top / "data",
            policy_dirs=policy_directories(),
        )
        asked = (*LIBRARIES[:-1], f"{LIBRARIES[-1]}>=0.{number}.{variant}")
        runner = Runner(lambda: self.engine, self.facts, where)
        environment = asyncio.run(runner.build(RunRequest(code="", requirements=asked), lambda _: None))
        self.made.add(environment.name)

    def prepare(self, number: int) -> None:
        """Give a round its cache: empty, but for the verdict on the base image, which was admitted long ago."""
        shutil.copytree(places.cache_dir() / "images", self.scratch / f"round-{number}" / "cache" / "images")

    def set_trees_aside(self, number: int) -> None:
        """Take the installed trees out of a round's cache."""
        trees = self.scratch / f"round-{number}" / "cache" / "trees"
        trees.rename(trees.with_name("trees-aside"))

    def close(self) -> None:
        """Remove what was made."""
        for name in self.made:
            self.engine.remove_image(name)
        self.engine.close()


def measure(runs: int) -> dict[str, Any]:
    """Measure all of them, interleaved; return the times in seconds."""
    times: dict[str, list[float]] = {
        name: []
        for name in ("pip", "uv", "from nothing", "wheels cached", "beside another", "there already", "wheels alone")
    }
    scratch = Path(tempfile.mkdtemp(prefix="bench-env-", dir=places.cache_dir()))
    ours = Ours(scratch)
    try:
        for number in range(runs):
            ours.prepare(number)
            times["from nothing"].append(timed(lambda: ours.build(number, 1)))  # noqa: B023 - called at once
            times["wheels cached"].append(timed(lambda: ours.build(number, 2)))  # noqa: B023 - as above
            times["beside another"].append(timed(lambda: ours.build(number, 3, beside=2)))  # noqa: B023 - as above
            times["there already"].append(timed(lambda: ours.build(number, 3)))  # noqa: B023 - as above
            ours.set_trees_aside(number)
            times["wheels alone"].append(timed(lambda: ours.build(number, 4)))  # noqa: B023 - as above
            times["uv"].append(timed(lambda: host_install(scratch, with_uv=True)))
            times["pip"].append(timed(lambda: host_install(scratch, with_uv=False)))
    finally:
        ours.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return {"runs": runs, "libraries": LIBRARIES, "times_s": times}


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    print(
        f"{', '.join(report['libraries'])}: {report['runs']} rounds, interleaved; seconds: least, median, greatest;"
        " times pip, times uv"
    )
    times = report["times_s"]
    for name, values in times.items():
        ratios = [
            statistics.median(a / b for a, b in zip(values, times[other], strict=True)) for other in ("pip", "uv")
        ]
        print(
            f"  {name:<14} {min(values):8.3f} {statistics.median(values):8.3f} {max(values):8.3f}   {ratios[0]:6.2f}"
            f" {ratios[1]:6.2f}"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench env", description="Measure environments against pip and uv.")
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--json", action="store_true", help="print all times as JSON")
    arguments = parser.parse_args()
    leave_root(with_index=True)
    os.chdir("/")
    report = measure(arguments.runs)
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    sys.exit(main())
