"""A policy: its sections together, what must fit together in it, its hash, and the checks of a request.

Every key is in `sandbox.policy.sections`; `sandbox.policy.load` loads files into these models.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import Field, JsonValue, model_validator

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

from sandbox import toml_mistakes
from sandbox.errors import InvalidRequest, PolicyDenied
from sandbox.models import Tightening
from sandbox.policy.sections import (
    ANY,
    IMAGE,
    LIBRARY_NAME,
    RESERVED,
    VARIABLE,
    Build,
    Enforcement,
    Filesystem,
    HistoryRules,
    Images,
    Isolation,
    Limits,
    Network,
    Seccomp,
    Secrets,
    Variables,
    library_name,
)
from sandbox.toml_mistakes import ConflictError, Strict

__all__ = [
    "ANY",
    "BUILT_IN",
    "KEYS",
    "RESERVED",
    "Policy",
    "PolicyDocument",
    "Sections",
    "range_of",
    "unit_of",
]

BUILT_IN = "built-in"
BUILD_TMP_MIB = 32
BUILD_SHM_MIB = 1
# What a build's memory must hold besides the installed files: its other file systems, and its processes.
BUILD_SPARE_MIB = 64


class Sections(Strict):
    """The controls of a policy, by section."""

    isolation: Isolation = Isolation()
    limits: Limits = Limits()
    filesystem: Filesystem = Filesystem()
    network: Network = Network()
    seccomp: Seccomp = Seccomp()
    variables: Variables = Variables()
    secrets: Secrets = Secrets()
    images: Images = Images()
    build: Build = Build()
    history: HistoryRules = HistoryRules()
    enforcement: Enforcement = Enforcement()

    def values(self) -> dict[str, Any]:
        """Return every control's value by its dotted key."""
        return {key: getattr(getattr(self, section), name) for key, (section, name) in _PATHS.items()}


class PolicyDocument(Sections):
    """A policy file as written. `open` maps a dotted key to true, or to the loosest value a child may set."""

    description: str = Field("", description="One sentence for `sandbox policy list`.", max_length=500)
    extends: str | None = Field(
        None,
        description="The policy whose values hold where this file says nothing.",
        json_schema_extra={"expected": "the name of a policy"},
    )
    open: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Keys that a policy extending this one may loosen: true, or the loosest value allowed.",
    )


