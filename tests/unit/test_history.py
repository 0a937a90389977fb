"""The history: what comes back of it, what it costs, and what it survives."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.cli.past import OnDisk
from sandbox.errors import EngineUnavailable
from sandbox.service.history import history
from sandbox.service.history.history import Retention, RunHistory
from sandbox.service.history.row import MIGRATIONS, SERVICE_ENDED, RunRow
from sandbox.service.history.writer import GATHER_S, MAX_PENDING
from sandbox.service.sole_service import sole_service
from tests.waiting import until

ANN, BEN = 1001, 1002
DAY_S = 86_400.0
NOW = 1_000 * DAY_S
KEEP = Retention(age_s=30 * DAY_S, size_bytes=1 << 30)
RUN = RunRow(run_id="r", caller=ANN, caller_name="ann", received=NOW)
FULL = RunRow(
    run_id="full",
    caller=ANN,
    caller_name="ann",
    received=NOW,
    state="ended",
    node_id="n1",
    policy="default",
    policy_hash="sha256:0",
    image="python:3.12-slim",
    environment="e1",
    requirements="numpy, pandas>=2",
    preload="numpy, pandas",
    code_hash="sha256:1",
    outcome="failed",
    explanation="ValueError: no",
    started=NOW + 1,
    ended=NOW + 2.5,
    queue_ms=1.5,
    environment_ms=2.5,
    sandbox_ms=3.5,
    program_ms=4.5,
    total_ms=12,
    warm=True,
    peak_memory_mib=17.25,
    cpu_s=0.125,
    payload_bytes=1,
    payload="[1]",
    result_bytes=2,
    output_bytes=3,
    files_bytes=4,
    output='{"stdout": "x"}',
    detached=True,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "history.sqlite"


@contextlib.contextmanager
def opened(path: Path, limits: Retention = KEEP) -> Iterator[RunHistory]:
    kept = RunHistory(path, limits)
    try:
        yield kept
    finally:
        kept.close()


def run(number: int, **known: object) -> RunRow:
    return replace(RUN, run_id=f"r{number}", received=NOW + number, **known)  # type: ignore[arg-type]


def ids(rows: tuple[RunRow, ...]) -> list[str]:
    return [row.run_id for row in rows]


def test_a_run_comes_back_as_it_was_told_also_from_a_file_opened_again(path: Path) -> None:
    with opened(path) as kept:
        kept.ended(FULL)
        assert kept.get("full") == FULL
    with opened(path) as kept:
        assert kept.get("full") == FULL
        assert kept.get("other") is None


def test_a_run_is_queued_then_running_then_ended(path: Path) -> None:
    with opened(path) as kept:
        for row in (RUN, replace(RUN, state="running", started=NOW + 1)):
            kept.began(row)
            assert kept.get("r") == row
        ending = replace(RUN, outcome="succeeded", started=NOW + 1, ended=NOW + 2)
        kept.ended(ending)
        assert kept.get("r") == replace(ending, state="ended")


def test_a_run_that_ended_stays_as_it_was(path: Path) -> None:
    with opened(path) as kept:
        kept.ended(replace(RUN, outcome="cancelled"))
        assert kept.flush()
        kept.began(RUN)
        assert kept.get("r") == replace(RUN, outcome="cancelled", state="ended")


def test_an_end_needs_no_beginning(path: Path) -> None:
    with opened(path) as kept:
        kept.ended(RUN)
        assert kept.get("r") == replace(RUN, state="ended")


def test_runs_are_listed_newest_first_by_caller_node_and_outcome(path: Path) -> None:
    with opened(path) as kept:
        for row in (
            run(0),
            run(1, node_id="x"),
            run(2, caller=BEN, node_id="x"),
            run(3, node_id="x", outcome="failed"),
            run(4, caller=0),
        ):
            kept.ended(row)
        assert ids(kept.list()) == ["r4", "r3", "r2", "r1", "r0"]
        assert ids(kept.list(caller=ANN)) == ["r3", "r1", "r0"]
        assert ids(kept.list(caller=0)) == ["r4"]
        assert ids(kept.list(caller=ANN, node="x")) == ["r3", "r1"]
        assert ids(kept.list(node="x", outcome="failed")) == ["r3"]
        assert kept.list(caller=4) == ()


def test_a_caller_does_not_get_the_run_of_another(path: Path) -> None:
    with opened(path) as kept:
        kept.began(RUN)
        assert kept.get("r", caller=ANN) == RUN
        assert kept.get("r", caller=BEN) is None


def test_pages_follow_each_other_without_gap_or_overlap_while_runs_come_in(path: Path) -> None:
    with opened(path) as kept:
        for number in range(7):
            kept.ended(run(number))
        pages, before = [], None
        for number in range(7, 10):
            page = ids(kept.list(before=before, limit=3))
            kept.ended(run(number))
            pages.append(page)
            before = page[-1]
        assert pages == [["r6", "r5", "r4"], ["r3", "r2", "r1"], ["r0"]]
        assert kept.list(before="r0") == ()
        assert kept.list(before="no such run") == ()


def test_a_page_has_at_most_500_runs(path: Path) -> None:
    with opened(path) as kept:
        for number in range(510):
            kept.ended(run(number))
        assert len(kept.list(limit=100_000)) == 500
        assert kept.list(limit=0) == kept.list(limit=-1) == ()


def test_hostile_text_is_kept_bounded_and_never_stops_the_writer(path: Path) -> None:
    with opened(path) as kept:
        kept.ended(replace(RUN, node_id="\ud800'; DROP TABLE runs; --\0\n", requirements="x" * 1_000_000))
        row = kept.get("r")
        assert row is not None
        assert row.node_id == "?'; DROP TABLE runs; --\0\n"
        assert len(row.requirements) < 3_000
        assert ids(kept.list(node="' OR 1 --")) == []


def test_a_row_that_can_not_be_stored_takes_no_other_with_it(path: Path) -> None:
    with opened(path) as kept:
        kept.ended(run(0))
        kept.ended(run(1, payload_bytes=1 << 70))
        kept.ended(run(2))
        assert ids(kept.list()) == ["r2", "r0"]
        assert kept.lost == 1


def test_ten_thousand_runs_cost_few_commits_and_none_is_lost(path: Path) -> None:
    with opened(path) as kept:
        for number in range(10_000):
            kept.began(run(number))
            kept.ended(run(number))
        assert kept.flush()
        assert kept.commits < 500
        assert (kept.lost, kept.problem) == (0, "")
        with contextlib.closing(sqlite3.connect(path)) as file:
            assert file.execute("SELECT count(*) FROM runs WHERE state = 'ended'").fetchone() == (10_000,)


def test_runs_that_come_one_by_one_are_written_together(path: Path) -> None:
    with opened(path) as kept:
        began = time.monotonic()
        for number in range(300):
            kept.ended(run(number))
            time.sleep(0.001)
        most = (time.monotonic() - began) / GATHER_S + 1
        assert 1 <= kept.commits <= most


def test_runs_are_written_without_anybody_asking(path: Path) -> None:
    with opened(path) as kept, contextlib.closing(sqlite3.connect(path)) as file:
        kept.began(RUN)
        until(lambda: file.execute("SELECT run_id FROM runs").fetchall(), [(RUN.run_id,)])


def test_closing_writes_what_waits_and_can_be_done_twice(path: Path) -> None:
    kept = RunHistory(path, KEEP)
    kept.began(RUN)
    kept.close()
    kept.close()
    kept.began(run(1))
    with pytest.raises(EngineUnavailable, match="closed"):
        kept.prune()
    with opened(path) as again:
        assert ids(again.list()) == ["r"]


def test_threads_read_while_rows_are_written(path: Path) -> None:
    seen: list[int] = []

    def read(kept: RunHistory) -> None:
        for _ in range(30):
            rows = kept.list(limit=500)
            assert [row.received for row in rows] == sorted((row.received for row in rows), reverse=True)
            seen.append(len(rows))

    with opened(path) as kept:
        threads = [threading.Thread(target=read, args=(kept,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(400):
            kept.ended(run(number))
        for thread in threads:
            thread.join()
        assert len(seen) == 4 * 30
        assert len(kept.list(limit=500)) == 400


def test_runs_that_an_earlier_process_left_open_are_ended_as_killed(path: Path) -> None:
    with opened(path) as kept:
        kept.began(run(0))
        kept.began(run(1, state="running"))
        kept.ended(run(2, outcome="succeeded"))
    with opened(path) as kept:
        assert kept.interrupted(NOW + 99) == 2
        assert kept.interrupted(NOW + 100) == 0
        assert [(row.state, row.outcome, row.ended) for row in kept.list()] == [
            ("ended", "succeeded", None),
            ("ended", "killed", NOW + 99),
            ("ended", "killed", NOW + 99),
        ]
        killed = kept.get("r0")
        assert killed is not None
        assert "the service ended" in killed.explanation


def test_pruning_by_age_takes_what_ended_and_leaves_what_goes_on(path: Path) -> None:
    with opened(path, Retention(age_s=10 * DAY_S, size_bytes=1 << 30)) as kept:
        kept.ended(replace(RUN, run_id="old", received=NOW - 11 * DAY_S))
        kept.began(replace(RUN, run_id="old and open", received=NOW - 11 * DAY_S))
        kept.ended(replace(RUN, run_id="new", received=NOW - 9 * DAY_S))
        assert kept.prune(NOW) == 1
        assert ids(kept.list()) == ["new", "old and open"]


def test_pruning_by_size_takes_the_oldest_and_the_file_shrinks(path: Path) -> None:
    limit = 1 << 20
    with opened(path, Retention(age_s=DAY_S, size_bytes=limit)) as kept:
        for number in range(4_000):
            kept.ended(run(number, explanation="x" * 1_000))
        kept.flush()
        removed = kept.prune(NOW)
        left = 4_000 - removed
        assert 400 < left < 3_000
        assert limit * 0.8 < path.stat().st_size <= limit
        assert ids(kept.list(limit=1)) == ["r3999"]
        assert kept.get(f"r{removed - 1}") is None
        assert kept.get(f"r{removed}") is not None
        assert kept.prune(NOW) == 0


def test_a_limit_smaller_than_an_empty_file_takes_all_that_ended_and_comes_to_an_end(path: Path) -> None:
    with opened(path, Retention(age_s=DAY_S, size_bytes=0)) as kept:
        kept.began(run(0))
        kept.ended(run(1))
        assert kept.prune(NOW) == 1
        assert ids(kept.list()) == ["r0"]


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o644)
    with opened(path) as kept:
        kept.ended(RUN)
        kept.flush()
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("history.sqlite", "history.sqlite-wal", "history.sqlite-shm"), 0o600)


def test_a_directory_that_others_can_enter_is_closed_to_them(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o755)
    with opened(path):
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_can_not_be_opened_is_an_error_in_words(path: Path) -> None:
    path.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o700)
    with pytest.raises(EngineUnavailable, match="can't be opened"):
        RunHistory(path, KEEP)


def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(path: Path) -> None:
    with opened(path) as kept:
        kept.ended(RUN)
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 99")
    content = path.read_bytes()
    with pytest.raises(EngineUnavailable, match="newer version") as caught:
        RunHistory(path, KEEP)
    assert "move the file away" in caught.value.hint
    assert path.read_bytes() == content


def test_an_older_file_is_brought_up_to_date_with_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as kept:
        kept.ended(FULL)
    step = ("ALTER TABLE runs ADD COLUMN tag TEXT NOT NULL DEFAULT 'none'", "CREATE INDEX tags ON runs (tag)")
    monkeypatch.setattr(history, "MIGRATIONS", [*MIGRATIONS, step])
    with opened(path) as kept, contextlib.closing(sqlite3.connect(path)) as file:
        assert kept.get("full") == FULL
        assert file.execute("SELECT tag FROM runs").fetchall() == [("none",)]
        assert file.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)


def test_a_step_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as kept:
        kept.ended(FULL)
    steps = [*MIGRATIONS, ("ALTER TABLE runs RENAME TO gone", "NOT A STATEMENT")]
    with monkeypatch.context() as patched:
        patched.setattr(history, "MIGRATIONS", steps)
        with pytest.raises(EngineUnavailable, match="can't be opened"):
            RunHistory(path, KEEP)
    with opened(path) as kept:
        assert kept.get("full") == FULL


@pytest.mark.parametrize("damage", ["not a database", "pages overwritten", "cut short"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(path: Path, damage: str) -> None:
    with opened(path) as kept:
        assert kept.warning == ""
        for number in range(300):
            kept.ended(run(number))
    content = path.read_bytes()
    broken = {
        "not a database": b"x" * len(content),
        "pages overwritten": content[:8192] + b"\xff" * 8192 + content[16384:],
        "cut short": content[: len(content) // 2 // 4096 * 4096],
    }[damage]
    path.write_bytes(broken)
    with opened(path) as kept:
        (aside,) = path.parent.glob("*.damaged")
        assert re.fullmatch(r"history-\d{8}T\d{6}Z\.damaged", aside.name)
        assert str(aside) in kept.warning
        assert aside.read_bytes() == broken
        assert kept.list() == ()
        kept.ended(RUN)
        assert ids(kept.list()) == ["r"]


def test_a_disk_that_hangs_costs_no_end_of_a_run_and_what_was_given_up_is_counted(path: Path) -> None:
    with opened(path) as kept, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # from now on every write waits
        for number in range(MAX_PENDING + 5_000):
            kept.began(run(number))
        assert "too slow" in kept.problem
        assert 1 <= kept.lost <= 5_000
        lost = kept.lost
        for number in range(10):
            kept.ended(run(number, outcome="succeeded"))
        assert kept.lost == lost
        other.execute("COMMIT")
        assert kept.flush(60)
        assert kept.problem == ""
        assert other.execute("SELECT count(*) FROM runs").fetchone() == (MAX_PENDING + 5_000 - lost,)
        assert len(kept.list(outcome="succeeded")) == 10


DISK_FULL = """
import json, resource, sys
from dataclasses import replace
from pathlib import Path
from sandbox.service.history.history import RunHistory, Retention
from sandbox.service.history.row import RunRow

