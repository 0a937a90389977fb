from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from sandbox.cli.libraries import read_requirements, requirements_of
from sandbox.errors import InvalidRequest, NotFound

TEXT = "# ce qu'il faut: déjà\r\nsix==1.17.0\r\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        b"# -*- coding: latin-1 -*-\n" + TEXT.encode("latin-1"),
        b"\n# coding=cp1252\n" + TEXT.encode("cp1252"),
    ],
)
def test_a_file_is_read_in_the_encodings_that_pip_reads(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "requirements.txt").write_bytes(data)
    assert read_requirements(str(tmp_path / "requirements.txt")).libraries == ("six==1.17.0",)


@pytest.mark.parametrize("data", [b"six # \xe9\n", b"# coding: nonsense\nsix\n", codecs.BOM_UTF16_LE + b"s"])
def test_a_file_in_no_encoding_is_told_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "requirements.txt").write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"is not .* text"):
        read_requirements(str(tmp_path / "requirements.txt"))


def test_files_include_others_that_lie_beside_them(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "requirements.txt").write_text("-r more/base.txt\nsix\n")
    (tmp_path / "more" / "base.txt").write_text("--requirement=../last.txt\nnumpy\n")
    (tmp_path / "last.txt").write_text("pandas\n")
    assert read_requirements(str(tmp_path / "requirements.txt")).libraries == ("numpy", "pandas", "six")


def test_files_in_a_circle_and_files_that_are_not_there_are_errors(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("-r b.txt\n")
    with pytest.raises(NotFound, match=r"b\.txt does not exist"):
        read_requirements(str(first))
    second.write_text("-r a.txt\n")
    with pytest.raises(InvalidRequest, match="again"):
        read_requirements(str(first))


HEADER = '# /// script\n# requires-python = ">=3.10"\n# dependencies = ["pandas>=2", "six"]\n# ///\n'


@pytest.mark.parametrize(
    ("code", "libraries", "named"),
    [
        (HEADER, ("six==1.17.0",), "pandas>=2, Python >=3.10"),
        (HEADER, ("six", "pandas"), "pandas>=2, Python >=3.10"),
        (HEADER.replace(">=2", ""), ("six", "pandas<3"), "Python >=3.10"),
        (HEADER.replace("# requires", "# # requires"), ("six", "pandas>=2"), ""),
        ("# /// script\n# broken\n", ("six",), ""),
        ("result = 1\n", ("six",), ""),
    ],
)
def test_a_header_that_options_replace_is_named_in_a_warning(
    code: str, libraries: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"libraries": libraries, "requirement_files": ()}
    asked = requirements_of(options, code=code, filename="chart.py")
    assert asked == (tuple(sorted(libraries)), "")
    said = f"sandbox: warning: the header of chart.py is not followed, which names {named}: --with and --requirements"
    assert capsys.readouterr().err == (f"{said} replace it\n" if named else "")


def test_a_header_alone_is_followed_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"libraries": (), "requirement_files": ()}
    assert requirements_of(options, code=HEADER) == (("pandas>=2", "six"), ">=3.10")
    assert capsys.readouterr().err == ""
