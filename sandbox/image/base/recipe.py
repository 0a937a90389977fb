"""What an image of one's own is made of: packages and locales beyond those of the base image."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from pydantic import Field

from sandbox.errors import InvalidRequest
from sandbox.image.admission import ENVIRONMENTS, REPOSITORY, resolve
from sandbox.toml_file import read_toml
from sandbox.toml_mistakes import Checker, Strict

WHAT = "file of an image"
HINT = "the keys are packages, locales, python, suite and accept: sandbox image build --help"
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}")
_LOCALE = re.compile(r"[A-Za-z]{2,3}(_[A-Z]{2})?(\.[A-Za-z0-9-]{1,20})?(@[a-z]{1,20})?")
_PYTHON = re.compile(r"3\.\d{1,2}")
SUITE = re.compile(r"[a-z][a-z0-9.-]{0,40}")


class Recipe(Strict):
    """What is asked for; `accept` names packages that are wanted without what their installation scripts would make."""

    packages: tuple[str, ...] = Field((), description="Packages of the distribution.")
    locales: tuple[str, ...] = Field((), description="Locales to compile.")
    python: str | None = Field(None, description="The version of Python, such as 3.11.")
    suite: str | None = Field(None, description="The release of the distribution.")
    accept: tuple[str, ...] = Field((), description="Packages whose scripts are not needed.")

    def merged(self, other: Recipe) -> Recipe:
        """Return this recipe with what `other` says besides; where both name one value, the other's counts."""
        return Recipe(
            packages=(*self.packages, *other.packages),
            locales=(*self.locales, *other.locales),
            python=other.python or self.python,
            suite=other.suite or self.suite,
            accept=(*self.accept, *other.accept),
        )

    def checked(self) -> Recipe:
        """Return the recipe in one order, each name once. Raises `InvalidRequest` for what is no name."""
        if not (self.packages or self.locales or self.python):
            raise InvalidRequest(
                "nothing is asked for beyond the base image",
                hint="name packages or locales: sandbox image build media --package ffmpeg --locale de_DE.UTF-8",
            )
        for package in (*self.packages, *self.accept):
            _must_match(_PACKAGE, package, "a package of the distribution", "--package poppler-utils")
        for locale in self.locales:
            _must_match(_LOCALE, locale, "a locale", "--locale de_DE.UTF-8")
        if self.python is not None:
            _must_match(_PYTHON, self.python, "a version of Python", "--python 3.11")
        return self.model_copy(
            update={name: tuple(sorted(set(getattr(self, name)))) for name in ("packages", "locales", "accept")}
        )

    def text(self) -> str:
        """Return the recipe as it stands on the image."""
        return json.dumps({key: value for key, value in self.model_dump().items() if value}, sort_keys=True)

    def digest(self, version: str) -> str:
        """Return what tells recipes apart, for a program that makes images as `version` does."""
        return hashlib.sha256(f"{version} {self.text()}".encode()).hexdigest()[:12]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file. Raises `NotFound` or `InvalidRequest` with the line."""
    file = read_toml(path, what=WHAT)
    return Checker(model=Recipe, place=file.place, hint=HINT).read(file.data)


def image_name(name: str) -> str:
    """Return the full name of an image of one's own: `media` is `localhost/media:latest`. Raises `InvalidRequest`."""
    local = name if name.startswith("localhost/") else f"localhost/{name}"
    full = resolve(local)
    if "@" in full or full.rpartition(":")[0] in (REPOSITORY, ENVIRONMENTS):
        raise InvalidRequest(
            f"an image can't be named {name!r}",
            hint="choose a name of your own, such as media or media:2; sandbox-python is the base image's",
        )
    return full


def _must_match(pattern: re.Pattern[str], text: str, what: str, example: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidRequest(f"{text[:80]!r} is not the name of {what}", hint=f"write it like this: {example}")