def largest_file_kib(kib):
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, resource.RLIM_INFINITY))

run = RunRow(run_id="r", caller=1, caller_name="ann", received=1.0, explanation="x" * 500)
kept = RunHistory(Path(sys.argv[1]), Retention(age_s=1, size_bytes=1 << 30))
kept.ended(replace(run, run_id="before"))
assert kept.flush()
largest_file_kib(128)
for number in range(1000):
    kept.began(replace(run, run_id=f"r{number}"))
    kept.ended(replace(run, run_id=f"r{number}"))
full = {"written": kept.flush(), "problem": kept.problem, "readable": kept.get("before") is not None}
largest_file_kib(1)
pruned = {"removed": kept.prune(100), "problem": kept.problem}
largest_file_kib(1 << 20)
mended = {"written": kept.flush(), "problem": kept.problem, "lost": kept.lost}
kept.close()
print(json.dumps([full, pruned, mended]))
"""


def test_a_full_disk_fails_no_run_and_what_waited_is_written_when_there_is_room(path: Path) -> None:
    told = subprocess.check_output([sys.executable, "-c", DISK_FULL, path], timeout=60)
    full, pruned, mended = json.loads(told)
    assert "runs can't be written" in full.pop("problem")
    assert full == {"written": False, "readable": True}
    assert "can't be changed" in pruned.pop("problem")
    assert pruned == {"removed": 0}
    assert mended == {"written": True, "problem": "", "lost": 0}
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM runs").fetchone() == (1_001,)


BUSY = """
import sys
from dataclasses import replace
from pathlib import Path
from sandbox.service.history.history import RunHistory, Retention
from sandbox.service.history.row import RunRow

