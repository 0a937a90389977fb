"""`sandbox env`: lock, build, show, share and remove environments of libraries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sandbox.cli import completion
from sandbox.cli.amounts import parse_size
from sandbox.cli.files import MAX_TEXT_BYTES, Target, read_text
from sandbox.cli.handover import leave_root
from sandbox.cli.libraries import asks_for_libraries, library_options, requirements_of
from sandbox.cli.progress import Steps
from sandbox.cli.screen import escaped
from sandbox.cli.session import Session, session
from sandbox.environment.requirements import without_hashes
from sandbox.errors import InvalidRequest, SandboxError

if TYPE_CHECKING:
    from sandbox.environment.declared import Declared
    from sandbox.environment.lock import Lock
    from sandbox.runner import Runner

Result = TypeVar("Result")
MIB = 1 << 20
SHOWN_ID = 12
DAY_S = 86_400
UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": DAY_S, "w": 7 * DAY_S}


@click.group("env")
def environment() -> None:
    """Lock, build, show, share and remove environments: libraries installed under a policy, used offline."""


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say for which policy and image."""
    options = (
        click.option("--policy", default="default", show_default=True, help="Name or path of the policy."),
        click.option("--image", help="Base image. Default: the one of the policy."),
    )
    for option in reversed(options):
        command = option(command)
    return library_options(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


# ---- making


@environment.command("lock")
@target_options
@click.option("--upgrade", is_flag=True, help="Resolve again, to the newest versions that fit.")
@click.option(
    "--output", "output_path", metavar="FILE", help="Write the lock (pylock.toml) to this file instead of listing it."
)
@click.pass_obj
def lock_command(obj: dict[str, Any], /, *, upgrade: bool, output_path: str | None, **options: Any) -> None:
    """Resolve libraries to exact files with hashes, and keep this lock for later requests."""
    asked = wanted(options)
    # The file is the caller's, and opened with the caller's rights.
    with (
        contextlib.closing(Target(output_path, what="the lock")) if output_path else contextlib.nullcontext()
    ) as output:
        with opened(obj, with_index=True, keep=[output.fileno()] if output else ()) as (_, runner):
            request = request_of(asked, options)
            lock = finished(lambda steps: runner.lock(request, steps, upgrade=upgrade))
        if output:
            output.write(lock.as_toml())
        else:
            show_lock(lock)


@environment.command("build")
@target_options
@click.option(
    "--lock", "lock_path", metavar="FILE", help="Build exactly this lock (pylock.toml from `env lock` or `env export`)."
)
@json_option
@click.pass_obj
def build_command(obj: dict[str, Any], /, *, lock_path: str | None, as_json: bool, **options: Any) -> None:
    """Build an environment with these libraries, unless it exists."""
    from sandbox.environment.declared import Declared
    from sandbox.environment.lock import Lock

    try:
        if lock_path and asks_for_libraries(options):
            raise InvalidRequest(
                "--lock names every library already", hint="leave out --with and --requirements, or the lock"
            )
        lock = Lock.from_toml(read_text(lock_path, what="the lock", max_bytes=MAX_TEXT_BYTES)) if lock_path else None
        asked = Declared(lock.requirements) if lock else wanted(options)
        with opened(obj, with_index=True) as (_, runner):
            request = request_of(asked, options)
            built = finished(lambda steps: runner.build(request, steps, lock=lock))
            record = runner.environments().store.record(built.id)
    except SandboxError as error:
        if as_json:
            from sandbox.document import error_document

            click.echo(error_document(error))
        raise
    if as_json:
        click.echo(json.dumps({"id": built.id, "image": built.name, "lock_hash": built.plan.lock_hash}))
    else:
        size = f", {record.size_bytes // MIB} MiB" if record else ""
        click.echo(f"{built.id[:SHOWN_ID]}  {len(built.lock.packages)} packages{size}, image {built.name}")


# ---- looking


@environment.command("list")
@json_option
@click.pass_obj
def list_command(obj: dict[str, Any], /, *, as_json: bool) -> None:
    """List the environments, the most recently used first."""
    with opened(obj) as (_, runner):
        records = runner.environments().store.records()
    if as_json:
        click.echo(json.dumps([asdict(record) for record in records]))
        return
    if not records:
        click.echo("No environment is here yet; make one: sandbox env build --with pandas", err=True)
    for record in records:
        used_days = (time.time() - record.last_used) / DAY_S
        used = "today" if used_days < 1 else f"{used_days:.0f} day(s) ago"
        asked = escaped(", ".join(map(without_hashes, record.requirements)))
        click.echo(f"{record.id[:SHOWN_ID]}  {record.size_bytes // MIB:>5} MiB  used {used:<14}  {asked}")


@environment.command("show")
@click.argument("environment_id", metavar="ID", shell_complete=completion.environments)
@json_option
@click.pass_obj
def show_command(obj: dict[str, Any], /, *, environment_id: str, as_json: bool) -> None:
    """Show what an environment contains. ID may be its first characters."""
    with opened(obj) as (_, runner):
        environments = runner.environments()
        record = environments.find(environment_id)
        egress = environments.store.egress(record.id)
    if as_json:
        click.echo(json.dumps({**asdict(record), "egress": egress}))
        return
    rows = {
        "id": record.id,
        "image": record.image,
        "base": f"{record.base} ({record.base_digest})",
        "lock": record.lock_hash,
        "build policy": record.build_hash,
        "asked for": ", ".join(map(without_hashes, record.requirements)),
        "size": f"{record.size_bytes // MIB} MiB beyond the base image",
        "packages": f"\n{'':14}".join(record.packages),
        **({"connections": ways_of(egress)} if egress else {}),
        **({"left out": "; ".join(record.left_out)} if record.left_out else {}),
    }
    for name, value in rows.items():
        click.echo(f"{name:<12}  {escaped(value) if name != 'packages' else value}")


def ways_of(egress: list[dict[str, Any]]) -> str:
    """Return how the connections by which a build was given anything left this host."""
    counts: Counter[str] = Counter()
    for row in egress:
        if row["bytes_down"]:
            counts[f"through the proxy {row['proxy']}" if row["proxy"] else "directly"] += row["connections"]
    return ", ".join(f"{way}: {count}" for way, count in counts.items()) or "none"


@environment.command("export")
@click.argument("environment_id", metavar="ID", shell_complete=completion.environments)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["pylock", "requirements"]),
    default="pylock",
    show_default=True,
    help="pylock.toml (PEP 751), or requirements.txt with hashes for pip.",
)
@click.pass_obj
def export_command(obj: dict[str, Any], /, *, environment_id: str, kind: str) -> None:
    """Print the lock of an environment, for `env build --lock`, pip or another machine."""
    with opened(obj) as (_, runner):
        environments = runner.environments()
        lock = environments.lock_of(environments.find(environment_id))
    click.echo(lock.as_toml() if kind == "pylock" else lock.as_requirements_txt(), nl=False)


