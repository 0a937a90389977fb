"""Installing libraries: three steps, each an ordinary verified run in a sandbox of its own.

resolve (index only, through the egress proxy) -> fetch (the same) -> install (no network at all). What runs inside is
`sandbox.inside.install_program`; whatever it hands over is checked here.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from sandbox.channel.collector import FileSink
from sandbox.container.spec import Bind
from sandbox.container.standby import Egress, Setting
from sandbox.egress.rules import networks, rules_of
from sandbox.egress.splice import USED_UP
from sandbox.environment.constraints import read_constraints
from sandbox.environment.identity import Wanted
from sandbox.environment.lock import Lock, from_pylock
from sandbox.environment.locked_package import LockedPackage
from sandbox.environment.requirements import without_hashes
from sandbox.environment.resolution_failure import DOING, StepFailure, explained, last_lines, named
from sandbox.environment.wheel_tags import target_tags
from sandbox.errors import BuildFailed, Internal
from sandbox.index.files import file_addresses, name_of
from sandbox.index.links import hosts_of
from sandbox.index.pip_config import Index
from sandbox.models import EgressRecord, Outcome, RunRequest, RunResult
from sandbox.off_loop import run_off_loop
from sandbox.progress import Progress
from sandbox.run.decision import DecidedRun, Follow, Run

PROGRAM = Path(__file__).parents[1] / "inside/install_program.py"
TOOLS_DIR = "/run/sandbox/tools"
WHEELS_DIR = "/run/sandbox/wheels"
INDEX_DIR = "/run/sandbox/index"
CLIENT_FILE = "client.pem"
# A lock of a thousand packages with the hashes of all their files.
MAX_ANSWER_BYTES = 4 << 20
MAX_ERROR_CHARS = 20_000
# The time that a pattern takes grows with the square of what looks like one name or one gap.
LONG_RUN = re.compile(r"(\S{500})\S+|(\s{20})\s+")
Execute = Callable[[DecidedRun], Awaitable[RunResult]]
OnEgress = Callable[[str, Sequence[EgressRecord]], None]


class Installer:
    """Carries out the steps for one environment; `on_egress` is told, by step, what each asked the egress proxy for.

    `file_hosts` are the hosts ("host:port") that the index serves its files from.
    """

    def __init__(
        self, wanted: Wanted, execute: Execute, on_egress: OnEgress, *, index: Index, file_hosts: tuple[str, ...]
    ) -> None:
        self._wanted = wanted
        self._policy = wanted.policy
        self._on_progress = wanted.permitted.run.on_progress
        self._execute = execute
        self._on_egress = on_egress
        self._index = index
        self._file_hosts = file_hosts
        self._local = [(path, f"{INDEX_DIR}/{number}") for number, path in enumerate(index.local_paths)]

    # ---- the steps

    async def resolve(self) -> Lock:
        """Resolve what is wanted to a lock. Raises `BuildFailed` in the words of who asked."""
        requirements, allow_sdists = self._wanted.requirements, self._policy.build.allow_sdists
        constraints = await asyncio.to_thread(read_constraints, self._index.constraints)
        self._on_progress(Progress(step="resolving", text=", ".join(map(without_hashes, requirements))))
        said = await self._step(
            {
                "step": "resolve",
                "requirements": list(requirements),
                "constraints": list(constraints),
                "sdists": allow_sdists,
            },
            online=True,
            subject=requirements,
        )
        try:
            tags = tags_of(said)
            text = str(said["pylock"])
        except (KeyError, TypeError, ValueError, IndexError):
            raise Internal("the sandbox that resolved gave no lock", hint="report this") from None
        for path, inside in self._local:
            text = text.replace(f"file://{inside}/", f"{path.as_uri()}/")
        # In a thread, which others interrupt: a stranger's text may be the longest that is taken.
        lock = await asyncio.to_thread(
            from_pylock,
            text.encode(errors="replace"),
            tags=tags,
            requirements=requirements,
            allow_sdists=allow_sdists,
        )
        for package in lock.packages:
            if not self._reaches(package.file.url):
                raise BuildFailed(
                    f"the resolution has {package.name} {package.version} at {package.file.url[:200]}, "
                    "which is neither of the index nor in the policy's build.allow",
                    hint=f"policy {self._policy.name!r} says in build.allow where a build may connect to",
                )
        return lock

    async def fetch(self, packages: Sequence[LockedPackage], receive: Callable[[str, int], FileSink]) -> None:
        """Fetch the files of these packages into `receive`, and a wheel built of each source archive."""
        total = sum(package.file.size_bytes or 0 for package in packages) or None
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            self._on_progress(
                Progress(step="downloading", text=f"{len(packages)} packages", done_bytes=done, total_bytes=total)
            )

        addresses = await asyncio.gather(*(asyncio.to_thread(self._address, package) for package in packages))
        files = [
            {"name": package.file.name, "url": self._inside(address), "kind": package.file.kind}
            for package, address in zip(packages, addresses, strict=True)
        ]
        subject = [f"{package.name}=={package.version}" for package in packages]
        await self._step(
            {"step": "fetch", "files": files}, online=True, subject=subject, open_file=receive, count=count
        )

    async def install(
        self, wheels: Sequence[dict[str, Any]], directory: Path, receive: Callable[[str, int], FileSink]
    ) -> None:
        """Install wheels of `directory` into `receive`, as `N.tree`.

        Each wheel is `{"n", "name", "version", "sha256", "size_bytes"}`.
        """
        self._on_progress(Progress(step="installing", text=f"{len(wheels)} packages"))
        workers = max(1, math.ceil(self._policy.build.cpus))
        await self._step(
            {"step": "install", "wheels": list(wheels), "workers": workers},
            online=False,
            subject=[f"{wheel['name']}=={wheel['version']}" for wheel in wheels],
            open_file=receive,
            binds=(Bind(source=directory, destination=WHEELS_DIR),),
        )

    # ---- one step in a sandbox

    async def _step(
        self,
        payload: dict[str, Any],
        *,
        online: bool,
        subject: Sequence[str],
        open_file: Callable[[str, int], FileSink] | None = None,
        binds: tuple[Bind, ...] = (),
        count: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        request = RunRequest(
            code=PROGRAM.read_text(),
            filename=PROGRAM.name,
            policy=self._policy.name,
            payload_json=json.dumps({**payload, "index": self._index_inside(online=online)}).encode(),
            files={CLIENT_FILE: client} if online and (client := self._index.client_bytes()) else {},
        )
        permitted = replace(
            self._wanted.permitted,
            run=Run(request=request, follow=Follow(open_file=open_file)),
            policy=self._policy.build_policy(),
        )
        local = tuple(Bind(source=path, destination=inside) for path, inside in self._local) if online else ()
        setting = Setting(
            policy=permitted.policy,
            seccomp=permitted.seccomp,
            admitted=self._wanted.base,
            binds=(*tools(), *local, *binds),
            egress=self._egress(count) if online else None,
        )
        result = await self._execute(DecidedRun(permitted=permitted, setting=setting))
        if result.egress:
            self._on_egress(payload["step"], result.egress)
        text = result.result_json or b""
        if len(text) > MAX_ANSWER_BYTES:
            raise BuildFailed(
                f"{DOING[payload['step']]} {named(subject)} gave an answer of more than {MAX_ANSWER_BYTES >> 20} MiB",
                hint="ask for fewer libraries",
            )
        said = await run_off_loop(len(text), lambda: answer_in(text))
        return self._answer(result, said, payload["step"], subject)

    def _answer(
        self, result: RunResult, said: dict[str, Any] | None, step: str, subject: Sequence[str]
    ) -> dict[str, Any]:
        """Return what a step said, if it did. Raises `BuildFailed` with the reason of one that could not be done."""
        if result.outcome is not Outcome.SUCCEEDED:
            explanation = result.explanation.replace("limits.", "build.").removeprefix("the program ")
            raise BuildFailed(
                f"{DOING[step]} {named(subject)} {explanation}",
                hint=f"policy {self._policy.name!r} caps a build in its section [build]",
                outcome=result.outcome.value,
                output=last_lines(result.stderr.decode(errors="replace")),
                refused=refusals(result),
            )
        if said is None:
            raise Internal(f"the sandbox gave no answer to {step}", hint="report this")
        if "error" in said:
            raise explained(
                StepFailure(
                    text=bounded(str(said["error"])),
                    step=step,
                    subject=subject,
                    refused=refusals(result),
                    broken=broken(result),
                    used_up=used_up(result),
                    index=self._index,
                    policy=self._policy,
                    python=self._wanted.base.python_version,
                )
            )
        return said

    def _hosts(self) -> tuple[str, ...]:
        """Return what a build may connect to; `@index` in the policy means the hosts of the index and its files."""
        build, index = self._policy.build, self._index
        own = (*index.remote_hosts, *self._file_hosts) if "@index" in build.allow else ()
        return (*(rule for rule in build.allow if rule != "@index"), *own)

    def _reaches(self, url: str) -> bool:
        """Tell whether a build may fetch an address: of a host that it may connect to, or below a local source."""
        return bool(set(hosts_of([url])) & set(self._hosts())) or self._inside(url) != url

    def _address(self, package: LockedPackage) -> str:
        """Return where to fetch a file: a lock keeps its hash, and an index that has moved has another address."""
        url = package.file.url
        if self._reaches(url):
            return url
        found = file_addresses(self._index, package.name)
        return next((address for address in found if name_of(address) == package.file.name), url)

    def _egress(self, count: Callable[[int], None] | None) -> Egress:
        """Return the way out of a build."""
        from sandbox.egress.proxy import EgressCaps
        from sandbox.egress.rules import Allowlist
        from sandbox.egress.upstream import Upstream

        build = self._policy.build
        return Egress(
            allow=Allowlist(tuple(rules_of(self._hosts())), networks(build.allow_addresses), "build"),
            caps=EgressCaps(transfer_bytes=build.download_mib << 20, connections=10_000),
            upstream=Upstream(proxies=self._index.proxies, resolver=build.resolver),
            certificates=self._index.certificate,
            on_bytes=count,
        )

    def _index_inside(self, *, online: bool) -> dict[str, Any]:
        """Return the index as the sandbox sees it; nothing of it, and no password, where there is no network."""
        index = self._index
        if not online:
            return {"urls": [], "find_links": [], "trusted_hosts": [], "no_index": True, "credentials": {}}
        credentials = {}
        for url in (*index.urls, *index.find_links):
            user, at, host = urlsplit(url).netloc.rpartition("@")
            if at:
                credentials[host] = user
        urls = self._there(index.urls)
        return {
            "urls": urls,
            "find_links": self._there(index.find_links),
            "trusted_hosts": list(index.trusted_hosts),
            "no_index": not urls,
            "credentials": credentials,
        }

    def _there(self, places: Sequence[str]) -> list[str]:
        """Return addresses as the sandbox knows them.

        Local ones that are not there are left out: pip ignores them, and uv does not.
        """

        def there(place: str) -> bool:
            parts = urlsplit(place)
            return parts.scheme not in ("", "file") or Path(unquote(parts.path)).exists()

        return [self._inside(place) for place in places if there(place)]

    def _inside(self, place: str) -> str:
        """Return an address as the sandbox knows it: local directories are mounted elsewhere."""
        parts = urlsplit(place)
        if parts.scheme not in ("", "file"):
            return place
        for path, inside in self._local:
            if parts.path == str(path) or parts.path.startswith(f"{path}/"):
                moved = inside + parts.path[len(str(path)) :]
                return urlunsplit(("file", "", moved, "", "")) if parts.scheme else moved
        return place


def tools() -> tuple[Bind, ...]:
    """Return the mount of uv, where this host has it."""
    try:
        from uv import find_uv_bin

        return (Bind(source=Path(find_uv_bin()), destination=f"{TOOLS_DIR}/uv", executable=True),)
    except (ImportError, FileNotFoundError):
        return ()  # the image's own pip does it, slower


def answer_in(text: bytes) -> dict[str, Any] | None:
    """Return what a step's result says, or None when that is no answer: a step whose program lies may give any JSON."""
    try:
        said = msgspec.json.decode(text) if text else None
    except (msgspec.DecodeError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def bounded(text: str) -> str:
    """Return the end of a tool's words, with no run of characters in it that patterns would take long to search."""
    return LONG_RUN.sub(r"\1\2", text[-MAX_ERROR_CHARS:])


def tags_of(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tags of wheels for the Python, C library and machine that a sandbox names.

    Raises `ValueError` and kin.
    """
    python = (int(said["python"][0]), int(said["python"][1]))
    machine, libc = str(said["machine"]), libc_of(said["libc"])
    # There are more than a thousand tags, and all these are in each.
    if not re.fullmatch(r"\w{1,32}", machine, re.ASCII) or not (
        0 < python[0] < 10 and 0 <= python[1] < 1000 and libc[1] < 100
    ):
        raise ValueError(machine[:100])
    return target_tags(python, libc, machine)


def libc_of(said: Sequence[str]) -> tuple[str, int, int]:
    """Return (name, major, minor) of a C library from `platform.libc_ver()`; musl tells nothing there."""
    name, version = str(said[0]), str(said[1])
    match = re.match(r"(\d+)\.(\d+)", version)
    return (name, int(match[1]), int(match[2])) if name == "glibc" and match else ("musl", 1, 2)


def refusals(result: RunResult) -> list[str]:
    """Return in words which connections the egress proxy refused."""
    return list(dict.fromkeys(record.reason for record in result.egress if record.host and not record.allowed))[:10]


def broken(result: RunResult) -> list[str]:
    """Return in words which connections were allowed and could not be made."""
    return list(dict.fromkeys(r.reason for r in result.egress if r.allowed and r.reason and not r.bytes_down))[:10]


def used_up(result: RunResult) -> bool:
    """Tell whether the step fetched all that it may."""
    return any(record.reason.endswith(USED_UP) for record in result.egress)
