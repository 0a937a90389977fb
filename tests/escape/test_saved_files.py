"""Boundary: a saved file has a flat name, comes from the program's own words, and lands where the caller says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.container.spec import MIB
from sandbox.models import Outcome
from tests.escape.bench import Bench

pytestmark = pytest.mark.host_only

NAMES = [
    "../x",
    "/etc/x",
    "a/b",
    "a\0b",
    "",
    ".",
    "..",
    "x" * 256,
    "line\nbreak",
    "\x1b[2J",
    "\u202egnp.exe",
    "\ud800",
    "../../../../tmp/x",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_is_not_flat_is_refused(bench: Bench, name: str) -> None:
    ended = bench.run(f"save_file({name!a}, 'x')\nresult = 1")
    assert ended.outcome is Outcome.FAILED
    assert ended.error is not None
    assert ended.error.type == "ValueError"
    assert ended.files == ()


@pytest.mark.parametrize(
    "name", ["plain.txt", "with space", "ünïcode.csv", ".hidden", "-rf", "~", "$HOME", "*", "a..b", "CON", "x" * 255]
)
def test_a_flat_name_is_kept_as_it_is(bench: Bench, name: str) -> None:
    ended = bench.run("save_file(payload, b'\\x00content')\nresult = 1", payload=name)
    assert [(file.name, file.content) for file in ended.files] == [(name, b"\x00content")]


def test_ten_thousand_files_end_at_the_limit(bench: Bench) -> None:
    allowed = bench.policy().limits.files_count
    ended = bench.run("for number in range(10_000):\n    save_file(str(number), 'x')\nresult = 1")
    assert ended.outcome is Outcome.OUTPUT_LIMIT
    assert "limits.files_count" in ended.explanation
    assert len(ended.files) == allowed


def test_the_same_file_again_counts_again(bench: Bench) -> None:
    allowed = bench.policy().limits.files_count
    ended = bench.run("for number in range(payload):\n    save_file('one', str(number))\nresult = 1", payload=allowed)
    assert [file.content for file in ended.files] == [str(allowed - 1).encode()]
    assert (
        bench.run("for number in range(payload):\n    save_file('one', 'x')", payload=allowed + 1).outcome
        is Outcome.OUTPUT_LIMIT
    )


def test_the_size_of_all_files_is_limited(bench: Bench) -> None:
    allowed = bench.policy().limits.files_mib * MIB
    fits = bench.run("save_file('a', bytes(payload))\nresult = 1", payload=allowed)
    assert (fits.outcome, len(fits.files[0].content)) == (Outcome.SUCCEEDED, allowed)
    more = bench.run("save_file('a', bytes(payload))\nsave_file('b', b'x')\nresult = 1", payload=allowed)
    assert more.outcome is Outcome.OUTPUT_LIMIT
    assert [file.name for file in more.files] == ["a"]


def test_a_sparse_terabyte_is_not_taken_along(bench: Bench) -> None:
    text = """
        import mmap, os
        with open("/app/huge", "w+b") as file:
            file.truncate(1 << 40)
            try:
                save_file("copy", mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            except (MemoryError, OSError, ValueError, TypeError) as error:
                result = [type(error).__name__, os.stat("/app/huge").st_blocks]
    """
    ended = bench.run(text)
    assert ended.files == ()
    assert (ended.outcome, ended.result_json) == (Outcome.SUCCEEDED, b'["OSError",0]'), "it can't even be mapped"
    read = bench.run(
        "import os\nopen('/app/huge', 'w').close()\nos.truncate('/app/huge', 1 << 40)\nread_file('huge', binary=True)"
    )
    assert read.outcome is Outcome.OUT_OF_MEMORY


def test_links_pipes_and_directories_are_not_written_through(bench: Bench) -> None:
    text = """
        import errno, os
        os.symlink("/etc/passwd", "/app/link")
        os.symlink("/tmp/elsewhere", "/app/dangling")
        os.mkfifo("/app/pipe")
        os.mkdir("/app/directory")
        found = {}
        for name in ("link", "dangling", "pipe", "directory"):
            try:
                save_file(name, "x")
                found[name] = "saved"
            except OSError as error:
                found[name] = errno.errorcode[error.errno]
        found["elsewhere"] = os.path.exists("/tmp/elsewhere")
        result = found
    """
    ended = bench.run(text)
    assert (
        ended.result_json
        == b'{"link":"ELOOP","dangling":"ELOOP","pipe":"ENXIO","directory":"EISDIR","elsewhere":false}'
    )
    assert ended.files == ()


def test_a_file_that_changes_after_it_was_saved_keeps_its_content(bench: Bench) -> None:
    ended = bench.run("path = save_file('a', 'saved')\nopen(path, 'w').write('changed')\nresult = 1")
    assert ended.files[0].content == b"saved"


def test_files_left_in_the_working_directory_are_not_taken_along(bench: Bench) -> None:
    ended = bench.run("open('/app/left', 'w').write('x')\nresult = 1")
    assert (ended.outcome, ended.files) == (Outcome.SUCCEEDED, ())


def test_of_what_is_left_nothing_leads_out_where_all_of_it_is_asked_for(bench: Bench) -> None:
    code = r"""
        import os
        os.symlink("/etc/passwd", "/app/link")
        os.symlink("/etc", "/app/directory")
        os.mkfifo("/app/pipe")
        os.makedirs("/app/a/b")
        for name in ("kept.txt", "a/b/deep.txt", "a\nb", "\u202e"):
            open(f"/app/{name}", "w").write("x")
        result = 1
    """
    ended = bench.run(code, save_new=True)
    assert {file.name: file.content for file in ended.files} == {"kept.txt": b"x", "a_b_deep.txt": b"x"}
    assert len(ended.warnings) == 2
    limits = bench.run("for n in range(2000): open(f'/app/{n}', 'w').close()\nresult = 1", save_new=True)
    assert (limits.outcome, limits.result_json) == (Outcome.OUTPUT_LIMIT, None)


# ---------------------------------------------------------------- where they land


def saved(script: Path, directory: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", "run", str(script), "--save-files", str(directory), "--quiet"],
        capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip # a command line


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.txt").symlink_to(victim)
    (out / "hard.txt").hardlink_to(victim)
    (tmp_path / "script.py").write_text("save_file('report.txt', 'new')\nsave_file('hard.txt', 'new')\nresult = 1")
    answer = saved(tmp_path / "script.py", out)
    assert answer.returncode == 0, answer.stderr
    assert victim.read_text() == "untouched"
    assert not (out / "report.txt").is_symlink()
    assert (out / "report.txt").read_text() == (out / "hard.txt").read_text() == "new"


def test_a_directory_in_the_way_is_an_error_and_nothing_is_left_half(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "report.txt").mkdir(parents=True)
    (tmp_path / "script.py").write_text("save_file('report.txt', 'new')\nresult = 1")
    answer = saved(tmp_path / "script.py", out)
    assert answer.returncode == 2
    assert b"Traceback" not in answer.stderr
    assert sorted(os.listdir(out)) == ["report.txt"]


def test_saved_files_are_not_executable_and_belong_to_the_caller(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("save_file('tool.txt', '#!/bin/sh')\nresult = 1")
    assert saved(tmp_path / "script.py", tmp_path / "out").returncode == 0
    status = (tmp_path / "out" / "tool.txt").stat()
    assert status.st_mode & 0o6111 == 0
    assert status.st_uid == os.getuid()


def test_a_name_like_our_own_temporary_one_does_no_harm(tmp_path: Path) -> None:
    # A program knows the id of its run, from which the command makes the name that it writes to first.
    (tmp_path / "script.py").write_text(
        "save_file(f'.{execution_id}.part', 'first')\nsave_file('second.txt', 'second')\nresult = 1"
    )
    answer = saved(tmp_path / "script.py", tmp_path / "out")
    assert b"Traceback" not in answer.stderr
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "out" / "second.txt").read_text() == "second"


ACTIVE = [
    ".bashrc",
    ".profile",
    "-rf",
    "--help",
    "sitecustomize.py",
    "conftest.py",
    "Makefile",
    "authorized_keys",
    "autorun.inf",
    "a*.csv",
    "CON.txt",
]


def test_names_that_programs_of_the_host_act_upon_get_others_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        f"for name in {ACTIVE}: save_file(name, name)\nsave_file('data.csv', 'x')\nresult = 1"
    )
    answer = saved(tmp_path / "script.py", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    kept = sorted(os.listdir(tmp_path / "out"))
    assert kept == sorted(["data.csv", *(f"saved-{name.replace('*', '_')}.saved" for name in ACTIVE)])
    for name in ACTIVE:
        assert f"{name} was saved as saved-".encode() in answer.stderr
    # The control: asked for, they keep their names, and a shell that goes through the directory is told options by one.
    subprocess.run(
        [
            sys.executable,
            "-m",
            "sandbox",
            "run",
            str(tmp_path / "script.py"),
            "--save-files",
            str(tmp_path / "own"),
            "--keep-names",
        ],
        capture_output=True,
        timeout=60,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert sorted(os.listdir(tmp_path / "own")) == sorted([*ACTIVE, "data.csv"])
    for directory, listed in (("own", False), ("out", True)):
        shown = subprocess.run(
            ["sh", "-c", "ls *"], cwd=tmp_path / directory, capture_output=True, text=True, check=False, timeout=60
        )
        assert ("data.csv" in shown.stdout and "Usage" not in shown.stdout) is listed