# ---- sharing


@environment.command("push")
@click.argument("environment_id", metavar="ID", shell_complete=completion.environments)
@click.argument("destination", metavar="REGISTRY/NAME[:TAG]")
@click.pass_obj
def push_command(obj: dict[str, Any], /, *, environment_id: str, destination: str) -> None:
    """Push an environment to an OCI registry, and print the name under which another machine can pull it."""
    from sandbox.environment.sharing import registry_reference

    target = registry_reference(destination, with_digest=False)
    with opened(obj) as (_, runner):
        environments = runner.environments()
        record = environments.find(environment_id)
        digest = finished(lambda _: environments.push(record, target))
    click.echo(f"{re.sub(r':[^/:]+$', '', target)}@{digest}")


@environment.command("pull")
@click.argument("reference", metavar="REGISTRY/NAME[:TAG][@sha256:DIGEST]")
@click.option("--policy", default="default", show_default=True, help="Name or path of the policy.")
@click.option("--image", help="Base image. Default: the one of the policy.")
@click.pass_obj
def pull_command(obj: dict[str, Any], /, *, reference: str, **options: Any) -> None:
    """Pull an environment from an OCI registry, verified bit for bit against lock, base image and build policy."""
    from sandbox.environment.sharing import registry_reference

    name = registry_reference(reference, with_digest=True)
    with opened(obj) as (_, runner):
        pulled = finished(lambda _: runner.pull(request_of(None, options), name))
    click.echo(f"{pulled.id[:SHOWN_ID]}  {len(pulled.lock.packages)} packages, image {pulled.name}")


# ---- removing


