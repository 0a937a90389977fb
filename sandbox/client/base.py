"""The options of a client, for all of its calls: where the service is, how long to wait, what to report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from sandbox.client import calls
from sandbox.errors import InvalidRequest
from sandbox.places import named_socket, usual_socket

# Nothing that a service does by itself takes longer than a run may, with its wait for a turn before it.
ANSWER_TIMEOUT_S = 3_600.0
# What the way takes beside the time that an answer is waited for at the service.
WAY_S = 30.0
# After so long it is asked again whether a run has ended, where the service did not wait for that as long as it was to.
AGAIN_S = 0.2
# Thirty years: what is longer is as good as for ever, and does not fit into the system's clocks.
LONGEST_S = 1e9


def default_socket() -> str:
    """Return where this user's service listens: $SANDBOX_SOCKET, its configuration's path, or the usual place.

    Raises `NotFound`, `InvalidRequest` for a configuration that can't be read.
    """
    return named_socket(os.environ) or usual_socket(os.environ)


def log_versions(version: str) -> None:
    """Log, once in a process, that the service's version is not that of this program."""
    if version not in _LOGGED:
        _LOGGED.add(version)
        import logging

        logging.getLogger("sandbox.client").warning("%s", calls.versions_differ(version))


_LOGGED: set[str] = set()


class ClientBase:
    """The options of a client, for all of its calls; see `Client`."""

    def __init__(
        self,
        path: str | None = None,
        *,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        retry_s: float = 0.0,
        on_other_version: Callable[[str], None] = log_versions,
    ) -> None:
        """Take the socket's path, or the place of this user's service."""
        self.path = path or default_socket()
        self.timeout_s = timeout_s
        self.retry_s = retry_s
        self._on_other_version = on_other_version

    def _heard(self, headers: Mapping[str, str]) -> None:
        if (version := calls.other_version(headers)) is not None:
            self._on_other_version(version)

    def _silence(self, timeout_s: float | None) -> float | None:
        """Return how long the service may be silent. Raises `InvalidRequest` for a time that nobody can wait."""
        silence = self.timeout_s if timeout_s is None else timeout_s
        if silence is not None and not silence > 0:
            raise InvalidRequest(
                f"timeout_s is {silence}, and the service can't answer in that time",
                hint="give seconds above zero; Client(timeout_s=None) waits for ever",
            )
        return silence if silence is None else min(silence, LONGEST_S)

    def _patience(self, wait_s: float | None) -> float | None:
        """Return how long the end of a run is waited for. Raises `InvalidRequest` for what is no number."""
        if wait_s is not None and wait_s != wait_s:
            raise InvalidRequest(
                "wait_s is not a number of seconds", hint="give seconds; without it, the answer comes at once"
            )
        return wait_s if wait_s is None else min(max(wait_s, 0.0), LONGEST_S)

    def _longer(self, timeout_s: float | None, wait_s: float | None) -> float | None:
        """Return how long the service may be silent that was asked to wait."""
        silence = self._silence(timeout_s)
        return silence if silence is None or wait_s is None else max(silence, wait_s + WAY_S)
