"""What a program imports, as its text tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import InvalidRequest
from sandbox.imports import MAX_MODULES, brings_modules, check_modules, imports_of, modules_of

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


def test_libraries_are_named_in_the_order_of_the_text_and_the_standard_library_is_not() -> None:
    assert imports_of(PROGRAM) == ("numpy", "pandas", "sklearn", "matplotlib", "json5", "scipy")


def test_modules_are_named_in_full_each_once() -> None:
    assert modules_of(PROGRAM) == ("numpy", "pandas", "sklearn.cluster", "matplotlib.pyplot", "json5", "scipy")
    assert modules_of("import a.b\nimport a.b, a\nfrom a.b import c") == ("a.b", "a")


@pytest.mark.parametrize(
    "code",
    ["import numpy(", "\0import numpy", "import \udc80", "(" * 5_000, "from __future__ import annotations", "import __main__", "", "import"],
)  # fmt: skip
def test_a_broken_program_imports_nothing(code: str) -> None:
    assert imports_of(code) == modules_of(code) == ()


def test_a_byte_order_mark_hides_nothing() -> None:
    assert imports_of("\ufeffimport numpy") == ("numpy",)


def test_what_a_program_names_is_bounded() -> None:
    many = "\n".join(f"import m{number}.n{number}" for number in range(1_000))
    assert len(imports_of(many)) == len(modules_of(many)) == MAX_MODULES
    assert modules_of(f"import {'a' * 101}\nimport {'b' * 100}\nimport größe") == ("b" * 100,)


def test_dubious_text_warns_nobody() -> None:
    assert imports_of("import numpy\nx = '\\d' is 1") == ("numpy",)  # a warning would be an error here


@given(st.text())
def test_any_text_gives_names_that_may_be_preloaded(code: str) -> None:
    check_modules(modules_of(code))
    check_modules(imports_of(code))


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", ".a", "a..b", "a-b", "1a", "a b", "a\n", "ä", "os;print(1)", "a'b", '"', "a" * 101, "__import__('os')"],
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
    [([], False), (["data.csv", "py", ".py", "x.pyx", "a.py.txt"], False), (["numpy.py"], True), (["data.csv", "a.pyc"], True),
     (["a.abi3.so"], True), (["a.so"], True)],
)  # fmt: skip
def test_files_that_a_program_could_import_are_told(files: list[str], expected: bool) -> None:
    assert brings_modules(files) is expected
