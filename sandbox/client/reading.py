"""How answers are read: the status, the error, the result; one of another shape is `Internal`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sandbox import errors
from sandbox.errors import Internal, QueueFull, SandboxError

JSON = "application/json"
NDJSON = "application/x-ndjson"
# What `error_of` passes on as facts may not be called like an error's own arguments.
TAKEN = ("self", "message", "hint")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The answer of a run. `document` is the whole answer, as docs/service.md describes it."""

    run_id: str
    outcome: str
    explanation: str
    value: Any
    stdout: str
    stderr: str
    files: dict[str, bytes]
    document: dict[str, Any] = field(repr=False)

    @property
    def succeeded(self) -> bool:
        """Tell whether the program gave a result."""
        return self.outcome == "succeeded"


@dataclass(frozen=True)
class Answer:
    """One whole answer; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> dict[str, Any]:
        """Return its JSON object. Raises `Internal`."""
        return object_of(self.body)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Answer], T]
    body: bytes | None = None
    prefer: str = ""


def object_of(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a text is. Raises `Internal`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise unreadable(error) from None
    if not isinstance(found, dict):
        raise unreadable(TypeError(f"it is no object but {type(found).__name__}"))
    return found


def unreadable(error: BaseException) -> Internal:
    """Return the error of an answer that came whole and can't be read."""
    why = str(error) or type(error).__name__
    if isinstance(error, (RecursionError, KeyError)):
        why = "it is nested too deeply" if isinstance(error, RecursionError) else f"it has no {error}"
    return Internal(
        f"the service's answer can't be read: {why}",
        hint="have the program give a plainer result; if it is plain, report this",
    )


def foreign(what: str) -> Internal:
    """Return the error of an answer that is not the one to what was asked."""
    return Internal(
        f"the service's answer is not the one to this request: {what}",
        hint="ask again on a new connection; report this",
    )


def understood(call: Call[T], answer: Answer) -> T:
    """Return what a call gives.

    Raises the `SandboxError` of every answer but success, and `Internal` for one that can't be read.
    """
    try:
        return call.read(succeeded(answer))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise unreadable(error) from None


def succeeded(answer: Answer) -> Answer:
    """Return a successful answer. Raises the `SandboxError` of every other."""
    if 200 <= answer.status < 300:
        return answer
    try:
        said = error_of(json.loads(answer.body)["error"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError):
        raise Internal(f"the service answered {answer.status} without saying why", hint="look at its log") from None
    if isinstance(said, QueueFull) and (seconds := answer.headers.get("retry-after", "")).isdecimal():
        said.facts.setdefault("retry_after_s", int(seconds))
    raise said


def error_of(body: Mapping[str, Any]) -> SandboxError:
    """Return an error of the service as the exception that it was there; its `facts` may have a `run_id`."""
    kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    kind = kinds.get(str(body.get("code")), Internal)
    facts = {str(name): value for name, value in dict(body.get("facts") or {}).items() if name not in TAKEN}
    if body.get("run_id"):
        facts["run_id"] = body["run_id"]
    error: SandboxError = kind(str(body.get("message", "")), hint=str(body.get("hint", "")), **facts)
    return error


def result_of(document: Mapping[str, Any]) -> Result:
    """Return a run's answer as an object. Raises `Internal`."""
    try:
        texts = {name: document[name] for name in ("run_id", "outcome", "explanation", "stdout", "stderr")}
        if wrong := [name for name, text in texts.items() if not isinstance(text, str)]:
            raise TypeError(f"{wrong[0]} is no text")
        return Result(
            **texts,
            value=document["result"],
            files={file["name"]: base64.b64decode(file["content_base64"], validate=True) for file in document["files"]},
            document={name: value for name, value in document.items() if name != "event"},
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise unreadable(error) from None


def bytes_of(event: Mapping[str, Any]) -> bytes:
    """Return what a program wrote, from its event: exactly, also where it is no text. Raises `Internal`."""
    try:
        exact = event.get("base64")
        return base64.b64decode(exact, validate=True) if exact is not None else str(event["text"]).encode()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise unreadable(error) from None


def of_run(answer: Answer, run_id: str) -> dict[str, Any]:
    """Return a document about one run. Raises `Internal` where it is about another."""
    found = answer.document()
    if found["run_id"] != run_id:
        raise foreign(f"it is of the run {str(found['run_id'])[:40]!r}, not of {run_id[:40]!r}")
    return found
