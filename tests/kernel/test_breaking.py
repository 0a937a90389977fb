"""With one cap left out on purpose, exactly the tests that say they hold it fail: none is blind, none is loose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.kernel.breaking import CAPS

# Some bombs and one share are enough here. No cap counts locks of files, and taking many is slow work.
FEWER = (
    "not larger and not small and not shared and not places and not threads and not neighbours and not told and not"
    " refused and not 1.5 and not many and not child and not locks"
)
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test of a report: the caps that it holds, and the one that was left out."""

    name: str
    holds: set[str]
    broken: str
    failed: bool


def cases(report: Path) -> Iterator[Case]:
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        properties = [(p.get("name"), p.get("value", "")) for p in case.iter("property")]
        yield Case(
            name=case.get("name", ""),
            holds={value for name, value in properties if name == "holds"},
            broken=dict(properties).get("broken", ""),
            failed=case.find("failure") is not None or case.find("error") is not None,
        )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Run the tests with each cap left out in turn, in one pytest: where the processor is emulated, it begins slowly."""
    report = tmp_path_factory.mktemp("breaking") / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"--break={cap}" for cap in CAPS),
        f"--junit-xml={report}",
        "-k",
        FEWER,
        str(HERE / "test_caps.py"),
        str(HERE / "test_memory.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stdout[-2000:]
    return list(cases(report))


@pytest.mark.parametrize("cap", sorted(CAPS))
def test_a_cap_left_out_fails_exactly_its_tests(cap: str, found: list[Case]) -> None:
    ran = [case for case in found if case.broken == cap]
    wanted = {case.name for case in ran if cap in case.holds}
    assert wanted, "no test says that it holds this cap"
    assert {case.name for case in ran if case.failed} == wanted
