"""Checking code: what the program says of a text, and what is believed of it outside."""

from __future__ import annotations

import ast
import asyncio
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert

from sandbox.container import spec
from sandbox.container.harness_files import harness_directory
from sandbox.container.standby import Setting
from sandbox.errors import Internal, InvalidRequest, PolicyDenied
from sandbox.image.admission import AdmittedImage
from sandbox.inside import code_check_program
from sandbox.inside.code_check_program import MAX_IMPORTS, MAX_MISSING, check
from sandbox.models import Outcome, RunRequest, RunResult, Tightening
from sandbox.policy.directories import policy_directories
from sandbox.policy.seccomp import load_profile
from sandbox.run.code_check import _Problem, check_code, distribution_of
from sandbox.run.decision import DecidedRun, Run
from sandbox.runner import Places, Runner
from sandbox.wire.answers import CodeCheck, MissingModule, Problem
from tests.unit.factory import decided, host, policy

# ---- what the program says

with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
    FILE = next(harness_directory(Path(cache)).glob("*.py"))
    patch.setattr(code_check_program, "HARNESS", str(FILE))
    harness = code_check_program.harness_of_this_sandbox()


def problem(source: str) -> dict[str, Any]:
    """Return what is wrong with a program. Fails the test when nothing is."""
    said = check(source, harness)
    assert said["problem"] is not None, source[:100]
    assert said["missing"] == said["imports"] == []
    found: dict[str, Any] = said["problem"]
    return found


def place(source: str) -> tuple[int, int]:
    found = problem(source)
    return found["line"], found["column"]


def compiles(source: str) -> bool:
    return check(source, harness)["problem"] is None


def missing(source: str) -> list[tuple[str, int]]:
    """Return (module, line) of what a program that compiles misses."""
    assert compiles(source), source[:100]
    return [(one["module"], one["line"]) for one in check(source, harness)["missing"]]


def test_it_needs_nothing_but_the_standard_library_of_python_3_8() -> None:
    tree = ast.parse(Path(code_check_program.__file__).read_text(), feature_version=(3, 8))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert names <= sys.stdlib_module_names


def test_it_compiles_with_the_harness_that_a_sandbox_sees() -> None:
    assert Path(code_check_program.HARNESS) == Path(spec.LIB_DIR) / FILE.name


def test_looking_for_the_harness_does_not_let_programs_import_it() -> None:
    assert harness.compile_program("return 1", "<x>").co_code
    assert missing("import harness") == [("harness", 1)]


def test_the_version_is_that_of_the_python_that_compiled() -> None:
    assert check("", harness)["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    "source",
    [
        "",
        "\n",
        "return 1",
        "import asyncio\nawait asyncio.sleep(0)",
        "return [x async for x in y]",
        "\ufeffresult = 1",
        "x = 1\r\nif x:\r\n\tresult = 2\r\n",
        "x = 1\ry = 2\r",
        "\x0cx = 1\n\x0c\ny = 2",
        "if True:\n\tx = 1\n\ty = 2\n",
        "x = '\x07\x1b[31m'",
        "# coding: nonsense\nx = 1",
        "'\\d'",
        "#" * (1 << 20),
        "x = 1\n" * 20_000,
    ],
    ids=lambda source: repr(source[:25]),
)
def test_what_a_run_takes_compiles(source: str) -> None:
    assert compiles(source)


