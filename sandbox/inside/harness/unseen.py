"""Keeps functions of ours out of what the program sees of the stack.

A program is called from functions of ours. What looks up the stack should find the program at its end, as with plain
Python: `traceback.print_stack`, `inspect.stack`, `sys._getframe`, `logging`, `warnings`, loguru.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, TypeVar

    Function = TypeVar("Function", bound=Callable[..., object])


# RESUME and NOP; a Python that is not here is asked, which takes a quarter of a millisecond
INSTRUCTIONS = {(3, 11): (151, 9), (3, 12): (151, 9), (3, 13): (149, 30)}


def instructions() -> tuple[int, int] | None:
    """Return the numbers of the two instructions in this Python; None where functions do not begin with one."""
    if sys.implementation.name != "cpython" or sys.version_info < (3, 11):
        return None
    known = INSTRUCTIONS.get(sys.version_info[:2])
    if known is None:
        from opcode import opmap

        known = opmap["RESUME"], opmap["NOP"]
    return known


def unseen(function: Function) -> Function:
    """Leave the calls of a function out of every stack and traceback, from Python 3.11 on.

    Since then a function begins with an instruction of its own (RESUME). Python leaves out what has not reached it, so
    a function without it is never seen. The instruction does nothing else that ours need: it lets signals in.
    """
    known = instructions()
    if known is not None:
        begin, nothing = known
        code = function.__code__
        text = bytearray(code.co_code)
        for place in range(0, len(text), 2):
            if text[place] == begin:
                text[place : place + 2] = nothing, 0
        function.__code__ = code.replace(co_code=bytes(text))
    return function


class _FromTheTop(BaseException):
    """Ends everything that the process was about."""


def go_on_from_the_top(onward: Callable[..., NoReturn], *given: object) -> NoReturn:
    """Call a function from no other: Python's own code calls `sys.excepthook` when all else has ended."""

    @unseen
    def hook(*_error: object) -> None:
        sys.excepthook = sys.__excepthook__
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            vars(sys).pop(name, None)
        try:
            onward(*given)
        finally:
            os._exit(1)

    sys.excepthook = hook
    raise _FromTheTop
