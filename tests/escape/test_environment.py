"""Boundary: nothing of the caller's environment gets in, and secrets appear nowhere but in the program."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox.container.spec import RUN_LABEL
from sandbox.document import as_document
from sandbox.errors import PolicyDenied
from sandbox.models import Outcome, RunResult
from sandbox.run.decision import Follow, Run
from tests.escape.bench import Bench, Weakening
from tests.waiting import until

pytestmark = pytest.mark.host_only

SECRET = f"s3cret-{os.getpid()}-value"
CANARY = f"canary-{os.getpid()}"

LOOK = """
import os
result = {"environment": dict(os.environ), "files": sorted(os.listdir("/run/secrets")) if os.path.isdir("/run/secrets") else []}
"""


def test_no_variable_of_the_host_gets_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST_CANARY", "http_proxy", "HTTPS_PROXY", "AWS_SECRET_ACCESS_KEY", "PYTHONSTARTUP", "LD_PRELOAD_X"):
        monkeypatch.setenv(name, CANARY)
    seen = bench.value(LOOK)
    assert CANARY not in json.dumps(seen)
    allowed = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "HOSTNAME", "TERM", "container"}
    allowed |= {"PYTHONUNBUFFERED", "GFORTRAN_UNBUFFERED_PRECONNECTED"}  # ours: what is printed leaves at once
    assert {
        name for name in seen["environment"] if not name.endswith(("_NUM_THREADS", "_THREADS", "_FOR_THREADS_NUM"))
    } <= allowed
    assert seen["files"] == []


def test_a_variable_handed_to_the_container_would_be_seen_and_is_noticed(bench: Bench) -> None:
    def apply(podman: dict[str, Any]) -> None:
        podman["env"]["HOST_CANARY"] = CANARY

    weak = bench.run_weakened(LOOK, Weakening(name="a variable", controls=frozenset({"launch"}), apply=apply))
    assert weak.value["environment"]["HOST_CANARY"] == CANARY
    assert weak.noticed == {"launch"}


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PYTHONPATH", "PATH", "HOME", "OMP_NUM_THREADS", "http_proxy", "GLIBC_TUNABLES"]
)
def test_variables_that_steer_the_interpreter_are_refused(bench: Bench, name: str) -> None:
    with pytest.raises(PolicyDenied, match="reserved"):
        bench.run("result = 1", env={name: "x"})
    with pytest.raises(PolicyDenied, match="reserved"):
        bench.run("result = 1", secrets={name: "x"})


def test_variables_and_secrets_reach_the_program(bench: Bench) -> None:
    seen = bench.value(LOOK, env={"PLAIN": "value"}, secrets={"TOKEN": SECRET})["environment"]
    assert (seen["PLAIN"], seen["TOKEN"]) == ("value", SECRET)


def look_from_outside(run_label: str) -> str:
    """Return everything that Podman and the host's process list say of the running sandbox."""

    def podman(*arguments: str) -> str:
        return subprocess.run(
            ["podman", *arguments], capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL
        ).stdout

    ids = podman("ps", "--quiet", "--no-trunc", "--filter", f"label={RUN_LABEL}={run_label}").split()
    assert len(ids) == 1
    said = podman("inspect", ids[0]) + podman("logs", ids[0])
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for name in ("cmdline", "environ"):
                try:
                    # The program itself holds the secret; its files can't be read by another user than its own.
                    said += (entry / name).read_bytes().decode(errors="replace")
                except OSError:
                    continue
    return said


def test_a_secret_is_in_no_argument_no_inspection_and_no_receipt(bench: Bench) -> None:
    async def observed() -> tuple[RunResult, str]:
        said: list[str] = []
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()

        def on_output(kind: str, data: bytes) -> None:
            if not waiting.done():
                waiting.set_result(data.decode().strip())

        text = "import os, time\nprint(execution_id, flush=True)\nassert os.environ['TOKEN']\ntime.sleep(3)\nresult = 1"
        run = asyncio.ensure_future(
            bench.runner().run(
                Run(request=bench.request(text, secrets={"TOKEN": SECRET}), follow=Follow(output=on_output))
            )
        )
        said.append(await asyncio.to_thread(look_from_outside, await waiting))
        return await run, said[0]

    ended, outside = asyncio.run(observed())
    assert ended.outcome is Outcome.SUCCEEDED
    assert len(outside) > 1000
    assert SECRET not in outside
    assert SECRET not in as_document(ended).decode()
    assert SECRET not in repr(ended)


def test_a_secret_is_in_no_file_of_the_host(bench: Bench) -> None:
    # Only what was written since is read: the cache may hold the disk of the tests' machine, 8 GiB.
    since = time.time() - 1
    (bench.places.runtime_dir / "control").write_text(SECRET)
    try:
        bench.value("import os\nresult = len(os.environ['TOKEN'])", secrets={"TOKEN": SECRET})
        told = [
            path.name
            for top in (bench.places.runtime_dir, bench.places.cache_dir)
            for path in top.rglob("*")
            if path.is_file() and path.stat().st_mtime > since and SECRET.encode() in path.read_bytes()
        ]
    finally:
        (bench.places.runtime_dir / "control").unlink()
    assert told == ["control"]


def test_a_request_shows_no_secret(bench: Bench) -> None:
    request = bench.request("result = 1", secrets={"TOKEN": SECRET})
    assert SECRET not in repr(request)
    assert SECRET not in str(request)


def test_a_run_costs_the_host_no_file(bench: Bench) -> None:
    def files() -> set[str]:
        return {str(path) for path in bench.places.runtime_dir.rglob("*") if not path.name.startswith("engine-")}

    bench.value("result = 1")  # the first one makes directories
    before = files()
    bench.value("result = 1")
    until(files, before)
