"""Our own files that the engine mounts or reads, kept in the cache and named by their content.

The harness directory is what sandboxes see at `/run/sandbox/lib`; the seccomp file is what the runtime reads.
"""

from __future__ import annotations

import ast
import hashlib
import os
import py_compile
import shutil
import tempfile
from pathlib import Path

from sandbox.container.spec import HOSTS, HOSTS_FILE
from sandbox.errors import EngineUnavailable
from sandbox.inside.harness.handing_on import STARTUP
from sandbox.policy.seccomp import SeccompProfile

HARNESS = Path(__file__).parents[1] / "inside/harness"
CHILD = HARNESS / "child_start.py"
OWN = "sandbox.inside.harness."


def harness_source() -> str:
    """Return the harness's modules as one file, in import order: a package takes 1.1 ms longer to start."""
    return joined(HARNESS / "main.py")


def startup_source() -> str:
    """Return the start-up code of the Python processes that a program starts, likewise."""
    return joined(CHILD)


def joined(first: Path) -> str:
    """Return a module, after those of the harness that it imports, as one file."""
    order: dict[str, str] = {}

    def add(path: Path) -> None:
        if path.name in order:
            return
        text = path.read_text()
        lines = text.splitlines(keepends=True)
        for node in ast.parse(text).body:
            from_module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if from_module.startswith(OWN):
                add(HARNESS / f"{from_module[len(OWN) :]}.py")
            if from_module.startswith((OWN, "__future__")):
                lines[node.lineno - 1 : node.end_lineno] = ["\n"] * ((node.end_lineno or node.lineno) - node.lineno + 1)
        order[path.name] = f"# ---- {path.name}\n" + "".join(lines)

    add(first)
    return "\n".join(["from __future__ import annotations", *order.values()])


def write_sources(directory: Path) -> None:
    """Write the harness, the start-up code of a program's processes and the names of hosts. Raises OSError."""
    (directory / STARTUP).mkdir()
    (directory / "harness.py").write_text(harness_source())
    (directory / STARTUP / "sitecustomize.py").write_text(startup_source())
    (directory / HOSTS_FILE).write_text(HOSTS)


def harness_directory(cache_dir: Path) -> Path:
    """Return a directory with this version's harness, made once and named by its content.

    The byte code serves images with this host's Python version; others compile the source at each start (~15 ms).
    """
    version = hashlib.sha256(HOSTS.encode())
    for path in (Path(__file__), *sorted(HARNESS.glob("*.py"))):
        version.update(path.read_bytes())  # joining them takes a hundred times as long
    directory = cache_dir / f"harness-{version.hexdigest()[:16]}"
    if directory.is_dir():
        return directory
    try:
        temporary = Path(tempfile.mkdtemp(dir=cache_dir, prefix="harness-new-"))
        write_sources(temporary)
        for name in ("harness.py", f"{STARTUP}/sitecustomize.py"):
            # Unchecked: the file in the sandbox has other times, and nobody inside can change it.
            py_compile.compile(
                str(temporary / name),
                dfile=f"/run/sandbox/lib/{name}",
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    except OSError as error:
        raise EngineUnavailable(
            f"the harness can't be stored in {cache_dir}: {error.strerror}",
            hint="free some space there, then try again",
        ) from None
    try:
        os.rename(temporary, directory)  # noqa: PTH104 - atomic, fails when another process was first
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def seccomp_file(profile: SeccompProfile, cache_dir: Path) -> Path:
    """Return a file with exactly the linted text of `profile`, written when there is none yet."""
    known = cache_dir / f"seccomp-{profile.name}-{profile.sha256[:16]}.json"
    try:
        if known.read_text() == profile.text:
            return known
    except OSError:
        pass
    return profile.write_to(cache_dir)
