"""A tree is prepared: what scripts would have made is made, and what can't be is refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.inside.image_tree import prepare
from sandbox.inside.image_tree.prepare import HERE, Tree
from sandbox.inside.image_tree.reviewed import reviewed
from sandbox.inside.image_tree.scripts import Alternative


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for path in ("usr/bin/python3.11", "usr/bin/one", "usr/bin/two", "usr/bin/plain", "usr/lib/x86_64-linux-gnu/z"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    return Tree(root=tmp_path)


def target(tree: Tree, path: str) -> str:
    return os.readlink(tree.at(path))


def script(tree: Tree, package: str, text: str, name: str = "postinst") -> None:
    directory = tree.at(f"{HERE}/control/{package}")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}")


def test_the_candidate_with_the_highest_priority_is_chosen_with_its_own_followers(tree: Tree) -> None:
    prepare.make_alternatives(
        tree,
        [
            Alternative("/usr/bin/tool", "tool", "/usr/bin/one", 10, (("/usr/bin/t1", "t1", "/usr/bin/one"),)),
            Alternative("/usr/bin/tool", "tool", "/usr/bin/two", 20, (("/usr/bin/t2", "t2", "/usr/bin/two"),)),
            Alternative("/usr/bin/tool", "tool", "/usr/bin/absent", 99),
            Alternative("/usr/share/man/man1/x.1.gz", "x.1.gz", "/usr/share/man/man1/y.1.gz", 1),
        ],
    )
    assert tree.refusals == []
    assert (target(tree, "/usr/bin/tool"), target(tree, "/etc/alternatives/tool")) == (
        "/etc/alternatives/tool",
        "/usr/bin/two",
    )
    assert target(tree, "/etc/alternatives/t2") == "/usr/bin/two"
    assert not tree.exists("/usr/bin/t1")


def test_a_choice_without_a_candidate_and_one_over_a_file_are_refused(tree: Tree) -> None:
    prepare.make_alternatives(
        tree,
        [
            Alternative("/usr/bin/a", "a", "/usr/bin/absent", 1),
            Alternative("/usr/bin/plain", "plain", "/usr/bin/one", 1),
        ],
    )
    assert tree.refusals == [
        "the choice a has no candidate: /usr/bin/absent is not there",
        "the choice plain can't be made: /usr/bin/plain is a file of a package",
    ]
    assert tree.at("/usr/bin/plain").read_text() == "usr/bin/plain"


def test_a_link_to_what_no_package_brings_is_refused(tree: Tree) -> None:
    prepare.make_links(tree, [("/etc/a", "/usr/bin/one"), ("/usr/bin/b", "two"), ("/etc/c", "/usr/bin/absent")])
    assert (target(tree, "/etc/a"), target(tree, "/usr/bin/b")) == ("/usr/bin/one", "two")
    assert tree.refusals == ["/etc/c would lead to /usr/bin/absent, which no package brings"]


def test_python_has_both_names_and_another_version_is_refused_with_what_there_is(tree: Tree) -> None:
    prepare.make_python(tree, ["3.11"])
    assert (target(tree, "/usr/bin/python"), target(tree, "/usr/bin/python3")) == ("python3", "python3.11")
    prepare.make_python(tree, ["3.99"])
    assert tree.refusals == ["the release has no Python 3.99; it has 3.11"]


def test_scripts_are_read_reviewed_or_accepted_and_every_refusal_names_its_package(tree: Tree) -> None:
    script(tree, "alpha", "update-alternatives --install /usr/bin/a a /usr/bin/one 5")
    script(tree, "beta", "build-database --all\ncp /a /b")
    script(tree, "gamma", "make-it", name="preinst")
    script(tree, "delta", "cp /a /b")
    script(tree, "tzdata", "cp /a /b")
    effects = prepare.read_scripts(tree, accepted=frozenset({"delta"}))
    assert [each.name for each in effects.alternatives] == ["a"]
    assert tree.refusals == [
        "the package beta needs its postinst script: it runs build-database --all (and 1 more)",
        "the package gamma needs its preinst script: it runs make-it",
    ]


def test_reviewed_packages_get_what_was_found_they_need(tree: Tree) -> None:
    script(tree, "libgdk-pixbuf-2.0-0", "gdk-pixbuf-query-loaders > /x")
    script(tree, "mariadb-common", "/usr/share/mysql-common/configure-symlinks install")
    effects = prepare.read_scripts(tree, accepted=frozenset())
    assert tree.refusals == []
    assert effects.tools[0][0].startswith("/usr/lib/x86_64-linux-gnu/gdk-pixbuf-2.0/")
    assert effects.links == [("/etc/mysql/my.cnf", "/etc/mysql/mariadb.cnf")]
    assert reviewed("libc6t64") is reviewed("libc6")


SUPPORTED = [
    ("de_DE.UTF-8", "UTF-8"), ("de_DE", "ISO-8859-1"), ("de_DE@euro", "ISO-8859-15"), ("sr_RS", "UTF-8"),
    ("sr_RS@latin", "UTF-8"), ("tr_TR.UTF-8", "UTF-8"), ("tr_TR", "ISO-8859-9"),
]  # fmt: skip # a table


@pytest.mark.parametrize(
    ("asked", "directory"),
    [
        ("de_DE.UTF-8", "de_DE.utf8"),
        ("de_DE.utf8", "de_DE.utf8"),
        ("de_DE", "de_DE.utf8"),
        ("de_DE.ISO-8859-1", "de_DE.iso88591"),
        ("de_DE.ISO-8859-15@euro", "de_DE.iso885915@euro"),
        ("sr_RS@latin", "sr_RS.utf8@latin"),
        ("tr_TR.ISO-8859-9", "tr_TR.iso88599"),
        ("de_DE.KOI8-R", None),
        ("de_DE@latin", None),
        ("xx", None),
    ],
)
def test_a_locale_is_found_by_its_language_and_character_set(asked: str, directory: str | None) -> None:
    found = prepare.find_locale(asked, SUPPORTED)
    assert (None if found is None else prepare.canonical_locale(*found)) == directory


def test_an_unknown_locale_is_refused_with_the_nearest(tree: Tree) -> None:
    supported = tree.at("/usr/share/i18n/SUPPORTED")
    supported.parent.mkdir(parents=True)
    supported.write_text("de_DE.UTF-8 UTF-8\nde_AT.UTF-8 UTF-8\nfr_FR.UTF-8 UTF-8\n")
    prepare.make_locales(tree, ["de_DD.UTF-8"])
    assert tree.refusals[0].startswith("the release has no locale de_DD.UTF-8; near are de_D")


def test_a_tool_that_fails_is_told_with_its_own_words(tree: Tree) -> None:
    prepare.run_tools(tree, [("ls", "/surely/not/there"), ("surely-not-there",), ("true",)])
    assert len(tree.refusals) == 1
    assert tree.refusals[0].startswith("ls failed: ")
    assert "/surely/not/there" in tree.refusals[0]
