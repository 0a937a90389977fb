"""How fast the messages of a node come and go, against how fast containers are made. Pure: the caller has the clock."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

# So many messages tell a pace: fewer come together by chance.
MESSAGES = 8
# Cells are left at half the pace at which they are taken, so that a node in between doesn't change with each message.
SLOWER = 2.0
# Of so many nodes the pace is known; those that had no message for longest are forgotten.
MAX_NODES = 1024


@dataclass
class Pace:
    """The last runs of one node: when each was asked for, on its caller's clock (seconds). Whether that is `fast`."""

    fast: bool = False
    _asked: deque[float] = field(default_factory=lambda: deque(maxlen=MESSAGES))

    def begins(self, now: float, make_s: float) -> bool:
        """Tell whether the node of a run that begins is too fast for containers, which take `make_s` to make."""
        if self.fast and now - self._asked[0] > SLOWER * MESSAGES * make_s:
            self.fast = False
        return self.fast

    def ended(self, asked: float, now: float, make_s: float) -> None:
        """Take note of a run that has ended.

        A node is fast once `MESSAGES` runs, from the first one's asking to the last one's end, took less time than as
        many containers take to make. Programs that run for long are not, however many of them there are at once.
        """
        self._asked.append(asked)
        if len(self._asked) == MESSAGES and now - min(self._asked) < MESSAGES * make_s:
            self.fast = True


class Paces:
    """The paces of nodes, by any key."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Pace] = OrderedDict()

    def __len__(self) -> int:
        """Return of how many something is known."""
        return len(self._known)

    def of(self, node: Hashable) -> Pace:
        """Return the pace of a node; a new one where nothing is known of it."""
        pace = self._known.setdefault(node, Pace())
        self._known.move_to_end(node)
        while len(self._known) > MAX_NODES:
            self._known.popitem(last=False)
        return pace