@pytest.mark.parametrize(
    ("source", "line", "column", "message", "text"),
    [
        ("x = (1", 1, 5, "'(' was never closed", "x = (1"),
        ("a = 1\r\nb = (\r\n", 2, 5, "'(' was never closed", "b = ("),
        ("a = 1\rb = (\r", 2, 5, "'(' was never closed", "b = ("),
        ("# \x0c \u2028 \x85\nb = (", 2, 5, "'(' was never closed", "b = ("),
        ("if 1:\n\tx = 1\n        y = 2", 3, 1, "inconsistent use of tabs and spaces in indentation", "        y = 2"),
        ("x = 1\nbreak", 2, 1, "'break' outside loop", "break"),
        ("x = 'äöü'; break", 1, 12, "'break' outside loop", "x = 'äöü'; break"),
        ("x = 1\n  y = 2", 2, 1, "unexpected indent", "  y = 2"),
        ("x = 1\ny = '\0'", 2, 1, "source code cannot contain null bytes", "y = '\0'"),
        ("\ufeff\ufeffx = 1", 1, 1, "invalid non-printable character U+FEFF", "\ufeffx = 1"),
        ("\ufeffx = (", 1, 5, "'(' was never closed", "x = ("),
        ("return 1\nyield 2", 2, 1, "'yield' outside function", "yield 2"),
    ],
)
def test_a_problem_names_the_place_and_shows_the_line(
    source: str, line: int, column: int, message: str, text: str
) -> None:
    found = problem(source)
    assert (found["line"], found["message"], found["text"]) == (line, message, text)
    assert found["column"] == column or "indent" in message  # whose column differs between Pythons


@pytest.mark.parametrize(
    "source",
    [
        "(" * 100_000,
        "-" * 100_000 + "1",
        "a" + ".b" * 100_000,
        "1+" * 100_000 + "1",
        "lambda:" * 50_000 + "1",
        "x if x else " * 20_000 + "x",
        "[" * 500_000,
        "if x:\n pass\n" + "elif x:\n pass\n" * 20_000,
        "\n".join(" " * depth + "if 1:" for depth in range(150)),
    ],
    ids=lambda source: repr(source[:12]),
)
def test_code_that_is_nested_too_deeply_is_a_problem_and_no_crash(source: str) -> None:
    assert "too" in problem(source)["message"]


def test_text_that_is_not_unicode_is_a_problem_whose_words_can_be_sent() -> None:
    found = problem("x = '\udc80'")
    assert "not valid Unicode" in found["message"]
    assert found["text"] == "x = '\\udc80'"
    json.dumps(found, ensure_ascii=False).encode()


def test_a_long_line_is_cut_and_its_column_kept() -> None:
    found = problem("x" * 5_000 + " y")
    assert found["column"] > 5_000
    assert len(found["text"]) < 300


def test_syntax_of_a_newer_python_is_a_problem_of_this_one() -> None:
    newer = {(3, 12): "type X = int", (3, 14): "x = t'{1}'"}
    for version, source in newer.items():
        assert compiles(source) == (sys.version_info >= version)


def test_the_disk_is_never_read_for_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "<checked>").write_text("a secret of the disk")
    assert problem("def f(x, x): pass")["text"] == "def f(x, x): pass"


def test_nothing_of_the_code_or_of_a_library_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud/__init__.py").write_text(f"open({str(marker)!r}, 'w')")
    (tmp_path / "loud/inner.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    source = f"import loud.inner\nfrom loud import inner\nopen({str(marker)!r}, 'w')\nwhile True: pass"
    assert missing(source) == []
    assert not marker.exists()
    assert "loud" not in sys.modules


def test_the_warnings_of_compiling_are_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert compiles("'\\d'\nx is 1\nassert (1, 2)\nreturn 1")
    assert capfd.readouterr() == ("", "")


# ---- what it imports


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import absent_a", [("absent_a", 1)]),
        ("import json, absent_a as a", [("absent_a", 1)]),
        ("import absent_a.b.c\nfrom absent_a import d", [("absent_a", 1)]),
        ("from absent_a.b import c", [("absent_a", 1)]),
        ("import json\ndef f():\n    import absent_a\n", [("absent_a", 3)]),
        (
            "class A:\n    import absent_a\n    async def f(self):\n        from absent_b import c",
            [("absent_a", 2), ("absent_b", 4)],
        ),
        ("for x in y:\n    pass\nelse:\n    import absent_a", [("absent_a", 4)]),
        ("while x:\n    with y:\n        import absent_a", [("absent_a", 3)]),
        ("import absent_b\nreturn 1\nimport absent_a", [("absent_b", 1), ("absent_a", 3)]),
        ("from absent_a import (\n  b,\n  c)", [("absent_a", 1)]),
        ("if x:\n    import absent_a\nelif y:\n    import absent_b", [("absent_a", 2), ("absent_b", 4)]),
        ("from . import a\nfrom .b import c", [(".", 1), (".b", 2)]),
        ("import __main__, __future__, sys, builtins", []),
        ("import os.path, xml.etree.ElementTree, json.nothing_of_that_name", []),
        ("text = 'import absent_a'", []),
    ],
)
def test_missing_modules_are_named_once_where_they_are_first_needed(
    source: str, expected: list[tuple[str, int]]
) -> None:
    assert missing(source) == expected


