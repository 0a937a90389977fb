"""Which mounts of layers are hidden: read from mountinfo as proc(5) has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.engine import hidden_layers
from sandbox.engine.hidden_layers import complains_of_one, hidden, take_away_hidden_layers

LAYERS = "/var/lib/ann/.local/share/containers/storage/overlay"
ONE, TWO = ("ab" * 32, "cd" * 32)
ROOT = "65 1 254:0 / / rw,relatime - ext4 /dev/vda rw"


def bind(number: int, parent: int) -> str:
    return f"{number} {parent} 254:0 {LAYERS} {LAYERS} rw,relatime - ext4 /dev/vda rw,discard"


def merged(number: int, parent: int, layer: str = ONE) -> str:
    place = f"{LAYERS}/{layer}/merged"
    return f"{number} {parent} 0:39 / {place} rw,relatime - overlay overlay rw,lowerdir=l/A:l/B,upperdir={layer}/diff"


def mounts(*lines: str) -> str:
    return "\n".join((ROOT, *lines, ""))


def test_a_mount_below_the_one_that_covers_its_directory_is_hidden() -> None:
    assert hidden(mounts(merged(89, 65), bind(90, 65)), LAYERS) == (f"{LAYERS}/{ONE}/merged",)
    assert hidden(mounts(bind(90, 65), merged(89, 65)), LAYERS) == (f"{LAYERS}/{ONE}/merged",), "in any order"
    twice = mounts(bind(80, 65), merged(89, 80), bind(90, 80), merged(91, 90, TWO))
    assert hidden(twice, LAYERS) == (f"{LAYERS}/{ONE}/merged",)


def test_what_can_be_seen_is_not_hidden() -> None:
    assert hidden(mounts(), LAYERS) == ()
    assert hidden(mounts(merged(89, 65)), LAYERS) == ()
    assert hidden(mounts(bind(90, 65), merged(89, 90), merged(91, 90, TWO)), LAYERS) == ()


def test_other_mounts_are_left_alone() -> None:
    others = (f"89 65 0:39 / {LAYERS}/{ONE}/diff rw - tmpfs t rw", "88 65 0:39 / /mnt rw - tmpfs t rw", "", "x")
    assert hidden(mounts(*others, bind(90, 65)), LAYERS) == ()
    assert hidden(mounts(merged(89, 65), bind(90, 65)), LAYERS.replace("ann", "bob")) == ()


def test_podmans_complaint_is_known_from_others() -> None:
    assert complains_of_one(f"mounting storage: unlinkat {LAYERS}/{ONE}/merged: device or resource busy")
    assert not complains_of_one(f"unlinkat {LAYERS}/{ONE}/merged: permission denied")
    assert not complains_of_one("device or resource busy")


@pytest.mark.parametrize("path", ["/usr/bin:/bin", "/nowhere"], ids=["a namespace that refuses", "no nsenter"])
def test_where_it_can_t_be_done_nothing_is_raised_and_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    runtime = tmp_path / "run"
    (runtime / "libpod/tmp").mkdir(parents=True)
    (runtime / "libpod/tmp/pause.pid").write_text(str(os.getpid()))  # nobody enters the namespace that they are in
    monkeypatch.setattr(hidden_layers, "user_runtime_dir", lambda: runtime)
    monkeypatch.setattr(hidden_layers, "scrubbed_environment", lambda: {"PATH": path})
    monkeypatch.setattr(hidden_layers, "hidden", lambda _mountinfo, layers: (f"{layers}/{ONE}/merged",))
    assert take_away_hidden_layers(tmp_path)
    assert [entry.name for entry in runtime.iterdir()] == ["libpod"]
