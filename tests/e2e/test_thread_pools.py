"""Numeric libraries keep pools of threads: they start under the policy `default`, and its limits hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import document, left_behind

TABLES = ("--with", "pandas", "--with", "scikit-learn")
PICTURES = ("--with", "opencv-python-headless")
THREADS = 8
TOO_MANY = 100
COUNT = "def threads():\n    return len(__import__('os').listdir('/proc/self/task'))\n"
NUMPY = f"""
import numpy
from threadpoolctl import threadpool_info, threadpool_limits
square = numpy.random.default_rng(1).random((600, 600))
own = [pool["num_threads"] for pool in threadpool_info()]
square @ square
alone = threads()
with threadpool_limits({THREADS}):
    total = float((square @ square).sum())
result = {{"own": own, "alone": alone, "asked": threads(), "right": abs(total - float((square @ square).sum())) < 1}}
"""
OPENMP = f"""
import numpy
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_limits
table = numpy.random.default_rng(1).random((2000, 8))
with threadpool_limits({THREADS}):
    KMeans(4, n_init=1, random_state=1).fit(table)
forest = RandomForestClassifier(20, n_jobs={THREADS}, random_state=1).fit(table, table[:, 0] > 0.5)
result = {{"asked": threads(), "right": forest.score(table, table[:, 0] > 0.5) > 0.95}}
"""
OPENCV = f"""
import cv2, numpy
picture = numpy.full((2000, 2000, 3), 127, numpy.uint8)
own = [cv2.getNumThreads()]
cv2.resize(picture, (3000, 3000))
alone = threads()
cv2.setNumThreads({THREADS})
larger = cv2.resize(picture, (3000, 3000))
result = {{"own": own, "alone": alone, "asked": threads(), "right": int(larger.min()) == int(larger.max()) == 127}}
"""


pytestmark = pytest.mark.host_only


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_behind() == []


def run(place: Path, libraries: tuple[str, ...], code: str) -> dict[str, Any]:
    script = place / "script.py"
    script.write_text(COUNT + code)
    return document("run", script, *libraries)


@pytest.mark.parametrize(("libraries", "code"), [(TABLES, NUMPY), (PICTURES, OPENCV)], ids=["numpy", "opencv"])
def test_a_pool_has_the_size_of_the_cpu_cap_and_may_be_made_larger(
    tmp_path: Path, libraries: tuple[str, ...], code: str
) -> None:
    found = run(tmp_path, libraries, code)
    assert found["outcome"] == "succeeded", found
    result = found["result"]
    assert set(result["own"]) == {1}, "the policy default gives one CPU"
    assert result["alone"] == 1
    assert result["asked"] >= THREADS
    assert result["right"]


def test_openmp_and_threads_of_python_start_side_by_side(tmp_path: Path) -> None:
    found = run(tmp_path, TABLES, OPENMP)
    assert found["outcome"] == "succeeded", found
    assert found["result"]["asked"] >= THREADS
    assert found["result"]["right"]
    assert found["stderr"] == ""


def test_a_pool_larger_than_the_limit_of_processes_ends_the_run(tmp_path: Path) -> None:
    found = run(tmp_path, TABLES, OPENMP.replace(f"threadpool_limits({THREADS})", f"threadpool_limits({TOO_MANY})"))
    # libgomp gives up at once with status 1; whether the watchdog counts the threads before is a matter of luck.
    assert found["outcome"] in ("too_many_processes", "failed"), found
    assert "Thread creation failed" in found["stderr"]


def test_an_array_larger_than_the_policy_s_memory_ends_the_run(tmp_path: Path) -> None:
    found = run(tmp_path, TABLES, "import numpy\nresult = float(numpy.ones((1 << 20, 100)).sum())\n")
    assert found["outcome"] == "out_of_memory"
    assert found["receipt"]["controls"], "the run was not refused, it ended"