def test_a_module_that_is_loaded_without_a_specification_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_up", types.ModuleType("made_up"))  # as `__main__` is inside
    assert missing("import made_up") == []


def test_an_import_in_a_match_is_found() -> None:
    assert missing("match x:\n    case 1:\n        import absent_a") == [("absent_a", 3)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("try:\n    import absent_a\nexcept ImportError:\n    pass", []),
        ("try:\n    import absent_a\nexcept ModuleNotFoundError as error:\n    pass", []),
        ("try:\n    import absent_a\nexcept (ValueError, builtins.ImportError):\n    pass", []),
        ("try:\n    import absent_a\nexcept ValueError:\n    pass", ["absent_a"]),
        # These catch everything, as a whole program often stands in one; the module is missed all the same.
        ("try:\n    import absent_a\nexcept Exception:\n    pass", ["absent_a"]),
        ("try:\n    import absent_a\nexcept:\n    pass", ["absent_a"]),
        ("try:\n    if x:\n        import absent_a\nexcept ImportError:\n    pass", []),
        ("try:\n    pass\nexcept ImportError:\n    pass\nfinally:\n    import absent_a", ["absent_a"]),
        ("try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    import absent_a", ["absent_a"]),
        ("from contextlib import suppress\nwith suppress(ImportError):\n    import absent_a", []),
        ("import contextlib\nwith x, contextlib.suppress(ValueError, ImportError):\n    import absent_a", []),
        ("from contextlib import suppress\nwith suppress(ValueError):\n    import absent_a", ["absent_a"]),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import absent_a\nelse:\n    import absent_b",
            ["absent_b"],
        ),
        ("import typing\nif typing.TYPE_CHECKING:\n    import absent_a", []),
        ("from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import absent_a", ["absent_a"]),
        ("try:\n    import absent_a\nexcept ImportError:\n    pass\nimport absent_a", ["absent_a"]),
        # The second choice counts only when the first is not there.
        ("try:\n    import json\nexcept ImportError:\n    import absent_b", []),
        ("try:\n    import absent_a\nexcept ImportError:\n    import absent_b", ["absent_b"]),
        ("try:\n    import json\nexcept ValueError:\n    import absent_b", ["absent_b"]),
        (
            (
                "try:\n    import absent_a\nexcept ImportError:\n    try:\n        import absent_b\n    except"
                " ImportError:\n        pass"
            ),
            [],
        ),
    ],
)
def test_what_the_program_expects_to_be_absent_is_not_missing(source: str, expected: list[str]) -> None:
    assert [module for module, _ in missing(source)] == expected


def test_imports_are_the_top_level_names_in_the_order_of_the_text() -> None:
    source = """
def f():
    import xml.dom
try:
    import absent_a
except ImportError:
    from . import b
from json import loads
import xml
"""
    assert check(source, harness)["imports"] == ["xml", "absent_a", "json"]


