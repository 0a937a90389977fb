"""Which versions an index has, asked over HTTP and read from directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.index import Index
from sandbox.published import published_versions
from tests.integration.package_index import package_index, sdist, wheel

FILES = [
    wheel("Tiny_Lib", "1.0", {}), wheel("Tiny_Lib", "2.0", {}, tag="cp36-cp36m-linux_x86_64"), wheel("Tiny_Lib", "3.0b1", {}),
    sdist("tiny_lib", "10.0"), sdist("tiny_lib", "9.0"),
]  # fmt: skip


def test_versions_are_those_of_all_files_in_their_order_without_prereleases() -> None:
    with package_index() as index:
        index.add(*FILES)
        here = Index(urls=(index.url,))
        assert published_versions(here, "tiny.lib") == ["1.0", "2.0", "9.0", "10.0"]
        assert published_versions(here, "tiny-lib", python=(3, 11)) == ["1.0"]
        assert published_versions(here, "other") == []


def test_an_index_that_does_not_answer_has_nothing() -> None:
    with package_index() as index:
        url = index.url
    assert published_versions(Index(urls=(url,)), "tiny-lib") == []


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
    assert published_versions(source, "tiny_lib") == ["1.0", "2.0", "9.0", "10.0"]
