"""What goes into the machine: the project's wheel, images, the tests, and which of its users runs which of them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from sandbox import places
from sandbox.image import admission as image
from tests.e2e.libraries import EVERYTHING
from tests.vm import disk, emulator, storage

# Under emulation everything takes this many times as long; time limits of tests grow with it.
SLOWER = {"kvm": 1, "tcg": 8}
KERNEL_TIER = "tests/kernel"
ESCAPE = "tests/escape"
EVENS_OUT = tuple(f"tests/escape/test_{name}.py" for name in ("cells_more", "verification", "processes", "file_locks"))
EXAMPLES = "tests/e2e"
NOT_HERE = "host_only"
BASE_IMAGE = f"{image.REPOSITORY}:latest"
LEFT_OUT = {".git", "build", "dist", "node_modules", "__pycache__", ".venv", ".hypothesis"}


def not_here() -> list[str]:
    """Return the files of tests of which none is for the machine: to import them takes it half of a minute."""
    marked = re.compile(rf"^pytestmark = .*\b{NOT_HERE}\b", re.MULTILINE)
    files = sorted((disk.CHECKOUT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(disk.CHECKOUT)) for path in files if marked.search(path.read_text())]


def sessions(arguments: list[str]) -> dict[str, list[str]]:
    """Return what pytest is told, for each user of the machine who has something to do.

    `tester`, whom sudo asks for no password, gets the kernel tier and `colleague` the other tests, but for those that
    would keep it at work when `tester` is done. They work at the same time: each has a Podman of its own, so that
    neither finds what the other has left, and one alone keeps one processor busy.
    """
    paths = [argument for argument in arguments if argument.startswith("tests/")]
    options = [argument for argument in arguments if argument not in paths]
    shares = {
        "tester": [path for path in paths if path.startswith(KERNEL_TIER)],
        "colleague": [path for path in paths if not path.startswith(KERNEL_TIER)],
    }
    if {KERNEL_TIER, ESCAPE} <= set(paths):
        shares["tester"] += EVENS_OUT
        shares["colleague"] += [f"--ignore={path}" for path in EVENS_OUT]
    if f"not {NOT_HERE}" in options:
        shares["colleague"] += [f"--ignore={path}" for path in not_here()] if shares["colleague"] else []
    return {user: [*share, *options] for user, share in shares.items() if share}


def save(name: str, target: Path, layout: str) -> None:
    """Save an image of this host in one of Podman's layouts."""
    command = ["podman", "save", "--quiet", "--format", layout, "--output", str(target), name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd="/", stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise emulator.MachineFailed(
            f"the image {name} can't be saved: {done.stderr.strip()[-300:]}; run: sandbox image bootstrap"
        )


def libraries(base: Path, images: Path) -> list[tuple[Path, str]]:
    """Build, on this host, the environment that the examples need: the machine has no index.

    Write it to the disk `images`, with the saved base image, and return where its lock lies and where it belongs.
    """
    command = [sys.executable, "-m", "sandbox", "env", "build", "--json"]
    command += [word for name in EVERYTHING for word in ("--with", name)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL)
    if built.returncode != 0:
        raise emulator.MachineFailed(f"the libraries of the examples can't be installed: {built.stderr.strip()[-500:]}")
    if not images.exists():
        name, saved = json.loads(built.stdout)["image"], images.with_name("libraries")
        # In this layout Podman leaves out the layers that it has, which are those of the base image.
        save(name, saved, "docker-dir")
        sources = {BASE_IMAGE: f"docker-archive:{base}", name: f"dir:{saved}"}
        storage.write(images, sources, images.parent)
    # What was found in the images' files as well: to read them all takes the machine half of a minute. The others admit
    # the base image there.
    verdicts = [(path, f"cache/{path.name}") for path in places.cache_dir().glob("image-*.json")]
    return [*((places.data_dir() / name, f"data/{name}") for name in ("locks", "environments")), *verdicts]


def pack(target: Path, wheel: Path, scratch: Path, arguments: list[str], accelerator: str) -> None:
    """Write the second disk: a tar file with all that `job.sh` reads."""
    saved = scratch / "base-image.tar"
    if not saved.exists():
        save(BASE_IMAGE, saved, "docker-archive")

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(entry.name).name in LEFT_OUT or entry.name.endswith("_cache") else entry

    with tarfile.open(target, "w") as archive:
        for name in ("tests", "pyproject.toml", "policies", "README.md", "docs"):  # tests read the pages, too
            archive.add(disk.CHECKOUT / name, arcname=name, filter=kept)
        archive.add(wheel, arcname=wheel.name)
        archive.add(saved, arcname=saved.name)
        if any(EXAMPLES in argument for argument in arguments):
            for path, name in libraries(saved, target.with_name(emulator.IMAGES)):
                archive.add(path, arcname=name)
        texts = {"slower": str(SLOWER[accelerator]), "ci": os.environ.get("CI", "")}
        texts |= {f"arguments-{user}": "\n".join(told) for user, told in sessions(arguments).items()}
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    # A disk is whole sectors.
    os.truncate(target, -(-target.stat().st_size // 4096) * 4096)
