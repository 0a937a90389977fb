"""docs/will-it-run.md is made of the scripts of tests/libraries and of the reports of their test, and nothing else."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from sandbox.environment.declared import parse_script
from tests.libraries.catalog import SCRIPTS, Script, scripts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/will-it-run.md").read_text()


@pytest.fixture
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/will-it-run"))


def report(place: Path, **finding: Any) -> Path:
    """Write a report as pytest does, with one finding."""
    quoted = json.dumps(finding).replace("&", "&amp;").replace('"', "&quot;")
    path = place / "libraries.xml"
    path.write_text(
        f'<testsuites><testsuite><testcase name="x"><properties><property name="library" value="{quoted}"/>'
        "</properties></testcase></testsuite></testsuites>"
    )
    return path


def test_the_page_has_a_row_for_each_script_and_says_what_its_header_says(generator: dict[str, Any]) -> None:
    assert generator["rows"](PAGE) == generator["expected"](PAGE, {}), "run scripts/will-it-run"


def test_each_library_that_runs_was_measured(generator: dict[str, Any]) -> None:
    for row in generator["rows"](PAGE):
        assert row["runs"] == "**no**" or (row["version"] and row["MiB"] and float(row["seconds"]) > 0), row


def test_a_finding_changes_its_own_row_alone(generator: dict[str, Any], tmp_path: Path) -> None:
    found = generator["findings"]([report(tmp_path, key="numpy", version="9.9", mib=7, seconds=0.01)])
    changed = [
        (old, new)
        for old, new in zip(generator["rows"](PAGE), generator["expected"](PAGE, found), strict=True)
        if old != new
    ]
    assert len(changed) == 1
    old, new = changed[0]
    assert new == {**old, "version": "9.9", "MiB": "7", "seconds": "0.1"}


def test_what_is_written_is_read_as_it_was(generator: dict[str, Any]) -> None:
    rows = generator["expected"](PAGE, {"numpy": {"version": "", "MiB": "", "seconds": ""}})
    assert generator["rows"](f"{generator['MARK']}\n{generator['write'](rows)}") == rows


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.key)
def test_a_header_names_libraries_as_sandbox_run_reads_them_and_one_expectation(script: Script) -> None:
    declared = parse_script(script.path.read_text())
    assert declared is not None
    assert sorted(declared.libraries) == sorted(map(str.lower, script.requirements))
    assert (script.expects is None) is bool(script.why_not)
    assert not script.path.stem.isidentifier(), "a script that can be imported hides the library of its name"


def test_there_are_sixty_libraries_and_a_dozen_of_every_day() -> None:
    every = scripts()
    assert len({script.distribution for script in every}) >= 60
    assert 10 <= len(scripts(quick=True)) <= 15
    assert len(list(SCRIPTS.iterdir())) == len(every)
    assert len({script.shown for script in every}) == len(every)
