"""Cold runs: this runner against Podman itself, interleaved in one process run.

Two pairs, each of the same image, flags and trivial script:

- engine: `Runner.run` on a live engine against the four calls that Podman needs by itself over its REST service:
  create, start, (the process ends, seen at once by a pidfd, not by Podman's polling wait), remove;
- command: `sandbox run` against `podman run --rm` as whole processes, start-up of both programs included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sandbox import places
from sandbox.cli.handover import leave_root
from sandbox.container import spec, workspace
from sandbox.container.harness_files import harness_directory, seccomp_file
from sandbox.engine.podman import PodmanEngine
from sandbox.engine.program import scrubbed_environment
from sandbox.host.facts import HostFacts
from sandbox.host.probe import probe
from sandbox.image import admission as image
from sandbox.models import RunRequest
from sandbox.policy.directories import policy_directories
from sandbox.policy.load import load_policy
from sandbox.policy.seccomp import load_profile
from sandbox.run.decision import Run
from sandbox.runner import Places, Runner

CODE = "result = 6 * 7\n"


def build_spec(facts: HostFacts, engine: PodmanEngine, work: workspace.Workspace, cache: Path) -> spec.ContainerSpec:
    """Return the specification of a default run, with the trivial script as its command instead of the harness."""
    policy = load_policy("default", directories=policy_directories()).policy
    profile = load_profile(policy.seccomp.profile, directories=policy_directories())
    admitted = image.admit(engine, engine.image(policy.images.default), cache_dir=cache)
    place = spec.Place(
        sandbox_id=f"bench{work.uid}",
        uid=work.uid,
        job_dir=work.job_dir,
        lib_dir=harness_directory(cache),
        seccomp_path=seccomp_file(profile, cache),
    )
    decided = spec.build(
        policy, image_id=admitted.id, python_path=admitted.python_path, facts=facts, seccomp=profile, place=place
    )
    decided.podman["command"] = [admitted.python_path, "-s", "-B", "-c", CODE]
    return decided


def podman_rest(engine: PodmanEngine, podman: dict[str, Any], info: Any) -> float:
    """Time Podman's own create, start, end and remove, in milliseconds."""
    began = time.perf_counter()
    container_id, _ = engine.create({**podman, "remove": False})
    engine.start(container_id)
    pidfile = info.run_root / f"{info.storage_driver}-containers" / container_id / "userdata/pidfile"
    with contextlib.suppress(OSError, ValueError):
        pidfd = os.pidfd_open(int(pidfile.read_text()))
        select.select([pidfd], [], [], 10)
        os.close(pidfd)
    engine.remove(container_id)
    return (time.perf_counter() - began) * 1000


def podman_flags(podman: dict[str, Any]) -> list[str]:
    """Return `podman run` flags that say what the specification says."""
    flags = ["--rm", "--network", "none", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"]
    flags += ["--security-opt", "no-new-privileges", "--security-opt", f"seccomp={podman['seccomp_profile_path']}"]
    flags += ["--security-opt", f"mask={':'.join(podman['mask'])}", "--user", podman["user"], "--workdir", "/"]
    flags += [
        "--ipc",
        "private",
        "--pid",
        "private",
        "--uts",
        "private",
        "--cgroupns",
        "private",
        "--hostname",
        "sandbox",
    ]
    flags += ["--image-volume", "ignore", "--http-proxy=false", "--unsetenv-all", "--no-hosts", "--systemd", "false"]
    flags += ["--log-driver", "none", "--stop-timeout", "0", "--pull", "never"]
    flags += [f"--env={name}={value}" for name, value in podman["env"].items()]
    flags += [f"--ulimit={limit['type']}={limit['soft']}:{limit['hard']}" for limit in podman["r_limits"]]
    flags += [f"--mount={flag}" for mount in podman["mounts"] if (flag := mount_flag(mount))]
    return flags


def mount_flag(mount: dict[str, Any]) -> str:
    """Return one mount as `podman run --mount` takes it; "" for a /proc, which it takes none of."""
    kind, where = mount["type"], mount["destination"]
    options = dict(option.partition("=")[::2] for option in mount["options"])
    if kind == "proc":
        return ""
    if kind == "devpts":
        return f"type=devpts,destination={where},max={options['max']}"
    if kind == "bind":
        return f"type=bind,source={mount['source']},destination={where},ro=true"
    rights = "ro=true" if "ro" in options else "U=true"
    return (
        f"type=tmpfs,destination={where},tmpfs-size={options['size']},tmpfs-mode={options['mode']},{rights},notmpcopyup"
    )


def timed(command: list[str], **options: Any) -> float:
    """Time a whole process, in milliseconds. Raises CalledProcessError when it fails."""
    began = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=60,
        **options,
    )
    return (time.perf_counter() - began) * 1000


