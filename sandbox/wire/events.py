"""What happens in a run or a build, as a stream tells it, and what a webhook tells of a run's end."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from sandbox.wire.answers import BuiltEnvironment
from sandbox.wire.errors import ErrorBody
from sandbox.wire.given import Given
from sandbox.wire.run import Ending, FileDocument, NamedFile

Step = Literal["image", "resolving", "downloading", "installing", "storing", "starting", "running"]


class Accepted(Given, frozen=True, kw_only=True, tag_field="event", tag="accepted"):
    """The run begins; its first event."""

    run_id: str


class Progressed(Given, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """A step towards the run or the environment, with its bytes if they are known.

    `text` is a short phrase for people.
    """

    step: Step
    text: str
    done_bytes: int | UnsetType = UNSET
    total_bytes: int | UnsetType = UNSET


class Stdout(Given, frozen=True, kw_only=True, tag_field="event", tag="stdout"):
    """Output; what is no UTF-8 stands in `text` as backslashes, and exactly in `base64`."""

    text: str
    base64: str | UnsetType = UNSET


class Stderr(Given, frozen=True, kw_only=True, tag_field="event", tag="stderr"):
    """The same of the other stream."""

    text: str
    base64: str | UnsetType = UNSET


class Logged(Given, frozen=True, kw_only=True, tag_field="event", tag="log"):
    """One call of `log(message, level)`; `text` is the message."""

    level: Literal["debug", "info", "warning", "error"]
    text: str
    elapsed_s: float


class FileSaved(FileDocument, frozen=True, kw_only=True, tag_field="event", tag="file"):
    """A file that the program saved."""


class RunEnded(Ending, frozen=True, kw_only=True, tag_field="event", tag="result"):
    """The last event of a run: how it ended.

    It has no output, log records and contents of files, which came before it.
    """

    files: tuple[NamedFile, ...]


class EnvironmentReady(BuiltEnvironment, frozen=True, kw_only=True, tag_field="event", tag="result"):
    """The last event of a build."""


class Failed(Given, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """An error, after which nothing comes."""

    error: ErrorBody


RunEvent = Accepted | Progressed | Stdout | Stderr | Logged | FileSaved | RunEnded | Failed
BuildEvent = Progressed | EnvironmentReady | Failed


class Notification(Given, frozen=True, kw_only=True):
    """What a webhook is told: the run has ended, and `result` is the path to ask at.

    `outcome` may also be an error's code.
    """

    run_id: str
    outcome: str
    result: str
