"""Each script runs as its header says: installed under its policy, with one real use, without a network.

What it took is written into the report, of which `scripts/will-it-run` makes docs/will-it-run.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.command import document, left_behind, sandbox
from tests.libraries.catalog import Script, scripts

TIMEOUT_S = 900
PROPERTY = "library"

pytestmark = pytest.mark.host_only


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = scripts(quick=metafunc.config.getoption("--libraries") != "all")
    metafunc.parametrize("script", chosen, ids=[script.key for script in chosen])


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_behind() == []


@pytest.fixture
def remove_what_was_built(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the environments of the whole table, which are many; the few of every day are kept for the next day."""
    every = request.config.getoption("--libraries") == "all"
    before = environments() if every else set()
    yield
    if every and (built := environments() - before):
        assert sandbox("env", "rm", *built).returncode == 0


def environments() -> set[str]:
    listed = json.loads(sandbox("env", "list", "--json").stdout)
    return {environment["id"] for environment in listed}


def answer(script: Script, place: Path) -> dict[str, Any]:
    """Run one script as its user would, under its policy."""
    options: list[str | Path] = []
    if script.policy:
        policy = place / f"{script.key}.toml"
        policy.write_text(tomli_w.dumps({"extends": "default", **script.policy}))
        options = ["--policy", policy]
    return document("run", "--no-service", *options, script.path, timeout_s=TIMEOUT_S)


def refusal(found: dict[str, Any]) -> str:
    """Return what the answer says of why the script did not run."""
    error = found["error"] or {}
    return "\n".join(
        str(text) for text in (found.get("explanation"), error.get("message"), error.get("hint")) if text is not None
    )


def size_and_version(script: Script, found: dict[str, Any]) -> tuple[int | None, str]:
    """Return the MiB that the script's environment takes, and the version of its library; nothing where none is."""
    made = found.get("receipt", {}).get("environment")
    if not made:
        return None, ""
    shown = json.loads(sandbox("env", "show", made, "--json").stdout)
    versions = dict(package.split("==") for package in shown["packages"])
    return math.ceil(shown["size_bytes"] / (1 << 20)), versions[script.distribution]


def test_a_library_does_what_the_page_says(
    script: Script, tmp_path: Path, remove_what_was_built: None, record_property: Any
) -> None:
    found = answer(script, tmp_path)
    if script.why_not:
        assert script.why_not in refusal(found), found
    else:
        assert found.get("outcome") == "succeeded", refusal(found) or found
        assert found["result"] == script.expects
        assert found["warnings"] == []
        assert script.stderr in found["stderr"]
        assert script.stderr or found["stderr"] == ""
    mib, version = size_and_version(script, found)
    seconds = found["durations"]["program_ms"] / 1000 if "durations" in found else None
    record_property(
        PROPERTY, json.dumps({"key": script.key, "version": version, "mib": mib, "seconds": seconds}, sort_keys=True)
    )