kept = RunHistory(Path(sys.argv[1]), Retention(age_s=1e9, size_bytes=1 << 30))
for number in range(1_000_000):
    run = RunRow(run_id=f"r{number}", caller=1, caller_name="ann", received=float(number), explanation="x" * 500)
    kept.began(run)
    if number % 3:
        kept.ended(run)
    if number % 100 == 99:
        assert kept.flush()
        print(number, flush=True)
"""


@pytest.mark.parametrize("reports", [1, 30])
def test_a_writer_killed_in_the_middle_leaves_every_run_that_was_written(path: Path, reports: int) -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        last = [int(writer.stdout.readline()) for _ in range(reports)][-1]
        writer.send_signal(signal.SIGKILL)
    with opened(path) as kept:
        assert kept.warning == ""
        for number in range(last + 1):
            row = kept.get(f"r{number}")
            assert row is not None
            assert row.state == ("ended" if number % 3 else "queued")
        assert kept.interrupted(NOW) >= (last + 1) // 3
        with contextlib.closing(sqlite3.connect(path)) as file:
            assert file.execute("SELECT count(*) FROM runs WHERE state <> 'ended'").fetchone() == (0,)


def test_what_is_run_often_is_known_by_policy_libraries_and_modules(path: Path) -> None:
    kinds: dict[str, dict[str, object]] = {
        "often": {"policy": "a", "requirements": "numpy", "preload": "numpy", "environment": "e"},
        "seldom": {"policy": "b"},
        "old": {"policy": "c"},
        "refused": {"policy": "d", "sandbox_ms": None},
        "next": {"policy": "e"},
    }
    counts = {"often": 5, "seldom": 2, "old": 9, "refused": 9, "next": 3}
    with opened(path) as kept:
        number = 0
        for name, known in kinds.items():
            for _ in range(counts[name]):
                number += 1
                row = run(number, **{"sandbox_ms": 1.0, **known})
                kept.ended(replace(row, received=NOW - DAY_S * (9 if name == "old" else 0)))
        kept.flush()
        found = kept.often(10, since=NOW - DAY_S)
        assert [tuple(kind) for kind in found] == [("a", "numpy", "numpy", "e", 5), ("e", "", "", "", 3)]
        assert len(kept.often(1, since=NOW - DAY_S)) == 1


def test_a_history_of_the_first_version_is_brought_to_this_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(history, "MIGRATIONS", MIGRATIONS[:1])
        RunHistory(path, KEEP).close()
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.execute(
            "INSERT INTO runs (run_id, caller, caller_name, received, state, node_id, policy, policy_hash, image,"
            " environment, requirements, code_hash, outcome, explanation, warm, payload_bytes, result_bytes,"
            " output_bytes, files_bytes) VALUES ('r0', 1001, 'ann', 1, 'ended', '', '', '', '', '', '', '', '', '', 0,"
            " 0, 0, 0, 0)"
        )
    with opened(path) as kept:
        found = kept.get("r0")
        assert found is not None
        assert (found.run_id, found.preload) == ("r0", "")


# ---- what runs told


def output(size: int) -> str:
    return json.dumps({"stdout": "x" * (size - 14)})


def test_what_a_run_told_comes_with_the_run_and_not_in_lists(path: Path) -> None:
    with opened(path) as kept:
        kept.ended(replace(FULL, output=output(200_000), payload="p" * 60_000))
        row, listed = kept.get("full"), kept.list()[0]
        assert row is not None
        assert (len(row.output), len(row.payload)) == (200_000, 60_000), "whole, as its maker bounded it"
        assert (listed.output, listed.payload) == ("", "")
        assert listed.detached


def test_what_runs_told_is_bounded_while_it_comes_and_nobody_pushes_out_what_another_has(path: Path) -> None:
    with opened(path, replace(KEEP, output_bytes=100_000)) as kept:
        kept.ended(replace(RUN, run_id="ben", caller=BEN, output=output(20_000)))
        for number in range(200):
            kept.ended(run(number, output=output(10_000)))
            assert kept.flush()
        with contextlib.closing(sqlite3.connect(path)) as file:
            ((size,),) = file.execute("SELECT sum(length(output)) FROM runs").fetchall()
        assert size <= 100_000 * 1.25, "without anybody's pruning"
        kept.prune(NOW)
        with contextlib.closing(sqlite3.connect(path)) as file:
            ((size,),) = file.execute("SELECT sum(length(output)) FROM runs").fetchall()
        assert 80_000 <= size <= 100_000
        others, newest, oldest = kept.get("ben"), kept.get("r199"), kept.get("r0")
        assert others is not None
        assert newest is not None
        assert oldest is not None
        assert (bool(others.output), bool(newest.output), bool(oldest.output)) == (True, True, False)
        assert len(kept.list(limit=500)) == 201, "the runs themselves stay"


def test_what_a_run_told_is_forgotten_before_the_run(path: Path) -> None:
    with opened(path, replace(KEEP, output_age_s=DAY_S)) as kept:
        kept.ended(run(0, output=output(100)))
        kept.ended(replace(run(1, output=output(100)), received=NOW + 2 * DAY_S))
        kept.prune(NOW + 2 * DAY_S)
        assert [bool(row.output) for row in map(kept.get, ("r0", "r1")) if row] == [False, True]


def test_what_waits_for_a_disk_that_hangs_is_bounded_in_bytes_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as kept, contextlib.closing(sqlite3.connect(path)) as other:
        kept.flush()
        other.execute("BEGIN EXCLUSIVE")
        for number in range(history.WAITING_WHOLE * 4):
            kept.ended(run(number, output=output(1_000), payload="p"))
        waiting = list(kept._writer._pending.values())
        assert (
            sum(any(isinstance(value, str) and len(value) > 900 for value in values) for values in waiting)
            <= 2 * history.WAITING_WHOLE
        )
        other.execute("COMMIT")
        assert kept.flush(60)
        assert kept.lost == 0


# ---- without a service


@pytest.mark.parametrize("end", ["in order", "killed"])
def test_the_file_can_be_read_when_no_service_is_there(path: Path, end: str) -> None:
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom sandbox.service.history.history import RunHistory,"
        " Retention\nfrom sandbox.service.history.row import RunRow\nkept = RunHistory(Path(sys.argv[1]),"
        " Retention(age_s=1e9, size_bytes=1 << 30))\nkept.began(RunRow(run_id='r', caller=1, caller_name='ann',"
        " received=1.0, state='running'))\nassert kept.flush()\nif sys.argv[2] == 'killed': os.kill(os.getpid(),"
        " signal.SIGKILL)\nkept.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, path, end], check=end == "in order", timeout=60)
    found = OnDisk(path.parent)
    assert [row["run_id"] for row in found.runs(limit=10)] == ["r"]
    row = found.recorded("r")
    assert (row["state"], row["outcome"], row["explanation"]) == ("ended", "killed", SERVICE_ENDED)
    with sole_service(path.parent, socket="/s"):
        assert found.recorded("r")["state"] == "running", "a service that lives says itself when its runs end"
