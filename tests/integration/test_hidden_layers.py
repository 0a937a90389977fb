"""A layer that a killed Podman has left below the mount of all layers: it costs nobody a run."""

from __future__ import annotations

import asyncio
import fcntl
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import places
from sandbox.engine import podman
from sandbox.engine.hidden_layers import hidden, take_away_hidden_layers
from sandbox.engine.podman import PodmanEngine
from sandbox.errors import EngineUnavailable
from sandbox.host.facts import HostFacts
from sandbox.models import Outcome, RunResult
from sandbox.run.decision import Follow, Run
from tests.escape.bench import Bench
from tests.fake_engine import BASE

# In the namespace of this user's Podman: $1 is the directory of the layers, $2 a place outside, $3 one layer.
HIDE = """
if mount --no-mtab --move "$1" "$2"; then covered=yes; fi
mkdir -p "$1/$3/merged" "$1/$3/work" "$1/$3/diff" && mount --no-mtab -t tmpfs none "$1/$3/merged"
if [ "$covered" ]; then mount --no-mtab --move "$2" "$1"; else mount --no-mtab --bind "$1" "$1"; fi
"""
SEE = "cat /proc/self/mountinfo"


def inside(script: str, *arguments: str) -> str:
    """Return what a script prints in the namespace of this user's Podman."""
    pause = (places.user_runtime_dir() / "libpod/tmp/pause.pid").read_text()
    command = [
        "nsenter",
        "--target",
        pause,
        "--user",
        "--preserve-credentials",
        "--mount",
        "--",
        "sh",
        "-c",
        script,
        "sh",
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=30, check=False, cwd="/")
    return done.stdout


@pytest.fixture
def lose(bench: Bench, host_facts: HostFacts, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Give what leaves a layer as a Podman does that is killed while it makes one, and returns its mount."""
    root = host_facts.engine.graph_root
    layers, known = root / "overlay", root / "overlay-layers/layers.json"
    aside = tmp_path / "aside"
    aside.mkdir()
    bench.engine.image(BASE)  # Podman has run, and so its namespace is there

    def go() -> str:
        name = secrets.token_hex(32)
        inside(HIDE, str(layers), str(aside), name)
        with (root / "overlay-layers/layers.lock").open("r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            rows = [*json.loads(known.read_text()), {"id": name, "flags": {"incomplete": True}}]
            changed = known.with_suffix(".new")
            changed.write_text(json.dumps(rows))
            changed.rename(known)
            lock.write(secrets.token_bytes(64))  # who wrote last: the others read it again
        return f"{layers}/{name}/merged"

    yield go
    assert hidden(inside(SEE), str(layers)) == ()


@pytest.fixture
def engine(host_facts: HostFacts) -> Iterator[PodmanEngine]:
    engine = PodmanEngine(host_facts.engine, runtime_dir=places.runtime_dir())
    yield engine
    engine.close()


def test_a_new_podman_meets_none(lose: Callable[[], str], engine: PodmanEngine) -> None:
    place = lose()
    assert hidden(inside(SEE), str(Path(place).parents[1])) == (place,)
    assert engine.image(BASE).id
    assert not Path(place).parent.exists(), "Podman has removed the layer"


def test_one_that_goes_on_repeats_what_failed(lose: Callable[[], str], engine: PodmanEngine) -> None:
    assert engine.images()
    place = lose()
    assert engine.images()
    assert not Path(place).parent.exists()


def test_left_where_it_is_it_fails_every_call(
    lose: Callable[[], str], engine: PodmanEngine, host_facts: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = lose()
    with monkeypatch.context() as patch:
        patch.setattr(podman, "take_away_hidden_layers", lambda _root: ())
        with pytest.raises(EngineUnavailable, match="merged: device or resource busy"):
            engine.images()
    assert take_away_hidden_layers(host_facts.engine.graph_root) == (place,)
    assert engine.images()
    assert not Path(place).parent.exists()


def test_what_containers_have_mounted_stays(lose: Callable[[], str], bench: Bench, engine: PodmanEngine) -> None:
    def mounted() -> set[str]:
        return {line.split()[4] for line in inside(SEE).splitlines() if line.split()[4].endswith("/merged")}

    def look() -> tuple[set[str], set[str]]:
        before = mounted()
        lose()
        assert engine.images()
        return before, mounted()

    async def observed() -> tuple[RunResult, set[str], set[str]]:
        loop, cancel = asyncio.get_running_loop(), asyncio.Event()
        prints = loop.create_future()

        def on_output(_kind: str, _data: bytes) -> None:
            if not prints.done():
                prints.set_result(None)

        follow = Follow(output=on_output)
        request = bench.request("import time\nprint('x', flush=True)\ntime.sleep(600)")
        run = asyncio.ensure_future(bench.runner().run(Run(request=request, follow=follow), cancel=cancel))
        await prints
        before, after = await asyncio.to_thread(look)
        cancel.set()
        return await run, before, after

    ended, before, after = asyncio.run(observed())
    assert ended.outcome is Outcome.CANCELLED
    assert before == after
    assert before
