"""With one cap left out on purpose, exactly the tests that say they hold it fail: none is blind, none is loose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.kernel.breaking import CAPS

# Some bombs and one share are enough here.
FEWER = (
    "not larger and not small and not shared and not places and not threads and not neighbours and not told and not"
    " refused and not 1.5 and not many and not child"
)
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def cases(report: Path) -> Iterator[tuple[str, set[str], bool]]:
    """Yield (name, the caps it holds, did it fail) for each test of a report."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        caps = {p.get("value", "") for p in case.iter("property") if p.get("name") == "holds"}
        yield case.get("name", ""), caps, case.find("failure") is not None or case.find("error") is not None


# Of the memory bombs, some are enough here: each run of a sandbox takes seconds where the processor is emulated.
@pytest.mark.parametrize("cap", sorted(CAPS))
def test_a_cap_left_out_fails_exactly_its_tests(cap: str, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--break={cap}",
        f"--junit-xml={report}",
        "-k",
        FEWER,
        str(HERE / "test_caps.py"),
        str(HERE / "test_memory.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stdout[-2000:]
    found = list(cases(report))
    wanted = {name for name, caps, _ in found if cap in caps}
    assert wanted, "no test says that it holds this cap"
    assert {name for name, _, failed in found if failed} == wanted
