"""The virtual machine's own paths, with a program in QEMU's place: results, none, no boot, no end, nothing left."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.vm import disk, emulator, job, own, results, storage
from tests.vm.__main__ import scratch_directory
from tests.waiting import WAIT_S

RESULTS = "printf results >RESULTS; "
BOOTED = "echo machine: booted; "


@pytest.fixture
def machine(tmp_path: Path) -> disk.Disk:
    return disk.Disk(directory=tmp_path)


def boot(
    machine: disk.Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    *,
    budget_s: float = 20,
    hold: int | None = None,
) -> tuple[bytes, list[str]]:
    """Boot with a shell script in the place of QEMU."""
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script.replace('RESULTS', str(tmp_path / 'results.tar'))}\n")
    program.chmod(0o755)
    kind = dataclasses.replace(emulator.ARCHITECTURES[platform.machine()], program=str(program))
    monkeypatch.setitem(emulator.ARCHITECTURES, platform.machine(), kind)
    said: list[str] = []
    data = emulator.boot(
        machine, tmp_path / "job.tar", tmp_path, accelerator="tcg", budget_s=budget_s, say=said.append, hold=hold
    )
    return data, said


def test_what_the_machine_prints_is_passed_on_and_its_results_come_back(
    machine: disk.Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, said = boot(machine, tmp_path, monkeypatch, BOOTED + "echo one; " + RESULTS + "echo two")
    assert data == b"results"
    assert said == ["machine: booted", "one", "two"]


# Ready, it prints what it is told.
LISTENING = f"""
exec {sys.executable} - <<'END'
import os, socket
place = socket.socket(socket.AF_UNIX)
place.bind("GO")
place.listen()
print("machine: ready", flush=True)
print(place.accept()[0].recv(100).decode(), end="", flush=True)
open("RESULTS", "w").write("results")
END
"""


@pytest.mark.parametrize("held", [False, True])
def test_a_machine_that_is_ready_begins_when_it_is_told(
    held: bool, machine: disk.Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, writes = os.pipe()
    ended: list[tuple[bytes, list[str]]] = []
    script = BOOTED + LISTENING.replace("GO", str(tmp_path / "go"))
    hold = reads if held else None
    thread = threading.Thread(target=lambda: ended.append(boot(machine, tmp_path, monkeypatch, script, hold=hold)))
    thread.start()
    if held:
        thread.join(1)
        assert not ended, "it waits"
        os.write(writes, b"\n")
    thread.join(WAIT_S)
    assert ended == [(b"results", ["machine: booted", "machine: ready", "go"])]
    os.close(reads)
    os.close(writes)


def test_a_machine_that_ends_while_it_waits_is_told(
    machine: disk.Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, writes = os.pipe()
    with pytest.raises(emulator.MachineFailed, match="ended without results; it said last: machine: ready"):
        boot(machine, tmp_path, monkeypatch, BOOTED + "echo machine: ready", hold=reads)
    os.close(reads)
    os.close(writes)


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


@pytest.mark.parametrize("shell", [False, True])
@pytest.mark.parametrize("images", [False, True])
def test_the_machine_has_no_network_and_never_writes_to_its_disks(
    machine: disk.Disk, tmp_path: Path, shell: bool, images: bool
) -> None:
    if images:
        (tmp_path / emulator.IMAGES).touch()
    words = emulator.command(machine, tmp_path / "j", tmp_path / "r", tmp_path / "c", accelerator="tcg", shell=shell)
    assert words[words.index("-nic") + 1] == "none"
    assert "-netdev" not in words
    drives = [words[number + 1] for number, word in enumerate(words) if word == "-drive"]
    assert len(drives) == 2 + images
    assert all("snapshot=on" in drive or "readonly=on" in drive for drive in drives)
    assert words[:3] == ["setpriv", "--pdeathsig", "KILL"]


def test_the_disk_is_another_one_when_any_input_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = disk.key()
    assert disk.key() == before
    for name, value in (("SUITE", "sid"), ("PACKAGES", (*disk.PACKAGES, "vim")), ("SIZE", "9G"), ("overlay", list)):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, value)
            assert disk.key() != before, name


@pytest.fixture
def kept(tmp_path: Path) -> disk.Disk:
    """Give a cache with a disk that has content in three places, and holes between."""
    made = disk.Disk(directory=tmp_path / disk.key())
    made.directory.mkdir()
    for path in (made.image, made.kernel, made.initrd):
        with path.open("wb") as file:
            for place in (0, 5 * disk.PIECE - 3, 40 * disk.PIECE):
                file.seek(place)
                file.write(b"content")
            file.truncate(64 * disk.PIECE)
    made.contents.write_text(json.dumps(disk.content(made)))
    return made


def test_a_disk_is_used_again_also_where_its_holes_were_filled(kept: disk.Disk) -> None:
    assert disk.cached(kept.directory.parent) == kept
    kept.image.write_bytes(kept.image.read_bytes())
    assert disk.cached(kept.directory.parent) == kept


@pytest.mark.parametrize("file", ["disk.img", "vmlinuz", "initrd", "contents.json"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "changed"])
def test_a_disk_that_is_damaged_is_built_again(kept: disk.Disk, file: str, damage: str) -> None:
    path = kept.directory / file
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        os.truncate(path, path.stat().st_size - 1)
    else:
        with path.open("r+b") as stream:
            stream.seek(20)
            stream.write(b"!")
    assert disk.cached(kept.directory.parent) is None


def results_of(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def report(*tests: str) -> bytes:
    cases = "".join(f'<testcase name="{name}"/>' for name in tests)
    return f'<testsuites><testsuite tests="{len(tests)}">{cases}</testsuite></testsuites>'.encode()


def reported(directory: Path) -> list[str | None]:
    return [case.get("name") for case in ElementTree.parse(directory / "kernel.xml").iter("testcase")]


def test_the_reports_of_both_users_come_home_as_one(tmp_path: Path) -> None:
    data = results_of(
        **{
            "tester/junit.xml": report("one", "two"),
            "tester/status": b"0\n",
            "colleague/junit.xml": report("three"),
            "colleague/status": b"0\n",
            "journal.txt": b"quiet",
        }
    )
    assert results.unpack(data, tmp_path, ["tester", "colleague"]) == 0
    assert reported(tmp_path) == ["one", "two", "three"]
    assert (tmp_path / "journal.txt").read_bytes() == b"quiet"


@pytest.mark.parametrize(
    ("tester", "colleague", "told"),
    [(b"0", b"1", 1), (b"1", b"0", 1), (b"0", b"5", 0), (b"5", b"5", 5), (b"0", b"", 2), (b"0", None, 2)],
    ids=["second failed", "first failed", "none for one", "none at all", "no number", "one never ended"],
)
def test_the_exit_status_is_the_worst_of_both(
    tester: bytes, colleague: bytes | None, told: int, tmp_path: Path
) -> None:
    files = {"tester/status": tester, "tester/junit.xml": report("one")}
    files |= {} if colleague is None else {"colleague/status": colleague}
    assert results.unpack(results_of(**files), tmp_path, ["tester", "colleague"]) == told


def test_a_report_that_was_cut_off_is_no_result(tmp_path: Path) -> None:
    data = results_of(**{"tester/junit.xml": report("one")[:-3], "tester/status": b"0"})
    assert results.unpack(data, tmp_path, ["tester"]) == 2


def test_only_the_known_files_of_the_results_are_written(tmp_path: Path) -> None:
    directory = tmp_path / "results"
    data = results_of(
        **{
            "tester/status": b"1\n",
            "tester/junit.xml": report("one"),
            "../evil": b"x",
            "/tmp/evil": b"x",
            "newcomer/status": b"0",
        }
    )
    assert results.unpack(data, directory, ["tester"]) == 1
    assert sorted(path.name for path in directory.iterdir()) == ["kernel.xml"]
    assert not (tmp_path / "evil").exists()


def test_a_link_in_the_place_of_a_result_is_left_aside(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("tester/junit.xml", "tester/status", "journal.txt"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    assert results.unpack(stream.getvalue(), tmp_path, ["tester"]) == 2
    assert reported(tmp_path) == []
    assert not (tmp_path / "journal.txt").exists()


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
    monkeypatch.setattr(job, "save", lambda _name, target, _layout: target.write_bytes(b"image"))
    job.pack(tmp_path / "job.tar", wheel, tmp_path, ["tests/kernel", "-m", "not host_only"], "tcg")
    assert (tmp_path / "job.tar").stat().st_size % 4096 == 0
    with tarfile.open(tmp_path / "job.tar") as archive:
        names = set(archive.getnames())
        arguments = archive.extractfile("arguments-tester")
        assert arguments is not None
        assert arguments.read() == b"tests/kernel\n-m\nnot host_only"
    assert {"tests/vm/job.sh", "tests/kernel", "pyproject.toml", "project.whl", "base-image.tar", "slower"} <= names
    assert "arguments-colleague" not in names


@pytest.mark.parametrize(
    ("arguments", "shares"),
    [
        (
            ["tests/kernel", "tests/escape", "tests/e2e", "-m", "not host_only"],
            {
                "tester": ["tests/kernel", *job.EVENS_OUT, "-m", "not host_only"],
                "colleague": [
                    *("tests/escape", "tests/e2e"),
                    *(f"--ignore={path}" for path in (*job.EVENS_OUT, *job.not_here())),
                    *("-m", "not host_only"),
                ],
            },
        ),
        (["-q", "tests/kernel/test_caps.py::test_one"], {"tester": ["tests/kernel/test_caps.py::test_one", "-q"]}),
        (["tests/e2e", "-x"], {"colleague": ["tests/e2e", "-x"]}),
    ],
)
@pytest.mark.usefixtures("there")
def test_the_kernel_tier_and_the_other_tests_go_to_a_user_each(
    arguments: list[str], shares: dict[str, list[str]]
) -> None:
    assert job.sessions(arguments) == shares


def test_files_of_which_no_test_is_for_the_machine_are_not_even_imported_there() -> None:
    assert {"tests/escape/test_build_code.py", "tests/e2e/test_docs_results.py", "tests/e2e/test_node_red.py"} <= {
        *job.not_here()
    }
    assert not {"tests/escape/test_cells.py", "tests/e2e/test_examples.py", "tests/e2e/test_cases.py"} & {
        *job.not_here()
    }


@pytest.fixture
def there() -> None:
    assert all(Path(path).is_file() for path in job.EVENS_OUT)


def test_files_of_a_container_s_users_go_to_the_range_of_the_machine_s_user() -> None:
    assert [own.outside(1002, 231_072, inside) for inside in (0, 1, 42)] == [1002, 231_072, 231_113]


def test_a_disk_of_images_that_can_not_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "podman"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$1" = unshare ] && shift && exec "$@"\nmkdir -p "$2/overlay"; echo no space >&2; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(emulator.MachineFailed, match="no space"):
        storage.write(tmp_path / "images.img", {"name": "dir:/place"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


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
