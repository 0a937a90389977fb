"""Every error that leaves this package.

A *failing program* is a result (`sandbox.models.Outcome`), never an error. An error says that the
request, the policy, the host or the sandbox itself was at fault::

    SandboxError                     code                exit  http  whose fault
    ├── InvalidRequest               invalid_request        2   400  the caller's request
    ├── NotFound                     not_found              2   404  a name that does not exist
    ├── PolicyDenied                 policy_denied         10   403  the policy says no
    ├── AccessDenied                 access_denied         15   403  the caller may not
    ├── NotEnforceable               not_enforceable        4   503  the host can't enforce it
    ├── ImageUnavailable             image_unavailable     11   502  no image, or not admitted
    ├── BuildFailed                  build_failed          12   422  an image or environment build
    ├── EngineUnavailable            engine_unavailable    13   503  Podman missing, old or broken
    ├── QueueFull                    queue_full            14   429  too much at once
    └── Internal                     internal              70   500  ours: a defect, or a lying sandbox

Attributes of each: `message` (what and why, one sentence), `hint` (what to do next, may be empty),
`facts` (JSON-ready details). `code` is stable; `docs/errors.md` documents each one.
"""

from __future__ import annotations

from typing import Any, ClassVar

MAX_FACT_CHARS = 2_000


def clipped(text: str, limit: int = MAX_FACT_CHARS) -> str:
    """Return `text` bounded to `limit` characters, marked where it was cut."""
    return text if len(text) <= limit else f"{text[:limit]} [truncated, {len(text)} characters in all]"


class SandboxError(Exception):
    """Base of all errors: what went wrong, why, and what to do next."""

    code: ClassVar[str]
    exit_status: ClassVar[int]
    http_status: ClassVar[int]

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = clipped(message)
        self.hint = clipped(hint)
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(SandboxError):
    """The request, a policy file or an argument is malformed."""

    code = "invalid_request"
    exit_status = 2
    http_status = 400


class NotFound(SandboxError):
    """A named policy, template, file or run does not exist."""

    code = "not_found"
    exit_status = 2
    http_status = 404


class PolicyDenied(SandboxError):
    """The policy forbids what the request asks for."""

    code = "policy_denied"
    exit_status = 10
    http_status = 403


class AccessDenied(SandboxError):
    """The caller has no right to this, whatever a policy says."""

    code = "access_denied"
    exit_status = 15
    http_status = 403


class NotEnforceable(SandboxError):
    """The host cannot enforce a control that the policy asks for, or a read-back differed."""

    code = "not_enforceable"
    exit_status = 4
    http_status = 503


class ImageUnavailable(SandboxError):
    """The image is absent, can't be pulled, or is not admitted."""

    code = "image_unavailable"
    exit_status = 11
    http_status = 502


class BuildFailed(SandboxError):
    """An image or an environment could not be built."""

    code = "build_failed"
    exit_status = 12
    http_status = 422


class EngineUnavailable(SandboxError):
    """Podman is missing, too old, broken, or stopped answering."""

    code = "engine_unavailable"
    exit_status = 13
    http_status = 503


class QueueFull(SandboxError):
    """More work than this host is configured to accept."""

    code = "queue_full"
    exit_status = 14
    http_status = 429


class Internal(SandboxError):
    """A defect of ours, or a sandbox that broke the protocol."""

    code = "internal"
    exit_status = 70
    http_status = 500
