"""Layers whose mount lies hidden under a later one: Podman can't remove them, and each call fails after 10 s.

While it runs, Podman has the directory of its layers mounted onto itself, and its layers below that. Killed at the
wrong moment, it leaves a layer's mount from before, and the next Podman covers that (seen with Podman 4.3: `Found
incomplete layer`, then `unlinkat …/merged: device or resource busy`). `podman system migrate` helps, and ends every
container; this uncovers the mount for a moment, and takes it away.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from pathlib import Path

from sandbox.engine.program import scrubbed_environment
from sandbox.places import user_runtime_dir

TIMEOUT_S = 10.0
# $1 is the directory of the layers, $2 a place outside, the others are the mounts that $1 hides. What containers have
# mounted lies below $1, and moves with it.
UNCOVER = """
layers="$1" aside="$2"
shift 2
mount --no-mtab --move "$layers" "$aside" || exit
for hidden do umount --no-mtab --lazy "$hidden"; done
mount --no-mtab --move "$aside" "$layers"
"""


def hidden(mountinfo: str, layers: str) -> tuple[str, ...]:
    """Return the mounts of layers below the directory `layers` that a later mount of that directory hides.

    `mountinfo` is a process's, in the form of proc(5). A mount that can be seen lies on the one that covers the
    directory; a hidden one lies on what that lies on.
    """
    rows = [line.split(" ", 5)[:5] for line in mountinfo.splitlines() if line.count(" ") > 4]
    under = {parent for _, parent, _, _, place in rows if place == layers}
    layer = re.compile(rf"{re.escape(layers)}/[0-9a-f]{{64}}/merged")
    return tuple(place for _, parent, _, _, place in rows if parent in under and layer.fullmatch(place))


def complains_of_one(answer: str) -> bool:
    """Tell whether Podman failed because it could not remove a layer whose mount is hidden."""
    return re.search(r"unlinkat \S+/[0-9a-f]{64}/merged: device or resource busy", answer) is not None


def take_away_hidden_layers(graph_root: Path) -> tuple[str, ...]:
    """Try to unmount what is hidden in the namespace that this user's Podman works in; return which mounts those were.

    Nothing that a container uses is touched. Where it can't be done, Podman says what is wrong at its next call.
    """
    layers = str(graph_root / "overlay")
    try:
        pause = int((user_runtime_dir() / "libpod/tmp/pause.pid").read_text())
        found = hidden(Path(f"/proc/{pause}/mountinfo").read_text(), layers)
    except (OSError, ValueError):  # no Podman has run since the machine started, or it keeps no process
        return ()
    if not found:
        return ()
    with (
        contextlib.suppress(OSError, subprocess.SubprocessError),  # no nsenter, or one that hangs
        tempfile.TemporaryDirectory(dir=user_runtime_dir()) as aside,
    ):
        subprocess.run(
            ["nsenter", "--target", str(pause), "--user", "--preserve-credentials", "--mount", "--",
             "sh", "-c", UNCOVER, "sh", layers, aside, *found],
            env=scrubbed_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd="/",
        )  # fmt: skip # a command line
    return found
