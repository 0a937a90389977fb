"""The virtual machine's own paths, with a program in QEMU's place: results, no results, no boot, no end, and nothing left."""

from __future__ import annotations

import dataclasses
import io
import platform
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.vm import disk, emulator
from tests.vm.__main__ import RESULT_FILES, pack_job, scratch_directory, unpack_results

RESULTS = "printf results >RESULTS; "
BOOTED = "echo machine: booted; "


@pytest.fixture
def machine(tmp_path: Path) -> disk.Disk:
    return disk.Disk(directory=tmp_path)


def boot(
    machine: disk.Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, *, budget_s: float = 20
) -> tuple[bytes, list[str]]:
    """Boot with a shell script in the place of QEMU."""
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script.replace('RESULTS', str(tmp_path / 'results.tar'))}\n")
    program.chmod(0o755)
    kind = dataclasses.replace(emulator.ARCHITECTURES[platform.machine()], program=str(program))
    monkeypatch.setitem(emulator.ARCHITECTURES, platform.machine(), kind)
    said: list[str] = []
    data = emulator.boot(machine, tmp_path / "job.tar", tmp_path, accelerator="tcg", budget_s=budget_s, say=said.append)
    return data, said


def test_what_the_machine_prints_is_passed_on_and_its_results_come_back(
    machine: disk.Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, said = boot(machine, tmp_path, monkeypatch, BOOTED + "echo one; " + RESULTS + "echo two")
    assert data == b"results"
    assert said == ["machine: booted", "one", "two"]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (BOOTED + "echo half way", "ended without results; it said last: half way"),
        ("echo no such CPU >&2; exit 1", "ended without results; it said last: no such CPU"),
        (RESULTS + "exit 0", "ended without results; it said last: (nothing)"),
        ("echo Linux >CONSOLE; exit 1", "its console ends with:\nLinux"),
    ],
)
def test_a_machine_without_results_is_told_with_its_last_words(
    script: str, told: str, machine: disk.Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(emulator.MachineFailed) as caught:
        boot(machine, tmp_path, monkeypatch, script.replace("CONSOLE", str(tmp_path / "console.txt")))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("first", "told"), [("", "did not boot in time"), (BOOTED, "was not done after 1 s")], ids=["no boot", "no end"]
)
def test_a_machine_that_does_not_end_is_ended(
    first: str, told: str, machine: disk.Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    with pytest.raises(emulator.MachineFailed, match=told):
        boot(machine, tmp_path, monkeypatch, f"echo $$ >{note}; {first} exec sleep 600", budget_s=1)
    assert not Path(f"/proc/{int(note.read_text())}").exists()


def test_the_machine_has_no_network_and_never_writes_to_its_disk(machine: disk.Disk, tmp_path: Path) -> None:
    for shell in (False, True):
        words = emulator.command(
            machine, tmp_path / "j", tmp_path / "r", tmp_path / "c", accelerator="tcg", shell=shell
        )
        assert words[words.index("-nic") + 1] == "none"
        assert "-netdev" not in words
        drives = [words[number + 1] for number, word in enumerate(words) if word == "-drive"]
        assert len(drives) == 2
        assert all("snapshot=on" in drive or "readonly=on" in drive for drive in drives)
        assert words[:3] == ["setpriv", "--pdeathsig", "KILL"]


def test_the_disk_is_another_one_when_any_input_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = disk.key()
    assert disk.key() == before
    for name, value in (("SUITE", "sid"), ("PACKAGES", (*disk.PACKAGES, "vim")), ("SIZE", "9G"), ("overlay", list)):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, value)
            assert disk.key() != before, name


def results_of(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("_", "."))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def test_only_the_known_files_of_the_results_are_written(tmp_path: Path) -> None:
    directory = tmp_path / "results"
    data = results_of(status=b"1\n", junit_xml=b"<testsuites/>", **{"../evil": b"x", "/tmp/evil": b"x"})
    assert unpack_results(data, directory) == 1
    assert sorted(path.name for path in directory.iterdir()) == ["kernel.xml"]
    assert not (tmp_path / "evil").exists()


def test_a_link_in_the_place_of_a_result_is_left_aside(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in RESULT_FILES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    assert unpack_results(stream.getvalue(), tmp_path / "results") == 2
    assert list((tmp_path / "results").iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next_and_a_living_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "run-dead").mkdir()
    (tmp_path / "run-dead" / "job.tar").write_bytes(b"x")
    with scratch_directory(tmp_path) as living:
        with scratch_directory(tmp_path) as other:
            assert {path.name for path in tmp_path.iterdir()} == {living.name, other.name}
        assert living.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_job_is_whole_sectors_with_all_that_the_machine_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "project.whl"
    wheel.write_bytes(b"wheel")
    monkeypatch.setattr("tests.vm.__main__.save", lambda _name, target, _layout: target.write_bytes(b"image"))
    pack_job(tmp_path / "job.tar", wheel, tmp_path, ["tests/kernel", "-m", "not host_only"], "tcg")
    assert (tmp_path / "job.tar").stat().st_size % 4096 == 0
    with tarfile.open(tmp_path / "job.tar") as archive:
        names = set(archive.getnames())
        arguments = archive.extractfile("pytest-arguments")
        assert arguments is not None
        assert arguments.read() == b"tests/kernel\n-m\nnot host_only"
    assert {"tests/vm/job.sh", "tests/kernel", "pyproject.toml", "project.whl", "base-image.tar", "slower"} <= names


def test_a_script_that_is_killed_takes_the_machine_with_it(tmp_path: Path) -> None:
    # The chain of scripts/vm-test, shortened: a shell, our program, a child that must not outlive either.
    program = (
        "import subprocess, sys; from tests.vm.__main__ import end_with_parent; end_with_parent();"
        " child = subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', '--', 'sleep', '600']);"
        " print(child.pid, flush=True); child.wait()"
    )
    script = f'"{sys.executable}" -c "{program}" & wait $!'
    shell = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, cwd=disk.CHECKOUT)
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n" and time.monotonic() < deadline:
        time.sleep(0.01)  # from then on the kernel has been told
    shell.kill()
    shell.wait()
    shell.stdout.close()
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
