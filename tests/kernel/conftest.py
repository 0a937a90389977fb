"""The kernel tier: what cgroup v2 holds, on a host that delegates it. `scripts/vm-test` boots one; any other will do.

Each test says which cap it would miss: `@pytest.mark.holds("memory")`. With `--break memory` that cap is left out while
the product still claims it, and exactly these tests must fail (`test_breaking.py`). With several `--break` each test runs
once for each of them.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator

import pytest

from sandbox.host.facts import HostFacts
from tests import platforms
from tests.kernel.breaking import CAPS, break_cap
from tests.kernel.machine import NEWCOMER

REQUIRED = os.environ.get("SANDBOX_REQUIRE_DELEGATION", "") not in ("", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--break",
        dest="broken",
        action="append",
        default=[],
        choices=sorted(CAPS),
        help="leave one cap out, and claim it all the same",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if caps := metafunc.config.getoption("broken", default=[]):
        metafunc.parametrize("broken", caps, indirect=True, scope="session")


@pytest.fixture(autouse=True, scope="session")
def delegated(host_facts: HostFacts) -> None:
    missing = {"cpu", "memory", "pids"} - host_facts.controllers
    if missing:
        reason = f"cgroup v2 with delegated controllers is needed; missing: {', '.join(sorted(missing))}"
        if REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytest.skip(f"{reason} (scripts/vm-test boots a machine that has them)")


@pytest.fixture(scope="session")
def newcomer() -> pwd.struct_passwd:
    """Return the other user; a test that needs the machine itself asks for this one, too."""
    try:
        return pwd.getpwnam(NEWCOMER)
    except KeyError:
        if REQUIRED:
            pytest.fail(f"this machine has no user {NEWCOMER}", pytrace=False)
        pytest.skip(f"needs the user {NEWCOMER}, who belongs to the machine of scripts/vm-test")


@pytest.fixture(autouse=True)
def holds(request: pytest.FixtureRequest, record_property: platforms.Record, broken: str) -> None:
    """Write the caps that a test holds into the report, and the one that is left out."""
    record_property("broken", broken)
    for mark in request.node.iter_markers("holds"):
        for cap in mark.args:
            record_property("holds", cap)


@pytest.fixture(autouse=True, scope="session")
def broken(request: pytest.FixtureRequest) -> Iterator[str]:
    """Break the cap that the command line names, and give its name; "" where it names none."""
    cap: str = getattr(request, "param", "")
    with pytest.MonkeyPatch.context() as patch:
        if cap:
            break_cap(cap, patch)
        yield cap
