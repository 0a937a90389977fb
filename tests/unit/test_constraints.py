"""The constraints of pip's configuration, as the files say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.environment.constraints import read_constraints
from sandbox.errors import InvalidRequest


def test_files_are_read_in_their_order_with_comments_and_a_mark(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_bytes(b"\xef\xbb\xbf# ours\nTiny < 2  # for now\n")
    second.write_text('numpy==1.26.4; python_version < "3.13"\n')
    assert read_constraints([first, second]) == ("tiny<2", 'numpy==1.26.4; python_version < "3.13"')
    assert read_constraints([]) == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read: No such file or directory"),
        (b"\xff\xfe\x00", "can't be read: they are not UTF-8 text"),
        (b"tiny<2\n--index-url https://x.test\n", "c.txt:2: the option '--index-url' is not taken"),
        (b"tiny==1 --hash=sha256:" + b"0" * 64, "have hashes, for tiny==1"),
    ],
)
def test_what_can_not_be_followed_is_refused_in_words(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "c.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        read_constraints([path])
    assert words in caught.value.message
    assert caught.value.hint
