"""What to do about a module or a shared library that an image does not have. Pure.

A package is named only from the reviewed table: anybody may register the names that are on no such list. Which package
has a module, no index says.
"""

from __future__ import annotations

import re
import shlex

from sandbox.index.absent_modules import (
    ELSEWHERE,
    MOVED,
    REMOVED,
    RENAMED,
    SCREEN,
    STANDARD,
    STANDARD_PACKAGES,
    WINDOWS,
)
from sandbox.index.package_names import module_as_written, package_of_module

__all__ = ["missing_library", "missing_module", "missing_name"]

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+([\w.]{1,80})[ \t]+import[ \t]+(\w{1,80})|import[ \t]+([\w.]{1,80}))", re.ASCII | re.MULTILINE
)


def missing_module(module: str, detail: str, traceback: str) -> str:
    """Return what to do when `module` was not found; `detail` is what Python says after its name."""
    top = module.partition(".")[0]
    if "not a package" in detail and top in STANDARD - STANDARD_PACKAGES:
        return _part(module, top, None)
    if "not a package" in detail:
        return f"a file of yours named {top}.py is found before the library of that name: give it another name"
    full = _imported(module, traceback)
    if top in SCREEN:
        return (
            f"{top} is a part of Python that needs a screen and is not in the image: draw into a file (matplotlib with"
            " the backend Agg, pillow) and save_file() it"
        )
    if top in WINDOWS:
        return f"{top} is for Windows alone, and a sandbox runs Linux"
    if top in STANDARD:
        # Python names all of a name whose top was found.
        return _part(module, top, None) if "." in module else _standard(top)
    if top in RENAMED:
        return f"{top} is a module of Python 2, which Python 3 has as {RENAMED[top]}; {_own(top)}"
    if reason := ELSEWHERE.get(full) or ELSEWHERE.get(top):
        return f"the library {full} {reason}, which a sandbox is not; {_own(top)}"
    package = package_of_module(full)
    if "." in module and package_of_module(module) in (None, package_of_module(top)):
        return _part(module, top, package)
    if package:
        written = module_as_written(top)
        return f"to install it: --with {shlex.quote(package)}{f', whose module is {written}' if written != top else ''}"
    return (
        f"{_own(top)}; a library is installed: --with NAME, with its name on the package index, which its own"
        " documentation says: it need not be that of the module"
    )


def missing_name(name: str, module: str) -> str:
    """Return what to do when a module of Python has no such name: it moved, or is in a module of the user's own."""
    if module not in STANDARD:
        return ""
    if moved := MOVED.get((module, name)):
        return f"{module} of this Python has no {name}: use {moved}"
    return f"{module} is here the module of Python, and has no {name}; {_own(module)}"


def _standard(top: str) -> str:
    without, brought = REMOVED.get(top, ("", ""))
    if not without:
        return f"{top} is a part of Python, not in this image: use another image (--image), or do without"
    before = f"3.{int(without.partition('.')[2]) - 1}"
    was = f"{top} was a part of Python until {before}, not in this image"
    if brought:
        return f"{was}: install what brings it, --with {brought}, or use an image with Python {before} (--image)"
    return f"{was}: use an image with Python {before} (--image); {_own(top)}"


def _own(top: str) -> str:
    return f"a module of your own is sent along: --file {top}.py"


def _part(module: str, top: str, package: str | None) -> str:
    """Say what is wrong when the top of a name was found and the rest was not."""
    part = module[len(top) + 1 :]
    if package is None:
        return f"{top} is there and has no {part}: another version of it may; a module of your own is sent with --file"
    name = re.match(r"[\w.-]+", package)
    return (
        f"{top} is there and has no {part}: ask for a version that has it, --with"
        f" '{name[0] if name else package}==VERSION'"
    )


def _imported(module: str, traceback: str) -> str:
    """Return as much of the name as the program's own import says: of a namespace, Python names the top alone."""
    for found in reversed(list(_IMPORT.finditer(traceback))):
        full = found[3] or f"{found[1]}.{found[2]}"
        if full == module or full.startswith(f"{module}."):
            return full
    return module


# library -> the distribution's package that has it, and what does without
_SCREEN_LIBRARY = ("", "opencv-python-headless, in the place of opencv-python, needs no screen")
_GPU_LIBRARY = ("", "a sandbox has no graphics processor: install the library's build for CPUs")
_LIBRARIES = {
    r"libGL|libEGL|libOpenGL|libSM|libICE|libX\w+|libxcb[\w-]*|libxkb\w*|libgthread-2\.0|libglib-2\.0": _SCREEN_LIBRARY,
    r"libcuda|libcud\w+|libcublas\w*|libnv\w+|libnccl|libcu\w+|librocm\w*|libamdhip\w*": _GPU_LIBRARY,
    r"libtk[\d.]*|libtcl[\d.]*": ("", "it draws on a screen, which a sandbox does not have"),
    r"libgomp": ("libgomp1", ""),
    r"libgfortran": ("libgfortran5", ""),
    r"libatomic": ("libatomic1", ""),
    r"libpq": ("libpq5", "psycopg2-binary and psycopg[binary] bring their own"),
    r"libmariadb|libmysqlclient": ("libmariadb3", "pymysql needs none"),
    r"libodbc\w*": ("libodbc2", ""),
    r"libmagic": ("libmagic1", "puremagic needs none"),
    r"libsndfile": ("libsndfile1", "soundfile brings its own"),
    r"libzbar": ("libzbar0", ""),
    r"libcairo": ("libcairo2", ""),
    r"libpango\w*-1\.0": ("libpango-1.0-0", ""),
    r"libgobject-2\.0": ("libglib2.0-0", ""),
    r"libusb-1\.0|libusb": ("", "a sandbox has no USB devices"),
    r"libportaudio|libasound": ("", "a sandbox has no sound card"),
    r"libspatialindex\w*": ("libspatialindex6", "rtree brings its own"),
    r"libgdal": ("", "rasterio and fiona bring their own"),
    r"libgeos\w*": ("", "shapely brings its own"),
    r"libxml2": ("libxml2", "lxml brings its own"),
    r"libxslt": ("libxslt1.1", "lxml brings its own"),
    r"libexpat": ("libexpat1", ""),
}


def missing_library(name: str) -> str:
    """Return what to do when the shared library `name` was not found."""
    stem = name.partition(".so")[0]
    package, instead = next((row for stems, row in _LIBRARIES.items() if re.fullmatch(stems, stem)), ("", ""))
    debian = f" (in Debian: {package})" if package else ""
    return (
        f"the image does not have {name}: use an image that has it{debian}, with --image, or another library"
        f"{f'; {instead}' if instead else ''}"
    )