def test_an_answer_stays_small_however_much_is_imported() -> None:
    source = "\n".join(f"import absent_{'ä' * 150}{number}" for number in range(3_000))
    said = check(source, harness)
    assert len(said["imports"]) == MAX_IMPORTS
    assert len(said["missing"]) == MAX_MISSING
    assert len(json.dumps(said)) < 1 << 20


AWKWARD = st.sampled_from(list("ab=():\n\t '\"\\#\ufeff\0\r\x0cä\ud800{}@,."))


@given(st.text(alphabet=AWKWARD | st.characters(), max_size=60))
def test_any_text_gets_an_answer_of_the_agreed_form(source: str) -> None:
    said = check(source, harness)
    if said["problem"] is not None:
        convert(said["problem"], _Problem)


# ---- what is believed of it


def setting(**limits: Any) -> Setting:
    chosen = policy().tightened(Tightening(**limits))
    image = AdmittedImage(
        id="sha256:abc",
        digest="sha256:abc",
        name="localhost/i:1",
        python_path="/usr/bin/python3",
        python_version=(3, 11),
        findings=(),
    )
    return Setting(policy=chosen, seccomp=load_profile("python", directories=policy_directories()), admitted=image)


GOOD: dict[str, Any] = {"python": "3.11.2", "problem": None, "missing": [], "imports": []}


def asked(code: str, said: Any = GOOD, **fields: Any) -> tuple[CodeCheck, DecidedRun]:
    """Check code in a sandbox that answers `said`; return what came of it, and what the sandbox was given."""
    given_to: list[DecidedRun] = []
    text = said if isinstance(said, bytes) or said is None else json.dumps(said).encode()
    result = RunResult(**{"run_id": "r", "outcome": Outcome.SUCCEEDED, "result_json": text, **fields})

    async def execute(step: DecidedRun) -> RunResult:
        given_to.append(step)
        return result

    request = RunRequest(code=code, filename="flow.py")
    return asyncio.run(check_code(decided(setting(), Run(request=request)), execute)), given_to[0]


def test_the_answer_is_what_the_sandbox_said_with_what_to_install() -> None:
    said = {**GOOD, "missing": [{"module": "sklearn", "line": 3}, {"module": ".x", "line": 4}], "imports": ["sklearn"]}
    found, _ = asked("import sklearn", said)
    assert found.python == "3.11.2"
    assert found.problem is None
    assert found.imports == ("sklearn",)
    assert found.missing == (
        MissingModule(module="sklearn", line=3, install="scikit-learn"),
        MissingModule(module=".x", line=4, install=None),
    )


def test_a_problem_comes_through_with_its_control_characters() -> None:
    stated = {"line": 2, "column": 7, "message": "m\x1b[31m", "text": "a\0b"}
    found, _ = asked("x", {**GOOD, "problem": stated})
    assert found.problem == Problem(**stated)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", ["", "x = 'ä😀'", "\ufeffx", "a\0b\r\n\t\x0c", "x = '\udc80'"])
def test_the_sandbox_gets_the_text_as_it_is_and_runs_our_program(code: str) -> None:
    _, step = asked(code)
    assert json.loads(step.run.request.payload_json)["code"].encode(errors="surrogateescape") == code.encode(
        errors="surrogatepass"
    )
    assert step.run.request.code == Path(code_check_program.__file__).read_text()
    assert step.setting == setting()


def test_two_halves_of_a_character_stay_what_a_run_would_see() -> None:
    _, step = asked("\ud83d" + "\ude00")
    assert "\U0001f600" not in json.loads(step.run.request.payload_json)["code"]


@pytest.mark.parametrize(
    ("module", "install"),
    [
        ("cv2", "opencv-python-headless"),
        ("PIL", "pillow"),
        ("sklearn", "scikit-learn"),
        ("pandas", "pandas"),
        ("websocket", "websocket-client"),
        ("plant_helpers", None),
        ("google", None),
        ("board", None),
        ("distutils", None),
        ("tomllib", None),
        ("cgi", None),
        ("winreg", None),
        ("_private", None),
        (".", None),
        (".a.b", None),
        ("größe", None),
        ("-x", None),
        ("a b", None),
        ("", None),
    ],
)
def test_what_to_install_is_the_distribution_or_nothing(module: str, install: str | None) -> None:
    assert distribution_of(module) == install


