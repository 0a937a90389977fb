"""Builds for attacks: the product's own path, on an index that the test serves and with the test's own cache.

Whatever a build refuses, `Builds.refused` also looks that nothing of it is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import stat
import subprocess
import tempfile
import textwrap
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sandbox import places
from sandbox.environment import installation
from sandbox.environment.identity import LABEL_BUILD, InstalledEnvironment
from sandbox.environment.lock import Lock
from sandbox.environment.locked_package import LockedFile, LockedPackage
from sandbox.errors import SandboxError
from sandbox.models import RunRequest, RunResult
from sandbox.run.decision import Run
from tests.escape.bench import Bench
from tests.integration.package_index import PackageIndex, sdist
from tests.waiting import SLOWER

# Small limits, so that reaching them is cheap; the index is on loopback.
BUILD = {
    "allow_addresses": ["127.0.0.1"], "timeout_s": 20 * SLOWER, "memory_mib": 512, "processes": 48,
    "download_mib": 32, "installed_mib": 32, "files_count": 500,
}  # fmt: skip # a table
SYMLINK = stat.S_IFLNK | 0o777


@dataclass(kw_only=True)
class Builds:
    """Builds environments with a cache, a store and an index of their own."""

    bench: Bench
    index: PackageIndex
    top: Path

    @property
    def cache(self) -> Path:
        """Where wheels, trees and unfinished builds lie."""
        return self.bench.places.cache_dir

    def policy(self, **build: Any) -> str:
        """Write a policy whose section [build] has small limits and these; return its name."""
        # A rule of its own makes the images differ from those of other processes' tests.
        values = {**BUILD, "allow": ["@index", f"{self.top.name.replace('_', '0')}.invalid:1"], **build}
        return self.bench.policy_with(**{f"build__{key}": value for key, value in values.items()})

    def request(self, *requirements: str, policy: str = "", code: str = "result = 1", **fields: Any) -> RunRequest:
        """Return a request that needs libraries."""
        return self.bench.request(code, requirements=requirements, policy=policy or self.policy(), **fields)

    def build(self, *requirements: str, policy: str = "", lock: Lock | None = None) -> InstalledEnvironment:
        """Build an environment as the product does."""
        request = self.request(*requirements, policy=policy)
        return asyncio.run(self.bench.runner().build(request, lambda _: None, lock=lock))

    def run(self, *requirements: str, code: str, policy: str = "", **fields: Any) -> RunResult:
        """Run a program with libraries as the product does."""
        return asyncio.run(
            self.bench.runner().run(Run(request=self.request(*requirements, policy=policy, code=code, **fields)))
        )

    def refused(
        self,
        *requirements: str,
        policy: str = "",
        lock: Lock | None = None,
        codes: Collection[str] = frozenset({"build_failed"}),
    ) -> SandboxError:
        """Return why a build is refused. Fails the test when it is not, or when something of it is left."""
        policy = policy or self.policy()
        before, images = self.kept(), self.images(policy)
        with pytest.raises(SandboxError) as caught:
            self.build(*requirements, policy=policy, lock=lock)
        assert caught.value.code in codes, f"another error: {caught.value!r}"
        self.assert_nothing_left(before)
        assert self.images(policy) == images
        return caught.value

    def assert_nothing_left(self, before: set[Path]) -> None:
        """Fail when there is a tree, half a file, or a wheel under another hash than its own, that is new."""
        new = self.kept() - before
        assert {path for path in new if path.suffix != ".whl"} == set()
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in new)
        assert not list((self.cache / "builds").glob("*"))

    def kept(self) -> set[Path]:
        """Return every file of the wheel cache, the trees and the store."""
        tops = (self.cache / "wheels", self.cache / "trees", self.bench.places.data_dir / "environments")
        return {path for top in tops for path in top.rglob("*") if path.is_file()}

    def images(self, policy: str) -> set[str]:
        """Return the ids of all images of environments that were built under a policy."""
        error, label = "", f"{LABEL_BUILD}={self.bench.policy(policy).build_hash}"
        for _ in range(10):
            said = subprocess.run(
                ["podman", "images", "--quiet", "--no-trunc", "--filter", f"label={label}"],
                capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
            )  # fmt: skip # a command line
            if said.returncode == 0:  # it fails when another process removes an image meanwhile
                return set(said.stdout.split())
            error = said.stderr
        raise AssertionError(error)

    def lock_of(self, *archives: tuple[str, bytes], python: str = "3.11", **changes: str) -> Lock:
        """Publish archives and return the lock that names them, as if they had been resolved.

        `changes` are those of each file.
        """
        self.index.add(*archives)
        packages = []
        for name, content in archives:
            kind = "wheel" if name.endswith(".whl") else "sdist"
            package, version = name.removesuffix(".tar.gz").split("-")[:2]
            file = {
                "name": name,
                "url": f"{self.index.url.removesuffix('/simple')}/files/{name}",
                "sha256": hashlib.sha256(content).hexdigest(),
                "kind": kind,
                **changes,
            }
            packages.append(LockedPackage(name=package, version=version, file=LockedFile(**file)))  # type: ignore[arg-type]
        packages.sort(key=lambda one: one.name)
        names = tuple(package.name for package in packages)
        return Lock(packages=tuple(packages), python=python, requirements=names)

    def wheel_refused(self, *archives: tuple[str, bytes], policy: str = "") -> SandboxError:
        """Return why an environment of exactly these archives is refused."""
        lock = self.lock_of(*archives)
        return self.refused(*lock.requirements, policy=policy, lock=lock)

    def wheel_built(self, *archives: tuple[str, bytes], policy: str = "") -> InstalledEnvironment:
        """Build an environment of exactly these archives."""
        lock = self.lock_of(*archives)
        return self.build(*lock.requirements, policy=policy, lock=lock)

    def value_in(self, built: InstalledEnvironment, code: str) -> Any:
        """Run a program in an environment that was built; return its result."""
        return self.bench.value(code, image=built.name)


def own_builds(bench: Bench, index: PackageIndex) -> Builds:
    """Return builds with empty directories below the user's cache: hard links need one file system."""
    top = Path(tempfile.mkdtemp(prefix="tests-", dir=places.cache_dir()))
    where = replace(bench.places, cache_dir=places.private_directory(top / "cache"), data_dir=top / "data")
    return Builds(bench=replace(bench, places=where), index=index, top=top)