@environment.command("rm")
@click.argument("environment_ids", metavar="ID...", nargs=-1, required=True, shell_complete=completion.environments)
@click.pass_obj
def rm_command(obj: dict[str, Any], /, *, environment_ids: tuple[str, ...]) -> None:
    """Remove environments. Locks and downloaded wheels stay. An environment that is in use is not removed."""
    with opened(obj) as (_, runner):
        environments = runner.environments()
        for record in [environments.find(text) for text in environment_ids]:
            environments.removal.remove(record)
            click.echo(f"removed {record.id[:SHOWN_ID]}")


@environment.command("prune")
@click.option("--unused", metavar="AGE", help="Remove what was not used for this time: 30d, 12h.")
@click.option("--older", metavar="AGE", help="Remove what was built longer ago than this: 30d, 12h.")
@click.option(
    "--budget",
    metavar="SIZE",
    help=(
        "Remove what was not used for the longest time, until environments and cached files together take at most this:"
        " 10g."
    ),
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; list what would be removed.")
@click.pass_obj
def prune_command(
    obj: dict[str, Any], /, *, unused: str | None, older: str | None, budget: str | None, dry_run: bool
) -> None:
    """Remove environments and cached files by age, last use and size. What is in use stays."""
    from sandbox.environment.store import PruneLimits

    if unused is None and older is None and budget is None:
        raise InvalidRequest("prune needs to know what may go", hint="for example: sandbox env prune --unused 30d")
    limits = PruneLimits(
        unused_s=age_s(unused),
        older_s=age_s(older),
        budget_bytes=parse_size(budget, option="--budget") * MIB if budget is not None else None,
    )
    with opened(obj) as (_, runner):
        removal = runner.environments().removal
        pruned = removal.prunable(limits) if dry_run else removal.prune(limits)
    said = "would remove" if dry_run else "removed"
    for record in pruned.environments:
        click.echo(
            f"{said} {record.id[:SHOWN_ID]}  {record.size_bytes // MIB} MiB  {escaped(', '.join(record.requirements))}"
        )
    if pruned.files:
        click.echo(f"{said} {len(pruned.files)} cached file(s), {pruned.files_bytes // MIB} MiB")
    if not pruned.environments and not pruned.files:
        click.echo("nothing to remove")


# ---- helpers of these commands


@contextlib.contextmanager
def opened(
    obj: dict[str, Any], *, with_index: bool = False, keep: Collection[int] = ()
) -> Iterator[tuple[Session, Runner]]:
    """Open a session with a runner; `with_index` and `keep` as for `leave_root`."""
    leave_root(with_index=with_index, keep=keep)
    with session() as current:
        current.sweep()
        yield current, current.runner(obj["policy_dirs"])


def wanted(options: dict[str, Any]) -> Declared:
    """Return what the options ask for. Raises `InvalidRequest` for no library."""
    requirements = requirements_of(options)
    if not requirements.libraries:
        raise InvalidRequest(
            "no library is named", hint="for example: --with pandas, or --requirements requirements.txt"
        )
    return requirements


def request_of(asked: Declared | None, options: dict[str, Any]) -> Any:
    """Return a request that has libraries and no code."""
    from sandbox.models import RunRequest

    libraries, python = asked or ((), "")
    return RunRequest(
        code="", requirements=libraries, requires_python=python, policy=options["policy"], image=options["image"]
    )


def finished(work: Callable[[Steps], Coroutine[Any, Any, Result]]) -> Result:
    """Carry out something that Ctrl-C and SIGTERM end with nothing left behind."""
    steps = Steps(quiet=False)

    async def cancellable() -> Result:
        task = asyncio.ensure_future(work(steps))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        steps.end()


def age_s(text: str | None) -> float | None:
    """Return seconds for `30d`, `12h`. Raises `InvalidRequest`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise InvalidRequest(f"{text!r} is not an age", hint="write for example 30d, 12h or 2w")
    return float(match[1]) * UNITS_S[match[2]]


def show_lock(lock: Lock) -> None:
    """List the packages of a lock."""
    for package in lock.packages:
        size = f"{package.file.size_bytes / MIB:.1f} MiB" if package.file.size_bytes else ""
        click.echo(f"{package.name}=={package.version}  {package.file.name}  {size}")
    click.echo(f"{len(lock.packages)} packages, {lock.hash}", file=sys.stderr)
