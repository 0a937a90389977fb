"""Images: what a name means, where an image comes from, and whether one is admitted.

Nothing in an image decides security, so admission refuses only what could trick the engine or the runtime
before our own settings hold; `sandbox.image.files` judges the files.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.errors import ImageUnavailable, InvalidRequest
from sandbox.image.verdicts import load_verdict, store_verdict

__all__ = [
    "ENVIRONMENTS",
    "ENVIRONMENT_CHARS",
    "REPOSITORY",
    "AdmittedImage",
    "admit",
    "ensure",
    "environment_of",
    "lint_record",
    "oci_architecture",
    "resolve",
]

HUB = "docker.io"
REPOSITORY = "localhost/sandbox-python"
ENVIRONMENTS = "localhost/sandbox-environment"
# So much of an environment's id is in its image's name.
ENVIRONMENT_CHARS = 32
OCI_ARCHITECTURES = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x",
    "riscv64": "riscv64", "i686": "386",
}  # fmt: skip # a table
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9]+(?:[.-]+[A-Za-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<name>(?:{_HOST}(?::[0-9]{{1,5}})?/)?{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
# Namespaces of keys that an engine or a runtime gives a meaning of its own.
_RESERVED = re.compile(
    r"(run\.oci\.|org\.systemd\.|io\.podman\.|io\.containers\.|io\.kubernetes\.cri|io\.crun|org\.criu|"
    r"com\.github\.containers|module\.)",
    re.IGNORECASE,
)
_STEERING = re.compile(r"(LD_|PYTHON|GCONV_PATH|MALLOC_|GLIBC_TUNABLES)")


@dataclass(frozen=True, kw_only=True)
class AdmittedImage:
    """An image that passed the lint; `findings` are worth a look, but other controls hold them.

    `environment` is the id of the environment that was composed of it, and `lock_hash` the lock's; None for a base
    image.
    """

    id: str
    digest: str
    name: str
    python_path: str
    python_version: tuple[int, int] | None
    findings: tuple[str, ...]
    environment: str | None = None
    lock_hash: str | None = None


def oci_architecture() -> str:
    """Return this machine's architecture in the words of the OCI."""
    return OCI_ARCHITECTURES.get(platform.machine(), platform.machine())


def resolve(reference: str) -> str:
    """Return the full name of an image as people mean it: `python` is `docker.io/library/python:latest`.

    A name whose first part has a dot or a colon, or is `localhost`, already names its registry.
    Raises `InvalidRequest`.
    """
    match = _REFERENCE.fullmatch(reference) if len(reference) <= 512 else None
    if match is None or re.fullmatch(r"sha256|[0-9a-f]{64}", match["name"]):
        raise InvalidRequest(
            f"{reference[:200]!r} is not the name of an image",
            hint="write NAME, NAME:TAG or REGISTRY/NAME:TAG in lower case, for example python:3.12-slim",
        )
    first, slash, rest = match["name"].partition("/")
    has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    if not has_registry:
        first, rest = HUB, match["name"]
    if first in {"index.docker.io", "registry-1.docker.io"}:
        first = HUB
    if re.search(r"[A-Z]", rest) or (not has_registry and re.search(r"[A-Z]", match["name"])):
        raise InvalidRequest(f"{reference!r} has capital letters", hint="names of images are written in lower case")
    if first == HUB and "/" not in rest:
        rest = f"library/{rest}"
    tag = f":{match['tag']}" if match["tag"] else ("" if match["digest"] else ":latest")
    return f"{first}/{rest}{tag}" + (f"@{match['digest']}" if match["digest"] else "")


def environment_of(reference: str) -> str | None:
    """Return the beginning of the id of the environment whose image has this name, or None for another image's name."""
    match = re.fullmatch(rf"{ENVIRONMENTS}:([0-9a-f]{{{ENVIRONMENT_CHARS}}})(@.*)?", reference)
    return match[1] if match else None


