"""The events of one stream, checked and put together: they are of one run, in one order, none of them twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sandbox.client.reading import bytes_of, error_of, foreign, object_of, unreadable

T = TypeVar("T")


class Told:
    """Takes the events of one stream in their order, and puts its last one together with what it has carried before."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._logs: list[dict[str, Any]] = []
        self._files: dict[str, dict[str, Any]] = {}

    def event(self, line: bytes) -> dict[str, Any]:
        """Return an event, the last one with the whole answer.

        Raises its `SandboxError`, and `Internal` for what is none, or not of this run.
        """
        event = object_of(line)
        if event.get("event") == "result":
            return self.whole(event, read=lambda value: value, form=lambda value: value)
        self.take(event)
        return event

    def take(self, event: dict[str, Any]) -> None:
        """Take an event that is not the last. Raises its `SandboxError`, and `Internal` likewise."""
        kind = event.get("event")
        if not isinstance(kind, str):
            raise unreadable(TypeError("an event has no name"))
        try:
            if kind in self._output:
                self._output[kind] += bytes_of(event)
            elif kind == "log":
                self._logs.append({"level": event["level"], "message": event["text"], "elapsed_s": event["elapsed_s"]})
            elif kind == "file":
                if not isinstance(event["name"], str):
                    raise TypeError("a file's name is no text")
                self._files[event["name"]] = {name: value for name, value in event.items() if name != "event"}
            elif kind == "accepted":
                self._accept(event)
            elif kind == "error":
                error = error_of(event["error"])
                if "run_id" in error.facts and self.run_id is not None:
                    self._check(error.facts["run_id"])
                raise error
        except (ValueError, LookupError, TypeError, AttributeError) as broken:
            raise unreadable(broken) from None

    def whole(self, last: Mapping[str, T], *, read: Callable[[T], Any], form: Callable[[Any], T]) -> dict[str, T]:
        """Return the last event as the answer that a request without a stream gets.

        `read` and `form` are for its values.

        What a service of an earlier version sends is whole already, and so is the answer of a build. Raises `Internal`
        for another run's, and for a file that did not come.
        """
        try:
            self._check(read(last["run_id"]) if "run_id" in last else None)
            if "files" not in last or "stdout" in last:
                return dict(last)
            carried = {
                **{kind: output.decode("utf-8", "backslashreplace") for kind, output in self._output.items()},
                "logs": self._logs,
                "files": [self._file(file) for file in read(last["files"])],
            }
        except (ValueError, LookupError, TypeError, AttributeError) as broken:
            raise unreadable(broken) from None
        whole: dict[str, T] = {}
        for name, value in last.items():  # in the order in which an answer has them
            whole |= {each: form(found) for each, found in carried.items()} if name == "files" else {name: value}
        return whole

    def _file(self, named: Mapping[str, Any]) -> dict[str, Any]:
        came = self._files.get(named["name"])
        if came is None or came.get("size_bytes") != named["size_bytes"]:
            raise TypeError("a file that it names did not come")
        if len(came["content_base64"]) != (named["size_bytes"] + 2) // 3 * 4:
            raise TypeError("a file came without all of its content")
        return came

    def _accept(self, event: Mapping[str, Any]) -> None:
        if self.run_id is not None or not isinstance(event.get("run_id"), str):
            raise foreign("a run is accepted twice, or has no id")
        self.run_id = event["run_id"]

    def _check(self, run_id: object) -> None:
        """Raise `Internal` unless this is the run that was accepted (None: neither has an id, as with builds)."""
        if run_id != self.run_id:
            raise foreign(f"it is of the run {str(run_id)[:40]!r}, not of {self.run_id!r}")
