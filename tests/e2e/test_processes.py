"""Libraries that start processes, or look for the script's file, find both as on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import document
from tests.e2e.libraries import TABLES
from tests.waiting import SLOWER

pytestmark = pytest.mark.podman
WITH = [option for library in TABLES for option in ("--with", library)]
WORKERS = """
from joblib import Parallel, delayed

def square(n):
    log(f"working on {n}")
    save_file(f"{n}.txt", str(payload))
    return n * n + run_command(["true"])["returncode"]

result = Parallel(n_jobs=2, backend="BACKEND")(delayed(square)(n) for n in range(4))
"""
FOREST = """
import numpy
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

class Forest(RandomForestClassifier):
    def fit(self, *arguments, **options):
        log("fitting")
        return super().fit(*arguments, **options)

table = numpy.random.default_rng(1).random((200, 4))
result = bool(cross_val_score(Forest(5, random_state=1), table, table[:, 0] > 0.5, n_jobs=2).mean() > 0.8)
"""
MEMORY = """
from joblib import Memory

@Memory("/tmp/cache", verbose=0).cache
def slow(n):
    log("called")
    return n + 1

result = [slow(1), slow(1), slow(2)]
"""


@pytest.fixture
def patient(tmp_path: Path) -> list[str]:
    """Give the options for a run that an emulated machine has as much longer for as it needs."""
    policy = tmp_path / "patient.toml"
    policy.write_text(f'extends = "default"\n[limits]\ntimeout_s = {30.0 * SLOWER}\n')
    return [*WITH, "--policy", str(policy)]


# Of these, the machine has the one that needs most of its kernel: new interpreters, semaphores, shared memory.
@pytest.mark.parametrize(
    "backend",
    [
        "loky",
        pytest.param("multiprocessing", marks=pytest.mark.host_only),
        pytest.param("threading", marks=pytest.mark.host_only),
    ],
)
def test_workers_of_joblib_have_the_functions_of_the_script(tmp_path: Path, patient: list[str], backend: str) -> None:
    (tmp_path / "script.py").write_text(WORKERS.replace("BACKEND", backend))
    found = document("run", tmp_path / "script.py", *patient, "--input", "7")
    assert found["result"] == [0, 1, 4, 9], found
    assert sorted(record["message"] for record in found["logs"]) == [f"working on {n}" for n in range(4)]
    assert sorted(file["name"] for file in found["files"]) == [f"{n}.txt" for n in range(4)]


@pytest.mark.host_only
def test_a_class_of_the_script_goes_to_the_workers_of_scikit_learn(tmp_path: Path, patient: list[str]) -> None:
    (tmp_path / "script.py").write_text(FOREST)
    found = document("run", tmp_path / "script.py", *patient)
    assert found["result"] is True, found
    assert [record["message"] for record in found["logs"]] == ["fitting"] * 5


@pytest.mark.host_only
def test_functions_of_the_script_can_be_cached(tmp_path: Path, patient: list[str]) -> None:
    (tmp_path / "script.py").write_text(MEMORY)
    found = document("run", tmp_path / "script.py", *patient)
    assert found["result"] == [2, 2, 3], found
    assert len(found["logs"]) == 2
