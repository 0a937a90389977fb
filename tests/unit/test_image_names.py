from __future__ import annotations

import pytest

from sandbox.errors import InvalidRequest
from sandbox.image.admission import resolve

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("jupyter/scipy-notebook", "docker.io/jupyter/scipy-notebook:latest"),
        ("docker.io/python:3", "docker.io/library/python:3"),
        ("index.docker.io/library/python:3", "docker.io/library/python:3"),
        ("ghcr.io/owner/image:v1", "ghcr.io/owner/image:v1"),
        ("127.0.0.1:5000/python", "127.0.0.1:5000/python:latest"),
        ("localhost/sandbox-python", "localhost/sandbox-python:latest"),
        ("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x"),
        (f"python@{DIGEST}", f"docker.io/library/python@{DIGEST}"),
        (f"ghcr.io/o/i:v1@{DIGEST}", f"ghcr.io/o/i:v1@{DIGEST}"),
    ],
)
def test_a_name_resolves_as_people_expect(reference: str, full: str) -> None:
    assert resolve(reference) == full


def test_resolving_twice_changes_nothing() -> None:
    for reference in ("python", "a/b:1", f"x@{DIGEST}", "localhost/y"):
        assert resolve(resolve(reference)) == resolve(reference)


@pytest.mark.parametrize(
    "reference",
    [
        "",
        " ",
        "Python",
        "docker.io/Python",
        "FOO/bar",
        "a b",
        "a:",
        "a@sha256:12",
        "../x",
        "/x",
        "x/",
        "x//y",
        "-x",
        "http://example.org/x",
        "x\n",
        "x\0",
        "docker-archive:/etc/passwd",
        "oci:/tmp/x",
        "dir:/etc",
        "a" * 600,
        "ab" * 32,
        DIGEST,
        "x:" + "y" * 129,
        "x:-y",
    ],
)
def test_what_is_no_name_is_refused_in_words(reference: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(reference)
    assert caught.value.hint
    assert len(caught.value.message) < 300
