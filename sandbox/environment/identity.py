"""What an environment is made of, and the keys that follow from it, each computed once. Pure.

A `Wanted` is what a request asks for. With a lock it is an `EnvironmentPlan`, which resolution, build, store and
sharing use, and with an image an `InstalledEnvironment`. The same base image, lock and [build] section give the same
id, on every machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

from sandbox.engine.protocol import ImageRecord
from sandbox.environment.lock import Lock
from sandbox.environment.requirements import without_hashes
from sandbox.environment.tree import TreeLimits
from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.image.admission import ENVIRONMENT_CHARS, ENVIRONMENTS, AdmittedImage
from sandbox.image.base.layer import LABEL_PREFIX
from sandbox.policy.model import Policy
from sandbox.run.decision import Permitted

LABEL_ENVIRONMENT = f"{LABEL_PREFIX}.environment"
LABEL_BASE = f"{LABEL_PREFIX}.base"
LABEL_LOCK = f"{LABEL_PREFIX}.lock"
LABEL_BUILD = f"{LABEL_PREFIX}.build-policy"
# Raise it when what is installed from the same inputs, or the text of the lock among it, changes.
GENERATION = 4


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for: the libraries of a request, on a base image, under a policy."""

    permitted: Permitted
    base: AdmittedImage

    @property
    def policy(self) -> Policy:
        """Return the policy that holds the build."""
        return self.permitted.policy

    @property
    def requirements(self) -> tuple[str, ...]:
        """Return the libraries as they were asked for."""
        return self.permitted.run.request.requirements

    @cached_property
    def key(self) -> str:
        """The key under which a request keeps its lock. Another base with the same Python keeps it, too.

        Not so a policy that allows other hosts: what one may take its libraries from is no lock for the other.
        """
        build, python = self.policy.build, self.base.python_version
        return hash_of([sorted(self.requirements), python, build.allow_sdists, sorted(build.allow)])

    @cached_property
    def build_hash(self) -> str:
        """The hash of what holds the build."""
        return self.policy.build_hash


@dataclass(frozen=True, kw_only=True)
class EnvironmentPlan:
    """What one environment is made of, checked. Its keys are computed when they are first asked for, and once.

    Raises as `check_lock` does.
    """

    wanted: Wanted
    lock: Lock

    def __post_init__(self) -> None:
        check_lock(self.lock, self.wanted)

    @cached_property
    def lock_hash(self) -> str:
        """The hash of the lock."""
        return self.lock.hash

    @cached_property
    def id(self) -> str:
        """The id of the environment: the hash of everything that goes in."""
        return hash_of([GENERATION, self.wanted.base.id, self.lock_hash, self.wanted.build_hash])

    @cached_property
    def name(self) -> str:
        """The name of its image."""
        return image_name(self.id)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The labels of its image."""
        return {
            LABEL_ENVIRONMENT: self.id,
            LABEL_BASE: self.wanted.base.digest,
            LABEL_LOCK: self.lock_hash,
            LABEL_BUILD: self.wanted.build_hash,
        }

    @cached_property
    def tree_keys(self) -> dict[str, str]:
        """The key of each package as it is installed: what it is made of and what holds its making."""
        ground: list[object] = [GENERATION, self.wanted.base.id, self.wanted.build_hash]
        return {package.name: hash_of([*ground, package.file.sha256]) for package in self.lock.packages}

    def built(self, record: ImageRecord) -> InstalledEnvironment:
        """Return the environment, whose image is there."""
        image = replace(
            self.wanted.base,
            id=record.id,
            digest=record.digest,
            name=self.name,
            environment=self.id,
            lock_hash=self.lock_hash,
        )
        return InstalledEnvironment(plan=self, image=image)


@dataclass(frozen=True, kw_only=True)
class InstalledEnvironment:
    """A built environment; `image` is what runs use."""

    plan: EnvironmentPlan
    image: AdmittedImage

    @property
    def id(self) -> str:
        """Return its id."""
        return self.plan.id

    @property
    def name(self) -> str:
        """Return the name of its image."""
        return self.plan.name

    @property
    def lock(self) -> Lock:
        """Return the lock that it was made of."""
        return self.plan.lock


def check_lock(lock: Lock, wanted: Wanted) -> None:
    """Check a lock, wherever it is from, for what it is to be installed on and under.

    Raises `InvalidRequest` for another Python than the base image has, and `PolicyDenied` for what the policy lets
    nobody install.
    """
    policy, python = wanted.policy, python_of(wanted.base)
    if python not in ("", lock.python):
        raise InvalidRequest(
            f"the lock is for Python {lock.python}, and the image {wanted.permitted.image_name} has Python {python}",
            hint=f"name an image with Python {lock.python} (--image), or make a lock for this one: sandbox env lock",
        )
    for package in lock.packages:
        policy.library_allowed(package.name)
        if package.file.kind == "sdist" and not policy.build.allow_sdists:
            raise PolicyDenied(
                f"the lock has a source archive for {package.name} {package.version}, whose build would run its code",
                hint=f"policy {policy.name!r} has build.allow_sdists = false; make another lock, or use another policy",
                key="build.allow_sdists",
                asked=package.file.name,
            )


def python_of(base: AdmittedImage) -> str:
    """Return the series of a base image's Python, such as "3.11", or "" where it is not known."""
    return ".".join(map(str, base.python_version or ()))


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