def ensure(
    engine: Engine, reference: str, *, policy_pull: Literal["missing", "never"], why_not: str = "may not be pulled"
) -> ImageRecord:
    """Return the image that `reference` names, pulled when it is not there and the policy allows that.

    `why_not` tells why the policy doesn't. Raises `InvalidRequest` (no name), or `ImageUnavailable` with the registry's
    reason and what is at hand.
    """
    name = resolve(reference)
    try:
        return engine.image(name)
    except ImageUnavailable:
        pass
    if name.startswith(f"{REPOSITORY}:"):
        raise ImageUnavailable(
            f"the base image {name} has not been built on this host",
            hint="build it: sandbox image bootstrap",
            available=_names(engine),
        )
    if name.startswith("localhost/") or policy_pull == "never":
        why = why_not if policy_pull == "never" else "can't be pulled: it is a name of this host only"
        raise ImageUnavailable(
            f"the image {name} is not here and {why}", hint=_at_hand(engine), available=_names(engine)
        )
    try:
        return engine.pull(name)
    except ImageUnavailable as error:
        raise ImageUnavailable(error.message, hint=error.hint or _at_hand(engine), available=_names(engine)) from None


def admit(engine: Engine, record: ImageRecord, *, cache_dir: Path) -> AdmittedImage:
    """Check an image and find its Python; the verdict on its files is kept in `cache_dir` by image id.

    Raises `ImageUnavailable` with every reason why the image is refused.
    """
    name = record.names[0] if record.names else record.id
    refusals, findings = lint_record(record)
    if refusals:
        raise _refused(name, refusals)
    verdict = load_verdict(cache_dir, record.id)
    if verdict is None:
        # Imported late: most runs find a verdict and never read a tar.
        from sandbox.image.files import inspect_filesystem

        verdict = inspect_filesystem(engine.export_filesystem(record.id), path_variable=_path_variable(record))
        store_verdict(cache_dir, record.id, verdict)
    if verdict.refusals:
        raise _refused(name, verdict.refusals)
    return AdmittedImage(
        id=record.id,
        digest=record.digest,
        name=name,
        python_path=verdict.python_path,
        python_version=verdict.python_version,
        findings=(*findings, *verdict.findings),
    )


def lint_record(record: ImageRecord) -> tuple[list[str], list[str]]:
    """Return the reasons to refuse an image and the findings, both from its description alone."""
    refusals = [f"annotation {key[:80]!r} is reserved" for key in sorted(record.annotations) if _RESERVED.match(key)]
    refusals += [f"label {key[:80]!r} is reserved" for key in sorted(record.labels) if _RESERVED.match(key)]
    findings = []
    for entry in record.env:
        name, equals, value = entry.partition("=")
        if not equals or "*" in name or not name.strip():
            refusals.append(f"environment entry {entry[:80]!r} would take variables from the host")
        elif _STEERING.match(name):
            findings.append(f"sets {name[:80]}, which is ignored")
        elif name == "PATH" and any(not part.startswith("/") for part in value.split(":")):
            findings.append("has relative entries in PATH, which are ignored")
    if record.architecture and record.architecture != oci_architecture():
        refusals.append(f"it is made for {record.architecture[:40]}, this host is {oci_architecture()}")
    return refusals, findings


def _path_variable(record: ImageRecord) -> str:
    return next((entry[5:] for entry in record.env if entry.startswith("PATH=")), "")


def _refused(name: str, reasons: list[str]) -> ImageUnavailable:
    only_python = reasons == ["it has no python3"]
    if only_python:
        return ImageUnavailable(
            f"the image {name} has no python3",
            hint="use an image with Python in it, for example python:3.12-slim",
        )
    return ImageUnavailable(
        f"the image {name} is refused: {'; '.join(reasons)}",
        hint="use another image, or rebuild this one without that",
        reasons=reasons,
    )


def _names(engine: Engine) -> list[str]:
    names = {name for record in engine.images() for name in record.names}
    return sorted(name for name in names if not name.startswith(f"{ENVIRONMENTS}:"))


def _at_hand(engine: Engine) -> str:
    names = _names(engine)
    if not names:
        return "no image is on this host yet; build the base image: sandbox image bootstrap"
    return f"images on this host: {', '.join(names[:10])}" + (f" and {len(names) - 10} more" if names[10:] else "")
