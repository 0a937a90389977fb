"""Which modules a program seems to import, guessed from its text. Pure: nothing is parsed, imported or executed.

What a run imports is guessed before it runs, so that the next sandbox of its kind can have it imported already. A wrong
guess costs that sandbox a little memory, and no program its result. So the text is looked through line by line, as far
as `MAX_SCANNED_CHARS`, in time in proportion to that: Python's parser takes time and memory that a text can choose.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

from sandbox.channel.modules import MAX_MODULE_CHARS, MAX_MODULES, MODULE

MAX_SCANNED_CHARS = 32 << 10
# No part can match what the part before it has left, so that none is tried again: the time is in proportion to the
# text.
STATEMENT = re.compile(r"(?:^|[;:])[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b|import[ \t]+([^\n;#]+))", re.MULTILINE)
LONG_TEXT = re.compile("\"\"\"|'''")
# A comment, or a text of any kind. One that has no end goes to the end, so that no part of it is looked at twice.
WRITTEN = re.compile(
    r"""#[^\n]*|(\"{3}|'{3})(?:[^\\]|\\.)*?(?:\1|\Z)|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?""", re.DOTALL
)
CONTINUED = re.compile(r"\\\r?\n")
BY_NAME = re.compile(r"""\b(?:import_module|__import__)\([ \t]*["']([\w.]+)["']""")
IMPORTABLE = re.compile(r"[^.]+\.(?:.+\.)?(?:py|pyc|so)")


def modules_of(code: str) -> tuple[str, ...]:
    """Return the modules that a program seems to import, without the standard library's.

    They are named in full (`sklearn.cluster`, not `sklearn`), since many packages load little by themselves, and their
    parts are what takes the time. They are in the order of the text, each once, at most `MAX_MODULES`.
    """
    return _bounded(_imported(LONG_TEXT.split(code[:MAX_SCANNED_CHARS].removeprefix("\ufeff"))[::2]))


def roots_of(code: str) -> tuple[str, ...]:
    """Return what the names of these modules begin with (`sklearn`), each once, from the whole of a text.

    The caller waits for no answer here, so more is looked at: statements over several lines, and modules that
    `import_module` and `__import__` are given as a text.
    """
    statements = CONTINUED.sub(" ", WRITTEN.sub('""', code.removeprefix("\ufeff")))
    names = [*_imported([statements]), *(name for name in BY_NAME.findall(code) if _is_other(name))]
    roots = (name.partition(".")[0] for name in names)
    return tuple(dict.fromkeys(root for root in roots if root.isidentifier()))


def brings_modules(files: Iterable[str]) -> bool:
    """Tell whether one of these files, in the working directory, could be imported.

    It then comes before any library of that name, which a preloaded library would ignore.
    """
    return any(IMPORTABLE.fullmatch(name) for name in files)


def _bounded(names: Iterable[str]) -> tuple[str, ...]:
    known: dict[str, None] = {}
    for name in names:
        if len(known) == MAX_MODULES:
            break
        if len(name) <= MAX_MODULE_CHARS and MODULE.fullmatch(name):
            known[name] = None
    return tuple(known)


def _imported(texts: Iterable[str]) -> Iterator[str]:
    """Yield the full names of the modules in the order of the texts, in which no text of several lines stands."""
    for text in texts:
        for statement in STATEMENT.finditer(text):
            names = [statement[1]] if statement[1] else statement[2].split(",", MAX_MODULES)
            yield from (name for name in (name.strip().partition(" ")[0] for name in names) if _is_other(name))


def _is_other(name: str) -> bool:
    """Tell whether a module is neither of the standard library nor the program itself."""
    root = name.partition(".")[0]
    return root not in sys.stdlib_module_names and root != "__main__"
