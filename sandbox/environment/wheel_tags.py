"""Which wheels run in an image: the tags of PEP 425. Pure."""

from __future__ import annotations

__all__ = ["target_tags"]

MAX_LIBC = 200
OLDEST_GLIBC = {"x86_64": 5, "i686": 5}
GLIBC_ALIASES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


def target_tags(python: tuple[int, int], libc: tuple[str, int, int], machine: str) -> tuple[str, ...]:
    """Return the tags (PEP 425) of wheels that run in an image, the best first.

    `python` is (3, 11); `libc` is ("glibc", 2, 36) or ("musl", 1, 2); `machine` as uname names it.
    """
    from packaging.tags import compatible_tags, cpython_tags

    family, major, minor = libc
    minor = min(minor, MAX_LIBC)
    if family == "musl":
        names = [f"musllinux_{major}_{number}" for number in range(minor, -1, -1)]
    else:
        names = []
        for number in range(minor, OLDEST_GLIBC.get(machine, 17) - 1, -1):
            names += [f"manylinux_{major}_{number}", *filter(None, [GLIBC_ALIASES.get(number)])]
    platforms = [f"{name}_{machine}" for name in ("linux", *names)]
    interpreter = f"cp{python[0]}{python[1]}"
    return tuple(
        str(tag)
        for tag in (
            *cpython_tags(python, abis=[interpreter], platforms=platforms),
            *compatible_tags(python, interpreter=interpreter, platforms=platforms),
        )
    )
