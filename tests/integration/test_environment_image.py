"""Images made from installed trees, in Podman: added, used, sent to a registry, and gone when the maker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from sandbox import places
from sandbox.engine.podman import PodmanEngine
from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.environment.layers import BaseImage, WrittenImage, add, check, write_image
from sandbox.environment.tree import Kind, encode_header
from sandbox.errors import BuildFailed, ImageUnavailable
from sandbox.host.probe import probe
from sandbox.image.admission import REPOSITORY
from tests import archive as archives
from tests.command import sandbox
from tests.integration.registry import Registry, insecure
from tests.waiting import until

pytestmark = pytest.mark.podman
BASE = f"{REPOSITORY}:latest"
LABELS = {"podman-sandbox-runner.lock": "sha256:0"}
ENTRIES = [
    (Kind.FILE, "greeting/__init__.py", b"from greeting.words import WORD\n"),
    (Kind.LINK, "greeting/words.py", b"../greeting.libs/words.py"),
    (Kind.FILE, "greeting.libs/words.py", b"WORD = 'hello'\n"),
    (Kind.EXECUTABLE, "bin/greet", b"#!/bin/sh\necho hello\n"),
]


@pytest.fixture
def engine() -> Iterator[Engine]:
    runtime_dir = places.runtime_dir()
    engine = PodmanEngine(probe(runtime_dir).engine, runtime_dir=runtime_dir)
    yield engine
    engine.close()


def written(engine: Engine, place: Path, more: bytes = b"") -> WrittenImage:
    """Write an image that no test had before, with `more` in one file."""
    records = [*ENTRIES, (Kind.FILE, "more", uuid.uuid4().hex.encode() + more)]
    stream = place / "greeting.tree"
    stream.write_bytes(
        b"".join(encode_header(kind, path, len(body)) + body for kind, path, body in records)
        + encode_header(Kind.END, "", 0)
    )
    base = engine.image(BASE)
    directory = place / "image"
    directory.mkdir()
    return write_image(
        directory / "image.tar",
        BaseImage(diff_ids=base.layers, architecture=base.architecture),
        [("greeting", stream)],
        name=f"localhost/environment-test:{uuid.uuid4().hex[:8]}",
        labels=LABELS,
        created=datetime(2020, 1, 1, tzinfo=timezone.utc),
    )


@pytest.fixture
def image(engine: Engine, tmp_path: Path) -> WrittenImage:
    return written(engine, tmp_path)


@pytest.fixture
def added(engine: Engine, image: WrittenImage) -> Iterator[ImageRecord]:
    record = add(engine, image)
    yield record
    engine.remove_image(record.id)


def test_a_program_uses_the_libraries_of_the_image(added: ImageRecord, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "sys.path.append('/opt/environment')\n"
        "import greeting\n"
        "top = os.stat('/opt/environment')\n"
        "said = subprocess.run(['/opt/environment/bin/greet'], capture_output=True, text=True).stdout\n"
        "result = [greeting.WORD, said, top.st_uid, oct(top.st_mode), os.stat('/opt/environment/more').st_mtime]\n"
    )
    answer = sandbox("run", script, "--image", added.names[0], "--json")
    found = json.loads(answer.stdout)
    assert found["result"] == ["hello", "hello\n", 0, "0o40755", 1_577_836_800], answer.stdout + answer.stderr


def test_podman_shows_no_command_no_annotation_and_no_variable_but_path(added: ImageRecord) -> None:
    shown = subprocess.run(
        ["podman", "image", "inspect", added.id], check=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
    )
    [found] = json.loads(shown.stdout)
    assert found["Config"] == {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Labels": LABELS}
    assert found["Annotations"] == {}
    assert [step["created_by"] for step in found["History"]] == ["base image", "COPY libraries /opt/environment"]
    assert found["ManifestType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_adding_an_image_again_changes_nothing(engine: Engine, image: WrittenImage, added: ImageRecord) -> None:
    assert add(engine, image) == added


def test_an_image_that_differs_from_what_was_written_is_removed(engine: Engine, image: WrittenImage) -> None:
    members = archives.read(image.archive)
    configuration = archives.manifest(members)["Config"]
    changed = members[configuration].replace(b'"PATH=', b'"LD_PRELOAD=/x", "PATH=')
    archives.write(image.archive, {**members, configuration: changed})
    with pytest.raises(BuildFailed, match="its id, environment variables differ"):
        add(engine, image)
    with pytest.raises(ImageUnavailable):
        engine.image(image.name)


def test_an_image_survives_the_way_to_a_registry_and_back(
    engine: Engine,
    registry: Registry,
    image: WrittenImage,
    added: ImageRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(registry.bundle))
    destination = f"{registry.address}/team/environment:1"
    digest = engine.push(added.names[0], destination, work_dir=tmp_path)
    assert digest.startswith("sha256:")
    engine.remove_image(added.id)
    with pytest.raises(ImageUnavailable):
        engine.image(added.id)
    subprocess.run(
        ["podman", "pull", "--quiet", f"{registry.address}/team/environment@{digest}"],
        check=True,
        capture_output=True,
        timeout=120,
        env=registry.environment,
        stdin=subprocess.DEVNULL,
    )
    check(engine.image(added.id), image)


def test_a_registry_that_nobody_vouches_for_gets_no_image(
    engine: Engine, registry: Registry, added: ImageRecord, tmp_path: Path
) -> None:
    with pytest.raises(ImageUnavailable, match="certificate"):
        engine.push(added.names[0], f"{registry.address}/team/environment:2", work_dir=tmp_path)
    # The control: only the certificate was missing.
    with insecure(registry.address):
        assert engine.push(added.names[0], f"{registry.address}/team/environment:2", work_dir=tmp_path).startswith(
            "sha256:"
        )


ADDING = """
import sys
from pathlib import Path
from sandbox.host.probe import probe
from sandbox.places import runtime_dir
from sandbox.engine.podman import PodmanEngine
engine = PodmanEngine(probe(runtime_dir()).engine, runtime_dir=runtime_dir())
engine.add_image(Path(sys.argv[1]), sys.argv[2])
"""


def processes_about(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(path).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_nothing_of_an_image_is_left_when_its_maker_is_killed(engine: Engine, tmp_path: Path) -> None:
    image = written(engine, tmp_path, more=os.urandom(1 << 20) * 160)
    directory = image.archive.parent
    with subprocess.Popen([sys.executable, "-c", ADDING, str(image.archive), image.name], cwd=Path.cwd()) as maker:

        def written_beside() -> set[Path]:
            assert maker.poll() is None, "it ended before it could be killed"
            return {*directory.iterdir()} - {image.archive}

        until(written_beside)  # Podman's temporary files
        maker.send_signal(signal.SIGKILL)
    until(lambda: processes_about(directory), [])
    for name in (image.id, image.name):
        with pytest.raises(ImageUnavailable):
            engine.image(name)
    record = add(engine, image)  # nothing stands in its way
    engine.remove_image(record.id)
