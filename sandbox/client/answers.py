"""The answers of the service, as types.

Each is a JSON object as it arrived; see docs/service.md. Times are seconds since 1970.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Problem(TypedDict):
    """Why code does not compile: the place (counted from 1), Python's message, and the beginning of that line."""

    line: int
    column: int
    message: str
    text: str


class MissingModule(TypedDict):
    """An import that can't be served, and the library that would provide it (None if it is unknown)."""

    module: str
    line: int
    install: str | None


class CodeCheck(TypedDict):
    """What was found in a piece of code. `python` is the version that compiled it."""

    python: str
    problem: Problem | None
    missing: list[MissingModule]
    imports: list[str]


class SavedFile(TypedDict):
    """A saved file of a run that is kept."""

    name: str
    size_bytes: int


class BuiltEnvironment(TypedDict):
    """An environment that was asked for; `packages` are `name==version`."""

    id: str
    image: str
    digest: str
    lock_hash: str
    packages: list[str]


class Environment(TypedDict):
    """An environment of the service's host; `size_bytes` is what its libraries add to the base image."""

    id: str
    image: str
    image_id: str
    base: str
    base_digest: str
    lock_hash: str
    build_hash: str
    packages: list[str]
    requirements: list[str]
    size_bytes: int
    created: float
    last_used: float


class BuildConnections(TypedDict):
    """Connections that a step of a build asked the egress proxy for, alike in all but time.

    `last` is in seconds since 1970.
    """

    step: str
    host: str
    port: int
    allowed: bool
    reason: str
    address: str
    connections: int
    bytes_up: int
    bytes_down: int
    last: float


class EnvironmentShown(Environment):
    """The same with its lock, as TOML, and what its build asked the egress proxy for."""

    lock: str
    egress: list[BuildConnections]


class Policy(TypedDict):
    """A policy that the caller may use."""

    name: str
    description: str
    hash: str


class PolicyValue(TypedDict):
    """One value of a policy, and the file that it comes from."""

    key: str
    value: Any
    unit: str
    meaning: str
    origin: str


class PolicyAndValues(Policy):
    """A policy with every value."""

    values: list[PolicyValue]


class Template(TypedDict):
    """A built-in script."""

    name: str
    summary: str


class TemplateAndCode(Template):
    """A built-in script with its code and its sample payload."""

    code: str
    payload: Any


class Image(TypedDict):
    """An image of the service's host."""

    name: str
    digest: str


class Pruned(TypedDict):
    """What was removed, or would be: environments by id, and cached files with their size."""

    environments: list[str]
    files: int
    bytes: int
    dry_run: bool


class Stopped(TypedDict):
    """How many runs were ended, and how many builds and checks."""

    stopped: int
    builds_and_checks: int
