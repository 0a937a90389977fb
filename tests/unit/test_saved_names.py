from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cli import saved_names
from sandbox.cli.saved_names import folded, kept_names, plain, problem_of
from sandbox.inside.harness.text import name_problem


@pytest.mark.parametrize(
    "name",
    [
        "chart.png",
        "data.csv",
        "2026-11-28 report (final).pdf",
        "model.pkl",
        "a.tar.gz",
        "donne\u0301es.csv",
        "donn\u00e9es.csv",
        "報告.xlsx",
        "x_1+2=3,4@5.json",
        "page.html",
        "weights.h5",
        "Con text.txt",
        "हिन्दी.txt",
        "a.b.c.parquet",
    ],
)
def test_names_of_data_are_kept(name: str) -> None:
    assert kept_names([name]) == [(name, "")]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (".bashrc", "begins with"),
        (".profile", "begins with"),
        ("-rf", "begins with"),
        ("--help", "begins with"),
        (" x.txt", "begins with"),
        ("~.txt", "begins with"),
        ("_x.csv", "begins with"),
        ("a*.csv", "character"),
        ("a?.csv", "character"),
        ("[a].csv", "begins with"),
        ("a$(id).csv", "character"),
        ("a;b.csv", "character"),
        ("a`b.csv", "character"),
        ("a\\b.csv", "character"),
        ("a:b.csv", "character"),
        ("a\u202etxt.csv", "character"),
        ("a\u200b.csv", "character"),
        ("a\n.csv", "character"),
        ("a\u00a0b.csv", "character"),
        ("Makefile", "no file type"),
        ("authorized_keys", "no file type"),
        ("CON", "no file type"),
        ("x.csv.", "no file type"),
        ("x.csv ", "no file type"),
        ("sitecustomize.py", "programs act"),
        ("conftest.py", "programs act"),
        ("json.PY", "programs act"),
        ("desktop.ini", "programs act"),
        ("x.desktop", "programs act"),
        ("autorun.inf", "programs act"),
        ("x.pth", "programs act"),
        ("x.so", "programs act"),
        ("package.json", "programs act"),
        ("Docker-Compose.yml", "programs act"),
        ("x.LNK", "programs act"),
        ("CON.txt", "device"),
        ("nul.tar.gz", "device"),
        ("com1 .csv", "device"),
    ],
)
def test_names_that_programs_act_upon_are_not(name: str, why: str) -> None:
    [kept] = kept_names([name])
    assert why in kept.why
    assert kept.name.startswith("saved-")
    assert kept.name.endswith(".saved")
    assert problem_of(kept.name) == ""
    assert kept_names([name], as_they_are=True) == [(name, "")]


def test_names_that_a_file_system_may_take_for_one_stay_two() -> None:
    names = [
        "A.csv",
        "a.csv",
        "é.csv",
        "e\u0301.csv",
        "straße.csv",
        "STRASSE.csv",
        "a*.csv",
        "a?.csv",
        "saved-a_.csv.saved",
    ]
    kept = [one.name for one in kept_names(names)]
    assert kept[0] == "A.csv"
    assert kept[1] == "saved-a.csv.saved"
    assert len({folded(name) for name in kept}) == len(names)
    assert [one.name for one in kept_names(names, as_they_are=True)] == names


@pytest.mark.parametrize(
    "name", [lambda n: chr(0x2500 + n), lambda n: "*" + "a" * 250 + chr(0x4E00 + n)], ids=["short", "long"]
)
def test_thousands_of_names_that_would_be_alike_are_told_apart_in_steps_in_proportion(
    monkeypatch: pytest.MonkeyPatch, name: Callable[[int], str]
) -> None:
    calls: list[str] = []

    def counted(text: str) -> str:
        calls.append(text)
        return folded(text)

    monkeypatch.setattr(saved_names, "folded", counted)
    kept = kept_names(map(name, range(500)))
    assert len({one.name for one in kept}) == 500
    assert len(calls) <= 4 * 500


@given(
    st.lists(st.text(min_size=1, max_size=300).filter(lambda name: name_problem(name) is None), max_size=8, unique=True)
)
def test_whatever_the_names_are_the_kept_ones_are_plain_distinct_and_fit(names: list[str]) -> None:
    kept = [one.name for one in kept_names(names)]
    assert len({unicodedata.normalize("NFKD", name).casefold() for name in kept}) == len(names)
    for name in kept:
        assert problem_of(name) == ""
        assert name_problem(name) is None
        assert all(map(plain, name))
        assert len(name.encode()) <= 255
