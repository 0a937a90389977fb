"""An error, in its one shape."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from sandbox.wire.given import Given


class ErrorBody(Given, frozen=True, kw_only=True):
    """What went wrong and why (`message`), and what to do next (`hint`).

    `code` is stable, see docs/errors.md; `facts` depend on it.
    """

    code: str
    message: str
    hint: str
    run_id: str | UnsetType = UNSET
    facts: dict[str, Any]


class ErrorDocument(Given, frozen=True, kw_only=True):
    """An answer that is an error."""

    error: ErrorBody
