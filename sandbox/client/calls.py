"""What clients ask of the service, and how answers are read, for `Client` and `AsyncClient` alike.

This is everything of a client but waiting. An answer that can't be read is `Internal`, whatever is wrong with it: no
JSON, nested too deeply, not the shape, another run's.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from sandbox import __version__
from sandbox.client.reading import (
    Answer,
    Call,
    Result,
    foreign,
    of_run,
    result_of,
)
from sandbox.errors import EngineUnavailable, InvalidRequest, QueueFull

REQUEST_ID, RUN_ID, PREFER = "X-Request-Id", "X-Run-Id", "Prefer"
PROGRAM = "podman-sandbox-runner"
LATER = "respond-async"
# Every other field of a run, with what the service takes when it is not sent.
OPTIONAL: dict[str, Any] = {
    "message": {},
    "topic": "",
    "node_id": "",
    "filename": "script.py",
    "policy": "default",
    "image": None,
    "requirements": (),
    "requires_python": "",
    "preload": None,
    "limits": {},
    "env": {},
    "secrets": {},
    "files": {},
    "save_new": False,
    "wait_for_end": False,
    "notify": None,
}


# ---- answers


def gone(error: Exception, timeout_s: float | None) -> EngineUnavailable:
    """Return the error of a service that went away, or fell silent, in the middle."""
    if isinstance(error, TimeoutError):
        silent = f"for {timeout_s:g} s" if timeout_s is not None else "for too long"
        return EngineUnavailable(f"the service said nothing {silent}", hint="look at its log, or allow more time")
    reason = getattr(error, "strerror", None) or type(error).__name__
    return EngineUnavailable(
        f"the service went away before it answered: {reason}", hint="look at its log, then try again"
    )


def check_target(method: str, path: str) -> None:
    """Raise `InvalidRequest` for what would be another request than the one that is meant, or none."""
    if not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
        raise InvalidRequest(
            f"{path[:200]!r} is not the path of a route",
            hint="begin it with / and quote its parts: urllib.parse.quote(part, safe='')",
        )
    if not (method.isascii() and method.isalpha()):
        raise InvalidRequest(f"{method[:40]!r} is not a method of HTTP", hint="GET, POST or DELETE")


def check_request_id(headers: Mapping[str, str], asked: str) -> None:
    """Raise `Internal` for an answer to another request. A service before 0.2 names none."""
    if (named := headers.get(REQUEST_ID.lower())) is not None and named != asked:
        raise foreign("it names another request")


def other_version(headers: Mapping[str, str]) -> str | None:
    """Return the version of the service that answered, unless it is ours, or not told."""
    name, _, version = headers.get("server", "").partition("/")
    return version if name == PROGRAM and version and version != __version__ else None


def versions_differ(version: str) -> str:
    """Return what to tell of a service of another version than this program."""
    return (
        f"the service is version {version}, this program is {__version__}; "
        "install the same on both sides, then restart the service: it goes on as what it was when it began"
    )


def pause_s(error: QueueFull, left_s: float) -> float | None:
    """Return how long to wait before asking again what was refused; None where the time that is left doesn't allow it.

    Not all at once: others were refused at the same moment.
    """
    try:
        seconds = max(0.0, float(error.facts.get("retry_after_s", 1)))
    except (TypeError, ValueError, OverflowError):
        seconds = 1.0
    return min(seconds * random.uniform(1, 1.25), left_s) if seconds <= left_s else None  # noqa: S311 - no secret


# ---- requests


def body_of(fields: Mapping[str, Any]) -> bytes:
    """Return the body of a request. Raises `InvalidRequest` for what JSON has no form for."""
    try:
        return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"the request has no form as JSON: {error}", hint="send what the json module takes"
        ) from None


def run_body(code: str, fields: Mapping[str, Any], *, payload: Any = None, payload_json: bytes | None = None) -> bytes:
    """Return the body of a request to run code; `fields` are the other fields, with `files` as bytes.

    A payload's text can't put other fields beside itself: what it may add comes before ours, and the last one counts.
    Raises `InvalidRequest` for what JSON has no form for.
    """
    named = {**(OPTIONAL if payload_json is not None else {}), **fields, "code": code}
    try:
        named["files"] = {name: encoded(name, content) for name, content in (named.get("files") or {}).items()}
        text = json.dumps(payload, allow_nan=False).encode() if payload_json is None else payload_json
        return b'{"payload": ' + text + b", " + json.dumps(named).encode()[1:]
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"the request has no form as JSON: {error}", hint="send what the json module takes"
        ) from None


def encoded(name: str, content: bytes) -> str:
    """Return a file's content as base64. Raises `InvalidRequest` for what is no bytes."""
    if isinstance(content, str):
        raise InvalidRequest(
            f"the content of the file {name[:80]!r} is text, and files are bytes",
            hint='encode it: text.encode("utf-8")',
        )
    return base64.b64encode(content).decode()


