"""The memory that is held for clients, one budget that is fair between callers.

It holds bodies that came, and answers that are not taken yet. A caller may hold as much as it leaves free: one alone
half of the budget, two a third each. So there is room for whoever comes next, and a caller that holds nothing is always
taken. Of bodies that come at the same time and do not fit together, those that began first are taken as a whole,
instead of a part of each.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from sandbox.errors import QueueFull

RETRY_AFTER_S = 1


class Budget:
    """So many bytes for all callers together, each known by its user id."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._held: Counter[int] = Counter()
        self._coming: list[Part] = []  # in the order in which they began

    def part(self, uid: int) -> Part:
        """Return a caller's new part, which holds nothing yet."""
        return Part(self, uid)

    def check(self, uid: int, own_bytes: int, size_bytes: int) -> None:
        """Check that a part of `own_bytes` may hold `size_bytes`. Raises `QueueFull`."""
        others_bytes = self._held[uid] - own_bytes
        free_bytes = self._total_bytes - self._held.total() + own_bytes - size_bytes
        if others_bytes and others_bytes + size_bytes > free_bytes:
            raise full(others_bytes)

    @contextlib.contextmanager
    def coming(self, part: Part) -> Iterator[None]:
        """Let a part grow in the block, at the cost of those of its caller that began later."""
        self._coming.append(part)
        try:
            yield
        finally:
            self._coming.remove(part)

    def is_coming(self, part: Part) -> bool:
        """Tell whether a part grows with what comes."""
        return part in self._coming

    def later(self, part: Part) -> Part | None:
        """Return what began to come last of this part's caller, and after it, or None."""
        after = self._coming[self._coming.index(part) + 1 :]
        return next((other for other in reversed(after) if other.uid == part.uid and other.size_bytes), None)

    def check_most(self, uid: int, own_bytes: int) -> None:
        """Check that a caller holds no more than it ever may: what it holds has grown meanwhile. Raises `QueueFull`."""
        others_bytes = self._held[uid] - own_bytes
        if others_bytes and 2 * self._held[uid] > self._total_bytes:
            raise full(others_bytes)

    def held(self, uid: int) -> int:
        """Return how much a caller holds."""
        return self._held[uid]

    def count(self, uid: int, more_bytes: int) -> None:
        """Count more, or less."""
        self._held[uid] += more_bytes
        if not self._held[uid]:
            del self._held[uid]


class Part:
    """What one request, or one answer, holds of the budget."""

    def __init__(self, budget: Budget, uid: int) -> None:
        self._budget = budget
        self.uid = uid
        self._closed = False
        self.size_bytes = 0
        self.given_up = False
        self.on_given_up: Callable[[], None] = lambda: None

    def beside(self) -> Part:
        """Return another part of the same caller."""
        return self._budget.part(self.uid)

    def check(self, size_bytes: int) -> None:
        """Check that it may hold so much, which is not counted yet. Raises `QueueFull`."""
        self._budget.check(self.uid, self.size_bytes, size_bytes)

    def grow(self, size_bytes: int) -> None:
        """Let it hold so much; what is coming makes room for what began to come before. Raises `QueueFull`."""
        self.check_kept()
        while True:
            try:
                self.check(size_bytes)
                break
            except QueueFull:
                if not self._budget.is_coming(self):
                    raise
                if (last := self._budget.later(self)) is None:
                    self.give_up()
                    raise
                last.give_up()
        self.count(size_bytes)

    def check_kept(self) -> None:
        """Check that nothing else took its room. Raises `QueueFull`."""
        if self.given_up:
            raise full(self._budget.held(self.uid))

    def coming(self) -> contextlib.AbstractContextManager[None]:
        """Return the block in which it grows with what comes."""
        return self._budget.coming(self)

    def give_up(self) -> None:
        """Hold nothing any more, and grow no further: something that began before needs the room."""
        self.given_up = True
        self.close()
        self.on_given_up()

    def check_most(self) -> None:
        """Check that its caller may begin a run. Raises `QueueFull`."""
        self._budget.check_most(self.uid, self.size_bytes)

    def count(self, size_bytes: int) -> None:
        """Let it hold so much in any case: what is there already is counted, not refused."""
        if not self._closed:
            self._budget.count(self.uid, size_bytes - self.size_bytes)
            self.size_bytes = size_bytes

    def close(self) -> None:
        """Hold nothing, from now on: nobody is left whom something could be held for."""
        self.count(0)
        self._closed = True


def full(others_bytes: int) -> QueueFull:
    """Return why no more of a caller is taken."""
    return QueueFull(
        f"your requests that wait and run, and the answers that you have not read, hold {others_bytes >> 20} MiB"
        " already, and this one does not fit beside them",
        hint=f"read your answers, and try again in {RETRY_AFTER_S} s",
        retry_after_s=RETRY_AFTER_S,
    )
