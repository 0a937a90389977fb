"""An index that wants a login.

It is taken from where pip takes it, told in words when it is wrong, and found nowhere else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.desk import Desk, desk, index, shared_images
from tests.integration.package_index import PackageIndex, wheel

__all__ = ["desk", "index", "shared_images"]  # fixtures

pytestmark = pytest.mark.podman
PASSWORD = "s3cr3t/@:x"


@pytest.fixture
def guarded(index: PackageIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PackageIndex:
    """Give an index whose login is in no file yet; $NETRC names one that is not there."""
    index.add(wheel("tiny", "1.0", {"tiny.py": "X = 1\n"}))
    index.login = f"ada:{PASSWORD}"
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return index


def everything_kept(desk: Desk) -> str:
    kept = [path for top in (desk.places.cache_dir, desk.places.data_dir) for path in top.rglob("*") if path.is_file()]
    return "".join(path.read_bytes().decode("latin-1") for path in kept)


def test_a_login_in_netrc_is_used_and_kept_nowhere(desk: Desk, guarded: PackageIndex, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login ada password {PASSWORD}\n")
    assert desk.value("import tiny\nresult = tiny.X", "tiny") == 1
    kept = everything_kept(desk)
    assert "tiny" in kept
    assert "s3cr3t" not in kept
    # The control: without the login, nobody gets anything.
    (tmp_path / "netrc").unlink()
    assert "HTTP status 401" in desk.failure("tiny>=1").message


@pytest.mark.parametrize(
    "netrc", ["", "machine 127.0.0.1 login ada password wrong-s3cr3t\n", "machine other.test login ada password x\n"]
)
def test_a_missing_or_wrong_login_is_not_a_matter_of_spelling(
    desk: Desk, guarded: PackageIndex, tmp_path: Path, netrc: str
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    error = desk.failure("tiny")
    assert "refuses access" in error.message
    assert "netrc" in error.hint
    assert "spelling" not in str(error)
    assert "s3cr3t" not in str(error) + str(error.facts)


def test_a_file_that_wants_a_login_names_the_login(desk: Desk, guarded: PackageIndex, tmp_path: Path) -> None:
    """The page is open, the files are not: the refusal comes from inside the sandbox."""
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login ada password {PASSWORD}\n")
    desk.lock("tiny")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password other\n")
    error = desk.failure("tiny")
    assert "spelling" not in str(error)
    assert "user name and password" in error.hint
