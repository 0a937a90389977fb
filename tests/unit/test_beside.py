"""Which modules go along with a script: those beside it that its imports name, and nothing from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.cli.beside import MAX_BYTES, MAX_FILES, modules_for, script_of
from sandbox.errors import InvalidRequest


def write(place: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = place / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def sent(place: Path, code: str, *, without: tuple[str, ...] = (), quiet: bool = True) -> dict[str, bytes]:
    (place / "script.py").write_text(code)
    return modules_for(str(place / "script.py"), code, without=without, quiet=quiet)


@pytest.mark.parametrize(
    "code",
    [
        "import helper",
        "from helper import mean",
        "import os, helper as h",
        "def f():\n    import helper.part\n",
        "try:\n    from helper import (\n        a,\n    )\nexcept ImportError:\n    pass",
        "x = 1; import helper",
        "#" * 40_000 + "\nimport helper",
    ],
)
def test_a_module_beside_the_script_goes_along_however_it_is_imported(tmp_path: Path, code: str) -> None:
    write(tmp_path, helper="X = 1", other="X = 2")
    assert sent(tmp_path, code) == {"helper.py": b"X = 1"}


def test_what_a_module_imports_goes_along_too_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path, one="import two, script", two="import one, three", three="import math", four="")
    assert list(sent(tmp_path, "import one")) == ["one.py", "two.py", "three.py"]


def test_of_a_package_all_modules_go_along_and_nothing_else(tmp_path: Path) -> None:
    write(
        tmp_path,
        plant__in____init__="import helper",
        plant__in__press="",
        plant__in__deep__in__valve="",
        plant__in____pycache____in__press="",
        helper="",
    )
    (tmp_path / "plant/secret.json").write_text("{}")
    (tmp_path / "plant/.hidden.py").write_text("")
    (tmp_path / "plant.py").write_text("# a package comes first")
    assert sorted(sent(tmp_path, "import plant.press")) == [
        "helper.py",
        "plant/__init__.py",
        "plant/deep/valve.py",
        "plant/press.py",
    ]


def test_a_directory_without_an_init_is_a_package_unless_there_is_a_module(tmp_path: Path) -> None:
    write(tmp_path, plant__in__press="")
    assert list(sent(tmp_path, "import plant.press")) == ["plant/press.py"]
    write(tmp_path, plant="")
    assert list(sent(tmp_path, "import plant.press")) == ["plant.py"]


def test_names_of_the_standard_library_and_texts_are_not_taken_for_modules_beside(tmp_path: Path) -> None:
    write(tmp_path, random="", json="", helper="", data="")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/t.csv").write_text("1")
    assert sent(tmp_path, 'import random, json, tables\nx = """\nimport helper\n"""\n# import data\n') == {}


def test_what_is_sent_anyway_stays_the_caller_s(tmp_path: Path) -> None:
    write(tmp_path, helper="import other", other="")
    assert sent(tmp_path, "import helper", without=("helper.py",)) == {}


def test_no_link_is_followed_and_each_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "place"
    write(elsewhere, secret="KEY", pack__in____init__="KEY", mod="KEY")
    write(place, plant__in____init__="", plant__in__real="")
    (place / "secret.py").symlink_to(elsewhere / "secret.py")
    (place / "pack").symlink_to(elsewhere / "pack")
    (place / "plant/mod.py").symlink_to(elsewhere / "mod.py")
    (place / "plant/inner").symlink_to(elsewhere)
    (place / "gone.py").symlink_to(elsewhere / "none.py")
    found = sent(place, "import secret, pack, plant, gone, absent", quiet=False)
    assert sorted(found) == ["plant/__init__.py", "plant/real.py"]
    told = capsys.readouterr().err
    for name in ("secret.py", "pack", "plant/mod.py", "plant/inner", "gone.py"):
        assert f"sandbox: {name} is a link and is not sent along" in told
    assert "sent along with script.py: plant/ (2 files) (--no-local: none)" in told


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "device.py").symlink_to("/dev/zero")
    (tmp_path / "folder.py").mkdir()
    assert sent(tmp_path, "import pipe, device, folder") == {}


def test_a_script_that_is_a_link_has_the_modules_beside_what_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path / "real", helper="real")
    write(tmp_path / "links", helper="wrong")
    (tmp_path / "real/script.py").write_text("import helper")
    (tmp_path / "links/start.py").symlink_to(tmp_path / "real/script.py")
    assert modules_for(str(tmp_path / "links/start.py"), "import helper", without=(), quiet=True) == {
        "helper.py": b"real"
    }


@pytest.mark.parametrize("script", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/nowhere/at/all.py"])
def test_a_script_that_lies_nowhere_has_none(script: str) -> None:
    assert modules_for(script, "import helper", without=(), quiet=True) == {}


def test_too_many_and_too_large_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path, **{f"plant__in__m{n}": "" for n in range(MAX_FILES + 1)}, helper="#" * (MAX_BYTES + 1))
    for name in ("plant", "helper"):
        with pytest.raises(InvalidRequest, match="name more than") as refused:
            sent(tmp_path, f"import {name}")
        assert "--no-local" in refused.value.hint


def test_a_module_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    write(tmp_path, helper="")
    (tmp_path / "helper.py").chmod(0)
    with pytest.raises(InvalidRequest, match=r"the module helper\.py can't be read"):
        sent(tmp_path, "import helper")


def test_names_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, helper="", größe="")
    sent(tmp_path, "import helper, größe", quiet=False)
    assert capsys.readouterr().err == "sandbox: sent along with script.py: helper.py, größe.py (--no-local: none)\n"


def test_a_directory_stands_for_its_main_module(tmp_path: Path) -> None:
    write(tmp_path, __main__="")
    assert script_of(str(tmp_path)) == str(tmp_path / "__main__.py")
    assert script_of("-") == "-"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match=r"a directory without a __main__\.py"):
        script_of(str(tmp_path / "empty"))
