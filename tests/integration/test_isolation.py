"""Two runs at once see nothing of each other, and a run sees nothing of the one before."""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import Any

from sandbox.models import Outcome, RunResult
from sandbox.run.decision import Run
from tests.escape.bench import Bench, value_of

# Leaves a mark everywhere that a program can write or listen, then looks for the other's marks.
PROGRAM = """
import errno, os, signal, socket, time

mine, other, wait_s = payload["mine"], payload["other"], payload["wait_s"]
place_for = {"app": "/app/", "tmp": "/tmp/", "shm": "/dev/shm/"}
for directory in place_for.values():
    with open(directory + mine, "w") as file:
        file.write(mine)
tcp = socket.socket(); tcp.bind(("127.0.0.1", 40_000 + payload["port"])); tcp.listen()
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0" + mine); abstract.listen()
os.environ["MARK"] = mine
if os.fork() == 0:
    os.execv("/bin/sh", ["sh", "-c", "while :; do sleep 1; done", mine])
print("ready", flush=True)
time.sleep(wait_s)

def attempt(family, address):
    with socket.socket(family) as end:
        end.settimeout(1)
        try:
            end.connect(address)
        except OSError as error:
            return errno.errorcode[error.errno]
    return "ok"

def commands():
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with open(f"/proc/{name}/cmdline", "rb") as file:
                found.append(file.read().decode().replace("\\0", " "))
    return found

result = {
    "files": sorted(name for directory in place_for.values() for name in os.listdir(directory)),
    "own port": attempt(socket.AF_INET, ("127.0.0.1", 40_000 + payload["port"])),
    "other port": attempt(socket.AF_INET, ("127.0.0.1", 40_000 + payload["other port"])),
    "own abstract": attempt(socket.AF_UNIX, "\\0" + mine),
    "other abstract": attempt(socket.AF_UNIX, "\\0" + other),
    "commands": " ".join(commands()),
    "environment": " ".join(f"{name}={value}" for name, value in os.environ.items()),
    "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "mnt", "net", "ipc", "uts")},
    "uid": os.getuid(), "pid": os.getpid(), "files of lib": sorted(os.listdir("/run/sandbox/lib")),
}
"""


def payload(mine: int, other: int, wait_s: float) -> dict[str, Any]:
    mark = f"mark-{os.getpid()}"
    return {"mine": f"{mark}-{mine}", "other": f"{mark}-{other}", "port": mine, "other port": other, "wait_s": wait_s}


def check_sees_only_itself(seen: dict[str, Any], given: dict[str, Any]) -> None:
    assert seen["files"] == ["attack.py", *[given["mine"]] * 3], "its own, and its own script"
    assert (seen["own port"], seen["own abstract"]) == ("ok", "ok")
    assert (seen["other port"], seen["other abstract"]) == ("ECONNREFUSED", "ECONNREFUSED")
    assert given["mine"] in seen["commands"]
    assert given["other"] not in json.dumps(seen)


def test_two_runs_at_once_see_nothing_of_each_other(bench: Bench) -> None:
    given = [payload(1, 2, 1.5), payload(2, 1, 1.5)]

    async def both() -> list[RunResult]:
        runner = bench.runner()
        return await asyncio.gather(
            *(
                runner.run(Run(request=bench.request(PROGRAM, payload=one, secrets={"TOKEN": one["mine"]})))
                for one in given
            )
        )

    results = asyncio.run(both())
    first, second = (value_of(result) for result in results)
    check_sees_only_itself(first, given[0])
    check_sees_only_itself(second, given[1])
    assert set(first["namespaces"].values()).isdisjoint(second["namespaces"].values())
    assert first["uid"] != second["uid"], "a user id of its own for each live sandbox"
    overlap = sum(result.durations.program_ms for result in results)
    assert overlap > 3000, "both were running at the same time"


def test_a_run_sees_nothing_of_the_one_before(bench: Bench) -> None:
    given = [payload(3, 4, 0.4), payload(4, 3, 0.4)]
    for one in given:
        check_sees_only_itself(bench.value(PROGRAM, payload=one, secrets={"TOKEN": one["mine"]}), one)


def test_a_failed_or_killed_run_leaves_nothing_to_the_next(bench: Bench) -> None:
    bad = bench.run(PROGRAM + "\nos.kill(os.getpid(), 9)", payload=payload(5, 6, 0.4))
    assert bad.outcome is Outcome.KILLED
    given = payload(6, 5, 0.4)
    check_sees_only_itself(bench.value(PROGRAM, payload=given), given)


def test_what_a_program_changes_in_python_itself_is_gone_with_it(bench: Bench) -> None:
    bench.value("import builtins, json\nbuiltins.print = None\njson.loads = None\nresult = 1")
    ended = bench.run("import json\nprint(json.loads('[1]'))\nresult = 1")
    assert ended.stdout == b"[1]\n"


def test_many_runs_at_once_all_end_well_and_apart(bench: Bench) -> None:
    async def all_of_them() -> list[RunResult]:
        runner = bench.runner()
        text = (
            "import os, time\nopen('/app/mine', 'x').write(str(payload))\ntime.sleep(0.3)\nresult = [payload,"
            " open('/app/mine').read(), os.getuid()]"
        )
        return await asyncio.gather(
            *(runner.run(Run(request=bench.request(text, payload=number))) for number in range(6))
        )

    values = [value_of(result) for result in asyncio.run(all_of_them())]
    assert [value[:2] for value in values] == [[number, str(number)] for number in range(6)]
    assert len({value[2] for value in values}) == 6


def test_every_run_gets_another_host_user(bench: Bench) -> None:
    hosts = set()
    for _ in range(2):
        receipt = bench.run("result = 1").receipt
        assert receipt is not None
        wanted = next(row.wanted for row in receipt.controls if row.control == "non-root user")
        match = re.search(r"host (\d+)", wanted)
        assert match is not None
        hosts.add(int(match[1]))
        assert int(match[1]) != os.getuid()
    assert len(hosts) == 2
