"""Why a request to Podman's service got no answer."""

from __future__ import annotations


def timed_out(error: BaseException | None) -> bool:
    """Tell whether a request failed because no answer came in time."""
    while error is not None:
        if isinstance(error, TimeoutError):  # what everything else was made of
            return True
        error = error.__cause__ or error.__context__
    return False


def never_sent(error: BaseException | None) -> bool:
    """Tell whether a request failed because nobody listened, so that nothing can have come of it."""
    while error is not None:
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
            return True
        error = error.__cause__ or error.__context__
    return False
