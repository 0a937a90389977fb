"""Which versions an index has, asked over HTTP and read from directories."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from sandbox.index.listing import Listing, listing_of
from sandbox.index.pip_config import Index
from tests.integration.package_index import package_index, sdist, wheel

FILES = [
    wheel("Tiny_Lib", "1.0", {}),
    wheel("Tiny_Lib", "2.0", {}, tag="cp36-cp36m-linux_x86_64"),
    wheel("Tiny_Lib", "3.0b1", {}),
    sdist("tiny_lib", "10.0"),
    sdist("tiny_lib", "9.0"),
]


def test_versions_are_those_of_all_files_in_their_order_without_prereleases() -> None:
    with package_index() as index:
        index.add(*FILES)
        here = Index(urls=(index.url,))
        found = listing_of(here, "tiny.lib")
        assert found.versions() == ["1.0", "2.0", "9.0", "10.0"]
        assert found.usable((3, 11), sdists=False).versions() == ["1.0"]
        assert found.usable((3, 11), sdists=True).versions() == ["1.0", "9.0", "10.0"]
        assert found.usable(None, sdists=False).versions() == ["1.0", "2.0"]
        assert found.of(">1,<10").versions() == ["2.0", "9.0"]
        assert found.of("").files == found.of("no version").files == found.files
        assert listing_of(here, "other") == Listing(())


def test_wheels_tell_for_which_pythons_of_this_machine_and_for_which_systems_they_are() -> None:
    machine = f"linux_{platform.machine()}"
    tags = [
        f"cp313-cp313-{machine}",
        f"cp39-abi3-{machine}",
        "py2-none-any",
        "cp38-cp38-win32",
        f"pp310-pypy310_pp73-{machine}",
    ]
    with package_index() as index:
        index.add(*(wheel("many", "1.0", {}, tag=tag) for tag in tags))
        found = listing_of(Index(urls=(index.url,)), "many")
    assert found.pythons() == ["2", "3.9", "3.13"]
    assert found.platforms() == sorted({"any", "win32", machine})


def test_an_index_that_does_not_answer_has_nothing() -> None:
    with package_index() as index:
        url = index.url
    assert listing_of(Index(urls=(url,)), "tiny-lib") == Listing(())


@pytest.mark.parametrize("page", [True, False], ids=["index", "find-links"])
def test_local_sources_are_read_too(tmp_path: Path, page: bool) -> None:
    for name, content in FILES:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "other-5.0-py3-none-any.whl").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    if page:
        (tmp_path / "tiny-lib").mkdir()
        links = "".join(f'<a href="../{name}#sha256=00">{name}</a>' for name, _ in FILES)
        (tmp_path / "tiny-lib/index.html").write_text(links)
        source = Index(urls=(tmp_path.as_uri(),))
    else:
        source = Index(urls=(), find_links=(tmp_path.as_uri(), (tmp_path / "absent").as_uri()))
    assert listing_of(source, "tiny_lib").versions() == ["1.0", "2.0", "9.0", "10.0"]