def part(name: str) -> str:
    """Return a name as one part of a path.

    Raises `InvalidRequest` for an empty one, which would ask for something else.
    """
    if not name:
        raise InvalidRequest(
            "the name or id that is asked for is empty", hint="give one; runs() and environments() list them"
        )
    return quote(name, safe="")


def document(path: str) -> Call[dict[str, Any]]:
    """Ask for a document."""
    return Call(method="GET", path=path, read=Answer.document)


def listed(path: str, name: str) -> Call[list[Any]]:
    """Ask for the list that a document has under a name."""

    def read(answer: Answer) -> list[Any]:
        found = answer.document()[name]
        if not isinstance(found, list):
            raise TypeError(f"{name} is no list")
        return found

    return Call(method="GET", path=path, read=read)


def posted(path: str, fields: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """Send a document, and take the one that comes back."""
    return Call(method="POST", path=path, read=Answer.document, body=body_of(fields))


def run(body: bytes) -> Call[Result]:
    """Run code and wait for its end."""

    def read(answer: Answer) -> Result:
        found = result_of(answer.document())
        if (named := answer.headers.get(RUN_ID.lower(), found.run_id)) != found.run_id:
            raise foreign(f"it is of the run {found.run_id[:40]!r}, not of {named!r}")
        return found

    return Call(method="POST", path="/v1/runs", read=read, body=body)


def start(body: bytes) -> Call[str]:
    """Have code run, and wait for nothing but its id."""

    def read(answer: Answer) -> str:
        run_id = answer.document()["run_id"]
        if not isinstance(run_id, str):
            raise TypeError("the run's id is no text")
        return run_id

    return Call(method="POST", path="/v1/runs", read=read, body=body, prefer=LATER)


def result(run_id: str, wait_s: float | None) -> Call[Result | None]:
    """Fetch the answer of a run that was started; None while it goes on."""

    def read(answer: Answer) -> Result | None:
        found = of_run(answer, run_id)
        return None if answer.status == 202 else result_of(found)

    prefer = "" if wait_s is None else f"wait={-int(-wait_s // 1)}"  # whole seconds (RFC 7240), rounded up
    return Call(method="GET", path=f"/v1/runs/{part(run_id)}/result", read=read, prefer=prefer)


def result_text(run_id: str, wait_s: float | None) -> Call[bytes | None]:
    """Fetch the same as the JSON text that it came as."""
    asked = result(run_id, wait_s)

    def read(answer: Answer) -> bytes | None:
        of_run(answer, run_id)
        return None if answer.status == 202 else answer.body

    return Call(method=asked.method, path=asked.path, read=read, prefer=asked.prefer)


def recorded(run_id: str) -> Call[dict[str, Any]]:
    """Ask what the history knows of one run."""
    return Call(method="GET", path=f"/v1/runs/{part(run_id)}", read=lambda answer: of_run(answer, run_id))


def whole(method: str, path: str) -> Call[bytes]:
    """Ask for something that is no document, or whose document says nothing more."""
    return Call(method=method, path=path, read=lambda answer: answer.body)


def runs(filters: Mapping[str, str | int]) -> Call[list[dict[str, Any]]]:
    """Ask for runs."""
    return listed(f"/v1/runs?{urlencode(filters)}", "runs")


def build(requirements: Iterable[str], options: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """Install libraries ahead of need. Raises `InvalidRequest` for one text, whose letters would each be a library."""
    if isinstance(requirements, str):
        raise InvalidRequest("the requirements are one text", hint=f"send a list: [{requirements[:80]!r}]")
    return posted("/v1/environments", {"requirements": list(requirements), **options})


def check(code: str, options: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """Ask whether code compiles, and what its imports lack."""
    return posted("/v1/check", {"code": code, **options})


def removed(name: str) -> Call[str]:
    """Remove an environment."""
    return Call(
        method="DELETE", path=f"/v1/environments/{part(name)}", read=lambda answer: str(answer.document()["removed"])
    )


def pruned(limits: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """Remove environments and cached files by age, last use and size."""
    return posted("/v1/maintenance/prune", limits)


def fields_of(
    options: Mapping[str, Any], files: Mapping[str, bytes] | None, requirements: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of a run beside code and payload."""
    return {**options, "files": files or {}, "requirements": requirements}
