"""What a program imports, as its text tells."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.channel.modules import MAX_MODULES, check_modules
from sandbox.errors import InvalidRequest
from sandbox.run.imports import MAX_SCANNED_CHARS, brings_modules, modules_of, roots_of

PROGRAM = """
import os, sys
import numpy as np, pandas
from sklearn.cluster import KMeans

def draw():
    import matplotlib.pyplot as plt
    from . import mine
    from .. import pandas2

try:
    import json5 as json
except ImportError:
    import json

if payload:
    await later(lambda: __import__("dynamic"))
    from collections import OrderedDict; from scipy import stats
    return np.array(1)
"""


def test_modules_are_named_in_full_each_once_and_those_of_the_standard_library_are_not() -> None:
    assert modules_of(PROGRAM) == ("numpy", "pandas", "sklearn.cluster", "matplotlib.pyplot", "json5", "scipy")
    assert modules_of("import a.b\nimport a.b, a\nfrom a.b import c") == ("a.b", "a")


@pytest.mark.parametrize(
    "code",
    [
        "\0import numpy",
        "import \udc80",
        "(" * 5_000,
        "from __future__ import annotations",
        "import __main__",
        "",
        "import",
        "# import numpy",
        "x = 'import numpy'",
        '"""\nimport numpy\n"""',
        "important = 1",
        "from time",
        "from . import numpy",
    ],
)
def test_what_is_no_import_names_nothing(code: str) -> None:
    assert modules_of(code) == ()


def test_a_program_that_does_not_compile_may_name_modules() -> None:
    assert modules_of("if x import y:\n  import numpy, pandas as pd; import a") == ("numpy", "pandas", "a")


def test_a_byte_order_mark_hides_nothing() -> None:
    assert modules_of("\ufeffimport numpy") == ("numpy",)


def test_what_a_program_names_is_bounded() -> None:
    many = "\n".join(f"import m{number}.n{number}" for number in range(1_000))
    assert len(modules_of(many)) == MAX_MODULES
    assert modules_of(f"import {'a' * 101}\nimport {'b' * 100}\nimport größe") == ("b" * 100,)


def test_only_the_beginning_of_a_text_is_looked_at() -> None:
    assert modules_of(" " * (MAX_SCANNED_CHARS - len("\nimport a")) + "\nimport a\nimport b") == ("a",)


@pytest.mark.parametrize(
    "hard",
    [
        " ",
        "\n",
        ";",
        "from ",
        "from" + " " * 99,
        "\nfrom a",
        "\nimport a,",
        "import " + "," * 99,
        "import a.b\n",
        "'",
        "'" * 3,
        "import é,",
        ";import",
        "\n\t",
        "from a" + " " * 99,
        "f'{",
        "x = 1\n",
    ],
)
def test_time_is_in_proportion_to_a_text_whatever_it_is(hard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def took_s(size: int) -> float:
        monkeypatch.setattr("sandbox.run.imports.MAX_SCANNED_CHARS", size)
        text = (hard * (size // len(hard) + 1))[:size]
        began = time.process_time()
        modules_of(text)
        return time.process_time() - began

    # Sixteen times the text takes sixteen times as long; with the square of it, it would take 256 times as long.
    assert min(took_s(1 << 20) for _ in range(3)) < 64 * min(took_s(1 << 16) for _ in range(5)) + 0.02


@given(st.text())
def test_any_text_gives_names_that_may_be_preloaded(code: str) -> None:
    check_modules(modules_of(code))


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a-b",
        "1a",
        "a b",
        "a\n",
        "ä",
        "os;print(1)",
        "a'b",
        '"',
        "a" * 101,
        "__import__('os')",
    ],
)
def test_only_names_of_modules_are_preloaded(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_modules(["numpy", name])
    assert repr(name[:100]) in caught.value.message


def test_only_a_few_modules_are_preloaded() -> None:
    check_modules([f"m{number}" for number in range(MAX_MODULES)])
    with pytest.raises(InvalidRequest, match="33 modules"):
        check_modules([f"m{number}" for number in range(MAX_MODULES + 1)])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], False),
        (["data.csv", "py", ".py", "x.pyx", "a.py.txt"], False),
        (["numpy.py"], True),
        (["data.csv", "a.pyc"], True),
        (["a.abi3.so"], True),
        (["a.so"], True),
    ],
)
def test_files_that_a_program_could_import_are_told(files: list[str], expected: bool) -> None:
    assert brings_modules(files) is expected


BESIDE = r'''
QUOTES = '"""'  # it's a comment with """ in it
"""A text with an odd \'\'\' inside."""
from continued \
    import name
import one, two.part as short; import three
plugin = importlib.import_module("plugin"); other = __import__('other.part')
text = """
import only_a_text
"""
said = 'it\'s'; import after
r"""\"""";  import last
# import commented
'''


def test_what_a_script_needs_from_beside_it_is_found_behind_texts_over_several_lines_and_by_name() -> None:
    assert roots_of(BESIDE) == ("continued", "one", "two", "three", "after", "last", "plugin", "other")
    assert roots_of("importlib.import_module('json')\nimport sys, __main__\nfrom . import beside") == ()
    assert roots_of('"""never ends\nimport inside') == ()


HARD_TEXTS = ('"""' + "\\" * 200_000, '"' * 300_001, '"\\\n' * 100_000, "'''a\n" * 50_000, "import_module(" * 30_000)


@pytest.mark.parametrize("text", HARD_TEXTS, ids=[text[:6] for text in HARD_TEXTS])
def test_a_long_text_is_looked_through_once(text: str) -> None:
    roots_of(text)  # minutes, if a part of it were looked at again and again
