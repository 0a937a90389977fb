"""Scripts as people write them, each in every way there is: what its header says is what happens.

A header's lines: `expect` (in words), and what is checked, all of them: `outcome` (a|b, error:CODE), `result`,
`result-if-succeeded` (JSON), `stdout-has`, `stderr-is`, `stderr-lacks`, `says`, `says-any`, `says-not`, `warns` (regular expressions),
`file`. `options` are those of `sandbox run`; `needs: index` says that libraries are installed.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import COMMAND, environment, left_behind
from tests.integration.service import Service, served
from tests.waiting import SLOWER

pytestmark = pytest.mark.embedded_only
CASES = Path(__file__).parent / "cases"
TIMEOUT_S = 120 * SLOWER
WAYS = ("embedded", "warm", "cell")
LINE = re.compile(r"# ([a-z-]+):(?: (.*))?$")


class Case:
    """One script and what its header says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[tuple[str, str]] = []
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if not (found := LINE.match(line.rstrip())):
                break
            self.lines.append((found[1], found[2] or ""))

    def all(self, name: str) -> list[str]:
        """Return the values of every line of this name."""
        return [value for key, value in self.lines if key == name]

    @property
    def options(self) -> list[str]:
        """Return what the command gets."""
        return [word for value in self.all("options") for word in shlex.split(value)]

    @property
    def needs_index(self) -> bool:
        """Tell whether libraries are installed."""
        return any("index" in value for value in self.all("needs"))


def fits(key: str, value: str, answer: dict[str, Any], everything: str) -> bool:
    """Tell whether an answer is as one line of a header says."""
    outcome = answer.get("outcome") or f"error:{(answer.get('error') or {}).get('code')}"
    match key:
        case "outcome":
            return outcome in value.split("|")
        case "result":
            return bool(answer.get("result") == json.loads(value))
        case "result-if-succeeded":
            return bool(outcome != "succeeded" or answer.get("result") == json.loads(value))
        case "stdout-has":
            return value in (answer.get("stdout") or "")
        case "stderr-is":
            return bool((answer.get("stderr") or "").strip() == value)
        case "stderr-lacks":
            return re.search(value, answer.get("stderr") or "") is None
        case "says" | "says-any":
            return re.search(value, everything) is not None
        case "says-not":
            return re.search(value, everything) is None
        case "warns":
            return any(re.search(value, warning) for warning in answer.get("warnings") or ())
        case "file":
            return value in [file["name"] for file in answer.get("files") or ()]
        case "expect" | "options" | "needs" | "max-seconds":
            return True
        case _:
            raise ValueError(key)


ALL = [Case(path) for path in sorted(CASES.glob("*.py"))]
# The machine is a way of its own, and has no index. There a service runs them: under emulation a command alone spends
# seconds on its imports.
PARAMETERS = [
    pytest.param(
        case,
        way,
        id=f"{case.path.stem}-{way}",
        marks=[pytest.mark.host_only] if case.needs_index or way != "warm" else [],
    )
    for case in ALL
    for way in WAYS
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with served(tmp_path_factory.mktemp("cases")) as running:
        yield running
    assert left_behind() == []


@pytest.mark.parametrize(("case", "way"), PARAMETERS)
def test_a_script_does_what_its_header_says(case: Case, way: str, service: Service) -> None:
    variables = {} if way == "embedded" else {"SANDBOX_SOCKET": service.socket}
    policy = ["--policy", "cells"] if way == "cell" else []
    done = subprocess.run(
        [*COMMAND, "run", case.path.name, "--json", *case.options, *policy],
        cwd=CASES,
        env=environment(**variables),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
    )
    answer = json.loads(done.stdout)
    told = {key: value for key, value in answer.items() if key != "receipt"}
    everything = json.dumps(told, ensure_ascii=False) + "\n" + done.stderr
    wrong = [f"{key}: {value}" for key, value in case.lines if not fits(key, value, answer, everything)]
    assert not wrong, (wrong, everything[:3000])


def test_each_header_says_what_is_checked() -> None:
    assert len(ALL) > 20
    for case in ALL:
        assert case.all("expect"), case.path
        assert case.all("outcome"), case.path
        for key, value in case.lines:
            fits(key, value, {"result": None}, "")
