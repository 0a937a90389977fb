"""Boundary: an archive with hostile content is refused as a whole, or installed as plain files below one directory."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.environment import installation
from sandbox.errors import BuildFailed
from tests.escape.build_bench import SYMLINK, Builds, hostile_wheel, zeros_wheel

pytestmark = pytest.mark.host_only

# What uv and pip install without a word; the second text is in the refusal.
ACCEPTED_ELSEWHERE = {
    "a module that starts with python": ({"sitecustomize.py": "x"}, "every start of Python"),
    "a package that starts with python": ({"usercustomize/__init__.py": "x"}, "every start of Python"),
    "a file of the sandbox's own name": ({"harness.py": "x"}, "the sandbox's own"),
    "a package of the sandbox's own name": ({"harness/__init__.py": "x"}, "the sandbox's own"),
    "a path file with code": ({"x.pth": "import os\n"}, "executes at every start"),
    "a path file with code behind a form feed": ({"x.pth": "#\fimport os\n"}, "executes at every start"),
    "a file that deletes another in a layer": ({".wh.numpy": ""}, ".wh."),
    "a file that empties a directory in a layer": ({"d/.wh..wh..opq": ""}, ".wh."),
    "too many files": ({f"f{number}": "" for number in range(600)}, "more than 500 files"),
    "too deep a path": ({"d/" * 60 + "x": ""}, "deeper than"),
}
MALFORMED = {
    "a path above the tree": {"../../up.py": "x"},
    "an absolute path": {"/app/absolute.py": "x"},
    "a script above the tree": {"NAME-1.0.data/scripts/../../../up": "#!python\n"},
    "a terminal's control characters": {"a\x1b[2Jb.py": "x"},
    "a line break": {"a\nb.py": "x"},
    "text that turns round": {"a\u202eb.py": "x"},
    "a file below a file": {"a": "1", "a/b": "2"},
    "an entry point above the tree": {
        "NAME-1.0.dist-info/entry_points.txt": "[console_scripts]\n../../x = NAME:main\n"
    },
    "an entry point in Python's place": {
        "NAME-1.0.dist-info/entry_points.txt": "[console_scripts]\npython3 = NAME:main\n"
    },
    "an entry point with a statement": {
        "NAME-1.0.dist-info/entry_points.txt": "[console_scripts]\nx = NAME:main;import os\n"
    },
}


def named(kind: str, text: str) -> str:
    return kind + "".join(char for char in text.lower() if char.isalpha() and char.isascii())


@pytest.mark.parametrize("name", ACCEPTED_ELSEWHERE)
def test_what_other_installers_accept_is_refused(builds: Builds, name: str) -> None:
    files, reason = ACCEPTED_ELSEWHERE[name]
    package = named("t", name)
    error = builds.wheel_refused(hostile_wheel(package, files))
    assert f"{package} 1.0" in error.message
    assert reason in error.message


def test_other_installers_do_accept_them(tmp_path: Path) -> None:
    archives = []
    for name, (files, _) in ACCEPTED_ELSEWHERE.items():
        file, content = hostile_wheel(named("t", name), files)
        (tmp_path / file).write_bytes(content)
        archives.append(tmp_path / file)
    [uv] = installation.tools()
    target = tmp_path / "target"
    subprocess.run(
        [
            uv.source,
            "pip",
            "install",
            "--python",
            sys.executable,
            "--no-index",
            "--no-deps",
            "--no-config",
            "--target",
            target,
            "--cache-dir",
            tmp_path / "cache",
            *archives,
        ],
        check=True,
        capture_output=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    for files, _ in ACCEPTED_ELSEWHERE.values():
        assert (target / next(iter(files))).is_file()


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_archive_is_refused(builds: Builds, name: str) -> None:
    package = named("m", name)
    files = {path.replace("NAME", package): body.replace("NAME", package) for path, body in MALFORMED[name].items()}
    error = builds.wheel_refused(hostile_wheel(package, {f"{package}.py": "def main(): pass", **files}))
    assert package in error.message
    assert error.message.isprintable()


def test_the_same_archives_without_the_entry_are_installed(builds: Builds) -> None:
    built = builds.wheel_built(hostile_wheel("plain", {"plain.py": "def main(): return 1"}))
    assert builds.value_in(built, "import plain\nresult = plain.main()") == 1


ENTRIES = {
    "a link to a file outside": ("/etc/passwd", SYMLINK),
    "a link up": ("../../../etc/passwd", SYMLINK),
    "a file with the rights of its owner": ("#!/bin/sh\n", stat.S_IFREG | 0o6755),
    "a pipe": ("", stat.S_IFIFO | 0o644),
    "a device": ("", stat.S_IFCHR | 0o644),
    "a name with backslashes": ("", stat.S_IFREG | 0o644),
}


def test_strange_entries_become_plain_files(builds: Builds) -> None:
    archives = []
    for name, (body, mode) in ENTRIES.items():
        path = "a\\..\\..\\b.txt" if "backslashes" in name else named("e", name)
        archives.append(hostile_wheel(named("e", name), {path: body}, modes={path: mode}))
    found = builds.value_in(
        builds.wheel_built(*archives),
        """
        import os, stat
        rows = [os.lstat(os.path.join(at, name)) for at, _, names in os.walk("/opt/environment") for name in names]
        result = [len(rows), sorted({stat.filemode(row.st_mode) for row in rows}), sorted({row.st_uid for row in rows}),
                  sorted(os.listdir("/opt"))]
        """,
    )
    assert found[0] > len(ENTRIES)
    assert found[1:] == [["-rw-r--r--", "-rwxr-xr-x"], [0], ["environment"]]


def test_a_directory_that_is_a_link_is_not_followed(builds: Builds) -> None:
    files: list[tuple[str, str | bytes]] = [("d", "/app"), ("d/x.py", "x")]
    assert "dirlink" in builds.wheel_refused(hostile_wheel("dirlink", files, modes={"d": SYMLINK})).message


def test_two_files_of_one_name_are_refused(builds: Builds) -> None:
    archive = hostile_wheel("twofold", [("twofold.py", "A = 1"), ("twofold.py", "A = 2")])
    assert "twofold" in builds.wheel_refused(archive).message


def test_a_record_that_lies_changes_nothing(builds: Builds) -> None:
    lie = "liar.py,sha256=AAAA,999\n../../../../etc/passwd,,\n/app/x,,\n"
    built = builds.wheel_built(hostile_wheel("liar", {"liar.py": "A = 1"}, record=lie))
    assert builds.value_in(built, "import liar\nresult = liar.A") == 1


@pytest.mark.parametrize("inside", [("other", "1.0"), ("imposter", "2.0")], ids=["name", "version"])
def test_a_wheel_of_another_package_than_its_file_says_is_refused(builds: Builds, inside: tuple[str, str]) -> None:
    assert "imposter" in builds.wheel_refused(hostile_wheel("imposter", {"x.py": inside[1]}, metadata=inside)).message


def test_a_bomb_ends_at_the_size_that_a_build_may_fill(builds: Builds) -> None:
    archive = zeros_wheel("bomb", 256)
    assert len(archive[1]) < 2 << 20
    error = builds.wheel_refused(archive)
    assert "32 MiB" in error.message
    assert "bomb" in error.message
    small = zeros_wheel("crackle", 48)
    builds.wheel_refused(small)
    builds.wheel_built(small, policy=builds.policy(installed_mib=128))  # the control: only the limit was in its way


@pytest.mark.parametrize("damage", ["a wrong checksum", "no archive", "nothing"])
def test_a_damaged_archive_is_refused(builds: Builds, damage: str) -> None:
    name, content = hostile_wheel("damaged", {"damaged.py": "A = 'marker'"})
    broken = {"a wrong checksum": content.replace(b"marker", b"MARKER"), "no archive": b"PK not", "nothing": b""}[
        damage
    ]
    assert "damaged" in builds.wheel_refused((name, broken)).message


def test_of_two_packages_with_the_same_file_the_later_name_wins(builds: Builds) -> None:
    # As with other installers; both are in the lock that was asked for. A directory in a file's place is refused.
    first = hostile_wheel("alpha", {"shared.py": "WHO = 'alpha'"})
    built = builds.wheel_built(first, hostile_wheel("omega", {"shared.py": "WHO = 'omega'"}))
    assert builds.value_in(built, "import shared\nresult = shared.WHO") == "omega"
    with pytest.raises(BuildFailed, match="can't be installed together"):
        builds.wheel_built(first, hostile_wheel("psi", {"shared.py/x": "x"}))


def test_no_package_can_replace_the_lock_that_an_image_carries(builds: Builds) -> None:
    built = builds.wheel_built(hostile_wheel("zeta", {"pylock.toml": "forged"}))
    text = builds.value_in(built, "result = open('/opt/environment/pylock.toml').read()")
    assert text == built.lock.as_toml()


def test_modules_of_the_standard_library_are_not_replaced_for_a_program(builds: Builds) -> None:
    files = {f"{name}.py": "raise SystemExit('shadow')" for name in ("json", "os", "socket", "traceback")}
    built = builds.wheel_built(hostile_wheel("shadow", files))
    assert builds.value_in(built, "import json, os, socket, traceback\nresult = 1") == 1


def test_a_path_file_adds_no_more_than_a_place_to_search(builds: Builds) -> None:
    # Python looks for modules there, behind its own: what a program could do itself.
    built = builds.wheel_built(hostile_wheel("pathfile", {"pathfile.pth": "/etc\n../../app\n", "pathfile.py": "A = 1"}))
    code = (
        "import sys, pathfile\nresult = [sys.path.index('/etc') > sys.path.index(next(p for p in sys.path if"
        " p.endswith('lib-dynload'))), pathfile.A]"
    )
    assert builds.value_in(built, code) == [True, 1]
