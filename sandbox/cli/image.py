"""`sandbox image`: build the base image, list what is here, check what would be admitted."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sandbox import places
from sandbox.cli.handover import leave_root
from sandbox.cli.screen import escaped
from sandbox.engine.protocol import Engine
from sandbox.errors import ImageUnavailable
from sandbox.image.admission import REPOSITORY, admit, ensure, resolve
from sandbox.image.base.bootstrap import LABEL_ASKED, LABEL_RECIPE, RECIPE, bootstrap, build_own, own_recipe
from sandbox.image.base.recipe import Recipe, image_name, read_recipe


@contextlib.contextmanager
def _engine() -> Iterator[Engine]:
    # Imported late: `sandbox image --help` needs neither Podman nor its client.
    from sandbox.engine.podman import PodmanEngine
    from sandbox.host.probe import probe

    leave_root()
    runtime_dir = places.runtime_dir()
    engine = PodmanEngine(probe(runtime_dir).engine, runtime_dir=runtime_dir)
    try:
        yield engine
    finally:
        engine.close()


@click.group("image")
def image() -> None:
    """Build, list and check the images that scripts run in."""


@image.command("bootstrap")
@click.option("--suite", metavar="NAME", help="Release of the distribution. Default: the one of this host.")
@click.option("--force", is_flag=True, help="Build it again, with the current packages.")
def bootstrap_command(suite: str | None, force: bool) -> None:
    """Build the base image from this host's package sources, without a registry."""
    with _engine() as engine:
        name = f"{REPOSITORY}:{suite or 'latest'}"
        if not force and _is_here(engine, name, RECIPE):
            return
        _end_like_ctrl_c()
        record = bootstrap(engine, suite=suite, work_dir=_work_dir(), progress=_progress)
        click.echo(f"Built {name}: {_mib(record.size_bytes)}, {record.digest}")


@image.command("build")
@click.argument("name")
@click.option("--package", "packages", multiple=True, metavar="NAME", help="A package of the distribution. Repeatable.")
@click.option("--locale", "locales", multiple=True, metavar="NAME", help="A locale, such as de_DE.UTF-8. Repeatable.")
@click.option("--python", metavar="3.X", help="This version of Python, if the distribution has it.")
@click.option("--suite", metavar="NAME", help="Release of the distribution. Default: the one of this host.")
@click.option(
    "--accept", multiple=True, metavar="NAME",
    help="Take this package without what its installation script would make. Repeatable.",
)  # fmt: skip # a table
@click.option(
    "--from", "file", metavar="FILE.toml", type=click.Path(path_type=Path),
    help="Read packages, locales, python, suite and accept from a file.",
)  # fmt: skip # a table
@click.option("--force", is_flag=True, help="Build it again, with the current packages.")
def build_command(
    name: str,
    packages: tuple[str, ...],
    locales: tuple[str, ...],
    python: str | None,
    suite: str | None,
    accept: tuple[str, ...],
    file: Path | None,
    force: bool,
) -> None:
    """Build the image localhost/NAME: the base image with more packages or locales, without a registry."""
    asked = Recipe(packages=packages, locales=locales, python=python, suite=suite, accept=accept)
    recipe = (asked if file is None else read_recipe(file).merged(asked)).checked()
    full = image_name(name)
    with _engine() as engine:
        if not force and _is_here(engine, full, own_recipe(recipe)):
            return
        _end_like_ctrl_c()
        record = build_own(engine, recipe, name=full, work_dir=_work_dir(), progress=_progress)
        try:
            admit(engine, record, cache_dir=verdict_dir())
        except ImageUnavailable:
            engine.remove_image(full)
            raise
    click.echo(f"Built {full}: {_mib(record.size_bytes)}, {record.digest}")
    click.echo(f"Use it: sandbox run --image {full.removesuffix(':latest')} SCRIPT")


@image.command("list")
def list_command() -> None:
    """List the images on this host."""
    with _engine() as engine:
        records = engine.images()
    if not records:
        click.echo("No images yet. Build the base image: sandbox image bootstrap")
    lines = [
        f"{escaped(name)}  {record.id[:12]}  {_mib(record.size_bytes)}" for record in records for name in record.names
    ]
    for line in sorted(lines):
        click.echo(line)


@image.command("check")
@click.argument("reference")
@click.option("--pull", is_flag=True, help="Pull the image if it is not on this host.")
def check_command(reference: str, pull: bool) -> None:
    """Say whether the image REFERENCE would be admitted, and what it contains."""
    with _engine() as engine:
        record = ensure(
            engine, reference, policy_pull="missing" if pull else "never", why_not="is fetched only with --pull"
        )
        admitted = admit(engine, record, cache_dir=verdict_dir())
    version = ".".join(map(str, admitted.python_version)) if admitted.python_version else "of unknown version"
    click.echo(f"{escaped(admitted.name)} is admitted.")
    click.echo(f"  id      {admitted.id}\n  digest  {admitted.digest}")
    click.echo(f"  Python  {version} at {escaped(admitted.python_path)}")
    if made_of := record.labels.get(LABEL_ASKED):
        click.echo(f"  made of {escaped(made_of)}")
    for finding in admitted.findings:
        click.echo(f"  note    {escaped(finding)}")


@image.command("remove")
@click.argument("reference")
def remove_command(reference: str) -> None:
    """Remove the image REFERENCE from this host, with any sandbox that runs in it."""
    with _engine() as engine:
        ensure(engine, reference, policy_pull="never", why_not="so there is nothing to remove")
        engine.remove_image(resolve(reference), force=True)
    click.echo(f"Removed {resolve(reference)}")


def verdict_dir() -> Path:
    """Return where verdicts on images are kept."""
    return places.cache_dir() / "images"


def _work_dir() -> Path:
    asked = os.environ.get("TMPDIR", "")
    # On disk, where /tmp may be small and in memory.
    return Path(asked) if asked and os.access(asked, os.W_OK) else Path("/var/tmp")  # noqa: S108


def _is_here(engine: Engine, name: str, recipe: str) -> bool:
    """Say, also to the user, whether the image is here and made by this recipe."""
    with contextlib.suppress(ImageUnavailable):
        record = engine.image(name)
        if record.labels.get(LABEL_RECIPE) == recipe:
            click.echo(f"{name} is here already ({_mib(record.size_bytes)}); --force builds it again.")
            return True
        click.echo(f"{name} was made by another version of this program, or of other parts: building it again.")
    return False


def _end_like_ctrl_c() -> None:
    """Let a signal that ends this process leave nothing behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


def _progress(sentence: str) -> None:
    click.echo(f"  {sentence} …", file=sys.stderr)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
