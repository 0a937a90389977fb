from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.index.pip_config import as_pip_environment, read_index

LOGIN = "machine index.test login ada password s3cret/:@\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".netrc").write_text(LOGIN)
    (tmp_path / ".netrc").chmod(0o600)
    return tmp_path


def urls(home: Path, url: str = "https://index.test/simple", **environ: str) -> tuple[str, ...]:
    return read_index({"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": url, **environ}, home, home).urls


def test_the_login_of_an_index_is_read_from_netrc_as_pip_reads_it(home: Path) -> None:
    assert urls(home) == ("https://ada:s3cret%2F%3A%40@index.test/simple",)
    assert urls(home, "https://index.test:8443/simple") == ("https://ada:s3cret%2F%3A%40@index.test:8443/simple",)
    links = read_index(
        {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "https://index.test/all", "PIP_NO_INDEX": "1"}, home, home
    )
    assert links.find_links == ("https://ada:s3cret%2F%3A%40@index.test/all",)


def test_a_login_in_the_address_and_other_hosts_stay_as_they_are(home: Path) -> None:
    for url in ("https://bob:own@index.test/simple", "https://token@index.test/simple", "https://other.test/simple"):
        assert urls(home, url) == (url,)
    assert urls(home, "file:///srv/index") == ("file:///srv/index",)


def test_the_variable_names_another_file_and_then_no_other_counts(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "logins"
    other.write_text("default login eve password x\n")
    assert urls(home, NETRC=str(other)) == ("https://eve:x@index.test/simple",)
    assert urls(home, NETRC="~/logins") == ("https://eve:x@index.test/simple",)
    assert urls(home, NETRC=str(tmp_path / "absent")) == ("https://index.test/simple",)


@pytest.mark.parametrize("text", [b"machine", b"nonsense \xff\xfe"])
def test_a_file_that_is_none_says_nothing_as_for_pip(home: Path, text: bytes) -> None:
    (home / ".netrc").write_bytes(text)
    assert urls(home) == ("https://index.test/simple",)


def test_a_login_goes_along_when_root_becomes_another_user_and_is_shown_to_nobody(home: Path) -> None:
    index = read_index({"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "https://index.test/simple"}, home, home)
    assert "s3cret" in as_pip_environment(index)["PIP_INDEX_URL"]
    assert "s3cret" not in repr(index) + str(index.public().urls)