LIES: list[Any] = [
    None,
    b"",
    b"null",
    b"[" * 100_000 + b"]" * 100_000,
    b'"\\ud800"',
    b'{"python": "3.11.2", "problem": null, "missing": [], "imports": []' + b" " * (1 << 20) + b"}",
    {},
    {**GOOD, "more": 1},
    {**GOOD, "python": "3.11.2\n"},
    {**GOOD, "python": "x" * 10_000},
    {**GOOD, "imports": ["a"] * (MAX_IMPORTS + 1)},
    {**GOOD, "imports": ["a" * 10_000]},
    {**GOOD, "imports": [1]},
    {**GOOD, "missing": [{"module": "a", "line": 1}] * (MAX_MISSING + 1)},
    {**GOOD, "missing": [{"module": "a", "line": 0}]},
    {**GOOD, "missing": [{"module": "a", "line": 10**30}]},
    {**GOOD, "missing": [{"module": "a", "line": True}]},
    {**GOOD, "missing": [{"module": "a", "line": 1, "install": "evil"}]},
    {**GOOD, "problem": {"line": 1, "column": -1, "message": "", "text": ""}},
    {**GOOD, "problem": {"line": 1, "column": 1, "message": "m" * 1_000, "text": ""}},
    {**GOOD, "problem": {"line": 1, "column": 1, "message": "", "text": "t" * 1_000}},
]


@pytest.mark.parametrize("said", LIES, ids=lambda said: repr(said)[:40])
def test_a_sandbox_that_gives_no_valid_answer_is_an_error_of_ours(said: Any) -> None:
    with pytest.raises(Internal, match=r"gave no valid answer on 'flow\.py'"):
        asked("x", said)


@pytest.mark.parametrize(
    ("outcome", "fields"),
    [
        (Outcome.TIMED_OUT, {"explanation": "the program was stopped after 30 s (limits.timeout_s)"}),
        (Outcome.OUT_OF_MEMORY, {"explanation": "the program needed more than 512 MiB (limits.memory_mib)"}),
        (Outcome.KILLED, {"explanation": "the program was killed by SIGSEGV", "signal": "SIGSEGV"}),
    ],
)
def test_code_that_no_compiler_survives_within_the_limits_is_the_callers(
    outcome: Outcome, fields: dict[str, str]
) -> None:
    with pytest.raises(InvalidRequest, match=r"compiling it (was|needed)") as caught:
        asked("x", None, outcome=outcome, **fields)
    assert caught.value.hint
    assert caught.value.facts["outcome"] == outcome.value


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.FAILED,
        Outcome.NO_RESULT,
        Outcome.OUTPUT_LIMIT,
        Outcome.KILLED,
        Outcome.CANCELLED,
        Outcome.TOO_MANY_PROCESSES,
    ],
)
def test_any_other_end_of_the_sandbox_is_an_error_of_ours(outcome: Outcome) -> None:
    with pytest.raises(Internal, match="without an answer") as caught:
        asked("x", None, outcome=outcome, explanation="why")
    assert caught.value.hint


def test_code_larger_than_the_policy_takes_is_denied_before_a_sandbox_is_asked(tmp_path: Path) -> None:
    def engine() -> Any:
        raise AssertionError

    places = Places(runtime_dir=tmp_path, cache_dir=tmp_path, data_dir=tmp_path, policy_dirs=policy_directories())
    request = RunRequest(code="x" * (policy().limits.code_kib * 1024 + 1))
    with pytest.raises(PolicyDenied, match="code_kib"):
        asyncio.run(Runner(engine, host(), places).check(request))
