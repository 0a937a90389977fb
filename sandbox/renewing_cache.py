"""Answers that are costly to get and seldom change: believed for a while, renewed behind the backs of who asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
# An answer older than this share of its time is renewed while it is still believed.
RENEWED_AT = 0.25
MAX_KEYS = 1000


class RenewingCache(Generic[Key, Value]):
    """Remembers answers for `believed_s` seconds; 0 remembers nothing. Failures are not remembered."""

    def __init__(self, believed_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._believed_s = believed_s
        self._clock = clock
        self._known: dict[Key, tuple[float, Value]] = {}
        self._renewing: dict[Key, asyncio.Task[None]] = {}

    async def get(self, key: Key, ask: Callable[[], Awaitable[Value]]) -> Value:
        """Return the answer to `ask` for `key`, an earlier one if it is young enough. Raises what `ask` raises."""
        known = self._known.get(key)
        age_s = self._clock() - known[0] if known else 0.0
        if known is None or age_s >= self._believed_s:
            return await self._ask(key, ask)
        if age_s > self._believed_s * RENEWED_AT and key not in self._renewing:
            self._renewing[key] = asyncio.create_task(self._renew(key, ask))
        return known[1]

    def forget(self) -> None:
        """Believe nothing any more."""
        self._known.clear()

    async def _ask(self, key: Key, ask: Callable[[], Awaitable[Value]]) -> Value:
        value = await ask()
        if self._believed_s:
            while len(self._known) >= MAX_KEYS:
                del self._known[next(iter(self._known))]
            self._known[key] = (self._clock(), value)
        return value

    async def _renew(self, key: Key, ask: Callable[[], Awaitable[Value]]) -> None:
        try:
            await self._ask(key, ask)
        except Exception:  # noqa: BLE001 - whoever asks next meets it
            self._known.pop(key, None)
        finally:
            self._renewing.pop(key, None)
