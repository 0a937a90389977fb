"""Boundary: what the sandboxes of a build hand over is taken only as far as it agrees with what was asked for.

In each case one step's sandbox runs code of the attacker's instead of the program of ours.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from sandbox.environment.tree import Kind, encode_header
from tests.escape.build_bench import Builds, hostile_step, hostile_wheel
from tests.waiting import SLOWER

pytestmark = pytest.mark.host_only

FACTS = "{'python': [3, 11], 'libc': ['glibc', '2.36'], 'machine': 'x86_64', 'pylock': %s}"
LOCK = """lock-version = "1.0"
created-by = "uv"

[[packages]]
name = "%(name)s"
version = "1.0"
wheels = [{ url = "%(url)s", hashes = { sha256 = "%(sha256)s" } }]
"""
SPACES = "for _ in range(20):\n    forge(b'V', b' ' * 60_000)\n"
DONE = "forge(b'M', b'{\"warnings\": []}')\nimport os\nos._exit(0)"

ANSWERS = {
    "nothing": ("pass", {"internal", "build_failed"}),
    "a list": ("result = [1]", {"internal"}),
    "an empty answer": ("result = {}", {"internal"}),
    "a deep answer": (f"{SPACES}forge(b'V', b'[' * 990 + b']' * 990)\n{DONE}", {"internal", "build_failed"}),
    "a number of 5000 digits": (
        f"{SPACES}forge(b'V', b'[' + b'9' * 5000 + b']')\n{DONE}",
        {"internal", "build_failed"},
    ),
    "half a character": (
        (
            f"{SPACES}forge(b'V',"
            f' b\'{{"python":[3,11],"libc":["glibc","2.36"],"machine":"x86_64","pylock":"\\\\ud800"}}\')\n{DONE}'
        ),
        {"build_failed"},
    ),
    "an error of one long word": ("result = {'error': 'a' * (15 << 20)}", {"build_failed"}),
    "an error of nothing but lines": ("result = {'error': '\\n' * (5 << 20)}", {"build_failed"}),
    "a machine with a long name": (f"result = {FACTS % repr('')} | {{'machine': 'x' * 10**6}}", {"internal"}),
    "an absurd Python": (f"result = {FACTS % repr('')} | {{'python': [3, 10**4000]}}", {"internal", "build_failed"}),
    "an absurd C library": (f"result = {FACTS % repr('')} | {{'libc': ['glibc', '9' * 4000 + '.1']}}", {"internal"}),
    "no TOML": (f"result = {FACTS % repr('[[[[')}", {"build_failed"}),
    "a million packages": (
        "result = " + FACTS % r"""'lock-version = "1.0"\n' + '[[packages]]\n' * 10**6""",
        {"build_failed"},
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_forged_answer_is_an_error_in_bounded_time(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, codes = ANSWERS[name]
    hostile_step(monkeypatch, tmp_path, "resolve", code)
    builds.index.add(hostile_wheel("asked", {"asked.py": ""}))
    began = time.monotonic()
    error = builds.refused("asked", codes=codes)
    assert time.monotonic() - began < 10 * SLOWER
    assert len(str(error)) < 5_000


def locked(builds: Builds, package: str, **changes: str) -> str:
    """Return the lock of a published wheel, as a resolution gives it, with changes."""
    file, content = hostile_wheel(package, {f"{package}.py": "A = 1"})
    builds.index.add((file, content))
    url = f"{builds.index.url.removesuffix('/simple')}/files/{file}"
    return LOCK % {"name": package, "url": url, "sha256": hashlib.sha256(content).hexdigest(), **changes}


FORGED = {
    "another hash": ({"sha256": "0" * 64}, "hash"),
    "a file of the host": ({"url": "file:///etc/passwd"}, ""),
    "a file of the host under a wheel's name": ({"url": "file:///etc/forged-1.0-py3-none-any.whl"}, "forged"),
    "an address with a password": ({"url": "http://me:secret@127.0.0.1/forged-1.0-py3-none-any.whl"}, "password"),
    "another host": ({"url": "http://192.0.2.1/forged-1.0-py3-none-any.whl"}, "forged"),
    "another package": ({"name": "other"}, "other"),
    "a name with a path": ({"name": "../../x"}, ""),
    "a name with a terminal's codes": ({"name": "a\\u001b[2J"}, ""),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_resolution_is_refused(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes, word = FORGED[name]
    package = f"forged{list(FORGED).index(name)}"  # a lock that was taken is kept for the same request
    text = locked(builds, package, **{key: value.replace("forged-", f"{package}-") for key, value in changes.items()})
    hostile_step(monkeypatch, tmp_path, "resolve", f"result = {FACTS % repr(text)}")
    error = builds.refused(package)
    assert word in error.message
    assert str(error).isprintable()
    assert "root:" not in str(error)


def test_the_same_resolution_unchanged_is_taken(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile_step(monkeypatch, tmp_path, "resolve", f"result = {FACTS % repr(locked(builds, 'honest'))}")
    assert builds.value_in(builds.build("honest"), "import honest\nresult = honest.A") == 1


def test_a_package_that_the_policy_does_not_name_is_refused_wherever_it_comes_from(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = builds.lock_of(hostile_wheel("unnamed", {"unnamed.py": "A = 1"}))
    named = builds.policy(libraries=["listed"])
    builds.refused("unnamed", policy=named, lock=lock, codes={"policy_denied"})
    text = locked(builds, "listed") + locked(builds, "unnamed").partition("\n\n")[2]
    hostile_step(monkeypatch, tmp_path, "resolve", f"result = {FACTS % repr(text)}")
    builds.refused("listed", policy=named, codes={"policy_denied"})
    assert builds.build("listed", policy=builds.policy(libraries=["listed", "unnamed"])).name  # the control


FETCHED = {
    "another content": "forge_file(name, b'other')\nresult = {}",
    "half a file": "forge_file(name, b'x' * 1000, 5000)\nresult = {}",
    "nothing": "result = {}",
    "a file that nobody asked for": "forge_file('other-1.0-py3-none-any.whl', b'x')\nresult = {}",
    "a wheel that nobody built": "exec(HONEST, globals())\nforge_file('fetched-1.0-1-py3-none-any.whl', b'x')",
    "the same twice": "exec(HONEST, globals())\nforge_file(name, b'x')",
    "a name with a path": "forge_file('../' + name, b'x')\nresult = {}",
    "more than allowed": "forge_file(name, b'', 1 << 40)\nresult = {}",
    "more than allowed, piece by piece": (
        "block = bytes(60_000)\nforge_file(name, b'', 33 << 20)\nfor _ in range(600):\n    forge(b'f', block)"
    ),
}


@pytest.mark.parametrize("name", FETCHED)
def test_only_the_file_that_was_asked_for_gets_into_the_cache(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    archive = hostile_wheel("fetched", {"fetched.py": f"A = {name!r}"})
    hostile_step(monkeypatch, tmp_path, "fetch", f"name = payload['files'][0]['name']\n{FETCHED[name]}")
    builds.refused("fetched", lock=builds.lock_of(archive))


def test_a_sandbox_can_not_choose_where_a_wheel_goes(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = builds.top / "victim"
    victim.write_text("precious")
    lie = "exec(HONEST, globals())\nresult = {'built': {payload['files'][0]['name']: '../../../../victim'}}"
    hostile_step(monkeypatch, tmp_path, "fetch", lie)
    built = builds.wheel_built(hostile_wheel("placed", {"placed.py": "A = 1"}))
    assert victim.read_text() == "precious"
    assert builds.value_in(built, "import placed\nresult = placed.A") == 1


def stream(*entries: tuple[Kind, str, bytes]) -> bytes:
    return b"".join(encode_header(kind, path, len(body)) + body for kind, path, body in entries)


END = encode_header(Kind.END, "", 0)
TREES = {
    "a path above the tree": ("0.tree", stream((Kind.FILE, "../x", b"x")) + END),
    "an absolute path": ("0.tree", stream((Kind.FILE, "/etc/x", b"x")) + END),
    "a link out": ("0.tree", stream((Kind.LINK, "l", b"../../etc/passwd")) + END),
    "an absolute link": ("0.tree", stream((Kind.LINK, "l", b"/etc/passwd")) + END),
    "a file below a link": (
        "0.tree",
        stream((Kind.DIRECTORY, "d", b""), (Kind.LINK, "l", b"d"), (Kind.FILE, "l/x", b"x")) + END,
    ),
    "a kind that does not exist": ("0.tree", b"\x07" + encode_header(Kind.FILE, "x", 0)[1:] + END),
    "no end": ("0.tree", stream((Kind.FILE, "x.py", b"x"))),
    "more after the end": ("0.tree", END + b"more"),
    "a module that starts with python": ("0.tree", stream((Kind.FILE, "sitecustomize.py", b"x")) + END),
    "a tree that nobody asked for": ("1.tree", END),
    "a file of another name": ("wheel.whl", b"x"),
    "more than allowed": ("0.tree", stream((Kind.FILE, "x", b"")) + encode_header(Kind.FILE, "y", 33 << 20)),
}


@pytest.mark.parametrize("name", TREES)
def test_a_forged_tree_is_refused(builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    archive = hostile_wheel("grown", {"grown.py": f"A = {name!r}"})
    file, content = TREES[name]
    hostile_step(monkeypatch, tmp_path, "install", f"forge_file({file!r}, {content!r})\nresult = {{}}")
    builds.refused("grown", lock=builds.lock_of(archive))


def test_a_forged_tree_that_is_well_formed_is_what_the_archive_could_have_been(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The control: the same way in, with nothing wrong in it.
    content = stream((Kind.FILE, "wellformed.py", b"A = 'forged'")) + END
    hostile_step(monkeypatch, tmp_path, "install", f"forge_file('0.tree', {content!r})\nresult = {{}}")
    built = builds.wheel_built(hostile_wheel("wellformed", {"wellformed.py": "A = 1"}))
    assert builds.value_in(built, "import wellformed\nresult = wellformed.A") == "forged"


def test_one_policy_does_not_take_over_the_lock_of_another_that_allows_other_hosts(builds: Builds) -> None:
    builds.index.add(hostile_wheel("sticky", {"sticky.py": "A = 1"}))
    builds.build("sticky", policy=builds.policy(allow=["@index", "lab.example.com:443"]))
    resolved = builds.index.hits["/simple/sticky/"]
    builds.build("sticky", policy=builds.policy(memory_mib=600))
    assert builds.index.hits["/simple/sticky/"] > resolved, "it was resolved again"
