"""Under which names saved files are kept: none that the host's own programs would act upon. Pure.

The rule in one sentence: a name is kept when it begins with a letter or a digit, has nothing but letters, digits,
spaces and `._-+,=@()`, and ends in a file type that is not one of programs or their settings; a file of any other name
is kept as `saved-NAME.saved`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["SavedName", "kept_names", "problem_of"]

MAX_BYTES = 255
ALSO = " ._-+,=@()"
# A file manager, a shell, an interpreter, a build or a service manager acts upon files of these types, some without
# being asked.
ACTIVE = frozenset(
    str.split("""
py pyc pyo pyd pyw pyi pyz pth egg whl so dll dylib exe com bat cmd ps1 psm1 psd1 vb vbs vbe js jse mjs cjs ts wsf
wsh hta scr pif msi msp cpl jar class sh bash zsh fish csh ksh rb pl pm php lua tcl awk mk mak cmake gradle ninja
desktop directory service socket timer target path mount automount slice rules lnk url webloc inf ini reg conf cfg
cnf config rc env properties toml plist appimage deb rpm apk run command workflow terminal el elc vim xlsm xlsb xltm
xlam docm dotm pptm potm ppsm crx xpi pem key pub crt nix spec tf ipynb
""")
)
# Settings that tools look for by their whole name.
SOUGHT = frozenset(
    str.split("""
package.json package-lock.json composer.json bower.json tsconfig.json jsconfig.json nodemon.json lerna.json
deno.json renovate.json docker-compose.yml docker-compose.yaml compose.yml compose.yaml action.yml action.yaml
mkdocs.yml pubspec.yaml appveyor.yml azure-pipelines.yml cloudbuild.yaml codecov.yml serverless.yml
kustomization.yaml skaffold.yaml chart.yaml values.yaml environment.yml requirements.txt constraints.txt
cmakelists.txt pom.xml build.xml web.xml robots.txt index.html flows.json settings.json
""")
)
DEVICES = frozenset(
    [
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"),
    ]
)


class SavedName(NamedTuple):
    """One file: under which name it is kept, and why under another than its own ("" where it is its own)."""

    name: str
    why: str = ""


def kept_names(names: Iterable[str], *, as_they_are: bool = False) -> list[SavedName]:
    """Return for each name, in order, under which it is kept; `as_they_are` keeps all.

    No two are one on any file system.
    """
    found: list[SavedName] = []
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for name in names:
        why = "" if as_they_are else problem_of(name)
        if not why and not as_they_are and folded(name) in taken:
            why = "differs from another one by case or accents alone"
        kept = name if not why else renamed(name, taken, numbers)
        taken.add(folded(kept))
        found.append(SavedName(kept, why))
    return found


def problem_of(name: str) -> str:
    """Return why a name is not kept, in words that follow it, or an empty text for one that is."""
    if not name[:1].isalnum():
        return "begins with neither a letter nor a digit"
    if not all(map(plain, name)):
        return "has a character that is no letter, digit, space or one of ._-+,=@()"
    if not re.search(r"\.\w+$", name):
        return "has no file type at its end"
    if name.rpartition(".")[2].casefold() in ACTIVE or name.casefold() in SOUGHT:
        return "is of a kind that programs act upon"
    if name.partition(".")[0].rstrip().casefold() in DEVICES:
        return "is the name of a device on Windows"
    return ""


def plain(char: str) -> bool:
    """Tell whether a character may stand in a name; letters of any script may, with their marks."""
    return char in ALSO or unicodedata.category(char)[0] in "LNM"


def renamed(name: str, taken: set[str], numbers: dict[str, int]) -> str:
    """Return a name that nothing acts upon and no other file has.

    `numbers` remembers where to go on among those that would be alike.
    """
    middle = "".join(char if plain(char) else "_" for char in name).encode()
    alike = folded(_numbered(middle, 1))
    number = numbers.get(alike, 1)
    while folded(kept := _numbered(middle, number)) in taken:
        number += 1
    numbers[alike] = number + 1
    return kept


def _numbered(middle: bytes, number: int) -> str:
    end = f"-{number}.saved" if number > 1 else ".saved"
    room = MAX_BYTES - len(f"saved-{end}")
    return f"saved-{middle[:room].decode(errors='ignore')}{end}"


def folded(name: str) -> str:
    """Return what file systems that know no case, or one form of accents, take for the name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
