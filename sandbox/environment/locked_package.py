"""One library that is locked: its files, with their hashes. Pure."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator, model_validator

from sandbox.toml_mistakes import Strict

MAX_TAGS = 64
Name = Annotated[str, Field(max_length=100, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Version = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")]
MAX_FILE_SIZE_BYTES = 1 << 40
FileName = Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")]
Kind = Literal["wheel", "sdist"]


class LockedFile(Strict):
    """One file of an index; `size_bytes` is only known where the index tells it."""

    name: FileName
    url: Annotated[str, Field(max_length=2_000, pattern=r"^[!-~]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_SIZE_BYTES)] | None = None
    kind: Kind

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("its address is malformed") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("its address holds a user name or a password")
        local = parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/")
        remote = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
        if not local and not remote:
            raise ValueError("its address is not one of http, https or file")
        return url


def _last_part(url: str) -> str:
    return unquote(re.split(r"[?#]", url, maxsplit=1)[0].rpartition("/")[2])


def tags_count(name: str) -> int:
    """Return how many tags a wheel's name, or an address that ends in it, stands for.

    They multiply: three parts of a name with forty tags each would be 64,000 of them.
    """
    parts = name.removesuffix(".whl").rsplit("-", 3)[1:]
    return math.prod(part.count(".") + 1 for part in parts)


class LockedPackage(Strict):
    """One version of one package, and the file that is installed for it."""

    name: Name
    version: Version
    file: LockedFile

    @field_validator("version")
    @classmethod
    def _in_its_one_spelling(cls, version: str) -> str:
        from packaging.version import Version as Parsed

        return str(Parsed(version))

    @model_validator(mode="after")
    def _file_is_its_own(self) -> LockedPackage:
        from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
        from packaging.version import Version as Parsed

        wheel = self.file.kind == "wheel"
        if wheel and tags_count(self.file.name) > MAX_TAGS:
            raise ValueError(f"its file {self.file.name} has more than {MAX_TAGS} tags")
        name, version = parse_wheel_filename(self.file.name)[:2] if wheel else parse_sdist_filename(self.file.name)
        if canonicalize_name(name) != self.name or version != Parsed(self.version):
            raise ValueError(f"its file {self.file.name} is another package or version")
        if (last := _last_part(self.file.url)) != self.file.name and last.endswith((".whl", ".tar.gz", ".zip")):
            raise ValueError(f"its address leads to another file than {self.file.name}")
        return self