def cold(runs: int) -> dict[str, Any]:
    """Measure all four, interleaved; return the times in milliseconds."""
    runtime_dir, cache = places.runtime_dir(), places.cache_dir()
    facts = probe(runtime_dir)
    engine = PodmanEngine(facts.engine, runtime_dir=runtime_dir)
    work = workspace.acquire(runtime_dir)
    times: dict[str, list[float]] = {"runner": [], "podman_rest": [], "sandbox_run": [], "podman_run": []}
    script = work.directory / "trivial.py"
    script.write_text(CODE)
    sandbox = [
        str(Path(sys.executable).with_name("sandbox")),
        "run",
        str(script),
        "--quiet",
        "--no-service",
    ]  # a service has warm sandboxes
    try:
        runner = Runner(
            lambda: engine,
            facts,
            Places(
                runtime_dir=runtime_dir, cache_dir=cache, data_dir=places.data_dir(), policy_dirs=policy_directories()
            ),
        )
        decided = build_spec(facts, engine, work, cache)
        podman = [
            "podman",
            "--runtime",
            facts.engine.runtime_path,
            "run",
            *podman_flags(decided.podman),
            decided.podman["image"],
            *decided.podman["command"],
        ]
        for number in range(runs + 1):
            durations = {
                "podman_rest": podman_rest(engine, decided.podman, facts.engine),
                "runner": asyncio.run(runner.run(Run(request=RunRequest(code=CODE)))).durations.total_ms,
                "podman_run": timed(podman, env=scrubbed_environment()),
                "sandbox_run": timed(sandbox),
            }
            if number:  # the first round warms caches up and is not counted
                for name, value in durations.items():
                    times[name].append(value)
    finally:
        work.release()
        engine.close()
    return {"runs": runs, "times_ms": times}


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Return the least, median and greatest ratio, round by round."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return ratios[0], statistics.median(ratios), ratios[-1]


def show(report: dict[str, Any]) -> None:
    """Print the table."""
    times = report["times_ms"]
    print(f"{report['runs']} rounds, interleaved; milliseconds: least, median, greatest")
    for name, values in times.items():
        print(f"  {name:<12} {min(values):8.1f} {statistics.median(values):8.1f} {max(values):8.1f}")
    print("ratio per round: least, median, greatest")
    for ours, theirs in (("runner", "podman_rest"), ("sandbox_run", "podman_run")):
        least, median, greatest = ratio(times[ours], times[theirs])
        print(f"  {ours} / {theirs}: {least:.2f} {median:.2f} {greatest:.2f}")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure cold runs against Podman's own.")
    parser.add_argument("what", choices=["cold"])
    parser.add_argument("--runs", type=int, default=15, help="rounds that count")
    parser.add_argument("--json", action="store_true", help="print all times as JSON")
    arguments = parser.parse_args()
    leave_root()
    if shutil.which("podman") is None:
        sys.exit("podman is not installed; run scripts/setup")
    report = cold(arguments.runs)
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
