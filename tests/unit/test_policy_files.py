"""Where policies are searched, which files are trusted, and the line of every key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import toml_file
from sandbox.errors import InvalidRequest, NotFound
from sandbox.policy import directories
from sandbox.policy.directories import policy_directories, shipped_directory
from sandbox.toml_file import key_lines, parse, read_toml, read_trusted

STRANGER = 54321


def test_search_path_is_explicit_then_user_then_system_then_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert policy_directories([tmp_path]) == [
        tmp_path,
        tmp_path / "config/podman-sandbox-runner/policies",
        Path("/etc/podman-sandbox-runner/policies"),
        shipped_directory(),
    ]


@pytest.mark.parametrize("configured", ["", "relative/path"])
def test_user_directory_is_in_the_home_when_xdg_is_unset_or_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", configured)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / ".config/podman-sandbox-runner/policies" in policy_directories()


def test_explicit_directory_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nowhere does not exist"):
        policy_directories([tmp_path / "nowhere"])


def test_shipped_directory_has_both_policies_and_the_profile() -> None:
    for name in ("default.toml", "strict.toml", "seccomp/python.toml", "seccomp/python.json"):
        assert (shipped_directory() / name).is_file()


def test_installed_package_uses_the_policies_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_policies").mkdir()
    monkeypatch.setattr(directories, "__file__", str(tmp_path / "policy/directories.py"))
    assert shipped_directory() == tmp_path / "_policies"


# ---- trust ---------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.toml"
    path.write_text("")
    path.chmod(0o644)
    return path


def test_private_file_is_read(file: Path) -> None:
    assert read_trusted(file, what="policy") == ""


def test_file_writable_by_others_is_refused_with_the_fix(file: Path) -> None:
    file.chmod(0o646)
    with pytest.raises(InvalidRequest, match="can be changed by other users") as caught:
        read_trusted(file, what="policy")
    assert caught.value.hint == f"chmod go-w {file}"


def test_file_in_a_directory_writable_by_others_is_refused(file: Path) -> None:
    file.parent.chmod(0o777)
    with pytest.raises(InvalidRequest, match="can be replaced by other users"):
        read_trusted(file, what="policy")
    file.parent.chmod(0o1777)
    read_trusted(file, what="policy")


@pytest.fixture
def reader_is_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `file` somebody else's: given away where root runs the tests, elsewhere by reading as another user."""
    if os.geteuid() == 0:
        os.chown(file, STRANGER, STRANGER)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER + 1)
    monkeypatch.setattr(os, "getegid", lambda: STRANGER + 1)
    monkeypatch.setattr(toml_file, "__file__", "/etc/passwd")  # the package is root's


@pytest.mark.usefixtures("reader_is_another")
def test_file_of_a_stranger_is_refused_with_the_fix(file: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"belongs to user {file.stat().st_uid}") as caught:
        read_trusted(file, what="policy")
    assert caught.value.hint == f"chown {STRANGER + 1} {file}"


@pytest.mark.usefixtures("reader_is_another")
def test_file_writable_by_a_strange_group_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid)
    read_trusted(file, what="policy")
    file.chmod(0o664)
    with pytest.raises(InvalidRequest, match="can be changed by other users"):
        read_trusted(file, what="policy")


@pytest.mark.usefixtures("reader_is_another")
def test_file_of_the_package_owner_is_trusted_in_a_checkout_of_someone_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toml_file, "__file__", str(file))
    assert read_trusted(file, what="policy") == ""


def test_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        read_trusted(tmp_path / "pipe", what="policy")


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"the policy .*none\.toml does not exist"):
        read_trusted(tmp_path / "none.toml", what="policy")


def test_huge_file_is_refused(file: Path) -> None:
    file.write_text("#" * (toml_file.MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidRequest, match="larger than 256 KiB"):
        read_trusted(file, what="policy")


def test_text_that_is_not_utf8_is_refused_with_its_line(file: Path) -> None:
    file.write_bytes(b"# fine\n# \xff\n")
    with pytest.raises(InvalidRequest, match=r"a\.toml:2: the policy is not UTF-8"):
        read_trusted(file, what="policy")


# ---- syntax and lines ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a = = 1\n", "1:5"),
        ("[limits]\nx = 1\nx = 2\n", "3:6"),
        ("a = [1,\n", "2:1"),
        ('a = "\n', "1:6"),
        ("\x00", "1:1"),
    ],
)
def test_syntax_error_names_line_and_column(file: Path, text: str, place: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=f"a.toml:{place}: this is not valid TOML"):
        read_toml(file, what="policy")


