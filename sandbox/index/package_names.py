"""The names of modules that people import, and of their packages on the index. Only for hints."""

from __future__ import annotations

import re

from sandbox.index.package_table import MISREMEMBERED, PACKAGES

__all__ = ["CALLED", "POPULAR", "module_as_written", "package_of_module"]

_MODULES = {module.lower(): package for module, package in PACKAGES.items()}
_PLAIN = {module: package for module, package in _MODULES.items() if re.fullmatch(r"[a-z0-9.-]+", package)}
# What many ask for, under the names of the index: a slip of the pen is corrected to one of these.
POPULAR = (*dict.fromkeys(package for module, package in _PLAIN.items() if "." not in module), "opencv-python")
# What people ask the index for by another name, which may be a stranger's, and what they mean.
CALLED = {
    **{module.replace("_", "-"): package for module, package in _PLAIN.items() if module.replace("_", "-") != package},
    **MISREMEMBERED,
}


def package_of_module(module: str) -> str | None:
    """Return what is installed for a module, by its full name, or None where nobody has looked it up for the table."""
    parts = module.lower().split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((_MODULES[name] for name in names if name in _MODULES), None)


def module_as_written(module: str) -> str:
    """Return the name of a module with the letters that it has in the table, where it is there in other letters."""
    return next((written for written in PACKAGES if written.lower() == module.lower()), module)
