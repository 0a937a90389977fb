"""What an environment is made of, and the names that follow from it. Pure.

The same base image, lock and [build] section give the same id, on every machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from sandbox.environment.lock import Lock
from sandbox.environment.locked_package import LockedPackage
from sandbox.environment.requirements import without_hashes
from sandbox.environment.tree import TreeLimits
from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.image.admission import ENVIRONMENT_CHARS, ENVIRONMENTS, AdmittedImage
from sandbox.image.base.layer import LABEL_PREFIX
from sandbox.policy.model import Policy
from sandbox.policy.seccomp import SeccompProfile

LABEL_ENVIRONMENT = f"{LABEL_PREFIX}.environment"
LABEL_BASE = f"{LABEL_PREFIX}.base"
LABEL_LOCK = f"{LABEL_PREFIX}.lock"
LABEL_BUILD = f"{LABEL_PREFIX}.build-policy"
# Raise it when what is installed from the same inputs changes.
GENERATION = 3


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for: libraries on a base image, under a policy."""

    requirements: tuple[str, ...]
    base_name: str
    base: AdmittedImage
    policy: Policy
    seccomp: SeccompProfile


@dataclass(frozen=True, kw_only=True)
class InstalledEnvironment:
    """A built environment; `image` is what runs use."""

    id: str
    name: str
    lock: Lock
    image: AdmittedImage


def check_lock(lock: Lock, wanted: Wanted) -> None:
    """Check a lock, wherever it is from, for what it is to be installed on and under.

    Raises `InvalidRequest` for another Python than the base image has, and `PolicyDenied` for what the policy lets nobody install.
    """
    policy, python = wanted.policy, python_of(wanted.base)
    if python not in ("", lock.python):
        raise InvalidRequest(
            f"the lock is for Python {lock.python}, and the image {wanted.base_name} has Python {python}",
            hint=f"name an image with Python {lock.python} (--image), or make a lock for this one: sandbox env lock",
        )
    for package in lock.packages:
        policy.library_allowed(package.name)
        if package.file.kind == "sdist" and not policy.build.allow_sdists:
            raise PolicyDenied(
                f"the lock has a source archive for {package.name} {package.version}, whose build would run its code",
                hint=f"policy {policy.name!r} has build.allow_sdists = false; make another lock, or use another policy",
                key="build.allow_sdists", asked=package.file.name,
            )  # fmt: skip


def environment_id(wanted: Wanted, lock: Lock) -> str:
    """Return the id of an environment: the hash of everything that went in."""
    return hash_of([GENERATION, wanted.base.id, lock.hash, wanted.policy.build_hash])


def python_of(base: AdmittedImage) -> str:
    """Return the series of a base image's Python, such as "3.11", or "" where it is not known."""
    return ".".join(map(str, base.python_version or ()))


def request_key(wanted: Wanted) -> str:
    """Return the key under which a request keeps its lock. Another base with the same Python keeps it, too.

    Not so a policy that allows other hosts: what one may take its libraries from is no lock for the other.
    """
    build = wanted.policy.build
    return hash_of([sorted(wanted.requirements), wanted.base.python_version, build.allow_sdists, sorted(build.allow)])


def tree_key(wanted: Wanted, package: LockedPackage) -> str:
    """Return the key of an installed wheel: what it was made of and what held its making."""
    return hash_of([GENERATION, wanted.base.id, wanted.policy.build_hash, package.file.sha256])


def image_name(environment_id: str) -> str:
    """Return the name of an environment's image."""
    return f"{ENVIRONMENTS}:{environment_id[:ENVIRONMENT_CHARS]}"


def hash_of(values: list[object]) -> str:
    """Return a SHA-256 in hexadecimal of JSON-ready values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def package_of(requirement: str) -> str:
    """Return the name of the package that a requirement is about."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return canonicalize_name(Requirement(without_hashes(requirement)).name)


def tree_limits(policy: Policy) -> TreeLimits:
    """Return what the installed tree of one package may be."""
    build = policy.build
    return TreeLimits(
        files_count=build.files_count, installed_bytes=build.installed_mib << 20, allow_pth=build.allow_pth
    )