# ---------------------------------------------------------------- what no build tool would make


def hostile_wheel(
    name: str,
    entries: Mapping[str, str | bytes] | list[tuple[str, str | bytes]],
    *,
    modes: Mapping[str, int] | None = None,
    record: str | None = None,
    metadata: tuple[str, str] | None = None,
) -> tuple[str, bytes]:
    """Return a wheel NAME 1.0 with entries under any name and mode (type bits included), as often as they are listed.

    `metadata` is another (name, version) than the file's own; `record` replaces the list of files.
    """
    info = f"{name}-1.0.dist-info"
    inside = metadata or (name, "1.0")
    rows = list(entries.items()) if isinstance(entries, Mapping) else entries
    rows = [
        *rows,
        (f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {inside[0]}\nVersion: {inside[1]}\n"),
        (f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
    ]
    listed = "".join(f"{path},,\n" for path in (*dict(rows), f"{info}/RECORD") if path.isprintable())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for path, body in [*rows, (f"{info}/RECORD", listed if record is None else record)]:
            entry = zipfile.ZipInfo(path)
            entry.create_system = 3
            entry.external_attr = (modes or {}).get(path, stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, body)
    return f"{name}-1.0-py3-none-any.whl", buffer.getvalue()


def zeros_wheel(name: str, size_mib: int) -> tuple[str, bytes]:
    """Return a small wheel whose one file is as large as asked for when it is unpacked."""
    file, plain = hostile_wheel(name, {f"{name}.py": ""})
    buffer = io.BytesIO(plain)
    with (
        zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.bin", "w", force_zip64=True) as target,
    ):
        for _ in range(size_mib):
            target.write(bytes(1 << 20))
    return file, buffer.getvalue()


def probing_sdist(name: str, code: str) -> tuple[str, bytes]:
    """Return a source archive whose build runs `code`; what that puts into the dict `found` is FOUND of the module."""
    put_in = """
found = {}
writestr = zipfile.ZipFile.writestr
def with_found(archive, path, text, *more):
    writestr(archive, path, f"FOUND = {found!r}" if path.endswith(".py") else text, *more)
zipfile.ZipFile.writestr = with_found
"""
    return sdist(name, "1.0", code=textwrap.indent(put_in + textwrap.dedent(code), "    ").strip())


# ---------------------------------------------------------------- sandboxes that lie


FORGE = """
channel = log.__self__._channel._socket
def forge(kind, body=b""):
    channel.send(kind + body)
def forge_file(name, content, size=None):
    forge(b"F", (len(content) if size is None else size).to_bytes(8, "big") + name.encode())
    for start in range(0, len(content), 60_000):
        forge(b"f", content[start : start + 60_000])
"""


def hostile_step(patch: pytest.MonkeyPatch, directory: Path, step: str, code: str) -> None:
    """Let `code` run in one step's sandbox instead of the program of ours; the other steps do as they should."""
    program = directory / "hostile_program.py"
    indented = "\n".join(f"    {line}" for line in code.strip("\n").splitlines())
    program.write_text(
        f"{FORGE}\nHONEST = {installation.PROGRAM.read_text()!r}\n"
        f"if payload['step'] == {step!r}:\n{indented}\nelse:\n    exec(HONEST, globals())\n"
    )
    patch.setattr(installation, "PROGRAM", program)
