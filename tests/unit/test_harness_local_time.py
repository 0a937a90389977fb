"""Local time follows the variable TZ, in a program that was forked before it was known, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox.inside.harness import process
from tests.unit.test_harness_driver import Run, run
from tests.unit.test_harness_preload import Library, library, run_preloaded

__all__ = ["library"]  # a fixture

SHOWN = """
import datetime, subprocess, time
summer = datetime.datetime(2024, 7, 1, 12, tzinfo=datetime.timezone.utc)
result = [
    summer.astimezone().strftime("%H:%M %Z"), datetime.datetime.fromtimestamp(0).hour, list(time.tzname),
    time.localtime(0).tm_hour, time.timezone, run_command("date -d @0 +%H")["stdout"].strip(),
]
"""


def preloaded(code: str, **fields: Any) -> Run:
    return run_preloaded(code, "keeps", **fields)


@pytest.mark.parametrize("kind", [run, preloaded])
@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("Asia/Tokyo", ["21:00 JST", 9, ["JST", "JST"], 9, -32400, "09"]),
        ("America/New_York", ["08:00 EDT", 19, ["EST", "EDT"], 19, 18000, "19"]),
        (":Asia/Kolkata", ["17:30 IST", 5, ["IST", "IST"], 5, -19800, "05"]),
        ("/usr/share/zoneinfo/Asia/Tokyo", ["21:00 JST", 9, ["JST", "JST"], 9, -32400, "09"]),
        ("CET-1CEST", ["14:00 CEST", 1, ["CET", "CEST"], 1, -3600, "01"]),
        ("<+0330>-3:30", ["15:30 +0330", 3, ["+0330", "+0330"], 3, -12600, "03"]),
        ("", ["12:00 UTC", 0, ["UTC", "UTC"], 0, 0, "00"]),
    ],
)
def test_local_time_is_that_of_the_variable(zone: str, expected: list[Any], kind: Any, library: Library) -> None:
    library(keeps="import datetime, time\ntime.localtime(); datetime.datetime.now().astimezone()\n")
    done = kind(SHOWN, env={"TZ": zone})
    assert done.result == expected
    assert not done.warnings


def test_zoneinfo_and_local_time_agree() -> None:
    code = """
    import datetime, os, zoneinfo
    zone = zoneinfo.ZoneInfo(os.environ["TZ"])
    moments = [datetime.datetime(2024, month, 28, hour, 30) for month in range(1, 13) for hour in (1, 2, 3)]
    result = [m.astimezone().utcoffset() == m.replace(tzinfo=zone).utcoffset() for m in moments]
    """
    assert run(code, env={"TZ": "Europe/Paris"}).result == [True] * 36


@pytest.mark.parametrize("zone", ["Asia/Tokio", "Mars", "Europe", "../../../etc/passwd", "CEST"])
def test_an_unknown_zone_is_warned_of(zone: str) -> None:
    done = run("import time\nresult = time.timezone", env={"TZ": zone})
    assert done.result == 0
    assert list(done.warnings) == [
        "the variable TZ names no time zone that exists here, such as Europe/Paris: local time is UTC"
    ]


def test_an_image_without_zones_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ZONES", str(tmp_path / "none"))
    monkeypatch.setattr("time.tzset", lambda: None)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert "the image has no time zones" in (process.set_local_time() or "")
    monkeypatch.delenv("TZ")
    assert process.set_local_time() is None