@pytest.mark.parametrize("text", ["a = 1" + "0" * 5000, "a = " + "[" * 100_000 + "]" * 100_000])
def test_absurd_values_are_one_clear_error(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=r"a\.toml"):
        read_toml(file, what="policy")


def test_lines_of_every_way_to_write_a_key() -> None:
    text = '''# comment = 0
top = 1
a.b . c = "x # = ["   # spaced
"quoted.key" = 'y'

[ limits ] # header
list = [
  1, # [
  [2, "]"],
]
after = 2
text = """
fake = 1
[fake]"""
literal = \'\'\'
x = "
\'\'\'
inline = { p = 1, q.r = [ { deep = 1 } ] }
date = 1979-05-27 07:32:00
[limits."sub table"]
z = 1
[[many]]
one = 1
[[many]]
two = 2
'''
    assert key_lines(text) == {
        "top": 2,
        "a": 3,
        "a.b": 3,
        "a.b.c": 3,
        "quoted.key": 4,
        "limits": 6,
        "limits.list": 7,
        "limits.list.0": 8,
        "limits.list.1": 9,
        "limits.list.1.0": 9,
        "limits.list.1.1": 9,
        "limits.after": 11,
        "limits.text": 12,
        "limits.literal": 15,
        "limits.inline": 18,
        "limits.inline.p": 18,
        "limits.inline.q": 18,
        "limits.inline.q.r": 18,
        "limits.inline.q.r.0": 18,
        "limits.inline.q.r.0.deep": 18,
        "limits.date": 19,
        "limits.sub table": 20,
        "limits.sub table.z": 21,
        "many": 22,
        "many.0": 22,
        "many.0.one": 23,
        "many.1": 24,
        "many.1.two": 25,
    }


NAMES = st.text("abc", min_size=1, max_size=2)
TEXTS = st.text("ab#=[]{},.'\"\\\n ", max_size=8)
SCALARS = st.one_of(st.integers(-9, 9), st.booleans(), st.floats(-9, 9), TEXTS)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def written(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        if "'" not in value and "\n" not in value and draw(st.booleans()):
            return f"'{value}'"
        return f'"""\n{escaped}"""' if "\n" in value else f'"{escaped}"'
    if isinstance(value, list):
        separator: str = draw(st.sampled_from([", ", ",\n", " , # , ]\n "]))
        start: str = draw(st.sampled_from(["[", "[\n"]))
        return start + separator.join(written(v, draw) for v in value) + "]"
    return f"{value}".lower()


def counted(value: Any) -> int:
    return sum(1 + counted(entry) for entry in value) if isinstance(value, list) else 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scanner_finds_every_key_on_its_line(data: st.DataObject) -> None:
    tables = data.draw(st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=4))
    text, expected = "", {}
    for table, pairs in tables.items():
        text += data.draw(st.sampled_from(["", "\n", "# [x] = 1\n"]))
        expected[table] = text.count("\n") + 1
        text += f"[{table}]\n"
        for key, value in pairs.items():
            expected[f"{table}.{key}"] = text.count("\n") + 1
            text += f"{key} = {written(value, data.draw)}\n"
    assert parse(text) == tables
    found = key_lines(text)
    entries = {key for key in found if key.rpartition(".")[2].isdigit()}
    assert {key: line for key, line in found.items() if key not in entries} == expected
    assert len(entries) == sum(counted(value) for pairs in tables.values() for value in pairs.values())


def test_missing_key_is_placed_at_its_nearest_table(file: Path) -> None:
    file.write_text("\n\n[limits]\n")
    toml = read_toml(file, what="policy")
    assert toml.at("limits.cpus") == f"{file}:3"
    assert toml.at("images.pull") == f"{file}:1"


def test_a_directory_in_the_place_of_a_file_is_refused_in_words_and_nothing_stays_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="is not a regular file"):
            read_trusted(tmp_path, what="policy")
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 10_000 + " = 1",
        "[a" + ".a" * 10_000 + "]",
        "a = {b" + ".b" * 10_000 + " = 1}",
        "a = " + "{b.c.d.e.f = " * 20 + "1" + "}" * 20,
        "a = " + "[" * 40 + "]" * 40,
        "a = 0x" + "f" * 5_000,
        "a = [1, 1" + "0" * 5_000 + "]",
        "a" * 5_000 + " = 1",
        '"' + "a" * 5_000 + '" = {b = 1, c = 2}',
        "[[" + "'" + "a" * 5_000 + "'" + "]]",
    ],
)
def test_what_takes_more_time_or_memory_than_it_is_long_is_refused_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f"\n{text}\n")
    with pytest.raises(InvalidRequest, match=r"(:2:1: .*too long)|nested too deeply"):
        read_toml(path, what="policy")