class Policy(Sections):
    """The effective policy of a run. Every check below answers by raising `PolicyDenied`."""

    name: str
    description: str = ""
    seccomp_sha256: str = ""

    @model_validator(mode="after")
    def _values_fit_together(self) -> Policy:
        files = self.filesystem
        total = files.app_mib + files.tmp_mib + files.shm_mib
        if total > self.limits.memory_mib:
            raise ConflictError(
                f"app_mib, tmp_mib and shm_mib make {total} MiB together, more than the {self.limits.memory_mib} MiB of"
                " limits.memory_mib that their content counts against",
                "filesystem.app_mib",
                "filesystem.tmp_mib",
                "filesystem.shm_mib",
                "limits.memory_mib",
            )
        if not _matches(self.images.default, self.images.allow):
            raise ConflictError(
                f"images.default is {self.images.default}, which no pattern of images.allow matches",
                "images.default",
                "images.allow",
            )
        if (self.network.mode == "allowlist") != bool(self.network.allow):
            raise ConflictError(
                f"network.mode is {self.network.mode}, but network.allow"
                f" {'lists' if self.network.allow else 'lists no'} hosts",
                "network.mode",
                "network.allow",
            )
        if self.isolation.per_run != "container" and self.network.mode != "none":
            raise ConflictError(
                f"isolation.per_run is {self.isolation.per_run}, but network.mode is {self.network.mode}: a way out is"
                " for one container alone",
                "isolation.per_run",
                "network.mode",
            )
        if self.build.installed_mib + BUILD_SPARE_MIB > self.build.memory_mib:
            raise ConflictError(
                f"build.installed_mib is {self.build.installed_mib} MiB, and with the {BUILD_SPARE_MIB} MiB that the "
                f"installing itself needs that is more than the {self.build.memory_mib} MiB of build.memory_mib",
                "build.installed_mib",
                "build.memory_mib",
            )
        return self

    @property
    def hash(self) -> str:
        """`sha256:` and a hash of what is enforced: every value and the seccomp profile, not name and description."""
        return self._hash_of(set(Sections.model_fields))

    @property
    def build_hash(self) -> str:
        """`sha256:` and a hash of what a build of libraries is held by: [build] and the seccomp profile."""
        return self._hash_of({"build", "seccomp"})

    def _hash_of(self, sections: set[str]) -> str:
        content = {**self.model_dump(mode="json", include=sections), "seccomp_sha256": self.seccomp_sha256}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def build_policy(self) -> Policy:
        """Return the policy of the sandbox that installs libraries: what [build] says, in the terms of a run.

        It has no network, and no variable or secret reaches it. The hosts of `build.allow` are not part of it:
        whoever starts the sandbox hands them to the egress proxy. /app holds the installed files.
        """
        build = self.build
        # A copy, not checked again: a build may have more files than the range of limits.files_count.
        limits = Limits(output_mib=4, result_mib=16, payload_mib=16, code_kib=1_024, log_records=10_000).model_copy(
            update={
                "timeout_s": build.timeout_s,
                "memory_mib": build.memory_mib,
                "cpus": build.cpus,
                "processes": build.processes,
                "open_files": max(1_024, self.limits.open_files),
                "files_mib": max(build.download_mib, build.installed_mib),
                "files_count": build.files_count,
            }
        )
        return self._with(
            limits=limits,
            filesystem=Filesystem(
                app_mib=build.installed_mib, tmp_mib=BUILD_TMP_MIB, shm_mib=BUILD_SHM_MIB, exec=build.allow_sdists
            ),
            network=Network(),
            variables=Variables(),
            secrets=Secrets(),
            isolation=Isolation(),
        )

    def _with(self, **sections: Strict) -> Policy:
        """Return this policy with other sections, checked to fit together."""
        return Policy(**{**{name: getattr(self, name) for name in type(self).model_fields}, **sections})

    def tightened(self, limits: Tightening) -> Policy:
        """Return this policy with the lower limits of one request.

        A lower `memory_mib` shrinks the file systems in proportion where they would no longer fit. Raises
        `PolicyDenied` for a limit above the policy's, `InvalidRequest` for one below what can run.
        """
        asked = {name: value for name, value in msgspec.structs.asdict(limits).items() if value is not None}
        for name, value in asked.items():
            self._check_lower(f"limits.{name}", value)
        if not asked:
            return self
        tightened = self.limits.model_copy(update=asked)
        return self._with(limits=tightened, filesystem=self._shrunk(tightened.memory_mib))

    def _check_lower(self, key: str, value: float) -> None:
        allowed = self.values()[key]
        unit = unit_of(key)
        if not value <= allowed:  # which a number that is none isn't, either
            raise PolicyDenied(
                f"the request asks for {key} = {value:g} {unit}; policy {self.name!r} allows at most {allowed:g}"
                f" {unit}",
                hint=f"ask for {allowed:g} or less, or use a policy that allows more (`sandbox policy list`)",
                key=key,
                asked=value,
                allowed=allowed,
            )
        low, _ = range_of(key)
        if low is not None and value < low:
            raise InvalidRequest(
                f"the request asks for {key} = {value:g} {unit}; no program runs with less than {low:g} {unit}",
                hint=f"ask for {low:g} {unit} or more",
                key=key,
                asked=value,
            )

    def _shrunk(self, memory_mib: int) -> Filesystem:
        sizes = {name: getattr(self.filesystem, name) for name in ("app_mib", "tmp_mib", "shm_mib")}
        total = sum(sizes.values())
        if total <= memory_mib:
            return self.filesystem
        # Each keeps its share of all but 3 MiB, and one of those: never 0, which tmpfs takes as "unlimited".
        room = memory_mib - len(sizes)
        return self.filesystem.model_copy(
            update={name: min(size, 1 + size * room // total) for name, size in sizes.items()}
        )

    def env_allowed(self, name: str) -> None:
        """Check that a request may set this variable. Raises `PolicyDenied`, or `InvalidRequest` for a non-name."""
        self._check_variable(name, self.variables.allow, "variables.allow", "variable")

    def secret_allowed(self, name: str) -> None:
        """Check that a request may hand this secret over. Raises like `env_allowed`."""
        self._check_variable(name, self.secrets.allow, "secrets.allow", "secret")

    def _check_variable(self, name: str, allow: tuple[str, ...], key: str, what: str) -> None:
        shown = json.dumps(name[:80])
        if not VARIABLE.fullmatch(name):
            raise InvalidRequest(
                f"{shown} is not a name for a {what}",
                hint="use letters, digits and _, not starting with a digit",
            )
        if RESERVED.fullmatch(name):
            raise PolicyDenied(
                f"the {what} {shown} is reserved: it steers the interpreter or the sandbox itself",
                hint="choose another name",
                key=key,
                asked=name,
            )
        if ANY not in allow and name not in allow:
            raise PolicyDenied(
                f"policy {self.name!r} does not let a request set the {what} {shown}",
                hint=f"allowed: {', '.join(allow) or 'none'}; the key is {key}",
                key=key,
                asked=name,
                allowed=list(allow),
            )

    def image_allowed(self, reference: str) -> None:
        """Check that a request may use this image, by its full reference. Raises like `env_allowed`."""
        shown = json.dumps(reference[:255])
        if not IMAGE.fullmatch(reference):
            raise InvalidRequest(f"{shown} is not an image reference", hint="write it like registry/name:tag")
        if not _matches(reference, self.images.allow):
            raise PolicyDenied(
                f"policy {self.name!r} does not allow the image {shown}",
                hint=f"allowed: {', '.join(self.images.allow) or 'none'}; the key is images.allow",
                key="images.allow",
                asked=reference,
                allowed=list(self.images.allow),
            )

    def library_allowed(self, name: str) -> None:
        """Check that a library may be installed, asked for or as a dependency. Raises like `env_allowed`."""
        shown = json.dumps(name[:80])
        if not LIBRARY_NAME.fullmatch(name):
            raise InvalidRequest(
                f"{shown} is not a library's name", hint="use letters, digits, -, _ and ., as in scikit-learn"
            )
        if not _matches(library_name(name), self.build.libraries):
            raise PolicyDenied(
                f"policy {self.name!r} does not let the library {shown} be installed",
                hint=f"allowed: {', '.join(self.build.libraries) or 'none'}; the key is build.libraries",
                key="build.libraries",
                asked=name,
                allowed=list(self.build.libraries),
            )


_PATHS: dict[str, tuple[str, str]] = {
    f"{section}.{name}": (section, name)
    for section, field in Sections.model_fields.items()
    for name in type(field.default).model_fields
}
KEYS: dict[str, FieldInfo] = {
    key: type(Sections.model_fields[section].default).model_fields[name] for key, (section, name) in _PATHS.items()
}


def unit_of(key: str) -> str:
    """Return the unit of a dotted key, or an empty text."""
    return toml_mistakes.unit_of(KEYS[key])


def range_of(key: str) -> tuple[float | None, float | None]:
    """Return the lowest and highest value of a dotted key; None where it isn't a number."""
    return toml_mistakes.range_of(KEYS[key])


def _matches(reference: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(reference, pattern) for pattern in patterns)
