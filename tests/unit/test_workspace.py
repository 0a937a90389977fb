"""Leases of user ids, and what is done about owners that died."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.container import workspace
from sandbox.container.spec import OWNER_LABEL, PLACE_LABEL, RUN_LABEL, UID_FIRST, UID_LAST, runs_id
from sandbox.engine.protocol import EXPORT_LABEL, ContainerRecord
from sandbox.engine.service import remove_dead_sockets
from sandbox.errors import EngineUnavailable
from tests.fake_engine import BASE, FakeEngine


def container(engine: FakeEngine, owner: str, runtime_dir: Path) -> str:
    place = runs_id(runtime_dir / "runs")
    container_id, _ = engine.create({"image": BASE, "labels": {RUN_LABEL: "r", OWNER_LABEL: owner, PLACE_LABEL: place}})
    return container_id


def test_live_workspaces_never_share_a_user_id(tmp_path: Path) -> None:
    taken = [workspace.acquire(tmp_path) for _ in range(50)]
    assert len({one.uid for one in taken}) == 50
    assert all(UID_FIRST <= one.uid <= UID_LAST for one in taken)
    for one in taken:
        one.release()
    assert workspace.abandoned(tmp_path) == []


def test_others_can_pass_through_the_job_directory_alone(tmp_path: Path) -> None:
    one = workspace.acquire(tmp_path)
    assert one.directory.stat().st_mode & 0o777 == 0o700
    assert one.job_dir.stat().st_mode & 0o777 == 0o711
    one.release()


def test_release_leaves_nothing(tmp_path: Path) -> None:
    one = workspace.acquire(tmp_path)
    (one.job_dir / "job.sock").touch()
    one.release()
    assert not one.directory.exists()


def test_a_live_workspace_is_never_swept(tmp_path: Path) -> None:
    engine = FakeEngine()
    one = workspace.acquire(tmp_path)
    kept = container(engine, str(one.uid), tmp_path)
    assert workspace.sweep(tmp_path, engine, everything=True) == 0
    assert one.directory.exists()
    assert engine.inspect(kept).id == kept
    one.release()


def test_what_a_killed_owner_left_is_removed_with_its_container(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom sandbox.container import workspace\n"
        "print(workspace.acquire(Path(sys.argv[1])).uid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        uid = process.stdout.readline().strip().decode()
        assert workspace.abandoned(tmp_path) == []
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in workspace.abandoned(tmp_path)] == [uid]
    engine = FakeEngine()
    orphan, other = container(engine, uid, tmp_path), container(engine, "1", tmp_path)
    assert workspace.sweep(tmp_path, engine) == 1
    assert [found.id for found in engine.containers(RUN_LABEL)] == [other]
    assert orphan != other
    assert workspace.abandoned(tmp_path) == []


def test_a_sandbox_that_starts_during_a_sweep_stays(tmp_path: Path) -> None:
    class Busy(FakeEngine):
        """Another run gets its sandbox while this one's containers are listed."""

        def containers(self, label: str) -> list[ContainerRecord]:
            if not taken:
                taken.append(workspace.acquire(tmp_path))
                container(self, str(taken[0].uid), tmp_path)
            return super().containers(label)

    taken: list[workspace.Workspace] = []
    engine = Busy()
    assert workspace.sweep(tmp_path, engine, everything=True) == 0
    assert len(engine.containers(RUN_LABEL)) == 1
    taken[0].release()


def test_containers_without_a_workspace_go_when_everything_is_swept(tmp_path: Path) -> None:
    engine = FakeEngine()
    container(engine, "12345", tmp_path)
    elsewhere = container(engine, "12345", tmp_path / "another")
    assert workspace.sweep(tmp_path, engine) == 0
    assert workspace.sweep(tmp_path, engine, everything=True) == 1
    assert [found.id for found in engine.containers(RUN_LABEL)] == [elsewhere]


def test_what_was_made_to_read_an_image_goes_when_its_maker_is_dead(tmp_path: Path) -> None:
    engine = FakeEngine()
    made = {
        pid: engine.create({"image": BASE, "labels": {EXPORT_LABEL: pid}})[0] for pid in ("4194999", str(os.getpid()))
    }
    workspace.sweep(tmp_path, engine, everything=True)
    assert [found.id for found in engine.containers(EXPORT_LABEL)] == [made[str(os.getpid())]]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "lock").symlink_to("/dev/full/absent")
    with pytest.raises(EngineUnavailable, match="runs"):
        workspace.acquire(tmp_path)


def test_the_lease_ends_with_its_process_also_for_children_that_inherit_nothing(tmp_path: Path) -> None:
    one = workspace.acquire(tmp_path)
    assert not os.get_inheritable(one.lock_fd)
    one.release()


def test_a_sweeper_without_descriptors_takes_nobody_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    one = workspace.acquire(tmp_path)
    kept = container(engine, str(one.uid), tmp_path)
    opens = os.open

    def full(path: Path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(f"{one.uid}/lock"):
            raise OSError(24, "Too many open files")
        return opens(path, flags, mode)

    monkeypatch.setattr(os, "open", full)
    assert workspace.sweep(tmp_path, engine, everything=True) == 0
    assert one.directory.exists()
    assert engine.inspect(kept).id == kept
    monkeypatch.undo()
    one.release()


def test_what_one_sweeper_removes_is_no_other_sweeper_s_and_its_user_id_nobody_s(tmp_path: Path) -> None:
    one = workspace.acquire(tmp_path)
    os.close(one.lock_fd)  # as if its owner had died
    with workspace.taken_over(tmp_path) as mine:
        assert mine == [one.directory]
        assert workspace.abandoned(tmp_path) == [], "a second sweeper would remove what somebody leased meanwhile"
        assert str(one.uid) in {entry.name for entry in (tmp_path / "runs").iterdir()}, "and nobody can lease it"
    assert workspace.abandoned(tmp_path) == [one.directory]


def test_a_workspace_without_a_lock_is_of_an_owner_that_died_early(tmp_path: Path) -> None:
    workspace.acquire(tmp_path).release()
    (tmp_path / "runs" / "20001").mkdir()
    assert workspace.sweep(tmp_path, FakeEngine()) == 1
    assert not (tmp_path / "runs" / "20001").exists()


def test_a_socket_whose_process_is_in_another_pid_namespace_stays_while_somebody_listens(tmp_path: Path) -> None:
    nobody = 4_194_305  # more than any number may be
    live, dead = tmp_path / f"engine-{nobody}-0.sock", tmp_path / f"engine-{nobody}-1.sock"
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(live))
        one.listen()
        other.bind(str(dead))
        remove_dead_sockets(tmp_path)
        assert (live.exists(), dead.exists()) == (True, False)
